//! `/snapshot/create`: when it may come, what it writes, chains of Full and Diff.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::json;

use crate::support::{Lab, Vmm, endless_kernel};

crate::on_both![
    a_snapshot_is_made_of_a_paused_vm_only,
    a_full_snapshot_is_as_long_as_memory,
    full_is_the_default,
    a_diff_without_tracking_is_taken,
    a_diff_has_holes,
    a_snapshot_writes_over_what_is_there,
    a_memory_file_of_another_size_is_replaced,
    a_folder_that_is_not_there_is_refused,
    a_folder_is_no_file,
    the_state_is_written_before_memory,
    a_full_disk_is_told,
    a_failed_diff_keeps_what_is_dirty,
    a_snapshot_needs_its_fields,
    a_snapshot_takes_no_other_field,
    kinds_have_two_names,
    the_vm_goes_on_after_a_snapshot,
    a_diff_laid_over_its_base_is_a_full_one,
    a_diff_in_place_makes_a_full_one,
    ten_cycles_of_diffs_in_place_keep_memory,
    a_vm_writes_onto_the_file_that_it_was_loaded_from,
];

/// A guest that writes into memory for ever, tracked; its console goes to `console`.
fn busy(lab: &Lab) -> Vmm {
    lab.write("kernel", endless_kernel());
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    vmm.boot_tracked();
    vmm.wait_for_bytes("console", 1);
    vmm
}

fn paused(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    vmm.boot_tracked();
    vmm.pause();
    vmm
}

/// Lays the data of a Diff over a copy of its base.
fn lay_over(lab: &Lab, diff: &str, base: &str) -> Vec<u8> {
    use rustix::fs::{SeekFrom, seek};
    let mut whole = lab.read(base);
    let content = lab.read(diff);
    let file = fs::File::open(lab.path(diff)).expect("a file");
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).expect("an end");
        whole[start as usize..end as usize].copy_from_slice(&content[start as usize..end as usize]);
        at = end;
    }
    whole
}

#[track_caller]
fn assert_same(left: &[u8], right: &[u8]) {
    let differs = left.chunks(4096).zip(right.chunks(4096)).position(|(left, right)| left != right);
    assert_eq!((left.len(), differs), (right.len(), None), "length, and the first page that differs");
}

fn a_snapshot_is_made_of_a_paused_vm_only(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.snapshot("Full", "s").fault(
        "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while \
         running",
    );
    assert!(!lab.exists("s.vmstate") && !lab.exists("s.mem"));
}

fn a_full_snapshot_is_as_long_as_memory(lab: &Lab) {
    let vmm = paused(lab);
    vmm.snapshot("Full", "s").done();
    assert_eq!(lab.read("s.mem").len(), 32 << 20);
    assert!(!lab.read("s.vmstate").is_empty());
}

fn full_is_the_default(lab: &Lab) {
    let vmm = paused(lab);
    vmm.snapshot("Full", "a").done();
    vmm.put("/snapshot/create", json!({ "snapshot_path": "s", "mem_file_path": "m" })).done();
    assert_same(&lab.read("m"), &lab.read("a.mem"));
}

fn a_diff_without_tracking_is_taken(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.pause();
    vmm.snapshot("Full", "a").done();
    vmm.snapshot("Diff", "b").done();
    assert_same(&lay_over(lab, "b.mem", "a.mem"), &lab.read("a.mem"));
}

fn a_diff_has_holes(lab: &Lab) {
    let vmm = paused(lab);
    vmm.snapshot("Full", "a").done();
    vmm.snapshot("Diff", "b").done();
    let meta = lab.path("b.mem").metadata().expect("a file");
    assert_eq!(meta.len(), 32 << 20);
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
}

