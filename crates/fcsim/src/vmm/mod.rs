//! The VMM behind the API: what it was told, whether it runs, and which action may come when.
//!
//! ```text
//! Not started ──InstanceStart──> Running <──PATCH /vm──> Paused
//!      └──────/snapshot/load (only with nothing configured)──┘
//! ```

mod balloon;
mod boot;
mod config_file;
mod drives;
pub(crate) mod error;
mod hotplug;
mod kernel;
mod machine;
mod mmds;
mod nets;
mod resources;
mod restore;
mod start_error;
mod vsock;

use std::{sync::Arc, time::Instant};

pub(crate) use config_file::ConfigFileError;
pub(crate) use error::MmdsError;
use error::{ActionError, DeviceError};
pub(crate) use resources::Resources;
use serde_json::json;

use crate::{
    api::{Action, Reply},
    fault::Faults,
    guest::{Exit, Guest},
    log::{self, log},
    metrics,
    snapshot::{CreateError, state_file},
    wire::snapshot::{CreateSnapshotParams, SnapshotType},
};

/// What the command line and the environment said.
pub(crate) struct Settings {
    pub id: String,
    pub version: String,
    pub mmds_limit: usize,
    pub pci: bool,
    pub faults: Arc<Faults>,
    pub exit: Arc<Exit>,
}

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NotStarted,
    Running,
    Paused,
}

/// One VMM.
pub(crate) struct Vmm {
    settings: Settings,
    resources: Resources,
    state: State,
    guest: Option<Guest>,
    /// Something was configured that a load would collide with.
    boot_path: bool,
    /// A load failed half-way: the process ends.
    doomed: bool,
}

type Outcome = Result<Reply, ActionError>;

impl Vmm {
    /// A VMM with nothing configured.
    pub(crate) fn new(settings: Settings) -> Self {
        let resources = Resources { pci: settings.pci, ..Resources::default() };
        Self { settings, resources, state: State::NotStarted, guest: None, boot_path: false, doomed: false }
    }

    /// Must the process end because of the last action?
    pub(crate) fn doomed(&self) -> bool {
        self.doomed
    }

    /// Does an action.
    pub(crate) fn act(&mut self, action: Action) -> Outcome {
        match self.guest {
            None => self.before_boot(action),
            Some(_) => self.after_boot(action),
        }
    }

    fn before_boot(&mut self, action: Action) -> Outcome {
        use Action::*;
        self.boot_path |= matches!(
            action,
            ConfigureBootSource(_)
                | InsertDrive(_)
                | InsertNet(_)
                | InsertPmem(_)
                | SetBalloon(_)
                | SetMmdsConfig(_)
                | UpdateMachineConfig(_)
                | SetVsock(_)
                | SetEntropy(_)
                | SetMemoryHotplug(_)
        );
        match action {
            ConfigureBootSource(config) => self.resources.set_boot_source(config)?,
            ConfigureLogger(config) => log::update(config)?,
            ConfigureMetrics(config) => metrics::init(&config)?,
            ConfigureSerial(config) => self.resources.serial = config,
            GetBalloon => return Ok(Reply::json(&self.resources.balloon_config()?)),
            GetMmds => return Ok(self.resources.mmds_or_default(self.settings.mmds_limit).reply()),
            InsertDrive(config) => self.resources.insert_drive(config)?,
            InsertPmem(config) => self.resources.insert_pmem(config)?,
            InsertNet(config) => self.resources.insert_net(config)?,
            LoadSnapshot(config) => return self.load(&config),
            PatchMmds(value) => self.resources.mmds_or_default(self.settings.mmds_limit).patch(&value)?,
            PutCpuConfig(_) => self.resources.machine.cpu_template = None,
            PutMmds(value) => self.resources.mmds_or_default(self.settings.mmds_limit).put(value)?,
            SetBalloon(config) => self.resources.set_balloon(config)?,
            SetVsock(config) => self.resources.set_vsock(config)?,
            SetMmdsConfig(config) => self.resources.set_mmds_config(&config, self.settings.mmds_limit)?,
            Start => self.start()?,
            UpdateMachineConfig(update) => self.resources.update_machine(&update)?,
            SetEntropy(config) => self.resources.set_entropy(config),
            SetMemoryHotplug(config) => self.resources.set_memory_hotplug(config)?,
            GetFullConfig | GetMachineConfig | GetInstanceInfo | GetVersion => {
                return Ok(self.describe(&action));
            }
            CreateSnapshot(_)
            | FlushMetrics
            | Pause
            | Resume
            | GetBalloonStats
            | GetMemoryHotplug
            | UpdateBalloon(_)
            | UpdateBalloonStats(_)
            | UpdateDrive(_)
            | UpdateMemoryHotplug(_)
            | UpdateNet(_)
            | UpdatePmem(_)
            | StartHinting(_)
            | GetHintingStatus
            | StopHinting
            | Unplug(..)
            | SendCtrlAltDel => {
                return Err(ActionError::PreBoot);
            }
        }
        Ok(Reply::Empty)
    }

