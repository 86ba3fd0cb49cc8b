//! What layers say is what is in the root: links, owners, attributes, whiteouts, sparse files.

use crate::image::{
    DOCKER_GZIP, DOCKER_MANIFEST, FIFO, FOLDER, GZIP, HARDLINK, Image, Layer, PLAIN, REGULAR,
    SYMLINK, Said, Tar, ZSTD, architecture,
};
use crate::world::{World, names, text};
use instavm_runtime::disk::DiskDriver;
use std::fs::{metadata, symlink_metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// `cap_net_raw=ep`, as the kernel keeps it.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[tokio::test]
async fn everything_that_an_entry_says_is_kept() {
    let long = format!("deep/{}/file", "x".repeat(120));
    let longer = format!("deep/{}/{}/file", "y".repeat(200), "z".repeat(200));
    let said = Said {
        mode: 0o4755,
        owner: 33,
        group: 65535,
        ..Said::default()
    };
    let tar = Tar::new()
        .folder("./")
        .folder("bin/")
        .pax(&[
            ("SCHILY.xattr.security.capability", &NET_RAW),
            ("SCHILY.xattr.user.note", b"two\nlines = here"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("mtime", b"1500000000.25"),
        ])
        .entry("bin/tool", said, b"run me")
        .link(HARDLINK, "bin/same", "bin/tool")
        .link(SYMLINK, "tool", "bin/tool")
        .link(SYMLINK, "away", "/etc/shadow")
        .entry(
            "queue",
            Said {
                kind: FIFO,
                mode: 0o620,
                ..Said::default()
            },
            b"",
        )
        .long(b'L', &long)
        .file("short", "long name")
        .pax(&[("path", longer.as_bytes()), ("uid", b"1000")])
        .file("other", "longer name")
        .entry(
            "old-folder/",
            Said {
                kind: REGULAR,
                mode: 0o700,
                ..Said::default()
            },
            b"",
        );
    let world = World::new();
    let root = world.make(&Image::of(&tar)).await.unwrap().root;
    let tool = metadata(root.join("bin/tool")).unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o4755);
    assert_eq!((tool.uid(), tool.gid()), (33, 65535));
    assert_eq!(
        (tool.mtime(), tool.mtime_nsec()),
        (1_500_000_000, 250_000_000)
    );
    assert_eq!(tool.nlink(), 2);
    let path = root.join("bin/tool");
    assert_eq!(attribute(&path, "security.capability").unwrap(), NET_RAW);
    assert_eq!(attribute(&path, "user.note").unwrap(), b"two\nlines = here");
    assert_eq!(attribute(&path, "security.selinux"), None);
    let target = std::fs::read_link(root.join("away")).unwrap();
    assert_eq!(target, Path::new("/etc/shadow"));
    let queue = metadata(root.join("queue")).unwrap();
    assert!(queue.file_type().is_fifo());
    assert_eq!(queue.mode() & 0o7777, 0o620);
    assert_eq!(text(&root, &long), "long name");
    assert_eq!(text(&root, &longer), "longer name");
    assert_eq!(metadata(root.join(&longer)).unwrap().uid(), 1000);
    assert!(root.join("old-folder").is_dir());
    assert_eq!(metadata(root.join("bin")).unwrap().mtime(), 1_600_000_000);
}

#[tokio::test]
async fn layers_hide_and_replace_what_is_below() {
    let base = Tar::new()
        .folder("keep/")
        .file("keep/a", "below")
        .file("keep/b", "below")
        .file("gone", "below")
        .folder("full/")
        .file("full/old", "below")
        .folder("full/sub/")
        .file("full/sub/old", "below")
        .folder("tree/deep/deeper/")
        .file("tree/deep/deeper/leaf", "below")
        .file("file-to-folder", "below")
        .folder("folder-to-file/")
        .file("folder-to-file/x", "below")
        .link(SYMLINK, "link-to-folder", "keep");
    let above = Tar::new()
        .file("keep/.wh.a", "")
        .file(".wh.gone", "")
        .file(".wh.never-was", "")
        .file("no/such/.wh.folder", "")
        // What this layer brings itself stays, whichever side of the mark it stands on.
        .folder("full/")
        .folder("full/sub/")
        .file("full/sub/new", "above")
        .file("full/.wh..wh..opq", "")
        .file("full/new", "above")
        .file(".wh.tree", "")
        .folder("file-to-folder/")
        .file("file-to-folder/x", "above")
        .file("folder-to-file", "above")
        .folder("link-to-folder/")
        .file("link-to-folder/x", "above")
        .file(".wh..wh.plnk/1.2", "a note of another file system")
        .link(HARDLINK, "linked", "keep/b");
    let again = Tar::new().file("gone", "again").file("full/.wh.new", "");
    let layers = [
        Layer::of(&base, GZIP),
        Layer::of(&above, ZSTD),
        Layer::of(&again, PLAIN),
    ];
    for driver in [DiskDriver::Btrfs, DiskDriver::Directory] {
        let world = World::with(driver, |_| ());
        let root = world.make(&Image::new(&layers)).await.unwrap().root;
        assert_eq!(names(&root.join("keep")), ["b"]);
        assert_eq!(text(&root, "gone"), "again");
        assert_eq!(names(&root.join("full")), ["sub"]);
        assert_eq!(names(&root.join("full/sub")), ["new"]);
        assert!(!root.join("tree").exists());
        assert_eq!(text(&root, "file-to-folder/x"), "above");
        assert_eq!(text(&root, "folder-to-file"), "above");
        assert!(
            !symlink_metadata(root.join("link-to-folder"))
                .unwrap()
                .is_symlink()
        );
        assert_eq!(text(&root, "linked"), "below");
        assert!(!root.join("no").exists());
        let hidden = names(&root).iter().any(|name| name.starts_with(".wh."));
        assert!(!hidden, "{:?}", names(&root));
    }
}

#[tokio::test]
async fn sparse_files_are_whole_in_every_form() {
    let hole = 1 << 20;
    let size = hole + 4;
    let old = {
        let mut header = tar::Header::new_gnu();
        header.set_path("old").unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(4);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        gnu.sparse[0].set_offset(hole);
        gnu.sparse[0].set_length(4);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let real = size.to_string();
    let map = format!("{hole},4");
    let mut listed = format!("1\n{hole}\n4\n").into_bytes();
    listed.resize(512, 0);
    listed.extend_from_slice(b"data");
    let tar = Tar::new()
        .raw(&old)
        .raw(b"data")
        .pax(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.name", b"map"),
        ])
        .file("GNUSparseFile/map", "data")
        .pax(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.offset", hole.to_string().as_bytes()),
            ("GNU.sparse.numbytes", b"4"),
        ])
        .file("records", "data")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"listed"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ])
        .file("GNUSparseFile/listed", listed)
        .file("after", "them");
    let world = World::new();
    let root = world.make(&Image::of(&tar)).await.unwrap().root;
    let mut wanted = vec![0; hole as usize];
    wanted.extend_from_slice(b"data");
    for name in ["old", "map", "records", "listed"] {
        assert_eq!(std::fs::read(root.join(name)).unwrap(), wanted, "{name}");
        assert!(
            metadata(root.join(name)).unwrap().blocks() < 64,
            "{name} has its hole"
        );
    }
    assert_eq!(text(&root, "after"), "them");
}

