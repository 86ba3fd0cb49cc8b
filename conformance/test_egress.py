"""What VMs may reach: set and shown by the official client, tried from inside against an internet of the tests' own."""

import concurrent.futures
import json
import os
import secrets
import socket
from pathlib import Path

import pytest
from daemon import INSTANCES, eventually
from internet import Internet, run

from instavm import InstaVMError

pytestmark = pytest.mark.contract

CLOSED = {"allow_package_managers": False, "allow_http": False, "allow_https": False}
WIRE = {"allow_public_repos": False, "allow_http": False, "allow_https": False, "allowed_domains": [], "allowed_cidrs": []}

# Runs in the VM: takes a file of attempts, writes for each whether somebody of the outside has answered. All at once.
PROBE = r"""
import concurrent.futures, json, os, socket, ssl, struct, sys
SECONDS = 3

def greeting(to, port):
    return socket.create_connection((to, port), SECONDS)

def http(to, host):
    with greeting(to, 80) as stream:
        text = "GET / HTTP/1.1\r\n" + (f"Host: {host}\r\n" if host is not None else "") + "Connection: close\r\n\r\n"
        stream.sendall(text.encode("latin-1"))
        return stream.makefile("rb").readline().startswith(b"HTTP/1.1 200")

def https(to, name):
    context = ssl.create_default_context(cafile="/tmp/ca.pem")
    if name is None:
        context.check_hostname = False
    with context.wrap_socket(greeting(to, 443), server_hostname=name) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return stream.makefile("rb").readline().startswith(b"HTTP/1.1 200")

def tcp(to, port):
    with greeting(to, port) as stream:
        stream.settimeout(SECONDS)
        stream.sendall(b"hello")
        return stream.recv(16) == b"hello"

def udp(to, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.settimeout(SECONDS)
        stream.connect((to, port))
        stream.send(b"hello")
        return stream.recv(16) == b"hello"

def ping(to):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as stream:
        stream.settimeout(SECONDS)
        mark = os.urandom(4)
        packet = struct.pack(">BBH", 8, 0, 0) + mark
        total = sum(struct.unpack(">4H", packet))
        total = (total & 0xFFFF) + (total >> 16)
        stream.sendto(packet[:2] + struct.pack(">H", ~total & 0xFFFF) + mark, (to, 0))
        while True:
            answer, sender = stream.recvfrom(256)
            if sender[0] == to and answer[20] == 0 and answer[24:28] == mark:
                return True

def name(name):
    return bool(socket.getaddrinfo(name, 80, socket.AF_INET))

def text(name):
    question = os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0"
    question += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\x10\0\1"
    resolver = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.settimeout(SECONDS)
        stream.connect((resolver, 53))
        stream.send(question)
        answer = stream.recv(512)
        return answer[3] & 15 == 0 and answer[7] > 0

def v6():
    with socket.create_connection(("2001:db8::1", 443), SECONDS):
        return True

def passed(attempt):
    try:
        return globals()[attempt[0]](*attempt[1:])
    except (OSError, UnicodeError):
        return False

attempts, result = json.load(open(sys.argv[1])), sys.argv[2]
# What is looked up first may be reached after.
order = sorted(range(len(attempts)), key=lambda at: attempts[at][0] != "name")
lookups = [at for at in order if attempts[at][0] == "name"]
with concurrent.futures.ThreadPoolExecutor(24) as pool:
    found = dict(zip(lookups, pool.map(passed, [attempts[at] for at in lookups])))
    others = [at for at in order if at not in found]
    found.update(zip(others, pool.map(passed, [attempts[at] for at in others])))
with open(result + ".draft", "w") as file:
    json.dump([found[at] for at in range(len(attempts))], file)
os.rename(result + ".draft", result)
"""


ECHO = """
import socket
listener = socket.create_server(("", 8000))
while True:
    stream, _ = listener.accept()
    stream.sendall(stream.recv(16))
"""


@pytest.fixture(scope="module")
def internet():
    made = Internet(INSTANCES / f"internet-{secrets.token_hex(3)}")
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def place(internet, own_daemon):
    """A daemon whose VMs look names up in the tests' internet."""
    return own_daemon("egress", network_resolvers=f"{internet.addresses.dns}:53", pool_size=2).start()


