//! `/execute`, `/execute_async` and `/v1/executions/*`.

use super::answer::{self, Output, Texts};
use super::service::{self, Record, Run};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::clock::{Moment, micros, seconds};
use crate::error::Problem;
use crate::extract::{Caller, Id};
use crate::session::service as sessions;
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use instavm_api::ErrorBody;
use instavm_api::execution as api;
use instavm_node_api::{Execution, Language};
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(execute))
        .routes(routes!(execute_async))
        .routes(routes!(show))
}

/// Runs code in a session and waits for its end. It answers 200 also when the code fails, and before `timeout` is over.
#[utoipa::path(
    post, path = "/execute", tag = "execution", security(("api_key" = [])), request_body = api::Execute,
    description = "Runs code in a session and waits for its end. It answers 200 also when the code fails, and before \
        `timeout` (1 to 600 s, default 60) is over. A session whose VM has expired gets a new VM first.",
    responses(
        (status = 200, description = "How it ended", body = api::Execution),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session, or it was killed", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile, or has run out of processes or memory", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "A new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn execute(
    State(platform): State<Platform>,
    caller: Caller,
    body: JsonBody<api::Execute>,
) -> Result<Response, Problem> {
    let (request, received) = (body.value, body.arrived.into_std());
    let session = sessions::find(&platform, caller.account_id, &request.session_id).await?;
    let run = checked(
        &platform,
        request,
        platform.settings.execute_timeout_default,
    )?;
    let execution = service::run(&platform, &session, run, received).await?;
    answer(&platform, session.id.clone(), execution).await
}

/// What the caller asked for, checked.
fn checked(platform: &Platform, request: api::Execute, default: u32) -> Result<Run, Problem> {
    let range = &platform.settings.execute_timeout_range;
    let timeout = bounds::number("timeout", request.timeout, default, range)?;
    match request.vault_ids {
        None | Some(serde_json::Value::Null) => {}
        Some(serde_json::Value::Array(ids)) if ids.is_empty() => {}
        Some(_) => {
            return Err(Problem::invalid(
                "vault_ids",
                "vaults are not available in this version; leave the field out",
            ));
        }
    }
    let language = request.language.map(|language| match language {
        api::Language::Python => Language::Python,
        api::Language::Bash => Language::Bash,
    });
    if language == Some(Language::Bash) && request.command.contains('\0') {
        return Err(Problem::invalid(
            "command",
            "a bash script must not hold NUL",
        ));
    }
    Ok(Run {
        code: request.command,
        language,
        timeout: Duration::from_secs(u64::from(timeout)),
    })
}

fn wire(language: Language) -> api::Language {
    match language {
        Language::Python => api::Language::Python,
        Language::Bash => api::Language::Bash,
    }
}

async fn answer(
    platform: &Platform,
    session_id: String,
    execution: Execution,
) -> Result<Response, Problem> {
    let frame = api::Execution {
        stdout: String::new(),
        stderr: String::new(),
        output: String::new(),
        exit_code: execution.exit_code,
        execution_time: seconds(micros(execution.wall)),
        cpu_time: seconds(micros(execution.cpu)),
        session_id,
        language: wire(execution.language),
        created_at: Moment::from(execution.started_at).iso(),
        timed_out: execution.timed_out,
        output_limit_reached: execution.output_limit_reached,
        state_lost: execution.state_lost.is_some(),
        stdout_b64: None,
        stderr_b64: None,
    };
    let output = service::output(execution);
    answer::answer(&platform.answers, output, None, |texts| api::Execution {
        output: texts.stdout.clone(),
        stdout: texts.stdout,
        stderr: texts.stderr,
        stdout_b64: texts.stdout_b64,
        stderr_b64: texts.stderr_b64,
        ..frame
    })
    .await
}

/// Starts code that runs on in the background.
#[utoipa::path(
    post, path = "/execute_async", tag = "execution", security(("api_key" = [])), request_body = api::Execute,
    description = "Starts code that runs on in the background, also while the platform is restarted. `timeout` is 1 to \
        600 s, default 600.",
    responses(
        (status = 200, description = "It runs, or could not be started: ask for it by its id", body = api::ExecutionStarted),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session, or it was killed", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "A new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn execute_async(
    State(platform): State<Platform>,
    caller: Caller,
    JsonBody { value: request, .. }: JsonBody<api::Execute>,
) -> Result<Json<api::ExecutionStarted>, Problem> {
    let session = sessions::find(&platform, caller.account_id, &request.session_id).await?;
    let run = checked(
        &platform,
        request,
        platform.settings.background_timeout_default,
    )?;
    let record = service::start(&platform, &session, run).await?;
    Ok(Json(api::ExecutionStarted {
        task_id: record.id,
        status: record.status.as_str().to_owned(),
        session_id: record.session_id,
        language: record.language.map(wire),
        created_at: record.created_at.iso(),
    }))
}

/// An execution in the background.
#[utoipa::path(
    get, path = "/v1/executions/{task_id}", tag = "execution", security(("api_key" = [])),
    params(("task_id" = String, Path, description = "From `/execute_async`")),
    responses(
        (status = 200, description = "Where it is", body = api::ExecutionTask),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such execution, or it is no longer kept", body = ErrorBody),
        (status = 503, description = "Too many long outputs are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Problem> {
    let (record, room) = service::find(&platform, caller.account_id, &id).await?;
    let output = Output {
        stdout: record.stdout.clone(),
        stderr: record.stderr.clone(),
        notes: String::new(),
    };
    answer::answer(&platform.answers, output, Some(room), |texts| {
        task(record, texts)
    })
    .await
}

fn task(record: Record, texts: Texts) -> api::ExecutionTask {
    api::ExecutionTask {
        task_id: record.id,
        is_complete: record.status.is_complete(),
        status: record.status.as_str().to_owned(),
        serialized_stdout: texts.stdout.clone(),
        serialized_stderr: texts.stderr.clone(),
        stdout: texts.stdout,
        stderr: texts.stderr,
        exit_code: record.exit_code,
        cpu_time: record.cpu_micros.map(seconds),
        execution_time: record.execution_micros.map(seconds),
        timed_out: record.timed_out,
        session_id: record.session_id,
        vm_id: record.vm_id.0,
        language: record.language.map(wire),
        created_at: record.created_at.iso(),
        completed_at: record.finished_at.map(Moment::iso),
        stdout_b64: texts.stdout_b64,
        stderr_b64: texts.stderr_b64,
    }
}
