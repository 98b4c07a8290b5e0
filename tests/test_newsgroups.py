"""Documents as counts of words: read from rows in compressed form."""

import numpy as np
import pytest

from pyro_vae import datasets
from pyro_vae.datasets.newsgroups import dense


def test_rows_come_from_their_parts():
    """The second row is empty; the third ends in the last word."""
    counts = dense(np.array([2, 1, 7]), np.array([1, 3, 3]), np.array([0, 2, 2, 3]), 4)
    assert counts.tolist() == [[0, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 7]]


def test_documents_words_and_sizes(data_dir):
    data = datasets.load("newsgroups", data_dir=data_dir)
    assert data.train.x.sum().item() == 991_493 and len(data.train) == 11_258
    assert data.test.x.double().sum().item() == 629_312 and len(data.test) == 7_487
    assert data.train.columns is not None and data.train.columns[:3] == ("write", "one", "use")
    assert data.validation is None and data.image_shape is None


def test_a_file_that_has_no_address_is_told_so(tmp_path):
    """By loading, by verifying and by downloading, and nothing that cannot be run is advised."""
    said = "put the file .sha256 0adc.*, of which no address is public, at"
    for ask in (datasets.load, datasets.get):
        with pytest.raises(ValueError, match=said) as error:
            ask("newsgroups", data_dir=tmp_path)
        assert "data get" not in str(error.value) and "\n" not in str(error.value)
    (missing,) = datasets.verify("newsgroups", tmp_path)
    assert missing.status == "missing" and missing.detail.startswith("put the file")
