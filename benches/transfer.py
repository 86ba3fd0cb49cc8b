"""One file of 1 GiB up and down by curl, beside dd inside the same VM on the same disk."""

import os
import tempfile
from pathlib import Path

from figures import Distribution, Row, timed
from host import resident, spawned

SIZE = 1 << 30
ROUNDS = 3


def run(connection, session_id, script):
    return connection.execute(session_id, script, "bash", 300)


def measured(connection, session_id, script):
    """The seconds of a command inside the VM by its own clock."""
    out = run(connection, session_id, f'began=$EPOCHREALTIME; {script} 2>/dev/null; echo "$began $EPOCHREALTIME"')["stdout"]
    began, ended = map(float, out.split())
    return ended - began


def uncached(connection, session_id, path):
    """Empties the VM's page cache of a file, so that each reader has to fetch it from the disk."""
    run(connection, session_id, f"sync -f {path}; dd if={path} iflag=nocache count=0 status=none")


def curl(pool, *arguments):
    head = f"X-API-Key: {pool.daemon.key}"
    spawned("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--header", head, "--header", "Expect:", "--output", os.devnull, *arguments)


def upload(pool, session_id, source):
    curl(pool, "-F", "remote_path=/root/up", "-F", f"session_id={session_id}", "-F", f"file=@{source}", f"{pool.daemon.base_url}/upload")


def download(pool, session_id):
    curl(pool, "-d", f"session_id={session_id}", "-d", "filename=/root/up", f"{pool.daemon.base_url}/download")


def gigabyte(pool):
    connection = pool.connection
    session_id = connection.start(vm_lifetime_seconds=3600, memory_mb=4096)
    figures = {name: Distribution() for name in ("upload", "upload, synced", "dd", "dd, synced", "download", "dd reading")}
    most = before = resident(pool.pid)
    with tempfile.TemporaryDirectory(prefix="instavm-bench-", dir="/dev/shm") as folder:
        source = Path(folder) / "source"
        with open(source, "wb") as file:
            for _ in range(SIZE >> 24):
                file.write(os.urandom(1 << 24))
        for _ in range(ROUNDS):
            written = measured(connection, session_id, "dd if=/dev/zero of=/root/dd bs=1M count=1024")
            synced = measured(connection, session_id, "sync /root/dd")
            figures["dd"].add(written)
            figures["dd, synced"].add(written + synced)
            run(connection, session_id, "rm /root/dd; sync -f /root")
            sent = timed(upload, pool, session_id, source)[0]
            synced = measured(connection, session_id, "sync /root/up")
            figures["upload"].add(sent)
            figures["upload, synced"].add(sent + synced)
            most = max(most, resident(pool.pid, "VmHWM"))
            uncached(connection, session_id, "/root/up")
            figures["dd reading"].add(measured(connection, session_id, "dd if=/root/up of=/dev/null bs=1M"))
            uncached(connection, session_id, "/root/up")
            figures["download"].add(timed(download, pool, session_id)[0])
            run(connection, session_id, "rm /root/up; sync -f /root")
    after = resident(pool.pid)
    connection.kill(session_id)
    rates = {name: SIZE / values.p50 / 2**20 for name, values in figures.items()}
    up = rates["upload, synced"] / rates["dd, synced"]
    down = rates["download"] / rates["dd reading"]
    flat = most - before < 64 << 20
    return Row(
        "upload and download of 1 GiB by curl",
        "at least half of dd to the same VM disk; the daemon's memory flat",
        f"upload {up:.2f} of dd, download {down:.2f} of dd; daemon {before >> 20} MiB before, {after >> 20} after, {most >> 20} at most",
        up >= 0.5 and down >= 0.5 and flat,
        [f"{name:<16}{values.told(1, 's')}  {rates[name]:.0f} MiB/s" for name, values in figures.items()]
        + [f"without the sync, upload is {rates['upload'] / rates['dd']:.2f} of dd"],
        "Random content from memory. Writers are compared with the time of a `sync` of the file added to both (dd writes zeros with `bs=1M`). Readers"
        " are compared after the VM's page cache of the file was emptied. `dd` is timed inside the VM, curl as a whole on the host.",
    )
