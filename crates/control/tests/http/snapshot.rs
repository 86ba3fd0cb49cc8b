use crate::{eventually, execute, quick, text, upload_into, vm_with, volume_of};
use anyhow::Result;
use instavm_control::Settings;
use instavm_node_api::Ending;
use instavm_testkit::{Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    a_snapshot_of_a_vm_is_what_further_vms_start_from,
    a_snapshot_is_built_with_its_steps_and_log,
    builds_that_fail_say_why,
    arguments_of_builds_are_checked,
    builds_are_limited_and_cancelled_by_deletion,
    a_build_goes_on_after_a_restart_and_not_for_ever,
    system_snapshots_are_the_first_accounts_and_everybodys,
    what_is_in_use_stays,
    of_two_deletions_one_finds_it_gone,
    taking_may_be_slow_and_may_fail,
    disks_are_kept_however_a_vm_ends,
    disks_that_ended_while_the_platform_was_away_are_on_record,
    what_was_cut_off_is_settled_at_the_next_start,
    space_and_numbers_are_limited,
    records_and_node_are_brought_in_line,
);

async fn take(client: &Client, vm: &str, name: &str) -> Result<String> {
    let answer = client
        .post(&format!("/v1/vms/{vm}/snapshot"), &json!({"name": name}))
        .await?;
    anyhow::ensure!(answer.status == 200, "no snapshot: {answer:?}");
    Ok(text(&answer.json()["id"]))
}

async fn build(client: &Client, body: &Value) -> Result<String> {
    let answer = client.post("/v1/snapshots", body).await?;
    anyhow::ensure!(answer.status == 200, "no build: {answer:?}");
    assert_eq!(answer.json()["status"], "building");
    Ok(text(&answer.json()["id"]))
}

async fn until(client: &Client, id: &str, status: &str) -> Result<Value> {
    let path = format!("/v1/snapshots/{id}");
    eventually(client, &path, |snapshot| snapshot["status"] == status).await
}

async fn a_snapshot_of_a_vm_is_what_further_vms_start_from(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let (vm_id, session) = (text(&vm["vm_id"]), text(&vm["session_id"]));
    client.upload(&session, "/app/kept", false, b"kept").await?;
    let path = format!("/v1/vms/{vm_id}/snapshot?wait=true");
    let answer = client.post(&path, &json!({"name": "deploy/app"})).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let taken = answer.json();
    let id = text(&taken["id"]);
    assert!(id.starts_with("snap_") && id.len() == 25);
    assert_eq!(taken["snapshot_id"], taken["id"]);
    assert_eq!(taken["status"], "ready");
    assert_eq!(taken["type"], "user");
    assert_eq!(taken["is_public"], false);
    assert_eq!(taken["pause_ms"], 4.0);
    assert_eq!(taken["size_bytes"], 4);
    assert_eq!(taken["vm_id"], json!(vm_id));
    let shown = client.get(&format!("/v1/snapshots/{id}")).await?.json();
    assert_eq!(shown["name"], "deploy/app");
    let again = take(&client, &vm_id, "deploy/app").await?;
    assert_ne!(again, id, "names need not be unique");
    let listed = client.get("/v1/snapshots?type=user").await?.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(listed[0]["id"], json!(again));
    assert!(listed[0].get("log").is_none());
    assert_eq!(client.get("/v1/snapshots?type=x").await?.status, 422);

    let other = vm_with(&client, &json!({"snapshot_id": id})).await?;
    assert_eq!(other["snapshot_id"], json!(id));
    let file = platform.node.file(&text(&other["vm_id"]), "/app/kept");
    assert_eq!(file.as_deref(), Some(&b"kept"[..]));
    // A new VM of the session starts from the same.
    platform.node.end(&text(&other["vm_id"]), Ending::Expired);
    let session = text(&other["session_id"]);
    assert_eq!(execute(&client, &session, "echo").await?.status, 200);
    let next = crate::vm_of(&client, &session).await?;
    assert_ne!(json!(next), other["vm_id"]);
    let file = platform.node.file(&next, "/app/kept");
    assert_eq!(file.as_deref(), Some(&b"kept"[..]));
    let unknown = client
        .post("/v1/vms", &json!({"snapshot_id": "snap_x"}))
        .await?;
    assert_eq!(unknown.status, 404);
    Ok(())
}

