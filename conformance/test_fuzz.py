"""Requests that are broken on the wire, to a real daemon: each is answered or hung up on, and nobody else is hurt."""

import os
import random
import socket
from urllib.parse import urlparse

import pytest
from daemon import eventually

CASES = int(os.environ.get("INSTAVM_FUZZ_CASES", "500"))
# Bytes that mean something to one parser or another.
SPICE = [b"\r\n", b"\n", b"\x00", b"\xff", b"--limit", b"--limit--", b'"', b"{", b"[", b"}", b"%", b";", b":", b",", b"\\ud800", b"1e999", b"-", b" " * 100]


def form(*parts):
    body = b"".join(b'--limit\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part for part in parts)
    return body + b"--limit--\r\n"


def corpus(key, session, vm, volume):
    """Requests that are right."""
    json, multipart = b"application/json", b"multipart/form-data; boundary=limit"

    def with_head(line, *headers):
        return b"\r\n".join([line + b" HTTP/1.1", b"Host: x", b"Connection: close", b"X-API-Key: " + key, *headers, b"", b""])

    def post(path, kind, body):
        return with_head(b"POST " + path, b"Content-Type: " + kind, b"Content-Length: %d" % len(body)) + body

    upload = form((b"remote_path", b"/app/fuzz"), (b"session_id", session), (b"file", b"content" * 20))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (upload[:50], upload[50:], b""))
    return [
        post(b"/execute", json, b'{"command": "1+1", "session_id": "%s", "language": "python", "timeout": 5}' % session),
        post(b"/execute_async", json, b'{"command": "true", "session_id": "%s", "language": "bash"}' % session),
        post(b"/v1/api-keys/", json, b'{"description": "fuzz"}'),
        post(b"/v1/ssh-keys", json, b'{"public_key": "ssh-ed25519 AAAA x"}'),
        post(b"/kill", json, b'{"session_id": "00000000-0000-4000-8000-000000000000"}'),
        post(b"/upload", multipart, upload),
        with_head(b"POST /upload", b"Content-Type: " + multipart, b"Transfer-Encoding: chunked") + chunks,
        post(b"/download", b"application/x-www-form-urlencoded", b"filename=%2Fetc%2Fhostname&session_id=" + session),
        with_head(b"GET /v1/sessions/sandboxes?limit=3&metadata=%7B%7D"),
        with_head(b"GET /v1/sessions/status/" + session),
        post(b"/v1/vms/" + vm + b"/volumes", json, b'{"volume_id": "%s", "mount_path": "/data", "mode": "ro", "checkpoint_id": null}' % volume),
        post(b"/v1/volumes/" + volume + b"/files/upload", multipart, form((b"path", b"a/b"), (b"overwrite", b"true"), (b"file", b"content" * 20))),
        post(b"/v1/volumes/" + volume + b"/files/download", json, b'{"path": "a/b"}'),
        with_head(b"GET /v1/volumes/" + volume + b"/files?prefix=a%2F&recursive=false&limit=5"),
        post(b"/v1/snapshots", json, b'{"oci_image": "127.0.0.1:9/none", "build_args": {"envs": {"A": "b"}, "extra_apt_packages": "x y"}}'),
    ]


def broken(request, chance):
    """The request with some bytes changed, added, doubled or missing."""
    out = bytearray(request)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(out) + 1)
        action = chance.randrange(5)
        if action == 0:
            out[place : place + 1] = bytes([chance.randrange(256)])
        elif action == 1:
            out[place:place] = chance.choice(SPICE)
        elif action == 2:
            del out[place : place + chance.randint(1, 20)]
        elif action == 3:
            out[place:place] = out[place : place + chance.randint(1, 60)]
        elif chance.random() < 0.3:
            del out[place:]
    return bytes(out)


def exchanged(address, request, patience=60):
    """What comes back until the daemon has nothing more to say. A request that may lack its end is ended after a while."""
    with socket.create_connection(address, timeout=patience) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while True:
                try:
                    part = connection.recv(65536)
                except TimeoutError:
                    if patience == 60:
                        raise
                    patience = 60
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(patience)
                    continue
                if not part:
                    break
                answer += part
        except ConnectionError:  # it hung up on what it did not understand
            pass
    return answer


@pytest.mark.soak
@pytest.mark.timeout(120 + CASES // 10)
def test_broken_requests_are_answered_or_hung_up_on(daemon):
    own = daemon.http(daemon.account("fuzz@example.com")["api_key"])
    session_id = own.start_session(memory_mb=256, vm_lifetime_seconds=3600)
    address = (urlparse(daemon.base_url).hostname, urlparse(daemon.base_url).port)
    vm_id = own.get(f"/v1/sessions/session/{session_id}").json()["vm_id"]
    volume_id = own.post("/v1/volumes", {"name": "fuzz", "quota_bytes": 64 << 20}).json()["id"]
    right = corpus(own.key.encode(), session_id.encode(), vm_id.encode(), volume_id.encode())
    statuses = [exchanged(address, request)[9:12] for request in right]
    assert statuses == [b"200", b"200", b"200", b"422", b"404", b"200", b"200", b"200", b"200", b"200"] + [b"200"] * 5
    chance = random.Random(11)
    counts = {}
    for _ in range(CASES):
        request = broken(chance.choice(right), chance)
        answer = exchanged(address, request, 0.05)
        assert answer == b"" or answer.startswith(b"HTTP/1."), (request, answer[:200])
        status = answer[9:12]
        counts[status] = counts.get(status, 0) + 1
        assert not status.startswith(b"5") or status == b"505", (request, answer[:500])
    assert own.execute(session_id, "print(6 * 7)", "python")["stdout"] == "42\n"
    print({status.decode(): number for status, number in sorted(counts.items())})
    own.post("/kill", {"session_id": session_id})
    for vm in own.get("/v1/vms").json():
        own.delete(f"/v1/vms/{vm['vm_id']}")
    for kind in ("snapshots", "volumes"):
        for one in own.get(f"/v1/{kind}").json():
            eventually(lambda: own.delete(f"/v1/{kind}/{one['id']}").status_code in (200, 404), 30)
