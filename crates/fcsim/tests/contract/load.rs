//! `/snapshot/load`: a refusal that comes before the load has begun leaves the VMM; a later one is its end.

use std::{fs, os::unix::net::UnixListener};

use serde_json::{Value, json};

use crate::support::{Lab, POST_BOOT, Vmm};

crate::on_both![
    a_loaded_vm_is_paused,
    a_loaded_vm_may_run_at_once,
    a_loaded_vm_is_shown_as_it_was,
    tracking_is_that_of_the_load,
    the_deprecated_form_is_taken,
    diff_snapshots_by_their_old_name_are_tracked,
    a_vm_is_loaded_once,
    a_load_needs_memory,
    a_load_takes_one_memory,
    a_load_needs_a_state,
    a_load_takes_no_other_field,
    backends_have_two_names,
    a_backend_needs_its_fields,
    a_load_wants_nothing_configured,
    even_a_refused_configuration_forbids_a_load,
    what_is_no_configuration_allows_a_load,
    metadata_may_come_before_a_load,
    a_state_must_be_there,
    a_state_that_is_junk_ends_the_vmm,
    a_short_state_ends_the_vmm,
    a_cut_state_ends_the_vmm,
    a_wrong_sum_ends_the_vmm,
    a_folder_is_no_state,
    a_huge_state_is_refused,
    memory_must_be_there,
    memory_must_be_long_enough,
    longer_memory_is_fine,
    a_drive_must_be_there,
    a_drive_may_have_another_size,
    a_pmem_file_must_be_there,
    a_stale_vsock_is_in_the_way,
    a_vsock_may_be_elsewhere,
    a_vsock_that_is_not_there_has_no_place,
    an_interface_may_have_another_tap,
    an_interface_that_is_not_there_has_no_tap,
    a_tap_that_is_busy_ends_the_vmm,
    a_handler_must_be_there,
    a_clock_may_be_asked_for,
    clones_of_one_snapshot_run_side_by_side,
    a_loaded_vm_makes_snapshots,
    a_metadata_configuration_is_loaded_and_its_content_is_not,
];

const FAILED: &str = "Load snapshot error: Failed to restore from snapshot:";
const NOT_ALLOWED: &str =
    "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.";

/// The load is refused with this text, and then the process ends with 1.
#[track_caller]
fn fatal(vmm: &Vmm, load: Value, why: &str) {
    vmm.put("/snapshot/load", load).fault(&format!("{FAILED} {why}"));
    let ended = vmm.end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "Error: RunWithApi(BuildMicroVmError(Restore))\n");
    let last = "T [anon:main] RunWithApiError error: Failed to build MicroVM: Loading snapshot failed..\n\
                T [anon:main] Firecracker exiting with error. exit_code=1\n";
    assert!(ended.stdout.ends_with(last), "{}", ended.stdout);
}

fn body(state: &str, memory: &str) -> Value {
    json!({ "snapshot_path": state, "mem_backend": { "backend_type": "File", "backend_path": memory } })
}

fn edit(lab: &Lab, name: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = lab.read(name);
    change(&mut bytes);
    lab.write(name, bytes);
}

fn with_drive(vmm: &Vmm) {
    let drive = json!({ "drive_id": "root", "is_root_device": true, "path_on_host": "disk.img" });
    vmm.put("/drives/root", drive).done();
}

fn with_vsock(vmm: &Vmm) {
    vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })).done();
}

fn with_interface(vmm: &Vmm) {
    vmm.put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0" })).done();
}

fn a_loaded_vm_is_paused(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    assert_eq!(vmm.state(), "Paused");
    vmm.pause();
    vmm.resume();
    assert_eq!(vmm.state(), "Running");
}

fn a_loaded_vm_may_run_at_once(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.load("s", json!({ "resume_vm": true })).done();
    assert_eq!(vmm.state(), "Running");
}

fn a_loaded_vm_is_shown_as_it_was(lab: &Lab) {
    let shown = std::cell::RefCell::new(Value::Null);
    lab.snapshot_of(|vmm| {
        with_drive(vmm);
        with_vsock(vmm);
        vmm.put("/entropy", json!({})).done();
        vmm.put("/balloon", json!({ "amount_mib": 1, "deflate_on_oom": true })).done();
        let boot = json!({ "kernel_image_path": "kernel" });
        vmm.put("/boot-source", boot).done();
        shown.replace(vmm.get("/vm/config").value());
    });
    lab.remove("v.sock");
    let vmm = lab.start();
    vmm.load("s", json!({ "track_dirty_pages": true })).done();
    let mut expected = shown.into_inner();
    let machine = json!({
        "vcpu_count": 1, "mem_size_mib": 32, "smt": false, "track_dirty_pages": true, "huge_pages": "None",
    });
    expected["machine-config"] = machine.clone();
    vmm.get("/vm/config").says(expected);
    vmm.get("/machine-config").says(machine);
}

