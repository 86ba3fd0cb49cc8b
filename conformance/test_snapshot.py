"""Snapshots of running VMs: taken, listed, started from, deleted. Builds are in test_build.py."""

import concurrent.futures
import time
import uuid

import pytest
import requests
from daemon import Maker, eventually


def test_a_snapshot_is_ready_and_has_the_files_of_that_moment(manager, make):
    vm = make.vm()
    make.sh(vm, "echo before > /app/kept; mkdir -p /srv/deep/er; echo too > /srv/deep/er/file; chmod 640 /app/kept; chown 1000:1000 /app/kept")
    taken = manager.vms.snapshot(vm_id=vm["vm_id"], wait=True, name="dev-base")
    make.snapshots.append(taken["id"])
    assert taken["snapshot_id"] == taken["id"] and isinstance(taken["id"], str)
    assert (taken["status"], taken["name"], taken["type"]) == ("ready", "dev-base", "user")
    make.sh(vm, "echo after > /app/kept; echo new > /app/new")
    got = manager.snapshots.get(taken["id"])
    assert (got["id"], got["name"], got["status"], got["type"], got["is_public"]) == (taken["id"], "dev-base", "ready", "user", False)
    other = make.vm(snapshot_id=taken["id"])
    assert other["snapshot_id"] == taken["id"]
    assert make.sh(other, "cat /app/kept /srv/deep/er/file; ls /app; stat -c '%u:%g %a' /app/kept") == "before\ntoo\nkept\n1000:1000 640\n"
    assert make.sh(vm, "cat /app/kept") == "after\n", "the VM itself goes on"


def test_the_pause_is_told_and_short(make):
    vm = make.vm()
    make.http.execute(
        vm["session_id"],
        "import threading, time\ngaps = [0.0]\ndef tick():\n    last = time.monotonic()\n    while True:\n        time.sleep(0.001)\n"
        "        now = time.monotonic(); gaps[0] = max(gaps[0], now - last); last = now\nthreading.Thread(target=tick, daemon=True).start()",
    )
    taken = make.snapshot(vm)
    assert 0 < taken["pause_ms"] < 1000
    seen = float(make.http.execute(vm["session_id"], "print(gaps[0])")["stdout"])
    assert seen < 1, "the VM stands still for a moment only"


def test_without_waiting_it_is_there_soon(manager, make):
    vm = make.vm()
    begun = manager.vms.snapshot(vm_id=vm["vm_id"], wait=False)
    make.snapshots.append(begun["id"])
    assert begun["status"] in ("pending", "creating", "ready")
    eventually(lambda: manager.snapshots.get(begun["id"])["status"] == "ready", 30)
    assert make.sh(make.vm(snapshot_id=begun["id"]), "echo up") == "up\n"


def test_what_a_vm_writes_meanwhile_is_whole_in_every_snapshot(make):
    vm = make.vm(vcpu_count=2)
    make.sh(vm, "mkdir -p /app/log")
    make.http.execute(
        vm["session_id"],
        "import os, threading, hashlib\n"
        "def write():\n"
        "    number = 0\n"
        "    while True:\n"
        "        number += 1\n"
        "        for name in ('first', 'second'):\n"
        "            with open(f'/app/{name}.new', 'w') as file:\n"
        "                file.write(str(number))\n"
        "            os.replace(f'/app/{name}.new', f'/app/{name}')\n"
        "        body = os.urandom(2000)\n"
        "        with open(f'/app/log/{hashlib.sha256(body).hexdigest()}.new', 'wb') as file:\n"
        "            file.write(body)\n"
        "        os.replace(file.name, file.name[:-4])\n"
        "        if number % 500 == 0:\n"
        "            for name in os.listdir('/app/log'): os.unlink(f'/app/log/{name}')\n"
        "threading.Thread(target=write, daemon=True).start()\nimport time\nwhile not os.path.exists('/app/second'): time.sleep(0.01)",
    )
    numbers = []
    for _ in range(4):
        other = make.vm(snapshot_id=make.snapshot(vm)["id"])
        # The first file is replaced before the second: whatever the moment, they are at most one apart, and none is cut.
        first, second = map(int, make.sh(other, "cat /app/first; echo; cat /app/second").split())
        assert 0 <= first - second <= 1
        numbers.append(second)
        torn = (
            "import hashlib, os\nos.chdir('/app/log')\n"
            "print([n for n in os.listdir() if len(n) == 64 and hashlib.sha256(open(n, 'rb').read()).hexdigest() != n])"
        )
        assert make.http.execute(other["session_id"], torn)["stdout"] == "[]\n"
    assert numbers == sorted(set(numbers)), "the writer never stopped for long"


