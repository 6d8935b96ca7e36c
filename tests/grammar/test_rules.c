/* Rules of answers: which headers may open, what ends a message, that masks say exactly what accept takes, that what is
 * rolled back never was; and answers of models at temperature 2, true to what was asked. With "full" 200 of each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "api/rules.h"
#include "engine/model_parts.h"
#include "model/synthetic.h"
#include "tokenizer/harmony.h"
#include "turn/turn.h"

static mx_tokenizer *tokenizer;
static mx_vocabulary *vocabulary;
static mx_ids stop;
static int32_t vocab;
static int samples = 8;

static const char *source_path(const char *name) {
    static char path[4096];
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, "%s/%s", root ? root : ".", name);
    return path;
}

#define WEATHER                                                                                                        \
    "{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"strict\":true,\"parameters\":{\"type\":"          \
    "\"object\",\"properties\":{\"location\":{\"type\":\"string\"}},\"required\":[\"location\"],"                      \
    "\"additionalProperties\":false}}}"
#define CLOCK "{\"type\":\"function\",\"function\":{\"name\":\"get time\",\"parameters\":{\"type\":\"object\"}}}"
#define BOTH  "\"tools\":[" WEATHER "," CLOCK "]"
#define YES_OR_NO                                                                                                      \
    "\"response_format\":{\"type\":\"grammar\",\"grammar\":{\"syntax\":\"regex\",\"definition\":\"yes|no+\"}}"

/* ---- helpers ------------------------------------------------------------------------------------------------------
 */
static mx_rules *rules_of(const char *json, bool chat, mx_api_problem *problem) {
    mx_json_document *document;
    mx_error error;
    mx_rules *rules = NULL;
    *problem = (mx_api_problem){0};
    if (mx_json_parse("test", json, strlen(json), &document, &error)) fail_msg("%s", error.text);
    if (mx_api_read_rules(mx_json_root(document), NULL, chat, &rules, problem, &error)) fail_msg("%s", error.text);
    mx_json_free(document);
    return rules;
}

static mx_constraint constraint_of(const char *json, bool chat) {
    mx_api_problem problem;
    mx_error error;
    mx_constraint c;
    mx_rules *rules = rules_of(json, chat, &problem);
    if (problem.http_status) fail_msg("%s: %s", json, problem.text);
    assert_non_null(rules);
    if (mx_rules_constraint(rules, tokenizer, vocabulary, &stop, &c, &error)) fail_msg("%s: %s", json, error.text);
    mx_rules_free(rules);
    return c;
}

static mx_ids tokens_of(const char *text) {
    mx_ids ids = {0};
    mx_error error;
    if (mx_encode_special(tokenizer, text, strlen(text), &ids, &error)) fail_msg("%s", error.text);
    return ids;
}

/* The same, every byte a token of its own. */
static mx_ids bytes_of(const char *text) {
    mx_ids ids = {0}, whole = tokens_of(text);
    mx_error error;
    for (int64_t i = 0; i < whole.count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(tokenizer, whole.data[i], &size);
        if (mx_is_special(tokenizer, whole.data[i]))
            assert_true(mx_ids_add(&ids, whole.data[i]));
        else
            for (size_t b = 0; b < size; b++) assert_int_equal(mx_encode(tokenizer, bytes + b, 1, &ids, &error), MX_OK);
    }
    mx_ids_free(&whole);
    return ids;
}

static bool allowed(const mx_constraint *c, int32_t token) {
    uint32_t *bits = malloc(((size_t)vocab + 31) / 32 * sizeof *bits);
    memset(bits, 0xff, ((size_t)vocab + 31) / 32 * sizeof *bits);
    const bool is = !c->mask(c->user, bits, vocab) || (bits[token >> 5] >> (token & 31) & 1);
    free(bits);
    return is;
}

