"""The official command line and ours against one recording server: the same requests, JSON and exit status."""

import email
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
VM = (200, {"vm_id": "vm_9", "session_id": "s-1", "status": "active", "memory_mb": 512.0, "é": [None]})
SNAPSHOT = (200, {"id": "sn/1", "snapshot_id": "sn/1", "name": "é", "status": "building", "type": "user", "log": None})
VOLUME = (200, {"id": "vol_1", "name": "data", "status": "available", "quota_bytes": 10737418240, "used_bytes": 1536})
CHECKPOINT = (200, {"id": "ck_1", "name": None, "status": "ready"})
FILE = (200, {"path": "docs/a.txt", "filename": "a.txt", "size": 6, "content": "aGVsbG8K", "more": 1.0})
POLICY = {"allow_package_managers": True, "allow_http": False, "allow_https": True, "allowed_domains": ["a.test", "é"], "allowed_cidrs": []}
EGRESS = (200, POLICY)
SET = (200, {"status": "ok", **POLICY})
DELETED = (200, {"status": "deleted", "id": "x"})
EMPTY = (204, b"")
SHARE = (200, {"share_id": "sh-1", "url": "http://127.0.0.1:20001", "port": 8000, "is_public": False, "é": 1.0})
REFUSED = (409, {"detail": "in use"})
NO_KEY = {"INSTAVM_API_KEY": None}


