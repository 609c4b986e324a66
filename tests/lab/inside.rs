//! The agent as PID 1 of a real guest: what no namespace shows, and no simulated guest.

use std::time::{Duration, Instant};

use crate::{
    Wrong, ensure,
    guest::Guest,
    scenario, step,
    vsock::connect_to,
    world::{World, wait_for},
};

/// The agent's port.
const PORT: u32 = 52;
/// More connections at once than an agent takes.
const FLOOD: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);

/// What a line of shell prints that must succeed.
fn says(world: &World, guest: &Guest<'_>, line: &str) -> Result<String, Wrong> {
    let (said, errors, code) = world.exec(&guest.path, &["sh", "-c", line])?;
    ensure(code == Some(0), || format!("{line:?}: {code:?} {said}{errors}"))?;
    Ok(said.trim().to_owned())
}

/// How many processes of a guest are this one.
fn count(world: &World, guest: &Guest<'_>, command: &str) -> Result<usize, Wrong> {
    let line = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done";
    Ok(says(world, guest, line)?.lines().filter(|line| line.trim() == command).count())
}

fn wait_for_count(world: &World, guest: &Guest<'_>, command: &str, wanted: usize) -> Result<(), Wrong> {
    wait_for(&format!("{wanted} of {command}"), LIMIT, || {
        count(world, guest, command).is_ok_and(|count| count == wanted).then_some(())
    })
}

#[test]
fn pid_1_keeps_house() {
    scenario("the agent as PID 1", |world| {
        world.agent_pool("acme/web", 3, "--mem 256 --data-disk 64")?;
        let guest = world.instance("acme/web")?;
        guest.is_told("start")?;
        step("it is small, and the root is shared under a layer in memory", || {
            let said =
                says(world, &guest, "grep ^Rss: /proc/1/smaps_rollup; grep ' / ' /proc/mounts; free -m")?;
            println!("    {}", said.replace('\n', "\n    "));
            let resident = said.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
            ensure(resident.is_some_and(|kib| kib <= 3 << 10), || said.clone())?;
            let sizes = says(
                world,
                &guest,
                "stat -f -c %b / /run /run/mvm; cat /proc/sys/net/ipv6/conf/all/disable_ipv6",
            )?;
            ensure(!sizes.contains("\n0\n") && sizes.ends_with('1'), || sizes.clone())
        })?;
        step("a host that vanishes ends its command, and what went away from it", || {
            let command = ["sh", "-c", "trap '' HUP; (setsid sleep 8000 &); sleep 8000 & wait"];
            let running = world.begins(&guest.path, &command)?;
            wait_for_count(world, &guest, "sleep 8000", 2)?;
            drop(running);
            wait_for_count(world, &guest, "sleep 8000", 0)
        })?;
        step("so does a sleep by force", || {
            let _running = world.begins(&guest.path, &["sleep", "9000"])?;
            wait_for_count(world, &guest, "sleep 9000", 1)?;
            guest.is_told("sleep --force")?;
            guest.is_told("wake")?;
            wait_for_count(world, &guest, "sleep 9000", 0)
        })?;
        step("a flood of connections passes", || {
            let begun = Instant::now();
            // Those that are too many are closed at once, and may not even hear that they were taken.
            let (flood, closed): (Vec<_>, Vec<_>) = (0..FLOOD)
                .map(|_| connect_to(world, &guest, PORT, Duration::from_secs(5)))
                .partition(Result::is_ok);
            let last = closed.into_iter().filter_map(Result::err).next_back();
            println!("    {} connections in {:.1} s; {last:?}", flood.len(), begun.elapsed().as_secs_f64());
            ensure(flood.len() > FLOOD / 3, || format!("only {} were taken", flood.len()))?;
            drop(flood);
            wait_for("an answer", LIMIT, || says(world, &guest, "true").ok())?;
            wait_for("its threads end", LIMIT, || {
                let said = says(world, &guest, "ls /proc/1/task | wc -l").ok()?;
                said.parse::<u32>().ok().filter(|count| *count < 12)
            })
            .map(drop)
        })?;
        step("nobody in the guest speaks to it", || {
            // The guest has no loopback for vsock; where it had one, its own programs would not be the host.
            let said = says(world, &guest, "ls /sys/module | grep vsock | tr '\\n' ' '")?;
            ensure(!said.contains("vsock_loopback"), || said.clone())
        })?;
        step("root has a prompt on its console", || {
            let said = guest.says("id -un; tty; pwd")?;
            ensure(said.replace('\n', " ") == "root /dev/ttyS0 /root", || said.clone())
        })?;
        step("a reboot that is typed in it ends it, with its disk whole", || {
            says(world, &guest, "echo kept >/data/kept")?;
            let begun = Instant::now();
            let _ = world.exec(&guest.path, &["reboot"])?;
            wait_for("it has stopped", LIMIT, || guest.is("stopped").ok())?;
            println!("    ended in {:.1} s", begun.elapsed().as_secs_f64());
            guest.is_told("start")?;
            let said = says(world, &guest, "cat /data/kept; dmesg | grep -c 'recovery complete' || true")?;
            ensure(said == "kept\n0", || said.clone())
        })
    });
}
