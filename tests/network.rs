//! The network, proven with packets: every denial of the reference beside what must pass in the same set-up.

mod support;

mod network {
    pub mod commands;
    pub mod faults;
    pub mod frames;
    pub mod guest;
    pub mod leave_one_out;
    pub mod rows;
    pub mod tools;
    pub mod verdicts;
    pub mod world;
}

use network::{
    rows::ROWS,
    tools::has_br_netfilter,
    world::{Kind, World},
};

/// May this test make network namespaces? Says visibly where not.
fn allowed() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        support::skip("needs root: network namespaces and TAPs");
    }
    root
}

fn all_rows(kind: Kind) {
    let mut world = World::new(kind);
    let mut wrong = Vec::new();
    for row in ROWS {
        let start = std::time::Instant::now();
        world.forget();
        let verdict = (row.run)(&mut world);
        println!("{:32} {:6.1} ms  {verdict:?}", row.name, start.elapsed().as_secs_f64() * 1000.0);
        wrong.extend(verdict.err().map(|why| format!("{}: {why}", row.name)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_row_without_br_netfilter() {
    if allowed() {
        all_rows(Kind::default());
    }
}

#[test]
fn every_row_with_br_netfilter() {
    if !allowed() {
    } else if has_br_netfilter() {
        all_rows(Kind { bridge_nf: true, ..Kind::default() });
    } else {
        support::skip("no br_netfilter in this kernel");
    }
}

#[test]
fn every_row_on_a_router() {
    if allowed() {
        all_rows(Kind { router: true, ..Kind::default() });
    }
}

#[test]
fn every_rule_is_needed() {
    if allowed() {
        network::leave_one_out::rules_are_needed();
    }
}

#[test]
fn every_setting_is_needed() {
    if allowed() {
        network::leave_one_out::settings_are_needed();
    }
}

#[test]
fn belts_have_reasons() {
    if allowed() {
        network::leave_one_out::belts_have_reasons();
    }
}

#[test]
fn every_second_fault_is_found_and_repaired() {
    if allowed() {
        network::faults::found_and_repaired(0, 2);
    }
}

#[test]
fn every_other_fault_is_found_and_repaired() {
    if allowed() {
        network::faults::found_and_repaired(1, 2);
    }
}

#[test]
fn nothing_leaks_while_repaired() {
    if allowed() {
        network::faults::nothing_leaks_while_repaired();
    }
}

#[test]
fn probes_disturb_nobody() {
    network::commands::probes_disturb_nobody();
}

#[test]
fn probes_find_what_lets_frames_pass_or_keeps_them() {
    network::commands::probes_find_what_lets_frames_pass_or_keeps_them();
}

#[test]
fn probes_take_no_address_of_an_instance() {
    network::commands::probes_take_no_address_of_an_instance();
}

#[test]
fn a_report_is_signed() {
    network::commands::a_report_is_signed();
}

#[test]
fn a_killed_probe_is_swept() {
    network::commands::a_killed_probe_is_swept();
}

#[test]
fn an_orphan_is_removed_and_a_stranger_is_not() {
    network::commands::an_orphan_is_removed_and_a_stranger_is_not();
}

#[test]
fn strangers_are_left_alone() {
    network::commands::strangers_are_left_alone();
}

#[test]
fn a_strangers_table_is_left_alone() {
    network::commands::a_strangers_table_is_left_alone();
}

/// The page about networking names every row.
#[test]
fn every_row_is_documented() {
    let page = include_str!("../docs/networking.md");
    let missing: Vec<&str> =
        ROWS.iter().map(|row| row.name).filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
