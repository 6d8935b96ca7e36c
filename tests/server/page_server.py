"""A server for tests of the page: the page's files as they are in the source, with the headers of the real one, and a
model that says what a test wants, as slowly as it wants."""
import http.server
import json
import os
import pathlib
import threading
import time

PAGE = pathlib.Path(os.environ['MXRUN_SOURCE']) / 'src/server/page'
TYPES = {'.html': 'text/html; charset=utf-8', '.css': 'text/css; charset=utf-8', '.js': 'text/javascript; charset=utf-8'}


class FakeServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, headers):
        super().__init__(('127.0.0.1', 0), Handler)
        self.page_headers = headers  # of the real server's page
        self.url = f'http://127.0.0.1:{self.server_port}/'
        self.asked = []              # bodies of requests for an answer
        self.authorizations = []
        self.gone = threading.Event()    # a client went away while it was answered
        self.refusal = None              # (status, headers, error) instead of the next answers
        self.parts = {}                  # last message of the user → [(kind, text, seconds before it)]
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.0'  # a connection for each request: none is left when the server ends

    def log_message(self, *_):
        pass

    def reply(self, status, body, content_type='application/json', headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in [('Content-Type', content_type), ('Content-Length', str(len(data))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.split('?')[0]
        if path == '/v1/models':
            self.reply(200, {'object': 'list', 'data': [{'id': 'fake-20b', 'object': 'model'}]})
        elif path == '/metrics':
            self.reply(200, b'mxrun_generated_tokens_total 5\nprocess_resident_memory_bytes 13400000000\n'
                            b'mxrun_kv_bytes 4e9\nmxrun_kv_bytes_used 1e9\n', 'text/plain')
        else:
            file = PAGE / ('index.html' if path == '/' else path.removeprefix('/page/'))
            if file.parent != PAGE or not file.is_file():
                return self.reply(404, {'error': {'message': 'not here'}})
            self.reply(200, file.read_bytes(), TYPES[file.suffix], self.server.page_headers)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.asked.append(body)
        self.server.authorizations.append(self.headers['Authorization'])
        if self.server.refusal:
            status, headers, error = self.server.refusal
            return self.reply(status, {'error': error}, headers=headers)
        said = self.server.parts.get(body['messages'][-1]['content'].strip(), [('content', 'Yes.', 0)])
        self.send_response(200)
        self.send_header('Content-Type', 'text/event-stream')
        self.end_headers()
        try:
            for kind, text, seconds in said:
                time.sleep(seconds)
                if kind == 'cut':
                    return
                self.event({'choices': [{'index': 0, 'delta': {kind: text}, 'finish_reason': None}]})
            self.event({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})
            self.event({'choices': [], 'usage': {'prompt_tokens': 9, 'completion_tokens': len(said)}})
            self.wfile.write(b'data: [DONE]\n\n')
        except OSError:
            self.server.gone.set()

    def event(self, data):
        self.wfile.write(b'data: ' + json.dumps(data).encode() + b'\n\n')
