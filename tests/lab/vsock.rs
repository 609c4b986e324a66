//! A server inside the guest, reached over vsock: this test program itself, carried in on the data disk. The guest has no
//! program of its own that speaks vsock yet.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::Duration,
};

use crate::{
    Wrong, ensure,
    guest::Guest,
    memory::Memory,
    scenario, step,
    world::{World, wait_for},
};

/// The port that the server listens on.
const PORT: u32 = 5252;

/// Set where this program is the server.
const SERVER: &str = "MVM_LAB_VSOCK_SERVER";

/// Not a test: what runs in the guest. It answers one connection after the other, a line each.
#[test]
fn server_in_a_guest() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let listener = listen().expect("vsock is there");
    let mut memory = Memory::default();
    loop {
        // SAFETY: no address is asked for; the descriptor that comes back belongs to nobody else.
        let accepted =
            unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        if accepted < 0 {
            continue;
        }
        // SAFETY: it was just accepted.
        let mut stream = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(accepted) });
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("another descriptor"));
        if reader.read_line(&mut line).is_ok() {
            let answer = memory.answer(line.trim());
            let _ = stream.write_all(format!("{answer}\n").as_bytes());
        }
    }
}

fn listen() -> std::io::Result<OwnedFd> {
    // SAFETY: plain system calls; the address lives as long as the call, and its size is its own.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = PORT;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) != 0
            || libc::listen(socket.as_raw_fd(), 16) != 0
        {
            return Err(std::io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Starts the server in a fresh guest: the program goes onto its data disk before it boots.
pub fn start_server<'a>(world: &'a World, pool: &str) -> Result<Guest<'a>, Wrong> {
    let guest = world.instance(pool)?;
    // A start makes the disk; the kernel of this first one has not yet come to it.
    guest.is_told("start")?;
    guest.is_told("stop --force")?;
    let folder = world.folder(&guest.path);
    let disk = std::fs::read_dir(folder.join("volumes"))
        .into_iter()
        .chain(std::fs::read_dir(&folder))
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data")))
        .ok_or("there is no data disk")?;
    let mount = tempfile::tempdir().map_err(|error| error.to_string())?;
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())
    };
    run("mount", &["-o".as_ref(), "loop".as_ref(), disk.as_ref(), mount.path().as_ref()])?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let copied = std::fs::copy(program, mount.path().join("server")).map_err(|error| error.to_string());
    run("umount", &[mount.path().as_ref()])?;
    copied?;
    guest.start()?;
    guest.says(&format!(
        "({SERVER}=1 setsid /data/server --exact vsock::server_in_a_guest --nocapture >/run/server.log 2>&1 </dev/null &)"
    ))?;
    wait_for("the server answers", Duration::from_secs(60), || ask(world, &guest, "echo up").ok())?;
    Ok(guest)
}

/// Asks the server something over a connection of its own.
pub fn ask(world: &World, guest: &Guest<'_>, question: &str) -> Result<String, Wrong> {
    ask_within(world, guest, question, Duration::from_secs(10))
}

/// The same, where the answer takes long.
pub fn ask_within(
    world: &World,
    guest: &Guest<'_>,
    question: &str,
    limit: Duration,
) -> Result<String, Wrong> {
    let mut stream = connect(world, guest, limit)?;
    stream.write_all(format!("{question}\n").as_bytes()).map_err(broken)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(broken)?;
    ensure(!line.is_empty(), || "vsock: closed without an answer".into())?;
    Ok(line.trim().to_owned())
}

/// The same as [`ask`], as soon as the server takes connections again: a sleep ended those that it had.
pub fn ask_soon(world: &World, guest: &Guest<'_>, question: &str) -> Result<String, Wrong> {
    wait_for("an answer", Duration::from_secs(20), || ask(world, guest, question).ok())
}

/// A connection to the server, which it has taken, and whose answers may take so long.
fn connect(world: &World, guest: &Guest<'_>, limit: Duration) -> Result<UnixStream, Wrong> {
    connect_to(world, guest, PORT, limit)
}

/// The same to another port.
pub fn connect_to(world: &World, guest: &Guest<'_>, port: u32, limit: Duration) -> Result<UnixStream, Wrong> {
    let directory = world.root().join("run/firecracker").join(&guest.tap).join("root");
    // The path of a socket is bounded, that of a folder is not.
    let path = std::fs::canonicalize(directory.join("v.sock")).map_err(broken)?;
    let mut stream = UnixStream::connect(path).map_err(broken)?;
    stream.set_read_timeout(Some(limit)).map_err(broken)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(broken)?;
    let mut greeting = [0];
    let mut line = String::new();
    while !line.ends_with('\n') {
        stream.read_exact(&mut greeting).map_err(broken)?;
        line.push(char::from(greeting[0]));
    }
    ensure(line.starts_with("OK "), || format!("vsock: {line:?}"))?;
    Ok(stream)
}

fn broken(error: std::io::Error) -> Wrong {
    format!("vsock: {error}")
}

#[test]
fn vsock_lives_through_warm_and_sleep() {
    scenario("vsock through warm and sleep", |world| {
        world.pool("acme/web", 3, "--mem 256 --data-disk 128")?;
        let guest = step("a server listens in a guest", || start_server(world, "acme/web"))?;
        for (down, up) in [("warm", "resume"), ("sleep", "wake"), ("warm", "resume"), ("sleep", "wake")] {
            step(&format!("{down}, {up}, and the server answers"), || {
                guest.is_told(down)?;
                guest.is_told(up)?;
                let answer = ask_soon(world, &guest, "echo hello")?;
                ensure(answer == "hello", || format!("it said {answer:?}"))
            })?;
        }
        Ok(())
    });
}

/// Firecracker writes to the guest's memory while it makes a snapshot of a vsock device: what it resets there is in the file,
/// and in the sums.
#[test]
fn a_snapshot_with_a_live_vsock_is_whole() {
    scenario("a snapshot with a live vsock", |world| {
        world.pool("acme/web", 3, "--mem 256 --data-disk 128")?;
        let guest = step("a server listens in a guest", || start_server(world, "acme/web"))?;
        let boot_id = guest.says("cat /proc/sys/kernel/random/boot_id")?;
        ask_within(world, &guest, "take 32", Duration::from_secs(60))?;
        // Of the first sleep all is new; the second one is laid onto its file.
        for cycle in 1..=2 {
            ask(world, &guest, &format!("write {cycle}"))?;
            // It says nothing, so the server waits for it until the device ends it.
            let connected = connect(world, &guest, Duration::from_secs(10))?;
            step("it sleeps while somebody is connected", || guest.is_told("sleep"))?;
            drop(connected);
            step("a scrub finds it whole", || world.scrubs_clean())?;
            step("it is archived", || guest.is_told("archive"))?;
            step("it wakes, and its server answers and has its memory", || {
                guest.is_told("wake")?;
                let said = ask_soon(world, &guest, "check")?;
                ensure(said.starts_with("wrong 0 of "), || said.clone())
            })?;
        }
        let now = guest.says("cat /proc/sys/kernel/random/boot_id")?;
        ensure(now == boot_id, || format!("the boot id was {boot_id} and is {now}"))
    });
}
