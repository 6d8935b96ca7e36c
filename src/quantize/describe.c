/* config.json of a quantised model: that of the source, with a quantization_config that says what became of each
 * matrix, in the words of compressed-tensors, ModelOpt, or transformers' mxfp4. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json.h"
#include "model/config_text.h"
#include "quantize/plan.h"

enum { PATTERN = 480, MOST_GROUPS = 256 };

static bool is_quantized(const mx_form *f) {
    return mx_is_block_format(f->format) || f->format == MX_MXFP4;
}

/* ---- names --------------------------------------------------------------------------------------------------------
 */

typedef struct target {
    char text[PATTERN];
    int module, group; /* group -1: not quantised */
} target;

/* How many numbers of a name become "any number": all, those of experts, none. */
enum { ALL_NUMBERS, EXPERTS, NONE };

/* "re:" and the name as a regular expression, for Python's re.match; or the name, where no number was left out. */
static void pattern_of(const char *name, int level, char out[PATTERN]) {
    size_t n = (size_t)snprintf(out, PATTERN, "re:");
    bool any = false;
    for (const char *at = name, *part = name; *part && n + 8 < PATTERN; part = at) {
        at = part + strcspn(part, ".");
        const bool number = strspn(part, "0123456789") == (size_t)(at - part) && at > part;
        const bool expert = part - name >= 8 && !strncmp(part - 8, "experts.", 8);
        if (number && level != NONE && (level == ALL_NUMBERS || expert)) {
            n += (size_t)snprintf(out + n, PATTERN - n, "\\d+");
            any = true;
        } else {
            for (; part < at && n + 8 < PATTERN; part++) {
                if (!isalnum((unsigned char)*part) && *part != '_' && (unsigned char)*part < 0x80) out[n++] = '\\';
                out[n++] = *part;
            }
        }
        if (*at) {
            out[n++] = '\\';
            out[n++] = '.';
            at++;
        }
    }
    snprintf(out + n, PATTERN - n, "$");
    if (!any) snprintf(out, PATTERN, "%s", name);
}

static int by_text(const void *a, const void *b) {
    const target *x = a, *y = b;
    const int order = strcmp(x->text, y->text);
    return order ? order : (x->module > y->module) - (x->module < y->module);
}

/* The shortest patterns that hold modules of one group only, in targets first .. first + count. */
static void name_targets(const mx_plan *p, target *t, int count, int level) {
    for (int i = 0; i < count; i++) pattern_of(p->source->module[t[i].module].name, level, t[i].text);
    if (level == NONE) return;
    if (count) qsort(t, (size_t)count, sizeof *t, by_text);
    for (int i = 0, end; i < count; i = end) {
        bool same = true;
        for (end = i + 1; end < count && !strcmp(t[end].text, t[i].text); end++) same &= t[end].group == t[i].group;
        if (!same) name_targets(p, t + i, end - i, level + 1);
    }
}

static int by_module(const void *a, const void *b) {
    const target *x = a, *y = b;
    return (x->module > y->module) - (x->module < y->module);
}

/* The different patterns of a group as a JSON array, in the order of the model. */
static bool add_targets(const target *t, int count, int group, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "["), any = false;
    for (int i = 0; i < count && ok; i++) {
        bool again = t[i].group != group;
        /* A pattern's modules follow each other but for those of other patterns: look back as far as needed. */
        for (int k = i - 1; k >= 0 && !again; k--) again = t[k].group == group && !strcmp(t[k].text, t[i].text);
        if (again) continue;
        ok = (!any || mx_bytes_add_string(out, ", ")) && mx_bytes_add_json(out, t[i].text, strlen(t[i].text));
        any = true;
    }
    return ok && mx_bytes_add_string(out, "]");
}

/* ---- formats ------------------------------------------------------------------------------------------------------
 */

