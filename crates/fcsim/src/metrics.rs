//! Firecracker's metrics: one JSON line per flush, into a file that can be set once.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use crate::{host::errno::OsError, log::open_output, wire::machine::MetricsConfig};

/// Why metrics cannot be set or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error("Cannot initialize the metrics system due to bad user input: {0}")]
    InitializationFailure(String),
    #[error("Failed to write metrics: {0}")]
    Write(OsError),
}

static TARGET: OnceLock<Mutex<File>> = OnceLock::new();

/// Counters by group and name. A latency stays until the next one; a count starts again at each flush, as there.
static VALUES: Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>> = Mutex::new(BTreeMap::new());

const LATENCIES: &str = "latencies_us";

fn values() -> MutexGuard<'static, BTreeMap<&'static str, BTreeMap<String, u64>>> {
    VALUES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts something once more.
pub(crate) fn count(group: &'static str, name: &str) {
    *values().entry(group).or_default().entry(name.to_owned()).or_default() += 1;
}

/// Notes how long something took.
pub(crate) fn latency(what: &str, micros: u64) {
    values().entry(LATENCIES).or_default().insert(what.to_owned(), micros);
}

/// Sets the file.
pub(crate) fn init(config: &MetricsConfig) -> Result<(), MetricsError> {
    let file = open_output(&config.metrics_path)
        .map_err(|error| MetricsError::InitializationFailure(error.to_string()))?;
    let twice = "Reinitialization of metrics not allowed.";
    TARGET.set(Mutex::new(file)).map_err(|_| MetricsError::InitializationFailure(twice.to_owned()))
}

/// Writes a line, where a file was set.
pub(crate) fn flush() -> Result<(), MetricsError> {
    let Some(target) = TARGET.get() else { return Ok(()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut document = json!({
        "utc_timestamp_ms": now,
        "api_server": { "process_startup_time_us": 0, "process_startup_time_cpu_us": 0 },
        "get_api_requests": {},
        "put_api_requests": {},
        "patch_api_requests": {},
        "latencies_us": {},
        "logger": { "missed_metrics_count": 0, "missed_log_count": 0 },
        "signals": { "sigbus": 0, "sigsegv": 0, "sigpipe": 0 },
        "vmm": { "panic_count": 0 },
    });
    let mut values = values();
    for (group, counters) in &*values {
        document[group] = json!(counters);
    }
    values.retain(|group, _| *group == LATENCIES);
    drop(values);
    let mut line = document.to_string();
    line.push('\n');
    let mut file = target.lock().unwrap_or_else(PoisonError::into_inner);
    file.write_all(line.as_bytes()).map_err(|error| MetricsError::Write(OsError(error)))
}
