use crate::{eventually, execute, text, upload_into, vm_with, volume_of};
use anyhow::Result;
use instavm_control::Settings;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    a_volume_goes_from_vm_to_vm,
    volumes_come_by_name_and_are_made_where_missing,
    volumes_come_into_running_vms_by_name_too,
    no_volume_is_left_of_a_request_that_is_refused,
    a_vm_that_lives_does_not_become_another_one,
    one_mount_writes_and_many_read,
    of_two_writers_one_gets_the_volume,
    mounts_are_refused_that_cannot_be,
    what_is_in_use_is_not_taken_out,
    without_waiting_the_answer_comes_at_once,
    a_session_keeps_its_volumes,
    mounts_are_brought_in_line_at_a_start,
);

async fn mount(
    client: &instavm_testkit::Client,
    vm: &str,
    body: Value,
) -> Result<instavm_testkit::Answer> {
    client
        .post(&format!("/v1/vms/{vm}/volumes?wait=true"), &body)
        .await
}

async fn a_volume_goes_from_vm_to_vm(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let first = vm_with(&client, &json!({})).await?;
    let (vm, session) = (text(&first["vm_id"]), text(&first["session_id"]));
    let body = json!({"volume_id": volume, "mount_path": "/mnt/data/", "mode": "rw"});
    let answer = mount(&client, &vm, body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown = json!({"volume_id": volume, "name": "data", "vm_id": vm, "mount_path": "/mnt/data", "mode": "rw",
                       "checkpoint_id": null, "status": "mounted"});
    assert_eq!(answer.json(), shown);
    let path = format!("/v1/vms/{vm}/volumes");
    assert_eq!(client.get(&path).await?.json(), json!([shown]));
    client
        .upload(&session, "/mnt/data/f", false, b"carried")
        .await?;
    let one = format!("{path}/{volume}?mount_path=%2Fmnt%2Fdata&wait=true");
    let gone = client.delete(&one).await?;
    assert_eq!(gone.json()["status"], "unmounted");
    assert_eq!(client.delete(&one).await?.status, 404);
    assert_eq!(client.get(&path).await?.json(), json!([]));

    let volumes = json!([{"volume_id": volume, "mount_path": "/in", "mode": "ro"}]);
    let second = vm_with(&client, &json!({"volumes": volumes})).await?;
    let file = platform.node.file(&text(&second["vm_id"]), "/in/f");
    assert_eq!(file.as_deref(), Some(&b"carried"[..]));
    let written = client
        .upload(&text(&second["session_id"]), "/in/f", false, b"x")
        .await?;
    assert_eq!(written.status, 403);
    Ok(())
}

async fn volumes_come_by_name_and_are_made_where_missing(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let by_name = |name: &str, make: bool| json!({"volumes": [{"name": name, "mount_path": "/d", "mode": "rw", "size_gb": 2, "create_if_missing": make}]});
    let missing = client.post("/v1/vms", &by_name("data", false)).await?;
    assert_eq!(missing.status, 404);
    assert!(missing.detail().contains("data"), "{}", missing.detail());
    let vm = text(&vm_with(&client, &by_name("data", true)).await?["vm_id"]);
    let listed = client.get("/v1/volumes").await?.json();
    assert_eq!(listed[0]["name"], "data");
    assert_eq!(listed[0]["quota_bytes"], 2_i64 << 30);
    client.delete(&format!("/v1/vms/{vm}")).await?;
    let vm = vm_with(&client, &by_name("data", true)).await?;
    let path = format!("/v1/vms/{}/volumes", text(&vm["vm_id"]));
    assert_eq!(
        client.get(&path).await?.json()[0]["volume_id"],
        listed[0]["id"]
    );
    let large = json!({"volumes": [{"name": "x", "mount_path": "/d", "size_gb": 1_000_000, "create_if_missing": true}]});
    assert_eq!(client.post("/v1/vms", &large).await?.status, 422);
    assert_eq!(platform.node.volume_ids().len(), 1);
    Ok(())
}

async fn volumes_come_into_running_vms_by_name_too(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let by_name = |path: &str, more: Value| {
        let mut body = json!({"name": "data", "mount_path": path, "mode": "ro"});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            body[key] = value;
        }
        body
    };
    let missing = mount(&client, &vm, by_name("/a", json!({}))).await?;
    assert_eq!(missing.status, 404, "{missing:?}");
    let make = json!({"create_if_missing": true, "size_gb": 2});
    let made = mount(&client, &vm, by_name("/a", make.clone())).await?;
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(made.json()["name"], "data");
    let again = mount(&client, &vm, by_name("/b", make)).await?;
    assert_eq!(again.json()["volume_id"], made.json()["volume_id"]);
    let listed = client.get("/v1/volumes").await?.json();
    assert_eq!(listed[0]["quota_bytes"], 2_i64 << 30);
    assert_eq!(platform.node.volume_ids().len(), 1);
    let nothing = mount(&client, &vm, json!({"mount_path": "/c"})).await?;
    assert_eq!(nothing.status, 422);
    assert!(nothing.detail().contains("name"), "{}", nothing.detail());
    Ok(())
}

