//! What a guest may read of itself at 169.254.169.254, from its VMM: nothing leaves the VMM for it, so nobody else's can be
//! reached. Version 2 of Firecracker's MMDS: no answer without a token, which only who can send a PUT gets.
//!
//! A snapshot keeps that there is such a service, and nothing of what it says: that is put before every load.

use serde_json::{Value, json};

use crate::{
    vm::{instance::config::Instance, pool::config::Pool},
    vmm::wire::Call,
};

/// What the guest of an instance reads; every value is a text, as the form of EC2's service wants it. `None` where its pool
/// has no metadata.
pub fn of(instance: &Instance, pool: &Pool) -> Option<Call> {
    pool.metadata_enabled.then(|| Call::Mmds(contents(instance, pool)))
}

fn contents(instance: &Instance, pool: &Pool) -> Value {
    let net = &instance.net;
    json!({ "latest": { "meta-data": {
        "instance-id": instance.instance_id,
        "local-hostname": instance.instance_id,
        "local-ipv4": net.guest_ip,
        "gateway": net.gateway_ip,
        "mac": net.mac,
        "tenant": instance.tenant_id,
        "pool": instance.pool_id,
        "revision": instance.revision.as_ref().map(ToString::to_string).unwrap_or_default(),
        "tags": { "instance": pool.labels },
    } } })
}
