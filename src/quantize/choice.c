#include "quantize/choice.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "model/show.h"

enum { RULES_LIMIT = 1 << 20, MOST_RULES = 10000 };

const char *mx_group_name(mx_group group) {
    static const char *const names[] = {"experts", "attention", "router", "embedding", "lm_head", "other"};
    return names[group];
}

/* ---- classes ------------------------------------------------------------------------------------------------------
 */

/* The last part of a module's name, or the last two of them. */
static bool ends_as(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end) && (n == m || name[n - m - 1] == '.');
}

static bool any_end(const char *name, const char *const *ends) {
    for (; *ends; ends++)
        if (ends_as(name, *ends)) return true;
    return false;
}

/* Llama, Qwen and Mistral; Mixtral's block_sparse_moe; Phi's joined matrices; Qwen's shared expert. */
static mx_group group_by_name(const char *name) {
    static const char *const attention[] = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", NULL};
    static const char *const router[] = {"mlp.gate",           "mlp.router",          "block_sparse_moe.gate",
                                         "shared_expert_gate", "feed_forward.router", NULL};
    static const char *const experts[] = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", NULL};
    static const char *const embedding[] = {"embed_tokens", NULL}, *const head[] = {"lm_head", NULL};
    if (any_end(name, router)) return MX_GROUP_ROUTER;
    if (any_end(name, attention)) return MX_GROUP_ATTENTION;
    if (any_end(name, experts)) return MX_GROUP_EXPERTS;
    if (any_end(name, embedding)) return MX_GROUP_EMBEDDING;
    return any_end(name, head) ? MX_GROUP_LM_HEAD : MX_GROUP_OTHER;
}

mx_group mx_group_of(const mx_module *m) {
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
    case MX_KIND_V:
    case MX_KIND_O:
        return MX_GROUP_ATTENTION;
    case MX_KIND_ROUTER:
        return MX_GROUP_ROUTER;
    case MX_KIND_GATE:
    case MX_KIND_UP:
    case MX_KIND_DOWN:
        return MX_GROUP_EXPERTS;
    case MX_KIND_EMBEDDING:
        return MX_GROUP_EMBEDDING;
    case MX_KIND_LM_HEAD:
        return MX_GROUP_LM_HEAD;
    default:
        return group_by_name(m->name);
    }
}

/* ---- formats ------------------------------------------------------------------------------------------------------
 */

/* "keep" or a format's name. */
static mx_status parse_format(const char *text, const mx_quantize_recipe *recipe, mx_choice *out, mx_error *error) {
    *out = (mx_choice){.recipe = *recipe, .kept = !strcmp(text, "keep")};
    return out->kept ? MX_OK : mx_form_parse(text, &out->form, error);
}

mx_status mx_choice_check(const mx_module *m, const mx_choice *choice, mx_error *error) {
    char name[MX_FORM_NAME];
    if (choice->kept) return MX_OK;
    const mx_form *f = &choice->form;
    const bool block = mx_is_block_format(f->format) || f->format == MX_MXFP4;
    /* 8 elements of 4 bits make a word, 4 of 6 bits three bytes; kernels take 32 columns at once. */
    const int64_t columns = !block ? 1 : f->blocks.columns > 32 ? f->blocks.columns : 32;
    mx_form_name(name, f);
    if (m->cols % columns)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: has %lld columns, no multiple of %lld, which %s takes: give it another format or keep it "
                       "(--rules)",
                       m->name, (long long)m->cols, (long long)columns, name);
    if (!block) return MX_OK;
    mx_status status = mx_quantize_recipe_check(&choice->recipe, f, error);
    return status ? mx_fail_within(error, status, "%s", m->name) : MX_OK;
}

/* ---- rules --------------------------------------------------------------------------------------------------------
 */

typedef struct rule {
    const char *glob;
    int line;
    bool used;
    mx_choice choice;
} rule;

typedef struct rules {
    const char *path;
    mx_bytes text; /* cut into words */
    rule *rule;
    int count;
} rules;

/* The next word of a line, NUL behind it; NULL: there is none. */
static char *next_word(char **at) {
    char *word = *at + strspn(*at, " \t\r");
    if (!*word) return NULL;
    char *end = word + strcspn(word, " \t\r");
    *at = *end ? end + 1 : end;
    *end = 0;
    return word;
}

