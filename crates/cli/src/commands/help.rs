//! `instavm help`.

use crate::failure::Failure;
use crate::output;
use clap::{Args, CommandFactory};

/// Show help for the CLI or one of its commands
#[derive(Args)]
pub(crate) struct Arguments {
    /// The command, for example: auth status
    #[arg(value_name = "COMMAND")]
    path: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut root = crate::arguments::Arguments::command();
    root.build();
    let mut topic = &mut root;
    for word in &arguments.path {
        topic = topic.find_subcommand_mut(word).ok_or_else(|| {
            Failure::said(format!("unknown help topic: {}", arguments.path.join(" ")))
        })?;
    }
    output::print(&topic.render_help().to_string())
}
