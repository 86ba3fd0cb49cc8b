//! `instavm share`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, object, online};
use crate::failure::{Failure, wanted};
use crate::json::{Json, Object};
use crate::output::{self, shown};
use clap::{Args, Subcommand};
use instavm::{Call, Client, Method, path_segment};

/// Put ports of VMs under URLs
#[derive(Subcommand)]
pub(crate) enum Command {
    Create(Create),
    SetPublic(SetPublic),
    SetPrivate(SetPrivate),
    Revoke(Revoke),
}

/// Put a port of a VM under a URL
#[derive(Args)]
pub(crate) struct Create {
    /// The VM
    vm_id: String,
    /// The port of the app in the VM
    #[arg(allow_negative_numbers = true)]
    port: i64,
    /// Let everybody pass
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Let everybody pass
#[derive(Args)]
pub(crate) struct SetPublic {
    #[command(flatten)]
    share: Which,
}

/// Let the owner alone pass
#[derive(Args)]
pub(crate) struct SetPrivate {
    #[command(flatten)]
    share: Which,
}

/// End a share for good
#[derive(Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    share: Which,
}

/// Which share is meant.
#[derive(Args)]
pub(crate) struct Which {
    /// The share
    share_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create(arguments),
        Command::SetPublic(arguments) => set_public(&arguments.share, true),
        Command::SetPrivate(arguments) => set_public(&arguments.share, false),
        Command::Revoke(arguments) => revoke(&arguments.share),
    }
}

fn visibility(is_public: bool) -> &'static str {
    if is_public { "public" } else { "private" }
}

async fn ask(client: &Client, call: Call, purpose: &'static str) -> Result<Object, Failure> {
    let answer = client.call(call).await;
    answer
        .and_then(|answer| object(&answer, purpose))
        .map_err(wanted(purpose))
}

fn create(arguments: &Create) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let body = serde_json::json!({
            "port": arguments.port,
            "is_public": arguments.public,
            "vm_id": arguments.vm_id,
        });
        let call = Call::new(Method::Post, "/v1/shares").json(&body)?;
        let share = ask(&client, call, "create the share").await?;
        let is_public = share.get("is_public").is_some_and(Json::is_truthy);
        let lines = [
            format!("Share: {}", shown(share.get("share_id"))),
            format!("URL: {}", shown(share.get("url"))),
            format!("Port: {}", shown(share.get("port"))),
            format!("Visibility: {}", visibility(is_public)),
        ];
        output::emit(arguments.format.json, share, &lines)
    })
}

/// Changes a share and says so.
fn change(
    which: &Which,
    body: &serde_json::Value,
    purpose: &'static str,
    line: &str,
) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&which.endpoint)?.connect().await?;
        let path = format!("/v1/shares/{}", path_segment(&which.share_id)?);
        let call = Call::new(Method::Patch, path).json(body)?;
        let answer = ask(&client, call, purpose).await?;
        let payload = Object::default()
            .with("share_id", which.share_id.as_str())
            .merged(answer);
        output::emit(which.format.json, payload, &[line.to_owned()])
    })
}

fn set_public(which: &Which, is_public: bool) -> Result<(), Failure> {
    let line = format!("Share {} is now {}", which.share_id, visibility(is_public));
    let body = serde_json::json!({"is_public": is_public});
    change(which, &body, "change the share", &line)
}

fn revoke(which: &Which) -> Result<(), Failure> {
    let line = format!("Revoked {}", which.share_id);
    let body = serde_json::json!({"revoke": true});
    change(which, &body, "revoke the share", &line)
}
