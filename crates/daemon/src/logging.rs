//! The log: lines on standard error.

use crate::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is none.
    #[error("the log filter (key log.level) cannot be used")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The process has a log already.
    #[error("the log cannot be started")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts the log of this process.
///
/// # Errors
/// When the filter is none, or a log runs already.
pub fn start(config: &Config) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&config.log_level.0).map_err(LoggingError::Filter)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    }
    .map_err(LoggingError::Start)
}
