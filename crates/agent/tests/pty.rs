//! Terminals, through the agent's socket.

mod client;

use client::{Agent, Connection};
use instavm_agent_api::{Control, Event, FailureKind, OpenPty, PtyState, Request};
use std::collections::BTreeMap;

fn open(agent: &Agent, id: &str, program: &[&str]) -> Event {
    let open = OpenPty {
        id: id.to_owned(),
        program: program.iter().map(|word| (*word).to_owned()).collect(),
        cols: 80,
        rows: 24,
        env: BTreeMap::from([("PS1".to_owned(), "ready> ".to_owned())]),
    };
    agent.request(Request::OpenPty(open)).last()
}

fn attach(agent: &Agent, id: &str) -> Connection {
    agent.request(Request::AttachPty { id: id.to_owned() })
}

fn states(agent: &Agent) -> Vec<PtyState> {
    match agent.request(Request::Ptys).last() {
        Event::Ptys(all) => all,
        other => panic!("unexpected {other:?}"),
    }
}

fn close(agent: &Agent, id: &str) {
    let closed = agent
        .request(Request::ClosePty { id: id.to_owned() })
        .last();
    assert_eq!(closed, Event::Done);
}

fn typed(connection: &mut Connection, text: &str) {
    connection.send(&Control::Data(text.as_bytes().to_vec()));
}

