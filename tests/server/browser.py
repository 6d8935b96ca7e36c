"""Chromium without a window, driven through its --remote-debugging-pipe: JSON messages that end in NUL, file
descriptors 3 (to it) and 4 (from it). Nothing but the standard library."""
import base64
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import signal
import tempfile
import time

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
OPTIONS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
           '--no-default-browser-check', '--disable-background-networking', '--disable-component-update',
           '--disable-sync', '--disable-extensions', '--mute-audio', '--remote-debugging-pipe', '--hide-scrollbars',
           '--no-proxy-server', '--disable-features=Translate,MediaRouter,OptimizationHints']
KEYS = {'Enter': (13, '\r'), 'Tab': (9, ''), 'Escape': (27, ''), 'Space': (32, ' '), 'ArrowDown': (40, ''),
        'End': (35, '')}
SHIFT, CONTROL = 8, 2


class Browser:
    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='mxrun-page-'))
        (own_in, its_out), (its_in, own_out) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (its_in, its_out)]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2),
                   (os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
        environment = {**os.environ, 'HOME': str(self.folder)}
        self.pid = os.posix_spawn(PROGRAM, [PROGRAM, *OPTIONS, f'--user-data-dir={self.folder}/profile', 'about:blank'],
                                  environment, file_actions=actions, setsid=True)
        for fd in (its_in, its_out, null, *high):
            os.close(fd)
        self.input, self.output = own_in, own_out
        self.rest, self.next_id, self.replies, self.pages = b'', 1, {}, {}
        self.version = self.command('Browser.getVersion', seconds=60)['product']
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.command('Browser.close', seconds=5)
        until = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind
        os.close(self.input)
        os.close(self.output)
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, method, parameters=None, session=None):
        message = {'id': self.next_id, 'method': method, 'params': parameters or {}}
        if session:
            message['sessionId'] = session
        self.next_id += 1
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self.output, data):]
        return message['id']

    def command(self, method, parameters=None, session=None, seconds=30):
        wanted = self.send(method, parameters, session)
        until = time.monotonic() + seconds
        while wanted not in self.replies:
            self.pump(until - time.monotonic(), method)
        reply = self.replies.pop(wanted)
        if 'error' in reply:
            raise AssertionError(f'{method}: {reply["error"]}')
        return reply['result']

    def pump(self, seconds, what):
        if seconds <= 0 or not select.select([self.input], [], [], seconds)[0]:
            raise AssertionError(f'Chromium does not answer: {what}')
        data = os.read(self.input, 1 << 16)
        if not data:
            raise AssertionError('Chromium ended')
        *messages, self.rest = (self.rest + data).split(b'\0')
        for message in map(json.loads, messages):
            if 'id' in message:
                self.replies[message['id']] = message
            elif message.get('sessionId') in self.pages:
                self.pages[message['sessionId']].event(message['method'], message['params'])

    @contextlib.contextmanager
    def context(self):
        """A profile of its own: storage that no other one sees."""
        name = self.command('Target.createBrowserContext')['browserContextId']
        yield name
        self.command('Target.disposeBrowserContext', {'browserContextId': name})

    def page(self, context, url, width=1100, height=760, touch=False):
        target = self.command('Target.createTarget', {'url': 'about:blank', 'browserContextId': context})['targetId']
        session = self.command('Target.attachToTarget', {'targetId': target, 'flatten': True})['sessionId']
        page = self.pages[session] = Page(self, target, session)
        for domain in ('Page', 'Runtime', 'Network', 'Log', 'DOM'):
            page.command(f'{domain}.enable')
        page.size(width, height, touch)
        page.open(url)
        return page


