//! From words to a command, or to the usage text.

use crate::arguments::Arguments;
use crate::output;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::process::ExitCode;

/// The exit status of a usage error.
const USAGE: u8 = 2;

/// Understands the command line. What is no command is answered here: help and version on standard output, usage errors
/// on standard error.
pub(crate) fn parse(words: &[OsString]) -> Result<Arguments, ExitCode> {
    let mut root = Arguments::command();
    let parsed = root
        .try_get_matches_from_mut(words)
        .and_then(|mut matches| Arguments::from_arg_matches_mut(&mut matches));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => {
            output::complain(&explain(&mut root, words, &error));
            ExitCode::from(USAGE)
        }
    })
}

/// The synopsis of the nearest command, then the reason.
fn explain(root: &mut Command, words: &[OsString], error: &clap::Error) -> String {
    root.build();
    let mut nearest = root.clone();
    for word in words.iter().skip(1) {
        let Some(next) = nearest.find_subcommand(word).cloned() else {
            break;
        };
        nearest = next;
    }
    let path = nearest.get_bin_name().unwrap_or("instavm").to_owned();
    let usage = nearest.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let reason = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let names: Vec<&str> = nearest.get_subcommands().map(Command::get_name).collect();
            format!("a command is missing, one of {}", names.join(", "))
        }
        _ => reason(error),
    };
    format!("usage: {usage}\n{path}: error: {reason}")
}

/// The first paragraph of what the parser says.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.trim_start_matches("error:");
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ")
}
