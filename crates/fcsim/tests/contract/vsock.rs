//! `/vsock`: the device, its Unix socket, and what a connection to it is answered by a guest that does not listen.

use std::os::unix::{fs::FileTypeExt, net::UnixStream};

use serde_json::{Value, json};

use crate::support::{Lab, Vmm};

crate::on_both![
    its_socket_is_there_at_once,
    it_is_shown_without_its_deprecated_id,
    its_id_is_deprecated,
    it_is_replaced_with_its_socket,
    a_failed_replacement_leaves_none,
    nothing_may_be_at_its_path,
    a_stale_socket_is_in_the_way,
    its_folder_must_be_there,
    its_path_fits_an_address,
    its_path_is_relative_to_the_vmm,
    it_needs_its_fields,
    it_takes_no_other_field,
    a_cid_is_a_number_of_32_bits,
    any_cid_is_taken,
    a_connection_is_taken_while_paused_and_waits,
    its_socket_outlives_the_vmm,
];

fn vsock(path: &str) -> Value {
    json!({ "guest_cid": 3, "uds_path": path })
}

fn is_socket(lab: &Lab, name: &str) -> bool {
    lab.path(name).metadata().is_ok_and(|meta| meta.file_type().is_socket())
}

fn running(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    vmm.put("/vsock", vsock("v.sock")).done();
    vmm.boot();
    vmm
}

fn its_socket_is_there_at_once(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", vsock("v.sock")).done();
    assert!(is_socket(lab, "v.sock"));
    UnixStream::connect(lab.path("v.sock")).expect("it listens");
}

fn it_is_shown_without_its_deprecated_id(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", json!({ "vsock_id": "v", "guest_cid": 3, "uds_path": "v.sock" })).done();
    assert_eq!(vmm.config("vsock"), vsock("v.sock"));
}

fn its_id_is_deprecated(lab: &Lab) {
    let vmm = lab.start();
    assert!(
        vmm.put("/vsock", json!({ "vsock_id": "v", "guest_cid": 3, "uds_path": "v.sock" })).is_deprecated()
    );
    assert!(!vmm.put("/vsock", vsock("v.sock")).is_deprecated());
}

fn it_is_replaced_with_its_socket(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", vsock("v.sock")).done();
    vmm.put("/vsock", vsock("v.sock")).done();
    vmm.put("/vsock", vsock("w.sock")).done();
    assert!(is_socket(lab, "w.sock") && !lab.exists("v.sock"));
    assert_eq!(vmm.config("vsock"), vsock("w.sock"));
}

fn a_failed_replacement_leaves_none(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", vsock("v.sock")).done();
    assert!(vmm.put("/vsock", vsock("none/w.sock")).head.contains(" 400 "));
    assert_eq!(vmm.config("vsock"), Value::Null);
    assert!(!lab.exists("v.sock"));
}

fn nothing_may_be_at_its_path(lab: &Lab) {
    lab.start().put("/vsock", vsock("junk")).fault(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: \
         Address in use (os error 98)",
    );
    assert_eq!(lab.read("junk"), [b'j'; 256]);
}

fn a_stale_socket_is_in_the_way(lab: &Lab) {
    running(lab).kill();
    lab.remove("api.sock");
    lab.start().put("/vsock", vsock("v.sock")).fault(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: \
         Address in use (os error 98)",
    );
}

fn its_folder_must_be_there(lab: &Lab) {
    lab.start().put("/vsock", vsock("none/v.sock")).fault(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: No \
         such file or directory (os error 2)",
    );
}

fn its_path_fits_an_address(lab: &Lab) {
    lab.start().put("/vsock", vsock(&"v".repeat(108))).fault(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: path \
         must be shorter than SUN_LEN",
    );
}

fn its_path_is_relative_to_the_vmm(lab: &Lab) {
    std::fs::create_dir(lab.path("sub")).expect("a folder");
    let vmm = lab.start();
    vmm.put("/vsock", vsock("./sub/../sub/v.sock")).done();
    assert!(is_socket(lab, "sub/v.sock"));
    assert_eq!(vmm.config("vsock")["uds_path"], "./sub/../sub/v.sock");
}

fn it_needs_its_fields(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", json!({ "guest_cid": 3 })).bad_body("missing field `uds_path` at line 1 column 15");
    vmm.put("/vsock", json!({ "uds_path": "v" })).bad_body("missing field `guest_cid` at line 1 column 16");
}

fn it_takes_no_other_field(lab: &Lab) {
    lab.start().put("/vsock", json!({ "port": 52 })).bad_body(
        "unknown field `port`, expected one of `vsock_id`, `guest_cid`, `uds_path` at line 1 column 7",
    );
}

fn a_cid_is_a_number_of_32_bits(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", json!({ "guest_cid": 1_u64 << 32 }))
        .bad_body("invalid value: integer `4294967296`, expected u32 at line 1 column 23");
    vmm.put("/vsock", json!({ "guest_cid": "3" }))
        .bad_body("invalid type: string \"3\", expected u32 at line 1 column 16");
}

fn any_cid_is_taken(lab: &Lab) {
    let vmm = lab.start();
    for cid in [0, 2, u32::MAX] {
        vmm.put("/vsock", json!({ "guest_cid": cid, "uds_path": "v.sock" })).done();
        assert_eq!(vmm.config("vsock")["guest_cid"], cid);
    }
}

fn a_connection_is_taken_while_paused_and_waits(lab: &Lab) {
    use std::io::{Read, Write};
    let vmm = running(lab);
    vmm.pause();
    let mut stream = UnixStream::connect(lab.path("v.sock")).expect("it is taken");
    stream.write_all(b"CONNECT 52\n").expect("it is written");
    vmm.get("/").value();
    stream.set_nonblocking(true).expect("a socket");
    let error = stream.read(&mut [0; 16]).expect_err("nobody answers");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

fn its_socket_outlives_the_vmm(lab: &Lab) {
    running(lab).kill();
    assert!(is_socket(lab, "v.sock") && is_socket(lab, "api.sock"));
}
