//! Output as the body of an answer: in one piece while it is small, else piece by piece as its reader takes it.
//!
//! A long output is escaped from its raw bytes as it is sent, so an answer costs little more memory than the output, and
//! no thread waits for a slow reader. The text is what `serde_json` makes of the same answer.

use crate::error::{Kind, Problem};
use axum::Json;
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, stream};
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Output of up to so many bytes is answered in one piece.
const WHOLE: usize = 64 << 10;
/// Bytes of a piece, about.
const PIECE: usize = 256 << 10;
/// Raw bytes that are escaped in one go; a multiple of three.
const WINDOW: usize = 24 << 10;
/// No byte becomes more than this many: `\u0000`.
const LONGEST: usize = 6;
/// Pieces that wait for the reader.
const WAITING: usize = 2;
/// How long a reader may take for a piece before the answer is broken off.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of records that answers have in memory at once, in KiB.
const RECORDS_KIB: u32 = 512 << 10;
/// How long an answer waits for its share of them.
const RECORDS_PATIENCE: Duration = Duration::from_secs(20);

/// What fails when an answer cannot be made.
const WRITING: &str = "writing the answer";

/// What answers with long output share.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The right to escape.
    encoders: Arc<Semaphore>,
    /// KiB that records may take.
    records: Arc<Semaphore>,
}

impl Default for Answers {
    fn default() -> Self {
        // Half of the processors stay free for everything else.
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Answers {
            encoders: Arc::new(Semaphore::new((processors / 2).clamp(1, 4))),
            records: Arc::new(Semaphore::new(RECORDS_KIB as usize)),
        }
    }
}

impl Answers {
    /// Waits until there is room for a record of so many bytes.
    pub(crate) async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Problem> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        let room = self
            .records
            .clone()
            .acquire_many_owned(kib.min(RECORDS_KIB));
        match tokio::time::timeout(RECORDS_PATIENCE, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(Problem::new(
                Kind::AtCapacity,
                "too many long outputs are being read; try again soon",
            )),
        }
    }
}

/// What an execution wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    pub stdout: Bytes,
    pub stderr: Bytes,
    /// What the platform has to say, after standard error.
    pub notes: String,
}

/// The texts of an output in an answer.
pub(crate) struct Texts {
    pub stdout: String,
    pub stderr: String,
    pub stdout_b64: Option<String>,
    pub stderr_b64: Option<String>,
}

impl Output {
    fn len(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }

    fn texts(self) -> Texts {
        let (stdout, stdout_b64) = text(self.stdout.into());
        let mut stderr = Vec::from(self.stderr);
        stderr.extend_from_slice(self.notes.as_bytes());
        let (stderr, stderr_b64) = text(stderr);
        Texts {
            stdout,
            stderr,
            stdout_b64,
            stderr_b64,
        }
    }
}

/// Bytes as text, and as base64 too when the text lost something.
fn text(bytes: Vec<u8>) -> (String, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.as_bytes();
            (
                String::from_utf8_lossy(bytes).into_owned(),
                Some(STANDARD.encode(bytes)),
            )
        }
    }
}

/// The answer that `frame` makes of the texts. `held` is let go when the output is no longer needed.
pub(crate) async fn answer<T: Serialize>(
    answers: &Answers,
    output: Output,
    held: Option<OwnedSemaphorePermit>,
    frame: impl FnOnce(Texts) -> T,
) -> Result<Response, Problem> {
    if output.len() <= WHOLE {
        return Ok(Json(frame(output.texts())).into_response());
    }
    let encoders = answers.encoders.clone();
    let (lossy, output) = blocking(&encoders, move || (output.losses(), output))
        .await
        .ok_or_else(|| Problem::internal(WRITING, "the task ended"))?;
    let hole = |name: &str| format!("\u{0}{name}\u{0}");
    let texts = Texts {
        stdout: hole("stdout"),
        stderr: hole("stderr"),
        stdout_b64: lossy.0.then(|| hole("stdout_b64")),
        stderr_b64: lossy.1.then(|| hole("stderr_b64")),
    };
    let frame =
        serde_json::to_string(&frame(texts)).map_err(|error| Problem::internal(WRITING, error))?;
    let encoder = Encoder::new(&frame, &output);
    let body = Body::from_stream(pieces(encoders, encoder, held, PATIENCE));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

impl Output {
    /// Whether the texts of standard output and standard error lose something.
    fn losses(&self) -> (bool, bool) {
        let is_lossy = |bytes| std::str::from_utf8(bytes).is_err();
        (is_lossy(&self.stdout), is_lossy(&self.stderr))
    }
}

/// Runs something off the serving threads when its turn has come; `None` when that is no longer possible.
async fn blocking<T: Send + 'static>(
    encoders: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let turn = encoders.clone().acquire_owned().await.ok()?;
    let work = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(turn);
        result
    });
    work.await.ok()
}

