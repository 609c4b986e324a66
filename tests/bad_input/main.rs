//! What is wrong is refused with its exit code and its stable word, before any effect: a table.

#[path = "../support/mod.rs"]
mod support;

mod leases;
mod records;

use std::{fs, os::unix::fs::FileExt, path::Path};

use support::{Sandbox, run};

/// A command, its exit code, and the word for what is wrong.
type Row<'a> = (&'a str, i32, &'a str);

fn refuses(sandbox: &Sandbox, rows: &[Row]) {
    let before = everything(sandbox.root());
    for (command, exit, code) in rows {
        assert_eq!(sandbox.refused(command, *exit), *code, "mvm {command}");
    }
    let after = everything(sandbox.root());
    assert_eq!(before, after, "something had an effect");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Who gets a part of an answer hears that it is one; a reader that has gone wanted no more.
#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    for command in
        ["tenant list", "tenant list --json", "instance list acme --json", "node info", "completions bash"]
    {
        let full = fs::File::options().write(true).open("/dev/full").expect("there is one");
        let output = sandbox.command(command).stdout(full).output().expect("mvm runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("No space left on device"), "{command}: {said}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = sandbox.command(command).stdout(writer).output().expect("mvm runs");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{command}");
    }
}

/// Every file of the root but locks, with its length.
fn everything(root: &Path) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.ends_with("locks") || path.ends_with("run") {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                found.push(format!("{}/", path.display()));
                walk(&path, found);
            } else {
                found.push(format!("{} {}", path.display(), entry.metadata().map_or(0, |meta| meta.len())));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, &mut found);
    found.sort();
    found
}

const LABEL_63: &str = "a23456789012345678901234567890123456789012345678901234567890123";

