//! Connections that leave by a proxy of the operator's.

use crate::internet::{self, ATTACKER, GOOD, RANGE, Try};
use crate::server;
use crate::world::{Instance, World, on_a_host};
use instavm_network::{NetworkConfig, Policy};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const AT: &str = "198.18.0.2:3128";

/// What a proxy was asked for.
type Asked = Arc<Mutex<Vec<String>>>;

/// A small proxy at [`AT`] that wants `ann` with the password `p@ss`.
async fn proxy(world: &World, talk: fn(&mut TcpStream) -> Option<SocketAddr>) -> Asked {
    let asked = Asked::default();
    let listener: TcpListener = world.outside.run(|| server::listen(AT)).await;
    let noted = asked.clone();
    world.outside.start(move || {
        for mut client in listener.incoming().flatten() {
            let noted = noted.clone();
            std::thread::spawn(move || {
                let to = talk(&mut client)?;
                noted.lock().expect("no proxy panics").push(to.to_string());
                let mut server = TcpStream::connect(to).ok()?;
                let (mut back, mut answers) = (client.try_clone().ok()?, server.try_clone().ok()?);
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                std::io::copy(&mut client, &mut server).ok()
            });
        }
    });
    asked
}

fn by_connect(client: &mut TcpStream) -> Option<SocketAddr> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let to = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    // ann:p@ss
    if !head.contains("Proxy-Authorization: Basic YW5uOnBAc3M=\r\n") {
        client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            .ok()?;
        return None;
    }
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        .ok()?;
    to.parse().ok()
}

fn by_socks(client: &mut TcpStream) -> Option<SocketAddr> {
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).ok()?;
    if greeting != [5, 1, 2] {
        client.write_all(&[5, 0xff]).ok()?;
        return None;
    }
    client.write_all(&[5, 2]).ok()?;
    let mut proof = [0; 10];
    client.read_exact(&mut proof).ok()?;
    let known = proof == *b"\x01\x03ann\x04p@ss";
    client.write_all(&[1, u8::from(!known)]).ok()?;
    let mut request = [0; 10];
    client.read_exact(&mut request).ok()?;
    let [5, 1, 0, 1, a, b, c, d, high, low] = request else {
        return None;
    };
    client.write_all(&[5, 0, 0, 3, 2, b'h', b'i', 0, 0]).ok()?;
    let port = u16::from_be_bytes([high, low]);
    Some((Ipv4Addr::new(a, b, c, d), port).into())
}

fn config(url: &str) -> NetworkConfig {
    NetworkConfig {
        upstream: Some(url.parse().expect("a proxy")),
        ..World::config(41)
    }
}

#[test]
#[rustfmt::skip]
fn names_open_ports_and_nothing_else_leave_by_the_proxy() {
    for (talk, url) in [
        (by_connect as fn(&mut TcpStream) -> _, "http://ann:p%40ss@198.18.0.2:3128"),
        (by_socks, "socks5://ann:p%40ss@198.18.0.2:3128"),
    ] {
        on_a_host(move |world| async move {
            internet::build(&world).await;
            let asked = proxy(&world, talk).await;
            let instance = Instance::with(config(url)).await;
            let (named, open) = (instance.vm(0).await, instance.vm(1).await);
            let (https, closed) = (instance.vm(2).await, instance.vm(3).await);
            let domains = ["allowed.test".to_owned()];
            let ranges = ["198.18.5.0/24".to_owned()];
            for (index, policy) in [
                (0, Policy::new(false, false, false, &domains, &ranges)),
                (2, Policy::new(false, false, true, &[], &[])),
                (3, Policy::new(false, false, false, &[], &[])),
            ] {
                instance
                    .network
                    .set_policy(index, policy.unwrap())
                    .await
                    .unwrap();
            }
            named.resolve("allowed.test.").await.unwrap();
            let metadata = Ipv4Addr::new(169, 254, 169, 254);
            for (vm, attempt, by_proxy, passes) in [
                (&named, Try::tls(GOOD, Some("allowed.test")), true, true),
                (&named, Try::http(GOOD, "allowed.test"), true, true),
                (&named, Try::tls(ATTACKER, Some("allowed.test")), false, false),
                (&named, Try::tls(RANGE, None), false, true),
                (&open, Try::tls(ATTACKER, None), true, true),
                (&open, Try::tcp(GOOD, 80), true, true),
                (&open, Try::tcp(GOOD, 22), false, true),
                (&open, Try::http(metadata, "x.test"), false, false),
                (&https, Try::tls(ATTACKER, None), true, true),
                (&https, Try::http(ATTACKER, "x.test"), false, false),
                (&closed, Try::tls(GOOD, Some("allowed.test")), false, false),
            ] {
                let what = format!("{url}: {attempt:?}");
                asked.lock().unwrap().clear();
                assert_eq!(attempt.reaches(&vm.place).await, passes, "{what}");
                assert_eq!(!asked.lock().unwrap().is_empty(), by_proxy, "{what}");
            }
            // What passes unnamed is cut by a change, too.
            let mut stream = https
                .place
                .run(|| {
                    let mut stream = internet::patient((ATTACKER, 443).into());
                    stream.write_all(b"x").unwrap();
                    stream.read_exact(&mut [0; 16]).unwrap();
                    stream
                })
                .await;
            let none = Policy::new(false, true, false, &[], &[]).unwrap();
            instance.network.set_policy(2, none).await.unwrap();
            let mut rest = Vec::new();
            assert!(stream.read_to_end(&mut rest).is_err());
            instance.close().await;
        });
    }
}

#[test]
fn a_proxy_that_refuses_ends_the_connection() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let asked = proxy(&world, by_connect).await;
        let instance = Instance::with(config("http://ann:wrong@198.18.0.2:3128")).await;
        let vm = instance.vm(0).await;
        assert!(
            !Try::tls(GOOD, Some("allowed.test"))
                .reaches(&vm.place)
                .await
        );
        let domains = ["allowed.test".to_owned()];
        let policy = Policy::new(false, false, false, &domains, &[]).unwrap();
        instance.network.set_policy(0, policy).await.unwrap();
        vm.resolve("allowed.test.").await.unwrap();
        let answer = vm
            .place
            .run(|| {
                let request = b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
                internet::exchange((GOOD, 80).into(), request)
            })
            .await;
        assert!(answer.unwrap().starts_with(b"HTTP/1.1 502 "));
        assert!(asked.lock().unwrap().is_empty());
        instance.close().await;
    });
}