def written(client, path, content):
    result = client.execute(f"cat > {path} <<'END'\n{content}\nEND", language="bash")
    assert result["exit_code"] == 0, result


def prepared(client, internet):
    """A session with what it needs to try."""
    written(client, "/tmp/ca.pem", internet.authority)
    written(client, "/tmp/probe.py", PROBE)
    return client


def tried(client, attempts, timeout=150):
    """Whether each attempt has got through."""
    written(client, "/tmp/attempts", json.dumps(attempts))
    result = client.execute("python3 /tmp/probe.py /tmp/attempts /tmp/result && cat /tmp/result", language="bash", timeout=timeout)
    assert result["exit_code"] == 0, result
    return json.loads(result["stdout"])


def policies(there):
    """The columns of the table."""
    return [
        CLOSED,
        {**CLOSED, "allowed_domains": ["Allowed.test.", "*.wild.test"]},
        {**CLOSED, "allowed_cidrs": [there.cidr]},
        {**CLOSED, "allow_http": True},
        {**CLOSED, "allow_https": True, "allowed_domains": ["allowed.test"], "allowed_cidrs": [there.cidr]},
        {**CLOSED, "allow_package_managers": True},
        {},
    ]


def table(there, neighbour):
    """What is tried, and which columns it passes: nothing, names, a range, HTTP, a mixture, registries, open."""
    good, attacker, inside = there.good, there.attacker, there.range
    octal = ".".join(f"0{part:o}" for part in socket.inet_aton(good))
    return [
        (["name", "allowed.test"], "-+-++-+"),
        (["name", "ALLOWED.test"], "-+-++-+"),
        (["name", "allowed.test."], "-+-++-+"),
        (["name", "www.allowed.test"], "-+-++-+"),
        (["name", "a.wild.test"], "-+-++-+"),
        (["name", "pypi.org"], "---++++"),
        (["name", "evil.test"], "---++-+"),
        (["name", "c2VjcmV0.evil.test"], "---++-+"),
        (["name", "dns.quad9.net"], "------+"),
        (["text", "allowed.test"], "------+"),
        (["text", "c2VjcmV0.wild.test"], "------+"),
        (["http", good, "allowed.test"], "-+-++-+"),
        (["http", good, "ALLOWED.test.:80"], "-+-++-+"),
        (["http", good, "a.wild.test"], "-+-+--+"),
        (["http", good, "evil.test"], "---+--+"),
        (["http", attacker, "evil.test"], "---+--+"),
        (["http", attacker, "allowed.test"], "---+--+"),
        (["http", attacker, attacker], "---+--+"),
        (["http", good, good], "---+--+"),
        (["http", good, str(int.from_bytes(socket.inet_aton(good), "big"))], "---+--+"),
        (["http", good, "0x" + socket.inet_aton(good).hex()], "---+--+"),
        (["http", good, octal], "---+--+"),
        (["http", good, f"[::ffff:{good}]"], "---+--+"),
        (["http", good, None], "---+--+"),
        (["http", inside, "evil.test"], "--+++-+"),
        (["http", there.registry, "pypi.org"], "---+-++"),
        (["https", good, "allowed.test"], "-+--+-+"),
        (["https", good, "www.allowed.test"], "-+--+-+"),
        (["https", good, "a.wild.test"], "-+--+-+"),
        (["https", good, "other.test"], "----+-+"),
        (["https", attacker, "allowed.test"], "----+-+"),
        (["https", attacker, "evil.test"], "----+-+"),
        (["https", attacker, "a.wild.test"], "----+-+"),
        (["https", good, None], "----+-+"),
        (["https", inside, "evil.test"], "--+-+-+"),
        (["https", there.registry, "pypi.org"], "----+++"),
        (["tcp", attacker, 22], "------+"),
        (["tcp", good, 22], "------+"),
        (["tcp", inside, 22], "--+-+-+"),
        (["tcp", attacker, 853], "------+"),
        (["tcp", attacker, 53], "------+"),
        (["udp", attacker, 53], "------+"),
        (["udp", attacker, 443], "------+"),
        (["udp", good, 443], "------+"),
        (["udp", inside, 443], "--+-+-+"),
        (["ping", attacker], "------+"),
        (["ping", good], "------+"),
        (["tcp", "169.254.169.254", 80], "-------"),
        (["http", "169.254.169.254", "allowed.test"], "-------"),
        (["tcp", there.host, 22], "-------"),
        (["http", there.host, "allowed.test"], "-------"),
        (["tcp", neighbour, 8000], "-------"),
        (["v6"], "-------"),
    ]