def test_lists_are_by_type_and_names_may_repeat(manager, make, foreign):
    vm = make.vm()
    name = f"same-{uuid.uuid4().hex}"
    ids = {make.snapshot(vm, name=name)["id"] for _ in range(2)}
    assert len(ids) == 2
    assert {one["id"] for one in manager.snapshots.list(snapshot_type="user") if one["name"] == name} == ids
    assert {one["id"] for one in manager.snapshots.list() if one["name"] == name} == ids
    assert [one for one in manager.snapshots.list(snapshot_type="system") if one["name"] == name] == []
    for one in manager.snapshots.list(status="ready", anything="else"):
        assert isinstance(one["id"], str) and one["status"] and one["type"] in ("user", "system")
    assert [one for one in foreign.http.get("/v1/snapshots").json() if one["id"] in ids] == []
    assert make.http.get("/v1/snapshots?type=other").status_code == 422


def test_unknown_and_foreign_snapshots_are_404(make, foreign, tenant):
    snapshot = make.snapshot(make.vm())
    for caller, snapshot_id in ((make.http, "snap_none"), (make.http, "..%2Fx"), (tenant, snapshot["id"])):
        assert caller.get(f"/v1/snapshots/{snapshot_id}").status_code == 404
        assert caller.delete(f"/v1/snapshots/{snapshot_id}").status_code == 404
        answer = caller.post("/v1/vms", {"snapshot_id": snapshot_id})
        assert answer.status_code == 404 and isinstance(answer.json()["detail"], str), answer.text
    vm = make.vms[0]
    for caller, vm_id in ((make.http, "vm_none"), (tenant, vm)):
        assert caller.post(f"/v1/vms/{vm_id}/snapshot", {}).status_code == 404
        assert caller.post(f"/v1/vms/{vm_id}/clone", {}).status_code == 404
    assert make.http.get(f"/v1/snapshots/{snapshot['id']}").json()["status"] == "ready"
    assert foreign.http.get("/v1/vms").json() == []


def test_a_snapshot_in_use_stays(manager, make):
    vm = make.vm()
    make.sh(vm, "echo kept > /app/kept")
    snapshot = make.snapshot(vm)
    user = make.vm(snapshot_id=snapshot["id"])
    refused = make.http.delete(f"/v1/snapshots/{snapshot['id']}")
    assert refused.status_code == 409 and user["vm_id"] in refused.json()["detail"], refused.text
    assert make.sh(make.vm(snapshot_id=snapshot["id"]), "cat /app/kept") == "kept\n"
    for one in make.vms[1:]:
        make.http.delete(f"/v1/vms/{one}")
    eventually(lambda: make.http.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 200, 10)
    assert make.http.get(f"/v1/snapshots/{snapshot['id']}").status_code == 404
    assert make.http.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 404
    assert snapshot["id"] not in {one["id"] for one in manager.snapshots.list()}
    assert make.sh(vm, "cat /app/kept") == "kept\n", "the VM that it was taken of needs it no more than before"


def test_snapshots_of_snapshots(make):
    vm = make.vm()
    kept = []
    for generation in range(4):
        make.sh(vm, f"echo {generation} >> /app/generations")
        kept.append(make.snapshot(vm)["id"])
        vm = make.vm(snapshot_id=kept[-1])
    assert make.sh(vm, "cat /app/generations") == "0\n1\n2\n3\n"
    # Earlier ones are no part of later ones: with the VMs gone they can go in any order.
    for vm_id in make.vms[:-1]:
        make.http.delete(f"/v1/vms/{vm_id}")
    for snapshot_id in kept[:-1]:
        eventually(lambda: make.http.delete(f"/v1/snapshots/{snapshot_id}").status_code == 200, 10)
    assert make.sh(vm, "cat /app/generations") == "0\n1\n2\n3\n"


def test_a_snapshot_of_a_vm_that_ended_is_refused(make):
    vm = make.vm()
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    for path in ("snapshot", "clone"):
        answer = make.http.post(f"/v1/vms/{vm['vm_id']}/{path}", {})
        assert answer.status_code in (404, 409), answer.text


@pytest.mark.parametrize("fields, word", [({"name": 7}, "name"), ({"name": "x" * 10_000}, "name"), ({"name": ["a"]}, "name")])
def test_names_are_checked(make, fields, word):
    answer = make.http.post(f"/v1/vms/{make.vm()['vm_id']}/snapshot", fields)
    assert answer.status_code == 422 and word in answer.text, answer.text


