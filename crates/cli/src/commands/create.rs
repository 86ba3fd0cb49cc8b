//! `instavm create`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, ask, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::progress::Progress;
use clap::{Args, ValueEnum};
use instavm::{Call, Method};
use serde_json::{Map, Value, json};

/// Create a VM and wait until it executes code
#[derive(Args)]
pub(crate) struct Arguments {
    /// Which kind of image it starts from
    #[arg(long = "type", value_name = "TYPE", default_value = "standard")]
    kind: Kind,
    /// Seconds that it lives
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Memory in MiB
    #[arg(long, value_name = "MB", allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Processors
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    vcpu: Option<i64>,
    /// Start it from this snapshot
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Give it to this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Mount a volume: VOLUME_ID:MOUNT_PATH[:rw|ro[:CHECKPOINT_ID]]; may be given again
    #[arg(long, value_name = "SPEC")]
    volume: Vec<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Standard,
    ComputerUse,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    online(async {
        let platform = Platform::resolve(&arguments.endpoint)?;
        let body = body(arguments)?;
        let client = platform.connect().await?;
        let made = Progress::new(arguments.format.json)
            .step("Creating VM", async {
                let call = Call::new(Method::Post, "/v1/vms").query("wait", true);
                ask(&client, call.json(&body)?, "create a VM").await
            })
            .await?;
        let lines = lines(&made, &platform.ssh_host);
        output::emit(arguments.format.json, made, &lines)
    })
}

/// Only what was asked for.
fn body(arguments: &Arguments) -> Result<Value, Failure> {
    let mut body = Map::new();
    if arguments.kind == Kind::ComputerUse {
        body.insert("image_variant".to_owned(), "computer-use".into());
    }
    for (name, value) in [
        ("vm_lifetime_seconds", arguments.timeout),
        ("memory_mb", arguments.memory),
        ("vcpu_count", arguments.vcpu),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.into());
        }
    }
    for (name, value) in [
        ("snapshot_id", &arguments.snapshot),
        ("session_id", &arguments.session),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            body.insert(name.to_owned(), value.into());
        }
    }
    if !arguments.volume.is_empty() {
        let mounts: Result<Vec<Value>, Failure> =
            arguments.volume.iter().map(|spec| mount(spec)).collect();
        body.insert("volumes".to_owned(), mounts?.into());
    }
    Ok(body.into())
}

/// Reads `VOLUME_ID:MOUNT_PATH[:rw|ro[:CHECKPOINT_ID]]`.
fn mount(spec: &str) -> Result<Value, Failure> {
    let parts: Vec<&str> = spec.split(':').map(str::trim).collect();
    let (volume_id, mount_path, rest) = match &parts[..] {
        [volume_id, mount_path, rest @ ..] if rest.len() <= 2 => (*volume_id, *mount_path, rest),
        _ => {
            return Err(Failure::said(format!(
                "--volume is VOLUME_ID:MOUNT_PATH[:rw|ro[:CHECKPOINT_ID]], not '{spec}'"
            )));
        }
    };
    let part = |index: usize| rest.get(index).filter(|part| !part.is_empty());
    let mode = part(0).map_or_else(|| "rw".to_owned(), |mode| mode.to_lowercase());
    let checkpoint_id = match (mode.as_str(), part(1)) {
        ("rw", None) => None,
        ("rw", Some(_)) => {
            return Err(Failure::said(
                "a checkpoint can only be mounted with the mode ro",
            ));
        }
        ("ro", checkpoint) => Some(checkpoint.map_or("latest", |id| *id)),
        _ => {
            return Err(Failure::said(format!(
                "the mode of a mount is rw or ro, not '{mode}'"
            )));
        }
    };
    Ok(json!({
        "volume_id": volume_id,
        "mount_path": mount_path,
        "mode": mode,
        "checkpoint_id": checkpoint_id,
    }))
}

/// What people read of a new VM.
pub(crate) fn lines(vm: &Object, ssh_host: &str) -> Vec<String> {
    let mut lines = vec![
        format!("VM: {}", shown(vm.get("vm_id"))),
        format!("Session: {}", shown(vm.get("session_id"))),
        format!("Status: {}", shown(vm.get("status"))),
    ];
    if let Some(id) = vm.get("vm_id").filter(|id| id.is_truthy()) {
        let id = Json::display(id).unwrap_or_default();
        lines.push(format!("SSH: ssh {id}@{ssh_host}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        for (spec, mode, checkpoint) in [
            ("v:/m", "rw", None),
            (" v : /m ::", "rw", None),
            ("v:/m:RW", "rw", None),
            ("v:/m:ro", "ro", Some("latest")),
            ("v:/m:ro:c", "ro", Some("c")),
        ] {
            let expected = json!({"volume_id": "v", "mount_path": "/m", "mode": mode, "checkpoint_id": checkpoint});
            assert_eq!(mount(spec).unwrap(), expected, "{spec}");
        }
        for spec in ["v", "", "v:/m:rx", "v:/m:rw:c", "v:/m::c", "v:/m:ro:c:d"] {
            assert!(mount(spec).is_err(), "{spec}");
        }
    }
}
