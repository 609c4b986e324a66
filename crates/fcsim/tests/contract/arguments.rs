//! The command line: what is printed, what is refused, with which exit code.

use serde_json::json;

use crate::support::{Ended, Lab};

crate::on_both![
    the_version_is_printed,
    the_help_lists_every_argument,
    help_comes_before_version,
    version_comes_before_what_is_wrong,
    the_snapshot_version_is_printed,
    the_version_of_a_state_is_printed,
    a_state_that_is_not_there_has_no_version,
    a_state_that_is_junk_has_no_version,
    an_unknown_argument_is_refused,
    a_word_without_dashes_is_refused,
    an_argument_with_an_equals_sign_is_unknown,
    a_value_that_is_missing_is_refused,
    an_argument_comes_once,
    what_follows_two_dashes_is_not_looked_at,
    no_api_needs_a_configuration,
    seccomp_is_off_or_custom,
    an_id_has_letters_digits_and_dashes,
    an_id_has_1_to_64_characters,
    a_level_has_a_name,
    a_log_file_must_be_possible,
    a_metrics_file_must_be_possible,
    a_filter_must_be_there,
    a_filter_must_be_one,
    a_limit_is_a_number,
    a_time_is_a_number,
    a_socket_path_that_is_taken_is_refused,
    a_socket_in_a_folder_that_is_not_there_is_refused,
    a_socket_path_fits_an_address,
    pci_boot_timer_and_no_seccomp_are_taken,
    metadata_is_put_into_the_store,
    metadata_must_be_there,
    metadata_is_json,
    metadata_has_the_limit_of_the_store,
];

#[track_caller]
fn run(lab: &Lab, arguments: &[&str]) -> Ended {
    lab.spawn(arguments).end()
}

const NAME: &str = "T [anonymous-instance:main]";
const GOOD: &str = "T [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n";
const RUNNING: &str = "T [anonymous-instance:main] Running Firecracker v1.16.1\n";

/// It ends with a code, this line of log and this on stderr.
#[track_caller]
fn refused(ended: &Ended, code: i32, log: &str, debug: &str) {
    let last = format!("{NAME} {log}\n{NAME} Firecracker exiting with error. exit_code={code}\n");
    assert_eq!(ended.code, Some(code));
    assert!(ended.stdout == last || ended.stdout == format!("{RUNNING}{last}"), "{}", ended.stdout);
    assert_eq!(ended.stderr, format!("Error: {debug}\n"));
}

#[track_caller]
fn bad_arguments(lab: &Lab, arguments: &[&str], why: &str, debug: &str) {
    let log = format!("Arguments parsing error: {why} \\n\\nFor more information try --help.");
    let ended = run(lab, arguments);
    refused(&ended, 153, &log, &format!("ParseArguments({debug})"));
    assert!(!ended.stdout.contains("Running"));
}

/// It aborts with this as its last line.
#[track_caller]
fn panics(ended: &Ended, message: &str) {
    assert_eq!((ended.code, ended.signal), (None, Some(6)));
    assert_eq!(ended.stdout.lines().last(), Some(message));
    assert!(ended.stdout.contains(" Firecracker panicked at src/"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "");
}

fn the_version_is_printed(lab: &Lab) {
    let ended = run(lab, &["--version"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, format!("Firecracker v1.16.1\n\n{GOOD}"));
}

fn the_help_lists_every_argument(lab: &Lab) {
    let ended = run(lab, &["--help"]);
    assert_eq!(ended.code, Some(0));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..3], ["Firecracker v1.16.1", "", "optional arguments:"]);
    let names: Vec<&str> = lines[3..].iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(
        names.join(" "),
        "--api-sock --boot-timer --config-file --describe-snapshot --enable-pci --help \
         --http-api-max-payload-size --id --level --log-path --metadata --metrics-path --mmds-size-limit --module \
         --no-api --no-seccomp --parent-cpu-time-us --seccomp-filter --show-level --show-log-origin \
         --snapshot-version --start-time-cpu-us --start-time-us --version T"
    );
    let first =
        format!("  {:<55}   {}", "--api-sock <api-sock>", "Path to unix domain socket used by the API.");
    assert_eq!(lines[3], format!("{first} [default: \"/run/firecracker.socket\"]"));
    assert_eq!(run(lab, &["-h"]).stdout, ended.stdout);
}

