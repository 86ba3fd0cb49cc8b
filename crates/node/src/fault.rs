//! The places where tests let a step fail. The program itself has nothing here.

/// Fails where a test wants it to.
#[cfg(not(test))]
#[inline]
pub(crate) fn at(_step: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use injected::{at, at_every, inject};

#[cfg(test)]
mod injected {
    use std::io;
    use std::sync::Mutex;

    /// The step that fails, and whether it goes on failing.
    static WANTED: Mutex<Option<(&str, bool)>> = Mutex::new(None);

    pub(crate) fn at(step: &'static str) -> io::Result<()> {
        let mut wanted = WANTED.lock().unwrap();
        match *wanted {
            Some((name, always)) if name == step => {
                if !always {
                    *wanted = None;
                }
                Err(io::Error::other(format!("a test lets {step:?} fail")))
            }
            _ => Ok(()),
        }
    }

    /// Lets this step fail once.
    pub(crate) fn inject(step: &'static str) {
        *WANTED.lock().unwrap() = Some((step, false));
    }

    /// Lets this step fail whenever it is reached; an empty name ends that.
    pub(crate) fn at_every(step: &'static str) {
        *WANTED.lock().unwrap() = Some((step, true));
    }
}

/// Every step that makes something fails in turn; nothing of it may be left.
#[cfg(test)]
mod tests {
    use super::{at_every, inject};
    use crate::fixture::{Fixture, PATIENCE, spec, text};
    use instavm_node_api::{
        Ending, Mount, Node, NodeError, SnapshotId, Snapshots, VmId, VmSpec, VolumeId, Volumes,
    };

    fn volume() -> VolumeId {
        VolumeId("vol_a".to_owned())
    }

    fn snapshot(id: &str) -> SnapshotId {
        SnapshotId(id.to_owned())
    }

    fn mount() -> Mount {
        Mount {
            volume: volume(),
            checkpoint: None,
            path: "/data".to_owned(),
            read_only: false,
        }
    }

    /// A machine with a snapshot of it and a volume.
    async fn prepared() -> (Fixture, VmId) {
        let f = Fixture::new(0).await;
        let vm = f.create("vm_a").await;
        f.node
            .take_snapshot(&vm, &snapshot("snap_a"))
            .await
            .unwrap();
        f.node.create_volume(&volume(), 64 << 20).await.unwrap();
        (f, vm)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_vm_from_a_snapshot_with_a_volume_is_there_or_not() {
        let (f, _) = prepared().await;
        let spec = VmSpec {
            snapshot: Some(snapshot("snap_a")),
            mounts: vec![mount()],
            ..spec("vm_b")
        };
        let steps = [
            "make the disk of",
            "make the cgroup of",
            "start",
            "link",
            "finish",
            "record",
            "mount",
            "hand out",
        ];
        for step in steps {
            inject(step);
            let failed = f.node.create(spec.clone()).await;
            assert!(
                matches!(failed, Err(NodeError::Internal { .. })),
                "{step}: {failed:?}"
            );
            assert_eq!(f.node.list().await.len(), 1, "{step}");
            let left = f.node.check(PATIENCE).await;
            assert!(left.is_empty(), "{step}: {left:#?}");
            assert_eq!(f.machines(), 1, "{step}");
        }
        f.node.create(spec).await.unwrap();
        f.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn undoing_may_be_repeated() {
        let (f, _) = prepared().await;
        let workshop = &f.node.inner.workshop;
        let machine = workshop.assemble(&workshop.pool_blueprint()).await.unwrap();
        let record = machine.record.clone();
        drop(machine);
        for _ in 0..3 {
            workshop
                .dismantle(&record.machine, Some(record.index))
                .await
                .unwrap();
        }
        assert_eq!(f.machines(), 1);
        f.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_that_fails_leaves_a_vm_that_goes_on() {
        let (f, vm) = prepared().await;
        inject("save");
        let failed = f.node.take_snapshot(&vm, &snapshot("snap_b")).await;
        assert!(
            matches!(failed, Err(NodeError::Internal { .. })),
            "{failed:?}"
        );
        assert_eq!(f.node.snapshots().await.unwrap(), [snapshot("snap_a")]);
        assert_eq!(text(&f.bash(&vm, "echo on").await.stdout), "on\n");
        f.node
            .take_snapshot(&vm, &snapshot("snap_b"))
            .await
            .unwrap();
        f.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mount_that_fails_holds_nothing() {
        let (f, vm) = prepared().await;
        inject("mount");
        let failed = f.node.mount_volume(&vm, mount()).await;
        assert!(
            matches!(failed, Err(NodeError::Internal { .. })),
            "{failed:?}"
        );
        assert!(f.node.mounts(&vm).await.unwrap().is_empty());
        f.node.delete_volume(&volume()).await.unwrap();
        f.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_cannot_be_kept_at_once_is_kept_soon_and_one_that_never_can_holds_up_nobody()
     {
        let (f, vm) = prepared().await;
        f.node
            .keep_disk_as(&vm, Some(snapshot("snap_b")))
            .await
            .unwrap();
        inject("keep the disk");
        f.node.terminate(&vm, Ending::Killed).await.unwrap();
        f.node.snapshot_size(&snapshot("snap_b")).await.unwrap();

        let vm = f.create("vm_b").await;
        f.node
            .keep_disk_as(&vm, Some(snapshot("snap_c")))
            .await
            .unwrap();
        at_every("keep the disk");
        f.node.terminate(&vm, Ending::Killed).await.unwrap();
        at_every("");
        let missing = f.node.snapshot_size(&snapshot("snap_c")).await;
        assert!(
            matches!(missing, Err(NodeError::NoSuchSnapshot)),
            "{missing:?}"
        );
        f.close().await;
    }
}
