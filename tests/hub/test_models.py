"""Models by name as a user has them: mxrun against a small hub on loopback and the cache of huggingface_hub.

Of the environment: MXRUN_SOURCE, MXRUN_BINARY. First argument: the program pull_without_links.
"""
import hashlib
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from small_hub import Hub, LARGE, git_sha1  # noqa: E402

SOURCE, MXRUN = Path(os.environ['MXRUN_SOURCE']), os.environ['MXRUN_BINARY']
WITHOUT_LINKS = os.path.abspath(sys.argv.pop(1))
CHECKPOINT = SOURCE / 'tools' / 'stories' / 'checkpoint'
STORIES = {p.name: p.read_bytes() for p in CHECKPOINT.iterdir()}
NEEDED = {name: data for name, data in STORIES.items() if name != 'README.md'}
REPOSITORY = 'org/small-stories'
FOLDER = 'models--org--small-stories'


def random_bytes(size, seed=1):
    return random.Random(seed).randbytes(size)


# Files with the right names and other content, for what does not look into them.
TINY = {'config.json': b'{"model_type": "gpt_oss"}', 'tokenizer.json': b'{}', 'README.md': b'#',
        'model.safetensors': random_bytes(100_000), 'original/model.safetensors': random_bytes(LARGE, 2)}


def brief(data):
    """What stands for content in comparisons: unittest would look for differences in megabytes for hours."""
    return data if len(data) < LARGE else f'{len(data)} bytes, {hashlib.sha256(data).hexdigest()}'


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.cache = self.home / 'cache'
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        keep = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING', 'TRANSFORMERS_', 'XDG_')) and 'proxy' not in k.lower()}
        self.env = {**keep, 'HOME': str(self.home), 'HF_HUB_CACHE': str(self.cache), 'HF_ENDPOINT': self.hub.address}

    def start(self, *arguments, program=(MXRUN,), **options):
        return subprocess.Popen([*program, *arguments], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, cwd=self.home, **options)

    def end(self, process, code=0):
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, code, out + err)
        return out, err

    def run_mxrun(self, *arguments, code=0):
        return self.end(self.start(*arguments), code)

    def fails(self, *arguments, says):
        _, err = self.run_mxrun(*arguments, code=1)
        self.assertIn(says, err)
        return err

    def list_models(self, *arguments):
        return {m['name']: m for m in json.loads(self.run_mxrun('list', '--json', *arguments)[0])['models']}

    def write_list(self, text):
        path = self.home / '.config' / 'mxrun' / 'models.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def tree(self, folder=None):
        folder = folder or self.cache
        return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else brief(p.read_bytes())
                for p in folder.rglob('*') if p.is_symlink() or p.is_file()}

    def make_cache(self, files, folder=FOLDER, commit='c' * 40, revision='main'):
        """What huggingface_hub makes."""
        root = self.cache / folder
        for path, data in files.items():
            blob = root / 'blobs' / (hashlib.sha256(data).hexdigest() if len(data) >= LARGE else git_sha1(data))
            link = root / 'snapshots' / commit / path
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            link.symlink_to(os.path.relpath(blob, link.parent))
        if revision:
            ref = root / 'refs' / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
        return root


