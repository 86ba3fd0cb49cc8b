"""Volumes in VMs: mounted at creation and while they run, read-only against root, carried from one VM to another."""

import json
import os
import uuid
from pathlib import Path

import pytest
from daemon import Maker, eventually

MIB = 1 << 20


def refused(answer, status, *words):
    statuses = status if isinstance(status, tuple) else (status,)
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    for word in words:
        assert word in str(answer.json()["detail"]), (word, answer.text)


def test_a_mount_from_its_making_to_its_end(manager, make):
    volume, vm = make.volume(), make.vm()
    make.put(volume, "from/outside", b"before")
    mounted = manager.vms.mount_volume(vm["vm_id"], volume["id"], mount_path="/data", mode="rw", wait=True)
    assert isinstance(mounted, dict)
    (listed,) = manager.vms.list_volumes(vm["vm_id"])
    expected = {"volume_id": volume["id"], "name": volume["name"], "vm_id": vm["vm_id"], "mount_path": "/data", "mode": "rw", "checkpoint_id": None, "status": "mounted"}
    assert {key: listed[key] for key in expected} == expected
    assert make.sh(vm, "cat /data/from/outside") == "before"
    record = manager.volumes.get(volume["id"])
    assert (record["status"], record["mounted_by"]) == ("in_use", [vm["vm_id"]])
    # Both sides see each other's files at once.
    make.sh(vm, "mkdir -p /data/a; echo inside > /data/a/b; rm /data/from/outside")
    assert make.content(volume, "a/b") == b"inside\n" and make.paths(volume) == ["a/b"]
    make.put(volume, "a/b", b"outside", "true")
    make.put(volume, "new", b"outside too")
    assert make.sh(vm, "cat /data/a/b /data/new") == "outsideoutside too"
    assert isinstance(manager.vms.unmount_volume(vm["vm_id"], volume["id"], mount_path="/data", wait=True), dict)
    assert manager.vms.list_volumes(vm["vm_id"]) == []
    assert make.sh(vm, "ls -A /data 2>/dev/null | wc -l") == "0\n"
    assert manager.volumes.get(volume["id"])["status"] == "available"
    assert make.content(volume, "a/b") == b"outside"


def test_without_waiting_it_is_there_soon(manager, make):
    volume, vm = make.volume(), make.vm()
    make.put(volume, "file", b"x")
    manager.vms.mount_volume(vm["vm_id"], volume["id"], "/data", wait=False)
    eventually(lambda: [one["status"] for one in manager.vms.list_volumes(vm["vm_id"])] == ["mounted"], 20)
    assert make.sh(vm, "cat /data/file") == "x"
    manager.vms.unmount_volume(vm["vm_id"], volume["id"], "/data", wait=False)
    eventually(lambda: manager.vms.list_volumes(vm["vm_id"]) == [], 20)
    assert make.sh(vm, "ls /data | wc -l") == "0\n"


def test_a_volume_is_carried_from_one_vm_to_another(make):
    volume = make.volume()
    first, second = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}]), make.vm()
    make.sh(
        first,
        "cd /data; head -c 5000000 /dev/urandom > file; sha256sum < file > sum; mkdir -p deep/er; echo x > deep/er/x; ln -s ../file deep/link;"
        " touch owned; chown 1000:1000 owned; chmod 4750 owned; mkfifo pipe; touch -d 2001-02-03 old; setfattr -n user.a -v b old 2>/dev/null || true",
    )
    refused(make.mount(second, volume), 409, first["vm_id"])
    assert make.unmount(first, volume).status_code == 200
    assert make.mount(second, volume, "/elsewhere").status_code == 200
    assert make.sh(second, 'cd /elsewhere; test "$(sha256sum < deep/link)" = "$(cat sum)"; stat -c "%u %g %a %F" owned sum pipe; date -r old +%Y') == (
        "1000 1000 4750 regular empty file\n0 0 644 regular file\n0 0 644 fifo\n2001\n"
    )
    make.sh(second, "cd /elsewhere; echo changed > deep/er/x; chown 0:1234 owned; setpriv --reuid 1000 --clear-groups touch /elsewhere/denied 2>/dev/null && exit 1; true")
    make.http.delete(f"/v1/vms/{second['vm_id']}")
    third = make.vm()
    eventually(lambda: make.mount(third, volume).status_code == 200, 10, what="the end of a VM gives its volumes free")
    assert make.sh(third, "cat /data/deep/er/x; stat -c '%u:%g' /data/owned") == "changed\n0:1234\n"
    assert "denied" not in make.paths(volume)


