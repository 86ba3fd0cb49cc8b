//! The types of configuration values, and how each is read from text and from TOML.

use instavm_network::{UpstreamProxy, UpstreamProxyError};
use instavm_store::PostgresUrl;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// A value as a source gives it.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// From the environment, a flag or the table's default.
    Text(String),
    /// From the file.
    Toml(toml::Value),
}

/// A type that a key can have.
pub(super) trait KeyValue: Sized {
    /// What a value looks like, for the help.
    const SHAPE: &'static str;

    /// Reads a value.
    fn read(raw: &Raw) -> Result<Self, String>;

    /// The value of a key without a default that no source gives.
    fn unset() -> Option<Self> {
        None
    }

    /// The number that the key's range is compared with.
    fn number(&self) -> Option<u64> {
        None
    }
}

impl<T: KeyValue> KeyValue for Option<T> {
    const SHAPE: &'static str = T::SHAPE;

    fn read(raw: &Raw) -> Result<Self, String> {
        T::read(raw).map(Some)
    }

    fn unset() -> Option<Self> {
        Some(None)
    }

    fn number(&self) -> Option<u64> {
        self.as_ref().and_then(T::number)
    }
}

fn read_number<T: FromStr + TryFrom<i64>>(raw: &Raw) -> Result<T, String> {
    match raw {
        Raw::Text(text) => text
            .trim()
            .parse()
            .map_err(|_| format!("\"{text}\" is not a whole number that fits")),
        Raw::Toml(toml::Value::Integer(number)) => {
            T::try_from(*number).map_err(|_| format!("{number} does not fit"))
        }
        Raw::Toml(other) => Err(wanted("a whole number", other)),
    }
}

impl KeyValue for u32 {
    const SHAPE: &'static str = "number";

    fn read(raw: &Raw) -> Result<Self, String> {
        read_number(raw)
    }

    fn number(&self) -> Option<u64> {
        Some((*self).into())
    }
}

impl KeyValue for u64 {
    const SHAPE: &'static str = "number";

    fn read(raw: &Raw) -> Result<Self, String> {
        read_number(raw)
    }

    fn number(&self) -> Option<u64> {
        Some(*self)
    }
}

impl KeyValue for bool {
    const SHAPE: &'static str = "true|false";

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Toml(toml::Value::Boolean(value)) => Ok(*value),
            Raw::Text(text) => text
                .trim()
                .parse()
                .map_err(|_| format!("\"{text}\" is neither true nor false")),
            Raw::Toml(other) => Err(wanted("true or false", other)),
        }
    }
}

/// Text that a type is parsed from; a list is several of them.
pub(super) trait Word: Sized {
    /// What one looks like, for the help.
    const SHAPE: &'static str;
    /// What a list of them looks like, for the help.
    const LIST_SHAPE: &'static str;

    /// Parses it; the error says what is wrong with the text.
    fn parse_word(text: &str) -> Result<Self, String>;
}

impl<T: Word> KeyValue for Vec<T> {
    const SHAPE: &'static str = T::LIST_SHAPE;

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
            Raw::Text(text) => text.split(',').map(|w| T::parse_word(w.trim())).collect(),
            Raw::Toml(toml::Value::Array(items)) => items
                .iter()
                .map(|item| match item {
                    toml::Value::String(text) => T::parse_word(text),
                    other => Err(wanted("a list of strings", other)),
                })
                .collect(),
            Raw::Toml(other) => Err(wanted("a list of strings", other)),
        }
    }
}

/// Makes a word a key's type by itself.
macro_rules! word_keys {
    ($($type:ty),*) => { $(
        impl KeyValue for $type {
            const SHAPE: &'static str = <$type as Word>::SHAPE;

            fn read(raw: &Raw) -> Result<Self, String> {
                match raw {
                    Raw::Text(text) | Raw::Toml(toml::Value::String(text)) => {
                        <$type as Word>::parse_word(text)
                    }
                    Raw::Toml(other) => Err(wanted("a string", other)),
                }
            }
        }
    )* };
}

word_keys!(
    String,
    PathBuf,
    DatabaseUrl,
    ListenAddress,
    LogFilter,
    LogFormat,
    ImageSource,
    DriverChoice,
    DiskDriverChoice,
    VmRange,
    UpstreamProxy,
    IpAddr,
    PortRange,
    HostName,
    PublicScheme
);

impl Word for String {
    const SHAPE: &'static str = "name";
    const LIST_SHAPE: &'static str = "list of names";

    fn parse_word(text: &str) -> Result<Self, String> {
        let fits = !text.is_empty()
            && text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.chars().all(|c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.')
            });
        if fits {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "\"{text}\" is not a name: 1 to 63 of a-z, 0-9, '-', '_' and '.', a letter or digit first"
            ))
        }
    }
}

impl Word for PathBuf {
    const SHAPE: &'static str = "path";
    const LIST_SHAPE: &'static str = "list of paths";

    fn parse_word(text: &str) -> Result<Self, String> {
        std::path::absolute(text).map_err(|error| format!("\"{text}\" is not a path: {error}"))
    }
}

/// The port of name servers.
const DNS_PORT: u16 = 53;

impl Word for SocketAddr {
    const SHAPE: &'static str = "address";
    const LIST_SHAPE: &'static str = "list of addresses";

    fn parse_word(text: &str) -> Result<Self, String> {
        text.parse::<IpAddr>()
            .map(|address| Self::new(address, DNS_PORT))
            .or_else(|_| text.parse())
            .map_err(|_| format!("\"{text}\" is not an IP address, with or without a port"))
    }
}

impl Word for IpNet {
    const SHAPE: &'static str = "range";
    const LIST_SHAPE: &'static str = "list of ranges";

