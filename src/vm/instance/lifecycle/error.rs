//! Why an operation on an instance did not do what it should.

use crate::{
    infra::shell::ShellError,
    net::NetError,
    security::audit::AuditError,
    store::StoreError,
    vm::{
        instance::{
            disk::DiskError,
            guard::Unprotected,
            guest::GuestError,
            state::{Denial, State},
        },
        naming::{InstancePath, PoolPath, TenantId},
        pool::{artifacts::ArtifactError, lifecycle::PoolError},
        room::RoomError,
        snapshot::SnapshotError,
        tenant::{quota::Exceeded, secrets::SecretsError},
    },
    vmm::{client::VmmError, install::InstallError},
};

/// Why an operation on an instance did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// There is no such thing.
    #[error("{what}")]
    NotFound {
        /// What is not there, and what is.
        what: String,
    },
    /// More than one instance begins like that.
    #[error("{prefix} is ambiguous: {candidates}")]
    Ambiguous {
        /// What was typed.
        prefix: String,
        /// The instances that begin like that.
        candidates: String,
    },
    /// The state does not allow it.
    #[error("{path} cannot {event}: {denial}", event = denial.event)]
    Denied {
        /// The instance.
        path: InstancePath,
        /// Why.
        denial: Denial,
    },
    /// There is nothing to wake it from.
    #[error("{path} is sleeping, and its snapshot is gone")]
    NoSnapshot {
        /// The instance.
        path: InstancePath,
    },
    /// Somebody wants it before it sleeps: to wake, stop or destroy it.
    #[error("the sleep of {path} was cancelled by another command")]
    Cancelled {
        /// The instance.
        path: InstancePath,
    },
    /// It would write what its memory holds over another size.
    #[error("{path} is {state}: its guest knows its disk by its size")]
    DiskInMemory {
        /// The instance.
        path: InstancePath,
        /// Its state.
        state: State,
    },
    /// The pool has nothing to run yet.
    #[error("{pool} has no revision to run yet")]
    NoRevision {
        /// The pool.
        pool: PoolPath,
    },
    /// The pool has as many instances as its tenant's quota allows.
    #[error("the quota of tenant {tenant} does not allow it: {exceeded}")]
    TooMany {
        /// The tenant.
        tenant: TenantId,
        /// Which limit.
        exceeded: Exceeded,
    },
    /// All addresses are leased.
    #[error("tenant {tenant} has no free address: all {count} of {subnet} on this node are leased")]
    NoAddress {
        /// The tenant.
        tenant: TenantId,
        /// How many it has.
        count: u32,
        /// Its subnet.
        subnet: String,
    },
    /// Another instance publishes that port.
    #[error("{port} of the host is published by {by} already")]
    PortTaken {
        /// The port.
        port: String,
        /// Who publishes it.
        by: String,
    },
    /// A production node refuses what is for trying out.
    #[error("this node is in production: {why}")]
    Production {
        /// What it refuses.
        why: &'static str,
    },
    /// Something that protects others from the VMM is missing, and must not be.
    #[error(transparent)]
    Unprotected(#[from] Unprotected),
    /// Firecracker does not take that.
    #[error("{why}")]
    Resources {
        /// What is wrong.
        why: String,
    },
    /// Firecracker cannot run here.
    #[error("/dev/kvm cannot be opened, and Firecracker runs on nothing else")]
    Kvm {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A step failed; what was done before was undone.
    #[error("{operation} failed at its step {step}: {error}{left}", left = left_over(left))]
    Step {
        /// The operation.
        operation: &'static str,
        /// The step.
        step: &'static str,
        /// Why.
        error: Box<LifecycleError>,
        /// What could not be undone.
        left: Vec<String>,
    },
    /// The secrets of its tenant cannot be given to it.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// No room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel's network refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The VMM refused or ended.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest's agent.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A guest that was booted for a base snapshot did not get there.
    #[error("the guest did not come up: {error}{console}")]
    NoBarrier {
        /// What its agent did, or did not.
        #[source]
        error: GuestError,
        /// What it printed last, each line on a line of its own.
        console: String,
    },
    /// A base snapshot that was made was gone again, again and again.
    #[error("the base snapshot of {pool} is gone whenever it was made")]
    BaseGone {
        /// The pool.
        pool: PoolPath,
    },
    /// A base snapshot could not be begun.
    #[error(transparent)]
    Pool(Box<PoolError>),
    /// The revision is not what was imported.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The snapshot is not loaded.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// No VMM.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A program could not be run.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A failpoint.
    #[error(transparent)]
    Failpoint(#[from] std::io::Error),
}

impl LifecycleError {
    /// Is it its VMM or its guest that is in the way? A stop by force asks neither.
    pub fn is_of_the_vm(&self) -> bool {
        match self {
            Self::Vmm(_) | Self::Guest(_) => true,
            Self::Step { error, .. } => error.is_of_the_vm(),
            _ => false,
        }
    }
}

impl From<PoolError> for LifecycleError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Lifecycle(error) => error,
            error => Self::Pool(Box::new(error)),
        }
    }
}

fn left_over(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!("; not undone: {}", left.join(", ")) }
}
