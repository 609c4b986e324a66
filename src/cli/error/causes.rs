//! What each error of the library means to a person: kind, stable code, advice.

use std::path::Path;

use mvm_proto::Code;

use super::{CliError, Kind};
use crate::{
    infra::{relief, shell::ShellError},
    net::NetError,
    node::NodeError,
    security::audit::{AuditError, kept::KeptError},
    store::StoreError,
    vm::{
        image::{
            ImageError,
            oci::{OciError, limits::Reason},
        },
        instance::{
            config::owner_of,
            disk::DiskError,
            guest::GuestError,
            lifecycle::LifecycleError,
            state::{Event, State},
        },
        naming::InstancePath,
        pool::{artifacts::ArtifactError, lifecycle::PoolError},
        room::RoomError,
        snapshot::SnapshotError,
        tenant::{lifecycle::TenantError, quota::MAX_DISK, secrets::SecretsError},
    },
    vmm::{client::VmmError, install::InstallError},
};

impl From<&StoreError> for CliError {
    fn from(error: &StoreError) -> Self {
        if let StoreError::Io { action, path, source } = error
            && source.kind() == std::io::ErrorKind::ReadOnlyFilesystem
        {
            return Self::read_only(action, path);
        }
        let (kind, code, fix) = match error {
            StoreError::Missing { .. } => (Kind::NotFound, "not_found", None),
            StoreError::Damaged { path, .. } => {
                let fix = match sleeper_of(path) {
                    Some(instance) => format!("bring the file back, or {}", stop(Some(&instance))),
                    None => {
                        "put it back from a copy; docs/operating.md says what else can be done".to_owned()
                    }
                };
                (Kind::Failed, "damaged", Some(fix))
            }
            StoreError::Open { path, .. } => (
                Kind::Failed,
                "open_key",
                Some(format!(
                    "chown root {0} && chmod 600 {0}; what it has signed may be anybody's",
                    path.display()
                )),
            ),
            StoreError::Newer { path, .. } => {
                let fix = match sleeper_of(path) {
                    Some(instance) => format!("use the newer mvm, or {}", stop(Some(&instance))),
                    None => "use the newer mvm".to_owned(),
                };
                (Kind::Failed, "newer_schema", Some(fix))
            }
            StoreError::Locked { .. } => {
                (Kind::Refused, "locked", Some("wait for it, or end it if it hangs".to_owned()))
            }
            StoreError::Io { source, path, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => (
                    Kind::Environment,
                    "permission",
                    Some("run as root, or use --root with a folder of yours".into()),
                ),
                _ if relief::is_full(source) => {
                    (Kind::Failed, "disk_full", Some(format!("free space where {} lies", path.display())))
                }
                _ => (Kind::Failed, "io", None),
            },
        };
        let made = Self::of(kind, code, error);
        Self { fix, ..made }
    }
}

/// The instance whose snapshot a file belongs to.
fn sleeper_of(file: &Path) -> Option<InstancePath> {
    owner_of(file).filter(|_| file.iter().any(|part| part == "snapshots"))
}

/// What always helps where a snapshot does not.
fn stop(instance: Option<&InstancePath>) -> String {
    let instance = instance.map_or(String::new(), |path| format!(" {path}"));
    format!("mvm instance stop{instance}: its memory is given up, its disks stay; then start it")
}

impl CliError {
    /// Nothing can be written there. Where the kernel made it so, it had a reason.
    fn read_only(action: &str, path: &Path) -> Self {
        let what = format!("cannot {action} {}: it lies on a read-only file system", path.display());
        // What was to be made there is not; its folder is.
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(path).display();
        Self::new(Kind::Environment, "read_only", what).fix(format!(
            "dmesg, which says whether its disk failed; then mount -o remount,rw \"$(findmnt -nro TARGET -T '{there}')\""
        ))
    }
}

impl From<&NetError> for CliError {
    fn from(error: &NetError) -> Self {
        let made = Self::of(Kind::Failed, "network", error);
        if error.is_environment() {
            let fix = match error.is_permission() {
                true => "run as root",
                false => "mvm doctor",
            };
            return Self { kind: Kind::Environment, code: "network_environment", ..made }.fix(fix);
        }
        if error.is_foreign() {
            return Self { kind: Kind::Refused, code: "foreign", ..made }
                .fix("rename or remove it, then mvm net repair");
        }
        made.fix("mvm net verify")
    }
}

