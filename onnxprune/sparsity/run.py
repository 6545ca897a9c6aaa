"""Sparsify a model: find its weights, choose what survives, write and store it, prove it.

    views → scores → masks → new contents → storage → proof

Nothing here analyses the graph: any model that loads can be sparsified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data import load_data
from ..errors import ModelError, OptionError, unknown_name
from ..graph.model import Model
from ..masks import NofM, measure
from ..masks.interchange import load_masks
from ..masks.schedules import Schedule, curves
from ..rewrite.apply import stamp
from .choice import choose_weights
from .contents import nonfinite
from .decide import Decision, Progress, Task, content_of, decide, fits
from .eligibility import eligibility
from .proof import prove
from .result import Layer, Left, SparsifyResult
from .settings import LayerSettings, Settings, resolve
from .storage import STORES, store, unpack
from .weights import Weight, Weights, find_weights

Array = np.ndarray[Any, Any]
NOTE = "onnxprune.sparsity"


@dataclass(frozen=True)
class Options:
    """What `sparsify` is asked for, beside the settings of layers.

    `defaults` hold for every layer and `layers` (glob to settings) change them. `steps` levels lead up to the sparsity
    along `schedule`, each keeping the zeros of the one before. `masks` are keep masks made elsewhere, or a file of
    them, that are kept to. `permute` reorders channels first so that more survives N:M.
    """

    defaults: Settings = field(default_factory=Settings)
    layers: LayerSettings = field(default_factory=dict)
    scope: str = "local"
    steps: int = 1
    schedule: str | Callable[[float, float, float], float] = "linear"
    store: str = "dense"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    skip_outputs: bool = False
    permute: bool = False
    allow_nonfinite: bool = False
    data: Any = None
    masks: Any = None
    seed: int = 0
    input_shapes: Mapping[str, Sequence[int]] | None = None
    verify: bool = True

    def check(self) -> None:
        """Refuse options that no model can meet."""
        self.defaults.checked()
        if self.scope not in ("local", "global"):
            raise unknown_name("scope", self.scope, ("local", "global"))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise OptionError(f"steps is a whole number of at least 1, not {self.steps!r}")
        if isinstance(self.schedule, str):
            curves[self.schedule]
        if self.store not in (*STORES, "coo"):
            raise unknown_name("store", self.store, (*STORES, "coo"))

    def fractions(self) -> tuple[float, ...]:
        """Give the share of the sparsity to reach at every step; the last is all of it."""
        end = float(self.defaults.checked().sparsity or 0) or 1.0
        level = Schedule(self.schedule, end, self.steps)
        return (*(level(k) / end for k in range(1, self.steps)), 1.0)


def sparsify_model(model: Model, options: Options, progress: Progress | None = None) -> SparsifyResult:
    """Sparsify a model and prove the result. Packed, sparse and masked weights take part as what they stand for.

    Raises `OptionError` for options that do not fit each other or the model, `ModelError` for weights that are not
    finite, `NotMetError` when nothing can be sparsified and `TargetError` when bounds leave too little. Whether the
    proof holds is in the result.
    """
    options.check()
    source, model = model, unpack(model)
    weights = find_weights(model)
    settings = resolve(weights, options.defaults, options.layers)
    permuted: list[dict[str, Any]] = []
    chosen, left = _choose(weights, settings, options)
    if options.permute:
        model, permuted = _permuted(model, chosen, settings, options)
        weights = find_weights(model)
        chosen = [w for w in weights.found if w.name in {c.name for c in chosen}]
    if not options.allow_nonfinite:
        _refuse_nonfinite(model, chosen)
    feeds = None
    if options.data is not None:
        feeds = load_data(options.data, model, seed=options.seed, input_shapes=options.input_shapes)
    task = Task(
        model,
        chosen,
        settings,
        scope=options.scope,
        fractions=options.fractions(),
        locked=_given_masks(options.masks, chosen),
        feeds=feeds,
        progress=progress,
    )
    decision = decide(task)
    by_tensor: dict[str, list[Weight]] = {}
    for weight in chosen:
        by_tensor.setdefault(weight.tensor, []).append(weight)
    contents = {t: content_of(model, parts[0].source, parts, decision) for t, parts in by_tensor.items()}
    keep = {t: _stored_keep(parts, decision) for t, parts in by_tensor.items()}
    stored = store(model, contents, options.store, keep=keep)
    stamp(stored.model.skeleton, source.sha256, _digest(options, settings, chosen, decision))
    proof = None
    if options.verify:
        if progress is not None:
            progress("verifying", 0, 1)
        proof = prove(
            source, stored.model, contents, base=model, data=feeds, seed=options.seed, input_shapes=options.input_shapes
        )
    rows = {row.name: row for row in stored.rows}
    layers = tuple(_layer(model, w, settings[w.name], decision, rows[w.tensor]) for w in chosen)
    return SparsifyResult(
        model=stored.model,
        source=source,
        layers=layers,
        left=left,
        masks={w.name: decision.keep[w.name] for w in chosen},
        contents=contents,
        proof=proof,
        eligibility=eligibility(model, weights, decision.keep),
        permuted=permuted,
        scope=options.scope,
        store=options.store,
        steps=options.fractions(),
    )


def _choose(
    weights: Weights, settings: Mapping[str, Settings], options: Options
) -> tuple[list[Weight], tuple[Left, ...]]:
    """Give the weights that take part, and the others with reasons; one that is named must fit its pattern."""
    reasons = choose_weights(
        weights,
        settings,
        include=options.include,
        exclude=options.exclude,
        kinds=options.kinds,
        skip_outputs=options.skip_outputs,
    )
    chosen, problem = [], ""
    for weight in weights.found:
        if reasons[weight.name] is None:
            problem = fits(weight, settings[weight.name]) or ""
            if not problem:
                chosen.append(weight)
                continue
            if weight.matches(options.include) or settings[weight.name].skip is False:
                raise OptionError(f"{weight.name!r}: {problem}; choose another pattern or exclude it")
            reasons[weight.name] = problem
    if not chosen:
        raise OptionError(f"no weight can be sparsified: {problem}; choose another pattern")
    left = [Left(w.name, w.node, str(reasons[w.name])) for w in weights.found if reasons[w.name] is not None]
    left += [Left(row.tensor, row.node, row.reason) for row in weights.refused]
    return chosen, tuple(left)


def _permuted(
    model: Model, chosen: Sequence[Weight], settings: Mapping[str, Settings], options: Options
) -> tuple[Model, list[dict[str, Any]]]:
    """Reorder channels for the N:M that the defaults or, failing that, the first layer asks for."""
    from .permutation import permute_for

    if options.masks is not None:
        raise OptionError("masks belong to the order that channels have now; give either masks or permute")
    asked = [options.defaults.checked().pattern, *(settings[w.name].pattern for w in chosen)]
    pattern = next((p for p in asked if isinstance(p, NofM)), None)
    if pattern is None:
        raise OptionError("permute puts channels in order for N:M; ask for a pattern such as 2:4")
    layers = [w.name for w in chosen if settings[w.name].pattern == pattern]
    found = permute_for(model, pattern, layers)
    return found.model, [row.to_json() for row in found.rows]


def _refuse_nonfinite(model: Model, chosen: Sequence[Weight]) -> None:
    for weight, count in nonfinite(model, chosen):
        raise ModelError(
            f"{weight.name!r} at {weight.node!r} holds {count} values that are not finite, and their rank means "
            "nothing. Leave it out with --exclude, or keep them as if they were the largest with --allow-nonfinite"
        )


def _given_masks(masks: Any, chosen: Sequence[Weight]) -> dict[str, Any]:
    """Read masks made elsewhere, by weight or tensor name, in the weight's logical or stored shape."""
    if masks is None:
        return {}
    given = dict(masks) if isinstance(masks, Mapping) else load_masks(masks)
    by_name = {w.name: w for w in chosen}
    result: dict[str, Any] = {}
    for name, mask in given.items():
        parts = [by_name[name]] if name in by_name else [w for w in chosen if w.tensor == name]
        if not parts:
            raise unknown_name("weight with a mask", name, by_name)
        array = np.asarray(mask).astype(bool)
        for weight in parts:
            if array.shape == weight.shape and len(parts) == 1:
                result[weight.name] = array
            elif array.shape == weight.source.layout.stored:
                result[weight.name] = weight.source.layout.view(array)[weight.part]
            else:
                raise OptionError(
                    f"the mask of {name!r} has shape {array.shape}; the weight's is {weight.shape}, its tensor's "
                    f"{weight.source.layout.stored}"
                )
    return result


