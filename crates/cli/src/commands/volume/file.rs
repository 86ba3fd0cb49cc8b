//! `instavm volume files`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{self, Platform, ask, object, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::size;
use clap::{Args, Subcommand};
use instavm::{Call, Method, path_segment};
use std::path::Path;

/// Manage the files of a volume, mounted or not
#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "list")]
    Ls(Ls),
    Upload(Upload),
    Download(Download),
    #[command(visible_alias = "delete")]
    Rm(Rm),
}

/// List the files
#[derive(Args)]
pub(crate) struct Ls {
    /// The volume
    volume_id: String,
    /// Only files whose path begins with this
    #[arg(long)]
    prefix: Option<String>,
    /// At most so many
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        allow_negative_numbers = true
    )]
    limit: i64,
    /// Not what is in directories
    #[arg(long)]
    no_recursive: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Send a local file
#[derive(Args)]
pub(crate) struct Upload {
    /// The volume
    volume_id: String,
    /// The local file
    local_path: String,
    /// Where it goes in the volume; its own name when not given
    #[arg(long)]
    path: Option<String>,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Fetch a file
#[derive(Args)]
pub(crate) struct Download {
    /// The volume
    volume_id: String,
    /// The file in the volume
    remote_path: String,
    /// Where it goes; its own name in the current directory when not given
    #[arg(long, value_name = "PATH")]
    out: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Delete a file
#[derive(Args)]
pub(crate) struct Rm {
    /// The volume
    volume_id: String,
    /// The file in the volume
    remote_path: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(arguments) => ls(arguments),
        Command::Upload(arguments) => upload(arguments),
        Command::Download(arguments) => download(arguments),
        Command::Rm(arguments) => rm(arguments),
    }
}

fn path(volume_id: &str) -> Result<String, instavm::Error> {
    Ok(format!("/v1/volumes/{}/files", path_segment(volume_id)?))
}

/// The last part of a path; empty when there is none.
fn name(path: &str) -> String {
    let name = Path::new(path).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn ls(arguments: &Ls) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let call = Call::new(Method::Get, path(&arguments.volume_id)?)
            .query("prefix", arguments.prefix.as_deref().unwrap_or_default())
            .query("recursive", !arguments.no_recursive)
            .query("limit", arguments.limit);
        let files = connection::list(&client.call(call).await?);
        let row = |file: &Json| vec![shown(file.get("path")), size::shown(file.get("size"))];
        let rows: Vec<_> = files.iter().map(row).collect();
        let lines = output::listing("Files", "No files.", &["Path", "Size"], &rows);
        let payload = Object::default().with("files", files);
        output::emit(arguments.format.json, payload, &lines)
    })
}

fn upload(arguments: &Upload) -> Result<(), Failure> {
    let local = arguments.local_path.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let given = arguments.path.clone().filter(|path| !path.is_empty());
        let remote = given.unwrap_or_else(|| name(local));
        if !Path::new(local).exists() {
            return Err(Failure::said(format!("local file not found: {local}")));
        }
        let call = Call::new(
            Method::Post,
            format!("{}/upload", path(&arguments.volume_id)?),
        );
        let fields = vec![
            ("path", remote.clone()),
            ("overwrite", arguments.overwrite.to_string()),
        ];
        let answer = client.call_with_file(call, fields, local).await?;
        let answer = object(&answer, "upload a file")?;
        output::emit(
            arguments.format.json,
            answer,
            &[format!("Uploaded {local} -> {remote}")],
        )
    })
}

fn download(arguments: &Download) -> Result<(), Failure> {
    let remote = arguments.remote_path.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let given = arguments.out.clone().filter(|path| !path.is_empty());
        let local = given.unwrap_or_else(|| name(remote));
        if local.is_empty() {
            return Err(Failure::said(format!(
                "'{remote}' has no name for the local file; give one with --out"
            )));
        }
        let volumes = client.volumes();
        let mut content = volumes
            .download_stream(&arguments.volume_id, remote)
            .await?;
        let saved = content.save(&local).await?;
        let answer = Json::parse(content.answer()).unwrap_or(Json::Null);
        let pass = |name: &str| answer.get(name).cloned().unwrap_or(Json::Null);
        let size = answer.get("size").filter(|size| size.is_truthy());
        let size = size.cloned().unwrap_or(Json::Number(saved.to_string()));
        let payload = Object::default()
            .with("path", pass("path"))
            .with("filename", pass("filename"))
            .with("size", size)
            .with("local_path", local.as_str());
        output::emit(
            arguments.format.json,
            payload,
            &[format!("Downloaded {remote} -> {local}")],
        )
    })
}

fn rm(arguments: &Rm) -> Result<(), Failure> {
    let remote = arguments.remote_path.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let call = Call::new(Method::Delete, path(&arguments.volume_id)?).query("path", remote);
        let answer = ask(&client, call, "delete the file").await?;
        let payload = Object::default().with("path", remote).merged(answer);
        output::emit(
            arguments.format.json,
            payload,
            &[format!("Deleted {remote}")],
        )
    })
}
