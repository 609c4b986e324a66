//! One request from its log line to its answer, with the fault that it may have.

use std::time::Instant;

use crate::{
    api::{self, Action, Reply},
    fault::{Effect, Faults},
    host::signals,
    http::{Method, Request, Response, server::Next},
    log::{self, api_log},
    metrics,
    vmm::{Vmm, took},
    wire::{machine::Level, snapshot::SnapshotType},
};

/// Serves one request.
pub(super) fn serve(vmm: &mut Vmm, request: &Request, faults: &Faults) -> (Response, Next) {
    let start = Instant::now();
    log_request(request);
    let effect = faults.of(request);
    if let Some(answer) = effect.as_ref().and_then(Effect::answer) {
        return (answer, Next::Serve);
    }
    match effect {
        Some(Effect::DieBefore) => signals::kill_self(),
        Some(Effect::Hang) => loop {
            std::thread::park();
        },
        _ => {}
    }
    let response = answer(vmm, request);
    api_log!(Debug, "Total previous API call duration: {} us.", start.elapsed().as_micros());
    let next = if vmm.doomed() { Next::Stop } else { Next::Serve };
    match effect {
        Some(Effect::DieDuring) => signals::kill_self(),
        Some(Effect::DieAfter) => (response, Next::Die),
        Some(Effect::AnswerAfter { status, fault_message }) => (api::fault(status, &fault_message), next),
        _ => (response, next),
    }
}

fn answer(vmm: &mut Vmm, request: &Request) -> Response {
    let start = Instant::now();
    let group = match request.method {
        Method::Get => "get_api_requests",
        Method::Put => "put_api_requests",
        Method::Patch => "patch_api_requests",
        Method::Delete => "hotplug",
    };
    let resource =
        request.path.trim_start_matches('/').split('/').next().unwrap_or_default().replace('-', "_");
    metrics::count(group, &format!("{resource}_count"));
    let routed = match api::route(request) {
        Ok(routed) => routed,
        Err(error) => {
            metrics::count(group, &format!("{resource}_fails"));
            api_log!(Error, "{error:?}");
            return api::fault(400, &error.to_string());
        }
    };
    let timed = timed(&routed.action);
    let mut response = match vmm.act(routed.action) {
        Ok(reply) => {
            let (response, status) = match reply {
                Reply::Empty => (Response::empty(204), "204 No Content"),
                Reply::Json(body) => (Response::with_body(200, body), "200 OK"),
            };
            api_log!(Info, "The request was executed successfully. Status code: {status}.");
            if let Some((metric, name)) = timed {
                let micros = took(metric, start);
                api_log!(Info, "'{name}' API request took {micros} us.");
            }
            response
        }
        Err(error) => {
            metrics::count(group, &format!("{resource}_fails"));
            let status = match error.status() {
                413 => "413 Payload too large",
                _ => "400 Bad Request",
            };
            api_log!(Error, "Received Error. Status code: {status}. Message: {error}");
            api::fault(error.status(), &error.to_string())
        }
    };
    if let Some(message) = routed.deprecation {
        api_log!(Warn, "{message}");
        response.deprecation = true;
    }
    response
}

/// The metric and the name in the log of an action whose time is taken.
fn timed(action: &Action) -> Option<(&'static str, &'static str)> {
    Some(match action {
        Action::Pause => ("pause_vm", "pause vm"),
        Action::Resume => ("resume_vm", "resume vm"),
        Action::LoadSnapshot(_) => ("load_snapshot", "load snapshot"),
        Action::CreateSnapshot(params) => match params.snapshot_type {
            SnapshotType::Full => ("full_create_snapshot", "create full snapshot"),
            SnapshotType::Diff => ("diff_create_snapshot", "create diff snapshot"),
        },
        _ => return None,
    })
}

fn log_request(request: &Request) {
    let body = match &request.body {
        Some(_) if request.path == "/mmds" => String::new(),
        Some(_) if request.path == "/cpu-config" && !log::lets_through(Level::Debug) => {
            ". To view the CPU template received by the API, configure log-level to DEBUG".to_owned()
        }
        Some(body) => format!(" with body {:?}", str::from_utf8(body).unwrap_or("inconvertible to UTF-8")),
        None => String::new(),
    };
    let (method, path) = (request.method, &request.path);
    api_log!(Info, "The API server received a {method:?} request on {path:?}{body}.");
}
