"""What VMs may reach: set and shown by the official client, tried from inside against an internet of the tests' own."""

import json
import secrets
import socket
import threading
import time

import pytest
from daemon import INSTANCES, eventually
from internet import Internet

from instavm import InstaVMError

pytestmark = pytest.mark.contract

CLOSED = {"allow_package_managers": False, "allow_http": False, "allow_https": False}
WIRE = {"allow_public_repos": False, "allow_http": False, "allow_https": False, "allowed_domains": [], "allowed_cidrs": []}

# Runs in the VM: takes a list of attempts, prints for each whether somebody of the outside has answered.
PROBE = r"""
import json, socket, ssl, sys
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
        stream.settimeout(0.4)
        stream.connect((to, port))
        stream.send(b"hello")
        return stream.recv(16) == b"hello"

def name(name):
    return bool(socket.getaddrinfo(name, 80, socket.AF_INET))

def v6():
    with socket.create_connection(("2001:db8::1", 443), SECONDS):
        return True

for kind, *arguments in json.loads(sys.argv[1]):
    try:
        passed = globals()[kind](*arguments)
    except OSError:
        passed = False
    print(json.dumps(passed))
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


def prepared(client, internet):
    """A session with what it needs to try."""
    for path, content in (("/tmp/ca.pem", internet.authority), ("/tmp/probe.py", PROBE)):
        result = client.execute(f"cat > {path} <<'END'\n{content}\nEND", language="bash")
        assert result["exit_code"] == 0, result
    return client


def tried(client, attempts, timeout=150):
    """Whether each attempt has got through."""
    result = client.execute(f"python3 /tmp/probe.py {json.dumps(json.dumps(attempts))}", language="bash", timeout=timeout)
    assert result["exit_code"] == 0, result
    return [json.loads(line) for line in result["stdout"].split()]


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


def table(there):
    """What is tried, and which columns it passes: nothing, names, a range, HTTP, a mixture, registries, open."""
    good, attacker, inside = there.good, there.attacker, there.range
    return [
        (["name", "allowed.test"], "-+-++-+"),
        (["name", "ALLOWED.test"], "-+-++-+"),
        (["name", "www.allowed.test"], "-+-++-+"),
        (["name", "a.wild.test"], "-+-++-+"),
        (["name", "pypi.org"], "---++++"),
        (["name", "evil.test"], "---++-+"),
        (["name", "c2VjcmV0.evil.test"], "---++-+"),
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
        (["tcp", "169.254.169.254", 80], "-------"),
        (["http", "169.254.169.254", "allowed.test"], "-------"),
        (["tcp", there.host, 22], "-------"),
        (["http", there.host, "allowed.test"], "-------"),
        (["v6"], "-------"),
    ]


def judged(clients, there, by_name_too=True):
    """What did not go as the table says."""
    rows = table(there)
    wrong, threads = [], []

    def one(column, client):
        for (attempt, columns), passed in zip(rows, tried(client, [attempt for attempt, _ in rows]), strict=True):
            expected = columns[column] == "+"
            needs_daemon = attempt[0] == "name" or (column in (1, 4, 5) and attempt[0] in ("http", "https"))
            if passed != expected and (by_name_too or passed or not needs_daemon):
                wrong.append((column, attempt, passed))

    for column, client in enumerate(clients):
        threads.append(threading.Thread(target=one, args=(column, client)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return wrong


def test_every_policy_opens_what_it_says_and_a_restart_changes_nothing(place, internet):
    there = internet.addresses
    clients = []
    for policy in policies(there):
        client = prepared(place.client(timeout=280), internet)
        client.set_session_egress(**policy)
        clients.append(client)
    assert len(clients) * len(table(there)) >= 200
    assert judged(clients, there) == []

    # While the daemon is down, what was closed stays closed.
    attempts = [attempt for attempt, _ in table(there) if attempt[0] in ("http", "https", "tcp") and attempt[2] is not None]
    later = f"sleep 4; python3 /tmp/probe.py {json.dumps(json.dumps(attempts))} > /tmp/draft; mv /tmp/draft /tmp/down"
    for client in clients:
        client.execute(f"cat > /tmp/later <<'END'\n{later}\nEND\nsetsid sh /tmp/later >/dev/null 2>&1 </dev/null &", language="bash")
    place.kill9()
    time.sleep(12)
    place.start(listen=place.base_url.removeprefix("http://"))
    expected = {json.dumps(attempt): columns for attempt, columns in table(there)}
    for column, client in enumerate(clients):
        result = eventually(lambda: down(client, len(attempts)), 120, 1, "the attempts while it was down")
        for attempt, passed in zip(attempts, result, strict=True):
            assert not (passed and expected[json.dumps(attempt)][column] == "-"), (column, attempt)
    assert judged(clients, there) == []
    place.assert_clean()


def down(client, count):
    lines = client.execute("cat /tmp/down 2>/dev/null || true", language="bash")["stdout"].split()
    return [json.loads(line) for line in lines] if len(lines) == count else None


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
