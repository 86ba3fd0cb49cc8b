//! What a VM reaches, and what it does not.

use crate::place::shell;
use crate::server::{self, receive};
use crate::world::{
    DENIED, ECHO, HOST, Instance, METADATA, SHORT, assert_dropped, assert_refused, dial, on_a_host,
};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

#[test]
fn the_outside_sees_the_host_and_not_the_vm() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        assert_eq!(vm.dial(ECHO).await.unwrap().to_string(), HOST);
    });
}

#[test]
fn a_large_transfer_fits_the_way_out() {
    on_a_host(|world| async move {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        assert_eq!(vm.link.mtu, 1400);
        let listener = world
            .outside
            .run(|| server::listen("198.18.0.2:7100"))
            .await;
        let total = 16 << 20;
        let received = world.outside.run(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&vec![1; total]).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap()
        });
        let sent = vm.place.run(move || {
            let mut stream = TcpStream::connect("198.18.0.2:7100").unwrap();
            let mut buffer = vec![0; total];
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
        });
        let (received, ()) = tokio::join!(received, sent);
        assert_eq!(received, total);
        let counters = instance.network.counters(0).await.unwrap();
        assert!(counters.rx_bytes > total as u64 && counters.tx_bytes > total as u64);
    });
}

#[test]
fn the_floor_is_closed_and_the_host_itself_is_not_affected() {
    on_a_host(|_world| async {
        let listener = server::listen("0.0.0.0:8080");
        std::thread::spawn(move || server::echo(listener));
        let instance = Instance::open(41).await;
        let vm = instance.vm(3).await;
        let gateway = vm.link.gateway;
        let other_gateway = instance.network.plan().gateway(0);
        let neighbour = instance.vm(0).await;
        neighbour.listen(8080).await;

        let neighbour = neighbour.link.address;
        for target in [
            format!("{gateway}:8080"),
            format!("{HOST}:8080"),
            format!("{other_gateway}:8080"),
            format!("{neighbour}:8080"),
            METADATA.to_owned(),
            DENIED.to_owned(),
        ] {
            assert_refused(&target, vm.dial(&target).await);
            // The same from the host: there is somebody to reach.
            if target != format!("{gateway}:8080") {
                dial(&target, SHORT).unwrap_or_else(|error| panic!("host to {target}: {error}"));
            }
        }
        assert_refused("a metadata address", vm.dial("100.100.100.200:80").await);
        assert_eq!(vm.dial(ECHO).await.unwrap().to_string(), HOST);
    });
}

#[test]
fn address_translation_of_other_tables_does_not_open_the_floor() {
    on_a_host(|_world| async {
        shell(&format!(
            "nft 'table ip other {{ chain p {{ type nat hook prerouting priority dstnat;
               ip daddr {HOST} tcp dport 9090 dnat to 198.18.0.2:7000
               ip daddr 198.18.0.9 tcp dport 80 dnat to 169.254.169.254
               ip daddr 198.18.0.10 tcp dport 80 dnat to 198.18.0.2:7000
             }}; }}'"
        ));
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        assert_refused(
            "a published port of the host",
            vm.dial(format!("{HOST}:9090")).await,
        );
        assert_refused("metadata by another name", vm.dial("198.18.0.9:80").await);
        // What the other table does with harmless addresses is its own business.
        vm.dial("198.18.0.10:80").await.unwrap();
    });
}

#[test]
fn vms_of_different_instances_do_not_reach_each_other() {
    on_a_host(|_world| async {
        let (first, second) = (Instance::open(41).await, Instance::open(42).await);
        let (here, there) = (first.vm(7).await, second.vm(7).await);
        there.listen(8080).await;
        here.listen(8080).await;
        let (here_at, there_at) = (here.link.address, there.link.address);
        assert_ne!(here_at, there_at);
        assert_refused(
            "VM of another instance",
            here.dial(format!("{there_at}:8080")).await,
        );
        assert_refused(
            "VM of another instance",
            there.dial(format!("{here_at}:8080")).await,
        );
        for vm in [&here, &there] {
            dial(&format!("{}:8080", vm.link.address), SHORT).unwrap();
            assert_eq!(vm.dial(ECHO).await.unwrap().to_string(), HOST);
        }
    });
}

