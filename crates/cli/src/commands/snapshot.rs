//! `instavm snapshot`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, ask, list, online};
use crate::failure::Failure;
use crate::json::Object;
use crate::output::{self, shown};
use crate::progress::Progress;
use crate::watch::Watch;
use clap::{Args, Subcommand, ValueEnum};
use instavm::{Call, Client, Method, path_segment};
use serde_json::{Map, Value, json};

/// Manage snapshots
#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "list")]
    Ls(Ls),
    Create(Create),
    Build(Build),
    Get(Get),
    #[command(visible_alias = "delete")]
    Rm(Rm),
}

/// List the snapshots
#[derive(Args)]
pub(crate) struct Ls {
    /// Only those of this type
    #[arg(long = "type")]
    kind: Option<Kind>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Save the disk of a running VM
#[derive(Args)]
pub(crate) struct Create {
    /// The VM
    vm_id: String,
    /// A name for the snapshot
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Build a snapshot from an OCI image, in the background
///
/// `instavm snapshot get --watch` follows it.
#[derive(Args)]
pub(crate) struct Build {
    /// The image, for example: docker.io/library/debian:12
    oci_image: String,
    /// A name for the snapshot
    #[arg(long)]
    name: Option<String>,
    /// Processors of VMs that start from it
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    vcpu: Option<i64>,
    /// Memory in MiB of VMs that start from it
    #[arg(long, value_name = "MB", allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Size of the disk in GiB
    #[arg(long, value_name = "GB", allow_negative_numbers = true)]
    disk_size: Option<i64>,
    /// A variable of its environment; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Clone this repository into it
    #[arg(long, value_name = "URL")]
    git_clone: Option<String>,
    /// The branch of the repository
    #[arg(long, value_name = "BRANCH")]
    git_branch: Option<String>,
    /// Run this at the end
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Install these packages with apt
    #[arg(long, value_name = "PACKAGES")]
    apt: Option<String>,
    /// Install these packages with pip
    #[arg(long, value_name = "PACKAGES")]
    pip: Option<String>,
    /// Install these packages with npm
    #[arg(long, value_name = "PACKAGES")]
    npm: Option<String>,
    /// Whose it is
    #[arg(long = "type", default_value = "user")]
    kind: Kind,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Show a snapshot
#[derive(Args)]
pub(crate) struct Get {
    /// The snapshot
    snapshot_id: String,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

/// Delete a snapshot
#[derive(Args)]
pub(crate) struct Rm {
    /// The snapshot
    snapshot_id: String,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    User,
    System,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::System => "system",
        }
    }
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(arguments) => ls(arguments),
        Command::Create(arguments) => create(arguments),
        Command::Build(arguments) => build(arguments),
        Command::Get(arguments) => get(arguments),
        Command::Rm(arguments) => rm(arguments),
    }
}

fn ls(arguments: &Ls) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let call = Call::new(Method::Get, "/v1/snapshots");
        let call = match arguments.kind {
            Some(kind) => call.query("type", kind.name()),
            None => call,
        };
        let snapshots = list(&client.call(call).await?);
        let columns = ["id", "name", "status", "type"];
        let rows: Vec<Vec<String>> = snapshots
            .iter()
            .map(|one| columns.iter().map(|name| shown(one.get(name))).collect())
            .collect();
        let lines = output::listing(
            "Snapshots",
            "No snapshots.",
            &["ID", "Name", "Status", "Type"],
            &rows,
        );
        let payload = Object::default().with("snapshots", snapshots);
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
        let path = format!("/v1/vms/{}/snapshot", path_segment(&arguments.vm_id)?);
        let call = Call::new(Method::Post, path).query("wait", true);
        let call = call.once().json(&body)?;
        let work = || ask(&client, call.clone(), "create a snapshot");
        let made = Progress::new(arguments.format.json)
            .step_again("Creating snapshot", work)
            .await?;
        let id = ["snapshot_id", "id"]
            .iter()
            .filter_map(|name| made.get(name))
            .find(|id| id.is_truthy());
        let lines = [
            format!("Snapshot: {}", shown(id)),
            format!("Status: {}", shown(made.get("status"))),
        ];
        output::emit(arguments.format.json, made, &lines)
    })
}

