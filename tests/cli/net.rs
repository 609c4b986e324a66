//! `mvm net …`

use crate::{Terminal, snapshot};

#[test]
fn verify_and_repair_say_what_they_found_and_did() {
    let Some(terminal) = Terminal::with_pool() else { return };
    terminal.sees("instance create acme/web");
    terminal.sees("instance start acme/web/i-0f3a91c2");
    snapshot!(terminal.sees("net verify"), @"
    ok    rules: every chain and set as it should be
    ok    elements: 20 elements for 1 leases
    ok    bridges: 1 bridges as they should be
    ok    uplink: there is no default route: guests reach no outside
    ok    TAPs: 1 TAPs on their bridges
    ok    neighbours: 1 addresses pinned to their MACs
    ");
    snapshot!(terminal.sees_json("net verify"), @r#"
    {
      "checks": [
        {
          "detail": "every chain and set as it should be",
          "name": "rules",
          "ok": true
        },
        {
          "detail": "20 elements for 1 leases",
          "name": "elements",
          "ok": true
        },
        {
          "detail": "1 bridges as they should be",
          "name": "bridges",
          "ok": true
        },
        {
          "detail": "there is no default route: guests reach no outside",
          "name": "uplink",
          "ok": true
        },
        {
          "detail": "1 TAPs on their bridges",
          "name": "TAPs",
          "ok": true
        },
        {
          "detail": "1 addresses pinned to their MACs",
          "name": "neighbours",
          "ok": true
        }
      ],
      "ok": true
    }
    "#);
    snapshot!(terminal.sees("net repair"), @"nothing to repair");
    let down = std::process::Command::new("ip").args(["link", "set", "tn3i3", "down"]).status();
    assert!(down.expect("ip runs").success());
    snapshot!(terminal.sees("net verify"), @"
    ok    rules: every chain and set as it should be
    ok    elements: 20 elements for 1 leases
    ok    bridges: 1 bridges as they should be
    ok    uplink: there is no default route: guests reach no outside
    wrong TAPs: tn3i3 is down        repair: mvm net repair
    ok    neighbours: 1 addresses pinned to their MACs
    [exit 1]
    ");
    snapshot!(terminal.sees("net repair"), @"repaired TAPs: tn3i3 is down");
    snapshot!(terminal.sees_json("net repair"), @r#"
    {
      "failed": [],
      "left": [],
      "ok": true,
      "reclaimed": [],
      "repaired": [],
      "settled": []
    }
    "#);
    snapshot!(terminal.sees("net verify --deep -q").lines().last().unwrap_or_default(), @"15 probes: 4 answered, 11 dropped, as they must");
}
