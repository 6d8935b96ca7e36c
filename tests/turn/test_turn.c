#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "turn/turn.h"

static mx_tokenizer *tokenizer;

static int open_tokenizer(void **unused) {
    (void)unused;
    char path[4096];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    return mx_tokenizer_open(path, &tokenizer, NULL);
}

static int close_tokenizer(void **unused) {
    (void)unused;
    mx_tokenizer_close(tokenizer);
    return 0;
}

/* Writes the pieces as one line: T(x) thinking, A(x) answer, P(x) what is said before a call, C:name(x) call, "..." for
 * ")" where it was cut; "|" between pieces. */
static bool record(void *user, const mx_piece *piece) {
    mx_bytes *log = user;
    static const char letters[] = "TAC";
    if (piece->first) {
        mx_bytes_addf(log, "%c", piece->preamble ? 'P' : letters[piece->kind]);
        if (piece->name) mx_bytes_addf(log, ":%s", piece->name);
        mx_bytes_add_string(log, "(");
    }
    mx_bytes_add(log, piece->text, piece->size);
    if (piece->last) mx_bytes_add_string(log, piece->cut ? "..." : ")");
    return true;
}

typedef struct scene {
    mx_turn *turn;
    mx_bytes log;
    mx_ids stop_tokens;
} scene;

static void start(scene *s, bool raw, const char *const *stop, int stop_count) {
    *s = (scene){0};
    mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    assert_true(mx_ids_add(&s->stop_tokens, special.return_));
    assert_true(mx_ids_add(&s->stop_tokens, special.call));
    assert_true(mx_ids_add(&s->stop_tokens, special.endoftext));
    const mx_turn_options options = {.tokenizer = tokenizer,
                                     .raw = raw,
                                     .stop_tokens = &s->stop_tokens,
                                     .stop = stop,
                                     .stop_count = stop_count,
                                     .piece = record,
                                     .user = &s->log};
    assert_int_equal(mx_turn_create(&options, &s->turn, NULL), MX_OK);
}

