"""Sessions: start, record, status, usage, sandboxes, kill."""

import re
import uuid
from datetime import datetime, timezone

import pytest
from daemon import eventually

from instavm import AuthenticationError, InstaVM

pytestmark = pytest.mark.contract


def test_start_gives_a_uuid_and_a_living_vm(client):
    assert str(uuid.UUID(client.session_id)) == client.session_id
    assert client.is_session_active() is True
    assert client.execute("print('up')")["stdout"] == "up\n"


def test_the_record_has_what_the_session_was_asked_to_be(clients):
    client = clients(timeout=600, cpu_count=1, memory_mb=512, metadata={"team": "platform"})
    info = client.get_session_info()
    assert info["session_id"] == client.session_id
    assert info["status"] == "active"
    assert info["vm_lifetime_seconds"] == 600
    assert info["memory_mb"] == 512
    assert info["vcpu_count"] == 1
    assert info["metadata"] == {"team": "platform"}
    assert info["isolation"] in ("microvm-kvm", "microvm-emulated", "namespaces")
    created, expires = (datetime.fromisoformat(info[key].replace("Z", "+00:00")) for key in ("created_at", "expires_at"))
    assert abs((expires - created).total_seconds() - 600) < 30
    assert abs((datetime.now(timezone.utc) - created).total_seconds()) < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(\d{3}|\d{6}))?Z", info["created_at"])


def test_the_vm_has_the_memory_that_was_asked_for(clients):
    client = clients(memory_mb=256)
    result = client.execute("b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('fits')")
    assert "fits" not in result["stdout"]
    assert clients(memory_mb=1024).execute(
        "b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('fits')"
    )["stdout"] == "fits\n"


def test_status_of_a_living_and_of_a_killed_session(client):
    session_id = client.session_id
    status = client.get_session_status()
    assert (status["exists"], status["vm_assigned"], status["vm_alive"]) == (True, True, True)
    assert status["vm_status"] == "active"
    assert isinstance(status["vm_id"], str) and re.fullmatch(r"[a-z0-9_-]+", status["vm_id"])
    assert 0 <= status["uptime_seconds"] < 600
    assert 0 < status["expires_in_seconds"] <= 280

    answer = client.kill()
    assert answer["status"] == "killed"
    assert client.session_id is None
    after = client.get_session_status(session_id)
    assert (after["exists"], after["vm_assigned"], after["vm_alive"]) == (True, True, False)
    assert after["vm_status"] == "killed"
    assert after["expires_in_seconds"] == 0
    assert client.get_session_info(session_id)["status"] == "terminated"
    client.session_id = session_id
    assert client.is_session_active() is False


def test_kill_may_be_repeated_and_ends_executions_for_good(http):
    session_id = http.start_session()
    first = http.post("/kill", {"session_id": session_id})
    second = http.post("/kill", {"session_id": session_id})
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["session_id"] == session_id
    answer = http.post("/execute", {"command": "print(1)", "session_id": session_id})
    assert answer.status_code == 404
    assert "detail" in answer.json()


def test_usage_comes_from_the_kernel_and_grows(client):
    before = client.get_usage()
    assert before["memory_used"] > 0
    assert before["network_io"]["total_bytes"] == before["network_io"]["rx_bytes"] + before["network_io"]["tx_bytes"]
    client.execute("import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass")
    client.execute("ballast = bytearray(100 << 20)\nfor i in range(0, len(ballast), 4096): ballast[i] = 1")
    after = client.get_usage()
    assert after["cpu_time"] - before["cpu_time"] >= 0.45
    assert after["memory_used"] - before["memory_used"] > 80 << 20
    assert after["memory_limit"] == 1024 << 20


def test_usage_counts_network_bytes(client):
    before = client.get_usage()["network_io"]["tx_bytes"]
    client.execute(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(100):\n    s.sendto(b'x' * 1000, ('192.0.2.1', 9))"
    )
    eventually(lambda: client.get_usage()["network_io"]["tx_bytes"] - before >= 100_000, 5)