def test_files_made_without_a_vm_belong_to_its_root(make):
    volume = make.volume()
    make.put(volume, "a/b", b"x")
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    assert make.sh(vm, "stat -c '%u:%g %a' /data /data/a /data/a/b").splitlines()[1:] == ["0:0 755", "0:0 644"]
    assert make.sh(vm, "stat -c '%u:%g' /data") == "0:0\n"
    make.sh(vm, "echo more >> /data/a/b; chmod 600 /data/a/b; chown 1000 /data/a/b")
    assert make.content(volume, "a/b") == b"xmore\n", "the API reads whatever its owner inside may keep from others"


def test_one_writes_and_many_read(make):
    volume = make.volume()
    writer = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    readers = make.vm(count=3, volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "ro"}])["vms"]
    make.sh(writer, "echo news > /data/file")
    assert [make.sh(reader, "cat /data/file") for reader in readers] == ["news\n"] * 3
    other = make.vm()
    refused(make.mount(other, volume, mode="rw"), 409, writer["vm_id"])
    refused(make.mount(writer, volume, "/again", mode="rw"), 409)
    refused(make.http.post("/v1/vms", {"volumes": [{"volume_id": volume["id"], "mount_path": "/data"}]}), 409, writer["vm_id"])
    refused(make.http.post("/v1/vms", {"count": 2, "volumes": [{"volume_id": make.volume()["id"], "mount_path": "/data"}]}), (409, 422))
    assert make.mount(writer, volume, "/again", mode="ro").status_code == 200
    assert make.sh(writer, "cat /again/file") == "news\n"
    assert sorted(make.http.get(f"/v1/volumes/{volume['id']}").json()["mounted_by"]) == sorted([writer["vm_id"], *(one["vm_id"] for one in readers)])


def test_two_that_want_to_write_at_once(make, daemon):
    import concurrent.futures

    volume = make.volume()
    vms = make.vm(count=4)["vms"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda vm: Maker(daemon.http()).mount(vm, volume).status_code, vms))
    assert sorted(statuses) == [200, 409, 409, 409]
    assert len(make.http.get(f"/v1/volumes/{volume['id']}").json()["mounted_by"]) == 1


