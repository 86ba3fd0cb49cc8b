//! The identity that a VM takes on when it is handed out.

use crate::file::{Replacement, system_failure};
use instavm_agent_api::launch::Address;
use instavm_agent_api::{Failure, FailureKind, Rejoin};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

const LINK: &str = "eth0";
const AUTHORITIES: &str = "/usr/local/share/ca-certificates";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Most bytes that are mixed into the random pool at once; the kernel takes any number, this bounds the time.
const MOST_ENTROPY: usize = 4096;

/// Takes on what needs no file of the VM: name, addresses, entropy.
pub(crate) fn apply(rejoin: &Rejoin, random: Option<&OwnedFd>) -> Result<(), Failure> {
    if !rejoin.hostname.is_empty() {
        rustix::system::sethostname(rejoin.hostname.as_bytes())
            .map_err(|error| failed("set the host name", &error.into()))?;
    }
    if !rejoin.addresses.is_empty() {
        set_addresses(&rejoin.addresses)
            .map_err(|error| failed("set the addresses of eth0", &error))?;
    }
    if let Some(random) = random {
        let entropy = &rejoin.entropy[..rejoin.entropy.len().min(MOST_ENTROPY)];
        // Mixing in is a precaution; the pool is seeded without it.
        let _ = rustix::io::write(random, entropy);
    }
    Ok(())
}

fn failed(step: &str, error: &io::Error) -> Failure {
    Failure {
        kind: FailureKind::Internal,
        message: format!("cannot {step}: {error}"),
    }
}

/// Adds authorities to the VM's trust store. May block on its file systems.
pub(crate) fn trust(authorities: &[String]) -> Result<(), Failure> {
    let read_only = |error: &io::Error| system_failure("read", BUNDLE, error);
    let old = match std::fs::read(BUNDLE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(read_only(&error)),
        other => other.unwrap_or_default(),
    };
    let mut bundle = old.clone();
    for authority in authorities {
        let text = authority.trim();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        replace(
            &format!("{AUTHORITIES}/instavm-{:016x}.crt", hasher.finish()),
            format!("{text}\n").as_bytes(),
        )?;
        if !contains(&bundle, text.as_bytes()) {
            if !bundle.is_empty() && !bundle.ends_with(b"\n") {
                bundle.push(b'\n');
            }
            bundle.extend_from_slice(text.as_bytes());
            bundle.push(b'\n');
        }
    }
    if bundle == old {
        Ok(())
    } else {
        replace(BUNDLE, &bundle)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

fn replace(path: &str, content: &[u8]) -> Result<(), Failure> {
    let mut replacement = Replacement::begin(Path::new("/"), path, 0o644)?;
    replacement
        .add(content)
        .map_err(|error| system_failure("write", path, &error))?;
    replacement.publish(path)
}

/// Replaces the addresses of the link. The kernel drops a default route with the last address, so it is put back.
fn set_addresses(addresses: &[Address]) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let gateway = default_gateway();
    for (index, address) in addresses.iter().enumerate() {
        let label = if index == 0 {
            LINK.to_owned()
        } else {
            format!("{LINK}:{index}")
        };
        let mask = u32::MAX
            .checked_shl(32 - u32::from(address.prefix.min(32)))
            .unwrap_or(0);
        link_request(&socket, libc::SIOCSIFADDR, &label, address.address)?;
        link_request(&socket, libc::SIOCSIFNETMASK, &label, Ipv4Addr::from(mask))?;
    }
    for index in addresses.len()..64 {
        // Further addresses have labels of their own; the first that is missing is the end of them.
        if link_request(
            &socket,
            libc::SIOCSIFADDR,
            &format!("{LINK}:{index}"),
            Ipv4Addr::UNSPECIFIED,
        )
        .is_err()
        {
            break;
        }
    }
    gateway.map_or(Ok(()), |gateway| add_default_route(&socket, gateway))
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of the same size; the kernel tells them apart by the family.
    unsafe { std::mem::transmute(address) }
}

fn link_request(socket: &OwnedFd, request: u64, label: &str, address: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut link: libc::ifreq = unsafe { std::mem::zeroed() };
    if label.len() >= link.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in link.ifr_name.iter_mut().zip(label.bytes()) {
        *to = from.cast_signed();
    }
    link.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: the request takes a pointer to an `ifreq`.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const link) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn default_gateway() -> Option<Ipv4Addr> {
    parse_default_gateway(&std::fs::read_to_string("/proc/self/net/route").ok()?)
}

/// The gateway of the default route in the kernel's table, whose numbers are little-endian hexadecimal.
fn parse_default_gateway(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (link, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = link == LINK && destination == "00000000" && gateway != 0;
        is_default.then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all-zero is a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request takes a pointer to an `rtentry`.
    let added = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if added == 0 => Ok(()),
        // It is there, or belonged to the old addresses and is not reachable from the new ones.
        Some(libc::EEXIST | libc::ENETUNREACH) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_gateway_is_found_among_routes() {
        let table = "Iface\tDestination\tGateway \tFlags\n\
                     eth0\t0000000A\t00000000\t0001\n\
                     eth0\t00000000\t0100000A\t0003\n";
        assert_eq!(
            parse_default_gateway(table),
            Some(Ipv4Addr::new(10, 0, 0, 1))
        );
        assert_eq!(parse_default_gateway("Iface\n"), None);
    }
}
