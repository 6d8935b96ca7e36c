#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_private.h"

bool mx_grow(void **data, size_t *room, size_t count, size_t size) {
    if (count < *room) return true;
    const size_t more = *room ? *room * 2 : 16;
    if (more > UINT32_MAX / 2) return false;
    void *bigger = realloc(*data, more * size);
    if (!bigger) return false;
    *data = bigger;
    *room = more;
    return true;
}

mx_grammar_builder *mx_grammar_builder_create(void) {
    mx_grammar_builder *b = calloc(1, sizeof *b);
    if (!b) return NULL;
    if (!MX_PUSH(b->expr, b->exprs, b->expr_room, (mx_expr_node){.kind = MX_EXPR_NEVER}) ||
        !MX_PUSH(b->rule, b->rules, b->rule_room, (mx_rule_entry){0})) {
        mx_grammar_builder_free(b);
        return NULL;
    }
    return b;
}

void mx_grammar_builder_free(mx_grammar_builder *b) {
    if (!b) return;
    for (size_t i = 0; i < b->regulars; i++) mx_regular_free(b->regular[i]);
    for (size_t i = 0; i < b->rules; i++) free(b->rule[i].name);
    free(b->expr);
    free(b->rule);
    free(b->item);
    free(b->regular);
    free(b->byte);
    free(b);
}

static int failed(mx_grammar_builder *b) {
    if (b) b->failed = true;
    return 0;
}

static mx_expr add(mx_grammar_builder *b, mx_expr_node node) {
    if (b->exprs >= INT32_MAX || !MX_PUSH(b->expr, b->exprs, b->expr_room, node)) return failed(b);
    return (mx_expr)(b->exprs - 1);
}

mx_expr mx_expr_text(mx_grammar_builder *b, const void *text, size_t size) {
    if (!b || size > INT32_MAX / 2) return failed(b);
    const size_t first = b->bytes;
    for (size_t i = 0; i < size; i++)
        if (!MX_PUSH(b->byte, b->bytes, b->byte_room, ((const uint8_t *)text)[i])) return failed(b);
    return add(b, (mx_expr_node){.kind = MX_EXPR_TEXT, .first = (uint32_t)first, .count = (uint32_t)size});
}

mx_expr mx_expr_string(mx_grammar_builder *b, const char *text) {
    return mx_expr_text(b, text, strlen(text));
}

mx_expr mx_expr_regular(mx_grammar_builder *b, mx_regular *language) {
    if (!b || !language) return failed(b);
    /* The last few: a builder that says the same one again and again need not be searched for it. */
    for (size_t i = b->regulars; i > 0 && i + 16 > b->regulars; i--)
        if (b->regular[i - 1] == language)
            return add(b, (mx_expr_node){.kind = MX_EXPR_REGULAR, .first = (uint32_t)(i - 1)});
    if (!MX_PUSH(b->regular, b->regulars, b->regular_room, language)) return failed(b);
    mx_regular_keep(language);
    return add(b, (mx_expr_node){.kind = MX_EXPR_REGULAR, .first = (uint32_t)(b->regulars - 1)});
}

mx_expr mx_expr_never(mx_grammar_builder *b) {
    return b ? add(b, (mx_expr_node){.kind = MX_EXPR_NEVER}) : 0;
}

static mx_expr add_items(mx_grammar_builder *b, mx_expr_node node, const mx_expr *items, int count) {
    if (!b || count < 0) return failed(b);
    node.first = (uint32_t)b->items;
    node.count = (uint32_t)count;
    for (int i = 0; i < count; i++) {
        if (items[i] <= 0 || (size_t)items[i] >= b->exprs) return failed(b);
        if (!MX_PUSH(b->item, b->items, b->item_room, items[i])) return failed(b);
    }
    return add(b, node);
}

mx_expr mx_expr_sequence(mx_grammar_builder *b, const mx_expr *items, int count) {
    return add_items(b, (mx_expr_node){.kind = MX_EXPR_SEQUENCE}, items, count);
}

mx_expr mx_expr_choice(mx_grammar_builder *b, const mx_expr *items, int count) {
    return add_items(b, (mx_expr_node){.kind = MX_EXPR_CHOICE}, items, count);
}

/* Counts are kept in 32 bits: no text has more parts. */
static int64_t within_reason(int64_t n) {
    return n > INT32_MAX ? INT32_MAX : n;
}

mx_expr mx_expr_repeat(mx_grammar_builder *b, mx_expr item, int64_t least, int64_t most) {
    if (least < 0) least = 0;
    if (most >= 0 && most < least) return mx_expr_never(b);
    const mx_expr_node node = {
        .kind = MX_EXPR_REPEAT, .least = within_reason(least), .most = most < 0 ? -1 : within_reason(most)};
    return add_items(b, node, &item, 1);
}

mx_rule mx_rule_add(mx_grammar_builder *b, const char *name) {
    if (!b || b->rules >= INT32_MAX) return failed(b);
    char *copy = strdup(name ? name : "");
    if (!copy || !MX_PUSH(b->rule, b->rules, b->rule_room, (mx_rule_entry){.name = copy})) {
        free(copy);
        return failed(b);
    }
    return (mx_rule)(b->rules - 1);
}

void mx_rule_set(mx_grammar_builder *b, mx_rule rule, mx_expr expr) {
    if (!b || rule <= 0 || (size_t)rule >= b->rules || expr <= 0 || (size_t)expr >= b->exprs) {
        failed(b);
        return;
    }
    b->rule[rule].body = expr;
}

mx_expr mx_expr_rule(mx_grammar_builder *b, mx_rule rule) {
    if (!b || rule <= 0 || (size_t)rule >= b->rules) return failed(b);
    return add(b, (mx_expr_node){.kind = MX_EXPR_RULE, .first = (uint32_t)rule});
}
