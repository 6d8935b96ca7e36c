/* A chat of 20 turns with tools, its tokens made by the turn layer: exactly which tokens of each prompt are computed.
 *
 * What the model says is written here, so that the numbers hang on no kernel: a constraint leaves nothing else to be
 * drawn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model_parts.h"
#include "engine/mxrun.h"
#include "turn/conversation.h"

enum { TURNS = 20, MOST_ANSWERS = 4 * TURNS };

typedef struct chat {
    mx_model *model;
    mx_tokenizer *tokenizer;
    mx_engine *engine;
    mx_conversation *conversation;
    mx_ids stop_tokens;
    mx_ids said[MOST_ANSWERS]; /* each prompt with its answer */
    int answers;
} chat;

static void begin(chat *c, bool keep_thinking, int64_t context, int64_t kv_tokens) {
    char path[4096];
    mx_error error;
    *c = (chat){0};
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (mx_model_open(path, NULL, &c->model, &error) || mx_tokenizer_open(path, &c->tokenizer, &error) ||
        mx_conversation_create(c->tokenizer, &c->conversation, &error))
        fail_msg("%s", error.text);
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(c->tokenizer);
    const int32_t boundary[] = {special.end, special.call, special.return_};
    const mx_engine_options options = {.threads = 1,
                                       .context = context,
                                       .kv_memory = kv_tokens ? mx_kv_memory(c->model, MX_KV_F16, kv_tokens) : 0,
                                       .speculation = MX_SPECULATE_OFF, /* so that computed rows can be counted */
                                       .boundary = boundary,
                                       .boundary_count = 3};
    if (mx_engine_create(c->model, &options, &c->engine, &error)) fail_msg("%s", error.text);
    assert_true(mx_turn_stop_tokens(c->tokenizer, mx_model_config(c->model), &c->stop_tokens));
    mx_conversation_keep_thinking(c->conversation, keep_thinking);
}

static void end(chat *c) {
    for (int i = 0; i < c->answers; i++) mx_ids_free(&c->said[i]);
    mx_ids_free(&c->stop_tokens);
    mx_engine_destroy(c->engine);
    mx_conversation_free(c->conversation);
    mx_tokenizer_close(c->tokenizer);
    mx_model_close(c->model);
}

/* ---- an answer that is written here -------------------------------------------------------------------------------
 */
typedef struct script {
    mx_ids ids;
    int64_t said;
} script;

static bool only_next(void *user, uint32_t *bits, int32_t vocab) {
    const script *s = user;
    memset(bits, 0, ((size_t)vocab + 31) / 32 * sizeof *bits);
    const int32_t token = s->ids.data[s->said];
    bits[token >> 5] = 1u << (token & 31);
    return true;
}

static mx_verdict said(void *user, int32_t token) {
    (void)token;
    ((script *)user)->said++;
    return MX_CONTINUE;
}

static int64_t shared(const mx_ids *a, const mx_ids *b) {
    int64_t n = 0;
    while (n < a->count && n < b->count && a->data[n] == b->data[n]) n++;
    return n;
}

typedef struct numbers {
    int64_t prompt, computed;
    int64_t answer; /* tokens, the one that ends it too */
} numbers;

/* The model says `text`. What was computed must be what no earlier prompt or answer begins with, to the token. */
static numbers say(chat *c, const char *text) {
    script s = {0};
    mx_ids prompt = {0};
    mx_error error;
    mx_turn *turn;
    const mx_turn_options options = {.tokenizer = c->tokenizer, .stop_tokens = &c->stop_tokens};
    if (mx_encode_special(c->tokenizer, text, strlen(text), &s.ids, &error) ||
        mx_conversation_prompt(c->conversation, &prompt, &error) || mx_turn_create(&options, &turn, &error))
        fail_msg("%s", error.text);
    int64_t known = 0;
    for (int i = 0; i < c->answers; i++) {
        const mx_ids *before = &c->said[i];
        int64_t same = shared(before, &prompt);
        if (same == before->count) same--; /* the token that ended it was drawn and went through no model */
        if (same > known) known = same;
    }
    const mx_request request = {.prompt = prompt.data,
                                .prompt_count = prompt.count,
                                .sampling = {.top_p = 1, .repetition_penalty = 1},
                                .stop = c->stop_tokens.data,
                                .stop_count = (int)c->stop_tokens.count,
                                .constraint = {.user = &s, .mask = only_next, .accept = said}};
    const int64_t rows = mx_engine_get_stats(c->engine).computed_rows;
    if (mx_turn_run(turn, c->engine, &request, NULL, &error)) fail_msg("%s", error.text);
    const mx_turn_result *r = mx_turn_get_result(turn);
    assert_int_equal(r->ids.count, s.ids.count);
    assert_memory_equal(r->ids.data, s.ids.data, (size_t)s.ids.count * sizeof *s.ids.data);
    const numbers n = {prompt.count, prompt.count - r->usage.cached_tokens, r->ids.count};
    assert_int_equal(r->usage.prompt_tokens, prompt.count);
    assert_int_equal(n.computed, prompt.count - known);
    /* and not a window's worth of them again, unsaid: the prompt's new ones and the answer's, but for its last */
    assert_int_equal(mx_engine_get_stats(c->engine).computed_rows - rows, n.computed + n.answer - 1);

    assert_true(c->answers < MOST_ANSWERS);
    mx_ids *all = &c->said[c->answers++];
    assert_true(mx_ids_add_all(all, prompt.data, prompt.count) && mx_ids_add_all(all, s.ids.data, s.ids.count));
    if (mx_conversation_add_answer(c->conversation, turn, &error)) fail_msg("%s", error.text);
    mx_turn_free(turn);
    mx_ids_free(&prompt);
    mx_ids_free(&s.ids);
    return n;
}

