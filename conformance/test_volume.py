"""Volumes: records, files without a mount, quotas. Mounts are in test_mount.py, checkpoints in test_checkpoint.py."""

import base64
import concurrent.futures
import os
import uuid

import pytest
from daemon import eventually

from instavm import InstaVMError

MIB = 1 << 20


def refused(answer, status, *words):
    statuses = status if isinstance(status, tuple) else (status,)
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    for word in words:
        assert word in str(answer.json()["detail"]), (word, answer.text)


def test_a_volume_from_its_making_to_its_end(manager, make):
    name = f"project-{uuid.uuid4().hex[:8]}"
    volume = manager.volumes.create(name=name, quota_bytes=10 * 1024 * MIB, something_new=1)
    make.volumes.append(volume["id"])
    assert ":" not in volume["id"] and volume["volume_id"] == volume["id"]
    assert (volume["name"], volume["status"], volume["quota_bytes"], volume["used_bytes"]) == (name, "available", 10 * 1024 * MIB, 0)
    listed = {one["id"]: one for one in manager.volumes.list(refresh_usage=True)}
    assert listed[volume["id"]]["name"] == name
    assert manager.volumes.get(volume["id"])["quota_bytes"] == 10 * 1024 * MIB
    changed = manager.volumes.update(volume["id"], name=f"{name}-v2", quota_bytes=20 * 1024 * MIB)
    assert (changed["id"], changed["name"], changed["quota_bytes"]) == (volume["id"], f"{name}-v2", 20 * 1024 * MIB)
    assert isinstance(manager.volumes.delete(volume["id"]), dict)
    assert make.http.get(f"/v1/volumes/{volume['id']}").status_code == 404
    assert make.http.delete(f"/v1/volumes/{volume['id']}").status_code == 404
    assert volume["id"] not in {one["id"] for one in manager.volumes.list()}


def test_files_go_up_and_come_down(manager, make, tmp_path):
    volume = make.volume()["id"]
    content = os.urandom(300_000)
    (tmp_path / "local").write_bytes(content)
    assert isinstance(manager.volumes.upload_file(volume, file_path=str(tmp_path / "local"), path="docs/deep/er/README.md"), dict)
    (listed,) = manager.volumes.list_files(volume)
    assert (listed["path"], listed["size"], listed["is_dir"]) == ("docs/deep/er/README.md", 300_000, False)
    down = manager.volumes.download_file(volume, path="docs/deep/er/README.md")
    assert base64.b64decode(down["content"]) == content
    assert (down["path"], down["filename"], down["size"]) == ("docs/deep/er/README.md", "README.md", 300_000)
    saved = manager.volumes.download_file(volume, "docs/deep/er/README.md", local_path=str(tmp_path / "saved"))
    assert saved["saved_bytes"] == 300_000 and (tmp_path / "saved").read_bytes() == content
    assert isinstance(manager.volumes.delete_file(volume, path="docs/deep/er/README.md"), dict)
    assert manager.volumes.list_files(volume) == []


def test_an_empty_file_and_one_of_many_megabytes(manager, make, tmp_path):
    volume = make.volume()
    make.put(volume, "empty", b"")
    assert manager.volumes.download_file(volume["id"], "empty", local_path=str(tmp_path / "empty"))["saved_bytes"] == 0
    content = os.urandom(MIB) * 30
    assert make.put(volume, "large", content).status_code == 200
    assert make.content(volume, "large") == content


@pytest.mark.parametrize("path", ["a b", "ünï/çødé", "per%cent", "plus+and&", "-dash", "trailing.", "...", ".hidden/.x", "a" * 255, "quote'\"", "new\nline", "back\\slash"])
def test_names_of_any_kind(make, path):
    volume = make.volume()
    assert make.put(volume, path, b"content").status_code == 200
    assert make.content(volume, path) == b"content"
    assert make.paths(volume) == [path]
    assert make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": path}).status_code == 200
    assert make.paths(volume) == []


