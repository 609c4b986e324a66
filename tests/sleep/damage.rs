//! Snapshots that are not what was written: each is said with its word, none is loaded, and the instance is never stuck.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    guest::{Guest, edit, part_of},
    support::Sandbox,
};

/// Runs what changes a file, and gives it the time back that it had.
fn unnoticed(file: &Path, change: impl FnOnce(&Path)) {
    let before = fs::metadata(file).and_then(|meta| meta.modified()).expect("a time");
    change(file);
    let open = File::options().write(true).open(file).expect("a file");
    open.set_times(FileTimes::new().set_modified(before)).expect("it can be set");
}

/// Flips one bit in the middle of what a file holds.
fn flip(file: &Path) {
    let open = File::options().read(true).write(true).open(file).expect("a file");
    let place = first_data(&open);
    let mut byte = [0];
    open.read_exact_at(&mut byte, place).expect("a byte");
    open.write_all_at(&[byte[0] ^ 0x10], place).expect("it can be written");
}

/// A place in a file that is no hole, and no header.
fn first_data(file: &File) -> u64 {
    let length = file.metadata().expect("a file").len();
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(length / 2)) {
        Ok(place) => place.max(length / 2),
        Err(_) => length / 2,
    }
}

fn resize(file: &Path, change: i64) {
    let open = File::options().write(true).open(file).expect("a file");
    let length = open.metadata().expect("a file").len();
    open.set_len(length.saturating_add_signed(change)).expect("it can be cut");
}

fn remove(file: &Path) {
    fs::remove_file(file).expect("it can be removed");
}

fn swap(one: &Path, other: &Path) {
    let between = one.with_extension("between");
    fs::rename(one, &between).expect("it can be renamed");
    fs::rename(other, one).expect("it can be renamed");
    fs::rename(&between, other).expect("it can be renamed");
}

fn meta(delta: &Path) -> PathBuf {
    delta.join("meta.json")
}

/// What is done to the snapshot, seen from its folder and that of another instance; exit code and word of a wake; whether
/// `node gc --scrub` finds it.
type Case = (&'static str, fn(&Path, &Path), i32, &'static str, bool);

const CASES: &[Case] = &[
    ("memory cut", |delta, _| resize(&part_of(delta, "mem"), -4096), 1, "snapshot_damaged", true),
    ("memory longer", |delta, _| resize(&part_of(delta, "mem"), 4096), 1, "snapshot_damaged", true),
    ("memory gone", |delta, _| remove(&part_of(delta, "mem")), 1, "snapshot_damaged", true),
    ("memory flipped", |delta, _| flip(&part_of(delta, "mem")), 1, "snapshot_damaged", true),
    (
        "memory of another one",
        |delta, other| swap(&part_of(delta, "mem"), &part_of(other, "mem")),
        1,
        "snapshot_damaged",
        true,
    ),
    (
        "memory and sums of another one",
        |delta, other| {
            swap(&part_of(delta, "mem"), &part_of(other, "mem"));
            swap(&part_of(delta, "sums"), &part_of(other, "sums"));
        },
        1,
        "snapshot_damaged",
        true,
    ),
    ("state cut", |delta, _| resize(&part_of(delta, "vmstate"), -1), 1, "snapshot_damaged", true),
    ("state gone", |delta, _| remove(&part_of(delta, "vmstate")), 1, "snapshot_damaged", true),
    ("state flipped", |delta, _| flip(&part_of(delta, "vmstate")), 1, "snapshot_damaged", true),
    (
        "state flipped, unnoticed",
        |delta, _| unnoticed(&part_of(delta, "vmstate"), flip),
        1,
        "snapshot_damaged",
        true,
    ),
    (
        "state of another one",
        |delta, other| swap(&part_of(delta, "vmstate"), &part_of(other, "vmstate")),
        1,
        "snapshot_damaged",
        true,
    ),
    ("sums gone", |delta, _| remove(&part_of(delta, "sums")), 1, "snapshot_damaged", true),
    ("sums cut", |delta, _| resize(&part_of(delta, "sums"), -8), 1, "snapshot_damaged", true),
    ("sums flipped", |delta, _| flip(&part_of(delta, "sums")), 1, "snapshot_damaged", true),
    ("everything of another one", swap, 1, "damaged", true),
    (
        "memory named elsewhere",
        |delta, _| edit(&meta(delta), |meta| meta["image"]["mem"]["file"] = json!("../../volumes/data.ext4")),
        1,
        "damaged",
        true,
    ),
    ("no meta.json", |delta, _| remove(&meta(delta)), 1, "no_snapshot", true),
    (
        "no snapshot at all",
        |delta, _| fs::remove_dir_all(delta).expect("it can be removed"),
        1,
        "no_snapshot",
        true,
    ),
    ("meta.json cut", |delta, _| resize(&meta(delta), -3), 1, "damaged", true),
    (
        "meta.json empty",
        |delta, _| fs::write(meta(delta), "").expect("it can be written"),
        1,
        "damaged",
        true,
    ),
    (
        "meta.json of a newer mvm",
        |delta, _| edit(&meta(delta), |meta| meta["schema_version"] = json!(99)),
        1,
        "newer_schema",
        true,
    ),
    (
        "another CPU's",
        |delta, _| edit(&meta(delta), |meta| meta["origin"]["cpu_model"] = json!("Abacus 1")),
        5,
        "other_cpu",
        false,
    ),
    (
        "another simulated VMM's",
        |delta, _| edit(&meta(delta), |meta| meta["origin"]["vmm_version"] = json!("0.1.0")),
        5,
        "no_vmm_version",
        false,
    ),
];

