"""A real daemon with a data directory of its own: started, killed, restarted, checked, destroyed."""

import base64
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from instavm import InstaVM

REPOSITORY = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("INSTAVMD", REPOSITORY / "target/release/instavmd"))
INSTANCES = Path(os.environ.get("INSTAVM_TEST_DIR", "/var/tmp/instavm-test"))
# The first start of a host builds its image.
READY_SECONDS = 900


class Daemon:
    """One instance. Its directory is named by the process that made it, so that a later run removes what a dead one left."""

    def __init__(self, name, **settings):
        self.data_dir = INSTANCES / f"{os.getpid()}-{name}-{secrets.token_hex(2)}"
        self.data_dir.mkdir(parents=True)
        self.settings = {key.upper(): str(value) for key, value in settings.items()}
        self.process = None
        self.base_url = None
        self.log_path = self.data_dir.parent / f"{self.data_dir.name}.log"

    @property
    def key(self):
        return (self.data_dir / "admin-key").read_text().strip()

    def environment(self, **extra):
        """The environment of this process without what configures a client or another instance."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
        configured = {f"INSTAVM_{name}": value for name, value in self.settings.items()}
        return {**kept, **configured, **extra}

    def start(self, listen="127.0.0.1:0", **extra):
        """Starts it and waits for its `ready` line, and for nothing else on standard output before it."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--data-dir", self.data_dir, "--listen", listen],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(**extra),
            )
        line = read_line(self.process.stdout, READY_SECONDS)
        if not line.startswith(b"ready http://"):
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no ready line but {line!r}; its log ends with:\n{self.log_tail()}")
        self.base_url = line.decode().removeprefix("ready ").strip()
        return self

    def log_tail(self, lines=30):
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def kill9(self):
        """Ends the daemon, and only it, in the middle of whatever it does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self, seconds=30):
        """Asks it to end; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        self.process.stdout.close()
        return status

    def command(self, *arguments, seconds=120, **extra):
        """Runs another `instavmd` on the same instance."""
        return subprocess.run(
            [BINARY, *arguments, "--data-dir", self.data_dir],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment(**extra),
        )

    def assert_clean(self):
        """Rows, disks and kernel agree."""
        done = self.command("check")
        assert done.returncode == 0, f"check: {done.stdout}{done.stderr}\n{self.log_tail()}"

    def account(self, email):
        """A further tenant: its `account_id`, `email` and `api_key`."""
        done = self.command("account", "create", email, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def destroy(self):
        """Removes everything of the instance; its log stays when something was wrong."""
        done = self.command("destroy", "--force", seconds=300)
        if self.process is not None and self.process.poll() is None:
            self.process.wait(30)
        assert done.returncode == 0, f"destroy: {done.stdout}{done.stderr}\n{self.log_tail()}"
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.log_path.unlink(missing_ok=True)

    def client(self, **options):
        """The official client, with a session unless told otherwise."""
        return InstaVM(options.pop("api_key", None) or self.key, base_url=self.base_url, **options)

    def http(self, api_key=None):
        return Http(self.base_url, self.key if api_key is None else api_key)


class Http:
    """Plain HTTP with an API key, for what the client does not show."""

    def __init__(self, base_url, key):
        self.base_url = base_url
        self.key = key
        self.session = requests.Session()
        self.session.trust_env = False

    def request(self, method, path, timeout=120, headers=None, **options):
        headers = {"X-API-Key": self.key, **(headers or {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return self.session.request(method, self.base_url + path, timeout=timeout, headers=headers, **options)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, json=None, **options):
        return self.request("POST", path, json=json, **options)

    def delete(self, path, **options):
        return self.request("DELETE", path, **options)

    def patch(self, path, json=None, **options):
        return self.request("PATCH", path, json=json, **options)

    def start_session(self, **fields):
        answer = self.post("/v1/sessions/session", {"api_key": self.key, **fields})
        assert answer.status_code < 300, answer.text
        return answer.json()["session_id"]

    def execute(self, session_id, command, language=None, timeout=None):
        body = {"command": command, "session_id": session_id}
        if language is not None:
            body["language"] = language
        if timeout is not None:
            body["timeout"] = timeout
        answer = self.post("/execute", body, timeout=(timeout or 60) + 60)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Maker:
    """Makes VMs, volumes and snapshots of one account, and removes what is left of them in the end."""

    def __init__(self, http):
        self.http = http
        self.vms, self.volumes, self.snapshots = [], [], []

    def made(self, answer, kept, key):
        assert answer.status_code in (200, 201, 202), (answer.status_code, answer.text)
        record = answer.json()
        kept.extend(item[key] for item in record.get("vms") or [record])
        return record

    def vm(self, **fields):
        """A VM: small, and with an hour to live, unless told otherwise."""
        body = {"memory_mb": 256, "vcpu_count": 1, "vm_lifetime_seconds": 3600, **fields}
        return self.made(self.http.post("/v1/vms?wait=true", body), self.vms, "vm_id")

    def clone(self, vm, **fields):
        return self.made(self.http.post(f"/v1/vms/{vm['vm_id']}/clone?wait=true", fields), self.vms, "vm_id")

    def snapshot(self, vm, **fields):
        return self.made(self.http.post(f"/v1/vms/{vm['vm_id']}/snapshot?wait=true", fields), self.snapshots, "id")

    def volume(self, quota_bytes=64 << 20, name=None, **fields):
        body = {"name": name or f"data-{secrets.token_hex(6)}", "quota_bytes": quota_bytes, **fields}
        return self.made(self.http.post("/v1/volumes", body), self.volumes, "id")

    def checkpoint(self, volume, **fields):
        answer = self.http.post(f"/v1/volumes/{volume['id']}/checkpoints", fields)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def build(self, oci_image, seconds=200, **fields):
        """A build from an image, as its record is when it has ended."""
        begun = self.made(self.http.post("/v1/snapshots", {"oci_image": oci_image, **fields}), self.snapshots, "id")
        return self.ended_build(begun["id"], seconds)

    def ended_build(self, snapshot_id, seconds=200):
        def ended():
            record = self.http.get(f"/v1/snapshots/{snapshot_id}").json()
            return record if record["status"] in ("ready", "failed") else None

        return eventually(ended, seconds, 0.05, f"the build of {snapshot_id}")

    def sh(self, vm, command, timeout=60):
        """What a shell in the VM prints; the command has to do well."""
        result = self.http.execute(vm["session_id"], command, "bash", timeout)
        assert result["exit_code"] == 0, (command, result["stdout"][-500:], result["stderr"][-2000:])
        return result["stdout"]

    def fails(self, vm, command, timeout=60):
        """What a shell in the VM says to standard error about a command that must not do well."""
        result = self.http.execute(vm["session_id"], command, "bash", timeout)
        assert result["exit_code"] != 0, (command, result)
        return result["stderr"]

    def mount(self, vm, volume, mount_path="/data", **fields):
        return self.http.post(f"/v1/vms/{vm['vm_id']}/volumes?wait=true", {"volume_id": volume["id"], "mount_path": mount_path, **fields})

    def unmount(self, vm, volume, mount_path="/data"):
        return self.http.delete(f"/v1/vms/{vm['vm_id']}/volumes/{volume['id']}", params={"mount_path": mount_path, "wait": "true"})

    def put(self, volume, path, content, overwrite=None):
        """Uploads a file to a volume without a mount."""
        parts = {"path": (None, path), "overwrite": (None, overwrite), "file": ("local", content)}
        parts = {name: part for name, part in parts.items() if part[-1] is not None}
        return self.http.request("POST", f"/v1/volumes/{volume['id']}/files/upload", files=parts)

    def content(self, volume, path):
        """A file's bytes, without a mount."""
        answer = self.http.post(f"/v1/volumes/{volume['id']}/files/download", {"path": path})
        assert answer.status_code == 200, answer.text
        return base64.b64decode(answer.json()["content"])

    def paths(self, volume, **query):
        answer = self.http.get(f"/v1/volumes/{volume['id']}/files", params=query)
        assert answer.status_code == 200, answer.text
        return [file["path"] for file in answer.json()]

    def clear(self):
        """Ends VMs first, because they hold the rest. What a test has removed itself answers 404."""
        for path in [f"/v1/vms/{one}" for one in self.vms] + [f"/v1/volumes/{one}" for one in self.volumes] + [f"/v1/snapshots/{one}" for one in self.snapshots]:
            eventually(lambda: self.http.delete(path).status_code in (200, 204, 404), 30, what=f"DELETE {path}")


def read_line(stream, seconds):
    """One line of a pipe, or what came of it until the time was over or the pipe was closed."""
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            break
        byte = os.read(stream.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


def eventually(condition, seconds=10, interval=0.05, what=None):
    """Asks until the condition holds and returns what it gave; fails when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last: {value!r}")
        time.sleep(interval)


if not BINARY.exists():
    sys.exit(f"{BINARY} is not built; run `make build`")
