//! What root in a guest can do against others, with a filter of mvm's around its VMM: each denial beside what must pass.
//!
//! The rules alone, packet by packet and one rule left out at a time, are proven in `tests/network`; here real guests send.

use std::{
    fs, io,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    Wrong, ensure, scenario, step,
    world::{World, wait_for},
};

const FRAMES: &str = include_str!("frames.pl");
const METADATA: &str = include_str!("metadata.pl");

/// A first start makes its base before.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long somebody listens, in seconds: until the last frame, if that comes.
const HEAR: &str = "60";
/// Frames that may arrive at nobody, whoever they are meant for.
const DENIED: [&str; 15] = [
    "spoofed-ip",
    "spoofed-gateway",
    "spoofed-mac",
    "arp-claim",
    "arp-theirs",
    "dhcp-offer",
    "router-advertisement",
    "ipv6",
    "vlan",
    "spanning-tree",
    "lldp",
    "unknown-type",
    "multicast",
    "through-the-gateway",
    "redirect",
];

/// A service of the host's, which the host itself reaches.
struct Service {
    port: u16,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Service {
    fn on(address: &str, port: u16) -> Result<Self, Wrong> {
        let said = |error: io::Error| format!("{address}, port {port}: {error}");
        let tcp = TcpListener::bind(("0.0.0.0", port)).map_err(said)?;
        let udp = UdpSocket::bind(("0.0.0.0", port)).map_err(said)?;
        TcpStream::connect((address, port)).and_then(|_| tcp.accept()).map_err(said)?;
        let asks = UdpSocket::bind("0.0.0.0:0").map_err(said)?;
        asks.send_to(b"x", (address, port)).map_err(said)?;
        udp.set_read_timeout(Some(Duration::from_secs(10))).map_err(said)?;
        udp.recv(&mut [0]).map_err(said)?;
        tcp.set_nonblocking(true).and_then(|()| udp.set_nonblocking(true)).map_err(said)?;
        Ok(Self { port, tcp, udp })
    }

    fn was_reached(&self) -> bool {
        self.tcp.accept().is_ok() || self.udp.recv(&mut [0]).is_ok()
    }
}

/// A guest that runs.
struct Running<'a> {
    world: &'a World,
    path: String,
    net: Value,
}

impl<'a> Running<'a> {
    fn start(world: &'a World, pool: &str) -> Result<Self, Wrong> {
        let made = world.ok(&format!("instance create {pool}"))?;
        let path = made["path"].as_str().unwrap_or_default().to_owned();
        let record = world.ok_within(&format!("instance start {path}"), START_LIMIT)?;
        ensure(
            record["vmm"]["filter"] == "strict" && record["vmm"]["lacks"] == serde_json::json!([]),
            || record["vmm"].to_string(),
        )?;
        Ok(Self { world, path, net: record["net"].clone() })
    }

    fn net(&self, field: &str) -> &str {
        self.net[field].as_str().unwrap_or_default()
    }

    fn gateway_mac(&self) -> String {
        // That of its bridge: the guest's with another offset.
        let mac = self.net("mac");
        format!("{}:00:01", &mac[..mac.len().min(11)])
    }

    /// What a command prints that must succeed.
    fn says(&self, argv: &[&str]) -> Result<String, Wrong> {
        let (said, errors, code) = self.world.exec(&self.path, argv)?;
        ensure(code == Some(0), || format!("{} on {}: {code:?} {said}{errors}", argv[0], self.path))?;
        Ok(said.trim_end().to_owned())
    }

    /// Sends frames that are meant for another guest.
    fn sends(&self, frames: &str, to: &Self) -> Result<(), Wrong> {
        let gateway_mac = self.gateway_mac();
        let own = [self.net("mac"), self.net("guest_ip"), &gateway_mac, self.net("gateway_ip")];
        let theirs = [to.net("mac"), to.net("guest_ip")];
        let argv = [&["perl", "-e", FRAMES, "send", frames], &own[..], &theirs[..]].concat();
        self.says(&argv).map(drop)
    }

    fn pings(&self, ip: &str) -> Result<bool, Wrong> {
        let (said, _, code) = self.world.exec(&self.path, &["ping", "-n", "-c", "1", "-W", "3", ip])?;
        ensure(said.contains("1 packets transmitted"), || format!("no ping was sent: {said}"))?;
        Ok(code == Some(0))
    }

