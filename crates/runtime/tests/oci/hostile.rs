//! Layers that mean harm: each fails with the reason, and nothing remains.

use crate::image::{
    BLOCK, CHARACTER, FOLDER, GZIP, HARDLINK, Image, Layer, PLAIN, REGULAR, SYMLINK, Said, Tar,
    digest, gzip,
};
use crate::world::World;
use instavm_runtime::disk::DiskDriver;
use instavm_runtime::image::oci::OciError;

/// A name, the archive, and what of the reason is said.
fn corpus() -> Vec<(&'static str, Tar, &'static str)> {
    let owned = |owner| Said {
        owner,
        ..Said::default()
    };
    let kind = |kind| Said {
        kind,
        ..Said::default()
    };
    let sized = |size| Said {
        size: Some(size),
        ..Said::default()
    };
    let deep: String = "d/".repeat(300);
    vec![
        ("up", Tar::new().file("../evil", "x"), "'..'"),
        ("up within", Tar::new().file("a/../../evil", "x"), "'..'"),
        ("up whiteout", Tar::new().file("../.wh.etc", ""), "'..'"),
        (
            "whiteout of up",
            Tar::new().file("a/.wh...", ""),
            "whiteout",
        ),
        (
            "whiteout of nothing",
            Tar::new().folder("a/").file("a/.wh.", ""),
            "whiteout",
        ),
        (
            "hard link up",
            Tar::new().link(HARDLINK, "l", "../../etc/passwd"),
            "'..'",
        ),
        (
            "hard link outside",
            Tar::new().link(HARDLINK, "l", "/etc/passwd"),
            "not in the image",
        ),
        (
            "hard link through a link",
            Tar::new()
                .link(SYMLINK, "e", "/etc")
                .link(HARDLINK, "l", "e/passwd"),
            "not in the image",
        ),
        (
            "hard link to a folder",
            Tar::new().folder("a/").link(HARDLINK, "l", "a"),
            "folder",
        ),
        (
            "hard link to the root",
            Tar::new().link(HARDLINK, "l", "/"),
            "root",
        ),
        (
            "character device",
            Tar::new().entry("dev/mem", kind(CHARACTER), b""),
            "device node",
        ),
        (
            "block device",
            Tar::new().entry("disk", kind(BLOCK), b""),
            "device node",
        ),
        (
            "unknown kind",
            Tar::new().entry("what", kind(b'Q'), b""),
            "not known",
        ),
        (
            "large owner",
            Tar::new().entry("a", owned(65536), b"x"),
            "65535",
        ),
        (
            "larger owner",
            Tar::new().entry("a", owned(1 << 40), b"x"),
            "65535",
        ),
        (
            "owner by attribute",
            Tar::new().pax(&[("gid", b"70000")]).file("a", "x"),
            "65535",
        ),
        (
            "link to nothing",
            Tar::new().link(SYMLINK, "l", ""),
            "nothing",
        ),
        (
            "loop",
            Tar::new().link(SYMLINK, "l", "l").file("l/x", "x"),
            "",
        ),
        (
            "through a file",
            Tar::new().file("f", "x").file("f/x", "x"),
            "",
        ),
        (
            "root as a file",
            Tar::new().entry(".", kind(REGULAR), b"x"),
            "root",
        ),
        (
            "deep",
            Tar::new().pax(&[("path", deep.as_bytes())]).folder("x"),
            "deeply",
        ),
        (
            "lying size",
            Tar::new().entry("a", sized(10_000), b"only this"),
            "ends within",
        ),
        (
            "huge size",
            Tar::new().entry("a", sized(1 << 50), b"x"),
            "larger than is allowed",
        ),
        (
            "attributes that lie",
            Tar::new().entry("p", kind(b'x'), b"99 a=b\n").file("a", ""),
            "damaged",
        ),
        (
            "size that is none",
            Tar::new().pax(&[("size", b"-1")]).file("a", ""),
            "number",
        ),
        (
            "size by attribute",
            Tar::new().pax(&[("size", b"999999999999")]).file("a", "x"),
            "larger than is allowed",
        ),
        (
            "sparse lie",
            Tar::new()
                .pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,20")])
                .file("a", "x"),
            "sparse",
        ),
        (
            "sparse bomb",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"99999999999"),
                    ("GNU.sparse.map", b"0,1"),
                ])
                .file("a", "x"),
            "larger than is allowed",
        ),
        ("no archive", Tar::new().raw(&[b'x'; 2048]), ""),
        (
            "endless name",
            Tar::new().entry(
                "n",
                Said {
                    kind: b'L',
                    size: Some(1 << 40),
                    ..Said::default()
                },
                b"x",
            ),
            "megabyte",
        ),
        (
            "folder in place of a mount",
            Tar::new().entry(
                "a\u{1}/",
                Said {
                    kind: FOLDER,
                    owner: 1 << 33,
                    ..Said::default()
                },
                b"",
            ),
            "65535",
        ),
    ]
}

