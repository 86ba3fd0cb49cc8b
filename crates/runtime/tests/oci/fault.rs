//! Registries that stall, cut, lie or refuse: each ends with the reason, in time, and nothing remains.

use crate::image::{GZIP, Image, Layer, OCI_MANIFEST, Tar, digest};
use crate::server::{Fault, Server};
use crate::world::{World, limits, text};
use instavm_runtime::disk::DiskDriver;
use instavm_runtime::image::oci::OciError;

/// An image with one layer of some size.
fn image() -> (Image, Layer) {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(300_000)
    .collect();
    let layer = Layer::of(&Tar::new().file("a", noise), GZIP);
    (Image::new(std::slice::from_ref(&layer)), layer)
}

async fn failing(end: &str, fault: Fault, times: usize) -> (World, Server, Result<(), OciError>) {
    let server = Server::start().await;
    let (image, layer) = image();
    let reference = server.push("a", &image);
    let end = if end == "layer" { &layer.digest } else { end };
    server.fail(end, fault, times);
    let world = World::new();
    let done = world.ensure(&reference).await.map(|_| ());
    world.nothing_remains();
    if done.is_err() {
        assert_eq!(world.images(), [""; 0]);
    }
    (world, server, done)
}

#[tokio::test]
async fn a_stream_that_is_cut_goes_on_where_it_was() {
    let (_, server, done) = failing("layer", Fault::Cut(100_000), 1).await;
    done.unwrap();
    let ranges: Vec<String> = server.asked().into_iter().filter_map(|a| a.range).collect();
    let from: usize = ranges[0]
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'))
        .unwrap()
        .parse()
        .unwrap();
    assert!(from > 0 && from <= 100_000, "{ranges:?}");
    assert_eq!(ranges.len(), 1);
}

#[tokio::test]
async fn a_registry_that_cannot_go_on_sends_it_again() {
    let server = Server::start().await;
    server.without_ranges();
    let (image, layer) = image();
    let reference = server.push("a", &image);
    server.fail(&layer.digest, Fault::Cut(100_000), 2);
    let world = World::new();
    let root = world.ensure(&reference).await.unwrap().root;
    assert_eq!(std::fs::metadata(root.join("a")).unwrap().len(), 300_000);
}

#[tokio::test]
async fn a_stream_that_is_always_cut_ends() {
    let (_, server, done) = failing("layer", Fault::Cut(1000), 1000).await;
    let error = done.unwrap_err();
    assert!(matches!(error, OciError::Unreachable { .. }), "{error:?}");
    assert!(server.blobs_asked() <= 1 + limits().attempts as usize);
}

#[tokio::test]
async fn a_registry_that_stalls_is_left() {
    for end in ["layer", "manifests/latest"] {
        let (_, _, done) = failing(end, Fault::Stall(0), 1000).await;
        let error = done.unwrap_err();
        assert!(
            error.to_string().contains("sent nothing for too long"),
            "{end}: {error}"
        );
    }
    let (_, _, done) = failing("layer", Fault::Stall(5000), 1).await;
    done.unwrap();
}

