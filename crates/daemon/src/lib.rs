//! The instavmd binary: configuration, start-up order, shutdown, doctor.
//!
//! `wiring` is the one module that names the types of the other rooms (but for the value of `database.url`, which the
//! configuration has from the store); everything else here knows them as [`rooms::Rooms`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod agent_binary;
pub mod cli;
mod commands;
pub mod config;
mod consistency;
pub mod http;
pub mod lock;
pub mod logging;
mod output;
mod process;
pub mod rooms;
pub mod serve;
mod wiring;

use crate::cli::{Cli, Command};
use crate::config::{Config, Faults, Overrides, Secrets};
use clap::FromArgMatches;
use std::ffi::OsString;
use std::process::ExitCode;

/// Does what the command line asks; returns the exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = cli::grammar()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed standard output leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(u8::MAX));
        }
    };
    match perform(cli.command, &arguments) {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<Faults>() {
            Some(faults) => {
                output::error(faults);
                faults
                    .iter()
                    .for_each(|fault| output::note(&format!("  {fault}")));
                ExitCode::from(config::FAULT_EXIT_CODE)
            }
            None => {
                output::error(error.as_ref());
                ExitCode::FAILURE
            }
        },
    }
}

fn perform(command: Command, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(_) if process::is_first() => Ok(process::supervise(arguments)?),
        Command::Serve(args) => {
            let (config, secrets) = config::load(&args.overrides, args.listen.as_deref())?;
            Ok(serve::run(config, secrets)?)
        }
        Command::Check(args) => commands::check::run(&load(&args.overrides)?),
        Command::Destroy(args) => commands::destroy::run(args),
        Command::Doctor(args) => commands::doctor::run(&load(&args.overrides)?, args.json),
        Command::Account(command) => commands::account::run(command),
        Command::Image(command) => commands::image::run(command),
    }
}

fn load(overrides: &Overrides) -> Result<Config, Faults> {
    let (config, Secrets { .. }) = config::load(overrides, None)?;
    Ok(config)
}