def asks_the_daemon(there, column, attempt):
    """Names, and HTTP and HTTPS where a name decides, are closed while nobody is there to ask."""
    by_name = {1: ("http", "https"), 4: ("http",), 5: ("http", "https")}.get(column, ())
    return attempt[0] in ("name", "text") or (attempt[0] in by_name and attempt[1] != there.range)


def in_each(clients, work):
    """Does something in all VMs at once; gives what came of it, in their order."""
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(work, range(len(clients)), clients))


def wrongs(rows, column, result, alone=None):
    """What did not go as the table says; `alone` are the addresses when nobody is there to ask."""
    for (attempt, columns), passed in zip(rows, result, strict=True):
        expected = columns[column] == "+" and not (alone and asks_the_daemon(alone, column, attempt))
        if passed != expected:
            yield column, attempt, passed


def judged(clients, rows):
    attempts = [attempt for attempt, _ in rows]
    return [wrong for found in in_each(clients, lambda column, client: list(wrongs(rows, column, tried(client, attempts)))) for wrong in found]


def test_every_policy_opens_what_it_says_and_a_restart_changes_nothing(place, internet):
    there = internet.addresses
    neighbour = place.client(timeout=280)
    written(neighbour, "/tmp/echo.py", ECHO)
    neighbour.execute("setsid python3 /tmp/echo.py >/dev/null 2>&1 </dev/null &", language="bash")
    own = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('198.51.100.1', 9)); print(s.getsockname()[0])"
    address = neighbour.execute(own, language="python")["stdout"].strip()
    eventually(lambda: reaches(address, 8000), 30, 0.1, "the neighbour listens, and the host reaches it")
    rows = table(there, address)

    def begun(_, policy):
        client = prepared(place.client(timeout=280), internet)
        client.set_session_egress(**policy)
        return client

    clients = in_each(policies(there), begun)
    assert len(clients) * len(rows) >= 200
    assert judged(clients, rows) == []

    # While the daemon is down, what was closed stays closed, and what asks nobody goes on. The VMs begin when nobody
    # answers at their resolver, and show by a process of this length that they are done.
    length = f"{3600 + os.getpid() % 1000}.{secrets.randbelow(10**6):06}"
    alone = f"""
import socket, subprocess, time
resolver = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
while True:
    try:
        socket.create_connection((resolver, 53), 3).close()
    except OSError:
        break
    time.sleep(0.02)
subprocess.run(["python3", "/tmp/probe.py", "/tmp/attempts", "/tmp/alone"])
subprocess.run(["sleep", "{length}"])
"""

    def left(_, client):
        written(client, "/tmp/alone.py", alone)
        client.execute("setsid python3 /tmp/alone.py >/dev/null 2>&1 </dev/null &", language="bash")

    in_each(clients, left)
    place.kill9()
    eventually(lambda: len(processes(f"sleep\0{length}")) == len(clients), 60, 0.2, "all VMs have tried")
    place.start(listen=place.base_url.removeprefix("http://"))
    for column, client in enumerate(clients):
        result = json.loads(client.execute("cat /tmp/alone", language="bash")["stdout"])
        assert list(wrongs(rows, column, result, alone=there)) == []
    # Names that were looked up before need no lookup now; then everything is as it was.
    attempt = ["https", there.good, "allowed.test"]
    assert tried(clients[1], [attempt]) == [True]
    assert judged(clients, rows) == []
    place.assert_clean()


