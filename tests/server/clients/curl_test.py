"""curl against a server of stories: streams as they come, and a unix socket."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from serving import SKIPPED, Server

if not shutil.which('curl'):
    print('skipped: no curl')
    sys.exit(SKIPPED)

BODY = json.dumps({'messages': [{'role': 'user', 'content': 'Tell me a story.'}], 'stream': True, 'max_tokens': 40})


def curl(*arguments):
    return subprocess.run(['curl', '-sS', '--noproxy', '*', '-m', '60', *arguments], check=True, capture_output=True).stdout


class Curl(unittest.TestCase):
    def check_stream(self, text):
        *events, done, rest = text.decode().split('\n\n')
        self.assertEqual((done, rest), ('data: [DONE]', ''))
        self.assertGreater(len(events), 3)
        for event in events:
            self.assertTrue(event.startswith('data: '), event)
            self.assertEqual(json.loads(event[6:])['object'], 'chat.completion.chunk')

    def test_stream(self):
        with Server() as server:
            self.check_stream(curl('-N', server.url + '/v1/chat/completions', '-H', 'Content-Type: application/json',
                                   '-d', BODY))
            # as people type it: curl says that it is a form
            self.check_stream(curl('-N', server.url + '/v1/chat/completions', '-d', BODY))
            lines = curl('-N', server.url + '/api/chat', '-d',
                         json.dumps({'model': 'stories', 'messages': [{'role': 'user', 'content': 'Tell me a story.'}],
                                     'options': {'num_predict': 20}})).decode().splitlines()
            self.assertIs(json.loads(lines[-1])['done'], True)
            self.assertIn(b'"openapi"', curl(server.url + '/openapi.json'))
            self.assertEqual(curl('-o', os.devnull, '-w', '%{http_code}', server.url + '/v1/nothing'), b'404')

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as folder:
            path = folder + '/socket'
            with Server(unix=path):
                self.check_stream(curl('-N', '--unix-socket', path, 'http://localhost/v1/chat/completions', '-d', BODY))
            self.assertFalse(os.path.exists(path))


if __name__ == '__main__':
    unittest.main()