#[test]
fn a_vm_that_opens_connections_without_end_fills_only_its_own_share() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let (greedy, modest) = (instance.vm(0).await, instance.vm(1).await);
        let mut early = greedy.connect(ECHO).await;
        let own = greedy.link.address;
        greedy
            .place
            .run(move || {
                for port in 20_000..32_000 {
                    let socket = server::udp(&format!("{own}:{port}"));
                    // Refused ones may report that on a later call.
                    let _ = socket.send_to(b"x", "198.18.1.1:9");
                }
            })
            .await;
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        let count: u32 = count.trim().parse().unwrap();
        assert!((8000..9000).contains(&count), "{count} tracked connections");
        assert_refused("one more", greedy.dial(ECHO).await);
        early.talk("what is open stays open");
        assert_eq!(modest.dial(ECHO).await.unwrap().to_string(), HOST);
    });
}

#[test]
fn the_outside_reaches_no_vm() {
    on_a_host(|world| async move {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        vm.listen(8080).await;
        world
            .outside
            .shell(format!("ip route add 100.64.0.0/14 via {HOST}"))
            .await;
        let target = format!("{}:8080", vm.link.address);
        dial(&target, SHORT).unwrap();
        let from_outside = world
            .outside
            .run(move || dial(&target, SHORT).map(|_| ()))
            .await;
        assert_dropped("outside to VM", from_outside);
        // With a route back the VM is still not seen by its own address.
        assert_eq!(vm.dial(ECHO).await.unwrap().to_string(), HOST);
    });
}

#[test]
fn other_traffic_of_the_host_is_left_alone() {
    on_a_host(|world| async move {
        let _instance = Instance::open(41).await;
        let listener = server::listen("0.0.0.0:8080");
        std::thread::spawn(move || server::echo(listener));
        let target = format!("{HOST}:8080");
        let caller = world
            .outside
            .run(move || dial(&target, SHORT).map(|(caller, _)| caller))
            .await;
        assert_eq!(caller.unwrap().to_string(), "198.18.0.2");
    });
}

#[test]
fn spoofed_sources_are_dropped() {
    on_a_host(|world| async move {
        let instance = Instance::open(41).await;
        let vm = instance.vm(4).await;
        // The other VM exists, so its address has a route.
        let victim = instance.vm(5).await.link.address;
        let sink = world.outside.run(|| server::udp("198.18.0.2:7300")).await;
        world
            .outside
            .shell(format!("ip route add default via {HOST}"))
            .await;
        let (own, gateway) = (vm.link.address, vm.link.gateway);
        let sources = [
            victim.to_string(),
            "198.18.0.77".into(),
            "10.1.2.3".into(),
            gateway.to_string(),
        ];
        for source in sources {
            vm.place
                .shell(format!("ip addr add {source}/32 dev eth0"))
                .await;
            vm.place
                .run(move || {
                    let forged = server::udp(&format!("{source}:0"));
                    forged.send_to(b"forged", "198.18.0.2:7300").unwrap();
                })
                .await;
        }
        // What is sent later arrives later: had a forged packet passed, it would be first.
        vm.place
            .run(move || {
                server::udp(&format!("{own}:0"))
                    .send_to(b"honest", "198.18.0.2:7300")
                    .unwrap();
            })
            .await;
        let (text, from) = world.outside.run(move || receive(&sink)).await;
        assert_eq!(
            (text.as_str(), from.ip().to_string().as_str()),
            ("honest", HOST)
        );
    });
}

#[test]
fn there_is_no_ipv6() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        shell("ip -6 addr add fd00:1::1/64 dev up0 nodad");
        let address: Ipv6Addr = "fd00:1::1".parse().unwrap();
        let listener = TcpListener::bind((address, 8080)).unwrap();
        TcpStream::connect((address, 8080)).unwrap();
        drop(listener.accept().unwrap());

        let link = instance.network.plan().slot().link_name(0);
        let inside = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(
            inside.contains("up0") && !inside.contains(&link),
            "{inside}"
        );
        // The VM knows the way and the host's hardware address: only the host's refusal is left.
        let hardware = std::process::Command::new("ip")
            .args(["-o", "link", "show", &link])
            .output();
        let hardware = String::from_utf8(hardware.unwrap().stdout).unwrap();
        let hardware = hardware
            .split("link/ether ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        vm.place
            .shell(format!(
                "ip -6 addr add fd00:2::2/64 dev eth0 nodad
                 ip -6 neigh add fd00:2::1 lladdr {hardware} dev eth0
                 ip -6 route add default via fd00:2::1"
            ))
            .await;
        let target = SocketAddr::from((address, 8080));
        let reached = vm
            .place
            .run(move || TcpStream::connect_timeout(&target, SHORT))
            .await;
        assert_dropped("IPv6", reached);
    });
}
