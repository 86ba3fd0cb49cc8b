//! What the firewall refuses, as the kernel tells it: the beginnings of packets, at a bounded rate for each VM and rule.

use crate::egress::{Egress, Rule, Wanted};
use crate::plan::Plan;
use crate::policy::{TCP, UDP};
use futures::StreamExt;
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigMode, PacketNla, Timeout, ULogMessage, config_request,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::proto::new_connection;
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the kernel may gather before it tells.
const GATHER: Duration = Duration::from_millis(10);
/// How long is waited before listening is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// What is handed on of a packet.
const BEGINNING: u32 = 80;
const ICMP: u8 = 1;

/// Listens until `stop`, and tells `egress`.
pub(crate) async fn listen(plan: Plan, egress: Arc<Egress>, stop: CancellationToken) {
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = hear(plan, &egress) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "what the firewall refuses is counted, and not told");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn hear(plan: Plan, egress: &Egress) -> io::Result<()> {
    let (connection, handle, mut messages) = new_connection::<NetfilterMessage>(NETLINK_NETFILTER)?;
    // Names of links are asked for on a socket of any kind.
    let names: OwnedFd = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let work = async {
        let wanted = vec![
            ConfigCmd::Bind.into(),
            ConfigMode::new_packet(BEGINNING).into(),
            Timeout::from(GATHER).into(),
        ];
        let group = plan.slot().log_group();
        let request = config_request(NetfilterProtoFamily::Unspec, group, wanted);
        let asked = handle.request(request, SocketAddr::new(0, 0));
        let mut answers = asked.map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        while let Some((message, _)) = messages.next().await {
            tell(plan, egress, &names, &message);
        }
        Ok(())
    };
    tokio::select! {
        result = work => result,
        () = connection => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn tell(plan: Plan, egress: &Egress, names: impl AsFd, message: &NetlinkMessage<NetfilterMessage>) {
    let NetlinkPayload::InnerMessage(NetfilterMessage {
        inner: NetfilterMessageInner::ULog(ULogMessage::Packet(parts)),
        ..
    }) = &message.payload
    else {
        return;
    };
    let (mut rule, mut link, mut packet) = (None, None, &[][..]);
    for part in parts {
        match part {
            PacketNla::Prefix(word) => rule = word.to_str().ok().and_then(Rule::of),
            PacketNla::IfIndexInDev(index) => link = Some(*index),
            PacketNla::Payload(bytes) => packet = bytes,
            _ => {}
        }
    }
    let name = link.and_then(|link| rustix::net::netdevice::index_to_name(names, link).ok());
    let vm = name.and_then(|name| plan.slot().index_of_link(&name));
    if let (Some(rule), Some(vm), Some(wanted)) = (rule, vm, wanted(packet)) {
        egress.tell(vm, rule, wanted);
    }
}

/// Reads the beginning of a packet; `None` for what systems send by themselves.
fn wanted(packet: &[u8]) -> Option<Wanted<'static>> {
    const MULTICAST6: u8 = 0xff;
    let other = Wanted {
        protocol: "other",
        name: None,
        to: None,
    };
    match packet.first()? >> 4 {
        4 => {}
        6 if packet.get(24) == Some(&MULTICAST6) => return None,
        _ => return Some(other),
    }
    let header = packet.first_chunk::<20>()?;
    let address = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let protocol = header[9];
    // Only a first fragment has ports.
    let whole = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let length = usize::from(header[0] & 0xf) * 4;
    let ports = packet.get(length + 2..length + 4).filter(|_| whole);
    let port = match (protocol, ports) {
        (TCP | UDP, Some([high, low])) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    };
    Some(Wanted {
        protocol: match protocol {
            TCP => "tcp",
            UDP => "udp",
            ICMP => "icmp",
            _ => "other",
        },
        to: Some((address, port)),
        ..other
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(protocol: u8, fragment: [u8; 2], after: &[u8]) -> Vec<u8> {
        let mut packet = vec![
            0x45,
            0,
            0,
            0,
            0,
            0,
            fragment[0],
            fragment[1],
            64,
            protocol,
            0,
            0,
        ];
        packet.extend([100, 64, 16, 2, 198, 51, 100, 7]);
        packet.extend(after);
        packet
    }

    #[test]
    fn protocol_address_and_port_are_read() {
        let to = Ipv4Addr::new(198, 51, 100, 7);
        let ports = [0x80, 1, 0x01, 0xbb];
        for (bytes, protocol, port) in [
            (packet(TCP, [0x40, 0], &ports), "tcp", 443),
            (packet(UDP, [0, 0], &ports), "udp", 443),
            (packet(UDP, [0, 9], &ports), "udp", 0),
            (packet(ICMP, [0, 0], &[8, 0]), "icmp", 0),
            (packet(TCP, [0, 0], &[1]), "tcp", 0),
            (packet(132, [0, 0], &ports), "other", 0),
        ] {
            let wanted = wanted(&bytes).unwrap();
            assert_eq!((wanted.protocol, wanted.to), (protocol, Some((to, port))));
        }
        assert!(wanted(&[]).is_none() && wanted(&[0x45; 10]).is_none());
    }

    proptest! {
        #[test]
        fn fuzz_no_packet_makes_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = wanted(&bytes);
        }
    }
}