    fn parse_word(text: &str) -> Result<Self, String> {
        let range: IpNet = text
            .parse()
            .map_err(|_| format!("\"{text}\" is not a range such as 10.64.0.0/12"))?;
        if range.trunc() == range {
            Ok(range)
        } else {
            Err(format!(
                "\"{text}\" has bits set behind its prefix; did you mean {}?",
                range.trunc()
            ))
        }
    }
}

/// The range that VMs get their addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmRange(pub Ipv4Net);

/// 62 instances of a host, 1,024 VMs each, 4 addresses a VM.
const VM_RANGE_PREFIX: u8 = 14;

impl Word for VmRange {
    const SHAPE: &'static str = "range";
    const LIST_SHAPE: &'static str = "list of ranges";

    fn parse_word(text: &str) -> Result<Self, String> {
        match IpNet::parse_word(text)? {
            IpNet::V4(range)
                if range.prefix_len() == VM_RANGE_PREFIX
                    && !range.network().is_loopback()
                    && !range.network().is_multicast() =>
            {
                Ok(Self(range))
            }
            _ => Err(format!(
                "\"{text}\" cannot be VMs': give a /{VM_RANGE_PREFIX} such as 100.64.0.0/14"
            )),
        }
    }
}

impl Word for UpstreamProxy {
    const SHAPE: &'static str = "URL";
    const LIST_SHAPE: &'static str = "list of URLs";

    fn parse_word(text: &str) -> Result<Self, String> {
        // It may hold a password, so it is not repeated.
        text.parse()
            .map_err(|error: UpstreamProxyError| error.to_string())
    }
}

impl Word for IpAddr {
    const SHAPE: &'static str = "address";
    const LIST_SHAPE: &'static str = "list of addresses";

    fn parse_word(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("\"{text}\" is not an IP address"))
    }
}

/// A range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl Word for PortRange {
    const SHAPE: &'static str = "port-port";
    const LIST_SHAPE: &'static str = "list of port-port";

    fn parse_word(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self(first..=last)),
            _ => Err(format!(
                "\"{text}\" is not a range of ports such as 20000-29999"
            )),
        }
    }
}

/// The name of a host, in lower case and without a final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(pub String);

impl Word for HostName {
    const SHAPE: &'static str = "host name";
    const LIST_SHAPE: &'static str = "list of host names";

    fn parse_word(text: &str) -> Result<Self, String> {
        let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let is_label = |label: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len())
                && label.chars().all(fits)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= 200 && name.split('.').all(is_label) {
            Ok(Self(name))
        } else {
            Err(format!(
                "\"{text}\" is not the name of a host such as apps.example.com"
            ))
        }
    }
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl Word for ListenAddress {
    const SHAPE: &'static str = "address:port";
    const LIST_SHAPE: &'static str = "list of address:port";

    fn parse_word(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        text.strip_prefix("localhost:")
            .and_then(|port| port.parse().ok())
            .map(|port| Self(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
            .ok_or_else(|| {
                format!(
                    "\"{text}\" is not an address and port such as 127.0.0.1:8080 or [::1]:8080"
                )
            })
    }
}

/// The PostgreSQL database that keeps the records; `None`: SQLite in the data directory. Shown without its password.
#[derive(Clone, Debug)]
pub struct DatabaseUrl(pub Option<PostgresUrl>);

impl Word for DatabaseUrl {
    const SHAPE: &'static str = "postgres URL";
    const LIST_SHAPE: &'static str = "list of postgres URLs";

    fn parse_word(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self(None));
        }
        // The fault says nothing of the text: there is a password in it.
        text.parse()
            .map(|url| Self(Some(url)))
            .map_err(|fault: instavm_store::UrlFault| fault.to_string())
    }
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(pub String);

impl Word for LogFilter {
    const SHAPE: &'static str = "log filter";
    const LIST_SHAPE: &'static str = "list of log filters";

    fn parse_word(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("is empty; give error, warn, info, debug or trace".to_owned());
        }
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("\"{text}\" is not a log filter: {error}")),
        }
    }
}

/// Makes a type of a few words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $shape:literal { $( $(#[$variant_doc:meta])* $variant:ident = $word:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$variant_doc])* $variant ),* }

        impl Word for $name {
            const SHAPE: &'static str = $shape;
            const LIST_SHAPE: &'static str = $shape;

            fn parse_word(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok(Self::$variant), )*
                    other => Err(format!("\"{other}\" is none of {}", $shape)),
                }
            }
        }
    };
}

choice! {
    /// How a log line is written.
    LogFormat, "text|json" {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// What the default image is made from.
    ImageSource, "auto|debian|host" {
        /// `debian` where its packages are reachable, else `host`.
        Auto = "auto",
        /// Packages of Debian.
        Debian = "debian",
        /// The host's own programs.
        Host = "host",
    }
}

choice! {
    /// What makes VMs.
    DriverChoice, "auto|native" {
        /// The strongest driver that works on this host.
        Auto = "auto",
        /// Linux namespaces.
        Native = "native",
    }
}

choice! {
    /// What keeps the disks.
    DiskDriverChoice, "auto|btrfs|directory" {
        /// btrfs where it works, else plain folders.
        Auto = "auto",
        /// Subvolumes of a btrfs.
        Btrfs = "btrfs",
        /// Plain folders, whose limits are kept by measuring.
        Directory = "directory",
    }
}

choice! {
    /// How URLs begin.
    PublicScheme, "http|https" {
        /// Plain.
        Http = "http",
        /// With TLS.
        Https = "https",
    }
}

fn wanted(what: &str, found: &toml::Value) -> String {
    format!("must be {what}, not {} ({})", found, found.type_str())
}