#[tokio::test]
async fn links_lead_where_they_will_lead_inside() {
    // Each of them would write to the host, if the host's own root were meant.
    let world = World::new();
    let outside = world.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let absolute = outside.to_str().unwrap();
    let up = format!("{}{absolute}", "../".repeat(40));
    let first = Tar::new()
        .folder("etc/")
        .link(SYMLINK, "x", "/etc")
        .file("x/passwd", "inside")
        .link(SYMLINK, "out", absolute)
        .file("out/file", "inside")
        .folder("up/")
        .link(SYMLINK, "up/up", "../../../../../../etc")
        .file("up/up/group", "inside")
        .file("/rooted/file", "inside");
    let second = Tar::new()
        .file("x/shadow", "inside")
        .file("out/again", "inside")
        .link(SYMLINK, "up/far", &up[..up.len().min(99)])
        .file("x/.wh.passwd", "");
    let layers = [Layer::of(&first, GZIP), Layer::of(&second, GZIP)];
    let root = world.make(&Image::new(&layers)).await.unwrap().root;
    assert_eq!(names(&root.join("etc")), ["group", "shadow"]);
    assert_eq!(text(&root, "rooted/file"), "inside");
    assert_eq!(text(&root, &format!("{}/file", &absolute[1..])), "inside");
    assert_eq!(names(&root.join(&absolute[1..])), ["again", "file"]);
    assert_eq!(names(&outside), [""; 0], "the host is as it was");
}

