//! Volumes and checkpoints.

use crate::on_both_drivers;
use crate::world::{GIB, MIB, World, noise};
use instavm_runtime::disk::{DiskDriver, DiskError};
use std::fs;
use std::os::unix::fs::FileExt;

on_both_drivers! {
    fn a_volume_is_made_once_and_deleted_with_its_checkpoints(world: &World) {
        let pool = &world.pool;
        let path = pool.create_volume("vol_a", 64 * MIB).unwrap();
        fs::write(path.join("kept"), "kept").unwrap();
        assert_eq!(pool.create_volume("vol_a", 32 * MIB).unwrap(), path);
        assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "kept");
        pool.create_volume("vol_b", 64 * MIB).unwrap();
        pool.checkpoint("vol_a", "ckpt_1").unwrap();
        pool.checkpoint("vol_a", "ckpt_2").unwrap();
        let mut listed = pool.volume_ids().unwrap();
        listed.iter_mut().for_each(|(_, checkpoints)| checkpoints.sort());
        let both = vec!["ckpt_1".to_owned(), "ckpt_2".to_owned()];
        assert_eq!(listed, [("vol_a".to_owned(), both), ("vol_b".to_owned(), Vec::new())]);
        for _ in 0..2 {
            pool.delete_volume("vol_a").unwrap();
        }
        assert_eq!(pool.volume_ids().unwrap(), [("vol_b".to_owned(), Vec::new())]);
        assert!(world.raw("checkpoints").is_empty());
    }

    fn a_checkpoint_keeps_the_moment(world: &World) {
        let pool = &world.pool;
        let path = pool.create_volume("vol_a", 64 * MIB).unwrap();
        fs::write(path.join("note"), "first").unwrap();
        let kept = pool.checkpoint("vol_a", "ckpt_1").unwrap();
        assert_eq!(kept, pool.checkpoint_path("vol_a", "ckpt_1"));
        fs::write(path.join("note"), "second").unwrap();
        assert_eq!(fs::read_to_string(kept.join("note")).unwrap(), "first");
        assert!(matches!(
            pool.checkpoint("vol_a", "ckpt_1"),
            Err(DiskError::Exists { noun: "checkpoint", .. })
        ));
        assert!(matches!(
            pool.checkpoint("vol_b", "ckpt_1"),
            Err(DiskError::Missing { noun: "volume", .. })
        ));
        assert!(!world.raw("checkpoints").contains(&"vol_b".to_owned()));
        for _ in 0..2 {
            pool.delete_checkpoint("vol_a", "ckpt_1").unwrap();
            assert!(!kept.exists());
        }
        assert_eq!(fs::read_to_string(path.join("note")).unwrap(), "second");
    }

    fn used_bytes_are_those_of_the_files(world: &World) {
        let pool = &world.pool;
        let path = pool.create_volume("vol_a", 64 * MIB).unwrap();
        assert_eq!(pool.volume_usage("vol_a").unwrap().0, 0);
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        fs::write(path.join("a/b/c/odd"), noise(1_234_567)).unwrap();
        fs::write(path.join("small"), "12345").unwrap();
        fs::write(path.join("empty"), "").unwrap();
        fs::hard_link(path.join("small"), path.join("a/twin")).unwrap();
        std::os::unix::fs::symlink("/etc", path.join("out")).unwrap();
        std::os::unix::fs::symlink(".", path.join("round")).unwrap();
        let holes = fs::File::create(path.join("holes")).unwrap();
        holes.write_all_at(&noise(4096), 4096 * 1000).unwrap();
        let (used, charged) = pool.volume_usage("vol_a").unwrap();
        assert_eq!(used, 1_234_567 + 5 + 4096);
        assert!(charged >= used);
        fs::remove_file(path.join("a/b/c/odd")).unwrap();
        assert_eq!(pool.volume_usage("vol_a").unwrap().0, 5 + 4096);
        assert!(matches!(
            pool.volume_usage("vol_b"),
            Err(DiskError::Missing { noun: "volume", .. })
        ));
    }

    fn a_quota_grows_and_shrinks_to_what_is_charged(world: &World) {
        let pool = &world.pool;
        let path = pool.create_volume("vol_a", 16 * MIB).unwrap();
        fs::write(path.join("data"), noise(8 * MIB)).unwrap();
        pool.limit_volume("vol_a", 32 * MIB).unwrap();
        pool.limit_volume("vol_a", 10 * MIB).unwrap();
        match pool.limit_volume("vol_a", 4 * MIB) {
            Err(DiskError::BelowUse { quota, charged }) => {
                assert_eq!(quota, 4 * MIB);
                assert!((8 * MIB..9 * MIB).contains(&charged), "{charged}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            pool.limit_volume("vol_b", GIB),
            Err(DiskError::Missing { noun: "volume", .. })
        ));
    }

    fn a_volume_of_deeply_nested_folders_is_measured_and_deleted(world: &World) {
        let pool = &world.pool;
        let path = pool.create_volume("vol_a", 64 * MIB).unwrap();
        crate::volume_file::nest(&path, 3000);
        let (used, charged) = pool.volume_usage("vol_a").unwrap();
        assert_eq!(used, charged, "what cannot be walked is what is charged");
        pool.delete_volume("vol_a").unwrap();
        assert!(pool.volume_ids().unwrap().is_empty());
    }
}

