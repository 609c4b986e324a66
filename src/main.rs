//! The `mvm` binary: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(feature = "sim", target_os = "linux"))]
    if std::env::args_os().nth(1).is_some_and(|first| first == mvm::vmm::install::SIM_ARGUMENT) {
        let arguments =
            std::env::args_os().enumerate().filter(|(at, _)| *at != 1).map(|(_, argument)| argument);
        return ExitCode::from(fcsim::main(arguments) as u8);
    }
    #[cfg(target_os = "linux")]
    return ExitCode::from(mvm::cli::run());
    #[cfg(not(target_os = "linux"))]
    {
        eprintln!(
            "mvm runs on Linux; on a Mac it runs inside a Lima VM, which this version does not set up yet"
        );
        ExitCode::from(5)
    }
}
