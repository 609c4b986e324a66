//! The programs and files by which a test sets a host up, changes it and looks at it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use mvm::net::{links, netlink::Socket};

use super::frames::Mac;

/// Is br_netfilter there? Its switch belongs to each network namespace.
pub fn has_br_netfilter() -> bool {
    std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Gives a program its input, and fails where it fails.
pub fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

pub fn ip(lines: &str) {
    feed("ip", &["-batch", "-"], lines);
}

pub fn nft(text: &str) {
    feed("nft", &["-f", "-"], text);
}

pub fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap_or_else(|e| panic!("{setting}: {e}"));
}

/// The host's neighbour entries, on all interfaces.
pub fn neighbours() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "neigh", "show", "nud", "all"]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let mut entries: Vec<String> = text.lines().map(address).collect();
    entries.sort();
    entries
}

pub fn mac_of(name: &str) -> Mac {
    let mut socket = Socket::route().expect("netlink");
    let link = links::find(&mut socket, name).expect("links").expect("it is there");
    link.mac.expect("a MAC").octets()
}

pub fn text(mac: Mac) -> String {
    mvm::vm::naming::Mac::new(mac).to_string()
}
