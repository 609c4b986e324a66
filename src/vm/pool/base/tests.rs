//! The store of bases on roots of their own, with files made by hand: no VMM runs.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt, time::Duration};

use serde_json::{Value, json};

use super::{key::tests::ingredients, *};
use crate::{
    infra::config::Environment,
    vm::{
        instance::{
            config::{Intent, Operation, file, folder},
            fc_config,
            lifecycle::Operator,
            net::identity,
            state::State,
        },
        naming::{InstanceId, InstancePath, Offset},
        room::NodeConfig,
        snapshot::PAGE,
        tenant::{config::Tenant, quota::Quotas},
    },
    vmm::wire::Call,
};

/// The memory of the bases here, in MiB.
const MIB: u64 = 1;

struct World {
    roots: Roots,
    pool: PoolPath,
    bases: Bases,
    _dir: tempfile::TempDir,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
    let pool = make_pool(&roots, "web");
    World { bases: Bases::of(&roots, &pool), roots, pool, _dir: dir }
}

/// A pool of the tenant acme, with no revision.
fn make_pool(roots: &Roots, name: &str) -> PoolPath {
    let tenant: Tenant = serde_json::from_value(json!({
        "schema_version": 1, "tenant_id": "acme", "created_at": "2026-01-02T03:04:05Z", "quotas": {},
        "pinned": false, "retention_days": 30,
        "network": { "tenant_net_id": 3, "ipv4_subnet": "10.240.3.0/24", "gateway_ip": "10.240.3.1" },
    }))
    .unwrap();
    let pool: Pool = serde_json::from_value(json!({
        "schema_version": 1, "tenant_id": "acme", "pool_id": name, "created_at": "2026-01-02T03:04:05Z",
        "profile": "minimal", "vmm": "sim", "agent": "none", "insecure": false, "egress": "internet",
        "instance_resources": { "vcpus": 1, "mem_mib": 128, "data_disk_mib": 8 },
        "desired_counts": { "running": 0 }, "runtime_policy": {},
    }))
    .unwrap();
    NodeConfig::load(roots).unwrap();
    store::make_folder(&pool::config::folder(roots, &pool.path())).unwrap();
    tenant.save(roots).unwrap();
    pool.save(roots).unwrap();
    pool.path()
}

/// Gives the pool a revision with this command line.
fn make_revision(world: &World, cmdline: &str) {
    let part = |file: &str| json!({ "file": file, "size_bytes": 7, "sha256": "aa".repeat(32) });
    let revision = format!("{:0>64x}", cmdline.len());
    let manifest = json!({
        "schema_version": 1, "revision": revision, "created_at": "2026-01-02T03:04:05Z", "source": "import",
        "arch": "x86_64", "cmdline": cmdline, "kernel": part("vmlinux"), "rootfs": part("rootfs.ext4"),
    });
    let artifacts = Artifacts::of(&world.roots, &world.pool);
    let revision = revision.parse().unwrap();
    store::make_folder(&artifacts.revision(&revision)).unwrap();
    store::write(&artifacts.revision(&revision).join("manifest.json"), &manifest).unwrap();
    artifacts.lead_to(Some(&revision)).unwrap();
}

/// An instance with its record.
fn make_instance(world: &World, number: u32, base: &BaseKey, status: State, pending: bool) -> InstancePath {
    let (tenant, pool) = load_pool(&world.roots, &world.pool).unwrap();
    let path = InstancePath {
        tenant: tenant.tenant_id.clone(),
        pool: pool.pool_id.clone(),
        instance: InstanceId::from_bits(number),
    };
    let net = identity(&tenant, Offset::FIRST_INSTANCE, Vec::new());
    let mut instance = Instance::new(&path, net, &pool, world.roots.now());
    instance.base_key = Some(base.clone());
    instance.status = status;
    let intent = Intent { operation: Operation::Start, since: world.roots.now(), pid: 1 };
    instance.pending = pending.then_some(intent);
    store::make_folder(&folder(&world.roots, &path)).unwrap();
    instance.save(&world.roots).unwrap();
    path
}

/// What the base number `n` is made of.
fn of_number(n: u32) -> Ingredients {
    Ingredients { guest_protocol: n, ..ingredients(MIB) }
}

