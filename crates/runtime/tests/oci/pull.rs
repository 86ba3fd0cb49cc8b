//! Pulling: what is asked for, what is kept, and who may.

use crate::image::{GZIP, Image, Layer, OCI_MANIFEST, Tar, architecture};
use crate::server::{Fault, Lock, Server};
use crate::world::{World, log, text};
use axum::http::Method;
use instavm_runtime::disk::DiskDriver;
use instavm_runtime::image::oci::{OciError, OciPruned};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn layer(name: &str) -> Layer {
    Layer::of(&Tar::new().file(name, name), GZIP)
}

#[tokio::test]
async fn a_second_build_pulls_nothing() {
    let server = Server::start().await;
    let world = World::new();
    let reference = server.push("a/b", &Image::new(&[layer("one"), layer("two")]));
    let mut steps = Vec::new();
    let first = world
        .store
        .ensure(&world.pool, &reference, |step| steps.push(step))
        .await
        .unwrap();
    let said = log(&steps);
    for line in [
        "found sha256:",
        "unpacking layer 2 of 2",
        "the image is ready",
    ] {
        assert!(said.contains(line), "{said}");
    }
    server.forget_asked();
    let second = world.ensure(&reference).await.unwrap();
    assert_eq!((&first.root, &first.digest), (&second.root, &second.digest));
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, Method::HEAD);
    // By digest there is nothing to ask.
    server.forget_asked();
    let pinned = format!("{}/a/b@{}", server.host, first.digest);
    assert_eq!(world.ensure(&pinned).await.unwrap().root, first.root);
    assert_eq!(server.asked().len(), 0);
    // Another daemon of the host with a pool of its own needs the manifest's digest only, too.
    let other = World::new();
    let store = world.other_store(|_| ());
    store.ensure(&other.pool, &reference, |_| ()).await.unwrap();
    assert_eq!(server.blobs_asked(), 0);
}

#[tokio::test]
async fn images_that_begin_alike_share_their_layers() {
    let server = Server::start().await;
    let world = World::new();
    let one = server.push("one", &Image::new(&[layer("base"), layer("one")]));
    let two = server.push("two", &Image::new(&[layer("base"), layer("two")]));
    world.ensure(&one).await.unwrap();
    server.forget_asked();
    let root = world.ensure(&two).await.unwrap().root;
    assert_eq!(server.blobs_asked(), 2, "a configuration and a layer");
    assert_eq!(text(&root, "base"), "base");
    assert!(!root.join("one").exists());
    // Three layers and two roots.
    assert_eq!(world.images().len(), 5);
}

#[tokio::test]
async fn many_at_once_do_the_work_once() {
    let server = Server::start().await;
    let world = World::new();
    let same = server.push("same", &Image::new(&[layer("base"), layer("top")]));
    let other = server.push("other", &Image::new(&[layer("base"), layer("else")]));
    let all = [&same, &same, &other, &same, &other, &same];
    let made = futures::future::join_all(all.map(|reference| world.ensure(reference))).await;
    for image in made {
        image.unwrap();
    }
    // Two configurations and three layers, each once.
    assert_eq!(server.blobs_asked(), 5, "{:?}", server.asked());
    world.nothing_remains();
}

#[tokio::test]
async fn one_of_many_platforms_is_this_machines() {
    let server = Server::start().await;
    let world = World::new();
    let here = Image::new(&[layer("here")]);
    let there = Image::with(
        &[layer("there")],
        OCI_MANIFEST,
        "s390x",
        serde_json::json!({}),
    );
    let note = Image::with(
        &[layer("note")],
        OCI_MANIFEST,
        "unknown",
        serde_json::json!({}),
    );
    let reference = server.push_index(
        "many",
        &[
            (&there, ["linux", "s390x", ""]),
            (&note, ["unknown", "unknown", ""]),
            (&here, ["linux", architecture(), ""]),
        ],
    );
    let made = world.ensure(&reference).await.unwrap();
    assert_eq!(made.digest, here.digest());
    assert_eq!(text(&made.root, "here"), "here");
    let reference = server.push_index("few", &[(&there, ["linux", "s390x", ""])]);
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    // Without a list, the configuration tells.
    let reference = server.push("single", &there);
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(error.to_string().contains("s390x"), "{error}");
}

