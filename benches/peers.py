"""What the platform is measured beside."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import requests
import websocket

from host import first_line, spawned


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Runc:
    """`runc run` of one Python program, on the root file system that VMs start from, read-only."""

    def __init__(self, root, program="print(1)"):
        self.folder = tempfile.TemporaryDirectory(prefix="instavm-bench-")
        self.bundle = Path(self.folder.name)
        spawned("runc", "spec", "--bundle", self.folder.name)
        path = self.bundle / "config.json"
        config = json.loads(path.read_text())
        config["root"] = {"path": str(root), "readonly": True}
        config["process"] |= {"terminal": False, "args": ["python3", "-c", program], "cwd": "/"}
        path.write_text(json.dumps(config))

    def version(self):
        return first_line("runc", "--version")

    def run(self):
        out = spawned("runc", "run", "--bundle", self.folder.name, self.name())
        if out != "1\n":
            raise RuntimeError(f"runc printed {out!r}")

    def start(self):
        """Begins a run without waiting for it."""
        command = ["runc", "run", "--bundle", self.folder.name, self.name()]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False)

    def name(self):
        return f"instavm-bench-{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def close(self):
        self.folder.cleanup()


class KernelGateway:
    """A Jupyter Kernel Gateway with one kernel, spoken to over its WebSocket."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="instavm-bench-")
        program = Path(sys.executable).parent / "jupyter-kernelgateway"
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        with open(Path(self.folder.name) / "log", "wb") as log:
            self.process = subprocess.Popen(
                [program, "--KernelGatewayApp.ip=127.0.0.1", f"--KernelGatewayApp.port={port}", "--KernelGatewayApp.port_retries=0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": self.folder.name, "JUPYTER_PLATFORM_DIRS": "1"},
            )
        try:
            self.wait_until_it_serves()
            kernel = requests.post(f"{self.base_url}/api/kernels", json={"name": "python3"}, timeout=60).json()["id"]
            address = self.base_url.replace("http", "ws", 1)
            self.channel = websocket.create_connection(f"{address}/api/kernels/{kernel}/channels", timeout=60, sockopt=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),))
            self.session = uuid.uuid4().hex
            self.execute("1+1")  # the kernel is up when it answers
        except BaseException:
            self.close()
            raise

    def wait_until_it_serves(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                requests.get(f"{self.base_url}/api", timeout=10).raise_for_status()
                return
            except requests.ConnectionError:
                time.sleep(0.05)
        text = (Path(self.folder.name) / "log").read_text(errors="replace")
        raise RuntimeError(f"the Jupyter Kernel Gateway does not serve: {text[-1000:]}")

    def request(self, code):
        """The text of a request and its id."""
        number = uuid.uuid4().hex
        header = {"msg_id": number, "username": "", "session": self.session, "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        return number, json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []})

    def execute(self, code):
        return self.exchange(*self.request(code))

    def exchange(self, number, text):
        """Sends a request; returns when its result and the reply to it have come."""
        self.channel.send(text)
        wanted = {"execute_result", "execute_reply"}
        while wanted:
            # Without it the gateway's small frames wait for late acknowledgements, 40 ms a request: not held against it.
            self.channel.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            message = json.loads(self.channel.recv())
            if message["parent_header"].get("msg_id") == number:
                wanted.discard(message["msg_type"])

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()
