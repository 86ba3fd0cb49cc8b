//! What code means to a simulated VM: a command a line.
//!
//! `echo TEXT`, `err TEXT`, `bytes HEX` (to standard output), `fill COUNT HEX` (so often), `set NAME VALUE` and `get NAME` (variables of the
//! session), `env NAME`, `sleep SECONDS`, `gate NAME` (waits until the test opens it), `exit CODE`, `die` (the VM
//! crashes), `lose` (the interpreter is replaced), `unpack` (what the platform's own scripts do: nothing).

use bytes::Bytes;
use instavm_node_api::{ExecuteRequest, Execution, Language};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// Doors that scripts wait at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates {
    doors: Arc<Mutex<HashMap<String, Door>>>,
}

#[derive(Clone, Debug)]
struct Door {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gates {
    fn door(&self, name: &str) -> Door {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Door {
            open: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
        };
        doors.entry(name.to_owned()).or_insert_with(new).clone()
    }

    pub(crate) fn open(&self, name: &str) {
        self.door(name).open.send_replace(true);
    }

    pub(crate) async fn pass(&self, name: &str) {
        let door = self.door(name);
        door.waiting.send_modify(|count| *count += 1);
        // The sender is in `door`.
        let _ = door.open.subscribe().wait_for(|open| *open).await;
    }

    /// Waits until so many have come to the door.
    pub(crate) async fn occupied(&self, name: &str, by: usize) {
        let door = self.door(name);
        // The sender is in `door`.
        let _ = door
            .waiting
            .subscribe()
            .wait_for(|count| *count >= by)
            .await;
    }
}

/// What a script sees of its VM.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub env: BTreeMap<String, String>,
    pub variables: Arc<Mutex<HashMap<String, String>>>,
    pub gates: Gates,
}

/// How a script ended.
pub(crate) enum End {
    /// Its end, and the answer.
    Answer(Execution),
    /// It took the VM with it.
    VmDied,
}

/// Runs a script until its end or its deadline.
pub(crate) async fn run(surroundings: &Surroundings, request: &ExecuteRequest) -> End {
    let started_at = SystemTime::now();
    let started = Instant::now();
    let deadline = started + request.timeout;
    let mut execution = Execution {
        language: request.language.unwrap_or(Language::Python),
        stdout: Bytes::new(),
        stderr: Bytes::new(),
        exit_code: 0,
        started_at,
        wall: Duration::ZERO,
        cpu: Duration::from_millis(1),
        timed_out: false,
        output_limit_reached: false,
        state_lost: None,
    };
    for line in request.code.lines() {
        let step = step(surroundings, line.trim(), &mut execution);
        match tokio::time::timeout_at(deadline, step).await {
            Ok(Next::Line) => {}
            Ok(Next::Exit(code)) => {
                execution.exit_code = code;
                break;
            }
            Ok(Next::VmDied) => return End::VmDied,
            Err(_) => {
                execution.timed_out = true;
                execution.exit_code = 124;
                break;
            }
        }
    }
    execution.wall = started.elapsed();
    End::Answer(execution)
}

enum Next {
    Line,
    Exit(i32),
    VmDied,
}

async fn step(surroundings: &Surroundings, line: &str, execution: &mut Execution) -> Next {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let lock = || {
        surroundings
            .variables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    match command {
        "echo" => append(&mut execution.stdout, format!("{rest}\n").as_bytes()),
        "err" => append(&mut execution.stderr, format!("{rest}\n").as_bytes()),
        "bytes" => append(&mut execution.stdout, &bytes(rest)),
        "fill" => {
            let (count, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let filling = bytes(rest).repeat(count.parse().unwrap_or(0));
            append(&mut execution.stdout, &filling);
        }
        "set" => {
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            lock().insert(name.to_owned(), value.to_owned());
        }
        "get" => match lock().get(rest) {
            Some(value) => append(&mut execution.stdout, format!("{value}\n").as_bytes()),
            None => {
                let text = format!("NameError: name '{rest}' is not defined\n");
                append(&mut execution.stderr, text.as_bytes());
                return Next::Exit(1);
            }
        },
        "env" => {
            let value = surroundings.env.get(rest).map_or("", String::as_str);
            append(&mut execution.stdout, format!("{value}\n").as_bytes());
        }
        "sleep" => {
            let seconds = rest.parse().unwrap_or(0.0);
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
        "gate" => surroundings.gates.pass(rest).await,
        "exit" => return Next::Exit(rest.parse().unwrap_or(1)),
        "die" => return Next::VmDied,
        "lose" => {
            lock().clear();
            execution.state_lost = Some("the interpreter was killed".to_owned());
        }
        _ => {}
    }
    Next::Line
}

/// The bytes that a line names.
fn bytes(hex: &str) -> Vec<u8> {
    hex.split(' ')
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect()
}

fn append(to: &mut Bytes, more: &[u8]) {
    *to = [to, more].concat().into();
}
