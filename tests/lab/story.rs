//! The demo, and what a first user does: guests boot, talk to whom they may, and stop.

use std::time::{Duration, Instant};

use crate::{ensure, scenario, step};

/// What a pool gives its guests to end by themselves, unless it says otherwise.
const GRACE: Duration = Duration::from_secs(15);

#[test]
fn the_demo_plays_whole() {
    scenario("the demo", |world| {
        let output = world.run("demo --no-color", Duration::from_secs(120))?;
        print!("{}", String::from_utf8_lossy(&output.stderr));
        print!("{}", String::from_utf8_lossy(&output.stdout));
        ensure(output.status.success(), || format!("mvm demo: {}", output.status))
    });
}

#[test]
fn guests_boot_talk_to_their_own_and_stop() {
    scenario("a first hour with real guests", |world| {
        world.pool("acme/web", 3, "--mem 256 --data-disk 64")?;
        world.pool("globex/web", 4, "--mem 256 --data-disk 64")?;
        let one = step("a guest of acme boots to its prompt", || world.guest("acme/web"))?;
        let other = step("another one", || world.guest("acme/web"))?;
        let foreign = step("one of globex", || world.guest("globex/web"))?;
        println!("    {}", one.says("uname -srm; head -1 /etc/os-release; ip -br address | tail -1")?);

        step("neighbours reach each other", || {
            ensure(one.pings(&other.ip)?, || format!("{} does not reach {}", one.ip, other.ip))?;
            ensure(other.pings(&one.ip)?, || format!("{} does not reach {}", other.ip, one.ip))
        })?;
        step("tenants do not, though each reaches its own gateway", || {
            for (guest, gateway) in [(&one, "10.240.3.1"), (&foreign, "10.240.4.1")] {
                ensure(guest.pings(gateway)?, || format!("{} does not reach its gateway", guest.ip))?;
            }
            for (guest, to) in [(&one, &*foreign.ip), (&foreign, &*one.ip), (&one, "10.240.4.1")] {
                ensure(!guest.pings(to)?, || format!("{} reaches {to}", guest.ip))?;
            }
            Ok(())
        })?;
        step("Ctrl-Alt-Del ends it within its time, and its data disk is whole at the next start", || {
            // Not synced: only a guest that ends by itself writes it out.
            one.says("dd if=/dev/urandom of=/data/kept bs=64k count=16 status=none")?;
            let sum = one.sum("/data/kept")?;
            let begun = Instant::now();
            one.is_told("stop")?;
            let took = begun.elapsed();
            let info = one.is_told("info")?;
            println!("    stopped in {:.1} s: {}", took.as_secs_f64(), info["last_exit"]);
            ensure(took < GRACE, || "it was killed when its time was over".into())?;
            one.start()?;
            let again = one.sum("/data/kept")?;
            ensure(sum == again, || format!("/data/kept was {sum} and is {again}"))
        })
    });
}
