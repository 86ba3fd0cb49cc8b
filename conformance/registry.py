"""OCI images made from nothing, and registries on loopback that serve them: well, slowly, wrongly or not at all."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
from daemon import INSTANCES, eventually

OCI = "application/vnd.oci.image"
MANIFEST, INDEX, CONFIG = f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json", f"{OCI}.config.v1+json"
TAR, GZIP, ZSTD = f"{OCI}.layer.v1.tar", f"{OCI}.layer.v1.tar+gzip", f"{OCI}.layer.v1.tar+zstd"
DOCKER = "application/vnd.docker"
DOCKER_MANIFEST, DOCKER_CONFIG = f"{DOCKER}.distribution.manifest.v2+json", f"{DOCKER}.container.image.v1+json"
DOCKER_GZIP = f"{DOCKER}.image.rootfs.diff.tar.gzip"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
# The file tree of the platform's own image, which the first start of a host has made.
PLATFORM_ROOT = Path("/var/cache/instavm/images/names/default/root.tar")
# Of that tree: what a shell and a Python need, an eighth of it.
SMALL = re.compile(
    r"\./(bin|sbin|lib|lib64|root|tmp|etc|usr|var|app|usr/(bin|sbin|lib|lib64|local|local/bin))$"
    r"|\./etc/(passwd|group|shadow|nsswitch.conf|os-release|ld.so.cache|alternatives(/.*)?|ssl(/.*)?)$"
    r"|\./usr/bin/[^/]*$"
    r"|\./usr/lib/(os-release|[^/]*-linux-gnu/(ld-linux[^/]*|lib[^/]*\.so[^/]*)|[^/]*-linux-gnu|ld-linux[^/]*)$"
    r"|\./usr/lib64/[^/]*$"
    r"|\./usr/lib/python3\.\d+(/(?!test/|ensurepip/|pydoc_data/|lib2to3/|config-).*)?$"
)
LARGE, NEEDED = 1 << 18, re.compile(r".*/(bash|tar|python3\.\d+|lib(crypto|ssl|c|m|pcre2-8|mount|blkid|stdc\+\+)\.so[^/]*|[^/]*\.py)$")


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name, content=b"", mode=0o644, kind=tarfile.REGTYPE, link="", uid=0, gid=0, device=(0, 0)):
    """One entry of a layer; `content` is text or bytes."""
    info = tarfile.TarInfo(name)
    data = content.encode() if isinstance(content, str) else content
    info.size, info.mode, info.type, info.linkname = len(data), mode, kind, link
    info.uid, info.gid, info.mtime = uid, gid, 1_700_000_000
    info.devmajor, info.devminor = device
    return info, data


def directory(name, mode=0o755):
    return entry(name, mode=mode, kind=tarfile.DIRTYPE)


def symlink(name, target):
    return entry(name, kind=tarfile.SYMTYPE, link=target)


def tar_of(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


class Layer:
    """One layer as a registry holds it: bytes, or a file on disk."""

    def __init__(self, tar, kind=GZIP, digest=None):
        self.kind = kind
        if isinstance(tar, Path):
            self.blob, self.size = tar, tar.stat().st_size
            self.digest = self.diff_id = digest or file_digest(tar)
            self.kind = TAR
            return
        self.diff_id = sha256(tar)
        self.blob = {TAR: lambda: tar, GZIP: lambda: gzip.compress(tar, 1, mtime=0), ZSTD: lambda: zstd(tar)}[kind]()
        self.digest, self.size = sha256(self.blob), len(self.blob)

    @classmethod
    def of(cls, *entries, kind=GZIP):
        return cls(tar_of(entries), kind)

    @classmethod
    def raw(cls, blob, kind=GZIP, diff_id=None):
        """A layer whose bytes are what they are, with a claim of what is in them."""
        made = cls.__new__(cls)
        made.kind, made.blob, made.digest, made.size = kind, blob, sha256(blob), len(blob)
        made.diff_id = diff_id or made.digest
        return made


def zstd(data):
    return subprocess.run(["zstd", "-q", "-1", "-c"], input=data, capture_output=True, check=True).stdout


def file_digest(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def small_root():
    """A layer with a shell and a Python that VMs start from."""
    out = io.BytesIO()
    with tarfile.open(PLATFORM_ROOT) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as small:
        names = set()
        for info in source:
            wanted = SMALL.match(info.name) and (info.size < LARGE or NEEDED.match(info.name))
            if wanted and (not info.islnk() or info.linkname in names):
                names.add(info.name)
                small.addfile(info, source.extractfile(info) if info.isreg() else None)
    return Layer(out.getvalue())


def whole_root():
    """A layer that is the whole tree of the platform's own image: its apt, pip, npm and git are real."""
    described = json.loads((PLATFORM_ROOT.parent / "image.json").read_text())
    return Layer(PLATFORM_ROOT, digest=described["digest"])


