"""VM records: create, both lists, delete."""

import concurrent.futures
import re
import time
import uuid

import pytest
from daemon import Maker, eventually

pytestmark = pytest.mark.contract


@pytest.fixture
def manager(daemon):
    """The official client without a session; the VMs that it creates end with the test."""
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


@pytest.mark.parametrize(
    "fields",
    [
        {"snapshot_id": "snap_none"},
        {"volumes": [{"volume_id": "v", "mount_path": "/d"}]},
        {"volumes": [{"name": "none", "mount_path": "/d"}]},
        {"vault_ids": ["vlt_x"]},
        {"image_variant": "none-such"},
        {"egress_policy": {"allowed_domains": ["not a name"]}},
    ],
)
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


def test_what_is_closed_to_nobody_and_empty_lists_are_accepted(make):
    everything = {"allow_public_repos": True, "allow_http": True, "allow_https": True, "allowed_domains": [], "allowed_cidrs": []}
    vm = make.vm(egress_policy=everything, vault_ids=[], volumes=[], image_variant="standard", snapshot_on_terminate=False)
    assert (vm["status"], vm["image_variant"], vm["vault_ids"]) == ("active", "standard", [])


def test_every_field_of_a_vm_at_once(make):
    volume = make.volume()
    vm = make.vm(
        env={"MODE": "test"},
        metadata={"team": "data"},
        memory_mb=384,
        vcpu_count=2,
        volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw", "checkpoint_id": None}],
        snapshot_on_terminate=False,
        snapshot_name="unused",
    )
    assert (vm["memory_mb"], vm["vcpu_count"], vm["metadata"]) == (384, 2, {"team": "data"})
    assert make.sh(vm, "echo $MODE; echo kept > /data/kept") == "test\n"
    assert make.content(volume, "kept") == b"kept\n"


FILL = "b = bytearray({0} << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('fits'); del b"


def test_memory_changes_while_the_vm_runs(make, manager):
    vm = make.vm(memory_mb=256)
    run = lambda code: make.http.execute(vm["session_id"], code)["stdout"]  # noqa: E731
    boot = make.sh(vm, "cut -d ' ' -f 22 /proc/1/stat")
    assert run(FILL.format(400)) != "fits\n"
    run("kept = 'variable'")
    changed = manager.vms.update(vm["vm_id"], memory_mb=768)
    assert changed["memory_mb"] == 768
    assert run(FILL.format(400)) == "fits\n"
    assert run("print(kept)") == "variable\n"
    assert make.http.get(f"/v1/sessions/usage/{vm['session_id']}").json()["memory_limit"] == 768 << 20
    manager.vms.update(vm["vm_id"], memory_mb=256)
    assert manager.vms.get(vm["vm_id"])["memory_mb"] == 256
    assert run("print(kept)") == "variable\n"
    assert run(FILL.format(400)) != "fits\n"
    assert make.sh(vm, "cut -d ' ' -f 22 /proc/1/stat") == boot, "it is the same machine"


def test_memory_does_not_shrink_below_what_is_used(make):
    vm = make.vm(memory_mb=768)
    make.http.execute(vm["session_id"], "b = bytearray(400 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1")
    answer = make.http.patch(f"/v1/vms/{vm['vm_id']}", {"memory_mb": 256})
    assert answer.status_code == 409 and re.search(r"\d{3}", answer.json()["detail"]), answer.text
    assert make.http.get(f"/v1/vms/{vm['vm_id']}").json()["memory_mb"] == 768
    assert make.http.execute(vm["session_id"], "print(len(b))")["stdout"] == f"{400 << 20}\n", "and nothing was killed"


@pytest.mark.parametrize("memory", [127, 8194, 0, -2, "much", 1.5, [512], 10**30])
def test_memory_of_a_change_has_a_range(make, memory):
    vm = make.vm()
    answer = make.http.patch(f"/v1/vms/{vm['vm_id']}", {"memory_mb": memory})
    assert answer.status_code == 422 and "memory_mb" in answer.text, answer.text
    if memory in (127, 8194):
        assert "128" in answer.text and "8192" in answer.text
    assert make.http.get(f"/v1/vms/{vm['vm_id']}").json()["memory_mb"] == 256


