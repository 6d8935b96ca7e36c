"""The `ollama` package against a server of stories."""
import asyncio
import typing
import unittest

from serving import Server, skip_without

skip_without('ollama', 'pydantic')
import ollama
import pydantic

USER = [{'role': 'user', 'content': 'Tell me a story about a fox.'}]


class Mood(pydantic.BaseModel, extra='forbid'):
    mood: typing.Literal['glad', 'sad']
    age: int = pydantic.Field(ge=0, le=120)


def get_weather(location: str) -> str:
    """The weather.

    Args:
      location: City
    """
    return '{"temperature": 21, "where": "%s"}' % location


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server())
        cls.client = ollama.Client(cls.server.url)

    def test_models(self):
        self.assertEqual([m.model for m in self.client.list().models], ['stories'])
        self.assertEqual([m.model for m in self.client.ps().models], ['stories'])
        shown = self.client.show('stories')
        self.assertIn('tools', shown.capabilities)
        self.assertGreater(shown.modelinfo['gptoss.context_length'], 1000)

    def test_chat_and_stream(self):
        options = {'seed': 7, 'num_predict': 80}
        whole = self.client.chat('stories', USER, options=options)
        self.assertTrue(whole.done)
        self.assertGreater(whole.eval_count, 1)
        parts = list(self.client.chat('stories', USER, options=options, stream=True))
        self.assertEqual(''.join(p.message.content or '' for p in parts), whole.message.content)
        self.assertEqual(''.join(p.message.thinking or '' for p in parts), whole.message.thinking or '')

    def test_tool_loop(self):
        messages = [{'role': 'user', 'content': 'What is the weather in Paris?'}]
        first = self.client.chat('stories', messages, tools=[get_weather], options={'temperature': 0})
        call, = first.message.tool_calls
        self.assertEqual(call.function.name, 'get_weather')
        messages += [first.message, {'role': 'tool', 'tool_name': 'get_weather',
                                     'content': get_weather(**call.function.arguments)}]
        second = self.client.chat('stories', messages, tools=[get_weather], options={'temperature': 0})
        self.assertTrue(second.message.content)

    def test_format(self):
        told = self.client.chat('stories', USER, format=Mood.model_json_schema(), think='low',
                                options={'num_predict': 400, 'seed': 1})
        Mood.model_validate_json(told.message.content)

    def test_generate(self):
        told = self.client.generate('stories', 'Tell me a story.', options={'num_predict': 40})
        self.assertTrue(told.response or told.thinking)
        told = self.client.generate('stories', 'Once upon a time', raw=True, options={'num_predict': 10})
        self.assertEqual(told.eval_count, 10)

    def test_errors(self):
        with self.assertRaises(ollama.ResponseError) as e:
            self.client.chat('stories', [{'role': 'nobody', 'content': 'x'}])
        self.assertEqual(e.exception.status_code, 400)
        with self.assertRaises(ollama.ResponseError) as e:
            self.client.embed('stories', 'x')
        self.assertEqual(e.exception.status_code, 501)

    def test_async(self):
        async def some():
            client = ollama.AsyncClient(self.server.url)
            return [part async for part in await client.chat('stories', USER, stream=True, options={'num_predict': 20})]
        self.assertTrue(asyncio.run(some())[-1].done)


if __name__ == '__main__':
    unittest.main()
