//! The small file beside each VM that says what it is: written before each step, so that a node that comes back (or
//! is cut off from every database) knows its VMs, adopts those that live and undoes the rest.

use instavm_node_api::{SnapshotId, Usage, VmSpec};
use instavm_runtime::driver::MachineRecord;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The name of the record in a machine's folder.
const FILE: &str = "vm.json";

/// What a machine is, across restarts of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name: of its folder, its disk and its cgroup.
    pub machine: String,
    /// Its place among the instance's VMs, which gives it ids and addresses.
    pub index: u16,
    /// The agent's secret, in hexadecimal digits.
    pub token: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its first process, once there is one.
    pub process: Option<MachineRecord>,
}

/// Where a machine is in its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It is being made: undone after a restart.
    Assembling,
    /// It waits in the pool.
    Pooled,
    /// A snapshot is built in it: undone after a restart.
    Building,
    /// A user has it.
    Active(Active),
    /// It is being ended, and its disk is then kept as this snapshot: finished after a restart.
    Keeping(SnapshotId),
    /// It is being ended: finished after a restart.
    Ending,
}

/// What a machine is while a user has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Active {
    /// What was asked for.
    pub spec: VmSpec,
    /// When it was handed out, in microseconds since the Unix epoch.
    pub started_micros: i64,
    /// When the node ends it.
    pub expires_micros: i64,
    /// What it had used before it was handed out.
    pub baseline: Usage,
}

impl Record {
    /// Writes the record into the machine's folder; a reader sees the old one or the new one.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write_json(&folder.join(FILE), self)
    }

    /// Reads the record of a machine's folder; `None` when there is none that can be read.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// The agent's secret.
    pub(crate) fn token_bytes(&self) -> Option<[u8; 32]> {
        let digit = |at: usize| u8::from_str_radix(self.token.get(at * 2..at * 2 + 2)?, 16).ok();
        let mut token = [0; 32];
        for (at, byte) in token.iter_mut().enumerate() {
            *byte = digit(at)?;
        }
        Some(token)
    }
}

/// Writes a JSON file in one step, readable by its owner only. Safe against the death of this process; a loss of power
/// takes the VM along with the last words about it.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let draft = path.with_extension("draft");
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    io::Write::write_all(&mut file, &bytes)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record {
            machine: "m1".to_owned(),
            index: 7,
            token: "ab".repeat(32),
            phase: Phase::Pooled,
            process: None,
        };
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()), Some(record.clone()));
        assert_eq!(record.token_bytes(), Some([0xab; 32]));
        std::fs::write(folder.path().join(FILE), b"{").unwrap();
        assert_eq!(Record::read(folder.path()), None);
    }
}