impl From<&RoomError> for CliError {
    fn from(error: &RoomError) -> Self {
        match error {
            RoomError::Store(error) => error.into(),
            RoomError::Quota { tenant, exceeded } => {
                let option = exceeded.option();
                // What lies on the disk, and does not run, takes of that too.
                let gc = if exceeded.what == MAX_DISK { "mvm pool gc, or " } else { "" };
                let fix = format!("{gc}stop another one, or mvm tenant update {tenant} {option} N");
                Self::of(Kind::Refused, "quota", error).fix(fix)
            }
            RoomError::Node { .. } => Self::of(Kind::Refused, "no_room", error)
                .fix("mvm node stats, then stop something or mvm node set"),
            RoomError::Relief { .. } => Self::of(Kind::Refused, "disk_full", error)
                .fix("mvm node gc, or free space there; stop, sleep and destroy go on"),
            RoomError::Disk { free_mib, needed_mib, .. } => {
                let made = Self::of(Kind::Refused, "disk_floor", error);
                // No floor is low enough for what does not fit at all.
                match free_mib > needed_mib {
                    true => made.fix("mvm node gc, or mvm node set disk-floor-mib N"),
                    false => made.fix("mvm node gc, or free space there"),
                }
            }
        }
    }
}

impl From<&ShellError> for CliError {
    fn from(error: &ShellError) -> Self {
        match error {
            ShellError::Spawn { .. } => Self::of(Kind::Environment, "no_program", error).fix("mvm doctor"),
            ShellError::Failed { .. } | ShellError::TimedOut { .. } => {
                Self::of(Kind::Failed, "program", error)
            }
        }
    }
}

impl From<&DiskError> for CliError {
    fn from(error: &DiskError) -> Self {
        match error {
            DiskError::Store(error) => error.into(),
            DiskError::Format { source, .. } => {
                let kind = match source {
                    ShellError::Spawn { .. } => Kind::Environment,
                    ShellError::Failed { .. } | ShellError::TimedOut { .. } => Kind::Failed,
                };
                Self::of(kind, "mke2fs", error)
            }
            DiskError::Shrink { .. } => Self::of(Kind::Refused, "shrink", error),
            DiskError::None => Self::of(Kind::NotFound, "no_disk", error),
            DiskError::Lost { .. } => Self::of(Kind::Failed, "disk_lost", error)
                .fix("put it back from a copy, or destroy the instance"),
        }
    }
}

impl From<&ArtifactError> for CliError {
    fn from(error: &ArtifactError) -> Self {
        match error {
            ArtifactError::Store(error) => error.into(),
            ArtifactError::Wrong { .. } => Self::of(Kind::Failed, "not_an_artifact", error)
                .fix("mvm pool import --help says what is taken"),
            ArtifactError::Changed { .. } => Self::of(Kind::Failed, "artifact_changed", error)
                .fix("mvm pool import it again, or mvm pool rollback"),
            ArtifactError::CommandLine { .. } | ArtifactError::ControlCharacters => {
                Self::of(Kind::Usage, "command_line", error)
            }
        }
    }
}

impl From<&SnapshotError> for CliError {
    fn from(error: &SnapshotError) -> Self {
        Self::of_snapshot(error, None)
    }
}