def processes(start):
    """The processes of this host whose command begins so."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process] if (process / "cmdline").read_text().startswith(start) else []
        except OSError:
            pass
    return found


def reaches(address, port):
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True


def test_the_policy_is_shown_as_it_was_set_for_session_and_vm_alike(client, http):
    status = http.get(f"/v1/sessions/status/{client.session_id}").json()
    everything = client.get_session_egress()
    assert everything["allow_package_managers"] and everything["allow_public_repos"]
    assert (everything["allow_http"], everything["allow_https"]) == (True, True)
    assert (everything["allowed_domains"], everything["allowed_cidrs"]) == ([], [])
    answer = client.set_session_egress(allow_package_managers=False, allow_http=False, allowed_domains=["example.com"])
    assert answer["status"] == "ok"
    for shown in (client.get_session_egress(), client.get_vm_egress(status["vm_id"])):
        assert not shown["allow_package_managers"] and not shown["allow_public_repos"] and not shown["allow_http"]
        assert shown["allow_https"] and shown["allowed_domains"] == ["example.com"]
    client.set_vm_egress(status["vm_id"], allowed_cidrs=["10.0.0.0/8"])
    replaced = client.get_session_egress()
    assert (replaced["allow_http"], replaced["allowed_domains"], replaced["allowed_cidrs"]) == (True, [], ["10.0.0.0/8"])


@pytest.mark.parametrize(
    "change, named",
    [
        ({"allowed_domains": ["good.test", "not a name"]}, "allowed_domains[1]"),
        ({"allowed_domains": ["https://a.test"]}, "https://a.test"),
        ({"allowed_domains": ["1.2.3.4"]}, "1.2.3.4"),
        ({"allowed_cidrs": ["10.0.0.0/8", "10.0.0.0/33"]}, "allowed_cidrs[1]"),
        ({"allowed_cidrs": ["all"]}, "all"),
        ({"allowed_domains": ["a.test"] * 10_000}, "allowed_domains"),
        ({"allowed_cidrs": ["10.0.0.0/8"] * 1001}, "allowed_cidrs"),
        ({"allow_https": "no"}, "allow_https"),
        ({"allowed_hosts": []}, "allowed_hosts"),
        ({"allowed_domains": "a.test"}, "allowed_domains"),
        ({"allowed_domains": [5]}, "allowed_domains"),
    ],
)
def test_a_bad_policy_is_named_and_the_old_one_stays(client, http, change, named):
    client.set_session_egress(**{**CLOSED, "allowed_domains": ["kept.test"]})
    answer = http.post(f"/v1/egress/session/{client.session_id}", {**WIRE, **change})
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["detail"]
    assert client.get_session_egress()["allowed_domains"] == ["kept.test"]


def test_sessions_and_vms_of_others_are_404(client, tenant, http):
    vm_id = http.get(f"/v1/sessions/status/{client.session_id}").json()["vm_id"]
    for path in (f"/v1/egress/session/{client.session_id}", f"/v1/egress/vm/{vm_id}"):
        assert tenant.get(path).status_code == 404
        assert tenant.post(path, WIRE).status_code == 404
    assert client.get_session_egress()["allow_http"]
    with pytest.raises(InstaVMError):
        client.get_session_egress("00000000-0000-4000-8000-000000000000")


def test_open_connections_are_cut_and_what_is_opened_passes_at_once(place, internet):
    there = internet.addresses
    client = prepared(place.client(timeout=280), internet)
    talk = f"import socket; s = socket.create_connection(('{there.attacker}', 22), 3); s.settimeout(3); s.sendall(b'hello'); print(s.recv(9))"
    assert "hello" in client.execute(talk, language="python")["stdout"]
    client.set_session_egress(**CLOSED)
    again = client.execute("try:\n    s.sendall(b'again'); print(s.recv(9) or 'cut')\nexcept OSError as error: print('cut', error)", language="python")
    assert "cut" in again["stdout"] and "again" not in again["stdout"], again
    client.set_session_egress(**CLOSED, allowed_cidrs=[there.cidr])
    assert tried(client, [["tcp", there.range, 22], ["tcp", there.attacker, 22]]) == [True, False]
    client.set_session_egress()
    assert tried(client, [["tcp", there.attacker, 22]]) == [True]


def test_a_vm_is_made_with_its_policy_and_the_next_of_its_session_has_it_too(place, internet):
    there = internet.addresses
    http = place.http()
    policy = {**WIRE, "allowed_domains": ["allowed.test"]}
    vm = http.post("/v1/vms?wait=true", {"egress_policy": policy, "vm_lifetime_seconds": 20}).json()
    client = place.client(auto_start_session=False)
    client.session_id = vm["session_id"]
    prepared(client, internet)
    attempts = [["name", "allowed.test"], ["https", there.good, "allowed.test"], ["tcp", there.attacker, 22], ["name", "evil.test"]]
    assert tried(client, attempts) == [True, True, False, False]
    eventually(lambda: http.get(f"/v1/vms/{vm['vm_id']}").json()["status"] == "terminated", 60, 0.5)
    prepared(client, internet)
    assert http.get(f"/v1/sessions/status/{vm['session_id']}").json()["vm_id"] != vm["vm_id"]
    assert tried(client, attempts) == [True, True, False, False]
    refused = http.post("/v1/vms", {"egress_policy": {"allowed_cidrs": ["x"]}})
    assert refused.status_code == 422 and "egress_policy.allowed_cidrs[0]" in refused.text


def test_large_transfers_pass_by_name(place, internet):
    there = internet.addresses
    client = prepared(place.client(timeout=280), internet)
    client.set_session_egress(**CLOSED, allowed_domains=["allowed.test"])
    size = 256 << 20
    program = f"""
