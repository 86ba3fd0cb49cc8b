//! What is wrong with a body or a query, said for whoever wrote it: parsers speak of the types of this program.

use crate::error::{Kind, Problem};
use serde::de::IgnoredAny;

/// The longest part of a parser's message that is shown: it quotes what it was given.
const MESSAGE_LIMIT: usize = 300;
/// What parsers call things, and their names outside.
const NAMES: [(&str, &str); 8] = [
    ("struct ", "a JSON object"),
    ("a map", "a JSON object"),
    ("a sequence", "a JSON array"),
    ("i64", "an integer"),
    ("u64", "an integer"),
    ("a boolean", "true or false"),
    ("a borrowed string", "a string"),
    ("string or map", "a string"),
];
/// What is left to say when nothing better is known.
const MISFIT: &str = "is not of the type that this field has";

/// Text that is no JSON.
pub(crate) fn malformed(error: &serde_json::Error) -> Problem {
    let why = shown(error.to_string());
    Problem::new(Kind::Malformed, format!("the body is no JSON: {why}"))
}

/// A body that is JSON and no object.
pub(crate) fn no_object() -> Problem {
    Problem::new(Kind::Invalid, "the body must be a JSON object")
}

/// A body that could not be taken: 400 when it is no JSON to its end, 422 for a field that is not as it should be.
pub(crate) fn of_json(
    error: serde_path_to_error::Error<serde_json::Error>,
    body: &[u8],
) -> Problem {
    let path = error.path().to_string();
    let error = error.into_inner();
    let text = error.to_string();
    // Of surrogates, JSON's own grammar takes any; a text takes pairs only.
    if error.is_syntax() && (text.contains("surrogate") || text.contains("hex escape")) {
        let why = "has half of a surrogate pair (\\ud800 to \\udfff) as an escape, which stands for no character";
        return Problem::new(Kind::Malformed, format!("{}: {why}", field(&path)));
    }
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(body) {
        return malformed(&error);
    }
    if error.is_data() {
        return of_field(&path, &text);
    }
    let why = if text.contains("recursion limit") {
        "is nested too deeply"
    } else if text.contains("out of range") {
        "has a number that is too large"
    } else {
        MISFIT
    };
    Problem::invalid(&field(&path), why)
}

/// A query or an urlencoded body that could not be taken, by axum's message.
pub(crate) fn of_form(message: &str) -> Problem {
    let text = [
        "Failed to deserialize query string: ",
        "Failed to deserialize form body: ",
        "Failed to deserialize form: ",
    ]
    .iter()
    .find_map(|prefix| message.strip_prefix(prefix))
    .unwrap_or(message);
    match text.split_once(": ") {
        Some((path, why)) => of_field(path, why),
        None => of_field(".", text),
    }
}

fn field(path: &str) -> String {
    match path {
        "." | "?" | "" => "the body".to_owned(),
        path => shown(path.to_owned()),
    }
}

/// What a parser says of a field, in other words.
fn of_field(path: &str, text: &str) -> Problem {
    if let Some(name) = quoted_after(text, "missing field ") {
        let within = match path {
            "." | "?" | "" => name.to_owned(),
            path => shown(format!("{path}.{name}")),
        };
        return Problem::invalid(&within, "is missing");
    }
    if let Some(name) = quoted_after(text, "unknown field ") {
        return Problem::invalid(&shown(name.to_owned()), "is no key of this");
    }
    if let Some(name) = quoted_after(text, "duplicate field ") {
        return Problem::invalid(name, "is there more than once");
    }
    let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
    let why = if text.starts_with("must ") || text.starts_with("is ") {
        text.to_owned()
    } else if let Some((_, wanted)) = text.rsplit_once(", expected ") {
        format!("must be {}", name_of(wanted))
    } else {
        MISFIT.to_owned()
    };
    Problem::invalid(&field(path), shown(why))
}

fn quoted_after<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    text.strip_prefix(words)?.split('`').nth(1)
}

