"""Downloads from a hub that misbehaves: test_download.py FETCH [--full] [WORD]...

FETCH is the program of fetch.c. --full: 2 GB, 200 kills and faults, and nothing else. WORD: in the names of tests.
"""
import concurrent.futures
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from faulty_server import COMMIT, OF_BYTES, OF_HUB, REPOSITORY, Content, Hub, make_certificate

FETCH = sys.argv[1]
FULL = '--full' in sys.argv
TOKEN = 'hf_secret'
INVALID_ARGUMENT, INVALID_FILE, IO, INVALID_STATE, CANCELLED, NOT_FOUND, DENIED, NO_SPACE = 11, 12, 13, 17, 18, 19, 20, 21
PIECE = 128 << 10
STOP = 3  # seconds; it is below one where the machine is not as busy as it may be in tests
DATA = random.Random(1).randbytes(1_500_000)
QUICK = {'BACKOFF': '0.005', 'PATIENCE': '20', 'PIECE': str(PIECE), 'EVENTS': '1', 'TOKEN': TOKEN}

ENVIRONMENT = {k: v for k, v in os.environ.items() if not re.search('_proxy$|^CURL_CA|^SSL_CERT', k, re.I)}


def start(*args, **variables):
    environment = {**ENVIRONMENT, **QUICK, **{k: str(v) for k, v in variables.items()}}
    return subprocess.Popen([FETCH, *map(str, args)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, errors='replace')


def fetch(*args, **variables):
    process = start(*args, **variables)
    try:
        process.out, process.err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f'fetch hangs: {process.communicate()[1][-2000:]}')
    return process


class Case(unittest.TestCase):
    def setUp(self):
        self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder = Path(tempfile.mkdtemp(dir=self.root))

    def file(self, hub, name, size='-', sha256='-', etag='-'):
        return [hub.url(name), self.folder / name, size, sha256, etag]

    def wait_until(self, happens):
        until = time.monotonic() + 30
        while not happens():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)

    def check_token(self, hub):
        """The hub alone has seen it."""
        self.assertTrue(all(r['Authorization'] == f'Bearer {TOKEN}' for r in hub.log if r['host'] == hub.hosts[0]))
        self.assertFalse([r for r in hub.log if r['host'] != hub.hosts[0] and r['Authorization']])

    def check(self, process, hub, *names):
        self.assertEqual(process.returncode, 0, process.err)
        for name in names:
            content = hub.files[name]
            self.assertTrue((self.folder / name).read_bytes() == content.read(0, content.size), f'{name}\n{process.err}')
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), sorted(names), process.err)
        self.check_token(hub)

    def fails(self, process, status, text, published=()):
        self.assertEqual(process.returncode, status, process.err)
        self.assertIn(text, process.err)
        self.assertEqual(process.err.splitlines()[-1].count('fetch: '), 1)
        self.assertFalse([p.name for p in self.folder.iterdir() if p.suffix == '.bin' and p.name not in published])


