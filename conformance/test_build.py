"""Snapshots built from OCI images: what is honoured, what is installed, what is refused, and that nothing remains."""

import concurrent.futures
import gzip
import json
import os
import tarfile
import time
import uuid
from pathlib import Path

import packages
import pytest
import registry as oci
from daemon import Maker, eventually
from registry import Image, ImageRegistry, Layer, directory, entry, symlink


@pytest.fixture(scope="session")
def base():
    """The layer that most images here begin with."""
    return oci.small_root()


@pytest.fixture(scope="module")
def registry():
    served = ImageRegistry()
    yield served
    served.close()


@pytest.fixture
def push(registry, base):
    """Serves an image of the base and more layers under a name of its own; gives its reference."""

    def serve(*layers, **config):
        image = Image([base, *layers], **config)
        return registry.push(f"test/{uuid.uuid4().hex[:12]}", image)

    return serve


def said(record):
    return record["last_error"] or ""


def test_a_build_from_its_beginning_to_a_vm(manager, make, push, registry):
    layer = Layer.of(directory("srv/app"), entry("srv/app/file", "of the image\n"))
    reference = push(
        layer, env={"FROM_IMAGE": "yes", "OVER": "image", "PATH": "/srv/bin:/usr/local/bin:/usr/bin:/bin"}, workdir="/srv/app", user="1000", entrypoint=["/bin/e"], command=["a", "b"]
    )
    name = f"built-{uuid.uuid4().hex}"
    begun = manager.snapshots.create(
        oci_image=reference, name=name, vcpu_count=1, memory_mb=512, snapshot_type="user", build_args={"envs": {"OVER": "build", "NUMBER": 7}}, something_new=1
    )
    make.snapshots.append(begun["id"])
    assert begun["snapshot_id"] == begun["id"] and begun["status"] in ("building", "pending", "creating")
    assert (begun["name"], begun["type"], begun["is_public"], begun["oci_image"]) == (name, "user", False, reference)
    record = make.ended_build(begun["id"])
    assert record["status"] == "ready", record
    assert record["digest"] == oci.sha256(registry.manifests[(reference.split("/", 1)[1].split(":")[0], "latest")][1])
    config = record["config"]
    assert (config["workdir"], config["user"], config["entrypoint"], config["command"]) == ("/srv/app", "1000", ["/bin/e"], ["a", "b"])
    assert config["env"]["FROM_IMAGE"] == "yes" and config["env"]["OVER"] == "build"
    assert record["log"] and "layer" in record["log"] and record["last_error"] is None
    assert name in {one["name"] for one in manager.snapshots.list(snapshot_type="user")}
    vm = make.vm(snapshot_id=record["id"], env={"MINE": "vm"})
    assert make.sh(vm, "pwd; cat file; echo $FROM_IMAGE $OVER $NUMBER $MINE; echo $PATH | cut -d: -f1") == "/srv/app\nof the image\nyes build 7 vm\n/srv/bin\n"
    assert make.http.execute(vm["session_id"], "import os; print(os.getcwd(), os.environ['OVER'])")["stdout"] == "/srv/app build\n"
    make.http.request("POST", "/upload", files={"remote_path": (None, "up"), "session_id": (None, vm["session_id"]), "file": ("x", b"x")})
    assert make.sh(vm, "cat /srv/app/up") == "x"
    over = make.vm(snapshot_id=record["id"], env={"OVER": "vm"})
    assert make.sh(over, "echo $OVER") == "vm\n"


