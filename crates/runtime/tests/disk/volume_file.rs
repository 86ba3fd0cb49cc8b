//! Files of volumes, and what hostile volumes do to them.

use crate::on_both_drivers;
use crate::world::{MIB, World, noise};
use instavm_runtime::disk::{DiskDriver, VolumeEntry, VolumeFileError, VolumeFiles};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn volume(world: &World) -> (PathBuf, VolumeFiles) {
    let path = world.pool.create_volume("vol_a", 64 * MIB).unwrap();
    let files = VolumeFiles::of(&path).unwrap();
    (path, files)
}

fn put(files: &VolumeFiles, path: &str, content: &[u8]) {
    let mut writer = files.writer(path, true).unwrap();
    writer.write(content).unwrap();
    assert_eq!(writer.finish().unwrap(), content.len() as u64);
}

fn get(files: &VolumeFiles, path: &str) -> Result<Vec<u8>, VolumeFileError> {
    let (mut file, size) = files.open(path)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content.len() as u64, size);
    Ok(content)
}

fn paths(found: &[VolumeEntry]) -> Vec<&str> {
    found.iter().map(|entry| entry.path.as_str()).collect()
}

/// Nests folders more deeply than a path can tell, with a file at the bottom.
pub fn nest(root: &Path, depth: usize) {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut folder = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, "d", flags, Mode::empty()).unwrap();
    }
    let create = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(&folder, "bottom", create, Mode::RUSR).unwrap();
}