async fn no_volume_is_left_of_a_request_that_is_refused(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        volumes_per_account: 2,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let new = |name: &str| json!({"name": name, "mount_path": format!("/{name}"), "create_if_missing": true});
    for (volumes, status) in [
        (
            json!([new("a"), {"volume_id": "vol_none", "mount_path": "/x"}]),
            404,
        ),
        (json!([new("a"), new("-")]), 422),
        (
            json!([new("a"), {"name": "b", "mount_path": "/x", "mode": "ro", "checkpoint_id": "latest", "create_if_missing": true}]),
            409,
        ),
        (
            json!([new("a"), {"name": "a", "mount_path": "/b", "create_if_missing": true}]),
            422,
        ),
        // The last one is over the account's limit.
        (json!([new("a"), new("b"), new("c")]), 429),
    ] {
        let answer = client.post("/v1/vms", &json!({"volumes": volumes})).await?;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(client.get("/v1/volumes").await?.json(), json!([]));
        assert!(platform.node.volume_ids().is_empty());
    }
    Ok(())
}

async fn a_vm_that_lives_does_not_become_another_one(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let volumes = json!([{"volume_id": volume, "mount_path": "/data"}]);
    let vm = vm_with(&client, &json!({"volumes": volumes})).await?;
    let (id, session) = (text(&vm["vm_id"]), text(&vm["session_id"]));
    let taken = client
        .post(&format!("/v1/vms/{id}/snapshot"), &json!({}))
        .await?
        .json();
    let same = json!({"session_id": session, "volumes": volumes, "memory_mb": 512});
    let same = client.post("/v1/vms", &same).await?;
    assert_eq!(same.status, 200, "{same:?}");
    assert_eq!(same.json()["vm_id"], vm["vm_id"]);
    for other in [
        json!({"session_id": session, "snapshot_id": taken["id"]}),
        json!({"session_id": session, "volumes": [{"volume_id": volume, "mount_path": "/more", "mode": "ro"}]}),
    ] {
        let refused = client.post("/v1/vms", &other).await?;
        assert_eq!(refused.status, 409, "{refused:?}");
        assert!(refused.detail().contains(&id), "{}", refused.detail());
    }
    // When it has ended, the session's next one is what is asked for.
    client.delete(&format!("/v1/vms/{id}")).await?;
    let next = json!({"session_id": session, "snapshot_id": taken["id"]});
    let next = client.post("/v1/vms", &next).await?;
    assert_eq!(next.status, 200, "{next:?}");
    assert_eq!(next.json()["snapshot_id"], taken["id"]);
    Ok(())
}

async fn one_mount_writes_and_many_read(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let of =
        |mode: &str| json!({"volumes": [{"volume_id": volume, "mount_path": "/d", "mode": mode}]});
    let writer = text(&vm_with(&client, &of("rw")).await?["vm_id"]);
    for _ in 0..3 {
        vm_with(&client, &of("ro")).await?;
    }
    let refused = client.post("/v1/vms", &of("rw")).await?;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.detail().contains(&writer), "{}", refused.detail());
    let other = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let body = json!({"volume_id": volume, "mount_path": "/x"});
    assert_eq!(mount(&client, &other, body.clone()).await?.status, 409);
    // Two mounts in one VM are two writers as well.
    assert_eq!(mount(&client, &writer, body.clone()).await?.status, 409);
    let read = json!({"volume_id": volume, "mount_path": "/x", "mode": "ro"});
    assert_eq!(mount(&client, &writer, read).await?.status, 200);
    let ambiguous = client
        .delete(&format!("/v1/vms/{writer}/volumes/{volume}"))
        .await?;
    assert_eq!(ambiguous.status, 422);
    assert!(
        ambiguous.detail().contains("/d, /x"),
        "{}",
        ambiguous.detail()
    );
    platform.node.end(&writer, Ending::Crashed);
    let path = format!("/v1/vms/{writer}");
    eventually(&client, &format!("{path}/volumes"), |list| {
        *list == json!([])
    })
    .await?;
    assert_eq!(mount(&client, &other, body).await?.status, 200);
    Ok(())
}

