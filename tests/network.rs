//! The network, proven with packets: every denial of the reference beside what must pass in the same set-up.

mod support;

mod network {
    pub mod frames;
    pub mod rows;
    pub mod world;
}

use network::{
    rows::ROWS,
    world::{World, has_br_netfilter},
};

/// May this test make network namespaces? Says visibly where not.
fn allowed() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        support::skip("needs root: network namespaces and TAPs");
    }
    root
}

fn all_rows(bridge_nf: bool) {
    let mut world = World::new(bridge_nf);
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
        all_rows(false);
    }
}

#[test]
fn every_row_with_br_netfilter() {
    if !allowed() {
    } else if has_br_netfilter() {
        all_rows(true);
    } else {
        support::skip("no br_netfilter in this kernel");
    }
}
