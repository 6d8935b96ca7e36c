/* Bodies of requests to a server. (What batch reads as well is tested with it: tests/commands/test_batch.c.) */
#include "api_support.h"

static mx_api_request read_body(bool chat, bool streams, const char *body) {
    const mx_api_reader reader = {.settings = &settings, .streams = streams};
    mx_api_request request;
    mx_error error;
    if (mx_api_read_body(&reader, chat, 42, json(body), &request, &error)) fail_msg("%s", error.text);
    return request;
}

#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"

static void test_fields(void **unused) {
    (void)unused;
    mx_api_request r = read_body(true, true,
                                 "{" HI ",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"n\":2,\"stop\":"
                                 "[\"a\",\"b\"],\"max_tokens\":9,\"max_completion_tokens\":8,\"logprobs\":true,"
                                 "\"top_logprobs\":3,\"user\":\"x\",\"metadata\":{},\"store\":true}");
    assert_int_equal(r.problem.http_status, 0);
    assert_true(r.chat && r.stream && r.include_usage);
    assert_int_equal(r.form, MX_FORM_OPENAI);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.stop_count, 2);
    assert_int_equal(r.max_tokens, 8); /* the newer name counts */
    assert_int_equal(r.logprobs, 3);
    assert_true(r.sampling.seed == 42 && mx_api_seed(&r, 0, 0) == 42 && mx_api_seed(&r, 0, 1) != 42);
    assert_string_equal(r.prompts_field, "messages");
    mx_api_request_free(&r);

    r = read_body(true, true, "{" HI ",\"seed\":7}");
    assert_true(r.sampling.seed == 7 && !r.stream && !r.include_usage && r.max_tokens == 0 && !r.rules && !r.names);
    mx_api_request_free(&r);

    r = read_body(true, true,
                  "{" HI ",\"max_tokens\":-1,\"logprobs\":false,\"top_logprobs\":0,\"logit_bias\":{\"8\":1,\"7\":2}}");
    assert_true(r.problem.http_status == 0 && r.max_tokens == 0 && r.logprobs == -1 && r.bias[0].token == 7);
    mx_api_request_free(&r);

    r = read_body(false, true, "{\"prompt\":\"Hi\",\"stream\":true}");
    assert_true(!r.chat && r.stream && r.max_tokens == 16);
    mx_api_request_free(&r);
}

static void expect_problem(bool chat, bool streams, const char *body, const char *param, const char *code) {
    mx_api_request r = read_body(chat, streams, body);
    assert_int_equal(r.problem.http_status, 400);
    assert_string_equal(r.problem.param, param);
    assert_string_equal(r.problem.code, code);
    mx_api_request_free(&r);
}

static void test_problems(void **unused) {
    (void)unused;
    expect_problem(true, false, "{" HI ",\"stream\":true}", "stream", "unsupported_value");
    expect_problem(true, true, "{" HI ",\"stream\":1}", "stream", "invalid_type");
    expect_problem(true, true, "{" HI ",\"stream\":true,\"stream_options\":[]}", "stream_options", "invalid_type");
    expect_problem(true, true, "{" HI ",\"audio\":{}}", "audio", "unsupported_value");
    expect_problem(true, true, "{" HI ",\"reasoning\":{\"effort\":\"huge\"}}", "reasoning.effort", "invalid_value");
    expect_problem(true, true, "{" HI ",\"reasoning_effort\":3}", "reasoning_effort", "invalid_value");
    expect_problem(true, true, "{\"messages\":[{\"role\":\"tool\",\"tool_call_id\":1,\"content\":\"x\"}]}",
                   "messages[0].tool_call_id", "invalid_type");
    expect_problem(true, true, "{\"messages\":[3]}", "messages[0].role", "invalid_value");
    expect_problem(true, true, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", "messages[0].tool_calls",
                   "invalid_type");
    expect_problem(false, true, "{\"prompt\":\"a\",\"stream\":true,\"best_of\":3}", "best_of", "unsupported_value");
    expect_problem(false, true, "{}", "prompt", "missing_required_parameter");
    expect_problem(true, true, "{" HI ",\"logprobs\":false,\"top_logprobs\":1}", "top_logprobs", "invalid_value");
    expect_problem(true, true, "{" HI ",\"max_tokens\":-2}", "max_tokens", "invalid_value");
    expect_problem(true, true, "{" HI ",\"logit_bias\":{\"7\":1,\"8\":1,\"07\":1}}", "logit_bias", "invalid_value");
    expect_problem(true, true, "{" HI ",\"stop\":[\"a\",\"\"]}", "stop", "invalid_value");
    expect_problem(true, true, "{" HI ",\"stop\":7}", "stop", "invalid_value");
}

/* Each text is looked for behind every token, while all others wait. */
static void test_stops(void **unused) {
    (void)unused;
    for (int most = 0; most < 2; most++) {
        char body[4000] = "{" HI ",\"stop\":[\"";
        memset(body + strlen(body), 'x', (size_t)(MX_API_LONGEST_STOP + most));
        snprintf(body + strlen(body), 20, "\"]}");
        mx_api_request r = read_body(true, true, body);
        assert_int_equal(r.problem.http_status, most ? 400 : 0);
        if (most) assert_string_equal(r.problem.text, "stop: a text of 1025 bytes, at most 1024 are allowed");
        mx_api_request_free(&r);
        snprintf(body, sizeof body, "{" HI ",\"stop\":[\"x\"");
        for (int i = 1; i < MX_API_MOST_STOPS + most; i++) strcat(body, ",\"y\"");
        strcat(body, "]}");
        r = read_body(true, true, body);
        assert_int_equal(r.problem.http_status, most ? 400 : 0);
        if (most) assert_string_equal(r.problem.text, "stop: 65 texts, at most 64 are allowed");
        mx_api_request_free(&r);
    }
}