impl CliError {
    /// What is wrong with a snapshot: that of this instance, or of the one in whose folder the file lies that it names.
    fn of_snapshot(error: &SnapshotError, of: Option<&InstancePath>) -> Self {
        let owner = |file: &Path| of.cloned().or_else(|| owner_of(file));
        // A base belongs to a pool, and nobody may have been loaded from it.
        let back = |file: &Path, what: &str| match (owner(file), file.parent()) {
            (None, Some(base)) => {
                format!("bring {what} back; where no instance stands on it, rm -r {}", base.display())
            }
            (instance, _) => format!("bring {what} back, or {}", stop(instance.as_ref())),
        };
        match error {
            SnapshotError::Store(error) => error.into(),
            SnapshotError::Damaged { path, .. } => {
                Self::of(Kind::Failed, "snapshot_damaged", error).fix(back(path, "the file"))
            }
            SnapshotError::Foreign { path, .. } => {
                Self::of(Kind::Failed, "snapshot_foreign", error).fix(back(path, "its own files"))
            }
            SnapshotError::OtherCpu { .. } => {
                let or = match of {
                    Some(_) => format!("or {}", stop(of)),
                    None => {
                        "or stop it; mvm instance why says of each sleeper whether it is this one".to_owned()
                    }
                };
                Self::of(Kind::Environment, "other_cpu", error)
                    .fix(format!("wake it on the machine where it fell asleep, {or}"))
            }
            SnapshotError::DiskChanged { path, may_be_forced, .. } => {
                let made = Self::of(Kind::Refused, "disk_changed", error);
                match (owner(path), may_be_forced) {
                    (Some(instance), true) => made
                        .fix(format!("mvm instance wake {instance} --force, if the disk holds what it held")),
                    (instance, _) => {
                        made.fix(format!("bring the disk back as it was, or {}", stop(instance.as_ref())))
                    }
                }
            }
        }
    }

    /// An error of an operation on this instance. Those of its snapshot do not name it by themselves.
    pub fn of_instance(error: &LifecycleError, path: &InstancePath) -> Self {
        let at_the_bottom = match error {
            LifecycleError::Step { error, .. } => error.as_ref(),
            error => error,
        };
        match at_the_bottom {
            LifecycleError::Snapshot(snapshot) => {
                Self { what: error.to_string(), ..Self::of_snapshot(snapshot, Some(path)) }.about(path)
            }
            _ => error.into(),
        }
    }
}

impl From<&ImageError> for CliError {
    fn from(error: &ImageError) -> Self {
        const ANOTHER_WAY: &str = "make one elsewhere, and mvm pool import it";
        match error {
            ImageError::Store(error) => error.into(),
            ImageError::Room(error) => error.into(),
            ImageError::Artifact(error) => error.into(),
            ImageError::Unknown { name, .. } => {
                let fix = match name.as_ref() {
                    "debian" => "mvm image debian".to_owned(),
                    name => format!("mvm image list, or mvm image debian --name {name}"),
                };
                Self::of(Kind::NotFound, "no_such_image", error).fix(fix)
            }
            ImageError::Changed { name, .. } => Self::of(Kind::Failed, "image_changed", error)
                .fix(format!("make it again: mvm image debian --name {name}")),
            ImageError::Tools { tools } => {
                let mut packages: Vec<&str> = tools.iter().map(|(_, package)| *package).collect();
                packages.dedup();
                Self::of(Kind::Environment, "no_program", error)
                    .fix(format!("apt-get install {}", packages.join(" ")))
            }
            ImageError::NotRoot => Self::of(Kind::Environment, "permission", error).fix("run as root"),
            ImageError::Architecture { .. } => {
                Self::of(Kind::Environment, "no_recipe", error).fix(ANOTHER_WAY)
            }
            ImageError::NoMirror => Self::of(Kind::Environment, "no_mirror", error)
                .fix(format!("on a Debian: apt-get update; elsewhere {ANOTHER_WAY}")),
            ImageError::NoPackage { .. } => Self::of(Kind::Failed, "no_package", error)
                .fix("apt-get update, if it is a package of this Debian"),
            ImageError::Step { .. } => Self::of(Kind::Failed, "image", error)
                .fix("apt-get update, and try again, where packages could not be fetched"),
            ImageError::DiskFull { .. } => Self::of(Kind::Failed, "disk_full", error)
                .fix("free space where MVM_ROOT lies: 1 GiB is enough"),
            ImageError::Kernel { .. } | ImageError::Module(_) => {
                Self::of(Kind::Failed, "image_kernel", error).fix(ANOTHER_WAY)
            }
        }
    }
}

