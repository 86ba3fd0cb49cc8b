"""The examples of the official documentation, as written, against the base URL of the environment."""

import contextlib
import io
import textwrap

import pytest

pytestmark = pytest.mark.contract


@pytest.fixture
def example(daemon, tmp_path, monkeypatch):
    """Runs an example in a directory of its own and gives what it printed and its names.

    The text of an example stays as it is. Its key, and the base URL that it does not name, come from outside: as the
    defaults of the client's constructor, from where the command line takes them too.
    """
    import instavm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTAVM_API_KEY", daemon.key)
    monkeypatch.setenv("INSTAVM_BASE_URL", daemon.base_url)
    made = []

    class FromEnvironment(instavm.InstaVM):
        def __init__(self, api_key=None, **options):
            if api_key in (None, "your_api_key"):
                api_key = daemon.key
            super().__init__(api_key, **{"base_url": daemon.base_url, **options})
            made.append(self.session_id)

    monkeypatch.setattr(instavm, "InstaVM", FromEnvironment)

    def run(text):
        names, printed = {}, io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(textwrap.dedent(text), "example", "exec"), names)
        return printed.getvalue(), names

    yield run
    for session_id in filter(None, made):
        daemon.http().post("/kill", {"session_id": session_id})


def test_library_quick_start(example):
    printed, _ = example(
        """
        import os
        from instavm import InstaVM
        client = InstaVM(
            api_key=os.environ.get("INSTAVM_API_KEY"),
            auto_start_session=False,
        )
        me = client.get_current_user()
        vms = client.vms.list()
        print(me["email"])
        print(len(vms))
        """
    )
    email, count = printed.splitlines()
    assert email == "admin@localhost" and count.isdigit()


def test_sessions_and_configuration(example):
    printed, names = example(
        """
        from instavm import InstaVM
        client = InstaVM(
            api_key="your_api_key",
            cpu_count=2,
            memory_mb=1024,
            env={"APP_ENV": "dev"},
            metadata={"team": "platform"},
        )
        result = client.execute("print('session id:', 'ok')")
        print(result)
        print(client.session_id)
        """
    )
    assert names["result"]["stdout"] == "session id: ok\n"
    assert names["client"].session_id in printed


def test_file_operations(example, tmp_path):
    (tmp_path / "local_script.py").write_text("import json; json.dump({'made': 'inside'}, open('output.json', 'w'))")
    example(
        """
        from instavm import InstaVM
        client = InstaVM(api_key="your_api_key")
        client.upload_file("local_script.py", "/app/local_script.py")
        client.execute("python /app/local_script.py", language="bash")
        client.download_file("output.json", local_path="./output.json")
        """
    )
    assert (tmp_path / "output.json").read_text() == '{"made": "inside"}'


def test_async_execution(example):
    printed, names = example(
        """
        from instavm import InstaVM
        client = InstaVM(api_key="your_api_key")
        task = client.execute_async("sleep 5 && echo 'done'", language="bash")
        result = client.get_task_result(task["task_id"], poll_interval=2, timeout=60)
        print(result)
        """
    )
    assert names["result"]["stdout"] == "done\n"
    assert names["result"]["execution_time"] >= 5


def test_sandboxes(example):
    _, names = example(
        """
        from instavm import InstaVM
        client = InstaVM(api_key="your_api_key", metadata={"env": "production"})
        # List sandbox records with optional metadata filter and limit
        sandboxes = client.list_sandboxes(metadata={"env": "production"}, limit=50)
        print(len(sandboxes))
        """
    )
    assert names["client"].session_id in {record["session_id"] for record in names["sandboxes"]}


def test_a_basic_vm(example, http):
    _, names = example(
        """
        from instavm import InstaVM
        client = InstaVM(api_key="your_api_key")
        # Create a basic VM
        vm = client.vms.create(wait=True, metadata={"purpose": "dev"})
        # List VMs
        vms = client.vms.list() # GET /v1/vms (running)
        all_records = client.vms.list_all_records() # GET /v1/vms/ (all records)
        """
    )
    vm_id = names["vm"]["vm_id"]
    assert vm_id in {vm["vm_id"] for vm in names["vms"]}
    assert vm_id in {vm["vm_id"] for vm in names["all_records"]}
    http.delete(f"/v1/vms/{vm_id}")


def test_error_handling(example):
    printed, _ = example(
        """
        from instavm import (
            InstaVM,
            AuthenticationError,
            ExecutionError,
            NetworkError,
            RateLimitError,
            SessionError,
        )
        client = InstaVM(api_key="your_api_key")
        try:
            client.execute("raise Exception('boom')")
        except AuthenticationError:
            print("Invalid API key")
        except RateLimitError:
            print("Rate limited")
        except SessionError as exc:
            print(f"Session issue: {exc}")
        except ExecutionError as exc:
            print(f"Execution failed: {exc}")
        except NetworkError as exc:
            print(f"Network issue: {exc}")
        """
    )
    assert printed == "", "code that raises is a result, not an error of the call"


def test_how_sessions_work(example):
    _, names = example(
        """
        from instavm import InstaVM
        with InstaVM('your_api_key') as vm:
            vm.execute("x = 42")
            result = vm.execute("print(x)") # Output: 42
        # Same VM, same state
        """
    )
    assert names["result"]["output"] == "42\n"


def test_manual_session_management(example):
    printed, _ = example(
        """
        from instavm import InstaVM
        vm = InstaVM('your_api_key')
        try:
            result = vm.execute("print('hello')")
            # Check session status
            if vm.is_session_active():
                info = vm.get_session_info()
                print(f"Session ID: {info['session_id']}")
        finally:
            vm.close_session()
        """
    )
    assert "Session ID: " in printed


def test_session_expiry(example, http):
    _, names = example(
        """
        from instavm import InstaVM
        client = InstaVM('your_api_key')
        vm = client.vms.create(
            vm_lifetime_seconds=3600, # 1 hour
            wait=True
        )
        """
    )
    assert names["vm"]["vm_lifetime_seconds"] == 3600
    http.delete(f"/v1/vms/{names['vm']['vm_id']}")


@pytest.mark.timeout(400)
def test_the_multi_execute_pattern(example, index_reachable):
    _, names = example(
        """
        from instavm import InstaVM
        with InstaVM('your_api_key') as vm:
            # Step 1: Install dependencies
            install = vm.execute("import subprocess; subprocess.check_call(['pip', 'install', 'pandas'])", timeout=280)
            # Step 2: Load data
            vm.execute("import pandas as pd; df = pd.DataFrame({'a': [1,2,3]})")
            # Step 3: Process
            result = vm.execute("print(df.describe())")
            print(result['output'])
        """
    )
    if index_reachable:
        assert names["install"]["exit_code"] == 0, names["install"]
        assert "mean   2.0" in names["result"]["output"]
    else:
        assert "CalledProcessError" in names["install"]["stderr"]


def test_session_info(example):
    _, names = example(
        """
        from instavm import InstaVM
        vm = InstaVM('your_api_key')
        info = vm.get_session_info()
        # Returns: {'session_id': '...', 'status': 'active', ...}
        usage = vm.get_usage()
        # Returns: {'cpu_time': ..., 'memory_used': ..., 'network_io': ...}
        """
    )
    assert names["info"]["status"] == "active"
    assert set(names["usage"]) >= {"cpu_time", "memory_used", "network_io"}
