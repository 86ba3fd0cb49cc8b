"""The official command line against the platform."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract


@pytest.fixture
def instavm(daemon, tmp_path):
    def run(*arguments, status=0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
        environment |= {"HOME": str(tmp_path), "INSTAVM_API_KEY": daemon.key, "INSTAVM_BASE_URL": daemon.base_url, "NO_COLOR": "1"}
        done = subprocess.run(
            [Path(sys.executable).parent / "instavm", *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stdout

    return run


def test_whoami(instavm):
    assert "admin@localhost" in instavm("whoami")


def test_exec_and_its_background_form(instavm, http):
    answer = json.loads(instavm("exec", "--cmd", "print('hello from CLI')", "--language", "python", "--json"))
    assert answer["stdout"] == "hello from CLI\n"
    again = json.loads(instavm("exec", "--cmd", "echo same", "--language", "bash", "--session", answer["session_id"], "--json"))
    assert again["stdout"] == "same\n"
    http.post("/kill", {"session_id": answer["session_id"]})


def test_exec_of_a_file(instavm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('from a file')")
    assert "from a file" in instavm("exec", str(script))


def test_vms_are_created_listed_and_removed(instavm):
    vm = json.loads(instavm("create", "--json"))
    assert vm["vm_id"] in instavm("ls", "--json")
    instavm("rm", vm["vm_id"])
    assert vm["vm_id"] not in instavm("ls", "--json")
    assert vm["vm_id"] in instavm("ls", "-a", "--json")


def test_ssh_keys(instavm, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cli@test", "-f", str(key)], check=True)
    instavm("ssh-key", "add", key.with_suffix(".pub").read_text().strip())
    listed = json.loads(instavm("ssh-key", "list", "--json"))
    keys = listed.get("keys", listed) if isinstance(listed, dict) else listed
    record = next(item for item in keys if item["comment"] == "cli@test")
    instavm("ssh-key", "remove", str(record["id"]))


def test_errors_are_exit_status_1(instavm):
    instavm("rm", "vm_none", status=1)
