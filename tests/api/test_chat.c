/* How messages become harmony: beside the published chat template, and what that has no word for. */
#include "api_support.h"

#include "base/log.h"

/* ---- the chat template ------------------------------------------------------------------------------------------- */
/* docs/server.md lists where we differ from the template; these are those differences, and there are no others. */
typedef struct difference {
    const char *name, *theirs, *ours; /* in the text of the conversation of this name, or, NULL, of all */
} difference;

static const difference differences[] = {
    /* The template leaves empty lines behind the instructions where nothing follows. */
    {NULL, "riddles\n\n<|end|>", "riddles<|end|>"},
    {NULL, "Be brief.\n\n<|end|>", "Be brief.<|end|>"},
    /* A default ends its line, as in the harmony library. */
    {NULL, "// default: celsius,\n", "// default: celsius\n"},
    /* The type of arguments as the model writes it and the harmony library does. */
    {NULL, "commentary json<|message|>", "commentary <|constrain|>json<|message|>"},
    /* Arguments that come as an object are written without spaces. */
    {"tool_call_history", "{\"location\": \"Tokyo\"}", "{\"location\":\"Tokyo\"}"},
    {"tool_call_then_user", "{\"location\": \"Oslo\"}", "{\"location\":\"Oslo\"}"},
    /* What a tool returned is told as it is, not once more as a JSON string. */
    {"tool_call_history", "<|message|>\"{\\\"temperature\\\": 20, \\\"sunny\\\": true}\"<|end|>",
     "<|message|>{\"temperature\": 20, \"sunny\": true}<|end|>"},
    {"tool_call_then_user", "<|message|>\"rain\"<|end|>", "<|message|>rain<|end|>"},
    /* A prompt is for the next answer. */
    {"no_generation_prompt", "Hello.<|return|>", "Hello.<|end|><|start|>assistant"},
};

static bool replace(mx_bytes *text, const char *from, const char *to) {
    const char *found = strstr(text->data, from);
    if (!found) return false;
    mx_bytes all = {0};
    assert_true(mx_bytes_add(&all, text->data, (size_t)(found - text->data)) && mx_bytes_add_string(&all, to) &&
                mx_bytes_add_string(&all, found + strlen(from)));
    mx_bytes_free(text);
    *text = all;
    return true;
}

/* The template's "thinking" is our "reasoning_content"; its tools and effort are fields of the request. */
static mx_bytes body_of(const mx_json *golden) {
    const mx_json *options = mx_json_get(golden, "options");
    mx_bytes body = {0};
    assert_true(mx_bytes_add_string(&body, "{\"messages\":") && mx_json_write(&body, mx_json_get(golden, "messages")));
    while (replace(&body, "\"thinking\":", "\"reasoning_content\":")) {
    }
    static const char *const fields[] = {"tools", "reasoning_effort"};
    for (int i = 0; i < 2; i++) {
        const mx_json *v = mx_json_get(options, fields[i]);
        if (v) assert_true(mx_bytes_addf(&body, ",\"%s\":", fields[i]) && mx_json_write(&body, v));
    }
    assert_true(mx_bytes_add_string(&body, "}"));
    return body;
}

