//! `mvm instance logs` of a guest with an agent: what its workload printed.

use jiff::Timestamp;
use mvm_proto::{
    Answer, Request,
    message::{Line, Refused},
};
use serde_json::json;

use crate::{
    cli::{
        error::CliError,
        output::{Out, escape, time},
    },
    vm::instance::{
        config::Instance,
        guest::{Guest, GuestError, explain, printable},
        lifecycle::Operator,
    },
};

/// More lines than a guest's ring holds.
const MOST: u32 = 10_000;

/// Prints the workload's lines, and goes on as more come until the guest ends, or nobody reads them any more.
pub fn run(
    out: &Out,
    operator: &Operator,
    instance: &Instance,
    since: Option<Timestamp>,
    (follow, with_times): (bool, bool),
) -> Result<(), CliError> {
    let failed = |error: GuestError| CliError::from(error).about(instance.path());
    let since_unix_ms = since.and_then(|at| u64::try_from(at.as_millisecond()).ok()).unwrap_or(0);
    let mut guest = Guest::of(&operator.roots, instance).map_err(failed)?;
    guest.begin(&Request::Logs { since_unix_ms, follow }).map_err(failed)?;
    let mut frames = guest.into_frames();
    if !follow {
        // What there is comes at once, and there is an end to it.
        frames.stream_mut().set_silence(operator.roots.guest_timeout);
    }
    let mut lines = 0;
    loop {
        if out.is_unheard() {
            return Ok(());
        }
        match frames.message() {
            Ok(Answer::Line(line)) if follow || lines < MOST => {
                lines += 1;
                print(out, &line, with_times);
            }
            Ok(Answer::Line(_)) => {
                let why = format!("more than {MOST} lines");
                return Err(failed(GuestError::Nonsense { request: "Logs", why }));
            }
            Ok(Answer::End {}) => return Ok(()),
            Ok(Answer::Refused(Refused { code, why })) => {
                return Err(failed(GuestError::Refused { request: "Logs", code, why: printable(&why) }));
            }
            Ok(_) => {}
            // It slept or ended: there is no more.
            Err(mvm_proto::ProtoError::Closed) if follow => return Ok(()),
            Err(error) => return Err(failed(explain("Logs", operator.roots.guest_timeout, error))),
        }
    }
}

fn print(out: &Out, line: &Line, with_times: bool) {
    let at = i64::try_from(line.at_unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let text = escape(line.text.as_bytes());
    if out.json {
        let stream = if line.errors { "stderr" } else { "stdout" };
        return out.json_line(&json!({ "at": at, "stream": stream, "line": text }));
    }
    let when = match at {
        Some(at) if with_times => format!("{} ", time(at)),
        _ => String::new(),
    };
    out.raw(format!("{when}{text}\n").as_bytes());
}