/* How many of the tokens are taken, each of which its mask allowed; *last: what the last of them said. */
static int64_t feed_ids(const mx_constraint *c, const mx_ids *ids, mx_verdict *last) {
    *last = MX_CONTINUE;
    for (int64_t i = 0; i < ids->count; i++) {
        const bool may = allowed(c, ids->data[i]);
        const mx_verdict verdict = c->accept(c->user, ids->data[i]);
        if (may != (verdict != MX_REJECTED))
            fail_msg("token %d at %lld: the mask says %d, accept %d", ids->data[i], (long long)i, may, (int)verdict);
        if (!may) return i;
        *last = verdict;
    }
    return ids->count;
}

typedef enum fate { REJECTED, GOES_ON, FINISHED } fate;

static fate fate_of(const mx_constraint *c, mx_ids ids) {
    mx_verdict last;
    const int64_t taken = feed_ids(c, &ids, &last);
    const fate result = taken < ids.count ? REJECTED : last == MX_FINISHED ? FINISHED : GOES_ON;
    mx_ids_free(&ids);
    return result;
}

static void check(const char *json, bool chat, const char *text, fate expected) {
    for (int bytes = 0; bytes < 2; bytes++) {
        mx_constraint c = constraint_of(json, chat);
        const fate found = fate_of(&c, bytes ? bytes_of(text) : tokens_of(text));
        c.destroy(c.user);
        if (found != expected)
            fail_msg("%s: \"%s\"%s: expected %d, found %d", json, text, bytes ? " in bytes" : "", expected, found);
    }
}

/* ---- headers ------------------------------------------------------------------------------------------------------
 */
#define THOUGHT "<|channel|>analysis<|message|>Hm. {\"a\"<|end|><|start|>assistant"
#define CALL    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
#define EARLY   " to=functions.get_weather<|channel|>commentary json<|message|>"
#define OSLO    "{\"location\":\"Oslo\"}"

