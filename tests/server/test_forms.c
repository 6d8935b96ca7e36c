/* Answers as /v1/responses and /v1/messages tell them: whatever the model writes, streams say what whole answers say.
 * And the responses that are kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/anthropic.h"
#include "server/responses.h"

#define ID "0123456789abcdef0123456789abcdef"

static mx_tokenizer *tokenizer;
static mx_ids stop_tokens;

static int open_tokenizer(void **unused) {
    (void)unused;
    char path[4096];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (mx_tokenizer_open(path, &tokenizer, NULL)) return -1;
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    return mx_ids_add(&stop_tokens, special.return_) && mx_ids_add(&stop_tokens, special.call) &&
                   mx_ids_add(&stop_tokens, special.endoftext)
               ? 0
               : -1;
}

static int close_tokenizer(void **unused) {
    (void)unused;
    mx_ids_free(&stop_tokens);
    mx_tokenizer_close(tokenizer);
    return 0;
}

/* ---- answers of a model that says what it is told ---------------------------------------------------------------- */
typedef struct scene {
    const mx_form *form;
    mx_server_parts parts;
    mx_work work;
    mx_api_answer answer;
    mx_ids prompt;
    char *stop[1];
    mx_bytes out;
    mx_piece held[8];
    int held_count;
} scene;

static bool hold(void *answer, const mx_piece *piece) {
    scene *s = ((mx_api_answer *)answer)->owner;
    assert_true(s->held_count < 8);
    mx_piece *held = &s->held[s->held_count++];
    *held = *piece;
    held->text = strndup(piece->text, piece->size);
    held->name = piece->name ? strdup(piece->name) : NULL;
    return true;
}

/* As the server has it: pieces are told once the token's logprobs are there. */
static void take(scene *s, const mx_event *e) {
    s->held_count = 0;
    assert_int_equal(mx_api_answer_take(&s->answer, &s->parts.settings, &s->work.request, e, NULL), MX_OK);
    for (int i = 0; i < s->held_count; i++) {
        assert_true(s->form->piece(&s->work, &s->answer, &s->held[i], &s->out));
        free((void *)s->held[i].text);
        free((void *)s->held[i].name);
    }
}

