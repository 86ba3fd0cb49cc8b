//! Every route has an owner's rule: no key, a wrong key, and another account's key are tried on each.

use crate::{session_of, text, vm_of};
use anyhow::{Context, Result};
use axum::body::Body;
use axum::http::{Method, Request};
use instavm_testkit::{Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};

/// The owner's terminal.
const PTY: &str = "terminal";

/// Routes that need no key, because they tell nothing of anybody.
const OPEN: [&str; 4] = ["/", "/healthz", "/metrics", "/openapi.json"];

/// What a stranger is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stranger {
    /// 404: the thing is another's.
    NotFound,
    /// The call is about the caller alone; the answer must not hold the owner's things.
    OwnThings,
}
use Stranger::{NotFound, OwnThings};

on_each_database!(
    every_documented_route_has_a_case,
    without_a_valid_key_every_route_answers_401,
    another_account_sees_and_changes_nothing,
);

struct Case {
    method: &'static str,
    route: &'static str,
    path: String,
    kind: &'static str,
    body: Vec<u8>,
    stranger: Stranger,
}

/// The owner's things.
struct Things {
    session: String,
    vm: String,
    task: String,
    key: String,
    ssh_key: String,
    snapshot: String,
    volume: String,
    checkpoint: String,
    share: String,
}

async fn things(platform: &TestPlatform) -> Result<Things> {
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &session).await?;
    client.upload(&session, "file", false, b"secret").await?;
    let body = json!({"session_id": session, "command": "echo secret"});
    let task = text(&client.post("/execute_async", &body).await?.json()["task_id"]);
    let terminals = format!("/v1/vms/{vm}/pty/sessions");
    client.post(&terminals, &json!({"id": PTY})).await?;
    let key = client
        .post("/v1/api-keys/", &json!({"description": "owner"}))
        .await?
        .json()["id"]
        .to_string();
    let line =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f owner";
    let ssh_key = client
        .post("/v1/ssh-keys", &json!({"public_key": line}))
        .await?
        .json()["id"]
        .to_string();
    let taken = client
        .post(&format!("/v1/vms/{vm}/snapshot"), &json!({"name": "owner"}))
        .await?;
    let snapshot = text(&taken.json()["id"]);
    let volume = crate::volume_of(&client, "owner").await?;
    crate::upload_into(&client, &volume, &[("path", "file")], b"secret").await?;
    let path = format!("/v1/volumes/{volume}/checkpoints");
    let checkpoint = text(&client.post(&path, &json!({})).await?.json()["id"]);
    let share = json!({"vm_id": vm, "port": 8000});
    let share = text(&client.post("/v1/shares", &share).await?.json()["share_id"]);
    Ok(Things {
        session,
        vm,
        task,
        key,
        ssh_key,
        snapshot,
        volume,
        checkpoint,
        share,
    })
}

const JSON: &str = "application/json";

/// A case with a JSON body; the id takes the place of the route's parameter.
fn case(
    method: &'static str,
    route: &'static str,
    id: &str,
    body: Value,
    stranger: Stranger,
) -> Case {
    let (before, after) = match (route.find('{'), route.find('}')) {
        (Some(from), Some(to)) => (&route[..from], &route[to + 1..]),
        _ => (route, ""),
    };
    Case {
        method,
        route,
        path: format!("{before}{id}{after}"),
        kind: JSON,
        body: match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        },
        stranger,
    }
}

/// A case without a body.
fn bare(method: &'static str, route: &'static str, id: &str, stranger: Stranger) -> Case {
    case(method, route, id, Value::Null, stranger)
}

fn cases(things: &Things) -> Vec<Case> {
    let mut cases = session_cases(things);
    cases.extend(vm_cases(things));
    cases.extend(account_cases(things));
    cases.extend(file_cases(things));
    cases.extend(pty_cases(things));
    cases.extend(egress_cases(things));
    cases.extend(share_cases(things));
    cases.extend(snapshot_cases(things));
    cases.extend(volume_cases(things));
    cases
}

