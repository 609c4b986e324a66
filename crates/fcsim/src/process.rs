//! The process from its arguments to its exit code.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    VERSION, api,
    args::{self, Args, ArgsError, Parsed},
    fault::{Effect, Faults, FaultsError},
    guest::Exit,
    host::{errno::OsError, signals},
    http::{
        Request, Response,
        server::{Next, Server},
    },
    log::{self, LogFileError, log},
    metrics::{self, MetricsError},
    snapshot::{StateFileError, state_file},
    vmm::{ConfigFileError, Settings, Vmm},
    wire::machine::{Level, LoggerConfig, MetricsConfig},
};

/// Exit code of a bad command line.
const BAD_ARGUMENTS: i32 = 153;
/// Exit code of a bad log level.
const BAD_CONFIGURATION: i32 = 152;

/// Why the process ends other than well.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("Arguments parsing error: {0} \\n\\nFor more information try --help.")]
    ParseArguments(#[from] ArgsError),
    #[error("When printing Snapshot Data format: Unable to open snapshot state file: {0}")]
    OpenSnapshot(OsError),
    #[error("When printing Snapshot Data format: Invalid data format version of snapshot file: {0}")]
    PrintSnapshotDataFormat(#[from] StateFileError),
    #[error(
        "Invalid value for logger level: Failed to parse string to level filter: {0}.Possible values: [Error, Warning, \
         Info, Debug]"
    )]
    InvalidLogLevel(String),
    #[error("Could not initialize logger: {0}")]
    LoggerInitialization(#[from] LogFileError),
    #[error("Could not initialize metrics: {0}")]
    MetricsInitialization(#[from] MetricsError),
    #[error("Seccomp error: {0}")]
    SeccompFilter(String),
    #[error(
        "RunWithApiError error: Failed to open the API socket at: {0}. Check that it is not already used."
    )]
    SocketInUse(String),
    #[error("RunWithApiError error: Failed to bind and run the HTTP server: IO error: {0}")]
    Server(OsError),
    #[error("RunWithApiError error: Failed to build MicroVM: Loading snapshot failed..")]
    Restore,
    #[error("RunWithApiError error: Failed to build MicroVM: Populating MMDS from file failed: {0}.")]
    PopulateMmds(String),
    #[error("RunWithApiError error: Failed to build MicroVM from Json: {0}")]
    BuildFromJson(ConfigFileError),
    #[error("RunWithoutApiError error: Failed to build MicroVM from Json: {0}")]
    NoApiBuildFromJson(ConfigFileError),
    #[error("RunWithApiError error: MicroVM stopped with an error: {0}")]
    Stopped(i32),
    #[error("{0}")]
    Faults(#[from] FaultsError),
}

impl MainError {
    fn code(&self) -> i32 {
        match self {
            Self::ParseArguments(_) => BAD_ARGUMENTS,
            Self::InvalidLogLevel(_) => BAD_CONFIGURATION,
            Self::Stopped(code) => *code,
            _ => 1,
        }
    }

    /// What Firecracker prints on stderr: its error's debug form.
    fn debug(&self) -> String {
        match self {
            Self::SocketInUse(path) => format!("RunWithApi(FailedToBindSocket({path:?}))"),
            Self::Restore => "RunWithApi(BuildMicroVmError(Restore))".to_owned(),
            Self::Stopped(_) => "RunWithApi(MicroVMStoppedWithError(GenericError))".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

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
            eprintln!("Error: {}", error.debug());
            log!(Error, "Firecracker exiting with error. exit_code={code}");
            code
        }
    }
}

