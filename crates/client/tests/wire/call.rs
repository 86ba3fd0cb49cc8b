//! What all calls have in common, sessions, executions, files.

use crate::server::{Server, json};
use anyhow::Result;
use axum::body::Body;
use axum::http::{Method as HttpMethod, StatusCode, header};
use axum::response::{IntoResponse, Response};
use instavm::{Call, Client, Error, Method, NetworkCause, Target, UsageDays};
use std::time::Duration;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_session_is_started_with_the_key_in_the_body_only() -> Result<()> {
    let server = Server::start([json(200, r#"{"session_id":"s1"}"#)]).await?;
    let client = server
        .builder()
        .memory_mb(512)
        .env("A", "b")
        .build()
        .await?;
    assert_eq!(client.start_session().await?, "s1");
    let [seen] = &server.seen()[..] else {
        panic!("one request")
    };
    assert_eq!(
        (&seen.method, seen.uri.as_str()),
        (&HttpMethod::POST, "/v1/sessions/session")
    );
    assert!(!seen.headers.contains_key("x-api-key"));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&seen.body)?,
        serde_json::json!({"api_key": "key-1", "vm_lifetime_seconds": 300, "memory_mb": 512, "env": {"A": "b"}})
    );
    Ok(())
}

#[tokio::test]
async fn a_session_without_an_id_is_no_session() -> Result<()> {
    let server = Server::start([json(200, "{}")]).await?;
    let started = server.builder().build().await?.start_session().await;
    assert!(matches!(started, Err(Error::Answer { .. })), "{started:?}");
    Ok(())
}

type Check = fn(&Error) -> bool;

/// A status, a body, what it says, and which error it is.
const STATUSES: [(u16, &str, Option<&str>, Check); 9] = [
    (401, r#"{"detail":"no"}"#, Some("no"), |e| {
        matches!(e, Error::Authentication { .. })
    }),
    (403, r#"{"detail":"over plan"}"#, Some("over plan"), |e| {
        matches!(e, Error::Forbidden { .. })
    }),
    (429, "slow down", Some("slow down"), |e| {
        matches!(e, Error::RateLimit { .. })
    }),
    (404, r#"{"detail":"","error":"gone"}"#, Some("gone"), |e| {
        matches!(e, Error::Execution { .. })
    }),
    (
        422,
        r#"{"detail":[{"msg":"bad"}]}"#,
        Some(r#"[{"msg":"bad"}]"#),
        |e| matches!(e, Error::Execution { .. }),
    ),
    (400, r#"{"message":"m"}"#, Some("m"), |e| {
        matches!(e, Error::Execution { .. })
    }),
    (409, "", None, |e| matches!(e, Error::Execution { .. })),
    (500, "[1]", None, |e| {
        matches!(
            e,
            Error::Network {
                cause: NetworkCause::Server(_),
                ..
            }
        )
    }),
    (504, "late", Some("late"), |e| {
        matches!(
            e,
            Error::Network {
                cause: NetworkCause::Server(_),
                ..
            }
        )
    }),
];

#[tokio::test]
async fn statuses_become_the_errors_of_the_python_sdk() -> Result<()> {
    let server = Server::start(
        STATUSES
            .iter()
            .map(|(status, body, ..)| json(*status, body)),
    )
    .await?;
    // Whatever the platform answers is final.
    let client = server.builder().max_retries(3).build().await?;
    client.use_session("s1");
    for (status, body, detail, check) in STATUSES {
        let error = client.execute("x").await.unwrap_err();
        assert!(check(&error), "{status}: {error:?}");
        assert_eq!(
            (error.status(), error.detail()),
            (Some(status), detail),
            "{error}"
        );
        assert_eq!(
            error.failure().map(|failure| failure.body.as_str()),
            Some(body)
        );
    }
    assert_eq!(server.seen().len(), 9);
    Ok(())
}

#[tokio::test]
async fn a_silent_server_is_a_network_error_in_time() -> Result<()> {
    let server = Server::start([]).await?;
    let builder = server.builder().timeout(Duration::from_millis(50));
    let client = builder.build().await?;
    client.use_session("s1");
    let silent = client.execute("x").await;
    let timed_out = |cause: &NetworkCause| matches!(cause, NetworkCause::TimedOut(_));
    assert!(
        matches!(&silent, Err(Error::Network { cause, .. }) if timed_out(cause)),
        "{silent:?}"
    );
    let body = server.seen()[0].body.clone();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&body)?,
        serde_json::json!({"command": "x", "session_id": "s1"})
    );
    Ok(())
}