/// A draft with files as a VMM would write them: some pages of data, the rest a hole.
fn draft(world: &World, ingredients: Ingredients) -> Draft {
    let draft = begin(&world.roots, &world.pool, ingredients).unwrap();
    let mut memory = vec![0x5a; 3 * PAGE as usize];
    memory.extend(vec![0; PAGE as usize]);
    memory.extend(vec![0xa5; PAGE as usize]);
    fs::write(draft.folder().join(MEM), memory).unwrap();
    File::options().write(true).open(draft.folder().join(MEM)).unwrap().set_len(MIB << 20).unwrap();
    fs::write(draft.folder().join(VMSTATE), "registers").unwrap();
    draft
}

fn put(world: &World, n: u32) -> Base {
    let (base, new) = draft(world, of_number(n)).put(&world.roots).unwrap();
    assert!(new);
    base
}

fn content(folder: &Path) -> Vec<String> {
    store::names(folder, |_| true).unwrap()
}

#[test]
fn what_was_put_is_got_and_the_same_again_is_well() {
    let world = world();
    let base = put(&world, 0);
    assert_eq!(base.key, of_number(0).key());
    assert_eq!(world.bases.get(&base.key).unwrap().as_ref(), Some(&base));
    assert!(world.bases.scrub(&base.key).unwrap());
    assert_eq!(world.bases.all().unwrap(), std::slice::from_ref(&base.key));
    assert_eq!(content(world.bases.folder()), [base.key.to_string()]);
    let place = world.bases.place(&base.key);
    assert_eq!(content(&place), [MEM, META, SUMS, VMSTATE]);
    for name in content(&place) {
        assert_eq!(fs::metadata(place.join(&name)).unwrap().mode() & 0o777, 0o444, "{name}");
    }
    // Another boot of the same guest, with another memory.
    let again = draft(&world, of_number(0));
    fs::write(again.folder().join(VMSTATE), "other registers").unwrap();
    assert_eq!(again.put(&world.roots).unwrap(), (base.clone(), false));
    assert_eq!(content(world.bases.folder()), [base.key.to_string()]);
    assert_eq!(fs::read(place.join(VMSTATE)).unwrap(), b"registers");
    let other = of_number(1).key();
    assert_eq!(world.bases.get(&other).unwrap(), None);
    assert!(!world.bases.scrub(&other).unwrap());
}

#[test]
fn what_is_not_put_leaves_nothing_and_what_was_killed_is_swept() {
    let world = world();
    drop(draft(&world, of_number(0)));
    assert!(content(world.bases.folder()).is_empty());
    // As one looks whose process was killed when all but the name was done: no process has such a number.
    let killed = draft(&world, of_number(0));
    killed.finish(&world.roots).unwrap();
    let left = world.bases.folder().join(format!(".new-{}.0.4194305", of_number(0).key()));
    fs::rename(killed.folder(), &left).unwrap();
    drop(killed);
    // And one whose process was killed while it removed a base.
    let gone = world.bases.folder().join(format!(".gone-{}.4194305", of_number(1).key()));
    fs::create_dir(&gone).unwrap();
    let alive = draft(&world, of_number(0));
    assert!(!left.exists() && !gone.exists(), "the next draft sweeps");
    assert!(world.bases.all().unwrap().is_empty());
    assert_eq!(world.bases.get(&of_number(0).key()).unwrap(), None);
    assert_eq!(store::sweep(world.bases.folder()).unwrap(), 0, "who lives is still at it");
    assert!(alive.put(&world.roots).unwrap().1);
}

#[test]
fn a_draft_that_lacks_something_becomes_no_base() {
    let world = world();
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 4] = [
        ("no memory", |folder| fs::remove_file(folder.join(MEM)).unwrap()),
        ("no state", |folder| fs::remove_file(folder.join(VMSTATE)).unwrap()),
        ("short memory", |folder| cut(&folder.join(MEM))),
        ("long memory", |folder| fs::write(folder.join(MEM), vec![1; (MIB << 20) as usize + 1]).unwrap()),
    ];
    for (what, spoil) in cases {
        let draft = draft(&world, of_number(0));
        spoil(draft.folder());
        assert!(draft.put(&world.roots).is_err(), "{what}");
        assert!(content(world.bases.folder()).is_empty(), "{what}");
    }
    let elsewhere = Ingredients { cpu_model: "Z80".into(), ..of_number(0) };
    let error = draft(&world, elsewhere).put(&world.roots).unwrap_err();
    assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
    assert!(content(world.bases.folder()).is_empty());
}

fn writable(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn cut(path: &Path) {
    let file = writable(path);
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 7).unwrap();
    file.write_all_at(&[byte[0] ^ 16], 7).unwrap();
    // The clock of files is a coarse one: within its tick a write would not show.
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
}

