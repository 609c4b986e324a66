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
    snapshot!(terminal.sees("tenant update acme --max-running 7 --retention-days 3"), @"acme updated; quotas hold at once, rates of disks and network from the next start");
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
    2026-01-02 03:04:05Z  uid 0 intent    tenant.create     acme (net id 3 subnet 10.240.3.0/24)
    2026-01-02 03:04:05Z  uid 0 done      tenant.create     acme
    2026-01-02 03:04:05Z  uid 0 intent    pool.create       acme/web
    2026-01-02 03:04:05Z  uid 0 done      pool.create       acme/web
    ");
    snapshot!(terminal.sees_json("tenant audit acme"), @r#"
    [
      {
        "seq": 1,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N
        },
        "what": "tenant.create",
        "path": "acme",
        "phase": "intent",
        "detail": "net id 3 subnet 10.240.3.0/24",
        "prev": "HASH"
      },
      {
        "seq": 2,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N
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
          "pid": N
        },
        "what": "pool.create",
        "path": "acme/web",
        "phase": "intent",
        "prev": "HASH"
      },
      {
        "seq": 4,
        "at": "2026-01-02T03:04:05Z",
        "who": {
          "uid": 0,
          "via": "cli",
          "pid": N
        },
        "what": "pool.create",
        "path": "acme/web",
        "phase": "done",
        "prev": "HASH"
      }
    ]
    "#);
    snapshot!(terminal.sees("tenant audit acme --verify"), @"4 records, chain whole");
    snapshot!(terminal.sees_json("tenant audit acme --verify"), @r#"
    {
      "ok": true,
      "records": 4,
      "tenant_id": "acme"
    }
    "#);
    snapshot!(terminal.sees_json("tenant audit acme --head"), @r#"
    {
      "schema_version": 1,
      "count": 4,
      "hash": "HASH",
      "bytes": N
    }
    "#);
    snapshot!(terminal.sees("events -n 1"), @"2026-01-02 03:04:05Z  uid 0 done      pool.create       acme/web");
    snapshot!(terminal.sees_json("events -n 1"), @r#"{"seq":4,"at":"2026-01-02T03:04:05Z","who":{"uid":0,"via":"cli","pid": N},"what":"pool.create","path":"acme/web","phase":"done","prev":"REVISION"}"#);
}