/* compressed-tensors' name of how the tensors lie; NULL: it has none. */
static const char *ct_format(const mx_form *f) {
    const mx_blocks *b = &f->blocks;
    switch (f->format) {
    case MX_MXFP4:
        return "mxfp4-pack-quantized";
    case MX_E2M1:
        if (b->sides) return NULL;
        if (b->scale == MX_SCALE_E4M3 && b->columns == 16) return "nvfp4-pack-quantized";
        return b->scale == MX_SCALE_E8M0 && b->columns == 32 ? "mxfp4-pack-quantized" : NULL;
    case MX_E4M3:
        return b->scale == MX_SCALE_E8M0 ? "mxfp8-quantized" : b->scale == MX_SCALE_NONE ? "float-quantized" : NULL;
    case MX_INT8:
        return "int-quantized";
    case MX_INT4:
        return "pack-quantized";
    default:
        return NULL;
    }
}

/* A group's scheme. For formats of our own the words are the same, and `format` is mxrun's name. */
static bool add_group(const mx_form *f, const char *format, mx_bytes *out) {
    const mx_blocks *b = &f->blocks;
    const char *strategy = b->columns               ? f->post == MX_POST_NONE ? "group" : "tensor_group"
                           : f->post == MX_POST_ROW ? "channel"
                                                    : "tensor";
    const int bits = f->format == MX_MXFP4 ? 4 : mx_element_bits(f->format);
    bool ok = mx_bytes_addf(out, "{\"num_bits\": %d, \"type\": \"%s\", \"symmetric\": %s, \"strategy\": \"%s\", ", bits,
                            mx_is_integer_format(f->format) ? "int" : "float", b->zeros ? "false" : "true", strategy);
    ok = ok && (b->columns ? mx_bytes_addf(out, "\"group_size\": %d, ", b->columns)
                           : mx_bytes_add_string(out, "\"group_size\": null, "));
    ok = ok && mx_bytes_add_string(out, b->scale == MX_SCALE_E8M0   ? "\"scale_dtype\": \"torch.uint8\", "
                                        : b->scale == MX_SCALE_E4M3 ? "\"scale_dtype\": \"torch.float8_e4m3fn\", "
                                                                    : "");
    return ok && mx_bytes_addf(out,
                               "\"dynamic\": false}, \"input_activations\": null, \"output_activations\": null, "
                               "\"format\": \"%s\"}",
                               format);
}

mx_status mx_plan_method(const mx_plan *p, mx_method *out) {
    bool any = false, own = false, nvfp4 = true, experts = true; /* experts: all of them in MXFP4, and nothing else */
    for (int i = 0; i < p->source->modules; i++) {
        const mx_form *f = &p->form[i];
        const bool expert = p->source->module[i].expert >= 0;
        if (!is_quantized(f)) {
            experts &= !expert;
            continue;
        }
        const char *format = ct_format(f);
        any = true;
        own |= !format;
        nvfp4 &= format && !strcmp(format, "nvfp4-pack-quantized");
        experts &= expert && format && !strcmp(format, "mxfp4-pack-quantized");
    }
    if (p->modelopt && (!any || !nvfp4))
        return mx_fail(p->error, MX_INVALID_ARGUMENT,
                       "ModelOpt's names are for NVFP4 alone%s: give %s, or leave "
                       "--modelopt away",
                       any ? "" : ", and nothing is to be quantised",
                       any ? "every class nvfp4 or keep" : "some class nvfp4");
    *out = !any          ? MX_METHOD_NONE
           : p->modelopt ? MX_METHOD_MODELOPT
           : experts     ? MX_METHOD_MXFP4
           : own         ? MX_METHOD_MXRUN
                         : MX_METHOD_COMPRESSED_TENSORS;
    return MX_OK;
}

typedef struct groups {
    mx_form form[MOST_GROUPS];
    int count;
    target *target; /* [count of modules] */
    int targets;
} groups;

