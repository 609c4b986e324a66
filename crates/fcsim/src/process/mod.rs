//! The process from its arguments to its exit code.

mod error;
mod serve;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use error::{
    ApiServerError, BuildError, DeserializationError, ExitCode, FilterError, LevelFilterFromStrError,
    MainError, ServerError, SnapshotVersionError, WithoutApiError,
};

use crate::{
    VERSION,
    args::{self, Args, Parsed},
    fault::Faults,
    guest::Exit,
    host::signals,
    http::server::Server,
    log::{self, api_log, log, panic_as_firecracker},
    metrics,
    snapshot::{BitcodeError, state_file},
    vmm::{Settings, Vmm},
    wire::machine::{Level, LoggerConfig, MetricsConfig},
};

/// Runs the program with these arguments, the first of which is its name.
pub(crate) fn main(args: impl Iterator<Item = std::ffi::OsString>) -> i32 {
    let args: Vec<String> = args.skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match run(&args) {
        Ok(()) => {
            log!(Info, "Firecracker exiting successfully. exit_code=0");
            0
        }
        Err(error) => {
            let code = error.code();
            log!(Error, "{error}");
            eprintln!("Error: {error:?}");
            log!(Error, "Firecracker exiting with error. exit_code={code}");
            code
        }
    }
}

fn run(args: &[String]) -> Result<(), MainError> {
    let args = match args::parse(args)? {
        Parsed::Help => {
            println!("Firecracker v{VERSION}\n\n{}", args::help());
            return Ok(());
        }
        Parsed::Version => {
            println!("Firecracker v{VERSION}\n");
            return Ok(());
        }
        Parsed::Run(args) => args,
    };
    if args.flag("snapshot-version") {
        println!("v{}", state_file::VERSION);
        return Ok(());
    }
    if let Some(path) = args.value("describe-snapshot") {
        println!("v{}", describe_snapshot(path)?);
        return Ok(());
    }
    let faults = Arc::new(Faults::from_env()?);
    let id = instance_id(&args);
    log::set_id(&id);
    set_up_logger(&args)?;
    let version = faults.version.clone().unwrap_or_else(|| VERSION.to_owned());
    log!(Info, "Running Firecracker v{version}");
    signals::install();
    if let Some(path) = args.value("metrics-path") {
        metrics::init(&MetricsConfig { metrics_path: PathBuf::from(path) })?;
    }
    check_seccomp(&args)?;
    let config = args.value("config-file").map(|path| read(path, "the configuration file", "388:20"));
    let metadata = args.value("metadata").map(|path| read(path, "the mmds content file", "393:20"));
    let payload_limit = number(&args, "http-api-max-payload-size", "usize", "403:18").unwrap_or(51_200);
    let mmds_limit = number(&args, "mmds-size-limit", "usize", "415:18").unwrap_or(payload_limit);
    if !args.flag("no-api") {
        let times =
            [("start-time-us", "427:18"), ("start-time-cpu-us", "432:18"), ("parent-cpu-time-us", "437:18")];
        for (name, place) in times {
            let _: Option<u64> = number(&args, name, "u64", place);
        }
    }
    let exit = Arc::new(Exit::new().map_err(server_error)?);
    if let Some(after) = faults.exit_after_ms {
        let (exit, code) = (Arc::clone(&exit), faults.exit_code);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(after));
            exit.set(code);
        });
    }
    let settings = Settings {
        id,
        version,
        mmds_limit,
        pci: args.flag("enable-pci"),
        faults: Arc::clone(&faults),
        exit: Arc::clone(&exit),
    };
    let vmm = Vmm::new(settings);
    if args.flag("no-api") {
        run_without_api(vmm, &config.unwrap_or_default(), metadata.as_deref(), &exit)
    } else {
        let socket = PathBuf::from(args.value("api-sock").unwrap_or_default());
        run_with_api(vmm, &socket, payload_limit, config.as_deref(), metadata.as_deref(), &faults, &exit)
    }
}

/// Ends the process over its arguments as Firecracker does, at this place of its main file.
fn panic_at(place: &str, message: &str) -> ! {
    panic_as_firecracker(&format!("src/firecracker/src/main.rs:{place}"), message)
}

fn server_error(error: std::io::Error) -> MainError {
    MainError::RunWithApi(ApiServerError::FailedToBindAndRunHttpServer(ServerError::IOError(error.into())))
}

fn describe_snapshot(path: &str) -> Result<String, SnapshotVersionError> {
    let file = File::open(path).map_err(|error| SnapshotVersionError::OpenSnapshot(error.into()))?;
    Ok(state_file::version(&file)?)
}

