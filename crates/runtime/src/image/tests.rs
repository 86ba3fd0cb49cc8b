//! The cache through its public door, with small tar files in place of real systems.

use super::*;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

fn silent(_: &str) {}

/// The file capability `cap_net_raw=ep`, as the kernel stores it.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A tar file with what has to survive: owners, modes, a set-user-id bit, a link, extended attributes.
fn sample(greeting: &str) -> Vec<u8> {
    use rustix::fs::{XattrFlags, setxattr};
    let directory = tempfile::tempdir().unwrap();
    let prepare = format!(
        "mkdir -p root/bin && cd root && echo {greeting} > greeting && chmod 640 greeting && \
         chown 1000:1000 greeting && echo run > bin/tool && chmod 4755 bin/tool && ln -s bin/tool tool"
    );
    run_in(directory.path(), &prepare);
    let tool = directory.path().join("root/bin/tool");
    setxattr(&tool, "security.capability", &NET_RAW, XattrFlags::empty()).unwrap();
    run_in(
        directory.path(),
        "cd root && tar --create --format=pax --numeric-owner --xattrs --xattrs-include='*' --mtime=@0 --sort=name \
           --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --file ../root.tar .",
    );
    std::fs::read(directory.path().join("root.tar")).unwrap()
}

fn run_in(directory: &Path, script: &str) {
    let done = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn attribute(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(path, name, &mut value).unwrap();
    value[..length].to_vec()
}

fn digest_folders(cache: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(cache)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("sha256-"))
        .collect();
    names.sort();
    names
}

fn building(cache: &Path) -> Vec<String> {
    std::fs::read_dir(cache.join("building"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn an_image_comes_back_as_it_was_added() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let content = sample("hello");
    let added = store
        .add(Source::Host, "small", content.as_slice(), &silent)
        .unwrap();
    assert!(added.digest.starts_with("sha256:"));
    assert_eq!(added.size_bytes, content.len() as u64);

    let again = ImageStore::open(cache.path()).unwrap();
    assert_eq!(again.list().unwrap(), vec![added.clone()]);
    assert_eq!(again.get("small").unwrap(), added);
    assert_eq!(building(cache.path()), Vec::<String>::new());
}

#[test]
fn unpacking_keeps_owners_modes_links_and_attributes() {
    use std::os::unix::fs::MetadataExt;
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let image = store
        .add(Source::Host, "small", sample("hello").as_slice(), &silent)
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    store.import(&image, target.path(), &silent).unwrap();

    let greeting = target.path().join("greeting");
    assert_eq!(std::fs::read_to_string(&greeting).unwrap(), "hello\n");
    let metadata = std::fs::metadata(&greeting).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (1000, 1000, 0o640)
    );
    let tool = target.path().join("bin/tool");
    assert_eq!(std::fs::metadata(&tool).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(
        std::fs::read_link(target.path().join("tool")).unwrap(),
        Path::new("bin/tool")
    );
    assert_eq!(attribute(&tool, "security.capability"), NET_RAW);
}

#[test]
fn a_directory_with_content_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let image = store
        .add(Source::Host, "small", sample("hello").as_slice(), &silent)
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    std::fs::write(target.path().join("mine"), "kept").unwrap();
    let error = store.import(&image, target.path(), &silent).unwrap_err();
    assert!(matches!(error, ImageError::TargetNotEmpty(_)), "{error}");
    assert!(!target.path().join("greeting").exists());
}

#[test]
fn damage_is_noticed() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let image = store
        .add(Source::Host, "small", sample("hello").as_slice(), &silent)
        .unwrap();
    let mut content = std::fs::read(&image.path).unwrap();
    let at = content
        .windows(6)
        .position(|window| window == b"hello\n")
        .unwrap();
    content[at] = b'j';
    std::fs::write(&image.path, &content).unwrap();
    let target = tempfile::tempdir().unwrap();
    let error = store.import(&image, target.path(), &silent).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");

    std::fs::write(&image.path, &content[..content.len() / 2]).unwrap();
    let error = store.get("small").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("instavmd image build --name small"),
        "{error}"
    );
}

#[test]
fn a_new_image_takes_the_name_and_the_old_one_goes() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let first = store
        .add(Source::Host, "small", sample("one").as_slice(), &silent)
        .unwrap();
    let second = store
        .add(Source::Debian, "small", sample("two").as_slice(), &silent)
        .unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(store.get("small").unwrap(), second);
    assert_eq!(
        digest_folders(cache.path()),
        vec![second.digest.replace(':', "-")]
    );
}

#[test]
fn two_names_share_one_content_until_both_are_gone() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let content = sample("hello");
    let a = store
        .add(Source::Host, "a", content.as_slice(), &silent)
        .unwrap();
    let b = store
        .add(Source::Host, "b", content.as_slice(), &silent)
        .unwrap();
    assert_eq!(a.digest, b.digest);
    assert_eq!(digest_folders(cache.path()).len(), 1);
    store.remove("a").unwrap();
    assert_eq!(store.get("b").unwrap().digest, b.digest);
    store.remove("b").unwrap();
    assert_eq!(digest_folders(cache.path()).len(), 0);
    assert!(matches!(
        store.remove("b").unwrap_err(),
        ImageError::NotFound(_)
    ));
    assert!(matches!(
        store.get("b").unwrap_err(),
        ImageError::NotFound(_)
    ));
}