fn help_comes_before_version(lab: &Lab) {
    let ended = run(lab, &["--version", "--help"]);
    assert!(ended.stdout.contains("optional arguments:"));
}

fn version_comes_before_what_is_wrong(lab: &Lab) {
    let ended = run(lab, &["--nope", "--version"]);
    assert_eq!(ended.stdout, format!("Firecracker v1.16.1\n\n{GOOD}"));
}

fn the_snapshot_version_is_printed(lab: &Lab) {
    let ended = run(lab, &["--snapshot-version"]);
    assert_eq!((ended.code, ended.stdout), (Some(0), format!("v10.0.0\n{GOOD}")));
}

fn the_version_of_a_state_is_printed(lab: &Lab) {
    lab.snapshot_of_the_tiny_guest();
    let ended = run(lab, &["--describe-snapshot", "s.vmstate"]);
    assert_eq!((ended.code, ended.stdout), (Some(0), format!("v10.0.0\n{GOOD}")));
}

fn a_state_that_is_not_there_has_no_version(lab: &Lab) {
    refused(
        &run(lab, &["--describe-snapshot", "none"]),
        1,
        "When printing Snapshot Data format: Unable to open snapshot state file: No such file or directory (os error 2)",
        "PrintSnapshotDataFormat(OpenSnapshot(Os { code: 2, kind: NotFound, message: \"No such file or directory\" }))",
    );
}

fn a_state_that_is_junk_has_no_version(lab: &Lab) {
    refused(
        &run(lab, &["--describe-snapshot", "junk"]),
        1,
        "When printing Snapshot Data format: Invalid data format version of snapshot file: An error occurred during \
         bitcode serialization: bitcode error",
        "PrintSnapshotDataFormat(SnapshotVersion(Bitcode(Error(\"bitcode error\"))))",
    );
    refused(
        &run(lab, &["--describe-snapshot", "empty"]),
        1,
        "When printing Snapshot Data format: Invalid data format version of snapshot file: IO Error: File too short to \
         contain CRC",
        "PrintSnapshotDataFormat(SnapshotVersion(Io(Custom { kind: UnexpectedEof, error: \"File too short to contain \
         CRC\" })))",
    );
}

fn an_unknown_argument_is_refused(lab: &Lab) {
    let why = "Found argument 'nope' which wasn't expected, or isn't valid in this context.";
    bad_arguments(lab, &["--nope"], why, "UnexpectedArgument(\"nope\")");
    bad_arguments(lab, &["--id", "a", "--nope", "b"], why, "UnexpectedArgument(\"nope\")");
}

fn a_word_without_dashes_is_refused(lab: &Lab) {
    let why = "Found argument 'word' which wasn't expected, or isn't valid in this context.";
    bad_arguments(lab, &["word"], why, "UnexpectedArgument(\"word\")");
    bad_arguments(lab, &["--boot-timer", "word"], why, "UnexpectedArgument(\"word\")");
}

fn an_argument_with_an_equals_sign_is_unknown(lab: &Lab) {
    let why = "Found argument 'id=a' which wasn't expected, or isn't valid in this context.";
    bad_arguments(lab, &["--id=a"], why, "UnexpectedArgument(\"id=a\")");
}

fn a_value_that_is_missing_is_refused(lab: &Lab) {
    let why = "The argument 'id' requires a value, but none was supplied.";
    bad_arguments(lab, &["--id"], why, "MissingValue(\"id\")");
    bad_arguments(lab, &["--id", "--boot-timer"], why, "MissingValue(\"id\")");
}

fn an_argument_comes_once(lab: &Lab) {
    let why = "The argument 'id' was provided more than once.";
    bad_arguments(lab, &["--id", "a", "--id", "b"], why, "DuplicateArgument(\"id\")");
}

