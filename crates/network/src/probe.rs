//! What works on this host, for `instavmd doctor`.

use crate::firewall::{self, Firewall};
use crate::link;
use crate::network::IP_FORWARD;
use crate::plan::{DEFAULT_RANGE, Plan, Slot};
use crate::resolver::{SYSTEM, system_servers};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkVeth;
use rustix::fs::Access;
use std::io;
use tokio::sync::oneshot;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeStatus {
    /// It works.
    Good,
    /// VMs start, but will miss something.
    Warning,
    /// VMs with a network cannot start.
    Failed,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was checked.
    pub name: &'static str,
    /// How it went.
    pub status: ProbeStatus,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when it is good.
    pub fix: String,
}

impl Probe {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: ProbeStatus::Good,
            detail: detail.into(),
            fix: String::new(),
        }
    }

    fn bad(name: &'static str, status: ProbeStatus, detail: impl Into<String>, fix: &str) -> Self {
        Self {
            name,
            status,
            detail: detail.into(),
            fix: fix.to_owned(),
        }
    }
}

/// Checks everything that the network of VMs needs, without changing the host.
pub async fn probe() -> Vec<Probe> {
    vec![
        firewall().await,
        links().await,
        forwarding(),
        route().await,
        other_firewalls().await,
        resolvers(),
    ]
}

async fn firewall() -> Probe {
    let name = "firewall";
    let fix = "install the package nftables (1.0 or newer) and run as root with CAP_NET_ADMIN on a kernel with nf_tables, its NAT, fib and socket expressions";
    let Some(plan) = Slot::new(Slot::LAST).and_then(|slot| Plan::new(slot, DEFAULT_RANGE)) else {
        return Probe::bad(name, ProbeStatus::Failed, "no address plan", fix);
    };
    let table = Firewall {
        plan,
        denied: Vec::new(),
        resolver_port: 1,
        proxy_port: 2,
        upstream: true,
        rate_mbit: Some(1),
    };
    match table.check().await {
        Ok(()) => Probe::good(name, "nft takes the table"),
        Err(error) => Probe::bad(name, ProbeStatus::Failed, error.to_string(), fix),
    }
}

async fn links() -> Probe {
    let name = "links";
    match throw_away_link().await {
        Ok(()) => Probe::good(name, "veth links can be made in a new network namespace"),
        Err(error) => Probe::bad(
            name,
            ProbeStatus::Failed,
            error.to_string(),
            "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN on a kernel with veth and network namespaces",
        ),
    }
}

/// Makes a veth pair in a network namespace that ends with the thread that is in it.
async fn throw_away_link() -> io::Result<()> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("link-probe".to_owned());
    thread.spawn(move || {
        let outcome = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let (connection, handle, _) = rtnetlink::new_connection()?;
                    let pair = LinkVeth::new("probe0", "probe1").build();
                    tokio::select! {
                        made = handle.link().add(pair).execute() => made.map_err(io::Error::other),
                        () = connection => Err(io::ErrorKind::BrokenPipe.into()),
                    }
                })
            });
        // The asker may have gone away.
        let _ = done.send(outcome);
    })?;
    result.await.map_err(io::Error::other)?
}

fn forwarding() -> Probe {
    let name = "forwarding";
    let on = std::fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1");
    if on {
        return Probe::good(name, "IPv4 forwarding is on");
    }
    match rustix::fs::access(IP_FORWARD, Access::WRITE_OK) {
        Ok(()) => Probe::good(name, "IPv4 forwarding is off; the daemon turns it on"),
        Err(error) => Probe::bad(
            name,
            ProbeStatus::Failed,
            format!("IPv4 forwarding is off and {IP_FORWARD} cannot be written: {error}"),
            "run `sysctl -w net.ipv4.ip_forward=1` on the host",
        ),
    }
}

async fn route() -> Probe {
    let name = "default route";
    match crate::network::with_worker(link::uplink_mtu).await {
        Ok(Ok((mtu, true))) => Probe::good(name, format!("found; links get an MTU of {mtu}")),
        Ok(Ok((_, false))) => Probe::bad(
            name,
            ProbeStatus::Warning,
            "the host has no IPv4 default route: VMs reach nothing outside",
            "give the host a default route",
        ),
        Ok(Err(error)) => Probe::bad(name, ProbeStatus::Failed, error.to_string(), "run as root"),
        Err(error) => Probe::bad(name, ProbeStatus::Failed, error.to_string(), "run as root"),
    }
}

async fn other_firewalls() -> Probe {
    let name = "other firewalls";
    match firewall::foreign_forward_drops().await {
        Ok(drops) if drops.is_empty() => {
            Probe::good(name, "no other table drops what is forwarded")
        }
        Ok(drops) => Probe::bad(
            name,
            ProbeStatus::Warning,
            format!("drop forwarded packets by default: {}", drops.join(", ")),
            "allow packets from and to links named iv* there; with Docker: `iptables -I DOCKER-USER -i iv+ -j ACCEPT` and `iptables -I DOCKER-USER -o iv+ -j ACCEPT`",
        ),
        Err(error) => Probe::bad(
            name,
            ProbeStatus::Failed,
            error.to_string(),
            "install the package nftables and run as root",
        ),
    }
}

fn resolvers() -> Probe {
    let name = "resolvers";
    let servers: Vec<String> = system_servers()
        .iter()
        .map(|server| server.ip.to_string())
        .collect();
    if servers.is_empty() {
        return Probe::bad(
            name,
            ProbeStatus::Warning,
            format!("{SYSTEM} names no resolver: VMs resolve no names"),
            "put a `nameserver` line there, or configure resolvers of the daemon's own",
        );
    }
    Probe::good(name, format!("VMs' questions go to {}", servers.join(", ")))
}
