use crate::{execute, session_of, text, vm_of};
use anyhow::{Context, Result};
use futures::{SinkExt, StreamExt};
use instavm_node_api::Ending;
use instavm_testkit::{Client, DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

on_each_database!(
    both_ways_lead_to_the_same_terminals,
    a_socket_carries_bytes_sizes_and_the_end,
    another_socket_takes_over,
    what_cannot_be_is_refused,
    terminals_end_with_their_vm_and_sessions_get_another,
);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A session and its VM.
async fn begin(platform: &TestPlatform) -> Result<(Client, String, String)> {
    let client = platform.client();
    let session = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &session).await?;
    Ok((client, session, vm))
}

async fn connect(platform: &TestPlatform, path: &str) -> Result<Socket> {
    let key = &platform.key;
    let address = platform.address();
    let url = format!("ws://{address}{path}?api_key={key}");
    Ok(connect_async(url).await?.0)
}

/// Binary frames until they hold the text.
async fn wait_for(socket: &mut Socket, wanted: &str) -> Result<()> {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(wanted) {
        match socket.next().await.context("the end")?? {
            Message::Binary(bytes) => all.extend_from_slice(&bytes),
            Message::Ping(_) => {}
            other => anyhow::bail!("{other:?} before {wanted:?}"),
        }
    }
    Ok(())
}

/// What comes that is no output, up to the close.
async fn rest(socket: &mut Socket) -> Result<(Vec<Value>, u16)> {
    let mut said = Vec::new();
    loop {
        match socket.next().await.context("the end")?? {
            Message::Text(text) => said.push(serde_json::from_str(&text)?),
            Message::Close(frame) => {
                return Ok((said, frame.map_or(0, |frame| frame.code.into())));
            }
            _ => {}
        }
    }
}

async fn both_ways_lead_to_the_same_terminals(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let by_session = format!("/v1/sessions/{session}/pty/sessions");
    let by_vm = format!("/v1/vms/{vm}/pty/sessions");
    let opened = client
        .post(
            &by_session,
            &json!({"id": "pty-1", "cols": 100, "rows": 30, "extra": 1}),
        )
        .await?;
    assert_eq!(opened.status, 200, "{opened:?}");
    let opened = opened.json();
    assert_eq!(
        (&opened["session_id"], &opened["id"], &opened["vm_id"]),
        (&json!("pty-1"), &json!("pty-1"), &json!(vm))
    );
    assert_eq!(
        (
            &opened["cols"],
            &opened["rows"],
            &opened["alive"],
            &opened["exit_code"]
        ),
        (&json!(100), &json!(30), &json!(true), &Value::Null)
    );
    let other = client.post(&by_vm, &json!({})).await?.json();
    let id = text(&other["id"]);
    assert!(id.starts_with("pty-") && id.len() == 16, "{id}");
    assert_eq!((&other["cols"], &other["rows"]), (&json!(80), &json!(24)));
    for path in [&by_session, &by_vm] {
        assert_eq!(
            client.get(path).await?.json(),
            json!({"sessions": [opened, other]})
        );
        assert_eq!(client.get(&format!("{path}/pty-1")).await?.json(), opened);
    }
    let resize = format!("{by_vm}/pty-1/resize");
    let resized = client
        .post(&resize, &json!({"cols": 7, "rows": 9}))
        .await?
        .json();
    assert_eq!((&resized["cols"], &resized["rows"]), (&json!(7), &json!(9)));
    for _ in 0..2 {
        let deleted = client.delete(&format!("{by_session}/pty-1")).await?.json();
        assert_eq!(
            deleted,
            json!({"status": "deleted", "session_id": "pty-1", "id": "pty-1"})
        );
    }
    assert_eq!(client.get(&format!("{by_vm}/pty-1")).await?.status, 404);
    Ok(())
}

async fn a_socket_carries_bytes_sizes_and_the_end(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let all = format!("/v1/vms/{vm}/pty/sessions");
    client
        .post(&all, &json!({"id": "a", "shell": "/bin/zsh -f"}))
        .await?;
    let mut socket = connect(&platform, &format!("/v1/sessions/{session}/pty/a/connect")).await?;
    // What was written before anybody was there.
    wait_for(&mut socket, "exec /bin/zsh -f $ ").await?;
    socket.send(Message::binary(&b"hello\n"[..])).await?;
    wait_for(&mut socket, "hello\n").await?;
    for ignored in [
        "{\"type\":\"resize\",\"cols\":0,\"rows\":1}",
        "{\"type\":\"other\"}",
        "no JSON",
    ] {
        socket.send(Message::text(ignored)).await?;
    }
    socket
        .send(Message::text(
            "{\"type\":\"resize\",\"cols\":90,\"rows\":20}",
        ))
        .await?;
    wait_for(&mut socket, "resized 90x20").await?;
    assert_eq!(
        client.get(&format!("{all}/a")).await?.json()["attached"],
        true
    );
    socket.send(Message::binary(&b"exit 3\n"[..])).await?;
    let (said, code) = rest(&mut socket).await?;
    assert_eq!(said, [json!({"type": "exit", "exit_code": 3})]);
    assert_eq!(code, u16::from(CloseCode::Normal));
    let ended = client.get(&format!("{all}/a")).await?.json();
    assert_eq!(
        (&ended["alive"], &ended["exit_code"]),
        (&json!(false), &json!(3))
    );
    Ok(())
}