async fn a_snapshot_is_built_with_its_steps_and_log(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let body = json!({
        "oci_image": "registry.example.com:5000/team/app:1", "name": "app", "vcpu_count": 4, "memory_mb": 2_048,
        "build_args": {
            "extra_apt_packages": "git curl", "extra_pip_packages": "pandas==2.2.1", "extra_npm_packages": "typescript",
            "git_clone_url": "https://example.com/a/b.git", "git_clone_branch": "main", "disk_size_gb": 3,
            "post_build_cmd": "echo built\ngate end", "envs": {"BOTH": "build", "MINE": 1}, "unknown": 1,
        },
    });
    let id = build(&client, &body).await?;
    platform.node.gate_occupied("end", 1).await;
    let path = format!("/v1/snapshots/{id}");
    let under_way = eventually(&client, &path, |snapshot| snapshot["step"] == "git").await?;
    assert_eq!(under_way["status"], "building");
    assert!(text(&under_way["log"]).contains("installing git\n"));
    let early = client.post("/v1/vms", &json!({"snapshot_id": id})).await?;
    assert_eq!(early.status, 409);
    assert!(early.detail().contains("building"), "{}", early.detail());
    platform.node.open_gate("end");
    let ready = until(&client, &id, "ready").await?;
    assert!(text(&ready["log"]).ends_with("built\n"));
    assert!(text(&ready["digest"]).starts_with("sha256:"));
    assert_eq!(ready["oci_image"], body["oci_image"]);
    assert_eq!(ready["snapshot_type"], "user");
    assert_eq!(ready["config"]["workdir"], "/srv");
    assert_eq!(ready["config"]["entrypoint"], json!(["/entry"]));
    assert_eq!(ready["last_error"], Value::Null);
    assert_eq!(ready["step"], Value::Null);

    let vm = vm_with(
        &client,
        &json!({"snapshot_id": id, "env": {"OWN": "o", "BOTH": "vm"}}),
    )
    .await?;
    let spec = platform.node.spec(&text(&vm["vm_id"])).unwrap();
    assert_eq!(spec.workdir.as_deref(), Some("/srv"));
    assert_eq!(spec.env["BOTH"], "vm");
    assert_eq!(spec.env["MINE"], "1");
    let session = text(&vm["session_id"]);
    let said = execute(&client, &session, "env OWN\nenv BOTH\nenv MINE").await?;
    assert_eq!(said.json()["stdout"], "o\nvm\n1\n");
    // A snapshot of that VM is run as the image was.
    let taken = take(&client, &text(&vm["vm_id"]), "second").await?;
    let shown = client.get(&format!("/v1/snapshots/{taken}")).await?.json();
    assert_eq!(shown["config"]["workdir"], "/srv");
    assert_eq!(shown["config"]["env"]["MINE"], "1");
    assert!(shown["config"]["env"].get("OWN").is_none());
    Ok(())
}

async fn builds_that_fail_say_why(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let id = build(&client, &json!({"oci_image": "nowhere/app"})).await?;
    let failed = until(&client, &id, "failed").await?;
    assert_eq!(failed["last_error"], "pull: nowhere/app: no such image");
    assert_eq!(failed["step"], "pull");
    let refused = client.post("/v1/vms", &json!({"snapshot_id": id})).await?;
    assert_eq!(refused.status, 409);
    let args = json!({"post_build_cmd": "echo said\nexit 3"});
    let id = build(&client, &json!({"oci_image": "debian", "build_args": args})).await?;
    let failed = until(&client, &id, "failed").await?;
    assert_eq!(failed["last_error"], "command: it ended with exit code 3");
    assert!(text(&failed["log"]).contains("said"));
    // What fails on the platform's side is tried again, and not for ever.
    platform.node.fail("build_snapshot", 2);
    let id = build(&client, &json!({"oci_image": "debian"})).await?;
    until(&client, &id, "ready").await?;
    platform.node.fail("build_snapshot", 3);
    let id = build(&client, &json!({"oci_image": "debian"})).await?;
    let failed = until(&client, &id, "failed").await?;
    assert!(text(&failed["last_error"]).contains("on the platform's side"));
    assert_eq!(platform.node.snapshot_ids().len(), 1);
    let path = format!("/v1/snapshots/{id}");
    assert_eq!(client.delete(&path).await?.status, 200);
    assert_eq!(client.get(&path).await?.status, 404);
    Ok(())
}

