//! Real guests with an agent: clones of one base snapshot, what reaches into them, and their sleep.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Wrong, ensure, scenario, step, world::World};

/// How many guests start from one base.
const CLONES: usize = 6;
/// How often one of them sleeps and wakes.
const CYCLES: u32 = 20;
/// Emulated, a boot or a start takes its time.
const START_LIMIT: Duration = Duration::from_secs(240);

/// A guest that is reached through its agent.
struct Clone<'a> {
    world: &'a World,
    path: String,
    record: Value,
}

impl Clone<'_> {
    /// What a command prints, which must succeed.
    fn says(&self, command: &[&str]) -> Result<String, Wrong> {
        let (said, errors, code) = self.world.exec(&self.path, command)?;
        ensure(code == Some(0), || format!("{command:?} on {}: {code:?} {said}{errors}", self.path))?;
        Ok(said.trim_end().to_owned())
    }

    fn shell(&self, script: &str) -> Result<String, Wrong> {
        self.says(&["sh", "-c", script])
    }

    fn is_told(&self, verb: &str) -> Result<Value, Wrong> {
        self.world.ok(&format!("instance {verb} {}", self.path))
    }
}

fn clones<'a>(world: &'a World, options: &str, count: usize) -> Result<Vec<Clone<'a>>, Wrong> {
    step("a pool from the image, with its base snapshot", || world.agent_pool("acme/web", 3, options))?;
    step(&format!("{count} guests start from it"), || {
        world.ok_within(&format!("pool scale acme/web --running {count}"), START_LIMIT)
    })?;
    let list = world.ok("instance list")?;
    let clones: Vec<Clone> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|record| Clone {
            world,
            path: record["path"].as_str().unwrap_or_default().to_owned(),
            record: record.clone(),
        })
        .collect();
    ensure(clones.len() == count, || format!("{} of {count}", clones.len()))?;
    for clone in &clones {
        println!("    {}", receipt(&clone.record));
    }
    Ok(clones)
}

fn receipt(record: &Value) -> String {
    let receipt = &record["last_receipt"];
    let list = |field: &str, name: &str| {
        let all = receipt[field].as_array().into_iter().flatten();
        let text = all.map(|one| format!("{} {:.1}", one[name].as_str().unwrap_or_default(), one["ms"]));
        text.collect::<Vec<_>>().join(", ")
    };
    format!(
        "{} {} ms: {}\n      confirmed: {}",
        record["instance_id"].as_str().unwrap_or_default(),
        receipt["total_ms"],
        list("steps", "name"),
        list("confirmed", "fact")
    )
}

/// What no two guests may have in common, a line each.
const OWN: &str = "cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/uuid; \
    head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; \
    cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; cat /sys/class/net/eth0/address; \
    ip -4 -o address show dev eth0 | sed 's/.*inet \\([^ ]*\\).*/\\1/'";

