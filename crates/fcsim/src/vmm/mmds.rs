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
    address: Option<Ipv4Addr>,
    /// Interfaces on which guests may ask.
    interfaces: Vec<String>,
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
    pub(super) fn put(&mut self, data: Value) -> Result<(), ActionError> {
        self.store(data)?;
        self.initialized = true;
        Ok(())
    }

    /// Merges into what is in it; null takes away.
    pub(super) fn patch(&mut self, patch: &Value) -> Result<(), ActionError> {
        if !self.initialized {
            return Err(ActionError::Mmds(MmdsError::NotInitialized));
        }
        let mut data = self.data.clone();
        merge(&mut data, patch);
        self.store(data)
    }

    fn store(&mut self, data: Value) -> Result<(), ActionError> {
        if data.to_string().len() > self.limit {
            return Err(ActionError::MmdsLimit(MmdsError::LimitExceeded));
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
        self.mmds
            .as_mut()
            .filter(|mmds| !mmds.interfaces.is_empty())
            .ok_or(ActionError::Mmds(MmdsError::NotInitialized))
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
            Some(_) => return Err(MmdsConfigError::Address),
        };
        if config.network_interfaces.is_empty() {
            return Err(MmdsConfigError::NoInterfaces);
        }
        let known = |id: &String| self.nets.iter().any(|net| net.config.iface_id == *id);
        if !config.network_interfaces.iter().all(known) {
            return Err(MmdsConfigError::UnknownInterface);
        }
        let mmds = self.mmds_or_default(limit);
        mmds.version = config.version;
        mmds.imds_compat = config.imds_compat;
        mmds.address = Some(address);
        mmds.interfaces.clone_from(&config.network_interfaces);
        Ok(())
    }

    /// The configuration as it is shown, with interfaces in the order of the devices.
    pub(super) fn mmds_config(&self) -> Option<MmdsConfig> {
        let mmds = self.mmds.as_ref()?;
        let ids = self.nets.iter().map(|net| net.config.iface_id.clone());
        let network_interfaces: Vec<_> = ids.filter(|id| mmds.interfaces.contains(id)).collect();
        (!network_interfaces.is_empty()).then_some(MmdsConfig {
            version: mmds.version,
            network_interfaces,
            ipv4_address: mmds.address,
            imds_compat: mmds.imds_compat,
        })
    }
}