#[tokio::test]
async fn a_call_without_an_answer_is_repeated() -> Result<()> {
    let server = Server::start([]).await?;
    let client = server
        .builder()
        .timeout(Duration::from_millis(50))
        .max_retries(1)
        .build()
        .await?;
    let failed = client.get_current_user().await.unwrap_err();
    assert!(matches!(failed, Error::Network { .. }), "{failed:?}");
    assert_eq!(server.seen().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_refused_connection_is_a_network_error() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let client = Client::builder()
        .api_key("k")
        .base_url(format!("http://{free}"))
        .without_session()
        .build()
        .await?;
    let refused = client.get_current_user().await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Network {
                cause: NetworkCause::Connection(_),
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(refused.status(), None);
    Ok(())
}

#[tokio::test]
async fn redirects_stay_on_their_host() -> Result<()> {
    let other = Server::start([json(200, "{}")]).await?;
    let away = other.url.replace("127.0.0.1", "localhost");
    let moved =
        |to: String| (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    let server = Server::start([
        moved("/v1/elsewhere".to_owned()),
        json(200, r#"{"here":true}"#),
        moved(format!("{away}/v1/vms")),
    ])
    .await?;
    let client = server.builder().build().await?;
    let answer = client.call(Call::new(Method::Get, "/v1/vms")).await?;
    assert_eq!(answer.json::<serde_json::Value>()?["here"], true);
    assert!(
        client
            .call(Call::new(Method::Get, "/v1/vms"))
            .await
            .is_err()
    );
    assert!(other.seen().is_empty(), "the key stays at home");
    Ok(())
}

#[tokio::test]
async fn calls_carry_the_key_and_encode_what_varies() -> Result<()> {
    let server =
        Server::start([json(200, "[]"), json(200, r#"{"status":"deleted","id":7}"#)]).await?;
    let client = server.builder().build().await?;
    let path = format!("/v1/vms/{}", instavm::path_segment("a/b:c d")?);
    client
        .call(Call::new(Method::Get, path).query("q", "x y&z"))
        .await?;
    client.delete_ssh_key(7).await?;
    let seen = server.seen();
    assert_eq!(seen[0].uri, "/v1/vms/a%2Fb%3Ac%20d?q=x+y%26z");
    assert_eq!(seen[0].headers["x-api-key"], "key-1");
    assert_eq!(
        (&seen[1].method, seen[1].uri.as_str()),
        (&HttpMethod::DELETE, "/v1/ssh-keys/7")
    );
    assert!(seen[1].body.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() -> Result<()> {
    let cut = Response::new(Body::from(r#"{"filename":"x","size":9,"content":"aGVsbG8"#));
    let server = Server::start([cut, json(200, "no json")]).await?;
    let client = server.builder().build().await?;
    client.use_session("s1");
    let broken = client.download_bytes("x").await.unwrap_err();
    assert!(matches!(broken, Error::Answer { .. }), "{broken:?}");
    let other = client.execute("x").await.unwrap_err();
    assert!(matches!(other, Error::Answer { .. }), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_sent_is_said_at_once() {
    for builder in [
        Client::builder().api_key("k").base_url("ftp://host"),
        Client::builder().api_key("k").base_url("nonsense"),
        Client::builder()
            .api_key("two\nlines")
            .base_url("http://host"),
        Client::builder()
            .api_key("k")
            .base_url("http://host")
            .timeout(Duration::ZERO),
    ] {
        let built = builder.build().await;
        assert!(matches!(built, Err(Error::Invalid { .. })), "{built:?}");
    }
}

#[tokio::test]
async fn nothing_printed_holds_the_key() -> Result<()> {
    let server = Server::start([]).await?;
    let builder = server
        .builder()
        .api_key("very-secret")
        .env("TOKEN", "hidden-value");
    let text = format!("{builder:?}");
    let client = builder.build().await?;
    let text = format!("{text}{client:?}");
    assert!(
        !text.contains("very-secret") && !text.contains("hidden-value"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn usage_is_asked_for_by_days() -> Result<()> {
    let day = r#"{"period_start":"2026-04-01","total_days":1,"totals":{"cpu_hours":0.5},
        "daily_breakdown":[{"date":"2026-04-01","cost_dollars":1,"cpu_hours":0.5,"ram_gib_hours":2}],"more":[]}"#;
    let server = Server::start([json(200, day), json(200, "{}"), json(404, "{}")]).await?;
    let client = server.builder().build().await?;
    let usage = client.get_usage_breakdown(UsageDays::default()).await?;
    assert_eq!((usage.total_days, usage.totals.cpu_hours), (1, 0.5));
    assert_eq!(usage.daily_breakdown[0].ram_gib_hours, 2.0);
    let april = UsageDays::between("2026-04-01", "2026-04-30");
    let nothing = client.get_usage_breakdown(april).await?;
    assert!(nothing.daily_breakdown.is_empty());
    let none = client.get_usage_breakdown(UsageDays::last(7)).await;
    assert!(matches!(none, Err(Error::Api { .. })), "{none:?}");
    let seen: Vec<String> = server.seen().into_iter().map(|seen| seen.uri).collect();
    let path = "/v1/users/me/usage-breakdown?days=";
    let expected = ["30", "30&start_date=2026-04-01&end_date=2026-04-30", "7"];
    assert_eq!(seen, expected.map(|rest| format!("{path}{rest}")));
    Ok(())
}

#[tokio::test]
async fn an_upload_has_its_parts_in_order() -> Result<()> {
    let uploaded =
        r#"{"status":"uploaded","remote_path":"dir","session_id":"s1","size":7,"unpacked":true}"#;
    let server = Server::start([json(200, uploaded)]).await?;
    let client = server.builder().build().await?;
    client.use_session("s1");
    let answer = client
        .upload_bytes("archive", Target::unpacked_into("dir"))
        .await?;
    assert!(answer.unpacked);
    let [seen] = &server.seen()[..] else {
        panic!("one request")
    };
    let kind = seen.headers["content-type"].to_str()?;
    let boundary = kind
        .strip_prefix("multipart/form-data; boundary=")
        .unwrap_or_default();
    let part = |rest: &str| format!("--{boundary}\r\nContent-Disposition: form-data; {rest}\r\n");
    let expected = [
        part("name=\"remote_path\"\r\n\r\ndir"),
        part("name=\"session_id\"\r\n\r\ns1"),
        part("name=\"recursive\"\r\n\r\ntrue"),
        part("name=\"file\"; filename=\"content\"\r\n\r\narchive"),
        format!("--{boundary}--\r\n"),
    ];
    assert_eq!(String::from_utf8_lossy(&seen.body), expected.concat());
    assert_eq!(seen.headers["x-api-key"], "key-1");
    Ok(())
}