#[test]
fn clones_of_one_base_are_six_guests() {
    scenario("six clones of one base", |world| {
        let clones = clones(world, "--mem 256 --data-disk 64", CLONES)?;
        step("they share no name, key, randomness or address", || {
            let known: Vec<Vec<String>> = clones
                .iter()
                .map(|clone| Ok(clone.shell(OWN)?.lines().map(str::to_owned).collect()))
                .collect::<Result<_, Wrong>>()?;
            for (clone, lines) in clones.iter().zip(&known) {
                let net = &clone.record["net"];
                ensure(lines.len() == 7 && lines[0] == clone.record["instance_id"], || format!("{lines:?}"))?;
                ensure(lines[5] == net["mac"], || format!("{} has {}", clone.path, lines[5]))?;
                let ip = format!("{}/24", net["guest_ip"].as_str().unwrap_or_default());
                ensure(lines[6] == ip, || format!("{} has {}", clone.path, lines[6]))?;
                let key = clone.record["host_key"].as_str().unwrap_or_default();
                ensure(key.ends_with(&lines[4]), || format!("{} has {}", clone.path, lines[4]))?;
            }
            for at in 0..7 {
                let values: BTreeSet<&str> = known.iter().map(|lines| lines[at].as_str()).collect();
                ensure(values.len() == CLONES, || format!("line {at}: {values:?}"))?;
            }
            Ok(())
        })?;
        step("each has its own data disk, name server and clock", || {
            for clone in &clones {
                clone.shell("echo $(cat /etc/hostname) > /data/whose; sync")?;
                let seen = clone.shell("cat /data/whose /etc/resolv.conf; date +%s; ip route")?;
                let lines: Vec<&str> = seen.lines().collect();
                let id = clone.record["instance_id"].as_str().unwrap_or_default();
                ensure(lines[..2] == [id, "nameserver 10.240.3.1"], || seen.clone())?;
                let clock: i64 = lines[2].parse().unwrap_or(0);
                let now = jiff::Timestamp::now().as_second();
                ensure((clock - now).abs() <= 3, || format!("its clock says {clock} at {now}"))?;
                ensure(seen.contains("default via 10.240.3.1"), || seen.clone())?;
            }
            Ok(())
        })?;
        step("all ping each other", || {
            for clone in &clones {
                for other in clones.iter().filter(|other| other.path != clone.path) {
                    let ip = other.record["net"]["guest_ip"].as_str().unwrap_or_default();
                    clone.says(&["ping", "-n", "-c", "1", "-W", "4", ip])?;
                }
            }
            Ok(())
        })?;
        step("one that is stopped and started is somebody new with the same name and disk", || {
            let clone = &clones[0];
            let before = clone.shell(OWN)?;
            clone.is_told("stop")?;
            world.ok_within(&format!("instance start {}", clone.path), START_LIMIT)?;
            let after = clone.shell(OWN)?;
            let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
            let same = |at: usize| before[at] == after[at];
            ensure([0, 1, 5, 6].into_iter().all(same), || format!("{before:?} {after:?}"))?;
            ensure([2, 3, 4].into_iter().all(|at| !same(at)), || format!("{before:?} {after:?}"))?;
            let whose = clone.shell("cat /data/whose")?;
            ensure(whose == before[0], || whose.clone())
        })
    });
}

