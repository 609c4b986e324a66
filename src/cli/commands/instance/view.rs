//! An instance as it is shown: as JSON, as lines for people, as the row of a table.

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{
    error::{CliError, Kind},
    output::{Out, Tone, bytes, count, data_disk, mib, time},
};
use crate::{
    infra::config::Roots,
    security::{
        Lack,
        cgroups::{self, Events},
    },
    vm::{
        instance::{
            config::{Instance, Receipt},
            guard,
            guest::Guest,
            lifecycle,
            snapshot::Delta,
            state::State,
            stats::Usage,
        },
        naming::InstancePath,
        pool::config::{AgentMode, VmmKind},
        room::NodeConfig,
        tenant::secrets,
    },
    worker::hooks::{self, HookError, Said, Signals},
};

/// An instance as it is shown: the record, its path, and the state as it is.
#[derive(Debug, Serialize)]
pub struct InstanceView {
    pub(super) path: InstancePath,
    #[serde(flatten)]
    pub(super) instance: Instance,
    /// What it would wake from; the list for people has no place for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) snapshot: Option<SnapshotView>,
    /// Its tenant has secrets, and they do not reach it: it has no agent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) without_secrets: bool,
    /// What became of its VMM for its limit of memory; there where it was looked at, and it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_events: Option<Events>,
    /// What its guest says; there where one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guest: Option<GuestView>,
}

/// What a guest says, or why that is not known.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum GuestView {
    Heard(Signals),
    Unknown {
        unknown: serde_json::Value,
        #[serde(skip)]
        what: String,
    },
}

impl GuestView {
    fn unknown(error: &CliError) -> Self {
        let remedy = error.remedy().map_or(String::new(), |remedy| format!("        next: {remedy}"));
        Self::Unknown { unknown: serde_json::json!(error.body()), what: error.whole() + &remedy }
    }

    /// As lines.
    fn lines(&self) -> Vec<String> {
        let signals = match self {
            Self::Unknown { what, .. } => return vec![format!("  guest     unknown: {what}")],
            Self::Heard(signals) => signals,
        };
        let worker = match signals.worker {
            None => "has said nothing".to_owned(),
            Some(Said { state, since: None }) => format!("{}, since when is unknown", hooks::word(state)),
            Some(Said { state, since: Some(since) }) => {
                format!("{} since {}", hooks::word(state), time(since))
            }
        };
        let mut lines = vec![format!("  worker    {worker}"), format!("  workload  {}", signals.workload)];
        if signals.under_way > 0 {
            lines.push(format!("  under way {}", count(signals.under_way, "request")));
        }
        if signals.draining {
            lines.push("  guest     takes nothing new: it is about to sleep".to_owned());
        }
        lines
    }
}

/// A snapshot as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotView {
    taken_at: Timestamp,
    vmm: VmmKind,
    vmm_version: String,
    /// What of the memory was written when it was taken.
    pub(super) written_bytes: u64,
    /// What it takes on the disk.
    pub(super) bytes: u64,
    pub(super) archived: bool,
}

impl InstanceView {
    /// The state as it is depends on whether the pool has a revision.
    pub fn new(mut instance: Instance, has_revision: bool) -> Self {
        instance.status = lifecycle::effective_state(&instance, has_revision);
        let path = instance.path();
        Self { path, instance, snapshot: None, without_secrets: false, memory_events: None, guest: None }
    }

    /// With what a sleeper would wake from, and whether its tenant's secrets reach it. What cannot be read keeps nobody from seeing
    /// the instance: `why` and a wake say what is wrong with it.
    pub fn in_full(mut self, roots: &Roots) -> Self {
        // Those that cannot be read are some.
        let has_some = || match secrets::stored(roots, &self.path.tenant) {
            Ok(all) => all.is_some_and(|all| !all.secrets.is_empty()),
            Err(_) => true,
        };
        self.without_secrets = self.instance.agent == AgentMode::None && has_some();
        if self.instance.status == State::Sleeping
            && let Ok(Some(delta)) = Delta::load(roots, &self.path)
        {
            self.snapshot = Some(SnapshotView {
                bytes: delta.taken_bytes(roots),
                archived: delta.archive.is_some(),
                written_bytes: delta.written_bytes,
                taken_at: delta.taken_at,
                vmm: delta.origin.vmm,
                vmm_version: delta.origin.vmm_version,
            });
        }
        self
    }

