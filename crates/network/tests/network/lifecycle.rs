//! Links come, go and outlive the daemon.

use crate::place::{Place, shell};
use crate::server::{self, receive};
use crate::world::{ECHO, HOST, Instance, METADATA, World, assert_refused, on_a_host};
use instavm_network::{
    LinkError, Network, NetworkConfig, NetworkError, ProbeStatus, Slot, State, destroy, probe,
    state,
};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn ruleset() -> String {
    let output = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn destroy_leaves_nothing_and_another_instance_whole() {
    on_a_host(|_world| async {
        let (first, second) = (Instance::open(41).await, Instance::open(42).await);
        let (mut gone, kept) = (Vec::new(), second.vm(0).await);
        for index in [0, 1, 2, 3, 500, 1023] {
            gone.push(first.vm(index).await);
        }
        assert_eq!(
            first.network.links().await.unwrap(),
            [0, 1, 2, 3, 500, 1023]
        );
        assert_eq!(second.network.links().await.unwrap(), [0]);
        first.close().await;
        let left = State {
            firewall: true,
            links: vec![0, 1, 2, 3, 500, 1023],
        };
        assert_eq!(state(slot(41)).await.unwrap(), left);

        destroy(slot(41)).await.unwrap();
        let nothing = State {
            firewall: false,
            links: Vec::new(),
        };
        assert_eq!(state(slot(41)).await.unwrap(), nothing);
        assert!(!ruleset().contains("instavm41"));
        destroy(slot(41)).await.unwrap();

        assert_eq!(kept.dial(ECHO).await.unwrap().to_string(), HOST);
        assert_eq!(
            kept.resolve("anything.test.").await.unwrap().answers.len(),
            1
        );
        second.close().await;
        destroy(slot(42)).await.unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_restart_is_not_noticed_and_leaves_no_gap() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(17).await;
        let mut connection = vm.connect(ECHO).await;
        connection.talk("before");
        let before = instance.network.counters(17).await.unwrap();
        instance.close().await;

        connection.talk("while it is down");
        assert_eq!(vm.dial(ECHO).await.unwrap().to_string(), HOST);
        assert_refused("metadata while it is down", vm.dial(METADATA).await);

        let instance = Instance::open(41).await;
        connection.talk("after");
        assert_refused("metadata after it", vm.dial(METADATA).await);
        assert_eq!(vm.resolve("anything.test.").await.unwrap().answers.len(), 1);
        assert_eq!(instance.network.links().await.unwrap(), [17]);
        let after = instance.network.counters(17).await.unwrap();
        assert!(after.rx_bytes > before.rx_bytes && after.tx_bytes > before.tx_bytes);
    });
}

#[test]
fn opening_again_and_again_under_traffic_drops_no_connection() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        let mut connection = vm.connect(ECHO).await;
        for round in 0..10 {
            // The second instance of the same slot replaces the table; the first has gone or not.
            let again = Instance::open(41).await;
            connection.talk(&round.to_string());
            assert_refused("metadata", vm.dial(METADATA).await);
            again.close().await;
        }
        assert_eq!(ruleset().matches("table inet instavm41").count(), 1);
    });
}

#[test]
fn an_index_is_used_again_without_the_old_vm_showing_through() {
    on_a_host(|world| async move {
        let instance = Instance::open(41).await;
        let server = Arc::new(world.outside.run(|| server::udp("198.18.0.2:7300")).await);
        let hear = |socket: Arc<UdpSocket>| move || receive(&socket);
        let say = |socket: Arc<UdpSocket>, text: &'static str, to: SocketAddr| {
            move || assert_eq!(socket.send_to(text.as_bytes(), to).unwrap(), text.len())
        };
        let bound = || Arc::new(server::udp("0.0.0.0:6000"));
        let server_at: SocketAddr = "198.18.0.2:7300".parse().unwrap();

        let old = instance.vm(5).await;
        let socket = old.place.run(bound).await;
        old.place.run(say(socket.clone(), "old", server_at)).await;
        let (text, back) = world.outside.run(hear(server.clone())).await;
        assert_eq!(text, "old");
        world
            .outside
            .run(say(server.clone(), "to the old VM", back))
            .await;
        assert_eq!(old.place.run(hear(socket)).await.0, "to the old VM");

        instance.network.detach(5);
        let new = instance.vm(5).await;
        assert_eq!(new.link.address, old.link.address);
        let socket = new.place.run(bound).await;
        world
            .outside
            .run(say(server.clone(), "still to the old VM", back))
            .await;
        new.place.run(say(socket.clone(), "new", server_at)).await;
        let (text, back) = world.outside.run(hear(server.clone())).await;
        assert_eq!(text, "new");
        world.outside.run(say(server, "to the new VM", back)).await;
        assert_eq!(new.place.run(hear(socket)).await.0, "to the new VM");
    });
}

