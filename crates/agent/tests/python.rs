//! Python executions: the interpreter keeps its state, output is exact, and nothing the code does ends the agent.

mod client;

use client::{Agent, wait_for_end};
use instavm_agent_api::{Control, Event, Language, Rejoin, Request};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[test]
fn names_classes_and_the_working_directory_persist() {
    let agent = Agent::start();
    assert_eq!(
        agent
            .python("x = 41\nclass A:\n    def f(self): return x")
            .good(),
        ""
    );
    assert_eq!(agent.python("x += 1\nprint(A().f())").good(), "42\n");
    let workdir = format!(
        "{}\n",
        agent.workdir().canonicalize().expect("a path").display()
    );
    assert_eq!(
        agent.python("import os\nprint(os.getcwd())").good(),
        workdir
    );
    agent.python("os.mkdir('sub'); os.chdir('sub')").good();
    assert_eq!(
        agent.python("print(os.path.basename(os.getcwd()))").good(),
        "sub\n"
    );
}

#[test]
fn code_runs_in_a_real_main_module() {
    let agent = Agent::start();
    let code = "import pickle, sys
class A: pass
print(__name__, sys.argv, sys.path[0] == '', pickle.loads(pickle.dumps(A())).__class__)
if __name__ == '__main__':
    print('main')";
    assert_eq!(
        agent.python(code).good(),
        "__main__ [''] True <class '__main__.A'>\nmain\n"
    );
    assert_eq!(
        agent
            .python("print(sorted(n for n in dir() if n[0] != '_'))")
            .good(),
        "['A', 'pickle', 'sys']\n"
    );
    let pool = "import multiprocessing
def double(n): return 2 * n
with multiprocessing.get_context('fork').Pool(2) as pool:
    print(pool.map(double, [1, 2, 3]))";
    assert_eq!(agent.python(pool).good(), "[2, 4, 6]\n");
}

#[test]
fn output_of_python_and_its_children_comes_in_order() {
    let agent = Agent::start();
    let code = "import os, subprocess, sys
for i in range(50):
    print('a', i)
    os.system(f'echo b {i}')
    sys.stdout.write(f'c {i}')
    os.write(1, b'd\\n')
    sys.stdout.buffer.write(b'e\\n')
    subprocess.run(['echo', 'f', str(i)])";
    let expected: String = (0..50)
        .map(|i| format!("a {i}\nb {i}\nc {i}d\ne\nf {i}\n"))
        .collect();
    assert_eq!(agent.python(code).good(), expected);
}

#[test]
fn sixty_four_mebibytes_on_both_streams_arrive_whole() {
    let agent = Agent::start();
    let code = "import sys, threading
block = bytes(range(256)) * 4096
def fill(stream):
    for _ in range(64): stream.buffer.write(block)
threads = [threading.Thread(target=fill, args=(s,)) for s in (sys.stdout, sys.stderr)]
[t.start() for t in threads]; [t.join() for t in threads]";
    let outcome = agent.python(code);
    let expected: Vec<u8> = (0..=255u8).cycle().take(64 << 20).collect();
    assert_eq!(outcome.code(), 0);
    assert!(
        outcome.stdout == expected && outcome.stderr == expected,
        "bytes lost or reordered"
    );
}

#[test]
fn anything_can_be_printed() {
    let agent = Agent::start();
    let outcome = agent.python("print('\\udcff\\ud800 é')");
    assert_eq!(outcome.stdout, b"\xff\\ud800 \xc3\xa9\n");
    assert_eq!(outcome.code(), 0);
}