static void check_golden(const mx_json *golden, const mx_tokenizer *published, bool *used) {
    const mx_json *options = mx_json_get(golden, "options"), *identity = mx_json_get(options, "model_identity");
    const char *name = mx_json_get(golden, "name")->text;
    mx_conversation *c;
    mx_bytes expected = {0};
    assert_int_equal(mx_conversation_create(published, &c, NULL), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, mx_json_get(golden, "date")->text, NULL), MX_OK);
    if (identity) assert_int_equal(mx_conversation_set(c, MX_SETTING_SYSTEM, identity->text, NULL), MX_OK);
    assert_true(mx_json_get(golden, "text") && mx_bytes_add_string(&expected, mx_json_get(golden, "text")->text));
    bool differs = false;
    for (size_t i = 0; i < sizeof differences / sizeof *differences; i++) {
        const difference *d = &differences[i];
        if (d->name && strcmp(d->name, name) != 0) continue;
        while (replace(&expected, d->theirs, d->ours)) used[i] = differs = true;
    }
    const mx_api_settings s = {.tokenizer = published, .conversation = c};
    const mx_api_reader reader = {.settings = &s};
    mx_bytes body = body_of(golden);
    mx_json_document *document;
    mx_ids ids = {0};
    mx_api_problem problem = {0};
    mx_error error;
    assert_int_equal(mx_json_parse("body", body.data, body.size, &document, NULL), MX_OK);
    const mx_json *fields = mx_json_root(document);
    if (mx_api_read_chat(&reader, fields, mx_json_get(fields, "messages"), &ids, &problem, &error))
        fail_msg("%s: %s", name, error.text);
    if (problem.http_status) fail_msg("%s: %s", name, problem.text);
    mx_bytes text = text_of(published, &ids);
    if (strcmp(text.data, expected.data) != 0) fail_msg("%s:\n%s\nexpected:\n%s", name, text.data, expected.data);
    /* What looks like a token of the format in somebody's text is text to us, and the token to the template. */
    if (strcmp(name, "special_in_content") == 0) {
        differs = true;
        const int32_t end = mx_tokenizer_harmony_ids(published).end;
        int ends = 0;
        for (int64_t i = 0; i < ids.count; i++) ends += ids.data[i] == end;
        assert_int_equal(ends, 2);
    }
    if (!differs) {
        const mx_json *id = mx_json_get(golden, "ids")->child;
        for (int64_t i = 0; i < ids.count; i++, id = id->next) {
            int64_t value;
            assert_true(mx_json_int64(id, &value));
            assert_int_equal(ids.data[i], value);
        }
        assert_null(id);
    }
    mx_bytes_free(&text);
    mx_bytes_free(&body);
    mx_bytes_free(&expected);
    mx_ids_free(&ids);
    mx_json_free(document);
    mx_conversation_free(c);
}

static void test_template(void **unused) {
    (void)unused;
    char path[4096];
    mx_bytes file = {0};
    mx_tokenizer *published;
    mx_error error;
    bool used[sizeof differences / sizeof *differences] = {false};
    const char *shared = getenv("MXRUN_SHARED");
    snprintf(path, sizeof path, "%s/data/harmony/chat_template_golden.jsonl", shared ? shared : "");
    if (mx_read_file(path, 1 << 24, &file, &error)) {
        print_message("skipped: %s\n", error.text);
        skip();
    }
    snprintf(path, sizeof path, "%s/data/tokenizer/tokenizer.json", shared);
    if (mx_tokenizer_open(path, &published, &error)) fail_msg("%s", error.text);
    int count = 0;
    for (char *line = file.data, *end; (end = strchr(line, '\n')); line = end + 1, count++) {
        mx_json_document *document;
        assert_int_equal(mx_json_parse("golden", line, (size_t)(end - line), &document, &error), MX_OK);
        /* Tools that the engine would have to run itself (browser, python) are not offered. */
        if (mx_json_get(mx_json_get(mx_json_root(document), "options"), "builtin_tools") == NULL)
            check_golden(mx_json_root(document), published, used);
        mx_json_free(document);
    }
    assert_int_equal(count, 19);
    for (size_t i = 0; i < sizeof differences / sizeof *differences; i++) assert_true(used[i]);
    /* What is reserved has a name in harmony, and no token. */
    assert_true(mx_is_token(published, 0) && mx_is_token(published, 200017) && mx_is_token(published, 200018));
    assert_true(!mx_is_token(published, 200019) && !mx_is_token(published, 201087) && !mx_is_token(published, 1 << 20));
    mx_tokenizer_close(published);
    mx_bytes_free(&file);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
static void test_instructions(void **unused) {
    (void)unused;
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"system\",\"content\":\"One.\"},{\"role\":\"developer\",\"content\":[{"
                  "\"type\":\"text\",\"text\":\"Two.\"}]},{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"system\","
                  "\"content\":\"Three.\"}]}",
                  HEAD DEVELOPER("One.\n\nTwo.") USER("Hi") DEVELOPER("Three.") NEXT);
}

