//! `/v1/users/me`.

use super::rows;
use crate::Platform;
use crate::error::Problem;
use crate::extract::Caller;
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::user as api;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Who the API key belongs to.
#[utoipa::path(
    get, path = "/v1/users/me", tag = "user", security(("api_key" = [])),
    responses(
        (status = 200, description = "The account", body = api::User),
        (status = 401, description = "No valid key", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
) -> Result<Json<api::User>, Problem> {
    let account = rows::find(&platform.database, caller.account_id)
        .await?
        .ok_or_else(Problem::unauthorised)?;
    Ok(Json(api::User {
        id: account.id,
        email: account.email,
        name: account.name,
        is_verified: true,
        created_at: account.created_at,
    }))
}
