"""Schedules: ends, direction, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.masks import Schedule
from onnxprune.masks.schedules import curves, scaled


@pytest.mark.parametrize("curve", list(curves))
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.9), (0.2, 0.7), (0.8, 0.1), (0.3, 1.0), (1.0, 0.4)])
def test_every_curve_goes_from_start_to_end_one_way(curve: str, start: float, end: float) -> None:
    schedule = Schedule(curve, end=end, steps=8, start=start, first=3)
    levels = np.array([schedule(step) for step in range(15)])
    np.testing.assert_allclose(levels[:4], start, rtol=0, atol=1e-12)
    np.testing.assert_allclose(levels[11:], end, rtol=0, atol=1e-12)
    assert (np.diff(levels) * np.sign(end - start) >= -1e-12).all()
    assert levels.min() >= min(start, end)
    assert levels.max() <= max(start, end)


def test_halfway_levels_worked_out_by_hand() -> None:
    want = {"linear": 0.4, "cubic": 0.7, "late_cubic": 0.1, "exponential": 1 - 0.2**0.5, "cosine": 0.8 * (1 - 0.5**0.5)}
    assert set(want) == set(curves)
    for curve, level in want.items():
        assert Schedule(curve, end=0.8, steps=10)(5) == pytest.approx(level, rel=1e-12), curve


def test_a_schedule_may_wait_at_zero_and_follow_a_function() -> None:
    waiting = Schedule("linear", 0.5, 4, start=0.1, first=2, initially_zero=True)
    assert [waiting(step) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0, 0.1, 0.3, 0.5])
    own = Schedule(lambda start, end, progress: 7 * end if progress > 0.5 else start, 0.6, 10)
    assert [own(step) for step in (0, 5, 6)] == [0.0, 0.0, 0.6]
    assert scaled(0.5, lambda step: 1 - 0.5**step)(2) == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"curve": "cubik"}, "Did you mean 'cubic'"),
        ({"end": 1.2}, "end is 1.2"),
        ({"start": float("nan")}, "start is nan"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(onnxprune.OptionError, match=words):
        Schedule(**{"curve": "linear", "end": 0.5, "steps": 3, **arguments})  # type: ignore[arg-type]
