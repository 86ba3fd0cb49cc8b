//! `instavm volume checkpoint`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{self, Platform, ask, online};
use crate::failure::Failure;
use crate::json::Object;
use crate::output::{self, shown};
use clap::{Args, Subcommand};
use instavm::{Call, Method, path_segment};
use serde_json::json;

/// Manage the checkpoints of a volume
#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "list")]
    Ls(Ls),
    Create(Create),
    #[command(visible_alias = "delete")]
    Rm(Rm),
}

/// List the checkpoints
#[derive(Args)]
pub(crate) struct Ls {
    /// The volume
    volume_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Keep the volume as it is now
#[derive(Args)]
pub(crate) struct Create {
    /// The volume
    volume_id: String,
    /// A name for the checkpoint
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Delete a checkpoint
#[derive(Args)]
pub(crate) struct Rm {
    /// The volume
    volume_id: String,
    /// The checkpoint
    checkpoint_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(arguments) => ls(arguments),
        Command::Create(arguments) => create(arguments),
        Command::Rm(arguments) => rm(arguments),
    }
}

fn path(volume_id: &str) -> Result<String, instavm::Error> {
    Ok(format!(
        "/v1/volumes/{}/checkpoints",
        path_segment(volume_id)?
    ))
}

fn ls(arguments: &Ls) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let call = Call::new(Method::Get, path(&arguments.volume_id)?);
        let checkpoints = connection::list(&client.call(call).await?);
        let columns = ["id", "name", "status"];
        let rows: Vec<Vec<String>> = checkpoints
            .iter()
            .map(|one| columns.iter().map(|name| shown(one.get(name))).collect())
            .collect();
        let headers = ["ID", "Name", "Status"];
        let lines = output::listing("Checkpoints", "No checkpoints.", &headers, &rows);
        let payload = Object::default().with("checkpoints", checkpoints);
        output::emit(arguments.format.json, payload, &lines)
    })
}

fn create(arguments: &Create) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let body = match &arguments.name {
            Some(name) => json!({"name": name}),
            None => json!({}),
        };
        let call = Call::new(Method::Post, path(&arguments.volume_id)?).json(&body)?;
        let made = ask(&client, call, "create a checkpoint").await?;
        let line = format!("Created checkpoint {}", shown(made.get("id")));
        output::emit(arguments.format.json, made, &[line])
    })
}

fn rm(arguments: &Rm) -> Result<(), Failure> {
    let id = arguments.checkpoint_id.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let path = format!("{}/{}", path(&arguments.volume_id)?, path_segment(id)?);
        let call = Call::new(Method::Delete, path);
        let answer = ask(&client, call, "delete the checkpoint").await?;
        let payload = Object::default().with("checkpoint_id", id).merged(answer);
        output::emit(
            arguments.format.json,
            payload,
            &[format!("Deleted checkpoint {id}")],
        )
    })
}
