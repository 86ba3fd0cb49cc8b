//! `instavm volume`.

mod checkpoint;
mod file;

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, ask, list, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::size;
use clap::{Args, Subcommand};
use instavm::{Call, Method, path_segment};
use serde_json::{Map, json};

/// Manage volumes, their checkpoints and their files
#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "list")]
    Ls(Ls),
    Get(Get),
    Create(Create),
    Update(Update),
    #[command(visible_alias = "delete")]
    Rm(Rm),
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    #[command(subcommand)]
    Files(file::Command),
}

/// List the volumes
#[derive(Args)]
pub(crate) struct Ls {
    /// Measure their usage first
    #[arg(long)]
    refresh: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Show a volume
#[derive(Args)]
pub(crate) struct Get {
    /// The volume
    volume_id: String,
    /// Measure its usage first
    #[arg(long)]
    refresh: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Create a volume
#[derive(Args)]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// The most that it holds, for example 512mb or 10gb
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    quota: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Change the name or the quota of a volume
#[derive(Args)]
pub(crate) struct Update {
    /// The volume
    volume_id: String,
    /// Its new name
    #[arg(long)]
    name: Option<String>,
    /// The most that it holds, for example 512mb or 10gb
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    quota: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Delete a volume
#[derive(Args)]
pub(crate) struct Rm {
    /// The volume
    volume_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(arguments) => ls(arguments),
        Command::Get(arguments) => get(arguments),
        Command::Create(arguments) => create(arguments),
        Command::Update(arguments) => update(arguments),
        Command::Rm(arguments) => rm(arguments),
        Command::Checkpoint(command) => checkpoint::run(command),
        Command::Files(command) => file::run(command),
    }
}

fn ls(arguments: &Ls) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let call = Call::new(Method::Get, "/v1/volumes").query("refresh_usage", arguments.refresh);
        let volumes = list(&client.call(call).await?);
        let row = |volume: &Json| {
            let amount = |name: &str| size::shown(volume.get(name));
            vec![
                shown(volume.get("id")),
                shown(volume.get("name")),
                format!("{} / {}", amount("used_bytes"), amount("quota_bytes")),
                shown(volume.get("status")),
            ]
        };
        let rows: Vec<_> = volumes.iter().map(row).collect();
        let headers = ["ID", "Name", "Usage", "Status"];
        let lines = output::listing("Volumes", "No volumes.", &headers, &rows);
        let payload = Object::default().with("volumes", volumes);
        output::emit(arguments.format.json, payload, &lines)
    })
}

fn get(arguments: &Get) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let path = format!("/v1/volumes/{}", path_segment(&arguments.volume_id)?);
        let call = Call::new(Method::Get, path).query("refresh_usage", arguments.refresh);
        let volume = ask(&client, call, "get the volume").await?;
        let lines = [
            format!("ID: {}", shown(volume.get("id"))),
            format!("Name: {}", shown(volume.get("name"))),
            format!("Status: {}", shown(volume.get("status"))),
            format!("Quota: {}", size::shown(volume.get("quota_bytes"))),
            format!("Used: {}", size::shown(volume.get("used_bytes"))),
        ];
        output::emit(arguments.format.json, volume, &lines)
    })
}

fn create(arguments: &Create) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let body = json!({"name": arguments.name, "quota_bytes": size::parse(&arguments.quota)?});
        let call = Call::new(Method::Post, "/v1/volumes").json(&body)?;
        let volume = ask(&client, call, "create a volume").await?;
        let lines = [
            format!("Volume: {}", shown(volume.get("id"))),
            format!("Name: {}", shown(volume.get("name"))),
            format!("Quota: {}", size::shown(volume.get("quota_bytes"))),
        ];
        output::emit(arguments.format.json, volume, &lines)
    })
}

fn update(arguments: &Update) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let mut body = Map::new();
        if let Some(name) = arguments.name.as_deref().filter(|name| !name.is_empty()) {
            body.insert("name".to_owned(), name.into());
        }
        if let Some(quota) = arguments.quota.as_deref().filter(|quota| !quota.is_empty()) {
            body.insert("quota_bytes".to_owned(), size::parse(quota)?.into());
        }
        if body.is_empty() {
            return Err(Failure::said("nothing to change; give --name or --quota"));
        }
        let path = format!("/v1/volumes/{}", path_segment(&arguments.volume_id)?);
        let call = Call::new(Method::Patch, path).json(&body)?;
        let volume = ask(&client, call, "update the volume").await?;
        let id = volume.get("id").filter(|id| id.is_truthy());
        let id = id.map_or_else(|| arguments.volume_id.clone(), |id| shown(Some(id)));
        output::emit(
            arguments.format.json,
            volume,
            &[format!("Updated volume {id}")],
        )
    })
}

fn rm(arguments: &Rm) -> Result<(), Failure> {
    let id = arguments.volume_id.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let path = format!("/v1/volumes/{}", path_segment(id)?);
        let answer = ask(
            &client,
            Call::new(Method::Delete, path),
            "delete the volume",
        )
        .await?;
        let payload = Object::default().with("volume_id", id).merged(answer);
        output::emit(arguments.format.json, payload, &[format!("Deleted {id}")])
    })
}