# What root inside may try against a mount that it must not write.
ATTACKS = """
touch /data/planted
echo x > /data/file
rm -f /data/file
chmod 777 /data/file; chown 1 /data/file; touch -d 2001-01-01 /data/file; mv /data/file /data/moved; ln /data/file /data/hard
mount -o remount,rw /data && touch /data/planted
mount -o remount,bind,rw /data && touch /data/planted
mkdir -p /x /y; mount --bind /data /x && mount -o remount,bind,rw /x && touch /x/planted
mount --rbind / /y && mount -o remount,bind,rw /y/data && touch /y/data/planted
umount /data && touch /data/planted; umount -l /data; umount -f /data
mount --move /data /x && mount -o remount,bind,rw /x && touch /x/planted
mount --make-private /data && mount -o remount,bind,rw /data && touch /data/planted
unshare -m sh -c 'mount -o remount,bind,rw /data; umount /data; touch /data/planted'
unshare -Urm sh -c 'mount -o remount,bind,rw /data; umount /data; touch /data/planted'
nsenter -t 1 -m sh -c 'mount -o remount,bind,rw /data; touch /data/planted'
touch /proc/1/root/data/planted /proc/self/root/data/planted /proc/self/cwd/data/planted
source=$(findmnt -no SOURCE /data | sed 's/\\[.*//'); number=$(stat -c '%d' /data)
for kind in "7 0" "7 1" "7 2" "7 3" "254 0" "8 0" "$((number / 256)) $((number % 256))"; do mknod /tmp/device b $kind; mount /tmp/device /x && touch /x/planted; dd if=/dev/zero of=/tmp/device bs=512 count=1; rm -f /tmp/device; done
mount -t btrfs "$source" /x && touch /x/planted
mount -t btrfs -o subvolid=5 "$source" /x && touch /x/planted
mount -t overlay -o lowerdir=/data,upperdir=/data,workdir=/tmp overlay /x && touch /x/planted
chattr -i /data; chattr +c /data/file; btrfs property set /data ro false; setfattr -n user.x -v y /data/file
cd /data && touch ./planted
true
"""
BY_SYSTEM_CALL = """
import ctypes, fcntl, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def trying(call):
    try:
        call()
    except OSError:
        pass
for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
    trying(lambda: os.write(os.open('/data/file', flags), b'planted'))
read = os.open('/data/file', os.O_RDONLY)
trying(lambda: os.write(os.open(f'/proc/self/fd/{read}', os.O_RDWR), b'planted'))
trying(lambda: os.ftruncate(read, 0))
folder = os.open('/data', os.O_RDONLY)
for request, argument in ((0x4008941a, struct.pack('Q', 0)), (0x5000940e, struct.pack('q4088s', 0, b'planted')), (0x50009401, struct.pack('q4088s', folder, b'planted')), (0x40086602, struct.pack('Q', 0))):
    trying(lambda: fcntl.ioctl(folder, request, bytearray(argument)))
MOUNT_SETATTR, OPEN_TREE, MOVE_MOUNT, FSPICK = 442, 428, 429, 433
cleared = struct.pack('QQQQ', 0, 1, 0, 0)
for at, path, flags in ((-100, b'/data', 0), (-100, b'/data', 0x8000), (folder, b'', 0x1000)):
    libc.syscall(MOUNT_SETATTR, at, path, flags, cleared, 32)
tree = libc.syscall(OPEN_TREE, -100, b'/data', 1 | 0o2000000)
if tree >= 0:
    libc.syscall(MOUNT_SETATTR, tree, b'', 0x1000, cleared, 32)
    trying(lambda: os.open('planted', os.O_CREAT | os.O_WRONLY, dir_fd=tree))
    os.makedirs('/z', exist_ok=True)
    libc.syscall(MOVE_MOUNT, tree, b'', -100, b'/z', 4)
    trying(lambda: os.open('/z/planted', os.O_CREAT | os.O_WRONLY))
handle = bytearray(struct.pack('Ii128s', 128, 0, b''))
buffer, number = (ctypes.c_char * len(handle)).from_buffer(handle), ctypes.c_int()
if libc.name_to_handle_at(-100, b'/data/file', buffer, ctypes.byref(number), 0) == 0:
    opened = libc.open_by_handle_at(os.open('/', os.O_RDONLY), buffer, os.O_RDWR)
    if opened >= 0:
        trying(lambda: os.write(opened, b'planted'))
print('tried')
"""


