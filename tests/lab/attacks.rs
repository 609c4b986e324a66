//! What root in a Debian guest can do to the VMM around it: vsock, metadata, network and disks are hit with what no driver sends,
//! and the guest itself is brought down. Whatever becomes of that VMM, the host and another tenant's guest are as before. (What
//! only a kernel reaches, ports and registers, is hit in `tests/attack/`.)

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{Wrong, ensure, scenario, step, world::World};

/// A first start makes its base before.
const START_LIMIT: Duration = Duration::from_secs(240);
/// An attack is ended then, inside the guest.
const SECONDS: u32 = 40;
/// Connections that are just being closed.
const MORE_FDS: usize = 16;

/// What a guest does, and what comes of it.
struct Attack {
    name: &'static str,
    /// A line of shell.
    line: &'static str,
    /// What it says when it has done it; nothing where the guest may not outlive it.
    says: Option<&'static str>,
}

const ATTACKS: [Attack; 7] = [
    Attack {
        name: "a flood of vsock connections to ports of the host",
        line: "perl -e 'use Socket; my ($n, $in, $end) = (0, 0, time + 15); while (time < $end) { \
               socket(my $s, 40, SOCK_STREAM, 0) or die; $in++ if connect($s, pack(\"S S L L x4\", 40, 0, ++$n, 2)) } \
               print $n > 100 ? \"many tried, $in taken\" : \"only $n tried\"'",
        says: Some("many tried, 0 taken"),
    },
    Attack {
        name: "metadata: tokens that are none, paths that lead out, connections that say nothing",
        line: "perl -e 'use Socket; my @held; sub to { socket(my $s, PF_INET, SOCK_STREAM | $_[0], 0) or die; \
               connect($s, pack_sockaddr_in(80, inet_aton(\"169.254.169.254\"))); $s } for my $n (1 .. 200) { my $s = to(2048); \
               select(undef, undef, undef, 0.02); \
               send($s, (\"GET /../../etc/passwd HTTP/1.1\\r\\nX-metadata-token: \" . \"A\" x 3000 . \"\\r\\n\\r\\n\", \
               \"PUT /latest/api/token HTTP/1.1\\r\\nContent-Length: 99999999999\\r\\n\\r\\n\", \"\\0\" x 2000, \"G\")[$n % 4], 0); \
               push @held, $s } @held = (); my $s = to(0); syswrite($s, \"GET /latest/meta-data HTTP/1.1\\r\\n\\r\\n\"); \
               sysread($s, my $said, 12); print \"afterwards $said\"'",
        says: Some("afterwards HTTP/1.1 401"),
    },
    Attack {
        name: "frames of any kind and length",
        line: "perl -e 'use Socket; socket(my $s, 17, SOCK_RAW, 768) or die; open my $i, \"/sys/class/net/eth0/ifindex\"; \
               my $to = pack(\"S n i x12\", 17, 3, <$i>); open my $r, \"/dev/urandom\"; my $n = 0; \
               for (1 .. 20000) { read $r, my $f, 14 + int rand 1400; $n++ if send($s, $f, 0, $to) } \
               print $n > 1000 ? \"many sent\" : \"only $n sent\"'",
        says: Some("many sent"),
    },
    Attack {
        name: "its disks beyond their ends, and read-only ones",
        line: "n=0; for d in vda vdb; do dd if=/dev/urandom of=/dev/$d bs=4096 count=4 seek=$(( 1 << 40 )) oflag=direct || n=$((n + 1)); \
               test \"$(dd if=/dev/$d bs=4096 count=4 skip=$(( 1 << 40 )) iflag=direct | wc -c)\" != 0 || n=$((n + 1)); done; \
               dd if=/dev/urandom of=/dev/vda bs=4096 count=1 oflag=direct || n=$((n + 1)); echo; echo \"refused $n\"",
        says: Some("refused 5"),
    },
    Attack { name: "all of its memory", line: "tail -c 1G /dev/zero | tail -n 1 | wc -c", says: None },
    Attack {
        name: "processes without end",
        line: "for i in $(seq 2000); do sleep 15 & done; wait",
        says: None,
    },
    Attack {
        name: "its own agent, and its kernel",
        line: "kill -STOP 1; kill -SEGV 1; echo c >/proc/sysrq-trigger",
        says: None,
    },
];

/// A guest and its VMM.
fn running(world: &World, path: &str) -> Result<Value, Wrong> {
    let info = world.ok(&format!("instance info {path}"))?;
    match info["status"] == "running" {
        true => Ok(info),
        false => world.ok_within(&format!("instance start {path}"), START_LIMIT),
    }
}

fn descriptors(record: &Value) -> usize {
    fs::read_dir(format!("/proc/{}/fd", record["vmm"]["pid"])).map_or(0, Iterator::count)
}

/// What of a VMM could tell that somebody got out of the guest.
fn is_kept_to_itself(world: &World, record: &Value) -> Result<(), Wrong> {
    let pid = record["vmm"]["pid"].to_string();
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| format!("its VMM: {error}"))?;
    ensure(status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"), || {
        status.clone()
    })?;
    let uid = record["vmm"]["uid"].to_string();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ensure(uids.split_whitespace().all(|one| one == uid), || uids.to_owned())?;
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
        "firecracker.pid",
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
            world.agent_pool("acme/web", 3, "--mem 256 --data-disk 64")?;
            world.agent_pool("globex/web", 4, "--mem 256 --data-disk 64")
        })?;
        let mut paths = Vec::new();
        for pool in ["acme/web", "globex/web"] {
            let made = world.ok(&format!("instance create {pool}"))?;
            paths.push(made["path"].as_str().unwrap_or_default().to_owned());
        }
        let (attacker, other) = (&paths[0], &paths[1]);
        let other_vmm = running(world, other)?["vmm"]["pid"].clone();
        for Attack { name, line, says } in ATTACKS {
            step(name, || {
                let record = running(world, attacker)?;
                let fds = descriptors(&record);
                let limited = format!("timeout {SECONDS} sh -c \"$0\" 2>&1 | tail -n 1");
                let said = match world.exec(attacker, &["sh", "-c", &limited, line]) {
                    Ok((said, ..)) => said.trim().to_owned(),
                    Err(wrong) => wrong,
                };
                if let Some(says) = says {
                    ensure(said == says, || format!("it said {said:?}"))?;
                    is_kept_to_itself(world, &record)?;
                    let now = descriptors(&record);
                    ensure(now <= fds + MORE_FDS, || format!("{fds} descriptors, and then {now}"))?;
                }
                let after = world.ok(&format!("instance info {attacker}"))?;
                println!("    {}: {}", after["status"], after["last_exit"]["why"]);
                world.run(&format!("instance stop --force {attacker}"), START_LIMIT)?;
                let (said, errors, code) = world.exec(other, &["sh", "-c", "echo well"])?;
                ensure(code == Some(0) && said == "well\n", || format!("the other guest: {said}{errors}"))?;
                let info = world.ok(&format!("instance info {other}"))?;
                ensure(info["vmm"]["pid"] == other_vmm, || "the other guest has another VMM".to_owned())
            })?;
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
