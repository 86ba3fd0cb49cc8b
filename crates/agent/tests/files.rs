//! File transfers.

mod client;

use client::Agent;
use instavm_agent_api::{Control, Event, FailureKind, Request};
use std::os::unix::fs::PermissionsExt;

#[test]
fn content_goes_in_and_out() {
    let agent = Agent::start();
    let content: Vec<u8> = (0..=255u8).cycle().take(20_000_001).collect();
    assert_eq!(
        agent.write_file("deep/er/data.bin", 0o640, &content),
        Ok(content.len() as u64)
    );
    let (size, mode, read) = agent.read_file("deep/er/data.bin").expect("the file");
    assert_eq!((size, mode), (content.len() as u64, 0o640));
    assert!(read == content, "other content came back");
    assert_eq!(agent.write_file("empty", 0o644, b""), Ok(0));
    assert_eq!(agent.read_file("empty"), Ok((0, 0o644, Vec::new())));
    let absolute = agent.workdir().join("empty").display().to_string();
    assert_eq!(agent.read_file(&absolute), Ok((0, 0o644, Vec::new())));
}

#[test]
fn an_existing_file_keeps_its_mode_and_a_link_is_followed() {
    let agent = Agent::start();
    agent
        .bash("echo old > file; chmod 755 file; ln -s file link; ln -s sub/new dangling; mkdir sub")
        .good();
    assert_eq!(agent.write_file("link", 0o600, b"new"), Ok(3));
    assert_eq!(agent.read_file("file"), Ok((3, 0o755, b"new".to_vec())));
    assert_eq!(agent.write_file("dangling", 0o600, b"x"), Ok(1));
    assert_eq!(
        agent
            .bash("readlink link; readlink dangling; cat sub/new")
            .good(),
        "file\nsub/new\nx"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let agent = Agent::start();
    agent
        .bash("mkdir dir; mkfifo fifo; echo > file; ln -s loop loop")
        .good();
    for (path, kind) in [
        ("missing", FailureKind::NotFound),
        ("dir", FailureKind::Unsuitable),
        ("dir/", FailureKind::Unsuitable),
        ("fifo", FailureKind::Unsuitable),
        ("/dev/null", FailureKind::Unsuitable),
        ("file/below", FailureKind::Unsuitable),
        ("loop", FailureKind::Unsuitable),
        ("", FailureKind::Unsuitable),
        ("a\0b", FailureKind::Unsuitable),
    ] {
        let failure = agent.read_file(path).expect_err(path);
        assert_eq!(failure.kind, kind, "{path}: {failure:?}");
        if path != "missing" {
            let failure = agent
                .write_file(path, 0o644, &vec![1; 3_000_000])
                .expect_err(path);
            assert_eq!(failure.kind, kind, "{path}: {failure:?}");
        }
    }
    assert_eq!(
        agent
            .write_file("/proc/new", 0o644, b"x")
            .expect_err("no room there")
            .kind,
        FailureKind::Unsuitable
    );
}

#[test]
fn files_of_the_kernel_come_whole_with_their_real_size() {
    let agent = Agent::start();
    for (path, expected) in [
        (
            "/proc/version",
            std::fs::read("/proc/version").expect("a file"),
        ),
        ("/sys/class/net/lo/address", b"00:00:00:00:00:00\n".to_vec()),
    ] {
        let (size, _, content) = agent.read_file(path).expect(path);
        assert_eq!(
            (size, &content),
            (content.len() as u64, &expected),
            "{path}"
        );
    }
    for path in ["/proc/cpuinfo", "/proc/mounts", "/proc/net/dev"] {
        let (size, _, content) = agent.read_file(path).expect(path);
        assert!(size > 0 && size == content.len() as u64, "{path}");
    }
    // It has no end that anybody would want to wait for.
    let endless = format!("/proc/{}/pagemap", agent.pid());
    let failure = agent.read_file(&endless).expect_err("too much");
    assert_eq!(failure.kind, FailureKind::Unsuitable);
    assert!(failure.message.contains("16 MiB"), "{failure:?}");
}

#[test]
fn nothing_leads_to_the_agent_itself() {
    let agent = Agent::start();
    agent
        .bash("ln -s /proc/self/exe exe; ln -s /proc/self/cwd cwd; ln -s /proc/self proc")
        .good();
    let program = env!("CARGO_BIN_EXE_instavm-agent");
    for path in [
        "/proc/self/exe",
        "exe",
        "cwd/file",
        "cwd/new/file",
        "/proc/self/root/tmp/file",
        "/proc/self/fd/3",
        "/dev/fd/3",
        "proc/comm",
        "proc/new",
        "/proc/sys/kernel/new",
        "/sys/new",
    ] {
        let failure = agent.write_file(path, 0o644, b"x").expect_err(path);
        assert_eq!(failure.kind, FailureKind::Unsuitable, "{path}: {failure:?}");
        assert!(!failure.message.contains(program), "{path}: {failure:?}");
    }
    for path in [
        "/proc/self/exe",
        "exe",
        "/proc/self/maps",
        "proc/environ",
        "cwd/x",
    ] {
        let failure = agent.read_file(path).expect_err(path);
        assert_eq!(failure.kind, FailureKind::Unsuitable, "{path}: {failure:?}");
    }
    assert_eq!(agent.bash("ls -A").good(), "cwd\nexe\nproc\n");
}

#[test]
fn a_cut_upload_leaves_the_old_content_and_nothing_else() {
    let agent = Agent::start();
    agent.bash("echo old > file").good();
    let mut connection = agent.request(Request::WriteFile {
        path: "file".to_owned(),
        mode: 0o644,
    });
    connection.send(&Control::Data(vec![1; 100_000]));
    connection
        .stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a shutdown");
    assert!(matches!(connection.last(), Event::Failed(_)));
    assert_eq!(agent.bash("cat file; ls -A").good(), "old\nfile\n");
}

#[test]
fn new_content_appears_at_once() {
    let agent = Agent::start();
    agent.bash("echo old > file").good();
    let mut connection = agent.request(Request::WriteFile {
        path: "file".to_owned(),
        mode: 0o644,
    });
    connection.send(&Control::Data(b"ne".to_vec()));
    assert_eq!(agent.bash("cat file").good(), "old\n");
    connection.send(&Control::Data(b"w".to_vec()));
    connection.send(&Control::End);
    assert_eq!(connection.last(), Event::Written { size: 3 });
    assert_eq!(agent.bash("cat file").good(), "new");
}

#[test]
fn a_file_that_shrinks_fails() {
    let agent = Agent::start();
    agent.bash("head -c 50000000 /dev/zero > file").good();
    let mut connection = agent.request(Request::ReadFile {
        path: "file".to_owned(),
    });
    assert!(matches!(
        connection.event(),
        Event::File {
            size: 50_000_000,
            ..
        }
    ));
    // The rest is far more than a socket holds.
    agent.bash("truncate -s 0 file").good();
    let Event::Failed(failure) = connection.last() else {
        panic!("not the size that was announced");
    };
    assert!(failure.message.contains("shorter"), "{failure:?}");
}

#[test]
fn a_full_file_system_is_told_apart() {
    let agent = Agent::start();
    let full = agent.workdir().join("full");
    std::fs::create_dir(&full).expect("a directory");
    let options = c"size=1m";
    nix::mount::mount(
        Some("tmpfs"),
        &full,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some(options),
    )
    .expect("the tests run as root");
    let failure = agent.write_file("full/file", 0o644, &vec![1; 8_000_000]);
    let listing = agent.bash("ls -A full");
    nix::mount::umount2(&full, nix::mount::MntFlags::MNT_DETACH).expect("it is mounted");
    assert_eq!(failure.expect_err("no room").kind, FailureKind::NoSpace);
    assert_eq!(listing.good(), "");
}

#[test]
fn permissions_are_as_asked_whatever_the_mask() {
    let agent = Agent::start();
    assert_eq!(agent.write_file("open", 0o777, b"x"), Ok(1));
    let mode = std::fs::metadata(agent.workdir().join("open"))
        .expect("the file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o777);
}