static void required(void **state) {
    static const struct {
        const char *text;
        fate fate;
    } cases[] = {
        {CALL OSLO "<|call|>", FINISHED},
        {EARLY OSLO "<|call|>", FINISHED},
        {THOUGHT CALL OSLO "<|call|>", FINISHED},
        {THOUGHT EARLY OSLO "<|call|>", FINISHED},
        {" to=functions.get_weather<|channel|>commentary<|constrain|>json<|message|>" OSLO, GOES_ON},
        {"<|channel|>commentary to=functions.get_weather<|message|>" OSLO "<|call|>", FINISHED},
        {"<|channel|>commentary to=functions.get_weather code<|message|>" OSLO, GOES_ON},
        {"<|channel|>commentary to=functions.get_time<|message|>{\"a\":[1,\"}\"]}<|call|>", FINISHED},
        {"<|channel|>commentary to=functions.get_time<|message|>[", REJECTED},
        {CALL OSLO "<|return|>", REJECTED},
        {CALL OSLO "<|end|>", REJECTED},
        {CALL "<|call|>", REJECTED},
        {CALL "{\"place\"", REJECTED},
        {CALL "{\"location\":1", REJECTED},
        {"<|channel|>final", REJECTED},
        {THOUGHT "<|channel|>final", REJECTED},
        {THOUGHT "<|channel|>analysis", REJECTED},
        {THOUGHT "<|start|>", REJECTED},
        {"<|channel|>commentary<|message|>", REJECTED},
        {"<|channel|>commentary to=functions.other", REJECTED},
        {"<|channel|>commentary to=browser", REJECTED},
        {"<|channel|>commentary to=functions.get<|message|>", REJECTED},
        {"<|channel|>analysis to=functions.get_weather", REJECTED},
        {"<|channel|>analysis<|message|>Hm.<|return|>", REJECTED},
        {"<|channel|>analysis<|message|>Hm.<|end|>assistant", REJECTED},
        {"<|channel|>analysis<|message|>Hm.<|end|><|start|>user", REJECTED},
        {"<|channel|>analysis <|constrain|>json", REJECTED},
        {"<|channel|><|message|>", REJECTED},
        {"<|message|>", REJECTED},
        {"hello", REJECTED},
        {"<|channel|>commentary to=functions.get_weather <|message|>", REJECTED},
        {"<|channel|>commentary to=functions.get_weather json<|constrain|>", REJECTED},
        {"<|channel|>commentary to=functions.get_weather <|constrain|><|message|>", REJECTED},
        {EARLY OSLO "<|call|><|start|>", REJECTED},
        {"<|start|>assistant<|start|>", REJECTED},
        {" to=functions.get_weather<|channel|>final", REJECTED},
        {" to=functions.get_weather<|channel|>commentary to=", REJECTED},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check("{" BOTH ",\"tool_choice\":\"required\"}", true, cases[i].text, cases[i].fate);
}

static void choices(void **state) {
#define NAMED "{" BOTH ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"get time\"}}}"
#define ALLOWED                                                                                                        \
    "{" BOTH ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\",\"tools\":[{"      \
    "\"type\":\"function\",\"function\":{\"name\":\"get time\"}}]}}}"
#define NONE     "{" BOTH ",\"tool_choice\":\"none\"}"
#define NO_TOOLS "{\"tool_choice\":\"none\"}"
#define FORBIDDEN                                                                                                      \
    "{" BOTH ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"auto\",\"tools\":[]}}}"
#define AUTO "{" BOTH "}"
#define TOOL(name, parameters)                                                                                         \
    "{\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"parameters\":" parameters "}}"
#define INTEGER "\"properties\":{\"a\":{\"type\":\"integer\"}}"
#define GUESS   /* schemas that can be compiled are kept to without "strict", too, where a call has to be made */      \
    "{\"tools\":[" TOOL("f", "{\"type\":\"object\"," INTEGER "}") "," TOOL(                                            \
        "g", "{\"type\":\"object\",\"frob\":1}") "," TOOL("h",                                                         \
                                                          "{\"type\":\"string\"}") "],\"tool_choice\":\"required\"}"
#define UNTYPED        "{\"tools\":[{\"name\":\"f\",\"strict\":true,\"parameters\":{" INTEGER "}}]}"
#define TEXT           "{" YES_OR_NO "}"
#define TEXT_AND_TOOLS "{" BOTH "," YES_OR_NO "}"
    static const struct {
        const char *json, *text;
        fate fate;
    } cases[] = {
        {NAMED, "<|channel|>commentary to=functions.get_time<|message|>{}<|call|>", FINISHED},
        {NAMED, "<|channel|>commentary to=functions.get_weather", REJECTED},
        {NAMED, EARLY, REJECTED},
        {NAMED, THOUGHT "<|channel|>final", REJECTED},
        {ALLOWED, "<|channel|>commentary to=functions.get_time<|message|>{}<|call|>", FINISHED},
        {ALLOWED, CALL, REJECTED},
        {NONE, THOUGHT "<|channel|>final<|message|>No.<|return|>", FINISHED},
        {NONE, THOUGHT THOUGHT "<|channel|>final<|message|>No.", GOES_ON},
        {NONE, "<|channel|>final <|constrain|>json<|message|>{", GOES_ON},
        {NONE, "<|channel|>final<|message|>No.<|endoftext|>", FINISHED},
        {NONE, "<|channel|>final<|message|>No.<|call|>", REJECTED},
        {NONE, "<|channel|>final<|message|>No.<|end|>", REJECTED},
        {NONE, "<|channel|>commentary", REJECTED},
        {NONE, " to=functions.get_time", REJECTED},
        {NONE, "<|channel|>final to=functions.get_time", REJECTED},
        {NO_TOOLS, THOUGHT "<|channel|>final<|message|>No.<|return|>", FINISHED},
        {NO_TOOLS, "<|channel|>commentary", REJECTED},
        {NO_TOOLS, " to=functions.get_time", REJECTED},
        {FORBIDDEN, "<|channel|>final<|message|>No.<|return|>", FINISHED},
        {FORBIDDEN, "<|channel|>commentary", REJECTED},
        {FORBIDDEN, " to=functions.get_time", REJECTED},
        {GUESS, "<|channel|>commentary to=functions.f<|message|>{\"a\":1}<|call|>", FINISHED},
        {GUESS, "<|channel|>commentary to=functions.f<|message|>{\"a\":\"", REJECTED},
        {GUESS, "<|channel|>commentary to=functions.g<|message|>{\"a\":\"\"}<|call|>", FINISHED},
        {GUESS, "<|channel|>commentary to=functions.h<|message|>{\"a\":\"\"}<|call|>", FINISHED},
        {GUESS, "<|channel|>commentary to=functions.h<|message|>\"", REJECTED},
        {UNTYPED, "<|channel|>commentary to=functions.f<|message|>{\"a\":1}<|call|>", FINISHED},
        {UNTYPED, "<|channel|>commentary to=functions.f<|message|>1", REJECTED},
        {UNTYPED, "<|channel|>commentary to=functions.f<|message|>{\"a\":\"", REJECTED},
        {AUTO, "<|channel|>commentary<|message|>I shall look.<|end|><|start|>assistant" CALL OSLO "<|call|>", FINISHED},
        {AUTO, "<|channel|>final<|message|>No.<|return|>", FINISHED},
        {AUTO, CALL "{\"place\"", REJECTED},
        {AUTO, "<|channel|>commentary to=functions.get_time<|message|>anything<|call|>", FINISHED},
        {AUTO, "<|channel|>commentary to=functions.get_time<|message|>anything<|return|>", REJECTED},
        {AUTO, "<|channel|>commentary to=functions.get_times", REJECTED},
        {AUTO, "<|start|>assistant", REJECTED},
        {TEXT, "<|channel|>final<|message|>yes<|return|>", FINISHED},
        {TEXT, "<|channel|>final<|message|>nooo<|return|>", FINISHED},
        {TEXT, "<|channel|>final<|message|>nooo", GOES_ON},
        {TEXT, THOUGHT "<|channel|>final json<|message|>no", GOES_ON},
        {TEXT, THOUGHT "<|channel|>analysis", REJECTED},
        {TEXT, "<|channel|>final<|message|>ye<|return|>", REJECTED},
        {TEXT, "<|channel|>final<|message|>yess", REJECTED},
        {TEXT, "<|channel|>final<|message|>yes<|end|>", REJECTED},
        {TEXT, "<|channel|>commentary", REJECTED},
        {TEXT, " to=", REJECTED},
        {TEXT_AND_TOOLS, CALL OSLO "<|call|>", FINISHED},
        {TEXT_AND_TOOLS, "<|channel|>commentary<|message|>", REJECTED},
        {TEXT_AND_TOOLS, "<|channel|>final<|message|>no<|return|>", FINISHED},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check(cases[i].json, true, cases[i].text, cases[i].fate);
    check(TEXT, false, "yes<|return|>", FINISHED);
    check(TEXT, false, "noo<|endoftext|>", FINISHED);
    check(TEXT, false, "<|channel|>", REJECTED);
    check(TEXT, false, "ya", REJECTED);
}

/* ---- masks, forgetting, copies --------------------------------------------------------------------------------------
 */
static uint32_t *mask_of(const mx_constraint *c) {
    const size_t words = ((size_t)vocab + 31) / 32;
    uint32_t *bits = malloc(words * sizeof *bits);
    memset(bits, 0xff, words * sizeof *bits);
    assert_true(c->mask(c->user, bits, vocab));
    if (vocab % 32) assert_int_equal(bits[words - 1] >> vocab % 32, 0);
    return bits;
}

/* Every token is taken where its bit is set, and only there. */
static void mask_is_exact(const mx_constraint *c) {
    uint32_t *bits = mask_of(c);
    int count = 0;
    for (int32_t t = 0; t < vocab; t++) {
        const bool set = bits[t >> 5] >> (t & 31) & 1, taken = c->accept(c->user, t) != MX_REJECTED;
        if (taken) c->rollback(c->user, 1);
        if (set != taken) fail_msg("token %d: the mask says %d, accept %d", t, set, taken);
        count += set;
    }
    assert_true(count > 0);
    free(bits);
}

static void exact(void **state) {
    static const char *const texts[] = {THOUGHT CALL OSLO, THOUGHT EARLY OSLO,
                                        "<|channel|>commentary<|message|>Hm<|end|><|start|>assistant<|channel|>final"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mx_constraint c = constraint_of("{" BOTH "}", true);
        mx_ids ids = i ? tokens_of(texts[i]) : bytes_of(texts[i]);
        mask_is_exact(&c);
        for (int64_t k = 0; k < ids.count; k++) {
            assert_int_equal(c.accept(c.user, ids.data[k]), MX_CONTINUE);
            mask_is_exact(&c);
        }
        mx_ids_free(&ids);
        c.destroy(c.user);
    }
}

static void same_mask(const mx_constraint *a, const mx_constraint *b) {
    uint32_t *x = mask_of(a), *y = mask_of(b);
    assert_memory_equal(x, y, ((size_t)vocab + 31) / 32 * sizeof *x);
    free(x);
    free(y);
}

static void forgets(void **state) {
    (void)state;
    mx_ids ids = tokens_of(THOUGHT CALL OSLO "<|call|>");
    for (int64_t far = 1; far <= ids.count; far++) {
        mx_constraint c = constraint_of("{" BOTH "}", true), fresh = constraint_of("{" BOTH "}", true);
        for (int64_t i = 0; i < far; i++) assert_int_not_equal(c.accept(c.user, ids.data[i]), MX_REJECTED);
        for (int64_t back = 1; back <= far; back++) {
            c.rollback(c.user, (int)back);
            mx_constraint copy = c;
            copy.user = c.clone(c.user);
            assert_non_null(copy.user);
            fresh.rollback(fresh.user, 1 << 20);
            for (int64_t i = 0; i < far - back; i++) fresh.accept(fresh.user, ids.data[i]);
            same_mask(&c, &fresh);
            same_mask(&copy, &fresh);
            for (int64_t i = far - back; i < far; i++) {
                assert_int_not_equal(c.accept(c.user, ids.data[i]), MX_REJECTED);
                if (i == far - back) same_mask(&copy, &fresh); /* the copy is its own */
            }
            copy.destroy(copy.user);
        }
        c.destroy(c.user);
        fresh.destroy(fresh.user);
    }
    mx_ids_free(&ids);
}

/* ---- what is wrong -------------------------------------------------------------------------------------------------
 */
static void problems(void **state) {
    static const struct {
        const char *json, *param;
    } cases[] = {
        {"{\"tool_choice\":\"required\"}", "tool_choice"},
        {"{\"tools\":[],\"tool_choice\":\"required\"}", "tool_choice"},
        {"{" BOTH ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"no\"}}}", "tool_choice"},
        {"{" BOTH ",\"tool_choice\":\"sometimes\"}", "tool_choice"},
        {"{" BOTH ",\"parallel_tool_calls\":1}", "parallel_tool_calls"},
        {"{\"tools\":[{\"name\":\"f\",\"strict\":true,\"parameters\":{\"type\":\"string\"}}]}",
         "tools[0].function.parameters"},
        {"{\"tools\":[{\"name\":\"f\",\"strict\":true,\"parameters\":true}]}", "tools[0].function.parameters"},
        {"{" BOTH ",\"tool_choice\":{\"type\":\"allowed_tools\",\"mode\":\"some\",\"tools\":[]}}", "tool_choice"},
        {"{" BOTH ",\"tool_choice\":{\"type\":\"allowed_tools\",\"mode\":\"auto\",\"tools\":[{\"type\":\"function\","
         "\"name\":\"other\"}]}}",
         "tool_choice"},
        {"{\"tools\":{}}", "tools"},
        {"{\"tools\":[{\"type\":\"function\",\"function\":{}}]}", "tools[0].function.name"},
        {"{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"strict\":1}}]}",
         "tools[0].function.strict"},
        {"{\"response_format\":{\"type\":\"yaml\"}}", "response_format"},
        {"{\"response_format\":\"json\"}", "response_format"},
        {"{\"response_format\":{\"type\":\"json_schema\"}}", "response_format.json_schema"},
        {"{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"not\":{}}}}}",
         "response_format.json_schema.schema"},
        {"{\"response_format\":{\"type\":\"regex\",\"pattern\":\"(a\"}}", "response_format.pattern"},
        {"{\"response_format\":{\"type\":\"grammar\",\"grammar\":{\"syntax\":\"lark\",\"definition\":\"a\"}}}",
         "response_format.grammar"},
    };
    static const char *const nothing[] = {"{}", "{\"response_format\":{\"type\":\"text\"},\"tools\":[]}",
                                          "{\"tool_choice\":\"auto\"}",
                                          "{\"tools\":[{\"type\":\"custom\",\"name\":\"x\"}]}"};
    mx_api_problem problem;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_null(rules_of(cases[i].json, true, &problem));
        if (problem.http_status != 400 || strcmp(problem.param, cases[i].param) != 0)
            fail_msg("%s: \"%s\" of \"%s\", \"%s\" expected", cases[i].json, problem.text, problem.param,
                     cases[i].param);
    }
    for (size_t i = 0; i < sizeof nothing / sizeof *nothing; i++) {
        assert_null(rules_of(nothing[i], true, &problem));
        if (problem.http_status) fail_msg("%s: %s", nothing[i], problem.text);
    }
}

/* What takes long to refuse is refused at once when it comes again. */
static void refusals_are_remembered(void **state) {
    (void)state;
    double took[2];
    mx_api_problem problem[2];
    for (int i = 0; i < 2; i++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        assert_null(rules_of("{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":"
                             "{\"pattern\":\"(a|b)*a(a|b){17}\"}}}}",
                             true, &problem[i]));
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        took[i] = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    }
    assert_true(took[1] < took[0] / 5);
    assert_non_null(strstr(problem[0].text, "response_format.json_schema.schema: #: \"pattern\": the expression"));
    assert_string_equal(problem[0].text, problem[1].text);
}

/* ---- answers of models ----------------------------------------------------------------------------------------------
 */
typedef struct asked {
    const char *name, *json;
    bool call, text; /* what an answer may be */
} asked;

static const asked all[] = {
    {"required", "{" BOTH ",\"tool_choice\":\"required\"}", true, false},
    {"named", NAMED, true, false},
    {"none", NONE, false, true},
    {"auto", "{\"tools\":[" WEATHER "]}", true, true},
    {"text", TEXT, false, true},
};

typedef struct answer {
    const asked *asked;
    mx_turn *turn;
    mx_harmony_parser *strict;
    mx_finish finish;
} answer;

static void check_call(const answer *a, const mx_tool_call *call) {
    mx_json_document *document;
    mx_error error;
    const bool weather = !strcmp(call->name, "get_weather");
    if ((!weather && strcmp(call->name, "get_time") != 0) || (weather && !strcmp(a->asked->name, "named")))
        fail_msg("%s: a call of %s", a->asked->name, call->name);
    if (call->incomplete) return;
    if (mx_json_parse("arguments", call->arguments.data, call->arguments.size, &document, &error))
        fail_msg("%s: %s: %s", a->asked->name, call->arguments.data, error.text);
    const mx_json *root = mx_json_root(document), *location = mx_json_get(root, "location");
    assert_int_equal(root->type, MX_JSON_OBJECT);
    if (weather && (root->count != 1 || !location || location->type != MX_JSON_STRING))
        fail_msg("%s: %s", a->asked->name, call->arguments.data);
    mx_json_free(document);
}

static void check_answer(answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    const bool cut = a->finish == MX_FINISH_LENGTH;
    if (!cut && a->finish != MX_FINISH_STOP) fail_msg("%s: finish %d", a->asked->name, (int)a->finish);
    if (r->tool_call_count && !a->asked->call) fail_msg("%s: a call", a->asked->name);
    if (r->text.size && !a->asked->text) fail_msg("%s: text \"%s\"", a->asked->name, r->text.data);
    if (!cut && !a->asked->text) assert_int_equal(r->tool_call_count, 1);
    for (int i = 0; i < r->tool_call_count; i++) check_call(a, &r->tool_calls[i]);
    if (!strcmp(a->asked->name, "text") && !cut && strcmp(r->text.data, "yes") != 0 &&
        (r->text.data[0] != 'n' || strspn(r->text.data + 1, "o") + 1 != r->text.size))
        fail_msg("text \"%s\"", r->text.data);
    /* What harmony's own strict parser takes is harmony. */
    mx_harmony_delta delta;
    mx_error error;
    for (int64_t i = 0; i < r->ids.count; i++) {
        if (r->ids.data[i] == mx_special_id(tokenizer, "<|endoftext|>")) break;
        if (mx_harmony_push(a->strict, r->ids.data[i], &delta, &error)) fail_msg("%s: %s", a->asked->name, error.text);
    }
}

static void submit(mx_engine *engine, const mx_ids *prompt, const mx_logit_bias *bias, int biases, answer *a,
                   int seed) {
    const mx_turn_options options = {.tokenizer = tokenizer, .stop_tokens = &stop};
    mx_handle handle;
    mx_error error;
    mx_request request = {.prompt = prompt->data,
                          .prompt_count = prompt->count,
                          .max_tokens = 300,
                          .sampling = MX_SAMPLING_DEFAULT,
                          .stop = stop.data,
                          .stop_count = (int)stop.count,
                          .constraint = constraint_of(a->asked->json, true),
                          .user = a};
    request.sampling.temperature = 2;
    request.sampling.seed = (uint64_t)seed;
    request.sampling.bias = bias;
    request.sampling.bias_count = biases;
    if (mx_turn_create(&options, &a->turn, &error) || mx_submit(engine, &request, &handle, &error) ||
        mx_harmony_parser_create(tokenizer, MX_HARMONY_STRICT, "assistant", &a->strict, &error))
        fail_msg("%s", error.text);
}

static void run(mx_engine *engine, const char *what, const mx_logit_bias *bias, int biases) {
    mx_ids prompt = tokens_of("<|start|>user<|message|>What is the weather in Oslo?<|end|><|start|>assistant");
    const int count = (int)(sizeof all / sizeof *all) * samples;
    answer *answers = calloc((size_t)count, sizeof *answers);
    int whole[sizeof all / sizeof *all] = {0};
    mx_error error;
    for (int i = 0; i < count; i++) {
        answers[i].asked = &all[i / samples];
        submit(engine, &prompt, bias, biases, &answers[i], i);
    }
    for (int left = count; left;) {
        mx_event events[64];
        assert_int_equal(mx_step(engine, &error), MX_OK);
        for (int n; (n = mx_poll(engine, events, 64)) > 0;)
            for (int i = 0; i < n; i++) {
                answer *a = events[i].user;
                if (events[i].type == MX_EVENT_FAILED) fail_msg("%s: %s", a->asked->name, events[i].error.text);
                if (events[i].type == MX_EVENT_TOKEN)
                    assert_int_equal(mx_turn_push(a->turn, events[i].token, &error), 0);
                if (events[i].type != MX_EVENT_FINISHED) continue;
                a->finish = events[i].finish;
                assert_int_equal(mx_turn_end(a->turn, a->finish, &error), MX_OK);
                left--;
            }
    }
    for (int i = 0; i < count; i++) {
        check_answer(&answers[i]);
        whole[i / samples] += answers[i].finish != MX_FINISH_LENGTH;
        mx_turn_free(answers[i].turn);
        mx_harmony_parser_free(answers[i].strict);
    }
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        printf("%s, %s: %d of %d ended\n", what, all[k].name, whole[k], samples);
        assert_true(whole[k] > 0);
    }
    free(answers);
    mx_ids_free(&prompt);
}