@pytest.mark.parametrize("which", ["live", "checkpoint", "at creation"])
def test_read_only_holds_against_root_inside(make, which, daemon):
    volume = make.volume()
    make.put(volume, "file", b"as it was")
    checkpoint = make.checkpoint(volume)
    if which == "at creation":
        vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "ro"}])
    else:
        vm = make.vm()
        more = {"checkpoint_id": checkpoint["id"]} if which == "checkpoint" else {}
        assert make.mount(vm, volume, "/data", mode="ro", **more).status_code == 200
    before = make.sh(vm, "stat -c '%u %g %a %Y %s' /data/file; cat /data/file; ls /data")
    # A folder that the VM can write, to know that the attacks themselves do what they say.
    make.sh(vm, "mkdir /tmp/own; touch /tmp/own/planted")
    make.http.execute(vm["session_id"], ATTACKS, "bash", 60)
    assert make.http.execute(vm["session_id"], BY_SYSTEM_CALL, "python", 60)["stdout"] == "tried\n"
    assert make.content(volume, "file") == b"as it was" and make.paths(volume) == ["file"]
    # Root may take a mount away from itself. What there is of it cannot be written.
    left = make.http.execute(vm["session_id"], "grep ' /data ' /proc/self/mountinfo", "bash")["stdout"].splitlines()
    assert all(line.split()[5].split(",")[0] == "ro" for line in left), left
    reader = make.vm()
    assert make.mount(reader, volume, mode="ro", checkpoint_id=checkpoint["id"]).status_code == 200
    assert make.sh(reader, "stat -c '%u %g %a %Y %s' /data/file; cat /data/file; ls /data") == before
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    daemon.assert_clean()


def test_a_writable_mount_does_not_lead_around_a_read_only_one(make):
    """The same VM has one volume to write and another to read: the second is no nearer for it."""
    own, other = make.volume(), make.volume()
    make.put(other, "file", b"as it was")
    vm = make.vm(volumes=[{"volume_id": own["id"], "mount_path": "/own"}, {"volume_id": other["id"], "mount_path": "/data", "mode": "ro"}])
    make.http.execute(vm["session_id"], ATTACKS.replace("/x", "/own/x").replace("/y", "/own/y"), "bash", 60)
    assert make.content(other, "file") == b"as it was" and make.paths(other) == ["file"]


def test_no_subvolumes_in_a_volume(make):
    volume = make.volume(quota_bytes=16 * MIB)
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    from test_isolation import SUBVOLUMES

    code = SUBVOLUMES.replace("sys.argv[1] if len(sys.argv) > 1 else '/app'", "'/data'")
    assert make.http.execute(vm["session_id"], code)["stdout"] == "[]\n"


def test_who_holds_a_busy_volume_is_told(make):
    volume, vm = make.volume(), make.vm()
    assert make.mount(vm, volume).status_code == 200
    make.sh(vm, "cd /data; nohup sleep 987 >/dev/null 2>&1 & echo $! > /app/pid")
    pid = make.sh(vm, "cat /app/pid").strip()
    refused(make.unmount(vm, volume), 409, "sleep", pid)
    (listed,) = make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json()
    assert listed["status"] == "mounted"
    make.sh(vm, "echo still > /data/there")
    refused(make.http.delete(f"/v1/volumes/{volume['id']}"), 409, vm["vm_id"])
    make.sh(vm, f"kill {pid}")
    eventually(lambda: make.unmount(vm, volume).status_code == 200, 10)
    # An open file holds it too.
    assert make.mount(vm, volume).status_code == 200
    make.http.execute(vm["session_id"], "held = open('/data/there')")
    refused(make.unmount(vm, volume), 409, "python")
    make.http.execute(vm["session_id"], "held.close()")
    eventually(lambda: make.unmount(vm, volume).status_code == 200, 10)


def test_a_volume_in_use_is_not_deleted(make):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "ro"}])
    refused(make.http.delete(f"/v1/volumes/{volume['id']}"), 409, vm["vm_id"])
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    eventually(lambda: make.http.delete(f"/v1/volumes/{volume['id']}").status_code == 200, 10)


def test_volumes_by_name(make):
    name = f"cookbook-{uuid.uuid4().hex[:8]}"
    wanted = {"name": name, "mount_path": "/data", "mode": "rw", "size_gb": 2, "create_if_missing": True}
    refused(make.http.post("/v1/vms", {"volumes": [{**wanted, "create_if_missing": False}]}), (404, 422), name)
    assert name not in {one["name"] for one in make.http.get("/v1/volumes").json()}
    vm = make.vm(volumes=[wanted])
    (volume,) = [one for one in make.http.get("/v1/volumes").json() if one["name"] == name]
    make.volumes.append(volume["id"])
    assert volume["quota_bytes"] == 2 << 30
    make.sh(vm, "echo kept > /data/kept")
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    other = eventually(lambda: (answer := make.http.post("/v1/vms", {"volumes": [wanted]})).status_code < 300 and answer.json(), 10)
    make.vms.append(other["vm_id"])
    assert make.sh(other, "cat /data/kept") == "kept\n", "the second time it is there"
    reader = make.vm(volumes=[{"name": name, "mount_path": "/d", "mode": "ro"}])
    assert make.sh(reader, "cat /d/kept") == "kept\n"
    assert len([one for one in make.http.get("/v1/volumes").json() if one["name"] == name]) == 1


