//! Bodies that nobody would send: each is answered, with a status that the API's document names. `PROPTEST_CASES` sets
//! how many.

use crate::{session_of, vm_of, volume_of};
use anyhow::{Context, Result};
use axum::http::Method;
use instavm_testkit::{Answer, Client, TestPlatform};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");
/// Stands for the id of a session that lives.
const SESSION: &str = "a session that lives";

/// Every operation that takes JSON.
const JSON: [(&str, &str); 16] = [
    ("POST", "/v1/sessions/session"),
    ("POST", "/execute"),
    ("POST", "/execute_async"),
    ("POST", "/v1/vms"),
    ("POST", "/v1/ssh-keys"),
    ("POST", "/v1/api-keys/"),
    ("PATCH", "/v1/api-keys/{id}"),
    ("PATCH", "/v1/vms/{vm_id}"),
    ("POST", "/v1/vms/{vm_id}/clone"),
    ("POST", "/v1/vms/{vm_id}/snapshot"),
    ("POST", "/v1/vms/{vm_id}/volumes"),
    ("POST", "/v1/snapshots"),
    ("POST", "/v1/volumes"),
    ("PATCH", "/v1/volumes/{volume_id}"),
    ("POST", "/v1/volumes/{volume_id}/checkpoints"),
    ("POST", "/v1/volumes/{volume_id}/files/download"),
];

const FIELDS: [&str; 34] = [
    "api_key",
    "session_id",
    "command",
    "code",
    "language",
    "timeout",
    "vault_ids",
    "vm_lifetime_seconds",
    "memory_mb",
    "vcpu_count",
    "metadata",
    "env",
    "public_key",
    "description",
    "snapshot_id",
    "egress_policy",
    "share",
    "custom_domain",
    "volumes",
    "image_variant",
    "count",
    "name",
    "quota_bytes",
    "oci_image",
    "build_args",
    "type",
    "path",
    "volume_id",
    "mount_path",
    "mode",
    "checkpoint_id",
    "snapshot_on_terminate",
    "snapshot_name",
    "git_clone_url",
];

/// A body with its content type, and the operation that it goes to.
#[derive(Clone, Debug)]
struct Sent {
    method: &'static str,
    path: &'static str,
    kind: String,
    body: Vec<u8>,
}

#[test]
fn json_of_any_shape_is_answered_as_the_document_says() -> Result<()> {
    answered(json_body())
}

#[test]
fn forms_of_any_shape_are_answered_as_the_document_says() -> Result<()> {
    answered(prop_oneof![3 => multipart(), 1 => urlencoded()])
}

fn answered(strategy: impl Strategy<Value = Sent>) -> Result<()> {
    let document: Value = serde_json::from_str(DOCUMENT)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let platform = runtime.block_on(TestPlatform::start())?;
    let client = platform.client();
    let owned = runtime.block_on(owned(&client, &platform.key))?;
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&strategy, |sent| {
            let operation = &document["paths"][sent.path][sent.method.to_lowercase()];
            let answer = runtime
                .block_on(send(&client, &sent, &owned, &platform.key))
                .map_err(|error| TestCaseError::fail(format!("no answer: {error:#}")))?;
            fits(operation, &answer)
        })
        .context("an answer that does not fit")?;
    let health = runtime.block_on(client.get("/healthz"))?;
    anyhow::ensure!(health.status == 200, "{health:?}");
    Ok(())
}

/// What paths name.
struct Owned {
    session: String,
    vm: String,
    volume: String,
}

async fn owned(client: &Client, key: &str) -> Result<Owned> {
    let session = session_of(client, key).await?;
    Ok(Owned {
        vm: vm_of(client, &session).await?,
        volume: volume_of(client, "data").await?,
        session,
    })
}

async fn send(client: &Client, sent: &Sent, owned: &Owned, key: &str) -> Result<Answer> {
    let path = sent
        .path
        .replace("{id}", "1")
        .replace("{vm_id}", &owned.vm)
        .replace("{volume_id}", &owned.volume);
    let body = replaced(&sent.body, SESSION.as_bytes(), owned.session.as_bytes());
    let body = replaced(&body, b"the key", key.as_bytes());
    let answer = client
        .call(sent.method.parse::<Method>()?, &path, &sent.kind, body)
        .await?;
    if sent.path == "/v1/sessions/session" && answer.status == 200 {
        let made = json!({"session_id": answer.json()["session_id"]});
        let killed = client.post("/kill", &made).await?;
        anyhow::ensure!(killed.status == 200, "{killed:?}");
    } else if answer.status == 200 && ["/v1/vms", "/v1/vms/{vm_id}/clone"].contains(&sent.path) {
        let made = answer.json();
        let first = [made["vm_id"].clone()];
        let all = made["vms"].as_array().map_or(&first[..], Vec::as_slice);
        let ids = all.iter().map(|vm| vm.get("vm_id").unwrap_or(vm));
        for id in ids.filter_map(Value::as_str).filter(|id| *id != owned.vm) {
            let deleted = client.delete(&format!("/v1/vms/{id}")).await?;
            anyhow::ensure!(deleted.status == 200, "{deleted:?}");
        }
    }
    Ok(answer)
}

