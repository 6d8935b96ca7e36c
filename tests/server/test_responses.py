"""/v1/responses as a client has it."""
import json
import unittest

from started import Server

try:
    import openai
    import pydantic
except ImportError:
    openai = None

PATH = '/v1/responses'
FOX = {'input': 'Tell me a story about a fox.', 'temperature': 0, 'max_output_tokens': 40}
PARAMETERS = {'type': 'object', 'properties': {'location': {'type': 'string', 'description': 'The city.'}},
              'required': ['location'], 'additionalProperties': False}
TOOL = {'type': 'function', 'name': 'get_weather', 'description': 'Gets the current weather in a city.',
        'parameters': PARAMETERS, 'strict': False}
PARIS = {'input': 'What is the weather in Paris?', 'temperature': 0, 'tools': [TOOL, {'type': 'web_search'}]}
RESULT = '{"temperature": 20, "sky": "clear"}'


def text_of(response):
    return ''.join(part['text'] for item in response['output'] if item['type'] == 'message' for part in item['content'])


def without_ids(value):
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ('id', 'call_id', 'created_at', 'completed_at')}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


class Responses(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('-c', '700', '--date', '2026-11-23')
        cls.addClassCleanup(cls.server.close)

    def say(self, **body):
        return self.server.post(PATH, body)

    def check_prompt(self, body, messages, **fields):
        """The prompt is that of a chat completion: it is found in the cache."""
        chat = self.server.post('/v1/chat/completions', {'messages': messages, 'max_tokens': 1, **fields})
        usage = self.say(**body, max_output_tokens=1)['usage']
        self.assertEqual(usage['input_tokens'], chat['usage']['prompt_tokens'])
        self.assertEqual(usage['input_tokens_details']['cached_tokens'], usage['input_tokens'] - 1)

    def test_whole(self):
        r = self.say(**FOX, metadata={'a': 'b'}, instructions='Be brief.', reasoning={'effort': 'low'}, user='me')
        self.assertRegex(r['id'], '^resp_[0-9a-f]{32}$')
        self.assertEqual((r['object'], r['status'], r['incomplete_details'], r['model']),
                         ('response', 'incomplete', {'reason': 'max_output_tokens'}, 'stories'))
        self.assertEqual((r['metadata'], r['instructions'], r['user'], r['tools'], r['tool_choice'], r['temperature']),
                         ({'a': 'b'}, 'Be brief.', 'me', [], 'auto', 0))
        self.assertEqual((r['reasoning'], r['text'], r['store'], r['error']),
                         ({'effort': 'low', 'summary': None}, {'format': {'type': 'text'}, 'verbosity': 'medium'}, True, None))
        message = r['output'][-1]
        self.assertEqual((message['type'], message['role'], message['status'], message['phase']),
                         ('message', 'assistant', 'incomplete', 'final_answer'))
        self.assertEqual(message['content'][0]['annotations'], [])
        self.assertTrue(text_of(r).startswith('Once'), r)
        usage = r['usage']
        self.assertEqual(usage['output_tokens'], 40)
        self.assertEqual(usage['total_tokens'], usage['input_tokens'] + 40)
        self.check_prompt({'input': 'Quick!', 'instructions': 'Be brief.', 'reasoning': {'effort': 'low'}},
                          [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Quick!'}],
                          reasoning_effort='low')

    def test_stream(self):
        whole = self.say(**FOX)
        events = self.server.events(PATH, FOX)
        self.assertEqual([e['sequence_number'] for e in events], list(range(len(events))))
        names = [e['type'].removeprefix('response.') for e in events]
        order = [n for i, n in enumerate(names) if i == 0 or n != names[i - 1]]
        part = ['output_item.added', 'content_part.added', 'KIND.delta', 'KIND.done', 'content_part.done',
                'output_item.done']
        self.assertEqual(order, ['created', 'in_progress'] + [n.replace('KIND', kind) for kind in
                                                              ('reasoning_text', 'output_text') for n in part] +
                         ['incomplete'])
        self.assertGreater(names.count('output_text.delta'), 10)
        first, last = events[0]['response'], events[-1]['response']
        self.assertEqual((first['status'], first['output'], first['usage']), ('in_progress', [], None))
        self.assertEqual(without_ids(last['output']), without_ids(whole['output']))
        self.assertEqual([e['item'] for e in events if e['type'] == 'response.output_item.done'], last['output'])
        self.assertEqual(''.join(e['delta'] for e in events if e['type'] == 'response.output_text.delta'), text_of(last))
        self.assertEqual(self.server.get(f'{PATH}/{last["id"]}'), last)

    def test_tool_loop(self):
        first = self.say(**PARIS)
        self.assertEqual(first['status'], 'completed')
        self.assertEqual(first['tools'], [TOOL])
        call = first['output'][-1]
        self.assertEqual((call['type'], call['name'], call['status']), ('function_call', 'get_weather', 'completed'))
        self.assertEqual(call['arguments'], '{"location":"Paris"}')
        result = {'type': 'function_call_output', 'call_id': call['call_id'], 'output': RESULT}
        items = [{'role': 'user', 'content': PARIS['input']}, *first['output'], result]
        said = first['usage']['input_tokens'] + first['usage']['output_tokens']
        ways = [{'input': items},
                {'input': [items[0], call, {**result, 'output': [{'type': 'input_text', 'text': RESULT}]}]},
                {'input': [result], 'previous_response_id': first['id']},
                {'input': [items[0], {'type': 'item_reference', 'id': call['id']}, result]}]
        tokens = set()
        for way in ways: # the model's own tokens, thinking included, are found in each
            second = self.say(**{**PARIS, **way})
            self.assertIn('20 degrees', text_of(second))
            self.assertGreaterEqual(second['usage']['input_tokens_details']['cached_tokens'], said - 1, way)
            tokens.add(second['usage']['input_tokens'])
        self.assertEqual(len(tokens), 1)
        names = [e['type'].removeprefix('response.') for e in self.server.events(PATH, PARIS)]
        self.assertEqual([n for i, n in enumerate(names) if n != names[i - 1]][-6:],
                         ['output_item.done', 'output_item.added', 'function_call_arguments.delta',
                          'function_call_arguments.done', 'output_item.done', 'completed'])

    def test_items_as_messages(self):
        calls = [{'id': 'call_x', 'type': 'function', 'function': {'name': 'get_weather', 'arguments': '{"location":"Rome"}'}}]
        messages = [{'role': 'developer', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Rome?'},
                    {'role': 'assistant', 'reasoning_content': 'I look.', 'content': 'One moment.', 'tool_calls': calls},
                    {'role': 'tool', 'tool_call_id': 'call_x', 'content': RESULT},
                    {'role': 'assistant', 'content': 'Fine.'}, {'role': 'user', 'content': 'And Oslo?'}]
        items = [{'type': 'message', 'role': 'developer', 'content': [{'type': 'input_text', 'text': 'Be brief.'}]},
                 {'role': 'user', 'content': [{'type': 'input_text', 'text': 'Ro'}, {'type': 'input_text', 'text': 'me?'}]},
                 {'type': 'reasoning', 'id': 'rs_1', 'summary': [], 'encrypted_content': None,
                  'content': [{'type': 'reasoning_text', 'text': 'I look.'}]},
                 {'type': 'message', 'role': 'assistant', 'content': [{'type': 'output_text', 'text': 'One moment.'}]},
                 {'type': 'function_call', 'call_id': 'call_x', 'name': 'get_weather', 'arguments': '{"location":"Rome"}'},
                 {'type': 'function_call_output', 'call_id': 'call_x', 'output': RESULT},
                 {'type': 'reasoning', 'id': 'rs_2', 'summary': [], 'encrypted_content': 'gAAAA'},
                 {'type': 'message', 'role': 'assistant', 'content': [{'type': 'output_text', 'text': 'Fine.'}]},
                 {'role': 'user', 'content': 'And Oslo?'}]
        self.check_prompt({'input': items[:6]}, messages[:4]) # in the middle of a loop thinking stays
        self.check_prompt({'input': items}, messages)

    def test_kept_responses(self):
        first = self.say(**FOX)
        second = self.say(input='And a bee?', previous_response_id=first['id'], temperature=0, max_output_tokens=20)
        self.assertEqual(second['previous_response_id'], first['id'])
        third = self.say(input=[{'role': 'user', 'content': FOX['input']}, *first['output'],
                                {'role': 'user', 'content': 'And a bee?'}], temperature=0, max_output_tokens=20)
        self.assertEqual(without_ids(third['output']), without_ids(second['output']))
        self.assertEqual(third['usage']['input_tokens'], second['usage']['input_tokens'])
        self.assertEqual(self.server.get(f'{PATH}/{second["id"]}'), second)
        listed = self.server.get(f'{PATH}/{third["id"]}/input_items?order=asc&limit=2')
        self.assertEqual([i['type'] for i in listed['data']], ['message', 'reasoning'])
        self.assertTrue(listed['has_more'])
        rest = self.server.get(f'{PATH}/{third["id"]}/input_items?order=asc&after={listed["last_id"]}')
        self.assertEqual([i.get('role') for i in rest['data']], ['assistant', 'user'])
        self.assertEqual(rest['data'][1]['content'], [{'type': 'input_text', 'text': 'And a bee?'}])
        status, _, data = self.server.ask('DELETE', f'{PATH}/{first["id"]}')
        self.assertEqual((status, b'"deleted":true' in data), (200, True))
        self.assertEqual(self.server.ask('GET', f'{PATH}/{first["id"]}')[0], 404)
        fourth = self.say(input='And?', previous_response_id=second['id'], max_output_tokens=1) # it has first in itself
        self.assertGreater(fourth['usage']['input_tokens'], second['usage']['input_tokens'])
        unkept = self.say(**FOX, store=False)
        status, _, reply = self.server.refused(PATH, {'input': 'And?', 'previous_response_id': unkept['id']})
        self.assertEqual((status, reply['error']['code'], reply['error']['param']),
                         (404, 'previous_response_not_found', 'previous_response_id'))

    def test_logprobs(self):
        body = {**FOX, 'include': ['message.output_text.logprobs'], 'top_logprobs': 2}
        r = self.say(**body)
        tokens = r['output'][-1]['content'][0]['logprobs']
        self.assertEqual(''.join(t['token'] for t in tokens), text_of(r))
        self.assertEqual([len(t['top_logprobs']) for t in tokens], [2] * len(tokens))
        told = [t for e in self.server.events(PATH, body) if e['type'] == 'response.output_text.delta'
                for t in e['logprobs']]
        self.assertEqual(told, tokens)

    def test_formats(self):
        schema = {'type': 'object', 'properties': {'mood': {'enum': ['good', 'bad']}}, 'required': ['mood'],
                  'additionalProperties': False}
        form = {'type': 'json_schema', 'name': 'mood', 'schema': schema, 'strict': True}
        r = self.say(**{**FOX, 'text': {'format': form}, 'max_output_tokens': 100})
        self.assertIn(json.loads(text_of(r)), ({'mood': 'good'}, {'mood': 'bad'}))
        self.assertEqual(r['text']['format'], form)
        r = self.say(**{**FOX, 'text': {'format': {'type': 'grammar', 'syntax': 'regex', 'definition': '[ab]{3}!'}}})
        self.assertRegex(text_of(r), '^[ab]{3}!$')
        for choice in ('required', {'type': 'function', 'name': 'get_weather'}):
            r = self.say(**{**FOX, 'max_output_tokens': 100}, tools=[TOOL], tool_choice=choice)
            self.assertEqual([i['name'] for i in r['output'] if i['type'] == 'function_call'], ['get_weather'])
        r = self.say(**PARIS | {'max_output_tokens': 30, 'tool_choice': 'none'})
        self.assertNotIn('function_call', [i['type'] for i in r['output']])

    def test_what_is_repeated(self):
        names = {'user': 'ä' * 512, 'safety_identifier': 'me', 'prompt_cache_key': 'k', 'max_tool_calls': 3,
                 'metadata': {64 * 'k': 512 * 'ä', 'b': ''}, 'text': {'verbosity': 'low'}}
        r = self.say(input='a', max_output_tokens=1, reasoning={'effort': 'minimal'}, **names)
        for name, value in names.items():
            self.assertEqual(r[name], {'format': {'type': 'text'}, **value} if name == 'text' else value)
        self.assertEqual(r['reasoning'], {'effort': 'minimal', 'summary': None})
        r = self.say(input='a', max_output_tokens=1, reasoning={'effort': 'low'}, reasoning_effort='high')
        self.assertEqual(r['reasoning']['effort'], 'high')

    def test_items_of_other_tools(self):
        """They are left out, with what came of them."""
        user = [{'role': 'user', 'content': 'Rome?'}, {'role': 'user', 'content': 'And Oslo?'}]
        others = [{'type': 'web_search_call', 'id': 'ws_1', 'status': 'completed', 'action': {'type': 'search'}},
                  {'type': 'custom_tool_call', 'call_id': 'c1', 'name': 'apply_patch', 'input': 'x'},
                  {'type': 'custom_tool_call_output', 'call_id': 'c1', 'output': 'done'},
                  {'type': 'local_shell_call', 'call_id': 'c2', 'action': {'type': 'exec', 'command': ['ls']}},
                  {'type': 'function_call_output', 'call_id': 'c2', 'output': 'a b'},
                  {'type': 'mcp_list_tools', 'server_label': 'x', 'tools': []}]
        others += [{'type': 'computer_call', 'call_id': f'm{i}'} for i in range(100)]
        others += [{'type': 'function_call_output', 'call_id': f'm{i}', 'output': ''} for i in range(100)]
        self.check_prompt({'input': [user[0], *others, user[1]]}, user)

    def test_pages_of_items(self):
        path = f'{PATH}/{self.say(input="a", max_output_tokens=1)["id"]}'
        for query, param in (('/input_items?order=up', 'order'), ('/input_items?limit=0', 'limit'),
                             ('/input_items?limit=9x', 'limit'), ('/input_items?limit=101', 'limit'),
                             ('/input_items?after=msg_0', 'after'), ('?stream=true', 'stream')):
            status, _, data = self.server.ask('GET', path + query)
            self.assertEqual((status, json.loads(data)['error']['param']), (400, param))
        self.assertEqual(self.server.get(path + '?stream=false')['object'], 'response')

    def test_long_conversations(self):
        items = []
        for i in range(40):
            items += [{'role': 'user', 'content': f'Tell me a story about a fox and the number {i}.'},
                      {'role': 'assistant', 'content': 'Once upon a time there was a fox who did not count.'}]
        items.append({'role': 'user', 'content': FOX['input']})
        status, _, reply = self.server.refused(PATH, {**FOX, 'input': items})
        self.assertEqual((status, reply['error']['code']), (400, 'context_length_exceeded'))
        r = self.say(**FOX | {'input': items, 'truncation': 'auto'})
        self.assertEqual(r['truncation'], 'auto')
        self.assertTrue(500 < r['usage']['input_tokens'] <= 700 - 40, r['usage'])

    def test_wrong(self):
        image = [{'role': 'user', 'content': [{'type': 'input_image', 'image_url': 'data:'}]}]
        for body, param, code in [
                ({}, 'input', 'missing_required_parameter'), ({'input': 7}, 'input', 'invalid_type'),
                ({'input': [7]}, 'input[0]', 'invalid_type'),
                ({'input': image}, 'input[0].content[0]', 'unsupported_value'),
                ({'input': [{'role': 'robot', 'content': 'a'}]}, 'input[0].role', 'invalid_value'),
                ({'input': [{'type': 'opinion'}]}, 'input[0].type', 'unsupported_value'),
                ({'input': [{'type': 'function_call_output', 'call_id': 'x', 'output': ''}]}, 'input[0].call_id', 'invalid_value'),
                ({'input': [{'type': 'item_reference', 'id': 'msg_' + 32 * '0' + '_0'}]}, 'input[0].id', 'item_not_found'),
                ({'input': 'a', 'background': True}, 'background', 'unsupported_value'),
                ({'input': 'a', 'conversation': 'conv_1'}, 'conversation', 'unsupported_value'),
                ({'input': 'a', 'truncation': 'middle'}, 'truncation', 'invalid_value'),
                ({'input': 'a', 'temperature': 'hot'}, 'temperature', 'invalid_type'),
                ({'input': 'a', 'max_output_tokens': 0}, 'max_output_tokens', 'invalid_value'),
                ({'input': 'a', 'reasoning': {'effort': 'most'}}, 'reasoning.effort', 'invalid_value'),
                ({'input': 'a', 'reasoning': {'effort': 5}}, 'reasoning.effort', 'invalid_value'),
                ({'input': 'a', 'reasoning': {'effort': '","x":"'}, 'reasoning_effort': 'low'}, 'reasoning.effort', 'invalid_value'),
                ({'input': 'a', 'reasoning_effort': 7}, 'reasoning_effort', 'invalid_value'),
                ({'input': 'a', 'text': {'verbosity': 'chatty'}}, 'text.verbosity', 'invalid_value'),
                ({'input': 'a', 'response_format': {'type': 'json_object'}}, 'response_format', 'unsupported_value'),
                ({'input': 'a', 'metadata': {'a': 1}}, 'metadata', 'invalid_value'),
                ({'input': 'a', 'metadata': {'a': 'ä' * 513}}, 'metadata', 'invalid_value'),
                ({'input': 'a', 'metadata': {65 * 'a': ''}}, 'metadata', 'invalid_value'),
                ({'input': 'a', 'metadata': {str(i): '' for i in range(17)}}, 'metadata', 'invalid_value'),
                ({'input': 'a', 'user': {'a': 1}}, 'user', 'invalid_type'),
                ({'input': 'a', 'safety_identifier': 513 * 'a'}, 'safety_identifier', 'invalid_value'),
                ({'input': 'a', 'prompt_cache_key': [1]}, 'prompt_cache_key', 'invalid_type'),
                ({'input': 'a', 'max_tool_calls': 'z'}, 'max_tool_calls', 'invalid_type'),
                ({'input': 'a', 'tools': [TOOL], 'tool_choice': {'type': 'function', 'name': 'get_weather', 'x': 'x' * 2**20}},
                 None, 'invalid_value'),
                ({'input': 'a', 'text': {'format': {'type': 'yaml'}}}, 'text.format.type', 'unsupported_value'),
                ({'input': 'a', 'tool_choice': 'required'}, 'tool_choice', 'invalid_value')]:
            status, headers, reply = self.server.refused(PATH, body)
            self.assertEqual((status, reply['error']['param'], reply['error']['code'], reply['error']['type']),
                             (400, param, code, 'invalid_request_error'), reply)


@unittest.skipUnless(openai, 'the Python package openai is not installed')
class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('-c', '700')
        cls.addClassCleanup(cls.server.close)
        cls.client = openai.OpenAI(base_url=cls.server.url + '/v1', api_key='none', max_retries=0)

    def test_stream_and_tools(self):
        ask = {'model': 'stories', 'temperature': 0, 'tools': [TOOL]}
        with self.client.responses.stream(input=PARIS['input'], **ask) as stream:
            for _ in stream:
                pass
            first = stream.get_final_response()
        call = first.output[-1]
        items = [{'role': 'user', 'content': PARIS['input']}, *[item.model_dump() for item in first.output],
                 {'type': 'function_call_output', 'call_id': call.call_id, 'output': RESULT}]
        second = self.client.responses.create(input=items, **ask)
        self.assertIn('20 degrees', second.output_text)
        self.assertEqual(self.client.responses.retrieve(second.id).output_text, second.output_text)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve('resp_0')

    def test_parse(self):
        class Mood(pydantic.BaseModel):
            good: bool

        r = self.client.responses.parse(model='stories', input='Tell me about a fox.', text_format=Mood,
                                        max_output_tokens=300)
        self.assertIsInstance(r.output_parsed.good, bool)


if __name__ == '__main__':
    unittest.main()
