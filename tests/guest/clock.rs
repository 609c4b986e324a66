//! A guest's clock stands still while it sleeps, and is right when it wakes.

use crate::world::{says, start, world};

fn clock(text: &str) -> f64 {
    text.trim().parse().expect("seconds since 1970")
}

#[test]
fn a_guest_that_slept_for_a_day_knows_it() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let before = clock(&says(&sandbox, &path, "date"));
    let uptime = |path: &str| clock(&says(&sandbox, path, "cat /proc/uptime"));
    let up = uptime(&path);
    sandbox.ok(&format!("instance sleep {path}"));
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let mut wake = sandbox.command(&format!("instance wake {path}"));
    let woken = wake.env("MVM_FIXED_CLOCK", tomorrow.to_string()).output().expect("mvm runs");
    assert!(woken.status.success(), "{}", String::from_utf8_lossy(&woken.stderr));
    let after = clock(&says(&sandbox, &path, "date"));
    let slept = after - before;
    assert!((86_400.0..86_500.0).contains(&slept), "{slept} s later");
    // What counts how long something took goes on from where it was, and never back.
    let since = uptime(&path) - up;
    assert!((0.0..60.0).contains(&since), "{since} s of uptime");
}
