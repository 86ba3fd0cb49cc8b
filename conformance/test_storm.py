"""kill -9 under load, again and again: no acknowledged record is lost, variables live on, nothing is left over."""

import os
import random
import threading
import time

import pytest
import requests

ROUNDS = int(os.environ.get("INSTAVM_SOAK_ROUNDS", "10"))
WORKERS = 4
VARIABLES = 4


class Load:
    """Callers that create, execute, start tasks and kill, and remember everything that was acknowledged to them."""

    def __init__(self, http):
        self.http = http
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.created, self.killed, self.tasks, self.unexpected = set(), set(), {}, []
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        chance = random.Random(number)
        http = type(self.http)(self.http.base_url, self.http.key)
        while not self.stop.is_set():
            try:
                self.turn(http, chance)
            except requests.exceptions.RequestException:
                return  # the daemon is gone: this round is over

    def turn(self, http, chance):
        answer = http.post("/v1/sessions/session", {"api_key": http.key, "memory_mb": 256}, timeout=60)
        if answer.status_code in (429, 503, 504):
            return
        if answer.status_code != 200:
            return self.note(answer)
        session_id = answer.json()["session_id"]
        with self.lock:
            self.created.add(session_id)
        self.expect(http.post("/execute", {"command": "print(1)", "session_id": session_id}, timeout=60))
        word = str(chance.random())
        answer = http.post("/execute_async", {"command": f"echo {word}", "session_id": session_id, "language": "bash"}, timeout=60)
        if answer.status_code in (200, 202):
            with self.lock:
                self.tasks[answer.json()["task_id"]] = word
        else:
            self.note(answer)
        answer = http.post("/kill", {"session_id": session_id}, timeout=60)
        if answer.status_code == 200:
            with self.lock:
                self.killed.add(session_id)
        else:
            self.note(answer)

    def expect(self, answer):
        if answer.status_code != 200 or answer.json()["stdout"] != "1\n":
            self.note(answer)

    def note(self, answer):
        with self.lock:
            self.unexpected.append((answer.status_code, answer.text[:300]))

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.soak
@pytest.mark.timeout(120 + ROUNDS * 60)
def test_kill_9_under_load(own_daemon):
    daemon = own_daemon("storm").start()
    http = daemon.http()
    kept = {http.start_session(vm_lifetime_seconds=86_400, memory_mb=256): number for number in range(VARIABLES)}
    for session_id, number in kept.items():
        http.execute(session_id, f"kept = {number}; rounds = 0")
    chance = random.Random(7)
    for round_number in range(1, ROUNDS + 1):
        load = Load(daemon.http())
        time.sleep(0.3 + 2 * chance.random())  # the moment of the kill is what varies
        daemon.kill9()
        load.end()
        assert load.unexpected == [], f"round {round_number}"
        daemon.start()
        survivors(daemon.http(), load, round_number)
        for session_id, number in kept.items():
            result = daemon.http().execute(session_id, "rounds += 1; print(kept, rounds)")
            assert result["stdout"] == f"{number} {round_number}\n", (round_number, result)
        clear(daemon.http(), load, kept)
        print(f"round {round_number}: {len(load.created)} sessions, {len(load.killed)} killed, {len(load.tasks)} tasks")
    daemon.assert_clean()


def survivors(http, load, round_number):
    """Everything that was acknowledged is there, as it was acknowledged."""
    for session_id in load.created:
        answer = http.get(f"/v1/sessions/session/{session_id}")
        assert answer.status_code == 200, (round_number, session_id, answer.text)
        if session_id in load.killed:
            assert answer.json()["status"] == "terminated", (round_number, answer.text)
    for task_id, word in load.tasks.items():
        answer = http.get(f"/v1/executions/{task_id}")
        assert answer.status_code == 200, (round_number, task_id, answer.text)
        record = answer.json()
        if record["is_complete"] and record["status"] == "completed" and record["exit_code"] == 0:
            assert record["serialized_stdout"] == f"{word}\n"


def clear(http, load, kept):
    for vm in http.get("/v1/vms").json():
        if vm["session_id"] not in kept:
            http.delete(f"/v1/vms/{vm['vm_id']}")
    assert {vm["session_id"] for vm in http.get("/v1/vms").json()} >= set(kept)
