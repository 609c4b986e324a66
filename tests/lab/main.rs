//! Real guests on real Firecracker (tier T4): run by `cargo xtask lab test` inside the lab, skipped visibly elsewhere.
//!
//! Each scenario drives the commands that a person types, and talks to the guest through its console. About one pause,
//! resume or load in twenty hangs in the lab's emulated nesting, with mvm or without: so a scenario that fails is repeated
//! once, visibly, in a world of its own.

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod attacks;
mod guest;
mod inside;
mod isolation;
mod jail;
mod kill;
mod memory;
mod oci;
mod secrets;
mod sleep;
mod story;
mod systemd;
mod vsock;
mod world;

use std::time::Instant;

use support::skip;
use world::World;

/// What went wrong in a scenario.
type Wrong = String;

/// Plays a scenario in the lab, with a guest image; a second time where the first one fails.
fn scenario(name: &str, play: impl Fn(&mut World) -> Result<(), Wrong>) {
    if std::env::var_os("MVM_LAB").is_none() {
        skip("not in the lab: cargo xtask lab test");
        return;
    }
    let begun = Instant::now();
    let attempt = || {
        let mut world = World::new();
        let result = play(&mut world).and_then(|()| world.leaves_nothing());
        if result.is_err() {
            world.show();
        }
        result
    };
    println!("\n== {name}");
    let result = attempt().or_else(|wrong| {
        println!("REPEAT ({name}): {wrong}");
        attempt()
    });
    println!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
    if let Err(wrong) = result {
        panic!("{name}, twice: {wrong}");
    }
}

/// One step of a scenario, with its time.
fn step<T>(what: &str, run: impl FnOnce() -> Result<T, Wrong>) -> Result<T, Wrong> {
    let begun = Instant::now();
    let result = run();
    let mark = if result.is_ok() { "✓" } else { "✗" };
    println!("  {mark} {what}  {:.1} s", begun.elapsed().as_secs_f64());
    result.map_err(|wrong| format!("{what}: {wrong}"))
}

/// Fails with what is wrong, unless it holds.
fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(wrong()) }
}