fn name_of(wanted: &str) -> &str {
    NAMES
        .iter()
        .find(|(name, _)| wanted.starts_with(name))
        .map_or(wanted, |(_, outside)| outside)
}

fn shown(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MESSAGE_LIMIT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use instavm_api::execution::Execute;
    use instavm_api::session::StartSession;
    use instavm_api::vm::CreateVm;
    use serde::de::DeserializeOwned;

    fn said<T: DeserializeOwned>(body: &str) -> String {
        let mut deserializer = serde_json::Deserializer::from_str(body);
        match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
            Ok(_) => String::new(),
            Err(error) => of_json(error, body.as_bytes()).message,
        }
    }

    #[test]
    fn messages_are_of_the_field_and_not_of_this_program() {
        for (message, wanted) in [
            (
                said::<StartSession>(r#"{"memory_mb": "much"}"#),
                "memory_mb: must be an integer",
            ),
            (
                said::<StartSession>(r#"{"memory_mb": [1]}"#),
                "memory_mb: must be an integer",
            ),
            (
                said::<StartSession>(r#"{"memory_mb": 1.5}"#),
                "memory_mb: must be an integer",
            ),
            (
                said::<StartSession>(r#"{"metadata": []}"#),
                "metadata: must be a JSON object",
            ),
            (
                said::<StartSession>(r#"{"env": ["A"]}"#),
                "env: must be a JSON object",
            ),
            (
                said::<StartSession>(r#"{"env": {"A": []}}"#),
                "env.A: must be a string, a number or a boolean",
            ),
            (
                said::<CreateVm>(r#"{"egress_policy": [true]}"#),
                "egress_policy: must be a JSON object",
            ),
            (
                said::<CreateVm>(r#"{"egress_policy": {"allow_http": 1}}"#),
                "egress_policy.allow_http: must be true or false",
            ),
            (
                said::<CreateVm>(r#"{"volumes": {}}"#),
                "volumes: must be a JSON array",
            ),
        ] {
            assert_eq!(message, wanted);
        }
        let deep = format!(
            r#"{{"metadata": {{"a": {}{}}}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        assert!(said::<StartSession>(&deep).ends_with("is nested too deeply"));
    }

    #[test]
    fn what_is_missing_within_a_list_is_named_with_its_place() {
        assert_eq!(
            said::<CreateVm>(r#"{"volumes": [{"mount_path": "/a"}, {}]}"#),
            "volumes[1].mount_path: is missing"
        );
    }

    #[test]
    fn messages_of_executions_are_too() {
        let long = format!(r#"{{"timeout": "{}"}}"#, "x".repeat(10_000));
        for (message, wanted) in [
            (
                said::<Execute>(r#"{"session_id": "x"}"#),
                "command: is missing",
            ),
            (
                said::<Execute>(r#"{"command": "x", "code": "y"}"#),
                "command: is there more than once",
            ),
            (
                said::<Execute>(r#"{"command": 5}"#),
                "command: must be a string",
            ),
            (
                said::<Execute>(r#"{"language": "ruby"}"#),
                "language: must be `python` or `bash`",
            ),
            (
                said::<Execute>(r#"{"language": 5}"#),
                "language: is not of the type that this field has",
            ),
            (said::<Execute>(&long), "timeout: must be a number"),
        ] {
            assert_eq!(message, wanted);
        }
        let half = said::<Execute>(r#"{"command": "\ud800"}"#);
        assert!(
            half.starts_with("command: has half of a surrogate pair"),
            "{half}"
        );
    }

    #[test]
    fn queries_are_refused_by_name() {
        for (message, wanted) in [
            (
                "Failed to deserialize query string: limit: must be an integer",
                "limit: must be an integer",
            ),
            (
                "Failed to deserialize form body: missing field `session_id`",
                "session_id: is missing",
            ),
            (
                "Failed to deserialize form: duplicate field `filename`",
                "filename: is there more than once",
            ),
        ] {
            assert_eq!(of_form(message).message, wanted);
        }
        assert!(
            !of_form("Failed to deserialize form: anything")
                .message
                .contains("deserialize")
        );
    }
}