static mx_engine *engine_on(mx_model *model) {
    const mx_engine_options options = {.context = 1024, .threads = 2};
    mx_engine *engine;
    mx_error error;
    if (mx_engine_create(model, &options, &engine, &error)) fail_msg("%s", error.text);
    return engine;
}

/* What ends messages and strings is made more likely, so that they end. */
static int ends(float value, mx_logit_bias bias[static 8]) {
    static const char *const texts[] = {"<|end|>", "<|return|>", "<|call|>", "\"", "}", "\"}"};
    int count = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mx_ids ids = tokens_of(texts[i]);
        if (ids.count == 1) bias[count++] = (mx_logit_bias){ids.data[0], value};
        mx_ids_free(&ids);
    }
    return count;
}

static void stories(void **state) {
    mx_logit_bias bias[8];
    mx_model *model;
    mx_error error;
    (void)state;
    if (mx_model_open(source_path("tools/stories/checkpoint"), NULL, &model, &error)) fail_msg("%s", error.text);
    mx_engine *engine = engine_on(model);
    run(engine, "stories", bias, ends(6, bias));
    mx_engine_destroy(engine);
    mx_model_close(model);
}

/* Nothing that is not forbidden is unlikely. */
static void random_weights(void **state) {
    mx_logit_bias bias[8];
    mx_config config;
    mx_model *model = NULL;
    mx_error error;
    (void)state;
    if (mx_synthetic_config(source_path("tools/stories/checkpoint"), 2, &config, &error) ||
        mx_model_make(&config, 1, &(mx_load_options){.threads = 2}, NULL, &model, &error))
        fail_msg("%s", error.text);
    mx_engine *engine = engine_on(model);
    run(engine, "random weights", bias, ends(12, bias));
    mx_engine_destroy(engine);
    mx_model_close(model);
}

