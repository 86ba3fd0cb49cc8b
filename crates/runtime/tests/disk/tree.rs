//! Images, disks and snapshots.

use crate::on_both_drivers;
use crate::world::{GIB, MIB, Place, World, noise};
use instavm_runtime::disk::{DiskDriver, DiskError, DiskOptions, DiskPool};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

on_both_drivers! {
    fn a_disk_is_its_image_s_copy_and_its_own(world: &World) {
        let image = world.image();
        let disk = world.pool.create("m1", &image, GIB).unwrap();
        assert_eq!(disk, world.pool.disk_path("m1"));
        assert_eq!(fs::read_to_string(disk.join("hello")).unwrap(), "from the image");
        fs::write(disk.join("hello"), "changed").unwrap();
        assert_eq!(fs::read_to_string(image.join("hello")).unwrap(), "from the image");
        assert!(matches!(
            world.pool.create("m1", &image, GIB),
            Err(DiskError::Exists { noun: "disk", .. })
        ));
        assert_eq!(fs::read_to_string(disk.join("hello")).unwrap(), "changed");
        assert_eq!(world.pool.names().unwrap(), ["m1"]);
    }

    fn a_snapshot_keeps_the_moment_and_disks_start_from_it(world: &World) {
        let pool = &world.pool;
        let disk = pool.create("m1", &world.image(), GIB).unwrap();
        fs::write(disk.join("work"), noise(3 * MIB)).unwrap();
        pool.flush("m1").unwrap();
        let bytes = pool.save("m1", "snap_a").unwrap();
        assert!((3 * MIB..4 * MIB).contains(&bytes), "{bytes}");
        assert_eq!(pool.snapshot_bytes("snap_a").unwrap(), bytes);
        fs::write(disk.join("work"), "later").unwrap();
        let snapshot = pool.snapshot_path("snap_a");
        assert_eq!(fs::read(snapshot.join("work")).unwrap(), noise(3 * MIB));
        pool.delete("m1").unwrap();
        let next = pool.create("m2", &snapshot, GIB).unwrap();
        assert_eq!(fs::read(next.join("work")).unwrap(), noise(3 * MIB));
        pool.flush("m2").unwrap();
        assert!(pool.disk_bytes("m2").unwrap() < MIB, "nothing of it is its own");
        assert_eq!(pool.snapshot_ids().unwrap(), ["snap_a"]);
    }

    fn a_snapshot_is_taken_once_and_of_what_is_there(world: &World) {
        let pool = &world.pool;
        pool.create("m1", &world.image(), GIB).unwrap();
        pool.save("m1", "snap_a").unwrap();
        assert!(matches!(
            pool.save("m1", "snap_a"),
            Err(DiskError::Exists { noun: "snapshot", .. })
        ));
        assert!(matches!(
            pool.save("m2", "snap_b"),
            Err(DiskError::Missing { noun: "disk", .. })
        ));
        assert!(matches!(
            pool.snapshot_bytes("snap_b"),
            Err(DiskError::Missing { noun: "snapshot", .. })
        ));
    }

    fn deleting_is_at_once_and_may_be_repeated(world: &World) {
        let pool = &world.pool;
        let disk = pool.create("m1", &world.image(), GIB).unwrap();
        pool.save("m1", "snap_a").unwrap();
        for _ in 0..2 {
            pool.delete("m1").unwrap();
            pool.delete_snapshot("snap_a").unwrap();
            assert!(!disk.exists());
        }
        assert!(pool.names().unwrap().is_empty());
        assert!(pool.snapshot_ids().unwrap().is_empty());
    }

    fn names_that_lead_elsewhere_are_refused(world: &World) {
        let pool = &world.pool;
        let image = world.image();
        for name in ["", ".", "..", "../images/base", "a/b", ".draft-x", "a\0b", &"n".repeat(300)] {
            let refused = |result: Result<(), DiskError>| {
                assert!(matches!(result, Err(DiskError::Name { .. })), "{name:?}: {result:?}");
            };
            refused(pool.create(name, &image, GIB).map(drop));
            refused(pool.delete(name));
            refused(pool.save(name, "snap_a").map(drop));
            refused(pool.save("m1", name).map(drop));
            refused(pool.delete_snapshot(name));
            refused(pool.create_volume(name, GIB).map(drop));
            refused(pool.delete_volume(name));
            refused(pool.checkpoint(name, "c").map(drop));
            refused(pool.delete_checkpoint("v", name));
        }
        assert!(image.join("hello").exists());
    }

    fn what_is_there_is_there_after_a_restart(world: &World) {
        let pool = &world.pool;
        let disk = pool.create("m1", &world.image(), GIB).unwrap();
        fs::write(disk.join("work"), "kept").unwrap();
        pool.save("m1", "snap_a").unwrap();
        let again = world.reopened();
        assert_eq!(again.names().unwrap(), ["m1"]);
        assert_eq!(again.snapshot_ids().unwrap(), ["snap_a"]);
        assert_eq!(again.driver(), pool.driver());
        assert_eq!(again.snapshot_bytes("snap_a").unwrap(), pool.snapshot_bytes("snap_a").unwrap());
        assert_eq!(fs::read_to_string(disk.join("work")).unwrap(), "kept");
    }

    fn a_data_directory_keeps_its_driver(world: &World) {
        let other = match world.options.driver {
            DiskDriver::Directory => DiskDriver::Btrfs,
            _ => DiskDriver::Directory,
        };
        let options = DiskOptions { driver: other, ..world.options };
        assert!(matches!(
            DiskPool::open(world.data_dir(), &options),
            Err(DiskError::Pool { .. })
        ));
        let options = DiskOptions { driver: DiskDriver::Auto, ..world.options };
        let pool = DiskPool::open(world.data_dir(), &options).unwrap();
        assert_eq!(pool.driver(), world.pool.driver());
    }

    fn a_scrub_tells_what_it_could_verify(world: &World) {
        let disk = world.pool.create("m1", &world.image(), GIB).unwrap();
        fs::write(disk.join("work"), noise(8 * MIB)).unwrap();
        world.pool.flush("m1").unwrap();
        let report = world.pool.scrub().unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.verified, world.is_hard());
        assert_eq!(report.bytes >= 8 * MIB, world.is_hard(), "{report:?}");
    }
}