#[test]
fn commands_and_files_reach_a_guest() {
    scenario("exec, cp, logs and ssh", |world| {
        let clones = clones(world, "--mem 256 --data-disk 64", 1)?;
        let clone = &clones[0];
        step("output, errors and codes are the command's", || {
            let (said, errors, code) =
                world.exec(&clone.path, &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
            ensure((said.as_str(), errors.as_str(), code) == ("out\n", "err\n", Some(7)), || {
                format!("{said:?} {errors:?} {code:?}")
            })?;
            let (_, _, code) = world.exec(&clone.path, &["nonesuch"])?;
            ensure(code == Some(127), || format!("{code:?}"))?;
            let (_, _, code) = world.exec(&clone.path, &["/etc/hostname"])?;
            ensure(code == Some(126), || format!("{code:?}"))?;
            let (_, _, code) = world.exec(&clone.path, &["sh", "-c", "kill -TERM $$"])?;
            ensure(code == Some(143), || format!("{code:?}"))
        })?;
        step("it has the kernel of the image, and few processes", || {
            println!(
                "    {}",
                clone.shell("uname -srm; ls -d /proc/[0-9]* | wc -l; grep VmRSS /proc/1/status")?
            );
            let resident: u64 = clone
                .shell("sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/status")?
                .parse()
                .unwrap_or(0);
            ensure((1..=3 << 10).contains(&resident), || format!("the agent has {resident} KiB resident"))
        })?;
        step("8 MiB go there and come back as they were", || {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let (there, back) = (folder.path().join("tree"), folder.path().join("back"));
            fs::create_dir_all(there.join("a/b")).map_err(|error| error.to_string())?;
            let content: Vec<u8> = (0..8_u32 << 20).map(|at| (at ^ (at >> 9)) as u8).collect();
            fs::write(there.join("a/b/big"), &content).map_err(|error| error.to_string())?;
            let begun = Instant::now();
            world.ok(&format!("instance cp {} {}:/data/tree", there.display(), clone.path))?;
            let sent = begun.elapsed();
            let begun = Instant::now();
            world.ok(&format!("instance cp {}:/data/tree {}", clone.path, back.display()))?;
            println!("    {:.1} s there, {:.1} s back", sent.as_secs_f64(), begun.elapsed().as_secs_f64());
            let again = fs::read(back.join("a/b/big")).map_err(|error| error.to_string())?;
            ensure(again == content, || "it is not what it was".into())
        })?;
        step("its numbers come from inside", || {
            let stats = clone.is_told("stats")?;
            println!("    {}", stats["guest"]);
            ensure(stats["guest"]["memory_bytes"].as_u64() > Some(100 << 20), || stats.to_string())
        })?;
        step("ssh logs in, without a network and without a question", || {
            let output = world.run(
                &format!("instance ssh {} -- -T cat /etc/hostname", clone.path),
                Duration::from_secs(60),
            )?;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure(said == clone.record["instance_id"].as_str().unwrap_or_default(), || {
                format!("{said:?} {errors}")
            })
        })
    });
}

#[test]
fn twenty_cycles_with_an_agent() {
    scenario("twenty sleeps of a clone", |world| {
        let clones = clones(world, "--mem 256 --data-disk 64", 2)?;
        let (clone, neighbour) = (&clones[0], &clones[1]);
        let boot_id = clone.says(&["cat", "/proc/sys/kernel/random/boot_id"])?;
        clone.shell("head -c 1000000 /dev/urandom > /run/kept; sha256sum /run/kept > /run/sum")?;
        let mut seen = BTreeSet::new();
        for cycle in 1..=CYCLES {
            let slept = clone.is_told("sleep")?;
            let woke = clone.is_told("wake")?;
            let ms = |record: &Value| record["last_receipt"]["total_ms"].as_f64().unwrap_or_default();
            println!("    {cycle}: slept in {:.0} ms, woke in {:.0} ms", ms(&slept), ms(&woke));
            clone.shell("sha256sum -c /run/sum")?;
            seen.insert(clone.says(&["cat", "/proc/sys/kernel/random/uuid"])?);
        }
        step("it is the same guest, with other randomness after each, and reaches its neighbour", || {
            ensure(seen.len() == CYCLES as usize, || format!("{seen:?}"))?;
            let now = clone.says(&["cat", "/proc/sys/kernel/random/boot_id"])?;
            ensure(now == boot_id, || format!("the boot id was {boot_id} and is {now}"))?;
            let ip = neighbour.record["net"]["guest_ip"].as_str().unwrap_or_default();
            clone.says(&["ping", "-n", "-c", "1", "-W", "4", ip]).map(drop)
        })?;
        step("a guest that slept for a day knows it", || {
            let before: i64 = clone.says(&["date", "+%s"])?.parse().unwrap_or(0);
            let uptime = |text: String| text.split('.').next().and_then(|text| text.parse::<i64>().ok());
            let up = uptime(clone.says(&["cat", "/proc/uptime"])?);
            clone.is_told("sleep")?;
            let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
            world.ok_with(
                &format!("instance wake {}", clone.path),
                ("MVM_FIXED_CLOCK", &tomorrow.to_string()),
            )?;
            let after: i64 = clone.says(&["date", "+%s"])?.parse().unwrap_or(0);
            ensure((86_400..86_500).contains(&(after - before)), || format!("{} s later", after - before))?;
            let since = uptime(clone.says(&["cat", "/proc/uptime"])?).zip(up).map(|(now, up)| now - up);
            ensure(since.is_some_and(|since| (0..100).contains(&since)), || format!("{since:?} s of uptime"))
        })?;
        step("one that is at work is not put to sleep, unless by force", || {
            world.ok("pool update acme/web --drain-timeout 1")?;
            clone.shell("touch /run/mvm/worker-busy")?;
            let refused =
                world.run(&format!("instance sleep {} --json", clone.path), Duration::from_secs(60))?;
            ensure(refused.status.code() == Some(4), || {
                String::from_utf8_lossy(&refused.stderr).into_owned()
            })?;
            clone.shell("touch /run/mvm/worker-idle")?;
            clone.is_told("sleep")?;
            clone.is_told("wake")?;
            clone.says(&["true"]).map(drop)
        })
    });
}

#[test]
fn one_line_runs_a_command() {
    scenario("mvm run", |world| {
        world.images()?;
        for _ in 0..2 {
            step("mvm run debian -- uname -a", || {
                let output = world.run("run debian -n -- uname -a", START_LIMIT)?;
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                println!("    {said}");
                ensure(output.status.success() && said.starts_with("Linux i-"), || {
                    String::from_utf8_lossy(&output.stderr).into_owned()
                })
            })?;
        }
        Ok(())
    });
}
