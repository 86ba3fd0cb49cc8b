"""Requests made from the API's own document: no 500, no status and no body that the document does not name."""

import os
from pathlib import Path

import pytest
import schemathesis
from daemon import REPOSITORY, eventually
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

EXAMPLES = int(os.environ.get("INSTAVM_SCHEMATHESIS_EXAMPLES", "25"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Longer time limits than this are cut, so that code which happens to wait does not hold up the rest.
LONGEST_SECONDS = 2

# A file that every image has, and a public key that nobody has the private half of.
FILE = "/etc/hostname"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2PVTqO0kSdFzM8hSbYR3gpDFsDDyK8mN4kbdPKXrEn made@up"

schema = schemathesis.openapi.from_path(Path(REPOSITORY, "docs/openapi.json"))
# Who may call is tested elsewhere; here a wrong key would only hide what is behind it.
schema.config.generation.update(with_security_parameters=False)


class Tenant:
    """An account whose ids are put into the requests made up, so that they reach more than a 404."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.key = daemon.account("schemathesis@example.com")["api_key"]
        self.http = daemon.http(self.key)
        self.own_key = self.http.get("/v1/api-keys/").json()[0]["id"]
        self.session = self.volume = self.snapshot = None
        self.turn = 0

    def live_session(self):
        """A session that has a VM, and the VM's id."""
        if self.session is not None:
            status = self.http.get(f"/v1/sessions/status/{self.session}")
            if status.status_code == 200 and status.json()["vm_status"] == "active":
                return self.session, status.json()["vm_id"]
        self.session = self.http.start_session(vm_lifetime_seconds=3600, memory_mb=256)
        return self.session, self.http.get(f"/v1/sessions/session/{self.session}").json()["vm_id"]

    def live_volume(self):
        """A volume with a file in it."""
        if self.volume is None or self.http.get(f"/v1/volumes/{self.volume}").status_code != 200:
            name = f"made-up-{self.turn}"
            self.volume = self.http.post("/v1/volumes", {"name": name, "quota_bytes": 64 << 20}).json()["id"]
            parts = {"path": (None, "file"), "file": ("x", b"x")}
            self.http.request("POST", f"/v1/volumes/{self.volume}/files/upload", files=parts)
        return self.volume

    def a_snapshot(self):
        """A snapshot of a VM."""
        if self.snapshot is None or self.http.get(f"/v1/snapshots/{self.snapshot}").status_code != 200:
            self.snapshot = self.http.post(f"/v1/vms/{self.live_session()[1]}/snapshot", {}).json()["id"]
        return self.snapshot

    def prepare(self, case):
        """Every other request gets ids that exist; none ends the account's own key."""
        self.turn += 1
        known = self.turn % 2 == 0
        if isinstance(case.body, dict):
            self.prepare_body(case.body, known)
        path = case.path_parameters or {}
        if "/v1/api-keys/" in case.operation.path and "id" in path:
            if known or str(path["id"]).strip() == str(self.own_key):
                path["id"] = self.http.post("/v1/api-keys/", {}).json()["id"]
        elif known and "id" in path:
            path["id"] = self.an_ssh_key()
        elif known and ("session_id" in path or "vm_id" in path):
            session_id, vm_id = self.live_session()
            path.update({"session_id": session_id} if "session_id" in path else {"vm_id": vm_id})
            if "volume_id" in path:
                path["volume_id"] = self.live_volume()
        elif known and "volume_id" in path:
            path["volume_id"] = self.live_volume()
            if "checkpoint_id" in path:
                path["checkpoint_id"] = self.http.post(f"/v1/volumes/{self.volume}/checkpoints", {}).json()["id"]
        elif known and "snapshot_id" in path:
            path["snapshot_id"] = self.a_snapshot()
        elif known and "task_id" in path:
            body = {"session_id": self.live_session()[0], "command": "true", "language": "bash"}
            path["task_id"] = self.http.post("/execute_async", body).json()["task_id"]

    def prepare_body(self, body, known):
        if known and isinstance(body.get("session_id"), str):
            body["session_id"] = self.live_session()[0]
        if known and isinstance(body.get("api_key"), str):
            body["api_key"] = self.key
        if known and isinstance(body.get("filename"), str):
            body["filename"] = FILE
        if known and isinstance(body.get("public_key"), str):
            body["public_key"] = PUBLIC_KEY
        if known:
            body.pop("recursive", None)
        if known and isinstance(body.get("volume_id"), str):
            body["volume_id"] = self.live_volume()
        if isinstance(body.get("oci_image"), str):
            # Nothing asks a registry of the outside.
            body["oci_image"] = "127.0.0.1:9/none" if known else f"127.0.0.1:9/{body['oci_image']}"
        if isinstance(body.get("count"), int) and body["count"] > 2:
            body["count"] = 2 if known else body["count"] + 100
        timeout = body.get("timeout")
        if isinstance(timeout, int) and 600 >= timeout > LONGEST_SECONDS:
            body["timeout"] = LONGEST_SECONDS

    def an_ssh_key(self):
        """The id of a key that is there."""
        answer = self.http.post("/v1/ssh-keys", {"public_key": PUBLIC_KEY})
        if answer.status_code == 200:
            return answer.json()["id"]
        return self.http.get("/v1/ssh-keys").json()["keys"][0]["id"]

    def clean(self, response, case):
        """Ends what a request has made."""
        if response.status_code >= 300 or case.operation.method.upper() != "POST":
            return
        if case.operation.path == "/v1/sessions/session":
            self.http.post("/kill", {"session_id": response.json()["session_id"]})
        elif case.operation.path == "/v1/vms" or case.operation.path.endswith("/clone"):
            for vm in response.json().get("vms") or [response.json()]:
                self.http.delete(f"/v1/vms/{vm['vm_id']}")
        elif case.operation.path == "/v1/snapshots" or case.operation.path.endswith("/snapshot"):
            self.http.delete(f"/v1/snapshots/{response.json()['id']}")
        elif case.operation.path == "/v1/volumes":
            self.http.delete(f"/v1/volumes/{response.json()['id']}")

    def end(self):
        for kind, key in (("vms", "vm_id"), ("volumes", "id"), ("snapshots", "id")):
            for one in self.http.get(f"/v1/{kind}").json():
                eventually(lambda: self.http.delete(f"/v1/{kind}/{one[key]}").status_code in (200, 404), 30)


@pytest.fixture(scope="module")
def made_up(daemon):
    tenant = Tenant(daemon)
    yield tenant
    tenant.end()


@pytest.mark.soak
@pytest.mark.timeout(120 + EXAMPLES * 4)
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_the_document_says_is_what_comes(case, made_up):
    made_up.prepare(case)
    response = case.call(base_url=made_up.daemon.base_url, headers={"X-API-Key": made_up.key}, timeout=60)
    try:
        case.validate_response(response, checks=CHECKS)
    finally:
        made_up.clean(response, case)