static mx_status find_groups(const mx_plan *p, groups *g) {
    g->target = calloc((size_t)p->source->modules + 1, sizeof *g->target);
    if (!g->target) return mx_fail(p->error, MX_NO_MEMORY, "%s: no memory for config.json", p->source->path);
    for (int i = 0; i < p->source->modules; i++) {
        const mx_form *f = &p->form[i];
        target *t = &g->target[g->targets++];
        *t = (target){.module = i, .group = -1};
        if (!is_quantized(f)) continue;
        for (t->group = 0; t->group < g->count; t->group++)
            if (mx_form_equal(&g->form[t->group], f)) break;
        if (t->group == MOST_GROUPS)
            return mx_fail(p->error, MX_UNSUPPORTED, "%s: more than %d formats", p->source->path, MOST_GROUPS);
        if (t->group == g->count) g->form[g->count++] = *f;
    }
    name_targets(p, g->target, g->targets, ALL_NUMBERS);
    if (g->targets) qsort(g->target, (size_t)g->targets, sizeof *g->target, by_module);
    return MX_OK;
}

static const char *format_name(const mx_form *f, char own[MX_FORM_NAME]) {
    const char *name = ct_format(f);
    if (name) return name;
    mx_form_name(own, f);
    return own;
}

static bool add_groups(const mx_plan *p, const groups *g, mx_bytes *out) {
    char own[MX_FORM_NAME];
    bool ok = mx_bytes_addf(out, "{\n    \"quant_method\": \"%s\",\n    \"quantization_status\": \"compressed\",\n",
                            p->method == MX_METHOD_MXRUN ? "mxrun" : "compressed-tensors");
    ok = ok && mx_bytes_addf(out, "    \"format\": \"%s\",\n    \"config_groups\": {\n",
                             g->count == 1 ? format_name(&g->form[0], own) : "mixed-precision");
    for (int i = 0; i < g->count && ok; i++) {
        ok = mx_bytes_addf(out, "      \"group_%d\": {\"targets\": ", i) &&
             add_targets(g->target, g->targets, i, out) && mx_bytes_add_string(out, ", \"weights\": ") &&
             add_group(&g->form[i], format_name(&g->form[i], own), out) &&
             mx_bytes_add_string(out, i + 1 < g->count ? ",\n" : "\n");
    }
    return ok && mx_bytes_add_string(out, "    },\n    \"ignore\": ") && add_targets(g->target, g->targets, -1, out) &&
           mx_bytes_add_string(out, ",\n    \"kv_cache_scheme\": null,\n    \"global_compression_ratio\": null\n  }");
}

/* ---- ModelOpt -----------------------------------------------------------------------------------------------------
 */

/* fnmatch patterns, of which ModelOpt's lists are: numbers become "*". */
static bool add_excluded(const groups *g, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "["), any = false;
    for (int i = 0; i < g->targets && ok; i++) {
        bool again = g->target[i].group >= 0;
        for (int k = i - 1; k >= 0 && !again; k--)
            again = g->target[k].group < 0 && !strcmp(g->target[k].text, g->target[i].text);
        if (again) continue;
        char glob[PATTERN];
        size_t n = 0;
        const char *from = g->target[i].text;
        if (!strncmp(from, "re:", 3)) {
            for (from += 3; *from && *from != '$'; from++) {
                if (!strncmp(from, "\\d+", 3)) {
                    glob[n++] = '*';
                    from += 2;
                } else if (*from != '\\') {
                    glob[n++] = *from;
                }
            }
        } else {
            n = (size_t)snprintf(glob, sizeof glob, "%s", from);
        }
        ok = (!any || mx_bytes_add_string(out, ", ")) && mx_bytes_add_json(out, glob, n);
        any = true;
    }
    return ok && mx_bytes_add_string(out, "]");
}

static const char producer[] = "\"producer\": {\"name\": \"mxrun\", \"version\": \"" MX_VERSION "\"}";