/// Policies, by both ways.
fn egress_cases(things: &Things) -> Vec<Case> {
    let (session, vm) = (&things.session, &things.vm);
    let (by_session, by_vm) = ("/v1/egress/session/{session_id}", "/v1/egress/vm/{vm_id}");
    vec![
        case("post", by_session, session, json!({}), NotFound),
        bare("get", by_session, session, NotFound),
        case("post", by_vm, vm, json!({}), NotFound),
        bare("get", by_vm, vm, NotFound),
        bare("get", "/v1/egress/vm/{vm_id}/refusals", vm, NotFound),
    ]
}

/// Shares, of a VM and of a session.
fn share_cases(things: &Things) -> Vec<Case> {
    let (one, share) = ("/v1/shares/{share_id}", &things.share);
    let of_vm = json!({"vm_id": things.vm, "port": 8000});
    let of_session = json!({"session_id": things.session, "port": 8000});
    vec![
        case("post", "/v1/shares", "", of_vm, NotFound),
        case("post", "/v1/shares", "", of_session, NotFound),
        bare("get", "/v1/shares", "", OwnThings),
        bare("get", one, share, NotFound),
        case("patch", one, share, json!({"is_public": true}), NotFound),
    ]
}

/// Terminals, by both ways.
fn pty_cases(things: &Things) -> Vec<Case> {
    macro_rules! of {
        ($place:literal, $id:expr) => {{
            let base = concat!("/v1/", $place, "/pty");
            let at = base.replace(&base[base.find('{').unwrap()..=base.find('}').unwrap()], $id);
            let all = format!("{at}/sessions");
            let one = format!("{at}/sessions/{PTY}");
            let resize = format!("{one}/resize");
            let size = json!({"cols": 1, "rows": 1});
            [
                ("post", concat!("/v1/", $place, "/pty/sessions"), all.clone(), json!({})),
                ("get", concat!("/v1/", $place, "/pty/sessions"), all, Value::Null),
                ("get", concat!("/v1/", $place, "/pty/sessions/{pty_id}"), one.clone(), Value::Null),
                ("delete", concat!("/v1/", $place, "/pty/sessions/{pty_id}"), one, Value::Null),
                ("post", concat!("/v1/", $place, "/pty/sessions/{pty_id}/resize"), resize, size),
                ("get", concat!("/v1/", $place, "/pty/{pty_id}/connect"), format!("{at}/{PTY}/connect"), Value::Null),
            ]
        }};
    }
    let of_session = of!("sessions/{session_id}", &things.session);
    let all = of_session.into_iter().chain(of!("vms/{vm_id}", &things.vm));
    let cases = all.map(|(method, route, path, body)| Case {
        path,
        ..case(method, route, "", body, NotFound)
    });
    cases.collect()
}

fn session_cases(things: &Things) -> Vec<Case> {
    let session = &things.session;
    let run = json!({"session_id": session, "command": "echo x"});
    let this = json!({"session_id": session});
    vec![
        case("post", "/v1/sessions/session", "", json!({}), OwnThings),
        bare(
            "get",
            "/v1/sessions/session/{session_id}",
            session,
            NotFound,
        ),
        bare("get", "/v1/sessions/status/{session_id}", session, NotFound),
        bare("get", "/v1/sessions/usage/{session_id}", session, NotFound),
        bare(
            "get",
            "/v1/sessions/app-url/{session_id}",
            session,
            NotFound,
        ),
        bare("get", "/v1/sessions/sandboxes", "", OwnThings),
        case("post", "/kill", "", this, NotFound),
        case("post", "/execute", "", run.clone(), NotFound),
        case("post", "/execute_async", "", run, NotFound),
        bare("get", "/v1/executions/{task_id}", &things.task, NotFound),
    ]
}

fn vm_cases(things: &Things) -> Vec<Case> {
    let this = json!({"session_id": things.session});
    vec![
        case("post", "/v1/vms", "", this, NotFound),
        bare("get", "/v1/vms", "", OwnThings),
        bare("get", "/v1/vms/", "", OwnThings),
        bare("get", "/v1/vms/{vm_id}", &things.vm, NotFound),
        bare("delete", "/v1/vms/{vm_id}", &things.vm, NotFound),
    ]
}

