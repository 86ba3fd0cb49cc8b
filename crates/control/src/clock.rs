//! Time as the database and the wire write it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment: microseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub i64);

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment::from(SystemTime::now())
    }

    pub(crate) fn plus(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(micros(duration)))
    }

    pub(crate) fn minus(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(micros(duration)))
    }

    /// Seconds from `earlier` to here; 0 when it is the other way round.
    pub(crate) fn seconds_since(self, earlier: Moment) -> f64 {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
            .as_secs_f64()
    }

    pub(crate) fn system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }

    /// ISO-8601 in UTC, always with six digits after the second, so that texts sort as the moments do.
    pub(crate) fn iso(self) -> String {
        const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
        );
        time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .ok()
            .and_then(|moment| moment.format(FORMAT).ok())
            .unwrap_or_else(|| "9999-12-31T23:59:59.999999Z".to_owned())
    }
}

impl From<SystemTime> for Moment {
    fn from(moment: SystemTime) -> Self {
        Moment(micros(
            moment.duration_since(UNIX_EPOCH).unwrap_or_default(),
        ))
    }
}

/// A duration in whole microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Whole microseconds in seconds.
pub(crate) fn seconds(micros: i64) -> f64 {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64()
}

/// Whole microseconds in milliseconds, with the fewest digits: a text of it that is read is the same number.
pub(crate) fn milliseconds(micros: i64) -> f64 {
    f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_the_same_when_they_are_read_again() {
        assert_eq!(milliseconds(15_575).to_string(), "15.575");
        for micros in 0..50_000 {
            let number = milliseconds(micros);
            let text = serde_json::to_string(&number).unwrap_or_default();
            assert_eq!(serde_json::from_str::<f64>(&text).ok(), Some(number));
        }
    }

    #[test]
    fn moments_are_written_so_that_their_texts_sort() {
        assert_eq!(Moment(0).iso(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            Moment(1_779_860_550_000_001).iso(),
            "2026-05-27T05:42:30.000001Z"
        );
        assert!(Moment(1_779_860_550_000_001).iso().as_str() > "2026-05-27T05:42:30");
    }

    #[test]
    fn moments_out_of_range_do_not_panic() {
        assert!(!Moment(i64::MAX).iso().is_empty());
        assert_eq!(Moment(5).seconds_since(Moment(6)), 0.0);
    }
}