fn what_follows_two_dashes_is_not_looked_at(lab: &Lab) {
    let vmm = lab.start_with(&["--", "--nope", "--version"]);
    assert_eq!(vmm.state(), "Not started");
}

fn no_api_needs_a_configuration(lab: &Lab) {
    let why = "Argument 'config-file' required, but not found.";
    bad_arguments(lab, &["--no-api"], why, "MissingArgument(\"config-file\")");
}

fn seccomp_is_off_or_custom(lab: &Lab) {
    let arguments = ["--no-seccomp", "--seccomp-filter", "x"];
    let ended = run(lab, &arguments);
    assert_eq!(ended.code, Some(153));
    assert!(ended.stdout.contains(" cannot be used together with argument "), "{}", ended.stdout);
}

fn an_id_has_letters_digits_and_dashes(lab: &Lab) {
    for (id, message) in [
        ("a_b", "Invalid instance ID: InvalidChar('_', 1)"),
        ("a b", "Invalid instance ID: InvalidChar(' ', 1)"),
        ("../a", "Invalid instance ID: InvalidChar('.', 0)"),
    ] {
        panics(&run(lab, &["--id", id]), message);
    }
}

fn an_id_has_1_to_64_characters(lab: &Lab) {
    panics(&run(lab, &["--id", ""]), "Invalid instance ID: InvalidLen(0, 1, 64)");
    panics(&run(lab, &["--id", &"a".repeat(65)]), "Invalid instance ID: InvalidLen(65, 1, 64)");
    let id = "a".repeat(64);
    let vmm = lab.spawn(&["--api-sock", "api.sock", "--id", &id]);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.get("/").value()["id"], id);
}

fn a_level_has_a_name(lab: &Lab) {
    refused(
        &run(lab, &["--level", "loud"]),
        152,
        "Invalid value for logger level: Failed to parse string to level filter: loud.Possible values: [Error, Warning, \
         Info, Debug]",
        "InvalidLogLevel(LevelFilterFromStrError(\"loud\"))",
    );
}

fn a_log_file_must_be_possible(lab: &Lab) {
    refused(
        &run(lab, &["--log-path", "none/log"]),
        1,
        "Could not initialize logger: Failed to open target file: No such file or directory (os error 2)",
        "LoggerInitialization(LoggerUpdateError(Os { code: 2, kind: NotFound, message: \"No such file or directory\" }))",
    );
}

fn a_metrics_file_must_be_possible(lab: &Lab) {
    refused(
        &run(lab, &["--metrics-path", "none/metrics"]),
        1,
        "Could not initialize metrics: Cannot initialize the metrics system due to bad user input: No such file or \
         directory (os error 2)",
        "MetricsInitialization(InitializationFailure(\"No such file or directory (os error 2)\"))",
    );
}

fn a_filter_must_be_there(lab: &Lab) {
    refused(
        &run(lab, &["--seccomp-filter", "none"]),
        1,
        "Seccomp error: Filter file open error: No such file or directory (os error 2)",
        "SeccompFilter(FileOpen(Os { code: 2, kind: NotFound, message: \"No such file or directory\" }))",
    );
}

fn a_filter_must_be_one(lab: &Lab) {
    refused(
        &run(lab, &["--seccomp-filter", "junk"]),
        1,
        "Seccomp error: Filter deserialization failed: Bitcode deserialization failed: bitcode error",
        "SeccompFilter(Deserialization(Bitcode(Error(\"bitcode error\"))))",
    );
}

fn a_limit_is_a_number(lab: &Lab) {
    for name in ["http-api-max-payload-size", "mmds-size-limit"] {
        let message = format!(
            "'{name}' parameter expected to be of 'usize' type.: ParseIntError {{ kind: InvalidDigit }}"
        );
        panics(&run(lab, &[&format!("--{name}"), "many"]), &message);
        panics(&run(lab, &[&format!("--{name}"), "-1"]), &message);
    }
}

