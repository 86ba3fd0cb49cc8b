//! Results go to standard output, everything else to standard error.

use crate::failure::Failure;
use crate::json::Json;
use std::io::{self, IsTerminal, Write};

/// One result, as JSON or as lines.
pub(crate) fn emit(json: bool, payload: impl Into<Json>, lines: &[String]) -> Result<(), Failure> {
    if json {
        print(&format!("{}\n", payload.into()))
    } else {
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        print(&text)
    }
}

/// Text to standard output, at once.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// A line to standard error.
pub(crate) fn complain(text: &str) {
    // When this fails there is nowhere left to say so.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether standard output understands colours.
pub(crate) fn is_ansi() -> bool {
    has_colours(&io::stdout())
}

/// Whether a stream understands colours.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !plain && stream.is_terminal()
}

/// The value as people read it; `-` for what is absent or blank.
pub(crate) fn shown(value: Option<&Json>) -> String {
    let text = value.and_then(Json::display).unwrap_or_default();
    match text.trim() {
        "" => "-".to_owned(),
        text => text.to_owned(),
    }
}

/// A heading with the number of rows, and the table; or one sentence when there is nothing.
pub(crate) fn listing(
    noun: &str,
    nothing: &str,
    headers: &[&str],
    rows: &[Vec<String>],
) -> Vec<String> {
    if rows.is_empty() {
        return vec![nothing.to_owned()];
    }
    let mut lines = vec![format!("{noun} ({})", rows.len()), String::new()];
    lines.extend(table(headers, rows));
    lines
}

/// A table with a line under its headers.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = headers
        .iter()
        .map(|header| header.chars().count())
        .collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible(cell));
        }
    }
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - visible(&cell))))
            .collect();
        format!("  {}", padded.join("  "))
    };
    let mut lines = vec![
        line(&mut headers.iter().map(|header| (*header).to_owned())),
        line(&mut widths.iter().map(|width| "-".repeat(*width))),
    ];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().cloned())));
    lines
}

/// Characters that take room: none of an escape sequence.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_room() {
        let rows = [vec!["\u{1b}[32m●\u{1b}[0m up".to_owned(), "é".to_owned()]];
        assert_eq!(
            table(&["S", "T"], &rows),
            ["  S     T", "  ----  -", "  \u{1b}[32m●\u{1b}[0m up  é"]
        );
    }

    #[test]
    fn blank_is_a_hyphen() {
        assert_eq!(shown(None), "-");
        assert_eq!(shown(Some(&Json::from(" \n"))), "-");
        assert_eq!(shown(Some(&Json::from(" a "))), "a");
        assert_eq!(shown(Some(&Json::from(0))), "0");
        assert_eq!(shown(Some(&Json::from(true))), "true");
    }
}
