//! Mounts in machines that run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod machine;

use instavm_runtime::disk::DiskDriver;
use instavm_runtime::driver::{Holder, MountError, Mounts};
use machine::{Host, Vm, run};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A host with one machine and one volume.
async fn prepared() -> (Host, Vm, PathBuf) {
    let mut host = Host::new();
    let root = host.small_root(&[]);
    let vm = host.start(&root).await;
    let volume = host.disks.create_volume("vol_a", 64 << 20).unwrap();
    (host, vm, volume)
}

async fn mount(
    mounts: &Mounts,
    source: &Path,
    target: &str,
    read_only: bool,
) -> Result<(), MountError> {
    let (mounts, source, target) = (mounts.clone(), source.to_owned(), target.to_owned());
    let work = move || mounts.mount(&source, &target, read_only);
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn unmount(mounts: &Mounts, source: &Path, target: &str) -> Result<(), MountError> {
    let (mounts, source, target) = (mounts.clone(), source.to_owned(), target.to_owned());
    let work = move || mounts.unmount(&source, &target);
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[track_caller]
fn holders(result: Result<(), MountError>) -> Vec<Holder> {
    match result {
        Err(MountError::Busy(holders)) => holders,
        other => panic!("not busy: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_inside_is_seen_outside_with_the_right_owner_and_back() {
    let (host, vm, volume) = prepared().await;
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/data/deep/er", false)
        .await
        .unwrap();
    vm.bash("echo one > /data/deep/er/root; touch /data/deep/er/user; chown 1000:1000 /data/deep/er/user")
        .await
        .good();
    assert_eq!(
        std::fs::read_to_string(volume.join("root")).unwrap(),
        "one\n"
    );
    let owner = |name: &str| {
        let about = std::fs::metadata(volume.join(name)).unwrap();
        (about.uid(), about.gid())
    };
    assert_eq!((owner("root"), owner("user")), ((0, 0), (1000, 1000)));
    std::fs::write(volume.join("outside"), "two\n").unwrap();
    let seen = vm
        .bash("cat /data/deep/er/outside; stat -c %u /data /data/deep /data/deep/er/outside")
        .await;
    assert_eq!(seen.good(), "two\n0\n0\n0\n");
    assert_eq!(mounts.list().unwrap().len(), 1);
    unmount(&mounts, &volume, "/data/deep/er").await.unwrap();
    assert_eq!(vm.bash("ls -A /data/deep/er").await.good(), "");
    unmount(&mounts, &volume, "/data/deep/er").await.unwrap();
    assert_eq!(mounts.list().unwrap(), []);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_holds_against_root_inside() {
    let (host, vm, volume) = prepared().await;
    std::fs::write(volume.join("file"), "kept\n").unwrap();
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/data", true).await.unwrap();
    for attack in [
        "echo x > /data/file",
        "touch /data/new",
        "mount -o remount,rw /data && echo x > /data/file",
        "mount -o remount,bind,rw /data && echo x > /data/file",
        "mkdir -p /copy; mount --bind /data /copy && mount -o remount,bind,rw /copy && echo x > /copy/file",
        "unshare --mount --propagation unchanged bash -c 'mount -o remount,bind,rw /data && echo x > /data/file'",
        "unshare --user --map-root-user --mount bash -c 'mount -o remount,bind,rw /data && echo x > /data/file'",
        "mkdir -p /over/up /over/work; mount -t overlay -o lowerdir=/data,upperdir=/data,workdir=/over/work none /over && echo x > /over/file",
    ] {
        let tried = vm.bash(attack).await;
        assert_ne!(tried.finished.exit_code, 0, "{attack}: {tried:?}");
        assert_eq!(
            std::fs::read_to_string(volume.join("file")).unwrap(),
            "kept\n",
            "{attack}"
        );
    }
    assert!(!volume.join("new").exists());
    assert!(mounts.list().unwrap()[0].read_only);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_seen_as_it_was_while_the_volume_goes_on() {
    let (host, vm, volume) = prepared().await;
    std::fs::write(volume.join("file"), "old\n").unwrap();
    let checkpoint = host.disks.checkpoint("vol_a", "ckpt_a").unwrap();
    let mounts = vm.machine.mounts();
    mount(&mounts, &checkpoint, "/old", true).await.unwrap();
    mount(&mounts, &volume, "/new", false).await.unwrap();
    vm.bash("echo new > /new/file").await.good();
    assert_eq!(
        vm.bash("cat /old/file /new/file").await.good(),
        "old\nnew\n"
    );
    assert_ne!(vm.bash("echo x > /old/file").await.finished.exit_code, 0);
    unmount(&mounts, &checkpoint, "/old").await.unwrap();
    assert_eq!(vm.bash("cat /new/file").await.good(), "new\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_mount_tells_who_holds_it() {
    let (host, vm, volume) = prepared().await;
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/data", false).await.unwrap();
    mount(&mounts, &volume, "/same", true).await.unwrap();
    let standing = vm.background("cd /data; echo; sleep 1000; true").await;
    let busy = holders(unmount(&mounts, &volume, "/data").await);
    let names: Vec<&str> = busy
        .iter()
        .filter_map(|holder| match holder {
            Holder::Process { pid, command } if *pid > 1 => Some(command.as_str()),
            _ => None,
        })
        .collect();
    // Between its fork and its start a program still has the shell's name.
    assert!(matches!(names[..], ["bash", "bash" | "sleep"]), "{busy:?}");
    unmount(&mounts, &volume, "/same").await.unwrap();
    drop(standing);
    vm.bash("while grep -q sleep /proc/[0-9]*/comm; do sleep 0.01; done 2>/dev/null")
        .await;
    mount(&mounts, &volume, "/same", true).await.unwrap();
    let open = vm
        .background("exec 5>/data/file; echo; exec sleep 1000")
        .await;
    let text = MountError::Busy(holders(unmount(&mounts, &volume, "/data").await)).to_string();
    assert!(text.starts_with("in use by sleep (pid "), "{text}");
    drop(open);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_were_made_inside_hold_a_mount_too() {
    let (host, vm, volume) = prepared().await;
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/data", false).await.unwrap();
    vm.bash("mkdir -p /elsewhere /data/part; mount --bind /data/part /elsewhere")
        .await
        .good();
    let copy = |path: &str| Holder::Mount {
        path: path.to_owned(),
    };
    assert_eq!(
        holders(unmount(&mounts, &volume, "/data").await),
        [copy("/elsewhere")]
    );
    vm.bash("umount /elsewhere; mount -t tmpfs none /data/part")
        .await
        .good();
    assert_eq!(
        holders(unmount(&mounts, &volume, "/data").await),
        [copy("/data/part")]
    );
    // What root inside has detached but still holds open is found as well.
    let open = vm
        .background("umount /data/part; exec 5>/data/file; umount -l /data; echo; exec sleep 1000")
        .await;
    let busy = holders(unmount(&mounts, &volume, "/data").await);
    assert!(
        matches!(&busy[..], [Holder::Process { command, .. }] if command == "sleep"),
        "{busy:?}"
    );
    drop(open);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_directory_was_renamed_is_found() {
    let (host, vm, volume) = prepared().await;
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/a/data", false).await.unwrap();
    vm.bash("mv /a /b; echo x > /b/data/file").await.good();
    unmount(&mounts, &volume, "/a/data").await.unwrap();
    assert_eq!(vm.bash("ls -A /b/data").await.good(), "");
    assert_eq!(mounts.list().unwrap(), []);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_do_not_serve_are_refused_and_nothing_remains() {
    let (host, vm, volume) = prepared().await;
    let other = host.disks.create_volume("vol_b", 64 << 20).unwrap();
    let mounts = vm.machine.mounts();
    vm.bash(
        "mkdir -p /hidden /plain /away; touch /file; mount -t tmpfs none /hidden; ln -s /proc /to-proc; \
         ln -s / /to-root; ln -s /nowhere /dangling; ln -s ../../../../plain /to-plain; ln -s /proc/1/root /magic",
    )
    .await
    .good();
    let refused = [
        "/proc",
        "/proc/new",
        "/sys/fs",
        "/dev",
        "/dev/shm/x",
        "/run/x",
        "/file",
        "/file/x",
        "/hidden",
        "/hidden/deep/x",
        "/to-proc",
        "/to-root",
        "/dangling",
        "/magic",
        "/magic/plain",
        "/to-proc/1/cwd",
    ];
    for target in refused {
        let refused = mount(&mounts, &volume, target, false).await;
        assert!(
            matches!(refused, Err(MountError::Unsuitable(_))),
            "{target}: {refused:?}"
        );
    }
    assert_eq!(mounts.list().unwrap(), []);
    mount(&mounts, &volume, "/to-plain/sub", false)
        .await
        .unwrap();
    assert_eq!(mounts.list().unwrap()[0].target, Path::new("/plain/sub"));
    for target in ["/plain/sub", "/plain", "/to-plain", "/plain/sub/below"] {
        let taken = mount(&mounts, &other, target, false).await;
        assert!(
            matches!(taken, Err(MountError::Taken(_))),
            "{target}: {taken:?}"
        );
    }
    assert_eq!(mounts.list().unwrap().len(), 1);
    assert_eq!(
        vm.bash("ls -A /hidden /nowhere /away /plain").await.out,
        "/away:\n\n/hidden:\n\n/plain:\nsub\n"
    );
    assert_eq!(
        run(&format!("ls -A {} {}", volume.display(), other.display()))
            .lines()
            .count(),
        3
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_nowhere_but_in_the_vm() {
    let (host, vm, volume) = prepared().await;
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().display().to_string();
    let mounts = vm.machine.mounts();
    vm.bash(&format!(
        "ln -s {path} /link; mkdir -p /x; ln -s ../../../..{path} /x/link"
    ))
    .await
    .good();
    let dangling = mount(&mounts, &volume, "/link/in", false).await;
    assert!(
        matches!(dangling, Err(MountError::Unsuitable(_))),
        "{dangling:?}"
    );
    vm.bash(&format!("mkdir -p {path}")).await.good();
    mount(&mounts, &volume, "/x/link/in", false).await.unwrap();
    assert_eq!(
        vm.bash(&format!("touch {path}/in/file; ls {path}"))
            .await
            .good(),
        "in\n"
    );
    assert!(volume.join("file").exists());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_outlive_the_daemon_and_end_with_the_vm() {
    let (host, vm, volume) = prepared().await;
    let before = run("cat /proc/self/mountinfo");
    mount(&vm.machine.mounts(), &volume, "/data", false)
        .await
        .unwrap();
    let adopted = host.adopt(&vm);
    let mounts = adopted.mounts();
    assert_eq!(mounts.list().unwrap()[0].target, Path::new("/data"));
    vm.bash("mkdir /later; mount -t tmpfs none /later")
        .await
        .good();
    assert_eq!(
        run("cat /proc/self/mountinfo"),
        before,
        "something of the VM's is mounted on the host"
    );
    vm.cgroup.kill().unwrap();
    vm.machine.ended().await;
    let late = mount(&mounts, &volume, "/more", false).await;
    assert!(matches!(late, Err(MountError::Ended)), "{late:?}");
    unmount(&mounts, &volume, "/data").await.unwrap();
    host.disks.delete_volume("vol_a").unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_folders_are_mounted_as_well() {
    let mut host = Host::with(DiskDriver::Directory);
    let root = host.small_root(&[]);
    let vm = host.start(&root).await;
    let volume = host.disks.create_volume("vol_a", 64 << 20).unwrap();
    let mounts = vm.machine.mounts();
    mount(&mounts, &volume, "/data", false).await.unwrap();
    let open = vm
        .background("exec 5>/data/file; echo; exec sleep 1000")
        .await;
    let busy = holders(unmount(&mounts, &volume, "/data").await);
    assert!(
        matches!(&busy[..], [Holder::Process { command, .. }] if command == "sleep"),
        "{busy:?}"
    );
    drop(open);
    vm.bash("while grep -q sleep /proc/[0-9]*/comm; do :; done 2>/dev/null")
        .await;
    unmount(&mounts, &volume, "/data").await.unwrap();
    assert!(volume.join("file").exists());
    host.close().await;
}
