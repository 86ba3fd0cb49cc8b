//! Connections through the proxy, and what a change of policy does to them.

use crate::internet::{self, ATTACKER, GOOD, Try, greeting, patient};
use crate::server;
use crate::world::{ECHO, Instance, Vm, on_a_host};
use instavm_network::Policy;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

fn names(domains: &[&str]) -> Policy {
    let domains: Vec<String> = domains.iter().map(|&name| name.to_owned()).collect();
    Policy::new(false, false, false, &domains, &[]).expect("a policy")
}

async fn vm_with(instance: &Instance, index: u16, domains: &[&str]) -> Vm {
    let vm = instance.vm(index).await;
    let policy = names(domains);
    instance
        .network
        .set_policy(index, policy)
        .await
        .expect("setting a policy");
    vm.resolve("allowed.test.").await.expect("an answer");
    vm
}

/// Reads until the end or an error.
fn drain(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.err().map(|error| error.kind()))
}

fn say(stream: &mut TcpStream, text: &[u8]) -> Option<String> {
    stream.write_all(text).ok()?;
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).ok().filter(|count| *count > 0)?;
    Some(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
fn each_request_of_a_connection_names_its_host() {
    on_a_host(|world| async move {
        let arrived = internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test", "*.wild.test"]).await;
        vm.resolve("x.wild.test.").await.unwrap();
        let good = SocketAddr::from((GOOD, 80));
        let cut = vm
            .place
            .run(move || {
                let mut stream = patient(good);
                let plain = b"GET /1 HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
                assert!(say(&mut stream, plain).unwrap().starts_with("HTTP/1.1 200"));
                let body = b"POST /2 HTTP/1.1\r\nHost: x.wild.test\r\nContent-Length: 5\r\n\r\nhello";
                assert!(say(&mut stream, body).is_some());
                let chunks = b"POST /3 HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
                assert!(say(&mut stream, chunks).is_some());
                stream.write_all(b"GET /FORGED HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
                drain(&mut stream).1
            })
            .await;
        assert_eq!(cut, Some(ErrorKind::ConnectionReset));
        assert!(arrived.contains("abc") && arrived.contains("hello"));
        assert!(!arrived.contains("FORGED"));
        let refused = vm
            .place
            .run(move || {
                let mut stream = patient((ATTACKER, 80).into());
                stream
                    .write_all(b"GET /FORGED HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
                    .unwrap();
                String::from_utf8(drain(&mut stream).0).unwrap()
            })
            .await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(!arrived.contains("FORGED"));
        assert_eq!(instance.network.refusals(0), 2);
    });
}

#[test]
fn requests_that_hide_behind_a_body_or_an_upgrade_do_not_pass() {
    on_a_host(|world| async move {
        let arrived = internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test"]).await;
        let good = SocketAddr::from((GOOD, 80));
        vm.place
            .run(move || {
                let forged = "GET /FORGED HTTP/1.1\r\nHost: evil.test\r\n\r\n";
                for start in [
                    "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
                    "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\n\r\n",
                    "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    // The server does not switch, so what follows is requests.
                    "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                    "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
                ] {
                    let mut stream = patient(good);
                    stream.write_all(format!("{start}{forged}").as_bytes()).unwrap();
                    drain(&mut stream);
                }
            })
            .await;
        assert!(arrived.contains("GET / HTTP/1.1"));
        assert!(!arrived.contains("FORGED"));
    });
}

#[test]
fn a_websocket_goes_on_untouched() {
    on_a_host(|world| async move {
        world
            .outside
            .shell(format!("ip addr add {GOOD}/32 dev lo"))
            .await;
        let listener = world
            .outside
            .run(|| server::listen(&format!("{GOOD}:80")))
            .await;
        world.outside.start(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let count = stream.read(&mut head).unwrap();
            assert!(head[..count].ends_with(b"\r\n\r\n"));
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                .unwrap();
            let mut frame = [0; 4];
            stream.read_exact(&mut frame).unwrap();
            stream.write_all(&frame).unwrap();
        });
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test"]).await;
        let echoed = vm
            .place
            .run(|| {
                let mut stream = patient((GOOD, 80).into());
                let ask = b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                assert!(say(&mut stream, ask).unwrap().starts_with("HTTP/1.1 101"));
                stream.write_all(&[0x81, 2, b'h', b'i']).unwrap();
                let mut frame = [0; 4];
                stream.read_exact(&mut frame).map(|()| frame)
            })
            .await;
        assert_eq!(echoed.unwrap(), [0x81, 2, b'h', b'i']);
    });
}

#[test]
fn a_large_transfer_passes_whole_both_ways() {
    on_a_host(|world| async move {
        const TOTAL: usize = 48 << 20;
        let pattern = || {
            (0..TOTAL)
                .map(|at| (at / 7 % 251) as u8)
                .collect::<Vec<u8>>()
        };
        world
            .outside
            .shell(format!("ip addr add {GOOD}/32 dev lo"))
            .await;
        let listener = world
            .outside
            .run(|| server::listen(&format!("{GOOD}:443")))
            .await;
        let hello = greeting(Some("allowed.test"));
        let sent = hello.clone();
        let received = world.outside.run(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut first = vec![0; hello.len()];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(first, hello);
            let mut writer = stream.try_clone().unwrap();
            let writing = std::thread::spawn(move || {
                writer.write_all(&pattern()).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            writing.join().unwrap();
            all == pattern()
        });
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test"]).await;
        let came_back = vm.place.run(move || {
            let mut stream = patient((GOOD, 443).into());
            stream.write_all(&sent).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let writing = std::thread::spawn(move || {
                writer.write_all(&pattern()).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            writing.join().unwrap();
            all == pattern()
        });
        let (received, came_back) = tokio::join!(received, came_back);
        assert!(received && came_back);
    });
}

#[test]
fn a_change_cuts_what_it_no_longer_allows_and_nothing_else() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let other = instance.vm(1).await;
        let mut bystander = other.connect(ECHO).await;
        let vm = instance.vm(0).await;
        let mut direct = vm.connect(ECHO).await;
        direct.talk("open");

        // From open to names: what was direct ends.
        instance
            .network
            .set_policy(0, names(&["allowed.test", "x.wild.test"]))
            .await
            .unwrap();
        assert!(
            direct.broken().is_some(),
            "a connection outlives its policy"
        );
        vm.resolve("allowed.test.").await.unwrap();
        let hello = greeting(Some("allowed.test"));
        let mut proxied = vm
            .place
            .run(move || {
                let mut stream = patient((GOOD, 443).into());
                assert!(
                    say(&mut stream, &hello)
                        .unwrap()
                        .starts_with("HTTP/1.1 200")
                );
                stream
            })
            .await;
        // To other names that still reach it: it stays.
        instance
            .network
            .set_policy(0, names(&["*.test"]))
            .await
            .unwrap();
        assert!(say(&mut proxied, b"more").is_some());
        // To names without it: it ends.
        instance
            .network
            .set_policy(0, names(&["x.wild.test"]))
            .await
            .unwrap();
        let (_, error) = drain(&mut proxied);
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
        assert!(
            !Try::tls(GOOD, Some("allowed.test"))
                .reaches(&vm.place)
                .await
        );

        // And open again, at once.
        instance
            .network
            .set_policy(0, Policy::default())
            .await
            .unwrap();
        assert!(Try::tcp(ATTACKER, 22).reaches(&vm.place).await);
        bystander.talk("the other VM has noticed nothing");
    });
}

#[test]
fn clients_that_say_nothing_take_only_their_own_places() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let greedy = vm_with(&instance, 0, &["allowed.test"]).await;
        let modest = vm_with(&instance, 1, &["allowed.test"]).await;
        let idle = greedy
            .place
            .run(|| {
                let connect = |_| {
                    let mut stream = patient((GOOD, 443).into());
                    let _ = stream.write_all(&[22, 3]);
                    stream
                };
                (0..1100).map(connect).collect::<Vec<_>>()
            })
            .await;
        let allowed = || Try::tls(GOOD, Some("allowed.test"));
        assert!(allowed().reaches(&modest.place).await);
        // Those that say nothing lose their places after a while.
        let ended = greedy
            .place
            .run(move || idle.into_iter().map(|mut one| drain(&mut one)).count());
        assert_eq!(ended.await, 1100);
        assert!(allowed().reaches(&greedy.place).await);
        assert!(instance.network.refusals(0) > 0);
    });
}

