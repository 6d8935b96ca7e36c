/* What answers must be like, and what that makes of their headers. */
#include "grammar/rules.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/rules_private.h"

mx_rules *mx_rules_create(void) {
    mx_rules *rules = calloc(1, sizeof *rules);
    if (rules) rules->references = 1;
    return rules;
}

mx_rules *mx_rules_keep(mx_rules *rules) {
    if (rules) __atomic_add_fetch(&rules->references, 1, __ATOMIC_RELAXED);
    return rules;
}

void mx_rules_free(mx_rules *rules) {
    if (!rules || __atomic_sub_fetch(&rules->references, 1, __ATOMIC_ACQ_REL)) return;
    mx_grammar_free(rules->text);
    free(rules->named);
    for (int i = 0; i < rules->tool_count; i++) {
        free(rules->tools[i].name);
        mx_grammar_free(rules->tools[i].arguments);
    }
    free(rules->tools);
    for (int i = 0; rules->headers && i < MX_HEADER_PLACES; i++) mx_grammar_free(rules->headers->at[i]);
    free(rules->headers);
    free(rules);
}

bool mx_rules_bind(const mx_rules *rules) {
    return rules->text || (!rules->raw && (rules->choice != MX_TOOLS_AUTO || rules->tool_count));
}

bool mx_rules_may_call(const mx_rules *rules, const mx_rules_tool *tool) {
    if (rules->choice == MX_TOOLS_NAMED) return rules->named && !strcmp(rules->named, tool->name);
    return rules->choice != MX_TOOLS_NONE;
}

bool mx_rules_think_once(const mx_rules *rules) {
    return rules->text || rules->choice == MX_TOOLS_REQUIRED || rules->choice == MX_TOOLS_NAMED;
}

/* ---- headers ----------------------------------------------------------------------------------------------------- */
/* Expressions to choose from. */
typedef struct words {
    mx_grammar_builder *b;
    mx_expr *item; /* [count] */
    int count;
} words;

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the rules of an answer");
}

static void add(words *w, mx_expr expr) {
    w->item[w->count++] = expr;
}

/* " to=functions.NAME" of every tool that may be called; 0: there is none. */
static mx_expr recipients(words *w, const mx_rules *rules, int *count) {
    const int before = w->count;
    for (int i = 0; i < rules->tool_count; i++)
        if (mx_rules_may_call(rules, &rules->tools[i])) add(w, mx_expr_string(w->b, rules->tools[i].name));
    *count = w->count - before;
    w->count = before;
    if (!*count) return 0;
    const mx_expr pair[2] = {mx_expr_string(w->b, MX_RECIPIENT), mx_expr_choice(w->b, w->item + before, *count)};
    return mx_expr_sequence(w->b, pair, 2);
}

/* What may stand behind a channel or a recipient, before <|message|> or, where it ends in a space, <|constrain|>. */
static void add_with_type(words *w, mx_expr what, bool constrain) {
    const mx_expr choice[4] = {mx_expr_string(w->b, ""), mx_expr_string(w->b, " json"), mx_expr_string(w->b, " code"),
                               mx_expr_string(w->b, " ")};
    const mx_expr pair[2] = {what, mx_expr_choice(w->b, choice, constrain ? 4 : 3)};
    add(w, mx_expr_sequence(w->b, pair, 2));
}

static void add_channels(words *w, const mx_rules *rules, bool thinking, bool constrain) {
    const bool text = rules->choice == MX_TOOLS_AUTO || rules->choice == MX_TOOLS_NONE;
    int calls;
    const mx_expr to = recipients(w, rules, &calls);
    if (thinking) add(w, mx_expr_string(w->b, "analysis"));
    if (text) add_with_type(w, mx_expr_string(w->b, "final"), constrain);
    /* What is said before a call is shown as text: beside a text of a grammar nothing may stand. */
    if (text && calls && !rules->text) add(w, mx_expr_string(w->b, "commentary"));
    if (!calls) return;
    const mx_expr pair[2] = {mx_expr_string(w->b, "commentary"), to};
    add_with_type(w, mx_expr_sequence(w->b, pair, 2), constrain);
}

static void add_role(words *w, const mx_rules *rules, bool role) {
    int calls;
    const mx_expr to = recipients(w, rules, &calls), assistant = mx_expr_string(w->b, role ? "assistant" : "");
    const mx_expr pair[2] = {assistant, to};
    if (role) add(w, assistant);
    if (calls) add(w, mx_expr_sequence(w->b, pair, 2));
}

static mx_status compile_place(mx_rules_headers *h, mx_header_place place, const mx_rules *rules, bool constrain,
                               mx_error *error) {
    words w = {.b = mx_grammar_builder_create(), .item = calloc((size_t)rules->tool_count + 8, sizeof *w.item)};
    mx_status status = w.b && w.item ? MX_OK : no_memory(error);
    if (!status) {
        if (place == MX_HEADER_ROLE || place == MX_HEADER_TO) add_role(&w, rules, place == MX_HEADER_ROLE);
        if (place == MX_HEADER_CONSTRAIN) add(&w, mx_expr_string(w.b, "json"));
        if (place == MX_HEADER_CALL) add_with_type(&w, mx_expr_string(w.b, "commentary"), constrain);
        if (place == MX_HEADER_FIRST || place == MX_HEADER_LATER)
            add_channels(&w, rules, place == MX_HEADER_FIRST || !mx_rules_think_once(rules), constrain);
        if (w.count) status = mx_grammar_compile(w.b, mx_expr_choice(w.b, w.item, w.count), &h->at[place], error);
    }
    free(w.item);
    mx_grammar_builder_free(w.b);
    return status;
}

static mx_status compile(mx_rules *rules, bool constrain, mx_error *error) {
    mx_rules_headers *h = rules->headers = calloc(1, sizeof *h);
    mx_status status = h ? MX_OK : no_memory(error);
    for (int place = 0; place < MX_HEADER_PLACES && !status; place++)
        status = compile_place(h, (mx_header_place)place, rules, constrain, error);
    if (!status || !h) return status;
    for (int place = 0; place < MX_HEADER_PLACES; place++) mx_grammar_free(h->at[place]);
    free(h);
    rules->headers = NULL;
    return status;
}

mx_status mx_rules_make_headers(mx_rules *rules, bool constrain, mx_error *error) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    const mx_status status = rules->headers ? MX_OK : compile(rules, constrain, error);
    pthread_mutex_unlock(&lock);
    return status;
}
