//! Numbers as callers write them.

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// An integer, also one that is written as `60.0`; `null` is none.
pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_any(Number {
        rounded: false,
        text: false,
    })
}

/// Seconds: a number, of which a fraction is rounded up; `null` is none.
pub(crate) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_any(Number {
        rounded: true,
        text: false,
    })
}

/// An integer in a query.
pub(crate) fn of_query<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_any(Number {
        rounded: false,
        text: true,
    })
}

struct Number {
    /// A fraction is rounded up.
    rounded: bool,
    /// It comes as text.
    text: bool,
}

impl Visitor<'_> for Number {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.rounded {
            "a number"
        } else {
            "an integer"
        })
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        i64::try_from(value)
            .map(Some)
            .map_err(|_| E::custom("is too large"))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        let whole = value.ceil();
        if !self.rounded && whole != value {
            return Err(E::custom("must be an integer"));
        }
        // Both limits are integers that `f64` has exactly.
        if (-9e18..=9e18).contains(&whole) {
            Ok(Some(whole as i64))
        } else {
            Err(E::custom("is too large"))
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        match value.parse() {
            Ok(number) if self.text => Ok(Some(number)),
            _ => Err(E::custom(if self.rounded {
                "must be a number"
            } else {
                "must be an integer"
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_may_be_written_with_a_point() {
        for (given, wanted) in [
            (json!(60), Some(60)),
            (json!(60.0), Some(60)),
            (json!(-1), Some(-1)),
            (json!(null), None),
        ] {
            assert_eq!(integer(&given).unwrap(), wanted, "{given}");
            assert_eq!(seconds(&given).unwrap(), wanted, "{given}");
        }
        for wrong in [
            json!(1.5),
            json!("60"),
            json!(true),
            json!([60]),
            json!(1e300),
            json!(u64::MAX),
        ] {
            assert!(integer(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fractions_of_seconds_are_rounded_up() {
        for (given, wanted) in [(2.5, 3), (0.001, 1), (0.0, 0), (-0.5, 0), (-1.5, -1)] {
            assert_eq!(seconds(&json!(given)).unwrap(), Some(wanted), "{given}");
        }
        for wrong in [json!("5"), json!({}), json!(1e19), json!(-1e19)] {
            assert!(seconds(&wrong).is_err(), "{wrong}");
        }
    }
}
