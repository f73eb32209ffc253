"""Downloads that fail, in every way a server or a disk has: nothing is left but what was good before."""

import contextlib
import hashlib
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from velodrome.data.sources.download import check_sha256, download
from velodrome.errors import DataError

GOOD = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(GOOD).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Answers each path with one way a server can behave."""

    def do_GET(self):
        getattr(self, f"give_{self.path.strip('/').split('/')[0]}")()

    def _head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def give_good(self):
        self._head(Content_Length=len(GOOD))
        self.wfile.write(GOOD)

    def give_unsized(self):
        self._head()
        self.wfile.write(GOOD)

    def give_wrong(self):
        self._head(Content_Length=len(GOOD))
        self.wfile.write(GOOD[::-1])

    def give_truncated(self):
        self._head(Content_Length=len(GOOD))
        self.wfile.write(GOOD[:100_000])

    def give_chunked(self):
        self._head(Transfer_Encoding="chunked")
        self.wfile.write(b"ffff\r\n" + GOOD[:1000])

    def give_missing(self):
        self.send_error(404)

    def give_stalled(self):
        self._head(Content_Length=len(GOOD))
        self.wfile.write(GOOD[:100])
        self.wfile.flush()
        self.server.end.wait(20)

    def give_trickle(self):
        self._head(Content_Length=len(GOOD))
        with contextlib.suppress(OSError):
            while not self.server.end.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()

    def give_redirect(self):
        self._head(302, Location="/good")

    def give_circle(self):
        self._head(302, Location="/circle")

    def give_elsewhere(self):
        self._head(302, Location="file:///etc/hostname")

    def give_nonsense(self):
        self.wfile.write(b"this is not HTTP\r\n\r\n")

    def give_nothing(self):
        self.close_connection = True

    def give_endless(self):
        self._head()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(GOOD)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.end = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.end.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


check = partial(check_sha256, sha256=SHA256)


@pytest.mark.parametrize("way", ["good", "unsized", "redirect"])
def test_download_puts_the_file_there(server, tmp_path, way):
    download([f"{server}/{way}"], tmp_path / "new" / "file.gz", check=check)
    assert (tmp_path / "new" / "file.gz").read_bytes() == GOOD
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.gz"]


FAILURES = {
    "wrong": f"file.gz has SHA-256 {hashlib.sha256(GOOD[::-1]).hexdigest()}, published is {SHA256}. It was thrown away",
    "truncated": "it broke off after 100,000 of 256,000 bytes",
    "chunked": "it broke off",
    "missing": "HTTP Error 404: Not Found",
    "stalled": "timed out",
    "trickle": "it took more than 1 s",
    "circle": "infinite loop",
    "elsewhere": "not allowed",
    "nonsense": "this is not HTTP",
    "nothing": "closed connection without response",
    "endless": "it sends more than 1,000,000 bytes",
}


@pytest.mark.parametrize("way", FAILURES)
@pytest.mark.parametrize("is_there", [True, False])
def test_download_that_fails_says_how_and_leaves_what_was_there(server, tmp_path, way, is_there):
    folder = tmp_path / "data"
    if is_there:
        folder.mkdir()
        (folder / "file.gz").write_bytes(b"good before")
    start = time.monotonic()
    with pytest.raises(DataError, match=r"file.gz could not be downloaded. Tried http://127") as caught:
        download(
            [f"{server}/{way}"], folder / "file.gz", check=check, timeout_s=0.3, max_bytes=1_000_000, max_seconds=1
        )
    assert FAILURES[way] in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert time.monotonic() - start < 5
    assert [path.read_bytes() for path in folder.glob("*")] == [b"good before"] * is_there
    assert folder.exists() == is_there, "a folder made for the download goes with it"


def test_download_refuses_a_promise_of_too_many_bytes_before_it_writes(server, tmp_path):
    with pytest.raises(DataError, match="it sends 256,000 bytes, more than 1,000"):
        download([f"{server}/good"], tmp_path / "file.gz", check=check, max_bytes=1000)


def test_download_goes_on_to_the_next_mirror(server, tmp_path):
    urls = [f"{server}/{way}" for way in ("missing", "wrong", "nonsense", "good")]
    download(urls, tmp_path / "file.gz", check=check)
    assert (tmp_path / "file.gz").read_bytes() == GOOD
    assert len(list(tmp_path.iterdir())) == 1


def test_download_that_fails_names_what_every_mirror_said(server, tmp_path):
    with pytest.raises(DataError, match=r"Tried .*/missing: HTTP Error 404: Not Found; .*/truncated: it broke off"):
        download([f"{server}/missing", f"{server}/truncated"], tmp_path / "file.gz", check=check)


def test_download_from_an_address_that_is_none_or_does_not_answer(tmp_path):
    with pytest.raises(DataError, match=r"nonsense: unknown url type.*http://127.0.0.1:9/x: .*refused"):
        download(["nonsense", "http://127.0.0.1:9/x"], tmp_path / "file.gz", check=check)


def test_download_into_a_place_that_cannot_be_written_to(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"File exists|Not a directory"):
        download([f"{server}/good"], tmp_path / "file" / "file.gz", check=check)
    with pytest.raises(DataError, match="Not a directory"):
        download([f"{server}/good"], tmp_path / "file" / "deeper" / "file.gz", check=check)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_download_onto_a_folder_leaves_the_folder(server, tmp_path):
    (tmp_path / "file.gz").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        download([f"{server}/good"], tmp_path / "file.gz", check=check)
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
