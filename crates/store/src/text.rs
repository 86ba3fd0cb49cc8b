//! Texts that PostgreSQL cannot hold: it has no NUL, SQLite has.
//!
//! Both databases give back every text as it went in. For PostgreSQL, NUL is written as U+0001 and `0`, and U+0001
//! itself as U+0001 and `1`; texts without the two, which is all of them but a few, are written as they are. Equal texts
//! stay equal and different ones different, so comparing in SQL means the same in both.

const MARK: char = '\u{1}';

/// A text as PostgreSQL holds it.
pub(crate) fn held(text: String) -> String {
    if !text.contains(['\0', MARK]) {
        return text;
    }
    let mut held = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => held.extend([MARK, '0']),
            MARK => held.extend([MARK, '1']),
            other => held.push(other),
        }
    }
    held
}

/// The text that PostgreSQL holds so.
pub(crate) fn given(held: String) -> String {
    if !held.contains(MARK) {
        return held;
    }
    let mut given = String::with_capacity(held.len());
    let mut characters = held.chars();
    while let Some(character) = characters.next() {
        if character != MARK {
            given.push(character);
            continue;
        }
        match characters.next() {
            Some('0') => given.push('\0'),
            Some('1') | None => given.push(MARK),
            Some(other) => given.extend([MARK, other]),
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_and_different_ones_stay_different() {
        let texts = ["", "a", "\0", "\u{1}", "\u{1}0", "\u{1}1\0", "0\0\0\u{1}é"];
        for text in texts {
            let held = held(text.to_owned());
            assert!(!held.contains('\0'));
            assert_eq!(given(held), text);
        }
        let mut all: Vec<_> = texts.iter().map(|text| held((*text).to_owned())).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), texts.len());
    }
}
