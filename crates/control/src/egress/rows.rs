//! The rows of policies: part of what a session's VMs are made as.

use crate::session::rows as session_rows;
use crate::vm::service::Profile;
use instavm_store::{Database, StoreError};

/// Changes what a session's VMs may reach.
pub(crate) async fn set(
    database: &Database,
    session_id: &str,
    profile: &Profile,
) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    session_rows::set_profile(&mut transaction, session_id, profile).await?;
    transaction.commit().await
}
