"""Draw SVG files that readers can read on light and on dark pages."""

from __future__ import annotations

from html import escape
from pathlib import Path

# Fonts that readers may have: a picture on a page cannot load one.
SANS = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"

_LIGHT = {
    "back": "#ffffff",
    "border": "#d0d7de",
    "ink": "#1f2328",
    "soft": "#59636e",
    "faint": "#e4e8ec",
    "gray": "#afb8c1",
    "accent": "#0969da",
    "onaccent": "#ffffff",
    "pale": "#ddf4ff",
}
_DARK = {
    "back": "#0d1117",
    "border": "#3d444d",
    "ink": "#f0f6fc",
    "soft": "#9198a1",
    "faint": "#262c36",
    "gray": "#656c76",
    "accent": "#58a6ff",
    "onaccent": "#0d1117",
    "pale": "#12324f",
}


class Picture:
    """A picture with a background of its own.

    The class of an element is the name of its color. A picture takes the colors of the
    reader's theme. With its own background it can be read if the page has the other one.

    Args:
        width: Int. The width. GitHub shows a README about 830 units wide.
        height: Int. The height.
        title: String. What the picture shows.
        dark: Bool. Whether the picture is dark for all readers, as a terminal is.
        font: String. The CSS font of all text.
    """

    def __init__(
        self, width: int, height: int, title: str, *, dark: bool = False, font: str = f"13px {SANS}"
    ) -> None:
        style = _rules(_DARK if dark else _LIGHT)
        if not dark:
            style += f" @media (prefers-color-scheme: dark) {{ {_rules(_DARK)} }}"
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>text {{ font: {font}; white-space: pre; }} .bold {{ font-weight: 600; }} "
            f".small {{ font-size: 11.5px; }} .line {{ fill: none; stroke-width: 1.5; }} "
            f".faded {{ opacity: 0.45; }} .hollow {{ stroke-width: 2; }} {style}</style>",
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, "card", radius=8)

    def text(
        self, x: float, y: float, content: str, classes: str = "ink", anchor: str = "start"
    ) -> None:
        """Write a line of text. Its baseline is at `y`."""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{classes}"{place}>{escape(content, quote=False)}'
            "</text>"
        )

    def rect(
        self, x: float, y: float, width: float, height: float, classes: str, radius: float = 0
    ) -> None:
        """Fill a rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{radius:g}" class="{classes}"/>'
        )

    def circle(self, x: float, y: float, radius: float, classes: str) -> None:
        """Fill a circle."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{classes}"/>')

    def path(self, commands: str, color: str) -> None:
        """Draw a line along a path, as in the attribute ``d``."""
        self._parts.append(f'<path d="{commands}" class="line {color}-line"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str) -> None:
        """Draw a straight line."""
        self.path(f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", color)

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text("\n".join([*self._parts, "</svg>"]) + "\n", encoding="utf-8")
        print(path)


def _rules(colors: dict[str, str]) -> str:
    """Return the CSS of each color, for filled shapes and for lines."""
    fills = [f".{name} {{ fill: {color}; }}" for name, color in colors.items()]
    lines = [f".{name}-line {{ stroke: {color}; }}" for name, color in colors.items()]
    hollow = f".hollow {{ fill: {colors['back']}; }}"
    card = f".card {{ fill: {colors['back']}; stroke: {colors['border']}; }}"
    return " ".join([*fills, *lines, hollow, card])
