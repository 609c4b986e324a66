//! `/balloon`, its statistics and its hinting, with a guest that has no driver for it.

use serde_json::{Value, json};

use crate::support::{Lab, Vmm};

crate::on_both![
    there_is_none_at_first,
    it_is_shown_with_what_was_left_out,
    it_is_replaced,
    it_is_not_larger_than_memory,
    memory_is_not_smaller_than_it,
    it_needs_its_fields,
    it_takes_no_other_field,
    an_interval_fits_16_bits,
    a_size_fits_32_bits,
    a_vm_without_one_says_so,
    without_a_driver_it_cannot_change,
    statistics_are_off_without_an_interval,
    statistics_show_the_target,
    an_interval_changes_but_not_from_or_to_zero,
    hinting_is_off_unless_asked_for,
    hinting_needs_a_driver,
    hinting_has_a_status,
    a_hinting_command_may_be_empty,
    unknown_parts_are_refused,
];

fn running_with(lab: &Lab, balloon: Value) -> Vmm {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })).done();
    vmm.put("/balloon", balloon).done();
    vmm.boot_as_configured();
    vmm
}

fn plain(mib: u32) -> Value {
    json!({ "amount_mib": mib, "deflate_on_oom": true })
}

fn there_is_none_at_first(lab: &Lab) {
    lab.start().get("/balloon").fault("Balloon config error: No balloon device found.");
}

fn it_is_shown_with_what_was_left_out(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/balloon", plain(64)).done();
    let shown = json!({
        "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 0, "free_page_hinting": false,
        "free_page_reporting": false,
    });
    vmm.get("/balloon").says(shown.clone());
    assert_eq!(vmm.config("balloon"), shown);
}

fn it_is_replaced(lab: &Lab) {
    let vmm = lab.start();
    let full = json!({
        "amount_mib": 1, "deflate_on_oom": false, "stats_polling_interval_s": 5, "free_page_hinting": true,
        "free_page_reporting": true,
    });
    vmm.put("/balloon", plain(64)).done();
    vmm.put("/balloon", full.clone()).done();
    vmm.get("/balloon").says(full);
}

fn it_is_not_larger_than_memory(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/balloon", plain(128)).done();
    vmm.put("/balloon", plain(129)).fault("Balloon config error: Amount of pages requested is too large.");
}

fn memory_is_not_smaller_than_it(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/balloon", plain(64)).done();
    vmm.patch("/machine-config", json!({ "mem_size_mib": 63 })).fault(
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size.",
    );
    vmm.patch("/machine-config", json!({ "mem_size_mib": 64 })).done();
}

fn it_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/balloon", json!({ "amount_mib": 1 }))
        .bad_body("missing field `deflate_on_oom` at line 1 column 16");
    vmm.put("/balloon", json!({ "deflate_on_oom": true }))
        .bad_body("missing field `amount_mib` at line 1 column 23");
}

fn it_takes_no_other_field(lab: &Lab) {
    lab.start().put("/balloon", json!({ "must_tell_host": true })).bad_body(
        "unknown field `must_tell_host`, expected one of `amount_mib`, `deflate_on_oom`, `stats_polling_interval_s`, \
         `free_page_hinting`, `free_page_reporting` at line 1 column 17",
    );
}

fn an_interval_fits_16_bits(lab: &Lab) {
    lab.start()
        .put("/balloon", json!({ "stats_polling_interval_s": 65_536 }))
        .bad_body("invalid value: integer `65536`, expected u16 at line 1 column 33");
}

fn a_size_fits_32_bits(lab: &Lab) {
    lab.start()
        .put("/balloon", json!({ "amount_mib": -1 }))
        .bad_body("invalid value: integer `-1`, expected u32 at line 1 column 16");
}

fn a_vm_without_one_says_so(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    let why = "Failed perform action on device: Device not found";
    vmm.get("/balloon").fault(&format!("Internal VMM error: {why}"));
    vmm.get("/balloon/statistics").fault(&format!("Internal VMM error: {why}"));
    let why = format!("Balloon update error: {why}");
    vmm.patch("/balloon", json!({ "amount_mib": 1 })).fault(&why);
    vmm.patch("/balloon/statistics", json!({ "stats_polling_interval_s": 1 })).fault(&why);
    vmm.patch("/balloon/hinting/start", json!({})).fault(&why);
    vmm.get("/balloon/hinting/status").fault(&why);
}