/// The document names the status, it is no 500, and a refusal says why.
fn fits(operation: &Value, answer: &Answer) -> Result<(), TestCaseError> {
    let status = answer.status.as_u16();
    prop_assert!(
        operation["responses"][status.to_string()].is_object(),
        "not in the document: {answer:?}"
    );
    prop_assert!(status < 500, "{answer:?}");
    if status >= 400 {
        prop_assert!(!answer.detail().is_empty(), "{answer:?}");
    }
    Ok(())
}

fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|part| part == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn json_body() -> impl Strategy<Value = Sent> {
    let fields = btree_map(select(&FIELDS[..]), value(), 0..6);
    let likely = (any::<bool>(), any::<bool>());
    let text = prop_oneof![
        6 => (fields, likely).prop_map(|(fields, likely)| object(fields, likely)),
        1 => value().prop_map(|value| value.to_string()),
        1 => (1usize..3000, select(&["[", "{\"a\":", "\"", "-", "1e"][..])).prop_map(|(times, part)| part.repeat(times)),
    ];
    (select(&JSON[..]), text, damage()).prop_map(|((method, path), text, damage)| Sent {
        method,
        path,
        kind: "application/json".to_owned(),
        body: damage.applied(text.into_bytes()),
    })
}

/// The fields, with those that get a request further than its first check.
fn object(fields: BTreeMap<&str, Value>, (known, complete): (bool, bool)) -> String {
    let mut fields: serde_json::Map<String, Value> = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    if known {
        fields.insert("session_id".to_owned(), json!(SESSION));
        fields.insert("api_key".to_owned(), json!("the key"));
    }
    if complete {
        fields.insert("command".to_owned(), json!("echo x"));
    }
    Value::Object(fields).to_string()
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        select(&[0, 1, 2, 20, 128, 256, 300, 600, 1024, 8192, 86_400][..]).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        select(&["python", "bash", "", "\0", "..", "ssh-ed25519 AAAA", "true"][..])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(".{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Bytes that are changed, and an end that is cut.
#[derive(Clone, Debug)]
struct Damage {
    changes: Vec<(Index, u8)>,
    cut: Option<Index>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let some = (
        vec((any::<Index>(), any::<u8>()), 0..4),
        proptest::option::weighted(0.3, any::<Index>()),
    )
        .prop_map(|(changes, cut)| Damage { changes, cut });
    let none = Just(Damage {
        changes: Vec::new(),
        cut: None,
    });
    prop_oneof![none, some]
}

impl Damage {
    fn applied(self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        for (place, value) in self.changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }
}

fn multipart() -> impl Strategy<Value = Sent> {
    let name = prop_oneof![
        6 => select(&["remote_path", "session_id", "file", "recursive"][..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let content = prop_oneof![
        3 => select(&["a/b", "/app", "", "true", "\0", "../../x", "\u{feff}"][..]).prop_map(|text| text.as_bytes().to_vec()),
        2 => vec(any::<u8>(), 0..200),
        2 => Just(SESSION.as_bytes().to_vec()),
    ];
    let extra = select(
        &[
            "",
            "; filename=\"x\"",
            "; filename*=UTF-8''%ff",
            "\r\nContent-Type: text/plain",
            "\r\nX: \u{1}",
        ][..],
    );
    let part = (name, content, extra).prop_map(|(name, content, extra)| {
        let head =
            format!("--limit\r\nContent-Disposition: form-data; name=\"{name}\"{extra}\r\n\r\n");
        [head.as_bytes(), &content, b"\r\n"].concat()
    });
    let parts = prop_oneof![
        2 => vec(part.clone(), 0..6).prop_map(|parts| parts.concat()),
        1 => part.prop_map(|last| [whole_form(), last].concat()),
        1 => Just(whole_form()),
    ];
    let kind = prop_oneof![
        8 => Just("multipart/form-data; boundary=limit".to_owned()),
        1 => select(&["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"li", "text/plain"][..]).prop_map(str::to_owned),
        1 => "[ -~]{0,80}",
    ];
    (parts, kind, damage()).prop_map(|(parts, kind, damage)| Sent {
        method: "POST",
        path: "/upload",
        kind,
        body: damage.applied([&parts[..], b"--limit--\r\n"].concat()),
    })
}

/// A form that is right but for its end.
fn whole_form() -> Vec<u8> {
    [("remote_path", "a"), ("session_id", SESSION), ("file", "x")]
        .map(|(name, content)| {
            format!(
                "--limit\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n"
            )
        })
        .concat()
        .into_bytes()
}

fn urlencoded() -> impl Strategy<Value = Sent> {
    let pair = (
        select(&["filename", "session_id", "x", "%66ilename", ""][..]),
        select(&["", "a", "%", "%zz", "%00", "%ff", "+", "..%2f..", SESSION][..]),
    );
    let kind = select(
        &[
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded; charset=latin1",
            "text/plain",
            "",
        ][..],
    );
    (vec(pair, 0..5), kind, damage()).prop_map(|(pairs, kind, damage)| {
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Sent {
            method: "POST",
            path: "/download",
            kind: kind.to_owned(),
            body: damage.applied(pairs.join("&").into_bytes()),
        }
    })
}
