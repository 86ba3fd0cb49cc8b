use crate::{eventually, execute, session_of, text, vm_of};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_each_database!(
    code_keeps_its_state_and_its_failure_is_no_http_failure,
    bytes_that_are_no_text_are_there_exactly,
    long_output_is_the_same_for_a_slow_reader,
    the_time_limit_answers_with_what_there_is,
    a_lost_interpreter_is_told,
    code_that_ends_its_vm_gets_a_conflict_and_the_next_a_new_vm,
    wrong_requests_are_refused_by_name,
    a_task_is_on_record_at_once_and_completes,
    a_task_that_cannot_start_or_loses_its_vm_completes_with_the_reason,
    many_at_once_do_not_mix,
);

async fn code_keeps_its_state_and_its_failure_is_no_http_failure(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let set = execute(&client, &id, "set x 42").await?.json();
    assert_eq!(set["exit_code"], 0);
    let run = execute(&client, &id, "get x").await?.json();
    assert_eq!(run["stdout"], "42\n");
    assert_eq!(run["output"], "42\n");
    assert_eq!(run["stderr"], "");
    assert_eq!(run["session_id"], json!(id));
    assert_eq!(run["language"], "python");
    assert_eq!(run["timed_out"], false);
    for key in ["execution_time", "cpu_time"] {
        assert!(run[key].is_f64(), "{run}");
    }
    assert!(run["created_at"].is_string());
    let keys: Vec<_> = run
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.is_null())
        .collect();
    assert!(keys.is_empty(), "null values: {keys:?}");

    let answer = execute(&client, &id, "get missing").await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["exit_code"], 1);
    assert!(text(&answer.json()["stderr"]).contains("NameError"));
    Ok(())
}

async fn bytes_that_are_no_text_are_there_exactly(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let run = execute(&client, &id, "bytes 61 ff 00").await?.json();
    assert_eq!(run["stdout"], "a\u{FFFD}\0");
    assert_eq!(run["stdout_b64"], "Yf8A");
    assert!(run.get("stderr_b64").is_none());
    let clean = execute(&client, &id, "echo plain").await?.json();
    assert!(clean.get("stdout_b64").is_none());
    Ok(())
}

/// Sends a request and reads its answer a little at a time, while others are served; returns head and body.
async fn read_slowly(platform: &TestPlatform, request: &str) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(platform.address()).await?;
    let key = &platform.key;
    let head = format!("HTTP/1.0\r\nHost: x\r\nX-API-Key: {key}\r\n");
    let request = request.replacen("HTTP/1.0\r\n", &head, 1);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        let status = platform.client_with(None).get("/healthz").await?.status;
        anyhow::ensure!(status == 200, "nobody else is served: {status}");
    }
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(end.context("no head")? + 4);
    Ok((String::from_utf8(answer)?.to_lowercase(), body))
}