async fn arguments_of_builds_are_checked(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let args =
        |name: &str, value: Value| json!({"oci_image": "debian", "build_args": {name: value}});
    let cases = [
        (json!({}), "oci_image"),
        (json!({"oci_image": ""}), "oci_image"),
        (json!({"oci_image": "-v /:/host"}), "oci_image"),
        (json!({"oci_image": "debian", "memory_mb": 1}), "memory_mb"),
        (
            json!({"oci_image": "debian", "vcpu_count": 99}),
            "vcpu_count",
        ),
        (json!({"oci_image": "debian", "type": "mine"}), "type"),
        (
            json!({"oci_image": "debian", "name": "x".repeat(300)}),
            "name",
        ),
        (
            json!({"oci_image": "debian", "build_args": []}),
            "build_args",
        ),
        (
            args("extra_apt_packages", json!("git -o=x")),
            "build_args.extra_apt_packages",
        ),
        (
            args("extra_pip_packages", json!("--index-url=x")),
            "build_args.extra_pip_packages",
        ),
        (
            args("extra_npm_packages", json!("a;b")),
            "build_args.extra_npm_packages",
        ),
        (
            args("extra_apt_packages", json!(["git"])),
            "build_args.extra_apt_packages",
        ),
        (
            args("git_clone_url", json!("--upload-pack=x")),
            "build_args.git_clone_url",
        ),
        (
            args("git_clone_url", json!("file:///etc")),
            "build_args.git_clone_url",
        ),
        (
            args("git_clone_branch", json!("main")),
            "build_args.git_clone_branch",
        ),
        (args("disk_size_gb", json!(0)), "build_args.disk_size_gb"),
        (args("disk_size_gb", json!(11)), "build_args.disk_size_gb"),
        (
            args("post_build_cmd", json!("x".repeat(70_000))),
            "build_args.post_build_cmd",
        ),
        (args("envs", json!({"": "x"})), "build_args.envs"),
    ];
    for (body, field) in cases {
        let answer = client.post("/v1/snapshots", &body).await?;
        assert_eq!(answer.status, 422, "{field}: {answer:?}");
        assert!(answer.detail().starts_with(field), "{}", answer.detail());
    }
    assert_eq!(client.get("/v1/snapshots").await?.json(), json!([]));
    Ok(())
}

async fn builds_are_limited_and_cancelled_by_deletion(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        builds_per_account: 2,
        builds_at_once: 1,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    platform.node.hold("build_snapshot", Some("build"));
    let body = json!({"oci_image": "debian"});
    let first = build(&client, &body).await?;
    platform.node.gate_occupied("build", 1).await;
    let second = build(&client, &body).await?;
    let waiting = client.get(&format!("/v1/snapshots/{second}")).await?.json();
    assert_eq!(waiting["step"], "queue");
    let refused = client.post("/v1/snapshots", &body).await?;
    assert_eq!(refused.status, 429);
    assert!(
        refused.detail().contains("limit is 2"),
        "{}",
        refused.detail()
    );
    // One that is cut off lets the next one begin, and leaves nothing.
    assert_eq!(
        client
            .delete(&format!("/v1/snapshots/{first}"))
            .await?
            .status,
        200
    );
    platform.node.gate_occupied("build", 2).await;
    platform.node.open_gate("build");
    until(&client, &second, "ready").await?;
    assert_eq!(platform.node.snapshot_ids(), [second]);
    assert_eq!(
        client.get(&format!("/v1/snapshots/{first}")).await?.status,
        404
    );
    Ok(())
}

