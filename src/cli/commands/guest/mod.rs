//! What reaches into a guest through its agent.

pub mod copy;
pub mod exec;
pub mod logs;
pub mod ssh;
pub mod stats;

use crate::{
    cli::error::{CliError, Kind},
    vm::{
        instance::{
            config::Instance,
            lifecycle::{self, Operator, resolve},
            state::{Denial, Event, State},
        },
        naming::InstanceRef,
        pool::{artifacts::Artifacts, config::AgentMode},
    },
};

/// The instance that a person means, which runs and has an agent.
pub fn reachable(operator: &mut Operator, typed: &InstanceRef) -> Result<Instance, CliError> {
    let path = resolve(&operator.roots, typed)?;
    let instance = Instance::load(&operator.roots, &path)?;
    let instance = lifecycle::settle(operator, instance)?.ok_or_else(|| {
        CliError::new(Kind::NotFound, "not_found", format!("{path} was half made, and is gone"))
    })?;
    let has_revision = Artifacts::of(&operator.roots, &path.pool_path()).current()?.is_some();
    let state = lifecycle::effective_state(&instance, has_revision);
    if state != State::Running {
        let fix = match state {
            State::Warm => format!("mvm instance resume {path}"),
            _ => match (Denial { state, event: Event::Sleep }).way() {
                Some(way) => format!("mvm instance {way} {path}"),
                None => format!("mvm instance start {path}"),
            },
        };
        return Err(CliError::new(
            Kind::Refused,
            "state",
            format!("{path} is {state}: its guest hears nothing"),
        )
        .fix(fix));
    }
    match instance.agent {
        AgentMode::Required => Ok(instance),
        AgentMode::None => {
            let what = format!("{path} has no agent in its guest");
            Err(CliError::new(Kind::Refused, "no_agent", what)
                .fix(format!("mvm instance console {path}; a pool with --agent required has one")))
        }
    }
}
