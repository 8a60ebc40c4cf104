"""Line charts as SVG, by hand: two panels over one time axis, small enough to be kept with the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, TOP, GAP, BOTTOM = 720, 130, 56, 34, 22, 24
POINTS = 150


@dataclass(frozen=True)
class Line:
    name: str
    values: Sequence[float]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]


def chart(title: str, panels: Sequence[Panel], seconds: float, marks: Sequence[float] = ()) -> str:
    """`values` are evenly spread over `seconds`; at each of `marks` something happens."""
    height = TOP + len(panels) * (PANEL + GAP) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="14" font-size="13" font-weight="bold">{escape(title)}</text>',
        _legend(panels[0].lines),
    ]
    for number, panel in enumerate(panels):
        parts.append(_panel(panel, TOP + number * (PANEL + GAP) + 8, seconds, marks))
    base = height - BOTTOM + 6
    parts += [
        f'<text x="{_x(t, seconds):.0f}" y="{base}" text-anchor="middle">{t:.0f} s</text>' for t in _ticks(seconds)
    ]
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: float, seconds: float, marks: Sequence[float]) -> str:
    most = 1.08 * max(max(line.values, default=0.0) for line in panel.lines) or 1.0
    parts = [f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - 10}" height="{PANEL}" fill="none" stroke="#bbb"/>']
    parts.append(f'<text x="{LEFT + 6}" y="{top + 13}" fill="#555">{escape(panel.title)}</text>')
    for value in _ticks(most)[1:]:
        y = top + PANEL * (1 - value / most)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - 10}" stroke="#eee"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.0f}" text-anchor="end">{_short(value)}</text>')
    for mark in marks:
        x = _x(mark, seconds)
        parts.append(f'<path d="M{x:.0f} {top}V{top + PANEL}" stroke="#c66" stroke-dasharray="2 3"/>')
    for line in panel.lines:
        values = _thin(line.values)
        points = " ".join(
            f"{_x((i + 0.5) * seconds / len(values), seconds):.1f},{top + PANEL * (1 - value / most):.1f}"
            for i, value in enumerate(values)
        )
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-width="1.5"{dash}/>')
    return "\n".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    parts = []
    for number, line in enumerate(lines):
        x = LEFT + 110 * number
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<path d="M{x} 27H{x + 22}" stroke="{line.color}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{x + 27}" y="31">{escape(line.name)}</text>')
    return "\n".join(parts)


def _x(second: float, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - 10) * second / seconds


def _thin(values: Sequence[float]) -> list[float]:
    """Means of neighbours."""
    step = max(1, len(values) // POINTS)
    return [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]


def _ticks(most: float) -> list[float]:
    unit = 1.0
    while most / unit > 5:
        unit *= 2.5 if str(unit).startswith("2") else 2
    return [i * unit for i in range(int(most / unit) + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
