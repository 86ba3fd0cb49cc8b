//! Whether the platform serves.

use crate::Platform;
use crate::error::{Kind, Problem};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The platform serves.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    status: &'static str,
    /// What isolates the VMs of this node.
    isolation: &'static str,
    /// What keeps the node's disks: `btrfs` or `directory`.
    disk_driver: &'static str,
    /// Who keeps the limits of disks and volumes: `hard` (the kernel, at each write) or `soft` (the node, which measures).
    quota: &'static str,
}

/// Whether the platform serves.
#[utoipa::path(
    get, path = "/healthz", tag = "operation",
    responses(
        (status = 200, description = "It serves", body = Health),
        (status = 503, description = "The database does not answer", body = instavm_api::ErrorBody),
    ),
)]
pub(crate) async fn show(State(platform): State<Platform>) -> Result<Json<Health>, Problem> {
    let question = platform.database.fetch_optional("SELECT 1 AS one", vec![]);
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(Ok(_)) => {
            let node = platform.node.status().await;
            Ok(Json(Health {
                status: "ok",
                isolation: node.isolation.as_str(),
                disk_driver: node.disk_driver,
                quota: node.quota,
            }))
        }
        Ok(Err(error)) => {
            tracing::error!(error = %crate::error::Chain(&error), "the database does not answer");
            Err(Problem::new(
                Kind::AtCapacity,
                "the database does not answer",
            ))
        }
        Err(_) => Err(Problem::new(
            Kind::AtCapacity,
            "the database does not answer in time",
        )),
    }
}