static mx_status read_line(rules *r, char *line, int number, const mx_quantize_recipe *recipe, mx_error *error) {
    char *comment = strchr(line, '#');
    if (comment) *comment = 0;
    char *at = line, *glob = next_word(&at), *format = glob ? next_word(&at) : NULL,
         *by = format ? next_word(&at) : NULL;
    if (!glob) return MX_OK;
    if (!format || (by && next_word(&at)))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s:%d: expected GLOB FORMAT [RECIPE]", r->path, number);
    if (r->count == MOST_RULES)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: more than %d rules", r->path, MOST_RULES);
    rule *more = realloc(r->rule, (size_t)(r->count + 1) * sizeof *more);
    if (!more) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its rules", r->path);
    r->rule = more;
    rule *to = &more[r->count++];
    mx_quantize_recipe own = *recipe;
    mx_status status = by ? mx_quantize_recipe_parse(by, &own, error) : MX_OK;
    *to = (rule){.glob = glob, .line = number};
    if (!status && own.hadamard && !recipe->hadamard)
        status = mx_fail(error, MX_INVALID_ARGUMENT,
                         "the recipe hadamard rotates the whole model: give it with --recipe, and not for one rule");
    own.hadamard = recipe->hadamard;
    if (!status) status = parse_format(format, &own, &to->choice, error);
    return status ? mx_fail_within(error, status, "%s:%d", r->path, number) : MX_OK;
}

static mx_status read_rules(rules *r, const mx_quantize_recipe *recipe, mx_error *error) {
    mx_status status = mx_read_regular_file(r->path, RULES_LIMIT, &r->text, error);
    int number = 1;
    if (!status && r->text.size && !mx_is_utf8(r->text.data, r->text.size))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: is no UTF-8 text", r->path);
    if (!status && r->text.size && memchr(r->text.data, 0, r->text.size))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: holds a NUL, expected text", r->path);
    for (char *line = r->text.data, *next; line && *line && !status; line = next, number++) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        status = read_line(r, line, number, recipe, error);
    }
    return status;
}

/* An expert's gate and up are gate_up_proj, too, for globs that say it: one matrix in MXFP4, and in reports. */
static rule *find_rule(rules *r, const mx_module *m) {
    char both[sizeof m->name + 8] = "";
    const char *last = strrchr(m->name, '.');
    if (last && (m->kind == MX_KIND_GATE || m->kind == MX_KIND_UP))
        snprintf(both, sizeof both, "%.*s.gate_up_proj", (int)(last - m->name), m->name);
    for (int i = 0; i < r->count; i++)
        if (!fnmatch(r->rule[i].glob, m->name, 0) ||
            (*both && strstr(r->rule[i].glob, "gate_up") && !fnmatch(r->rule[i].glob, both, 0)))
            return &r->rule[i];
    return NULL;
}

/* A rule that nothing follows is a slip of the pen, or stands behind one that takes all. */
static mx_status check_used(const rules *r, mx_error *error) {
    for (int i = 0; i < r->count; i++)
        if (!r->rule[i].used)
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%s:%d: %s fits no matrix of the model that an earlier rule leaves (--dry-run --verbose "
                           "lists their names)",
                           r->path, r->rule[i].line, r->rule[i].glob);
    return MX_OK;
}

/* ---- choosing -----------------------------------------------------------------------------------------------------
 */

/* A format that was asked for, and nothing is there to have it. */
static void warn_of_nothing(const mx_source *s, const mx_choice_options *options) {
    bool any[MX_GROUPS] = {false};
    for (int i = 0; i < s->modules; i++) any[mx_group_of(&s->module[i])] = true;
    for (int g = 0; g < MX_GROUPS; g++) {
        const char *format = options->format[g];
        if (!format || any[g] || !strcmp(format, "keep")) continue;
        mx_log(MX_LOG_WARNING, "%s: has no matrix of class %s, which was to be %s%s", s->path,
               mx_group_name((mx_group)g), format,
               g == MX_GROUP_LM_HEAD && any[MX_GROUP_EMBEDDING] ? " (its lm_head is the embedding: --embedding)" : "");
    }
}

mx_status mx_choose(const mx_source *s, const mx_choice_options *options, mx_choice *choice, mx_error *error) {
    mx_choice of_group[MX_GROUPS];
    rules r = {.path = options->rules};
    mx_status status = MX_OK;
    for (int g = 0; g < MX_GROUPS && !status; g++) {
        const char *format = options->format[g];
        status = parse_format(format                  ? format
                              : g == MX_GROUP_EXPERTS ? "mxfp4"
                                                      : "keep",
                              &options->recipe, &of_group[g], error);
        if (status) mx_fail_within(error, status, "%s", mx_group_name((mx_group)g));
    }
    if (!status && r.path) status = read_rules(&r, &options->recipe, error);
    for (int i = 0; i < s->modules && !status; i++) {
        const mx_module *m = &s->module[i];
        rule *by = find_rule(&r, m);
        if (by) by->used = true;
        choice[i] = by ? by->choice : of_group[mx_group_of(m)];
        status = mx_choice_check(m, &choice[i], error);
    }
    if (!status) status = check_used(&r, error);
    if (!status) warn_of_nothing(s, options);
    free(r.rule);
    mx_bytes_free(&r.text);
    return status;
}