static int set_up(void **state) {
    mx_config config;
    mx_error error;
    (void)state;
    if (mx_tokenizer_open(source_path("tools/stories/checkpoint"), &tokenizer, &error) ||
        mx_config_read(source_path("tools/stories/checkpoint"), &config, &error) ||
        mx_vocabulary_create(tokenizer, vocab = config.vocab, &vocabulary, &error) ||
        !mx_turn_stop_tokens(tokenizer, &config, &stop)) {
        print_error("%s\n", error.text);
        return 1;
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    mx_vocabulary_free(vocabulary);
    mx_tokenizer_close(tokenizer);
    mx_ids_free(&stop);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest quick[] = {
        cmocka_unit_test(required), cmocka_unit_test(choices),        cmocka_unit_test(exact),
        cmocka_unit_test(forgets),  cmocka_unit_test(problems),       cmocka_unit_test(refusals_are_remembered),
        cmocka_unit_test(stories),  cmocka_unit_test(random_weights),
    };
    const struct CMUnitTest full[] = {cmocka_unit_test(stories), cmocka_unit_test(random_weights)};
    if (argc < 2 || strcmp(argv[1], "full") != 0) return cmocka_run_group_tests(quick, set_up, tear_down);
    samples = 200;
    return cmocka_run_group_tests(full, set_up, tear_down);
}
