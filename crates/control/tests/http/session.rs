use crate::{eventually, execute, session_of, text, vm_of};
use anyhow::Result;
use instavm_control::Settings;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;

on_each_database!(
    a_session_starts_with_a_living_vm_and_is_shown_everywhere,
    a_session_starts_with_the_key_in_the_header_and_with_nulls,
    wrong_fields_are_refused_by_name_and_nothing_is_made,
    kill_ends_the_vm_for_good_and_may_be_repeated,
    an_expired_session_gets_one_new_vm_for_all_who_ask,
    code_sent_before_word_of_the_vms_end_arrived_runs_in_a_new_one,
    usage_and_app_url_say_what_there_is,
    sandboxes_are_found_by_their_metadata,
    a_full_node_and_a_full_account_are_told_apart,
    a_client_that_hangs_up_leaves_a_session_that_is_on_record,
    kill_during_the_making_of_the_vm_wins,
);

async fn a_session_starts_with_a_living_vm_and_is_shown_everywhere(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let anonymous = platform.client_with(None);
    let answer = anonymous
        .post(
            "/v1/sessions/session",
            &json!({"api_key": platform.key, "vm_lifetime_seconds": 400, "memory_mb": 512, "vcpu_count": 4,
                    "metadata": {"team": "a"}, "env": {"A": "x", "N": 5, "F": 1.5, "B": true}, "unknown": [1]}),
        )
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let started = answer.json();
    let id = text(&started["session_id"]);
    assert_eq!(id.len(), 36);
    assert_eq!(started["status"], "active");
    assert_eq!(started["vm_lifetime_seconds"], 400);
    assert_eq!(started["isolation"], "namespaces");

    let shown = client.get(&format!("/v1/sessions/session/{id}")).await?;
    assert_eq!(shown.json(), started);
    let status = client
        .get(&format!("/v1/sessions/status/{id}"))
        .await?
        .json();
    assert_eq!(status["exists"], true);
    assert_eq!(status["vm_assigned"], true);
    assert_eq!(status["vm_alive"], true);
    assert_eq!(status["vm_status"], "active");
    assert_eq!(status["vm_id"], started["vm_id"]);
    assert!(status["expires_in_seconds"].as_f64() > Some(390.0));

    let run = execute(&client, &id, "env A\nenv N\nenv F\nenv B")
        .await?
        .json();
    assert_eq!(run["stdout"], "x\n5\n1.5\ntrue\n");
    Ok(())
}

async fn a_session_starts_with_the_key_in_the_header_and_with_nulls(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let answer = platform
        .client()
        .post(
            "/v1/sessions/session",
            &json!({"vm_lifetime_seconds": null, "memory_mb": null, "env": null, "metadata": null}),
        )
        .await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["vm_lifetime_seconds"], 300);
    Ok(())
}

async fn wrong_fields_are_refused_by_name_and_nothing_is_made(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let anonymous = platform.client_with(None);
    let cases = [
        (json!({"vm_lifetime_seconds": 19}), "vm_lifetime_seconds"),
        (
            json!({"vm_lifetime_seconds": 86_401}),
            "vm_lifetime_seconds",
        ),
        (json!({"vm_lifetime_seconds": "300"}), "vm_lifetime_seconds"),
        (json!({"vm_lifetime_seconds": true}), "vm_lifetime_seconds"),
        (json!({"vm_lifetime_seconds": 1e30}), "vm_lifetime_seconds"),
        (json!({"memory_mb": 127}), "memory_mb"),
        (json!({"memory_mb": 8193}), "memory_mb"),
        (json!({"memory_mb": -1}), "memory_mb"),
        (json!({"memory_mb": 512.5}), "memory_mb"),
        (json!({"vcpu_count": 0}), "vcpu_count"),
        (json!({"vcpu_count": 9}), "vcpu_count"),
        (json!({"metadata": [1]}), "metadata"),
        (json!({"env": {"": "x"}}), "env"),
        (json!({"env": {"A=B": "x"}}), "env"),
        (json!({"env": {"A": "x\u{0}"}}), "env"),
        (json!({"env": {"A": ["x"]}}), "env.A"),
        (json!({"env": "A=x"}), "env"),
    ];
    for (mut body, field) in cases {
        body["api_key"] = json!(platform.key);
        let answer = anonymous.post("/v1/sessions/session", &body).await?;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert!(
            answer.detail().starts_with(field),
            "{body}: {}",
            answer.detail()
        );
    }
    for key in [json!(null), json!(""), json!("instavm_sk_wrong")] {
        let answer = anonymous
            .post("/v1/sessions/session", &json!({"api_key": key}))
            .await?;
        assert_eq!(answer.status, 401, "{key}");
    }
    assert_eq!(platform.node.creations(), 0);
    Ok(())
}

