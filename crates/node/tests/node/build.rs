//! Snapshots that are built from images of registries.

use crate::fixture::{Fixture, PATIENCE, spec, text};
use crate::registry::Registry;
use instavm_node_api::{
    BuildProgress, Node, NodeError, SnapshotBuild, SnapshotId, Snapshots, VmSpec,
};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

fn build(reference: String) -> SnapshotBuild {
    SnapshotBuild {
        id: SnapshotId("snap_a".to_owned()),
        oci_image: reference,
        memory_mb: 256,
        vcpu_count: 1,
        disk_bytes: 256 << 20,
        apt_packages: Vec::new(),
        pip_packages: Vec::new(),
        npm_packages: Vec::new(),
        git_clone_url: None,
        git_clone_branch: None,
        post_build_command: None,
        env: BTreeMap::new(),
    }
}

/// A listener that hears everything.
fn listener() -> (mpsc::Sender<BuildProgress>, mpsc::Receiver<BuildProgress>) {
    mpsc::channel(10_000)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn tells_its_steps(mut heard: mpsc::Receiver<BuildProgress>) {
    let (mut steps, mut log) = (Vec::new(), String::new());
    while let Some(BuildProgress { step, log: text }) = heard.recv().await {
        log.push_str(&text);
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    }
    steps.retain(|step| *step != "unpack");
    assert_eq!(
        steps,
        [
            "pull", "boot", "apt", "pip", "npm", "git", "command", "save"
        ],
        "{log}"
    );
    assert!(
        log.contains("\nsaid\n") && log.contains("apt-get works\n"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_runs_its_steps_inside_and_keeps_their_result() {
    let registry = Registry::start().await;
    let f = Fixture::new(0).await;
    let build = SnapshotBuild {
        apt_packages: strings(&["jq", "it's; odd"]),
        pip_packages: strings(&["flask"]),
        npm_packages: strings(&["left-pad"]),
        git_clone_url: Some("https://example.com/a.git".to_owned()),
        git_clone_branch: Some("main".to_owned()),
        post_build_command: Some("echo $FROM_IMAGE $BOTH $PWD > /result; echo said".to_owned()),
        env: BTreeMap::from([("BOTH".to_owned(), "build".to_owned())]),
        ..build(registry.reference())
    };
    let (progress, heard) = listener();
    let built = f
        .node
        .build_snapshot(build.clone(), progress)
        .await
        .unwrap();
    assert!(built.digest.starts_with("sha256:"), "{built:?}");
    assert_eq!(built.config.env["FROM_IMAGE"], "yes");
    assert_eq!(built.config.env["BOTH"], "build");
    assert_eq!(built.config.workdir.as_deref(), Some("/srv/work"));
    assert_eq!(built.config.user.as_deref(), Some("nobody"));
    assert_eq!(built.config.command, ["bash"]);
    assert!(built.size_bytes > 0, "{built:?}");
    tells_its_steps(heard).await;
    assert!(f.node.list().await.is_empty());
    assert_eq!(f.machines(), 0);

    let vm = VmSpec {
        snapshot: Some(build.id.clone()),
        workdir: built.config.workdir,
        env: built.config.env,
        ..spec("vm_a")
    };
    let vm = f.node.create(vm).await.unwrap().id;
    let run = f.bash(&vm, "cat /result /told; echo $PWD $BOTH").await;
    let said = text(&run.stdout);
    assert!(said.starts_with("yes build /srv/work\n"), "{said}");
    assert!(said.ends_with("\n/srv/work build\n"), "{said}");
    for told in [
        "apt-get install -y --no-install-recommends -- jq it's; odd",
        "python3 -m pip install --no-cache-dir -- flask",
        "npm install -g --no-audit --no-fund -- left-pad",
        "git clone --branch=main -- https://example.com/a.git /app/repo",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    let (progress, _heard) = listener();
    let again = f.node.build_snapshot(build, progress).await;
    assert!(matches!(again, Err(NodeError::Busy { .. })), "{again:?}");
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_says_why_and_leaves_nothing() {
    let registry = Registry::start().await;
    let f = Fixture::with(|config| config.build_timeout = Duration::from_secs(6)).await;
    let failing = |command: &str| SnapshotBuild {
        post_build_command: Some(command.to_owned()),
        ..build(registry.reference())
    };
    let cases = [
        (
            failing("echo one; echo two >&2; exit 3"),
            "command",
            "exit code 3\n",
        ),
        (failing("sleep 60"), "command", "longer than 6 s"),
        (failing("kill -9 -1"), "command", ""),
        (build(registry.missing()), "pull", "missing"),
        (build("no reference!".to_owned()), "pull", ""),
    ];
    for (build, step, reason) in cases {
        let (progress, _heard) = listener();
        let failed = f.node.build_snapshot(build, progress).await;
        let Err(NodeError::Build { step: at, message }) = &failed else {
            panic!("{failed:?}");
        };
        assert_eq!(*at, step, "{message}");
        assert!(message.contains(reason), "{message}");
        if reason.contains("exit code 3") {
            assert!(
                message.contains("one") && message.contains("two"),
                "{message}"
            );
        }
        assert_eq!(f.machines(), 0, "{message}");
        assert!(f.node.snapshots().await.unwrap().is_empty());
    }
    f.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_nobody_waits_for_is_undone() {
    let registry = Registry::start().await;
    let f = Fixture::new(0).await;
    let build = SnapshotBuild {
        post_build_command: Some("echo begun; sleep 600".to_owned()),
        ..build(registry.reference())
    };
    let (progress, mut heard) = listener();
    let begun = async {
        while let Some(news) = heard.recv().await {
            if news.log.contains("begun\n") {
                return;
            }
        }
    };
    tokio::select! {
        built = f.node.build_snapshot(build, progress) => panic!("{built:?}"),
        () = begun => {}
        () = tokio::time::sleep(PATIENCE) => panic!("it did not begin"),
    }
    f.until(async || f.machines() == 0).await;
    assert!(f.node.snapshots().await.unwrap().is_empty());
    f.close().await;
}
