//! Who in a machine uses a mount.

use super::{Alive, Holder, MountError, Source};
use crate::cgroup;
use instavm_linux::mount::{self, MountPoint};
use rustix::fs::{Dir, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What one mount namespace of the machine shows of the source.
#[derive(Default)]
struct Sight {
    /// The numbers of the mount in question, and of copies that somebody made.
    ours: BTreeSet<u64>,
    /// The numbers of the node's other mounts of the same source.
    others: BTreeSet<u64>,
    copies: Vec<Holder>,
}

impl Alive {
    /// Who uses the mount `wanted` of the source, or has the source in another way than by the mounts `others`.
    pub(super) fn holders(
        &self,
        source: &Source,
        wanted: Option<&MountPoint>,
        others: &[MountPoint],
    ) -> Result<Vec<Holder>, MountError> {
        let failed = MountError::at("look for who uses the mount");
        let members = cgroup::members_with(self.pid).map_err(&failed)?;
        let root = self
            .open_inside(Path::new("/"))
            .and_then(mount::place)
            .map_err(&failed)?;
        // On a disk of directories all have one device, which tells nothing.
        let own_device = source.place.device != root.device;
        let mut sights: BTreeMap<PathBuf, Sight> = BTreeMap::new();
        let mut processes = Vec::new();
        for pid in members {
            // One that ends meanwhile uses nothing.
            let Some(process) = open_process(pid) else {
                continue;
            };
            let Some(namespace) = link(&process, "ns/mnt") else {
                continue;
            };
            if !sights.contains_key(&namespace) {
                let Ok(points) = mount::mount_points_of(&process) else {
                    continue;
                };
                sights.insert(namespace, Sight::of(&points, source, wanted, others));
            }
            processes.push((pid, process));
        }
        let mut ours = BTreeSet::new();
        let mut legitimate = BTreeSet::new();
        let mut holders = Vec::new();
        for sight in sights.into_values() {
            ours.extend(sight.ours);
            legitimate.extend(sight.others);
            holders.extend(
                sight
                    .copies
                    .into_iter()
                    .filter(|copy| !holders.contains(copy))
                    .collect::<Vec<_>>(),
            );
        }
        for (_, process) in processes {
            let uses = |place: mount::Place| {
                let same = own_device && place.device == source.place.device;
                ours.contains(&place.mount) || same && !legitimate.contains(&place.mount)
            };
            if places(&process).into_iter().any(uses) {
                holders.extend(name(&process));
            }
        }
        Ok(holders)
    }
}

impl Sight {
    fn of(
        points: &[MountPoint],
        source: &Source,
        wanted: Option<&MountPoint>,
        others: &[MountPoint],
    ) -> Self {
        let mut sight = Sight::default();
        let copy_of = |point: &MountPoint, original: &MountPoint| {
            point.master.is_some()
                && point.master == original.group
                && point.target == original.target
        };
        for point in points.iter().filter(|point| source.is_seen_by(point)) {
            if others.iter().any(|other| copy_of(point, other)) {
                sight.others.insert(point.id);
            } else {
                sight.ours.insert(point.id);
                if !wanted.is_some_and(|wanted| copy_of(point, wanted)) {
                    sight.copies.push(mounted_at(point));
                }
            }
        }
        let covers = points
            .iter()
            .filter(|point| sight.ours.contains(&point.parent) && !sight.ours.contains(&point.id));
        sight.copies.extend(covers.map(mounted_at));
        sight
    }
}

fn mounted_at(point: &MountPoint) -> Holder {
    Holder::Mount {
        path: point.target.display().to_string(),
    }
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()
}

fn link(process: &OwnedFd, name: &str) -> Option<PathBuf> {
    let target = rustix::fs::readlinkat(process, name, Vec::new()).ok()?;
    Some(PathBuf::from(target.to_string_lossy().into_owned()))
}

/// Every place that a process holds: where it stands, and its files, open or mapped.
fn places(process: &OwnedFd) -> Vec<mount::Place> {
    let mut names: Vec<PathBuf> = ["cwd", "root", "exe"].iter().map(PathBuf::from).collect();
    for folder in ["fd", "map_files"] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(process, folder, flags, Mode::empty());
        let Ok(entries) = opened.and_then(Dir::new) else {
            continue;
        };
        let entries = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.extend(
            entries
                .filter(|name| !name.starts_with('.'))
                .map(|name| Path::new(folder).join(name)),
        );
    }
    names
        .iter()
        .filter_map(|name| mount::place_at(process, name).ok())
        .collect()
}

/// The process as it is known inside.
fn name(process: &OwnedFd) -> Option<Holder> {
    let read = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(process, name, flags, Mode::empty()).ok()?;
        io::read_to_string(std::fs::File::from(file)).ok()
    };
    let status = read("status")?;
    // The last is its id in the innermost of its namespaces; the second, that in the machine's.
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    let pid = ids.split_whitespace().nth(1)?.parse().ok()?;
    let command = status
        .lines()
        .find_map(|line| line.strip_prefix("Name:"))?
        .trim()
        .to_owned();
    Some(Holder::Process { pid, command })
}
