//! Reading a downloaded file while it comes: the answer is JSON with the content in base64.

use crate::error::{Error, Result};
use crate::http::next_chunk;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::Response;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The longest key of the answer that is looked at.
const KEY_LIMIT: usize = 256;
/// Bytes of the answer beside the content that are kept.
const ABOUT_LIMIT: usize = 64 << 10;

/// A file of a VM or a volume on its way.
pub struct Download {
    response: Response,
    operation: &'static str,
    patience: Duration,
    decoder: Decoder,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").finish_non_exhaustive()
    }
}

impl Download {
    pub(crate) fn new(response: Response, operation: &'static str, patience: Duration) -> Download {
        Download {
            response,
            operation,
            patience,
            decoder: Decoder::default(),
        }
    }

    /// The next piece of the file; `None` at its end.
    ///
    /// # Errors
    /// When the answer breaks off, or is not understood.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let next = next_chunk(&mut self.response, self.operation, self.patience).await?;
            let Some(input) = next else {
                self.decoder.finish().map_err(|fault| self.fault(fault))?;
                return Ok(None);
            };
            let mut output = Vec::with_capacity(input.len() / 4 * 3 + 3);
            self.decoder
                .push(&input, &mut output)
                .map_err(|fault| self.fault(fault))?;
            if !output.is_empty() {
                return Ok(Some(output.into()));
            }
        }
    }

    fn fault(&self, fault: &'static str) -> Error {
        Error::Answer {
            operation: self.operation,
            source: fault.into(),
        }
    }

    /// The rest of the file, in memory.
    ///
    /// # Errors
    /// When the answer breaks off, or is not understood.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        while let Some(piece) = self.chunk().await? {
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }

    /// Writes the rest of the file to a local path and returns its size. A regular file that is there is replaced when
    /// the whole new content has come, and stays as it is when something goes wrong.
    ///
    /// # Errors
    /// When the local file cannot be written, and when the answer breaks off or is not understood.
    pub async fn save(&mut self, local: impl AsRef<Path>) -> Result<u64> {
        crate::file::save(self, self.operation, local.as_ref()).await
    }

    /// The platform's answer as JSON, with the text of `content` left out: complete when the file has been read to its
    /// end.
    pub fn answer(&self) -> &[u8] {
        &self.decoder.about
    }

    /// The rest of the file as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::try_unfold(self, |mut download: Download| async move {
            let piece = download.chunk().await?;
            Ok(piece.map(|piece| (piece, download)))
        })
    }
}

/// Finds the text of the key `content` in a JSON object that comes in pieces, and decodes its base64.
#[derive(Debug, Default)]
struct Decoder {
    state: State,
    key: Vec<u8>,
    /// Digits of a group of four that is not whole yet.
    group: Vec<u8>,
    padded: bool,
    found: bool,
    /// The object without the text of the content.
    about: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before `{`.
    #[default]
    Start,
    /// Before a key, or `}`.
    Members,
    Key,
    KeyEscape,
    Colon,
    /// Before a value.
    Value,
    /// In a value that is not wanted.
    Skip {
        depth: u32,
        text: bool,
        escape: bool,
    },
    Content,
    ContentEscape,
    /// In the digits of `\uXXXX`.
    ContentCode {
        digits: u8,
        value: u16,
    },
    /// After `}`.
    End,
}

const NO_OBJECT: &str = "it is no JSON object";
const NO_BASE64: &str = "its content is no base64";

