#ifndef MX_API_RULES_H
#define MX_API_RULES_H

#include "api/request.h"
#include "grammar/rules.h"

/* What a request says about the form of its answer, to mx_rules. `param`: the field, for the problem
 * ("tools[0].function.parameters"). What is wrong with the request goes to `problem` (return MX_OK), the status is
 * about memory. Compiled schemas are kept in a cache of bounded memory that all requests share. */

/* The final message is valid against the schema / is a JSON object / matches the regular expression (all of it). */
mx_status mx_api_rules_schema(mx_rules *rules, const mx_json *schema, bool strict, const char *param,
                              mx_api_problem *problem, mx_error *error);
mx_status mx_api_rules_json(mx_rules *rules, mx_error *error);
mx_status mx_api_rules_regex(mx_rules *rules, const char *pattern, size_t size, const char *param,
                             mx_api_problem *problem, mx_error *error);
/* A tool there is. `strict`: its arguments are valid against `parameters` (NULL: an empty object). Where the choice is
 * required or named its arguments are at least a JSON object. `tool`: as mx_api_chat sanitises it. */
mx_status mx_api_rules_tool(mx_rules *rules, const char *tool, const mx_json *parameters, bool strict,
                            const char *param, mx_api_problem *problem, mx_error *error);
/* After all tools. `named`: of MX_TOOLS_NAMED; not among the tools: a problem. */
mx_status mx_api_rules_choose(mx_rules *rules, mx_tool_choice choice, const char *named, const char *param,
                              mx_api_problem *problem, mx_error *error);

/* Makes what the first masks under new grammars need, in the calling thread, which takes about so many seconds at most;
 * of grammars that came before nothing is to be done. */
void mx_api_rules_prepare(const mx_rules *rules, mx_vocabulary *vocabulary, double seconds);

/* All of it from a chat's body in OpenAI's form: "tools", "tool_choice", "parallel_tool_calls", "response_format"
 * ({"type": "text" | "json_object" | "json_schema" | "grammar", ...}; "grammar": {"syntax": "regex", "definition"} or
 * {"type": "regex", "pattern"}); tools that are no functions are left out with a warning. *out NULL: nothing said.
 * `tools`: those of the settings, where the body brings none (NULL: those have none either). `chat` false: a
 * completion, of which only "response_format" counts, from its first token on. */
mx_status mx_api_read_rules(const mx_json *fields, const mx_json *tools, bool chat, mx_rules **out,
                            mx_api_problem *problem, mx_error *error);

#endif
