"""The library as another program finds it: installed into a folder of its own, through pkg-config.

test_library.py BUILD PREFIX; of the environment, MXRUN_SOURCE, CC, NM and PKG_CONFIG.
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(os.environ['MXRUN_SOURCE'])
EXAMPLE = SOURCE / 'examples' / 'two_stories.c'
BUILD, PREFIX = sys.argv[1:3]


def declared(header):
    """Functions that a header declares."""
    text = re.sub(r'/\*.*?\*/', '', header.read_text(), flags=re.S)
    text = re.sub(r'static inline[^{]*\{.*?\n\}', '', text, flags=re.S)
    return set(re.findall(r'^[a-z_][^;{}()#]*?\b(mx_\w+)\(', text, flags=re.M))


class Library(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = Path(folder.name)
        cls.prefix = cls.root / PREFIX.lstrip('/')
        subprocess.run(['meson', 'install', '-C', BUILD, '--no-rebuild', '--quiet', '--destdir', cls.root], check=True)
        cls.pc = next(cls.root.rglob('mxrun.pc'))
        cls.include = cls.prefix / 'include' / 'mxrun'
        cls.library = next(cls.root.rglob('libmxrun.so'))

    def run_in_shell(self, line):
        """A line of the README, as it stands there, in a folder that holds the example."""
        pkg_config = f'pkg-config() {{ command {os.environ["PKG_CONFIG"]} --define-variable=prefix={self.prefix} "$@"; }}\n'
        compiler = f'cc() {{ command {os.environ["CC"]} -Wall -Wextra -Werror "$@"; }}\n'
        environment = {**os.environ, 'PKG_CONFIG_PATH': str(self.pc.parent), 'LD_LIBRARY_PATH': str(self.library.parent)}
        done = subprocess.run(['bash', '-c', pkg_config + compiler + line], cwd=self.root, env=environment,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f'{line}\n{done.stdout}\n{done.stderr}')
        return done.stdout

    def test_example(self):
        (self.root / EXAMPLE.name).write_text(EXAMPLE.read_text())
        command = re.search(r'cc two_stories.*\)', EXAMPLE.read_text())[0]
        self.run_in_shell(command)
        told = self.run_in_shell('./two_stories "$(pkg-config --variable=stories mxrun)"')
        left, right = [], []
        for line in told.splitlines():
            (right if line.startswith(' ' * 40) else left).append(line)
        self.assertGreater(len(left), 20, told)
        self.assertGreater(len(right), 20, told)

    def test_readme_shows_the_example(self):
        """And it is short."""
        readme, example = (SOURCE / 'README.md').read_text(), EXAMPLE.read_text()
        self.assertEqual(re.findall(r'^```c\n(.*?)^```', readme, flags=re.S | re.M), [example])
        self.assertLessEqual(len(example.splitlines()), 40)
        self.assertIn(re.search(r'cc two_stories.*\)', example)[0], readme)

    def test_exports(self):
        symbols = subprocess.run([os.environ['NM'], '-D', '--defined-only', self.library], check=True,
                                 capture_output=True, text=True).stdout.split('\n')
        exported = {s.split()[2] for s in symbols if len(s.split()) == 3} - {'MXRUN_0'}
        listed = set(re.findall(r'\b(mx_\w+);', (SOURCE / 'src' / 'library' / 'mxrun.map').read_text()))
        self.assertEqual(exported, {name + '@@MXRUN_0' for name in listed})
        headers = set().union(*(declared(h) for h in self.include.glob('*.h')))
        self.assertEqual(headers, listed)

    def test_each_header_stands_alone(self):
        for header in sorted(self.include.glob('*.h')):
            (self.root / 'alone.c').write_text(f'#include <mxrun/{header.name}>\nint main(void) {{ return 0; }}\n')
            self.run_in_shell('cc -c -std=c11 -Wpedantic alone.c $(pkg-config --cflags mxrun)')


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1], verbosity=2)
