//! Errors for people: what happened, why, what to do; and the exit code.

use serde::Serialize;

use crate::{
    infra::shell::ShellError,
    net::NetError,
    node::NodeError,
    security::audit::AuditError,
    store::StoreError,
    vm::{
        instance::{disk::DiskError, lifecycle::LifecycleError, state::State},
        naming::NameError,
        pool::{artifacts::ArtifactError, lifecycle::PoolError},
        room::RoomError,
        tenant::lifecycle::TenantError,
    },
    vmm::{client::VmmError, install::InstallError},
};

/// The table of exit codes, for the docs.
pub const EXIT_CODES: &str = "\
| code | meaning |
| --- | --- |
| 0 | done, or it was like that already |
| 1 | failed, also because of what a file holds |
| 2 | usage: malformed arguments, also an address outside the cluster |
| 3 | not found |
| 4 | refused: by state, quota, room, a lock held too long, or a name, net id or subnet in use |
| 5 | the environment lacks something; `mvm doctor` says what |
";

/// What kind of failure it is; the exit code follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1
    Failed,
    /// 2
    Usage,
    /// 3
    NotFound,
    /// 4
    Refused,
    /// 5
    Environment,
}

/// An error as it is printed.
#[derive(Debug, Clone)]
pub struct CliError {
    kind: Kind,
    code: &'static str,
    what: String,
    why: Vec<String>,
    fix: Option<String>,
}

impl CliError {
    /// An error without causes.
    pub fn new(kind: Kind, code: &'static str, what: impl Into<String>) -> Self {
        Self { kind, code, what: what.into(), why: Vec::new(), fix: None }
    }

    /// With what to do about it.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn of(kind: Kind, code: &'static str, error: &dyn std::error::Error) -> Self {
        let mut made = Self::new(kind, code, error.to_string());
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !made.what.contains(&text) {
                made.why.push(text);
            }
            cause = error.source();
        }
        made
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Refused => 4,
            Kind::Environment => 5,
        }
    }

    /// As lines for people.
    pub fn text(&self, color: bool) -> String {
        let style = if color { anstyle::AnsiColor::Red.on_default() } else { anstyle::Style::new() };
        let mut text = format!("{style}{}{style:#}", self.what);
        for why in &self.why {
            text.push_str(&format!("\n  because: {why}"));
        }
        if let Some(fix) = &self.fix {
            text.push_str(&format!("\n  try: {fix}"));
        }
        text
    }

    /// As JSON.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            what: &'a str,
            why: String,
            fix: &'a Option<String>,
        }
        #[derive(Serialize)]
        struct Wrapped<'a> {
            error: Body<'a>,
        }
        let body = Body { code: self.code, what: &self.what, why: self.why.join(": "), fix: &self.fix };
        serde_json::to_string(&Wrapped { error: body }).unwrap_or_default()
    }
}

/// Prints what clap says of malformed arguments, or help; returns the exit code.
pub fn usage(error: &clap::Error) -> u8 {
    let json = std::env::args().any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let rendered = error.render().to_string();
        let what = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        eprintln!("{}", CliError::new(Kind::Usage, "usage", what).fix("mvm --help").json());
    } else {
        let _ = error.print();
    }
    if error.use_stderr() { 2 } else { 0 }
}

impl From<NameError> for CliError {
    fn from(error: NameError) -> Self {
        Self::of(Kind::Usage, "malformed", &error)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let (kind, code, fix) = match &error {
            StoreError::Missing { .. } => (Kind::NotFound, "not_found", None),
            StoreError::Damaged { .. } => {
                (Kind::Failed, "damaged", Some("look at the file; nothing was changed".to_owned()))
            }
            StoreError::Newer { .. } => (Kind::Failed, "newer_schema", Some("use the newer mvm".to_owned())),
            StoreError::Locked { .. } => {
                (Kind::Refused, "locked", Some("wait for it, or end it if it hangs".to_owned()))
            }
            StoreError::Io { source, path, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => (
                    Kind::Environment,
                    "permission",
                    Some("run as root, or use --root with a folder of yours".into()),
                ),
                std::io::ErrorKind::StorageFull => {
                    (Kind::Failed, "disk_full", Some(format!("free space where {} lies", path.display())))
                }
                _ => (Kind::Failed, "io", None),
            },
        };
        let made = Self::of(kind, code, &error);
        Self { fix, ..made }
    }
}

impl From<NetError> for CliError {
    fn from(error: NetError) -> Self {
        let made = Self::of(Kind::Failed, "network", &error);
        if error.is_environment() {
            return Self { kind: Kind::Environment, code: "network_environment", ..made }.fix("mvm doctor");
        }
        if error.is_foreign() {
            return Self { kind: Kind::Refused, code: "foreign", ..made }
                .fix("rename or remove it, or give the tenant another net id");
        }
        made.fix("mvm net verify")
    }
}

