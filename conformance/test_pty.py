"""Terminals: opened and closed by the official client, typed on through its WebSocket address."""

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

pytestmark = pytest.mark.contract

SECONDS = 30


class Terminal:
    """A connected terminal and what it has shown."""

    def __init__(self, url):
        self.socket = connect(url, open_timeout=SECONDS, max_size=1 << 20)
        self.shown = bytearray()
        self.said = []

    def type(self, text):
        self.socket.send(text.encode())

    def next(self):
        message = self.socket.recv(timeout=SECONDS)
        if isinstance(message, str):
            self.said.append(json.loads(message))
        else:
            self.shown += message

    def until(self, wanted):
        """Reads until the pattern was shown; forgets everything up to there."""
        while not (found := re.search(wanted, self.shown)):
            self.next()
        shown = bytes(found[0])
        del self.shown[: found.end()]
        return shown

    def rest(self):
        """Reads to the end: what was shown, the text frames, the close code."""
        try:
            while True:
                self.next()
        except ConnectionClosed as closed:
            return bytes(self.shown), self.said, closed.rcvd.code


@pytest.fixture
def open_terminal(client):
    """Opens terminals in the test's session."""

    def make(**options):
        made = client.pty.create(client.session_id, **options)
        return Terminal(client.pty.ws_url(client.session_id, made["session_id"])), made["session_id"]

    return make


def eventually(fits):
    deadline = time.monotonic() + SECONDS
    while not fits():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def test_a_login_shell(open_terminal):
    terminal, _ = open_terminal(cols=90, rows=33)
    terminal.type("stty size; id -un; pwd; tty; echo $TERM:$HOME; exit 7\n")
    shown, said, code = terminal.rest()
    for line in (b"33 90", b"root", b"/app", b"/dev/pts/", b"xterm-256color:/root"):
        assert line in shown, shown
    assert said == [{"type": "exit", "exit_code": 7}]
    assert code == 1000


def test_both_ways_address_the_same_terminals(client, http):
    vm_id = client.get_session_status()["vm_id"]
    made = client.pty.create_for_vm(vm_id, command="/bin/cat", pty_id="pty-0123456789ab")
    assert made["session_id"] == made["id"] == "pty-0123456789ab"
    assert made["vm_id"] == vm_id
    assert [one["id"] for one in client.pty.list(client.session_id)] == ["pty-0123456789ab"]
    assert client.pty.list(client.session_id) == client.pty.list_for_vm(vm_id)
    terminal = Terminal(client.pty.ws_url(client.session_id, made["id"]))
    terminal.type("back\n")
    terminal.until(rb"back\r\nback\r\n")
    client.pty.resize_for_vm(vm_id, made["id"], 120, 50)
    assert (client.pty.get(client.session_id, made["id"])["cols"], client.pty.get_for_vm(vm_id, made["id"])["rows"]) == (120, 50)
    with pytest.raises(requests.HTTPError) as taken:
        client.pty.create(client.session_id, pty_id=made["id"])
    assert taken.value.response.status_code == 409
    assert client.pty.kill_for_vm(vm_id, made["id"])["status"] == "deleted"
    assert client.pty.kill(client.session_id, made["id"])["status"] == "deleted"
    assert client.pty.list_for_vm(vm_id) == []
    assert terminal.rest()[2] == 4409


def test_what_is_written_before_the_connection_is_there(client):
    made = client.pty.create(client.session_id, command="/bin/bash -c 'seq 20000; exit 9'")
    eventually(lambda: not client.pty.get(client.session_id, made["id"])["alive"])
    record = client.pty.get(client.session_id, made["id"])
    assert (record["alive"], record["exit_code"]) == (False, 9)
    shown, said, _ = Terminal(client.pty.ws_url(client.session_id, made["id"])).rest()
    assert shown.decode().split() == [str(number) for number in range(1, 20001)]
    assert said == [{"type": "exit", "exit_code": 9}]


