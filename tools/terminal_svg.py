#!/usr/bin/env python3
"""Runs a command in a terminal of its own and draws what it showed: the pictures in docs/ are made so.

    python3 tools/terminal_svg.py docs/story.svg mxrun -m stories --seed 3 -p "Tell me a story about a fox and a lamp."

The command's first word is looked up in build/ and in PATH; the picture shows the words as given here.
"""
import html
import os
import pty
import re
import shlex
import shutil
import sys
import textwrap

COLUMNS, LINE, GLYPH, MARGIN = 100, 19, 8.43, 16  # LINE and GLYPH: height and width of a character in 14 px
STYLES = {"0": "", "": "", "1": "bold", "2": "dim"}


def record(words):
    """What the command writes to a terminal, both streams together."""
    path = "build" + os.pathsep + os.environ["PATH"]
    program = shutil.which(words[0], path=path)
    if not program:
        sys.exit(f"terminal_svg.py: {words[0]}: not found in build/ or PATH")
    output = []

    def read(descriptor):
        data = os.read(descriptor, 65536)
        output.append(data)
        return b"\0" if data else data  # the user's own terminal stays as it is

    with open(os.devnull, "w", encoding="utf-8") as silent:
        saved = os.dup(1)
        os.dup2(silent.fileno(), 1)
        status = pty.spawn([program] + words[1:], read)
        os.dup2(saved, 1)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"terminal_svg.py: exit status {os.waitstatus_to_exitcode(status)}")
    return b"".join(output).decode()


def lines_of(text):
    """[(style, text)] of each line, wrapped; a line has the style that it begins with."""
    style = ""
    for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"):
        for code in re.findall(r"^(?:\x1b\[([0-9;]*)m)+", line):
            style = STYLES.get(code, "")
        for part in textwrap.wrap(re.sub(r"\x1b\[[0-9;]*m", "", line), COLUMNS) or [""]:
            yield style, part
        for code in re.findall(r"\x1b\[([0-9;]*)m", line):
            style = STYLES.get(code, "")


def draw(lines):
    """The SVG text."""
    width, height = round(COLUMNS * GLYPH + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    rows = "\n".join(f'<text class="{style}" x="{MARGIN}" y="{MARGIN + LINE * i + 14}">{html.escape(line)}</text>'
                     for i, (style, line) in enumerate(lines) if line)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>
text {{ font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }}
.dim {{ fill: #7b8696 }}
.bold {{ font-weight: bold }}
</style>
<rect width="100%" height="100%" rx="8" fill="#1b2028"/>
{rows}
</svg>
"""


def main():
    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        sys.exit(0 if "--help" in sys.argv[1:2] or "-h" in sys.argv[1:2] else 2)
    words = sys.argv[2:]
    command = " ".join(word if shlex.quote(word) == word else '"' + word + '"' for word in words)
    lines = [("bold", part) for part in textwrap.wrap("$ " + command, COLUMNS)] + list(lines_of(record(words)))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(draw(lines))


if __name__ == "__main__":
    main()