class Pull(Case):
    def test_layout_of_the_cache(self):
        commit = self.hub.publish(REPOSITORY, {**STORIES, 'metal/model.bin': b'm', 'original/config.json': b'{}'})
        out, err = self.run_mxrun('pull', REPOSITORY)
        root = self.cache / FOLDER
        self.assertEqual(out.strip(), str(root / 'snapshots' / commit))
        self.assertIn('download  10.5 MB in 5 files', err)
        expected = {'refs/main': commit.encode(), 'mxrun.busy': b''}
        for name, data in NEEDED.items():
            blob = hashlib.sha256(data).hexdigest() if len(data) >= LARGE else git_sha1(data)
            expected[f'blobs/{blob}'] = brief(data)
            expected[f'snapshots/{commit}/{name}'] = f'../../blobs/{blob}'
        tree = self.tree(root)
        lock = tree.pop('mxrun.lock').decode()
        self.assertEqual(tree, expected)
        for name, data in NEEDED.items():
            self.assertRegex(lock, rf'(?m)^file {commit} {len(data)} \w+ {hashlib.sha256(data).hexdigest()} {re.escape(name)}$')
        self.assertIn(f'\nrevision main {commit}\n', lock)

        # It is used, and neither it nor a second pull asks the hub again.
        asked = len(self.hub.requests)
        answer, _ = self.run_mxrun('-m', REPOSITORY, '--greedy', '-q', '-n', '8', '-p', 'Tell me a story')
        self.assertEqual(answer, self.run_mxrun('-m', 'stories', '--greedy', '-q', '-n', '8', '-p', 'Tell me a story')[0])
        self.assertIn('is there', self.run_mxrun('pull', REPOSITORY)[1])
        self.assertIn('is there', self.run_mxrun('pull', '--offline', REPOSITORY)[1])
        self.assertEqual(len(self.hub.requests), asked)
        listed = self.list_models()[REPOSITORY]
        self.assertEqual((listed['complete'], listed['from'], listed['layout'], listed['commit']), (True, 'mxrun', 'hf', commit))
        self.assertEqual(listed['bytes'], sum(map(len, NEEDED.values())))

    def test_names_of_models_txt(self):
        commit = self.hub.publish(REPOSITORY, TINY, 'v1')
        sha = hashlib.sha256(TINY['model.safetensors']).hexdigest()
        self.write_list(f'model small\n alias s:1\n repository {REPOSITORY}\n revision v1\n layout hf\n file config.json - -\n'
                        f' file tokenizer.json 2 -\n file model.safetensors 100000 {sha}\n optional chat_template.jinja - -\n')
        out, _ = self.run_mxrun('pull', 's:1')
        self.assertEqual(sorted(p.name for p in Path(out.strip()).iterdir()),
                         ['config.json', 'model.safetensors', 'tokenizer.json'])
        self.assertEqual((self.cache / FOLDER / 'refs' / 'v1').read_text(), commit)
        self.assertFalse([r for r in self.hub.requests if '/api/' in r.path])  # what is needed is known
        for name in 'small', 's:1', REPOSITORY, f'{REPOSITORY}@v1':
            self.assertIn('is there', self.run_mxrun('pull', name)[1])
        self.assertEqual(self.list_models()['small']['aliases'], ['s:1'])

    def test_events(self):
        commit = self.hub.publish(REPOSITORY, TINY)
        events = [json.loads(line) for line in self.run_mxrun('pull', '--json', REPOSITORY)[0].splitlines()]
        kinds = [e['event'] for e in events]
        self.assertEqual(kinds[:2] + kinds[-1:], ['asking', 'planned', 'done'])
        self.assertEqual(kinds.count('file'), 3)
        self.assertEqual({k: events[1][k] for k in ('commit', 'files', 'total', 'missing')},
                         {'commit': commit, 'files': 3, 'total': 100_027, 'missing': 100_027})
        self.assertEqual([json.loads(line)['event'] for line in self.run_mxrun('pull', '--json', REPOSITORY)[0].splitlines()], ['present'])
        stories, = (json.loads(line) for line in self.run_mxrun('pull', '--json', 'stories')[0].splitlines())
        self.assertEqual(stories, {'event': 'present', 'name': 'stories', 'commit': '', 'path': str(CHECKPOINT),
                                   'bytes': sum(map(len, NEEDED.values()))})
        out, _ = self.run_mxrun('pull', '--json', 'org/none', code=1)
        self.assertEqual(json.loads(out.splitlines()[-1])['event'], 'error')

    def test_token_stays_with_the_hub(self):
        self.hub.publish(REPOSITORY, TINY)
        self.hub.other_host = True
        self.env['HF_TOKEN'] = 'hf_secret'
        self.run_mxrun('pull', REPOSITORY)
        other = [r for r in self.hub.requests if r.host.startswith('127.0.0.2')]
        self.assertTrue(other)
        self.assertEqual({r.token for r in other}, {None})
        self.assertEqual({r.token for r in self.hub.requests if r not in other}, {'Bearer hf_secret'})

    def test_passwords_of_a_mirror_are_not_told(self):
        self.hub.publish(REPOSITORY, TINY)
        address = self.hub.address.removeprefix('http://')
        for endpoint, code in (f'http://user:S3CRET@{address}/none', 1), ('http://user:S3CRET@127.0.0.1:99999', 1), \
                ('ftp://user:S3CRET@x', 2), ('user:S3CRET@x', 2), ('user:S3CRET@x/http://y', 2), (f'http://user:S3CRET@{address}', 0):
            self.env['HF_ENDPOINT'] = endpoint
            for arguments in ['--json'], ['--update']:
                self.assertNotIn('S3CRET', ''.join(self.run_mxrun('pull', *arguments, REPOSITORY, code=code)))
                self.assertNotIn('S3CRET', ''.join(self.run_mxrun('pull', *arguments, 'org/none', code=code or 1)))
        self.hub.spoil = lambda path, data: data[:-1] + b'?'
        shutil.rmtree(self.cache)
        self.env['HF_ENDPOINT'] = f'http://user:S3CRET@{address}'
        self.assertNotIn('S3CRET', ''.join(self.run_mxrun('pull', REPOSITORY, code=1)))

    def test_what_changed_is_told(self):
        old = self.hub.publish(REPOSITORY, TINY)
        self.run_mxrun('pull', REPOSITORY)
        new = self.hub.publish(REPOSITORY, {**TINY, 'config.json': b'{"model_type":"gpt_oss"}'})
        asked = len(self.hub.requests)
        self.run_mxrun('pull', REPOSITORY)  # pinned: no network
        self.assertEqual(len(self.hub.requests), asked)
        # Incomplete now: what was pinned comes back, not what is new.
        (self.cache / FOLDER / 'blobs' / hashlib.sha256(TINY['model.safetensors']).hexdigest()).unlink()
        self.fails('-m', REPOSITORY, '-p', 'x', says='is not complete')
        self.assertIn(old, self.run_mxrun('pull', REPOSITORY)[0])
        # The hub sends something else for what is pinned.
        (self.cache / FOLDER / 'blobs' / hashlib.sha256(TINY['model.safetensors']).hexdigest()).unlink()
        self.hub.commits[REPOSITORY, old]['model.safetensors'] = random_bytes(100_000, 7)
        self.fails('pull', REPOSITORY, says=f'"mxrun pull {REPOSITORY} --update"')
        self.hub.revisions[REPOSITORY, old] = new  # a mirror that knows only the newest
        self.fails('pull', REPOSITORY, says='mxrun.lock pins commit ' + old[:12])
        out, _ = self.run_mxrun('pull', '--update', REPOSITORY)
        self.assertIn(new, out)
        self.assertEqual((self.cache / FOLDER / 'refs' / 'main').read_text(), new)
        self.assertIn('is there', self.run_mxrun('pull', '--update', REPOSITORY)[1])

    def test_what_models_txt_says_holds(self):
        self.hub.publish(REPOSITORY, TINY)
        for size, sha, says in (99_999, '-', 'has 100000 bytes'), ('-', 'a' * 64, 'has SHA-256'):
            path = self.write_list(f'model small\n repository {REPOSITORY}\n layout hf\n file config.json - -\n'
                                   f' file model.safetensors {size} {sha}\n')
            err = self.fails('pull', 'small', says=says)
            self.assertIn(f'{path}:5 says', err)
        self.assertEqual(self.hub.files_asked(), [])
        self.assertEqual(self.tree(), {})

    def test_wrong_content_is_not_published(self):
        files = TINY
        self.hub.publish(REPOSITORY, files)
        for wrong in 'model.safetensors', 'config.json':
            self.hub.spoil = lambda path, data: data[:-1] + b'?' if path == wrong else data
            self.run_mxrun('pull', REPOSITORY, code=1)
            self.assertFalse((self.cache / FOLDER / 'snapshots').exists())
            self.assertFalse((self.cache / FOLDER / 'refs').exists())
            self.assertNotIn(brief(files[wrong]), self.tree().values())
            shutil.rmtree(self.cache)
        self.hub.spoil = lambda path, data: data
        self.run_mxrun('pull', REPOSITORY)
        self.run_mxrun('verify-files', REPOSITORY)
        self.assertFalse([p for p in (self.cache / FOLDER / 'blobs').iterdir() if 'mxrun' in p.name])

    def test_a_killed_pull_goes_on(self):
        files = {**TINY, 'model.safetensors': random_bytes(3_000_000)}
        self.hub.publish(REPOSITORY, files)
        self.hub.rate = 4_000_000
        process = self.start('pull', REPOSITORY)
        self.wait_for(lambda: sum(r.sent for r in self.hub.requests) > 1_200_000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.assertFalse((self.cache / FOLDER / 'snapshots').exists())
        listed = self.list_models()
        self.hub.rate = 0
        before = sum(r.sent for r in self.hub.requests)
        events = [json.loads(line) for line in self.run_mxrun('pull', '--json', REPOSITORY)[0].splitlines()]
        fetched = sum(r.sent for r in self.hub.requests) - before
        self.assertLess(fetched, 2_990_000)
        plan = next(e for e in events if e['event'] == 'planned')
        self.assertEqual(plan['total'], sum(len(files[f]) for f in ('config.json', 'tokenizer.json', 'model.safetensors')))
        self.assertLess(plan['missing'], 2_990_000)
        self.assertLess(abs(plan['missing'] - fetched), 200_000)  # a moment counts for either side
        self.assertIn('from an earlier run', ' '.join(e.get('text', '') for e in events if e['event'] == 'progress'))
        self.run_mxrun('verify-files', REPOSITORY)
        self.assertEqual(len(list((self.cache / FOLDER / 'blobs').iterdir())), 3)
        self.assertFalse(listed[REPOSITORY]['complete'])
        self.assertGreater(listed[REPOSITORY]['incomplete_bytes'], 0)

    def test_a_second_process_waits(self):
        self.hub.publish(REPOSITORY, TINY)
        self.hub.rate = 200_000
        first = self.start('pull', REPOSITORY)
        self.wait_for(lambda: self.hub.files_asked())
        second = self.start('pull', REPOSITORY)
        self.fails('rm', '--yes', REPOSITORY, says='another mxrun is pulling')
        self.end(first)
        _, err = self.end(second)
        self.assertIn('waiting for it', err)
        self.assertIn('is there', err)
        self.assertEqual(self.hub.files_asked().count('model.safetensors'), 1)

    def test_a_second_process_goes_on_where_the_first_came_to_nothing(self):
        asked = threading.Event()

        class Slow(dict):
            def __getitem__(self, key):
                first, found = not asked.is_set(), key in self
                asked.set()
                time.sleep(0.5 if first else 0)
                return super().__getitem__(key) if found else {}[key]

        self.hub.revisions = Slow()
        first = self.start('pull', REPOSITORY)
        self.assertTrue(asked.wait(20))
        second = self.start('pull', REPOSITORY)
        self.assertIn('waiting for it', second.stderr.readline())
        self.hub.publish(REPOSITORY, TINY)
        self.end(first, 1)
        self.end(second)
        self.run_mxrun('verify-files', REPOSITORY)

    def test_interrupted(self):
        self.hub.publish(REPOSITORY, {**TINY, 'model.safetensors': random_bytes(3_000_000)})
        self.hub.rate = 1_000_000
        process = self.start('pull', REPOSITORY)
        self.wait_for(lambda: self.hub.files_asked())
        process.send_signal(signal.SIGINT)
        self.end(process, 130)

    def test_a_limit_of_file_sizes_is_told(self):
        self.hub.publish(REPOSITORY, TINY)
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
        _, err = self.end(self.start('pull', REPOSITORY, preexec_fn=limit), 1)
        self.assertIn('model.safetensors', err)
        self.assertIn('File too large', err)
        self.run_mxrun('pull', REPOSITORY)

    def test_parts_of_one_gguf(self):
        parts = {f'Q4/m-0000{i}-of-00002.gguf': random_bytes(5000, i) for i in (1, 2)}
        commit = self.hub.publish(REPOSITORY, {**parts, 'm-Q8.gguf': b'GGUF8', 'config.json': b'{}'})
        _, err = self.run_mxrun('pull', REPOSITORY, code=2)
        self.assertIn(f'name one as {REPOSITORY}:FILE.gguf: Q4/m-00001-of-00002.gguf, m-Q8.gguf', err)
        self.assertEqual(self.tree(), {})
        snapshot = self.cache / FOLDER / 'snapshots' / commit
        self.assertEqual(self.run_mxrun('pull', f'{REPOSITORY}:m-00001-of-00002.gguf')[0].strip(), str(snapshot / 'Q4/m-00001-of-00002.gguf'))
        self.assertEqual(sorted(p.name for p in snapshot.rglob('*.gguf')), ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf'])
        self.assertEqual(os.readlink(snapshot / 'Q4/m-00002-of-00002.gguf')[:15], '../../../blobs/')
        self.run_mxrun('pull', f'{REPOSITORY}:m-Q8.gguf')  # beside it, in the same snapshot
        self.assertEqual(len(list(snapshot.rglob('*.gguf'))), 3)
        self.assertEqual(len(self.list_models()) - 1, 2)
        self.run_mxrun('rm', '--yes', f'{REPOSITORY}:m-Q8.gguf')
        self.run_mxrun('verify-files', f'{REPOSITORY}:m-00001-of-00002.gguf')
        self.assertFalse((snapshot / 'm-Q8.gguf').is_symlink())

    def test_offline(self):
        self.hub.publish(REPOSITORY, TINY)
        self.fails('pull', '--offline', REPOSITORY, says='mxrun is offline')
        self.env['HF_HUB_OFFLINE'] = '1'
        self.fails('pull', REPOSITORY, says='missing: everything')
        self.fails('-m', REPOSITORY, '--yes', '-p', 'x', says='but not offline')
        self.assertEqual(self.hub.requests, [])
        self.assertFalse(self.cache.exists())

    def test_wrong_arguments(self):
        self.run_mxrun('pull', code=2)
        self.fails('pull', 'gpt-os-20b', says='did you mean gpt-oss-20b')
        self.run_mxrun('pull', 'stories', '--revision', 'x', code=2)
        self.assertIn('comes with mxrun', self.run_mxrun('pull', 'stories')[1])
        self.fails('pull', 'org/none', says='org/none')
        self.assertEqual(self.tree(), {})  # nothing is left behind
        commit = self.hub.publish(REPOSITORY, TINY)
        self.assertIn(commit, self.run_mxrun('pull', '--revision', commit, REPOSITORY)[0])
        self.assertFalse((self.cache / FOLDER / 'refs').exists())
        self.assertTrue(self.list_models()[f'{REPOSITORY}@{commit}']['complete'])

    def test_leftovers_of_a_kill(self):
        """State files that were being written go; a link where a snapshot is built is not followed."""
        outside = self.home / 'outside'
        outside.mkdir()
        (outside / 'config.json').write_bytes(b'precious')
        blobs = self.cache / FOLDER / 'blobs'
        blobs.mkdir(parents=True)
        (blobs / 'x.mxrun.incomplete.state.abcdef').touch()
        commit = self.hub.publish(REPOSITORY, TINY)
        for name in '.mxrun-snapshot', f'.mxrun-snapshot-{commit}':
            (self.cache / FOLDER / name).symlink_to(outside)
        self.run_mxrun('pull', REPOSITORY)
        self.run_mxrun('verify-files', REPOSITORY)
        self.assertEqual(self.tree(outside), {'config.json': b'precious'})
        self.assertFalse([p for p in self.tree() if '.mxrun-' in p or '.mxrun.' in p])

    def wait_for(self, condition):
        end = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)


class WithoutLinks(Case):
    """A file system without links holds the content itself in snapshots, once for each name."""
    files = {'config.json': b'{}', 'tokenizer.json': b'{}', 'generation_config.json': b'{}', 'model.safetensors': random_bytes(100_000)}

    def check(self, asked):
        self.hub.requests.clear()
        out, _ = self.end(self.start(REPOSITORY, program=(WITHOUT_LINKS,)))
        self.assertEqual(sorted(self.hub.files_asked()), sorted(asked))
        self.assertEqual(out.strip(), str(self.snapshot))
        tree = self.tree(self.cache / FOLDER)
        tree.pop('mxrun.lock')
        expected = {f'snapshots/{self.snapshot.name}/{name}': brief(data) for name, data in self.files.items()}
        self.assertEqual(tree, {**expected, 'refs/main': self.snapshot.name.encode(), 'mxrun.busy': b''})
        self.run_mxrun('verify-files', REPOSITORY)

    def test_pulls_that_were_killed(self):
        commit = self.hub.publish(REPOSITORY, self.files)
        root = self.cache / FOLDER
        self.snapshot = root / 'snapshots' / commit
        self.check(['config.json', 'model.safetensors'])
        for moved in None, root / f'.mxrun-snapshot-{commit}', self.snapshot:
            for first in 'config.json', 'model.safetensors':
                self.run_mxrun('rm', '--yes', REPOSITORY)
                self.make_cache(self.files, commit=commit, revision=None)  # all is downloaded
                shutil.rmtree(root / 'snapshots')
                if moved:
                    moved.mkdir(parents=True)
                    (moved / first).write_bytes(self.files[first])
                    if first == 'model.safetensors':  # has no twin
                        next(p for p in (root / 'blobs').iterdir() if p.stat().st_size > 2).unlink()
                self.check([])
        self.run_mxrun('rm', '--yes', REPOSITORY)
        self.assertEqual(self.tree(), {})


class Resolve(Case):
    def test_order(self):
        self.write_list(f'model small\n repository {REPOSITORY}\n layout hf\n')
        self.make_cache(STORIES)
        self.assertIn(str(self.cache), self.run_mxrun('info', '-m', 'small')[0])
        self.assertIn(str(self.cache), self.run_mxrun('info', '-m', REPOSITORY)[0])
        (self.home / 'small').symlink_to(CHECKPOINT)
        self.assertTrue(self.run_mxrun('info', '-m', 'small')[0].startswith('small\n'))
        (self.home / 'org').mkdir()
        (self.home / REPOSITORY).symlink_to(CHECKPOINT)
        self.assertTrue(self.run_mxrun('info', '-m', REPOSITORY)[0].startswith(REPOSITORY + '\n'))
        self.assertTrue(self.run_mxrun('info', '-m', './small')[0].startswith('./small\n'))
        for path in './none', '/no/such/folder', 'a/b/c':
            self.fails('info', '-m', path, says='No such file or directory')
        for path in 'org/none/', 'gpt-oss-20b/', 'gpt-oss-20b//':
            self.fails('info', '-m', path, says='no slash at its end: ' + path.strip('/'))
        for path in './none/', '/', 'a/b/c/':
            _, err = self.end(self.start('info', '-m', path), 1)
            self.assertNotIn('no slash', err)
        self.assertEqual(self.hub.requests, [])

    def test_copies_of_other_tools_are_used_in_place(self):
        root = self.make_cache(STORIES, revision='main')
        (root / '.no_exist' / ('c' * 40)).mkdir(parents=True)
        (root / '.no_exist' / ('c' * 40) / 'chat_template.jinja').touch()
        before = self.tree()
        self.run_mxrun('-m', REPOSITORY, '-n', '1', '-q', '-p', 'x')
        self.run_mxrun('pull', REPOSITORY)
        self.run_mxrun('verify-files', REPOSITORY)
        listed = self.list_models()[REPOSITORY]
        self.assertEqual((listed['complete'], listed['from']), (True, 'other tool'))
        self.assertEqual(self.tree(), before)
        self.assertEqual(self.hub.requests, [])
        # Other revisions have their names, other models are not shown.
        self.make_cache(STORIES, commit='d' * 40, revision='refs/pr/1')
        self.make_cache({**TINY, 'config.json': b'{"model_type": "bert"}'}, folder='models--org--bert')
        self.assertEqual(set(self.list_models()), {REPOSITORY, REPOSITORY + '@refs/pr/1', 'stories'})

    def test_whose_an_incomplete_download_is(self):
        self.write_list(f'model small\n repository {REPOSITORY}\n layout hf\n file config.json - -\n')
        blobs = self.cache / FOLDER / 'blobs'
        blobs.mkdir(parents=True)
        (blobs / 'abc.incomplete').write_bytes(b'x')
        self.assertEqual(self.list_models()['small']['from'], 'other tool')
        (blobs / 'abc.mxrun.incomplete').write_bytes(b'x')
        self.assertEqual(self.list_models()['small']['from'], 'mxrun')

    def test_what_is_missing_is_named(self):
        index = json.dumps({'weight_map': {f't{i}': f'model-0000{i}-of-00002.safetensors' for i in range(3)}}).encode()
        shards = {f'model-0000{i}-of-00002.safetensors': random_bytes(5000, i) for i in range(3)}
        files = {'config.json': b'{"model_type": "gpt_oss"}', 'tokenizer.json': b'{}', 'model.safetensors.index.json': index, **shards}
        root = self.make_cache(files)
        self.assertTrue(self.list_models()[REPOSITORY]['complete'])
        (root / 'snapshots' / ('c' * 40) / 'model-00001-of-00002.safetensors').unlink()  # never came
        blob = root / 'blobs' / hashlib.sha256(shards['model-00002-of-00002.safetensors']).hexdigest()
        blob.unlink()  # its link leads to nothing
        err = self.fails('-m', REPOSITORY, '-p', 'x', says='is not complete')
        for name in sorted(shards)[1:]:
            self.assertIn(name, err)
        self.assertIn(f'"mxrun pull {REPOSITORY}"', err)
        self.assertEqual(sorted(self.list_models()[REPOSITORY]['missing']), sorted(shards)[1:])
        self.fails('verify-files', REPOSITORY, says='2 of 6 files are not as they should be')
        self.assertEqual(self.hub.requests, [])
        # A pull makes it whole, with what is there.
        self.hub.publish(REPOSITORY, files)
        self.run_mxrun('pull', REPOSITORY)
        self.assertEqual(self.hub.files_asked(), sorted(shards)[2:])  # the other blob was there

    def test_nothing_is_downloaded_unasked(self):
        self.hub.publish(REPOSITORY, STORIES)
        self.fails('-m', REPOSITORY, '-p', 'x', says=f'"mxrun pull {REPOSITORY}" downloads it, and so does --yes')
        for command in (['info'], ['tokenize', '--text', 'x']):
            _, err = self.end(self.start(*command, '-m', REPOSITORY), 2 if command[0] == 'tokenize' else 1)
        self.assertEqual(self.hub.requests, [])
        self.run_mxrun('-m', REPOSITORY, '--yes', '-n', '1', '-p', 'x')
        self.assertTrue(self.hub.requests)

    def ask(self, answer):
        main, side = pty.openpty()
        process = subprocess.Popen([MXRUN, '-m', REPOSITORY, '-n', '1', '-q', '-p', 'x'], env={**self.env, 'TERM': 'xterm'},
                                   stdin=side, stderr=side, stdout=subprocess.PIPE, cwd=self.home)
        os.close(side)
        seen = b''
        try:
            while b'[Y/n]' not in seen:
                seen += os.read(main, 1000)
            os.write(main, answer)
            while True:
                seen += os.read(main, 1000)
        except OSError:  # the other side is closed
            pass
        out, _ = process.communicate(timeout=60)
        os.close(main)
        return process.returncode, out, seen.decode()

    def test_a_terminal_is_asked(self):
        self.hub.publish(REPOSITORY, STORIES)
        code, out, seen = self.ask(b'n\n')
        self.assertEqual((code, out), (1, b''))
        for part in REPOSITORY, '10.5 MB in 5 files', 'free', str(self.cache / FOLDER), 'was not downloaded':
            self.assertIn(part, seen)
        self.assertEqual(self.hub.files_asked(), [])
        self.assertEqual(self.tree(), {})
        code, _, _ = self.ask(b'\n')
        self.assertEqual(code, 0)
        self.assertTrue(self.list_models()[REPOSITORY]['complete'])

    def test_wrong_lists_are_named(self):
        path = self.write_list('model x\n repository a/b\n layout hf\n file a 1x -\n')
        self.fails('-m', 'x', '-p', 'x', says=f'{path}:4: file: size "1x"')
        self.run_mxrun('-m', 'stories', '-n', '1', '-p', 'x')  # needs no list
        self.fails('list', says=f'{path}:4: ')
        self.write_list(f'model stories\n repository {REPOSITORY}\n layout hf\n')  # not one here, another there
        for arguments in ['list'], ['pull', 'stories'], ['verify-files', 'stories']:
            self.fails(*arguments, says=f'{path}:1: model: "stories" is the model that comes with mxrun')


class Remove(Case):
    def test_rm(self):
        self.hub.publish(REPOSITORY, TINY)
        self.run_mxrun('pull', REPOSITORY)
        self.run_mxrun('rm', REPOSITORY, code=2)  # nobody can be asked
        self.assertTrue(self.tree())
        keep = self.make_cache(TINY, folder='models--other--one')
        before = self.tree(keep)
        self.run_mxrun('rm', '--yes', REPOSITORY)
        self.assertFalse((self.cache / FOLDER).exists())
        self.assertEqual(self.tree(keep), before)
        self.fails('rm', '--yes', REPOSITORY, says='is not in')
        self.run_mxrun('rm', '--yes', 'stories', code=2)
        self.assertTrue((CHECKPOINT / 'config.json').exists())

    def test_other_snapshots_keep_what_they_use(self):
        old = self.hub.publish(REPOSITORY, TINY, 'v1')
        new = self.hub.publish(REPOSITORY, {**TINY, 'config.json': b'{"model_type":"gpt_oss"}'})
        self.run_mxrun('pull', REPOSITORY + '@v1', REPOSITORY)
        self.assertEqual(self.hub.files_asked().count('model.safetensors'), 1)  # one content, one download
        (self.cache / FOLDER / 'blobs' / 'x.mxrun.incomplete').write_bytes(b'x')
        self.run_mxrun('rm', '--yes', REPOSITORY)
        self.run_mxrun('verify-files', REPOSITORY + '@v1')
        tree = self.tree(self.cache / FOLDER)
        self.assertFalse([p for p in tree if new in p or 'incomplete' in p or p == 'refs/main'])
        self.assertEqual(len([p for p in tree if p.startswith('blobs/')]), 3)
        self.assertIn('is there', self.run_mxrun('pull', REPOSITORY + '@v1')[1])
        self.assertNotIn(new, tree['mxrun.lock'].decode())
        self.assertIn(old, tree['mxrun.lock'].decode())

    def test_nothing_outside_the_cache(self):
        outside = self.home / 'outside'
        shutil.copytree(self.make_cache(TINY), outside, symlinks=True)
        shutil.rmtree(self.cache / FOLDER)
        (self.cache / FOLDER).symlink_to(outside)
        before = self.tree(outside)
        self.fails('rm', '--yes', REPOSITORY, says='removes nothing outside')
        self.assertEqual(self.tree(outside), before)
        # Links inside it are removed, not what they lead to.
        (self.cache / FOLDER).unlink()
        root = self.make_cache(TINY)
        (root / 'snapshots' / ('c' * 40) / 'more').symlink_to(outside)
        self.run_mxrun('rm', '--yes', REPOSITORY)
        self.assertFalse(root.exists())
        self.assertEqual(self.tree(outside), before)

    def rm(self, name):
        return self.run_mxrun('rm', '--yes', name)[1]

    def refuses(self, *names):
        """Nothing of them is there: nothing happens, not even a file of mxrun appears."""
        before = self.tree()
        for name in names:
            self.fails('rm', '--yes', name, says=f'{name} is not in')
        self.assertEqual(self.tree(), before)

    def test_what_is_not_there_takes_nothing_along(self):
        self.make_cache({'a.gguf': b'GGUFa', 'b.gguf': b'GGUFb'})
        root = self.make_cache({'README.md': b'#'}, folder='models--org--other')
        (root / 'blobs' / 'abc.incomplete').write_bytes(b'x')
        self.refuses(f'{REPOSITORY}:typo.gguf', f'{REPOSITORY}@v9', f'{REPOSITORY}@{"d" * 40}', 'org/other', 'org/other@v1')
        self.write_list(f'model small\n repository {REPOSITORY}\n layout gguf\n file c.gguf - -\n'
                        'model big\n repository org/big\n layout hf\n file config.json - -\n file model.safetensors - -\n')
        self.make_cache({'original/model.safetensors': b'x', 'README.md': b'#'}, folder='models--org--big')
        self.refuses('small', 'big')
        self.rm(f'{REPOSITORY}:a.gguf')
        self.assertEqual([p.name for p in (self.cache / FOLDER / 'snapshots').rglob('*.gguf')], ['b.gguf'])
        self.assertFalse((self.cache / FOLDER / 'mxrun.busy').exists())

    def test_blobs_of_other_tools_stay(self):
        root = self.make_cache(TINY)
        for name in 'abc.incomplete', 'abc', 'x.mxrun.incomplete', 'x.mxrun.incomplete.state.abcdef':
            (root / 'blobs' / name).write_bytes(b'x')
        self.rm(REPOSITORY)
        self.assertEqual(sorted(self.tree(root)), ['blobs/abc', 'blobs/abc.incomplete'])

    def test_absolute_links(self):
        """The folder of blobs is the last one of that name."""
        self.cache = self.home / 'blobs' / 'of' / 'mine'
        self.env['HF_HUB_CACHE'] = str(self.cache)
        self.make_cache({'a.gguf': b'GGUFa', 'b.gguf': b'GGUFb'})
        snapshot = self.cache / FOLDER / 'snapshots' / ('c' * 40)
        for link in snapshot.iterdir():
            blob = link.resolve()
            link.unlink()
            link.symlink_to(blob)
        (snapshot / 'same.gguf').symlink_to((snapshot / 'b.gguf').resolve())
        self.rm(f'{REPOSITORY}:b.gguf')
        self.assertEqual({p.name: p.read_bytes() for p in snapshot.iterdir()}, {'a.gguf': b'GGUFa', 'same.gguf': b'GGUFb'})

    def test_one_commit_of_two_revisions(self):
        commit = self.hub.publish(REPOSITORY, TINY)
        self.hub.publish(REPOSITORY, TINY, 'v1')
        self.run_mxrun('pull', REPOSITORY, REPOSITORY + '@v1')
        self.fails('rm', '--yes', f'{REPOSITORY}@{commit}', says='is that commit and would go, too')
        self.assertIn('the files stay: revision v1', self.rm(REPOSITORY))
        self.run_mxrun('verify-files', REPOSITORY + '@v1')
        self.refuses(REPOSITORY)
        self.rm(REPOSITORY + '@v1')
        self.assertEqual(self.tree(), {})
        self.make_cache({'a.gguf': b'GGUFa', 'b.gguf': b'GGUFb'})
        self.make_cache({}, revision='v1')
        self.assertIn('revision v1 is the same commit and loses them', self.rm(f'{REPOSITORY}:a.gguf'))

    def test_a_broken_off_pull_is_removed(self):
        self.hub.publish(REPOSITORY, {'a.gguf': random_bytes(3_000_000), 'b.gguf': random_bytes(5000, 3)})
        self.run_mxrun('pull', f'{REPOSITORY}:b.gguf')
        before = self.tree()
        self.hub.rate = 2_000_000
        process = self.start('pull', f'{REPOSITORY}:a.gguf')
        Pull.wait_for(self, lambda: list((self.cache / FOLDER / 'blobs').glob('*.incomplete')))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.rm(f'{REPOSITORY}:a.gguf')
        self.assertEqual(self.tree(), before)


class VerifyFiles(Case):
    def test_a_flipped_byte(self):
        self.hub.publish(REPOSITORY, TINY)
        out, _ = self.run_mxrun('pull', REPOSITORY)
        snapshot = Path(out.strip())
        self.assertEqual(self.run_mxrun('verify-files', REPOSITORY)[0].count('right'), 3)
        for name in 'model.safetensors', 'config.json':
            for by_others in False, True:
                lock = self.cache / FOLDER / 'mxrun.lock'
                if by_others:
                    lock.rename(self.home / 'lock')  # then the name of the blob tells
                blob = (snapshot / name).resolve()
                data = blob.read_bytes()
                blob.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
                out, err = self.run_mxrun('verify-files', REPOSITORY, code=1)
                self.assertRegex(out, rf'(?m)^wrong +{name}: (SHA-256|git.s SHA-1) is ')
                self.assertEqual(out.count('right'), 2)
                self.assertIn('1 of 3 files', err)
                blob.write_bytes(data)
                if by_others:
                    (self.home / 'lock').rename(lock)
        self.run_mxrun('verify-files', REPOSITORY)

    def test_what_comes_with_mxrun(self):
        out, _ = self.run_mxrun('verify-files', 'stories')
        self.assertNotIn('Options:', self.run_mxrun('verify-files', '--help')[0])  # it has none
        self.assertEqual(out.count('right'), len(NEEDED))  # models.txt has the hashes of the checkpoint


if __name__ == '__main__':
    unittest.main()