#[test]
fn the_kernel_enforces_quotas_and_gives_space_back() {
    let world = World::new(DiskDriver::Btrfs);
    let pool = &world.pool;
    let path = pool.create_volume("vol_a", 16 * MIB).unwrap();
    let error = fs::write(path.join("large"), noise(24 * MIB)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
    let (used, charged) = pool.volume_usage("vol_a").unwrap();
    assert!(used <= 16 * MIB && charged <= 16 * MIB, "{used} {charged}");
    fs::remove_file(path.join("large")).unwrap();
    pool.volume_usage("vol_a").unwrap();
    fs::write(path.join("fits"), noise(12 * MIB)).unwrap();

    // A disk's limit is on top of what it starts from, and holds from its first moment.
    let disk = pool.create("m1", &world.image(), 8 * MIB).unwrap();
    assert!(fs::write(disk.join("large"), noise(12 * MIB)).is_err());
    fs::remove_file(disk.join("large")).unwrap();
    pool.flush("m1").unwrap();
    pool.limit("m1", 32 * MIB).unwrap();
    fs::write(disk.join("large"), noise(12 * MIB)).unwrap();
}

#[test]
fn what_checkpoints_hold_stays_charged_until_they_go() {
    let world = World::new(DiskDriver::Btrfs);
    let pool = &world.pool;
    let path = pool.create_volume("vol_a", 64 * MIB).unwrap();
    fs::write(path.join("data"), noise(8 * MIB)).unwrap();
    pool.checkpoint("vol_a", "ckpt_1").unwrap();
    fs::remove_file(path.join("data")).unwrap();
    let (used, charged) = pool.volume_usage("vol_a").unwrap();
    assert_eq!(used, 0);
    assert!(charged >= 8 * MIB, "{charged}");
    assert!(matches!(
        pool.limit_volume("vol_a", 4 * MIB),
        Err(DiskError::BelowUse { .. })
    ));
    pool.delete_checkpoint("vol_a", "ckpt_1").unwrap();
    // The space comes back behind: each measurement lets the file system go on.
    let freed = (0..2000).any(|_| {
        std::thread::yield_now();
        pool.volume_usage("vol_a").unwrap().1 < MIB
    });
    assert!(freed, "the space comes back");
}

#[test]
fn copies_of_a_volume_count_where_checkpoints_are_copies() {
    let world = World::new(DiskDriver::Directory);
    let pool = &world.pool;
    let path = pool.create_volume("vol_a", 4 * MIB).unwrap();
    assert_eq!(pool.soft_quota("vol_a").unwrap(), Some(4 * MIB));
    fs::write(path.join("data"), noise(3 * MIB)).unwrap();
    assert!(matches!(
        pool.checkpoint("vol_a", "ckpt_1"),
        Err(DiskError::BelowUse { .. })
    ));
    assert_eq!(pool.volume_usage("vol_a").unwrap(), (3 * MIB, 3 * MIB));
    pool.limit_volume("vol_a", 6 * MIB).unwrap();
    pool.checkpoint("vol_a", "ckpt_1").unwrap();
    assert_eq!(pool.volume_usage("vol_a").unwrap(), (3 * MIB, 6 * MIB));
    pool.delete_checkpoint("vol_a", "ckpt_1").unwrap();
    assert_eq!(pool.volume_usage("vol_a").unwrap(), (3 * MIB, 3 * MIB));
}
