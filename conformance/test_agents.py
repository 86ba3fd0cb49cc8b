"""The official sandbox client for the OpenAI Agents SDK, without a model: everything that an agent has its sandbox do.

It runs in an environment of its own (requirements-agents.txt), because the SDK brings much along."""

import asyncio
import io
from pathlib import Path

import pytest

from instavm.integrations.openai_agents import InstaVMSandboxClient, InstaVMSandboxClientOptions

CLOSED = {"allow_http": False, "allow_https": False, "allow_package_managers": False, "allowed_domains": ("example.com",)}


@pytest.fixture(scope="module")
def sandboxes(daemon):
    return InstaVMSandboxClient(api_key=daemon.key, base_url=daemon.base_url)


def with_session(sandboxes, work, **options):
    """Makes a sandbox, lets `work` use it, deletes it."""

    async def run():
        session = await sandboxes.create(options=InstaVMSandboxClientOptions(**options))
        try:
            await session.start()
            return await work(session)
        finally:
            await sandboxes.delete(session)

    return asyncio.run(run())


def test_commands_have_their_streams_and_exit_code(sandboxes):
    async def work(session):
        assert await session.running()
        done = await session.exec("echo out; echo err >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
        words = await session.exec("printf", "%s|", "a b", "$HOME", "'\"", shell=False)
        assert words.stdout == b"a b|$HOME|'\"|"
        given = await session.exec("echo $GIVEN; pwd; id -un")
        assert given.stdout.splitlines()[0] == b"value"
        as_nobody = await session.exec("id -un", user="nobody")
        assert as_nobody.stdout == b"nobody\n", as_nobody.stderr

    with_session(sandboxes, work, env={"GIVEN": "value"}, metadata={"made": "by a test"}, memory_mb=512, cpu_count=1)


def test_files_come_back_as_they_were_written(sandboxes):
    async def work(session):
        large = bytes(range(256)) * 1024
        for path, content in (("small.txt", b"text\n"), ("deep/er/large.bin", large), ("empty", b"")):
            await session.write(Path(path), io.BytesIO(content))
            assert (await session.read(Path(path))).read() == content
        listed = {Path(str(entry.path)).name for entry in await session.ls(Path("/workspace"))}
        assert {"small.txt", "deep", "empty"} <= listed
        await session.rm(Path("deep"), recursive=True)
        assert (await session.exec("ls /workspace")).stdout.split() == [b"empty", b"small.txt"]

    with_session(sandboxes, work)


def test_restrictions_are_in_force_from_the_first_command(sandboxes):
    async def work(session):
        inner = session._inner
        policy = await inner.get_egress_policy()
        assert (policy["allow_http"], policy["allow_https"], policy["allow_package_managers"]) == (False, False, False)
        assert policy["allowed_domains"] == ["example.com"]
        code = "import socket; socket.create_connection(('198.51.100.1', 22), 5)"
        refused = await session.exec("python3", "-c", code, shell=False)
        assert refused.exit_code != 0 and b"refused" in refused.stderr, refused.stderr
        await inner.set_egress_policy()
        assert (await inner.get_egress_policy())["allow_https"]

    with_session(sandboxes, work, **CLOSED)

    async def nothing(session):
        policy = await session._inner.get_egress_policy()
        assert not any(policy[flag] for flag in ("allow_http", "allow_https", "allow_package_managers"))

    with_session(sandboxes, nothing, allow_internet_access=False)


async def read_until(session, update, wanted):
    """Reads on until `wanted` has come."""
    output = update.output
    for _ in range(100):
        if wanted in output:
            return output
        update = await session.pty_write_stdin(session_id=update.process_id, chars="", yield_time_s=0.3)
        output += update.output
    raise AssertionError(output)


def test_a_terminal_takes_input_and_says_what_comes_of_it(sandboxes):
    async def work(session):
        assert session.supports_pty()
        update = await session.pty_exec_start("cat", tty=True, yield_time_s=0.3)
        sent = await session.pty_write_stdin(session_id=update.process_id, chars="twice\n", yield_time_s=0.3)
        output = await read_until(session, sent, b"twice\r\ntwice")
        assert b"twice" in output
        await session.pty_terminate_all()
        plain = await session.pty_exec_start("echo plain; exit 4", yield_time_s=5)
        assert b"plain" in plain.output and plain.exit_code == 4

    with_session(sandboxes, work)


def test_a_workspace_is_persisted_and_hydrated_by_a_snapshot(sandboxes, daemon):
    async def work(session):
        await session.write(Path("kept"), io.BytesIO(b"kept\n"))
        await session.exec("echo beyond > /root/beyond")
        before = session._inner.state.instavm_session_id
        saved = await session.persist_workspace()
        await session.rm(Path("kept"))
        await session.hydrate_workspace(saved)
        assert session._inner.state.instavm_session_id != before
        assert (await session.read(Path("kept"))).read() == b"kept\n"
        # A snapshot and no archive: it holds the whole disk.
        assert (await session.exec("cat /root/beyond")).stdout == b"beyond\n"

    with_session(sandboxes, work)
    http = daemon.http()
    snapshots = [one for one in http.get("/v1/snapshots").json() if one["name"].startswith("sandbox-")]
    assert len(snapshots) == 1
    assert http.delete(f"/v1/snapshots/{snapshots[0]['id']}").status_code == 200


def test_a_session_is_resumed_while_it_lives_and_begun_anew_after(sandboxes):
    async def run():
        session = await sandboxes.create(options=InstaVMSandboxClientOptions(**CLOSED))
        await session.start()
        await session.write(Path("there"), io.BytesIO(b"there"))
        state = sandboxes.deserialize_session_state(session._inner.state.model_dump_json())
        resumed = await sandboxes.resume(state)
        assert resumed._inner.state.instavm_session_id == session._inner.state.instavm_session_id
        await resumed.start()
        assert (await resumed.read(Path("there"))).read() == b"there"
        await sandboxes.delete(resumed)
        assert not await session.running()
        anew = await sandboxes.resume(sandboxes.deserialize_session_state(state.model_dump_json()))
        try:
            await anew.start()
            assert (await anew.exec("true")).exit_code == 0
            # What was closed is closed in the new session, too.
            assert not (await anew._inner.get_egress_policy())["allow_https"]
        finally:
            await sandboxes.delete(anew)

    asyncio.run(run())
