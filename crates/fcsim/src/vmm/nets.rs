//! Network interfaces: the TAP is opened when the interface is configured.

use std::{net::Ipv4Addr, sync::Arc};

use super::{
    Resources,
    error::{DeviceError, NetError, NicError},
};
use crate::{
    guest::{Address, Nic},
    host::tap::Tap,
    wire::{RateLimiterConfig, devices::*},
};

/// An interface and its open TAP.
#[derive(Debug)]
pub(super) struct Net {
    pub config: NetworkInterfaceConfig,
    pub nic: Arc<Nic>,
    /// The address at which the guest finds the metadata service on it. An interface that is put again has none.
    pub mmds: Option<Ipv4Addr>,
}

impl Net {
    /// Opens the TAP. What is configured is kept as it is shown again.
    pub(super) fn open(config: NetworkInterfaceConfig) -> Result<Self, NicError> {
        let tap = Tap::open(&config.host_dev_name)?;
        if let Some(mtu) = config.mtu.filter(|mtu| *mtu < 68) {
            return Err(NicError::InvalidMtu(mtu));
        }
        // without a MAC the driver of a guest makes one up
        let seed = config.iface_id.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        let [a, b, c, d, ..] = seed.to_be_bytes();
        let mac = config.guest_mac.map_or([0x02, 0, a ^ d, b, c, d], |mac| mac.0);
        let config = NetworkInterfaceConfig {
            host_dev_name: tap.name.clone(),
            rx_rate_limiter: RateLimiterConfig::effective(config.rx_rate_limiter),
            tx_rate_limiter: RateLimiterConfig::effective(config.tx_rate_limiter),
            ..config
        };
        let address = Address { mac, ip: None, prefix: 24, gateway: None };
        let nic = Arc::new(Nic::new(config.iface_id.clone(), tap, address));
        Ok(Self { config, nic, mmds: None })
    }
}

impl Resources {
    /// Adds an interface or replaces the one with its id, whose TAP is closed before the new one is opened.
    pub(super) fn insert_net(&mut self, config: NetworkInterfaceConfig) -> Result<(), NetError> {
        self.check_mac(&config)?;
        if let Some(index) = self.nets.iter().position(|net| net.config.iface_id == config.iface_id) {
            self.nets.swap_remove(index);
        }
        self.nets.push(Net::open(config)?);
        Ok(())
    }

    fn check_mac(&self, config: &NetworkInterfaceConfig) -> Result<(), NetError> {
        let Some(mac) = config.guest_mac else {
            return Ok(());
        };
        let mut others = self.nets.iter().filter(|net| net.config.iface_id != config.iface_id);
        if others.any(|net| net.config.guest_mac == Some(mac)) {
            return Err(NetError::GuestMacAddressInUse(mac.to_string()));
        }
        Ok(())
    }

    /// Adds an interface to a running VM.
    pub(super) fn hotplug_net(&mut self, config: NetworkInterfaceConfig) -> Result<(), NetError> {
        self.check_mac(&config)?;
        self.nets.push(Net::open(config)?);
        Ok(())
    }

    /// Changes the limiters of a running VM's interface.
    pub(super) fn update_net(&mut self, update: &NetworkInterfaceUpdateConfig) -> Result<(), NetError> {
        let found = self.nets.iter_mut().find(|net| net.config.iface_id == update.iface_id);
        let config = &mut found.ok_or(NetError::DeviceUpdate(DeviceError::NotFound))?.config;
        config.rx_rate_limiter = RateLimiterConfig::updated(config.rx_rate_limiter, update.rx_rate_limiter);
        config.tx_rate_limiter = RateLimiterConfig::updated(config.tx_rate_limiter, update.tx_rate_limiter);
        Ok(())
    }
}
