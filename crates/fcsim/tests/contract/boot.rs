//! `/boot-source` and what the loader says of kernels.

use serde_json::json;

use crate::support::{Lab, tiny_kernel};

crate::on_both![
    a_kernel_must_be_there,
    an_initrd_must_be_there,
    a_refused_boot_source_changes_nothing,
    a_boot_source_is_shown,
    a_boot_source_may_change,
    a_folder_is_taken_for_a_kernel_until_the_start,
    an_empty_kernel_is_no_elf,
    a_kernel_that_is_cut_is_refused,
    a_big_endian_kernel_is_refused,
    a_kernel_that_enters_low_memory_is_refused,
    a_kernel_past_memory_is_refused,
    an_empty_initrd_is_refused_at_the_start,
    an_initrd_larger_than_memory_is_refused_at_the_start,
    a_folder_is_no_initrd,
    an_initrd_is_loaded,
    a_command_line_has_a_limit,
    a_command_line_that_grows_past_the_limit_fails_the_start,
    a_command_line_may_be_any_text,
    a_kernel_is_named_by_text,
    a_boot_source_needs_a_kernel,
    a_boot_source_takes_no_other_field,
    the_kernel_is_read_when_the_vm_starts,
];

fn elf_fault(why: &str) -> String {
    format!(
        "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or \
         invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: {why}"
    )
}

fn start_with_kernel(lab: &Lab, kernel: &[u8]) -> crate::support::Answer {
    lab.write("other", kernel);
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "other" })).done();
    vmm.instance_start()
}

fn start_with_initrd(lab: &Lab, initrd: &str) -> crate::support::Answer {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "initrd_path": initrd })).done();
    vmm.instance_start()
}

fn a_kernel_must_be_there(lab: &Lab) {
    lab.start()
        .put("/boot-source", json!({ "kernel_image_path": "none" }))
        .fault("Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)");
}

fn an_initrd_must_be_there(lab: &Lab) {
    lab.start().put("/boot-source", json!({ "kernel_image_path": "kernel", "initrd_path": "none" })).fault(
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. No such file \
         or directory (os error 2)",
    );
}

fn a_refused_boot_source_changes_nothing(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "boot_args": "a" })).done();
    assert!(vmm.put("/boot-source", json!({ "kernel_image_path": "none" })).head.contains(" 400 "));
    let shown = json!({ "kernel_image_path": "kernel", "initrd_path": null, "boot_args": "a" });
    assert_eq!(vmm.config("boot-source"), shown);
}

fn a_boot_source_is_shown(lab: &Lab) {
    let vmm = lab.start();
    let wanted = json!({ "kernel_image_path": "kernel", "initrd_path": "disk.img", "boot_args": "quiet" });
    vmm.put("/boot-source", wanted.clone()).done();
    assert_eq!(vmm.config("boot-source"), wanted);
}

fn a_boot_source_may_change(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "junk" })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start().done();
}

fn a_folder_is_taken_for_a_kernel_until_the_start(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "." })).done();
    vmm.instance_start().fault(&elf_fault("Unable to read elf header"));
}

fn an_empty_kernel_is_no_elf(lab: &Lab) {
    start_with_kernel(lab, b"").fault(&elf_fault("Unable to read elf header"));
}

fn a_kernel_that_is_cut_is_refused(lab: &Lab) {
    let whole = tiny_kernel();
    start_with_kernel(lab, &whole[..0x1004]).fault(&elf_fault("Unable to read kernel image"));
}

fn a_big_endian_kernel_is_refused(lab: &Lab) {
    let mut kernel = tiny_kernel();
    kernel[5] = 2;
    let why = "Trying to load big-endian binary on little-endian machine";
    start_with_kernel(lab, &kernel).fault(&elf_fault(why));
}

fn a_kernel_that_enters_low_memory_is_refused(lab: &Lab) {
    let mut kernel = tiny_kernel();
    kernel[24..32].copy_from_slice(&0x1000_u64.to_le_bytes());
    start_with_kernel(lab, &kernel).fault(&elf_fault("Invalid entry address"));
}

fn a_kernel_past_memory_is_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 8 })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start().fault(&elf_fault("Unable to read kernel image"));
}

fn an_empty_initrd_is_refused_at_the_start(lab: &Lab) {
    start_with_initrd(lab, "empty").fault(
        "Start microvm error: Error with initrd initialization: Cannot load initrd due to an invalid memory \
         configuration..",
    );
}

fn an_initrd_larger_than_memory_is_refused_at_the_start(lab: &Lab) {
    let file = std::fs::File::create(lab.path("large")).expect("a file");
    file.set_len(33 << 20).expect("a size");
    start_with_initrd(lab, "large").fault(
        "Start microvm error: Error with initrd initialization: Failed to compute the initrd address..",
    );
}

fn a_folder_is_no_initrd(lab: &Lab) {
    start_with_initrd(lab, ".").fault(
        "Start microvm error: Error with initrd initialization: Cannot load initrd due to an invalid image: Is a \
         directory (os error 21).",
    );
}

fn an_initrd_is_loaded(lab: &Lab) {
    start_with_initrd(lab, "junk").done();
}

fn a_command_line_has_a_limit(lab: &Lab) {
    let vmm = lab.start();
    let body = |length| json!({ "kernel_image_path": "kernel", "boot_args": "x".repeat(length) });
    vmm.put("/boot-source", body(2047)).done();
    vmm.put("/boot-source", body(2048))
        .fault("Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided.");
}

fn a_command_line_that_grows_past_the_limit_fails_the_start(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "boot_args": "x".repeat(2040) })).done();
    vmm.instance_start().fault(
        "Start microvm error: Invalid kernel command line: Inserting string would make command line too long.",
    );
}

fn a_command_line_may_be_any_text(lab: &Lab) {
    let vmm = lab.start();
    for arguments in ["", " ", "a=\u{e9}", "quiet -- init", "a\nb"] {
        vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "boot_args": arguments })).done();
    }
}

fn a_kernel_is_named_by_text(lab: &Lab) {
    lab.start()
        .put_text("/boot-source", r#"{"kernel_image_path":1}"#)
        .bad_body("invalid type: integer `1`, expected a string at line 1 column 22");
}

fn a_boot_source_needs_a_kernel(lab: &Lab) {
    lab.start()
        .put_text("/boot-source", r#"{"boot_args":"quiet"}"#)
        .bad_body("missing field `kernel_image_path` at line 1 column 21");
}

fn a_boot_source_takes_no_other_field(lab: &Lab) {
    lab.start().put_text("/boot-source", r#"{"kernel":"kernel"}"#).bad_body(
        "unknown field `kernel`, expected one of `kernel_image_path`, `initrd_path`, `boot_args` at line 1 column 9",
    );
}

fn the_kernel_is_read_when_the_vm_starts(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    std::fs::remove_file(lab.path("kernel")).expect("it can be removed");
    vmm.instance_start().done();
}
