//! `mvm node …`, `vmm …`, `net …`, `status`, `doctor`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use mvm::{
    infra::config::{Environment, Roots},
    vm::{
        naming::PoolPath,
        pool::base::{self, Bases, Ingredients},
    },
};

use crate::{Terminal, snapshot};

#[test]
fn the_node_says_what_it_has_and_what_is_in_use() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees("instance start acme/web/i-0f3a91c2");
    snapshot!(terminal.sees("status"), @"
    1 tenant, 1 pool, instances: 1 running
    memory 133 MiB of SIZE, 1 vCPU on N CPUs, disk SIZE free
    1 of them simulated: they run no guest
    ");
    snapshot!(terminal.sees_json("status"), @r#"
    {
      "instances": {
        "running": 1
      },
      "node": {
        "cpus": N,
        "disk_floor_mib": 256,
        "disk_free_mib": N,
        "instances": 1,
        "max_vms": 4000,
        "mem_limit_mib": N,
        "mem_used_mib": 133,
        "node_id": "node-ID",
        "pools": 1,
        "tenants": 1,
        "vcpus_used": 1,
        "vms": 1
      },
      "simulated": 1,
      "unreadable": 0,
      "unsettled": 0
    }
    "#);
    snapshot!(terminal.sees("node info"), @"
    node-ID
      memory      what the machine has less 512 MiB
      VMs         4000
      disk floor  256 MiB
      production  off
      key         KEY, PUBLIC, made 2026-01-02 03:04:05Z
    ");
    snapshot!(terminal.sees("node stats"), @"
    node-ID
      tenants    1
      pools      1
      instances  1
      VMs        1 of 4000
      memory     133 MiB of SIZE
      vcpus      1 on N CPUs
      disk       SIZE free, floor 256 MiB
    ");
    snapshot!(terminal.sees("node set max-vms 1"), @"
    node-ID
      memory      what the machine has less 512 MiB
      VMs         1
      disk floor  256 MiB
      production  off
    ");
    terminal.sees("node set mem-mib 4096");
    terminal.sees("node set label rack=7");
    snapshot!(terminal.sees("node set mem-mib lots"), @r#"
    error: invalid value 'lots' for '<MIB>': "lots" is neither a number nor auto

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(terminal.sees_json("node info"), @r#"
    {
      "schema_version": 1,
      "node_id": "node-ID",
      "mem_limit_mib": N,
      "mem_floor_mib": 512,
      "max_vms": 1,
      "disk_floor_mib": 256,
      "labels": {
        "rack": "7"
      },
      "production": false,
      "plain_storage_waiver": false,
      "is_logged": true,
      "key": {
        "key_id": "KEY",
        "public_key": "PUBLIC",
        "made_at": "2026-01-02T03:04:05Z"
      }
    }
    "#);
    snapshot!(terminal.sees("node audit"), @"
    2026-01-02 03:04:05Z  uid 0 intent    node.update       node-ID (max_vms from 4000 to 1)
    2026-01-02 03:04:05Z  uid 0 done      node.update       node-ID (max_vms from 4000 to 1)
    2026-01-02 03:04:05Z  uid 0 intent    node.update       node-ID (mem_limit_mib from none to 4096)
    2026-01-02 03:04:05Z  uid 0 done      node.update       node-ID (mem_limit_mib from none to 4096)
    2026-01-02 03:04:05Z  uid 0 intent    node.update       node-ID (labels.rack from none to 7)
    2026-01-02 03:04:05Z  uid 0 done      node.update       node-ID (labels.rack from none to 7)
    ");
    snapshot!(terminal.sees("node audit --verify"), @"6 records, chain whole");
    snapshot!(terminal.sees("events -n 1"), @"2026-01-02 03:04:05Z  uid 0 done      node.update       node-ID (labels.rack from none to 7)");
    snapshot!(terminal.sees("node audit --head"), @"
    node-ID
      records    6
      hash       HASH
      at         2026-01-02 03:04:05Z
      key        KEY, PUBLIC
      signature  SIGNATURE
    with --json it is what --verify --against FILE takes
    ");
    let kept = terminal.sandbox.root().join("kept.json");
    fs::write(&kept, terminal.sees_json("node audit --head")).expect("a file");
    let against = format!("node audit --verify --against {}", kept.display());
    snapshot!(terminal.sees(&against), @"
    6 records, chain whole
    as it was at 2026-01-02 03:04:05Z: record 6
    ");
    std::fs::remove_dir_all(terminal.sandbox.root().join("node")).expect("the node's log");
    snapshot!(terminal.sees("node set max-vms 2"), @"
    the audit log in ROOT/node is gone
      try: put its files back from a copy; or mvm tenant audit TENANT --begin-anew (of the node: mvm node audit --begin-anew), whose first record says what was lost
    [exit 1]
    ");
    snapshot!(terminal.sees("node audit --begin-anew --yes"), @"node-ID has a new audit log, which says why; the files of the old one are beside it, as audit-N.*");
    snapshot!(terminal.sees("node audit"), @"
    2026-01-02 03:04:05Z  uid 0 done      audit.begin-anew  the.node (the audit log in ROOT/node is gone)
    2026-01-02 03:04:05Z  uid 0 observed  node.found        node-ID (disk_floor_mib 256, labels.rack 7, max_vms 1, mem_floor_mib 512, mem_limit_mib 4096, plain_storage_waiver false, production false)
    ");
    snapshot!(terminal.sees(&against), @"
    the kept head is not of this log, whose first line says that it was begun anew at 2026-01-02T03:04:05Z: the audit log in ROOT/node is gone
      try: ask who did that, and keep a new head; where nobody did, root on this node rewrote it: believe no line that nobody else kept
    [exit 1]
    ");
    snapshot!(terminal.sees("pool scale acme/web --running 2"), @"
    this node has no room: VMs: 1 of 1 are in use, and this needs 1 more
      try: mvm node stats, then stop something or mvm node set
    [exit 4]
    ");
    snapshot!(terminal.sees("node gc"), @"nothing to drop");
    snapshot!(terminal.sees("node recover"), @"1 instance runs on");
    snapshot!(terminal.sees_json("node recover"), @r#"
    {
      "settled": [],
      "adopted": [
        "acme/web/i-0f3a91c2"
      ],
      "reclaimed": [],
      "network": [],
      "failed": [],
      "stuck": [],
      "behind": []
    }
    "#);
}

#[test]
fn production_refuses_what_is_only_for_trying_out() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees("node set plain-storage-waiver on");
    terminal.sees("node set production on");
    snapshot!(terminal.sees("instance start acme/web/i-0f3a91c2"), @"
    this node is in production: it does not run the simulated VMM
      try: mvm node set production off
    [exit 4]
    ");
    snapshot!(terminal.sees("instance why acme/web/i-0f3a91c2"), @"
    acme/web/i-0f3a91c2 is ready: it was made and never started
    a start would be refused: this node is in production: it does not run the simulated VMM
      try: mvm node set production off
    you can: start, destroy
    ");
    snapshot!(terminal.sees("pool create acme/other --vmm sim"), @"
    this node is in production: it takes neither the simulated VMM nor --insecure
    [exit 4]
    ");
    snapshot!(terminal.sees("node set production maybe"), @"
    error: invalid value 'maybe' for '<SWITCH>'
      [possible values: on, off]

    For more information, try '--help'.
    [exit 2]
    ");
}

#[test]
fn a_killed_start_is_settled_and_said() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sandbox.run_with("instance start acme/web/i-0f3a91c2", "start.spawn");
    snapshot!(terminal.sees("status"), @"
    1 tenant, 1 pool, instances: 1 ready
    memory 133 MiB of SIZE, 1 vCPU on N CPUs, disk SIZE free
    1 to settle        next: mvm node recover
    ");
    snapshot!(terminal.sees("node recover"), @"
    settled acme/web/i-0f3a91c2: ready (a start was cut off and rolled back)
    0 instances run on
    ");
    snapshot!(terminal.sees("instance why acme/web/i-0f3a91c2"), @"
    acme/web/i-0f3a91c2 is ready: it was made and never started
    you can: start, destroy
    ");
}

/// Puts a base into acme/web with files as a VMM would write them; returns its key.
fn put_base(roots: &Roots, pool: &PoolPath, ingredients: Ingredients) -> String {
    let draft = base::begin(roots, pool, ingredients).expect("there is room");
    fs::write(draft.folder().join(base::VMSTATE), "registers").expect("it can be written");
    let mem = File::create(draft.folder().join(base::MEM)).expect("it can be made");
    mem.write_all_at(&[1; 8192], 1 << 20).expect("it can be written");
    mem.set_len(128 << 20).expect("it can grow");
    draft.put(roots).expect("it is whole").0.key.to_string()
}

#[test]
fn gc_drops_bases_that_nobody_needs_and_a_scrub_finds_a_flipped_bit() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees("instance start acme/web/i-0f3a91c2");
    terminal.sees("instance sleep acme/web/i-0f3a91c2");
    let root = terminal.sandbox.root();
    let roots = Roots::new(root, &Environment::default()).expect("roots");
    let pool: PoolPath = "acme/web".parse().expect("a path");
    let current = base::current(&roots, &pool).expect("it can be read").expect("it has a revision");
    let [another, surplus] = [1, 2].map(|guest_protocol| Ingredients { guest_protocol, ..current.clone() });
    let (current, slept_on) = (put_base(&roots, &pool, current), put_base(&roots, &pool, another));
    put_base(&roots, &pool, surplus);
    let record = root.join("tenants/acme/pools/web/instances/i-0f3a91c2/instance.json");
    let mut instance: serde_json::Value =
        serde_json::from_slice(&fs::read(&record).expect("a record")).expect("JSON");
    instance["base_key"] = slept_on.clone().into();
    fs::write(&record, instance.to_string()).expect("it can be written");
    let bases = Bases::of(&roots, &pool);
    let there = || {
        let keys = bases.all().expect("it can be listed");
        keys.into_iter().map(|key| key.to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    snapshot!(terminal.sees("node gc"), @"dropped base SHORT of acme/web");
    assert_eq!(there(), [current.clone(), slept_on.clone()].into());
    snapshot!(terminal.sees("node gc --scrub"), @"
    nothing to drop
    3 snapshots read, all as written
    ");
    // Rot does not show in any time.
    let mem = bases.folder().join(&slept_on).join(base::MEM);
    let time = fs::metadata(&mem).and_then(|meta| meta.modified()).expect("a time");
    let file = File::options().write(true).open(&mem).expect("root writes anything");
    file.write_all_at(&[3], (1 << 20) + 77)
        .and_then(|()| file.set_modified(time))
        .expect("it can be written");
    snapshot!(terminal.sees("node gc"), @"nothing to drop");
    snapshot!(terminal.sees("node gc --scrub"), @"
    damaged base SHORT of acme/web: ROOT/tenants/acme/pools/web/snapshots/base/REVISION/mem is damaged: page 256 is not what was written
      try: bring the file back; where no instance stands on it, rm -r ROOT/tenants/acme/pools/web/snapshots/base/REVISION
    nothing to drop
    3 snapshots read, 1 damaged
    [exit 1]
    ");
    assert_eq!(there().len(), 2, "what is damaged is said, not removed");
    // A kill in the middle of making one leaves what no process owns.
    fs::create_dir(bases.folder().join(".new-x.0.4194305")).expect("it can be made");
    snapshot!(terminal.sees("node recover"), @"
    reclaimed 1 unfinished files of killed commands in tenants/acme/pools/web/snapshots/base/
    0 instances run on
    ");
    // What has no memory stands on nothing.
    terminal.sees("instance stop acme/web/i-0f3a91c2");
    snapshot!(terminal.sees("pool gc acme/web"), @"removed base SHORT");
    assert_eq!(there(), [current].into());
}

#[test]
fn vmm_versions() {
    let Some(terminal) = Terminal::new() else { return };
    snapshot!(terminal.sees("vmm list"), @"none installed; the one on PATH is installed at first use        next: mvm vmm install FILE");
    snapshot!(terminal.sees_json("vmm list"), @"[]");
    snapshot!(terminal.sees("vmm default 9.9.9"), @"
    Firecracker 9.9.9 is not installed; none is
      try: mvm vmm list
    [exit 3]
    ");
    snapshot!(terminal.sees("vmm install /bin/true"), @r#"
    /bin/true is not a Firecracker: it says "true (GNU coreutils) 9.1"
    [exit 1]
    "#);
    snapshot!(terminal.sees("vmm install /none"), @"
    /none is not a Firecracker: cannot run /none
    [exit 1]
    ");
    snapshot!(terminal.sees("vmm gc"), @"every version is needed");
}

#[test]
fn doctor_names_each_thing_that_it_looked_at() {
    let Some(terminal) = Terminal::new() else { return };
    let report: serde_json::Value = serde_json::from_str(&terminal.sees_json("doctor")).expect("JSON");
    let names: Vec<_> =
        report["checks"].as_array().expect("checks").iter().map(|c| c["name"].clone()).collect();
    snapshot!(serde_json::json!(names).to_string(), @r#"["root","node","kvm","tun","firecracker","jail","landlock","master-key","secrets","storage","node-key","audit logs","settings","nft","mke2fs","cgroups","reflinks","neighbours","br_netfilter","forward chains","conntrack","nofile","users","overcommit"]"#);
}
