//! The JSON of Firecracker's API, as fcsim's own types.
//!
//! Names and order of fields and variants are part of the contract: they show in serde's error texts, and a body may
//! be an array in place of an object. Nothing here checks more than the JSON's shape.

pub(crate) mod cpu;
pub(crate) mod devices;
pub(crate) mod machine;
pub(crate) mod snapshot;

use serde::{Deserialize, Serialize};

/// A token bucket. Unknown fields are let through, as Firecracker does for this type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct TokenBucketConfig {
    pub size: u64,
    pub one_time_burst: Option<u64>,
    pub refill_time: u64,
}

impl TokenBucketConfig {
    /// The bucket in effect: none where size or time is zero or the time overflows in nanoseconds; a burst of zero is
    /// no burst.
    pub(crate) fn effective(self) -> Option<Self> {
        let live =
            self.size != 0 && self.refill_time != 0 && self.refill_time.checked_mul(1_000_000).is_some();
        live.then(|| Self { one_time_burst: self.one_time_burst.filter(|&burst| burst != 0), ..self })
    }
}

/// A limiter of bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiterConfig {
    pub bandwidth: Option<TokenBucketConfig>,
    pub ops: Option<TokenBucketConfig>,
}

impl RateLimiterConfig {
    /// The limiter in effect, as it is shown again: none where it limits nothing.
    pub(crate) fn effective(limiter: Option<Self>) -> Option<Self> {
        let limiter = limiter?;
        let of = |bucket: Option<TokenBucketConfig>| bucket.and_then(TokenBucketConfig::effective);
        let limiter = Self { bandwidth: of(limiter.bandwidth), ops: of(limiter.ops) };
        (limiter.bandwidth.is_some() || limiter.ops.is_some()).then_some(limiter)
    }

    /// What is in effect after an update: what the update leaves out stays, a bucket of zero switches it off.
    pub(crate) fn updated(current: Option<Self>, update: Option<Self>) -> Option<Self> {
        let Some(update) = update else { return current };
        let current = current.unwrap_or_default();
        Self::effective(Some(Self {
            bandwidth: update.bandwidth.or(current.bandwidth),
            ops: update.ops.or(current.ops),
        }))
    }
}
