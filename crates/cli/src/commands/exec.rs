//! `instavm exec`.

use crate::arguments::{Endpoint, Format};
use crate::connection::{Platform, online, strict};
use crate::failure::{Failure, wanted};
use crate::json::{Json, Object};
use crate::output;
use clap::{Args, ValueEnum};
use instavm::{Call, Client, Error, Method, path_segment};
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds that `exec result` waits.
const PATIENCE: i64 = 60;

/// Run code, or a local file, in a VM
///
/// `instavm exec result TASK_ID` waits for code that was started with --async.
#[derive(Args)]
pub(crate) struct Arguments {
    /// A local file, or the word `result`
    target: Option<String>,
    /// The task that `result` is about
    task_id: Option<String>,
    /// Run this text
    #[arg(long, value_name = "CODE")]
    cmd: Option<String>,
    /// What the code is written in
    #[arg(long)]
    language: Option<Language>,
    /// Run it in this session instead of a new one
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Seconds that it may take
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Start it and return at once
    #[arg(long = "async")]
    background: bool,
    /// Seconds between two looks at the result
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    poll_interval: i64,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Language {
    Python,
    Bash,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Bash => "bash",
        }
    }

    fn of_file(path: &Path) -> Option<Language> {
        let extension = path.extension()?.to_str()?.to_lowercase();
        match extension.as_str() {
            "py" => Some(Language::Python),
            "sh" | "bash" => Some(Language::Bash),
            _ => None,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.target.as_deref() == Some("result") {
        return result(arguments);
    }
    let (code, language) = source(arguments)?;
    let language = language.map(Language::name);
    let timeout = seconds("--timeout", arguments.timeout)?;
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let session_id = match arguments.session.as_deref() {
            Some(session) if !session.is_empty() => session.to_owned(),
            _ => client
                .start_session()
                .await
                .map_err(wanted("start a session"))?,
        };
        let mut body = serde_json::json!({"command": code, "session_id": session_id});
        if let Some(language) = language {
            body["language"] = language.into();
        }
        if let Some(timeout) = timeout {
            body["timeout"] = timeout.as_secs().into();
        }
        let started = Object::default()
            .with("session_id", session_id)
            .with("language", language);
        if arguments.background {
            start(arguments, &client, &body, started).await
        } else {
            execute(arguments, &client, &body, timeout, started).await
        }
    })
}

async fn execute(
    arguments: &Arguments,
    client: &Client,
    body: &serde_json::Value,
    timeout: Option<Duration>,
    started: Object,
) -> Result<(), Failure> {
    let purpose = "execute the code";
    let mut call = Call::new(Method::Post, "/execute").json(body)?;
    if let Some(timeout) = timeout {
        call = call.timeout(timeout);
    }
    let answer = client.call(call).await;
    let answer = answer
        .and_then(|answer| strict(&answer, purpose))
        .map_err(wanted(purpose))?;
    let payload = started.merged(answer);
    let lines = describe(&payload);
    output::emit(arguments.format.json, payload, &lines)
}

async fn start(
    arguments: &Arguments,
    client: &Client,
    body: &serde_json::Value,
    started: Object,
) -> Result<(), Failure> {
    let purpose = "start the code";
    let answer = client
        .call(Call::new(Method::Post, "/execute_async").json(body)?)
        .await;
    let answer = answer
        .and_then(|answer| strict(&answer, purpose))
        .map_err(wanted(purpose))?;
    let payload = Object::default()
        .with("task_id", Json::Null)
        .merged(started)
        .merged(answer);
    let task = payload.get("task_id").and_then(Json::display);
    let task = task.unwrap_or_else(|| "<task_id>".to_owned());
    let mut lines = describe(&payload);
    lines.push(String::new());
    lines.push(format!("`instavm exec result {task}` waits for its end."));
    output::emit(arguments.format.json, payload, &lines)
}

/// The code and its language.
fn source(arguments: &Arguments) -> Result<(String, Option<Language>), Failure> {
    let code = arguments.cmd.as_deref().filter(|code| !code.is_empty());
    let target = arguments
        .target
        .as_deref()
        .filter(|target| !target.is_empty());
    match (code, target) {
        (Some(_), Some(_)) => Err(Failure::said("give either a local file or --cmd, not both")),
        (None, None) => Err(Failure::said("give a local file or --cmd")),
        (Some(code), None) => Ok((code.to_owned(), arguments.language)),
        (None, Some(target)) => {
            let path = Path::new(target);
            if !path.is_file() {
                return Err(Failure::said(format!("local file not found: {target}")));
            }
            let code = std::fs::read_to_string(path)
                .map_err(|error| Failure::said(format!("cannot read {target}: {error}")))?;
            // A script may come from a system with other line ends.
            let code = code.replace("\r\n", "\n").replace('\r', "\n");
            Ok((code, arguments.language.or_else(|| Language::of_file(path))))
        }
    }
}

