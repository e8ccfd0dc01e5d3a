"""Outputs of finished blocks in memory and in files: the bits, strides and devices that went in."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pytest
import torch

from sparse_accel.calibration.replay.store import CannotStoreError, Store


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where the store's folder goes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


VALUES = {
    "float32": torch.randn(3, 4),
    "bfloat16": torch.randn(3, 4).bfloat16(),
    "int64": torch.arange(6).reshape(2, 3),
    "bool": torch.tensor([True, False]),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 4).T,
    "a part": torch.randn(6, 8)[1:4, ::2],
    "expanded": torch.randn(3, 1).expand(3, 4),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
}


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["disk", "memory"])
@pytest.mark.parametrize("name", VALUES)
def test_what_comes_out_is_what_a_clone_would_be(name, limit, folders):
    tensor = VALUES[name]
    with Store(limit) as store:
        store.put("key", {"a": (tensor, None), "b": [2, "text"]})
        assert bool(files(folders)) == (limit == 0 and tensor.numel() > 0)
        came = store.get("key")
        assert came["b"] == [2, "text"]
        assert came["a"][1] is None
        got, clone = came["a"][0], tensor.clone()
        assert got.dtype == clone.dtype
        assert got.stride() == clone.stride()
        assert raw(got) == raw(clone)
        if got.numel() and got.dtype.is_floating_point:
            got.fill_(7)  # shares no memory with what is kept
            assert not torch.equal(store.get("key")["a"][0], got)
    assert not list(folders.iterdir())


def test_memory_is_used_first_and_counted(folders):
    with Store(100) as store:
        store.put(1, torch.zeros(20))  # 80 bytes
        store.put(2, torch.ones(20))
        assert (store.nbytes, store.on_disk, len(files(folders))) == (80, 80, 1)
        store.put(1, torch.zeros(5))
        store.put(2, torch.ones(20))  # fits by now
        assert (store.nbytes, store.on_disk, len(files(folders))) == (100, 0, 0)
        assert store.most == 80
        store.drop(2)
        store.drop("never there")
        assert (store.nbytes, 2 in store, 1 in store) == (20, False, True)
        with pytest.raises(KeyError):
            store.get(2)


def test_files_go_with_the_store(folders):
    store = Store(0)
    store.put(1, torch.zeros(3))
    assert files(folders)
    del store
    gc.collect()
    assert not list(folders.iterdir())


def test_files_go_after_errors(folders):
    def fail() -> None:
        with Store(0) as store:
            store.put(1, torch.zeros(3))
            assert files(folders)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert not list(folders.iterdir())


@pytest.mark.parametrize(
    "value, why",
    [(object(), "got object"), (torch.zeros(2, device="meta"), "got a tensor without values")],
    ids=["object", "meta"],
)
def test_other_values_are_refused(value, why):
    with Store(1 << 20) as store, pytest.raises(CannotStoreError, match=why):
        store.put(1, (torch.zeros(1), value))


def test_a_full_disk_is_told(folders, monkeypatch):
    from safetensors import torch as files_of

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files_of, "save_file", full)
    with Store(0) as store, pytest.raises(CannotStoreError, match="do not go into a file: OSError: no space left"):
        store.put(1, torch.zeros(1))
    assert not list(folders.iterdir())
