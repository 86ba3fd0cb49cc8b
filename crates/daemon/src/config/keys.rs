//! The one table of all configuration keys.

use crate::config::Fault;
use crate::config::source::Given;
use crate::config::value::{
    DatabaseUrl, DiskDriverChoice, DriverChoice, HostName, ImageSource, KeyValue, ListenAddress,
    LogFilter, LogFormat, PortRange, PublicScheme, VmRange,
};
use instavm_network::UpstreamProxy;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What the table says of one key.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// Its dotted path in the file.
    pub path: &'static str,
    /// Its default as one would write it in the environment; `None`: unset.
    pub default: Option<&'static str>,
    /// What it is for, in one line.
    pub help: &'static str,
    /// What its value looks like.
    pub shape: &'static str,
    /// The least and the greatest number that it takes.
    pub range: Option<(u64, u64)>,
}

impl KeySpec {
    /// What its value looks like, with its range.
    pub fn shape_text(&self) -> String {
        match self.range {
            Some((least, greatest)) => format!("{} {least} to {greatest}", self.shape),
            None => self.shape.to_owned(),
        }
    }
}

/// The name of a key in the environment.
pub fn environment_name(path: &str) -> String {
    format!("INSTAVM_{}", path.replace('.', "_").to_uppercase())
}