async fn kill_ends_the_vm_for_good_and_may_be_repeated(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    for _ in 0..2 {
        let answer = client.post("/kill", &json!({"session_id": id})).await?;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({"status": "killed", "session_id": id, "vm_id": vm})
        );
        assert!(platform.node.vm_ids().is_empty());
    }
    assert_eq!(execute(&client, &id, "echo").await?.status, 404);
    let status = client
        .get(&format!("/v1/sessions/status/{id}"))
        .await?
        .json();
    assert_eq!(status["vm_alive"], false);
    assert_eq!(status["vm_status"], "killed");
    assert_eq!(status["expires_in_seconds"], 0.0);
    let shown = client
        .get(&format!("/v1/sessions/session/{id}"))
        .await?
        .json();
    assert_eq!(shown["status"], "terminated");
    assert_eq!(
        client
            .get(&format!("/v1/sessions/usage/{id}"))
            .await?
            .status,
        409
    );
    Ok(())
}

async fn an_expired_session_gets_one_new_vm_for_all_who_ask(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let answer = client
        .post(
            "/v1/sessions/session",
            &json!({"env": {"A": "kept"}, "memory_mb": 256}),
        )
        .await?;
    let id = text(&answer.json()["session_id"]);
    let first = text(&answer.json()["vm_id"]);
    platform.node.end(&first, Ending::Expired);
    let path = format!("/v1/sessions/status/{id}");
    let status = eventually(&client, &path, |status| status["vm_alive"] == false).await?;
    assert_eq!(status["vm_status"], "killed");
    assert_eq!(status["ended_by"], "expired");

    let runs = (0..8).map(|_| execute(&client, &id, "env A"));
    for run in futures::future::try_join_all(runs).await? {
        assert_eq!(run.json()["stdout"], "kept\n", "{run:?}");
    }
    assert_eq!(platform.node.creations(), 2);
    let shown = client
        .get(&format!("/v1/sessions/session/{id}"))
        .await?
        .json();
    assert_eq!(shown["memory_mb"], 256);
    assert_ne!(text(&shown["vm_id"]), first);
    Ok(())
}

async fn code_sent_before_word_of_the_vms_end_arrived_runs_in_a_new_one(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    platform.node.end_silently(&vm_of(&client, &id).await?);
    let run = execute(&client, &id, "echo hello").await?;
    assert_eq!(run.json()["stdout"], "hello\n", "{run:?}");
    Ok(())
}

async fn usage_and_app_url_say_what_there_is(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let usage = client
        .get(&format!("/v1/sessions/usage/{id}"))
        .await?
        .json();
    assert_eq!(usage["cpu_time"], 1.5);
    assert_eq!(usage["memory_used"], 10 << 20);
    assert_eq!(
        usage["network_io"],
        json!({"rx_bytes": 100, "tx_bytes": 50, "total_bytes": 150, "rx_packets": 2, "tx_packets": 1})
    );

    let url = |query: &str| format!("/v1/sessions/app-url/{id}{query}");
    let answer = client.get(&url("?port=8000")).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let found = answer.json();
    assert_eq!(
        (&found["port"], &found["status"]),
        (&json!(8000), &json!("active"))
    );
    assert_eq!(
        (&found["app_url"], &found["url"]),
        (&found["direct_url"], &found["app_url"])
    );
    assert!(found["expires_in_seconds"].as_f64() > Some(0.0), "{found}");
    let again = client.get(&url("?port=8000")).await?.json();
    assert_eq!(again["app_url"], found["app_url"]);
    assert_eq!(client.get(&url("")).await?.json()["port"], 80);
    let shares = client.get("/v1/shares").await?.json();
    assert!(
        shares.as_array().is_some_and(|all| all.len() == 2),
        "{shares}"
    );
    assert_eq!(shares[0]["is_public"], false);
    for wrong in ["?port=0", "?port=65536", "?port=x", "?port=-1"] {
        let answer = client.get(&url(wrong)).await?;
        assert_eq!(answer.status, 422, "{wrong}");
        assert!(answer.detail().contains("port"), "{}", answer.detail());
    }
    Ok(())
}

