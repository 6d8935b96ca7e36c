/* Texts to windows: every protocol scores what it says, with the past that it says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evaluate/windows.h"

static mx_tokenizer *tokenizer;
static mx_error error;

static int open_tokenizer(void **state) {
    (void)state;
    char path[4096];
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", root ? root : ".");
    return mx_tokenizer_open(path, &tokenizer, &error) ? -1 : 0;
}

static int close_tokenizer(void **state) {
    (void)state;
    mx_tokenizer_close(tokenizer);
    return 0;
}

static mx_windows make(const char *text, mx_evaluate_options o, mx_status expected) {
    mx_windows w = {0};
    const mx_evaluate_text t = {"a text", text, strlen(text)};
    const mx_status status = mx_windows_make(tokenizer, &t, 1, &o, 4097, 4096, &w, &error);
    if (status != expected) fail_msg("%d: %s", status, status ? error.text : "");
    return w;
}

static void add_ids(mx_windows *w, int64_t count) {
    for (int64_t i = 0; i < count; i++) assert_true(mx_ids_add(&w->ids, (int32_t)(i % 4000)));
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */
static void strided(void **state) {
    (void)state;
    static const int counts[] = {0, 1, 2, 9, 10, 11, 24, 25, 26, 137};
    for (int window = 2; window <= 25; window++) {
        for (int stride = 1; stride < window; stride++) {
            for (int c = 0; c < 10; c++) {
                const mx_evaluate_options o = {.window = window, .stride = stride};
                mx_windows w;
                assert_int_equal(mx_windows_begin(&o, 100, &w, &error), MX_OK);
                add_ids(&w, counts[c]);
                assert_int_equal(mx_windows_add(&w, 0, 1, &error), MX_OK);
                mx_windows_end(&w, 0);
                int64_t scored = 1; /* tokens 1 .. scored - 1 were scored, each once */
                for (int64_t i = 0; i < w.count; i++) {
                    const mx_window *v = &w.window_at[i];
                    assert_int_equal(v->begin, i * stride);
                    assert_true(v->end - v->begin <= window && v->begin < v->first && v->first < v->end);
                    assert_int_equal(v->first, scored);
                    assert_int_equal(v->scored, scored - 1);
                    if (i) assert_true(v->first - v->begin >= window - stride);
                    scored = v->end;
                }
                assert_int_equal(w.scored, counts[c] > 1 ? counts[c] - 1 : 0);
                assert_int_equal(w.scored, scored - 1);
                mx_windows_free(&w);
            }
        }
    }
}

/* tools/perplexity of llama.cpp: n_ctx / 512 chunks, logits of rows n_ctx / 2 .. n_ctx - 2, each of the token behind.
 */
static void as_llama_cpp(void **state) {
    (void)state;
    static const int sizes[] = {512, 512, 128, 3, 2}, counts[] = {512, 1600, 1000, 10, 9};
    for (int c = 0; c < 5; c++) {
        const mx_evaluate_options o = {.protocol = MX_PROTOCOL_LLAMA_CPP, .window = c ? sizes[c] : 0};
        mx_windows w;
        assert_int_equal(mx_windows_begin(&o, 4097, &w, &error), MX_OK);
        add_ids(&w, counts[c]);
        assert_int_equal(mx_windows_add(&w, 0, 1, &error), MX_OK);
        mx_windows_end(&w, 0);
        assert_int_equal(w.count, counts[c] / sizes[c]);
        for (int64_t i = 0; i < w.count; i++) {
            const mx_window *v = &w.window_at[i];
            assert_int_equal(v->begin, i * sizes[c]);
            assert_int_equal(v->end, v->begin + sizes[c]);
            assert_int_equal(v->first, v->begin + (sizes[c] == 2 ? 1 : sizes[c] / 2 + 1));
        }
        if (!c) assert_int_equal(w.scored, 255);
        mx_windows_free(&w);
    }
}

static void only_the_first_tokens(void **state) {
    (void)state;
    const mx_evaluate_options o = {.window = 10, .stride = 4};
    for (int most = 1; most < 60; most++) {
        mx_windows w;
        assert_int_equal(mx_windows_begin(&o, 100, &w, &error), MX_OK);
        add_ids(&w, 50);
        assert_int_equal(mx_windows_add(&w, 0, 1, &error), MX_OK);
        mx_windows_end(&w, most);
        const mx_window *last = &w.window_at[w.count - 1];
        assert_int_equal(w.scored, most < 49 ? most : 49);
        assert_int_equal(last->scored + last->end - last->first, w.scored);
        assert_true(last->end > last->first);
        mx_windows_free(&w);
    }
}

