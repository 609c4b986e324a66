//! Sleep and wake of a real guest: its memory, its data disk and its address are what they were.

use std::time::{Duration, Instant};

use crate::{Wrong, ensure, scenario, step, world::World};

/// How often a guest sleeps and wakes.
const CYCLES: u32 = 10;

/// Sleeps and wakes a guest, and looks each time at what it had in memory and on disk. What it has changes between, so that
/// an older snapshot or disk would be seen.
fn cycles(world: &World, cycles: u32) -> Result<(), Wrong> {
    world.pool("acme/web", 3, "--mem 256 --data-disk 64")?;
    let guest = step("a guest boots", || world.guest("acme/web"))?;
    let neighbour = step("and a neighbour", || world.guest("acme/web"))?;
    guest.says("dd if=/dev/urandom of=/dev/shm/kept bs=64k count=128 status=none")?;
    guest.says("dd if=/dev/urandom of=/data/kept bs=64k count=128 status=none; sync")?;
    let boot_id = guest.says("cat /proc/sys/kernel/random/boot_id")?;
    for cycle in 1..=cycles {
        // Some of it anew in each cycle; the rest stays from the first one.
        for file in ["/dev/shm/kept", "/data/kept"] {
            guest.says(&format!(
                "dd if=/dev/urandom of={file} bs=64k count=8 seek={} conv=notrunc status=none",
                cycle * 11
            ))?;
        }
        let before = (guest.sum("/dev/shm/kept")?, guest.sum("/data/kept")?);
        let (slept, woke) = step(&format!("cycle {cycle}"), || {
            let begun = Instant::now();
            guest.is_told("sleep")?;
            let slept = begun.elapsed();
            guest.is("sleeping")?;
            let begun = Instant::now();
            guest.is_told("wake")?;
            Ok((slept, begun.elapsed()))
        })?;
        // What is in the page cache is memory; what is on the disk is read anew.
        guest.says("echo 3 >/proc/sys/vm/drop_caches")?;
        let after = (guest.sum("/dev/shm/kept")?, guest.sum("/data/kept")?);
        ensure(before == after, || {
            format!("cycle {cycle}: memory and disk were {before:?} and are {after:?}")
        })?;
        println!(
            "    slept in {:.1} s, woke in {:.1} s; memory {}… and disk {}… as before",
            slept.as_secs_f64(),
            woke.as_secs_f64(),
            &after.0[..12],
            &after.1[..12]
        );
    }
    step("it is the same boot with the same address", || {
        let now = guest.says("cat /proc/sys/kernel/random/boot_id")?;
        ensure(now == boot_id, || format!("the boot id was {boot_id} and is {now}"))?;
        ensure(guest.pings(&neighbour.ip)?, || "it does not reach its neighbour".into())?;
        ensure(neighbour.pings(&guest.ip)?, || "its neighbour does not reach it".into())
    })?;
    step("it stops as any other", || guest.is_told("stop").map(drop))
}

#[test]
fn ten_sleeps_keep_memory_disk_and_address() {
    scenario("ten sleeps on ext4 (redo)", |world| cycles(world, CYCLES));
}

#[test]
fn ten_sleeps_keep_memory_disk_and_address_on_reflinks() {
    scenario("ten sleeps on btrfs (reflinks)", |world| {
        world.with_reflinks();
        cycles(world, CYCLES)
    });
}

#[test]
fn a_warm_guest_stands_still_and_goes_on() {
    scenario("warm and back", |world| {
        world.pool("acme/web", 3, "--mem 256 --data-disk 64")?;
        let guest = step("a guest boots", || world.guest("acme/web"))?;
        guest.says("(while sleep 0.2; do echo x >>/dev/shm/ticks; done >/dev/null 2>&1 &)")?;
        for _ in 0..3 {
            step("warm and resume", || {
                guest.is_told("warm")?;
                guest.is("warm")?;
                guest.is_told("resume").map(drop)
            })?;
            let ticks = || guest.says("wc -l </dev/shm/ticks");
            let before = ticks()?;
            crate::world::wait_for("the guest goes on", Duration::from_secs(30), || {
                ticks().ok().filter(|now| *now != before)
            })?;
        }
        Ok(())
    });
}
