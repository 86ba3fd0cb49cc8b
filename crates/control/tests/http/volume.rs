use crate::{patch, quick, text, upload_into, vm_with, volume_of};
use anyhow::Result;
use axum::http::Method;
use instavm_control::Settings;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    a_volume_is_made_changed_and_deleted,
    names_and_quotas_are_checked,
    of_two_volumes_of_a_name_one_is_made,
    a_quota_shrinks_down_to_what_is_held,
    files_come_and_go_without_a_mount,
    paths_that_lead_out_and_wrong_uploads_are_refused,
    what_is_mounted_stays,
    of_two_deletions_one_finds_it_gone,
    space_and_numbers_are_limited,
    what_fails_leaves_nothing,
    records_and_node_are_brought_in_line,
);

async fn a_volume_is_made_changed_and_deleted(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let body = json!({"name": "data", "quota_bytes": 1 << 20, "x": 1});
    let answer = client.post("/v1/volumes", &body).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let volume = answer.json();
    let id = text(&volume["id"]);
    assert!(id.starts_with("vol_") && !id.contains(':'));
    assert_eq!(volume["status"], "available");
    assert_eq!(volume["used_bytes"], 0);
    assert_eq!(platform.node.quota(&id), Some(1 << 20));
    upload_into(&client, &id, &[("path", "a")], &[7; 1_000]).await?;
    let path = format!("/v1/volumes/{id}");
    let stale = client
        .get(&format!("{path}?refresh_usage=false"))
        .await?
        .json();
    assert_eq!(stale["used_bytes"], 0);
    let fresh = client
        .get(&format!("{path}?refresh_usage=true"))
        .await?
        .json();
    assert_eq!(
        (&fresh["used_bytes"], &fresh["charged_bytes"]),
        (&json!(1_000), &json!(1_000))
    );
    let listed = client.get("/v1/volumes?refresh_usage=true").await?.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["used_bytes"], 1_000);
    let changed = patch(
        &client,
        &path,
        &json!({"name": "data2", "quota_bytes": 2 << 20}),
    )
    .await?;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.json()["name"], "data2");
    assert_eq!(platform.node.quota(&id), Some(2 << 20));
    assert_eq!(
        client.delete(&path).await?.json(),
        json!({"status": "deleted", "id": id})
    );
    assert_eq!(client.get(&path).await?.status, 404);
    assert_eq!(client.delete(&path).await?.status, 404);
    assert_eq!(patch(&client, &path, &json!({})).await?.status, 404);
    assert!(platform.node.volume_ids().is_empty());
    assert_eq!(client.get("/v1/volumes").await?.json(), json!([]));
    Ok(())
}

async fn names_and_quotas_are_checked(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    for (body, field) in [
        (json!({"quota_bytes": 1 << 20}), "name"),
        (json!({"name": "", "quota_bytes": 1 << 20}), "name"),
        (json!({"name": "a/b", "quota_bytes": 1 << 20}), "name"),
        (
            json!({"name": "x".repeat(65), "quota_bytes": 1 << 20}),
            "name",
        ),
        (json!({"name": "a"}), "quota_bytes"),
        (json!({"name": "a", "quota_bytes": 1}), "quota_bytes"),
        (json!({"name": "a", "quota_bytes": -1}), "quota_bytes"),
        (
            json!({"name": "a", "quota_bytes": 1_i64 << 60}),
            "quota_bytes",
        ),
        (json!({"name": "a", "quota_bytes": "1"}), "quota_bytes"),
    ] {
        let answer = client.post("/v1/volumes", &body).await?;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert!(answer.detail().starts_with(field), "{}", answer.detail());
    }
    let first = volume_of(&client, "first").await?;
    volume_of(&client, "second").await?;
    let path = format!("/v1/volumes/{first}");
    assert_eq!(
        patch(&client, &path, &json!({"name": "second"}))
            .await?
            .status,
        409
    );
    assert_eq!(
        patch(&client, &path, &json!({"name": "-"})).await?.status,
        422
    );
    assert_eq!(
        patch(&client, &path, &json!({"quota_bytes": 5}))
            .await?
            .status,
        422
    );
    assert_eq!(
        patch(&client, &path, &json!({"name": "first"}))
            .await?
            .status,
        200
    );
    // Another account's names are its own.
    let other = platform.stranger("b@example.com").await?;
    volume_of(&other, "first").await?;
    let again = json!({"name": "first", "quota_bytes": 1 << 20});
    assert_eq!(client.post("/v1/volumes", &again).await?.status, 409);
    Ok(())
}

