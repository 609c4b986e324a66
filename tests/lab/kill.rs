//! Sleep and wake killed on both sides of their commits: whoever comes next settles it, and the guest has the memory that it had.

use std::time::Duration;

use crate::{
    Wrong, ensure,
    guest::Guest,
    scenario, step,
    vsock::{ask, ask_soon, ask_within, start_server},
    world::World,
};

/// What is killed, after which step, and in which state the next command finds the instance. Each begins where the one before
/// it ends.
const KILLS: [(&str, &str, &str); 4] = [
    // Written, and not committed.
    ("sleep", "sleep.sums", "running"),
    ("sleep", "sleep.commit", "sleeping"),
    // Loaded, and not used up.
    ("wake", "wake.load", "sleeping"),
    ("wake", "wake.consume", "running"),
];

/// Has the guest in its memory what it wrote last, and does it answer?
fn goes_on(world: &World, guest: &Guest<'_>) -> Result<(), Wrong> {
    let said = ask_soon(world, guest, "check")?;
    ensure(said.starts_with("wrong 0 of "), || said.clone())
}

#[test]
fn killed_sleeps_and_wakes_lose_nothing() {
    scenario("sleep and wake killed", |world| {
        world.pool("acme/web", 3, "--mem 256 --data-disk 128")?;
        let guest = step("a server listens in a guest", || start_server(world, "acme/web"))?;
        ask_within(world, &guest, "take 32", Duration::from_secs(60))?;
        let write = |seed: u32| ask(world, &guest, &format!("write {seed}"));
        let kill =
            |verb: &str, point: &str| world.killed_at(point, &format!("instance {verb} {}", guest.path));
        write(1)?;
        for (verb, point, state) in KILLS {
            step(&format!("killed at {point}, it is {state}"), || {
                kill(verb, point)?;
                guest.is(state)?;
                match state {
                    "running" => goes_on(world, &guest).and_then(|()| write(2).map(drop)),
                    _ => world.scrubs_clean(),
                }
            })?;
        }
        // What was killed is simply said again.
        for (sleep, wake) in [("sleep.sums", "wake.consume"), ("sleep.commit", "wake.load")] {
            step(&format!("killed at {sleep} and {wake}, both are said again"), || {
                write(3)?;
                for (verb, point, state) in [("sleep", sleep, "sleeping"), ("wake", wake, "running")] {
                    kill(verb, point)?;
                    guest.is_told(verb)?;
                    guest.is(state)?;
                }
                goes_on(world, &guest)
            })?;
        }
        Ok(())
    });
}
