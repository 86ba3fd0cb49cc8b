"""Lifetimes are kept by the node, within a second, also across a restart."""

import time

import pytest
from daemon import eventually


def alive(http, session_id):
    return http.get(f"/v1/sessions/status/{session_id}").json()["vm_alive"]


@pytest.mark.contract
def test_a_vm_ends_within_a_second_of_its_time(daemon, http):
    started = time.monotonic()
    session_id = http.start_session(vm_lifetime_seconds=20)
    http.execute(session_id, "kept = 1")
    eventually(lambda: not alive(http, session_id), 30, 0.02)
    lived = time.monotonic() - started
    assert 19.5 < lived < 21.5, lived
    status = http.get(f"/v1/sessions/status/{session_id}").json()
    assert status["vm_status"] == "killed" and status["expires_in_seconds"] == 0
    assert status["ended_by"] == "expired"


@pytest.mark.contract
def test_the_next_execution_after_expiry_gets_a_fresh_vm(http):
    session_id = http.start_session(vm_lifetime_seconds=20)
    first = http.get(f"/v1/sessions/status/{session_id}").json()["vm_id"]
    http.execute(session_id, "kept = 1")
    eventually(lambda: not alive(http, session_id), 30)
    assert http.execute(session_id, "print('kept' in globals())")["stdout"] == "False\n"
    assert http.get(f"/v1/sessions/status/{session_id}").json()["vm_id"] != first
    http.post("/kill", {"session_id": session_id})


def test_an_execution_that_outlives_its_vm_is_answered(http):
    session_id = http.start_session(vm_lifetime_seconds=20)
    started = time.monotonic()
    answer = http.post("/execute", {"command": "import time; time.sleep(60)", "session_id": session_id, "timeout": 60}, timeout=90)
    assert time.monotonic() - started < 25
    assert answer.status_code in (200, 404, 409, 410), answer.text
    if answer.status_code == 200:
        assert answer.json()["exit_code"] != 0


def test_lifetimes_go_on_while_the_daemon_is_away(own_daemon):
    daemon = own_daemon().start()
    http = daemon.http()
    started = time.monotonic()
    short = http.start_session(vm_lifetime_seconds=20)
    long = http.start_session(vm_lifetime_seconds=600)
    http.execute(long, "x = 1")
    daemon.kill9()
    while time.monotonic() - started < 21:
        time.sleep(0.1)
    daemon.start()
    http = daemon.http()
    eventually(lambda: not alive(http, short), 2, 0.05)
    assert http.execute(long, "print(x)")["stdout"] == "1\n"
    daemon.assert_clean()


def test_a_restart_does_not_lengthen_a_life(own_daemon):
    daemon = own_daemon().start()
    started = time.monotonic()
    session_id = daemon.http().start_session(vm_lifetime_seconds=20)
    daemon.kill9()
    daemon.start()
    http = daemon.http()
    assert alive(http, session_id)
    eventually(lambda: not alive(http, session_id), 30, 0.02)
    assert 19.5 < time.monotonic() - started < 21.5
