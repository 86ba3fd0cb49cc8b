"""Executions: state, languages, output, time limits, background tasks."""

import base64
import threading
import time
from pathlib import Path

import pytest
import requests
from daemon import eventually

from instavm import ExecutionError, InstaVMError

pytestmark = pytest.mark.contract


# State between calls


def test_names_imports_functions_classes_and_cwd_persist(run):
    run("x = 42\nimport math\ndef double(n): return n * 2\nclass P:\n    def hi(self): return 'hi'")
    run("import os; os.makedirs('/tmp/here', exist_ok=True); os.chdir('/tmp/here'); os.environ['MINE'] = '1'")
    assert run("print(x, math.pi > 3, double(x), P().hi(), os.getcwd(), os.environ['MINE'])") == "42 True 84 hi /tmp/here 1\n"


def test_threads_and_open_files_go_on_between_calls(run):
    run(
        "import threading, time\nticks = []\ndef tick():\n    while True:\n        ticks.append(1); time.sleep(0.01)\n"
        "threading.Thread(target=tick, daemon=True).start()\nhandle = open('/tmp/log', 'w')"
    )
    first = int(run("print(len(ticks))"))
    eventually(lambda: int(run("print(len(ticks))")) > first, 5)
    run("handle.write('kept'); handle.close()")
    assert run("print(open('/tmp/log').read())") == "kept\n"