impl Decoder {
    fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(), &'static str> {
        let mut rest = input;
        while let Some(&byte) = rest.first() {
            if self.state == State::Content {
                let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
                let (digits, after) = rest.split_at(plain.unwrap_or(rest.len()));
                self.digits(digits, output)?;
                rest = after;
                if let Some((&mark, after)) = rest.split_first() {
                    self.state = match mark {
                        b'"' => {
                            self.note(b'"')?;
                            self.end_content(output)?
                        }
                        _ => State::ContentEscape,
                    };
                    rest = after;
                }
                continue;
            }
            if !matches!(self.state, State::ContentEscape | State::ContentCode { .. }) {
                self.note(byte)?;
            }
            self.state = self.step(byte, output)?;
            rest = &rest[1..];
        }
        Ok(())
    }

    fn note(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.about.len() == ABOUT_LIMIT {
            return Err("there is too much beside its content");
        }
        self.about.push(byte);
        Ok(())
    }

    fn finish(&self) -> Result<(), &'static str> {
        match (self.state, self.found) {
            (State::End, true) => Ok(()),
            (State::End, false) => Err("it has no content"),
            _ => Err("it breaks off"),
        }
    }

    fn step(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<State, &'static str> {
        let blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        Ok(match (self.state, byte) {
            (State::Start | State::Members | State::Colon | State::Value | State::End, _)
                if blank =>
            {
                self.state
            }
            (State::Start, b'{') | (State::Members, b',') => State::Members,
            (State::Members, b'}') => State::End,
            (State::Members, b'"') => {
                self.key.clear();
                State::Key
            }
            (State::Key, b'"') => State::Colon,
            (State::Key, b'\\') => State::KeyEscape,
            (State::Key | State::KeyEscape, _) => {
                if self.key.len() < KEY_LIMIT {
                    self.key.push(byte);
                }
                State::Key
            }
            (State::Colon, b':') => State::Value,
            (State::Value, b'"') if self.key == b"content" && !self.found => {
                self.found = true;
                State::Content
            }
            (State::Value, _) => skip(0, false, false, byte)?,
            (
                State::Skip {
                    depth,
                    text,
                    escape,
                },
                _,
            ) => skip(depth, text, escape, byte)?,
            (State::ContentEscape, b'u') => State::ContentCode {
                digits: 0,
                value: 0,
            },
            (State::ContentEscape, _) => {
                let meant = match byte {
                    b'n' | b'r' | b't' | b'f' | b'b' => b'\n',
                    other => other,
                };
                self.digits(&[meant], output)?;
                State::Content
            }
            (State::ContentCode { digits, value }, _) => self.code(digits, value, byte, output)?,
            _ => return Err(NO_OBJECT),
        })
    }

    /// One more digit of `\uXXXX`.
    fn code(
        &mut self,
        digits: u8,
        value: u16,
        byte: u8,
        output: &mut Vec<u8>,
    ) -> Result<State, &'static str> {
        let digit = char::from(byte).to_digit(16).ok_or(NO_OBJECT)?;
        let value = value << 4 | u16::try_from(digit).unwrap_or_default();
        if digits < 3 {
            return Ok(State::ContentCode {
                digits: digits + 1,
                value,
            });
        }
        let meant = u8::try_from(value).map_err(|_| NO_BASE64)?;
        self.digits(&[meant], output)?;
        Ok(State::Content)
    }

    fn digits(&mut self, text: &[u8], output: &mut Vec<u8>) -> Result<(), &'static str> {
        let before = self.group.len();
        self.group
            .extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
        if self.padded && self.group.len() > before {
            return Err(NO_BASE64);
        }
        let whole = self.group.len() / 4 * 4;
        if whole > 0 {
            self.padded = self.group[whole - 1] == b'=';
            STANDARD
                .decode_vec(&self.group[..whole], output)
                .map_err(|_| NO_BASE64)?;
            self.group.drain(..whole);
            if self.padded && !self.group.is_empty() {
                return Err(NO_BASE64);
            }
        }
        Ok(())
    }

    fn end_content(&mut self, output: &mut Vec<u8>) -> Result<State, &'static str> {
        STANDARD
            .decode_vec(&self.group, output)
            .map_err(|_| NO_BASE64)?;
        self.group.clear();
        Ok(State::Members)
    }
}

