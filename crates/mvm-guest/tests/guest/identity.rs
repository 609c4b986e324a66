//! Who a guest is: each fact is true in the kernel and in the files, and none is before it is said.

use mvm_proto::{
    Answer, Code, Frames, Hello, Request,
    message::{Entropy, Wake, facts},
};

use crate::world::{World, command, disk, identity};

/// A host that means another instance is told so; one that means nobody, as older ones do, is served.
#[test]
fn who_means_another_instance_is_refused() {
    let Some(world) = World::new("") else { return };
    let asked = |meant: Option<&str>, request: &Request| -> Answer {
        let mut frames = Frames::on(world.connect());
        frames.send(&Hello::of("test").to(meant.map(str::to_owned))).unwrap();
        frames.send(request).unwrap();
        let _: Hello = frames.message().unwrap();
        frames.message().unwrap()
    };
    let status = Request::Status {};
    // Nobody is nobody else.
    assert!(matches!(asked(Some("i-0f3a91c2"), &status), Answer::Status(_)));
    assert!(matches!(asked(Some("i-0f3a91c3"), &status), Answer::Status(_)));
    assert_eq!(world.identify(&identity()).failed, None);
    for meant in [None, Some("i-0f3a91c2")] {
        assert!(matches!(asked(meant, &status), Answer::Status(_)), "{meant:?}");
    }
    let put = Request::Put { path: "/run/x".into(), name: "x".into() };
    let requests =
        [status, put, Request::Exec(command(&["touch", "/run/x"])), Request::Shutdown { grace_ms: 0 }];
    for (meant, request) in
        ["i-0f3a91c3", "", "I-0F3A91C2"].iter().flat_map(|id| requests.iter().map(move |it| (id, it)))
    {
        match asked(Some(meant), request) {
            Answer::Refused(refused) => assert_eq!(refused.code, Code::OtherIdentity, "{meant} {request:?}"),
            other => panic!("{meant} {request:?}: {other:?}"),
        }
    }
    assert_eq!(world.shell("ls /run/x 2>/dev/null || echo none"), "none");
}

