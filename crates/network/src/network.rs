//! The network of one instance, as the node sees it.

use crate::conntrack::{self, ConntrackError, Flow};
use crate::egress::{Egress, Refused, Rule};
use crate::firewall::{self, Firewall, FirewallError, Limits, Listing};
use crate::link::{self, Counters, Link, LinkError};
use crate::netlink::{Worker, WorkerError};
use crate::plan::{DEFAULT_RANGE, Plan, Slot, VMS_PER_SLOT};
use crate::policy::Policy;
use crate::proxy::{Proxy, UpstreamProxy};
use crate::reaper::{self, ReapError, Reaper};
use crate::resolver::Sockets;
use crate::socket::SocketError;
use ipnet::{IpNet, Ipv4Net};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The switch that makes the host forward packets.
pub(crate) const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// How long a VM's end of a link may take to be up, and how often that is looked at.
const RAISED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long what the firewall has counted is not asked for again: that starts a program.
const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// Why the network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configured range does not start a /14.
    #[error(
        "network range {0} does not start a /14. FIX: use an address such as 100.64.0.0 or 10.64.0.0"
    )]
    Range(Ipv4Addr),
    /// Forwarding is off and cannot be turned on.
    #[error(
        "turning on IPv4 forwarding. FIX: run `sysctl -w net.ipv4.ip_forward=1` on the host, or run the daemon where /proc/sys is writable"
    )]
    Forwarding(#[source] std::io::Error),
    /// The folder of names cannot be made.
    #[error("making the folder {} for the names that VMs look up", path.display())]
    Names {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Links and what they leave behind.
    #[error(transparent)]
    Reap(#[from] ReapError),
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The sockets of resolver and proxy.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Tracked connections.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
}

impl From<WorkerError> for NetworkError {
    fn from(error: WorkerError) -> Self {
        Self::Link(error.into())
    }
}

/// What a network is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The instance's number on its host.
    pub slot: Slot,
    /// The first address of the /14 that all instances of the host share.
    pub range: Ipv4Addr,
    /// Further ranges that no VM reaches. VMs have no IPv6, so IPv6 ranges are closed anyway.
    pub denied: Vec<IpNet>,
    /// The resolvers that VMs' questions are passed on to; `None` for those of the host's `/etc/resolv.conf`.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// The proxy by which connections to ports 80 and 443 leave; `None`: straight.
    pub upstream: Option<UpstreamProxy>,
    /// What may cross a VM's link each way, in million bits a second; `None`: as much as it carries.
    pub rate_mbit: Option<u32>,
    /// A folder of its own for what VMs' lookups gave, so that it outlasts this process; `None`: it does not.
    pub names: Option<PathBuf>,
}

impl NetworkConfig {
    /// The defaults for a slot.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            range: DEFAULT_RANGE,
            denied: Vec::new(),
            resolvers: None,
            upstream: None,
            rate_mbit: None,
            names: None,
        }
    }
}

/// The network of a running instance.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
    worker: Worker,
    reaper: Reaper,
    egress: Arc<Egress>,
    firewall: Firewall,
    /// The table as it was loaded. Held while the policy of a VM is changed.
    changing: tokio::sync::Mutex<Listing>,
    /// What the firewall has counted, and when it was asked.
    counted: tokio::sync::Mutex<Option<(Instant, Vec<(Rule, u64)>)>>,
    mtu: u32,
    stop: CancellationToken,
}

