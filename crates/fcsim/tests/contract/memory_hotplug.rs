//! `/hotplug/memory`, with a guest that has no driver for it.

use serde_json::json;

use crate::support::{Lab, Vmm};

crate::on_both![
    it_is_shown_with_what_was_left_out,
    a_block_has_at_least_two_mib,
    a_block_is_a_power_of_two,
    a_slot_has_at_least_128_mib,
    a_slot_is_made_of_blocks,
    there_is_at_least_one_slot,
    there_are_whole_slots,
    it_needs_a_size,
    it_takes_no_other_field,
    a_vm_without_it_says_so,
    nothing_is_plugged_at_first,
    without_a_driver_nothing_is_plugged,
    addresses_end_at_512_gib,
    a_snapshot_has_room_for_it,
];

const ERROR: &str = "Memory hotplug config error:";

fn running(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    vmm.put("/hotplug/memory", json!({ "total_size_mib": 256 })).done();
    vmm.boot();
    vmm
}

fn it_is_shown_with_what_was_left_out(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/hotplug/memory", json!({ "total_size_mib": 256 })).done();
    let shown = json!({ "total_size_mib": 256, "block_size_mib": 2, "slot_size_mib": 128 });
    assert_eq!(vmm.config("memory-hotplug"), shown);
}

fn a_block_has_at_least_two_mib(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 256, "block_size_mib": 1 }))
        .fault(&format!("{ERROR} Block size must not be lower than 2 MiB"));
}

fn a_block_is_a_power_of_two(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 256, "block_size_mib": 3 }))
        .fault(&format!("{ERROR} Block size must be a power of 2"));
}

fn a_slot_has_at_least_128_mib(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 256, "slot_size_mib": 64 }))
        .fault(&format!("{ERROR} Slot size must not be lower than 128 MiB"));
}

fn a_slot_is_made_of_blocks(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 258, "block_size_mib": 4, "slot_size_mib": 129 }))
        .fault(&format!("{ERROR} Slot size must be a multiple of block size (4 MiB)"));
}

fn there_is_at_least_one_slot(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 127 }))
        .fault(&format!("{ERROR} Total size must not be lower than slot size (128 MiB)"));
}

fn there_are_whole_slots(lab: &Lab) {
    lab.start()
        .put("/hotplug/memory", json!({ "total_size_mib": 200 }))
        .fault(&format!("{ERROR} Total size must be a multiple of slot size (128 MiB)"));
}

fn it_needs_a_size(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/hotplug/memory", json!({})).bad_body("missing field `total_size_mib` at line 1 column 2");
    vmm.boot();
    vmm.patch("/hotplug/memory", json!({})).bad_body("missing field `requested_size_mib` at line 1 column 2");
}

fn it_takes_no_other_field(lab: &Lab) {
    lab.start().put("/hotplug/memory", json!({ "size": 1 })).bad_body(
        "unknown field `size`, expected one of `total_size_mib`, `block_size_mib`, `slot_size_mib` at line 1 column 7",
    );
}

fn a_vm_without_it_says_so(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    let why = "Failed perform action on device: Device not found";
    vmm.get("/hotplug/memory").fault(&format!("Internal VMM error: {why}"));
    vmm.patch("/hotplug/memory", json!({ "requested_size_mib": 128 }))
        .fault(&format!("Memory hotplug update error: {why}"));
}

fn nothing_is_plugged_at_first(lab: &Lab) {
    running(lab).get("/hotplug/memory").says(json!({
        "block_size_mib": 2, "total_size_mib": 256, "slot_size_mib": 128, "plugged_size_mib": 0, "requested_size_mib": 0,
    }));
}

fn without_a_driver_nothing_is_plugged(lab: &Lab) {
    running(lab)
        .patch("/hotplug/memory", json!({ "requested_size_mib": 128 }))
        .fault("Memory hotplug update error: Failed to create memory hotplug device: Device is not active");
}

fn addresses_end_at_512_gib(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/hotplug/memory", json!({ "total_size_mib": (512 << 10) + 128 })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start().fault(
        "Start microvm error: Failed to allocate guest resource: The requested resource is not available.",
    );
}

fn a_snapshot_has_room_for_it(lab: &Lab) {
    let vmm = running(lab);
    vmm.pause();
    vmm.snapshot("Full", "s").done();
    let length = lab.path("s.mem").metadata().expect("a file").len();
    assert_eq!(length, (32 + 256) << 20);
    drop(vmm);
    lab.remove("api.sock");
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    assert_eq!(vmm.config("memory-hotplug")["total_size_mib"], 256);
}
