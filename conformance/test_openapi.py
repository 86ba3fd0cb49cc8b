"""What describes the platform to programs and people."""

import json
import re
from pathlib import Path

from daemon import REPOSITORY

SERVED = """
POST /v1/sessions/session
GET /v1/sessions/session/{}
GET /v1/sessions/status/{}
GET /v1/sessions/usage/{}
GET /v1/sessions/app-url/{}
GET /v1/sessions/sandboxes
POST /execute
POST /execute_async
GET /v1/executions/{}
POST /upload
POST /download
POST /kill
POST /v1/vms
GET /v1/vms
GET /v1/vms/
GET /v1/vms/{}
DELETE /v1/vms/{}
PATCH /v1/vms/{}
POST /v1/vms/{}/clone
POST /v1/vms/{}/snapshot
POST /v1/vms/{}/volumes
GET /v1/vms/{}/volumes
DELETE /v1/vms/{}/volumes/{}
POST /v1/snapshots
GET /v1/snapshots
GET /v1/snapshots/{}
DELETE /v1/snapshots/{}
POST /v1/volumes
GET /v1/volumes
GET /v1/volumes/{}
PATCH /v1/volumes/{}
DELETE /v1/volumes/{}
POST /v1/volumes/{}/checkpoints
GET /v1/volumes/{}/checkpoints
DELETE /v1/volumes/{}/checkpoints/{}
POST /v1/volumes/{}/files/upload
POST /v1/volumes/{}/files/download
GET /v1/volumes/{}/files
DELETE /v1/volumes/{}/files
POST /v1/shares
PATCH /v1/shares/{}
POST /v1/ssh-keys
GET /v1/ssh-keys
DELETE /v1/ssh-keys/{}
POST /v1/api-keys/
GET /v1/api-keys/
GET /v1/api-keys/{}
PATCH /v1/api-keys/{}
DELETE /v1/api-keys/{}
GET /v1/users/me
"""


def test_the_document_names_every_route_and_is_the_one_checked_in(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    named = {
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, item in document["paths"].items()
        for method in item
        if method in ("get", "post", "put", "patch", "delete")
    }
    assert set(SERVED.split("\n")) - {""} <= named
    assert document == json.loads(Path(REPOSITORY, "docs/openapi.json").read_text())


def test_the_document_can_be_browsed(http):
    page = http.get("/docs", headers={"X-API-Key": None})
    assert page.status_code == 200
    assert "text/html" in page.headers["Content-Type"]


def test_health_and_metrics(http):
    assert http.get("/healthz", headers={"X-API-Key": None}).json()["status"] == "ok"
    http.get("/v1/users/me")
    text = http.get("/metrics").text
    assert "# TYPE" in text and text.rstrip().endswith("# EOF")
    assert http.key not in text
