//! How often in a row a real guest sleeps and wakes before it ends: with mvm, and with bare Firecracker on copies of the same
//! files. In the lab a guest ends now and then; whose doing it is shows only beside the bare one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mvm::{
    infra::config::Roots,
    vm::instance::{config::Instance, guest::Guest},
    vmm::vsock::Connection,
};
use mvm_proto::{
    Answer, Frames, Hello, Request,
    message::{Entropy, Exec, Wake},
};

use super::{Figure, bare::Restored, figure, guests::finish_exec, root::Mvm};

/// How long a guest of the lab may take for anything.
const LIMIT: Duration = Duration::from_secs(30);
/// What is asked after each wake: work for memory and kernel.
const COMMANDS: [&str; 2] = ["sha256sum -c /run/sum", "cat /proc/sys/kernel/random/uuid"];
/// What the work is on.
const PREPARE: &str = "head -c 1000000 /dev/urandom > /run/kept; sha256sum /run/kept > /run/sum";

/// Lets a guest of mvm, or of bare Firecracker, sleep and wake so often; another goes on where one ends.
pub fn measure(mvm: &Mvm, roots: &Roots, bare: Option<&Path>, cycles: u32) -> Result<Vec<Figure>> {
    let mut ends = Vec::new();
    let mut done = 0;
    while done < cycles {
        let (lived, end) = life(mvm, roots, bare, cycles - done)?;
        done += lived;
        if let Some(end) = end {
            println!("ended after {lived} cycles: {end:#}");
            ends.push(lived.to_string());
            done += 1;
        }
    }
    let value = match ends.as_slice() {
        [] => "no guest ended".to_owned(),
        ends => format!("{} ended, after {} in a row", ends.len(), ends.join(", ")),
    };
    let whose = if bare.is_some() { ", bare Firecracker" } else { "" };
    Ok(vec![figure(format!("{cycles} sleeps and wakes of a guest{whose}"), value, "given", true)])
}

/// One guest, until it ends or has slept and woken so often; how often it did, and why it ended.
fn life(mvm: &Mvm, roots: &Roots, bare: Option<&Path>, most: u32) -> Result<(u32, Option<anyhow::Error>)> {
    let path = mvm.create("acme/web")?;
    super::guests::again(|| mvm.ok(&format!("instance start {path}")))?;
    let instance = Instance::load(roots, &path)?;
    exec(roots, &instance, PREPARE)?;
    mvm.ok(&format!("instance sleep {path}"))?;
    let restored = match bare {
        Some(firecracker) => {
            let restored = Restored::new(mvm, firecracker, &path)?;
            let revisions = mvm.root.path().join("tenants/acme/pools/web/artifacts/revisions");
            let revision = fs::read_dir(revisions)?.next().context("a revision")??.path();
            let _ =
                symlink(fs::canonicalize(revision.join("rootfs.ext4"))?, restored.folder.join("rootfs.ext4"));
            Some(restored)
        }
        None => None,
    };
    let started = Instant::now();
    let mut lived = 0;
    let end = loop {
        if lived == most {
            break None;
        }
        let cycle = match &restored {
            Some(restored) => bare_cycle(restored, instance.instance_id.as_ref(), lived == 0),
            None => mvm_cycle(mvm, roots, &path),
        };
        if let Err(error) = cycle {
            let folder = restored.as_ref().map(|restored| restored.folder.as_path());
            let log = folder.map(|folder| fs::read_to_string(folder.join("vmm.log")).unwrap_or_default());
            let last = log.as_deref().and_then(|log| log.lines().last()).unwrap_or_default().to_owned();
            break Some(error.context(last));
        }
        lived += 1;
        if lived.is_multiple_of(25) {
            println!("{lived} cycles, {:.2} s each", started.elapsed().as_secs_f64() / f64::from(lived));
        }
    };
    mvm.ok(&format!("instance destroy {path} --yes --wipe-volumes"))?;
    Ok((lived, end))
}

fn mvm_cycle(mvm: &Mvm, roots: &Roots, path: &mvm::vm::naming::InstancePath) -> Result<()> {
    mvm.ok(&format!("instance wake {path}"))?;
    let instance = Instance::load(roots, path)?;
    for command in COMMANDS {
        exec(roots, &instance, command)?;
    }
    mvm.ok(&format!("instance sleep {path}")).map(drop)
}

/// Load, ask, pause, Diff, kill. mvm's last sleep prepared the guest, so the first wake is told to it.
fn bare_cycle(restored: &Restored, instance_id: &str, is_first: bool) -> Result<()> {
    let vmm = restored.load()?;
    if is_first {
        let clock = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
        let wake = Wake {
            instance_id: instance_id.to_owned(),
            entropy: Entropy([7; 32]),
            clock_unix_ns: u64::try_from(clock)?,
        };
        match ask(&restored.folder, &Request::Wake(wake))?.message()? {
            Answer::Receipt(_) => {}
            other => bail!("{other:?}"),
        }
    }
    for command in COMMANDS {
        finish_exec(&mut ask(&restored.folder, &shell(command))?)?;
    }
    restored.save(vmm)
}

fn ask(folder: &Path, request: &Request) -> Result<Frames<Connection>> {
    let deadline = Instant::now() + LIMIT;
    let mut connection = Connection::await_open(folder, "v.sock", mvm_proto::PORT, deadline, || true)?;
    connection.set_deadline(Some(deadline));
    let mut frames = Frames::on(connection);
    frames.send(&Hello::of("bench"))?;
    frames.send(request)?;
    let _: Hello = frames.message()?;
    Ok(frames)
}

fn shell(command: &str) -> Request {
    Request::Exec(Exec { argv: ["sh", "-c", command].map(str::to_owned).to_vec(), ..Exec::default() })
}

fn exec(roots: &Roots, instance: &Instance, command: &str) -> Result<()> {
    let mut guest = Guest::of(roots, instance)?;
    guest.ask(&shell(command), LIMIT)?;
    let mut frames = guest.into_frames();
    frames.stream_mut().set_deadline(Some(Instant::now() + LIMIT));
    finish_exec(&mut frames)
}
