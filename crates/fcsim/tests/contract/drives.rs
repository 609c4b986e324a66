//! `/drives`.

use serde_json::{Value, json};

use crate::support::{Lab, PRE_BOOT};

crate::on_both![
    a_drive_is_shown_with_what_was_left_out,
    a_drive_is_replaced_by_its_id,
    a_root_drive_comes_first,
    there_is_one_root_drive,
    a_drive_may_become_the_root,
    the_root_is_on_a_drive_or_on_pmem,
    a_drive_needs_its_file,
    a_folder_is_no_drive,
    a_drive_is_a_file_or_a_socket,
    a_socket_must_be_there,
    the_id_of_the_path_is_that_of_the_body,
    an_id_has_letters_digits_and_underscores,
    an_id_is_not_empty,
    an_id_may_be_long_and_foreign,
    a_drive_needs_its_fields,
    a_drive_takes_no_other_field,
    cache_types_have_two_names,
    engines_have_two_names,
    a_limiter_that_limits_nothing_is_not_shown,
    a_limiter_is_shown_without_an_empty_burst,
    a_bucket_needs_its_fields,
    a_limiter_takes_no_other_bucket,
    a_running_drive_gets_another_file,
    a_running_drive_gets_another_limiter,
    a_running_drive_keeps_what_a_patch_leaves_out,
    a_bucket_of_zero_switches_a_limiter_off,
    a_file_that_is_not_there_changes_nothing,
    an_unknown_drive_is_not_patched,
    an_empty_patch_is_for_sockets,
    a_patch_takes_no_other_field,
    a_drive_is_patched_while_paused,
];

fn drive(id: &str, root: bool) -> Value {
    json!({ "drive_id": id, "is_root_device": root, "path_on_host": "disk.img" })
}

fn shown(id: &str, root: bool) -> Value {
    json!({
        "drive_id": id, "partuuid": null, "is_root_device": root, "cache_type": "Unsafe", "is_read_only": false,
        "path_on_host": "disk.img", "rate_limiter": null, "io_engine": "Sync", "socket": null,
    })
}

fn with(mut drive: Value, field: &str, value: Value) -> Value {
    drive[field] = value;
    drive
}

fn bucket(size: u64, burst: Option<u64>, refill: u64) -> Value {
    json!({ "size": size, "one_time_burst": burst, "refill_time": refill })
}

/// A running VM with the drive `d`.
fn running(lab: &Lab) -> crate::support::Vmm {
    let vmm = lab.start();
    vmm.put("/drives/d", drive("d", false)).done();
    vmm.boot();
    vmm
}

fn a_drive_is_shown_with_what_was_left_out(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/root", drive("root", true)).done();
    assert_eq!(vmm.config("drives"), json!([shown("root", true)]));
}

fn a_drive_is_replaced_by_its_id(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/a", drive("a", false)).done();
    vmm.put("/drives/b", drive("b", false)).done();
    let other = with(drive("a", false), "is_read_only", json!(true));
    vmm.put("/drives/a", other).done();
    let expected = json!([with(shown("a", false), "is_read_only", json!(true)), shown("b", false)]);
    assert_eq!(vmm.config("drives"), expected);
}

fn a_root_drive_comes_first(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/a", drive("a", false)).done();
    vmm.put("/drives/root", drive("root", true)).done();
    assert_eq!(vmm.config("drives"), json!([shown("root", true), shown("a", false)]));
}

fn there_is_one_root_drive(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/root", drive("root", true)).done();
    vmm.put("/drives/other", drive("other", true))
        .fault("Drive config error: A root block device already exists!");
    vmm.put("/drives/root", drive("root", true)).done();
}

fn a_drive_may_become_the_root(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/a", drive("a", false)).done();
    vmm.put("/drives/b", drive("b", false)).done();
    vmm.put("/drives/b", drive("b", true)).done();
    assert_eq!(vmm.config("drives"), json!([shown("b", true), shown("a", false)]));
}

fn the_root_is_on_a_drive_or_on_pmem(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/pmem/p", json!({ "id": "p", "path_on_host": "disk.img", "root_device": true })).done();
    vmm.put("/drives/root", drive("root", true)).fault(
        "Drive config error: Attempt to add block as a root device while the root device defined as a pmem device",
    );
    vmm.put("/drives/other", drive("other", false)).done();
}

fn a_drive_needs_its_file(lab: &Lab) {
    let body = with(drive("d", false), "path_on_host", json!("none"));
    lab.start().put("/drives/d", body).fault(
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the \
         backing file: No such file or directory (os error 2) none",
    );
}

