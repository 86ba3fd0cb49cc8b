//! Asking for a secret on the terminal.

use crate::failure::Failure;
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

/// What Ctrl-C types.
const INTERRUPT: u8 = 3;

/// Puts the terminal back as it was.
struct Restore<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        // There is nothing else to try.
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Asks on the controlling terminal and shows nothing of what is typed. Ctrl-C arrives as a character, so that the
/// terminal never stays silent behind us.
pub(crate) fn hidden(question: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::said(format!("cannot ask on the terminal: {error}"));
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let mut terminal = terminal.map_err(failed)?;
    let before = termios::tcgetattr(&terminal).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes -= LocalModes::ECHO | LocalModes::ISIG;
    // It ends the line, or it would wait for the return key.
    silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
    termios::tcsetattr(&terminal, OptionalActions::Flush, &silent)
        .map_err(|error| failed(error.into()))?;
    let handle = terminal.try_clone().map_err(failed)?;
    let _restore = Restore {
        terminal: &handle,
        before,
    };
    terminal.write_all(question.as_bytes()).map_err(failed)?;
    let typed = line(&mut terminal);
    terminal.write_all(b"\n").map_err(failed)?;
    typed.map_err(failed)?.ok_or(Failure::Interrupted)
}

/// A line of input; `None` when there was a Ctrl-C in it.
fn line(input: &mut impl Read) -> io::Result<Option<String>> {
    let mut typed = Vec::new();
    let mut byte = [0];
    while input.read(&mut byte)? > 0 && byte[0] != b'\n' {
        if byte[0] == INTERRUPT {
            return Ok(None);
        }
        typed.push(byte[0]);
    }
    String::from_utf8(typed)
        .map(Some)
        .map_err(|_| io::Error::other("what was typed is not UTF-8"))
}
