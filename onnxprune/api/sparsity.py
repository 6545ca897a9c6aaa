"""Zeros instead of cuts: `sparsify`, the masks it makes, and weights that are stored sparse."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..graph import model as files
from ..graph.model import Model
from .memory import within_memory
from .stages import InputShapes, save


@within_memory
def sparsify(  # noqa: PLR0913  one argument per option of the command line
    model: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    pattern: Any = "unstructured",
    sparsity: float | None = None,
    zeros_per_block: int | None = None,
    scope: str = "local",
    criterion: Any = None,
    norm: Any = None,
    max_ratio: float = 1.0,
    min_ratio: float = 0.0,
    keep_zeros: bool = False,
    recover: str | None = None,
    store: str = "dense",
    steps: int = 1,
    schedule: Any = "linear",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    skip_outputs: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    data: Any = None,
    masks: Any = None,
    permute: bool = False,
    allow_nonfinite: bool = False,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    verify: bool = True,
    external_data: bool | None = None,
    progress: Any = None,
) -> Any:
    """Set weights to zero by a pattern, shapes unchanged; write to `output` when given.

    - `pattern`: `unstructured`, `RxC`, `N:M` (N kept of M), `channelx1`, `1xchannel`, or what `parse_pattern` takes.
    - `sparsity`: the fraction of zeros; without it what N:M says by itself, a half for others.
    - `scope`: "local", every layer its own sparsity, or "global", ranked across layers; no layer loses more than
      `max_ratio` or less than `min_ratio`.
    - `criterion`: "l1", "l2", a function of the weights, or with `data` "wanda" and "sparsegpt"; `norm` as of
      `keep_mask`.
    - `recover`: "lstsq" fits what is left to `data`, so that layers give what they gave (the default with "wanda" and
      "sparsegpt"), or "none".
    - `store`: "dense", "packed", "sparse" or "mask".
    - `layers`: glob to settings that differ from these: any of the names above up to `recover` but `scope`, and
      `skip`. Merged key by key in order, so that later ones win.
    - `steps`, `schedule`: reach the sparsity in several levels, each keeping the zeros of the one before. Without
      training in between this only matters for "sparsegpt".
    - `masks`: keep masks by weight name, or a file of them; what they zero stays zero.
    - `permute`: reorder channels first, exactly, so that more magnitude survives N:M.

    Gives a `SparsifyResult`: `model`, `layers` (what became of each weight), `masks`, `proof` and more. With `verify`
    nothing is written unless the result runs and computes what zeros in place would: `VerificationError`.

    Raises `OptionError` for settings that do not fit, `UnknownNameError` for globs and names that are none,
    `ModelError` for weights that are not finite, `NotMetError` when nothing can be sparsified.
    """
    from ..sparsity.run import Options, sparsify_model
    from ..sparsity.settings import Settings

    source = files.load(model)
    if output is not None:
        files.refuse_source(source, Path(output))
    defaults = Settings(
        pattern=pattern,
        sparsity=sparsity,
        zeros_per_block=zeros_per_block,
        criterion=criterion,
        norm=norm,
        max_ratio=max_ratio,
        min_ratio=min_ratio,
        keep_zeros=keep_zeros,
        recover=recover,
    )
    options = Options(
        defaults=defaults,
        layers=dict(layers or {}),
        scope=scope,
        steps=steps,
        schedule=schedule,
        store=store,
        include=tuple(include),
        exclude=tuple(exclude),
        kinds=None if kinds is None else tuple(kinds),
        skip_outputs=skip_outputs,
        permute=permute,
        allow_nonfinite=allow_nonfinite,
        data=data,
        masks=masks,
        seed=seed,
        input_shapes=input_shapes,
        verify=verify,
    )
    result = sparsify_model(source, options, progress)
    if output is not None:
        if result.proof is not None:
            result.proof.raise_if_failed()
        save(result.model, output, external_data=external_data)
    return result


def save_masks(masks: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write keep masks by name to an `.npz`, whole or not at all."""
    from ..masks.interchange import save_masks as write

    write(path, masks)


@within_memory
def sparse_eligibility(model: Any) -> list[dict[str, Any]]:
    """Say for every weight which runtimes could run it sparse; see `sparsity.eligibility`."""
    from ..sparsity.eligibility import eligibility
    from ..sparsity.weights import find_weights

    source = unpack(model)
    return eligibility(source, find_weights(source))


@within_memory
def unpack(model: Any, output: str | os.PathLike[str] | None = None) -> Model:
    """Give the model with every packed, sparse or masked weight dense again, exactly; write to `output` when given.

    It undoes `store` of `sparsify`, so that the weights can be pruned or compacted. A model without stored weights is
    given back as it is.
    """
    from ..sparsity.storage import unpack as undo

    source = files.load(model)
    dense = undo(source)
    if output is not None:
        save(dense, output)
    return dense


@within_memory
def stored_weights(model: Any) -> tuple[str, ...]:
    """Name the weights that `unpack` would make dense."""
    from ..sparsity.storage import stored_weights as stored

    return stored(files.load(model))
