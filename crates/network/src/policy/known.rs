//! Hosts that policies know by themselves: the public registries, and resolvers of others.

use super::{Domain, Domains, Host};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::LazyLock;

/// Well-known registries, one a line.
pub(super) const REGISTRIES: &str = include_str!("registries.txt");
/// Well-known resolvers that answer by HTTPS, one a line.
pub(super) const RESOLVERS: &str = include_str!("resolvers.txt");

/// The public registries.
pub(super) static PUBLIC: LazyLock<Domains> = LazyLock::new(|| domains(REGISTRIES));
/// Resolvers of others, by their names.
pub(super) static RESOLVER_NAMES: LazyLock<Domains> = LazyLock::new(|| domains(RESOLVERS));
/// Resolvers of others, by their addresses.
static RESOLVER_ADDRESSES: LazyLock<BTreeSet<Ipv4Addr>> = LazyLock::new(|| {
    let addresses = lines(RESOLVERS).filter_map(|line| line.parse().ok());
    addresses.collect()
});

/// The addresses of well-known resolvers of others, ascending.
pub(crate) fn resolvers() -> &'static BTreeSet<Ipv4Addr> {
    &RESOLVER_ADDRESSES
}

/// What a file says, without its comments.
pub(super) fn lines(file: &str) -> impl Iterator<Item = &str> {
    file.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn domains(file: &str) -> Domains {
    let mut domains = Domains::default();
    let named = lines(file).filter(|line| Host::read(line) != Some(Host::Address));
    let read = named.filter_map(|line| Domains::read(line).ok());
    read.for_each(|domain: Domain| domains.add(domain));
    domains
}
