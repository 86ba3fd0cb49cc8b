"""Hostile code stays inside its VM, and what a VM is given is what the documentation says."""

import concurrent.futures
import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from daemon import eventually

from instavm import ExecutionError

# Bits of /proc/self/status that no process of a VM may have outside of its user namespace are proved by what fails;
# these, by what it says.
MASKED = ("/proc/kcore", "/proc/sysrq-trigger", "/proc/kmsg", "/sys/firmware", "/proc/timer_list")


@pytest.fixture
def neighbour(clients):
    """Another VM, which has to be well whatever its neighbour does."""
    other = clients()
    other.execute("witness = 'unharmed'")
    yield other
    started = time.monotonic()
    assert other.execute("print(witness)", timeout=20)["stdout"] == "unharmed\n"
    assert time.monotonic() - started < 10


def attempt(client, code, language="bash", timeout=20):
    """Runs code that may end in any way but has to be answered; 409 says that the VM has run out of something."""
    try:
        return client.execute(code, language=language, timeout=timeout)
    except ExecutionError as error:
        assert "409" in str(error), error
        return None


def still_works(client):
    result = eventually(lambda: recovered(client), 30, 0.5, "the VM executes code again")
    assert result["stdout"] == "well\n"


def recovered(client):
    result = attempt(client, "print('well')", "python", 10)
    return result if result and result["exit_code"] == 0 else None


# What hostile code does to the machine


def test_a_fork_bomb_stays_inside(client, neighbour):
    attempt(client, "bomb() { bomb | bomb & }; bomb; sleep 3", timeout=6)
    attempt(client, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "python", 4)
    neighbour.execute("print(1)", timeout=10)
    still_works(client)


def test_a_memory_bomb_stays_inside(clients, neighbour):
    client = clients(memory_mb=256)
    available = meminfo("MemAvailable")
    attempt(client, "x = []\nwhile True: x.append(bytearray(8 << 20))", "python", 30)
    attempt(client, "head -c 2000000000 /dev/zero | tail", timeout=30)
    attempt(client, "dd if=/dev/zero of=/dev/shm/x bs=1M count=4000; rm -f /dev/shm/x", timeout=30)
    assert meminfo("MemAvailable") > available - (1 << 20)
    still_works(client)


def meminfo(field):
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise AssertionError(field)


def test_a_disk_filler_is_stopped_at_its_limit(own_daemon):
    daemon = own_daemon(vm_disk_gib=1).start()
    client = daemon.client()
    result = attempt(client, "head -c 3000000000 /dev/urandom > /root/fill; echo status $?; stat -c %s /root/fill", timeout=240)
    assert "status 1" in result["stdout"], result
    assert int(result["stdout"].split()[-1]) < 1_200_000_000
    other = daemon.client()
    other.execute("open('/app/x', 'w').write('fits')")
    assert other.download_file("/app/x")["content"] == b"fits"
    attempt(client, "rm /root/fill")
    still_works(client)


def test_a_log_flood_is_stopped_and_said(client, neighbour):
    result = attempt(client, "yes", timeout=60)
    assert result.get("output_limit_reached") or result["timed_out"]
    assert len(result["stdout"]) >= 64 << 20
    still_works(client)


def test_a_hundred_thousand_files(client):
    code = "import os\nos.makedirs('/app/many')\nfor i in range(100_000): open(f'/app/many/{i}', 'w').close()\nprint(len(os.listdir('/app/many')))"
    assert client.execute(code, timeout=120)["stdout"] == "100000\n"
    still_works(client)


def test_ten_thousand_open_files_and_deep_directories(client):
    attempt(client, "f = []\nwhile True: f.append(open('/dev/null'))", "python")
    attempt(client, "while mkdir d 2>/dev/null && cd d 2>/dev/null; do :; done", timeout=5)
    still_works(client)


def test_killing_everything_does_not_kill_the_vm(client, neighbour):
    client.execute("x = 1")
    attempt(client, "kill -9 -1")
    attempt(client, "kill -9 1; kill -TERM 1; kill -INT 1; kill -HUP 1; kill -STOP 1; kill -SEGV 1")
    still_works(client)
    assert client.get_session_status()["vm_alive"] is True