fn edit(place: &Path, change: impl FnOnce(&mut Value)) {
    let path = place.join(META);
    let mut meta: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut meta);
    drop(writable(&path));
    fs::write(&path, meta.to_string()).unwrap();
}

/// The kind of an error, which is what callers and scripts see of it.
fn kind(error: &SnapshotError) -> &'static str {
    match error {
        SnapshotError::Damaged { .. } | SnapshotError::Store(StoreError::Damaged { .. }) => "damaged",
        SnapshotError::Foreign { .. } => "foreign",
        SnapshotError::OtherCpu { .. } => "other CPU",
        SnapshotError::Store(StoreError::Newer { .. }) => "newer",
        _ => "something else",
    }
}

#[test]
fn a_base_that_is_damaged_is_never_returned() {
    // What is done to it, and what get and scrub say then; `well` where they return it.
    type Spoil = fn(&World, &Path);
    let cases: [(&str, Spoil, [&str; 2]); 18] = [
        ("nothing", |_, _| (), ["well"; 2]),
        ("state cut", |_, place| cut(&place.join(VMSTATE)), ["damaged"; 2]),
        ("state flipped", |_, place| flip(&place.join(VMSTATE)), ["damaged"; 2]),
        ("state gone", |_, place| fs::remove_file(place.join(VMSTATE)).unwrap(), ["damaged"; 2]),
        ("memory cut", |_, place| cut(&place.join(MEM)), ["damaged"; 2]),
        ("memory flipped", |_, place| flip(&place.join(MEM)), ["damaged"; 2]),
        ("memory gone", |_, place| fs::remove_file(place.join(MEM)).unwrap(), ["damaged"; 2]),
        (
            "memory touched",
            |_, place| writable(&place.join(MEM)).set_modified(std::time::UNIX_EPOCH).unwrap(),
            ["well"; 2],
        ),
        (
            "memory rotten, which nothing shows",
            |_, place| {
                let time = fs::metadata(place.join(MEM)).unwrap().modified().unwrap();
                flip(&place.join(MEM));
                writable(&place.join(MEM)).set_modified(time).unwrap();
            },
            ["well", "damaged"],
        ),
        ("sums gone", |_, place| fs::remove_file(place.join(SUMS)).unwrap(), ["damaged"; 2]),
        ("sums cut", |_, place| cut(&place.join(SUMS)), ["damaged"; 2]),
        ("meta cut", |_, place| cut_meta(place), ["damaged"; 2]),
        ("meta gone", |_, place| fs::remove_file(place.join(META)).unwrap(), ["damaged"; 2]),
        ("newer", |_, place| edit(place, |meta| meta["schema_version"] = 2.into()), ["newer"; 2]),
        (
            "swapped with another one",
            |world, place| {
                let other = world.bases.place(&put(world, 1).key);
                fs::remove_dir_all(place).unwrap();
                fs::rename(other, place).unwrap();
            },
            ["damaged"; 2],
        ),
        (
            "of another pool",
            |world, place| {
                let pool = make_pool(&world.roots, "other");
                let other = World {
                    bases: Bases::of(&world.roots, &pool),
                    roots: world.roots.clone(),
                    pool,
                    _dir: tempfile::tempdir().unwrap(),
                };
                fs::remove_dir_all(place).unwrap();
                fs::rename(other.bases.place(&put(&other, 0).key), place).unwrap();
            },
            ["foreign"; 2],
        ),
        (
            "of another version",
            |_, place| edit(place, |meta| meta["origin"]["vmm_version"] = "1.0.0".into()),
            ["damaged"; 2],
        ),
        (
            "names leading elsewhere",
            |_, place| edit(place, |meta| meta["image"]["mem"]["file"] = "../x/mem".into()),
            ["damaged"; 2],
        ),
    ];
    for (what, spoil, expected) in cases {
        let world = world();
        let key = put(&world, 0).key;
        spoil(&world, &world.bases.place(&key));
        let got = world.bases.get(&key).map(|base| assert!(base.is_some(), "{what}"));
        let scrubbed = world.bases.scrub(&key).map(|there| assert!(there, "{what}"));
        let said = [got, scrubbed].map(|result| result.as_ref().map_or_else(kind, |()| "well"));
        assert_eq!(said, expected, "{what}");
    }
}

fn cut_meta(place: &Path) {
    let path = place.join(META);
    let half = fs::metadata(&path).unwrap().len() / 2;
    writable(&path).set_len(half).unwrap();
}

