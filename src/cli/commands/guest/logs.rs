//! `mvm instance logs` of a guest with an agent: what its workload printed.

use jiff::Timestamp;
use mvm_proto::{Answer, Request, message::Line};
use serde_json::json;

use crate::{
    cli::{
        error::CliError,
        output::{Out, escape, time},
    },
    vm::instance::{
        config::Instance,
        guest::{Guest, GuestError},
        lifecycle::Operator,
    },
};

/// More lines than a guest's ring holds, and more bytes.
const MOST_LINES: usize = 10_000;
const MOST_BYTES: usize = 1 << 20;

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
    let ended = if follow {
        guest.set_patient();
        take(&mut guest, |line| {
            print(out, &line, with_times);
            Ok(!out.is_unheard())
        })
    } else {
        // What there is comes within the time of one answer, however slowly it is read here.
        let (mut lines, mut size) = (Vec::new(), 0);
        let ended = take(&mut guest, |line| {
            size += line.text.len();
            if lines.len() == MOST_LINES || size > MOST_BYTES {
                let why = "there is no end to it".to_owned();
                return Err(GuestError::Nonsense { request: "Logs", why });
            }
            lines.push(line);
            Ok(true)
        });
        lines.iter().for_each(|line| print(out, line, with_times));
        ended
    };
    match ended {
        // It slept or ended: there is no more.
        Err(GuestError::Closed { .. }) if follow => Ok(()),
        ended => ended.map_err(failed),
    }
}

/// Takes lines up to the end, or as long as more are wanted.
fn take(guest: &mut Guest, mut line: impl FnMut(Line) -> Result<bool, GuestError>) -> Result<(), GuestError> {
    loop {
        match guest.answer()? {
            Answer::Line(said) => {
                if !line(said)? {
                    return Ok(());
                }
            }
            Answer::End {} => return Ok(()),
            _ => return Err(guest.unexpected()),
        }
    }
}

fn print(out: &Out, line: &Line, with_times: bool) {
    let at = i64::try_from(line.at_unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    if out.json {
        let stream = if line.errors { "stderr" } else { "stdout" };
        return out.json_line(&json!({ "at": at, "stream": stream, "line": line.text }));
    }
    // A line of an agent's is one line: what pretends to be more is shown as what it is.
    let text = escape(line.text.as_bytes()).replace('\n', "\\n");
    let when = match at {
        Some(at) if with_times => format!("{} ", time(at)),
        _ => String::new(),
    };
    out.raw(format!("{when}{text}\n").as_bytes());
}