RESIZED = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
print("begun", flush=True)
signal.sigwait({signal.SIGWINCH})
print(os.get_terminal_size(), flush=True)
"""

INTERRUPTED = """
import time
try:
    print("begun", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("back:", input())
"""


def test_resizing_reaches_the_program(open_terminal):
    terminal, _ = open_terminal(command=f"/usr/bin/python3 -c '{RESIZED}'")
    terminal.until(rb"begun")
    terminal.socket.send(json.dumps({"type": "resize", "cols": 101, "rows": 41}))
    terminal.until(rb"columns=101, lines=41")


def test_signals_by_keys(open_terminal):
    terminal, _ = open_terminal(command=f"/usr/bin/python3 -c '{INTERRUPTED}'")
    terminal.until(rb"begun")
    terminal.type("\x03")
    terminal.until(rb"interrupted")
    terminal.type("still\n")
    terminal.until(rb"back: still")


def test_a_lost_connection_may_come_back_and_another_takes_over(client, open_terminal):
    first, pty_id = open_terminal()
    first.type("x=kept\n")
    first.until(rb"x=kept")
    first.socket.socket.close()
    url = client.pty.ws_url(client.session_id, pty_id)
    second = Terminal(url)
    second.type("echo $x-here\n")
    second.until(rb"kept-here")
    third = Terminal(url)
    assert second.rest()[1:] == ([], 4409)
    third.type("echo $x-again\n")
    third.until(rb"kept-again")


def test_a_program_that_writes_without_end_fills_no_memory(daemon, client, open_terminal, bash):
    terminal, pty_id = open_terminal(command="/usr/bin/yes")
    status = Path(f"/proc/{daemon.process.pid}/status")
    resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) >> 10  # noqa: E731
    before = resident()
    # Nobody reads; everything else goes on.
    assert bash("echo well") == "well\n"
    while len(terminal.shown) < 32 << 20:
        terminal.next()
    assert resident() - before < 64
    client.pty.kill(client.session_id, pty_id)


def test_large_input_arrives_whole(open_terminal):
    terminal, _ = open_terminal(command="/bin/bash -c 'stty raw -echo; echo begun; head -c 5000000 | sha256sum'")
    terminal.until(rb"begun")
    import hashlib

    data = os.urandom(5_000_000)
    sender = threading.Thread(target=lambda: [terminal.socket.send(data[at : at + 300_000]) for at in range(0, len(data), 300_000)])
    sender.start()
    terminal.until(hashlib.sha256(data).hexdigest().encode())
    sender.join()


def test_hundreds_at_once(clients):
    terminals = []
    for number in range(8):
        one = clients(memory_mb=256)
        for _ in range(25):
            made = one.pty.create(one.session_id, command="/bin/cat")
            terminals.append(Terminal(one.pty.ws_url(one.session_id, made["id"])))
    for number, terminal in enumerate(terminals):
        terminal.type(f"number {number}\n")
    for number, terminal in enumerate(terminals):
        terminal.until(f"number {number}\r\nnumber {number}\r\n".encode())
        terminal.socket.close()


def test_terminals_outlive_the_daemon(own_daemon):
    daemon = own_daemon("pty")
    daemon.start()
    client = daemon.client(timeout=280)
    made = client.pty.create(client.session_id)
    terminal = Terminal(client.pty.ws_url(client.session_id, made["id"]))
    terminal.type("x=kept; echo $x-1\n")
    terminal.until(rb"kept-1")
    daemon.kill9()
    daemon.start()
    again = Terminal(daemon.client(auto_start_session=False).pty.ws_url(client.session_id, made["id"]))
    again.type("echo $x-2\n")
    again.until(rb"kept-2")


def test_strangers_and_nonsense_are_refused(daemon, client, tenant):
    made = client.pty.create(client.session_id)
    url = client.pty.ws_url(client.session_id, made["id"])
    for wrong, status in (
        (url.split("?")[0], 401),
        (url.split("?")[0] + "?api_key=instavm_sk_wrong", 401),
        (url.replace(made["id"], "nothing"), 404),
        (url.replace(client.session_id, "00000000-0000-4000-8000-000000000000"), 404),
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(wrong, open_timeout=SECONDS)
        assert refused.value.response.status_code == status, wrong
    assert tenant.get(f"/v1/sessions/{client.session_id}/pty/sessions").status_code == 404
    for body in ({"cols": 0}, {"rows": 70000}, {"id": "a/b"}, {"shell": ""}):
        answer = daemon.http().post(f"/v1/sessions/{client.session_id}/pty/sessions", body)
        assert answer.status_code == 422, (body, answer.text)
        assert next(iter(body)) in answer.json()["detail"]


def test_the_official_command_line(daemon, client, tmp_path):
    vm_id = client.get_session_status()["vm_id"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
    environment |= {"HOME": str(tmp_path), "INSTAVM_API_KEY": daemon.key, "INSTAVM_BASE_URL": daemon.base_url, "NO_COLOR": "1"}
    program = Path(sys.executable).parent / "instavm"
    ours, its = os.openpty()
    shell = subprocess.Popen([program, "pty", vm_id], env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = bytearray()

    def read_until(fits):
        deadline = time.monotonic() + SECONDS
        while not fits():
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown.extend(os.read(ours, 1 << 16))
                except OSError:  # the other end is closed
                    return

    read_until(lambda: b"#" in shown)  # the prompt: from here on keys are passed on
    os.write(ours, b"echo from-$((1+1)); exit 5\n")
    read_until(lambda: b"from-2" in shown)
    read_until(lambda: shell.poll() is not None)
    os.close(ours)
    assert shell.wait(SECONDS) == 5, shown
    assert client.pty.list(client.session_id) == []
