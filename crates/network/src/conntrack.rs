//! Forgetting the connections of a VM that is gone, and those that its policy no longer allows.
//!
//! The kernel remembers a connection for minutes or days after its link is deleted. Were the address given to another
//! VM meanwhile, late answers to the old VM would reach the new one. So an address is only given again after its
//! entries are gone.

use futures::StreamExt;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla,
};
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr};

/// Attributes that tell one entry from another with the same addresses.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Why entries could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The socket cannot be made.
    #[error("opening a netfilter netlink socket")]
    Open(#[source] std::io::Error),
    /// The request was not sent.
    #[error("asking for tracked connections")]
    Request(#[source] std::io::Error),
    /// The kernel refused.
    #[error("{operation}")]
    Kernel {
        /// What was asked for.
        operation: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// A tracked connection, from the side that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Who opened it.
    pub(crate) source: Ipv4Addr,
    /// To what address, before any translation.
    pub(crate) destination: Ipv4Addr,
    /// The protocol's number.
    pub(crate) protocol: u8,
    /// The port that it went to; 0 where the protocol has none.
    pub(crate) port: u16,
    /// Who answers, after all translation.
    pub(crate) answers: Ipv4Addr,
}

type Handle = ConnectionHandle<NetfilterMessage>;

/// Removes every tracked connection that is `gone`, and tells how many there were.
pub(crate) async fn forget(gone: impl Fn(&Flow) -> bool + Send) -> Result<usize, ConntrackError> {
    let (connection, handle, _) =
        new_connection(NETLINK_NETFILTER).map_err(ConntrackError::Open)?;
    let work = async {
        let entries = matching(&handle, gone).await?;
        let count = entries.len();
        for entry in entries {
            delete(&handle, entry).await?;
        }
        Ok(count)
    };
    tokio::select! {
        result = work => result,
        () = connection => Err(ConntrackError::Kernel {
            operation: "listing tracked connections",
            source: std::io::ErrorKind::BrokenPipe.into(),
        }),
    }
}

/// What names each entry that is `gone`.
async fn matching(
    handle: &Handle,
    gone: impl Fn(&Flow) -> bool,
) -> Result<Vec<Vec<ConntrackAttribute>>, ConntrackError> {
    let operation = "listing tracked connections";
    let mut answers = request(handle, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP)?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) if flow(&attributes).is_some_and(|flow| gone(&flow)) => {
                found.push(attributes.into_iter().filter(is_name).collect());
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(ConntrackError::Kernel {
                    operation,
                    source: error.to_io(),
                });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Reads an entry; `None` for those of other families.
fn flow(attributes: &[ConntrackAttribute]) -> Option<Flow> {
    let (mut source, mut destination, mut answers) = (None, None, None);
    let (mut protocol, mut port) = (0, 0);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => {
                for tuple in tuples {
                    match tuple {
                        Tuple::Ip(addresses) => (source, destination) = ends(addresses),
                        Tuple::Proto(parts) => (protocol, port) = kind(parts),
                        _ => {}
                    }
                }
            }
            ConntrackAttribute::CtaTupleReply(tuples) => {
                for tuple in tuples {
                    if let Tuple::Ip(addresses) = tuple {
                        (answers, _) = ends(addresses);
                    }
                }
            }
            _ => {}
        }
    }
    let (source, destination) = (source?, destination?);
    Some(Flow {
        source,
        destination,
        protocol,
        port,
        answers: answers.unwrap_or(destination),
    })
}

fn ends(addresses: &[IPTuple]) -> (Option<Ipv4Addr>, Option<Ipv4Addr>) {
    let (mut source, mut destination) = (None, None);
    for address in addresses {
        match address {
            IPTuple::SourceAddress(IpAddr::V4(v4)) => source = Some(*v4),
            IPTuple::DestinationAddress(IpAddr::V4(v4)) => destination = Some(*v4),
            _ => {}
        }
    }
    (source, destination)
}

/// Protocol and port that an entry leads to.
fn kind(parts: &[ProtoTuple]) -> (u8, u16) {
    let (mut protocol, mut port) = (0, 0);
    for part in parts {
        match part {
            ProtoTuple::Protocol(number) => protocol = u8::from(*number),
            ProtoTuple::DestinationPort(number) => port = *number,
            _ => {}
        }
    }
    (protocol, port)
}

fn is_name(attribute: &ConntrackAttribute) -> bool {
    match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => matches!(other.kind(), CTA_ID | CTA_ZONE),
        _ => false,
    }
}

async fn delete(handle: &Handle, name: Vec<ConntrackAttribute>) -> Result<(), ConntrackError> {
    let mut answers = request(handle, ConntrackMessage::Delete(name), NLM_F_ACK)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && let Some(code) = error.code
            // An entry that has just ended by itself is gone, too.
            && -code.get() != Errno::NOENT.raw_os_error()
        {
            let operation = "removing a tracked connection";
            return Err(ConntrackError::Kernel {
                operation,
                source: error.to_io(),
            });
        }
    }
    Ok(())
}

fn request(
    handle: &Handle,
    message: ConntrackMessage,
    flags: u16,
) -> Result<impl futures::Stream<Item = NetlinkMessage<NetfilterMessage>> + use<>, ConntrackError> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let mut request = NetlinkMessage::from(NetfilterMessage::new(header, message));
    request.header.flags = NLM_F_REQUEST | flags;
    handle
        .request(request, SocketAddr::new(0, 0))
        .map_err(|error| ConntrackError::Request(std::io::Error::other(error)))
}
