//! A VMM of which faults can be asked: the simulated one, installed as if it were Firecracker.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Value, json};

use super::{NULL, Sandbox, TUN, URANDOM, own_dev};

/// A /dev/kvm that nobody calculates with.
const KVM: (&str, u32, u32) = ("kvm", 1, 3);

/// Installs it with these faults. The mount namespace belongs to the test.
pub fn install(sandbox: &Sandbox, faults: &Value) {
    own_dev(&[NULL, URANDOM, TUN, KVM]);
    set_faults(sandbox, faults);
    sandbox.ok(&format!("vmm install {}", faulty_vmm(sandbox, "1.16.1").display()));
}

/// The faults that the VMMs have which are started from now on.
pub fn set_faults(sandbox: &Sandbox, faults: &Value) {
    fs::write(sandbox.root().join("faults.json"), faults.to_string()).expect("a file");
}

/// A program that says it is this version of Firecracker, is the simulated one, and has the faults that [`set_faults`] asks
/// for.
pub fn faulty_vmm(sandbox: &Sandbox, version: &str) -> PathBuf {
    let path = sandbox.root().join(format!("firecracker-{version}"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'Firecracker v{version}'; exit; }}\n\
         FCSIM_FAULTS_FILE='{}' exec '{}' __fcsim \"$@\"\n",
        sandbox.root().join("faults.json").display(),
        env!("CARGO_BIN_EXE_mvm"),
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
    path
}

/// A fault of requests to this path.
pub fn fault(path: &str, effect: Value) -> Value {
    json!({ "requests": [{ "path": path, "times": 1, "effect": effect }] })
}