/// Sends a resolver packets that are no questions, and questions that are cut off.
fn send_nonsense(resolver: SocketAddr) {
    let socket = server::udp("0.0.0.0:0");
    let question = server::query("allowed.test.");
    for size in 0..400 {
        let packet: Vec<u8> = (0..size).map(|at| (at * 31 + size) as u8).collect();
        let _ = socket.send_to(&packet, resolver);
        // So many at once are answered in any case.
        if size % 16 == 0 {
            let asking = server::udp("0.0.0.0:0");
            asking.send_to(&question, resolver).unwrap();
            asking.recv(&mut [0; 512]).unwrap();
        }
    }
    for cut in 1..30 {
        let _ = socket.send_to(&question[..question.len().saturating_sub(cut)], resolver);
    }
}

#[test]
#[rustfmt::skip]
fn what_has_no_end_or_no_sense_ends_soon() {
    on_a_host(|world| async move {
        let arrived = internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test"]).await;
        let gateway = SocketAddr::from((vm.link.gateway, 53));
        let answers = vm
            .place
            .run(move || {
                // What is sent, how often, and to which port.
                let hello = greeting(Some("allowed.test"));
                let endless: [(u16, Vec<u8>, Vec<u8>); 6] = [
                    (80, b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: ".to_vec(), vec![b'x'; 1 << 16]),
                    (80, b"GET / HTTP/1.1\r\nHost: allowed.test\r\n".to_vec(), b"X: y\r\n".repeat(1 << 13)),
                    (80, b"GET /".to_vec(), vec![b'x'; 1 << 16]),
                    (443, hello[..20].to_vec(), vec![0; 1 << 16]),
                    (443, vec![], [&[22, 3, 1, 0, 1][..], &[1]].concat().repeat(1 << 14)),
                    (443, vec![], vec![0xff; 1 << 16]),
                ];
                endless.map(|(port, start, part)| {
                    let mut stream = patient((GOOD, port).into());
                    stream.write_all(&start).unwrap();
                    let mut sent = 0;
                    while sent < 10 << 20 && stream.write_all(&part).is_ok() {
                        sent += part.len();
                    }
                    drain(&mut stream).0
                })
            })
            .await;
        for (answer, begins) in answers
            .iter()
            .zip([&b"HTTP/1.1 400 "[..]; 3].iter().chain(&[&[21, 3][..]; 3]))
        {
            assert!(
                answer.is_empty() || answer.starts_with(begins),
                "{answer:?}"
            );
        }
        assert!(!arrived.contains("xxxx") && !arrived.contains("X: y"));
        // Packets that are no questions are answered as such or not at all, and those that are go on.
        vm.place.run(move || send_nonsense(gateway)).await;
        vm.resolve("allowed.test.").await.unwrap();
        assert!(
            Try::tls(GOOD, Some("allowed.test"))
                .reaches(&vm.place)
                .await
        );
        assert!(instance.network.refusals(0) >= 6);
    });
}

#[test]
fn a_client_that_drips_its_greeting_is_not_waited_for() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let instance = Instance::open(41).await;
        let vm = vm_with(&instance, 0, &["allowed.test"]).await;
        let ends = vm.place.run(move || {
            let hello = greeting(Some("allowed.test"));
            let started = std::time::Instant::now();
            let mut stream = patient((GOOD, 443).into());
            // A byte each half second would take half a minute.
            stream
                .set_read_timeout(Some(std::time::Duration::from_millis(500)))
                .unwrap();
            for byte in hello {
                if stream.write_all(&[byte]).is_err() || matches!(stream.read(&mut [0; 16]), Ok(_))
                {
                    return started.elapsed();
                }
            }
            started.elapsed()
        });
        assert!(ends.await.as_secs() < 20);
    });
}