/* ---- the chat -----------------------------------------------------------------------------------------------------
 */
static const char *const cities[] = {"Paris", "Oslo", "Rome", "Lima", "Cairo"};

static int64_t prompt_tokens(chat *c) {
    mx_ids ids = {0};
    assert_int_equal(mx_conversation_prompt(c->conversation, &ids, NULL), MX_OK);
    const int64_t count = ids.count;
    mx_ids_free(&ids);
    return count;
}

/* The user's message. Returns the tokens that it brings. */
static int64_t ask(chat *c, int turn) {
    char text[200];
    const int64_t before = prompt_tokens(c);
    snprintf(text, sizeof text, "Question %d: what is the weather in %s?", turn, cities[turn % 5]);
    assert_int_equal(mx_conversation_add_user(c->conversation, text, strlen(text), NULL), MX_OK);
    return prompt_tokens(c) - before;
}

/* Thinking, from a few tokens up to more than a window of 128. */
static void think(mx_bytes *text, int turn) {
    assert_true(mx_bytes_add_string(text, "<|channel|>analysis<|message|>"));
    for (int i = 0; i < 1 + turn * 7 % 13; i++)
        assert_true(mx_bytes_addf(text, "I need the weather in %s, number %d. ", cities[turn % 5], i));
    assert_true(mx_bytes_add_string(text, "<|end|><|start|>assistant"));
}

/* Whether the model thinks before the `part`th part of its turn: a call of the tool, or at last the answer. */
static bool thinks(int turn, int part) {
    return (turn + part) % 5 != 3;
}

static numbers call_tool(chat *c, int turn, int call) {
    mx_bytes text = {0};
    if (thinks(turn, call)) think(&text, turn + call);
    assert_true(
        mx_bytes_addf(&text,
                      "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"location\":"
                      "\"%s\"}<|call|>",
                      cities[(turn + call) % 5]));
    const numbers n = say(c, text.data);
    mx_bytes_free(&text);
    return n;
}

/* Returns the tokens that the result brings. */
static int64_t result(chat *c, int turn) {
    char text[200];
    const int64_t before = prompt_tokens(c);
    snprintf(text, sizeof text, "{\"temperature\":%d,\"sky\":\"cloudy\"}", turn);
    assert_int_equal(mx_conversation_add_tool_result(c->conversation, "get_weather", text, strlen(text), NULL), MX_OK);
    return prompt_tokens(c) - before;
}

static numbers answer(chat *c, int turn, int part) {
    mx_bytes text = {0};
    if (thinks(turn, part)) think(&text, turn);
    assert_true(mx_bytes_addf(&text,
                              "<|channel|>final<|message|>It is cloudy in %s, and the temperature is %d.<|return|>",
                              cities[turn % 5], turn));
    const numbers n = say(c, text.data);
    mx_bytes_free(&text);
    return n;
}

enum {
    OPENING = 2, /* every prompt ends in <|start|>assistant */
    CHANNEL = 1  /* what stays goes on with <|channel|>, as the thinking that is dropped does */
};

static void chat_of_20_turns(bool keep_thinking, int64_t context, int64_t kv_tokens) {
    chat c;
    begin(&c, keep_thinking, context, kv_tokens);
    int64_t kept = 0; /* of what was said, by the next turn's prompt */
    int64_t computed = 0, asked = 0;
    int in_loops = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        const int calls = turn % 4; /* one after the other */
        const int64_t before = prompt_tokens(&c), message = ask(&c, turn);
        int64_t said_tokens = 0, fresh = 0, thinking_at = -1;
        for (int part = 0; part <= calls; part++) {
            const numbers n = part < calls ? call_tool(&c, turn, part) : answer(&c, turn, part);
            if (part == 0) {
                assert_int_equal(n.prompt, before + message);
                assert_int_equal(n.computed, before - kept + message);
            } else { /* inside a tool loop: <|call|>, which ended the answer, and what is new */
                assert_int_equal(n.prompt, said_tokens + fresh);
                assert_int_equal(n.computed, 1 + fresh);
                in_loops++;
            }
            if (thinks(turn, part) && thinking_at < 0) thinking_at = n.prompt;
            said_tokens = n.prompt + n.answer;
            computed += n.computed;
            asked += n.prompt;
            if (part < calls) fresh = result(&c, turn) + OPENING;
        }
        /* Behind a final answer: all up to the first token of thinking that is dropped; where nothing is, up to
         * <|return|>, which becomes <|end|>. */
        kept = thinking_at < 0 || keep_thinking ? said_tokens - 1 : thinking_at + CHANNEL;
    }
    assert_int_equal(in_loops, 30);
    print_message("thinking %s: %d prompts of %d tokens in all, %d computed\n", keep_thinking ? "kept" : "dropped",
                  c.answers, (int)asked, (int)computed);
    end(&c);
}

static void thinking_is_dropped(void **unused) {
    (void)unused;
    chat_of_20_turns(false, 16384, 0);
}

/* KV pages for one request of the chat's length and no more: of what is dropped from the prompt much goes. */
static void memory_is_short(void **unused) {
    (void)unused;
    chat_of_20_turns(false, 2500, 2500);
}

static void thinking_is_kept(void **unused) {
    (void)unused;
    chat_of_20_turns(true, 16384, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(thinking_is_dropped), cmocka_unit_test(memory_is_short),
                                       cmocka_unit_test(thinking_is_kept)};
    return cmocka_run_group_tests_name("reuse in a chat", tests, NULL, NULL);
}