fn tracking_is_that_of_the_load(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    assert_eq!(vmm.get("/machine-config").value()["track_dirty_pages"], false);
}

fn the_deprecated_form_is_taken(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    let answer = vmm.put("/snapshot/load", json!({ "snapshot_path": "s.vmstate", "mem_file_path": "s.mem" }));
    answer.done();
    assert!(answer.is_deprecated());
}

fn diff_snapshots_by_their_old_name_are_tracked(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    let answer = vmm.load("s", json!({ "enable_diff_snapshots": true }));
    answer.done();
    assert!(answer.is_deprecated());
    assert_eq!(vmm.get("/machine-config").value()["track_dirty_pages"], true);
}

fn a_vm_is_loaded_once(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    vmm.load("s", json!({})).fault(POST_BOOT);
    vmm.instance_start().fault(POST_BOOT);
    vmm.resume();
    vmm.load("s", json!({})).fault(POST_BOOT);
}

fn a_load_needs_memory(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/snapshot/load", json!({ "snapshot_path": "s" }))
        .bad_body("missing field: either `mem_backend` or `mem_file_path` is required");
    assert_eq!(vmm.state(), "Not started");
}

fn a_load_takes_one_memory(lab: &Lab) {
    lab.start()
        .load("s", json!({ "mem_file_path": "s.mem" }))
        .bad_body("too many fields: either `mem_backend` or `mem_file_path` exclusively is required");
}

fn a_load_needs_a_state(lab: &Lab) {
    lab.start()
        .put("/snapshot/load", json!({ "mem_file_path": "m" }))
        .bad_body("missing field `snapshot_path` at line 1 column 21");
}

fn a_load_takes_no_other_field(lab: &Lab) {
    lab.start().put("/snapshot/load", json!({ "version": "1" })).bad_body(
        "unknown field `version`, expected one of `snapshot_path`, `mem_file_path`, `mem_backend`, \
         `enable_diff_snapshots`, `track_dirty_pages`, `resume_vm`, `network_overrides`, `vsock_override`, \
         `clock_realtime` at line 1 column 10",
    );
}

fn backends_have_two_names(lab: &Lab) {
    lab.start()
        .put_text("/snapshot/load", r#"{"mem_backend":{"backend_type":"Memfd"}}"#)
        .bad_body("unknown variant `Memfd`, expected `File` or `Uffd` at line 1 column 38");
}

fn a_backend_needs_its_fields(lab: &Lab) {
    lab.start()
        .put_text("/snapshot/load", r#"{"mem_backend":{"backend_type":"File"}}"#)
        .bad_body("missing field `backend_path` at line 1 column 38");
}

fn a_load_wants_nothing_configured(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    for (path, body) in [
        ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 32 })),
        ("/boot-source", json!({ "kernel_image_path": "kernel" })),
        ("/drives/d", json!({ "drive_id": "d", "is_root_device": false, "path_on_host": "disk.img" })),
        ("/pmem/p", json!({ "id": "p", "path_on_host": "disk.img" })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })),
        ("/entropy", json!({})),
        ("/balloon", json!({ "amount_mib": 1, "deflate_on_oom": true })),
        ("/hotplug/memory", json!({ "total_size_mib": 128 })),
    ] {
        let vmm = lab.start();
        vmm.put(path, body).done();
        vmm.load("s", json!({})).fault(NOT_ALLOWED);
        assert_eq!(vmm.state(), "Not started");
        vmm.kill();
        lab.remove("api.sock");
    }
}

fn even_a_refused_configuration_forbids_a_load(lab: &Lab) {
    let vmm = lab.start();
    assert!(vmm.put("/boot-source", json!({ "kernel_image_path": "none" })).head.contains(" 400 "));
    vmm.load("none", json!({})).fault(NOT_ALLOWED);
}