async fn of_two_volumes_of_a_name_one_is_made(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.hold("create_volume", Some("making"));
    let body = json!({"name": "one", "quota_bytes": 1 << 20});
    let opening = async {
        platform.node.gate_occupied("making", 1).await;
        platform.node.open_gate("making");
    };
    let (first, second, ()) = tokio::join!(
        client.post("/v1/volumes", &body),
        client.post("/v1/volumes", &body),
        opening
    );
    let mut statuses = [first?.status.as_u16(), second?.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    assert_eq!(platform.node.volume_ids().len(), 1);
    Ok(())
}

async fn a_quota_shrinks_down_to_what_is_held(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{id}");
    upload_into(&client, &id, &[("path", "a")], &vec![7; 2 << 20]).await?;
    client
        .post(&format!("{path}/checkpoints"), &json!({}))
        .await?;
    let refused = patch(&client, &path, &json!({"quota_bytes": 3 << 20})).await?;
    assert_eq!(refused.status, 409);
    for number in ["4194304", "2097152", "3145728"] {
        assert!(refused.detail().contains(number), "{}", refused.detail());
    }
    assert_eq!(platform.node.quota(&id), Some(10 << 20));
    let changed = patch(&client, &path, &json!({"quota_bytes": 5 << 20})).await?;
    assert_eq!(changed.json()["quota_bytes"], 5 << 20);
    let full = upload_into(&client, &id, &[("path", "b")], &vec![7; 2 << 20]).await?;
    assert_eq!(full.status, 413);
    assert!(full.detail().contains("quota"), "{}", full.detail());
    // What the node could not set is as it was.
    platform.node.fail("limit_volume", 1);
    let failed = patch(&client, &path, &json!({"quota_bytes": 6 << 20})).await?;
    assert_eq!(failed.status, 500);
    assert_eq!(client.get(&path).await?.json()["quota_bytes"], 5 << 20);
    Ok(())
}

async fn files_come_and_go_without_a_mount(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = volume_of(&client, "data").await?;
    let files = format!("/v1/volumes/{id}/files");
    let content: Vec<u8> = (0..=255u8).cycle().take(10_001).collect();
    let parts = [("path", "docs/a.bin"), ("overwrite", "false")];
    let answer = upload_into(&client, &id, &parts, &content).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["size"], 10_001);
    let again = upload_into(&client, &id, &parts, b"x").await?;
    assert_eq!(again.status, 409);
    let parts = [("overwrite", "true"), ("path", "docs/empty")];
    for content in [&b"x"[..], b""] {
        assert_eq!(
            upload_into(&client, &id, &parts, content).await?.status,
            200
        );
    }
    upload_into(&client, &id, &[("path", "top")], b"t").await?;

    let download = format!("{files}/download");
    let got = client
        .post(&download, &json!({"path": "docs/a.bin"}))
        .await?
        .json();
    assert_eq!(got["filename"], "a.bin");
    assert_eq!(got["size"], 10_001);
    let decoded = base64(&text(&got["content"]));
    assert_eq!(decoded, content);
    let empty = client
        .post(&download, &json!({"path": "docs/empty"}))
        .await?
        .json();
    assert_eq!((&empty["content"], &empty["size"]), (&json!(""), &json!(0)));
    assert_eq!(
        client
            .post(&download, &json!({"path": "none"}))
            .await?
            .status,
        404
    );

    let paths = |list: Value| -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter().map(|file| text(&file["path"])).collect()
    };
    let all = client
        .get(&format!("{files}?prefix=&recursive=true&limit=1000"))
        .await?
        .json();
    assert_eq!(all[0]["size"], 10_001);
    assert_eq!(paths(all), ["docs/a.bin", "docs/empty", "top"]);
    let top = client
        .get(&format!("{files}?prefix=&recursive=false"))
        .await?
        .json();
    assert_eq!(top[0]["is_dir"], true);
    assert_eq!(paths(top), ["docs", "top"]);
    let some = client
        .get(&format!("{files}?prefix=docs/&limit=1"))
        .await?
        .json();
    assert_eq!(paths(some), ["docs/a.bin"]);
    assert_eq!(client.get(&format!("{files}?limit=0")).await?.status, 422);
    let gone = client.delete(&format!("{files}?path=docs%2Fa.bin")).await?;
    assert_eq!(gone.status, 200);
    assert!(platform.node.volume_file(&id, "docs/a.bin").is_none());
    assert_eq!(
        client
            .delete(&format!("{files}?path=docs%2Fa.bin"))
            .await?
            .status,
        404
    );
    assert_eq!(client.delete(&files).await?.status, 422);
    Ok(())
}

