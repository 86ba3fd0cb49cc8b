"""Disks: full pools, and the driver that keeps disks in plain folders."""

import os
import subprocess
import time
import uuid

import pytest
from daemon import Maker, eventually
from registry import Image, ImageRegistry, Layer, entry, small_root

GIB, MIB = 1 << 30, 1 << 20


@pytest.fixture(scope="module")
def small():
    """A daemon whose disks together are as small as they can be."""
    from daemon import Daemon

    daemon = Daemon("small", pool_size=1, disks_size_gib=8, vm_disk_gib=10)
    try:
        yield daemon.start()
        daemon.assert_clean()
    finally:
        daemon.destroy()


def fill(make, vm, path):
    """Writes without end until it is refused; what was said."""
    return make.fails(vm, f"dd if=/dev/zero of={path} bs=4M count=4000 conv=fsync", timeout=250)


def kept(make):
    """How many VMs, snapshots and volumes there are. A snapshot that failed stays for a while to say why."""
    lists = (make.http.get(path).json() for path in ("/v1/vms", "/v1/snapshots", "/v1/volumes"))
    return [sum(one.get("status") != "failed" for one in some) for some in lists]


@pytest.mark.timeout(290)
def test_a_full_pool_is_said_hurts_nobody_and_recovers(small):
    make = Maker(small.http())
    volume = make.volume(quota_bytes=9 * GIB)
    neighbour = make.vm()
    make.http.execute(neighbour["session_id"], "kept = 'variable'")
    make.sh(neighbour, "echo before > /app/before; sync")
    writer = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    said = fill(make, writer, "/data/large")
    assert "No space left" in said or "quota" in said, said
    # Everything that needs room says that there is none, and nothing of it remains.
    upload = make.put(volume, "more", os.urandom(64 * MIB))
    assert upload.status_code in (413, 503, 507) and "full" in upload.json()["detail"], upload.text
    records = kept(make)
    for answer in (make.http.post("/v1/vms", {"memory_mb": 256}), make.http.post(f"/v1/vms/{neighbour['vm_id']}/snapshot", {})):
        # There may be room for what takes next to none.
        assert answer.status_code < 300 or answer.status_code in (503, 507), answer.text
        if answer.status_code >= 300:
            assert "disk" in answer.json()["detail"] or "full" in answer.json()["detail"], answer.text
        elif "snapshot_id" in answer.json() and answer.json().get("vm_id") is None:
            make.snapshots.append(answer.json()["id"])
            records[1] += 1
        elif "session_id" in answer.json():
            make.http.delete(f"/v1/vms/{answer.json()['vm_id']}")
        else:
            make.snapshots.append(answer.json()["id"])
            records[1] += 1
    assert kept(make) == records
    # Others go on: what they hold in memory, what they read, and the platform's own records.
    assert make.http.execute(neighbour["session_id"], "print(kept)")["stdout"] == "variable\n"
    assert make.sh(neighbour, "cat /app/before; echo x > /dev/shm/x") == "before\n"
    assert make.http.post("/v1/api-keys/", {"description": "while full"}).status_code in (200, 201)
    # A restart goes well, too.
    small.kill9()
    make.http = small.start().http()
    assert make.http.execute(neighbour["session_id"], "print(kept)")["stdout"] == "variable\n"
    assert make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": "large"}).status_code == 200
    works = "dd if=/dev/zero of=/app/some bs=1M count=64 conv=fsync"
    eventually(lambda: make.http.execute(neighbour["session_id"], works, "bash", 60)["exit_code"] == 0, 60, 0.5, "space comes back")
    eventually(lambda: make.put(volume, "again", os.urandom(16 * MIB), "true").status_code == 200, 30, 0.5)
    assert make.sh(make.vm(), "echo up") == "up\n"
    assert make.sh(neighbour, "cat /app/before") == "before\n"
    make.clear()