def test_changes_of_nothing_unknown_fields_and_ended_vms(make, tenant):
    vm = make.vm()
    for body in ({}, {"something_new": 1}, {"memory_mb": None}):
        answer = make.http.patch(f"/v1/vms/{vm['vm_id']}", body)
        assert answer.status_code == 200 and isinstance(answer.json(), dict), answer.text
    assert tenant.patch(f"/v1/vms/{vm['vm_id']}", {"memory_mb": 512}).status_code == 404
    assert make.http.patch("/v1/vms/vm_none", {"memory_mb": 512}).status_code == 404
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    assert make.http.patch(f"/v1/vms/{vm['vm_id']}", {"memory_mb": 512}).status_code in (404, 409)


def test_many_at_once(make):
    first = make.vm(count=5, metadata={"crowd": "yes"}, env={"A": "b"})
    assert len(first["vms"]) == 5 and first["vm_id"] == first["vms"][0]["vm_id"]
    for key in ("vm_id", "session_id"):
        assert len({vm[key] for vm in first["vms"]}) == 5
    for number, vm in enumerate(first["vms"]):
        assert (vm["status"], vm["metadata"]) == ("active", {"crowd": "yes"})
        assert make.sh(vm, f"echo $A; echo {number} > /app/own; ls /app") == "b\nown\n"
    assert [make.sh(vm, "cat /app/own") for vm in first["vms"]] == [f"{number}\n" for number in range(5)]


def test_one_asked_for_by_number_is_in_the_list_too(make):
    vm = make.vm(count=1)
    assert [one["vm_id"] for one in vm["vms"]] == [vm["vm_id"]]


@pytest.mark.parametrize("count", [0, 101, -1, "x", 1.5])
def test_numbers_of_vms_have_a_range(make, count):
    vm = make.vm()
    for path, body in (("/v1/vms", {"memory_mb": 256}), (f"/v1/vms/{vm['vm_id']}/clone", {})):
        before = len(make.http.get("/v1/vms").json())
        answer = make.http.post(path, {**body, "count": count})
        assert answer.status_code == 422 and "count" in answer.text, answer.text
        if count in (0, 101):
            assert "1" in answer.text and "100" in answer.text
        assert len(make.http.get("/v1/vms").json()) == before


def test_a_count_that_does_not_fit_makes_nothing(own_daemon):
    daemon = own_daemon("count", limits_vms_per_account=3).start()
    make = Maker(daemon.http())
    vm = make.vm()
    make.sh(vm, "echo kept > /app/kept")
    for path, body in (("/v1/vms", {"count": 3, "memory_mb": 256}), (f"/v1/vms/{vm['vm_id']}/clone", {"count": 3})):
        answer = make.http.post(path, body)
        assert answer.status_code in (429, 503), answer.text
        assert [one["vm_id"] for one in make.http.get("/v1/vms").json()] == [vm["vm_id"]]
    assert len(make.clone(vm, count=2)["vms"]) == 2, "what fits is made"
    daemon.assert_clean()


def test_a_clone_has_the_files_the_env_and_the_size(make, manager):
    vm = make.vm(env={"MODE": "origin"}, metadata={"team": "data"}, memory_mb=384)
    make.sh(vm, "echo kept > /app/kept; mkdir -p /opt/a/b; echo deep > /opt/a/b/c; useradd -m somebody; ln -s /app/kept /root/link")
    twin = manager.vms.clone(vm["vm_id"], wait=True)
    make.vms.append(twin["vm_id"])
    assert twin["status"] == "active" and is_uuid(twin["session_id"])
    assert twin["vm_id"] != vm["vm_id"] and twin["session_id"] != vm["session_id"]
    assert (twin["memory_mb"], twin["vcpu_count"], twin["metadata"]) == (384, 1, {"team": "data"})
    assert twin["vm_lifetime_seconds"] == vm["vm_lifetime_seconds"]
    assert make.sh(twin, "cat /root/link /opt/a/b/c; echo $MODE; id -un somebody") == "kept\ndeep\norigin\nsomebody\n"
    assert make.sh(vm, "hostname") != make.sh(twin, "hostname")