    fn after_boot(&mut self, action: Action) -> Outcome {
        use Action::*;
        match action {
            CreateSnapshot(params) => self.create_snapshot(&params)?,
            FlushMetrics => metrics::flush().map_err(DeviceError::Metrics)?,
            GetBalloon => return Ok(Reply::json(&self.resources.running_balloon()?.config)),
            GetBalloonStats => {
                let stats = self.resources.running_balloon()?.stats().map_err(DeviceError::from)?;
                return Ok(Reply::json(&stats));
            }
            GetMemoryHotplug => return Ok(Reply::json(&self.resources.memory_hotplug_status()?)),
            GetMmds => return Ok(self.resources.running_mmds()?.reply()),
            PatchMmds(value) => self.resources.running_mmds()?.patch(&value)?,
            PutMmds(value) => self.resources.running_mmds()?.put(value)?,
            InsertDrive(config) => self.hotplug_drive(config)?,
            InsertPmem(config) => self.hotplug_pmem(config)?,
            InsertNet(config) => self.hotplug_net(config)?,
            Unplug(kind, id) => self.unplug(kind, &id)?,
            Pause => self.pause(),
            Resume => self.resume(),
            SendCtrlAltDel => {
                if !self.guest.as_ref().is_none_or(Guest::ctrl_alt_del) {
                    return Err(DeviceError::KeyboardFull.into());
                }
            }
            UpdateBalloon(update) => {
                self.update_balloon(update.amount_mib).map_err(ActionError::BalloonUpdate)?
            }
            UpdateBalloonStats(update) => self
                .resources
                .running_balloon()
                .and_then(|balloon| Ok(balloon.set_interval(update.stats_polling_interval_s)?))
                .map_err(ActionError::BalloonUpdate)?,
            StartHinting(command) => self.hint(|balloon, driver| balloon.start_hinting(command, driver))?,
            StopHinting => self.hint(balloon::Balloon::stop_hinting)?,
            GetHintingStatus => {
                let balloon = self.resources.running_balloon().map_err(ActionError::BalloonUpdate)?;
                let status =
                    balloon.hinting_status().map_err(|error| ActionError::BalloonUpdate(error.into()))?;
                return Ok(Reply::json(&status));
            }
            UpdateDrive(update) => {
                self.resources.update_drive(update)?;
                self.hand_over_disks();
            }
            UpdateNet(update) => self.resources.update_net(&update)?,
            UpdatePmem(update) => self.resources.update_pmem(&update)?,
            UpdateMemoryHotplug(update) => self
                .resources
                .update_memory_hotplug(update.requested_size_mib, self.settings.faults.memory_drivers)
                .map_err(ActionError::MemoryHotplugUpdate)?,
            GetFullConfig | GetMachineConfig | GetInstanceInfo | GetVersion => {
                return Ok(self.describe(&action));
            }
            ConfigureBootSource(_)
            | ConfigureLogger(_)
            | ConfigureMetrics(_)
            | ConfigureSerial(_)
            | LoadSnapshot(_)
            | PutCpuConfig(_)
            | SetBalloon(_)
            | SetVsock(_)
            | SetMmdsConfig(_)
            | SetEntropy(_)
            | SetMemoryHotplug(_)
            | Start
            | UpdateMachineConfig(_) => {
                return Err(ActionError::PostBoot);
            }
        }
        Ok(Reply::Empty)
    }