def test_a_file_that_is_there_is_replaced_only_when_asked(make, manager, tmp_path):
    volume = make.volume()
    assert make.put(volume, "file", b"one").status_code == 200
    for overwrite in (None, "false"):
        refused(make.put(volume, "file", b"two", overwrite), 409, "file")
    assert make.content(volume, "file") == b"one"
    (tmp_path / "local").write_bytes(b"three")
    with pytest.raises(InstaVMError):
        manager.volumes.upload_file(volume["id"], str(tmp_path / "local"), "file")
    manager.volumes.upload_file(volume["id"], str(tmp_path / "local"), "file", overwrite=True)
    assert make.content(volume, "file") == b"three"
    assert make.paths(volume) == ["file"], "nothing but the file is left of either"


def test_lists_by_prefix_depth_and_number(make, manager):
    volume = make.volume()
    for path in ("a/1", "a/2", "a/b/3", "ab", "c/4"):
        make.put(volume, path, b"x" * len(path))
    assert make.paths(volume) == ["a/1", "a/2", "a/b/3", "ab", "c/4"]
    assert make.paths(volume, prefix="a/") == ["a/1", "a/2", "a/b/3"]
    assert make.paths(volume, prefix="a") == ["a/1", "a/2", "a/b/3", "ab"]
    assert make.paths(volume, prefix="a/b/") == ["a/b/3"]
    assert make.paths(volume, prefix="none") == []
    assert make.paths(volume, limit=2) == ["a/1", "a/2"]
    top = {one["path"].rstrip("/"): one for one in manager.volumes.list_files(volume["id"], recursive=False)}
    assert set(top) == {"a", "ab", "c"}
    assert (top["a"]["is_dir"], top["a"]["size"], top["ab"]["is_dir"], top["ab"]["size"]) == (True, 0, False, 2)
    below = [one["path"].rstrip("/") for one in manager.volumes.list_files(volume["id"], prefix="a/", recursive=False)]
    assert below == ["a/1", "a/2", "a/b"]
    assert all(one["modified_at"].endswith("Z") for one in top.values())
    assert make.http.get(f"/v1/volumes/{volume['id']}/files?prefix=&recursive=true&limit=1000").status_code == 200


def test_a_directory_goes_with_everything_in_it(make):
    volume = make.volume()
    for path in ("a/1", "a/b/2", "keep"):
        make.put(volume, path, b"x")
    refused(make.http.post(f"/v1/volumes/{volume['id']}/files/download", {"path": "a"}), (400, 404, 409, 422))
    refused(make.put(volume, "a", b"x", "true"), (400, 409, 422))
    refused(make.put(volume, "keep/below", b"x"), (400, 409, 422))
    assert make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": "a"}).status_code == 200
    assert make.paths(volume) == ["keep"]


