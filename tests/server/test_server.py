"""The server over real sockets: what it replies, whom it refuses, cuts off and waits for. Run with the program
try_server; mxrun itself is MXRUN_BINARY."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

TRY = sys.argv.pop(1)
MXRUN = os.environ['MXRUN_BINARY']
STORIES = os.path.join(os.environ['MXRUN_SOURCE'], 'tools', 'stories', 'checkpoint')
SLOW = 4 if os.environ.get('MXRUN_SLOW') else 1  # under a sanitizer


class Server:
    """try_server with options; `sock`: a listening socket that it gets as systemd would give it."""

    def __init__(self, sock=None, **options):
        arguments = [TRY] + [f'{k}={v}' for k, v in options.items()]
        keep = {}
        if sock:
            arguments = ['sh', '-c', 'exec 3<&%d; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"' % sock.fileno(), 'sh'] + arguments
            keep = {'pass_fds': [sock.fileno()]}
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keep)
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError(self.process.communicate()[1])
        self.port = int(self.address.rsplit(':', 1)[1]) if self.address.startswith('http') else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        self.end()

    def end(self, seconds=20):
        out, err = self.process.communicate(timeout=seconds * SLOW)
        if self.process.returncode not in (0, 1):
            raise AssertionError(f'exit code {self.process.returncode}: {err}')
        self.errors = err
        return self.process.returncode

    def connect(self, seconds=20):
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=seconds * SLOW)

    def ask(self, method, path, body=None, headers={}, connection=None):
        """(status, headers, body)"""
        c = connection or self.connect()
        c.request(method, path, json.dumps(body) if isinstance(body, (dict, list)) else body, headers)
        r = c.getresponse()
        text = r.read().decode()
        if not connection:
            c.close()
        return r.status, r.headers, text

    def answer(self, **fields):
        return self.ask('POST', '/test/answer', dict({'prompt': 'Once upon a time'}, **fields))

    def start(self, **fields):
        """A stream that nobody has read yet: its connection and response."""
        c = self.connect()
        c.request('POST', '/test/answer', json.dumps(dict({'prompt': 'Once upon a time', 'stream': True}, **fields)))
        return c, c.getresponse()

    def raw(self, text=b'', receive=None):
        s = socket.socket()
        if receive:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        s.settimeout(20 * SLOW)
        s.connect(('127.0.0.1', self.port))
        s.sendall(text)
        return s

    def engine(self, **fields):
        assert self.ask('POST', '/test/engine', fields)[0] == 200

    def metrics(self):
        text = self.ask('GET', '/metrics')[2]
        return {name: float(value) for name, value in re.findall(r'^([^# ]\S*) (\S+)$', text, re.M)}

    def wait_for(self, condition, seconds=5):
        """Until the metrics are so."""
        end = time.monotonic() + seconds * SLOW
        while True:
            m = self.metrics()
            if condition(m):
                return m
            if time.monotonic() > end:
                raise AssertionError(f'never came: {m}')
            time.sleep(0.005)


def idle(m):
    return m['mxrun_answers_running'] + m['mxrun_answers_waiting'] == 0


def events(text):
    return [e[6:] for e in text.split('\n\n') if e.startswith('data: ')]


def post(body, path='/test/answer', more=''):
    return f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more}\r\n{body}'.encode()


def ended(sock, seconds=5):
    """Seconds until the server closed the connection."""
    start = time.monotonic()
    sock.settimeout(seconds * SLOW)
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - start


def listener(address='127.0.0.1', send_buffer=None):
    s = socket.socket()
    if send_buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    s.bind((address, 0))
    s.listen(64)
    return s


class Requests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(keep_alive=0.1)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_routes(self):
        ask = self.server.ask
        for method, path, status, text in [
                ('GET', '/health', 200, '{"status":"ok"}'), ('GET', '/ready', 200, '{"status":"ready"}'),
                ('GET', '/test/echo/a%20b?q=1%2B1', 200, '{"size":0,"variable":"a b","query":"1+1"}'),
                ('DELETE', '/test/echo/x', 200, '{"size":0,"variable":"x","query":""}'),
                ('GET', '/test/echo/', 404, '{"own":404}'), ('GET', '/test/echo/a/b', 404, '{"own":404}'),
                ('PUT', '/test/echo/a', 405, '{"own":405}'), ('HEAD', '/health', 200, ''),
                ('OPTIONS', '/health', 204, '')]:
            with self.subTest(path=path, method=method):
                got = ask(method, path)
                self.assertEqual((got[0], got[2]), (status, text))
                self.assertRegex(got[1]['x-request-id'], '^[0-9a-f]{32}$')
        self.assertEqual(ask('PATCH', '/test/echo/a')[1]['Allow'], 'GET, HEAD, DELETE, OPTIONS')
        self.assertEqual(ask('OPTIONS', '/test/answer')[1]['Allow'], 'POST, OPTIONS')
        self.assertEqual(json.loads(ask('GET', '/nowhere')[2])['error']['code'], 'not_found')
        self.assertEqual(ask('HEAD', '/health')[1]['content-length'], '15')
        ids = {ask('GET', '/health')[1]['x-request-id'] for _ in range(10)}
        self.assertEqual(len(ids), 10)

    def test_paths(self):
        for path, status, variable in [('/test/path/a/b', 200, 'a/b'), ('/test/path/a%2Fb/', 200, 'a/b/'), ('/test/path/', 404, None),
                                       ('/health%00x', 400, None), ('/test/echo/a%00', 400, None), ('/health?a=%00', 200, None),
                                       ('http://localhost/test/echo/a', 200, 'a'), ('HTTP://localhost/health', 200, None),
                                       ('http://localhost', 404, None), ('http://localhost/nowhere', 404, None)]:
            with self.subTest(path=path):
                got = self.server.ask('GET', path)
                self.assertEqual((got[0], json.loads(got[2]).get('variable') if got[2][0] == '{' else None), (status, variable))

    def test_ambiguous(self):
        """What a proxy before us could read otherwise ends the connection; nothing behind it is a request."""
        for head, code in [('Content-Length: 2\r\nContent-Length: 40\r\n', 'ambiguous_length'),
                           ('Content-Length: 2\r\nTransfer-Encoding: chunked\r\n', 'ambiguous_length'),
                           ('Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n', 'ambiguous_length'),
                           ('Transfer-Encoding: xchunked\r\n', 'ambiguous_length'),
                           ('Content-Length: 2\r\nHost: evil.example\r\n', 'ambiguous_host')]:
            with self.subTest(head=head):
                s = self.server.raw(('POST /test/echo HTTP/1.1\r\nHost: localhost\r\n' + head + '\r\n2\r\n{}\r\n0\r\n\r\n').encode())
                s.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n' * 2)
                text = b''
                try:
                    while part := s.recv(65536):
                        text += part
                except ConnectionError:
                    pass
                s.close()
                self.assertEqual(text.count(b'HTTP/1.1 '), 1, text)
                self.assertIn(b'HTTP/1.1 400', text)
                if b'<html' not in text:  # libmicrohttpd's own words
                    self.assertIn(code.encode(), text)
        same = self.server.raw(post('{}', '/test/echo', 'Content-Length: 2\r\nConnection: close\r\n'))
        self.assertIn(b' 200 ', same.recv(4096))
        same.close()
        self.assertEqual(self.server.ask('POST', '/test/echo', '{}', {'Content-Encoding': 'identity'})[0], 200)
        got = self.server.ask('POST', '/test/echo', '{}', {'Content-Encoding': 'gzip'})
        self.assertEqual((got[0], json.loads(got[2])['error']['code']), (415, 'unsupported_media_type'))

    def test_bodies(self):
        ask = self.server.ask
        for body, headers, status in [('{', {}, 400), ('[]', {}, 400), ('', {}, 400), (b'{"a":"\xff"}', {}, 400),
                                      ('{}', {'content-type': 'multipart/form-data; boundary=x'}, 415)]:
            with self.subTest(body=body):
                got = ask('POST', '/test/answer', body, headers)
                self.assertEqual(got[0], status, got)
                self.assertIn('message', json.loads(got[2])['error'])
        self.assertEqual(ask('POST', '/test/nothing', '{}')[0], 500)
        chunks = ask('POST', '/test/echo', iter([b'ab', b'cde']))
        self.assertIn('"size":5', chunks[2])
        c = self.server.connect()  # one connection for all
        for size in (0, 1, 70000, 3000000):
            self.assertIn(f'"size":{size},', ask('POST', '/test/echo', 'x' * size, connection=c)[2])
            self.assertEqual(len(ask('POST', '/test/big', {'bytes': size}, connection=c)[2]), size)
            self.assertEqual(ask('POST', '/nowhere', 'x' * min(size, 1000000), connection=c)[0], 404)
        c.close()

    def test_pipelined(self):
        s = self.server.raw(post('{"prompt":"Once","max_tokens":3}') + post('', '/test/echo', 'Connection: close\r\n'))
        text = b''
        while part := s.recv(65536):
            text += part
        self.assertEqual(text.count(b'HTTP/1.1 200'), 2)
        s.close()

    def test_malformed(self):
        sockets = []
        for text in [b'\0\r\n\r\n', b'GET\r\n\r\n', b'GET /health\r\n\r\n', b'GET /health HTTP/9.9\r\n\r\n', os.urandom(300),
                     b'\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03', b'GET /%00%ff%zz%2 HTTP/1.1\r\nHost: localhost\r\n\r\n',
                     post('', '/test/echo', 'Content-Length: x\r\n'), post('', '/test/echo', 'Transfer-Encoding: chunked\r\n') + b'zz\r\n',
                     b'POST /test/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',
                     b'GET /health HTTP/1.1\r\nHost: localhost\r\n: x\r\na\r\n b\r\n\r\n', b'GET ' + b'/' * 300000]:
            s = self.server.raw()
            try:
                s.sendall(text)
                s.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass
            sockets.append(s)
        for s in sockets:  # libmicrohttpd itself does not always see the end
            self.assertLess(ended(s), 3 * SLOW)
            s.close()
        self.assertEqual(self.server.ask('GET', '/health')[0], 200)
        old = self.server.raw(b'POST /test/answer HTTP/1.0\r\nContent-Length: 47\r\n\r\n{"prompt":"Once", "max_tokens":3,"stream":true}')
        text = b''
        while part := old.recv(65536):
            text += part
        old.close()
        self.assertIn(b'data: [DONE]\n\n', text)  # neither chunks nor a length: it ends with the connection
        self.assertNotIn(b'ransfer-', text)

    def test_answers(self):
        whole = json.loads(self.server.answer(max_tokens=20, n=3)[2])
        self.assertEqual(len(whole), 3)
        self.assertEqual(len(set(whole)), 3)
        status, headers, text = self.server.answer(max_tokens=20, n=3, stream=True, logprobs=1)
        self.assertEqual((status, headers['content-type'], headers['cache-control']),
                         (200, 'text/event-stream', 'no-cache'))
        told = events(text)
        self.assertEqual(told[-1], '[DONE]')
        self.assertEqual(json.loads(told[0])['begin'], headers['x-request-id'])
        streamed, tokens = [''] * 3, [0] * 3
        for e in map(json.loads, told[1:-1]):
            if 'text' in e:
                i = e['index']
                streamed[i] += e['text']
                self.assertGreater(e['tokens'], 0)  # the token is there before its piece
                self.assertGreaterEqual(e['tokens'], tokens[i])
                tokens[i] = e['tokens']
        self.assertEqual(streamed, whole)
        self.assertEqual(tokens, [20] * 3)
        self.assertEqual(sum('"finish":"length"' in e for e in told), 3)

    def test_refused(self):
        for fields, code in [({'repeat': 3000}, 'context_length_exceeded'), ({'prompt': ''}, 'invalid_value'),
                             ({'n': 5000}, 'invalid_value')]:
            for stream in (False, True):
                status, _, text = self.server.answer(stream=stream, **fields)
                self.assertEqual((status, json.loads(text)['error']['code']), (400, code))

    def test_browsers(self):
        for headers, status in [({'Host': 'evil.example'}, 403), ({'Host': 'localhost:99'}, 200),
                                ({'Host': '[::1]:99'}, 200), ({'Host': '10.1.2.3'}, 200), ({'Host': 'LOCALHOST.'}, 200),
                                ({'Host': 'a.localhost'}, 200), ({'Host': 'evillocalhost'}, 403),
                                ({'Host': '127.0.0.1.evil.example'}, 403), ({'Host': '1.2.3.4.'}, 200),
                                ({'Origin': 'https://evil.example'}, 403), ({'Origin': 'null'}, 403),
                                ({'Host': 'localhost:1', 'Origin': 'http://localhost:1'}, 200),
                                ({'Host': 'localhost:1', 'Origin': 'http://localhost:2'}, 403)]:
            with self.subTest(headers=headers):
                status_, got, _ = self.server.ask('POST', '/test/echo', '{}', headers)
                self.assertEqual(status_, status)
                self.assertNotIn('access-control-allow-origin', got)

    def test_names(self):
        own = socket.gethostname()
        short = own.split('.')[0]
        # Where only this machine can listen --no-auth changes nothing for browsers.
        with Server(no_auth=1, allow_host='box.example') as server:
            for host, status in [('box.example:1', 200), ('BOX.example', 200), (own, 200), (short + '.local', 200),
                                 (short + '.internal:80', 200), ('host.docker.internal', 200), ('evil.internal', 403),
                                 ('evil.local', 403), (short + '.example', 403), ('any.example', 403)]:
                with self.subTest(host=host):
                    status_, _, text = server.ask('POST', '/test/echo', '{}', {'Host': host})
                    self.assertEqual(status_, status)
                    if status == 403:
                        self.assertIn('--allow-host ' + host, text)
        with Server(no_auth=1, host='0.0.0.0') as server:
            anybody = {'Host': 'any.example', 'Origin': 'https://o.example'}
            self.assertEqual(server.ask('POST', '/test/echo', '{}', anybody)[0], 200)

    def test_keep_alive_comments(self):
        with Server(keep_alive=0.05) as server:
            server.engine(step_milliseconds=300 * SLOW)
            text = server.answer(max_tokens=1, stream=True)[2]
            self.assertGreater(text.count(': keep-alive\n\n'), 1)
            self.assertEqual(events(text)[-1], '[DONE]')

    def test_metrics(self):
        before = self.server.metrics()
        self.server.answer(max_tokens=5, n=2)
        m = self.server.wait_for(lambda m: m['mxrun_requests_open'] == 1)  # counted once the reply is gone out
        def grown(name):
            return m[name] - before.get(name, 0)
        self.assertEqual(grown('mxrun_requests_total{method="POST",endpoint="/test/answer",status="200"}'), 1)
        self.assertEqual(grown('mxrun_generated_tokens_total'), 10)
        self.assertEqual(grown('mxrun_answers_total'), 2)
        self.assertEqual(grown('mxrun_time_to_first_token_seconds_count'), 2)
        self.assertEqual(grown('mxrun_time_per_output_token_seconds_count'), 8)
        self.assertEqual(grown('mxrun_time_per_output_token_seconds_bucket{le="+Inf"}'), 8)
        self.assertGreater(m['mxrun_prompt_tokens_total'], 0)
        self.assertEqual(m['mxrun_answers_running'] + m['mxrun_answers_waiting'], 0)
        self.assertEqual(m['mxrun_kv_bytes_used'], m['mxrun_kv_bytes_cached'])
        self.assertGreater(m['process_resident_memory_bytes'], 1e6)
        self.assertGreaterEqual(m['mxrun_connections'], 1)


class Keys(unittest.TestCase):
    def test_keys(self):
        with Server(key='a secret') as server:
            ask = server.ask
            for headers, status in [({}, 401), ({'Authorization': 'Bearer a'}, 401), ({'Authorization': 'a secret'}, 401),
                                    ({'Authorization': 'Bearer a secret '}, 200), ({'authorization': 'bearer  a secret'}, 200),
                                    ({'x-api-key': 'a secret'}, 200), ({'x-api-key': 'a secret more'}, 401),
                                    ({'x-api-key': 'a secret', 'Host': 'any.example', 'Origin': 'https://o'}, 200)]:
                with self.subTest(headers=headers):
                    got = ask('POST', '/test/echo', '{}', headers)
                    self.assertEqual(got[0], status)
                    self.assertEqual(got[1]['WWW-Authenticate'], 'Bearer' if status == 401 else None)
                    if status == 401:
                        self.assertIn('API key', got[2])
            self.assertEqual(ask('GET', '/health')[0], 200)
            self.assertEqual(ask('GET', '/metrics')[0], 401)
            self.assertEqual(ask('POST', '/nowhere')[0], 404)
            # A large body is not waited for.
            s = server.raw(b'POST /test/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n')
            self.assertIn(b' 401 ', s.recv(4096))
            s.close()

    def test_white_space(self):
        with Server(key=' \ta secret\r\n') as server:
            for headers, status in [({'x-api-key': 'a secret'}, 200), ({'x-api-key': ''}, 401), ({'x-api-key': ' '}, 401),
                                    ({'Authorization': 'Bearer '}, 401), ({'Authorization': 'Bearer \t a secret'}, 200)]:
                with self.subTest(headers=headers):
                    self.assertEqual(server.ask('POST', '/test/echo', '{}', headers)[0], status)
        with self.assertRaisesRegex(RuntimeError, 'key is empty'):
            Server(key=' \n')

    def test_elsewhere(self):
        """Where others can come a key is needed, whoever opened the socket."""
        with self.assertRaisesRegex(RuntimeError, 'a key is needed'):
            Server(host='0.0.0.0')
        with listener('0.0.0.0') as sock:
            with self.assertRaisesRegex(RuntimeError, 'a key is needed'):
                Server(sock=sock)
            with Server(sock=sock, key='k') as server:
                self.assertEqual(server.ask('GET', '/metrics')[0], 401)
        with listener() as sock, Server(sock=sock) as server:  # this machine's only, as if it had opened it itself
            self.assertEqual(server.ask('GET', '/metrics', None, {'Host': 'evil.example'})[0], 403)

    def test_cors(self):
        with Server(cors='https://a.example') as server:
            ask = server.ask
            asked = {'Origin': 'https://a.example', 'Access-Control-Request-Headers': 'x-own'}
            status, headers, _ = ask('OPTIONS', '/test/echo', None, asked)
            self.assertEqual((status, headers['access-control-allow-origin'], headers['access-control-allow-headers'],
                              headers['vary']), (204, 'https://a.example', 'x-own', 'origin'))
            self.assertEqual(ask('POST', '/test/echo', '{}', asked)[0], 200)
            status, headers, _ = ask('POST', '/test/echo', '{}', {'Origin': 'https://b.example'})
            self.assertEqual((status, headers['access-control-allow-origin'], headers['vary']), (403, None, 'origin'))
            # Another site's name that points here is still none of ours.
            for more in {}, {'Origin': 'http://evil.example'}, {'Origin': 'https://a.example'}:
                got = ask('POST', '/test/echo', '{}', dict(more, Host='evil.example'))
                self.assertEqual((got[0], json.loads(got[2])['error']['code']), (403, 'forbidden_host'))
        with Server(cors='null', cors2='chrome-extension://abc') as server:
            for origin, status in [('null', 200), ('chrome-extension://abc', 200), ('chrome-extension://abd', 403)]:
                got = server.ask('POST', '/test/echo', '{}', {'Origin': origin})
                self.assertEqual((got[0], got[1]['access-control-allow-origin']), (status, origin if status == 200 else None))
        with Server(cors='*') as server:
            got = server.ask('POST', '/test/echo', '{}', {'Origin': 'https://b.example', 'Host': 'any.example'})
            self.assertEqual((got[0], got[1]['access-control-allow-origin']), (200, '*'))
        with Server(cors='*', key='k') as server:
            status, headers, _ = server.ask('OPTIONS', '/test/echo', None, {'Origin': 'https://b.example'})
            self.assertEqual((status, headers['access-control-allow-origin']), (204, '*'))
            self.assertEqual(server.ask('POST', '/test/echo', '{}', {'Origin': 'https://b.example'})[0], 401)


class Limits(unittest.TestCase):
    def test_sizes(self):
        with Server(body=100000, header=3000) as server:
            self.assertEqual(server.ask('POST', '/test/echo', 'x' * 100000)[0], 200)
            status, _, text = server.ask('POST', '/test/echo', 'x' * 100001)
            self.assertEqual((status, json.loads(text)['error']['code']), (413, 'request_too_large'))
            chunks = server.ask('POST', '/test/echo', iter([b'x' * 60000] * 3))
            self.assertEqual(chunks[0], 413)
            self.assertEqual(server.ask('GET', '/health', None, {'a': 'x' * 2000})[0], 200)
            self.assertEqual(server.ask('GET', '/health', None, {'a': 'x' * 5000})[0], 431)
            s = server.raw(b'GET /health HTTP/1.1\r\nHost: localhost\r\na: ' + b'x' * 200000)  # libmicrohttpd's own words
            try:
                self.assertIn(b' 431 ', s.recv(65536))
            except ConnectionError:
                pass
            s.close()
            self.assertEqual(server.ask('GET', '/health')[0], 200)

    def test_slow_clients(self):
        with Server(read=0.3 * SLOW, idle=0.2 * SLOW, write=20) as server:
            heads = [server.raw(b''), server.raw(b'GET /heal'), server.raw(b'GET /health HTTP/1.1\r\nHost: localhost\r\n'),
                     server.raw(post('x' * 1000, '/test/echo')[:-10])]
            done = server.raw(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
            # One that sends a byte now and then is no better.
            drip = server.raw(b'POST /test/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n')
            start = time.monotonic()
            with self.assertRaises(OSError):
                while time.monotonic() - start < 5 * SLOW:
                    drip.send(b'x')
                    time.sleep(0.02)
            self.assertLess(time.monotonic() - start, 2 * SLOW)
            for s in heads + [done]:
                self.assertLess(ended(s), 2 * SLOW)
                s.close()
            drip.close()
            self.assertEqual(server.ask('GET', '/health')[0], 200)

    def stuck(self, seconds, path, body, **options):
        """A client that asks and does not read. Returns the metrics once it was cut off."""
        with listener(send_buffer=4096) as sock, Server(sock=sock, **options) as server:
            s = server.raw(post(body, path), receive=2048)
            m = server.wait_for(lambda m: m['mxrun_clients_gone_total'] == 1 and idle(m), seconds)
            s.settimeout(20)
            ended(s)
            s.close()
            return m

    def test_slow_reader_of_a_reply(self):
        self.stuck(3, '/test/big', '{"bytes":2000000}', write=0.3)

    def test_slow_reader_of_a_stream(self):
        ask = '{"prompt":"Once","max_tokens":3000,"stream":true}'
        m = self.stuck(5, '/test/answer', ask, write=30, backlog=3000)
        self.assertLess(m['mxrun_generated_tokens_total'], 2500)
        self.stuck(5, '/test/answer', ask, write=0.3 * SLOW, backlog=30000000)

    def test_queue(self):
        with Server(running=1, queue=1) as server:
            server.engine(step_milliseconds=20)
            first, second = server.start(max_tokens=20), server.start(max_tokens=2)
            status, headers, text = server.answer()
            self.assertEqual((status, json.loads(text)['error']['code']), (429, 'queue_full'))
            self.assertGreaterEqual(int(headers['Retry-After']), 1)
            for c, r in (first, second):
                self.assertEqual(events(r.read().decode())[-1], '[DONE]')
                c.close()
            self.assertEqual(server.answer()[0], 200)

    def test_priority(self):
        """Who is in front of the queue: who came first, unless --allow-priority."""
        for allowed in 0, 1:
            with Server(running=1, allow_priority=allowed) as server:
                server.engine(step_milliseconds=10)
                waiting = [server.start(max_tokens=30)]
                server.wait_for(lambda m: m['mxrun_answers_running'] == 1)
                ends = {}
                for i, priority in enumerate((0, 1000)):
                    waiting.append(server.start(max_tokens=5, priority=priority))
                    server.wait_for(lambda m: m['mxrun_answers_waiting'] == i + 1)
                def take(i):
                    waiting[i][1].read()
                    ends[i] = time.monotonic()
                threads = [threading.Thread(target=take, args=(i,)) for i in range(3)]
                for t in threads:
                    t.start()
                for t in threads:
                    t.join()
                for c, _ in waiting:
                    c.close()
                self.assertEqual(ends[2] < ends[1], bool(allowed))

    def test_many_connections(self):
        with Server(connections=40) as server:
            held = [server.raw(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n') for _ in range(60)]
            served = 0
            for s in held:  # those that are served leave, the others come in
                served += b' 200 ' in s.recv(4096)
                s.close()
            self.assertEqual(served, 60)


class Gone(unittest.TestCase):
    def check(self, stream, queued):
        with Server(running=1 if queued else 8) as server:
            server.engine(step_milliseconds=20)
            blocker = server.start(max_tokens=400) if queued else None
            body = json.dumps({'prompt': 'Once', 'max_tokens': 1000, 'stream': stream})
            s = server.raw(post(body))
            wanted = 2 if queued else 1
            server.wait_for(lambda m: m['mxrun_answers_running'] + m['mxrun_answers_waiting'] == wanted)
            time.sleep(0.05)
            s.close()
            start = time.monotonic()
            server.wait_for(lambda m: m['mxrun_answers_running'] + m['mxrun_answers_waiting'] == wanted - 1)
            self.assertLess(time.monotonic() - start, 0.5 * SLOW)  # a step takes 0.02 s, the whole answer 20
            if blocker:
                blocker[0].close()
                blocker[1].close()
            m = server.wait_for(idle)
            self.assertLess(m['mxrun_generated_tokens_total'], 200)
            self.assertEqual(m['mxrun_kv_bytes_used'], m['mxrun_kv_bytes_cached'])
            self.assertEqual(m['mxrun_requests_total{method="POST",endpoint="/test/answer",status="499"}'], wanted)

    def test_stream(self):
        self.check(True, False)

    def test_whole(self):
        self.check(False, False)

    def test_queued(self):
        self.check(False, True)

    def test_reset(self):
        with Server() as server:
            server.engine(step_milliseconds=20)
            s = server.raw(post('{"prompt":"Once","max_tokens":1000,"stream":true}'))
            s.recv(10)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            s.close()
            server.wait_for(idle)


class End(unittest.TestCase):
    def test_idle(self):
        with Server() as server:
            c = server.connect()
            server.ask('GET', '/health', connection=c)
            start = time.monotonic()
            server.process.terminate()
            self.assertEqual(server.end(), 0)
            self.assertLess(time.monotonic() - start, 2 * SLOW)
            c.close()

    def test_graceful(self):
        with Server() as server:
            server.engine(step_milliseconds=20)
            other = server.connect()
            server.ask('GET', '/ready', connection=other)
            c, r = server.start(max_tokens=25)
            server.process.terminate()
            while not server.process.stderr.readline().startswith('mxrun: stopping'):
                pass
            time.sleep(0.02)
            got = server.ask('GET', '/ready', connection=other)  # on a connection that is there already
            self.assertEqual((got[0], got[1]['Connection']), (503, 'close'))
            with self.assertRaises(ConnectionRefusedError):
                for _ in range(40):  # until the listener is closed, long before the stream ends
                    server.raw().close()
                    time.sleep(0.005)
            self.assertEqual(events(r.read().decode())[-1], '[DONE]')
            self.assertEqual(server.end(), 0)
            c.close()

    def cut(self, signals, **options):
        with Server(**options) as server:
            server.engine(step_milliseconds=20)
            c, r = server.start(max_tokens=2000)
            whole = server.raw(post('{"prompt":"Once","max_tokens":2000}'))
            server.wait_for(lambda m: m['mxrun_answers_running'] == 2)
            start = time.monotonic()
            for _ in range(signals):
                server.process.terminate()
                time.sleep(0.15)
            text = r.read().decode()
            self.assertIn('event: error', text)
            self.assertIn('the server is stopping', text)
            self.assertIn(b' 503 ', whole.recv(4096))
            self.assertEqual(server.end(), 0)
            self.assertLess(time.monotonic() - start, 3 * SLOW)
            c.close()
            whole.close()

    def test_deadline(self):
        self.cut(1, stop=0.2)

    def test_second_signal(self):
        self.cut(2, stop=30)

    def test_engine_fails(self):
        with Server() as server:
            server.engine(step_milliseconds=50)
            c, r = server.start(max_tokens=2000)
            whole = server.raw(post('{"prompt":"Once","max_tokens":2000}'))
            server.wait_for(lambda m: m['mxrun_answers_running'] == 2)
            server.engine(broken=1)
            self.assertIn('the engine is broken', r.read().decode())
            self.assertIn(b' 500 ', whole.recv(4096))
            self.assertEqual(server.end(), 1)
            self.assertIn('the engine is broken', server.errors)
            c.close()
            whole.close()


class Places(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def ask_unix(self, path):
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.sendall(post('{"prompt":"Once","max_tokens":3,"stream":true}', more='Connection: close\r\n')
                  .replace(b'localhost', b'any.example'))  # no browser comes this way
        text = b''
        while part := s.recv(4096):
            text += part
        s.close()
        return text

    def test_unix(self):
        path = self.path('socket')
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(path)
        stale.close()
        with Server(unix=path) as server:
            self.assertEqual(server.address, 'unix:' + path)
            self.assertIn(b'[DONE]', self.ask_unix(path))
            with self.assertRaisesRegex(RuntimeError, 'the socket of another program'):
                Server(unix=path)
            self.assertIn(b'[DONE]', self.ask_unix(path))
        self.assertFalse(os.path.exists(path))
        open(path, 'w').close()
        with self.assertRaisesRegex(RuntimeError, 'is no socket'):
            Server(unix=path)
        with self.assertRaisesRegex(RuntimeError, '1 to 107 bytes'):
            Server(unix='x' * 200)

    def test_ipv6(self):
        try:
            server = Server(host='::1')
        except RuntimeError as e:
            self.skipTest(str(e))
        with server:
            self.assertRegex(server.address, r'^http://\[::1\]:\d+$')
            c = http.client.HTTPConnection('::1', server.port)
            self.assertEqual(server.ask('GET', '/health', connection=c)[0], 200)
            c.close()

    def test_name(self):
        """All addresses of a name, on one port."""
        with Server(host='two.test') as server:
            self.assertEqual(server.address, f'http://two.test:{server.port}')
            for address in '127.0.0.1', '127.0.0.2':
                c = http.client.HTTPConnection(address, server.port, timeout=20 * SLOW)
                self.assertEqual(server.ask('GET', '/metrics', None, {'Host': 'two.test'}, connection=c)[0], 200)
                c.close()
            with self.assertRaisesRegex(RuntimeError, 'is taken by another program'):
                Server(host='127.0.0.2', port=server.port)

    def certificate(self, name):
        if not shutil.which('openssl'):
            self.skipTest('there is no openssl')
        pair = self.path(name + '.crt'), self.path(name + '.key')
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                        '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1',
                        '-out', pair[0], '-keyout', pair[1]], check=True, capture_output=True)
        return pair

    def test_tls(self):
        certificate, key = self.certificate('a')
        _, other = self.certificate('b')
        with Server(certificate=certificate, tls_key=key) as server:
            self.assertTrue(server.address.startswith('https://'))
            context = ssl.create_default_context(cafile=certificate)
            def connect():
                return http.client.HTTPSConnection('127.0.0.1', server.port, context=context, timeout=20 * SLOW)
            c = connect()
            status, _, text = server.ask('POST', '/test/answer', {'prompt': 'Once', 'max_tokens': 5, 'stream': True},
                                         connection=c)
            self.assertEqual((status, events(text)[-1]), (200, '[DONE]'))
            self.assertEqual(len(server.ask('POST', '/test/big', {'bytes': 3000000}, connection=c)[2]), 3000000)
            c.close()
            server.connect = connect
            server.engine(step_milliseconds=20)
            gone, r = server.start(max_tokens=1000)
            r.read(5)
            r.close()
            gone.close()
            server.wait_for(idle)
        for pair, words in [((certificate, other), 'do not belong together'), ((certificate, certificate), 'no private key'),
                            ((key, key), 'no certificate'), ((certificate, self.path('none')), 'No such file')]:
            with self.assertRaisesRegex(RuntimeError, words):
                Server(certificate=pair[0], tls_key=pair[1])


class Command(unittest.TestCase):
    """mxrun serve itself."""

    def refused(self, *options, environment={}):
        r = subprocess.run([MXRUN, 'serve', '-m', STORIES] + list(options), capture_output=True, text=True, timeout=60,
                           env=dict(os.environ, **environment))
        return r.returncode, r.stderr

    def test_usage(self):
        for options, words in [(['--host', '0.0.0.0'], 'a key is needed'), (['--tls-cert', 'x'], 'go together'),
                               (['--unix', 'x', '--port', '1'], 'without --host'), (['--cors', 'a.example'], 'an origin'),
                               (['--no-auth', '--api-key', 'k'], 'contradicts'), (['--port', '70000'], '--port'),
                               (['--max-body', 'x'], '--max-body'), (['--api-key', ''], 'empty'), (['--api-key', '\t \r\n'], 'empty'),
                               (['--cors', 'https://a.example/'], 'no path'), (['--allow-host', 'a:80'], 'without port'),
                               (['x'], 'unexpected')]:
            with self.subTest(options=options):
                code, err = self.refused(*options)
                self.assertEqual(code, 2, err)
                self.assertIn(words, err)
                self.assertEqual(err.count('\n'), 1)
        code, err = self.refused('--no-auth', environment={'MXRUN_API_KEY': 'k'})
        self.assertEqual(code, 2)
        code, err = self.refused(environment={'MXRUN_API_KEY': ' '})
        self.assertEqual(code, 2)
        self.assertIn('MXRUN_API_KEY: the key is empty', err)
        with listener('0.0.0.0') as s:
            shell = 'exec 3<&%d; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"' % s.fileno()
            r = subprocess.run(['sh', '-c', shell, 'sh', MXRUN, 'serve', '-m', STORIES], pass_fds=[s.fileno()],
                               capture_output=True, text=True, timeout=60)
            self.assertEqual(r.returncode, 2)
            self.assertIn('the socket of systemd: others can reach it, so that a key is needed', r.stderr)
        with listener() as s:
            code, err = self.refused('--kv-memory', '64M', '--port', str(s.getsockname()[1]))
            self.assertEqual(code, 1)
            self.assertIn('is taken by another program', err)

    def test_systemd(self):
        with tempfile.TemporaryDirectory() as folder, listener() as sock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            keys = os.path.join(folder, 'keys')
            with open(keys, 'w') as f:
                f.write('# ours\n\n  one \r\ntwo\n')
            os.chmod(keys, 0o604)
            told.bind(os.path.join(folder, 'notify'))
            told.settimeout(60)
            shell = 'exec 3<&%d; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"' % sock.fileno()
            p = subprocess.Popen(['sh', '-c', shell, 'sh', MXRUN, 'serve', '-m', STORIES, '--kv-memory', '64M',
                                  '--api-key-file', keys, '--model-name', 'o"u\\rs/x'], pass_fds=[sock.fileno()],
                                 stderr=subprocess.PIPE, text=True,
                                 env=dict(os.environ, NOTIFY_SOCKET=os.path.join(folder, 'notify')))
            self.addCleanup(p.kill)  # where it fails below
            self.assertEqual(told.recv(100), b'READY=1')
            c = http.client.HTTPConnection('127.0.0.1', sock.getsockname()[1], timeout=20)
            for key, status in [('one', 200), ('two', 200), ('# ours', 401), ('', 401)]:
                c.request('GET', '/metrics', headers={'x-api-key': key})
                r = c.getresponse()
                self.assertEqual(r.status, status)
                text = r.read().decode()
                if status == 200:
                    self.assertIn('model="o\\"u\\\\rs/x"}', text)
            for name in 'o%22u%5Crs/x', 'o%22u%5Crs%2Fx':
                c.request('GET', '/v1/models/' + name, headers={'x-api-key': 'one'})
                self.assertEqual(json.loads(c.getresponse().read())['id'], 'o"u\\rs/x')
            # It is told when stopping begins, not when it is done.
            c.request('POST', '/v1/completions', '{"prompt":"Once","max_tokens":2000,"min_tokens":2000,"stream":true}',
                      {'x-api-key': 'one'})
            r = c.getresponse()
            p.send_signal(signal.SIGINT)
            self.assertEqual(told.recv(100), b'STOPPING=1')
            self.assertIsNone(p.poll())
            p.send_signal(signal.SIGINT)
            r.read()
            c.close()
            err = p.communicate(timeout=60)[1]
            self.assertEqual(p.returncode, 0, err)
            self.assertIn('everybody on this machine may use the keys (mode 604)', err)
            self.assertIn('mxrun serve: o"u\\rs/x at http://127.0.0.1:%d (' % sock.getsockname()[1], err)


class Large(unittest.TestCase):
    """Bodies that other threads than those of HTTP read."""

    BIG = '"ignored": "%s"' % ('x' * 100000)

    def ask_big(self, server, **fields):
        return server.ask('POST', '/test/answer', json.dumps(dict({'prompt': 'Once', 'ignored': 'x' * 100000}, **fields)))

    def test_answers(self):
        with Server() as server:
            small = server.answer()
            for stream in False, True:
                status, _, text = self.ask_big(server, prompt='Once upon a time', stream=stream)
                self.assertEqual(status, 200)
                self.assertEqual(text, small[2]) if not stream else self.assertEqual(events(text)[-1], '[DONE]')
            c = server.connect()  # a connection goes on behind it
            for i in range(3):
                self.assertEqual(json.loads(server.ask('POST', '/test/echo', 'x' * 200000, connection=c)[2])['size'], 200000)
            c.close()
            status, _, text = server.ask('POST', '/test/nothing', 'x' * 100000)
            self.assertEqual((status, json.loads(text)['error']['code']), (500, 'server_error'))
            status, _, text = server.ask('POST', '/test/answer', '[' * 100000)
            self.assertEqual((status, json.loads(text)['error']['code']), (400, 'invalid_json'))

    def test_many_values(self):
        with Server() as server:
            def most_memory():
                with open(f'/proc/{server.process.pid}/status') as f:
                    return int(re.search(r'VmHWM:\s+(\d+)', f.read())[1])  # kB
            before = most_memory()
            status, _, text = server.ask('POST', '/test/answer', '{"a":[' + '1,' * 2000000 + '1]}')
            self.assertEqual((status, json.loads(text)['error']['code']), (400, 'invalid_json'))
            self.assertIn('too many values', text)
            if SLOW == 1:
                self.assertLess(most_memory() - before, 100 << 10)  # without the bound 200 MB

    def test_others_do_not_wait(self):
        """While as many large bodies are handled as can be at once, those of all other clients go on."""
        with Server(queue=2) as server:
            slow = post('{"wait":20,%s}' % self.BIG, '/test/wait')
            held = [server.raw(slow) for _ in range(2)]
            while json.loads(server.ask('POST', '/test/engine', '{}')[2])['held'] < 2:
                time.sleep(0.005)
            held += [server.raw(slow) for _ in range(2)]  # these two wait
            time.sleep(0.3 * SLOW)
            status, headers, text = self.ask_big(server)
            self.assertEqual((status, json.loads(text)['error']['code']), (429, 'queue_full'))
            self.assertGreaterEqual(int(headers['Retry-After']), 1)
            for _ in range(8):
                self.assertEqual(server.ask('GET', '/health')[0], 200)
            self.assertEqual(server.answer()[0], 200)
            held[0].close()  # while it is handled: nothing is freed under its feet
            held[2].close()
            server.engine(release=1)
            for s in held[1], held[3]:
                self.assertIn(b' 200 ', s.recv(4096))
                s.close()
            self.assertEqual(self.ask_big(server)[0], 200)

    def test_end(self):
        with Server() as server:
            held = [server.raw(post('{"wait":1.5,%s}' % self.BIG, '/test/wait')) for _ in range(5)]
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)  # two that come at once may be one
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.end(), 0)
            for s in held:
                s.close()

    def test_the_servers_own_delay(self):
        """A client that reads is not cut off for a thread of HTTP's that was busy with something else."""
        with Server(write=0.2 * SLOW) as server:
            streams = [server.start(max_tokens=4) for _ in range(8)]
            waits = [server.raw(post('{"wait":%s}' % (0.6 * SLOW), '/test/wait')) for _ in range(4)]
            for c, r in streams:
                self.assertEqual(events(r.read().decode())[-1], '[DONE]')
                c.close()
            for s in waits:
                s.close()


if __name__ == '__main__':
    unittest.main(verbosity=2 if os.environ.get('MXRUN_VERBOSE') else 1)