    /// Begins to listen. Who is ready has a file.
    fn hears(&self) -> Result<Listening<'_>, Wrong> {
        let line = "rm -f /run/heard; touch /run/hears; perl -e \"$0\" hear \"$1\" >/run/heard.new; mv /run/heard.new /run/heard";
        let running = self.world.begins(&self.path, &["sh", "-c", line, FRAMES, HEAR])?;
        wait_for("it listens", Duration::from_secs(30), || {
            let raw = self.says(&["sh", "-c", "test -e /run/hears && wc -l </proc/net/packet"]).ok()?;
            raw.parse::<u32>().ok().filter(|lines| *lines > 1)
        })?;
        Ok(Listening { by: self, _running: running })
    }
}

/// A guest that listens.
struct Listening<'a> {
    by: &'a Running<'a>,
    _running: crate::world::Typist,
}

impl Listening<'_> {
    /// The names of what it heard, once that is over.
    fn heard(self) -> Result<Vec<String>, Wrong> {
        let heard = wait_for("it heard the last frame", Duration::from_secs(90), || {
            self.by.says(&["cat", "/run/heard"]).ok()
        })?;
        Ok(heard.split(' ').map(str::to_owned).filter(|name| !name.is_empty()).collect())
    }
}

/// Lines that a command of the host prints.
fn lines(program: &str, arguments: &[&str]) -> Result<Vec<String>, Wrong> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn conntrack() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Two of one tenant, two of another.
fn guests(world: &World) -> Result<[Running<'_>; 4], Wrong> {
    step("two tenants, whose VMMs have the strict filter", || {
        let strict = "--mem 256 --data-disk 64 --seccomp strict";
        world.agent_pool("globex/web", 4, "--mem 256 --data-disk 64")?;
        // No more than two at a time: the next one gets what another had.
        world.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24 --offset-range 3-4")?;
        world.ok_within(&format!("pool create acme/web --image debian {strict}"), START_LIMIT).map(drop)
    })?;
    step("two guests of each", || {
        Ok([
            Running::start(world, "acme/web")?,
            Running::start(world, "acme/web")?,
            Running::start(world, "globex/web")?,
            Running::start(world, "globex/web")?,
        ])
    })
}

