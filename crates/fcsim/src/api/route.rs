//! Which method and path mean what, and what is wrong with those that mean nothing.

use serde::de::{DeserializeOwned, Error as _};

use super::{Action, DeviceKind};
use crate::{
    http::{Method, Request},
    wire::{
        devices::{StartHintingCmd, VsockDeviceConfig},
        machine::{ActionBody, ActionType, MachineConfig, MachineConfigUpdate, MmdsConfig, MmdsVersion},
        snapshot::{LoadSnapshotConfig, Vm, VmState},
    },
};

/// Why a request means nothing. Its debug form is what Firecracker logs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("The ID cannot be empty.")]
    EmptyID,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidID,
    #[error("Invalid request method and/or path: {1} {0}.")]
    InvalidPathMethod(String, Method),
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    SerdeJson(#[from] serde_json::Error),
    #[error("{1}")]
    Generic(Status, String),
}

/// The status that goes with an error.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Status {
    BadRequest,
}

fn generic<T>(why: impl Into<String>) -> Result<T, RouteError> {
    Err(RouteError::Generic(Status::BadRequest, why.into()))
}

fn empty<T>(method: &str) -> Result<T, RouteError> {
    generic(format!("Empty {method} request."))
}

fn unrecognized<T>(method: Method, path: &str) -> Result<T, RouteError> {
    generic(format!("Unrecognized {method} request path `{path}`."))
}

/// An action, and what is deprecated about the way in which it was asked for.
#[derive(Debug)]
pub(crate) struct Routed {
    pub action: Action,
    pub deprecation: Option<&'static str>,
}

impl From<Action> for Routed {
    fn from(action: Action) -> Self {
        Self { action, deprecation: None }
    }
}

type Outcome = Result<Routed, RouteError>;

/// The action that a request asks for.
pub(crate) fn route(request: &Request) -> Outcome {
    let mut tokens = request.path.trim_start_matches('/').split_terminator('/');
    let resource = tokens.next().unwrap_or_default();
    let body = request.body.as_deref();
    match (request.method, body) {
        (Method::Get, None) => get(resource, &mut tokens),
        (Method::Get, Some(_)) => generic("GET request cannot have a body."),
        (Method::Put, Some(body)) => put(resource, &mut tokens, body),
        (Method::Put, None) => empty("PUT"),
        (Method::Patch, body) => patch(resource, &mut tokens, body),
        (Method::Delete, None) => delete(resource, &mut tokens),
        (Method::Delete, Some(_)) => empty("Delete"),
    }
}

fn unknown(method: Method, resource: &str) -> Outcome {
    Err(RouteError::InvalidPathMethod(resource.to_owned(), method))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, RouteError> {
    Ok(serde_json::from_slice(body)?)
}

fn id(token: Option<&str>) -> Result<&str, RouteError> {
    match token {
        None | Some("") => Err(RouteError::EmptyID),
        Some(id) if id.chars().all(|c| c == '_' || c.is_alphanumeric()) => Ok(id),
        Some(_) => Err(RouteError::InvalidID),
    }
}

fn get<'a>(resource: &str, tokens: &mut impl Iterator<Item = &'a str>) -> Outcome {
    let action = match resource {
        "" => Action::GetInstanceInfo,
        "version" => Action::GetVersion,
        "machine-config" => Action::GetMachineConfig,
        "mmds" => Action::GetMmds,
        "vm" if tokens.next() == Some("config") => Action::GetFullConfig,
        "hotplug" if tokens.next() == Some("memory") => Action::GetMemoryHotplug,
        "balloon" => match (tokens.next(), tokens.next()) {
            (None, _) => Action::GetBalloon,
            (Some("statistics"), _) => Action::GetBalloonStats,
            (Some("hinting"), Some("status")) => Action::GetHintingStatus,
            (Some("hinting"), rest) => {
                return unrecognized(Method::Get, &format!("/hinting/{}", rest.unwrap_or_default()));
            }
            (Some(other), _) => return unrecognized(Method::Get, other),
        },
        _ => return unknown(Method::Get, resource),
    };
    Ok(action.into())
}

fn put<'a>(resource: &str, tokens: &mut impl Iterator<Item = &'a str>, body: &[u8]) -> Outcome {
    let action = match resource {
        "actions" => match parse::<ActionBody>(body)?.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        },
        "balloon" => Action::SetBalloon(parse(body)?),
        "boot-source" => Action::ConfigureBootSource(parse(body)?),
        "cpu-config" => Action::PutCpuConfig(parse(body)?),
        "drives" => {
            let id = id(tokens.next())?;
            let config: crate::wire::devices::BlockDeviceConfig = parse(body)?;
            same_id(id, &config.drive_id)?;
            Action::InsertDrive(config)
        }
        "pmem" => {
            let id = id(tokens.next())?;
            let config: crate::wire::devices::PmemConfig = parse(body)?;
            same_id(id, &config.id)?;
            Action::InsertPmem(config)
        }
        "network-interfaces" => {
            let id = id(tokens.next())?;
            let config: crate::wire::devices::NetworkInterfaceConfig = parse(body)?;
            same_iface(id, &config.iface_id)?;
            Action::InsertNet(config)
        }
        "logger" => Action::ConfigureLogger(parse(body)?),
        "serial" => Action::ConfigureSerial(parse(body)?),
        "metrics" => Action::ConfigureMetrics(parse(body)?),
        "entropy" => Action::SetEntropy(parse(body)?),
        "machine-config" => {
            let config: MachineConfig = parse(body)?;
            let deprecation = config
                .cpu_template
                .is_some()
                .then_some("PUT /machine-config: cpu_template field is deprecated.");
            return Ok(Routed { action: Action::UpdateMachineConfig(config.into()), deprecation });
        }
        "mmds" => match tokens.next() {
            None => Action::PutMmds(parse(body)?),
            Some("config") => {
                let config: MmdsConfig = parse(body)?;
                let deprecation = (config.version == MmdsVersion::V1)
                    .then_some("PUT /mmds/config: V1 is deprecated. Use V2 instead.");
                return Ok(Routed { action: Action::SetMmdsConfig(config), deprecation });
            }
            Some(other) => return unrecognized(Method::Put, other),
        },
        "snapshot" => match tokens.next() {
            Some("create") => Action::CreateSnapshot(parse(body)?),
            Some("load") => return load(body),
            Some(other) => return unknown(Method::Put, &format!("/snapshot/{other}")),
            None => return generic("Missing snapshot operation type."),
        },
        "vsock" => {
            let config: VsockDeviceConfig = parse(body)?;
            let deprecation =
                config.vsock_id.is_some().then_some("PUT /vsock: vsock_id field is deprecated.");
            return Ok(Routed { action: Action::SetVsock(config), deprecation });
        }
        "hotplug" if tokens.next() == Some("memory") => Action::SetMemoryHotplug(parse(body)?),
        _ => return unknown(Method::Put, resource),
    };
    Ok(action.into())
}

