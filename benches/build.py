"""A snapshot built from an OCI image of a registry on this machine, beside the tools that only copy and unpack it."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import requests

from figures import Distribution, Row, timed
from host import spawned
from peers import free_port

ROUNDS = 3
SIZE_MB = 150
SECONDS = 120


class Registry:
    """Debian's docker-registry on a free port of the loopback interface."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="instavm-bench-")
        self.path = Path(self.folder.name)
        self.host = f"127.0.0.1:{free_port()}"
        config = {"version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(self.path / "blobs")}}, "http": {"addr": self.host}}
        (self.path / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        with open(self.path / "log", "wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", self.path / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                requests.get(f"http://{self.host}/v2/", timeout=5).raise_for_status()
                return
            except requests.ConnectionError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.close()
                    raise
                time.sleep(0.05)

    def push(self, image, tag):
        """Packs this checkout's kind of content, new each time so that nothing is cached: SIZE_MB before compression."""
        layout, bundle = self.path / f"layout-{tag}", self.path / f"bundle-{tag}"
        spawned("umoci", "init", "--layout", layout)
        spawned("umoci", "new", "--image", f"{layout}:latest")
        spawned("umoci", "unpack", "--image", f"{layout}:latest", bundle)
        fill(bundle / "rootfs", image)
        spawned("umoci", "repack", "--image", f"{layout}:latest", bundle)
        reference = f"{self.host}/bench:{tag}"
        spawned("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{reference}")
        shutil.rmtree(layout)
        shutil.rmtree(bundle)
        return reference

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def fill(root, image):
    """Copies programs of the image that VMs start from until there is enough, and one file that no other image has."""
    left = SIZE_MB << 20
    for folder in ("usr/lib/x86_64-linux-gnu", "usr/bin", "usr/share"):
        for path in sorted((image / folder).rglob("*")):
            if left <= 0:
                break
            if path.is_file() and not path.is_symlink():
                target = root / path.relative_to(image)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
                left -= path.stat().st_size
    (root / "unique").write_bytes(os.urandom(1 << 20))


def built(connection, reference):
    made = connection.post("/v1/snapshots", {"oci_image": reference, "name": "bench"})
    deadline = time.monotonic() + SECONDS
    while True:
        record = json.loads(connection.get(f"/v1/snapshots/{made['id']}"))
        if record["status"] == "ready":
            connection.exchange(connection.built(f"/v1/snapshots/{made['id']}", None, "DELETE"))
            return
        if record["status"] == "failed" or time.monotonic() > deadline:
            raise RuntimeError(f"the build does not end well: {record}")
        time.sleep(0.01)


def copied(reference, folder):
    layout, bundle = folder / "layout", folder / "bundle"
    spawned("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:latest")
    spawned("umoci", "unpack", "--image", f"{layout}:latest", bundle)


def build(pool):
    ours, theirs = Distribution(), Distribution()
    registry = Registry()
    try:
        for number in range(ROUNDS):
            reference = registry.push(pool.image(), str(number))
            ours.add(timed(built, pool.connection, reference)[0])
            with tempfile.TemporaryDirectory(prefix="instavm-bench-", dir=pool.daemon.data_dir) as folder:
                theirs.add(timed(copied, reference, Path(folder))[0])
    finally:
        registry.close()
    ratio = ours.p50 / theirs.p50
    return Row(
        f"snapshot built from an OCI image of {SIZE_MB} MB on a local registry",
        "within 1.5× of skopeo copy and umoci unpack",
        f"{ratio:.2f}× of them, p50 {ours.p50:.2f} s",
        ratio <= 1.5,
        [f"InstaVM         {ours.told(1, 's')}", f"skopeo, umoci   {theirs.told(1, 's')}"],
        "`POST /v1/snapshots` without build arguments until its status is `ready`: pull, unpack, boot a VM from it, save its disk. Each round"
        " has an image of its own. The peers copy it into an OCI layout and unpack that; they boot nothing.",
    )
