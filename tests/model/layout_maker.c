#include "layout_maker.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- files ------------------------------------------------------------------------------------------------------- */

void made_folder(char out[200]) {
    const char *tmp = getenv("TMPDIR");
    snprintf(out, 200, "%s/mxrun-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(out));
}

const char *made_path(const char *folder, const char *name) {
    static char path[8][900];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

void made_file(const char *folder, const char *name, const void *data, size_t size) {
    FILE *f = fopen(made_path(folder, name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

uint64_t made_bytes(uint32_t type, uint64_t n) {
    switch (type) {
    case MADE_U8:
        return n;
    case MADE_F32:
        return 4 * n;
    case MADE_Q8_0:
        return n / 32 * 34;
    case MADE_MXFP4:
        return n / 32 * 17;
    default:
        return 2 * n;
    }
}

static void *need(uint64_t size) {
    void *p = malloc(size + 1);
    assert_non_null(p);
    return p;
}

static float bf16_value(const uint8_t *at) {
    const uint32_t bits = (uint32_t)(at[0] | at[1] << 8) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void put_bf16(uint8_t *to, float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits += 0x7FFF + (bits >> 16 & 1);
    to[0] = (uint8_t)(bits >> 16);
    to[1] = (uint8_t)(bits >> 24);
}

static float f16_value(const uint8_t *at) {
    const int bits = at[0] | at[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return (float)(bits >> 15 ? -size : size);
}

/* Of numbers below 65504. */
static void put_f16(uint8_t *to, float f) {
    const double size = fabs((double)f);
    int exponent;
    frexp(size, &exponent); /* size < 2^exponent */
    if (exponent < -13) exponent = -13;
    long mantissa = lrint(ldexp(size, 11 - exponent)); /* 1024 .. 2048, or less where it is subnormal */
    const long bits = mantissa < 1024 ? mantissa : (exponent + 14L) * 1024 + (mantissa - 1024);
    assert_true(bits < 31 * 1024);
    to[0] = (uint8_t)bits;
    to[1] = (uint8_t)(bits >> 8 | (signbit(f) ? 0x80 : 0));
}

static void put_q8_0(uint8_t *to, const float *from) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(from[i]));
    put_f16(to, most / 127);
    const float d = f16_value(to);
    for (int i = 0; i < 32; i++) {
        const long q = d > 0 ? lrintf(from[i] / d) : 0;
        to[2 + i] = (uint8_t)(int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
    }
}

uint8_t *made_encode(uint32_t type, const float *from, uint64_t n) {
    uint8_t *out = need(made_bytes(type, n));
    for (uint64_t i = 0; i < n; i++) {
        if (type == MADE_F32)
            memcpy(out + 4 * i, &from[i], 4);
        else if (type == MADE_BF16)
            put_bf16(out + 2 * i, from[i]);
        else if (type == MADE_F16)
            put_f16(out + 2 * i, from[i]);
        else if (i % 32 == 0)
            put_q8_0(out + i / 32 * 34, from + i);
    }
    return out;
}

float *made_decode(uint32_t type, const uint8_t *from, uint64_t n) {
    float *out = need(n * sizeof *out);
    for (uint64_t i = 0; i < n; i++) {
        if (type == MADE_F32)
            memcpy(&out[i], from + 4 * i, 4);
        else if (type == MADE_BF16)
            out[i] = bf16_value(from + 2 * i);
        else if (type == MADE_F16)
            out[i] = f16_value(from + 2 * i);
        else
            out[i] = f16_value(from + i / 32 * 34) * (float)(int8_t)from[i / 32 * 34 + 2 + i % 32];
    }
    return out;
}

/* ---- source ------------------------------------------------------------------------------------------------------ */

void source_open(source *s, const char *name) {
    const char *root = getenv("MXRUN_SOURCE");
    mx_error error;
    *s = (source){0};
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->folder, sizeof s->folder, strcmp(name, "stories") ? "%s/tests/data/%s" : "%s/tools/%s/checkpoint",
             root ? root : ".", name);
    snprintf(s->golden, sizeof s->golden, "%s/tests/data/%s.golden.safetensors", root ? root : ".", name);
    if (mx_config_read(s->folder, &s->config, &error)) fail_msg("%s", error.text);
    if (mx_checkpoint_open(s->folder, &s->ck, &error)) fail_msg("%s", error.text);
}

void source_close(source *s) {
    mx_checkpoint_close(s->ck);
}

const mx_tensor *source_find(const source *s, int layer, const char *name) {
    char full[120];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    const mx_tensor *t = mx_checkpoint_find(s->ck, full);
    if (!t) fail_msg("%s has no %s", s->name, full);
    return t;
}

float *source_experts(const source *s, int layer, const char *which, uint64_t *count) {
    static const float values[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    char name[80];
    snprintf(name, sizeof name, "mlp.experts.%s_blocks", which);
    const mx_tensor *blocks = source_find(s, layer, name);
    snprintf(name, sizeof name, "mlp.experts.%s_scales", which);
    const mx_tensor *scales = source_find(s, layer, name);
    float *out = need(blocks->bytes * 2 * sizeof *out);
    *count = 2 * blocks->bytes;
    for (uint64_t i = 0; i < *count; i++) {
        const int code = blocks->data[i / 2] >> (i % 2 ? 4 : 0) & 15;
        out[i] = ldexpf(values[code], scales->data[i / 32] - 127);
    }
    return out;
}

/* ---- pile -------------------------------------------------------------------------------------------------------- */

static piece *add(pile *p, uint32_t type, int dims, const int64_t *shape, uint8_t *data, const char *format, ...) {
    assert_true(p->count < PIECES);
    piece *q = &p->piece[p->count++];
    uint64_t n = 1;
    va_list list;
    va_start(list, format);
    vsnprintf(q->name, sizeof q->name, format, list);
    va_end(list);
    q->type = type;
    q->dims = dims;
    for (int i = 0; i < dims; i++) n *= (uint64_t)(q->shape[i] = shape[i]);
    q->bytes = made_bytes(type, n);
    q->data = data;
    return q;
}

static uint8_t *copy_of(const uint8_t *from, uint64_t size) {
    return memcpy(need(size), from, size);
}

static void add_copy(pile *p, const mx_tensor *t, const char *format, int layer) {
    char name[120];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", format);
    else
        snprintf(name, sizeof name, "block.%d.%s", layer, format);
    add(p, t->dtype == MX_DTYPE_BF16 ? MADE_BF16 : MADE_U8, t->dims, t->shape, copy_of(t->data, t->bytes), "%s", name);
}

static int index_of(pile *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (!strcmp(p->piece[i].name, name)) return i;
    fail_msg("the test names a tensor that is not there: %s", name);
    return 0;
}

piece *pile_find(pile *p, const char *name) {
    return &p->piece[index_of(p, name)];
}

void pile_remove(pile *p, const char *name) {
    const int i = index_of(p, name);
    free(p->piece[i].data);
    memmove(&p->piece[i], &p->piece[i + 1], (size_t)(--p->count - i) * sizeof *p->piece);
}

void pile_free(pile *p) {
    for (int i = 0; i < p->count; i++) free(p->piece[i].data);
    p->count = 0;
}

void folder_write(const char *folder, const pile *p, const char *config) {
    mx_bytes text = {0}, all = {0};
    uint64_t at = 0;
    for (int i = 0; i < p->count; i++) {
        const piece *q = &p->piece[i];
        const char *type = q->type == MADE_U8    ? "U8"
                           : q->type == MADE_F32 ? "F32"
                           : q->type == MADE_F16 ? "F16"
                                                 : "BF16";
        assert_true(mx_bytes_addf(&text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", q->name, type));
        for (int d = 0; d < q->dims; d++)
            assert_true(mx_bytes_addf(&text, "%s%lld", d ? "," : "", (long long)q->shape[d]));
        assert_true(mx_bytes_addf(&text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                  (unsigned long long)(at + q->bytes)));
        at += q->bytes;
    }
    assert_true(mx_bytes_add_string(&text, "}"));
    const uint64_t length = text.size;
    assert_true(mx_bytes_add(&all, &length, 8) && mx_bytes_add(&all, text.data, text.size));
    for (int i = 0; i < p->count; i++) assert_true(mx_bytes_add(&all, p->piece[i].data, p->piece[i].bytes));
    mkdir(folder, 0777);
    made_file(folder, "model.safetensors", all.data, all.size);
    if (config) made_file(folder, "config.json", config, strlen(config));
    mx_bytes_free(&text);
    mx_bytes_free(&all);
}

/* ---- original/ --------------------------------------------------------------------------------------------------- */

static void add_fused(pile *p, const source *s, int layer, const char *part) {
    static const char *const letters[] = {"q", "k", "v"};
    mx_bytes all = {0};
    int64_t shape[2] = {0, s->config.hidden};
    for (int i = 0; i < 3; i++) {
        char name[60];
        snprintf(name, sizeof name, "self_attn.%s_proj.%s", letters[i], part);
        const mx_tensor *t = source_find(s, layer, name);
        shape[0] += t->shape[0];
        assert_true(mx_bytes_add(&all, t->data, t->bytes));
    }
    add(p, MADE_BF16, strcmp(part, "bias") ? 2 : 1, shape, (uint8_t *)all.data, "block.%d.attn.qkv.%s", layer, part);
}

void original_from(pile *p, const source *s) {
    static const char *const names[][2] = {{"input_layernorm.weight", "attn.norm.scale"},
                                           {"self_attn.sinks", "attn.sinks"},
                                           {"self_attn.o_proj.weight", "attn.out.weight"},
                                           {"self_attn.o_proj.bias", "attn.out.bias"},
                                           {"post_attention_layernorm.weight", "mlp.norm.scale"},
                                           {"mlp.router.weight", "mlp.gate.weight"},
                                           {"mlp.router.bias", "mlp.gate.bias"},
                                           {"mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks"},
                                           {"mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales"},
                                           {"mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"},
                                           {"mlp.experts.down_proj_blocks", "mlp.mlp2_weight.blocks"},
                                           {"mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales"},
                                           {"mlp.experts.down_proj_bias", "mlp.mlp2_bias"}};
    for (int i = 0; i < s->config.layers; i++) {
        add_fused(p, s, i, "weight");
        add_fused(p, s, i, "bias");
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            add_copy(p, source_find(s, i, names[k][0]), names[k][1], i);
    }
    add_copy(p, source_find(s, -1, "model.embed_tokens.weight"), "embedding.weight", -1);
    add_copy(p, source_find(s, -1, "model.norm.weight"), "norm.scale", -1);
    add_copy(p, source_find(s, -1, "lm_head.weight"), "unembedding.weight", -1);
}

void original_config(mx_bytes *out, const source *s) {
    const mx_config *c = &s->config;
    assert_true(mx_bytes_addf(
        out,
        "{\"num_hidden_layers\": %d, \"num_experts\": %d, \"experts_per_token\": %d, \"vocab_size\": %d, "
        "\"hidden_size\": %d, \"intermediate_size\": %d, \"swiglu_limit\": %g, \"head_dim\": %d, "
        "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"sliding_window\": %d, "
        "\"initial_context_length\": %d, \"rope_theta\": %g, \"rope_scaling_factor\": %g, \"rope_ntk_alpha\": %g, "
        "\"rope_ntk_beta\": %g}",
        c->layers, c->experts, c->top_k, c->vocab, c->hidden, c->intermediate, (double)c->swiglu_limit, c->head_dim,
        c->heads, c->kv_heads, c->window, c->yarn_original_positions, c->rope_theta, c->yarn_factor, c->yarn_beta_slow,
        c->yarn_beta_fast));
}

void original_write(const char *folder, const source *s) {
    pile p = {.count = 0};
    mx_bytes config = {0}, types = {0};
    original_from(&p, s);
    original_config(&config, s);
    folder_write(folder, &p, config.data);
    for (int i = 0; i < p.count; i++)
        assert_true(mx_bytes_addf(&types, "%s\"%s\": \"%s\"", i ? ", " : "{", p.piece[i].name,
                                  p.piece[i].type == MADE_BF16       ? "BF16"
                                  : strstr(p.piece[i].name, "scale") ? "UE8"
                                                                     : "FP4"));
    assert_true(mx_bytes_add_string(&types, "}"));
    made_file(folder, "dtypes.json", types.data, types.size);
    mx_bytes_free(&types);
    mx_bytes_free(&config);
    pile_free(&p);
}

/* ---- experts in BF16 --------------------------------------------------------------------------------------------- */

static void add_turned(pile *p, const source *s, int layer, const char *which) {
    uint64_t n;
    float *x = source_experts(s, layer, which, &n), *turned = need(n * sizeof *turned);
    const mx_config *c = &s->config;
    const bool up = !strcmp(which, "gate_up_proj");
    const int64_t out = up ? 2 * c->intermediate : c->hidden, in = up ? c->hidden : c->intermediate;
    for (int64_t e = 0; e < c->experts; e++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++) turned[(e * in + i) * out + o] = x[(e * out + o) * in + i];
    add(p, MADE_BF16, 3, (int64_t[]){c->experts, in, out}, made_encode(MADE_BF16, turned, n),
        "model.layers.%d.mlp.experts.%s", layer, which);
    free(x);
    free(turned);
}

void bf16_experts_from(pile *p, const source *s) {
    for (int i = 0; i < mx_checkpoint_count(s->ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(s->ck, i);
        if (t->dtype == MX_DTYPE_BF16) add_copy(p, t, t->name, -1);
    }
    for (int i = 0; i < s->config.layers; i++) {
        add_turned(p, s, i, "gate_up_proj");
        add_turned(p, s, i, "down_proj");
    }
}

void bf16_experts_config(mx_bytes *out, const source *s) {
    mx_error error;
    if (mx_read_file(made_path(s->folder, "config.json"), 1 << 20, out, &error)) fail_msg("%s", error.text);
    char *begin = strstr(out->data, "\"quantization_config\"");
    assert_non_null(begin);
    char *end = strstr(begin, "},");
    assert_non_null(end);
    memset(begin, ' ', (size_t)(end + 2 - begin));
}

void bf16_experts_write(const char *folder, const source *s) {
    pile p = {.count = 0};
    mx_bytes config = {0};
    bf16_experts_from(&p, s);
    bf16_experts_config(&config, s);
    folder_write(folder, &p, config.data);
    mx_bytes_free(&config);
    pile_free(&p);
}

/* ---- model.bin --------------------------------------------------------------------------------------------------- */

static void put(mx_bytes *out, const void *data, size_t size) {
    assert_true(mx_bytes_add(out, data, size));
}

static void put_u32(mx_bytes *out, uint32_t value) {
    put(out, &value, 4);
}

static void put_f32(mx_bytes *out, double value) {
    const float f = (float)value;
    put(out, &f, 4);
}

static void pad(mx_bytes *out, size_t to) {
    while (out->size % to) put(out, "", 1);
}

static void metal_header(mx_bytes *out, const mx_config *c) {
    static const char model[] = "\xdf\x52\xdc\x86\x17\x89\x4e\xd0\xa2\x95\x66\xf1\x05\x08\x14\x5b";
    static const char layout[] = "\x22\x91\x77\xa8\x57\x75\x42\x68\xbf\xd8\xd5\x88\xb3\x51\xc5\x6d";
    static const char tokenizer[] = "\x74\x01\xad\xed\x2a\x95\x40\xcb\xb7\x82\x9c\xce\xba\xaf\xe7\x2b";
    const double pi = acos(-1.0), half = c->head_dim / 2.0;
    const double low = half * log(c->yarn_original_positions / (c->yarn_beta_fast * 2 * pi)) / log(c->rope_theta);
    const double high = half * log(c->yarn_original_positions / (c->yarn_beta_slow * 2 * pi)) / log(c->rope_theta);
    put(out, "GPT-OSS v1.0\0\0\0", 16);
    put(out, model, 16);
    const int whole[] = {c->max_positions, c->layers, c->experts, c->top_k, c->hidden, c->intermediate};
    for (int i = 0; i < 6; i++) put_u32(out, (uint32_t)whole[i]);
    put_f32(out, (double)c->swiglu_limit);
    put_u32(out, (uint32_t)c->head_dim);
    put_u32(out, (uint32_t)c->heads);
    put_u32(out, (uint32_t)c->kv_heads);
    put_u32(out, (uint32_t)c->window);
    put_f32(out, c->rope_theta);
    put_f32(out, 1 / c->yarn_factor);
    put_f32(out, -low / (high - low));
    put_f32(out, 1 / (high - low));
    put_f32(out, 0.1 * log(c->yarn_factor) + 1);
    put_f32(out, (double)c->rms_eps);
    put(out, layout, 16);
    put(out, tokenizer, 16);
}

/* 16 special tokens without an identifier, the others three letters each. */
static void metal_vocabulary(mx_bytes *out, int vocab) {
    static const char regex[] = "\\p{L}+|\\p{N}{1,3}|\\s+";
    const int text = vocab - 16;
    put_u32(out, 16);
    put_u32(out, (uint32_t)text);
    put_u32(out, sizeof regex);
    put_u32(out, (uint32_t)text * 5);
    for (int i = 0; i < 16 * 16; i++) put(out, "", 1);
    put(out, regex, sizeof regex);
    for (int i = 0; i < text; i++) {
        const char token[5] = {3, 0, (char)('a' + i % 26), (char)('a' + i / 26 % 26), (char)('a' + i / 26 / 26)};
        put(out, token, sizeof token);
    }
}

static void metal_copy(mx_bytes *out, const mx_tensor *t) {
    pad(out, 16);
    put(out, t->data, t->bytes);
}

/* Rows of the pairs (d, d + 32) of each head become neighbours. */
static void metal_rows(mx_bytes *out, const mx_tensor *t, double factor, bool pairs) {
    const int64_t rows = t->shape[0], cols = t->dims == 2 ? t->shape[1] : 1;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t head = r / 64, d = r % 64, from = pairs ? head * 64 + (d % 2 ? 32 + d / 2 : d / 2) : r;
        for (int64_t i = 0; i < cols; i++) {
            uint8_t number[2];
            put_bf16(number, bf16_value(t->data + (from * cols + i) * 2) * (float)factor);
            put(out, number, 2);
        }
    }
}

static void metal_layer(mx_bytes *out, const source *s, int layer) {
    static const char *const parts[] = {"weight", "bias"};
    static const char *const rest[] = {"self_attn.sinks",       "self_attn.o_proj.weight",
                                       "self_attn.o_proj.bias", "post_attention_layernorm.weight",
                                       "mlp.router.weight",     "mlp.router.bias"};
    metal_copy(out, source_find(s, layer, "input_layernorm.weight"));
    for (int i = 0; i < 2; i++) {
        pad(out, 16);
        for (int k = 0; k < 3; k++) {
            char name[60];
            snprintf(name, sizeof name, "self_attn.%c_proj.%s", "qkv"[k], parts[i]);
            metal_rows(out, source_find(s, layer, name), k == 0 ? 0.5 : k == 1 ? 0.25 : 1, k < 2);
        }
    }
    for (int i = 0; i < 6; i++) metal_copy(out, source_find(s, layer, rest[i]));
}

static void metal_experts(mx_bytes *out, const source *s, int layer, size_t *scale) {
    static const char *const names[] = {"gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias",
                                        "down_proj_blocks",    "down_proj_scales",    "down_proj_bias"};
    pad(out, 16384);
    for (int64_t e = 0; e < s->config.experts; e++)
        for (int k = 0; k < 6; k++) {
            char name[60];
            snprintf(name, sizeof name, "mlp.experts.%s", names[k]);
            const mx_tensor *t = source_find(s, layer, name);
            const uint64_t size = t->bytes / (uint64_t)s->config.experts;
            const uint8_t *from = t->data + (uint64_t)e * size;
            pad(out, 16);
            if (scale && !layer && !e && k == 1) *scale = out->size;
            for (uint64_t i = 0; i < size; i++) {
                const uint8_t byte = (uint8_t)(from[i] + (k % 3 == 1 ? 14 : 0));
                put(out, &byte, 1);
            }
        }
}

void metal_from(mx_bytes *out, const source *s, size_t *scale) {
    metal_header(out, &s->config);
    metal_vocabulary(out, s->config.vocab);
    pad(out, 16384);
    metal_copy(out, source_find(s, -1, "model.embed_tokens.weight"));
    for (int i = 0; i < s->config.layers; i++) metal_layer(out, s, i);
    metal_copy(out, source_find(s, -1, "model.norm.weight"));
    metal_copy(out, source_find(s, -1, "lm_head.weight"));
    for (int i = 0; i < s->config.layers; i++) metal_experts(out, s, i, scale);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

enum { U16 = 2, U32 = 4, I32 = 5, F32 = 6, STRING = 8 };

static void set_key(gguf *g, const char *name, uint32_t kind, const void *value, int size) {
    int i = 0;
    while (i < g->keys && strcmp(g->key[i].name, name)) i++;
    assert_true(i < GGUF_KEYS && size <= (int)sizeof g->key->value);
    if (i == g->keys) g->keys++;
    snprintf(g->key[i].name, sizeof g->key[i].name, "%s", name);
    g->key[i].kind = kind;
    g->key[i].size = size;
    memcpy(g->key[i].value, value, (size_t)size);
}

void gguf_u32(gguf *g, const char *key, uint32_t value) {
    set_key(g, key, U32, &value, 4);
}

void gguf_f32(gguf *g, const char *key, float value) {
    set_key(g, key, F32, &value, 4);
}

void gguf_text(gguf *g, const char *key, const char *value) {
    uint8_t all[80] = {(uint8_t)strlen(value)};
    assert_true(strlen(value) <= 72);
    memcpy(all + 8, value, strlen(value));
    set_key(g, key, STRING, all, 8 + (int)strlen(value));
}

void gguf_remove(gguf *g, const char *key) {
    for (int i = 0; i < g->keys; i++)
        if (!strcmp(g->key[i].name, key)) {
            memmove(&g->key[i], &g->key[i + 1], (size_t)(--g->keys - i) * sizeof *g->key);
            return;
        }
    fail_msg("the test names a key that is not there: %s", key);
}

/* A tensor of BF16 in another type. */
static void add_as(gguf *g, const mx_tensor *t, uint32_t type, int layer, const char *name) {
    const uint64_t n = t->bytes / 2;
    float *x = made_decode(MADE_BF16, t->data, n);
    if (layer < 0)
        add(&g->pile, type, t->dims, t->shape, made_encode(type, x, n), "%s", name);
    else
        add(&g->pile, type, t->dims, t->shape, made_encode(type, x, n), "blk.%d.%s", layer, name);
    free(x);
}

/* Rows begin, begin + step ... of each expert: GGUF's blocks of 17 bytes. */
static uint8_t *mxfp4_rows(const mx_tensor *blocks, const mx_tensor *scales, int begin, int step) {
    const int64_t all = blocks->shape[0] * blocks->shape[1], per_row = blocks->shape[2];
    uint8_t *out = need((uint64_t)(all / step * per_row * 17)), *to = out;
    for (int64_t r = begin; r < all; r += step)
        for (int64_t b = r * per_row; b < (r + 1) * per_row; b++, to += 17) {
            const uint8_t *from = blocks->data + 16 * b;
            to[0] = scales->data[b];
            for (int j = 0; j < 16; j++) {
                const int low = from[j / 2] >> (j % 2 ? 4 : 0) & 15, high = from[8 + j / 2] >> (j % 2 ? 4 : 0) & 15;
                to[1 + j] = (uint8_t)(low | high << 4);
            }
        }
    return out;
}

/* `which`: "gate_up_proj" or "down_proj"; its rows begin, begin + step ... under `name`. */
static void add_experts(gguf *g, const source *s, int layer, const char *which, int begin, int step, const char *name,
                        uint32_t type) {
    char full[80];
    snprintf(full, sizeof full, "mlp.experts.%s_blocks", which);
    const mx_tensor *blocks = source_find(s, layer, full);
    const int64_t shape[3] = {blocks->shape[0], blocks->shape[1] / step, blocks->shape[2] * 32};
    uint8_t *data;
    if (type == MADE_MXFP4) {
        snprintf(full, sizeof full, "mlp.experts.%s_scales", which);
        data = mxfp4_rows(blocks, source_find(s, layer, full), begin, step);
    } else {
        uint64_t n;
        float *x = source_experts(s, layer, which, &n), *rows = need(n * sizeof *rows), *to = rows;
        for (int64_t r = begin; r < shape[0] * shape[1] * step; r += step, to += shape[2])
            memcpy(to, x + r * shape[2], (size_t)shape[2] * sizeof *to);
        data = made_encode(type, rows, n / (uint64_t)step);
        free(x);
        free(rows);
    }
    add(&g->pile, type, 3, shape, data, "blk.%d.%s.weight", layer, name);
    snprintf(full, sizeof full, "mlp.experts.%s_bias", which);
    const mx_tensor *bias = source_find(s, layer, full);
    const int64_t count = bias->shape[0] * bias->shape[1] / step;
    float *x = made_decode(MADE_BF16, bias->data, bias->bytes / 2), *some = need((uint64_t)count * sizeof *some);
    for (int64_t i = 0; i < count; i++) some[i] = x[begin + i * step];
    add(&g->pile, MADE_F32, 2, (int64_t[]){bias->shape[0], bias->shape[1] / step},
        made_encode(MADE_F32, some, (uint64_t)count), "blk.%d.%s.bias", layer, name);
    free(x);
    free(some);
}

static void gguf_layer(gguf *g, const source *s, int layer, const gguf_form *form) {
    static const char letters[] = "qkvo";
    static const char *const names[] = {"attn_q", "attn_k", "attn_v", "attn_output"};
    for (int i = 0; i < 4; i++) {
        char from[60], to[60];
        snprintf(from, sizeof from, "self_attn.%c_proj.weight", letters[i]);
        snprintf(to, sizeof to, "%s.weight", names[i]);
        add_as(g, source_find(s, layer, from), form->dense, layer, to);
        snprintf(from, sizeof from, "self_attn.%c_proj.bias", letters[i]);
        snprintf(to, sizeof to, "%s.bias", names[i]);
        add_as(g, source_find(s, layer, from), MADE_F32, layer, to);
    }
    add_as(g, source_find(s, layer, "input_layernorm.weight"), MADE_F32, layer, "attn_norm.weight");
    add_as(g, source_find(s, layer, "post_attention_layernorm.weight"), MADE_F32, layer, "post_attention_norm.weight");
    add_as(g, source_find(s, layer, "self_attn.sinks"), MADE_F32, layer,
           form->bare_sinks ? "attn_sinks" : "attn_sinks.weight");
    add_as(g, source_find(s, layer, "mlp.router.weight"), MADE_F32, layer, "ffn_gate_inp.weight");
    add_as(g, source_find(s, layer, "mlp.router.bias"), MADE_F32, layer, "ffn_gate_inp.bias");
    add_experts(g, s, layer, "gate_up_proj", 0, 2, "ffn_gate_exps", form->experts);
    add_experts(g, s, layer, "gate_up_proj", 1, 2, "ffn_up_exps", form->experts);
    add_experts(g, s, layer, "down_proj", 0, 1, "ffn_down_exps", form->experts);
}

void gguf_from(gguf *g, const source *s, const gguf_form *form) {
    const mx_config *c = &s->config;
    *g = (gguf){0};
    gguf_text(g, "general.architecture", "gpt-oss");
    gguf_text(g, "general.name", s->name);
    gguf_u32(g, "gpt-oss.block_count", (uint32_t)c->layers);
    gguf_u32(g, "gpt-oss.context_length", (uint32_t)c->max_positions);
    gguf_u32(g, "gpt-oss.embedding_length", (uint32_t)c->hidden);
    gguf_u32(g, "gpt-oss.feed_forward_length", (uint32_t)c->intermediate);
    gguf_u32(g, "gpt-oss.expert_feed_forward_length", (uint32_t)c->intermediate);
    gguf_u32(g, "gpt-oss.expert_count", (uint32_t)c->experts);
    gguf_u32(g, "gpt-oss.expert_used_count", (uint32_t)c->top_k);
    gguf_u32(g, "gpt-oss.attention.head_count", (uint32_t)c->heads);
    gguf_u32(g, "gpt-oss.attention.head_count_kv", (uint32_t)c->kv_heads);
    gguf_u32(g, "gpt-oss.attention.key_length", (uint32_t)c->head_dim);
    gguf_u32(g, "gpt-oss.attention.value_length", (uint32_t)c->head_dim);
    gguf_f32(g, "gpt-oss.attention.layer_norm_rms_epsilon", c->rms_eps);
    gguf_u32(g, "gpt-oss.attention.sliding_window", (uint32_t)c->window);
    gguf_f32(g, "gpt-oss.rope.freq_base", (float)c->rope_theta);
    gguf_text(g, "gpt-oss.rope.scaling.type", "yarn");
    gguf_f32(g, "gpt-oss.rope.scaling.factor", (float)c->yarn_factor);
    gguf_u32(g, "gpt-oss.rope.scaling.original_context_length", (uint32_t)c->yarn_original_positions);
    gguf_u32(g, "general.file_type", 38);
    if (c->eos_count) gguf_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)c->eos[0]);
    if (c->eos_count > 1) gguf_u32(g, "tokenizer.ggml.padding_token_id", (uint32_t)c->eos[1]);
    add_as(g, source_find(s, -1, "model.embed_tokens.weight"), form->dense, -1, "token_embd.weight");
    add_as(g, source_find(s, -1, "model.norm.weight"), MADE_F32, -1, "output_norm.weight");
    if (!form->tied) add_as(g, source_find(s, -1, "lm_head.weight"), form->dense, -1, "output.weight");
    for (int i = 0; i < c->layers; i++) gguf_layer(g, s, i, form);
}

static void put_u64(mx_bytes *out, uint64_t value) {
    put(out, &value, 8);
}

static void put_text(mx_bytes *out, const char *text) {
    put_u64(out, strlen(text));
    put(out, text, strlen(text));
}

/* Tensors first .. end; keys where `keys` says so, and those of `more`. */
static void write_gguf(const gguf *g, const char *path, bool keys, const gguf *more, int first, int end) {
    mx_bytes out = {0};
    uint64_t at = 0;
    put(&out, "GGUF\3\0\0", 8);
    put_u64(&out, (uint64_t)(end - first));
    put_u64(&out, (uint64_t)((keys ? g->keys : 0) + (more ? more->keys : 0)));
    for (int part = 0; part < 2; part++) {
        const gguf *from = part ? more : keys ? g : NULL;
        for (int i = 0; from && i < from->keys; i++) {
            put_text(&out, from->key[i].name);
            put_u32(&out, from->key[i].kind);
            put(&out, from->key[i].value, (size_t)from->key[i].size);
        }
    }
    for (int i = first; i < end; i++) {
        const piece *p = &g->pile.piece[i];
        put_text(&out, p->name);
        put_u32(&out, (uint32_t)p->dims);
        for (int d = p->dims - 1; d >= 0; d--) put_u64(&out, (uint64_t)p->shape[d]);
        put_u32(&out, p->type);
        put_u64(&out, at);
        at += (p->bytes + 31) / 32 * 32;
    }
    for (int i = first; i < end; i++) {
        pad(&out, 32);
        put(&out, g->pile.piece[i].data, g->pile.piece[i].bytes);
    }
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(out.data, 1, out.size, f), out.size);
    assert_int_equal(fclose(f), 0);
    mx_bytes_free(&out);
}

void gguf_write(const gguf *g, const char *path) {
    write_gguf(g, path, true, NULL, 0, g->pile.count);
}

/* As llama-gguf-split does it: the model's keys are in the first file alone. */
void gguf_split(const gguf *g, const char *stem, int parts, int64_t total) {
    gguf *split = calloc(1, sizeof *split);
    assert_non_null(split);
    const int32_t tensors = total < 0 ? g->pile.count : (int32_t)total;
    for (int i = 0; i < parts; i++) {
        char path[900];
        const uint16_t no = (uint16_t)i, count = (uint16_t)parts;
        set_key(split, "split.no", U16, &no, 2);
        set_key(split, "split.count", U16, &count, 2);
        set_key(split, "split.tensors.count", I32, &tensors, 4);
        snprintf(path, sizeof path, "%s-%05d-of-%05d.gguf", stem, i + 1, parts);
        write_gguf(g, path, i == 0, split, g->pile.count * i / parts, g->pile.count * (i + 1) / parts);
    }
    free(split);
}

void gguf_free(gguf *g) {
    pile_free(&g->pile);
}