async fn long_output_is_the_same_for_a_slow_reader(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    // NUL, a quotation mark, U+2028, half a character, a surrogate, a whole character.
    let bits = "00 22 e2 80 a8 f0 9f ed a0 80 f0 9f 98 80";
    let bytes: Vec<u8> = bits
        .split(' ')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    let bytes = bytes.repeat(100_000);
    let wanted = String::from_utf8_lossy(&bytes);
    let check = |run: &Value, names: &[&str]| {
        for name in names {
            assert!(run[name].as_str() == Some(&wanted), "{name}");
        }
        assert!(run["stdout_b64"].as_str() == Some(&STANDARD.encode(&bytes)));
        assert!(run.get("stderr_b64").is_none());
    };
    let code = format!("fill 100000 {bits}\nerr and this\nlose");
    let body = json!({"session_id": id, "command": code}).to_string();
    let request = format!(
        "POST /execute HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (head, body) = read_slowly(&platform, &request).await?;
    assert!(
        head.starts_with("http/1.0 200") && head.contains("application/json"),
        "{head}"
    );
    let run: Value = serde_json::from_slice(&body)?;
    check(&run, &["stdout", "output"]);
    let notes =
        "and this\n[instavm] the interpreter's variables are lost: the interpreter was killed\n";
    assert_eq!(run["stderr"], notes);
    assert_eq!(run["state_lost"], true);

    let started = start(&client, &id, &code).await?;
    let path = format!("/v1/executions/{}", text(&started["task_id"]));
    eventually(&client, &path, |task| task["is_complete"] == true).await?;
    let (_, body) = read_slowly(&platform, &format!("GET {path} HTTP/1.0\r\n\r\n")).await?;
    let task: Value = serde_json::from_slice(&body)?;
    check(&task, &["stdout", "serialized_stdout"]);
    assert_eq!(task["serialized_stderr"], notes);
    Ok(())
}

async fn the_time_limit_answers_with_what_there_is(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let body =
        json!({"session_id": id, "command": "echo before\ngate never\necho after", "timeout": 1});
    let answer = client.post("/execute", &body).await?;
    assert_eq!(answer.status, 200);
    let run = answer.json();
    assert_eq!(run["exit_code"], 124);
    assert_eq!(run["timed_out"], true);
    assert_eq!(run["stdout"], "before\n");
    assert!(text(&run["stderr"]).contains("time limit"));
    Ok(())
}

async fn a_lost_interpreter_is_told(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    execute(&client, &id, "set x 1").await?;
    let run = execute(&client, &id, "lose").await?.json();
    assert_eq!(run["state_lost"], true);
    assert!(text(&run["stderr"]).contains("variables are lost"));
    assert_eq!(execute(&client, &id, "get x").await?.json()["exit_code"], 1);
    Ok(())
}

async fn code_that_ends_its_vm_gets_a_conflict_and_the_next_a_new_vm(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let answer = execute(&client, &id, "die").await?;
    assert_eq!(answer.status, 409);
    assert!(answer.detail().contains("ended"));
    assert_eq!(
        execute(&client, &id, "echo again").await?.json()["stdout"],
        "again\n"
    );
    Ok(())
}

/// Requests, the status that they get, and a word of the reason.
fn wrong_requests(id: &str) -> Vec<(Value, u16, &'static str)> {
    let unknown = "7f3f9dc4-6c9e-4f5e-9a83-0c1b7d0f8a11";
    vec![
        (json!({"session_id": id}), 422, "command"),
        (json!({"command": "x"}), 422, "session_id"),
        (json!({"session_id": id, "command": 5}), 422, "command"),
        (
            json!({"session_id": id, "command": "x", "timeout": 0}),
            422,
            "timeout",
        ),
        (
            json!({"session_id": id, "command": "x", "timeout": 601}),
            422,
            "timeout",
        ),
        (
            json!({"session_id": id, "command": "x", "timeout": "5"}),
            422,
            "timeout",
        ),
        (
            json!({"session_id": id, "command": "x", "language": "ruby"}),
            422,
            "language",
        ),
        (
            json!({"session_id": id, "command": "x\u{0}", "language": "bash"}),
            422,
            "command",
        ),
        (
            json!({"session_id": id, "command": "x", "vault_ids": ["v"]}),
            422,
            "vault_ids",
        ),
        (
            json!({"session_id": unknown, "command": "x"}),
            404,
            "session not found",
        ),
        (
            json!({"session_id": "no-uuid", "command": "x"}),
            404,
            "session not found",
        ),
        (
            json!({"session_id": id, "command": "x", "code": "y"}),
            422,
            "command",
        ),
        (json!([1]), 422, ""),
    ]
}

async fn wrong_requests_are_refused_by_name(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let cases = wrong_requests(&id);
    for path in ["/execute", "/execute_async"] {
        for (body, status, word) in &cases {
            let answer = client.post(path, body).await?;
            assert_eq!(answer.status, *status, "{path} {body}: {answer:?}");
            assert!(
                answer.detail().contains(word),
                "{body}: {}",
                answer.detail()
            );
        }
    }
    let body = json!({"session_id": id, "code": "echo alias", "vault_ids": [], "language": null, "timeout": null});
    assert_eq!(
        client.post("/execute", &body).await?.json()["stdout"],
        "alias\n"
    );
    Ok(())
}

async fn start(client: &instavm_testkit::Client, session: &str, code: &str) -> Result<Value> {
    let body = json!({"session_id": session, "command": code, "language": "bash"});
    let answer = client.post("/execute_async", &body).await?;
    anyhow::ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.json())
}

async fn a_task_is_on_record_at_once_and_completes(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let started = start(&client, &id, "echo out\nerr bad\ngate door\nexit 3").await?;
    assert_eq!(started["session_id"], json!(id));
    assert_eq!(started["language"], "bash");
    let path = format!("/v1/executions/{}", text(&started["task_id"]));
    let running = client.get(&path).await?.json();
    assert_eq!(running["is_complete"], false);
    assert_eq!(running["status"], "running");
    assert_eq!(running["exit_code"], Value::Null);

    platform.node.open_gate("door");
    let done = eventually(&client, &path, |task| task["is_complete"] == true).await?;
    assert_eq!(done["status"], "completed");
    assert_eq!(done["serialized_stdout"], "out\n");
    assert_eq!(done["serialized_stderr"], "bad\n");
    assert_eq!(done["stdout"], "out\n");
    assert_eq!(done["exit_code"], 3);
    assert_eq!(done["session_id"], json!(id));
    assert_eq!(done["vm_id"], json!(vm_of(&client, &id).await?));
    assert!(done["execution_time"].is_f64() && done["cpu_time"].is_f64());
    assert!(done["created_at"].is_string());
    assert_eq!(client.get("/v1/executions/task_none").await?.status, 404);
    Ok(())
}

async fn a_task_that_cannot_start_or_loses_its_vm_completes_with_the_reason(
    kind: DatabaseKind,
) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let refused = start(&client, &id, "refuse").await?;
    assert_eq!(refused["status"], "failed");
    let path = format!("/v1/executions/{}", text(&refused["task_id"]));
    let task = client.get(&path).await?.json();
    assert_eq!(task["is_complete"], true);
    assert!(text(&task["serialized_stderr"]).contains("no process to spare"));

    let started = start(&client, &id, "gate never").await?;
    let path = format!("/v1/executions/{}", text(&started["task_id"]));
    platform.node.gate_occupied("never", 1).await;
    platform
        .node
        .end(&vm_of(&client, &id).await?, Ending::Expired);
    let task = eventually(&client, &path, |task| task["is_complete"] == true).await?;
    assert_eq!(task["status"], "failed");
    assert!(text(&task["serialized_stderr"]).contains("VM ended"));
    Ok(())
}

async fn many_at_once_do_not_mix(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let codes: Vec<_> = (0..200).map(|number| format!("echo {number}")).collect();
    let runs = codes.iter().map(|code| execute(&client, &id, code));
    for (number, run) in futures::future::try_join_all(runs)
        .await?
        .iter()
        .enumerate()
    {
        assert_eq!(run.json()["stdout"], format!("{number}\n"));
    }
    Ok(())
}
