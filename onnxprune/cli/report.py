"""`onnxprune report`: one HTML page of the JSON of a run."""

from __future__ import annotations

import json

import click

from .failures import Command
from .options import common_options
from .outputs import check_outputs
from .progress import Progress
from .result import emit


@click.command(cls=Command)
@click.argument("result", type=click.Path())
@click.option("-o", "--output", metavar="REPORT.html", type=click.Path(), required=True, help="The page to write.")
@click.option(
    "--sensitivity", metavar="FILE", type=click.Path(), help="Show what `sensitivity --json` wrote beside it."
)
@common_options
def report(*, result: str, output: str, sensitivity: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """Write one self-contained HTML page of RESULT.json.

    RESULT.json is what --json or --report FILE.json of prune or sensitivity wrote. The page needs no network.
    """
    del debug
    check_outputs({"--output": output}, {"the result": result, "the sensitivity": sensitivity})
    with Progress(2, quiet=quiet) as progress:
        progress.stage("reading")
        from ..api import read_report, write_report

        document = read_report(result, sensitivity=sensitivity)
        progress.stage("drawing")
        n_bytes = write_report(document, output)
    if as_json:
        emit(json.dumps({"command": "report", "result": result, "output": output, "bytes": n_bytes}, indent=1))
    else:
        from .tables import storage

        emit(f"wrote {output} ({storage(n_bytes)})")