    fn describe(&self, action: &Action) -> Reply {
        match action {
            Action::GetFullConfig => Reply::json(&self.resources.full_config(self.guest.is_some())),
            Action::GetMachineConfig => Reply::json(&self.resources.machine),
            Action::GetVersion => Reply::json(&json!({ "firecracker_version": self.settings.version })),
            _ => {
                let state = match self.state {
                    State::NotStarted => "Not started",
                    State::Running => "Running",
                    State::Paused => "Paused",
                };
                // in this order, which a JSON map would not keep
                let text = |text: &str| serde_json::Value::from(text).to_string();
                Reply::Json(format!(
                    "{{\"id\":{},\"state\":{},\"vmm_version\":{},\"app_name\":\"Firecracker\"}}",
                    text(&self.settings.id),
                    text(state),
                    text(&self.settings.version),
                ))
            }
        }
    }

    fn pause(&mut self) {
        let start = Instant::now();
        if let (Some(guest), State::Running) = (&self.guest, self.state) {
            guest.pause();
        }
        self.state = State::Paused;
        log!(Info, "'pause vm' VMM action took {} us.", took("vmm_pause_vm", start));
    }

    fn resume(&mut self) {
        let start = Instant::now();
        self.run_guest();
        log!(Info, "'resume vm' VMM action took {} us.", took("vmm_resume_vm", start));
    }

    /// Lets the guest run, from now on or still.
    fn run_guest(&mut self) {
        if let Some(guest) = &self.guest {
            guest.resume();
        }
        self.state = State::Running;
    }

    fn update_balloon(&mut self, amount_mib: u32) -> Result<(), DeviceError> {
        let memory_mib = self.resources.machine.mem_size_mib;
        let driver = self.settings.faults.memory_drivers;
        Ok(self.resources.running_balloon()?.set_amount(amount_mib, memory_mib, driver)?)
    }

    fn hint(
        &mut self,
        what: impl FnOnce(&mut balloon::Balloon, bool) -> Result<(), error::BalloonError>,
    ) -> Result<(), ActionError> {
        let driver = self.settings.faults.memory_drivers;
        self.resources
            .running_balloon()
            .and_then(|balloon| Ok(what(balloon, driver)?))
            .map_err(ActionError::BalloonUpdate)
    }

    fn create_snapshot(&mut self, params: &CreateSnapshotParams) -> Result<(), ActionError> {
        let start = Instant::now();
        if params.snapshot_type == SnapshotType::Diff {
            preview("Virtual machine diff snapshots");
        }
        let Some(guest) = &self.guest else {
            return Err(ActionError::PreBoot);
        };
        if self.state != State::Paused {
            return Err(CreateError::Running.into());
        }
        // devices are told to reset their transports before anything is written
        guest.reset_vsock();
        let state = self.resources.to_state(guest.state());
        state_file::write(&params.snapshot_path, &state)?;
        guest.memory().image.save(&params.mem_file_path, params.snapshot_type)?;
        let (metric, name) = match params.snapshot_type {
            SnapshotType::Full => ("vmm_full_create_snapshot", "create full snapshot"),
            SnapshotType::Diff => ("vmm_diff_create_snapshot", "create diff snapshot"),
        };
        log!(Info, "'{name}' VMM action took {} us.", took(metric, start));
        Ok(())
    }

    /// Tells the guest about its drives again.
    fn hand_over_disks(&self) {
        if let Some(guest) = &self.guest {
            guest.set_disks(self.resources.disks());
        }
    }

    /// Tells the guest about its network interfaces again.
    fn hand_over_nics(&self) {
        if let Some(guest) = &self.guest {
            guest.set_nics(self.resources.nics());
        }
    }
}

/// Warns of something that Firecracker does not call finished.
fn preview(what: &str) {
    log!(Warn, "[DevPreview] {what} is in development preview.");
}

/// Notes how long something took and returns the microseconds.
pub(crate) fn took(what: &'static str, start: Instant) -> u64 {
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    metrics::latency(what, micros);
    micros
}
