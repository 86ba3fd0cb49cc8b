//! `instavm ssh-key`.

use crate::arguments::{Endpoint, Format};
use crate::commands::auth::read_stdin;
use crate::connection::{Platform, list_in, online, strict};
use crate::failure::{Failure, wanted};
use crate::json::{Json, Object};
use crate::output::{self, shown};
use clap::{Args, Subcommand};
use instavm::{Call, Client, Method, path_segment};

/// Manage the account's SSH keys
#[derive(Subcommand)]
pub(crate) enum Command {
    List(List),
    Add(Add),
    Remove(Remove),
}

/// List the SSH keys
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Add an SSH public key
#[derive(Args)]
pub(crate) struct Add {
    /// The line of the public key file; without it, all of standard input
    public_key: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Remove an SSH key
#[derive(Args)]
pub(crate) struct Remove {
    /// The id of the key
    key_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list(arguments),
        Command::Add(arguments) => add(arguments),
        Command::Remove(arguments) => remove(arguments),
    }
}

async fn ask(client: &Client, call: Call, purpose: &'static str) -> Result<Object, Failure> {
    let answer = client.call(call).await;
    answer
        .and_then(|answer| strict(&answer, purpose))
        .map_err(wanted(purpose))
}

/// The account's keys.
pub(crate) async fn fetch(client: &Client) -> Result<Vec<Json>, Failure> {
    let call = Call::new(Method::Get, "/v1/ssh-keys");
    let answer = ask(client, call, "list SSH keys").await?;
    Ok(list_in(&answer, "keys"))
}

/// The keys as a table.
pub(crate) fn table(keys: &[Json]) -> Vec<String> {
    let columns = ["id", "fingerprint", "comment"];
    let row = |key: &Json| columns.iter().map(|name| shown(key.get(name))).collect();
    let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
    output::table(&["ID", "Fingerprint", "Comment"], &rows)
}

fn list(arguments: &List) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let keys = fetch(&client).await?;
        let lines = if keys.is_empty() {
            vec!["No SSH keys.".to_owned()]
        } else {
            let mut lines = vec![format!("SSH Keys ({})", keys.len()), String::new()];
            lines.extend(table(&keys));
            lines
        };
        let payload = Object::default().with("keys", keys);
        output::emit(arguments.format.json, payload, &lines)
    })
}

fn add(arguments: &Add) -> Result<(), Failure> {
    let platform = Platform::resolve(&arguments.endpoint)?;
    let key = match &arguments.public_key {
        Some(key) => key.clone(),
        None => read_stdin()?.trim().to_owned(),
    };
    if key.is_empty() {
        return Err(Failure::said("a public key is needed"));
    }
    online(async {
        let client = platform.connect().await?;
        let call = Call::new(Method::Post, "/v1/ssh-keys")
            .json(&serde_json::json!({"public_key": key}))?;
        let answer = ask(&client, call, "add the SSH key").await?;
        let name = ["fingerprint", "id"]
            .iter()
            .filter_map(|name| answer.get(name))
            .find(|value| value.is_truthy());
        let lines = [format!("Added {}", shown(name))];
        output::emit(arguments.format.json, answer, &lines)
    })
}

fn remove(arguments: &Remove) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let id: i64 = arguments.key_id.trim().parse().map_err(|_| {
            Failure::said(format!(
                "the id of a key is a number, not '{}'",
                arguments.key_id
            ))
        })?;
        let path = format!("/v1/ssh-keys/{}", path_segment(&id.to_string())?);
        let call = Call::new(Method::Delete, path);
        let answer = ask(&client, call, "remove the SSH key").await?;
        let payload = Object::default().with("key_id", id).merged(answer);
        output::emit(arguments.format.json, payload, &[format!("Removed {id}")])
    })
}