#[tokio::test]
async fn wrong_content_and_lying_sizes_are_found_out() {
    let (_, layer) = image();
    let mut wrong = layer.blob.clone();
    wrong[1000] ^= 1;
    let mut longer = layer.blob.clone();
    longer.extend_from_slice(&[0; 100]);
    let tenfold = layer.blob.repeat(10);
    let shorter = layer.blob[..layer.blob.len() - 10].to_vec();
    let lies = [
        Fault::Send(wrong.clone()),
        Fault::Send(longer.clone()),
        Fault::Send(shorter.clone()),
        Fault::Send(tenfold.clone()),
        Fault::Chunked(wrong),
        Fault::Chunked(longer),
        Fault::Chunked(shorter),
        Fault::Chunked(tenfold),
    ];
    for lie in lies {
        let (_, server, done) = failing("layer", lie, 1000).await;
        let error = done.unwrap_err();
        assert!(matches!(error, OciError::Mismatch { .. }), "{error:?}");
        assert!(error.to_string().contains(&layer.digest), "{error}");
        assert_eq!(server.blobs_asked(), 2, "a lie is not asked for again");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_its_digest_is_refused() {
    let server = Server::start().await;
    let (image, _) = image();
    server.push("a", &image);
    let end = format!("manifests/{}", image.digest());
    server.fail(&end, Fault::Send(b"{}".to_vec()), 1000);
    let world = World::new();
    let error = world
        .ensure(&format!("{}/a@{}", server.host, image.digest()))
        .await
        .unwrap_err();
    assert!(matches!(error, OciError::Mismatch { .. }), "{error:?}");
    world.nothing_remains();
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let refused = |status| async move {
        let (_, server, done) = failing("manifests/latest", Fault::Status(status), 1000).await;
        (done.unwrap_err(), server.asked().len())
    };
    let (error, asked) = refused(404).await;
    assert!(matches!(error, OciError::NotFound { .. }), "{error:?}");
    assert_eq!(asked, 2, "once, after looking for TLS");
    for status in [401, 403] {
        let (error, _) = refused(status).await;
        assert!(matches!(error, OciError::Denied { .. }), "{error:?}");
    }
    let (error, asked) = refused(429).await;
    assert!(matches!(error, OciError::RateLimited { .. }), "{error:?}");
    assert_eq!(asked, 1 + limits().attempts as usize);
    let (error, _) = refused(503).await;
    assert!(error.to_string().contains("503"), "{error}");
    let (_, _, done) = failing("layer", Fault::Status(500), 1).await;
    done.unwrap();
    let wait = Fault::With(429, "retry-after", "0".into());
    let (_, _, done) = failing("layer", wait, 2).await;
    done.unwrap();
    let (_, _, done) = failing("layer", Fault::Status(404), 1000).await;
    assert!(matches!(done.unwrap_err(), OciError::NotFound { .. }));
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let world = World::new();
    let error = world.ensure(&format!("{host}/a")).await.unwrap_err();
    assert!(error.to_string().contains(&host), "{error}");
    assert!(matches!(error, OciError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start().await;
    let (image, _) = image();
    let reference = server.push("a", &image);
    let around = format!("http://{}/v2/a/manifests/latest", server.host);
    server.fail(
        "manifests/latest",
        Fault::With(302, "location", around),
        1000,
    );
    let world = World::new();
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(server.asked().len() < 20);
}

#[tokio::test]
async fn sizes_have_limits() {
    let server = Server::start().await;
    let world = World::new();
    let large = server.push_text("large", OCI_MANIFEST, vec![b' '; 5 << 20]);
    let error = world.ensure(&large).await.unwrap_err();
    assert!(matches!(error, OciError::TooLarge { .. }), "{error:?}");
    let (mut image, _) = image();
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["size"] = serde_json::json!(9 << 20);
    image.manifest = manifest.to_string().into_bytes();
    let reference = server.push("config", &image);
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(matches!(error, OciError::TooLarge { .. }), "{error:?}");
    manifest["config"]["size"] = serde_json::json!(image.config.len());
    manifest["layers"][0]["size"] = serde_json::json!(u64::MAX >> 12);
    image.manifest = manifest.to_string().into_bytes();
    let reference = server.push("layer", &image);
    server.forget_asked();
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(matches!(error, OciError::TooLarge { .. }), "{error:?}");
    assert_eq!(server.blobs_asked(), 1, "the configuration only");
    world.nothing_remains();
}

#[tokio::test]
async fn manifests_that_are_none_say_so() {
    let server = Server::start().await;
    let world = World::new();
    let (image, layer) = image();
    server.push("a", &image);
    let valid: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut manifest = valid.clone();
        *manifest.pointer_mut(pointer).unwrap() = value;
        manifest.to_string().into_bytes()
    };
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let cases = [
        (b"<html>".to_vec(), "its manifest is none"),
        (br#"{"schemaVersion":1,"name":"a"}"#.to_vec(), "schema 1"),
        (
            changed("/layers/0/mediaType", foreign.into()),
            "no layer of a Linux image",
        ),
        (
            changed("/layers/0/digest", "sha256:00".into()),
            "its manifest is none",
        ),
        (changed("/layers", serde_json::json!([])), "has 0 layers"),
        (
            changed("/config/digest", digest(b"nothing").into()),
            "does not have the blob",
        ),
        (
            changed("/config/digest", layer.digest.clone().into()),
            "the manifest says",
        ),
    ];
    for (text, reason) in cases {
        let reference = server.push_text("a", OCI_MANIFEST, text);
        let error = world.ensure(&reference).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        world.nothing_remains();
    }
}

#[tokio::test]
async fn a_full_pool_says_so_and_takes_nothing() {
    let server = Server::start().await;
    let world = World::with(DiskDriver::Btrfs, |config| {
        config.limits.unpacked_bytes = 8 << 30;
    });
    let small = server.push("small", &Image::of(&Tar::new().file("a", "x")));
    world.ensure(&small).await.unwrap();
    // More than the pool's gibibyte, of which a few megabytes are sent.
    let piece = vec![0; 100 << 20];
    let large = (0..11).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), &piece));
    let reference = server.push("large", &Image::of(&large));
    let error = world.ensure(&reference).await.unwrap_err();
    let said = format!("{error:#} {error:?}");
    assert!(
        said.contains("Full") || said.contains("StorageFull"),
        "{said}"
    );
    world.nothing_remains();
    let root = world.ensure(&small).await.unwrap().root;
    assert_eq!(text(&root, "a"), "x");
}
