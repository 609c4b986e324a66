//! How a VMM ends, and what it leaves.

use rustix::process::Signal;

use crate::support::{Lab, Vmm};

crate::on_both![
    sigterm_and_sigint_end_it_by_signal,
    fatal_signals_have_exit_codes,
    sigpipe_does_not_end_it,
    a_killed_vmm_leaves_its_socket,
    a_socket_that_was_left_blocks_the_next_start,
    a_running_vm_dies_with_its_vmm,
    a_client_that_goes_away_ends_nothing,
];

fn sigterm_and_sigint_end_it_by_signal(lab: &Lab) {
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2)] {
        let vmm = lab.start();
        vmm.signal(signal);
        assert_eq!(vmm.end().signal, Some(number));
        assert!(lab.exists("api.sock"));
        lab.remove("api.sock");
    }
}

/// A VMM whose threads all wait: Firecracker's handlers log, and hang when they interrupt a line of log.
fn settled(lab: &Lab) -> Vmm {
    let vmm = lab.start();
    let started = "API server started.\n";
    vmm.wait_until("it has started", || vmm.output("stdout").contains(started));
    assert_eq!(vmm.state(), "Not started");
    vmm
}

fn fatal_signals_have_exit_codes(lab: &Lab) {
    for (signal, code) in [
        (Signal::HUP, 156),
        (Signal::XCPU, 154),
        (Signal::XFSZ, 151),
        (Signal::BUS, 149),
        (Signal::SEGV, 150),
        (Signal::SYS, 2),
    ] {
        let vmm = settled(lab);
        vmm.signal(signal);
        assert_eq!(vmm.end().code, Some(code), "{signal:?}");
        lab.remove("api.sock");
    }
}

fn sigpipe_does_not_end_it(lab: &Lab) {
    let vmm = settled(lab);
    vmm.signal(Signal::PIPE);
    assert_eq!(vmm.state(), "Not started");
}

fn a_killed_vmm_leaves_its_socket(lab: &Lab) {
    let ended = lab.start().kill();
    assert_eq!(ended.signal, Some(9));
    assert!(lab.exists("api.sock"));
}

fn a_socket_that_was_left_blocks_the_next_start(lab: &Lab) {
    lab.start().kill();
    let ended = lab.spawn(&["--id", "anon", "--api-sock", "api.sock"]).end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "Error: RunWithApi(FailedToBindSocket(\"api.sock\"))\n");
    assert_eq!(
        ended.stdout,
        "T [anon:main] Running Firecracker v1.16.1\n\
         T [anon:main] RunWithApiError error: Failed to open the API socket at: api.sock. Check that it is not already \
         used.\n\
         T [anon:main] Firecracker exiting with error. exit_code=1\n"
    );
    lab.remove("api.sock");
    assert_eq!(lab.start().state(), "Not started");
}

fn a_running_vm_dies_with_its_vmm(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.signal(Signal::TERM);
    assert_eq!(vmm.end().signal, Some(15));
}

fn a_client_that_goes_away_ends_nothing(lab: &Lab) {
    let vmm = lab.start();
    for _ in 0..20 {
        vmm.connect().write(b"GET /vm/config HTTP/1.1\r\n\r\n");
    }
    assert_eq!(vmm.state(), "Not started");
}
