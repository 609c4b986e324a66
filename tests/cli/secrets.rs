//! `mvm tenant secrets …`

use std::fs;

use crate::{Terminal, snapshot};

#[test]
fn secrets_are_named_and_never_shown() {
    let Some(terminal) = Terminal::new() else { return };
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    snapshot!(terminal.sees("tenant secrets list acme"), @"no secrets yet        next: mvm tenant secrets set acme NAME --file FILE");
    let file = terminal.sandbox.root().join("one");
    let put = |content: &str| fs::write(&file, content).expect("a file");
    let change = |verb: &str| {
        terminal.sees(&format!("tenant secrets {verb} acme DB_PASSWORD --file {}", file.display()))
    };
    put("hunter2");
    snapshot!(change("set"), @"
    acme: DB_PASSWORD is version 1 now
    no master key was given: one was made, ROOT/master.key, beside what it protects
    ");
    snapshot!(change("set"), @"acme: DB_PASSWORD is like that already, version 1");
    put("hunter3");
    snapshot!(change("set"), @"
    tenant acme has a secret DB_PASSWORD with another content
      try: mvm tenant secrets rotate acme DB_PASSWORD, if it shall be another one
    [exit 4]
    ");
    snapshot!(change("rotate"), @"acme: DB_PASSWORD is version 2 now");
    snapshot!(terminal.sees("tenant secrets list acme"), @"
    NAME         VERSION  HASH              SINCE
    DB_PASSWORD  2        KEYED             2026-01-02 03:04:05Z
    ");
    snapshot!(terminal.sees_json("tenant secrets list acme"), @r#"
    [
      {
        "name": "DB_PASSWORD",
        "version": 2,
        "hash": "KEYED",
        "updated_at": "2026-01-02T03:04:05Z"
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
      secrets   1
    ");
    snapshot!(terminal.sees_json("tenant secrets remove acme DB_PASSWORD"), @r#"
    {
      "tenant_id": "acme",
      "name": "DB_PASSWORD",
      "changed": true,
      "given": [],
      "failed": [],
      "no_agent": []
    }
    "#);
    snapshot!(terminal.sees("tenant secrets remove acme DB_PASSWORD"), @"
    tenant acme has no secret DB_PASSWORD
      try: mvm tenant secrets list acme
    [exit 3]
    ");
    snapshot!(terminal.sees("tenant secrets set acme .hidden"), @r#"
    error: invalid value '.hidden' for '<NAME>': ".hidden" is not the name of a secret: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', not beginning with '.'

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(terminal.sees("tenant secrets set acme EMPTY"), @"
    the secret is empty
      try: --file FILE, or the secret on stdin
    [exit 2]
    ");
    snapshot!(terminal.sees("tenant audit acme"), @"
    2026-01-02 03:04:05Z  uid 0 intent    tenant.create     acme (network.gateway_ip 10.240.3.1, network.ipv4_subnet 10.240.3.0/24, network.offset_range none, network.tenant_net_id 3, pinned false, quotas.conns_per_second 200, quotas.disk_iops 0, quotas.disk_mbps 0, quotas.log_mib 16, quotas.max_conns 2000, quotas.max_disk_gib 500, quotas.max_instances_per_pool 256, quotas.max_mem_mib 65536, quotas.max_pools 16, quotas.max_running 100, quotas.max_vcpus 64, quotas.max_warm 100, quotas.net_mbps 0, quotas.net_pps 0, retention_days 90)
    2026-01-02 03:04:05Z  uid 0 done      tenant.create     acme
    2026-01-02 03:04:05Z  uid 0 intent    tenant.secrets.set acme (DB_PASSWORD from none to 1)
    2026-01-02 03:04:05Z  uid 0 done      tenant.secrets.set acme (DB_PASSWORD from none to 1)
    2026-01-02 03:04:05Z  uid 0 intent    tenant.secrets.rotate acme (DB_PASSWORD from 1 to 2)
    2026-01-02 03:04:05Z  uid 0 done      tenant.secrets.rotate acme (DB_PASSWORD from 1 to 2)
    2026-01-02 03:04:05Z  uid 0 intent    tenant.secrets.remove acme (DB_PASSWORD from 2 to none)
    2026-01-02 03:04:05Z  uid 0 done      tenant.secrets.remove acme (DB_PASSWORD from 2 to none)
    ");
}
