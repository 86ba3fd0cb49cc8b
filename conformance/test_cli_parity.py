"""The official command line and ours against one recording server: the same requests, JSON and exit status."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = Path(os.environ.get("INSTAVM_CLI", REPOSITORY / "target/release/instavm"))
OFFICIAL = Path(sys.executable).parent / "instavm"

SESSION = (200, {"session_id": "b5a1b4b2-0a64-4bb5-8a4f-0c8c1f5d7a11", "status": "active"})
RESULT = (200, {"stdout": "6\n", "stderr": "", "output": "6\n", "exit_code": 0, "execution_time": 0.25, "cpu_time": 1.0, "language": "python"})
STARTED = (202, {"task_id": "t/1", "status": "running"})
PENDING = (200, {"is_complete": False})
COMPLETE = (200, {"is_complete": True, "serialized_stdout": "6\n", "serialized_stderr": "", "cpu_time": None, "execution_time": 2, "created_at": "2026-01-02T03:04:05Z"})
USER = (200, {"id": 7, "email": "é@example.com", "name": None, "is_verified": True, "created_at": "x"})
KEYS = (200, {"keys": [{"id": 3, "fingerprint": "SHA256:abc", "comment": "me@here"}]})
VMS = (200, [{"vm_id": "vm_1", "status": "ACTIVE", "n": 1.0}, {"vm_id": "vm_2", "status": "terminated"}, {"vm_id": "vm_3"}])
NO_KEY = {"INSTAVM_API_KEY": None}


class Recorder(ThreadingHTTPServer):
    """Gives prepared answers and writes down what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(body) if body else None
        except ValueError:
            body = body.decode(errors="replace")
        self.server.seen.append((self.command, self.path, self.headers.get("X-API-Key"), self.headers.get("Content-Type"), body))
        status, answer = self.server.answers.pop(0) if self.server.answers else (500, {"detail": "nothing prepared"})
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder():
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Run:
    """One run of one of the two, in a home of its own that looks the same to both."""

    def __init__(self, program, recorder, home, arguments, answers, stdin, environment, files, config):
        home.mkdir()
        for name, text in files.items():
            (home / name).write_text(text)
        if config is not None:
            (home / ".instavm").mkdir()
            (home / ".instavm/config.json").write_text(config)
        variables = {"HOME": str(home), "PATH": os.defpath, "INSTAVM_API_KEY": "key-1", "INSTAVM_BASE_URL": recorder.url, **environment}
        recorder.answers, recorder.seen = list(answers), []
        done = subprocess.run(
            [program, *arguments],
            env={name: value for name, value in variables.items() if value is not None},
            cwd=home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.status = done.returncode
        self.stdout = done.stdout.replace(str(home), "HOME")
        self.stderr = done.stderr.replace(str(home), "HOME")
        self.requests = recorder.seen
        stored = home / ".instavm/config.json"
        self.config = stored.read_text() if stored.exists() else None
        self.modes = [oct(path.stat().st_mode & 0o777) for path in (stored.parent, stored)] if stored.exists() else None


@pytest.fixture
def both(recorder, tmp_path):
    """Runs both and compares what has to be the same; gives ours."""

    def compare(*arguments, answers=(), stdin="", environment=None, files=None, config=None):
        number = len(list(tmp_path.iterdir()))
        official, ours = (
            Run(program, recorder, tmp_path / f"{name}-{number}", arguments, answers, stdin, environment or {}, files or {}, config)
            for name, program in (("official", OFFICIAL), ("ours", OURS))
        )
        context = f"official: {official.stdout}{official.stderr}\nours: {ours.stdout}{ours.stderr}"
        assert ours.status == official.status, context
        assert ours.requests == official.requests, context
        assert (ours.config, ours.modes) == (official.config, official.modes), context
        assert bool(ours.stdout) == bool(official.stdout), context
        assert bool(ours.stderr) == bool(official.stderr), context
        if {"-j", "--json", "-aj"} & set(arguments):
            assert ours.stdout == official.stdout, context
        return ours

    return compare


CASES = {
    "whoami": (["whoami", "-j"], [USER, KEYS]),
    "whoami, and no keys": (["whoami", "--json"], [USER, (200, {})]),
    "whoami of a stranger": (["whoami", "-j"], [(401, {"detail": "no"})]),
    "whoami refused": (["whoami", "-j"], [USER, (403, {"detail": "no"})]),
    "ls": (["ls", "-j"], [VMS]),
    "ls of all": (["ls", "-aj"], [VMS]),
    "list, cut short": (["list", "--al", "--js"], [VMS]),
    "ls of no list": (["ls", "-j"], [(200, {"a": 1})]),
    "ls of nothing": (["ls", "-j"], [(200, b"")]),
    "ls of no JSON": (["ls", "-j"], [(200, b"<html>")]),
    "ls, 404": (["ls", "-j"], [(404, {"detail": "none"})]),
    "ls, 429": (["ls", "-j"], [(429, {"detail": "slow"})]),
    "ls, 500": (["ls", "-j"], [(500, {"detail": "oops"})]),
    "ls, 504": (["ls", "-j"], [(504, b"proxy")]),
    "ls, watched": (["ls", "-j", "--watch", "1"], [VMS, VMS, (503, {})]),
    "ls, watched badly": (["ls", "-j", "--watch", "0"], []),
    "ls with a flag for the address": (["ls", "-j", "--api-key", "other", "--base-url="], [VMS]),
    "ssh-key list": (["ssh-key", "list", "-j"], [KEYS]),
    "sshkey list of none": (["sshkey", "list", "-j"], [(200, {})]),
    "ssh-key add": (["ssh-key", "add", "ssh-ed25519 AAAA me", "-j"], [(200, {"id": 4, "fingerprint": "f"})]),
    "ssh-key add refused": (["ssh-key", "add", "x", "-j"], [(422, {"detail": "bad"})]),
    "ssh-key remove": (["ssh-key", "remove", "3", "-j"], [(200, {"status": "deleted", "key_id": "3"})]),
    "ssh-key remove of a word": (["ssh-key", "remove", "three", "-j"], []),
    "ssh-key remove, 404": (["ssh-key", "remove", "9", "-j"], [(404, {"detail": "none"})]),
    "ssh-key remove without an answer": (["ssh-key", "remove", "9", "-j"], [(204, b"")]),
    "exec": (["exec", "--cmd", "print(6)", "-j"], [SESSION, RESULT]),
    "exec with everything": (["exec", "--cmd", "é", "--language", "bash", "--timeout", "9", "--session", "s/1", "-j"], [RESULT]),
    "exec of an answer that knows better": (["exec", "--cmd", "x", "--session", "s", "-j"], [(200, {"session_id": "s2", "a": None, "b": [1, {"c": "\u2028😀"}]})]),
    "exec without a session id": (["exec", "--cmd", "x", "-j"], [(200, {})]),
    "exec refused a session": (["exec", "--cmd", "x", "-j"], [(429, {"detail": "full"})]),
    "exec refused": (["exec", "--cmd", "x", "-j"], [SESSION, (409, {"detail": "gone"})]),
    "exec, 503": (["exec", "--cmd", "x", "-j"], [SESSION, (503, {"detail": "full"})]),
    "exec in the background": (["exec", "--cmd", "x", "--async", "--timeout", "5", "-j"], [SESSION, STARTED]),
    "exec of nothing": (["exec", "-j"], []),
    "exec of both": (["exec", "a.py", "--cmd", "x", "-j"], []),
    "exec of a missing file": (["exec", "missing.py", "-j"], []),
    "exec result": (["exec", "result", "t/1", "-j"], [PENDING, COMPLETE]),
    "exec result of a stranger": (["exec", "result", "t", "-j"], [(401, {})]),
    "exec result, 500": (["exec", "result", "t", "-j"], [PENDING, (500, {})]),
    "exec result after a 403": (["exec", "result", "t", "-j"], [(403, {"detail": "not yet"}), COMPLETE]),
    "exec result without a task": (["exec", "result", "-j"], []),
    "exec result with code": (["exec", "result", "t", "--cmd", "x", "-j"], []),
    "exec result of dots": (["exec", "result", "..", "--timeout", "1", "-j"], []),
    "doc": (["doc", "-j"], []),
    "docs": (["docs", "--json"], []),
    "auth status": (["auth", "status", "-j"], []),
    "auth status by flags": (["auth", "status", "-j", "--api-key", "12345678", "--base-url", "https://staging.api.instavm.io/", "--ssh-host", " h "], []),
    "auth logout": (["auth", "logout", "-j"], []),
    "auth logout by flag": (["auth", "logout", "-j", "--api-key", "x"], []),
    "no command": ([], []),
    "an unknown command": (["fly"], []),
    "a group": (["auth"], []),
    "an unknown flag": (["ls", "--nope"], []),
    "a flag too early": (["--json", "ls"], []),
    "a bad number": (["exec", "--cmd", "x", "--timeout", "soon"], []),
    "a bad choice": (["exec", "--cmd", "x", "--language", "perl"], []),
    "too many words": (["ls", "extra"], []),
    "a missing word": (["ssh-key", "remove"], []),
    "a flag without its value": (["exec", "--cmd"], []),
    "an unknown topic": (["help", "fly"], []),
    "a topic": (["help", "sshkey", "add"], []),
    "help": (["exec", "-h"], []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same(both, case):
    arguments, answers = CASES[case]
    ours = both(*arguments, answers=answers)
    assert "Traceback" not in ours.stderr and "panicked" not in ours.stderr


HUMAN = [case for case, (arguments, _) in CASES.items() if "-j" in arguments or "-aj" in arguments]


@pytest.mark.parametrize("case", HUMAN)
def test_the_same_requests_for_people(both, case):
    arguments, answers = CASES[case]
    both(*["-a" if word == "-aj" else word for word in arguments if word != "-j"], answers=answers)


@pytest.mark.parametrize("arguments", [["whoami"], ["ls"], ["ssh-key", "list"], ["ssh-key", "remove", "1"], ["exec", "--cmd", "x"], ["exec", "result", "t"], ["auth", "status"], ["auth", "logout"]])
@pytest.mark.parametrize("key", [None, "", "  "])
def test_without_a_key(both, arguments, key):
    ours = both(*arguments, "--json", environment={"INSTAVM_API_KEY": key})
    assert ours.requests == []
    if arguments[0] != "auth":
        lines = ours.stderr.splitlines()
        assert len(lines) == 3 and "INSTAVM_API_KEY" in lines[0] and "instavm login" in lines[2], lines


@pytest.mark.parametrize("name, language", [("a.py", "python"), ("b.SH", "bash"), ("c.bash", "bash"), ("d.txt", None), ("result.py", "python")])
def test_files(both, name, language):
    ours = both("exec", name, "-j", answers=[SESSION, RESULT], files={name: "line é\r\n"})
    assert ours.requests[1][4].get("language") == language


def test_keys_from_standard_input(both):
    both("ssh-key", "add", "-j", stdin="  a key \n", answers=[(200, {"id": 1})])
    assert both("auth", "set-key", "-j", stdin=" \n").status == 1


STORED = ["auth", "set-key", "-j", "--base-url", " http://a/ ", "--ssh-host="]


@pytest.mark.parametrize("config", [
    None,
    "[]",
    "null",
    '{"schema_version": 3, "active_profile": "w", "more": 1, "profiles": {"w": {"auth": {"x": 1.0, "api_key": " k "}, "ssh_host": "h", "é": [{}, []]}, "v": 7}}',
    '{"active_profile": "none", "profiles": {"w": {"auth": 1, "base_url": " "}}}',
])
@pytest.mark.parametrize("arguments", [STORED, ["auth", "set-key", "--json"], ["auth", "logout", "-j"], ["auth", "status", "-j"]])
def test_the_configuration_file(both, arguments, config):
    both(*arguments, stdin="0123456789abc\n", config=config, environment={**NO_KEY, "INSTAVM_BASE_URL": None})


def test_a_broken_configuration_file(both):
    for arguments in (["auth", "status", "-j"], ["auth", "logout"], ["whoami"], ["exec", "--cmd", "x"]):
        ours = both(*arguments, config="{")
        assert ours.status == 1 and "HOME/.instavm/config.json" in ours.stderr


if not OURS.exists():
    sys.exit(f"{OURS} is not built; run `make build`")