def test_files_that_are_not_there(make):
    volume = make.volume()
    refused(make.http.post(f"/v1/volumes/{volume['id']}/files/download", {"path": "none"}), 404)
    refused(make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": "none"}), 404)


ESCAPES = ["../x", "a/../../x", "/etc/hostname", "..", ".", "", "a/..", "a//../../x", "\x00", "a\x00b", "./../x", "/", "a/./../../etc/x", "x" * 5000]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_a_volume(make, path):
    volume = make.volume()
    make.put(volume, "a/inside", b"x")
    files = f"/v1/volumes/{volume['id']}/files"
    refused(make.put(volume, path, b"planted", "true"), (400, 404, 409, 422))
    refused(make.http.post(f"{files}/download", {"path": path}), (400, 404, 409, 422))
    refused(make.http.delete(files, params={"path": path}), (400, 404, 409, 422))
    assert make.paths(volume) == ["a/inside"]


@pytest.mark.parametrize("prefix", ["../", "/etc/", "..", "a/../..", "/"])
def test_no_prefix_leads_out_of_a_volume(make, prefix):
    volume = make.volume()
    make.put(volume, "a/inside", b"x")
    answer = make.http.get(f"/v1/volumes/{volume['id']}/files", params={"prefix": prefix})
    assert answer.status_code in (400, 422) or answer.json() == [], answer.text


def test_links_planted_from_inside_lead_nowhere(make, daemon):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    make.sh(
        vm,
        "cd /data; mkdir real; echo inside > real/file; ln -s /etc host-etc; ln -s ../../.. up; ln -s /etc/hostname hostname; ln -s / root;"
        " ln -s real/file good; ln -s real good-dir; ln -s loop loop; ln -s /proc/self/root proc; mkfifo pipe; mknod null c 1 3 || true",
    )
    files = f"/v1/volumes/{volume['id']}/files"
    here = daemon.data_dir / "admin-key"
    for path in ("hostname", "host-etc/hostname", "up/etc/hostname", "root/etc/hostname", f"root{here}", "proc/etc/hostname", "loop", "pipe"):
        answer = make.http.post(f"{files}/download", {"path": path}, timeout=30)
        refused(answer, (400, 403, 404, 409, 422))
        assert daemon.key not in answer.text
    for path in ("host-etc/planted", "up/planted", "root/tmp/planted", "proc/tmp/planted", "loop/planted"):
        refused(make.put(volume, path, b"planted", "true"), (400, 403, 404, 409, 422))
    for path in ("host-etc/hostname", "root/etc/hostname", "up/etc"):
        refused(make.http.delete(files, params={"path": path}), (400, 403, 404, 409, 422))
    # A link may itself be removed or replaced: what it points to stays.
    assert make.http.delete(files, params={"path": "host-etc"}).status_code == 200
    assert make.http.delete(files, params={"path": "good-dir"}).status_code == 200
    assert make.content(volume, "real/file") == b"inside\n"
    assert os.path.exists("/etc/hostname") and not os.path.exists("/tmp/planted") and not os.path.exists("/etc/planted")
    assert make.sh(vm, "ls /tmp; ls /etc/planted 2>/dev/null || true") == ""
    for path in make.paths(volume):
        assert not path.startswith(("up/", "root/", "proc/")), "listing follows no link"


def test_links_that_change_under_the_api(make):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}], vcpu_count=2)
    make.sh(vm, "mkdir -p /data/real; echo inside > /data/real/hostname; ln -s /data/real /data/x")
    make.http.execute(
        vm["session_id"],
        "import os, threading\n"
        "def swap():\n"
        "    while True:\n"
        "        for target in ('real', '/etc', '../../../../etc'):\n"
        "            os.symlink(target, '/data/new'); os.rename('/data/new', '/data/x')\n"
        "threading.Thread(target=swap, daemon=True).start()",
    )
    for _ in range(150):
        answer = make.http.post(f"/v1/volumes/{volume['id']}/files/download", {"path": "x/hostname"})
        assert answer.status_code in (200, 400, 403, 404, 409, 422), answer.text
        if answer.status_code == 200:
            assert base64.b64decode(answer.json()["content"]) == b"inside\n"


def test_unknown_and_foreign_volumes_are_404(make, foreign, tenant):
    volume = make.volume()
    make.put(volume, "mine", b"secret")
    checkpoint = make.checkpoint(volume)
    theirs = foreign.vm()
    for caller, volume_id in ((make.http, "vol_none"), (make.http, "..%2Fx"), (tenant, volume["id"])):
        base = f"/v1/volumes/{volume_id}"
        answers = [
            caller.get(base),
            caller.patch(base, {"name": "x"}),
            caller.delete(base),
            caller.get(f"{base}/files"),
            caller.post(f"{base}/files/download", {"path": "mine"}),
            caller.delete(f"{base}/files", params={"path": "mine"}),
            caller.request("POST", f"{base}/files/upload", files={"path": (None, "x"), "file": ("x", b"x")}),
            caller.post(f"{base}/checkpoints", {}),
            caller.get(f"{base}/checkpoints"),
            caller.delete(f"{base}/checkpoints/{checkpoint['id']}"),
        ]
        assert [answer.status_code for answer in answers] == [404] * len(answers), [answer.text for answer in answers]
    refused(foreign.mount(theirs, volume), 404)
    refused(tenant.post("/v1/vms", {"volumes": [{"volume_id": volume["id"], "mount_path": "/d"}]}), (404, 422))
    refused(tenant.post("/v1/vms", {"volumes": [{"name": volume["name"], "mount_path": "/d"}]}), (404, 422))
    assert volume["id"] not in {one["id"] for one in tenant.get("/v1/volumes").json()}
    assert make.content(volume, "mine") == b"secret"
    assert [one["vm_id"] for one in tenant.get("/v1/vms").json()] == [theirs["vm_id"]]


