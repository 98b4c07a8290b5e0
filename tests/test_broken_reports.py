"""Files that trackers and reports go on with, or are to write."""

import pytest

from pyro_vae.training import CSVTracker


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_of_ours_is_not_gone_on_with(tmp_path, content):
    path = tmp_path / "curve.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"curve\.csv (is no table|has no column samples)"):
        CSVTracker(path, append=True)
    assert path.read_bytes() == content
    with pytest.raises(IsADirectoryError, match="is a folder"):
        CSVTracker(tmp_path, append=True)
