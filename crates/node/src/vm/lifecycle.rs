//! What a VM may do next: the rules alone, without clocks, processes or files.

use instavm_node_api::Ending;

/// Something that happened to a VM, or that somebody asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// Its user ends it.
    Terminate,
    /// Its lifetime is over.
    Deadline,
    /// Its first process has ended.
    ProcessEnded,
}

/// The life of one VM. Whatever happens first ends it; what comes later changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    ending: Option<Ending>,
}

impl Lifecycle {
    /// Takes note. `Some` when this is what ends the VM: the caller then ends it for that reason.
    pub(crate) fn note(&mut self, happening: Happening) -> Option<Ending> {
        if self.ending.is_some() {
            return None;
        }
        self.ending = Some(match happening {
            Happening::Terminate => Ending::Killed,
            Happening::Deadline => Ending::Expired,
            Happening::ProcessEnded => Ending::Crashed,
        });
        self.ending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_ends_it_and_stays() {
        let all = [
            Happening::Terminate,
            Happening::Deadline,
            Happening::ProcessEnded,
        ];
        let endings = [Ending::Killed, Ending::Expired, Ending::Crashed];
        for (first, ending) in all.into_iter().zip(endings) {
            let mut life = Lifecycle::default();
            assert_eq!(life.note(first), Some(ending));
            for later in all {
                assert_eq!(life.note(later), None);
            }
        }
    }
}