async fn a_build_goes_on_after_a_restart_and_not_for_ever(kind: DatabaseKind) -> Result<()> {
    let mut platform = TestPlatform::with(kind, quick()).await?;
    platform.node.hold("build_snapshot", Some("build"));
    let id = build(&platform.client(), &json!({"oci_image": "debian"})).await?;
    let path = format!("/v1/snapshots/{id}");
    for times in 1..=2 {
        platform.node.gate_occupied("build", times).await;
        platform = platform.restart().await?;
        let shown = platform.client().get(&path).await?.json();
        assert_eq!(shown["status"], "building");
    }
    platform.node.open_gate("build");
    until(&platform.client(), &id, "ready").await?;

    platform.node.hold("build_snapshot", Some("never"));
    let id = build(&platform.client(), &json!({"oci_image": "debian"})).await?;
    for times in 1..=3 {
        platform.node.gate_occupied("never", times).await;
        platform = platform.restart().await?;
    }
    let failed = until(&platform.client(), &id, "failed").await?;
    assert!(text(&failed["last_error"]).contains("begun 3 times"));
    Ok(())
}

async fn system_snapshots_are_the_first_accounts_and_everybodys(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, other) = (platform.client(), platform.stranger("b@example.com").await?);
    let envs = json!({"envs": {"SECRET": "hidden"}});
    let body = json!({"oci_image": "debian", "type": "system", "name": "base", "build_args": envs});
    let refused = other.post("/v1/snapshots", &body).await?;
    assert_eq!(refused.status, 403, "{refused:?}");
    let id = build(&client, &body).await?;
    until(&client, &id, "ready").await?;
    for path in ["/v1/snapshots?type=system", "/v1/snapshots"] {
        let listed = other.get(path).await?;
        assert_eq!(listed.json()[0]["id"], json!(id));
        assert_eq!(listed.json()[0]["is_public"], true);
        assert!(!String::from_utf8_lossy(&listed.body).contains("hidden"));
    }
    assert_eq!(
        other.get("/v1/snapshots?type=user").await?.json(),
        json!([])
    );
    let shown = other.get(&format!("/v1/snapshots/{id}")).await?;
    assert!(!String::from_utf8_lossy(&shown.body).contains("hidden"));
    let vm = vm_with(&other, &json!({"snapshot_id": id})).await?;
    assert_eq!(
        other.delete(&format!("/v1/snapshots/{id}")).await?.status,
        403
    );
    let held = client.delete(&format!("/v1/snapshots/{id}")).await?;
    assert_eq!(held.status, 409);
    assert!(
        !held.detail().contains(&text(&vm["vm_id"])),
        "{}",
        held.detail()
    );
    Ok(())
}

async fn what_is_in_use_stays(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let id = take(&client, &vm, "base").await?;
    let path = format!("/v1/snapshots/{id}");
    let user = text(&vm_with(&client, &json!({"snapshot_id": id})).await?["vm_id"]);
    let held = client.delete(&path).await?;
    assert_eq!(held.status, 409);
    assert!(held.detail().contains(&user), "{}", held.detail());
    // One that is being made holds it as well.
    client.delete(&format!("/v1/vms/{user}")).await?;
    platform.node.hold_creations(Some("making"));
    let making = client
        .post("/v1/vms?wait=false", &json!({"snapshot_id": id}))
        .await?;
    assert_eq!(making.json()["status"], "creating");
    assert_eq!(client.delete(&path).await?.status, 409);
    platform.node.open_gate("making");
    let vm_path = format!("/v1/vms/{}", text(&making.json()["vm_id"]));
    eventually(&client, &vm_path, |vm| vm["status"] == "active").await?;
    client.delete(&vm_path).await?;
    assert_eq!(client.delete(&path).await?.status, 200);
    assert!(platform.node.snapshot_ids().is_empty());
    // Its sessions say so when they would start from it again.
    let session = text(&making.json()["session_id"]);
    let answer = client
        .post("/v1/vms", &json!({"session_id": session}))
        .await?;
    assert_eq!(answer.status, 409);
    assert!(answer.detail().contains(&id), "{}", answer.detail());
    Ok(())
}

async fn of_two_deletions_one_finds_it_gone(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let id = take(&client, &vm, "").await?;
    let path = format!("/v1/snapshots/{id}");
    platform.node.hold("delete_snapshot", Some("deleting"));
    let start = json!({"snapshot_id": id});
    let opening = async {
        platform.node.gate_occupied("deleting", 1).await;
        // It can neither be seen nor be started from while it is being deleted.
        assert_eq!(client.get(&path).await?.status, 404);
        assert_eq!(client.post("/v1/vms", &start).await?.status, 404);
        platform.node.open_gate("deleting");
        anyhow::Ok(())
    };
    let (first, second, opened) = tokio::join!(client.delete(&path), client.delete(&path), opening);
    opened?;
    let mut statuses = [first?.status.as_u16(), second?.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404]);
    assert!(platform.node.snapshot_ids().is_empty());
    Ok(())
}

