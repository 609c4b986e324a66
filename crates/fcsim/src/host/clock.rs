//! The wall clock in local time, as Firecracker writes it in front of each log line.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A moment in local time; prints as `2026-01-31T09:05:00.000000001`.
pub(crate) struct LocalTime {
    fields: libc::tm,
    nanos: u32,
}

impl LocalTime {
    /// Now.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(0);
        // SAFETY: `tm` is plain data for which all zeroes is a valid value (`tm_zone` is then null).
        let mut fields: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live values of the right types; localtime_r keeps neither.
        unsafe { libc::localtime_r(&raw const seconds, &raw mut fields) };
        Self { fields, nanos: since.subsec_nanos() }
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tm = &self.fields;
        write!(
            f,
            "{}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}",
            tm.tm_year + 1900,
            tm.tm_mon + 1,
            tm.tm_mday,
            tm.tm_hour,
            tm.tm_min,
            tm.tm_sec,
            self.nanos
        )
    }
}
