//! Volumes: their files, checkpoints, quotas, and their mounts in VMs.

use crate::fixture::{Fixture, PATIENCE, kill, spec, text};
use bytes::Bytes;
use futures::StreamExt;
use instavm_node_api::{
    CheckpointId, Ending, FileErrorKind, Mount, Node, NodeError, SnapshotId, Snapshots, VmId,
    VmSpec, VolumeId, Volumes,
};
use instavm_runtime::disk::DiskDriver;

const MIB: u64 = 1 << 20;

fn volume(id: &str) -> VolumeId {
    VolumeId(id.to_owned())
}

fn checkpoint(id: &str) -> CheckpointId {
    CheckpointId(id.to_owned())
}

fn mount(id: &str, path: &str, read_only: bool) -> Mount {
    Mount {
        volume: volume(id),
        checkpoint: None,
        path: path.to_owned(),
        read_only,
    }
}

fn busy<T: std::fmt::Debug>(result: Result<T, NodeError>) -> String {
    match result {
        Err(NodeError::Busy { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn file_error<T: std::fmt::Debug>(result: Result<T, NodeError>) -> FileErrorKind {
    match result {
        Err(NodeError::File { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

async fn write(f: &Fixture, id: &str, path: &str, content: &'static str) -> Result<u64, NodeError> {
    let parts = content
        .as_bytes()
        .chunks(3)
        .map(|part| Ok(Bytes::from_static(part)));
    let content = futures::stream::iter(parts).boxed();
    f.node
        .write_volume_file(&volume(id), path, true, content)
        .await
}

async fn read(f: &Fixture, id: &str, path: &str) -> Result<String, NodeError> {
    let file = f.node.read_volume_file(&volume(id), path).await?;
    let parts: Vec<Bytes> = file.stream.map(|part| part.unwrap()).collect().await;
    let content = parts.concat();
    assert_eq!(file.size, content.len() as u64);
    Ok(String::from_utf8(content).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_carried_from_vm_to_vm_and_seen_from_outside() {
    let f = Fixture::new(1).await;
    f.node
        .create_volume(&volume("vol_a"), 64 * MIB)
        .await
        .unwrap();
    f.node
        .create_volume(&volume("vol_a"), 32 * MIB)
        .await
        .unwrap();
    write(&f, "vol_a", "from/outside", "hello\n").await.unwrap();
    let with_mount = |name: &str| VmSpec {
        mounts: vec![mount("vol_a", "/data/deep", false)],
        ..spec(name)
    };
    let first = f.node.create(with_mount("vm_a")).await.unwrap().id;
    let run = f
        .bash(&first, "cat /data/deep/from/outside; stat -c %u:%g /data/deep/from/outside; echo inside > /data/deep/new")
        .await;
    assert_eq!(text(&run.stdout), "hello\n0:0\n");
    assert_eq!(read(&f, "vol_a", "new").await.unwrap(), "inside\n");
    let usage = f.node.volume_usage(&volume("vol_a")).await.unwrap();
    assert!(
        usage.used_bytes >= 13 && usage.charged_bytes >= usage.used_bytes,
        "{usage:?}"
    );

    let second = busy(f.node.create(with_mount("vm_b")).await);
    assert!(second.contains("/data/deep of vm_a"), "{second}");
    let held = busy(f.node.delete_volume(&volume("vol_a")).await);
    assert!(held.ends_with("mounted in vm_a"), "{held}");
    f.node.terminate(&first, Ending::Killed).await.unwrap();
    let second = f.node.create(with_mount("vm_b")).await.unwrap().id;
    assert_eq!(
        text(&f.bash(&second, "cat /data/deep/new").await.stdout),
        "inside\n"
    );
    f.node.terminate(&second, Ending::Killed).await.unwrap();
    f.node.delete_volume(&volume("vol_a")).await.unwrap();
    f.node.delete_volume(&volume("vol_a")).await.unwrap();
    assert!(f.node.volumes().await.unwrap().is_empty());
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_come_and_go_while_a_vm_runs() {
    let f = Fixture::new(0).await;
    f.node
        .create_volume(&volume("vol_a"), 64 * MIB)
        .await
        .unwrap();
    let (one, two) = (f.create("vm_a").await, f.create("vm_b").await);
    f.node
        .mount_volume(&one, mount("vol_a", "/data", false))
        .await
        .unwrap();
    f.node
        .mount_volume(&two, mount("vol_a", "/data", true))
        .await
        .unwrap();
    busy(
        f.node
            .mount_volume(&two, mount("vol_a", "/other", false))
            .await,
    );
    busy(
        f.node
            .mount_volume(&one, mount("vol_a", "/data", true))
            .await,
    );
    f.bash(&one, "echo seen > /data/file").await;
    let run = f
        .bash(
            &two,
            "cat /data/file; echo no > /data/file; mount -o remount,rw /data; echo no > /data/file",
        )
        .await;
    assert_eq!(text(&run.stdout), "seen\n");
    assert_eq!(text(&f.bash(&one, "cat /data/file").await.stdout), "seen\n");

    f.node.unmount_volume(&two, "/data").await.unwrap();
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_used_stays_and_says_who_uses_it() {
    let f = Fixture::new(0).await;
    f.node
        .create_volume(&volume("vol_a"), 64 * MIB)
        .await
        .unwrap();
    let (one, two) = (f.create("vm_a").await, f.create("vm_b").await);
    f.node
        .mount_volume(&one, mount("vol_a", "/data", false))
        .await
        .unwrap();
    let hold = "(cd /data && exec sleep 60) >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do :; done";
    let in_use = f.bash(&one, hold).await;
    assert_eq!(in_use.exit_code, 0, "{in_use:?}");
    let holders = busy(f.node.unmount_volume(&one, "/data").await);
    assert!(holders.contains("sleep"), "{holders}");
    f.bash(&one, "pkill sleep").await;
    f.until(async || f.node.unmount_volume(&one, "/data").await.is_ok())
        .await;
    f.node.unmount_volume(&one, "/data").await.unwrap();
    assert!(f.node.mounts(&one).await.unwrap().is_empty());
    assert_eq!(text(&f.bash(&one, "ls /data").await.stdout), "");
    f.node
        .mount_volume(&two, mount("vol_a", "/data", false))
        .await
        .unwrap();
    let missing = f
        .node
        .mount_volume(&two, mount("vol_b", "/other", false))
        .await;
    assert!(
        matches!(missing, Err(NodeError::NoSuchVolume)),
        "{missing:?}"
    );
    let unfit = f
        .node
        .mount_volume(&one, mount("vol_a", "/proc/x", true))
        .await;
    file_error(unfit);
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_keep_a_moment() {
    let f = Fixture::new(0).await;
    let id = volume("vol_a");
    f.node.create_volume(&id, 64 * MIB).await.unwrap();
    write(&f, "vol_a", "file", "then").await.unwrap();
    f.node
        .create_checkpoint(&id, &checkpoint("ckpt_a"))
        .await
        .unwrap();
    busy(f.node.create_checkpoint(&id, &checkpoint("ckpt_a")).await);
    write(&f, "vol_a", "file", "now").await.unwrap();
    let then = Mount {
        checkpoint: Some(checkpoint("ckpt_a")),
        ..mount("vol_a", "/then", false)
    };
    let vm = VmSpec {
        mounts: vec![then, mount("vol_a", "/now", false)],
        ..spec("vm_a")
    };
    let vm = f.node.create(vm).await.unwrap().id;
    let run = f
        .bash(
            &vm,
            "cat /then/file /now/file; echo no > /then/file || echo refused",
        )
        .await;
    assert_eq!(text(&run.stdout), "thennowrefused\n");
    let held = busy(f.node.delete_checkpoint(&id, &checkpoint("ckpt_a")).await);
    assert!(held.ends_with("mounted in vm_a"), "{held}");
    f.node.unmount_volume(&vm, "/then").await.unwrap();
    f.node
        .delete_checkpoint(&id, &checkpoint("ckpt_a"))
        .await
        .unwrap();
    f.node
        .delete_checkpoint(&id, &checkpoint("ckpt_a"))
        .await
        .unwrap();
    assert_eq!(f.node.volumes().await.unwrap(), [(id.clone(), Vec::new())]);
    let missing = f
        .node
        .create_checkpoint(&volume("vol_b"), &checkpoint("ckpt_b"))
        .await;
    assert!(
        matches!(missing, Err(NodeError::NoSuchVolume)),
        "{missing:?}"
    );
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_survive_a_restart_of_the_node_and_end_with_their_vm() {
    let f = Fixture::new(0).await;
    for id in ["vol_a", "vol_b"] {
        f.node.create_volume(&volume(id), 64 * MIB).await.unwrap();
    }
    let vm = f.create("vm_a").await;
    f.node
        .mount_volume(&vm, mount("vol_a", "/data", false))
        .await
        .unwrap();
    f.bash(&vm, "echo kept > /data/file").await;
    let f = f.restart().await;
    assert_eq!(
        f.node.mounts(&vm).await.unwrap(),
        [mount("vol_a", "/data", false)]
    );
    busy(f.node.delete_volume(&volume("vol_a")).await);
    let run = f.bash(&vm, "cat /data/file; echo more >> /data/file").await;
    assert_eq!(text(&run.stdout), "kept\n");
    f.node
        .mount_volume(&vm, mount("vol_b", "/more", false))
        .await
        .unwrap();
    let process = f.first_process(&vm);
    let f = f.restart_after(|_| kill(process)).await;
    assert_eq!(read(&f, "vol_a", "file").await.unwrap(), "kept\nmore\n");
    for id in ["vol_a", "vol_b"] {
        f.node.delete_volume(&volume(id)).await.unwrap();
    }
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_mount_cannot_be_made_is_not_made() {
    let f = Fixture::new(1).await;
    f.node
        .create_volume(&volume("vol_a"), 64 * MIB)
        .await
        .unwrap();
    let vm = |path: &str, id: &str| VmSpec {
        mounts: vec![mount("vol_a", "/data", false), mount(id, path, false)],
        ..spec("vm_a")
    };
    let missing = f.node.create(vm("/other", "vol_b")).await;
    assert!(
        matches!(missing, Err(NodeError::NoSuchVolume)),
        "{missing:?}"
    );
    f.node
        .create_volume(&volume("vol_c"), 64 * MIB)
        .await
        .unwrap();
    let unfit = f.node.create(vm("/proc/self", "vol_c")).await;
    file_error(unfit);
    assert!(f.node.list().await.is_empty());
    // Nothing holds them any more.
    f.node.create(vm("/other", "vol_c")).await.unwrap();
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_volume_go_in_and_out_within_its_quota() {
    let f = Fixture::new(0).await;
    let id = volume("vol_a");
    f.node.create_volume(&id, 16 * MIB).await.unwrap();
    write(&f, "vol_a", "a/b", "one").await.unwrap();
    assert_eq!(read(&f, "vol_a", "a/b").await.unwrap(), "one");
    let once = futures::stream::iter([Ok(Bytes::from_static(b"two"))]).boxed();
    let there = f.node.write_volume_file(&id, "a/b", false, once).await;
    assert_eq!(file_error(there), FileErrorKind::Exists);

    let broken =
        futures::stream::iter([Ok(Bytes::from_static(b"half")), Err(NodeError::CallerGone)]);
    let broken = f
        .node
        .write_volume_file(&id, "a/b", true, broken.boxed())
        .await;
    assert!(matches!(broken, Err(NodeError::CallerGone)), "{broken:?}");
    assert_eq!(read(&f, "vol_a", "a/b").await.unwrap(), "one");

    let piece = Bytes::from(vec![7; 1 << 20]);
    let flood = futures::stream::iter(vec![piece; 64]).map(Ok).boxed();
    let full = f.node.write_volume_file(&id, "a/b", true, flood).await;
    assert_eq!(file_error(full), FileErrorKind::NoSpace);
    assert_eq!(read(&f, "vol_a", "a/b").await.unwrap(), "one");

    for path in ["../x", "/x", "a/../../x", ""] {
        assert_eq!(
            file_error(read(&f, "vol_a", path).await),
            FileErrorKind::Unsuitable,
            "{path:?}"
        );
    }
    let listed = f.node.list_volume_files(&id, "", true, 10).await.unwrap();
    let listed: Vec<_> = listed
        .into_iter()
        .map(|file| (file.path, file.size))
        .collect();
    assert_eq!(listed, [("a/b".to_owned(), 3)]);
    f.node.remove_volume_file(&id, "a/b").await.unwrap();
    assert_eq!(
        file_error(read(&f, "vol_a", "a/b").await),
        FileErrorKind::NotFound
    );
    let nowhere = read(&f, "vol_b", "a").await;
    assert!(
        matches!(nowhere, Err(NodeError::NoSuchVolume)),
        "{nowhere:?}"
    );
    let below = f.node.limit_volume(&id, 32 * MIB).await;
    assert!(below.is_ok(), "{below:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_with_a_volume_is_made_once_by_calls_at_once() {
    let f = Fixture::new(0).await;
    f.node
        .create_volume(&volume("vol_a"), 64 * MIB)
        .await
        .unwrap();
    let vm = VmSpec {
        mounts: vec![mount("vol_a", "/data", false)],
        ..spec("vm_a")
    };
    let (one, two) = tokio::join!(f.node.create(vm.clone()), f.node.create(vm.clone()));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let again = f.node.create(vm).await.unwrap();
    assert_eq!(again.id, VmId("vm_a".to_owned()));
    assert_eq!(f.node.list().await.len(), 1);
    f.close().await;
}

async fn in_plain_folders() -> Fixture {
    let f = Fixture::with(|config| config.disk_driver = DiskDriver::Directory).await;
    let status = f.node.status().await;
    assert_eq!((status.disk_driver, status.quota), ("directory", "soft"));
    f
}

#[tokio::test(flavor = "multi_thread")]
async fn in_plain_folders_snapshots_and_checkpoints_are_copies() {
    let f = in_plain_folders().await;
    let id = volume("vol_a");
    f.node.create_volume(&id, 8 * MIB).await.unwrap();
    write(&f, "vol_a", "file", "then").await.unwrap();
    f.node
        .create_checkpoint(&id, &checkpoint("ckpt_a"))
        .await
        .unwrap();
    write(&f, "vol_a", "file", "now").await.unwrap();
    let then = Mount {
        checkpoint: Some(checkpoint("ckpt_a")),
        ..mount("vol_a", "/then", true)
    };
    let vm = VmSpec {
        mounts: vec![then],
        ..spec("vm_a")
    };
    let vm = f.node.create(vm).await.unwrap().id;
    let code = "cat /then/file; echo no > /then/file || echo refused; echo a > /app/a";
    assert_eq!(text(&f.bash(&vm, code).await.stdout), "thenrefused\n");
    let snapshot = SnapshotId("snap_a".to_owned());
    f.node.take_snapshot(&vm, &snapshot).await.unwrap();
    let clone = VmSpec {
        snapshot: Some(snapshot),
        ..spec("vm_b")
    };
    let clone = f.node.create(clone).await.unwrap().id;
    assert_eq!(text(&f.bash(&clone, "cat /app/a").await.stdout), "a\n");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_plain_folders_limits_are_kept_by_measuring() {
    let f = in_plain_folders().await;
    f.node
        .create_volume(&volume("vol_a"), 8 * MIB)
        .await
        .unwrap();
    let mut endings = f.node.endings();
    let writer = VmSpec {
        mounts: vec![mount("vol_a", "/data", false)],
        ..spec("vm_a")
    };
    let writer = f.node.create(writer).await.unwrap().id;
    let large = f.create("vm_b").await;
    f.bash(&writer, "head -c 20M /dev/zero > /data/big").await;
    f.bash(&large, "head -c 100M /dev/zero > /app/big").await;
    let mut ended = Vec::new();
    for _ in 0..2 {
        let told = tokio::time::timeout(2 * PATIENCE, endings.recv()).await;
        ended.push(told.expect("both are ended").unwrap());
    }
    ended.sort_by(|a, b| a.0.0.cmp(&b.0.0));
    let expected = [(writer, Ending::Crashed), (large, Ending::Crashed)];
    assert_eq!(ended, expected);
    let full = write(&f, "vol_a", "more", "more").await;
    assert_eq!(file_error(full), FileErrorKind::NoSpace);
    f.close().await;
}
