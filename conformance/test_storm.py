"""kill -9 under load, again and again: no acknowledged record is lost, variables live on, nothing is left over."""

import hashlib
import os
import random
import threading
import time

import pytest
import requests
from daemon import Maker, eventually

ROUNDS = int(os.environ.get("INSTAVM_SOAK_ROUNDS", "10"))
OPERATIONS = int(os.environ.get("INSTAVM_SOAK_OPERATIONS", "100"))
SEED = int(os.environ.get("INSTAVM_SOAK_SEED", "11"))
WORKERS = 4
VARIABLES = 4


class Load:
    """Callers that create, execute, start tasks and kill, and remember everything that was acknowledged to them."""

    def __init__(self, http):
        self.http = http
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.created, self.killed, self.tasks, self.unexpected = set(), set(), {}, []
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(WORKERS)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        chance = random.Random(number)
        http = type(self.http)(self.http.base_url, self.http.key)
        while not self.stop.is_set():
            try:
                self.turn(http, chance)
            except requests.exceptions.RequestException:
                return  # the daemon is gone: this round is over

    def turn(self, http, chance):
        answer = http.post("/v1/sessions/session", {"api_key": http.key, "memory_mb": 256}, timeout=60)
        if answer.status_code in (429, 503, 504):
            return
        if answer.status_code != 200:
            return self.note(answer)
        session_id = answer.json()["session_id"]
        with self.lock:
            self.created.add(session_id)
        self.expect(http.post("/execute", {"command": "print(1)", "session_id": session_id}, timeout=60))
        word = str(chance.random())
        answer = http.post("/execute_async", {"command": f"echo {word}", "session_id": session_id, "language": "bash"}, timeout=60)
        if answer.status_code in (200, 202):
            with self.lock:
                self.tasks[answer.json()["task_id"]] = word
        else:
            self.note(answer)
        answer = http.post("/kill", {"session_id": session_id}, timeout=60)
        if answer.status_code == 200:
            with self.lock:
                self.killed.add(session_id)
        else:
            self.note(answer)

    def expect(self, answer):
        if answer.status_code != 200 or answer.json()["stdout"] != "1\n":
            self.note(answer)

    def note(self, answer):
        with self.lock:
            self.unexpected.append((answer.status_code, answer.text[:300]))

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.soak
@pytest.mark.timeout(120 + ROUNDS * 60)
def test_kill_9_under_load(own_daemon):
    daemon = own_daemon("storm").start()
    http = daemon.http()
    kept = {http.start_session(vm_lifetime_seconds=86_400, memory_mb=256): number for number in range(VARIABLES)}
    for session_id, number in kept.items():
        http.execute(session_id, f"kept = {number}; rounds = 0")
    chance = random.Random(7)
    for round_number in range(1, ROUNDS + 1):
        load = Load(daemon.http())
        time.sleep(0.3 + 2 * chance.random())  # the moment of the kill is what varies
        daemon.kill9()
        load.end()
        assert load.unexpected == [], f"round {round_number}"
        daemon.start()
        survivors(daemon.http(), load, round_number)
        for session_id, number in kept.items():
            result = daemon.http().execute(session_id, "rounds += 1; print(kept, rounds)")
            assert result["stdout"] == f"{number} {round_number}\n", (round_number, result)
        clear(daemon.http(), load, kept)
        print(f"round {round_number}: {len(load.created)} sessions, {len(load.killed)} killed, {len(load.tasks)} tasks")
    daemon.assert_clean()


def survivors(http, load, round_number):
    """Everything that was acknowledged is there, as it was acknowledged."""
    for session_id in load.created:
        answer = http.get(f"/v1/sessions/session/{session_id}")
        assert answer.status_code == 200, (round_number, session_id, answer.text)
        if session_id in load.killed:
            assert answer.json()["status"] == "terminated", (round_number, answer.text)
    for task_id, word in load.tasks.items():
        answer = http.get(f"/v1/executions/{task_id}")
        assert answer.status_code == 200, (round_number, task_id, answer.text)
        record = answer.json()
        if record["is_complete"] and record["status"] == "completed" and record["exit_code"] == 0:
            assert record["serialized_stdout"] == f"{word}\n"


def clear(http, load, kept):
    for vm in http.get("/v1/vms").json():
        if vm["session_id"] not in kept:
            http.delete(f"/v1/vms/{vm['vm_id']}")
    assert {vm["session_id"] for vm in http.get("/v1/vms").json()} >= set(kept)


