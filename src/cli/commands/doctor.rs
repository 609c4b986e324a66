//! `mvm doctor`: settings of this host that hurt, each with what to do about it. Looks at everything; changes only what
//! `--fix` says.

mod at_rest;
mod records;

use std::{fs, path::Path, time::Duration};

use serde::Serialize;
use serde_json::Value;

use crate::cli::{
    error::{CliError, limits_come_by},
    output::{Out, Tone},
};
use crate::{
    infra::{config::Roots, shell},
    security::{self, jailer, users},
    store::StoreError,
    vm::{
        naming::{UID_BASE, UID_LAST},
        room::NodeConfig,
    },
    vmm::{install, process::Program},
};

/// What was looked at, and how it is.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
    /// The setting that `--fix` writes.
    #[serde(skip)]
    setting: Option<(&'static str, &'static str)>,
}

impl Check {
    /// What `--fix` puts right, until the next boot.
    fn settable(mut self, name: &'static str, value: &'static str) -> Self {
        self.fix = Some(format!("mvm doctor --fix, and {name}={value} in /etc/sysctl.d for good"));
        self.setting = Some((name, value));
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, detail: detail.into(), fix: None, setting: None }
}

fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, level: Level::Warn, detail: detail.into(), fix: Some(fix.into()), setting: None }
}

fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, level: Level::Fail, detail: detail.into(), fix: Some(fix.into()), setting: None }
}

fn fail_with(name: &'static str, error: &CliError) -> Check {
    fail(name, error.whole(), error.remedy().unwrap_or("put the file back from a copy"))
}

/// Runs the command.
pub fn run(out: &Out, roots: &Roots, fix: bool) -> Result<u8, CliError> {
    let mut checks = look(roots);
    if fix {
        for (name, value) in checks.iter().filter_map(|check| check.setting) {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&path, value).map_err(StoreError::io("write", &path))?;
            out.note(format!("{name} is {value} now"));
        }
        checks = look(roots);
    }
    let worst = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
    let value = serde_json::json!({ "checks": checks, "ok": worst < Level::Fail });
    out.show(&value, || {
        let line = |check: &Check| {
            let (tone, mark) = match check.level {
                Level::Ok => (Tone::Good, "ok  "),
                Level::Warn => (Tone::Doubtful, "warn"),
                Level::Fail => (Tone::Bad, "fail"),
            };
            let fix = check.fix.as_ref().map_or(String::new(), |fix| format!("        fix: {fix}"));
            format!("{}  {}: {}{fix}", out.paint(tone, mark), check.name, check.detail)
        };
        checks.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(if worst == Level::Fail { 5 } else { 0 })
}

fn look(roots: &Roots) -> Vec<Check> {
    vec![
        privilege(),
        node(roots),
        device(
            "kvm",
            "/dev/kvm",
            "load the module kvm_intel or kvm_amd; without it only --vmm sim runs",
            Level::Warn,
        ),
        device("tun", "/dev/net/tun", "modprobe tun", Level::Fail),
        firecracker(roots),
        jail(roots),
        landlock(),
        at_rest::master_key(roots),
        at_rest::secrets(roots),
        at_rest::storage(roots),
        at_rest::node_key(roots),
        records::audit_logs(roots),
        records::settings(roots),
        program("nft", "nftables"),
        program("mke2fs", "e2fsprogs"),
        cgroups(roots),
        reflinks(roots),
        neighbours(),
        bridge_netfilter(),
        foreign_chains(),
        conntrack(),
        open_files(),
        users_of_vmms(roots),
        memory_overcommit(),
    ]
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn privilege() -> Check {
    match rustix::process::geteuid().is_root() {
        true => ok("root", "runs as root"),
        false => fail("root", "does not run as root: no TAP and no bridge can be made", "sudo mvm …"),
    }
}

fn node(roots: &Roots) -> Check {
    const NAME: &str = "node";
    match NodeConfig::load_if_there(roots) {
        Ok(None) => ok(NAME, format!("nothing was made in {} yet", roots.root.display())),
        Ok(Some(node)) if node.production => ok(NAME, format!("{}, in production", node.node_id)),
        Ok(Some(node)) => ok(NAME, node.node_id),
        Err(error) => fail_with(NAME, &error.into()),
    }
}

fn device(name: &'static str, path: &str, fix: &str, missing: Level) -> Check {
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => ok(name, format!("{path} can be opened")),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let group = if name == "kvm" {
                "add yourself to the group kvm: usermod -aG kvm $USER"
            } else {
                "run as root"
            };
            Check {
                name,
                level: missing,
                detail: format!("{path} may not be opened"),
                fix: Some(group.into()),
                setting: None,
            }
        }
        Err(error) => Check {
            name,
            level: missing,
            detail: format!("{path}: {error}"),
            fix: Some(fix.into()),
            setting: None,
        },
    }
}

