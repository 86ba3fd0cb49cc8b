"""An internet for tests: a network namespace behind the host with names, HTTP, HTTPS by an authority of its own, and an
attacker's host. Nothing of it leads outside."""

import json
import os
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("allowed.test", "www.allowed.test", "evil.test", "pypi.org", "a.wild.test", "b.wild.test", "other.test")
TCP_PORTS, UDP_PORTS = (22, 53, 853, 8443), (53, 443)


class Addresses:
    """Of one test run: a /24 of the addresses for tests of networks."""

    def __init__(self, number):
        self.net = f"198.19.{number}"
        self.host, self.dns = f"{self.net}.1", f"{self.net}.2"
        self.good, self.attacker, self.range, self.registry = (f"{self.net}.{last}" for last in (10, 20, 33, 40))
        self.cidr = f"{self.net}.32/29"

    def of(self, name):
        name = name.lower().rstrip(".")
        if name == "pypi.org":
            return self.registry
        if name in ("evil.test", "dns.quad9.net"):
            return self.attacker
        return self.good if name.endswith(".test") else None


class Internet:
    """The namespace, its servers and its certificates, below a directory; on demand with nothing but names."""

    def __init__(self, directory, only_names=False):
        self.only_names = only_names
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        self.addresses = Addresses(os.getpid() % 250 + 1)
        self.name = f"ivnet{os.getpid() % 100_000}{secrets.token_hex(1)}"
        self.link = self.name[:13] + "h"
        self.servers = None

    def start(self):
        there = self.addresses
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "addr", "add", f"{there.host}/24", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        for address in (there.dns, there.good, there.attacker, there.range, there.registry):
            run("ip", "-n", self.name, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            run("ip", "-n", self.name, "link", "set", link, "up")
        certificates(self.directory)
        command = ["ip", "netns", "exec", self.name, sys.executable, __file__, str(self.directory), there.net, *(["names"] if self.only_names else [])]
        self.servers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.servers.stdout.readline() == b"ready\n"
        return self

    @property
    def authority(self):
        return (self.directory / "ca.pem").read_text()

    def stop(self):
        if self.servers:
            self.servers.stdin.close()
            self.servers.wait(10)
            self.servers.stdout.close()
        subprocess.run(["ip", "link", "delete", self.link], check=False, capture_output=True)
        run("ip", "netns", "delete", self.name)
        shutil.rmtree(self.directory)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, (command, done.stderr)


def certificates(directory):
    """An authority, and a certificate of it for all names."""

    def openssl(*arguments):
        run("openssl", *arguments, cwd=directory)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    authority = ("-subj", "/CN=Tests", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", *authority)
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=allowed.test")
    names = ",".join(f"DNS:{name}" for name in NAMES)
    (directory / "names").write_text(f"subjectAltName={names}\n")
    openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "cert.pem")


# What follows runs in the namespace.


class Page(BaseHTTPRequestHandler):
    """Says where a request has arrived and for whom."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        size = int(self.path[1:]) if self.path[1:].isdigit() else None
        place = {"address": self.connection.getsockname()[0], "host": self.headers.get("Host"), "path": self.path}
        body = json.dumps(place).encode() if size is None else None
        self.send_response(200)
        self.send_header("Content-Length", str(size if body is None else len(body)))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)
            return
        block = bytes(range(256)) * 256
        for start in range(0, size, len(block)):
            self.wfile.write(block[: size - start])

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        read = 0
        while read < length:
            read += len(self.rfile.read(min(1 << 16, length - read)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(str(read))))
        self.end_headers()
        self.wfile.write(str(read).encode())

    def log_message(self, *_):
        pass


def in_background(work, *arguments):
    threading.Thread(target=work, args=arguments, daemon=True).start()


def serve_tag(listener):
    while True:
        stream, _ = listener.accept()
        in_background(echo, stream)


def echo(stream):
    try:
        while data := stream.recv(1024):
            stream.sendall(data)
    except OSError:
        pass


def serve_datagrams(udp):
    while True:
        data, sender = udp.recvfrom(2048)
        udp.sendto(data, sender)


def answer(addresses, packet):
    """A DNS answer: addresses for names, text for text, nothing else."""
    labels, at = [], 12
    while length := packet[at]:
        labels.append(packet[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    end = at + 5
    kind = struct.unpack(">H", packet[at + 1 : at + 3])[0]
    address = addresses.of(".".join(labels))
    data = {1: address and socket.inet_aton(address), 16: b"\x04text"}.get(kind)
    header = packet[:2] + struct.pack(">HHHHH", 0x8180 | (0 if address else 3), 1, 1 if data else 0, 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(data)) + data if data else b""
    return header + packet[12:end] + record


def serve_names(addresses, udp):
    while True:
        packet, sender = udp.recvfrom(2048)
        udp.sendto(answer(addresses, packet), sender)


def main(directory, net, only_names=None):
    addresses = Addresses(net.split(".")[2])
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((addresses.dns, 53))
    in_background(serve_names, addresses, udp)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")
    hosts = (addresses.good, addresses.attacker, addresses.range, addresses.registry)
    for address in () if only_names else hosts:
        in_background(ThreadingHTTPServer((address, 80), Page).serve_forever)
        secure = ThreadingHTTPServer((address, 443), Page)
        secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
        in_background(secure.serve_forever)
        for port in TCP_PORTS:
            in_background(serve_tag, socket.create_server((address, port)))
        for port in UDP_PORTS:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((address, port))
            in_background(serve_datagrams, udp)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
