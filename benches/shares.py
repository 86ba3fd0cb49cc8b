"""Requests through a share, beside nginx in front of the same app in the same VM, each on one core."""

import base64
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from figures import Row, number
from host import spawned

PORT = 8000
SECONDS = 8
CONNECTIONS = 32
ROUNDS = 3
RATE, TAIL = 0.7, 1.5

# An app that costs little: one thread, epoll, a fixed answer for each request, connections that stay.
APP = r"""
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n";
int main(void) {
    int on = 1, door = socket(AF_INET, SOCK_STREAM, 0), all = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8000)};
    struct epoll_event event = {.events = EPOLLIN, .data.fd = door}, ready[64];
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)&at, sizeof at) || listen(door, 1024)) return 1;
    epoll_ctl(all, EPOLL_CTL_ADD, door, &event);
    for (;;) {
        int count = epoll_wait(all, ready, 64, -1);
        for (int i = 0; i < count; i++) {
            int one = ready[i].data.fd;
            char text[16384];
            if (one == door) {
                event.data.fd = accept(door, 0, 0);
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                epoll_ctl(all, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            long length = read(one, text, sizeof text);
            if (length <= 0) { close(one); continue; }
            for (char *end = text; (end = memmem(end, text + length - end, "\r\n\r\n", 4)); end += 4)
                if (write(one, answer, sizeof answer - 1) < 0) break;
        }
    }
}
"""

NGINX = """
daemon off;
worker_processes 1;
worker_cpu_affinity 01;
error_log stderr crit;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    upstream app {{ server {app}; keepalive 64; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


def compiled(folder):
    source, program = Path(folder) / "app.c", Path(folder) / "app"
    source.write_text("#define _GNU_SOURCE\n" + APP)
    spawned("cc", "-O2", "-static", "-o", str(program), str(source))
    return program.read_bytes()


def app_in(connection, session_id, program):
    """Puts the app into the VM, on the second core, and waits until it listens."""
    text = base64.b64encode(program).decode()
    pieces = [text[at : at + 60_000] for at in range(0, len(text), 60_000)]
    for number, piece in enumerate(pieces):
        connection.execute(session_id, f"printf %s {piece} {'>' if number == 0 else '>>'} /app/app.b64", "bash")
    start = "base64 -d /app/app.b64 > /app/app && chmod +x /app/app && (nohup taskset -c 1 /app/app >/dev/null 2>&1 &)"
    connection.execute(session_id, f"{start}; until (echo > /dev/tcp/127.0.0.1/{PORT}) 2>/dev/null; do sleep 0.05; done", "bash")


def on_core(pid, cores):
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cores)


def loaded(url):
    """Requests a second and the 99th percentile in seconds."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out and "Socket errors" not in out, out
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Nginx:
    def __init__(self, app):
        self.folder = tempfile.mkdtemp(prefix="instavm-bench-nginx-")
        port = free_port()
        config = Path(self.folder) / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, app=app, port=port))
        self.url = f"http://127.0.0.1:{port}/"
        self.process = subprocess.Popen(["nginx", "-c", str(config), "-e", "stderr"], stdin=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                return socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.05)
        self.close()
        raise RuntimeError("nginx does not start")

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def shares(pool):
    connection = pool.connection
    session_id = connection.start(vm_lifetime_seconds=3600)
    with tempfile.TemporaryDirectory(prefix="instavm-bench-") as folder:
        app_in(connection, session_id, compiled(folder))
    share = connection.post("/v1/shares", {"session_id": session_id, "port": PORT, "is_public": True})
    address = connection.execute(session_id, "hostname -I", "bash")["stdout"].split()[0]
    nginx = Nginx(f"{address}:{PORT}")
    every = set(range(os.cpu_count()))
    ours, theirs = [], []
    try:
        on_core(pool.pid, {0})
        for _ in range(ROUNDS):
            ours.append(loaded(share["url"] + "/"))
            theirs.append(loaded(nginx.url))
    finally:
        on_core(pool.pid, every)
        nginx.close()
        connection.post("/kill", {"session_id": session_id})

    def middle(figures, which):
        return sorted(figure[which] for figure in figures)[len(figures) // 2]

    rate = middle(ours, 0) / middle(theirs, 0)
    tail = middle(ours, 1) / middle(theirs, 1)

    def told(name, figures):
        pairs = ", ".join(f"{requests:.0f}/s p99 {number(1000 * p99)} ms" for requests, p99 in figures)
        return f"{name}: {pairs}"

    method = f"wrk with {CONNECTIONS} connections for {SECONDS} s, in turn, on the other core with the app; the proxies each on one core"
    details = [told("share", ours), told("nginx", theirs)]
    return [
        Row("share: requests a second beside nginx, same app", f"at least {RATE}×", f"{rate:.2f}×", rate >= RATE, details, method),
        Row("share: p99 beside nginx, same app", f"at most {TAIL}×", f"{tail:.2f}×", tail <= TAIL, [], method),
    ]