fn a_snapshot_writes_over_what_is_there(lab: &Lab) {
    lab.write("s.vmstate", "x".repeat(1 << 20));
    lab.write("s.mem", "x".repeat(32 << 20));
    let vmm = paused(lab);
    vmm.snapshot("Full", "s").done();
    vmm.snapshot("Full", "t").done();
    assert!(lab.read("s.vmstate").len() < 1 << 20);
    assert_same(&lab.read("s.mem"), &lab.read("t.mem"));
}

fn a_memory_file_of_another_size_is_replaced(lab: &Lab) {
    lab.write("s.mem", "x".repeat(40 << 20));
    lab.write("t.mem", "x".repeat(5000));
    let vmm = paused(lab);
    vmm.snapshot("Full", "s").done();
    vmm.snapshot("Diff", "t").done();
    assert_eq!(lab.read("s.mem").len(), 32 << 20);
    assert_eq!((lab.read("t.mem").len(), lab.read("t.mem")[4999]), (32 << 20, 0));
}

fn a_folder_that_is_not_there_is_refused(lab: &Lab) {
    let vmm = paused(lab);
    vmm.put("/snapshot/create", json!({ "snapshot_path": "none/s", "mem_file_path": "m" })).fault(
        "Create snapshot error: Cannot perform open on the snapshot backing file: No such file or directory (os error \
         2)",
    );
    vmm.put("/snapshot/create", json!({ "snapshot_path": "s", "mem_file_path": "none/m" })).fault(
        "Create snapshot error: Cannot perform open on the memory backing file: No such file or directory (os error 2)",
    );
    assert_eq!(vmm.state(), "Paused");
}

fn a_folder_is_no_file(lab: &Lab) {
    let vmm = paused(lab);
    vmm.put("/snapshot/create", json!({ "snapshot_path": ".", "mem_file_path": "m" })).fault(
        "Create snapshot error: Cannot perform open on the snapshot backing file: Is a directory (os error 21)",
    );
    vmm.put("/snapshot/create", json!({ "snapshot_path": "s", "mem_file_path": "." })).fault(
        "Create snapshot error: Cannot perform open on the memory backing file: Is a directory (os error 21)",
    );
}

fn the_state_is_written_before_memory(lab: &Lab) {
    let vmm = paused(lab);
    assert!(
        vmm.put("/snapshot/create", json!({ "snapshot_path": "s", "mem_file_path": "none/m" }))
            .head
            .contains(" 400 ")
    );
    assert!(!lab.read("s").is_empty());
    assert!(
        vmm.put("/snapshot/create", json!({ "snapshot_path": "none/s", "mem_file_path": "m" }))
            .head
            .contains(" 400 ")
    );
    assert!(!lab.exists("m"));
}

fn a_full_disk_is_told(lab: &Lab) {
    let vmm = paused(lab);
    vmm.put("/snapshot/create", json!({ "snapshot_path": "/dev/full", "mem_file_path": "m" })).fault(
        "Create snapshot error: Cannot serialize the microVM state: IO Error: No space left on device (os error 28)",
    );
    vmm.snapshot("Full", "s").done();
}

fn a_failed_diff_keeps_what_is_dirty(lab: &Lab) {
    let vmm = busy(lab);
    vmm.pause();
    vmm.snapshot("Full", "a").done();
    vmm.resume();
    vmm.wait_for_bytes("console", 2);
    vmm.pause();
    let bad = json!({ "snapshot_type": "Diff", "snapshot_path": "s", "mem_file_path": "none/m" });
    assert!(vmm.put("/snapshot/create", bad).head.contains(" 400 "));
    vmm.snapshot("Diff", "b").done();
    vmm.snapshot("Full", "c").done();
    assert_same(&lay_over(lab, "b.mem", "a.mem"), &lab.read("c.mem"));
}

fn a_snapshot_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/snapshot/create", json!({ "snapshot_path": "s" }))
        .bad_body("missing field `mem_file_path` at line 1 column 21");
    vmm.put("/snapshot/create", json!({ "mem_file_path": "m" }))
        .bad_body("missing field `snapshot_path` at line 1 column 21");
}

