//! A TAP device opened the way Firecracker opens it: existing or made by the open, with a virtio header of 12 bytes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use super::errno::OsError;

/// Bytes of virtio-net header in front of each frame.
pub(crate) const VNET_HEADER: usize = 12;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    #[error("Couldn't open /dev/net/tun: {0}")]
    OpenTun(OsError),
    #[error("Invalid interface name")]
    InvalidIfname,
    #[error(
        "Error while creating ifreq structure: {0}. Invalid TUN/TAP Backend provided by {1}. \
         Check our documentation on setting up the network devices."
    )]
    IfreqExecuteError(OsError, String),
    #[error("Error while setting size of the vnet header: {0}")]
    SetSizeOfVnetHdr(OsError),
}

/// An open TAP: each read or write is one frame with its header. It does not block.
#[derive(Debug)]
pub(crate) struct Tap {
    /// The device, non-blocking.
    pub(crate) file: File,
    /// Its name, as the kernel gave it.
    pub(crate) name: String,
}

impl Tap {
    /// Opens the interface of this name.
    pub(crate) fn open(name: &str) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| TapError::OpenTun(error.into()))?;
        if name.len() >= libc::IFNAMSIZ {
            return Err(TapError::InvalidIfname);
        }
        // SAFETY: ifreq is plain data; all zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) } < 0 {
            return Err(TapError::IfreqExecuteError(io::Error::last_os_error().into(), name.to_owned()));
        }
        let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect();
        let size = VNET_HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) } < 0 {
            return Err(TapError::SetSizeOfVnetHdr(io::Error::last_os_error().into()));
        }
        Ok(Self { file, name })
    }
}
