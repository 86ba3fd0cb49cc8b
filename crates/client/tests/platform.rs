//! The SDK against the control plane over a simulated node.

use anyhow::Result;
use bytes::Bytes;
use instavm::{Client, ClientBuilder, Code, Error, Language, NewShare, Sandboxes, UpdateApiKey};
use instavm_testkit::TestPlatform;
use std::io;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_secs(20);

fn builder(platform: &TestPlatform) -> ClientBuilder {
    Client::builder()
        .api_key(&platform.key)
        .base_url(format!("http://{}", platform.address()))
}

#[tokio::test]
async fn a_client_starts_a_session_as_asked() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform)
        .cpu_count(1)
        .memory_mb(512)
        .lifetime(Duration::from_secs(120))
        .env("GREETING", "hello there")
        .metadata("team", "research")
        .metadata("run", 7)
        .build()
        .await?;

    let info = client.get_session_info().await?;
    assert_eq!(Some(&info.session_id), client.session_id().as_ref());
    assert_eq!(
        (info.vcpu_count, info.memory_mb, info.vm_lifetime_seconds),
        (1, 512, 120)
    );
    let greeting = client.execute("env GREETING").await?;
    assert_eq!(greeting.stdout, "hello there\n");
    let mine = Sandboxes::all()
        .with("team", "research")
        .with("run", 7)
        .limit(5);
    assert_eq!(client.list_sandboxes(mine).await?.len(), 1);
    assert!(
        client
            .list_sandboxes(Sandboxes::all().with("team", "other"))
            .await?
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn the_timeout_is_the_lifetime_too() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform)
        .timeout(Duration::from_secs(77))
        .build()
        .await?;
    assert_eq!(client.get_session_info().await?.vm_lifetime_seconds, 77);
    Ok(())
}

#[tokio::test]
async fn code_runs_and_keeps_its_variables() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build().await?;
    client.execute("set answer 42").await?;
    let result = client
        .execute(Code::python("get answer").timeout(LATER))
        .await?;
    assert_eq!((result.stdout.as_str(), result.exit_code), ("42\n", 0));
    assert_eq!(result.language, Language::Python);

    let failed = client.execute(Code::bash("err no\nexit 3")).await?;
    assert_eq!((failed.stderr.as_str(), failed.exit_code), ("no\n", 3));
    assert_eq!(failed.language, Language::Bash);

    let slow = client
        .execute(Code::new("gate never").timeout(Duration::from_secs(1)))
        .await?;
    assert!(slow.timed_out);
    Ok(())
}

#[tokio::test]
async fn background_executions_are_polled() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build().await?;
    let started = client.execute_async("gate door\necho done").await?;
    platform.node.gate_occupied("door", 1).await;
    assert!(!client.get_task(&started.task_id).await?.is_complete);
    let waited = client.get_task_result(&started.task_id, SOON, SOON).await;
    assert!(
        matches!(waited, Err(Error::TaskTimeout { .. })),
        "{waited:?}"
    );
    platform.node.open_gate("door");
    let task = client
        .get_task_result(&started.task_id, SOON, LATER)
        .await?;
    assert_eq!((task.stdout.as_str(), task.exit_code), ("done\n", Some(0)));

    let unknown = client.get_task_result("none", SOON, LATER).await;
    assert_eq!(unknown.err().and_then(|error| error.status()), Some(404));
    Ok(())
}

#[tokio::test]
async fn files_go_there_and_back() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build().await?;
    let folder = tempfile::tempdir()?;
    let content: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let (local, copy) = (
        folder.path().join("local.bin"),
        folder.path().join("copy.bin"),
    );
    std::fs::write(&local, &content)?;

    let sent = client.upload_file(&local, "data/file.bin").await?;
    assert_eq!((sent.size, sent.unpacked), (content.len() as u64, false));
    std::fs::write(&copy, "what was there")?;
    let size = client.download_file("data/file.bin", &copy).await?;
    assert_eq!(size, content.len() as u64);
    assert!(std::fs::read(&copy)? == content);

    client
        .upload_bytes(Bytes::from(content.clone()), "bytes.bin")
        .await?;
    assert!(client.download_bytes("/app/bytes.bin").await? == content);

    let pieces = [
        Ok(Bytes::from_static(b"one ")),
        Ok(Bytes::from_static(b"two")),
    ];
    client
        .upload_stream(futures::stream::iter(pieces), "stream")
        .await?;
    assert_eq!(client.download_bytes("stream").await?, b"one two");

    client.upload_bytes(Bytes::new(), "empty").await?;
    assert_eq!(client.download_bytes("empty").await?, b"");
    let names: Vec<_> = std::fs::read_dir(folder.path())?.collect::<io::Result<_>>()?;
    assert_eq!(names.len(), 2, "nothing half done is left behind");
    Ok(())
}

#[tokio::test]
async fn failed_transfers_say_why_and_change_nothing() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build().await?;
    let folder = tempfile::tempdir()?;
    let local = folder.path().join("kept");
    std::fs::write(&local, "kept")?;

    let missing = client.download_file("none", &local).await.unwrap_err();
    assert!(matches!(missing, Error::Api { .. }), "{missing:?}");
    assert_eq!(missing.status(), Some(404));
    assert_eq!(std::fs::read_to_string(&local)?, "kept");

    let absent = client
        .upload_file(folder.path().join("absent"), "x")
        .await
        .unwrap_err();
    assert!(matches!(absent, Error::File { .. }), "{absent:?}");
    assert!(absent.to_string().contains("absent"));

    let broken = futures::stream::iter([Err(io::Error::other("the source broke"))]);
    assert!(client.upload_stream(broken, "broken").await.is_err());
    assert!(client.download_bytes("broken").await.is_err());

    Ok(())
}

