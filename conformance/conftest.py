"""What the tests share: a daemon for the run, clients on it, sessions that end with their test."""

import importlib.util
import os
import shutil
import time

import pytest
import requests
from daemon import INSTANCES, Daemon, Maker

# This one runs in an environment of its own.
collect_ignore = [] if importlib.util.find_spec("agents") else ["test_agents.py"]


def pytest_configure(config):
    if os.geteuid() != 0:
        raise pytest.UsageError("VMs are made by root; run `make test`, which asks for it")
    INSTANCES.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="session")
def daemon():
    """The daemon that most tests share. At the end of the run it has to be clean, and to go away whole."""
    shared = Daemon("shared")
    try:
        shared.start()
        yield shared
        shared.assert_clean()
    finally:
        shared.destroy()


@pytest.fixture
def own_daemon():
    """Makes daemons for one test, which removes them again."""
    made = []

    def make(name="own", **settings):
        made.append(Daemon(name, **{"pool_size": 2, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.destroy()


@pytest.fixture(scope="session")
def http(daemon):
    return daemon.http()


@pytest.fixture(scope="session")
def tenant(daemon):
    """A second account, as HTTP."""
    return daemon.http(daemon.account("tenant@example.com")["api_key"])


@pytest.fixture
def make(daemon):
    """Makes VMs, volumes and snapshots of the first account, which end with the test."""
    maker = Maker(daemon.http())
    yield maker
    maker.clear()


@pytest.fixture
def foreign(tenant):
    """The same for the second account."""
    maker = Maker(tenant)
    yield maker
    maker.clear()


@pytest.fixture(scope="session")
def manager(daemon):
    """The official client without a session: its managers."""
    return daemon.client(auto_start_session=False)


@pytest.fixture
def client(daemon):
    """The official client with a session, which ends with the test."""
    made = daemon.client(timeout=280)
    session = made.session_id
    yield made
    daemon.http().post("/kill", {"session_id": session})


@pytest.fixture
def clients(daemon):
    """Makes official clients; their sessions end with the test."""
    made = []

    def make(**options):
        made.append(daemon.client(**{"timeout": 280, **options}))
        return made[-1]

    yield make
    for one in made:
        if one.session_id:
            daemon.http().post("/kill", {"session_id": one.session_id})


@pytest.fixture
def run(client):
    """Runs code in the test's session and expects it to do well; gives its standard output."""

    def execute(command, language=None, timeout=None):
        result = client.execute(command, language=language, timeout=timeout)
        assert result["exit_code"] == 0, result
        return result["stdout"]

    return execute


@pytest.fixture
def bash(run):
    return lambda command, timeout=None: run(command, "bash", timeout)


@pytest.fixture(scope="session")
def index_reachable():
    """Whether this host's own pip reaches its package index: VMs reach what the host reaches."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(INSTANCES / "pip"), "iniconfig"],
        capture_output=True,
        timeout=120,
    )
    shutil.rmtree(INSTANCES / "pip", ignore_errors=True)
    return done.returncode == 0


@pytest.fixture
def stopwatch():
    """Seconds since the test, or since the last time it was asked."""
    last = [time.monotonic()]

    def lap():
        now = time.monotonic()
        seconds, last[0] = now - last[0], now
        return seconds

    return lap


@pytest.fixture(autouse=True)
def daemon_survives(request):
    """No test takes the shared daemon down."""
    shared = request.getfixturevalue("daemon") if "daemon" in request.fixturenames else None
    yield
    if shared is not None:
        assert shared.process.poll() is None, f"the daemon ended: {shared.log_tail()}"
        assert requests.get(f"{shared.base_url}/healthz", timeout=10).status_code == 200
