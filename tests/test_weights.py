"""Files of weights: damage is found and named; those of older versions are read."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boxtwin.errors import InputError
from boxtwin.weights import are_usable, load_state, read_weights, save_state, write_weights

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "none": torch.zeros(0, 4),
}
ABOUT = {"tone": "0.25", "identity": "x"}


def same(found: tuple[dict[str, torch.Tensor], dict[str, str]]) -> bool:
    tensors, about = found
    return (
        about == ABOUT
        and tensors.keys() == TENSORS.keys()
        and all(
            tensors[name].dtype == value.dtype and torch.equal(tensors[name], value) for name, value in TENSORS.items()
        )
    )


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    """Either the content is the same, or the file is refused by name; only the checksum's own name may be lost."""
    path = tmp_path / "w.safetensors"
    write_weights(path, TENSORS, ABOUT)
    whole = path.read_bytes()
    assert same(read_weights(path))
    told = []
    for place in range(len(whole)):
        for changed in (whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(changed)
            try:
                tensors, about = read_weights(path)
            except InputError as error:
                told.append(str(error))
            else:
                assert same((tensors, {key: about[key] for key in ABOUT}))
    assert all(str(path) in line for line in told)
    assert len(told) > 1.9 * len(whole)


def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path) -> None:
    bad = {"a": torch.tensor([1.0, torch.nan, torch.inf])}
    with pytest.raises(InputError, match="2 of the weights"):
        write_weights(tmp_path / "w", bad, {})
    assert not list(tmp_path.iterdir())
    save_file(bad, tmp_path / "old", ABOUT)
    with pytest.raises(InputError, match="2 of its weights"):
        read_weights(tmp_path / "old")


def test_files_without_a_checksum_are_those_of_older_versions(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "old", ABOUT)
    assert same(read_weights(tmp_path / "old"))
    assert are_usable(tmp_path / "old")


def test_a_damaged_file_is_named_once_and_makes_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "w.safetensors"
    assert not are_usable(path)
    assert not caplog.records
    path.write_bytes(b"")
    assert not are_usable(path)
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert not path.exists()


@pytest.mark.parametrize("harm", ["cut", "flipped", "text"])
def test_a_damaged_state_counts_as_none(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    assert not caplog.records
    weights = torch.arange(1000.0)
    save_state({"step": 3, "net": {"a": weights}}, path)
    state = load_state(path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["net"]["a"], weights)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(weights.numpy().tobytes()) + 2001] ^= 2
    harmed: dict[str, bytes | bytearray] = {"cut": whole[: len(whole) // 2], "flipped": flipped, "text": b"no archive"}
    path.write_bytes(harmed[harm])
    assert load_state(path) is None
    assert str(path) in caplog.text


@contextmanager
def no_file_can_be_opened() -> Iterator[None]:
    """As many files are open as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        first = opened.enter_context(Path("/dev/null").open())
        resource.setrlimit(resource.RLIMIT_NOFILE, (first.fileno() + 1, hard))
        try:
            while True:
                opened.enter_context(Path("/dev/null").open())
        except OSError:
            yield


def test_what_cannot_be_read_now_is_kept(tmp_path: Path) -> None:
    """It may be whole: only what is known to be damaged is learnt again."""
    weights, state = tmp_path / "w.safetensors", tmp_path / "state.pt"
    write_weights(weights, TENSORS, ABOUT)
    save_state({"step": 3}, state)
    for use, path in ((are_usable, weights), (load_state, state)):
        with no_file_can_be_opened(), pytest.raises(InputError, match="cannot be read: Too many open files"):
            use(path)
    assert are_usable(weights)
    assert load_state(state) == {"step": 3}
