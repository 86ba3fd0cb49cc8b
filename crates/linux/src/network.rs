//! A network interface set up from inside its namespace, by the old ioctls: no netlink library in the agent.

use crate::check;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Opens the socket that the calls below work on.
///
/// # Errors
/// The system's.
pub fn control_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the interface's name is too long",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of 16 bytes.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

fn ioctl(socket: &OwnedFd, code: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the code is one of those that read an ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code as _, &raw const *request) };
    check(result.into()).map(drop)
}

/// Brings an interface up.
///
/// # Errors
/// The system's.
pub fn set_up(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let mut up = request(interface)?;
    up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS, &up)
}

/// Gives an interface its address, in place of the one it has.
///
/// # Errors
/// The system's; a prefix over 32 is invalid input.
pub fn set_address(
    socket: &OwnedFd,
    interface: &str,
    address: Ipv4Addr,
    prefix: u8,
) -> io::Result<()> {
    if prefix > 32 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a prefix has at most 32 bits",
        ));
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let mut wanted = request(interface)?;
    wanted.ifr_ifru.ifru_addr = socket_address(address);
    ioctl(socket, libc::SIOCSIFADDR, &wanted)?;
    wanted.ifr_ifru.ifru_addr = socket_address(Ipv4Addr::from(mask));
    ioctl(socket, libc::SIOCSIFNETMASK, &wanted)
}

/// Adds the default route.
///
/// # Errors
/// The system's.
pub fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads an rtentry, which lives through the call; its device name is null.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    check(result.into()).map(drop)
}
