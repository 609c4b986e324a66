//! Pools whose guests have an agent.

use super::{Sandbox, faulty};

/// A pool acme/web on the simulated VMM, whose guests have an agent.
pub fn world() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    sandbox.agent_pool("sim");
    Some(sandbox)
}

/// The same on a VMM that has the faults which are set once the base snapshot is there.
pub fn faulty_world() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    faulty::install(&sandbox, &serde_json::json!({}));
    sandbox.agent_pool("firecracker");
    Some(sandbox)
}

/// Makes and starts an instance, and returns its path.
pub fn start(sandbox: &Sandbox) -> String {
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    path
}

/// What a command in a guest prints, which must succeed.
#[track_caller]
pub fn says(sandbox: &Sandbox, path: &str, command: &str) -> String {
    let output = sandbox.run(&format!("instance exec -n {path} -- {command}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command}: {:?} {said}", output.status.code());
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
