//! `/mmds` and `/mmds/config`.

use serde_json::{Value, json};

use crate::support::{Lab, POST_BOOT, Vmm};

crate::on_both![
    the_store_is_empty_at_first,
    a_patch_needs_a_put,
    a_put_replaces_and_a_patch_merges,
    a_patch_with_null_takes_away,
    the_store_takes_any_json,
    a_number_keeps_its_kind,
    what_is_no_json_is_refused,
    the_store_has_the_limit_of_a_body,
    the_store_has_a_limit_of_its_own,
    a_patch_past_the_limit_changes_nothing,
    a_configuration_names_interfaces,
    a_configuration_names_known_interfaces,
    an_address_is_link_local,
    an_address_is_an_address,
    version_one_is_deprecated,
    versions_have_two_names,
    a_configuration_is_shown,
    a_later_configuration_replaces_one,
    an_interface_that_is_put_again_loses_the_service,
    a_configuration_takes_no_other_field,
    unknown_parts_are_refused,
    a_running_vm_without_a_configuration_has_no_store,
    a_running_vm_has_its_store,
];

fn with_interface(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0" })).done();
    vmm
}

fn the_store_is_empty_at_first(lab: &Lab) {
    lab.start().get("/mmds").says(json!({}));
}

fn a_patch_needs_a_put(lab: &Lab) {
    let vmm = lab.start();
    vmm.get("/mmds").says(json!({}));
    vmm.patch("/mmds", json!({ "a": 1 })).fault("MMDS error: The MMDS data store is not initialized.");
}

fn a_put_replaces_and_a_patch_merges(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds", json!({ "z": 1 })).done();
    vmm.put("/mmds", json!({ "a": { "b": 1 } })).done();
    vmm.patch("/mmds", json!({ "a": { "c": [2] }, "d": "e" })).done();
    vmm.get("/mmds").says(json!({ "a": { "b": 1, "c": [2] }, "d": "e" }));
    vmm.patch("/mmds", json!({ "a": 7 })).done();
    vmm.get("/mmds").says(json!({ "a": 7, "d": "e" }));
}

fn a_patch_with_null_takes_away(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds", json!({ "a": { "b": 1, "c": 2 }, "d": 3 })).done();
    vmm.patch("/mmds", json!({ "a": { "b": null }, "d": null, "nothing": null })).done();
    vmm.get("/mmds").says(json!({ "a": { "c": 2 } }));
}

fn the_store_takes_any_json(lab: &Lab) {
    let vmm = lab.start();
    for value in [json!([1, "a"]), json!("text"), json!(true), json!(7)] {
        vmm.put("/mmds", value.clone()).done();
        vmm.get("/mmds").says(value);
    }
    vmm.put("/mmds", Value::Null).done();
    vmm.get("/mmds").says(json!({}));
    vmm.patch("/mmds", json!({ "a": null, "b": 1 })).done();
    vmm.get("/mmds").says(json!({ "b": 1 }));
}

fn a_number_keeps_its_kind(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/mmds", r#"{"b":1.0,"a":1e30,"c":18446744073709551615}"#).done();
    assert_eq!(vmm.get("/mmds").body, r#"{"a":1e+30,"b":1.0,"c":18446744073709551615}"#);
}

fn what_is_no_json_is_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/mmds", "nonsense").bad_body("expected ident at line 1 column 2");
    vmm.put_text("/mmds", "{").bad_body("EOF while parsing an object at line 1 column 1");
    vmm.put_text("/mmds", "{} {}").bad_body("trailing characters at line 1 column 4");
    vmm.put("/mmds", json!({ "a": 1 })).done();
    vmm.patch_text("/mmds", " ").bad_body("EOF while parsing a value at line 1 column 1");
}

fn the_store_has_the_limit_of_a_body(lab: &Lab) {
    let vmm = lab.start();
    let text = |length: usize| json!("x".repeat(length - 2));
    vmm.put("/mmds", text(51_200)).done();
    vmm.put("/mmds", json!({ "a": "x".repeat(40_000) })).done();
    vmm.patch("/mmds", json!({ "b": "x".repeat(20_000) }))
        .refused(413, "MMDS limit exceeded error: The MMDS patch request doesn't fit.");
}

fn the_store_has_a_limit_of_its_own(lab: &Lab) {
    let vmm = lab.start_with(&["--mmds-size-limit", "10"]);
    vmm.put("/mmds", json!({ "a": "bcd" }))
        .refused(413, "MMDS limit exceeded error: The MMDS patch request doesn't fit.");
    vmm.put("/mmds", json!({ "a": "bc" })).done();
}

