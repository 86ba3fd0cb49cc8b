//! Names of hosts, in one spelling.

use idna::AsciiDenyList;
use std::net::IpAddr;

/// The longest name that DNS carries, without its last dot.
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// What a text names as a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name: lower case, in the letters of DNS, without a dot at its end.
    Name(String),
    /// An address, in whatever spelling.
    Address,
}

impl Host {
    /// Reads a host as URLs, `Host` headers and TLS name it; `None` when it can be neither name nor address.
    ///
    /// Whatever somebody might take for an address counts as one: `127.1`, `0x7f000001`, `[::1]`, `017700000001`. No
    /// public name ends in a label of digits, so nothing is lost by it.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if text.parse::<IpAddr>().is_ok() || (text.starts_with('[') && text.ends_with(']')) {
            return Some(Self::Address);
        }
        let name = idna::domain_to_ascii_cow(text.as_bytes(), AsciiDenyList::URL).ok()?;
        let name = name.strip_suffix('.').unwrap_or(&name);
        let fits = |label: &str| !label.is_empty() && label.len() <= LONGEST_LABEL;
        if name.len() > LONGEST || !name.split('.').all(fits) {
            return None;
        }
        if name.rsplit('.').next().is_some_and(is_number) {
            return Some(Self::Address);
        }
        // What a program prints or compares is plain ASCII without signs that mean something elsewhere.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        name.bytes().all(plain).then(|| Self::Name(name.to_owned()))
    }
}

/// Decimal, octal or hexadecimal, as address parsers read it.
fn is_number(label: &str) -> bool {
    let hexadecimal = label
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hexadecimal || label.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        match Host::read(text) {
            Some(Host::Name(name)) => name,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_name_has_one_spelling() {
        for text in ["example.com", "EXAMPLE.Com", "example.com.", "ｅxample.com"] {
            assert_eq!(name(text), "example.com", "{text}");
        }
        for text in ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"] {
            assert_eq!(name(text), "xn--bcher-kva.example", "{text}");
        }
        assert_eq!(name("example。com"), "example.com");
        assert_eq!(name("a_b.example"), "a_b.example");
        assert_eq!(name("localhost"), "localhost");
    }

    #[test]
    fn addresses_are_addresses_in_every_spelling() {
        for text in [
            "1.2.3.4",
            "1.2.3.4.",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "0X7F000001",
            "[::1]",
            "::1",
            "::ffff:1.2.3.4",
            "[::ffff:1.2.3.4]",
            "1.2.3.08",
            "0x",
            "example.1",
            "１.２.３.４",
        ] {
            assert_eq!(Host::read(text), Some(Host::Address), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_none() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = "abc.".repeat(64) + "abc";
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "a:80",
            "user@host",
            "a%2eb",
            "a?b",
            "a#b",
            "a\0b",
            "a\r\nb",
            "*",
            "*.a",
            "a,b",
            "a;b",
            "xn--zzzzzzzz99999.example",
            &long,
            &longer,
            "a\\b",
            "a<b",
            "a|b",
            "a'b",
            "a\"b",
            "(a)",
        ] {
            assert_eq!(Host::read(text), None, "{text:?}");
        }
    }
}
