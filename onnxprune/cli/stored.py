"""Say which weights of a model are stored in a form that only `sparsify` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..graph.model import Model


def note_stored(model: Model) -> None:
    """Tell on stderr that packed, sparse or masked weights stay as they are, and how to make them dense."""
    from ..api import stored_weights

    names = stored_weights(model)
    if names:
        what = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
        click.echo(
            f"note: {what} packed, sparse or masked ({names[0]}{', ...' if names[1:] else ''}) and nothing of them can "
            "go; dense again, exactly: onnxprune sparsify MODEL -o DENSE --sparsity 0",
            err=True,
        )