fn snapshot_cases(things: &Things) -> Vec<Case> {
    let (vm, snapshot) = (&things.vm, &things.snapshot);
    let empty = || json!({});
    vec![
        case("post", "/v1/vms/{vm_id}/snapshot", vm, empty(), NotFound),
        case("post", "/v1/vms/{vm_id}/clone", vm, empty(), NotFound),
        case("patch", "/v1/vms/{vm_id}", vm, empty(), NotFound),
        case(
            "post",
            "/v1/snapshots",
            "",
            json!({"oci_image": "-x"}),
            OwnThings,
        ),
        bare("get", "/v1/snapshots", "", OwnThings),
        bare("get", "/v1/snapshots/{snapshot_id}", snapshot, NotFound),
        bare("delete", "/v1/snapshots/{snapshot_id}", snapshot, NotFound),
    ]
}

fn volume_cases(things: &Things) -> Vec<Case> {
    let (vm, volume, checkpoint) = (&things.vm, &things.volume, &things.checkpoint);
    let mount = json!({"volume_id": volume, "mount_path": "/data"});
    let file = json!({"path": "file"});
    let create = json!({"name": "x", "quota_bytes": 0});
    let name = json!({"name": "taken"});
    let one = "/v1/volumes/{volume_id}";
    let checkpoints = "/v1/volumes/{volume_id}/checkpoints";
    let files = "/v1/volumes/{volume_id}/files";
    let upload = "/v1/volumes/{volume_id}/files/upload";
    let download = "/v1/volumes/{volume_id}/files/download";
    let mounts = "/v1/vms/{vm_id}/volumes";
    let parts = "--b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\nfile\r\n\
                 --b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ntaken\r\n--b--\r\n";
    vec![
        case("post", "/v1/volumes", "", create, OwnThings),
        bare("get", "/v1/volumes", "", OwnThings),
        bare("get", one, volume, NotFound),
        case("patch", one, volume, name, NotFound),
        bare("delete", one, volume, NotFound),
        case("post", checkpoints, volume, json!({}), NotFound),
        bare("get", checkpoints, volume, NotFound),
        Case {
            path: format!("/v1/volumes/{volume}/checkpoints/{checkpoint}"),
            ..bare(
                "delete",
                "/v1/volumes/{volume_id}/checkpoints/{checkpoint_id}",
                "",
                NotFound,
            )
        },
        Case {
            kind: "multipart/form-data; boundary=b",
            body: parts.as_bytes().to_vec(),
            ..bare("post", upload, volume, NotFound)
        },
        case("post", download, volume, file, NotFound),
        bare("get", files, volume, NotFound),
        Case {
            path: format!("/v1/volumes/{volume}/files?path=file"),
            ..bare("delete", files, volume, NotFound)
        },
        case("post", mounts, vm, mount, NotFound),
        bare("get", mounts, vm, NotFound),
        Case {
            path: format!("/v1/vms/{vm}/volumes/{volume}"),
            ..bare(
                "delete",
                "/v1/vms/{vm_id}/volumes/{volume_id}",
                "",
                NotFound,
            )
        },
    ]
}

fn account_cases(things: &Things) -> Vec<Case> {
    let (key, ssh_key) = (&things.key, &things.ssh_key);
    let off = json!({"is_active": false});
    vec![
        bare("get", "/v1/users/me", "", OwnThings),
        case("post", "/v1/api-keys/", "", json!({}), OwnThings),
        bare("get", "/v1/api-keys/", "", OwnThings),
        bare("get", "/v1/api-keys/{id}", key, NotFound),
        case("patch", "/v1/api-keys/{id}", key, off, NotFound),
        bare("delete", "/v1/api-keys/{id}", key, NotFound),
        case(
            "post",
            "/v1/ssh-keys",
            "",
            json!({"public_key": "x"}),
            OwnThings,
        ),
        bare("get", "/v1/ssh-keys", "", OwnThings),
        bare("delete", "/v1/ssh-keys/{id}", ssh_key, NotFound),
    ]
}