@pytest.mark.timeout(290)
def test_a_vm_that_fills_the_pool_is_ended_and_gives_it_back(small):
    make = Maker(small.http())
    neighbour, writer = make.vm(), make.vm()
    said = fill(make, writer, "/app/large")
    assert "No space left" in said or "quota" in said, said
    assert make.sh(neighbour, "echo well") == "well\n"
    started = time.monotonic()
    assert make.http.delete(f"/v1/vms/{writer['vm_id']}").status_code == 200
    assert time.monotonic() - started < 2, "deletion never blocks a request"
    works = "dd if=/dev/zero of=/app/some bs=1M count=256 conv=fsync"
    eventually(lambda: make.http.execute(neighbour["session_id"], works, "bash", 60)["exit_code"] == 0, 60, 0.5, "space comes back")
    make.clear()


def test_a_vm_has_the_disk_that_it_was_given(own_daemon):
    daemon = own_daemon("limit", vm_disk_gib=1).start()
    make = Maker(daemon.http())
    vm = make.vm()
    said = make.fails(vm, "dd if=/dev/zero of=/app/large bs=4M count=400 conv=fsync", timeout=120)
    assert "quota exceeded" in said or "No space left" in said, said
    assert int(make.sh(vm, "stat -c %s /app/large")) <= GIB
    assert make.sh(make.vm(), "dd if=/dev/zero of=/app/some bs=1M count=100 conv=fsync 2>/dev/null; stat -c %s /app/some") == f"{100 * MIB}\n"
    # A clone has the same limit for what is its own.
    make.sh(vm, "rm /app/large; sync")
    eventually(lambda: make.http.execute(vm["session_id"], "echo x > /app/x && sync", "bash")["exit_code"] == 0, 30, 0.5)
    make.fails(make.clone(vm), "dd if=/dev/zero of=/app/large bs=4M count=400 conv=fsync", timeout=120)
    daemon.assert_clean()


# The driver without btrfs: the same, but for the kernel's quotas and the speed.


@pytest.fixture(scope="module")
def folders():
    from daemon import Daemon

    daemon = Daemon("folders", pool_size=1, disks_driver="directory")
    # A file system of its own: how fast the host's one forgets a hundred thousand files is not what is tried here.
    # Its image is beside the data directory, so that whoever sweeps instances finds both.
    image = daemon.data_dir.parent / f"{daemon.data_dir.name}.img"
    with image.open("wb") as file:
        file.truncate(24 * GIB)
    run("mkfs.btrfs", "-q", image)  # it has reflinks; copies without are tried where the driver is
    run("mount", "-o", "loop,nodiscard,noatime", image, daemon.data_dir)
    try:
        yield daemon.start()
        daemon.assert_clean()
        assert f"{daemon.data_dir}/" not in subprocess.run(["losetup", "--list"], capture_output=True, text=True).stdout
    finally:
        try:
            daemon.destroy()
        finally:
            run("umount", daemon.data_dir)
            daemon.data_dir.rmdir()
            image.unlink()


def run(*command):
    subprocess.run(command, check=True, timeout=120)


@pytest.fixture
def plain(folders):
    make = Maker(folders.http())
    yield make
    make.clear()


def test_folders_have_no_loop_device_and_say_that_their_quota_is_soft(folders):
    assert f"{folders.data_dir}/" not in subprocess.run(["losetup", "--list"], capture_output=True, text=True).stdout
    told = folders.http().get("/healthz").text + folders.command("doctor", "--json").stdout + folders.log_path.read_text()
    assert "soft" in told and "directory" in told


def test_folders_sessions(folders, plain):
    session = plain.http.start_session(memory_mb=256)
    assert plain.http.execute(session, "x = 42")["exit_code"] == 0
    assert plain.http.execute(session, "print(x)")["stdout"] == "42\n"
    assert plain.http.execute(session, "echo kept > /app/kept && cat /app/kept", "bash")["stdout"] == "kept\n"
    plain.http.post("/kill", {"session_id": session})
    eventually(lambda: folders.command("check").returncode == 0, 30)