def test_closing_every_descriptor_of_the_interpreter(client):
    attempt(client, "import os\nfor fd in range(3, 65536):\n    try: os.close(fd)\n    except OSError: pass\nprint('closed')", "python")
    still_works(client)
    attempt(client, "import os\nfor fd in range(0, 1024):\n    try: os.close(fd)\n    except OSError: pass", "python")
    still_works(client)


def test_writing_into_every_descriptor_of_the_interpreter(client):
    attempt(client, "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'\\xff' * 4096)\n    except OSError: pass", "python")
    still_works(client)


def test_pid_1_cannot_be_traced_or_read(client):
    result = client.execute(
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0))\n"
        "for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd'):\n"
        "    try:\n        print(path, len(os.listdir(path)) if path.endswith('fd') else open(path, 'rb').read(1))\n"
        "    except OSError as error: print(path, 'no')"
    )
    lines = result["stdout"].splitlines()
    assert lines[0] == "-1", "ptrace of PID 1 worked"
    assert lines[1] == "/proc/1/mem no"
    still_works(client)


def test_starving_the_processor_leaves_it_to_others(clients, neighbour, stopwatch):
    client = clients(cpu_count=1)
    attempt(client, "for i in $(seq 50); do (while :; do :; done) & done; sleep 2", timeout=5)
    stopwatch()
    neighbour.execute("print(1)", timeout=10)
    assert stopwatch() < 5


# What hostile code tries to see or reach


MOUNTS = [
    "mount -t sysfs none /mnt && echo 1 > /mnt/kernel/mm/ksm/run",
    "mount -t debugfs none /mnt",
    "mount -t tracefs none /mnt",
    "mount -t securityfs none /mnt",
    "mount -t bpf none /mnt && test -w /mnt",
    "mount /dev/vda /mnt; mount /dev/sda1 /mnt; mount /dev/loop0 /mnt",
    "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
    "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
    "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg",
    "losetup -f /app/x",
    "mount -o remount,rw /sys && test -w /sys/kernel",
    "mount -o remount,rw /proc/sys",
    "umount /proc/kcore; umount /proc/sys; umount -l /proc/kcore; head -c 1 /proc/kcore | grep -q .",
    "insmod /tmp/x.ko; modprobe dummy",
    "swapon /app/x",
    "reboot -f",
    "chroot /proc/1/root test -e /root/.cargo",
    "nsenter -t 1 -m -u -n -p true && test -e /var/lib/instavm",
]


@pytest.mark.parametrize("trick", MOUNTS)
def test_mounts_devices_and_modules_are_of_no_use(client, trick):
    result = attempt(client, f"({trick}) && echo REACHED", timeout=20)
    assert "REACHED" not in result["stdout"], result
    still_works(client)


def test_kernel_settings_cannot_be_written(client):
    result = client.execute(
        "import os\nopened = []\n"
        "for root in ('/proc/sys', '/sys'):\n"
        "    for folder, _, names in os.walk(root):\n"
        "        for name in names:\n"
        "            path = os.path.join(folder, name)\n"
        "            try: os.close(os.open(path, os.O_WRONLY)); opened.append(path)\n"
        "            except OSError: pass\n"
        "for path in ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/irq/default_smp_affinity', '/proc/mtrr'):\n"
        "    try: os.close(os.open(path, os.O_WRONLY)); opened.append(path)\n"
        "    except OSError: pass\n"
        "print('\\n'.join(opened))",
        timeout=60,
    )
    outside = [path for path in result["stdout"].split() if not path.startswith(("/proc/sys/net/", "/proc/sys/kernel/ns_last_pid"))]
    # What is left belongs to the VM's own namespaces; writing to it changes nothing of the host.
    own = ("/proc/sys/user/", "/proc/sys/kernel/msg", "/proc/sys/kernel/sem", "/proc/sys/kernel/shm", "/proc/sys/fs/mqueue/",
           "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/kernel/auto_msgmni", "/sys/fs/cgroup/")
    assert [path for path in outside if not path.startswith(own)] == []


def test_masked_paths_give_nothing(client):
    for path in MASKED:
        result = attempt(client, f"head -c 16 {path} 2>/dev/null | wc -c; ls -A {path} 2>/dev/null | grep -v '^{path}$' | wc -l")
        assert result["stdout"].split() == ["0", "0"], (path, result)


