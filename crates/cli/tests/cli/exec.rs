use crate::environment::{Environment, Server};
use anyhow::Result;
use insta::assert_snapshot;
use instavm_testkit::TestPlatform;
use serde_json::Value;

/// A line of text without what differs from run to run.
fn steady(text: &str) -> String {
    let steady = |line: &str| {
        let label = ["Task", "Session", "Created", "Execution time", "CPU time"]
            .into_iter()
            .find(|label| {
                line.strip_prefix(label)
                    .is_some_and(|rest| rest.starts_with(": "))
            });
        label.map_or_else(|| line.to_owned(), |label| format!("{label}: […]"))
    };
    text.lines().map(steady).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn code_runs_in_a_new_session() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let environment = Environment::of(&platform)?;
    let done = environment
        .run(&[
            "exec",
            "--cmd",
            "echo hello\nerr careful",
            "--language",
            "python",
        ])
        .await?;
    assert_snapshot!(steady(done.good()), @r"
    Session: […]
    Language: python
    Created: […]
    Execution time: […]
    CPU time: […]

    Stdout
    hello

    Stderr
    careful
    ");
    let quiet = environment.run(&["exec", "--cmd", "set a b"]).await?;
    assert!(quiet.good().ends_with("\nNo output.\n"), "{quiet:?}");
    Ok(())
}

#[tokio::test]
async fn a_session_is_reused_and_code_may_fail() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let environment = Environment::of(&platform)?;
    let first = environment
        .run(&["exec", "-j", "--cmd", "set name value\nexit 3"])
        .await?
        .json();
    assert_eq!(
        (&first["exit_code"], platform.node.creations()),
        (&Value::from(3), 1)
    );
    let session = first["session_id"].as_str().unwrap_or_default();
    let again = environment
        .run(&["exec", "--cmd", "get name", "--session", session, "--json"])
        .await?;
    assert_eq!(again.json()["stdout"], "value\n");
    assert_eq!(platform.node.creations(), 1);
    Ok(())
}

#[tokio::test]
async fn a_file_has_a_language() -> Result<()> {
    let created = r#"{"session_id":"s-1"}"#;
    let server = Server::start(&[
        (200, created),
        (200, r#"{"stdout":"","output":"all"}"#),
        (200, created),
        (200, "{}"),
        (200, created),
        (200, "{}"),
    ])
    .await?;
    let environment = server.environment()?;
    for name in ["a.PY", "b.bash", "c.txt"] {
        std::fs::write(environment.home().join(name), "echo é\n")?;
    }
    let done = environment.run(&["exec", "a.PY", "--timeout", "7"]).await?;
    assert_eq!(
        done.good(),
        "Session: s-1\nLanguage: python\n\nStdout\nall\n"
    );
    environment.run(&["exec", "b.bash"]).await?.good();
    let plain = environment.run(&["exec", "-j", "c.txt"]).await?;
    assert_eq!(
        plain.good(),
        "{\"session_id\": \"s-1\", \"language\": null}\n"
    );
    let session =
        r#"POST /v1/sessions/session key=none {"api_key":"key-1","vm_lifetime_seconds":300}"#;
    assert_eq!(
        server.seen(),
        [
            session,
            r#"POST /execute key=key-1 {"command":"echo é\n","language":"python","session_id":"s-1","timeout":7}"#,
            session,
            r#"POST /execute key=key-1 {"command":"echo é\n","language":"bash","session_id":"s-1"}"#,
            session,
            r#"POST /execute key=key-1 {"command":"echo é\n","session_id":"s-1"}"#,
        ]
    );
    Ok(())
}

#[tokio::test]
async fn the_background_and_its_result() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let environment = Environment::of(&platform)?;
    let started = environment
        .run(&["exec", "--async", "--cmd", "echo later"])
        .await?;
    let hint = started.good().lines().last().unwrap_or_default().to_owned();
    let task = hint
        .split('`')
        .nth(1)
        .and_then(|hint| hint.rsplit(' ').next())
        .unwrap_or_default();
    assert_eq!(
        hint,
        format!("`instavm exec result {task}` waits for its end.")
    );
    let done = environment.run(&["exec", "result", task]).await?;
    assert_snapshot!(steady(done.good()), @r"
    Task: […]
    Created: […]
    Execution time: […]
    CPU time: […]

    Stdout
    later
    ");
    let json = environment
        .run(&["exec", "result", "-j", task])
        .await?
        .json();
    let keys: Vec<&String> = json
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys.len(), 6, "{json}");
    assert_eq!(
        (&json["task_id"], &json["stdout"], &json["stderr"]),
        (&Value::from(task), &"later\n".into(), &"".into())
    );
    Ok(())
}

#[tokio::test]
async fn a_result_that_does_not_come() -> Result<()> {
    let pending = (200, r#"{"is_complete":false}"#);
    let server = Server::start(&[
        pending,
        (403, r#"{"detail":"not yet"}"#),
        (404, r#"{"detail":"no such task"}"#),
    ])
    .await?;
    let environment = server.environment()?;
    let late = environment
        .run(&["exec", "result", "a/b", "--timeout", "1"])
        .await?;
    assert_snapshot!(late.all(), @r"
    status 1
    --- stderr
    Error: task a/b is not complete after 1s
    ");
    let refused = environment
        .run(&["exec", "result", "t", "--timeout", "1"])
        .await?;
    assert_snapshot!(refused.all(), @r"
    status 1
    --- stderr
    Error: not yet
    ");
    let unknown = environment.run(&["exec", "result", "t"]).await?;
    assert_snapshot!(unknown.all(), @r"
    status 1
    --- stderr
    Error: failed to get the result: HTTP 404: no such task
    ");
    assert_eq!(server.seen()[0], "GET /v1/executions/a%2Fb key=key-1");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_sent() -> Result<()> {
    // There is no key either: what is typed is looked at first.
    let environment = Environment::new()?;
    std::fs::write(environment.home().join("binary"), [0xff, 0xfe])?;
    let mut text = String::new();
    for line in [
        "exec",
        "exec a.py --cmd x",
        "exec missing.py",
        "exec binary",
        "exec result",
        "exec result t --cmd x",
        "exec --cmd x --timeout -1",
        "exec result t --poll-interval 0",
        "exec --cmd x",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = environment.run(&words).await?;
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (Some(1), ""),
            "{line}: {done:?}"
        );
        text.push_str(done.stderr.as_str());
    }
    assert_snapshot!(text, @r"
    Error: give a local file or --cmd
    Error: give either a local file or --cmd, not both
    Error: local file not found: missing.py
    Error: cannot read binary: stream did not contain valid UTF-8
    Error: the task is missing: `instavm exec result TASK_ID`
    Error: use `instavm exec result TASK_ID` without --cmd
    Error: --timeout must be a positive number
    Error: --poll-interval must be a positive number
    Error: no API key is configured. Run `instavm auth set-key` or set INSTAVM_API_KEY.
    The API key is missing, has expired or was revoked from the dashboard.
    Run `instavm login` again to get a new one.
    ");
    Ok(())
}
