"""The command line: `onnxprune COMMAND` and `python -m onnxprune COMMAND`.

Only click is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import gc

import click

from .._version import __version__
from .compact import compact
from .failures import Program
from .inspect import inspect
from .mask import mask
from .olive import olive_config
from .prune import prune
from .report import report
from .sensitivity import sensitivity
from .sparsify import sparsify
from .verify import verify

__all__ = ["main"]

GARBAGE_AFTER = 200_000
EXIT_CODES = """\b
Exit codes:
  0    done
  1    done, but what was asked does not hold: a check failed, a target is out of reach
  2    the command line or the recipe is wrong
  3    the model, the plan or the data cannot be used; or an internal error
  130  interrupted"""


@click.group(
    cls=Program,
    commands=[inspect, prune, sparsify, compact, mask, sensitivity, verify, report, olive_config],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def main() -> None:
    """Prune ONNX models as graphs, and prove the result.

    The source file is never written to, and an output appears whole or not at all.
    """
    # What a command makes lives until it ends: looking for garbage as often as by default doubles its time.
    gc.set_threshold(GARBAGE_AFTER)
