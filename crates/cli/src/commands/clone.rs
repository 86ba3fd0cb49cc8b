//! `instavm clone`.

use crate::arguments::{Endpoint, Format};
use crate::commands::create;
use crate::connection::{Platform, ask, online};
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use clap::Args;
use instavm::{Call, Method, path_segment};
use serde_json::json;

/// Start another VM from a running one
#[derive(Args)]
pub(crate) struct Arguments {
    /// The VM to start from
    vm_id: String,
    /// Name the snapshot that is made for it
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    online(async {
        let platform = Platform::resolve(&arguments.endpoint)?;
        let client = platform.connect().await?;
        let body = match &arguments.name {
            Some(name) => json!({"snapshot_name": name}),
            None => json!({}),
        };
        let made = Progress::new(arguments.format.json)
            .step("Cloning VM", async {
                let path = format!("/v1/vms/{}/clone", path_segment(&arguments.vm_id)?);
                let call = Call::new(Method::Post, path).query("wait", true);
                ask(&client, call.json(&body)?, "clone the VM").await
            })
            .await?;
        let lines = create::lines(&made, &platform.ssh_host);
        output::emit(arguments.format.json, made, &lines)
    })
}