#[test]
fn tracebacks_are_pythons_own() {
    let agent = Agent::start();
    agent.python("def f(n):\n    return 1 / n").good();
    let outcome = agent.python(
        "try:\n    f(0)\nexcept ZeroDivisionError as e:\n    raise ValueError('bad') from e",
    );
    let expected = "Traceback (most recent call last):
  File \"<execution 2>\", line 2, in <module>
    f(0)
  File \"<execution 1>\", line 2, in f
    return 1 / n
           ~~^~~
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File \"<execution 2>\", line 4, in <module>
    raise ValueError('bad') from e
ValueError: bad
";
    assert_eq!(
        (
            outcome.code(),
            outcome.err().as_str(),
            outcome.out().as_str()
        ),
        (1, expected, "")
    );
    let outcome = agent.python("value = 1\nprint(valeu)");
    assert!(
        outcome
            .err()
            .ends_with("NameError: name 'valeu' is not defined. Did you mean: 'value'?\n")
    );
    let outcome = agent.python("x = (");
    let expected = "  File \"<execution 4>\", line 1\n    x = (\n        ^\nSyntaxError: '(' was never closed\n";
    assert_eq!((outcome.code(), outcome.err().as_str()), (1, expected));
}

#[test]
fn exits_end_the_execution_and_not_the_interpreter() {
    let agent = Agent::start();
    agent.python("x = 5\nimport sys").good();
    for (code, status, stderr) in [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("exit(4)", 4, ""),
    ] {
        let outcome = agent.python(code);
        assert_eq!(
            (outcome.code(), outcome.err().as_str()),
            (status, stderr),
            "{code}"
        );
        assert_eq!(outcome.finished.state_lost, None);
    }
    assert_eq!(agent.python("print(x)").good(), "5\n");
}

#[test]
fn input_meets_the_end_of_its_file() {
    let agent = Agent::start();
    let outcome = agent.python("input('? ')");
    assert_eq!((outcome.code(), outcome.out().as_str()), (1, "? "));
    assert!(
        outcome
            .err()
            .ends_with("EOFError: EOF when reading a line\n"),
        "{}",
        outcome.err()
    );
}

#[test]
fn an_interpreter_that_ends_is_reported_and_replaced() {
    let agent = Agent::start();
    for (code, status, reason) in [
        (
            "import os; print('out', flush=True); os._exit(3)",
            3,
            "the code ended the interpreter with status 3",
        ),
        (
            "print('out'); import ctypes; ctypes.string_at(0)",
            139,
            "segmentation fault",
        ),
        (
            "print('out'); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "killed",
        ),
        (
            "print('out'); import os; os.closerange(3, 256)",
            70,
            "closed the descriptors",
        ),
        (
            "print('out'); import os; os.write(4, b'z' * 21); __import__('threading').Event().wait()",
            137,
            "control socket",
        ),
    ] {
        agent.python("x = 1").good();
        let outcome = agent.python(code);
        assert_eq!(
            (outcome.code(), outcome.out().as_str()),
            (status, "out\n"),
            "{code}"
        );
        let lost = outcome.finished.state_lost.expect(code);
        assert!(lost.contains(reason), "{lost}");
        let after = agent.python("print('x' in globals())");
        assert_eq!(
            (after.good().as_str(), after.finished.state_lost),
            ("False\n", None)
        );
    }
}

#[test]
fn an_interpreter_that_is_killed_while_idle_is_reported_at_the_next_execution() {
    let agent = Agent::start();
    let pid = agent.python("import os; print(os.getpid())").good();
    agent.bash(&format!("kill -9 {pid}")).good();
    wait_for_end(pid.trim());
    let outcome = agent.python("print(1)");
    assert_eq!(outcome.out(), "1\n");
    assert!(
        outcome
            .finished
            .state_lost
            .expect("a loss")
            .contains("killed")
    );
}

#[test]
fn an_execution_that_meets_a_dying_interpreter_runs_in_the_next_one() {
    let agent = Agent::start();
    for _ in 0..20 {
        let pid = agent.python("import os; x = 1; print(os.getpid())").out();
        // Nothing waits for the end of the interpreter, so the next execution may be given to the dead one.
        agent.bash(&format!("kill -9 {pid}")).good();
        let outcome = agent.python("print('x' in globals())");
        assert_eq!((outcome.out().as_str(), outcome.code()), ("False\n", 0));
        assert!(outcome.finished.state_lost.is_some());
    }
}