class Page:
    def __init__(self, browser, target, session):
        self.browser, self.target, self.session = browser, target, session
        self.errors, self.requests, self.loaded, self.dialogs = [], [], 0, []

    def command(self, method, parameters=None, seconds=30):
        return self.browser.command(method, parameters, self.session, seconds)

    def event(self, method, p):
        if method == 'Page.loadEventFired':
            self.loaded += 1
        elif method == 'Network.requestWillBeSent':
            self.requests.append(p['request']['url'])
        elif method == 'Runtime.exceptionThrown':
            self.errors.append(p['exceptionDetails'].get('exception', p['exceptionDetails']))
        elif method == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'warning', 'assert'):
            self.errors.append(p['args'])
        elif method == 'Log.entryAdded' and p['entry']['level'] == 'error' and p['entry']['source'] != 'network':
            self.errors.append(p['entry']['text'])
        elif method == 'Page.javascriptDialogOpening':
            self.dialogs.append(p['message'])
            self.browser.send('Page.handleJavaScriptDialog', {'accept': True}, self.session)

    def size(self, width, height, touch=False):
        self.command('Emulation.setDeviceMetricsOverride', {'width': width, 'height': height, 'deviceScaleFactor': 1,
                                                            'mobile': touch})
        self.command('Emulation.setTouchEmulationEnabled', {'enabled': touch})

    def media(self, **features):
        """prefers_color_scheme='dark', ..."""
        self.command('Emulation.setEmulatedMedia', {'features': [{'name': n.replace('_', '-'), 'value': v}
                                                                 for n, v in features.items()]})

    def open(self, url):
        before = self.loaded
        self.command('Page.navigate', {'url': url})
        self.wait_loaded(before)

    def reload(self):
        before = self.loaded
        self.command('Page.reload')
        self.wait_loaded(before)

    def ready(self):
        self.wait('document.querySelector("#model").textContent !== "mxrun"')

    def wait_loaded(self, before):
        until = time.monotonic() + 30
        while self.loaded == before:
            self.browser.pump(until - time.monotonic(), 'loading the page')

    def eval(self, expression):
        reply = self.command('Runtime.evaluate', {'expression': expression, 'awaitPromise': True,
                                                  'returnByValue': True, 'userGesture': True,
                                                  'allowUnsafeEvalBlockedByCSP': False})
        if 'exceptionDetails' in reply:
            raise AssertionError(f'{expression}: {reply["exceptionDetails"]}')
        return reply['result'].get('value')

    def wait(self, expression, seconds=20):
        """Until it is true."""
        until = time.monotonic() + seconds
        while not (value := self.eval(expression)):
            if time.monotonic() > until:
                raise AssertionError(f'never true: {expression}\n{self.eval("document.body.innerText")[-2000:]}')
            time.sleep(0.03)
        return value

    def click(self, selector):
        """What is seen there, as somebody with a mouse does."""
        self.wait(f'!!document.querySelector({json.dumps(selector)})')
        x, y = self.eval('(() => { const e = document.querySelector(%s); e.scrollIntoView({ block: "nearest" }); const r = '
                         'e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()'
                         % json.dumps(selector))
        for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
            self.command('Input.dispatchMouseEvent', {'type': kind, 'x': x, 'y': y, 'clickCount': 1,
                                                      'button': 'none' if kind == 'mouseMoved' else 'left'})

    def type(self, text):
        self.command('Input.insertText', {'text': text})

    def key(self, name, modifiers=0):
        code, text = KEYS[name]
        common = {'key': ' ' if name == 'Space' else name, 'code': name, 'windowsVirtualKeyCode': code,
                  'modifiers': modifiers}
        down = {'type': 'keyDown', 'text': text} if text else {'type': 'rawKeyDown'}
        self.command('Input.dispatchKeyEvent', {**down, **common})
        self.command('Input.dispatchKeyEvent', {'type': 'keyUp', **common})

    def files(self, selector, *paths):
        root = self.command('DOM.getDocument')['root']['nodeId']
        node = self.command('DOM.querySelector', {'nodeId': root, 'selector': selector})['nodeId']
        self.command('DOM.setFileInputFiles', {'nodeId': node, 'files': [str(p) for p in paths]})

    def screenshot(self, path):
        data = self.command('Page.captureScreenshot', {'format': 'png'})['data']
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self.browser.command('Target.closeTarget', {'targetId': self.target})
