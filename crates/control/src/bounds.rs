//! Checks that several nouns share: numbers within limits, environments, texts.

use crate::error::Problem;
use instavm_api::{Metadata, Variable};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Bytes of an environment, names and values together; what a process can be given is not much more.
const ENVIRONMENT_LIMIT: usize = 512 << 10;
/// Bytes of a single variable, which the kernel limits to 128 KiB.
const VARIABLE_LIMIT: usize = 127 << 10;
/// Characters of a name that several things may have.
const LABEL_LIMIT: usize = 256;
/// Bytes of metadata as JSON.
const METADATA_LIMIT: usize = 256 << 10;

/// The number that the caller gave, or the default; 422 when it is outside the range.
pub(crate) fn number(
    field: &str,
    given: Option<i64>,
    default: u32,
    range: &RangeInclusive<u32>,
) -> Result<u32, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    u32::try_from(given)
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            Problem::invalid(
                field,
                format!(
                    "must be between {} and {}, and is {given}",
                    range.start(),
                    range.end()
                ),
            )
        })
}

/// A checked environment.
pub(crate) fn environment(
    given: BTreeMap<String, Variable>,
) -> Result<BTreeMap<String, String>, Problem> {
    environment_of("env", given)
}

/// A checked environment, given in a field of this name.
pub(crate) fn environment_of(
    field: &str,
    given: BTreeMap<String, Variable>,
) -> Result<BTreeMap<String, String>, Problem> {
    let mut total = 0;
    let mut environment = BTreeMap::new();
    for (name, Variable(value)) in given {
        let shown: String = name.chars().take(64).collect();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Problem::invalid(
                field,
                format!("the name {shown:?} must not be empty nor hold '=' or NUL"),
            ));
        }
        if value.contains('\0') {
            return Err(Problem::invalid(
                field,
                format!("the value of {shown:?} must not hold NUL"),
            ));
        }
        let size = name.len() + value.len();
        if size > VARIABLE_LIMIT {
            return Err(Problem::invalid(
                field,
                format!(
                    "{shown:?} has {size} bytes and the limit is {VARIABLE_LIMIT}; put it into a file"
                ),
            ));
        }
        total += size;
        environment.insert(name, value);
    }
    if total > ENVIRONMENT_LIMIT {
        return Err(Problem::invalid(
            field,
            format!("has {total} bytes and the limit is {ENVIRONMENT_LIMIT}"),
        ));
    }
    Ok(environment)
}

/// A name that several things may have; absent is empty.
pub(crate) fn label(field: &str, given: Option<String>) -> Result<String, Problem> {
    let name = given.unwrap_or_default();
    if name.chars().count() > LABEL_LIMIT || name.chars().any(char::is_control) {
        return Err(Problem::invalid(
            field,
            format!("must be at most {LABEL_LIMIT} characters, without control characters"),
        ));
    }
    Ok(name)
}

/// Checked metadata.
pub(crate) fn metadata(given: Metadata) -> Result<Metadata, Problem> {
    let size = serde_json::to_vec(&given).map_or(usize::MAX, |text| text.len());
    if size > METADATA_LIMIT {
        return Err(Problem::invalid(
            "metadata",
            format!("has {size} bytes as JSON and the limit is {METADATA_LIMIT}"),
        ));
    }
    Ok(given)
}

/// Whether `whole` has everything that `part` has: objects key by key, all else by equality.
pub(crate) fn contains(whole: &Metadata, part: &Metadata) -> bool {
    use serde_json::Value::Object;
    part.iter()
        .all(|(key, wanted)| match (whole.get(key), wanted) {
            (Some(Object(whole)), Object(part)) => contains(whole, part),
            (Some(found), wanted) => found == wanted,
            (None, _) => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Metadata {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn numbers_outside_the_range_name_field_and_limits() {
        assert_eq!(number("n", None, 7, &(1..=9)).unwrap(), 7);
        assert_eq!(number("n", Some(9), 7, &(1..=9)).unwrap(), 9);
        for wrong in [0, 10, -1, i64::MAX, i64::MIN] {
            let problem = number("n", Some(wrong), 7, &(1..=9)).unwrap_err();
            assert!(problem.message.starts_with("n: must be between 1 and 9"));
        }
    }

    #[test]
    fn containment_is_key_by_key() {
        let whole = object(r#"{"a":1,"b":{"c":"x","d":[1]}}"#);
        for part in [
            "{}",
            r#"{"a":1}"#,
            r#"{"b":{"c":"x"}}"#,
            r#"{"b":{"d":[1]}}"#,
        ] {
            assert!(contains(&whole, &object(part)), "{part}");
        }
        for part in [
            r#"{"a":2}"#,
            r#"{"a":"1"}"#,
            r#"{"b":{"e":1}}"#,
            r#"{"z":null}"#,
        ] {
            assert!(!contains(&whole, &object(part)), "{part}");
        }
    }

    #[test]
    fn environments_with_names_that_no_process_can_have_are_refused() {
        for name in ["", "A=B", "A\0"] {
            let given = [(name.to_owned(), Variable("x".to_owned()))];
            assert!(environment(given.into()).is_err(), "{name:?}");
        }
        let given = [("A".to_owned(), Variable("x\0".to_owned()))];
        assert!(environment(given.into()).is_err());
    }
}
