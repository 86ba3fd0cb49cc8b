"""The official command line, and ours, against the platform."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import REPOSITORY

PROGRAMS = {
    "official": Path(sys.executable).parent / "instavm",
    "ours": Path(os.environ.get("INSTAVM_CLI", REPOSITORY / "target/release/instavm")),
}

pytestmark = pytest.mark.contract


@pytest.fixture(params=PROGRAMS)
def instavm(daemon, tmp_path, request):
    def run(*arguments, status=0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
        environment |= {"HOME": str(tmp_path), "INSTAVM_API_KEY": daemon.key, "INSTAVM_BASE_URL": daemon.base_url, "NO_COLOR": "1"}
        done = subprocess.run(
            [PROGRAMS[request.param], *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
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


def test_a_vm_is_changed_cloned_and_saved(instavm, http):
    vm = json.loads(instavm("create", "--memory", "512", "--vcpu", "1", "--timeout", "600", "--json"))
    assert (vm["memory_mb"], vm["vcpu_count"], vm["vm_lifetime_seconds"]) == (512, 1, 600)
    changed = json.loads(instavm("vm", "update", vm["vm_id"], "--memory-mb", "768", "--json"))
    assert changed["memory_mb"] == 768
    http.execute(vm["session_id"], "echo kept > /app/state", "bash")

    twin = json.loads(instavm("clone", vm["vm_id"], "--json"))
    assert twin["vm_id"] != vm["vm_id"]
    assert http.execute(twin["session_id"], "cat /app/state", "bash")["stdout"] == "kept\n"

    snapshot = json.loads(instavm("snapshot", "create", vm["vm_id"], "--name", "prepared", "--json"))
    assert snapshot["status"] == "ready"
    assert snapshot["id"] in instavm("snapshot", "ls", "--type", "user")
    assert json.loads(instavm("snapshot", "get", snapshot["id"], "--json"))["name"] == "prepared"
    third = json.loads(instavm("create", "--snapshot", snapshot["id"], "--json"))
    assert http.execute(third["session_id"], "cat /app/state", "bash")["stdout"] == "kept\n"

    removed = json.loads(instavm("rm", vm["vm_id"], twin["vm_id"], third["vm_id"], "--json"))
    assert [result["status"] for result in removed["results"]] == ["terminated"] * 3
    instavm("snapshot", "rm", snapshot["id"])
    instavm("snapshot", "get", snapshot["id"], status=1)


def test_a_volume_its_files_and_checkpoints(instavm, http, tmp_path):
    volume = json.loads(instavm("volume", "create", "cli-data", "--quota", "64mb", "--json"))["id"]
    (tmp_path / "a.txt").write_text("first\n")
    instavm("volume", "files", "upload", volume, "a.txt", "--path", "docs/a.txt")
    checkpoint = json.loads(instavm("volume", "checkpoint", "create", volume, "--name", "before", "--json"))["id"]
    (tmp_path / "a.txt").write_text("second\n")
    instavm("volume", "files", "upload", volume, "a.txt", "--path", "docs/a.txt", status=1)
    instavm("volume", "files", "upload", volume, "a.txt", "--path", "docs/a.txt", "--overwrite")
    listed = json.loads(instavm("volume", "files", "ls", volume, "--prefix", "docs/", "--json"))["files"]
    assert [(file["path"], file["size"]) for file in listed] == [("docs/a.txt", 7)]

    mounts = ["--volume", f"{volume}:/data", "--volume", f"{volume}:/before:ro:{checkpoint}"]
    vm = json.loads(instavm("create", *mounts, "--json"))
    seen = http.execute(vm["session_id"], "cat /data/docs/a.txt /before/docs/a.txt; echo third > /data/b.txt", "bash")
    assert seen["stdout"] == "second\nfirst\n"
    instavm("volume", "rm", volume, status=1)
    instavm("rm", vm["vm_id"])

    fetched = json.loads(instavm("volume", "files", "download", volume, "b.txt", "--out", "c.txt", "--json"))
    assert (fetched["size"], (tmp_path / "c.txt").read_text()) == (6, "third\n")
    instavm("volume", "files", "rm", volume, "b.txt")
    assert "cli-data" in instavm("volume", "ls", "--refresh")
    instavm("volume", "update", volume, "--quota", "128mb", "--name", "cli-more")
    assert json.loads(instavm("volume", "get", volume, "--refresh", "--json"))["quota_bytes"] == 128 << 20
    assert checkpoint in instavm("volume", "checkpoint", "ls", volume)
    instavm("volume", "checkpoint", "rm", volume, checkpoint)
    instavm("volume", "rm", volume)
    instavm("volume", "get", volume, status=1)