fn a_patch_past_the_limit_changes_nothing(lab: &Lab) {
    let vmm = lab.start_with(&["--mmds-size-limit", "20"]);
    vmm.put("/mmds", json!({ "a": "bc" })).done();
    assert!(vmm.patch("/mmds", json!({ "d": "x".repeat(20) })).head.starts_with("HTTP/1.1 413 "));
    vmm.get("/mmds").says(json!({ "a": "bc" }));
}

fn a_configuration_names_interfaces(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds/config", json!({ "network_interfaces": [] })).fault(
        "MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty.",
    );
    vmm.put("/mmds/config", json!({ "version": "V2" }))
        .bad_body("missing field `network_interfaces` at line 1 column 16");
}

fn a_configuration_names_known_interfaces(lab: &Lab) {
    lab.start().put("/mmds/config", json!({ "network_interfaces": ["eth0"] })).fault(
        "MMMDS config error: The list of network interface IDs provided contains at least one ID that does not \
         correspond to any existing network interface.",
    );
}

fn an_address_is_link_local(lab: &Lab) {
    let vmm = lab.start();
    for address in ["10.0.0.1", "169.254.0.1", "169.254.255.1", "169.253.1.1"] {
        vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "ipv4_address": address }))
            .fault("MMMDS config error: The MMDS IPv4 address is not link local.");
    }
}

fn an_address_is_an_address(lab: &Lab) {
    lab.start()
        .put("/mmds/config", json!({ "ipv4_address": "localhost" }))
        .bad_body("invalid IPv4 address syntax at line 1 column 27");
}

fn version_one_is_deprecated(lab: &Lab) {
    let vmm = lab.start();
    assert!(vmm.put("/mmds/config", json!({ "network_interfaces": [] })).is_deprecated());
    let explicit = json!({ "network_interfaces": [], "version": "V1" });
    assert!(vmm.put("/mmds/config", explicit).is_deprecated());
    let second = json!({ "network_interfaces": [], "version": "V2" });
    assert!(!vmm.put("/mmds/config", second).is_deprecated());
}

fn versions_have_two_names(lab: &Lab) {
    lab.start()
        .put("/mmds/config", json!({ "version": "V3" }))
        .bad_body("unknown variant `V3`, expected `V1` or `V2` at line 1 column 15");
}

fn a_configuration_is_shown(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = with_interface(lab);
    assert_eq!(vmm.config("mmds-config"), Value::Null);
    vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" })).done();
    let shown = json!({
        "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.169.254", "imds_compat": false,
    });
    assert_eq!(vmm.config("mmds-config"), shown);
    vmm.boot();
    assert_eq!(vmm.config("mmds-config"), shown);
    vmm.put("/mmds/config", shown).fault(POST_BOOT);
}

fn a_later_configuration_replaces_one(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = with_interface(lab);
    vmm.put("/network-interfaces/eth1", json!({ "iface_id": "eth1", "host_dev_name": "tap1" })).done();
    vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0", "eth1"], "version": "V2" })).done();
    let other = json!({
        "version": "V1", "network_interfaces": ["eth1"], "ipv4_address": "169.254.1.1", "imds_compat": true,
    });
    vmm.put("/mmds/config", other.clone()).done();
    assert_eq!(vmm.config("mmds-config"), other);
}

fn an_interface_that_is_put_again_loses_the_service(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = with_interface(lab);
    vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" })).done();
    vmm.put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0" })).done();
    assert_eq!(vmm.config("mmds-config"), Value::Null);
    vmm.boot();
    vmm.get("/mmds").fault("MMDS error: The MMDS data store is not initialized.");
}

fn a_configuration_takes_no_other_field(lab: &Lab) {
    lab.start().put("/mmds/config", json!({ "port": 80 })).bad_body(
        "unknown field `port`, expected one of `version`, `network_interfaces`, `ipv4_address`, `imds_compat` at line \
         1 column 7",
    );
}

fn unknown_parts_are_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds/data", json!({})).fault("Unrecognized PUT request path `data`.");
    vmm.put("/mmds/data/config", json!({})).fault("Unrecognized PUT request path `data`.");
    vmm.get("/mmds/data").says(json!({}));
}

fn a_running_vm_without_a_configuration_has_no_store(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds", json!({ "a": 1 })).done();
    vmm.boot();
    let why = "MMDS error: The MMDS data store is not initialized.";
    vmm.get("/mmds").fault(why);
    vmm.put("/mmds", json!({ "a": 1 })).fault(why);
    vmm.patch("/mmds", json!({ "a": 1 })).fault(why);
}

fn a_running_vm_has_its_store(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = with_interface(lab);
    vmm.put("/mmds", json!({ "a": 1 })).done();
    vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" })).done();
    vmm.boot();
    vmm.get("/mmds").says(json!({ "a": 1 }));
    vmm.patch("/mmds", json!({ "b": 2 })).done();
    vmm.get("/mmds").says(json!({ "a": 1, "b": 2 }));
}
