//! Signals, pipes and terminals.

use crate::environment::{Environment, Server};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

#[tokio::test]
async fn an_interrupt_ends_a_watch_with_130() -> Result<()> {
    let server = Server::start(&[(200, "[]")]).await?;
    let environment = server.environment()?;
    let mut child = environment
        .command(&["ls", "--watch", "600", "-j"])
        .spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("it has a standard output")?);
    let mut frame = String::new();
    stdout.read_line(&mut frame).await?;
    assert_eq!(frame, "{\"vms\": []}\n");
    let id = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    kill_process(id.context("it runs")?, Signal::INT)?;
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().context("it has a standard error")?;
    pipe.read_to_string(&mut stderr).await?;
    assert_eq!(
        (child.wait().await?.code(), stderr.as_str()),
        (Some(130), "Interrupted.\n")
    );
    Ok(())
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_reason_to_shout() -> Result<()> {
    let environment = Environment::new()?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut child = environment.command(&["help"]).stdout(writer).spawn()?;
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().context("it has a standard error")?;
    pipe.read_to_string(&mut stderr).await?;
    assert_eq!((child.wait().await?.code(), stderr.as_str()), (Some(1), ""));
    Ok(())
}

/// A terminal of our own: our end, and the path of the other.
fn terminal() -> Result<(File, String)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let path = ptsname(&ours, Vec::new())?.into_string()?;
    Ok((ours.into(), path))
}

/// Reads from the terminal until it has shown this.
fn until(terminal: &mut File, text: &str) -> Result<String> {
    let mut shown = String::new();
    let mut byte = [0];
    while !shown.contains(text) {
        terminal.read_exact(&mut byte)?;
        shown.push(char::from(byte[0]));
    }
    Ok(shown)
}

#[tokio::test]
async fn colours_are_for_terminals_that_have_them() -> Result<()> {
    const VMS: &str = r#"[{"vm_id":"v","status":"active"},{"vm_id":"w","status":"building"},{"vm_id":"x","status":"gone"}]"#;
    let server = Server::start(&[(200, VMS), (200, VMS), (200, VMS)]).await?;
    for (name, value, expected) in [
        (
            "TERM",
            "xterm",
            "  v   \u{1b}[32m●\u{1b}[0m active    -        -  ",
        ),
        ("TERM", "dumb", "  v   ● active    -        -  "),
        ("NO_COLOR", "1", "  v   ● active    -        -  "),
    ] {
        let (mut ours, path) = terminal()?;
        let theirs = OpenOptions::new().read(true).write(true).open(path)?;
        let environment = server.environment()?.with(name, value);
        let status = environment
            .command(&["ls", "-a"])
            .stdout(theirs)
            .status()
            .await?;
        assert!(status.success());
        let mut shown = vec![0; 4096];
        let length = ours.read(&mut shown)?;
        let shown = String::from_utf8_lossy(&shown[..length]).replace("\r\n", "\n");
        assert!(shown.contains(expected), "{name}={value}: {shown}");
        assert!(shown.contains("  ID  Status      Created  SSH"), "{shown}");
    }
    Ok(())
}

/// `setsid` makes our terminal the controlling one, as a login does.
fn on_terminal(
    environment: &Environment,
    path: &str,
    arguments: &[&str],
) -> Result<tokio::process::Child> {
    let program = environment.command(arguments);
    let program = program.as_std();
    let mut command = tokio::process::Command::new("/usr/bin/setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(program.get_program())
        .args(program.get_args());
    command
        .env_clear()
        .env("HOME", environment.home())
        .kill_on_drop(true);
    let theirs = OpenOptions::new().read(true).write(true).open(path)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    Ok(command.spawn()?)
}

#[tokio::test]
async fn a_key_is_typed_unseen() -> Result<()> {
    let environment = Environment::new()?;
    let (mut ours, path) = terminal()?;
    let mut child = on_terminal(&environment, &path, &["auth", "set-key"])?;
    until(&mut ours, "InstaVM API key: ")?;
    ours.write_all(b"typed-secret-key\n")?;
    let shown = until(&mut ours, "API key: typed-se...-key")?;
    assert!(!shown.contains("typed-secret"), "{shown}");
    assert!(child.wait().await?.success());
    assert!(std::fs::read_to_string(environment.config())?.contains("typed-secret-key"));
    Ok(())
}

#[tokio::test]
async fn an_interrupted_prompt_leaves_the_terminal_as_it_was() -> Result<()> {
    let environment = Environment::new()?;
    let (mut ours, path) = terminal()?;
    let theirs = OpenOptions::new().read(true).write(true).open(&path)?;
    let before = rustix::termios::tcgetattr(&theirs)?;
    let mut child = on_terminal(&environment, &path, &["auth", "set-key"])?;
    until(&mut ours, "InstaVM API key: ")?;
    ours.write_all(b"typed\x03")?;
    until(&mut ours, "Interrupted.")?;
    assert_eq!(child.wait().await?.code(), Some(130));
    let after = rustix::termios::tcgetattr(&theirs)?;
    assert_eq!(after.local_modes, before.local_modes);
    assert!(!environment.config().exists());
    Ok(())
}

/// Standard error of a run on a terminal.
async fn rail(environment: &Environment, arguments: &[&str]) -> Result<String> {
    let (mut ours, path) = terminal()?;
    let theirs = OpenOptions::new().read(true).write(true).open(path)?;
    let mut child = environment.command(arguments).stderr(theirs).spawn()?;
    let shown = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        // When the other end is closed, reading fails.
        let _ = ours.read_to_end(&mut shown);
        shown
    });
    child.wait().await?;
    Ok(String::from_utf8(shown.await?)?.replace("\r\n", "\n"))
}