def test_names_are_one_to_an_account(make, foreign):
    volume = make.volume()
    refused(make.http.post("/v1/volumes", {"name": volume["name"], "quota_bytes": MIB}), 409, volume["name"])
    foreign.volume(name=volume["name"])
    other = make.volume()
    refused(make.http.patch(f"/v1/volumes/{other['id']}", {"name": volume["name"]}), 409)
    make.http.delete(f"/v1/volumes/{volume['id']}")
    eventually(lambda: make.http.patch(f"/v1/volumes/{other['id']}", {"name": volume["name"]}).status_code == 200, 10)


def test_one_name_asked_for_by_many_at_once(make, daemon):
    name = f"race-{uuid.uuid4().hex[:8]}"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: daemon.http().post("/v1/volumes", {"name": name, "quota_bytes": MIB * 8}), range(8)))
    made = [answer.json()["id"] for answer in answers if answer.status_code < 300]
    make.volumes.extend(made)
    assert len(made) == 1 and {answer.status_code for answer in answers if answer.status_code >= 300} == {409}


@pytest.mark.parametrize(
    "fields, word",
    [
        ({}, "name"),
        ({"name": "x"}, "quota_bytes"),
        ({"quota_bytes": MIB}, "name"),
        ({"name": "", "quota_bytes": MIB}, "name"),
        ({"name": 7, "quota_bytes": MIB}, "name"),
        ({"name": "a/b", "quota_bytes": MIB}, "name"),
        ({"name": "a:b", "quota_bytes": MIB}, "name"),
        ({"name": "x" * 65, "quota_bytes": MIB}, "name"),
        ({"name": "x", "quota_bytes": 0}, "quota_bytes"),
        ({"name": "x", "quota_bytes": -1}, "quota_bytes"),
        ({"name": "x", "quota_bytes": 1.5}, "quota_bytes"),
        ({"name": "x", "quota_bytes": "much"}, "quota_bytes"),
        ({"name": "x", "quota_bytes": 10**30}, "quota_bytes"),
    ],
)
def test_fields_of_a_volume_are_checked_by_name(make, fields, word):
    before = len(make.http.get("/v1/volumes").json())
    refused(make.http.post("/v1/volumes", fields), 422, word)
    assert len(make.http.get("/v1/volumes").json()) == before


def test_ranges_are_told(make):
    volume = make.volume()
    for answer in (
        make.http.post("/v1/volumes", {"name": "x", "quota_bytes": 1 << 60}),
        make.http.patch(f"/v1/volumes/{volume['id']}", {"quota_bytes": 1 << 60}),
        make.http.get(f"/v1/volumes/{volume['id']}/files?limit=0"),
        make.http.get(f"/v1/volumes/{volume['id']}/files?limit=10001"),
    ):
        refused(answer, 422, "between")
    refused(make.http.get(f"/v1/volumes/{volume['id']}?refresh_usage=perhaps"), (400, 422), "refresh_usage")
    refused(make.http.get(f"/v1/volumes/{volume['id']}/files?recursive=perhaps"), (400, 422), "recursive")
    refused(make.http.delete(f"/v1/volumes/{volume['id']}/files"), (400, 422), "path")
    refused(make.http.post(f"/v1/volumes/{volume['id']}/files/download", {}), 422, "path")


@pytest.mark.parametrize("files", [{}, {"path": (None, "x")}, {"file": ("x", b"x")}, {"path": (None, "x"), "overwrite": (None, "perhaps"), "file": ("x", b"x")}])
def test_uploads_with_something_missing(make, files):
    volume = make.volume()
    url = f"/v1/volumes/{volume['id']}/files/upload"
    answer = make.http.request("POST", url, files=files) if files else make.http.request("POST", url, data=b"x", headers={"Content-Type": "text/plain"})
    refused(answer, (400, 415, 422))
    assert make.paths(volume) == []