#[test]
fn names_numbers_and_networks() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let rows: &[Row] = &[
        ("--json", 2, "usage"),
        ("tenant", 2, "usage"),
        (&format!("instance wait {path} --timeout 99999999999999999999"), 2, "usage"),
        ("pool scale acme/web --running 4294967295", 4, "quota"),
        // names
        ("tenant create Acme --net-id 4 --subnet 10.240.4.0/24", 2, "usage"),
        ("tenant create -acme --net-id 4 --subnet 10.240.4.0/24", 2, "usage"),
        ("tenant create a.b --net-id 4 --subnet 10.240.4.0/24", 2, "usage"),
        ("tenant create ../x --net-id 4 --subnet 10.240.4.0/24", 2, "usage"),
        (&format!("tenant create {LABEL_63}4 --net-id 4 --subnet 10.240.4.0/24"), 2, "usage"),
        ("pool create acme --vmm sim", 2, "usage"),
        ("pool create acme/web/more --vmm sim", 2, "usage"),
        ("pool create nobody/web --vmm sim", 3, "not_found"),
        ("instance create acme/none", 3, "not_found"),
        ("instance info acme/web/i-ffffffff", 3, "not_found"),
        ("instance info acme/web/i-GG", 2, "usage"),
        ("instance info acme/web/", 2, "usage"),
        // net ids
        ("tenant create b --net-id 3 --subnet 10.240.4.0/24", 4, "net_id_used"),
        ("tenant create b --net-id 4096 --subnet 10.240.4.0/24", 2, "usage"),
        ("tenant create b --net-id -1 --subnet 10.240.4.0/24", 2, "usage"),
        ("tenant create b --net-id 03x --subnet 10.240.4.0/24", 2, "usage"),
        // subnets
        ("tenant create b --net-id 4 --subnet 192.168.4.0/24", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.224.0.0/12", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.0.0/12", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.4.7/24", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.4.0/30", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.0.0/19", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.4.0", 2, "usage"),
        ("tenant create b --net-id 4 --subnet fd00::/64", 2, "usage"),
        ("tenant create b --net-id 4 --subnet 10.240.3.128/25", 4, "subnet_overlap"),
        ("tenant create b --net-id 4 --subnet 10.240.0.0/20", 4, "subnet_overlap"),
        ("tenant create b --net-id 4 --subnet 10.240.4.0/24 --offset-range 9-3", 2, "offset_range"),
        ("tenant create b --net-id 4 --subnet 10.240.4.0/24 --offset-range 300-400", 2, "offset_range"),
        ("tenant create b --net-id 4 --subnet 10.240.4.0/24 --offset-range x", 2, "usage"),
        ("tenant create acme --net-id 9 --subnet 10.240.9.0/24", 4, "exists"),
        // resources
        ("pool create acme/b --cpus 0", 2, "resources"),
        ("pool create acme/b --cpus 33", 2, "resources"),
        ("pool create acme/b --mem 0", 2, "resources"),
        ("pool create acme/b --mem 18446744073709551615", 2, "resources"),
        ("pool create acme/b --mem 99999999999999999999", 2, "usage"),
        ("pool create acme/b --data-disk 1", 2, "resources"),
        ("pool create acme/b --data-disk 18446744073709551615", 2, "resources"),
        ("pool update acme/web --mem 0", 2, "resources"),
        ("pool create acme/b --vmm qemu", 2, "usage"),
        ("pool create acme/b --vmm firecracker@", 2, "usage"),
        ("pool create acme/b --egress all", 2, "usage"),
        ("pool create acme/b --egress allow:1.2.3.4/24", 2, "usage"),
        ("pool create acme/b --label nolabel", 2, "usage"),
        ("pool create acme/web --mem 999", 4, "exists"),
        (&format!("instance disk grow {path} --size 1"), 2, "resources"),
        (&format!("instance disk grow {path} --size 18446744073709551615"), 2, "resources"),
        ("instance create acme/web --publish tcp:0:80", 2, "usage"),
        ("instance create acme/web --publish icmp:1:1", 2, "usage"),
        ("instance create acme/web --publish tcp:1:1 --publish tcp:1:2", 4, "port_taken"),
        ("instance create acme/web --publish tcp:1:99999", 2, "usage"),
        // states
        (&format!("instance stop {path}"), 4, "state"),
        (&format!("instance wait {path} --for happy"), 2, "usage"),
        // what is not there
        ("pool rollback acme/web --revision 000000000000", 3, "no_such_revision"),
        ("pool rollback acme/web --revision xyz", 2, "usage"),
        ("pool rollback acme/web", 4, "no_earlier_revision"),
        ("vmm default 9.9.9", 3, "no_vmm_version"),
        ("vmm install /none", 1, "not_firecracker"),
        ("vmm install /bin/true", 1, "not_firecracker"),
        // destroying asks, and nobody is there
        ("tenant destroy acme --wipe-volumes", 2, "not_confirmed"),
        ("tenant destroy acme", 4, "has_volumes"),
        ("tenant destroy acme --yes", 4, "has_volumes"),
        ("pool destroy acme/web --yes", 4, "has_volumes"),
        (&format!("instance destroy {path}"), 2, "not_confirmed"),
        ("nonsense", 2, "usage"),
        ("node set max-vms -3", 2, "usage"),
        ("node set production perhaps", 2, "usage"),
    ];
    refuses(&sandbox, rows);
}

