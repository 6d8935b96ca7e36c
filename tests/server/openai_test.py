"""OpenAI's endpoints as a client has them, with nothing but http.client: whole answers are those of `mxrun batch`,
streams say what whole answers say, conversations that come back are found in the cache."""
import json
import subprocess
import unittest

import started
from started import BINARY

DATE = ['--date', '2026-11-23']
WEATHER = {'type': 'object', 'properties': {'location': {'type': 'string', 'description': 'The city.'}},
           'required': ['location']}
CHAT, TEXT = '/v1/chat/completions', '/v1/completions'


def tool(name):
    return {'type': 'function', 'function': {'name': name, 'description': 'Gets the current weather in a city.',
                                             'parameters': WEATHER}}


def user(text):
    return {'role': 'user', 'content': text}


PARIS = [user('What is the weather in Paris?')]
FOX = [user('Tell me a story about a fox.')]
REQUESTS = [
    (CHAT, {'messages': [user('Repeat after me: golden whistle')], 'temperature': 0}),
    (CHAT, {'messages': FOX, 'seed': 7, 'max_tokens': 60, 'logprobs': True, 'top_logprobs': 2}),
    (CHAT, {'messages': FOX, 'seed': 3, 'n': 3, 'max_completion_tokens': 40, 'temperature': 1.3}),
    (CHAT, {'messages': FOX, 'seed': 5, 'max_tokens': 80, 'stop': ['the', '.'], 'logprobs': True}),
    (CHAT, {'messages': FOX, 'seed': 2, 'max_tokens': 2}),
    (CHAT, {'messages': [{'role': 'developer', 'content': 'Be brief.'}, *FOX], 'seed': 1, 'reasoning_effort': 'low',
            'max_tokens': 30, 'presence_penalty': 0.5, 'logit_bias': {'300': -100}}),
    (CHAT, {'messages': PARIS, 'seed': 8, 'tools': [tool('get_weather')]}),
    (CHAT, {'messages': FOX, 'seed': 8, 'tools': [tool('get weather')], 'tool_choice': 'required', 'max_tokens': 90}),
    (CHAT, {'messages': PARIS, 'seed': 8, 'tools': [tool('get_weather')], 'tool_choice': 'none', 'max_tokens': 30}),
    (CHAT, {'messages': FOX, 'seed': 8, 'max_tokens': 90, 'response_format': {'type': 'json_schema', 'json_schema': {
        'name': 'fox', 'schema': {'type': 'object', 'properties': {'kind': {'enum': ['red', 'grey']}, 'age': {'type': 'integer'}},
                                  'required': ['kind'], 'additionalProperties': False}}}}),
    (TEXT, {'prompt': 'Once upon a time', 'seed': 4}),
    (TEXT, {'prompt': ['Once upon', 'There was'], 'seed': 9, 'n': 2, 'max_tokens': 8, 'logprobs': 3}),
    (TEXT, {'prompt': 'Once upon a time', 'temperature': 0, 'max_tokens': 6, 'echo': True, 'logprobs': 1}),
    (TEXT, {'prompt': 'Once upon a time', 'max_tokens': 0, 'echo': True, 'logprobs': 0}),
    (TEXT, {'prompt': 'Once upon a time', 'seed': 6, 'max_tokens': 40, 'stop': ' a', 'logprobs': 0}),
]


class Server(started.Server):
    def reply(self, path, body):
        status, _, data = self.ask('POST', path, body)
        return status, json.loads(data)

    def whole(self, path, body):
        status, reply = self.reply(path, body)
        assert status == 200, reply
        return reply

    def chunks(self, path, body):
        status, _, data = self.ask('POST', path, {**body, 'stream': True})
        assert status == 200, data
        events = data.decode().split('\n\n')
        assert events.pop() == '' and events.pop() == 'data: [DONE]', data
        assert all(e.startswith('data: {') for e in events), data
        return [json.loads(e[6:]) for e in events]


