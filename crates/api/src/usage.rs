//! What an account has used, day by day.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an account has used in a time.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UsageBreakdown {
    /// The first day, as ISO-8601.
    pub period_start: String,
    /// The last day, as ISO-8601.
    pub period_end: String,
    /// Days of the time.
    pub total_days: u32,
    /// All days together.
    pub totals: UsageTotals,
    /// Each day.
    pub daily_breakdown: Vec<UsageOfDay>,
}

/// All days together.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UsageTotals {
    /// Dollars.
    pub cost_dollars: f64,
    /// Hours of processor time.
    pub cpu_hours: f64,
    /// Memory, in GiB times hours.
    pub ram_gib_hours: f64,
}

/// One day.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UsageOfDay {
    /// The day, as ISO-8601.
    pub date: String,
    /// Dollars.
    pub cost_dollars: f64,
    /// Hours of processor time.
    pub cpu_hours: f64,
    /// Memory, in GiB times hours.
    pub ram_gib_hours: f64,
}