async fn taking_may_be_slow_and_may_fail(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        provision_wait: std::time::Duration::from_millis(50),
        ..quick()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let vm = client.post("/v1/vms?wait=false", &json!({})).await?.json();
    let path = format!("/v1/vms/{}", text(&vm["vm_id"]));
    eventually(&client, &path, |vm| vm["status"] == "active").await?;
    let path = format!("{path}/snapshot");
    platform.node.hold("take_snapshot", Some("taking"));
    let slow = client.post(&path, &json!({})).await?;
    assert_eq!(slow.status, 504, "{slow:?}");
    let early = client
        .post(&format!("{path}?wait=false"), &json!({}))
        .await?;
    assert_eq!(early.json()["status"], "creating");
    let id = text(&early.json()["id"]);
    assert_eq!(
        client.delete(&format!("/v1/snapshots/{id}")).await?.status,
        409
    );
    platform.node.open_gate("taking");
    until(&client, &id, "ready").await?;
    platform.node.hold("take_snapshot", None);

    platform.node.fail("take_snapshot", 1);
    assert_eq!(client.post(&path, &json!({})).await?.status, 500);
    let failed = client.get("/v1/snapshots").await?.json();
    assert_eq!(failed[0]["status"], "failed");
    client
        .delete(&format!("/v1/vms/{}", text(&vm["vm_id"])))
        .await?;
    assert_eq!(client.post(&path, &json!({})).await?.status, 409);
    let unknown = client.post("/v1/vms/vm_none/snapshot", &json!({})).await?;
    assert_eq!(unknown.status, 404);
    Ok(())
}

async fn disks_are_kept_however_a_vm_ends(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    for (name, how) in [
        ("a", "delete"),
        ("b", "kill"),
        ("c", "expiry"),
        ("d", "crash"),
    ] {
        let body = json!({"snapshot_on_terminate": true, "snapshot_name": name});
        let vm = vm_with(&client, &body).await?;
        assert_eq!(vm["snapshot_on_terminate"], true);
        let (id, session) = (text(&vm["vm_id"]), text(&vm["session_id"]));
        client
            .upload(&session, "/app/f", false, name.as_bytes())
            .await?;
        match how {
            "delete" => drop(client.delete(&format!("/v1/vms/{id}")).await?),
            "kill" => drop(
                client
                    .post("/kill", &json!({"session_id": session}))
                    .await?,
            ),
            "expiry" => platform.node.end(&id, Ending::Expired),
            _ => platform.node.end(&id, Ending::Crashed),
        }
        let named = |list: &Value| list[0]["name"] == name && list[0]["status"] == "ready";
        let listed = eventually(&client, "/v1/snapshots", named).await?;
        assert_eq!(listed[0]["vm_id"], json!(id));
        assert_eq!(listed[0]["size_bytes"], 1);
        let next = vm_with(&client, &json!({"snapshot_id": listed[0]["id"]})).await?;
        let file = platform.node.file(&text(&next["vm_id"]), "/app/f");
        assert_eq!(file.as_deref(), Some(name.as_bytes()));
    }
    let listed = client.get("/v1/snapshots").await?.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(4));
    Ok(())
}

async fn disks_that_ended_while_the_platform_was_away_are_on_record(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let body = json!({"snapshot_on_terminate": true, "snapshot_name": "away"});
    let vm = text(&vm_with(&client, &body).await?["vm_id"]);
    let lost = text(&vm_with(&client, &json!({"snapshot_on_terminate": true})).await?["vm_id"]);
    let stopped = platform.stop().await?;
    let kept = stopped.node.spec(&lost).unwrap().keep_disk_as.unwrap();
    stopped.node.end_silently(&vm);
    stopped.node.end_silently(&lost);
    stopped.node.lose_snapshot(&kept.0);
    let platform = stopped.start().await?;
    let client = platform.client();
    let settled = |list: &Value| {
        let list = list.as_array().cloned().unwrap_or_default();
        list.len() == 2 && list.iter().all(|one| one["status"] != "creating")
    };
    let listed = eventually(&client, "/v1/snapshots", settled).await?;
    for snapshot in listed.as_array().cloned().unwrap_or_default() {
        if snapshot["id"] == json!(kept.0) {
            assert_eq!(snapshot["status"], "failed");
        } else {
            assert_eq!(
                (&snapshot["status"], &snapshot["name"]),
                (&json!("ready"), &json!("away"))
            );
        }
    }
    Ok(())
}