def joined(chunks, chat):
    """The choices of a whole answer out of its chunks."""
    choices = {}
    for chunk in chunks:
        for c in chunk['choices']:
            if chat:
                first = {'message': {'role': None, 'content': '', 'reasoning_content': '', 'tool_calls': []}}
            else:
                first = {'text': ''}
            choice = choices.setdefault(c['index'], {**first, 'logprobs': None, 'finish_reason': None})
            assert choice['finish_reason'] is None, chunk
            choice['finish_reason'] = c['finish_reason']
            if c['logprobs']:
                lists = choice['logprobs'] = choice['logprobs'] or {}
                for name, more in c['logprobs'].items():
                    lists[name] = lists.get(name, []) + more if more is not None else None
            if not chat:
                choice['text'] += c['text']
                continue
            message, delta = choice['message'], c['delta']
            assert bool(message['role']) != ('role' in delta), 'the role comes first, and once'
            message['role'] = message['role'] or delta['role']
            for name in ('content', 'reasoning_content'):
                message[name] += delta.get(name) or ''
            for call in delta.get('tool_calls', []):
                if call['index'] == len(message['tool_calls']):
                    message['tool_calls'].append({'id': call['id'], 'type': call['type'],
                                                  'function': dict(call['function'])})
                else:
                    assert set(call) == {'index', 'function'} and set(call['function']) == {'arguments'}, call
                    message['tool_calls'][call['index']]['function']['arguments'] += call['function']['arguments']
    return [choices[i] for i in sorted(choices)]


def plain(choice):
    """A choice without what may be there or not."""
    choice = {k: v for k, v in choice.items() if k != 'index'}
    if 'message' in choice:
        m = choice['message']
        choice['message'] = {'role': m['role'], 'content': m['content'] or '',
                             'reasoning_content': m.get('reasoning_content') or '',
                             'tool_calls': [(c['type'], c['function']) for c in m.get('tool_calls') or []]}
    if choice['logprobs'] is None or not any(choice['logprobs'].values()):
        choice['logprobs'] = None
    return choice