class Image:
    """A manifest with its configuration and layers."""

    def __init__(self, layers, env=None, workdir=None, user=None, entrypoint=None, command=None, architecture=ARCHITECTURE, docker=False):
        self.layers = list(layers)
        self.media = DOCKER_MANIFEST if docker else MANIFEST
        run = {
            "Env": [f"{name}={value}" for name, value in (env or {}).items()] or None,
            "WorkingDir": workdir,
            "User": user,
            "Entrypoint": entrypoint,
            "Cmd": command,
        }
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {name: value for name, value in run.items() if value is not None},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            }
        ).encode()
        self.document = {
            "schemaVersion": 2,
            "mediaType": self.media,
            "config": {"mediaType": DOCKER_CONFIG if docker else CONFIG, "digest": sha256(self.config), "size": len(self.config)},
            "layers": [{"mediaType": DOCKER_GZIP if docker else layer.kind, "digest": layer.digest, "size": layer.size} for layer in self.layers],
        }

    @property
    def manifest(self):
        return json.dumps(self.document).encode()

    @property
    def digest(self):
        return sha256(self.manifest)


class ImageRegistry:
    """A registry in this process, which counts what it is asked for and does what its `faults` say.

    A fault is a function of the request's handler, by digest or by reference; it answers instead of the registry.
    """

    def __init__(self, basic=None, token=None, certificate=None):
        self.manifests, self.blobs, self.faults, self.asked = {}, {}, {}, []
        self.basic, self.token = basic, token
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def push(self, name, image, tag="latest"):
        """Serves an image; gives its reference."""
        self.blobs[sha256(image.config)] = image.config
        for layer in image.layers:
            self.blobs[layer.digest] = layer.blob
        for reference in (tag, image.digest):
            self.manifests[(name, reference)] = (image.media, image.manifest)
        return f"{self.host}/{name}:{tag}"

    def push_index(self, name, images, tag="latest"):
        """Serves several images under one tag, one for each machine: `images` by architecture."""
        listed = []
        for architecture, image in images.items():
            self.push(name, image, tag)
            platform = {"os": "linux", "architecture": architecture}
            listed.append({"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest), "platform": platform})
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
        for reference in (tag, sha256(body)):
            self.manifests[(name, reference)] = (INDEX, body)
        return f"{self.host}/{name}:{tag}"

    def pulled(self):
        """The digests of the blobs that were asked for."""
        return [path.rsplit("/", 1)[1] for method, path in self.asked if method == "GET" and "/blobs/" in path]

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def handler(registry):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.serve()

        def do_GET(self):
            self.serve()

        def serve(self):
            registry.asked.append((self.command, self.path))
            try:
                self.route()
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                self.close_connection = True

        def route(self):
            path = self.path.split("?")[0]
            if path == "/token":
                return self.give_token()
            if not self.allowed():
                return self.challenge()
            found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
            if path == "/v2/":
                return self.answer(200, b"{}", "application/json")
            if not found:
                return self.missing("UNSUPPORTED")
            name, kind, reference = found.groups()
            fault = registry.faults.get(reference) or registry.faults.get(kind)
            if fault:
                return fault(self)
            if kind == "manifests":
                if (name, reference) not in registry.manifests:
                    return self.missing("MANIFEST_UNKNOWN")
                media, body = registry.manifests[(name, reference)]
                return self.answer(200, body, media)
            if reference not in registry.blobs:
                return self.missing("BLOB_UNKNOWN")
            return self.answer(200, registry.blobs[reference], "application/octet-stream")

        def allowed(self):
            sent = self.headers.get("Authorization", "")
            if registry.token:
                return sent == "Bearer issued-token"
            return not registry.basic or sent == basic(*registry.basic)

        def challenge(self):
            body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).encode()
            realm = 'Basic realm="test"'
            if registry.token:
                realm = f'Bearer realm="{registry.scheme}://{registry.host}/token",service="test"'
            self.answer(401, body, "application/json", {"WWW-Authenticate": realm})

        def give_token(self):
            if self.headers.get("Authorization", "") != basic(*registry.token):
                return self.answer(401, b'{"details": "incorrect username or password"}', "application/json")
            return self.answer(200, b'{"token": "issued-token", "expires_in": 300}', "application/json")

        def missing(self, code):
            body = json.dumps({"errors": [{"code": code, "message": "unknown"}]}).encode()
            self.answer(404, body, "application/json")

        def answer(self, status, body, media, headers=None):
            size = body.stat().st_size if isinstance(body, Path) else len(body)
            self.start(status, size, media, headers)
            if self.command == "HEAD":
                return
            if isinstance(body, Path):
                with open(body, "rb") as file:
                    shutil.copyfileobj(file, self.wfile, 1 << 20)
            else:
                self.wfile.write(body)

        def start(self, status, size, media="application/octet-stream", headers=None):
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(size))
            if self.path.rsplit("/", 1)[-1].startswith("sha256:"):
                self.send_header("Docker-Content-Digest", self.path.rsplit("/", 1)[-1])
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def cut(blob):
    """Answers with half of a blob and hangs up."""

    def serve(request):
        request.start(200, len(blob))
        request.wfile.write(blob[: len(blob) // 2])
        request.wfile.flush()
        request.close_connection = True

    return serve


def stall(blob, registry):
    """Answers with half of a blob and then with nothing more, without hanging up."""

    def serve(request):
        request.start(200, len(blob))
        request.wfile.write(blob[: len(blob) // 2])
        request.wfile.flush()
        registry.ended.wait(280)
        request.close_connection = True

    return serve


def instead(body, status=200):
    """Answers with something else."""
    return lambda request: request.answer(status, body, "application/octet-stream")


def once(fault, registry, reference):
    """A fault that happens the first time only."""

    def serve(request):
        del registry.faults[reference]
        fault(request)

    return serve


def endless(blob):
    """Answers with a blob ten times over, without a length."""

    def serve(request):
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        for _ in range(10):
            request.wfile.write(blob)
        request.close_connection = True

    return serve


def bomb(gibibytes):
    """A layer of a few megabytes that unpacks to one file of so many GiB."""
    info, _ = entry("bomb")
    info.size = gibibytes << 30
    piece = gzip.compress(bytes(1 << 28), 6, mtime=0)
    return Layer.raw(gzip.compress(info.tobuf(tarfile.PAX_FORMAT), mtime=0) + piece * (gibibytes * 4))


class DockerRegistry:
    """Debian's own registry on loopback, with a directory of its own."""

    def __init__(self):
        self.directory = INSTANCES / f"{os.getpid()}-registry.d"
        self.directory.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = "127.0.0.1:%d" % probe.getsockname()[1]
        configuration = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            "log": {"level": "warn"},
        }
        file = self.directory / "config.yml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", file], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.session = requests.Session()
        self.session.trust_env = False
        try:
            eventually(self.ready, 20, what="the registry")
        except AssertionError:
            self.close()
            raise

    def ready(self):
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return self.session.get(f"http://{self.host}/v2/", timeout=5).status_code == 200
        except requests.exceptions.ConnectionError:
            return False

    def push(self, name, image, tag="latest"):
        """Puts an image there as any client would; gives its reference."""
        for digest, blob in [(sha256(image.config), image.config), *((layer.digest, layer.blob) for layer in image.layers)]:
            self.put_blob(name, digest, blob)
        put = self.session.put(
            f"http://{self.host}/v2/{name}/manifests/{tag}", data=image.manifest, headers={"Content-Type": image.media}, timeout=60
        )
        assert put.status_code == 201, put.text
        return f"{self.host}/{name}:{tag}"

    def put_blob(self, name, digest, blob):
        if self.session.head(f"http://{self.host}/v2/{name}/blobs/{digest}", timeout=60).status_code == 200:
            return
        started = self.session.post(f"http://{self.host}/v2/{name}/blobs/uploads/", timeout=60)
        assert started.status_code == 202, started.text
        place = requests.compat.urljoin(f"http://{self.host}/", started.headers["Location"])
        data = blob.read_bytes() if isinstance(blob, Path) else blob
        done = self.session.put(
            place + ("&" if "?" in place else "?") + "digest=" + digest,
            data=data,
            headers={"Content-Type": "application/octet-stream"},
            timeout=120,
        )
        assert done.status_code == 201, done.text

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def authority(folder, host="127.0.0.1"):
    """A private authority and a certificate of it for a host: paths of the authority, the certificate, its key."""
    folder = Path(folder)
    ca, ca_key, request, certificate, key, extension = (folder / name for name in ("ca.pem", "ca.key", "csr", "cert.pem", "key.pem", "ext"))
    extension.write_text(f"subjectAltName=IP:{host}\nbasicConstraints=CA:FALSE\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=private authority"],
        ["req", *curve, "-keyout", key, "-out", request, "-subj", f"/CN={host}"],
        ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", extension],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    return ca, certificate, key


def seconds_of(call):
    """What a call gives, and how long it took."""
    started = time.monotonic()
    return call(), time.monotonic() - started
