//! Activity of a team's sandboxes over time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A point of `GET /teams/{id}/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeamMetric {
    /// From when on.
    pub timestamp: Timestamp,
    /// The same in seconds.
    #[serde(rename = "timestampUnix")]
    pub timestamp_unix: i64,
    /// The most sandboxes that ran at once.
    #[serde(rename = "concurrentSandboxes")]
    pub concurrent_sandboxes: u32,
    /// Sandboxes that began to run in a second.
    #[serde(rename = "sandboxStartRate")]
    pub sandbox_start_rate: f64,
}

/// `GET /teams/{id}/metrics/max`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaxTeamMetric {
    /// When it was reached.
    pub timestamp: Timestamp,
    /// The same in seconds.
    #[serde(rename = "timestampUnix")]
    pub timestamp_unix: i64,
    /// The most.
    pub value: f64,
    /// The metric.
    pub metric: String,
}
