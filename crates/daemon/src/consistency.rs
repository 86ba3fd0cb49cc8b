//! Do the rows of VMs and the VMs of the node agree?

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

/// What the rows say of a VM that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is being made: an intent, so it may be there or not.
    Creating,
    /// It runs until then.
    Active {
        /// When the node ends it.
        expires_at: Option<SystemTime>,
    },
}

/// One line for each VM that only one side knows. A row whose VM's time is up is about to be written.
pub(crate) fn mismatches(
    rows: &BTreeMap<String, Recorded>,
    vms: &BTreeSet<String>,
    now: SystemTime,
) -> Vec<String> {
    let without_row = vms
        .iter()
        .filter(|vm| !rows.contains_key(*vm))
        .map(|vm| format!("vm {vm}: runs, but no row knows it"));
    let without_vm = rows
        .iter()
        .filter(|(vm, recorded)| !vms.contains(*vm) && must_run(**recorded, now))
        .map(|(vm, _)| format!("vm {vm}: its row says active, but it is not there"));
    without_row.chain(without_vm).collect()
}

fn must_run(recorded: Recorded, now: SystemTime) -> bool {
    match recorded {
        Recorded::Creating => false,
        Recorded::Active { expires_at } => expires_at.is_none_or(|at| at > now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn found(rows: &[(&str, Recorded)], vms: &[&str]) -> Vec<String> {
        let rows = rows
            .iter()
            .map(|(vm, row)| ((*vm).to_owned(), *row))
            .collect();
        let vms = vms.iter().map(|vm| (*vm).to_owned()).collect();
        mismatches(
            &rows,
            &vms,
            SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        )
    }

    fn until(seconds: u64) -> Recorded {
        Recorded::Active {
            expires_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        }
    }

    #[test]
    fn both_sides_agree_about_what_runs_and_what_is_being_made() {
        let rows = [
            ("vm_a", until(200)),
            ("vm_b", Recorded::Creating),
            ("vm_c", Recorded::Creating),
        ];
        assert!(found(&rows, &["vm_a", "vm_b"]).is_empty());
    }

    #[test]
    fn a_vm_that_one_side_does_not_know_is_a_mismatch() {
        assert_eq!(
            found(&[("vm_a", until(200))], &["vm_b"]),
            [
                "vm vm_b: runs, but no row knows it",
                "vm vm_a: its row says active, but it is not there",
            ]
        );
    }

    #[test]
    fn a_vm_whose_time_is_up_may_be_gone() {
        assert!(found(&[("vm_a", until(100))], &[]).is_empty());
        let endless = Recorded::Active { expires_at: None };
        assert_eq!(found(&[("vm_a", endless)], &[]).len(), 1);
    }
}