async fn of_two_writers_one_gets_the_volume(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let body = json!({"volumes": [{"volume_id": volume, "mount_path": "/d"}]});
    let running = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let (first, second, third) = tokio::join!(
        client.post("/v1/vms", &body),
        client.post("/v1/vms", &body),
        mount(
            &client,
            &running,
            json!({"volume_id": volume, "mount_path": "/d"})
        )
    );
    let mut statuses = [first?.status, second?.status, third?.status].map(|status| status.as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409]);
    Ok(())
}

async fn mounts_are_refused_that_cannot_be(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let vm = vm_with(&client, &json!({})).await?;
    let (id, session) = (text(&vm["vm_id"]), text(&vm["session_id"]));
    let body = |path: &str| json!({"volume_id": volume, "mount_path": path, "mode": "ro"});
    for path in ["", "/", "data", "/a/../b", "/proc/x", "/dev", "/a//b"] {
        let answer = mount(&client, &id, body(path)).await?;
        assert_eq!(answer.status, 422, "{path}");
        assert!(
            answer.detail().starts_with("mount_path"),
            "{}",
            answer.detail()
        );
    }
    let with = |key: &str, value: &str| {
        let mut body = body("/d");
        body[key] = json!(value);
        body
    };
    assert_eq!(mount(&client, &id, with("mode", "x")).await?.status, 422);
    let mut written = with("checkpoint_id", "latest");
    written["mode"] = json!("rw");
    assert_eq!(mount(&client, &id, written).await?.status, 422);
    let none = mount(&client, &id, with("checkpoint_id", "latest")).await?;
    assert_eq!(none.status, 409);
    assert!(
        none.detail().contains("no checkpoint yet"),
        "{}",
        none.detail()
    );
    assert_eq!(
        mount(&client, &id, with("checkpoint_id", "ckpt_x"))
            .await?
            .status,
        404
    );
    assert_eq!(
        mount(&client, &id, with("volume_id", "vol_x"))
            .await?
            .status,
        404
    );
    assert_eq!(mount(&client, "vm_x", body("/d")).await?.status, 404);
    assert_eq!(mount(&client, &id, body("/d")).await?.status, 200);
    for path in ["/d", "/d/x"] {
        assert_eq!(mount(&client, &id, body(path)).await?.status, 409, "{path}");
    }
    // What the node refuses is not on record.
    client.upload(&session, "/file", false, b"x").await?;
    assert_eq!(mount(&client, &id, body("/file")).await?.status, 422);
    platform.node.fail("mount_volume", 1);
    assert_eq!(mount(&client, &id, body("/e")).await?.status, 500);
    let path = format!("/v1/vms/{id}/volumes");
    assert_eq!(
        client.get(&path).await?.json().as_array().map(Vec::len),
        Some(1)
    );
    let stranger = platform.stranger("b@example.com").await?;
    let theirs = volume_of(&stranger, "theirs").await?;
    let foreign = json!({"volumes": [{"volume_id": theirs, "mount_path": "/d"}]});
    assert_eq!(client.post("/v1/vms", &foreign).await?.status, 404);
    client.delete(&format!("/v1/vms/{id}")).await?;
    assert_eq!(mount(&client, &id, body("/f")).await?.status, 409);
    assert_eq!(
        client.delete(&format!("{path}/{volume}")).await?.status,
        404
    );
    Ok(())
}

