"""The few SVG elements that the drawings use: plain text, no dependency, everything escaped."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
# Average width of a character of this font, relative to its size: exact enough to cut a text to its box.
CHARACTER = 0.56
# Characters that XML 1.0 does not allow even when escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(width: float, height: float, parts: list[str], title: str) -> str:
    """The whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">'
    )
    ground = rect(0, 0, width, height, "#ffffff", radius=0)
    return "\n".join([head, f"<title>{clean(title)}</title>", ground, *parts, "</svg>"])


def clean(content: str) -> str:
    """Escaped text content."""
    return escape(_FORBIDDEN.sub("?", content))


def rect(x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "none", radius: float = 4) -> str:
    """A box."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def text(
    x: float, y: float, content: str, *, size: float = 12, fill: str = "#1f2933", bold: bool = False, room: float = 0
) -> str:
    """A line of text that starts at x. It is cut with an ellipsis if it exceeds `room`."""
    most = int(room / (size * CHARACTER)) if room else len(content)
    shown = content if len(content) <= most else content[: max(1, most - 1)] + "…"
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{weight}>{clean(shown)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1, opacity: float = 1) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width:g}" '
        f'stroke-opacity="{opacity:g}"/>'
    )


def arrow(points: list[tuple[float, float]], stroke: str, *, width: float = 3) -> str:
    """A smooth curve towards the middle point, with an arrowhead at its end."""
    (ax, ay), (bx, by), (cx, cy) = points
    way = f"M {ax:.1f} {ay:.1f} Q {bx:.1f} {by:.1f} {cx:.1f} {cy:.1f}"
    span = max(1e-9, ((cx - bx) ** 2 + (cy - by) ** 2) ** 0.5)
    ux, uy = (cx - bx) / span, (cy - by) / span
    left = f"{cx - 10 * ux + 5 * uy:.1f},{cy - 10 * uy - 5 * ux:.1f}"
    right = f"{cx - 10 * ux - 5 * uy:.1f},{cy - 10 * uy + 5 * ux:.1f}"
    return (
        f'<path d="{way}" fill="none" stroke="{stroke}" stroke-width="{width:g}"/>'
        f'<polygon points="{cx:.1f},{cy:.1f} {left} {right}" fill="{stroke}"/>'
    )


def group(parts: list[str], tooltip: str) -> str:
    """Elements with a tooltip."""
    return f"<g><title>{clean(tooltip)}</title>{''.join(parts)}</g>"
