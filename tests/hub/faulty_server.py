"""A model hub on this machine that misbehaves on demand, for tests; Python's standard library alone.

It imitates what the Hugging Face hub does: /ORG/NAME/resolve/REVISION/FILE answers with X-Repo-Commit, X-Linked-ETag
and X-Linked-Size and leads to another host, where a signed address has the bytes; small files come from the hub itself;
/api/models/ORG/NAME[/revision/REVISION] lists the files. The hub listens on 127.0.0.1, the other host is 127.0.0.2.

In a test:    with Hub({'weights.bin': data}, faults={'reset': 0.2}, seed=1) as hub: ... hub.url('weights.bin') ...
By hand:      faulty_server.py [--tls] [--direct] [--port N] [--faults reset=0.1,short=0.1] [--seed N] FOLDER
"""
import argparse
import hashlib
import http.server
import json
import os
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

COMMIT = '0123456789abcdef0123456789abcdef01234567'
REPOSITORY = 'test/model'
PIECE, GATED = 1 << 20, 16 << 10

# Faults of whoever sends bytes, and of the hub where it only leads to them.
OF_BYTES = ('reset', 'short', 'drop', '429', '503', '500', 'date', 'range', 'range416', 'whole', 'etag', 'stall',
            'trickle', 'loop', 'corrupt', 'encoded', 'long', '403')
OF_HUB = ('drop', '429', '503', '500', 'date', 'loop', 'etag')


class Content:
    """A file that the hub has: bytes, or the path of a large one."""

    def __init__(self, source, large=True, etag=None, weak=False):
        self.path = Path(source) if isinstance(source, (str, Path)) else None
        self.data = None if self.path else bytes(source)
        self.size = self.path.stat().st_size if self.path else len(self.data)
        self.large = large
        self.weak = weak
        self.sha256 = self.hash('sha256')
        self.etag = etag if etag is not None else self.sha256 if large else self.hash('sha1')
        self.source_etag = 'source-' + self.hash('md5')

    def hash(self, name):
        if self.data is not None:
            return hashlib.new(name, self.data).hexdigest()
        with self.path.open('rb') as file:
            return hashlib.file_digest(file, name).hexdigest()

    def read(self, begin, end):
        if self.data is not None:
            return self.data[begin:end]
        with self.path.open('rb') as file:
            file.seek(begin)
            return file.read(end - begin)


def make_certificate(folder):
    """One that names both hosts and vouches for itself; its path and its key's."""
    cert, key = Path(folder) / 'cert.pem', Path(folder) / 'key.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                    '-days', '2', '-subj', '/CN=faulty hub', '-addext', 'subjectAltName=IP:127.0.0.1,IP:127.0.0.2',
                    '-keyout', key, '-out', cert], check=True, capture_output=True)
    return cert, key


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    tls = None

    def handle_error(self, request, address):
        pass  # clients are killed in these tests

    def finish_request(self, request, address):
        with self.hub.lock:
            self.hub.connections += 1
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            request.settimeout(10)
            with self.tls.wrap_socket(request, server_side=True) as request:
                request.settimeout(None)
                super().finish_request(request, address)
        else:
            super().finish_request(request, address)


