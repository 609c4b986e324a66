//! The balloon: its size, statistics and hinting. Most of it needs a driver in the guest.

use super::{
    Resources,
    error::{BalloonConfigError, BalloonError, DeviceError},
};
use crate::wire::devices::{BalloonDeviceConfig, BalloonStats, HintingStatus, StartHintingCmd};

const PAGES_PER_MIB: u32 = 256;

/// The device.
#[derive(Debug, Default)]
pub(super) struct Balloon {
    pub config: BalloonDeviceConfig,
    host_command: u32,
    last_command: u32,
}

impl Balloon {
    /// A balloon that is not in use yet.
    pub(super) fn new(config: BalloonDeviceConfig) -> Result<Self, BalloonError> {
        if config.amount_mib.checked_mul(PAGES_PER_MIB).is_none() {
            return Err(BalloonError::TooMuchMemoryRequested(u32::MAX / PAGES_PER_MIB));
        }
        Ok(Self { config, ..Self::default() })
    }

    /// What it holds.
    pub(super) fn stats(&self) -> Result<BalloonStats, BalloonError> {
        if self.config.stats_polling_interval_s == 0 {
            return Err(BalloonError::StatisticsDisabled);
        }
        let target_mib = self.config.amount_mib;
        Ok(BalloonStats { target_pages: target_mib * PAGES_PER_MIB, target_mib, ..BalloonStats::default() })
    }

    /// Asks for another size.
    pub(super) fn set_amount(
        &mut self,
        mib: u32,
        memory_mib: usize,
        driver: bool,
    ) -> Result<(), BalloonError> {
        if !driver {
            return Err(BalloonError::DeviceNotActive);
        }
        if mib as usize > memory_mib {
            return Err(BalloonError::TooMuchMemoryRequested(mib));
        }
        self.config.amount_mib = mib;
        Ok(())
    }

    /// Changes how often statistics are asked for; they cannot be switched on or off.
    pub(super) fn set_interval(&mut self, seconds: u16) -> Result<(), BalloonError> {
        let current = &mut self.config.stats_polling_interval_s;
        if *current != seconds && (*current == 0 || seconds == 0) {
            return Err(BalloonError::StatisticsStateChange);
        }
        *current = seconds;
        Ok(())
    }

    /// Starts a run of free page hinting.
    pub(super) fn start_hinting(&mut self, _: StartHintingCmd, driver: bool) -> Result<(), BalloonError> {
        self.with_hinting()?;
        // 0 and 1 mean stop and done
        self.last_command = self.last_command.wrapping_add(1).max(2);
        self.command(self.last_command, driver)
    }

    /// Ends it.
    pub(super) fn stop_hinting(&mut self, driver: bool) -> Result<(), BalloonError> {
        self.with_hinting()?;
        self.command(1, driver)
    }

    /// How it stands.
    pub(super) fn hinting_status(&self) -> Result<HintingStatus, BalloonError> {
        self.with_hinting()?;
        Ok(HintingStatus { host_cmd: self.host_command, guest_cmd: None })
    }

    fn with_hinting(&self) -> Result<(), BalloonError> {
        if self.config.free_page_hinting { Ok(()) } else { Err(BalloonError::HintingNotEnabled) }
    }

    fn command(&mut self, number: u32, driver: bool) -> Result<(), BalloonError> {
        if !driver {
            return Err(BalloonError::DeviceNotActive);
        }
        self.host_command = number;
        Ok(())
    }
}

impl Resources {
    /// Sets the balloon.
    pub(super) fn set_balloon(&mut self, config: BalloonDeviceConfig) -> Result<(), BalloonConfigError> {
        if config.amount_mib as usize > self.machine.mem_size_mib {
            return Err(BalloonConfigError::TooManyPagesRequested);
        }
        self.balloon = Some(Balloon::new(config).map_err(BalloonConfigError::CreateFailure)?);
        Ok(())
    }

    /// Its configuration, before the start.
    pub(super) fn balloon_config(&self) -> Result<BalloonDeviceConfig, BalloonConfigError> {
        self.balloon.as_ref().map(|balloon| balloon.config.clone()).ok_or(BalloonConfigError::DeviceNotFound)
    }

    /// The balloon of a running VM.
    pub(super) fn running_balloon(&mut self) -> Result<&mut Balloon, DeviceError> {
        self.balloon.as_mut().ok_or(DeviceError::NotFound)
    }
}
