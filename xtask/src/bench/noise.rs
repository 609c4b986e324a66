//! What a tenant's guest notices of another tenant's that floods everything it has: CPU, disk, network, console, ARP,
//! connections, vsock. In the lab, whose machine has two CPUs.

use std::{
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mvm::{
    infra::config::Roots,
    vm::instance::{config::Instance, guest::Guest},
};
use mvm_proto::{Request, message::Exec};

use super::{Figure, figure, guests::finish_exec, ms, percentile, root::Mvm};

/// How long a guest of the lab may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
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
pub fn measure(mvm: &Mvm, roots: &Roots, pairs: u32) -> Result<Vec<Figure>> {
    mvm.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24")?;
    mvm.ok("pool create globex/web --image debian --mem 256 --data-disk 256")?;
    // As an operator sets them for somebody whom nobody knows: what is shared has no limits by itself.
    mvm.ok("tenant update acme --disk-mbps 50 --disk-iops 2000 --net-mbps 100 --net-pps 10000")?;
    let (noisy, quiet) = (mvm.create("acme/web")?, mvm.create("globex/web")?);
    for path in [&noisy, &quiet] {
        super::guests::again(|| mvm.ok(&format!("instance start {path}")))?;
    }
    let instance = Instance::load(roots, &quiet)?;
    let count = pairs.max(20);
    let peace = both(roots, &instance, count)?;
    let mut floods: Vec<Flood> = FLOODS
        .iter()
        .map(|(_, line)| {
            let mut command = mvm.command(&format!("instance exec -n {noisy} -- sh -c"));
            Ok(Flood(command.arg(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
        })
        .collect::<Result<_>>()?;
    sleep(WARM_UP);
    let noise = both(roots, &instance, count)?;
    for ((name, _), flood) in FLOODS.iter().zip(&mut floods) {
        ensure!(flood.0.try_wait()?.is_none(), "the flood of {name} was over before it was measured");
    }
    drop(floods);
    mvm.ok("tenant destroy globex --yes --wipe-volumes")?;
    mvm.ok(&format!("instance destroy {noisy} --yes --wipe-volumes"))?;
    let names: Vec<&str> = FLOODS.iter().map(|(name, _)| *name).collect();
    println!("flooded: {}", names.join(", "));
    Ok([("exec of true", peace.0, noise.0), ("a ping of its agent", peace.1, noise.1)]
        .map(|(what, peace, noise)| {
            let what =
                format!("{what} beside another tenant's guest, with quotas, that floods all it has, p50");
            let value = format!("{noise:.0} ms against {peace:.0} ms in peace: {:.2}×", noise / peace);
            figure(what, value, "≤ 2×", noise / peace <= 2.0)
        })
        .into())
}

/// The time of an exec, and of a ping, p50 in ms.
fn both(roots: &Roots, instance: &Instance, count: u32) -> Result<(f64, f64)> {
    let (mut execs, mut pings) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = Instant::now();
        Guest::of(roots, instance)?.status()?;
        pings.push(ms(start.elapsed()));
        let start = Instant::now();
        let mut guest = Guest::of(roots, instance)?;
        guest.ask(&Request::Exec(Exec { argv: vec!["true".to_owned()], ..Exec::default() }), LIMIT)?;
        finish_exec(&mut guest.into_frames())?;
        execs.push(ms(start.elapsed()));
    }
    println!("p90: exec {:.0} ms, ping {:.0} ms", percentile(&execs, 0.9), percentile(&pings, 0.9));
    Ok((percentile(&execs, 0.5), percentile(&pings, 0.5)))
}

/// A flood, which ends where this goes.
struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
