//! The vsock device: its Unix socket is bound when the device is configured.

use std::{os::unix::net::UnixListener, sync::Arc};

use super::{
    Resources,
    error::{VsockBackendError, VsockError},
};
use crate::wire::devices::VsockDeviceConfig;

/// The device and its bound socket.
#[derive(Debug)]
pub(super) struct Vsock {
    pub config: VsockDeviceConfig,
    pub listener: Arc<UnixListener>,
}

impl Vsock {
    /// Binds the socket; nothing may be at its path.
    pub(super) fn bind(config: VsockDeviceConfig) -> Result<Self, VsockBackendError> {
        let listener = UnixListener::bind(&config.uds_path)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| VsockBackendError::UnixBind(error.into()))?;
        Ok(Self { config: VsockDeviceConfig { vsock_id: None, ..config }, listener: Arc::new(listener) })
    }
}

impl Resources {
    /// Sets the device. The socket of the one before is removed, and must be there for that.
    pub(super) fn set_vsock(&mut self, config: VsockDeviceConfig) -> Result<(), VsockError> {
        if let Some(before) = self.vsock.take() {
            std::fs::remove_file(&before.config.uds_path)
                .map_err(|error| VsockBackendError::UnixBind(error.into()))?;
        }
        self.vsock = Some(Vsock::bind(config)?);
        Ok(())
    }
}