#[tokio::test]
async fn a_root_has_what_a_machine_needs_and_keeps_what_it_has() {
    let bundle = "-----BEGIN CERTIFICATE-----\nimage\n-----END CERTIFICATE-----";
    let own = "-----BEGIN CERTIFICATE-----\nhost\n-----END CERTIFICATE-----\n";
    let tar = Tar::new()
        .file("app", "a program of this name")
        .link(SYMLINK, "run", "var/run")
        .file("proc", "no folder")
        .folder("etc/pki/")
        .folder("usr/local/share/ca-certificates/")
        .file("etc/pki/bundle.pem", bundle)
        .link(
            SYMLINK,
            "etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/bundle.pem",
        )
        .link(SYMLINK, "etc/ssl/cert.pem", "certs/ca-certificates.crt");
    let world = World::with(DiskDriver::Btrfs, |_| ());
    let file = world.path().join("host.pem");
    std::fs::write(&file, own).unwrap();
    let anchors = instavm_runtime::trust::TrustAnchors::of_files(&[file]).unwrap();
    let store = world.other_store(|config| config.anchors = anchors);
    let server = crate::server::Server::start().await;
    let reference = server.push("a", &Image::of(&tar));
    let image = store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    let root = image.root;
    for name in ["dev", "proc", "sys", "run"] {
        assert!(
            symlink_metadata(root.join(name)).unwrap().is_dir(),
            "{name}"
        );
    }
    assert_eq!(metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(metadata(root.join("root")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(text(&root, "app"), "a program of this name");
    assert_eq!(
        text(&root, "etc/pki/bundle.pem"),
        format!("{bundle}\n{own}")
    );
    assert_eq!(
        text(&root, "usr/local/share/ca-certificates/host-0.crt"),
        own
    );
    assert!(
        !root.join("usr/bin").exists(),
        "nothing is forced on an image"
    );
    // Without authorities it is another root on the same layers.
    let plain = world.ensure(&reference).await.unwrap();
    assert_ne!(plain.root, root);
    assert_eq!(text(&plain.root, "etc/pki/bundle.pem"), bundle);
}

#[tokio::test]
async fn docker_images_and_their_settings_are_understood() {
    let layer = Layer::of(&Tar::new().folder("srv/").file("srv/a", "1"), DOCKER_GZIP);
    let run = serde_json::json!({
        "Env": ["PATH=/bin", "EMPTY=", "EQUALS=a=b", "nothing"],
        "WorkingDir": "/srv",
        "User": "33:33",
        "Entrypoint": ["/bin/tini", "--"],
        "Cmd": ["serve", "-v"],
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": null,
    });
    let image = Image::with(&[layer], DOCKER_MANIFEST, architecture(), run);
    let world = World::new();
    let made = world.make(&image).await.unwrap();
    assert_eq!(made.digest, image.digest());
    assert_eq!(made.config.workdir.as_deref(), Some("/srv"));
    assert_eq!(made.config.user.as_deref(), Some("33:33"));
    assert_eq!(made.config.entrypoint, ["/bin/tini", "--"]);
    assert_eq!(made.config.command, ["serve", "-v"]);
    let env: Vec<(&str, &str)> = made
        .config
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(env, [("PATH", "/bin"), ("EMPTY", ""), ("EQUALS", "a=b")]);
}

#[tokio::test]
async fn an_image_without_layers_and_one_with_an_empty_one_have_roots() {
    let world = World::new();
    let nothing = world.make(&Image::new(&[])).await.unwrap();
    assert!(nothing.root.join("proc").is_dir());
    let empty = Layer::of(&Tar::new(), GZIP);
    let twice = world
        .make(&Image::new(&[empty.clone(), empty]))
        .await
        .unwrap();
    assert!(twice.root.join("proc").is_dir());
    let folder = Said {
        kind: FOLDER,
        mode: 0o711,
        ..Said::default()
    };
    let root = Tar::new().entry("./", folder, b"");
    let own = world.make(&Image::of(&root)).await.unwrap();
    assert_eq!(metadata(own.root).unwrap().mode() & 0o7777, 0o711);
}
