//! One file a command.

pub(crate) mod auth;
pub(crate) mod clone;
pub(crate) mod completions;
pub(crate) mod create;
pub(crate) mod doc;
pub(crate) mod egress;
pub(crate) mod exec;
pub(crate) mod help;
pub(crate) mod ls;
pub(crate) mod pty;
pub(crate) mod rm;
pub(crate) mod share;
pub(crate) mod snapshot;
pub(crate) mod ssh_key;
pub(crate) mod vm;
pub(crate) mod volume;
pub(crate) mod whoami;

use crate::arguments::Command;
use crate::output;
use std::process::ExitCode;

/// Runs a command and tells how it ended.
pub(crate) fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Help(arguments) => help::run(&arguments),
        Command::Auth(command) => auth::run(&command),
        Command::Whoami(arguments) => whoami::run(&arguments),
        Command::Create(arguments) => create::run(&arguments),
        Command::Ls(arguments) => ls::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Clone(arguments) => clone::run(&arguments),
        Command::Vm(command) => vm::run(&command),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Volume(command) => volume::run(&command),
        Command::Egress(command) => egress::run(&command),
        Command::Share(command) => share::run(&command),
        Command::SshKey(command) => ssh_key::run(&command),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Pty(arguments) => match pty::run(&arguments) {
            Ok(status) => return ExitCode::from(status),
            Err(failure) => Err(failure),
        },
        Command::Doc(arguments) => doc::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                output::complain(&text);
            }
            ExitCode::from(failure.status())
        }
    }
}
