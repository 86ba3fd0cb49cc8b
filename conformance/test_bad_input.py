"""What is wrong is refused with a reason, and hurts nobody else."""

import concurrent.futures
import socket
import uuid
from urllib.parse import urlparse

import pytest
from daemon import eventually


def refused(answer, status, *words):
    statuses = status if isinstance(status, tuple) else (status,)
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    detail = answer.json()["detail"]
    text = detail if isinstance(detail, str) else str(detail)
    for word in words:
        assert word in text, (word, text)


START = "/v1/sessions/session"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"vm_lifetime_seconds": 19}, ("vm_lifetime_seconds", "20", "86400")),
        ({"vm_lifetime_seconds": 86_401}, ("vm_lifetime_seconds",)),
        ({"vm_lifetime_seconds": -1}, ("vm_lifetime_seconds",)),
        ({"vm_lifetime_seconds": "long"}, ("vm_lifetime_seconds",)),
        ({"vm_lifetime_seconds": 1.5}, ("vm_lifetime_seconds",)),
        ({"memory_mb": 127}, ("memory_mb", "128", "8192")),
        ({"memory_mb": 8_193}, ("memory_mb",)),
        ({"memory_mb": 10**30}, ("memory_mb",)),
        ({"memory_mb": [512]}, ("memory_mb",)),
        ({"vcpu_count": 0}, ("vcpu_count",)),
        ({"vcpu_count": 10_000}, ("vcpu_count",)),
        ({"metadata": "text"}, ("metadata",)),
        ({"metadata": ["a"]}, ("metadata",)),
        ({"env": "A=1"}, ("env",)),
        ({"env": {"A": {"nested": 1}}}, ("env",)),
        ({"env": {"A=B": "1"}}, ("env",)),
        ({"env": {"": "1"}}, ("env",)),
        ({"env": {"A": "nul\u0000"}}, ("env",)),
        ({"env": {"A": "x" * (512 << 10)}}, ("env",)),
    ],
)
def test_fields_of_a_session_are_checked_by_name(http, fields, words):
    refused(http.post(START, {"api_key": http.key, **fields}), 422, *words)


def test_numbers_are_taken_as_callers_write_them(http, client):
    session_id = http.start_session(vm_lifetime_seconds=60.0, memory_mb=256.0, vcpu_count=1.0, env={"A": None, "B": 2})
    command = {"command": "echo ${A-unset} $B", "session_id": session_id.upper(), "language": "bash", "timeout": 2.5}
    answer = http.post("/execute", command)
    assert answer.status_code == 200 and answer.json()["stdout"] == "unset 2\n", answer.text
    http.post("/kill", {"session_id": session_id})


def test_refusals_speak_of_the_request(http, client):
    refused(http.post(START, {"vm_lifetime_seconds": "x"}), 422, "vm_lifetime_seconds: must be an integer")
    refused(http.post(START, [http.key, 300, 256, 1, {}, {}]), 422, "the body must be a JSON object")
    refused(http.get("/v1/vms/?limit=x"), 422, "limit: must be an integer")
    body = '{"command": "\\ud800", "session_id": "%s"}' % client.session_id
    refused(http.request("POST", "/execute", data=body), 400, "command: has half of a surrogate pair")


def test_strangers_cannot_send_long_bodies(http):
    body = {"api_key": http.key, "metadata": {"a": "x" * (2 << 20)}}
    refused(http.request("POST", START, json=body, headers={"X-API-Key": None}), 413, "1048576")


def test_null_is_absent(http):
    body = {"vm_lifetime_seconds": None, "memory_mb": None, "vcpu_count": None, "metadata": None, "env": None}
    http.post("/kill", {"session_id": http.start_session(**body)})


def test_a_session_without_a_key_is_401(http):
    answer = http.request("POST", START, json={}, headers={"X-API-Key": None})
    refused(answer, 401)
    refused(http.request("POST", START, json={"api_key": "instavm_sk_no"}, headers={"X-API-Key": None}), 401)


