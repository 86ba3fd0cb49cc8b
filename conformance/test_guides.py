"""The Python examples of the guides, as written, one guide after its beginning: each prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDES = ["vms", "snapshots", "volumes", "pty", "egress", "shares"]
# A comment behind a call of print: what it prints, with `…` for anything.
PRINTS = re.compile(r"^(\s*)print\(.*\S\s+# (.+)$")


def blocks(guide):
    text = (REPOSITORY / "docs" / f"{guide}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def promised(block):
    return [match[2] for line in block.splitlines() if (match := PRINTS.match(line))]


def as_pattern(promise):
    return ".*".join(re.escape(part) for part in promise.split("…"))


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide(guide, daemon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # An account of its own: the examples list what there is.
    monkeypatch.setenv("INSTAVM_API_KEY", daemon.account(f"{guide}@guides.example.com")["api_key"])
    monkeypatch.setenv("INSTAVM_BASE_URL", daemon.base_url)
    names = {}
    assert blocks(guide)
    for block in blocks(guide):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"{guide}.md", "exec"), names)
        lines = [line for line in printed.getvalue().splitlines() if line]
        promises = promised(block)
        assert bool(promises) == ("print(" in block), f"what does it print? {block}"
        assert len(lines) % max(1, len(promises)) == 0 and (lines or not promises), (block, lines)
        for number, line in enumerate(lines):
            assert re.fullmatch(as_pattern(promises[number % len(promises)]), line), (block, line)