async fn sandboxes_are_found_by_their_metadata(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let mut ids = Vec::new();
    for team in ["a", "b", "a"] {
        let body = json!({"metadata": {"team": team, "more": {"x": 1, "y": 2}}});
        let answer = client.post("/v1/sessions/session", &body).await?;
        ids.push(text(&answer.json()["session_id"]));
    }
    let found = async |query: &str| -> Result<Vec<String>> {
        let answer = client
            .get(&format!("/v1/sessions/sandboxes{query}"))
            .await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let list = answer.json();
        let list = list.as_array().cloned().unwrap_or_default();
        Ok(list
            .iter()
            .map(|session| text(&session["session_id"]))
            .collect())
    };
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(found("").await?, newest_first);
    assert_eq!(found("?limit=1").await?, newest_first[..1]);
    let team_a = "?metadata=%7B%22team%22%3A+%22a%22%7D";
    assert_eq!(found(team_a).await?, [ids[2].clone(), ids[0].clone()]);
    assert_eq!(
        found("?metadata=%7B%22more%22%3A%7B%22x%22%3A1%7D%7D")
            .await?
            .len(),
        3
    );
    assert!(
        found("?metadata=%7B%22more%22%3A%7B%22x%22%3A2%7D%7D")
            .await?
            .is_empty()
    );
    client.post("/kill", &json!({"session_id": ids[0]})).await?;
    assert_eq!(found(team_a).await?, [ids[2].clone()]);
    for (wrong, status) in [
        ("?limit=0", 422),
        ("?limit=1001", 422),
        ("?limit=x", 422),
        ("?metadata=%5B1%5D", 422),
        ("?metadata=%7B", 400),
    ] {
        let answer = client
            .get(&format!("/v1/sessions/sandboxes{wrong}"))
            .await?;
        assert_eq!(answer.status, status, "{wrong}");
    }
    Ok(())
}

async fn a_full_node_and_a_full_account_are_told_apart(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        vms_per_account: 1,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let answer = client.post("/v1/sessions/session", &json!({})).await?;
    assert_eq!(answer.status, 429);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.json().is_object() && answer.detail().contains("limit is 1"));

    let stranger = platform.stranger("full@example.com").await?;
    platform.node.set_capacity(1);
    let answer = stranger.post("/v1/sessions/session", &json!({})).await?;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.detail().contains("no room"));

    client.post("/kill", &json!({"session_id": id})).await?;
    assert_eq!(
        stranger
            .post("/v1/sessions/session", &json!({}))
            .await?
            .status,
        200
    );
    let failed = stranger.get("/v1/vms/").await?.json();
    assert_eq!(failed[1]["status"], "failed", "{failed}");
    Ok(())
}

async fn a_client_that_hangs_up_leaves_a_session_that_is_on_record(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let body = json!({});
    {
        let asking = client.post("/v1/sessions/session", &body);
        tokio::select! {
            answer = asking => panic!("it must not answer yet: {answer:?}"),
            () = platform.node.gate_occupied("making", 1) => {}
        }
    }
    platform.node.open_gate("making");
    let vms = eventually(&client, "/v1/vms", |vms| vms[0]["status"] == "active").await?;
    let session = text(&vms[0]["session_id"]);
    assert_eq!(execute(&client, &session, "echo x").await?.status, 200);
    Ok(())
}

async fn kill_during_the_making_of_the_vm_wins(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    platform.node.hold_creations(Some("making"));
    let made = client
        .call(
            axum::http::Method::POST,
            "/v1/vms?wait=false",
            "application/json",
            "{}",
        )
        .await?;
    let session = text(&made.json()["session_id"]);
    assert_eq!(made.json()["status"], "creating");
    let status = client
        .get(&format!("/v1/sessions/status/{session}"))
        .await?
        .json();
    assert_eq!(status["vm_status"], "creating");
    assert_eq!(status["vm_alive"], false);
    let body = json!({"session_id": session});
    let killing = client.post("/kill", &body);
    let opening = async { platform.node.open_gate("making") };
    let (killed, ()) = tokio::join!(killing, opening);
    assert_eq!(killed?.status, 200);
    assert!(platform.node.vm_ids().is_empty());
    assert_eq!(execute(&client, &session, "echo").await?.status, 404);
    Ok(())
}