static void wrong_numbers(void **state) {
    (void)state;
    static const struct {
        mx_protocol protocol;
        int64_t window, stride;
    } wrong[] = {{MX_PROTOCOL_STRIDED, 1, 0},   {MX_PROTOCOL_STRIDED, 101, 0},    {MX_PROTOCOL_STRIDED, -5, 0},
                 {MX_PROTOCOL_STRIDED, 50, 50}, {MX_PROTOCOL_STRIDED, 50, -1},    {MX_PROTOCOL_DOCUMENTS, 50, 51},
                 {MX_PROTOCOL_LLAMA_CPP, 0, 0}, {MX_PROTOCOL_LLAMA_CPP, 100, 50}, {(mx_protocol)4, 0, 0},
                 {(mx_protocol)-1, 0, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const mx_evaluate_options o = {
            .protocol = wrong[i].protocol, .window = wrong[i].window, .stride = wrong[i].stride};
        mx_windows w;
        if (mx_windows_begin(&o, 100, &w, &error) != MX_INVALID_ARGUMENT) fail_msg("case %zu", i);
    }
    mx_windows w;
    assert_int_equal(mx_windows_begin(&(mx_evaluate_options){0}, 100, &w, &error), MX_OK);
    assert_int_equal(w.window, 100); /* what the context allows */
    assert_int_equal(w.stride, 50);
}

static void names(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        mx_protocol p = (mx_protocol)9;
        assert_true(mx_protocol_parse(mx_protocol_name((mx_protocol)i), &p));
        assert_int_equal(p, i);
    }
    mx_protocol p;
    assert_false(mx_protocol_parse("", &p));
    assert_false(mx_protocol_parse("Strided", &p));
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */
static void bytes_are_those_of_scored_tokens(void **state) {
    (void)state;
    const char *text = "Once upon a time there was a fox.";
    size_t first;
    mx_windows w = make(text, (mx_evaluate_options){0}, MX_OK);
    mx_token_bytes(tokenizer, w.ids.data[0], &first);
    assert_int_equal(w.bytes, (int64_t)(strlen(text) - first));
    assert_int_equal(w.scored, w.ids.count - 1);
    mx_windows_free(&w);
    w = make("ab\xff\xfe\xe2\x82 c", (mx_evaluate_options){.protocol = MX_PROTOCOL_DOCUMENTS}, MX_OK);
    assert_int_equal(w.bytes, 2 + 3 * 3 + 2); /* invalid parts are U+FFFD, of 3 bytes each */
    mx_windows_free(&w);
}

static void too_little(void **state) {
    (void)state;
    for (int p = 0; p < 4; p++) {
        mx_windows w = make("", (mx_evaluate_options){.protocol = (mx_protocol)p}, MX_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "empty"));
        mx_windows_free(&w);
    }
    mx_windows w = make("a", (mx_evaluate_options){0}, MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "two tokens"));
    mx_windows_free(&w);
    w = make("a b c", (mx_evaluate_options){.protocol = MX_PROTOCOL_LLAMA_CPP}, MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "whole windows of 512"));
    mx_windows_free(&w);
    w = make("a", (mx_evaluate_options){.protocol = MX_PROTOCOL_DOCUMENTS}, MX_OK);
    assert_int_equal(w.scored, 1);
    assert_int_equal(w.bytes, 1);
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    assert_int_equal(w.ids.data[0], special.startoftext >= 0 ? special.startoftext : special.endoftext);
    mx_windows_free(&w);
}

static void each_text_apart(void **state) {
    (void)state;
    const mx_evaluate_text texts[] = {
        {"a", "One fox.", 8}, {"b", "", 0}, {"c", "x", 1}, {"d", "Two little foxes.", 17}};
    for (int p = 0; p < 4; p += 2) {
        mx_windows w = {0};
        const mx_evaluate_options o = {.protocol = (mx_protocol)p, .window = 5, .stride = 3};
        assert_int_equal(mx_windows_make(tokenizer, texts, 4, &o, 100, 4096, &w, &error), MX_OK);
        assert_int_equal(w.scored, w.ids.count - 3); /* of prefixes, or of first tokens */
        if (p) assert_int_equal(w.bytes, 8 + 1 + 17);
        for (int64_t i = 1; i < w.count; i++) assert_true(w.window_at[i].first >= w.window_at[i - 1].end);
        mx_windows_free(&w);
    }
}