#[test]
fn files_that_are_not_kernels_or_file_systems() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let (kernel, rootfs) = sandbox.artifacts();
    let (kernel, rootfs) = (kernel.display().to_string(), rootfs.display().to_string());
    let file = |name: &str, content: &[u8]| {
        let path = sandbox.root().join(name);
        fs::write(&path, content).expect("a file");
        path.display().to_string()
    };
    let (empty, text) = (file("empty.in", b""), file("text.in", b"#!/bin/sh\n"));
    let mut bzimage = vec![0; 0x300];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let bzimage = file("bzimage.in", &bzimage);
    let mut arm = fs::read(&kernel).expect("a kernel");
    arm[18] = 183;
    let arm = file("arm.in", &arm);
    let cut = file("cut.in", &fs::read(&kernel).expect("a kernel")[..4100]);
    let folder = sandbox.root().display().to_string();
    let import =
        |kernel: &str, rootfs: &str| format!("pool import acme/web --kernel {kernel} --rootfs {rootfs}");
    let rows = [
        (import(&empty, &rootfs), 1, "not_an_artifact"),
        (import(&text, &rootfs), 1, "not_an_artifact"),
        (import(&bzimage, &rootfs), 1, "not_an_artifact"),
        (import(&arm, &rootfs), 1, "not_an_artifact"),
        (import(&cut, &rootfs), 1, "not_an_artifact"),
        (import("/bin/ls", &rootfs), 1, "not_an_artifact"),
        (import(&rootfs, &rootfs), 1, "not_an_artifact"),
        (import(&folder, &rootfs), 1, "not_an_artifact"),
        (import("/none", &rootfs), 1, "io"),
        (import("/dev/zero", &rootfs), 1, "not_an_artifact"),
        (import(&kernel, &kernel), 1, "not_an_artifact"),
        (import(&kernel, &empty), 1, "not_an_artifact"),
        (import(&kernel, "/dev/zero"), 1, "not_an_artifact"),
        (format!("{} --initrd {text}", import(&kernel, &rootfs)), 1, "not_an_artifact"),
        (format!("{} --cmdline={}", import(&kernel, &rootfs), "x".repeat(2000)), 2, "command_line"),
    ];
    let rows: Vec<Row> = rows.iter().map(|(command, exit, code)| (command.as_str(), *exit, *code)).collect();
    refuses(&sandbox, &rows);
}

#[test]
fn files_that_are_damaged_or_newer_are_named_and_never_overwritten() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let id = path.rsplit('/').next().unwrap_or_default().to_owned();
    let tenant = "tenants/acme/tenant.json";
    let pool = "tenants/acme/pools/web/pool.json";
    let instance = format!("tenants/acme/pools/web/instances/{id}/instance.json");
    let start = format!("instance start {path}");
    let commands: [(&str, &str); 4] = [
        (tenant, "tenant info acme"),
        (pool, "pool info acme/web"),
        (&instance, &start),
        ("node.json", "node info"),
    ];
    let newer = r#"{"schema_version":2,"all":"different"}"#;
    for (file, command) in commands {
        let file = sandbox.root().join(file);
        let whole = fs::read(&file).expect("a file");
        for (content, code) in [
            ("", "damaged"),
            ("{\"schema_version\":1}", "damaged"),
            ("\0\0", "damaged"),
            (newer, "newer_schema"),
        ] {
            fs::write(&file, content).expect("it can be written");
            assert_eq!(sandbox.refused(command, 1), code, "{command} with {content:?}");
            assert_eq!(fs::read(&file).expect("a file"), content.as_bytes(), "it was overwritten");
        }
        fs::write(&file, whole).expect("it can be written");
    }
    sandbox.ok(&start);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_guest_can_be_ended_whatever_is_damaged_around_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    for file in ["tenants/acme/tenant.json", "tenants/acme/pools/web/pool.json"] {
        sandbox.ok(&format!("instance start {path}"));
        let record = sandbox.root().join(file);
        let whole = fs::read_to_string(&record).expect("a record");
        fs::write(&record, "{").expect("a record");
        assert_eq!(sandbox.refused(&format!("instance stop {path}"), 1), "damaged", "{file}");
        let stopped = sandbox.ok(&format!("instance stop --force {path}"));
        assert_eq!((&stopped["status"], sandbox.vmms()), (&"stopped".into(), vec![]), "{file}");
        fs::write(&record, whole).expect("a record");
    }
    assert_eq!(sandbox.leaks(), [""; 0]);
}

