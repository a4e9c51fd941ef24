"""A bar chart as SVG, of factors on a logarithmic scale: right of the line in the middle is better, left of it is worse."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from runtime import Struct

_WIDTH, _LABELS, _BAR, _MARGIN = 900, 430, 22, 40
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.value { font-weight: 600 }
.better { fill: #1a7f37 } .worse { fill: #bc4c00 } .axis { stroke: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .better { fill: #3fb950 } .worse { fill: #f0883e } .axis { stroke: #6e7681 }
}"""


class Bar(Struct):
    """A factor with a label: 1 is equal, 2 is twice as good."""

    label: str
    factor: float


def svg(title: str, bars: Sequence[Bar]) -> str:
    """Return the chart. Its text stays text, and its colors follow the reader's light or dark mode."""
    height = _MARGIN + _BAR * len(bars) + 12
    reach = max([1.0, *(abs(math.log2(bar.factor)) for bar in bars)])
    middle = (_LABELS + _WIDTH) / 2
    scale = ((_WIDTH - _LABELS) / 2 - 50) / reach
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text x="8" y="20" class="value">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        top = _MARGIN + _BAR * number
        length = math.log2(bar.factor) * scale
        side = "better" if bar.factor >= 1 else "worse"
        left, width = min(middle, middle + length), max(abs(length), 1)
        end, anchor = (middle + length + 6, "start") if length >= 0 else (middle + length - 6, "end")
        parts += [
            f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="{_BAR - 6}" rx="2" class="{side}"/>',
            f'<text x="{end:.1f}" y="{top + 15}" text-anchor="{anchor}" class="value">{bar.factor:.2f}</text>',
        ]
    parts += [f'<line x1="{middle}" x2="{middle}" y1="{_MARGIN - 4}" y2="{height - 8}" class="axis"/>', "</svg>"]
    return "\n".join(parts) + "\n"