def test_layers_lie_on_top_of_each_other(make, push):
    one = Layer.of(
        directory("d"), entry("d/kept", "1"), entry("d/gone", "1"), entry("d/changed", "1"), directory("opaque"), entry("opaque/old", "1"),
        directory("becomes-file"), entry("becomes-file/x", "1"), entry("becomes-dir", "1"), symlink("link", "d/kept"), directory("removed"), entry("removed/deep", "1"),
        entry("owned", "1", mode=0o4755, uid=1000, gid=2000), entry("d/first", "same"), entry("d/second", kind=tarfile.LNKTYPE, link="d/first"), entry("pipe", kind=tarfile.FIFOTYPE),
    )  # fmt: skip
    two = Layer.of(
        entry("d/.wh.gone"), entry("d/changed", "2"), entry("opaque/.wh..wh..opq"), entry("opaque/new", "2"), entry(".wh.becomes-file"),
        entry("becomes-file", "2"), directory("becomes-dir"), entry("becomes-dir/x", "2"), entry(".wh.removed"), entry("link", "2"), kind=oci.TAR,
    )  # fmt: skip
    three = Layer.of(entry("absolute-is-relative", "3"), entry("/from/root", "3"), entry("./dotted/./x", "3"), kind=oci.ZSTD)
    tar = oci.tar_of([entry("members", "4" * 100_000)])
    four = Layer.raw(gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]), diff_id=oci.sha256(tar))
    record = make.build(push(one, two, three, four))
    assert record["status"] == "ready", said(record)
    vm = make.vm(snapshot_id=record["id"])
    assert make.sh(vm, "cd /; cat d/kept d/changed opaque/new becomes-file becomes-dir/x link from/root dotted/x; ls -A d opaque") == (
        "12222233d:\nchanged\nfirst\nkept\nsecond\n\nopaque:\nnew\n"
    )
    assert make.sh(vm, "ls -d /removed 2>/dev/null || echo gone; stat -c '%u %g %a' /owned; stat -c %h /d/first; stat -c %F /pipe; stat -c %s /members") == (
        "gone\n1000 2000 4755\n2\nfifo\n100000\n"
    )


def test_docker_images_indexes_and_digests(make, registry, base):
    name = f"test/{uuid.uuid4().hex[:12]}"
    docker = Image([base, Layer.of(entry("which", "docker"))], docker=True)
    other = Image([base, Layer.of(entry("which", "other machine"))], architecture="s390x")
    ours = Image([base, Layer.of(entry("which", "ours"))])
    references = {
        "docker": registry.push(name, docker, "docker"),
        "ours": registry.push_index(name, {"s390x": other, oci.ARCHITECTURE: ours}, "multi"),
    }
    references["by digest"] = f"{registry.host}/{name}@{docker.digest}"
    for which, reference in references.items():
        record = make.build(reference)
        assert record["status"] == "ready", said(record)
        assert make.sh(make.vm(snapshot_id=record["id"]), "cat /which") == ("docker" if which == "by digest" else which)
    strange = make.build(registry.push_index(name, {"s390x": other}, "strange"))
    assert strange["status"] == "failed" and oci.ARCHITECTURE in said(strange), said(strange)


def test_a_second_build_of_the_same_image_pulls_nothing(make, push, registry):
    reference = push(Layer.of(entry("own", "1")))
    assert make.build(reference)["status"] == "ready"
    registry.asked.clear()
    assert make.build(reference)["status"] == "ready"
    assert registry.pulled() == []


def test_images_share_their_layers(make, push, registry):
    # New content each time: what this host has pulled before is in its cache.
    assert make.build(push(Layer.of(entry("own", os.urandom(16)))))["status"] == "ready"
    registry.asked.clear()
    layer = Layer.of(entry("own", os.urandom(16)))
    assert make.build(push(layer))["status"] == "ready"
    assert layer.digest in registry.pulled() and len(registry.pulled()) <= 2, "its own layer and its configuration"


def test_one_image_built_by_many_at_once(make, push, registry, daemon):
    layer = Layer.of(entry("own", os.urandom(3_000_000)))
    reference = push(layer)
    registry.asked.clear()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        records = list(pool.map(lambda _: Maker(daemon.http()).build(reference), range(3)))
    make.snapshots.extend(record["id"] for record in records)
    assert [record["status"] for record in records] == ["ready"] * 3, [said(record) for record in records]
    assert registry.pulled().count(layer.digest) == 1