fn a_folder_is_no_drive(lab: &Lab) {
    let body = with(drive("d", false), "path_on_host", json!("."));
    lab.start().put("/drives/d", body).fault(
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the \
         backing file: Is a directory (os error 21) .",
    );
}

fn a_drive_is_a_file_or_a_socket(lab: &Lab) {
    let vmm = lab.start();
    let fault = "Drive config error: Unable to create the virtio block device: Invalid block config.";
    vmm.put("/drives/d", json!({ "drive_id": "d", "is_root_device": false })).fault(fault);
    vmm.put("/drives/d", with(drive("d", false), "socket", json!("s"))).fault(fault);
    let limited = json!({ "drive_id": "d", "is_root_device": false, "socket": "s", "is_read_only": true });
    vmm.put("/drives/d", limited).fault(fault);
}

fn a_socket_must_be_there(lab: &Lab) {
    let body = json!({ "drive_id": "d", "is_root_device": false, "socket": "none" });
    lab.start().put("/drives/d", body).fault(
        "Drive config error: Unable to create the virtio block device: Vhost user backend error: Vhost-user error: \
         Failed to connect to UDS Unix stream: No such file or directory (os error 2)",
    );
}

fn the_id_of_the_path_is_that_of_the_body(lab: &Lab) {
    lab.start()
        .put("/drives/a", drive("b", false))
        .fault("The id from the path does not match the id from the body!");
}

fn an_id_has_letters_digits_and_underscores(lab: &Lab) {
    lab.start()
        .put("/drives/a-b", drive("a-b", false))
        .fault("API Resource IDs can only contain alphanumeric characters and underscores.");
}

fn an_id_is_not_empty(lab: &Lab) {
    let vmm = lab.start();
    for path in ["/drives", "/drives/", "/drives//a"] {
        vmm.put(path, drive("a", false)).fault("The ID cannot be empty.");
    }
}

fn an_id_may_be_long_and_foreign(lab: &Lab) {
    let vmm = lab.start();
    for id in ["x".repeat(200), "\u{e9}t\u{e9}_1".to_owned()] {
        vmm.put(&format!("/drives/{id}"), drive(&id, false)).done();
    }
}

fn a_drive_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/drives/d", r#"{"is_root_device":false}"#)
        .bad_body("missing field `drive_id` at line 1 column 24");
    vmm.put_text("/drives/d", r#"{"drive_id":"d"}"#)
        .bad_body("missing field `is_root_device` at line 1 column 16");
}

fn a_drive_takes_no_other_field(lab: &Lab) {
    lab.start().put_text("/drives/d", r#"{"drive_id":"d","size":1}"#).bad_body(
        "unknown field `size`, expected one of `drive_id`, `partuuid`, `is_root_device`, `cache_type`, `is_read_only`, \
         `path_on_host`, `rate_limiter`, `io_engine`, `socket` at line 1 column 22",
    );
}

