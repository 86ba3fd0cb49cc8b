use crate::environment::Environment;
use anyhow::Result;
use insta::assert_snapshot;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn status_without_anything() -> Result<()> {
    let environment = Environment::new()?;
    assert_snapshot!(environment.run(&["auth", "status"]).await?.good(), @r"
    Config path: [HOME]/.instavm/config.json
    Active profile: default
    API key: not configured (missing)
    Base URL: https://api.instavm.io (default)
    SSH host: instavm.dev (derived)
    ");
    assert!(!environment.config().exists(), "looking creates nothing");
    Ok(())
}

#[tokio::test]
async fn a_key_is_stored_shown_and_removed() -> Result<()> {
    let environment = Environment::new()?;
    let arguments = [
        "auth",
        "set-key",
        "--base-url",
        "http://vm.example.com:8080",
        "--ssh-host",
        "gate",
    ];
    let stored = environment
        .run_with(&arguments, " instavm_sk_0123456789 \n")
        .await?;
    assert_snapshot!(stored.good(), @r"
    Stored the API key in [HOME]/.instavm/config.json
    API key: instavm_...6789
    Default base URL: http://vm.example.com:8080
    Default SSH host: gate
    ");
    assert_snapshot!(std::fs::read_to_string(environment.config())?, @r#"
    {
      "active_profile": "default",
      "profiles": {
        "default": {
          "auth": {
            "api_key": "instavm_sk_0123456789",
            "type": "api_key"
          },
          "base_url": "http://vm.example.com:8080",
          "ssh_host": "gate"
        }
      },
      "schema_version": 1
    }
    "#);
    let mode = |path| anyhow::Ok(std::fs::metadata(path)?.permissions().mode() & 0o777);
    assert_eq!(mode(environment.config())?, 0o600);
    assert_eq!(mode(environment.home().join(".instavm"))?, 0o700);

    let status = environment.run(&["auth", "status", "-j"]).await?;
    assert_snapshot!(status.good(), @r#"{"config_path": "[HOME]/.instavm/config.json", "active_profile": "default", "api_key": {"configured": true, "redacted": "instavm_...6789", "source": "config", "stored": true}, "base_url": {"value": "http://vm.example.com:8080", "source": "config"}, "ssh_host": {"value": "gate", "source": "config"}}"#);

    let out = environment.run(&["auth", "logout", "--json"]).await?;
    assert_eq!(out.json()["env_key_active"], false);
    let status = environment.run(&["auth", "status", "--json"]).await?.json();
    assert_eq!(
        status["api_key"],
        json!({"configured": false, "redacted": null, "source": "missing", "stored": false})
    );
    assert_eq!(status["base_url"]["source"], "config");
    let files = std::fs::read_dir(environment.home().join(".instavm"))?.count();
    assert_eq!(files, 1, "no temporary file is left");
    Ok(())
}

#[tokio::test]
async fn an_empty_text_removes_a_stored_default() -> Result<()> {
    let environment = Environment::new()?;
    environment
        .run_with(&["auth", "set-key", "--base-url=http://a"], "key")
        .await?
        .good();
    environment
        .run_with(&["auth", "set-key"], "key")
        .await?
        .good();
    let kept = environment.run(&["auth", "status", "-j"]).await?.json();
    assert_eq!(kept["base_url"]["value"], "http://a");
    let stored = environment
        .run_with(&["auth", "set-key", "--base-url=", "-j"], "key")
        .await?
        .json();
    assert_eq!(
        (&stored["base_url"], &stored["ssh_host"]),
        (&json!(""), &json!(null))
    );
    let gone = environment.run(&["auth", "status", "-j"]).await?.json();
    assert_eq!(gone["base_url"]["source"], "default");
    Ok(())
}

#[tokio::test]
async fn flag_then_environment_then_file() -> Result<()> {
    let environment = Environment::new()?;
    environment
        .run_with(
            &["auth", "set-key", "--base-url", "http://stored"],
            "stored-key-1",
        )
        .await?
        .good();
    let environment = environment
        .with("INSTAVM_API_KEY", "env-key-12345")
        .with("INSTAVM_BASE_URL", "http://env.example.com/")
        .with("INSTAVM_SSH_HOST", "");
    let from_env = environment
        .run(&["auth", "status", "-j", "--api-key="])
        .await?
        .json();
    assert_eq!(
        from_env["api_key"],
        json!({"configured": true, "redacted": "env-key-...2345", "source": "env", "stored": true})
    );
    assert_eq!(
        from_env["ssh_host"],
        json!({"value": "env.example.com", "source": "derived"})
    );
    let flags = [
        "auth",
        "status",
        "-j",
        "--api-key",
        "short",
        "--base-url",
        "http://localhost:1",
        "--ssh-host",
        "s",
    ];
    let from_flags = environment.run(&flags).await?.json();
    assert_eq!(
        from_flags["api_key"],
        json!({"configured": true, "redacted": "*****", "source": "flag", "stored": true})
    );
    assert_eq!(
        from_flags["base_url"],
        json!({"value": "http://localhost:1", "source": "flag"})
    );
    assert_eq!(
        from_flags["ssh_host"],
        json!({"value": "s", "source": "flag"})
    );
    let out = environment.run(&["auth", "logout"]).await?;
    assert_snapshot!(out.good(), @r"
    Removed the stored API key from [HOME]/.instavm/config.json
    INSTAVM_API_KEY is still set in the environment and stays in force.
    ");
    Ok(())
}

#[tokio::test]
async fn what_is_broken_is_said() -> Result<()> {
    let environment = Environment::new()?;
    let blank = environment.run_with(&["auth", "set-key"], " \n").await?;
    assert_snapshot!(blank.all(), @r"
    status 1
    --- stderr
    Error: an API key is needed: type it at the prompt, or pipe it to standard input
    ");
    assert!(!environment.config().exists());
    std::fs::create_dir(environment.home().join(".instavm"))?;
    std::fs::write(environment.config(), "{")?;
    for arguments in [
        &["auth", "status", "--json"][..],
        &["ls"],
        &["auth", "logout"],
    ] {
        let broken = environment.run(arguments).await?;
        assert_eq!((broken.status, broken.stdout.as_str()), (Some(1), ""));
        assert_eq!(
            broken.stderr,
            "Error: invalid JSON in the configuration [HOME]/.instavm/config.json\n"
        );
    }
    assert_eq!(
        std::fs::read_to_string(environment.config())?,
        "{",
        "it is left alone"
    );
    Ok(())
}
