//! Each fault that can be asked for, and its effect.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    dial, dial_within, in_lab, put_vsock, spawn, start,
    support::{Lab, Vmm},
    tell,
};

/// How long nothing is heard of who does not answer.
const A_WHILE: Duration = Duration::from_secs(1);

/// A fault of `PUT /machine-config`.
fn of_machine(effect: Value) -> Value {
    json!({ "requests": [{ "method": "PUT", "path": "/machine-config", "effect": effect }] })
}

fn machine() -> Value {
    json!({ "vcpu_count": 1, "mem_size_mib": 32 })
}

/// Sends `PUT /machine-config` and returns whether there was an answer.
fn put_machine(vmm: &Vmm) -> bool {
    let body = machine().to_string();
    let request = format!("PUT /machine-config HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut client = vmm.connect();
    client.write(request.as_bytes());
    client.answer("a request with a fault").is_ok()
}

fn booted(lab: &Lab, faults: Value) -> Vmm {
    let vmm = start(lab, &faults);
    put_vsock(&vmm);
    vmm.boot();
    vmm
}

#[test]
fn die_before_has_no_effect() {
    in_lab(|lab| {
        let faults = json!({ "requests": [{ "method": "PUT", "path": "/vsock", "effect": "die_before" }] });
        let vmm = start(lab, &faults);
        let mut client = vmm.connect();
        let body = r#"{"guest_cid":3,"uds_path":"v.sock"}"#;
        let request = format!("PUT /vsock HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        client.write(request.as_bytes());
        assert!(client.is_closed());
        assert_eq!(vmm.end().signal, Some(9));
        assert!(!lab.exists("v.sock"));
    });
}

#[test]
fn die_during_has_its_effect_and_no_answer() {
    in_lab(|lab| {
        let faults = json!({ "requests": [{ "method": "PUT", "path": "/vsock", "effect": "die_during" }] });
        let vmm = start(lab, &faults);
        let mut client = vmm.connect();
        let body = r#"{"guest_cid":3,"uds_path":"v.sock"}"#;
        let request = format!("PUT /vsock HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        client.write(request.as_bytes());
        assert!(client.is_closed());
        assert_eq!(vmm.end().signal, Some(9));
        assert!(lab.exists("v.sock"));
    });
}

#[test]
fn die_after_answers_first() {
    in_lab(|lab| {
        let vmm = start(lab, &of_machine(json!("die_after")));
        assert!(put_machine(&vmm));
        assert_eq!(vmm.end().signal, Some(9));
    });
}

#[test]
fn hang_serves_nobody_any_more() {
    in_lab(|lab| {
        let vmm = start(lab, &of_machine(json!("hang")));
        vmm.get("/version").value();
        let mut hanging = raw(lab);
        let body = machine().to_string();
        let request = format!("PUT /machine-config HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        hanging.write_all(request.as_bytes()).expect("it is written");
        vmm.wait_until("the request came", || vmm.output("stdout").contains("/machine-config"));
        let mut other = raw(lab);
        other.write_all(b"GET /version HTTP/1.1\r\n\r\n").expect("it is written");
        for stream in [&mut hanging, &mut other] {
            let error = stream.read(&mut [0; 8]).expect_err("silence");
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        }
    });
}

/// A connection that waits a tenth of a second for an answer.
fn raw(lab: &Lab) -> UnixStream {
    let stream = UnixStream::connect(lab.path("api.sock")).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    stream
}

#[test]
fn answer_takes_the_place_of_the_request() {
    in_lab(|lab| {
        let effect = json!({ "answer": { "status": 500, "fault_message": "made up" } });
        let vmm = start(lab, &of_machine(effect));
        vmm.put("/machine-config", machine()).refused(500, "made up");
        assert_eq!(vmm.get("/machine-config").value()["mem_size_mib"], 128);
    });
}

#[test]
fn answer_after_hides_what_the_request_did() {
    in_lab(|lab| {
        let effect = json!({ "answer_after": { "status": 400, "fault_message": "made up" } });
        let vmm = start(lab, &of_machine(effect));
        vmm.put("/machine-config", machine()).fault("made up");
        assert_eq!(vmm.get("/machine-config").value()["mem_size_mib"], 32);
    });
}

#[test]
fn a_fault_may_wait_for_its_turn_and_end() {
    in_lab(|lab| {
        let effect = json!({ "answer": { "status": 400, "fault_message": "made up" } });
        let faults =
            json!({ "requests": [{ "path": "/machine-*", "nth": 2, "times": 2, "effect": effect }] });
        let vmm = start(lab, &faults);
        vmm.put("/machine-config", machine()).done();
        vmm.get("/machine-config").fault("made up");
        vmm.put("/machine-config", machine()).fault("made up");
        vmm.get("/machine-config").value();
        vmm.get("/version").value();
    });
}

#[test]
fn delay_ms_of_a_fault_delays_its_request_only() {
    in_lab(|lab| {
        let faults = json!({ "requests": [{ "path": "/version", "delay_ms": 150 }] });
        let vmm = start(lab, &faults);
        let start = Instant::now();
        vmm.get("/version").value();
        assert!(start.elapsed() >= Duration::from_millis(150));
    });
}

#[test]
fn delay_ms_delays_every_request() {
    in_lab(|lab| {
        let vmm = start(lab, &json!({ "delay_ms": 60 }));
        let start = Instant::now();
        vmm.get("/version").value();
        vmm.get("/").value();
        assert!(start.elapsed() >= Duration::from_millis(120));
    });
}

#[test]
fn exit_after_ms_ends_the_process_with_a_code() {
    in_lab(|lab| {
        let ended = spawn(lab, &json!({ "exit_after_ms": 10, "exit_code": 148 })).end();
        assert_eq!(ended.code, Some(148));
        lab.remove("api.sock");
        assert_eq!(spawn(lab, &json!({ "exit_after_ms": 10 })).end().code, Some(0));
    });
}

#[test]
fn boot_delay_ms_delays_the_first_byte() {
    in_lab(|lab| {
        let start = Instant::now();
        let vmm = booted(lab, json!({ "boot_delay_ms": 150 }));
        vmm.wait_until("the guest prints", || vmm.output("stdout").contains("fcsim guest: boot"));
        assert!(start.elapsed() >= Duration::from_millis(150));
    });
}

#[test]
fn boot_never_says_nothing() {
    in_lab(|lab| {
        let vmm = booted(lab, json!({ "boot_never": true }));
        assert_eq!(vmm.state(), "Running");
        assert!(dial_within(lab, 52, A_WHILE).is_none());
        assert!(!vmm.output("stdout").contains("fcsim guest"));
    });
}

#[test]
fn ctrl_alt_del_ends_a_guest_unless_it_is_ignored() {
    in_lab(|lab| {
        let press = json!({ "action_type": "SendCtrlAltDel" });
        let vmm = booted(lab, json!({}));
        vmm.put("/actions", press.clone()).done();
        assert_eq!(vmm.end().code, Some(0));
        lab.remove("api.sock");
        lab.remove("v.sock");
        let vmm = booted(lab, json!({ "ignore_ctrl_alt_del": true }));
        vmm.put("/actions", press).done();
        tell(lab, json!({ "cmd": "info" }));
        assert_eq!(vmm.state(), "Running");
    });
}

#[test]
fn corrupt_memory_on_load_is_noticed_by_the_guest() {
    in_lab(|lab| {
        lab.snapshot_of_the_tiny_guest();
        let vmm = start(lab, &json!({ "corrupt_memory_on_load": true }));
        vmm.load("s", json!({ "resume_vm": true })).done();
        let ended = vmm.end();
        assert_eq!(ended.code, Some(1));
        assert!(ended.stdout.contains("fcsim guest: panic: memory is not what it was:"), "{}", ended.stdout);
    });
}

#[test]
fn vsock_dies_after_pause_until_a_snapshot_is_asked_for() {
    in_lab(|lab| {
        let vmm = booted(lab, json!({ "vsock_dies_after_pause": true }));
        assert!(dial(lab, 52).is_some());
        vmm.pause();
        vmm.resume();
        assert!(dial_within(lab, 52, A_WHILE).is_none());
        vmm.pause();
        // even one that fails resets the transport
        assert!(vmm.snapshot("Diff", "none/s").head.contains(" 400 "));
        vmm.resume();
        assert!(dial(lab, 52).is_some());
    });
}

#[test]
fn memory_drivers_follow_the_balloon_and_plugged_memory() {
    in_lab(|lab| {
        let vmm = start(lab, &json!({ "memory_drivers": true }));
        let balloon = json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_hinting": true });
        vmm.put("/balloon", balloon).done();
        vmm.put("/hotplug/memory", json!({ "total_size_mib": 256 })).done();
        vmm.boot();
        vmm.patch("/balloon", json!({ "amount_mib": 8 })).done();
        assert_eq!(vmm.get("/balloon").value()["amount_mib"], 8);
        vmm.patch("/balloon", json!({ "amount_mib": 1000 }))
            .fault("Balloon update error: Balloon: Requested memory should be less than 1000MiB");
        vmm.patch("/balloon/hinting/start", json!({})).done();
        vmm.patch("/hotplug/memory", json!({ "requested_size_mib": 128 })).done();
        assert_eq!(vmm.get("/hotplug/memory").value()["plugged_size_mib"], 128);
        vmm.patch("/hotplug/memory", json!({ "requested_size_mib": 3 })).fault(
            "Memory hotplug update error: Failed to create memory hotplug device: Size 3145728 is invalid: it must be a \
             multiple of block size and less than the total size",
        );
    });
}

#[test]
fn version_is_what_it_says_of_itself() {
    in_lab(|lab| {
        let vmm = start(lab, &json!({ "version": "1.15.0" }));
        vmm.get("/version").says(json!({ "firecracker_version": "1.15.0" }));
        assert_eq!(vmm.get("/").value()["vmm_version"], "1.15.0");
        assert!(vmm.output("stdout").contains("Running Firecracker v1.15.0\n"));
    });
}

#[test]
fn seed_decides_what_is_in_memory() {
    in_lab(|lab| {
        let mut sums = Vec::new();
        for seed in [1, 1, 2] {
            let vmm = booted(lab, json!({ "seed": seed }));
            sums.push(tell(lab, json!({ "cmd": "checksum" }))["sum"].clone());
            vmm.kill();
            lab.remove("api.sock");
            lab.remove("v.sock");
        }
        assert_eq!(sums[0], sums[1]);
        assert_ne!(sums[0], sums[2]);
    });
}

#[test]
fn faults_may_be_in_a_file() {
    in_lab(|lab| {
        lab.write("faults", r#"{"version":"9.9.9"}"#);
        let mut command = lab.command(&["--id", "anon", "--api-sock", "api.sock"]);
        command.env("FCSIM_FAULTS_FILE", "faults");
        let vmm = lab.spawn_command(command);
        vmm.wait_for_api("api.sock");
        assert_eq!(vmm.get("/").value()["vmm_version"], "9.9.9");
    });
}

#[test]
fn an_unknown_fault_is_refused_at_the_start() {
    in_lab(|lab| {
        let ended = spawn(lab, &json!({ "delay": 1 })).end();
        assert_eq!(ended.code, Some(1));
        assert!(ended.stdout.contains("faults: unknown field `delay`"), "{}", ended.stdout);
    });
}
