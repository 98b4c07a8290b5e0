"""Tables of text: a header is none of the data, and no datum a header."""

import codecs

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.datasets import Data, from_array, from_file

X = np.random.default_rng(0).random((20, 4)).round(3)
COUNTS = np.random.default_rng(1).integers(0, 17, (20, 4))
NAMES = list("abcd")


@pytest.fixture
def read(tmp_path):
    """Reads a file of this text, or of these bytes."""

    def call(text: str | bytes, **options) -> Data:
        path = tmp_path / "x.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return from_file(path, **options)

    return call


def written(values, names=None, **options) -> str:
    frame = pd.DataFrame(values)
    return (frame if names is None else frame.set_axis(names, axis=1)).to_csv(**options)


def holds(data: Data, values) -> bool:
    return torch.equal(data.x, torch.tensor(np.asarray(values), dtype=torch.float32))


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 2, 20])
def test_the_numbers_that_pandas_counts_columns_by_are_no_datum(read, num_rows):
    data = read(written(X[:num_rows], index=False))
    assert holds(data, X[:num_rows])
    assert data.columns == ("0", "1", "2", "3")


def test_counted_columns_over_whole_numbers_far_from_them_are_names(read):
    pixels = np.random.default_rng(0).integers(0, 17, (30, 64))
    assert holds(read(written(pixels, index=False)), pixels)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (X, range(2019, 2023)),  # years
        (COUNTS, range(2019, 2023)),
        (COUNTS[:2], range(2019, 2023)),
        (X, [400.0, 403.33, 406.67, 410.0]),  # wavelengths
        (COUNTS, [400.5, 500.5, 600.5, 700.5]),
        (X[:, :1], [0]),  # as 0, 1 of a model, or a measurement
        (X[:, :2], [0, 1]),
        (np.eye(4, dtype=int)[:, :2], [0, 1]),
        (1 + COUNTS[:, :3] % 3, [0, 1, 2]),
        (np.array([np.roll(np.arange(9), k) for k in range(1, 9)]), range(9)),  # permutations
    ],
)
def test_numbers_that_may_be_names_are_refused_until_it_is_said(read, values, names):
    text = written(values, names, index=False)
    with pytest.raises(ValueError, match=r"first line of numbers .*header=True .*header=False"):
        read(text)
    assert holds(read(text, header=True), values)
    assert len(read(text, header=False)) == len(values) + 1


@pytest.mark.parametrize(
    "text",
    ["1,2,3\n4,5,6\n", "0,16\n7,8\n", "5,7\n" + "1,2\n9,11\n4,6\n" * 3, "1.5\n2.5\n", "3\n5\n8\n"],
)
def test_rows_without_a_header_are_all_read(read, text):
    assert len(read(text)) == text.count("\n")


def test_few_rows_of_random_numbers_pass_for_a_header(read):
    """Files without a header that are refused are rare, and none loses a row."""
    refused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(2, 30)), int(rng.integers(1, 8))
        values = rng.normal(size=(n, d)) if seed % 2 else rng.poisson(20, (n, d))
        try:
            assert len(read(written(values, index=False, header=False))) == n
        except ValueError:
            refused += 1
    assert refused <= 4


@pytest.mark.parametrize("first", ["1.5,,2.5", "NA,1.5,2", "nan,2,3", "None,2,3"])
def test_a_first_row_with_a_missing_value_is_no_header(read, first):
    with pytest.raises(ValueError, match="nan at row 0"):
        read(f"{first}\n1,2,3\n4,5,6\n")


def test_a_first_row_with_a_mistake_in_it_is_no_header_in_silence(read):
    with pytest.raises(ValueError, match=r"'2\.\.5'.*header=True"):
        read("1.5,2..5,3\n1,2,3\n4,5,6\n")


def test_text_beside_numbers_unlike_the_rest_is_a_header(read):
    values = np.c_[3 * np.arange(20), X * 100]
    assert holds(read(written(values, ["id", 2019, 2020, 2021, 2022], index=False)), values)


def test_truth_values_are_numbers_and_no_header(read):
    assert holds(read("True,False\nFalse,True\n"), [[1, 0], [0, 1]])


def test_quoted_names_over_plain_numbers_are_a_header(read):
    assert holds(read('"0","1"\n1,0\n0,1\n'), [[1, 0], [0, 1]])


@pytest.mark.parametrize("names", [NAMES, None, [0]])
def test_an_index_without_a_name_is_refused(read, names):
    values = X[:, : len(names or NAMES)]
    with pytest.raises(ValueError, match=r"index=False"):
        read(written(values, names))


@pytest.mark.parametrize("header", [True, False])
def test_a_first_column_that_counts_the_rows_is_warned_about(read, header):
    text = written(np.c_[np.arange(20), X], ["id", *NAMES], index=False, header=header)
    with pytest.warns(pv.PyroVaeWarning, match="counts the rows from 0 on"):
        data = read(text)
    assert data.dim == 5


@pytest.mark.parametrize("bad", ["yes", None, 2])
def test_another_header_is_refused(read, bad):
    with pytest.raises(ValueError, match=r"header: got .*auto"):
        read("1,2\n", header=bad)


def test_only_a_table_has_a_header(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=r"header=True, expected none"):
        from_file(tmp_path / "x.npy", header=True)


# --- separators, decimals, comments, encodings --------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("header", [True, False])
def test_separators_and_decimal_signs_are_read(read, separator, decimal, header):
    if separator != decimal:
        form = {"sep": separator, "decimal": decimal, "index": False, "header": header}
        assert holds(read(written(X, NAMES, **form)), X)


