//! Which paths mean something.

use serde_json::json;

use crate::support::Lab;

crate::on_both![
    an_unknown_path_is_refused,
    a_known_path_with_another_method_is_refused,
    slashes_in_front_do_not_count,
    what_follows_a_known_path_is_passed_over,
    parts_in_the_middle_count,
    an_unknown_path_is_refused_before_its_body_is_read,
    a_snapshot_path_needs_an_operation,
    a_hotplug_path_needs_memory,
    a_body_may_be_an_array,
    a_field_comes_once,
    a_body_must_end,
    a_body_is_no_scalar,
];

fn an_unknown_path_is_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/nope").fault("Invalid request method and/or path: GET nope.");
    vmm.put("/nope/a", json!({})).fault("Invalid request method and/or path: PUT nope.");
    vmm.patch("/nope", json!({})).fault("Invalid request method and/or path: PATCH nope.");
    vmm.delete("/nope").fault("Invalid request method and/or path: DELETE nope.");
}

fn a_known_path_with_another_method_is_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/drives/root").fault("Invalid request method and/or path: GET drives.");
    vmm.get("/vsock").fault("Invalid request method and/or path: GET vsock.");
    vmm.put("/vm", json!({ "state": "Paused" })).fault("Invalid request method and/or path: PUT vm.");
    vmm.put("/version", json!({})).fault("Invalid request method and/or path: PUT version.");
    vmm.put("/", json!({})).fault("Invalid request method and/or path: PUT .");
    vmm.patch("/boot-source", json!({})).fault("Invalid request method and/or path: PATCH boot-source.");
    vmm.delete("/vsock").fault("Invalid request method and/or path: DELETE vsock.");
}

fn slashes_in_front_do_not_count(lab: &Lab) {
    let vmm = lab.start();
    assert_eq!(vmm.get("//").value()["id"], "anon");
    assert_eq!(vmm.get("///version").value(), vmm.get("/version").value());
}

fn what_follows_a_known_path_is_passed_over(lab: &Lab) {
    let vmm = lab.start();
    assert_eq!(vmm.get("/version/and/more").value(), vmm.get("/version").value());
    assert_eq!(vmm.get("/vm/config/x").value(), vmm.get("/vm/config").value());
    vmm.put("/machine-config/x", json!({ "vcpu_count": 1, "mem_size_mib": 64 })).done();
    let drive = json!({ "drive_id": "d", "is_root_device": false, "path_on_host": "disk.img" });
    vmm.put("/drives/d/x", drive).done();
}

fn parts_in_the_middle_count(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/vm").fault("Invalid request method and/or path: GET vm.");
    vmm.get("/vm/state").fault("Invalid request method and/or path: GET vm.");
    vmm.get("/vm//config").fault("Invalid request method and/or path: GET vm.");
}

fn an_unknown_path_is_refused_before_its_body_is_read(lab: &Lab) {
    lab.start().put_text("/nope", "nonsense").fault("Invalid request method and/or path: PUT nope.");
}

fn a_snapshot_path_needs_an_operation(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/snapshot", json!({})).fault("Missing snapshot operation type.");
    vmm.put("/snapshot/delete", json!({})).fault("Invalid request method and/or path: PUT /snapshot/delete.");
    vmm.patch("/snapshot/load", json!({})).fault("Invalid request method and/or path: PATCH snapshot.");
}

fn a_hotplug_path_needs_memory(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/hotplug").fault("Invalid request method and/or path: GET hotplug.");
    vmm.put("/hotplug/cpu", json!({})).fault("Invalid request method and/or path: PUT hotplug.");
    vmm.patch("/hotplug/cpu", json!({})).fault("Invalid request method and/or path: PATCH hotplug.");
}

fn a_body_may_be_an_array(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!([2, 64, false, null, true, "None"])).done();
    let shown = vmm.get("/machine-config").value();
    assert_eq!((&shown["vcpu_count"], &shown["track_dirty_pages"]), (&json!(2), &json!(true)));
    vmm.put("/machine-config", json!([]))
        .bad_body("invalid length 0, expected struct MachineConfig with 6 elements at line 1 column 2");
}

fn a_field_comes_once(lab: &Lab) {
    lab.start()
        .put_text("/machine-config", r#"{"vcpu_count":1,"vcpu_count":1}"#)
        .bad_body("duplicate field `vcpu_count` at line 1 column 28");
}

fn a_body_must_end(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/machine-config", r#"{"vcpu_count":1"#)
        .bad_body("EOF while parsing an object at line 1 column 15");
    vmm.put_text("/machine-config", r#"{"vcpu_count":1,}"#).bad_body("trailing comma at line 1 column 17");
    vmm.put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1} x"#)
        .bad_body("trailing characters at line 1 column 35");
}

fn a_body_is_no_scalar(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!(null))
        .bad_body("invalid type: null, expected struct MachineConfig at line 1 column 4");
    vmm.put("/balloon", json!("text"))
        .bad_body("invalid type: string \"text\", expected struct BalloonDeviceConfig at line 1 column 6");
}