@pytest.mark.timeout(280)
def test_everything_that_a_build_can_be_asked_to_do(make, daemon):
    """With Debian's own registry, and the real apt, pip, npm and git of the platform's image."""
    debian = oci.DockerRegistry()
    try:
        reference = debian.push("team/whole", Image([oci.whole_root(), Layer(packages.layer_tar())]))
        record = make.build(
            reference,
            seconds=240,
            memory_mb=1024,
            build_args={
                "extra_apt_packages": "a-tool b-tool",
                "extra_pip_packages": "a_module",
                "extra_npm_packages": "a-package",
                "git_clone_url": packages.REPOSITORY_URL,
                "git_clone_branch": "other",
                "disk_size_gb": 3,
                "envs": packages.ENVIRONMENT,
                "post_build_cmd": 'a-tool > /app/post && cat /app/repo/branch >> /app/post && echo "$PIP_NO_INDEX" >> /app/post && hostname > /app/hostname',
            },
        )
    finally:
        debian.close()
    assert record["status"] == "ready", (said(record), record["log"][-3000:])
    vm = make.vm(snapshot_id=record["id"], memory_mb=512)
    assert make.sh(vm, "cat /app/post; b-tool; git -C /app/repo rev-parse --abbrev-ref HEAD") == "a-tool of apt\nother\n1\nb-tool of apt\nother\n"
    assert make.http.execute(vm["session_id"], "import a_module; print(a_module.said)")["stdout"] == "a_module of pip\n"
    assert make.sh(vm, "NODE_OPTIONS= NODE_PATH=$(npm root -g) node -p 'require(\"a-package\")'") == "a-package of npm\n"
    assert make.sh(vm, "cat /app/hostname").strip() != os.uname().nodename, "nothing of it ran here"
    for word in ("a-tool", "a_module", "a-package"):
        assert word in record["log"]
    daemon.assert_clean()


def test_a_step_that_fails_says_which_and_why(make, push, daemon):
    mark = uuid.uuid4().hex
    record = make.build(push(), build_args={"post_build_cmd": f"echo first line; echo the reason {mark} >&2; touch /tmp/{mark} /{mark}; exit 3"})
    assert (record["status"], record["step"]) == ("failed", "command")
    assert mark in said(record) and "3" in said(record)
    assert "first line" in record["log"] and mark in record["log"]
    assert not Path(f"/tmp/{mark}").exists() and not Path(f"/{mark}").exists()
    answer = make.http.post("/v1/vms", {"snapshot_id": record["id"]})
    assert answer.status_code == 409 and "failed" in answer.json()["detail"], answer.text
    daemon.assert_clean()
    assert make.http.delete(f"/v1/snapshots/{record['id']}").status_code == 200


@pytest.mark.parametrize(
    "arguments, step",
    [
        ({"extra_apt_packages": "none-such"}, "apt"),
        ({"extra_pip_packages": "none-such"}, "pip"),
        ({"extra_npm_packages": "none-such"}, "npm"),
        ({"git_clone_url": "https://git.invalid/none.git"}, "git"),
    ],
)
def test_an_image_without_the_tool_says_so(make, push, arguments, step):
    record = make.build(push(), build_args=arguments)
    assert (record["status"], record["step"]) == ("failed", step)
    assert len(said(record)) > 10


@pytest.mark.parametrize("evil", ["$(touch${IFS}/owned)", "`touch${IFS}/owned`", "a;touch${IFS}/owned", "a'b", "-o=Dpkg::Pre-Invoke::=id", "--index-url=http://x", "a|b", "a&&b", "../a"])
@pytest.mark.parametrize("argument", ["extra_apt_packages", "extra_pip_packages", "extra_npm_packages", "git_clone_branch"])
def test_arguments_are_names_and_no_shell(make, argument, evil):
    arguments = {argument: evil, **({"git_clone_url": packages.REPOSITORY_URL} if "git" in argument else {})}
    answer = make.http.post("/v1/snapshots", {"oci_image": "127.0.0.1:9/none", "build_args": arguments})
    if argument == "git_clone_branch" and answer.status_code < 300:
        # Most of it is a name to git. It ends as one word behind an option of git's.
        make.snapshots.append(answer.json()["id"])
        assert not evil.startswith("-") and not evil.startswith(".")
    else:
        assert answer.status_code == 422 and argument in answer.text, answer.text


def test_what_git_is_given_stays_one_word(make, push):
    """A git that writes down its arguments: a branch of strange characters reaches it whole, and does nothing else."""
    teller = '#!/bin/bash\nfor word in "$@"; do echo "[$word]"; done > /told\n'
    branch = "$(touch${IFS}/owned);touch${IFS}/owned'`id`"
    record = make.build(push(Layer.of(entry("usr/bin/git", teller, 0o755))), build_args={"git_clone_url": packages.REPOSITORY_URL, "git_clone_branch": branch})
    assert record["status"] == "ready", said(record)
    told = make.sh(make.vm(snapshot_id=record["id"]), "ls /owned 2>/dev/null; cat /told").splitlines()
    assert "/owned" not in told and f"[--branch={branch}]" in told and f"[{packages.REPOSITORY_URL}]" in told