fn file_cases(things: &Things) -> Vec<Case> {
    let session = &things.session;
    let part = |name: &str, text: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let parts = [
        part("remote_path", "file"),
        part("session_id", session),
        part("file", "taken"),
    ];
    vec![
        Case {
            kind: "multipart/form-data; boundary=b",
            body: format!("{}--b--\r\n", parts.concat()).into_bytes(),
            ..bare("post", "/upload", "", NotFound)
        },
        Case {
            kind: "application/x-www-form-urlencoded",
            body: format!("filename=file&session_id={session}").into_bytes(),
            ..bare("post", "/download", "", NotFound)
        },
    ]
}

async fn send(client: &Client, case: &Case) -> Result<instavm_testkit::Answer> {
    let request = Request::builder()
        .method(Method::from_bytes(case.method.to_uppercase().as_bytes())?)
        .uri(&case.path)
        .header("content-type", case.kind)
        .body(Body::from(case.body.clone()))?;
    client.send(request).await
}

async fn every_documented_route_has_a_case(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let things = things(&platform).await?;
    let cases = cases(&things);
    let document = platform
        .client_with(None)
        .get("/openapi.json")
        .await?
        .json();
    let paths = document["paths"].as_object().context("no paths")?;
    assert!(paths.len() > 20, "the document is incomplete");
    for (route, item) in paths {
        for (method, operation) in item.as_object().context("no operations")? {
            let has_case = cases
                .iter()
                .any(|case| case.method == method && case.route == route);
            if OPEN.contains(&route.as_str()) {
                assert!(operation.get("security").is_none(), "{method} {route}");
                assert!(!has_case);
                continue;
            }
            assert!(
                has_case,
                "{method} {route} has no case here: who may call it?"
            );
            assert!(
                operation["security"].is_array(),
                "{method} {route} documents no key"
            );
            assert!(
                operation["responses"]["401"].is_object(),
                "{method} {route} documents no 401"
            );
        }
    }
    Ok(())
}

async fn without_a_valid_key_every_route_answers_401(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let things = things(&platform).await?;
    for client in [
        platform.client_with(None),
        platform.client_with(Some("instavm_sk_unknown")),
    ] {
        for case in cases(&things) {
            let answer = send(&client, &case).await?;
            assert_eq!(answer.status, 401, "{} {}", case.method, case.path);
            assert!(answer.json().is_object());
        }
    }
    assert_eq!(platform.node.vm_ids(), [things.vm]);
    Ok(())
}

async fn another_account_sees_and_changes_nothing(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let things = things(&platform).await?;
    let stranger = platform.stranger("stranger@example.com").await?;
    for case in cases(&things) {
        let answer = send(&stranger, &case).await?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        match case.stranger {
            NotFound => assert_eq!(answer.status, 404, "{} {}: {body}", case.method, case.path),
            OwnThings => assert_ne!(answer.status, 404, "{} {}", case.method, case.path),
        }
        for owned in [
            &things.session,
            &things.vm,
            &things.task,
            &things.snapshot,
            &things.checkpoint,
            "owner",
            "admin@localhost",
        ] {
            assert!(
                !body.contains(owned),
                "{} {} tells of {owned}",
                case.method,
                case.path
            );
        }
    }
    let client = platform.client();
    let status = client
        .get(&format!("/v1/sessions/status/{}", things.session))
        .await?
        .json();
    assert_eq!(status["vm_alive"], true);
    assert_eq!(
        platform.node.snapshot_ids(),
        std::slice::from_ref(&things.snapshot)
    );
    let kept = platform.node.volume_file(&things.volume, "file");
    assert_eq!(kept.as_deref(), Some(&b"secret"[..]));
    assert_eq!(
        platform.node.checkpoint_ids(&things.volume),
        std::slice::from_ref(&things.checkpoint)
    );
    let file = platform.node.file(&things.vm, "file");
    assert_eq!(file.as_deref(), Some(&b"secret"[..]));
    assert_eq!(
        client
            .get(&format!("/v1/api-keys/{}", things.key))
            .await?
            .json()["is_active"],
        true
    );
    assert_eq!(
        client.get("/v1/ssh-keys").await?.json()["keys"][0]["comment"],
        "owner"
    );
    Ok(())
}
