//! Frames that nobody would send, to the real agent: whatever comes on one connection, the others are served.
//! `PROPTEST_CASES` sets how many.
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod client;

use client::{Agent, TOKEN, execution};
use instavm_agent_api::{Control, Event, GENERATION, Hello, Language, Rejoin, Request, frame};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

/// What a connection carries.
#[derive(Clone, Debug)]
struct Script {
    /// The bytes of its first frame.
    hello: Vec<u8>,
    /// What follows.
    rest: Vec<u8>,
    /// In pieces of this size.
    step: usize,
    /// Hangs up without waiting for what the agent has to say.
    hang_up: bool,
}

#[test]
fn connections_with_anything_on_them_hurt_no_others() {
    let agent = Agent::start_confined();
    assert_eq!(agent.python("kept = 7").good(), "");
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&script(), |script| {
            play(&agent, &script)?;
            prop_assert_eq!(agent.request(Request::Ping).last(), Event::Done);
            Ok(())
        })
        .expect("the agent serves on");
    assert_eq!(agent.bash("echo on").good(), "on\n");
    assert_eq!(agent.python("print(6 * 7)").good(), "42\n");
}

/// Sends the script and, unless it hangs up, reads to the end of the connection.
fn play(agent: &Agent, script: &Script) -> Result<(), TestCaseError> {
    let mut stream = agent.connect().stream;
    for part in [&script.hello, &script.rest] {
        for piece in part.chunks(script.step) {
            if stream.write_all(piece).is_err() {
                return Ok(()); // cut off, as it deserves
            }
        }
    }
    if script.hang_up {
        return Ok(());
    }
    // It may have been closed by the agent already.
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => {
                return Err(TestCaseError::fail(format!(
                    "no end of the connection: {error}"
                )));
            }
        }
    }
}

fn script() -> impl Strategy<Value = Script> {
    (hello(), rest(), select(&[1, 7, 4096][..]), any::<bool>()).prop_map(
        |(hello, rest, step, hang_up)| Script {
            hello,
            rest,
            step,
            hang_up,
        },
    )
}

fn hello() -> impl Strategy<Value = Vec<u8>> {
    let right = encoded(&Hello {
        generation: GENERATION,
        token: TOKEN,
    });
    prop_oneof![
        8 => Just(right),
        1 => (any::<u32>(), any::<[u8; 32]>()).prop_map(|(generation, token)| encoded(&Hello { generation, token })),
        1 => vec(any::<u8>(), 0..80),
    ]
}

/// Frames of the protocol in any order, frames of anything, and bytes; then some bytes are changed, and the end is cut.
fn rest() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => select(requests()),
        2 => select(controls()),
        2 => vec(any::<u8>(), 0..64).prop_map(framed),
        1 => (0u8..12, vec(any::<u8>(), 0..64)).prop_map(|(variant, fields)| framed([vec![variant], fields].concat())),
        1 => vec(any::<u8>(), 0..64),
    ];
    let changes = vec((any::<Index>(), any::<u8>()), 0..4);
    let cut = proptest::option::weighted(0.3, any::<Index>());
    (vec(piece, 0..5), changes, cut).prop_map(|(pieces, changes, cut)| {
        let mut bytes = pieces.concat();
        for (place, value) in changes {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
        }
        if let Some(cut) = cut.filter(|_| !bytes.is_empty()) {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

fn requests() -> Vec<Vec<u8>> {
    let run = |language, code, detached| Request::Execute(execution("x", language, code, detached));
    [
        Request::Ping,
        Request::WarmInterpreter,
        Request::Rejoin(Rejoin::default()),
        run(Some(Language::Bash), "true", false),
        run(Some(Language::Python), "1+1", false),
        run(None, "echo a", false),
        run(Some(Language::Bash), "echo b", true),
        Request::Attach { id: "x".to_owned() },
        Request::Forget { id: "x".to_owned() },
        Request::ReadFile {
            path: "f".to_owned(),
        },
        Request::WriteFile {
            path: "f".to_owned(),
            mode: 0o644,
        },
    ]
    .iter()
    .map(encoded)
    .collect()
}

fn controls() -> Vec<Vec<u8>> {
    [
        Control::Interrupt,
        Control::Kill,
        Control::Data(vec![1; 100]),
        Control::End,
    ]
    .iter()
    .map(encoded)
    .collect()
}

fn encoded<T: serde::Serialize>(message: &T) -> Vec<u8> {
    frame::encode(message).expect("a frame")
}

fn framed(payload: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short one");
    [length.to_le_bytes().to_vec(), payload].concat()
}
