//! Executions: the node keeps every deadline and every limit; the agent only runs code.

mod deadline;
mod output;

pub(crate) use output::Budget;

use crate::file::node_error;
use crate::vm::Vm;
use bytes::Bytes;
use deadline::{Schedule, Stage};
use instavm_agent_api as agent;
use instavm_agent_api::{Control, Event, Execute, FailureKind, Finished, Request};
use instavm_node_api::{ExecuteRequest, Execution, Language, NodeError};
use instavm_runtime::agent::{AgentError, Conversation, unexpected};
use output::Output;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The exit code of an execution that its deadline ended, as of `timeout(1)`.
const TIMED_OUT: i32 = 124;
/// How long an execution that passed the output limit may take to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
/// How long a VM whose agent has gone may take to be known as ended.
const END_PATIENCE: Duration = Duration::from_millis(500);

/// What executions of a node share.
#[derive(Clone, Debug)]
pub(crate) struct Executions {
    pub(crate) budget: Arc<Budget>,
    pub(crate) output_limit: u64,
}

impl Executions {
    /// Runs code and waits for its end.
    pub(crate) async fn run(
        &self,
        vm: &Vm,
        request: ExecuteRequest,
    ) -> Result<Execution, NodeError> {
        let started = Instant::now();
        let schedule = Schedule::before(request.timeout);
        let _place = if request.language == Some(Language::Bash) {
            // Waiting for a free place counts: the caller's clock runs. The semaphore is never closed.
            match tokio::time::timeout(schedule.interrupt, vm.shells.acquire()).await {
                Ok(place) => place.ok(),
                Err(_) => return Ok(never_started()),
            }
        } else {
            None
        };
        let id = format!("x{:032x}", rand::random::<u128>());
        let execute = execute_of(id, &request, false);
        let conversation = open(vm, &Request::Execute(execute)).await?;
        self.follow(vm, conversation, started, schedule, request.language)
            .await
    }

    /// Starts code that runs on without a caller.
    pub(crate) async fn start(
        &self,
        vm: &Vm,
        id: &str,
        request: &ExecuteRequest,
    ) -> Result<(), NodeError> {
        let execute = execute_of(id.to_owned(), request, true);
        let mut conversation = open(vm, &Request::Execute(execute)).await?;
        done(vm, &mut conversation).await
    }

    /// Waits for the end of code that [`Self::start`] started.
    pub(crate) async fn attach(
        &self,
        vm: &Vm,
        id: &str,
        deadline: SystemTime,
    ) -> Result<Execution, NodeError> {
        let left = deadline
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let schedule = Schedule::before(left);
        let request = Request::Attach { id: id.to_owned() };
        let conversation = open(vm, &request).await?;
        match self
            .follow(vm, conversation, Instant::now(), schedule, None)
            .await
        {
            Err(NodeError::File { .. }) => Err(NodeError::NoSuchExecution),
            other => other,
        }
    }

    /// Drops what the VM keeps of a finished execution.
    pub(crate) async fn forget(&self, vm: &Vm, id: &str) -> Result<(), NodeError> {
        let mut conversation = open(vm, &Request::Forget { id: id.to_owned() }).await?;
        done(vm, &mut conversation).await
    }

    async fn follow(
        &self,
        vm: &Vm,
        mut conversation: Conversation,
        started: Instant,
        schedule: Schedule,
        language: Option<Language>,
    ) -> Result<Execution, NodeError> {
        let mut output = Output::new(&self.budget, self.output_limit);
        let mut clock = Clock {
            started,
            schedule,
            done: None,
            stop_by: None,
        };
        loop {
            let event = tokio::select! {
                biased;
                event = conversation.events.next() => event,
                () = vm.over.cancelled() => return Err(NodeError::VmEnded),
                stage = clock.next() => {
                    let control = match stage {
                        Stage::Interrupt => Control::Interrupt,
                        Stage::Kill => Control::Kill,
                        Stage::GiveUp => return Ok(given_up(output, started, language)),
                    };
                    // A connection that broke off shows in the next event.
                    let _ = conversation.sender.send(&control).await;
                    continue;
                }
            };
            match event {
                Ok(Event::Stdout(bytes)) => output.push_stdout(&bytes),
                Ok(Event::Stderr(bytes)) => output.push_stderr(&bytes),
                Ok(Event::Finished(finished)) => {
                    return Ok(finish(output, &finished, clock.timed_out()));
                }
                Ok(other) => return Err(gone(vm, unexpected(&other)).await),
                Err(error) => return Err(gone(vm, error).await),
            }
            if output.over && clock.stop_by.is_none() {
                clock.stop_by = Some(Instant::now() + STOP_PATIENCE);
                let _ = conversation.sender.send(&Control::Interrupt).await;
            }
        }
    }
}

