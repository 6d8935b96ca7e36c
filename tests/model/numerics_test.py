"""The hash of the code that computes keys and values: of all of it, wherever it lies, and of nothing else."""
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def hash_of(root, compiler="gcc 12"):
    header, depfile = root / "out.h", root / "out.d"
    subprocess.run([sys.executable, "-B", SOURCE / "model" / "numerics.py", root, compiler, header, depfile], check=True)
    assert str(root / "kernels" / "kernels.c") in depfile.read_text()
    return header.read_text()


class Numerics(unittest.TestCase):
    def test_what_it_is_of(self):
        with tempfile.TemporaryDirectory() as folder:
            one, two = pathlib.Path(folder, "one"), pathlib.Path(folder, "two")
            for root in (one, two):
                for part in ("kernels", "model"):
                    shutil.copytree(SOURCE / part, root / part)
            before = hash_of(one)
            self.assertRegex(before, '^#define MX_NUMERICS "[0-9a-f]{32}"\n$')
            self.assertEqual(before, hash_of(two))
            self.assertNotEqual(before, hash_of(two, "clang 14"))
            (two / "model" / "notes.md").write_text("nothing\n")
            self.assertEqual(before, hash_of(two))
            for name in ("model/gpt_oss.c", "kernels/kernels.h", "kernels/x86/new.c", "kernels/meson.build"):
                path = two / name
                old = path.read_text() if path.exists() else None
                path.write_text((old or "") + "/* */\n")
                self.assertNotEqual(before, hash_of(two), name)
                path.unlink() if old is None else path.write_text(old)
            self.assertEqual(before, hash_of(two))

    def test_options_of_this_build(self):
        commands = json.loads((BUILD / "compile_commands.json").read_text())
        command = next(c["command"] for c in commands if c["file"].endswith("model/gpt_oss.c"))
        numeric = [a for a in shlex.split(command)
                   if re.match("-(O|std=|m|f(?!PIC|pie|PIE|diagnostics|sanitize|no-omit|lto|visibility|profile))", a)]
        self.assertIn("-ffp-contract=off", numeric)
        hashed = next(line for line in (BUILD / "build.ninja").read_text().splitlines()
                      if line.startswith(" COMMAND") and "numerics.py" in line)
        for argument in numeric:
            self.assertIn(argument, hashed)


BUILD = pathlib.Path(sys.argv.pop())
unittest.main()
