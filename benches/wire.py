"""HTTP on raw sockets with requests built beforehand, so that the client adds little to what is measured."""

import json
import selectors
import socket
import time
from urllib.parse import urlparse


class Refused(Exception):
    """An answer that a measurement cannot go on with."""


class Connection:
    """One keep-alive connection with an API key."""

    def __init__(self, base_url, key, timeout=120):
        address = urlparse(base_url)
        self.host = f"{address.hostname}:{address.port}"
        self.key = key
        self.socket = socket.create_connection((address.hostname, address.port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def built(self, path, body, method="POST"):
        """The bytes of a request."""
        text = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nX-API-Key: {self.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        return head.encode() + text

    def exchange(self, request):
        """Sends the bytes of a request and returns the body of the answer."""
        self.socket.sendall(request)
        return self.answer()

    def answer(self):
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.more()
        head, _, body = received.partition(b"\r\n\r\n")
        size = length(head)
        while len(body) < size:
            body += self.more()
        if not head.startswith(b"HTTP/1.1 2"):
            raise Refused(f"{head.splitlines()[0]!r}: {body[:300]!r}")
        return body

    def more(self):
        part = self.socket.recv(1 << 16)
        if not part:
            raise Refused("the daemon closed the connection")
        return part

    def post(self, path, body):
        return json.loads(self.exchange(self.built(path, body)))

    def get(self, path):
        return self.exchange(self.built(path, None, "GET"))

    def close(self):
        self.socket.close()

    # What the benchmarks ask for.

    def start_request(self, **fields):
        return self.built("/v1/sessions/session", {"api_key": self.key, **fields})

    def start(self, **fields):
        return json.loads(self.exchange(self.start_request(**fields)))["session_id"]

    def execute_request(self, session_id, command, language="python", timeout=60):
        body = {"command": command, "session_id": session_id, "language": language, "timeout": timeout}
        return self.built("/execute", body)

    def execute(self, session_id, command, language="python", timeout=60):
        result = json.loads(self.exchange(self.execute_request(session_id, command, language, timeout)))
        if result["exit_code"] != 0:
            raise Refused(f"{command!r}: {result}")
        return result

    def kill(self, session_id):
        self.post("/kill", {"session_id": session_id})

    def gauge(self, name):
        """A number of the daemon's metrics."""
        for line in self.get("/metrics").decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise Refused(f"the metrics have no {name}")


def length(head):
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise Refused(f"an answer without a length: {head!r}")


def at_once(connections, requests):
    """Sends one request on each connection in one go; the seconds until each answer was whole, and the bodies."""
    chosen = selectors.DefaultSelector()
    began = time.perf_counter()
    for number, (connection, request) in enumerate(zip(connections, requests, strict=True)):
        connection.socket.sendall(request)
        chosen.register(connection.socket, selectors.EVENT_READ, number)
    seconds, bodies = {}, {}
    while chosen.get_map():
        for key, _ in chosen.select(timeout=120):
            bodies[key.data] = connections[key.data].answer()
            seconds[key.data] = time.perf_counter() - began
            chosen.unregister(key.fileobj)
    return [seconds[number] for number in sorted(seconds)], [bodies[number] for number in sorted(bodies)]
