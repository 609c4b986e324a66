//! Firecracker's log: lines on stdout or in a file, with its settings.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    host::{clock::LocalTime, errno::OsError},
    wire::machine::{Level, LoggerConfig},
};

/// A log file that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("Failed to open target file: {0}")]
pub(crate) struct LoggerUpdateError(#[from] OsError);

struct Settings {
    id: String,
    target: Option<File>,
    level: Level,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

static SETTINGS: Mutex<Settings> = Mutex::new(Settings {
    id: String::new(),
    target: None,
    level: Level::Info,
    show_level: false,
    show_origin: false,
    module: None,
});

fn settings() -> MutexGuard<'static, Settings> {
    // a panic while the lock was held leaves settings that are still whole
    SETTINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a file as log, metrics and console do: created, written over from its beginning, not truncated.
pub(crate) fn open_output(path: &Path) -> Result<File, OsError> {
    let options = OpenOptions::new()
        .custom_flags(libc::O_NONBLOCK)
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path);
    options.map_err(OsError)
}

/// Sets the id that is put in front of each line.
pub(crate) fn set_id(id: &str) {
    settings().id = id.to_owned();
}

/// Applies a configuration. A level that is left out is Info again, the rest stays as it was.
pub(crate) fn update(config: LoggerConfig) -> Result<(), LoggerUpdateError> {
    let file = config.log_path.as_deref().map(open_output).transpose()?;
    let mut settings = settings();
    settings.level = config.level.unwrap_or(Level::Info);
    if file.is_some() {
        settings.target = file;
    }
    settings.show_level = config.show_level.unwrap_or(settings.show_level);
    settings.show_origin = config.show_log_origin.unwrap_or(settings.show_origin);
    if config.module.is_some() {
        settings.module = config.module;
    }
    Ok(())
}

/// Writes one line, where level and module let it through. What cannot be written is lost, as there.
pub(crate) fn write(level: Level, thread: &str, module: &str, origin: &str, message: fmt::Arguments<'_>) {
    let mut settings = settings();
    let wanted = settings.module.as_ref().is_none_or(|filter| module.starts_with(filter.as_str()));
    if level > settings.level || !wanted {
        return;
    }
    let id = if settings.id.is_empty() { "anonymous-instance" } else { &settings.id };
    let mut line = format!("{} [{id}:{thread}", LocalTime::now());
    if settings.show_level {
        line.push_str(match level {
            Level::Off | Level::Error => ":ERROR",
            Level::Warn => ":WARN",
            Level::Info => ":INFO",
            Level::Debug => ":DEBUG",
            Level::Trace => ":TRACE",
        });
    }
    if settings.show_origin {
        line.push(':');
        line.push_str(origin);
    }
    line.push_str(&format!("] {message}\n"));
    let _ = match &mut settings.target {
        Some(file) => file.write_all(line.as_bytes()),
        None => std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()),
    };
}

/// Ends the process as a panic at this place does in Firecracker, which aborts.
pub(crate) fn panic_as_firecracker(place: &str, message: &str) -> ! {
    log!(Error, "Firecracker panicked at {place}:\n{message}");
    std::process::abort()
}

/// Is this level logged?
pub(crate) fn lets_through(level: Level) -> bool {
    level <= settings().level
}

/// Logs a line at a level of [`Level`], as Firecracker's main thread does.
macro_rules! log {
    ($level:ident, $($message:tt)*) => {
        $crate::log::log_line!($level, "main", $($message)*)
    };
}
pub(crate) use log;

/// Logs a line as Firecracker's API thread does.
macro_rules! api_log {
    ($level:ident, $($message:tt)*) => {
        $crate::log::log_line!($level, "fc_api", $($message)*)
    };
}
pub(crate) use api_log;

macro_rules! log_line {
    ($level:ident, $thread:literal, $($message:tt)*) => {
        $crate::log::write(
            $crate::wire::machine::Level::$level,
            $thread,
            module_path!(),
            concat!(file!(), ":", line!()),
            format_args!($($message)*),
        )
    };
}
pub(crate) use log_line;
