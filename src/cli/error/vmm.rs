//! What is said of VMMs, and of programs that shall be one.

use super::{CliError, Kind};
use crate::vmm::{client::VmmError, install::InstallError};

/// What the operating system says when there is no space left, which a VMM repeats.
const DISK_FULL: &str = "No space left on device";
/// What it says where nothing can be written.
const READ_ONLY: &str = "Read-only file system";

impl From<&VmmError> for CliError {
    fn from(error: &VmmError) -> Self {
        let code = match error {
            VmmError::Refused { message, .. } if message.contains(DISK_FULL) => {
                return Self::of(Kind::Failed, "disk_full", error).fix("free space where MVM_ROOT lies");
            }
            VmmError::Refused { message, .. } if message.contains(READ_ONLY) => {
                return Self::of(Kind::Environment, "read_only", error).fix(
                    "dmesg, which says whether the disk failed where MVM_ROOT lies; then mount -o remount,rw, on what findmnt -T names for it",
                );
            }
            VmmError::Refused { .. } => "vmm_refused",
            VmmError::Ended { .. } => "vmm_ended",
            VmmError::TimedOut { .. } => "vmm_timeout",
            VmmError::Nonsense { .. } | VmmError::Io { .. } => "vmm",
        };
        Self::of(Kind::Failed, code, error)
    }
}

impl From<&InstallError> for CliError {
    fn from(error: &InstallError) -> Self {
        match error {
            InstallError::Store(error) => error.into(),
            InstallError::Shell(error) => error.into(),
            InstallError::None => Self::of(Kind::Environment, "no_vmm", error).fix("mvm vmm install FILE"),
            InstallError::NoSim => Self::of(Kind::Environment, "no_sim", error),
            InstallError::NoSuchVersion { .. } => {
                Self::of(Kind::NotFound, "no_vmm_version", error).fix("mvm vmm list")
            }
            InstallError::NotFirecracker { .. } => Self::of(Kind::Failed, "not_firecracker", error),
            InstallError::NotJailer { .. } => Self::of(Kind::Failed, "not_jailer", error)
                .fix("give the jailer of the same release, or none"),
        }
    }
}
