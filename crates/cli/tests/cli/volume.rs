//! `volume`.

use crate::environment::{Done, Environment, Server};
use anyhow::Result;
use insta::assert_snapshot;

/// What is typed after `instavm volume` and this word.
struct Part<'a>(&'a Environment, &'static str);

impl Part<'_> {
    async fn run(&self, words: &[&str]) -> Result<Done> {
        self.0.run(&[&["volume", self.1], words].concat()).await
    }
}

const VOLUME: &str = r#"{"id":"vol_1","name":"data","status":"available","quota_bytes":10737418240,"used_bytes":1536}"#;

#[tokio::test]
async fn volumes_are_listed_and_shown() -> Result<()> {
    let list = format!(r#"[{VOLUME},{{"id":"vol_22","used_bytes":null}}]"#);
    let server = Server::start(&[
        (200, &list),
        (200, "[]"),
        (200, "[]"),
        (200, VOLUME),
        (200, "{}"),
    ])
    .await?;
    let environment = server.environment()?;
    let people = environment.run(&["volume", "ls"]).await?;
    assert_snapshot!(people.good().replace(' ', "·"), @r"
    Volumes·(2)

    ··ID······Name··Usage···········Status···
    ··------··----··--------------··---------
    ··vol_1···data··1.5KB·/·10.0GB··available
    ··vol_22··-·····0B·/·0B·········-········
    ");
    assert_eq!(
        environment.run(&["volumes", "list"]).await?.good(),
        "No volumes.\n"
    );
    let json = environment
        .run(&["volume", "ls", "--refresh", "-j"])
        .await?;
    assert_eq!(json.good(), "{\"volumes\": []}\n");
    let one = environment.run(&["volume", "get", "vol_1"]).await?;
    assert_snapshot!(one.good(), @r"
    ID: vol_1
    Name: data
    Status: available
    Quota: 10.0GB
    Used: 1.5KB
    ");
    let blank = environment
        .run(&["volume", "get", "v/1", "--refresh"])
        .await?;
    assert_eq!(
        blank.good(),
        "ID: -\nName: -\nStatus: -\nQuota: 0B\nUsed: 0B\n"
    );
    assert_eq!(
        server.seen(),
        [
            "GET /v1/volumes?refresh_usage=false key=key-1",
            "GET /v1/volumes?refresh_usage=false key=key-1",
            "GET /v1/volumes?refresh_usage=true key=key-1",
            "GET /v1/volumes/vol_1?refresh_usage=false key=key-1",
            "GET /v1/volumes/v%2F1?refresh_usage=true key=key-1",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn volumes_are_made_changed_and_deleted() -> Result<()> {
    let server = Server::start(&[
        (201, VOLUME),
        (200, VOLUME),
        (204, ""),
        (200, r#"{"status":"deleted","id":"vol_1"}"#),
        (409, r#"{"detail":"vm_1 has it mounted"}"#),
    ])
    .await?;
    let environment = server.environment()?;
    let made = environment
        .run(&["volume", "create", "data", "--quota", "1.5GB"])
        .await?;
    assert_snapshot!(made.good(), @r"
    Volume: vol_1
    Name: data
    Quota: 10.0GB
    ");
    let changed = ["volume", "update", "x", "--quota", "4096", "--name", "n"];
    assert_eq!(
        environment.run(&changed).await?.good(),
        "Updated volume vol_1\n"
    );
    let silent = ["volume", "update", "x", "--name", "n"];
    assert_eq!(environment.run(&silent).await?.good(), "Updated volume x\n");
    assert_eq!(
        environment
            .run(&["volume", "rm", "vol_1", "-j"])
            .await?
            .good(),
        "{\"volume_id\": \"vol_1\", \"status\": \"deleted\", \"id\": \"vol_1\"}\n"
    );
    let refused = environment.run(&["volume", "delete", "vol_1"]).await?;
    assert_snapshot!(refused.all(), @r"
    status 1
    --- stderr
    Error: HTTP 409: vm_1 has it mounted
    ");
    for (words, expected) in [
        (
            ["volume", "create", "n", "--quota", "much"],
            "'much' is no size; write it as 4096, 512mb or 1.5gb",
        ),
        (
            ["volume", "update", "x", "--name", ""],
            "nothing to change; give --name or --quota",
        ),
    ] {
        let refused = environment.run(&words).await?;
        assert_eq!(
            (refused.status, refused.stderr),
            (Some(1), format!("Error: {expected}\n"))
        );
    }
    assert_eq!(
        server.seen(),
        [
            "POST /v1/volumes key=key-1 {\"name\":\"data\",\"quota_bytes\":1610612736}",
            "PATCH /v1/volumes/x key=key-1 {\"name\":\"n\",\"quota_bytes\":4096}",
            "PATCH /v1/volumes/x key=key-1 {\"name\":\"n\"}",
            "DELETE /v1/volumes/vol_1 key=key-1",
            "DELETE /v1/volumes/vol_1 key=key-1",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn checkpoints() -> Result<()> {
    let server = Server::start(&[
        (200, r#"[{"id":"ck_1","name":"n","status":"ready"}]"#),
        (200, "[]"),
        (200, r#"{"id":"ck_1","name":"n","status":"ready"}"#),
        (200, r#"{"status":"deleted"}"#),
    ])
    .await?;
    let environment = server.environment()?;
    let environment = Part(&environment, "checkpoint");
    assert_snapshot!(environment.run(&["ls", "v"]).await?.good(), @r"
    Checkpoints (1)

      ID    Name  Status
      ----  ----  ------
      ck_1  n     ready 
    ");
    assert_eq!(
        environment.run(&["list", "v"]).await?.good(),
        "No checkpoints.\n"
    );
    let made = environment.run(&["create", "v", "--name", "n"]).await?;
    assert_eq!(made.good(), "Created checkpoint ck_1\n");
    let deleted = environment.run(&["rm", "v", "ck_1"]).await?;
    assert_eq!(deleted.good(), "Deleted checkpoint ck_1\n");
    let path = "/v1/volumes/v/checkpoints";
    assert_eq!(
        server.seen(),
        [
            format!("GET {path} key=key-1"),
            format!("GET {path} key=key-1"),
            format!("POST {path} key=key-1 {{\"name\":\"n\"}}"),
            format!("DELETE {path}/ck_1 key=key-1"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_local_file_that_cannot_be_written_is_named_with_the_reason() -> Result<()> {
    let file = r#"{"path":"a","filename":"a","size":6,"content":"aGVsbG8K"}"#;
    let server = Server::start(&[(200, file)]).await?;
    let environment = server.environment()?;
    let environment = Part(&environment, "files");
    let nowhere = environment
        .run(&["download", "v", "a", "--out", "missing/a"])
        .await?;
    assert_eq!(
        nowhere.stderr,
        "Error: missing/a: No such file or directory (os error 2)\n"
    );
    assert_eq!(nowhere.status, Some(1));
    Ok(())
}

#[tokio::test]
async fn files() -> Result<()> {
    let file = r#"{"path":"docs/a.txt","filename":"a.txt","size":6,"content":"aGVsbG8K"}"#;
    let server = Server::start(&[
        (200, r#"[{"path":"docs/a.txt","size":2048}]"#),
        (200, "[]"),
        (200, file),
        (200, file),
        (404, r#"{"detail":"no such file"}"#),
        (200, r#"{"status":"uploaded"}"#),
        (204, ""),
    ])
    .await?;
    let environment = server.environment()?;
    let environment = Part(&environment, "files");
    let listed = environment.run(&["ls", "v", "--prefix", "docs/"]).await?;
    assert_snapshot!(listed.good(), @r"
    Files (1)

      Path        Size 
      ----------  -----
      docs/a.txt  2.0KB
    ");
    let none = environment
        .run(&["list", "v", "--no-recursive", "--limit", "3"])
        .await?;
    assert_eq!(none.good(), "No files.\n");

    let fetched = environment.run(&["download", "v", "docs/a.txt"]).await?;
    assert_eq!(fetched.good(), "Downloaded docs/a.txt -> a.txt\n");
    let local = environment.0.home().join("a.txt");
    assert_eq!(std::fs::read_to_string(&local)?, "hello\n");
    let json = environment
        .run(&["download", "v", "docs/a.txt", "--out", "b", "-j"])
        .await?;
    assert_snapshot!(json.good(), @r#"{"path": "docs/a.txt", "filename": "a.txt", "size": 6, "local_path": "b"}"#);
    std::fs::write(&local, "kept")?;
    let gone = environment.run(&["download", "v", "a.txt"]).await?;
    assert_eq!(gone.stderr, "Error: HTTP 404: no such file\n");
    assert_eq!(std::fs::read_to_string(&local)?, "kept");
    let nowhere = environment.run(&["download", "v", "docs/.."]).await?;
    assert_eq!(nowhere.status, Some(1));

    let sent = environment
        .run(&["upload", "v", "a.txt", "--overwrite"])
        .await?;
    assert_eq!(sent.good(), "Uploaded a.txt -> a.txt\n");
    let missing = environment.run(&["upload", "v", "missing"]).await?;
    assert_eq!(missing.stderr, "Error: local file not found: missing\n");
    let deleted = environment.run(&["rm", "v", "docs/a b", "-j"]).await?;
    assert_eq!(
        deleted.good(),
        "{\"path\": \"docs/a b\", \"success\": true}\n"
    );

    let seen = server.seen();
    let path = "/v1/volumes/v/files";
    assert_eq!(
        seen[..4],
        [
            format!("GET {path}?prefix=docs%2F&recursive=true&limit=1000 key=key-1"),
            format!("GET {path}?prefix=&recursive=false&limit=3 key=key-1"),
            format!("POST {path}/download key=key-1 {{\"path\":\"docs/a.txt\"}}"),
            format!("POST {path}/download key=key-1 {{\"path\":\"docs/a.txt\"}}"),
        ]
    );
    assert!(seen[5].starts_with(&format!("POST {path}/upload key=key-1 --")));
    for part in [
        "name=\"path\"\r\n\r\na.txt\r\n",
        "name=\"overwrite\"\r\n\r\ntrue\r\n",
        "name=\"file\"; filename=\"a.txt\"\r\n\r\nkept\r\n",
    ] {
        assert!(seen[5].contains(part), "{}", seen[5]);
    }
    assert_eq!(seen[6], format!("DELETE {path}?path=docs%2Fa+b key=key-1"));
    assert_eq!(seen.len(), 7);
    Ok(())
}
