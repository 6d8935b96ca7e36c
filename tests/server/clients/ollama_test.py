"""Ollama's protocol, byte by byte; clients/ollama_package.py has the real client."""
import json
import re
import unittest

from serving import WEATHER, Server

SEED = {'seed': 5, 'num_predict': 60}
TOOLS = [{'type': 'function', 'function': {'name': 'get_weather', 'description': 'The weather', 'parameters': WEATHER}}]
USER = [{'role': 'user', 'content': 'Tell me a story about a fox.'}]
ASK = [{'role': 'user', 'content': 'What is the weather in Paris?'}]
DURATIONS = ['total_duration', 'load_duration', 'prompt_eval_duration', 'eval_duration']


def setUpModule():
    global server
    server = unittest.enterModuleContext(Server())


class Chat(unittest.TestCase):
    def chat(self, status=200, path='/api/chat', **body):
        reply = server.post(path, {'model': 'stories', **body})
        self.assertEqual(reply.status, status, reply.body)
        return reply

    def wrong(self, words, status=400, path='/api/chat', **body):
        told = self.chat(status, path, **body).json
        self.assertEqual(list(told), ['error'])
        self.assertIn(words, told['error'])

    def test_whole_answer(self):
        reply = self.chat(messages=USER, stream=False, options=SEED)
        self.assertEqual(reply.headers['Content-Type'], 'application/json')
        told = reply.json
        self.assertEqual(told['model'], 'stories')
        self.assertRegex(told['created_at'], r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$')
        self.assertEqual(told['message']['role'], 'assistant')
        self.assertIs(told['done'], True)
        self.assertIn(told['done_reason'], ('stop', 'length'))
        self.assertLessEqual(told['eval_count'], 60)
        self.assertGreater(told['prompt_eval_count'], 10)
        for name in DURATIONS:
            self.assertIsInstance(told[name], int)
        self.assertGreaterEqual(told['total_duration'], told['eval_duration'])
        self.assertTrue(told['message']['content'] or told['message']['thinking'])

    def test_stream_is_the_default_and_says_the_same(self):
        whole = self.chat(messages=USER, stream=False, options=SEED).json
        reply = self.chat(messages=USER, options=SEED)
        self.assertEqual(reply.headers['Content-Type'], 'application/x-ndjson')
        lines = reply.lines
        self.assertGreater(len(lines), 3)
        self.assertTrue(all(not line['done'] for line in lines[:-1]))
        self.assertIs(lines[-1]['done'], True)
        for name in ('content', 'thinking'):
            joined = ''.join(line['message'].get(name, '') for line in lines)
            self.assertEqual(joined, whole['message'].get(name, ''))
        for name in ('done_reason', 'eval_count', 'prompt_eval_count'):
            self.assertEqual(lines[-1][name], whole[name])

    def test_several_messages_of_a_kind(self):
        """Hot models write them; an empty line is between them, in streams too."""
        for seed in range(8):
            options = {'seed': seed, 'num_predict': 60, 'temperature': 1.6}
            whole = self.chat(messages=USER, stream=False, options=options).json['message']
            lines = self.chat(messages=USER, options=options).lines
            for name in ('content', 'thinking'):
                self.assertEqual(''.join(line['message'].get(name, '') for line in lines), whole.get(name, ''))

    def test_a_quiet_stream_is_kept_open(self):
        """A space is the beginning of the next line, so that no parser stumbles."""
        with Server('--keep-alive', '0.01') as quiet:
            reply = quiet.post('/api/chat', {'model': 'stories', 'options': {'num_predict': 3},
                                             'messages': [{'role': 'user', 'content': 'fox ' * 5000}]})
        self.assertTrue(reply.body.startswith(b' '), reply.body[:50])
        self.assertIs(reply.lines[-1]['done'], True)
        for line in reply.body.decode().splitlines():
            json.loads(line)

    def test_thinking(self):
        think = {level: self.chat(messages=USER, stream=False, think=level, options=SEED).json
                 for level in (True, False, 'low', 'high')}
        self.assertNotIn('thinking', think[False]['message'])
        self.assertEqual(think[False]['message']['content'], think['low']['message']['content'])
        for seed in (101, 122, 257, 339):  # with these it thinks although it should not
            options = {'seed': seed, 'num_predict': 12, 'temperature': 2}
            for stream in (True, False):
                lines = self.chat(messages=USER, think=False, stream=stream, options=options).lines
                self.assertFalse([line for line in lines if 'thinking' in line['message']])
        self.wrong('think: expected', messages=USER, think='much')

    def test_tool_loop(self):
        for stream in (False, True):
            lines = self.chat(messages=ASK, tools=TOOLS, stream=stream, options={'temperature': 0}).lines
            calls = [call for line in lines for call in line['message'].get('tool_calls', [])]
            self.assertEqual(len(calls), 1, lines)
            self.assertEqual(calls[0]['function']['name'], 'get_weather')
            self.assertIn('location', calls[0]['function']['arguments'])
            self.assertEqual(lines[-1]['done_reason'], 'stop')
        said = {'role': 'assistant', 'content': '', 'tool_calls': calls}
        for result in ({'tool_name': 'get_weather'}, {'tool_call_id': calls[0]['id']}, {}):
            messages = ASK + [said, {'role': 'tool', 'content': '{"temperature": 21}', **result}]
            told = self.chat(messages=messages, tools=TOOLS, stream=False, options={'temperature': 0}).json
            self.assertTrue(told['message']['content'], told)

    def test_what_the_client_lost_is_replayed(self):
        """The thinking of a call comes back, although this protocol's clients seldom send it."""
        first = self.chat(messages=ASK, tools=TOOLS, stream=False, options={'temperature': 0}).json
        said = {'role': 'assistant', 'content': '', 'tool_calls': first['message']['tool_calls']}
        messages = ASK + [said, {'role': 'tool', 'tool_name': 'get_weather', 'content': '{"temperature": 21}'}]
        second = self.chat(messages=messages, tools=TOOLS, stream=False, options={'temperature': 0}).json
        self.assertGreater(second['prompt_eval_count'], first['prompt_eval_count'] + first['eval_count'])

    def test_formats(self):
        told = self.chat(messages=USER, stream=False, format='json', options={'num_predict': 400}).json
        if told['done_reason'] == 'stop':
            self.assertTrue(told['message']['content'].startswith('{'), told)
        schema = {'type': 'object', 'properties': {'mood': {'enum': ['glad', 'sad']}}, 'required': ['mood'],
                  'additionalProperties': False}
        told = self.chat(messages=USER, stream=False, format=schema, options={'num_predict': 400}).json
        self.assertRegex(told['message']['content'], r'^\{\s*"mood"\s*:\s*"(glad|sad)"\s*\}$', told)
        self.wrong('format', messages=USER, format='yaml')
        self.wrong('format', messages=USER, format={'type': 'nothing'})

    def test_stop_and_seed(self):
        options = {'seed': 3, 'num_predict': 80}
        text = [self.chat(messages=USER, stream=False, options=options).json['message'] for _ in range(2)]
        self.assertEqual(*text)
        other = [self.chat(messages=USER, stream=False, options={'num_predict': 80}).json['message'] for _ in range(3)]
        self.assertTrue(other[0] != other[1] or other[1] != other[2])
        told = self.chat(messages=USER, stream=False, options={'seed': 3, 'stop': [' the']}).json
        self.assertNotIn(' the', told['message']['content'])

    def test_logprobs(self):
        whole = self.chat(messages=USER, stream=False, logprobs=True, top_logprobs=2, options=SEED).json
        lines = self.chat(messages=USER, logprobs=True, top_logprobs=2, options=SEED).lines
        streamed = [token for line in lines for token in line.get('logprobs', [])]
        self.assertEqual(streamed, whole['logprobs'])
        self.assertEqual(''.join(t['token'] for t in streamed), whole['message']['content'])
        self.assertEqual(len(streamed[0]['top_logprobs']), 2)

    def test_any_name(self):
        self.assertEqual(self.chat(model='gpt-oss:20b', messages=[], stream=False).json['model'], 'stories')

    def test_nothing_to_say_is_loading(self):
        self.assertEqual(self.chat(messages=[]).json['done_reason'], 'load')
        self.assertEqual(self.chat().json['message']['content'], '')
        for none in (0, 0.0, '0', '0s'):
            self.assertEqual(self.chat(messages=[], keep_alive=none).json['done_reason'], 'unload')
        for some in ('0.5s', '10m', -1, None):
            self.assertEqual(self.chat(messages=[], keep_alive=some).json['done_reason'], 'load')
        self.assertEqual(self.chat(path='/api/generate').json['response'], '')

    def test_what_is_wrong_is_named(self):
        self.wrong('model is required', model=None, messages=USER)
        self.wrong('messages[0].images: gpt-oss models read text only', messages=[{**USER[0], 'images': ['aGk=']}])
        self.wrong('messages[0].role', messages=[{'role': 'nobody', 'content': 'x'}])
        self.wrong('messages[0].content', messages=[{'role': 'user', 'content': 7}])
        self.wrong('messages', messages={'role': 'user'})
        self.wrong('"arguments" to be an object', messages=[{'role': 'assistant', 'tool_calls': [
            {'function': {'name': 'f', 'arguments': '{}'}}]}])
        self.wrong('messages[1]', messages=USER + [{'role': 'tool', 'content': 'x', 'tool_call_id': 'none'}])
        self.wrong('tools', messages=USER, tools={})
        self.wrong('tools: tool 0', messages=USER, tools=[{'type': 'function', 'function': {'name': 7}}])
        self.assertEqual(self.chat(messages=USER, tools=[{'type': 'web_search', 'name': 'x'}], stream=False,
                                   options={'num_predict': 2}).status, 200)
        self.wrong('stream', messages=USER, stream='yes')
        self.wrong('options: expected an object', messages=USER, options=[])
        self.wrong('options.temperature is 11', messages=USER, options={'temperature': 11})
        self.wrong('options.top_k: expected a whole number', messages=USER, options={'top_k': 0.5})
        self.wrong('options.stop', messages=USER, options={'stop': ['']})
        self.wrong('options.mirostat is not supported', messages=USER, options={'mirostat': 2})
        self.wrong('top_logprobs', messages=USER, logprobs=True, top_logprobs=21)
        self.wrong('the prompt has more than 131072', messages=[{'role': 'user', 'content': 'fox ' * 200000}])
        self.assertEqual(server.post('/api/chat', b'{').status, 400)
        self.assertIn('error', server.post('/api/chat', b'{').json)

    def test_generate(self):
        told = self.chat(path='/api/generate', prompt='Tell me a story.', system='Be brief.', stream=False,
                         options=SEED).json
        self.assertNotIn('message', told)
        self.assertIn('response', told)
        lines = self.chat(path='/api/generate', prompt='Tell me a story.', system='Be brief.', options=SEED).lines
        self.assertEqual(''.join(line['response'] for line in lines), told['response'])
        raw = self.chat(path='/api/generate', prompt='Once upon a time', raw=True, stream=False, options=SEED).json
        self.assertEqual(raw['prompt_eval_count'], server.post('/v1/tokenize', {'input': 'Once upon a time'}).json['count'])
        self.wrong('suffix is not supported', path='/api/generate', prompt='x', suffix='y')
        self.wrong('template is not supported', path='/api/generate', prompt='x', template='y')
        self.wrong('context is not supported', path='/api/generate', prompt='x', context=[1])
        self.wrong('images is not supported', path='/api/generate', prompt='x', images=['aGk='])
        self.wrong('prompt: expected a string', path='/api/generate', prompt=7)
        self.wrong('raw: expected', path='/api/generate', prompt='x', raw='y')


class Models(unittest.TestCase):
    def test_lists(self):
        for path in ('/api/tags', '/api/ps'):
            model, = server.get(path).json['models']
            self.assertEqual(model['name'], 'stories')
            self.assertRegex(model['digest'], '^[0-9a-f]{64}$')
            self.assertEqual(model['details']['quantization_level'], 'MXFP4')
            self.assertEqual(model['details']['parameter_size'], '9.8M')
            self.assertEqual(model['details']['family'], 'gptoss')
        self.assertGreater(model['context_length'], 1000)

    def test_show(self):
        for name in ('model', 'name'):
            told = server.post('/api/show', {name: 'stories:latest'}).json
            self.assertEqual(told['capabilities'], ['completion', 'tools', 'thinking'])
            info = told['model_info']
            self.assertEqual(info['general.architecture'], 'gptoss')
            self.assertEqual((info['gptoss.block_count'], info['gptoss.expert_count']), (4, 16))
            self.assertGreater(info['gptoss.context_length'], 1000)
        self.assertEqual(server.post('/api/show', {}).status, 400)

    def test_version(self):
        told = server.get('/api/version').json
        self.assertRegex(told['version'], r'^\d+\.\d+\.\d+$')
        self.assertTrue(told['mxrun'])

    def test_what_there_is_not(self):
        for path in ('embed', 'embeddings', 'pull', 'push', 'create', 'copy'):
            reply = server.post('/api/' + path, {'model': 'stories'})
            self.assertEqual(reply.status, 501)
            self.assertIn('/api/' + path, reply.json['error'])
        self.assertEqual(server.request('DELETE', '/api/delete', {'model': 'stories'}).status, 501)


class Tools(unittest.TestCase):
    def post(self, path, status=200, **body):
        reply = server.post(path, body)
        self.assertEqual(reply.status, status, reply.body)
        return reply.json

    def test_round_trip(self):
        text = 'Once upon a time, in Zürich 🦊, <|start|>user'
        for name in ('input', 'text', 'prompt', 'content'):
            told = self.post('/v1/tokenize', **{name: text})
            self.assertEqual(told['count'], len(told['tokens']))
            self.assertEqual(self.post('/v1/detokenize', tokens=told['tokens'])['text'], text)
        plain = self.post('/v1/tokenize', input='<|start|>', add_special=False)
        self.assertGreater(plain['count'], self.post('/v1/tokenize', input='<|start|>')['count'])
        self.assertEqual(self.post('/v1/tokenize', input='')['tokens'], [])
        self.assertEqual(self.post('/v1/detokenize', tokens=[])['text'], '')

    def test_chats(self):
        told = self.post('/v1/tokenize', messages=USER)
        text = self.post('/v1/detokenize', tokens=told['tokens'])['text']
        self.assertTrue(re.match(r'<\|start\|>system<\|message\|>', text), text)
        self.assertTrue(text.endswith('<|start|>user<|message|>Tell me a story about a fox.<|end|><|start|>assistant'))
        counted = server.post('/v1/chat/completions', {'messages': USER, 'max_tokens': 1}).json['usage']
        self.assertEqual(counted['prompt_tokens'], told['count'])

    def test_what_is_wrong(self):
        self.assertEqual(self.post('/v1/tokenize', 400)['error']['param'], 'input')
        self.assertEqual(self.post('/v1/tokenize', 400, input=7)['error']['code'], 'invalid_type')
        self.assertEqual(self.post('/v1/tokenize', 400, input='x', add_special=7)['error']['param'], 'add_special')
        self.assertEqual(self.post('/v1/tokenize', 400, messages=[])['error']['param'], 'messages')
        self.assertEqual(self.post('/v1/detokenize', 400)['error']['param'], 'tokens')
        for wrong in (-1, 99999999, 2**40, 1.5, 'x', None, [1]):
            self.assertEqual(self.post('/v1/detokenize', 400, tokens=[1, wrong])['error']['code'], 'invalid_value')


if __name__ == '__main__':
    unittest.main()