fn base64(text: &str) -> Vec<u8> {
    const CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = CHARACTERS.iter().position(|one| *one == byte).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    out
}

async fn paths_that_lead_out_and_wrong_uploads_are_refused(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        upload_limit: 1 << 20,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let id = volume_of(&client, "data").await?;
    let files = format!("/v1/volumes/{id}/files");
    for path in ["../x", "/etc/passwd", "a/../../x", ""] {
        let answer = upload_into(&client, &id, &[("path", path)], b"x").await?;
        assert_eq!(answer.status, 422, "{path}: {answer:?}");
        let download = client
            .post(&format!("{files}/download"), &json!({"path": path}))
            .await?;
        assert_eq!(download.status, 422, "{path}");
        let query = path.replace('/', "%2F");
        assert_eq!(
            client
                .delete(&format!("{files}?path={query}"))
                .await?
                .status,
            422
        );
        if !path.is_empty() {
            assert_eq!(
                client.get(&format!("{files}?prefix={query}")).await?.status,
                422
            );
        }
    }
    let late = upload_into(&client, &id, &[], b"x").await?;
    assert_eq!(late.status, 422);
    assert!(
        late.detail().contains("before the part file"),
        "{}",
        late.detail()
    );
    let wrong = upload_into(&client, &id, &[("path", "a"), ("overwrite", "maybe")], b"x").await?;
    assert_eq!(wrong.status, 422);
    let long = upload_into(&client, &id, &[("path", "a")], &vec![0; (1 << 20) + 1]).await?;
    assert_eq!(long.status, 413);
    let plain = client
        .call(Method::POST, &format!("{files}/upload"), "text/plain", "x")
        .await?;
    assert_eq!(plain.status, 400);
    assert!(platform.node.volume_file(&id, "a").is_none());
    let unknown = upload_into(&client, "vol_none", &[("path", "a")], b"x").await?;
    assert_eq!(unknown.status, 404);
    Ok(())
}

async fn what_is_mounted_stays(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{id}");
    let volumes = json!([{"volume_id": id, "mount_path": "/data"}]);
    let vm = text(&vm_with(&client, &json!({"volumes": volumes})).await?["vm_id"]);
    let shown = client.get(&path).await?.json();
    assert_eq!(shown["status"], "in_use");
    assert_eq!(shown["mounted_by"], json!([vm]));
    let refused = client.delete(&path).await?;
    assert_eq!(refused.status, 409);
    assert!(refused.detail().contains(&vm), "{}", refused.detail());
    client.delete(&format!("/v1/vms/{vm}")).await?;
    assert_eq!(client.get(&path).await?.json()["status"], "available");
    assert_eq!(client.delete(&path).await?.status, 200);
    Ok(())
}

async fn of_two_deletions_one_finds_it_gone(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = volume_of(&client, "data").await?;
    let path = format!("/v1/volumes/{id}");
    platform.node.hold("delete_volume", Some("deleting"));
    let volumes = json!([{"volume_id": id, "mount_path": "/data"}]);
    let opening = async {
        platform.node.gate_occupied("deleting", 1).await;
        let create = client.post("/v1/vms", &json!({"volumes": volumes})).await?;
        assert_eq!(create.status, 404, "{create:?}");
        // Its name is free already.
        volume_of(&client, "data").await?;
        platform.node.open_gate("deleting");
        anyhow::Ok(())
    };
    let (first, second, opened) = tokio::join!(client.delete(&path), client.delete(&path), opening);
    opened?;
    let mut statuses = [first?.status.as_u16(), second?.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404]);
    assert_eq!(platform.node.volume_ids().len(), 1);
    Ok(())
}

