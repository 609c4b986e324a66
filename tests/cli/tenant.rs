//! `mvm tenant …`

use crate::{Terminal, snapshot};

#[test]
fn create_says_what_was_made_and_what_comes_next() {
    let Some(terminal) = Terminal::new() else { return };
    snapshot!(terminal.sees("tenant list"), @"no tenants yet        next: mvm tenant create NAME --net-id N --subnet CIDR");
    snapshot!(terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24"), @"acme: bridge br-tenant-3, gateway 10.240.3.1        next: mvm pool create acme/NAME");
    snapshot!(terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24"), @"acme exists already, just like that");
    snapshot!(terminal.sees_json("tenant create globex --net-id 4 --subnet 10.240.4.0/28 --max-running 2 --offset-range 3-9"), @r#"
    {
      "schema_version": 1,
      "tenant_id": "globex",
      "created_at": "2026-01-02T03:04:05Z",
      "network": {
        "tenant_net_id": 4,
        "ipv4_subnet": "10.240.4.0/28",
        "gateway_ip": "10.240.4.1",
        "offset_range": [
          3,
          9
        ]
      },
      "quotas": {
        "max_vcpus": 64,
        "max_mem_mib": 65536,
        "max_running": 2,
        "max_warm": 100,
        "max_pools": 16,
        "max_instances_per_pool": 256,
        "max_disk_gib": 500,
        "log_mib": 16,
        "max_conns": 2000,
        "conns_per_second": 200,
        "net_mbps": 0,
        "net_pps": 0,
        "disk_iops": 0,
        "disk_mbps": 0
      },
      "pinned": false,
      "retention_days": 90,
      "pools": 0,
      "running": 0,
      "warm": 0,
      "sleeping": 0,
      "vcpus_used": 0,
      "mem_used_mib": 0
    }
    "#);
    snapshot!(terminal.sees("tenant list"), @"
    TENANT  NET ID  SUBNET         POOLS  RUNNING   MEMORY
    acme    3       10.240.3.0/24  0      0 of 100  0 MiB of 64.0 GiB
    globex  4       10.240.4.0/28  0      0 of 2    0 MiB of 64.0 GiB
    ");
    snapshot!(terminal.sees_json("tenant list"), @r#"
    [
      {
        "schema_version": 1,
        "tenant_id": "acme",
        "created_at": "2026-01-02T03:04:05Z",
        "network": {
          "tenant_net_id": 3,
          "ipv4_subnet": "10.240.3.0/24",
          "gateway_ip": "10.240.3.1"
        },
        "quotas": {
          "max_vcpus": 64,
          "max_mem_mib": 65536,
          "max_running": 100,
          "max_warm": 100,
          "max_pools": 16,
          "max_instances_per_pool": 256,
          "max_disk_gib": 500,
          "log_mib": 16,
          "max_conns": 2000,
          "conns_per_second": 200,
          "net_mbps": 0,
          "net_pps": 0,
          "disk_iops": 0,
          "disk_mbps": 0
        },
        "pinned": false,
        "retention_days": 90,
        "pools": 0,
        "running": 0,
        "warm": 0,
        "sleeping": 0,
        "vcpus_used": 0,
        "mem_used_mib": 0
      },
      {
        "schema_version": 1,
        "tenant_id": "globex",
        "created_at": "2026-01-02T03:04:05Z",
        "network": {
          "tenant_net_id": 4,
          "ipv4_subnet": "10.240.4.0/28",
          "gateway_ip": "10.240.4.1",
          "offset_range": [
            3,
            9
          ]
        },
        "quotas": {
          "max_vcpus": 64,
          "max_mem_mib": 65536,
          "max_running": 2,
          "max_warm": 100,
          "max_pools": 16,
          "max_instances_per_pool": 256,
          "max_disk_gib": 500,
          "log_mib": 16,
          "max_conns": 2000,
          "conns_per_second": 200,
          "net_mbps": 0,
          "net_pps": 0,
          "disk_iops": 0,
          "disk_mbps": 0
        },
        "pinned": false,
        "retention_days": 90,
        "pools": 0,
        "running": 0,
        "warm": 0,
        "sleeping": 0,
        "vcpus_used": 0,
        "mem_used_mib": 0
      }
    ]
    "#);
    snapshot!(terminal.sees("tenant info acme"), @"
    acme
      network   net id 3, 10.240.3.0/24, gateway 10.240.3.1, bridge br-tenant-3, offsets 3 to 254
      running   0 of 100
      warm      0 of 100
      sleeping  0
      vcpus     0 of 64
      memory    0 MiB of 64.0 GiB
      pools     0 of 16
      made      2026-01-02 03:04:05Z
      pinned    no
    ");
    snapshot!(terminal.sees_json("tenant info globex"), @r#"
    {
      "schema_version": 1,
      "tenant_id": "globex",
      "created_at": "2026-01-02T03:04:05Z",
      "network": {
        "tenant_net_id": 4,
        "ipv4_subnet": "10.240.4.0/28",
        "gateway_ip": "10.240.4.1",
        "offset_range": [
          3,
          9
        ]
      },
      "quotas": {
        "max_vcpus": 64,
        "max_mem_mib": 65536,
        "max_running": 2,
        "max_warm": 100,
        "max_pools": 16,
        "max_instances_per_pool": 256,
        "max_disk_gib": 500,
        "log_mib": 16,
        "max_conns": 2000,
        "conns_per_second": 200,
        "net_mbps": 0,
        "net_pps": 0,
        "disk_iops": 0,
        "disk_mbps": 0
      },
      "pinned": false,
      "retention_days": 90,
      "pools": 0,
      "running": 0,
      "warm": 0,
      "sleeping": 0,
      "vcpus_used": 0,
      "mem_used_mib": 0
    }
    "#);
    snapshot!(terminal.sees("tenant list -q"), @"
    TENANT  NET ID  SUBNET         POOLS  RUNNING   MEMORY
    acme    3       10.240.3.0/24  0      0 of 100  0 MiB of 64.0 GiB
    globex  4       10.240.4.0/28  0      0 of 2    0 MiB of 64.0 GiB
    ");
}

#[test]
fn what_is_in_use_is_refused_and_named() {
    let Some(terminal) = Terminal::new() else { return };
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("tenant create acme --net-id 4 --subnet 10.240.3.0/24"), @"
    tenant acme exists, and its net id is 3, not 4
      try: mvm tenant info acme
    [exit 4]
    ");
    snapshot!(terminal.sees("tenant create b --net-id 3 --subnet 10.240.4.0/24"), @"
    net id 3 belongs to tenant acme
      try: mvm tenant list
    [exit 4]
    ");
    snapshot!(terminal.sees_json("tenant create b --net-id 3 --subnet 10.240.4.0/24"), @r#"
    {"error":{"code":"net_id_used","what":"net id 3 belongs to tenant acme","why":"","fix":"mvm tenant list"}}
    [exit 4]
    "#);
    snapshot!(terminal.sees("tenant create b --net-id 4 --subnet 10.240.3.128/25"), @"
    subnet 10.240.3.128/25 overlaps 10.240.3.0/24 of tenant acme
      try: mvm tenant list
    [exit 4]
    ");
    snapshot!(terminal.sees("tenant create b --net-id 4 --subnet 10.240.4.0/24 --offset-range 9-3"), @"
    the offset range 9 to 3 holds none of the offsets 3 to 254 that 10.240.4.0/24 has for instances
    [exit 2]
    ");
    snapshot!(terminal.sees("tenant info nobody"), @"
    there is no tenant nobody; there is acme
    [exit 3]
    ");
    snapshot!(terminal.sees_json("tenant info nobody"), @r#"
    {"error":{"code":"not_found","what":"there is no tenant nobody; there is acme","why":"","fix":null}}
    [exit 3]
    "#);
}

#[test]
fn update_says_whether_something_changed() {
    let Some(terminal) = Terminal::new() else { return };
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("tenant update acme --max-running 7 --retention-days 3"), @"acme updated; what runs keeps its limits and rates until its next start");
    snapshot!(terminal.sees("tenant update acme --max-running 7"), @"acme is like that already");
    snapshot!(terminal.sees("tenant update acme --max-runing 7"), @"
    error: unexpected argument '--max-runing' found

      tip: a similar argument exists: '--max-running'

    Usage: mvm tenant update --max-running <N> <TENANT>

    For more information, try '--help'.
    [exit 2]
    ");
}

#[test]
fn destroy_asks_and_keeps_the_log() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    snapshot!(terminal.sees("tenant destroy acme"), @"
    tenant acme has data disks: acme/web/i-0f3a91c2
      try: --wipe-volumes, if the data may go
    [exit 4]
    ");
    snapshot!(terminal.sees("tenant destroy acme --yes"), @"
    tenant acme has data disks: acme/web/i-0f3a91c2
      try: --wipe-volumes, if the data may go
    [exit 4]
    ");
    snapshot!(terminal.sees("tenant destroy acme --yes --wipe-volumes"), @"acme destroyed; its audit log is kept");
    snapshot!(terminal.sees("tenant destroy acme --yes"), @"
    there is no tenant acme; there is none yet
    [exit 3]
    ");
    snapshot!(terminal.sees("tenant audit acme --verify"), @"14 records, chain whole");
    snapshot!(terminal.sees("tenant audit globex"), @"
    there is no tenant globex; there is none yet
    [exit 3]
    ");
}

#[test]
fn the_audit_log_is_a_line_per_event() {
    let Some(terminal) = Terminal::new() else { return };
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    terminal.sees("pool create acme/web --vmm sim");
    snapshot!(terminal.sees("tenant audit acme"), @"
    2026-01-02 03:04:05Z  uid 0 intent    tenant.create     acme (network.gateway_ip 10.240.3.1, network.ipv4_subnet 10.240.3.0/24, network.offset_range none, network.tenant_net_id 3, pinned false, quotas.conns_per_second 200, quotas.disk_iops 0, quotas.disk_mbps 0, quotas.log_mib 16, quotas.max_conns 2000, quotas.max_disk_gib 500, quotas.max_instances_per_pool 256, quotas.max_mem_mib 65536, quotas.max_pools 16, quotas.max_running 100, quotas.max_vcpus 64, quotas.max_warm 100, quotas.net_mbps 0, quotas.net_pps 0, retention_days 90)
    2026-01-02 03:04:05Z  uid 0 done      tenant.create     acme
    2026-01-02 03:04:05Z  uid 0 intent    pool.create       acme/web (egress internet, insecure false, seccomp_policy baseline, vmm sim)
    2026-01-02 03:04:05Z  uid 0 done      pool.create       acme/web (egress internet, insecure false, seccomp_policy baseline, vmm sim)
    ");
    snapshot!(terminal.sees_json("tenant audit acme"), @r#"
    [
      {
        "seq": 1,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N,
          "began": "BOOT-ID/TICK"
        },
        "what": "tenant.create",
        "path": "acme",
        "phase": "intent",
        "detail": "network.gateway_ip 10.240.3.1, network.ipv4_subnet 10.240.3.0/24, network.offset_range none, network.tenant_net_id 3, pinned false, quotas.conns_per_second 200, quotas.disk_iops 0, quotas.disk_mbps 0, quotas.log_mib 16, quotas.max_conns 2000, quotas.max_disk_gib 500, quotas.max_instances_per_pool 256, quotas.max_mem_mib 65536, quotas.max_pools 16, quotas.max_running 100, quotas.max_vcpus 64, quotas.max_warm 100, quotas.net_mbps 0, quotas.net_pps 0, retention_days 90",
        "prev": "HASH"
      },
      {
        "seq": 2,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N,
          "began": "BOOT-ID/TICK"
        },
        "what": "tenant.create",
        "path": "acme",
        "phase": "done",
        "prev": "HASH"
      },
      {
        "seq": 3,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N,
          "began": "BOOT-ID/TICK"
        },
        "what": "pool.create",
        "path": "acme/web",
        "phase": "intent",
        "detail": "egress internet, insecure false, seccomp_policy baseline, vmm sim",
        "prev": "HASH"
      },
      {
        "seq": 4,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N,
          "began": "BOOT-ID/TICK"
        },
        "what": "pool.create",
        "path": "acme/web",
        "phase": "done",
        "detail": "egress internet, insecure false, seccomp_policy baseline, vmm sim",
        "prev": "HASH"
      }
    ]
    "#);
    snapshot!(terminal.sees("tenant audit acme --verify"), @"4 records, chain whole");
    snapshot!(terminal.sees_json("tenant audit acme --verify"), @r#"
    {
      "ok": true,
      "records": 4,
      "remarks": [],
      "tenant_id": "acme"
    }
    "#);
    snapshot!(terminal.sees_json("tenant audit acme --head"), @r#"
    {
      "at": "2026-01-02T03:04:05Z",
      "count": 4,
      "hash": "HASH",
      "key_id": "KEY",
      "kind": "mvm-audit-head",
      "node_id": "node-ID",
      "public_key": "PUBLIC",
      "schema_version": 1,
      "signature": "SIGNATURE",
      "tenant_created_at": "2026-01-02T03:04:05Z",
      "tenant_id": "acme"
    }
    "#);
    snapshot!(terminal.sees("events -n 1"), @"2026-01-02 03:04:05Z  uid 0 done      pool.create       acme/web (egress internet, insecure false, seccomp_policy baseline, vmm sim)");
    snapshot!(terminal.sees_json("events -n 1"), @r#"{"seq":4,"at":"2026-01-02T03:04:05Z","who":{"uid":0,"via":"cli","pid": N,"began":"BOOT-ID/TICK"},"what":"pool.create","path":"acme/web","phase":"done","detail":"egress internet, insecure false, seccomp_policy baseline, vmm sim","prev":"REVISION"}"#);
}

#[test]
fn a_head_that_was_kept_shows_what_root_did_to_the_log() {
    let Some(terminal) = Terminal::new() else { return };
    let folder = terminal.sandbox.root().to_path_buf();
    let log = folder.join("tenants/acme/audit.log");
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("tenant audit acme --head"), @"
    acme on node-ID
      records    2
      hash       HASH
      at         2026-01-02 03:04:05Z
      key        KEY, PUBLIC
      signature  SIGNATURE
    with --json it is what --verify --against FILE takes
    ");
    let kept = folder.join("kept.json");
    std::fs::write(&kept, terminal.sees_json("tenant audit acme --head")).expect("a file");
    let against = format!("tenant audit acme --verify --against {}", kept.display());
    terminal.sees("pool create acme/web --vmm sim");
    snapshot!(terminal.sees(&against), @"
    4 records, chain whole
    as it was at 2026-01-02 03:04:05Z: record 2
    ");
    snapshot!(terminal.sees_json(&against), @r#"
    {
      "against": {
        "at": "2026-01-02T03:04:05Z",
        "count": 2
      },
      "ok": true,
      "records": 4,
      "remarks": [],
      "tenant_id": "acme"
    }
    "#);
    snapshot!(terminal.sees("tenant audit acme --against x"), @"
    error: the following required arguments were not provided:
      --verify

    Usage: mvm tenant audit --verify --against <FILE> <TENANT>

    For more information, try '--help'.
    [exit 2]
    ");
    let signed = std::fs::read_to_string(&kept).expect("a head");
    std::fs::write(&kept, signed.replace("\"count\": 2", "\"count\": 1")).expect("a file");
    snapshot!(terminal.sees(&against), @"
    ROOT/kept.json: the kept head is not to be believed: its signature does not fit its content
      try: use another copy: somebody changed this one
    [exit 1]
    ");
    std::fs::write(&kept, "{}").expect("a file");
    snapshot!(terminal.sees(&against), @"
    ROOT/kept.json: it is no head of an audit log: missing field `kind`
      try: keep what mvm tenant audit TENANT --head --json prints, or mvm node audit --head --json
    [exit 1]
    ");
    std::fs::write(&kept, &signed).expect("a file");
    // Root gives it the log of another tenant, which is whole in itself, and then one of its own that was made anew.
    terminal.sees("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    for name in ["audit.log", "audit.head"] {
        std::fs::copy(folder.join("tenants/globex").join(name), folder.join("tenants/acme").join(name))
            .expect("a copy");
    }
    snapshot!(terminal.sees("tenant audit acme --verify"), @"
    the audit log ROOT/tenants/acme/audit.log is broken at line 1, record 1: it is a line of another log
      try: put its files back from a copy; or mvm tenant audit acme --begin-anew, whose first record says what was lost
    [exit 1]
    ");
    std::fs::rename(folder.join("tenants/acme"), folder.join("acme")).expect("renamed");
    terminal.sees("tenant create acme --net-id 5 --subnet 10.240.5.0/24");
    for name in ["audit.log", "audit.head"] {
        std::fs::copy(folder.join("tenants/acme").join(name), folder.join("acme").join(name))
            .expect("a copy");
    }
    terminal.sees("tenant destroy acme --yes");
    std::fs::rename(folder.join("acme"), folder.join("tenants/acme")).expect("renamed");
    std::fs::remove_dir_all(folder.join("audit")).expect("the logs of destroyed tenants");
    snapshot!(terminal.sees(&against), @"
    the audit log was rewritten: record 2 has the hash HASH, and had HASH at 2026-01-02T03:04:05Z
      try: believe no line of this log that nobody else kept: who did that was root on this node
    [exit 1]
    ");
    // What is edited, cut or removed needs no kept head.
    let text = std::fs::read_to_string(&log).expect("a log");
    std::fs::write(&log, text.replacen("uid\":0", "uid\":7", 1)).expect("a log");
    snapshot!(terminal.sees(&against), @"
    the audit log ROOT/tenants/acme/audit.log is broken at line 1, record 1: its hash does not fit its content
      try: put its files back from a copy; or mvm tenant audit acme --begin-anew, whose first record says what was lost
    [exit 1]
    ");
    std::fs::write(&log, text.split_inclusive('\n').take(1).collect::<String>()).expect("a log");
    snapshot!(terminal.sees("tenant audit acme --verify"), @"
    record 2 is missing from the audit log at its end: ROOT/tenants/acme/audit.log was cut or removed
      try: put its files back from a copy; or mvm tenant audit acme --begin-anew, whose first record says what was lost
    [exit 1]
    ");
    snapshot!(terminal.sees("pool create acme/db --vmm sim"), @"
    the audit log ROOT/tenants/acme/audit.log is shorter than audit.head says: it was cut
      try: put its files back from a copy; or mvm tenant audit TENANT --begin-anew (of the node: mvm node audit --begin-anew), whose first record says what was lost
    [exit 1]
    ");
    std::fs::remove_file(&log).expect("a log");
    snapshot!(terminal.sees("tenant audit acme --head"), @"
    records 1 to 2 are missing from the audit log at its end: ROOT/tenants/acme/audit.log was cut or removed
      try: put its files back from a copy; or mvm tenant audit acme --begin-anew, whose first record says what was lost
    [exit 1]
    ");
    snapshot!(terminal.sees("tenant audit acme --begin-anew"), @"
    Give up the audit log of acme, and begin a new one? nobody is there to answer
      try: say --yes
    [exit 2]
    ");
    snapshot!(terminal.sees("tenant audit acme --begin-anew --yes"), @"acme has a new audit log, which says why; the files of the old one are beside it, as audit-N.*");
    snapshot!(terminal.sees("tenant audit acme --begin-anew --yes"), @"
    the audit log is whole up to its last record, 3: it is not begun anew
    [exit 4]
    ");
    snapshot!(terminal.sees("tenant audit acme"), @"
    2026-01-02 03:04:05Z  uid 0 done      audit.begin-anew  acme (records 1 to 2 are missing from the audit log at its end: ROOT/tenants/acme/audit.log was cut or removed; its head named record 2, HASH)
    2026-01-02 03:04:05Z  uid 0 observed  tenant.found      acme (network.gateway_ip 10.240.3.1, network.ipv4_subnet 10.240.3.0/24, network.offset_range none, network.tenant_net_id 3, pinned false, quotas.conns_per_second 200, quotas.disk_iops 0, quotas.disk_mbps 0, quotas.log_mib 16, quotas.max_conns 2000, quotas.max_disk_gib 500, quotas.max_instances_per_pool 256, quotas.max_mem_mib 65536, quotas.max_pools 16, quotas.max_running 100, quotas.max_vcpus 64, quotas.max_warm 100, quotas.net_mbps 0, quotas.net_pps 0, retention_days 90)
    2026-01-02 03:04:05Z  uid 0 observed  pool.found        acme/web (egress internet, insecure false, seccomp_policy baseline, vmm sim)
    ");
    snapshot!(terminal.sees(&against), @"
    the kept head is not of this log, whose first line says that it was begun anew at 2026-01-02T03:04:05Z: records 1 to 2 are missing from the audit log at its end: ROOT/tenants/acme/audit.log was cut or removed; its head named record 2, HASH
      try: ask who did that, and keep a new head; where nobody did, root on this node rewrote it: believe no line that nobody else kept
    [exit 1]
    ");
    // Another key, and the log that is kept of a tenant that is no more.
    std::fs::write(&kept, terminal.sees_json("tenant audit acme --head")).expect("a file");
    terminal.sees("tenant destroy acme --yes");
    snapshot!(terminal.sees(&against), @"
    7 records, chain whole
    as it was at 2026-01-02 03:04:05Z: record 3
    ");
    std::fs::remove_file(folder.join("node.key")).expect("a key");
    snapshot!(terminal.sees(&against), @"
    ROOT/kept.json: the kept head was signed with the key KEY, and this node has none
      try: put node.key back from a copy: nothing else says that this node signed it
    [exit 1]
    ");
    std::fs::write(folder.join("node.key"), "{}").expect("a key");
    snapshot!(terminal.sees(&against), @"
    ROOT/node.key is damaged: missing field `schema_version` at line 1 column 2
      try: put it back from a copy; docs/operating.md says what else can be done
    [exit 1]
    ");
    snapshot!(terminal.sees("node info"), @"
    node-ID
      memory      what the machine has less 512 MiB
      VMs         4000
      disk floor  256 MiB
      production  off
      key         cannot be read
    ROOT/node.key is damaged: missing field `schema_version` at line 1 column 2
      try: put it back from a copy; docs/operating.md says what else can be done
    [exit 1]
    ");
}