/// Ends the process as a panic does in Firecracker, which aborts.
fn panic(message: &str) -> ! {
    log!(Error, "Firecracker panicked at src/firecracker/src/main.rs:309:48:\n{message}");
    std::process::abort()
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
        let file = File::open(path).map_err(|error| MainError::OpenSnapshot(error.into()))?;
        println!("v{}", state_file::version(&file)?);
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
    let config = args.value("config-file").map(|path| read(path, "the configuration file"));
    let metadata = args.value("metadata").map(|path| read(path, "the mmds content file"));
    let payload_limit = number(&args, "http-api-max-payload-size", "usize").unwrap_or(51_200);
    let mmds_limit = number(&args, "mmds-size-limit", "usize").unwrap_or(payload_limit);
    for name in ["start-time-us", "start-time-cpu-us", "parent-cpu-time-us"] {
        let _: Option<u64> = number(&args, name, "u64");
    }
    let exit = Arc::new(Exit::new().map_err(|error| MainError::Server(error.into()))?);
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

fn instance_id(args: &Args) -> String {
    let id = args.value("id").unwrap_or_default();
    if !(1..=64).contains(&id.len()) {
        panic(&format!("Invalid instance ID: InvalidLen({}, 1, 64)", id.len()));
    }
    if let Some((at, wrong)) = id.chars().enumerate().find(|(_, c)| !(*c == '-' || c.is_alphanumeric())) {
        panic(&format!("Invalid instance ID: InvalidChar({wrong:?}, {at})"));
    }
    id.to_owned()
}

fn set_up_logger(args: &Args) -> Result<(), MainError> {
    let level = args
        .value("level")
        .map(|name| Level::from_name(name).ok_or_else(|| MainError::InvalidLogLevel(name.to_owned())));
    log::update(LoggerConfig {
        log_path: args.value("log-path").map(PathBuf::from),
        level: level.transpose()?,
        show_level: args.flag("show-level").then_some(true),
        show_log_origin: args.flag("show-log-origin").then_some(true),
        module: args.value("module").map(str::to_owned),
    })?;
    Ok(())
}

fn check_seccomp(args: &Args) -> Result<(), MainError> {
    let Some(path) = args.value("seccomp-filter") else {
        return Ok(());
    };
    match File::open(path) {
        Err(error) => Err(MainError::SeccompFilter(format!("Filter file open error: {}", OsError(error)))),
        Ok(_) => Ok(()),
    }
}

fn read(path: &str, what: &str) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => panic(&format!("Unable to open or read from {what}: {error:?}")),
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(
    args: &Args,
    name: &str,
    kind: &str,
) -> Option<T> {
    args.value(name).map(|text| match text.parse() {
        Ok(number) => number,
        Err(error) => panic(&format!("'{name}' parameter expected to be of '{kind}' type.: {error:?}")),
    })
}

fn put_metadata(vmm: &mut Vmm, metadata: Option<&str>) -> Result<(), MainError> {
    let Some(text) = metadata else { return Ok(()) };
    let value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => panic(&format!("MMDS error: metadata provided not valid json: {error:?}")),
    };
    match vmm.act(api::Action::PutMmds(value)) {
        Ok(_) => {
            log!(Info, "Successfully added metadata to mmds from file");
            Ok(())
        }
        Err(error) => {
            let text = error.to_string();
            let text = text.rsplit("error: ").next().unwrap_or(&text);
            Err(MainError::PopulateMmds(text.to_owned()))
        }
    }
}

fn run_without_api(mut vmm: Vmm, config: &str, metadata: Option<&str>, exit: &Exit) -> Result<(), MainError> {
    put_metadata(&mut vmm, metadata)?;
    vmm.start_from_json(config).map_err(MainError::NoApiBuildFromJson)?;
    let event = exit.event().map_err(|error| MainError::Server(error.into()))?;
    let mut fds = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
    while exit.code().is_none() {
        // interrupted by a signal: look again
        let _ = rustix::event::poll(&mut fds, None);
    }
    finish(exit)
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
    let event = exit.event().map_err(|error| MainError::Server(error.into()))?;
    let mut server = Server::bind(socket, payload_limit, event).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => MainError::SocketInUse(socket.display().to_string()),
        _ => MainError::Server(error.into()),
    })?;
    log!(Info, "Listening on API socket ({socket:?}).");
    put_metadata(&mut vmm, metadata)?;
    if let Some(config) = config {
        vmm.start_from_json(config).map_err(MainError::BuildFromJson)?;
    }
    log!(Info, "API server started.");
    server
        .run(|request| serve(&mut vmm, &request, faults))
        .map_err(|error| MainError::Server(error.into()))?;
    if vmm.doomed() {
        return Err(MainError::Restore);
    }
    finish(exit)
}