async fn what_was_cut_off_is_settled_at_the_next_start(kind: DatabaseKind) -> Result<()> {
    // Nobody waits for it for long.
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let vm = text(&vm_with(&client, &json!({})).await?["vm_id"]);
    let (taken, cut) = (
        take(&client, &vm, "taken").await?,
        take(&client, &vm, "cut").await?,
    );
    // As after an end before the row was written, and before the node was asked.
    platform
        .database
        .execute("UPDATE snapshots SET status = 'creating'", vec![])
        .await?;
    platform.node.lose_snapshot(&cut);
    let platform = platform.restart().await?;
    let client = platform.client();
    let show = async |id: &str| client.get(&format!("/v1/snapshots/{id}")).await;
    assert_eq!(show(&taken).await?.json()["status"], "ready");
    let failed = show(&cut).await?.json();
    assert_eq!(failed["status"], "failed");
    assert!(text(&failed["last_error"]).contains("stopped"), "{failed}");
    for id in [taken, cut] {
        let gone = client.delete(&format!("/v1/snapshots/{id}")).await?;
        assert_eq!(gone.status, 200, "{gone:?}");
    }
    Ok(())
}

async fn space_and_numbers_are_limited(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        account_disk_bytes: 10 << 20,
        snapshots_per_account: 2,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let path = format!("/v1/vms/{}/snapshot", text(&vm["vm_id"]));
    let first = text(&client.post(&path, &json!({})).await?.json()["id"]);
    assert_eq!(client.post(&path, &json!({})).await?.status, 200);
    let refused = client.post(&path, &json!({})).await?;
    assert_eq!(refused.status, 429);
    assert!(
        refused.detail().contains("limit is 2"),
        "{}",
        refused.detail()
    );
    client.delete(&format!("/v1/snapshots/{first}")).await?;
    let volume = volume_of(&client, "all").await?;
    let refused = client.post(&path, &json!({})).await?;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(
        refused.detail().contains("limit is 10485760"),
        "{}",
        refused.detail()
    );
    upload_into(&client, &volume, &[("path", "x")], b"x").await?;
    client.delete(&format!("/v1/volumes/{volume}")).await?;
    assert_eq!(client.post(&path, &json!({})).await?.status, 200);
    Ok(())
}

async fn records_and_node_are_brought_in_line(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::with(kind, quick()).await?;
    let client = platform.client();
    let vm = vm_with(&client, &json!({})).await?;
    let vm_id = text(&vm["vm_id"]);
    let (lost, stays) = (
        take(&client, &vm_id, "lost").await?,
        take(&client, &vm_id, "stays").await?,
    );
    platform.node.fail("delete_snapshot", 1);
    let late = take(&client, &vm_id, "late").await?;
    assert_eq!(
        client
            .delete(&format!("/v1/snapshots/{late}"))
            .await?
            .status,
        200
    );
    assert_eq!(platform.node.snapshot_ids().len(), 3);
    let recorded = instavm_control::snapshot::service::recorded(&platform.database).await?;
    assert_eq!(recorded.len(), 3);
    assert!(recorded.iter().any(|one| one.id == late && !one.is_ready));
    let stopped = platform.stop().await?;
    stopped.node.lose_snapshot(&lost);
    stopped.node.plant_snapshot("snap_stray");
    let platform = stopped.start().await?;
    let client = platform.client();
    assert_eq!(platform.node.snapshot_ids(), std::slice::from_ref(&stays));
    let shown = client.get(&format!("/v1/snapshots/{lost}")).await?.json();
    assert_eq!(shown["status"], "failed");
    assert!(text(&shown["last_error"]).contains("gone"));
    let recorded = instavm_control::snapshot::service::recorded(&platform.database).await?;
    assert_eq!(recorded.len(), 1);
    Ok(())
}
