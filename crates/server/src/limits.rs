//! Rate limits by key and class of request, off unless configured.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderValue, Method};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DashMapStateStore,
};
use selfsame_types::{ApiError, ErrorKind, KeyId, Timestamp};

use crate::config;

type Bucket =
    RateLimiter<KeyId, DashMapStateStore<KeyId>, DefaultClock, StateInformationMiddleware>;

/// Token buckets: a minute's worth at once, refilled evenly.
#[derive(Debug)]
pub(crate) struct Limits {
    create: Option<Class>,
    read: Option<Class>,
    files: Option<Class>,
}

#[derive(Debug)]
struct Class {
    per_minute: u32,
    bucket: Arc<Bucket>,
}

/// What is left after a request, for its response's headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remaining {
    limit: u32,
    remaining: u32,
    /// Until the bucket is full again.
    reset: Duration,
}

impl Limits {
    pub(crate) fn from_config(config: &config::Limits) -> Option<Self> {
        let class = |per_minute: Option<u32>| {
            let per_minute = per_minute.and_then(NonZeroU32::new)?;
            let bucket = RateLimiter::dashmap(Quota::per_minute(per_minute))
                .with_middleware::<StateInformationMiddleware>();
            Some(Class {
                per_minute: per_minute.get(),
                bucket: Arc::new(bucket),
            })
        };
        let limits = Self {
            create: class(config.create_per_minute),
            read: class(config.read_per_minute),
            files: class(config.files_per_minute),
        };
        (limits.create.is_some() || limits.read.is_some() || limits.files.is_some())
            .then_some(limits)
    }

    /// Takes one token. `None` where there is no limit.
    ///
    /// # Errors
    /// 429 with `retry-after` when there is none to take.
    pub(crate) fn take(
        &self,
        key: KeyId,
        method: &Method,
        path: &str,
    ) -> Result<Option<Remaining>, (ApiError, Remaining)> {
        let class = if path.starts_with("/v1/files") {
            &self.files
        } else if method == Method::GET || method == Method::HEAD {
            &self.read
        } else {
            &self.create
        };
        let Some(class) = class else { return Ok(None) };
        let limit = class.per_minute;
        match class.bucket.check_key(&key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = limit.saturating_sub(remaining);
                Ok(Some(Remaining {
                    limit,
                    remaining,
                    reset: Duration::from_secs(60).mul_f64(f64::from(used) / f64::from(limit)),
                }))
            }
            Err(denied) => {
                let wait = denied.wait_time_from(DefaultClock::default().now());
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX - 1) + 1;
                let error = ApiError {
                    retry_after: Some(seconds),
                    ..ApiError::new(
                        ErrorKind::RateLimit,
                        format!("More than {limit} requests a minute; wait {seconds} s"),
                    )
                };
                let remaining = Remaining {
                    limit,
                    remaining: 0,
                    reset: Duration::from_secs(60),
                };
                Err((error, remaining))
            }
        }
    }

    /// Forgets keys whose buckets are full.
    pub(crate) fn shrink(&self) {
        for class in [&self.create, &self.read, &self.files]
            .into_iter()
            .flatten()
        {
            class.bucket.retain_recent();
        }
    }
}

impl Remaining {
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        headers.insert(
            "anthropic-ratelimit-requests-limit",
            HeaderValue::from(self.limit),
        );
        headers.insert(
            "anthropic-ratelimit-requests-remaining",
            HeaderValue::from(self.remaining),
        );
        let reset = SystemTime::now()
            .checked_add(self.reset)
            .and_then(|at| jiff::Timestamp::try_from(at).ok())
            .map(|at| Timestamp::new(at).to_string());
        if let Some(reset) = reset.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert("anthropic-ratelimit-requests-reset", reset);
        }
    }
}
