"""A headless Chromium, driven by its DevTools protocol: as much of it as the tests need."""

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

SECONDS = 30


class Chromium:
    """One browser with one page. Everything of it goes with `close`."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        self.process = subprocess.Popen(
            [
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--no-proxy-server",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={self.folder}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.number = 0
            self.socket = connect(self.address(), open_timeout=SECONDS, max_size=1 << 24)
            target = next(one for one in self.browser("Target.getTargets")["targetInfos"] if one["type"] == "page")
            attached = self.browser("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self.session = attached["sessionId"]
        except BaseException:
            self.close()
            raise

    def address(self):
        """Where the browser listens: it writes that into its folder."""
        port = Path(self.folder) / "DevToolsActivePort"
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            lines = port.read_text().split() if port.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        raise AssertionError("Chromium does not start")

    def browser(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=SECONDS))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def page(self, method, **parameters):
        return self.browser(method, self.session, **parameters)

    def run(self, script):
        """The value of an expression of JavaScript in the page; promises are waited for."""
        done = self.page("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, url):
        """Loads a page, and waits for it."""
        shown = self.page("Page.navigate", url=url)
        assert "errorText" not in shown, shown
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def wait(self, condition):
        """Waits until an expression is true; a page that is being left has none."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            done = self.page("Runtime.evaluate", expression=condition, returnByValue=True)
            if done.get("result", {}).get("value"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}; {self.run('document.documentElement.outerHTML')[:2000]}")

    def close(self):
        if hasattr(self, "socket"):
            self.socket.close()
        self.process.terminate()
        self.process.wait(SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
