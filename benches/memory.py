"""What an idle VM takes."""

import time
from pathlib import Path

from figures import Distribution, Row
from host import memory, proportional, resident

VMS = 100
# The most that other programs may disturb a figure, in MiB a VM.
QUIET = 0.5
SAMPLES = 10
MIB = 1 << 20


def available():
    """MemAvailable while nothing of ours happens: the median of some seconds, and how far the samples are apart."""
    samples = Distribution()
    for _ in range(SAMPLES):
        time.sleep(0.2)
        samples.add(memory())
    return samples.p50, samples.at(1) - samples.at(0)


def processes(machines):
    """The processes of machines, by their cgroups."""
    found = set()
    for machine in machines:
        for folder in (*Path("/sys/fs/cgroup").glob(f"*/{machine}"), *Path("/sys/fs/cgroup").glob(f"*/*/{machine}")):
            found |= {int(word) for word in (folder / "cgroup.procs").read_text().split()}
    return found


def charged(machines):
    """What the memory controller has charged to machines: anonymous memory, page cache, kernel memory."""
    anonymous = cache = kernel = 0
    for machine in machines:
        for folder in (*Path("/sys/fs/cgroup").glob(f"*/{machine}"), *Path("/sys/fs/cgroup").glob(f"*/*/{machine}")):
            if not (folder / "memory.stat").exists():
                continue
            fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            anonymous += int(fields.get("rss", fields.get("anon", 0)))
            cache += int(fields.get("cache", fields.get("file", 0)))
            usage = folder / "memory.kmem.usage_in_bytes"
            kernel += int(usage.read_text()) if usage.exists() else int(fields.get("kernel", 0))
    return anonymous, cache, kernel


class Snapshot:
    """The memory of the host, the daemon and its VMs at one moment."""

    def __init__(self, instance):
        instance.settle()
        time.sleep(1)
        self.available, self.spread = available()
        self.daemon = resident(instance.pid)
        machines = instance.machines()
        self.charged = charged(machines)
        sets = [proportional(pid) for pid in processes(machines)]
        self.proportional = sum(whole for whole, _ in sets)
        self.anonymous = sum(part for _, part in sets)


def difference(title, before, after, drift):
    each = (before.available - drift - after.available) / VMS
    anonymous, cache, kernel = (figure / VMS / MIB for figure in after.charged)
    lines = [
        f"{title}: MemAvailable less by {each / MIB:.2f} MiB a VM, of it the daemon {(after.daemon - before.daemon) / VMS / MIB:.2f}",
        f"{'':<{len(title) + 2}}its processes: PSS {after.proportional / VMS / MIB:.2f} MiB, anonymous {after.anonymous / VMS / MIB:.2f}; its cgroup: anonymous {anonymous:.2f}, page cache {cache:.2f}, kernel {kernel:.2f}",
    ]
    return each / MIB, lines


def idle(cold):
    """With the pool off a VM has no interpreter until its first Python execution."""
    before = Snapshot(cold)
    sessions = [cold.connection.start(vm_lifetime_seconds=3600) for _ in range(VMS)]
    plain = Snapshot(cold)
    for session_id in sessions:
        cold.connection.execute(session_id, "print(1)")
    loaded = Snapshot(cold)
    for session_id in sessions:
        cold.connection.kill(session_id)
    end = Snapshot(cold)
    # What other programs took or gave back meanwhile shows at the end, and is shared out evenly over the time.
    drift = before.available - end.available
    without, first = difference("without interpreter", before, plain, drift / 3)
    with_it, second = difference("with interpreter", before, loaded, 2 * drift / 3)
    noise = max(one.spread for one in (before, plain, loaded, end))
    quiet = max(abs(drift), noise) / VMS / MIB < QUIET
    return Row(
        "own memory of an idle VM, without interpreter / with",
        "under 1.5 MiB / under 12 MiB",
        f"{without:.2f} MiB / {with_it:.2f} MiB" + ("" if quiet else ": NOT CONTROLLED, other programs took or gave back more than these figures"),
        quiet and without < 1.5 and with_it < 12,
        [*first, *second, f"other programs meanwhile: {drift / VMS / MIB:+.2f} MiB a VM over the whole time (taken out), {noise / VMS / MIB:.2f} within two seconds"],
        f"{VMS} VMs, pool off. The figure is what MemAvailable lost, divided by their number, so it holds the kernel's and the daemon's part;"
        f" each time the median of {SAMPLES} samples over two seconds of rest, less the drift of the host between the first and the last. Page cache that the kernel can drop is not in it; PSS and the cgroups"
        " count that too.",
    )
