//! Do the rows and what the node has agree: VMs, snapshots, volumes with their checkpoints, mounts?

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

/// What the rows say: each thing by its name, and whether it must be there.
pub(crate) type Rows = BTreeMap<String, bool>;

/// What is kept on the disks, and what is mounted, by rows or by the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept<T> {
    pub(crate) snapshots: T,
    pub(crate) volumes: T,
    pub(crate) checkpoints: T,
    /// By VM and path, of VMs that run.
    pub(crate) mounts: T,
}

/// One line for each thing that only one side knows. What a row says is being made or deleted may be there or not.
pub(crate) fn kept_mismatches(rows: &Kept<Rows>, there: &Kept<BTreeSet<String>>) -> Vec<String> {
    let nouns = [
        ("snapshot", &rows.snapshots, &there.snapshots),
        ("volume", &rows.volumes, &there.volumes),
        ("checkpoint", &rows.checkpoints, &there.checkpoints),
        ("mount", &rows.mounts, &there.mounts),
    ];
    let lines = nouns.into_iter().flat_map(|(noun, rows, there)| {
        let without_row = there
            .iter()
            .filter(|name| !rows.contains_key(*name))
            .map(move |name| format!("{noun} {name}: is there, but no row knows it"));
        let without_thing = rows
            .iter()
            .filter(|(name, must)| **must && !there.contains(*name))
            .map(move |(name, _)| format!("{noun} {name}: its row says so, but it is not there"));
        without_row.chain(without_thing)
    });
    lines.collect()
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
    fn what_is_kept_and_what_rows_say_are_compared_noun_by_noun() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let rows = |rows: &[(&str, bool)]| {
            let owned = |(name, must): &(&str, bool)| ((*name).to_owned(), *must);
            rows.iter().map(owned).collect::<Rows>()
        };
        let recorded = Kept {
            snapshots: rows(&[("snap_a", true), ("snap_b", false), ("snap_c", true)]),
            volumes: rows(&[("vol_a", true)]),
            checkpoints: rows(&[("vol_a/ckpt_a", false)]),
            mounts: rows(&[("vm_a /data", true)]),
        };
        let mut there = Kept {
            snapshots: names(&["snap_a", "snap_c"]),
            volumes: names(&["vol_a"]),
            checkpoints: BTreeSet::new(),
            mounts: names(&["vm_a /data"]),
        };
        assert!(kept_mismatches(&recorded, &there).is_empty());
        there.snapshots = names(&["snap_a", "snap_d"]);
        there.mounts.clear();
        assert_eq!(
            kept_mismatches(&recorded, &there),
            [
                "snapshot snap_d: is there, but no row knows it",
                "snapshot snap_c: its row says so, but it is not there",
                "mount vm_a /data: its row says so, but it is not there",
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
