//! What a command is doing, on standard error: a rail on a terminal, a line a step elsewhere, nothing with `--json`.

use crate::failure::Failure;
use crate::output;
use clap::CommandFactory;
use rustix::termios;
use std::future::Future;
use std::io::{self, Write};
use std::time::Duration;

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME: Duration = Duration::from_millis(80);
const HIDE_CURSOR: &str = "\u{1b}[?25l";
const SHOW_CURSOR: &str = "\u{1b}[?25h";
const ERASE_LINE: &str = "\r\u{1b}[2K";
/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;

/// How often a call is made that fails for a reason that may pass.
const ATTEMPTS: u32 = 3;
/// The pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    Plain,
    Rail,
}

impl Style {
    fn of(json: bool) -> Style {
        if json {
            Style::Silent
        } else if output::has_colours(&io::stderr()) {
            Style::Rail
        } else {
            Style::Plain
        }
    }
}

/// The steps of one command.
pub(crate) struct Progress {
    style: Style,
    begun: bool,
    /// Whether the last line is one that only goes on.
    joined: bool,
    failed: bool,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Progress {
        Progress {
            style: Style::of(json),
            begun: false,
            joined: false,
            failed: false,
        }
    }

    /// Shows a step while it is worked on, and what became of it.
    pub(crate) async fn step<T>(
        mut self,
        title: &str,
        work: impl Future<Output = Result<T, instavm::Error>>,
    ) -> Result<T, Failure> {
        let result = self.show(title, work).await;
        self.end(title, result)
    }

    /// A step that is tried again when it fails for a reason that may pass.
    pub(crate) async fn step_again<T, F>(
        mut self,
        title: &str,
        work: impl Fn() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, instavm::Error>>,
    {
        let mut shown = title.to_owned();
        let mut attempt = 1;
        loop {
            let last = attempt == ATTEMPTS;
            let one = async {
                let result = work().await;
                let again = !last && matches!(result, Err(instavm::Error::Network { .. }));
                if again {
                    tokio::time::sleep(PAUSE * (1 << (attempt - 1))).await;
                }
                (result, again)
            };
            let (result, again) = self.show(&shown, one).await;
            if !again {
                return self.end(&shown, result);
            }
            self.commit(&shown, true);
            attempt += 1;
            shown = format!("{title} (retry {attempt}/{ATTEMPTS})");
        }
    }

    async fn show<T>(&mut self, title: &str, work: impl Future<Output = T>) -> T {
        self.begin();
        match self.style {
            Style::Silent => work.await,
            Style::Plain => {
                output::complain(&format!("{title}..."));
                work.await
            }
            Style::Rail => {
                let mut work = std::pin::pin!(work);
                let mut line = Transient::new(title);
                let mut clock = tokio::time::interval(FRAME);
                loop {
                    tokio::select! {
                        biased;
                        done = &mut work => return done,
                        _ = clock.tick() => line.next(),
                    }
                }
            }
        }
    }

    fn end<T>(mut self, title: &str, result: Result<T, instavm::Error>) -> Result<T, Failure> {
        self.failed = result.is_err();
        self.commit(title, result.is_ok());
        let result = result.map_err(|error| {
            if self.style != Style::Silent {
                output::complain(&format!("  ↳ {}", crate::failure::raw(&error)));
            }
            Failure::from(error)
        });
        self.close();
        result
    }

    fn begin(&mut self) {
        if self.style == Style::Rail && !self.begun {
            self.begun = true;
            say(&format!("{} \u{1b}[1m{}\u{1b}[0m\n", grey("┌"), path()));
            self.join();
        }
    }

    /// A step is over.
    fn commit(&mut self, title: &str, good: bool) {
        if self.style != Style::Rail {
            return;
        }
        self.joined = false;
        say(&if good {
            format!("{} {}\n", grey("◆"), coloured("32", title))
        } else {
            format!("{}\n", coloured("31", &format!("■ {title}")))
        });
        self.join();
    }

    fn join(&mut self) {
        if !self.joined {
            self.joined = true;
            say(&format!("{}\n", grey("│")));
        }
    }

    fn close(&mut self) {
        if self.style == Style::Rail && self.begun {
            self.join();
            let word = if self.failed { "Failed" } else { "Done" };
            say(&format!("{} {}\n", grey("└"), coloured("36", word)));
        }
    }
}

/// The line with the spinner. It goes away with its value, also when the command is interrupted.
struct Transient {
    title: String,
    frame: usize,
}

impl Transient {
    fn new(title: &str) -> Transient {
        let room = columns().saturating_sub(4);
        say(HIDE_CURSOR);
        Transient {
            title: title.chars().take(room).collect(),
            frame: 0,
        }
    }

    fn next(&mut self) {
        let frame = FRAMES[self.frame % FRAMES.len()];
        self.frame += 1;
        say(&format!(
            "{ERASE_LINE}{}  {}",
            coloured("36", frame),
            grey(&self.title)
        ));
    }
}

impl Drop for Transient {
    fn drop(&mut self) {
        say(&format!("{ERASE_LINE}{SHOW_CURSOR}"));
    }
}

fn columns() -> usize {
    termios::tcgetwinsize(io::stderr())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(COLUMNS)
}

/// Text to standard error, at once.
fn say(text: &str) {
    let mut stderr = io::stderr().lock();
    // When this fails there is nowhere left to say so.
    let _ = stderr.write_all(text.as_bytes());
}

fn coloured(code: &str, text: &str) -> String {
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Grey where there are 256 colours, else white.
fn grey(text: &str) -> String {
    let has = |name: &str, part: &str| {
        std::env::var(name).is_ok_and(|value| !value.is_empty() && value.contains(part))
    };
    let many = has("COLORTERM", "") || has("TERM", "256color") || has("TERM", "kitty");
    coloured(if many { "38;5;244" } else { "37" }, text)
}

/// The words of the command as they were typed, without what it is about.
fn path() -> String {
    let mut root = crate::arguments::Arguments::command();
    root.build();
    let mut command = &root;
    let mut path = "instavm".to_owned();
    for word in std::env::args().skip(1) {
        let Some(next) = command.find_subcommand(&word) else {
            break;
        };
        command = next;
        path = format!("{path} {word}");
    }
    path
}
