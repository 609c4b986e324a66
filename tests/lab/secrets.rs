//! Secrets in real guests: where they are there, how they change, and that the memory of their base holds none.

use std::{fs, time::Duration};

use crate::{
    Wrong, ensure, scenario, step,
    support::searcher::{Needles, marker},
    world::World,
};

/// Emulated, a start takes its time.
const START_LIMIT: Duration = Duration::from_secs(240);

fn shell(world: &World, path: &str, script: &str) -> Result<String, Wrong> {
    let (said, errors, code) = world.exec(path, &["sh", "-c", script])?;
    ensure(code == Some(0), || format!("{script}: {code:?} {said}{errors}"))?;
    Ok(said.trim_end().to_owned())
}

#[test]
fn secrets_reach_real_guests_and_no_base() {
    scenario("secrets", |world| {
        let (old, new) = (marker(), marker());
        let files = tempfile::tempdir().map_err(|error| error.to_string())?;
        let file = files.path().join("secret");
        let change = |verb: &str, content: &str| {
            fs::write(&file, content).map_err(|error| error.to_string())?;
            world.ok(&format!("tenant secrets {verb} acme DB --file {}", file.display()))
        };
        step("a pool from the image, with its base snapshot", || {
            world.agent_pool("acme/web", 3, "--mem 256 --data-disk 0 --on-rotate exec:/bin/true")
        })?;
        step("two guests start with a secret", || {
            change("set", &old)?;
            world.ok_within("pool scale acme/web --running 2", START_LIMIT)
        })?;
        let list = world.ok("instance list")?;
        let paths: Vec<String> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["path"].as_str().map(str::to_owned))
            .collect();
        step("it is where nobody can write, and nobody else reads", || {
            for path in &paths {
                let has = shell(world, path, "cat /run/secrets/DB")?;
                ensure(has == old, || has.clone())?;
                let mount = shell(world, path, "grep ' /run/secrets ' /proc/mounts")?;
                ensure(mount.contains(" tmpfs ro,nosuid,nodev,noexec,"), || mount.clone())?;
                let refused = "! echo x >/run/secrets/DB && ! rm /run/secrets/DB && setpriv --reuid 65534 true && \
                    ! setpriv --reuid 65534 cat /run/secrets/DB";
                shell(world, path, &format!("({refused}) 2>/dev/null"))?;
            }
            Ok(())
        })?;
        step("it changes in both while they run", || {
            let said = change("rotate", &new)?;
            ensure(said["given"].as_array().map(Vec::len) == Some(2), || said.to_string())?;
            for path in &paths {
                let has = shell(world, path, "cat /run/secrets/DB")?;
                ensure(has == new, || has.clone())?;
            }
            Ok(())
        })?;
        step("asleep it is in that guest's memory, and in no base", || {
            world.ok(&format!("instance sleep {}", paths[0]))?;
            let pool = world.root().join("tenants/acme/pools/web");
            let own = world.folder(&paths[0]).join("snapshots/delta");
            let needles = [Needles::of(&old), Needles::of(&new)];
            let found = needles[1].in_files(&own);
            ensure(found.iter().any(|file| file.starts_with("mem.")), || format!("{found:?}"))?;
            for needle in &needles {
                let base = needle.in_files(&pool.join("snapshots"));
                let logs = needle.in_files(&world.folder(&paths[1]));
                ensure(base.is_empty() && logs.is_empty(), || format!("{base:?} {logs:?}"))?;
            }
            Ok(())
        })?;
        step("it wakes with what was rotated meanwhile", || {
            change("rotate", &old)?;
            world.ok(&format!("instance wake {}", paths[0]))?;
            let has = shell(world, &paths[0], "cat /run/secrets/DB")?;
            ensure(has == old, || has.clone())
        })
    });
}
