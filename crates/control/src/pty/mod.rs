//! Terminals: opened and closed by HTTP, typed on through a WebSocket. No rows: they live and end in their VM.

pub(crate) mod routes;
pub(crate) mod service;
mod socket;
