//! Who a guest is, and in which order it becomes that. Does no I/O.
//!
//! The host's randomness comes first: until then a clone has that of the snapshot, as all others have, and whatever is made
//! from it is known to its neighbours. The workload comes last.

use std::{net::Ipv4Addr, time::Instant};

use mvm_proto::{
    message::{Confirmed, DataDisk, Entropy, Failure, Identity, Receipt, Wake, facts},
    secrets::Tell,
};

use crate::{secrets::Secrets, system::System};

/// What the thread that mounts the data disk needs.
const STACK: usize = 128 << 10;

/// One thing to be made true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<'a> {
    /// Mix this in, and seed anew.
    Entropy(&'a Entropy),
    /// The wall clock, in ns since 1970. Time that only goes forward is left alone.
    Clock(u64),
    /// The interface's MAC.
    Mac(&'a str),
    /// Its MTU.
    Mtu(u32),
    /// Its address, and no other; the interface is up afterwards.
    Address(Ipv4Addr, u8),
    /// The default route.
    Gateway(Ipv4Addr),
    /// The resolvers.
    Dns(&'a [Ipv4Addr]),
    /// The host's name.
    Hostname(&'a str),
    /// `/etc/machine-id`.
    MachineId(&'a str),
    /// An SSH host key, made here and now.
    HostKey,
    /// Who may log in.
    SshKeys(&'a [String]),
    /// The data disk: checked, and mounted.
    Data(&'a DataDisk),
    /// These secrets are there, and no others.
    Secrets(&'a Secrets),
    /// Who has to hear of that has heard it.
    Told(&'a Tell),
    /// The workload runs.
    Workload,
}

impl Fact<'_> {
    /// Its name in a receipt.
    pub fn name(&self) -> &'static str {
        match self {
            Fact::Entropy(_) => facts::ENTROPY,
            Fact::Clock(_) => facts::CLOCK,
            Fact::Mac(_) => facts::MAC,
            Fact::Mtu(_) => facts::MTU,
            Fact::Address(..) => facts::ADDRESS,
            Fact::Gateway(_) => facts::GATEWAY,
            Fact::Dns(_) => facts::DNS,
            Fact::Hostname(_) => facts::HOSTNAME,
            Fact::MachineId(_) => facts::MACHINE_ID,
            Fact::HostKey => facts::HOST_KEY,
            Fact::SshKeys(_) => facts::SSH_KEYS,
            Fact::Data(_) => facts::DATA,
            Fact::Secrets(_) => facts::SECRETS,
            Fact::Told(_) => facts::TOLD,
            Fact::Workload => facts::WORKLOAD,
        }
    }
}

/// What an identity consists of, in order.
pub(crate) fn of_identity(identity: &Identity) -> Vec<Fact<'_>> {
    let Identity { instance_id: _, hostname, machine_id, entropy, net, clock_unix_ns, data, ssh_keys } =
        identity;
    let mut facts = vec![
        Fact::Entropy(entropy),
        Fact::Clock(*clock_unix_ns),
        Fact::Mac(&net.mac),
        Fact::Mtu(net.mtu),
        Fact::Address(net.ip, net.prefix),
        Fact::Gateway(net.gateway),
        Fact::Dns(&net.dns),
        Fact::Hostname(hostname),
        Fact::MachineId(machine_id),
        Fact::HostKey,
        Fact::SshKeys(ssh_keys),
    ];
    facts.extend(data.as_ref().map(Fact::Data));
    facts.push(Fact::Workload);
    facts
}

/// What a guest that slept needs.
pub(crate) fn of_wake(wake: &Wake) -> Vec<Fact<'_>> {
    vec![Fact::Entropy(&wake.entropy), Fact::Clock(wake.clock_unix_ns)]
}

/// Makes all of it true, in order, up to the first that fails. The data disk, whose mount waits for the host most of the
/// time, is made ready beside what does not need it.
pub(crate) fn apply(system: &impl System, facts: &[Fact<'_>]) -> Receipt {
    let is_data = |fact: &Fact<'_>| matches!(fact, Fact::Data(_));
    let Some(at) = facts.iter().position(is_data) else { return in_order(system, facts) };
    let (before, data, after) = (&facts[..at], &facts[at..=at], &facts[at + 1..]);
    let first = before.iter().take_while(|fact| matches!(fact, Fact::Entropy(_) | Fact::Clock(_))).count();
    let mut receipt = in_order(system, &before[..first]);
    if receipt.failed.is_none() {
        let (beside, mounted) = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("data".into()).stack_size(STACK);
            let mounting = builder.spawn_scoped(scope, || in_order(system, data));
            let beside = in_order(system, &before[first..]);
            let mounted = match mounting {
                Ok(mounting) => mounting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // Where there is no memory for a thread, it comes after the rest.
                Err(_) => in_order(system, data),
            };
            (beside, mounted)
        });
        receipt.append(beside);
        receipt.append(mounted);
    }
    if receipt.failed.is_none() {
        receipt.append(in_order(system, after));
    }
    receipt
}

fn in_order(system: &impl System, facts: &[Fact<'_>]) -> Receipt {
    let mut receipt = Receipt::default();
    for fact in facts {
        let begun = Instant::now();
        let applied = {
            let _running = system.running();
            system.apply(fact)
        };
        let fact = fact.name().to_owned();
        match applied {
            Ok(value) => {
                let ms = begun.elapsed().as_secs_f64() * 1000.0;
                receipt.confirmed.push(Confirmed { fact, value, ms: (ms * 1000.0).round() / 1000.0 });
            }
            Err(error) => {
                receipt.failed = Some(Failure { fact, why: error.to_string() });
                break;
            }
        }
    }
    receipt
}

#[cfg(test)]
mod tests {
    use mvm_proto::message::Net;

    use super::*;

    #[test]
    fn randomness_comes_first_and_the_workload_last() {
        let identity = Identity {
            instance_id: "i-0f3a91c2".into(),
            hostname: "i-0f3a91c2".into(),
            machine_id: "0".repeat(32),
            entropy: Entropy([1; 32]),
            net: Net {
                mac: "02:fc:00:03:00:05".into(),
                ip: [10, 240, 3, 5].into(),
                prefix: 24,
                gateway: [10, 240, 3, 1].into(),
                dns: vec![],
                mtu: 1500,
            },
            clock_unix_ns: 1,
            data: Some(DataDisk { uuid: "u".into(), size_bytes: 1, mount: "/data".into() }),
            ssh_keys: vec![],
        };
        let facts = of_identity(&identity);
        let at = |fact: &dyn Fn(&Fact<'_>) -> bool| facts.iter().position(fact).unwrap();
        assert_eq!(at(&|fact| matches!(fact, Fact::Entropy(_))), 0);
        assert!(at(&|fact| matches!(fact, Fact::HostKey)) > 0);
        assert!(at(&|fact| matches!(fact, Fact::Data(_))) < at(&|fact| matches!(fact, Fact::Workload)));
        assert_eq!(at(&|fact| matches!(fact, Fact::Workload)), facts.len() - 1);
    }
}
