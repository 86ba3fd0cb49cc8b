use crate::environment::{Environment, Server};
use anyhow::Result;
use insta::assert_snapshot;
use tokio::net::TcpListener;

#[tokio::test]
async fn each_status_has_its_words() -> Result<()> {
    let answers = [
        (401, r#"{"detail":"ignored"}"#),
        (403, r#"{"detail":"over the plan"}"#),
        (403, "plain words"),
        (403, ""),
        (429, r#"{"detail":"slow down"}"#),
        (429, "{}"),
        (504, "proxy"),
        (500, r#"{"detail":"oops"}"#),
        (404, r#"{"detail":"no such thing"}"#),
        (400, r#"{"detail":"","error":{"a":1}}"#),
        (409, ""),
    ];
    let server = Server::start(&answers).await?;
    let environment = server.environment()?;
    let mut text = String::new();
    for (status, _) in answers {
        let done = environment.run(&["ls", "--json"]).await?;
        assert_eq!((done.status, done.stdout.as_str()), (Some(1), ""));
        text.push_str(&format!("{status}\n{}", done.stderr));
    }
    assert_snapshot!(text, @r#"
    401
    Error: invalid API key or expired session
    The API key is missing, has expired or was revoked from the dashboard.
    Run `instavm login` again to get a new one.
    403
    Error: over the plan
    403
    Error: plain words
    403
    Error: Forbidden
    429
    Error: slow down
    429
    Error: rate limit exceeded
    504
    Error: 504 Gateway Timeout: the server, or a proxy before it, was not answered in time
    Reason: Gateway Timeout
    Details: proxy
    500
    Error: Server error: 500 Internal Server Error
    Details: {"detail":"oops"}
    404
    Error: HTTP 404: no such thing
    400
    Error: HTTP 400: {"a":1}
    409
    Error: HTTP 409
    "#);
    Ok(())
}

#[tokio::test]
async fn some_commands_say_what_they_wanted() -> Result<()> {
    let refused = (422, r#"{"detail":"bad"}"#);
    let server = Server::start(&[
        refused,
        refused,
        refused,
        (200, r#"{"session_id":"s"}"#),
        refused,
        (200, "[]"),
    ])
    .await?;
    let environment = server.environment()?;
    let mut text = String::new();
    for arguments in [
        &["whoami"][..],
        &["ssh-key", "add", "x"],
        &["exec", "--cmd", "x"],
        &["exec", "--cmd", "x"],
        &["ssh-key", "list"],
    ] {
        text.push_str(&environment.run(arguments).await?.stderr);
    }
    assert_snapshot!(text, @r"
    Error: failed to get the user: HTTP 422: bad
    Error: failed to add the SSH key: HTTP 422: bad
    Error: failed to start a session: HTTP 422: bad
    Error: failed to execute the code: HTTP 422: bad
    Error: failed to list SSH keys: the answer is not understood: it is no JSON object
    ");
    Ok(())
}

#[tokio::test]
async fn nobody_answers() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let url = format!("http://{free}/");
    let environment = Environment::new()?;
    let refused = environment
        .run(&["ls", "--api-key", "k", "--base-url", &url])
        .await?;
    assert_snapshot!(refused.all(), @r"
    status 1
    --- stderr
    Error: connection failed: Connection refused (os error 111)
    ");
    let nowhere = environment
        .run(&["ls", "--api-key", "k", "--base-url", "nowhere"])
        .await?;
    assert_eq!(nowhere.status, Some(1));
    assert!(
        nowhere.stderr.starts_with("Error: base URL: "),
        "{nowhere:?}"
    );
    Ok(())
}
