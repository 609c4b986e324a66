//! What a VMM can do of whose threads somebody else is master: without its filter, as it is before its guest runs, and with it.

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use serde_json::Value;

use crate::{
    World, kernel,
    tracee::{
        Answer,
        Argument::{self, Bytes, Number},
        Tracee,
    },
};

/// A call, its arguments, and with which of these errors it must fail without a filter.
struct Try<'a>(&'static str, i64, Vec<Argument<'a>>, &'static [i32]);

const AT: Argument = Number(libc::AT_FDCWD as i64);
const READ: Argument = Number(libc::O_RDONLY as i64);
const WRITE: Argument = Number(libc::O_WRONLY as i64);
const NOT_THERE: &[i32] = &[libc::ENOENT];
/// Or the kernel has no such call.
const NOT_ALLOWED: &[i32] = &[libc::EPERM, libc::EACCES, libc::ENOSYS];
const NOBODY: &[i32] = &[libc::ESRCH];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES];

/// What leads out of the jail, into others, or to root. `pid` is a process outside, `device` a block device of the host's.
fn ways_out(pid: i64, device: i64) -> Vec<Try<'static>> {
    let number = |number: i32| Number(number.into());
    vec![
        Try("a file of the host", libc::SYS_openat, vec![AT, Bytes(b"/etc/passwd\0"), READ], NOT_THERE),
        Try(
            "the same, upwards",
            libc::SYS_openat,
            vec![AT, Bytes(b"/../../../../../etc/passwd\0"), READ],
            NOT_THERE,
        ),
        Try("processes", libc::SYS_openat, vec![AT, Bytes(b"/proc/1/root\0"), READ], NOT_THERE),
        Try("what it shares", libc::SYS_openat, vec![AT, Bytes(b"/vmlinux\0"), WRITE], READ_ONLY),
        Try(
            "the length of what it shares",
            libc::SYS_truncate,
            vec![Bytes(b"/vmlinux\0"), Number(0)],
            READ_ONLY,
        ),
        Try(
            "a disk of the host",
            libc::SYS_mknodat,
            vec![AT, Bytes(b"/disk\0"), Number((libc::S_IFBLK | 0o600).into()), Number(device)],
            NOT_ALLOWED,
        ),
        Try("a root elsewhere", libc::SYS_chroot, vec![Bytes(b"/\0")], NOT_ALLOWED),
        Try(
            "a mount",
            libc::SYS_mount,
            vec![Bytes(b"proc\0"), Bytes(b"/\0"), Bytes(b"proc\0"), Number(0), Number(0)],
            NOT_ALLOWED,
        ),
        Try("a mount gone", libc::SYS_umount2, vec![Bytes(b"/vmlinux\0"), Number(2)], NOT_ALLOWED),
        Try("a network of its own", libc::SYS_unshare, vec![number(libc::CLONE_NEWNET)], NOT_ALLOWED),
        Try("root", libc::SYS_setuid, vec![Number(0)], NOT_ALLOWED),
        Try("another VMM's user", libc::SYS_setuid, vec![Number(0x7000_0000 + (4 << 16) + 3)], NOT_ALLOWED),
        Try("groups", libc::SYS_setgroups, vec![Number(0), Number(0)], NOT_ALLOWED),
        Try("a signal", libc::SYS_kill, vec![Number(pid), Number(0)], NOBODY),
        Try("a handle of a process", libc::SYS_pidfd_open, vec![Number(pid), Number(0)], NOBODY),
        Try(
            "another's threads",
            libc::SYS_ptrace,
            vec![number(16), Number(pid), Number(0), Number(0)],
            NOBODY,
        ),
        Try(
            "frames",
            libc::SYS_socket,
            vec![number(libc::AF_PACKET), number(libc::SOCK_RAW), Number(0)],
            NOT_ALLOWED,
        ),
        Try(
            "packets",
            libc::SYS_socket,
            vec![number(libc::AF_INET), number(libc::SOCK_RAW), Number(1)],
            NOT_ALLOWED,
        ),
        Try("a priority", libc::SYS_setpriority, vec![Number(0), Number(0), Number(-20)], NOT_ALLOWED),
        Try(
            "real time",
            libc::SYS_sched_setscheduler,
            vec![Number(0), Number(1), Bytes(&[50, 0, 0, 0])],
            NOT_ALLOWED,
        ),
        Try(
            "core dumps",
            libc::SYS_setrlimit,
            vec![Number(libc::RLIMIT_CORE.into()), Bytes(&[255; 16])],
            NOT_ALLOWED,
        ),
        Try(
            "threads",
            libc::SYS_setrlimit,
            vec![Number(libc::RLIMIT_NPROC.into()), Bytes(&[255; 16])],
            NOT_ALLOWED,
        ),
        Try("ports", libc::SYS_iopl, vec![Number(3)], NOT_ALLOWED),
        Try("the host's name", libc::SYS_sethostname, vec![Bytes(b"x"), Number(1)], NOT_ALLOWED),
        Try("a module", libc::SYS_init_module, vec![Bytes(&[0; 8]), Number(8), Bytes(b"\0")], NOT_ALLOWED),
        Try(
            "a restart",
            libc::SYS_reboot,
            vec![Number(0xfee1_dead), Number(0x2812_1969), Number(0)],
            NOT_ALLOWED,
        ),
        Try(
            "keys of who started it",
            libc::SYS_keyctl,
            // KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING.
            vec![Number(10), Number(-3), Bytes(b"user\0"), Bytes(b"mvm-attack\0"), Number(0)],
            &[libc::ENOKEY],
        ),
    ]
}

