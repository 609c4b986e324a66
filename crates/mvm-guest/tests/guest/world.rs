//! A machine made of namespaces, with the agent as its first program, and the host's side of its connections.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use mvm_proto::{
    Answer, Frames, Hello, Input, Kind, Request,
    message::{DataDisk, Entropy, Exec, Exited, Identity, Net, Receipt, Status},
    secrets::{SecretFile, SecretSet, Tell},
};

/// Far more than anything here takes.
pub const LONG: Duration = Duration::from_secs(30);

/// What the host makes up for a set of secrets.
pub const SALT: [u8; 32] = [3; 32];

/// The folders that the agent writes to are covered by empty ones, in a mount namespace. Its network has one interface.
const SCRIPT: &str = r#"
set -e
agent=$1 socket=$2
for folder in /run /etc /root; do
    mount -t tmpfs tmpfs $folder
    [ $folder != /run ] || cp "$agent" /run/agent
done
for mount in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    [ ! -e $mount/cgroup.procs ] || { mkdir $mount/$4; echo 0 >$mount/$4/cgroup.procs; }
done
printf 'root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/tmp:/bin/sh\n' >/etc/passwd
printf 'root:x:0:\nann:x:1000:\ntape:x:26:bob,ann\n' >/etc/group
ip tuntap add eth0 mode tap
hostname nobody
limits='--bounding-set=-sys_time,-sys_module --inh-caps=-sys_time,-sys_module'
agent="setpriv $limits /run/agent serve --listen-unix $socket --keep-clock"
# What its parent ignores is not ignored by what it starts.
trap '' HUP QUIT
eval "$3"
exec $agent
"#;

/// A machine.
pub struct World {
    dir: tempfile::TempDir,
    outer: Child,
    /// What the agent says on its console.
    pub console: BufReader<ChildStderr>,
}