def test_a_build_has_the_disk_that_it_asked_for(make, push):
    fill = "head -c 1500000000 /dev/zero > /app/large && sync"
    record = make.build(push(), build_args={"disk_size_gb": 1, "post_build_cmd": fill})
    assert (record["status"], record["step"]) == ("failed", "command")
    assert "quota" in said(record).lower() or "space" in said(record).lower(), said(record)


def test_vms_do_not_start_from_what_is_not_ready(make, push):
    begun = make.made(make.http.post("/v1/snapshots", {"oci_image": push(), "build_args": {"post_build_cmd": "sleep 5"}}), make.snapshots, "id")
    answer = make.http.post("/v1/vms", {"snapshot_id": begun["id"]})
    assert answer.status_code == 409, answer.text
    assert make.ended_build(begun["id"])["status"] == "ready"
    make.vm(snapshot_id=begun["id"])


def test_the_progress_can_be_followed(make, push):
    begun = make.made(make.http.post("/v1/snapshots", {"oci_image": push(), "build_args": {"post_build_cmd": "echo marked; sleep 5"}}), make.snapshots, "id")

    def at_the_command():
        record = make.http.get(f"/v1/snapshots/{begun['id']}").json()
        assert record["status"] in ("building", "pending", "creating")
        return record["step"] == "command" and "marked" in record["log"]

    eventually(at_the_command, 60, 0.05)
    assert make.ended_build(begun["id"])["status"] == "ready"


def test_a_build_that_is_deleted_stops(make, push, daemon):
    begun = make.http.post("/v1/snapshots", {"oci_image": push(), "build_args": {"post_build_cmd": "sleep 250"}}).json()
    eventually(lambda: make.http.get(f"/v1/snapshots/{begun['id']}").json()["step"] == "command", 60)
    assert make.http.delete(f"/v1/snapshots/{begun['id']}").status_code == 200
    assert make.http.get(f"/v1/snapshots/{begun['id']}").status_code == 404
    daemon.assert_clean()


# What is wrong with an image or with its registry


def one_layer(tar, kind=oci.GZIP):
    return Layer(tar, kind) if isinstance(tar, bytes) else tar


def with_layer(*entries):
    return lambda mark: Layer.of(*entries)


EVIL = {
    "a path that leads out": with_layer(entry("../../../../../../../../tmp/MARK", "x")),
    "a path through the middle": with_layer(directory("a"), entry("a/../../../../../../tmp/MARK", "x")),
    "through a link": with_layer(symlink("out", "/tmp"), entry("out/MARK", "x")),
    "through a relative link": with_layer(symlink("out", "../../../../../../../../tmp"), entry("out/MARK", "x")),
    "a hard link outside": with_layer(entry("shadow", kind=tarfile.LNKTYPE, link="../../../../../../../../etc/shadow")),
    "a hard link through a link": with_layer(symlink("out", "/etc"), entry("shadow", kind=tarfile.LNKTYPE, link="out/shadow")),
    "a block device": with_layer(entry("disk", kind=tarfile.BLKTYPE, device=(254, 0), mode=0o666)),
    "a character device": with_layer(entry("memory", kind=tarfile.CHRTYPE, device=(1, 1), mode=0o666)),
    "no tar at all": lambda mark: Layer(b"this is no archive" * 1000),
    "no gzip at all": lambda mark: Layer.raw(b"this is no gzip" * 1000),
    "a tar that is cut": lambda mark: Layer(oci.tar_of([entry("x", os.urandom(100_000))])[:50_000]),
    "a whiteout that leads out": with_layer(entry("a/../../../../../../../tmp/.wh.MARK")),
    "another content than promised": lambda mark: Layer.raw(gzip.compress(oci.tar_of([entry("x", "y")])), diff_id=oci.sha256(b"other")),
}


@pytest.mark.parametrize("what", EVIL)
def test_layers_that_are_not_what_they_should_be(make, push, daemon, what):
    mark = uuid.uuid4().hex
    witness = Path(f"/tmp/{mark}")
    layer = EVIL[what](mark)
    if isinstance(layer.blob, bytes) and b"MARK" in (tar := unpacked(layer.blob)):
        layer = Layer(retarred(tar, mark))
    if "whiteout" in what:
        witness.write_text("kept")
    try:
        record = make.build(push(layer))
        if record["status"] == "ready":
            # Links may also be followed to where they lead inside.
            assert "link" in what
            vm = make.vm(snapshot_id=record["id"])
            if "hard" in what:
                assert make.sh(vm, "cmp /shadow /etc/shadow && echo inside") == "inside\n"
            else:
                assert make.sh(vm, f"cat /tmp/{mark} /out/{mark} 2>/dev/null | head -c 1") == "x"
        else:
            assert len(said(record)) > 10, record
        assert witness.exists() == ("whiteout" in what)
    finally:
        witness.unlink(missing_ok=True)
    daemon.assert_clean()


