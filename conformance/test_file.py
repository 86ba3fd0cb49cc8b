"""Files in and out of a session's VM."""

import base64
import gzip
import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from instavm import InstaVMError

pytestmark = pytest.mark.contract


@pytest.fixture
def local(tmp_path):
    def make(content, name="local"):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return make


def test_a_file_goes_up_and_comes_down_byte_for_byte(client, local, tmp_path):
    content = os.urandom(100_000) + bytes(range(256))
    client.upload_file(local(content), "/app/deep/er/data.bin")
    assert client.download_file("/app/deep/er/data.bin")["content"] == content
    target = tmp_path / "down"
    answer = client.download_file("/app/deep/er/data.bin", local_path=str(target))
    assert answer["size"] == len(content)
    assert target.read_bytes() == content


def test_relative_paths_are_under_app(client, local):
    client.upload_file(local(b"print('from file')\n"), "sub/script.py")
    assert client.execute("cat /app/sub/script.py", language="bash")["stdout"] == "print('from file')\n"
    client.execute("open('output.json', 'w').write('{}')")
    assert client.download_file("output.json")["content"] == b"{}"
    assert client.download_file("./sub/../output.json")["content"] == b"{}"


def test_an_empty_file_stays_empty(client, local, http, tmp_path):
    client.upload_file(local(b""), "/app/empty")
    target = tmp_path / "down"
    client.download_file("/app/empty", local_path=str(target))
    assert target.read_bytes() == b""
    raw = http.post("/download", None, data={"filename": "/app/empty", "session_id": client.session_id}).json()
    assert raw["content"] == "\n"
    assert raw["size"] == 0


def test_an_upload_replaces_the_file_and_keeps_nothing_of_the_old(client, local):
    client.upload_file(local(b"long content", "a"), "/app/f")
    client.upload_file(local(b"short", "b"), "/app/f")
    assert client.download_file("/app/f")["content"] == b"short"


def test_names_with_anything_in_them(client, local):
    for name in ("/app/with space", "/app/ünïcødé €.txt", "/app/a'b\"c", "/app/%2e%2e", "/app/-rf", "/app/new\nline"):
        client.upload_file(local(name.encode()), name)
        assert client.download_file(name)["content"] == name.encode()


def test_missing_files_and_directories_are_4xx_with_a_reason(client, http):
    with pytest.raises(InstaVMError):
        client.download_file("/app/nothing")
    for path, status in (("/app/nothing", 404), ("/app", (400, 409, 422)), ("/dev/zero", (400, 403, 409, 422))):
        answer = http.post("/download", None, data={"filename": path, "session_id": client.session_id})
        wanted = status if isinstance(status, tuple) else (status,)
        assert answer.status_code in wanted, (path, answer.text)
        assert isinstance(answer.json()["detail"], str)


def test_a_file_that_is_a_pipe_does_not_hang(client, http, stopwatch):
    client.execute("mkfifo /app/pipe", language="bash")
    answer = http.post("/download", None, data={"filename": "/app/pipe", "session_id": client.session_id})
    assert 400 <= answer.status_code < 500
    assert stopwatch() < 10


def test_links_do_not_lead_out_of_the_vm(client, http, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    client.execute(f"mkdir -p {tmp_path} && ln -s {secret} /app/link && ln -s / /app/root", language="bash")
    for path in ("/app/link", f"/app/root{secret}", f"/proc/1/root{secret}", "../" * 40 + str(secret)[1:]):
        answer = http.post("/download", None, data={"filename": path, "session_id": client.session_id})
        assert answer.status_code in (403, 404), (path, answer.text)


def test_a_large_file_streams(client, local, tmp_path):
    block = os.urandom(1 << 20)
    path = tmp_path / "large"
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(block)
    wanted = hashlib.sha256(block * 64).hexdigest()
    client.upload_file(str(path), "/app/large")
    assert client.execute("sha256sum /app/large", language="bash")["stdout"].split()[0] == wanted
    client.download_file("/app/large", local_path=str(tmp_path / "down"))
    assert hashlib.sha256((tmp_path / "down").read_bytes()).hexdigest() == wanted


def test_an_upload_that_breaks_off_leaves_the_old_file(client, local, daemon):
    import socket
    from urllib.parse import urlparse

    client.upload_file(local(b"old"), "/app/kept")
    address = urlparse(daemon.base_url)
    boundary = b"xyz"
    body = b"".join(
        b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair
        for pair in ((b"remote_path", b"/app/kept"), (b"session_id", client.session_id.encode()))
    )
    body += b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"new" * 10000
    with socket.create_connection((address.hostname, address.port)) as raw:
        raw.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nX-API-Key: " + daemon.key.encode()
            + b"\r\nContent-Type: multipart/form-data; boundary=" + boundary
            + b"\r\nContent-Length: 10000000\r\n\r\n" + body
        )
    assert client.download_file("/app/kept")["content"] == b"old"


