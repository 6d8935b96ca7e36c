"""The `anthropic` package against a server of stories."""
import unittest

from serving import WEATHER, Server, skip_without

skip_without('anthropic')
import anthropic

USER = [{'role': 'user', 'content': 'Tell me a story about a fox.'}]
ASK = [{'role': 'user', 'content': 'What is the weather in Paris?'}]
TOOLS = [{'name': 'get_weather', 'description': 'The weather', 'input_schema': WEATHER}]


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server('--api-key', 'secret'))
        cls.client = anthropic.Anthropic(base_url=cls.server.url, api_key='secret', max_retries=0)

    def test_message(self):
        told = self.client.messages.create(model='stories', messages=USER, max_tokens=300, system='Be brief.')
        self.assertEqual((told.type, told.role), ('message', 'assistant'))
        self.assertIn(told.stop_reason, ('end_turn', 'max_tokens'))
        self.assertTrue(told.content)
        self.assertGreater(told.usage.input_tokens, 10)

    def test_stream(self):
        with self.client.messages.stream(model='stories', messages=USER, max_tokens=300) as stream:
            text = ''.join(stream.text_stream)
            told = stream.get_final_message()
        self.assertEqual(text, ''.join(block.text for block in told.content if block.type == 'text'))
        self.assertGreater(told.usage.output_tokens, 1)

    def test_tool_loop(self):
        first = self.client.messages.create(model='stories', messages=ASK, tools=TOOLS, max_tokens=300,
                                            extra_body={'temperature': 0})
        self.assertEqual(first.stop_reason, 'tool_use')
        call, = [block for block in first.content if block.type == 'tool_use']
        self.assertEqual(call.name, 'get_weather')
        self.assertIn('location', call.input)
        messages = ASK + [
            {'role': 'assistant', 'content': first.content},
            {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': call.id, 'content': '{"temperature": 21}'}]}]
        second = self.client.messages.create(model='stories', messages=messages, tools=TOOLS, max_tokens=300,
                                             extra_body={'temperature': 0})
        self.assertTrue([block for block in second.content if block.type == 'text'])

    def test_stream_with_thinking_and_tools(self):
        ask = {'model': 'stories', 'tools': TOOLS, 'max_tokens': 300, 'extra_body': {'temperature': 0},
               'thinking': {'type': 'enabled', 'budget_tokens': 4096}}
        with self.client.messages.stream(messages=ASK, **ask) as stream:
            kinds = {event.type for event in stream}
            first = stream.get_final_message()
        self.assertLessEqual({'thinking', 'signature', 'input_json', 'message_stop'}, kinds)
        self.assertEqual([block.type for block in first.content], ['thinking', 'tool_use'])
        call = first.content[-1]
        self.assertIn('location', call.input)
        result = {'type': 'tool_result', 'tool_use_id': call.id, 'content': [{'type': 'text', 'text': '{"temperature": 21}'}]}
        second = self.client.messages.create(messages=[*ASK, {'role': 'assistant', 'content': first.content},
                                                       {'role': 'user', 'content': [result]}], **ask)
        self.assertTrue([block.text for block in second.content if block.type == 'text'])
        # the model's own tokens are found again, the thinking's too
        said = first.usage.input_tokens + first.usage.cache_read_input_tokens + first.usage.output_tokens
        self.assertGreaterEqual(second.usage.cache_read_input_tokens, said - 16)

    def test_models(self):
        self.assertEqual([(m.id, m.type) for m in self.client.models.list()], [('stories', 'model')])
        self.assertEqual(self.client.models.retrieve('stories').display_name, 'stories')

    def test_count(self):
        told = self.client.messages.count_tokens(model='stories', messages=USER)
        made = self.client.messages.create(model='stories', messages=USER, max_tokens=1)
        self.assertEqual(told.input_tokens, made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0))

    def test_errors(self):
        with self.assertRaises(anthropic.BadRequestError):
            self.client.messages.create(model='stories', messages=[], max_tokens=10)
        other = anthropic.Anthropic(base_url=self.server.url, api_key='wrong', max_retries=0)
        with self.assertRaises(anthropic.AuthenticationError):
            other.messages.create(model='stories', messages=USER, max_tokens=10)


if __name__ == '__main__':
    unittest.main()
