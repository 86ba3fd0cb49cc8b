//! The agent: the program inside every VM, carried inside this one.

static EMBEDDED: &[u8] = include_bytes!(env!("EMBEDDED_AGENT_FILE"));

/// This daemon carries no agent.
#[derive(Debug, thiserror::Error)]
#[error("this instavmd was built without the agent that runs inside VMs: use `make build`")]
pub struct NoAgent;

/// The agent's binary.
///
/// # Errors
/// When the daemon was built without one.
pub fn embedded() -> Result<&'static [u8], NoAgent> {
    if EMBEDDED.is_empty() {
        Err(NoAgent)
    } else {
        Ok(EMBEDDED)
    }
}
