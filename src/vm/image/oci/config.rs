//! What an image says of the program in it, and what mvm keeps of that, as the guest reads it. Pure.

use mvm_proto::settings::{Restart, Workload};
use serde::Deserialize;

use super::{
    digest::Digest,
    layout,
    names::{Name, shown},
};

/// What an engine gives a program whose image says nothing.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERMINATE: i32 = 15;

/// Why an image's configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is for another machine.
    #[error("it is for {found}, and this machine is {host}")]
    Platform {
        /// The machine that it is for.
        found: String,
        /// This one.
        host: String,
    },
    /// It is no configuration.
    #[error("its configuration is malformed: {0}")]
    Malformed(String),
    /// Nobody could run that.
    #[error("{0}")]
    Workload(String),
}

/// An image's configuration, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What its guest runs.
    pub workload: Workload,
    /// The folder that it starts in, which no layer need have.
    pub folder: Name,
    /// The digest of what each layer unpacks to, the lowest first.
    pub layers: Vec<Digest>,
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawProgram>,
    rootfs: RawRoot,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawProgram {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawRoot {
    diff_ids: Vec<Digest>,
}

impl Config {
    /// Parses a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] where it is for another machine, or says of no program.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let malformed =
            |error: serde_json::Error| ConfigError::Malformed(shown(error.to_string().as_bytes()));
        let raw: Raw = serde_json::from_slice(bytes).map_err(malformed)?;
        let (os, arch) = layout::host();
        if raw.os != os || raw.architecture != arch {
            let said = |text: &str| if text.is_empty() { "?".to_owned() } else { shown(text.as_bytes()) };
            return Err(ConfigError::Platform {
                found: format!("{}/{}", said(&raw.os), said(&raw.architecture)),
                host: format!("{os}/{arch}"),
            });
        }
        let workload = workload(raw.config.unwrap_or_default()).map_err(ConfigError::Workload)?;
        let folder = Name::parse(workload.cwd.as_bytes()).map_err(|error| {
            let cwd = shown(workload.cwd.as_bytes());
            ConfigError::Workload(format!("its working directory {cwd:?} cannot be: {error}"))
        })?;
        Ok(Self { workload, folder, layers: raw.rootfs.diff_ids })
    }
}

/// The program that a guest runs.
fn workload(raw: RawProgram) -> Result<Workload, String> {
    let argv = [raw.entrypoint.unwrap_or_default(), raw.cmd.unwrap_or_default()].concat();
    if argv.first().is_none_or(String::is_empty) {
        return Err("it has neither an entry point nor a command: nothing in it would run".into());
    }
    let mut env = raw.env.unwrap_or_default();
    if let Some(wrong) = env.iter().find(|one| one.find('=').is_none_or(|at| at == 0)) {
        return Err(format!("its environment holds {:?}, which is no NAME=VALUE", shown(wrong.as_bytes())));
    }
    if !env.iter().any(|one| one.starts_with("PATH=")) {
        env.push(PATH.to_owned());
    }
    let cwd = match raw.working_dir.unwrap_or_default() {
        absolute if absolute.starts_with('/') => absolute,
        relative => format!("/{relative}"),
    };
    let user = raw.user.unwrap_or_default();
    let stop_signal = match raw.stop_signal.as_deref() {
        None | Some("") => TERMINATE,
        Some(name) => signal(name)
            .map(i32::from)
            .ok_or_else(|| format!("it stops by {:?}: no signal", shown(name.as_bytes())))?,
    };
    if argv.iter().chain(&env).chain([&cwd, &user]).any(|text| text.contains('\0')) {
        return Err("what it runs holds a NUL, which no program can be given".into());
    }
    let restart = Restart::OnFailure;
    Ok(Workload { schema_version: Workload::VERSION, argv, env, cwd, user, restart, stop_signal })
}

