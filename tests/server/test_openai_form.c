/* What a stream of OpenAI's says, chunk by chunk, of answers that are written here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/model.h"
#include "server/openai.h"

#define ID "0123456789abcdef0123456789abcdef"

static mx_tokenizer *tokenizer;
static mx_ids stop_tokens;
static mx_server_parts parts;

static int set_up(void **unused) {
    (void)unused;
    char path[4096];
    const mx_config config = {0};
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (mx_tokenizer_open(path, &tokenizer, NULL) || !mx_turn_stop_tokens(tokenizer, &config, &stop_tokens)) return 1;
    parts.settings = (mx_api_settings){.tokenizer = tokenizer, .model = "stories", .stop_tokens = &stop_tokens};
    return 0;
}

static int tear_down(void **unused) {
    (void)unused;
    mx_ids_free(&stop_tokens);
    mx_tokenizer_close(tokenizer);
    return 0;
}

/* ---- one answer -------------------------------------------------------------------------------------------------- */
static mx_bytes out; /* what was said */
static mx_work work;

/* With logprobs the server tells a piece when its token is there (work.c). */
static mx_piece held[32];
static char held_text[32][200];
static int held_count;

static bool piece(void *answer, const mx_piece *p) {
    if (work.request.logprobs < 0) {
        assert_true(mx_openai_form.piece(&work, answer, p, &out));
        return true;
    }
    assert_true(held_count < 32 && p->size < 200);
    memcpy(held_text[held_count], p->text, p->size);
    held[held_count] = *p;
    held[held_count].text = held_text[held_count];
    held_count++;
    return true;
}

static void tell_held(mx_api_answer *a) {
    for (int i = 0; i < held_count; i++) assert_true(mx_openai_form.piece(&work, a, &held[i], &out));
    held_count = 0;
}

