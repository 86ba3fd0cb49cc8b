//! What a broken or hostile peer can do: nothing to others.

mod client;

use client::{Agent, DEADLINE, TOKEN};
use instavm_agent_api::{
    Control, Event, FailureKind, GENERATION, Hello, Language, Request, Welcome,
};
use std::io::{Read, Write};

#[test]
fn a_wrong_token_ends_the_connection_without_an_answer() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let mut token = TOKEN;
    token[31] ^= 1;
    connection.send(&Hello {
        generation: GENERATION,
        token,
    });
    assert!(connection.receive::<Welcome>().is_none());
    assert_eq!(agent.request(Request::Ping).last(), Event::Done);
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let agent = Agent::start();
    for garbage in [
        &[0xff; 64][..],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 9],
        &[0, 1, 0, 0][..],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut connection = agent.connect();
        connection.stream.write_all(garbage).expect("room");
        connection
            .stream
            .shutdown(std::net::Shutdown::Write)
            .expect("a shutdown");
        assert!(connection.receive::<Welcome>().is_none(), "{garbage:?}");
    }
    // A request that is none, and one that announces more than anything may have.
    for garbage in [&[3, 0, 0, 0, 200, 1, 2][..], &[0xff, 0xff, 0xff, 0x7f][..]] {
        let mut connection = agent.connect();
        connection.send(&Hello {
            generation: GENERATION,
            token: TOKEN,
        });
        connection.stream.write_all(garbage).expect("room");
        assert!(connection.receive::<Welcome>().is_some());
        assert!(connection.receive::<Event>().is_none(), "{garbage:?}");
    }
    assert_eq!(agent.request(Request::Ping).last(), Event::Done);
}

#[test]
fn a_request_may_come_in_pieces() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let mut bytes = instavm_agent_api::frame::encode(&Hello {
        generation: GENERATION,
        token: TOKEN,
    })
    .expect("a frame");
    bytes.extend(instavm_agent_api::frame::encode(&Request::Ping).expect("a frame"));
    for byte in bytes {
        connection.stream.write_all(&[byte]).expect("room");
    }
    assert!(connection.receive::<Welcome>().is_some());
    assert_eq!(connection.last(), Event::Done);
}

#[test]
fn content_where_none_belongs_ends_the_connection() {
    let agent = Agent::start();
    let mut connection = agent.execute(Some(Language::Bash), "sleep 1000");
    connection.send(&Control::Data(vec![0; 100]));
    assert!(connection.receive::<Event>().is_none());
}

#[test]
fn a_reader_that_does_not_read_costs_little_and_blocks_nobody() {
    let agent = Agent::start();
    let mut idle = agent.execute(
        Some(Language::Bash),
        "head -c 100000000 /dev/zero; echo end >&2",
    );
    let mut idle_python = agent.execute(Some(Language::Python), "print('x' * 50_000_000)");
    for _ in 0..20 {
        assert_eq!(agent.bash("echo fine").good(), "fine\n");
    }
    let memory = resident_bytes(agent.pid());
    assert!(memory < 16 << 20, "{memory} bytes");
    let outcome = idle.outcome();
    assert_eq!(
        (outcome.stdout.len(), outcome.err().as_str()),
        (100_000_000, "end\n")
    );
    assert_eq!(idle_python.outcome().stdout.len(), 50_000_001);
}

#[allow(clippy::expect_used, reason = "a test that cannot go on fails")]
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon"))
        .expect("its memory");
    line.split_ascii_whitespace()
        .nth(1)
        .expect("a number")
        .parse::<u64>()
        .expect("a number")
        * 1024
}

#[test]
fn a_thousand_connections_are_served() {
    let agent = Agent::start();
    let silent: Vec<_> = (0..500).map(|_| agent.connect()).collect();
    let asking: Vec<_> = (0..500).map(|_| agent.request(Request::Ping)).collect();
    for mut connection in asking {
        assert_eq!(connection.last(), Event::Done);
    }
    assert_eq!(agent.bash("echo fine").good(), "fine\n");
    drop(silent);
}

#[test]
fn a_large_request_is_taken() {
    let agent = Agent::start();
    let code = format!("text = '''{}'''\nprint(len(text))", "x".repeat(12_000_000));
    assert_eq!(agent.python(&code).good(), "12000000\n");
    let memory = resident_bytes(agent.pid());
    assert!(memory < 8 << 20, "{memory} bytes are still held");
}

#[test]
fn an_operation_ends_with_its_connection_closed() {
    let agent = Agent::start();
    let mut connection = agent.request(Request::Ping);
    assert_eq!(connection.last(), Event::Done);
    connection
        .stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a timeout");
    assert_eq!(connection.stream.read(&mut [0; 1]).expect("the end"), 0);
}

#[test]
fn orphans_are_no_bother() {
    let agent = Agent::start();
    let code = "for i in $(seq 200); do (sh -c 'exit 1' &); done; echo done";
    assert_eq!(agent.bash(code).good(), "done\n");
    assert_eq!(agent.request(Request::Ping).last(), Event::Done);
}

#[test]
fn running_out_of_descriptors_is_said_and_got_over() {
    let agent = Agent::start_with_descriptors(40);
    agent.python("kept = 1").good();
    let mut held: Vec<_> = (0..100).map(|_| agent.connect()).collect();
    // The first ones are accepted, so this one of them can ask for more than there is.
    let mut asking = held.swap_remove(0);
    asking.send(&Hello {
        generation: GENERATION,
        token: TOKEN,
    });
    asking.send(&Request::Execute(client::execution(
        "x",
        Some(Language::Bash),
        "echo",
        false,
    )));
    assert!(asking.receive::<Welcome>().is_some());
    let Event::Failed(failure) = asking.last() else {
        panic!("a script without descriptors for it");
    };
    assert_eq!(failure.kind, FailureKind::Exhausted);
    assert!(failure.message.contains("open files"), "{failure:?}");
    drop(held);
    assert_eq!(agent.bash("echo fine").good(), "fine\n");
    assert_eq!(agent.python("print(kept)").good(), "1\n");
}
