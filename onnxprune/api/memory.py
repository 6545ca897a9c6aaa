"""`within_memory`: an allocation that fails ends as one of the package's errors, whichever stage asked for it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..errors import TooLargeError

P = ParamSpec("P")
R = TypeVar("R")


def within_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function of a model raise `TooLargeError` where it meets a `MemoryError`."""

    @functools.wraps(function)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except MemoryError as error:
            model = next(iter((*args, *kwargs.values())), None)
            raise TooLargeError(
                f"{_label(model)}: memory ran out in {function.__name__!r} ({str(error) or 'an allocation failed'}). "
                "Give it more, or smaller inputs by input_shapes or data"
            ) from error

    return bounded


def _label(model: Any) -> str:
    """Name a model by its file, or as it names itself."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    return getattr(getattr(model, "model", model), "label", "the model")