static void a_foreign_tokenizer(void **state) {
    (void)state;
    mx_windows w = {0};
    const mx_evaluate_text t = {"a text", "A fox and a lamp.", 17};
    const mx_evaluate_options o = {0};
    assert_int_equal(mx_windows_make(tokenizer, &t, 1, &o, 100, 100, &w, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "another model's"));
    mx_windows_free(&w);
}

/* ---- conversations ----------------------------------------------------------------------------------------------- */
static void expect_ids(const mx_windows *w, const char *rendered, const char *answer) {
    mx_ids before = {0}, after = {0};
    assert_int_equal(mx_encode_special(tokenizer, rendered, strlen(rendered), &before, &error), MX_OK);
    assert_int_equal(mx_encode(tokenizer, answer, strlen(answer), &after, &error), MX_OK);
    assert_int_equal(w->ids.count, before.count + after.count);
    assert_memory_equal(w->ids.data, before.data, sizeof *before.data * (size_t)before.count);
    assert_memory_equal(w->ids.data + before.count, after.data, sizeof *after.data * (size_t)after.count);
    assert_int_equal(w->window_at[0].first, before.count);
    assert_int_equal(w->scored, after.count);
    assert_int_equal(w->bytes, strlen(answer));
    mx_ids_free(&before);
    mx_ids_free(&after);
}

#define SYSTEM                                                                                                         \
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"                           \
    "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n"                                                               \
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
#define ASKED(text) "<|start|>user<|message|>" text "<|end|>"
#define ANSWER      "<|start|>assistant<|channel|>final<|message|>"

static void harmony(void **state) {
    (void)state;
    const mx_evaluate_options o = {.protocol = MX_PROTOCOL_HARMONY};
    mx_windows w = make("A fox <|end|> sat.", o, MX_OK);
    expect_ids(&w, SYSTEM ASKED("Write a text.") ANSWER, "A fox <|end|> sat.");
    mx_windows_free(&w);
    w = make("{not JSON}", o, MX_OK);
    expect_ids(&w, SYSTEM ASKED("Write a text.") ANSWER, "{not JSON}");
    mx_windows_free(&w);
    w = make(" {\"messages\": [{\"role\": \"user\", \"content\": \"Who?\"}, {\"role\": \"assistant\", \"content\": "
             "\"A fox.\"}]}",
             o, MX_OK);
    expect_ids(&w, SYSTEM ASKED("Who?") ANSWER, "A fox.");
    mx_windows_free(&w);
    w = make("{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"A?\"},"
             "{\"role\":\"assistant\",\"content\":\"B.\"},{\"role\":\"user\",\"content\":\"C?\"},{\"role\":"
             "\"assistant\",\"content\":\"D.\"}]}",
             o, MX_OK);
    expect_ids(&w,
               SYSTEM "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>" ASKED("A?") ANSWER
               "B.<|end|>" ASKED("C?") ANSWER,
               "D.");
    mx_windows_free(&w);
}

static void harmony_in_windows(void **state) {
    (void)state;
    mx_windows w = make("A fox and a lamp went into the wood, and the wood was dark and cold and full of owls.",
                        (mx_evaluate_options){.protocol = MX_PROTOCOL_HARMONY, .window = 16, .stride = 8}, MX_OK);
    assert_true(w.count > 1);
    int64_t scored = w.window_at[0].first;
    assert_true(w.window_at[0].begin > 0); /* windows in which nothing is scored are not computed */
    for (int64_t i = 0; i < w.count; i++) {
        assert_int_equal(w.window_at[i].first, scored);
        assert_true(w.window_at[i].end - w.window_at[i].begin <= 16);
        scored = w.window_at[i].end;
    }
    assert_int_equal(scored, w.ids.count);
    mx_windows_free(&w);
}

static void wrong_conversations(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "{\"messages\": 5}",
        "{\"messages\": []}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}, {\"role\": \"user\", \"content\": \"x\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": [1]}]}",
        "{\"messages\": [{\"role\": \"nobody\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}",
        "{\"messages\": [7, {\"role\": \"assistant\", \"content\": \"x\"}]}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_windows w = make(wrong[i], (mx_evaluate_options){.protocol = MX_PROTOCOL_HARMONY}, MX_INVALID_FILE);
        assert_non_null(strstr(error.text, "a text: "));
        mx_windows_free(&w);
    }
}

