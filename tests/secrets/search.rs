//! The plain text of a secret is in guests, and nowhere else.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    support::{
        Sandbox, kill_and_wait,
        searcher::{Needles, marker},
        wait_until,
    },
    world::{KEY, feed},
};

/// Commands, whose output is kept.
struct Watched {
    sandbox: Sandbox,
    said: Mutex<Vec<u8>>,
}

impl Watched {
    fn command(&self, arguments: &str) -> Command {
        let mut command = self.sandbox.command(arguments);
        command.env("MVM_MASTER_KEY", KEY);
        command
    }

    #[track_caller]
    fn keep(&self, what: &str, output: Output) -> String {
        let mut said = self.said.lock().expect("it is whole");
        said.extend_from_slice(&output.stdout);
        said.extend_from_slice(&output.stderr);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    #[track_caller]
    fn run(&self, arguments: &str) -> String {
        self.keep(arguments, self.command(arguments).output().expect("mvm runs"))
    }

    #[track_caller]
    fn feed(&self, arguments: &str, content: &str) -> String {
        self.keep(arguments, feed(self.command(arguments), content.as_bytes()))
    }

    /// What a guest has: the only output in which it may be.
    #[track_caller]
    fn cat(&self, path: &str) -> String {
        let output = self.command(&format!("instance exec -n {path} -- cat /run/secrets/DB")).output();
        let output = output.expect("mvm runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a text")
    }

    #[track_caller]
    fn instance(&self) -> String {
        let path = self.run("instance create acme/web --json");
        let path: serde_json::Value = serde_json::from_str(&path).expect("JSON");
        path["path"].as_str().expect("a path").to_owned()
    }
}

#[test]
fn a_secret_is_in_no_file_log_argument_environment_or_output() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (kernel, rootfs) = sandbox.artifacts();
    let world = Watched { sandbox, said: Mutex::default() };
    let (old, new) = (marker(), marker());
    let needles = [Needles::of(&old), Needles::of(&new)];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Processes come and go: they are looked at all the time.
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                seen.extend(needles.iter().flat_map(Needles::in_processes));
            }
            seen
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            story(
                &world,
                [&old, &new],
                &needles,
                &format!("--kernel {} --rootfs {}", kernel.display(), rootfs.display()),
            );
        }));
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().expect("it looks");
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(seen.is_empty(), "{seen:?}");
    });
    let said = world.said.into_inner().expect("it is whole");
    assert!(String::from_utf8_lossy(&said).contains("DB"));
    assert!(!needles.iter().any(|needle| needle.are_in(&said)), "{}", String::from_utf8_lossy(&said));
}

