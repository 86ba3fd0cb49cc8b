//! The command line.

use crate::config::{self, Overrides};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The InstaVM platform: sandboxes behind an HTTP API, on one machine.
#[derive(Debug, Parser)]
#[command(name = "instavmd", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `instavmd` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the platform in the foreground; prints `ready <base url>` when it serves
    Serve(ServeArgs),
    /// Compare rows, disks and kernel; one line a mismatch, exit status 1 when there is one
    Check(InstanceArgs),
    /// End the instance's VMs and remove every kernel object and the data
    Destroy(DestroyArgs),
    /// Show what works on this host, each failure with its fix; exit status 1 when VMs cannot be run
    Doctor(DoctorArgs),
    /// Accounts and their API keys
    #[command(subcommand)]
    Account(AccountCommand),
    /// Images that VMs start from
    #[command(subcommand)]
    Image(ImageCommand),
}

/// `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The instance.
    #[command(flatten)]
    pub overrides: Overrides,
    /// The address to listen on (key `listen`)
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
}

/// Commands on an instance.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// The instance.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// `destroy`.
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// The data directory of the instance
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The configuration file [default: /etc/instavm/instavm.toml, when it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// End the instance's daemon first when it runs
    #[arg(long)]
    pub force: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The instance.
    #[command(flatten)]
    pub overrides: Overrides,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `account …`.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Make an account and print its API key
    Create {
        /// The account's e-mail address
        email: String,
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all accounts
    List {
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Disable an account: its keys stop working at once
    Disable {
        /// The account's e-mail address or id
        account: String,
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
    },
}

/// `image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image into this host's cache
    Build {
        /// What it is made from [default: the key `images.source`]
        #[arg(long)]
        source: Option<BuildSource>,
        /// Its name [default: the key `images.default`]
        #[arg(long)]
        name: Option<String>,
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
    },
    /// List the images of this host's cache
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Remove an image from this host's cache
    Rm {
        /// Its name
        name: String,
        /// The instance.
        #[command(flatten)]
        overrides: Overrides,
    },
}

/// What an image is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BuildSource {
    /// Packages of Debian
    Debian,
    /// The host's own programs
    Host,
}

/// The command line's grammar, the list of all keys included.
pub fn grammar() -> clap::Command {
    Cli::command().mut_subcommand("serve", |serve| serve.after_long_help(config::help()))
}
