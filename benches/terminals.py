"""How long a key takes to come back from a terminal over WebSocket."""

import json
import time

import websocket

from figures import Distribution, Row, number

KEYS = 500


def pty(pool):
    connection = pool.connection
    made = connection.start(vm_lifetime_seconds=3600)
    # The terminal itself sends back what is typed; nobody reads it meanwhile.
    body = {"cols": 80, "rows": 24, "shell": "/bin/sleep 600"}
    terminal = json.loads(connection.exchange(connection.built(f"/v1/sessions/{made}/pty/sessions", body)))
    address = pool.daemon.base_url.replace("http://", "ws://")
    socket = websocket.create_connection(
        f"{address}/v1/sessions/{made}/pty/{terminal['session_id']}/connect", header=[f"X-API-Key: {pool.daemon.key}"], timeout=10
    )
    figures = Distribution()
    try:
        for turn in range(KEYS + 20):
            key = bytes([ord("a") + turn % 26])
            began = time.perf_counter()
            socket.send_binary(key)
            while key not in socket.recv():
                pass
            if turn >= 20:
                figures.add(time.perf_counter() - began)
    finally:
        socket.close()
        connection.kill(made)
    method = f"One byte by a WebSocket to a terminal that echoes it, {KEYS} times, one after another; the time until it is back."
    return Row("echo of a key over WebSocket, p50", "under 1 ms", f"{number(1000 * figures.p50)} ms", figures.p50 < 0.001, [figures.told()], method)
