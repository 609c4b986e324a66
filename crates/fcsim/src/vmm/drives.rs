//! Drives and pmem devices.

use std::{
    fs::{File, OpenOptions},
    os::unix::net::UnixStream,
    sync::Arc,
};

use super::{
    Resources,
    error::{BackingFileError, BlockError, DeviceError, DriveError, PmemConfigError, PmemError},
};
use crate::{
    guest::Disk,
    host::errno::OsError,
    wire::{RateLimiterConfig, devices::*},
};

/// A drive and its open file; none behind a vhost-user socket.
#[derive(Debug)]
pub(super) struct Drive {
    pub config: BlockDeviceConfig,
    file: Option<Arc<File>>,
}

impl Drive {
    /// Opens a drive. What was left out is filled in, as it is shown again.
    pub(super) fn open(config: BlockDeviceConfig) -> Result<Self, BlockError> {
        match (&config.path_on_host, &config.socket) {
            (Some(path), None) => {
                let read_only = config.is_read_only.unwrap_or(false);
                let file = open_file(path, read_only)?;
                let config = BlockDeviceConfig {
                    is_read_only: Some(read_only),
                    rate_limiter: RateLimiterConfig::effective(config.rate_limiter),
                    io_engine: Some(config.io_engine.unwrap_or_default()),
                    ..config
                };
                Ok(Self { config, file: Some(file) })
            }
            (None, Some(socket))
                if config.is_read_only.is_none()
                    && config.rate_limiter.is_none()
                    && config.io_engine.is_none() =>
            {
                match UnixStream::connect(socket) {
                    Err(error) => Err(BlockError::VhostUserBackend(OsError(error).to_string())),
                    Ok(_) => Err(BlockError::VhostUserBackend("vhost-user is not simulated".to_owned())),
                }
            }
            _ => Err(BlockError::InvalidBlockConfig),
        }
    }

    /// As the guest sees it.
    pub(super) fn disk(&self) -> Option<Disk> {
        Some(Disk {
            id: self.config.drive_id.clone(),
            file: Arc::clone(self.file.as_ref()?),
            read_only: self.config.is_read_only.unwrap_or(false),
        })
    }
}

fn open_file(path: &str, read_only: bool) -> Result<Arc<File>, BlockError> {
    let wrong = |error: std::io::Error| BackingFileError::BackingFile(error.into(), path.to_owned());
    let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(wrong)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| wrong(error.into()))?;
    Ok(Arc::new(file))
}

/// Opens the file of a pmem device once, to see whether it could be mapped.
pub(super) fn check_pmem(config: &PmemConfig) -> Result<(), PmemError> {
    let file = OpenOptions::new().read(true).write(!config.read_only).open(&config.path_on_host);
    let meta = file.and_then(|file| file.metadata()).map_err(|error| PmemError::BackingFile(error.into()))?;
    match (meta.len(), meta.is_file()) {
        (0, _) => Err(PmemError::BackingFileZeroSize),
        (_, true) => Ok(()),
        (_, false) => Err(PmemError::BackingFile(rustix::io::Errno::NODEV.into())),
    }
}

impl Resources {
    pub(super) fn has_root_drive(&self) -> bool {
        self.drives.first().is_some_and(|drive| drive.config.is_root_device)
    }

    /// Adds a drive or replaces the one with its id.
    pub(super) fn insert_drive(&mut self, config: BlockDeviceConfig) -> Result<(), DriveError> {
        let root = config.is_root_device;
        let position = self.drives.iter().position(|drive| drive.config.drive_id == config.drive_id);
        if root && self.pmem.iter().any(|pmem| pmem.root_device) {
            return Err(DriveError::AddingSecondRootDevice);
        }
        if root && self.has_root_drive() && position != Some(0) {
            return Err(DriveError::RootBlockDeviceAlreadyAdded);
        }
        let drive = Drive::open(config)?;
        match position {
            None if root => self.drives.insert(0, drive),
            None => self.drives.push(drive),
            Some(index) => {
                self.drives[index] = drive;
                if root {
                    self.drives.swap(0, index);
                }
            }
        }
        Ok(())
    }

    /// Changes the file or the limiter of a running VM's drive.
    pub(super) fn update_drive(&mut self, update: BlockDeviceUpdateConfig) -> Result<(), DriveError> {
        let found = self.drives.iter_mut().find(|drive| drive.config.drive_id == update.drive_id);
        let drive = found.ok_or(DriveError::DeviceUpdate(DeviceError::NotFound))?;
        let wrong = |error: BlockError| DriveError::DeviceUpdate(error.into());
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            // this form asks a vhost-user backend for its size
            return Err(wrong(BlockError::InvalidBlockBackend));
        }
        if let Some(path) = update.path_on_host {
            drive.file = Some(open_file(&path, drive.config.is_read_only.unwrap_or(false)).map_err(wrong)?);
            drive.config.path_on_host = Some(path);
        }
        drive.config.rate_limiter =
            RateLimiterConfig::updated(drive.config.rate_limiter, update.rate_limiter);
        Ok(())
    }

    /// Adds a pmem device or replaces the one with its id; its file is looked at when the VM starts.
    pub(super) fn insert_pmem(&mut self, config: PmemConfig) -> Result<(), PmemConfigError> {
        if config.root_device && self.has_root_drive() {
            return Err(PmemConfigError::AddingSecondRootDevice);
        }
        let position = self.pmem.iter().position(|pmem| pmem.id == config.id);
        let was_root = position.is_some_and(|index| self.pmem[index].root_device);
        if config.root_device && !was_root && self.pmem.iter().any(|pmem| pmem.root_device) {
            return Err(PmemConfigError::RootPmemDeviceAlreadyExist);
        }
        match position {
            Some(index) => self.pmem[index] = config,
            None => self.pmem.push(config),
        }
        Ok(())
    }

    /// Changes the limiter of a running VM's pmem device, which goes on being shown as it was configured.
    pub(super) fn update_pmem(&self, update: &PmemDeviceUpdateConfig) -> Result<(), PmemConfigError> {
        let is_there = self.pmem.iter().any(|pmem| pmem.id == update.id);
        match update.rate_limiter.is_none() || is_there {
            true => Ok(()),
            false => Err(PmemConfigError::DeviceUpdate(DeviceError::NotFound)),
        }
    }
}
