//! Links: the veth pair of every VM, made and deleted by netlink.

use crate::netlink::WorkerError;
use crate::plan::{LINK_PREFIX, Plan, Slot, VM_LINK};
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// The smallest MTU that every IPv4 host takes.
const MIN_MTU: u32 = 576;
/// The MTU of links on a host without a default route.
const DEFAULT_MTU: u32 = 1500;

/// What went wrong with a link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The worker that does it is not there.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The kernel refused a request.
    #[error("{operation} {name}")]
    Request {
        /// What was asked for.
        operation: &'static str,
        /// The link.
        name: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// A setting of the link cannot be written.
    #[error("writing {}", path.display())]
    Setting {
        /// The setting's file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// There is no such link.
    #[error("there is no link {0}")]
    Absent(String),
    /// Its other end did not come up.
    #[error("link {0} is not up: the VM has not raised its end")]
    NotReady(String),
    /// The index is outside of the instance's range.
    #[error("index {0} is not below 1024")]
    Index(u16),
}

impl LinkError {
    fn request(operation: &'static str, name: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Request {
            operation,
            name,
            source,
        }
    }

    /// The system's error number behind it, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Request {
                source: rtnetlink::Error::NetlinkError(message),
                ..
            } => message.code.map(|code| -code.get()),
            _ => None,
        }
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

/// A VM's link, as its own end is to be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The link's name inside the VM.
    pub name: String,
    /// The VM's address.
    pub address: Ipv4Addr,
    /// The length of the prefix of its network.
    pub prefix: u8,
    /// The default gateway, which is also the resolver.
    pub gateway: Ipv4Addr,
    /// The largest packet; already set on the link.
    pub mtu: u32,
}

/// What crossed a VM's link since it was made, seen from the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the VM received.
    pub rx_bytes: u64,
    /// Bytes that the VM sent.
    pub tx_bytes: u64,
    /// Packets that the VM received.
    pub rx_packets: u64,
    /// Packets that the VM sent.
    pub tx_packets: u64,
}

/// Makes the veth pair of a VM: the host's end up with the gateway's address, the other end in the network namespace
/// of `pid`. A link that is left half made is deleted again.
pub(crate) async fn create(
    handle: Handle,
    plan: Plan,
    index: u16,
    pid: u32,
    mtu: u32,
) -> Result<Link, LinkError> {
    let name = plan.slot().link_name(index);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(VM_LINK)
        .mtu(mtu)
        .setns_by_pid(pid)
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(&name, VM_LINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(mtu)
        .build();
    handle
        .link()
        .add(pair)
        .execute()
        .await
        .map_err(LinkError::request("making link", &name))?;
    if let Err(error) = configure(&handle, &name, plan.gateway(index)).await {
        delete_one(&handle, &name).await?;
        return Err(error);
    }
    Ok(Link {
        name: VM_LINK.to_owned(),
        address: plan.address(index),
        prefix: LINK_PREFIX,
        gateway: plan.gateway(index),
        mtu,
    })
}

async fn configure(handle: &Handle, name: &str, gateway: Ipv4Addr) -> Result<(), LinkError> {
    harden(name)?;
    let link = find(handle, name).await?;
    let index = link.header.index;
    handle
        .address()
        .add(index, IpAddr::V4(gateway), LINK_PREFIX)
        .execute()
        .await
        .map_err(LinkError::request("adding the gateway address to", name))?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .map_err(LinkError::request("raising link", name))
}

/// The settings of the host's end that do not depend on the firewall: sources are checked against the route back, ARP
/// answers only for this link's own address and names no other, nothing is redirected or proxied, and there is no IPv6.
const SETTINGS: [(&str, &str); 7] = [
    ("rp_filter", "1"),
    ("arp_ignore", "2"),
    ("arp_announce", "2"),
    ("proxy_arp", "0"),
    ("route_localnet", "0"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
];

fn harden(name: &str) -> Result<(), LinkError> {
    let directory = Path::new("/proc/sys/net/ipv4/conf").join(name);
    for (setting, value) in SETTINGS {
        write(&directory.join(setting), value)?;
    }
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf")
        .join(name)
        .join("disable_ipv6");
    match write(&ipv6, "1") {
        // A kernel without IPv6 has nothing to turn off.
        Err(LinkError::Setting { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

fn write(path: &Path, value: &str) -> Result<(), LinkError> {
    std::fs::write(path, value).map_err(|source| LinkError::Setting {
        path: path.to_owned(),
        source,
    })
}

async fn find(handle: &Handle, name: &str) -> Result<LinkMessage, LinkError> {
    let mut answers = handle.link().get().match_name(name).execute();
    match answers.try_next().await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(LinkError::Absent(name.to_owned())),
        Err(source) => {
            let error = LinkError::request("looking up link", name)(source);
            Err(if error.is(Errno::NODEV) {
                LinkError::Absent(name.to_owned())
            } else {
                error
            })
        }
    }
}

/// Whether both ends of a link are up and the kernel has started to send on it.
pub(crate) async fn is_ready(handle: Handle, name: String) -> Result<bool, LinkError> {
    let link = find(&handle, &name).await?;
    Ok(link
        .attributes
        .contains(&LinkAttribute::OperState(State::Up)))
}

/// What crossed a link.
pub(crate) async fn counters(handle: Handle, name: String) -> Result<Counters, LinkError> {
    let link = find(&handle, &name).await?;
    let stats = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(*stats),
            _ => None,
        });
    let host = stats.unwrap_or_default();
    // What the host's end sends, the VM receives.
    Ok(Counters {
        rx_bytes: host.tx_bytes,
        tx_bytes: host.rx_bytes,
        rx_packets: host.tx_packets,
        tx_packets: host.rx_packets,
    })
}

/// The indices of all links of a slot, ascending.
pub(crate) async fn list(handle: Handle, slot: Slot) -> Result<Vec<u16>, LinkError> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(LinkError::request("listing links of", &slot.table()))?;
    let mut indices: Vec<u16> = links
        .iter()
        .flat_map(|link| &link.attributes)
        .filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => slot.index_of_link(name),
            _ => None,
        })
        .collect();
    indices.sort_unstable();
    Ok(indices)
}

