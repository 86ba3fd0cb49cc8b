"""Snapshots, clones, many VMs from one snapshot, and checkpoints of volumes: whatever the size, one step."""

import json
import shutil
import threading
import time

from figures import Distribution, Row, number, timed
from host import memory, spawned
from wire import at_once

SIZES_MB = (1, 100, 1024, 5120)
ROUNDS = 10
CROWD = 100
CHECKPOINT_MB = 5120
# A plain copy of more than this takes minutes and says nothing new.
COPY_MB = 1024

# Sleeps a millisecond at a time and tells the longest gaps: what a pause looks like from inside.
WATCH = """
import time
gaps, last, end = [], time.monotonic(), time.monotonic() + {seconds}
while last < end:
    time.sleep(0.001)
    now = time.monotonic()
    gaps.append(now - last)
    last = now
print(max(gaps))
"""


def create(connection, **fields):
    return json.loads(connection.exchange(connection.built("/v1/vms?wait=true", {"vm_lifetime_seconds": 3600, **fields})))


def end(connection, vm):
    connection.exchange(connection.built(f"/v1/vms/{vm['vm_id']}", None, "DELETE"))


def snapshot(connection, vm):
    return json.loads(connection.exchange(connection.built(f"/v1/vms/{vm['vm_id']}/snapshot?wait=true", {"name": "bench"})))


def forget(connection, taken):
    connection.exchange(connection.built(f"/v1/snapshots/{taken['id']}", None, "DELETE"))


def write(connection, session_id, path, megabytes):
    """Puts a file of random blocks there, and lets it settle."""
    script = f"head -c 1M /dev/urandom > /root/block; for i in $(seq {megabytes}); do cat /root/block; done > {path}; rm /root/block; sync -f {path}"
    connection.execute(session_id, script, "bash", 300)


def disk_of(pool, before):
    """The folder of the machine that has come since."""
    (name,) = [name for name in pool.machines() if name not in before]
    return pool.daemon.data_dir / "pool/disks" / name


def copies(disk, megabytes):
    """The seconds of `cp -a --reflink` of a whole disk, and of a plain `cp -a`."""
    seconds = []
    for option in ("--reflink=always", "--reflink=never"):
        if option.endswith("never") and megabytes > COPY_MB:
            seconds.append(None)
            continue
        target = disk.parent.parent / "bench-copy"
        seconds.append(timed(spawned, "cp", "-a", option, disk, target)[0])
        shutil.rmtree(target)
    return seconds


