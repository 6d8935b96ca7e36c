#!/usr/bin/env python3
"""How fast downloads are beside curl and SHA-256 on one core: download_bench.py FETCH [FOLDER [ROUNDS [BYTES]]]

FETCH is build/tests/hub/fetch. A server on this machine serves a file of 2 GB to both in turn, into FOLDER (default:
/dev/shm, where no disk is measured); the last lines are medians. fetch computes the SHA-256 while it downloads, curl
does not.
"""
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests' / 'hub'))
import faulty_server  # noqa: E402

FETCH, FOLDER = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else '/dev/shm'
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 7
BYTES = int(float(sys.argv[4])) if len(sys.argv) > 4 else 2_000_000_000


def run(*command):
    """Bytes per second in GB/s, and seconds of processor time for a GB."""
    before, begun = os.times(), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'no_proxy': '*'})
    took, after = time.monotonic() - begun, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return BYTES / took / 1e9, used * 1e9 / BYTES


def sha256():
    told = subprocess.run(['openssl', 'speed', '-evp', 'sha256', '-bytes', '16384', '-seconds', '1'], check=True,
                          capture_output=True, text=True).stdout
    return float(re.search(r'([\d.]+)k\s*$', told)[1]) / 1e6


with tempfile.TemporaryDirectory(dir=FOLDER) as name:
    folder = Path(name)
    source = folder / 'source'
    with source.open('wb') as file:
        for at in range(0, BYTES, 1 << 20):
            file.write(os.urandom(min(1 << 20, BYTES - at)))
    server = subprocess.Popen([sys.executable, '-B', faulty_server.__file__, '--direct', folder],
                              stdout=subprocess.PIPE, text=True)
    try:
        server.stdout.readline()
        url = server.stdout.readline().strip()
        ours, theirs, hash_rates = [], [], []
        for i in range(ROUNDS + 1):
            theirs.append(run('curl', '-sf', '-o', str(folder / 'c'), url))
            (folder / 'c').unlink()
            ours.append(run(FETCH, 'files', url, str(folder / 'f'), '-', '-', '-'))
            (folder / 'f').unlink()
            hash_rates.append(sha256())
            told = f'curl {theirs[-1][0]:.3f}  fetch {ours[-1][0]:.3f}  sha256 {hash_rates[-1]:.3f} GB/s'
            print(told if i else f'warm-up: {told}', flush=True)
    finally:
        server.kill()

(curl, curl_cpu), (fetch, fetch_cpu) = ([statistics.median(x) for x in zip(*runs[1:])] for runs in (theirs, ours))
most = statistics.median(hash_rates[1:])
print(f'median: curl {curl:.3f}, fetch {fetch:.3f}, sha256 {most:.3f} GB/s: {100 * fetch / min(curl, most):.1f} % of the '
      f'smaller; processor time for a GB: curl {curl_cpu:.2f} s, fetch {fetch_cpu:.2f} s')
