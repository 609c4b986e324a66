//! `--config-file`: a VM from one file, with an API and without.

use serde_json::{Value, json};

use crate::support::{Lab, POST_BOOT};

crate::on_both![
    a_vm_starts_from_a_file,
    a_vm_starts_without_an_api,
    everything_can_be_in_a_file,
    an_unknown_part_is_passed_over,
    a_file_must_be_there,
    a_file_is_json,
    drives_and_boot_source_are_needed,
    an_unknown_field_of_a_part_is_refused,
    a_part_that_is_refused_ends_the_vmm,
    a_kernel_that_is_none_ends_the_vmm,
    a_failure_without_an_api_says_so,
    a_log_file_is_set,
    metadata_comes_with_a_configuration_of_the_service,
    a_template_may_be_in_a_file_of_its_own,
    a_start_after_a_file_is_too_late,
];

fn write(lab: &Lab, more: Value) {
    let mut config = json!({
        "boot-source": { "kernel_image_path": "kernel" },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
    });
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    lab.write("config", config.to_string());
}

const API: &[&str] = &["--id", "anon", "--api-sock", "api.sock", "--config-file", "config"];
const NO_API: &[&str] = &["--id", "anon", "--no-api", "--config-file", "config"];

/// The VMM ends with 1 because of this, and says so on stderr too.
#[track_caller]
fn fails(lab: &Lab, why: &str, debug: &str) {
    let ended = lab.spawn(API).end();
    assert_eq!(ended.code, Some(1));
    let log = format!("T [anon:main] RunWithApiError error: Failed to build MicroVM from Json: {why}\n");
    assert!(ended.stdout.contains(&log), "{}", ended.stdout);
    assert_eq!(ended.stderr, format!("Error: RunWithApi(BuildFromJson({debug}))\n"));
}

fn a_vm_starts_from_a_file(lab: &Lab) {
    write(lab, json!({}));
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.state(), "Running");
    assert_eq!(vmm.config("machine-config")["mem_size_mib"], 32);
    // behind bytes of the console, which goes the same way
    let line = "[anon:main] Successfully started microvm that was configured from one single json\n";
    vmm.wait_until("it says so", || vmm.output("stdout").contains(line));
}

fn a_vm_starts_without_an_api(lab: &Lab) {
    write(lab, json!({ "logger": { "log_path": "log" } }));
    let vmm = lab.spawn(NO_API);
    vmm.wait_until("a guest prints", || vmm.output("stdout").contains("guest"));
    assert!(!lab.exists("api.sock"));
}

fn everything_can_be_in_a_file(lab: &Lab) {
    let drive = json!({ "drive_id": "root", "is_root_device": true, "path_on_host": "disk.img" });
    write(
        lab,
        json!({
            "drives": [drive],
            "vsock": { "guest_cid": 3, "uds_path": "v.sock" },
            "balloon": { "amount_mib": 1, "deflate_on_oom": true },
            "entropy": {},
            "memory-hotplug": { "total_size_mib": 128 },
            "cpu-config": {},
            "metrics": { "metrics_path": "metrics" },
        }),
    );
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    let shown = vmm.get("/vm/config").value();
    assert_eq!(shown["drives"][0]["drive_id"], "root");
    assert_eq!(shown["vsock"], json!({ "guest_cid": 3, "uds_path": "v.sock" }));
    assert_eq!((&shown["balloon"]["amount_mib"], &shown["metrics"]), (&json!(1), &Value::Null));
    assert_eq!(shown["memory-hotplug"]["total_size_mib"], 128);
    assert!(lab.exists("v.sock") && lab.exists("metrics"));
}

fn an_unknown_part_is_passed_over(lab: &Lab) {
    write(lab, json!({ "nope": 1 }));
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.state(), "Running");
}

fn a_file_must_be_there(lab: &Lab) {
    let ended = lab.spawn(API).end();
    assert_eq!(ended.signal, Some(6));
    assert!(
        ended.stdout.ends_with(
            "Unable to open or read from the configuration file: Os { code: 2, kind: NotFound, message: \"No such file \
             or directory\" }\n"
        ),
        "{}",
        ended.stdout
    );
}

fn a_file_is_json(lab: &Lab) {
    lab.write("config", "junk");
    fails(
        lab,
        "Configuration for VMM from one single json failed: Invalid JSON: expected value at line 1 column 1",
        "ParseFromJson(InvalidJson(Error(\"expected value\", line: 1, column: 1)))",
    );
}

