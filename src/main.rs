//! The `mvm` binary: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(feature = "sim", target_os = "linux"))]
    if std::env::args_os().nth(1).is_some_and(|first| first == mvm::vmm::install::SIM_ARGUMENT) {
        let arguments =
            std::env::args_os().enumerate().filter(|(at, _)| *at != 1).map(|(_, argument)| argument);
        return ExitCode::from(fcsim::main(arguments) as u8);
    }
    // Guests' memory and disks are nobody else's to read, also where a VMM makes the file.
    #[cfg(target_os = "linux")]
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    ExitCode::from(mvm::cli::run())
}
