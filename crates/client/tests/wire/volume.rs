use crate::server::{Seen, Server, json};
use anyhow::{Context, Result};
use axum::response::Response;
use bytes::Bytes;
use instavm::{Error, UpdateVolume, VolumeFiles, VolumePath};
use std::io::{Cursor, Read};

const VOLUME: &str = r#"{"id":"vol_1","volume_id":"vol_1","name":"data","status":"in_use","quota_bytes":10737418240,
    "used_bytes":6,"charged_bytes":4096,"measured_at":null,"mounted_by":["vm_1"],"created_at":"x","updated_at":"x"}"#;
const LIST: &str = r#"[{"id":"vol_1","volume_id":"vol_1","name":"data","status":"available","quota_bytes":1,
    "used_bytes":0,"charged_bytes":0,"mounted_by":[],"created_at":"x","updated_at":"x"}]"#;
const CHECKPOINT: &str = r#"{"id":"ck_1","checkpoint_id":"ck_1","volume_id":"vol_1","name":"n","status":"ready",
    "created_at":"x"}"#;
const UPLOADED: &str = r#"{"status":"uploaded","volume_id":"vol_1","path":"a","size":6}"#;
const FILE: &str = r#"{"path":"docs/a","filename":"a","size":6,"content":"aGVsbG8K"}"#;

