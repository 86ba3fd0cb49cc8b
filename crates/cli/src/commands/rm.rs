//! `instavm rm`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, ask, online};
use crate::failure::Failure;
use crate::json::{Json, Object};
use crate::output::{self, shown};
use crate::progress::Progress;
use clap::Args;
use instavm::{Call, Method, path_segment};

/// End VMs
#[derive(Args)]
pub(crate) struct Arguments {
    /// The VMs
    #[arg(required = true)]
    vm_ids: Vec<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = arguments.format.json;
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let (mut results, mut lines) = (Vec::new(), Vec::new());
        for id in &arguments.vm_ids {
            let answer = Progress::new(json)
                .step(&format!("Deleting VM {id}"), async {
                    let path = format!("/v1/vms/{}", path_segment(id)?);
                    ask(&client, Call::new(Method::Delete, path), "delete the VM").await
                })
                .await?;
            let result = Object::default().with("vm_id", id.as_str()).merged(answer);
            let status = result.get("status");
            let status = status.map_or_else(|| "ok".to_owned(), |status| shown(Some(status)));
            lines.push(format!("{}: {status}", shown(result.get("vm_id"))));
            results.push(Json::from(result));
        }
        let payload = Object::default().with("results", results);
        output::emit(json, payload, &lines)
    })
}
