use crate::{eventually, execute, session_of, text, vm_of};
use anyhow::Result;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    living_sessions_go_on_as_they_were,
    tasks_are_taken_up_again,
    records_and_node_are_brought_in_line,
    what_was_being_made_or_killed_is_settled,
    keys_and_their_last_use_remain,
);

async fn living_sessions_go_on_as_they_were(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let key = platform.key.clone();
    let client = platform.client();
    let session = session_of(&client, &key).await?;
    execute(&client, &session, "set x 42").await?;
    let before = client
        .get(&format!("/v1/sessions/session/{session}"))
        .await?
        .json();
    let platform = platform.restart().await?;
    let client = platform.client();
    assert_eq!(
        execute(&client, &session, "get x").await?.json()["stdout"],
        "42\n"
    );
    let after = client
        .get(&format!("/v1/sessions/session/{session}"))
        .await?
        .json();
    assert_eq!(after, before);
    assert_eq!(platform.node.creations(), 1);
    client
        .post("/kill", &json!({"session_id": session}))
        .await?;
    assert!(platform.node.vm_ids().is_empty());
    let platform = platform.restart().await?;
    let client = platform.client();
    assert_eq!(execute(&client, &session, "get x").await?.status, 404);
    Ok(())
}

async fn tasks_are_taken_up_again(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let mut tasks = Vec::new();
    for code in ["echo done\ngate first", "gate second"] {
        let body = json!({"session_id": session, "command": code});
        tasks.push(text(
            &client.post("/execute_async", &body).await?.json()["task_id"],
        ));
    }
    let lonely = session_of(&client, &platform.key).await?;
    let lonely_vm = vm_of(&client, &lonely).await?;
    let body = json!({"session_id": lonely, "command": "gate third"});
    let lost = text(&client.post("/execute_async", &body).await?.json()["task_id"]);

    let stopped = platform.stop().await?;
    stopped.node.open_gate("first");
    stopped.node.end_silently(&lonely_vm);
    let platform = stopped.start().await?;
    let client = platform.client();
    let path = format!("/v1/executions/{}", tasks[0]);
    let task = eventually(&client, &path, |task| task["is_complete"] == true).await?;
    assert_eq!(task["serialized_stdout"], "done\n");
    let path = format!("/v1/executions/{}", tasks[1]);
    assert_eq!(client.get(&path).await?.json()["is_complete"], false);
    platform.node.open_gate("second");
    eventually(&client, &path, |task| task["status"] == "completed").await?;
    let task = eventually(&client, &format!("/v1/executions/{lost}"), |task| {
        task["is_complete"] == true
    })
    .await?;
    assert_eq!(task["status"], "failed");
    assert!(text(&task["serialized_stderr"]).contains("VM ended"));
    Ok(())
}

async fn records_and_node_are_brought_in_line(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let (gone, stays) = (
        session_of(&client, &platform.key).await?,
        session_of(&client, &platform.key).await?,
    );
    let (gone_vm, stays_vm) = (vm_of(&client, &gone).await?, vm_of(&client, &stays).await?);
    starts_are_on_record(&platform).await?;
    platform
        .database
        .execute(
            "UPDATE vms SET status = 'creating', started_at = NULL, expires_at = NULL WHERE id = $1",
            vec![stays_vm.as_str().into()],
        )
        .await?;
    let stopped = platform.stop().await?;
    stopped.node.end_silently(&gone_vm);
    let unknown = instavm_node_api::VmSpec {
        id: instavm_node_api::VmId("vm_unknown".to_owned()),
        memory_mb: 128,
        vcpu_count: 1,
        disk_bytes: 0,
        env: Default::default(),
        lifetime_seconds: 60,
        snapshot: None,
        workdir: None,
        mounts: Vec::new(),
        keep_disk_as: None,
        egress: None,
    };
    instavm_node_api::Node::create(&*stopped.node, unknown).await?;
    let platform = stopped.start().await?;
    let client = platform.client();
    assert_eq!(platform.node.vm_ids(), std::slice::from_ref(&stays_vm));
    let ended = client.get(&format!("/v1/vms/{gone_vm}")).await?.json();
    assert_eq!(ended["status"], "terminated");
    assert_eq!(ended["status_reason"], "crashed");
    let kept = client.get(&format!("/v1/vms/{stays_vm}")).await?.json();
    assert_eq!(
        kept["status"], "active",
        "a VM whose start was not recorded is adopted: {kept}"
    );
    assert!(kept["expires_at"].is_string());
    assert_eq!(execute(&client, &gone, "echo x").await?.status, 200);
    Ok(())
}

async fn what_was_being_made_or_killed_is_settled(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &session).await?;
    // As after an end between the two steps of a kill.
    platform
        .database
        .execute(
            "UPDATE sessions SET killed_at = 1 WHERE id = $1",
            vec![session.as_str().into()],
        )
        .await?;
    // As after an end between the intent to make a VM and its making.
    let other = session_of(&client, &platform.key).await?;
    let other_vm = vm_of(&client, &other).await?;
    platform.node.end_silently(&other_vm);
    starts_are_on_record(&platform).await?;
    platform
        .database
        .execute(
            "UPDATE vms SET status = 'creating' WHERE id = $1",
            vec![other_vm.as_str().into()],
        )
        .await?;
    let platform = platform.restart().await?;
    let client = platform.client();
    assert!(platform.node.vm_ids().is_empty());
    assert_eq!(
        client.get(&format!("/v1/vms/{vm}")).await?.json()["status_reason"],
        "killed"
    );
    assert_eq!(
        client.get(&format!("/v1/vms/{other_vm}")).await?.json()["status"],
        "failed"
    );
    assert_eq!(execute(&client, &session, "echo").await?.status, 404);
    Ok(())
}

async fn keys_and_their_last_use_remain(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    platform.client().get("/v1/users/me").await?;
    let platform = platform.restart().await?;
    let rows = platform
        .database
        .fetch(
            "SELECT last_used_at FROM api_keys WHERE last_used_at IS NOT NULL",
            vec![],
        )
        .await?;
    assert_eq!(rows.len(), 1);
    assert_eq!(platform.client().get("/v1/users/me").await?.status, 200);
    Ok(())
}

/// Waits until the starts of VMs, which are recorded behind their answers, are on record.
async fn starts_are_on_record(platform: &TestPlatform) -> Result<()> {
    let looking = async {
        let statement = "SELECT id FROM vms WHERE status = 'creating'";
        while platform
            .database
            .fetch_optional(statement, vec![])
            .await?
            .is_some()
        {}
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), looking).await?
}