def test_used_bytes_are_exact_when_refreshed(make, manager):
    volume = make.volume()
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    make.put(volume, "one", b"x" * 1_234_567)
    make.sh(vm, "mkdir -p /data/deep; head -c 7654321 /dev/urandom > /data/deep/two; echo -n abc > /data/three; truncate -s 50M /data/holes")
    assert manager.volumes.get(volume["id"], refresh_usage=True)["used_bytes"] == 1_234_567 + 7_654_321 + 3
    (listed,) = [one for one in manager.volumes.list(refresh_usage=True) if one["id"] == volume["id"]]
    assert listed["used_bytes"] == 1_234_567 + 7_654_321 + 3
    make.sh(vm, "rm /data/deep/two")
    assert manager.volumes.get(volume["id"], refresh_usage=True)["used_bytes"] == 1_234_567 + 3
    make.sh(vm, "cp /data/one /data/copy; ln /data/one /data/hard")
    assert manager.volumes.get(volume["id"], refresh_usage=True)["used_bytes"] == 2 * 1_234_567 + 3, "two names of one file are one file"


def test_the_quota_holds_over_the_api(make, manager):
    volume = make.volume(quota_bytes=16 * MIB)
    assert make.put(volume, "fits", os.urandom(10 * MIB)).status_code == 200
    refused(make.put(volume, "too-much", os.urandom(10 * MIB)), 413, "no space is left on the volume")
    assert make.paths(volume) == ["fits"], "nothing of a file that did not fit stays"
    assert manager.volumes.get(volume["id"], refresh_usage=True)["used_bytes"] == 10 * MIB
    # What is deleted makes room, what is raised too.
    make.http.delete(f"/v1/volumes/{volume['id']}/files", params={"path": "fits"})
    eventually(lambda: make.put(volume, "again", os.urandom(10 * MIB), "true").status_code == 200, 30)
    manager.volumes.update(volume["id"], quota_bytes=32 * MIB)
    assert make.put(volume, "more", os.urandom(10 * MIB)).status_code == 200


def test_the_quota_holds_inside(make):
    volume = make.volume(quota_bytes=16 * MIB)
    vm = make.vm(volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    said = make.fails(vm, "dd if=/dev/urandom of=/data/much bs=1M count=64 conv=fsync")
    assert "Disk quota exceeded" in said or "No space left" in said, said
    assert int(make.sh(vm, "stat -c %s /data/much")) <= 16 * MIB
    make.sh(vm, "echo the rest goes on > /app/file; sync /app/file")
    make.sh(vm, "rm /data/much")
    eventually(lambda: make.http.execute(vm["session_id"], "dd if=/dev/urandom of=/data/some bs=1M count=8 conv=fsync", "bash")["exit_code"] == 0, 30, 0.5)


def test_a_quota_shrinks_to_what_is_used_and_no_further(make, manager):
    volume = make.volume(quota_bytes=64 * MIB)
    make.put(volume, "file", os.urandom(20 * MIB))
    refused(make.http.patch(f"/v1/volumes/{volume['id']}", {"quota_bytes": 10 * MIB}), (409, 422), str(20 * MIB)[:2])
    assert manager.volumes.get(volume["id"])["quota_bytes"] == 64 * MIB
    assert manager.volumes.update(volume["id"], quota_bytes=24 * MIB)["quota_bytes"] == 24 * MIB
    refused(make.put(volume, "more", os.urandom(10 * MIB)), 413)


def test_a_broken_upload_leaves_the_old_file(make, daemon):
    import socket
    from urllib.parse import urlparse

    volume = make.volume()
    make.put(volume, "file", b"old")
    address = urlparse(daemon.base_url)
    form = b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\nfile\r\n--b\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"new" * 100_000
    head = f"POST /v1/volumes/{volume['id']}/files/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {daemon.key}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + form)
    assert make.content(volume, "file") == b"old"
    eventually(lambda: make.paths(volume) == ["file"], 10, what="what was half written goes")


def test_uploads_of_one_file_at_once_are_whole(make, daemon):
    volume = make.volume()
    contents = [bytes([65 + number]) * 200_000 for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = lambda content: {"path": (None, "file"), "overwrite": (None, "true"), "file": ("x", content)}  # noqa: E731
        url = f"/v1/volumes/{volume['id']}/files/upload"
        statuses = list(pool.map(lambda content: daemon.http().request("POST", url, files=parts(content)).status_code, contents))
    assert set(statuses) <= {200, 409} and 200 in statuses
    assert make.content(volume, "file") in contents
    assert make.paths(volume) == ["file"]