#[test]
fn a_base_of_another_cpu_is_not_loaded_and_is_whole() {
    let world = world();
    let base = put(&world, 0);
    // As it comes with a root that was moved to another machine.
    let ingredients = Ingredients { cpu_model: "Z80".into(), ..base.ingredients };
    let key = ingredients.key();
    fs::rename(world.bases.place(&base.key), world.bases.place(&key)).unwrap();
    edit(&world.bases.place(&key), |meta| {
        meta["ingredients"]["cpu_model"] = "Z80".into();
        meta["origin"]["cpu_model"] = "Z80".into();
        meta["key"] = key.to_string().into();
    });
    assert_eq!(kind(&world.bases.get(&key).unwrap_err()), "other CPU");
    assert!(world.bases.scrub(&key).unwrap());
}

#[test]
fn puts_at_once_make_one_base() {
    let world = world();
    let results: Vec<(Base, bool)> = std::thread::scope(|scope| {
        let put = || draft(&world, of_number(0)).put(&world.roots).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(put)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|(_, new)| *new).count(), 1);
    let there = world.bases.get(&of_number(0).key()).unwrap().unwrap();
    assert!(results.iter().all(|(base, _)| *base == there));
    assert_eq!(content(world.bases.folder()), [there.key.to_string()]);
}

#[test]
fn a_damaged_base_is_made_again_unless_an_instance_stands_on_it() {
    let world = world();
    let key = put(&world, 0).key;
    let path = make_instance(&world, 1, &key, State::Sleeping, false);
    flip(&world.bases.place(&key).join(MEM));
    let refused = draft(&world, of_number(0)).put(&world.roots).unwrap_err();
    assert_eq!(kind(&refused), "damaged");
    assert_eq!(kind(&world.bases.get(&key).unwrap_err()), "damaged", "it was left as it was");
    fs::remove_dir_all(folder(&world.roots, &path)).unwrap();
    assert!(draft(&world, of_number(0)).put(&world.roots).unwrap().1);
    assert!(world.bases.get(&key).unwrap().is_some());
    // One of a newer mvm is no damage.
    edit(&world.bases.place(&key), |meta| meta["schema_version"] = 2.into());
    assert_eq!(kind(&draft(&world, of_number(0)).put(&world.roots).unwrap_err()), "newer");
    assert_eq!(content(world.bases.folder()), [key.to_string()]);
}

#[test]
fn gc_keeps_what_is_current_and_what_an_instance_stands_on() {
    let world = world();
    make_revision(&world, "quiet");
    let current = current(&world.roots, &world.pool).unwrap().unwrap();
    let kept_by_all = current.key();
    // Its memory is the pool's, in full.
    let draft = begin(&world.roots, &world.pool, current).unwrap();
    File::create(draft.folder().join(MEM)).unwrap().set_len(128 << 20).unwrap();
    fs::write(draft.folder().join(VMSTATE), "registers").unwrap();
    draft.put(&world.roots).unwrap();
    let cases = [
        (State::Running, false, true),
        (State::Warm, false, true),
        (State::Sleeping, false, true),
        (State::Stopped, true, true),
        (State::Ready, true, true),
        (State::Stopped, false, false),
        (State::Ready, false, false),
    ];
    let mut expected = BTreeMap::from([(kept_by_all, true), (put(&world, 100).key, false)]);
    for (number, (state, pending, kept)) in (0..).zip(cases) {
        let key = put(&world, number).key;
        make_instance(&world, number, &key, state, pending);
        expected.insert(key, kept);
    }
    let keys = |kept: bool| -> Vec<BaseKey> {
        expected.iter().filter(|(_, k)| **k == kept).map(|(key, _)| key.clone()).collect()
    };
    let operator = Operator::new(world.roots.clone());
    let dropped = pool::lifecycle::collect(&operator, &world.pool).unwrap();
    assert_eq!(dropped.bases, keys(false));
    assert_eq!(world.bases.all().unwrap(), keys(true));
    assert_eq!(pool::lifecycle::collect(&operator, &world.pool).unwrap().bases, []);
    // Another revision, or other resources: another base is current.
    make_revision(&world, "quiet more");
    assert_eq!(pool::lifecycle::collect(&operator, &world.pool).unwrap().bases.len(), 1);
}

#[test]
fn gc_drops_nothing_where_it_does_not_know_what_is_needed() {
    let world = world();
    let key = put(&world, 0).key;
    let path = make_instance(&world, 1, &key, State::Sleeping, false);
    fs::write(file(&world.roots, &path), "{").unwrap();
    assert!(collect(&world.roots, &world.pool).is_err());
    assert_eq!(world.bases.all().unwrap(), [key]);
}

