//! The agent as a program: PID 1 of a microVM, or a service in one.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod linux;

/// What it is, as it says to people.
const PROGRAM: &str = concat!("mvm-guest ", env!("CARGO_PKG_VERSION"));

#[cfg(target_os = "linux")]
const HELP: &str = "\
mvm's agent in a guest. It does what mvm on the host asks over vsock, port 52.

As the first program of an initial RAM disk (/init) it mounts the root disk and is PID 1.

Usage: mvm-guest serve [OPTIONS]   as a service in a guest that has its own init

Options:
      --listen-unix <PATH>  Listen on this Unix socket, and not on vsock
      --keep-clock          Leave the wall clock alone: something else keeps it right
  -V, --version             Print the version
  -h, --help                Print this
";

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", options @ ..] => match linux::Options::parse(options) {
            Ok(options) => linux::serve(options),
            Err(why) => wrong(&why),
        },
        // The kernel gives the first program whatever it does not know itself.
        _ if linux::is_first() => linux::init(),
        ["--version" | "-V"] => {
            println!("{PROGRAM}");
            ExitCode::SUCCESS
        }
        ["--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => wrong("what it should do is not said"),
    }
}

#[cfg(target_os = "linux")]
fn wrong(why: &str) -> ExitCode {
    eprintln!("mvm-guest: {why}\n\n{HELP}");
    ExitCode::from(2)
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("{PROGRAM}: it runs in Linux guests only");
    ExitCode::FAILURE
}
