//! Where executions and relative paths start.

mod client;

use client::Agent;
use instavm_agent_api::{Event, FailureKind, Rejoin, Request};

fn rejoin(agent: &Agent, workdir: Option<String>) -> Event {
    let rejoin = Rejoin {
        workdir,
        ..Rejoin::default()
    };
    agent.request(Request::Rejoin(rejoin)).last()
}

#[test]
fn everything_moves_to_a_new_working_directory() {
    let agent = Agent::start();
    let python = "import os; print(os.getcwd())";
    let old = format!("{}\n", agent.workdir().display());
    assert_eq!(agent.python(python).good(), old);
    assert_eq!(rejoin(&agent, None), Event::Done);
    assert_eq!(agent.python(python).good(), old);
    let path = agent.workdir().join("deep/er");
    let workdir = format!("{}/", path.display());
    assert_eq!(rejoin(&agent, Some(workdir)), Event::Done);
    let new = format!("{}\n", path.display());
    assert_eq!(agent.python(python).good(), new, "a loaded interpreter");
    assert_eq!(agent.bash("pwd").good(), new);
    agent.write_file("file", 0o644, b"here").unwrap();
    assert_eq!(std::fs::read(path.join("file")).unwrap(), b"here");
    assert_eq!(agent.read_file("file").unwrap().2, b"here");
    agent.python("import os; os._exit(1)");
    assert_eq!(agent.python(python).good(), new, "a fresh interpreter");
    agent.python("os.chdir('/')").good();
    assert_eq!(agent.python("print(os.getcwd())").good(), "/\n");
}

#[test]
fn a_working_directory_that_cannot_be_is_refused_and_the_old_one_stays() {
    let agent = Agent::start();
    agent.write_file("file", 0o644, b"").unwrap();
    let file = agent.workdir().join("file").display().to_string();
    for bad in [
        "relative".to_owned(),
        file.clone(),
        format!("{file}/below"),
        String::new(),
    ] {
        match rejoin(&agent, Some(bad.clone())) {
            Event::Failed(failure) => {
                assert_eq!(failure.kind, FailureKind::Unsuitable, "{bad}: {failure:?}")
            }
            other => panic!("{bad}: {other:?}"),
        }
    }
    assert_eq!(
        agent.bash("pwd").good(),
        format!("{}\n", agent.workdir().display())
    );
}
