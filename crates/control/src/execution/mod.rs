//! Executions: runs of code in a session, waited for or in the background.

pub(crate) mod answer;
pub(crate) mod routes;
pub(crate) mod rows;
pub(crate) mod service;
