"""Is /openapi.json true? schemathesis makes requests of it, right and wrong ones, and looks at the replies. What the
description calls right is answered: schemathesis_test.py [EXAMPLES [strict]]. With "strict" what it calls wrong has to be
refused, too; the server passes over fields that a request does not use, so that this finds more than defects."""
import re
import sys
import unittest

from serving import Server, skip_without

skip_without('schemathesis', 'hypothesis')
import hypothesis
import schemathesis
from schemathesis.specs.openapi import checks

STRICT = sys.argv[-1] == 'strict' and bool(sys.argv.pop())
EXAMPLES = int(sys.argv.pop(1)) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 5
BUDGETS = ('max_tokens', 'max_completion_tokens', 'max_output_tokens')


def no_failure(context, response, case):
    """501 is what is refused by name."""
    assert response.status_code < 500 or response.status_code == 501, f'the server failed: {response.text}'


# What no schema says: things that are not there, or not together, and schemas and patterns within a request.
BEYOND_SCHEMAS = re.compile(
    r'is no token|token ids with|tokens are 0 to|U\+0000|a result, but no call|a result of a tool whose|no call before|no tool_use block|'
    r'the last message is|not found|no such item|there are no tools|no tool is called|top_logprobs is only|min_tokens is|'
    r'maximum context length|there is no model|: #|pattern|function: expected')


def right_is_answered(context, response, case):
    if case.meta.generation.mode.is_positive and response.status_code in (400, 404):
        assert BEYOND_SCHEMAS.search(response.text), f'refused though it is as described: {response.text}'


CHECKS = [no_failure, right_is_answered, checks.status_code_conformance, checks.content_type_conformance,
          checks.response_schema_conformance] + [checks.negative_data_rejection] * STRICT


def quick(body):
    """The same request with a short answer."""
    if not isinstance(body, dict):
        return
    for name in BUDGETS:
        if isinstance(body.get(name), int) and not isinstance(body[name], bool) and body[name] > 4:
            body[name] = 4
    for name in ('n', 'best_of'):
        if isinstance(body.get(name), int) and body[name] > 2:
            body[name] = 2


class Description(unittest.TestCase):
    def test_replies(self):
        # answers are short where a request says nothing of it
        with Server('--max-tokens', '4') as server:
            schema = schemathesis.openapi.from_url(server.url + '/openapi.json')
            seen = 0
            for result in schema.get_all_operations():
                operation = result.ok()
                with self.subTest(operation=operation.label):
                    self.try_out(server, operation)
                    seen += 1
            self.assertGreater(seen, 20)
            self.assertEqual(server.get('/ready').status, 200)

    def try_out(self, server, operation):
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not operation.body:
                continue  # nothing can be wrong with it

            @hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
                                 suppress_health_check=list(hypothesis.HealthCheck),
                                 phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                quick(case.body)
                case.call_and_validate(checks=CHECKS)
            check()


if __name__ == '__main__':
    unittest.main()
