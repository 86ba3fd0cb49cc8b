//! `instavm egress`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, online, strict};
use crate::failure::{Failure, wanted};
use crate::json::{Json, Object};
use crate::output;
use clap::{ArgAction, Args, Subcommand};
use instavm::{Call, Client, Method, path_segment};

/// Show and set what a session's VM may reach
#[derive(Subcommand)]
pub(crate) enum Command {
    Get(Get),
    Set(Set),
}

/// Whose policy it is: one of both.
#[derive(Args)]
pub(crate) struct Target {
    /// The session
    #[arg(long, value_name = "SESSION_ID")]
    session: Option<String>,
    /// The VM
    #[arg(long, value_name = "VM_ID")]
    vm: Option<String>,
}

/// Show an egress policy
#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Replace an egress policy; what is not named is allowed, and lists are empty
#[derive(Args)]
pub(crate) struct Set {
    #[command(flatten)]
    target: Target,
    /// Allow the public package registries (the default)
    #[arg(long, overrides_with = "no_allow_package_managers")]
    allow_package_managers: bool,
    /// Close the public package registries
    #[arg(long, overrides_with = "allow_package_managers")]
    no_allow_package_managers: bool,
    /// Allow port 80 of every host (the default)
    #[arg(long, overrides_with = "deny_http")]
    allow_http: bool,
    /// Close port 80
    #[arg(long, overrides_with = "allow_http")]
    deny_http: bool,
    /// Allow port 443 of every host (the default)
    #[arg(long, overrides_with = "deny_https")]
    allow_https: bool,
    /// Close port 443
    #[arg(long, overrides_with = "allow_https")]
    deny_https: bool,
    /// A host that is reached all the same; may be repeated
    #[arg(long = "domain", value_name = "DOMAIN", action = ArgAction::Append)]
    domains: Vec<String>,
    /// An address range that is reached all the same; may be repeated
    #[arg(long = "cidr", value_name = "CIDR", action = ArgAction::Append)]
    cidrs: Vec<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Get(arguments) => get(arguments),
        Command::Set(arguments) => set(arguments),
    }
}

impl Target {
    /// What it is and its id.
    fn one(&self) -> Result<(&'static str, &str), Failure> {
        match (&self.session, &self.vm) {
            (Some(id), None) => Ok(("session", id)),
            (None, Some(id)) => Ok(("vm", id)),
            _ => Err(Failure::said("exactly one of --session and --vm is needed")),
        }
    }
}

fn path((kind, id): (&str, &str)) -> Result<String, Failure> {
    Ok(format!("/v1/egress/{kind}/{}", path_segment(id)?))
}

async fn ask(client: &Client, call: Call, purpose: &'static str) -> Result<Object, Failure> {
    let answer = client.call(call).await;
    answer
        .and_then(|answer| strict(&answer, purpose))
        .map_err(wanted(purpose))
}

fn get(arguments: &Get) -> Result<(), Failure> {
    let platform = Platform::resolve(&arguments.endpoint)?;
    let target = arguments.target.one()?;
    online(async {
        let client = platform.connect().await?;
        show(&client, target, arguments.format).await
    })
}

fn set(arguments: &Set) -> Result<(), Failure> {
    let platform = Platform::resolve(&arguments.endpoint)?;
    let target = arguments.target.one()?;
    online(async {
        let client = platform.connect().await?;
        let policy = serde_json::json!({
            "allow_public_repos": !arguments.no_allow_package_managers,
            "allow_http": !arguments.deny_http,
            "allow_https": !arguments.deny_https,
            "allowed_domains": arguments.domains,
            "allowed_cidrs": arguments.cidrs,
        });
        let call = Call::new(Method::Post, path(target)?).json(&policy)?;
        ask(&client, call, "set the egress policy").await?;
        show(&client, target, arguments.format).await
    })
}

async fn show(
    client: &Client,
    (kind, id): (&'static str, &str),
    format: Format,
) -> Result<(), Failure> {
    let call = Call::new(Method::Get, path((kind, id))?);
    let answer = ask(client, call, "get the egress policy").await?;
    let (payload, lines) = shown(kind, id, &answer);
    output::emit(format.json, payload, &lines)
}

/// The policy as it is printed: as JSON and as lines.
fn shown(kind: &'static str, id: &str, answer: &Object) -> (Object, Vec<String>) {
    let allowed = |names: &[&str]| {
        let found = names.iter().find_map(|name| answer.get(name));
        found.is_none_or(Json::is_truthy)
    };
    let word = |allowed: bool| if allowed { "allowed" } else { "blocked" };
    let flags = [
        (
            "allow_package_managers",
            "Package managers",
            allowed(&["allow_package_managers", "allow_public_repos"]),
        ),
        ("allow_http", "HTTP", allowed(&["allow_http"])),
        ("allow_https", "HTTPS", allowed(&["allow_https"])),
    ];
    let list = |name: &str| match answer.get(name) {
        Some(Json::List(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let lists = [
        ("allowed_domains", "Domains", list("allowed_domains")),
        ("allowed_cidrs", "CIDRs", list("allowed_cidrs")),
    ];
    let mut payload = Object::default()
        .with("target_type", kind)
        .with("target_id", id);
    let mut lines = vec![format!("Target: {kind} {id}")];
    let status = answer.get("status").filter(|status| **status != Json::Null);
    if let Some(status) = status {
        lines.push(format!("Status: {}", output::shown(Some(status))));
    }
    for (name, label, allowed) in flags {
        payload.set(name, allowed);
        lines.push(format!("{label}: {}", word(allowed)));
    }
    for (name, label, entries) in lists {
        let words: Vec<String> = entries
            .iter()
            .map(|entry| output::shown(Some(entry)))
            .collect();
        let words = if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        };
        lines.push(format!("{label}: {words}"));
        payload.set(name, entries);
    }
    if let Some(status) = status {
        payload.set("status", status.clone());
    }
    (payload, lines)
}
