//! Detached executions: they run on without a caller, and can be followed from the start as often as one likes.

mod client;

use client::Agent;
use instavm_agent_api::{Control, Event, FailureKind, Language, Request};

#[test]
fn output_is_replayed_from_the_start_and_then_followed() {
    let agent = Agent::start();
    agent.bash("mkfifo gate").good();
    let code = "echo before; echo error >&2; read < gate; echo after; exit 3";
    agent.detach("job", Some(Language::Bash), code);
    let mut first = agent.attach("job");
    first.wait_for("before\n");
    let mut second = agent.attach("job");
    // This one goes away in the middle, which ends nothing.
    drop(agent.attach("job"));
    agent.bash("echo > gate").good();
    assert_eq!(first.last(), second_last(&mut second));
    for _ in 0..2 {
        let outcome = agent.attach("job").outcome();
        assert_eq!(
            (
                outcome.out().as_str(),
                outcome.err().as_str(),
                outcome.code()
            ),
            ("before\nafter\n", "error\n", 3)
        );
    }
    assert_eq!(
        agent
            .request(Request::Forget {
                id: "job".to_owned()
            })
            .last(),
        Event::Done
    );
    let Event::Failed(failure) = agent.attach("job").last() else {
        panic!("a forgotten execution is unknown");
    };
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert_eq!(
        agent
            .request(Request::Forget {
                id: "job".to_owned()
            })
            .last(),
        Event::Done
    );
}

fn second_last(connection: &mut client::Connection) -> Event {
    let outcome = connection.outcome();
    assert_eq!(outcome.out(), "before\nafter\n");
    Event::Finished(outcome.finished)
}

#[test]
fn asking_twice_starts_once() {
    let agent = Agent::start();
    agent.detach("job", Some(Language::Bash), "echo x >> count");
    agent.detach("job", Some(Language::Bash), "echo x >> count");
    agent.attach("job").outcome();
    assert_eq!(agent.bash("cat count").good(), "x\n");
}

#[test]
fn large_output_is_kept_whole() {
    let agent = Agent::start();
    let code =
        "import sys\nfor i in range(32): sys.stdout.buffer.write(bytes([i]) * (1 << 20))\nkept = 1";
    agent.detach("job", Some(Language::Python), code);
    let expected: Vec<u8> = (0..32u8).flat_map(|i| vec![i; 1 << 20]).collect();
    for _ in 0..2 {
        assert!(
            agent.attach("job").outcome().stdout == expected,
            "bytes lost or reordered"
        );
    }
    assert_eq!(agent.python("print(kept)").good(), "1\n");
}

#[test]
fn a_follower_interrupts_and_kills() {
    let agent = Agent::start();
    agent.detach(
        "loop",
        Some(Language::Python),
        "kept = 1\nprint('on')\nwhile True: pass",
    );
    let mut connection = agent.attach("loop");
    connection.wait_for("on\n");
    connection.send(&Control::Interrupt);
    let outcome = connection.outcome();
    assert_eq!((outcome.code(), outcome.finished.interrupted), (130, true));
    assert_eq!(agent.python("print(kept)").good(), "1\n");
    agent.detach(
        "stubborn",
        Some(Language::Bash),
        "trap '' INT; echo on; while :; do :; done",
    );
    let mut connection = agent.attach("stubborn");
    connection.wait_for("on\n");
    connection.send(&Control::Interrupt);
    connection.send(&Control::Kill);
    assert_eq!(connection.outcome().code(), 137);
}

#[test]
fn a_running_execution_is_not_forgotten() {
    let agent = Agent::start();
    agent.bash("mkfifo gate").good();
    agent.detach("job", Some(Language::Bash), "read < gate; echo end");
    assert_eq!(
        agent
            .request(Request::Forget {
                id: "job".to_owned()
            })
            .last(),
        Event::Done
    );
    agent.bash("echo > gate").good();
    assert_eq!(agent.attach("job").outcome().good(), "end\n");
}

#[test]
fn a_follower_that_does_not_read_holds_up_nobody() {
    let agent = Agent::start();
    agent.bash("mkfifo gate").good();
    agent.detach(
        "job",
        Some(Language::Bash),
        "read < gate; head -c 20000000 /dev/zero; echo end >&2",
    );
    let mut idle = agent.attach("job");
    agent.bash("echo > gate").good();
    assert_eq!(agent.attach("job").outcome().stdout.len(), 20_000_000);
    assert_eq!(idle.outcome().stdout.len(), 20_000_000);
}
