#include "grammar/grammar.h"

mx_grammar_builder *mx_grammar_builder_create(void) {
    return NULL;
}

void mx_grammar_builder_free(mx_grammar_builder *b) {
    (void)b;
}

mx_expr mx_expr_text(mx_grammar_builder *b, const void *text, size_t size) {
    (void)b;
    (void)text;
    (void)size;
    return 0;
}

mx_expr mx_expr_string(mx_grammar_builder *b, const char *text) {
    (void)b;
    (void)text;
    return 0;
}

mx_expr mx_expr_regular(mx_grammar_builder *b, mx_regular *language) {
    (void)b;
    (void)language;
    return 0;
}

mx_expr mx_expr_never(mx_grammar_builder *b) {
    (void)b;
    return 0;
}

mx_expr mx_expr_sequence(mx_grammar_builder *b, const mx_expr *items, int count) {
    (void)b;
    (void)items;
    (void)count;
    return 0;
}

mx_expr mx_expr_choice(mx_grammar_builder *b, const mx_expr *items, int count) {
    (void)b;
    (void)items;
    (void)count;
    return 0;
}

mx_expr mx_expr_repeat(mx_grammar_builder *b, mx_expr item, int64_t least, int64_t most) {
    (void)b;
    (void)item;
    (void)least;
    (void)most;
    return 0;
}

mx_rule mx_rule_add(mx_grammar_builder *b, const char *name) {
    (void)b;
    (void)name;
    return 0;
}

void mx_rule_set(mx_grammar_builder *b, mx_rule rule, mx_expr expr) {
    (void)b;
    (void)rule;
    (void)expr;
}

mx_expr mx_expr_rule(mx_grammar_builder *b, mx_rule rule) {
    (void)b;
    (void)rule;
    return 0;
}

mx_status mx_grammar_compile(mx_grammar_builder *b, mx_expr root, mx_grammar **out, mx_error *error) {
    (void)b;
    (void)root;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_grammar *mx_grammar_keep(mx_grammar *g) {
    (void)g;
    return NULL;
}

void mx_grammar_free(mx_grammar *g) {
    (void)g;
}

uint64_t mx_grammar_bytes(const mx_grammar *g) {
    (void)g;
    return 0;
}

bool mx_grammar_match(mx_grammar *g, const void *text, size_t size) {
    (void)g;
    (void)text;
    (void)size;
    return 0;
}

mx_status mx_vocabulary_create(const mx_tokenizer *t, int32_t vocab, mx_vocabulary **out, mx_error *error) {
    (void)t;
    (void)vocab;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

void mx_vocabulary_free(mx_vocabulary *v) {
    (void)v;
}

mx_status mx_matcher_create(mx_grammar *g, mx_vocabulary *v, mx_matcher **out, mx_error *error) {
    (void)g;
    (void)v;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_matcher *mx_matcher_clone(const mx_matcher *m) {
    (void)m;
    return NULL;
}

void mx_matcher_free(mx_matcher *m) {
    (void)m;
}

bool mx_matcher_accept(mx_matcher *m, const void *bytes, size_t size) {
    (void)m;
    (void)bytes;
    (void)size;
    return 0;
}

bool mx_matcher_accept_token(mx_matcher *m, int32_t token) {
    (void)m;
    (void)token;
    return 0;
}

bool mx_matcher_rollback(mx_matcher *m, int count) {
    (void)m;
    (void)count;
    return 0;
}

void mx_matcher_mask(mx_matcher *m, uint32_t *bits) {
    (void)m;
    (void)bits;
}

bool mx_matcher_can_end(const mx_matcher *m) {
    (void)m;
    return 0;
}

bool mx_matcher_must_end(const mx_matcher *m) {
    (void)m;
    return 0;
}

void mx_grammar_prepare(mx_grammar *g, mx_vocabulary *v, double seconds) {
    (void)g;
    (void)v;
    (void)seconds;
}