/// Two sleepers; the path and folder of the second one.
fn two_sleepers() -> Option<(Guest, String, PathBuf)> {
    let mut guest = Guest::new()?;
    guest.works();
    let other = guest.sandbox.instance("acme/web");
    guest.sandbox.ok(&format!("instance start {other}"));
    let folder = guest.sandbox.delta(&other);
    Some((guest, other, folder))
}

fn scrub(sandbox: &Sandbox) -> (bool, String) {
    let output = sandbox.run("node gc --scrub --json");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// A wake is refused, and the instance sleeps on; then it is stopped, and starts again.
fn is_refused(guest: &mut Guest, name: &str, exit: i32, word: &str, is_found: bool) {
    assert_eq!(guest.refused("wake", exit), word, "{name}");
    assert_eq!(guest.refused("wake --force", exit), word, "{name}");
    assert_eq!(guest.status(), "sleeping", "{name}");
    assert!(
        guest.sandbox.vmms().is_empty() && guest.sandbox.links("tn").is_empty(),
        "{name}: nothing was loaded"
    );
    let (clean, said) = scrub(&guest.sandbox);
    assert_eq!(clean, !is_found, "{name}: {said}");
    assert!(!is_found || said.contains(&guest.path), "{name}: {said}");
    guest.ok("stop");
    assert_eq!(guest.status(), "stopped", "{name}");
    guest.ok("start");
    guest.works();
}

#[test]
fn what_is_damaged_is_said_and_not_loaded() {
    let Some((mut guest, other, folder)) = two_sleepers() else { return };
    for (name, damage, exit, word, is_found) in CASES {
        guest.ok("sleep");
        guest.sandbox.ok(&format!("instance sleep {other}"));
        damage(&guest.delta(), &folder);
        is_refused(&mut guest, name, *exit, word, *is_found);
        // The other one may have been swapped with it.
        guest.sandbox.ok(&format!("instance stop {other}"));
        guest.sandbox.ok(&format!("instance start {other}"));
        guest.leaves_nothing();
    }
    guest.sandbox.ok(&format!("instance destroy {other} --yes"));
    guest.sleeps_well();
}

#[test]
fn snapshots_that_were_swapped_keep_their_files() {
    let Some((mut guest, other, folder)) = two_sleepers() else { return };
    guest.works();
    let names = |folder: &Path| {
        let names = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    guest.ok("sleep");
    guest.sandbox.ok(&format!("instance sleep {other}"));
    let (its, others) = (names(&guest.delta()), names(&folder));
    swap(&guest.delta(), &folder);
    for command in ["node recover", "node gc", "node gc --scrub"] {
        guest.sandbox.run(command);
    }
    assert_eq!(guest.refused("wake", 1), "damaged");
    guest.sandbox.refused(&format!("instance wake {other}"), 1);
    assert_eq!((names(&folder), names(&guest.delta())), (its, others));
    swap(&guest.delta(), &folder);
    guest.sandbox.ok(&format!("instance wake {other}"));
    guest.ok("wake");
    guest.is_as_it_was(1);
}

#[test]
fn rot_that_no_time_shows_is_found_by_a_scrub() {
    let Some(mut guest) = Guest::new() else { return };
    for part in ["mem", "sums"] {
        guest.works();
        guest.ok("sleep");
        unnoticed(&guest.part(part), flip);
        assert!(guest.sandbox.run("node gc").status.success(), "without a scrub nobody looks");
        let (clean, said) = scrub(&guest.sandbox);
        assert!(!clean && said.contains(&guest.path) && said.contains(&format!("{part}.")), "{said}");
        // What was found is not loaded, though its time is what it was.
        assert_eq!(guest.refused("wake", 1), "snapshot_damaged");
        assert_eq!(guest.refused("wake --force", 1), "snapshot_damaged");
        guest.ok("stop");
        guest.ok("start");
    }
    guest.sleeps_well();
}

#[test]
fn what_was_only_touched_is_compared_and_loaded() {
    let touch = |file: &Path| {
        let open = File::options().write(true).open(file).expect("a file");
        open.set_modified(std::time::SystemTime::now()).expect("it can be set");
    };
    let copy = |file: &Path| {
        let between = file.with_extension("between");
        fs::copy(file, &between).expect("it can be copied");
        fs::rename(&between, file).expect("it can be renamed");
    };
    let Some(mut guest) = Guest::new() else { return };
    for part in ["mem", "sums", "vmstate"] {
        for change in [&touch as &dyn Fn(&Path), &copy] {
            guest.works();
            guest.ok("sleep");
            change(&guest.part(part));
            guest.ok("wake");
            guest.is_as_it_was(1);
        }
    }
    guest.sleeps_well();
}

/// The memory file is the guest's own while it runs; what is there in its place then is not built upon.
#[test]
fn memory_that_was_damaged_while_its_guest_ran_is_written_anew() {
    let cases: &[Change] = &[
        ("replaced", |mem| {
            let between = mem.with_extension("between");
            fs::copy(mem, &between).expect("it can be copied");
            flip(&between);
            fs::rename(&between, mem).expect("it can be renamed");
        }),
        ("gone", remove),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for (name, damage) in cases {
        guest.sleeps_well();
        let mem = guest.part("mem");
        damage(&mem);
        guest.works();
        guest.ok("sleep");
        assert_ne!(guest.part("mem"), mem, "{name}");
        guest.ok("wake");
        guest.is_as_it_was(1);
        guest.sleeps_well();
    }
}

/// What is done to a file.
type Change = (&'static str, fn(&Path));

#[test]
fn a_damaged_archive_is_said_and_not_loaded() {
    let cases: &[Change] = &[
        ("cut", |file| resize(file, -1)),
        ("longer", |file| resize(file, 1)),
        ("flipped", flip),
        ("flipped, unnoticed", |file| unnoticed(file, flip)),
        ("gone", remove),
        ("nonsense", |file| fs::write(file, "hello").expect("it can be written")),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for (name, damage) in cases {
        guest.ok("sleep");
        guest.ok("archive");
        let names = fs::read_dir(guest.delta()).expect("a folder").flatten().map(|entry| entry.path());
        let is_archive = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "zst");
        damage(&names.into_iter().find(is_archive).expect("an archive"));
        is_refused(&mut guest, name, 1, "snapshot_damaged", true);
    }
    // What is damaged is not compressed: it would be believed afterwards.
    guest.ok("sleep");
    flip(&guest.part("mem"));
    assert_eq!(guest.refused("archive", 1), "snapshot_damaged");
    is_refused(&mut guest, "damaged before", 1, "snapshot_damaged", true);
    guest.sleeps_well();
}