fn finish(exit: &Exit) -> Result<(), MainError> {
    log!(Info, "Vmm is stopping.");
    // a last line of metrics; one that cannot be written changes nothing
    let _ = metrics::flush();
    match exit.code() {
        None | Some(0) => Ok(()),
        Some(code) => Err(MainError::Stopped(code)),
    }
}

/// Serves one request.
fn serve(vmm: &mut Vmm, request: &Request, faults: &Faults) -> (Response, Next) {
    log_request(request);
    let effect = faults.of(request);
    if let Some(answer) = effect.as_ref().and_then(Effect::answer) {
        return (answer, Next::Serve);
    }
    match effect {
        Some(Effect::DieBefore) => signals::kill_self(),
        Some(Effect::Hang) => loop {
            std::thread::park();
        },
        _ => {}
    }
    let response = answer(vmm, request);
    let next = if vmm.doomed() { Next::Stop } else { Next::Serve };
    match effect {
        Some(Effect::DieDuring) => signals::kill_self(),
        Some(Effect::DieAfter) => (response, Next::Die),
        _ => (response, next),
    }
}

fn answer(vmm: &mut Vmm, request: &Request) -> Response {
    let group = match request.method {
        crate::http::Method::Get => "get_api_requests",
        crate::http::Method::Put => "put_api_requests",
        crate::http::Method::Patch => "patch_api_requests",
        crate::http::Method::Delete => "hotplug",
    };
    let resource =
        request.path.trim_start_matches('/').split('/').next().unwrap_or_default().replace('-', "_");
    metrics::count(group, &format!("{resource}_count"));
    let routed = match api::route(request) {
        Ok(routed) => routed,
        Err(error) => {
            metrics::count(group, &format!("{resource}_fails"));
            log!(Error, "{error:?}");
            return api::fault(400, &error.to_string());
        }
    };
    let mut response = match vmm.act(routed.action) {
        Ok(api::Reply::Empty) => {
            log!(Info, "The request was executed successfully. Status code: 204 No Content.");
            Response::empty(204)
        }
        Ok(api::Reply::Json(body)) => {
            log!(Info, "The request was executed successfully. Status code: 200 OK.");
            Response::with_body(200, body)
        }
        Err(error) => {
            metrics::count(group, &format!("{resource}_fails"));
            let status = match error.status() {
                413 => "413 Payload too large",
                _ => "400 Bad Request",
            };
            log!(Error, "Received Error. Status code: {status}. Message: {error}");
            api::fault(error.status(), &error.to_string())
        }
    };
    if let Some(message) = routed.deprecation {
        log!(Warn, "{message}");
        response.deprecation = true;
    }
    response
}

fn log_request(request: &Request) {
    let body = match &request.body {
        Some(_) if matches!(request.path.as_str(), "/mmds") => String::new(),
        Some(_) if request.path == "/cpu-config" => {
            ". To view the CPU template received by the API, configure log-level to DEBUG".to_owned()
        }
        Some(body) => format!(" with body {:?}", str::from_utf8(body).unwrap_or("inconvertible to UTF-8")),
        None => String::new(),
    };
    let method = match request.method {
        crate::http::Method::Get => "Get",
        crate::http::Method::Put => "Put",
        crate::http::Method::Patch => "Patch",
        crate::http::Method::Delete => "Delete",
    };
    log!(Info, "The API server received a {method} request on {:?}{body}.", request.path);
}