#[test]
fn one_damaged_instance_is_in_nobodys_way() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let (broken, other) = (sandbox.instance("acme/web"), sandbox.instance("acme/web"));
    for path in [&broken, &other] {
        sandbox.ok(&format!("instance start {path}"));
    }
    let id = broken.rsplit('/').next().unwrap_or_default();
    let file = sandbox.root().join(format!("tenants/acme/pools/web/instances/{id}/instance.json"));
    fs::write(&file, "{").expect("it can be written");
    let list = sandbox.run("instance list");
    assert_eq!(list.status.code(), Some(1), "what cannot be read is not ignored");
    assert!(String::from_utf8_lossy(&list.stdout).contains(&other));
    assert!(String::from_utf8_lossy(&list.stderr).contains("instance.json is damaged"));
    assert_eq!(sandbox.run("status").status.code(), Some(1));
    let recovered = sandbox.run("node recover");
    assert_eq!(recovered.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&recovered.stdout).contains("not settled"));
    assert_eq!(sandbox.vmms().len(), 2, "its guest runs on");
    assert!(sandbox.run("net verify").status.success(), "and is guarded as before");
    sandbox.ok(&format!("instance stop {other} --force"));
    sandbox.ok(&format!("instance destroy {broken} --yes --wipe-volumes"));
    assert!(sandbox.vmms().is_empty());
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// A destroy that cannot be finished has given its slot back by then.
#[test]
fn who_has_anothers_slot_is_ended_by_nothing_that_is_done_to_that_one() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24 --offset-range 3-3");
    sandbox.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8");
    sandbox.import("acme/web", "");
    let gone = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {gone}"));
    let kept = sandbox.root().join("tenants/acme/pools/web/kept");
    fs::write(&kept, "in the way").expect("a file");
    assert_eq!(sandbox.run(&format!("instance destroy {gone} --yes")).status.code(), Some(1));
    let other = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {other}"));
    let vmms = sandbox.vmms();
    assert_eq!(vmms.len(), 1);
    for verb in ["stop --force", "stop", "start", "sleep", "destroy --yes"] {
        assert_eq!(sandbox.run(&format!("instance {verb} {gone}")).status.code(), Some(1), "{verb}");
        assert_eq!(sandbox.vmms(), vmms, "{verb}");
    }
    fs::remove_file(&kept).expect("it is there");
    sandbox.ok("node recover");
    assert_eq!((sandbox.vmms(), sandbox.states()), (vmms, vec![format!("{other} running")]));
    // Nor does one start whose lease is another's.
    sandbox.ok(&format!("instance stop --force {other}"));
    let lease = sandbox.root().join("tenants/acme/leases/3.json");
    let whole = fs::read_to_string(&lease).expect("a lease");
    let (_, id) = other.rsplit_once('/').expect("a path");
    fs::write(&lease, whole.replace(id, "i-00000000")).expect("a lease");
    assert_eq!(sandbox.refused(&format!("instance start {other}"), 1), "damaged");
    assert_eq!(sandbox.ok(&format!("instance why {other}"))["start_refused"]["code"], "damaged");
    fs::write(&lease, whole).expect("a lease");
    sandbox.ok(&format!("instance start {other}"));
}

#[test]
fn a_record_that_is_lost_is_not_taken_for_an_instance_that_is_gone() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let id = path.rsplit('/').next().unwrap_or_default();
    fs::remove_file(sandbox.root().join(format!("tenants/acme/pools/web/instances/{id}/instance.json")))
        .expect("a record");
    let list = sandbox.run("instance list");
    assert_eq!(list.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&list.stderr).contains("its folder is there"));
    assert_eq!(sandbox.run("node recover").status.code(), Some(1));
    assert_eq!(sandbox.vmms().len(), 1, "its guest runs on");
    sandbox.ok(&format!("instance destroy {path} --yes"));
    assert!(sandbox.root().join(format!("tenants/acme/pools/web/kept/{id}.data.ext4")).exists());
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_scale_that_is_refused_has_no_effect() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("pool create acme/empty --vmm sim --mem 128");
    sandbox.ok("tenant update acme --max-running 2");
    let rows: &[Row] = &[
        ("pool scale acme/empty --running 1", 4, "no_revision"),
        ("pool scale acme/web --running 3", 4, "quota"),
    ];
    refuses(&sandbox, rows);
}

