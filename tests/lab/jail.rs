//! A VMM in its jail, within its limits: what the kernel says of it, and what becomes of one that takes more.

use std::{fs, time::Duration};

use crate::{
    ensure, scenario, step,
    world::{says, wait_for},
};

/// A first start makes its base before.
const START_LIMIT: Duration = Duration::from_secs(240);

/// Where the lab has its cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

#[test]
fn a_jail_with_limits() {
    scenario("a jail with limits", |world| {
        step("a pool that takes no VMM without", || world.agent_pool("acme/web", 3, "--mem 256"))?;
        let made = world.ok("instance create acme/web")?;
        let path = made["path"].as_str().unwrap_or_default().to_owned();
        let started =
            step("a guest starts", || world.ok_within(&format!("instance start {path}"), START_LIMIT))?;
        let folder = world.cgroup(CGROUPS.as_ref(), &started);
        step("it lacks nothing, and the kernel says what it may use", || {
            let vmm = &started["vmm"];
            ensure(vmm["lacks"] == serde_json::json!([]), || vmm.to_string())?;
            let limits = &vmm["limits"];
            let memory: u64 = says(&folder, "memory.max").parse().unwrap_or(0);
            ensure(limits["memory_max"] == memory, || limits.to_string())?;
            ensure(limits["memory_max"].as_u64() == Some((256 + 64 + 4) << 20), || limits.to_string())?;
            let others = ["cpu.max", "pids.max", "memory.swap.max"].map(|name| says(&folder, name));
            let swap = if folder.join("memory.swap.max").exists() { "0" } else { "" };
            ensure(others == ["125000 100000", "64", swap], || format!("{others:?}"))?;
            let of = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", vmm["pid"]));
            let own = of("cgroup").unwrap_or_default();
            let place = folder.strip_prefix(CGROUPS).unwrap_or(&folder);
            ensure(own.trim() == format!("0::/{}", place.display()), || own.clone())?;
            let status = of("status").unwrap_or_default();
            ensure(status.contains("CapEff:\t0000000000000000"), || status.clone())
        })?;
        step("what becomes of it for its limits can be asked", || {
            let none = serde_json::json!({ "oom": 0, "oom_kills": 0 });
            let info = world.ok(&format!("instance info {path}"))?;
            ensure(info["memory_events"] == none, || info["memory_events"].to_string())
        })?;
        step("the disk is held too, as fast as its two disks may be together", || {
            world.ok("tenant update acme --disk-mbps 30")?;
            world.ok(&format!("instance stop {path} --force"))?;
            let limited = world.ok(&format!("instance start {path}"))?;
            let io = serde_json::json!({ "bytes_per_s": 60_000_000, "ops_per_s": 0 });
            ensure(limited["vmm"]["limits"]["io"] == io, || limited["vmm"]["limits"].to_string())?;
            let said = says(&folder, "io.max");
            ensure(said.contains("rbps=60000000 wbps=60000000 riops=max wiops=max"), || said.clone())?;
            world.ok(&format!("instance warm {path}"))?;
            world.ok(&format!("instance resume {path}"))?;
            ensure(says(&folder, "io.max") == said, || says(&folder, "io.max"))?;
            // A sleep that does not come about lets it go, and takes it back.
            world.ok("pool update acme/web --drain-timeout 1")?;
            world.exec(&path, &["touch", "/run/mvm/worker-busy"])?;
            ensure(world.ok(&format!("instance sleep {path}")).is_err(), || "it slept at work".to_owned())?;
            world.killed_at("sleep.sums", &format!("instance sleep {path} --force"))?;
            world.ok("node recover")?;
            world.exec(&path, &["touch", "/run/mvm/worker-idle"])?;
            ensure(says(&folder, "io.max") == said, || format!("after sleeps: {}", says(&folder, "io.max")))
        })?;
        step("so it is after a sleep", || {
            world.ok(&format!("instance sleep {path}"))?;
            ensure(!folder.exists(), || format!("{} is left", folder.display()))?;
            let woken = world.ok(&format!("instance wake {path}"))?;
            ensure(woken["vmm"]["lacks"] == serde_json::json!([]), || woken["vmm"].to_string())?;
            world.exec(&path, &["true"]).map(drop)
        })?;
        step("one that takes more than its limit is killed, and that is said", || {
            // Less than its guest has: as if its VMM grew.
            fs::write(folder.join("memory.max"), (96_u64 << 20).to_string())
                .map_err(|error| error.to_string())?;
            let info = world.ok(&format!("instance info {path}"))?;
            let limits = &info["vmm"]["limits"];
            ensure(limits["memory_max"].as_u64() == Some(96 << 20), || limits.to_string())?;
            let _eats = world.begins(&path, &["tail", "/dev/zero"])?;
            wait_for("the instance is stopped", Duration::from_secs(120), || {
                let info = world.ok(&format!("instance info {path}")).ok()?;
                (info["status"] == "stopped").then_some(info)
            })
            .and_then(|info| {
                let why = info["last_exit"]["why"].as_str().unwrap_or_default().to_owned();
                ensure(why.contains("needed more memory than its limit"), || why.clone())
            })?;
            ensure(!world.cgroups(CGROUPS.as_ref()).exists(), || "cgroups are left".to_owned())
        })?;
        step("and starts again within its limits", || {
            let again = world.ok_within(&format!("instance start {path}"), START_LIMIT)?;
            ensure(again["vmm"]["lacks"] == serde_json::json!([]), || again["vmm"].to_string())
        })
    });
}
