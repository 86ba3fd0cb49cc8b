//! The user.

use crate::call::{Call, Method};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::usage::UsageBreakdown;
use instavm_api::user::User;

/// Days of a breakdown that says nothing else.
const DAYS: u32 = 30;

/// Which days a breakdown of usage is about.
///
/// ```
/// use instavm::UsageDays;
///
/// let month = UsageDays::last(30);
/// let april = UsageDays::between("2026-04-01", "2026-04-30");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct UsageDays {
    days: u32,
    between: Option<(String, String)>,
}

impl Default for UsageDays {
    /// The last 30 days.
    fn default() -> Self {
        UsageDays::last(DAYS)
    }
}

impl UsageDays {
    /// So many days until now, 1 to 365.
    pub fn last(days: u32) -> UsageDays {
        UsageDays {
            days,
            between: None,
        }
    }

    /// From one day to another, each as ISO-8601.
    pub fn between(start: impl Into<String>, end: impl Into<String>) -> UsageDays {
        UsageDays {
            days: DAYS,
            between: Some((start.into(), end.into())),
        }
    }
}

impl Client {
    /// Who the API key belongs to.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_current_user(&self) -> Result<User> {
        let call = Call::new(Method::Get, "/v1/users/me").named("get the user", Family::Api);
        self.fetch(call).await
    }

    /// What the account has used, day by day: cost, processor time, memory.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get_usage_breakdown(&self, days: UsageDays) -> Result<UsageBreakdown> {
        let call = Call::new(Method::Get, "/v1/users/me/usage-breakdown")
            .named("get the usage", Family::Api)
            .query("days", days.days);
        self.fetch(match days.between {
            Some((start, end)) => call.query("start_date", start).query("end_date", end),
            None => call,
        })
        .await
    }
}