class Recorder(ThreadingHTTPServer):
    """Gives prepared answers and writes down what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"


def parts(kind, body):
    """The parts of a multipart body, in their order, as JSON: boundaries are of no importance."""
    whole = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    return json.dumps([(sorted(part.items()), part.get_payload(decode=True).decode()) for part in whole.get_payload()])


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type")
        if kind and kind.startswith("multipart/"):
            kind, body = "multipart", parts(kind, body)
        try:
            body = json.loads(body) if body else None
        except ValueError:
            body = body.decode(errors="replace")
        self.server.seen.append((self.command, self.path, self.headers.get("X-API-Key"), kind, body))
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
        # A file that was never finished has a name of its own.
        self.files = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
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
        assert ours.files == official.files, context
        assert (ours.config, ours.modes) == (official.config, official.modes), context
        assert bool(ours.stdout) == bool(official.stdout), context
        assert bool(ours.stderr) == bool(official.stderr), context
        if {"-j", "--json", "-aj"} & set(arguments):
            assert ours.stdout == official.stdout, context
        return ours

    return compare


CASES = {
    "share create": (["share", "create", "vm/1", "8000", "-j"], [SHARE]),
    "share create public": (["share", "create", "vm_1", "8000", "--public", "-j"], [SHARE]),
    "share create of no number": (["share", "create", "vm_1", "http", "-j"], []),
    "share create of an odd port": (["share", "create", "vm_1", "-1", "-j"], [(422, {"detail": "port: must be more"})]),
    "share create with little in it": (["share", "create", "v", "80", "-j"], [(200, {})]),
    "share create without an answer": (["share", "create", "v", "80", "-j"], [EMPTY]),
    "share create, 404": (["share", "create", "v", "80", "-j"], [(404, {"detail": "none"})]),
    "share create of nothing": (["share", "create", "v"], []),
    "share set-public": (["share", "set-public", "s/1", "-j"], [SHARE]),
    "share set-private": (["share", "set-private", "sh-1", "-j"], [EMPTY]),
    "share set-private, 409": (["share", "set-private", "sh-1", "-j"], [REFUSED]),
    "share revoke": (["share", "revoke", "sh-1", "-j"], [(200, {"status": "revoked", "share_id": "other"})]),
    "share revoke of nothing": (["share", "revoke"], []),
    "share": (["share"], []),
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
    "create": (["create", "-j"], [VM]),
    "new, with everything": (
        ["new", "--type", "computer-use", "--timeout", "600", "--memory", "1024", "--vcpu", "2", "--snapshot", "sn/1", "--session", "s-1"]
        + ["--volume", "vol_1:/data", "--volume", "vol_2:/ro:ro", "--volume=vol_3 : /old:RO:ck_1", "-j"],
        [VM],
    ),
    "create with nothing in it": (["create", "--snapshot=", "--session", "", "--memory", "-1", "--type", "standard", "-j"], [VM]),
    "create without an answer": (["create", "-j"], [EMPTY]),
    "create with a list for an answer": (["create", "-j"], [(200, [])]),
    "create without an id": (["create", "-j"], [(202, {"status": None, "vm_id": ""})]),
    "create refused": (["create", "-j"], [(403, {"detail": "vm lifetime cannot exceed 60s"})]),
    "create, 422": (["create", "-j"], [(422, {"detail": [{"msg": "bad"}]})]),
    "create, 429": (["create", "-j"], [(429, {"detail": "full"})]),
    "create, 504": (["create", "-j"], [(504, {"detail": "provisioning timed out"})]),
    "create of a stranger": (["create", "-j"], [(401, {})]),
    "create with half a volume": (["create", "--volume", "vol_1", "-j"], []),
    "create with too much of a volume": (["create", "--volume", "v:/m:ro:c:d", "-j"], []),
    "create with a mode of its own": (["create", "--volume", "v:/m:wx", "-j"], []),
    "create with a checkpoint to write on": (["create", "--volume", "v:/m:rw:c", "-j"], []),
    "create of an unknown type": (["create", "--type", "huge"], []),
    "create with a bad number": (["create", "--memory", "much"], []),
    "rm": (["rm", "vm_1", "vm/2", "-j"], [(200, {"status": "terminated", "vm_id": "vm_1", "n": 1.0}), EMPTY]),
    "delete": (["delete", "--json", "vm_1"], [(200, {})]),
    "rm that fails in the middle": (["rm", "a", "b", "c", "-j"], [DELETED, (404, {"detail": "none"})]),
    "rm with a list for an answer": (["rm", "a", "-j"], [(200, [1])]),
    "rm of dots": (["rm", "..", "-j"], []),
    "rm of nothing": (["rm"], []),
    "clone": (["clone", "vm_1", "-j"], [VM]),
    "clone with a name": (["clone", "--name", "é", "vm_1", "-j"], [VM]),
    "clone with an empty name": (["clone", "vm_1", "--name=", "-j"], [VM]),
    "clone, 404": (["clone", "vm_1", "-j"], [(404, {"detail": "none"})]),
    "clone of nothing": (["clone"], []),
    "vm update": (["vm", "update", "vm_1", "--memory-mb", "256", "-j"], [VM]),
    "vms update of everything": (["vms", "update", "vm_1", "--snapshot-on-terminate", "--snapshot-name", "end", "--memory-mb=2", "-j"], [(200, {})]),
    "vm update to no snapshot": (["vm", "update", "vm_1", "--no-snapshot-on-terminate", "-j"], [EMPTY]),
    "vm update answered with null": (["vm", "update", "vm_1", "--snapshot-name", "", "-j"], [(200, None)]),
    "vm update of nothing": (["vm", "update", "vm_1", "-j"], []),
    "vm update of both": (["vm", "update", "vm_1", "--snapshot-on-terminate", "--no-snapshot-on-terminate"], []),
    "vm update refused": (["vm", "update", "vm_1", "--memory-mb", "3", "-j"], [(422, {"detail": "even"})]),
    "vm": (["vm"], []),
    "snapshot ls": (["snapshot", "ls", "-j"], [(200, [SNAPSHOT[1], {"id": 7}])]),
    "snapshot list of a type": (["snapshot", "list", "--type", "system", "-j"], [(200, [])]),
    "snapshot ls of no list": (["snapshot", "ls", "-j"], [(200, {"a": 1})]),
    "snapshot ls of an unknown type": (["snapshot", "ls", "--type", "own"], []),
    "snapshot create": (["snapshot", "create", "vm_1", "-j"], [SNAPSHOT]),
    "snapshot create with a name": (["snapshot", "create", "vm_1", "--name", "n n", "-j"], [(200, {"id": "only"})]),
    "snapshot create, 409": (["snapshot", "create", "vm_1", "-j"], [REFUSED]),
    "snapshot build": (["snapshot", "build", "debian:12", "-j"], [SNAPSHOT]),
    "snapshot build with everything": (
        ["snapshot", "build", "r.example.com/a@sha256:b", "--name", "n", "--vcpu", "2", "--memory", "512", "--disk-size", "3", "--env", "A=b=c", "--env", " B =", "--type", "system"]
        + ["--git-clone", "https://example.com/r", "--git-branch", "main", "--run", "make é", "--apt", "git curl", "--pip", "numpy", "--npm", "left-pad", "-j"],
        [SNAPSHOT],
    ),
    "snapshot build with nothing in it": (["snapshot", "build", "x", "--apt=", "--run", "", "--disk-size", "0", "--name=", "-j"], [SNAPSHOT]),
    "snapshot build with a bad variable": (["snapshot", "build", "x", "--env", "A", "-j"], []),
    "snapshot build with a nameless variable": (["snapshot", "build", "x", "--env", " =b", "-j"], []),
    "snapshot build, 422": (["snapshot", "build", "x", "-j"], [(422, {"detail": "bad reference"})]),
    "snapshot build of nothing": (["snapshot", "build"], []),
    "snapshot get": (["snapshot", "get", "sn/1", "-j"], [SNAPSHOT]),
    "snapshot get, watched": (["snapshot", "get", "sn", "--watch", "1", "-j"], [SNAPSHOT, SNAPSHOT, (404, {})]),
    "snapshot get, watched badly": (["snapshot", "get", "sn", "--watch=-1", "-j"], []),
    "snapshot get, which is eaten": (["snapshot", "get", "--watch", "sn"], []),
    "snapshot get, 404": (["snapshot", "get", "sn", "-j"], [(404, {"detail": "none"})]),
    "snapshot rm": (["snapshot", "rm", "sn/1", "-j"], [DELETED]),
    "snapshot delete without an answer": (["snapshot", "delete", "sn", "-j"], [EMPTY]),
    "snapshot rm, 409": (["snapshot", "rm", "sn", "-j"], [REFUSED]),
    "egress get of a session": (["egress", "get", "--session", "s/1", "-j"], [EGRESS]),
    "egress get of a VM": (["egress", "get", "--vm", "vm_1", "-j"], [SET]),
    "egress get by the other name": (["egress", "get", "--vm", "v", "-j"], [(200, {"allow_public_repos": False, "allowed_domains": None, "allowed_cidrs": ["10.0.0.0/8"]})]),
    "egress get of nothing said": (["egress", "get", "--vm", "v", "-j"], [(200, {})]),
    "egress get with nothing in it": (["egress", "get", "--vm", "v", "-j"], [(200, {"allow_http": False, "allowed_domains": [], "status": None})]),
    "egress get, 404": (["egress", "get", "--session", "s", "-j"], [(404, {"detail": "none"})]),
    "egress get of nobody": (["egress", "get", "-j"], []),
    "egress get of both": (["egress", "get", "--session", "s", "--vm", "v", "-j"], []),
    "egress set to nothing": (["egress", "set", "--session", "s-1", "-j"], [SET, EGRESS]),
    "egress set of everything": (
        ["egress", "set", "--vm", "vm/1", "--no-allow-package-managers", "--deny-http", "--deny-https", "--domain", "a.test", "--domain=é", "--cidr", "10.0.0.0/8", "-j"],
        [(200, {"status": "ok"}), EGRESS],
    ),
    "egress set, the last word counts": (["egress", "set", "--vm", "v", "--deny-http", "--allow-http", "--allow-https", "--deny-https", "--allow-package-managers", "-j"], [SET, EGRESS]),
    "egress set refused": (["egress", "set", "--vm", "v", "--domain", "x y", "-j"], [(422, {"detail": "allowed_domains[0]: is no domain"})]),
    "egress set and lost": (["egress", "set", "--vm", "v", "-j"], [SET, (404, {"detail": "gone"})]),
    "egress set without an answer": (["egress", "set", "--vm", "v", "-j"], [EMPTY]),
    "egress set of nobody": (["egress", "set", "-j"], []),
    "egress": (["egress"], []),
    "volume ls": (["volume", "ls", "-j"], [(200, [VOLUME[1], {"id": "v"}])]),
    "volumes list, refreshed": (["volumes", "list", "--refresh", "-j"], [(200, [])]),
    "volume get": (["volume", "get", "vol/1", "-j"], [VOLUME]),
    "volume get, refreshed": (["volume", "get", "vol_1", "--refresh", "-j"], [(200, {})]),
    "volume get, 404": (["volume", "get", "vol_1", "-j"], [(404, {"detail": "none"})]),
    "volume create": (["volume", "create", "data", "--quota", "10gb", "-j"], [VOLUME]),
    "volume create of a part": (["volume", "create", "data", "--quota", "1.5 MB", "-j"], [VOLUME]),
    "volume create of bytes": (["volume", "create", "data", "--quota=-5", "-j"], [(422, {"detail": "no"})]),
    "volume create of much": (["volume", "create", "data", "--quota", "much", "-j"], []),
    "volume create of half a byte": (["volume", "create", "data", "--quota", "0.5", "-j"], []),
    "volume create without a quota": (["volume", "create", "data"], []),
    "volume update": (["volume", "update", "vol_1", "--name", "n", "--quota", "2TB", "-j"], [VOLUME]),
    "volume update without an answer": (["volume", "update", "vol_1", "--name", "n", "-j"], [EMPTY]),
    "volume update of nothing": (["volume", "update", "vol_1", "--name=", "-j"], []),
    "volume update refused": (["volume", "update", "vol_1", "--quota", "1kb", "-j"], [REFUSED]),
    "volume rm": (["volume", "rm", "vol/1", "-j"], [DELETED]),
    "volume delete without an answer": (["volume", "delete", "vol_1", "-j"], [EMPTY]),
    "volume rm, 409": (["volume", "rm", "vol_1", "-j"], [REFUSED]),
    "volume checkpoint ls": (["volume", "checkpoint", "ls", "vol_1", "-j"], [(200, [CHECKPOINT[1]])]),
    "volume checkpoint list of none": (["volume", "checkpoint", "list", "vol_1", "-j"], [(200, [])]),
    "volume checkpoint create": (["volume", "checkpoint", "create", "vol_1", "-j"], [CHECKPOINT]),
    "volume checkpoint create with a name": (["volume", "checkpoint", "create", "vol_1", "--name", "é", "-j"], [CHECKPOINT]),
    "volume checkpoint rm": (["volume", "checkpoint", "rm", "vol/1", "ck/1", "-j"], [DELETED]),
    "volume checkpoint delete, 409": (["volume", "checkpoint", "delete", "v", "c", "-j"], [REFUSED]),
    "volume checkpoint rm of half": (["volume", "checkpoint", "rm", "v"], []),
    "volume files ls": (["volume", "files", "ls", "vol_1", "-j"], [(200, [{"path": "a é", "size": 1024}, {"path": "b"}])]),
    "volume files list of a part": (["volume", "files", "list", "vol_1", "--prefix", "a b/", "--no-recursive", "--limit", "5", "-j"], [(200, [])]),
    "volume files download": (["volume", "files", "download", "vol_1", "docs/a.txt", "-j"], [FILE]),
    "volume files download to a place": (["volume", "files", "download", "vol_1", "a", "--out", "b.txt", "-j"], [FILE]),
    "volume files download of little": (["volume", "files", "download", "vol_1", "a", "-j"], [(200, {"content": "aGVsbG8="})]),
    "volume files download of nothing": (["volume", "files", "download", "vol_1", "a", "-j"], [(200, {"content": "", "size": 0})]),
    "volume files download, 404": (["volume", "files", "download", "vol_1", "a", "-j"], [(404, {"detail": "none"})]),
    "volume files rm": (["volume", "files", "rm", "vol_1", "a b/c", "-j"], [DELETED]),
    "volume files delete without an answer": (["volume", "files", "delete", "vol_1", "a", "-j"], [EMPTY]),
    "volume files upload of a missing file": (["volume", "files", "upload", "vol_1", "missing", "-j"], []),
    "volume": (["volume"], []),
    "volume files": (["volume", "files"], []),
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


# What is asked again is asked after 2 s, and after 4 s more.
AGAIN = {
    "snapshot create": (["snapshot", "create", "vm_1"], [(503, {"detail": "busy"}), SNAPSHOT]),
    "snapshot create that stays refused": (["snapshot", "create", "vm_1", "-j"], [(503, {}), (500, b"oops"), (504, {})]),
    "snapshot build": (["snapshot", "build", "x", "-j"], [(502, b"proxy"), SNAPSHOT]),
}


@pytest.mark.parametrize("case", AGAIN)
def test_the_same_again(both, case):
    arguments, answers = AGAIN[case]
    both(*arguments, answers=answers)


@pytest.mark.parametrize("flags", [["-j"], [], ["--path", "docs/é.txt", "--overwrite", "-j"]])
def test_uploads(both, flags):
    ours = both("volume", "files", "upload", "vol_1", "a.txt", *flags, answers=[(200, {"status": "uploaded"})], files={"a.txt": "line é\r\n"})
    assert ours.requests[0][3] == "multipart"
    both("volume", "files", "upload", "vol/1", "./a.txt", *flags, answers=[EMPTY], files={"a.txt": ""})
    both("volume", "files", "upload", "vol_1", "a.txt", *flags, answers=[(413, {"detail": "full"})], files={"a.txt": "x"})


@pytest.mark.parametrize("arguments", [["create"], ["clone", "vm_1"]])
def test_the_way_in_is_told(both, arguments):
    ours = both(*arguments, answers=[VM], environment={"INSTAVM_SSH_HOST": "gate.example.com"})
    assert "SSH: ssh vm_9@gate.example.com" in ours.stdout.splitlines()


@pytest.mark.parametrize("arguments", [["create", "--volume", "x"], ["rm", "a"], ["clone", "a"], ["vm", "update", "a"], ["snapshot", "ls"], ["snapshot", "create", "a"], ["snapshot", "build", "a", "--env", "x"], ["snapshot", "get", "a", "--watch=0"], ["volume", "ls"], ["volume", "create", "a", "--quota", "x"], ["volume", "update", "a"], ["volume", "checkpoint", "ls", "a"], ["volume", "files", "upload", "a", "missing"], ["whoami"], ["ls"], ["ssh-key", "list"], ["ssh-key", "remove", "1"], ["exec", "--cmd", "x"], ["exec", "result", "t"], ["auth", "status"], ["auth", "logout"]])
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
