//! `instavm ls`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, list, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::watch::Watch;
use clap::Args;
use instavm::{Call, Client, Method};

/// List the active VMs
///
/// With -a or --all, also those that have ended.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Include VMs that have ended
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let ansi = output::is_ansi();
        let frame = || frame(arguments, &client, ansi);
        arguments.watch.frames(arguments.format.json, frame).await
    })
}

/// Fetches the list.
async fn frame(
    arguments: &Arguments,
    client: &Client,
    ansi: bool,
) -> Result<(Object, Vec<String>), Failure> {
    let all = arguments.all;
    // Not the same endpoint: the slash matters.
    let path = if all { "/v1/vms/" } else { "/v1/vms" };
    let mut vms = list(&client.call(Call::new(Method::Get, path)).await?);
    vms.retain(|vm| all || is_active(vm));
    let lines = if vms.is_empty() {
        let text = if all {
            "No VMs."
        } else {
            "No active VMs. `instavm ls -a` or `instavm ls --all` also shows those that have ended."
        };
        vec![text.to_owned()]
    } else {
        lines(&vms, all, ansi)
    };
    Ok((Object::default().with("vms", vms), lines))
}

fn status(vm: &Json) -> String {
    let text = vm.get("status").and_then(Json::display);
    text.unwrap_or_default().to_lowercase()
}

fn is_active(vm: &Json) -> bool {
    matches!(status(vm).as_str(), "active" | "running" | "creating")
}

fn lines(vms: &[Json], all: bool, ansi: bool) -> Vec<String> {
    let mut lines = if all {
        vec![format!("VMs ({})", vms.len())]
    } else {
        vec![
            format!("Active VMs ({})", vms.len()),
            "`instavm ls --all` also shows those that have ended.".to_owned(),
        ]
    };
    lines.push(String::new());
    let row = |vm: &Json| {
        vec![
            shown(vm.get("vm_id")),
            badge(vm, ansi),
            shown(vm.get("created_at")),
            shown(vm.get("ssh_host")),
        ]
    };
    let rows: Vec<_> = vms.iter().map(row).collect();
    lines.extend(output::table(&["ID", "Status", "Created", "SSH"], &rows));
    lines
}

/// The status with a dot in its colour.
fn badge(vm: &Json, ansi: bool) -> String {
    let label = shown(vm.get("status"));
    let colour = match label.to_lowercase().as_str() {
        "active" | "running" | "creating" | "ready" => 32,
        "building" | "pending" => 33,
        _ => 31,
    };
    if ansi {
        format!("\u{1b}[{colour}m●\u{1b}[0m {label}")
    } else {
        format!("● {label}")
    }
}
