//! `instavm`: the command line of the platform.
//!
//! Commands that ask nobody (`help`, `auth`, `doc`) start no runtime and no HTTP client.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod config;
mod connection;
mod failure;
mod json;
mod output;
mod progress;
mod prompt;
mod settings;
mod size;
mod usage;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    match usage::parse(&words) {
        Ok(arguments) => commands::run(arguments.command),
        Err(code) => code,
    }
}