fn firecracker(roots: &Roots) -> Check {
    let installed = install::list(roots).unwrap_or_default();
    match (installed.last(), &roots.firecracker_bin) {
        (Some(one), _) => ok("firecracker", format!("{} is installed", one.version)),
        (None, Some(path)) if !path.is_file() => warn(
            "firecracker",
            format!("{} is not there", path.display()),
            "set FIRECRACKER_BIN to one that is",
        ),
        (None, Some(path)) => ok("firecracker", format!("{} is installed at first use", path.display())),
        (None, None) => warn(
            "firecracker",
            "none is installed and none is on PATH: only --vmm sim runs",
            "download a release, then mvm vmm install FILE",
        ),
    }
}

fn program(name: &'static str, package: &str) -> Check {
    match shell::find(name) {
        Some(path) => ok(name, format!("{}", path.display())),
        None => fail(name, "is not there", format!("apt-get install {package}")),
    }
}

/// What a pool may do without, but not a node in production.
fn missing(roots: &Roots, name: &'static str, what: String, fix: &str) -> Check {
    match at_rest::in_production(roots) {
        Some(_) => fail(name, what + ": production does not take it", fix),
        None => warn(name, what, fix),
    }
}

fn cgroups(roots: &Roots) -> Check {
    match security::cgroups::hierarchy() {
        Ok(path) if security::cgroups::limits_disk(&path, &roots.root) => {
            ok("cgroups", format!("version 2 at {}, with what limits need", path.display()))
        }
        Ok(path) => warn(
            "cgroups",
            format!(
                "version 2 at {}, but nothing limits how fast a VMM uses the disk beside its own rate limiters",
                path.display()
            ),
            "the io controller, and MVM_ROOT on a file system of one disk (io.max)",
        ),
        Err(why) => missing(
            roots,
            "cgroups",
            format!("what a VMM uses cannot be limited: {why}"),
            limits_come_by(&why),
        ),
    }
}

/// Tries the real place: a reflink across file systems silently becomes a copy.
fn reflinks(roots: &Roots) -> Check {
    let place = if roots.root.exists() { roots.root.clone() } else { std::path::PathBuf::from("/var/lib") };
    let names = ["a", "b"].map(|name| place.join(format!(".reflink-{}-{name}", std::process::id())));
    let tried = (|| {
        fs::write(&names[0], [1; 4096])?;
        let (from, to) = (fs::File::open(&names[0])?, fs::File::create(&names[1])?);
        Ok::<bool, std::io::Error>(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
    })();
    for name in &names {
        let _ = fs::remove_file(name);
    }
    match tried {
        Ok(true) => ok("reflinks", format!("under {}", place.display())),
        Ok(false) => warn(
            "reflinks",
            format!("none under {}: root disks are copied, some 400 ms per GiB of data", place.display()),
            "put it on btrfs or xfs",
        ),
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            fail_with("reflinks", &StoreError::io("write to", &place)(error).into())
        }
        Err(error) => {
            warn("reflinks", format!("cannot try under {}: {error}", place.display()), "run as root")
        }
    }
}

fn neighbours() -> Check {
    match number("/proc/sys/net/ipv4/neigh/default/gc_thresh3") {
        Some(limit) if limit < 8192 => warn(
            "neighbours",
            format!(
                "net.ipv4.neigh.default.gc_thresh3 is {limit}: above {} VMs neighbours fail",
                limit * 9 / 10
            ),
            "",
        )
        .settable("net.ipv4.neigh.default.gc_thresh3", "16384"),
        Some(limit) => ok("neighbours", format!("gc_thresh3 is {limit}")),
        None => ok("neighbours", "no limit of the table is visible here"),
    }
}

fn bridge_netfilter() -> Check {
    match number("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        Some(1) => warn(
            "br_netfilter",
            "bridged frames pass the forward chains: a foreign one with policy drop stops a tenant's own traffic",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0, if nothing else needs it",
        ),
        _ => ok("br_netfilter", "off"),
    }
}