class World:
    """What was acknowledged of VMs, snapshots, volumes, checkpoints and mounts, and operations that change it.

    Now and then the daemon is killed in the middle of one. A request that got no answer is repeated under its key: then
    there has to be one of what it makes, as there would be without the kill.
    """

    MOST = {"vms": 6, "snapshots": 6, "volumes": 4}
    KILLS = 0.15

    def __init__(self, daemon, seed):
        self.daemon, self.http = daemon, daemon.http()
        self.chance = random.Random(seed)
        self.vms, self.snapshots, self.volumes = {}, {}, {}
        self.number = self.kills = 0
        self.counts = {}

    # Requests, with a kill in some of them

    def ask(self, method, path, body=None, retried=(), **options):
        """An answer, if need be at the second try; statuses of `retried` are as good as success then."""
        self.number += 1
        headers = {"Idempotency-Key": f"storm-{self.number}"} if method == "POST" else {}
        call = lambda: self.http.request(method, path, json=body, headers=headers, **options)  # noqa: E731
        if self.chance.random() >= self.KILLS:
            return call()
        self.kills += 1
        killer = threading.Timer(self.chance.uniform(0, 0.2), self.daemon.kill9)
        killer.start()
        try:
            answer = call()
        except requests.exceptions.RequestException:
            answer = None
        killer.join()
        self.http = self.daemon.start().http()
        self.daemon.assert_clean()
        if answer is None:
            answer = call()
            if answer.status_code == 409 and "send it again" in answer.text:
                answer = call()  # what had begun was undone
            if answer.status_code in retried:
                answer.status_code = 200
        return answer

    def good(self, *arguments, **options):
        answer = self.ask(*arguments, **options)
        assert answer.status_code in (200, 201, 202), (self.number, arguments, answer.status_code, answer.text[:500])
        return answer.json() if answer.content else {}

    def shell(self, vm, command):
        body = {"command": command, "session_id": self.vms[vm]["session"], "language": "bash", "timeout": 30}
        result = self.good("POST", "/execute", body, timeout=60)
        assert result["exit_code"] == 0, (self.number, command, result)
        return result["stdout"]

    def pick(self, kind):
        return self.chance.choice(sorted(kind)) if kind else None

    # VMs and snapshots

    def create_vm(self):
        if len(self.vms) >= self.MOST["vms"]:
            return self.delete_vm()
        snapshot, volume = self.pick(self.snapshots), self.pick(self.volumes)
        body = {"memory_mb": 256, "vcpu_count": 1, "vm_lifetime_seconds": 86_400}
        if snapshot and self.chance.random() < 0.5:
            body["snapshot_id"] = snapshot
        mount = volume and not self.writer(volume) and self.chance.random() < 0.4
        if mount:
            body["volumes"] = [{"volume_id": volume, "mount_path": "/mnt/first", "mode": "rw"}]
        made = self.good("POST", "/v1/vms", body)
        files = dict(self.snapshots[body["snapshot_id"]]) if "snapshot_id" in body else {}
        self.vms[made["vm_id"]] = {"session": made["session_id"], "files": files, "from": body.get("snapshot_id"), "mounts": {}}
        if mount:
            self.vms[made["vm_id"]]["mounts"]["/mnt/first"] = (volume, "rw", None)

    def write(self):
        if vm := self.pick(self.vms):
            name, text = self.content()
            self.shell(vm, f"mkdir -p /app/kept && cd /app/kept && {text[0]} > {name}.new && mv {name}.new {name}")
            self.vms[vm]["files"][name] = text[1]

    def content(self):
        """A name that was never used, and content: how to make it, and its digest."""
        first, last = self.number, self.number + self.chance.randrange(1, 40_000)
        data = "".join(f"{line}\n" for line in range(first, last + 1)).encode()
        return f"file-{self.number}", (f"seq {first} {last}", hashlib.sha256(data).hexdigest(), data)

    def snapshot(self):
        if len(self.snapshots) >= self.MOST["snapshots"]:
            return self.delete_snapshot()
        if vm := self.pick(self.vms):
            files = dict(self.vms[vm]["files"])
            self.snapshots[self.good("POST", f"/v1/vms/{vm}/snapshot", {"name": f"s{self.number}"})["id"]] = files

    def clone(self):
        vm = self.pick(self.vms)
        if vm and len(self.vms) < self.MOST["vms"]:
            made = self.good("POST", f"/v1/vms/{vm}/clone", {})
            self.vms[made["vm_id"]] = {"session": made["session_id"], "files": dict(self.vms[vm]["files"]), "from": None, "mounts": {}}

    def delete_vm(self):
        if vm := self.pick(self.vms):
            self.good("DELETE", f"/v1/vms/{vm}")
            del self.vms[vm]

    def delete_snapshot(self):
        if snapshot := self.pick(self.snapshots):
            used = [vm for vm in self.vms.values() if vm["from"] == snapshot]
            answer = self.ask("DELETE", f"/v1/snapshots/{snapshot}", retried=(404,))
            assert answer.status_code == (409 if used else 200), (self.number, answer.status_code, answer.text)
            if not used:
                del self.snapshots[snapshot]

    def resize(self):
        if vm := self.pick(self.vms):
            memory = self.chance.choice([256, 320, 512])
            assert self.good("PATCH", f"/v1/vms/{vm}", {"memory_mb": memory})["memory_mb"] == memory

    # Volumes, checkpoints, mounts

    def mounts_of(self, volume):
        return [(vm, path, mode, checkpoint) for vm, one in self.vms.items() for path, (held, mode, checkpoint) in one["mounts"].items() if held == volume]

    def writer(self, volume):
        return next((vm for vm, _, mode, _ in self.mounts_of(volume) if mode == "rw"), None)

    def create_volume(self):
        if len(self.volumes) >= self.MOST["volumes"]:
            return self.delete_volume()
        made = self.good("POST", "/v1/volumes", {"name": f"v{self.number}", "quota_bytes": 256 << 20})
        self.volumes[made["id"]] = {"files": {}, "checkpoints": {}}

    def delete_volume(self):
        if volume := self.pick(self.volumes):
            held = self.mounts_of(volume)
            answer = self.ask("DELETE", f"/v1/volumes/{volume}", retried=(404,))
            assert answer.status_code == (409 if held else 200), (self.number, answer.status_code, answer.text)
            if not held:
                del self.volumes[volume]

    def upload(self):
        if volume := self.pick(self.volumes):
            name, (_, digest, data) = self.content()
            parts = {"path": (None, f"up/{name}"), "overwrite": (None, "true"), "file": ("x", data)}
            self.good("POST", f"/v1/volumes/{volume}/files/upload", files=parts)
            self.volumes[volume]["files"][f"up/{name}"] = digest

    def write_mounted(self):
        written = [(vm, path, held) for vm, one in sorted(self.vms.items()) for path, (held, mode, _) in one["mounts"].items() if mode == "rw"]
        if written:
            vm, path, volume = self.chance.choice(written)
            name, (text, digest, _) = self.content()
            self.shell(vm, f"cd {path} && {text} > {name}.new && mv {name}.new {name}")
            self.volumes[volume]["files"][name] = digest

    def checkpoint(self):
        if volume := self.pick(self.volumes):
            files = dict(self.volumes[volume]["files"])
            self.volumes[volume]["checkpoints"][self.good("POST", f"/v1/volumes/{volume}/checkpoints", {})["id"]] = files

    def delete_checkpoint(self):
        volume = self.pick(self.volumes)
        if volume and (checkpoint := self.pick(self.volumes[volume]["checkpoints"])):
            held = [one for one in self.mounts_of(volume) if one[3] == checkpoint]
            answer = self.ask("DELETE", f"/v1/volumes/{volume}/checkpoints/{checkpoint}", retried=(404,))
            assert answer.status_code == (409 if held else 200), (self.number, answer.status_code, answer.text)
            if not held:
                del self.volumes[volume]["checkpoints"][checkpoint]

    def mount(self):
        vm, volume = self.pick(self.vms), self.pick(self.volumes)
        if not vm or not volume or len(self.vms[vm]["mounts"]) > 3:
            return
        checkpoint = self.pick(self.volumes[volume]["checkpoints"]) if self.chance.random() < 0.4 else None
        mode = "ro" if checkpoint or self.chance.random() < 0.3 else "rw"
        path = f"/mnt/{self.number}"
        body = {"volume_id": volume, "mount_path": path, "mode": mode, **({"checkpoint_id": checkpoint} if checkpoint else {})}
        taken = mode == "rw" and self.writer(volume)
        answer = self.ask("POST", f"/v1/vms/{vm}/volumes", body, retried=() if taken else (409,))
        assert answer.status_code == (409 if taken else 200), (self.number, answer.status_code, answer.text)
        if not taken:
            self.vms[vm]["mounts"][path] = (volume, mode, checkpoint)

    def unmount(self):
        vm = self.pick([vm for vm, one in self.vms.items() if one["mounts"]])
        if vm:
            path = self.pick(self.vms[vm]["mounts"])
            volume = self.vms[vm]["mounts"][path][0]
            answer = self.ask("DELETE", f"/v1/vms/{vm}/volumes/{volume}", params={"mount_path": path}, retried=(404,))
            assert answer.status_code == 200, (self.number, answer.text)
            del self.vms[vm]["mounts"][path]

    OPERATIONS = (
        [create_vm] * 4 + [write] * 4 + [snapshot] * 3 + [clone] * 2 + [delete_vm] * 2 + [delete_snapshot] + [resize]
        + [create_volume] * 3 + [delete_volume] + [upload] * 2 + [write_mounted] * 3 + [checkpoint] * 2 + [delete_checkpoint] + [mount] * 4 + [unmount] * 2
    )  # fmt: skip

    def step(self):
        operation = self.chance.choice(self.OPERATIONS)
        self.counts[operation.__name__] = self.counts.get(operation.__name__, 0) + 1
        operation(self)

    # Whether all of it is there

    def listed(self, path, key):
        return {one[key] for one in self.http.get(path).json()}

    def verify(self):
        assert self.listed("/v1/vms", "vm_id") == set(self.vms)
        assert self.listed("/v1/volumes", "id") == set(self.volumes)
        assert self.listed("/v1/snapshots", "id") == set(self.snapshots)
        for vm, known in self.vms.items():
            mounted = {one["mount_path"]: (one["volume_id"], one["mode"], one["checkpoint_id"]) for one in self.http.get(f"/v1/vms/{vm}/volumes").json()}
            assert mounted == known["mounts"], vm
            self.compare(vm, "/app/kept", known["files"])
            for path, (volume, _, checkpoint) in mounted.items():
                files = self.volumes[volume]["checkpoints"][checkpoint] if checkpoint else self.volumes[volume]["files"]
                self.compare(vm, path, files)
        for volume, known in self.volumes.items():
            assert self.listed(f"/v1/volumes/{volume}/checkpoints", "id") == set(known["checkpoints"])
            for path, digest in known["files"].items():
                assert hashlib.sha256(Maker(self.http).content({"id": volume}, path)).hexdigest() == digest, (volume, path)

    def compare(self, vm, folder, files):
        command = f"cd {folder} 2>/dev/null && find . -type f -exec sha256sum {{}} +"
        result = self.http.execute(self.vms[vm]["session"], command, "bash", 30)
        found = dict(reversed(line.split("  ./", 1)) for line in result["stdout"].splitlines())
        assert files.items() <= found.items(), (vm, folder, set(files) - set(found), result)

    def verify_snapshots(self):
        """Starts a VM from each; all others have to make room."""
        for vm in list(self.vms):
            assert self.http.delete(f"/v1/vms/{vm}").status_code == 200
        self.vms.clear()
        for snapshot, files in self.snapshots.items():
            make = Maker(self.http)
            vm = make.vm(snapshot_id=snapshot)
            self.vms[vm["vm_id"]] = {"session": vm["session_id"]}
            self.compare(vm["vm_id"], "/app/kept", files)
            make.clear()
            del self.vms[vm["vm_id"]]
        for volume, known in self.volumes.items():
            vm = Maker(self.http).vm(volumes=[{"volume_id": volume, "mount_path": f"/at/{one}", "mode": "ro", "checkpoint_id": one} for one in list(known["checkpoints"])[:16]])
            self.vms[vm["vm_id"]] = {"session": vm["session_id"]}
            for one in list(known["checkpoints"])[:16]:
                self.compare(vm["vm_id"], f"/at/{one}", known["checkpoints"][one])
            assert self.http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
            del self.vms[vm["vm_id"]]

    def clear(self):
        for path in [f"/v1/volumes/{one}" for one in self.volumes] + [f"/v1/snapshots/{one}" for one in self.snapshots]:
            eventually(lambda: self.http.delete(path).status_code == 200, 10, what=path)


def disks(daemon):
    """How many trees the pool has, as the file system tells."""
    pool = daemon.data_dir / "pool"
    return sum(1 for folder in pool.iterdir() if folder.is_dir() for _ in folder.iterdir())


@pytest.mark.soak
@pytest.mark.timeout(200 + OPERATIONS * 5)
def test_random_operations_on_vms_snapshots_and_volumes(own_daemon):
    daemon = own_daemon("world", pool_size=1).start()
    before = disks(daemon)
    world = World(daemon, SEED)
    print(f"seed {SEED} (INSTAVM_SOAK_SEED), {OPERATIONS} operations (INSTAVM_SOAK_OPERATIONS)")
    for number in range(OPERATIONS):
        world.step()
        if number % 25 == 24:
            world.verify()
    world.verify()
    world.verify_snapshots()
    world.clear()
    daemon.assert_clean()
    eventually(lambda: disks(daemon) <= before, 60, 0.2, "nothing is left of what was deleted")
    print(f"{world.kills} kills; {dict(sorted(world.counts.items()))}")
    daemon.stop()
    assert daemon.command("destroy").returncode == 0
    assert not (daemon.data_dir / "pool").is_mount()
