"""The page at / in Chromium without a window: what somebody does with it, with the real server and with one that says
what a test wants. Skips where Chromium is not installed."""
import contextlib
import json
import pathlib
import sys
import time
import unittest
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'clients'))
import browser
from browser import CONTROL, SHIFT, Browser
from page_server import FakeServer
from serving import SKIPPED, Server

ANSWERED = '!document.querySelector("#send").hidden && !!document.querySelector(".message.assistant .note")'
ANSWER = 'document.querySelector(".message.assistant:last-of-type .body").innerText'
NOTICE = '(document.querySelector("#notice:not([hidden])")?.innerText ?? "")'
SLOW = [('reasoning_content', f'thought {i} ', 0.01) for i in range(5)] + \
       [('content', f'word{i} ', 0.03) for i in range(2000)]
CODE = 'Sure, **here**:\n\n```python\nprint("<b>hi</b>")\n```\n\n1. one\n2. two\n'
HOSTILE = '''<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2">
[click](javascript:window.hurt=3) [data](data:text/html,<script>window.hurt=4</script>) <javascript:window.hurt=5>
![x](https://example.org/spy.png) <iframe srcdoc="<script>parent.hurt = 6</script>"></iframe>
[a" onmouseover="window.hurt=7](https://example.org/" onmouseover="window.hurt=8) `</code><script>window.hurt=9</script>`

```html" onclick="window.hurt=10
</code></pre><script>window.hurt = 11</script>
```

| <svg onload=window.hurt=12> | b |
|---|---|
| <a href="javascript:window.hurt=13">x</a> | <style>*{display:none}</style> |
'''


def setUpModule():
    global chromium, real, policy
    real = stack.enter_context(Server('--threads', '2', '--greedy'))  # the same answers each time
    with urllib.request.urlopen(real.url + '/') as reply:
        policy = [(n, v) for n, v in reply.headers.items()
                  if n.lower() in ('content-security-policy', 'referrer-policy', 'x-content-type-options')]
    chromium = stack.enter_context(Browser())


def tearDownModule():
    stack.close()


stack = contextlib.ExitStack()