def test_a_clone_is_independent(make):
    vm = make.vm()
    make.sh(vm, "echo one > /app/file; echo gone > /app/gone")
    twin = make.clone(vm)
    make.sh(twin, "echo two > /app/file; rm /app/gone; dd if=/dev/zero of=/app/large bs=1M count=20 status=none")
    make.sh(vm, "echo three >> /app/file")
    assert make.sh(vm, "cat /app/file; ls /app") == "one\nthree\nfile\ngone\n"
    assert make.sh(twin, "cat /app/file; ls /app") == "two\nfile\nlarge\n"
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    again = make.clone(twin)
    make.http.delete(f"/v1/vms/{twin['vm_id']}")
    assert make.sh(again, "cat /app/file; stat -c %s /app/large") == f"two\n{20 << 20}\n"


def test_many_clones_at_once(make):
    vm = make.vm()
    make.sh(vm, "echo kept > /app/kept")
    clones = make.clone(vm, count=4)["vms"]
    assert len({one["vm_id"] for one in clones}) == 4
    assert [make.sh(one, "cat /app/kept; hostname").splitlines()[0] for one in clones] == ["kept"] * 4
    assert len({make.sh(one, "hostname") for one in clones}) == 4


def test_the_snapshot_of_a_clone_stays_when_it_has_a_name(make, manager):
    vm = make.vm()
    name = f"between-{uuid.uuid4().hex}"
    before = len(manager.snapshots.list())
    make.clone(vm)
    assert len(manager.snapshots.list()) == before
    make.clone(vm, snapshot_name=name)
    (kept,) = [one for one in manager.snapshots.list() if one["name"] == name]
    make.snapshots.append(kept["id"])
    assert kept["status"] == "ready"


def test_a_clone_without_waiting(make, manager):
    vm = make.vm()
    make.sh(vm, "echo kept > /app/kept")
    twin = manager.vms.clone(vm["vm_id"], wait=False)
    make.vms.append(twin["vm_id"])
    assert twin["status"] in ("creating", "active")
    eventually(lambda: manager.vms.get(twin["vm_id"])["status"] == "active", 60)
    assert make.sh(twin, "cat /app/kept") == "kept\n"


def test_a_session_gets_a_vm_from_a_snapshot(make):
    vm = make.vm(env={"MODE": "first"}, metadata={"team": "data"})
    make.sh(vm, "echo saved > /app/saved")
    snapshot = make.snapshot(vm)
    make.http.post("/kill", {"session_id": vm["session_id"]})
    again = make.vm(session_id=vm["session_id"], snapshot_id=snapshot["id"])
    assert again["session_id"] == vm["session_id"] and again["vm_id"] != vm["vm_id"]
    assert again["snapshot_id"] == snapshot["id"]
    assert make.sh(again, "cat /app/saved") == "saved\n"
    assert make.http.get(f"/v1/sessions/status/{vm['session_id']}").json()["vm_id"] == again["vm_id"]


def test_a_session_that_lives_keeps_its_vm(make, tenant):
    vm = make.vm()
    assert make.vm(session_id=vm["session_id"])["vm_id"] == vm["vm_id"]
    assert tenant.post("/v1/vms", {"session_id": vm["session_id"]}).status_code == 404
    assert make.http.post("/v1/vms", {"session_id": str(uuid.uuid4())}).status_code == 404


