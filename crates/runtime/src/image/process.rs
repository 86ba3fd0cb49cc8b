//! Runs the programs that make images, with their messages as progress.

use super::ImageError;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Lines of a program's messages that are kept for the error text.
const KEPT_LINES: usize = 6;
/// The longest line that is kept of a program's messages, in characters.
const KEPT_CHARACTERS: usize = 300;

/// The command `program` that dies with this thread, so that a killed daemon leaves no build running behind.
pub(super) fn tied_command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]);
    command.stdin(Stdio::null());
    command
}

/// Runs `command`, gives its standard output to `consume` and each line of its messages to `on_line`.
///
/// An exit status in `accepted` is success. `consume` runs on a thread of its own.
pub(super) fn run_producer<T: Send>(
    program: &'static str,
    fix: &'static str,
    mut command: Command,
    accepted: &[i32],
    on_line: &mut dyn FnMut(&str),
    consume: impl FnOnce(ChildStdout) -> Result<T, ImageError> + Send,
) -> Result<T, ImageError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| ImageError::Program {
        program,
        fix,
        source,
    })?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(gone(program, &mut child));
    };
    let mut tail = VecDeque::with_capacity(KEPT_LINES);
    let consumed = std::thread::scope(|scope| {
        let consumer = scope.spawn(move || consume(stdout));
        read_lines(stderr, &mut tail, on_line);
        consumer.join()
    });
    let status = child.wait().map_err(|source| ImageError::Program {
        program,
        fix,
        source,
    })?;
    let consumed = match consumed {
        Ok(result) => result?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    if status.code().is_some_and(|code| accepted.contains(&code)) {
        return Ok(consumed);
    }
    let output = Vec::from(tail).join("; ");
    Err(ImageError::ProgramFailed {
        program,
        status: status.to_string(),
        output,
    })
}

fn read_lines(
    stderr: impl std::io::Read,
    tail: &mut VecDeque<String>,
    on_line: &mut dyn FnMut(&str),
) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if tail.len() == KEPT_LINES {
            tail.pop_front();
        }
        tail.push_back(line.chars().take(KEPT_CHARACTERS).collect());
        on_line(line);
    }
}

fn gone(program: &'static str, child: &mut Child) -> ImageError {
    let status = child.wait().map(|s| s.to_string()).unwrap_or_default();
    ImageError::ProgramFailed {
        program,
        status,
        output: "its output could not be read".to_owned(),
    }
}