fn what_is_no_configuration_allows_a_load(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.put("/logger", json!({ "level": "Info" })).done();
    vmm.put("/metrics", json!({ "metrics_path": "metrics" })).done();
    vmm.put("/serial", json!({})).done();
    vmm.put("/cpu-config", json!({})).done();
    vmm.put_text("/machine-config", "{").bad_body("EOF while parsing an object at line 1 column 1");
    assert!(vmm.instance_start().head.contains(" 400 "));
    vmm.load("s", json!({})).done();
}

fn metadata_may_come_before_a_load(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.snapshot_of(|vmm| {
        with_interface(vmm);
        vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" })).done();
    });
    let vmm = lab.start();
    vmm.put("/mmds", json!({ "a": 1 })).done();
    vmm.load("s", json!({})).done();
    vmm.get("/mmds").says(json!({ "a": 1 }));
}

fn a_state_must_be_there(lab: &Lab) {
    let vmm = lab.start();
    let why = "Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)";
    fatal(&vmm, body("none", "none"), why);
    assert!(lab.exists("api.sock"));
}

const STATE: &str = "Failed to get snapshot state from file: Failed to load snapshot state from file:";

fn a_state_that_is_junk_ends_the_vmm(lab: &Lab) {
    let why = format!("{STATE} An error occurred during bitcode serialization: bitcode error");
    fatal(&lab.start(), body("junk", "none"), &why);
}

fn a_short_state_ends_the_vmm(lab: &Lab) {
    lab.write("short", "1234567");
    fatal(&lab.start(), body("short", "none"), &format!("{STATE} IO Error: File too short to contain CRC"));
}

fn a_cut_state_ends_the_vmm(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    edit(lab, "s.vmstate", |bytes| bytes.truncate(bytes.len() / 2));
    let why = format!("{STATE} An error occurred during bitcode serialization: bitcode error");
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
}

fn a_wrong_sum_ends_the_vmm(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    edit(lab, "s.vmstate", |bytes| *bytes.last_mut().expect("a byte") ^= 1);
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &format!("{STATE} CRC64 validation failed"));
}

fn a_folder_is_no_state(lab: &Lab) {
    fatal(&lab.start(), body(".", "none"), &format!("{STATE} IO Error: Is a directory (os error 21)"));
}

fn a_huge_state_is_refused(lab: &Lab) {
    fs::File::create(lab.path("huge")).and_then(|file| file.set_len(10_000_001)).expect("a file");
    let why = format!("{STATE} Snapshot size exceeds limit of 10000000 bytes");
    fatal(&lab.start(), body("huge", "none"), &why);
}

const MEMORY: &str = "Failed to load guest memory: Error creating guest memory from file:";

fn memory_must_be_there(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let why = format!("{MEMORY} Failed to load guest memory: No such file or directory (os error 2)");
    fatal(&lab.start(), body("s.vmstate", "none"), &why);
}

fn memory_must_be_long_enough(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    edit(lab, "s.mem", |bytes| bytes.truncate((32 << 20) - 1));
    let why = format!(
        "{MEMORY} Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset"
    );
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
}

fn longer_memory_is_fine(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    edit(lab, "s.mem", |bytes| bytes.resize((32 << 20) + 5000, 7));
    lab.start().load("s", json!({})).done();
}

const DEVICES: &str =
    "Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices:";

fn a_drive_must_be_there(lab: &Lab) {
    lab.snapshot_of(with_drive);
    lab.remove("disk.img");
    let why = format!(
        "{DEVICES} Block: Virtio backend error: Error manipulating the backing file: No such file or directory (os \
         error 2) disk.img"
    );
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
}

fn a_drive_may_have_another_size(lab: &Lab) {
    lab.snapshot_of(with_drive);
    fs::File::create(lab.path("disk.img")).and_then(|file| file.set_len(3 << 20)).expect("a file");
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    vmm.patch("/drives/root", json!({ "drive_id": "root", "path_on_host": "disk.img" })).done();
    vmm.resume();
}

fn a_pmem_file_must_be_there(lab: &Lab) {
    fs::File::create(lab.path("pmem")).and_then(|file| file.set_len(2 << 20)).expect("a file");
    lab.snapshot_of(|vmm| vmm.put("/pmem/p", json!({ "id": "p", "path_on_host": "pmem" })).done());
    lab.remove("pmem");
    let why = format!(
        "{DEVICES} Pmem: Error creating Pmem devie: Error accessing backing file: No such file or directory (os error \
         2)"
    );
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
}