def test_volumes_come_into_running_vms_by_name_too(make):
    name, vm = f"named-{uuid.uuid4().hex[:8]}", make.vm()
    wanted = {"name": name, "mount_path": "/data"}
    path = f"/v1/vms/{vm['vm_id']}/volumes"
    refused(make.http.post(path, wanted), 404, name)
    made = make.http.post(path, {**wanted, "create_if_missing": True, "size_gb": 2})
    assert made.status_code == 200, made.text
    make.volumes.append(made.json()["volume_id"])
    make.sh(vm, "echo kept > /data/kept")
    again = make.http.post(path, {**wanted, "mount_path": "/again", "mode": "ro", "create_if_missing": True})
    assert again.json()["volume_id"] == made.json()["volume_id"], again.text
    assert make.sh(vm, "cat /again/kept") == "kept\n"
    assert make.http.get(f"/v1/volumes/{made.json()['volume_id']}").json()["quota_bytes"] == 2 << 30


def test_a_vm_that_lives_is_not_passed_off_as_another_one(make):
    vm, volume = make.vm(), make.volume()
    snapshot = make.snapshot(vm)
    session = vm["session_id"]
    assert make.http.post("/v1/vms", {"session_id": session, "memory_mb": 512}).json()["vm_id"] == vm["vm_id"]
    refused(make.http.post("/v1/vms", {"session_id": session, "snapshot_id": snapshot["id"]}), 409, vm["vm_id"], snapshot["id"])
    mounted = {"session_id": session, "volumes": [{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}]}
    refused(make.http.post("/v1/vms", mounted), 409, vm["vm_id"], volume["id"])
    assert make.mount(vm, volume).status_code == 200
    assert make.http.post("/v1/vms", mounted).json()["vm_id"] == vm["vm_id"], "it has what is asked for"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mount_path": "data"}, ("mount_path",)),
        ({"mount_path": "/"}, ("mount_path",)),
        ({"mount_path": ""}, ("mount_path",)),
        ({"mount_path": "/a/../b"}, ("mount_path",)),
        ({"mount_path": "/.."}, ("mount_path",)),
        ({"mount_path": "/proc/x"}, ("mount_path",)),
        ({"mount_path": "/sys"}, ("mount_path",)),
        ({"mount_path": "/dev/x"}, ("mount_path",)),
        ({"mount_path": "/run/x"}, ("/run",)),
        ({"mount_path": "/nul\x00"}, ("mount_path",)),
        ({"mount_path": "/" + "x" * 5000}, ("mount_path",)),
        ({"mount_path": 7}, ("mount_path",)),
        ({"mount_path": None}, ("mount_path",)),
        ({"mode": "rx"}, ("mode", "rw", "ro")),
        ({"mode": 7}, ("mode",)),
        ({"volume_id": None}, ("volume_id",)),
        ({"volume_id": ["x"]}, ("volume_id",)),
    ],
)
def test_fields_of_a_mount_are_checked_by_name(make, fields, words):
    volume, vm = make.volume(), make.vm()
    body = {"volume_id": volume["id"], "mount_path": "/data", **fields}
    refused(make.http.post(f"/v1/vms/{vm['vm_id']}/volumes", body), 422, *words)
    refused(make.http.post("/v1/vms", {"volumes": [body]}), 422, *words)
    assert make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json() == []