def test_folders_snapshots_and_clones(plain):
    vm = plain.vm(env={"MODE": "origin"})
    plain.sh(vm, "echo kept > /app/kept; mkdir -p /srv/a; ln -s a /srv/b; ln /app/kept /srv/a/hard; chown 1000:1000 /app/kept; chmod 4750 /app/kept; mkfifo /srv/pipe")
    snapshot = plain.snapshot(vm, name="plain")
    assert snapshot["status"] == "ready"
    plain.sh(vm, "echo after > /app/kept")
    for other in (plain.vm(snapshot_id=snapshot["id"], env={"MODE": "origin"}), plain.clone(plain.vm(snapshot_id=snapshot["id"], env={"MODE": "origin"}))):
        assert plain.sh(other, "cat /srv/b/hard; stat -c '%u:%g %a %h' /app/kept; stat -c %F /srv/pipe; echo $MODE") == "kept\n1000:1000 4750 2\nfifo\norigin\n"
    assert plain.http.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 409


def test_folders_keep_a_disk_at_the_end(plain):
    name = f"end-{uuid.uuid4().hex}"
    vm = plain.vm(snapshot_on_terminate=True, snapshot_name=name)
    plain.sh(vm, "echo last > /app/last")
    plain.http.delete(f"/v1/vms/{vm['vm_id']}")
    kept = eventually(lambda: [s for s in plain.http.get("/v1/snapshots").json() if s["name"] == name and s["status"] == "ready"], 60)[0]
    plain.snapshots.append(kept["id"])
    assert plain.sh(plain.vm(snapshot_id=kept["id"]), "cat /app/last") == "last\n"


def test_folders_volumes_checkpoints_and_mounts(plain):
    volume = plain.volume(quota_bytes=32 * MIB)
    plain.put(volume, "docs/file", b"before")
    first = plain.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    assert plain.sh(first, "cat /data/docs/file; echo inside > /data/new; stat -c %u:%g /data/docs/file") == "before0:0\n"
    assert plain.content(volume, "new") == b"inside\n"
    checkpoint = plain.checkpoint(volume)
    plain.sh(first, "echo after > /data/new")
    second = plain.vm()
    assert plain.mount(second, volume, "/was", mode="ro", checkpoint_id=checkpoint["id"]).status_code == 200
    assert plain.sh(second, "cat /was/new") == "inside\n"
    plain.fails(second, "touch /was/x")
    plain.fails(second, "mount -o remount,bind,rw /was && touch /was/x")
    assert plain.mount(second, volume).status_code == 409
    assert plain.unmount(first, volume).status_code == 200
    assert plain.mount(second, volume).status_code == 200
    assert plain.sh(second, "cat /data/new") == "after\n"
    refreshed = plain.http.get(f"/v1/volumes/{volume['id']}?refresh_usage=true").json()
    assert refreshed["used_bytes"] == len("before") + len("after\n")
    assert plain.put(volume, "large", os.urandom(64 * MIB)).status_code == 413
    assert plain.paths(volume) == ["docs/file", "new"]


def test_folders_survive_a_restart(folders, plain):
    volume = plain.volume()
    vm = plain.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    plain.sh(vm, "echo kept | tee /app/kept > /data/kept")
    snapshot = plain.snapshot(vm)
    folders.kill9()
    plain.http = folders.start().http()
    assert plain.sh(vm, "cat /app/kept /data/kept") == "kept\nkept\n"
    assert plain.sh(plain.vm(snapshot_id=snapshot["id"]), "cat /app/kept") == "kept\n"
    folders.assert_clean()


def test_folders_build_from_images(plain):
    registry = ImageRegistry()
    try:
        image = Image([small_root(), Layer.of(entry("own", "1")), Layer.of(entry(".wh.own"), entry("other", "2"))], env={"A": "b"})
        record = plain.build(registry.push("plain/image", image), build_args={"post_build_cmd": "echo built > /app/built"})
    finally:
        registry.close()
    assert record["status"] == "ready", record["last_error"]
    assert plain.sh(plain.vm(snapshot_id=record["id"]), "cat /other /app/built; echo $A; ls /own 2>/dev/null || echo gone") == "2built\nb\ngone\n"