/// All output up to the end, and the exit code.
fn rest(connection: &mut Connection) -> (String, i32) {
    let mut all = Vec::new();
    loop {
        match connection.event() {
            Event::Stdout(bytes) => all.extend(bytes),
            Event::Exited { exit_code } => {
                return (String::from_utf8_lossy(&all).into_owned(), exit_code);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn a_shell_takes_what_is_typed_and_tells_how_it_ended() {
    let agent = Agent::start();
    assert_eq!(open(&agent, "a", &["sh", "-i"]), Event::Done);
    let mut terminal = attach(&agent, "a");
    terminal.wait_for("ready> ");
    typed(&mut terminal, "tty; stty size; echo $TERM; exit 7\n");
    let (out, code) = rest(&mut terminal);
    assert!(out.contains("/dev/pts/"), "{out}");
    assert!(out.contains("24 80\r\nxterm-256color\r\n"), "{out}");
    assert_eq!(code, 7);
    assert_eq!(states(&agent)[0].exit_code, Some(7));
    close(&agent, "a");
    assert_eq!(states(&agent), Vec::new());
}

#[test]
fn output_from_before_the_first_connection_is_kept() {
    let agent = Agent::start();
    assert_eq!(
        open(&agent, "a", &["sh", "-c", "seq 5000; exit 3"]),
        Event::Done
    );
    let (out, code) = rest(&mut attach(&agent, "a"));
    let lines: Vec<String> = (1..=5000).map(|n| n.to_string()).collect();
    assert_eq!(out, lines.join("\r\n") + "\r\n");
    assert_eq!(code, 3);
}

#[test]
fn the_size_follows_and_the_program_hears_of_it() {
    let agent = Agent::start();
    // A shell may miss a signal between looking for it and waiting.
    let script = "import os, signal\nof = {signal.SIGWINCH}\nsignal.pthread_sigmask(signal.SIG_BLOCK, of)\n\
        print('begun', flush=True)\nwhile True:\n signal.sigwait(of)\n size = os.get_terminal_size()\n \
        print(size.lines, size.columns, flush=True)";
    assert_eq!(open(&agent, "a", &["python3", "-c", script]), Event::Done);
    let mut terminal = attach(&agent, "a");
    terminal.wait_for("begun");
    terminal.send(&Control::Resize {
        cols: 100,
        rows: 40,
    });
    terminal.wait_for("40 100");
    let resize = Request::ResizePty {
        id: "a".to_owned(),
        cols: 33,
        rows: 11,
    };
    assert_eq!(agent.request(resize).last(), Event::Done);
    terminal.wait_for("11 33");
    let state = &states(&agent)[0];
    assert_eq!((state.cols, state.rows, state.attached), (33, 11, true));
}

#[test]
fn ctrl_c_interrupts_what_runs_in_the_foreground() {
    let agent = Agent::start();
    let script = "import time\ntry:\n print('on', flush=True)\n time.sleep(1000)\n\
        except KeyboardInterrupt:\n print('interrupted', flush=True)\n print(input())";
    assert_eq!(open(&agent, "a", &["python3", "-c", script]), Event::Done);
    let mut terminal = attach(&agent, "a");
    terminal.wait_for("on\r\n");
    typed(&mut terminal, "\x03");
    terminal.wait_for("interrupted");
    typed(&mut terminal, "still\n");
    let (out, code) = rest(&mut terminal);
    assert!(out.ends_with("still\r\nstill\r\n"), "{out}");
    assert_eq!(code, 0);
}

#[test]
fn another_connection_takes_over_and_a_lost_one_may_come_back() {
    let agent = Agent::start();
    assert_eq!(open(&agent, "a", &["sh", "-i"]), Event::Done);
    let mut first = attach(&agent, "a");
    first.wait_for("ready> ");
    let mut second = attach(&agent, "a");
    assert!(
        first.receive::<Event>().is_none(),
        "the first one is closed"
    );
    typed(&mut second, "echo one\n");
    second.wait_for("\r\none\r\n");
    drop(second);
    let mut third = attach(&agent, "a");
    typed(&mut third, "echo two\n");
    third.wait_for("\r\ntwo\r\n");
}

#[test]
fn a_program_that_writes_without_end_waits_for_its_reader() {
    let agent = Agent::start();
    assert_eq!(open(&agent, "a", &["sh", "-c", "yes"]), Event::Done);
    // The backlog fills, and the program stands still; everything else goes on.
    assert_eq!(agent.bash("echo well").good(), "well\n");
    let mut terminal = attach(&agent, "a");
    let mut read = 0;
    while read < 8 << 20 {
        match terminal.event() {
            Event::Stdout(bytes) => read += bytes.len(),
            other => panic!("unexpected {other:?}"),
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 32 << 10, "{resident}");
    close(&agent, "a");
}

#[test]
fn input_that_nobody_reads_is_held_back() {
    let agent = Agent::start();
    // Raw, so that the terminal keeps what it has and refuses the rest.
    let script = "stty raw -echo; echo begun; read go < fifo; head -c 1000000 | cksum; sleep 1000";
    let setup = "mkfifo fifo";
    agent.bash(setup).good();
    assert_eq!(open(&agent, "a", &["bash", "-c", script]), Event::Done);
    let mut terminal = attach(&agent, "a");
    terminal.wait_for("begun");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut writing = Connection::twin(&terminal);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        for chunk in sent.chunks(60_000) {
            writing.send(&Control::Data(chunk.to_vec()));
        }
    });
    assert_eq!(agent.bash("echo go > fifo; echo well").good(), "well\n");
    writer.join().unwrap();
    let file = agent.workdir().join("bytes");
    std::fs::write(&file, &bytes).unwrap();
    let wanted = agent.bash("cksum < bytes").good();
    terminal.wait_for(wanted.trim());
}

#[test]
fn closing_hangs_up_and_ends_who_does_not_listen() {
    let agent = Agent::start();
    let script = "trap '' HUP; echo pid $$; while :; do sleep 1000; done";
    assert_eq!(open(&agent, "a", &["bash", "-c", script]), Event::Done);
    let out = attach(&agent, "a").wait_for("\r\n");
    let pid = out.trim().rsplit(' ').next().unwrap().to_owned();
    close(&agent, "a");
    client::wait_for_end(&pid);
    close(&agent, "a");
}

#[test]
fn what_cannot_be_is_refused() {
    let agent = Agent::start();
    assert_eq!(open(&agent, "a", &["sh"]), Event::Done);
    let kind = |event| match event {
        Event::Failed(failure) => failure.kind,
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!(kind(open(&agent, "a", &["sh"])), FailureKind::Exists);
    assert_eq!(kind(open(&agent, "b", &[])), FailureKind::Unsuitable);
    assert_eq!(kind(attach(&agent, "c").last()), FailureKind::NotFound);
    for number in 1..64 {
        assert_eq!(open(&agent, &number.to_string(), &["sh"]), Event::Done);
    }
    assert_eq!(kind(open(&agent, "d", &["sh"])), FailureKind::Exhausted);
    close(&agent, "a");
    assert_eq!(open(&agent, "e", &["no-such-program"]), Event::Done);
    let (out, code) = rest(&mut attach(&agent, "e"));
    assert_eq!(
        (out.as_str(), code),
        ("no-such-program: command not found\r\n", 127)
    );
}
