//! What is left when a step fails, or the process dies between two.

use crate::on_both_drivers;
use crate::world::{GIB, MIB, Place, World, noise};
use instavm_runtime::disk::{DiskDriver, DiskError, DiskOptions, DiskPool, VolumeFiles};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

on_both_drivers! {
    fn an_image_that_cannot_be_filled_leaves_nothing(world: &World) {
        for _ in 0..2 {
            let failed = world.pool.ensure_image("half", |root| {
                fs::write(root.join("part"), "part")?;
                Err(io::Error::other("the source broke off"))
            });
            assert!(matches!(failed, Err(DiskError::Disk { action: "fill", .. })));
            assert!(world.raw("images").is_empty());
        }
        world.pool.ensure_image("half", |root| fs::write(root.join("all"), "all")).unwrap();
        assert_eq!(world.raw("images"), ["half"]);
    }

    fn an_image_whose_maker_died_is_swept(world: &World) {
        let died = catch_unwind(AssertUnwindSafe(|| {
            world.pool.ensure_image("half", |root| {
                fs::write(root.join("part"), "part").unwrap();
                panic!("the process dies here");
            })
        }));
        assert!(died.is_err());
        assert_eq!(world.raw("images").len(), 1, "a draft is left");
        for _ in 0..2 {
            world.reopened();
            assert!(world.raw("images").is_empty());
        }
        let image = world.pool.ensure_image("half", |root| fs::write(root.join("all"), "all"));
        assert!(!image.unwrap().join("part").exists());
    }

    fn drafts_of_every_kind_are_never_listed_and_swept(world: &World) {
        let pool = &world.pool;
        let root = world.data_dir().join("pool");
        let volume = pool.create_volume("vol_a", 64 * MIB).unwrap();
        pool.checkpoint("vol_a", "ckpt_1").unwrap();
        pool.create("m1", &world.image(), GIB).unwrap();
        pool.save("m1", "snap_a").unwrap();
        for folder in ["images", "disks", "snapshots", "volumes", "checkpoints/vol_a"] {
            let draft = root.join(folder).join(".draft-x");
            fs::create_dir_all(draft.join("deep")).unwrap();
            fs::write(draft.join("deep/part"), "part").unwrap();
        }
        fs::write(volume.join(".instavm-draft-1"), "part").unwrap();
        fs::create_dir_all(volume.join(".instavm-draft-2/deep")).unwrap();
        let all = || {
            (
                pool.names().unwrap(),
                pool.snapshot_ids().unwrap(),
                pool.volume_ids().unwrap(),
                VolumeFiles::of(&volume).unwrap().list("", true, 10).unwrap(),
            )
        };
        let listed = all();
        assert_eq!((listed.0.len(), listed.1.len(), listed.2.len(), listed.3.len()), (1, 1, 1, 0));
        world.reopened();
        assert_eq!(all(), listed);
        for folder in ["images", "disks", "snapshots", "volumes", "checkpoints/vol_a"] {
            assert_eq!(world.raw(folder).len(), 1, "{folder}");
        }
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
    }

    fn a_deletion_that_was_cut_off_is_finished_by_the_next(world: &World) {
        let pool = &world.pool;
        pool.create_volume("vol_a", 64 * MIB).unwrap();
        pool.checkpoint("vol_a", "ckpt_1").unwrap();
        pool.checkpoint("vol_a", "ckpt_2").unwrap();
        // As far as a process came that died: the volume is gone, and one checkpoint.
        pool.delete_checkpoint("vol_a", "ckpt_1").unwrap();
        if world.is_hard() {
            instavm_linux::btrfs::delete_subvolume(&pool.volume_path("vol_a")).unwrap();
        } else {
            fs::remove_dir_all(pool.volume_path("vol_a")).unwrap();
        }
        let left = vec!["ckpt_2".to_owned()];
        assert_eq!(pool.volume_ids().unwrap(), [("vol_a".to_owned(), left)]);
        pool.delete_volume("vol_a").unwrap();
        assert!(pool.volume_ids().unwrap().is_empty());
        assert!(world.raw("checkpoints").is_empty());
    }

    fn a_pool_is_destroyed_whole_and_again(world: &World) {
        let pool = &world.pool;
        let volume = pool.create_volume("vol_a", 64 * MIB).unwrap();
        fs::write(volume.join("data"), "data").unwrap();
        pool.checkpoint("vol_a", "ckpt_1").unwrap();
        pool.create("m1", &world.image(), GIB).unwrap();
        pool.save("m1", "snap_a").unwrap();
        for _ in 0..2 {
            DiskPool::destroy(world.data_dir()).unwrap();
            assert!(DiskPool::disk_names(world.data_dir()).unwrap().is_empty());
            assert!(DiskPool::snapshot_names(world.data_dir()).unwrap().is_empty());
            assert!(DiskPool::volume_names(world.data_dir()).unwrap().is_empty());
        }
    }
}

#[test]
fn a_copy_that_cannot_be_finished_leaves_nothing() {
    let world = World::new(DiskDriver::Directory);
    let pool = &world.pool;
    let disk = pool.create("m1", &world.image(), GIB).unwrap();
    fs::write(disk.join("data"), noise(MIB)).unwrap();
    crate::volume_file::nest(&disk, 600);
    for _ in 0..2 {
        assert!(matches!(
            pool.save("m1", "snap_a"),
            Err(DiskError::Disk { action: "save", .. })
        ));
        assert!(world.raw("snapshots").is_empty());
    }
    VolumeFiles::of(&disk).unwrap().remove("d").unwrap();
    pool.save("m1", "snap_a").unwrap();
}

/// The name that a killed process gets the data directory under.
const VICTIM: &str = "INSTAVM_DISK_TEST_VICTIM";

/// Makes snapshots until it is killed; another test starts it for that.
#[test]
#[ignore = "the part of another test that runs in a process of its own"]
fn victim() {
    let data_dir = std::env::var_os(VICTIM).expect("another test says where");
    let pool = DiskPool::open(data_dir.as_ref(), &DiskOptions::default()).unwrap();
    for number in 0.. {
        pool.save("m1", &format!("snap_{number}")).unwrap();
    }
}

on_both_drivers! {
    fn a_process_that_is_killed_leaves_whole_snapshots_only(world: &World) {
        let disk = world.pool.create("m1", &world.image(), GIB).unwrap();
        for number in 0..200 {
            fs::write(disk.join(format!("{number}")), noise(20_000)).unwrap();
        }
        world.pool.flush("m1").unwrap();
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "fault::victim", "--quiet"])
            .env(VICTIM, world.data_dir())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while world.pool.snapshot_ids().unwrap().len() < 3 {
            assert!(victim.try_wait().unwrap().is_none(), "the victim ended by itself");
            std::thread::yield_now();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let pool = world.reopened();
        assert!(world.raw("snapshots").iter().all(|name| name.starts_with("snap_")));
        for id in pool.snapshot_ids().unwrap() {
            let root = pool.snapshot_path(&id);
            assert_eq!(fs::read_dir(&root).unwrap().count(), 202, "{id}");
            assert!((0..200).all(|number| {
                fs::read(root.join(format!("{number}"))).unwrap() == noise(20_000)
            }));
        }
    }
}

#[test]
fn a_pool_file_whose_making_was_cut_off_is_made_again() {
    let place = Place::new();
    fs::write(place.path().join(".pool.img.draft"), "half").unwrap();
    let world = World::at(place, DiskDriver::Btrfs, GIB);
    assert_eq!(world.pool.driver(), "btrfs");
    assert!(!world.data_dir().join(".pool.img.draft").exists());
}