def test_background_processes_of_python_and_bash_survive(run, bash):
    run("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    bash("nohup sleep 1001 >/dev/null 2>&1 &\ndisown")
    assert run("print(p.poll())") == "None\n"
    assert bash("pgrep -f 'sleep 100[01]' | wc -l").strip() == "2"


def test_a_background_process_does_not_hold_the_answer(client, stopwatch):
    stopwatch()
    result = client.execute("sleep 30 &\necho started", language="bash")
    assert result["stdout"] == "started\n"
    assert stopwatch() < 5


def test_a_server_started_in_the_background_is_reachable_inside(bash):
    bash("cd /tmp && nohup python -m http.server 3000 >/dev/null 2>&1 &")
    out = bash("for i in $(seq 100); do curl -fsS http://127.0.0.1:3000/ >/dev/null 2>&1 && echo up && exit; sleep 0.1; done")
    assert out == "up\n"


def test_each_bash_call_is_a_new_shell_in_app(bash):
    bash("cd /tmp; export GONE=1; echo kept > /app/kept")
    assert bash('pwd; echo "[${GONE-}]"; cat kept') == "/app\n[]\nkept\n"


# Results


def test_an_expression_does_not_print_and_print_does(run):
    assert run("print('a'); print('b', end='')") == "a\nb"


def test_the_answer_has_everything_that_clients_read(client):
    result = client.execute("import sys; print('out'); print('err', file=sys.stderr)", language="python")
    assert result["stdout"] == "out\n"
    assert result["stderr"] == "err\n"
    assert result["output"] == "out\n"
    assert result["exit_code"] == 0
    assert result["language"] == "python"
    assert result["session_id"] == client.session_id
    assert result["timed_out"] is False
    assert 0 <= result["cpu_time"] and 0 <= result["execution_time"] < 5
    assert None not in (result["created_at"], result["execution_time"], result["cpu_time"])


def test_an_exception_is_a_traceback_without_our_frames(client):
    result = client.execute("def f():\n    raise ValueError('boom')\nf()")
    assert result["exit_code"] == 1
    lines = result["stderr"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: boom"
    files = [line for line in lines if line.lstrip().startswith("File ")]
    assert len(files) == 2, result["stderr"]
    assert "line 3" in files[0] and "line 2" in files[1]
    assert client.execute("print('goes on')")["stdout"] == "goes on\n"


def test_a_stopped_command_is_a_traceback_without_our_frames(client):
    result = client.execute("import os\n!sleep 100", timeout=2)
    assert result["timed_out"] is True
    assert "line 2, in <module>" in result["stderr"] and "KeyboardInterrupt" in result["stderr"]
    assert "<instavm>" not in result["stderr"] and "subprocess" not in result["stderr"]


def test_closing_the_standard_descriptors_does_not_silence_the_session(client):
    client.execute("import os; kept = 'kept'; os.close(1)")
    assert client.execute("print(kept)")["stdout"] == "kept\n"
    client.execute("os.close(2)")
    assert client.execute("1/0")["stderr"].endswith("ZeroDivisionError: division by zero\n")
    assert client.execute("print(kept)")["stdout"] == "kept\n"


def test_a_syntax_error_names_its_line(client):
    result = client.execute("x = 1\ny = = 2", language="python")
    assert result["exit_code"] == 1
    assert "SyntaxError" in result["stderr"] and "line 2" in result["stderr"]


@pytest.mark.parametrize(
    "code, status, stderr",
    [("import sys; sys.exit()", 0, ""), ("import sys; sys.exit(3)", 3, ""), ("import sys; sys.exit('why')", 1, "why\n"), ("exit(4)", 4, "")],
)
def test_sys_exit_sets_the_status_and_keeps_the_state(client, code, status, stderr):
    client.execute("kept = 1")
    result = client.execute(code)
    assert (result["exit_code"], result["stderr"]) == (status, stderr)
    assert client.execute("print(kept)")["stdout"] == "1\n"


@pytest.mark.parametrize("death", ["import os; os._exit(7)", "import ctypes; ctypes.string_at(0)", "import os; os.kill(os.getpid(), 9)"])
def test_an_interpreter_that_dies_is_replaced_and_the_answer_says_so(client, death):
    client.execute("x = 1")
    result = client.execute(death)
    assert result["exit_code"] != 0
    assert result["state_lost"] is True
    assert result["stderr"].strip()
    after = client.execute("print('x' in globals())")
    assert (after["stdout"], after["exit_code"]) == ("False\n", 0)
    assert not after.get("state_lost")


def test_code_that_runs_out_of_memory_is_reported_and_the_session_goes_on(clients):
    client = clients(memory_mb=256)
    result = client.execute("x = b''\nwhile True: x += b'x' * (16 << 20)")
    assert result["exit_code"] != 0
    assert "memory" in result["stderr"].lower()
    assert client.execute("print('alive')")["stdout"] == "alive\n"


def test_input_gets_end_of_file(client, stopwatch):
    result = client.execute("input('name? ')", timeout=20)
    assert "EOFError" in result["stderr"]
    assert client.execute("read x; echo \"status $?\"", language="bash")["stdout"] == "status 1\n"
    assert stopwatch() < 15


def test_user_code_runs_as_main_module(run):
    assert run("print(__name__)\nimport pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)") == "__main__\nA\n"


def test_multiprocessing_and_asyncio_work(run):
    assert run("import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()))") == "5\n"
    code = "import multiprocessing as m\ndef sq(n): return n * n\nwith m.get_context('fork').Pool(2) as p: print(p.map(sq, range(4)))"
    assert run(code) == "[0, 1, 4, 9]\n"


def test_shell_lines_in_python(client):
    result = client.execute("n = 3\n!echo from the shell\nprint('after', n)")
    assert result["stdout"] == "from the shell\nafter 3\n"
    assert client.execute("for i in range(2):\n    !echo in a loop")["stdout"] == "in a loop\n" * 2
    assert client.execute("text = '''\n!not a command\n'''\nprint(text)")["stdout"] == "\n!not a command\n\n"


# Languages


def test_bash_scripts_have_status_pipes_and_many_lines(client):
    result = client.execute("set -o pipefail\nfor i in 1 2 3; do echo $i; done | sort -r\nexit 7", language="bash")
    assert (result["stdout"], result["exit_code"], result["language"]) == ("3\n2\n1\n", 7, "bash")
    killed = client.execute("kill -TERM $$", language="bash")
    assert killed["exit_code"] == 128 + 15


@pytest.mark.parametrize(
    "code, language",
    [
        ("print(1)", "python"),
        ("ls /", "bash"),
        ("mkdir -p /tmp/made && ls -d /tmp/made", "bash"),
        ("curl --version", "bash"),
        ("echo hello world", "bash"),
        ("FOO=bar", "python"),
        ("this is nothing", "python"),
        ("import os", "python"),
    ],
)
def test_without_a_language_it_is_python_unless_it_starts_with_a_program(client, code, language):
    result = client.execute(code)
    assert result["language"] == language, result


def test_empty_and_blank_code(client):
    for code in ("", "\n", "# only a comment", "   \n\t\n"):
        result = client.execute(code, language="python")
        assert (result["exit_code"], result["stdout"], result["stderr"]) == (0, "", "")
    assert client.execute("true", language="bash")["exit_code"] == 0


def test_the_probe_of_the_agents_integration(client):
    result = client.execute("true", language="bash", timeout=10)
    assert result["exit_code"] == 0


# Output


def test_output_is_exact(client):
    assert client.execute(r"printf 'a\tb\r\n\033[1m\0z'", language="bash")["stdout"] == "a\tb\r\n\033[1m\0z"
    assert client.execute("print('é€𝄞', end='')")["stdout"] == "é€𝄞"
    assert client.execute("import sys; sys.stdout.write('no newline')")["stdout"] == "no newline"


def test_invalid_utf8_is_replaced_and_the_exact_bytes_come_too(client):
    result = client.execute(r"printf 'ok \xff\xfe end'; printf 'e\x80' >&2", language="bash")
    assert result["stdout"] == "ok \ufffd\ufffd end"
    assert base64.b64decode(result["stdout_b64"]) == b"ok \xff\xfe end"
    assert base64.b64decode(result["stderr_b64"]) == b"e\x80"
    clean = client.execute("print('ok')")
    assert "stdout_b64" not in clean and "stderr_b64" not in clean


def test_characters_that_are_written_in_pieces_are_whole(client):
    code = "import os, time\nfor b in '€𝄞'.encode():\n    os.write(1, bytes([b])); time.sleep(0.02)"
    assert client.execute(code)["stdout"] == "€𝄞"


def test_python_and_its_children_write_in_order(client):
    code = "import subprocess, sys\nfor i in range(20):\n    print('py', i)\n    sys.stdout.flush()\n    subprocess.run(['echo', f'sh {i}'])"
    assert client.execute(code)["stdout"] == "".join(f"py {i}\nsh {i}\n" for i in range(20))


def test_lines_are_in_order_and_none_is_missing(client):
    wanted = "".join(f"{i}\n" for i in range(200_000))
    assert client.execute("for i in range(200_000): print(i)")["stdout"] == wanted
    assert client.execute("seq 0 199999", language="bash")["stdout"] == wanted


@pytest.mark.parametrize("language", ["python", "bash"])
def test_64_mib_of_output_come_whole(client, language):
    size = 64 << 20
    code = "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))" if language == "python" else f"head -c {size} /dev/zero | tr '\\0' x"
    result = client.execute(code, language=language, timeout=120)
    assert len(result["stdout"]) == size
    assert result["stdout"].count("x") == size


def test_background_output_of_python_comes_whole_with_the_next_python(client):
    size = 8 << 20
    client.execute(f"import subprocess\nsubprocess.Popen('head -c {size} /dev/zero | tr \"\\\\0\" x; touch /tmp/over', shell=True)")
    eventually(lambda: client.execute("test -e /tmp/over", language="bash")["exit_code"] == 0)
    assert client.execute("print('next')")["stdout"] == "x" * size + "next\n"


def test_output_of_late_children_belongs_to_nobody_else(client):
    client.execute("(sleep 0.5; echo late; touch /tmp/late) &", language="bash")
    eventually(lambda: client.execute("test -e /tmp/late", language="bash")["exit_code"] == 0)
    assert client.execute("print('mine')")["stdout"] == "mine\n"


def test_a_command_of_ten_megabytes(client):
    text = "x" * (10 << 20)
    assert client.execute(f"print(len('{text}'))")["stdout"] == f"{10 << 20}\n"
    assert client.execute(f": <<'END'\n{text}\nEND\necho done", language="bash")["stdout"] == "done\n"


# Time limits


@pytest.mark.parametrize("seconds", [1, 2])
@pytest.mark.parametrize(
    "language, code",
    [
        ("python", "print('before', flush=True)\nwhile True: pass"),
        ("python", "print('before', flush=True)\nimport time; time.sleep(600)"),
        ("bash", "echo before; sleep 600"),
        ("bash", "echo before; while :; do :; done"),
    ],
)
def test_the_answer_comes_before_the_time_is_over_with_the_output_so_far(client, language, code, seconds):
    client.execute("kept = 'kept'")
    started = time.monotonic()
    # The client gives up after the same number of seconds, so an answer at all is an answer in time.
    result = client.execute(code, language=language, timeout=seconds)
    assert time.monotonic() - started < seconds
    assert result["stdout"] == "before\n"
    assert (result["timed_out"], result["exit_code"]) == (True, 124)
    assert result["stderr"].strip(), "the answer says what happened"
    assert client.execute("print(kept)", timeout=20)["stdout"] == "kept\n"


def test_code_that_catches_the_interrupt_is_ended_all_the_same(client):
    code = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    result = client.execute(code, timeout=2)
    assert result["timed_out"] is True
    assert client.execute("print('goes on')", timeout=20)["stdout"] == "goes on\n"


def test_c_code_that_does_not_return_to_python_is_ended(client):
    result = client.execute("sum(range(10 ** 12))", timeout=2)
    assert result["timed_out"] is True
    assert client.execute("print('goes on')", timeout=20)["stdout"] == "goes on\n"


def test_keyboard_interrupt_can_be_used_by_the_code_itself(client):
    code = "import signal, os\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(1)\nexcept KeyboardInterrupt:\n    print('caught')"
    assert client.execute(code)["stdout"] == "caught\n"


def test_children_of_a_timed_out_script_are_gone(client):
    client.execute("sleep 4242 & sleep 4243", language="bash", timeout=1)
    eventually(lambda: client.execute("pgrep -c 'sleep' || true", language="bash")["stdout"].strip() == "0", 5)


def test_what_a_stopped_script_has_sent_away_is_gone_and_what_a_finished_one_has_left_stays(client):
    client.execute("setsid sleep 5151 >/dev/null 2>&1 &", language="bash")
    result = client.execute("setsid sleep 5252 & (setsid sleep 5353 &) ; sleep 5454", language="bash", timeout=1)
    assert result["timed_out"] is True
    left = "pgrep -a sleep | cut -d' ' -f2-"
    eventually(lambda: client.execute(left, language="bash")["stdout"] == "sleep 5151\n", 5)


def test_python_calls_queue_and_shell_calls_run_at_once(daemon, client, stopwatch):
    http = daemon.http()
    results = {}

    def call(name, code, language):
        results[name] = (http.execute(client.session_id, code, language), time.monotonic())

    slow = threading.Thread(target=call, args=("slow", "open('/tmp/slow', 'w'); import time; time.sleep(2); order = ['slow']", "python"))
    slow.start()
    eventually(lambda: client.execute("test -e /tmp/slow", language="bash")["exit_code"] == 0, 5)
    stopwatch()
    assert client.execute("echo at once", language="bash")["stdout"] == "at once\n"
    assert stopwatch() < 1.5
    slow.join()
    assert client.execute("print(order)")["stdout"] == "['slow']\n"


def test_shell_text_without_a_language_starts_beside_a_busy_python(daemon, client):
    http = daemon.http()
    code = "import os, time\nopen('/tmp/busy', 'w')\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)"
    busy = threading.Thread(target=lambda: http.execute(client.session_id, code, "python", 60))
    busy.start()
    eventually(lambda: client.execute("test -e /tmp/busy", language="bash")["exit_code"] == 0, 5)
    # It would wait for itself if it waited for Python.
    result = client.execute("touch /tmp/go && echo at once", timeout=20)
    assert (result["stdout"], result["language"]) == ("at once\n", "bash")
    busy.join()


def test_the_queue_counts_towards_the_time(daemon, client):
    http = daemon.http()
    slow = threading.Thread(target=lambda: http.execute(client.session_id, "open('/tmp/slow', 'w'); import time; time.sleep(4); done = 1", "python", 30))
    slow.start()
    eventually(lambda: client.execute("test -e /tmp/slow", language="bash")["exit_code"] == 0, 5)
    started = time.monotonic()
    result = client.execute("print('never')", language="python", timeout=2)
    assert time.monotonic() - started < 2
    assert result["timed_out"] is True and result["stdout"] == ""
    slow.join()
    assert client.execute("print(done)")["stdout"] == "1\n"


def test_a_caller_that_hangs_up_leaves_the_session_well(daemon, client):
    body = {"command": "import time\ntime.sleep(60)", "session_id": client.session_id, "timeout": 100}
    with pytest.raises(requests.exceptions.Timeout):
        daemon.http().post("/execute", body, timeout=1)
    assert client.execute("print('next')", timeout=30)["stdout"] == "next\n"


# Background tasks


def test_a_task_is_polled_to_its_end(client):
    task = client.execute_async("sleep 1; echo done; echo problem >&2; exit 3", language="bash")
    first = client._request_json("GET", f"/v1/executions/{task['task_id']}")
    assert first["is_complete"] is False and first["status"] in ("pending", "running")
    result = client.get_task_result(task["task_id"], poll_interval=1, timeout=30)
    assert (result["stdout"], result["stderr"]) == ("done\n", "problem\n")
    assert result["execution_time"] >= 1
    record = client._request_json("GET", f"/v1/executions/{task['task_id']}")
    assert (record["status"], record["exit_code"], record["session_id"]) == ("completed", 3, client.session_id)


def test_a_python_task_works_on_the_sessions_variables(client):
    client.execute("x = 20")
    task = client.execute_async("x += 1; print(x)")
    assert client.get_task_result(task["task_id"])["stdout"] == "21\n"
    assert client.execute("print(x)")["stdout"] == "21\n"


def test_a_task_has_a_time_limit_too(client):
    task = client.execute_async("echo so far; sleep 600", language="bash", timeout=2)
    result = client.get_task_result(task["task_id"], timeout=20)
    assert result["stdout"] == "so far\n"
    assert client._request_json("GET", f"/v1/executions/{task['task_id']}")["timed_out"] is True


def test_tasks_of_a_killed_session_become_complete(clients):
    client = clients()
    task = client.execute_async("sleep 600", language="bash")
    client.kill()
    result = client.get_task_result(task["task_id"], timeout=20)
    assert result["stderr"].strip()


def test_many_tasks_at_once(client):
    tasks = [client.execute_async(f"echo {i}; sleep 1", language="bash")["task_id"] for i in range(20)]
    assert len(set(tasks)) == 20
    assert [client.get_task_result(task)["stdout"] for task in tasks] == [f"{i}\n" for i in range(20)]


def test_tasks_of_others_are_404(client, tenant, http):
    task = client.execute_async("echo 1", language="bash")
    assert tenant.get(f"/v1/executions/{task['task_id']}").status_code == 404
    assert http.get("/v1/executions/nothing").status_code == 404


# The machine


def test_the_image_offers_what_it_promises(bash, run):
    assert bash("whoami; echo $HOME; pwd") == "root\n/root\n/app\n"
    for program in (
        "bash python python3 pip node npm git curl wget tar gzip unzip ps ip ssh sudo update-ca-certificates sh realpath base64"
    ).split():
        bash(f"command -v {program}")
    assert tuple(map(int, run("import sys; print(*sys.version_info[:2])").split())) >= (3, 11)
    assert int(bash("node -p 'process.versions.node.split(\".\")[0]'")) >= 18
    assert bash("npm --version").strip()
    assert bash("node -e 'console.log([1,2].map(x => x * 2).join())'") == "2,4\n"
    assert run("import sys; print(sys.stdout.encoding, open('/tmp/x', 'w').encoding)").lower() == "utf-8 utf-8\n"
    assert "UTF-8" in bash("locale charmap")
    bash("touch /workspace/x /app/x; mkdir -p /workspace/y")
    bash("python -m venv /tmp/v && /tmp/v/bin/python -c 'print(1)'")


def test_programs_with_authorities_of_their_own_trust_what_the_vm_trusts(run, bash):
    names = "SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS".split()
    for name in names:
        assert "BEGIN CERTIFICATE" in bash(f'head -c 4096 "${name}"')
        assert run(f"import os; print(os.path.exists(os.environ['{name}']))") == "True\n"
    local = sorted(Path("/usr/local/share/ca-certificates").glob("*.crt"))
    bundle = bash('cat "$SSL_CERT_FILE"')
    assert all(authority.read_text().strip() in bundle for authority in local)


def test_sudo_works_without_a_word(client):
    result = client.execute("sudo id -u; sudo -u appuser -- id -un; sudo -u appuser -- sudo id -u", language="bash")
    assert (result["stdout"], result["stderr"]) == ("0\nappuser\n0\n", "")


def test_files_of_the_kernel_come_down_whole(client):
    for path in ("/proc/version", "/sys/class/net/eth0/address"):
        expected = client.execute(f"cat {path}", language="bash")["stdout"]
        assert client.download_file(path)["content"].decode() == expected
    assert b"processor" in client.download_file("/proc/cpuinfo")["content"]
    assert b"eth0" in client.download_file("/proc/net/dev")["content"]


def test_no_file_leads_to_the_agent(client, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(b"x")
    for path in ("/proc/self/exe", "/proc/self/root/app/x", "/dev/fd/3"):
        with pytest.raises(InstaVMError) as refused:
            client.upload_file(str(local), path)
        assert "instavm-agent" not in str(refused.value)
        with pytest.raises(InstaVMError):
            client.download_file(path)


def test_what_is_masked_of_the_host_does_not_hinder_the_tools(bash, run):
    for path in "cmdline diskstats mdstat partitions swaps".split():
        assert bash(f"[ ! -e /proc/{path} ] || cat /proc/{path}") == ""
    for path in "class/block class/bdi devices/virtual/block devices/virtual/bdi".split():
        assert bash(f"[ ! -e /sys/{path} ] || ls -A /sys/{path}") == ""
    for command in ("df -h /", "free -m", "top -b -n 1", "ps aux", "uptime", "vmstat", "mount", "nproc"):
        assert bash(command).strip(), command
    assert int(run("print([line.split()[1] for line in open('/proc/meminfo') if line.startswith('MemTotal')][0])")) > 0
    assert run("print(open('/proc/stat').read().split()[0])") == "cpu\n"


def test_memory_that_is_full_of_files_is_said_at_once(clients, stopwatch):
    client = clients(memory_mb=256)
    client.execute("mount -t tmpfs none /mnt; dd if=/dev/zero of=/mnt/fill bs=64k", language="bash", timeout=30)

    def refused():
        stopwatch()
        try:
            # The interpreter from before may still be there, without the memory to go on.
            client.execute("print(1)", language="python", timeout=10)
        except ExecutionError as error:
            return str(error)

    message = eventually(refused, 60)
    assert stopwatch() < 8
    assert "409" in message
    assert client.get_session_status()["vm_alive"] is True


def test_apt_and_dpkg_are_in_order(bash):
    assert bash("apt-get --version | head -1").startswith("apt ")
    assert bash("dpkg --audit") == ""


def test_loopback_is_up_and_names_resolve(run, bash):
    assert run("import socket; print(socket.gethostbyname('localhost'))") == "127.0.0.1\n"
    bash("ping -c 1 127.0.0.1")
    bash('getent hosts "$(hostname)"')


def test_pip_installs_where_the_host_can(client, index_reachable):
    result = client.execute("pip install iniconfig", language="bash", timeout=120)
    if index_reachable:
        assert result["exit_code"] == 0, result
        assert "externally-managed" not in result["stderr"]
        assert client.execute("import iniconfig; print('in')")["stdout"] == "in\n"
    else:
        assert result["exit_code"] != 0
        assert "externally-managed" not in result["stderr"]