impl From<&GuestError> for CliError {
    fn from(error: &GuestError) -> Self {
        let (kind, code) = match error {
            GuestError::Unreachable { .. } => (Kind::Failed, "guest_unreachable"),
            GuestError::Silent { .. } => (Kind::Failed, "guest_silent"),
            GuestError::Request { .. } => (Kind::Usage, "too_long"),
            GuestError::Closed { .. } => (Kind::Failed, "guest_closed"),
            GuestError::Nonsense { .. } => (Kind::Failed, "guest_nonsense"),
            GuestError::Incompatible(_) => (Kind::Refused, "guest_incompatible"),
            GuestError::Refused { code: Code::Busy, .. } => (Kind::Refused, "guest_busy"),
            GuestError::Refused { code: Code::Draining, .. } => (Kind::Refused, "guest_draining"),
            GuestError::Refused { code: Code::OtherIdentity, .. } => (Kind::Refused, "guest_other"),
            GuestError::Refused { code: Code::NotFound, .. } => (Kind::NotFound, "not_found"),
            GuestError::Refused { code: Code::Unsupported, .. } => (Kind::Refused, "guest_unsupported"),
            GuestError::Refused { .. } => (Kind::Failed, "guest_refused"),
            GuestError::Failed { .. } | GuestError::Unconfirmed { .. } => (Kind::Failed, "guest_identity"),
        };
        let made = Self::of(kind, code, error);
        match error {
            GuestError::Request { .. } => made.fix("mvm instance cp takes files of any length"),
            GuestError::Incompatible(_)
            | GuestError::Refused { code: Code::Unsupported, request: "Secrets", .. } => {
                made.fix("make the image again with this mvm, and import it")
            }
            GuestError::Refused { code: Code::OtherIdentity, .. } => {
                made.fix("mvm instance list: another instance has its place now")
            }
            GuestError::Refused { code: Code::Busy, request: "SleepPrep", .. } => {
                made.fix("wait until it is done, or say --force: what is under way is cut off then")
            }
            GuestError::Refused { code: Code::Busy, .. } => made.fix("wait until one of them is done"),
            _ => made,
        }
    }
}

impl From<&OciError> for CliError {
    fn from(error: &OciError) -> Self {
        match error {
            OciError::Store(error) => error.into(),
            OciError::Room(error) => error.into(),
            OciError::Image(ImageError::DiskFull { .. }) => {
                Self::of(Kind::Failed, "disk_full", error).fix("free space where MVM_ROOT lies")
            }
            OciError::Image(ImageError::Step { .. }) => Self::of(Kind::Failed, "image", error),
            OciError::Image(error) => error.into(),
            OciError::NotAnImage { .. } => Self::of(Kind::Failed, "not_an_image", error)
                .fix("skopeo copy docker://NAME oci-archive:FILE, or docker save -o FILE NAME"),
            OciError::Several { .. } => {
                Self::of(Kind::Failed, "several_images", error).fix("save the one that is meant by itself")
            }
            OciError::Platform { .. } => Self::of(Kind::Failed, "other_platform", error)
                .fix("docker save --platform, or skopeo copy --override-arch: the image for this machine"),
            OciError::Damaged { .. } => {
                Self::of(Kind::Failed, "image_damaged", error).fix("save or copy it again")
            }
            OciError::Config { .. } => Self::of(Kind::Failed, "image_config", error),
            OciError::Entry { .. } => {
                Self::of(Kind::Failed, "image_file", error).fix("docs/oci.md says what is taken")
            }
            OciError::TooMany { .. } => Self::of(Kind::Failed, "image_too_large", error),
            OciError::TooSlow { .. } => Self::of(Kind::Failed, "image_too_slow", error)
                .fix("an image of fewer layers and files, or a faster disk"),
            OciError::TooLarge { reason, .. } => match reason {
                Reason::Format => Self::of(Kind::Failed, "image_too_large", error),
                Reason::Quota(tenant) => Self::of(Kind::Refused, "quota", error)
                    .fix(format!("mvm pool gc, or mvm tenant update {tenant} --max-disk-gib N")),
                Reason::Room => Self::of(Kind::Refused, "disk_floor", error)
                    .fix("mvm node gc, or mvm node set disk-floor-mib N"),
            },
        }
    }
}

