"""Data is what it says, from arrays and files, in slices and splits; all else is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae.datasets import Data, DataSet, from_array, from_file, split

from .pixels import BINARIZED, positions

# Data


def test_slices_take_labels_along(grey):
    data = Data(grey, torch.arange(300) % 7)
    for key in (slice(1, 5, 2), positions(1, 3), [1, 3], np.array([1, 3], np.uint8)):
        part = data[key]
        assert len(part) == 2
        assert torch.equal(part.x, grey[[1, 3]])
        assert part.labels.tolist() == [1, 3]
    mask = torch.arange(300) == 299
    assert data[mask].labels.tolist() == data[mask.numpy()].labels.tolist() == [299 % 7]
    assert data[[-1]].index.tolist() == [299]


def test_a_read_only_index_is_no_cause_for_a_warning(grey):
    index = np.array([4, 2])
    index.flags.writeable = False
    assert Data(grey)[index].index.tolist() == [4, 2]


def test_data_cannot_be_changed(grey):
    data = Data(grey)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.x = grey + 1


def test_the_digest_names_values_shape_binarization_and_draws(grey):
    ones = (grey > 0.5).float()
    different = [
        Data(grey),
        Data(grey + 1),
        Data(grey.view(300, 8, 5)),
        Data(grey.view(150, 80)),
        Data(ones),
        Data(ones, binarize="threshold"),
        Data(ones, binarize="static"),
        Data(grey, binarize="dynamic"),
        Data(grey, binarize="dynamic", seed=1),
        Data(grey, binarize="dynamic", index=torch.arange(1, 301)),
        Data(grey)[:299],
    ]
    digests = [data.digest for data in different]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert Data(grey).digest == Data(grey.t().contiguous().t(), seed=5).digest
    assert Data(grey, binarize="dynamic")[:].digest == digests[7]
    assert Data(grey, digest="known").digest == "known"


def test_repr_is_one_readable_line(grey):
    data = Data.from_pixels(grey * 255, torch.arange(300), scale=255)
    assert repr(data) == (
        f"Data(300 x 40, binarize='threshold', scale=255, labels, {data.digest[:12]})"
    )


def test_moving_data_keeps_digest_and_draws(grey):
    data = Data.from_pixels(grey, torch.arange(300), binarize="dynamic")[10:]
    moved = data.to("cpu")
    assert moved.digest == data.digest
    assert torch.equal(moved.rows(), data.rows())


def test_pixels_passed_in_are_never_changed(grey):
    before = grey.clone()
    for binarize in ("none", *BINARIZED):
        Data.from_pixels(grey, binarize=binarize, scale=2.0)
    assert torch.equal(grey, before)


def test_no_gradient_comes_in_with_the_data(grey):
    assert not Data(grey.requires_grad_()).x.requires_grad


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "float64.*from_array", lambda x: Data(x.double())),
        (TypeError, "ndarray.*from_array", lambda x: Data(x.numpy())),
        (ValueError, r"reshape\(-1, 1\)", lambda x: Data(x[:, 0])),
        (ValueError, "empty", lambda x: Data(x[:0])),
        (ValueError, "empty", lambda x: Data(x)[:0]),
        (ValueError, "'dinamic'.*'dynamic'", lambda x: Data(x, binarize="dinamic")),
        (ValueError, "labels.*299.*300", lambda x: Data(x, torch.arange(299))),
        (ValueError, r"labels.*\(300, 1\)", lambda x: Data(x, torch.zeros(300, 1).long())),
        (TypeError, "labels.*float32", lambda x: Data(x, torch.zeros(300))),
        (TypeError, "labels.*list", lambda x: Data(x, [0] * 300)),
        (ValueError, "index.*299", lambda x: Data(x, index=torch.arange(299))),
        (ValueError, "scale.*-1", lambda x: Data(x, scale=-1.0)),
        (ValueError, "seed.*-1", lambda x: Data(x, seed=-1)),
        (ValueError, "from_pixels", lambda x: Data(x, binarize="threshold")),
        (ValueError, "from_pixels", lambda x: Data(x, binarize="static")),
        (TypeError, "complex64", lambda x: Data.from_pixels(x * 1j)),
        (TypeError, "dense", lambda x: Data.from_pixels(x.to_sparse())),
        (TypeError, r"data\[3:4\]", lambda x: Data(x)[3]),
        (TypeError, "data.x", lambda x: Data(x)[:, 0]),
        (TypeError, "float32", lambda x: Data(x)[torch.rand(300)]),
        (ValueError, "mask of 5", lambda x: Data(x)[[True] * 5]),
        (TypeError, "int64", lambda x: Data(x).batch([0, 1], 1)),
        (ValueError, "epoch.*-1", lambda x: Data(x).batch(positions(0), -1)),
        (IndexError, "out of", lambda x: Data(x).batch(positions(300), 1)),
    ],
)
def test_what_is_no_data_is_refused(grey, error, message, build):
    with pytest.raises(error, match=message):
        build(grey)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_with_its_place(grey, bad):
    grey[7, 3] = grey[9, 1] = bad
    with pytest.raises(ValueError, match=rf"{bad} at row 7, column 3 .*drop"):
        Data(grey)


@pytest.mark.parametrize("binarize", BINARIZED)
def test_values_outside_the_unit_interval_cannot_be_binarized(grey, binarize):
    for build in (Data.from_pixels, Data, from_array):
        with pytest.raises(ValueError, match=r"got max 255.0.*divide by 255 or pass scale=255"):
            build((grey * 400).clamp(max=255), binarize=binarize)
        with pytest.raises(ValueError, match=r"got max 16.0.*scale=16"):
            build((grey * 20).clamp(max=16), binarize=binarize)
        with pytest.raises(ValueError, match=r"got min -0.5"):
            build((grey - 2).clamp(min=-0.5), binarize=binarize)
    assert len(Data(grey * 400 - 7)) == 300  # real values are fine where nothing is binarized


# Arrays


def test_arrays_tensors_and_frames_become_the_same_data(grey):
    labels = np.arange(300)
    array = grey.numpy()
    frame = pd.DataFrame(array, columns=[f"c{i}" for i in range(40)])
    expected = Data(grey, torch.arange(300))
    for x, y in [
        (grey, torch.arange(300)),
        (grey.double(), labels.astype(np.uint16)),
        (array, labels),
        (array.astype(np.float64), pd.Series(labels)),
        (array.astype(">f4"), labels),
        (array[::-1][::-1], labels[::-1][::-1]),
        (frame, labels),
    ]:
        data = from_array(x, y)
        assert data.x.dtype == torch.float32
        assert data.labels.dtype == torch.int64
        assert data.digest == expected.digest
        assert torch.equal(data.labels, expected.labels)


def test_bytes_are_scaled_and_binarized_on_request():
    raw = np.array([[0, 100, 200, 255]], np.uint8)
    assert from_array(raw).x.tolist() == [[0, 100, 200, 255]]
    assert from_array(raw, scale=255.0).x[0, 3] == 1
    data = from_array(raw, scale=256.0, binarize="threshold")
    assert data.x.tolist() == [[0, 0, 1, 1]]
    assert data.scale == 256.0


def test_data_does_not_follow_later_changes_of_the_array():
    raw = np.zeros((2, 2), np.float32)
    data = from_array(raw)
    raw[:] = 1
    assert data.x.sum() == 0


@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (TypeError, "list.*np.asarray", [[1.0, 2.0]]),
        (TypeError, "dtype <U1", np.array([["a", "b"]])),
        (TypeError, "dtype object", np.array([[1, None]])),
        (TypeError, "complex128", np.array([[1j]])),
        (TypeError, "masked", np.ma.masked_invalid([[1.0, np.nan]])),
        (TypeError, "column 'name'", pd.DataFrame({"a": [1.0], "name": ["x"]})),
        (ValueError, "nan at row 1, column 0", pd.DataFrame({"a": [1.0, None], "b": [1, 2]})),
        (
            ValueError,
            "nan at row 0, column 1",
            pd.DataFrame({"a": [1], "b": [pd.NA]}, dtype="Int8"),
        ),
        (ValueError, "inf at row 0, column 1.*float32", np.array([[0.0, 1e300]])),
        (ValueError, "reshape", np.arange(3.0)),
        (ValueError, "empty", np.zeros((0, 3))),
        (ValueError, "empty", np.zeros((3, 0))),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(error, message, x):
    with pytest.raises(error, match=message):
        from_array(x)


def test_labels_that_are_no_integers_are_refused(grey):
    with pytest.raises(TypeError, match=r"labels.*float64"):
        from_array(grey, np.zeros(300))
    with pytest.raises(TypeError, match=r"labels.*dtype"):
        from_array(grey, pd.Series(["a"] * 300))


# Files


def test_npy_npz_and_csv_hold_the_same_data(grey, tmp_path):
    labels = np.arange(300)
    np.save(tmp_path / "a.npy", grey.numpy())
    np.savez(tmp_path / "a.npz", x=grey.numpy(), y=labels)
    np.savez_compressed(tmp_path / "one.npz", pixels=grey.numpy(), y=labels)
    frame = pd.DataFrame(grey.numpy(), columns=[f"c{i}" for i in range(40)])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    frame.assign(y=labels).to_csv(tmp_path / "y.csv", index=False)

    digest = Data(grey).digest
    assert from_file(tmp_path / "a.npy").digest == digest
    assert from_file(tmp_path / "a.npz").digest == digest
    assert from_file(tmp_path / "one.npz", key="pixels").digest == digest
    assert from_file(str(tmp_path / "a.csv")).digest == digest
    assert from_file(tmp_path / "bare.csv").digest == digest
    for name in ("a.npz", "one.npz", "y.csv"):
        data = from_file(tmp_path / name, labels_key="y")
        assert data.digest == digest
        assert data.labels.tolist() == labels.tolist()


def test_files_are_scaled_and_binarized_on_request(tmp_path):
    (tmp_path / "a.csv").write_text("0,16\n7,8\n")
    data = from_file(tmp_path / "a.csv", binarize="threshold", scale=16)
    assert data.x.tolist() == [[0, 1], [0, 1]]


def test_bad_files_are_refused_by_name(tmp_path):
    def refused(name: str, message: str, error: type[Exception] = ValueError, **options) -> None:
        with pytest.raises(error, match=message) as caught:
            from_file(tmp_path / name, **options)
        assert str(tmp_path / name) in str(caught.value)

    refused("none.npy", "no such file")
    refused("none.mat", r"'.mat'.*\.npy, \.npz, \.csv")
    np.save(tmp_path / "objects.npy", np.array([[1, None]]), allow_pickle=True)
    refused("objects.npy", "objects", TypeError)
    np.savez(tmp_path / "objects.npz", x=np.array([[1, None]]))
    refused("objects.npz", "objects", TypeError)
    (tmp_path / "text.npy").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    refused("text.npy", "other bytes")
    np.save(tmp_path / "whole.npy", np.zeros((9, 9)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    refused("cut.npy", "damaged")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4 and no more")
    refused("cut.npz", "damaged")
    np.save(tmp_path / "line.npy", np.zeros(9))
    refused("line.npy", "reshape")
    refused("whole.npy", "key", key="x")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    refused("two.npz", "no key.*'a', 'b'")
    refused("two.npz", "no array 'c'.*'a', 'b'", key="c")
    refused("two.npz", "no array 'c'", key="a", labels_key="c")
    for name, text, message in [
        ("empty.csv", "", "No columns"),
        ("header.csv", "a,b\n", "empty|dtype"),
        ("index.csv", ",a\n0,1\n", "index=False"),
        ("long.csv", "a,b\n1,2,3\n", "longer than the header"),
        ("ragged.csv", "1,2\n1,2,3\n", "Expected 2 fields"),
        ("hole.csv", "a,b\n1,2\n3,\n", "nan at row 1, column 1"),
    ]:
        (tmp_path / name).write_text(text)
        refused(name, message, (ValueError, TypeError))
    (tmp_path / "words.csv").write_text("a,b\n1,2\n3,red\n")
    refused("words.csv", "column 'b'", TypeError)
    refused("words.csv", "no column 'c'.*'a', 'b'", labels_key="c")


# Splits


def test_a_split_has_every_row_once_in_an_order_of_its_seed(grey):
    data = Data(grey, torch.arange(300))
    parts = split(data, test=0.1, validation=60, seed=0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [210, 60, 30]
    labels = torch.cat([part.labels for part in (parts.train, parts.validation, parts.test)])
    assert torch.equal(labels.sort().values, torch.arange(300))
    assert torch.equal(parts.test.index, parts.test.labels)
    assert torch.equal(split(data, test=0.1).test.x, parts.test.x)
    assert not torch.equal(split(data, test=0.1, seed=1).test.x, parts.test.x)
    assert split(data).validation is None


def test_a_split_of_dynamic_data_keeps_the_draws_of_its_rows(grey):
    data = Data.from_pixels(grey, binarize="dynamic")
    test = split(data).test
    assert torch.equal(test.rows(), data.rows()[test.index])


def test_an_image_event_gives_the_image_shape(grey):
    assert split(Data(grey.view(300, 5, 8))).image_shape == (5, 8)
    assert split(Data(grey), image_shape=(8, 5)).image_shape == (8, 5)
    with pytest.raises(ValueError, match="= 40"):
        split(Data(grey), image_shape=(6, 6))


@pytest.mark.parametrize(
    "shares", [dict(test=0), dict(test=1.5), dict(test=-1), dict(test=300), dict(test=0.001)]
)
def test_a_split_without_rows_for_a_part_is_refused(grey, shares):
    with pytest.raises(ValueError, match=r"got|test is"):
        split(Data(grey), **shares)
    with pytest.raises(TypeError, match="from_array"):
        split(grey)


def test_parts_that_differ_make_no_data_set(grey):
    one = Data(grey)
    for other in (Data(grey[:, :3]), Data((grey > 0.5).float(), binarize="static")):
        with pytest.raises(ValueError, match="the same in all parts"):
            DataSet("mine", train=one, validation=None, test=other)


def test_gaps_are_kept_where_they_are_said_to_be_meant():
    x = np.array([[1.0, np.nan], [0.5, 2.0]])
    said = r"row 0, column 1 .* or pass missing=True where NaN means"
    with pytest.raises(ValueError, match=said):
        from_array(x)
    data = from_array(x, missing=True)
    assert data.x[0, 1].isnan() and data[:1].missing and data.rows().isnan().sum() == 1
    with pytest.raises(ValueError, match="got inf"):
        from_array(np.array([[1.0, np.inf]]), missing=True)
    with pytest.raises(ValueError, match="binarize first"):
        from_array(x, missing=True, binarize="threshold", scale=2.0)
    assert split(from_array(np.repeat(x, 5, 0), missing=True)).train.missing
