//! Showing something again and again.

use crate::failure::Failure;
use crate::json::Json;
use crate::output;
use clap::Args;
use std::future::Future;
use std::time::Duration;

const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Whether to go on, and how fast.
#[derive(Args)]
pub(crate) struct Watch {
    /// Show it again every N seconds; 5 without a number
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5", allow_negative_numbers = true)]
    watch: Option<i64>,
}

impl Watch {
    /// Shows a frame, and further ones when that is wanted, until one of them fails or the user has seen enough.
    pub(crate) async fn frames<F, J>(
        &self,
        json: bool,
        fetch: impl Fn() -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<(J, Vec<String>), Failure>>,
        J: Into<Json>,
    {
        let pause = match self.watch.map(u64::try_from) {
            None => None,
            Some(Ok(seconds @ 1..)) => Some(Duration::from_secs(seconds)),
            Some(_) => return Err(Failure::said("--watch must be a positive number")),
        };
        let clears = !json && output::is_ansi();
        let mut first = true;
        loop {
            let (payload, lines) = fetch().await?;
            if clears && !first {
                output::print(CLEAR)?;
            }
            output::emit(json, payload, &lines)?;
            let Some(pause) = pause else {
                return Ok(());
            };
            first = false;
            tokio::time::sleep(pause).await;
        }
    }
}