@pytest.mark.parametrize(
    "path", [START, "/execute", "/execute_async", "/kill", "/v1/vms", "/v1/ssh-keys", "/v1/api-keys/", "/v1/snapshots", "/v1/volumes"]
)
@pytest.mark.parametrize("body", [b"{", b"not json", b"", b"\xff\xfe", b'{"a": 1,}', b"nul\x00"], ids=["brace", "text", "empty", "bytes", "comma", "nul"])
def test_malformed_json_is_400(http, path, body):
    answer = http.request("POST", path, data=body, headers={"Content-Type": "application/json"})
    refused(answer, (400, 422))
    if body:
        assert answer.status_code == 400, answer.text


def test_json_of_any_depth_is_answered(http):
    for body in (b"[" * 100_000, b'{"metadata": ' + b'{"a":' * 100_000, b'{"api_key": "' + b"x" * 1_000_000 + b'"}'):
        answer = http.request("POST", START, data=body, headers={"Content-Type": "application/json"})
        refused(answer, (400, 401, 422))


@pytest.mark.parametrize("path", [START, "/execute", "/kill", "/v1/vms", "/v1/snapshots", "/v1/volumes"])
@pytest.mark.parametrize("body", ["[]", '"text"', "7", "null", "true"])
def test_json_that_is_no_object_is_422(http, path, body):
    answer = http.request("POST", path, data=body, headers={"Content-Type": "application/json"})
    refused(answer, (400, 422))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, ("command",)),
        ({"command": 7}, ("command",)),
        ({"command": None}, ("command",)),
        ({"command": "1", "language": "cobol"}, ("language", "python", "bash")),
        ({"command": "1", "language": 1}, ("language",)),
        ({"command": "1", "timeout": 0}, ("timeout", "1", "600")),
        ({"command": "1", "timeout": 601}, ("timeout",)),
        ({"command": "1", "timeout": -5}, ("timeout",)),
        ({"command": "1", "timeout": "soon"}, ("timeout",)),
    ],
)
@pytest.mark.parametrize("path", ["/execute", "/execute_async"])
def test_fields_of_an_execution_are_checked_by_name(http, client, path, fields, words):
    refused(http.post(path, {"session_id": client.session_id, **fields}), 422, *words)


def test_a_missing_session_id_names_the_field(http):
    refused(http.post("/execute", {"command": "1"}), 422, "session_id")
    refused(http.post("/kill", {}), 422, "session_id")


# Calls that name a VM, a snapshot or a volume, with a body that would be right.
NAMED = [
    ("PATCH", "/v1/vms/{}", {"memory_mb": 512}),
    ("POST", "/v1/vms/{}/clone", {}),
    ("POST", "/v1/vms/{}/snapshot", {}),
    ("POST", "/v1/vms/{}/volumes", {"volume_id": "vol_none", "mount_path": "/data"}),
    ("PATCH", "/v1/volumes/{}", {"quota_bytes": 1 << 20}),
    ("POST", "/v1/volumes/{}/checkpoints", {}),
    ("POST", "/v1/volumes/{}/files/download", {"path": "x"}),
]


@pytest.mark.parametrize("method, path, body", NAMED, ids=[f"{method} {path}" for method, path, _ in NAMED])
def test_calls_on_things_take_json_objects_and_known_ids_only(http, make, method, path, body):
    known = path.format(make.vm()["vm_id"] if "/vms/" in path else make.volume()["id"])
    for broken in (b"{", b"not json", b"\xff\xfe", b"nul\x00"):
        refused(http.request(method, known, data=broken, headers={"Content-Type": "application/json"}), 400)
    for other in ("[]", '"text"', "7", "true"):
        refused(http.request(method, known, data=other, headers={"Content-Type": "application/json"}), (400, 422))
    refused(http.request(method, known, data=b"{" + b" " * (17 << 20) + b"}", headers={"Content-Type": "application/json"}), 413)
    for unknown in ("none", str(uuid.uuid4()), "..%2Fx", "%00", "%FC" * 100, "x" * 3000):
        refused(http.request(method, path.format(unknown), json=body), (400, 404, 414))


@pytest.mark.parametrize("session_id", [str(uuid.uuid4()), "x", "", "../../etc", "\u0000", "ü" * 500])
def test_unknown_sessions_are_404(http, session_id):
    refused(http.post("/execute", {"command": "1", "session_id": session_id}), 404)
    refused(http.post("/kill", {"session_id": session_id}), 404)


