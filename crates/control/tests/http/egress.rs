use crate::{eventually, execute, session_of, vm_of};
use anyhow::{Context, Result};
use instavm_node_api::{Egress, Ending, Node, Refusal, VmId};
use instavm_testkit::{Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

on_each_database!(
    both_ways_lead_to_the_same_policy,
    a_bad_policy_changes_nothing,
    the_next_vm_of_a_session_has_it_from_its_first_moment,
    what_the_node_does_not_do_is_not_on_record,
    vms_are_made_with_a_policy,
    what_was_refused_is_shown_to_the_owner_and_counted,
);

async fn begin(platform: &TestPlatform) -> Result<(Client, String, String)> {
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &session).await?;
    Ok((client, session, vm))
}

fn closed() -> Value {
    json!({"allow_public_repos": false, "allow_http": false, "allow_https": false,
           "allowed_domains": ["a.test"], "allowed_cidrs": ["10.0.0.0/8"]})
}

/// What the node enforces on a VM.
async fn enforced(platform: &TestPlatform, vm: &str) -> Result<Vec<String>> {
    let policy = platform.node.egress(&VmId(vm.to_owned())).await?;
    Ok(policy.allowed_domains)
}

async fn both_ways_lead_to_the_same_policy(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let by_session = format!("/v1/egress/session/{session}");
    let by_vm = format!("/v1/egress/vm/{vm}");
    let open = client.get(&by_vm).await?.json();
    assert_eq!(open["allow_package_managers"], true);
    assert_eq!(open["allowed_cidrs"], json!([]));

    let answer = client.post(&by_session, &closed()).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["status"], "ok");
    for path in [&by_session, &by_vm] {
        let shown = client.get(path).await?.json();
        assert_eq!(shown["allow_public_repos"], false);
        assert_eq!(shown["allow_package_managers"], false);
        assert_eq!(shown["allowed_domains"], json!(["a.test"]));
    }
    assert_eq!(enforced(&platform, &vm).await?, ["a.test"]);
    // A replacement, never a merge.
    let answer = client
        .post(&by_vm, &json!({"allow_package_managers": false}))
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown = client.get(&by_session).await?.json();
    assert_eq!(shown["allow_public_repos"], false);
    assert_eq!(shown["allow_http"], true);
    assert_eq!(shown["allowed_domains"], json!([]));
    Ok(())
}

async fn a_bad_policy_changes_nothing(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let path = format!("/v1/egress/session/{session}");
    client.post(&path, &closed()).await?;
    for (policy, named) in [
        (
            json!({"allowed_domains": ["a.test", "x"]}),
            "allowed_domains[1]",
        ),
        (json!({"allowed_cidrs": ["x"]}), "allowed_cidrs[0]"),
        (json!({"allow_htttp": true}), "allow_htttp"),
        (json!({"allow_http": "no"}), "allow_http"),
        (json!({"allowed_domains": "a.test"}), "allowed_domains"),
        (
            json!({"allow_public_repos": true, "allow_package_managers": false}),
            "allow_package_managers",
        ),
        (json!([]), "object"),
    ] {
        let answer = client.post(&path, &policy).await?;
        assert_eq!(answer.status, 422, "{policy}: {answer:?}");
        assert!(answer.detail().contains(named), "{named}: {answer:?}");
    }
    assert_eq!(enforced(&platform, &vm).await?, ["a.test"]);
    let shown = client.get(&path).await?.json();
    assert_eq!(shown["allowed_cidrs"], json!(["10.0.0.0/8"]));
    Ok(())
}

