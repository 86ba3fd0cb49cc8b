//! VMs: what they run, keep and limit, and how they end.

use crate::fixture::{Fixture, PATIENCE, text};
use futures::StreamExt;
use instavm_node_api::{Ending, ExecuteRequest, Language, Node, NodeError};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_keeps_state_and_knows_its_environment() {
    let f = Fixture::new(1).await;
    let vm = f.create("vm_a").await;
    assert_eq!(f.python(&vm, "x = 41").await.exit_code, 0);
    let run = f
        .python(&vm, "import os; print(x + 1, os.environ['GREETING'])")
        .await;
    assert_eq!(text(&run.stdout), "42 hello\n");
    let run = f
        .bash(&vm, "echo $GREETING from $(hostname); pwd; id -u; exit 3")
        .await;
    assert_eq!(
        (text(&run.stdout), run.exit_code),
        ("hello from vm-a\n/app\n0\n", 3)
    );
    let usage = f.node.usage(&vm).await.unwrap();
    assert!(usage.cpu_micros > 0 && usage.memory_bytes > 0, "{usage:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_interrupts_and_keeps_state() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    f.python(&vm, "x = 1").await;
    let code = "print('begun', flush=True)\nwhile True: pass";
    let run = f
        .run(&vm, Language::Python, code, Duration::from_secs(2))
        .await;
    assert!(run.timed_out && run.exit_code == 124, "{run:?}");
    assert_eq!(text(&run.stdout), "begun\n");
    assert_eq!(text(&f.python(&vm, "print(x)").await.stdout), "1\n");
    let run = f
        .run(
            &vm,
            Language::Bash,
            "echo a; sleep 60",
            Duration::from_secs(1),
        )
        .await;
    assert!(run.timed_out && text(&run.stdout) == "a\n", "{run:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_the_vm_goes_on() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let run = f.python(&vm, "b = bytearray(1 << 30)").await;
    assert!(
        run.state_lost.is_some() || text(&run.stderr).contains("MemoryError"),
        "{run:?}"
    );
    let run = f
        .bash(&vm, "head -c 100M /dev/zero > /app/big || echo full")
        .await;
    assert_eq!(text(&run.stdout), "full\n");
    f.bash(&vm, "rm /app/big").await;
    let run = f
        .bash(
            &vm,
            "for i in $(seq 400); do sleep 5 & done 2>&1 | grep -c fork; true",
        )
        .await;
    assert!(!text(&run.stdout).starts_with('0'), "{run:?}");
    let run = f.bash(&vm, "yes").await;
    assert!(
        run.output_limit_reached && run.stdout.len() == 1 << 20,
        "{}",
        run.stdout.len()
    );
    f.bash(&vm, "kill -9 -1").await;
    assert_eq!(text(&f.bash(&vm, "echo alive").await.stdout), "alive\n");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_bombs_side_by_side_are_ended_before_their_time() {
    let f = Fixture::new(0).await;
    let (one, two) = (f.create("vm_a").await, f.create("vm_b").await);
    let bomb = "python3 -c 'l = []\nwhile True: l.append(b\"x\" * 10**7)'";
    let (first, second) = tokio::join!(f.bash(&one, &bomb), f.bash(&two, &bomb));
    for run in [first, second] {
        assert!(!run.timed_out && run.exit_code == 137, "{run:?}");
    }
    for vm in [&one, &two] {
        assert_eq!(text(&f.bash(vm, "echo alive").await.stdout), "alive\n");
    }
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_out() {
    let f = Fixture::new(0).await;
    let vm = f.create("vm_a").await;
    let parts = [&b"one "[..], b"two"].map(|part| Ok(bytes::Bytes::from_static(part)));
    let content = futures::stream::iter(parts).boxed();
    let size = f
        .node
        .write_file(&vm, "deep/er/file.txt", content)
        .await
        .unwrap();
    assert_eq!(size, 7);
    assert_eq!(
        text(&f.bash(&vm, "cat /app/deep/er/file.txt").await.stdout),
        "one two"
    );
    let file = f
        .node
        .read_file(&vm, "/app/deep/er/file.txt")
        .await
        .unwrap();
    let read: Vec<_> = file.stream.map(|part| part.unwrap()).collect().await;
    assert_eq!((file.size, read.concat()), (7, b"one two".to_vec()));
    let missing = f.node.read_file(&vm, "nowhere").await.unwrap_err();
    assert!(matches!(missing, NodeError::File { .. }), "{missing:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lifetimes_end_vms_and_tell() {
    let f = Fixture::new(0).await;
    let mut endings = f.node.endings();
    let (short, long) = (f.create_for("vm_short", 2).await, f.create("vm_long").await);
    let (id, ending) = tokio::time::timeout(PATIENCE, endings.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((id, ending), (short.clone(), Ending::Expired));
    assert!(matches!(
        f.node.inspect(&short).await,
        Err(NodeError::NoSuchVm)
    ));
    f.node.terminate(&long, Ending::Killed).await.unwrap();
    f.node.terminate(&long, Ending::Killed).await.unwrap();
    assert!(f.node.list().await.is_empty());
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_adopts_vms_with_their_variables_and_tasks() {
    let f = Fixture::new(1).await;
    let vm = f.create("vm_a").await;
    f.python(&vm, "kept = 'yes'").await;
    let request = ExecuteRequest {
        code: "sleep 1; echo done".to_owned(),
        language: Some(Language::Bash),
        timeout: PATIENCE,
    };
    f.node
        .start_execution(&vm, "task-1", request)
        .await
        .unwrap();
    let f = f.restart().await;
    assert_eq!(text(&f.python(&vm, "print(kept)").await.stdout), "yes\n");
    let deadline = std::time::SystemTime::now() + PATIENCE;
    let run = f
        .node
        .await_execution(&vm, "task-1", deadline)
        .await
        .unwrap();
    assert_eq!((text(&run.stdout), run.exit_code), ("done\n", 0));
    f.node.forget_execution(&vm, "task-1").await.unwrap();
    let unknown = f.node.await_execution(&vm, "task-1", deadline).await;
    assert!(
        matches!(unknown, Err(NodeError::NoSuchExecution)),
        "{unknown:?}"
    );
    f.close().await;
}
