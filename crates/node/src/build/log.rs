//! The log of a build: the output of its steps, in whole lines, to whoever listens; and its end, for the reason of a
//! failure.

use instavm_node_api::BuildProgress;
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// A longer line is cut into several.
const LONGEST_LINE: usize = 8 << 10;
/// What a build may log in all: a step that floods goes on unheard, except for its last lines.
const MOST: usize = 1 << 20;
/// Lines that are kept for the reason of a failure.
const KEPT_LINES: usize = 20;
/// And how much of them.
const KEPT_BYTES: usize = 4 << 10;

/// Where a build's output goes.
#[derive(Debug)]
pub(super) struct Log {
    progress: mpsc::Sender<BuildProgress>,
    step: &'static str,
    /// The beginning of a line, of standard output and of standard error.
    open: [Vec<u8>; 2],
    last: VecDeque<String>,
    written: usize,
    /// What came after the log was full.
    unheard: VecDeque<String>,
}

impl Log {
    pub(super) fn new(progress: mpsc::Sender<BuildProgress>) -> Self {
        Self {
            progress,
            step: "pull",
            open: Default::default(),
            last: VecDeque::new(),
            written: 0,
            unheard: VecDeque::new(),
        }
    }

    /// The step that is under way.
    pub(super) fn step(&self) -> &'static str {
        self.step
    }

    /// Begins a step with a line of our own.
    pub(super) async fn begin(&mut self, step: &'static str, title: &str) {
        self.end().await;
        self.step = step;
        self.last.clear();
        self.send(format!("{title}\n")).await;
    }

    /// Takes output of the step. Waits while the listener does not take it.
    pub(super) async fn output(&mut self, stream: usize, bytes: &[u8]) {
        let open = &mut self.open[stream];
        open.extend_from_slice(bytes);
        let mut text = String::new();
        while let Some(length) = line_in(open) {
            let line: Vec<u8> = open.drain(..length).collect();
            let line = String::from_utf8_lossy(&line);
            // A progress bar draws over itself: its last state tells all.
            let line = line.trim_end_matches(['\n', '\r']);
            let line = line.rsplit('\r').next().unwrap_or_default();
            keep(&mut self.last, line);
            text.push_str(line);
            text.push('\n');
        }
        if !text.is_empty() {
            self.send(text).await;
        }
    }

    /// Ends the step: lines without an end are lines too, and what was not heard is told in short.
    pub(super) async fn end(&mut self) {
        for stream in 0..self.open.len() {
            if !self.open[stream].is_empty() {
                self.output(stream, b"\n").await;
            }
        }
        if !self.unheard.is_empty() {
            let lines = std::mem::take(&mut self.unheard);
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            self.tell(format!("... the log is full; the last lines are:\n{text}"))
                .await;
        }
    }

    /// The last lines of the step.
    pub(super) fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    async fn send(&mut self, text: String) {
        if self.written + text.len() > MOST {
            text.lines().for_each(|line| keep(&mut self.unheard, line));
            return;
        }
        self.written += text.len();
        self.tell(text).await;
    }

    async fn tell(&self, log: String) {
        let step = self.step;
        // A listener that has gone away is no error.
        let _ = self.progress.send(BuildProgress { step, log }).await;
    }
}

/// The length of the first line, its end included.
fn line_in(bytes: &[u8]) -> Option<usize> {
    let head = &bytes[..bytes.len().min(LONGEST_LINE)];
    match head.iter().position(|&byte| byte == b'\n') {
        Some(at) => Some(at + 1),
        None => (bytes.len() >= LONGEST_LINE).then_some(LONGEST_LINE),
    }
}

fn keep(lines: &mut VecDeque<String>, line: &str) {
    lines.push_back(line.to_owned());
    let bytes = |lines: &VecDeque<String>| lines.iter().map(String::len).sum::<usize>();
    while lines.len() > KEPT_LINES || (lines.len() > 1 && bytes(lines) > KEPT_BYTES) {
        lines.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(say: impl AsyncFnOnce(&mut Log)) -> (String, Log) {
        let (progress, mut listener) = mpsc::channel(100_000);
        let mut log = Log::new(progress);
        say(&mut log).await;
        log.end().await;
        let mut text = String::new();
        while let Ok(told) = listener.try_recv() {
            assert!(told.log.ends_with('\n'), "{told:?}");
            text.push_str(&told.log);
        }
        (text, log)
    }

    #[tokio::test]
    async fn lines_are_whole_and_progress_bars_are_their_last_state() {
        let (text, log) = heard(async |log| {
            log.begin("apt", "apt: jq").await;
            log.output(0, b"Get").await;
            log.output(1, b"warning\n").await;
            log.output(0, b":1\r 10%\r100%\r\nopen \xff").await;
        })
        .await;
        assert_eq!(text, "apt: jq\nwarning\n100%\nopen \u{fffd}\n");
        assert_eq!(log.last_lines(), "warning\n100%\nopen \u{fffd}");
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_its_end_is_kept() {
        let (text, log) = heard(async |log| {
            for number in 0..300_000 {
                log.output(0, format!("line {number}\n").as_bytes()).await;
            }
            log.output(1, &vec![b'x'; LONGEST_LINE * 3]).await;
        })
        .await;
        assert!(
            text.len() < MOST + 2 * KEPT_BYTES + LONGEST_LINE,
            "{}",
            text.len()
        );
        assert!(text.starts_with("line 0\n") && text.contains("the log is full"));
        assert!(log.last_lines().ends_with('x'));
    }

    #[tokio::test]
    async fn nobody_listening_is_no_error() {
        let (progress, listener) = mpsc::channel(1);
        drop(listener);
        let mut log = Log::new(progress);
        log.begin("pull", "pull: a").await;
        log.output(0, b"b\n").await;
        assert_eq!(log.last_lines(), "b");
    }
}
