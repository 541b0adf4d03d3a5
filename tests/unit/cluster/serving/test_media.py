"""Media of requests: data URLs, paths under a root, and addresses that must not be fetched."""

import asyncio
import base64
import http.server
import socket
import threading

import pytest

from cluster.serving.media import Media
from cluster.serving.refusal import Refused
from cluster.serving.remote import Remote, is_public
from cluster.serving.request import Medium, RequestItem

CONTENT = b"\x89PNG not really"
BASE64 = base64.b64encode(CONTENT).decode()


def read(url, *, kind="image", root=None, remote=None, max_file_bytes=1000, max_bytes=2000, n=1):
    media = Media(root=root, remote=remote, max_file_bytes=max_file_bytes, max_bytes=max_bytes)
    item = RequestItem(text="", medium=Medium(kind, url, "field"))
    inputs = asyncio.run(media.inputs([item] * n))
    return inputs[0][kind]


def test_a_data_url_is_the_medium_itself():
    assert read(f"data:image/png;base64,{BASE64}") == CONTENT
    assert read(f"data:application/pdf;base64,{BASE64}", kind="page") == CONTENT
    frames = read(f"data:video/jpeg;base64,{BASE64},{BASE64}", kind="video")
    assert frames == [CONTENT, CONTENT]


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("data:image/png,abc", 400, "base64"),
        ("data:image/png;base64", 400, "base64"),
        ("data:image/png;base64,", 400, "base64 of a file"),
        ("data:image/png;base64,a", 400, "base64"),
        ("data:image/png;base64,\u00e9abc", 400, "base64"),
        ("data:image/png;base64,!!!!", 400, "base64"),
        ("data:text/html;base64,AAAA", 400, "image/"),
        ("data:video/mp4;base64,AAAA", 400, "image/"),
        ("data:image/png;base64," + "A" * 1400, 413, "at most 1000 bytes"),
        ("http://example.org/a.png", 400, "`remote` is off"),
        ("ftp://example.org/a.png", 400, "media_root"),
        ("a.png", 400, "media_root"),
    ],
)
def test_another_url_is_refused(url, status, said):
    with pytest.raises(Refused) as refused:
        read(url)
    assert (refused.value.status, refused.value.param) == (status, "field")
    assert said in str(refused.value)


def test_media_of_a_request_have_a_limit_together():
    with pytest.raises(Refused, match="at most 20 bytes in a request"):
        read(f"data:image/png;base64,{BASE64}", max_bytes=20, n=2)


def test_paths_are_files_under_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "b c").mkdir(parents=True)
    (root / "b c/a.png").write_bytes(CONTENT)
    (root / "a.pdf").write_bytes(CONTENT)
    (root / "same.png").symlink_to(root / "b c/a.png")
    path = str(root / "b c/a.png")
    for url in ("b c/a.png", f"file://{root}/b%20c/a.png", "same.png", f"file://localhost{path}"):
        assert read(url, root=root) == path
    assert read("a.pdf#page=2", kind="page", root=root) == f"{root}/a.pdf#page=2"
    assert read(f"file://{root}/a.pdf#page=2", kind="page", root=root) == f"{root}/a.pdf#page=2"


