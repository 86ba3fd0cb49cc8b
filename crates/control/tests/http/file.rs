use crate::{session_of, vm_of};
use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use instavm_control::Settings;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform, on_each_database};
use serde_json::json;
use std::io::Write;

on_each_database!(
    files_go_up_and_come_down_as_they_are,
    an_empty_file_comes_down_as_a_line_feed,
    wrong_downloads_are_refused_clearly,
    wrong_uploads_are_refused_clearly,
    an_upload_that_lacks_something_is_told_what,
    an_upload_over_the_limit_leaves_the_old_content,
    a_sender_that_breaks_off_leaves_the_old_content,
    archives_are_unpacked_only_when_asked,
    compressed_files_that_are_no_archives_stay_as_they_are,
);

async fn files_go_up_and_come_down_as_they_are(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    let content: Vec<u8> = (0..=255u8).cycle().take(300_001).collect();
    let answer = client
        .upload(&id, "/app/data/a b.bin", false, &content)
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.json(),
        json!({"status": "uploaded", "remote_path": "/app/data/a b.bin", "session_id": id,
               "size": 300_001, "unpacked": false})
    );
    assert_eq!(
        platform.node.file(&vm, "/app/data/a b.bin").as_deref(),
        Some(&*content)
    );

    // As form encoding has it: relative to /app, a space as a plus sign.
    let answer = client.download(&id, "data/a+b.bin").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        STANDARD.decode(answer["content"].as_str().unwrap_or_default())?,
        content
    );
    assert_eq!(answer["size"], 300_001);
    assert_eq!(answer["filename"], "data/a b.bin");
    Ok(())
}

async fn an_empty_file_comes_down_as_a_line_feed(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    assert_eq!(
        client.upload(&id, "empty", false, b"").await?.json()["size"],
        0
    );
    let answer = client.download(&id, "empty").await?.json();
    assert_eq!(
        answer,
        json!({"filename": "empty", "size": 0, "content": "\n"})
    );
    Ok(())
}

async fn wrong_downloads_are_refused_clearly(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    client.upload(&id, "/app/folder/file", false, b"x").await?;
    assert_eq!(client.download(&id, "missing").await?.status, 404);
    let folder = client.download(&id, "folder").await?;
    assert_eq!(folder.status, 422);
    assert!(folder.detail().contains("directory"));
    assert_eq!(client.download(&id, "").await?.status, 422);
    assert_eq!(client.download("none", "x").await?.status, 404);
    let kind = "application/x-www-form-urlencoded";
    for (body, field) in [
        ("filename=x", "session_id"),
        ("session_id=x", "filename"),
        ("", "filename"),
    ] {
        let answer = client.call(Method::POST, "/download", kind, body).await?;
        assert_eq!(answer.status, 422);
        assert!(answer.detail().contains(field), "{}", answer.detail());
    }
    let answer = client
        .call(Method::POST, "/download", "application/json", "{}")
        .await?;
    assert_eq!(answer.status, 415);
    let nul = format!("filename=a%00b&session_id={id}");
    assert_eq!(
        client
            .call(Method::POST, "/download", kind, nul)
            .await?
            .status,
        422
    );

    platform
        .node
        .end(&vm_of(&client, &id).await?, Ending::Expired);
    let status = format!("/v1/sessions/status/{id}");
    crate::eventually(&client, &status, |status| status["vm_alive"] == false).await?;
    assert_eq!(client.download(&id, "folder/file").await?.status, 409);
    Ok(())
}

async fn wrong_uploads_are_refused_clearly(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    assert_eq!(client.upload("none", "x", false, b"x").await?.status, 404);
    assert_eq!(client.upload(&id, "", false, b"x").await?.status, 422);
    assert_eq!(client.upload(&id, "a\0b", false, b"x").await?.status, 422);
    assert_eq!(
        client
            .upload(&id, &"a".repeat(5_000), false, b"x")
            .await?
            .status,
        422
    );
    let denied = client.upload(&id, "/proc/x", false, b"x").await?;
    assert_eq!(denied.status, 403);
    assert!(denied.detail().contains("/proc/x"));
    let answer = client
        .call(Method::POST, "/upload", "application/json", "{}")
        .await?;
    assert_eq!(answer.status, 400);
    Ok(())
}