/* The model says `text` behind <|start|>assistant, or, raw, as it stands; the chunks are in `out` then. */
static void say(mx_api_request request, const char *text, mx_finish why) {
    mx_api_answer answer = {0};
    mx_ids ids = {0};
    mx_ids prompt = {0};
    mx_error error;
    assert_int_equal(mx_encode(tokenizer, "Once", 4, &prompt, NULL), MX_OK);
    request.prompts = &prompt;
    request.prompt_count = request.n = request.best_of = 1;
    work = (mx_work){
        .parts = &parts, .request = request, .answers = &answer, .count = 1, .id = ID, .created = 12, .stream = true};
    work.state = mx_openai_state(&parts, &work.request, ID, 12);
    assert_non_null(work.state);
    mx_bytes_clear(&out);
    assert_int_equal(mx_api_answer_init(&answer, &parts.settings, &work.request, piece, &error), MX_OK);
    assert_true(mx_openai_form.begin(&work, &out));
    assert_int_equal(mx_encode_special(tokenizer, text, strlen(text), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count; i++) {
        const mx_event e = {.type = MX_EVENT_TOKEN, .token = ids.data[i], .logprob = -1};
        assert_int_equal(mx_api_answer_take(&answer, &parts.settings, &work.request, &e, &error), MX_OK);
        tell_held(&answer);
    }
    const mx_event end = {.type = MX_EVENT_FINISHED, .finish = why};
    assert_int_equal(mx_api_answer_take(&answer, &parts.settings, &work.request, &end, &error), MX_OK);
    tell_held(&answer);
    assert_true(mx_openai_form.ended(&work, &answer, &out));
    assert_true(mx_openai_form.finish(&work, &out));
    mx_openai_form.free(work.state);
    mx_api_answer_free(&answer);
    mx_ids_free(&ids);
    mx_ids_free(&prompt);
}

/* The deltas (of completions the choices) of all chunks, one a line; and finish_reason. */
static mx_bytes deltas(bool chat) {
    mx_bytes all = {0};
    for (char *p = out.data, *end; (end = strstr(p, "\n\n")); p = end + 2) {
        mx_json_document *document;
        mx_error error;
        assert_memory_equal(p, "data: ", 6);
        if (end - p == 12 && !memcmp(p + 6, "[DONE]", 6)) {
            assert_true(mx_bytes_add_string(&all, "DONE"));
            assert_string_equal(end, "\n\n");
            break;
        }
        if (mx_json_parse("chunk", p + 6, (size_t)(end - p - 6), &document, &error)) fail_msg("%s", error.text);
        const mx_json *root = mx_json_root(document), *choice = mx_json_get(root, "choices")->child;
        assert_true(mx_json_is_string(mx_json_get(root, "id"), chat ? "chatcmpl-" ID : "cmpl-" ID));
        const mx_json *finish = mx_json_get(choice, "finish_reason"),
                      *delta = chat ? mx_json_get(choice, "delta") : choice;
        if (!choice) delta = mx_json_get(root, "usage");
        assert_true(mx_json_write(&all, delta));
        if (chat && finish && finish->type == MX_JSON_STRING) assert_true(mx_bytes_addf(&all, " %s", finish->text));
        assert_true(mx_bytes_add_string(&all, "\n"));
        mx_json_free(document);
    }
    return all;
}

static void expect(bool chat, const char *expected) {
    mx_bytes said = deltas(chat);
    assert_string_equal(said.data, expected);
    mx_bytes_free(&said);
}

static const mx_api_request CHAT = {.chat = true, .logprobs = -1};
#define ROLE "{\"role\":\"assistant\",\"content\":\"\"}\n"
#define CALL_BEGIN                                                                                                     \
    "{\"tool_calls\":[{\"index\":0,\"id\":\"call_0123456789abcdef0123456789ab_0_0\",\"type\":\"function\","            \
    "\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}\n"
#define CALLED "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

/* ---- tests ------------------------------------------------------------------------------------------------------- */
/* Several messages of a kind, as the whole answer has them: an empty line between. */
static void test_messages(void **unused) {
    (void)unused;
    say(CHAT,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>"
        "assistant"
        "<|channel|>commentary<|message|>c<|end|><|start|>assistant<|channel|>final<|message|>d<|return|>",
        MX_FINISH_STOP);
    expect(true,
           ROLE "{\"reasoning_content\":\"a\"}\n{\"reasoning_content\":\"\\n\\n\"}\n{\"reasoning_content\":\"b\"}\n"
                "{\"content\":\"c\"}\n{\"content\":\"\\n\\n\"}\n{\"content\":\"d\"}\n{} stop\nDONE");
}

static void expect_arguments(const char *arguments, mx_finish why, const char *expected) {
    char text[400], all[1000];
    snprintf(text, sizeof text, CALLED "%s%s", arguments, why == MX_FINISH_STOP ? "<|call|>" : "");
    say(CHAT, text, why);
    mx_bytes said = deltas(true);
    /* Joined, for the pieces depend on the tokens. */
    mx_bytes joined = {0};
    assert_true(mx_bytes_add(&joined, "", 0));
    assert_memory_equal(said.data, ROLE CALL_BEGIN, strlen(ROLE CALL_BEGIN));
    const char *begin = "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"";
    for (char *p = said.data + strlen(ROLE CALL_BEGIN); !strncmp(p, begin, strlen(begin)); p = strchr(p, '\n') + 1) {
        p += strlen(begin);
        assert_true(mx_bytes_add(&joined, p, (size_t)(strstr(p, "\"}}]}\n") - p)));
    }
    snprintf(all, sizeof all, "{} %s\nDONE", why == MX_FINISH_STOP ? "tool_calls" : "length");
    assert_non_null(strstr(said.data, all));
    assert_string_equal(joined.data, expected);
    mx_bytes_free(&joined);
    mx_bytes_free(&said);
}

static void test_arguments(void **unused) {
    (void)unused;
    expect_arguments("{\"a\": 1}", MX_FINISH_STOP, "{\\\"a\\\": 1}");
    expect_arguments("  {\"a\": 1}", MX_FINISH_STOP, "  {\\\"a\\\": 1}");
    expect_arguments("\"{\\\"a\\\": 1}\"", MX_FINISH_STOP, "{\\\"a\\\": 1}");
    expect_arguments("\"a\"", MX_FINISH_STOP, "\\\"a\\\"");
    expect_arguments("", MX_FINISH_STOP, "{}");
    expect_arguments("  ", MX_FINISH_STOP, "  ");
    expect_arguments("{\"a", MX_FINISH_LENGTH, "{\\\"a");
    expect_arguments("\"{\\\"a", MX_FINISH_LENGTH, "\\\"{\\\\\\\"a");
    expect_arguments("", MX_FINISH_LENGTH, "");
}

/* The client's name of a function. */
static void test_name(void **unused) {
    (void)unused;
    mx_api_name name = {(char *)"f", (char *)"f!"};
    mx_api_request request = CHAT;
    request.names = &name;
    request.name_count = 1;
    say(request, CALLED "{}<|call|>", MX_FINISH_STOP);
    assert_non_null(strstr(out.data, "\"name\":\"f!\""));
}

/* Each token's logprob is told once, and none of what begins behind the cut of a stop string. */
static void test_logprobs(void **unused) {
    (void)unused;
    /* The first keeps back " fox" until " and" comes, which the second keeps back. */
    static const char *const stops[] = {" fox.", " and a"};
    for (int stopped = 0; stopped < 2; stopped++) {
        mx_api_request request = CHAT;
        request.logprobs = 0;
        request.stop = (char **)(void *)stops;
        request.stop_count = 2 * stopped;
        say(request,
            "<|channel|>analysis<|message|>Thinking.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me "
            "tell "
            "you a story.<|end|><|start|>assistant<|channel|>final<|message|>Once a fox and a whistle<|return|>",
            stopped ? MX_FINISH_CANCELLED : MX_FINISH_STOP);
        mx_bytes told = {0};
        const char token[] = "{\"token\":\"";
        for (char *p = out.data; (p = strstr(p, token)); p += strlen(token))
            assert_true(mx_bytes_add(&told, p + strlen(token), strcspn(p + strlen(token), "\"")));
        assert_string_equal(told.data, stopped ? "Let me tell you a story.Once a fox"
                                               : "Let me tell you a story.Once a fox and a whistle");
        mx_bytes_free(&told);
    }
}

static void test_usage(void **unused) {
    (void)unused;
    mx_api_request request = CHAT;
    request.include_usage = true;
    say(request, "<|channel|>final<|message|>d<|return|>", MX_FINISH_STOP);
    mx_bytes said = deltas(true);
    assert_non_null(strstr(said.data, "{} stop\n{\"prompt_tokens\":1,\"completion_tokens\":5,\"total_tokens\":6,"));
    assert_non_null(strstr(out.data, "\"choices\":[],\"usage\":{"));
    assert_int_equal(
        strncmp(strstr(out.data, "\"finish_reason\":null}]"), "\"finish_reason\":null}],\"usage\":null}", 36), 0);
    mx_bytes_free(&said);
}

static void test_completion(void **unused) {
    (void)unused;
    const mx_api_request request = {.logprobs = -1, .echo = true};
    say(request, "d", MX_FINISH_LENGTH);
    expect(false, "{\"index\":0,\"text\":\"Once\",\"logprobs\":null,\"finish_reason\":null}\n"
                  "{\"index\":0,\"text\":\"d\",\"logprobs\":null,\"finish_reason\":null}\n"
                  "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}\nDONE");
}

static void test_broken(void **unused) {
    (void)unused;
    const mx_api_problem problem = {.http_status = 500, .code = "server_error", .text = "It broke."};
    mx_bytes_clear(&out);
    assert_true(mx_openai_form.broken(&work, &problem, &out));
    assert_string_equal(out.data,
                        "data: {\"error\":{\"message\":\"It broke.\",\"type\":\"server_error\",\"param\":null,"
                        "\"code\":\"server_error\"}}\n\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages), cmocka_unit_test(test_arguments),  cmocka_unit_test(test_name),
        cmocka_unit_test(test_logprobs), cmocka_unit_test(test_completion), cmocka_unit_test(test_usage),
        cmocka_unit_test(test_broken),
    };
    const int failed = cmocka_run_group_tests_name("OpenAI's streams", tests, set_up, tear_down);
    mx_bytes_free(&out);
    return failed;
}
