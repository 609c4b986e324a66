//! `/serial`: where the guest's console goes.

use serde_json::json;

use crate::support::{Lab, endless_kernel};

crate::on_both![
    the_console_goes_to_stdout,
    the_console_goes_to_a_file,
    an_existing_file_is_written_over_from_its_beginning,
    a_file_that_cannot_be_opened_fails_the_start,
    a_limiter_drops_what_is_over,
    a_burst_is_let_through_once,
    a_file_that_cannot_be_opened_fails_a_load,
    a_console_may_be_set_before_a_load,
    a_guest_that_reads_nothing_is_not_harmed_by_what_is_typed,
    with_a_file_for_the_console_nothing_is_read,
    it_takes_no_other_field,
    a_bucket_needs_its_fields,
];

fn the_console_goes_to_stdout(lab: &Lab) {
    // lines of the log would come between the bytes of the console
    let vmm = lab.start_with(&["--log-path", "log"]);
    vmm.boot();
    vmm.wait_until("a guest prints", || vmm.output("stdout").contains("guest"));
}

fn the_console_goes_to_a_file(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    assert!(!lab.exists("console"));
    vmm.boot();
    vmm.wait_for_bytes("console", 15);
    assert!(!vmm.output("stdout").contains("guest:"));
}

fn an_existing_file_is_written_over_from_its_beginning(lab: &Lab) {
    lab.write("console", [b'#'; 4000]);
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    vmm.boot();
    vmm.wait_until("the guest prints", || lab.read("console")[0] != b'#');
    assert_eq!(lab.read("console").len(), 4000);
}

fn a_file_that_cannot_be_opened_fails_the_start(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "none/console" })).done();
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).done();
    vmm.instance_start().fault(
        "Start microvm error: Failed to create device manager: Error with EventFd: No such file or directory (os error \
         2)",
    );
}

fn a_limiter_drops_what_is_over(lab: &Lab) {
    let vmm = lab.start();
    let limiter = json!({ "size": 5, "refill_time": 3_600_000 });
    vmm.put("/serial", json!({ "serial_out_path": "console", "rate_limiter": limiter })).done();
    lab.write("kernel", endless_kernel());
    vmm.boot();
    vmm.wait_for_bytes("console", 5);
    vmm.pause();
    assert_eq!(lab.read("console").len(), 5);
}

fn a_burst_is_let_through_once(lab: &Lab) {
    let vmm = lab.start();
    let limiter = json!({ "size": 5, "one_time_burst": 4, "refill_time": 3_600_000 });
    vmm.put("/serial", json!({ "serial_out_path": "console", "rate_limiter": limiter })).done();
    vmm.boot();
    vmm.wait_for_bytes("console", 9);
    vmm.pause();
    assert_eq!(lab.read("console").len(), 9);
}

fn a_file_that_cannot_be_opened_fails_a_load(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "none/console" })).done();
    vmm.load("s", json!({})).fault(
        "Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to restore \
         devices: Error creating DeviceManager: Error with EventFd: No such file or directory (os error 2)",
    );
    assert_eq!(vmm.end().code, Some(1));
}

fn a_console_may_be_set_before_a_load(lab: &Lab) {
    lab.write("kernel", endless_kernel());
    lab.snapshot_of_the_tiny_guest();
    let vmm = lab.start();
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    vmm.load("s", json!({ "resume_vm": true })).done();
    vmm.wait_for_bytes("console", 1);
}

/// A FIFO as stdin, and its end for typing. The VMM's own is open for writing too: it sees no end.
fn typed_on(lab: &Lab) -> (std::fs::File, std::process::Command) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let path = lab.path("typed");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let open = || std::fs::File::options().read(true).write(true).open(&path).expect("it opens");
    let mut command = lab.command(&["--id", "anon", "--api-sock", "api.sock", "--log-path", "log"]);
    lab.write("log", b"");
    command.stdin(open());
    (open(), command)
}

fn a_guest_that_reads_nothing_is_not_harmed_by_what_is_typed(lab: &Lab) {
    use std::io::Write;
    let (mut keys, command) = typed_on(lab);
    let vmm = lab.spawn_command(command);
    vmm.wait_for_api("api.sock");
    keys.write_all(&[b'x'; 5000]).expect("it is typed");
    vmm.boot();
    vmm.wait_until("a guest prints", || vmm.output("stdout").contains("guest"));
    keys.write_all(&[b'y'; 5000]).expect("it is typed");
    vmm.pause();
    assert_eq!(vmm.state(), "Paused");
    vmm.resume();
    assert_eq!(vmm.state(), "Running");
}

fn with_a_file_for_the_console_nothing_is_read(lab: &Lab) {
    use std::io::Write;
    let (mut keys, command) = typed_on(lab);
    let vmm = lab.spawn_command(command);
    vmm.wait_for_api("api.sock");
    vmm.put("/serial", json!({ "serial_out_path": "console" })).done();
    keys.write_all(b"typed").expect("it is typed");
    vmm.boot();
    vmm.wait_for_bytes("console", 15);
    vmm.pause();
    assert_eq!(rustix::io::ioctl_fionread(&keys).expect("a FIFO"), 5);
}

fn it_takes_no_other_field(lab: &Lab) {
    lab.start()
        .put("/serial", json!({ "path": "x" }))
        .bad_body("unknown field `path`, expected `serial_out_path` or `rate_limiter` at line 1 column 7");
}

fn a_bucket_needs_its_fields(lab: &Lab) {
    lab.start()
        .put("/serial", json!({ "rate_limiter": { "size": 1 } }))
        .bad_body("missing field `refill_time` at line 1 column 26");
}
