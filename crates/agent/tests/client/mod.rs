//! A blocking client of the agent, and the agent itself as a process of the host.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use instavm_agent_api::frame::{self, Decoder};
use instavm_agent_api::{
    Control, Event, Execute, Failure, Finished, GENERATION, Hello, Language, Request, Welcome,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Nothing that a test waits for takes longer.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const TOKEN: [u8; 32] = [7; 32];

pub struct Agent {
    process: Child,
    directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Agent {
        Agent::start_with(Command::new(env!("CARGO_BIN_EXE_instavm-agent")))
    }

    /// An agent that may have so many descriptors.
    pub fn start_with_descriptors(most: u32) -> Agent {
        let mut command = Command::new("bash");
        let script = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_instavm-agent")]);
        Agent::start_with(command)
    }

    /// An agent that can change nothing of the host but its own directory: for requests that nobody has chosen.
    pub fn start_confined() -> Agent {
        let script = r#"set -e
            directory=$(dirname "$5")
            mount --bind "$directory" "$directory"
            mount -o remount,bind,ro /
            cd "$directory"
            exec "$0" "$@""#;
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--uts", "--net", "--mount"])
            .args(["bash", "-c", script, env!("CARGO_BIN_EXE_instavm-agent")]);
        Agent::start_with(command)
    }

    fn start_with(mut command: Command) -> Agent {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let workdir = directory.path().join("app");
        std::fs::create_dir(&workdir).expect("a working directory");
        let mut process = command
            .args(["serve", "--token-hex", &"07".repeat(32), "--socket"])
            .arg(directory.path().join("agent"))
            .arg("--workdir")
            .arg(&workdir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("its ready line");
        assert_eq!(line, "ready\n");
        Agent { process, directory }
    }

    pub fn workdir(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A connection that has not said anything.
    pub fn connect(&self) -> Connection {
        let stream =
            UnixStream::connect(self.directory.path().join("agent")).expect("a connection");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a read timeout");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a write timeout");
        Connection {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// A connection with its request on the way.
    pub fn request(&self, request: Request) -> Connection {
        let mut connection = self.connect();
        connection.send(&Hello {
            generation: GENERATION,
            token: TOKEN,
        });
        connection.send(&request);
        let welcome: Welcome = connection.receive().expect("a welcome");
        assert_eq!(welcome.generation, GENERATION);
        connection
    }

    pub fn execute(&self, language: Option<Language>, code: &str) -> Connection {
        self.request(Request::Execute(execution("x", language, code, false)))
    }

    pub fn run(&self, language: Option<Language>, code: &str) -> Outcome {
        self.execute(language, code).outcome()
    }

    pub fn python(&self, code: &str) -> Outcome {
        self.run(Some(Language::Python), code)
    }

    pub fn bash(&self, code: &str) -> Outcome {
        self.run(Some(Language::Bash), code)
    }

    pub fn detach(&self, id: &str, language: Option<Language>, code: &str) {
        let mut connection = self.request(Request::Execute(execution(id, language, code, true)));
        assert_eq!(connection.last(), Event::Done);
    }

    pub fn attach(&self, id: &str) -> Connection {
        self.request(Request::Attach { id: id.to_owned() })
    }

    pub fn read_file(&self, path: &str) -> Result<(u64, u32, Vec<u8>), Failure> {
        let mut connection = self.request(Request::ReadFile {
            path: path.to_owned(),
        });
        let mut content = Vec::new();
        let mut about = None;
        loop {
            match connection.event() {
                Event::File { size, mode } => about = Some((size, mode)),
                Event::Data(bytes) => content.extend(bytes),
                Event::Done => {
                    let (size, mode) = about.expect("the file's size before its end");
                    return Ok((size, mode, content));
                }
                Event::Failed(failure) => return Err(failure),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub fn write_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<u64, Failure> {
        let mut connection = self.request(Request::WriteFile {
            path: path.to_owned(),
            mode,
        });
        for chunk in content.chunks(frame::CHUNK) {
            connection.send(&Control::Data(chunk.to_vec()));
        }
        connection.send(&Control::End);
        match connection.last() {
            Event::Written { size } => Ok(size),
            Event::Failed(failure) => Err(failure),
            other => panic!("unexpected {other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It is gone or going; the test has said what there is to say.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn execution(id: &str, language: Option<Language>, code: &str, detached: bool) -> Execute {
    Execute {
        id: id.to_owned(),
        language,
        code: code.to_owned(),
        env: BTreeMap::new(),
        detached,
    }
}

pub struct Connection {
    pub stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    /// Another handle on the same connection, to write on while this one reads.
    pub fn twin(of: &Connection) -> Connection {
        Connection {
            stream: of.stream.try_clone().expect("a descriptor"),
            decoder: Decoder::default(),
        }
    }

    pub fn send<T: serde::Serialize>(&mut self, message: &T) {
        self.stream
            .write_all(&frame::encode(message).expect("a frame"))
            .expect("room for it");
    }

    /// The next message, or `None` when the agent has closed the connection.
    pub fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            if let Some(message) = self.decoder.pop().expect("a message of the protocol") {
                return Some(message);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no event before the deadline: {error}"),
            }
        }
    }

    pub fn event(&mut self) -> Event {
        self.receive()
            .expect("an event before the end of the connection")
    }

    /// The operation's last event, without those before.
    pub fn last(&mut self) -> Event {
        loop {
            let event = self.event();
            if event.is_last() {
                return event;
            }
        }
    }

    /// Reads until standard output has the text.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(text) {
            match self.event() {
                Event::Stdout(bytes) => all.extend(bytes),
                other => panic!("{other:?} before {text:?}"),
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Reads until one of the streams has the text.
    pub fn wait_for_either(&mut self, text: &str) {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(text) {
            match self.event() {
                Event::Stdout(bytes) | Event::Stderr(bytes) => all.extend(bytes),
                other => panic!("{other:?} before {text:?}"),
            }
        }
    }

    pub fn outcome(&mut self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.event() {
                Event::Stdout(bytes) => stdout.extend(bytes),
                Event::Stderr(bytes) => stderr.extend(bytes),
                Event::Finished(finished) => {
                    assert!(
                        self.receive::<Event>().is_none(),
                        "something after the last event"
                    );
                    return Outcome {
                        stdout,
                        stderr,
                        finished,
                    };
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub finished: Finished,
}

impl Outcome {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn code(&self) -> i32 {
        self.finished.exit_code
    }

    /// The text of a run that went well.
    #[track_caller]
    pub fn good(&self) -> String {
        assert_eq!((self.code(), self.err().as_str()), (0, ""), "{self:?}");
        self.out()
    }
}

/// Waits until a process has ended.
#[track_caller]
pub fn wait_for_end(pid: &str) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let number = pid.parse().expect("a process id");
    let pid = Pid::from_raw(number).expect("a process id");
    // One that is reaped already has no descriptor.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let mut events = [PollFd::new(&process, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: DEADLINE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let ended = poll(&mut events, Some(&deadline)).expect("poll works");
    assert_eq!(ended, 1, "process {number} still runs");
}
