//! The user.

use crate::call::{Call, Method};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::user::User;

impl Client {
    /// Who the API key belongs to.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_current_user(&self) -> Result<User> {
        let call = Call::new(Method::Get, "/v1/users/me").named("get the user", Family::Api);
        self.fetch(call).await
    }
}
