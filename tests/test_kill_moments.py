"""Kills can be replayed."""

import pytest
from kill_moments import SEED, kill_moments


def test_the_seed_is_printed_and_replayed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(SEED, raising=False)
    moments = kill_moments()
    monkeypatch.setenv(SEED, capsys.readouterr().out.rpartition(f"{SEED}=")[2].split()[0])
    again = kill_moments()
    assert [moments.random() for _ in range(3)] == [again.random() for _ in range(3)]
