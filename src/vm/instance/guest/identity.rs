//! Who a guest shall be, and whether it says that it is.
//!
//! A receipt is whole where every fact is confirmed with the value that the guest was told. It proves nothing against a guest
//! that lies: what it may do on the network is decided outside of it.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mvm_proto::{
    Answer, Request,
    message::{Confirmed, DataDisk, Entropy, Identity, Net, Receipt, Wake, facts},
};
use sha2::{Digest, Sha256};

use super::{Guest, GuestError, printable};
use crate::{
    infra::{config::Roots, entropy::random, text::hex},
    store::StoreError,
    vm::{
        instance::{
            config::{self, Instance},
            disk,
            fc_config::files,
        },
        tenant,
    },
};

/// Where a guest's data disk is mounted.
const DATA: &str = "/data";
/// How far a guest's clock may be from what it was told, beside the time that the answer took.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// Who an instance's guest shall be. The time in it is that of this moment.
///
/// # Errors
/// When its data disk cannot be looked at, its tenant has no key, or the kernel gives no randomness.
pub fn of(roots: &Roots, instance: &Instance, mtu: u32) -> Result<Identity, StoreError> {
    let path = instance.path();
    let net = &instance.net;
    let data = match instance.resources.data_disk_mib {
        0 => None,
        _ => {
            let file = config::folder(roots, &path).join("volumes").join(files::DATA);
            let (uuid, size_bytes) = disk::ext4_identity(&file)?;
            Some(DataDisk { uuid, size_bytes, mount: DATA.to_owned() })
        }
    };
    Ok(Identity {
        instance_id: path.instance.to_string(),
        hostname: path.instance.to_string(),
        machine_id: machine_id(instance),
        entropy: entropy()?,
        net: Net {
            mac: net.mac.to_string(),
            ip: net.guest_ip,
            prefix: net.cidr.net().prefix_len(),
            gateway: net.gateway_ip,
            // It hands questions to the host's resolvers.
            dns: vec![net.gateway_ip],
            mtu,
        },
        clock_unix_ns: clock(roots),
        data,
        ssh_keys: vec![tenant::ssh_key::public(roots, &path.tenant)?],
    })
}

/// The same as long as the instance is, and another one for each.
fn machine_id(instance: &Instance) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("machine-id {} {}", instance.path(), instance.created_at));
    hex(&hasher.finalize()[..16])
}

fn entropy() -> Result<Entropy, StoreError> {
    random().map(Entropy).map_err(StoreError::io("read", Path::new("/dev/urandom")))
}

