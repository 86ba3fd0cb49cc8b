"""What the figures were taken on, and how busy it was."""

import os
import platform
import subprocess
import time
from pathlib import Path

from figures import Distribution, timed

CALIBRATIONS = 30


def spawned(*command, **options):
    """Runs a program to its end; fails when it does."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: exit status {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout.decode(errors="replace")


def calibration():
    """What starting and reaping /bin/true takes at this moment: tells a busy minute from a quiet one."""
    return Distribution(timed(spawned, "/bin/true")[0] for _ in range(CALIBRATIONS))


def load():
    return "load {:.1f} {:.1f} {:.1f}".format(*os.getloadavg())


def memory(field="MemAvailable"):
    """A field of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/meminfo has no {field}")


def facts():
    """The host in a few lines."""
    processor = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return {
        "processors": f"{os.cpu_count()} × {processor}",
        "memory": f"{memory('MemTotal') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": system,
        "taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def first_line(*command):
    return spawned(*command).strip().splitlines()[0]


def resident(pid, field="VmRSS"):
    """The memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no {field}")


def proportional(pid):
    """The proportional set size of a process and its anonymous part, in bytes."""
    fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]}
    return fields["Pss"], fields["Pss_Anon"]


def children(pid):
    """The direct children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