impl From<RoomError> for CliError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Store(error) => error.into(),
            RoomError::Quota { ref tenant, .. } => {
                let fix = format!("stop another one, or mvm tenant update {tenant} --max-…");
                Self::of(Kind::Refused, "quota", &error).fix(fix)
            }
            RoomError::Node { .. } => Self::of(Kind::Refused, "no_room", &error)
                .fix("mvm node stats, then stop something or mvm node set"),
            RoomError::Disk { .. } => Self::of(Kind::Refused, "disk_floor", &error)
                .fix("mvm node gc, or mvm node set --disk-floor-mib"),
        }
    }
}

impl From<VmmError> for CliError {
    fn from(error: VmmError) -> Self {
        let code = match error {
            VmmError::Refused { .. } => "vmm_refused",
            VmmError::Ended { .. } => "vmm_ended",
            VmmError::TimedOut { .. } => "vmm_timeout",
            VmmError::Nonsense { .. } | VmmError::Io { .. } => "vmm",
        };
        Self::of(Kind::Failed, code, &error)
    }
}

impl From<InstallError> for CliError {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Store(error) => error.into(),
            InstallError::Shell(error) => error.into(),
            InstallError::None => Self::of(Kind::Environment, "no_vmm", &error).fix("mvm vmm install FILE"),
            InstallError::NoSim => Self::of(Kind::Environment, "no_sim", &error),
            InstallError::NoSuchVersion { .. } => {
                Self::of(Kind::NotFound, "no_vmm_version", &error).fix("mvm vmm list")
            }
            InstallError::NotFirecracker { .. } => Self::of(Kind::Failed, "not_firecracker", &error),
        }
    }
}

impl From<ShellError> for CliError {
    fn from(error: ShellError) -> Self {
        match error {
            ShellError::Spawn { .. } => Self::of(Kind::Environment, "no_program", &error).fix("mvm doctor"),
            ShellError::Failed { .. } | ShellError::TimedOut { .. } => {
                Self::of(Kind::Failed, "program", &error)
            }
        }
    }
}

impl From<DiskError> for CliError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Store(error) => error.into(),
            DiskError::Format { ref source, .. } => {
                let kind = match source {
                    ShellError::Spawn { .. } => Kind::Environment,
                    ShellError::Failed { .. } | ShellError::TimedOut { .. } => Kind::Failed,
                };
                Self::of(kind, "mke2fs", &error)
            }
            DiskError::Shrink { .. } => Self::of(Kind::Refused, "shrink", &error),
            DiskError::None => Self::of(Kind::NotFound, "no_disk", &error),
        }
    }
}

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Store(error) => error.into(),
            AuditError::Broken { .. } => Self::of(Kind::Failed, "audit_broken", &error),
        }
    }
}

impl From<ArtifactError> for CliError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Store(error) => error.into(),
            ArtifactError::Wrong { .. } => Self::of(Kind::Failed, "not_an_artifact", &error),
            ArtifactError::Changed { .. } => Self::of(Kind::Failed, "artifact_changed", &error)
                .fix("mvm pool import it again, or mvm pool rollback"),
            ArtifactError::CommandLine { .. } => Self::of(Kind::Usage, "command_line", &error),
        }
    }
}

impl From<LifecycleError> for CliError {
    fn from(error: LifecycleError) -> Self {
        match error {
            LifecycleError::Room(error) => error.into(),
            LifecycleError::Store(error) => error.into(),
            LifecycleError::Net(error) => error.into(),
            LifecycleError::Vmm(error) => error.into(),
            LifecycleError::Install(error) => error.into(),
            LifecycleError::Shell(error) => error.into(),
            LifecycleError::Disk(error) => error.into(),
            LifecycleError::Audit(error) => error.into(),
            LifecycleError::NotFound { .. } => Self::of(Kind::NotFound, "not_found", &error),
            LifecycleError::Ambiguous { .. } => Self::of(Kind::Usage, "ambiguous", &error),
            LifecycleError::Denied { ref path, denial } => {
                let made = Self::of(Kind::Refused, "state", &error);
                match (denial.way(), denial.state) {
                    (Some(way), _) => made.fix(format!("mvm instance {way} {path}")),
                    (None, State::Created | State::Ready) => made.fix(format!("mvm instance start {path}")),
                    (None, _) => made,
                }
            }
            LifecycleError::NoRevision { ref pool } => Self::of(Kind::Refused, "no_revision", &error)
                .fix(format!("mvm pool import {pool} --kernel FILE --rootfs FILE")),
            LifecycleError::TooMany { ref tenant, .. } => Self::of(Kind::Refused, "quota", &error).fix(
                format!("destroy another one, or mvm tenant update {tenant} --max-instances-per-pool N"),
            ),
            LifecycleError::NoAddress { .. } => {
                Self::of(Kind::Refused, "no_address", &error).fix("destroy another instance of this tenant")
            }
            LifecycleError::PortTaken { .. } => {
                Self::of(Kind::Refused, "port_taken", &error).fix("publish another port")
            }
            LifecycleError::Production { .. } => {
                Self::of(Kind::Refused, "production", &error).fix("mvm node set --production off")
            }
            LifecycleError::Step { error: ref inner, .. } => Self::of_step(&error, inner),
            LifecycleError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", &error),
        }
    }
}