static void answer_with(scene *s, const char *text, mx_finish finish) {
    mx_ids ids = {0};
    mx_event e = {.type = MX_EVENT_TOKEN, .logprob = -0.5f};
    assert_int_equal(mx_encode_special(tokenizer, text, strlen(text), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count; i++) {
        e.token = ids.data[i];
        take(s, &e);
    }
    take(s, &(mx_event){.type = MX_EVENT_FINISHED, .finish = finish});
    mx_ids_free(&ids);
}

static void begin(scene *s, const mx_form *form, bool stream, void *state, int logprobs) {
    *s = (scene){.form = form, .parts = {.tokenizer = tokenizer, .model = "stories"}, .stop = {(char *)"kangaroo"}};
    s->parts.settings = (mx_api_settings){.tokenizer = tokenizer, .stop_tokens = &stop_tokens, .model = "stories"};
    assert_true(mx_ids_add(&s->prompt, 1));
    s->work = (mx_work){.parts = &s->parts, .answers = &s->answer, .count = 1, .id = ID, .stream = stream};
    s->work.request = (mx_api_request){.chat = true,
                                       .prompts = &s->prompt,
                                       .prompt_count = 1,
                                       .n = 1,
                                       .best_of = 1,
                                       .logprobs = logprobs,
                                       .stop = s->stop,
                                       .stop_count = 1};
    s->work.state = state;
    s->answer.owner = s;
    assert_int_equal(mx_api_answer_init(&s->answer, &s->parts.settings, &s->work.request, stream ? hold : NULL, NULL),
                     MX_OK);
    if (stream) assert_true(form->begin(&s->work, &s->out));
}

static void end(scene *s) {
    s->form->free(s->work.state);
    mx_api_answer_free(&s->answer);
    mx_ids_free(&s->prompt);
    mx_bytes_free(&s->out);
}

static mx_responses_state *responses_state(void) {
    mx_responses_state *state = calloc(1, sizeof *state);
    assert_non_null(state);
    assert_true(mx_bytes_add_string(&state->echo, "\"store\":false,"));
    return state;
}

static mx_anthropic_state *anthropic_state(bool thinking) {
    mx_anthropic_state *state = calloc(1, sizeof *state);
    assert_non_null(state);
    state->thinking = thinking;
    return state;
}

/* ---- events ------------------------------------------------------------------------------------------------------ */
/* The next event of a stream; NULL: that was all. */
static mx_json_document *next_event(const char **text) {
    mx_json_document *document;
    char name[64], type[64] = "";
    if (!**text) return NULL;
    assert_int_equal(sscanf(*text, "event: %63s\n", name), 1);
    const char *data = strstr(*text, "\ndata: "), *last = strstr(*text, "\n\n");
    assert_non_null(data);
    assert_non_null(last);
    assert_int_equal(mx_json_parse("event", data + 7, (size_t)(last - data - 7), &document, NULL), MX_OK);
    const mx_json *v = mx_json_get(mx_json_root(document), "type");
    assert_non_null(v);
    snprintf(type, sizeof type, "%s", v->text);
    assert_string_equal(type, name);
    *text = last + 2;
    return document;
}

static const char *word(const mx_json *object, const char *name) {
    const mx_json *v = mx_json_get(object, name);
    return v && v->type == MX_JSON_STRING ? v->text : "";
}

static void copy(mx_bytes *out, const mx_json *v) {
    if (out->size) assert_true(mx_bytes_add_string(out, "\n"));
    assert_true(mx_json_write(out, v));
}

/* ---- /v1/responses ----------------------------------------------------------------------------------------------- */
/* The items of a response, one a line. */
static void items_of(const mx_json *response, mx_bytes *out) {
    for (const mx_json *v = mx_json_get(response, "output")->child; v; v = v->next) copy(out, v);
}

/* Checks a stream, and gives its items. */
static void check_stream(const char *text, const char *status, mx_bytes *items) {
    mx_bytes delta = {0}, last = {0};
    int64_t number = 0, told;
    uint32_t tokens = 0;
    bool over = false;
    mx_json_document *document;
    while ((document = next_event(&text))) {
        const mx_json *e = mx_json_root(document);
        const char *type = strchr(word(e, "type"), '.');
        assert_non_null(type++);
        assert_false(over);
        assert_true(mx_json_int64(mx_json_get(e, "sequence_number"), &told) && told == number++);
        if (mx_ends_with(type, ".delta")) {
            assert_true(mx_bytes_add_string(&delta, word(e, "delta")));
            if (mx_json_get(e, "logprobs")) tokens += mx_json_get(e, "logprobs")->count;
        } else if (mx_ends_with(type, "_text.done") || mx_ends_with(type, "arguments.done")) {
            assert_string_equal(delta.data ? delta.data : "",
                                *word(e, "text") ? word(e, "text") : word(e, "arguments"));
            if (mx_json_get(e, "logprobs")) assert_int_equal(tokens, mx_json_get(e, "logprobs")->count);
            mx_bytes_clear(&delta);
        } else if (strcmp(type, "output_item.done") == 0) {
            tokens = 0;
            copy(items, mx_json_get(e, "item"));
        } else if (strcmp(type, status) == 0) {
            assert_string_equal(word(mx_json_get(e, "response"), "status"), status);
            items_of(mx_json_get(e, "response"), &last);
            over = true;
        }
        mx_json_free(document);
    }
    assert_true(over);
    assert_string_equal(items->data ? items->data : "", last.data ? last.data : "");
    mx_bytes_free(&delta);
    mx_bytes_free(&last);
}

/* The answer's items, whole and as a stream, with their texts as `expected` has them: "reasoning(...)message(...)". */
static void check_responses(const char *text, mx_finish finish, const char *status, const char *expected) {
    mx_bytes whole = {0}, streamed = {0}, log = {0};
    mx_json_document *document;
    scene s;
    begin(&s, &mx_responses_form, false, responses_state(), 1);
    answer_with(&s, text, finish);
    assert_true(s.form->finish(&s.work, &s.out));
    assert_int_equal(mx_json_parse("whole", s.out.data, s.out.size, &document, NULL), MX_OK);
    const mx_json *response = mx_json_root(document);
    assert_string_equal(word(response, "status"), status);
    items_of(response, &whole);
    for (const mx_json *v = mx_json_get(response, "output")->child; v; v = v->next) {
        const mx_json *content = mx_json_get(v, "content");
        const bool cut = mx_json_is_string(mx_json_get(v, "status"), "incomplete");
        assert_true(mx_bytes_addf(&log, "%s(%s%s", *word(v, "name") ? word(v, "name") : word(v, "type"),
                                  content ? word(content->child, "text") : word(v, "arguments"), cut ? "..." : ")"));
    }
    assert_string_equal(log.data ? log.data : "", expected);
    mx_json_free(document);
    end(&s);
    begin(&s, &mx_responses_form, true, responses_state(), 1);
    answer_with(&s, text, finish);
    assert_true(s.form->finish(&s.work, &s.out));
    check_stream(s.out.data, status, &streamed);
    assert_string_equal(streamed.data ? streamed.data : "", whole.data ? whole.data : "");
    end(&s);
    mx_bytes_free(&whole);
    mx_bytes_free(&streamed);
    mx_bytes_free(&log);
}

static const char loop[] = "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary"
                           "<|message|>One moment.<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
                           "<|message|>";

static void test_responses(void **unused) {
    (void)unused;
    char text[1000];
    check_responses(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>",
        MX_FINISH_STOP, "completed", "reasoning(Hm.)message(Hi.)");
    check_responses("<|channel|>analysis<|message|>Hm", MX_FINISH_LENGTH, "incomplete", "reasoning(Hm...");
    check_responses("<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>Hi",
                    MX_FINISH_CONTEXT, "incomplete", "message(Hi...");
    check_responses("<|channel|>final<|message|>A kangaroo.<|return|>", MX_FINISH_CANCELLED, "completed",
                    "message(A )");
    check_responses("", MX_FINISH_LENGTH, "incomplete", "");
    snprintf(text, sizeof text, "%s{\"a\":1}<|call|>", loop);
    check_responses(text, MX_FINISH_STOP, "completed", "reasoning(I look.)message(One moment.)f({\"a\":1})");
    snprintf(text, sizeof text, "%s<|call|>", loop);
    check_responses(text, MX_FINISH_STOP, "completed", "reasoning(I look.)message(One moment.)f({})");
    snprintf(text, sizeof text, "%s{\"a", loop);
    check_responses(text, MX_FINISH_LENGTH, "incomplete", "reasoning(I look.)message(One moment.)f({\"a...");
    snprintf(text, sizeof text, "%s \"{\\\"a\\\":1}\"<|call|>", loop);
    check_responses(text, MX_FINISH_STOP, "completed", "reasoning(I look.)message(One moment.)f({\"a\":1})");
}

static void test_responses_broken(void **unused) {
    (void)unused;
    mx_api_problem problem;
    scene s;
    begin(&s, &mx_responses_form, true, responses_state(), -1);
    mx_api_wrong(&problem, NULL, "server_error", "the engine is gone");
    assert_true(s.form->broken(&s.work, &problem, &s.out));
    assert_non_null(strstr(s.out.data, "event: response.failed\n"));
    assert_non_null(strstr(s.out.data, "\"error\":{\"code\":\"server_error\",\"message\":\"the engine is gone\"}"));
    end(&s);
}

/* ---- /v1/messages ------------------------------------------------------------------------------------------------ */
/* "thinking(...)", "text(...)", "use(...)" */
static void log_block(const mx_json *block, mx_bytes *log) {
    const char *type = word(block, "type");
    const bool use = strcmp(type, "tool_use") == 0;
    assert_true(mx_bytes_addf(log, "%s(%s", use ? word(block, "name") : type, use ? "" : word(block, type)));
    if (use) assert_true(mx_json_write(log, mx_json_get(block, "input")));
    assert_true(mx_bytes_add_string(log, ")"));
    if (strcmp(type, "thinking") == 0) assert_string_equal(word(block, "signature"), MX_ANTHROPIC_SIGNATURE ID);
}

/* The same of a stream, with the reason at its end. */
static void log_stream(const char *text, mx_bytes *log, mx_bytes *reason) {
    mx_json_document *document;
    int64_t index = -1, told;
    bool over = false;
    while ((document = next_event(&text))) {
        const mx_json *e = mx_json_root(document), *delta = mx_json_get(e, "delta");
        const char *type = word(e, "type");
        assert_false(over);
        if (strcmp(type, "content_block_start") == 0) {
            const mx_json *block = mx_json_get(e, "content_block");
            assert_true(mx_json_int64(mx_json_get(e, "index"), &told) && told == ++index);
            assert_true(mx_bytes_addf(log, "%s(", *word(block, "name") ? word(block, "name") : word(block, "type")));
        } else if (strcmp(type, "content_block_delta") == 0) {
            assert_true(mx_json_int64(mx_json_get(e, "index"), &told) && told == index);
            assert_true(mx_bytes_addf(log, "%s%s%s", word(delta, "text"), word(delta, "thinking"),
                                      word(delta, "partial_json")));
        } else if (strcmp(type, "content_block_stop") == 0) {
            assert_true(mx_bytes_add_string(log, ")"));
        } else if (strcmp(type, "message_delta") == 0) {
            copy(reason, delta);
        }
        over = strcmp(type, "message_stop") == 0;
        mx_json_free(document);
    }
    assert_true(over);
}

static void check_messages(const char *text, mx_finish finish, bool thinking, const char *expected,
                           const char *expected_reason) {
    mx_bytes log = {0}, reason = {0};
    mx_json_document *document;
    scene s;
    begin(&s, &mx_anthropic_form, false, anthropic_state(thinking), -1);
    answer_with(&s, text, finish);
    assert_true(s.form->finish(&s.work, &s.out));
    assert_int_equal(mx_json_parse("whole", s.out.data, s.out.size, &document, NULL), MX_OK);
    for (const mx_json *v = mx_json_get(mx_json_root(document), "content")->child; v; v = v->next) log_block(v, &log);
    assert_string_equal(log.data ? log.data : "", expected);
    assert_non_null(strstr(s.out.data, expected_reason));
    mx_json_free(document);
    end(&s);
    mx_bytes_clear(&log);
    begin(&s, &mx_anthropic_form, true, anthropic_state(thinking), -1);
    answer_with(&s, text, finish);
    assert_true(s.form->finish(&s.work, &s.out));
    log_stream(s.out.data, &log, &reason);
    assert_string_equal(log.data ? log.data : "", expected);
    assert_non_null(strstr(reason.data, expected_reason));
    end(&s);
    mx_bytes_free(&log);
    mx_bytes_free(&reason);
}

static void test_messages(void **unused) {
    (void)unused;
    static const char both[] = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
                               "Hi.<|return|>";
    char text[1000];
    check_messages(both, MX_FINISH_STOP, true, "thinking(Hm.)text(Hi.)", "\"stop_reason\":\"end_turn\"");
    check_messages(both, MX_FINISH_STOP, false, "text(Hi.)", "\"stop_reason\":\"end_turn\",\"stop_sequence\":null");
    /* Nothing else is there: not told would be silence. */
    check_messages("<|channel|>analysis<|message|>Hm", MX_FINISH_LENGTH, false, "thinking(Hm)", "\"max_tokens\"");
    check_messages("<|channel|>final<|message|>Hi", MX_FINISH_CONTEXT, false, "text(Hi)",
                   "\"model_context_window_exceeded\"");
    check_messages("<|channel|>final<|message|>A kangaroo.<|return|>", MX_FINISH_CANCELLED, false, "text(A )",
                   "\"stop_reason\":\"stop_sequence\",\"stop_sequence\":\"kangaroo\"");
    snprintf(text, sizeof text, "%s{\"a\": 1}<|call|>", loop);
    check_messages(text, MX_FINISH_STOP, false, "text(One moment.)f({\"a\":1})", "\"tool_use\"");
    check_messages(text, MX_FINISH_STOP, true, "thinking(I look.)text(One moment.)f({\"a\":1})", "\"tool_use\"");
    snprintf(text, sizeof text, "%s<|call|>", loop);
    check_messages(text, MX_FINISH_STOP, false, "text(One moment.)f({})", "\"tool_use\"");
    snprintf(text, sizeof text, "%s\"{\\\"a\\\":1}\"<|call|>", loop);
    check_messages(text, MX_FINISH_STOP, false, "text(One moment.)f({\"a\":1})", "\"tool_use\"");
    /* No object: it stays text. */
    snprintf(text, sizeof text, "%s[1]<|call|>", loop);
    check_messages(text, MX_FINISH_STOP, false, "text(One moment.)text(f [1])", "\"end_turn\"");
    snprintf(text, sizeof text, "%s{\"a\":<|call|>", loop);
    check_messages(text, MX_FINISH_STOP, false, "text(One moment.)text(f {\"a\":)", "\"end_turn\"");
    snprintf(text, sizeof text, "%s{\"a\":1}", loop);
    check_messages(text, MX_FINISH_LENGTH, false, "text(One moment.)text(f {\"a\":1})", "\"max_tokens\"");
}

static void test_messages_broken(void **unused) {
    (void)unused;
    mx_api_problem problem;
    scene s;
    begin(&s, &mx_anthropic_form, true, anthropic_state(false), -1);
    mx_bytes_clear(&s.out);
    mx_api_wrong(&problem, NULL, "server_error", "the engine is gone");
    problem.http_status = 500;
    assert_true(s.form->broken(&s.work, &problem, &s.out));
    assert_string_equal(s.out.data, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\","
                                    "\"message\":\"the engine is gone\"},\"request_id\":\"req_" ID "\"}\n\n");
    end(&s);
}

/* ---- what is kept ------------------------------------------------------------------------------------------------ */
static void put(mx_response_store *store, const char *id, mx_stored_response *previous, size_t size) {
    mx_bytes input = {0}, body = {0};
    assert_true(mx_bytes_add_string(&input, "[]"));
    while (body.size < size) assert_true(mx_bytes_add_string(&body, id));
    mx_response_store_put(store, id, previous, &input, &body);
    assert_null(input.data);
    assert_null(body.data);
}

static bool has(mx_response_store *store, const char *id) {
    mx_stored_response *r = mx_response_store_find(store, id);
    mx_stored_response_release(store, r);
    return r;
}

static void test_store(void **unused) {
    (void)unused;
    mx_response_store *store;
    char id[48];
    assert_null(mx_response_store_find(NULL, "resp_1"));
    assert_int_equal(mx_response_store_create(20000, &store, NULL), MX_OK);
    put(store, "resp_a", NULL, 100);
    mx_stored_response *a = mx_response_store_find(store, "resp_a");
    assert_non_null(a);
    put(store, "resp_b", a, 100);
    mx_stored_response_release(store, a);
    /* What b goes on from stays with it. */
    assert_true(mx_response_store_delete(store, "resp_a"));
    assert_false(mx_response_store_delete(store, "resp_a"));
    assert_false(has(store, "resp_a"));
    mx_stored_response *b = mx_response_store_find(store, "resp_b");
    assert_string_equal(b->previous->id, "resp_a");
    /* The oldest go first, but not those that are asked for or held. */
    for (int i = 0; i < 40; i++) {
        snprintf(id, sizeof id, "resp_%d", i);
        put(store, id, NULL, 1000);
        assert_true(has(store, "resp_0"));
    }
    assert_false(has(store, "resp_b"));
    assert_false(has(store, "resp_1"));
    assert_true(has(store, "resp_39"));
    assert_string_equal(b->id, "resp_b");
    mx_stored_response_release(store, b);
    put(store, "resp_huge", NULL, 2600); /* more than its share: the others stay */
    assert_false(has(store, "resp_huge"));
    assert_true(has(store, "resp_39"));
    mx_response_store_free(store);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_responses), cmocka_unit_test(test_responses_broken),
        cmocka_unit_test(test_messages),  cmocka_unit_test(test_messages_broken),
        cmocka_unit_test(test_store),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