def test_names_of_clients_and_absent_names_are_taken(make):
    vm = make.vm()
    for name in ("deploy/my-app", "sandbox-0123456789ab", "ünïcode name"):
        assert make.snapshot(vm, name=name, something_new=1)["name"] == name
    assert isinstance(make.snapshot(vm, name=None)["name"], str)


def test_twenty_at_once_of_one_vm(make):
    vm = make.vm()
    make.sh(vm, "echo here > /app/here")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(lambda number: make.http.post(f"/v1/vms/{vm['vm_id']}/snapshot", {"name": str(number)}), range(20)))
    good = [answer.json() for answer in taken if answer.status_code < 300]
    make.snapshots.extend(one["id"] for one in good)
    assert {answer.status_code for answer in taken} <= {200, 201, 409}, [answer.text for answer in taken]
    assert good and len({one["id"] for one in good}) == len(good)
    assert make.sh(make.vm(snapshot_id=good[-1]["id"]), "cat /app/here") == "here\n"


def kept_disk(make, name):
    """The snapshot that a VM left behind."""

    def found():
        return [one for one in make.http.get("/v1/snapshots").json() if one["name"] == name and one["status"] == "ready"]

    snapshot = eventually(found, 20, what=name)[0]
    make.snapshots.append(snapshot["id"])
    return snapshot["id"]


@pytest.mark.parametrize("end", ["delete", "kill", "expire"])
def test_a_disk_is_kept_when_its_vm_ends(make, end):
    name = f"at-the-end-{uuid.uuid4().hex}"
    vm = make.vm(snapshot_on_terminate=True, snapshot_name=name, vm_lifetime_seconds=20 if end == "expire" else 600)
    assert (vm["snapshot_on_terminate"], vm["snapshot_name"]) == (True, name)
    make.sh(vm, "echo last > /app/last")
    if end == "delete":
        assert make.http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
    elif end == "kill":
        assert make.http.post("/kill", {"session_id": vm["session_id"]}).status_code == 200
    else:
        eventually(lambda: make.http.get(f"/v1/vms/{vm['vm_id']}").json()["status"] == "terminated", 30, 0.1)
    assert make.sh(make.vm(snapshot_id=kept_disk(make, name)), "cat /app/last") == "last\n"


def test_keeping_the_disk_can_be_decided_later(manager, make):
    name = f"decided-{uuid.uuid4().hex}"
    yes, no = make.vm(), make.vm(snapshot_on_terminate=True, snapshot_name=f"not-{name}")
    changed = manager.vms.update(yes["vm_id"], snapshot_on_terminate=True, snapshot_name=name)
    assert isinstance(changed, dict)
    assert manager.vms.get(yes["vm_id"])["snapshot_on_terminate"] is True
    manager.vms.update(no["vm_id"], snapshot_on_terminate=False)
    make.sh(yes, "echo last > /app/last")
    for vm in (no, yes):
        manager.vms.delete(vm["vm_id"])
    assert make.sh(make.vm(snapshot_id=kept_disk(make, name)), "cat /app/last") == "last\n"
    assert [one for one in manager.snapshots.list() if one["name"] == f"not-{name}"] == []


def test_a_disk_is_kept_without_a_name_too(make):
    before = {one["id"] for one in make.http.get("/v1/snapshots").json()}
    vm = make.vm(snapshot_on_terminate=True)
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    made = eventually(lambda: [s for s in make.http.get("/v1/snapshots").json() if s["id"] not in before and s["status"] == "ready"], 20)
    make.snapshots.append(made[0]["id"])
    assert isinstance(made[0]["name"], str) and made[0]["vm_id"] == vm["vm_id"]


def test_disks_are_kept_also_when_the_daemon_dies(own_daemon):
    daemon = own_daemon("kept").start()
    make = Maker(daemon.http())
    vm = make.vm(snapshot_on_terminate=True, snapshot_name="died", vm_lifetime_seconds=20)
    taken = make.snapshot(make.vm(), name="before")
    make.sh(vm, "echo last > /app/last")
    daemon.kill9()
    # The VM's time is over before the daemon is back.
    started = time.monotonic()
    while time.monotonic() - started < 20:
        time.sleep(0.2)
    make = Maker(daemon.start().http())
    assert make.sh(make.vm(snapshot_id=kept_disk(make, "died")), "cat /app/last") == "last\n"
    assert make.http.get(f"/v1/snapshots/{taken['id']}").json()["status"] == "ready"
    daemon.assert_clean()


def test_the_client_says_when_there_is_nothing(manager):
    for call in (lambda: manager.snapshots.get("snap_none"), lambda: manager.snapshots.delete("snap_none"), lambda: manager.vms.snapshot("vm_none")):
        with pytest.raises(requests.HTTPError) as caught:
            call()
        assert caught.value.response.status_code == 404