/// Deletes links, all in one step of the kernel; links that are gone already are none.
pub(crate) async fn delete(handle: Handle, slot: Slot, indices: Vec<u16>) -> Result<(), LinkError> {
    if let [index] = indices[..] {
        return delete_one(&handle, &slot.link_name(index)).await;
    }
    let group = slot.leaving_group();
    for index in &indices {
        let name = slot.link_name(*index);
        let message = LinkUnspec::new_with_name(&name).link_group(group).build();
        gone_is_done(
            handle
                .link()
                .set(message)
                .execute()
                .await
                .map_err(LinkError::request("marking", &name)),
        )?;
    }
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .link_group(group)
        .build();
    delete_by(&handle, message, "the leaving links").await
}

async fn delete_one(handle: &Handle, name: &str) -> Result<(), LinkError> {
    delete_by(handle, LinkUnspec::new_with_name(name).build(), name).await
}

async fn delete_by(handle: &Handle, message: LinkMessage, name: &str) -> Result<(), LinkError> {
    let deleted = handle.link().del_with_message(message).execute().await;
    gone_is_done(deleted.map_err(LinkError::request("deleting", name)))
}

fn gone_is_done(result: Result<(), LinkError>) -> Result<(), LinkError> {
    match result {
        Err(error) if error.is(Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// The MTU of the link that the default route leaves by, and whether there is a default route.
pub(crate) async fn uplink_mtu(handle: Handle) -> Result<(u32, bool), LinkError> {
    let message = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(message).execute();
    let operation = LinkError::request("listing routes of", "the host");
    let mut uplink = None;
    loop {
        match routes.try_next().await {
            Ok(Some(route)) if route.header.destination_prefix_length == 0 => {
                uplink = uplink.or_else(|| {
                    route
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            RouteAttribute::Oif(index) => Some(*index),
                            _ => None,
                        })
                });
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => return Err(operation(error)),
        }
    }
    let Some(index) = uplink else {
        return Ok((DEFAULT_MTU, false));
    };
    let link = handle
        .link()
        .get()
        .match_index(index)
        .execute()
        .try_next()
        .await;
    let link = link.map_err(LinkError::request("looking up", "the uplink"))?;
    let mtu =
        link.into_iter()
            .flat_map(|link| link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(mtu),
                _ => None,
            });
    Ok((mtu.unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, DEFAULT_MTU), true))
}
