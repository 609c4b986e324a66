//! The guest's memory over chains of snapshots, and its network.

use std::fs;

use serde_json::{Value, json};

use crate::{
    in_lab, put_vsock,
    support::{Lab, Vmm},
    tell,
};

fn booted(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    put_vsock(&vmm);
    vmm.boot_tracked();
    vmm
}

fn checksum(lab: &Lab) -> Value {
    let answer = tell(lab, json!({ "cmd": "checksum" }));
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

/// Ends a VMM and removes its sockets.
fn end(lab: &Lab, vmm: &Vmm) {
    vmm.kill();
    lab.remove("api.sock");
    lab.remove("v.sock");
}

fn load(lab: &Lab, name: &str) -> Vmm {
    let vmm = lab.start();
    vmm.load(name, json!({ "resume_vm": true, "track_dirty_pages": true })).done();
    vmm
}

#[test]
fn ten_cycles_of_writing_and_diffs_in_place_keep_every_page() {
    in_lab(|lab| {
        let mut vmm = booted(lab);
        let mut writes = 0;
        for cycle in 0..10 {
            tell(lab, json!({ "cmd": "dirty", "pages": 50 }));
            let before = checksum(lab)["writes"].as_u64().expect("a count");
            assert!(before >= writes + 50);
            writes = before;
            vmm.pause();
            let name = format!("{cycle}");
            if cycle > 0 {
                // as a reflink would
                fs::copy(lab.path(&format!("{}.mem", cycle - 1)), lab.path(&format!("{name}.mem")))
                    .expect("a copy");
            }
            let kind = if cycle == 0 { "Full" } else { "Diff" };
            vmm.snapshot(kind, &name).done();
            end(lab, &vmm);
            vmm = load(lab, &name);
            checksum(lab);
        }
    });
}

#[test]
fn memory_of_another_moment_is_noticed() {
    in_lab(|lab| {
        let vmm = booted(lab);
        vmm.pause();
        vmm.snapshot("Full", "a").done();
        vmm.resume();
        tell(lab, json!({ "cmd": "dirty", "pages": 5 }));
        vmm.pause();
        vmm.snapshot("Full", "b").done();
        end(lab, &vmm);
        fs::rename(lab.path("a.mem"), lab.path("b.mem")).expect("it is there");
        let vmm = load(lab, "b");
        let ended = vmm.end();
        assert_eq!(ended.code, Some(1));
        assert!(ended.stdout.contains("memory is not what it was"), "{}", ended.stdout);
    });
}

#[test]
fn a_diff_alone_is_no_memory() {
    in_lab(|lab| {
        let vmm = booted(lab);
        vmm.pause();
        vmm.snapshot("Full", "a").done();
        vmm.resume();
        tell(lab, json!({ "cmd": "dirty", "pages": 5 }));
        vmm.pause();
        vmm.snapshot("Diff", "b").done();
        end(lab, &vmm);
        let vmm = load(lab, "b");
        assert_eq!(vmm.end().code, Some(1));
    });
}

#[test]
fn two_guests_reach_each_other_over_a_bridge() {
    in_lab(|lab| {
        if !lab.own_network() {
            return;
        }
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let guests: Vec<Vmm> = (1..=2)
            .map(|number| {
                let (api, tap) = (format!("{number}.api"), format!("tap{number}"));
                let vmm = lab.spawn(&["--id", "guest", "--api-sock", &api]);
                vmm.wait_for_api(&api);
                vmm.put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": tap }))
                    .done();
                ip(&format!("link set {tap} master br0 up"));
                let vsock = if number == 1 { "v.sock" } else { "w.sock" };
                vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": vsock })).done();
                let arguments =
                    format!("mvm.ip=10.0.0.{number}/24 mvm.gw=10.0.0.254 mvm.mac=02:fc:00:00:00:0{number}");
                vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "boot_args": arguments }))
                    .done();
                vmm.instance_start().done();
                vmm
            })
            .collect();
        assert_eq!(guests[0].state(), "Running");
        let answer = tell(lab, json!({ "cmd": "ping", "to": "10.0.0.2", "timeout_ms": 5000 }));
        assert_eq!(answer["answered"], true, "{answer}");
        let silent = tell(lab, json!({ "cmd": "ping", "to": "10.0.0.9", "timeout_ms": 100 }));
        assert_eq!(silent, json!({ "answered": false, "arp": false }));
    });
}

#[track_caller]
fn ip(arguments: &str) {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect("ip runs").success(), "ip {arguments}");
}