static void test_thinking(void **unused) {
    (void)unused;
#define CALLED                                                                                                         \
    "{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Wait.\",\"reasoning\":\"Hm.\","      \
    "\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},"                             \
    "{\"role\":\"tool\",\"tool_call_id\":\"a\",\"content\":\"1\"}"
#define WAIT "<|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
    expect_prompt(NULL, "{\"messages\":[" CALLED "]}",
                  HEAD USER("Hi") THINK("Hm.") WAIT CALL("f", "{}") RESULT("f", "1") NEXT);
    expect_prompt(NULL,
                  "{\"messages\":[" CALLED ",{\"role\":\"assistant\",\"content\":\"Ho\",\"reasoning_content\":\"So.\"},"
                  "{\"role\":\"user\",\"content\":\"Hm\"}]}",
                  HEAD USER("Hi") WAIT CALL("f", "{}") RESULT("f", "1") FINAL("Ho") USER("Hm") NEXT);
}

static void refuse(const char *body, const char *param, const char *word) {
    const mx_api_reader reader = {.settings = &settings, .streams = true};
    mx_api_request request;
    assert_int_equal(mx_api_read_body(&reader, true, 1, json(body), &request, NULL), MX_OK);
    assert_int_equal(request.problem.http_status, 400);
    assert_string_equal(request.problem.param, param);
    if (!strstr(request.problem.text, word)) fail_msg("%s: no %s", request.problem.text, word);
    mx_api_request_free(&request);
}

/* An answer that thinking ate up is no empty answer. */
static void test_only_thinking(void **unused) {
    (void)unused;
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"\","
                  "\"reasoning_content\":\"Hm.\"},{\"role\":\"user\",\"content\":\"And?\"}]}",
                  HEAD USER("Hi") THINK("Hm.") USER("And?") NEXT);
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"\"},"
                  "{\"role\":\"user\",\"content\":\"And?\"}]}",
                  HEAD USER("Hi") FINAL("") USER("And?") NEXT);
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":null,"
                  "\"reasoning_content\":\"Hm.\"},{\"role\":\"user\",\"content\":\"And?\"}]}",
                  HEAD USER("Hi") THINK("Hm.") USER("And?") NEXT);
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":null,"
                  "\"refusal\":\"No.\"},{\"role\":\"user\",\"content\":\"And?\"}]}",
                  HEAD USER("Hi") FINAL("No.") USER("And?") NEXT);
    refuse("{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "messages[0].content", "missing");
}

/* Results without an id are those of the calls, in order; of calls with the same id the latest counts. */
static void test_results(void **unused) {
    (void)unused;
#define F(id, name) "{" id "\"function\":{\"name\":\"" name "\",\"arguments\":\"\"}}"
    expect_prompt(NULL,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"tool_calls\":[" F(
                      "", "f") "," F("\"id\":\"b\",", "g") "]},{\"role\":\"tool\",\"content\":\"1\"},{\"role\":"
                                                           "\"tool\",\"content\":\"2\"},{\"role\":\"assistant\","
                                                           "\"tool_calls\":[" F("\"id\":\"b\",",
                                                                                "h") "]},{\"role\":\"tool\",\"tool_"
                                                                                     "call_id\":\"b\",\"content\":"
                                                                                     "\"3\"}]}",
                  HEAD USER("Hi") CALL("f", "{}") CALL("g", "{}") RESULT("f", "1") RESULT("g", "2") CALL("h", "{}")
                      RESULT("h", "3") NEXT);
}

static void test_refused(void **unused) {
    (void)unused;
#define PART(part) "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\"}," part "]}]}"
    refuse(PART("{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}"), "messages[0].content[1]", "\"image_url\"");
    refuse(PART("{\"type\":\"input_audio\"}"), "messages[0].content[1]", "\"input_audio\"");
    refuse(PART("{\"type\":\"file\"}"), "messages[0].content[1]", "\"file\"");
    refuse(PART("{\"type\":\"text\"}"), "messages[0].content[1]", "only parts");
    refuse("{\"messages\":[{\"role\":\"tool\",\"tool_call_id\":\"x\",\"content\":\"1\"}]}", "messages[0].tool_call_id",
           "\"x\"");
    refuse("{\"messages\":[{\"role\":\"tool\",\"content\":\"1\"}]}", "messages[0].tool_call_id", "no call");
    refuse("{\"messages\":[{\"role\":\"system\",\"content\":\"a\\u0000b\"}]}", "messages[0].content", "U+0000");
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"functions\":[]}", "functions", "tools");
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"function_call\":\"auto\"}", "function_call",
           "tool_choice");
    refuse("{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"function_call\":{}}]}",
           "messages[0].function_call", "tool_calls");
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */
static char warning[1000];
static int warnings;
static void listen(void *user, mx_log_level level, const char *line) {
    (void)user;
    if (level != MX_LOG_WARNING) return;
    snprintf(warning, sizeof warning, "%s", line);
    warnings++;
}

