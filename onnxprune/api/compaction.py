"""`compact`: what is dead leaves the model, and no output changes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..axes.analysis import Analysis
from ..graph import model as files
from .memory import within_memory
from .stages import InputShapes, analyze, save


@within_memory
def compact(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    assume_data: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    verify: bool = True,
    rtol: float | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
) -> Any:
    """Remove what is dead or constant already, leaving every output as it is; write to `output` when given.

    Gives a `CompactResult`: `model` (the source itself where nothing is dead), `plan`, `groups` with what went and why
    the rest stayed, and `report`, the comparison with the source. With `data`, units that are constant on every sample
    are listed, and with `assume_data` removed. The other arguments are those of the command line's `compact`.

    Raises `OptionError` for bad arguments; with `verify` (the default) nothing is written when the outputs differ by
    more than `rtol` of their range: `VerificationError`.
    """
    from ..compaction import compact as run

    source = model.model if isinstance(model, Analysis) else files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    analysis = analyze(model if isinstance(model, Analysis) else source, input_shapes=input_shapes)
    result = run(
        analysis,
        data=data,
        assume_data=assume_data,
        include=tuple(include),
        exclude=tuple(exclude),
        kinds=kinds,
        verified=verify,
        rtol=rtol,
        seed=seed,
        input_shapes=input_shapes,
    )
    if output is not None:
        if result.report is not None:
            result.report.raise_if_failed()
        save(result.model, output)
    return result
