//! The command line, by the built program, in an environment of its own.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where its ground gives way"
)]

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn instavmd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_instavmd"));
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    instavmd(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty configuration file, so that the host's own is not read.
fn no_configuration(dir: &Path) -> String {
    let file = dir.join("instavm.toml");
    File::create(&file).unwrap();
    text(&file).to_owned()
}

#[test]
fn the_help_of_serve_lists_every_key() {
    let output = run(&["serve", "--help"]);
    assert!(output.status.success());
    insta::assert_snapshot!("serve_help", stdout(&output));
}

#[test]
fn all_faults_of_the_configuration_are_reported_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let file = dir.path().join("instavm.toml");
    std::fs::write(&file, "[pool]\nsize = -1\nsizes = 3\n").unwrap();
    let output = instavmd(&["serve", "--config", text(&file), "--data-dir", text(&data)])
        .env("INSTAVM_VM_PIDS", "few")
        .env("INSTAVM_POOL_COUNT", "3")
        .env("INSTAVM_API_KEY", "of a client")
        .env("INSTAVM_UPDATE_CHECK", "of a client")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(stdout(&output), "");
    let shown = stderr(&output).replace(text(&file), "FILE");
    insta::assert_snapshot!("faults", shown);
    assert!(!data.exists());
}

#[test]
fn a_busy_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let data = dir.path().join("data");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let output = run(&[
        "serve",
        "--config",
        &config,
        "--data-dir",
        text(&data),
        "--listen",
        &address,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let wanted = format!("cannot listen on {address} (key `listen`, flag --listen): ");
    assert!(stderr(&output).contains(&wanted), "{}", stderr(&output));
}

#[test]
fn a_data_directory_serves_one_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let lock = File::create(dir.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
    std::fs::write(dir.path().join("lock"), r#"{"pid":4242,"command":"serve"}"#).unwrap();
    let in_use = "is in use by `instavmd serve` (process 4242)";
    let serve = run(&[
        "serve",
        "--config",
        &config,
        "--data-dir",
        text(dir.path()),
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!(serve.status.code(), Some(1));
    assert!(stderr(&serve).contains(in_use), "{}", stderr(&serve));
    let destroy = run(&[
        "destroy",
        "--config",
        &config,
        "--data-dir",
        text(dir.path()),
    ]);
    assert_eq!(destroy.status.code(), Some(1));
    assert!(stderr(&destroy).contains(in_use), "{}", stderr(&destroy));
    assert!(stderr(&destroy).contains("--force"), "{}", stderr(&destroy));
}

#[test]
fn no_process_is_ended_that_does_not_hold_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let lock = File::create(dir.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let holder = format!(r#"{{"pid":{},"command":"serve"}}"#, bystander.id());
    std::fs::write(dir.path().join("lock"), holder).unwrap();
    let output = run(&[
        "destroy",
        "--force",
        "--config",
        &config,
        "--data-dir",
        text(dir.path()),
    ]);
    let alive = bystander.try_wait().unwrap().is_none();
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(alive);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("stop it there"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn nothing_is_destroyed_that_is_no_instance() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let missing = dir.path().join("missing");
    let nothing = run(&["destroy", "--config", &config, "--data-dir", text(&missing)]);
    assert!(nothing.status.success(), "{}", stderr(&nothing));
    let other = run(&[
        "destroy",
        "--config",
        &config,
        "--data-dir",
        text(dir.path()),
    ]);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        stderr(&other).contains("nothing is removed"),
        "{}",
        stderr(&other)
    );
    assert!(Path::new(&config).exists());
}

#[test]
fn there_is_nothing_to_check_where_no_instance_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let output = run(&["check", "--config", &config, "--data-dir", text(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("holds no instance"),
        "{}",
        stderr(&output)
    );
    assert!(!dir.path().join("lock").exists());
}

fn account(config: &str, data: &Path, arguments: &[&str]) -> Output {
    let mut all = vec!["account"];
    all.extend(arguments);
    all.extend(["--config", config, "--data-dir", text(data)]);
    run(&all)
}

#[test]
fn accounts_are_made_listed_and_disabled_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let data = dir.path().join("data");
    let made = account(&config, &data, &["create", "ada@example.org", "--json"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let made: serde_json::Value = serde_json::from_str(stdout(&made)).unwrap();
    assert_eq!(made["email"], "ada@example.org");
    assert!(made["api_key"].as_str().unwrap().starts_with("instavm_sk_"));
    let mode = std::fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let store = std::fs::metadata(data.join("instavm.db")).unwrap();
    assert_eq!(store.permissions().mode() & 0o777, 0o600);

    let again = account(&config, &data, &["create", "ada@example.org"]);
    assert_eq!(again.status.code(), Some(1));
    let disabled = account(&config, &data, &["disable", "ada@example.org"]);
    assert!(disabled.status.success(), "{}", stderr(&disabled));
    let unknown = account(&config, &data, &["disable", "bob@example.org"]);
    assert_eq!(unknown.status.code(), Some(1));

    let listed = account(&config, &data, &["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(stdout(&listed)).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["account_id"], made["account_id"]);
    assert_eq!(listed[0]["disabled"], true);
    assert!(listed[0].get("api_key").is_none());
}

#[test]
fn an_account_is_disabled_by_its_id_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let data = dir.path().join("data");
    let made = account(&config, &data, &["create", "ada@example.org"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let id = stdout(&made)
        .lines()
        .next()
        .unwrap()
        .strip_prefix("account  ")
        .unwrap();
    let disabled = account(&config, &data, &["disable", id]);
    assert!(disabled.status.success(), "{}", stderr(&disabled));
    let listed = account(&config, &data, &["list"]);
    assert!(stdout(&listed).contains("disabled"), "{}", stdout(&listed));
}

#[test]
fn the_doctor_reports_without_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let data = dir.path().join("data");
    let output = run(&[
        "doctor",
        "--json",
        "--config",
        &config,
        "--data-dir",
        text(&data),
    ]);
    let report: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(report["ok"] == true, output.status.success());
    let probes = report["probes"].as_array().unwrap();
    assert!(probes.iter().any(|probe| probe["name"] == "agent"));
    for probe in probes.iter().filter(|probe| probe["ok"] == false) {
        assert!(!probe["fix"].as_str().unwrap().is_empty(), "{probe}");
    }
    assert!(!data.exists());
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let output = run(&["serve", "--nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--nonsense"));
}

#[test]
fn a_database_that_cannot_be_reached_is_named_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let config = no_configuration(dir.path());
    let data = dir.path().join("data");
    let arguments = ["account", "list", "--config", &config, "--data-dir"];
    let arguments: Vec<&str> = arguments.into_iter().chain([text(&data)]).collect();
    std::fs::create_dir(&data).unwrap();
    let url = format!(
        "postgres:///records?host={}&password=geheim",
        text(dir.path())
    );
    let output = instavmd(&arguments)
        .env("INSTAVM_DATABASE_URL", url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = stderr(&output);
    assert!(
        shown.contains("connecting to the PostgreSQL database records at "),
        "{shown}"
    );
    assert!(!shown.contains("geheim"), "{shown}");
}