impl From<&LifecycleError> for CliError {
    fn from(error: &LifecycleError) -> Self {
        match error {
            LifecycleError::Room(error) => error.into(),
            LifecycleError::Secrets(error) => error.into(),
            LifecycleError::Store(error) => error.into(),
            LifecycleError::Net(error) => error.into(),
            LifecycleError::Vmm(error) => error.into(),
            LifecycleError::Shell(error) => error.into(),
            LifecycleError::Disk(error) => error.into(),
            LifecycleError::Audit(error) => error.into(),
            LifecycleError::Artifact(error) => error.into(),
            LifecycleError::Snapshot(error) => error.into(),
            LifecycleError::Install(error @ InstallError::NoSuchVersion { version, .. }) => {
                Self::of(Kind::Environment, "no_vmm_version", error)
                    .fix(format!("mvm vmm install FILE, with a Firecracker {version}"))
            }
            LifecycleError::Install(error) => error.into(),
            LifecycleError::Guest(error) => error.into(),
            LifecycleError::Unprotected(error) => error.into(),
            LifecycleError::NoBarrier { .. } => {
                Self::of(Kind::Failed, "no_guest", error).fix("docs/guests.md says what a guest must be")
            }
            LifecycleError::BaseGone { .. } => Self::of(Kind::Failed, "base_gone", error),
            LifecycleError::Pool(error) => error.as_ref().into(),
            LifecycleError::Resources { .. } => Self::of(Kind::Usage, "resources", error),
            LifecycleError::Kvm { source } => {
                let fix = match source.kind() {
                    std::io::ErrorKind::PermissionDenied => "usermod -aG kvm $USER, and log in again",
                    _ => "modprobe kvm_intel or kvm_amd; without it only --vmm sim runs",
                };
                Self::of(Kind::Environment, "no_kvm", error).fix(fix)
            }
            LifecycleError::NotFound { .. } => Self::of(Kind::NotFound, "not_found", error),
            LifecycleError::Ambiguous { .. } => Self::of(Kind::Usage, "ambiguous", error),
            LifecycleError::Denied { path, denial } => {
                let made = Self::of(Kind::Refused, "state", error);
                match (denial.way(), denial.state) {
                    (Some(way), _) => made.fix(format!("mvm instance {way} {path}")),
                    (None, State::Ready | State::Stopped) if denial.event == Event::Archive => {
                        let fix = format!("mvm instance start {path}, then mvm instance sleep {path}");
                        made.fix(format!("{fix}: without memory there is nothing to compress"))
                    }
                    (None, State::Created | State::Ready) => made.fix(format!("mvm instance start {path}")),
                    (None, _) => made,
                }
            }
            LifecycleError::NoSnapshot { path } => Self::of(Kind::Failed, "no_snapshot", error)
                .fix(format!("mvm instance stop {path}: its memory is lost, its disks are there")),
            LifecycleError::Cancelled { .. } => Self::of(Kind::Refused, "cancelled", error),
            LifecycleError::DiskInMemory { path, .. } => Self::of(Kind::Refused, "disk_in_memory", error)
                .fix(format!("mvm instance wake {path}, then mvm instance stop {path}, and grow it then")),
            LifecycleError::NoRevision { pool } => Self::of(Kind::Refused, "no_revision", error)
                .fix(format!("mvm pool import {pool} --oci-archive FILE, or --kernel FILE --rootfs FILE")),
            LifecycleError::TooMany { tenant, .. } => Self::of(Kind::Refused, "quota", error).fix(format!(
                "destroy another one, or mvm tenant update {tenant} --max-instances-per-pool N"
            )),
            LifecycleError::NoAddress { .. } => {
                Self::of(Kind::Refused, "no_address", error).fix("destroy another instance of this tenant")
            }
            LifecycleError::PortTaken { .. } => {
                Self::of(Kind::Refused, "port_taken", error).fix("publish another port")
            }
            LifecycleError::Production { .. } => {
                Self::of(Kind::Refused, "production", error).fix("mvm node set production off")
            }
            LifecycleError::Step { error: inner, .. } => Self::of_step(error, inner),
            LifecycleError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", error),
        }
    }
}

impl CliError {
    /// A failed step: the text of the whole; the kind, causes and advice of what was at the bottom of it.
    fn of_step(whole: &LifecycleError, inner: &LifecycleError) -> Self {
        Self { what: whole.to_string(), ..inner.into() }
    }
}

/// Errors are described by reference, since one may stand inside another; `?` has them by value.
macro_rules! by_value {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                (&error).into()
            }
        })*
    };
}

