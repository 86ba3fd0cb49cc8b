"""The command line beside the official one."""

import os
import sys
import tempfile
from pathlib import Path

from figures import Distribution, Row, timed
from host import spawned

ROUNDS = 10
OURS_PER_ROUND = 10
COMMANDS = (("--help",), ("auth", "status"))


def command_line(ours, base_url, key):
    """Each command of both programs, by turns; `ours` is the path of the program or None when it is not there."""
    what, wanted = "`instavm --help` and `instavm auth status`", "80× faster than the official client's"
    official = Path(sys.executable).parent / "instavm"
    with tempfile.TemporaryDirectory(prefix="instavm-bench-") as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
        options = {"env": {**kept, "HOME": home, "INSTAVM_BASE_URL": base_url, "INSTAVM_API_KEY": key}}
        if ours is not None and not all(spawned(ours, *command, **options).strip() for command in COMMANDS):
            ours = None  # a program that does not say anything is not the one
        reached, details, met = [], [], ours is not None
        for command in COMMANDS:
            peer, own = Distribution(), Distribution()
            spawned(official, *command, **options)  # its byte code is cached from here on
            for _ in range(ROUNDS):
                peer.add(timed(lambda: spawned(official, *command, **options))[0])
                for _ in range(OURS_PER_ROUND if ours else 0):
                    own.add(timed(lambda: spawned(ours, *command, **options))[0])
            name = " ".join(command)
            if ours:
                details.append(f"{'InstaVM ' + name:<24}{own.told()}")
                ratio = peer.p50 / own.p50
                met = met and ratio >= 80
                reached.append(f"{name} {ratio:.0f}×")
            details.append(f"{'official ' + name:<24}{peer.told()}")
    return Row(what, wanted, ", ".join(reached) or "not measured: the program is not there yet", met, details, "Start to end of each process, by turns, with the same environment.")
