//! Each example runs to its end and says what it should. The simulated node knows a language of its own, so what code
//! prints is not compared here.

use anyhow::{Context, Result, ensure};
use instavm_testkit::TestPlatform;
use std::path::PathBuf;
use tokio::process::Command;

/// Examples are built beside the tests.
fn example(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(|deps| deps.parent())
        .context("no target directory")?;
    Ok(profile.join("examples").join(name))
}

async fn run(name: &str) -> Result<String> {
    let platform = TestPlatform::start().await?;
    let done = Command::new(example(name)?)
        .env_clear()
        .env("INSTAVM_API_KEY", &platform.key)
        .env("INSTAVM_BASE_URL", format!("http://{}", platform.address()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .await
        .with_context(|| format!("the example {name} is not built"))?;
    let output = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.success(),
        "{name}: {output}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(output)
}

#[tokio::test]
async fn execute() -> Result<()> {
    assert!(run("execute").await?.contains("(exit code "));
    Ok(())
}

#[tokio::test]
async fn background() -> Result<()> {
    let output = run("background").await?;
    assert!(
        output.contains("is running") && output.contains("it wrote"),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn files() -> Result<()> {
    let size = std::fs::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))?.len();
    let output = run("files").await?;
    let expected = format!("sent {size} bytes\nfetched {size} bytes\na piece of 7 bytes\n");
    assert_eq!(output, expected);
    Ok(())
}

#[tokio::test]
async fn sessions() -> Result<()> {
    let output = run("sessions").await?;
    assert!(
        output.contains("active: true") && output.contains("the team has 1 sandboxes"),
        "{output}"
    );
    assert!(output.trim_end().ends_with("is killed"), "{output}");
    Ok(())
}

#[tokio::test]
async fn account() -> Result<()> {
    let output = run("account").await?;
    assert!(
        output.contains("you are admin@localhost") && output.contains("active: false"),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn blocking() -> Result<()> {
    assert!(run("blocking").await?.contains("the file says some text"));
    Ok(())
}

#[tokio::test]
async fn vms() -> Result<()> {
    let output = run("vms").await?;
    let lines: Vec<&str> = output.lines().skip(1).collect();
    let expected = [
        "it has 1024 MiB",
        "its clone has kept",
        "terminated",
        "terminated",
    ];
    assert_eq!(lines, expected, "{output}");
    Ok(())
}

#[tokio::test]
async fn snapshots() -> Result<()> {
    let expected = "prepared is ready\none is ready to go\none is ready to go\nthere are 1 snapshots\ndeleted\n";
    assert_eq!(run("snapshots").await?, expected);
    Ok(())
}

#[tokio::test]
async fn volumes() -> Result<()> {
    let expected = "example-data is mounted at /before (ro)\nexample-data is mounted at /data (rw)\n\
        notes/a.txt has second\n";
    assert_eq!(run("volumes").await?, expected);
    Ok(())
}
