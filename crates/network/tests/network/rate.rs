//! What may cross a link in a second.

use crate::internet::{self, GOOD};
use crate::server;
use crate::world::{Instance, World, on_a_host};
use instavm_network::NetworkConfig;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How fast a VM downloads and uploads, in million bits a second.
async fn speeds(world: &World, rate_mbit: Option<u32>) -> [f64; 2] {
    const FOR: Duration = Duration::from_millis(1500);
    let config = NetworkConfig {
        rate_mbit,
        ..World::config(41)
    };
    let instance = Instance::with(config).await;
    let vm = instance.vm(0).await;
    let mut speeds = [0.0; 2];
    for (upload, speed) in [(false, 0), (true, 1)] {
        let at = format!("{GOOD}:{}", 9000 + speed);
        let there = at.clone();
        let listener = world.outside.run(move || server::listen(&there)).await;
        world.outside.start(move || {
            let (mut stream, _) = listener.accept().expect("accepting");
            let mut block = vec![7; 1 << 16];
            while matches!(
                if upload {
                    stream.read(&mut block)
                } else {
                    stream.write(&block)
                },
                Ok(1..)
            ) {}
        });
        let bytes = vm.place.run(move || {
            let mut stream = TcpStream::connect(at).expect("connecting");
            // What waits to be sent has not crossed the link.
            socket2::SockRef::from(&stream)
                .set_send_buffer_size(64 << 10)
                .expect("setting a size");
            stream
                .set_write_timeout(Some(FOR))
                .expect("setting a timeout");
            let (started, mut bytes, mut block) = (Instant::now(), 0, vec![7; 1 << 14]);
            while started.elapsed() < FOR {
                let done = if upload {
                    stream.write(&block)
                } else {
                    stream.read(&mut block)
                };
                bytes += done.unwrap_or(0);
            }
            bytes
        });
        speeds[speed] = bytes.await as f64 * 8.0 / 1e6 / FOR.as_secs_f64();
    }
    instance.close().await;
    speeds
}

#[test]
fn a_link_carries_no_more_than_its_rate_and_not_much_less() {
    on_a_host(|world| async move {
        internet::build(&world).await;
        let free = speeds(&world, None).await;
        for speed in free {
            assert!(speed > 200.0, "{free:?} without a rate");
        }
        let bound = speeds(&world, Some(40)).await;
        // What was not used in the second before may pass at once.
        for speed in bound {
            assert!((10.0..90.0).contains(&speed), "{bound:?} at 40");
        }
    });
}
