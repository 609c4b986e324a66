//! `/cpu-config` and `/entropy`.

use serde_json::json;

use crate::support::{Lab, Vmm};

crate::on_both![
    an_empty_template_is_taken,
    a_whole_template_is_taken_and_not_shown,
    a_template_takes_no_other_field,
    a_capability_is_a_number,
    a_leaf_is_a_number_with_a_prefix,
    a_register_has_a_name,
    a_bitmap_has_bits,
    a_template_takes_the_place_of_a_built_in_one,
    an_entropy_device_is_shown,
    an_entropy_device_is_replaced,
    an_entropy_device_takes_no_other_field,
];

fn modifier(vmm: &Vmm, leaf: &str, register: &str, bitmap: &str) -> crate::support::Answer {
    let register = format!(r#"{{"register":"{register}","bitmap":"{bitmap}"}}"#);
    let leaf = format!(r#"{{"leaf":"{leaf}","subleaf":"0x0","flags":0,"modifiers":[{register}]}}"#);
    vmm.put_text("/cpu-config", &format!(r#"{{"cpuid_modifiers":[{leaf}]}}"#))
}

fn an_empty_template_is_taken(lab: &Lab) {
    lab.start().put("/cpu-config", json!({})).done();
}

fn a_whole_template_is_taken_and_not_shown(lab: &Lab) {
    let vmm = lab.start();
    let modifiers = [json!({ "register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010" })];
    let leaves = [json!({ "leaf": "0x1", "subleaf": "0b0", "flags": 0, "modifiers": modifiers })];
    let registers = [json!({ "addr": "0x10a", "bitmap": "0bx" })];
    let template = json!({
        "kvm_capabilities": ["121", "!122"], "cpuid_modifiers": leaves, "msr_modifiers": registers,
    });
    vmm.put("/cpu-config", template).done();
    assert!(vmm.config("cpu-config").is_null());
}

fn a_template_takes_no_other_field(lab: &Lab) {
    lab.start().put("/cpu-config", json!({ "reg_modifiers": [] })).bad_body(
        "unknown field `reg_modifiers`, expected one of `kvm_capabilities`, `cpuid_modifiers`, `msr_modifiers` at \
         line 1 column 16",
    );
}

fn a_capability_is_a_number(lab: &Lab) {
    lab.start().put("/cpu-config", json!({ "kvm_capabilities": ["x"] })).bad_body(
        "Failed to parse string [x] as a kvm capability - can not convert to numeric: invalid digit found in string \
         at line 1 column 25",
    );
}

fn a_leaf_is_a_number_with_a_prefix(lab: &Lab) {
    let vmm = lab.start();
    modifier(&vmm, "1", "eax", "0bx").bad_body(
        "No supported number system prefix found in value [1]. Make sure to prefix the number with '0x' for \
         hexadecimal numbers or '0b' for binary numbers. at line 1 column 31",
    );
    modifier(&vmm, "0xg", "eax", "0bx").bad_body(
        "Failed to parse string [0xg] as a number for CPU template - ParseIntError { kind: InvalidDigit } at line 1 \
         column 33",
    );
}

fn a_register_has_a_name(lab: &Lab) {
    modifier(&lab.start(), "0x1", "rax", "0bx")
        .bad_body("Invalid CPUID register. Must be one of [eax, ebx, ecx, edx] at line 1 column 90");
}

fn a_bitmap_has_bits(lab: &Lab) {
    let vmm = lab.start();
    modifier(&vmm, "0x1", "eax", "0b2")
        .bad_body("Failed to parse string [0b2] as a bitmap - unknown character: 50 at line 1 column 106");
    let long = format!("0b{}", "x".repeat(33));
    modifier(&vmm, "0x1", "eax", &long).bad_body(&format!(
        "Failed to parse string [{long}] as a bitmap - string is too long at line 1 column 138"
    ));
    modifier(&vmm, "0x1", "eax", &format!("0b{}", "1_".repeat(32))).done();
}

fn a_template_takes_the_place_of_a_built_in_one(lab: &Lab) {
    let vmm = lab.start();
    vmm.patch("/machine-config", json!({ "cpu_template": "T2" })).done();
    vmm.put("/cpu-config", json!({})).done();
    assert!(vmm.get("/machine-config").value().get("cpu_template").is_none());
    vmm.boot();
}

fn an_entropy_device_is_shown(lab: &Lab) {
    let vmm = lab.start();
    assert!(vmm.config("entropy").is_null());
    vmm.put("/entropy", json!({})).done();
    assert_eq!(vmm.config("entropy"), json!({ "rate_limiter": null }));
    vmm.boot();
    assert_eq!(vmm.config("entropy"), json!({ "rate_limiter": null }));
}

fn an_entropy_device_is_replaced(lab: &Lab) {
    let vmm = lab.start();
    let bucket = json!({ "size": 10, "one_time_burst": null, "refill_time": 100 });
    let limited = json!({ "rate_limiter": { "bandwidth": bucket, "ops": null } });
    vmm.put("/entropy", json!({})).done();
    vmm.put("/entropy", limited.clone()).done();
    assert_eq!(vmm.config("entropy"), limited);
}

fn an_entropy_device_takes_no_other_field(lab: &Lab) {
    lab.start()
        .put("/entropy", json!({ "source": "/dev/random" }))
        .bad_body("unknown field `source`, expected `rate_limiter` at line 1 column 9");
}