/// The pieces of an answer. It ends without an error only when all of them are there.
fn pieces(
    encoders: Arc<Semaphore>,
    encoder: Encoder,
    held: Option<OwnedSemaphorePermit>,
    patience: Duration,
) -> impl Stream<Item = io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        pump(&encoders, encoder, &sender, patience).await;
        drop(held);
    });
    stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(piece) => Ok(piece.map(|piece: Bytes| (piece, receiver))),
            None => Err(io::Error::other("the answer was broken off")),
        }
    })
}

/// Passes pieces on, and `None` after the last, until the reader is gone or takes too long.
async fn pump(
    encoders: &Arc<Semaphore>,
    mut encoder: Encoder,
    sender: &mpsc::Sender<Option<Bytes>>,
    patience: Duration,
) {
    loop {
        let step = move || {
            let piece = encoder.next_piece();
            (encoder, piece)
        };
        let Some((back, Ok(piece))) = blocking(encoders, step).await else {
            return;
        };
        encoder = back;
        let is_last = piece.is_none();
        let sent = tokio::time::timeout(patience, sender.send(piece)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// A part of an answer that is still to be written.
#[derive(Debug)]
enum Part {
    /// As it is.
    Frame(Bytes),
    /// As the inside of a JSON text.
    Text(Bytes),
    /// In base64.
    Base64(Bytes),
}

/// An answer that is still to be written.
#[derive(Debug)]
struct Encoder {
    parts: VecDeque<Part>,
}

impl Encoder {
    /// An answer whose holes are filled with the output.
    fn new(frame: &str, output: &Output) -> Encoder {
        let mut parts = VecDeque::new();
        // In JSON, a hole's borders are these; no other text of an answer has them.
        for (index, text) in frame.split("\\u0000").enumerate() {
            if index % 2 == 0 {
                parts.push_back(Part::Frame(Bytes::copy_from_slice(text.as_bytes())));
                continue;
            }
            let (bytes, notes) = match text {
                "stdout" | "stdout_b64" => (&output.stdout, ""),
                _ => (&output.stderr, &*output.notes),
            };
            if text.ends_with("_b64") {
                let whole = bytes.len() / 3 * 3;
                let rest = [&bytes[whole..], notes.as_bytes()].concat();
                parts.push_back(Part::Base64(bytes.slice(..whole)));
                parts.push_back(Part::Base64(rest.into()));
            } else {
                parts.push_back(Part::Text(bytes.clone()));
                parts.push_back(Part::Text(Bytes::copy_from_slice(notes.as_bytes())));
            }
        }
        Encoder { parts }
    }

    /// The next piece; `None` after the last.
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::with_capacity(PIECE + WINDOW * LONGEST);
        while piece.len() < PIECE {
            let Some(part) = self.parts.front_mut() else {
                break;
            };
            let is_done = match part {
                Part::Frame(text) => {
                    piece.extend_from_slice(text);
                    true
                }
                Part::Text(rest) => {
                    let window = rest.split_to(text_window(rest));
                    escape(&window, &mut piece)?;
                    rest.is_empty()
                }
                Part::Base64(rest) => {
                    let window = rest.split_to(rest.len().min(WINDOW));
                    piece.extend_from_slice(STANDARD.encode(&window).as_bytes());
                    rest.is_empty()
                }
            };
            if is_done {
                self.parts.pop_front();
            }
        }
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

/// How many bytes can be converted to text for themselves, so that the result is that of the whole.
fn text_window(bytes: &[u8]) -> usize {
    if bytes.len() <= WINDOW {
        return bytes.len();
    }
    // A character begins at every byte that continues none; after three that do, the next begins nothing valid.
    let continues = |index: usize| bytes[index] & 0b1100_0000 == 0b1000_0000;
    (WINDOW - 3..=WINDOW)
        .rev()
        .find(|end| !continues(*end))
        .unwrap_or(WINDOW)
}

/// Appends bytes as the inside of a JSON text.
fn escape(bytes: &[u8], piece: &mut Vec<u8>) -> io::Result<()> {
    let start = piece.len();
    serde_json::to_writer(&mut *piece, &String::from_utf8_lossy(bytes))?;
    // Without the quotation marks.
    piece.pop();
    piece.remove(start);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, TryStreamExt};
    use proptest::prelude::*;

    #[derive(Serialize)]
    struct Frame {
        first: String,
        again: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        exact: Option<String>,
        second: String,
        second_exact: Option<String>,
        end: bool,
    }

    fn frame(texts: Texts) -> Frame {
        Frame {
            first: texts.stdout.clone(),
            again: texts.stdout,
            exact: texts.stdout_b64,
            second: texts.stderr,
            second_exact: texts.stderr_b64,
            end: true,
        }
    }

    fn output(stdout: Vec<u8>, stderr: Vec<u8>, notes: &str) -> Output {
        Output {
            stdout: stdout.into(),
            stderr: stderr.into(),
            notes: notes.to_owned(),
        }
    }

    async fn read(output: Output) -> Vec<u8> {
        let response = answer(&Answers::default(), output, None, frame)
            .await
            .unwrap();
        let body = response.into_body();
        axum::body::to_bytes(body, usize::MAX).await.unwrap().into()
    }

    /// What makes trouble where two pieces meet: bytes of no character, halves of characters, and what is escaped.
    fn trouble() -> impl Strategy<Value = Vec<u8>> {
        let bits = prop_oneof![
            Just(b"\0".to_vec()),
            Just(b"\"".to_vec()),
            Just(b"\\".to_vec()),
            Just("\u{2028}".into()),
            Just("\u{1F600}".into()),
            Just("\u{fffd}".into()),
            Just(b"\xed\xa0\x80".to_vec()),
            Just(b"\xf0\x9f\x98".to_vec()),
            Just(b"\xf4\x90\x80\x80".to_vec()),
            Just(b"\xc0\x80".to_vec()),
            Just(b"\x80".to_vec()),
            any::<u8>().prop_map(|byte| vec![byte]),
            any::<char>().prop_map(|character| character.to_string().into_bytes()),
        ];
        prop::collection::vec(bits, 1..40).prop_map(|bits| bits.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_together_are_the_whole(
            bits in trouble(),
            shift in 0..64usize,
            stderr in trouble(),
            notes in prop_oneof![Just(""), Just("\n[instavm] a note\n")],
        ) {
            let mut stdout = vec![b'x'; shift];
            while stdout.len() <= 3 * WINDOW {
                stdout.extend_from_slice(&bits);
            }
            let output = output(stdout, stderr, notes);
            let wanted = serde_json::to_vec(&frame(output.clone().texts())).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            prop_assert!(runtime.block_on(read(output)) == wanted);
        }
    }

    #[tokio::test]
    async fn runs_of_one_byte_are_the_same_in_pieces() {
        for byte in [0u8, b'a', b'"', 0x80, 0xbf, 0xc3, 0xe2, 0xf0, 0xff] {
            let output = output(vec![byte; WHOLE + 5], vec![byte; WINDOW * 2 + 1], "[n]\n");
            let wanted = serde_json::to_vec(&frame(output.clone().texts())).unwrap();
            assert!(read(output).await == wanted, "{byte:#x}");
        }
    }

    fn long() -> (Arc<Semaphore>, Encoder, Arc<[u8]>) {
        let bytes: Arc<[u8]> = vec![0u8; 4 << 20].into();
        let output = Output {
            stdout: Bytes::from_owner(bytes.clone()),
            ..Output::default()
        };
        let encoder = Encoder::new("\"\\u0000stdout\\u0000\"", &output);
        (Arc::new(Semaphore::new(1)), encoder, bytes)
    }

    /// Waits until nothing but the test has the output.
    async fn let_go(bytes: &Arc<[u8]>) {
        while Arc::strong_count(bytes) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_reader_that_hangs_up_frees_the_output() {
        let (encoders, encoder, bytes) = long();
        let mut reading = Box::pin(pieces(encoders.clone(), encoder, None, PATIENCE));
        assert!(reading.next().await.unwrap().is_ok());
        drop(reading);
        let_go(&bytes).await;
        assert_eq!(encoders.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_cut_off_and_keeps_nobody_waiting() {
        let (encoders, encoder, bytes) = long();
        let stuck = pieces(encoders.clone(), encoder, None, Duration::from_millis(20));
        let (_, encoder, _) = long();
        let whole: Vec<Bytes> = pieces(encoders, encoder, None, PATIENCE)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(whole.concat().len(), (4 << 20) * 6 + 2);
        let_go(&bytes).await;
        let rest: io::Result<Vec<Bytes>> = stuck.try_collect().await;
        assert!(rest.is_err(), "half an answer looks like a whole one");
    }
}