async fn an_upload_that_lacks_something_is_told_what(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let multipart = "multipart/form-data; boundary=limit";
    let part = |name: &str, text: &str| {
        format!("--limit\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let end = "--limit--\r\n";
    let cases = [
        (format!("{}{end}", part("file", "x")), 422, "remote_path"),
        (
            format!("{}{}{end}", part("remote_path", "x"), part("file", "x")),
            422,
            "session_id",
        ),
        (
            format!(
                "{}{}{end}",
                part("remote_path", "x"),
                part("session_id", &id)
            ),
            422,
            "file",
        ),
        (
            format!("{}{}{end}", part("recursive", "maybe"), part("file", "x")),
            422,
            "recursive",
        ),
        ("no multipart at all".to_owned(), 400, "multipart"),
    ];
    for (body, status, word) in cases {
        let answer = client
            .call(Method::POST, "/upload", multipart, body.clone())
            .await?;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(
            answer.detail().contains(word),
            "{body}: {}",
            answer.detail()
        );
    }
    Ok(())
}

async fn an_upload_over_the_limit_leaves_the_old_content(kind: DatabaseKind) -> Result<()> {
    let settings = Settings {
        upload_limit: 100_000,
        ..Settings::default()
    };
    let platform = TestPlatform::with(kind, settings).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    assert_eq!(client.upload(&id, "f", false, b"old").await?.status, 200);
    // One that its sender announces with its length, and one that turns out to be too long on the way.
    for size in [100_001, 3_000_000] {
        let answer = client.upload(&id, "f", false, &vec![7; size]).await?;
        assert_eq!(answer.status, 413, "{answer:?}");
        assert!(answer.detail().contains("100000"));
    }
    assert_eq!(platform.node.file(&vm, "f").as_deref(), Some(&b"old"[..]));
    assert_eq!(
        client.upload(&id, "f", false, &[7; 100_000]).await?.status,
        200
    );
    Ok(())
}

async fn a_sender_that_breaks_off_leaves_the_old_content(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    client.upload(&id, "f", false, b"old").await?;
    let head = format!(
        "--limit\r\nContent-Disposition: form-data; name=\"remote_path\"\r\n\r\nf\r\n\
         --limit\r\nContent-Disposition: form-data; name=\"session_id\"\r\n\r\n{id}\r\n\
         --limit\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nhalf of it"
    );
    let pieces = [
        Ok(Bytes::from(head)),
        Err(std::io::Error::other("the sender is gone")),
    ];
    let request = Request::builder()
        .method(Method::POST)
        .uri("/upload")
        .header("content-type", "multipart/form-data; boundary=limit")
        .body(Body::from_stream(futures::stream::iter(pieces)))?;
    // Whether there is an answer does not matter: its receiver is gone.
    drop(client.send(request).await);
    assert_eq!(
        client.download(&id, "f").await?.json()["content"],
        STANDARD.encode("old")
    );
    assert_eq!(platform.node.file(&vm, "f").as_deref(), Some(&b"old"[..]));
    Ok(())
}

async fn archives_are_unpacked_only_when_asked(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    let mut archive = vec![0u8; 1_536];
    archive[257..262].copy_from_slice(b"ustar");
    let plain = client.upload(&id, "a.tar", false, &archive).await?.json();
    assert_eq!(plain["unpacked"], false);
    assert!(platform.node.file(&vm, "a.tar").is_some());
    // The simulated shell does nothing and succeeds; what matters here is where the file goes.
    let unpacked = client.upload(&id, "folder", true, &archive).await?.json();
    assert_eq!(unpacked["unpacked"], true, "{unpacked}");
    assert!(platform.node.file(&vm, "folder").is_none());
    let text = client
        .upload(&id, "b.txt", true, b"no archive")
        .await?
        .json();
    assert_eq!(text["unpacked"], false);
    assert_eq!(
        platform.node.file(&vm, "b.txt").as_deref(),
        Some(&b"no archive"[..])
    );
    Ok(())
}

async fn compressed_files_that_are_no_archives_stay_as_they_are(kind: DatabaseKind) -> Result<()> {
    let platform = TestPlatform::on(kind).await?;
    let client = platform.client();
    let id = session_of(&client, &platform.key).await?;
    let vm = vm_of(&client, &id).await?;
    for size in [0, 1, 511, 512, 100_000] {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&vec![b'x'; size])?;
        let content = encoder.finish()?;
        let answer = client.upload(&id, "data.gz", true, &content).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["unpacked"], false, "{size}");
        assert_eq!(
            platform.node.file(&vm, "data.gz").as_deref(),
            Some(&*content)
        );
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut header = [0u8; 512];
    header[257..262].copy_from_slice(b"ustar");
    encoder.write_all(&header)?;
    let content = encoder.finish()?;
    let answer = client.upload(&id, "unpacked", true, &content).await?;
    assert_eq!(answer.json()["unpacked"], true, "{answer:?}");
    assert!(platform.node.file(&vm, "unpacked").is_none());
    Ok(())
}
