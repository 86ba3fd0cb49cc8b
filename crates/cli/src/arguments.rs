//! What can be typed. There are no global flags: each belongs to its command.

use crate::commands::{
    auth, clone, completions, create, doc, egress, exec, help, ls, pty, rm, share, snapshot,
    ssh_key, vm, volume, whoami,
};
use clap::{Args, Parser, Subcommand};

/// Run code in isolated machines, and manage them.
#[derive(Parser)]
#[command(
    name = "instavm",
    bin_name = "instavm",
    version,
    disable_help_subcommand = true,
    disable_version_flag = true,
    infer_long_args = true,
    args_override_self = true,
    subcommand_required = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// One file in `commands/` each.
#[derive(Subcommand)]
pub(crate) enum Command {
    Help(help::Arguments),
    #[command(subcommand)]
    Auth(auth::Command),
    Whoami(whoami::Arguments),
    #[command(visible_alias = "new")]
    Create(create::Arguments),
    #[command(visible_alias = "list")]
    Ls(ls::Arguments),
    #[command(visible_alias = "delete")]
    Rm(rm::Arguments),
    Clone(clone::Arguments),
    #[command(subcommand, visible_alias = "vms")]
    Vm(vm::Command),
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    #[command(subcommand, visible_alias = "volumes")]
    Volume(volume::Command),
    #[command(subcommand)]
    Egress(egress::Command),
    #[command(subcommand)]
    Share(share::Command),
    #[command(subcommand, visible_alias = "sshkey")]
    SshKey(ssh_key::Command),
    Exec(exec::Arguments),
    Pty(pty::Arguments),
    #[command(visible_alias = "docs")]
    Doc(doc::Arguments),
    Completions(completions::Arguments),
}

/// Where the platform is and who asks.
#[derive(Args, Default)]
pub(crate) struct Endpoint {
    /// Use this API key for this command
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// Use the platform at this address for this command
    #[arg(long, value_name = "URL")]
    pub(crate) base_url: Option<String>,
}

/// How a result is written.
#[derive(Args, Clone, Copy)]
pub(crate) struct Format {
    /// Print one line of JSON
    #[arg(short, long)]
    pub(crate) json: bool,
}
