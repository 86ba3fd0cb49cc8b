//! The record of a VM that a user has: the copy in memory that calls read, and the file beside it, changed together.

use crate::machine::lock;
use crate::record::{Active, Phase, Record};
use instavm_node_api::SnapshotId;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

/// Why a record could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BookError {
    /// The VM is being ended: what was decided then stands.
    #[error("the VM is being ended")]
    Closed,
    /// The file could not be written; nothing has changed.
    #[error("the record of the VM cannot be written")]
    File(#[source] io::Error),
}

/// The record of a VM that a user has.
#[derive(Debug)]
pub(crate) struct Book {
    folder: PathBuf,
    page: Mutex<Page>,
}

#[derive(Debug)]
struct Page {
    record: Record,
    active: Active,
    closed: bool,
}

impl Book {
    /// The record of a machine, which lies in its folder already.
    pub(crate) fn new(folder: PathBuf, record: Record, active: Active) -> Self {
        let closed = false;
        Self {
            folder,
            page: Mutex::new(Page {
                record,
                active,
                closed,
            }),
        }
    }

    /// What it says.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Active) -> T) -> T {
        look(&lock(&self.page).active)
    }

    /// Changes it, on the disk first.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Active)) -> Result<(), BookError> {
        let mut page = lock(&self.page);
        if page.closed {
            return Err(BookError::Closed);
        }
        let mut active = page.active.clone();
        change(&mut active);
        self.write(&mut page, Phase::Active(active.clone()))
            .map_err(BookError::File)?;
        page.active = active;
        Ok(())
    }

    /// Notes that the VM is being ended: nothing changes any more. Gives the snapshot that its disk is to be kept as,
    /// also when that cannot be written.
    pub(crate) fn close(&self) -> (Option<SnapshotId>, io::Result<()>) {
        let mut page = lock(&self.page);
        page.closed = true;
        let keep = page.active.spec.keep_disk_as.clone();
        let phase = keep.clone().map_or(Phase::Ending, Phase::Keeping);
        let written = self.write(&mut page, phase);
        (keep, written)
    }

    /// Notes that the disk is kept, and nothing of the VM is needed any more.
    pub(crate) fn kept(&self) -> io::Result<()> {
        self.write(&mut lock(&self.page), Phase::Ending)
    }

    fn write(&self, page: &mut Page, phase: Phase) -> io::Result<()> {
        let record = Record {
            phase,
            ..page.record.clone()
        };
        record.write(&self.folder)?;
        page.record = record;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instavm_node_api::{Usage, VmId, VmSpec};

    fn book(folder: &std::path::Path) -> Book {
        let spec = VmSpec {
            id: VmId("vm_a".to_owned()),
            memory_mb: 256,
            vcpu_count: 1,
            disk_bytes: 1 << 30,
            env: Default::default(),
            lifetime_seconds: 60,
            snapshot: None,
            workdir: None,
            mounts: Vec::new(),
            keep_disk_as: None,
            egress: None,
        };
        let active = Active {
            spec,
            started_micros: 0,
            expires_micros: 0,
            baseline: Usage::default(),
        };
        let record = Record {
            machine: "m1".to_owned(),
            index: 0,
            token: String::new(),
            phase: Phase::Active(active.clone()),
            process: None,
        };
        Book::new(folder.to_owned(), record, active)
    }

    #[test]
    fn a_change_is_on_the_disk_and_in_memory_or_in_neither() {
        let folder = tempfile::tempdir().unwrap();
        let book = book(folder.path());
        book.change(|active| active.spec.memory_mb = 512).unwrap();
        let Some(Phase::Active(active)) = Record::read(folder.path()).map(|record| record.phase)
        else {
            panic!("the record is there");
        };
        assert_eq!(active.spec.memory_mb, 512);
        drop(folder);
        let failed = book.change(|active| active.spec.memory_mb = 1024);
        assert!(matches!(failed, Err(BookError::File(_))), "{failed:?}");
        assert_eq!(book.look(|active| active.spec.memory_mb), 512);
    }

    #[test]
    fn an_ended_vm_keeps_what_was_decided() {
        let folder = tempfile::tempdir().unwrap();
        let book = book(folder.path());
        let snapshot = SnapshotId("snap_a".to_owned());
        book.change(|active| active.spec.keep_disk_as = Some(snapshot.clone()))
            .unwrap();
        let (keep, written) = book.close();
        written.unwrap();
        assert_eq!(keep, Some(snapshot.clone()));
        let phase = || Record::read(folder.path()).unwrap().phase;
        assert_eq!(phase(), Phase::Keeping(snapshot));
        let late = book.change(|active| active.spec.keep_disk_as = None);
        assert!(matches!(late, Err(BookError::Closed)), "{late:?}");
        book.kept().unwrap();
        assert_eq!(phase(), Phase::Ending);
    }
}