def test_what_numpy_saves_as_text_is_read(tmp_path):
    for name, options in {"a.csv": {}, "b.csv": {"delimiter": ","}}.items():
        np.savetxt(tmp_path / name, X, header="a b c d\nmore", **options)
        assert holds(from_file(tmp_path / name), X)


@pytest.mark.parametrize(
    "text",
    [
        '# made by "x\n\n# y\na,b\n1,2\n# mid\n3,4 # good\n',
        "größe,höhe\n1,2\n3,4\n".encode("latin-1"),
        codecs.BOM_UTF8 + b"a,b\n1,2\n3,4\n",
        "a\tb\n1\t2\n3\t4\n".encode("utf-16"),
        b"a,b\r\n1,2\r\n3,4\r\n",
        "a, b\n1, 2\n3, 4\n",
        "sep=;\na;b\n1;2\n3;4\n",
    ],
)
def test_comments_encodings_and_line_ends_are_read(read, text):
    data = read(text)
    assert holds(data, [[1, 2], [3, 4]])
    assert len(data.columns) == 2


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("a;b\n1,234;2\n3,456;4\n", ValueError, "1,234, whose comma may stand for thousands"),
        ("a;b\n1.234,5;2\n3.456,1;4\n", TypeError, "'1.234,5' in row 0"),
        ("a;b\n" + "1;2\n" * 300 + "1,5;2\n", TypeError, "'1,5' in row 300"),
        ("a;b\n1;x\n", TypeError, "column 'b' .*'x' in row 0"),
        ("a,b\n1,2\nTotal,2\n", TypeError, "'Total' in row 1"),
        ("a,b\n1,2,\n3,4,\n", ValueError, "longer than the header.*end no line with a separator"),
        ("a,b,c\n1,2\n", ValueError, "shorter than the header"),
        ("a\n1,5\n2,5\n", ValueError, "longer than the header.* write decimals with a point"),
        ("# c\n\na,b\n1,2\n1,2,3\n", ValueError, "Expected 2 fields in line 5, saw 3"),
        ("a\tb\n1\t2\n".encode("utf-16-le"), ValueError, "bytes that are no text"),
        ("# nothing\n", ValueError, "got no line"),
        ("a,y\n1.5,0\n2.5,\n", ValueError, "labels: got none for row 1"),
        ("a,y,y\n1.5,0,0\n", ValueError, "got 2 of 'y'"),
    ],
)
def test_what_is_no_table_of_numbers_is_told_with_its_place(read, text, error, said):
    with pytest.raises(error, match=said):
        read(text, labels_key="y" if "y" in str(text) and "a," in str(text) else None)


def test_labels_are_named_by_number_where_columns_have_no_names(read):
    data = read("1.5,0,2.5\n3.5,1,4.5\n", labels_key="1")
    assert data.labels.tolist() == [0, 1]
    assert holds(data, [[1.5, 2.5], [3.5, 4.5]])


# --- names --------------------------------------------------------------------------------------


def test_data_show_and_keep_the_names_of_their_columns():
    data = from_array(pd.DataFrame(X, columns=NAMES))
    assert data.columns == tuple(NAMES) == data[:3].columns == data.to("cpu").columns
    assert repr(data).startswith("Data(20 x 4 (a, b, c, ...), binarize='none', ")
    assert from_array(pd.DataFrame(X)).columns is None is from_array(X).columns
    assert data.digest == from_array(X).digest
    with pytest.raises(ValueError, match=r"columns: got 3 names for rows of shape \(4,\)"):
        Data(torch.rand(2, 4), columns=("a", "b", "c"))


# --- the command line ---------------------------------------------------------------------------


SMALL = ["--model.latent_dim", "2", "--model.hidden_dim", "4"]


@pytest.mark.parametrize("verb", [["check"], ["fit", "--steps", "1"]])
def test_what_was_read_is_told(verb, tmp_path, capsys):
    """So that a column of targets is seen before it is learnt."""
    frame = pd.DataFrame(X, columns=NAMES).assign(target=np.arange(20) % 3)
    frame.to_csv(tmp_path / "x.csv", index=False)
    command = [verb[0], "gaussian_vae", *verb[1:], *SMALL, "--data", str(tmp_path / "x.csv")]
    command += ["--model.sigmoid_mean", "False"]
    assert main(command) == 0
    assert "x.csv: 20 rows of 5 columns: a, b, c, d, target\n" in capsys.readouterr().err
    assert main([*command, "--labels_key", "target"]) == 0
    assert "x.csv: 20 rows of 4 columns: a, b, c, d; labels: target" in capsys.readouterr().err


def test_a_header_is_named_at_the_command_line(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text(written(X[:, :2], index=False))
    command = ["check", "gaussian_vae", *SMALL, "--data", str(path)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "pass --header if it names them, --header False if it does not" in said
    for given, rows in (["--header"], 20), (["--header", "True"], 20), (["--header", "False"], 21):
        assert main([*command, *given]) == 0
        assert f"{rows} rows of 2 columns" in capsys.readouterr().err
    assert main([*command, "--header", "auto"]) == 2
    assert main(["check", "gaussian_vae", "--data", "digits", "--header"]) == 2


def test_comparing_leaves_the_labels_out_and_reaches_the_data(tmp_path, capsys):
    frame = pd.DataFrame(10 * X - 5, columns=NAMES).assign(y=np.arange(20) % 3)
    frame.to_csv(tmp_path / "x.csv", index=False)
    command = ["compare", "--data", str(tmp_path / "x.csv"), "--labels_key", "y", "--seeds", "1"]
    command += ["--samples", "1800", "--objectives", "AEVB", "--proposal", "guide"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "4 columns: a, b, c, d; labels: y" in said and "can only be" not in said
