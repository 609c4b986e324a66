//! Every rule and setting is needed: without it some row fails. What is marked as a belt has a reason, and two belts that
//! stand in for each other do not both go unnoticed.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mvm::net::{
    links::{BRIDGE_SETTINGS, PORT_FLAGS},
    rules,
};

use super::{
    guest::{FEW, SLOW},
    rows::{ROWS, Row},
    tools::{ip, nft, set},
    world::{Kind, World},
};

/// Something that is taken away from a network that is as it should be.
enum Without {
    /// A rule, as the line that adds it.
    Rule(String),
    /// A setting of every tenant's bridge.
    Setting(&'static str, &'static str, u32),
    /// A flag of every port, as `bridge` calls it, and what it becomes.
    Flag(&'static str, bool),
    /// Anything else, as what does it.
    Other(Change),
    /// Two of these.
    Both(Box<Without>, Box<Without>),
}

/// Something done to a network.
type Change = fn(&World);

/// One case: its name and what is taken away.
type Case = (String, Without);

fn chain(rule: &str) -> Option<&str> {
    // add rule FAMILY mvm CHAIN …
    rule.strip_prefix("add rule ").map(|rest| {
        let end = rest.match_indices(' ').nth(2).map_or(rest.len(), |(at, _)| at);
        &rest[..end]
    })
}

fn all_rules(world: &World) -> Vec<String> {
    let text = rules::base() + &rules::extras(&world.desired());
    text.lines().filter(|line| line.starts_with("add rule ")).map(str::to_owned).collect()
}

fn is_belt(rule: &str) -> bool {
    rule.contains(rules::BELT)
}

/// The same rules limit every tenant; only the small limits are reached in a test.
fn can_be_filled(rule: &str) -> bool {
    let Some((_, set)) = rule.split_once("_over_") else { return true };
    let number: String = set.chars().take_while(char::is_ascii_digit).collect();
    number.is_empty() || number == FEW.to_string() || number == SLOW.to_string()
}

impl Without {
    fn apply(&self, world: &World) {
        match self {
            Without::Rule(left_out) => {
                let chain_name = chain(left_out).expect("a rule");
                let mut text = format!("flush chain {chain_name}\n");
                for rule in all_rules(world) {
                    if chain(&rule) == Some(chain_name) && rule != *left_out {
                        text.push_str(&rule);
                        text.push('\n');
                    }
                }
                nft(&text);
            }
            Without::Setting(family, name, value) => {
                for bridge in world.bridges() {
                    set(&format!("{family}/conf/{bridge}/{name}"), &value.to_string());
                }
            }
            Without::Flag(flag, on) => {
                let value = if *on { "on" } else { "off" };
                let lines: String =
                    world.taps().iter().map(|tap| format!("link set dev {tap} {flag} {value}\n")).collect();
                super::tools::feed("bridge", &["-batch", "-"], &lines);
            }
            Without::Other(what) => what(world),
            Without::Both(one, other) => {
                one.apply(world);
                other.apply(world);
            }
        }
    }
}

/// A network from which this is taken away.
fn lacking(without: &Without, kind: Kind) -> World {
    let mut world = World::new(kind);
    world.patience = Duration::from_millis(150);
    without.apply(&world);
    world
}

/// The first row that notices; `None` where none does.
fn noticed_by(without: &Without) -> Option<&'static str> {
    // With br_netfilter bridged frames pass more hooks; on a router more gets as far as the last of them.
    Kind::all().into_iter().find_map(|kind| {
        let mut world = lacking(without, kind);
        ROWS.iter().find_map(|row| {
            world.forget();
            let fails = (row.run)(&mut world).is_err() && fails_alone(row, without, kind);
            fails.then_some(row.name)
        })
    })
}

/// Does a row fail where no other row has been, either? One that fails only behind others met what they left or used up.
/// In the same network it could not be asked again: what it failed for, an entry in a table perhaps, is there by now.
fn fails_alone(row: &Row, without: &Without, kind: Kind) -> bool {
    // A world takes its thread into a network of its own, and this one is still in use.
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| (row.run)(&mut lacking(without, kind)).is_err());
        alone.join().expect("the row ends")
    })
}