#[tokio::test]
async fn a_session_is_looked_at_and_killed() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build().await?;
    assert!(client.is_session_active().await);
    assert!(client.get_session_status().await?.vm_alive);
    assert!(client.get_usage().await?.memory_limit > 0);
    let published = client.get_session_app_url(Some(8080)).await?;
    assert_eq!(published.port, Some(8080));
    shares_open_and_close(&client, &published.app_url).await?;

    let session_id = client.session_id().unwrap_or_default();
    assert_eq!(client.kill().await?.session_id, session_id);
    assert_eq!(client.session_id(), None);
    assert!(!client.is_session_active().await);
    client.use_session(&session_id);
    assert!(!client.is_session_active().await);
    client.close_session();
    let none = client.execute("echo 1").await.unwrap_err();
    assert!(matches!(none, Error::Session { failure: None, .. }));
    Ok(())
}

#[tokio::test]
async fn keys_and_the_user_are_managed_without_a_session() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).without_session().build().await?;
    assert_eq!(client.session_id(), None);
    assert_eq!(client.get_current_user().await?.email, "admin@localhost");

    let keys = client.api_keys();
    let made = keys.create("for a test").await?;
    assert_eq!(keys.list().await?.len(), 2);
    let change = UpdateApiKey {
        description: Some("other".to_owned()),
        ..UpdateApiKey::default()
    };
    assert_eq!(
        keys.update(made.record.id, &change).await?.description,
        "other"
    );
    assert_eq!(keys.get(made.record.id).await?.description, "other");
    keys.delete(made.record.id).await?;
    assert_eq!(
        keys.get(made.record.id).await.unwrap_err().status(),
        Some(404)
    );

    let line =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJAX4NMmUUhgTHY2XT8dnVDJ0t7nUQLwnS+C+OFl3qyK me@here";
    let key = client.add_ssh_key(line).await?;
    assert_eq!(key.comment, "me@here");
    assert_eq!(client.list_ssh_keys().await?.len(), 1);
    client.delete_ssh_key(key.id).await?;
    assert!(client.list_ssh_keys().await?.is_empty());
    let refused = client.add_ssh_key("nonsense").await.unwrap_err();
    assert_eq!(refused.status(), Some(422));
    Ok(())
}

#[tokio::test]
async fn keys_that_are_not_accepted_are_told_apart() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let url = format!("http://{}", platform.address());
    let wrong = Client::builder()
        .api_key("wrong")
        .base_url(&url)
        .build()
        .await
        .unwrap_err();
    assert!(matches!(
        wrong,
        Error::Authentication {
            failure: Some(_),
            ..
        }
    ));
    let none = Client::builder().api_key("").base_url(&url).build().await?;
    let unset = none.get_current_user().await.unwrap_err();
    assert!(matches!(unset, Error::Authentication { failure: None, .. }));
    assert!(none.start_session().await.is_err());
    Ok(())
}

/// In asynchronous code on purpose: it blocks the thread and works all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_blocking_client_does_the_same() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let client = builder(&platform).build_blocking()?;
    assert_eq!(client.execute(Code::python("echo hi"))?.stdout, "hi\n");
    let started = client.execute_async("echo later")?;
    let task = client.get_task_result(&started.task_id, SOON, LATER)?;
    assert_eq!(task.stdout, "later\n");

    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 253) as u8).collect();
    client.upload_reader(io::Cursor::new(content.clone()), "reader.bin")?;
    let mut copy = Vec::new();
    io::copy(&mut client.download_stream("reader.bin")?, &mut copy)?;
    assert!(copy == content);
    let folder = tempfile::tempdir()?;
    let local = folder.path().join("copy");
    client.download_file("reader.bin", &local)?;
    client.upload_file(&local, "again.bin")?;
    assert!(client.download_bytes("again.bin")? == content);

    assert!(client.is_session_active());
    assert_eq!(client.list_sandboxes(Sandboxes::all())?.len(), 1);
    assert_eq!(client.get_current_user()?.email, "admin@localhost");
    let key = client.api_keys().create("x")?;
    assert_eq!(client.api_keys().list()?.len(), 2);
    client.api_keys().delete(key.record.id)?;
    assert!(client.list_ssh_keys()?.is_empty());
    client.kill()?;
    assert!(matches!(client.get_usage(), Err(Error::Session { .. })));
    Ok(())
}

/// The share of port 8080 is at this URL already.
async fn shares_open_and_close(client: &Client, url: &str) -> Result<()> {
    let share = client.shares().create(NewShare::of(8080)).await?;
    assert_eq!((share.url.as_str(), share.is_public), (url, false));
    let public = client
        .shares()
        .create(NewShare::of(8080).public().vm(&share.vm_id))
        .await?;
    assert_eq!(
        (&public.share_id, public.is_public),
        (&share.share_id, true)
    );
    let private = client.shares().set_public(&share.share_id, false).await?;
    assert!(!private.is_public);
    assert_eq!(client.shares().list().await?.len(), 1);
    let revoked = client.shares().revoke(&share.share_id).await?;
    assert_eq!(revoked.status, "revoked");
    let shown = client.shares().get(&share.share_id).await?;
    assert_eq!((shown.status, shown.url), (revoked.status, share.url));
    Ok(())
}
