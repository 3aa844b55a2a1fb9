"""Runs the benchmarks named in the arguments, or all, one after another, and ends with one table of their goals.

    python -m bench._table [queue_drain …]

Each benchmark is a process of its own and its line is printed as it comes. A goal that is missed is a line of the
table, not a failure: figures depend on the machine. Only a benchmark that breaks off makes the exit status 1.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def main() -> None:
    names = sys.argv[1:] or sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))
    rows: list[tuple[str, ...]] = [("benchmark", "what", "value", "goal", "met")]
    for name in names:
        rows += _run(name)
    print("\n" + table(rows))
    if any(row[-1] == "broke off" for row in rows):
        sys.exit(1)


def _run(name: str) -> list[tuple[str, ...]]:
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-m", f"bench.{name}"], stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent)
    print(run.stdout, end="", flush=True)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if run.returncode != 0:
        return [(name, f"exit status {run.returncode}", "", "", "broke off")]
    results = (json.loads(line) for line in run.stdout.splitlines())
    return [_row(result["benchmark"], goal) for result in results for goal in result["goals"]]


def _row(benchmark: str, goal: dict[str, Any]) -> tuple[str, ...]:
    # Which side is meant follows from value and goal and whether it is met.
    bound = "≥" if goal["met"] == (goal["value"] > goal["goal"]) else "≤"
    met = "yes" if goal["met"] else "NO"
    return benchmark, goal["what"], f"{goal['value']:g}", f"{bound} {goal['goal']:g}", met


def table(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown, so that it can be pasted into docs/performance.md; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