#[test]
fn many_links_go_in_the_background_and_before_the_tasks_end() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let place = Place::new();
        for index in 0..150 {
            instance.network.attach(index, place.id).await.unwrap();
            place
                .shell(format!("ip link set eth0 name gone{index}"))
                .await;
        }
        for index in 0..149 {
            instance.network.detach(index);
        }
        // An index that is on its way out is available at once.
        let link = instance.network.attach(0, place.id).await.unwrap();
        assert_eq!(link.name, "eth0");
        place.shell("ip link set eth0 name again").await;
        instance.network.settled().await;
        assert_eq!(instance.network.leaving(), 0);
        assert_eq!(instance.network.links().await.unwrap(), [0, 149]);
        instance.network.detach(0);
        instance.network.detach(149);
        instance.close().await;
        assert_eq!(state(slot(41)).await.unwrap().links, [0u16; 0]);
    });
}

#[test]
fn a_link_that_was_left_behind_is_replaced() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let old = instance.vm(8).await;
        let new = instance.vm(8).await;
        assert_eq!(new.dial(ECHO).await.unwrap().to_string(), HOST);
        assert!(old.dial(ECHO).await.is_err());
        // A VM whose namespace is gone has taken its link along; detaching it is no fault.
        shell("ip link del iv41h8");
        instance.network.detach(8);
        instance.network.settled().await;
        assert!(instance.network.links().await.unwrap().is_empty());
    });
}

#[test]
fn bad_input_is_refused_by_name() {
    on_a_host(|_world| async {
        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        let range = "100.65.0.0".parse().unwrap();
        let config = NetworkConfig {
            range,
            ..World::config(41)
        };
        let error = Network::open(config, &tracker, &stop).await.unwrap_err();
        assert!(matches!(error, NetworkError::Range(_)), "{error}");
        assert!(error.to_string().contains("FIX:"));

        let instance = Instance::open(41).await;
        let place = Place::new();
        let error = instance.network.attach(1024, place.id).await.unwrap_err();
        assert!(
            matches!(error, NetworkError::Link(LinkError::Index(1024))),
            "{error}"
        );
        for nobody in [-1, 0, i32::MAX] {
            let error = instance.network.attach(1, nobody).await.unwrap_err();
            assert!(
                matches!(error, NetworkError::Link(LinkError::Request { .. })),
                "{error}"
            );
        }
        instance.network.attach(2, place.id).await.unwrap();
        let error = instance.network.ready(2).await.unwrap_err();
        assert!(
            matches!(error, NetworkError::Link(LinkError::NotReady(_))),
            "{error}"
        );
        let error = instance.network.counters(1).await.unwrap_err();
        assert!(
            matches!(error, NetworkError::Link(LinkError::Absent(_))),
            "{error}"
        );
        assert_eq!(instance.network.links().await.unwrap(), [2]);
    });
}

#[test]
fn a_namespace_that_has_an_eth0_already_gets_no_half_link() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        assert!(instance.network.attach(1, vm.place.id).await.is_err());
        assert_eq!(instance.network.links().await.unwrap(), [0]);
    });
}

#[test]
fn doctor_says_what_works() {
    on_a_host(|_world| async {
        let status = |probes: &[instavm_network::Probe], name: &str| {
            let found = probes.iter().find(|probe| probe.name == name).unwrap();
            assert_eq!(
                found.fix.is_empty(),
                found.status == ProbeStatus::Good,
                "{found:?}"
            );
            found.status
        };
        let probes = probe().await;
        for name in [
            "firewall",
            "links",
            "forwarding",
            "default route",
            "other firewalls",
        ] {
            assert_eq!(status(&probes, name), ProbeStatus::Good, "{probes:?}");
        }
        assert_eq!(ruleset(), "", "checking changes nothing");

        shell("ip route del default");
        shell(
            "nft 'table ip strict { chain f { type filter hook forward priority 0; policy drop; }; }'",
        );
        let probes = probe().await;
        assert_eq!(status(&probes, "default route"), ProbeStatus::Warning);
        assert_eq!(status(&probes, "other firewalls"), ProbeStatus::Warning);
    });
}