    /// With what the kernel says of its VMM by now: its jail, its limits, and what became of it for them.
    pub fn with_kernel(mut self, roots: &Roots) -> Self {
        let (vmm, instance) = (self.instance.find_vmm(), &mut self.instance);
        let Some(record) = &mut instance.vmm else { return self };
        let tap = &instance.net.tap_dev;
        if let Some((mut lacks, limits)) = vmm.and_then(|vmm| guard::held(roots, &vmm, tap)) {
            lacks.extend(record.lacks.iter().copied().filter(|lack| *lack == Lack::Filter));
            (record.lacks, record.limits) = (lacks, limits);
        }
        if let Ok(node) = NodeConfig::load(roots) {
            self.memory_events = cgroups::events(&node.node_id, tap);
        }
        self
    }

    /// With what its guest says, where it runs one with an agent. A guest that is silent takes as long as an answer may,
    /// and keeps nobody from seeing the rest.
    pub fn with_guest(mut self, roots: &Roots) -> Self {
        let instance = &self.instance;
        if (instance.status, instance.agent) != (State::Running, AgentMode::Required) {
            return self;
        }
        self.guest = Some(match &instance.pending {
            // It may stand still, and then it could not answer.
            Some(intent) => {
                let operation = intent.operation.name();
                let lock = lifecycle::try_lock(roots, &self.path);
                // It may have ended since the record was read.
                let is_left = || Instance::load(roots, &self.path).is_ok_and(|now| now.pending.is_some());
                GuestView::unknown(&match lock {
                    Ok(Some(_)) if is_left() => {
                        CliError::new(Kind::Refused, "cut_off", format!("a {operation} of it was cut off"))
                            .fix("mvm node recover")
                    }
                    _ => {
                        CliError::new(Kind::Refused, "pending", format!("a {operation} of it was under way"))
                    }
                })
            }
            None => match Guest::of(roots, instance).and_then(Guest::status) {
                Ok(status) => {
                    let id = instance.instance_id.to_string();
                    let now = Timestamp::max(roots.now(), instance.created_at);
                    match hooks::understand(status, &id, now, instance.created_at) {
                        Ok(signals) => GuestView::Heard(signals),
                        Err(error) => {
                            let (kind, code) = match error {
                                HookError::Other { .. } => (Kind::Refused, "guest_other"),
                                HookError::Nobody => (Kind::Failed, "guest_identity"),
                            };
                            GuestView::unknown(&CliError::new(kind, code, error.to_string()))
                        }
                    }
                }
                Err(error) => GuestView::unknown(&error.into()),
            },
        });
        self
    }

    /// Is its memory compressed?
    pub(super) fn is_archived(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.archived)
    }
}

/// How long the last operation took, and with `-v` its steps.
pub(super) fn took(out: &Out, view: &InstanceView) -> String {
    match &view.instance.last_receipt {
        None => String::new(),
        Some(receipt) if out.verbose => {
            let confirmed =
                confirmed(receipt).map_or(String::new(), |facts| format!("\n  confirmed: {facts}"));
            format!("{:.0} ms: {}{confirmed}", receipt.total_ms, steps(receipt))
        }
        Some(receipt) => format!("{:.0} ms", receipt.total_ms),
    }
}

