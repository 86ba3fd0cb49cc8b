//! `instavm ls`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, list, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use clap::Args;
use instavm::{Call, Client, Method};
use std::time::Duration;

/// List the active VMs
///
/// With -a or --all, also those that have ended.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Include VMs that have ended
    #[arg(short, long)]
    all: bool,
    /// Show the list again every N seconds; 5 without a number
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5", allow_negative_numbers = true)]
    watch: Option<i64>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let pause = match arguments.watch.map(u64::try_from) {
            None => None,
            Some(Ok(seconds @ 1..)) => Some(Duration::from_secs(seconds)),
            Some(_) => return Err(Failure::said("--watch must be a positive number")),
        };
        let ansi = output::is_ansi();
        frame(arguments, &client, ansi, false).await?;
        let Some(pause) = pause else {
            return Ok(());
        };
        loop {
            tokio::time::sleep(pause).await;
            frame(arguments, &client, ansi, ansi && !arguments.format.json).await?;
        }
    })
}

/// Fetches the list and shows it.
async fn frame(
    arguments: &Arguments,
    client: &Client,
    ansi: bool,
    clear: bool,
) -> Result<(), Failure> {
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
    if clear {
        output::print(CLEAR)?;
    }
    let payload = Object::default().with("vms", vms);
    output::emit(arguments.format.json, payload, &lines)
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
