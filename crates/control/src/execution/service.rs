//! The rules of executions.

use super::answer::Output;
use super::rows;
use crate::Platform;
use crate::clock::{Moment, micros};
use crate::error::{Chain, Kind, Problem};
use crate::session::service::{self as sessions, Session};
use crate::vm::service::{self as vms, random_id};
use bytes::Bytes;
use instavm_node_api::{Ending, ExecuteRequest, Execution, Language, NodeError, VmId};
use instavm_store::StoreError;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// What is left for the code when the making of a new VM took most of the caller's time.
const SHORTEST_RUN: Duration = Duration::from_millis(500);
/// Between two questions to a node that failed to answer the first.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long after its deadline an execution is given up when the node keeps failing.
const GRACE: Duration = Duration::from_secs(30);

/// One run of code, checked.
pub(crate) struct Run {
    pub code: String,
    pub language: Option<Language>,
    pub timeout: Duration,
}

/// Where an execution in the background is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Pending,
    Running,
    Completed,
    Failed,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Status> {
        [
            Status::Pending,
            Status::Running,
            Status::Completed,
            Status::Failed,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }

    pub(crate) fn is_complete(self) -> bool {
        matches!(self, Status::Completed | Status::Failed)
    }
}

/// An execution in the background.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub id: String,
    pub account_id: i64,
    pub session_id: String,
    pub vm_id: VmId,
    pub status: Status,
    pub language: Option<Language>,
    pub deadline_at: Moment,
    pub created_at: Moment,
    pub finished_at: Option<Moment>,
    pub exit_code: Option<i32>,
    pub execution_micros: Option<i64>,
    pub cpu_micros: Option<i64>,
    pub timed_out: bool,
    pub stdout: Bytes,
    pub stderr: Bytes,
}

impl Record {
    fn completed(&mut self, execution: Execution) {
        self.status = Status::Completed;
        self.finished_at = Some(Moment::now());
        self.language = Some(execution.language);
        self.exit_code = Some(execution.exit_code);
        self.execution_micros = Some(micros(execution.wall));
        self.cpu_micros = Some(micros(execution.cpu));
        self.timed_out = execution.timed_out;
        let output = output(execution);
        self.stderr = if output.notes.is_empty() {
            output.stderr
        } else {
            [&output.stderr, output.notes.as_bytes()].concat().into()
        };
        self.stdout = output.stdout;
    }

    fn failed(&mut self, why: &str) {
        self.status = Status::Failed;
        self.finished_at = Some(Moment::now());
        self.stderr = format!("[instavm] {why}\n").into();
    }
}

/// The word for a language on records and figures.
pub(crate) fn language_word(language: Language) -> &'static str {
    match language {
        Language::Python => "python",
        Language::Bash => "bash",
    }
}

/// What it wrote, with what the platform has to say about its end, each on a line of its own.
pub(crate) fn output(execution: Execution) -> Output {
    let mut notes = Vec::new();
    if execution.timed_out {
        let seconds = execution.wall.as_secs_f64();
        notes.push(format!(
            "the time limit ended this execution after {seconds:.1} s; the output up to then is here"
        ));
    }
    if execution.output_limit_reached {
        notes.push(
            "the output limit ended this execution; the beginning of its output is here".to_owned(),
        );
    }
    if let Some(why) = &execution.state_lost {
        notes.push(format!("the interpreter's variables are lost: {why}"));
    }
    let stderr = execution.stderr;
    let mut text = String::new();
    if !notes.is_empty() && !stderr.is_empty() && !stderr.ends_with(b"\n") {
        text.push('\n');
    }
    for note in notes {
        text.push_str(&format!("[instavm] {note}\n"));
    }
    Output {
        stdout: execution.stdout,
        stderr,
        notes: text,
    }
}

/// Runs code in the session and waits for its end.
pub(crate) async fn run(
    platform: &Platform,
    session: &Arc<Session>,
    run: Run,
    received: Instant,
) -> Result<Execution, Problem> {
    let mut vm = sessions::usable_vm(platform, session).await?;
    let request = |timeout: Duration| ExecuteRequest {
        code: run.code.clone(),
        language: run.language,
        timeout,
    };
    let left = || {
        run.timeout
            .saturating_sub(received.elapsed())
            .max(SHORTEST_RUN)
    };
    let mut result = platform.node.execute(&vm.id, request(left())).await;
    if matches!(result, Err(NodeError::NoSuchVm)) {
        // It ended before the code ran, and word of it is still on its way.
        vms::ended(platform, &vm.id, Ending::Expired).await;
        vm = sessions::usable_vm(platform, session).await?;
        result = platform.node.execute(&vm.id, request(left())).await;
    }
    let language = run.language.map_or("none", language_word);
    match result {
        Ok(execution) => {
            let outcome = outcome(&execution);
            platform
                .metrics
                .executed(language_word(execution.language), outcome);
            Ok(execution)
        }
        Err(error) => {
            platform.metrics.executed(language, "failed");
            Err(match error {
                NodeError::NoSuchVm => {
                    Problem::new(Kind::Conflict, "the VM ended while this was under way")
                }
                error => error.into(),
            })
        }
    }
}

fn outcome(execution: &Execution) -> &'static str {
    match execution {
        Execution {
            timed_out: true, ..
        } => "timed_out",
        Execution { exit_code: 0, .. } => "ok",
        _ => "nonzero",
    }
}

