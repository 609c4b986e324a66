//! `/network-interfaces`. Each case that opens a TAP does so in a network namespace of its own.

use serde_json::{Value, json};

use crate::support::{Lab, Vmm};

crate::on_both![
    an_interface_is_shown_with_what_was_left_out,
    an_interface_is_replaced_by_its_id,
    a_mac_is_used_once,
    a_mac_is_shown_in_lower_case,
    a_mac_has_six_pairs,
    a_tap_has_one_owner,
    a_name_has_at_most_15_bytes,
    what_is_no_tap_is_refused,
    an_mtu_has_a_range,
    an_mtu_fits_16_bits,
    the_id_of_the_path_is_that_of_the_body,
    an_interface_needs_its_fields,
    an_interface_takes_no_other_field,
    a_running_interface_gets_other_limiters,
    an_unknown_interface_is_not_patched,
    a_patch_takes_no_other_field,
    interfaces_are_not_hot_plugged_without_pci,
];

fn interface(id: &str, tap: &str) -> Value {
    json!({ "iface_id": id, "host_dev_name": tap })
}

fn shown(id: &str, tap: &str, mac: Option<&str>) -> Value {
    json!({
        "iface_id": id, "host_dev_name": tap, "guest_mac": mac, "mtu": null, "rx_rate_limiter": null,
        "tx_rate_limiter": null,
    })
}

fn with_mac(id: &str, tap: &str, mac: &str) -> Value {
    json!({ "iface_id": id, "host_dev_name": tap, "guest_mac": mac })
}

/// A running VM with the interface `eth0`.
fn running(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).done();
    vmm.boot();
    vmm
}

fn an_interface_is_shown_with_what_was_left_out(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).done();
    assert_eq!(vmm.config("network-interfaces"), json!([shown("eth0", "tap0", None)]));
}

fn an_interface_is_replaced_by_its_id(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).done();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).done();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap1")).done();
    assert_eq!(vmm.config("network-interfaces"), json!([shown("eth0", "tap1", None)]));
}

fn a_mac_is_used_once(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", with_mac("eth0", "tap0", "02:fc:00:00:00:01")).done();
    vmm.put("/network-interfaces/eth1", with_mac("eth1", "tap1", "02:FC:00:00:00:01"))
        .fault("Network config error: The MAC address is already in use: 02:fc:00:00:00:01");
    vmm.put("/network-interfaces/eth0", with_mac("eth0", "tap0", "02:fc:00:00:00:01")).done();
}

fn a_mac_is_shown_in_lower_case(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", with_mac("eth0", "tap0", "02:FC:00:00:00:0A")).done();
    assert_eq!(vmm.config("network-interfaces"), json!([shown("eth0", "tap0", Some("02:fc:00:00:00:0a"))]));
}

fn a_mac_has_six_pairs(lab: &Lab) {
    let vmm = lab.start();
    for mac in
        ["02:fc:00:00:00", "02:fc:00:00:00:00:00", "02fc00000001", "zz:fc:00:00:00:01", "2:fc:00:00:00:01"]
    {
        let body = format!(r#"{{"guest_mac":"{mac}"}}"#);
        let why = format!("The provided MAC address is invalid. at line 1 column {}", body.len());
        vmm.put_text("/network-interfaces/eth0", &body).bad_body(&why);
    }
}

fn a_tap_has_one_owner(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).done();
    vmm.put("/network-interfaces/eth1", interface("eth1", "tap0")).fault(
        "Network config error: Could not create the network device: Open tap device failed: Error while creating \
         ifreq structure: Resource busy (os error 16). Invalid TUN/TAP Backend provided by tap0. Check our \
         documentation on setting up the network devices.",
    );
}

fn a_name_has_at_most_15_bytes(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", interface("eth0", "a123456789012345")).fault(
        "Network config error: Could not create the network device: Open tap device failed: Invalid interface name",
    );
    vmm.put("/network-interfaces/eth0", interface("eth0", "a12345678901234")).done();
}