/// A key that whoever has this thread's session has.
fn keep_a_key() {
    // SAFETY: plain system calls, and all texts outlive them. KEYCTL_JOIN_SESSION_KEYRING: a session of this thread's own.
    let kept = unsafe {
        libc::syscall(libc::SYS_keyctl, 1, 0)
            | libc::syscall(libc::SYS_add_key, c"user".as_ptr(), c"mvm-attack".as_ptr(), c"x".as_ptr(), 1, -3)
    };
    assert!(kept > 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as before.
    let found =
        unsafe { libc::syscall(libc::SYS_keyctl, 10, -3, c"user".as_ptr(), c"mvm-attack".as_ptr(), 0) };
    assert!(found > 0, "its twin: this thread finds it");
}

fn block_device(world: &World) -> i64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(world.sandbox.root()).expect("a folder").dev().cast_signed()
}

/// An IPv4 address of this machine, as the kernel takes it.
fn loopback(port: u16) -> Vec<u8> {
    [&libc::AF_INET.to_ne_bytes()[..2], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

/// An instance whose VMM is told everything but to boot, and who it is. Its mvm is killed.
fn unfiltered(world: &World) -> (String, i32, String) {
    world.pool("acme/web", &mvm::cli::tiny_kernel());
    let path = world.sandbox.instance("acme/web");
    let killed = world.sandbox.run_with(&format!("instance start {path}"), "start.configure");
    assert!(crate::support::was_killed(&killed));
    let neighbour = &world.neighbours_vmm["pid"];
    let (pid, tap) = world.sandbox.vmms().into_iter().find(|(pid, _)| *neighbour != *pid).expect("it runs");
    (path, pid, tap)
}

/// No descriptor leads out: a folder of the host's would.
fn has_no_way_in_its_descriptors(world: &World, pid: i32) {
    let root = fs::canonicalize(world.sandbox.root()).expect("a folder");
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten() {
        let Ok(to) = fs::read_link(fd.path()) else { continue };
        let is_folder = fs::metadata(fd.path()).is_ok_and(|meta| meta.is_dir());
        let is_known = !to.is_absolute()
            || to.starts_with(&root)
            || to.starts_with("/dev")
            || to.parent() == Some("/".as_ref());
        assert!(is_known && !is_folder, "{} leads to {}", fd.path().display(), to.display());
    }
}

#[test]
fn without_a_filter_there_is_no_way_out_either() {
    keep_a_key();
    let Some(world) = World::new() else { return };
    let (path, pid, tap) = unfiltered(&world);
    has_no_way_in_its_descriptors(&world, pid);
    let vmm = Tracee::stop(pid);
    // Its twin: it does what it is told.
    assert_eq!(vmm.call(libc::SYS_getpid, &[]), Answer::Did(1));
    assert!(matches!(vmm.call(libc::SYS_openat, &[AT, Bytes(b"/vmm.log\0"), WRITE]), Answer::Did(_)));
    for Try(what, number, arguments, errors) in ways_out(std::process::id().into(), block_device(&world)) {
        let answer = vmm.call(number, &arguments);
        assert!(matches!(&answer, Answer::Failed(error) if errors.contains(error)), "{what}: {answer:?}");
    }
    reaches_nobody(&vmm);
    takes_no_other_tap(&vmm, &world, &tap);
    drop(vmm);
    world.neighbour_goes_on();
    world.sandbox.ok("node recover");
    assert_eq!(world.sandbox.ok(&format!("instance info {path}"))["status"], "ready");
}

/// Services of the host's, by TCP, UDP and names without a file.
fn reaches_nobody(vmm: &Tracee) {
    let socket = |family: i32, kind: i32| {
        let kind = kind | libc::SOCK_NONBLOCK;
        match vmm.call(libc::SYS_socket, &[Number(family.into()), Number(kind.into()), Number(0)]) {
            Answer::Did(fd) => Number(fd),
            other => panic!("a socket: {other:?}"),
        }
    };
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    tcp.set_nonblocking(true).expect("a flag");
    let to = loopback(tcp.local_addr().expect("a port").port());
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM);
    let answer = vmm.call(libc::SYS_connect, &[fd, Bytes(&to), Number(16)]);
    // Landlock refuses it; where there is none, nothing of it arrives.
    let refused = [libc::EACCES, libc::EINPROGRESS];
    assert!(matches!(&answer, Answer::Failed(error) if refused.contains(error)), "{answer:?}");
    assert_eq!(tcp.accept().expect_err("nobody").kind(), ErrorKind::WouldBlock);

    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    udp.set_nonblocking(true).expect("a flag");
    let to = loopback(udp.local_addr().expect("a port").port());
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM);
    let send = [fd, Bytes(b"x"), Number(1), Number(0), Bytes(&to), Number(16)];
    assert_eq!(vmm.call(libc::SYS_sendto, &send), Answer::Failed(libc::EPERM));
    let own = UdpSocket::bind("127.0.0.1:0").expect("a port");
    own.send_to(b"twin", udp.local_addr().expect("a port")).expect("it arrives");
    let mut bytes = [0; 8];
    assert_eq!(udp.recv(&mut bytes).expect("the twin"), 4);
    assert_eq!(udp.recv(&mut bytes).expect_err("nothing").kind(), ErrorKind::WouldBlock);

    let name = format!("mvm-attack-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    listener.set_nonblocking(true).expect("a flag");
    let to = [&libc::AF_UNIX.to_ne_bytes()[..2], b"\0", name.as_bytes()].concat();
    let length = Number(i64::try_from(to.len()).expect("a length"));
    let answer = vmm.call(libc::SYS_connect, &[socket(libc::AF_UNIX, libc::SOCK_STREAM), Bytes(&to), length]);
    if mvm::infra::shell::landlock() < 6 {
        crate::skip("this kernel's Landlock knows no abstract sockets");
    } else {
        assert_eq!(answer, Answer::Failed(libc::EPERM));
    }
}

/// Another tenant's TAP, or a new one.
fn takes_no_other_tap(vmm: &Tracee, world: &World, own: &str) {
    const TUNSETIFF: i64 = 0x4004_54ca;
    /// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    const FLAGS: u16 = 0x5002;
    let open = [AT, Bytes(b"/dev/net/tun\0"), Number(libc::O_RDWR.into())];
    let Answer::Did(tun) = vmm.call(libc::SYS_openat, &open) else { panic!("no /dev/net/tun") };
    let take = |name: &str| {
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
        vmm.call(libc::SYS_ioctl, &[Number(tun), Number(TUNSETIFF), Bytes(&request)])
    };
    let neighbour = world.sandbox.ok(&format!("instance info {}", world.neighbour));
    let theirs = neighbour["net"]["tap_dev"].as_str().expect("a TAP");
    assert_eq!(take(theirs), Answer::Failed(libc::EPERM));
    assert_eq!(take("tn4i99"), Answer::Failed(libc::EPERM));
    // Its twin: its own, which it has already.
    assert_eq!(take(own), Answer::Failed(libc::EBUSY));
}

#[test]
fn the_strict_filter_leaves_none_of_these_calls() {
    let Some(world) = World::new() else { return };
    world.pool("acme/web", &kernel::kernel(kernel::Attack::Ports, 1, 1));
    let path = world.sandbox.instance("acme/web");
    let started: Value = world.sandbox.ok(&format!("instance start {path}"));
    assert_eq!(started["vmm"]["filter"], "strict");
    let pid = i32::try_from(started["vmm"]["pid"].as_i64().expect("a pid")).expect("a pid");
    has_no_way_in_its_descriptors(&world, pid);
    let vmm = Tracee::stop(pid);
    assert!(matches!(vmm.call(libc::SYS_open, &[Bytes(b"/vmm.log\0"), WRITE]), Answer::Did(_)));
    for Try(what, number, arguments, _) in ways_out(std::process::id().into(), block_device(&world)) {
        assert_eq!(vmm.call(number, &arguments), Answer::Forbidden, "{what}");
    }
    let number = |number: i32| Number(number.into());
    for (what, call, arguments) in [
        ("io_uring", libc::SYS_io_uring_setup, vec![Number(8), Bytes(&[0; 120])]),
        ("the network", libc::SYS_socket, vec![number(libc::AF_INET), number(libc::SOCK_STREAM), Number(0)]),
        (
            "datagrams to files",
            libc::SYS_socket,
            vec![number(libc::AF_UNIX), number(libc::SOCK_DGRAM), Number(0)],
        ),
        (
            "code",
            libc::SYS_mmap,
            vec![Number(0), Number(4096), number(libc::PROT_EXEC), number(0x22), Number(-1)],
        ),
        ("code that was data", libc::SYS_mprotect, vec![Number(0), Number(4096), number(libc::PROT_EXEC)]),
        ("a program", libc::SYS_execve, vec![Bytes(b"/firecracker\0"), Number(0), Number(0)]),
        ("a process", libc::SYS_fork, vec![]),
        ("a thread", libc::SYS_clone, vec![number(libc::CLONE_VM)]),
        ("programs of the kernel's", libc::SYS_bpf, vec![Number(0)]),
        ("another TAP", libc::SYS_ioctl, vec![Number(0), Number(0x4004_54ca)]),
        ("another machine", libc::SYS_ioctl, vec![Number(0), Number(0xae01)]),
        ("faults", libc::SYS_userfaultfd, vec![Number(0)]),
        ("descriptors of another", libc::SYS_recvmsg, vec![Number(0), Number(0), Number(0)]),
    ] {
        assert_eq!(vmm.call(call, &arguments), Answer::Forbidden, "{what}");
    }
    drop(vmm);
    // It goes on as if nothing had been, and so does everybody else.
    assert_eq!(world.sandbox.ok(&format!("instance info {path}"))["status"], "running");
    world.neighbour_goes_on();
    world.sandbox.ok(&format!("instance sleep {path}"));
    world.sandbox.ok(&format!("instance wake {path}"));
    world.sandbox.ok(&format!("instance stop --force {path}"));
}