/// Passes a value that is not wanted. The mark that ends it may belong to the object around it.
fn skip(depth: u32, text: bool, escape: bool, byte: u8) -> Result<State, &'static str> {
    let inside = |depth, text, escape| State::Skip {
        depth,
        text,
        escape,
    };
    Ok(match byte {
        _ if escape => inside(depth, true, false),
        b'\\' if text => inside(depth, true, true),
        b'"' => inside(depth, !text, false),
        _ if text => inside(depth, true, false),
        b'{' | b'[' => inside(depth.checked_add(1).ok_or(NO_OBJECT)?, false, false),
        b'}' if depth == 0 => State::End,
        b',' if depth == 0 => State::Members,
        b'}' | b']' => inside(depth.checked_sub(1).ok_or(NO_OBJECT)?, false, false),
        _ => inside(depth, false, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes the same answer cut at every place.
    fn decode(answer: &str) -> Result<Vec<u8>, &'static str> {
        let mut results = (0..=answer.len()).map(|cut| {
            let (mut decoder, mut output) = (Decoder::default(), Vec::new());
            decoder.push(&answer.as_bytes()[..cut], &mut output)?;
            decoder.push(&answer.as_bytes()[cut..], &mut output)?;
            decoder.finish().map(|()| output)
        });
        let first = results.next().unwrap();
        assert!(results.all(|result| result == first), "{answer}");
        first
    }

    #[test]
    fn content_is_found_among_other_keys() {
        for answer in [
            r#"{"filename":"a\"b","size":5,"content":"aGVsbG8="}"#,
            r#" { "content" : "aGVs\nbG8=" , "size" : 5 } "#,
            r#"{"more":{"content":"eA==","list":[1,{"a":"}"}]},"content":"aGVsbG8=","x":null}"#,
            r#"{"content":"\u0061GVsbG8\u003d"}"#,
            r#"{"content":"aGVsbG8"#,
        ] {
            let expected = if answer.ends_with('}') || answer.ends_with(' ') {
                Ok(b"hello".to_vec())
            } else {
                Err("it breaks off")
            };
            assert_eq!(decode(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_rest_of_the_answer_is_kept() {
        let mut decoder = Decoder::default();
        let answer = r#"{"path":"a\"b","content":"aGVs\u0062G8=\n","size":5.0}"#;
        assert_eq!(decoder.push(answer.as_bytes(), &mut Vec::new()), Ok(()));
        let about = r#"{"path":"a\"b","content":"","size":5.0}"#;
        assert_eq!(String::from_utf8_lossy(&decoder.about), about);
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(ABOUT_LIMIT));
        assert!(decode_once(&long).is_err());
    }

    fn decode_once(answer: &str) -> Result<(), &'static str> {
        Decoder::default().push(answer.as_bytes(), &mut Vec::new())
    }

    #[test]
    fn an_empty_file_has_no_bytes() {
        assert_eq!(decode(r#"{"size":0,"content":"\n"}"#), Ok(Vec::new()));
        assert_eq!(decode(r#"{"size":0,"content":""}"#), Ok(Vec::new()));
    }

    #[test]
    fn slashes_may_be_escaped() {
        assert_eq!(decode(r#"{"content":"\/\/\/\/"}"#), Ok(vec![0xff; 3]));
    }

    #[test]
    fn other_answers_are_refused() {
        assert_eq!(decode("[1]"), Err(NO_OBJECT));
        assert_eq!(decode("{}"), Err("it has no content"));
        assert_eq!(decode(r#"{"content":null}"#), Err("it has no content"));
        assert_eq!(decode(r#"{"content":"a?=="}"#), Err(NO_BASE64));
        assert_eq!(decode(r#"{"content":"aGVsbG8=aGVs"}"#), Err(NO_BASE64));
        assert_eq!(decode(r#"{"content":"aGVsb"}"#), Err(NO_BASE64));
        assert_eq!(decode(r#"{"a":1}x"#), Err(NO_OBJECT));
    }
}
