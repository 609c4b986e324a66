//! `mvm instance ssh`: this process becomes ssh, which reaches the guest's sshd through the agent.
//!
//! No sshd has to run, and no network is needed: each session starts one of its own (`sshd -i`). ssh knows the guest's host key
//! from its receipt, so nobody is asked whether to trust it.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use super::reachable;
use crate::{
    cli::{
        arguments::guest::SshArguments,
        error::{CliError, Kind},
    },
    infra::shell,
    store::{self, Durability},
    vm::{
        instance::{config, lifecycle::Operator},
        tenant::ssh_key,
    },
};

/// The guest's sshd, which serves one session on its stdin and stdout.
const SSHD: &str = "/usr/sbin/sshd -i";

/// Runs the command. Returns only where that fails.
pub fn run(operator: &mut Operator, arguments: SshArguments) -> Result<u8, CliError> {
    let roots = operator.roots.clone();
    let instance = reachable(operator, &arguments.instance)?;
    let path = instance.path();
    let Some(host_key) = &instance.host_key else {
        let what = format!("the guest of {path} confirmed no SSH host key");
        return Err(CliError::new(Kind::Failed, "no_host_key", what)
            .fix(format!("mvm instance stop {path}, and start it again")));
    };
    let Some(ssh) = shell::find("ssh") else {
        return Err(CliError::new(Kind::Environment, "no_program", "there is no ssh here".to_owned())
            .fix("apt-get install openssh-client"));
    };
    let known = config::folder(&roots, &path).join("known_hosts");
    let line = format!("{} {host_key}\n", path.instance);
    if fs::read_to_string(&known).ok().as_deref() != Some(line.as_str()) {
        store::replace(&known, line.as_bytes(), Durability::Atomic)?;
    }
    // The key is there: the guest was told its public half.
    let key = ssh_key::private_file(&roots, &path.tenant);
    let this = std::env::current_exe().map_err(|error| {
        CliError::new(Kind::Environment, "no_program", format!("cannot find mvm: {error}"))
    })?;
    let proxy = [
        quoted(this.as_os_str()),
        OsString::from("--root"),
        quoted(roots.root.as_os_str()),
        OsString::from(format!("--quiet instance exec {path} -- {SSHD}")),
    ]
    .join(OsStr::new(" "));
    let option = |name: &str, value: &OsStr| {
        let mut option = OsString::from(format!("-o{name}="));
        option.push(value);
        option
    };
    let mut list = vec![
        option("ProxyCommand", &proxy),
        option("UserKnownHostsFile", &in_quotes(&known)),
        option("GlobalKnownHostsFile", OsStr::new("/dev/null")),
        option("HostKeyAlias", OsStr::new(&path.instance.to_string())),
        option("HostKeyAlgorithms", OsStr::new("ssh-ed25519")),
        option("StrictHostKeyChecking", OsStr::new("yes")),
        option("IdentityFile", &in_quotes(&key)),
        option("IdentitiesOnly", OsStr::new("yes")),
        option("CheckHostIP", OsStr::new("no")),
        OsString::from("-l"),
        OsString::from(&arguments.login),
    ];
    // ssh takes its own options after the name as well, up to the command.
    list.push(path.instance.to_string().into());
    list.extend(arguments.arguments.iter().map(OsString::from));
    let error = shell::replace(&ssh, list);
    Err(CliError::new(
        Kind::Environment,
        "no_program",
        format!("cannot run {}: {}", ssh.display(), of(&error)),
    ))
}

fn of(error: &io::Error) -> String {
    error.to_string()
}

/// For the shell that runs the proxy command. ssh itself expands `%`.
fn quoted(text: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            b'%' => quoted.extend(b"%%"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    OsStr::from_bytes(&quoted).to_owned()
}

/// For ssh's own reading of an option.
fn in_quotes(path: &Path) -> OsString {
    let mut quoted = OsString::from("\"");
    quoted.push(OsStr::from_bytes(
        &path
            .as_os_str()
            .as_bytes()
            .iter()
            .flat_map(|&byte| match byte {
                b'%' => vec![b'%', b'%'],
                b'"' | b'\\' => vec![b'\\', byte],
                byte => vec![byte],
            })
            .collect::<Vec<u8>>(),
    ));
    quoted.push("\"");
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_talks_to_the_shell_or_to_ssh() {
        assert_eq!(quoted(OsStr::new("/a b'c%d")), OsString::from("'/a b'\\''c%%d'"));
        assert_eq!(in_quotes(Path::new("/a b\"%")), OsString::from("\"/a b\\\"%%\""));
    }
}
