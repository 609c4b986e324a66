//! Devices that come and go while the VM runs: only with `--enable-pci`.

use serde_json::{Value, json};

use crate::support::{Lab, Vmm};

crate::on_both![
    nothing_is_plugged_without_pci,
    a_drive_comes_and_goes,
    an_interface_comes_and_goes,
    a_pmem_device_comes_and_goes,
    an_id_is_used_once,
    a_root_drive_is_not_plugged,
    a_root_drive_stays,
    what_is_not_there_does_not_go,
    a_drive_that_cannot_be_opened_is_refused,
    an_id_is_checked,
];

fn running(lab: &Lab) -> Vmm {
    let vmm = lab.start_with(&["--enable-pci"]);
    vmm.put("/drives/root", drive("root", true)).done();
    vmm.boot();
    vmm
}

fn drive(id: &str, root: bool) -> Value {
    json!({ "drive_id": id, "is_root_device": root, "path_on_host": "disk.img" })
}

fn ids(vmm: &Vmm, part: &str, field: &str) -> Vec<String> {
    let config = vmm.config(part);
    let devices = config.as_array().expect("a list").iter();
    let mut ids: Vec<String> =
        devices.map(|device| device[field].as_str().unwrap_or_default().to_owned()).collect();
    ids.sort();
    ids
}

fn nothing_is_plugged_without_pci(lab: &Lab) {
    let vmm = lab.start();
    vmm.boot();
    vmm.put("/drives/a", drive("a", false)).fault("PCI is not enabled");
    vmm.put("/pmem/p", json!({ "id": "p", "path_on_host": "disk.img" })).fault("PCI is not enabled");
    vmm.delete("/drives/a").fault("PCI is not enabled");
    vmm.delete("/pmem/p").fault("PCI is not enabled");
}

fn a_drive_comes_and_goes(lab: &Lab) {
    let vmm = running(lab);
    vmm.put("/drives/a", drive("a", false)).done();
    assert_eq!(ids(&vmm, "drives", "drive_id"), ["a", "root"]);
    vmm.patch("/drives/a", json!({ "drive_id": "a", "path_on_host": "junk" })).done();
    vmm.delete("/drives/a").done();
    assert_eq!(ids(&vmm, "drives", "drive_id"), ["root"]);
    vmm.put("/drives/a", drive("a", false)).done();
}

fn an_interface_comes_and_goes(lab: &Lab) {
    if !lab.own_network() {
        return;
    }
    let vmm = running(lab);
    let interface = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
    vmm.put("/network-interfaces/eth0", interface.clone()).done();
    assert_eq!(ids(&vmm, "network-interfaces", "iface_id"), ["eth0"]);
    vmm.delete("/network-interfaces/eth0").done();
    assert!(ids(&vmm, "network-interfaces", "iface_id").is_empty());
    vmm.delete("/network-interfaces/eth0").fault("Device not found");
}

fn a_pmem_device_comes_and_goes(lab: &Lab) {
    let vmm = running(lab);
    let file = std::fs::File::create(lab.path("pmem")).expect("a file");
    file.set_len(2 << 20).expect("a size");
    vmm.put("/pmem/p", json!({ "id": "p", "path_on_host": "pmem" })).done();
    assert_eq!(ids(&vmm, "pmem", "id"), ["p"]);
    vmm.delete("/pmem/p").done();
    assert!(ids(&vmm, "pmem", "id").is_empty());
}

fn an_id_is_used_once(lab: &Lab) {
    let vmm = running(lab);
    vmm.put("/drives/a", drive("a", false)).done();
    vmm.put("/drives/a", drive("a", false)).fault("Device ID in use");
    vmm.put("/drives/root", drive("root", false)).fault("Device ID in use");
}

fn a_root_drive_is_not_plugged(lab: &Lab) {
    running(lab)
        .put("/drives/a", drive("a", true))
        .fault("Drive config error: A root block device already exists!");
}

fn a_root_drive_stays(lab: &Lab) {
    running(lab).delete("/drives/root").fault("Cannot unplug root device");
}

fn what_is_not_there_does_not_go(lab: &Lab) {
    let vmm = running(lab);
    for path in ["/drives/x", "/pmem/x", "/network-interfaces/x"] {
        vmm.delete(path).fault("Device not found");
    }
}

fn a_drive_that_cannot_be_opened_is_refused(lab: &Lab) {
    let body = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": "none" });
    running(lab).put("/drives/a", body).fault(
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the \
         backing file: No such file or directory (os error 2) none",
    );
}

fn an_id_is_checked(lab: &Lab) {
    let vmm = running(lab);
    vmm.delete("/drives").fault("The ID cannot be empty.");
    vmm.delete("/drives/a-b")
        .fault("API Resource IDs can only contain alphanumeric characters and underscores.");
}
