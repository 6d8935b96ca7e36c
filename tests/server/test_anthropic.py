"""/v1/messages as a client has it."""
import json
import unittest

from started import Server

try:
    import anthropic
except ImportError:
    anthropic = None

PATH = '/v1/messages'
STORY = 'Tell me a story about a fox.'
ASK = [{'role': 'user', 'content': 'What is the weather in Paris?'}]
SCHEMA = {'type': 'object', 'properties': {'location': {'type': 'string', 'description': 'The city.'}},
          'required': ['location']}
TOOLS = [{'name': 'get_weather', 'description': 'Gets the current weather in a city.', 'input_schema': SCHEMA},
         {'type': 'web_search_20250305', 'name': 'web_search'}]
RESULT = '{"temperature": 20, "sky": "clear"}'
THINK = {'type': 'enabled', 'budget_tokens': 4096}


def user(content):
    return [{'role': 'user', 'content': content}]


def text(*texts):
    return [{'type': 'text', 'text': t} for t in texts]


def prompt_tokens(reply):
    return reply['usage']['input_tokens'] + reply['usage']['cache_read_input_tokens']


class Messages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('-c', '700', '--date', '2026-11-23')
        cls.addClassCleanup(cls.server.close)

    def say(self, messages, **fields):
        return self.server.post(PATH, {'model': 'stories', 'max_tokens': 100, 'temperature': 0, 'messages': messages,
                                       **fields})

    def count(self, messages, **fields):
        return self.server.post(PATH + '/count_tokens', {'messages': messages, **fields})['input_tokens']

    def check_prompt(self, body, messages, **fields):
        """The prompt is that of a chat completion: it is found in the cache."""
        chat = self.server.post('/v1/chat/completions', {'messages': messages, 'max_tokens': 1, **fields})
        tokens = chat['usage']['prompt_tokens']
        usage = self.say(**body, max_tokens=1)['usage']
        self.assertEqual((usage['input_tokens'], usage['cache_read_input_tokens']), (1, tokens - 1), body)
        self.assertEqual(self.count(**body), tokens)

    def test_whole(self):
        r = self.say(user(STORY), system=text('Tell stories.', 'Be brief.'), max_tokens=40, metadata={'user_id': 'me'})
        self.assertRegex(r['id'], '^msg_[0-9a-f]{32}$')
        self.assertEqual((r['type'], r['role'], r['model'], r['stop_reason'], r['stop_sequence']),
                         ('message', 'assistant', 'stories', 'max_tokens', None))
        self.assertEqual([b['type'] for b in r['content']], ['text'])
        self.assertTrue(r['content'][0]['text'].startswith('Once'), r)
        self.assertEqual(r['usage']['output_tokens'], 40)
        self.assertEqual(r['usage']['cache_creation_input_tokens'], 0)
        self.check_prompt({'messages': user(text('Quick!')), 'system': text('Tell stories.', 'Be brief.')},
                          [{'role': 'system', 'content': 'Tell stories.\n\nBe brief.'}, *user('Quick!')])

    def test_thinking(self):
        r = self.say(user(STORY), thinking=THINK, max_tokens=40)
        thinking, told = r['content']
        self.assertEqual((thinking['type'], told['type']), ('thinking', 'text'))
        self.assertIn('story about a fox', thinking['thinking'])
        self.assertTrue(thinking['signature'])
        self.assertEqual(told, self.say(user(STORY), max_tokens=40)['content'][0])
        efforts = {'low': [{'thinking': {'type': 'disabled'}}, {'thinking': {**THINK, 'budget_tokens': 2048}},
                           {'output_config': {'effort': 'low'}}],
                   'medium': [{}, {'thinking': THINK}, {'thinking': {'type': 'adaptive'}}],
                   'high': [{'thinking': {**THINK, 'budget_tokens': 8193}}, {'output_config': {'effort': 'max'}}]}
        for effort, ways in efforts.items():
            for way in ways:
                self.check_prompt({'messages': user('Think!'), **way}, user('Think!'), reasoning_effort=effort)
        # Used up by thinking: it is told, though nobody asked for it.
        r = self.say(user(STORY), max_tokens=5)
        self.assertEqual(([b['type'] for b in r['content']], r['stop_reason']), (['thinking'], 'max_tokens'))

    def test_stream(self):
        for fields in ({}, {'thinking': THINK}, {'max_tokens': 4}, {'stop_sequences': ['zzz', ' fox']}):
            fields = {'max_tokens': 40, **fields}
            whole = self.say(user(STORY), **fields)
            events = self.server.events(PATH, {'messages': user(STORY), 'temperature': 0, **fields})
            names = [e['type'] for e in events]
            block = ['content_block_start', 'content_block_delta', 'content_block_stop']
            expected = ['message_start', block[0], 'ping', *block[1:]] + block * (len(whole['content']) - 1)
            self.assertEqual([n for i, n in enumerate(names) if i == 0 or n != names[i - 1]],
                             expected + ['message_delta', 'message_stop'])
            self.assertEqual((events[0]['message']['content'], events[0]['message']['stop_reason']), ([], None))
            content = []
            for e in events:
                if e['type'] == 'content_block_start':
                    self.assertEqual(e['index'], len(content))
                    content.append(e['content_block'])
                for kind in ('text', 'thinking', 'signature'):
                    if e['type'] == 'content_block_delta' and e['delta']['type'] == kind + '_delta':
                        content[e['index']][kind] += e['delta'][kind]
            self.assertEqual([bool(b['signature']) for b in content if b['type'] == 'thinking'],
                             [True] * (content[0]['type'] == 'thinking'))
            self.assertEqual([{**b, 'signature': ''} for b in content], [{**b, 'signature': ''} for b in whole['content']])
            self.assertEqual(events[-2]['delta'], {k: whole[k] for k in ('stop_reason', 'stop_sequence')})
            self.assertEqual(events[-2]['usage']['output_tokens'], whole['usage']['output_tokens'])
        self.assertEqual((whole['stop_reason'], whole['stop_sequence']), ('stop_sequence', ' fox'))

    def test_tool_loop(self):
        for thinking in ({}, {'thinking': THINK}):
            first = self.say(ASK, tools=TOOLS, **thinking)
            self.assertEqual(first['stop_reason'], 'tool_use')
            use = first['content'][-1]
            self.assertEqual((use['type'], use['name'], use['input']), ('tool_use', 'get_weather', {'location': 'Paris'}))
            self.assertEqual([b['type'] for b in first['content'][:-1]], ['thinking'] if thinking else [])
            result = {'type': 'tool_result', 'tool_use_id': use['id'], 'content': text(RESULT)}
            said = prompt_tokens(first) + first['usage']['output_tokens']
            for content in ([result], [{**result, 'content': RESULT}]):
                second = self.say(ASK + [{'role': 'assistant', 'content': first['content']}] + user(content), tools=TOOLS,
                                  **thinking)
                self.assertEqual(second['stop_reason'], 'end_turn')
                self.assertIn('20 degrees', second['content'][-1]['text'])
                # The model's own tokens are found, its thinking, too, which the client may not even have.
                self.assertGreaterEqual(second['usage']['cache_read_input_tokens'], said - 1)
            failed = self.count(ASK + [{'role': 'assistant', 'content': first['content']}] +
                                user([{**result, 'content': 'no such city', 'is_error': True}]), tools=TOOLS, **thinking)
            self.assertEqual(failed, self.count(
                ASK + [{'role': 'assistant', 'content': first['content']}] +
                user([{**result, 'content': 'Error: no such city'}]), tools=TOOLS, **thinking))
        events = self.server.events(PATH, {'messages': ASK, 'tools': TOOLS, 'max_tokens': 100, 'temperature': 0})
        start, = [e['content_block'] for e in events if e['type'] == 'content_block_start']
        self.assertEqual((start['type'], start['name'], start['input']), ('tool_use', 'get_weather', {}))
        self.assertEqual([e['delta'] for e in events if e['type'] == 'content_block_delta'],
                         [{'type': 'input_json_delta', 'partial_json': '{"location":"Paris"}'}])
        # A call that was cut off is none.
        r = self.say(ASK, tools=TOOLS, max_tokens=first['usage']['output_tokens'] - 2, thinking=THINK)
        self.assertEqual((r['stop_reason'], [b['type'] for b in r['content']]), ('max_tokens', ['thinking', 'text']))

    def test_blocks_as_messages(self):
        calls = [{'id': 'toolu_x', 'type': 'function', 'function': {'name': 'get_weather', 'arguments': '{"location":"Rome"}'}}]
        messages = [{'role': 'user', 'content': 'Rome?\n\nNow.'},
                    {'role': 'assistant', 'reasoning_content': 'I look.', 'content': 'One moment.', 'tool_calls': calls},
                    {'role': 'tool', 'tool_call_id': 'toolu_x', 'content': RESULT}, {'role': 'user', 'content': 'So?'},
                    {'role': 'assistant', 'content': 'Fine.'}, {'role': 'user', 'content': 'And Oslo?'}]
        blocks = [{'role': 'user', 'content': text('Rome?', 'Now.')},
                  {'role': 'assistant', 'content': [
                      {'type': 'thinking', 'thinking': 'I look.', 'signature': 'x'}, {'type': 'redacted_thinking', 'data': 'x'},
                      *text('One moment.'),
                      {'type': 'tool_use', 'id': 'toolu_x', 'name': 'get_weather', 'input': {'location': 'Rome'}}]},
                  {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': 'toolu_x', 'content': RESULT},
                                               *text('So?')]},
                  {'role': 'assistant', 'content': 'Fine.'}, {'role': 'user', 'content': text('And Oslo?')}]
        self.check_prompt({'messages': blocks[:3]}, messages[:4]) # in the middle of a loop thinking stays
        self.check_prompt({'messages': blocks}, messages)

    def test_documents(self):
        def tokens(content):
            return self.server.post(PATH + '/count_tokens', {'messages': [{'role': 'user', 'content': content}]})['input_tokens']
        document = {'type': 'document', 'source': {'type': 'text', 'media_type': 'text/plain', 'data': 'A fox.'}}
        question = {'type': 'text', 'text': 'What is it?'}
        self.assertEqual(tokens([document, question]), tokens('A fox.\n\nWhat is it?'))
        self.assertEqual(tokens([{**document, 'title': 'Animals', 'context': 'Notes', 'citations': {'enabled': False}}]),
                         tokens('Animals\n\nNotes\n\nA fox.'))

    def test_models(self):
        status, _, data = self.server.ask('GET', '/v1/models', headers={'anthropic-version': '2023-06-01'})
        models = json.loads(data)
        self.assertEqual((status, models['has_more'], models['first_id'], models['last_id']), (200, False, 'stories', 'stories'))
        [model] = models['data']
        self.assertEqual((model['type'], model['id'], model['display_name']), ('model', 'stories', 'stories'))
        self.assertRegex(model['created_at'], '^20[0-9-]{8}T[0-9:]{8}Z$')
        _, _, data = self.server.ask('GET', '/v1/models/stories', headers={'anthropic-version': '2023-06-01'})
        self.assertEqual(json.loads(data), model)

    def test_choice_and_format(self):
        for choice in ({'type': 'any'}, {'type': 'tool', 'name': 'get_weather', 'disable_parallel_tool_use': True}):
            r = self.say(user(STORY), tools=TOOLS, tool_choice=choice)
            self.assertEqual((r['stop_reason'], r['content'][-1]['name']), ('tool_use', 'get_weather'))
            self.assertIsInstance(r['content'][-1]['input'], dict)
        r = self.say(ASK, tools=TOOLS, tool_choice={'type': 'none'}, max_tokens=30)
        self.assertNotIn('tool_use', [b['type'] for b in r['content']])
        form = {'type': 'json_schema', 'schema': {'enum': ['good', 'bad']}}
        r = self.say(user(STORY), output_config={'format': form})
        self.assertIn(r['content'][0]['text'], ('"good"', '"bad"'))

    def test_wrong(self):
        image = [{'type': 'image', 'source': {'type': 'base64', 'media_type': 'image/png', 'data': ''}}]
        ok = {'messages': user('a'), 'max_tokens': 5}
        for body, what in [
                ({'messages': user('a')}, 'max_tokens: Field required'), ({'max_tokens': 5}, 'messages'),
                ({**ok, 'messages': []}, 'messages'), ({**ok, 'messages': [7]}, 'messages.0'),
                ({**ok, 'messages': user(image)}, 'messages.0.content.0.type: "image"'),
                ({**ok, 'messages': user([{'type': 'document', 'source': image[0]['source']}])}, 'messages.0.content.0.source: '),
                ({**ok, 'messages': user([{'type': 'document'}])}, 'messages.0.content.0.source: '),
                ({**ok, 'seed': 1.5}, 'seed: expected a whole number of at least 0'),
                ({**ok, 'messages': [{'role': 'robot', 'content': 'a'}]}, 'messages.0.role'),
                ({**ok, 'messages': user('a') + [{'role': 'assistant', 'content': 'b'}]}, 'messages.1.role'),
                ({**ok, 'messages': user([{'type': 'tool_result', 'tool_use_id': 'x'}])}, 'messages.0.content.0.tool_use_id'),
                ({**ok, 'temperature': 1.5}, 'temperature is 1.5'), ({**ok, 'stop_sequences': ['']}, 'stop_sequences'),
                ({**ok, 'thinking': {'type': 'enabled'}}, 'thinking.budget_tokens'),
                ({**ok, 'tool_choice': {'type': 'any'}}, 'tool_choice'), ({**ok, 'tool_choice': {'type': 'x'}}, 'tool_choice.type'),
                ({**ok, 'messages': user('fox ' * 2000)}, '700')]:
            status, headers, reply = self.server.refused(PATH, body)
            self.assertEqual((status, reply['type'], reply['error']['type']), (400, 'error', 'invalid_request_error'), reply)
            self.assertIn(what, reply['error']['message'])
            self.assertEqual(reply['request_id'], headers['request-id'])
        status, _, reply = self.server.refused(PATH, b'{"messages": [')
        self.assertEqual((status, reply['error']['type']), (400, 'invalid_request_error'))