#[test]
fn names_cannot_leave_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    for name in ["", "..", "a/b", "@", "-a", "A", "a b", &"a".repeat(64)] {
        let error = store
            .add(Source::Host, name, &b""[..], &silent)
            .unwrap_err();
        assert!(matches!(error, ImageError::BadName(_)), "{name}: {error}");
        assert!(
            matches!(store.get(name).unwrap_err(), ImageError::BadName(_)),
            "{name}"
        );
    }
}

#[test]
fn leftovers_of_a_dead_build_go_and_those_of_a_living_one_stay() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let dead = cache.path().join("building/dead@x1");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("root.tar"), "half").unwrap();

    // A build that waits for its content holds its name; the content comes when the check is done.
    let (started_tx, started) = mpsc::channel();
    let (proceed, proceed_rx) = mpsc::channel();
    let builder = std::thread::spawn(move || {
        let content = Gated {
            started_tx: Some(started_tx),
            proceed_rx: Some(proceed_rx),
            rest: sample("late"),
            at: 0,
        };
        store.add(Source::Host, "living", content, &silent)
    });
    started.recv().unwrap();
    let second = ImageStore::open(cache.path()).unwrap();
    let left = building(cache.path());
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].starts_with("living@"), "{left:?}");
    proceed.send(()).unwrap();
    let image = builder.join().unwrap().unwrap();
    assert_eq!(second.get("living").unwrap(), image);
    assert_eq!(building(cache.path()), Vec::<String>::new());
}

#[test]
fn a_stream_that_breaks_off_leaves_nothing_and_keeps_the_old_image() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let old = store
        .add(Source::Host, "small", sample("old").as_slice(), &silent)
        .unwrap();
    assert!(store.add(Source::Host, "small", Broken, &silent).is_err());
    assert_eq!(store.get("small").unwrap(), old);
    assert_eq!(building(cache.path()), Vec::<String>::new());
}

#[test]
fn the_default_image_is_waited_for_not_built_twice() {
    let cache = tempfile::tempdir().unwrap();
    let store = ImageStore::open(cache.path()).unwrap();
    let (started_tx, started) = mpsc::channel();
    let (proceed, proceed_rx) = mpsc::channel();
    let first = store.clone();
    let builder = std::thread::spawn(move || {
        let content = Gated {
            started_tx: Some(started_tx),
            proceed_rx: Some(proceed_rx),
            rest: sample("once"),
            at: 0,
        };
        first.add(Source::Debian, DEFAULT_IMAGE, content, &silent)
    });
    started.recv().unwrap();
    // Whoever comes second says that it waits; only then does the first go on.
    let second = store
        .ensure_default(&|message: &str| {
            assert!(
                message.contains("another process builds the image default"),
                "{message}"
            );
            proceed.send(()).unwrap();
        })
        .unwrap();
    assert_eq!(second, builder.join().unwrap().unwrap());
}

/// Content that tells when it is first asked for, and comes when it is let go.
struct Gated {
    started_tx: Option<mpsc::Sender<()>>,
    proceed_rx: Option<mpsc::Receiver<()>>,
    rest: Vec<u8>,
    at: usize,
}

impl std::io::Read for Gated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let (Some(started), Some(proceed)) = (self.started_tx.take(), self.proceed_rx.take()) {
            started.send(()).unwrap();
            proceed.recv().unwrap();
        }
        let length = (&self.rest[self.at..]).read(buffer)?;
        self.at += length;
        Ok(length)
    }
}

const STANDARD: &str = "deb http://deb.example/debian bookworm main contrib\n\
    deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://deb.example/security bookworm-security main\n";

fn host_with(os_release: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/apt/sources.list.d")).unwrap();
    std::fs::write(root.path().join("etc/os-release"), os_release).unwrap();
    for (name, text) in files {
        std::fs::write(root.path().join("etc/apt").join(name), text).unwrap();
    }
    root
}

const BOOKWORM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

#[test]
fn the_hosts_own_sources_are_used_without_third_parties_or_passwords() {
    let third_parties = "deb [signed-by=/etc/apt/keyrings/x.gpg] https://x.example/debian bookworm main\n\
        deb https://docker.example/linux bookworm stable\n# deb http://off.example/debian bookworm main\n\
        deb https://user:secret@mirror.example/debian bookworm main\ndeb file:/srv/mirror bookworm main\n";
    let stanzas = "Types: deb deb-src\nURIs: http://near.example/debian\nSuites: bookworm bookworm-updates bookworm-backports\n\
        Components: main non-free\n\nEnabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n";
    let root = host_with(
        BOOKWORM,
        &[
            ("sources.list", STANDARD),
            ("sources.list.d/a.list", third_parties),
            ("sources.list.d/b.sources", stanzas),
            ("sources.list.d/c.save", STANDARD),
        ],
    );
    let lines = debian_sources::of_host(root.path(), debian::RELEASE).unwrap();
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "deb http://deb.example/debian bookworm main",
            "deb https://deb.example/security bookworm-security main",
            "deb http://near.example/debian bookworm main",
            "deb http://near.example/debian bookworm-updates main",
        ]
    );
}

#[test]
fn other_hosts_have_no_sources_to_offer() {
    let ubuntu = host_with(
        "ID=ubuntu\nVERSION_CODENAME=noble\n",
        &[("sources.list", STANDARD)],
    );
    assert_eq!(
        debian_sources::of_host(ubuntu.path(), debian::RELEASE),
        None
    );
    let partial = "deb http://deb.example/debian bookworm-updates main\n";
    let incomplete = host_with(BOOKWORM, &[("sources.list", partial)]);
    assert_eq!(
        debian_sources::of_host(incomplete.path(), debian::RELEASE),
        None
    );
}
