"""The `openai` package against a server of stories."""
import json
import typing
import unittest

from serving import WEATHER, Server, skip_without

skip_without('openai', 'pydantic')
import openai
import pydantic

USER = [{'role': 'user', 'content': 'Tell me a story about a fox.'}]
ASK = [{'role': 'user', 'content': 'What is the weather in Paris?'}]
TOOLS = [{'type': 'function', 'function': {'name': 'get_weather', 'description': 'The weather', 'parameters': WEATHER}}]


class Mood(pydantic.BaseModel):
    mood: typing.Literal['glad', 'sad']
    age: int = pydantic.Field(ge=0, le=120)


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server('--api-key', 'secret'))
        cls.client = openai.OpenAI(base_url=cls.server.url + '/v1', api_key='secret', max_retries=0)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ['stories'])
        self.assertEqual(self.client.models.retrieve('stories').id, 'stories')

    def test_key(self):
        other = openai.OpenAI(base_url=self.server.url + '/v1', api_key='wrong', max_retries=0)
        with self.assertRaises(openai.AuthenticationError):
            other.models.list()

    def test_chat(self):
        told = self.client.chat.completions.create(model='stories', messages=USER, max_completion_tokens=60, seed=1,
                                                   logprobs=True, top_logprobs=2, n=2)
        self.assertEqual([c.index for c in told.choices], [0, 1])
        for choice in told.choices:
            self.assertIn(choice.finish_reason, ('stop', 'length'))
            self.assertEqual(''.join(t.token for t in choice.logprobs.content), choice.message.content or '')
        self.assertLessEqual(told.usage.completion_tokens, 120)
        self.assertGreater(told.usage.prompt_tokens, 10)

    def test_stream(self):
        whole = self.client.chat.completions.create(model='stories', messages=USER, max_tokens=60, seed=1)
        stream = self.client.chat.completions.create(model='stories', messages=USER, max_tokens=60, seed=1, stream=True,
                                                     stream_options={'include_usage': True})
        chunks = list(stream)
        deltas = [c.choices[0].delta for c in chunks if c.choices]
        self.assertEqual(''.join(d.content or '' for d in deltas), whole.choices[0].message.content or '')
        thinking = ''.join(getattr(d, 'reasoning_content', None) or '' for d in deltas)
        self.assertEqual(thinking, getattr(whole.choices[0].message, 'reasoning_content', None) or '')
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason],
                         [whole.choices[0].finish_reason])

    def test_tool_loop(self):
        messages = list(ASK)
        first = self.client.chat.completions.create(model='stories', messages=messages, tools=TOOLS, temperature=0)
        self.assertEqual(first.choices[0].finish_reason, 'tool_calls')
        call, = first.choices[0].message.tool_calls
        self.assertEqual(call.function.name, 'get_weather')
        self.assertIsInstance(json.loads(call.function.arguments), dict)
        messages.append(first.choices[0].message)
        messages.append({'role': 'tool', 'tool_call_id': call.id, 'content': '{"temperature": 21}'})
        second = self.client.chat.completions.create(model='stories', messages=messages, tools=TOOLS, temperature=0)
        self.assertTrue(second.choices[0].message.content)
        # what the model said is replayed, its thinking too, so that all of it is found in the cache
        known = first.usage.prompt_tokens + first.usage.completion_tokens
        self.assertGreaterEqual(second.usage.prompt_tokens_details.cached_tokens, known - 16)

    def test_tool_stream(self):
        with self.client.chat.completions.stream(model='stories', messages=ASK, tools=TOOLS, temperature=0) as stream:
            for _ in stream:
                pass
            told = stream.get_final_completion()
        call, = told.choices[0].message.tool_calls
        self.assertEqual(call.function.name, 'get_weather')
        self.assertIsInstance(json.loads(call.function.arguments), dict)

    def test_named_tool(self):
        told = self.client.chat.completions.create(
            model='stories', messages=USER, tools=TOOLS, seed=2, max_tokens=400,
            tool_choice={'type': 'function', 'function': {'name': 'get_weather'}})
        self.assertEqual(told.choices[0].message.tool_calls[0].function.name, 'get_weather')

    def test_parse(self):
        told = self.client.chat.completions.parse(model='stories', messages=USER, response_format=Mood, seed=1,
                                                  max_tokens=400, temperature=0.5)
        self.assertIsInstance(told.choices[0].message.parsed, Mood)

    def test_responses(self):
        told = self.client.responses.create(model='stories', input='Tell me a story.', max_output_tokens=300)
        self.assertIn(told.status, ('completed', 'incomplete'))
        again = self.client.responses.create(model='stories', input='Another one, please.', max_output_tokens=60,
                                             previous_response_id=told.id)
        self.assertGreater(again.usage.input_tokens, told.usage.input_tokens)
        kinds = [event.type for event in self.client.responses.create(model='stories', input='Tell me a story.',
                                                                      max_output_tokens=60, stream=True)]
        self.assertEqual(kinds[0], 'response.created')
        self.assertIn(kinds[-1], ('response.completed', 'response.incomplete'))
        parsed = self.client.responses.parse(model='stories', input='Tell me a story.', text_format=Mood,
                                             max_output_tokens=400)
        self.assertIsInstance(parsed.output_parsed, Mood)

    def test_responses_tool_loop(self):
        tools = [{'type': 'function', 'strict': False, **TOOLS[0]['function']}]
        ask = {'model': 'stories', 'tools': tools, 'temperature': 0}
        with self.client.responses.stream(input=ASK, **ask) as stream:
            events = list(stream)
            first = stream.get_final_response()
        call, = [item for item in first.output if item.type == 'function_call']
        self.assertEqual(call.name, 'get_weather')
        self.assertIsInstance(json.loads(call.arguments), dict)
        self.assertEqual(''.join(e.delta for e in events if e.type == 'response.function_call_arguments.delta'), call.arguments)
        done, = [e for e in events if e.type == 'response.function_call_arguments.done']
        self.assertEqual((done.name, done.arguments), (call.name, call.arguments))
        result = {'type': 'function_call_output', 'call_id': call.call_id, 'output': '{"temperature": 21}'}
        known = first.usage.input_tokens + first.usage.output_tokens
        texts = set()
        for items, previous in (([*ASK, *first.output, result], None), ([result], first.id)):
            second = self.client.responses.create(input=items, previous_response_id=previous, **ask)
            texts.add(second.output_text)
            self.assertGreaterEqual(second.usage.input_tokens_details.cached_tokens, known - 16)
        self.assertEqual((len(texts), '' in texts), (1, False))

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as e:
            self.client.chat.completions.create(model='stories', messages=USER, temperature=11)
        self.assertEqual(e.exception.param, 'temperature')
        with self.assertRaises(openai.BadRequestError) as e:
            self.client.chat.completions.create(model='stories', messages=[{'role': 'user', 'content': 'fox ' * 200000}])
        self.assertEqual(e.exception.code, 'context_length_exceeded')


if __name__ == '__main__':
    unittest.main()