fn what_is_no_tap_is_refused(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.start().put("/network-interfaces/eth0", interface("eth0", "lo")).fault(
        "Network config error: Could not create the network device: Open tap device failed: Error while creating \
         ifreq structure: Invalid argument (os error 22). Invalid TUN/TAP Backend provided by lo. Check our \
         documentation on setting up the network devices.",
    );
}

fn an_mtu_has_a_range(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = lab.start();
    let body = |mtu| json!({ "iface_id": "eth0", "host_dev_name": "tap0", "mtu": mtu });
    vmm.put("/network-interfaces/eth0", body(67)).fault(
        "Network config error: Could not create the network device: MTU 67 is out of range [68, 65535]",
    );
    vmm.put("/network-interfaces/eth0", body(68)).done();
    vmm.put("/network-interfaces/eth0", body(65_535)).done();
    assert_eq!(vmm.config("network-interfaces")[0]["mtu"], 65_535);
}

fn an_mtu_fits_16_bits(lab: &Lab) {
    lab.start()
        .put_text("/network-interfaces/eth0", r#"{"mtu":65536}"#)
        .bad_body("invalid value: integer `65536`, expected u16 at line 1 column 12");
}

fn the_id_of_the_path_is_that_of_the_body(lab: &Lab) {
    let vmm = lab.start();
    let fault = "The id from the path [eth0] does not match the id from the body [eth1]!";
    vmm.put("/network-interfaces/eth0", interface("eth1", "tap0")).fault(fault);
    vmm.patch("/network-interfaces/eth0", json!({ "iface_id": "eth1" })).fault(fault);
}

fn an_interface_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/network-interfaces/eth0", json!({ "iface_id": "eth0" }))
        .bad_body("missing field `host_dev_name` at line 1 column 19");
    vmm.put("/network-interfaces/eth0", json!({ "host_dev_name": "tap0" }))
        .bad_body("missing field `iface_id` at line 1 column 24");
}

fn an_interface_takes_no_other_field(lab: &Lab) {
    lab.start().put_text("/network-interfaces/eth0", r#"{"allow_mmds_requests":true}"#).bad_body(
        "unknown field `allow_mmds_requests`, expected one of `iface_id`, `host_dev_name`, `guest_mac`, `mtu`, \
         `rx_rate_limiter`, `tx_rate_limiter` at line 1 column 22",
    );
}

fn a_running_interface_gets_other_limiters(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = running(lab);
    let bucket = json!({ "size": 5, "one_time_burst": null, "refill_time": 7 });
    let limiter = json!({ "bandwidth": bucket, "ops": null });
    vmm.patch("/network-interfaces/eth0", json!({ "iface_id": "eth0", "rx_rate_limiter": limiter })).done();
    vmm.patch("/network-interfaces/eth0", json!({ "iface_id": "eth0" })).done();
    let shown = vmm.config("network-interfaces");
    assert_eq!((&shown[0]["rx_rate_limiter"], &shown[0]["tx_rate_limiter"]), (&limiter, &Value::Null));
}

fn an_unknown_interface_is_not_patched(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.patch("/network-interfaces/x", json!({ "iface_id": "x" })).fault(
        "Network config error: Unable to update the net device: Failed perform action on device: Device not found",
    );
}

fn a_patch_takes_no_other_field(lab: &Lab) {
    lab.start().patch_text("/network-interfaces/eth0", r#"{"iface_id":"eth0","host_dev_name":"tap1"}"#).bad_body(
        "unknown field `host_dev_name`, expected one of `iface_id`, `rx_rate_limiter`, `tx_rate_limiter` at line 1 \
         column 34",
    );
}

fn interfaces_are_not_hot_plugged_without_pci(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.put("/network-interfaces/eth0", interface("eth0", "tap0")).fault("PCI is not enabled");
    vmm.delete("/network-interfaces/eth0").fault("PCI is not enabled");
}
