//! Pools that fill up, and hosts that do.

use crate::world::{GIB, MIB, Place, World, noise};
use instavm_runtime::disk::{DiskDriver, DiskError};
use std::fs;
use std::io::{Seek, SeekFrom, Write};

/// Takes all there is: the most of it in large pieces without content, the rest by writing until nothing more fits.
/// Returns how much did.
fn fill(path: &std::path::Path) -> u64 {
    let mut file = fs::File::create(path).unwrap();
    let mut taken = 0;
    let none = rustix::fs::FallocateFlags::empty();
    while rustix::fs::fallocate(&file, none, taken, 64 * MIB).is_ok() {
        taken += 64 * MIB;
    }
    file.seek(SeekFrom::Start(taken)).unwrap();
    let part = noise(4 * MIB);
    while file.write_all(&part).is_ok() {
        taken += part.len() as u64;
    }
    file.sync_all().expect("what was taken can be written");
    taken
}

#[test]
fn a_full_pool_refuses_what_is_new_breaks_nothing_and_recovers() {
    let world = World::new(DiskDriver::Btrfs);
    let pool = &world.pool;
    let image = world.image();
    let calm = pool.create("calm", &image, GIB).unwrap();
    fs::write(calm.join("work"), noise(MIB)).unwrap();
    let greedy = pool.create("greedy", &image, 100 * GIB).unwrap();
    let volume = pool.create_volume("vol_a", GIB).unwrap();
    fs::write(volume.join("kept"), noise(MIB)).unwrap();
    let written = fill(&greedy.join("fill"));
    assert!(written > 700 * MIB, "{written}");

    let full = |result: Result<(), DiskError>| {
        let Err(error @ DiskError::Full { .. }) = result else {
            panic!("{result:?}");
        };
        assert!(error.to_string().contains("FIX: "), "{error}");
    };
    full(pool.create("m3", &image, GIB).map(drop));
    full(pool.save("calm", "snap_a").map(drop));
    full(pool.create_volume("vol_b", GIB).map(drop));
    full(pool.checkpoint("vol_a", "ckpt_1").map(drop));
    assert_eq!(fs::read(calm.join("work")).unwrap(), noise(MIB));
    assert_eq!(fs::read(volume.join("kept")).unwrap(), noise(MIB));
    pool.volume_usage("vol_a").unwrap();
    // Changing a limit needs a little room too.
    if let Err(error) = pool.limit_volume("vol_a", 2 * GIB) {
        full(Err(error));
    }
    pool.flush("calm").unwrap();

    pool.delete("greedy").unwrap();
    // The space comes back behind: each flush lets the file system go on.
    let recovered = (0..2000).any(|_| {
        pool.flush("calm").unwrap();
        pool.create("m3", &image, GIB).is_ok()
    });
    assert!(recovered, "{:?}", pool.space());
    pool.save("calm", "snap_a").unwrap();
    fs::write(calm.join("more"), noise(8 * MIB)).unwrap();
    assert!(pool.scrub().unwrap().is_clean());
}

#[test]
fn a_pool_grows_when_it_is_needed_and_not_beyond_its_size() {
    let place = Place::new();
    // A pool made small by a host that was full: its file is all that it begins with.
    let world = World::at(place, DiskDriver::Btrfs, GIB);
    let image = world.image();
    assert_eq!(world.pool.space().unwrap().total_bytes, GIB);
    let larger = instavm_runtime::disk::DiskOptions {
        size: Some(GIB + 256 * MIB),
        ..world.options
    };
    let pool = instavm_runtime::disk::DiskPool::open(world.data_dir(), &larger).unwrap();
    // Little is free, so it grows by itself, to its size.
    let file = world.data_dir().join("pool.img");
    let grown = (0..1_000_000).any(|_| {
        std::thread::yield_now();
        fs::metadata(&file).unwrap().len() == GIB + 256 * MIB
            && pool.space().unwrap().total_bytes == GIB + 256 * MIB
    });
    assert!(grown, "{:?}", pool.space());
    let disk = pool.create("m1", &image, 100 * GIB).unwrap();
    let written = fill(&disk.join("fill"));
    assert!(written > 950 * MIB, "{written}");
    assert_eq!(fs::metadata(&file).unwrap().len(), GIB + 256 * MIB);
}

