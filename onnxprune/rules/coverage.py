"""Write the page of operators that rules cover: `python -m onnxprune.rules.coverage [FILE]`.

Everything on it comes from the registry: the operators, and the axis equation that opens each rule's docstring.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from ..axes.collect import Rule, op_rules

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


def page() -> str:
    """Give the text of the page, the same for the same rules."""
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
    return "\n".join(parts)


def _section(family: str, rules: dict[Rule, list[str]]) -> str:
    heading = f"## {family.replace('_', ' ').capitalize()}"
    link = f"[`onnxprune/rules/{family}.py`](../onnxprune/rules/{family}.py)"
    rows = [_row(names, rule) for rule, names in sorted(rules.items(), key=lambda item: _line(item[0]))]
    return "\n".join([heading, "", link, "", "| operator | domain | axes |", "| --- | --- | --- |", *rows, ""])


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
