//! What tests do to the calls of a simulated node: hold them up, make them fail, count them.

use crate::node::lock;
use crate::script::Gates;
use instavm_node_api::NodeError;
use std::collections::HashMap;
use std::sync::Mutex;

/// The wishes of a test, by the name of the call.
#[derive(Debug, Default)]
pub(crate) struct Hooks(Mutex<HashMap<&'static str, Hook>>);

#[derive(Debug, Default)]
struct Hook {
    gate: Option<String>,
    failures: usize,
    calls: usize,
}

impl Hooks {
    pub(crate) fn hold(&self, call: &'static str, gate: Option<&str>) {
        lock(&self.0).entry(call).or_default().gate = gate.map(str::to_owned);
    }

    pub(crate) fn fail(&self, call: &'static str, times: usize) {
        lock(&self.0).entry(call).or_default().failures = times;
    }

    pub(crate) fn count(&self, call: &'static str) -> usize {
        lock(&self.0).get(call).map_or(0, |hook| hook.calls)
    }

    /// What happens before a call does anything.
    pub(crate) async fn pass(&self, call: &'static str, gates: &Gates) -> Result<(), NodeError> {
        let (gate, fails) = {
            let mut hooks = lock(&self.0);
            let hook = hooks.entry(call).or_default();
            hook.calls += 1;
            let fails = hook.failures > 0;
            hook.failures -= usize::from(fails);
            (hook.gate.clone(), fails)
        };
        if let Some(gate) = gate {
            gates.pass(&gate).await;
        }
        if fails {
            return Err(NodeError::Internal {
                operation: call,
                source: "the test wished it".into(),
            });
        }
        Ok(())
    }
}
