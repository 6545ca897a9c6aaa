"""Write the page of operators that rules cover: `python -m onnxprune.rules.coverage [FILE]`.

Everything on it comes from the registry: the operators, and the axis equation that opens each rule's docstring. The
table of node tests at its end has the figures that `benchmarks/node_tests.py` stored last.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from ..axes.collect import Rule, op_rules

# Beside the package in a source tree; an installed package has no figures, and its page no table of them.
FIGURES = Path(__file__).parents[2] / "docs/node_tests.json"
PACKAGE = __package__ or "onnxprune.rules"
INTRODUCTION = """\
# Operator coverage

Generated from the rules by `python -m onnxprune.rules.coverage docs/op_coverage.md`; do not edit.

{operators} operators have a rule, from {rules} rules. A rule opens with its axis equation: one letter per axis, the
same letter for the same axis, `...` for any number of axes, `(g c)` or `g*c` for an axis that is a product.
How to read the relations that follow from it: [how it works](how_it_works.md).

An operator that is not listed freezes every axis it touches, and `onnxprune inspect` names it. For an operator of your
own the rule is a function in your own code:
[add an operator rule](../CONTRIBUTING.md#add-an-operator-rule-in-five-steps).
"""


NODE_TESTS = """\
## Node tests

The tests that ship with the `onnx` package, each put in the middle of a model with prunable axes in front of the node
and behind it: `python benchmarks/node_tests.py`. Half of every group goes, and the result is compared with the masked
twin. *Pruned*: at least one of up to 8 surroundings was, and all that were are right. *Frozen*: nothing may go, and
`onnxprune inspect` says why. *Not run*: onnxruntime has no kernel for the case, or it has no axis longer than one.

{total} cases of {operators} operators with a rule: {summary}; {twins} models compared with their twins.
{versions}.
"""


def page(figures: Path = FIGURES) -> str:
    """Give the text of the page, the same for the same rules and figures."""
    families: dict[str, dict[Rule, list[str]]] = {}
    for name in op_rules:
        rule = op_rules[name]
        package, _, family = rule.__module__.rpartition(".")
        if package == PACKAGE:
            families.setdefault(family, {}).setdefault(rule, []).append(name)
    n_rules = sum(len(rules) for rules in families.values())
    n_operators = sum(len(names) for rules in families.values() for names in rules.values())
    parts = [INTRODUCTION.format(operators=n_operators, rules=n_rules)]
    for family, rules in sorted(families.items()):
        parts.append(_section(family, rules))
    if figures.is_file():
        parts.append(_node_tests(json.loads(figures.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _section(family: str, rules: dict[Rule, list[str]]) -> str:
    heading = f"## {family.replace('_', ' ').capitalize()}"
    link = f"[`onnxprune/rules/{family}.py`](../onnxprune/rules/{family}.py)"
    rows = [_row(names, rule) for rule, names in sorted(rules.items(), key=lambda item: _line(item[0]))]
    return "\n".join([heading, "", link, "", "| operator | domain | axes |", "| --- | --- | --- |", *rows, ""])


def _node_tests(figures: dict[str, Any]) -> str:
    outcomes = [str(outcome).lower() for outcome in figures["outcomes"]]
    rows = {name: row for name, row in figures["operators"].items() if name in op_rules}
    totals = [sum(row[k] for row in rows.values()) for k in range(len(outcomes))]
    text = NODE_TESTS.format(
        total=sum(totals),
        operators=len(rows),
        summary=", ".join(f"{n} {outcome}" for n, outcome in zip(totals, outcomes, strict=True)),
        twins=figures["twins"],
        versions=figures["versions"],
    )
    lines = [f"| `{name}` | {sum(row)} | {' | '.join(str(n or '') for n in row)} |" for name, row in rows.items()]
    head = f"| operator | cases | {' | '.join(outcomes)} |"
    return "\n".join([text, head, "| --- " * (len(outcomes) + 2) + "|", *lines, ""])


def _row(names: list[str], rule: Rule) -> str:
    domains = sorted({name.rpartition("::")[0] or "ai.onnx" for name in names})
    operators = ", ".join(f"`{operator}`" for operator in sorted({name.rpartition("::")[2] for name in names}))
    return f"| {operators} | {', '.join(domains)} | {axis_equation(rule)} |"


def _line(rule: Rule) -> int:
    return inspect.getsourcelines(rule)[1]


def axis_equation(rule: Rule) -> str:
    """Give the first paragraph of a rule's docstring as one line for a table; raises `ValueError` without one."""
    text = inspect.getdoc(rule)
    if not text:
        raise ValueError(f"the rule {rule.__name__} has no docstring; it opens with the axis equation")
    words = " ".join(text.partition("\n\n")[0].split("\n"))
    return words.replace("|", "\\|").replace("*", "\\*").replace("  ", "; ")


def main(arguments: list[str]) -> int:
    """Write the page to a file, or to stdout."""
    text = page()
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