fn without_a_driver_it_cannot_change(lab: &Lab) {
    let vmm = running_with(lab, plain(1));
    vmm.patch("/balloon", json!({ "amount_mib": 2 }))
        .fault("Balloon update error: Balloon: Device not activated yet.");
    vmm.patch("/balloon", json!({ "amount_mib": 1000 }))
        .fault("Balloon update error: Balloon: Device not activated yet.");
    assert_eq!(vmm.get("/balloon").value()["amount_mib"], 1);
}

fn statistics_are_off_without_an_interval(lab: &Lab) {
    running_with(lab, plain(1))
        .get("/balloon/statistics")
        .fault("Internal VMM error: Balloon: Received stats query when stats are disabled.");
}

fn statistics_show_the_target(lab: &Lab) {
    let balloon = json!({ "amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 1 });
    running_with(lab, balloon).get("/balloon/statistics").says(json!({
        "target_pages": 512, "actual_pages": 0, "target_mib": 2, "actual_mib": 0,
    }));
}

fn an_interval_changes_but_not_from_or_to_zero(lab: &Lab) {
    let balloon = json!({ "amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 1 });
    let vmm = running_with(lab, balloon);
    vmm.patch("/balloon/statistics", json!({ "stats_polling_interval_s": 3 })).done();
    assert_eq!(vmm.get("/balloon").value()["stats_polling_interval_s"], 3);
    vmm.patch("/balloon/statistics", json!({ "stats_polling_interval_s": 0 }))
        .fault("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation.");
}

fn hinting_is_off_unless_asked_for(lab: &Lab) {
    let vmm = running_with(lab, plain(1));
    let why = "Balloon update error: Balloon: Attempting to use hinting when not enabled";
    vmm.patch("/balloon/hinting/start", json!({})).fault(why);
    vmm.patch("/balloon/hinting/stop", json!({})).fault(why);
    vmm.get("/balloon/hinting/status").fault(why);
}

fn hinting(lab: &Lab) -> Vmm {
    running_with(lab, json!({ "amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true }))
}

fn hinting_needs_a_driver(lab: &Lab) {
    let vmm = hinting(lab);
    let why = "Balloon update error: Balloon: Device not activated yet.";
    vmm.patch("/balloon/hinting/start", json!({ "acknowledge_on_stop": false })).fault(why);
    vmm.send("PATCH", "/balloon/hinting/stop", None).fault(why);
}

fn hinting_has_a_status(lab: &Lab) {
    hinting(lab).get("/balloon/hinting/status").says(json!({ "host_cmd": 0, "guest_cmd": null }));
}

fn a_hinting_command_may_be_empty(lab: &Lab) {
    let vmm = hinting(lab);
    let why = "Balloon update error: Balloon: Device not activated yet.";
    vmm.send("PATCH", "/balloon/hinting/start", None).fault(why);
    vmm.patch("/balloon/hinting/start", json!({ "other": 1 })).fault(why);
    vmm.patch("/balloon/hinting/start", json!({ "acknowledge_on_stop": 1 }))
        .bad_body("invalid type: integer `1`, expected a boolean at line 1 column 24");
}

fn unknown_parts_are_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/balloon/size").fault("Unrecognized GET request path `size`.");
    vmm.get("/balloon/hinting").fault("Unrecognized GET request path `/hinting/`.");
    vmm.get("/balloon/hinting/now").fault("Unrecognized GET request path `/hinting/now`.");
    vmm.patch("/balloon/hinting", json!({})).fault("Unrecognized PATCH request path `/hinting/`.");
    vmm.patch("/balloon/hinting/now", json!({})).fault("Unrecognized PATCH request path `/hinting/now`.");
    vmm.send("PATCH", "/balloon/statistics", None).fault("Empty PATCH request.");
}