fn clock(roots: &Roots) -> u64 {
    u64::try_from(roots.now().as_nanosecond()).unwrap_or_else(|_| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Tells a guest who it is. Returns what it confirmed, all of which is as it should be.
///
/// # Errors
/// [`GuestError`] says what it did not confirm.
pub fn identify(mut guest: Guest, identity: Identity) -> Result<Vec<Confirmed>, GuestError> {
    let net = &identity.net;
    let words =
        |all: &[std::net::Ipv4Addr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut expected = vec![
        (facts::ENTROPY, Some(String::new())),
        (facts::CLOCK, None),
        (facts::MAC, Some(net.mac.clone())),
        (facts::MTU, Some(net.mtu.to_string())),
        (facts::ADDRESS, Some(format!("{}/{}", net.ip, net.prefix))),
        (facts::GATEWAY, Some(net.gateway.to_string())),
        (facts::DNS, Some(words(&net.dns))),
        (facts::HOSTNAME, Some(identity.hostname.clone())),
        (facts::MACHINE_ID, Some(identity.machine_id.clone())),
        (facts::HOST_KEY, None),
        (facts::SSH_KEYS, Some(identity.ssh_keys.len().to_string())),
    ];
    expected.extend(identity.data.as_ref().map(|data| (facts::DATA, Some(data.uuid.clone()))));
    expected.push((facts::WORKLOAD, None));
    expected.push((facts::INSTANCE, Some(identity.instance_id.clone())));
    let told = identity.clock_unix_ns;
    let asked = Instant::now();
    match guest.ask(&Request::Identify(Box::new(identity)), guest.identify_limit())? {
        Answer::Receipt(receipt) => check_with_clock(receipt, &expected, told, asked.elapsed()),
        _ => Err(guest.unexpected()),
    }
}

/// Tells a guest that it slept: what time it is, and something that no other copy of it knows.
///
/// # Errors
/// [`GuestError`] says what it did not confirm.
pub fn wake(roots: &Roots, mut guest: Guest, instance: &Instance) -> Result<Vec<Confirmed>, GuestError> {
    let entropy = entropy()
        .map_err(|error| GuestError::Failed { fact: facts::ENTROPY.to_owned(), why: error.to_string() })?;
    let told = clock(roots);
    let wake = Wake { instance_id: instance.instance_id.to_string(), entropy, clock_unix_ns: told };
    let expected = [
        (facts::ENTROPY, Some(String::new())),
        (facts::CLOCK, None),
        (facts::INSTANCE, Some(wake.instance_id.clone())),
    ];
    let asked = Instant::now();
    match guest.ask(&Request::Wake(wake), guest.identify_limit())? {
        Answer::Receipt(receipt) => check_with_clock(receipt, &expected, told, asked.elapsed()),
        _ => Err(guest.unexpected()),
    }
}

/// The host key that a guest confirmed.
pub fn host_key(confirmed: &[Confirmed]) -> Option<String> {
    confirmed.iter().find(|one| one.fact == facts::HOST_KEY).map(|one| one.value.clone())
}

/// What a receipt confirms, where that is all that was expected; a clock is none of it.
///
/// # Errors
/// [`GuestError`] says what is not as it should be.
pub fn check(receipt: Receipt, expected: &[(&str, Option<String>)]) -> Result<Vec<Confirmed>, GuestError> {
    check_with_clock(receipt, expected, 0, Duration::ZERO)
}

/// Milliseconds, as a guest says them.
pub fn plausible(ms: f64) -> f64 {
    if ms.is_finite() { ms.clamp(0.0, 1e6) } else { 0.0 }
}

fn check_with_clock(
    receipt: Receipt,
    expected: &[(&str, Option<String>)],
    told_clock: u64,
    took: Duration,
) -> Result<Vec<Confirmed>, GuestError> {
    if let Some(failure) = receipt.failed {
        return Err(GuestError::Failed { fact: printable(&failure.fact), why: printable(&failure.why) });
    }
    let mut confirmed = Vec::new();
    for (fact, value) in expected {
        let unconfirmed = |expected: &str, said: &str| GuestError::Unconfirmed {
            fact: (*fact).to_owned(),
            expected: if expected.is_empty() { "confirmed".to_owned() } else { expected.to_owned() },
            said: if said.is_empty() { "nothing".to_owned() } else { printable(said) },
        };
        let Some(said) = receipt.confirmed.iter().find(|one| one.fact == *fact) else {
            return Err(unconfirmed(value.as_deref().unwrap_or(""), ""));
        };
        match (*fact, value) {
            (_, Some(value)) if said.value != *value => return Err(unconfirmed(value, &said.value)),
            (facts::CLOCK, _) => {
                let off = said.value.parse::<u64>().ok().map(|clock| clock.abs_diff(told_clock));
                if off.is_none_or(|off| u128::from(off) > (took + CLOCK_SLACK).as_nanos()) {
                    return Err(unconfirmed(&told_clock.to_string(), &said.value));
                }
            }
            (facts::HOST_KEY, _) if !is_host_key(&said.value) => {
                return Err(unconfirmed("an Ed25519 key", &said.value));
            }
            _ => {}
        }
        let (value, ms) = (printable(&said.value), plausible(said.ms));
        confirmed.push(Confirmed { fact: (*fact).to_owned(), value, ms });
    }
    Ok(confirmed)
}

/// It stands in a file that ssh reads.
fn is_host_key(text: &str) -> bool {
    text.strip_prefix("ssh-ed25519 ").is_some_and(|key| {
        (40..=200).contains(&key.len())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '='))
    })
}

#[cfg(test)]
mod tests {
    use mvm_proto::message::Failure;

    use super::*;

    fn said(fact: &str, value: &str) -> Confirmed {
        Confirmed { fact: fact.into(), value: value.into(), ms: 0.5 }
    }

    fn receipt(confirmed: Vec<Confirmed>) -> Receipt {
        Receipt { confirmed, failed: None }
    }

    #[test]
    fn a_receipt_is_whole_or_an_error() {
        let key = format!("ssh-ed25519 {}", "A".repeat(68));
        let expected = [
            (facts::MAC, Some("02:fc:00:03:00:05".to_owned())),
            (facts::CLOCK, None),
            (facts::HOST_KEY, None),
        ];
        let whole = vec![
            said(facts::MAC, "02:fc:00:03:00:05"),
            said(facts::CLOCK, "1000000000"),
            said(facts::HOST_KEY, &key),
        ];
        let check = |receipt| check_with_clock(receipt, &expected, 1_000_000_000, Duration::ZERO);
        assert_eq!(check(receipt(whole.clone())).unwrap(), whole);
        for (at, lie) in
            [(0, "02:fc:00:03:00:06"), (1, "9000000000"), (1, "noon"), (2, "ssh-ed25519 x\ny"), (2, "")]
        {
            let mut confirmed = whole.clone();
            confirmed[at].value = lie.into();
            assert!(matches!(check(receipt(confirmed)), Err(GuestError::Unconfirmed { .. })), "{lie}");
        }
        for at in 0..whole.len() {
            let mut confirmed = whole.clone();
            confirmed.remove(at);
            assert!(check(receipt(confirmed)).is_err(), "{at}");
        }
        let failed = Some(Failure { fact: "mac".into(), why: "\x1b[2Jno".into() });
        let failed = check(Receipt { confirmed: whole, failed }).unwrap_err().to_string();
        assert!(!failed.contains('\x1b'), "{failed}");
    }
}