/// Starts code in the background. Its row is there before this returns.
pub(crate) async fn start(
    platform: &Platform,
    session: &Arc<Session>,
    run: Run,
) -> Result<Record, Problem> {
    let vm = sessions::usable_vm(platform, session).await?;
    let now = Moment::now();
    let record = Record {
        id: format!("task_{}", random_id(20)),
        account_id: session.account_id,
        session_id: session.id.clone(),
        vm_id: vm.id.clone(),
        status: Status::Pending,
        language: run.language,
        deadline_at: now.plus(run.timeout),
        created_at: now,
        finished_at: None,
        exit_code: None,
        execution_micros: None,
        cpu_micros: None,
        timed_out: false,
        stdout: Bytes::new(),
        stderr: Bytes::new(),
    };
    let task = {
        let platform = platform.clone();
        let tracker = platform.tracker.clone();
        tracker.spawn(async move { launch(&platform, record, run).await })
    };
    task.await
        .map_err(|error| Problem::internal("starting the execution", error))?
        .map_err(Problem::from)
}

async fn launch(platform: &Platform, mut record: Record, run: Run) -> Result<Record, StoreError> {
    rows::insert(&platform.database, &record).await?;
    let request = ExecuteRequest {
        code: run.code,
        language: run.language,
        timeout: run.timeout,
    };
    let started = platform
        .node
        .start_execution(&record.vm_id, &record.id, request)
        .await;
    match started {
        Ok(()) => {
            record.status = Status::Running;
            if let Err(error) = rows::set_running(&platform.database, &record.id).await {
                // It runs all the same, and its end will be recorded.
                tracing::error!(task = record.id, error = %Chain(&error), "recording a started execution failed");
            }
            follow(platform, record.clone());
        }
        Err(error) => {
            let problem = Problem::from(error);
            tracing::warn!(task = record.id, error = %Chain(&problem), "an execution could not be started");
            record.failed(&format!("the execution could not be started: {problem}"));
            rows::finish(&platform.database, &record).await?;
        }
    }
    Ok(record)
}

/// Waits for an execution's end and records it, until the platform is drained.
pub(crate) fn follow(platform: &Platform, record: Record) {
    let platform = platform.clone();
    let tracker = platform.tracker.clone();
    tracker.spawn(async move {
        let stopping = platform.stopping.clone();
        // What is cut off here is taken up again at the next start.
        let _ = stopping
            .run_until_cancelled(conclude(&platform, record))
            .await;
    });
}

async fn conclude(platform: &Platform, mut record: Record) {
    match await_end(platform, &record).await {
        Ok(execution) => {
            platform
                .metrics
                .executed(language_word(execution.language), outcome(&execution));
            record.completed(execution);
        }
        Err(why) => {
            let language = record.language.map_or("none", language_word);
            platform.metrics.executed(language, "failed");
            record.failed(&why);
        }
    }
    while let Err(error) = rows::finish(&platform.database, &record).await {
        tracing::error!(task = record.id, error = %Chain(&error), "recording an execution's end failed; again soon");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    // The row has everything now; a VM that is gone has nothing to forget.
    if let Err(error) = platform
        .node
        .forget_execution(&record.vm_id, &record.id)
        .await
    {
        tracing::debug!(task = record.id, error = %Chain(&error), "the node did not forget an execution");
    }
}

async fn await_end(platform: &Platform, record: &Record) -> Result<Execution, String> {
    let deadline = record.deadline_at.system_time();
    loop {
        let end = platform
            .node
            .await_execution(&record.vm_id, &record.id, deadline)
            .await;
        match end {
            Ok(execution) => return Ok(execution),
            Err(NodeError::VmEnded | NodeError::NoSuchVm) => {
                return Err("the VM ended before this execution did".to_owned());
            }
            Err(NodeError::NoSuchExecution) => {
                return Err("the execution was lost before it began; start it again".to_owned());
            }
            Err(error) if Moment::now() > record.deadline_at.plus(GRACE) => {
                tracing::error!(task = record.id, error = %Chain(&error), "an execution is given up");
                return Err(
                    "the platform lost sight of this execution; its log says why".to_owned(),
                );
            }
            Err(error) => {
                tracing::warn!(task = record.id, error = %Chain(&error), "awaiting an execution failed; again soon");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// An execution of the account, and the right to have its output in memory.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<(Record, OwnedSemaphorePermit), Problem> {
    let not_found = || {
        Problem::new(
            Kind::NotFound,
            "execution not found: it does not exist, is no longer kept, or belongs to another account",
        )
    };
    let size = rows::output_size(&platform.database, account_id, id).await?;
    let room = platform.answers.room(size.ok_or_else(not_found)?).await?;
    let record = rows::find(&platform.database, account_id, id).await?;
    Ok((record.ok_or_else(not_found)?, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_stand_on_lines_of_their_own_after_the_output() {
        let execution = Execution {
            language: Language::Python,
            stdout: bytes::Bytes::new(),
            stderr: "half a line".into(),
            exit_code: 124,
            started_at: std::time::SystemTime::UNIX_EPOCH,
            wall: Duration::from_millis(2_500),
            cpu: Duration::ZERO,
            timed_out: true,
            output_limit_reached: false,
            state_lost: Some("it was killed".to_owned()),
        };
        let output = output(execution);
        let text = String::from_utf8(output.stderr.to_vec()).unwrap() + &output.notes;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "half a line");
        assert!(lines[1].contains("time limit") && lines[1].contains("2.5 s"));
        assert!(lines[2].ends_with("it was killed"));
        assert_eq!(lines.len(), 3);
    }
}
