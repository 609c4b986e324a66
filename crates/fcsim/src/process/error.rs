//! Why the process ends other than well: what it logs, what it prints on stderr, its exit code.
//!
//! What Firecracker prints on stderr is its error's debug form, so the names of variants here and below are part of what
//! is simulated.

use crate::{
    args::ArgsError,
    fault::FaultsError,
    host::errno::OsError,
    log::LoggerUpdateError,
    metrics::MetricsError,
    snapshot::{BitcodeError, StateFileError},
    vmm::{ConfigFileError, MmdsError},
};

/// Exit code of a bad command line.
const BAD_ARGUMENTS: i32 = 153;
/// Exit code of a bad log level.
const BAD_CONFIGURATION: i32 = 152;

/// Why the process ends other than well.
#[derive(Debug, thiserror::Error)]
pub(super) enum MainError {
    #[error("Arguments parsing error: {0} \\n\\nFor more information try --help.")]
    ParseArguments(#[from] ArgsError),
    #[error("When printing Snapshot Data format: {0}")]
    PrintSnapshotDataFormat(#[from] SnapshotVersionError),
    #[error("Invalid value for logger level: {0}.Possible values: [Error, Warning, Info, Debug]")]
    InvalidLogLevel(LevelFilterFromStrError),
    #[error("Could not initialize logger: {0}")]
    LoggerInitialization(#[from] LoggerUpdateError),
    #[error("Could not initialize metrics: {0}")]
    MetricsInitialization(#[from] MetricsError),
    #[error("Seccomp error: {0}")]
    SeccompFilter(#[from] FilterError),
    #[error("RunWithApiError error: {0}")]
    RunWithApi(ApiServerError),
    #[error("RunWithoutApiError error: {0}")]
    RunWithoutApiError(WithoutApiError),
    #[error("{0}")]
    Faults(#[from] FaultsError),
}

impl MainError {
    /// The exit code.
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::ParseArguments(_) => BAD_ARGUMENTS,
            Self::InvalidLogLevel(_) => BAD_CONFIGURATION,
            Self::RunWithApi(ApiServerError::MicroVMStoppedWithError(ExitCode(code)))
            | Self::RunWithoutApiError(WithoutApiError::Shutdown(ExitCode(code))) => *code,
            _ => 1,
        }
    }
}

/// Why the version of a state file is not printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotVersionError {
    #[error("Unable to open snapshot state file: {0}")]
    OpenSnapshot(OsError),
    #[error("Invalid data format version of snapshot file: {0}")]
    SnapshotVersion(#[from] StateFileError),
}

/// No log level.
#[derive(Debug, thiserror::Error)]
#[error("Failed to parse string to level filter: {0}")]
pub(super) struct LevelFilterFromStrError(pub String);

/// Why a seccomp filter is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("Filter file open error: {0}")]
    FileOpen(OsError),
    #[error("Filter deserialization failed: {0}")]
    Deserialization(#[from] DeserializationError),
}

/// Why a seccomp filter cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeserializationError {
    #[error("Failed to read input: {0}")]
    InputRead(OsError),
    #[error("Bitcode deserialization failed: {0}")]
    Bitcode(BitcodeError),
}

/// How a VMM with an API ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiServerError {
    #[error("Failed to build MicroVM: {0}.")]
    BuildMicroVmError(BuildError),
    #[error("MicroVM stopped with an error: {0:?}")]
    MicroVMStoppedWithError(ExitCode),
    #[error("Failed to open the API socket at: {0}. Check that it is not already used.")]
    FailedToBindSocket(String),
    #[error("Failed to bind and run the HTTP server: {0}")]
    FailedToBindAndRunHttpServer(ServerError),
    #[error("Failed to build MicroVM from Json: {0}")]
    BuildFromJson(ConfigFileError),
}

/// How a VMM without an API ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum WithoutApiError {
    #[error("MicroVMStopped without an error: {0:?}")]
    Shutdown(ExitCode),
    #[error("Failed to build MicroVM from Json: {0}")]
    BuildMicroVMFromJson(ConfigFileError),
}

/// What is wrong with the API server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    #[error("IO error: {0}")]
    IOError(OsError),
}

/// Why no VM came of the requests.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("Populating MMDS from file failed: {0}.")]
    PopulateMmds(MmdsError),
    #[error("Loading snapshot failed.")]
    Restore,
}

/// The code with which a guest ended its VMM.
#[derive(Clone, Copy)]
pub(super) struct ExitCode(pub i32);

impl std::fmt::Debug for ExitCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            1 => "GenericError",
            _ => "UnexpectedError",
        })
    }
}
