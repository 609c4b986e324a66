//! `/run/secrets`: there when the workload starts, its user's alone, changed at once, and said to who has to hear of it.

use mvm_proto::{
    Answer, Code, Kind, Request,
    message::{Confirmed, Exec, Exited, Receipt},
    secrets::{MAX_SIZE, SecretFile, SecretSet, Tell, confirmation},
};
use serde_json::json;

use crate::world::{SALT, World, eventually, identity, shell, workload};

type Given<'a> = &'a [(&'a str, &'a [u8])];

/// What the receipt of these says, which must be whole: the fact and its value.
#[track_caller]
fn given(world: &World, secrets: Given, tell: Tell) -> Vec<(String, String)> {
    match world.give(secrets, tell) {
        Answer::Receipt(Receipt { confirmed, failed: None }) => {
            confirmed.into_iter().map(|Confirmed { fact, value, .. }| (fact, value)).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn shown(secrets: Given) -> (String, String) {
    ("secrets".into(), confirmation(&SALT, secrets.iter().copied()))
}

fn told(value: &str) -> (String, String) {
    ("told".into(), value.into())
}

fn list(world: &World) -> String {
    world.shell("ls /run/secrets").replace('\n', " ")
}

#[test]
fn the_workload_finds_them_and_they_are_its_users_alone() {
    let script = "cat /run/secrets/DB /run/secrets/tls.key; sleep 1000";
    let Some(mut world) = World::new(&workload(script, json!({ "user": "ann" }))) else { return };
    let bytes: Vec<u8> = (0..=255).collect();
    let secrets: Given = &[("DB", b"pass"), ("tls.key", b"word\n"), ("x", &bytes)];
    assert_eq!(given(&world, secrets, Tell::Signal(9)), [shown(secrets), told("nobody")]);
    assert_eq!(world.identify(&identity()).failed, None);
    assert!(world.reads_until("password").starts_with("password"));
    let mounts = world.shell("grep ' /run/secrets ' /proc/mounts");
    assert!(mounts.starts_with("mvm-secrets /run/secrets tmpfs ro,nosuid,nodev,noexec,"), "{mounts}");
    assert_eq!(world.shell("grep -c mvm-secrets /proc/mounts"), "1");
    assert_eq!(
        world.shell("stat -L -c '%a %u:%g' /run/secrets /run/secrets/DB").lines().collect::<Vec<_>>(),
        ["700 1000:1000", "400 1000:1000"]
    );
    for (user, line) in
        [("", "echo >/run/secrets/DB"), ("", "rm /run/secrets/DB"), ("4242", "cat /run/secrets/DB")]
    {
        let (_, errors, exited) = world.run(Exec { user: Some(user.to_owned()), ..shell(line) });
        assert!(exited != Exited::Code(0), "{line} {errors}");
    }
    assert_eq!(world.shell("wc -c </run/secrets/x"), "256");
}

#[test]
fn a_new_set_is_there_at_once_and_the_workload_hears_of_it() {
    let script = "trap 'echo heard $(cat /run/secrets/A)' HUP; echo up; while :; do sleep 0.02; done";
    let Some(mut world) = World::identified(&workload(script, json!({}))) else { return };
    world.reads_until("up");
    let hup = || Tell::Signal(1);
    assert_eq!(given(&world, &[("A", b"1"), ("B", b"1")], hup())[1], told("signal 1"));
    world.reads_until("heard 1");
    let reader = "exec 3</run/secrets/A; touch /run/open; while [ ! -e /run/go ]; do sleep 0.02; done; cat - /run/secrets/A <&3";
    let reader = world.start(shell(reader));
    eventually("it has it open", || (world.shell("ls /run").contains("open")).then_some(()));
    let new: Given = &[("A", b"2"), ("C", b"2")];
    assert_eq!(given(&world, new, hup()), [shown(new), told("signal 1")]);
    world.reads_until("heard 2");
    world.shell("touch /run/go");
    assert_eq!(reader.finish().0, "12", "who has it open keeps it");
    assert_eq!(list(&world), "A C");
    // The same again is nothing new.
    assert_eq!(given(&world, new, hup()), [shown(new)]);
    assert_eq!(given(&world, &[], Tell::Nobody), [shown(&[])]);
    assert_eq!(list(&world), "");
}

/// Whoever follows `..data` while sets change finds one of them, whole.
#[test]
fn nobody_sees_a_mix() {
    let Some(world) = World::identified("") else { return };
    given(&world, &[("A", b"0"), ("B", b"0")], Tell::Nobody);
    let script = "while [ ! -e /run/go ]; do cd -P /run/secrets/..data && a=$(cat A 2>&1) b=$(cat B 2>&1); \
                  case \"$a$b\" in *No*|00|11) ;; *) echo \"$a $b\";; esac; done; echo end";
    let reader = world.start(shell(script));
    for round in 0..50 {
        let content: &[u8] = if round % 2 == 0 { b"1" } else { b"0" };
        given(&world, &[("A", content), ("B", content)], Tell::Nobody);
    }
    world.shell("touch /run/go");
    assert_eq!(reader.finish().0, "end\n");
}

#[test]
fn a_program_is_run_and_one_that_fails_is_said() {
    let setup = "printf '#!/bin/sh\\nid -u; cat /run/secrets/A; exit 3\\n' >/etc/hook; chmod 755 /etc/hook\n";
    let setup = format!("{setup}{}", workload("sleep 1000", json!({ "user": "ann" })));
    let Some(mut world) = World::identified(&setup) else { return };
    assert_eq!(
        given(&world, &[("A", b"x")], Tell::Exec("/bin/true".into()))[1],
        told("/bin/true ended well")
    );
    let Answer::Receipt(receipt) = world.give(&[("A", b"why\n")], Tell::Exec("/etc/hook".into())) else {
        panic!()
    };
    assert_eq!(receipt.confirmed.len(), 1, "{receipt:?}");
    assert_eq!(receipt.failed.map(|failure| failure.why).as_deref(), Some("/etc/hook ended with code 3"));
    world.reads_until("1000");
    world.reads_until("why");
    let Answer::Receipt(receipt) = world.give(&[], Tell::Exec("/no/such".into())) else { panic!() };
    assert!(receipt.failed.is_some_and(|failure| failure.why.contains("/no/such")));
    assert_eq!(list(&world), "");
}

#[test]
fn what_is_no_set_changes_nothing() {
    let Some(world) = World::identified("") else { return };
    let good: Given = &[("A", b"1")];
    given(&world, good, Tell::Nobody);
    let large = vec![0; MAX_SIZE + 1];
    for bad in [&[("../etc/x", &b"1"[..])][..], &[("A", b"1"), ("A", b"2")], &[("A", &large)]] {
        let Answer::Refused(refused) = world.give(bad, Tell::Nobody) else { panic!("{:?}", bad[0].0) };
        assert_eq!(refused.code, Code::Failed);
    }
    // A host that sends something else.
    for content in [&b"22"[..], b"4444"] {
        let files = vec![SecretFile { name: "A".into(), size: 3 }];
        let mut frames = world.ask(&Request::Secrets(SecretSet { salt: SALT, files, tell: Tell::Nobody }));
        assert_eq!(frames.message::<Answer>().unwrap(), Answer::Ready {});
        // It may have closed the connection by then.
        let _ = frames.data_uncopied(Kind::Data, content);
        assert!(frames.message::<Answer>().is_err());
    }
    assert_eq!(world.shell("cat /run/secrets/A"), "1");
    // As much as there may be, again and again: two sets have room beside each other.
    let full = vec![7; MAX_SIZE];
    let names: Vec<String> = (0..16).map(|number| format!("s{number}")).collect();
    let all: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), full.as_slice())).collect();
    for _ in 0..3 {
        assert_eq!(given(&world, &all, Tell::Nobody), [shown(&all)]);
    }
}