/// One byte more, and one that is another one; the same import mends it.
#[test]
fn a_revision_that_changed_does_not_start() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let revision = sandbox.ok("pool info acme/web")["revision"].as_str().unwrap_or_default().to_owned();
    let folder = sandbox.root().join(format!("tenants/acme/pools/web/artifacts/revisions/{revision}"));
    let start = format!("instance start {path}");
    let longer = |file: &fs::File| file.write_all_at(b"xx", file.metadata()?.len());
    let other = |file: &fs::File| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100)?;
        file.write_all_at(&[!byte[0]], 100)
    };
    for change in [longer, other] {
        let file = fs::File::options().read(true).write(true).open(folder.join("vmlinux")).expect("a kernel");
        change(&file).expect("it can be written");
        drop(file);
        refuses(&sandbox, &[(&start, 1, "artifact_changed")]);
        sandbox.import("acme/web", "");
        assert_eq!(sandbox.ok("pool verify acme/web")["ok"], true);
    }
    // Only put back from a copy: that is looked at, and well.
    run("touch", &["-d", "2020-01-01", &folder.join("vmlinux").display().to_string()]);
    sandbox.ok(&start);
}

/// Its id, its limits and whether it is in production: nothing else knows them.
#[test]
fn a_node_file_that_is_gone_is_not_made_anew() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    sandbox.ok("node set plain-storage-waiver on");
    sandbox.ok("node set production on");
    let file = sandbox.root().join("node.json");
    let whole = fs::read(&file).expect("a node");
    fs::remove_file(&file).expect("it can be removed");
    for command in [
        "instance create acme/web",
        "tenant create zz --net-id 60 --subnet 10.240.60.0/24",
        "node info",
        "node recover",
        "net repair",
    ] {
        assert_eq!(sandbox.refused(command, 1), "damaged", "{command}");
    }
    // A guest that must go goes; the rest of the stop waits for the file.
    assert_eq!(sandbox.refused(&format!("instance stop --force {path}"), 1), "damaged");
    assert!(sandbox.vmms().is_empty());
    let doctor = sandbox.run("doctor");
    assert!(!doctor.status.success() && String::from_utf8_lossy(&doctor.stdout).contains("node.json"));
    assert!(!file.exists());
    fs::write(&file, whole).expect("it can be put back");
    assert_eq!(sandbox.ok("node info")["production"], true);
    assert_eq!(sandbox.states(), [format!("{path} stopped")]);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_second_root_leaves_the_first_ones_network_alone() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let other = tempfile::tempdir().expect("a folder");
    for command in ["tenant create zz --net-id 60 --subnet 10.240.60.0/24", "node recover", "net repair"] {
        let output = sandbox
            .command(&format!("{command} --json"))
            .arg("--root")
            .arg(other.path())
            .output()
            .expect("mvm");
        assert_eq!(output.status.code(), Some(4), "{command}");
    }
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn an_environment_that_cannot_be_meant_is_refused() {
    let Some(sandbox) = Sandbox::new() else { return };
    for name in ["MVM_LOCK_TIMEOUT_MS", "MVM_GUEST_TIMEOUT_MS"] {
        let output = sandbox.command("node info").env(name, "30s").output().expect("mvm runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let begins = format!("{name} is \"30s\", which is no number");
        assert!(output.status.code() == Some(5) && said.starts_with(&begins), "{said}");
    }
}

#[test]
fn a_pool_becomes_insecure_where_that_may_be() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/web");
    sandbox.ok("pool update acme/web --insecure true");
    assert_eq!(sandbox.ok("pool info acme/web")["insecure"], true);
    sandbox.ok("node set plain-storage-waiver on");
    sandbox.ok("node set production on");
    sandbox.ok("pool update acme/web --insecure false");
    assert_eq!(sandbox.refused("pool update acme/web --insecure true", 4), "production");
    assert_eq!(sandbox.ok("pool info acme/web")["insecure"], false);
}