async fn the_next_vm_of_a_session_has_it_from_its_first_moment(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let path = format!("/v1/egress/session/{session}");
    client.post(&path, &closed()).await?;
    let platform = platform.restart().await?;
    let client = platform.client();
    platform
        .node
        .terminate(&VmId(vm.clone()), Ending::Expired)
        .await?;
    let status = format!("/v1/sessions/status/{session}");
    eventually(&client, &status, |answer| {
        answer["vm_id"] != vm.as_str() || answer["vm_status"] != "active"
    })
    .await?;
    let calls = platform.node.calls("set_egress");
    assert_eq!(execute(&client, &session, "echo x").await?.status, 200);
    let next = vm_of(&client, &session).await?;
    assert_ne!(next, vm);
    assert_eq!(enforced(&platform, &next).await?, ["a.test"]);
    assert_eq!(
        platform.node.calls("set_egress"),
        calls,
        "it was made with it"
    );
    let late = client
        .post(&format!("/v1/egress/vm/{vm}"), &closed())
        .await?;
    assert_eq!(late.status, 409, "{late:?}");
    Ok(())
}

async fn what_was_refused_is_shown_to_the_owner_and_counted(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    let path = format!("/v1/egress/vm/{vm}/refusals");
    assert_eq!(client.get(&path).await?.json()["refusals"], json!([]));
    for (rule, port) in [("name", None), ("port", Some(22))] {
        platform.node.refuse(Refusal {
            vm: VmId(vm.clone()),
            at_micros: 1_000_000,
            rule: rule.to_owned(),
            reason: "why".to_owned(),
            protocol: "tcp".to_owned(),
            name: Some("a.test".to_owned()),
            address: Some([198, 51, 100, 7].into()),
            port,
            unrecorded: 3,
        });
    }
    eventually(&client, &path, |answer| {
        answer["refusals"].as_array().map(Vec::len) == Some(2)
    })
    .await?;
    let shown = client.get(&path).await?.json();
    assert_eq!(
        shown["refusals"][0],
        json!({"at": "1970-01-01T00:00:01.000000Z", "rule": "port", "reason": "why", "protocol": "tcp",
               "name": "a.test", "address": "198.51.100.7", "port": 22, "unrecorded": 3})
    );
    let metrics = client.get("/metrics").await?.body;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    for rule in ["name", "port"] {
        let line = format!("instavm_egress_refusals_total{{rule=\"{rule}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    let stranger = platform.stranger("other@example.com").await?;
    assert_eq!(stranger.get(&path).await?.status, 404);
    Ok(())
}

async fn what_the_node_does_not_do_is_not_on_record(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, _) = begin(&platform).await?;
    let path = format!("/v1/egress/session/{session}");
    platform.node.fail("set_egress", 1);
    assert_eq!(client.post(&path, &closed()).await?.status, 500);
    assert_eq!(client.get(&path).await?.json()["allow_http"], true);
    let platform = platform.restart().await?;
    let client = platform.client();
    assert_eq!(client.get(&path).await?.json()["allow_http"], true);
    assert_eq!(client.post(&path, &closed()).await?.status, 200);
    Ok(())
}

async fn vms_are_made_with_a_policy(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let made = client
        .post("/v1/vms", &json!({"egress_policy": closed()}))
        .await?;
    assert_eq!(made.status, 200, "{made:?}");
    let made = made.json();
    let vm = made["vm_id"].as_str().context("an id")?;
    assert_eq!(enforced(&platform, vm).await?, ["a.test"]);
    // For a session that has a VM already, it is in force all the same.
    let other = json!({"allow_http": false, "allowed_domains": ["b.test"]});
    let again = json!({"session_id": made["session_id"], "egress_policy": other});
    assert_eq!(client.post("/v1/vms", &again).await?.json()["vm_id"], vm);
    assert_eq!(enforced(&platform, vm).await?, ["b.test"]);
    let plain = json!({"session_id": made["session_id"]});
    client.post("/v1/vms", &plain).await?;
    assert_eq!(enforced(&platform, vm).await?, ["b.test"]);
    let bad = json!({"egress_policy": {"allowed_cidrs": ["x"]}});
    let refused = client.post("/v1/vms", &bad).await?;
    assert_eq!(refused.status, 422);
    assert!(
        refused.detail().contains("egress_policy.allowed_cidrs[0]"),
        "{refused:?}"
    );
    Ok(())
}