async fn what_is_in_use_is_not_taken_out(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let volumes = json!([{"volume_id": volume, "mount_path": "/d"}]);
    let vm = vm_with(&client, &json!({"volumes": volumes})).await?;
    let (id, session) = (text(&vm["vm_id"]), text(&vm["session_id"]));
    client.upload(&session, "/holds-mounts", false, b"").await?;
    let path = format!("/v1/vms/{id}/volumes");
    let refused = client.delete(&format!("{path}/{volume}")).await?;
    assert_eq!(refused.status, 409);
    assert!(
        refused.detail().contains("process 42"),
        "{}",
        refused.detail()
    );
    assert_eq!(client.get(&path).await?.json()[0]["status"], "mounted");
    Ok(())
}

async fn without_waiting_the_answer_comes_at_once(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let path = format!("/v1/vms/{vm}/volumes");
    platform.node.hold("mount_volume", Some("mounting"));
    platform.node.hold("unmount_volume", Some("unmounting"));
    let body = json!({"volume_id": volume, "mount_path": "/d"});
    let early = client.post(&format!("{path}?wait=false"), &body).await?;
    assert_eq!(early.json()["status"], "mounting");
    assert_eq!(
        client
            .delete(&format!("/v1/volumes/{volume}"))
            .await?
            .status,
        409
    );
    platform.node.open_gate("mounting");
    eventually(&client, &path, |list| list[0]["status"] == "mounted").await?;
    let early = client
        .delete(&format!("{path}/{volume}?wait=false"))
        .await?;
    assert_eq!(early.json()["status"], "unmounting");
    platform.node.open_gate("unmounting");
    eventually(&client, &path, |list| *list == json!([])).await?;
    Ok(())
}

async fn a_session_keeps_its_volumes(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let volume = volume_of(&client, "data").await?;
    let volumes = json!([{"volume_id": volume, "mount_path": "/d"}]);
    let body = json!({"volumes": volumes});
    let vm = vm_with(&client, &body).await?;
    let session = text(&vm["session_id"]);
    upload_into(&client, &volume, &[("path", "a")], b"kept").await?;
    let expire = async |id: &str| {
        platform.node.end(id, Ending::Expired);
        let path = format!("/v1/vms/{id}/volumes");
        eventually(&client, &path, |list| *list == json!([])).await
    };
    expire(&text(&vm["vm_id"])).await?;
    assert_eq!(execute(&client, &session, "echo").await?.status, 200);
    let next = crate::vm_of(&client, &session).await?;
    assert_eq!(
        platform.node.file(&next, "/d/a").as_deref(),
        Some(&b"kept"[..])
    );
    // Where another VM writes the volume meanwhile, the session says so.
    expire(&next).await?;
    let taker = text(&vm_with(&client, &body).await?["vm_id"]);
    let refused = execute(&client, &session, "echo").await?;
    assert_eq!(refused.status, 409);
    assert!(refused.detail().contains(&taker), "{}", refused.detail());
    Ok(())
}

async fn mounts_are_brought_in_line_at_a_start(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let (one, two) = (
        volume_of(&client, "one").await?,
        volume_of(&client, "two").await?,
    );
    let volumes =
        json!([{"volume_id": one, "mount_path": "/one"}, {"volume_id": two, "mount_path": "/two"}]);
    let vm = text(&vm_with(&client, &json!({"volumes": volumes})).await?["vm_id"]);
    let path = format!("/v1/vms/{vm}/volumes");
    eventually(&client, &path, |list| list[1]["status"] == "mounted").await?;
    // As after an end in the middle of taking one out, and before the row of the other was written.
    platform
        .database
        .execute(
            "UPDATE mounts SET status = 'unmounting' WHERE path = '/one'",
            vec![],
        )
        .await?;
    platform
        .database
        .execute("DELETE FROM mounts WHERE path = '/two'", vec![])
        .await?;
    let recorded = instavm_control::mount::service::recorded(&platform.database).await?;
    assert_eq!(recorded.len(), 1);
    assert!(!recorded[0].is_mounted);
    let platform = platform.restart().await?;
    let client = platform.client();
    assert_eq!(client.get(&path).await?.json(), json!([]));
    let vm_id = instavm_node_api::VmId(vm);
    let mounts = instavm_node_api::Volumes::mounts(&*platform.node, &vm_id).await?;
    assert!(mounts.is_empty(), "{mounts:?}");
    Ok(())
}
