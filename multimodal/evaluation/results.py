"""docs/results.md from docs/results/*.json: `python -m multimodal.evaluation.results [folder] [page]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal.evaluation.result import Result, read_result

_HEAD = """# Results

Made from the files in `docs/results/` by `python -m multimodal.evaluation.results`; do not edit it by hand. Square
brackets hold 95% bootstrap intervals over samples. Each figure is made again by the command under its table.
"""
_BENCH = ("what", "command", "machine", "ours", "peers", "ratio", "runs")


def table(results: Sequence[Result], benchmarks: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page: a section a result, its scores beside controls and baselines, then the benchmarks."""
    parts = [_HEAD, *(_section(result) for result in results)]
    if benchmarks:
        parts.append("## Benchmarks\n\nRatios are ours over the peer's in useful work a second.\n")
        parts += [_benchmark(record) for record in benchmarks]
    return "\n".join(parts)


def read_folder(folder: Path) -> tuple[list[Result], list[dict[str, Any]]]:
    """Every result and every `bench_*.json` of a folder, by name; ValueError names the file that is out of shape."""
    results, benchmarks = [], []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("bench_"):
            record = json.loads(path.read_text(encoding="utf-8"))
            if missing := [key for key in _BENCH if key not in record]:
                raise ValueError(f"{path} lacks {missing}; a benchmark has {list(_BENCH)}")
            benchmarks.append(record)
        else:
            result = read_result(path)
            if result.task != path.stem:
                raise ValueError(f"{path} holds the task {result.task!r}; name it {result.task}.json")
            results.append(result)
    return results, benchmarks


def _section(result: Result) -> str:
    others = {**result.controls, **result.baselines}
    rows = [["metric", "score", *(name.replace("_", " ") for name in others)], ["---"] * (2 + len(others))]
    for name, value in result.metrics.items():
        score = _figure(value)
        if name in result.interval:
            low, high = result.interval[name]
            score += f" [{_figure(low)}, {_figure(high)}]"
        rows.append([_label(result, name), score, *(_cell(figures, name) for figures in others.values())])
    lines = [f"## {result.task}: {result.data}", "", f"{result.n:,} samples.", ""]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if result.cost:
        lines += ["", "Cost: " + ", ".join(f"{k.replace('_', ' ')} {v:,.10g}" for k, v in result.cost.items()) + "."]
    return "\n".join([*lines, "", "```", result.command, "```", ""])


def _benchmark(record: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{name.replace('_', ' ')} {value:.2f}x" for name, value in record["ratio"].items())
    return f"**{record['what']}** ({record['machine']}): {ratios}\n\n```\n{record['command']}\n```\n"


def _label(result: Result, name: str) -> str:
    how = result.metadata.get(name)
    tokenizer = how.get("tokenizer") if isinstance(how, Mapping) else None
    return name if tokenizer is None else f"{name} ({tokenizer} tokenizer)"


def _cell(figures: Mapping[str, float | int], name: str) -> str:
    return _figure(figures[name]) if name in figures else ""


def _figure(value: float) -> str:
    """Three decimals, and as many digits as it takes for small or large figures; exactly 0 is 0."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def main(arguments: Sequence[str]) -> None:
    """Writes the page from the folder."""
    folder = Path(arguments[0] if arguments else "docs/results")
    page = Path(arguments[1]) if len(arguments) > 1 else folder.with_suffix(".md")
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}; run it from the repository's root or name the folder")
    try:
        page.write_text(table(*read_folder(folder)), encoding="utf-8")
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