on_both_drivers! {
    fn a_file_is_written_read_replaced_and_removed(world: &World) {
        let (path, files) = volume(world);
        put(&files, "a/b/note.txt", b"first");
        assert_eq!(get(&files, "a/b/note.txt").unwrap(), b"first");
        assert_eq!(get(&files, "./a//b/./note.txt").unwrap(), b"first");
        let stat = fs::metadata(path.join("a/b/note.txt")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o644));
        let folder = fs::metadata(path.join("a")).unwrap();
        assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o7777), (0, 0, 0o755));
        assert!(matches!(
            files.writer("a/b/note.txt", false),
            Err(VolumeFileError::Exists { .. })
        ));
        put(&files, "a/b/note.txt", b"second, and longer");
        assert_eq!(get(&files, "a/b/note.txt").unwrap(), b"second, and longer");
        files.remove("a/b/note.txt").unwrap();
        assert!(matches!(get(&files, "a/b/note.txt"), Err(VolumeFileError::NotFound { .. })));
        assert!(matches!(files.remove("a/b/note.txt"), Err(VolumeFileError::NotFound { .. })));
        put(&files, "empty", b"");
        assert_eq!(get(&files, "empty").unwrap(), b"");
    }

    fn a_file_that_is_not_finished_was_never_there(world: &World) {
        let (path, files) = volume(world);
        put(&files, "note", b"old");
        let mut writer = files.writer("note", true).unwrap();
        writer.write(b"half of the ne").unwrap();
        drop(writer);
        drop(files.writer("new/folder/file", false).unwrap());
        assert_eq!(get(&files, "note").unwrap(), b"old");
        let names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["note"]);
    }

    fn of_two_writers_that_may_not_replace_one_wins(world: &World) {
        let (_, files) = volume(world);
        let mut first = files.writer("dir/same", false).unwrap();
        let mut second = files.writer("dir/same", false).unwrap();
        first.write(b"first").unwrap();
        second.write(b"second").unwrap();
        second.finish().unwrap();
        assert!(matches!(first.finish(), Err(VolumeFileError::Exists { .. })));
        assert_eq!(get(&files, "dir/same").unwrap(), b"second");
    }

    fn paths_that_lead_out_are_refused_and_do_nothing(world: &World) {
        let (path, files) = volume(world);
        let outside = world.data_dir().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, path.join("absolute")).unwrap();
        symlink("../../../outside", path.join("relative")).unwrap();
        symlink("../../../outside/secret", path.join("file")).unwrap();
        symlink("/proc/self/root", path.join("magic")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        let long = "n".repeat(300);
        let deep = "d/".repeat(3000) + "x";
        let bad = [
            "", ".", "/", "/etc/passwd", "../volumes/vol_a/x", "a/../../x", "..", "a/..", "a\0b",
            "absolute/secret", "relative/secret", "magic/etc/passwd", "loop/x", &long, &deep,
            ".instavm-draft-0",
        ];
        for bad in bad {
            let refused = |result: Result<(), VolumeFileError>| {
                let unsuitable = matches!(result, Err(VolumeFileError::Unsuitable { .. }));
                assert!(unsuitable, "{bad:?}: {result:?}");
            };
            refused(files.open(bad).map(drop));
            refused(files.writer(bad, true).map(drop));
            refused(files.remove(bad));
        }
        assert!(matches!(files.open("file"), Err(VolumeFileError::Unsuitable { .. })));
        for bad in ["/", "../", "a/../..", "absolute/", "relative/s", "magic/"] {
            assert!(matches!(
                files.list(bad, true, 10),
                Err(VolumeFileError::Unsuitable { .. })
            ), "{bad:?}");
        }
        // A link itself is replaced or removed, not what it leads to.
        put(&files, "file", b"mine");
        files.remove("absolute").unwrap();
        files.remove("relative").unwrap();
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(files.list("", true, 10).unwrap().iter().all(|e| e.path == "file"));
    }

    fn links_within_the_volume_are_followed(world: &World) {
        let (path, files) = volume(world);
        put(&files, "real/note", b"here");
        symlink("real", path.join("alias")).unwrap();
        assert_eq!(get(&files, "alias/note").unwrap(), b"here");
        put(&files, "alias/new", b"new");
        assert_eq!(get(&files, "real/new").unwrap(), b"new");
        assert_eq!(paths(&files.list("alias/", true, 10).unwrap()), ["alias/new", "alias/note"]);
        assert_eq!(paths(&files.list("", true, 10).unwrap()), ["real/new", "real/note"]);
    }

    fn nothing_but_regular_files_is_opened(world: &World) {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let (path, files) = volume(world);
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, path.join("pipe"), FileType::Fifo, mode, 0).unwrap();
        mknodat(CWD, path.join("device"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
        fs::create_dir(path.join("folder")).unwrap();
        for name in ["pipe", "device", "socket", "folder"] {
            let refused = files.open(name);
            assert!(matches!(refused, Err(VolumeFileError::Unsuitable { .. })), "{name}");
        }
        assert!(matches!(files.writer("folder", true), Err(VolumeFileError::Unsuitable { .. })));
        assert!(matches!(files.writer("pipe/x", true), Err(VolumeFileError::Unsuitable { .. })));
        assert_eq!(paths(&files.list("", false, 10).unwrap()), ["folder"]);
        put(&files, "pipe", b"a file now");
        assert_eq!(get(&files, "pipe").unwrap(), b"a file now");
        files.remove("device").unwrap();
    }

    fn listings_are_in_order_by_prefix_and_bounded(world: &World) {
        let (_, files) = volume(world);
        for path in ["b/2", "b/10", "b.txt", "b/c/deep", "a", "bc/x", "z/empty/.keep", "ü"] {
            put(&files, path, path.as_bytes());
        }
        let all = ["a", "b.txt", "b/10", "b/2", "b/c/deep", "bc/x", "z/empty/.keep", "ü"];
        let list = |prefix: &str, recursive, limit| {
            let found = files.list(prefix, recursive, limit).unwrap();
            found.into_iter().map(|e| (e.path, e.is_dir)).collect::<Vec<_>>()
        };
        let listed = |prefix, recursive, limit| {
            list(prefix, recursive, limit).into_iter().map(|e| e.0).collect::<Vec<_>>()
        };
        assert_eq!(listed("", true, 1000), all);
        assert_eq!(listed("", true, 3), all[..3]);
        assert!(listed("", true, 0).is_empty());
        assert_eq!(listed("b", true, 1000), ["b.txt", "b/10", "b/2", "b/c/deep", "bc/x"]);
        assert_eq!(listed("b/", true, 1000), ["b/10", "b/2", "b/c/deep"]);
        assert_eq!(listed("b/1", true, 1000), ["b/10"]);
        assert!(listed("nothing/here", true, 10).is_empty());
        assert!(listed("a/below", true, 10).is_empty());
        let top = [("a", false), ("b.txt", false), ("b", true), ("bc", true), ("z", true), ("ü", false)];
        let top: Vec<_> = top.iter().map(|(path, dir)| ((*path).to_owned(), *dir)).collect();
        assert_eq!(list("", false, 10), top);
        assert_eq!(listed("b", false, 10), ["b/10", "b/2", "b/c"]);
        assert_eq!(listed("b/", false, 10), ["b/10", "b/2", "b/c"]);
        assert_eq!(listed("z/e", false, 10), ["z/empty"]);
        let entry = &files.list("b.t", true, 10).unwrap()[0];
        assert_eq!((entry.path.as_str(), entry.size), ("b.txt", 5));
        assert!(entry.modified_at.elapsed().unwrap().as_secs() < 300);
    }

    fn more_files_than_are_held_at_once_come_in_order(world: &World) {
        let (path, files) = volume(world);
        for number in 0..9000 {
            fs::File::create(path.join(format!("{number:05}"))).unwrap();
        }
        let found = files.list("", true, 100_000).unwrap();
        let expected: Vec<_> = (0..9000).map(|number| format!("{number:05}")).collect();
        assert_eq!(paths(&found), expected);
    }

    fn a_folder_goes_with_all_that_is_in_it(world: &World) {
        let (path, files) = volume(world);
        for number in 0..300 {
            put(&files, &format!("tree/{}/{number}", number % 7), b"x");
        }
        symlink("/etc", path.join("tree/out")).unwrap();
        fs::set_permissions(path.join("tree/3"), PermissionsExt::from_mode(0o000)).unwrap();
        files.remove("tree").unwrap();
        nest(&path, 3000);
        // What cannot have a path is not listed, and does not hinder.
        assert!(files.list("", true, 10).unwrap().is_empty());
        files.remove("d/").unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    fn a_volume_that_is_being_changed_stays_in_its_bounds(world: &World) {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (path, files) = volume(world);
        let outside = world.data_dir().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::create_dir(path.join("real")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A folder and a link out of the volume take turns under one name.
            scope.spawn(|| {
                symlink(&outside, path.join("link")).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let (real, link) = (path.join("real"), path.join("link"));
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, real, rustix::fs::CWD, link, exchange)
                        .unwrap();
                }
            });
            for _ in 0..300 {
                if let Ok(mut writer) = files.writer("real/file", true) {
                    writer.write(b"mine").unwrap();
                    let _ = writer.finish();
                }
                if let Ok(content) = get(&files, "real/secret") {
                    panic!("read {content:?}");
                }
                for entry in files.list("", true, 10).unwrap_or_default() {
                    assert!(!entry.path.ends_with("secret"));
                }
                let _ = files.remove("real/file");
                let _ = files.remove("real/secret");
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    fn a_full_volume_refuses_and_the_old_file_stays(world: &World) {
        let path = world.pool.create_volume("vol_full", 8 * MIB).unwrap();
        let files = VolumeFiles::of(&path).unwrap();
        put(&files, "note", b"old");
        let mut writer = files.writer("note", true).unwrap();
        let part = noise(MIB);
        let refused = (0..16).find_map(|_| writer.write(&part).err());
        assert!(matches!(refused, Some(VolumeFileError::NoSpace { .. })), "{refused:?}");
        drop(writer);
        assert_eq!(get(&files, "note").unwrap(), b"old");
        world.pool.volume_usage("vol_full").unwrap();
        put(&files, "fits", &noise(4 * MIB));
        // Removing works in a full volume.
        let mut number = 0;
        while let Ok(mut writer) = VolumeFiles::of(&path).unwrap().writer(&format!("f/{number}"), false) {
            if writer.write(&noise(MIB)).is_err() || writer.finish().is_err() {
                break;
            }
            number += 1;
        }
        files.remove("f").unwrap();
        files.remove("fits").unwrap();
        assert_eq!(world.pool.volume_usage("vol_full").unwrap().0, 3);
    }
}

#[test]
fn a_checkpoint_cannot_be_written() {
    let world = World::new(DiskDriver::Btrfs);
    let (_, files) = volume(&world);
    put(&files, "note", b"kept");
    let kept = world.pool.checkpoint("vol_a", "ckpt_1").unwrap();
    let files = VolumeFiles::of(&kept).unwrap();
    assert_eq!(get(&files, "note").unwrap(), b"kept");
    assert!(matches!(
        files.writer("note", true),
        Err(VolumeFileError::Denied { .. })
    ));
    assert!(matches!(
        files.remove("note"),
        Err(VolumeFileError::Denied { .. })
    ));
}
