"""Downloads against servers on this machine: whole files or none, and https only.

The servers speak plain http, so most tests replace the opener, and only that; the tests of the
real opener come last.
"""

import dataclasses
import hashlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from urllib.error import URLError

import pytest

from pyro_vae import datasets
from pyro_vae.datasets import Transfer, catalog, frey_face, mnist
from pyro_vae.datasets.fetching import download, https, locking
from pyro_vae.datasets.fetching.files import Published

from .servers import CONTENT, Server

NAME = "mnist/train-images-idx3-ubyte.gz"


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def plain_http(monkeypatch):
    """The opener of the library, but for plain http; it refuses the same redirects."""

    def opener():
        none = urllib.request.ProxyHandler({})
        return urllib.request.build_opener(none, https.HttpsRedirects())

    monkeypatch.setattr(https, "opener", opener)


@pytest.fixture
def publish(server, plain_http, monkeypatch):
    """Make `mnist` a data set of one file, CONTENT, at the addresses of some answers."""

    def publish(*answers, name=NAME, **changes):
        urls = []
        for number, answer in enumerate(answers):
            server.answers[f"/{number}"] = answer
            urls.append(server.url(f"/{number}"))
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = dataclasses.replace(Published(name, len(CONTENT), digest, tuple(urls)), **changes)
        monkeypatch.setattr(mnist, "PUBLISHED", (file,))
        return file

    return publish


def part_of(folder):
    return folder / f"{NAME}.part"


def put_part(folder, content):
    part_of(folder).parent.mkdir(parents=True, exist_ok=True)
    part_of(folder).write_bytes(content)


def left(folder):
    """What lies in the folder of the data set, but for the lock."""
    return sorted(path.name for path in (folder / "mnist").iterdir() if path.name != ".lock")


