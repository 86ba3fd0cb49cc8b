//! Amounts of bytes, as people write and read them.

use crate::failure::Failure;
use crate::json::Json;

/// Largest first; `b` is the end of all of them.
const UNITS: [(&str, f64); 5] = [
    ("tb", 1024.0 * 1024.0 * 1024.0 * 1024.0),
    ("gb", 1024.0 * 1024.0 * 1024.0),
    ("mb", 1024.0 * 1024.0),
    ("kb", 1024.0),
    ("b", 1.0),
];

/// Beyond this a number of bytes is not exact any more.
const MOST: f64 = 9_007_199_254_740_992.0;

/// Reads `10gb`, `1.5 MB` or `4096`.
pub(crate) fn parse(text: &str) -> Result<i64, Failure> {
    let bad = || {
        Failure::said(format!(
            "'{text}' is no size; write it as 4096, 512mb or 1.5gb"
        ))
    };
    let trimmed = text.trim().to_lowercase();
    let unit = UNITS.iter().find_map(|(suffix, factor)| {
        let number = trimmed.strip_suffix(suffix)?;
        Some((number.trim(), factor))
    });
    let Some((number, factor)) = unit else {
        return trimmed.parse().map_err(|_| bad());
    };
    let bytes = number.parse::<f64>().map_err(|_| bad())? * factor;
    if !bytes.is_finite() || bytes.abs() > MOST {
        return Err(bad());
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "within the bounds; the fraction of a byte goes"
    )]
    Ok(bytes as i64)
}

/// Writes an amount that the platform gave; nothing counts as 0.
pub(crate) fn shown(value: Option<&Json>) -> String {
    let text = value.and_then(Json::display);
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return "0B".to_owned();
    };
    let Ok(mut amount) = text.trim().parse::<f64>() else {
        return text;
    };
    if amount < 1024.0 {
        return format!("{}B", amount.trunc());
    }
    let mut unit = "";
    for next in ["KB", "MB", "GB", "TB"] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    format!("{amount:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, expected) in [
            ("0", 0),
            (" 4096 ", 4096),
            ("7b", 7),
            ("1KB", 1024),
            ("1.5 mb", 1_572_864),
            ("0.0001kb", 0),
            ("10gB", 10 << 30),
            ("2tb", 2 << 40),
            ("-1kb", -1024),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "b",
            "gb",
            "1.5",
            "1 g",
            "x",
            "nanb",
            "infkb",
            "1e300mb",
            "9999999tb",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written() {
        for (amount, expected) in [
            ("0", "0B"),
            ("1023", "1023B"),
            ("1024", "1.0KB"),
            ("1572864", "1.5MB"),
            ("10737418240", "10.0GB"),
            ("5629499534213120", "5120.0TB"),
        ] {
            let amount = Json::Number(amount.to_owned());
            assert_eq!(shown(Some(&amount)), expected);
        }
        assert_eq!(shown(None), "0B");
        assert_eq!(shown(Some(&Json::Null)), "0B");
        assert_eq!(shown(Some(&Json::from("much"))), "much");
    }
}
