"""`onnxprune olive-config`: the package configuration that lets Olive find our pass."""

from __future__ import annotations

import json

import click

from .failures import Command
from .options import common_options
from .outputs import check_outputs
from .result import emit


@click.command("olive-config", cls=Command)
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="The file to write; by default stdout.")
@common_options
def olive_config(*, output: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """Write a package configuration for Microsoft Olive with our pass in it.

    It holds every pass of the Olive that is installed, and OnnxPrune: olive run --config RUN.json --package-config FILE
    """
    del quiet, debug
    check_outputs({"--output": output}, {})
    from ..api import write_text
    from ..olive import package_config

    text = json.dumps(package_config(), indent=1)
    if output is None:
        emit(text)
        return
    write_text(output, text + "\n")
    emit(json.dumps({"command": "olive-config", "output": output}) if as_json else f"wrote {output}")
