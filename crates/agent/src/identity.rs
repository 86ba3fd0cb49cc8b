//! The identity that a VM takes on when it is handed out.

use crate::file::{Replacement, refuse, system_failure};
use instavm_agent_api::launch::Address;
use instavm_agent_api::{Failure, FailureKind, Rejoin};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

const LINK: &str = "eth0";
const AUTHORITIES: &str = "/usr/local/share/ca-certificates";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Most bytes that are mixed into the random pool at once; the kernel takes any number, this bounds the time.
const MOST_ENTROPY: usize = 4096;
/// The address by which a machine has its own name, by Debian's convention.
const OWN_ADDRESS: &str = "127.0.1.1";
/// What is kept of a file with names; a longer one is written anew.
const LONGEST_HOSTS: u64 = 256 * 1024;

/// Takes on name, addresses and entropy. Waits for no file system but the root disk.
pub(crate) fn apply(rejoin: &Rejoin, random: Option<&OwnedFd>) -> Result<(), Failure> {
    if !rejoin.hostname.is_empty() {
        rustix::system::sethostname(rejoin.hostname.as_bytes())
            .map_err(|error| failed("set the host name", &error.into()))?;
        write_names(&rejoin.hostname).map_err(|error| failed("write the host name", &error))?;
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

/// Writes the machine's name where programs look for it. What else `/etc/hosts` tells stays.
pub(crate) fn write_names(hostname: &str) -> io::Result<()> {
    let etc = match own_directory("/etc") {
        // Something is mounted on it, or it is a link: it is not ours to write.
        Err(Errno::XDEV | Errno::LOOP | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    write_own(&etc, "hostname", &format!("{hostname}\n"))?;
    let old = read_own(&etc, "hosts").unwrap_or_default();
    write_own(&etc, "hosts", &hosts(&old, hostname))
}

/// Writes the address of the VM's resolver.
pub(crate) fn write_resolver(resolver: Ipv4Addr) -> io::Result<()> {
    let etc = own_directory("/etc")?;
    write_own(&etc, "resolv.conf", &format!("nameserver {resolver}\n"))
}

/// A directory of the root disk itself.
fn own_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve) {
        // A kernel without the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        other => other,
    }
}

/// The text of a regular file, whose name may also be a link or a device by the will of whoever made the disk.
fn read_own(directory: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > LONGEST_HOSTS {
        return None;
    }
    let mut text = String::new();
    file.take(LONGEST_HOSTS).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Puts a file in the place of whatever has its name: a link there would lead anywhere in the VM. On a disk that is full
/// what is there stays; its VM must start all the same.
fn write_own(directory: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    if read_own(directory, name).is_some_and(|old| old == text) {
        return Ok(());
    }
    let draft = format!(".{name}.instavm");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let write = || {
        match rustix::fs::unlinkat(directory, &draft, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => return Err(error.into()),
            _ => {}
        }
        let file = rustix::fs::openat(directory, &draft, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(text.as_bytes())?;
        Ok(rustix::fs::renameat(directory, &draft, directory, name)?)
    };
    let written: io::Result<()> = write();
    match written {
        Ok(()) => Ok(()),
        Err(error) => {
            // It was not made, or is of no use.
            let _ = rustix::fs::unlinkat(directory, &draft, AtFlags::empty());
            let full = [Errno::NOSPC, Errno::DQUOT].map(|full| Some(full.raw_os_error()));
            if full.contains(&error.raw_os_error()) {
                Ok(())
            } else {
                Err(error)
            }
        }
    }
}

/// The table of names, with the machine's own in the place of the one that it had.
fn hosts(old: &str, hostname: &str) -> String {
    let address = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut lines: Vec<&str> = old
        .lines()
        .filter(|line| address(line).as_deref() != Some(OWN_ADDRESS))
        .collect();
    let own = format!("{OWN_ADDRESS}\t{hostname}");
    for local in ["::1\tlocalhost", "127.0.0.1\tlocalhost"] {
        if !lines.iter().any(|line| address(line) == address(local)) {
            lines.insert(0, local);
        }
    }
    let after = lines
        .iter()
        .position(|line| address(line).as_deref() == Some("127.0.0.1"));
    lines.insert(after.map_or(0, |at| at + 1), &own);
    lines.join("\n") + "\n"
}

/// The directory where executions start from now on, made where it is missing. May wait for what is mounted there.
pub(crate) fn make_workdir(path: &str) -> Result<PathBuf, Failure> {
    let workdir: PathBuf = Path::new(path).components().collect();
    let mut parts = workdir.components();
    let absolute = parts.next() == Some(Component::RootDir) && !path.contains('\0');
    if !absolute {
        let message = format!("the working directory {path:?} is not an absolute path");
        return Err(refuse(FailureKind::Unsuitable, message));
    }
    match std::fs::create_dir_all(&workdir) {
        Ok(()) => Ok(workdir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let message = format!("the working directory {path} is no directory");
            Err(refuse(FailureKind::Unsuitable, message))
        }
        Err(error) => Err(system_failure("make the working directory", path, &error)),
    }
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
    fn the_table_of_names_gets_the_new_name_and_keeps_the_rest() {
        let fresh = "127.0.0.1\tlocalhost\n127.0.1.1\tone\n::1\tlocalhost\n";
        assert_eq!(hosts("", "one"), fresh);
        let with_more = format!("{fresh}10.0.0.9 db # ours\n");
        let renamed = hosts(&with_more, "two");
        assert_eq!(renamed, with_more.replace("one", "two"));
        assert_eq!(hosts(&renamed, "two"), renamed);
    }

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
