//! The daemon's configuration: one table of keys, four sources, every fault reported at once.
//!
//! Sources, the later one wins: the table's defaults, the TOML file, the environment, the command line's flags.

mod keys;
mod secrets;
mod source;
mod value;

use crate::config::source::Origin;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

pub use keys::{Config, KEYS, KeySpec, environment_name};
pub use secrets::{BootstrapKey, Secrets};
pub use value::{
    DatabaseUrl, DiskDriverChoice, DriverChoice, HostName, ImageSource, ListenAddress, LogFilter,
    LogFormat, PortRange, PublicScheme, VmRange,
};

/// Where the file is looked for when `--config` does not name one.
pub const DEFAULT_FILE: &str = "/etc/instavm/instavm.toml";

/// The exit status of a configuration with faults (`EX_USAGE`).
pub const FAULT_EXIT_CODE: u8 = 64;

/// VMs that an instance has addresses and user ids for, the pool's included.
const VMS_OF_AN_INSTANCE: u64 = 1024;

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// The configuration file [default: /etc/instavm/instavm.toml, when it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data directory (key `data_dir`)
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// One thing that is wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    place: String,
    message: String,
}

impl Fault {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }

    fn at(origin: &Origin, key: &str, message: impl Into<String>) -> Self {
        Self::new(origin.place(key), message)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} fault{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults, in the order of the sources.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

/// Reads all sources and checks every key. The one place where the daemon reads its environment.
///
/// # Errors
/// All faults of all sources.
pub fn load(overrides: &Overrides, listen: Option<&str>) -> Result<(Config, Secrets), Faults> {
    load_from(overrides, listen, std::env::vars_os())
}

fn load_from(
    overrides: &Overrides,
    listen: Option<&str>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Config, Secrets), Faults> {
    let mut faults = Vec::new();
    let mut given = source::Given::default();
    let mut secrets = Secrets::default();
    source::read_file(overrides.config.as_deref(), &mut given, &mut faults);
    source::read_environment(environment, &mut given, &mut secrets, &mut faults);
    if let Some(dir) = &overrides.data_dir {
        given.flag("data_dir", "--data-dir", dir.as_os_str(), &mut faults);
    }
    if let Some(address) = listen {
        given.flag("listen", "--listen", address.as_ref(), &mut faults);
    }
    let config = Config::resolve(&given, &mut faults);
    match config {
        Some(config) if faults.is_empty() => {
            check_together(&config, &mut faults);
            if faults.is_empty() {
                Ok((config, secrets))
            } else {
                Err(Faults(faults))
            }
        }
        _ => Err(Faults(faults)),
    }
}

/// Rules between keys: what must not be more than what.
fn check_together(config: &Config, faults: &mut Vec<Fault>) {
    check_shares(config, faults);
    let memory_max = ("limits.memory_mb_max", config.limits_memory_mb_max.into());
    let vcpu_max = ("limits.vcpu_count_max", config.limits_vcpu_count_max.into());
    let lifetime_max = (
        "limits.lifetime_seconds_max",
        config.limits_lifetime_seconds_max.into(),
    );
    let timeout_max = (
        "limits.execute_timeout_seconds_max",
        config.limits_execute_timeout_seconds_max.into(),
    );
    let vms = u64::from(config.limits_vms);
    let rules: [(&str, u64, (&str, u64)); 8] = [
        ("vm.memory_mb", config.vm_memory_mb.into(), memory_max),
        ("vm.vcpu_count", config.vm_vcpu_count.into(), vcpu_max),
        (
            "vm.lifetime_seconds",
            config.vm_lifetime_seconds.into(),
            lifetime_max,
        ),
        (
            "session.lifetime_seconds",
            config.session_lifetime_seconds.into(),
            lifetime_max,
        ),
        (
            "limits.execute_timeout_seconds",
            config.limits_execute_timeout_seconds.into(),
            timeout_max,
        ),
        (
            "limits.execute_async_timeout_seconds",
            config.limits_execute_async_timeout_seconds.into(),
            timeout_max,
        ),
        (
            "limits.vms_per_account",
            config.limits_vms_per_account.into(),
            ("limits.vms", vms),
        ),
        (
            "pool.size and limits.vms together",
            u64::from(config.pool_size) + vms,
            ("an instance", VMS_OF_AN_INSTANCE),
        ),
    ];
    for (small, value, (large, bound)) in rules {
        if value > bound {
            faults.push(Fault::new(
                small,
                format!("is {value}, more than {large} allows ({bound}): lower the one or raise the other"),
            ));
        }
    }
}

/// What of the keys of shares goes together.
fn check_shares(config: &Config, faults: &mut Vec<Fault>) {
    let (certificate, key) = (&config.share_tls_certificate, &config.share_tls_key);
    if certificate.is_some() != key.is_some() {
        faults.push(Fault::new(
            "share.tls_certificate",
            "and share.tls_key go together: give both or neither",
        ));
    }
    let of_domains = [
        ("share.tls_certificate", certificate.is_some()),
        ("share.public_scheme", config.share_public_scheme.is_some()),
        ("share.public_port", config.share_public_port.is_some()),
    ];
    for (name, is_set) in of_domains {
        if is_set && config.share_domain.is_none() {
            faults.push(Fault::new(name, "needs share.domain"));
        }
    }
}

/// The list of all keys with defaults and environment names, for `serve --help`.
pub fn help() -> String {
    let mut text = String::from(
        "Configuration keys. Each may stand in the file (TOML), in the environment, or where a flag is named, on the\n\
         command line; the later one wins. Lists are separated by commas in the environment.\n",
    );
    for key in KEYS {
        let default = key.default.map_or_else(
            || String::from("unset"),
            |text| {
                if text.is_empty() {
                    String::from("empty")
                } else {
                    text.to_owned()
                }
            },
        );
        text.push_str(&format!(
            "\n  {}  ({}) [default: {default}] [env: {}]\n      {}",
            key.path,
            key.shape_text(),
            environment_name(key.path),
            key.help
        ));
    }
    text.push_str("\n\nSecrets, only in the environment:\n");
    text.push_str(secrets::HELP);
    text
}

#[cfg(test)]
mod tests;
