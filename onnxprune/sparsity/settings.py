"""Settings of one layer: defaults for all, and globs that change some of them for some layers, key by key.

What depends on other settings (the sparsity that a pattern has by itself) is settled after the merge, so that a layer
with a pattern of its own is not left with another pattern's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from ..errors import OptionError, unknown_name
from ..masks import parse_pattern
from ..masks.pattern import Pattern, UnitPattern
from .weights import Weight, Weights

LayerSettings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How one layer is sparsified.

    `sparsity` None is the pattern's own: (M - N) / M for N:M, a half for others. `skip` None leaves the choice to the
    kind of the weight, False takes it in whatever its kind. `norm` is "l1", "l2" or a function of the weight's
    elements. `recover` "lstsq" changes what is left so that the layer gives what it gave, on samples; None means that
    where the criterion needs samples anyhow, and "none" otherwise. `spelled` is the pattern as it was written.
    """

    pattern: Any = "unstructured"
    sparsity: float | None = None
    zeros_per_block: int | None = None
    criterion: str | Callable[[Any], Any] | None = None
    norm: str | Callable[[Any], Any] | None = None
    max_ratio: float = 1.0
    min_ratio: float = 0.0
    keep_zeros: bool = False
    recover: str | None = None
    skip: bool | None = None
    spelled: str = ""

    def checked(self, where: str = "") -> Settings:
        """Give the settings with everything derived filled in; raises `OptionError` for what cannot be meant."""
        place = f"{where}: " if where else ""
        pattern = parse_pattern(self.pattern, self.zeros_per_block)
        for name in ("sparsity", "max_ratio", "min_ratio"):
            value = getattr(self, name)
            if value is None and name == "sparsity":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise OptionError(f"{place}{name} is a fraction from 0 to 1, not {value!r}")
        sparsity = own_sparsity(pattern) if self.sparsity is None else float(self.sparsity)
        if isinstance(pattern, UnitPattern):
            try:
                pattern.level(sparsity)
            except OptionError as error:
                raise OptionError(f"{place}{error}") from error
        if self.min_ratio > self.max_ratio:
            raise OptionError(f"{place}min_ratio {self.min_ratio:g} is above max_ratio {self.max_ratio:g}")
        if self.min_ratio > sparsity:
            raise OptionError(f"{place}min_ratio {self.min_ratio:g} is above the sparsity asked for, {sparsity:g}")
        criterion, norm = self._ranking(place)
        recover = self.recover or ("lstsq" if criterion in WITH_DATA else "none")
        if recover not in RECOVERIES:
            raise unknown_name("way to recover", recover, RECOVERIES)
        spelled = self.pattern if isinstance(self.pattern, str) else getattr(self.pattern, "name", str(self.pattern))
        if self.zeros_per_block is not None:
            spelled += f", {self.zeros_per_block} zeros per block"
        return replace(
            self, pattern=pattern, sparsity=sparsity, criterion=criterion, norm=norm, recover=recover, spelled=spelled
        )

    def _ranking(self, place: str) -> tuple[str, Any]:
        """Give criterion and norm: l1 and l2 are norms of the magnitude, and so is a function."""
        criterion, norm = self.criterion, self.norm
        if callable(criterion):
            criterion, norm = "magnitude", criterion
        if criterion in ("l1", "l2"):
            if norm not in (None, criterion):
                raise OptionError(f"{place}criterion {criterion} and norm {norm} contradict each other; give one")
            norm = criterion
        elif criterion is None:
            criterion = "magnitude"
        if criterion not in CRITERIA:
            raise unknown_name("criterion", str(criterion), CRITERIA)
        if not callable(norm) and norm not in (None, "l1", "l2"):
            raise unknown_name("norm", str(norm), ("l1", "l2"))
        return str(criterion), norm or "l1"


CRITERIA = ("l1", "l2", "magnitude", "sparsegpt", "wanda")
WITH_DATA = frozenset({"wanda", "sparsegpt"})
RECOVERIES = ("none", "lstsq")
KEYS = tuple(f.name for f in fields(Settings) if f.name != "spelled")


def own_sparsity(pattern: Pattern) -> float:
    """Give the sparsity that a pattern has when none is asked for: what N:M says, a half otherwise."""
    return 0.5 if pattern.own_sparsity is None else pattern.own_sparsity


def resolve(weights: Weights, defaults: Settings, layers: LayerSettings | None = None) -> dict[str, Settings]:
    """Give the settings of every weight by name: `defaults`, changed key by key by the globs that match, in order.

    A glob matches the weight's name, its tensor's or a node's that reads it. Raises `UnknownNameError` for a glob that
    matches nothing and a key that does not exist.
    """
    rows = changes_by_glob(layers)
    check_globs(weights, list(rows))
    defaults.checked()
    return {w.name: merged(defaults, rows, partial(_matches, w), w.name) for w in weights.found}


def _matches(weight: Weight, glob: str) -> bool:
    return weight.matches([glob])


def changes_by_glob(layers: LayerSettings | None) -> dict[str, dict[str, Any]]:
    """Check the settings of all globs; raises `UnknownNameError` for a key that does not exist."""
    return {glob: changes_of(glob, changes) for glob, changes in (layers or {}).items()}


def merged(
    defaults: Settings, rows: Mapping[str, Mapping[str, Any]], matches: Callable[[str], bool], name: str
) -> Settings:
    """Change the defaults by every glob that matches, in order, and settle what depends on other settings."""
    settings = defaults
    for glob, changes in rows.items():
        if matches(glob):
            settings = replace(settings, **changes)
    return settings.checked(name)


def changes_of(glob: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys of one layer's settings; dashes are as good as underscores."""
    if not isinstance(changes, Mapping):
        raise OptionError(f"the settings of layers {glob!r} are a table of keys and values, not {changes!r}")
    found = {}
    for key, value in changes.items():
        name = key.replace("-", "_")
        if name not in KEYS:
            raise unknown_name(f"setting of layers {glob!r}:", key, KEYS)
        found[name] = value
    return found


def check_globs(weights: Weights, globs: Sequence[str]) -> None:
    """Refuse a glob that matches no weight: with the reason where it matches one that cannot be sparsified."""
    for glob in globs:
        if any(w.matches([glob]) for w in weights.found):
            continue
        for row in weights.refused:
            if row.matches([glob]):
                raise OptionError(f"{row.tensor!r} cannot be sparsified: {row.reason}")
        raise unknown_name("layer", glob, weights.names())
