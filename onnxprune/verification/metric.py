"""The user's own figure of merit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnxruntime as ort

from ..data.usercode import load_attribute
from ..errors import OptionError

Metric = Callable[[ort.InferenceSession], float]


def load_metric(metric: str | Callable[..., Any]) -> Metric:
    """Give a function from an InferenceSession to a finite number, higher = better.

    `metric` is such a function or names one as `FILE.py:FUNCTION`. Raises `OptionError` when there is none; calling
    the result raises it when the user's function fails or returns no number.
    """
    function: Any = load_attribute(metric, OptionError) if isinstance(metric, str) else metric
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if not callable(function):
        raise OptionError(f"{name}: is a {type(function).__name__}, not a function that takes a session")

    def measured(session: ort.InferenceSession) -> float:
        try:
            value = float(function(session))
        except Exception as error:
            raise OptionError(f"{name}: the metric failed ({type(error).__name__}: {error})") from error
        if not math.isfinite(value):
            raise OptionError(f"{name}: the metric returned {value}; a finite number is needed, higher = better")
        return value

    return measured