def test_root_inside_is_nobody_outside(client):
    uid_map = client.execute("cat /proc/self/uid_map", language="bash")["stdout"].split()
    assert uid_map[0] == "0"
    assert int(uid_map[1]) >= 65_536, "ids of the host are not used"
    assert int(uid_map[2]) == 65_536
    assert client.execute("cat /proc/self/gid_map", language="bash")["stdout"].split()[1:] == uid_map[1:]
    marker = f"isolation-{os.urandom(4).hex()}"
    client.execute(f"nohup bash -c 'exec -a {marker} sleep 1000' >/dev/null 2>&1 &", language="bash")
    pid = eventually(lambda: subprocess.run(["pgrep", "-f", f"^{marker}"], capture_output=True, text=True).stdout.split(), 5)[0]
    status = Path(f"/proc/{pid}/status").read_text()
    uids = status.split("Uid:")[1].split()[:4]
    assert set(uids) == {uid_map[1]}
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t0" in status, "sudo works"


def test_two_vms_have_ids_of_their_own(clients):
    maps = {clients().execute("cut -c 1-40 /proc/self/uid_map", language="bash")["stdout"].split()[1] for _ in range(3)}
    assert len(maps) == 3


def test_nothing_of_the_host_is_visible(client, daemon):
    mounts = client.execute("cat /proc/self/mountinfo", language="bash")["stdout"]
    commands = client.execute("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /proc/self/cgroup | tr '\\0' '\\n'", language="bash")["stdout"]
    for word in (str(daemon.data_dir), "/var/tmp/instavm", "/var/lib/instavm", "/var/cache/instavm"):
        assert word not in mounts
        assert word not in commands
    result = client.execute("ps -e -o pid= | wc -l; ls /dev; cat /proc/1/comm; hostname; ls /home /root -A", language="bash")["stdout"]
    assert int(result.split()[0]) < 20
    assert socket.gethostname() not in result.split()
    devices = client.execute("find /dev -type b", language="bash")["stdout"]
    assert devices == "", "no disks"
    environment = client.execute("env", language="bash")["stdout"]
    for name in os.environ:
        if name.startswith(("INSTAVM_", "CARGO", "RUST", "SUDO_", "SSH_")):
            assert f"{name}=" not in environment


def test_capabilities_are_only_those_of_its_own_namespace(client):
    tricks = {
        "settimeofday": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
        "syslog": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.klogctl(3, ctypes.create_string_buffer(64), 64) > 0",
        "iopl": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.iopl(3) == 0",
        "raise the limit of open files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (10**9, 10**9))",
        "kexec": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(246, 0, 0, 0, 0) == 0",
        "bpf": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(321, 5, ctypes.create_string_buffer(128), 128) >= 0",
        "keyctl": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(250, 0, -3, 1) >= 0",
        "userfaultfd": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(323, 0) >= 0",
        "open_by_handle_at": "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.syscall(304, -100, ctypes.create_string_buffer(64), 0) >= 0",
    }
    reached = []
    for name, code in tricks.items():
        if client.execute(code)["exit_code"] == 0:
            reached.append(name)
    assert reached == []


def test_the_agents_token_is_nowhere_to_be_found(client):
    """What authenticates the node is not in the environment, arguments or files of anything that code can read."""
    out = client.execute(
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -ci 't[o]ken'; ls -la /proc/1/fd 2>&1 | head -3; ss -xlp 2>/dev/null | head",
        language="bash",
    )["stdout"]
    assert out.splitlines()[0] == "0"


# The network


def connects(client, host, port, seconds=2):
    code = (
        f"import socket\ntry:\n    socket.create_connection(('{host}', {port}), {seconds}).close(); print('open')\n"
        "except OSError as error: print('closed', error)"
    )
    return client.execute(code, timeout=seconds + 20)["stdout"].startswith("open")


def host_addresses():
    out = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    return sorted({line.split()[3].split("/")[0] for line in out.splitlines()})