#[tokio::test]
async fn each_fails_with_its_reason_and_leaves_nothing() {
    let world = World::new();
    for (name, tar, reason) in corpus() {
        let error = world
            .make(&Image::of(&tar))
            .await
            .map(|image| image.root)
            .expect_err(name);
        assert!(
            matches!(error, OciError::Layer { .. } | OciError::TooLarge { .. }),
            "{name}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{name}: {error}");
        world.nothing_remains();
        assert_eq!(world.images(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn the_same_holds_on_plain_folders() {
    let world = World::with(DiskDriver::Directory, |_| ());
    for (name, tar, reason) in corpus() {
        let error = world
            .make(&Image::of(&tar))
            .await
            .map(|image| image.root)
            .expect_err(name);
        assert!(error.to_string().contains(reason), "{name}: {error}");
        assert_eq!(world.images(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_layer_that_fails_leaves_those_below_and_no_root() {
    let good = Layer::of(&Tar::new().file("a", "good"), GZIP);
    let bad = Layer::of(&Tar::new().file("../evil", "x"), GZIP);
    let world = World::new();
    let image = Image::new(&[good, bad]);
    let error = world.make(&image).await.unwrap_err();
    assert!(error.to_string().starts_with("layer 2: "), "{error}");
    world.nothing_remains();
    assert_eq!(world.images().len(), 1, "the good one can be of use again");
}

#[tokio::test]
async fn bombs_end_at_the_limit() {
    let world = World::new();
    let zeros = vec![0; 80 << 20];
    // A file that is larger than all that is allowed; nothing but zeros behind the end; a stream without an end.
    let file = Layer::of(&Tar::new().file("zeros", &zeros), GZIP);
    let mut behind = Tar::new().file("a", "x").bytes();
    behind.resize(160 << 20, 0);
    let behind = Layer::of_bytes(&behind, GZIP);
    for layer in [file, behind] {
        let error = world.make(&Image::new(&[layer])).await.unwrap_err();
        assert!(matches!(error, OciError::TooLarge { .. }), "{error:?}");
        world.nothing_remains();
    }
    // Two layers that are within the limit each, and not together.
    let half = |name: &str| Layer::of(&Tar::new().file(name, vec![1; 40 << 20]), GZIP);
    let image = Image::new(&[half("a"), half("b")]);
    let error = world.make(&image).await.unwrap_err();
    assert!(matches!(error, OciError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn the_number_of_files_has_a_limit() {
    let world = World::with(DiskDriver::Btrfs, |config| config.limits.files = 100);
    let many = (0..101).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), ""));
    let error = world.make(&Image::of(&many)).await.unwrap_err();
    assert!(error.to_string().contains("more files"), "{error}");
    world.nothing_remains();
}

#[tokio::test]
async fn content_that_is_not_what_the_image_says_shares_no_layer() {
    // Layers are found by their content's digest: one that lies would be another image's layer.
    let honest = Layer::of(&Tar::new().file("a", "honest"), GZIP);
    let evil = Tar::new().file("a", "evil").bytes();
    let lying = Layer::raw(gzip(&evil), honest.content.clone(), GZIP);
    let world = World::new();
    let error = world.make(&Image::new(&[lying])).await.unwrap_err();
    assert!(matches!(error, OciError::Mismatch { .. }), "{error:?}");
    assert_eq!(world.images(), [""; 0]);
    let root = world.make(&Image::new(&[honest])).await.unwrap().root;
    assert_eq!(crate::world::text(&root, "a"), "honest");
}

#[tokio::test]
async fn damaged_streams_are_refused() {
    let tar = Tar::new().file("a", vec![7; 100_000]).bytes();
    let cut = gzip(&tar);
    let cut = cut[..cut.len() / 2].to_vec();
    let mut flipped = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let half = tar[..tar.len() / 2].to_vec();
    let world = World::new();
    for (blob, kind) in [(cut, GZIP), (flipped, PLAIN), (half, PLAIN)] {
        let layer = Layer::raw(blob, digest(&tar), kind);
        let error = world.make(&Image::new(&[layer])).await.unwrap_err();
        assert!(
            matches!(error, OciError::Layer { .. } | OciError::Mismatch { .. }),
            "{error:?}"
        );
        world.nothing_remains();
        assert_eq!(world.images(), [""; 0]);
    }
}
