"""SSH keys of an account."""

import base64
import hashlib
import os
import struct

import pytest

pytestmark = pytest.mark.contract


def new_key(comment="user@host"):
    blob = b"".join(struct.pack(">I", len(part)) + part for part in (b"ssh-ed25519", os.urandom(32)))
    fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}", fingerprint


def test_add_list_remove(daemon):
    client = daemon.client(auto_start_session=False)
    line, fingerprint = new_key()
    added = client.add_ssh_key(line)
    assert added["fingerprint"] == fingerprint
    assert isinstance(added["id"], int)
    keys = client.list_ssh_keys()
    listed = keys["keys"] if isinstance(keys, dict) else keys
    record = next(key for key in listed if key["id"] == added["id"])
    assert (record["fingerprint"], record["comment"]) == (fingerprint, "user@host")
    deleted = client.delete_ssh_key(added["id"])
    assert isinstance(deleted, dict) and deleted


def test_adding_a_key_twice_gives_the_same_record(http):
    line, _ = new_key()
    first, second = (http.post("/v1/ssh-keys", {"public_key": line}) for _ in range(2))
    assert first.status_code < 300 and second.status_code == 200
    assert first.json()["id"] == second.json()["id"]
    answer = http.delete(f"/v1/ssh-keys/{first.json()['id']}")
    assert answer.status_code == 200 and isinstance(answer.json(), dict)


@pytest.mark.parametrize("text", ["", "nonsense", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-ed25519 AAAA", "ssh-rsa " + "A" * 100_000])
def test_malformed_keys_are_422(http, text):
    answer = http.post("/v1/ssh-keys", {"public_key": text})
    assert answer.status_code == 422
    assert "public_key" in answer.text


def test_keys_belong_to_one_account(http, tenant):
    line, _ = new_key()
    key_id = http.post("/v1/ssh-keys", {"public_key": line}).json()["id"]
    assert tenant.delete(f"/v1/ssh-keys/{key_id}").status_code == 404
    assert key_id not in {key["id"] for key in tenant.get("/v1/ssh-keys").json()["keys"]}
    taken = tenant.post("/v1/ssh-keys", {"public_key": line})
    assert 400 <= taken.status_code < 500 or taken.json()["id"] != key_id
    http.delete(f"/v1/ssh-keys/{key_id}")