def _stored_keep(parts: Sequence[Weight], decision: Decision) -> Array:
    """Give the mask of a tensor in its stored shape."""
    layout = parts[0].source.layout
    n_parts, *shape = layout.shape
    names = {w.part: w.name for w in parts}
    whole = [decision.keep[names[k]] if k in names else np.ones(shape, dtype=bool) for k in range(n_parts)]
    return np.ascontiguousarray(layout.back(np.stack(whole)))


def _layer(model: Model, weight: Weight, settings: Settings, decision: Decision, row: Any) -> Layer:
    """Measure what became of one weight."""
    keep = decision.keep[weight.name]
    values = weight.values(model)
    magnitude = np.abs(values, dtype=np.float64)
    total = float(magnitude.sum())
    zeros = int(np.count_nonzero(~keep | (decision.values.get(weight.name, values) == 0)))
    found = measure(keep, settings.pattern)
    notes = [decision.notes.get(weight.name, ""), row.why]
    return Layer(
        name=weight.name,
        tensor=weight.tensor,
        node=weight.node,
        op=weight.op,
        kind=weight.kind,
        shape=weight.shape,
        dtype=weight.dtype,
        pattern=str(settings.spelled),
        criterion=decision.criteria.get(weight.name, "given mask"),
        asked=float(settings.sparsity or 0),
        sparsity=zeros / weight.size,
        pruned=found.sparsity,
        valid=found.complete_fraction,
        kept_magnitude=float(magnitude[keep].sum()) / total if total else 1.0,
        zeros=zeros,
        size=weight.size,
        stored=row.stored,
        bytes_before=row.bytes_before,
        bytes_after=row.bytes_after,
        note="; ".join(n for n in notes if n),
    )


def _digest(options: Options, settings: Mapping[str, Settings], chosen: Sequence[Weight], decision: Decision) -> str:
    """Give a digest of what was decided: the masks and how they were stored."""
    head = {"scope": options.scope, "store": options.store, "steps": options.fractions()}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for weight in chosen:
        mask = decision.keep[weight.name]
        digest.update(f"{weight.name}\0{mask.shape}\0{settings[weight.name].spelled}\0".encode())
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()
