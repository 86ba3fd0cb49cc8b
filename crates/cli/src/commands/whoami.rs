//! `instavm whoami`.

use crate::arguments::{Endpoint, Format};
use crate::commands::ssh_key;
use crate::connection::{Platform, online, strict};
use crate::failure::{Failure, wanted};
use crate::json::{Json, Object};
use crate::output::{self, shown};
use clap::Args;
use instavm::{Call, Method};

/// Show the account and its SSH keys
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let purpose = "get the user";
        let user = client.call(Call::new(Method::Get, "/v1/users/me")).await;
        let user = user
            .and_then(|answer| strict(&answer, purpose))
            .map_err(wanted(purpose))?;
        let keys = ssh_key::fetch(&client).await?;
        let field = |name: &str| user.get(name).cloned().unwrap_or(Json::Null);
        let mut lines = vec![
            "Account".to_owned(),
            format!("  Email: {}", shown(user.get("email"))),
            format!("  User ID: {}", shown(user.get("id"))),
            format!("  Name: {}", shown(user.get("name"))),
            format!(
                "  Verified: {}",
                if field("is_verified").is_truthy() {
                    "yes"
                } else {
                    "no"
                }
            ),
            String::new(),
            format!("SSH Keys ({})", keys.len()),
        ];
        if keys.is_empty() {
            lines.push("  none".to_owned());
        } else {
            lines.extend(ssh_key::table(&keys));
        }
        let payload = Object::default()
            .with("id", field("id"))
            .with("email", field("email"))
            .with("name", field("name"))
            .with("is_verified", field("is_verified"))
            .with("ssh_keys", keys);
        output::emit(arguments.format.json, payload, &lines)
    })
}