#[test]
fn a_new_data_directory_gets_btrfs_where_it_can_be_had() {
    let world = World::at(Place::new(), DiskDriver::Auto, GIB);
    assert_eq!(world.pool.driver(), "btrfs");
    assert_eq!(world.pool.quota(), "hard");
}

#[test]
fn on_a_btrfs_that_counts_in_another_way_the_pool_is_a_file_of_it() {
    let below = World::at(Place::new(), DiskDriver::Btrfs, 2 * GIB);
    let folder = below.data_dir().join("pool");
    for switch in ["disable", "enable"] {
        let mut quota = std::process::Command::new("btrfs");
        let ended = quota.args(["quota", switch]).arg(&folder).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
    let world = World::at(Place::within(&folder), DiskDriver::Btrfs, GIB);
    assert!(world.data_dir().join("pool.img").exists());
    let image = world.image();
    world.pool.create("m1", &image, GIB).unwrap();
    // The host starts again: nothing is mounted.
    instavm_linux::mount::unmount(&world.data_dir().join("pool"), true).unwrap();
    assert!(!image.exists());
    let pool = world.reopened();
    assert!(image.exists());
    assert_eq!(pool.names().unwrap(), ["m1"]);
    pool.save("m1", "snap_a").unwrap();
}

/// The name that a process without programs gets the data directory under.
const POOR: &str = "INSTAVM_DISK_TEST_POOR";

/// Opens a pool as on a host without mkfs.btrfs; another test starts it for that.
#[test]
#[ignore = "the part of another test that runs in a process of its own"]
fn poor() {
    let data_dir = std::env::var_os(POOR).expect("another test says where");
    let open = |driver| {
        let options = DiskOptions { size: None, driver };
        DiskPool::open(data_dir.as_ref(), &options)
    };
    let refused = open(DiskDriver::Btrfs).unwrap_err();
    assert!(
        refused.to_string().contains("FIX: install btrfs-progs"),
        "{refused}"
    );
    assert_eq!(
        fs::read_dir(&data_dir).unwrap().count(),
        1,
        "nothing but the pool's folder"
    );
    assert_eq!(open(DiskDriver::Auto).unwrap().driver(), "directory");
}

#[test]
fn without_what_btrfs_needs_disks_are_plain_folders_and_stay_so() {
    let place = Place::new();
    let ended = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tree::poor"])
        .env(POOR, place.path())
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    // With everything at hand it is what it was made as.
    let world = World::at(place, DiskDriver::Auto, GIB);
    assert_eq!(
        (world.pool.driver(), world.pool.quota()),
        ("directory", "soft")
    );
}

#[test]
fn a_scrub_finds_what_was_damaged() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let world = World::new(DiskDriver::Btrfs);
    let disk = world.pool.create("m1", &world.image(), GIB).unwrap();
    let content = noise(4 * MIB);
    fs::write(disk.join("work"), &content).unwrap();
    world.pool.flush("m1").unwrap();
    // Change the block in the file below that holds the beginning of the content.
    let file = world.data_dir().join("pool.img");
    let mut below = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    let found = loop {
        let read = below.read(&mut chunk).unwrap();
        assert!(read > 0, "the content is in the pool file");
        let starts = (0..read.saturating_sub(63)).step_by(4096);
        if let Some(start) = starts
            .into_iter()
            .find(|s| chunk[*s..*s + 64] == content[..64])
        {
            break at + start as u64;
        }
        at += read as u64;
    };
    below.seek(SeekFrom::Start(found + 100)).unwrap();
    below.write_all(b"something else").unwrap();
    below.sync_all().unwrap();
    let report = world.pool.scrub().unwrap();
    assert!(!report.is_clean(), "{report:?}");
    assert_eq!(
        (report.checksum_errors, report.uncorrectable_errors),
        (1, 1)
    );
}