/// A forward chain of somebody else that drops what it does not know (Docker, ufw, firewalld): mvm's rules cannot undo it.
fn foreign_chains() -> Check {
    const NAME: &str = "forward chains";
    let listed = shell::run("nft", ["-j", "list", "chains"], b"", Duration::from_secs(10));
    let Ok(json) = listed.map(|json| serde_json::from_slice::<Value>(&json).unwrap_or_default()) else {
        return warn(NAME, "nft cannot list them", "run as root");
    };
    let chains = json["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let drops = |chain: &&Value| {
        chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"].as_str() != Some("mvm")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let strangers: Vec<String> = chains
        .filter(drops)
        .map(|chain| {
            let (family, table, name) = (text(&chain["family"]), text(&chain["table"]), text(&chain["name"]));
            format!("{family} {table} {name}")
        })
        .collect();
    match strangers.is_empty() {
        true => ok(NAME, "none of somebody else drops by default"),
        false => warn(
            NAME,
            format!("by default dropped in {}: guests reach no outside", strangers.join(", ")),
            "accept iifname and oifname br-tenant-* there",
        ),
    }
}

fn conntrack() -> Check {
    match number("/proc/sys/net/netfilter/nf_conntrack_max") {
        Some(limit) if limit < 65_536 => {
            warn("conntrack", format!("nf_conntrack_max is {limit}: a few busy guests fill it"), "")
                .settable("net.netfilter.nf_conntrack_max", "262144")
        }
        Some(limit) => ok("conntrack", format!("nf_conntrack_max is {limit}")),
        None => ok("conntrack", "not loaded yet"),
    }
}

fn open_files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < 1024 => warn("nofile", format!("{limit} open files"), "ulimit -n 65536"),
        Some(limit) => ok("nofile", format!("{limit} open files")),
        None => ok("nofile", "not limited"),
    }
}

/// Can Firecracker be jailed here?
fn jail(roots: &Roots) -> Check {
    let installed = install::list(roots).unwrap_or_default();
    let chosen = installed.iter().find(|one| one.default).or(installed.last());
    let program = match (chosen, &roots.firecracker_bin) {
        (Some(one), _) => one.program(),
        (None, Some(path)) => Program {
            path: path.clone(),
            first_arguments: Vec::new(),
            version: "found".to_owned(),
            jailer: install::found_jailer(roots, path).map(Path::to_path_buf),
        },
        (None, None) => return ok("jail", "there is no Firecracker to be jailed"),
    };
    match jailer::jail(roots, &program, UID_BASE) {
        Ok(_) => ok("jail", "Firecracker runs in a jail"),
        Err(why) => missing(
            roots,
            "jail",
            format!("Firecracker cannot be jailed: {why}"),
            "mvm vmm install FILE --jailer FILE, both linked statically, and a MVM_ROOT with dev and exec",
        ),
    }
}

/// What fences VMMs off from abstract sockets.
fn landlock() -> Check {
    match shell::landlock() {
        6.. => ok("landlock", "VMMs are kept from TCP, and from abstract sockets of the host"),
        4 | 5 => {
            warn("landlock", "VMMs are not kept from abstract sockets of the host", "Linux 6.12 or later")
        }
        _ => warn(
            "landlock",
            "VMMs are kept from abstract sockets of the host by nothing",
            "Linux 6.12 or later, with landlock among lsm= on the kernel's command line",
        ),
    }
}

/// The users of jailed VMMs must be nobody's.
fn users_of_vmms(roots: &Roots) -> Check {
    const NAME: &str = "users";
    match users::given(UID_BASE..=UID_LAST) {
        Some(given) => missing(
            roots,
            NAME,
            format!("users of VMMs are somebody's: {given}"),
            "give that one other ids: no instance that gets one of these can be jailed",
        ),
        None => ok(NAME, "those of VMMs are nobody's, as far as the files of this machine say"),
    }
}

fn memory_overcommit() -> Check {
    match number("/proc/sys/vm/overcommit_memory") {
        Some(2) => {
            warn("overcommit", "vm.overcommit_memory is 2: guests' memory counts in full from the start", "")
                .settable("vm.overcommit_memory", "0")
        }
        _ => ok("overcommit", "memory is given as it is touched"),
    }
}