@unittest.skipUnless(anthropic, 'the Python package anthropic is not installed')
class Package(unittest.TestCase):
    def test_stream_and_tools(self):
        server = Server('-c', '700')
        self.addCleanup(server.close)
        client = anthropic.Anthropic(base_url=server.url, api_key='none', max_retries=0)
        ask = {'model': 'stories', 'max_tokens': 100, 'tools': TOOLS, 'extra_body': {'temperature': 0}, 'thinking': THINK}
        with client.messages.stream(messages=ASK, **ask) as stream:
            for _ in stream:
                pass
            first = stream.get_final_message()
        thinking, use = first.content
        self.assertEqual((thinking.type, use.input), ('thinking', {'location': 'Paris'}))
        messages = [*ASK, {'role': 'assistant', 'content': first.content},
                    *user([{'type': 'tool_result', 'tool_use_id': use.id, 'content': RESULT}])]
        second = client.messages.create(messages=messages, **ask)
        self.assertIn('20 degrees', second.content[-1].text)
        self.assertEqual(client.messages.count_tokens(model='stories', messages=messages, tools=TOOLS, thinking=THINK).input_tokens,
                         second.usage.input_tokens + second.usage.cache_read_input_tokens)
        with self.assertRaises(anthropic.BadRequestError) as raised:
            client.messages.create(messages=[], **ask)
        self.assertEqual(raised.exception.body['request_id'], raised.exception.request_id)


if __name__ == '__main__':
    unittest.main()
