//! What outlasts the daemon, and what somebody else does to the firewall.

use crate::internet::{self, ATTACKER, GOOD, RANGE, Try};
use crate::place::shell;
use crate::world::{ECHO, Instance, World, on_a_host};
use instavm_network::{NetworkConfig, Policy, Slot};
use std::path::Path;

fn config(names: &Path) -> NetworkConfig {
    NetworkConfig {
        names: Some(names.to_owned()),
        ..World::config(41)
    }
}

fn policy(domains: &[&str], ranges: &[&str]) -> Policy {
    let own = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
    Policy::new(false, false, false, &own(domains), &own(ranges)).expect("a policy")
}

#[test]
fn names_that_were_looked_up_go_on_after_a_restart() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let folder = tempfile::tempdir().unwrap();
        let named = policy(&["allowed.test", "*.wild.test"], &[]);
        let instance = Instance::with(config(folder.path())).await;
        let (vm, other) = (instance.vm(0).await, instance.vm(1).await);
        for index in [0, 1] {
            instance
                .network
                .set_policy(index, named.clone())
                .await
                .unwrap();
        }
        vm.resolve("allowed.test.").await.unwrap();
        // As after a kill: nothing is written at the end.
        instance.close().await;
        let policies = [(0, named.clone()), (1, named.clone())];
        let instance = Instance::adopt(config(folder.path()), policies).await;
        let allowed = || Try::tls(GOOD, Some("allowed.test"));
        assert!(allowed().reaches(&vm.place).await);
        // Only what this VM was told, for this name, at this address.
        assert!(!allowed().reaches(&other.place).await);
        assert!(!Try::tls(GOOD, Some("x.wild.test")).reaches(&vm.place).await);
        assert!(
            !Try::tls(ATTACKER, Some("allowed.test"))
                .reaches(&vm.place)
                .await
        );

        // The next VM at this place knows nothing of it, in memory or on disk.
        drop(vm);
        instance.network.detach(0);
        let vm = instance.vm(0).await;
        instance.network.set_policy(0, named.clone()).await.unwrap();
        assert!(!allowed().reaches(&vm.place).await);
        assert!(!folder.path().join("0").exists());
        vm.resolve("allowed.test.").await.unwrap();
        assert!(folder.path().join("0").exists());

        // Nor does one that came while nobody looked.
        instance.close().await;
        drop(vm);
        shell("ip link delete iv41h0 2>/dev/null || true");
        let instance = Instance::adopt(config(folder.path()), []).await;
        assert!(!folder.path().join("0").exists());
        instance.close().await;
    });
}

#[test]
#[rustfmt::skip]
fn what_somebody_takes_from_the_firewall_is_named_and_put_back() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = instance.vm(3).await;
        let policy = policy(&["allowed.test"], &["198.18.5.0/24"]);
        instance
            .network
            .set_policy(3, policy.clone())
            .await
            .unwrap();
        let other = instance.vm(4).await;
        let mut open = other.connect(ECHO).await;
        let none: Vec<String> = Vec::new();
        assert_eq!(instance.network.mismatches().await.unwrap(), none);
        let slot = Slot::new(41).unwrap();
        let offline = || instavm_network::misfits(slot, [(3, policy.clone())]);
        assert_eq!(offline().await.unwrap(), none);

        for (change, named, by_policy) in [
            ("delete element inet instavm41 limits { iv41h3 }", "iv41h3 of map limits", true),
            ("delete element inet instavm41 proxied { iv41h3 }", "iv41h3 of map proxied", true),
            ("delete element inet instavm41 addresses_3 { 198.18.5.0/24 }", "198.18.5.0/24 of set", true),
            ("flush chain inet instavm41 ranges_3", "chain ranges_3", true),
            ("flush chain inet instavm41 source", "rule source", false),
            ("delete element inet instavm41 floor_addresses { 127.0.0.0/8 }", "set floor_addresses", false),
            ("insert rule inet instavm41 outbound accept", "added by somebody", false),
            ("add element inet instavm41 limits { iv41h4 : jump limited }", "iv41h4 of map limits", false),
            ("delete table inet instavm41", "table inet instavm41", true),
        ] {
            shell(&format!("nft '{change}'"));
            let found = instance.network.mismatches().await.unwrap();
            assert!(
                found.iter().any(|line| line.contains(named)),
                "{change}: {found:?}"
            );
            if by_policy {
                let found = offline().await.unwrap();
                assert!(
                    found.iter().any(|line| line.contains(named)),
                    "{change}: {found:?}"
                );
            }
            let repaired = instance.network.repair().await.unwrap();
            assert!(!repaired.is_empty());
            assert_eq!(
                instance.network.mismatches().await.unwrap(),
                none,
                "{change}"
            );
        }
        assert!(Try::tcp(RANGE, 22).reaches(&vm.place).await);
        assert!(!Try::tcp(ATTACKER, 22).reaches(&vm.place).await);
        open.talk("what is open stays open");
        instance.close().await;
    });
}

#[test]
fn listeners_that_are_gone_are_named() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        assert!(instance.network.mismatches().await.unwrap().is_empty());
        instance.network.close();
        // Its tasks end behind.
        let started = std::time::Instant::now();
        let lines = loop {
            let lines = instance.network.mismatches().await.unwrap();
            if lines.len() == 3 || started.elapsed() > crate::world::PATIENCE {
                break lines;
            }
            tokio::task::yield_now().await;
        };
        assert!(
            lines.len() == 3 && lines.iter().all(|line| line.starts_with("listener: ")),
            "{lines:?}"
        );
    });
}