def gap_inside(pool, session_id, seconds, during):
    """The longest gap that a program in the VM saw while something else happened."""
    told = []
    other = pool.connect()

    def watch():
        told.append(float(other.execute(session_id, WATCH.format(seconds=seconds))["stdout"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.2)  # the program runs
    during()
    watcher.join()
    other.close()
    return told[0]


def snapshots(cold):
    """One row of snapshots at each size, and one of clones."""
    connection = cold.connection
    details, worst, pauses, clones, first_python = [], 0, Distribution(), {}, Distribution()
    for megabytes in SIZES_MB:
        before = cold.machines()
        vm = create(connection)
        disk = disk_of(cold, before)
        write(connection, vm["session_id"], "/root/changed", megabytes)
        taken = Distribution()

        def take():
            for _ in range(ROUNDS):
                seconds, made = timed(snapshot, connection, vm)
                taken.add(seconds)
                pauses.add(made["pause_ms"] / 1000)
                forget(connection, made)

        quiet = gap_inside(cold, vm["session_id"], 2, lambda: None)
        gap = gap_inside(cold, vm["session_id"], 3, take)
        reflink, plain = copies(disk, megabytes)
        worst = max(worst, taken.p50)
        beside = f"cp -a --reflink {number(1000 * reflink)} ms, cp -a {'not run' if plain is None else number(1000 * plain) + ' ms'}"
        details.append(f"{megabytes:>5} MB changed   {taken.told()}; longest gap inside {number(1000 * gap)} ms (without {number(1000 * quiet)}); {beside}")
        clones[megabytes] = Distribution()
        for _ in range(ROUNDS):
            seconds, in_python = clone_to_first_answer(connection, vm)
            clones[megabytes].add(seconds)
            first_python.add(in_python)
        end(connection, vm)
        cold.settle()
    slowest = max(values.p50 for values in clones.values())
    return [
        Row(
            "snapshot of a running VM, settled disk",
            "flat whatever has changed, p50 under 20 ms, the VM's pause under 20 ms",
            f"p50 {1000 * worst:.1f} ms at the slowest size, pause p50 {1000 * pauses.p50:.1f} ms",
            worst < 0.020 and pauses.p50 < 0.020,
            [*details, f"pause as answered  {pauses.told()}"],
            "`POST /v1/vms/{id}/snapshot?wait=true`, ten at each size. Beside it, `cp -a` of the same disk on the same file system.",
        ),
        Row(
            "clone to its first answer",
            "p50 under 40 ms at every size",
            f"p50 {1000 * slowest:.1f} ms at the slowest size",
            slowest < 0.040,
            [f"{megabytes:>5} MB changed   {values.told()}" for megabytes, values in clones.items()] + [f"until Python answered too  {first_python.told()}"],
            "`POST /v1/vms/{id}/clone?wait=true`, then `echo 1` in the clone; then `print(1)`, for which its interpreter is started.",
        ),
    ]


def clone_to_first_answer(connection, vm):
    began = time.perf_counter()
    clone = json.loads(connection.exchange(connection.built(f"/v1/vms/{vm['vm_id']}/clone?wait=true", {})))
    connection.execute(clone["session_id"], "echo 1", "bash")
    answered = time.perf_counter() - began
    connection.execute(clone["session_id"], "print(1)")
    in_python = time.perf_counter() - began
    end(connection, clone)
    return answered, in_python


def from_one_snapshot(cold):
    """A hundred VMs by one call, until each of them has answered."""
    connection = cold.connection
    vm = create(connection)
    write(connection, vm["session_id"], "/root/shared", 100)
    taken = snapshot(connection, vm)
    end(connection, vm)
    connections = [cold.connect() for _ in range(CROWD)]
    totals, makings, each = Distribution(), Distribution(), Distribution()
    for _ in range(3):
        cold.settle()
        free = memory()
        began = time.perf_counter()
        vms = create(connection, snapshot_id=taken["id"], count=CROWD)["vms"]
        makings.add(time.perf_counter() - began)
        requests = [one.execute_request(vm["session_id"], "echo 1", "bash") for one, vm in zip(connections, vms, strict=True)]
        at_once(connections, requests)
        totals.add(time.perf_counter() - began)
        each.add((free - memory()) / CROWD)
        for made in vms:
            end(connection, made)
    for one in connections:
        one.close()
    cold.settle()
    forget(connection, taken)
    return Row(
        f"{CROWD} VMs from one snapshot by `count`",
        "under 1 s until all answer; memory shared",
        f"{totals.p50:.2f} s, {each.p50 / 2**20:.2f} MiB of memory each",
        totals.p50 < 1,
        [f"made            {makings.told(1, 's')}", f"all answered    {totals.told(1, 's')}", f"memory each     {each.told(1 / 2**20, 'MiB')}"],
        f"One `POST /v1/vms` with `count: {CROWD}`, then `echo 1` in each of them, sent in one go. Memory is what MemAvailable lost.",
    )


def checkpoints(cold):
    """Checkpoints of a volume that holds 5 GB."""
    connection = cold.connection
    volume = connection.post("/v1/volumes", {"name": "bench", "quota_bytes": 8 << 30})
    vm = create(connection, volumes=[{"volume_id": volume["id"], "mount_path": "/data", "mode": "rw"}])
    write(connection, vm["session_id"], "/data/file", CHECKPOINT_MB)
    taken = Distribution()
    for _ in range(ROUNDS):
        seconds, made = timed(connection.post, f"/v1/volumes/{volume['id']}/checkpoints", {})
        taken.add(seconds)
        connection.exchange(connection.built(f"/v1/volumes/{volume['id']}/checkpoints/{made['id']}", None, "DELETE"))
    end(connection, vm)
    cold.settle()
    connection.exchange(connection.built(f"/v1/volumes/{volume['id']}", None, "DELETE"))
    return Row(
        f"checkpoint of a volume of {CHECKPOINT_MB} MB",
        "p50 under 15 ms",
        f"p50 {1000 * taken.p50:.1f} ms",
        taken.p50 < 0.015,
        [f"checkpoint      {taken.told()}"],
        "`POST /v1/volumes/{id}/checkpoints` while a VM has the volume mounted, ten times.",
    )