def test_nul_in_a_bash_script_is_refused_or_run_but_never_a_crash(http, client):
    answer = http.post("/execute", {"command": "echo a\u0000b", "session_id": client.session_id, "language": "bash"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    answer = http.post("/execute", {"command": "x = 'a\u0000b'", "session_id": client.session_id, "language": "python"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500


def test_lone_surrogates_are_no_crash(http, client):
    body = '{"command": "print(1)  # \\ud800", "session_id": "%s"}' % client.session_id
    answer = http.request("POST", "/execute", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500


def test_a_body_over_the_limit_is_413(http, client):
    body = {"command": "#" * (17 << 20), "session_id": client.session_id}
    refused(http.post("/execute", body), 413)
    assert client.execute("print('well')")["stdout"] == "well\n"


def test_an_upload_over_the_limit_is_413_and_leaves_nothing(own_daemon, tmp_path):
    daemon = own_daemon(limits_upload_bytes=1 << 20).start()
    http = daemon.http()
    session_id = http.start_session()
    answer = http.request(
        "POST",
        "/upload",
        files={"remote_path": (None, "/app/big"), "session_id": (None, session_id), "file": ("x", b"x" * (3 << 20))},
    )
    refused(answer, 413)
    assert http.execute(session_id, "ls /app", "bash")["stdout"] == ""


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"remote_path": (None, "/app/x")},
        {"session_id": (None, "S")},
        {"remote_path": (None, "/app/x"), "session_id": (None, "S")},
        {"remote_path": (None, ""), "session_id": (None, "S"), "file": ("x", b"x")},
        {"remote_path": (None, "/app/a\x00b"), "session_id": (None, "S"), "file": ("x", b"x")},
        {"remote_path": (None, "/app"), "session_id": (None, "S"), "file": ("x", b"x")},
        {"remote_path": (None, "/dev/null/x"), "session_id": (None, "S"), "file": ("x", b"x")},
        {"remote_path": (None, "/proc/x"), "session_id": (None, "S"), "file": ("x", b"x")},
    ],
)
def test_uploads_with_something_missing_or_impossible(http, client, files):
    parts = {name: tuple(client.session_id if value == "S" else value for value in part) for name, part in files.items()}
    if not parts:
        answer = http.request("POST", "/upload", data=b"", headers={"Content-Type": "multipart/form-data; boundary=x"})
    else:
        answer = http.request("POST", "/upload", files=parts)
    assert 400 <= answer.status_code < 500, answer.text
    assert "detail" in answer.json()


@pytest.mark.parametrize("headers, body", [({"Content-Type": "multipart/form-data"}, b"x"), ({"Content-Type": "text/plain"}, b"x"), ({}, b"")])
def test_uploads_that_are_no_form(http, headers, body):
    answer = http.request("POST", "/upload", data=body, headers=headers)
    assert 400 <= answer.status_code < 500 and "detail" in answer.json()


@pytest.mark.parametrize("data", [{}, {"filename": "x"}, {"session_id": "S"}, {"filename": "", "session_id": "S"}, {"filename": "a\x00b", "session_id": "S"}])
def test_downloads_with_something_missing(http, client, data):
    data = {name: client.session_id if value == "S" else value for name, value in data.items()}
    answer = http.request("POST", "/download", data=data)
    assert 400 <= answer.status_code < 500 and "detail" in answer.json()


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "metadata=x", "metadata=[]", "metadata=%7B"])
def test_bad_queries_are_422(http, query):
    answer = http.get(f"/v1/sessions/sandboxes?{query}")
    refused(answer, (400, 422), query.split("=")[0])


def test_ports_are_checked(http, client):
    for port in ("0", "65536", "x"):
        refused(http.get(f"/v1/sessions/app-url/{client.session_id}?port={port}"), (400, 422), "port")


def test_unknown_paths_and_methods_are_json_too(http):
    refused(http.get("/v1/nothing"), 404)
    refused(http.get("/execute"), 405)
    refused(http.delete("/v1/sessions/sandboxes"), 405)


def test_doubled_and_trailing_slashes_are_tolerated(http):
    for path in ("//v1/users/me", "/v1/users/me/", "/v1/ssh-keys/", "/v1/api-keys", "/"):
        assert http.get(path).status_code == 200, path


