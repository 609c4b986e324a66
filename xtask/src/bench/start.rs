//! `instance start` against bare Firecracker on the same files: spawn, configure, start; both to the first console byte.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use mvm::vm::naming::InstancePath;

use super::{
    Figure,
    bare::{self, Growth, Tap, Vmm},
    figure, ms, percentile,
    root::Mvm,
    run_quietly,
};

/// Pairs of starts: mvm's time to the first byte and to its exit, the bare one's to the first byte.
pub fn measure(program: &Path, pairs: u32) -> Result<Vec<Figure>> {
    let Some(firecracker) = bare::firecracker("instance start") else { return Ok(Vec::new()) };
    let mvm = Mvm::new(program)?;
    mvm.acme()?;
    mvm.ok("pool create acme/web --mem 128 --data-disk 64 --insecure")?;
    mvm.import("acme/web")?;
    let path = mvm.create("acme/web")?;
    let bare = Bare::new(&mvm, &firecracker)?;
    // Each once before it counts: files in the page cache, the binary installed.
    mvm_start(&mvm, &path)?;
    bare.start()?;
    let (mut first, mut whole, mut bared) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (to_first, to_exit) = mvm_start(&mvm, &path)?;
        first.push(ms(to_first));
        whole.push(ms(to_exit));
        bared.push(ms(bare.start()?));
    }
    let mut figures = Vec::new();
    for (name, share) in [("p50", 0.5), ("p90", 0.9)] {
        let (ours, theirs) = (percentile(&first, share), percentile(&bared, share));
        let ratio = ours / theirs;
        let ok = ratio <= 1.3 || ours - theirs <= 12.0;
        let value = format!("{ours:.1} ms against {theirs:.1} ms: {ratio:.2}×, +{:.1} ms", ours - theirs);
        figures.push(figure(
            format!("start to first byte, {name}, {pairs} pairs"),
            value,
            "≤ 1.3× or ≤ +12 ms",
            ok,
        ));
    }
    let exit = format!("{:.1} ms", percentile(&whole, 0.5));
    figures.push(figure("start, the command's time to exit, p50", exit, "given", true));
    Ok(figures)
}

fn mvm_start(mvm: &Mvm, path: &InstancePath) -> Result<(Duration, Duration)> {
    let (timed, _) = mvm.timed(&format!("instance start {path}"), path)?;
    mvm.ok(&format!("instance stop {path} --force"))?;
    Ok((timed.first, timed.exit))
}

/// Firecracker with nothing around it, on copies of the same files and a TAP that is there already.
struct Bare {
    firecracker: PathBuf,
    folder: PathBuf,
    _tap: Tap,
}

impl Bare {
    fn new(mvm: &Mvm, firecracker: &Path) -> Result<Self> {
        let folder = mvm.root.path().join("bare");
        std::fs::create_dir(&folder)?;
        let (kernel, rootfs) = mvm.artifacts()?;
        std::fs::copy(kernel, folder.join("vmlinux"))?;
        std::fs::copy(&rootfs, folder.join("rootfs.ext4"))?;
        run_quietly(Command::new("mke2fs").args(["-q", "-F"]).arg(folder.join("data.ext4")).arg("64M"))?;
        Ok(Self { firecracker: firecracker.to_path_buf(), folder, _tap: Tap::new("bare0")? })
    }

    fn start(&self) -> Result<Duration> {
        let console = self.folder.join("console.log");
        std::fs::write(&console, "")?;
        let first_byte = Growth::of(&console)?;
        let start = Instant::now();
        let mut vmm = Vmm::spawn(&self.firecracker, &self.folder)?;
        for (path, body) in CALLS {
            vmm.call("PUT", path, body)?;
        }
        first_byte.beyond(0)?;
        Ok(start.elapsed())
    }
}

const CALLS: [(&str, &str); 9] = [
    ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":true}"#),
    (
        "/boot-source",
        r#"{"kernel_image_path":"vmlinux","boot_args":"console=ttyS0 reboot=k panic=-1 quiet"}"#,
    ),
    ("/serial", r#"{"serial_out_path":"console.log"}"#),
    (
        "/drives/rootfs",
        r#"{"drive_id":"rootfs","path_on_host":"rootfs.ext4","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}"#,
    ),
    (
        "/drives/data",
        r#"{"drive_id":"data","path_on_host":"data.ext4","is_root_device":false,"is_read_only":false,"cache_type":"Writeback"}"#,
    ),
    (
        "/network-interfaces/eth0",
        r#"{"iface_id":"eth0","host_dev_name":"bare0","guest_mac":"02:fc:00:03:00:99"}"#,
    ),
    ("/vsock", r#"{"guest_cid":3,"uds_path":"v.sock"}"#),
    ("/entropy", "{}"),
    ("/actions", r#"{"action_type":"InstanceStart"}"#),
];
