"""results.json, the tables of docs/performance.md between its markers, and a plot of each row."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.measure import Figure, Result, Target, result_of
from bench.peers import PROJECT

_BEGIN, _END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    systemd = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "processor": f"{os.cpu_count()} × {processor}",
        "kernel": platform.release(),
        "systemd": systemd.partition("\n")[0],
        "python": platform.python_version(),
    }


def commit() -> str:
    """What is measured, as git names it."""
    asked = ["git", "-C", str(PROJECT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, with changes"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def save(path: Path, key: str, found: Mapping[str, Any], taken: Mapping[str, str]) -> None:
    """Put a row into results.json, and what it was `taken` on; the others stay as they are."""
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    results["rows"][key] = {**found, "date": time.strftime("%Y-%m-%d %H:%M"), "taken": dict(taken)}
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write(results: Path, document: Path, order: Iterable[str]) -> None:
    """The document's generated part and its plots, from results.json."""
    found: dict[str, Any] = json.loads(results.read_text())["rows"] if results.exists() else {}
    plots = document.with_suffix("")
    plots.mkdir(exist_ok=True)
    rows = {
        key: result_of(found[key]) if key in found else Result(key, problem="never measured") for key in order
    }  # fmt: skip
    parts = [differences(found), summary(rows.values())]
    for key, result in rows.items():
        parts += [f"### {result.title}"]
        if result.problem:
            parts += [f"No figures: {result.problem}."]
        else:
            (plots / f"{key}.svg").write_text(plot(result))
            parts += [table(result), f"![{result.title}]({plots.name}/{key}.svg)"]
        parts += [f"- {note}" for note in result.notes]
        if key in found:
            parts += [f"Measured {found[key]['date']}, on {_words(found[key]['taken'])}."]
    before, _, rest = document.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    document.write_text(f"{before}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{after}")


def differences(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What all rows were taken on, or that they may not be compared with each other."""
    all_taken = dict.fromkeys(_words(row["taken"]) for row in rows.values())
    if len(all_taken) > 1:
        return f"**Rows differ in machine or commit** ({len(all_taken)} kinds): each says what it was measured on."
    return f"All rows: {', '.join(all_taken) or 'none measured'}."


def _words(taken: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in taken.items())


def summary(results: Iterable[Result]) -> str:
    """Every target, and whether it is met."""
    lines = ["| target | measured | limit | met |", "|---|---|---|---|"]
    for result in results:
        if result.problem:
            lines.append(f"| {result.title} | no figures: {result.problem} | | **no** |")
        lines += [_target(target) for target in result.targets]
    return "\n".join(lines)


def _target(target: Target) -> str:
    bound = "≥" if target.at_least else "≤"
    verdict = "yes" if target.met else "**no**"
    if not target.required:
        verdict = "shown, not required"
    return f"| {target.what} | {number(target.value)} | {bound} {number(target.limit)} | {verdict} |"


def table(result: Result) -> str:
    """Every figure of a row."""
    lines = ["| what | median | middle half | n | ratio |", "|---|---|---|---|---|"]
    for figure in result.figures:
        if not figure.values:
            why = figure.problem if figure.problem.startswith("not measured") else f"not available: {figure.problem}"
            lines.append(f"| {figure.what} | {why} | | | |")
            continue
        low, high = figure.quartiles
        other = result.median(figure.beside)
        ratio = f"{number(figure.median / other)} × {figure.beside}" if other else ""
        lines.append(
            f"| {figure.what} | {number(figure.median)} {figure.unit} | {number(low)} – {number(high)} "
            f"| {len(figure.values)} | {ratio} |"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


_ROW, _LABEL, _BAR, _VALUE = 22, 400, 360, 130


def plot(result: Result) -> str:
    """Bars from zero, with a line over the middle half; each unit has a scale of its own."""
    figures = [figure for figure in result.figures if figure.values]
    most = {unit: max(f.quartiles[1] for f in figures if f.unit == unit) or 1 for unit in {f.unit for f in figures}}
    height = _ROW * len(figures) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _BAR + _VALUE}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for index, figure in enumerate(figures):
        parts += _bar(figure, 6 + index * _ROW, _BAR / most[figure.unit])
    return "\n".join([*parts, "</svg>", ""])


def _bar(figure: Figure, top: float, scale: float) -> list[str]:
    ours = figure.what.startswith("cortex")
    low, high = (_LABEL + value * scale for value in figure.quartiles)
    middle = top + _ROW / 2
    return [
        f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(figure.what)}</text>',
        f'<rect x="{_LABEL}" y="{top + 3}" width="{max(figure.median * scale, 1):.1f}" height="{_ROW - 8}" '
        f'fill="{"#2a6fb0" if ours else "#b8b8b8"}"/>',
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle - 1}" y2="{middle - 1}" stroke="black"/>',
        f'<text x="{max(high, _LABEL + figure.median * scale) + 6:.1f}" y="{middle + 4}">'
        f"{number(figure.median)} {escape(figure.unit)}</text>",
    ]