fn seconds(flag: &str, value: Option<i64>) -> Result<Option<Duration>, Failure> {
    match value.map(u64::try_from) {
        None => Ok(None),
        Some(Ok(seconds @ 1..)) => Ok(Some(Duration::from_secs(seconds))),
        Some(_) => Err(Failure::said(format!("{flag} must be a positive number"))),
    }
}

fn result(arguments: &Arguments) -> Result<(), Failure> {
    let usage = "`instavm exec result TASK_ID`";
    if arguments
        .cmd
        .as_deref()
        .is_some_and(|code| !code.is_empty())
    {
        return Err(Failure::said(format!("use {usage} without --cmd")));
    }
    let task_id = arguments.task_id.as_deref().filter(|id| !id.is_empty());
    let task_id = task_id.ok_or_else(|| Failure::said(format!("the task is missing: {usage}")))?;
    let timeout = seconds("--timeout", Some(arguments.timeout.unwrap_or(PATIENCE)))?;
    let interval = seconds("--poll-interval", Some(arguments.poll_interval))?;
    online(async {
        let client = Platform::resolve(&arguments.endpoint)?.connect().await?;
        let interval = interval.unwrap_or_default();
        let task = wait(&client, task_id, interval, timeout.unwrap_or_default()).await?;
        let pass = |name: &str| task.get(name).cloned().unwrap_or(Json::Null);
        let text = |name: &str| task.get(name).cloned().unwrap_or_else(|| Json::from(""));
        let payload = Object::default()
            .with("task_id", task_id)
            .with("stdout", text("serialized_stdout"))
            .with("stderr", text("serialized_stderr"))
            .with("cpu_time", pass("cpu_time"))
            .with("created_at", pass("created_at"))
            .with("execution_time", pass("execution_time"));
        let lines = describe(&payload);
        output::emit(arguments.format.json, payload, &lines)
    })
}

/// Asks until the task is complete. A refusal may pass, so it only counts when the time is up; that there is no such
/// task will not change.
async fn wait(
    client: &Client,
    task_id: &str,
    interval: Duration,
    timeout: Duration,
) -> Result<Object, Failure> {
    let purpose = "get the result";
    let path = format!("/v1/executions/{}", path_segment(task_id)?);
    let started = Instant::now();
    loop {
        let answer = client.call(Call::new(Method::Get, path.as_str())).await;
        let refusal = match answer.and_then(|answer| strict(&answer, purpose)) {
            Ok(task) if task.get("is_complete").is_some_and(Json::is_truthy) => return Ok(task),
            Ok(_) => None,
            Err(error) if is_final(&error) => return Err(wanted(purpose)(error)),
            Err(error) => Some(error),
        };
        tokio::time::sleep(interval.min(timeout.saturating_sub(started.elapsed()))).await;
        if started.elapsed() >= timeout {
            return Err(match refusal {
                Some(error) => wanted(purpose)(error),
                None => Failure::said(format!(
                    "task {task_id} is not complete after {}s",
                    timeout.as_secs()
                )),
            });
        }
    }
}

fn is_final(error: &Error) -> bool {
    error.status() == Some(404)
        || matches!(
            error,
            Error::Authentication { .. } | Error::RateLimit { .. } | Error::Network { .. }
        )
}

/// What people read: the facts that are there, then what the code wrote.
fn describe(payload: &Object) -> Vec<String> {
    let mut lines = Vec::new();
    for (label, name) in [
        ("Task", "task_id"),
        ("Session", "session_id"),
        ("Language", "language"),
        ("Created", "created_at"),
    ] {
        if let Some(value) = payload.get(name).filter(|value| value.is_truthy()) {
            lines.push(format!("{label}: {}", value.display().unwrap_or_default()));
        }
    }
    for (label, name) in [
        ("Execution time", "execution_time"),
        ("CPU time", "cpu_time"),
    ] {
        if let Some(value) = payload.get(name).and_then(Json::display) {
            lines.push(format!("{label}: {value}"));
        }
    }
    let before = lines.len();
    let stdout = payload.get("stdout").filter(|value| value.is_truthy());
    block(
        &mut lines,
        "Stdout",
        stdout.or_else(|| payload.get("output")),
    );
    block(&mut lines, "Stderr", payload.get("stderr"));
    if lines.len() == before {
        lines.push("No output.".to_owned());
    }
    lines
}

fn block(lines: &mut Vec<String>, label: &str, value: Option<&Json>) {
    let text = value.and_then(Json::display).unwrap_or_default();
    if !text.is_empty() {
        lines.push(String::new());
        lines.push(label.to_owned());
        lines.extend(text.trim_end_matches('\n').lines().map(str::to_owned));
    }
}
