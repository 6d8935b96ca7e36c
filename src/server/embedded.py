"""Writes C with the bytes of files, for embedded.h: embedded.py OUT FILE...

Numbers and not the assembler's .incbin, because meson knows then what depends on a file, whatever compiles it."""
import hashlib
import pathlib
import sys

out, *files = map(pathlib.Path, sys.argv[1:])
lines = ['#include "server/embedded.h"', "", "#include <string.h>", ""]
table = []
for index, file in enumerate(files):
    data = file.read_bytes()
    lines.append(f"static const unsigned char file_{index}[] = {{")
    lines += ["    " + ",".join(map(str, data[i:i + 40])) + "," for i in range(0, len(data), 40)]
    lines += ["    0};"]  # C has no empty arrays
    tag = hashlib.sha256(data).hexdigest()[:16]
    table.append(f'    {{"{file.name}", file_{index}, {len(data)}, "{tag}"}},')
lines += ["", "const mx_embedded mx_embedded_files[] = {", *table, "    {0},", "};", "",
          "const mx_embedded *mx_embedded_find(const char *name) {",
          "    for (const mx_embedded *f = mx_embedded_files; f->name; f++)",
          "        if (!strcmp(f->name, name)) return f;",
          "    return NULL;", "}", ""]
out.write_text("\n".join(lines))