#[test]
fn copies_of_plain_folders_are_faithful() {
    let world = World::new(DiskDriver::Directory);
    faithful(&world);
}

#[test]
fn reflinked_copies_are_faithful_and_take_nothing() {
    let below = World::new(DiskDriver::Btrfs);
    let volume = below.pool.create_volume("vol_below", GIB).unwrap();
    let world = World::at(Place::within(&volume), DiskDriver::Directory, GIB);
    faithful(&world);
    below.pool.volume_usage("vol_below").unwrap();
    let before = below.pool.space().unwrap().used_bytes;
    let disk = world.pool.disk_path("m1");
    fs::write(disk.join("large"), noise(64 * MIB)).unwrap();
    world.pool.save("m1", "snap_large").unwrap();
    below.pool.volume_usage("vol_below").unwrap();
    let grown = below.pool.space().unwrap().used_bytes - before;
    assert!(grown < 80 * MIB, "the copy shares its blocks: {grown}");
}

/// Makes the disk `m1` and a snapshot of it, and compares.
fn faithful(world: &World) {
    use std::os::unix::fs::{FileExt, chown, symlink};
    let pool = &world.pool;
    let disk = pool.create("m1", &world.image(), GIB).unwrap();
    fs::create_dir_all(disk.join("a/b")).unwrap();
    fs::write(disk.join("a/b/tool"), "run").unwrap();
    chown(disk.join("a/b/tool"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(disk.join("a/b/tool"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::hard_link(disk.join("a/b/tool"), disk.join("a/twin")).unwrap();
    symlink("../../etc/passwd", disk.join("a/link")).unwrap();
    fs::set_permissions(disk.join("a"), PermissionsExt::from_mode(0o1777)).unwrap();
    let holes = fs::File::create(disk.join("holes")).unwrap();
    holes.write_all_at(b"end", 50 * MIB).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(disk.join("a/twin"), "user.note", b"kept", flags).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(86_400, 5_000);
    fs::File::open(disk.join("a"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    pool.save("m1", "snap_a").unwrap();

    let copy = pool.snapshot_path("snap_a");
    let (tool, twin) = (copy.join("a/b/tool"), copy.join("a/twin"));
    let stat = fs::metadata(&tool).unwrap();
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode() & 0o7777),
        (1234, 5678, 0o4751)
    );
    assert_eq!(stat.ino(), fs::metadata(&twin).unwrap().ino());
    assert_eq!(
        fs::read_link(copy.join("a/link")).unwrap().to_str(),
        Some("../../etc/passwd")
    );
    let folder = fs::metadata(copy.join("a")).unwrap();
    assert_eq!(
        (folder.mode() & 0o7777, folder.modified().unwrap()),
        (0o1777, long_ago)
    );
    let holes = fs::metadata(copy.join("holes")).unwrap();
    assert_eq!(holes.len(), 50 * MIB + 3);
    assert!(holes.blocks() * 512 < MIB, "its holes are holes");
    let mut note = [0; 16];
    let length = rustix::fs::getxattr(&twin, "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..length], b"kept");
}
