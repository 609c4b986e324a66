//! Whatever somebody changes is found by verify, named, and put right by repair; what is not mvm's is left alone.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use mvm::net::links::{BRIDGE_SETTINGS, PORT_FLAGS};

use super::{
    guest::{
        At::{Guest, Uplink},
        HOST, INTERNET, LAN, outside, ping, udp,
    },
    leave_one_out::bridge_name,
    tools::{feed, ip, nft, set},
    world::{Kind, Verdict, World},
};

/// One fault: its name, the finding that must tell of it, and how it comes about.
struct Fault {
    name: String,
    finding: &'static str,
    happen: Box<dyn Fn(&mut World)>,
}

fn fault(name: impl Into<String>, finding: &'static str, happen: impl Fn(&mut World) + 'static) -> Fault {
    Fault { name: name.into(), finding, happen: Box::new(happen) }
}

/// A fault of rules or elements, as text for `nft`.
fn rules(name: &str, finding: &'static str, text: &'static str) -> Fault {
    fault(name, finding, move |_| nft(text))
}

/// A fault of links, addresses or routes, as lines for `ip`.
fn links(name: &str, finding: &'static str, lines: &'static str) -> Fault {
    fault(name, finding, move |_| ip(lines))
}

fn faults() -> Vec<Fault> {
    let mut all = vec![
        rules("a chain is empty", "rules", "flush chain inet mvm same\n"),
        rules("a rule before all others", "rules", "insert rule bridge mvm from_port accept\n"),
        rules("a rule after all others", "rules", "add rule inet mvm egress_deny counter accept\n"),
        rules(
            "a hook of somebody else's in a table of mvm's",
            "rules",
            "add chain inet mvm theirs { type filter hook forward priority 5; }\nadd rule inet mvm theirs accept\n",
        ),
        rules(
            "a set of somebody else's in a table of mvm's",
            "rules",
            "add set inet mvm theirs { type ifname; }\n",
        ),
        rules("a hook is gone", "rules", "flush chain arp mvm input\ndelete chain arp mvm input\n"),
        rules("a hook denies all", "rules", "add chain inet mvm forward { policy drop; }\n"),
        rules(
            "a hook is elsewhere",
            "rules",
            "flush chain inet mvm mss\ndelete chain inet mvm mss\n\
            add chain inet mvm mss { type filter hook forward priority 7; }\n",
        ),
        rules(
            "a limit is gone",
            "rules",
            "flush chain bridge mvm from_port_arp\ndelete set bridge mvm arp_over\n\
            add set bridge mvm arp_over { type ifname; }\n",
        ),
        rules("a table is gone", "rules", "delete table bridge mvm\n"),
        rules(
            "all tables are gone",
            "rules",
            "delete table bridge mvm\ndelete table arp mvm\ndelete table inet mvm\n",
        ),
        rules(
            "a lease's element is missing",
            "elements",
            "delete element bridge mvm port_ip { \"tn3i3\" . 02:fc:00:03:00:03 . 10.240.3.3 }\n",
        ),
        rules(
            "a lease has no policy",
            "elements",
            "delete element inet mvm egress { \"br-tenant-3\" . 10.240.3.3 }\n",
        ),
        rules(
            "a lease has another policy",
            "elements",
            "delete element inet mvm egress { \"br-tenant-3\" . 10.240.3.6 }\n\
             add element inet mvm egress { \"br-tenant-3\" . 10.240.3.6 : jump egress_open }\n",
        ),
        rules(
            "a port leads elsewhere",
            "elements",
            "delete element inet mvm published { tcp . 8080 }\n\
             add element inet mvm published { tcp . 8080 : 10.240.4.3 . 80 }\n",
        ),
        rules("a tenant has no limits", "elements", "delete element inet mvm rates { \"br-tenant-3\" }\n"),
        rules(
            "a false identity",
            "elements",
            "add element bridge mvm port_ip { \"tn3i3\" . 02:fc:00:03:00:03 . 10.240.3.4 }\n",
        ),
        rules(
            "a port that nobody published",
            "elements",
            "add element inet mvm published { udp . 9999 : 10.240.3.3 . 9999 }\n",
        ),
        rules(
            "two tenants are one",
            "elements",
            "add element inet mvm same_bridge { \"br-tenant-3\" . \"br-tenant-4\" }\n",
        ),
        rules("a subnet is missing", "elements", "delete element inet mvm subnets { 10.240.4.0/24 }\n"),
        rules("a subnet too many", "elements", "add element inet mvm subnets { 192.0.2.0/28 }\n"),
        rules("less is denied", "elements", "flush set inet mvm not_internet\n"),
        rules("the uplink is not closed", "elements", "flush set inet mvm opened\n"),
        links("the host has another network", "elements", "addr add 203.0.113.1/24 dev dmz0\n"),
        links("a bridge is down", "bridges", "link set br-tenant-3 down\n"),
        links("a bridge is gone", "bridges", "link del br-tenant-3\n"),
        links("a bridge has no address", "bridges", "addr flush dev br-tenant-3\n"),
        links(
            "a bridge has another address",
            "bridges",
            "addr flush dev br-tenant-3\naddr add 10.240.3.9/24 dev br-tenant-3\n",
        ),
        links("a bridge has one more address", "bridges", "addr add 172.16.5.1/24 dev br-tenant-3\n"),
        links(
            "a bridge has another prefix",
            "bridges",
            "addr flush dev br-tenant-3\naddr add 10.240.3.1/25 dev br-tenant-3\n",
        ),
        links("a bridge has another MAC", "bridges", "link set br-tenant-3 address 06:00:00:00:00:77\n"),
        links("a spanning tree", "bridges", "link set br-tenant-3 type bridge stp_state 1\n"),
        links("snooping", "bridges", "link set br-tenant-3 type bridge mcast_snooping 1\n"),
        links(
            "a bridge of nobody's",
            "bridges",
            "link add br-tenant-9 address 02:fc:00:09:00:01 type bridge\nlink set br-tenant-9 alias mvm\n",
        ),
        fault("forwarding went off everywhere", "uplink", |_| {
            set("ipv4/ip_forward", "1");
            set("ipv4/ip_forward", "0");
        }),
        fault("the uplink does not forward", "uplink", |_| set("ipv4/conf/up0/forwarding", "0")),
        links("unknown cluster addresses leave", "uplink", "route del unreachable 10.240.0.0/12\n"),
        links("a TAP is off its bridge", "TAPs", "link set tn3i3 nomaster\n"),
        links("a TAP is on another bridge", "TAPs", "link set tn3i3 master br-tenant-4\n"),
        links("a TAP is down", "TAPs", "link set tn3i3 down\n"),
        links("a TAP does ARP", "TAPs", "link set tn3i3 arp on\n"),
        fault("a TAP does IPv6", "TAPs", |_| set("ipv6/conf/tn3i3/disable_ipv6", "0")),
        fault("a MAC is not pinned", "TAPs", |_| {
            feed("bridge", &["-batch", "-"], "fdb del 02:fc:00:03:00:03 dev tn3i3 master static\n");
        }),
        links("an address is not pinned", "neighbours", "neigh del 10.240.3.3 dev br-tenant-3\n"),
        links(
            "an address is pinned to another MAC",
            "neighbours",
            "neigh replace 10.240.3.3 lladdr 02:fc:00:03:00:04 dev br-tenant-3 nud permanent\n",
        ),
        links(
            "an address of nobody's is pinned",
            "neighbours",
            "neigh add 10.240.3.99 lladdr 02:fc:00:03:00:04 dev br-tenant-3 nud permanent\n",
        ),
    ];
    for setting in BRIDGE_SETTINGS {
        let value = if setting.value == 0 { "1" } else { "0" };
        all.push(fault(format!("{} of a bridge is {value}", setting.name), "bridges", move |_| {
            set(&format!("{}/conf/br-tenant-3/{}", setting.family, setting.name), value);
        }));
    }
    for flag in PORT_FLAGS {
        let value = if flag.value == 0 { "on" } else { "off" };
        all.push(fault(format!("{} of a port is {value}", flag.name), "TAPs", move |_| {
            let line = format!("link set dev tn3i3 {} {value}\n", bridge_name(flag.name));
            feed("bridge", &["-batch", "-"], &line);
        }));
    }
    all
}

