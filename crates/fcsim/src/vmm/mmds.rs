//! The metadata service's store and its configuration.

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

use super::{
    Resources,
    error::{ActionError, MmdsConfigError, MmdsError},
};
use crate::{
    api::Reply,
    wire::machine::{MmdsConfig, MmdsVersion},
};

const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The store.
#[derive(Debug, Default)]
pub(super) struct Mmds {
    data: Value,
    initialized: bool,
    limit: usize,
    version: MmdsVersion,
    imds_compat: bool,
}

impl Mmds {
    /// What is in it.
    pub(super) fn reply(&self) -> Reply {
        match &self.data {
            Value::Null => Reply::Json("{}".to_owned()),
            data => Reply::json(data),
        }
    }

    /// Replaces what is in it.
    pub(super) fn put(&mut self, data: Value) -> Result<(), MmdsError> {
        self.store(data)?;
        self.initialized = true;
        Ok(())
    }

    /// Merges into what is in it; null takes away.
    pub(super) fn patch(&mut self, patch: &Value) -> Result<(), MmdsError> {
        if !self.initialized {
            return Err(MmdsError::NotInitialized);
        }
        let mut data = self.data.clone();
        merge(&mut data, patch);
        self.store(data)
    }

    fn store(&mut self, data: Value) -> Result<(), MmdsError> {
        if data.to_string().len() > self.limit {
            return Err(MmdsError::DataStoreLimitExceeded);
        }
        self.data = data;
        Ok(())
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

impl Resources {
    /// The store, made where there is none yet.
    pub(super) fn mmds_or_default(&mut self, limit: usize) -> &mut Mmds {
        self.mmds.get_or_insert_with(|| Mmds { limit, ..Mmds::default() })
    }

    /// The store of a running VM: there is one where an interface leads to it.
    pub(super) fn running_mmds(&mut self) -> Result<&mut Mmds, ActionError> {
        let reachable = self.nets.iter().any(|net| net.mmds.is_some());
        self.mmds.as_mut().filter(|_| reachable).ok_or(ActionError::Mmds(MmdsError::NotInitialized))
    }

    /// Sets version, address and interfaces.
    pub(super) fn set_mmds_config(
        &mut self,
        config: &MmdsConfig,
        limit: usize,
    ) -> Result<(), MmdsConfigError> {
        let address = match config.ipv4_address.map(|address| (address, address.octets())) {
            None => DEFAULT_ADDRESS,
            Some((address, [169, 254, third, _])) if third != 0 && third != 255 => address,
            Some(_) => return Err(MmdsConfigError::InvalidIpv4Addr),
        };
        if config.network_interfaces.is_empty() {
            return Err(MmdsConfigError::EmptyNetworkIfaceList);
        }
        let known = |id: &String| self.nets.iter().any(|net| net.config.iface_id == *id);
        if !config.network_interfaces.iter().all(known) {
            return Err(MmdsConfigError::InvalidNetworkInterfaceId);
        }
        let mmds = self.mmds_or_default(limit);
        mmds.version = config.version;
        mmds.imds_compat = config.imds_compat;
        for net in &mut self.nets {
            net.mmds = config.network_interfaces.contains(&net.config.iface_id).then_some(address);
        }
        Ok(())
    }

    /// The configuration as it is shown, with interfaces in the order of the devices.
    pub(super) fn mmds_config(&self) -> Option<MmdsConfig> {
        let mmds = self.mmds.as_ref()?;
        let reachable = || self.nets.iter().filter(|net| net.mmds.is_some());
        let first = reachable().next()?;
        Some(MmdsConfig {
            version: mmds.version,
            network_interfaces: reachable().map(|net| net.config.iface_id.clone()).collect(),
            ipv4_address: first.mmds,
            imds_compat: mmds.imds_compat,
        })
    }
}
