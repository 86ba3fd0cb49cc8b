//! An instance: one data directory on one host, and its share of the names, ids and addresses that a host has once.
//!
//! A host has 62 *slots*. A slot stands in the name of every link, firewall table and cgroup of its instance, and gives it
//! 1,024 ranges of user ids and 1,024 address ranges. So instances never collide, and whatever lies around can be
//! told to belong to one. Claims are files in [`CLAIMS`], each with the path of the data directory; the directory
//! goes with a reboot, as do the kernel objects.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where slots are claimed, on a file system that does not outlive a boot.
const CLAIMS: &str = "/run/instavm";
/// Where a data directory remembers its slot.
const FILE: &str = "instance.json";
/// Slots are numbered from 1: id ranges of slot 0 would hold the host's own ids, those of slot 63 the id -1.
const SLOTS: std::ops::RangeInclusive<u16> = 1..=62;
/// The VMs that a slot has room for.
pub(crate) const VMS: u16 = 1024;
/// The ids of one VM.
const IDS: u32 = 65_536;

/// Why no slot could be had.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// All slots belong to living data directories.
    #[error(
        "all 62 instances that a host has room for are taken. FIX: `instavmd destroy --data-dir D` for one \
         that is not needed; {CLAIMS} lists them"
    )]
    NoSlot,
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The slot of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    slot: u16,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    slot: u16,
}

impl Instance {
    /// The slot of a data directory: the one that it has, or a free one.
    ///
    /// # Errors
    /// [`InstanceError`].
    pub fn claim(data_dir: &Path) -> Result<Self, InstanceError> {
        let data_dir = canonical(data_dir)?;
        let _lock = lock_claims()?;
        if let Some(known) = Self::saved(&data_dir)
            && known.claim_slot(&data_dir)?
        {
            return Ok(known);
        }
        for slot in SLOTS {
            let candidate = Self { slot };
            if candidate.claim_slot(&data_dir)? {
                candidate.save(&data_dir)?;
                return Ok(candidate);
            }
        }
        Err(InstanceError::NoSlot)
    }

    /// The slot that a data directory has, if it has one on this boot of the host.
    pub fn find(data_dir: &Path) -> Option<Self> {
        let data_dir = std::fs::canonicalize(data_dir).ok()?;
        let known = Self::saved(&data_dir)?;
        (known.claimant() == Some(data_dir)).then_some(known)
    }

    /// Gives the slot up.
    ///
    /// # Errors
    /// [`InstanceError::File`].
    pub fn release(self) -> Result<(), InstanceError> {
        let path = self.claim_file();
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Its number, 1 to 62.
    pub fn slot(self) -> u16 {
        self.slot
    }

    /// Its number as the network knows it.
    pub(crate) fn network_slot(self) -> Option<instavm_network::Slot> {
        instavm_network::Slot::new(self.slot)
    }

    /// The name of its cgroups' folder, and of the instance towards people.
    pub fn name(self) -> String {
        format!("instavm{}", self.slot)
    }

    /// First user and group id of the VM with this index.
    pub(crate) fn id_base(self, index: u16) -> u32 {
        (u32::from(self.slot) * u32::from(VMS) + u32::from(index)) * IDS
    }

    fn saved(data_dir: &Path) -> Option<Self> {
        let text = std::fs::read(data_dir.join(FILE)).ok()?;
        let Saved { slot } = serde_json::from_slice(&text).ok()?;
        SLOTS.contains(&slot).then_some(Self { slot })
    }

    fn save(self, data_dir: &Path) -> Result<(), InstanceError> {
        let path = data_dir.join(FILE);
        crate::record::write_json(&path, &Saved { slot: self.slot }).map_err(file("write", &path))
    }

    fn claim_file(self) -> PathBuf {
        Path::new(CLAIMS).join(format!("slot-{}", self.slot))
    }

    fn claimant(self) -> Option<PathBuf> {
        std::fs::read_to_string(self.claim_file())
            .ok()
            .map(PathBuf::from)
    }

    /// Takes the slot if it is ours, free, or claimed by a data directory that is gone. Under the lock.
    fn claim_slot(self, data_dir: &Path) -> Result<bool, InstanceError> {
        match self.claimant() {
            Some(claimant) if claimant == data_dir => return Ok(true),
            Some(claimant) if Self::saved(&claimant) == Some(self) => return Ok(false),
            _ => {}
        }
        let path = self.claim_file();
        let text = data_dir.to_string_lossy();
        std::fs::write(&path, text.as_bytes()).map_err(file("write", &path))?;
        Ok(true)
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::File {
        action,
        path,
        source,
    }
}

fn canonical(data_dir: &Path) -> Result<PathBuf, InstanceError> {
    std::fs::canonicalize(data_dir).map_err(file("find", data_dir))
}

fn lock_claims() -> Result<std::fs::File, InstanceError> {
    let folder = Path::new(CLAIMS);
    std::fs::create_dir_all(folder).map_err(file("make", folder))?;
    let path = folder.join("lock");
    let lock = std::fs::File::create(&path).map_err(file("make", &path))?;
    lock.lock().map_err(file("lock", &path))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_ranges_of_neighbours_touch_but_do_not_overlap() {
        let (first, second) = (Instance { slot: 1 }, Instance { slot: 2 });
        assert_eq!(first.id_base(0), 67_108_864);
        assert_eq!(first.id_base(1), first.id_base(0) + IDS);
        assert_eq!(second.id_base(0), first.id_base(VMS - 1) + IDS);
        let last = Instance { slot: 62 }.id_base(VMS - 1);
        assert!(last.checked_add(IDS).is_some());
    }
}
