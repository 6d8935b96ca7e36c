"""A server of the stories model for tests: `with Server() as server: server.post(path, body)`."""
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

BINARY = os.environ['MXRUN_BINARY']
SKIPPED = 77  # meson's word for it
WEATHER = {'type': 'object', 'properties': {'location': {'type': 'string', 'description': 'City'}},
           'required': ['location']}
for name in [n for n in os.environ if n.lower().endswith('_proxy')]:
    del os.environ[name]


def skip_without(*modules):
    """Ends the test as skipped where a package is not there."""
    for module in modules:
        try:
            __import__(module)
        except ImportError as e:
            print(f'skipped: {e}')
            sys.exit(SKIPPED)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lines(self):
        """Of a stream of JSON lines."""
        return [json.loads(line) for line in self.body.decode().split('\n') if line.strip()]


class Server:
    def __init__(self, *arguments, model='stories', unix=None):
        self.port = None if unix else free_port()
        self.unix = unix
        where = ['--unix', unix] if unix else ['--port', str(self.port)]
        self.command = [BINARY, 'serve', '-m', model, *where, *arguments]
        self.url = f'http://127.0.0.1:{self.port}'

    def __enter__(self):
        self.process = subprocess.Popen(self.command)
        until = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f'the server ended with {self.process.returncode}')
            try:
                if self.get('/ready').status == 200:
                    return self
            except OSError:
                assert time.monotonic() < until, 'the server does not answer'
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert code == 0, f'the server ended with {code}'

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection('127.0.0.1', self.port or 80, timeout=60)
        if self.unix:
            connection.sock = socket.socket(socket.AF_UNIX)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if body is None else {'Content-Type': 'application/json'}
        try:
            if self.unix:
                connection.sock.connect(self.unix)
            connection.request(method, path, data, {**kind, **(headers or {})})
            r = connection.getresponse()
            return Reply(r.status, r.headers, r.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request('GET', path, headers=headers)

    def post(self, path, body, **headers):
        return self.request('POST', path, body, headers)
