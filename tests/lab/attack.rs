//! What root in a guest can do to the VMM around it: its devices, ports, registers, vsock and metadata are hit with what no driver
//! sends. Whatever becomes of that VMM, the host and another tenant's guest are as before. docs/attacks.md says what came of an hour
//! of it.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{Wrong, ensure, scenario, step, world::World};

/// How often each is done. The hour of docs/attacks.md was this with a higher number.
const ROUNDS: u32 = 1;
/// A first start makes its base before.
const START_LIMIT: Duration = Duration::from_secs(240);
/// An attack is ended then, inside the guest.
const SECONDS: u32 = 20;
/// Descriptors of a VMM: devices, sockets, and connections that a guest may hold open at the same time.
const MOST_FDS: usize = 1200;

/// Where Firecracker 1.16 puts virtio devices, one after another, a page each.
const MMIO: u64 = 0xc000_1000;

/// Takes the drivers off two devices: what a driver has is not for the kernel's programs to write to.
const UNBIND: &str = "for v in /sys/bus/virtio/devices/virtio*; do case $(cat $v/device) in 0x0001|0x0004) \
    basename $(dirname $(readlink -f $v)) >/sys/bus/platform/drivers/virtio-mmio/unbind;; esac; done;";

/// An attack: its name, and the shell line that does it.
fn attacks() -> Vec<(&'static str, String)> {
    let random = "od -An -N4 -tu4 /dev/urandom | tr -d ' '";
    vec![
        (
            "registers of virtio devices",
            format!(
                "{UNBIND} for d in 0 1 2 3 4 5; do for i in $(seq 40); do o=$(( ($({random}) % 64) * 4 )); \
                 busybox devmem $(( {MMIO} + d * 4096 + o )) 32 $({random}); done; done"
            ),
        ),
        (
            "queues of virtio devices that lead outside of memory",
            format!(
                "{UNBIND} for d in 0 1 2 3 4; do b=$(( {MMIO} + d * 4096 )); for q in 0 1 2; do \
                 busybox devmem $((b+0x30)) 32 $q; busybox devmem $((b+0x38)) 32 65535; \
                 for r in 0x80 0x84 0x90 0x94 0xa0 0xa4; do busybox devmem $((b+r)) 32 4294967040; done; \
                 busybox devmem $((b+0x44)) 32 1; busybox devmem $((b+0x70)) 32 15; busybox devmem $((b+0x50)) 32 $q; \
                 done; done"
            ),
        ),
        (
            "I/O ports",
            "for p in 32 33 64 67 96 112 113 160 161 1016 1017 1019 1020 3320 3324; do for i in $(seq 20); do \
             dd if=/dev/urandom of=/dev/port bs=1 count=1 seek=$p conv=notrunc 2>/dev/null; done; done"
                .into(),
        ),
        (
            "model-specific registers",
            "modprobe msr; for i in $(seq 400); do dd if=/dev/urandom of=/dev/cpu/0/msr bs=8 count=1 \
             seek=$(od -An -N2 -tu2 /dev/urandom | tr -d ' ') conv=notrunc 2>/dev/null; done; true"
                .into(),
        ),
        (
            "a flood of vsock connections",
            "perl -e 'use Socket; my @held; for my $n (1 .. 20000) { socket(my $s, 40, SOCK_STREAM | 2048, 0) or next; \
             connect($s, pack(\"S S L L x4\", 40, 0, $n, 2)); push @held, $s; @held = () if @held > 1000 }'"
                .into(),
        ),
        (
            "metadata: tokens that are none, paths that lead out, connections that say nothing",
            "perl -e 'use Socket; my @held; for my $n (1 .. 200) { socket(my $s, PF_INET, SOCK_STREAM | 2048, 0); \
             connect($s, pack_sockaddr_in(80, inet_aton(\"169.254.169.254\"))); select(undef, undef, undef, 0.02); \
             send($s, (\"GET /../../etc/passwd HTTP/1.1\\r\\nX-metadata-token: \" . \"A\" x 3000 . \"\\r\\n\\r\\n\", \
             \"PUT /latest/api/token HTTP/1.1\\r\\nContent-Length: 99999999999\\r\\n\\r\\n\", \"\\0\" x 2000, \"G\")[$n % 4], 0); \
             push @held, $s }'"
                .into(),
        ),
        (
            "frames of any kind and length",
            "perl -e 'use Socket; socket(my $s, 17, SOCK_RAW, 768); open my $i, \"/sys/class/net/eth0/ifindex\"; \
             my $to = pack(\"S n i x12\", 17, 3, <$i>); open my $r, \"/dev/urandom\"; \
             for (1 .. 20000) { read $r, my $f, 14 + int rand 1400; send($s, $f, 0, $to) }'"
                .into(),
        ),
        (
            "its disks beyond their ends, and read-only ones",
            "for d in vda vdb; do dd if=/dev/urandom of=/dev/$d bs=4096 count=4 seek=$(( 1 << 40 )) oflag=direct; \
             dd if=/dev/$d of=/dev/null bs=4096 count=4 skip=$(( 1 << 40 )) iflag=direct; done; \
             dd if=/dev/urandom of=/dev/vda bs=4096 count=1 oflag=direct; true"
                .into(),
        ),
        ("all of its memory", "tail -c 1G /dev/zero | tail -n 1 | wc -c; true".into()),
        ("processes without end", "for i in $(seq 2000); do sleep 15 & done; wait".into()),
        ("its own agent", "kill -STOP 1; kill -SEGV 1; echo c >/proc/sysrq-trigger".into()),
    ]
}

