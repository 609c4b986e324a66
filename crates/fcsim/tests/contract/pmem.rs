//! `/pmem`.

use serde_json::{Value, json};

use crate::support::{Lab, Vmm};

crate::on_both![
    a_device_is_shown,
    there_is_one_root_device,
    the_root_is_on_pmem_or_on_a_drive,
    its_file_is_looked_at_when_the_vm_starts,
    an_empty_file_fails_the_start,
    the_id_of_the_path_is_that_of_the_body,
    a_device_needs_its_fields,
    a_device_takes_no_other_field,
    a_running_device_is_shown_as_it_was_configured,
    an_unknown_device_is_not_patched,
];

fn device(path: &str) -> Value {
    json!({ "id": "p", "path_on_host": path })
}

fn running(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    let file = std::fs::File::create(lab.path("pmem.img")).expect("a file");
    file.set_len(2 << 20).expect("a size");
    vmm.put("/pmem/p", device("pmem.img")).done();
    vmm.boot();
    vmm
}

fn a_device_is_shown(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/pmem/p", device("disk.img")).done();
    let shown = json!({
        "id": "p", "path_on_host": "disk.img", "root_device": false, "read_only": false, "rate_limiter": null,
    });
    assert_eq!(vmm.config("pmem"), json!([shown]));
}

fn there_is_one_root_device(lab: &Lab) {
    let vmm = lab.start();
    let root = |id: &str| json!({ "id": id, "path_on_host": "disk.img", "root_device": true });
    vmm.put("/pmem/p", root("p")).done();
    vmm.put("/pmem/q", root("q")).fault("Pmem config error: A root pmem device already exist");
    vmm.put("/pmem/p", root("p")).done();
}

fn the_root_is_on_pmem_or_on_a_drive(lab: &Lab) {
    let vmm = lab.start();
    let drive = json!({ "drive_id": "root", "is_root_device": true, "path_on_host": "disk.img" });
    vmm.put("/drives/root", drive).done();
    vmm.put("/pmem/p", json!({ "id": "p", "path_on_host": "disk.img", "root_device": true })).fault(
        "Pmem config error: Attempt to add pmem as a root device while the root device defined as a block device",
    );
}

fn its_file_is_looked_at_when_the_vm_starts(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/pmem/p", device("none")).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start().fault(
        "Start microvm error: Cannot create pmem device: Error accessing backing file: No such file or directory (os \
         error 2)",
    );
}

fn an_empty_file_fails_the_start(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/pmem/p", device("empty")).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start()
        .fault("Start microvm error: Cannot create pmem device: Error backing file size is 0");
}

fn the_id_of_the_path_is_that_of_the_body(lab: &Lab) {
    let vmm = lab.start();
    let fault = "The id from the path does not match the id from the body!";
    vmm.put("/pmem/q", device("disk.img")).fault(fault);
    vmm.patch("/pmem/q", json!({ "id": "p" })).fault(fault);
}

fn a_device_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/pmem/p", json!({ "id": "p" })).bad_body("missing field `path_on_host` at line 1 column 10");
    vmm.put("/pmem/p", json!({ "path_on_host": "x" })).bad_body("missing field `id` at line 1 column 20");
}

fn a_device_takes_no_other_field(lab: &Lab) {
    lab.start().put("/pmem/p", json!({ "size": 1 })).bad_body(
        "unknown field `size`, expected one of `id`, `path_on_host`, `root_device`, `read_only`, `rate_limiter` at \
         line 1 column 7",
    );
}

fn a_running_device_is_shown_as_it_was_configured(lab: &Lab) {
    let vmm = running(lab);
    let limiter = json!({ "ops": { "size": 1, "refill_time": 1 } });
    vmm.patch("/pmem/p", json!({ "id": "p", "rate_limiter": limiter })).done();
    assert_eq!(vmm.config("pmem")[0]["rate_limiter"], Value::Null);
}

fn an_unknown_device_is_not_patched(lab: &Lab) {
    let vmm = running(lab);
    let limiter = json!({ "ops": { "size": 1, "refill_time": 1 } });
    vmm.patch("/pmem/q", json!({ "id": "q", "rate_limiter": limiter })).fault(
        "Pmem config error: Unable to patch the pmem device: Failed perform action on device: Device not found Please \
         verify the request arguments.",
    );
}