/// Takes each away from a network of its own, some at once, and returns those that no row notices.
fn unnoticed(cases: &[Case]) -> Vec<&str> {
    let next = AtomicUsize::new(0);
    let quiet = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((name, without)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = noticed_by(without);
                    println!("{:24} notices  {name}", row.unwrap_or("NOTHING"));
                    if row.is_none() {
                        quiet.lock().expect("nobody panicked").push(name.as_str());
                    }
                }
            });
        }
    });
    quiet.into_inner().expect("nobody panicked")
}

/// Every rule that is not a belt.
pub fn rules_are_needed() {
    let world = std::thread::spawn(|| all_rules(&World::new(Kind::default()))).join().expect("a world");
    let cases: Vec<Case> = world
        .into_iter()
        .filter(|rule| !is_belt(rule) && can_be_filled(rule))
        .map(|rule| (rule.clone(), Without::Rule(rule)))
        .collect();
    assert!(cases.len() > 50, "there are more rules than {}", cases.len());
    let quiet = unnoticed(&cases);
    assert!(quiet.is_empty(), "no row notices that these are missing: {quiet:#?}");
}

/// The names of port flags as `bridge` takes them.
pub fn bridge_name(flag: &str) -> &'static str {
    match flag {
        "learning" => "learning",
        "unicast flood" => "flood",
        "multicast flood" => "mcast_flood",
        "broadcast flood" => "bcast_flood",
        "hairpin" => "hairpin",
        "guard" => "guard",
        "root block" => "root_block",
        other => panic!("what does `bridge` call {other}?"),
    }
}

/// Every setting of bridges and ports that is not a belt, and what else mvm makes beside rules.
pub fn settings_are_needed() {
    let mut cases: Vec<Case> = Vec::new();
    for setting in BRIDGE_SETTINGS.iter().filter(|setting| setting.belt.is_none()) {
        let value = if setting.value == 0 { 1 } else { 0 };
        cases.push((setting.name.into(), Without::Setting(setting.family, setting.name, value)));
    }
    for flag in PORT_FLAGS.iter().filter(|flag| flag.belt.is_none()) {
        cases.push((flag.name.into(), Without::Flag(bridge_name(flag.name), flag.value == 0)));
    }
    let others: [(&str, Change); 5] = [
        ("the pinned MACs", |world| {
            let lines = |tap: String| format!("fdb del {} dev {tap} master static\n", world.mac_behind(&tap));
            super::tools::feed(
                "bridge",
                &["-batch", "-"],
                &world.taps().into_iter().map(lines).collect::<String>(),
            );
        }),
        ("the pinned addresses", |world| {
            let lines = |bridge: String| format!("neigh flush dev {bridge} nud permanent\n");
            ip(&world.bridges().into_iter().map(lines).collect::<String>());
        }),
        ("the route of last resort", |_| ip("route del unreachable 10.240.0.0/12\n")),
        ("the uplink's forwarding", |_| set("ipv4/conf/up0/forwarding", "0")),
        ("the closed uplink", |_| nft("flush set inet mvm opened\n")),
    ];
    cases.extend(others.into_iter().map(|(name, what)| (name.into(), Without::Other(what))));
    let quiet = unnoticed(&cases);
    assert!(quiet.is_empty(), "no row notices that these are missing: {quiet:#?}");
}

fn rule_with(part: &str) -> Without {
    let rule = rules::base().lines().find(|line| line.contains(part)).map(str::to_owned);
    Without::Rule(rule.unwrap_or_else(|| panic!("no rule has {part}")))
}

/// Belts have reasons; where two stand in for each other, one of them must be there.
pub fn belts_have_reasons() {
    for line in rules::base().lines().filter(|line| line.contains("belt")) {
        let reason = line.split_once(rules::BELT).map(|(_, reason)| reason.trim()).unwrap_or_default();
        assert!(reason.len() > 10, "a belt without a reason: {line}");
    }
    let both = |one, other| Without::Both(Box::new(one), Box::new(other));
    let arp_on = Without::Other(|world| {
        ip(&world.taps().iter().map(|tap| format!("link set {tap} arp on\n")).collect::<String>());
    });
    let cases = [
        ("ARP on TAPs".to_owned(), both(rule_with("arp mvm input iifname"), arp_on)),
        (
            "broadcasts to one address".to_owned(),
            both(
                rule_with("to_host ct state != new drop"),
                Without::Setting("ipv4", "drop_unicast_in_l2_multicast", 0),
            ),
        ),
    ];
    let quiet = unnoticed(&cases);
    assert!(quiet.is_empty(), "no row notices that both are missing: {quiet:#?}");
}
