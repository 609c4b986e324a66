//! The load of a snapshot. Once it has begun a failure is the end of the process.

use std::{os::unix::net::UnixStream, sync::Arc, time::Instant};

use super::{
    Outcome, State, Vmm,
    balloon::Balloon,
    drives::{Drive, check_pmem},
    error::ActionError,
    nets::Net,
    took,
    vsock::Vsock,
};
use crate::{
    api::Reply,
    guest::{Console, Guest, Image, Parts},
    log::log,
    snapshot::{MemoryFileError, RestoreDeviceError, RestoreError, UffdError, VmState, state_file},
    wire::{
        machine::{HugePageConfig, MachineConfigUpdate},
        snapshot::{LoadSnapshotConfig, MemBackendConfig, MemBackendType},
    },
};

impl Vmm {
    /// Loads a snapshot, where nothing was configured.
    pub(super) fn load(&mut self, config: &LoadSnapshotConfig) -> Outcome {
        let start = Instant::now();
        if self.boot_path {
            return Err(ActionError::LoadNotAllowed);
        }
        self.restore(config).inspect_err(|_| self.doomed = true)?;
        if config.resume_vm {
            self.run_guest();
        }
        log!(Debug, "'load snapshot' VMM action took {} us.", took("vmm_load_snapshot", start));
        Ok(Reply::Empty)
    }

    fn restore(&mut self, config: &LoadSnapshotConfig) -> Result<(), RestoreError> {
        let mut state = state_file::read(&config.snapshot_path)?;
        for change in &config.network_overrides {
            let mut nets = state.nets.iter_mut();
            let net = nets.find(|net| net.iface_id == change.iface_id).ok_or(RestoreError::UnknownNet)?;
            net.host_dev_name.clone_from(&change.host_dev_name);
        }
        if let Some(change) = &config.vsock_override {
            let vsock = state.vsock.as_mut().ok_or(RestoreError::UnknownVsock)?;
            vsock.uds_path.clone_from(&change.uds_path);
        }
        let track = config.track_dirty_pages || config.enable_diff_snapshots;
        self.resources.update_machine(&MachineConfigUpdate {
            track_dirty_pages: Some(track),
            ..state.machine.clone().into()
        })?;
        let image = self.load_memory(config, &state, track)?;
        let guest = self.restore_devices(state, image)?;
        self.guest = Some(guest);
        self.state = State::Paused;
        Ok(())
    }

    fn load_memory(
        &self,
        config: &LoadSnapshotConfig,
        state: &VmState,
        track: bool,
    ) -> Result<Image, RestoreError> {
        let mib = state.machine.mem_size_mib as u64;
        let pluggable_mib = state.memory_hotplug.as_ref().map_or(0, |memory| memory.total_size_mib as u64);
        let file = |path| {
            if state.machine.huge_pages == HugePageConfig::Hugetlbfs2M {
                return Err(MemoryFileError::HugePages);
            }
            Image::new(mib, track).with_pluggable(pluggable_mib).load(path)
        };
        match (&config.mem_backend, &config.mem_file_path) {
            (Some(MemBackendConfig { backend_path, backend_type: MemBackendType::Uffd }), _) => {
                let socket =
                    UnixStream::connect(backend_path).map_err(|error| UffdError::Connect(error.into()))?;
                drop(socket);
                Err(UffdError::Unsupported("fcsim has no address space to hand over").into())
            }
            (Some(MemBackendConfig { backend_path, .. }), _) | (None, Some(backend_path)) => {
                Ok(file(backend_path)?)
            }
            // the router lets no such request through
            (None, None) => Err(MemoryFileError::Open(rustix::io::Errno::NOENT.into()).into()),
        }
    }

    fn restore_devices(&mut self, state: VmState, image: Image) -> Result<Guest, RestoreDeviceError> {
        use RestoreDeviceError as Error;
        let bus = if state.pci { "PCI" } else { "MMIO" };
        let resources = &mut self.resources;
        resources.pci = state.pci;
        resources.boot_source = state.boot_source;
        let console = Console::open(&resources.serial).map_err(Error::Serial)?;
        if let Some(config) = state.balloon {
            // it was valid when the snapshot was made
            resources.balloon = Balloon::new(config).ok();
        }
        for config in state.drives {
            resources.drives.push(Drive::open(config).map_err(|error| Error::Block(bus, error))?);
        }
        for config in state.nets {
            resources.nets.push(Net::open(config).map_err(|error| Error::Net(bus, error))?);
        }
        if let Some(config) = &state.mmds {
            // the interfaces are those of the snapshot, so this cannot be refused
            let _ = resources.set_mmds_config(config, self.settings.mmds_limit);
        }
        if let Some(config) = state.vsock {
            resources.vsock = Some(Vsock::bind(config).map_err(|error| Error::Vsock(bus, error))?);
        }
        resources.entropy = state.entropy;
        for config in state.pmem {
            check_pmem(&config).map_err(|error| Error::Pmem(bus, error))?;
            resources.pmem.push(config);
        }
        resources.memory_hotplug = state.memory_hotplug;
        resources.requested_hotplug_mib = state.requested_hotplug_mib;
        let parts = Parts {
            memory_mib: resources.machine.mem_size_mib as u64,
            cmdline: String::new(),
            image,
            console,
            disks: resources.disks(),
            nics: resources.nics(),
            vsock: resources.vsock.as_ref().map(|vsock| Arc::clone(&vsock.listener)),
            exit: Arc::clone(&self.settings.exit),
            faults: Arc::clone(&self.settings.faults),
        };
        Guest::restore(parts, state.guest).map_err(|error| Error::Serial(error.into()))
    }
}