by_value!(
    StoreError,
    NetError,
    RoomError,
    VmmError,
    InstallError,
    ShellError,
    DiskError,
    AuditError,
    KeptError,
    ArtifactError,
    SnapshotError,
    ImageError,
    GuestError,
    OciError,
    LifecycleError,
    TenantError,
    PoolError,
    SecretsError,
    NodeError
);

impl From<&TenantError> for CliError {
    fn from(error: &TenantError) -> Self {
        match error {
            TenantError::Room(error) => error.into(),
            TenantError::Secrets(error) => error.into(),
            TenantError::Store(error) => error.into(),
            TenantError::Net(error) => error.into(),
            TenantError::Audit(error) => error.into(),
            TenantError::Lifecycle(error) => error.into(),
            TenantError::Pool(error) => error.as_ref().into(),
            TenantError::Exists { id, .. } => {
                Self::of(Kind::Refused, "exists", error).fix(format!("mvm tenant info {id}"))
            }
            TenantError::NetIdUsed { .. } => {
                Self::of(Kind::Refused, "net_id_used", error).fix("mvm tenant list")
            }
            TenantError::NetIdLeft { .. } => {
                Self::of(Kind::Refused, "net_id_left", error).fix("mvm node recover")
            }
            TenantError::Overlap { .. } => {
                Self::of(Kind::Refused, "subnet_overlap", error).fix("mvm tenant list")
            }
            TenantError::OffsetRange { .. } => Self::of(Kind::Usage, "offset_range", error),
            TenantError::HasVolumes { .. } => {
                Self::of(Kind::Refused, "has_volumes", error).fix("--wipe-volumes, if the data may go")
            }
            TenantError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", error),
        }
    }
}

impl From<&PoolError> for CliError {
    fn from(error: &PoolError) -> Self {
        match error {
            PoolError::Artifact(error) => error.into(),
            PoolError::Image(error) => error.into(),
            PoolError::Oci(error) => error.into(),
            PoolError::Room(error) => error.into(),
            PoolError::Install(error) => error.into(),
            PoolError::Store(error) => error.into(),
            PoolError::Audit(error) => error.into(),
            PoolError::Lifecycle(error) => error.into(),
            PoolError::Exists { path, .. } => Self::of(Kind::Refused, "exists", error)
                .fix(format!("mvm pool info {path}, or mvm pool update {path}")),
            PoolError::TooMany { tenant, exceeded } => Self::of(Kind::Refused, "quota", error)
                .fix(format!("mvm tenant update {tenant} {} N", exceeded.option())),
            PoolError::NotEmpty { .. } => Self::of(Kind::Refused, "not_empty", error).fix("destroy it again"),
            PoolError::HasVolumes { .. } => {
                Self::of(Kind::Refused, "has_volumes", error).fix("--wipe-volumes, if the data may go")
            }
            PoolError::NoSuchRevision { .. } => Self::of(Kind::NotFound, "no_such_revision", error),
            PoolError::AmbiguousRevision { .. } => {
                Self::of(Kind::Usage, "ambiguous", error).fix("give more of its digits")
            }
            PoolError::NoAgent { .. } => Self::of(Kind::Refused, "no_agent", error)
                .fix("mvm pool create TENANT/POOL --agent required, and import it there"),
            PoolError::NoEarlierRevision { .. } => Self::of(Kind::Refused, "no_earlier_revision", error),
            PoolError::SimulatedFilter => Self::of(Kind::Usage, "no_filter", error).fix("--seccomp baseline"),
            PoolError::Resources { .. } => Self::of(Kind::Usage, "resources", error),
            PoolError::Production { .. } => Self::of(Kind::Refused, "production", error),
            PoolError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", error),
        }
    }
}

impl From<&NodeError> for CliError {
    fn from(error: &NodeError) -> Self {
        match error {
            NodeError::PlainStorage { .. } => Self::plain_storage(error),
            NodeError::Store(error) => error.into(),
            NodeError::Audit(error) => error.into(),
            NodeError::Net(error) => error.into(),
            NodeError::Lifecycle(error) => error.into(),
            NodeError::Pool(error) => error.into(),
        }
    }
}