static void push_text(scene *s, const char *text) {
    mx_ids ids = {0};
    assert_int_equal(mx_encode_special(tokenizer, text, strlen(text), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count && !mx_turn_over(s->turn); i++) {
        assert_int_equal(mx_turn_push(s->turn, ids.data[i], NULL), MX_OK);
    }
    mx_ids_free(&ids);
}

/* What mx_turn_message_at tells afterwards is what was heard. */
static void check_messages(const scene *s) {
    const mx_turn_result *r = mx_turn_get_result(s->turn);
    mx_bytes log = {0};
    for (int i = 0; i < mx_turn_message_count(s->turn); i++) {
        const mx_turn_message m = mx_turn_message_at(s->turn, i);
        const char *name = m.kind == MX_PIECE_TOOL_CALL ? r->tool_calls[m.call].name : NULL;
        record(&log, &(mx_piece){m.kind, true, true, m.text, m.size, name, m.cut, m.preamble});
    }
    if (mx_turn_parser(s->turn)) assert_string_equal(log.data ? log.data : "", s->log.data ? s->log.data : "");
    mx_bytes_free(&log);
}

static void finish(scene *s) {
    check_messages(s);
    mx_turn_free(s->turn);
    mx_bytes_free(&s->log);
    mx_ids_free(&s->stop_tokens);
}

/* The answer `text`, ended by the engine for the reason given, must be heard as `heard` and end as `expected`. */
static void check(const char *text, mx_finish why, const char *heard, mx_turn_finish expected) {
    scene s;
    start(&s, false, NULL, 0);
    push_text(&s, text);
    assert_int_equal(mx_turn_end(s.turn, why, NULL), MX_OK);
    assert_string_equal(s.log.data ? s.log.data : "", heard);
    assert_int_equal(mx_turn_get_result(s.turn)->finish, expected);
    finish(&s);
}

static void test_thinking_and_answer(void **unused) {
    (void)unused;
    check("<|channel|>analysis<|message|>Hm, a fox.<|end|><|start|>assistant<|channel|>final<|message|>Hello ä€😀!"
          "<|return|>",
          MX_FINISH_STOP, "T(Hm, a fox.)A(Hello ä€😀!)", MX_TURN_STOP);
    check("<|channel|>final<|message|>x<|return|>", MX_FINISH_STOP, "A(x)", MX_TURN_STOP);
    check("<|channel|>final<|message|><|return|>", MX_FINISH_STOP, "A()", MX_TURN_STOP);
}

static void test_tool_calls(void **unused) {
    (void)unused;
    check("<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"a\":1}<|call|>",
          MX_FINISH_STOP, "C:get_weather({\"a\":1})", MX_TURN_TOOL_CALLS);
    check(" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", MX_FINISH_STOP, "C:f({})",
          MX_TURN_TOOL_CALLS);
    check("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
          "<|message|><|call|>",
          MX_FINISH_STOP, "P(I look.)C:f()", MX_TURN_TOOL_CALLS);
    check("<|channel|>analysis to=python<|message|>1+1<|call|>", MX_FINISH_STOP, "C:python(1+1)", MX_TURN_TOOL_CALLS);
}

/* What each token was: T thinking, A answer, C tool call, - format; the number of its message behind it. */
static void test_kinds_of_tokens(void **unused) {
    (void)unused;
    const char text[] = "<|channel|>analysis<|message|>a b<|end|><|start|>assistant<|channel|>commentary to=functions.f"
                        "<|message|>{}<|call|>";
    mx_ids ids = {0};
    mx_bytes kinds = {0}, content = {0};
    scene s;
    start(&s, false, NULL, 0);
    assert_int_equal(mx_encode_special(tokenizer, text, strlen(text), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count; i++) {
        mx_piece_kind kind;
        size_t size;
        const char *bytes = mx_token_bytes(tokenizer, ids.data[i], &size);
        assert_int_equal(mx_turn_push(s.turn, ids.data[i], NULL), MX_OK);
        const bool is_content = mx_turn_token_kind(s.turn, &kind);
        assert_true(mx_bytes_addf(&kinds, "%c%d", is_content ? "TAC"[kind] : '-', mx_turn_token_message(s.turn)));
        if (is_content) assert_true(mx_bytes_add(&content, bytes, size));
    }
    assert_string_equal(content.data, "a b{}");
    assert_non_null(strstr(kinds.data, "-0T0T0-0-1-1"));
    assert_non_null(strstr(kinds.data, "-1C1"));
    mx_bytes_free(&kinds);
    mx_bytes_free(&content);
    mx_ids_free(&ids);
    finish(&s);
}

/* Stop strings are not looked for in the first min_tokens tokens. */
static void test_min_tokens(void **unused) {
    (void)unused;
    const char *const stop = "fox";
    for (int64_t least = 0; least < 12; least++) {
        scene s = {0};
        const mx_turn_options options = {
            .tokenizer = tokenizer, .raw = true, .stop = &stop, .stop_count = 1, .min_tokens = least};
        assert_int_equal(mx_turn_create(&options, &s.turn, NULL), MX_OK);
        push_text(&s, "a fox and a fox and a fox");
        assert_int_equal(mx_turn_end(s.turn, MX_FINISH_LENGTH, NULL), MX_OK);
        const mx_turn_result *r = mx_turn_get_result(s.turn);
        assert_true(r->ids.count > least || !r->stop_string);
        assert_int_equal(r->text.size, !r->stop_string ? 25 : least < 2 ? 2 : least < 5 ? 12 : 22);
        finish(&s);
    }
}

/* What the engine broke off is still delivered. */
static void test_cut_answers(void **unused) {
    (void)unused;
    check("<|channel|>final<|message|>Half an ans", MX_FINISH_LENGTH, "A(Half an ans...", MX_TURN_LENGTH);
    check("<|channel|>analysis<|message|>Hm", MX_FINISH_CONTEXT, "T(Hm...", MX_TURN_CONTEXT);
    check("<|channel|>analysis<|message|>Hm", MX_FINISH_CANCELLED, "T(Hm...", MX_TURN_CANCELLED);
    check("<|channel|>commentary to=functions.f<|message|>{\"a", MX_FINISH_LENGTH, "C:f({\"a...", MX_TURN_LENGTH);
    check("", MX_FINISH_LENGTH, "", MX_TURN_LENGTH);
}

/* The model goes on as the user, or as the tool: the answer ended before, and nobody hears of it. */
static void test_other_roles(void **unused) {
    (void)unused;
    const char *const others[] = {"<|start|>user<|message|>Count to five.<|end|><|start|>assistant<|message|>One",
                                  "<|start|>user<|channel|>final<|message|>Count", "<|start|>user<|channel|>final<|end|>",
                                  "<|start|>developer<|message|>", "<|start|>user Count to five",
                                  "<|start|>functions.f to=assistant<|channel|>commentary<|message|>21<|end|>"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        mx_bytes text = {0};
        assert_true(mx_bytes_addf(&text, "<|channel|>final<|message|>Hello!<|end|>%s", others[i]));
        check(text.data, MX_FINISH_CANCELLED, "A(Hello!)", MX_TURN_STOP);
        mx_bytes_clear(&text);
        assert_true(mx_bytes_addf(&text, "<|channel|>commentary to=functions.f<|message|>{}<|end|>%s", others[i]));
        check(text.data, MX_FINISH_CANCELLED, "C:f({})", MX_TURN_TOOL_CALLS);
        mx_bytes_free(&text);
    }
    scene s;
    start(&s, false, NULL, 0);
    push_text(&s, "<|channel|>final<|message|>Hello!<|end|><|start|>user<|message|>");
    assert_true(mx_turn_over(s.turn)); /* by its header */
    assert_int_equal(mx_turn_end(s.turn, MX_FINISH_LENGTH, NULL), MX_OK);
    assert_int_equal(mx_turn_get_result(s.turn)->finish, MX_TURN_STOP);
    finish(&s);
}

/* Malformed output never fails and loses no text. */
static void test_malformed_answers(void **unused) {
    (void)unused;
    const char *const answers[] = {
        "Just text without any header, kangaroo<|return|>",
        "<|channel|>final<|message|>one<|message|>kangaroo<|return|>",
        "<|channel|>final<|message|>one<|channel|>kangaroo<|end|>after<|return|>",
        "<|channel|>final<|message|>one<|end|>kangaroo<|return|>",
        "<|channel|>final<|message|>one<|end|><|start|>assistant kangaroo<|return|>",
        "<|start|><|start|><|message|>kangaroo<|end|><|call|>",
        "<|channel|><|message|>kangaroo<|return|>",
        "<|channel|>final<|message|>a kangaroo<|endoftext|>",
    };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        scene s;
        start(&s, false, NULL, 0);
        push_text(&s, answers[i]);
        assert_int_equal(mx_turn_end(s.turn, MX_FINISH_STOP, NULL), MX_OK);
        if (!s.log.data || !strstr(s.log.data, "kangaroo")) fail_msg("lost: %s heard as %s", answers[i], s.log.data);
        int depth = 0; /* every message that is begun ends, and none inside another */
        for (const char *p = s.log.data; *p; p++) {
            depth += *p == '(' ? 1 : *p == ')' ? -1 : 0;
            assert_in_range(depth, 0, 1);
        }
        assert_int_equal(depth, 0);
        finish(&s);
    }
}

static void test_random_tokens(void **unused) {
    (void)unused;
    uint32_t state = 7;
    mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    for (int round = 0; round < 300; round++) {
        const char *stop[] = {"a", " the"};
        scene s;
        start(&s, round % 3 == 0, stop, round % 2 ? 2 : 0);
        for (int i = 0; i < 60; i++) {
            state = state * 1664525u + 1013904223u;
            int32_t token = (int32_t)((state >> 8) % (uint32_t)mx_tokenizer_size(tokenizer));
            if (state >> 30 == 0) token = special.startoftext + (int32_t)((state >> 8) % 9);
            assert_int_equal(mx_turn_push(s.turn, token, NULL), MX_OK);
        }
        assert_int_equal(mx_turn_end(s.turn, MX_FINISH_LENGTH, NULL), MX_OK);
        if (s.log.size) assert_true(mx_utf8_length(s.log.data, s.log.size) > 0);
        finish(&s);
    }
}

static void test_stop_strings(void **unused) {
    (void)unused;
    const char *stop[] = {"\n\n", "lazy fox"};
    scene s;
    start(&s, false, stop, 2);
    push_text(&s, "<|channel|>analysis<|message|>lazy fox\n\nis no answer<|end|><|start|>assistant<|channel|>final"
                  "<|message|>The lazy dog and the lazy fox sleep.<|return|>");
    assert_true(mx_turn_over(s.turn));
    assert_int_equal(mx_turn_end(s.turn, MX_FINISH_CANCELLED, NULL), MX_OK);
    assert_string_equal(s.log.data, "T(lazy fox\n\nis no answer)A(The lazy dog and the )");
    const mx_turn_result *result = mx_turn_get_result(s.turn);
    assert_int_equal(result->finish, MX_TURN_STOP);
    assert_true(result->stop_string);
    assert_int_equal(result->stop_index, 1);
    assert_string_equal(result->text.data, "The lazy dog and the ");
    finish(&s);

    /* Held back and then not a stop string after all: at the end of a message, and of the answer. */
    start(&s, false, stop, 2);
    push_text(&s,
              "<|channel|>commentary<|message|>a lazy<|end|><|start|>assistant<|channel|>final<|message|> fox, lazy");
    assert_int_equal(mx_turn_end(s.turn, MX_FINISH_LENGTH, NULL), MX_OK);
    assert_string_equal(s.log.data, "P(a lazy)A( fox, lazy...");
    assert_false(mx_turn_get_result(s.turn)->stop_string);
    finish(&s);
}

static void test_raw(void **unused) {
    (void)unused;
    const char *stop[] = {"STOP"};
    scene s;
    start(&s, true, stop, 1);
    push_text(&s, "a <|channel|>b ST<|endoftext|>");
    assert_int_equal(mx_turn_end(s.turn, MX_FINISH_STOP, NULL), MX_OK);
    assert_string_equal(s.log.data, "A(a <|channel|>b ST)");
    finish(&s);
    start(&s, true, stop, 1);
    push_text(&s, "a STOP b");
    assert_int_equal(mx_turn_end(s.turn, MX_FINISH_CANCELLED, NULL), MX_OK);
    assert_string_equal(s.log.data, "A(a )");
    finish(&s);
}

static bool refuse(void *user, const mx_piece *piece) {
    (void)piece;
    return ++*(int *)user < 2;
}

static void test_reader_gone(void **unused) {
    (void)unused;
    int calls = 0;
    mx_turn *turn;
    const mx_turn_options options = {.tokenizer = tokenizer, .raw = true, .piece = refuse, .user = &calls};
    assert_int_equal(mx_turn_create(&options, &turn, NULL), MX_OK);
    for (int i = 0; i < 10; i++) assert_int_equal(mx_turn_push(turn, 100, NULL), MX_OK);
    assert_true(mx_turn_over(turn));
    assert_int_equal(mx_turn_end(turn, MX_FINISH_CANCELLED, NULL), MX_OK);
    assert_int_equal(calls, 2);
    mx_turn_free(turn);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thinking_and_answer),
        cmocka_unit_test(test_tool_calls),
        cmocka_unit_test(test_cut_answers),
        cmocka_unit_test(test_kinds_of_tokens),
        cmocka_unit_test(test_min_tokens),
        cmocka_unit_test(test_other_roles),
        cmocka_unit_test(test_malformed_answers),
        cmocka_unit_test(test_random_tokens),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_reader_gone),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