impl Network {
    /// Puts the instance's network in force, or takes it over after a restart: living VMs and their open connections
    /// notice nothing. Its tasks run on `tracker` and end on `stop`, after the links that are still to go.
    pub async fn open(
        config: NetworkConfig,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, NetworkError> {
        Self::open_with(config, [], tracker, stop).await
    }

    /// As [`Network::open`], with the policies of VMs that live: they are in force without a gap.
    pub async fn open_with(
        config: NetworkConfig,
        policies: impl IntoIterator<Item = (u16, Policy)>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, NetworkError> {
        let plan = Plan::new(config.slot, config.range).ok_or(NetworkError::Range(config.range))?;
        let stop = stop.child_token();
        // Whatever fails from here on ends the tasks that were started.
        let guard = stop.clone().drop_guard();
        enable_forwarding()?;
        let worker = Worker::start(tracker, stop.clone()).await?;
        let (mtu, _) = worker.run(link::uplink_mtu).await??;
        let (sockets, proxy) = (Sockets::bind(&plan)?, Proxy::bind(&plan)?);
        let denied = config.denied.iter().filter_map(ipv4).collect();
        let firewall = Firewall {
            plan,
            denied,
            resolver_port: sockets.port(),
            proxy_port: proxy.port(),
            upstream: config.upstream.is_some(),
            rate_mbit: config.rate_mbit,
        };
        let policies: Vec<(u16, Policy)> = policies.into_iter().collect();
        let limits = policies
            .iter()
            .map(|(index, policy)| (*index, Limits::of(policy)));
        firewall.install(limits).await?;
        let loaded = Listing::take(plan.slot()).await?.unwrap_or_default();
        let egress = Arc::new(gates(policies, config.names)?);
        tracker.spawn(firewall::listen(plan, egress.clone(), stop.clone()));
        sockets.serve(
            plan,
            egress.clone(),
            config.resolvers,
            tracker,
            stop.clone(),
        );
        let upstream = config.upstream;
        proxy.serve(plan, egress.clone(), upstream, tracker, stop.clone());
        // The reaper's worker ends with the reaper, which outlasts `stop` until its queue is empty.
        let slow = Worker::start(tracker, CancellationToken::new()).await?;
        forget_absent(plan, &slow, &egress).await?;
        let reaper = Reaper::start(plan, slow, tracker, stop.clone());
        Ok(Self {
            plan,
            worker,
            reaper,
            egress,
            firewall,
            changing: tokio::sync::Mutex::new(loaded),
            counted: tokio::sync::Mutex::default(),
            mtu,
            stop: guard.disarm(),
        })
    }

    /// Who owns which address.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the VM whose first process is `pid` its link: `eth0` in that process's network namespace, to be configured
    /// from inside by what is returned. A link that an earlier VM has left under this index is removed first.
    pub async fn attach(&self, index: u16, pid: i32) -> Result<Link, NetworkError> {
        check_index(index)?;
        let plan = self.plan;
        self.open_gate(index).await?;
        if self.reaper.reclaim(index).await
            && let Err(error) = self.take_down(index).await
        {
            self.reaper.add(index);
            return Err(error);
        }
        match self.create(index, pid).await {
            Err(NetworkError::Link(error)) if error.is(Errno::EXIST) => {
                tracing::warn!(
                    link = plan.slot().link_name(index),
                    "replacing a link that was left behind"
                );
                self.take_down(index).await?;
                self.create(index, pid).await
            }
            done => done,
        }
    }

    /// Waits until a link that the VM has raised from inside carries packets both ways, at most two seconds. The kernel
    /// starts the host's end a moment after the VM's; what is sent to the VM before is lost, and its first exchange
    /// would take a second more.
    pub async fn ready(&self, index: u16) -> Result<(), NetworkError> {
        check_index(index)?;
        let name = self.plan.slot().link_name(index);
        let started = Instant::now();
        while started.elapsed() < RAISED_WITHIN {
            let name = name.clone();
            if self
                .worker
                .run(move |handle| link::is_ready(handle, name))
                .await??
            {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(LinkError::NotReady(name).into())
    }

    /// Removes a VM's link, behind: returns at once. The index can be given again at once, too; attaching waits then.
    /// Call it for every VM that has ended, also when its namespace has taken the link along: the host's memory of its
    /// connections goes here.
    pub fn detach(&self, index: u16) {
        if index < VMS_PER_SLOT {
            self.egress.forget(index);
            self.reaper.add(index);
        }
    }

    /// Waits until every detached link is gone.
    pub async fn settled(&self) {
        self.reaper.idle().await;
    }

    /// How many detached links are still to go.
    #[must_use]
    pub fn leaving(&self) -> usize {
        self.reaper.len()
    }

    /// Gives a VM another policy. When this returns it is in force for new connections, and what was open and is not
    /// allowed any more is cut. On an error the old one stays.
    pub async fn set_policy(&self, index: u16, policy: Policy) -> Result<(), NetworkError> {
        check_index(index)?;
        let _turn = self.changing.lock().await;
        let new = Arc::new(policy);
        let old = self.egress.replace(index, new.clone());
        let done = match self.limit(index, &old, &new).await {
            Ok(()) => self.cut(index, &old, &new).await,
            failed => {
                self.egress.replace(index, old);
                return failed;
            }
        };
        if done.is_err() {
            self.egress.replace(index, old.clone());
            self.limit(index, &new, &old).await?;
            return done;
        }
        self.egress.cut(index);
        Ok(())
    }

    /// The policy of a VM.
    #[must_use]
    pub fn policy(&self, index: u16) -> Arc<Policy> {
        self.egress.policy(index)
    }

    /// How many refusals of a VM have been noticed since its link was made or the daemon started: every one of resolver
    /// and proxy, and of the firewall's those that were told.
    #[must_use]
    pub fn refusals(&self, index: u16) -> u64 {
        self.egress.refusals(index)
    }

    /// What is refused from now on, at a bounded rate for each VM.
    #[must_use]
    pub fn told(&self) -> broadcast::Receiver<Refused> {
        self.egress.told()
    }

    /// How often each rule has refused since the daemon started: lookups, connections, and of the firewall packets.
    pub async fn refusal_counts(&self) -> Result<Vec<(Rule, u64)>, NetworkError> {
        let mut counts = self.egress.counts();
        let mut counted = self.counted.lock().await;
        let packets = match counted.take() {
            Some((at, packets)) if at.elapsed() < COUNTED_WITHIN => counted.insert((at, packets)),
            _ => {
                let packets = firewall::counts(self.plan.slot()).await?;
                counted.insert((Instant::now(), packets))
            }
        };
        for (rule, packets) in &packets.1 {
            let known = counts.iter_mut().filter(|(known, _)| known == rule);
            known.for_each(|(_, count)| *count += packets);
        }
        Ok(counts)
    }

    /// What the kernel has of the firewall and of our sockets that is not as it should be, a line each.
    pub async fn mismatches(&self) -> Result<Vec<String>, NetworkError> {
        let loaded = self.changing.lock().await;
        let mut lines = self.misfits(&loaded).await?;
        drop(loaded);
        let ports = [self.firewall.resolver_port, self.firewall.proxy_port];
        lines.extend(crate::socket::missing(ports[0], ports[1]));
        Ok(lines)
    }

    /// Loads the table anew if it is not as it should be; what was wrong. Connections that are open stay open.
    pub async fn repair(&self) -> Result<Vec<String>, NetworkError> {
        let mut loaded = self.changing.lock().await;
        let lines = self.misfits(&loaded).await?;
        if !lines.is_empty() {
            self.firewall.install(self.limits()).await?;
            *loaded = Listing::take(self.plan.slot()).await?.unwrap_or_default();
        }
        Ok(lines)
    }

    async fn misfits(&self, loaded: &Listing) -> Result<Vec<String>, NetworkError> {
        let Some(now) = Listing::take(self.plan.slot()).await? else {
            return Ok(vec![missing_table(self.plan.slot())]);
        };
        let mut lines = now.differences(loaded);
        lines.extend(now.misfits(self.plan, &self.limits()));
        Ok(lines)
    }

    fn limits(&self) -> Vec<(u16, Limits)> {
        let policies = self.egress.policies().into_iter();
        let limits = policies.map(|(index, policy)| (index, Limits::of(&policy)));
        limits.collect()
    }

    /// What crossed a VM's link.
    pub async fn counters(&self, index: u16) -> Result<Counters, NetworkError> {
        check_index(index)?;
        let name = self.plan.slot().link_name(index);
        Ok(self
            .worker
            .run(move |handle| link::counters(handle, name))
            .await??)
    }

    /// The indices of the instance's links that the kernel has, ascending.
    pub async fn links(&self) -> Result<Vec<u16>, NetworkError> {
        let slot = self.plan.slot();
        Ok(self
            .worker
            .run(move |handle| link::list(handle, slot))
            .await??)
    }

    /// Ends the resolver and the tasks; links and firewall stay in force for the next start. What is still to go goes
    /// before the tracker's tasks have ended.
    pub fn close(&self) {
        self.stop.cancel();
    }

    /// Makes the policy of an index open again, for the next VM that has it.
    async fn open_gate(&self, index: u16) -> Result<(), NetworkError> {
        let _turn = self.changing.lock().await;
        let open = Arc::new(Policy::default());
        let old = self.egress.policy(index);
        self.limit(index, &old, &open).await?;
        self.egress.renew(index);
        Ok(())
    }

    async fn limit(&self, index: u16, old: &Policy, new: &Policy) -> Result<(), NetworkError> {
        let (old, new) = (Limits::of(old), Limits::of(new));
        Ok(Firewall::limit(self.plan, index, &old, &new).await?)
    }

    /// Forgets the connections that the old policy let pass directly and the new one does not.
    async fn cut(&self, index: u16, old: &Policy, new: &Arc<Policy>) -> Result<(), NetworkError> {
        if new.is_open() || Limits::of(old) == Limits::of(new) {
            return Ok(());
        }
        let (plan, new) = (self.plan, new.clone());
        let own = plan.address(index);
        let forbidden = move |flow: &Flow| {
            // What a VM says to its gateway, and what goes through the proxy, is not the firewall's to judge.
            flow.source == own
                && !plan.range().contains(&flow.destination)
                && !plan.range().contains(&flow.answers)
                && !new.passes(flow.destination, flow.protocol, flow.port)
        };
        self.worker
            .run(move |_| conntrack::forget(forbidden))
            .await??;
        Ok(())
    }

    async fn create(&self, index: u16, pid: i32) -> Result<Link, NetworkError> {
        let (plan, mtu) = (self.plan, self.mtu);
        let pid = u32::try_from(pid).unwrap_or(0);
        Ok(self
            .worker
            .run(move |handle| link::create(handle, plan, index, pid, mtu))
            .await??)
    }

    async fn take_down(&self, index: u16) -> Result<(), NetworkError> {
        let plan = self.plan;
        let job = move |handle| reaper::take_down(handle, plan, vec![index]);
        Ok(self.worker.run(job).await??)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the kernel holds of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The firewall table is in force.
    pub firewall: bool,
    /// The indices of its links, ascending.
    pub links: Vec<u16>,
}

/// What the firewall of an instance has that does not fit these policies of VMs, a line each, while no daemon runs. Of
/// other VMs nothing is said.
pub async fn misfits(
    slot: Slot,
    policies: impl IntoIterator<Item = (u16, Policy)>,
) -> Result<Vec<String>, NetworkError> {
    let limits = policies
        .into_iter()
        .map(|(index, policy)| (index, Limits::of(&policy)));
    let limits: Vec<(u16, Limits)> = limits.collect();
    let Some(mut listing) = Listing::take(slot).await? else {
        return Ok(vec![missing_table(slot)]);
    };
    listing.only(slot, |index| limits.iter().any(|(one, _)| *one == index));
    // Only names of links are asked for, which no range changes.
    let plan = Plan::new(slot, DEFAULT_RANGE).ok_or(NetworkError::Range(DEFAULT_RANGE))?;
    Ok(listing.misfits(plan, &limits))
}

fn missing_table(slot: Slot) -> String {
    format!("firewall: missing: table inet {}", slot.table())
}

/// The gates of all VMs. Their names are kept below a folder, which only root reads.
fn gates(
    policies: impl IntoIterator<Item = (u16, Policy)>,
    names: Option<PathBuf>,
) -> Result<Egress, NetworkError> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(path) = &names {
        let mut folder = std::fs::DirBuilder::new();
        let made = folder.recursive(true).mode(0o700).create(path);
        made.map_err(|source| NetworkError::Names {
            path: path.clone(),
            source,
        })?;
    }
    Ok(Egress::new(policies, names.as_deref()))
}

/// What the kernel holds of an instance, without changing anything.
pub async fn state(slot: Slot) -> Result<State, NetworkError> {
    let firewall = firewall::installed(slot).await?;
    let links = with_worker(move |handle| link::list(handle, slot)).await??;
    Ok(State { firewall, links })
}

/// Removes every link and the firewall table of an instance. It need not run, and there need not be anything.
pub async fn destroy(slot: Slot) -> Result<(), NetworkError> {
    with_worker(move |handle| async move {
        let links = link::list(handle.clone(), slot).await?;
        reaper::delete_all(handle, slot, links).await
    })
    .await??;
    // The firewall goes last: no VM has a link without one.
    Ok(firewall::remove(slot).await?)
}

pub(crate) async fn with_worker<T, F, Fut>(job: F) -> Result<T, WorkerError>
where
    T: Send + 'static,
    F: FnOnce(rtnetlink::Handle) -> Fut + Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let tracker = TaskTracker::new();
    let worker = Worker::start(&tracker, CancellationToken::new()).await?;
    let result = worker.run(job).await;
    drop(worker);
    tracker.close();
    tracker.wait().await;
    result
}

/// Forgets connections and names of VMs whose links are gone: a daemon that was killed may have missed their end.
async fn forget_absent(plan: Plan, worker: &Worker, egress: &Egress) -> Result<(), NetworkError> {
    let links = worker
        .run(move |handle| async move {
            let links: BTreeSet<u16> = link::list(handle, plan.slot()).await?.into_iter().collect();
            let there = links.clone();
            reaper::forget(plan, move |index| !there.contains(&index)).await?;
            Ok::<_, NetworkError>(links)
        })
        .await??;
    let absent = (0..VMS_PER_SLOT).filter(|index| !links.contains(index));
    absent.for_each(|index| egress.forget(index));
    Ok(())
}

fn enable_forwarding() -> Result<(), NetworkError> {
    let on = std::fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1");
    if on {
        return Ok(());
    }
    tracing::info!("turning on IPv4 forwarding");
    std::fs::write(IP_FORWARD, "1").map_err(NetworkError::Forwarding)
}

fn check_index(index: u16) -> Result<(), NetworkError> {
    if index < VMS_PER_SLOT {
        Ok(())
    } else {
        Err(LinkError::Index(index).into())
    }
}

fn ipv4(net: &IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    }
}
