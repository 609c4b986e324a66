//! An image from elsewhere on a real kernel: what it says of its program is what runs, and what a layer takes away is gone.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tar::{Builder, EntryType};

use crate::{
    Wrong, ensure,
    guest::Guest,
    scenario, step,
    support::oci,
    world::{World, wait_for},
};

/// Emulated, an import with the boot of its base takes its time.
const IMPORT_LIMIT: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(30);

/// The image's program: says who and where it is, goes on for ever, and ends when it is asked to in its own way.
const PROGRAM: &str = r#"#!/bin/sh
trap 'echo "asked to end"; exit 0' USR1
echo "user $(id -u) $(id -g) $(id -G)"
echo "greeting $GREETING"
echo "home $HOME"
echo "in $(pwd)"
for word in "$@"; do echo "word $word"; done
echo $$ >/tmp/pid
n=0
while :; do
    n=$((n + 1))
    echo $n >/tmp/beat.new
    mv /tmp/beat.new /tmp/beat
    sleep 1 &
    wait $!
done
"#;

/// What it prints at first.
const SAID: &str =
    "user 1234 1234 1234 77\ngreeting hello = world\nhome /home/app\nin /srv/work\nword one\nword two words";

/// Two layers: all that the program needs, and a second one that changes, adds and takes away.
fn image() -> Result<Vec<u8>, Wrong> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.ok_or("the lab has no busybox")?;
    let layer = |entries: &[(EntryType, &str, &str, u32, &[u8])]| {
        let mut builder = Builder::new(Vec::new());
        for &(kind, name, link, mode, content) in entries {
            let mut header = oci::header(kind, name, link, content.len());
            header.set_mode(mode);
            header.set_cksum();
            builder.append(&header, content).map_err(|error| error.to_string())?;
        }
        builder.into_inner().map_err(|error| error.to_string())
    };
    let (folder, file, link) = (EntryType::Directory, EntryType::Regular, EntryType::Symlink);
    let mut first: Vec<(EntryType, &str, &str, u32, &[u8])> = vec![
        (folder, "bin", "", 0o755, b""),
        (file, "bin/busybox", "", 0o755, &busybox),
        (folder, "etc", "", 0o755, b""),
        (file, "etc/passwd", "", 0o644, b"root:x:0:0::/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n"),
        (file, "etc/group", "", 0o644, b"root:x:0:\napp:x:1234:\nextra:x:77:app\n"),
        (folder, "srv", "", 0o755, b""),
        (file, "srv/program", "", 0o755, b"#!/bin/sh\necho of the first layer\n"),
        (file, "srv/removed", "", 0o644, b"of the first layer"),
        (file, "srv/kept", "", 0o600, b"of the first layer"),
    ];
    let applets = ["sh", "id", "cat", "mv", "sleep", "ls", "readlink", "tr", "grep"];
    let names = applets.map(|applet| format!("bin/{applet}"));
    first.extend(names.iter().map(|name| (link, name.as_str(), "busybox", 0o777, &b""[..])));
    let layers = [
        layer(&first)?,
        layer(&[
            (file, "srv/.wh.removed", "", 0o644, b""),
            (file, "srv/program", "", 0o755, PROGRAM.as_bytes()),
        ])?,
    ];
    // No layer has its folder: whoever runs an image makes it.
    let program = json!({
        "Entrypoint": ["/srv/program", "one"], "Cmd": ["two words"], "Env": ["GREETING=hello = world"],
        "User": "app", "WorkingDir": "/srv/work", "StopSignal": "SIGUSR1",
    });
    Ok(oci::archive_of_layers(&layers, &oci::config_of(&layers, &program)))
}

/// What a line of shell prints that must succeed.
fn says(world: &World, guest: &Guest<'_>, line: &str) -> Result<String, Wrong> {
    let (said, errors, code) = world.exec(&guest.path, &["sh", "-c", line])?;
    ensure(code == Some(0), || format!("{line:?}: {code:?} {said}{errors}"))?;
    Ok(said.trim().to_owned())
}

