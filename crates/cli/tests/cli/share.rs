//! `share`.

use crate::environment::Server;
use anyhow::Result;
use insta::assert_snapshot;

const SHARE: &str =
    r#"{"share_id":"sh-1","url":"http://127.0.0.1:20001","port":8000,"is_public":false}"#;

#[tokio::test]
async fn a_share_is_created() -> Result<()> {
    let public = SHARE.replace("false", "true");
    let server = Server::start(&[(200, SHARE), (200, &public), (200, "{}")]).await?;
    let environment = server.environment()?;
    let private = environment
        .run(&["share", "create", "vm_1", "8000"])
        .await?;
    assert_snapshot!(private.good(), @r"
    Share: sh-1
    URL: http://127.0.0.1:20001
    Port: 8000
    Visibility: private
    ");
    let json = environment
        .run(&["share", "create", "vm_1", "8000", "--public", "-j"])
        .await?;
    assert_snapshot!(json.good(), @r#"{"share_id": "sh-1", "url": "http://127.0.0.1:20001", "port": 8000, "is_public": true}"#);
    let bare = environment.run(&["share", "create", "v", "80"]).await?;
    assert_eq!(
        bare.good(),
        "Share: -\nURL: -\nPort: -\nVisibility: private\n"
    );
    let asked = server.seen();
    assert!(
        asked[0].starts_with("POST /v1/shares key=key-1"),
        "{asked:?}"
    );
    assert!(
        asked[0].contains(r#"{"is_public":false,"port":8000,"vm_id":"vm_1"}"#),
        "{asked:?}"
    );
    assert!(asked[1].contains(r#""is_public":true"#), "{asked:?}");
    Ok(())
}

#[tokio::test]
async fn a_share_is_changed_and_revoked() -> Result<()> {
    let server =
        Server::start(&[(200, SHARE), (204, ""), (200, r#"{"status":"revoked"}"#)]).await?;
    let environment = server.environment()?;
    let public = environment.run(&["share", "set-public", "s/1"]).await?;
    assert_eq!(public.good(), "Share s/1 is now public\n");
    let private = environment
        .run(&["share", "set-private", "sh-1", "--json"])
        .await?;
    assert_snapshot!(private.good(), @r#"{"share_id": "sh-1", "success": true}"#);
    let revoked = environment.run(&["share", "revoke", "sh-1", "-j"]).await?;
    assert_snapshot!(revoked.good(), @r#"{"share_id": "sh-1", "status": "revoked"}"#);
    let asked = server.seen();
    for (asked, wanted) in asked.iter().zip([
        r#"PATCH /v1/shares/s%2F1 key=key-1 {"is_public":true}"#,
        r#"PATCH /v1/shares/sh-1 key=key-1 {"is_public":false}"#,
        r#"PATCH /v1/shares/sh-1 key=key-1 {"revoke":true}"#,
    ]) {
        assert_eq!(asked, wanted);
    }
    Ok(())
}
