"""The names that chains and their parts are known by."""

from __future__ import annotations

from onnxprune.errors import OptionError, unknown_name
from onnxprune.registry import Registry

from .pattern import Op, Part, Pattern, Step

#: Complete chains, what `prune --chains NAME` accepts.
CHAINS: Registry[Pattern] = Registry("node chain")

#: Named pieces of chains: `linear`, `activation`, `activation.silu`, …
PARTS: Registry[Part] = Registry("chain part")

#: Names that stand for many chains, and the chains they stand for.
SETS: dict[str, tuple[str, ...]] = {}


def register_chain(name: str, pattern: Pattern | Step, *, replace: bool = False) -> None:
    """File `pattern`, a tuple of steps or a `Pattern`, under `name`; matches carry the name unless it has its own.

    Raises `OptionError` for a name that is taken (unless `replace`), empty, or that of a set such as `default`.
    """
    if not isinstance(name, str) or not name:
        raise OptionError(f"a node chain is registered under a non-empty string, not {name!r}")
    if name in SETS or name in PARTS:
        kind = "set of chains" if name in SETS else "chain part"
        raise OptionError(f"{name!r} already names a {kind}; use another name")
    if not isinstance(pattern, Pattern):
        steps = pattern if isinstance(pattern, tuple) else (pattern,)
        pattern = Pattern(steps, name=name)
    CHAINS.register(name, replace=replace)(pattern)


def register_part(part: Part) -> Part:
    """File `part` under its own name, for use inside chains, and give it back."""
    return PARTS.register(part.name)(part)


def chains() -> tuple[str, ...]:
    """List the names of all registered chains, in alphabetical order."""
    return tuple(CHAINS)


def named_step(name: str) -> Step:
    """Give the step that a string inside a pattern stands for: a registered part or chain, else an operator.

    Raises `UnknownNameError` for a string neither registered nor written like an operator (`Conv`, `domain::Op`).
    """
    found = PARTS.get(name) or CHAINS.get(name)
    if found is not None:
        return found
    if "::" in name or name[:1].isupper():
        return Op(name)
    raise unknown_name("node chain", name, [*CHAINS, *PARTS])


def named_patterns(name: str) -> tuple[Pattern, ...]:
    """Give the patterns that a name passed to `match` stands for: one chain or part, or all the chains of a set.

    Raises `UnknownNameError` with the nearest names.
    """
    if name in SETS:
        return tuple(CHAINS[member] for member in SETS[name])
    found = CHAINS.get(name) or PARTS.get(name)
    if found is None:
        raise unknown_name("node chain", name, [*SETS, *CHAINS, *PARTS])
    return (found if isinstance(found, Pattern) else Pattern((found,), name=found.name),)