/// What works and what does not, in short.
fn sound(world: &mut World) -> Verdict {
    let (a, b, d, g) = (world.guest('a'), world.guest('b'), world.guest('d'), world.guest('g'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    world.packet_arrives(Guest('b'), Guest('a'), &b.to(&a, udp(9)))?;
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    world.packet_arrives(Uplink, Guest('b'), &outside(LAN, world.uplink_mac, HOST, udp(8053)))?;
    world.answered(Guest('g'), &g.packet(g.gateway(), ping()))?;
    world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).claiming(g.ip()))?;
    world.packet_nowhere(Guest('a'), &a.packet(g.ip(), udp(9)))?;
    world.refused(Guest('d'), &d.packet(INTERNET, udp(443)))
}

/// Every fault, one after the other, in one network.
pub fn found_and_repaired(part: usize, of: usize) {
    let mut world = World::new(Kind::default());
    let desired = world.desired();
    let clean = world.net.verify(&desired).expect("it looks");
    assert!(clean.iter().all(|finding| finding.ok), "{clean:#?}");
    for Fault { name, finding, happen } in faults().into_iter().skip(part).step_by(of) {
        happen(&mut world);
        // What repair did is what verify found.
        let done = world.net.repair(&desired).unwrap_or_else(|error| {
            panic!("{name}: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string))
        });
        println!("{name}: {done:?}");
        let told = done.iter().any(|line| line.starts_with(&format!("{finding}: ")));
        assert!(told, "{name}: not found: {done:#?}");
        let left = world.net.verify(&desired).expect("it looks");
        assert!(left.iter().all(|finding| finding.ok), "{name}: repaired, and still {left:#?}");
        world.forget();
        if let Err(why) = sound(&mut world) {
            panic!("{name}: repaired, and {why}");
        }
    }
    let done = world.net.repair(&desired).expect("it looks");
    assert!(done.is_empty(), "there was nothing to repair: {done:?}");
}

/// While everything is loaded again and again, nothing passes that must not.
pub fn nothing_leaks_while_repaired() {
    for kind in Kind::all() {
        let mut world = World::new(kind);
        let (a, b, g) = (world.guest('a'), world.guest('b'), world.guest('g'));
        let marker = world.marker();
        let honest = world.marker();
        let smtp = super::frames::Body::Tcp { from: 999, to: 25, flags: super::frames::SYN, mss: None };
        let frames = [
            a.to(&b, udp(9)).claiming([10, 240, 3, 99].into()).frame(marker),
            a.packet(g.ip(), udp(9)).frame(marker),
            a.packet(g.gateway(), ping()).frame(marker),
            a.packet(b.ip(), udp(9)).frame(marker),
            a.packet([10, 9, 9, 9].into(), udp(9)).frame(marker),
            a.packet(INTERNET, smtp).frame(marker),
            a.packet(HOST, udp(super::guest::UNOFFERED)).frame(marker),
            a.to(&b, udp(9)).tagged(0x8100, 5).frame(marker),
            a.packet(HOST, udp(super::guest::UNOFFERED)).via([1, 0x80, 0xc2, 0, 0, 14]).frame(marker),
            a.to(&b, udp(9)).frame(honest),
        ];
        let outside = [
            outside(LAN, world.uplink_mac, a.ip(), udp(9)).frame(marker),
            outside(LAN, world.uplink_mac, a.gateway(), udp(super::guest::DNS)).frame(marker),
            outside(a.ip(), world.uplink_mac, HOST, udp(super::guest::DNS)).frame(marker),
        ];
        let wires =
            [(world.clone_of(Guest('a')), frames.to_vec()), (world.clone_of(Uplink), outside.to_vec())];
        let desired = world.desired();
        let over = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let senders: Vec<_> = wires
                .into_iter()
                .map(|(wire, frames)| {
                    let over = &over;
                    scope.spawn(move || {
                        let mut sent = 0;
                        let latest = Instant::now() + Duration::from_secs(20);
                        while !over.load(Ordering::Relaxed) && Instant::now() < latest {
                            for frame in &frames {
                                super::world::write(&wire, frame);
                                sent += 1;
                            }
                        }
                        sent
                    })
                })
                .collect();
            for round in 0..6 {
                // What is loaded anew each time, as text and as elements.
                nft(
                    "add rule inet mvm egress_deny counter\nadd element inet mvm subnets { 10.240.9.0/24 }\n",
                );
                let done = world.net.repair(&desired).expect("it repairs");
                assert!(!done.is_empty(), "round {round}: nothing was repaired");
                world.collect_only(&[marker, honest]);
            }
            over.store(true, Ordering::Relaxed);
            senders.into_iter().map(|sender| sender.join().expect("it sends")).sum::<usize>()
        });
        world.settle(Guest('b')).expect("an honest packet after all of them");
        // A refusal comes back to its sender; that is no leak.
        let leaked: Vec<_> = world
            .seen_with(&marker)
            .into_iter()
            .filter(|(at, frame)| !(*at == Guest('a') && frame.icmp() == Some((3, 13))))
            .filter(|(at, _)| *at != super::guest::At::Stray)
            .collect();
        println!("{kind:?}: {sent} frames during six repairs");
        assert!(sent > 1000, "only {sent} frames were sent");
        assert!(!world.seen_with(&honest).is_empty(), "not even the honest ones arrived");
        let first = leaked.first().map(|(at, frame)| format!("{at:?} {:02x?}", frame.0));
        assert!(leaked.is_empty(), "{} of {sent} leaked, the first: {first:?}", leaked.len());
    }
}
