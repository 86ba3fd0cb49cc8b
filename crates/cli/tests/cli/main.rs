//! The command line as its user sees it: exact output, exit status and requests, in an environment of its own.

mod auth;
mod environment;
mod errors;
mod exec;
mod listing;
mod share;
mod snapshot;
mod terminal;
mod usage;
mod vm;
mod volume;
