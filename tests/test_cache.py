"""Kept tensors: the same bits come back, any other key computes anew, and a bad file is noticed and replaced."""

import pickle
import warnings

import pytest
import torch

from ebmlib.metrics import cache
from ebmlib.run import checkpoint

KEY = {"kind": "features", "images": "ab" * 32, "extractor": "Fashion-CNN", "computed": [256, "CPU", True]}


@pytest.fixture
def counted(tmp_path):
    """kept(key, value) in one folder, and how often anything was computed."""
    calls = []

    def kept(value, key=KEY):
        return cache.kept(tmp_path / "new" / "folder", key, lambda: calls.append(key) or value)

    return kept, calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_the_same_bits_come_back(counted, dtype):
    kept, calls = counted
    value = (torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 100).to(dtype)
    assert kept(value) is not None
    for _ in range(2):
        again = kept(torch.zeros(1))
        assert again.dtype == dtype
        assert again.equal(value)
    assert len(calls) == 1


def test_what_is_kept_has_no_graph_and_is_not_the_callers(counted):
    kept, _ = counted
    value = torch.ones(3, requires_grad=True)
    assert not kept(value * 2).requires_grad
    read = kept(value)
    read.zero_()
    assert kept(value).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "change",
    [{"images": "ac" * 32}, {"extractor": "other"}, {"computed": [256, "CPU", False]}, {"kind": "x"}, {"a": 1}],
)
def test_another_key_never_hits(counted, tmp_path, change):
    kept, calls = counted
    kept(torch.zeros(2))
    assert kept(torch.ones(2), KEY | change).tolist() == [1, 1]
    assert kept(torch.ones(2)).tolist() == [0, 0], "and the first stays"
    assert len(calls) == len(list((tmp_path / "new" / "folder").iterdir())) == 2


def spoiled(path, how: str) -> None:
    blob = bytearray(path.read_bytes())
    if how == "data":
        blob[-1] ^= 1
    elif how == "header":
        blob[blob.index(b"Fashion")] ^= 1
    elif how == "short":
        del blob[-3:]
    elif how == "empty":
        blob.clear()
    elif how == "pickle":
        blob = pickle.dumps({"value": [1.0]})
    elif how == "another key":
        checkpoint.save(path, {"value": torch.full((4,), 9.0)}, {"key": KEY | {"images": "cd" * 32}})
        return
    elif how == "another thing":
        checkpoint.save(path, {"net": torch.full((4,), 9.0)}, {"key": KEY})
        return
    path.write_bytes(blob)


@pytest.mark.parametrize("how", ["data", "header", "short", "empty", "pickle", "another key", "another thing"])
def test_a_damaged_or_foreign_file_is_named_and_computed_anew(counted, tmp_path, how):
    kept, calls = counted
    value = torch.arange(4.0)
    kept(value)
    (path,) = (tmp_path / "new" / "folder").iterdir()
    spoiled(path, how)
    with pytest.warns(UserWarning, match="computed anew: ") as said:
        assert kept(value).equal(value)
    assert len(said) == 1
    assert str(path) in str(said[0].message)
    assert "\n" not in str(said[0].message)
    assert len(calls) == 2
    assert checkpoint.load(path)[1] == {"key": KEY}, "the file is whole again"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept(value).equal(value)
    assert len(calls) == 2


def test_a_folder_that_cannot_be_made_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="computed, but not kept for the next time: "):
        assert cache.kept(tmp_path / "file", KEY, lambda: torch.ones(2)).tolist() == [1, 1]
    assert (tmp_path / "file").read_text() == "not a folder"


def test_nothing_half_written_is_left(counted, tmp_path):
    kept, _ = counted
    kept(torch.zeros(100))
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.name == f"features-{checkpoint.key_hash(KEY)}.safetensors"
