//! Snapshots: of VMs that run, of VMs that ended, and VMs that start from them.

use crate::fixture::{Fixture, PATIENCE, kill, spec, text};
use instavm_node_api::{Ending, Node, NodeError, SnapshotId, Snapshots, VmSpec};
use std::time::Duration;

fn snapshot(id: &str) -> SnapshotId {
    SnapshotId(id.to_owned())
}

fn from(vm: &str, id: &SnapshotId) -> VmSpec {
    VmSpec {
        snapshot: Some(id.clone()),
        ..spec(vm)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_vm_starts_others_and_the_vm_goes_on() {
    let f = Fixture::new(1).await;
    let vm = f.create("vm_a").await;
    f.python(&vm, "kept = 'in memory'").await;
    f.bash(&vm, "echo first > /app/file; ln -s /etc/hostname /app/link")
        .await;
    let id = snapshot("snap_a");
    let taken = f.node.take_snapshot(&vm, &id).await.unwrap();
    assert!(taken.pause < Duration::from_secs(5), "{taken:?}");
    assert!(
        taken.pause > Duration::ZERO && taken.size_bytes > 0,
        "{taken:?}"
    );
    assert_eq!(f.node.snapshot_size(&id).await.unwrap(), taken.size_bytes);
    assert_eq!(f.node.snapshots().await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(
        text(&f.python(&vm, "print(kept)").await.stdout),
        "in memory\n"
    );
    f.bash(&vm, "echo second > /app/file").await;

    for name in ["vm_b", "vm_c"] {
        let info = f.node.create(from(name, &id)).await.unwrap();
        let run = f
            .bash(&info.id, "cat /app/file; hostname; echo mine > /app/file")
            .await;
        let host = name.replace('_', "-");
        assert_eq!(text(&run.stdout), format!("first\n{host}\n"));
        assert_eq!(
            text(&f.python(&info.id, "print(6 * 7)").await.stdout),
            "42\n"
        );
    }
    assert_eq!(text(&f.bash(&vm, "cat /app/file").await.stdout), "second\n");

    // A snapshot that VMs run from may go; they go on.
    f.node.delete_snapshot(&id).await.unwrap();
    f.node.delete_snapshot(&id).await.unwrap();
    let clone = instavm_node_api::VmId("vm_b".to_owned());
    assert_eq!(
        text(&f.bash(&clone, "cat /app/file").await.stdout),
        "mine\n"
    );
    let gone = f.node.create(from("vm_d", &id)).await.unwrap_err();
    assert!(matches!(gone, NodeError::NoSuchSnapshot), "{gone:?}");
    let gone = f.node.snapshot_size(&id).await.unwrap_err();
    assert!(matches!(gone, NodeError::NoSuchSnapshot), "{gone:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_one_vm_queue_and_an_id_is_taken_once() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let ids = ["snap_a", "snap_b", "snap_c"].map(snapshot);
    let taken = futures::future::join_all(ids.iter().map(|id| f.node.take_snapshot(&vm, id))).await;
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    let again = f.node.take_snapshot(&vm, &ids[0]).await.unwrap_err();
    assert!(matches!(again, NodeError::Busy { .. }), "{again:?}");
    assert_eq!(text(&f.bash(&vm, "echo on").await.stdout), "on\n");
    f.node.terminate(&vm, Ending::Killed).await.unwrap();
    let ended = f
        .node
        .take_snapshot(&vm, &snapshot("snap_d"))
        .await
        .unwrap_err();
    assert!(matches!(ended, NodeError::NoSuchVm), "{ended:?}");
    assert_eq!(f.node.snapshots().await.unwrap(), ids);
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_waits_for_is_not_left_behind() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    f.bash(&vm, "head -c 20M /dev/urandom > /app/data").await;
    let id = snapshot("snap_a");
    let waiting = f.node.take_snapshot(&vm, &id);
    let given_up = tokio::time::timeout(Duration::ZERO, waiting).await;
    assert!(given_up.is_err(), "{given_up:?}");
    // Behind it in the VM's queue: when this one is there, that one is over.
    f.node
        .take_snapshot(&vm, &snapshot("snap_b"))
        .await
        .unwrap();
    f.until(async || f.node.snapshots().await.unwrap() == [snapshot("snap_b")])
        .await;
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_kept_however_the_vm_ends() {
    let f = Fixture::new(0).await;
    let mut endings = f.node.endings();
    let ends = [("vm_killed", 300), ("vm_expired", 3), ("vm_crashed", 300)];
    for (name, lifetime_seconds) in ends {
        let keep_disk_as = (name != "vm_killed").then(|| snapshot(&name.replace("vm", "snap")));
        let spec = VmSpec {
            lifetime_seconds,
            keep_disk_as,
            ..spec(name)
        };
        let vm = f.node.create(spec).await.unwrap().id;
        f.bash(&vm, "echo $HOSTNAME > /app/name").await;
        if name == "vm_killed" {
            // Changed while it runs: the last word counts.
            f.node
                .keep_disk_as(&vm, Some(snapshot("snap_other")))
                .await
                .unwrap();
            f.node
                .keep_disk_as(&vm, Some(snapshot("snap_killed")))
                .await
                .unwrap();
            f.node.terminate(&vm, Ending::Killed).await.unwrap();
            f.node
                .snapshot_size(&snapshot("snap_killed"))
                .await
                .unwrap();
        } else if name == "vm_crashed" {
            f.kill_first_process(&vm);
        }
    }
    let mut told = Vec::new();
    for _ in ends {
        let (vm, ending) = tokio::time::timeout(PATIENCE, endings.recv())
            .await
            .unwrap()
            .unwrap();
        // It is there when the end is told.
        let id = snapshot(&vm.0.replace("vm", "snap"));
        f.node.snapshot_size(&id).await.unwrap();
        told.push((vm.0, ending));
    }
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("vm_crashed".to_owned(), Ending::Crashed),
        ("vm_expired".to_owned(), Ending::Expired),
        ("vm_killed".to_owned(), Ending::Killed),
    ];
    assert_eq!(told, expected);
    starts_from_what_was_kept(&f).await;
    f.close().await;
}

async fn starts_from_what_was_kept(f: &Fixture) {
    for name in ["crashed", "expired", "killed"] {
        let spec = from(
            &format!("vm_again-{name}"),
            &snapshot(&format!("snap_{name}")),
        );
        let vm = f.node.create(spec).await.unwrap().id;
        let run = f.bash(&vm, "cat /app/name").await;
        assert_eq!(text(&run.stdout), format!("vm-{name}\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ended_while_no_node_ran_has_its_disk_kept() {
    let f = Fixture::new(0).await;
    let spec = VmSpec {
        keep_disk_as: Some(snapshot("snap_a")),
        ..spec("vm_a")
    };
    let vm = f.node.create(spec).await.unwrap().id;
    f.bash(&vm, "echo here > /app/file; sync").await;
    let process = f.first_process(&vm);
    let f = f.restart_after(|_| kill(process)).await;
    assert!(f.node.list().await.is_empty());
    let vm = f
        .node
        .create(from("vm_b", &snapshot("snap_a")))
        .await
        .unwrap()
        .id;
    assert_eq!(text(&f.bash(&vm, "cat /app/file").await.stdout), "here\n");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_stood_still_when_the_node_died_goes_on() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let freezer = f.freezer(&vm);
    let f = f
        .restart_after(|_| std::fs::write(freezer, "1").expect("the VM stands still"))
        .await;
    assert_eq!(text(&f.bash(&vm, "echo on").await.stdout), "on\n");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_changes_while_a_vm_runs() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let fill = "data = bytearray(300 << 20); print(len(data) >> 20)";
    let refused = f.python(&vm, fill).await;
    assert_ne!(refused.exit_code, 0, "{refused:?}");
    f.node.resize(&vm, 512).await.unwrap();
    assert_eq!(text(&f.python(&vm, fill).await.stdout), "300\n");
    let busy = f.node.resize(&vm, 256).await.unwrap_err();
    let NodeError::Busy { reason } = &busy else {
        panic!("{busy:?}");
    };
    assert!(
        reason.contains("MiB now, more than the 256 MiB"),
        "{reason}"
    );
    assert_eq!(
        text(&f.python(&vm, "print(len(data) >> 20)").await.stdout),
        "300\n"
    );
    f.python(&vm, "del data").await;
    f.node.resize(&vm, 256).await.unwrap();
    let f = f.restart().await;
    assert_eq!(f.node.inspect(&vm).await.unwrap().memory_mb, 256);
    assert_ne!(f.python(&vm, fill).await.exit_code, 0);
    f.close().await;
}

/// What a daemon that died at this point leaves: the phase that its last record names.
fn leave_at(data_dir: &std::path::Path, phase: &serde_json::Value) {
    for machine in std::fs::read_dir(data_dir.join("vms")).unwrap() {
        let path = machine.unwrap().path().join("vm.json");
        let mut record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        record["phase"] = phase.clone();
        std::fs::write(&path, record.to_string()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_cut_off_is_finished_with_its_disk_kept() {
    let mut f = Fixture::new(0).await;
    let keeping = serde_json::json!({"keeping": "snap_a"});
    // Before the disk was kept, and after: the second finds the snapshot there already.
    for name in ["vm_a", "vm_b"] {
        let vm = f.create(name).await;
        f.bash(&vm, "echo $HOSTNAME > /app/name; sync").await;
        f = f
            .restart_after(|data_dir| leave_at(data_dir, &keeping))
            .await;
        assert!(f.node.list().await.is_empty());
        assert_eq!(f.machines(), 0);
    }
    let vm = f
        .node
        .create(from("vm_c", &snapshot("snap_a")))
        .await
        .unwrap()
        .id;
    assert_eq!(text(&f.bash(&vm, "cat /app/name").await.stdout), "vm-a\n");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_cut_off_is_undone() {
    let f = Fixture::new(0).await;
    f.create("vm_a").await;
    let building = serde_json::json!("building");
    let f = f
        .restart_after(|data_dir| leave_at(data_dir, &building))
        .await;
    assert!(f.node.list().await.is_empty());
    assert!(f.node.snapshots().await.unwrap().is_empty());
    assert_eq!(f.machines(), 0);
    f.close().await;
}
