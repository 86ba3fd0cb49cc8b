//! `instavm auth`: the stored key.

use crate::arguments::{Endpoint, Format};
use crate::config::Config;
use crate::failure::Failure;
use crate::json::Object;
use crate::settings::{Setting, Settings, redacted};
use crate::{output, prompt};
use clap::{Args, Subcommand};
use std::io::{self, IsTerminal, Read};

/// Manage the stored API key
#[derive(Subcommand)]
pub(crate) enum Command {
    SetKey(SetKey),
    Status(Status),
    Logout(Logout),
}

/// Store an API key in ~/.instavm/config.json
///
/// The key is read from a hidden prompt, or from standard input when that is no terminal.
#[derive(Args)]
pub(crate) struct SetKey {
    /// Store this address of the platform as well
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Store this SSH gateway as well
    #[arg(long, value_name = "HOST")]
    ssh_host: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Show which key and which platform are in force
#[derive(Args)]
pub(crate) struct Status {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Use this SSH gateway for this command
    #[arg(long, value_name = "HOST")]
    ssh_host: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Remove the stored API key
#[derive(Args)]
pub(crate) struct Logout {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Use this SSH gateway for this command
    #[arg(long, value_name = "HOST")]
    ssh_host: Option<String>,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::SetKey(arguments) => set_key(arguments),
        Command::Status(arguments) => status(arguments),
        Command::Logout(arguments) => logout(arguments),
    }
}

fn typed_key() -> Result<String, Failure> {
    let text = if io::stdin().is_terminal() {
        prompt::hidden("InstaVM API key: ")?
    } else {
        read_stdin()?
    };
    match text.trim() {
        "" => Err(Failure::said(
            "an API key is needed: type it at the prompt, or pipe it to standard input",
        )),
        key => Ok(key.to_owned()),
    }
}

/// All of standard input.
pub(crate) fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| Failure::said(format!("cannot read standard input: {error}")))?;
    Ok(text)
}

fn set_key(arguments: &SetKey) -> Result<(), Failure> {
    let key = typed_key()?;
    let mut config = Config::load()?;
    config.set_api_key(Some(&key));
    let (base_url, ssh_host) = (arguments.base_url.as_deref(), arguments.ssh_host.as_deref());
    for (name, value) in [("base_url", base_url), ("ssh_host", ssh_host)] {
        if let Some(value) = value {
            config.set_setting(name, value);
        }
    }
    config.save()?;
    let path = config.path().display().to_string();
    let mut lines = vec![
        format!("Stored the API key in {path}"),
        format!("API key: {}", redacted(&key)),
    ];
    for (label, value) in [
        ("Default base URL", base_url),
        ("Default SSH host", ssh_host),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            lines.push(format!("{label}: {value}"));
        }
    }
    let payload = Object::default()
        .with("status", "stored")
        .with("config_path", path)
        .with("api_key", redacted(&key))
        .with("base_url", base_url)
        .with("ssh_host", ssh_host);
    output::emit(arguments.format.json, payload, &lines)
}

fn status(arguments: &Status) -> Result<(), Failure> {
    let settings = Settings::resolve(&arguments.endpoint, arguments.ssh_host.as_deref())?;
    let stored = settings.config.api_key().is_some();
    let key = settings.api_key.as_deref().map(redacted);
    let path = settings.config.path().display().to_string();
    let mut lines = vec![
        format!("Config path: {path}"),
        format!("Active profile: {}", settings.config.active()),
        format!(
            "API key: {} ({})",
            key.as_deref().unwrap_or("not configured"),
            settings.api_key_source
        ),
    ];
    for (label, setting) in [
        ("Base URL", &settings.base_url),
        ("SSH host", &settings.ssh_host),
    ] {
        lines.push(format!("{label}: {} ({})", setting.value, setting.source));
    }
    if stored {
        lines.push("Stored key: present".to_owned());
    }
    let object = |setting: &Setting| {
        Object::default()
            .with("value", setting.value.as_str())
            .with("source", setting.source)
    };
    let payload = Object::default()
        .with("config_path", path)
        .with("active_profile", settings.config.active())
        .with(
            "api_key",
            Object::default()
                .with("configured", key.is_some())
                .with("redacted", key)
                .with("source", settings.api_key_source)
                .with("stored", stored),
        )
        .with("base_url", object(&settings.base_url))
        .with("ssh_host", object(&settings.ssh_host));
    output::emit(arguments.format.json, payload, &lines)
}

fn logout(arguments: &Logout) -> Result<(), Failure> {
    let settings = Settings::resolve(&arguments.endpoint, arguments.ssh_host.as_deref())?;
    let mut config = settings.config;
    config.set_api_key(None);
    config.save()?;
    let path = config.path().display().to_string();
    let env_key_active = settings.api_key_source == "env";
    let mut lines = vec![format!("Removed the stored API key from {path}")];
    if env_key_active {
        lines
            .push("INSTAVM_API_KEY is still set in the environment and stays in force.".to_owned());
    }
    let payload = Object::default()
        .with("status", "logged_out")
        .with("config_path", path)
        .with("env_key_active", env_key_active);
    output::emit(arguments.format.json, payload, &lines)
}
