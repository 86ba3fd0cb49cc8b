"""Shares: made by the official client, used by raw sockets, curl, WebSockets and a browser's habits, tried by hostile ones."""

import hashlib
import json
import re
import socket
import subprocess
import time
import urllib.parse

import pytest
import requests
from chromium import Chromium
from daemon import Maker
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

pytestmark = pytest.mark.contract

SECONDS = 30
UPLOAD = 100 << 20

# Runs in the VM: an app with everything that an app may have, on the standard library alone.
APP = r'''
import base64, hashlib, json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, content, kind="application/json", status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def seen(self):
        head = {"who": sys.argv[1], "method": self.command, "path": self.path, "version": self.request_version, "headers": self.headers.items()}
        self.say(json.dumps(head).encode(), Set_Cookie="own=1")

    def chunk(self, content):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            self.chunk(b"data: %d\n\n" % number)
            time.sleep(0.5)
        self.chunk(b"")

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            first, second = self.rfile.read(2)
            length = second & 127
            if length > 125:
                length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
            mask = self.rfile.read(4)
            content = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(length)))
            size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
            self.wfile.write(bytes([first]) + size + content)
            if first & 15 == 8:
                return

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.path == "/events":
            return self.events()
        if self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(100 << 20))
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(1 << 20))
            return
        if self.path == "/page":
            return self.say(b"<!doctype html><title>The app</title><p id=here>here</p>", "text/html")
        if self.path.startswith("/slow"):
            time.sleep(7)
        self.seen()

    do_HEAD = do_GET

    def do_POST(self):
        digest, size = hashlib.sha256(), 0
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(length))
                size += length
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                piece = self.rfile.read(min(left, 1 << 20))
                digest.update(piece)
                size, left = size + len(piece), left - len(piece)
        self.say(json.dumps({"size": size, "digest": digest.hexdigest()}).encode())

    def log_message(self, *_):
        pass

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), App).serve_forever()
'''


class Apps:
    """VMs with an app, and shares of it."""

    def __init__(self, http, make):
        self.http, self.make = http, make

    def vm(self, name, port=8000):
        vm = self.make.vm()
        self.start(vm, name, port)
        return vm

    def start(self, vm, name, port=8000):
        self.make.sh(vm, f"cat > /app/app.py <<'EOF'\n{APP}\nEOF")
        self.make.sh(vm, f"nohup python3 /app/app.py {name} {port} > /app/app.log 2>&1 &")
        self.make.sh(vm, f"until (echo > /dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done")

    def share(self, vm, port=8000, is_public=True):
        answer = self.http.post("/v1/shares", {"vm_id": vm["vm_id"], "port": port, "is_public": is_public})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def patch(self, share, **change):
        answer = self.http.patch(f"/v1/shares/{share['share_id']}", change)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def apps(http, make):
    return Apps(http, make)


@pytest.fixture(scope="module")
def shared_app(daemon):
    """One VM with an app for all tests that do not change it, and its public and its private port."""
    maker = Maker(daemon.http())
    apps = Apps(daemon.http(), maker)
    vm = apps.vm("shared")
    apps.start(vm, "private", 8001)
    yield vm, apps.share(vm)["url"], apps.share(vm, 8001, is_public=False)["url"]
    maker.clear()


def seen(answer):
    assert answer.status_code == 200, (answer.status_code, answer.text)
    told = answer.json()
    told["headers"] = {name.lower(): value for name, value in told["headers"]}
    return told


def raw(url, text, seconds=SECONDS):
    """Sends bytes and reads until the end of the connection."""
    place = urllib.parse.urlsplit(url)
    with socket.create_connection((place.hostname, place.port), seconds) as stream:
        try:
            stream.sendall(text if isinstance(text, bytes) else text.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while piece := stream.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "--max-time", str(SECONDS), *arguments], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_official_client_shares_a_port(client, run, bash):
    run(f"open('/app/app.py', 'w').write({APP!r})")
    bash("nohup python3 /app/app.py mine 8000 >/dev/null 2>&1 &")
    bash("until (echo > /dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.05; done")
    share = client.shares.create(port=8000)
    assert share["port"] == 8000 and share["is_public"] is False and share["share_id"]
    assert client.shares.create(port=8000, is_public=True)["url"] == share["url"]
    assert seen(requests.get(share["url"] + "/a?b=c", timeout=SECONDS))["path"] == "/a?b=c"
    found = client.get_session_app_url(port=8000)
    assert found["app_url"] == found["direct_url"] == found["url"] == share["url"]
    assert found["port"] == 8000 and found["vm_id"] and found["expires_in_seconds"] > 0
    client.shares.update(share["share_id"], is_public=False)
    client.shares.update(share["share_id"], revoke=True)
    assert requests.get(share["url"], timeout=SECONDS).status_code == 410
    again = client.shares.create(port=8000)
    assert again["share_id"] != share["share_id"]