def test_unknown_and_foreign_vms_and_mounts(make, foreign, tenant):
    volume, vm = make.volume(), make.vm()
    assert make.mount(vm, volume).status_code == 200
    refused(make.mount({"vm_id": "vm_none"}, volume), 404)
    refused(make.mount(vm, {"id": "vol_none"}), 404)
    for caller, vm_id in ((make.http, "vm_none"), (tenant, vm["vm_id"])):
        assert caller.get(f"/v1/vms/{vm_id}/volumes").status_code == 404
        assert caller.delete(f"/v1/vms/{vm_id}/volumes/{volume['id']}?mount_path=/data").status_code == 404
    theirs = foreign.volume()
    refused(make.mount(vm, theirs, "/theirs"), 404)
    refused(foreign.mount(vm, theirs, "/theirs"), 404)
    refused(make.unmount(vm, volume, "/elsewhere"), 404)
    assert [one["mount_path"] for one in make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json()] == ["/data"]


def test_places_that_do_not_serve(make):
    volume, other, vm = make.volume(), make.volume(), make.vm()
    make.sh(vm, "echo x > /app/file; mkdir -p /srv/full; echo under > /srv/full/under")
    refused(make.mount(vm, volume, "/app/file"), (400, 409, 422))
    refused(make.mount(vm, volume, "/app/file/below"), (400, 409, 422))
    assert make.mount(vm, volume, "/srv/full").status_code == 200
    refused(make.mount(vm, other, "/srv/full"), 409)
    assert make.sh(vm, "ls /srv/full | wc -l") == "0\n"
    assert make.unmount(vm, volume, "/srv/full").status_code == 200
    assert make.sh(vm, "cat /srv/full/under") == "under\n"
    assert make.mount(vm, volume, "/very/deep/and/new").status_code == 200
    assert make.sh(vm, "echo x > /very/deep/and/new/x; ls /very/deep/and/new") == "x\n"


def test_links_in_the_way_lead_nowhere_outside(make, daemon):
    volume, vm = make.volume(), make.vm()
    make.put(volume, "planted", b"x")
    mounts = Path("/proc/self/mountinfo").read_text()
    make.sh(vm, "mkdir -p /app/real; ln -s /app/real /app/link; ln -s / /app/root; ln -s ../../../../.. /app/up; ln -s /proc/1/root /app/proc; ln -s /etc /app/etc")
    for path in ("/app/link/m", "/app/root/m", "/app/up/m", "/app/proc/m", "/app/etc/m", "/app/up/etc", "/app/link"):
        answer = make.mount(vm, volume, path, mode="ro")
        assert answer.status_code in (200, 400, 409, 422), answer.text
        if answer.status_code == 200:
            # It went to where the link leads inside.
            assert make.http.execute(vm["session_id"], f"cat {path}/planted", "bash")["stdout"] == "x"
            assert make.unmount(vm, volume, path).status_code == 200
    assert not os.path.exists("/m") and not os.path.exists("/etc/m")
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) <= len(mounts.splitlines()) + 4, "nothing was mounted on the host"
    make.sh(vm, "cat /etc/passwd > /dev/null")


