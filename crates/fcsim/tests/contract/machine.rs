//! `/machine-config`.

use serde_json::{Value, json};

use crate::support::Lab;

crate::on_both![
    a_machine_has_defaults,
    what_is_put_is_shown,
    a_put_resets_what_it_leaves_out,
    a_patch_changes_what_it_names,
    an_empty_patch_is_refused,
    there_are_one_to_32_vcpus,
    a_vcpu_count_fits_a_byte,
    threads_want_an_even_number,
    threads_come_with_one_vcpu,
    memory_is_not_nothing,
    huge_pages_want_whole_ones,
    odd_memory_is_fine_without_huge_pages,
    huge_pages_have_two_names,
    huge_pages_that_the_host_has_not_fail_the_start,
    an_unknown_template_is_refused,
    a_template_is_deprecated,
    no_template_is_not_shown,
    a_machine_needs_its_fields,
    a_machine_takes_no_other_field,
    a_size_is_a_number,
    a_negative_size_is_refused,
    a_refused_patch_changes_nothing,
    a_machine_is_shown_while_it_runs,
    no_memory_in_bytes_is_a_panic,
];

const VCPUS: &str = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an \
                     even number if SMT is enabled.";
const MEMORY: &str =
    "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.";

fn machine(vcpus: u8, mib: u64) -> Value {
    json!({
        "vcpu_count": vcpus, "mem_size_mib": mib, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
    })
}

fn a_machine_has_defaults(lab: &Lab) {
    lab.start().get("/machine-config").says(machine(1, 128));
}

fn what_is_put_is_shown(lab: &Lab) {
    let vmm = lab.start();
    let wanted = json!({
        "vcpu_count": 2, "mem_size_mib": 256, "smt": true, "track_dirty_pages": true, "huge_pages": "2M",
    });
    vmm.put("/machine-config", wanted.clone()).done();
    vmm.get("/machine-config").says(wanted);
}

fn a_put_resets_what_it_leaves_out(lab: &Lab) {
    let vmm = lab.start();
    let wanted = json!({ "vcpu_count": 2, "mem_size_mib": 256, "smt": true, "track_dirty_pages": true });
    vmm.put("/machine-config", wanted).done();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 })).done();
    vmm.get("/machine-config").says(machine(1, 128));
}

fn a_patch_changes_what_it_names(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 256, "smt": true })).done();
    vmm.patch("/machine-config", json!({ "mem_size_mib": 192 })).done();
    vmm.patch("/machine-config", json!({ "track_dirty_pages": true, "smt": false })).done();
    let shown = vmm.get("/machine-config").value();
    assert_eq!((&shown["vcpu_count"], &shown["mem_size_mib"]), (&json!(2), &json!(192)));
    assert_eq!((&shown["track_dirty_pages"], &shown["smt"]), (&json!(true), &json!(false)));
}

fn an_empty_patch_is_refused(lab: &Lab) {
    lab.start().patch("/machine-config", json!({})).fault("Empty PATCH request.");
}

fn there_are_one_to_32_vcpus(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 0, "mem_size_mib": 128 })).fault(VCPUS);
    vmm.put("/machine-config", json!({ "vcpu_count": 33, "mem_size_mib": 128 })).fault(VCPUS);
    vmm.put("/machine-config", json!({ "vcpu_count": 32, "mem_size_mib": 128 })).done();
}

fn a_vcpu_count_fits_a_byte(lab: &Lab) {
    lab.start()
        .put_text("/machine-config", r#"{"vcpu_count":256,"mem_size_mib":128}"#)
        .bad_body("invalid value: integer `256`, expected u8 at line 1 column 17");
}

fn threads_want_an_even_number(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 3, "mem_size_mib": 128, "smt": true })).fault(VCPUS);
    vmm.put("/machine-config", json!({ "vcpu_count": 3, "mem_size_mib": 128 })).done();
    vmm.patch("/machine-config", json!({ "smt": true })).fault(VCPUS);
}

fn threads_come_with_one_vcpu(lab: &Lab) {
    lab.start().put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128, "smt": true })).done();
}

