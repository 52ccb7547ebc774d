//! Points in time as the API writes them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant in UTC with microseconds, which is what Postgres keeps: a value read back is equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// Later than anything that happens.
    pub const LATEST: Self = Self(jiff::Timestamp::MAX);

    /// The same, or the nearest time that Postgres can hold: it knows no year before -4712.
    #[must_use]
    pub fn storable(self) -> Self {
        const YEAR_1: i64 = -62_135_596_800_000_000;
        if self.as_micros() < YEAR_1 {
            Self::from_micros(YEAR_1)
        } else {
            Self::new(self.0)
        }
    }

    /// Cuts to microseconds.
    #[must_use]
    pub fn new(at: jiff::Timestamp) -> Self {
        Self::from_micros(at.as_microsecond())
    }

    /// # Panics
    /// Never for times that Postgres can hold within years -9999 to 9999; out-of-range values saturate.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(
            jiff::Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
                jiff::Timestamp::MIN
            } else {
                jiff::Timestamp::MAX
            }),
        )
    }

    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    #[must_use]
    pub fn inner(self) -> jiff::Timestamp {
        self.0
    }

    /// This much later, or the latest there is.
    #[must_use]
    pub fn after(self, wait: std::time::Duration) -> Self {
        let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.as_micros().saturating_add(micros))
    }

    /// Seconds from `earlier` to `self`; 0 when it lies later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds of centuries fit an f64"
        )]
        let seconds = (self.as_micros() - earlier.as_micros()).max(0) as f64 / 1e6;
        seconds
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse().map(Self::new)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        jiff::Timestamp::deserialize(deserializer).map(Self::new)
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
                utoipa::openapi::KnownFormat::DateTime,
            )))
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn always_six_digits_and_z() {
        let at: Timestamp = "2026-04-03T20:24:10.4123456+02:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-04-03T18:24:10.412345Z");
        assert_eq!(
            Timestamp::from_micros(0).to_string(),
            "1970-01-01T00:00:00.000000Z"
        );
    }
}
