"""The daemon may die at any moment; VMs live on and nothing is left over."""

import subprocess
import threading
from pathlib import Path

import pytest
from daemon import BINARY, eventually


@pytest.fixture
def instance(own_daemon):
    return own_daemon("restart").start()


def restarted(instance):
    instance.kill9()
    return instance.start().http()


def test_variables_threads_and_files_live_through_kill_9(instance):
    http = instance.http()
    session_id = http.start_session(metadata={"mark": "kept"}, env={"A": "b"})
    http.execute(
        session_id,
        "import threading, time\nx = 42\nticks = []\ndef tick():\n    while True:\n        ticks.append(1); time.sleep(0.01)\n"
        "threading.Thread(target=tick, daemon=True).start()",
    )
    before = int(http.execute(session_id, "print(len(ticks))")["stdout"])
    vm_id = http.get(f"/v1/sessions/status/{session_id}").json()["vm_id"]
    http = restarted(instance)
    assert http.execute(session_id, "print(x)")["stdout"] == "42\n"
    assert int(http.execute(session_id, "print(len(ticks))")["stdout"]) > before
    record = http.get(f"/v1/sessions/session/{session_id}").json()
    assert (record["status"], record["vm_id"], record["metadata"]) == ("active", vm_id, {"mark": "kept"})
    assert http.execute(session_id, "echo $A", "bash")["stdout"] == "b\n"
    instance.assert_clean()


def test_background_tasks_run_on_and_are_found_again(instance):
    http = instance.http()
    session_id = http.start_session()
    finished = http.post("/execute_async", {"command": "echo early", "session_id": session_id, "language": "bash"}).json()["task_id"]
    eventually(lambda: http.get(f"/v1/executions/{finished}").json()["is_complete"])
    running = http.post(
        "/execute_async", {"command": "echo one; sleep 4; echo two", "session_id": session_id, "language": "bash"}
    ).json()["task_id"]
    http = restarted(instance)
    assert http.get(f"/v1/executions/{finished}").json()["serialized_stdout"] == "early\n"
    record = eventually(lambda: complete(http, running), 20)
    assert (record["serialized_stdout"], record["exit_code"]) == ("one\ntwo\n", 0)


def complete(http, task_id):
    record = http.get(f"/v1/executions/{task_id}").json()
    return record if record["is_complete"] else None


def test_a_task_that_ended_while_the_daemon_was_away(instance):
    http = instance.http()
    session_id = http.start_session()
    task = http.post(
        "/execute_async",
        {"command": "echo begun; sleep 1; echo ended > /app/ended; echo ended", "session_id": session_id, "language": "bash"},
    ).json()["task_id"]
    instance.kill9()
    # The VM goes on by itself: its end of the task is seen in its disk or in its answer.
    http = instance.start().http()
    record = eventually(lambda: complete(http, task), 20)
    assert record["serialized_stdout"] == "begun\nended\n"


def test_an_execution_that_was_under_way_does_not_block_the_session(instance):
    http = instance.http()
    session_id = http.start_session()
    http.execute(session_id, "x = 1")

    def call():
        try:
            http.post("/execute", {"command": "open('/tmp/on', 'w'); import time; time.sleep(30)", "session_id": session_id, "timeout": 60})
        except Exception:  # noqa: BLE001 - the connection breaks off with the daemon
            return

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: instance.http().execute(session_id, "test -e /tmp/on", "bash")["exit_code"] == 0)
    after = restarted(instance)
    thread.join()
    assert after.execute(session_id, "print(x)", timeout=60)["stdout"] == "1\n"
    instance.assert_clean()


def test_sigterm_drains_and_leaves_vms_running(instance):
    http = instance.http()
    session_id = http.start_session()
    http.execute(session_id, "x = 'kept'")
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(http.execute(session_id, "open('/tmp/on', 'w'); import time; time.sleep(2); print('drained')"))
    )
    thread.start()
    eventually(lambda: instance.http().execute(session_id, "test -e /tmp/on", "bash")["exit_code"] == 0)
    assert instance.stop() == 0
    thread.join()
    assert answers[0]["stdout"] == "drained\n"
    http = instance.start().http()
    assert http.execute(session_id, "print(x)")["stdout"] == "kept\n"


