//! Waiting for an instance to reach a state, on events: writes of its record and the end of its VMM.

use std::time::{Duration, Instant};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

use super::{
    config::{self, Instance},
    lifecycle::{self, LifecycleError, Operator},
    state::State,
};
use crate::{
    store::{self, StoreError},
    vm::naming::InstancePath,
    vmm::process,
};

/// Waits until the instance is in `wanted`; `None` when `limit` passes first. An instance that is gone is Destroyed.
///
/// # Errors
/// When its record cannot be read or watched.
pub fn wait(
    operator: &mut Operator,
    path: &InstancePath,
    wanted: State,
    limit: Duration,
) -> Result<Option<Option<Instance>>, LifecycleError> {
    let deadline = Instant::now() + limit;
    let folder = config::folder(&operator.roots, path);
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).map_err(|e| StoreError::io("watch", &folder)(e.into()))?;
    let events =
        inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVE_SELF | inotify::WatchFlags::DELETE_SELF;
    // No folder, no watch: then it is gone, which the first look finds.
    let _ = inotify::add_watch(&watch, &folder, events);
    loop {
        let instance = match store::read_if_there::<Instance>(&config::file(&operator.roots, path))? {
            Some(instance) => lifecycle::settle(operator, instance)?,
            None => None,
        };
        let state = instance.as_ref().map_or(State::Destroyed, |instance| instance.status);
        if state == wanted && instance.as_ref().is_none_or(|instance| instance.pending.is_none()) {
            return Ok(Some(instance));
        }
        if instance.is_none() {
            return Err(LifecycleError::NotFound { what: format!("there is no instance {path}") });
        }
        let vmm = instance.and_then(|instance| instance.vmm).and_then(|vmm| process::find(vmm.identity()));
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = vec![PollFd::new(&watch, PollFlags::IN)];
        fds.extend(vmm.as_ref().map(|vmm| PollFd::new(&vmm.pidfd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                let _ = rustix::io::read(&watch, &mut [0; 4096][..]);
            }
            Err(error) => return Err(StoreError::io("wait for", &folder)(error.into()).into()),
        }
    }
}