fn load(body: &[u8]) -> Outcome {
    let config: LoadSnapshotConfig = parse(body)?;
    let wrong = |text| Err(RouteError::SerdeJson(serde_json::Error::custom(text)));
    match (&config.mem_backend, &config.mem_file_path) {
        (Some(_), Some(_)) => {
            return wrong("too many fields: either `mem_backend` or `mem_file_path` exclusively is required");
        }
        (None, None) => return wrong("missing field: either `mem_backend` or `mem_file_path` is required"),
        _ => {}
    }
    let deprecation = (config.mem_file_path.is_some() || config.enable_diff_snapshots)
        .then_some("PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.");
    Ok(Routed { action: Action::LoadSnapshot(config), deprecation })
}

fn patch<'a>(resource: &str, tokens: &mut impl Iterator<Item = &'a str>, body: Option<&[u8]>) -> Outcome {
    if resource == "balloon" {
        return patch_balloon(tokens, body);
    }
    let Some(body) = body else {
        return empty("PATCH");
    };
    let action = match resource {
        "drives" => {
            let id = id(tokens.next())?;
            let update: crate::wire::devices::BlockDeviceUpdateConfig = parse(body)?;
            same_id(id, &update.drive_id)?;
            Action::UpdateDrive(update)
        }
        "pmem" => {
            let id = id(tokens.next())?;
            let update: crate::wire::devices::PmemDeviceUpdateConfig = parse(body)?;
            same_id(id, &update.id)?;
            Action::UpdatePmem(update)
        }
        "network-interfaces" => {
            let id = id(tokens.next())?;
            let update: crate::wire::devices::NetworkInterfaceUpdateConfig = parse(body)?;
            same_iface(id, &update.iface_id)?;
            Action::UpdateNet(update)
        }
        "machine-config" => {
            let update: MachineConfigUpdate = parse(body)?;
            if update == MachineConfigUpdate::default() {
                return empty("PATCH");
            }
            let deprecation = update
                .cpu_template
                .is_some()
                .then_some("PATCH /machine-config: cpu_template field is deprecated.");
            return Ok(Routed { action: Action::UpdateMachineConfig(update), deprecation });
        }
        "mmds" => Action::PatchMmds(parse(body)?),
        "vm" => match parse::<Vm>(body)?.state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        },
        "hotplug" if tokens.next() == Some("memory") => Action::UpdateMemoryHotplug(parse(body)?),
        _ => return unknown(Method::Patch, resource),
    };
    Ok(action.into())
}

fn patch_balloon<'a>(tokens: &mut impl Iterator<Item = &'a str>, body: Option<&[u8]>) -> Outcome {
    let action = match (tokens.next(), body) {
        (Some("statistics"), Some(body)) => Action::UpdateBalloonStats(parse(body)?),
        (Some("hinting"), body) => match tokens.next() {
            Some("start") => Action::StartHinting(match body {
                None | Some([]) => StartHintingCmd { acknowledge_on_stop: true },
                Some(body) => parse(body)?,
            }),
            Some("stop") => Action::StopHinting,
            other => {
                return unrecognized(Method::Patch, &format!("/hinting/{}", other.unwrap_or_default()));
            }
        },
        (_, Some(body)) => Action::UpdateBalloon(parse(body)?),
        (_, None) => return empty("PATCH"),
    };
    Ok(action.into())
}

fn delete<'a>(resource: &str, tokens: &mut impl Iterator<Item = &'a str>) -> Outcome {
    let kind = match resource {
        "drives" => DeviceKind::Drive,
        "pmem" => DeviceKind::Pmem,
        "network-interfaces" => DeviceKind::Net,
        _ => return unknown(Method::Delete, resource),
    };
    Ok(Action::Unplug(kind, id(tokens.next())?.to_owned()).into())
}

fn same_id(path: &str, body: &str) -> Result<(), RouteError> {
    match path == body {
        true => Ok(()),
        false => generic("The id from the path does not match the id from the body!"),
    }
}

fn same_iface(path: &str, body: &str) -> Result<(), RouteError> {
    match path == body {
        true => Ok(()),
        false => {
            generic(format!("The id from the path [{path}] does not match the id from the body [{body}]!"))
        }
    }
}
