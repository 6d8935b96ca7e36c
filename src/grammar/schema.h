#ifndef MX_GRAMMAR_SCHEMA_H
#define MX_GRAMMAR_SCHEMA_H

#include "base/json.h"
#include "grammar/grammar.h"

/* JSON Schema (draft 2020-12) to a grammar of the JSON texts that are valid against it.
 *
 * Every value has its spellings in one order: members of an object stand in the order of "properties", then others
 * (patternProperties, additionalProperties). Between tokens `spaces` says what may stand. A keyword that is understood
 * by no part of this is MX_UNSUPPORTED, named with its place as a JSON pointer ("#/properties/age: \"not\" is not
 * supported"), never passed over; annotations (title, description, default, examples, $comment, deprecated, readOnly,
 * writeOnly, contentEncoding, contentMediaType ...) say nothing about values. docs/structured_output.md has the list.
 * A schema that no value satisfies, or that is wrong by itself, is MX_INVALID_ARGUMENT. */
typedef enum mx_schema_spaces {
    MX_SPACES_NONE, /* none: {"a":1} */
    MX_SPACES_FEW,  /* at most one space or, behind , { [ and before } ], one line break with indentation: what
                       models write, and nothing without end */
} mx_schema_spaces;

typedef struct mx_schema_options {
    mx_schema_spaces spaces;
    bool openai_strict; /* OpenAI's rules of "strict": additionalProperties absent means false, all properties are
                           required where "required" is absent */
} mx_schema_options;

/* Steps (see mx_regular_allow) that the automata of one schema may take together: about a second. Where the caller's
 * thread is allowed less, less; of what it is allowed goes what compiling took, the grammar's size included. */
enum { MX_SCHEMA_WORK = 150000000 };

/* `schema`: an object or true or false. `name` begins messages ("response_format.json_schema.schema"). */
mx_status mx_schema_compile(const mx_json *schema, const char *name, const mx_schema_options *options, mx_grammar **out,
                            mx_error *error);
/* Any JSON object, as deep as it comes. */
mx_status mx_schema_any_object(const mx_schema_options *options, mx_grammar **out, mx_error *error);

#endif