#[test]
fn interrupts_reach_loops_sleeps_and_children() {
    let agent = Agent::start();
    agent
        .python("kept = 1\nimport os, subprocess, sys, time")
        .good();
    for code in [
        "print('on', flush=True)\nwhile True: pass",
        "print('on')\ntime.sleep(1000)",
        "os.system('echo on; sleep 1000')",
        "subprocess.run(['bash', '-c', 'echo on; sleep 1000'])",
        "subprocess.run(['bash', '-c', 'trap \"\" INT; echo on; while :; do sleep 1000; done'])",
        "!echo on; sleep 1000",
        "import asyncio\nprint('on')\nawait asyncio.sleep(1000)",
    ] {
        let mut connection = agent.execute(Some(Language::Python), code);
        connection.wait_for("on");
        let sent = Instant::now();
        connection.send(&Control::Interrupt);
        let outcome = connection.outcome();
        assert!(
            sent.elapsed() < Duration::from_secs(10),
            "{code} took {:?}",
            sent.elapsed()
        );
        assert_eq!(
            (outcome.code(), outcome.finished.interrupted),
            (130, true),
            "{code}: {outcome:?}"
        );
        assert!(
            outcome.err().ends_with("KeyboardInterrupt\n"),
            "{code}: {}",
            outcome.err()
        );
        assert_eq!(outcome.finished.state_lost, None, "{code}");
        assert_eq!(agent.python("print(kept)").good(), "1\n", "after {code}");
    }
}

#[test]
fn tracebacks_have_no_frame_of_the_interpreter_itself() {
    let agent = Agent::start();
    agent.python("import subprocess, time").good();
    for (code, count) in [
        ("!echo on; sleep 1000", 1),
        ("lines = !echo on >/dev/stderr; sleep 1000", 1),
        ("subprocess.run('echo on; sleep 1000', shell=True)", 1),
        (
            "try:\n    print('on')\n    time.sleep(1000)\nexcept KeyboardInterrupt as error:\n    raise ValueError from error",
            2,
        ),
        (
            "try:\n    print('on')\n    time.sleep(1000)\nexcept KeyboardInterrupt as error:\n    raise BaseExceptionGroup('all', [error])",
            2,
        ),
    ] {
        let mut connection = agent.execute(Some(Language::Python), code);
        connection.wait_for_either("on");
        connection.send(&Control::Interrupt);
        let error = connection.outcome().err();
        assert!(!error.contains("<instavm>"), "{code}: {error}");
        let own = error.matches("File \"<execution ").count();
        assert!(own >= count, "{code}: {error}");
        assert!(error.contains("KeyboardInterrupt"), "{code}: {error}");
    }
    let error = agent.python("import os\nos.close(1)\nprint('lost')").err();
    assert!(!error.contains("<instavm>"), "{error}");
    assert!(
        error.contains("line 3") && error.ends_with("OSError: [Errno 9] Bad file descriptor\n"),
        "{error}"
    );
}

#[test]
fn an_interrupt_never_reaches_the_next_execution() {
    let agent = Agent::start();
    agent.python("import time").good();
    for _ in 0..50 {
        let mut first = agent.execute(Some(Language::Python), "print('on')");
        first.wait_for("on");
        // It may come too late: the agent may have closed the connection by now.
        let interrupt = instavm_agent_api::frame::encode(&Control::Interrupt).expect("a frame");
        let _ = std::io::Write::write_all(&mut first.stream, &interrupt);
        let next = agent.python("for _ in range(20000): pass\nprint('next')");
        assert_eq!(next.good(), "next\n");
    }
}

#[test]
fn an_idle_interpreter_ignores_sigint() {
    let agent = Agent::start();
    let pid = agent.python("import os; x = 1; print(os.getpid())").good();
    agent.bash(&format!("kill -INT {pid}")).good();
    assert_eq!(agent.python("print(x)").good(), "1\n");
}