class Endpoints(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*DATE)
        cls.addClassCleanup(cls.server.close)

    def test_as_batch(self):
        lines = [json.dumps({'custom_id': str(i), 'method': 'POST', 'url': path, 'body': body})
                 for i, (path, body) in enumerate(REQUESTS)]
        done = subprocess.run([BINARY, 'batch', '-m', 'stories', '-q', '-i', '-', '-o', '-', '--ordered', *DATE],
                              input='\n'.join(lines), capture_output=True, text=True, check=True)
        for (path, body), line in zip(REQUESTS, done.stdout.splitlines(), strict=True):
            batch, reply = json.loads(line)['response']['body'], self.server.whole(path, body)
            for choice in reply['choices'] + batch['choices']:
                for call in choice.get('message', {}).get('tool_calls', []):
                    self.assertRegex(call.pop('id'), '^call_[0-9a-f_]+_[0-9]+_0$')
            self.assertEqual(reply['choices'], batch['choices'], body)
            for usage in (reply['usage'], batch['usage']):
                usage['prompt_tokens_details'].pop('cached_tokens')
            self.assertEqual(reply['usage'], batch['usage'], body)
            self.assertEqual(reply['object'], batch['object'])
            self.assertEqual(reply['model'], 'stories')
            self.assertRegex(reply['id'], '^(chatcmpl|cmpl)-[0-9a-f]{32}$')
            self.assertRegex(reply['system_fingerprint'], '^fp_[0-9a-f]{12}$')

    def test_streams(self):
        for path, body in REQUESTS:
            chunks = self.server.chunks(path, {**body, 'stream_options': {'include_usage': True}})
            whole = self.server.whole(path, body)
            usage = chunks.pop()
            self.assertEqual(usage['choices'], [])
            self.assertEqual(usage['usage']['completion_tokens'], whole['usage']['completion_tokens'])
            self.assertEqual(usage['usage']['completion_tokens_details'], whole['usage']['completion_tokens_details'])
            self.assertEqual({c['object'] for c in chunks},
                             {'chat.completion.chunk' if path == CHAT else 'text_completion'})
            self.assertEqual(len({c['id'] for c in chunks}), 1)
            self.assertTrue(all(c['usage'] is None for c in chunks))
            self.assertEqual([plain(c) for c in joined(chunks, path == CHAT)], [plain(c) for c in whole['choices']])
            self.assertTrue(all('usage' not in c for c in self.server.chunks(path, body)))

    def test_thinking_ate_it(self):
        choice = self.server.whole(CHAT, {'messages': FOX, 'seed': 2, 'max_tokens': 2})['choices'][0]
        self.assertEqual(choice['finish_reason'], 'length')
        self.assertEqual(choice['message']['content'], '')
        # <|channel|>analysis are two tokens, so that nothing was thought yet.
        for most in (4, 6):
            choice = self.server.whole(CHAT, {'messages': FOX, 'seed': 2, 'max_tokens': most})['choices'][0]
            self.assertEqual((choice['finish_reason'], choice['message']['content']), ('length', ''))
            self.assertTrue(choice['message']['reasoning_content'])

    def loop(self, name, **more):
        """The model calls a tool, is told what it returned, and answers."""
        body = {'messages': PARIS, 'temperature': 0, 'tools': [tool(name)], **more}
        first = self.server.whole(CHAT, body)
        choice = first['choices'][0]
        self.assertEqual(choice['finish_reason'], 'tool_calls')
        self.assertIsNone(choice['message']['content'])
        self.assertTrue(choice['message'].pop('reasoning_content'))  # many a client loses it
        [call] = choice['message']['tool_calls']
        self.assertEqual(call['function']['name'], name)
        self.assertEqual(json.loads(call['function']['arguments']), {'location': 'Paris'})
        self.assertLessEqual(len(call['id']), 40)
        body['messages'] = [*PARIS, choice['message'],
                            {'role': 'tool', 'tool_call_id': call['id'], 'content': '{"temperature":7,"sky":"cloudy"}'}]
        return body, first['usage'], self.server.whole(CHAT, body)

    def test_tool_loop(self):
        body, before, second = self.loop('get_weather')
        self.assertEqual(second['choices'][0]['message']['content'],
                         'It is cloudy in Paris, and the temperature is 7 degrees.')
        # All of the prompt and of the answer, but for the token that ended it, which went through no model.
        self.assertGreaterEqual(second['usage']['prompt_tokens_details']['cached_tokens'],
                                before['prompt_tokens'] + before['completion_tokens'] - 1)
        # A call that is told in another way is still the same.
        function = body['messages'][1]['tool_calls'][0]['function']
        for arguments in ({'location': 'Paris'}, '{ "location": "Paris" }', json.dumps(function['arguments'])):
            function['arguments'] = arguments
            again = self.server.whole(CHAT, body)
            self.assertEqual(again['usage']['prompt_tokens'], second['usage']['prompt_tokens'])
            self.assertEqual(again['choices'][0]['message']['content'], second['choices'][0]['message']['content'])

    def test_strange_name(self):
        """A name that harmony cannot say is the client's in every direction."""
        _, before, second = self.loop('get weather')
        self.assertIn('cloudy', second['choices'][0]['message']['content'])
        self.assertGreaterEqual(second['usage']['prompt_tokens_details']['cached_tokens'],
                                before['prompt_tokens'] + before['completion_tokens'] - 1)
        chunks = self.server.chunks(CHAT, {'messages': PARIS, 'temperature': 0, 'tools': [tool('get weather')]})
        self.assertEqual(joined(chunks, True)[0]['message']['tool_calls'][0]['function']['name'], 'get weather')

    def test_conversation(self):
        """What was said before is found in the cache, up to the thinking that goes with a final answer."""
        body = {'messages': [user('Tell me a story about an owl, number 77.')], 'seed': 11, 'max_tokens': 400}
        first = self.server.whole(CHAT, body)
        message = first['choices'][0]['message']
        for said in ({'role': 'assistant', 'content': message['content']}, message):
            second = self.server.whole(CHAT, {'messages': [*body['messages'], said, user('Another one.')], 'max_tokens': 5})
            self.assertGreaterEqual(second['usage']['prompt_tokens_details']['cached_tokens'],
                                    first['usage']['prompt_tokens'])

    def test_models(self):
        status, _, data = self.server.ask('GET', '/v1/models')
        models = json.loads(data)
        self.assertEqual((status, models['object'], [m['id'] for m in models['data']]), (200, 'list', ['stories']))
        status, _, data = self.server.ask('GET', '/v1/models/stories')
        self.assertEqual((status, json.loads(data)), (200, models['data'][0]))
        status, _, data = self.server.ask('GET', '/v1/models/other')
        self.assertEqual((status, json.loads(data)['error']['code']), (404, 'model_not_found'))

    def test_any_model(self):
        self.assertEqual(self.server.whole(TEXT, {'model': 'gpt-4o', 'prompt': 'Once', 'max_tokens': 1})['model'], 'stories')

    def test_wrong(self):
        chat = {'messages': FOX, 'max_tokens': 1}
        for path, body, param, code in (
                (CHAT, {}, 'messages', 'missing_required_parameter'),
                (CHAT, {**chat, 'model': 3}, 'model', 'invalid_type'),
                (CHAT, {**chat, 'temperature': 'hot'}, 'temperature', 'invalid_type'),
                (CHAT, {**chat, 'stream': 'yes'}, 'stream', 'invalid_type'),
                (CHAT, {**chat, 'stream': True, 'stream_options': 3}, 'stream_options', 'invalid_type'),
                (CHAT, {**chat, 'stream': True, 'stream_options': {'include_usage': 3}}, 'stream_options.include_usage',
                 'invalid_type'),
                (CHAT, {**chat, 'functions': []}, 'functions', 'unsupported_value'),
                (CHAT, {**chat, 'modalities': ['text', 'audio']}, 'modalities', 'unsupported_value'),
                (CHAT, {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'messages[0].content[0]',
                 'unsupported_value'),
                (TEXT, {'prompt': 'a', 'suffix': 'b'}, 'suffix', 'unsupported_value'),
                (TEXT, {'prompt': 'a', 'best_of': 2, 'stream': True}, 'best_of', 'unsupported_value'),
                (TEXT, {'prompt': 'a', 'n': 2, 'echo': True, 'logprobs': 1, 'stream': True}, 'n', 'unsupported_value')):
            status, reply = self.server.reply(path, body)
            self.assertEqual((status, set(reply)), (400, {'error'}), body)
            self.assertEqual((reply['error']['param'], reply['error']['code']), (param, code))
            self.assertEqual(reply['error']['type'], 'invalid_request_error')
        # Unknown and empty ones are ignored.
        self.server.whole(CHAT, {**chat, 'store': True, 'metadata': {}, 'user': 'x', 'service_tier': 'auto', 'thing': [1],
                                 'stop': None, 'tools': None, 'response_format': {'type': 'text'}, 'modalities': ['text'],
                                 'stream': False, 'stream_options': None, 'seed': None, 'parallel_tool_calls': True})

    def test_length(self):
        server = Server(*DATE, '--ctx', '128')
        try:
            for stream in (False, True):
                status, reply = server.reply(CHAT, {'messages': [user('fox ' * 300)], 'stream': stream})
                self.assertEqual((status, reply['error']['code'], reply['error']['param']),
                                 (400, 'context_length_exceeded', 'messages'))
                self.assertIn('maximum context length is 128 tokens', reply['error']['message'])
                self.assertRegex(reply['error']['message'], 'prompt has [3-9][0-9][0-9]:')
            choice = server.whole(CHAT, {'messages': FOX, 'seed': 1})['choices'][0]
            self.assertEqual(choice['finish_reason'], 'length')
        finally:
            server.close()


if __name__ == '__main__':
    unittest.main()
