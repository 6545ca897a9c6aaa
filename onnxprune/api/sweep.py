"""`sensitivity`: what each group costs alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..select.choose import DEFAULT_CRITERION, Options
from .memory import within_memory
from .stages import DEFAULT_WITH_DATA, InputShapes, analyze, chain_weights


@within_memory
def sensitivity(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    *,
    ratios: Sequence[float] = (0.1, 0.3, 0.5),
    data: Any = None,
    metric: Any = None,
    criterion: str | None = None,
    round_to: int | str | None = None,
    kinds: Sequence[str] | None = None,
    allow_inexact: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    chains: str | Sequence[str] | None = None,
    jobs: int | None = 1,
    backend: str = "loky",
    address: str | None = None,
    threads: int = 1,
    resume: str | os.PathLike[str] | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    progress: Any = None,
) -> Any:
    """Measure how much each group hurts when it alone is pruned, at each of `ratios`.

    Each measurement rewrites the model and runs it: on `data`, compared with the original, or by `metric`, a function
    of an onnxruntime session or `FILE.py:FUNCTION`, or both. Groups lose their least important units by `criterion`,
    "obs" by default with `data` and "l2" without.

    `jobs` workers measure, None for one per core: processes here, or with `backend` "ray" or "dask" those of the
    cluster at `address`, each with `threads` threads of onnxruntime. The result is the same whoever measures. `resume`
    names a journal of finished cells that an interrupted run goes on from; `progress(done, total)` is called after
    every cell. The other arguments are those of `plan`.

    Gives a `Sensitivity`. A cell that cannot be measured says why: `raise_if_failed`. Raises `OptionError` for bad
    arguments and a package that is missing, `NotMetError` when nothing can be pruned or workers keep dying.
    """
    from ..data import load_data
    from ..select.choose import rank
    from ..sweep import Settings, Workers, measure_sensitivity

    settings = Settings(ratios, Workers(jobs, backend, address), threads, resume, progress)
    settings.check()
    options = Options(
        ratio=max(ratios),
        criterion=criterion or (DEFAULT_CRITERION if data is None else DEFAULT_WITH_DATA),
        max_ratio=1.0,
        round_to=round_to,
        kinds=kinds,
        allow_inexact=allow_inexact,
        include=tuple(include),
        exclude=tuple(exclude),
        seed=seed,
    )
    options.check()
    analysis = analyze(model, input_shapes=input_shapes)
    feeds = None
    if data is not None:
        from ..recover import with_data

        feeds = load_data(data, analysis.model, seed=seed, input_shapes=input_shapes)
        options = with_data(analysis, options, feeds, threads=threads)
    ranking = rank(analysis, options, chain_weights(analysis, chains))
    return measure_sensitivity(ranking, settings, criterion=options.criterion, data=feeds, metric=metric)