fn number(world: &World, guest: &Guest<'_>, file: &str) -> Result<u64, Wrong> {
    let said = says(world, guest, &format!("cat {file}"))?;
    said.parse().map_err(|_| format!("{file} holds {said:?}"))
}

/// Its program goes on: it has done more than that.
fn goes_on(world: &World, guest: &Guest<'_>, beats: u64) -> Result<(), Wrong> {
    let more = || number(world, guest, "/tmp/beat").ok().filter(|now| *now > beats);
    wait_for("its program goes on", LIMIT, more).map(drop)
}

/// It is what its image says, whatever happened to the guest meanwhile.
fn is_as_the_image_says(world: &World, guest: &Guest<'_>, pid: u64) -> Result<(), Wrong> {
    let line = format!(
        "cd /proc/{pid}; grep -E '^(Uid|Gid|Groups):' status | tr '\\t' ' '; readlink cwd; \
         tr '\\0' '\\n' <cmdline; tr '\\0' '\\n' <environ | grep -E '^(GREETING|HOME|PATH)='"
    );
    let said = says(world, guest, &line)?;
    for wanted in [
        "Uid: 1234 1234 1234 1234",
        "Gid: 1234 1234 1234 1234",
        "Groups: 77",
        "/srv/work",
        "/srv/program\none\ntwo words\n",
        "GREETING=hello = world",
        "HOME=/home/app",
    ] {
        ensure(said.contains(wanted), || format!("no {wanted:?} in {said}"))?;
    }
    // It may write where everybody may, and nowhere else.
    let files = says(world, guest, "cd /srv; echo *; cat kept; ls -n /tmp/beat")?;
    ensure(files.starts_with("kept program work\nof the first layer"), || files.clone())?;
    ensure(files.contains(" 1234 "), || files.clone())
}

#[test]
fn an_image_from_elsewhere_runs_as_it_says() {
    scenario("an image from elsewhere", |world| {
        world.images()?;
        world.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24")?;
        world.ok("pool create acme/app --agent required --mem 256 --data-disk 64")?;
        let archive = world.root().join("image.tar");
        fs::write(&archive, image()?).map_err(|error| error.to_string())?;
        step("an archive of two layers becomes a revision, with its base snapshot", || {
            let import = format!("pool import acme/app --oci-archive {}", archive.display());
            let imported = world.ok_within(&import, IMPORT_LIMIT)?;
            let made: &Value = &imported["oci"];
            println!("    {} layers, {} entries", made["layers"], made["entries"]);
            ensure(made["layers"] == 2 && made["workload"]["user"] == "app", || imported.to_string())
        })?;
        let guest = world.instance("acme/app")?;
        step("a guest starts from it", || guest.is_told("start").map(drop))?;
        step("its program says who it is, where, and with what", || {
            wait_for("all of it in its log", LIMIT, || {
                let output = world.run(&format!("instance logs {}", guest.path), LIMIT).ok()?;
                String::from_utf8_lossy(&output.stdout).trim().ends_with(SAID).then_some(())
            })
            .map_err(|wrong| format!("{wrong}; its console: {}", guest.console()))
        })?;
        let pid = step("so does the kernel, and what was removed is gone", || {
            let pid = wait_for("its pid", LIMIT, || number(world, &guest, "/tmp/pid").ok())?;
            is_as_the_image_says(world, &guest, pid)?;
            Ok(pid)
        })?;
        step("it sleeps, wakes, and goes on where it was", || {
            goes_on(world, &guest, 0)?;
            let before = number(world, &guest, "/tmp/beat")?;
            guest.is_told("sleep")?;
            guest.is_told("wake")?;
            goes_on(world, &guest, before)?;
            is_as_the_image_says(world, &guest, pid)
        })?;
        step("a stop asks it with its own signal", || {
            guest.is_told("stop")?;
            guest.is("stopped")?;
            let console = guest.console();
            ensure(console.contains("asked to end"), || console.clone())
        })?;
        step("started again it is new, and still without what was removed", || {
            guest.is_told("start")?;
            let pid = wait_for("its pid", LIMIT, || number(world, &guest, "/tmp/pid").ok())?;
            is_as_the_image_says(world, &guest, pid)
        })
    });
}
