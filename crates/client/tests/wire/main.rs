//! What the SDK sends, and what it makes of answers, against a server that records.

mod call;
mod server;
mod snapshot;
mod vm;
mod volume;
