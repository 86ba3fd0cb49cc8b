//! The program inside every VM.
//!
//! [`launch`] makes a process PID 1 of a new VM; [`serve`] is what PID 1 does from then on: it reaps, runs executions,
//! keeps the session's Python interpreter, and moves files, as `instavm-agent-api` describes. One thread, one `epoll`
//! loop; whatever may block for long (files, programs) happens in children.

mod backlog;
mod connection;
mod execution;
mod file;
mod identity;
mod interpreter;
mod language;
pub mod launch;
mod output;
mod place;
mod poller;
mod process;
mod procfs;
mod pty;
mod serve;
mod shell;
mod spool;
mod timers;
mod transfer;
mod tree;
mod worker;

pub use serve::{ServeConfig, serve};