def unpacked(blob):
    try:
        return gzip.decompress(blob)
    except (gzip.BadGzipFile, EOFError):
        return b""


def retarred(tar, mark):
    """The archive with `MARK` in its names made unique."""
    import io

    with tarfile.open(fileobj=io.BytesIO(tar)) as source:
        entries = []
        for info in source:
            data = source.extractfile(info).read() if info.isreg() else b""
            info.name = info.name.replace("MARK", mark)
            info.pax_headers = {}
            entries.append((info, data))
    return oci.tar_of(entries)


def test_a_bomb_is_stopped_at_the_limit_of_the_disk(make, push, daemon):
    neighbour = make.vm()
    started = time.monotonic()
    record = make.build(push(oci.bomb(3)), build_args={"disk_size_gb": 1})
    assert record["status"] == "failed" and len(said(record)) > 10, record
    assert time.monotonic() - started < 120
    assert make.sh(neighbour, "echo well") == "well\n"
    daemon.assert_clean()


def wrong_size(image, factor):
    for one in image.document["layers"][1:]:
        one["size"] = int(one["size"] * factor)
    return image


@pytest.mark.parametrize("factor", [10, 0.1])
def test_sizes_that_lie(make, registry, base, factor):
    image = wrong_size(Image([base, Layer.of(entry("x", os.urandom(200_000)))]), factor)
    record = make.build(registry.push(f"test/{uuid.uuid4().hex[:12]}", image))
    assert record["status"] == "failed" and "size" in said(record).lower() or "bytes" in said(record).lower(), said(record)


FAULTS = {
    "cut": lambda blob, served: oci.cut(blob),
    "other bytes of the same length": lambda blob, served: oci.instead(bytes(len(blob))),
    "other bytes": lambda blob, served: oci.instead(b"something else"),
    "ten times over": lambda blob, served: oci.endless(blob),
    "500": lambda blob, served: oci.instead(b"oops", 500),
    "404": lambda blob, served: oci.instead(b"{}", 404),
    "403": lambda blob, served: oci.instead(b'{"errors": [{"code": "DENIED"}]}', 403),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("part", ["layer", "configuration"])
def test_registries_that_fail(make, push, registry, daemon, what, part):
    layer = Layer.of(entry("x", os.urandom(100_000)))
    reference = push(layer, env={"MARK": uuid.uuid4().hex})
    name = reference.split("/", 1)[1].split(":")[0]
    digest = layer.digest if part == "layer" else json.loads(registry.manifests[(name, "latest")][1])["config"]["digest"]
    registry.faults[digest] = FAULTS[what](registry.blobs[digest], registry)
    record = make.build(reference)
    assert record["status"] == "failed" and len(said(record)) > 10, record
    assert record["step"] in ("pull", "unpack")
    # With the fault gone the same image builds: nothing wrong was kept.
    del registry.faults[digest]
    assert make.build(reference)["status"] == "ready"
    daemon.assert_clean()


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"schemaVersion": 2}', b'{"schemaVersion": 2, "layers": [{"digest": "md5:x", "size": 1}]}', b"x" * (20 << 20)], ids=["empty", "text", "array", "bare", "digest", "huge"])
def test_manifests_that_are_none(make, registry, body):
    name = f"test/{uuid.uuid4().hex[:12]}"
    registry.manifests[(name, "latest")] = (oci.MANIFEST, body)
    record = make.build(f"{registry.host}/{name}")
    assert record["status"] == "failed" and len(said(record)) > 10, record


def test_a_stream_that_is_cut_once_goes_on(make, push, registry):
    layer = Layer.of(entry("x", os.urandom(1_000_000)))
    reference = push(layer)
    registry.faults[layer.digest] = oci.once(oci.cut(layer.blob), registry, layer.digest)
    record = make.build(reference)
    assert record["status"] == "ready", said(record)


