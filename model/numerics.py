"""Writes a header with a hash of the code that computes keys and values: what an earlier build computed is of use only
to one of the same code. COMPILER is what compiles it, with the options that results may depend on.

numerics.py ROOT COMPILER HEADER DEPFILE"""
import hashlib
import pathlib
import sys

root, compiler, header, depfile = sys.argv[1:]
files = sorted(p for folder in ("kernels", "model") for p in pathlib.Path(root, folder).rglob("*")
               if p.suffix in (".c", ".h", ".cu", ".cuh") or p.name == "meson.build")
digest = hashlib.sha256(compiler.encode())
for path in files:
    content = path.read_bytes()
    digest.update(b"%s\0%d\0" % (path.relative_to(root).as_posix().encode(), len(content)))
    digest.update(content)
pathlib.Path(header).write_text(f'#define MX_NUMERICS "{digest.hexdigest()[:32]}"\n')
names = " ".join(str(p).replace(" ", "\\ ") for p in files)
pathlib.Path(depfile).write_text(f"{header}: {names}\n")