/* A prompt that leaves no room, with both numbers. */
static void test_room(void **unused) {
    (void)unused;
    settings.setup.context = 4;
    mx_api_request r = read_body(false, true, "{\"prompt\":[1,2,3]}");
    assert_int_equal(r.problem.http_status, 0);
    mx_api_request_free(&r);
    r = read_body(false, true, "{\"prompt\":[[1],[1,2,3,4]]}");
    assert_string_equal(r.problem.code, "context_length_exceeded");
    assert_non_null(strstr(r.problem.text, "maximum context length is 4 tokens"));
    assert_non_null(strstr(r.problem.text, "the prompt has 4:"));
    mx_api_request_free(&r);
    settings.setup.context = 0;
}

/* A client without tools gets no calls, even if the model made some before. */
static void test_calls_before(void **unused) {
    (void)unused;
    mx_api_request r = read_body(true, true,
                                 "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\",\"function\":{"
                                 "\"name\":\"f\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"a\","
                                 "\"content\":\"1\"}]}");
    assert_int_equal(r.problem.http_status, 0);
    assert_true(r.rules && r.rules->choice == MX_TOOLS_NONE && mx_rules_bind(r.rules));
    mx_api_request_free(&r);
}

/* `before`, `text` `count` times, `behind`. Its owner is the caller. */
static char *repeated(const char *before, const char *text, int count, const char *behind) {
    mx_bytes body = {0};
    assert_true(mx_bytes_add_string(&body, before));
    for (int i = 0; i < count; i++) assert_true(mx_bytes_add_string(&body, text));
    assert_true(mx_bytes_add_string(&body, behind));
    return body.data;
}

/* What is far too long is not tokenised to its end: there are few ids of it, but more than fit. */
static void test_far_too_long(void **unused) {
    (void)unused;
    enum { CONTEXT = 1000, WORDS = 100000 };
    static const char messages[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}", behind[] = "\"}]}";
    static const struct {
        bool chat;
        const char *before, *text;
        int count;
        const char *behind;
    } c[] = {
        {false, "{\"prompt\":\"", "the fox ", WORDS, "\"}"},
        {false, "{\"prompt\":\"", "\xc3\xa4 the fox the fox the fox ", WORDS, "\"}"},
        {true, "{\"messages\":[{\"role\":\"user\",\"content\":\"", "the fox ", WORDS, behind},
        {true, "{\"messages\":[{\"role\":\"system\",\"content\":\"", "the fox ", WORDS, behind},
        {true, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"", "the fox ", WORDS,
         behind},
        {true, messages, ",{\"role\":\"user\",\"content\":\"the fox and the lamp\"}", WORDS / 5, "]}"},
        {true, messages, ",{\"role\":\"assistant\",\"content\":\"the fox and the lamp\"}", WORDS / 5, "]}"},
    };
    settings.setup.context = CONTEXT;
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        char *body = repeated(c[i].before, c[i].text, c[i].count, c[i].behind);
        mx_api_request r = read_body(c[i].chat, true, body);
        assert_true(r.beyond && r.prompts[0].count > CONTEXT && r.prompts[0].count < WORDS);
        assert_string_equal(r.problem.code, "context_length_exceeded");
        assert_non_null(strstr(r.problem.text, "the prompt has more than 1000:"));
        mx_api_request_free(&r);
        free(body);
    }
    settings.setup.context = 0;
}

/* One that is long but fits is the same with and without a context. */
static void test_long_that_fits(void **unused) {
    (void)unused;
    char *bodies[] = {
        repeated("{\"prompt\":\"", " something beautiful", 30000, "\"}"),
        repeated("{\"messages\":[{\"role\":\"user\",\"content\":\"", " something beautiful", 30000, "\"}]}")};
    for (int i = 0; i < 2; i++) {
        mx_api_request r[2];
        for (int k = 0; k < 2; k++) {
            settings.setup.context = k ? 65000 : 0;
            r[k] = read_body(i, true, bodies[i]);
            assert_true(r[k].problem.http_status == 0 && !r[k].beyond);
        }
        assert_true(r[0].prompts[0].count == r[1].prompts[0].count && r[0].prompts[0].count > 50000);
        assert_memory_equal(r[0].prompts[0].data, r[1].prompts[0].data,
                            (size_t)r[0].prompts[0].count * sizeof *r[0].prompts[0].data);
        mx_api_request_free(&r[0]);
        mx_api_request_free(&r[1]);
        free(bodies[i]);
    }
    settings.setup.context = 0;
}

/* Without a vocabulary what needs a grammar is refused, and tools go on as the prompt tells them. */
static void test_without_vocabulary(void **unused) {
    (void)unused;
    mx_vocabulary **later = settings.later;
    settings.later = NULL;
    expect_problem(true, true,
                   "{" HI ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":"
                   "\"none\"}",
                   "tool_choice", "unsupported_value");
    mx_api_request r =
        read_body(true, true, "{" HI ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}");
    assert_int_equal(r.problem.http_status, 0);
    assert_null(r.rules);
    mx_api_request_free(&r);
    settings.later = later;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),         cmocka_unit_test(test_problems),
        cmocka_unit_test(test_stops),          cmocka_unit_test(test_calls_before),
        cmocka_unit_test(test_room),           cmocka_unit_test(test_far_too_long),
        cmocka_unit_test(test_long_that_fits), cmocka_unit_test(test_without_vocabulary),
    };
    return cmocka_run_group_tests_name("requests", tests, api_set_up, api_tear_down);
}