class Faults(Case):
    def each(self, faults, run):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for fault, future in [(f, pool.submit(run, f)) for f in faults]:
                with self.subTest(fault):
                    future.result()

    def with_fault(self, fault, **options):
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with Hub({'weights.bin': DATA}, seed=3, **options) as hub:
            content = hub.files['weights.bin']
            done = fetch('files', hub.url('weights.bin'), folder / 'weights.bin', content.size, content.sha256,
                         content.etag, **({'PATIENCE': 0.4, 'RETRIES': 50} if fault in ('stall', 'trickle') else {}))
            self.assertEqual(done.returncode, 0, f'{fault}\n{done.err}')
            self.assertEqual((folder / 'weights.bin').read_bytes(), DATA)
            self.assertEqual([p.name for p in folder.iterdir()], ['weights.bin'])
            self.assertGreater(hub.injected[fault], 0)
            if fault not in ('corrupt', 'etag'):  # anything else is seen before the hash
                self.assertNotIn('thrown away', done.err)
            if fault in ('stall', 'trickle'):
                self.assertIn('hardly anything has come', done.err)
            self.check_token(hub)
            return done

    def test_of_bytes(self):
        """Once at the very beginning, once later, twice in a row."""
        self.each(OF_BYTES, lambda f: self.with_fault(f, plan=[f, None, None, f, None, f, f]))

    def test_of_hub(self):
        """Where every address is good for few requests, so that the hub is asked again and again."""
        self.each(OF_HUB, lambda f: self.with_fault(f, hub_plan=[f, None, f, f], signatures=3))

    def test_mix(self):
        faults = {name: 0.025 for name in OF_BYTES if name not in ('corrupt', 'stall', 'trickle', 'etag')}
        files = {f'part-{i}.bin': DATA[i * 1000:] for i in range(3)} | {'config.json': Content(b'{}', large=False)}
        with Hub(files, faults=faults, seed=5) as hub:
            args = sum((self.file(hub, name, c.size, c.sha256 if c.large else '-') for name, c in hub.files.items()), [])
            self.check(fetch('files', *args), hub, *files)
            self.assertGreater(sum(hub.injected.values()), 5)

    def test_a_host_that_stalls_is_not_asked_directly_again(self):
        with Hub({'weights.bin': DATA}, plan=[None, None, 'stall']) as hub:
            self.check(fetch('files', *self.file(hub, 'weights.bin'), CONNECTIONS=1, PATIENCE=0.4), hub, 'weights.bin')
            self.assertEqual([r['host'] for r in hub.log].count(hub.hosts[0]), 2)

    def test_retry_after(self):
        """In seconds, and as a date, which knows no fractions."""
        def run(fault):
            begun = time.monotonic()
            self.with_fault(fault, plan=[fault], retry_after=1 if fault == '429' else 2)
            self.assertGreater(time.monotonic() - begun, 0.9)
        self.each(['429', 'date'], run)

    def test_asked_to_come_back_tomorrow(self):
        with Hub({'weights.bin': DATA}, plan=['429'], retry_after=86400) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin')), IO, 'come back in 1440 minutes')

    def test_given_up(self):
        with Hub({'weights.bin': DATA}, faults={'500': 1}) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin'), RETRIES=3), IO, 'given up after 4 tries')
        self.fails(fetch('files', *self.file(hub, 'weights.bin'), RETRIES=2), IO, 'given up after 3 tries')

    def test_corrupt_for_ever(self):
        with Hub({'weights.bin': DATA}, plan=['corrupt'] * 99) as hub:
            done = fetch('files', *self.file(hub, 'weights.bin'))
            self.fails(done, INVALID_FILE, hub.files['weights.bin'].sha256)
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_other_hash_or_size_than_pinned(self):
        with Hub({'weights.bin': DATA, 'small.bin': Content(b'x' * 1000, large=False)}) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin', '-', 'a' * 64), RETRIES=2), INVALID_FILE, 'a' * 64)
            self.fails(fetch('files', *self.file(hub, 'weights.bin', 77), RETRIES=2), INVALID_FILE, 'expected 77')
            self.fails(fetch('files', *self.file(hub, 'weights.bin', '-', '-', 'old'), RETRIES=2), INVALID_FILE, '"old"')
            self.fails(fetch('files', *self.file(hub, 'small.bin', '-', 'b' * 64)), INVALID_FILE, 'b' * 64)


