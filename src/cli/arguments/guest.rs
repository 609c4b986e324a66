//! `mvm instance exec|cp|ssh`, `mvm run`: what reaches into a guest.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::arguments::pool::parse_vmm,
    vm::{
        naming::{ImageName, InstanceRef},
        pool::config::VmmKind,
    },
};

#[derive(Debug, Args)]
pub struct ExecArguments {
    /// TENANT/POOL/INSTANCE
    pub instance: InstanceRef,
    #[command(flatten)]
    pub how: ExecOptions,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

/// How a command is run in a guest.
#[derive(Debug, Default, Args)]
pub struct ExecOptions {
    /// Give it a terminal: keys, signals and the window's size go through
    #[arg(short, long)]
    pub terminal: bool,
    /// Send it nothing of stdin
    #[arg(short, long, conflicts_with = "terminal")]
    pub no_stdin: bool,
    /// Set a variable in its environment; may be given again
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Run it there [default: the user's home]
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run it as USER, UID, USER:GROUP or UID:GID [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Do not escape what could talk to the terminal
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct CopyArguments {
    /// A path, or TENANT/POOL/INSTANCE:PATH
    #[arg(value_name = "FROM")]
    pub from: Place,
    /// TENANT/POOL/INSTANCE:PATH, or a path; what is a folder there gets it inside
    #[arg(value_name = "TO")]
    pub to: Place,
}

/// One end of a copy.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the host.
    Host(PathBuf),
    /// In a guest.
    Guest(InstanceRef, String),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            // A file of the host whose name has a colon is reached as ./name.
            Some((instance, path)) if !instance.starts_with(['/', '.']) => {
                let instance = instance.parse::<InstanceRef>().map_err(|error| error.to_string())?;
                match path.starts_with('/') {
                    true => Ok(Self::Guest(instance, path.to_owned())),
                    false => Err(format!("{path:?}: a path in a guest begins with /")),
                }
            }
            _ if text.is_empty() => Err("an empty path".to_owned()),
            _ => Ok(Self::Host(text.into())),
        }
    }
}

#[derive(Debug, Args)]
pub struct SshArguments {
    /// TENANT/POOL/INSTANCE
    pub instance: InstanceRef,
    /// The user in the guest
    #[arg(short, long, value_name = "USER", default_value = "root")]
    pub login: String,
    /// What ssh gets: its own options, and a command
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    /// The image: `debian` is made where it is not there
    pub image: ImageName,
    /// vCPUs
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub mem: u64,
    /// Data disk, in MiB; 0: none
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub data_disk: u64,
    /// The VMM: firecracker, or sim, which runs no guest
    #[arg(long, value_name = "VMM", value_parser = parse_vmm, default_value = "firecracker")]
    pub vmm: (VmmKind, Option<String>),
    /// Keep the instance, and say how to reach it
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub how: ExecOptions,
    /// The program and its arguments [default: a shell on a terminal]
    #[arg(last = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_guest_or_on_the_host() {
        let place = |text: &str| text.parse::<Place>();
        assert!(
            matches!(place("acme/web/i-0f:/etc/hosts"), Ok(Place::Guest(_, path)) if path == "/etc/hosts")
        );
        for host in ["/etc/hosts", "./a:b", "file", "../x"] {
            assert!(matches!(place(host), Ok(Place::Host(path)) if path == *host), "{host}");
        }
        for bad in ["acme/web/i-0f:etc", "a:b", "acme/web:/x", ""] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
