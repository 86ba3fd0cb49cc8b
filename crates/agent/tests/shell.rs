//! Bash executions.

mod client;

use client::{Agent, execution, wait_for_end};
use instavm_agent_api::{Control, Event, Language, Request};
use std::collections::BTreeMap;

#[test]
fn scripts_have_separate_exact_streams_and_an_exit_status() {
    let agent = Agent::start();
    let outcome = agent.bash("printf 'a\\0b'; printf '\\377' >&2; exit 7");
    assert_eq!(
        (outcome.code(), &outcome.stdout[..], &outcome.stderr[..]),
        (7, &b"a\0b"[..], &b"\xff"[..])
    );
    assert_eq!(agent.bash("kill -TERM $$").code(), 128 + 15);
    assert_eq!(agent.bash("-not-an-option").code(), 127);
    assert_eq!(
        agent.bash("cat; pwd").good(),
        format!(
            "{}\n",
            agent.workdir().canonicalize().expect("a path").display()
        )
    );
}

#[test]
fn the_environment_is_the_documented_one() {
    let agent = Agent::start();
    let mut request = execution("x", Some(Language::Bash), "env | sort", false);
    request.env = BTreeMap::from([("MINE".to_owned(), "1".to_owned())]);
    let outcome = agent.request(Request::Execute(request)).outcome();
    let own = ["PWD=", "SHLVL=", "_=", "OLDPWD=", "INSTAVM_EXECUTION_ID="];
    let seen: Vec<String> = outcome
        .good()
        .lines()
        .filter(|line| !own.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    let mut expected = vec![
        "HOME=/root".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        "MINE=1".to_owned(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "PIP_ROOT_USER_ACTION=ignore".to_owned(),
        "TERM=dumb".to_owned(),
        "USER=root".to_owned(),
    ];
    let trusted = "/etc/ssl/certs/ca-certificates.crt";
    if std::path::Path::new(trusted).exists() {
        let names = [
            "NODE_EXTRA_CA_CERTS",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "SSL_CERT_FILE",
        ];
        expected.extend(names.map(|name| format!("{name}={trusted}")));
        expected.sort();
    }
    assert_eq!(seen, expected);
}

#[test]
fn children_start_clean() {
    let agent = Agent::start();
    let code = "ls -l /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat /proc/self/oom_score_adj";
    let outcome = agent.bash(code);
    // The total, three standard descriptors, and the directory that is read.
    assert_eq!(
        outcome.good(),
        "5\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n500\n"
    );
}

#[test]
fn a_long_script_runs_and_leaks_no_descriptor() {
    let agent = Agent::start();
    let mut script = "echo $LINENO; ls -l /proc/self/fd | wc -l\n".to_owned();
    for _ in 0..200_000 {
        script.push_str(": a line of a long script\n");
    }
    script.push_str("echo end; exit 3\n");
    let outcome = agent.bash(&script);
    assert_eq!(
        (
            outcome.out().as_str(),
            outcome.err().as_str(),
            outcome.code()
        ),
        ("1\n5\nend\n", "", 3)
    );
}

#[test]
fn large_output_arrives_whole() {
    let agent = Agent::start();
    let outcome = agent.bash("head -c 67108864 /dev/zero; head -c 1000000 /dev/zero >&2");
    assert_eq!(
        (outcome.stdout.len(), outcome.stderr.len(), outcome.code()),
        (64 << 20, 1_000_000, 0)
    );
}

#[test]
fn background_processes_outlive_their_script_and_never_block() {
    let agent = Agent::start();
    agent.bash("mkfifo gate").good();
    // It fills the pipe many times over after the script has ended, and would die of SIGPIPE if that were closed.
    let code = "(read < gate; head -c 1000000 /dev/zero; echo survived > result) & echo started $!";
    let outcome = agent.bash(code);
    let text = outcome.good();
    let pid = text.trim().strip_prefix("started ").expect("a pid");
    agent.bash("echo > gate").good();
    wait_for_end(pid);
    assert_eq!(agent.bash("cat result").good(), "survived\n");
}

#[test]
fn a_background_flood_does_not_hold_up_the_end() {
    let agent = Agent::start();
    let outcome = agent.bash("yes & echo $!");
    assert_eq!(outcome.code(), 0);
    let text = outcome.out();
    let pid = text
        .lines()
        .find(|line| *line != "y")
        .expect("a pid")
        .to_owned();
    agent.bash(&format!("kill {pid}")).good();
}

#[test]
fn interrupts_and_kills_end_scripts() {
    let agent = Agent::start();
    let mut connection = agent.execute(Some(Language::Bash), "echo on; sleep 1000; echo after");
    connection.wait_for("on");
    connection.send(&Control::Interrupt);
    let outcome = connection.outcome();
    assert_eq!(
        (
            outcome.code(),
            outcome.finished.interrupted,
            outcome.out().as_str()
        ),
        (130, true, "")
    );
    let mut connection = agent.execute(
        Some(Language::Bash),
        "trap '' INT; set -m; sleep 1000 & echo on $!; wait",
    );
    let text = connection.wait_for("\n");
    let pid = text.trim().strip_prefix("on ").expect("a pid");
    connection.send(&Control::Interrupt);
    connection.send(&Control::Kill);
    assert_eq!(connection.outcome().code(), 137);
    // It was in a process group of its own, but in the same session.
    wait_for_end(pid);
}

#[test]
fn a_stopped_script_takes_along_what_left_its_session() {
    let agent = Agent::start();
    let other = agent
        .bash("setsid sleep 1000 >/dev/null 2>&1 & echo $!")
        .good();
    // One that left the session, one that also lost its parent, and one that forgot whose it is.
    let code = "setsid sleep 1000 & echo $!
(setsid sleep 1001 & echo $!)
env -i setsid bash -c 'echo $$; sleep 1002; true' &
sleep 0.1 & wait $!
echo on
wait";
    for (control, status) in [(Control::Interrupt, 130), (Control::Kill, 137)] {
        let mut connection = agent.execute(Some(Language::Bash), code);
        let text = connection.wait_for("on\n");
        connection.send(&control);
        assert_eq!(connection.outcome().code(), status);
        let pids: Vec<&str> = text.lines().filter(|line| *line != "on").collect();
        assert_eq!(pids.len(), 3, "{text}");
        for pid in pids {
            wait_for_end(pid);
        }
    }
    // What an earlier script has left to itself is not theirs.
    agent.bash(&format!("kill -0 {other}")).good();
    agent.bash(&format!("kill {other}")).good();
}

#[test]
fn scripts_run_beside_each_other_and_beside_python() {
    let agent = Agent::start();
    agent.bash("mkfifo a b").good();
    let mut first = agent.execute(Some(Language::Bash), "read < a; echo > b; echo first");
    let mut python = agent.execute(Some(Language::Python), "open('b').read(); print('python')");
    agent.bash("echo > a").good();
    assert_eq!(first.outcome().good(), "first\n");
    assert_eq!(python.outcome().good(), "python\n");
}

#[test]
fn a_caller_that_hangs_up_ends_its_script() {
    let agent = Agent::start();
    let mut connection = agent.execute(
        Some(Language::Bash),
        "trap '' INT; echo on $$; while :; do :; done",
    );
    let text = connection.wait_for("\n");
    let pid = text.trim().strip_prefix("on ").expect("a pid").to_owned();
    drop(connection);
    wait_for_end(&pid);
}

#[test]
fn a_text_with_nul_is_refused() {
    let agent = Agent::start();
    let mut connection = agent.execute(Some(Language::Bash), "echo a\0b");
    assert!(matches!(connection.last(), Event::Failed(failure) if failure.message.contains("NUL")));
}