fn drives_and_boot_source_are_needed(lab: &Lab) {
    lab.write("config", r#"{"drives":[]}"#);
    fails(
        lab,
        "Configuration for VMM from one single json failed: Invalid JSON: missing field `boot-source` at line 1 column 13",
        "ParseFromJson(InvalidJson(Error(\"missing field `boot-source`\", line: 1, column: 13)))",
    );
}

fn an_unknown_field_of_a_part_is_refused(lab: &Lab) {
    lab.write("config", r#"{"entropy":{"nope":1}}"#);
    fails(
        lab,
        "Configuration for VMM from one single json failed: Invalid JSON: unknown field `nope`, expected `rate_limiter` \
         at line 1 column 18",
        "ParseFromJson(InvalidJson(Error(\"unknown field `nope`, expected `rate_limiter`\", line: 1, column: 18)))",
    );
}

fn a_part_that_is_refused_ends_the_vmm(lab: &Lab) {
    write(lab, json!({ "machine-config": { "vcpu_count": 0, "mem_size_mib": 32 } }));
    fails(
        lab,
        "Configuration for VMM from one single json failed: VM config error: The number of vCPUs must be greater than \
         0, less than 32 and must be 1 or an even number if SMT is enabled.",
        "ParseFromJson(MachineConfig(InvalidVcpuCount))",
    );
    lab.remove("api.sock");
    let drive = json!({ "drive_id": "root", "is_root_device": true, "path_on_host": "none" });
    write(lab, json!({ "drives": [drive] }));
    fails(
        lab,
        "Configuration for VMM from one single json failed: Block device error: Unable to create the virtio block \
         device: Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2) none",
        "ParseFromJson(BlockDevice(CreateBlockDevice(VirtioBackend(BackingFile(Os { code: 2, kind: NotFound, message: \
         \"No such file or directory\" }, \"none\")))))",
    );
}

fn a_kernel_that_is_none_ends_the_vmm(lab: &Lab) {
    write(lab, json!({ "boot-source": { "kernel_image_path": "junk" } }));
    fails(
        lab,
        "Could not Start MicroVM from one single json: System configuration error: Cannot load kernel due to invalid \
         memory configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: \
         Invalid Elf magic number",
        "StartMicroVM(ConfigureSystem(KernelLoader(Elf(InvalidElfMagicNumber))))",
    );
}

fn a_failure_without_an_api_says_so(lab: &Lab) {
    write(lab, json!({ "vsock": { "guest_cid": 3, "uds_path": "junk" } }));
    let ended = lab.spawn(NO_API).end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stdout,
        "T [anon:main] Running Firecracker v1.16.1\n\
         T [anon:main] RunWithoutApiError error: Failed to build MicroVM from Json: Configuration for VMM from one \
         single json failed: Vsock device error: Cannot create backend for vsock device: Error binding to the \
         host-side Unix socket: Address in use (os error 98)\n\
         T [anon:main] Firecracker exiting with error. exit_code=1\n"
    );
    assert_eq!(
        ended.stderr,
        "Error: RunWithoutApiError(BuildMicroVMFromJson(ParseFromJson(VsockDevice(CreateVsockBackend(UnixBind(Os { \
         code: 98, kind: AddrInUse, message: \"Address in use\" }))))))\n"
    );
}

fn a_log_file_is_set(lab: &Lab) {
    write(lab, json!({ "logger": { "log_path": "log", "show_level": true } }));
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    vmm.wait_until("a line is logged", || vmm.output("log").contains("[anon:main:INFO] "));
}

fn metadata_comes_with_a_configuration_of_the_service(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    lab.write("metadata", r#"{"a":1}"#);
    write(
        lab,
        json!({
            "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "tap0" }],
            "mmds-config": { "version": "V2", "network_interfaces": ["eth0"] },
        }),
    );
    let vmm = lab.spawn(&[API, &["--metadata", "metadata"]].concat());
    vmm.wait_for_api("api.sock");
    vmm.get("/mmds").says(json!({ "a": 1 }));
}

fn a_template_may_be_in_a_file_of_its_own(lab: &Lab) {
    lab.write("template", "{}");
    write(lab, json!({ "cpu-config": "template" }));
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.state(), "Running");
    vmm.kill();
    lab.remove("api.sock");
    write(lab, json!({ "cpu-config": "none" }));
    fails(
        lab,
        "Configuration for VMM from one single json failed: File operation error: No such file or directory (os error \
         2)",
        "ParseFromJson(File(Os { code: 2, kind: NotFound, message: \"No such file or directory\" }))",
    );
}

fn a_start_after_a_file_is_too_late(lab: &Lab) {
    write(lab, json!({}));
    let vmm = lab.spawn(API);
    vmm.wait_for_api("api.sock");
    assert_eq!(vmm.state(), "Running");
    vmm.instance_start().fault(POST_BOOT);
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).fault(POST_BOOT);
}