@pytest.mark.parametrize(
    "url",
    [
        *("../secret", "b/../../secret", "/etc/passwd", "file:///etc/passwd", "file://host/a"),
        *("out", "out/x", "folder/secret", "folder", "missing", "a\0b", "x" * 5000, "loop"),
        *("file:///%2e%2e/secret", "%2e%2e/secret", "file:///root/../secret", "~/secret", ""),
        *("a.png#page=1", "a.mp4#frame=0", "a.parquet#row=0&column=image", "file:///a.png?x"),
        *("file:a/../../secret", "FILE:///etc/passwd", "gopher://a/b", "\\\\host\\share"),
    ],
)
def test_no_path_leaves_the_root(tmp_path, url):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(Refused) as refused:
        read(url, root=root)
    assert refused.value.status == 400
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((a, True) for a in ("8.8.8.8", "1.1.1.1", "2001:4860:4860::8888")),
        *((a, False) for a in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1")),
        *((a, False) for a in ("192.168.0.1", "169.254.169.254", "100.64.0.1", "198.18.0.1")),
        *((a, False) for a in ("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255")),
        *((a, False) for a in ("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254")),
        *((a, False) for a in ("fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1")),
        *((a, False) for a in ("::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1")),
        *((a, False) for a in ("2001:0:1::1", "64:ff9b:1::1", "localhost", "", "1.2.3")),
    ],
)
def test_only_addresses_of_the_public_internet_are_connected_to(address, public):
    assert is_public(address) is public


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
        else:
            self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        if self.path == "/endless":
            with_space = b"x" * 10_000
            try:
                while True:
                    self.wfile.write(with_space)
            except OSError:
                return
        self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        server.hosts = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def fetch(url, *, remote, max_bytes=1000):
    return asyncio.run(remote.fetch(url, "field", max_bytes=max_bytes, take=len))


def test_a_medium_is_fetched_from_the_address_that_was_checked(web):
    checked = []
    remote = Remote(timeout_s=30, allowed=lambda address: checked.append(address) or True)
    port = web.server_port
    assert fetch(f"http://localhost:{port}/a.png", remote=remote) == CONTENT
    assert web.hosts == [f"localhost:{port}"]
    assert "127.0.0.1" in checked
    assert read(f"http://localhost:{port}/a.png", remote=remote) == CONTENT


def test_what_is_fetched_at_a_time_shares_the_limit_of_the_request(web):
    remote = Remote(timeout_s=30, allowed=lambda address: True)
    url = f"http://127.0.0.1:{web.server_port}/a.png"
    assert read(url, remote=remote, max_bytes=3 * len(CONTENT), n=3) == CONTENT
    with pytest.raises(Refused, match="in a request") as refused:
        read(url, remote=remote, max_bytes=3 * len(CONTENT) - 1, n=3)
    assert refused.value.status == 413
    # Neither may have the whole limit while both are on their way.
    endless = f"http://127.0.0.1:{web.server_port}/endless"
    with pytest.raises(Refused, match="at most 1500 bytes in a request"):
        read(endless, remote=remote, max_file_bytes=1 << 30, max_bytes=1500, n=2)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/moved", 400, "302"),
        ("/missing", 400, "404"),
        ("/endless", 413, "1000 bytes"),
    ],
)
def test_answers_that_are_no_medium_are_refused(web, path, status, said):
    remote = Remote(timeout_s=30, allowed=lambda address: True)
    with pytest.raises(Refused, match=said) as refused:
        fetch(f"http://127.0.0.1:{web.server_port}{path}", remote=remote)
    assert refused.value.status == status


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "0"])
def test_a_host_of_this_machine_is_never_asked(web, host):
    with pytest.raises(Refused):
        fetch(f"http://{host}:{web.server_port}/a.png", remote=Remote(timeout_s=30))
    assert web.hosts == []


def test_an_address_is_checked_once_more_when_it_is_connected_to(web):
    """A name server may give a public address first, and then another one."""
    looks = iter((True,) * len(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)))
    remote = Remote(timeout_s=30, allowed=lambda address: next(looks, False))
    with pytest.raises(Refused, match="public addresses only"):
        fetch(f"http://localhost:{web.server_port}/a.png", remote=remote)
    assert web.hosts == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http://user:word@example.org/a", "https://user@example.org", "http:///a"),
        *("http://example.org:0/a", "http://example.org:99999/a", "http://[::1/a", "http:a"),
    ],
)
def test_urls_without_a_plain_host_are_refused(url):
    with pytest.raises(Refused):
        fetch(url, remote=Remote(timeout_s=30, allowed=lambda address: False))


def test_a_medium_that_does_not_come_in_time_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = Remote(timeout_s=0.05, allowed=lambda address: True)
        with pytest.raises(Refused, match=r"within 0\.05 s"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a", remote=remote)