/// The number of a signal on Linux, by its name with `SIG` or without, or by itself.
fn signal(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    // As the C library of the guest has them: the two below are its own.
    const REALTIME: (u8, u8) = (34, 64);
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(REALTIME.0),
        (_, Some("")) => Some(REALTIME.1),
        (Some(more), _) => REALTIME.0.checked_add(more.strip_prefix('+')?.parse().ok()?),
        (_, Some(less)) => REALTIME.1.checked_sub(less.strip_prefix('-')?.parse().ok()?),
        _ => None,
    };
    let known = || match NAMES.iter().position(|one| *one == name) {
        Some(at) => u8::try_from(at + 1).ok(),
        None => match name {
            "IOT" => Some(6),
            "CLD" => Some(17),
            "POLL" => Some(29),
            _ => None,
        },
    };
    let is_realtime = |number: &u8| (REALTIME.0..=REALTIME.1).contains(number);
    match realtime {
        Some(number) => Some(number).filter(is_realtime),
        None => known().or_else(|| {
            let number = name.parse().ok();
            number.filter(|number| (1..=31).contains(number) || is_realtime(number))
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(program: Value) -> Result<Workload, ConfigError> {
        let (os, architecture) = layout::host();
        let config = json!({
            "os": os, "architecture": architecture, "config": program,
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"").to_string()] },
            "history": [{}], "created": "2026-01-02T03:04:05Z",
        });
        Config::parse(config.to_string().as_bytes()).map(|config| config.workload)
    }

    #[test]
    fn what_runs_is_kept_and_completed() {
        let workload = parse(json!({
            "Entrypoint": ["/bin/app"], "Cmd": ["x"], "Env": ["K=V=W", "PATH=/bin"], "WorkingDir": "/srv",
            "User": "1000:1000", "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}, "Labels": null,
        }));
        let text = serde_json::to_string(&workload.unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"schema_version":1,"argv":["/bin/app","x"],"env":["K=V=W","PATH=/bin"],"cwd":"/srv","user":"1000:1000","restart":"on-failure","stop_signal":3}"#
        );
        let least = parse(json!({ "Cmd": ["sh"], "Entrypoint": null })).unwrap();
        assert_eq!((least.cwd.as_str(), least.user.as_str(), least.stop_signal), ("/", "", 15));
        assert_eq!(least.env, [PATH]);
        assert_eq!(parse(json!({ "Cmd": ["sh"], "WorkingDir": "srv" })).unwrap().cwd, "/srv");
    }

    #[test]
    fn what_cannot_run_is_refused() {
        for program in [
            json!({}),
            json!(null),
            json!({ "Entrypoint": [], "Cmd": [] }),
            json!({ "Cmd": [""] }),
            json!({ "Cmd": ["a\0b"] }),
            json!({ "Cmd": ["sh"], "User": "a\0" }),
            json!({ "Cmd": ["sh"], "Env": ["=x"] }),
            json!({ "Cmd": ["sh"], "Env": ["X"] }),
            json!({ "Cmd": ["sh"], "StopSignal": "SIGNONE" }),
        ] {
            let refused = parse(program.clone());
            assert!(matches!(refused, Err(ConfigError::Workload(_))), "{program}: {refused:?}");
        }
        assert!(matches!(parse(json!({ "Cmd": "sh" })), Err(ConfigError::Malformed(_))));
    }

    #[test]
    fn an_image_for_another_machine_is_refused_with_both_names() {
        let (_, arch) = layout::host();
        for (os, architecture, found) in
            [("windows", arch, format!("windows/{arch}")), ("linux", "s390x", "linux/s390x".into())]
        {
            let config =
                json!({ "os": os, "architecture": architecture, "rootfs": { "diff_ids": [] } }).to_string();
            let refused = Config::parse(config.as_bytes()).unwrap_err().to_string();
            assert_eq!(refused, format!("it is for {found}, and this machine is linux/{arch}"));
        }
    }

    #[test]
    fn signals_have_numbers() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGWINCH", Some(28)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("0", None),
            ("32", None),
            ("65", None),
            ("-1", None),
            ("RTMIN+40", None),
            ("RTMAX-40", None),
            ("SIG", None),
            ("", None),
        ] {
            assert_eq!(signal(name), number, "{name}");
        }
    }
}