def refused(folder, *said):
    """`get` raises one line with all of this in it, and leaves nothing under the final name."""
    with pytest.raises(ValueError) as caught:
        datasets.get("mnist", folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for each in said:
        assert each in message
    assert not (folder / NAME).exists()


# Whole files


@pytest.mark.parametrize("length", [True, False])
def test_a_file_arrives_whole_and_says_where_it_came_from(publish, server, tmp_path, length):
    publish({"length": length})
    seen: list[Transfer] = []

    (fetched,) = datasets.get("mnist", tmp_path / "new", progress=seen.append)

    assert fetched == datasets.Fetched(tmp_path / "new" / NAME, len(CONTENT), server.url("/0"))
    assert fetched.path.read_bytes() == CONTENT
    assert left(tmp_path / "new") == [fetched.path.name]
    done = [transfer.done for transfer in seen]
    assert done[0] == 0 and done[-1] == len(CONTENT) and done == sorted(done) and len(done) > 3
    assert {(transfer.file, transfer.total) for transfer in seen} == {(NAME, len(CONTENT))}


def test_a_file_that_is_there_is_not_fetched_again(publish, server, tmp_path):
    """Nor is anything written: the folder may be read-only."""
    publish({})
    (tmp_path / "mnist").mkdir()
    (tmp_path / NAME).write_bytes(CONTENT)

    (fetched,) = datasets.get("mnist", tmp_path)

    assert fetched.source is None and not server.requests
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == [fetched.path.name]


def test_a_damaged_file_is_fetched_again_and_stays_until_then(publish, server, tmp_path):
    publish({"status": 404})
    (tmp_path / "mnist").mkdir()
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="HTTP 404"):
        datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"damaged"

    server.answers["/0"] = {}
    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_files_go_to_the_folder_of_the_environment(publish, tmp_path, monkeypatch):
    publish({})
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    assert datasets.get("mnist")[0].path == tmp_path / NAME
    monkeypatch.delenv("PYRO_VAE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert datasets.get("mnist")[0].path == tmp_path / "cache/pyro_vae" / NAME


def test_a_data_set_of_a_library_has_nothing_to_fetch(tmp_path):
    assert datasets.get("digits", tmp_path) == datasets.verify("digits", tmp_path) == ()
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    for function in (datasets.get, datasets.verify):
        with pytest.raises(ValueError, match="did you mean 'mnist'"):
            function("mnits", tmp_path)
        with pytest.raises(ValueError, match="expected one of"):
            function("idx", tmp_path)


# Resuming


def test_a_cut_download_goes_on_where_it_stopped(publish, server, tmp_path):
    half = len(CONTENT) // 2
    publish({"cut": half})
    refused(tmp_path, f"cut after {half:,} of {len(CONTENT):,} bytes", "goes on where this stopped")
    assert part_of(tmp_path).read_bytes() == CONTENT[:half]

    server.answers["/0"] = {}
    seen: list[Transfer] = []
    datasets.get("mnist", tmp_path, progress=seen.append)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges("/0") == [None, f"bytes={half}-"]
    assert seen[0].done == half
    assert left(tmp_path) == ["train-images-idx3-ubyte.gz"]


def test_a_cut_download_goes_on_at_the_next_address(publish, server, tmp_path):
    publish({"cut": 100_000}, {})
    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.requests == [("/0", None), ("/1", "bytes=100000-")]


def test_an_interrupt_leaves_the_part_for_resuming(publish, server, tmp_path):
    publish({})

    def interrupt(transfer):
        if transfer.done >= len(CONTENT) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.get("mnist", tmp_path, progress=interrupt)
    assert left(tmp_path) == [part_of(tmp_path).name]
    kept = part_of(tmp_path).read_bytes()
    assert kept == CONTENT[: len(kept)] and len(kept) >= len(CONTENT) // 2

    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges("/0")[-1] == f"bytes={len(kept)}-"


@pytest.mark.parametrize(
    ("answer", "part", "requests"),
    [
        ({"ranges": False}, CONTENT[:1000], ["bytes=1000-"]),
        ({"shift": 7}, CONTENT[:1000], ["bytes=1000-", None]),
        ({}, b"no beginning", ["bytes=12-", None]),
    ],
    ids=["a server without ranges", "another range", "another beginning"],
)
def test_what_cannot_be_resumed_is_started_over(publish, server, tmp_path, answer, part, requests):
    publish(answer)
    put_part(tmp_path, part)
    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges("/0") == requests


def test_a_part_that_has_all_bytes_is_not_fetched_again(publish, server, tmp_path):
    publish({})
    put_part(tmp_path, CONTENT)
    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT and not server.requests


def test_a_part_that_is_too_long_is_started_over(publish, server, tmp_path):
    publish({})
    put_part(tmp_path, CONTENT + b"more")
    datasets.get("mnist", tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT and server.ranges("/0") == [None]


# Refusals


def test_another_content_is_refused_and_removed(publish, tmp_path):
    changed = b"x" + CONTENT[1:]
    publish({"body": changed})
    refused(tmp_path, f"got sha256 {hashlib.sha256(changed).hexdigest()}, expected")
    assert left(tmp_path) == []


def test_a_changed_copy_is_passed_over_for_the_next_address(publish, server, tmp_path):
    publish({"body": b"x" + CONTENT[1:]}, {})
    (fetched,) = datasets.get("mnist", tmp_path)
    assert fetched.source == server.url("/1") and fetched.path.read_bytes() == CONTENT


def test_a_body_that_is_announced_with_another_size_is_not_read(publish, tmp_path):
    """The page of a hotel's network must not cost what was downloaded before."""
    for body in (CONTENT + b"x", b"<html>please log in</html>"):
        publish({"body": body, "ranges": False})
        put_part(tmp_path, CONTENT[:1000])
        refused(tmp_path, f"offers {len(body):,} bytes, expected {len(CONTENT):,}")
        assert part_of(tmp_path).read_bytes() == CONTENT[:1000]


def test_a_body_that_never_ends_is_refused_at_its_known_size(publish, tmp_path):
    publish({"body": CONTENT * 64, "length": False})
    seen: list[Transfer] = []
    with pytest.raises(ValueError, match=f"sends more than {len(CONTENT):,} bytes"):
        datasets.get("mnist", tmp_path, progress=seen.append)
    assert max(transfer.done for transfer in seen) <= len(CONTENT)
    assert left(tmp_path) == []


def test_the_second_address_serves_where_the_first_has_no_file(publish, server, tmp_path):
    publish({"status": 404}, {})
    (fetched,) = datasets.get("mnist", tmp_path)
    assert fetched.source == server.url("/1")


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_without_a_network_one_line_says_what_to_do_by_hand(publish, tmp_path):
    url = f"http://127.0.0.1:{closed_port()}/a.gz"
    file = publish(urls=(url, url.replace("a.gz", "b.gz")))
    put_part(tmp_path, CONTENT[:1000])
    refused(
        tmp_path,
        "Connection refused; 127.0.0.1: ",
        f"by hand: fetch {url} (sha256 {file.sha256}) and put it at {tmp_path / NAME}",
    )
    assert part_of(tmp_path).read_bytes() == CONTENT[:1000]


def test_a_name_that_is_not_resolved_is_said(publish, tmp_path, monkeypatch):
    def unresolved(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    publish(urls=("http://nowhere.invalid/a.gz",))
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    refused(tmp_path, "nowhere.invalid: ", "Name or service not known", "by hand: fetch")


def test_a_silent_server_is_left_for_the_next_address(publish, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    publish({"delay": 0.5}, {})
    (fetched,) = datasets.get("mnist", tmp_path)
    assert fetched.source == server.url("/1") and fetched.path.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_told(publish, tmp_path):
    publish({})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/mnist: cannot be written: Not a directory"):
        datasets.get("mnist", tmp_path / "file")
    part_of(tmp_path).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\.part: cannot be written: Is a directory"):
        datasets.get("mnist", tmp_path)


# Two at once


def test_two_downloads_at_once_fetch_the_file_once(publish, server, tmp_path, capsys):
    publish({"delay": 0.3})
    found, threads = [], []
    for _ in range(2):
        threads.append(
            threading.Thread(target=lambda: found.extend(datasets.get("mnist", tmp_path)))
        )
        threads[-1].start()
    for thread in threads:
        thread.join()

    assert (tmp_path / NAME).read_bytes() == CONTENT and left(tmp_path) == [NAME.split("/")[1]]
    assert len(server.requests) == 1
    assert sorted(str(fetched.source) for fetched in found) == sorted(["None", server.url("/0")])
    assert capsys.readouterr().err.count("waiting for another process") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'ab'); "
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.3, holder.kill).start()
        started = time.monotonic()
        with locking.alone(tmp_path):
            assert time.monotonic() - started > 0.2


# Frey Face, whose digest is not known


def test_frey_face_is_judged_by_its_pixels(server, plain_http, data_dir, tmp_path, monkeypatch):
    content = (data_dir / "frey_face/frey_rawface.mat").read_bytes()
    url = server.url("/frey")
    file = dataclasses.replace(frey_face.PUBLISHED[0], urls=(url,))
    monkeypatch.setattr(frey_face, "PUBLISHED", (file,))
    server.answers["/frey"] = {"body": content[:500_000]}
    with pytest.raises(ValueError, match="expected a MATLAB file"):
        datasets.get("frey_face", tmp_path)
    assert [path.name for path in (tmp_path / "frey_face").iterdir()] == [".lock"]

    server.answers["/frey"] = {"body": content, "cut": 500_000}
    with pytest.raises(ValueError, match="cut after 500,000 of 996,854"):
        datasets.get("frey_face", tmp_path)
    server.answers["/frey"] = {"body": content}
    datasets.get("frey_face", tmp_path)
    assert server.ranges("/frey") == [None, None, "bytes=500000-"]
    assert len(datasets.load("frey_face", data_dir=tmp_path).train) == 1565

    (tmp_path / "frey_face/frey_rawface.mat").rename(tmp_path / "frey_face/frey_rawface.mat.part")
    datasets.get("frey_face", tmp_path)  # 416: complete, or too long; it is fetched again
    assert server.ranges("/frey")[3:] == [f"bytes={len(content)}-", None]


# Looking and verifying


def test_verify_tells_right_missing_and_damaged_files_apart(publish, tmp_path):
    file = publish({})
    (found,) = datasets.verify("mnist", tmp_path)
    assert (found.path, found.status) == (tmp_path / NAME, "missing")
    assert f"`pyro-vae data get mnist --data_dir {tmp_path}`" in found.detail
    assert file.sha256 in found.detail and file.urls[0] in found.detail

    (tmp_path / "mnist").mkdir()
    for content, said in ((b"x" + CONTENT[1:], "sha256"), (CONTENT[:-1], "262,143 bytes")):
        (tmp_path / NAME).write_bytes(content)
        (found,) = datasets.verify("mnist", tmp_path)
        assert found.status == "damaged" and f"got {said}" in found.detail

    (tmp_path / NAME).write_bytes(CONTENT)
    assert datasets.verify("mnist", tmp_path) == (datasets.Verified(tmp_path / NAME, "ok", ""),)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "frey_face"])
