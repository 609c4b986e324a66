//! What is said where a VMM would run without its jail, its limits or its filter.

use super::{CliError, Kind};
use crate::{
    security::{Lack, cgroups::NoLimits, jailer::NoJail},
    vm::instance::guard::Unprotected,
};

/// What helps a VMM that was started when less was wanted.
const AGAIN: &str = "where mvm doctor misses nothing for it: mvm instance sleep and wake, or stop and start; it comes up with what is wanted by now";

impl From<&Unprotected> for CliError {
    fn from(error: &Unprotected) -> Self {
        let (code, fix) = match error {
            Unprotected::NoJail { why } => {
                let fix = match why {
                    NoJail::NoJailer { .. } => "mvm vmm install FILE --jailer FILE",
                    NoJail::Mounted { .. } => "give MVM_ROOT a file system with dev and exec",
                    _ => {
                        "mvm doctor; on a node that is not in production, mvm pool update TENANT/POOL --insecure true takes less"
                    }
                };
                ("no_jail", fix)
            }
            Unprotected::NoLimits { why } => {
                let fix = format!(
                    "{}; or, on a node that is not in production, mvm pool update TENANT/POOL --insecure true",
                    limits_come_by(why)
                );
                return Self::of(Kind::Refused, "no_limits", error).fix(fix);
            }
            Unprotected::Runs { lack: Lack::Jail } => ("no_jail", AGAIN),
            Unprotected::Runs { lack: Lack::Limits } => ("no_limits", AGAIN),
            Unprotected::Runs { lack: Lack::Filter } | Unprotected::OtherFilter => ("no_filter", AGAIN),
            Unprotected::NoFilter { .. } => (
                "no_filter",
                "mvm vmm install FILE, of an official release, or, on a node that is not in production, mvm pool update TENANT/POOL --insecure true",
            ),
        };
        Self::of(Kind::Refused, code, error).fix(fix)
    }
}

/// What brings the limits that are not there.
pub fn limits_come_by(why: &NoLimits) -> &'static str {
    match why {
        NoLimits::NotMounted => "boot with systemd.unified_cgroup_hierarchy=1",
        NoLimits::ReadOnly { .. } => {
            "a unit without ProtectControlGroups=, or a container that may write its cgroups"
        }
        NoLimits::Processes { .. } => {
            "a container whose first process moves all that run there into a cgroup below, as systemd does"
        }
        NoLimits::Controllers { .. } => {
            "boot with systemd.unified_cgroup_hierarchy=1; a container's cgroup needs them delegated"
        }
    }
}