fn story(world: &Watched, [old, new]: [&str; 2], needles: &[Needles; 2], artifacts: &str) {
    let root = world.sandbox.root();
    let nowhere = || {
        for needle in needles {
            assert_eq!(needle.in_files(root), [""; 0]);
        }
    };
    world.run("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    world.feed("tenant secrets set acme DB", old);
    // The base is made when the secret is there.
    world.run(
        "pool create acme/web --vmm sim --mem 128 --data-disk 8 --agent required --on-rotate signal:HUP",
    );
    world.run(&format!("pool import acme/web {artifacts} --cmdline=quiet"));
    assert!(
        fs::read_dir(root.join("tenants/acme/pools/web/snapshots/base")).expect("bases").next().is_some()
    );
    let (sleeper, other) = (world.instance(), world.instance());
    for path in [&sleeper, &other] {
        world.run(&format!("instance start {path} -v"));
        assert_eq!(world.cat(path), old);
    }
    nowhere();
    let said = world.feed("tenant secrets rotate acme DB", new);
    assert!(said.contains("2 guests got it"), "{said}");
    for path in [&sleeper, &other] {
        assert_eq!(world.cat(path), new);
        assert!(world.run(&format!("instance logs {path}")).contains("hears of other secrets: signal 1"));
    }
    for (pid, _) in world.sandbox.vmms() {
        let environ = fs::read_to_string(format!("/proc/{pid}/environ")).expect("its environment");
        assert!(!environ.contains(KEY), "{environ}");
    }
    nowhere();
    // Asleep, a guest's memory is a file, and all that it knows is in there.
    world.run(&format!("instance sleep {sleeper}"));
    let [tenant, pool, id] = sleeper.split('/').collect::<Vec<_>>()[..] else { panic!("{sleeper}") };
    let own = format!("tenants/{tenant}/pools/{pool}/instances/{id}/snapshots/delta/mem.");
    let found = needles[1].in_files(root);
    assert!(matches!(&found[..], [one] if one.starts_with(&own)), "{found:?}");
    world.run(&format!("instance wake {sleeper}"));
    assert_eq!(world.cat(&sleeper), new);
    // What it was loaded from stays its own; its VMM has another name for the same file.
    let inode = |file: &String| fs::metadata(root.join(file)).expect("a file").ino();
    let found = needles[1].in_files(root);
    let memory = found.iter().find(|file| file.starts_with(&own)).expect("its memory");
    assert!(found.iter().all(|file| inode(file) == inode(memory)), "{found:?}");
    for command in [
        "tenant secrets list acme",
        "tenant secrets list acme --json",
        "tenant info acme --json",
        "tenant audit acme",
        "tenant audit acme --json",
        "events",
        "instance list --json",
        &format!("instance info {sleeper} --json"),
        &format!("instance console --print {sleeper}"),
        &format!("instance stop {sleeper}"),
        &format!("instance stop {other}"),
    ] {
        world.run(command);
    }
    nowhere();
    world.run("tenant destroy acme --yes --wipe-volumes");
    nowhere();
}

/// What looks for it finds it, wherever it is planted.
#[test]
fn a_secret_that_lies_somewhere_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let marker = marker();
    let needles = Needles::of(&marker);
    let hex: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(needles.in_files(dir.path()), [""; 0]);
    fs::create_dir_all(dir.path().join("a/b")).expect("a folder");
    let base64 = |before: &str| {
        let text = format!("{before}{marker} and more");
        let output = feed(Command::new("base64"), text.as_bytes());
        String::from_utf8(output.stdout).expect("a text").replace('\n', "")
    };
    let planted = [
        ("a/b/plain".to_owned(), format!("before {marker} behind")),
        ("a/hex".to_owned(), format!("x{hex}")),
        ("a/upper".to_owned(), hex.to_uppercase()),
        ("base64-0".to_owned(), base64("")),
        ("base64-1".to_owned(), base64("x")),
        ("base64-2".to_owned(), base64("xx")),
        (format!("name-{marker}"), String::new()),
    ];
    let mut names: Vec<String> = planted.iter().map(|(name, _)| name.clone()).collect();
    for (name, content) in &planted {
        fs::write(dir.path().join(name), content).expect("a file");
    }
    // In a sparse file, and across the pieces in which one is read.
    for (name, at) in [("sparse", 100 << 20), ("across", (1_u64 << 20) - 5)] {
        let file = File::create(dir.path().join(name)).expect("a file");
        if name == "across" {
            file.write_all_at(&vec![b'.'; 2 << 20], 0).expect("it is written");
        }
        file.write_all_at(marker.as_bytes(), at).expect("it is written");
        file.set_len(200 << 20).expect("a size");
        names.push(name.to_owned());
    }
    names.sort();
    assert_eq!(needles.in_files(dir.path()), names);

    assert_eq!(needles.in_processes(), [""; 0]);
    let child = |command: &mut Command| command.stdin(Stdio::null()).spawn().expect("it runs");
    let argument = child(Command::new("sleep").args(["1000"]).arg0(&format!("sleep-{hex}")));
    let variable = child(Command::new("sleep").arg("1000").env("SECRET", &marker));
    let mut wanted = [format!("{} cmdline", argument.id()), format!("{} environ", variable.id())];
    wanted.sort();
    let mut found = Vec::new();
    // The kernel tells of an environment a moment after the program is there.
    wait_until("both are found", || {
        found = needles.in_processes();
        found.len() == wanted.len()
    });
    found.sort();
    for mut child in [argument, variable] {
        kill_and_wait(child.id().cast_signed());
        let _ = child.wait();
    }
    assert_eq!(found, wanted);
}

/// [`std::os::unix::process::CommandExt::arg0`], where it reads well.
trait Named {
    fn arg0(&mut self, name: &str) -> &mut Self;
}

impl Named for Command {
    fn arg0(&mut self, name: &str) -> &mut Self {
        std::os::unix::process::CommandExt::arg0(self, name)
    }
}
