"""Connections by name beside plain address translation and beside mitmproxy, and changes of policies with many loaded."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import Distribution, Row, number, timed
from host import spawned
from platform_under_test import Instance

from internet import Internet, run  # the conformance suite's, found by platform_under_test

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = 1 << 30
ROUNDS = 3
CONNECTIONS = 300
LOADED = 1000
CHANGES = 60
PORT = 443
NAMED = {"allow_public_repos": False, "allow_http": False, "allow_https": False, "allowed_domains": ["allowed.test"], "allowed_cidrs": []}
OPEN = {"allow_public_repos": True, "allow_http": True, "allow_https": True, "allowed_domains": [], "allowed_cidrs": []}

# Says what it hears, at once: what a server takes is not measured.
ECHO = """
import socket, sys, threading
def serve(stream):
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := stream.recv(65536):
        stream.sendall(data)
listener = socket.create_server((sys.argv[1], 443), backlog=1024)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

# A TLS client up to the first bytes of an answer, again and again: the seconds of each.
CONNECT = """
import json, socket, ssl, sys, time
to, count, name = sys.argv[1], int(sys.argv[2]), "allowed.test"
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
try:
    tls.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = outgoing.read()
socket.gethostbyname(name) if len(sys.argv) < 4 else None
took = []
for _ in range(count):
    began = time.perf_counter()
    with socket.create_connection((to, 443)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(hello)
        assert stream.recv(65536)
    took.append(time.perf_counter() - began)
print(json.dumps(took))
"""


