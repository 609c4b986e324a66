//! `mvm instance cp`: files to a guest and from it.

use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mvm_proto::{
    Answer, Request,
    copy::{self, CopyError, Limits, MAX_ENTRIES, SendError},
    message::{Copied, Refused},
};
use serde::Serialize;

use super::reachable;
use crate::{
    cli::{
        arguments::guest::{CopyArguments, Place},
        error::{CliError, Kind},
        output::{Out, bytes, count},
    },
    infra::terminal::Signals,
    vm::{
        instance::{
            guest::{Guest, GuestError, explain, printable},
            lifecycle::Operator,
        },
        naming::{InstancePath, InstanceRef},
        room::{self, NodeConfig},
    },
};

/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Done<'a> {
    from: String,
    to: String,
    instance: &'a InstancePath,
    entries: u64,
    bytes: u64,
    skipped: u64,
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, arguments: CopyArguments) -> Result<(), CliError> {
    match (arguments.from, arguments.to) {
        (Place::Host(from), Place::Guest(instance, to)) => put(out, operator, &from, &instance, &to),
        (Place::Guest(instance, from), Place::Host(to)) => get(out, operator, &instance, &from, &to),
        (Place::Host(_), Place::Host(_)) => Err(usage("both are on the host: cp does that")),
        (Place::Guest(..), Place::Guest(..)) => Err(usage("both are in a guest: copy to the host first")),
    }
}

fn usage(what: &str) -> CliError {
    CliError::new(Kind::Usage, "usage", what.to_owned())
}

fn put(
    out: &Out,
    operator: &mut Operator,
    from: &Path,
    instance: &InstanceRef,
    to: &str,
) -> Result<(), CliError> {
    let instance = reachable(operator, instance)?;
    let path = instance.path();
    match std::fs::symlink_metadata(from) {
        Ok(meta) if meta.is_symlink() => {
            // It may have come from a guest, and lead to anything that root may read.
            let what = format!("{} is a link, and no link is followed", from.display());
            let to = std::fs::read_link(from).unwrap_or_default();
            let fix = format!("name what it leads to: {}", printable(&to.display().to_string()));
            return Err(CliError::new(Kind::Refused, "link", what).fix(fix));
        }
        Ok(_) => {}
        Err(error) => {
            let what = format!("cannot read {}: {error}", from.display());
            return Err(CliError::new(Kind::NotFound, "not_found", what));
        }
    }
    let Some(name) = name_of(from) else {
        return Err(usage("the name of what is copied has to be UTF-8, and not .."));
    };
    let failed = |error: GuestError| CliError::from(error).about(&path);
    operator.audit_access(&instance, "cp", &format!("to {}", printable(to)))?;
    let progress = out.progress(&format!("copying to {path}"));
    let mut guest = Guest::of(&operator.roots, &instance).map_err(failed)?;
    guest.begin(&Request::Put { path: to.to_owned(), name }).map_err(failed)?;
    let mut frames = guest.into_frames();
    frames.stream_mut().set_silence(SILENCE);
    let sent = copy::send(&mut frames, from);
    if matches!(sent, Err(SendError::Unreadable { .. })) {
        // It has heard so, and has only to take away what it has of it.
        frames.stream_mut().set_deadline(Some(Instant::now() + operator.roots.guest_timeout));
    }
    // A guest that refuses says why, also where it did not hear all of it.
    let answer: Result<Answer, _> = frames.message();
    drop(progress);
    let copied = match (answer, sent) {
        // What the guest says of that it has from here.
        (_, Err(SendError::Unreadable { path, source })) => {
            let what = format!("cannot read {}: {source}", path.display());
            return Err(CliError::new(Kind::Failed, "unreadable", what));
        }
        (Ok(Answer::Copied(copied)), Ok(_)) => copied,
        (Ok(Answer::Refused(Refused { code, why })), _) => {
            return Err(failed(GuestError::Refused { request: "Put", code, why: printable(&why) }));
        }
        (Ok(_), Ok(_)) => {
            let why = "it answers something else".to_owned();
            return Err(failed(GuestError::Nonsense { request: "Put", why }));
        }
        (Err(error), _) | (_, Err(SendError::Proto(error))) => {
            return Err(failed(explain("Put", SILENCE, error)));
        }
    };
    done(out, &path, (&from.display().to_string(), to), copied);
    Ok(())
}

