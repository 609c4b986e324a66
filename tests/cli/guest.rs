//! Guests with an agent: what is shown of them, and what is said where they cannot be reached.

use crate::{Terminal, snapshot};

const PATH: &str = "acme/web/i-0f3a91c2";

fn with_agent() -> Option<Terminal> {
    let terminal = Terminal::new()?;
    terminal.sandbox.artifacts();
    terminal.sees("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    Some(terminal)
}

#[test]
fn a_guest_with_an_agent() {
    let Some(terminal) = with_agent() else { return };
    let (kernel, rootfs) = terminal.sandbox.artifacts();
    snapshot!(terminal.sees("pool create acme/web --vmm sim --mem 128 --data-disk 8 --insecure --agent required"), @"acme/web: 1 vCPU, 128 MiB, on the simulated VMM, egress internet        next: mvm pool import acme/web --oci-archive FILE, or --kernel FILE --rootfs FILE");
    let import = format!("pool import acme/web --kernel {} --rootfs {}", kernel.display(), rootfs.display());
    snapshot!(terminal.sees(&import), @"acme/web: revision SHORT verified and current, 4.0 MiB, base snapshot in MS ms        next: mvm instance create acme/web");
    terminal.sees("instance create acme/web");
    snapshot!(terminal.sees(&format!("instance exec -n {PATH} -- true")), @"
    acme/web/i-0f3a91c2 is ready: its guest hears nothing
      try: mvm instance start acme/web/i-0f3a91c2
    [exit 125]
    ");
    snapshot!(terminal.sees(&format!("instance cp /etc/hostname {PATH}:/root/")), @"
    acme/web/i-0f3a91c2 is ready: its guest hears nothing
      try: mvm instance start acme/web/i-0f3a91c2
    [exit 4]
    ");
    snapshot!(terminal.sees(&format!("instance start -v {PATH}")), @"
    i-0f3a91c2 10.240.3.3 MS ms: reserve MS, disks MS, directory MS, spawn MS, announce MS, tap MS, load MS, resume MS, identify MS, join MS
      confirmed: entropy MS, clock MS, mac MS, mtu MS, address MS, gateway MS, dns MS, hostname MS, machine-id MS, host-key MS, ssh-keys MS, data MS, workload MS, instance MS  (simulated: no guest runs)
    ");
    snapshot!(terminal.sees(&format!("instance info {PATH}")), @"
    acme/web/i-0f3a91c2
      state     running
      network   10.240.3.3 of 10.240.3.0/24 via 10.240.3.1, 02:fc:00:03:00:03, tn3i3
      gets      1 vCPU, 128 MiB memory, 8 MiB data disk
      revision  REVISION
      base      REVISION
      vmm       sim 1.16.1, pid PID, no jail, no limits, no seccomp filter
      worker    has said nothing
      workload  running as pid PID
      made      2026-01-02 03:04:05Z
      started   2026-01-02 03:04:05Z
      receipt   start MS ms: reserve MS, disks MS, directory MS, spawn MS, announce MS, tap MS, load MS, resume MS, identify MS, join MS
      confirmed entropy MS, clock MS, mac MS, mtu MS, address MS, gateway MS, dns MS, hostname MS, machine-id MS, host-key MS, ssh-keys MS, data MS, workload MS, instance MS
      host key  ssh-ed25519 KEY
    ");
    snapshot!(terminal.sees(&format!("instance exec -n {PATH} -- hostname")), @"i-0f3a91c2");
    snapshot!(terminal.sees(&format!("instance exec -n {PATH} -- nonesuch")), @"
    acme/web/i-0f3a91c2: the guest refused Exec: nonesuch: no such program
    [exit 127]
    ");
    snapshot!(terminal.sees(&format!("instance logs -t {PATH}")), @"2026-01-02 03:04:05Z workload of i-0f3a91c2 is up");
    snapshot!(terminal.sees(&format!("instance cp {PATH}:/none /tmp/none")), @"
    acme/web/i-0f3a91c2: the guest cannot send /none: /none: No such file or directory (os error 2)
    [exit 1]
    ");
    snapshot!(terminal.sees(&format!("instance cp /tmp {PATH}:etc")), @r#"
    error: invalid value 'acme/web/i-0f3a91c2:etc' for '<TO>': "etc": a path in a guest begins with /

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(terminal.sees("instance cp /tmp /etc"), @"
    both are on the host: cp does that
    [exit 2]
    ");
    terminal.sees(&format!("instance exec -n {PATH} -- worker busy"));
    terminal.sees("pool update acme/web --drain-timeout 0");
    snapshot!(terminal.sees(&format!("instance sleep {PATH}")), @"
    sleep failed at its step prepare: the guest refused SleepPrep: the workload is busy
      try: wait until it is done, or say --force: what is under way is cut off then
    [exit 4]
    ");
    terminal.sees(&format!("instance sleep --force {PATH}"));
    snapshot!(terminal.sees(&format!("instance exec -n {PATH} -- true")), @"
    acme/web/i-0f3a91c2 is sleeping: its guest hears nothing
      try: mvm instance wake acme/web/i-0f3a91c2
    [exit 125]
    ");
    snapshot!(terminal.sees(&format!("instance logs {PATH}")), @"
    acme/web/i-0f3a91c2 is sleeping: its guest hears nothing
      try: mvm instance wake acme/web/i-0f3a91c2
    [exit 4]
    ");
    snapshot!(terminal.sees(&format!("instance wake -v {PATH}")), @"
    i-0f3a91c2 awake in MS ms: reserve MS, check MS, directory MS, spawn MS, announce MS, tap MS, unpack MS, load MS, consume MS, resume MS, greet MS, join MS
      confirmed: entropy MS, clock MS, instance MS  (simulated: no guest runs)
    ");
    snapshot!(terminal.sees("tenant audit acme"), @"
    2026-01-02 03:04:05Z  uid 0 intent    tenant.create     acme (network.gateway_ip 10.240.3.1, network.ipv4_subnet 10.240.3.0/24, network.offset_range none, network.tenant_net_id 3, pinned false, quotas.conns_per_second 200, quotas.disk_iops 0, quotas.disk_mbps 0, quotas.log_mib 16, quotas.max_conns 2000, quotas.max_disk_gib 500, quotas.max_instances_per_pool 256, quotas.max_mem_mib 65536, quotas.max_pools 16, quotas.max_running 100, quotas.max_vcpus 64, quotas.max_warm 100, quotas.net_mbps 0, quotas.net_pps 0, retention_days 90)
    2026-01-02 03:04:05Z  uid 0 done      tenant.create     acme
    2026-01-02 03:04:05Z  uid 0 intent    pool.create       acme/web (egress internet, insecure true, seccomp_policy baseline, vmm sim)
    2026-01-02 03:04:05Z  uid 0 done      pool.create       acme/web (egress internet, insecure true, seccomp_policy baseline, vmm sim)
    2026-01-02 03:04:05Z  uid 0 intent    pool.import       acme/web revision SHORT
    2026-01-02 03:04:05Z  uid 0 done      pool.import       acme/web revision SHORT
    2026-01-02 03:04:05Z  uid 0 done      pool.base         acme/web revision SHORT (base snapshot REVISION)
    2026-01-02 03:04:05Z  uid 0 intent    instance.create   acme/web/i-0f3a91c2
    2026-01-02 03:04:05Z  uid 0 done      instance.create   acme/web/i-0f3a91c2 → created (address 10.240.3.3 mac 02:fc:00:03:00:03)
    2026-01-02 03:04:05Z  uid 0 intent    instance.start    acme/web/i-0f3a91c2 revision SHORT
    2026-01-02 03:04:05Z  uid 0 done      instance.start    acme/web/i-0f3a91c2 ready → running revision SHORT (sim 1.16.1 pid PID)
    2026-01-02 03:04:05Z  uid 0 done      instance.exec     acme/web/i-0f3a91c2 (hostname)
    2026-01-02 03:04:05Z  uid 0 done      instance.exec     acme/web/i-0f3a91c2 (nonesuch)
    2026-01-02 03:04:05Z  uid 0 done      instance.cp       acme/web/i-0f3a91c2 (from /none)
    2026-01-02 03:04:05Z  uid 0 done      instance.exec     acme/web/i-0f3a91c2 (worker)
    2026-01-02 03:04:05Z  uid 0 intent    pool.update       acme/web (runtime_policy.drain_timeout_seconds from 30 to 0)
    2026-01-02 03:04:05Z  uid 0 done      pool.update       acme/web (runtime_policy.drain_timeout_seconds from 30 to 0)
    2026-01-02 03:04:05Z  uid 0 intent    instance.sleep    acme/web/i-0f3a91c2 revision SHORT
    2026-01-02 03:04:05Z  uid 0 failed    instance.sleep    acme/web/i-0f3a91c2 (sleep failed at its step prepare: the guest refused SleepPrep: the workload is busy)
    2026-01-02 03:04:05Z  uid 0 intent    instance.sleep    acme/web/i-0f3a91c2 revision SHORT
    2026-01-02 03:04:05Z  uid 0 done      instance.sleep    acme/web/i-0f3a91c2 running → sleeping (N bytes of memory written)
    2026-01-02 03:04:05Z  uid 0 intent    instance.wake     acme/web/i-0f3a91c2 revision SHORT
    2026-01-02 03:04:05Z  uid 0 done      instance.wake     acme/web/i-0f3a91c2 sleeping → running (sim 1.16.1 pid PID)
    ");
}

#[test]
fn a_guest_without_one() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees(&format!("instance start {PATH}"));
    snapshot!(terminal.sees(&format!("instance exec -n {PATH} -- true")), @"
    acme/web/i-0f3a91c2 has no agent in its guest
      try: mvm instance console acme/web/i-0f3a91c2; a pool with --agent required has one
    [exit 125]
    ");
    snapshot!(terminal.sees(&format!("instance ssh {PATH}")), @"
    acme/web/i-0f3a91c2 has no agent in its guest
      try: mvm instance console acme/web/i-0f3a91c2; a pool with --agent required has one
    [exit 4]
    ");
}
