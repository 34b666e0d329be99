#!/usr/bin/env python3
"""Turns `tmux capture-pane -p -e` (standard input) into an SVG (standard output)."""

import html
import re
import sys
import unicodedata

COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "2": "#8b949e", "1": "#ffffff"}
WIDTH, HEIGHT, SIZE = 8.4, 18, 14


def cells(line, style):
    """Runs of characters with their style; the last one is empty and carries the style on: tmux does not end one with a line."""
    at = 0
    for match in re.finditer(r"\x1b\[([0-9;]*)m|([^\x1b]+)", line):
        if match.group(2) is None:
            for code in match.group(1).split(";"):
                if code in ("", "0", "22") or (code == "39" and style in ("31", "32", "33")):
                    style = None
                elif code in COLOURS:
                    style = code
        else:
            yield at, style, match.group(2)
            at += sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in match.group(2))
    yield at, style, ""


def main():
    lines = sys.stdin.read().rstrip("\n").split("\n")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    columns = max(int(sys.argv[1]) if len(sys.argv) > 1 else 0, max(map(len, plain)))
    width, height = columns * WIDTH + 24, len(lines) * HEIGHT + 24
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
          f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" '
          f'font-size="{SIZE}" fill="#c9d1d9"><rect width="100%" height="100%" rx="8" fill="#0d1117"/>')
    style = None
    for row, line in enumerate(lines):
        for at, style, text in cells(line, style):
            if not text.strip():
                continue
            colour = f' fill="{COLOURS[style]}"' if style else ""
            bold = ' font-weight="bold"' if style == "1" else ""
            x, y = 12 + at * WIDTH, 12 + row * HEIGHT + SIZE
            length = len(text) * WIDTH
            print(f'<text x="{x:.1f}" y="{y}" xml:space="preserve" textLength="{length:.1f}" '
                  f'lengthAdjust="spacingAndGlyphs"{colour}{bold}>{html.escape(text)}</text>')
    print("</svg>")


if __name__ == "__main__":
    main()
