"""What a caller waits for, measured with plain HTTP on one connection against the daemon of INSTAVM_BASE_URL."""

import os
import statistics
import time

import requests

BASE_URL = os.environ["INSTAVM_BASE_URL"]
API_KEY = os.environ["INSTAVM_API_KEY"]
ROUNDS = int(os.environ.get("INSTAVM_BENCH_ROUNDS", "50"))

http = requests.Session()
http.headers["X-API-Key"] = API_KEY
http.trust_env = False


def post(path, body):
    answer = http.post(BASE_URL + path, json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()


def start():
    return post("/v1/sessions/session", {"api_key": API_KEY})["session_id"]


def kill(session_id):
    post("/kill", {"session_id": session_id})


def report(title, seconds):
    ordered = sorted(1000 * value for value in seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    print(f"{title:<44}{statistics.median(ordered):>10.2f}{last:>10.2f}{len(ordered):>6}")


def timed(action):
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def repeat(title, action, rounds=ROUNDS):
    report(title, [timed(action)[0] for _ in range(rounds)])


def starts(pause):
    """Start to the first result, then the end; `pause` leaves the pool time to refill."""
    first, whole, ends = [], [], []
    for _ in range(max(10, ROUNDS // 5)):
        seconds, session_id = timed(start)
        first.append(seconds)
        more, _ = timed(lambda: post("/execute", {"command": "print(1)", "session_id": session_id}))
        whole.append(seconds + more)
        ends.append(timed(lambda: kill(session_id))[0])
        time.sleep(pause)
    return first, whole, ends


def main():
    print(f"{'what':<44}{'median ms':>10}{'p99 ms':>10}{'n':>6}")
    first, whole, ends = starts(1.0)
    report("start a session, pool refilled", first)
    report("start a session and run its first code", whole)
    report("kill a session", ends)
    first, whole, _ = starts(0)
    report("start a session, one after the other", first)
    report("  and run its first code", whole)
    session_id = start()
    run = lambda code, language="python": post("/execute", {"command": code, "session_id": session_id, "language": language})  # noqa: E731
    repeat("execute Python: x += 1", lambda: run("x = globals().get('x', 0) + 1"))
    repeat("execute bash: true", lambda: run("true", "bash"))
    repeat("execute Python: 1 MB of output", lambda: run("print('x' * (1 << 20))"))
    content = os.urandom(1 << 20)
    repeat(
        "upload 1 MB",
        lambda: http.post(
            BASE_URL + "/upload",
            files={"remote_path": (None, "/app/x"), "session_id": (None, session_id), "file": ("x", content)},
        ).raise_for_status(),
    )
    repeat("download 1 MB", lambda: http.post(BASE_URL + "/download", data={"filename": "/app/x", "session_id": session_id}).raise_for_status())
    repeat("status", lambda: http.get(f"{BASE_URL}/v1/sessions/status/{session_id}").raise_for_status())
    kill(session_id)
    print("No other platform is measured beside it: there are no ratios to print.")


if __name__ == "__main__":
    main()