class Outside:
    """The conformance suite's internet, with servers that do as little as they can."""

    def __init__(self, directory):
        self.internet = Internet(directory, only_names=True).start()
        self.there = self.internet.addresses
        self.server = None

    def serve(self, *command, ready=b"ready\n"):
        self.end()
        self.server = subprocess.Popen(["ip", "netns", "exec", self.internet.name, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while self.server.stdout.readline() not in (ready, b""):
            pass

    def end(self):
        if self.server:
            self.server.kill()
            self.server.wait()
            self.server.stdout.close()
            self.server = None

    def close(self):
        self.end()
        self.internet.stop()


def post(connection, path, body):
    return connection.exchange(connection.built(path, body))


def session(connection, script, policy):
    made = connection.start(vm_lifetime_seconds=3600)
    connection.execute(made, f"cat > /root/connect.py <<'END'\n{script}\nEND", "bash", 60)
    post(connection, f"/v1/egress/session/{made}", policy)
    return made


def download(connection, made, address):
    """The seconds of one download by curl inside the VM."""
    script = f"getent hosts allowed.test >/dev/null; curl --silent --show-error --insecure --output /dev/null --resolve allowed.test:443:{address} --write-out '%{{time_total}} %{{size_download}}' https://allowed.test/file"
    out = connection.execute(made, script, "bash", 300)
    seconds, size = out["stdout"].split()
    if int(float(size)) < SIZE:
        raise RuntimeError(f"{size} of {SIZE} bytes: {out}")
    return float(seconds)


def transfers(instance, outside, address):
    """A server of OpenSSL in C, that sends the file from memory."""
    folder = Path(tempfile.mkdtemp(prefix="instavm-bench-", dir="/dev/shm"))
    connection = instance.connection
    figures = {"by name": Distribution(), "plain": Distribution()}
    try:
        with open(folder / "file", "wb") as file:
            file.truncate(SIZE)
        certificate = outside.internet.directory
        outside.end()
        command = ["openssl", "s_server", "-WWW", "-quiet", "-accept", f"{address}:443", "-cert", f"{certificate}/cert.pem", "-key", f"{certificate}/key.pem"]
        outside.server = subprocess.Popen(["ip", "netns", "exec", outside.internet.name, *command], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        sessions = {"by name": session(connection, CONNECT, NAMED), "plain": session(connection, CONNECT, OPEN)}
        time.sleep(0.5)
        for _ in range(ROUNDS):
            for name, made in sessions.items():
                figures[name].add(download(connection, made, address))
        for made in sessions.values():
            connection.kill(made)
    finally:
        outside.end()
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    speed = {name: SIZE / 1e6 / min(seconds.values) for name, seconds in figures.items()}
    share = speed["by name"] / speed["plain"]
    details = [f"{name:<9} {seconds.told(1, 's')}  {number(speed[name])} MB/s" for name, seconds in figures.items()]
    method = f"One connection, 1 GiB of HTTPS from `openssl s_server` in a network namespace to `curl` in a VM, {ROUNDS} times by turns; the fastest of each counts. Plain is address translation alone, by a VM without a policy."
    return Row("HTTPS by name, 1 GiB, beside plain address translation", "80% at least", f"{100 * share:.0f}%", share >= 0.8, details, method)


def took(connection, made, address):
    out = connection.execute(made, f"python3 /root/connect.py {address} {CONNECTIONS}", "bash", 120)
    return Distribution(json.loads(out["stdout"]))


class Mitmproxy:
    """mitmproxy in transparent mode that passes everything through, between two namespaces of its own."""

    def __init__(self, outside, program):
        self.names = [f"ivbench{os.getpid() % 100_000}{letter}" for letter in "cr"]
        self.outside = outside
        client, router = self.names
        net = f"198.19.{(int(outside.there.net.split('.')[2]) % 250) + 3}"
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", client, "type", "veth", "peer", "name", "in0", "netns", router)
        run("ip", "link", "add", "out0", "netns", router, "type", "veth", "peer", "name", "eth9", "netns", outside.internet.name)
        for name, link, address in ((client, "eth0", f"{net}.2/30"), (router, "in0", f"{net}.1/30"), (router, "out0", f"{net}.5/30"), (outside.internet.name, "eth9", f"{net}.6/30")):
            run("ip", "-n", name, "addr", "add", address, "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")
        run("ip", "-n", client, "route", "add", "default", "via", f"{net}.1")
        run("ip", "-n", router, "route", "add", "default", "via", f"{net}.6")
        self.inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.inside(router, "nft", "add table ip b; add chain ip b o { type nat hook postrouting priority 100; }; add rule ip b o oifname out0 masquerade; add chain ip b p { type nat hook prerouting priority -100; }")
        self.process = None
        self.program = program

    def inside(self, name, *command):
        run("ip", "netns", "exec", name, *command)

    def measure(self, address):
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(CONNECT)
            script.flush()
            command = ["ip", "netns", "exec", self.names[0], sys.executable, script.name, address, str(CONNECTIONS), "unnamed"]
            return Distribution(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout))

    def start(self, folder):
        router = self.names[1]
        self.inside(router, "nft", "add rule ip b p iifname in0 tcp dport 443 redirect to :8081")
        command = [self.program, "--quiet", "--mode", "transparent", "--listen-port", "8081", "--ignore-hosts", ".*", "--set", f"confdir={folder}"]
        self.process = subprocess.Popen(["ip", "netns", "exec", router, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while subprocess.run(["ip", "netns", "exec", router, sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 8081), 1)"], capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("mitmproxy does not listen")

    def close(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def latency(instance, outside, address):
    """What a proxy adds to a new connection, ours and mitmproxy's, each beside the same way without it."""
    connection = instance.connection
    outside.serve(sys.executable, "-c", ECHO, address)
    sessions = {"by name": session(connection, CONNECT, NAMED), "plain": session(connection, CONNECT, OPEN)}
    figures = {name: took(connection, made, address) for name, made in sessions.items()}
    # Again, so that neither has the warmer machine.
    for name, made in reversed(sessions.items()):
        for value in took(connection, made, address).values:
            figures[name].add(value)
    for made in sessions.values():
        connection.kill(made)
    environment = REPOSITORY / "target/venv-mitmproxy"
    spawned(REPOSITORY / "scripts/python-environment", environment, REPOSITORY / "benches/requirements-mitmproxy.txt")
    mitmproxy = Mitmproxy(outside, environment / "bin/mitmdump")
    try:
        figures["without mitmproxy"] = mitmproxy.measure(address)
        with tempfile.TemporaryDirectory(prefix="instavm-bench-") as folder:
            mitmproxy.start(folder)
            mitmproxy.measure(address)
            figures["by mitmproxy"] = mitmproxy.measure(address)
            added = figures["by name"].p50 - figures["plain"].p50
            beside = figures["by mitmproxy"].p50 - figures["without mitmproxy"].p50
    finally:
        mitmproxy.close()
        outside.end()
    details = [f"{name:<18} {seconds.told()}" for name, seconds in figures.items()]
    method = f"TCP connection, a TLS greeting with a name, the first bytes of an answer of a server that answers at once; {CONNECTIONS} one after another in a VM. mitmproxy in transparent mode with everything ignored, between two network namespaces, beside the same way without it."
    return Row("added by the proxy to a new connection, p50", "under 0.3 ms", f"{number(1000 * added)} ms; mitmproxy {number(1000 * beside)} ms", added < 0.0003, details, method)


def changes(instance):
    """Changes of one VM's policy while the table has as many others' elements as there is room for."""
    connection = instance.connection
    made = connection.start(vm_lifetime_seconds=3600)
    taken = {json.loads((instance.daemon.data_dir / "vms" / name / "vm.json").read_text())["index"] for name in instance.machines()}
    slot = json.loads((instance.daemon.data_dir / "instance.json").read_text())["slot"]
    others = [index for index in range(1024) if index not in taken][:LOADED]
    for map_name, chain in (("limits", "limited_web"), ("proxied", "proxied_web")):
        elements = ", ".join(f"iv{slot}h{index} : jump {chain}" for index in others)
        subprocess.run(["nft", "-f", "-"], input=f"add element inet instavm{slot} {map_name} {{ {elements} }}\n", text=True, check=True)
    figures = Distribution()
    for turn in range(CHANGES):
        figures.add(timed(post, connection, f"/v1/egress/session/{made}", (NAMED, OPEN)[turn % 2])[0])
    connection.kill(made)
    method = f"`POST /v1/egress/session/…` by turns between open and one name, {CHANGES} times, with {LOADED} other VMs' elements in the firewall's maps."
    return Row("change of a policy, p50", "under 10 ms", f"{number(1000 * figures.p50)} ms", figures.p50 < 0.010, [figures.told()], method)


def egress():
    """Policies: transfers, new connections, changes."""
    outside = Outside(Path(tempfile.gettempdir()) / f"instavm-bench-{secrets.token_hex(4)}")
    try:
        instance = Instance("egress", pool_size=0, network_resolvers=f"{outside.there.dns}:53")
        try:
            return [transfers(instance, outside, outside.there.good), latency(instance, outside, outside.there.good), changes(instance)]
        finally:
            instance.close()
    finally:
        outside.close()