fn get(
    out: &Out,
    operator: &mut Operator,
    instance: &InstanceRef,
    from: &str,
    to: &Path,
) -> Result<(), CliError> {
    let instance = reachable(operator, instance)?;
    let path = instance.path();
    let failed = |error: GuestError| CliError::from(error).about(&path);
    let target = match to.is_dir() {
        true => match name_of(Path::new(from)) {
            Some(name) => to.join(name),
            None => return Err(usage("name the folder that it becomes")),
        },
        false => to.to_path_buf(),
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let (free_mib, floor_mib) = (room::free_mib(&parent)?, NodeConfig::load(&operator.roots)?.disk_floor_mib);
    let limits = Limits { entries: MAX_ENTRIES, bytes: free_mib.saturating_sub(floor_mib) << 20 };
    operator.audit_access(&instance, "cp", &format!("from {}", printable(from)))?;
    let io = |error: io::Error| CliError::new(Kind::Failed, "io", error.to_string());
    let signals = Signals::catch().map_err(io)?;
    let progress = out.progress(&format!("copying from {path}"));
    let mut guest = Guest::of(&operator.roots, &instance).map_err(failed)?;
    guest.begin(&Request::Get { path: from.to_owned() }).map_err(failed)?;
    let mut frames = guest.into_frames();
    frames.stream_mut().set_silence(SILENCE);
    let connection = frames.stream().try_clone().map_err(io)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    // It lives as long as the process: whoever stops the copy ends the connection, and what came is taken away.
    std::thread::spawn(move || {
        while let Ok(number) = signals.wait() {
            if number != libc::SIGWINCH {
                is_stopped.store(true, Ordering::Release);
                connection.close();
            }
        }
    });
    let received = copy::receive(&mut frames, &target, limits, None);
    drop(progress);
    if received.is_err() && stopped.load(Ordering::Acquire) {
        let what = "the copy was stopped, and nothing of it is left".to_owned();
        return Err(CliError::new(Kind::Failed, "stopped", what).about(&path));
    }
    let copied = received.map_err(|error| match error {
        CopyError::Proto(error) => failed(explain("Get", SILENCE, error)),
        CopyError::Sender(why) => {
            CliError::new(Kind::Failed, "copy", format!("the guest cannot send {from}: {}", printable(&why)))
                .about(&path)
        }
        CopyError::Refused(Refused { code, why }) => {
            failed(GuestError::Refused { request: "Get", code, why: printable(&why) })
        }
        CopyError::Exists { .. } => {
            CliError::new(Kind::Refused, "exists", error.to_string()).fix("name another place")
        }
        CopyError::TooMuch { what, .. } => {
            let place = parent.display();
            let fix = match what {
                "bytes" => format!(
                    "free space where {place} lies: {free_mib} MiB were, and the node keeps {floor_mib} MiB free"
                ),
                _ => "copy a part of it, or an archive of it".to_owned(),
            };
            CliError::new(Kind::Refused, "too_much", format!("it is {error}")).about(&path).fix(fix)
        }
        CopyError::Path { .. } => {
            CliError::new(Kind::Failed, "guest_nonsense", printable(&error.to_string())).about(&path)
        }
        CopyError::Io { source, .. } => {
            CliError::new(Kind::Failed, "io", format!("cannot write {}: {source}", target.display()))
        }
    })?;
    done(out, &path, (from, &target.display().to_string()), copied);
    Ok(())
}

fn done(out: &Out, path: &InstancePath, (from, to): (&str, &str), copied: Copied) {
    let Copied { entries, bytes: size, skipped } = copied;
    let value =
        Done { from: from.to_owned(), to: to.to_owned(), instance: path, entries, bytes: size, skipped };
    out.done(&value, || {
        let what = match entries {
            1 => bytes(size),
            entries => format!("{}, {}", count(entries, "file"), bytes(size)),
        };
        let left_out = match skipped {
            0 => String::new(),
            skipped => format!("; {} left out: devices, sockets, pipes, or what may not be read", skipped),
        };
        format!("{to}: {what}{left_out}")
    });
}

/// What a path ends in.
fn name_of(path: &Path) -> Option<String> {
    path.file_name().and_then(|name| String::from_utf8(name.as_bytes().to_vec()).ok())
}
