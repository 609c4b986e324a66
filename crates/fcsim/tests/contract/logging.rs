//! `/logger`, `/metrics` and what is written there.

use serde_json::{Value, json};

use crate::support::Lab;

crate::on_both![
    requests_are_logged,
    a_log_goes_to_a_file,
    an_existing_log_is_written_over_from_its_beginning,
    a_log_that_cannot_be_opened_is_refused,
    levels_are_shown,
    a_level_hides_what_is_below,
    levels_have_names_in_any_case,
    a_logger_takes_no_other_field,
    the_content_of_the_store_is_not_logged,
    deprecation_is_logged,
    bad_requests_are_logged,
    the_command_line_sets_the_log,
    metrics_are_set_once,
    metrics_that_cannot_be_opened_are_refused,
    metrics_need_a_path,
    metrics_let_other_fields_through,
    a_flush_writes_a_line,
    the_command_line_sets_metrics,
];

fn requests_are_logged(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })).done();
    vmm.get("/version").value();
    let log = vmm.output("stdout");
    assert!(log.starts_with(
        "T [anon:main] Running Firecracker v1.16.1\nT [anon:main] Listening on API socket (\"api.sock\").\n\
         T [anon:fc_api] API server started.\n"
    ));
    let lines = "T [anon:fc_api] The API server received a Put request on \"/machine-config\" with body \
                 \"{\\\"mem_size_mib\\\":64,\\\"vcpu_count\\\":1}\".\n\
                 T [anon:fc_api] The request was executed successfully. Status code: 204 No Content.\n\
                 T [anon:fc_api] The API server received a Get request on \"/version\".\n\
                 T [anon:fc_api] The request was executed successfully. Status code: 200 OK.\n";
    assert!(log.ends_with(lines), "{log}");
}

fn a_log_goes_to_a_file(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/logger", json!({ "log_path": "log" })).done();
    vmm.get("/version").value();
    assert_eq!(
        vmm.output("log"),
        "T [anon:fc_api] The request was executed successfully. Status code: 204 No Content.\n\
         T [anon:fc_api] The API server received a Get request on \"/version\".\n\
         T [anon:fc_api] The request was executed successfully. Status code: 200 OK.\n"
    );
    assert!(!vmm.output("stdout").contains("/version"));
}

fn an_existing_log_is_written_over_from_its_beginning(lab: &Lab) {
    lab.write("log", [b'#'; 4000]);
    let vmm = lab.start();
    vmm.put("/logger", json!({ "log_path": "log" })).done();
    vmm.get("/version").value();
    let log = lab.read("log");
    assert_eq!((log.len(), log[0] == b'#', log[3999]), (4000, false, b'#'));
}

fn a_log_that_cannot_be_opened_is_refused(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/logger", json!({ "log_path": "none/log" }))
        .fault("Logger error: Failed to open target file: No such file or directory (os error 2)");
    vmm.put("/logger", json!({ "log_path": "." }))
        .fault("Logger error: Failed to open target file: Is a directory (os error 21)");
}

fn levels_are_shown(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/logger", json!({ "log_path": "log", "show_level": true })).done();
    vmm.get("/nope");
    let log = vmm.output("log");
    assert!(
        log.contains("T [anon:fc_api:INFO] The API server received a Get request on \"/nope\".\n"),
        "{log}"
    );
    assert!(log.contains("T [anon:fc_api:ERROR] InvalidPathMethod(\"nope\", Get)\n"), "{log}");
}

fn a_level_hides_what_is_below(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/logger", json!({ "log_path": "log", "level": "Error" })).done();
    vmm.get("/nope");
    assert_eq!(vmm.output("log"), "T [anon:fc_api] InvalidPathMethod(\"nope\", Get)\n");
    vmm.put("/logger", json!({ "level": "Off" })).done();
    vmm.get("/nope");
    assert_eq!(vmm.output("log").lines().count(), 1);
}