def test_the_published_files_verify(name, data_dir):
    """Sizes, digests and pixels of the sources are those of the files that people have."""
    assert {found.status for found in datasets.verify(name, data_dir)} == {"ok"}


def test_available_lists_every_data_set(tmp_path):
    (tmp_path / "frey_face").mkdir()
    (tmp_path / "frey_face/frey_rawface.mat").write_bytes(b"")
    rows = {row.name: row for row in datasets.available(tmp_path)}
    assert tuple(rows) == datasets.names()
    found = {name: (row.files, row.bytes, row.present) for name, row in rows.items()}
    assert found["digits"] == (0, 0, True)
    assert found["mnist"] == (4, 11_594_722, False)
    assert found["fashion_mnist"] == (4, 30_878_645, False)
    assert found["frey_face"] == (1, None, True)
    assert rows["mnist"].what.startswith("MNIST: handwritten digits")


def test_a_line_of_progress_is_shown_on_request_only(publish, tmp_path, capsys):
    publish({})
    datasets.get("mnist", tmp_path / "silent")
    datasets.get("mnist", tmp_path / "off", progress=False)
    assert capsys.readouterr().err == ""
    datasets.get("mnist", tmp_path / "on", progress=True)
    assert f"{NAME}: 100%" in capsys.readouterr().err


