"""`Sparsifier`: masks for people who train themselves, between their own steps.

    sparsifier = Sparsifier(weights, pattern="2:4", steps=10, schedule="cubic")
    for epoch in range(10):
        train(...)
        masks = sparsifier.step()        # from the dense weights as they are now
    sparse = sparsifier.squash()

Masks are functions of the dense weights and the level; nothing of an earlier step is held on to unless
`keep_previous` says so. The weights are only read: `apply_` alone changes them, in place.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import DataError, ModelError, OptionError, unknown_name
from ..graph.model import Model, load
from ..masks import Rule, keep_masks, measure
from ..masks.interchange import load_masks, masks_from_state_dict, save_masks
from ..masks.measure import Measured
from ..masks.schedules import Schedule
from .choice import choose_weights
from .decide import Decision, content_of, locked_zeros
from .settings import LayerSettings, Settings, changes_by_glob, merged, resolve
from .storage import store
from .weights import Weight, find_weights

STATE = "onnxprune.sparsifier/1"
Arrays = Mapping[str, Any]


class Sparsifier:
    """Masks by name for weights that change between steps.

    `weights` is a mapping of name to numpy array or torch tensor, each (output, input, *kernel); a torch module, whose
    parameters of two axes or more are taken; or an ONNX model (a path, a proto or a `Model`). Arrays and tensors are
    held by reference, so that in-place training is seen; pass others to `step`.

    `pattern`, `sparsity`, `zeros_per_block`, `norm`, `max_ratio`, `min_ratio`, `keep_zeros`, `scope` and `layers` are
    those of `onnxprune.sparsify`. The level rises over `steps` along `schedule` from `start`; with `keep_previous`
    what a step zeroes stays zero. `include` and `exclude` are globs of names.

    Raises `OptionError` for settings that do not fit, `UnknownNameError` for globs that match nothing.
    """

    def __init__(  # noqa: PLR0913  one argument per setting
        self,
        weights: Any,
        *,
        pattern: Any = "unstructured",
        sparsity: float | None = None,
        zeros_per_block: int | None = None,
        norm: Any = None,
        max_ratio: float = 1.0,
        min_ratio: float = 0.0,
        keep_zeros: bool = False,
        scope: str = "local",
        layers: LayerSettings | None = None,
        steps: int = 1,
        schedule: str | Callable[[float, float, float], float] = "linear",
        start: float = 0.0,
        keep_previous: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        if scope not in ("local", "global"):
            raise unknown_name("scope", scope, ("local", "global"))
        self._defaults = Settings(
            pattern=pattern,
            sparsity=sparsity,
            zeros_per_block=zeros_per_block,
            norm=norm,
            max_ratio=max_ratio,
            min_ratio=min_ratio,
            keep_zeros=keep_zeros,
        )
        self._defaults.checked()
        self._layers = dict(layers or {})
        self.scope: Any = scope
        self.keep_previous = keep_previous
        self.n_steps = steps
        self.n_done = 0
        # The share of every layer's sparsity, from `start` to 1.
        self._level = Schedule(schedule, 1.0, steps, start=start)
        self._globs = (tuple(include), tuple(exclude))
        self.model: Model | None = None
        self._found: dict[str, Weight] = {}
        self.weights: dict[str, Any] = {}
        self.settings: dict[str, Settings] = {}
        self.masks: dict[str, Any] = {}
        self.prepare(weights)

    # --- prepare ---

    def prepare(self, weights: Any) -> Sparsifier:
        """Take weights to look after, with masks that keep everything; what was there before is let go."""
        self.n_done = 0
        if _is_model(weights):
            self._prepare_model(load(weights))
        else:
            given = weights.named_parameters() if hasattr(weights, "named_parameters") else weights.items()
            self.model, self._found = None, {}
            matrices = {name: value for name, value in given if len(value.shape) >= 2}
            self.weights = {name: value for name, value in matrices.items() if self._wanted(name, matrices)}
            rows = changes_by_glob(self._layers)
            for glob in rows:
                _check_glob(glob, self.weights)
            self.settings = {
                name: merged(self._defaults, rows, partial(fnmatch.fnmatchcase, name), name) for name in self.weights
            }
        for name in [name for name, settings in self.settings.items() if settings.skip]:
            del self.settings[name], self.weights[name]
        if not self.weights:
            raise OptionError("there is no weight of two axes or more to sparsify among those given")
        for name, settings in self.settings.items():
            if settings.criterion in ("wanda", "sparsegpt"):
                raise OptionError(f"{name}: criterion {settings.criterion} needs samples; use onnxprune.sparsify")
        self.masks = {name: _full(value) for name, value in self.weights.items()}
        return self

    def _prepare_model(self, model: Model) -> None:
        found = find_weights(model)
        settings = resolve(found, self._defaults, self._layers)
        include, exclude = self._globs
        reasons = choose_weights(found, settings, include=include, exclude=exclude)
        self.model = model
        self._found = {w.name: w for w in found.found if reasons[w.name] is None}
        self.weights = {name: w.values(model) for name, w in self._found.items()}
        self.settings = {name: settings[name] for name in self._found}

    def _wanted(self, name: str, known: Arrays) -> bool:
        include, exclude = self._globs
        for glob in (*include, *exclude):
            _check_glob(glob, known)
        chosen = not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)
        return chosen and not any(fnmatch.fnmatchcase(name, glob) for glob in exclude)

    # --- step ---

    @property
    def level(self) -> float:
        """The share of every layer's sparsity that the last step went to."""
        return 0.0 if self.n_done == 0 else self._level(self.n_done)

    def step(self, weights: Arrays | None = None, *, level: float | None = None) -> dict[str, Any]:
        """Make the masks of the next level from the dense weights, and give them: booleans, True survives.

        `weights` replaces those held; names and shapes must be theirs. `level` is the share of every layer's sparsity
        to go to, from 0 to 1, instead of the schedule's. Once the schedule is through, its last level stays.
        Raises `ModelError` for weights that are not finite.
        """
        if weights is not None:
            self._replace(weights)
        if level is not None and not 0 <= level <= 1:
            raise OptionError(f"level is a share of the sparsity, from 0 to 1, not {level!r}")
        self.n_done += 1
        share = self._level(self.n_done) if level is None else level
        rows = {name: self._row(name, share) for name in self.weights}
        if self.scope == "global":
            self.masks = _masks(rows, "global")
        else:
            self.masks = {k: v for name, row in rows.items() for k, v in _masks({name: row}, "local").items()}
        return dict(self.masks)

    def _replace(self, weights: Arrays) -> None:
        for name in weights:
            if name not in self.weights:
                raise unknown_name("weight", name, self.weights)
        missing = [name for name in self.weights if name not in weights]
        if missing:
            raise OptionError(f"no weight was given for {', '.join(map(repr, missing[:3]))}")
        for name, value in weights.items():
            if tuple(value.shape) != tuple(self.weights[name].shape):
                raise OptionError(
                    f"weight {name!r} has shape {tuple(value.shape)} now; it was {tuple(self.weights[name].shape)}"
                )
        self.weights = {name: weights[name] for name in self.weights}

    def _row(self, name: str, share: float) -> tuple[Settings, Any, Any]:
        settings, values = self.settings[name], _values(self.weights[name])
        scores = settings.norm(values) if callable(settings.norm) else abs(values)
        if not bool((scores - scores == 0).all()):
            raise ModelError(f"weight {name!r} holds values that are not finite; their rank means nothing")
        before = self.masks[name] if self.keep_previous else None
        locked = locked_zeros(settings, values, before)
        sparsity = float(settings.sparsity or 0) * share
        return replace(settings, sparsity=sparsity, min_ratio=min(settings.min_ratio, sparsity)), scores, locked

    # --- use ---

    def squash(self, *, store_as: str = "dense") -> Any:
        """Give the sparse weights: by name, as new arrays; of an ONNX model, a model stored as `store_as` says.

        What is pruned is +0.0, or the zero point of integer codes. The weights held stay as they are.
        """
        if self.model is None:
            return {name: _masked(value, self.masks[name]) for name, value in self.weights.items()}
        decision = Decision(keep={name: np.asarray(mask) for name, mask in self.masks.items()})
        dense = {name: weight.values(self.model) for name, weight in self._found.items()}
        decision.values = {n: v for n, v in self.weights.items() if not np.array_equal(v, dense[n], equal_nan=True)}
        by_tensor: dict[str, list[Weight]] = {}
        for weight in self._found.values():
            by_tensor.setdefault(weight.tensor, []).append(weight)
        contents = {t: content_of(self.model, p[0].source, p, decision) for t, p in by_tensor.items()}
        return store(self.model, contents, store_as).model

    def apply_(self) -> None:
        """Write zeros into the weights held, in place, for training that goes on with sparse weights."""
        for name, value in self.weights.items():
            if isinstance(value, np.ndarray):
                value[~self.masks[name]] = 0
            else:
                value.data.masked_fill_(~self.masks[name], 0)

    def measure(self) -> dict[str, Measured]:
        """Count the masks by each weight's pattern."""
        return {name: measure(mask, self.settings[name].pattern) for name, mask in self.masks.items()}

    @property
    def sparsity(self) -> float:
        """Fraction of all elements that the masks zero."""
        found = self.measure().values()
        return sum(m.zeros for m in found) / sum(m.elements for m in found)

    # --- masks in and out ---

    def import_masks(self, masks: Arrays | str | os.PathLike[str]) -> None:
        """Take over masks by name: a mapping, an `.npz`, or a torch state dict with masks of torch's own pruning.

        The caller's mapping is only read. Raises `UnknownNameError` for names that are no weight's, `OptionError` for
        shapes that do not fit.
        """
        if isinstance(masks, (str, os.PathLike)):
            found: Arrays = load_masks(masks)
        else:
            found = masks_from_state_dict(masks) or masks
        taken = self._checked_masks(found)
        self.masks = {**self.masks, **taken}

    def export_masks(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to an `.npz`."""
        save_masks(path, self.masks)

    def state_dict(self) -> dict[str, Any]:
        """Give what is needed to go on later: masks (copies) and the number of steps done."""
        return {
            "schema": STATE,
            "n_done": self.n_done,
            "masks": {name: _copy(mask) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. The caller's dictionary is only read, and nothing changes on an error.

        Raises `DataError` for a state of something else, `OptionError` for masks that do not fit the weights.
        """
        if state.get("schema") != STATE or not isinstance(state.get("n_done"), int) or "masks" not in state:
            raise DataError(f"this is no state of a Sparsifier (schema {state.get('schema')!r}, expected {STATE!r})")
        missing = [name for name in self.weights if name not in state["masks"]]
        if missing:
            raise OptionError(f"the state has no mask for {', '.join(map(repr, missing[:3]))}")
        self.masks = self._checked_masks(state["masks"])
        self.n_done = state["n_done"]

    def _checked_masks(self, masks: Arrays) -> dict[str, Any]:
        taken = {}
        for name, mask in masks.items():
            if name not in self.weights:
                raise unknown_name("weight with a mask", name, self.weights)
            shape = tuple(self.weights[name].shape)
            if tuple(mask.shape) != shape:
                raise OptionError(f"the mask of {name!r} has shape {tuple(mask.shape)}; its weight has {shape}")
            taken[name] = _like(mask, self.weights[name])
        return taken


def _is_model(weights: Any) -> bool:
    kind = type(weights)
    return isinstance(weights, (str, os.PathLike, Model)) or kind.__module__.startswith(("onnx", "onnx_graphsurgeon"))


def _check_glob(glob: str, known: Arrays) -> None:
    if not any(fnmatch.fnmatchcase(name, glob) for name in known):
        raise unknown_name("weight", glob, known)


def _masks(rows: Mapping[str, tuple[Settings, Any, Any]], scope: Any) -> dict[str, Any]:
    norms = {settings.norm for settings, _, _ in rows.values()}
    if len(norms) > 1:
        raise OptionError("scope global compares scores between weights, so all need one norm")
    return keep_masks(
        {name: scores for name, (_, scores, _) in rows.items()},
        {name: settings.pattern for name, (settings, _, _) in rows.items()},
        {name: float(settings.sparsity or 0) for name, (settings, _, _) in rows.items()},
        scope=scope,
        max_ratio={name: settings.max_ratio for name, (settings, _, _) in rows.items()},
        min_ratio={name: settings.min_ratio for name, (settings, _, _) in rows.items()},
        locked={name: locked for name, (_, _, locked) in rows.items() if locked is not None},
        rule=Rule(power=2 if "l2" in norms else 1),
    )


# --- numpy and torch alike ---


def _values(weight: Any) -> Any:
    """Give a weight's numbers in float32 or float64, detached."""
    if isinstance(weight, np.ndarray):
        return weight if weight.dtype in (np.float32, np.float64) else weight.astype(np.float32)
    import torch

    value = weight.detach()
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _full(weight: Any) -> Any:
    if isinstance(weight, np.ndarray):
        return np.ones(weight.shape, dtype=bool)
    import torch

    return torch.ones(tuple(weight.shape), dtype=torch.bool, device=weight.device)


def _masked(weight: Any, mask: Any) -> Any:
    if isinstance(weight, np.ndarray):
        return np.where(mask, weight, np.zeros((), weight.dtype))
    return weight.detach().masked_fill(~mask, 0)


def _copy(mask: Any) -> Any:
    return mask.copy() if isinstance(mask, np.ndarray) else mask.clone()


def _like(mask: Any, weight: Any) -> Any:
    """Give a copy of a mask as booleans in the weight's library and on its device."""
    array = np.array(mask.detach().cpu().numpy() if hasattr(mask, "detach") else mask)
    if not np.isin(array, (0, 1)).all():
        raise OptionError("a mask holds more than zeros and ones; True is what survives")
    array = array.astype(bool)
    if isinstance(weight, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array).to(weight.device)
