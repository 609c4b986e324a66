//! `/actions`.

use serde_json::json;

use crate::support::{Lab, PRE_BOOT};

crate::on_both![
    a_start_needs_a_kernel,
    a_failed_start_leaves_the_vmm_as_it_was,
    ctrl_alt_del_and_flush_need_a_vm,
    an_unknown_action_is_refused,
    an_action_needs_its_field,
    an_action_takes_no_other_field,
    an_action_is_an_object,
    metrics_are_flushed_without_a_file,
];

fn a_start_needs_a_kernel(lab: &Lab) {
    lab.start()
        .instance_start()
        .fault("Start microvm error: Cannot start microvm without kernel configuration.");
}

fn a_failed_start_leaves_the_vmm_as_it_was(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "junk" })).done();
    let answer = vmm.instance_start();
    answer.fault(
        "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or \
         invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: Invalid Elf magic number",
    );
    assert_eq!(vmm.state(), "Not started");
    vmm.boot();
    assert_eq!(vmm.state(), "Running");
}

fn ctrl_alt_del_and_flush_need_a_vm(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/actions", json!({ "action_type": "SendCtrlAltDel" })).fault(PRE_BOOT);
    vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).fault(PRE_BOOT);
}

fn an_unknown_action_is_refused(lab: &Lab) {
    lab.start().put("/actions", json!({ "action_type": "Reboot" })).bad_body(
        "unknown variant `Reboot`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` \
         at line 1 column 23",
    );
}

fn an_action_needs_its_field(lab: &Lab) {
    lab.start().put("/actions", json!({})).bad_body("missing field `action_type` at line 1 column 2");
}

fn an_action_takes_no_other_field(lab: &Lab) {
    lab.start()
        .put_text("/actions", r#"{"action_type":"InstanceStart","payload":1}"#)
        .bad_body("unknown field `payload`, expected `action_type` at line 1 column 40");
}

fn an_action_is_an_object(lab: &Lab) {
    lab.start()
        .put_text("/actions", r#""InstanceStart""#)
        .bad_body("invalid type: string \"InstanceStart\", expected struct ActionBody at line 1 column 15");
}

fn metrics_are_flushed_without_a_file(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).done();
}