/// Makes the table and the typed configuration from one list, so that neither can miss a key.
macro_rules! keys {
    ($( $field:ident: $type:ty $([$least:literal..=$greatest:literal])?, $path:literal, $default:expr, $help:literal; )*) => {
        /// All keys, in the order of the help.
        pub const KEYS: &[KeySpec] = &[$( KeySpec {
            path: $path,
            default: $default,
            help: $help,
            shape: <$type as KeyValue>::SHAPE,
            range: keys!(@range $($least, $greatest)?),
        } ),*];

        /// The configuration, every key checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $( #[doc = $help] pub $field: $type, )*
        }

        impl Config {
            /// Takes each key from the last source that gives it; notes what is wrong with any of them.
            pub(super) fn resolve(given: &Given, faults: &mut Vec<Fault>) -> Option<Self> {
                let mut specs = KEYS.iter();
                $( let $field = specs.next().and_then(|spec| given.resolve::<$type>(spec, faults)); )*
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
    (@range) => { None };
    (@range $least:literal, $greatest:literal) => { Some(($least, $greatest)) };
}

keys! {
    listen: ListenAddress, "listen", Some("127.0.0.1:8080"),
        "The address that the API listens on; port 0 takes a free one. Flag: --listen.";
    data_dir: PathBuf, "data_dir", Some("/var/lib/instavm"),
        "Where everything of this instance is kept. Flag: --data-dir.";
    database_url: DatabaseUrl, "database.url", Some(""),
        "The PostgreSQL database that keeps the records: postgres://USER:PASSWORD@HOST/DATABASE?sslmode=require; empty: SQLite in data_dir.";
    log_level: LogFilter, "log.level", Some("info"),
        "What is logged: error, warn, info, debug, trace, or per target as in `info,instavm_node=debug`.";
    log_format: LogFormat, "log.format", Some("text"),
        "How a log line is written.";
    images_cache_dir: PathBuf, "images.cache_dir", Some("/var/cache/instavm/images"),
        "Where images are kept once for all instances of this host.";
    images_default: String, "images.default", Some("default"),
        "The name of the image that VMs start from; made at the first start when it is not there.";
    images_source: ImageSource, "images.source", Some("auto"),
        "What the default image is made from; auto takes debian where its packages are reachable, else host.";
    images_registry_auth: Option<PathBuf>, "images.registry_auth", None,
        "A file like docker's config.json with the credentials for registries; unset: none.";
    images_private_registries: bool, "images.private_registries", Some("true"),
        "Whether registries may have private, loopback and link-local addresses.";
    images_build_timeout_seconds: u32 [10..=86400], "images.build_timeout_seconds", Some("1800"),
        "How long the build of a snapshot may take.";
    pool_size: u32 [0..=1024], "pool.size", Some("8"),
        "How many VMs are kept ready with their interpreter loaded.";
    vm_memory_mb: u32 [128..=1048576], "vm.memory_mb", Some("1024"),
        "Memory of a VM in MiB when the request names none.";
    vm_vcpu_count: u32 [1..=256], "vm.vcpu_count", Some("2"),
        "Processors of a VM when the request names none.";
    vm_disk_gib: u32 [1..=65536], "vm.disk_gib", Some("10"),
        "The limit of a VM's root disk in GiB; space is taken as it is written.";
    vm_pids: u32 [64..=4194304], "vm.pids", Some("1024"),
        "The most processes and threads in a VM.";
    vm_open_files: u32 [256..=1048576], "vm.open_files", Some("16384"),
        "The most open files of one process in a VM.";
    vm_lifetime_seconds: u32 [20..=31536000], "vm.lifetime_seconds", Some("3600"),
        "Lifetime of a VM when the request names none.";
    session_lifetime_seconds: u32 [20..=31536000], "session.lifetime_seconds", Some("300"),
        "Lifetime of a session's VM when the request names none.";
    limits_memory_mb_max: u32 [128..=1048576], "limits.memory_mb_max", Some("8192"),
        "The most memory in MiB that a request may ask for.";
    limits_vcpu_count_max: u32 [1..=256], "limits.vcpu_count_max", Some("8"),
        "The most processors that a request may ask for.";
    limits_lifetime_seconds_max: u32 [20..=31536000], "limits.lifetime_seconds_max", Some("86400"),
        "The longest lifetime that a request may ask for.";
    limits_vms: u32 [1..=1024], "limits.vms", Some("500"),
        "The most VMs on this node at once.";
    limits_vms_per_account: u32 [1..=1024], "limits.vms_per_account", Some("500"),
        "The most VMs of one account at once.";
    limits_json_bytes: u64 [65536..=1073741824], "limits.json_bytes", Some("16777216"),
        "The largest JSON body of a request.";
    limits_upload_bytes: u64 [1..=1099511627776], "limits.upload_bytes", Some("8589934592"),
        "The largest file that one request uploads.";
    limits_output_bytes: u64 [65536..=4294967296], "limits.output_bytes", Some("134217728"),
        "The most output of one execution, for each of stdout and stderr; code that writes more is ended.";
    limits_execute_timeout_seconds: u32 [1..=86400], "limits.execute_timeout_seconds", Some("60"),
        "The time limit of an execution when the request names none.";
    limits_execute_timeout_seconds_max: u32 [1..=86400], "limits.execute_timeout_seconds_max", Some("600"),
        "The longest time limit that a request may ask for.";
    limits_execute_async_timeout_seconds: u32 [1..=86400], "limits.execute_async_timeout_seconds", Some("600"),
        "The time limit of an execution in the background when the request names none.";
    limits_connections: u32 [8..=1048576], "limits.connections", Some("4096"),
        "The most connections that the API serves at once; further ones wait.";
    executions_retention_seconds: u32 [60..=315360000], "executions.retention_seconds", Some("604800"),
        "How long the result of an execution in the background can be asked for.";
    records_retention_seconds: u32 [60..=315360000], "records.retention_seconds", Some("2592000"),
        "How long the records of VMs that have ended are kept, and those of sessions without any other.";
    network_range: VmRange, "network.range", Some("100.64.0.0/14"),
        "The private range that the VMs of all instances of this host get their addresses from.";
    network_denied_ranges: Vec<IpNet>, "network.denied_ranges", Some(""),
        "Ranges that no VM reaches, besides this host, other VMs, link-local and metadata addresses.";
    network_resolvers: Vec<SocketAddr>, "network.resolvers", Some(""),
        "Name servers that VMs' questions go to; empty: those of this host.";
    network_upstream_proxy: Option<UpstreamProxy>, "network.upstream_proxy", None,
        "The proxy by which VMs' connections to ports 80 and 443 leave, http://USER:PASSWORD@HOST:PORT or socks5://…; unset: straight.";
    network_vm_rate_mbit: u32 [0..=100000], "network.vm_rate_mbit", Some("0"),
        "What may cross a VM's link each way, in million bits a second; 0: as much as it carries.";
    share_address: IpAddr, "share.address", Some("127.0.0.1"),
        "The address that the ports of shares are opened on, while share.domain is unset.";
    share_ports: PortRange, "share.ports", Some("20000-29999"),
        "The ports that shares are found under, while share.domain is unset.";
    share_public_host: Option<HostName>, "share.public_host", None,
        "The host in the URLs of shares, where that is not share.address.";
    share_domain: Option<HostName>, "share.domain", None,
        "The domain below which each share has a host name of its own (*.DOMAIN must lead here); unset: ports.";
    share_listen: ListenAddress, "share.listen", Some("127.0.0.1:8443"),
        "The address that all shares are found under when share.domain is set.";
    share_tls_certificate: Option<PathBuf>, "share.tls_certificate", None,
        "A PEM file with the certificate for *.DOMAIN and those that signed it; read again when it changes; unset: no TLS.";
    share_tls_key: Option<PathBuf>, "share.tls_key", None,
        "A PEM file with the certificate's key.";
    share_public_scheme: Option<PublicScheme>, "share.public_scheme", None,
        "The scheme in the URLs of shares, where a proxy in front has another one than share.listen.";
    share_public_port: Option<u32> [1..=65535], "share.public_port", None,
        "The port in the URLs of shares, where a proxy in front has another one than share.listen.";
    share_connections: u32 [16..=1048576], "share.connections", Some("8192"),
        "The most connections to all shares at once; further ones are refused.";
    share_requests: u32 [1..=1048576], "share.requests", Some("1024"),
        "The most requests and WebSockets of one share at once; further ones are refused.";
    runtime_driver: DriverChoice, "runtime.driver", Some("auto"),
        "What makes VMs; auto takes the strongest that works on this host.";
    runtime_extra_ca: Option<Vec<PathBuf>>, "runtime.extra_ca", None,
        "PEM files of authorities that VMs trust; unset: those that were added to this host; empty: none.";
    disks_size_gib: Option<u64> [8..=1048576], "disks.size_gib", None,
        "The most that all disks together take, in GiB; unset: what the data directory's file system has.";
    disks_driver: DiskDriverChoice, "disks.driver", Some("auto"),
        "What keeps the disks; auto takes btrfs where it works, else plain folders, whose limits are kept by measuring.";
    disks_scrub_hours: u32 [0..=8760], "disks.scrub_hours", Some("168"),
        "Hours between two readings of all disks against their checksums; 0: none.";
}