def test_sandboxes_are_found_by_their_metadata(clients, tenant):
    mark = uuid.uuid4().hex
    one = clients(metadata={"mark": mark, "env": "production"})
    two = clients(metadata={"mark": mark, "env": "dev", "nested": {"a": 1}})
    found = one.list_sandboxes(metadata={"mark": mark})
    assert {record["session_id"] for record in found} == {one.session_id, two.session_id}
    assert [r["session_id"] for r in one.list_sandboxes(metadata={"mark": mark, "env": "dev"})] == [two.session_id]
    assert len(one.list_sandboxes(metadata={"mark": mark}, limit=1)) == 1
    assert one.list_sandboxes(metadata={"mark": mark, "env": "none"}) == []
    assert isinstance(one.list_sandboxes(), list)
    answer = tenant.get("/v1/sessions/sandboxes", params={"metadata": f'{{"mark": "{mark}"}}'})
    assert answer.json() == []


def test_env_is_in_every_execution(clients):
    client = clients(env={"APP_ENV": "dev", "NUMBER": 7, "TEXT": "a b'c\"d\n€"})
    assert client.execute("import os; print(os.environ['APP_ENV'], os.environ['NUMBER'])")["stdout"] == "dev 7\n"
    assert client.execute("import os; print(ascii(os.environ['TEXT']))")["stdout"] == ascii("a b'c\"d\n€") + "\n"
    assert client.execute('printf %s "$APP_ENV"', language="bash")["stdout"] == "dev"
    task = client.execute_async('printf %s "$NUMBER"', language="bash")
    assert client.get_task_result(task["task_id"])["stdout"] == "7"


def test_the_app_url_is_that_of_a_share(client):
    answer = client.get_session_app_url(port=8080)
    assert answer["app_url"].startswith("http") and answer["port"] == 8080


def test_sessions_do_not_share_anything(clients):
    one, two = clients(), clients()
    one.execute("secret = 42")
    one.execute("echo mine > /app/mine", language="bash")
    assert "NameError" in two.execute("print(secret)")["stderr"]
    assert two.execute("ls /app/mine", language="bash")["exit_code"] != 0
    assert one.get_session_status()["vm_id"] != two.get_session_status()["vm_id"]


def test_leaving_the_context_manager_leaves_the_session_to_its_lifetime(daemon, http):
    with InstaVM(daemon.key, base_url=daemon.base_url) as vm:
        session_id = vm.session_id
        vm.execute("x = 42")
        assert vm.execute("print(x)")["output"] == "42\n"
    assert http.get(f"/v1/sessions/status/{session_id}").json()["vm_alive"] is True
    http.post("/kill", {"session_id": session_id})


def test_a_wrong_key_is_401_everywhere(daemon):
    with pytest.raises(AuthenticationError):
        InstaVM("instavm_sk_wrong", base_url=daemon.base_url)
    management = InstaVM("instavm_sk_wrong", base_url=daemon.base_url, auto_start_session=False)
    for call in (management.get_current_user, management.vms.list, management.list_sandboxes):
        with pytest.raises(AuthenticationError):
            call()
    management.session_id = str(uuid.uuid4())
    for call in (
        lambda: management.execute("1"),
        lambda: management.execute_async("1"),
        lambda: management.download_file("x"),
        management.get_usage,
        management.get_session_info,
        management.kill,
    ):
        with pytest.raises(AuthenticationError):
            call()


@pytest.mark.parametrize("path", ["session", "status", "usage", "app-url"])
def test_unknown_and_foreign_sessions_are_404(client, tenant, http, path):
    for caller, session_id in ((http, str(uuid.uuid4())), (http, "no-uuid"), (tenant, client.session_id)):
        answer = caller.get(f"/v1/sessions/{path}/{session_id}")
        assert answer.status_code == 404, (path, session_id, answer.text)
        assert isinstance(answer.json()["detail"], str)


def test_another_tenant_cannot_touch_a_session(client, tenant):
    session_id = client.session_id
    assert tenant.post("/execute", {"command": "1", "session_id": session_id}).status_code == 404
    assert tenant.post("/execute_async", {"command": "1", "session_id": session_id}).status_code == 404
    assert tenant.post("/kill", {"session_id": session_id}).status_code == 404
    assert tenant.post("/download", None, data={"filename": "/etc/passwd", "session_id": session_id}).status_code == 404
    upload = tenant.request(
        "POST",
        "/upload",
        files={"remote_path": (None, "/x"), "session_id": (None, session_id), "file": ("x", b"x")},
    )
    assert upload.status_code == 404
    assert client.is_session_active() is True
