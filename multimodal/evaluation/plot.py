"""Small drawings for reports, as inline SVG that follows the page's colours: a curve, and a score on its track."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape


def curve(points: Sequence[tuple[float, float]], *, label: str, across: str = "step") -> str:
    """A line through (x, y) with a smoothed one on top; what is not finite is left out; "" below two points."""
    points = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if len(points) < 2:
        return ""
    wide, high, left, bottom = 920, 300, 46, 34
    first, last = points[0][0], points[-1][0]
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    low, top = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (wide - left - 8), 10 + (1 - (y - low) / (top - low)) * (high - bottom - 10)

    def line(which: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in _thinned(which)))

    grid = ""
    for tick in ticks:
        y = place(first, tick)[1]
        grid += f'<line x1="{left}" x2="{wide - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        grid += f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    ends = (
        f'<text x="{left}" y="{high - 8}">{first:,g}</text>'
        f'<text x="{wide - 8}" y="{high - 8}" text-anchor="end">{last:,g}</text>'
        f'<text x="{(left + wide) / 2:g}" y="{high - 8}" text-anchor="middle">{escaped(across)}</text>'
    )
    smooth = _smoothed(points)
    x, y = place(*smooth[-1])
    return (
        f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="{escaped(label)}" font-size="12.5" '
        'fill="var(--soft)">'
        f'{grid}{ends}<path d="{line(points)}" fill="none" stroke="var(--leaf)" stroke-opacity=".28"/>'
        f'<path d="{line(smooth)}" fill="none" stroke="var(--leaf)" stroke-width="2.5" stroke-linejoin="round"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="var(--leaf)"/></svg>'
    )


def track(
    value: float,
    *,
    top: float,
    interval: tuple[float, float] | None = None,
    controls: Mapping[str, float | int] | None = None,
    baselines: Mapping[str, float | int] | None = None,
) -> str:
    """A score from 0 to `top` as a dot with its interval; controls as rings, baselines as diamonds."""
    wide, middle, top = 240, 13, top if top > 0 else 1.0

    def at(figure: float) -> float:
        return 6 + min(max(figure / top, 0.0), 1.0) * (wide - 12)

    parts = [f'<rect x="0" y="{middle - 3}" width="{wide}" height="6" rx="3" fill="var(--track)"/>']
    if interval is not None:
        low, high = at(interval[0]), at(interval[1])
        parts.append(
            f'<rect x="{low - 3:.1f}" y="{middle - 3}" width="{high - low + 6:.1f}" height="6" rx="3" '
            'fill="var(--leaf)" opacity=".38"/>'
        )
    for name, figure in (controls or {}).items():
        parts.append(
            f'<circle cx="{at(figure):.1f}" cy="{middle}" r="4.2" fill="var(--paper)" stroke="var(--clay)" '
            f'stroke-width="2"><title>{escaped(name)} {figure:.3f}</title></circle>'
        )
    for name, figure in (baselines or {}).items():
        x = at(figure)
        parts.append(
            f'<path d="M{x:.1f} {middle - 6}l6 6l-6 6l-6-6z" fill="var(--gold)">'
            f"<title>{escaped(name)} {figure:.3f}</title></path>"
        )
    parts.append(f'<circle cx="{at(value):.1f}" cy="{middle}" r="5.5" fill="var(--leaf)"/>')
    return f'<svg viewBox="0 0 {wide} {2 * middle}" aria-hidden="true">{"".join(parts)}</svg>'


def escaped(text: str) -> str:
    """Text for HTML and SVG: escaped, and without control characters, which HTML does not allow."""
    return escape("".join(letter for letter in text if letter in "\n\t" or letter.isprintable()))


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each y as the mean of its neighbours, a twentieth of the run to both sides where there are as many."""
    reach = max(1, len(points) // 20)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    smooth = []
    for i, (x, _) in enumerate(points):
        # As far to the one side as to the other: at the ends the mean must not lean.
        near = min(reach, i, len(points) - 1 - i)
        smooth.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return smooth


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most some 900 points: more cannot be seen."""
    every = max(1, math.ceil(len(points) / 900))
    return [*points[:-1:every], points[-1]]