fn auth_file(world: &World, host: &str, user: &str, password: &str) -> std::path::PathBuf {
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let path = world.path().join("config.json");
    let text = serde_json::json!({"auths": {host: {"auth": auth}}});
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

#[tokio::test]
async fn names_and_passwords_are_shown_to_who_asks() {
    let server = Server::start().await;
    let (user, password) = ("me".to_owned(), "secret: word".to_owned());
    server.lock(Lock::Basic { user, password });
    let reference = server.push("a", &Image::new(&[layer("x")]));
    let world = World::new();
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(matches!(error, OciError::Denied { .. }), "{error:?}");
    let right = auth_file(&world, &server.host, "me", "secret: word");
    let store = world.other_store(|config| config.auth_file = Some(right));
    store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    let wrong = auth_file(&world, &server.host, "me", "wrong");
    let store = world.other_store(|config| config.auth_file = Some(wrong));
    let error = store
        .ensure(&world.pool, &reference, |_| ())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
}

#[tokio::test]
async fn tokens_are_asked_for_and_renewed() {
    let server = Server::start().await;
    let lock = |life| Lock::Token {
        user: "me".into(),
        password: "secret".into(),
        life,
    };
    server.lock(lock(300));
    let reference = server.push("a", &Image::new(&[layer("x"), layer("y")]));
    let world = World::new();
    let file = auth_file(&world, &server.host, "me", "secret");
    let store = world.other_store(|config| config.auth_file = Some(file.clone()));
    store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    assert_eq!(server.tokens_given(), 1, "one token serves all requests");
    // A token that ends at once is asked for again, and never shown to another service.
    server.lock(lock(0));
    let reference = server.push("b", &Image::new(&[layer("z")]));
    store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    assert!(server.tokens_given() > 1);
    let wrong = auth_file(&world, &server.host, "me", "wrong");
    let store = world.other_store(|config| config.auth_file = Some(wrong));
    let error = store
        .ensure(&world.pool, &reference, |_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, OciError::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn only_the_registry_sees_the_credentials() {
    let registry = Server::start().await;
    let storage = Server::start().await;
    let (user, password) = ("me".to_owned(), "secret".to_owned());
    registry.lock(Lock::Basic { user, password });
    let one = layer("x");
    let image = Image::new(std::slice::from_ref(&one));
    let reference = registry.push("a", &image);
    storage.push("a", &image);
    let place = format!(
        "http://{}/v2/a/blobs/{}?signature=x",
        storage.host, one.digest
    );
    registry.fail(&one.digest, Fault::With(307, "location", place), 9);
    let world = World::new();
    let file = auth_file(&world, &registry.host, "me", "secret");
    let store = world.other_store(|config| config.auth_file = Some(file));
    store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    let asked = storage.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization, None);
    assert!(
        registry
            .asked()
            .iter()
            .any(|asked| asked.authorization.is_some())
    );
}

#[tokio::test]
async fn addresses_that_are_not_allowed_are_not_asked() {
    let server = Server::start().await;
    let reference = server.push("a", &Image::new(&[layer("x")]));
    let world = World::with(DiskDriver::Btrfs, |config| {
        config.private_registries = false
    });
    let port = server.host.rsplit_once(':').unwrap().1;
    for host in [
        server.host.clone(),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
    ] {
        let error = world.ensure(&format!("{host}/a")).await.unwrap_err();
        assert!(
            matches!(error, OciError::Forbidden { .. }),
            "{host}: {error:?}"
        );
    }
    assert_eq!(server.asked().len(), 0);
    // From an address that is allowed to one without TLS that is not this host.
    let world = World::new();
    let place = "http://192.0.2.1/blob".to_owned();
    server.fail("manifests/latest", Fault::With(307, "location", place), 9);
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
    let file = "file:///etc/passwd".to_owned();
    server.fail("manifests/latest", Fault::With(307, "location", file), 9);
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(matches!(error, OciError::Forbidden { .. }), "{error:?}");
}

#[tokio::test]
async fn a_blob_that_rots_is_pulled_again() {
    let server = Server::start().await;
    let world = World::new();
    let one = layer("x");
    let reference = server.push("a", &Image::new(std::slice::from_ref(&one)));
    world.ensure(&reference).await.unwrap();
    let path = world
        .path()
        .join("blobs/sha256")
        .join(one.digest.strip_prefix("sha256:").unwrap());
    std::fs::write(&path, vec![0; one.blob.len()]).unwrap();
    let other = World::new();
    let store = world.other_store(|_| ());
    let made = store.ensure(&other.pool, &reference, |_| ()).await.unwrap();
    assert_eq!(text(&made.root, "x"), "x");
    world.nothing_remains();
}

#[tokio::test]
async fn what_nobody_waits_for_is_undone() {
    let server = Server::start().await;
    let world = World::new();
    let one = layer("x");
    let reference = server.push("a", &Image::new(std::slice::from_ref(&one)));
    server.fail(&one.digest, Fault::Stall(10), 1);
    let store = world.other_store(|config| config.limits.stall = Duration::from_secs(60));
    {
        let ensure = store.ensure(&world.pool, &reference, |_| ());
        tokio::pin!(ensure);
        while server.blobs_asked() < 2 {
            tokio::select! {
                done = &mut ensure => panic!("it stalls: {done:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    // Whoever comes next does not wait for who is gone.
    store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    // The thread that wrote the draft ends in its own time.
    while !world.drafts().is_empty() {
        tokio::task::yield_now().await;
    }
    world.nothing_remains();
}

fn age(folder: &Path) {
    let long_ago = SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        file.set_modified(long_ago).unwrap();
    }
}

#[tokio::test]
async fn what_nobody_has_used_for_long_is_pruned() {
    let server = Server::start().await;
    let world = World::new();
    let old = server.push("old", &Image::new(&[layer("base"), layer("old")]));
    let new = server.push("new", &Image::new(&[layer("base"), layer("new")]));
    drop(world.ensure(&old).await.unwrap());
    let held = world.ensure(&new).await.unwrap();
    let nothing = world.store.prune(&world.pool, |_| false).unwrap();
    assert_eq!(nothing, OciPruned::default(), "all of it was used just now");
    age(&world.path().join("blobs/used"));
    age(&world.path().join("blobs/sha256"));
    let all = world.store.prune(&world.pool, |_| true).unwrap();
    assert_eq!(all.images, 0, "all of it is to stay");
    age(&world.path().join("blobs/sha256"));
    let pruned = world.store.prune(&world.pool, |_| false).unwrap();
    assert_eq!(pruned.images, 2, "the old root and its upper layer");
    assert_eq!(text(&held.root, "base"), "base");
    drop(held);
    let rest = world.store.prune(&world.pool, |_| false).unwrap();
    assert_eq!(rest.images, 3);
    assert_eq!(world.images(), [""; 0]);
    // And it can be had again.
    world.ensure(&old).await.unwrap();
}