#[test]
fn root_in_a_guest_reaches_its_neighbours_and_nobody_else() {
    scenario("isolation, from inside", |world| {
        let [a, b, g, h] = guests(world)?;
        step("neighbours reach each other and their gateways", || {
            for (from, to) in [(&a, &b), (&g, &h)] {
                ensure(from.pings(to.net("guest_ip"))?, || {
                    format!("{} does not reach {}", from.path, to.path)
                })?;
                ensure(from.pings(from.net("gateway_ip"))?, || format!("{} has no gateway", from.path))?;
            }
            Ok(())
        })?;
        step("and nobody of the other tenant, nor its gateway", || {
            for ip in [g.net("guest_ip"), h.net("guest_ip"), g.net("gateway_ip")] {
                ensure(!a.pings(ip)?, || format!("{ip} answers"))?;
            }
            Ok(())
        })?;
        step("what it forges arrives neither at its neighbour nor at the other tenant", || {
            let (at_b, at_g) = (b.hears()?, g.hears()?);
            a.sends(&DENIED.join(","), &b)?;
            a.sends(&format!("{},honest", DENIED.join(",")), &g)?;
            a.sends("honest,end", &b)?;
            h.sends("end", &g)?;
            let (at_b, at_g) = (at_b.heard()?, at_g.heard()?);
            println!("    its neighbour heard {at_b:?}, the other tenant {at_g:?}");
            ensure(at_b == ["end", "honest"], || format!("{at_b:?}"))?;
            ensure(at_g == ["end"], || format!("{at_g:?}"))
        })?;
        step("no service of the host answers it", || {
            let gateway = a.net("gateway_ip");
            let services = [22, 53, 111, 2049, 6443, 8080].map(|port| Service::on(gateway, port));
            let services = services.into_iter().collect::<Result<Vec<_>, _>>()?;
            let ports = services.iter().map(|one| one.port.to_string()).collect::<Vec<_>>().join(" ");
            let line = format!(
                "for p in {ports}; do echo x 2>/dev/null >/dev/udp/{gateway}/$p; timeout 2 bash -c \"</dev/tcp/{gateway}/$p\" 2>/dev/null && echo $p; done; true",
            );
            let open = a.says(&["bash", "-c", &line])?;
            ensure(open.is_empty(), || format!("open: {open}"))?;
            // Asked in the same way, what is there answers: its own VMM.
            let own =
                a.says(&["sh", "-c", &line.replace(gateway, "169.254.169.254").replace(&ports, "80")])?;
            ensure(own == "80", || format!("metadata: {own:?}"))?;
            let reached =
                services.iter().filter(|one| one.was_reached()).map(|one| one.port).collect::<Vec<_>>();
            ensure(reached.is_empty(), || format!("the host's listeners were reached: {reached:?}"))
        })?;
        step("floods change no table of the host", || {
            let neighbours = || lines("ip", &["neigh", "show"]);
            let entries = || lines("bridge", &["fdb", "show"]);
            let before = (neighbours()?, entries()?, conntrack());
            a.sends("arp-flood*5000,syn-flood*5000", &b)?;
            let after = (neighbours()?, entries()?, conntrack());
            println!("    conntrack {} and {}", before.2, after.2);
            ensure(before.0 == after.0, || format!("{:?} became {:?}", before.0, after.0))?;
            ensure(before.1 == after.1, || format!("{:?} became {:?}", before.1, after.1))?;
            ensure(after.2 <= before.2 + 10, || format!("conntrack grew from {} to {}", before.2, after.2))?;
            ensure(b.pings(b.net("gateway_ip"))?, || "its neighbour has no gateway any more".to_owned())
        })?;
        step("each reads its own metadata, with a token", || {
            for guest in [&a, &g] {
                let said = guest.says(&["perl", "-e", METADATA])?;
                println!("    {said}");
                let id = guest.path.rsplit('/').next().unwrap_or_default();
                ensure(said.starts_with("401 200 ") && said.contains(id), || said.clone())?;
                ensure(said.contains(guest.net("guest_ip")), || said.clone())?;
            }
            Ok(())
        })?;
        step("vsock leads to the host's agent calls alone", || {
            // What the host offers to this VMM, and to no other.
            let place = world.root().join("run/firecracker").join(a.net("tap_dev")).join("root/v.sock_777");
            let _offered = UnixListener::bind(&place).map_err(|error| error.to_string())?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o777))
                .map_err(|error| error.to_string())?;
            let script = "use Socket; for my $cid (1 .. 8) { for my $port (52, 777, 5252) { \
                socket(my $s, 40, SOCK_STREAM, 0) or die; \
                print \"$cid:$port \" if connect($s, pack('S S L L x4', 40, 0, $port, $cid)); } }";
            let reached = a.says(&["perl", "-e", script])?;
            // Where a guest has a loopback for vsock it reaches its own agent.
            let mut others = reached.split_whitespace().filter(|one| *one != "1:52" && *one != "3:52");
            ensure(others.next() == Some("2:777") && others.next().is_none(), || reached.clone())?;
            let reached = b.says(&["perl", "-e", script])?;
            ensure(!reached.contains(":777"), || reached.clone())
        })?;
        step("who gets the user of one that was destroyed gets nothing of it", || {
            b.says(&["sh", "-c", "echo secret >/data/kept; sync"])?;
            let uid = world.ok(&format!("instance info {}", b.path))?["vmm"]["uid"].clone();
            world.ok(&format!("instance destroy {} --yes --wipe-volumes", b.path))?;
            let of_user = |world: &World| {
                let root = world.root().display().to_string();
                lines("find", &[&root, "-uid", &uid.to_string()])
            };
            let left = of_user(world)?;
            ensure(left.is_empty(), || format!("{left:?} are left"))?;
            let next = Running::start(world, "acme/web")?;
            let record = world.ok(&format!("instance info {}", next.path))?;
            ensure(record["vmm"]["uid"] == uid, || record["vmm"].to_string())?;
            let said =
                next.says(&["sh", "-c", "ls /data | grep -v lost+found; grep -c secret /dev/vdb || true"])?;
            ensure(said == "0", || said.clone())
        })
    });
}
