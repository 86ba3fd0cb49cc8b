"""Session starts: from the pool, cold, and many at once."""

import json
import time

from figures import Distribution, Row, timed
from wire import at_once

ROUNDS = 40
CROWD = 100
CROWD_ROUNDS = 3


def first_print(connection):
    """Starts a session and prints in it; the seconds of both steps. The session ends outside of the measurement."""
    request = connection.start_request()
    began = time.perf_counter()
    session_id = json.loads(connection.exchange(request))["session_id"]
    started = time.perf_counter()
    answer = connection.exchange(connection.execute_request(session_id, "print(1)"))
    printed = time.perf_counter()
    if json.loads(answer)["stdout"] != "1\n":
        raise RuntimeError(f"the session printed {answer!r}")
    connection.kill(session_id)
    return started - began, printed - started


def starts(pool, cold, runc):
    """The two rows of session starts, beside `runc run`; the three take turns."""
    steps = {name: (Distribution(), Distribution(), Distribution()) for name in ("pool", "cold")}
    peer = Distribution()
    for _ in range(ROUNDS):
        for name, instance in (("pool", pool), ("cold", cold)):
            instance.settle()
            start, printing = first_print(instance.connection)
            for distribution, value in zip(steps[name], (start + printing, start, printing), strict=True):
                distribution.add(value)
        pool.settle()
        cold.settle()
        peer.add(timed(runc.run)[0])
    method = (
        "One client on one keep-alive connection; `POST /v1/sessions/session`, then `POST /execute` with `print(1)`. Before each round the pool"
        " is full and what ended before is removed. The peer runs `python3 -c 'print(1)'` by `runc run` on the same root file system, read-only."
    )
    ratio = peer.p50 / steps["pool"][0].p50
    rows = [
        Row(
            "start a session and its first print(1), from the pool",
            "10× faster than runc run, p50 under 10 ms",
            f"{ratio:.1f}× faster, p50 {1000 * steps['pool'][0].p50:.2f} ms",
            ratio >= 10 and steps["pool"][0].p50 < 0.010,
            [*told(steps["pool"]), f"{'runc run':<16}{peer.told()}"],
            method,
        ),
        Row(
            "the same cold (pool off)",
            "p50 under 40 ms",
            f"p50 {1000 * steps['cold'][0].p50:.1f} ms, {peer.p50 / steps['cold'][0].p50:.2f}× as fast as runc run",
            steps["cold"][0].p50 < 0.040,
            [*told(steps["cold"]), f"{'runc run':<16}{peer.told()}"],
            "As above, with `INSTAVM_POOL_SIZE=0`.",
        ),
    ]
    return rows


def told(steps):
    return [f"{name:<16}{values.told()}" for name, values in zip(("both", "  start", "  print(1)"), steps, strict=True)]


def crowd(pool, runc):
    """Many session starts sent in one go, each on a connection of its own."""
    connections = [pool.connect() for _ in range(CROWD)]
    all_starts = Distribution()
    rounds = []
    for _ in range(CROWD_ROUNDS):
        pool.settle()
        seconds, bodies = at_once(connections, [connection.start_request() for connection in connections])
        sessions = [json.loads(body)["session_id"] for body in bodies]
        rounds.append(Distribution(seconds))
        for value in seconds:
            all_starts.add(value)
        if len(set(sessions)) != CROWD:
            raise RuntimeError(f"{len(set(sessions))} sessions of {CROWD}")
        for session_id in sessions:
            pool.connection.kill(session_id)
    for connection in connections:
        connection.close()
    pool.settle()
    peers = crowd_of_runc(runc)
    worst = max(one.at(0.95) for one in rounds)
    spread = "  ".join(f"p{round(100 * share)} {1000 * all_starts.at(share):.0f}" for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1))
    return Row(
        f"{CROWD} session starts at once",
        "all succeed, p95 under 1 s",
        f"all {CROWD_ROUNDS} × {CROWD} succeeded, p95 {worst:.2f} s in the slowest round",
        worst < 1,
        [
            *(f"round {number:<10}{one.told()}" for number, one in enumerate(rounds, 1)),
            f"all: {spread} ms",
            f"{'runc run, all':<16}{peers.told()}",
        ],
        "Each start on an own connection that is open already, all sent in one go by one thread; measured until each answer was whole. The peer:"
        f" {CROWD} `runc run` begun in one go, measured until each one ended.",
    )


def crowd_of_runc(runc):
    began = time.perf_counter()
    running = [runc.start() for _ in range(CROWD)]
    ends = Distribution()
    while running:
        for process in [process for process in running if process.poll() is not None]:
            if process.returncode != 0:
                raise RuntimeError(f"runc ended with {process.returncode}")
            ends.add(time.perf_counter() - began)
            running.remove(process)
        time.sleep(0.002)
    return ends
