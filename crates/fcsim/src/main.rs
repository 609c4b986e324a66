//! The `fcsim` binary: see the library.

fn main() {
    std::process::exit(fcsim::main(std::env::args_os()));
}
