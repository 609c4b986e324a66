//! Tenants, pools and instances: what they are, and the operations on them.

pub mod naming;

#[cfg(target_os = "linux")]
pub mod fleet;
#[cfg(target_os = "linux")]
pub mod image;
#[cfg(target_os = "linux")]
pub mod instance;
#[cfg(target_os = "linux")]
pub mod pool;
#[cfg(target_os = "linux")]
pub mod room;
#[cfg(target_os = "linux")]
pub mod snapshot;
#[cfg(target_os = "linux")]
pub mod tenant;

#[cfg(not(target_os = "linux"))]
pub mod instance {
    //! What the command line needs of it.
    pub mod state;
}
#[cfg(not(target_os = "linux"))]
pub mod pool {
    //! What the command line needs of it.
    pub mod config;
    pub mod on_rotate;
}
#[cfg(not(target_os = "linux"))]
pub mod tenant {
    //! What the command line needs of it.
    pub mod config;
    pub mod quota;
}