async fn another_socket_takes_over(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, _, vm) = begin(&platform).await?;
    client
        .post(&format!("/v1/vms/{vm}/pty/sessions"), &json!({"id": "a"}))
        .await?;
    let path = format!("/v1/vms/{vm}/pty/a/connect");
    let mut first = connect(&platform, &path).await?;
    first.send(Message::binary(&b"one"[..])).await?;
    wait_for(&mut first, "one").await?;
    let mut second = connect(&platform, &path).await?;
    assert_eq!(rest(&mut first).await?, (vec![], 4409));
    second.send(Message::binary(&b"two"[..])).await?;
    wait_for(&mut second, "two").await
}

async fn what_cannot_be_is_refused(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let all = format!("/v1/vms/{vm}/pty/sessions");
    for (field, wrong) in [
        ("cols", json!({"cols": 0})),
        ("rows", json!({"rows": 1001})),
        ("cols", json!({"cols": "wide"})),
        ("id", json!({"id": "../x"})),
        ("id", json!({"id": ""})),
        ("id", json!({"id": "x".repeat(65)})),
        ("shell", json!({"shell": "a\u{0}b"})),
        ("command", json!({"command": " "})),
    ] {
        let answer = client.post(&all, &wrong).await?;
        assert_eq!(answer.status, 422, "{wrong}");
        assert!(answer.detail().contains(field), "{}", answer.detail());
    }
    assert_eq!(client.post(&all, &json!({"id": "a"})).await?.status, 200);
    assert_eq!(client.post(&all, &json!({"id": "a"})).await?.status, 409);
    let size = json!({"cols": 5, "rows": 5});
    assert_eq!(
        client.post(&format!("{all}/b/resize"), &size).await?.status,
        404
    );
    assert_eq!(
        client
            .post(&format!("{all}/a/resize"), &json!({"cols": 5}))
            .await?
            .status,
        422
    );
    let socket = format!("/v1/sessions/{session}/pty/a/connect");
    assert_eq!(client.get(&socket).await?.status, 400, "it is no WebSocket");
    assert!(
        connect(&platform, &format!("/v1/vms/{vm}/pty/b/connect"))
            .await
            .is_err()
    );
    let address = platform.address();
    for key in ["", "?api_key=instavm_sk_wrong"] {
        let refused = connect_async(format!("ws://{address}{socket}{key}")).await;
        let error = refused.err().context("a stranger was let in")?.to_string();
        assert!(error.contains("401"), "{error}");
    }
    for _ in 1..64 {
        assert_eq!(client.post(&all, &json!({})).await?.status, 200);
    }
    let full = client.post(&all, &json!({})).await?;
    assert_eq!(full.status, 409);
    assert!(full.detail().contains("64"), "{}", full.detail());
    Ok(())
}

async fn terminals_end_with_their_vm_and_sessions_get_another(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let (client, session, vm) = begin(&platform).await?;
    let by_session = format!("/v1/sessions/{session}/pty/sessions");
    client.post(&by_session, &json!({"id": "a"})).await?;
    platform.node.end(&vm, Ending::Expired);
    // Its end is known when the session has another VM.
    assert_eq!(execute(&client, &session, "echo x").await?.status, 200);
    assert_eq!(
        client.get(&by_session).await?.json(),
        json!({"sessions": []})
    );
    let by_old_vm = format!("/v1/vms/{vm}/pty/sessions");
    assert_eq!(
        client.get(&by_old_vm).await?.json(),
        json!({"sessions": []})
    );
    assert_eq!(client.post(&by_old_vm, &json!({})).await?.status, 409);
    assert_eq!(client.delete(&format!("{by_old_vm}/a")).await?.status, 200);
    let again = client.post(&by_session, &json!({"id": "a"})).await?;
    assert_eq!(again.status, 200);
    assert_ne!(again.json()["vm_id"], json!(vm));
    client
        .post("/kill", &json!({"session_id": session}))
        .await?;
    assert_eq!(client.post(&by_session, &json!({})).await?.status, 404);
    Ok(())
}
