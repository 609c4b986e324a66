//! Sleepers: what is shown of them, and what is said, with its remedy, where they cannot wake.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Value, json};

use crate::{Terminal, snapshot};

const PATH: &str = "acme/web/i-0f3a91c2";

/// An instance that runs, and where its snapshot will be.
fn running() -> Option<(Terminal, PathBuf)> {
    let terminal = Terminal::with_pool()?;
    terminal.sees("instance create acme/web");
    terminal.sees(&format!("instance start {PATH}"));
    let delta = terminal.sandbox.delta(PATH);
    Some((terminal, delta))
}

fn asleep() -> Option<(Terminal, PathBuf)> {
    let (terminal, delta) = running()?;
    terminal.sees(&format!("instance sleep {PATH}"));
    Some((terminal, delta))
}

fn cut(file: &Path) {
    let open = File::options().write(true).open(file).expect("a file");
    let length = open.metadata().expect("a file").len();
    open.set_len(length - 1).expect("it can be cut");
}

#[test]
fn a_sleeper_is_shown_with_what_it_takes() {
    let Some((terminal, _)) = running() else { return };
    let disk = || terminal.sandbox.ok("instance stats")[0]["disk_bytes"].as_u64().expect("a number");
    let before = disk();
    terminal.sees(&format!("instance sleep {PATH}"));
    let list = terminal.sandbox.ok("instance list");
    assert_eq!(list[0]["snapshot"], terminal.sandbox.ok(&format!("instance info {PATH}"))["snapshot"]);
    let taken = list[0]["snapshot"]["bytes"].as_u64().expect("a number");
    assert!(taken > 0 && disk() >= before + taken, "{before} and {taken} are {}", disk());
    let scaled = terminal.sandbox.ok("pool scale acme/web --sleeping 2");
    assert_eq!(scaled[0]["snapshot"]["vmm"], "sim", "{scaled:#}");
    terminal.sees("pool scale acme/web --warm 1");
    snapshot!(terminal.sees("tenant info acme"), @"
    acme
      network   net id 3, 10.240.3.0/24, gateway 10.240.3.1, bridge br-tenant-3, offsets 3 to 254
      running   0 of 100
      warm      1 of 100
      sleeping  2
      vcpus     1 of 64
      memory    128 MiB of 64.0 GiB
      pools     1 of 16
      made      2026-01-02 03:04:05Z
      pinned    no
    ");
    let tenant = terminal.sandbox.ok("tenant info acme");
    assert_eq!([&tenant["running"], &tenant["warm"], &tenant["sleeping"]], [&json!(0), &json!(1), &json!(2)]);
}

#[test]
fn what_is_not_asleep_has_nothing_to_compress() {
    let Some((terminal, _)) = running() else { return };
    snapshot!(terminal.sees(&format!("instance archive {PATH}")), @"
    acme/web/i-0f3a91c2 cannot archive: it is running; archive works from sleeping
      try: mvm instance sleep acme/web/i-0f3a91c2
    [exit 4]
    ");
    terminal.sees(&format!("instance stop {PATH}"));
    snapshot!(terminal.sees(&format!("instance archive {PATH}")), @"
    acme/web/i-0f3a91c2 cannot archive: it is stopped; archive works from sleeping
      try: mvm instance start acme/web/i-0f3a91c2, then mvm instance sleep acme/web/i-0f3a91c2: without memory there is nothing to compress
    [exit 4]
    ");
}

#[test]
fn what_a_wake_is_refused_for_is_said_before_and_after_it() {
    let Some((terminal, delta)) = asleep() else { return };
    let touch = |file: &Path| {
        let open = File::options().write(true).open(file).expect("a file");
        open.set_modified(SystemTime::now()).expect("it can be set");
    };
    touch(&delta.join("../../volumes/data.ext4"));
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is sleeping: it was put to sleep
    a wake would be refused: acme/web/i-0f3a91c2: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/volumes/data.ext4 was written to: the guest would write what it remembers over it
      try: mvm instance wake acme/web/i-0f3a91c2 --force, if the disk holds what it held
    you can: wake, archive, stop, destroy
    ");
    snapshot!(terminal.sees(&format!("instance wake {PATH}")), @"
    acme/web/i-0f3a91c2: wake failed at its step check: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/volumes/data.ext4 was written to: the guest would write what it remembers over it
      try: mvm instance wake acme/web/i-0f3a91c2 --force, if the disk holds what it held
    [exit 4]
    ");
    terminal.sees(&format!("instance wake {PATH} --force"));
    terminal.sees(&format!("instance sleep {PATH}"));
    let meta = delta.join("meta.json");
    let whole = fs::read(&meta).expect("a file");
    let mut other: Value = serde_json::from_slice(&whole).expect("JSON");
    other["origin"]["cpu_model"] = json!("Abacus 1");
    fs::write(&meta, other.to_string()).expect("it can be written");
    snapshot!(terminal.sees(&format!("instance wake {PATH}")), @r#"
    acme/web/i-0f3a91c2: wake failed at its step check: it was made on the CPU "Abacus 1", and this is "HERE"
      try: wake it on the machine where it fell asleep, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    [exit 5]
    "#);
    fs::write(&meta, whole).expect("it can be written");
    let mem = fs::read_dir(&delta).expect("a folder").flatten().map(|entry| entry.path());
    cut(&mem.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == "mem")).expect("a memory"));
    snapshot!(terminal.sees(&format!("instance wake {PATH}")), @"
    acme/web/i-0f3a91c2: wake failed at its step check: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/mem.N is damaged: it has 134217727 bytes in place of 134217728
      try: bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    [exit 1]
    ");
    snapshot!(terminal.sees_json(&format!("instance why {PATH}")), @r#"
    {
      "can": [
        "wake",
        "archive",
        "stop",
        "destroy"
      ],
      "last_exit": null,
      "log": [],
      "path": "acme/web/i-0f3a91c2",
      "pending": null,
      "resume_refused": null,
      "start_refused": null,
      "status": "sleeping",
      "wake_refused": {
        "code": "snapshot_damaged",
        "fix": "bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it",
        "what": "acme/web/i-0f3a91c2: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/mem.N is damaged: it has 134217727 bytes in place of 134217728",
        "why": ""
      },
      "why": "it was put to sleep"
    }
    "#);
    snapshot!(terminal.sees("node gc --scrub"), @"
    damaged acme/web/i-0f3a91c2: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/mem.N is damaged: it has 134217727 bytes in place of 134217728
      try: bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    nothing to drop
    1 snapshot read, 1 damaged
    [exit 1]
    ");
    snapshot!(terminal.sees_json("node gc --scrub"), @r#"
    {
      "dropped": [],
      "scrubbed": 1,
      "damaged": [
        {
          "path": "acme/web/i-0f3a91c2",
          "what": "ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/mem.N is damaged: it has 134217727 bytes in place of 134217728",
          "fix": "bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it"
        }
      ]
    }
    [exit 1]
    "#);
    fs::remove_dir_all(&delta).expect("it can be removed");
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is sleeping: it was put to sleep
    a wake would be refused: acme/web/i-0f3a91c2 is sleeping, and its snapshot is gone
      try: mvm instance stop acme/web/i-0f3a91c2: its memory is lost, its disks are there
    you can: wake, archive, stop, destroy
    ");
    terminal.sees(&format!("instance stop {PATH}"));
    terminal.sees(&format!("instance start {PATH}"));
    assert!(terminal.sandbox.leaks().is_empty(), "{:?}", terminal.sandbox.leaks());
}

#[test]
fn a_damaged_meta_json_is_named_and_in_the_way_of_nothing_else() {
    let Some((terminal, delta)) = asleep() else { return };
    let root = terminal.sandbox.root();
    for version in ["9.9.8", "9.9.9"] {
        let folder = root.join(format!("vmm/{version}-{}", std::env::consts::ARCH));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("firecracker"), "").expect("a program");
    }
    cut(&delta.join("meta.json"));
    cut(&delta.join("meta.json"));
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is sleeping: it was put to sleep
    a wake would be refused: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/meta.json is damaged: EOF while parsing an object at line 50 column 0
      try: bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    you can: wake, archive, stop, destroy
    ");
    snapshot!(terminal.sees(&format!("instance wake {PATH}")), @"
    ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/meta.json is damaged: EOF while parsing an object at line 50 column 0
      try: bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    [exit 1]
    ");
    snapshot!(terminal.sees("vmm gc"), @"
    every version stays: it is not known which are needed
    acme/web/i-0f3a91c2: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/meta.json is damaged: EOF while parsing an object at line 50 column 0
      try: bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it
    [exit 1]
    ");
    snapshot!(terminal.sees_json("vmm gc"), @r#"
    []
    {"error":{"code":"damaged","what":"acme/web/i-0f3a91c2: ROOT/tenants/acme/pools/web/instances/i-0f3a91c2/snapshots/delta/meta.json is damaged: EOF while parsing an object at line 50 column 0","why":"","fix":"bring the file back, or mvm instance stop acme/web/i-0f3a91c2: its memory is given up, its disks stay; then start it"}}
    [exit 1]
    "#);
    let list = terminal.sandbox.ok("instance list");
    assert_eq!((&list[0]["status"], &list[0]["snapshot"]), (&json!("sleeping"), &Value::Null));
    let scaled = terminal.sandbox.ok("pool scale acme/web --sleeping 1 --warm 1");
    assert_eq!(scaled.as_array().map(Vec::len), Some(1), "the sleeper counts: {scaled:#}");
    terminal.sees(&format!("instance stop {PATH}"));
    snapshot!(terminal.sees("vmm gc"), @"removed 9.9.8");
}
