"""The examples of the README, as they are written there, against a real daemon.

A comment at the end of a line is what the line prints.
"""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [(language, text) for language, text in BLOCKS if language != "console"]
COMMENT = {"python": "#", "rust": "//", "sh": "#"}


def promised(language, text):
    """What the example says it prints."""
    return re.findall(rf"\S.*? {COMMENT[language]} (.+)$", text, re.MULTILINE)


def rust_example(text):
    """The program that the block is, built from an example of the crate with the same words."""
    source = REPOSITORY / "crates/client/examples/readme.rs"
    assert source.read_text().endswith(f"\n\n{text}"), f"{source} and the README differ"
    # What is built belongs to whom the rest of the target directory belongs to.
    owner = TARGET.stat().st_uid
    home = {"HOME": pwd.getpwuid(owner).pw_dir} if owner != os.getuid() else {}
    build = ["cargo", "build", "--release", "--quiet", "--workspace", "--example", "readme"]
    done = subprocess.run(build, cwd=REPOSITORY, user=owner, env={**os.environ, **home}, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return [TARGET / "release/examples/readme"]


def program(language, text):
    match language:
        case "python":
            return [sys.executable, "-c", text]
        case "rust":
            return rust_example(text)
        case "sh":
            return ["bash", "-euo", "pipefail", "-c", text]
    raise AssertionError(f"nobody runs the README's examples in {language!r}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[f"{number}-{language}" for number, (language, _) in enumerate(EXAMPLES)])
def test_the_example_runs_as_written(daemon, tmp_path, number):
    language, text = EXAMPLES[number]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INSTAVM_")}
    variables = {
        "HOME": str(tmp_path),
        "PATH": f"{TARGET / 'release'}:{kept['PATH']}",
        "INSTAVM_API_KEY": daemon.key,
        "INSTAVM_BASE_URL": daemon.base_url,
    }
    before = {session["session_id"] for session in sandboxes(daemon)}
    try:
        done = subprocess.run(
            program(language, text), env={**kept, **variables}, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    finally:
        for session in sandboxes(daemon):
            if session["session_id"] not in before:
                daemon.http().post("/kill", {"session_id": session["session_id"]})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    expected = promised(language, text)
    assert expected, "the example promises nothing"
    assert done.stdout.split("\n") == [*expected, ""]


def sandboxes(daemon):
    return daemon.http().get("/v1/sessions/sandboxes", params={"limit": 1000}).json()


def test_each_way_in_is_shown():
    texts = {language: "".join(text for other, text in EXAMPLES if other == language) for language, _ in EXAMPLES}
    assert "from instavm import InstaVM" in texts["python"]
    assert "use instavm::" in texts["rust"]
    assert "instavm exec " in texts["sh"] and "curl " in texts["sh"]


def test_what_is_typed_exists():
    typed = "".join(text for language, text in BLOCKS if language == "console")
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    makes = re.findall(r"^\$ make (\w+)", typed, re.MULTILINE)
    assert makes and set(makes) <= set(targets)
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (REPOSITORY / path).exists(), f"the README links to {path}, which is not there"