class Hub:
    """faults: name -> probability of each request ('corrupt': once); plan: faults of the next requests that send bytes,
    one each, None for a good one; hub_plan: the same for the hub's own redirects. `log` has a dict for every request."""

    def __init__(self, files, faults=None, plan=(), hub_plan=(), seed=0, redirect=True, tls=None, token=None,
                 signatures=0, ranges=True, etags=True, downgrade=False, delay=0.0, rate=0, port=0, retry_after=0):
        self.files = {name: c if isinstance(c, Content) else Content(c) for name, c in files.items()}
        self.faults, self.plan, self.hub_plan = dict(faults or {}), list(plan), list(hub_plan)
        self.random = random.Random(seed)
        self.redirect, self.token, self.signatures = redirect, token, signatures
        self.ranges, self.etags, self.downgrade, self.delay, self.rate = ranges, etags, downgrade, delay, rate
        self.retry_after = retry_after
        self.log, self.count, self.injected = [], 0, {}
        self.gate, self.sent = None, 0  # after so many bytes altogether nothing more is sent, until this changes
        self.connections = self.sending = self.most_sending = 0  # so far; answers with bytes at this time; at most
        self.lock = threading.Lock()
        self.scheme = 'https' if tls else 'http'
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
        self.servers = [Server(('127.0.0.1', port), Handler), Server(('127.0.0.2', 0), Handler)]
        if downgrade:
            self.servers.append(Server(('127.0.0.2', 0), Handler))
        for i, server in enumerate(self.servers):
            server.hub = self
            server.tls = context if i < 2 else None
        self.hosts = [f'127.0.0.{1 if i == 0 else 2}:{s.server_port}' for i, s in enumerate(self.servers)]

    def __enter__(self):
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self):
        return f'{self.scheme}://{self.hosts[0]}'

    def url(self, name, revision='main'):
        return f'{self.endpoint}/{REPOSITORY}/resolve/{revision}/{name}'

    def choose(self, planned, possible):
        """The fault of this request, or None."""
        with self.lock:
            self.count += 1
            if planned:
                fault = planned.pop(0)
            else:
                draw, fault = self.random.random(), None
                for name, chance in self.faults.items():
                    draw -= chance
                    if draw < 0:
                        again = name == 'corrupt' and name in self.injected
                        fault = name if name in possible and not again else None
                        break
            if fault:
                self.injected[fault] = self.injected.get(fault, 0) + 1
            return fault


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        hub = self.server.hub
        self.body, self.is_hub = body, self.server is hub.servers[0]
        seen = {'host': self.headers['Host'], 'method': self.command, 'path': self.path}
        seen |= {name: self.headers[name] for name in ('Authorization', 'Range', 'If-Range', 'Accept-Encoding')}
        with hub.lock:
            hub.log.append(seen)
        if hub.delay:
            time.sleep(hub.delay)
        path, _, query = self.path.partition('?')
        if not self.is_hub:
            return self.answer_blob(path.removeprefix('/blob/'), query)
        if hub.token and self.headers['Authorization'] != f'Bearer {hub.token}':
            return self.refuse(401, 'Invalid username or password.', 'GatedRepo')
        if path.startswith(f'/api/models/{REPOSITORY}'):
            return self.answer_api()
        match = re.fullmatch(rf'/{REPOSITORY}/resolve/[^/]+/(.+)', path)
        content = match and hub.files.get(match[1])
        if not content:
            return self.refuse(404, 'Entry not found', 'EntryNotFound')
        if not hub.redirect or not content.large:
            return self.send_content(content, content.etag)
        self.lead_to(content, match[1])

    # ---- the hub ----
    def answer_api(self):
        files = [{'rfilename': name, 'size': c.size} | ({'lfs': {'sha256': c.sha256, 'size': c.size}} if c.large else {})
                 for name, c in self.server.hub.files.items()]
        text = json.dumps({'id': REPOSITORY, 'sha': COMMIT, 'siblings': files}).encode()
        self.plain(200, [('Content-Type', 'application/json')], text)

    def lead_to(self, content, name):
        hub = self.server.hub
        fault = hub.choose(hub.hub_plan, OF_HUB) if self.body else None
        if fault and self.misbehave(fault):
            return
        etag = 'f' * 64 if fault == 'etag' else content.etag
        host = hub.hosts[2 if hub.downgrade else 1]
        where = f'{"http" if hub.downgrade else hub.scheme}://{host}/blob/{name}?signature={hub.count}'
        self.plain(302, [('Location', self.path if fault == 'loop' else where), ('X-Repo-Commit', COMMIT),
                         ('X-Linked-ETag', f'"{etag}"'), ('X-Linked-Size', str(content.size))])

    # ---- the other host ----
    def answer_blob(self, name, query):
        hub, signature = self.server.hub, re.search(r'signature=(\d+)', query)
        if hub.signatures and (not signature or hub.count > int(signature[1]) + hub.signatures):
            return self.refuse(403, 'Request has expired')
        if name not in hub.files:
            return self.refuse(404, 'no such blob')
        self.send_content(hub.files[name], hub.files[name].source_etag)

    def send_content(self, content, etag):
        hub = self.server.hub
        possible = [f for f in OF_BYTES if f != '403'] if self.is_hub else OF_BYTES
        fault = hub.choose(hub.plan, possible) if self.body else None
        if fault and self.misbehave(fault):
            return
        if fault == 'etag':
            etag = 'changed-' + etag
        quoted = f'{"W/" if content.weak else ""}"{etag}"'
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range'] or '')
        condition = self.headers['If-Range']
        ranged = asked and hub.ranges and fault != 'whole' and (condition is None or condition == quoted)
        begin, end = 0, content.size
        if ranged:
            begin, end = int(asked[1]), min(int(asked[2] or content.size - 1) + 1, content.size)
            if begin >= content.size or fault == 'range416':
                return self.plain(416, [('Content-Range', f'bytes */{content.size}')])
            if fault == 'range':
                begin, end = (begin + 1, end) if begin + 1 < end else (0, 1)
        length = end - begin + (7 if fault == 'long' else 0)
        self.send_response_only(206 if ranged else 200)
        self.send_header('Content-Length', str(length))
        self.send_header('Accept-Ranges', 'bytes')
        if hub.etags:
            self.send_header('ETag', quoted)
        if self.is_hub:
            self.send_header('X-Repo-Commit', COMMIT)
        if fault == 'encoded':
            self.send_header('Content-Encoding', 'gzip')
        if ranged:
            self.send_header('Content-Range', f'bytes {begin}-{end - 1}/{content.size}')
        self.end_headers()
        if self.body:
            self.count_sending(1)
            try:
                self.send_bytes(content, begin, end, fault)
            finally:
                self.count_sending(-1)

    def count_sending(self, change):
        hub = self.server.hub
        with hub.lock:
            hub.sending += change
            hub.most_sending = max(hub.most_sending, hub.sending)

    def send_bytes(self, content, begin, end, fault):
        hub = self.server.hub
        cut = {'reset', 'short', 'stall', 'trickle'}
        stop = hub.random.randrange(begin, end) if fault in cut and end > begin else end
        if fault is None and content.path and not self.server.tls and not hub.rate:
            self.wfile.flush()
            with content.path.open('rb') as file:
                while begin < end:
                    begin += os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)
            return
        wrong = hub.random.randrange(begin, end) if fault == 'corrupt' and end > begin else -1
        while begin < stop:
            while hub.gate is not None and hub.sent >= hub.gate:
                time.sleep(0.01)
            n = min(GATED if hub.gate is not None else PIECE if not hub.rate else max(hub.rate // 50, 1), stop - begin)
            data = content.read(begin, begin + n)
            if fault == 'etag':
                data = bytes(n)  # of the other version
            if begin <= wrong < begin + n:
                data = bytearray(data)
                data[wrong - begin] ^= 1
            with hub.lock:
                hub.sent += n
            self.wfile.write(data)
            begin += n
            if hub.rate:
                time.sleep(n / hub.rate)
        if fault == 'long':
            self.wfile.write(b'surplus')
        if fault in cut:
            self.end_early(content, stop, end, fault)

    def end_early(self, content, begin, end, fault):
        self.wfile.flush()
        self.close_connection = True
        until = time.monotonic() + 5
        while fault == 'trickle' and begin < end and time.monotonic() < until:
            self.wfile.write(content.read(begin, begin + 1))
            begin += 1
            time.sleep(0.05)
        while fault == 'stall' and time.monotonic() < until:
            time.sleep(0.05)
        if fault == 'reset':
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        try:
            self.connection.shutdown(socket.SHUT_RDWR) if fault != 'reset' else self.connection.close()
        except OSError:
            pass

    # ---- either ----
    def misbehave(self, fault):
        """Answers itself where the fault is no answer's content."""
        hub = self.server.hub
        if fault in ('429', '503'):
            self.plain(int(fault), [('Retry-After', str(hub.retry_after))])
        elif fault == 'date':
            self.plain(503, [('Retry-After', formatdate(time.time() + hub.retry_after, usegmt=True))])
        elif fault == '500':
            self.plain(500, [], b'x' * 100)
        elif fault == '403':
            self.refuse(403, 'Request has expired')
        elif fault == 'drop':
            self.close_connection = True
            self.connection.close()
        elif fault == 'loop' and not self.is_hub:
            self.plain(302, [('Location', self.path)])
        else:
            return False
        return True

    def refuse(self, code, message, error=None):
        headers = [('X-Error-Message', message)] + ([('X-Error-Code', error)] if error else [])
        self.plain(code, headers, message.encode())

    def plain(self, code, headers, body=b''):
        self.send_response_only(code)
        for name, value in headers + [('Content-Length', str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.body:
            self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--tls', action='store_true')
    parser.add_argument('--direct', action='store_true', help='no other host')
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--faults', default='')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--token')
    o = parser.parse_args()
    faults = {name: float(chance) for name, chance in (f.split('=') for f in o.faults.split(',') if f)}
    files = {str(p.relative_to(o.folder)): Content(p, large=p.stat().st_size > 1 << 20)
             for p in o.folder.rglob('*') if p.is_file() and p.name not in ('cert.pem', 'key.pem')}
    tls = make_certificate(o.folder) if o.tls else None
    with Hub(files, faults=faults, seed=o.seed, tls=tls, token=o.token, port=o.port,
             redirect=not o.direct) as hub:
        print(f'HF_ENDPOINT={hub.endpoint}' + (f' SSL_CERT_FILE={tls[0]}' if tls else ''))
        for name in files:
            print(hub.url(name))
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == '__main__':
    main()
