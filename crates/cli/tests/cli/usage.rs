use crate::environment::Environment;
use anyhow::Result;
use insta::assert_snapshot;

#[tokio::test]
async fn help_is_a_result() -> Result<()> {
    let environment = Environment::new()?;
    let help = environment.run(&["--help"]).await?;
    assert_snapshot!(help.good(), @r"
    Run code in isolated machines, and manage them

    Usage: instavm <COMMAND>

    Commands:
      help         Show help for the CLI or one of its commands
      auth         Manage the stored API key
      whoami       Show the account and its SSH keys
      create       Create a VM and wait until it executes code [alias: new]
      ls           List the active VMs [alias: list]
      rm           End VMs [alias: delete]
      clone        Start another VM from a running one
      vm           Change VMs [alias: vms]
      snapshot     Manage snapshots
      volume       Manage volumes, their checkpoints and their files [alias: volumes]
      egress       Show and set what a session's VM may reach
      share        Put ports of VMs under URLs
      ssh-key      Manage the account's SSH keys [alias: sshkey]
      exec         Run code, or a local file, in a VM
      pty          Open a terminal in a VM
      doc          Show where the documentation is [alias: docs]
      completions  Print the completion script of a shell

    Options:
      -v, --version  Print the version
      -h, --help     Print help
    ");
    assert_eq!(environment.run(&["help"]).await?.good(), help.good());
    for path in [
        &["exec"][..],
        &["auth", "set-key"],
        &["sshkey", "add"],
        &["docs"],
        &["list"],
        &["new"],
        &["vms", "update"],
        &["snapshot", "list"],
        &["volumes", "files", "download"],
    ] {
        let short = environment.run(&[path, &["-h"]].concat()).await?;
        assert!(short.good().contains("Usage: instavm "), "{short:?}");
        assert_eq!(
            environment.run(&[&["help"], path].concat()).await?.good(),
            short.good()
        );
    }
    Ok(())
}

const MISTAKES: [&str; 20] = [
    "",
    "fly",
    "auth",
    "auth fly",
    "--json ls",
    "ls --nope",
    "ls extra",
    "ls --watch soon",
    "exec --timeout x",
    "exec --language perl",
    "ssh-key remove",
    "exec --cmd",
    "auth set-key --api-key k",
    "doc --api-key k",
    "rm",
    "create --type huge",
    "vm update v --snapshot-on-terminate --no-snapshot-on-terminate",
    "snapshot get --watch sn_1",
    "volume create data",
    "volume files",
];

#[tokio::test]
async fn usage_errors_name_the_nearest_command() -> Result<()> {
    let environment = Environment::new()?;
    let mut text = String::new();
    for line in MISTAKES {
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = environment.run(&words).await?;
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (Some(2), ""),
            "{line}: {done:?}"
        );
        text.push_str(&format!("$ instavm {line}\n{}", done.stderr));
    }
    assert_snapshot!(text, @r"
    $ instavm 
    usage: instavm <COMMAND>
    instavm: error: a command is missing, one of help, auth, whoami, create, ls, rm, clone, vm, snapshot, volume, egress, share, ssh-key, exec, pty, doc, completions
    $ instavm fly
    usage: instavm <COMMAND>
    instavm: error: unrecognized subcommand 'fly'
    $ instavm auth
    usage: instavm auth <COMMAND>
    instavm auth: error: a command is missing, one of set-key, status, logout
    $ instavm auth fly
    usage: instavm auth <COMMAND>
    instavm auth: error: unrecognized subcommand 'fly'
    $ instavm --json ls
    usage: instavm <COMMAND>
    instavm: error: unexpected argument '--json' found
    $ instavm ls --nope
    usage: instavm ls [OPTIONS]
    instavm ls: error: unexpected argument '--nope' found
    $ instavm ls extra
    usage: instavm ls [OPTIONS]
    instavm ls: error: unexpected argument 'extra' found
    $ instavm ls --watch soon
    usage: instavm ls [OPTIONS]
    instavm ls: error: invalid value 'soon' for '--watch [<N>]': invalid digit found in string
    $ instavm exec --timeout x
    usage: instavm exec [OPTIONS] [TARGET] [TASK_ID]
    instavm exec: error: invalid value 'x' for '--timeout <SECONDS>': invalid digit found in string
    $ instavm exec --language perl
    usage: instavm exec [OPTIONS] [TARGET] [TASK_ID]
    instavm exec: error: invalid value 'perl' for '--language <LANGUAGE>' [possible values: python, bash]
    $ instavm ssh-key remove
    usage: instavm ssh-key remove [OPTIONS] <KEY_ID>
    instavm ssh-key remove: error: the following required arguments were not provided: <KEY_ID>
    $ instavm exec --cmd
    usage: instavm exec [OPTIONS] [TARGET] [TASK_ID]
    instavm exec: error: a value is required for '--cmd <CODE>' but none was supplied
    $ instavm auth set-key --api-key k
    usage: instavm auth set-key [OPTIONS]
    instavm auth set-key: error: unexpected argument '--api-key' found
    $ instavm doc --api-key k
    usage: instavm doc [OPTIONS]
    instavm doc: error: unexpected argument '--api-key' found
    $ instavm rm
    usage: instavm rm [OPTIONS] <VM_IDS>...
    instavm rm: error: the following required arguments were not provided: <VM_IDS>...
    $ instavm create --type huge
    usage: instavm create [OPTIONS]
    instavm create: error: invalid value 'huge' for '--type <TYPE>' [possible values: standard, computer-use]
    $ instavm vm update v --snapshot-on-terminate --no-snapshot-on-terminate
    usage: instavm vm update [OPTIONS] <VM_ID>
    instavm vm update: error: the argument '--snapshot-on-terminate' cannot be used with '--no-snapshot-on-terminate'
    $ instavm snapshot get --watch sn_1
    usage: instavm snapshot get [OPTIONS] <SNAPSHOT_ID>
    instavm snapshot get: error: invalid value 'sn_1' for '--watch [<N>]': invalid digit found in string
    $ instavm volume create data
    usage: instavm volume create [OPTIONS] --quota <SIZE> <NAME>
    instavm volume create: error: the following required arguments were not provided: --quota <SIZE>
    $ instavm volume files
    usage: instavm volume files <COMMAND>
    instavm volume files: error: a command is missing, one of ls, upload, download, rm
    ");
    Ok(())
}

#[tokio::test]
async fn long_options_may_be_cut_short_and_short_ones_joined() -> Result<()> {
    let environment = Environment::new()?;
    let status = environment
        .run(&[
            "auth",
            "status",
            "--js",
            "--api-k=abc",
            "--api-key",
            "def-ghi-jkl",
        ])
        .await?;
    assert_eq!(status.json()["api_key"]["redacted"], "def-ghi-...-jkl");
    let keyless = environment.run(&["ls", "-aj"]).await?;
    assert_eq!(
        keyless.status,
        Some(1),
        "it is understood, and there is no key"
    );
    Ok(())
}

#[tokio::test]
async fn small_things() -> Result<()> {
    let environment = Environment::new()?;
    let version = format!("instavm {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(environment.run(&["--version"]).await?.good(), version);
    assert_eq!(environment.run(&["-v"]).await?.good(), version);
    assert_eq!(
        environment.run(&["doc"]).await?.good(),
        "https://docs.instavm.io\n"
    );
    assert_eq!(
        environment.run(&["docs", "-j"]).await?.good(),
        "{\"url\": \"https://docs.instavm.io\"}\n"
    );
    let unknown = environment.run(&["help", "auth", "fly"]).await?;
    assert_snapshot!(unknown.all(), @r"
    status 1
    --- stderr
    Error: unknown help topic: auth fly
    ");
    for shell in ["bash", "zsh", "fish"] {
        let script = environment.run(&["completions", shell]).await?;
        assert!(script.good().contains("whoami"), "{shell}");
    }
    Ok(())
}
