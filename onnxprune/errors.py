"""Errors that a caller can act on.

    OnnxPruneError                     exit code 3
    ├── OptionError                    2   an argument, a flag or a recipe is wrong
    │   └── UnknownNameError           2   a name that nothing is registered under
    ├── ModelError                     3   the model cannot be used
    │   └── TooLargeError              3   running it takes more memory than there is
    ├── DataError                      3   the calibration data cannot be used
    ├── PlanError                      3   the plan does not belong to the model
    └── NotMetError                    1   done, but what was asked does not hold
        ├── TargetError                1   a target is out of reach
        └── VerificationError          1   a check failed

A rule that contradicts itself is a defect of the package, not of its input, and raises `RuleDefect`, which is
no `OnnxPruneError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxPruneError(Exception):
    """Base of every error that names something the caller can change."""

    exit_code = 3


class OptionError(OnnxPruneError):
    """An argument, a flag or a recipe is wrong."""

    exit_code = 2


class UnknownNameError(OptionError):
    """A name was given that nothing is registered under."""


class ModelError(OnnxPruneError):
    """The model cannot be read, is invalid, unsafe, or nothing this package can work on."""


class TooLargeError(ModelError):
    """Running the model takes more memory than there is."""


class DataError(OnnxPruneError):
    """The calibration data cannot be read or does not fit the model's inputs."""


class PlanError(OnnxPruneError):
    """The plan cannot be read or was made for another model."""


class NotMetError(OnnxPruneError):
    """The work was done, but what was asked for does not hold."""

    exit_code = 1


class TargetError(NotMetError):
    """A target is out of reach; the message says the best that can be had and what stands in the way."""


class VerificationError(NotMetError):
    """A verification failed."""


class RuleDefect(Exception):  # noqa: N818  a defect of ours, not an error of the caller
    """An operator rule stated something impossible: a defect of the rule, whoever wrote it."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not among `known`, with the nearest ones as a suggestion."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(names[:20])}."
    return UnknownNameError(f"unknown {what} {name!r}. {hint}")