#[test]
fn gc_and_puts_wait_for_who_loads_a_base() {
    let mut world = world();
    let key = put(&world, 0).key;
    world.roots.lock_timeout = Duration::ZERO;
    let late = draft(&world, of_number(1));
    let reader = lock(&world.roots, &world.pool, Sharing::Shared).unwrap();
    let operator = Operator::new(world.roots.clone());
    let collected = pool::lifecycle::collect(&operator, &world.pool);
    assert!(matches!(collected, Err(PoolError::Store(StoreError::Locked { .. }))), "{collected:?}");
    assert!(matches!(late.put(&world.roots), Err(SnapshotError::Store(StoreError::Locked { .. }))));
    assert!(world.bases.get(&key).unwrap().is_some());
    drop(reader);
    assert_eq!(pool::lifecycle::collect(&operator, &world.pool).unwrap().bases, [key]);
}

#[test]
fn bases_count_into_the_quota_also_damaged_ones() {
    let world = world();
    let tenant = || Tenant::load(&world.roots, &world.pool.tenant).unwrap();
    assert_eq!(room::stored(&world.roots, &tenant()).unwrap().disk_mib, 0);
    let key = put(&world, 0).key;
    // 1 MiB of memory, and what goes with it.
    assert_eq!(room::stored(&world.roots, &tenant()).unwrap().disk_mib, 2);
    cut_meta(&world.bases.place(&key));
    assert_eq!(room::stored(&world.roots, &tenant()).unwrap().disk_mib, 2);
    let mut poor = tenant();
    poor.quotas.max_disk_gib = 0;
    poor.save(&world.roots).unwrap();
    let refused = begin(&world.roots, &world.pool, of_number(1)).unwrap_err();
    assert!(matches!(refused, PoolError::Room(room::RoomError::Quota { .. })), "{refused}");
    assert_eq!(content(world.bases.folder()), [key.to_string()]);
}

#[test]
fn the_key_knows_every_device_that_the_vmm_is_told_of() {
    let world = world();
    make_revision(&world, "quiet");
    let path = make_instance(&world, 1, &of_number(0).key(), State::Ready, false);
    let instance = Instance::load(&world.roots, &path).unwrap();
    let pool = Pool::load(&world.roots, &world.pool).unwrap();
    let artifacts = Artifacts::of(&world.roots, &world.pool);
    let manifest = artifacts.manifest(&artifacts.current().unwrap().unwrap()).unwrap();
    let calls = fc_config::requests(&fc_config::Boot::of(&instance, &pool, &manifest, &Quotas::default()));
    let is_device = |call: &&Call| {
        let elsewhere = matches!(call, Call::MachineConfig(_) | Call::BootSource(_) | Call::Serial(_));
        !elsewhere && !matches!(call, Call::InstanceStart)
    };
    let devices = fc_config::devices(&instance.resources, &manifest, instance.agent, true);
    assert_eq!(calls.iter().filter(is_device).count(), devices.len());
    assert_eq!(
        devices,
        [
            "drive rootfs rootfs.ext4 root rw Writeback",
            "drive data data.ext4 plain rw Writeback",
            "nic eth0",
            "metadata V2 eth0 169.254.169.254",
            "vsock 3 v.sock",
            "entropy",
        ]
    );
}

#[test]
fn the_current_key_follows_the_pool() {
    let world = world();
    let key = || current(&world.roots, &world.pool).unwrap().map(|ingredients| ingredients.key());
    assert_eq!(key(), None, "it has nothing to run");
    make_revision(&world, "quiet");
    let first = key().unwrap();
    assert_eq!(key().unwrap(), first);
    let mut pool = Pool::load(&world.roots, &world.pool).unwrap();
    let changes: [fn(&mut Pool); 3] = [
        |pool| pool.instance_resources.mem_mib = 256,
        |pool| pool.instance_resources.data_disk_mib = 0,
        |pool| {
            pool.vmm = VmmKind::Firecracker;
            pool.vmm_version = Some("1.16.1".into());
        },
    ];
    let mut seen = BTreeSet::from([first]);
    for change in changes {
        change(&mut pool);
        pool.save(&world.roots).unwrap();
        assert!(seen.insert(key().unwrap()));
    }
    make_revision(&world, "quiet more");
    assert!(seen.insert(key().unwrap()));
    pool.vmm_version = None;
    pool.save(&world.roots).unwrap();
    assert_eq!(key(), None, "the VMM's version is not known");
}
