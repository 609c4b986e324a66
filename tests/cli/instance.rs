//! `mvm instance …`

use crate::{Terminal, snapshot};

const PATH: &str = "acme/web/i-0f3a91c2";

#[test]
fn an_instance_from_create_to_destroy() {
    let Some(terminal) = Terminal::with_pool() else { return };
    snapshot!(terminal.sees("instance list"), @"no instances        next: mvm instance create TENANT/POOL");
    snapshot!(terminal.sees("instance create acme/web --publish tcp:8080:80"), @"acme/web/i-0f3a91c2 10.240.3.3 ready        next: mvm instance start acme/web/i-0f3a91c2");
    snapshot!(terminal.sees("instance list"), @"
    INSTANCE             STATE  ADDRESS     VMM  REVISION  SINCE
    acme/web/i-0f3a91c2  ready  10.240.3.3  -    -         0 s
    ");
    snapshot!(terminal.sees_json("instance list acme/web"), @r#"
    [
      {
        "path": "acme/web/i-0f3a91c2",
        "schema_version": 1,
        "generation": 2,
        "tenant_id": "acme",
        "pool_id": "web",
        "instance_id": "i-0f3a91c2",
        "status": "ready",
        "net": {
          "offset": 3,
          "tap_dev": "tn3i3",
          "mac": "02:fc:00:03:00:03",
          "guest_ip": "10.240.3.3",
          "gateway_ip": "10.240.3.1",
          "cidr": "10.240.3.0/24",
          "published": [
            "tcp:8080:80"
          ]
        },
        "resources": {
          "vcpus": 1,
          "mem_mib": 128,
          "data_disk_mib": 8
        },
        "created_at": "2026-01-02T03:04:05Z"
      }
    ]
    "#);
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is ready: it was made and never started
    you can: start, destroy
    ");
    snapshot!(terminal.sees("instance start acme/web/i-0f"), @"i-0f3a91c2 10.240.3.3 MS ms  (simulated: no guest runs)");
    snapshot!(terminal.sees(&format!("instance start {PATH}")), @"i-0f3a91c2 is already running");
    snapshot!(terminal.sees("instance list acme"), @"
    INSTANCE             STATE    ADDRESS     VMM  REVISION      SINCE
    acme/web/i-0f3a91c2  running  10.240.3.3  sim  SHORT         0 s
    ");
    snapshot!(terminal.sees(&format!("instance info {PATH}")), @"
    acme/web/i-0f3a91c2
      state     running
      network   10.240.3.3 of 10.240.3.0/24 via 10.240.3.1, 02:fc:00:03:00:03, tn3i3
      gets      1 vCPU, 128 MiB memory, 8 MiB data disk
      revision  REVISION
      vmm       sim 1.16.1, pid PID, no jail, no limits, no seccomp filter
      made      2026-01-02 03:04:05Z
      started   2026-01-02 03:04:05Z
      receipt   start MS ms: reserve MS, disks MS, directory MS, spawn MS, announce MS, tap MS, configure MS, boot MS, join MS
      publishes tcp:8080:80
    ");
    snapshot!(terminal.sees_json(&format!("instance info {PATH}")), @r#"
    {
      "path": "acme/web/i-0f3a91c2",
      "schema_version": 1,
      "generation": 4,
      "tenant_id": "acme",
      "pool_id": "web",
      "instance_id": "i-0f3a91c2",
      "status": "running",
      "net": {
        "offset": 3,
        "tap_dev": "tn3i3",
        "mac": "02:fc:00:03:00:03",
        "guest_ip": "10.240.3.3",
        "gateway_ip": "10.240.3.1",
        "cidr": "10.240.3.0/24",
        "published": [
          "tcp:8080:80"
        ]
      },
      "resources": {
        "vcpus": 1,
        "mem_mib": 128,
        "data_disk_mib": 8
      },
      "revision": "REVISION",
      "vmm": {
        "kind": "sim",
        "version": "1.16.1",
        "pid": N,
        "start_time": N,
        "boot_id": "BOOT-ID",
        "uid": 0,
        "lacks": [
          "jail",
          "limits",
          "filter"
        ],
        "parent": "boot"
      },
      "created_at": "2026-01-02T03:04:05Z",
      "entered_running_at": "2026-01-02T03:04:05Z",
      "last_receipt": {
        "operation": "start",
        "total_ms": MS,
        "steps": [
          {
            "name": "reserve",
            "ms": MS
          },
          {
            "name": "disks",
            "ms": MS
          },
          {
            "name": "directory",
            "ms": MS
          },
          {
            "name": "spawn",
            "ms": MS
          },
          {
            "name": "announce",
            "ms": MS
          },
          {
            "name": "tap",
            "ms": MS
          },
          {
            "name": "configure",
            "ms": MS
          },
          {
            "name": "boot",
            "ms": MS
          },
          {
            "name": "join",
            "ms": MS
          }
        ],
        "agent": "none"
      }
    }
    "#);
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is running: its VMM runs as pid PID (sim 1.16.1)
    you can: warm, sleep, stop, destroy
    ");
    snapshot!(terminal.sees_json("instance stats"), @r#"
    [
      {
        "path": "acme/web/i-0f3a91c2",
        "status": "running",
        "cpu_ms": N,
        "rss_bytes": N,
        "net_rx_bytes": 0,
        "net_tx_bytes": 0,
        "disk_bytes": N
      }
    ]
    "#);
    snapshot!(terminal.sees(&format!("instance wait {PATH}")), @"i-0f3a91c2 is running");
    snapshot!(terminal.sees(&format!("instance stop {PATH}")), @"i-0f3a91c2 stopped by uid 0");
    snapshot!(terminal.sees(&format!("instance stop {PATH}")), @"i-0f3a91c2 is already stopped");
    snapshot!(terminal.sees_json(&format!("instance why {PATH}")), @r#"
    {
      "can": [
        "start",
        "destroy"
      ],
      "last_exit": {
        "when": "2026-01-02T03:04:05Z",
        "why": "stopped by uid 0"
      },
      "log": [],
      "path": "acme/web/i-0f3a91c2",
      "pending": null,
      "resume_refused": null,
      "start_refused": null,
      "status": "stopped",
      "wake_refused": null,
      "why": "stopped by uid 0"
    }
    "#);
    snapshot!(terminal.sees(&format!("instance start {PATH} -v")), @"i-0f3a91c2 10.240.3.3 MS ms: reserve MS, disks MS, directory MS, spawn MS, announce MS, tap MS, configure MS, boot MS, join MS  (simulated: no guest runs)");
    snapshot!(terminal.sees(&format!("instance stop {PATH} --force -q")), @"");
    snapshot!(terminal.sees(&format!("instance disk grow {PATH} --size 64")), @"the data disk of acme/web/i-0f3a91c2 has 64 MiB; a guest sees it at its next start");
    snapshot!(terminal.sees(&format!("instance disk grow {PATH} --size 16")), @"
    the data disk has 64 MiB already: a disk can grow, not shrink
    [exit 4]
    ");
    snapshot!(terminal.sees(&format!("instance destroy {PATH}")), @"
    Destroy acme/web/i-0f3a91c2? nobody is there to answer
      try: say --yes
    [exit 2]
    ");
    snapshot!(terminal.sees(&format!("instance destroy {PATH} --yes")), @"acme/web/i-0f3a91c2 destroyed; its data disk is kept in ROOT/tenants/acme/pools/web/kept");
    snapshot!(terminal.sees(&format!("instance destroy {PATH} --yes")), @"
    no instance of acme/web starts with i-0f3a91c2; it has none yet
    [exit 3]
    ");
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let Some(terminal) = Terminal::new() else { return };
    snapshot!(terminal.sees("instance create acme/web"), @"
    there is no tenant acme; there is none yet
    [exit 3]
    ");
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("instance create acme/web"), @"
    there is no pool acme/web; acme has none yet
    [exit 3]
    ");
    terminal.sees("pool create acme/web --vmm sim --mem 128 --data-disk 0");
    snapshot!(terminal.sees("instance info acme/web/i-dead"), @"
    no instance of acme/web starts with i-dead; it has none yet
    [exit 3]
    ");
    snapshot!(terminal.sees("instance create acme/web"), @"acme/web/i-0f3a91c2 10.240.3.3 created        next: mvm pool import acme/web --oci-archive FILE, or --kernel FILE --rootfs FILE");
    snapshot!(terminal.sees("instance create acme/web"), @"acme/web/i-0f3a91c3 10.240.3.4 created        next: mvm pool import acme/web --oci-archive FILE, or --kernel FILE --rootfs FILE");
    snapshot!(terminal.sees("instance info acme/web/i-dead"), @"
    no instance of acme/web starts with i-dead; it has i-0f3a91c2, i-0f3a91c3
    [exit 3]
    ");
    snapshot!(terminal.sees("instance info acme/web/i-0f"), @"
    acme/web/i-0f is ambiguous: i-0f3a91c2, i-0f3a91c3
    [exit 2]
    ");
    snapshot!(terminal.sees("instance info acme/web"), @r#"
    error: invalid value 'acme/web' for '<INSTANCE>': "acme/web" is not a path to an instance: expected tenant/pool/instance

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(terminal.sees("instance start acme/web/i-0f3a91c2"), @"
    acme/web has no revision to run yet
      try: mvm pool import acme/web --oci-archive FILE, or --kernel FILE --rootfs FILE
    [exit 4]
    ");
    snapshot!(terminal.sees("instance stop acme/web/i-0f3a91c2"), @"
    acme/web/i-0f3a91c2 cannot stop: it is created; stop works from running, warm, sleeping
      try: mvm instance start acme/web/i-0f3a91c2
    [exit 4]
    ");
    snapshot!(terminal.sees("instance disk grow acme/web/i-0f3a91c2 --size 64"), @"
    the instance has no data disk
    [exit 3]
    ");
    snapshot!(terminal.sees("instance wait acme/web/i-0f3a91c2 --for running --timeout 0"), @"
    acme/web/i-0f3a91c2 was not running within 0 s
      try: mvm instance why acme/web/i-0f3a91c2
    [exit 1]
    ");
    snapshot!(terminal.sees("instance wait acme/web/i-0f3a91c2 --for created"), @"i-0f3a91c2 is created");
    snapshot!(terminal.sees("instance wait acme/web/i-00000000 --for destroyed"), @"i-00000000 is destroyed");
    snapshot!(terminal.sees("instance logs acme/web/i-0f3a91c2 --since yesterday"), @r#"
    error: invalid value 'yesterday' for '--since <TIME>': "yesterday" is neither a time (2026-01-02T03:04:05Z) nor how long ago it was (10m, 1h30m)

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(terminal.sees("instance wait acme/web/i-0f3a91c2 --for happy"), @r#"
    error: invalid value 'happy' for '--for <STATE>': "happy" is not a state; there are: created, ready, running, warm, sleeping, stopped, destroyed

    For more information, try '--help'.
    [exit 2]
    "#);
}

#[test]
fn guest_bytes_are_escaped_unless_raw_is_said() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees(&format!("instance start {PATH}"));
    let text = "\u{1b}[31mred\u{1b}[0m \u{7}\u{202e}tac \u{9b}x\n";
    terminal.sandbox.tell("tn3i3", &serde_json::json!({ "cmd": "print", "text": text }));
    snapshot!(terminal.sees(&format!("instance console {PATH}")), @r"
    fcsim guest: boot, 128 MiB, cmdline quiet mvm.ip=10.240.3.3/24 mvm.gw=10.240.3.1 mvm.mac=02:fc:00:03:00:03 mvm.host=i-0f3a91c2 pci=off root=/dev/vda rw
    \u{1b}[31mred\u{1b}[0m \u{7}\u{202e}tac \u{9b}x
    ");
    snapshot!(terminal.sees_json(&format!("instance console {PATH}")), @r#"
    {"line":"fcsim guest: boot, 128 MiB, cmdline quiet mvm.ip=10.240.3.3/24 mvm.gw=10.240.3.1 mvm.mac=02:fc:00:03:00:03 mvm.host=i-0f3a91c2 pci=off root=/dev/vda rw"}
    {"line":"\u001b[31mred\u001b[0m \u0007\u202etac \u009bx"}
    {"line":""}
    "#);
    assert!(terminal.sees(&format!("instance console {PATH} --raw")).contains(text));
    snapshot!(terminal.sees(&format!("instance logs {PATH}")), @"");
}

#[test]
fn an_instance_that_sleeps_and_wakes() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees(&format!("instance start {PATH}"));
    snapshot!(terminal.sees(&format!("instance warm {PATH}")), @"i-0f3a91c2 warm");
    snapshot!(terminal.sees(&format!("instance warm {PATH}")), @"i-0f3a91c2 is already warm");
    snapshot!(terminal.sees(&format!("instance wake {PATH}")), @"
    acme/web/i-0f3a91c2 cannot wake: it is warm; wake works from sleeping
      try: mvm instance resume acme/web/i-0f3a91c2
    [exit 4]
    ");
    snapshot!(terminal.sees(&format!("instance resume {PATH}")), @"i-0f3a91c2 running");
    snapshot!(terminal.sees(&format!("instance sleep {PATH} -v")), @"i-0f3a91c2 asleep in MS ms: pause MS, snapshot MS, sums MS, commit MS, teardown MS, SIZE of memory written");
    snapshot!(terminal.sees(&format!("instance info {PATH}")), @"
    acme/web/i-0f3a91c2
      state     sleeping
      network   10.240.3.3 of 10.240.3.0/24 via 10.240.3.1, 02:fc:00:03:00:03, tn3i3
      gets      1 vCPU, 128 MiB memory, 8 MiB data disk
      revision  REVISION
      snapshot  SIZE, by sim 1.16.1, 2026-01-02 03:04:05Z
      made      2026-01-02 03:04:05Z
      started   2026-01-02 03:04:05Z
      receipt   sleep MS ms: pause MS, snapshot MS, sums MS, commit MS, teardown MS
    ");
    snapshot!(terminal.sees(&format!("instance why {PATH}")), @"
    acme/web/i-0f3a91c2 is sleeping: it was put to sleep
    you can: wake, archive, stop, destroy
    ");
    snapshot!(terminal.sees(&format!("instance start {PATH}")), @"
    acme/web/i-0f3a91c2 cannot start: it is sleeping; start works from ready, stopped
      try: mvm instance wake acme/web/i-0f3a91c2
    [exit 4]
    ");
    snapshot!(terminal.sees(&format!("instance disk grow {PATH} --size 16")), @"
    acme/web/i-0f3a91c2 is sleeping: its guest knows its disk by its size
      try: mvm instance wake acme/web/i-0f3a91c2, then mvm instance stop acme/web/i-0f3a91c2, and grow it then
    [exit 4]
    ");
    snapshot!(terminal.sees("node gc --scrub"), @"
    nothing to drop
    1 snapshot read, all as written
    ");
    snapshot!(terminal.sees(&format!("instance archive {PATH}")), @"i-0f3a91c2 archived, SIZE on disk");
    snapshot!(terminal.sees(&format!("instance archive {PATH}")), @"i-0f3a91c2 is already archived");
    snapshot!(terminal.sees(&format!("instance wake {PATH} -v")), @"i-0f3a91c2 awake in MS ms: reserve MS, check MS, directory MS, spawn MS, announce MS, tap MS, unpack MS, load MS, consume MS, resume MS, join MS  (simulated: no guest runs)");
    snapshot!(terminal.sees("pool scale acme/web --warm 1"), @"i-0f3a91c3 10.240.3.4 created, warm");
    snapshot!(terminal.sees("pool scale acme/web --sleeping 1"), @"i-0f3a91c4 10.240.3.5 created, sleeping");
    snapshot!(terminal.sees("pool scale acme/web --warm 0"), @"i-0f3a91c3 10.240.3.4 stopped");
    snapshot!(terminal.sees("pool scale acme/web --sleeping 0"), @"i-0f3a91c4 10.240.3.5 stopped");
    snapshot!(terminal.sees("pool scale acme/web --sleeping 1 --warm 0"), @"i-0f3a91c3 10.240.3.4 asleep, MS ms");
}