#[test]
fn a_kill_ends_what_cannot_be_interrupted() {
    let agent = Agent::start();
    let code = "import signal, os\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\nos.system('sleep 1000')\nwhile True: pass";
    let mut connection = agent.execute(Some(Language::Python), code);
    connection.wait_for("on");
    connection.send(&Control::Kill);
    let outcome = connection.outcome();
    assert_eq!((outcome.code(), outcome.finished.interrupted), (137, true));
    assert!(outcome.finished.state_lost.is_some());
    assert_eq!(agent.python("print(1)").good(), "1\n");
}

#[test]
fn executions_queue_and_queued_ones_can_be_cancelled() {
    let agent = Agent::start();
    // The first execution runs until somebody writes to the gate.
    agent.bash("mkfifo gate").good();
    let mut first = agent.execute(
        Some(Language::Python),
        "order = [1]\nprint('on')\nopen('gate').read()",
    );
    first.wait_for("on");
    let mut second = agent.execute(Some(Language::Python), "order.append(2)");
    let mut cancelled = agent.execute(Some(Language::Python), "order.append('cancelled')");
    let dropped = agent.execute(Some(Language::Python), "order.append('dropped')");
    drop(dropped);
    cancelled.send(&Control::Interrupt);
    let outcome = cancelled.outcome();
    assert_eq!((outcome.code(), outcome.finished.interrupted), (130, true));
    agent.bash("echo > gate").good();
    assert_eq!(first.outcome().code(), 0);
    assert_eq!(second.outcome().code(), 0);
    assert_eq!(agent.python("print(order)").good(), "[1, 2]\n");
}

#[test]
fn shell_text_without_a_language_does_not_wait_for_python() {
    let agent = Agent::start();
    agent.bash("mkfifo gate").good();
    let mut first = agent.execute(Some(Language::Python), "print('on')\nopen('gate').read()");
    first.wait_for("on");
    let mut python = agent.execute(None, "print('python')");
    let mut unknown = agent.execute(None, "ls");
    agent.detach("job", None, "echo detached text");
    let outcome = agent.run(None, "echo hi there");
    assert_eq!(outcome.finished.language, Language::Bash);
    assert_eq!(outcome.good(), "hi there\n");
    assert_eq!(agent.attach("job").outcome().good(), "detached text\n");
    agent.bash("echo > gate").good();
    assert_eq!(first.outcome().code(), 0);
    assert_eq!(python.outcome().good(), "python\n");
    // It could have been a name of the session's, so it had to wait.
    assert_eq!(unknown.outcome().finished.language, Language::Bash);
}

#[test]
fn closed_standard_descriptors_come_back() {
    let agent = Agent::start();
    agent.python("import os, sys\nkept = 1").good();
    let outcome = agent.python("os.close(0); os.close(1); os.close(2)\n1/0");
    assert!(
        outcome
            .err()
            .ends_with("ZeroDivisionError: division by zero\n"),
        "{outcome:?}"
    );
    assert_eq!(
        agent.python("print(kept); os.system('echo child')").good(),
        "1\nchild\n"
    );
    agent
        .python("os.dup2(os.open('/dev/null', os.O_WRONLY), 1)")
        .good();
    assert_eq!(agent.python("print(kept)").good(), "1\n");
    agent.python("sys.stdout.close()").good();
    let outcome = agent.python("print(kept); print('e', file=sys.stderr)");
    assert_eq!(
        (outcome.out().as_str(), outcome.err().as_str()),
        ("1\n", "e\n")
    );
}

#[test]
fn a_caller_that_hangs_up_interrupts_its_execution() {
    let agent = Agent::start();
    agent.python("import time; kept = 1").good();
    let mut connection = agent.execute(Some(Language::Python), "print('on')\nwhile True: pass");
    connection.wait_for("on");
    drop(connection);
    assert_eq!(agent.python("print(kept)").good(), "1\n");
}