#[test]
fn nobody_does_anything_before_it_is_somebody() {
    let Some(world) = World::new("") else { return };
    assert_eq!(world.status().instance_id, None);
    for request in [
        Request::Exec(command(&["true"])),
        Request::Get { path: "/etc/passwd".into() },
        Request::Wake(Wake { instance_id: "i".into(), entropy: Entropy([1; 32]), clock_unix_ns: 1 }),
    ] {
        match world.answer(&request) {
            Answer::Refused(refused) => assert_eq!(refused.code, Code::Unidentified),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_fact_is_true_and_read_back() {
    let Some(world) = World::new(
        "mkdir /etc/ssh; echo everybodys >/etc/ssh/ssh_host_rsa_key; ip link set eth0 up
        ip addr add 192.0.2.9/24 dev eth0; ip route add default via 192.0.2.1",
    ) else {
        return;
    };
    let wanted = identity();
    let receipt = world.identify(&wanted);
    assert_eq!(receipt.failed, None);
    let value = |fact: &str| {
        let found = receipt.confirmed.iter().find(|confirmed| confirmed.fact == fact);
        found.unwrap_or_else(|| panic!("no {fact}")).value.clone()
    };
    assert_eq!(receipt.confirmed[0].fact, facts::ENTROPY);
    assert_eq!(value(facts::MAC), "02:fc:00:03:00:05");
    assert_eq!(value(facts::MTU), "1400");
    assert_eq!(value(facts::ADDRESS), "10.240.3.5/24");
    assert_eq!(value(facts::GATEWAY), "10.240.3.1");
    assert_eq!(value(facts::DNS), "10.240.3.1 9.9.9.9");
    assert_eq!(value(facts::HOSTNAME), "i-0f3a91c2");
    assert_eq!(value(facts::MACHINE_ID), wanted.machine_id);
    assert_eq!(value(facts::SSH_KEYS), "2");
    assert_eq!(value(facts::INSTANCE), "i-0f3a91c2");
    assert_eq!(world.status().instance_id.as_deref(), Some("i-0f3a91c2"));

    let link = world.shell("ip -o link show eth0");
    assert!(
        link.contains("02:fc:00:03:00:05") && link.contains("mtu 1400") && link.contains(",UP"),
        "{link}"
    );
    let addresses = world.shell("ip -4 -o addr show eth0");
    assert!(
        addresses.contains("inet 10.240.3.5/24 brd 10.240.3.255") && addresses.lines().count() == 1,
        "{addresses}"
    );
    assert_eq!(world.shell("ip -4 route show default | cut -d' ' -f1-5"), "default via 10.240.3.1 dev eth0");
    assert_eq!(world.shell("hostname; cat /etc/hostname").replace('\n', " "), "i-0f3a91c2 i-0f3a91c2");
    assert!(world.shell("cat /etc/hosts").contains("127.0.1.1 i-0f3a91c2"));
    assert_eq!(world.shell("cat /etc/resolv.conf"), "nameserver 10.240.3.1\nnameserver 9.9.9.9");
    assert_eq!(world.shell("cat /etc/machine-id"), wanted.machine_id);
    assert_eq!(world.shell("cat /root/.ssh/authorized_keys"), wanted.ssh_keys.join("\n"));
    assert_eq!(
        world.shell("cd /etc/ssh; stat -c '%n %a' *").replace('\n', " "),
        "ssh_host_ed25519_key 600 ssh_host_ed25519_key.pub 644"
    );
    assert_eq!(world.shell("stat -c %a /root/.ssh /root/.ssh/authorized_keys").replace('\n', " "), "700 600");
    let key = value(facts::HOST_KEY);
    assert!(key.starts_with("ssh-ed25519 AAAA"), "{key}");
    assert_eq!(world.shell("cat /etc/ssh/ssh_host_ed25519_key.pub"), key);
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_ok() {
        assert_eq!(world.shell("ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key"), key);
    }
}

#[test]
fn the_same_said_twice_changes_nothing_and_another_one_is_refused() {
    let Some(world) = World::new("") else { return };
    let first = world.identify(&identity());
    let again = world.identify(&identity());
    let key = |receipt: &mvm_proto::message::Receipt| {
        receipt.confirmed.iter().find(|fact| fact.fact == facts::HOST_KEY).map(|fact| fact.value.clone())
    };
    assert_eq!((first.failed.as_ref(), again.failed.as_ref()), (None, None));
    assert!(key(&first).is_some() && key(&first) == key(&again));
    let other = mvm_proto::message::Identity { instance_id: "i-other".into(), ..identity() };
    match world.answer(&Request::Identify(Box::new(other))) {
        Answer::Refused(refused) => assert_eq!(refused.code, Code::OtherIdentity),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_guest_has_another_key() {
    let key = |receipt: mvm_proto::message::Receipt| {
        receipt.confirmed.iter().find(|fact| fact.fact == facts::HOST_KEY).map(|fact| fact.value.clone())
    };
    let Some(one) = World::new("") else { return };
    let Some(other) = World::new("") else { return };
    assert_ne!(key(one.identify(&identity())), key(other.identify(&identity())));
}

#[test]
fn what_cannot_be_true_is_said_and_nothing_after_it_is_done() {
    let Some(world) = World::new("") else { return };
    let failed = |change: &dyn Fn(&mut mvm_proto::message::Identity)| {
        let mut wanted = identity();
        change(&mut wanted);
        world.identify(&wanted).failed.unwrap().fact
    };
    assert_eq!(failed(&|identity| identity.net.mac = "02:fc".into()), facts::MAC);
    assert_eq!(failed(&|identity| identity.net.mac = "01:00:5e:00:00:01".into()), facts::MAC);
    assert_eq!(failed(&|identity| identity.net.mtu = 3), facts::MTU);
    assert_eq!(failed(&|identity| identity.net.prefix = 33), facts::ADDRESS);
    assert_eq!(failed(&|identity| identity.hostname = "a b\nc".into()), facts::HOSTNAME);
    assert_eq!(failed(&|identity| identity.machine_id = "../etc".into()), facts::MACHINE_ID);
    assert_eq!(failed(&|identity| identity.ssh_keys = vec!["a\nb".into()]), facts::SSH_KEYS);
    assert_eq!(failed(&|identity| identity.data = Some(disk())), facts::DATA);
    assert_eq!(world.status().instance_id, None);
    // Whoever failed once may still become somebody.
    assert_eq!(world.identify(&identity()).failed, None);
}

#[test]
fn a_gateway_outside_of_its_network_is_reached_all_the_same() {
    let Some(world) = World::new("") else { return };
    let mut wanted = identity();
    (wanted.net.prefix, wanted.net.gateway) = (32, [10, 0, 0, 1].into());
    assert_eq!(world.identify(&wanted).failed, None);
    assert!(world.shell("ip -4 route show default").contains("via 10.0.0.1 dev eth0"));
}

#[test]
fn a_sleeper_is_asked_and_woken() {
    let Some(world) = World::identified("") else { return };
    assert_eq!(world.answer(&Request::SleepPrep { drain_ms: 1000 }), Answer::Ready {});
    assert!(world.status().draining);
    match world.answer(&Request::Exec(command(&["true"]))) {
        Answer::Refused(refused) => assert_eq!(refused.code, Code::Draining),
        other => panic!("{other:?}"),
    }
    let wake = Wake { instance_id: identity().instance_id, entropy: Entropy([2; 32]), clock_unix_ns: 1 };
    match world.answer(&Request::Wake(wake)) {
        Answer::Receipt(receipt) => {
            let names: Vec<&str> = receipt.confirmed.iter().map(|fact| fact.fact.as_str()).collect();
            assert_eq!(names, [facts::ENTROPY, facts::CLOCK, facts::INSTANCE]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.shell("echo awake"), "awake");
}
