"""A model hub in small, on loopback: repositories in memory, with the headers that the Hugging Face hub sends."""
import hashlib
import http.server
import json
import threading
import time
import urllib.parse

LARGE = 4096  # files from this size on lie in "large file storage": named by SHA-256, sent by another host


def git_sha1(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class Request:
    def __init__(self, handler):
        self.method, self.path = handler.command, urllib.parse.unquote(handler.path)
        self.host, self.token = handler.headers['Host'], handler.headers.get('Authorization')
        self.sent = 0


class Hub:
    def __init__(self):
        self.commits = {}        # (repository, commit): {path: bytes}
        self.revisions = {}      # (repository, revision): commit
        self.requests = []
        self.rate = 0            # bytes a second; 0: as fast as it goes
        self.spoil = lambda path, data: data  # what is sent instead
        self.other_host = False  # large files are sent by 127.0.0.2
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

        self.server = http.server.ThreadingHTTPServer(('0.0.0.0', 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that were killed
        self.port = self.server.server_address[1]
        self.address = f'http://127.0.0.1:{self.port}'
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def publish(self, repository, files, revision='main'):
        """Returns the commit, which depends on the content."""
        parts = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        commit = hashlib.sha1(repr(parts).encode()).hexdigest()
        self.commits[repository, commit] = dict(files)
        self.revisions[repository, revision] = self.revisions[repository, commit] = commit
        return commit

    def files_asked(self, method='GET'):
        """Paths that were asked for, without the API's."""
        return [r.path.split('/', 5)[-1] for r in self.requests if r.method == method and '/resolve/' in r.path]

    # ---- answers ---------------------------------------------------------------------------------------------------
    def answer(self, h):
        request = Request(h)
        self.requests.append(request)
        part = request.path.strip('/').split('/')
        try:
            if part[:2] == ['api', 'models']:
                repository, revision = '/'.join(part[2:4]), '/'.join(part[5:])
                commit = self.revisions[repository, revision]
                names = [{'rfilename': p} for p in self.commits[repository, commit]]
                self.send(h, request, 200, json.dumps({'id': repository, 'sha': commit, 'siblings': names}).encode(), {})
            else:
                self.answer_file(h, request, part)
        except KeyError:
            self.send(h, request, 404, b'', {'X-Error-Message': 'not found'})

    def answer_file(self, h, request, part):
        storage = part[0] == 'storage'
        repository, path = '/'.join(part[:2] if not storage else part[1:3]), '/'.join(part[4:])
        commit = self.revisions[repository, part[3]]
        data = self.commits[repository, commit][path]
        large = len(data) >= LARGE
        etag = hashlib.sha256(data).hexdigest() if large else git_sha1(data)
        headers = {'ETag': f'"{etag}"', 'X-Repo-Commit': commit, 'Accept-Ranges': 'bytes'}
        if large and not storage:
            headers.update({'X-Linked-ETag': f'"{etag}"', 'X-Linked-Size': str(len(data))})
        if large and self.other_host and not storage:
            place = urllib.parse.quote(f'storage/{repository}/{commit}/{path}')
            headers['Location'] = f'http://127.0.0.2:{self.port}/{place}'
            headers['ETag'] = '"of the redirect"'
            self.send(h, request, 302, b'', headers)
            return
        data = self.spoil(path, data)
        asked = h.headers.get('Range')
        if asked and h.command == 'GET':
            first, last = asked.removeprefix('bytes=').split('-')
            first, last = int(first), min(int(last or len(data)), len(data) - 1)
            headers['Content-Range'] = f'bytes {first}-{last}/{len(data)}'
            self.send(h, request, 206, data[first:last + 1], headers)
        else:
            self.send(h, request, 200, data, headers)

    def send(self, h, request, code, body, headers):
        try:
            h.send_response(code)
            for name, value in headers.items():
                h.send_header(name, value)
            h.send_header('Content-Length', str(len(body)))
            h.end_headers()
            if h.command == 'HEAD':
                return
            step = max(1, self.rate // 50) if self.rate else len(body) or 1
            for i in range(0, len(body), step):
                h.wfile.write(body[i:i + step])
                request.sent += len(body[i:i + step])
                if self.rate:
                    time.sleep(0.02)
        except OSError:
            h.close_connection = True
