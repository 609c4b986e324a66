//! What a tenant's guest notices of another tenant's that floods everything it has: CPU, disk, network, console, ARP,
//! connections, vsock. In the lab, whose machine has two CPUs.

use std::{
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use mvm::{
    infra::config::Roots,
    vm::instance::{config::Instance, guest::Guest},
};
use mvm_proto::{Request, message::Exec};

use super::{Figure, figure, guests::finish_exec, ms, percentile, root::Mvm};

/// How long a guest of the lab may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// How often each is asked for: enough for a p90.
const SAMPLES: u32 = 60;
/// The floods are under way by then.
const WARM_UP: Duration = Duration::from_secs(3);
/// What is flooded, and how.
const FLOODS: [(&str, &str); 7] = [
    ("CPU", "while :; do :; done"),
    ("disk", "while :; do dd if=/dev/zero of=/data/flood bs=1M count=64 oflag=direct 2>/dev/null; done"),
    ("network", "ping -f -s 1400 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null"),
    ("console", "yes >/dev/ttyS0"),
    (
        "ARP",
        "perl -e 'use Socket; socket($s, 17, SOCK_RAW, 1544); open $i, \"/sys/class/net/eth0/ifindex\"; \
        $to = pack(\"S n i x12\", 17, 1544, <$i>); $f = pack(\"H*\", \"ff\" x 6 . \"02fc00030003\" . \"0806\") . \"\\0\" x 46; \
        send($s, $f, 0, $to) while 1'",
    ),
    (
        "connections",
        "perl -e 'use Socket; while (1) { socket($s, PF_INET, SOCK_STREAM | 2048, 0); \
        connect($s, pack_sockaddr_in(1 + $n++ % 60000, inet_aton(\"198.51.100.1\"))) }'",
    ),
    (
        "vsock",
        "perl -e 'use Socket; while (1) { socket($s, 40, SOCK_STREAM, 0); \
        connect($s, pack(\"S S L L x4\", 40, 0, 1 + $n++ % 60000, 2)) }'",
    ),
];

/// Another tenant's exec and ping, in peace and beside all floods at once.
pub fn measure(mvm: &Mvm, roots: &Roots) -> Result<Vec<Figure>> {
    mvm.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24")?;
    mvm.ok("pool create globex/web --image debian --mem 256 --data-disk 256")?;
    // As an operator sets them for somebody whom nobody knows: what is shared has no limits by itself.
    mvm.ok("tenant update acme --disk-mbps 50 --disk-iops 2000 --net-mbps 100 --net-pps 10000")?;
    let (noisy, quiet) = (mvm.create("acme/web")?, mvm.create("globex/web")?);
    for path in [&noisy, &quiet] {
        super::guests::again(|| mvm.ok(&format!("instance start {path}")))?;
    }
    let instance = Instance::load(roots, &quiet)?;
    let peace = all(mvm, roots, &instance)?;
    let mut floods: Vec<Flood> = FLOODS
        .iter()
        .map(|(_, line)| {
            let mut command = mvm.command(&format!("instance exec -n {noisy} -- sh -c"));
            Ok(Flood(command.arg(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
        })
        .collect::<Result<_>>()?;
    sleep(WARM_UP);
    let noise = all(mvm, roots, &instance)?;
    for ((name, _), flood) in FLOODS.iter().zip(&mut floods) {
        if flood.0.try_wait()?.is_some() {
            let info = mvm.json(&format!("instance info {noisy}"))?;
            bail!("the flood of {name} was over before it was measured: {}", info["last_exit"]);
        }
    }
    drop(floods);
    mvm.ok("tenant destroy globex --yes --wipe-volumes")?;
    mvm.ok(&format!("instance destroy {noisy} --yes --wipe-volumes"))?;
    let names: Vec<&str> = FLOODS.iter().map(|(name, _)| *name).collect();
    println!("flooded: {}", names.join(", "));
    let mut figures = Vec::new();
    for (what, (peace, noise)) in ASKED.into_iter().zip(peace.iter().zip(&noise)) {
        for (name, part) in [("p50", 0.5), ("p90", 0.9)] {
            let what =
                format!("{what} beside another tenant's guest, with quotas, that floods all it has, {name}");
            let [peace, noise] = [peace, noise].map(|times| percentile(times, part));
            let value = format!("{noise:.1} ms against {peace:.1} ms in peace: {:.2}×", noise / peace);
            figures.push(figure(what, value, "≤ 2×", noise / peace <= 2.0));
        }
    }
    Ok(figures)
}

/// What is asked of the other one's guest.
const ASKED: [&str; 3] = ["exec of true", "a ping of its agent", "its ping of its gateway"];

/// How long each takes, in ms.
fn all(mvm: &Mvm, roots: &Roots, instance: &Instance) -> Result<[Vec<f64>; 3]> {
    let (mut execs, mut pings) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let start = Instant::now();
        Guest::of(roots, instance)?.status()?;
        pings.push(ms(start.elapsed()));
        let start = Instant::now();
        let mut guest = Guest::of(roots, instance)?;
        guest.ask(&Request::Exec(Exec { argv: vec!["true".to_owned()], ..Exec::default() }), LIMIT)?;
        finish_exec(&mut guest.into_frames())?;
        execs.push(ms(start.elapsed()));
    }
    println!("asked {SAMPLES} times each: {}", ASKED.join(", "));
    Ok([execs, pings, packets(mvm, instance)?])
}

/// How long packets of its guest take to its gateway and back, as it says, in ms.
fn packets(mvm: &Mvm, instance: &Instance) -> Result<Vec<f64>> {
    let (path, gateway) = (instance.path(), instance.net.gateway_ip);
    let ping = format!("instance exec {path} -- ping -n -i 0.2 -W 5 -c {SAMPLES} {gateway}");
    let said = String::from_utf8(mvm.command(&ping).output()?.stdout)?;
    let time = |line: &str| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok();
    let times: Vec<f64> = said.lines().filter_map(time).collect();
    // One that is not answered would be the slowest of all.
    ensure!(
        times.len() >= SAMPLES as usize * 19 / 20,
        "of {SAMPLES} pings {} were answered: {said}",
        times.len()
    );
    Ok(times)
}

/// A flood, which ends where this goes.
struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
