//! The interpreter's process: starting it and talking to it.

use crate::output::{Outbox, PeerGone};
use crate::process::{Ended, Program, Secret, signal};
use crate::shell;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

/// The interpreter's exit status when the code has closed its control socket.
const LOST: i32 = 70;

/// The programs that run in the VM's Python: compiled for some versions, each with its mark and length, and after a mark
/// that no version has, as text, with a NUL between them.
const PROGRAMS: &[&[u8]] = &[
    include_bytes!(concat!(env!("OUT_DIR"), "/compiled")),
    &[0; 8],
    include_bytes!("language.py"),
    b"\0",
    include_bytes!("interpreter.py"),
];
/// Reads the programs from descriptor 3 and runs them in modules of their own, so that `__main__` is the session's.
const BOOTSTRAP: &str = "\
import marshal, sys
d = open(3, 'rb', 0).readall()
v = getattr(sys.modules.get('_frozen_importlib_external'), 'MAGIC_NUMBER', b'')
while d[:4] not in (v, bytes(4)):
    d = d[8 + int.from_bytes(d[4:8], 'little'):]
if d[:4] == v:
    c = marshal.loads(d[8:])
else:
    c = [compile(t, '<instavm>', 'exec') for t in d[8:].split(b'\\0')]
for n, c in zip(('_instavm_language', '_instavm'), c):
    m = sys.modules[n] = type(sys)(n)
    exec(c, m.__dict__)
";
/// Looks at the language of a text alone.
const CHECK: &str = "m = {'__name__': 'language'}
exec(compile(open(3, 'rb').read(), '<instavm>', 'exec'), m)
m['check']()
";
/// The exit status of [`CHECK`] when the text is for a shell.
const FOR_A_SHELL: i32 = 3;

const EXECUTE: u8 = 1;
const ENVIRONMENT: u8 = 2;
const WORKDIR: u8 = 3;
const ANSWER_BYTES: usize = 21;

/// What the interpreter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is ready to execute.
    Ready,
    /// The execution with this number begins: it cannot be given to another interpreter any more.
    Begun { sequence: u64 },
    /// The execution with this number has ended.
    Finished {
        sequence: u64,
        exit_code: i32,
        cpu_micros: u64,
    },
    /// The text of the execution with this number is for a shell.
    Shell { sequence: u64 },
    /// The language of the execution with this number was open; it is Python.
    Python { sequence: u64 },
}

/// The state of the control socket after reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// More may come.
    Open,
    /// Nothing more will come.
    Closed,
    /// What came makes no sense: the code has written to it.
    Nonsense,
}

/// A running interpreter.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) number: u64,
    pub(crate) pid: i32,
    pub(crate) control: OwnedFd,
    target: OwnedFd,
    pub(crate) outbox: Outbox,
    inbox: Vec<u8>,
    pub(crate) ready: bool,
    pub(crate) started: Instant,
    /// How many it was given: after the first there is something to lose.
    pub(crate) executions: u64,
    /// The state of the VM's identity that it knows.
    pub(crate) identity: u64,
    /// Its standard output and error.
    pub(crate) streams: [u64; 2],
    /// Processor time that was accounted for.
    pub(crate) cpu_micros: u64,
    /// Why the agent ended it.
    pub(crate) ended_because: Option<&'static str>,
}

/// A new interpreter.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) control: OwnedFd,
    target: OwnedFd,
}

/// Starts an interpreter; also gives the pipes with its standard output and error.
pub(crate) fn start(
    workdir: &Path,
    environment: &BTreeMap<&str, &str>,
    null: OwnedFd,
    secret: &Secret,
) -> io::Result<(Started, [OwnedFd; 2])> {
    let programs = in_memory("interpreter", PROGRAMS)?;
    let target = memfd_create("interrupt", MemfdFlags::CLOEXEC)?;
    shell::write_all(&target, &[0; 8])?;
    let flags = SocketFlags::CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::io::ioctl_fionbio(&control, true)?;
    let (stdout, stdout_end) = output_pipe()?;
    let (stderr, stderr_end) = output_pipe()?;
    let descriptors = vec![
        null,
        stdout_end,
        stderr_end,
        programs,
        theirs,
        target.try_clone()?,
    ];
    let program = Program::new("python3", &["-c", BOOTSTRAP], workdir, descriptors)?
        .environment(environment.iter().map(|(name, value)| (*name, *value)))
        .oom_score(c"300")
        .dies_with_agent();
    let pid = program.spawn(secret)?;
    Ok((
        Started {
            pid,
            control,
            target,
        },
        [stdout, stderr],
    ))
}

/// Starts a program that looks at the language of a text beside an interpreter that is busy.
pub(crate) fn start_check(
    code: &str,
    workdir: &Path,
    environment: &BTreeMap<&str, &str>,
    null: &OwnedFd,
    secret: &Secret,
) -> io::Result<i32> {
    let descriptors = vec![
        in_memory("text", &[code.as_bytes()])?,
        null.try_clone()?,
        null.try_clone()?,
        in_memory("language", &[include_bytes!("language.py")])?,
    ];
    let arguments = ["-I", "-S", "-c", CHECK];
    Program::new("python3", &arguments, workdir, descriptors)?
        .environment(environment.iter().map(|(name, value)| (*name, *value)))
        .dies_with_agent()
        .spawn(secret)
}

