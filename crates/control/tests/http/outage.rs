//! What becomes of a platform whose database goes away and comes back.

use crate::{eventually, execute, session_of, vm_of};
use anyhow::Result;
use instavm_node_api::Ending;
use instavm_testkit::{DatabaseKind, TestPlatform};
use serde_json::json;

#[tokio::test]
async fn sessions_run_on_while_the_database_is_away_and_all_is_on_record_afterwards() -> Result<()>
{
    let platform = TestPlatform::on(DatabaseKind::Postgresql).await?;
    let client = platform.client();
    let (stays, goes) = (
        session_of(&client, &platform.key).await?,
        session_of(&client, &platform.key).await?,
    );
    let gone = vm_of(&client, &goes).await?;
    platform.place().set_reachable(false)?;

    let health = client.get("/healthz").await?;
    assert_eq!(health.status, 503, "{health:?}");
    assert!(health.detail().contains("database"), "{health:?}");
    assert_eq!(
        execute(&client, &stays, "echo on").await?.json()["stdout"],
        "on\n"
    );
    let body = json!({"api_key": platform.key});
    let refused = client.post("/v1/sessions/session", &body).await?;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"));
    assert!(refused.detail().contains("database"), "{refused:?}");
    platform.node.end(&gone, Ending::Expired);

    platform.place().set_reachable(true)?;
    eventually(&client, "/healthz", |health| health["status"] == "ok").await?;
    let ended = eventually(&client, &format!("/v1/vms/{gone}"), |vm| {
        vm["status"] == "terminated"
    })
    .await?;
    assert_eq!(ended["status_reason"], "expired");
    session_of(&client, &platform.key).await?;
    assert_eq!(execute(&client, &stays, "echo on").await?.status, 200);
    Ok(())
}