class Servers(Case):
    """Of several kinds."""

    def test_https(self):
        tls = make_certificate(self.root)
        with Hub({'weights.bin': DATA}, tls=tls, faults={'short': 0.2}, seed=2) as hub:
            self.check(fetch('files', *self.file(hub, 'weights.bin'), SSL_CERT_FILE=tls[0]), hub, 'weights.bin')
            self.assertEqual(fetch('stat', hub.url('weights.bin'), CURL_CA_BUNDLE=tls[0]).returncode, 0)
            hub.connections = 0
            for args in (['stat', hub.url('weights.bin')], ['files', *self.file(hub, 'other.bin')]):
                self.fails(fetch(*args), IO, 'certificate', published=['weights.bin'])
            self.assertEqual(hub.connections, 2)  # asking again would not help

    def test_from_https_to_http(self):
        tls = make_certificate(self.root)
        with Hub({'weights.bin': DATA}, tls=tls, downgrade=True) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin'), SSL_CERT_FILE=tls[0]), IO, 'from https to http')
            self.assertEqual({r['host'] for r in hub.log}, {hub.hosts[0]})

    def test_without_ranges(self):
        with Hub({'weights.bin': DATA}, ranges=False, plan=[None, 'short', 'reset']) as hub:
            self.check(fetch('files', *self.file(hub, 'weights.bin')), hub, 'weights.bin')

    def test_without_etags(self):
        for redirect in (True, False):
            with Hub({'weights.bin': DATA}, etags=False, redirect=redirect, plan=[None, None, 'short']) as hub:
                self.folder = Path(tempfile.mkdtemp(dir=self.root))
                self.check(fetch('files', *self.file(hub, 'weights.bin')), hub, 'weights.bin')

    def test_changed_without_etags(self):
        """Nothing tells the versions apart: the bytes of one answer are never put beside those of another."""
        with Hub({'weights.bin': DATA}, etags=False, redirect=False, rate=1_500_000, plan=[None, None, 'short']) as hub:
            process = start('files', *self.file(hub, 'weights.bin'), CONNECTIONS=2)
            time.sleep(0.25)
            hub.files['weights.bin'] = Content(bytes(reversed(DATA)))
            process.out, process.err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, process.err)
            self.assertIn((self.folder / 'weights.bin').read_bytes(), (DATA, DATA[::-1]))

    def test_weak_etags(self):
        with Hub({'weights.bin': Content(DATA, weak=True)}, redirect=False, plan=[None, 'short']) as hub:
            self.check(fetch('files', *self.file(hub, 'weights.bin')), hub, 'weights.bin')
            self.assertFalse([r for r in hub.log if r['If-Range']])

    def test_sizes(self):
        files = {f'{n}.bin': DATA[:n] for n in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE)}
        for redirect in (True, False):
            for known in (True, False):
                self.folder = Path(tempfile.mkdtemp(dir=self.root))
                with Hub(files, redirect=redirect) as hub:
                    args = sum((self.file(hub, name, c.size if known else '-') for name, c in hub.files.items()), [])
                    done = fetch('files', *args)
                    self.check(done, hub, *files)
                    self.assertEqual([line.split()[0] + line.split()[4] for line in done.out.splitlines()],
                                     ['finished' + c.sha256 for c in hub.files.values()])

    def test_parallel(self):
        """Several ranges at once, conditional ones; the redirect is asked for once."""
        with Hub({'weights.bin': DATA}, rate=1_000_000) as hub:
            self.check(fetch('files', *self.file(hub, 'weights.bin')), hub, 'weights.bin')
            self.assertIn(hub.most_sending, range(3, 9))
            self.assertEqual(len([r for r in hub.log if r['host'] == hub.hosts[0]]), 1)
            etag = f'"{hub.files["weights.bin"].source_etag}"'
            self.assertEqual(sum(r['If-Range'] == etag for r in hub.log), len(DATA) // PIECE)

    def test_stat_and_get(self):
        with Hub({'weights.bin': DATA, 'c.json': Content(b'{}', large=False)}, token=TOKEN, hub_plan=['503']) as hub:
            content = hub.files['weights.bin']
            done = fetch('stat', hub.url('weights.bin'))
            self.assertEqual(done.out.split(), [str(len(DATA)), content.etag, content.sha256, COMMIT], done.err)
            self.assertEqual({r['host'] for r in hub.log}, {hub.hosts[0]})
            self.assertEqual(fetch('stat', hub.url('c.json')).out, f'2\n{hub.files["c.json"].etag}\n\n{COMMIT}\n')
            api = f'{hub.endpoint}/api/models/{REPOSITORY}/revision/main'
            self.assertIn(COMMIT, fetch('get', api, 10000).out)
            self.fails(fetch('get', api, 10), INVALID_FILE, 'more than 10 bytes')
            self.assertEqual(fetch('get', hub.url('weights.bin'), 2_000_000).returncode, 0)
            for word in (['stat', hub.url('none')], ['get', hub.url('none'), 9], ['files', *self.file(hub, 'none.bin')]):
                self.fails(fetch(*word), NOT_FOUND, '404')
            self.check_token(hub)
            for token in ('', 'other'):
                for word in (['stat', hub.url('c.json')], ['get', hub.url('c.json'), 9], ['files', *self.file(hub, 'c.json')]):
                    self.fails(fetch(*word, TOKEN=token), DENIED, '(HF_TOKEN)' if not token else 'licence')

    def test_no_server(self):
        self.fails(fetch('stat', 'http://127.0.0.1:9/x', RETRIES=2), IO, '127.0.0.1:9')
        self.fails(fetch('stat', 'ftp://127.0.0.1/x'), IO, 'protocol')


class Again(Case):
    """What an earlier run left."""

    def broken_off(self, hub, end=signal.SIGKILL, part=6):
        """A download, ended when so many pieces have come; two others may have begun."""
        hub.gate = hub.sent + (part + 2) * PIECE
        process = start('files', *self.file(hub, 'weights.bin'), CONNECTIONS=2)
        state = self.folder / 'weights.bin.incomplete.state'
        self.wait_until(lambda: state.exists() and state.read_text().count(f':{PIECE}') >= part)
        begun = time.monotonic()
        process.send_signal(end)
        process.out, process.err = process.communicate()
        self.assertLess(time.monotonic() - begun, STOP)
        hub.gate = None
        return process

    def test_killed(self):
        with Hub({'weights.bin': DATA}) as hub:
            for end in (signal.SIGKILL, signal.SIGINT):
                self.folder = Path(tempfile.mkdtemp(dir=self.root))
                process = self.broken_off(hub, end)
                self.assertEqual(process.returncode, CANCELLED if end == signal.SIGINT else -end)
                del hub.log[:]
                done = fetch('files', *self.file(hub, 'weights.bin'))
                self.check(done, hub, 'weights.bin')
                self.assertGreaterEqual(int(done.out.split()[2]), 5 * PIECE)
                self.assertLess(len(hub.log), 10)  # of 12 pieces

    def test_stop_while_nothing_comes(self):
        with Hub({'weights.bin': DATA}, plan=[None, 'stall', 'stall'] + ['stall'] * 20) as hub:
            process = start('files', *self.file(hub, 'weights.bin'), PATIENCE=100)
            self.wait_until(lambda: len(hub.log) > 3)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
            self.assertEqual(process.returncode, CANCELLED, err)
            self.assertLess(time.monotonic() - begun, STOP)
        with Hub({'weights.bin': DATA}, delay=2) as hub:
            process = start('stat', hub.url('weights.bin'))
            self.wait_until(lambda: hub.log)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
            self.assertEqual(process.returncode, CANCELLED, err)
            self.assertLess(time.monotonic() - begun, STOP)

    def test_another_version(self):
        """Changed while nobody looked; and while it came."""
        other = bytes(reversed(DATA))[:-5000]
        for redirect in (True, False):
            with Hub({'weights.bin': DATA}, redirect=redirect) as hub:
                self.folder = Path(tempfile.mkdtemp(dir=self.root))
                self.broken_off(hub)
                hub.files['weights.bin'] = Content(other)
                done = fetch('files', *self.file(hub, 'weights.bin'))
                self.check(done, hub, 'weights.bin')
                self.assertIn('has changed', done.err)
            with Hub({'weights.bin': DATA}, redirect=redirect) as hub:
                self.folder = Path(tempfile.mkdtemp(dir=self.root))
                hub.gate = 5 * PIECE
                process = start('files', *self.file(hub, 'weights.bin'), CONNECTIONS=2)
                self.wait_until(lambda: hub.sent >= hub.gate)
                hub.files['weights.bin'], hub.gate = Content(other), None
                process.out, process.err = process.communicate()
                self.check(process, hub, 'weights.bin')

    def test_same_content_elsewhere(self):
        """Another etag comes with the bytes, and the hub vouches for them with the same hash: what came is kept."""
        with Hub({'weights.bin': DATA}) as hub:
            self.broken_off(hub)
            hub.files['weights.bin'].source_etag = 'elsewhere'
            done = fetch('files', *self.file(hub, 'weights.bin'))
            self.check(done, hub, 'weights.bin')
            self.assertGreaterEqual(int(done.out.split()[2]), 5 * PIECE)
            self.assertNotIn('anew', done.err)

    def test_damage(self):
        def lines(change):
            state = self.folder / 'weights.bin.incomplete.state'
            state.write_bytes(change(state.read_bytes()))

        def cut(_):
            os.truncate(self.folder / 'weights.bin.incomplete', 1000)
            return _

        def gone(text):
            (self.folder / 'weights.bin.incomplete').unlink()
            return text

        def other_bytes(text):
            with (self.folder / 'weights.bin.incomplete').open('r+b') as file:
                file.write(b'damaged')
            return text

        damages = {'torn': (lambda t: t + b'0123456789abcdef has 0:1', True), 'zeros': (lambda t: t + bytes(99), True),
                   'flipped': (lambda t: t.replace(b'boot ', b'bOot '), False), 'empty': (lambda t: b'', False),
                   'binary': (lambda t: bytes(range(256)), False), 'cut': (cut, False), 'gone': (gone, False),
                   'other bytes': (other_bytes, True)}
        with Hub({'weights.bin': DATA}) as hub:
            self.broken_off(hub, part=3)
            left = self.folder
            for name, (change, kept) in damages.items():
                with self.subTest(name):
                    self.folder = self.root / name
                    shutil.copytree(left, self.folder)
                    lines(change)
                    done = fetch('files', *self.file(hub, 'weights.bin'))
                    self.check(done, hub, 'weights.bin')
                    self.assertEqual(done.err.count('from an earlier run'), kept, done.err)
                    self.assertEqual('thrown away' in done.err, name == 'other bytes')

    def test_complete(self):
        """What is there is taken, without a request."""
        with Hub({'weights.bin': DATA}) as hub:
            (self.folder / 'weights.bin').write_bytes(DATA)
            done = fetch('files', *self.file(hub, 'weights.bin', len(DATA)))
            self.assertEqual((done.returncode, hub.log), (0, []))
            self.check(fetch('files', *self.file(hub, 'weights.bin')), hub, 'weights.bin')
            self.assertEqual(fetch('sha256', self.folder / 'weights.bin').out.strip(), hub.files['weights.bin'].sha256)
            self.fails(fetch('sha256', self.folder / 'none'), NOT_FOUND, 'none', published=['weights.bin'])

    def test_two_processes(self):
        with Hub({'weights.bin': DATA}) as hub:
            hub.gate = 2 * PIECE
            first = start('files', *self.file(hub, 'weights.bin'))
            self.wait_until((self.folder / 'weights.bin.incomplete.state').exists)
            self.fails(fetch('files', *self.file(hub, 'weights.bin')), INVALID_STATE, 'another process is downloading')
            hub.gate = None
            first.out, first.err = first.communicate()
            self.check(first, hub, 'weights.bin')

    def test_no_space(self):
        with Hub({'weights.bin': DATA}) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin', 10**16)), NO_SPACE, '10000000.00 GB')
            self.assertEqual(hub.log, [])

    def test_full_disk(self):
        """A file system of one megabyte, where this may be made."""
        script = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
        wrapped = ['unshare', '-rm', 'sh', '-c', script, 'sh', self.folder]
        if subprocess.run([*wrapped, 'true'], capture_output=True).returncode:
            self.skipTest('no file system can be mounted here')
        with Hub({'weights.bin': DATA}) as hub:
            process = subprocess.run([*wrapped, FETCH, 'files', *map(str, self.file(hub, 'weights.bin'))],
                                     env={**ENVIRONMENT, **QUICK}, capture_output=True, text=True)
            self.assertEqual(process.returncode, NO_SPACE, process.stderr)
            self.assertIn('what has come is kept: make room', process.stderr)

    def test_wrong_arguments(self):
        with Hub({'weights.bin': DATA}) as hub:
            self.fails(fetch('files', *self.file(hub, 'weights.bin', '-', 'XY')), INVALID_ARGUMENT, 'XY')
            self.fails(fetch('files', *self.file(hub, 'weights.bin', '-', '-', '"x"')), INVALID_ARGUMENT, 'quotes')
            self.fails(fetch('stat', hub.url('weights.bin'), TOKEN='a\nb'), INVALID_ARGUMENT, 'line break')


class Kills(Case):
    """Killed at random moments, with faults, until it is done."""

    def kill_until_done(self, hub, kills, longest, name='weights.bin', **variables):
        dice, left, had, starts = random.Random(7), kills, [], 0
        content = hub.files[name]
        for starts in range(10 * kills + 100):
            process = start('files', *self.file(hub, name, content.size, content.sha256), **variables)
            try:
                process.out, process.err = process.communicate(timeout=dice.uniform(0, longest) if left else 600)
                if process.returncode == 0:
                    had.append(int(process.out.split()[2]))
                    if left:  # it was too quick: once more
                        (self.folder / name).unlink()
                        continue
                    return starts, had
                self.fail(process.err[-3000:])
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                left -= 1
                self.assertFalse((self.folder / name).exists() and (self.folder / name).stat().st_size != content.size)
                if (self.folder / name).exists():  # killed between the new name and the end
                    self.assertEqual(fetch('sha256', self.folder / name).out.strip(), content.sha256)
                    (self.folder / name).unlink()
        self.fail('never done')

    def test_few(self):
        faults = {name: 0.03 for name in OF_BYTES if name not in ('stall', 'trickle')}
        with Hub({'weights.bin': DATA}, faults=faults, seed=11, rate=800_000) as hub:
            self.kill_until_done(hub, 8, 0.5)
            self.assertEqual((self.folder / 'weights.bin').read_bytes(), DATA)
            self.check_token(hub)

    def test_many(self):
        big = self.root / 'big'
        with big.open('wb') as file:
            dice = random.Random(3)
            for _ in range(2000):
                file.write(dice.randbytes(1_000_000))
        faults = {name: 0.012 for name in OF_BYTES}
        for tls in (None, make_certificate(self.root)):
            variables = {'PIECE': 8 << 20, 'PATIENCE': 2} | ({'SSL_CERT_FILE': tls[0]} if tls else {})
            with Hub({'weights.bin': big}, faults=faults, seed=13, tls=tls) as hub:
                begun = time.monotonic()
                starts, had = self.kill_until_done(hub, 100, 1.5, **variables)
                self.check_token(hub)
                print(f'{hub.scheme}: 2 GB, 100 kills in {starts + 1} starts, {len(hub.log)} requests, faults '
                      f'{sum(hub.injected.values())} {hub.injected}, complete {len(had)} times after taking up {had}, '
                      f'{time.monotonic() - begun:.0f} s', flush=True)
                sha256 = fetch('sha256', self.folder / 'weights.bin').out.strip()
                self.assertEqual(sha256, hub.files['weights.bin'].sha256)
                (self.folder / 'weights.bin').unlink()


def main():
    """Several at a time: most of what they do is waiting."""
    def run(test):
        result, begun = unittest.TestResult(), time.monotonic()
        test.run(result)
        wrong = result.failures + result.errors
        print(f'{"FAILED" if wrong else "skipped" if result.skipped else "ok":8}{test.id()} ({time.monotonic() - begun:.1f} s)',
              *(text for _, text in wrong + result.skipped), sep='\n', flush=True)
        return not wrong

    def flat(suite):
        return [t for part in suite for t in flat(part)] if isinstance(suite, unittest.TestSuite) else [suite]

    words = [a for a in sys.argv[2:] if a != '--full']
    tests = [t for t in flat(unittest.defaultTestLoader.loadTestsFromModule(sys.modules['__main__']))
             if ('test_many' in t.id()) == FULL and all(w in t.id() for w in words)]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        good = list(pool.map(run, tests))
    return 0 if good and all(good) else 1


if __name__ == '__main__':
    sys.exit(main())