impl World {
    /// One with the agent in it; none where this machine cannot have one, which is said. `setup` is run by a shell before
    /// the agent.
    pub fn new(setup: &str) -> Option<Self> {
        if let Some(why) = lacking() {
            skip(why);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // However this thread ends, the machine ends with it.
        let mut outer = Command::new("setpriv")
            .args(["--pdeathsig=KILL", "unshare"])
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--net", "--ipc"])
            .args(["sh", "-c", SCRIPT, "sh", env!("CARGO_BIN_EXE_mvm-guest")])
            .arg(dir.path().join("socket"))
            .arg(setup)
            .arg(dir.path().file_name().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let console = BufReader::new(outer.stderr.take().unwrap());
        let mut world = Self { dir, outer, console };
        world.reads_until("mvm-guest: ready");
        Some(world)
    }

    /// One in which the guest knows who it is.
    pub fn identified(setup: &str) -> Option<Self> {
        let world = Self::new(setup)?;
        let receipt = world.identify(&identity());
        assert_eq!(receipt.failed, None);
        Some(world)
    }

    /// Reads the console up to a line that begins with this, and returns it.
    pub fn reads_until(&mut self, begin: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(self.console.read_line(&mut line).unwrap() > 0, "no line {begin:?}: {all}");
            all.push_str(&line);
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    /// A folder that host and guest share.
    pub fn shared(&self) -> &Path {
        self.dir.path()
    }

    /// The socket of the agent.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A connection on which nothing was said.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// A connection on which a request was made.
    pub fn ask(&self, request: &Request) -> Frames<UnixStream> {
        let mut frames = Frames::on(self.connect());
        frames.send(&Hello::of("test")).unwrap();
        frames.send(request).unwrap();
        let _: Hello = frames.message().unwrap();
        frames
    }

    /// The one answer to a request.
    pub fn answer(&self, request: &Request) -> Answer {
        self.ask(request).message().unwrap()
    }

    pub fn status(&self) -> Status {
        match self.answer(&Request::Status {}) {
            Answer::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub fn identify(&self, identity: &Identity) -> Receipt {
        match self.answer(&Request::Identify(Box::new(identity.clone()))) {
            Answer::Receipt(receipt) => receipt,
            other => panic!("{other:?}"),
        }
    }

    /// Gives the guest these secrets, and no others.
    pub fn give(&self, secrets: &[(&str, &[u8])], tell: Tell) -> Answer {
        let file =
            |(name, content): &(&str, &[u8])| SecretFile { name: (*name).to_owned(), size: content.len() };
        let set = SecretSet { salt: SALT, files: secrets.iter().map(file).collect(), tell };
        let mut frames = self.ask(&Request::Secrets(set));
        match frames.message().unwrap() {
            Answer::Ready {} => {}
            other => return other,
        }
        for (_, content) in secrets {
            frames.data_uncopied(Kind::Data, content).unwrap();
        }
        frames.message().unwrap()
    }

    /// Starts a command.
    pub fn start(&self, exec: Exec) -> Running {
        let mut frames = self.ask(&Request::Exec(exec));
        match frames.message().unwrap() {
            Answer::Started { pid, .. } => Running { frames, pid, output: Vec::new(), errors: Vec::new() },
            other => panic!("{other:?}"),
        }
    }

    /// Runs a command to its end: its output, error output, and how it ended.
    pub fn run(&self, exec: Exec) -> (String, String, Exited) {
        self.start(exec).finish()
    }

    /// Runs a line of shell that must succeed, and returns what it prints.
    pub fn shell(&self, line: &str) -> String {
        let (output, errors, exited) = self.run(shell(line));
        assert_eq!(exited, Exited::Code(0), "{line}: {output}{errors}");
        output.trim().to_owned()
    }

    /// The same, once the agent takes connections again: those of before may be too many still.
    pub fn shell_soon(&self, line: &str) -> String {
        eventually("it takes a connection", || {
            let mut frames = self.ask(&Request::Exec(shell("true")));
            matches!(frames.message().ok()?, Answer::Started { .. }).then_some(())
        });
        self.shell(line)
    }

    /// How many processes have a command line that begins like that.
    pub fn count(&self, command: &str) -> usize {
        let lines = self.shell("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done");
        lines.lines().filter(|line| line.starts_with(command)).count()
    }

    /// Waits for the machine to be switched off.
    pub fn ends(mut self) {
        eventually("the machine ends", || self.outer.try_wait().unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let cgroup = Path::new(mount).join(self.dir.path().file_name().unwrap());
            if cgroup.exists() {
                eventually("its cgroup is empty", || remove(&cgroup).ok());
            }
        }
    }
}

/// Removes a cgroup with those in it.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.path().is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// A command that runs.
pub struct Running {
    pub frames: Frames<UnixStream>,
    pub pid: u32,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Running {
    pub fn input(&mut self, bytes: &[u8]) {
        self.frames.data(Kind::Data, bytes).unwrap();
    }

    pub fn says(&mut self, input: &Input) {
        self.frames.send(input).unwrap();
    }

    /// Reads until its output holds this.
    pub fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.output).contains(text) {
            let ended = self.step();
            assert_eq!(ended, None, "{}", String::from_utf8_lossy(&self.output));
        }
    }

    fn step(&mut self) -> Option<Exited> {
        match self.frames.advance().unwrap() {
            Some(Kind::Data) => self.output.extend_from_slice(self.frames.content()),
            Some(Kind::Errors) => self.errors.extend_from_slice(self.frames.content()),
            Some(Kind::Message) => match self.frames.parse().unwrap() {
                Answer::Exited(exited) => return Some(exited),
                Answer::Took { .. } => {}
                other => panic!("{other:?}"),
            },
            None => panic!("it was closed"),
        }
        None
    }

    pub fn finish(mut self) -> (String, String, Exited) {
        loop {
            if let Some(exited) = self.step() {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return (text(self.output), text(self.errors), exited);
            }
        }
    }
}

/// What a shell does to give the guest a program of its own: a script, and what else is said of it.
pub fn workload(script: &str, more: serde_json::Value) -> String {
    let mut file = serde_json::json!({ "schema_version": 1, "argv": ["sh", "-c", script] });
    file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    format!("mkdir -p /etc/mvm; cat >/etc/mvm/workload.json <<'EOF'\n{file}\nEOF\n")
}

pub fn command(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..Exec::default() }
}

pub fn shell(line: &str) -> Exec {
    command(&["sh", "-c", line])
}

/// An identity as mvm gives it, without a data disk.
pub fn identity() -> Identity {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Identity {
        instance_id: "i-0f3a91c2".into(),
        hostname: "i-0f3a91c2".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        entropy: Entropy([7; 32]),
        net: Net {
            mac: "02:fc:00:03:00:05".into(),
            ip: [10, 240, 3, 5].into(),
            prefix: 24,
            gateway: [10, 240, 3, 1].into(),
            dns: vec![[10, 240, 3, 1].into(), [9, 9, 9, 9].into()],
            mtu: 1400,
        },
        clock_unix_ns: now.as_nanos() as u64,
        data: None,
        ssh_keys: vec!["ssh-ed25519 AAAA one".into(), "ssh-ed25519 BBBB two".into()],
    }
}

/// A disk that no machine here has.
pub fn disk() -> DataDisk {
    DataDisk { uuid: "none".into(), size_bytes: 1, mount: "/data".into() }
}

/// Looks again and again, until something is there.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn lacking() -> Option<&'static str> {
    let can = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("not root: the agent needs namespaces");
    }
    if !can("unshare", &["--pid", "--fork", "--mount", "--mount-proc", "--uts", "--net", "--ipc", "true"]) {
        return Some("no namespaces here for the agent");
    }
    if !can("setpriv", &["--bounding-set=-sys_time", "--inh-caps=-sys_time", "true"]) {
        return Some("no setpriv: the agent is not run with rights to the clock");
    }
    if !can("unshare", &["--net", "ip", "tuntap", "add", "eth0", "mode", "tap"]) {
        return Some("no TAPs here for the agent");
    }
    None
}

fn skip(reason: &str) {
    use std::io::Write;
    println!("SKIP ({reason})");
    if let Some(log) = std::env::var_os("MVM_SKIP_LOG") {
        let line = format!("{reason}\n");
        let _ = fs::File::options().append(true).open(log).and_then(|mut log| log.write_all(line.as_bytes()));
    }
}