/* Names that harmony cannot say, there and back. */
static void test_names(void **unused) {
    (void)unused;
    const mx_api_reader reader = {.settings = &settings};
    const char *body = "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"my "
                       "tool!\",\"description\":\"It.\",\"strict\":false}},{"
                       "\"type\":\"function\",\"function\":{\"name\":\"Grüße\"}},{\"type\":\"function\",\"function\":{"
                       "\"name\":\"a.b-c_d\""
                       "}}],\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"tool_"
                       "calls\":[{\"id\":\"1\","
                       "\"function\":{\"name\":\"my "
                       "tool!\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":"
                       "\"x\"},{\"role\":\"tool\",\"name\":\"my tool!\",\"tool_call_id\":\"2\",\"content\":\"y\"}]}";
    mx_api_request request;
    assert_int_equal(mx_api_read_body(&reader, true, 1, json(body), &request, NULL), MX_OK);
    assert_int_equal(request.problem.http_status, 0);
    mx_bytes text = text_of(stories, &request.prompts[0]);
    assert_non_null(
        strstr(text.data, "// It.\ntype my_tool_ = () => any;\n\ntype Gr__e = () => any;\n\ntype a.b-c_d ="));
    assert_non_null(strstr(text.data, CALL("my_tool_", "{}") RESULT("my_tool_", "x") RESULT("my_tool_", "y")));
    assert_string_equal(mx_api_client_name(&request, "my_tool_"), "my tool!");
    assert_string_equal(mx_api_client_name(&request, "Gr__e"), "Grüße");
    assert_string_equal(mx_api_client_name(&request, "a.b-c_d"), "a.b-c_d");
    mx_api_answer a = {0};
    a.turn =
        turn_of("<|channel|>commentary to=functions.my_tool_ <|constrain|>json<|message|>\"{\\\"x\\\": 1}\"<|call|>",
                MX_FINISH_STOP);
    mx_bytes out = {0};
    mx_api_writer w = {
        .out = &out, .settings = &settings, .request = &request, .id = "0123456789abcdef0123456789abcdef"};
    mx_api_put_tool_calls(&w, &a);
    assert_string_equal(out.data,
                        "[{\"id\":\"call_0123456789abcdef0123456789ab_0_0\",\"type\":\"function\",\"function\":{"
                        "\"name\":\"my tool!\",\"arguments\":\"{\\\"x\\\": 1}\"}}]");
    mx_bytes_free(&out);
    mx_turn_free(a.turn);
    mx_bytes_free(&text);
    mx_api_request_free(&request);
    refuse("{\"tools\":[{\"name\":\"a b\"},{\"name\":\"a!b\"}],\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
           "tools", "a_b");
#define TWO(a, b)                                                                                                      \
    "{\"tools\":[{\"name\":\"" a "\"},{\"name\":\"" b "\"}],\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}"
    refuse(TWO("a b", "a_b"), "tools", "are the same name");
    refuse(TWO("a_b", "a b"), "tools", "are the same name");
    refuse(TWO("f", "f"), "tools", "two functions are called \"f\"");
    refuse(TWO("f", "a\\u0000b"), "tools", "U+0000");
}