/// What is said of one that runs no guest.
pub(super) fn doubts(out: &Out, view: &InstanceView) -> String {
    let doubt = view.instance.vmm.as_ref().and_then(|vmm| match vmm.kind {
        VmmKind::Sim => Some("simulated: no guest runs".to_owned()),
        VmmKind::Firecracker => vmm.unprotected(),
    });
    doubt.map(|doubt| out.paint(Tone::Doubtful, &format!("  ({doubt})"))).unwrap_or_default()
}

/// What is said of one that gets none of its tenant's secrets.
pub(in crate::cli::commands) fn without_secrets(out: &Out, view: &InstanceView) -> String {
    let doubt = "  (it has no agent: its tenant's secrets do not reach it)";
    if view.without_secrets { out.paint(Tone::Doubtful, doubt) } else { String::new() }
}

fn steps(receipt: &Receipt) -> String {
    let steps: Vec<String> =
        receipt.steps.iter().map(|step| format!("{} {:.1}", step.name, step.ms)).collect();
    steps.join(", ")
}

/// What the guest confirmed, and how long each took in the guest.
fn confirmed(receipt: &Receipt) -> Option<String> {
    let facts: Vec<String> =
        receipt.confirmed.iter().map(|one| format!("{} {:.1}", one.fact, one.ms)).collect();
    (!facts.is_empty()).then(|| facts.join(", "))
}

/// The names of the columns of [`row`].
pub(super) const COLUMNS: [&str; 6] = ["instance", "state", "address", "vmm", "revision", "since"];

/// It, in a list.
pub(super) fn row(now: Timestamp, view: &InstanceView) -> Vec<String> {
    let instance = &view.instance;
    let status = match &instance.pending {
        Some(intent) => format!("{} ({} …)", instance.status, intent.operation.name()),
        None => instance.status.to_string(),
    };
    let since = match instance.status {
        State::Running => instance.entered_running_at,
        State::Warm => instance.entered_warm_at,
        State::Sleeping => instance.entered_sleeping_at,
        State::Stopped => instance.entered_stopped_at,
        State::Created | State::Ready | State::Destroyed => Some(instance.created_at),
    };
    vec![
        view.path.to_string(),
        status,
        instance.net.guest_ip.to_string(),
        instance.vmm.as_ref().map_or("-".into(), |vmm| match (vmm.kind, &vmm.lacks[..]) {
            // That one says it with its name.
            (VmmKind::Sim, _) | (_, []) => vmm.kind.to_string(),
            (kind, lacks) => {
                let lacks: Vec<String> = lacks.iter().map(ToString::to_string).collect();
                format!("{kind} ({})", lacks.join(", "))
            }
        }),
        instance.revision.as_ref().map_or("-".into(), |revision| revision.short().to_owned()),
        since.map_or("-".into(), |since| ago(now, since)),
    ]
}

/// The names of the columns of [`usage_row`].
pub(super) const USAGE_COLUMNS: [&str; 7] =
    ["instance", "state", "cpu", "memory", "net in", "net out", "disk"];

/// What it uses, in a list.
pub(super) fn usage_row(usage: &Usage) -> Vec<String> {
    vec![
        usage.path.to_string(),
        usage.status.to_string(),
        format!("{:.1} s", usage.cpu_ms as f64 / 1000.0),
        bytes(usage.rss_bytes),
        bytes(usage.net_rx_bytes),
        bytes(usage.net_tx_bytes),
        bytes(usage.disk_bytes),
    ]
}