fn memory_is_not_nothing(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 0 })).fault(MEMORY);
    vmm.patch("/machine-config", json!({ "mem_size_mib": 0 })).fault(MEMORY);
}

fn huge_pages_want_whole_ones(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 127, "huge_pages": "2M" }))
        .fault(MEMORY);
    vmm.patch("/machine-config", json!({ "huge_pages": "2M" })).done();
    vmm.patch("/machine-config", json!({ "mem_size_mib": 33 })).fault(MEMORY);
}

fn odd_memory_is_fine_without_huge_pages(lab: &Lab) {
    lab.start().put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 127 })).done();
}

fn huge_pages_have_two_names(lab: &Lab) {
    lab.start()
        .put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"huge_pages":"1G"}"#)
        .bad_body("unknown variant `1G`, expected `None` or `2M` at line 1 column 52");
}

fn huge_pages_that_the_host_has_not_fail_the_start(lab: &Lab) {
    // with as much memory as no host has as huge pages
    let vmm = lab.start();
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "2M" });
    vmm.put("/machine-config", machine).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.is_ok_and(|free| free.trim() != "0") {
        return crate::support::skip("this host has huge pages");
    }
    vmm.instance_start().fault(
        "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or \
         invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: Unable to read kernel \
         image",
    );
}

fn an_unknown_template_is_refused(lab: &Lab) {
    lab.start()
        .put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"T9"}"#)
        .bad_body(
            "unknown variant `T9`, expected one of `C3`, `T2`, `T2S`, `None`, `T2CL`, `T2A` at line 1 column 54",
        );
}

fn a_template_is_deprecated(lab: &Lab) {
    let vmm = lab.start();
    let body = json!({ "vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None" });
    let answer = vmm.put("/machine-config", body);
    answer.done();
    assert!(answer.is_deprecated());
    let answer = vmm.patch("/machine-config", json!({ "cpu_template": "None" }));
    answer.done();
    assert!(answer.is_deprecated());
    assert!(!vmm.patch("/machine-config", json!({ "smt": false })).is_deprecated());
}

fn no_template_is_not_shown(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch("/machine-config", json!({ "cpu_template": "T2" })).done();
    assert_eq!(vmm.get("/machine-config").value()["cpu_template"], "T2");
    vmm.patch("/machine-config", json!({ "cpu_template": "None" })).done();
    vmm.get("/machine-config").says(machine(1, 128));
}

fn a_machine_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "mem_size_mib": 128 }))
        .bad_body("missing field `vcpu_count` at line 1 column 20");
    vmm.put("/machine-config", json!({ "vcpu_count": 1 }))
        .bad_body("missing field `mem_size_mib` at line 1 column 16");
}

fn a_machine_takes_no_other_field(lab: &Lab) {
    lab.start().put_text("/machine-config", r#"{"ht_enabled":true}"#).bad_body(
        "unknown field `ht_enabled`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, \
         `track_dirty_pages`, `huge_pages` at line 1 column 13",
    );
}

fn a_size_is_a_number(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":"128"}"#)
        .bad_body("invalid type: string \"128\", expected usize at line 1 column 36");
    vmm.put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128.5}"#)
        .bad_body("invalid type: floating point `128.5`, expected usize at line 1 column 36");
}

fn a_negative_size_is_refused(lab: &Lab) {
    lab.start()
        .put_text("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":-1}"#)
        .bad_body("invalid value: integer `-1`, expected usize at line 1 column 33");
}

fn a_refused_patch_changes_nothing(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch("/machine-config", json!({ "vcpu_count": 0, "mem_size_mib": 64 })).fault(VCPUS);
    vmm.get("/machine-config").says(machine(1, 128));
}

fn a_machine_is_shown_while_it_runs(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.get("/machine-config").says(machine(1, 32));
}

fn no_memory_in_bytes_is_a_panic(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 1_u64 << 44 })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    let mut client = vmm.connect();
    let body = r#"{"action_type":"InstanceStart"}"#;
    client.write(format!("PUT /actions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    assert!(client.is_closed());
    let ended = vmm.end();
    assert_eq!(ended.signal, Some(6));
    assert!(ended.stdout.ends_with("Attempt to allocate guest memory of length 0\n"), "{}", ended.stdout);
}