/* No request may hold so many that comparing them takes long. */
static void test_many_tools(void **unused) {
    (void)unused;
    for (int count = MX_API_MOST_TOOLS; count <= MX_API_MOST_TOOLS + 1; count++) {
        mx_bytes tools = {0};
        mx_json_document *document;
        mx_api_chat *chat;
        mx_error error = {0};
        for (int i = 0; i < count; i++) assert_true(mx_bytes_addf(&tools, "%s{\"name\":\"f%d\"}", i ? "," : "[", i));
        assert_true(mx_bytes_add_string(&tools, "]"));
        assert_int_equal(mx_json_parse("tools", tools.data, tools.size, &document, NULL), MX_OK);
        assert_int_equal(mx_api_chat_create(&settings, NULL, false, &chat, NULL), MX_OK);
        const mx_status status = mx_api_chat_set_tools(chat, "tools", mx_json_root(document), &error);
        assert_int_equal(status, count > MX_API_MOST_TOOLS ? MX_INVALID_ARGUMENT : MX_OK);
        if (status) assert_string_equal(error.text, "tools: 1025 tools, at most 1024 are allowed");
        mx_api_chat_free(chat);
        mx_json_free(document);
        mx_bytes_free(&tools);
    }
}

/* Calls are forbidden by a mask: the prompt is the same, and the cache has it. */
static void test_none(void **unused) {
    (void)unused;
#define WITH(choice) "{\"tools\":[{\"name\":\"f\"}]" choice ",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}"
    mx_bytes text = prompt_of(NULL, WITH(""));
    assert_non_null(strstr(text.data, "type f ="));
    expect_prompt(NULL, WITH(",\"tool_choice\":\"none\""), text.data);
    mx_bytes_free(&text);
}

static void test_other_tools(void **unused) {
    (void)unused;
    mx_log_set_sink(listen, NULL);
    for (int i = 0; i < 2; i++) {
        mx_bytes text = prompt_of(
            NULL, "{\"tools\":[{\"type\":\"local_shell\\n\\u001b[2J\"},{\"type\":\"function\",\"name\":\"f\"}],"
                  "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}");
        assert_non_null(strstr(text.data, "namespace functions {\n\ntype f = () => any;\n\n}"));
        mx_bytes_free(&text);
    }
    mx_log_set_sink(NULL, NULL);
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, "local_shell  [2J")); /* nothing that a terminal would obey */
}

/* What a model or a client wrote as arguments, and what a client gets. */
static void test_arguments(void **unused) {
    (void)unused;
    static const char *const cases[][2] = {
        {"", "{}"},
        {"{\"a\": 1}", "{\"a\": 1}"},
        {"\"{\\\"a\\\": 1}\"", "{\"a\": 1}"},
        {" \"{\\\"a\\\": 1}\" ", "{\"a\": 1}"},
        {"\"text\"", "\"text\""},
        {"\"[1]\"", "\"[1]\""},
        {"{\"a\": \"{}\"}", "{\"a\": \"{}\"}"},
        {"\"", "\""},
        {"no JSON", "no JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_bytes out = {0};
        assert_true(mx_api_add_arguments(&out, cases[i][0], strlen(cases[i][0])));
        assert_string_equal(out.data, cases[i][1]);
        mx_bytes_free(&out);
    }
}

static void test_efforts(void **unused) {
    (void)unused;
    static const char *const cases[][2] = {
        {"\"reasoning_effort\":\"minimal\"", "low"},   {"\"reasoning_effort\":\"none\"", "low"},
        {"\"reasoning_effort\":\"high\"", "high"},     {"\"reasoning_effort\":\"xhigh\"", "high"},
        {"\"reasoning\":{\"effort\":\"low\"}", "low"}, {"\"reasoning_effort\":null", "medium"}};
    for (int i = 0; i < 6; i++) {
        char body[200], expected[40];
        snprintf(body, sizeof body, "{%s,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", cases[i][0]);
        snprintf(expected, sizeof expected, "Reasoning: %s\n", cases[i][1]);
        mx_bytes text = prompt_of(NULL, body);
        assert_non_null(strstr(text.data, expected));
        mx_bytes_free(&text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template), cmocka_unit_test(test_instructions),  cmocka_unit_test(test_thinking),
        cmocka_unit_test(test_results),  cmocka_unit_test(test_only_thinking), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_names),    cmocka_unit_test(test_other_tools),   cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_efforts),  cmocka_unit_test(test_many_tools),    cmocka_unit_test(test_none),
    };
    return cmocka_run_group_tests_name("chat", tests, api_set_up, api_tear_down);
}
