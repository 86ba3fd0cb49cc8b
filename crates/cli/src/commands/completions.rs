//! `instavm completions`.

use crate::failure::Failure;
use crate::output;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Args)]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut root = crate::arguments::Arguments::command();
    clap_complete::generate(arguments.shell, &mut root, "instavm", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