fn a_snapshot_takes_no_other_field(lab: &Lab) {
    lab.start().put("/snapshot/create", json!({ "version": "1.0.0" })).bad_body(
        "unknown field `version`, expected one of `snapshot_type`, `snapshot_path`, `mem_file_path` at line 1 column \
         10",
    );
}

fn kinds_have_two_names(lab: &Lab) {
    lab.start()
        .put("/snapshot/create", json!({ "snapshot_type": "Half" }))
        .bad_body("unknown variant `Half`, expected `Diff` or `Full` at line 1 column 23");
}

fn the_vm_goes_on_after_a_snapshot(lab: &Lab) {
    let vmm = paused(lab);
    vmm.snapshot("Full", "s").done();
    vmm.resume();
    assert_eq!(vmm.state(), "Running");
}

fn a_diff_laid_over_its_base_is_a_full_one(lab: &Lab) {
    busy(lab).kill_after(|vmm| {
        vmm.pause();
        vmm.snapshot("Full", "a").done();
    });
    lab.remove("api.sock");
    let vmm = load_and_run(lab, "a");
    vmm.pause();
    vmm.snapshot("Diff", "b").done();
    vmm.snapshot("Full", "c").done();
    assert!(lab.read("a.mem") != lab.read("c.mem"), "the guest wrote nothing");
    assert_same(&lay_over(lab, "b.mem", "a.mem"), &lab.read("c.mem"));
}

fn a_diff_in_place_makes_a_full_one(lab: &Lab) {
    busy(lab).kill_after(|vmm| {
        vmm.pause();
        vmm.snapshot("Full", "a").done();
    });
    lab.remove("api.sock");
    let vmm = load_and_run(lab, "a");
    vmm.pause();
    fs::copy(lab.path("a.mem"), lab.path("b.mem")).expect("a copy");
    vmm.snapshot("Diff", "b").done();
    vmm.snapshot("Full", "c").done();
    assert_same(&lab.read("b.mem"), &lab.read("c.mem"));
}

fn ten_cycles_of_diffs_in_place_keep_memory(lab: &Lab) {
    busy(lab).kill_after(|vmm| {
        vmm.pause();
        vmm.snapshot("Full", "0").done();
    });
    lab.remove("api.sock");
    for cycle in 1..=10 {
        let (before, now) = (format!("{}", cycle - 1), format!("{cycle}"));
        load_and_run(lab, &before).kill_after(|vmm| {
            vmm.pause();
            fs::copy(lab.path(&format!("{before}.mem")), lab.path(&format!("{now}.mem"))).expect("a copy");
            vmm.snapshot("Diff", &now).done();
            vmm.snapshot("Full", "whole").done();
        });
        assert_same(&lab.read(&format!("{now}.mem")), &lab.read("whole.mem"));
        lab.remove("api.sock");
        lab.remove(&format!("{before}.mem"));
    }
}

fn a_vm_writes_onto_the_file_that_it_was_loaded_from(lab: &Lab) {
    busy(lab).kill_after(|vmm| {
        vmm.pause();
        vmm.snapshot("Full", "a").done();
    });
    lab.remove("api.sock");
    let vmm = load_and_run(lab, "a");
    vmm.pause();
    vmm.snapshot("Full", "b").done();
    vmm.put("/snapshot/create", json!({ "snapshot_path": "c.vmstate", "mem_file_path": "a.mem" })).done();
    assert_same(&lab.read("a.mem"), &lab.read("b.mem"));
}

/// Loads a snapshot of the busy guest, and waits for it to have run.
fn load_and_run(lab: &Lab, name: &str) -> Vmm {
    let vmm = lab.start();
    lab.write("console", "");
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    vmm.load(name, json!({ "resume_vm": true, "track_dirty_pages": true })).done();
    vmm.wait_for_bytes("console", 1);
    vmm
}
