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


def test_vms_and_snapshots(example, make):
    # The one change: a volume of the name that the example gives an id to.
    volume = make.volume()
    _, names = example(
        """
        from instavm import InstaVM
        client = InstaVM(api_key="your_api_key")
        # Create a basic VM
        vm = client.vms.create(wait=True, metadata={"purpose": "dev"})
        # Create a VM with pre-attached volumes
        vm_with_vols = client.vms.create(
            wait=True,
            volumes=[{"volume_id": "vol_abc", "mount_path": "/data", "mode": "rw"}],
        )
        # List VMs
        vms = client.vms.list() # GET /v1/vms (running)
        all_records = client.vms.list_all_records() # GET /v1/vms/ (all records)
        # Snapshot a running VM
        snap_from_vm = client.vms.snapshot(vm_id=vm["vm_id"], wait=True, name="dev-base")
        # Build a snapshot from an OCI image
        snap_from_oci = client.snapshots.create(
            oci_image="docker.io/library/python:3.11-slim",
            name="python-3-11-dev",
            vcpu_count=2,
            memory_mb=1024,
            snapshot_type="user",
            build_args={
                "git_clone_url": "https://github.com/example/repo.git",
                "git_clone_branch": "main",
                "envs": {"PIP_INDEX_URL": "https://registry.example/simple"},
            },
        )
        user_snaps = client.snapshots.list(snapshot_type="user")
        """.replace("vol_abc", volume["id"])
    )
    make.vms.extend(names[name]["vm_id"] for name in ("vm", "vm_with_vols"))
    make.snapshots.extend(names[name]["id"] for name in ("snap_from_vm", "snap_from_oci"))
    assert set(make.vms) <= {vm["vm_id"] for vm in names["vms"]}
    assert set(make.vms) <= {vm["vm_id"] for vm in names["all_records"]}
    make.sh(names["vm_with_vols"], "echo x > /data/x")
    assert make.paths(volume) == ["x"]
    assert (names["snap_from_vm"]["status"], names["snap_from_vm"]["name"]) == ("ready", "dev-base")
    assert names["snap_from_oci"]["status"] != "ready", "the build goes on behind the answer"
    assert {one["name"] for one in names["user_snaps"]} >= {"dev-base", "python-3-11-dev"}


VOLUMES = """
from instavm import InstaVM
client = InstaVM(api_key="your_api_key")
# Create
volume = client.volumes.create(name="project-data", quota_bytes=10 * 1024 * 1024 * 1024)
volume_id = volume["id"]
# Read / Update
client.volumes.list(refresh_usage=True)
client.volumes.get(volume_id, refresh_usage=True)
client.volumes.update(volume_id, name="project-data-v2", quota_bytes=20 * 1024 * 1024 * 1024)
# File operations
client.volumes.upload_file(volume_id, file_path="./README.md", path="docs/README.md", overwrite=True)
files = client.volumes.list_files(volume_id, prefix="docs/", recursive=True, limit=1000)
download = client.volumes.download_file(volume_id, path="docs/README.md")
client.volumes.delete_file(volume_id, path="docs/README.md")
# Checkpoints
checkpoint = client.volumes.create_checkpoint(volume_id, name="pre-release")
client.volumes.list_checkpoints(volume_id)
client.volumes.delete_checkpoint(volume_id, checkpoint["id"])
"""
ATTACHMENTS = """
vm = client.vms.create(wait=True)
vm_id = vm["vm_id"]
client.vms.mount_volume(vm_id, volume_id, mount_path="/data", mode="rw", wait=True)
client.vms.list_volumes(vm_id)
client.vms.unmount_volume(vm_id, volume_id, mount_path="/data", wait=True)
"""
CLEANUP = """
# Cleanup
client.volumes.delete(volume_id)
"""


def test_volumes(example, tmp_path, http):
    (tmp_path / "README.md").write_text("# Read me\n")
    _, names = example(VOLUMES + CLEANUP)
    assert [(one["path"], one["size"]) for one in names["files"]] == [("docs/README.md", 10)]
    assert names["download"]["filename"] == "README.md"
    assert http.get(f"/v1/volumes/{names['volume_id']}").status_code == 404


def test_vm_volume_attachments(example, tmp_path, http, make):
    (tmp_path / "README.md").write_text("# Read me\n")
    _, names = example(VOLUMES + ATTACHMENTS + CLEANUP)
    make.vms.append(names["vm_id"])
    assert http.get(f"/v1/vms/{names['vm_id']}/volumes").json() == []


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