/// How long ago something was, in its largest unit.
fn ago(now: Timestamp, then: Timestamp) -> String {
    match now.as_second() - then.as_second() {
        seconds @ ..60 => format!("{} s", seconds.max(0)),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// All of it, as lines.
pub(super) fn describe(out: &Out, view: &InstanceView) -> String {
    let instance = &view.instance;
    let (net, resources) = (&instance.net, instance.resources);
    let mut lines = vec![
        view.path.to_string(),
        format!("  state     {}", instance.status),
        format!(
            "  network   {} of {} via {}, {}, {}",
            net.guest_ip, net.cidr, net.gateway_ip, net.mac, net.tap_dev
        ),
        format!(
            "  gets      {}, {} memory, {}",
            count(resources.vcpus, "vCPU"),
            mib(resources.mem_mib),
            data_disk(resources.data_disk_mib)
        ),
    ];
    lines.extend(instance.revision.as_ref().map(|revision| format!("  revision  {revision}")));
    lines.extend(instance.base_key.as_ref().map(|key| format!("  base      {key}")));
    if let Some(vmm) = &instance.vmm {
        let lacks: String = vmm.lacks.iter().map(|lack| format!(", {lack}")).collect();
        let jail = if vmm.lacks.contains(&Lack::Jail) { "" } else { ", jailed" };
        let filter = vmm.filter.map(|filter| format!(", {filter} filter")).unwrap_or_default();
        let lacks = if lacks.is_empty() { lacks } else { out.paint(Tone::Doubtful, &lacks) };
        lines.push(format!("  vmm       {} {}, pid {}{jail}{filter}{lacks}", vmm.kind, vmm.version, vmm.pid));
        lines.extend(vmm.limits.map(|limits| {
            let cpus = limits.cpu_max_us as f64 / limits.cpu_period_us as f64;
            let memory = mib(limits.memory_max >> 20);
            let io = limits.io.map_or(String::new(), |io| {
                let rate = |rate: u64, unit: &str| format!(", {rate} {unit} of the disk");
                let bytes = (io.bytes_per_s > 0).then(|| rate(io.bytes_per_s / 1_000_000, "MB/s"));
                let ops = (io.ops_per_s > 0).then(|| rate(io.ops_per_s, "operations/s"));
                [bytes, ops].into_iter().flatten().collect()
            });
            format!("  limits    {cpus} CPUs, {memory} of memory, {} threads{io}", limits.pids_max)
        }));
    }
    if let Some(Events { oom, oom_kills }) = view.memory_events.filter(|events| *events != Events::default())
    {
        let what = format!("  memory    at its limit {oom} times, {oom_kills} of its processes killed");
        lines.push(out.paint(Tone::Doubtful, &what));
    }
    if let Some(intent) = &instance.pending {
        lines.push(format!(
            "  pending   {} since {} by pid {}",
            intent.operation.name(),
            time(intent.since),
            intent.pid
        ));
    }
    if let Some(snapshot) = &view.snapshot {
        let packed = if snapshot.archived { ", archived" } else { "" };
        lines.push(format!(
            "  snapshot  {}{packed}, by {} {}, {}",
            bytes(snapshot.bytes),
            snapshot.vmm,
            snapshot.vmm_version,
            time(snapshot.taken_at)
        ));
    }
    if view.without_secrets {
        let doubt = "  secrets   do not reach it: it has no agent";
        lines.push(out.paint(Tone::Doubtful, doubt));
    }
    lines.extend(view.guest.iter().flat_map(GuestView::lines));
    lines.push(format!("  made      {}", time(instance.created_at)));
    lines.extend(instance.entered_running_at.map(|at| format!("  started   {}", time(at))));
    lines.extend(instance.entered_stopped_at.map(|at| format!("  stopped   {}", time(at))));
    lines.extend(
        instance.last_exit.as_ref().map(|exit| format!("  last exit {}, {}", exit.why, time(exit.when))),
    );
    if let Some(receipt) = &instance.last_receipt {
        lines.push(format!(
            "  receipt   {} {:.1} ms: {}",
            receipt.operation,
            receipt.total_ms,
            steps(receipt)
        ));
        lines.extend(confirmed(receipt).map(|facts| format!("  confirmed {facts}")));
    }
    lines.extend(instance.host_key.as_ref().map(|key| format!("  host key  {key}")));
    lines.extend(net.published.iter().map(|port| format!("  publishes {port}")));
    lines.join("\n")
}