/// The lines that stay: without those that the spinner showed and erased.
fn lasting(shown: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in shown.split_inclusive('\n') {
        let kept = line.rsplit("\u{1b}[2K").next().unwrap_or_default();
        lines.push(kept.replace("\u{1b}[?25h", ""));
    }
    lines.concat().replace('\u{1b}', "^")
}

#[tokio::test]
async fn steps_are_a_rail_on_a_terminal() -> Result<()> {
    let server = Server::start(&[
        (200, r#"{"status":"gone"}"#),
        (200, "{}"),
        (404, r#"{"detail":"none"}"#),
        (200, "{}"),
    ])
    .await?;
    let environment = server.environment()?.with("TERM", "xterm-256color");
    let good = rail(&environment, &["delete", "a", "b"]).await?;
    insta::assert_snapshot!(lasting(&good), @r"
    ^[38;5;244m┌^[0m ^[1minstavm delete^[0m
    ^[38;5;244m│^[0m
    ^[38;5;244m◆^[0m ^[32mDeleting VM a^[0m
    ^[38;5;244m│^[0m
    ^[38;5;244m└^[0m ^[36mDone^[0m
    ^[38;5;244m┌^[0m ^[1minstavm delete^[0m
    ^[38;5;244m│^[0m
    ^[38;5;244m◆^[0m ^[32mDeleting VM b^[0m
    ^[38;5;244m│^[0m
    ^[38;5;244m└^[0m ^[36mDone^[0m
    ");
    let spinner =
        "\u{1b}[?25l\r\u{1b}[2K\u{1b}[36m⠋\u{1b}[0m  \u{1b}[38;5;244mDeleting VM a\u{1b}[0m";
    assert!(good.contains(spinner), "{good:?}");

    let plain = server.environment()?.with("TERM", "xterm");
    let bad = rail(&plain, &["snapshot", "rm", "x"]).await?;
    insta::assert_snapshot!(lasting(&bad), @r"
    ^[37m┌^[0m ^[1minstavm snapshot rm^[0m
    ^[37m│^[0m
    ^[31m■ Deleting snapshot^[0m
    ^[37m│^[0m
      ↳ 404 Client Error: Not Found
    ^[37m└^[0m ^[36mFailed^[0m
    Error: HTTP 404: none
    ");
    let colourless = server.environment()?.with("NO_COLOR", "1");
    let shown = rail(&colourless, &["rm", "a"]).await?;
    assert_eq!(shown, "Deleting VM a...\n");
    Ok(())
}

#[tokio::test]
async fn an_interrupted_step_leaves_a_clean_terminal() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", silent.local_addr()?);
    let environment = Environment::new()?
        .with("INSTAVM_API_KEY", "k")
        .with("INSTAVM_BASE_URL", &url)
        .with("TERM", "xterm");
    let (mut ours, path) = terminal()?;
    let theirs = OpenOptions::new().read(true).write(true).open(path)?;
    let mut child = environment.command(&["create"]).stderr(theirs).spawn()?;
    // It has asked, so it waits.
    let _connection = silent.accept().await?;
    until(&mut ours, "Creating VM")?;
    let id = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    kill_process(id.context("it runs")?, Signal::INT)?;
    let rest = until(&mut ours, "Interrupted.")?;
    assert!(rest.contains("\u{1b}[2K\u{1b}[?25h"), "{rest:?}");
    assert_eq!(child.wait().await?.code(), Some(130));
    Ok(())
}

#[tokio::test]
async fn the_next_frame_of_a_watch_takes_the_place_of_the_last() -> Result<()> {
    let server =
        Server::start(&[(200, "{}"), (200, r#"{"status":"ready"}"#), (503, "busy")]).await?;
    let environment = server.environment()?.with("TERM", "xterm");
    let (mut ours, path) = terminal()?;
    let theirs = OpenOptions::new().read(true).write(true).open(path)?;
    let mut child = environment
        .command(&["snapshot", "get", "sn_1", "--watch", "1"])
        .stdout(theirs)
        .spawn()?;
    let first = "Snapshot: -\r\nName: -\r\nStatus: -\r\nType: -\r\n";
    let shown = tokio::task::spawn_blocking(move || until(&mut ours, "ready\r\nType: -\r\n"));
    assert_eq!(
        shown.await??,
        format!(
            "{first}\u{1b}[2J\u{1b}[H{}",
            first.replace("Status: -", "Status: ready")
        )
    );
    assert_eq!(child.wait().await?.code(), Some(1));
    Ok(())
}
