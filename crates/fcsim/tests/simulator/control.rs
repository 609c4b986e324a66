//! The control channel and the echo: what the simulated guest can be told.

use std::io::{BufRead, Read, Write};

use serde_json::json;

use crate::{dial, in_lab, put_vsock, support::Lab, tell};

fn booted(lab: &Lab) -> crate::support::Vmm {
    let vmm = lab.start();
    put_vsock(&vmm);
    let drive = |id: &str, read_only: bool| json!({ "drive_id": id, "is_root_device": false, "is_read_only": read_only, "path_on_host": "disk.img" });
    vmm.put("/drives/data", drive("data", false)).done();
    vmm.put("/drives/fixed", drive("fixed", true)).done();
    vmm.boot();
    vmm
}

#[test]
fn port_52_echoes() {
    in_lab(|lab| {
        let _vmm = booted(lab);
        let mut reader = dial(lab, 52).expect("it answers");
        reader.get_mut().write_all(b"hello\n").expect("it is written");
        let mut line = String::new();
        reader.read_line(&mut line).expect("an echo");
        assert_eq!(line, "hello\n");
    });
}

#[test]
fn other_ports_are_closed() {
    in_lab(|lab| {
        let _vmm = booted(lab);
        assert!(dial(lab, 53).is_none());
    });
}

#[test]
fn connections_are_closed_by_a_snapshot() {
    in_lab(|lab| {
        let vmm = booted(lab);
        let mut reader = dial(lab, 52).expect("it answers");
        vmm.pause();
        vmm.snapshot("Full", "s").done();
        vmm.resume();
        assert_eq!(reader.read(&mut [0; 8]).expect("an end"), 0);
        assert!(dial(lab, 52).is_some());
    });
}

#[test]
fn a_guest_prints_what_it_is_told() {
    in_lab(|lab| {
        let vmm = booted(lab);
        assert_eq!(tell(lab, json!({ "cmd": "print", "text": "a line" })), json!({ "printed": 7 }));
        assert!(vmm.output("stdout").contains("\na line\n"));
    });
}

#[test]
fn a_guest_reads_and_writes_its_drives() {
    in_lab(|lab| {
        let _vmm = booted(lab);
        tell(lab, json!({ "cmd": "disk_write", "drive": "data", "offset": 512, "hex": "c0ffee" }));
        assert_eq!(lab.read("disk.img")[512..515], [0xc0, 0xff, 0xee]);
        let read = tell(lab, json!({ "cmd": "disk_read", "drive": "fixed", "offset": 513, "len": 2 }));
        assert_eq!(read, json!({ "hex": "ffee" }));
        let refused = tell(lab, json!({ "cmd": "disk_write", "drive": "fixed", "offset": 0, "hex": "00" }));
        assert_eq!(refused, json!({ "error": "the drive is read-only" }));
    });
}

#[test]
fn a_guest_ends_with_a_code() {
    in_lab(|lab| {
        let vmm = booted(lab);
        // the end may be faster than the answer
        let mut reader = dial(lab, 1024).expect("the control channel answers");
        reader.get_mut().write_all(b"{\"cmd\":\"exit\",\"code\":1}\n").expect("it is written");
        let ended = vmm.end();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ERROR));
    });
}

const ERROR: &str = "Error: RunWithApi(MicroVMStoppedWithError(GenericError))\n";

#[test]
fn a_guest_says_what_it_has() {
    in_lab(|lab| {
        let _vmm = booted(lab);
        let info = tell(lab, json!({ "cmd": "info" }));
        assert_eq!(info["memory_mib"], 32);
        assert_eq!((&info["drives"], &info["interfaces"]), (&json!(["data", "fixed"]), &json!([])));
    });
}

#[test]
fn what_is_no_command_is_refused() {
    in_lab(|lab| {
        let _vmm = booted(lab);
        let error = tell(lab, json!({ "cmd": "fly" }))["error"].clone();
        assert!(error.as_str().is_some_and(|text| text.starts_with("no such command:")), "{error}");
    });
}
