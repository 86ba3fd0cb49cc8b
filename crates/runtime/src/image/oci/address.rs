//! Which addresses may be spoken to, and how.

use super::{OciConfig, OciError};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether an address is one that only this host or its own network can reach.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => is_private_v6(v6),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Shared by providers, and for tests of networks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (b == 18 || b == 19))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let inner = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    // Addresses that stand for one of version 4: mapped, compatible, translated, tunnelled.
    match parts {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => inner(high, low),
        [0x64, 0xff9b, .., high, low] => inner(high, low),
        [0x2002, high, low, ..] => inner(high, low),
        _ => {
            address.is_multicast()
                || (parts[0] & 0xfe00) == 0xfc00
                || (parts[0] & 0xffc0) == 0xfe80
                || (parts[0] & 0xffc0) == 0xfec0
        }
    }
}

/// The address that is written in a URL, if it is not a name.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// Whether this host may be spoken to without TLS: it is this machine, or it is listed.
pub(super) fn may_be_plain(config: &OciConfig, url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let with_port = url
        .port_or_known_default()
        .map(|port| format!("{host}:{port}"));
    let is_local = match literal(url) {
        Some(address) => address.is_loopback(),
        None => host == "localhost",
    };
    is_local
        || config
            .plain_http
            .iter()
            .any(|listed| listed == host || Some(listed) == with_port.as_ref())
}

/// Refuses a URL that may not be spoken to; names are judged by [`Guard`] when their addresses are known.
pub(super) fn check(config: &OciConfig, url: &Url) -> Result<(), OciError> {
    let forbidden = |reason| {
        Err(OciError::Forbidden {
            address: host_of(url),
            reason,
        })
    };
    match url.scheme() {
        "https" => {}
        "http" if may_be_plain(config, url) => {}
        "http" => {
            return forbidden("plain HTTP is for this host and for registries that are listed");
        }
        _ => return forbidden("it is neither https nor http"),
    }
    if !config.private_registries && literal(url).is_some_and(is_private) {
        return forbidden(PRIVATE);
    }
    Ok(())
}

/// `host:port` of a URL, for people.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Why private addresses are refused.
pub(super) const PRIVATE: &str = "it is a private address, and registries must not have one here";

/// A name has private addresses only.
#[derive(Debug, thiserror::Error)]
#[error("{PRIVATE}")]
pub(super) struct PrivateAddress;

/// Resolves names, to public addresses only. The connection is made to what was judged, so the name cannot mean
/// another address by then.
#[derive(Debug)]
pub(super) struct Guard;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = all.filter(|a| !is_private(a.ip())).collect();
            if public.is_empty() {
                return Err(PrivateAddress.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_form() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ];
        for text in private {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
        ] {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }
}
