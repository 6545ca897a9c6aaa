"""Which weights take part: kinds, globs, and what the settings of single layers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import NotMetError, unknown_name
from .settings import Settings, check_globs
from .slots import CONVOLUTION, KINDS, LINEAR, RECURRENT
from .weights import Weight, Weights

DEFAULT_KINDS = (LINEAR, CONVOLUTION, RECURRENT)


def choose_weights(
    weights: Weights,
    settings: Mapping[str, Settings],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    skip_outputs: bool = False,
) -> dict[str, str | None]:
    """Say for every weight why it is left alone, None for those that take part.

    Without `include` these are all linear, convolution and recurrent weights; `include` names others as well, tables
    among them. `skip_outputs` leaves out those that make the model's outputs, unless they are included by name.
    Raises `UnknownNameError` for a kind or a glob that names nothing, `NotMetError` when nothing is left.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise unknown_name("kind of weight", kind, KINDS)
    check_globs(weights, (*include, *exclude))
    reasons: dict[str, str | None] = {}
    for weight in weights.found:
        own = settings[weight.name].skip
        reasons[weight.name] = None if own is False else _reason(weight, include, kinds, skip_outputs=skip_outputs)
        if own is True or weight.matches(exclude):
            reasons[weight.name] = "excluded"
    if all(reason is not None for reason in reasons.values()):
        listed = "; ".join(sorted({f"{r}: {n}" for n, r in list(reasons.items())[:3]})) or "it has none"
        raise NotMetError(f"no weight of the model can be sparsified ({listed})")
    return reasons


def _reason(weight: Weight, include: Sequence[str], kinds: Sequence[str] | None, *, skip_outputs: bool) -> str | None:
    named = weight.matches(include)
    if include and not named:
        return "not included"
    if weight.kind not in (kinds or (KINDS if named else DEFAULT_KINDS)):
        return f"{weight.kind} weights were not asked for"
    if skip_outputs and weight.makes_output and not named:
        return "it makes an output of the model"
    return None