#[test]
fn shell_lines_run_where_python_cannot_go_on() {
    let agent = Agent::start();
    let code = "!echo one
for word in ['x', 'y']:
    !echo $((1 + 1))
lines = !printf 'a\\nb\\n'
text = '''
!echo no
'''
print(lines, text.strip())
!false
print(_exit_code)";
    assert_eq!(
        agent.python(code).good(),
        "one\n2\n2\n['a', 'b'] !echo no\n1\n"
    );
    let outcome = agent.python("!echo one \\\n  two\n%cd /\nimport os\nprint(os.getcwd())");
    assert_eq!(outcome.good(), "one two\n/\n");
    let outcome = agent.python("!echo one\nx = = 2");
    assert_eq!(outcome.out(), "");
    assert!(
        outcome.err().contains("line 2\n    x = = 2\n"),
        "{}",
        outcome.err()
    );
}

#[test]
fn await_works_at_the_top_on_one_loop() {
    let agent = Agent::start();
    agent
        .python("import asyncio\nevent = asyncio.Event()\nasync def later(): event.set(); return 7")
        .good();
    agent
        .python("await asyncio.sleep(0)\ntask = asyncio.create_task(later())")
        .good();
    assert_eq!(
        agent.python("await event.wait()\nprint(await task)").good(),
        "7\n"
    );
    let outcome = agent.python("await asyncio.sleep(0)\n1/0");
    let expected = "Traceback (most recent call last):\n  File \"<execution 4>\", line 2, in <module>\n    1/0\n    ~^~\nZeroDivisionError: division by zero\n";
    assert_eq!(outcome.err(), expected);
}

#[test]
fn a_forked_child_never_takes_the_interpreters_place() {
    let agent = Agent::start();
    let code = "import os, sys
x = 1
if os.fork() == 0:
    x = 2
    print('child')
else:
    os.wait()
    print('parent')";
    assert_eq!(agent.python(code).good(), "child\nparent\n");
    assert_eq!(agent.python("print(x)").good(), "1\n");
    let code = "pid = os.fork()\nif pid == 0: sys.exit(9)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    assert_eq!(agent.python(code).good(), "9\n");
    let code = "pid = os.fork()\nif pid == 0: 1/0\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let outcome = agent.python(code);
    assert_eq!(outcome.out(), "1\n");
    assert!(
        outcome
            .err()
            .ends_with("ZeroDivisionError: division by zero\n")
    );
}

#[test]
fn background_output_comes_with_the_next_execution() {
    let agent = Agent::start();
    let code = "import subprocess
subprocess.Popen(['bash', '-c', 'read < gate; echo background; echo over > gate2'])";
    agent.bash("mkfifo gate gate2").good();
    agent.python(code).good();
    agent.bash("echo > gate; read < gate2").good();
    assert_eq!(agent.python("print('next')").good(), "background\nnext\n");
}

#[test]
fn much_background_output_comes_whole_with_the_next_python() {
    let agent = Agent::start();
    agent.bash("mkfifo begin gate").good();
    let size = 20 << 20;
    let code = format!(
        "import subprocess\nsubprocess.Popen(['bash', '-c', 'read < begin; head -c {size} /dev/zero; echo over > gate'])"
    );
    // What it wrote before this execution has ended would be this execution's output.
    agent.python(&code).good();
    agent.bash("echo now > begin; read < gate").good();
    // A shell's text has nothing to do with it, also when the interpreter had to find out.
    assert_eq!(agent.run(None, "echo hi there").good(), "hi there\n");
    let outcome = agent.python("print('next')");
    assert_eq!(
        (outcome.stdout.len(), outcome.err().as_str()),
        (size + 5, "")
    );
    assert!(outcome.stdout.ends_with(b"\0next\n"));
    assert_eq!(agent.python("print('last')").good(), "last\n");
}