fn build(arguments: &Build) -> Result<(), Failure> {
    online(async {
        let platform = Platform::resolve(&arguments.endpoint)?;
        let body = arguments.body()?;
        let client = platform.connect().await?;
        let call = Call::new(Method::Post, "/v1/snapshots")
            .once()
            .json(&body)?;
        let work = || ask(&client, call.clone(), "build a snapshot");
        let made = Progress::new(arguments.format.json)
            .step_again("Building snapshot", work)
            .await?;
        let lines = described(&made, &["id", "name", "status"]);
        output::emit(arguments.format.json, made, &lines)
    })
}

impl Build {
    fn body(&self) -> Result<Value, Failure> {
        let mut body = Map::new();
        body.insert("oci_image".to_owned(), self.oci_image.as_str().into());
        body.insert("type".to_owned(), self.kind.name().into());
        for (name, value) in [
            ("name", self.name.as_deref().map(Value::from)),
            ("vcpu_count", self.vcpu.map(Value::from)),
            ("memory_mb", self.memory.map(Value::from)),
        ] {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        }
        let steps = self.steps()?;
        if !steps.is_empty() {
            body.insert("build_args".to_owned(), steps.into());
        }
        Ok(body.into())
    }

    /// What is done inside the image.
    fn steps(&self) -> Result<Map<String, Value>, Failure> {
        let mut steps = Map::new();
        for (name, value) in [
            ("extra_apt_packages", &self.apt),
            ("extra_pip_packages", &self.pip),
            ("extra_npm_packages", &self.npm),
            ("git_clone_url", &self.git_clone),
            ("git_clone_branch", &self.git_branch),
            ("post_build_cmd", &self.run),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                steps.insert(name.to_owned(), value.into());
            }
        }
        if let Some(size) = self.disk_size.filter(|size| *size != 0) {
            steps.insert("disk_size_gb".to_owned(), size.into());
        }
        if !self.env.is_empty() {
            steps.insert("envs".to_owned(), variables(&self.env)?.into());
        }
        Ok(steps)
    }
}

fn variables(pairs: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut variables = Map::new();
    for pair in pairs {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::said(format!("--env is KEY=VALUE, not '{pair}'")))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(Failure::said(format!(
                "--env is KEY=VALUE, and '{pair}' has no key"
            )));
        }
        variables.insert(name.to_owned(), value.into());
    }
    Ok(variables)
}

fn get(arguments: &Get) -> Result<(), Failure> {
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let frame = || async {
            let snapshot = fetch(&client, &arguments.snapshot_id).await?;
            let lines = described(&snapshot, &["id", "name", "status", "type"]);
            Ok((snapshot, lines))
        };
        arguments.watch.frames(arguments.format.json, frame).await
    })
}

async fn fetch(client: &Client, id: &str) -> Result<Object, Failure> {
    let path = format!("/v1/snapshots/{}", path_segment(id)?);
    Ok(ask(client, Call::new(Method::Get, path), "get the snapshot").await?)
}

/// A line for each of these.
fn described(snapshot: &Object, names: &[&str]) -> Vec<String> {
    let line = |name: &&str| {
        let label = match *name {
            "id" => "Snapshot",
            "name" => "Name",
            "status" => "Status",
            _ => "Type",
        };
        format!("{label}: {}", shown(snapshot.get(name)))
    };
    names.iter().map(line).collect()
}

fn rm(arguments: &Rm) -> Result<(), Failure> {
    let id = arguments.snapshot_id.as_str();
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let answer = Progress::new(arguments.format.json)
            .step("Deleting snapshot", async {
                let path = format!("/v1/snapshots/{}", path_segment(id)?);
                ask(
                    &client,
                    Call::new(Method::Delete, path),
                    "delete the snapshot",
                )
                .await
            })
            .await?;
        let payload = Object::default().with("snapshot_id", id).merged(answer);
        output::emit(
            arguments.format.json,
            payload,
            &[format!("Deleted snapshot {id}")],
        )
    })
}
