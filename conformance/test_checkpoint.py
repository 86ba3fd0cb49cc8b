"""Checkpoints of volumes: made, listed, mounted, deleted."""

import os
import time

import pytest
from daemon import eventually

MIB = 1 << 20


def test_a_checkpoint_from_its_making_to_its_end(manager, make):
    volume = make.volume()
    make.put(volume, "file", b"before")
    made = manager.volumes.create_checkpoint(volume["id"], name="pre-release", something_new=1)
    assert ":" not in made["id"] and made["checkpoint_id"] == made["id"]
    assert (made["name"], made["status"], made["volume_id"]) == ("pre-release", "ready", volume["id"])
    unnamed = manager.volumes.create_checkpoint(volume["id"])
    listed = manager.volumes.list_checkpoints(volume["id"])
    assert {one["id"] for one in listed} == {made["id"], unnamed["id"]}
    assert all(one["status"] == "ready" and isinstance(one["name"], str) for one in listed)
    assert isinstance(manager.volumes.delete_checkpoint(volume["id"], made["id"]), dict)
    assert [one["id"] for one in manager.volumes.list_checkpoints(volume["id"])] == [unnamed["id"]]
    assert make.http.delete(f"/v1/volumes/{volume['id']}/checkpoints/{made['id']}").status_code == 404


def test_a_checkpoint_is_the_moment_and_latest_the_newest(make):
    volume = make.volume()
    writer = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    kept = []
    for number in range(3):
        make.sh(writer, f"echo {number} > /data/number; touch /data/only-{number}")
        kept.append(make.checkpoint(volume)["id"])
        make.sh(writer, f"rm /data/only-{number}")
    make.sh(writer, "echo now > /data/number")
    reader = make.vm()
    for number, checkpoint in enumerate(kept):
        assert make.mount(reader, volume, f"/at/{number}", mode="ro", checkpoint_id=checkpoint).status_code == 200
        assert make.sh(reader, f"cat /at/{number}/number; ls /at/{number}") == f"{number}\nnumber\nonly-{number}\n"
    mounted = make.mount(reader, volume, "/latest", mode="ro", checkpoint_id="latest").json()
    assert mounted["checkpoint_id"] == kept[-1]
    assert make.mount(reader, volume, "/live", mode="ro").status_code == 200
    make.sh(writer, "echo later > /data/number")
    assert make.sh(reader, "cat /latest/number /live/number") == "2\nlater\n"
    # `latest` is the newest of the moment of the mount: one made after it changes nothing that is mounted.
    make.checkpoint(volume)
    assert make.sh(reader, "cat /latest/number") == "2\n"
    make.fails(reader, "echo x > /latest/number")
    at_creation = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/d", "mode": "ro", "checkpoint_id": "latest"}])
    assert make.sh(at_creation, "cat /d/number") == "later\n"


def test_what_was_written_and_not_yet_synced_is_in_it(make):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    make.sh(vm, "head -c 20000000 /dev/urandom > /data/file; sha256sum < /data/file > /data/sum")
    checkpoint = make.checkpoint(volume)
    make.sh(vm, "rm /data/file")
    assert make.mount(vm, volume, "/was", mode="ro", checkpoint_id=checkpoint["id"]).status_code == 200
    make.sh(vm, 'test "$(sha256sum < /was/file)" = "$(cat /was/sum)"')


def test_checkpoints_need_ro_and_have_to_be_there(make, foreign):
    volume, other = make.volume(), make.volume()
    vm = make.vm()
    checkpoint = make.checkpoint(volume)
    for fields, status in (
        ({"mode": "rw", "checkpoint_id": checkpoint["id"]}, 422),
        ({"checkpoint_id": checkpoint["id"]}, 422),
        ({"mode": "rw", "checkpoint_id": "latest"}, 422),
        ({"mode": "ro", "checkpoint_id": "ckpt_none"}, 404),
    ):
        answer = make.mount(vm, volume, **fields)
        assert answer.status_code == status and isinstance(answer.json()["detail"], str), (fields, answer.text)
    assert make.mount(vm, other, mode="ro", checkpoint_id=checkpoint["id"]).status_code == 404, "of another volume"
    assert make.mount(vm, other, mode="ro", checkpoint_id="latest").status_code in (404, 409, 422), "there is none"
    assert make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json() == []


def test_a_checkpoint_in_use_stays(make):
    volume = make.volume()
    make.put(volume, "file", b"kept")
    checkpoint = make.checkpoint(volume)
    vm = make.vm()
    assert make.mount(vm, volume, mode="ro", checkpoint_id=checkpoint["id"]).status_code == 200
    path = f"/v1/volumes/{volume['id']}/checkpoints/{checkpoint['id']}"
    refused = make.http.delete(path)
    assert refused.status_code == 409 and vm["vm_id"] in refused.json()["detail"], refused.text
    assert make.sh(vm, "cat /data/file") == "kept"
    assert make.unmount(vm, volume).status_code == 200
    assert make.http.delete(path).status_code == 200


def test_a_volume_goes_with_its_checkpoints(make, daemon):
    volume = make.volume()
    make.put(volume, "file", os.urandom(MIB))
    for _ in range(3):
        make.checkpoint(volume)
    assert make.http.delete(f"/v1/volumes/{volume['id']}").status_code == 200
    assert make.http.get(f"/v1/volumes/{volume['id']}/checkpoints").status_code == 404
    daemon.assert_clean()


def test_what_checkpoints_hold_counts_against_the_quota(make, manager):
    volume = make.volume(quota_bytes=24 * MIB)
    make.put(volume, "file", os.urandom(15 * MIB))
    checkpoint = make.checkpoint(volume)
    make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": "file"})
    refreshed = manager.volumes.get(volume["id"], refresh_usage=True)
    assert refreshed["used_bytes"] == 0 and refreshed["charged_bytes"] >= 15 * MIB
    answer = make.put(volume, "more", os.urandom(15 * MIB))
    assert answer.status_code == 413 and "no space is left on the volume" in answer.json()["detail"], answer.text
    manager.volumes.delete_checkpoint(volume["id"], checkpoint["id"])
    eventually(lambda: make.put(volume, "more", os.urandom(15 * MIB)).status_code in (200, 409), 30, 0.5)
    assert len(make.content(volume, "more")) == 15 * MIB


def test_making_one_takes_no_longer_for_a_full_volume(make):
    small, large = make.volume(), make.volume(quota_bytes=1 << 30)
    vm = make.vm(volumes=[{"volume_id": large["id"], "mount_path": "/data", "mode": "rw"}])
    make.sh(vm, "head -c 400000000 /dev/zero > /data/file; sync -f /data", timeout=120)

    def best(volume):
        times = []
        for _ in range(5):
            started = time.monotonic()
            make.checkpoint(volume)
            times.append(time.monotonic() - started)
        return min(times)

    assert best(large) < best(small) + 0.25


@pytest.mark.parametrize("fields", [{"name": 7}, {"name": ["a"]}, {"name": "x" * 10_000}])
def test_names_are_checked(make, fields):
    answer = make.http.post(f"/v1/volumes/{make.volume()['id']}/checkpoints", fields)
    assert answer.status_code == 422 and "name" in answer.text, answer.text