def repeated(make, path, body, kept):
    """A request made twice under one key, and the ids that came."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = [make.http.post(path, body, headers=headers) for _ in range(2)]
    assert [answer.status_code // 100 for answer in answers] == [2, 2], [answer.text for answer in answers]
    first, second = (answer.json() for answer in answers)
    key = next(name for name in ("vm_id", "id", "session_id") if name in first and (name != "vm_id" or kept is make.vms))
    if kept is not None:
        kept.append(first[key])
    assert first[key] == second[key]
    return headers, first


def test_the_same_key_makes_one_of_everything(make):
    vm, volume = make.vm(), make.volume()
    for path, body, kept in (
        ("/v1/vms", {"memory_mb": 256}, make.vms),
        (f"/v1/vms/{vm['vm_id']}/clone", {}, make.vms),
        (f"/v1/vms/{vm['vm_id']}/snapshot", {"name": "once"}, make.snapshots),
        ("/v1/volumes", {"name": f"once-{uuid.uuid4().hex}", "quota_bytes": 8 << 20}, make.volumes),
        (f"/v1/volumes/{volume['id']}/checkpoints", {"name": "once"}, None),
        ("/v1/snapshots", {"oci_image": "127.0.0.1:9/none"}, make.snapshots),
    ):
        repeated(make, path, body, kept)
    assert len(make.http.get(f"/v1/volumes/{volume['id']}/checkpoints").json()) == 1


def test_a_session_is_made_once_under_a_key(make):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"api_key": make.http.key, "memory_mb": 256}
    ids = {make.http.post("/v1/sessions/session", body, headers=headers).json()["session_id"] for _ in range(2)}
    assert len(ids) == 1
    make.http.post("/kill", {"session_id": ids.pop()})


def test_a_count_under_a_key(make):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = [make.http.post("/v1/vms", {"memory_mb": 256, "count": 3}, headers=headers).json() for _ in range(2)]
    make.vms.extend(one["vm_id"] for one in answers[0]["vms"])
    assert [one["vm_id"] for one in answers[0]["vms"]] == [one["vm_id"] for one in answers[1]["vms"]]


def test_a_key_is_for_one_request_of_one_account(make, foreign):
    headers, vm = repeated(make, "/v1/vms", {"memory_mb": 256}, make.vms)
    other = make.http.post("/v1/vms", {"memory_mb": 512}, headers=headers)
    assert other.status_code in (409, 422) and "Idempotency-Key" in other.json()["detail"], other.text
    theirs = foreign.made(foreign.http.post("/v1/vms", {"memory_mb": 256}, headers=headers), foreign.vms, "vm_id")
    assert theirs["vm_id"] != vm["vm_id"]
    for key in ("", "x" * 1000, "ü"):
        answer = make.http.post("/v1/vms", {"memory_mb": 64}, headers={"Idempotency-Key": key.encode()})
        assert answer.status_code in (400, 422), answer.text


def test_a_key_used_by_many_at_once_makes_one(make, daemon):
    before = {vm["vm_id"] for vm in make.http.get("/v1/vms").json()}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: daemon.http().post("/v1/vms", {"memory_mb": 256}, headers=headers), range(8)))
    assert {answer.status_code // 100 for answer in answers} <= {2, 4}
    assert {answer.status_code for answer in answers if answer.status_code >= 400} <= {409}, [answer.text for answer in answers]
    made = {answer.json()["vm_id"] for answer in answers if answer.status_code < 300}
    make.vms.extend(made)
    assert len(made) == 1
    assert {vm["vm_id"] for vm in make.http.get("/v1/vms").json()} - before == made


def test_a_failure_is_not_kept_under_a_key(make):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    assert make.http.post("/v1/vms", {"memory_mb": 64}, headers=headers).status_code == 422
    assert make.made(make.http.post("/v1/vms", {"memory_mb": 256}, headers=headers), make.vms, "vm_id")["status"] == "active"


def test_deleting_does_not_wait_for_the_disk(make):
    vm = make.vm()
    make.sh(vm, "dd if=/dev/urandom of=/app/large bs=1M count=300 status=none", timeout=120)
    started = time.monotonic()
    assert make.http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
    assert time.monotonic() - started < 2
