use crate::environment::{Environment, Server};
use anyhow::Result;
use insta::assert_snapshot;
use instavm_testkit::TestPlatform;

const VMS: &str = r#"[{"vm_id":"vm_1","status":"Active","created_at":"2026-01-02T03:04:05Z","ssh_host":"gate","n":1.0},
    {"vm_id":"vm_22","status":"terminated","created_at":null,"ssh_host":" "},{"vm_id":"é","status":"creating"}]"#;

#[tokio::test]
async fn vms_are_listed() -> Result<()> {
    let server = Server::start(&[
        (200, VMS),
        (200, VMS),
        (200, VMS),
        (200, "[]"),
        (200, "[]"),
        (200, r#"{"no":"list"}"#),
    ])
    .await?;
    let environment = server.environment()?;
    let active = environment.run(&["ls"]).await?;
    // The last column is padded too.
    assert_snapshot!(active.good().replace(' ', "·"), @r"
    Active·VMs·(2)
    `instavm·ls·--all`·also·shows·those·that·have·ended.

    ··ID····Status······Created···············SSH·
    ··----··----------··--------------------··----
    ··vm_1··●·Active····2026-01-02T03:04:05Z··gate
    ··é·····●·creating··-·····················-···
    ");
    let all = environment.run(&["list", "--all"]).await?;
    assert_snapshot!(all.good(), @r"
    VMs (3)

      ID     Status        Created               SSH 
      -----  ------------  --------------------  ----
      vm_1   ● Active      2026-01-02T03:04:05Z  gate
      vm_22  ● terminated  -                     -   
      é      ● creating    -                     -   
    ");
    let json = environment.run(&["ls", "-j"]).await?;
    assert_snapshot!(json.good(), @r#"{"vms": [{"vm_id": "vm_1", "status": "Active", "created_at": "2026-01-02T03:04:05Z", "ssh_host": "gate", "n": 1.0}, {"vm_id": "\u00e9", "status": "creating"}]}"#);
    assert_eq!(
        environment.run(&["ls"]).await?.good(),
        "No active VMs. `instavm ls -a` or `instavm ls --all` also shows those that have ended.\n"
    );
    assert_eq!(environment.run(&["ls", "-a"]).await?.good(), "No VMs.\n");
    assert_eq!(
        environment.run(&["ls", "-aj"]).await?.good(),
        "{\"vms\": []}\n"
    );
    let (some, every) = ("GET /v1/vms key=key-1", "GET /v1/vms/ key=key-1");
    assert_eq!(server.seen(), [some, every, some, some, every, every]);
    Ok(())
}

#[tokio::test]
async fn watching_goes_on_until_something_fails() -> Result<()> {
    let server = Server::start(&[(200, "[]"), (200, "[]"), (503, "busy")]).await?;
    let environment = server.environment()?;
    let watched = environment.run(&["ls", "--watch", "1", "--json"]).await?;
    assert_snapshot!(watched.all(), @r#"
    status 1
    --- stdout
    {"vms": []}
    {"vms": []}
    --- stderr
    Error: Server error: 503 Service Unavailable
    Details: busy
    "#);
    for seconds in ["0", "-3"] {
        let never = environment.run(&["ls", "--watch", seconds]).await?;
        assert_eq!((never.status, never.stdout.as_str()), (Some(1), ""));
        assert_eq!(never.stderr, "Error: --watch must be a positive number\n");
    }
    assert_eq!(server.seen().len(), 3);
    Ok(())
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJAX4NMmUUhgTHY2XT8dnVDJ0t7nUQLwnS+C+OFl3qyK me@here";

#[tokio::test]
async fn ssh_keys_and_the_account() -> Result<()> {
    let platform = TestPlatform::start().await?;
    let environment = Environment::of(&platform)?;
    assert_eq!(
        environment.run(&["ssh-key", "list"]).await?.good(),
        "No SSH keys.\n"
    );
    assert_snapshot!(environment.run(&["whoami"]).await?.good(), @r"
    Account
      Email: admin@localhost
      User ID: 1
      Name: admin
      Verified: yes

    SSH Keys (0)
      none
    ");
    let added = environment
        .run_with(&["sshkey", "add"], &format!("{KEY}\n"))
        .await?;
    let fingerprint = added.good().trim_start_matches("Added ").trim().to_owned();
    assert!(fingerprint.starts_with("SHA256:"), "{added:?}");
    let again = environment
        .run(&["ssh-key", "add", KEY, "-j"])
        .await?
        .json();
    assert_eq!(again["fingerprint"], fingerprint.as_str());

    let dashes = "-".repeat(fingerprint.len());
    let list = environment.run(&["ssh-key", "list"]).await?;
    let list = list
        .good()
        .replace(&fingerprint, "[PRINT]")
        .replace(&dashes, "-------");
    assert_snapshot!(list.replace(&" ".repeat(fingerprint.len() - 11), ""), @r"
    SSH Keys (1)

      ID  Fingerprint  Comment
      --  -------  -------
      1   [PRINT]  me@here
    ");
    let account = environment.run(&["whoami", "--json"]).await?.json();
    assert_eq!(account["ssh_keys"][0]["comment"], "me@here");
    assert_eq!(account["is_verified"], true);

    let removed = environment
        .run(&["ssh-key", "remove", "1", "--json"])
        .await?;
    assert_eq!(
        removed.good(),
        "{\"key_id\": 1, \"status\": \"deleted\", \"id\": 1}\n"
    );
    let gone = environment.run(&["ssh-key", "remove", "1"]).await?;
    assert_eq!(gone.status, Some(1));
    assert!(
        gone.stderr
            .starts_with("Error: failed to remove the SSH key: HTTP 404: "),
        "{gone:?}"
    );
    Ok(())
}

#[tokio::test]
async fn ssh_keys_that_are_none_are_not_sent() -> Result<()> {
    let server = Server::start(&[]).await?;
    let environment = server.environment()?;
    let blank = environment.run_with(&["ssh-key", "add"], "\n").await?;
    assert_eq!(blank.stderr, "Error: a public key is needed\n");
    let nonsense = environment.run(&["ssh-key", "remove", "x"]).await?;
    assert_eq!(
        nonsense.stderr,
        "Error: the id of a key is a number, not 'x'\n"
    );
    assert!(server.seen().is_empty());
    Ok(())
}