static bool add_modelopt(const groups *g, mx_bytes *out) {
    return mx_bytes_addf(
               out,
               "{\n    \"quant_method\": \"modelopt\",\n    \"quant_algo\": \"W4A16_NVFP4\",\n    %s,\n"
               "    \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, "
               "\"type\": \"float\", \"group_size\": 16, \"dynamic\": false}}},\n    \"ignore\": ",
               producer) &&
           add_excluded(g, out) && mx_bytes_add_string(out, "\n  }");
}

bool mx_plan_modelopt(const mx_plan *p, mx_bytes *out) {
    groups g = {0};
    bool ok =
        !find_groups(p, &g) &&
        mx_bytes_addf(out,
                      "{\n  %s,\n  \"quantization\": {\n    \"quant_algo\": \"W4A16_NVFP4\",\n    \"group_size\": "
                      "16,\n    \"kv_cache_quant_algo\": null,\n    \"exclude_modules\": ",
                      producer) &&
        add_excluded(&g, out) && mx_bytes_add_string(out, "\n  }\n}\n");
    free(g.target);
    return ok;
}

/* ---- config.json --------------------------------------------------------------------------------------------------
 */

static bool add_mxfp4(mx_bytes *out) {
    return mx_bytes_add_string(out, "{\n    \"modules_to_not_convert\": [\n      \"model.layers.*.self_attn\",\n"
                                    "      \"model.layers.*.mlp.router\",\n      \"model.embed_tokens\",\n"
                                    "      \"lm_head\"\n    ],\n    \"quant_method\": \"mxfp4\"\n  }");
}

static bool add_quantization(const mx_plan *p, const groups *g, mx_bytes *out) {
    if (p->method == MX_METHOD_MXFP4) return add_mxfp4(out);
    return p->method == MX_METHOD_MODELOPT ? add_modelopt(g, out) : add_groups(p, g, out);
}

/* Is the member replaced by one of ours? */
static bool is_ours(const mx_plan *p, const mx_json *v) {
    return !strcmp(v->key, "quantization_config") || (p->source->untied && !strcmp(v->key, "tie_word_embeddings"));
}

static bool add_members(const mx_plan *p, const mx_json *root, const groups *g, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "{\n"), any = false;
    for (const mx_json *v = root ? root->child : NULL; v && ok; v = v->next) {
        if (is_ours(p, v)) continue;
        ok = mx_bytes_add_string(out, any ? ",\n  " : "  ") && mx_bytes_add_json(out, v->key, v->key_size) &&
             mx_bytes_add_string(out, ": ") && mx_json_write(out, v);
        any = true;
    }
    if (p->source->untied) {
        ok = ok && mx_bytes_addf(out, "%s  \"tie_word_embeddings\": false", any ? ",\n" : "");
        any = true;
    }
    if (g->count)
        ok = ok && mx_bytes_addf(out, "%s  \"quantization_config\": ", any ? ",\n" : "") && add_quantization(p, g, out);
    return ok && mx_bytes_add_string(out, "\n}\n");
}

mx_status mx_plan_config(const mx_plan *p, const mx_bytes *text, mx_bytes *out) {
    groups g = {0};
    mx_bytes own = {0};
    mx_json_document *document = NULL;
    mx_status status = find_groups(p, &g);
    if (!status && !text && p->source->gpt_oss) {
        if (!mx_config_text(&own, &p->source->config, false))
            status = mx_fail(p->error, MX_NO_MEMORY, "%s: no memory for config.json", p->source->path);
        text = &own;
    }
    if (!status && text)
        status = mx_json_parse("config.json", text->data ? text->data : "", text->size, &document, p->error);
    const mx_json *root = document ? mx_json_root(document) : NULL;
    if (!status && root && root->type != MX_JSON_OBJECT)
        status = mx_fail(p->error, MX_INVALID_FILE, "%s: config.json is no JSON object", p->source->path);
    if (!status && !add_members(p, root, &g, out))
        status = mx_fail(p->error, MX_NO_MEMORY, "%s: no memory for config.json", p->source->path);
    mx_json_free(document);
    mx_bytes_free(&own);
    free(g.target);
    return status;
}