# https only


def test_every_published_file_has_https_addresses_and_a_judge():
    for name in datasets.names():
        for file in getattr(catalog.find(name), "PUBLISHED", ()):
            folder, _, rest = file.name.partition("/")
            assert rest and (folder == name or not file.urls)
            assert len(set(file.urls)) == len(file.urls) and file.size > 0
            for url in file.urls:
                assert url.startswith("https://") and url.endswith(f"/{rest}")
            assert (file.sha256 is None) == (file.content is not None)


@pytest.mark.parametrize("proxy", [None, "http", "https"])
def test_plain_http_is_refused_before_anything_is_sent(server, tmp_path, monkeypatch, proxy):
    """With a proxy for http that is spoken to in https, urllib would hand the request to it."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", server.url("").replace("http", proxy))
    server.answers["/a"] = {}
    for url in (server.url("/a"), "ftp://127.0.0.1/a", tmp_path.as_uri(), "data:,a"):
        with pytest.raises(URLError, match="unknown url type"):
            https.opener().open(url, timeout=5)
    assert not server.requests


def test_get_refuses_plain_http(server, tmp_path, monkeypatch):
    server.answers["/a"] = {}
    file = dataclasses.replace(mnist.PUBLISHED[0], urls=(server.url("/a"),))
    monkeypatch.setattr(mnist, "PUBLISHED", (file,))
    refused(tmp_path, "unknown url type: http")
    assert not server.requests


def test_a_redirect_to_http_is_refused_and_one_to_https_followed(publish, server, tmp_path):
    """The second ends in a handshake with a server that speaks no TLS."""
    server.answers["/secret"] = {}
    publish({"status": 302, "location": server.url("/secret")})
    refused(tmp_path, f"got a redirect to {server.url('/secret')}, expected https")
    assert not server.ranges("/secret")

    publish({"status": 302, "location": server.url("/secret").replace("http:", "https:")})
    refused(tmp_path, "SSL")


def test_a_proxy_that_refuses_is_said_in_one_line(server, tmp_path, monkeypatch):
    """The real addresses and the real opener; nothing leaves this machine."""
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", server.url(""))
    refused(
        tmp_path,
        "storage.googleapis.com: Tunnel connection failed: 403 Forbidden by policy",
        "ossci-datasets.s3.amazonaws.com: Tunnel connection failed",
        f"(sha256 {mnist.PUBLISHED[0].sha256}) and put it at {tmp_path / NAME}",
    )
    assert [path for path, _ in server.requests] == [
        "storage.googleapis.com:443",
        "ossci-datasets.s3.amazonaws.com:443",
    ]