fn instance_id(args: &Args) -> String {
    let id = args.value("id").unwrap_or_default();
    let panic = |why: &str| panic_at("309:48", why);
    if !(1..=64).contains(&id.len()) {
        panic(&format!("Invalid instance ID: InvalidLen({}, 1, 64)", id.len()));
    }
    if let Some((at, wrong)) = id.chars().enumerate().find(|(_, c)| !(*c == '-' || c.is_alphanumeric())) {
        panic(&format!("Invalid instance ID: InvalidChar({wrong:?}, {at})"));
    }
    id.to_owned()
}

fn set_up_logger(args: &Args) -> Result<(), MainError> {
    let level = args.value("level").map(|name| {
        Level::from_name(name)
            .ok_or_else(|| MainError::InvalidLogLevel(LevelFilterFromStrError(name.to_owned())))
    });
    log::update(LoggerConfig {
        log_path: args.value("log-path").map(PathBuf::from),
        level: level.transpose()?,
        show_level: args.flag("show-level").then_some(true),
        show_log_origin: args.flag("show-log-origin").then_some(true),
        module: args.value("module").map(str::to_owned),
    })?;
    Ok(())
}

/// A compiled filter is not looked into, but what is none at all is refused.
fn check_seccomp(args: &Args) -> Result<(), FilterError> {
    let Some(path) = args.value("seccomp-filter") else {
        return Ok(());
    };
    let mut file = File::open(path).map_err(|error| FilterError::FileOpen(error.into()))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| DeserializationError::InputRead(error.into()))?;
    // the names of the threads that it has filters for, in this order, are near its beginning
    if bytes.windows(THREADS.len()).any(|window| window == THREADS) {
        Ok(())
    } else {
        Err(DeserializationError::Bitcode(BitcodeError).into())
    }
}

const THREADS: &[u8] = b"apivcpuvmm";

fn read(path: &str, what: &str, place: &str) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => panic_at(place, &format!("Unable to open or read from {what}: {error:?}")),
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(
    args: &Args,
    name: &str,
    kind: &str,
    place: &str,
) -> Option<T> {
    args.value(name).map(|text| match text.parse() {
        Ok(number) => number,
        Err(error) => {
            panic_at(place, &format!("'{name}' parameter expected to be of '{kind}' type.: {error:?}"))
        }
    })
}

fn run_without_api(mut vmm: Vmm, config: &str, metadata: Option<&str>, exit: &Exit) -> Result<(), MainError> {
    vmm.start_from_json(config, metadata)
        .map_err(|error| MainError::RunWithoutApiError(WithoutApiError::BuildMicroVMFromJson(error)))?;
    let event = exit.event().map_err(server_error)?;
    let mut fds = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
    while exit.code().is_none() {
        // interrupted by a signal: look again
        let _ = rustix::event::poll(&mut fds, None);
    }
    match finish(exit) {
        0 => Ok(()),
        code => Err(MainError::RunWithoutApiError(WithoutApiError::Shutdown(ExitCode(code)))),
    }
}

fn run_with_api(
    mut vmm: Vmm,
    socket: &Path,
    payload_limit: usize,
    config: Option<&str>,
    metadata: Option<&str>,
    faults: &Faults,
    exit: &Exit,
) -> Result<(), MainError> {
    let event = exit.event().map_err(server_error)?;
    let mut server = Server::bind(socket, payload_limit, event).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            MainError::RunWithApi(ApiServerError::FailedToBindSocket(socket.display().to_string()))
        }
        _ => server_error(error),
    })?;
    log!(Info, "Listening on API socket ({socket:?}).");
    api_log!(Info, "API server started.");
    match config {
        Some(config) => vmm.start_from_json(config, metadata).map_err(ApiServerError::BuildFromJson),
        None => vmm
            .put_metadata(metadata, "src/vmm/src/rpc_interface.rs:387:44")
            .map_err(|error| ApiServerError::BuildMicroVmError(BuildError::PopulateMmds(error))),
    }
    .map_err(MainError::RunWithApi)?;
    server.run(|request| serve::serve(&mut vmm, &request, faults)).map_err(server_error)?;
    if vmm.doomed() {
        return Err(MainError::RunWithApi(ApiServerError::BuildMicroVmError(BuildError::Restore)));
    }
    match finish(exit) {
        0 => Ok(()),
        code => Err(MainError::RunWithApi(ApiServerError::MicroVMStoppedWithError(ExitCode(code)))),
    }
}

/// The last acts of a VM that ran; returns the exit code.
fn finish(exit: &Exit) -> i32 {
    log!(Info, "Vmm is stopping.");
    // a last line of metrics; one that cannot be written changes nothing
    let _ = metrics::flush();
    exit.code().unwrap_or(0)
}