#[test]
fn the_sessions_environment_reaches_a_running_interpreter() {
    let agent = Agent::start();
    let rejoin = |pairs: &[(&str, &str)]| {
        let env: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let request = Request::Rejoin(Rejoin {
            env,
            entropy: vec![1; 32],
            ..Rejoin::default()
        });
        assert_eq!(agent.request(request).last(), Event::Done);
    };
    assert_eq!(agent.request(Request::WarmInterpreter).last(), Event::Done);
    rejoin(&[("A", "1"), ("B", "two words\nand lines")]);
    assert_eq!(
        agent
            .python("import os; print(os.environ['A'], repr(os.environ['B']))")
            .good(),
        "1 'two words\\nand lines'\n"
    );
    assert_eq!(agent.bash("echo $A").good(), "1\n");
    rejoin(&[("A", "3")]);
    assert_eq!(
        agent
            .python("print(os.environ['A'], 'B' in os.environ)")
            .good(),
        "3 False\n"
    );
}

#[test]
fn processor_time_is_measured() {
    let agent = Agent::start();
    let outcome = agent.python("import subprocess, sys, time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass");
    assert!(
        (150_000..5_000_000).contains(&outcome.finished.cpu_micros),
        "{outcome:?}"
    );
    assert!(outcome.finished.wall_micros >= 200_000);
    let child = "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.2: pass'])";
    assert!(agent.python(child).finished.cpu_micros >= 150_000);
}

#[test]
fn an_open_language_is_found() {
    let agent = Agent::start();
    agent
        .bash("printf '#!/bin/bash\\necho script\\n' > run.sh; chmod +x run.sh")
        .good();
    for (code, language) in [
        ("print(1)", Language::Python),
        ("x = 1", Language::Python),
        ("!echo 1", Language::Python),
        ("date = 5\nprint(date)", Language::Python),
        ("print 'two'", Language::Python),
        ("for x in range(3) print(x)", Language::Python),
        ("if x == 1 print(2)", Language::Python),
        ("x = = 1", Language::Python),
        ("import magick from", Language::Python),
        ("[ 1, 2", Language::Python),
        ("test == 5", Language::Python),
        ("ls\nimport os", Language::Python),
        ("ls.head()", Language::Python),
        ("ls\nprint(1)", Language::Python),
        ("ls\nx = 5", Language::Python),
        ("import os os", Language::Python),
        ("test = [1", Language::Python),
        ("ls", Language::Bash),
        ("ls -la", Language::Bash),
        ("# a comment\nls -la | wc -l", Language::Bash),
        ("whoami", Language::Bash),
        ("cd / && pwd", Language::Bash),
        ("export A=1", Language::Bash),
        ("A=1 B='x y' env", Language::Bash),
        ("./run.sh", Language::Bash),
        ("for i in 1 2; do echo $i; done", Language::Bash),
        ("if [ -d / ]; then echo yes; fi", Language::Bash),
        ("set -e\necho hello world", Language::Bash),
        ("(cd /; ls)", Language::Bash),
        ("dpkg-query --version | head -1", Language::Bash),
        ("ls\npwd", Language::Bash),
        ("ls -la\ncd /tmp && ls", Language::Bash),
        ("time ls /", Language::Bash),
        ("while true; do\n  break\ndone", Language::Bash),
        ("X=$(ls -la)\necho $X", Language::Bash),
        ("hello() { echo hi; }; hello", Language::Bash),
        ("[ -d / ] && echo yes", Language::Bash),
        ("cat <<EOF\nprint(1)\nEOF", Language::Bash),
        ("#!/bin/sh\necho hi", Language::Bash),
        ("%%bash\necho hi", Language::Bash),
    ] {
        let outcome = agent.run(None, code);
        assert_eq!(outcome.finished.language, language, "{code}: {outcome:?}");
        if language == Language::Bash {
            assert_eq!(outcome.code(), 0, "{code}: {outcome:?}");
        }
    }
    let outcome = agent.python("%%bash\necho hi there");
    assert_eq!(
        (outcome.finished.language, outcome.good()),
        (Language::Bash, "hi there\n".to_owned())
    );
    // A name of the session is Python's, whatever program has it too.
    agent.python("ls = 3").good();
    assert_eq!(agent.run(None, "ls").finished.language, Language::Python);
    assert_eq!(agent.python("whoami").finished.language, Language::Python);
}