@pytest.mark.parametrize("reference, words", [("none/such", "none/such"), ("none/such:v9", "v9"), ("test/x@sha256:" + "0" * 64, "0000")])
def test_images_that_do_not_exist(make, registry, reference, words):
    record = make.build(f"{registry.host}/{reference}")
    assert record["status"] == "failed" and record["step"] == "pull"
    assert "does not have" in said(record) and words in said(record), said(record)


def test_a_registry_that_does_not_answer(make):
    record = make.build("127.0.0.1:9/none/such")
    assert record["status"] == "failed" and "127.0.0.1:9" in said(record), said(record)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({}, "oci_image"),
        ({"oci_image": 7}, "oci_image"),
        ({"oci_image": ""}, "oci_image"),
        ({"oci_image": "UPPER/case"}, "oci_image"),
        ({"oci_image": "with space"}, "oci_image"),
        ({"oci_image": "a/b@sha256:short"}, "oci_image"),
        ({"oci_image": "https://host/a"}, "oci_image"),
        ({"oci_image": "a", "memory_mb": 64}, "memory_mb"),
        ({"oci_image": "a", "memory_mb": 8194}, "memory_mb"),
        ({"oci_image": "a", "vcpu_count": 0}, "vcpu_count"),
        ({"oci_image": "a", "vcpu_count": 9}, "vcpu_count"),
        ({"oci_image": "a", "type": "other"}, "type"),
        ({"oci_image": "a", "name": 7}, "name"),
        ({"oci_image": "a", "build_args": "x"}, "build_args"),
        ({"oci_image": "a", "build_args": {"disk_size_gb": 0}}, "disk_size_gb"),
        ({"oci_image": "a", "build_args": {"disk_size_gb": 100_000}}, "disk_size_gb"),
        ({"oci_image": "a", "build_args": {"envs": {"A=B": "x"}}}, "env"),
        ({"oci_image": "a", "build_args": {"envs": ["x"]}}, "envs"),
        ({"oci_image": "a", "build_args": {"extra_apt_packages": ["x"]}}, "extra_apt_packages"),
        ({"oci_image": "a", "build_args": {"git_clone_url": "file:///etc"}}, "git_clone_url"),
        ({"oci_image": "a", "build_args": {"git_clone_url": "ext::sh -c id"}}, "git_clone_url"),
        ({"oci_image": "a", "build_args": {"post_build_cmd": 7}}, "post_build_cmd"),
    ],
)
def test_fields_of_a_build_are_checked_by_name(make, fields, word):
    before = len(make.http.get("/v1/snapshots").json())
    answer = make.http.post("/v1/snapshots", fields)
    assert answer.status_code == 422 and word in answer.text, answer.text
    if word in ("memory_mb", "vcpu_count", "disk_size_gb"):
        assert "between" in answer.text
    assert len(make.http.get("/v1/snapshots").json()) == before


def test_system_snapshots_are_for_everybody_and_made_by_the_first_account(make, foreign, tenant, push, manager):
    reference = push(Layer.of(entry("system", "yes")))
    refused = tenant.post("/v1/snapshots", {"oci_image": reference, "type": "system"})
    assert refused.status_code == 403, refused.text
    name = f"system-{uuid.uuid4().hex}"
    record = make.build(reference, name=name, type="system")
    assert (record["status"], record["type"], record["is_public"]) == ("ready", "system", True)
    for listed in (manager.snapshots.list(snapshot_type="system"), tenant.get("/v1/snapshots?type=system").json(), tenant.get("/v1/snapshots").json()):
        (found,) = [one for one in listed if one["name"] == name]
        assert (found["id"], found["is_public"], found["status"]) == (record["id"], True, "ready")
    assert [one for one in tenant.get("/v1/snapshots?type=user").json() if one["name"] == name] == []
    assert tenant.get(f"/v1/snapshots/{record['id']}").json()["status"] == "ready"
    vm = foreign.vm(snapshot_id=record["id"])
    assert foreign.sh(vm, "cat /system") == "yes"
    assert tenant.delete(f"/v1/snapshots/{record['id']}").status_code in (403, 404)
    in_use = make.http.delete(f"/v1/snapshots/{record['id']}")
    assert in_use.status_code == 409 and vm["vm_id"] not in in_use.text, "another account's VM is not named"


# Registries that want something first


