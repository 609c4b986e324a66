//! `mvm pool …`

use crate::{Terminal, snapshot};

#[test]
fn a_pool_from_create_to_destroy() {
    let Some(terminal) = Terminal::new() else { return };
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("pool list"), @"no pools yet        next: mvm pool create TENANT/POOL");
    snapshot!(terminal.sees("pool create acme/workers --flake . --profile minimal --cpus 2 --mem 1024"), @"acme/workers: 2 vCPUs, 1024 MiB, egress internet        next: mvm pool import acme/workers --oci-archive FILE, or --kernel FILE --rootfs FILE");
    snapshot!(terminal.sees("pool create acme/workers --flake . --profile minimal --cpus 2 --mem 1024"), @"acme/workers exists already, just like that");
    snapshot!(terminal.sees("pool create acme/workers --cpus 4"), @"
    pool acme/workers exists, and is another one: its flake_ref differs
      try: mvm pool info acme/workers, or mvm pool update acme/workers
    [exit 4]
    ");
    snapshot!(terminal.sees_json("pool create acme/sim --vmm sim --mem 128 --data-disk 0 --label team=web --egress allow:1.1.1.1:53"), @r#"
    {
      "path": "acme/sim",
      "schema_version": 1,
      "tenant_id": "acme",
      "pool_id": "sim",
      "created_at": "2026-01-02T03:04:05Z",
      "profile": "minimal",
      "vmm": "sim",
      "agent": "none",
      "insecure": false,
      "seccomp_policy": "baseline",
      "instance_resources": {
        "vcpus": 1,
        "mem_mib": 128,
        "data_disk_mib": 0
      },
      "desired_counts": {
        "running": 0,
        "warm": 0,
        "sleeping": 0
      },
      "egress": "allow:1.1.1.1/32:53",
      "metadata_enabled": true,
      "runtime_policy": {
        "min_running_seconds": 60,
        "min_warm_seconds": 30,
        "drain_timeout_seconds": 30,
        "graceful_shutdown_seconds": 15
      },
      "on_rotate": "none",
      "labels": {
        "team": "web"
      },
      "pinned": false,
      "critical": false,
      "revision": null,
      "revisions": 0,
      "instances": 0
    }
    "#);
    snapshot!(terminal.sees("pool list"), @"
    POOL          REVISION  VMM          VCPUS  MEMORY    INSTANCES  WANTED  EGRESS
    acme/sim      none      sim          1      128 MiB   0          0       allow:1.1.1.1/32:53
    acme/workers  none      firecracker  2      1024 MiB  0          0       internet
    ");
    snapshot!(terminal.sees("pool info acme/sim"), @"
    acme/sim
      revision   none
      revisions  0
      instances  0, 0 running wanted
      each       1 vCPU, 128 MiB memory, no data disk
      vmm        sim: it runs no guest
      egress     allow:1.1.1.1/32:53
      seccomp    baseline
      on rotate  none
      metadata   at 169.254.169.254
      flake      none (minimal)
      made       2026-01-02 03:04:05Z
      label      team=web
    ");
    snapshot!(terminal.sees("pool create acme/strict --vmm sim --seccomp strict"), @"
    the simulated VMM has no seccomp filter: the strict one is for Firecracker
      try: --seccomp baseline
    [exit 2]
    ");
    snapshot!(terminal.sees("pool update acme/sim --seccomp strict"), @"
    the simulated VMM has no seccomp filter: the strict one is for Firecracker
      try: --seccomp baseline
    [exit 2]
    ");
    terminal.sees("pool update acme/sim --on-rotate signal:HUP");
    snapshot!(terminal.sees("pool info acme/sim"), @"
    acme/sim
      revision   none
      revisions  0
      instances  0, 0 running wanted
      each       1 vCPU, 128 MiB memory, no data disk
      vmm        sim: it runs no guest
      egress     allow:1.1.1.1/32:53
      seccomp    baseline
      on rotate  signal:HUP
      metadata   at 169.254.169.254
      flake      none (minimal)
      made       2026-01-02 03:04:05Z
      label      team=web
    ");
    snapshot!(terminal.sees_json("pool info acme/workers"), @r#"
    {
      "path": "acme/workers",
      "schema_version": 1,
      "tenant_id": "acme",
      "pool_id": "workers",
      "created_at": "2026-01-02T03:04:05Z",
      "flake_ref": ".",
      "profile": "minimal",
      "vmm": "firecracker",
      "agent": "none",
      "insecure": false,
      "seccomp_policy": "baseline",
      "instance_resources": {
        "vcpus": 2,
        "mem_mib": 1024,
        "data_disk_mib": 1024
      },
      "desired_counts": {
        "running": 0,
        "warm": 0,
        "sleeping": 0
      },
      "egress": "internet",
      "metadata_enabled": true,
      "runtime_policy": {
        "min_running_seconds": 60,
        "min_warm_seconds": 30,
        "drain_timeout_seconds": 30,
        "graceful_shutdown_seconds": 15
      },
      "on_rotate": "none",
      "pinned": false,
      "critical": false,
      "revision": null,
      "revisions": 0,
      "instances": 0
    }
    "#);
    snapshot!(terminal.sees("pool update acme/sim --mem 256 --egress deny"), @"acme/sim updated; egress holds at once, the rest from the next start of each instance");
    snapshot!(terminal.sees("pool update acme/sim --mem 256"), @"acme/sim is like that already");
    snapshot!(terminal.sees("pool destroy acme/sim"), @"
    Destroy pool acme/sim with its 0 instances? nobody is there to answer
      try: say --yes
    [exit 2]
    ");
    snapshot!(terminal.sees("pool destroy acme/sim --yes"), @"acme/sim destroyed");
    snapshot!(terminal.sees_json("pool destroy acme/workers --yes"), @r#"
    {
      "path": "acme/workers",
      "status": "destroyed"
    }
    "#);
    snapshot!(terminal.sees("pool info acme/workers"), @"
    there is no pool acme/workers; acme has none yet
    [exit 3]
    ");
    snapshot!(terminal.sees("pool create globex/web"), @"
    there is no tenant globex; there is acme
    [exit 3]
    ");
}

#[test]
fn revisions_are_imported_listed_verified_and_rolled_back() {
    let Some(terminal) = Terminal::with_pool() else { return };
    let (kernel, rootfs) = terminal.sandbox.artifacts();
    let import = format!("pool import acme/web --kernel {} --rootfs {}", kernel.display(), rootfs.display());
    snapshot!(terminal.sees(&import), @"acme/web: revision SHORT verified and current, 4.0 MiB        next: mvm instance create acme/web");
    snapshot!(terminal.sees_json(&format!("{import} --cmdline=other")), @r#"
    {
      "path": "acme/web",
      "schema_version": 1,
      "tenant_id": "acme",
      "pool_id": "web",
      "created_at": "2026-01-02T03:04:05Z",
      "profile": "minimal",
      "vmm": "sim",
      "agent": "none",
      "insecure": false,
      "seccomp_policy": "baseline",
      "instance_resources": {
        "vcpus": 1,
        "mem_mib": 128,
        "data_disk_mib": 8
      },
      "desired_counts": {
        "running": 0,
        "warm": 0,
        "sleeping": 0
      },
      "egress": "internet",
      "metadata_enabled": true,
      "runtime_policy": {
        "min_running_seconds": 60,
        "min_warm_seconds": 30,
        "drain_timeout_seconds": 30,
        "graceful_shutdown_seconds": 15
      },
      "on_rotate": "none",
      "pinned": false,
      "critical": false,
      "revision": "REVISION",
      "revisions": 3,
      "instances": 0
    }
    "#);
    snapshot!(terminal.sees("pool history acme/web"), @"
    REVISION      SINCE                 BY
    SHORT         2026-01-02 03:04:05Z  import
    SHORT         2026-01-02 03:04:05Z  import
    SHORT         2026-01-02 03:04:05Z  import  current
    ");
    snapshot!(terminal.sees("pool verify acme/web"), @"
    ok    REVISION
    ok    REVISION
    ok    REVISION
    ");
    snapshot!(terminal.sees_json("pool verify acme/web"), @r#"
    {
      "checks": [
        {
          "detail": null,
          "name": "REVISION",
          "ok": true
        },
        {
          "detail": null,
          "name": "REVISION",
          "ok": true
        },
        {
          "detail": null,
          "name": "REVISION",
          "ok": true
        }
      ],
      "ok": true
    }
    "#);
    snapshot!(terminal.sees("pool rollback acme/web"), @"acme/web: revision SHORT is current; what runs keeps its own");
    snapshot!(terminal.sees("pool rollback acme/web --revision 000000000000"), @"
    pool acme/web has no revision SHORT; it has REVISIONS
    [exit 3]
    ");
    snapshot!(terminal.sees("pool gc acme/web"), @"removed SHORT");
    snapshot!(terminal.sees("pool gc acme/web"), @"acme/web: every revision and base is needed");
    snapshot!(terminal.sees_json("pool gc acme/web"), @r#"
    {
      "revisions": [],
      "bases": []
    }
    "#);
}

#[test]
fn what_is_no_artifact_is_refused() {
    let Some(terminal) = Terminal::with_pool() else { return };
    let (kernel, rootfs) = terminal.sandbox.artifacts();
    let (kernel, rootfs) = (kernel.display(), rootfs.display());
    snapshot!(terminal.sees(&format!("pool import acme/web --kernel {rootfs} --rootfs {rootfs}")), @"
    ROOT/rootfs.in is not a kernel that Firecracker boots: it is no ELF file
      try: mvm pool import --help says what is taken
    [exit 1]
    ");
    snapshot!(terminal.sees(&format!("pool import acme/web --kernel {kernel} --rootfs {kernel}")), @"
    ROOT/kernel.in is not a root file system: it holds no ext4, xfs, squashfs or erofs
      try: mvm pool import --help says what is taken
    [exit 1]
    ");
    snapshot!(terminal.sees(&format!("pool import acme/web --kernel {kernel} --rootfs {rootfs} --initrd {kernel}")), @"
    ROOT/kernel.in is not an initial RAM disk: it is no cpio archive, plain or compressed by gzip, zstd, xz or lz4
      try: mvm pool import --help says what is taken
    [exit 1]
    ");
    snapshot!(terminal.sees(&format!("pool import acme/web --kernel /none --rootfs {rootfs}")), @"
    cannot read /none
      because: No such file or directory (os error 2)
    [exit 1]
    ");
    snapshot!(terminal.sees(&format!("pool import acme/none --kernel {kernel} --rootfs {rootfs}")), @"
    there is no pool acme/none; acme has acme/web
    [exit 3]
    ");
}

#[test]
fn scale_says_what_it_did_to_each() {
    let Some(terminal) = Terminal::with_pool() else { return };
    // One at a time: several at once are told in the order in which they are done.
    snapshot!(terminal.sees("pool scale acme/web --running 1"), @"i-0f3a91c2 10.240.3.3 created, running in MS ms");
    snapshot!(terminal.sees("pool scale acme/web --running 2"), @"i-0f3a91c3 10.240.3.4 created, running in MS ms");
    snapshot!(terminal.sees("pool scale acme/web --running 2"), @"acme/web: 2 running already");
    snapshot!(terminal.sees("pool scale acme/web --running 1"), @"i-0f3a91c3 10.240.3.4 stopped");
    terminal.sees("tenant update acme --max-running 1");
    snapshot!(terminal.sees("pool scale acme/web --running 5"), @"
    the quota of tenant acme does not allow it: max_running: 1 are allowed, and this needs 5
      try: mvm tenant update acme --max-running N
    [exit 4]
    ");
    snapshot!(terminal.sees("pool scale acme/web --running 3 --no-apply"), @"acme/web: 3 running wanted, and nothing done about it yet");
    snapshot!(terminal.sees_json("pool scale acme/web --running 0"), @r#"
    [
      {
        "path": "acme/web/i-0f3a91c2",
        "schema_version": 1,
        "generation": 6,
        "tenant_id": "acme",
        "pool_id": "web",
        "instance_id": "i-0f3a91c2",
        "status": "stopped",
        "net": {
          "offset": 3,
          "tap_dev": "tn3i3",
          "mac": "02:fc:00:03:00:03",
          "guest_ip": "10.240.3.3",
          "gateway_ip": "10.240.3.1",
          "cidr": "10.240.3.0/24"
        },
        "resources": {
          "vcpus": 1,
          "mem_mib": 128,
          "data_disk_mib": 8
        },
        "revision": "REVISION",
        "created_at": "2026-01-02T03:04:05Z",
        "entered_running_at": "2026-01-02T03:04:05Z",
        "entered_stopped_at": "2026-01-02T03:04:05Z",
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
        },
        "last_exit": {
          "when": "2026-01-02T03:04:05Z",
          "why": "stopped by uid 0"
        }
      }
    ]
    "#);
}