def test_a_full_disk_is_an_answer_not_a_crash(client, http):
    client.execute("mkdir -p /app/small && mount -t tmpfs -o size=64k tmpfs /app/small", language="bash")
    if "tmpfs" not in client.execute("stat -f -c %T /app/small", language="bash")["stdout"]:
        pytest.fail("a tmpfs could not be mounted inside the VM")
    upload = http.request(
        "POST",
        "/upload",
        files={
            "remote_path": (None, "/app/small/big"),
            "session_id": (None, client.session_id),
            "file": ("x", b"x" * (1 << 20)),
        },
    )
    assert upload.status_code in (409, 413, 422, 507), upload.text
    assert isinstance(upload.json()["detail"], str)


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("dir/inside.txt", "hello")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as file:
            member = tarfile.TarInfo("dir/inside.txt")
            member.size = 5
            file.addfile(member, io.BytesIO(b"hello"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_recursive_upload_of_an_archive_is_unpacked(client, local, kind):
    client.upload_file(local(archive(kind)), "/app/unpacked", recursive=True)
    assert client.download_file("/app/unpacked/dir/inside.txt")["content"] == b"hello"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 100_000])
def test_a_recursive_upload_of_a_compressed_file_is_that_file(client, local, size):
    content = gzip.compress(b"x" * size)
    client.upload_file(local(content), "/app/data.gz", recursive=True)
    assert client.download_file("/app/data.gz")["content"] == content


def bad_archives():
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as file:
        for name in ("kept.txt", "new.txt", "../out.txt"):
            member = tarfile.TarInfo(name)
            member.size = 100_000
            file.addfile(member, io.BytesIO(os.urandom(100_000)))
    return {"leads out": whole.getvalue(), "breaks off": whole.getvalue()[:150_000], "zip breaks off": archive("zip")[:60]}


@pytest.mark.parametrize("kind", bad_archives())
def test_an_archive_that_cannot_be_unpacked_changes_nothing(client, http, kind):
    client.execute("mkdir -p /app/target && echo old > /app/target/kept.txt", language="bash")
    before = client.execute("find /app /tmp -not -type d | sort | xargs sha256sum", language="bash")["stdout"]
    parts = {
        "remote_path": (None, "/app/target"),
        "session_id": (None, client.session_id),
        "recursive": (None, "true"),
        "file": ("x", bad_archives()[kind]),
    }
    answer = http.request("POST", "/upload", files=parts)
    assert answer.status_code == 422 and "file" in answer.json()["detail"], answer.text
    assert client.execute("find /app /tmp -not -type d | sort | xargs sha256sum", language="bash")["stdout"] == before


def test_an_archive_is_merged_into_what_is_there(client, local):
    client.execute("mkdir -p /app/merged/dir && echo old > /app/merged/dir/inside.txt && echo mine > /app/merged/dir/mine.txt", language="bash")
    client.upload_file(local(archive("tar.gz")), "/app/merged", recursive=True)
    assert client.download_file("/app/merged/dir/inside.txt")["content"] == b"hello"
    assert client.download_file("/app/merged/dir/mine.txt")["content"] == b"mine\n"
    assert client.execute("ls -A /app/merged /app", language="bash")["stdout"].count(".unpack") == 0


def test_an_archive_without_members_is_an_empty_directory(client, local):
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w:gz"):
        pass
    client.upload_file(local(empty.getvalue()), "/app/nothing", recursive=True)
    assert client.execute("stat -c %F /app/nothing && ls -A /app/nothing", language="bash")["stdout"] == "directory\n"


def test_a_recursive_upload_of_anything_else_is_a_file(client, local):
    client.upload_file(local(b"plain"), "/app/plain", recursive=True)
    assert client.download_file("/app/plain")["content"] == b"plain"


def test_the_answer_of_a_download_is_base64_with_name_and_size(client, http):
    client.execute("printf abc > /app/f", language="bash")
    answer = http.post("/download", None, data={"filename": "f", "session_id": client.session_id}).json()
    assert base64.b64decode(answer["content"]) == b"abc"
    assert (answer["filename"], answer["size"]) == ("f", 3)