@pytest.fixture(scope="module")
def guarded(base, tmp_path_factory):
    """A daemon that knows passwords and a private authority, and registries that want them."""
    from daemon import Daemon

    folder = tmp_path_factory.mktemp("authority")
    ca, certificate, key = oci.authority(folder)
    image = Image([base])
    made = {
        "basic": ImageRegistry(basic=("user", "secret-word")),
        "token": ImageRegistry(token=("user", "secret-word")),
        "tls": ImageRegistry(certificate=(certificate, key)),
        "tls token": ImageRegistry(certificate=(certificate, key), token=("user", "secret-word")),
        "denied": ImageRegistry(basic=("user", "another")),
        "unknown": ImageRegistry(basic=("user", "secret-word")),
    }
    auth = folder / "config.json"
    encoded = oci.basic("user", "secret-word").split()[1]
    auth.write_text(json.dumps({"auths": {served.host: {"auth": encoded} for name, served in made.items() if name != "unknown"}}))
    daemon = Daemon("guarded", pool_size=1, images_registry_auth=auth, runtime_extra_ca=ca)
    try:
        daemon.start()
        yield daemon, {name: served.push("private/app", image) for name, served in made.items()}
        daemon.assert_clean()
    finally:
        daemon.destroy()
        for served in made.values():
            served.close()


@pytest.mark.parametrize("which", ["basic", "token", "tls", "tls token"])
def test_registries_with_passwords_tokens_and_a_private_authority(guarded, which):
    daemon, references = guarded
    make = Maker(daemon.http())
    record = make.build(references[which])
    assert record["status"] == "ready", said(record)
    assert "secret-word" not in json.dumps(record) and "secret-word" not in daemon.log_path.read_text()
    make.clear()


@pytest.mark.parametrize("which", ["denied", "unknown"])
def test_registries_that_refuse(guarded, which):
    daemon, references = guarded
    record = Maker(daemon.http()).build(references[which])
    assert record["status"] == "failed" and "refused" in said(record), said(record)
    assert "secret-word" not in json.dumps(record)


def test_an_authority_that_nobody_trusts(make, tmp_path, base):
    _, certificate, key = oci.authority(tmp_path)
    served = ImageRegistry(certificate=(certificate, key))
    try:
        record = make.build(served.push("private/app", Image([base])))
        assert record["status"] == "failed" and "certificate" in said(record).lower(), said(record)
    finally:
        served.close()


def test_registries_near_by_can_be_closed(own_daemon, registry, push):
    daemon = own_daemon("closed", images_private_registries="false").start()
    record = Maker(daemon.http()).build(push())
    assert record["status"] == "failed" and "not allowed" in said(record), said(record)


def test_a_build_that_the_daemon_does_not_survive(own_daemon, push):
    daemon = own_daemon("died").start()
    make = Maker(daemon.http())
    slow = {"post_build_cmd": "echo ran >> /ran; sleep 5"}
    begun = make.made(make.http.post("/v1/snapshots", {"oci_image": push(), "build_args": slow}), make.snapshots, "id")
    eventually(lambda: make.http.get(f"/v1/snapshots/{begun['id']}").json()["step"] == "command", 100)
    daemon.kill9()
    make = Maker(daemon.start().http())
    # It is made again from its beginning: nothing of the first try is in it.
    record = make.ended_build(begun["id"], 100)
    assert record["status"] == "ready", said(record)
    assert make.sh(make.vm(snapshot_id=record["id"]), "cat /ran") == "ran\n"
    daemon.assert_clean()


def trickle(blob, served):
    """Answers with a byte now and then, for as long as anybody listens."""

    def serve(request):
        request.start(200, len(blob))
        for at in range(len(blob)):
            if served.ended.wait(0.2):
                break
            request.wfile.write(blob[at : at + 1])
            request.wfile.flush()
        request.close_connection = True

    return serve


@pytest.mark.parametrize("how", [oci.stall, trickle], ids=["nothing", "a byte now and then"])
def test_a_registry_that_stalls(own_daemon, how):
    daemon = own_daemon("stalls", images_build_timeout_seconds=10).start()
    make, served = Maker(daemon.http()), ImageRegistry()
    try:
        layer = Layer.of(entry("x", os.urandom(100_000)))
        reference = served.push("stalls/here", Image([layer]))
        served.faults[layer.digest] = how(layer.blob, served)
        record, seconds = oci.seconds_of(lambda: make.build(reference, seconds=60))
        assert record["status"] == "failed" and record["step"] == "pull" and "10 s" in said(record), record
        assert seconds < 20
    finally:
        served.close()
    daemon.assert_clean()
