"""A server of stories for a test, and what it says, with nothing but http.client."""
import http.client
import json
import os
import signal
import subprocess

BINARY = os.environ['MXRUN_BINARY']
for name in [n for n in os.environ if n.lower().endswith('_proxy')]: # packages would ask it
    del os.environ[name]


class Server:
    def __init__(self, *arguments):
        self.process = subprocess.Popen([BINARY, 'serve', '-m', 'stories', '--port', '0', '--threads', '2', *arguments],
                                        stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if ' at http://127.0.0.1:' in line:
                self.port = int(line.split(' at http://127.0.0.1:')[1].split()[0])
                self.url = f'http://127.0.0.1:{self.port}'
                return
        raise AssertionError('the server does not start: ' + ''.join(self.log))

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.log += self.process.communicate(timeout=60)[1].splitlines()
        assert self.process.returncode == 0, (self.process.returncode, self.log)

    def ask(self, method, path, body=None, headers={}):
        """Status, headers, body."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        connection.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body),
                           {**headers, **({'Content-Type': 'application/json'} if body is not None else {})})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        return reply.status, reply.headers, data

    def get(self, path):
        status, _, data = self.ask('GET', path)
        assert status == 200, data
        return json.loads(data)

    def post(self, path, body):
        status, _, data = self.ask('POST', path, body)
        assert status == 200, data
        return json.loads(data)

    def refused(self, path, body):
        status, headers, data = self.ask('POST', path, body)
        assert status >= 400, data
        return status, headers, json.loads(data)

    def events(self, path, body):
        """The events of a stream, each of which names its type twice."""
        status, headers, data = self.ask('POST', path, {**body, 'stream': True})
        assert status == 200 and headers['content-type'].startswith('text/event-stream'), data
        events = data.decode().split('\n\n')
        assert events.pop() == '', data
        told = []
        for event in events:
            if event.startswith(':'):
                continue
            name, value = event.split('\n')
            told.append(json.loads(value.removeprefix('data: ')))
            assert name == 'event: ' + told[-1]['type'], event
        return told