async fn space_and_numbers_are_limited(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        account_disk_bytes: 25 << 20,
        volumes_per_account: 3,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let first = volume_of(&client, "a").await?;
    volume_of(&client, "b").await?;
    let body = json!({"name": "c", "quota_bytes": 10 << 20});
    let refused = client.post("/v1/volumes", &body).await?;
    assert_eq!(refused.status, 403);
    assert!(
        refused.detail().contains("limit is 26214400"),
        "{}",
        refused.detail()
    );
    let path = format!("/v1/volumes/{first}");
    let grown = patch(&client, &path, &json!({"quota_bytes": 16 << 20})).await?;
    assert_eq!(grown.status, 403);
    assert_eq!(platform.node.quota(&first), Some(10 << 20));
    let small = |name: &str| json!({"name": name, "quota_bytes": 1 << 20});
    assert_eq!(client.post("/v1/volumes", &small("c")).await?.status, 200);
    let refused = client.post("/v1/volumes", &small("d")).await?;
    assert_eq!(refused.status, 429);
    assert!(
        refused.detail().contains("limit is 3"),
        "{}",
        refused.detail()
    );
    // Each account has its own.
    volume_of(&platform.stranger("b@example.com").await?, "a").await?;
    Ok(())
}

async fn what_fails_leaves_nothing(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.fail("create_volume", 1);
    let body = json!({"name": "data", "quota_bytes": 1 << 20});
    assert_eq!(client.post("/v1/volumes", &body).await?.status, 500);
    assert_eq!(client.get("/v1/volumes").await?.json(), json!([]));
    let id = volume_of(&client, "data").await?;
    platform.node.fail("delete_volume", 1);
    let late = client.delete(&format!("/v1/volumes/{id}")).await?;
    assert_eq!(late.json()["status"], "deleting");
    assert_eq!(
        client.get("/v1/volumes").await?.json()[0]["status"],
        "deleting"
    );
    let platform = platform.restart().await?;
    let client = platform.client();
    assert_eq!(client.get("/v1/volumes").await?.json(), json!([]));
    assert!(platform.node.volume_ids().is_empty());
    Ok(())
}

async fn records_and_node_are_brought_in_line(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let (lost, cut, stays) = (
        volume_of(&client, "lost").await?,
        volume_of(&client, "cut").await?,
        volume_of(&client, "stays").await?,
    );
    upload_into(&client, &stays, &[("path", "a")], b"kept").await?;
    // As after an end between the row and what it stands for.
    platform
        .database
        .execute(
            "UPDATE volumes SET status = 'creating' WHERE id = $1",
            vec![cut.as_str().into()],
        )
        .await?;
    let recorded = instavm_control::volume::service::recorded(&platform.database).await?;
    assert_eq!(recorded.iter().filter(|one| one.is_available).count(), 2);
    let stopped = platform.stop().await?;
    stopped.node.lose_volume(&lost);
    stopped.node.lose_volume(&cut);
    stopped.node.plant_volume("vol_stray");
    let platform = stopped.start().await?;
    let client = platform.client();
    let mut expected = vec![cut.clone(), stays.clone()];
    expected.sort();
    assert_eq!(platform.node.volume_ids(), expected);
    let status = async |id: &str| -> Result<Value> {
        let shown = client.get(&format!("/v1/volumes/{id}")).await?.json();
        Ok(shown["status"].clone())
    };
    assert_eq!(status(&lost).await?, "failed");
    assert_eq!(status(&cut).await?, "available");
    let kept = platform.node.volume_file(&stays, "a");
    assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
    let used = client
        .post(
            "/v1/vms",
            &json!({"volumes": [{"volume_id": lost, "mount_path": "/d"}]}),
        )
        .await?;
    assert_eq!(used.status, 409);
    assert_eq!(
        client.delete(&format!("/v1/volumes/{lost}")).await?.status,
        200
    );
    Ok(())
}
