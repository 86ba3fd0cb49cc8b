//! Machines of images that have little, and identities of machines.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod machine;

use instavm_agent_api::{Language, Rejoin};
use machine::{Host, run};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_plain_shell_alone_runs_shell_commands_and_says_that_it_has_no_python() {
    let mut host = Host::new();
    let root = host.root_of(&["sh", "ls", "cat", "mkdir"]);
    let vm = host.start(&root).await;
    let code = "echo hi; pwd; ls -ld /app /root /tmp /etc | while read mode _ owner _; do echo $mode $owner; done";
    let listed = vm.bash(code).await.good();
    assert_eq!(
        listed,
        "hi\n/app\ndrwxr-xr-x 0\ndrwxr-xr-x 0\ndrwx------ 0\ndrwxrwxrwt 0\n"
    );
    let long = format!("echo {}", "x".repeat(200_000));
    assert_eq!(vm.bash(&long).await.good().len(), 200_001);
    let python = vm.run(Some(Language::Python), "print(1)").await;
    assert_eq!((python.finished.exit_code, python.out.as_str()), (127, ""));
    assert!(python.err.contains("this VM has no python3"), "{python:?}");
    let open = vm.run(None, "echo open | cat").await;
    assert_eq!(open.good(), "open\n");
    assert_eq!(vm.bash("cat /etc/hosts").await.good().lines().count(), 3);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_takes_on_its_name_and_working_directory() {
    let mut host = Host::new();
    let root = host.small_root(&[]);
    run(&format!(
        "mkdir -p {0}/etc && printf '127.0.0.1 localhost\\n10.0.0.9 db\\n127.0.1.1 old\\n' > {0}/etc/hosts && \
         ln -s /proc/self/environ {0}/etc/hostname",
        root.display()
    ));
    let vm = host.start(&root).await;
    vm.rejoin(Rejoin {
        hostname: "web-1".to_owned(),
        entropy: vec![1; 32],
        workdir: Some("/srv/site".to_owned()),
        ..Rejoin::default()
    })
    .await;
    let seen = vm
        .bash("pwd; cat /etc/hostname /etc/hosts; ls -l /etc/hostname | head -c 1")
        .await
        .good();
    assert_eq!(
        seen,
        "/srv/site\nweb-1\n::1\tlocalhost\n127.0.0.1 localhost\n127.0.1.1\tweb-1\n10.0.0.9 db\n-"
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stands_still_and_goes_on() {
    let mut host = Host::new();
    let root = host.small_root(&[]);
    let vm = host.start(&root).await;
    let mut busy = vm
        .background("echo; while :; do echo x; sleep 0.001; done")
        .await;
    let frozen = vm.cgroup.freeze().unwrap();
    // What was on its way before comes still; then nothing.
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), busy.events.next()).await
    {
        event.unwrap();
    }
    let pause = frozen.thaw().unwrap();
    assert!(pause >= Duration::from_millis(200));
    tokio::time::timeout(machine::PATIENCE, busy.events.next())
        .await
        .unwrap()
        .unwrap();
    drop(vm.cgroup.freeze().unwrap());
    assert_eq!(vm.bash("echo on").await.good(), "on\n");
    // A node that died while a machine stood still has a successor that lets it go on.
    std::mem::forget(vm.cgroup.freeze().unwrap());
    host.adopt(&vm);
    vm.cgroup.thaw().unwrap();
    assert_eq!(vm.bash("echo on").await.good(), "on\n");
    let group = vm.cgroup.clone();
    std::mem::forget(group.freeze().unwrap());
    host.close().await;
    assert!(group.freeze().is_err());
}