def test_http_1_and_http_2(shared_app):
    _, public, _ = shared_app
    told = seen(requests.get(public, headers={"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}, timeout=SECONDS))
    host = urllib.parse.urlsplit(public).netloc
    assert told["headers"]["host"] == host and told["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert told["headers"]["x-forwarded-proto"] == "http" and "6.6.6.6" not in json.dumps(told)
    second = curl("--http2-prior-knowledge", "-w", "%{http_version}", public + "/two", "-H", "Cookie: a=1", "-H", "Cookie: b=2")
    assert second.endswith(b"2")
    told = json.loads(second[:-1])
    assert told["path"] == "/two" and told["version"] == "HTTP/1.1"
    assert ["cookie", "a=1; b=2"] in [[name.lower(), value] for name, value in told["headers"]]
    assert curl("--http2-prior-knowledge", "-X", "POST", "--data-binary", "hello", public)
    old = raw(public, "GET /old HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.0 200") or old.startswith(b"HTTP/1.1 200"), old
    head = requests.head(public, timeout=SECONDS)
    assert head.status_code == 200 and not head.content


def test_websockets(shared_app):
    _, public, private = shared_app
    with connect(public.replace("http", "ws", 1) + "/socket", open_timeout=SECONDS) as one:
        for message in ["hello", "x" * 60_000, b"\x00\xff"]:
            one.send(message)
            assert one.recv(timeout=SECONDS) == message
    with pytest.raises(InvalidStatus) as refused:
        connect(private.replace("http", "ws", 1), open_timeout=SECONDS)
    assert refused.value.response.status_code == 401


def test_events_come_one_by_one(shared_app):
    _, public, _ = shared_app
    with requests.get(public + "/events", stream=True, timeout=SECONDS) as answer:
        lines = ((line, time.monotonic()) for line in answer.iter_lines() if line)
        came = list(lines)
    assert [line for line, _ in came] == [b"data: 0", b"data: 1", b"data: 2"]
    assert came[1][1] - came[0][1] > 0.25


def test_large_bodies_are_streamed_both_ways(shared_app, daemon):
    _, public, _ = shared_app
    piece = bytes(range(256)) * 4096
    whole = hashlib.sha256(piece * (UPLOAD >> 20)).hexdigest()

    def pieces():
        for _ in range(UPLOAD >> 20):
            yield piece

    def resident():
        status = open(f"/proc/{daemon.process.pid}/status").read()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10

    before = resident()
    answer = requests.post(public, data=pieces(), timeout=60)
    assert answer.json() == {"size": UPLOAD, "digest": whole}
    with requests.get(public + "/large", stream=True, timeout=60) as answer:
        assert sum(len(part) for part in answer.iter_content(1 << 20)) == UPLOAD
    second = curl("--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{size_download}", public + "/large")
    assert int(second) == UPLOAD
    assert resident() - before < 40 << 20


def test_a_private_share_is_its_owners(shared_app, daemon, tenant):
    _, _, private = shared_app
    page = requests.get(private + "/deep?x=1", timeout=SECONDS)
    assert page.status_code == 200 and "API key" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"] and "script" not in page.text
    assert requests.post(private, data="x", timeout=SECONDS).status_code == 401
    for headers in ({"X-API-Key": daemon.key}, {"Authorization": f"Bearer {daemon.key}"}):
        told = seen(requests.get(private, headers=headers, timeout=SECONDS))
        assert told["who"] == "private" and daemon.key not in json.dumps(told)
    assert requests.get(private, headers={"X-API-Key": tenant.key}, timeout=SECONDS).status_code == 401


def test_a_login_opens_one_share(shared_app, daemon, apps):
    vm, public, private = shared_app
    other = apps.share(vm, 8002, is_public=False)["url"]
    session = requests.Session()
    form = {"api_key": daemon.key, "next": "/deep?x=1"}
    answer = session.post(private + "/.instavm/login", data=form, timeout=SECONDS)
    assert seen(answer)["path"] == "/deep?x=1"
    told = seen(session.get(private, timeout=SECONDS))
    assert "instavm" not in json.dumps(told) and daemon.key not in json.dumps(told)
    # The jar sends the cookie to every port of the host: it opens nothing there, and no app sees it.
    assert "instavm" not in json.dumps(seen(session.get(public, timeout=SECONDS)))
    assert "API key" in session.get(other, timeout=SECONDS).text
    foreign = session.post(private, data="x", headers={"Origin": public}, timeout=SECONDS)
    assert foreign.status_code == 401
    own = session.post(private, data="x", headers={"Origin": private}, timeout=SECONDS)
    assert own.json()["size"] == 1
    wrong = requests.post(private + "/.instavm/login", data={"api_key": "x", "next": "//evil.example"}, timeout=SECONDS, allow_redirects=False)
    assert wrong.status_code == 401
    away = requests.post(private + "/.instavm/login", data={"api_key": daemon.key, "next": "//evil.example"}, timeout=SECONDS, allow_redirects=False)
    assert away.status_code == 303 and away.headers["Location"] == "/"


def test_a_revoked_key_opens_nothing(shared_app, http):
    _, _, private = shared_app
    made = http.post("/v1/api-keys/", {"description": "to be revoked"}).json()
    key = made.get("api_key") or made["key"]
    session = requests.Session()
    assert seen(session.post(private + "/.instavm/login", data={"api_key": key, "next": "/"}, timeout=SECONDS))
    assert http.delete(f"/v1/api-keys/{made['id']}").status_code == 200
    assert "API key" in session.get(private, timeout=SECONDS).text
    assert requests.get(private, headers={"X-API-Key": key}, timeout=SECONDS).status_code == 401


def test_nothing_steers_to_another_vm_or_the_host(apps, daemon):
    one, two = apps.vm("one"), apps.vm("two")
    first, second = apps.share(one)["url"], apps.share(two)["url"]
    address = urllib.parse.urlsplit(second).netloc
    api = urllib.parse.urlsplit(daemon.base_url).netloc
    for host in (address, api, "169.254.169.254", "localhost:22", two["vm_id"]):
        for target in ("/", f"http://{host}/", f"//{host}/"):
            request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            answer = raw(first, request)
            assert b'"who": "one"' in answer, (request, answer)
    for request in (
        f"GET http://{address}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nHost: {address}\r\nConnection: close\r\n\r\n",
    ):
        assert raw(first, request).startswith(b"HTTP/1.1 400"), request
    smuggled = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n"
    assert raw(first, smuggled).count(b"HTTP/1.1 ") <= 2
    # The host's own ports are not the VM's.
    listener = socket.create_server(("127.0.0.1", 0))
    share = apps.share(one, listener.getsockname()[1])
    assert requests.get(share["url"], timeout=SECONDS).status_code == 502
    listener.close()


def test_what_is_not_there_is_told_within_five_seconds(apps, make):
    vm = make.vm()
    share = apps.share(vm, 8000)
    begun = time.monotonic()
    answer = requests.get(share["url"], timeout=5)
    assert answer.status_code == 502 and "8000" in answer.text
    # An app that starts: it listens, and does not answer.
    make.sh(vm, "nohup python3 -c 'import socket, time; s = socket.create_server((\"127.0.0.1\", 8000)); time.sleep(600)' >/dev/null 2>&1 &")
    make.sh(vm, "until (echo > /dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.05; done")
    begun = time.monotonic()
    assert requests.get(share["url"], timeout=5).status_code == 504
    assert time.monotonic() - begun < 5
    assert make.http.delete(f"/v1/vms/{vm['vm_id']}").status_code == 200
    assert requests.get(share["url"], timeout=SECONDS).status_code == 404
    ended = make.http.get(f"/v1/shares/{share['share_id']}").json()
    assert ended["status"] == "ended" and ended["url"] == share["url"]


def test_slow_answers_of_an_app_that_runs_are_waited_for(shared_app):
    _, public, _ = shared_app
    assert requests.get(public, timeout=SECONDS).status_code == 200
    assert seen(requests.get(public + "/slow", timeout=SECONDS))["path"] == "/slow"


def test_closing_a_share_cuts_what_is_open(apps):
    vm = apps.vm("app")
    share = apps.share(vm)
    with connect(share["url"].replace("http", "ws", 1), open_timeout=SECONDS) as one:
        one.send("hello")
        assert one.recv(timeout=SECONDS) == "hello"
        apps.patch(share, is_public=False)
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=SECONDS)
    key = {"X-API-Key": apps.http.key}
    with connect(share["url"].replace("http", "ws", 1), open_timeout=SECONDS, additional_headers=key) as one:
        one.send("hello")
        assert one.recv(timeout=SECONDS) == "hello"
        assert apps.patch(share, revoke=True)["status"] == "revoked"
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=SECONDS)
    assert requests.get(share["url"], timeout=SECONDS).status_code == 410


def test_greedy_callers_do_not_stand_in_others_way(shared_app):
    _, public, _ = shared_app
    place = urllib.parse.urlsplit(public)
    silent = [socket.create_connection((place.hostname, place.port), SECONDS) for _ in range(200)]
    for number, stream in enumerate(silent):
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " if number % 2 else b"P")
    unread = socket.create_connection((place.hostname, place.port), SECONDS)
    unread.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    huge = raw(public, b"GET / HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * (10 << 20) + b"\r\n\r\n")
    assert huge == b"" or huge.startswith(b"HTTP/1.1 431"), huge[:200]
    begun = time.monotonic()
    assert seen(requests.get(public, timeout=SECONDS))
    assert time.monotonic() - begun < 2
    # A head that does not come to its end is given up.
    silent[1].settimeout(30)
    ended = silent[1].recv(1024)
    assert ended == b"" or ended.startswith(b"HTTP/1.1 408"), ended
    for stream in [*silent, unread]:
        stream.close()


def test_other_accounts_learn_nothing(apps, tenant, make):
    vm = make.vm()
    share = apps.share(vm)
    path = f"/v1/shares/{share['share_id']}"
    assert tenant.get(path).status_code == 404
    assert tenant.patch(path, {"revoke": True}).status_code == 404
    assert tenant.post("/v1/shares", {"vm_id": vm["vm_id"], "port": 80}).status_code == 404
    assert tenant.get("/v1/shares").json() == []
    assert share["share_id"] in [one["share_id"] for one in apps.http.get("/v1/shares").json()]


def test_shares_outlive_the_daemon(own_daemon):
    daemon = own_daemon("shares", pool_size=0)
    daemon.start()
    maker = Maker(daemon.http())
    apps = Apps(daemon.http(), maker)
    vm = apps.vm("app")
    stays, revoked = apps.share(vm), apps.share(vm, 9000)
    private = apps.share(vm, 8001, is_public=False)
    apps.start(vm, "private", 8001)
    session = requests.Session()
    form = {"api_key": daemon.key, "next": "/"}
    assert seen(session.post(private["url"] + "/.instavm/login", data=form, timeout=SECONDS))
    apps.patch(revoked, revoke=True)
    daemon.assert_clean()
    daemon.kill9()
    with pytest.raises(requests.ConnectionError):
        requests.get(stays["url"], timeout=SECONDS)
    # Another program takes a port meanwhile.
    taken = urllib.parse.urlsplit(private["url"]).port
    thief = socket.create_server(("127.0.0.1", taken))
    daemon.start()
    http = daemon.http()
    assert seen(requests.get(stays["url"], timeout=SECONDS))["who"] == "app"
    assert requests.get(revoked["url"], timeout=SECONDS).status_code == 410
    moved = http.get(f"/v1/shares/{private['share_id']}").json()
    assert moved["url"] != private["url"] and moved["status"] == "open"
    assert seen(session.get(moved["url"], timeout=SECONDS))["who"] == "private"
    daemon.assert_clean()
    thief.close()
    assert daemon.stop() == 0


# What a page of the app does: a WebSocket there and back, and an upload of 4 MiB.
PAGE = """new Promise((done, failed) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket");
    socket.onerror = () => failed(new Error("the WebSocket failed"));
    socket.onopen = () => socket.send("through the share");
    socket.onmessage = async message => {
        socket.close();
        const form = new Blob([new Uint8Array(4 << 20)]);
        const answer = await fetch("/upload", {method: "POST", body: form});
        done({echo: message.data, size: (await answer.json()).size, cookie: document.cookie});
    };
})"""


def test_a_browser_works_through_both_kinds_of_shares(shared_app, daemon):
    _, public, private = shared_app
    browser = Chromium()
    try:
        browser.open(public + "/page")
        done = browser.run(PAGE)
        assert (done["echo"], done["size"]) == ("through the share", 4 << 20)

        browser.open(private + "/page")
        assert browser.run("document.querySelector('#here') === null && document.querySelector('form') !== null")
        browser.run(f"document.querySelector('[name=api_key]').value = {json.dumps(daemon.key)}; document.querySelector('form').requestSubmit()")
        browser.wait("document.querySelector('#here') !== null")
        done = browser.run(PAGE)
        assert (done["echo"], done["size"]) == ("through the share", 4 << 20)
        assert "instavm" not in done["cookie"]
        assert browser.run("location.pathname") == "/page"
    finally:
        browser.close()
