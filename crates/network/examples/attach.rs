//! How long it takes to give VMs their links, and to take them away. Run it as root; it works in a network namespace of
//! its own: `cargo run --release -p instavm-network --example attach -- 200`

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use anyhow::Context;
use instavm_network::{Network, NetworkConfig, Slot};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn main() -> anyhow::Result<()> {
    let links: u16 = match std::env::args().nth(1) {
        Some(count) => count.parse().context("the number of links")?,
        None => 200,
    };
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (run as root)")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(links))
}

async fn measure(links: u16) -> anyhow::Result<()> {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let slot = Slot::new(Slot::LAST).context("the last slot")?;
    let started = Instant::now();
    let network = Network::open(NetworkConfig::new(slot), &tracker, &stop).await?;
    println!(
        "open                      {:8.2} ms",
        milliseconds(started.elapsed())
    );

    let namespaces = Namespaces::make(links)?;
    report("attach", attach(&network, &namespaces, 0..links / 2).await?);
    let started = Instant::now();
    (0..links / 2).for_each(|index| network.detach(index));
    println!(
        "detach, all calls         {:8.2} ms",
        milliseconds(started.elapsed())
    );
    report(
        "attach beside deletions",
        attach(&network, &namespaces, links / 2..links).await?,
    );
    network.settled().await;
    println!(
        "{} links gone after      {:8.2} ms",
        links / 2,
        milliseconds(started.elapsed())
    );
    let started = Instant::now();
    network.counters(links - 1).await?;
    println!(
        "counters                  {:8.2} ms",
        milliseconds(started.elapsed())
    );
    network.close();
    tracker.close();
    tracker.wait().await;
    Ok(())
}

async fn attach(
    network: &Network,
    namespaces: &Namespaces,
    indices: std::ops::Range<u16>,
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for index in indices {
        let started = Instant::now();
        network
            .attach(index, namespaces.ids[usize::from(index)])
            .await?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Threads with a network namespace each.
struct Namespaces {
    ids: Vec<i32>,
    _alive: Vec<mpsc::Sender<()>>,
}

impl Namespaces {
    fn make(count: u16) -> anyhow::Result<Self> {
        let (mut ids, mut alive) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (hold, wait) = mpsc::channel::<()>();
            let (made, id) = mpsc::channel();
            std::thread::spawn(move || {
                let _ = made.send(unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw()));
                // Ends when the other end is dropped.
                let _ = wait.recv();
            });
            ids.push(id.recv()?.context("making a VM's network namespace")?);
            alive.push(hold);
        }
        Ok(Self { ids, _alive: alive })
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| milliseconds(times[(times.len() - 1) * percent / 100]);
    println!(
        "{what:25} p50 {:6.2} ms  p90 {:6.2} ms  p99 {:6.2} ms  max {:6.2} ms  n={}",
        at(50),
        at(90),
        at(99),
        at(100),
        times.len()
    );
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
