//! The VMs' resolver.

use crate::server::{self, ANSWER, LARGE, query, read_frame, write_frame};
use crate::world::{
    Instance, PATIENCE, SHORT, Vm, World, assert_dropped, assert_refused, dial, on_a_host,
};
use hickory_resolver::proto::op::{Message, ResponseCode};
use instavm_network::NetworkConfig;
use std::net::{SocketAddr, TcpStream, UdpSocket};

/// Asks by TCP, several questions on one connection.
async fn resolve_by_tcp(vm: &Vm, names: &'static [&'static str]) -> Vec<Message> {
    let resolver = SocketAddr::from((vm.link.gateway, 53));
    vm.place
        .run(move || {
            let mut stream = TcpStream::connect_timeout(&resolver, PATIENCE).unwrap();
            let ask = |name: &&str| {
                write_frame(&mut stream, &query(name)).unwrap();
                Message::from_vec(&read_frame(&mut stream).expect("an answer")).unwrap()
            };
            names.iter().map(ask).collect()
        })
        .await
}

#[test]
fn names_resolve_by_udp_and_tcp() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(9).await;
        let found = vm.resolve("anything.test.").await.unwrap();
        assert_eq!(found.answers[0].data.ip_addr(), Some(ANSWER.into()));
        assert!(found.metadata.recursion_available);

        let missing = vm.resolve("missing.test.").await.unwrap();
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(
            missing.authorities.len(),
            1,
            "the SOA tells how long it is missing"
        );

        // Too large for UDP: both to our upstream and to the VM.
        let large = vm.resolve("large.test.").await.unwrap();
        assert!(large.metadata.truncation && large.answers.is_empty());
        let whole = resolve_by_tcp(&vm, &["large.test.", "anything.test."]).await;
        assert_eq!(whole[0].answers.len(), usize::from(LARGE));
        assert_eq!(whole[1].answers.len(), 1);
    });
}

#[test]
fn a_vm_that_floods_the_resolver_does_not_starve_another() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let (flooder, quiet) = (instance.vm(0).await, instance.vm(1).await);
        let resolver = SocketAddr::from((flooder.link.gateway, 53));
        let idle = flooder
            .place
            .run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for _ in 0..5000 {
                    socket.send_to(&query("silent.test."), resolver).unwrap();
                }
                let connect = || TcpStream::connect_timeout(&resolver, PATIENCE).unwrap();
                (0..100).map(|_| connect()).collect::<Vec<_>>()
            })
            .await;
        assert_eq!(
            quiet.resolve("anything.test.").await.unwrap().answers.len(),
            1
        );
        assert_eq!(
            resolve_by_tcp(&quiet, &["anything.test."]).await[0]
                .answers
                .len(),
            1
        );
        drop(idle);
    });
}

#[test]
fn broken_packets_are_answered_or_ignored_and_the_resolver_lives_on() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        let resolver = SocketAddr::from((vm.link.gateway, 53));
        let code = vm
            .place
            .run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(resolver).unwrap();
                for packet in [&b""[..], b"x", &[0xff; 11], &[0xff; 1300]] {
                    socket.send(packet).unwrap();
                }
                socket.send(&[0; 12]).unwrap();
                let mut buffer = [0; 512];
                let size = socket.recv(&mut buffer).unwrap();
                Message::from_vec(&buffer[..size])
                    .unwrap()
                    .metadata
                    .response_code
            })
            .await;
        assert_eq!(code, ResponseCode::FormErr);
        assert_eq!(vm.resolve("anything.test.").await.unwrap().answers.len(), 1);
    });
}

#[test]
fn without_an_upstream_the_answer_is_a_failure_and_comes_in_time() {
    on_a_host(|_world| async {
        let nobody = Some(vec!["198.18.0.2:5999".parse().unwrap()]);
        let config = NetworkConfig {
            resolvers: nobody,
            ..World::config(41)
        };
        let instance = Instance::with(config).await;
        let vm = instance.vm(0).await;
        let answer = vm.resolve("anything.test.").await.unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

#[test]
fn only_vms_reach_the_resolver_and_only_by_its_front_door() {
    on_a_host(|world| async move {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        let port = 15_341;
        assert!(
            std::net::TcpListener::bind(("0.0.0.0", port)).is_err(),
            "the resolver is there"
        );

        let gateway = vm.link.gateway;
        assert_refused("its own port", vm.dial(format!("{gateway}:{port}")).await);
        let reach = move || dial(&format!("198.18.0.1:{port}"), SHORT).map(|_| ());
        assert_dropped("from outside", world.outside.run(reach).await);
        assert_dropped("from the host", reach());
        assert_eq!(vm.resolve("anything.test.").await.unwrap().answers.len(), 1);
    });
}

#[test]
fn while_the_daemon_is_down_nobody_else_can_serve_its_port() {
    on_a_host(|_world| async {
        let instance = Instance::open(41).await;
        let vm = instance.vm(0).await;
        instance.close().await;
        let impostor = server::udp("0.0.0.0:15341");
        let error = vm.resolve("anything.test.").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
        impostor.set_nonblocking(true).unwrap();
        assert!(
            impostor.recv_from(&mut [0; 512]).is_err(),
            "the impostor got a question"
        );
        // The port is taken at the next start: the resolver goes elsewhere.
        let instance = Instance::open(41).await;
        assert_eq!(vm.resolve("anything.test.").await.unwrap().answers.len(), 1);
        instance.close().await;
    });
}
