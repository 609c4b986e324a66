//! What is done to tenants, pools and the node.

use mvm::{
    infra::config::{Environment, Roots},
    security::audit::{self, Entry, Phase},
};

use crate::{
    Case, assert_precious, data_disk, destroy_all_instances, kill_everywhere,
    support::{self, Sandbox, was_killed},
    write_precious,
};

#[test]
fn tenant_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    let case = Case {
        operation: "tenant create acme --net-id 3 --subnet 10.240.3.0/24",
        reset: &|sandbox| {
            if !sandbox.ok("tenant list").as_array().is_none_or(Vec::is_empty) {
                sandbox.ok("tenant destroy acme --yes");
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn tenant_destroy_with_all_in_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let reset = |sandbox: &Sandbox| {
        if !sandbox.ok("tenant list").as_array().is_none_or(Vec::is_empty) {
            sandbox.ok("tenant destroy acme --yes --wipe-volumes");
        }
        sandbox.pool("sim");
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        sandbox.ok(&format!("tenant secrets set acme DB --file {}", secret(sandbox, "one")));
    };
    reset(&sandbox);
    let case = Case {
        operation: "tenant destroy acme --yes --wipe-volumes",
        reset: &reset,
        check: &|sandbox| {
            if sandbox.ok("tenant list").as_array().is_some_and(|tenants| !tenants.is_empty()) {
                assert_ne!(last(sandbox, "tenant"), "destroy done");
            }
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

/// What acme's log says last of making or destroying the tenant, or its pool.
fn last(sandbox: &Sandbox, thing: &str) -> String {
    let log = sandbox.ok("tenant audit acme");
    let said = |line: &serde_json::Value| {
        let what = line["what"].as_str()?.strip_prefix(thing)?.strip_prefix('.')?;
        let phase = line["phase"].as_str()?;
        ["create", "destroy"].contains(&what).then(|| format!("{what} {phase}"))
    };
    log.as_array().into_iter().flatten().filter_map(said).next_back().unwrap_or_default()
}

#[test]
fn pool_destroy() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let is_there = |sandbox: &Sandbox| !sandbox.ok("pool list").as_array().is_none_or(Vec::is_empty);
    let case = Case {
        operation: "pool destroy acme/web --yes",
        reset: &|sandbox| {
            if !is_there(sandbox) {
                sandbox.ok("pool create acme/web --vmm sim --insecure");
                sandbox.import("acme/web", "");
            }
        },
        check: &|sandbox| assert!(!is_there(sandbox) || last(sandbox, "pool") != "destroy done"),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let case = Case {
        operation: "pool create acme/web --vmm sim",
        reset: &|sandbox| {
            if !sandbox.ok("pool list").as_array().is_none_or(Vec::is_empty) {
                sandbox.ok("pool destroy acme/web --yes");
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_import_and_rollback() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let first = sandbox.ok("pool info acme/web")["revision"].clone();
    let (kernel, rootfs) = sandbox.artifacts();
    let import = format!(
        "pool import acme/web --kernel {} --rootfs {} --cmdline=other",
        kernel.display(),
        rootfs.display()
    );
    let whole = |sandbox: &Sandbox| {
        assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
        assert!(!sandbox.ok("pool info acme/web")["revision"].is_null());
    };
    let back = format!("pool rollback acme/web --revision {}", first.as_str().unwrap_or_default());
    let reset = |sandbox: &Sandbox| drop(sandbox.ok(&back));
    let case = Case { operation: &import, reset: &reset, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
    let forward = |sandbox: &Sandbox| drop(sandbox.ok(&import));
    forward(&sandbox);
    let case = Case { operation: &back, reset: &forward, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_import_of_an_image_from_elsewhere() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.agent_pool("sim");
    let first = sandbox.ok("pool info acme/web")["revision"].clone();
    sandbox.put_image("debian");
    let archive = sandbox.root().join("image.in");
    std::fs::write(&archive, support::oci::archive(&["bin/", "bin/app=x"])).expect("an archive");
    let import = format!("pool import acme/web --oci-archive {}", archive.display());
    let back = format!("pool rollback acme/web --revision {}", first.as_str().unwrap_or_default());
    let case = Case {
        operation: &import,
        reset: &|sandbox| {
            sandbox.ok(&back);
            sandbox.ok("pool gc acme/web");
            // The one before is kept to roll back to: without it the next import has everything to do.
            let revisions = sandbox.root().join("tenants/acme/pools/web/artifacts/revisions");
            for one in std::fs::read_dir(revisions).expect("revisions").flatten() {
                if one.file_name().to_str() != first.as_str() {
                    std::fs::remove_dir_all(one.path()).expect("a revision");
                }
            }
        },
        check: &|sandbox| {
            assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
            assert!(!sandbox.ok("pool info acme/web")["revision"].is_null());
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn recovery_itself() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let reset = |sandbox: &Sandbox| {
        if sandbox.states()[0].ends_with("running") {
            sandbox.ok(&format!("instance stop {path} --force"));
        }
        let output = sandbox.run_with(&format!("instance start {path}"), "start.boot");
        assert!(was_killed(&output));
    };
    reset(&sandbox);
    let case = Case { operation: "node recover", reset: &reset, check: &|_| (), finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

/// Operations that only change what is there: whatever happens, the same command again must bring it about.
fn change_case(operation: &str, back: &str, holds: &dyn Fn(&Sandbox) -> bool) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let case = Case {
        operation,
        reset: &|sandbox| {
            sandbox.ok(operation);
            assert!(holds(sandbox), "{operation} again does not bring it about");
            if !back.is_empty() {
                sandbox.ok(back);
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_update_of_the_egress_policy() {
    let denied = |sandbox: &Sandbox| {
        let rules = std::process::Command::new("nft").args(["list", "map", "inet", "mvm", "egress"]).output();
        let rules = String::from_utf8_lossy(&rules.expect("nft runs").stdout).into_owned();
        sandbox.ok("pool info acme/web")["egress"] == "deny" && rules.contains("egress_deny")
    };
    change_case("pool update acme/web --egress deny", "pool update acme/web --egress internet", &denied);
}

#[test]
fn tenant_update_of_quotas() {
    let holds = |sandbox: &Sandbox| sandbox.ok("tenant info acme")["quotas"]["max_conns"] == 77;
    change_case("tenant update acme --max-conns 77", "tenant update acme --max-conns 88", &holds);
}

/// A file that holds this.
pub fn secret(sandbox: &Sandbox, content: &str) -> String {
    let path = sandbox.root().join(format!("secret.{content}"));
    std::fs::write(&path, content).expect("a file");
    path.display().to_string()
}

/// A change of secrets, also made and made to fail with a guest that is given them.
fn secrets_case(verb: &str, back: &dyn Fn(&Sandbox), wanted: Option<&str>) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.agent_pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let file = secret(&sandbox, "new");
    let operation = match verb {
        "remove" => "tenant secrets remove acme DB".to_owned(),
        _ => format!("tenant secrets {verb} acme DB --file {file}"),
    };
    back(&sandbox);
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            // What is removed already is not there any more.
            let again = sandbox.run(&operation);
            assert!(matches!(again.status.code(), Some(0 | 3)), "{again:?}");
            let has = sandbox.run(&format!("instance exec -n {path} -- cat /run/secrets/DB"));
            let has = has.status.success().then(|| String::from_utf8_lossy(&has.stdout).into_owned());
            assert_eq!(has.as_deref(), wanted, "{operation} again does not bring it about");
            back(sandbox);
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

fn clear(sandbox: &Sandbox) {
    let _ = sandbox.run("tenant secrets remove acme DB");
}

fn old(sandbox: &Sandbox) {
    clear(sandbox);
    sandbox.ok(&format!("tenant secrets set acme DB --file {}", secret(sandbox, "old")));
}

#[test]
fn secrets_set() {
    secrets_case("set", &clear, Some("new"));
}

/// The first of a tenant and of the node, with the keys that are made for it: none of them comes before what announces it.
#[test]
fn secrets_set_with_new_keys() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (folder, master) = (sandbox.root().join("tenants/acme"), sandbox.root().join("master.key"));
    let operation = format!("tenant secrets set acme DB --file {}", secret(&sandbox, "new"));
    let reset = |sandbox: &Sandbox| {
        if folder.exists() {
            // Whatever it was killed at: the same again, and the secret is there, once.
            sandbox.ok(&operation);
            let listed = sandbox.ok("tenant secrets list acme");
            assert_eq!((&listed[0]["name"], &listed[0]["version"]), (&"DB".into(), &1.into()), "{listed}");
            sandbox.ok("tenant destroy acme --yes");
            std::fs::remove_file(&master).expect("a key");
        }
        sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    };
    let announced = |sandbox: &Sandbox| {
        let log = sandbox.ok("tenant audit acme");
        let is_it = |one: &serde_json::Value| one["what"] == "tenant.secrets.set" && one["phase"] == "intent";
        let files = ["secrets.json", "secrets.key", "tenant.json"].map(|name| folder.join(name));
        if master.exists() || files[..2].iter().any(|file| file.exists()) {
            assert!(log.as_array().is_some_and(|all| all.iter().any(is_it)), "{log}");
        }
        // A tenant that has secrets by its record has them.
        sandbox.ok("tenant secrets list acme");
    };
    reset(&sandbox);
    let case = Case { operation: &operation, reset: &reset, check: &announced, finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn secrets_rotate() {
    secrets_case("rotate", &old, Some("new"));
}

#[test]
fn secrets_remove() {
    secrets_case("remove", &old, None);
}

#[test]
fn disk_grow() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    write_precious(&sandbox, &path);
    let operation = format!("instance disk grow {path} --size 16");
    let case = Case {
        operation: &operation,
        reset: &|_| (),
        check: &|sandbox| {
            assert_precious(&data_disk(sandbox, &path));
            sandbox.ok(&format!("instance start {path}"));
            sandbox.ok(&format!("instance stop {path} --force"));
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
    assert_eq!(std::fs::metadata(data_disk(&sandbox, &path)).expect("a disk").len(), 16 << 20);
}

#[test]
fn pool_scale_up() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let case = Case {
        operation: "pool scale acme/web --running 1",
        reset: &destroy_all_instances,
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_gc() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let mut number = 0..;
    let number = std::cell::RefCell::new(&mut number);
    let reset = |sandbox: &Sandbox| {
        for _ in 0..2 {
            sandbox.import("acme/web", &number.borrow_mut().next().unwrap_or(0).to_string());
        }
    };
    reset(&sandbox);
    let whole = |sandbox: &Sandbox| assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
    let case = Case { operation: "pool gc acme/web", reset: &reset, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn vmm_install() {
    let Some(program) = support::firecracker() else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    let operation = format!("vmm install {}", program.display());
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            let _ = std::fs::remove_dir_all(sandbox.root().join("vmm"));
        },
        check: &|sandbox| {
            for one in sandbox.ok("vmm list").as_array().into_iter().flatten() {
                let program = one["firecracker"].as_str().unwrap_or_default();
                let said = std::process::Command::new(program).arg("--version").output().expect("it runs");
                assert!(said.status.success(), "half a program was installed");
            }
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn the_next_file_of_an_audit_log() {
    let Some(sandbox) = Sandbox::new() else { return };
    let folder = sandbox.root().join("tenants/acme");
    let roots = Roots::new(sandbox.root(), &Environment::default()).expect("roots");
    let reset = |sandbox: &Sandbox| {
        if folder.exists() {
            sandbox.ok("tenant destroy acme --yes");
            std::fs::remove_dir_all(sandbox.root().join("audit")).expect("what is kept of it");
        }
        sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
        // The next line is the first of a file.
        let mut entry = Entry::new("test.fill", "acme", Phase::Done);
        entry.detail = Some("x".repeat(usize::try_from(audit::FULL).expect("a size")));
        audit::append(&roots, "acme", &folder, entry).expect("a line");
    };
    reset(&sandbox);
    let operation = "tenant update acme --pinned true";
    let case = Case { operation, reset: &reset, check: &|_| (), finishes_later: true };
    kill_everywhere(&sandbox, &case);
    let full = folder.join("audit.000000000001.log");
    assert!(!full.exists());
    for (point, is_there) in [("synced", false), ("renamed", true), ("begun", true)] {
        assert!(was_killed(&sandbox.run_with(operation, format!("audit.{point}"))), "{point}");
        assert_eq!(full.exists(), is_there, "{point}");
        sandbox.ok(operation);
        assert!(full.exists());
        let log = sandbox.ok("tenant audit acme");
        let numbers: Vec<_> = log.as_array().into_iter().flatten().map(|one| one["seq"].clone()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5], "{point}");
        reset(&sandbox);
    }
}