fn a_stale_vsock_is_in_the_way(lab: &Lab) {
    lab.snapshot_of(with_vsock);
    let why = format!(
        "{DEVICES} VsockUnixBackend: Error binding to the host-side Unix socket: Address in use (os error 98)"
    );
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
    assert!(lab.exists("v.sock"));
}

fn a_vsock_may_be_elsewhere(lab: &Lab) {
    lab.snapshot_of(with_vsock);
    let vmm = lab.start();
    vmm.load("s", json!({ "vsock_override": { "uds_path": "w.sock" } })).done();
    assert_eq!(vmm.config("vsock"), json!({ "guest_cid": 3, "uds_path": "w.sock" }));
    assert!(lab.exists("w.sock"));
}

fn a_vsock_that_is_not_there_has_no_place(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let mut load = body("s.vmstate", "s.mem");
    load["vsock_override"] = json!({ "uds_path": "w.sock" });
    fatal(&lab.start(), load, "Failed to get snapshot state from file: Unknown Vsock Device.");
}

fn an_interface_may_have_another_tap(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.snapshot_of(with_interface);
    let vmm = lab.start();
    let overrides = json!([{ "iface_id": "eth0", "host_dev_name": "tap9" }]);
    vmm.load("s", json!({ "network_overrides": overrides })).done();
    assert_eq!(vmm.config("network-interfaces")[0]["host_dev_name"], "tap9");
}

fn an_interface_that_is_not_there_has_no_tap(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let mut load = body("s.vmstate", "s.mem");
    load["network_overrides"] = json!([{ "iface_id": "eth0", "host_dev_name": "tap9" }]);
    fatal(&lab.start(), load, "Failed to get snapshot state from file: Unknown Network Device.");
}

fn a_tap_that_is_busy_ends_the_vmm(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.snapshot_of(with_interface);
    let owner = lab.spawn(&["--id", "owner", "--api-sock", "owner.sock"]);
    owner.wait_for_api("owner.sock");
    with_interface(&owner);
    let why = format!(
        "{DEVICES} Net: Failed to create a network device: Open tap device failed: Error while creating ifreq \
         structure: Resource busy (os error 16). Invalid TUN/TAP Backend provided by tap0. Check our documentation on \
         setting up the network devices."
    );
    fatal(&lab.start(), body("s.vmstate", "s.mem"), &why);
}

fn a_handler_must_be_there(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let load = json!({
        "snapshot_path": "s.vmstate", "mem_backend": { "backend_type": "Uffd", "backend_path": "none" },
    });
    let why = "Failed to load guest memory: Error creating guest memory from uffd: Failed to connect to UDS Unix stream: \
               No such file or directory (os error 2)";
    fatal(&lab.start(), load, why);
}

fn a_clock_may_be_asked_for(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.put("/snapshot/load", json!({ "clock_realtime": "yes" }))
        .bad_body("invalid type: string \"yes\", expected a boolean at line 1 column 23");
    assert_eq!(vmm.state(), "Not started");
}

fn clones_of_one_snapshot_run_side_by_side(lab: &Lab) {
    lab.snapshot_of(with_vsock);
    let clones: Vec<Vmm> = (0..3)
        .map(|number| {
            let socket = format!("{number}.sock");
            let vmm = lab.spawn(&["--id", "clone", "--api-sock", &socket]);
            vmm.wait_for_api(&socket);
            let path = format!("v{number}.sock");
            vmm.load("s", json!({ "resume_vm": true, "vsock_override": { "uds_path": path } })).done();
            vmm
        })
        .collect();
    assert!(clones.iter().all(|clone| clone.state() == "Running"));
    UnixListener::bind(lab.path("v0.sock")).expect_err("it is the first clone's");
}

fn a_loaded_vm_makes_snapshots(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.load("s", json!({ "track_dirty_pages": true })).done();
    vmm.snapshot("Full", "t").done();
    vmm.snapshot("Diff", "u").done();
    vmm.kill();
    lab.remove("api.sock");
    let vmm = lab.start();
    vmm.load("t", json!({ "resume_vm": true })).done();
    assert_eq!(vmm.state(), "Running");
}

fn a_metadata_configuration_is_loaded_and_its_content_is_not(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.snapshot_of(|vmm| {
        with_interface(vmm);
        vmm.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" })).done();
        vmm.put("/mmds", json!({ "a": 1 })).done();
    });
    let vmm = lab.start();
    vmm.load("s", json!({})).done();
    assert_eq!(vmm.config("mmds-config")["network_interfaces"], json!(["eth0"]));
    vmm.get("/mmds").says(json!({}));
}
