"""The daemons that are measured: the conformance suite's, told when they have settled."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "conformance"))

from daemon import Daemon  # noqa: E402

from wire import Connection  # noqa: E402

SETTLE_SECONDS = 60


class Instance:
    """A daemon with its default settings but these, and one keep-alive connection to it."""

    def __init__(self, name, **settings):
        self.daemon = Daemon(name, log_level="warn", **settings)
        try:
            self.daemon.start()
            self.connection = self.connect()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self):
        return self.daemon.process.pid

    def connect(self):
        return Connection(self.daemon.base_url, self.daemon.key)

    def image(self):
        """The root file system that VMs start from."""
        (image,) = (self.daemon.data_dir / "pool/images").iterdir()
        return image

    def machines(self):
        return sorted(path.name for path in (self.daemon.data_dir / "vms").iterdir())

    def settle(self):
        """Waits until the pool is full and what has ended is removed."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            ready = self.connection.gauge("instavm_pool_ready")
            here = len(self.machines())
            if ready == self.connection.gauge("instavm_pool_size") and here == ready + self.connection.gauge("instavm_vms"):
                time.sleep(0.05)  # the last removal's rest in the kernel
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon does not settle: {ready} in the pool, {here} machines\n{self.daemon.log_tail()}")
            time.sleep(0.02)

    def close(self):
        self.daemon.destroy()
