//! Why the kernel's network is not as it should be.

use std::io;

use crate::infra::shell::ShellError;

/// An error of the kernel's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("cannot {action} {name}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A setting could not be written.
    #[error("cannot set {setting}")]
    Setting {
        /// The setting's file.
        setting: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something of that name that mvm did not make.
    #[error("{name} is in the way: {found}, and mvm did not make it")]
    Foreign {
        /// The name.
        name: String,
        /// What was found.
        found: String,
    },
    /// Rules could not be loaded.
    #[error("cannot load rules")]
    Rules {
        /// What `nft` said.
        #[source]
        source: ShellError,
    },
}

impl NetError {
    /// The kernel's answer to `action` on `name`, for `map_err`.
    pub fn kernel(action: &'static str, name: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_string();
        move |source| Self::Kernel { action, name, source }
    }

    /// Does the environment lack something: a right, a program, a device?
    pub fn is_environment(&self) -> bool {
        match self {
            Self::Kernel { source, action, .. } => {
                matches!(source.kind(), io::ErrorKind::PermissionDenied)
                    || (*action == "open" && source.kind() == io::ErrorKind::NotFound)
            }
            Self::Setting { source, .. } => {
                matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
            }
            Self::Rules { source: ShellError::Spawn { .. } } => true,
            Self::Rules { source: ShellError::Failed { stderr, .. } } => {
                stderr.contains("Operation not permitted")
            }
            Self::Foreign { .. } | Self::Rules { .. } => false,
        }
    }

    /// Is a right missing?
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Kernel { source, .. } | Self::Setting { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::Rules { source: ShellError::Failed { stderr, .. } } => stderr.contains("not permitted"),
            Self::Rules { .. } | Self::Foreign { .. } => false,
        }
    }

    /// Was the interface gone?
    pub fn is_no_device(&self) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }

    /// Is something in the way that belongs to somebody else?
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign { .. })
    }
}
