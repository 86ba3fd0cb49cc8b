//! What was refused: counted, and logged at a bounded rate.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Lines that one VM's refusals may write into the log within [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The rule that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The policy does not reach the name.
    Name,
    /// The policy reaches the name, but the address is none that the VM was given for it.
    Address,
    /// The connection names no host.
    Nameless,
    /// What was sent is no HTTP request or no TLS greeting, or one that two readers would read in two ways.
    Malformed,
    /// A question that is not asked for addresses.
    Question,
    /// The VM has too many connections through the proxy.
    Crowd,
}

impl Rule {
    fn as_str(self) -> &'static str {
        match self {
            Rule::Name => "name not allowed",
            Rule::Address => "address not from the VM's own lookup of the name",
            Rule::Nameless => "no name given",
            Rule::Malformed => "malformed greeting",
            Rule::Question => "only addresses are looked up under a policy",
            Rule::Crowd => "too many connections",
        }
    }
}

/// The refusals of one VM.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    total: u64,
    window: Option<Instant>,
    lines: u32,
    silent: u64,
}

impl Refusals {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn note(
        &mut self,
        vm: u16,
        rule: Rule,
        what: &str,
        to: Option<(Ipv4Addr, u16)>,
        now: Instant,
    ) {
        self.total += 1;
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES {
            self.silent += 1;
            return;
        }
        self.lines += 1;
        let silent = std::mem::take(&mut self.silent);
        let to = to.map(|(address, port)| format!("{address}:{port}"));
        tracing::info!(
            target: "instavm::egress",
            vm,
            rule = rule.as_str(),
            what,
            to,
            unlogged = silent,
            "refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_a_few_logged() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        for _ in 0..100 {
            refusals.note(0, Rule::Name, "a.test", None, now);
        }
        assert_eq!(
            (refusals.total(), refusals.lines, refusals.silent),
            (100, LINES, 90)
        );
        refusals.note(0, Rule::Name, "a.test", None, now + WINDOW);
        assert_eq!((refusals.lines, refusals.silent), (1, 0));
    }
}