def test_ids_are_decoded_after_the_path_is_split(http, client):
    assert http.get("/v1/executions/a%2Fb").status_code == 404
    assert http.get("/v1/vms/..%2Fsessions").status_code == 404


def test_no_internals_in_errors(http):
    for answer in (http.get("/v1/vms/vm_none"), http.post("/execute", {}), http.post(START, {"api_key": "x"})):
        for word in ("src/", ".rs", "panicked", "sqlx", "/var/"):
            assert word not in answer.text


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /execute HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: " + b"b" * 1_000_000 + b"\r\n\r\n",
        b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX-API-Key: \xff\xfe\r\n\r\n",
        b"\x00" * 1000,
    ],
    ids=["no request", "version", "negative length", "huge length", "bad chunk", "long path", "long header", "key bytes", "zeros"],
)
def test_garbage_on_the_wire(daemon, raw):
    address = urlparse(daemon.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except OSError:  # it hung up on what it did not understand
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1."), answer[:100]


def test_callers_that_hang_up_in_the_middle_leave_nothing(daemon, http):
    address = urlparse(daemon.base_url)
    before = {vm["vm_id"] for vm in http.get("/v1/vms").json()}
    body = b'{"api_key": "%s"}' % daemon.key.encode()
    head = b"POST /v1/sessions/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for sent in (head, head + body[:5], head + body):
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
                connection.sendall(sent)

    def settled():
        extra = [vm for vm in http.get("/v1/vms").json() if vm["vm_id"] not in before]
        return all(vm["status"] == "active" for vm in extra) and extra

    for vm in eventually(settled, 60) or []:
        http.delete(f"/v1/vms/{vm['vm_id']}")
    daemon.assert_clean()


def test_a_thousand_requests_at_once(daemon, client):
    http_key, session_id = daemon.key, client.session_id

    def one(number):
        http = daemon.http(http_key)
        if number % 4:
            return http.get(f"/v1/sessions/status/{session_id}").status_code
        answer = http.post("/execute", {"command": f"echo {number}", "session_id": session_id, "language": "bash"})
        if answer.status_code == 200:
            assert answer.json()["stdout"] in (f"{number}\n", ""), answer.text
        elif answer.status_code in (429, 503):
            assert isinstance(answer.json()["detail"], str)
        return answer.status_code

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(one, range(1000)))
    assert set(statuses) <= {200, 429, 503}, set(statuses)
    assert statuses.count(200) >= 750
    assert client.execute("print('well')")["stdout"] == "well\n"


def test_over_capacity_is_said_with_a_retry(own_daemon):
    daemon = own_daemon(limits_vms=2, limits_vms_per_account=2, pool_size=0).start()
    http = daemon.http()
    sessions = [http.start_session() for _ in range(2)]
    answer = http.post(START, {"api_key": http.key})
    refused(answer, (429, 503))
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    http.post("/kill", {"session_id": sessions[0]})
    eventually(lambda: http.post(START, {"api_key": http.key}).status_code == 200, 30)


def test_an_account_has_a_limit_of_its_own(own_daemon):
    daemon = own_daemon(limits_vms_per_account=1).start()
    http = daemon.http()
    http.start_session()
    refused(http.post(START, {"api_key": http.key}), (429, 503))
    other = daemon.http(daemon.account("second@example.com")["api_key"])
    other.start_session()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pool_size": "many"}, ("INSTAVM_POOL_SIZE",)),
        ({"vm_memory_mb": "1", "vm_pids": "0"}, ("INSTAVM_VM_MEMORY_MB", "INSTAVM_VM_PIDS")),
        ({"bootstrap_api_key": "short"}, ("INSTAVM_BOOTSTRAP_API_KEY",)),
    ],
)
def test_wrong_configuration_is_reported_all_at_once(own_daemon, settings, words):
    import subprocess

    from daemon import BINARY

    daemon = own_daemon(**settings)
    done = subprocess.run(
        [BINARY, "serve", "--data-dir", daemon.data_dir, "--listen", "127.0.0.1:0"],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode != 0
    assert "ready" not in done.stdout
    for word in words:
        assert word in done.stderr
    daemon.settings.clear()
