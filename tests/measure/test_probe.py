from __future__ import annotations

import pytest

from edgevit.measure import probe


@pytest.mark.parametrize(("told", "peak"), [(7, 7), (4, 5), (None, None)])
def test_a_peak_is_never_below_what_was_seen(
    monkeypatch: pytest.MonkeyPatch, told: int | None, peak: int | None
) -> None:
    monkeypatch.setattr(probe, "status_bytes", {"VmHWM": told}.get)
    assert probe.peak_bytes([(0.0, 3, "imported"), (1.0, 5, "loaded")]) == peak


def test_a_peak_is_told_where_nothing_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "status_bytes", {"VmHWM": 7}.get)
    assert probe.peak_bytes([]) == 7
