"""Servers that are hostile: what they send is left within seconds, and never taken for the file."""

import hashlib
import threading
import time
import urllib.request

import pytest

from pyro_vae.datasets.fetching import download
from pyro_vae.datasets.fetching.files import Published
from tests.servers import CONTENT, Server

PAGE = b"<html>Log in to this network</html>"


@pytest.fixture
def fetched(tmp_path):
    """Fetches CONTENT from a server that answers so; returns the line of the refusal."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def call(**answer):
            server.answers["/x"] = answer
            (tmp_path / "x.part").unlink(missing_ok=True)
            digest = hashlib.sha256(CONTENT).hexdigest()
            file = Published("x", len(CONTENT), digest, (server.url("/x"),))
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            start = time.monotonic()
            with pytest.raises(ValueError, match="could not be downloaded") as refusal:
                download.fetch(file, tmp_path / "x", opener=opener, report=lambda _: None)
            assert not (tmp_path / "x").exists() and time.monotonic() - start < 5
            assert "\n" not in str(refusal.value)
            return str(refusal.value)

        yield call
        server.shutdown()


@pytest.mark.parametrize(("patience", "drip"), [(0.3, 0.02), (0.3, 0.11)])
def test_a_byte_now_and_then_is_not_waited_for(patience, drip, fetched, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", patience)
    assert "too few to wait for" in fetched(drip=drip)


def test_what_is_no_file_is_refused(fetched):
    assert "offers 35 bytes" in fetched(body=PAGE)
    assert "bytes" in fetched(body=PAGE, length=False)
    assert "sends more than" in fetched(body=CONTENT * 9, length=False)
    assert "sha256" in fetched(body=CONTENT[::-1])
    assert "HTTP 500" in fetched(status=500)


@pytest.mark.slow
def test_a_byte_a_second_is_left_within_five_seconds(fetched):
    assert "too few to wait for" in fetched(drip=1.0)
