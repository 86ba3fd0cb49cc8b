//! `instavm doc`.

use crate::arguments::Format;
use crate::failure::Failure;
use crate::json::Object;
use crate::output;
use clap::Args;

const URL: &str = "https://docs.instavm.io";

/// Show where the documentation is
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let payload = Object::default().with("url", URL);
    output::emit(arguments.format.json, payload, &[URL.to_owned()])
}