fn cache_types_have_two_names(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/drives/d", with(drive("d", false), "cache_type", json!("Writeback"))).done();
    assert_eq!(vmm.config("drives")[0]["cache_type"], "Writeback");
    vmm.put_text("/drives/d", r#"{"cache_type":"None"}"#)
        .bad_body("unknown variant `None`, expected `Unsafe` or `Writeback` at line 1 column 20");
}

fn engines_have_two_names(lab: &Lab) {
    lab.start()
        .put_text("/drives/d", r#"{"io_engine":"Threads"}"#)
        .bad_body("unknown variant `Threads`, expected `Async` or `Sync` at line 1 column 22");
}

fn a_limiter_that_limits_nothing_is_not_shown(lab: &Lab) {
    let vmm = lab.start();
    for limiter in [
        json!({}),
        json!({ "bandwidth": bucket(0, None, 0) }),
        json!({ "ops": bucket(0, None, 100) }),
        json!({ "ops": bucket(100, None, 0) }),
        json!({ "ops": bucket(1, None, u64::MAX) }),
    ] {
        vmm.put("/drives/d", with(drive("d", false), "rate_limiter", limiter)).done();
        assert_eq!(vmm.config("drives"), json!([shown("d", false)]));
    }
}

fn a_limiter_is_shown_without_an_empty_burst(lab: &Lab) {
    let vmm = lab.start();
    let limiter = json!({ "bandwidth": bucket(10, Some(0), 100), "ops": bucket(1, Some(5), 1000) });
    vmm.put("/drives/d", with(drive("d", false), "rate_limiter", limiter)).done();
    let limiter = json!({ "bandwidth": bucket(10, None, 100), "ops": bucket(1, Some(5), 1000) });
    assert_eq!(vmm.config("drives")[0]["rate_limiter"], limiter);
}

fn a_bucket_needs_its_fields(lab: &Lab) {
    lab.start()
        .put_text("/drives/d", r#"{"rate_limiter":{"ops":{"size":1}}}"#)
        .bad_body("missing field `refill_time` at line 1 column 33");
}

fn a_limiter_takes_no_other_bucket(lab: &Lab) {
    lab.start()
        .put_text("/drives/d", r#"{"rate_limiter":{"latency":{}}}"#)
        .bad_body("unknown field `latency`, expected `bandwidth` or `ops` at line 1 column 26");
}

fn a_running_drive_gets_another_file(lab: &Lab) {
    let vmm = running(lab);
    vmm.patch("/drives/d", json!({ "drive_id": "d", "path_on_host": "junk" })).done();
    assert_eq!(vmm.config("drives")[0]["path_on_host"], "junk");
}

fn a_running_drive_gets_another_limiter(lab: &Lab) {
    let vmm = running(lab);
    let limiter = json!({ "bandwidth": null, "ops": bucket(5, Some(6), 7) });
    vmm.patch("/drives/d", json!({ "drive_id": "d", "rate_limiter": limiter })).done();
    assert_eq!(vmm.config("drives"), json!([with(shown("d", false), "rate_limiter", limiter)]));
}

fn a_running_drive_keeps_what_a_patch_leaves_out(lab: &Lab) {
    let vmm = running(lab);
    let limit = |limiter: Value| json!({ "drive_id": "d", "rate_limiter": limiter });
    vmm.patch("/drives/d", limit(json!({ "ops": bucket(5, None, 7) }))).done();
    vmm.patch("/drives/d", limit(json!({ "bandwidth": bucket(8, None, 9) }))).done();
    let expected = json!({ "bandwidth": bucket(8, None, 9), "ops": bucket(5, None, 7) });
    assert_eq!(vmm.config("drives")[0]["rate_limiter"], expected);
}

fn a_bucket_of_zero_switches_a_limiter_off(lab: &Lab) {
    let vmm = running(lab);
    let limit = |limiter: Value| json!({ "drive_id": "d", "rate_limiter": limiter });
    vmm.patch("/drives/d", limit(json!({ "ops": bucket(5, None, 7) }))).done();
    vmm.patch("/drives/d", limit(json!({ "ops": bucket(0, None, 0) }))).done();
    assert_eq!(vmm.config("drives"), json!([shown("d", false)]));
}

fn a_file_that_is_not_there_changes_nothing(lab: &Lab) {
    let vmm = running(lab);
    vmm.patch("/drives/d", json!({ "drive_id": "d", "path_on_host": "none" })).fault(
        "Drive config error: Unable to patch the block device: Block: Virtio backend error: Error manipulating the \
         backing file: No such file or directory (os error 2) none Please verify the request arguments.",
    );
    assert_eq!(vmm.config("drives"), json!([shown("d", false)]));
}

fn an_unknown_drive_is_not_patched(lab: &Lab) {
    running(lab).patch("/drives/x", json!({ "drive_id": "x", "path_on_host": "disk.img" })).fault(
        "Drive config error: Unable to patch the block device: Failed perform action on device: Device not found \
         Please verify the request arguments.",
    );
}

fn an_empty_patch_is_for_sockets(lab: &Lab) {
    running(lab).patch("/drives/d", json!({ "drive_id": "d" })).fault(
        "Drive config error: Unable to patch the block device: Block: Running method expected different backend. \
         Please verify the request arguments.",
    );
}

fn a_patch_takes_no_other_field(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch_text("/drives/d", r#"{"drive_id":"d","is_read_only":true}"#).bad_body(
        "unknown field `is_read_only`, expected one of `drive_id`, `path_on_host`, `rate_limiter` at line 1 column 30",
    );
    vmm.patch("/drives/d", json!({ "drive_id": "e" }))
        .fault("The id from the path does not match the id from the body!");
    vmm.patch("/drives/d", json!({ "drive_id": "d" })).fault(PRE_BOOT);
}

fn a_drive_is_patched_while_paused(lab: &Lab) {
    let vmm = running(lab);
    vmm.pause();
    vmm.patch("/drives/d", json!({ "drive_id": "d", "path_on_host": "junk" })).done();
    vmm.resume();
    assert_eq!(vmm.config("drives")[0]["path_on_host"], "junk");
}