fn levels_have_names_in_any_case(lab: &Lab) {
    let vmm = lab.start();
    for level in ["Off", "error", "WARN", "Warning", "info", "Debug", "trace"] {
        vmm.put("/logger", json!({ "level": level })).done();
    }
    vmm.put("/logger", json!({ "level": "loud" })).bad_body("Invalid LevelFilter at line 1 column 16");
}

fn a_logger_takes_no_other_field(lab: &Lab) {
    lab.start().put("/logger", json!({ "path": "log" })).bad_body(
        "unknown field `path`, expected one of `log_path`, `level`, `show_level`, `show_log_origin`, `module` at line 1 \
         column 7",
    );
}

fn the_content_of_the_store_is_not_logged(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/mmds", json!({ "password": "hidden" })).done();
    vmm.put("/cpu-config", json!({})).done();
    let log = vmm.output("stdout");
    assert!(log.contains("received a Put request on \"/mmds\".\n") && !log.contains("hidden"), "{log}");
    assert!(log.contains("To view the CPU template received by the API, configure log-level to DEBUG.\n"));
}

fn deprecation_is_logged(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/vsock", json!({ "vsock_id": "v", "guest_cid": 3, "uds_path": "v.sock" })).done();
    assert!(vmm.output("stdout").ends_with("T [anon:fc_api] PUT /vsock: vsock_id field is deprecated.\n"));
}

fn bad_requests_are_logged(lab: &Lab) {
    let vmm = lab.start();
    vmm.put_text("/drives/d", "bad");
    vmm.put("/drives/a-b", json!({}));
    vmm.put("/drives", json!({}));
    vmm.send("PUT", "/drives/d", None);
    let log = vmm.output("stdout");
    for line in [
        "SerdeJson(Error(\"expected value\", line: 1, column: 1))",
        "InvalidID",
        "EmptyID",
        "Generic(BadRequest, \"Empty PUT request.\")",
    ] {
        assert!(log.contains(&format!("T [anon:fc_api] {line}\n")), "{line} in {log}");
    }
}

fn the_command_line_sets_the_log(lab: &Lab) {
    let vmm = lab.start_with(&["--log-path", "log", "--level", "Info", "--show-level"]);
    vmm.get("/version").value();
    assert!(vmm.output("log").starts_with("T [anon:main:INFO] Running Firecracker v1.16.1\n"));
    assert_eq!(vmm.output("stdout"), "");
}

fn metrics_are_set_once(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/metrics", json!({ "metrics_path": "metrics" })).done();
    assert!(lab.exists("metrics"));
    vmm.put("/metrics", json!({ "metrics_path": "other" })).fault(
        "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not \
         allowed.",
    );
}

fn metrics_that_cannot_be_opened_are_refused(lab: &Lab) {
    lab.start().put("/metrics", json!({ "metrics_path": "none/metrics" })).fault(
        "Metrics error: Cannot initialize the metrics system due to bad user input: No such file or directory (os \
         error 2)",
    );
}

fn metrics_need_a_path(lab: &Lab) {
    lab.start().put("/metrics", json!({})).bad_body("missing field `metrics_path` at line 1 column 2");
}

fn metrics_let_other_fields_through(lab: &Lab) {
    lab.start().put("/metrics", json!({ "metrics_path": "metrics", "other": 1 })).done();
}

fn a_flush_writes_a_line(lab: &Lab) {
    let vmm = lab.start();
    vmm.put("/metrics", json!({ "metrics_path": "metrics" })).done();
    vmm.boot();
    for lines in 1..=2 {
        vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).done();
        let text = vmm.output("metrics");
        assert!(text.lines().count() >= lines, "{text}");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert!(line["utc_timestamp_ms"].is_u64(), "{line}");
        }
    }
}

fn the_command_line_sets_metrics(lab: &Lab) {
    let vmm = lab.start_with(&["--metrics-path", "metrics"]);
    assert!(lab.exists("metrics"));
    vmm.put("/metrics", json!({ "metrics_path": "other" })).fault(
        "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not \
         allowed.",
    );
}