/// Has the program that looks at the language of a text found that it is for a shell?
pub(crate) fn is_for_a_shell(ended: &Ended) -> bool {
    ended.code() == FOR_A_SHELL
}

/// A file in memory, to be read from its beginning.
fn in_memory(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    for part in parts {
        shell::write_all(&file, part)?;
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

/// A pipe whose reading end does not block.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

impl Worker {
    pub(crate) fn new(number: u64, started: Started, streams: [u64; 2]) -> Worker {
        Worker {
            number,
            pid: started.pid,
            control: started.control,
            target: started.target,
            outbox: Outbox::default(),
            inbox: Vec::new(),
            ready: false,
            started: Instant::now(),
            executions: 0,
            identity: 0,
            streams,
            cpu_micros: 0,
            ended_because: None,
        }
    }

    /// Asks it to run a text; with `detect` it may also find that the text is for a shell.
    pub(crate) fn execute(&mut self, sequence: u64, detect: bool, code: &str) {
        let mut payload = Vec::with_capacity(14 + code.len());
        payload.extend_from_slice(&length(10 + code.len()));
        payload.push(EXECUTE);
        payload.extend_from_slice(&sequence.to_le_bytes());
        payload.push(u8::from(detect));
        payload.extend_from_slice(code.as_bytes());
        self.outbox.push(payload);
    }

    /// Tells it the session's environment, and where executions start.
    pub(crate) fn set_identity(
        &mut self,
        state: u64,
        variables: &BTreeMap<String, String>,
        workdir: &Path,
    ) {
        self.identity = state;
        let usable = variables.iter().filter(|(name, value)| {
            !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
        });
        let text: Vec<String> = usable
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.tell(ENVIRONMENT, text.join("\0").as_bytes());
        self.tell(WORKDIR, workdir.as_os_str().as_bytes());
    }

    fn tell(&mut self, what: u8, text: &[u8]) {
        let mut payload = length(1 + text.len()).to_vec();
        payload.push(what);
        payload.extend_from_slice(text);
        self.outbox.push(payload);
    }

    /// Raises `KeyboardInterrupt` in an execution, and in no later one.
    pub(crate) fn interrupt(&self, sequence: u64) {
        // A file in memory; without the number the interpreter takes the signal as one for whatever it runs.
        let _ = rustix::io::pwrite(&self.target, &sequence.to_le_bytes(), 0);
        signal(self.pid, libc::SIGINT);
    }

    pub(crate) fn flush(&mut self) -> Result<(), PeerGone> {
        self.outbox.flush(self.control.as_fd())
    }

    /// Takes what the interpreter has said.
    pub(crate) fn answers(&mut self) -> (Vec<Answer>, Line) {
        let mut buffer = [0; 256];
        let mut line = loop {
            match rustix::io::read(&self.control, &mut buffer) {
                Ok(0) => break Line::Closed,
                Ok(read) => self.inbox.extend_from_slice(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Line::Open,
                Err(_) => break Line::Closed,
            }
            if self.inbox.len() > 64 * ANSWER_BYTES {
                break Line::Nonsense;
            }
        };
        let whole = self.inbox.len() / ANSWER_BYTES * ANSWER_BYTES;
        let frames: Vec<u8> = self.inbox.drain(..whole).collect();
        let mut answers = Vec::new();
        for frame in frames.chunks_exact(ANSWER_BYTES) {
            // What came before the nonsense still counts.
            let Some(answer) = parse(frame) else {
                line = Line::Nonsense;
                break;
            };
            answers.push(answer);
        }
        (answers, line)
    }
}

/// Why an interpreter is gone, for the user.
pub(crate) fn reason(ended: &Ended, because: Option<&str>) -> String {
    match (because, ended.signal()) {
        (Some(because), _) => because.to_owned(),
        (None, Some(libc::SIGKILL)) => {
            "the interpreter was killed (SIGKILL): it ran out of memory, or the code did it"
                .to_owned()
        }
        (None, Some(libc::SIGSEGV)) => "the interpreter crashed: segmentation fault".to_owned(),
        (None, Some(libc::SIGABRT)) => "the interpreter crashed: it aborted".to_owned(),
        (None, Some(signal)) => format!("the interpreter was ended by signal {signal}"),
        (None, None) if ended.code() == LOST => {
            "the code closed the descriptors that the interpreter needs".to_owned()
        }
        (None, None) => format!(
            "the code ended the interpreter with status {}",
            ended.code()
        ),
    }
}

fn length(bytes: usize) -> [u8; 4] {
    // A text comes in a frame of at most 64 MiB.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn parse(frame: &[u8]) -> Option<Answer> {
    let (kind, rest) = frame.split_first()?;
    let (sequence, rest) = rest.split_first_chunk()?;
    let (exit_code, rest) = rest.split_first_chunk()?;
    let cpu_micros = rest.first_chunk()?;
    let sequence = u64::from_le_bytes(*sequence);
    match kind {
        b'R' => Some(Answer::Ready),
        b'F' => Some(Answer::Finished {
            sequence,
            exit_code: i32::from_le_bytes(*exit_code),
            cpu_micros: u64::from_le_bytes(*cpu_micros),
        }),
        b'B' => Some(Answer::Begun { sequence }),
        b'S' => Some(Answer::Shell { sequence }),
        b'P' => Some(Answer::Python { sequence }),
        _ => None,
    }
}
