//! Arguments of `mvm vmm …`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum VmmCommand {
    /// List the installed versions
    List,
    /// Install a Firecracker under the version that it names
    Install {
        /// The program
        file: PathBuf,
        /// The jailer that goes with it; the one beside the program, where none is named
        #[arg(long, value_name = "FILE")]
        jailer: Option<PathBuf>,
    },
    /// Choose the version that new pools get
    Default {
        /// As in 1.16.1
        version: String,
    },
    /// Remove versions that no pool needs
    Gc,
}
