"""VM records: create, both lists, delete."""

import re
import uuid

import pytest
from daemon import eventually

pytestmark = pytest.mark.contract


@pytest.fixture
def manager(daemon):
    """The official client without a session; the VMs that it makes end with the test."""
    client = daemon.client(auto_start_session=False)
    made = []
    create = client.vms.create

    def remember(*args, **kwargs):
        vm = create(*args, **kwargs)
        made.append(vm["vm_id"])
        return vm

    client.vms.create = remember
    yield client
    for vm_id in made:
        daemon.http().delete(f"/v1/vms/{vm_id}")


def is_uuid(text):
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def test_create_gives_both_ids_and_a_vm_that_works(manager):
    vm = manager.vms.create(wait=True, metadata={"purpose": "dev"}, vm_lifetime_seconds=600, memory_mb=512, vcpu_count=1)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_-]*", vm["vm_id"]) and not is_uuid(vm["vm_id"])
    assert is_uuid(vm["session_id"])
    assert vm["status"] == "active"
    assert (vm["memory_mb"], vm["vcpu_count"], vm["vm_lifetime_seconds"]) == (512, 1, 600)
    assert vm["metadata"] == {"purpose": "dev"}
    assert vm["isolation"] in ("microvm-kvm", "microvm-emulated", "namespaces")
    manager.session_id = vm["session_id"]
    assert manager.execute("print('in the vm')")["stdout"] == "in the vm\n"
    assert manager.get_session_status()["vm_id"] == vm["vm_id"]


def test_an_empty_body_is_enough_and_unknown_fields_are_tolerated(manager, http):
    vm = manager.vms.create(wait=True, something_new={"a": 1})
    assert vm["status"] == "active"
    assert vm["vm_lifetime_seconds"] == 3600
    answer = http.post("/v1/vms", {})
    assert answer.status_code in (200, 201)
    http.delete(f"/v1/vms/{answer.json()['vm_id']}")


def test_without_waiting_it_is_creating_and_then_active(manager, http):
    vm = manager.vms.create(wait=False)
    assert vm["status"] in ("creating", "active")
    eventually(lambda: http.get(f"/v1/vms/{vm['vm_id']}").json()["status"] == "active", 60)


def test_the_two_lists_differ(manager, http):
    living, ended = manager.vms.create(wait=True), manager.vms.create(wait=True)
    deleted = manager.vms.delete(ended["vm_id"])
    assert isinstance(deleted, dict) and deleted["vm_id"] == ended["vm_id"]
    running = {vm["vm_id"] for vm in manager.vms.list()}
    records = {vm["vm_id"]: vm for vm in manager.vms.list_all_records()}
    assert living["vm_id"] in running and ended["vm_id"] not in running
    assert records[ended["vm_id"]]["status"] in ("terminated", "deleted", "killed")
    assert records[living["vm_id"]]["status"] == "active"
    for path in ("/v1/vms", "/v1/vms/"):
        answer = http.get(path, allow_redirects=False)
        assert answer.status_code == 200 and isinstance(answer.json(), list)


def test_delete_ends_the_session_and_may_be_repeated(manager, http):
    vm = manager.vms.create(wait=True)
    assert http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
    assert http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
    assert http.get(f"/v1/sessions/status/{vm['session_id']}").json()["vm_alive"] is False


def test_records_sort_by_their_creation_as_text(manager):
    times = [manager.vms.create(wait=True)["created_at"] for _ in range(3)]
    assert times == sorted(times)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", time) for time in times)


def test_a_vm_can_be_put_into_an_existing_session(manager, http):
    vm = manager.vms.create(wait=True)
    http.post("/kill", {"session_id": vm["session_id"]})
    again = manager.vms.create(wait=True, session_id=vm["session_id"])
    assert again["session_id"] == vm["session_id"]
    assert again["vm_id"] != vm["vm_id"]
    assert http.execute(vm["session_id"], "print('again')")["stdout"] == "again\n"


@pytest.mark.parametrize(
    "fields",
    [{"memory_mb": 64}, {"memory_mb": 1 << 20}, {"vcpu_count": 0}, {"vcpu_count": 999}, {"vm_lifetime_seconds": 5}, {"vm_lifetime_seconds": 10**9}],
)
def test_limits_are_named(http, fields):
    answer = http.post("/v1/vms", fields)
    assert answer.status_code == 422
    assert next(iter(fields)) in answer.text and "between" in answer.text


@pytest.mark.parametrize("fields", [{"snapshot_id": "snap_none"}, {"volumes": [{"volume_id": "v", "mount_path": "/d"}]}, {"vault_ids": ["vlt_x"]}])
def test_what_does_not_exist_is_refused_and_not_ignored(http, fields):
    answer = http.post("/v1/vms", fields)
    assert 400 <= answer.status_code < 500
    assert isinstance(answer.json()["detail"], str)


def test_unknown_and_foreign_vms_are_404(manager, tenant, http):
    vm = manager.vms.create(wait=True)
    for caller, vm_id in ((http, "vm_none"), (tenant, vm["vm_id"])):
        assert caller.get(f"/v1/vms/{vm_id}").status_code == 404
        assert caller.delete(f"/v1/vms/{vm_id}").status_code == 404
    assert vm["vm_id"] not in {record["vm_id"] for record in tenant.get("/v1/vms/").json()}
    assert http.get(f"/v1/vms/{vm['vm_id']}").json()["status"] == "active"


def test_the_newest_records_come_first_and_only_as_many_as_asked_for(http):
    ids = [http.post("/v1/vms", {"memory_mb": 256}).json()["vm_id"] for _ in range(2)]
    for vm_id in ids:
        http.delete(f"/v1/vms/{vm_id}")
    listed = [vm["vm_id"] for vm in http.get("/v1/vms/?limit=2").json()]
    assert len(listed) == 2 and set(ids) <= set(vm["vm_id"] for vm in http.get("/v1/vms/").json())
    assert http.get("/v1/vms/?limit=0").status_code == 422