class Page(unittest.TestCase):
    def setUp(self):
        self.fake = self.enter(FakeServer(policy))
        self.context = self.enter(chromium.context())
        self.pages = []

    def enter(self, manager):
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    def page(self, url=None, **how):
        page = chromium.page(self.context, url or self.fake.url, **how)
        page.origin = url or self.fake.url
        self.pages.append(page)
        page.ready()
        return page

    def tearDown(self):
        for page in self.pages:
            self.assertEqual(page.errors, [])
            page.eval('0')  # what it asked for until now has come
            for url in page.requests:
                self.assertTrue(url.startswith((page.origin, 'data:,', 'blob:' + page.origin)), url)

    def ask(self, page, text, wait=True):
        if len(self.pages) > 1:
            page.command('Page.bringToFront')
        page.click('#prompt')
        page.type(text)
        page.key('Enter')
        if wait:
            page.wait(ANSWERED)

    # ---- with the real server ------------------------------------------------------------------------------------

    def test_a_chat(self):
        page = self.page(real.url + '/')
        self.assertIn('stories', page.eval('document.querySelector("#model").textContent'))
        self.ask(page, 'Tell me a story about a fox.')
        story = page.eval(ANSWER)
        self.assertGreater(len(story), 100)
        self.assertRegex(page.eval('document.querySelector(".message.assistant .note").textContent'),
                         r'^\d+ tokens · [\d.]+ tokens/s$')
        self.assertFalse(page.eval('document.querySelector(".message.assistant .thinking").open'), 'thinking is folded')
        page.click('.message.assistant .thinking summary')
        self.assertTrue(page.eval('document.querySelector(".thinking .text").innerText'))
        page.wait('/MB/.test(document.querySelector("#stats").textContent)')

        page.reload()
        page.wait(f'{ANSWER} === {json.dumps(story)}')
        page.click('.message.assistant:last-child .again')
        page.wait(f'{ANSWERED} && {ANSWER}.length > 10')
        self.assertEqual(page.eval('document.querySelectorAll(".message").length'), 2)
        self.ask(page, 'Tell me another.')
        self.assertEqual(page.eval('document.querySelectorAll(".message").length'), 4)

        page.eval('[...document.querySelectorAll(".tools button")].find(b => b.textContent === "Edit").click()')
        page.eval('document.querySelector(".editor").select()')
        page.type('Tell me a story about a lamp.')
        page.key('Enter', CONTROL)
        page.wait(f'{ANSWERED} && document.querySelectorAll(".message").length === 2')
        lamp = page.eval(ANSWER)

        page.click('#new')
        self.ask(page, 'Hello!')
        self.assertEqual(page.eval('document.querySelectorAll("#chats li").length'), 2)
        page.click('#chats li:last-child .open')
        page.wait(f'{ANSWER} === {json.dumps(lamp)}')

        folder = chromium.folder / 'downloads'
        chromium.command('Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': str(folder),
                                                         'browserContextId': self.context})
        page.click('#export')
        file = folder / 'mxrun-chats.json'
        until = time.monotonic() + 20
        while not file.exists() and time.monotonic() < until:
            page.eval('0')
            time.sleep(0.02)
        chats = json.loads(file.read_text())['chats']
        self.assertEqual([c['title'] for c in chats], ['Hello!', 'Tell me a story about a lamp.'])
        self.assertEqual([m['role'] for m in chats[1]['messages']], ['user', 'assistant'])
        self.assertEqual(chats[1]['messages'][0]['text'], 'Tell me a story about a lamp.')

        for left in (1, 0):
            page.click('#chats li:first-child')  # so that the button shows
            page.click('#chats li:first-child .remove')
            page.wait(f'document.querySelectorAll("#chats li").length === {left}')
        self.assertEqual(len(page.dialogs), 2)
        self.assertEqual(page.eval('Object.keys(localStorage).filter(k => k.startsWith("mxrun.chat.")).length'), 0)
        page.files('#file', file)
        page.wait('document.querySelectorAll("#chats li").length === 2')
        self.assertEqual(page.eval(NOTICE), '2 conversations came.')

    def test_files(self):
        for path, kind in (('/', 'text/html'), ('/page/app.js', 'text/javascript'), ('/page/style.css', 'text/css')):
            reply = real.get(path)
            self.assertEqual((reply.status, reply.headers['Content-Type']), (200, kind + '; charset=utf-8'))
            self.assertIn("default-src 'none'; script-src 'self';", reply.headers['Content-Security-Policy'])
            self.assertEqual(reply.headers['X-Content-Type-Options'], 'nosniff')
            again = real.get(path, **{'If-None-Match': reply.headers['ETag']})
            self.assertEqual((again.status, again.body), (304, b''))
        for path in ('/page/openapi.json', '/page/nothing.js', '/page/', '/page/..%2fapp.js', '/page/x/app.js'):
            self.assertEqual(real.get(path).status, 404, path)

    # ---- streams -------------------------------------------------------------------------------------------------

    def test_stop_and_reload(self):
        self.fake.parts = {'count': SLOW}
        page = self.page()
        page.eval('localStorage.setItem("mxrun.settings", JSON.stringify({ temperature: "0.5", seed: "7", max_tokens: "900", system: "Be brief." }))')
        page.reload()
        page.ready()
        self.ask(page, 'count', wait=False)
        page.wait(f'{ANSWER}.includes("word3")')
        asked = self.fake.asked[0]
        self.assertEqual([m['role'] for m in asked['messages']], ['system', 'user'])
        self.assertEqual((asked['temperature'], asked['seed'], asked['max_completion_tokens'], asked['reasoning_effort'],
                          asked['model'], 'top_p' in asked), (0.5, 7, 900, 'medium', 'fake-20b', False))
        self.assertRegex(page.eval('document.querySelector(".message.writing .note").textContent'), r'\d+ tokens · [\d.]+ tokens/s')
        self.assertTrue(page.eval('document.querySelector("#send").hidden'))
        page.click('#stop')
        page.wait(ANSWERED)
        self.assertIn('stopped', page.eval('document.querySelector(".message.assistant .note").textContent'))
        self.assertTrue(self.fake.gone.wait(10), 'the server sees that nobody listens')
        self.assertTrue(page.eval('document.activeElement.id === "prompt"'))
        partial = page.eval(ANSWER)
        page.reload()
        self.assertEqual(page.wait(ANSWER), partial)

        # the answer goes on while another conversation is looked at
        page.click('.message.assistant .again')
        page.wait(f'{ANSWER}.includes("word5")')
        page.click('#new')
        self.assertFalse(page.eval('document.querySelector("#send").hidden'))
        page.wait('!!document.querySelector("#chats li.writing")')
        page.click('#chats .open')
        page.wait(f'{ANSWER}.includes("word20")')
        self.assertTrue(page.eval('''(() => { dispatchEvent(new Event('pagehide'));
            const key = Object.keys(localStorage).find(k => k.startsWith('mxrun.chat.'));
            return JSON.parse(localStorage[key]).messages.at(-1).text.trim().startsWith(%s); })()''' % ANSWER), 'saved before it ends')
        page.reload()  # in the midst of it
        page.wait(f'{ANSWER}.includes("word20")')
        self.assertRegex(page.eval('document.querySelector(".message.assistant .note").textContent'), 'not finished$')
        self.assertEqual(page.eval('document.querySelector(".message.assistant .thinking .text").textContent').count('thought'), 5)
        page.click('.message.assistant .again')
        page.wait(f'{ANSWER}.includes("word2")')
        page.key('Escape')
        page.wait(ANSWERED)

    def test_thinking_stays_open_for_who_wants_it(self):
        self.fake.parts = {'count': SLOW[:6], 'think': [('reasoning_content', 'hm ', 0.02)] * 55 + [('content', 'done', 0)]}
        page = self.page()
        self.ask(page, 'think', wait=False)
        page.click('.thinking summary')
        page.wait(ANSWERED)
        self.assertRegex(page.eval('document.querySelector(".thinking summary").textContent'), r'^Thought for \d+ s$')
        self.ask(page, 'count', wait=False)
        page.wait(f'document.querySelectorAll(".thinking[open]").length === 2 && {ANSWERED}')
        page.reload()
        page.wait('document.querySelectorAll(".thinking:not([open])").length === 2')

    def test_the_end_stays_in_view(self):
        self.fake.parts = {'lines': [('content', f'line {i}\n\n', 0.01) for i in range(80)]}
        page = self.page(height=400)
        self.ask(page, 'lines')
        page.wait('(m => m.scrollTop > 500 && m.scrollHeight - m.scrollTop - m.clientHeight < 5)(document.querySelector("#messages"))')
        page.click('.message:last-child .again')
        page.wait(f'{ANSWER}.includes("line 25")')
        page.eval('document.querySelector("#messages").scrollTop = 100')  # who looks at the beginning is left there
        page.wait(ANSWERED)
        self.assertEqual(page.eval('document.querySelector("#messages").scrollTop'), 100)

    def test_errors(self):
        self.fake.parts = {'cut': [('content', 'Once', 0), ('cut', '', 0)]}
        page = self.page()
        self.fake.refusal = (429, [('Retry-After', '3')], {'message': 'The queue is full', 'code': 'queue_full'})
        self.ask(page, 'hello', wait=False)
        page.wait(f'{NOTICE}.startsWith("The queue is full. Try again in 3 s.")')
        self.fake.refusal = (400, [], {'message': 'At most 10 tokens, you sent 12.', 'code': 'context_length_exceeded'})
        page.click('#notice button')
        page.wait(f'/10 tokens, you sent 12. Begin a new chat/.test({NOTICE})')
        self.fake.refusal = (401, [], {'message': 'no API key', 'code': 'missing_api_key'})
        page.click('#notice button')
        page.wait('document.querySelector("#settings").open && document.activeElement.id === "key"')
        page.type('secret')
        self.fake.refusal = None
        page.key('Enter')
        page.wait('!document.querySelector("#settings").open')
        page.click('#notice button')
        page.wait(f'{ANSWERED} && {ANSWER} === "Yes."')
        self.assertEqual(self.fake.authorizations[-1], 'Bearer secret')
        self.assertEqual([m['role'] for m in self.fake.asked[-1]['messages']], ['user'])
        self.ask(page, 'cut')
        page.wait(f'{NOTICE}.startsWith("The connection to the server was lost")')
        self.assertIn('not finished', page.eval('[...document.querySelectorAll(".note")].at(-1).textContent'))
        self.fake.shutdown()
        self.fake.socket.close()
        page.click('#notice button')
        page.wait(f'{NOTICE}.startsWith("The server cannot be reached")')
        page.eval('document.dispatchEvent(new Event("visibilitychange"))')
        page.wait('document.querySelector("#stats").textContent === "no server"')

    # ---- what a model writes -------------------------------------------------------------------------------------

    def test_hostile_answers_never_run(self):
        self.fake.parts = {'attack': [('reasoning_content', HOSTILE, 0)] + [('content', c, 0) for c in HOSTILE.split('\n')],
                           'whole': [('content', HOSTILE, 0)]}
        page = self.page()
        for text in ('attack', 'whole', HOSTILE):
            self.ask(page, text)
            page.wait(ANSWERED)
        page.reload()
        page.wait('document.querySelectorAll(".message").length === 6')
        page.eval('document.querySelectorAll("#log *").forEach(e => e.dispatchEvent(new MouseEvent("mouseover")))')
        self.assertEqual(page.eval('document.querySelectorAll("#log :is(script, img, iframe, svg, style, object, embed, form)").length'), 0)
        self.assertEqual(page.eval('[...document.querySelectorAll("#log a")].map(a => a.protocol).filter(p => p !== "https:")'), [])
        self.assertEqual(page.eval('[...document.querySelectorAll("#log *")].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith("on"))'), [])
        self.assertIsNone(page.eval('window.hurt'))

    def test_policy(self):
        """Were there a hole in the page, the browser would not run what comes through it."""
        page = self.page()
        self.pages.remove(page)  # errors are what is wanted
        for attack in ('document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=hurt=1>")', 'eval("hurt=2")',
                       'document.body.append(Object.assign(document.createElement("script"), { text: "hurt=3" }))',
                       'document.body.innerHTML = "<b onclick=hurt=4>"'):
            with self.assertRaisesRegex(AssertionError, 'TrustedScript|TrustedHTML|Trusted Type|unsafe-eval|Content Security'):
                page.eval(f'(async () => {{ await 0; {attack} }})()')
        page.eval('''(() => { const e = document.createElement("b"); e.setAttribute("style", "color: red");
                     const a = document.createElement("a"); a.href = "javascript:hurt=5"; document.body.append(e, a); a.click();
                     const i = document.createElement("img"); i.src = "https://example.org/spy.png"; document.body.append(i);
                     fetch("https://example.org/").catch(() => { window.kept = 1; }); })()''')
        page.wait('window.kept')
        self.assertIsNone(page.eval('window.hurt'))
        self.assertTrue(any('img-src' in str(e) for e in page.errors), page.errors)
        self.assertTrue(any('connect-src' in str(e) for e in page.errors), page.errors)

    def test_markdown(self):
        page = self.page()
        page.eval('''import('/page/markdown.js').then(({ show_markdown }) => {
            // the HTML of each text; step: characters that come at a time
            window.shown = (texts, step = Infinity) => texts.map(text => {
              const d = document.createElement('div');
              for (let i = step; i < text.length; i += step) show_markdown(d, text.slice(0, i), () => 0);
              show_markdown(d, text, () => 0);
              return d.innerHTML.replaceAll(/ (dir="auto"|target="_blank"|rel="noopener noreferrer nofollow")/g, '');
            }); })''')
        cases = json.loads((pathlib.Path(__file__).parent / 'markdown_cases.json').read_text())
        texts = [text for text, _ in cases]
        for (text, wanted), html in zip(cases, page.eval(f'shown({json.dumps(texts)})')):
            with self.subTest(text):
                self.assertEqual(html, wanted)
        texts.append('\n\n'.join(texts))
        self.assertEqual(page.eval(f'shown({json.dumps(texts)}, 1)'), page.eval(f'shown({json.dumps(texts)})'))

    def test_markdown_is_never_slow(self):
        """100 kB of each of these: what backtracks or nests without bound would take minutes, or break the page."""
        page = self.page()
        hostile = ['`', '*', '**', '_', '[', ']', '![', '[](', '[a](', '<', '<http://', 'https://', '\\(', '$$', '~~', '> ', '- ', '#', ' ', '|',
                   '`a', '*a', '*a ', 'a* ', '**a ', 'a_', '[a', '(', '1. ', '>\n', '-\n', '#\n', '`\n', '|\n', '|-', '\\', '\n', '*a*', '- a\n',
                   '```\n', '~~~~', '*a **b ', '[x](y) ', '![x](', 'a\n', '| a | b |\n|-|-|\n', ' \n', '_a_ ', '``a`', '***a', '\u202e', '&#x3c;']
        texts = [h * ((10000 if '\n' in h else 100000) // len(h)) for h in hostile]
        texts += ['# ' + '#' * 100000 + ' x', '```' + ' ' * 100000 + '`', '- ' + ' ' * 100000 + 'x', '* ' * 50000 + 'x',
                  '|' * 50000 + '\n' + '|-' * 50000, '\n'.join('  ' * i + '- x' for i in range(400)),
                  '`' * 50000 + '\n' + 'x\n' * 20000, '`' + ' ' * 99999, '~' * 50000 + '`']
        page.command('Performance.enable', {'timeDomain': 'threadTicks'})  # what others do on this machine is not counted

        def spent():
            metrics = page.command('Performance.getMetrics')['metrics']
            return next(m['value'] for m in metrics if m['name'] == 'TaskDuration')
        page.eval('''import('/page/markdown.js').then(({ show_markdown }) => { window.show = t => {
            const d = document.createElement('div'); document.querySelector('#log').replaceChildren(d);
            let frames = 1;
            for (; !show_markdown(d, t, () => 0, performance.now() + 12); frames++) d.offsetHeight;
            d.offsetHeight;
            return frames; }; })''')
        worst, begin = [], spent()
        for text in texts:
            frames = page.eval(f'show({json.dumps(text)})')
            now = spent()
            worst.append(((now - begin) / frames * 1000, text[:12], frames))
            begin = now
        worst.sort(reverse=True)
        print('the longest pieces of work, ms:', [(round(ms), *rest) for ms, *rest in worst[:5]])
        self.assertLess(worst[0][0], 250)  # about 50 on a machine of 2026

    # ---- keeping -------------------------------------------------------------------------------------------------

    def test_two_tabs(self):
        self.fake.parts = {'count': SLOW[:40]}
        one = self.page()
        self.ask(one, 'first')
        two = self.page()
        two.wait(f'{ANSWER} === "Yes."')
        self.ask(one, 'second')
        two.wait('document.querySelectorAll(".message").length === 4')
        self.ask(one, 'count', wait=False)  # both at once: both are kept
        self.ask(two, 'third')
        one.wait(ANSWERED)
        for page in (one, two):
            page.wait('document.querySelectorAll("#chats li").length === 2')
        last = 'Object.keys(localStorage).filter(k => k.startsWith("mxrun.chat.")).map(k => JSON.parse(localStorage[k]).messages.at(-2).text).sort()'
        self.assertEqual(two.eval(last), ['count', 'third'])
        one.command('Page.bringToFront')
        one.click('#open-settings')
        one.eval('document.querySelector("#theme").value = "dark"')
        one.key('Escape')
        two.wait('document.documentElement.dataset.theme === "dark"')

    def test_no_room(self):
        page = self.page()
        page.eval('''(() => { let n = 1 << 22; for (let i = 0; n >= 1; i++) { try { localStorage.setItem('fill' + i, 'x'.repeat(n)); }
                     catch { n >>= 1; } } })()''')
        self.ask(page, 'hello')
        self.assertEqual(page.eval(ANSWER), 'Yes.')
        self.assertIn('no room left', page.eval(NOTICE))
        page.eval('localStorage.removeItem("fill0")')
        self.ask(page, 'again')
        page.reload()
        page.wait('document.querySelectorAll(".message").length === 4')

    def test_long_conversations(self):
        page = self.page()
        page.eval('''(text => { const messages = []; for (let i = 0; i < 500; i++) messages.push({ role: 'user', text: 'question ' + i },
                     { role: 'assistant', text: text + i }); const chat = { id: 'long', title: 'long', changed: 1, system: '', messages };
                     localStorage.setItem('mxrun.chat.long', JSON.stringify(chat)); })(%s)''' % json.dumps(CODE * 3))
        page.reload()
        page.wait('document.querySelectorAll(".message .body li").length > 100')
        self.assertEqual(page.eval('document.querySelectorAll(".message").length'), 60)
        page.wait('(m => m.scrollHeight - m.scrollTop - m.clientHeight < 5)(document.querySelector("#messages"))')
        page.click('.earlier')
        page.wait('document.querySelectorAll(".message").length === 120')
        self.ask(page, 'and now?')
        self.assertEqual(len(self.fake.asked[-1]['messages']), 1001)

    # ---- looks and hands -----------------------------------------------------------------------------------------

    def test_keyboard(self):
        self.fake.parts = {'code': [('content', CODE, 0)]}
        page = self.page()
        active = '(e => e.id || e.className || e.textContent)(document.activeElement)'
        self.assertEqual(page.eval(active), 'prompt')
        page.type('code')
        page.key('Enter', SHIFT)
        page.key('Enter')
        page.wait(ANSWERED)
        self.assertEqual(page.eval(active), 'prompt')
        page.key('Tab')
        self.assertEqual(page.eval(active), 'effort')
        page.eval('document.querySelector(".skip").focus()')
        seen = ['Skip to the message box']
        for _ in range(40):
            page.key('Tab')
            seen.append(page.eval('(e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent.trim())(document.activeElement)'))
            outline = page.eval('(s => s.outlineStyle + s.outlineWidth)(getComputedStyle(document.activeElement))')
            if page.eval('document.activeElement.id') != 'prompt':
                self.assertIn('solid', outline, seen[-1])
            if page.eval('document.activeElement.id') == 'send':
                break
        self.assertEqual(seen[:5], ['Skip to the message box', '+ New chat', 'code', 'Delete “code”', 'Export'])
        self.assertEqual(seen[6:8], ['Settings', 'Conversation'])
        self.assertEqual(seen[-3:], ['Message', 'Effort of reasoning', 'Send'])
        for label in ('Edit', 'Copy the code', 'Regenerate'):
            self.assertIn(label, seen)
        page.eval('document.querySelector("#open-settings").focus()')
        page.key('Enter')
        page.wait('document.querySelector("#settings").open')
        page.key('Escape')
        page.wait('!document.querySelector("#settings").open')
        self.assertEqual(page.eval(active), 'open-settings')
        page.eval('[...document.querySelectorAll(".tools button")].find(b => b.textContent === "Edit").focus()')
        page.key('Space')
        page.wait('document.activeElement.className === "editor"')
        page.key('Escape')
        page.wait('document.activeElement.textContent === "Edit"')
        # a name for everything that can be used
        self.assertEqual(page.eval('''[...document.querySelectorAll('button, input:not([hidden]), select, textarea')].filter(e =>
            !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)'''), [])
        self.assertEqual(page.eval('document.querySelectorAll("[aria-live]:not(#status), [role=alert]:not(#notice)").length'), 0)

    CONTRAST = '''(() => {
        const light = c => { const p = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                             return .2126 * p[0] + .7152 * p[1] + .0722 * p[2]; };
        const numbers = text => text.match(/[\\d.]+/g).map(Number);
        const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
                              if (c.length < 4 || c[3] > 0) return c; } };
        return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.data?.trim())).map(e => {
          const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
          return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 80)]; }).filter(c => c[0] < 4.5); })()'''

    def test_looks(self):
        self.fake.parts = {'code': [('reasoning_content', 'hm', 0), ('content', CODE + '\n> a [link](https://example.org)\n\n|a|b|\n|-|-|\n|1|2|\n', 0)]}
        page = self.page()
        self.ask(page, 'code')
        self.fake.parts['?'] = [('content', 'שלום עולם\n\n- hello', 0)]
        self.ask(page, '?')
        self.assertEqual(page.eval('["p", "ul"].map(n => getComputedStyle(document.querySelector(`.message:last-child ${n}`)).direction)'),
                         ['rtl', 'ltr'])
        page.click('.thinking summary')
        colours = []
        for scheme in ('light', 'dark'):
            page.media(prefers_color_scheme=scheme, prefers_reduced_motion='reduce')
            colours.append(page.eval('getComputedStyle(document.body).backgroundColor'))
            self.assertEqual(page.eval(self.CONTRAST), [], scheme)
            page.click('#open-settings')
            self.assertEqual(page.eval(self.CONTRAST), [], scheme)
            page.key('Escape')
        self.assertEqual(colours, ['rgb(255, 255, 255)', 'rgb(26, 27, 28)'])
        page.click('#open-settings')
        page.eval('document.querySelector("#theme").value = "light"')
        page.key('Escape')
        page.wait('getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)"')
        page.reload()
        self.assertEqual(page.eval('getComputedStyle(document.body).backgroundColor'), 'rgb(255, 255, 255)')

    def test_phone(self):
        wide = CODE + '\n```\n' + 'x' * 300 + '\n```\n' + '|' + 'column|' * 12 + '\n' + '|-' * 12 + '|\n\n' + 'y' * 300
        self.fake.parts = {'wide': [('content', wide, 0)]}
        page = self.page(width=320, height=600, touch=True)
        self.assertFalse(page.eval('document.querySelector("#side").checkVisibility({ visibilityProperty: true })'))
        page.click('#prompt')
        page.type('wide')
        page.click('#send')
        page.wait(ANSWERED)
        for selector in ('html', '#messages', 'header', '#composer'):
            self.assertTrue(page.eval(f'(e => e.scrollWidth <= e.clientWidth)(document.querySelector("{selector}"))'), selector)
        self.assertTrue(page.eval('[...document.querySelectorAll("header > *, #composer .row > *")].filter(e => e.checkVisibility() && !e.matches(".hint"))'
                                  '.every(e => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= 320; })'))
        page.click('#open-side')
        page.wait('document.querySelector("#side").checkVisibility({ visibilityProperty: true })')
        self.assertTrue(page.eval('document.querySelector("#main").inert'))
        page.key('Escape')
        page.wait('document.activeElement.id === "open-side" && !document.querySelector("#main").inert')
        page.click('#open-settings')
        page.wait('document.querySelector("#settings").open')
        self.assertTrue(page.eval('(e => e.scrollWidth <= e.clientWidth)(document.querySelector("#settings"))'))


if __name__ == '__main__':
    if not browser.PROGRAM:
        print('skipped: Chromium is not installed')
        sys.exit(SKIPPED)
    unittest.main()
