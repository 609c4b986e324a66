//! Why an image could not be made or used.

use std::path::PathBuf;

use super::{kernel::KernelError, modules::MissingModule};
use crate::{
    infra::shell::ShellError,
    store::StoreError,
    vm::{naming::ImageName, pool::artifacts::ArtifactError, room::RoomError},
};

/// A program of the host that is needed, and the Debian package that it comes in.
pub type Tool = (&'static str, &'static str);

/// Why an image could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such image.
    #[error("there is no image {name}; there {}", list(there))]
    Unknown {
        /// Its name.
        name: ImageName,
        /// Those that there are.
        there: Vec<ImageName>,
    },
    /// A file of it is not what was made.
    #[error("image {name} is damaged: {path}: {why}", path = path.display())]
    Changed {
        /// The image.
        name: ImageName,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Programs are missing.
    #[error("{} not there: {}", if tools.len() == 1 { "a program is" } else { "programs are" }, programs(tools))]
    Tools {
        /// Which.
        tools: Vec<Tool>,
    },
    /// Not root.
    #[error("an image is made by root: the files in it belong to root")]
    NotRoot,
    /// There is no recipe for this architecture.
    #[error("there is no recipe for a Debian image on {arch} yet, only on x86_64")]
    Architecture {
        /// Of the machine.
        arch: &'static str,
    },
    /// apt has no Debian to take packages from.
    #[error("apt on this machine knows no Debian mirror")]
    NoMirror,
    /// apt's lists name no such package.
    #[error("apt on this machine knows no package {package}")]
    NoPackage {
        /// The package.
        package: String,
    },
    /// A step of making it failed.
    #[error("{step} failed")]
    Step {
        /// What was done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: ShellError,
    },
    /// The disk is full.
    #[error("{step} failed: the disk is full")]
    DiskFull {
        /// What was done.
        step: &'static str,
    },
    /// Debian's kernel is not what this recipe knows.
    #[error("no kernel can be taken out of {path}", path = path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// Debian's kernel lacks a driver.
    #[error(transparent)]
    Module(#[from] MissingModule),
    /// What was made is not what it should be.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// No room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImageError {
    /// What a failed program means, as far as its words say.
    pub(super) fn step(step: &'static str) -> impl FnOnce(ShellError) -> Self {
        move |source| match &source {
            ShellError::Failed { stderr, .. } if stderr.contains("No space left on device") => {
                Self::DiskFull { step }
            }
            ShellError::Failed { program, status, stderr } => {
                // A long story ends with what went wrong.
                let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
                let stderr = lines[lines.len().saturating_sub(4)..].join("; ");
                let (program, status) = (program.clone(), status.clone());
                Self::Step { step, source: ShellError::Failed { program, status, stderr } }
            }
            ShellError::Spawn { .. } | ShellError::TimedOut { .. } => Self::Step { step, source },
        }
    }
}

fn list(names: &[ImageName]) -> String {
    match names {
        [] => "is none".to_owned(),
        [one] => format!("is {one}"),
        names => format!("are {}", names.iter().map(ImageName::as_ref).collect::<Vec<&str>>().join(", ")),
    }
}

fn programs(tools: &[Tool]) -> String {
    tools.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")
}
