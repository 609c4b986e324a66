//! What many cases do first: a machine, a boot, a snapshot.

use serde_json::{Value, json};

use super::{Answer, Lab, Vmm};

impl Vmm {
    /// Boots the tiny guest in 32 MiB.
    #[track_caller]
    pub fn boot(&self) {
        self.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })).done();
        self.boot_as_configured();
    }

    /// Boots the tiny guest in 32 MiB whose dirty pages are tracked.
    #[track_caller]
    pub fn boot_tracked(&self) {
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": 32, "track_dirty_pages": true });
        self.put("/machine-config", machine).done();
        self.boot_as_configured();
    }

    /// Boots the tiny guest in what is configured.
    #[track_caller]
    pub fn boot_as_configured(&self) {
        self.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
        self.instance_start().done();
    }

    /// `InstanceStart`.
    #[track_caller]
    pub fn instance_start(&self) -> Answer {
        self.put("/actions", json!({ "action_type": "InstanceStart" }))
    }

    #[track_caller]
    pub fn pause(&self) {
        self.patch("/vm", json!({ "state": "Paused" })).done();
    }

    #[track_caller]
    pub fn resume(&self) {
        self.patch("/vm", json!({ "state": "Resumed" })).done();
    }

    /// Asks for a snapshot into `<name>.vmstate` and `<name>.mem`.
    #[track_caller]
    pub fn snapshot(&self, kind: &str, name: &str) -> Answer {
        let state = format!("{name}.vmstate");
        let memory = format!("{name}.mem");
        let body = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
        self.put("/snapshot/create", body)
    }

    /// Asks for the snapshot of `<name>.vmstate` and `<name>.mem` with further fields.
    #[track_caller]
    pub fn load(&self, name: &str, more: Value) -> Answer {
        let mut body = json!({
            "snapshot_path": format!("{name}.vmstate"),
            "mem_backend": { "backend_type": "File", "backend_path": format!("{name}.mem") },
        });
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        self.put("/snapshot/load", body)
    }

    /// What `GET /` says of the state.
    #[track_caller]
    pub fn state(&self) -> String {
        self.get("/").value()["state"].as_str().expect("a state").to_owned()
    }

    /// One part of `GET /vm/config`.
    #[track_caller]
    pub fn config(&self, part: &str) -> Value {
        self.get("/vm/config").value()[part].clone()
    }
}

impl Lab {
    /// Makes the snapshot `s` of a tiny guest with nothing but memory, and ends its VMM.
    #[track_caller]
    pub fn snapshot_of_the_tiny_guest(&self) {
        self.snapshot_of(|_| {});
    }

    /// Makes the snapshot `s` of a tiny guest that was configured so, and ends its VMM.
    #[track_caller]
    pub fn snapshot_of(&self, configure: impl Fn(&Vmm)) {
        let vmm = self.start();
        configure(&vmm);
        vmm.boot_tracked();
        vmm.pause();
        vmm.snapshot("Full", "s").done();
        vmm.kill();
        self.remove("api.sock");
    }

    /// Removes what a VMM left.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