#[test]
fn what_is_written_but_not_on_the_disk_yet_is_not_free() {
    let world = World::new(DiskDriver::Btrfs);
    let disk = world.pool.create("m1", &world.image(), GIB).unwrap();
    world.pool.flush("m1").unwrap();
    let free = || world.pool.space().unwrap().free_bytes;
    let before = free();
    // The kernel may bring it to the disk at any time, so either way it must not be free.
    fs::write(disk.join("fresh"), noise(256 * MIB)).unwrap();
    let fresh = before - free();
    world.pool.flush("m1").unwrap();
    let settled = before - free();
    assert!(
        fresh >= 256 * MIB && settled >= 256 * MIB,
        "{fresh} {settled}"
    );
}

/// A small file system in memory, as a host's disk.
struct Host(std::path::PathBuf);

impl Host {
    fn new(folder: &Place, size: u64) -> Self {
        let path = folder.path().join("host");
        fs::create_dir(&path).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let options = format!("size={size}");
        instavm_linux::mount::mount("tmpfs", &path, "tmpfs", flags, &options).unwrap();
        Self(path)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        instavm_linux::mount::unmount(&self.0, true).expect("the host's disk is unmounted");
    }
}

#[test]
fn a_full_host_does_not_harm_the_pool_s_disks() {
    let folder = Place::new();
    let host = Host::new(&folder, GIB + 300 * MIB);
    let world = World::at(Place::within(&host.0), DiskDriver::Btrfs, 8 * GIB);
    let pool = &world.pool;
    let space = pool.space().unwrap();
    assert!(
        space.total_bytes <= GIB + 50 * MIB,
        "no more is promised than the host has: {space:?}"
    );
    let disk = pool.create("m1", &world.image(), GIB).unwrap();
    fill(&host.0.join("other programs"));
    // Every block of the pool is there although the host has none left.
    let part = noise(64 * MIB);
    for number in 0..8 {
        fs::write(disk.join(format!("{number}")), &part).unwrap();
        pool.flush("m1").unwrap();
    }
    for number in 0..8 {
        assert_eq!(fs::read(disk.join(format!("{number}"))).unwrap(), part);
    }
    assert!(pool.scrub().unwrap().is_clean());
}

#[test]
fn a_host_without_room_is_told_so() {
    let folder = Place::new();
    let host = Host::new(&folder, 600 * MIB);
    let options = instavm_runtime::disk::DiskOptions::default();
    let refused = instavm_runtime::disk::DiskPool::open(&host.0, &options);
    assert!(
        matches!(refused, Err(DiskError::Full { .. })),
        "{refused:?}"
    );
    assert!(!host.0.join("pool.img").exists());
}

#[test]
fn a_full_host_refuses_what_is_new_in_plain_folders() {
    let folder = Place::new();
    let host = Host::new(&folder, 400 * MIB);
    let world = World::at(Place::within(&host.0), DiskDriver::Directory, GIB);
    let image = world.image();
    world.pool.create("m1", &image, GIB).unwrap();
    let other = host.0.join("other programs");
    fill(&other);
    assert!(matches!(
        world.pool.create("m2", &image, GIB),
        Err(DiskError::Full { .. })
    ));
    assert_eq!(world.pool.names().unwrap(), ["m1"]);
    fs::remove_file(&other).unwrap();
    world.pool.create("m2", &image, GIB).unwrap();
}

#[test]
fn a_pool_file_with_holes_gets_its_blocks_when_it_is_opened() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new(DiskDriver::Btrfs);
    let file = world.data_dir().join("pool.img");
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let image = fs::File::options().write(true).open(&file).unwrap();
    // The end of a new pool is not in use.
    rustix::fs::fallocate(&image, hole, 900 * MIB, 100 * MIB).unwrap();
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < GIB - 90 * MIB);
    world.reopened();
    assert!(fs::metadata(&file).unwrap().blocks() * 512 >= GIB);
}