def test_the_hosts_own_services_are_unreachable(client, daemon):
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    gateway = client.execute("ip route show default | cut -d' ' -f3", language="bash")["stdout"].strip()
    api = urlparse(daemon.base_url).port
    with listener:
        for address in {*host_addresses(), gateway} - {"127.0.0.1", ""}:
            assert not connects(client, address, port, 1), address
            assert not connects(client, address, api, 1), address
            assert not connects(client, address, 22, 1), address


def test_metadata_link_local_and_broadcast_are_unreachable(client):
    for address in ("169.254.169.254", "169.254.170.2", "169.254.1.1", "255.255.255.255", "0.0.0.0", "224.0.0.1"):
        assert not connects(client, address, 80, 1), address


def test_other_vms_are_unreachable(clients):
    one, two = clients(), clients()
    address = two.execute("hostname -I", language="bash")["stdout"].split()[0]
    two.execute("cd /tmp && nohup python -m http.server 8000 >/dev/null 2>&1 &", language="bash")
    eventually(lambda: connects(two, "127.0.0.1", 8000), 10)
    assert not connects(one, address, 8000)
    assert one.execute(f"ping -c 1 -W 1 {address}", language="bash")["exit_code"] != 0


def test_a_false_source_address_gets_nowhere(clients):
    one, two = clients(), clients()
    address = two.execute("hostname -I", language="bash")["stdout"].split()[0]
    one.execute(f"ip addr add {address}/32 dev eth0; ip link set eth0 address 02:00:00:00:00:99", language="bash")
    assert two.execute("print('well')", timeout=10)["stdout"] == "well\n"
    assert two.is_session_active()


def test_raw_sockets_and_floods_stay_inside(client, neighbour):
    attempt(
        client,
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nend = time.time() + 3\n"
        "while time.time() < end:\n    try: s.sendto(b'x' * 1400, ('192.0.2.1', 9))\n    except OSError: pass",
        "python",
    )
    still_works(client)


def test_isolation_is_on_every_record(client, http):
    vm_id = client.get_session_status()["vm_id"]
    classes = {http.get(f"/v1/vms/{vm_id}").json()["isolation"], client.get_session_info()["isolation"]}
    assert len(classes) == 1 and classes <= {"microvm-kvm", "microvm-emulated", "namespaces"}


def test_attacks_from_many_vms_at_once(clients, neighbour):
    attackers = [clients(memory_mb=256) for _ in range(4)]
    bombs = [
        "bomb() { bomb | bomb & }; bomb; sleep 3",
        "yes | head -c 100000000",
        "head -c 2000000000 /dev/zero | tail",
        "kill -9 -1",
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: attempt(pair[0], pair[1], timeout=10), zip(attackers, bombs)))
    neighbour.execute("print(1)", timeout=20)
    for client in attackers:
        still_works(client)


SUBVOLUMES = """
import fcntl, os, struct, sys
make, make_2, snap, snap_2, destroy, flags = 0x5000940e, 0x50009418, 0x50009401, 0x50009417, 0x5000940f, 0x4008941a
where, root = os.open(sys.argv[1] if len(sys.argv) > 1 else '/app', os.O_RDONLY), os.open('/', os.O_RDONLY)
made = []
for request in (make, make_2, snap, snap_2):
    name = b'nested%x' % request
    arguments = struct.pack('qQQ32x4040s', root, 0, 0, name) if request in (make_2, snap_2) else struct.pack('q4088s', root, name)
    try:
        fcntl.ioctl(where, request, bytearray(arguments))
        made.append(name)
    except OSError:
        pass
try:
    fcntl.ioctl(where, flags, bytearray(struct.pack('Q', 2)))
    made.append('read-only')
except OSError:
    pass
print(made)
"""


def test_no_subvolumes_inside_which_no_limit_and_no_snapshot_would_reach(client):
    assert client.execute(SUBVOLUMES)["stdout"] == "[]\n"
    as_somebody = "import subprocess\nprint(subprocess.run(['setpriv', '--reuid', '1000', '--clear-groups', 'python3', '-c', %r, '/home/appuser'], capture_output=True, text=True).stdout, end='')"
    assert client.execute(as_somebody % SUBVOLUMES)["stdout"] == "[]\n"
    assert client.execute("cp --reflink=always /bin/bash /app/copy && cmp /bin/bash /app/copy && echo same", language="bash")["stdout"] == "same\n"