/// Tells when the next stage is due.
struct Clock {
    started: Instant,
    schedule: Schedule,
    done: Option<Stage>,
    /// When an execution that passed the output limit is killed.
    stop_by: Option<Instant>,
}

impl Clock {
    async fn next(&mut self) -> Stage {
        let due = self
            .schedule
            .next(self.done)
            .map(|(stage, at)| (stage, self.started + at));
        let kill = self.stop_by.filter(|_| self.done < Some(Stage::Kill));
        let (stage, at) = match (due, kill) {
            (Some((_, at)), Some(kill)) if kill < at => (Stage::Kill, kill),
            (Some(due), _) => due,
            (None, _) => return std::future::pending().await,
        };
        tokio::time::sleep_until(at).await;
        self.done = Some(stage);
        stage
    }

    /// Did the caller's deadline, rather than the output limit, stop it?
    fn timed_out(&self) -> bool {
        self.done.is_some() && self.stop_by.is_none()
    }
}

async fn open(vm: &Vm, request: &Request) -> Result<Conversation, NodeError> {
    if vm.over.is_cancelled() {
        return Err(NodeError::VmEnded);
    }
    match vm.door.open(request).await {
        Ok(conversation) => Ok(conversation),
        Err(error) => Err(gone(vm, error).await),
    }
}

async fn done(vm: &Vm, conversation: &mut Conversation) -> Result<(), NodeError> {
    match conversation.events.next().await {
        Ok(Event::Done) => Ok(()),
        Ok(other) => Err(gone(vm, unexpected(&other)).await),
        Err(error) => Err(gone(vm, error).await),
    }
}

/// The error for a conversation that broke off. When the VM is ending, that is the reason; its task may hear of it a
/// moment later than we do.
async fn gone(vm: &Vm, error: AgentError) -> NodeError {
    if matches!(error, AgentError::Gone(_)) {
        let _ = tokio::time::timeout(END_PATIENCE, vm.over.cancelled()).await;
    }
    if error.kind() == Some(FailureKind::Internal)
        && let AgentError::Failed(failure) = &error
    {
        return NodeError::VmExhausted {
            message: failure.message.clone(),
        };
    }
    node_error(vm, "running code", error)
}

fn execute_of(id: String, request: &ExecuteRequest, detached: bool) -> Execute {
    let language = request.language.map(|language| match language {
        Language::Python => agent::Language::Python,
        Language::Bash => agent::Language::Bash,
    });
    Execute {
        id,
        language,
        code: request.code.clone(),
        env: BTreeMap::new(),
        detached,
    }
}

fn language_of(language: agent::Language) -> Language {
    match language {
        agent::Language::Python => Language::Python,
        agent::Language::Bash => Language::Bash,
    }
}

fn finish(output: Output, finished: &Finished, timed_out: bool) -> Execution {
    let wall = Duration::from_micros(finished.wall_micros);
    let now = SystemTime::now();
    let timed_out = timed_out && finished.interrupted;
    let output_limit_reached = output.over;
    let (stdout, stderr) = output.into_streams();
    Execution {
        language: language_of(finished.language),
        stdout,
        stderr,
        exit_code: if timed_out {
            TIMED_OUT
        } else {
            finished.exit_code
        },
        started_at: now.checked_sub(wall).unwrap_or(now),
        wall,
        cpu: Duration::from_micros(finished.cpu_micros),
        timed_out,
        output_limit_reached,
        state_lost: finished.state_lost.clone(),
    }
}

/// The answer when the VM did not end the execution in time.
fn given_up(output: Output, started: Instant, language: Option<Language>) -> Execution {
    let wall = started.elapsed();
    let now = SystemTime::now();
    let output_limit_reached = output.over;
    let (stdout, stderr) = output.into_streams();
    let language = language.unwrap_or(Language::Python);
    // The agent kills what we hang up on; what it kills is replaced, and nobody is left to tell but us.
    let lost = "it did not stop when its time was over, and is being replaced";
    let state_lost = (language == Language::Python).then(|| lost.to_owned());
    Execution {
        language,
        stdout,
        stderr,
        exit_code: TIMED_OUT,
        started_at: now.checked_sub(wall).unwrap_or(now),
        wall,
        cpu: Duration::ZERO,
        timed_out: true,
        output_limit_reached,
        state_lost,
    }
}

fn never_started() -> Execution {
    Execution {
        language: Language::Bash,
        stdout: Bytes::new(),
        stderr: "this did not start in time: 64 shell executions of this VM are running\n".into(),
        exit_code: TIMED_OUT,
        started_at: SystemTime::now(),
        wall: Duration::ZERO,
        cpu: Duration::ZERO,
        timed_out: true,
        output_limit_reached: false,
        state_lost: None,
    }
}