fn a_time_is_a_number(lab: &Lab) {
    for name in ["start-time-us", "start-time-cpu-us", "parent-cpu-time-us"] {
        let message = format!(
            "'{name}' parameter expected to be of 'u64' type.: ParseIntError {{ kind: InvalidDigit }}"
        );
        panics(&run(lab, &[&format!("--{name}"), "now"]), &message);
    }
    lab.start_with(&["--start-time-us", "1", "--start-time-cpu-us", "2", "--parent-cpu-time-us", "3"]);
}

fn a_socket_path_that_is_taken_is_refused(lab: &Lab) {
    let ended = run(lab, &["--api-sock", "junk"]);
    refused(
        &ended,
        1,
        "RunWithApiError error: Failed to open the API socket at: junk. Check that it is not already used.",
        "RunWithApi(FailedToBindSocket(\"junk\"))",
    );
    assert_eq!(lab.read("junk"), [b'j'; 256]);
}

fn a_socket_in_a_folder_that_is_not_there_is_refused(lab: &Lab) {
    refused(
        &run(lab, &["--api-sock", "none/api.sock"]),
        1,
        "RunWithApiError error: Failed to bind and run the HTTP server: IO error: No such file or directory (os error \
         2)",
        "RunWithApi(FailedToBindAndRunHttpServer(IOError(Os { code: 2, kind: NotFound, message: \"No such file or \
         directory\" })))",
    );
}

fn a_socket_path_fits_an_address(lab: &Lab) {
    refused(
        &run(lab, &["--api-sock", &"a".repeat(108)]),
        1,
        "RunWithApiError error: Failed to bind and run the HTTP server: IO error: path must be shorter than SUN_LEN",
        "RunWithApi(FailedToBindAndRunHttpServer(IOError(Error { kind: InvalidInput, message: \"path must be shorter \
         than SUN_LEN\" })))",
    );
}

fn pci_boot_timer_and_no_seccomp_are_taken(lab: &Lab) {
    let vmm = lab.start_with(&["--enable-pci", "--boot-timer", "--no-seccomp"]);
    vmm.boot();
    assert_eq!(vmm.state(), "Running");
}

fn metadata_is_put_into_the_store(lab: &Lab) {
    lab.write("metadata", r#"{"a":1}"#);
    let vmm = lab.start_with(&["--metadata", "metadata"]);
    vmm.get("/mmds").says(json!({ "a": 1 }));
    vmm.patch("/mmds", json!({ "b": 2 })).done();
    assert!(vmm.output("stdout").contains("T [anon:main] Successfully added metadata to mmds from file\n"));
}

fn metadata_must_be_there(lab: &Lab) {
    panics(
        &run(lab, &["--api-sock", "api.sock", "--metadata", "none"]),
        "Unable to open or read from the mmds content file: Os { code: 2, kind: NotFound, message: \"No such file or \
         directory\" }",
    );
    assert!(!lab.exists("api.sock"));
}

fn metadata_is_json(lab: &Lab) {
    let ended = run(lab, &["--api-sock", "api.sock", "--metadata", "junk"]);
    assert_eq!(ended.signal, Some(6));
    let message =
        "MMDS error: metadata provided not valid json: Error(\"expected value\", line: 1, column: 1)\n";
    assert!(ended.stdout.contains(message), "{}", ended.stdout);
}

fn metadata_has_the_limit_of_the_store(lab: &Lab) {
    lab.write("metadata", r#"{"a":1}"#);
    let ended = run(lab, &["--api-sock", "api.sock", "--metadata", "metadata", "--mmds-size-limit", "3"]);
    assert_eq!(ended.code, Some(1));
    let message = "RunWithApiError error: Failed to build MicroVM: Populating MMDS from file failed: The MMDS patch \
                   request doesn't fit...\n";
    assert!(ended.stdout.contains(message), "{}", ended.stdout);
    assert_eq!(ended.stderr, "Error: RunWithApi(BuildMicroVmError(PopulateMmds(DataStoreLimitExceeded)))\n");
}
