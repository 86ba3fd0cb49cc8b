"""The platform with its records in PostgreSQL: a server of the test's own, from the host's package."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import requests
from daemon import eventually

PASSWORD = "a/b?c#d@e%f"
QUOTED = "a%2Fb%3Fc%23d%40e%25f"


class Server:
    """One PostgreSQL server: on a Unix socket without a password, on a port of this host with TLS and one."""

    def __init__(self):
        self.programs = newest_programs()
        # The server refuses to run as root; it gets the package's own user.
        user = pwd.getpwnam("postgres")
        self.become = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="instavm-postgresql-", dir="/var/tmp"))
        self.data = self.folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self.folder / "password").write_text(PASSWORD)
        self.certificate = self.folder / "certificate.pem"
        subprocess.run(
            [*"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()]
            + ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
            + ["-keyout", self.folder / "key.pem", "-out", self.certificate],
            check=True,
            capture_output=True,
        )
        if self.become:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self.folder}/password"]
        self.run("initdb", "--username=postgres", "--encoding=UTF8", "--no-sync", *access)
        self.start()

    def run(self, program, *arguments):
        done = subprocess.run(
            [self.programs / program, "--pgdata", self.data, *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            **self.become,
        )
        assert done.returncode == 0, (program, done.stdout, done.stderr)

    def start(self):
        options = (
            f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -c ssl=on"
            f" -c ssl_cert_file={self.certificate} -c ssl_key_file={self.folder}/key.pem"
        )
        self.run("pg_ctl", "--wait", "--silent", "--log", self.folder / "log", "--options", options, "start")

    def stop(self):
        self.run("pg_ctl", "--wait", "--silent", "--mode", "fast", "stop")

    def sql(self, statement, database="postgres"):
        done = subprocess.run(
            [self.programs / "psql", "-X", "-q", "-A", "-t", "-h", self.folder, "-p", str(self.port), "-U", "postgres"]
            + ["-d", database, "-c", statement],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def url(self, database):
        """A new database, by the Unix socket."""
        self.sql(f"CREATE DATABASE {database} TEMPLATE template0")
        return f"postgres:///{database}?host={self.folder}&port={self.port}&user=postgres"

    def remove(self):
        self.run("pg_ctl", "--mode", "immediate", "stop")
        shutil.rmtree(self.folder)


def newest_programs():
    versions = [path for path in Path("/usr/lib/postgresql").glob("[0-9]*/bin") if (path / "initdb").exists()]
    if not versions:
        pytest.fail("there is no PostgreSQL server: install the package `postgresql` (`make setup` does it)")
    return max(versions, key=lambda path: int(path.parent.name))


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.remove()


def test_a_whole_life_on_postgresql(server, own_daemon):
    instance = own_daemon("postgresql", database_url=server.url("life")).start()
    http = instance.http()
    session_id = http.start_session(metadata={"mark": "kept"})
    assert http.execute(session_id, "x = 42; print(x)")["stdout"] == "42\n"
    task = http.post("/execute_async", {"command": "print(b'\\x00\\xff')", "session_id": session_id}).json()["task_id"]
    eventually(lambda: http.get(f"/v1/executions/{task}").json()["is_complete"])
    # A start is recorded behind its answer.
    eventually(lambda: server.sql("SELECT count(*) FROM instavm.vms WHERE status = 'active'", "life") == "1")
    assert not (instance.data_dir / "instavm.db").exists()

    instance.kill9()
    http = instance.start().http()
    assert http.execute(session_id, "print(x)")["stdout"] == "42\n"
    assert http.get(f"/v1/sessions/session/{session_id}").json()["metadata"] == {"mark": "kept"}
    assert http.get(f"/v1/executions/{task}").json()["serialized_stdout"] == "b'\\x00\\xff'\n"
    instance.assert_clean()

    # Written by another process while the daemon runs.
    tenant = instance.account("tenant@example.com")
    assert instance.http(tenant["api_key"]).get("/v1/users/me").json()["email"] == "tenant@example.com"
    assert http.post("/kill", {"session_id": session_id}).status_code < 300
    assert instance.stop() == 0
    instance.assert_clean()
    done = instance.command("destroy")
    assert done.returncode == 0, done.stderr
    assert not instance.data_dir.exists()
    assert server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'instavm'", "life") == "0"


def test_a_server_that_restarts_takes_nothing_along(server, own_daemon):
    instance = own_daemon("postgresql", database_url=server.url("restart")).start()
    http = instance.http()
    session_id = http.start_session()
    http.execute(session_id, "x = 1")
    server.stop()
    try:
        assert requests.get(f"{instance.base_url}/healthz", timeout=10).status_code == 503
        assert http.execute(session_id, "print(x)")["stdout"] == "1\n", "executions need no database"
        answer = http.post("/v1/sessions/session", {"api_key": http.key})
        assert answer.status_code == 503 and "database" in answer.json()["detail"]
    finally:
        server.start()
    eventually(lambda: requests.get(f"{instance.base_url}/healthz", timeout=10).status_code == 200)
    assert http.execute(http.start_session(), "print(2)")["stdout"] == "2\n"
    instance.assert_clean()


def test_two_data_directories_do_not_share_a_database(server, own_daemon):
    url = server.url("shared")
    first = own_daemon("first", database_url=url).start()
    second = own_daemon("second", database_url=url)
    refused = second.command("serve", "--listen", "127.0.0.1:0", seconds=60)
    assert refused.returncode == 1 and refused.stdout == ""
    assert "another instance" in refused.stderr and "database.url" in refused.stderr
    assert first.http().get("/healthz").status_code == 200
    # Its own directory with another database is refused as well: the VMs would be lost.
    first.stop()
    for other in ("", server.url("other")):
        refused = first.command("serve", "--listen", "127.0.0.1:0", seconds=60, INSTAVM_DATABASE_URL=other)
        assert refused.returncode == 1, refused.stderr
        assert "records of this" in refused.stderr


def test_tls_and_a_password_which_is_never_shown(server, own_daemon):
    server.sql("CREATE DATABASE tls TEMPLATE template0")
    instance = own_daemon("tls")

    def listed(password, mode, root="", host="localhost"):
        url = f"postgres://postgres:{password}@{host}:{server.port}/tls?sslmode={mode}{root}"
        done = instance.command("account", "list", "--json", INSTAVM_DATABASE_URL=url)
        shown = done.stdout + done.stderr
        assert password not in shown and PASSWORD not in shown, shown
        return done.returncode == 0, done.stderr

    root = f"&sslrootcert={server.certificate}"
    assert listed(QUOTED, "verify-full", root) == (True, "")
    assert listed(QUOTED, "require") == (True, "")
    works, told = listed(QUOTED, "verify-full")
    assert not works and "certificate" in told
    works, told = listed(QUOTED, "verify-full", root, "127.0.0.1")
    assert not works and "certificate" in told
    works, told = listed("wrong-password", "require")
    assert not works and "authentication failed" in told
