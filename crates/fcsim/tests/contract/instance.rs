//! What a VMM says of itself, and its states.

use serde_json::json;

use crate::support::{Lab, POST_BOOT, PRE_BOOT, VERSION};

crate::on_both![
    a_fresh_vmm_is_not_started,
    it_tells_its_version,
    the_id_is_shown,
    the_whole_configuration_is_shown_before_the_start,
    the_whole_configuration_is_shown_after_the_start,
    a_started_vm_runs,
    pause_and_resume_are_idempotent,
    pause_and_resume_need_a_vm,
    an_unknown_state_is_refused,
    a_state_needs_its_field,
    a_paused_vm_still_answers,
    a_vm_starts_once,
    what_configures_is_refused_after_the_start,
    what_needs_a_vm_is_refused_before_the_start,
];

fn a_fresh_vmm_is_not_started(lab: &Lab) {
    let vmm = lab.start();
    let answer = vmm.get("/");
    assert_eq!(
        answer.body,
        r#"{"id":"anon","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#
    );
    assert!(
        answer.head.contains("\r\nContent-Type: application/json\r\nContent-Length: 83"),
        "{}",
        answer.head
    );
}

fn it_tells_its_version(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/version").says(json!({ "firecracker_version": VERSION }));
    vmm.boot();
    vmm.get("/version").says(json!({ "firecracker_version": VERSION }));
}

fn the_id_is_shown(lab: &Lab) {
    let vmm = lab.spawn(&["--api-sock", "api.sock", "--id", "a-1Z"]);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.get("/").value()["id"], "a-1Z");
}

fn the_whole_configuration_is_shown_before_the_start(lab: &Lab) {
    lab.start().get("/vm/config").says(json!({
        "balloon": null,
        "drives": [],
        "boot-source": { "kernel_image_path": "", "initrd_path": null, "boot_args": null },
        "cpu-config": null,
        "logger": null,
        "machine-config": {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
        },
        "metrics": null,
        "mmds-config": null,
        "network-interfaces": [],
        "vsock": null,
        "entropy": null,
        "pmem": [],
        "memory-hotplug": null,
    }));
}

fn the_whole_configuration_is_shown_after_the_start(lab: &Lab) {
    let vmm = lab.start();
    let drive = json!({ "drive_id": "root", "is_root_device": true, "path_on_host": "disk.img" });
    vmm.put("/drives/root", drive).done();
    vmm.put("/entropy", json!({})).done();
    vmm.put("/balloon", json!({ "amount_mib": 1, "deflate_on_oom": true })).done();
    let boot = json!({ "kernel_image_path": "kernel", "boot_args": "quiet" });
    vmm.put("/boot-source", boot).done();
    let before = vmm.get("/vm/config").value();
    vmm.instance_start().done();
    vmm.get("/vm/config").says(before);
}

fn a_started_vm_runs(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    assert_eq!(vmm.state(), "Running");
}

fn pause_and_resume_are_idempotent(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.resume();
    assert_eq!(vmm.state(), "Running");
    vmm.pause();
    vmm.pause();
    assert_eq!(vmm.state(), "Paused");
    vmm.resume();
    vmm.resume();
    assert_eq!(vmm.state(), "Running");
}

fn pause_and_resume_need_a_vm(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch("/vm", json!({ "state": "Paused" })).fault(PRE_BOOT);
    vmm.patch("/vm", json!({ "state": "Resumed" })).fault(PRE_BOOT);
}

fn an_unknown_state_is_refused(lab: &Lab) {
    lab.start()
        .patch("/vm", json!({ "state": "Running" }))
        .bad_body("unknown variant `Running`, expected `Paused` or `Resumed` at line 1 column 18");
}

fn a_state_needs_its_field(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch("/vm", json!({})).bad_body("missing field `state` at line 1 column 2");
    vmm.patch("/vm", json!({ "state": "Paused", "force": true }))
        .bad_body("unknown field `force`, expected `state` at line 1 column 8");
}

fn a_paused_vm_still_answers(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.pause();
    vmm.get("/version").says(json!({ "firecracker_version": VERSION }));
    assert_eq!(vmm.config("machine-config")["mem_size_mib"], 32);
    vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).done();
    vmm.instance_start().fault(POST_BOOT);
}

fn a_vm_starts_once(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.instance_start().fault(POST_BOOT);
}

fn what_configures_is_refused_after_the_start(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    for (path, body) in [
        ("/boot-source", json!({ "kernel_image_path": "kernel" })),
        ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })),
        ("/cpu-config", json!({})),
        ("/logger", json!({})),
        ("/metrics", json!({ "metrics_path": "metrics" })),
        ("/serial", json!({})),
        ("/balloon", json!({ "amount_mib": 1, "deflate_on_oom": true })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })),
        ("/entropy", json!({})),
        ("/mmds/config", json!({ "network_interfaces": ["eth0"] })),
        ("/hotplug/memory", json!({ "total_size_mib": 128 })),
        ("/snapshot/load", json!({ "snapshot_path": "none", "mem_file_path": "none" })),
    ] {
        vmm.put(path, body).fault(POST_BOOT);
    }
    vmm.patch("/machine-config", json!({ "vcpu_count": 1 })).fault(POST_BOOT);
    assert_eq!(vmm.state(), "Running");
}

fn what_needs_a_vm_is_refused_before_the_start(lab: &Lab) {
    let vmm = lab.start();
    for (path, body) in [
        ("/drives/root", json!({ "drive_id": "root", "path_on_host": "disk.img" })),
        ("/network-interfaces/eth0", json!({ "iface_id": "eth0" })),
        ("/pmem/p", json!({ "id": "p" })),
        ("/balloon", json!({ "amount_mib": 1 })),
        ("/balloon/statistics", json!({ "stats_polling_interval_s": 1 })),
        ("/balloon/hinting/start", json!({})),
        ("/balloon/hinting/stop", json!({})),
        ("/hotplug/memory", json!({ "requested_size_mib": 128 })),
    ] {
        vmm.patch(path, body).fault(PRE_BOOT);
    }
    for path in ["/balloon/statistics", "/balloon/hinting/status", "/hotplug/memory"] {
        vmm.get(path).fault(PRE_BOOT);
    }
    for path in ["/drives/root", "/pmem/p", "/network-interfaces/eth0"] {
        vmm.delete(path).fault(PRE_BOOT);
    }
    vmm.snapshot("Full", "s").fault(PRE_BOOT);
    assert!(!lab.exists("s.vmstate"));
}