fn managed() -> [Response; 10] {
    [
        json(201, VOLUME),
        json(200, LIST),
        json(200, VOLUME),
        json(200, VOLUME),
        json(201, CHECKPOINT),
        json(200, "[]"),
        json(200, r#"{"status":"deleted","id":"ck_1"}"#),
        json(
            200,
            r#"[{"path":"docs/a","size":6,"is_dir":false,"modified_at":"x"}]"#,
        ),
        json(
            200,
            r#"{"status":"deleted","volume_id":"vol_1","path":"docs/a"}"#,
        ),
        json(200, r#"{"status":"deleting","id":"vol_1"}"#),
    ]
}

const SENT: [&str; 10] = [
    r#"POST /v1/volumes {"name":"data","quota_bytes":10737418240}"#,
    "GET /v1/volumes?refresh_usage=true",
    "GET /v1/volumes/vol%2F1?refresh_usage=false",
    r#"PATCH /v1/volumes/vol_1 {"name":"other"}"#,
    r#"POST /v1/volumes/vol_1/checkpoints {"name":"n"}"#,
    "GET /v1/volumes/vol_1/checkpoints",
    "DELETE /v1/volumes/vol_1/checkpoints/ck%2F1",
    "GET /v1/volumes/vol_1/files?prefix=docs%2F&recursive=false&limit=7",
    "DELETE /v1/volumes/vol_1/files?path=docs%2Fa+b",
    "DELETE /v1/volumes/vol_1",
];

fn rename() -> UpdateVolume {
    UpdateVolume {
        name: Some("other".to_owned()),
        ..UpdateVolume::default()
    }
}

fn directory() -> VolumeFiles {
    VolumeFiles::all().prefix("docs/").of_directory().limit(7)
}

#[tokio::test]
async fn volumes_are_managed() -> Result<()> {
    let server = Server::start(managed()).await?;
    let client = server.builder().build().await?;
    let volumes = client.volumes();
    let made = volumes.create("data", 10 << 30).await?;
    assert_eq!((made.used_bytes, made.mounted_by.len()), (6, 1));
    assert_eq!(volumes.list(true).await?[0].status, "available");
    volumes.get("vol/1", false).await?;
    volumes.update("vol_1", &rename()).await?;
    let checkpoint = volumes.create_checkpoint("vol_1", Some("n")).await?;
    assert_eq!(checkpoint.id, "ck_1");
    assert!(volumes.list_checkpoints("vol_1").await?.is_empty());
    volumes.delete_checkpoint("vol_1", "ck/1").await?;
    let files = volumes.list_files("vol_1", directory()).await?;
    assert_eq!((files[0].path.as_str(), files[0].size), ("docs/a", 6));
    volumes.delete_file("vol_1", "docs/a b").await?;
    assert_eq!(volumes.delete("vol_1").await?.status, "deleting");
    assert_eq!(server.lines(), SENT);
    let once = |seen: &Seen| seen.headers.contains_key("idempotency-key");
    let marked: Vec<bool> = server.seen().iter().map(once).collect();
    assert_eq!(marked.iter().filter(|once| **once).count(), 2, "{marked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_managed_without_async() -> Result<()> {
    let server = Server::start(managed()).await?;
    let client = server.builder().build_blocking()?;
    let volumes = client.volumes();
    volumes.create("data", 10 << 30)?;
    assert_eq!(volumes.list(true)?.len(), 1);
    volumes.get("vol/1", false)?;
    volumes.update("vol_1", &rename())?;
    volumes.create_checkpoint("vol_1", Some("n"))?;
    assert!(volumes.list_checkpoints("vol_1")?.is_empty());
    volumes.delete_checkpoint("vol_1", "ck/1")?;
    assert_eq!(volumes.list_files("vol_1", directory())?.len(), 1);
    volumes.delete_file("vol_1", "docs/a b")?;
    volumes.delete("vol_1")?;
    assert_eq!(server.lines(), SENT);
    Ok(())
}

/// The parts of an upload: path, overwrite, content.
fn parts(seen: &Seen) -> Result<[String; 3]> {
    assert_eq!(
        (seen.method.as_str(), seen.uri.as_str()),
        ("POST", "/v1/volumes/vol_1/files/upload")
    );
    let body = String::from_utf8(seen.body.to_vec())?;
    let part = |name: &str| -> Result<String> {
        let mark = format!("name=\"{name}\"");
        let rest = body.split_once(&mark).context("the part is there")?.1;
        let content = rest.split_once("\r\n\r\n").context("it has a head")?.1;
        let content = content.split_once("\r\n--").context("it ends")?.0;
        Ok(content.to_owned())
    };
    assert!(body.find("\"path\"") < body.find("\"overwrite\""));
    assert!(body.find("\"overwrite\"") < body.find("\"file\""));
    Ok([part("path")?, part("overwrite")?, part("file")?])
}

#[tokio::test]
async fn files_go_there_and_back() -> Result<()> {
    let server = Server::start([
        json(200, UPLOADED),
        json(200, UPLOADED),
        json(200, UPLOADED),
        json(200, FILE),
        json(200, FILE),
        json(409, r#"{"detail":"there is a file"}"#),
        json(404, r#"{"detail":"no such file"}"#),
    ])
    .await?;
    let client = server.builder().build().await?;
    let volumes = client.volumes();
    let folder = tempfile::tempdir()?;
    let local = folder.path().join("local");
    std::fs::write(&local, "hello\n")?;

    let sent = volumes.upload_file("vol_1", &local, "docs/a").await?;
    assert_eq!((sent.status.as_str(), sent.size), ("uploaded", 6));
    let replaced = VolumePath::new("a b").overwrite();
    volumes.upload_bytes("vol_1", "bytes", replaced).await?;
    let pieces = [
        Ok(Bytes::from_static(b"one ")),
        Ok(Bytes::from_static(b"two")),
    ];
    let pieces = futures::stream::iter(pieces);
    volumes.upload_stream("vol_1", pieces, "s").await?;

    let mut content = volumes.download_stream("vol_1", "docs/a").await?;
    let copy = folder.path().join("copy");
    assert_eq!(content.save(&copy).await?, 6);
    assert_eq!(std::fs::read_to_string(&copy)?, "hello\n");
    assert_eq!(content.answer(), FILE.replace("aGVsbG8K", "").as_bytes());
    assert_eq!(volumes.download_bytes("vol_1", "docs/a").await?, b"hello\n");

    let taken = volumes.upload_bytes("vol_1", "x", "docs/a").await;
    assert!(matches!(taken, Err(Error::Api { .. })), "{taken:?}");
    let missing = volumes.download_file("vol_1", "none", &copy).await;
    assert_eq!(missing.unwrap_err().status(), Some(404));
    assert_eq!(std::fs::read_to_string(&copy)?, "hello\n");

    let seen = server.seen();
    assert_eq!(parts(&seen[0])?, ["docs/a", "false", "hello\n"]);
    assert_eq!(parts(&seen[1])?, ["a b", "true", "bytes"]);
    assert_eq!(parts(&seen[2])?, ["s", "false", "one two"]);
    assert_eq!(
        server.lines()[3],
        r#"POST /v1/volumes/vol_1/files/download {"path":"docs/a"}"#
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_there_and_back_without_async() -> Result<()> {
    let server = Server::start([
        json(200, UPLOADED),
        json(200, UPLOADED),
        json(200, UPLOADED),
        json(200, FILE),
        json(200, FILE),
        json(200, FILE),
    ])
    .await?;
    let client = server.builder().build_blocking()?;
    let volumes = client.volumes();
    let folder = tempfile::tempdir()?;
    let local = folder.path().join("local");
    std::fs::write(&local, "hello\n")?;
    volumes.upload_file("vol_1", &local, "f")?;
    volumes.upload_bytes("vol_1", "bytes", VolumePath::new("b").overwrite())?;
    volumes.upload_reader("vol_1", Cursor::new("read"), "r")?;
    assert_eq!(volumes.download_file("vol_1", "a", &local)?, 6);
    assert_eq!(volumes.download_bytes("vol_1", "a")?, b"hello\n");
    let mut text = String::new();
    volumes
        .download_stream("vol_1", "a")?
        .read_to_string(&mut text)?;
    assert_eq!(text, "hello\n");
    let seen = server.seen();
    assert_eq!(parts(&seen[0])?, ["f", "false", "hello\n"]);
    assert_eq!(parts(&seen[1])?, ["b", "true", "bytes"]);
    assert_eq!(parts(&seen[2])?, ["r", "false", "read"]);
    Ok(())
}