impl CliError {
    /// A failed step: the text of the whole, the kind, causes and advice of what was at the bottom of it.
    fn of_step(whole: &LifecycleError, inner: &LifecycleError) -> Self {
        let kind = |error: &LifecycleError| match error {
            LifecycleError::Net(error) if error.is_environment() => {
                (Kind::Environment, "network_environment")
            }
            LifecycleError::Net(error) if error.is_foreign() => (Kind::Refused, "foreign"),
            LifecycleError::Shell(ShellError::Spawn { .. })
            | LifecycleError::Disk(DiskError::Format { source: ShellError::Spawn { .. }, .. }) => {
                (Kind::Environment, "no_program")
            }
            LifecycleError::Store(StoreError::Locked { .. }) => (Kind::Refused, "locked"),
            LifecycleError::Vmm(VmmError::Refused { .. }) => (Kind::Failed, "vmm_refused"),
            LifecycleError::Vmm(VmmError::Ended { .. }) => (Kind::Failed, "vmm_ended"),
            LifecycleError::Vmm(VmmError::TimedOut { .. }) => (Kind::Failed, "vmm_timeout"),
            _ => (Kind::Failed, "step_failed"),
        };
        let (kind, code) = kind(inner);
        let mut made = Self::of(kind, code, whole);
        let mut cause = std::error::Error::source(inner);
        while let Some(error) = cause {
            made.why.push(error.to_string());
            cause = error.source();
        }
        if kind == Kind::Environment { made.fix("mvm doctor") } else { made }
    }
}

impl From<TenantError> for CliError {
    fn from(error: TenantError) -> Self {
        match error {
            TenantError::Room(error) => error.into(),
            TenantError::Store(error) => error.into(),
            TenantError::Net(error) => error.into(),
            TenantError::Audit(error) => error.into(),
            TenantError::Lifecycle(error) => error.into(),
            TenantError::Pool(error) => (*error).into(),
            TenantError::Exists { ref id, .. } => {
                Self::of(Kind::Refused, "exists", &error).fix(format!("mvm tenant info {id}"))
            }
            TenantError::NetIdUsed { .. } => {
                Self::of(Kind::Refused, "net_id_used", &error).fix("mvm tenant list")
            }
            TenantError::NetIdLeft { .. } => {
                Self::of(Kind::Refused, "net_id_left", &error).fix("mvm node recover")
            }
            TenantError::Overlap { .. } => {
                Self::of(Kind::Refused, "subnet_overlap", &error).fix("mvm tenant list")
            }
            TenantError::OffsetRange { .. } => Self::of(Kind::Usage, "offset_range", &error),
            TenantError::HasVolumes { .. } => {
                Self::of(Kind::Refused, "has_volumes", &error).fix("--wipe-volumes, if the data may go")
            }
            TenantError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", &error),
        }
    }
}

impl From<PoolError> for CliError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Artifact(error) => error.into(),
            PoolError::Room(error) => error.into(),
            PoolError::Install(error) => error.into(),
            PoolError::Store(error) => error.into(),
            PoolError::Audit(error) => error.into(),
            PoolError::Lifecycle(error) => error.into(),
            PoolError::Exists { ref path, .. } => Self::of(Kind::Refused, "exists", &error)
                .fix(format!("mvm pool info {path}, or mvm pool update {path}")),
            PoolError::TooMany { ref tenant, .. } => Self::of(Kind::Refused, "quota", &error)
                .fix(format!("mvm tenant update {tenant} --max-pools N")),
            PoolError::NotEmpty { .. } => {
                Self::of(Kind::Refused, "not_empty", &error).fix("destroy it again")
            }
            PoolError::HasVolumes { .. } => {
                Self::of(Kind::Refused, "has_volumes", &error).fix("--wipe-volumes, if the data may go")
            }
            PoolError::NoSuchRevision { .. } => Self::of(Kind::NotFound, "no_such_revision", &error),
            PoolError::NoEarlierRevision { .. } => Self::of(Kind::Refused, "no_earlier_revision", &error),
            PoolError::Resources { .. } => Self::of(Kind::Usage, "resources", &error),
            PoolError::Production { .. } => Self::of(Kind::Refused, "production", &error),
            PoolError::Failpoint(_) => Self::of(Kind::Failed, "failpoint", &error),
        }
    }
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Store(error) => error.into(),
            NodeError::Net(error) => error.into(),
            NodeError::Lifecycle(error) => error.into(),
            NodeError::Pool(error) => error.into(),
        }
    }
}
