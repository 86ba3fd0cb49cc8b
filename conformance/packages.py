"""Packages of apt, pip and npm and a git repository, made from nothing: entries of a layer from which a build installs
them with the real tools and without any network."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

from registry import directory, entry, tar_of

REPOSITORY_URL = "https://git.invalid/team/app.git"
NPM_PORT = 4873
# What the tools are told so that they look nowhere else.
ENVIRONMENT = {
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/srv/wheels",
    "NODE_OPTIONS": "--require /srv/npm/registry.cjs",
    "npm_config_registry": f"http://127.0.0.1:{NPM_PORT}/",
}


def archive(members):
    """An `ar` archive."""
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def compressed(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def deb(name):
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: Tests <tests@localhost>\nDescription: made by a test\n"
    data = [directory("./"), directory("./usr"), directory("./usr/bin"), entry(f"./usr/bin/{name}", f"#!/bin/sh\necho {name} of apt\n", 0o755)]
    members = [("debian-binary", b"2.0\n"), ("control.tar.gz", compressed([entry("./control", control)])), ("data.tar.gz", compressed(data))]
    return control, archive(members)


def apt(*names):
    """A repository of apt, the only one that there is."""
    out, index = [], ""
    for name in names:
        control, package = deb(name)
        out.append(entry(f"srv/apt/{name}.deb", package))
        index += f"{control}Filename: ./{name}.deb\nSize: {len(package)}\nSHA256: {hashlib.sha256(package).hexdigest()}\n\n"
    return [
        directory("srv/apt"),
        *out,
        entry("srv/apt/Packages", index),
        entry("etc/apt/.wh.sources.list.d"),
        entry("etc/apt/sources.list", "deb [trusted=yes] file:/srv/apt ./\n"),
    ]


def wheel(name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"{name}.py", f"said = '{name} of pip'\n")
        info = f"{name}-1.0.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return entry(f"srv/wheels/{name}-1.0-py3-none-any.whl", out.getvalue())


def npm(name):
    """A package and a registry that serves it from within every process of Node, for as long as that runs."""
    package = {"name": name, "version": "1.0.0", "main": "index.js"}
    tarball = compressed([entry("package/package.json", json.dumps(package)), entry("package/index.js", f"module.exports = '{name} of npm';\n")])
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    dist = {"tarball": f"http://127.0.0.1:{NPM_PORT}/{name}.tgz", "integrity": integrity}
    document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**package, "dist": dist}}}
    server = f"""
const http = require('http'), fs = require('fs');
const served = http.createServer((request, response) => {{
    if (request.url === '/{name}') response.end(fs.readFileSync('/srv/npm/{name}.json'));
    else if (request.url === '/{name}.tgz') response.end(fs.readFileSync('/srv/npm/{name}.tgz'));
    else {{ response.statusCode = 404; response.end('{{}}'); }}
}});
served.on('error', () => {{}});
served.listen({NPM_PORT}, '127.0.0.1');
served.unref();
"""
    return [
        directory("srv/npm"),
        entry("srv/npm/registry.cjs", server),
        entry(f"srv/npm/{name}.json", json.dumps(document)),
        entry(f"srv/npm/{name}.tgz", tarball),
    ]


def repository():
    """A bare repository with the branches `main` and `other`, found under an address that nobody has."""
    identity = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@localhost", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@localhost"}
    with tempfile.TemporaryDirectory() as folder:

        def git(*words):
            subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, env={**os.environ, **identity, "HOME": folder})

        git("init", "-q", "-b", "main", "work")
        for branch in ("main", "other"):
            git("-C", "work", "checkout", "-q", "-B", branch)
            Path(folder, "work/branch").write_text(branch + "\n")
            git("-C", "work", "add", ".")
            git("-C", "work", "commit", "-q", "-m", branch)
        git("-C", "work", "checkout", "-q", "main")
        git("clone", "-q", "--bare", "work", "bare")
        out = [directory("srv/app.git")]
        for path in sorted(Path(folder, "bare").rglob("*")):
            name = f"srv/app.git/{path.relative_to(Path(folder, 'bare'))}"
            out.append(directory(name) if path.is_dir() else entry(name, path.read_bytes()))
    return [*out, entry("root/.gitconfig", f'[url "file:///srv/app.git"]\n\tinsteadOf = {REPOSITORY_URL}\n')]


def layer_tar():
    """All of them as one layer: `a-tool` and `b-tool` of apt, `a_module` of pip, `a-package` of npm, a repository."""
    return tar_of([directory("srv"), *apt("a-tool", "b-tool"), directory("srv/wheels"), wheel("a_module"), *npm("a-package"), *repository()])