/// A guest and its VMM.
fn running(world: &World, path: &str) -> Result<Value, Wrong> {
    let info = world.ok(&format!("instance info {path}"))?;
    match info["status"] == "running" {
        true => Ok(info),
        false => world.ok_within(&format!("instance start {path}"), START_LIMIT),
    }
}

/// What of a VMM could tell that somebody got out of the guest.
fn is_kept_to_itself(world: &World, record: &Value) -> Result<(), Wrong> {
    let pid = record["vmm"]["pid"].to_string();
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Ok(()) };
    ensure(status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"), || {
        status.clone()
    })?;
    let uid = record["vmm"]["uid"].to_string();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ensure(uids.split_whitespace().all(|one| one == uid), || uids.to_owned())?;
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    ensure(fds < MOST_FDS, || format!("it has {fds} descriptors"))?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    ensure(tasks <= 4, || format!("it has {tasks} threads"))?;
    // Nothing is in its folder that was not there.
    let tap = record["net"]["tap_dev"].as_str().unwrap_or_default();
    let folder = world.root().join("run/firecracker").join(tap).join("root");
    let names: Vec<String> = fs::read_dir(folder).map_or(Vec::new(), |all| {
        all.flatten().map(|one| one.file_name().to_string_lossy().into_owned()).collect()
    });
    let known = [
        "api.sock",
        "v.sock",
        "console.in",
        "console.log",
        "vmm.log",
        "data.ext4",
        "rootfs.ext4",
        "vmlinux",
        "initrd",
        "base",
        "delta",
        "dev",
        "firecracker",
        "filter.seccomp",
        "run",
        "sys",
        "proc",
        "etc",
    ];
    let strange: Vec<&String> = names.iter().filter(|name| !known.contains(&name.as_str())).collect();
    ensure(strange.is_empty(), || format!("in its folder: {strange:?}"))
}

#[test]
fn root_in_a_guest_breaks_nothing_but_its_own_guest() {
    scenario("attacks on the VMM", |world| {
        step("an attacker, and a guest of another tenant", || {
            world.agent_pool("acme/web", 3, "--mem 256 --data-disk 64 --seccomp strict")?;
            world.agent_pool("globex/web", 4, "--mem 256 --data-disk 64")
        })?;
        let mut paths = Vec::new();
        for pool in ["acme/web", "globex/web"] {
            let made = world.ok(&format!("instance create {pool}"))?;
            paths.push(made["path"].as_str().unwrap_or_default().to_owned());
        }
        let (attacker, other) = (&paths[0], &paths[1]);
        let other_vmm = running(world, other)?["vmm"]["pid"].clone();
        for round in 1..=ROUNDS {
            for (name, line) in attacks() {
                step(&format!("{round}: {name}"), || {
                    let record = running(world, attacker)?;
                    let limited = format!("timeout {SECONDS} sh -c \"$0\" 2>&1 | tail -n 2");
                    let said = match world.exec(attacker, &["sh", "-c", &limited, &line]) {
                        Ok((said, errors, code)) => format!("{code:?} {} {}", said.trim(), errors.trim()),
                        Err(wrong) => wrong,
                    };
                    println!("    it said: {}", said.replace('\n', "; "));
                    is_kept_to_itself(world, &record)?;
                    let after = world.ok(&format!("instance info {attacker}"))?;
                    println!("    {}: {}", after["status"], after["last_exit"]["why"]);
                    world.run(&format!("instance stop --force {attacker}"), START_LIMIT)?;
                    let (said, errors, code) =
                        world.exec(other, &["sh", "-c", "cat /data/mine 2>/dev/null; echo well"])?;
                    ensure(code == Some(0) && said == "well\n", || {
                        format!("the other guest: {said}{errors}")
                    })?;
                    let info = world.ok(&format!("instance info {other}"))?;
                    ensure(info["vmm"]["pid"] == other_vmm, || "the other guest has another VMM".to_owned())
                })?;
            }
        }
        step("the network and the record are whole", || {
            let verified = world.ok("net verify")?;
            ensure(verified["ok"] == true, || verified.to_string())?;
            for tenant in ["acme", "globex"] {
                world.ok(&format!("tenant audit {tenant} --verify"))?;
            }
            Ok(())
        })
    });
}
