//! `instavm vm`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, lenient, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::progress::Progress;
use clap::{Args, Subcommand};
use instavm::{Call, Error, Method, path_segment};
use serde_json::{Map, Value};

/// Change VMs
#[derive(Subcommand)]
pub(crate) enum Command {
    Update(Update),
}

/// Change a VM
#[derive(Args)]
pub(crate) struct Update {
    /// The VM
    vm_id: String,
    /// Memory in MiB, changed while it runs
    #[arg(long, value_name = "MB", allow_negative_numbers = true)]
    memory_mb: Option<i64>,
    /// Keep its disk as a snapshot when it ends
    #[arg(long)]
    snapshot_on_terminate: bool,
    /// Do not keep its disk when it ends
    #[arg(long, conflicts_with = "snapshot_on_terminate")]
    no_snapshot_on_terminate: bool,
    /// The name of that snapshot
    #[arg(long, value_name = "NAME")]
    snapshot_name: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Update(arguments) => update(arguments),
    }
}

impl Update {
    /// What is asked for, in the order of the flags.
    fn changes(&self) -> Vec<(&'static str, Value)> {
        let keep = self.snapshot_on_terminate || self.no_snapshot_on_terminate;
        let name = self.snapshot_name.as_deref();
        [
            ("memory_mb", self.memory_mb.map(Value::from)),
            (
                "snapshot_on_terminate",
                keep.then(|| self.snapshot_on_terminate.into()),
            ),
            ("snapshot_name", name.map(Value::from)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn update(arguments: &Update) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let changes = arguments.changes();
        if changes.is_empty() {
            return Err(Failure::said(
                "nothing to change; give --memory-mb, --snapshot-on-terminate, --no-snapshot-on-terminate or \
                 --snapshot-name",
            ));
        }
        let said: Vec<String> = changes
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect();
        let body: Map<String, Value> = changes
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let purpose = "update the VM";
        let answer = Progress::new(arguments.format.json)
            .step("Updating VM", async {
                let path = format!("/v1/vms/{}", path_segment(&arguments.vm_id)?);
                let call = Call::new(Method::Patch, path).json(&body)?;
                match lenient(&client.call(call).await?) {
                    Json::Object(answer) if Json::from(answer.clone()).is_truthy() => Ok(answer),
                    other if other.is_truthy() => Err(Error::Answer {
                        operation: purpose,
                        source: "it is no JSON object".into(),
                    }),
                    _ => Ok(Object::default().with("status", "ok")),
                }
            })
            .await?;
        let status = answer.get("status");
        let status = status.map_or_else(|| "ok".to_owned(), |status| shown(Some(status)));
        let lines = [
            format!("Updated VM {}: {}", arguments.vm_id, said.join(", ")),
            format!("Status: {status}"),
        ];
        output::emit(arguments.format.json, answer, &lines)
    })
}