/* With most_tokens no more is encoded than must be, and the windows are those of the whole text, cut. */
static void only_as_much_as_is_scored(void **state) {
    (void)state;
    enum { TIMES = 40 };
    static const char fox[] = "Once upon a time a fox, a lamp and 7 owls went into the wood.\n";
    static const int most[] = {1, 2, 7, 30, 31, 64, 100, 311};
    char *text = calloc(TIMES, sizeof fox);
    assert_non_null(text);
    for (int i = 0; i < TIMES; i++) strcat(text, fox);
    for (int p = 0; p < 3; p++)
        for (size_t m = 0; m < sizeof most / sizeof *most; m++) {
            const mx_evaluate_options o = {.protocol = (mx_protocol)p, .window = 24, .most_tokens = most[m]};
            mx_windows cut = make(text, o, MX_OK), whole;
            assert_int_equal(mx_windows_begin(&o, 4097, &whole, &error), MX_OK);
            if (p == MX_PROTOCOL_DOCUMENTS) assert_true(mx_ids_add(&whole.ids, cut.ids.data[0]));
            assert_int_equal(mx_encode(tokenizer, text, strlen(text), &whole.ids, &error), MX_OK);
            assert_int_equal(mx_windows_add(&whole, 0, 1, &error), MX_OK);
            mx_windows_end(&whole, most[m]);
            assert_int_equal(cut.scored, most[m]);
            assert_int_equal(cut.ids.count, whole.ids.count);
            assert_int_equal(cut.count, whole.count);
            assert_true(cut.hash == whole.hash);
            mx_windows_free(&whole);
            mx_windows_free(&cut);
        }
    mx_ids some = {0};
    assert_int_equal(mx_encode_some(tokenizer, text, strlen(text), 10, NULL, &some, &error), MX_OK);
    assert_true(some.count >= 10 && some.count < 20);
    mx_ids_free(&some);
    free(text);
}

static void stopped(void **state) {
    (void)state;
    const volatile sig_atomic_t stop = 1;
    mx_windows w = make("A fox.", (mx_evaluate_options){.stop = &stop}, MX_CANCELLED);
    mx_windows_free(&w);
    mx_ids ids = {0};
    assert_int_equal(mx_encode_some(tokenizer, "A fox.", 6, 9, &stop, &ids, &error), MX_CANCELLED);
    assert_int_equal(ids.count, 0);
    mx_ids_free(&ids);
}

/* Several short ones are no long one. */
static void the_longest_text_is_named(void **state) {
    (void)state;
    const mx_evaluate_text texts[] = {{"a", "One fox.", 8}, {"b", "Two little foxes.", 17}, {"c", "x", 1}};
    const mx_evaluate_options o = {.protocol = MX_PROTOCOL_LLAMA_CPP};
    mx_windows w = {0};
    mx_ids ids = {0};
    char said[100];
    assert_int_equal(mx_encode(tokenizer, texts[1].text, texts[1].size, &ids, &error), MX_OK);
    snprintf(said, sizeof said, "whole windows of 512 tokens, and the longest text has %d:", (int)ids.count);
    assert_int_equal(mx_windows_make(tokenizer, texts, 3, &o, 4097, 4096, &w, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, said));
    mx_ids_free(&ids);
    mx_windows_free(&w);
}

static void the_hash_is_of_all(void **state) {
    (void)state;
    static const mx_evaluate_options o[] = {{0}, {.window = 7}, {.window = 7, .stride = 2}, {.most_tokens = 3}};
    uint64_t hash[5];
    for (int i = 0; i < 5; i++) {
        mx_windows w = make(i == 4 ? "A fox and a lump, and again." : "A fox and a lamp, and again.", o[i % 4], MX_OK);
        hash[i] = w.hash;
        mx_windows_free(&w);
        for (int j = 0; j < i; j++) assert_true(hash[i] != hash[j]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strided),
        cmocka_unit_test(as_llama_cpp),
        cmocka_unit_test(only_the_first_tokens),
        cmocka_unit_test(wrong_numbers),
        cmocka_unit_test(names),
        cmocka_unit_test(bytes_are_those_of_scored_tokens),
        cmocka_unit_test(too_little),
        cmocka_unit_test(each_text_apart),
        cmocka_unit_test(a_foreign_tokenizer),
        cmocka_unit_test(harmony),
        cmocka_unit_test(harmony_in_windows),
        cmocka_unit_test(wrong_conversations),
        cmocka_unit_test(only_as_much_as_is_scored),
        cmocka_unit_test(stopped),
        cmocka_unit_test(the_longest_text_is_named),
        cmocka_unit_test(the_hash_is_of_all),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