import ssl, urllib.request
context = ssl.create_default_context(cafile="/tmp/ca.pem")
read = 0
with urllib.request.urlopen("https://allowed.test/{size}", context=context, timeout=60) as page:
    while block := page.read(1 << 20):
        read += len(block)
upload = urllib.request.Request("http://allowed.test/", data=bytes(32 << 20))
print(read, urllib.request.urlopen(upload, timeout=60).read().decode())
"""
    result = client.execute(program, language="python", timeout=200)
    assert result["stdout"].split() == [str(size), str(32 << 20)], result


def test_what_was_refused_is_on_record_and_counted(client, http, tenant):
    client.set_session_egress(**CLOSED)
    vm_id = client.get_session_status()["vm_id"]
    path = f"/v1/egress/vm/{vm_id}/refusals"
    before = refused_by(http, "port"), refused_by(http, "name")
    code = "import socket\nfor attempt in (lambda: socket.create_connection(('198.51.100.7', 22), 3), lambda: socket.getaddrinfo('evil.test', 1)):\n    try:\n        attempt()\n    except OSError:\n        pass"
    assert client.execute(code, language="python")["exit_code"] == 0

    def recorded():
        found = {one["rule"]: one for one in http.get(path).json()["refusals"]}
        return found if {"port", "name"} <= set(found) else None

    found = eventually(recorded, 10, 0.05, "both refusals are on record")
    assert (found["port"]["protocol"], found["port"]["address"], found["port"]["port"]) == ("tcp", "198.51.100.7", 22)
    assert (found["name"]["protocol"], found["name"]["name"].rstrip(".")) == ("dns", "evil.test")
    assert found["name"]["reason"] and found["name"]["at"].startswith("20")
    # What the kernel has counted is asked for at most once a second.
    eventually(lambda: refused_by(http, "port") > before[0] and refused_by(http, "name") > before[1], 10, 0.2, "both are counted")
    assert tenant.get(path).status_code == 404
    usage = http.get(f"/v1/sessions/usage/{client.session_id}").json()["network_io"]
    assert usage["tx_packets"] > 0 and usage["rx_packets"] > 0


def refused_by(http, rule):
    lines = http.get("/metrics").text.splitlines()
    (count,) = [float(line.split()[-1]) for line in lines if line.startswith(f'instavm_egress_refusals_total{{rule="{rule}"}}')]
    return count


def test_check_names_what_somebody_took_from_the_firewall(own_daemon):
    daemon = own_daemon("check", pool_size=1).start()
    client = daemon.client()
    client.set_session_egress(**CLOSED, allowed_cidrs=["10.0.0.0/8"])
    vm_id = client.get_session_status()["vm_id"]
    daemon.assert_clean()
    (index,) = [record["index"] for record in records(daemon) if vm_id in json.dumps(record["phase"])]
    slot = json.loads((daemon.data_dir / "instance.json").read_text())["slot"]
    assert daemon.stop() == 0
    daemon.assert_clean()
    run("nft", "delete", "element", "inet", f"instavm{slot}", "limits", f"{{ iv{slot}h{index} }}")
    done = daemon.command("check")
    assert done.returncode != 0 and f"iv{slot}h{index} of map limits" in done.stdout + done.stderr, done
    # A start puts it right.
    daemon.start()
    daemon.assert_clean()


def records(daemon):
    return [json.loads(path.read_text()) for path in (daemon.data_dir / "vms").glob("*/vm.json")]