def test_the_first_key_stays_and_can_be_chosen(own_daemon):
    chosen = "instavm_sk_chosen0123456789abcdef"
    instance = own_daemon("chosen").start(INSTAVM_BOOTSTRAP_API_KEY=chosen)
    assert instance.key == chosen
    assert instance.http(chosen).get("/v1/users/me").status_code == 200
    instance.stop()
    instance.start()
    assert instance.http(chosen).get("/v1/users/me").status_code == 200


def test_one_data_directory_has_one_daemon(instance):
    second = instance.command("serve", "--listen", "127.0.0.1:0", seconds=30)
    assert second.returncode != 0
    assert str(instance.data_dir) in second.stderr
    assert instance.http().get("/healthz").status_code == 200


def test_destroy_refuses_while_the_daemon_runs(instance):
    refused = instance.command("destroy")
    assert refused.returncode != 0 and "--force" in refused.stderr
    assert instance.http().get("/healthz").status_code == 200


def traces(instance):
    """What the kernel still has of an instance, found by its data directory or its VMs' files."""
    directory = str(instance.data_dir)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if directory in line]
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True).stdout
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if directory.encode() in path.read_bytes():
                commands.append(path)
        except OSError:
            continue
    return mounts + [line for line in loops.splitlines() if directory in line] + commands


def test_two_daemons_side_by_side_and_the_end_of_one(own_daemon):
    one, two = own_daemon("one").start(), own_daemon("two").start()
    first, second = one.http(), two.http()
    a, b = first.start_session(), second.start_session()
    first.execute(a, "x = 'one'")
    second.execute(b, "x = 'two'")
    assert second.get(f"/v1/sessions/status/{a}").status_code in (401, 404)
    rules_before = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    one.stop()
    done = one.command("destroy")
    assert done.returncode == 0, done.stderr
    assert traces(one) == []
    assert not (one.data_dir / "admin-key").exists()
    rules_after = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    assert len(rules_after.splitlines()) < len(rules_before.splitlines())
    assert second.execute(b, "print(x)")["stdout"] == "two\n"
    c = second.start_session()
    assert second.execute(c, "print(1)")["stdout"] == "1\n"
    two.assert_clean()


def test_destroy_after_kill_9_leaves_nothing(instance):
    http = instance.http()
    session_id = http.start_session()
    http.execute(session_id, "nohup sleep 5555 >/dev/null 2>&1 &", "bash")
    instance.kill9()
    done = instance.command("destroy", "--force")
    assert done.returncode == 0, done.stderr
    assert traces(instance) == []
    assert subprocess.run(["pgrep", "-f", "^sleep 5555"]).returncode == 1
    again = instance.command("destroy", "--force")
    assert again.returncode == 0, "destroying what is gone is no error"


def test_a_start_that_dies_midway_is_made_good_by_the_next(own_daemon):
    instance = own_daemon("midway")
    for milliseconds in (20, 80, 200, 500, 1000):
        process = subprocess.Popen(
            [BINARY, "serve", "--data-dir", instance.data_dir, "--listen", "127.0.0.1:0"],
            env=instance.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    http = instance.start().http()
    assert http.execute(http.start_session(), "print(1)")["stdout"] == "1\n"
    instance.assert_clean()


def test_a_vm_that_died_while_the_daemon_was_away_is_noticed(instance):
    http = instance.http()
    session_id = http.start_session()
    marker = "died-while-away"
    http.execute(session_id, f"nohup bash -c 'exec -a {marker} sleep 1000' >/dev/null 2>&1 &", "bash")
    pid = eventually(lambda: subprocess.run(["pgrep", "-f", f"^{marker}"], capture_output=True, text=True).stdout.split(), 5)[0]
    init = first_process(int(pid))
    instance.kill9()
    subprocess.run(["kill", "-9", str(init)], check=True)
    http = instance.start().http()
    status = eventually(lambda: ended(http, session_id), 10)
    assert status["vm_status"] == "killed"
    instance.assert_clean()


def ended(http, session_id):
    status = http.get(f"/v1/sessions/status/{session_id}").json()
    return None if status["vm_alive"] else status


def first_process(pid):
    """The host's id of PID 1 of the namespace that a process is in."""
    namespace = Path(f"/proc/{pid}/ns/pid").readlink()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inner = path.joinpath("status").read_text().split("NSpid:")[1].splitlines()[0].split()
            if inner[-1] == "1" and len(inner) > 1 and path.joinpath("ns/pid").readlink() == namespace:
                return int(path.name)
        except (OSError, IndexError):
            continue
    raise AssertionError("PID 1 was not found")