def test_a_create_that_fails_halfway_leaves_nothing(make):
    good, name = make.volume(), f"half-{uuid.uuid4().hex[:8]}"
    vms = len(make.http.get("/v1/vms").json())
    writable = {"volume_id": good["id"], "mount_path": "/good", "mode": "rw"}
    for bad in (
        {"volume_id": "vol_none", "mount_path": "/bad"},
        {"volume_id": good["id"], "mount_path": "/again", "mode": "rw"},
        {"name": "none-such", "mount_path": "/bad"},
        {"volume_id": good["id"], "mount_path": "/good", "mode": "ro"},
        {"volume_id": good["id"], "mount_path": "/bad", "mode": "ro", "checkpoint_id": "latest"},
        {"name": name, "mount_path": "/etc/passwd/x", "create_if_missing": True},
    ):
        new = {"name": f"new-{uuid.uuid4().hex[:8]}", "mount_path": "/new", "create_if_missing": True}
        answer = make.http.post("/v1/vms", {"memory_mb": 256, "volumes": [new, writable, bad]})
        assert 400 <= answer.status_code < 500, (bad, answer.text)
        if bad.get("name") != name:
            assert new["name"] not in {one["name"] for one in make.http.get("/v1/volumes").json()}
        assert len(make.http.get("/v1/vms").json()) == vms
        assert make.http.get(f"/v1/volumes/{good['id']}").json()["mounted_by"] == []
    make.volumes.extend(one["id"] for one in make.http.get("/v1/volumes").json() if one["name"] in (name, new["name"]))
    refused(make.http.post("/v1/vms", {"volumes": [{**writable, "mount_path": f"/{n}", "mode": "ro"} for n in range(17)]}), 422, "volumes", "16")
    vm = make.vm(volumes=[writable])
    make.sh(vm, "echo x > /good/x")


def test_snapshots_and_clones_have_what_is_on_the_disk_and_not_what_is_mounted(make):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    make.sh(vm, "echo volume > /data/file; echo disk > /app/file")
    for other in (make.clone(vm), make.vm(snapshot_id=make.snapshot(vm)["id"])):
        assert make.sh(other, "cat /app/file; ls /data | wc -l") == "disk\n0\n"
        assert make.http.get(f"/v1/vms/{other['vm_id']}/volumes").json() == []


def test_mounts_survive_a_restart(own_daemon):
    daemon = own_daemon("mounts").start()
    make = Maker(daemon.http())
    volume, shown = make.volume(), make.volume()
    make.put(shown, "file", b"shown")
    checkpoint = make.checkpoint(shown)
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    assert make.mount(vm, shown, "/shown", mode="ro", checkpoint_id=checkpoint["id"]).status_code == 200
    make.sh(vm, "echo before > /data/file")
    before = make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json()
    for end in (daemon.kill9, daemon.stop):
        end()
        make = Maker(daemon.start().http())
        assert make.http.get(f"/v1/vms/{vm['vm_id']}/volumes").json() == before
        assert make.sh(vm, "cat /data/file /shown/file") == "before\nshown"
        make.fails(vm, "touch /shown/x")
        refused(make.mount(make.vm(), volume), 409, vm["vm_id"])
        refused(make.http.delete(f"/v1/volumes/{volume['id']}"), 409)
    make.sh(vm, "echo after > /data/file")
    assert make.content(volume, "file") == b"after\n"
    assert make.unmount(vm, shown, "/shown").status_code == 200
    assert make.unmount(vm, volume).status_code == 200
    assert make.mount(vm, volume, "/again").status_code == 200
    # Mounted or not, all of it goes with the VM and the rest by itself.
    make.http.delete(f"/v1/vms/{vm['vm_id']}")
    eventually(lambda: make.http.delete(f"/v1/volumes/{volume['id']}").status_code == 200, 10)
    daemon.assert_clean()


def test_expiry_gives_volumes_free(make):
    volume = make.volume()
    vm = make.vm(vm_lifetime_seconds=20, volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    make.sh(vm, "echo kept > /data/kept")
    eventually(lambda: make.http.get(f"/v1/volumes/{volume['id']}").json()["status"] == "available", 40, 0.2)
    other = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    assert make.sh(other, "cat /data/kept") == "kept\n"


def test_a_respawned_session_has_no_stale_mounts(make):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data"}])
    make.http.post("/kill", {"session_id": vm["session_id"]})
    again = eventually(
        lambda: (answer := make.http.post("/v1/vms", {"session_id": vm["session_id"], "volumes": [{"volume_id": volume["id"], "mount_path": "/other"}]})).status_code < 300
        and answer.json(),
        10,
    )
    make.vms.append(again["vm_id"])
    assert [one["mount_path"] for one in make.http.get(f"/v1/vms/{again['vm_id']}/volumes").json()] == ["/other"]
    assert again["session_id"] == vm["session_id"]
