/* Every published layout of a model is the same model: tensors, configuration, identity, forward pass. The files are
 * written here (layout_maker.c) from Hugging Face folders, or taken from ../shared where that is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "checkpoint_maker.h"
#include "layout_maker.h"
#include "model/load.h"
#include "model/model.h"

/* ---- one model in one layout ---------------------------------------------------------------------------------------
 */

/* What a layout's file says otherwise than config.json; the rest is the same. */
enum { NO_EOS = 1, NO_LIMIT = 2, SHORT_CONTEXT = 4 };

typedef struct layout {
    const char *source, *name; /* name: of the file or folder in a temporary folder */
    mx_layout kind;
    enum { ORIGINAL, EXPERTS16, GGUF, METAL } form;
    gguf_form gguf;
    int parts; /* of a GGUF; 0: one without split keys */
    unsigned differs;
    bool lossy;     /* not the golden's model */
    bool same_bits; /* logits are those of the Hugging Face folder, bit for bit */
} layout;

#define GGUF_OF(d, e, ...) .kind = MX_LAYOUT_GGUF, .form = GGUF, .gguf = {.dense = (d), .experts = (e), __VA_ARGS__}
#define ORIGINAL_OF        .kind = MX_LAYOUT_ORIGINAL, .form = ORIGINAL, .same_bits = true
#define EXPERTS16_OF       .kind = MX_LAYOUT_HF, .form = EXPERTS16, .gguf = {.dense = MADE_BF16, .experts = MADE_BF16}

static const layout layouts[] = {
    {"base", "base-original", ORIGINAL_OF, .differs = NO_EOS},
    {"mqa", "mqa-original", ORIGINAL_OF, .differs = NO_EOS},
    {"top1", "top1-original", ORIGINAL_OF, .differs = NO_EOS | SHORT_CONTEXT},
    {"base", "base-BF16", EXPERTS16_OF},
    {"mqa", "mqa-BF16", EXPERTS16_OF},
    {"top1", "top1-BF16", EXPERTS16_OF},
    {"base", "base.gguf", GGUF_OF(MADE_BF16, MADE_MXFP4, )},
    {"mqa", "mqa.gguf", GGUF_OF(MADE_BF16, MADE_MXFP4, .bare_sinks = true)},
    {"top1", "top1.gguf", GGUF_OF(MADE_BF16, MADE_MXFP4, ), .differs = NO_LIMIT, .lossy = true},
    {"base", "three", GGUF_OF(MADE_BF16, MADE_MXFP4, ), .parts = 3},
    {"base", "one", GGUF_OF(MADE_BF16, MADE_MXFP4, .tied = true), .parts = 1, .lossy = true},
    {"base", "tied.gguf", GGUF_OF(MADE_BF16, MADE_MXFP4, .tied = true), .lossy = true},
    {"base", "tied", GGUF_OF(MADE_BF16, MADE_MXFP4, .tied = true), .parts = 2, .lossy = true},
    {"base", "f16.gguf", GGUF_OF(MADE_F16, MADE_MXFP4, )},
    {"base", "f32.gguf", GGUF_OF(MADE_F32, MADE_MXFP4, )},
    {"base", "q8_0.gguf", GGUF_OF(MADE_Q8_0, MADE_MXFP4, ), .lossy = true},
    {"base", "bf16-experts.gguf", GGUF_OF(MADE_BF16, MADE_BF16, )},
    {"base", "f16-experts.gguf", GGUF_OF(MADE_F16, MADE_F16, )},
    {"base", "q8_0-experts.gguf", GGUF_OF(MADE_BF16, MADE_Q8_0, ), .lossy = true},
    {"base", "model.bin", .kind = MX_LAYOUT_METAL, .form = METAL, .differs = NO_EOS, .same_bits = true},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

enum { BASE, MQA, TOP1, SOURCES };
static source sources[SOURCES];
static char folder[200];
static char path[LAYOUTS][900]; /* of each layout, as a user gives it */

static const source *source_of(const layout *l) {
    for (int i = 0; i < SOURCES; i++)
        if (!strcmp(sources[i].name, l->source)) return &sources[i];
    fail_msg("no source %s", l->source);
    return NULL;
}

static void write_layout(const layout *l, char out[900]) {
    const source *s = source_of(l);
    snprintf(out, 900, "%s", made_path(folder, l->name));
    if (l->form == ORIGINAL) original_write(out, s);
    if (l->form == EXPERTS16) bf16_experts_write(out, s);
    if (l->form == METAL) {
        mx_bytes file = {0};
        metal_from(&file, s, NULL);
        made_file(folder, l->name, file.data, file.size);
        mx_bytes_free(&file);
    }
    if (l->form != GGUF) return;
    gguf *g = calloc(1, sizeof *g);
    assert_non_null(g);
    gguf_from(g, s, &l->gguf);
    if (l->parts) {
        gguf_split(g, out, l->parts, -1);
        snprintf(out + strlen(out), 40, "-00001-of-%05d.gguf", l->parts);
    } else {
        gguf_write(g, out);
    }
    gguf_free(g);
    free(g);
}

static int set_up(void **state) {
    (void)state;
    static const char *const names[] = {"base", "mqa", "top1"};
    for (int i = 0; i < SOURCES; i++) source_open(&sources[i], names[i]);
    made_folder(folder);
    for (int i = 0; i < LAYOUTS; i++) write_layout(&layouts[i], path[i]);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (int i = 0; i < SOURCES; i++) source_close(&sources[i]);
    maker_remove(folder);
    return 0;
}

static const layout *layout_named(const char *name, const char **where) {
    *where = NULL;
    for (int i = 0; i < LAYOUTS; i++)
        if (!strcmp(layouts[i].name, name)) {
            *where = path[i];
            return &layouts[i];
        }
    fail_msg("no layout %s", name);
    return NULL;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------
 */

/* All bytes, without gaps; from malloc. `loaded`: those that the kernels see. */
static uint8_t *bytes_of(const mx_tensor *t, bool loaded) {
    uint8_t *out = malloc(t->bytes + 1);
    assert_non_null(out);
    const uint64_t slice = mx_tensor_slice_bytes(t);
    if (loaded)
        for (int64_t i = 0; i < t->shape[0]; i++)
            memcpy(out + (uint64_t)i * slice, t->data + (uint64_t)i * t->slice_stride, slice);
    else
        mx_tensor_slices(t, 0, t->shape[0], out);
    return out;
}

/* Slices from the middle are those of the whole. */
static void check_middle(const mx_tensor *t, const uint8_t *whole) {
    const uint64_t slice = mx_tensor_slice_bytes(t);
    const int64_t first = t->shape[0] / 3, count = (t->shape[0] - first + 1) / 2;
    uint8_t *some = malloc((uint64_t)count * slice + 1);
    assert_non_null(some);
    some[(uint64_t)count * slice] = 0xA5;
    mx_tensor_slices(t, first, count, some);
    assert_memory_equal(some, whole + (uint64_t)first * slice, (uint64_t)count * slice);
    assert_int_equal(some[(uint64_t)count * slice], 0xA5);
    free(some);
}

static uint32_t type_of(const mx_tensor *t) {
    switch (t->dtype) {
    case MX_DTYPE_BF16:
        return MADE_BF16;
    case MX_DTYPE_F16:
        return MADE_F16;
    case MX_DTYPE_F32:
        return MADE_F32;
    case MX_DTYPE_Q8_0:
        return MADE_Q8_0;
    default:
        fail_msg("%s has the type %s", t->name, t->dtype_name);
        return 0;
    }
}

/* `found` holds the numbers `want` [n] as its type `type` rounds them. */
static void check_numbers(const mx_tensor *found, uint32_t type, const float *want, uint64_t n, bool loaded) {
    assert_int_equal(type_of(found), type);
    assert_int_equal(found->bytes, made_bytes(type, n));
    uint8_t *have = bytes_of(found, loaded), *rounded = made_encode(type, want, n);
    check_middle(found, have);
    if (memcmp(have, rounded, found->bytes)) fail_msg("%s: other bytes", found->name);
    free(have);
    free(rounded);
}

static bool ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Tensor `want` of the source, as layout `l` has it. */
static void check_tensor(const layout *l, const source *s, const mx_checkpoint *ck, const mx_tensor *want,
                         bool loaded) {
    const bool blocks = ends_with(want->name, "_blocks"),
               dense_experts = l->gguf.experts && l->gguf.experts != MADE_MXFP4;
    char name[160];
    snprintf(name, sizeof name, "%s", want->name);
    if (dense_experts && ends_with(name, "_scales")) return;
    if (dense_experts && blocks) snprintf(name + strlen(name) - strlen("_blocks"), 20, ".weight");
    const mx_tensor *found = mx_checkpoint_find(ck, name);
    if (!strcmp(name, "lm_head.weight") && l->gguf.tied) {
        assert_null(found);
        return;
    }
    if (!found) fail_msg("%s: no %s", l->name, name);
    if (loaded) assert_null(found->recipe);
    if (dense_experts && blocks) {
        int layer;
        uint64_t n;
        assert_int_equal(sscanf(name, "model.layers.%d.", &layer), 1);
        float *x = source_experts(s, layer, strstr(name, "gate_up_proj") ? "gate_up_proj" : "down_proj", &n);
        assert_int_equal(found->dims, 3);
        assert_memory_equal(found->shape, ((int64_t[]){want->shape[0], want->shape[1], want->shape[2] * 32}), 24);
        check_numbers(found, l->gguf.experts, x, n, loaded);
        free(x);
        return;
    }
    assert_int_equal(found->dims, want->dims);
    assert_memory_equal(found->shape, want->shape, (size_t)want->dims * sizeof *want->shape);
    if (want->dtype != MX_DTYPE_BF16) {
        uint8_t *have = bytes_of(found, loaded);
        assert_int_equal(found->dtype, want->dtype);
        check_middle(found, have);
        if (memcmp(have, want->data, want->bytes)) fail_msg("%s: %s: other bytes", l->name, name);
        free(have);
        return;
    }
    const bool small = want->dims == 1 || strstr(name, "router") || ends_with(name, "_bias");
    float *x = made_decode(MADE_BF16, want->data, want->bytes / 2);
    check_numbers(found, l->form != GGUF ? MADE_BF16 : small ? MADE_F32 : l->gguf.dense, x, want->bytes / 2, loaded);
    free(x);
}

/* A GGUF's experts as weights have them: the file's bytes, gate and up apart. */
static void check_experts_in_place(const layout *l, const mx_checkpoint *ck) {
    gguf *g = calloc(1, sizeof *g);
    assert_non_null(g);
    gguf_from(g, source_of(l), &l->gguf);
    for (int i = 0; i < g->pile.count; i++) {
        const piece *p = &g->pile.piece[i];
        int layer, end = 0;
        char which[8], part[8], name[120];
        if (sscanf(p->name, "blk.%d.ffn_%7[a-z]_exps.%7[a-z]%n", &layer, which, part, &end) != 3 || !end) continue;
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_proj%s", layer, which,
                 !strcmp(part, "bias") ? "_bias" : ".weight");
        const mx_tensor *t = mx_checkpoint_find(ck, name);
        if (!t) fail_msg("%s: no %s", l->name, name);
        assert_null(t->recipe);
        if (p->type == MADE_MXFP4)
            assert_int_equal(t->dtype, MX_DTYPE_MXFP4);
        else
            assert_int_equal(type_of(t), p->type);
        assert_int_equal(t->dims, p->dims);
        assert_memory_equal(t->shape, p->shape, (size_t)p->dims * sizeof *p->shape);
        assert_int_equal(t->bytes, p->bytes);
        uint8_t *have = bytes_of(t, true);
        check_middle(t, have);
        if (memcmp(have, p->data, p->bytes)) fail_msg("%s: %s: other bytes", l->name, name);
        free(have);
    }
    gguf_free(g);
    free(g);
}

static void check_tensors(const layout *l, const mx_checkpoint *ck, bool loaded) {
    const source *s = source_of(l);
    int pairs = 0;
    for (int i = 0; i < mx_checkpoint_count(s->ck); i++) {
        check_tensor(l, s, ck, mx_checkpoint_at(s->ck, i), loaded);
        pairs += ends_with(mx_checkpoint_at(s->ck, i)->name, "_blocks");
    }
    const bool dense_experts = l->gguf.experts && l->gguf.experts != MADE_MXFP4;
    assert_int_equal(mx_checkpoint_count(ck),
                     mx_checkpoint_count(s->ck) - (l->gguf.tied ? 1 : 0) - (dense_experts ? pairs : 0));
}

/* Of opened weights, which keep a GGUF's experts where they lie. */
static void check_weights(const layout *l, const mx_weights *w, bool loaded) {
    if (l->form != GGUF) {
        check_tensors(l, w->checkpoint, loaded);
        return;
    }
    const source *s = source_of(l);
    for (int i = 0; i < mx_checkpoint_count(s->ck); i++)
        if (!strstr(mx_checkpoint_at(s->ck, i)->name, ".mlp.experts."))
            check_tensor(l, s, w->checkpoint, mx_checkpoint_at(s->ck, i), loaded);
    check_experts_in_place(l, w->checkpoint);
    /* Six of a layer's experts in both forms. */
    assert_int_equal(mx_checkpoint_count(w->checkpoint), mx_checkpoint_count(s->ck) - (l->gguf.tied ? 1 : 0));
}

static void tensors_are_the_same(void **state) {
    (void)state;
    mx_error error;
    for (int i = 0; i < LAYOUTS; i++) {
        mx_checkpoint *ck;
        if (mx_checkpoint_open(path[i], &ck, &error)) fail_msg("%s", error.text);
        assert_int_equal(mx_checkpoint_layout(ck), layouts[i].kind);
        assert_int_equal(mx_checkpoint_made(ck), 0); /* nothing is rearranged before it is used */
        check_tensors(&layouts[i], ck, false);
        mx_checkpoint_close(ck);
    }
}

/* ---- configuration ------------------------------------------------------------------------------------------------
 */

static void check_config(const layout *l, const mx_config *have) {
    mx_config want = source_of(l)->config;
    if (l->differs & NO_EOS) want.eos_count = 0;
    if (l->differs & NO_LIMIT) want.swiglu_limit = 7;
    if (l->differs & SHORT_CONTEXT) want.max_positions = (int)(want.yarn_original_positions * want.yarn_factor);
    want.tied_embeddings = l->gguf.tied;
#define SAME(field)                                                                                                    \
    if ((double)have->field < (double)want.field || (double)have->field > (double)want.field)                          \
    fail_msg("%s: " #field " is %.9g, expected %.9g", l->name, (double)have->field, (double)want.field)
    SAME(layers);
    SAME(hidden);
    SAME(intermediate);
    SAME(heads);
    SAME(kv_heads);
    SAME(head_dim);
    SAME(experts);
    SAME(top_k);
    SAME(vocab);
    SAME(window);
    SAME(max_positions);
    SAME(rms_eps);
    SAME(swiglu_limit);
    SAME(swiglu_alpha);
    SAME(rope_theta);
    SAME(yarn);
    SAME(yarn_factor);
    SAME(yarn_beta_fast);
    SAME(yarn_beta_slow);
    SAME(yarn_original_positions);
    SAME(yarn_truncate);
    SAME(yarn_attention_factor);
    SAME(attention_bias);
    SAME(tied_embeddings);
    SAME(eos_count);
    SAME(temperature);
    SAME(top_p);
    SAME(sample_top_k);
    for (int i = 0; i < want.layers; i++) SAME(sliding[i]);
    for (int i = 0; i < want.eos_count; i++) SAME(eos[i]);
#undef SAME
}

static void configurations_are_the_same(void **state) {
    (void)state;
    mx_error error;
    for (int i = 0; i < LAYOUTS; i++) {
        mx_config config;
        mx_weights *w;
        if (mx_weights_load(path[i], &(mx_load_options){.way = MX_LOAD_LOOK}, NULL, &w, &error))
            fail_msg("%s", error.text);
        check_config(&layouts[i], &w->config);
        mx_weights_close(w);
        if (layouts[i].gguf.tied && layouts[i].parts > 1) continue; /* known once all files are open */
        if (mx_config_read(path[i], &config, &error)) fail_msg("%s", error.text);
        check_config(&layouts[i], &config);
    }
}

static const char *const rearranged[] = {"base-BF16", "model.bin"};
enum { REARRANGED = sizeof rearranged / sizeof *rearranged };

/* One of each kind; the others are loaded in one way. */
static bool in_every_way(const layout *l) {
    for (int i = 0; i < REARRANGED; i++)
        if (!strcmp(l->name, rearranged[i])) return true;
    return !strcmp(l->name, "base-original") || !strcmp(l->name, "three") || !strcmp(l->name, "bf16-experts.gguf");
}

/* ---- loading ------------------------------------------------------------------------------------------------------
 */

static void every_way_of_loading(void **state) {
    (void)state;
    mx_error error;
    for (int i = 0; i < LAYOUTS; i++)
        for (int way = MX_LOAD_MAP; way <= MX_LOAD_LOOK; way++)
            for (int threads = 1; threads <= 3; threads += 2) {
                const mx_load_options options = {.way = (mx_load_way)way, .threads = threads};
                mx_weights *w;
                mx_pool *pool;
                if (!in_every_way(&layouts[i]) && (way != MX_LOAD_LAZY || threads > 1)) continue;
                assert_int_equal(mx_pool_create(threads, &pool, &error), MX_OK);
                if (mx_weights_load(path[i], &options, pool, &w, &error)) fail_msg("%s", error.text);
                check_weights(&layouts[i], w, way != MX_LOAD_LOOK);
                assert_int_equal(mx_checkpoint_made(w->checkpoint) > 0,
                                 layouts[i].form == EXPERTS16 || layouts[i].form == METAL);
                if (layouts[i].gguf.tied) assert_ptr_equal(w->lm_head.data, w->embedding.data);
                mx_weights_close(w);
                mx_pool_destroy(pool);
            }
}

struct seen {
    uint64_t done, total;
    int calls, stop_at;
    bool wrong;
};
static volatile sig_atomic_t stop;

static void see(void *user, uint64_t done, uint64_t total) {
    struct seen *s = user;
    s->wrong |= done <= s->done || done > total || (s->total && total != s->total);
    *s = (struct seen){done, total, s->calls + 1, s->stop_at, s->wrong};
    if (s->calls == s->stop_at) stop = 1;
}

/* The total is what is made and what is brought in; of a layout that is rearranged the first is a part of it. */
static void progress_rises(void **state) {
    (void)state;
    for (int i = 0; i < REARRANGED; i++)
        for (int way = MX_LOAD_MAP; way <= MX_LOAD_LAZY; way++) {
            struct seen seen = {.stop_at = -1};
            const char *where;
            mx_weights *w;
            mx_error error;
            const layout *l = layout_named(rearranged[i], &where);
            const mx_load_options options = {
                .way = (mx_load_way)way, .threads = 1, .progress = see, .user = &seen, .stop = &stop};
            stop = 0;
            if (mx_weights_load(where, &options, NULL, &w, &error)) fail_msg("%s", error.text);
            assert_false(seen.wrong);
            assert_true(seen.calls >= 1 && seen.done <= seen.total);
            if (way == MX_LOAD_LAZY) assert_true(seen.total <= mx_checkpoint_made(w->checkpoint));
            check_weights(l, w, true);
            mx_weights_close(w);
        }
}

static void loading_can_be_stopped(void **state) {
    (void)state;
    for (int i = 0; i < REARRANGED; i++)
        for (int way = MX_LOAD_MAP; way <= MX_LOAD_LAZY; way++)
            for (int early = 0; early < 2; early++) {
                struct seen seen = {.stop_at = 1};
                const char *where;
                mx_weights *w = NULL;
                mx_error error;
                layout_named(rearranged[i], &where);
                const mx_load_options options = {
                    .way = (mx_load_way)way, .threads = 1, .progress = see, .user = &seen, .stop = &stop};
                stop = early;
                const mx_status status = mx_weights_load(where, &options, NULL, &w, &error);
                if (early) assert_int_equal(seen.calls, 0);
                if (stop) {
                    assert_int_equal(status, MX_CANCELLED);
                    assert_null(w);
                }
                mx_weights_close(w);
            }
}

static int warnings;

static void count_warning(void *user, mx_log_level level, const char *line) {
    (void)user;
    warnings += level == MX_LOG_WARNING && strstr(line, "do not fit into");
}

static void memory_that_does_not_suffice(void **state) {
    (void)state;
    for (int i = 0; i < REARRANGED; i++) {
        const char *where;
        mx_weights *w;
        mx_error error;
        const layout *l = layout_named(rearranged[i], &where);
        /* Not for all of it: what is made is made. */
        mx_load_options options = {.way = MX_LOAD_MAP, .without = MX_WITHOUT_MEMORY};
        warnings = 0;
        mx_log_set_sink(count_warning, NULL);
        const mx_status status = mx_weights_load(where, &options, NULL, &w, &error);
        mx_log_set_sink(NULL, NULL);
        if (status) fail_msg("%s", error.text);
        assert_int_equal(warnings, 1);
        check_weights(l, w, true);
        mx_weights_close(w);
        for (int way = MX_LOAD_MAP; way <= MX_LOAD_LAZY; way++) {
            options = (mx_load_options){.way = (mx_load_way)way, .without = MX_WITHOUT_MEMORY | MX_WITHOUT_ROOM};
            assert_int_equal(mx_weights_load(where, &options, NULL, &w, &error), MX_NO_MEMORY);
            assert_null(w);
            if (!strstr(error.text, way == MX_LOAD_READ ? "--load map" : "must be rearranged in memory"))
                fail_msg("%s", error.text);
        }
    }
}

/* ---- identity -----------------------------------------------------------------------------------------------------
 */

static void identify(const char *where, mx_load_way way, int threads, char out[MX_IDENTITY]) {
    mx_error error;
    mx_weights *w;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(threads, &pool, &error), MX_OK);
    if (mx_weights_load(where, &(mx_load_options){.way = way, .threads = threads}, pool, &w, &error))
        fail_msg("%s", error.text);
    if (mx_weights_identity(w, &(mx_identity_options){.pool = pool}, out, &error)) fail_msg("%s", error.text);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

static void identity_is_of_the_content(void **state) {
    (void)state;
    static char identity[LAYOUTS][MX_IDENTITY];
    char again[MX_IDENTITY];
    for (int i = 0; i < LAYOUTS; i++) {
        identify(path[i], MX_LOAD_LAZY, 1, identity[i]);
        for (int threads = 2; threads <= 4 && in_every_way(&layouts[i]); threads++) {
            identify(path[i], threads == 2 ? MX_LOAD_MAP : MX_LOAD_READ, threads, again);
            assert_string_equal(again, identity[i]);
        }
        for (int k = 0; k < i; k++)
            if (!strcmp(identity[k], identity[i])) fail_msg("%s and %s are one", layouts[k].name, layouts[i].name);
    }
}

static void identity_of_a_checkpoint(const char *where, int threads, char out[MX_IDENTITY]) {
    mx_error error;
    mx_checkpoint *ck;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(threads, &pool, &error), MX_OK);
    if (mx_checkpoint_open(where, &ck, &error)) fail_msg("%s", error.text);
    if (mx_checkpoint_identity(ck, &(mx_identity_options){.pool = pool}, out, &error)) fail_msg("%s", error.text);
    mx_checkpoint_close(ck);
    mx_pool_destroy(pool);
}

/* Keys of a GGUF and the vocabulary of a model.bin are part of the model, tensors or not. */
static void identity_covers_the_header(void **state) {
    (void)state;
    static const char *const names[] = {"base.gguf", "model.bin"};
    char before[MX_IDENTITY], after[MX_IDENTITY];
    for (int i = 0; i < 2; i++) {
        const char *where;
        mx_bytes file = {0};
        layout_named(names[i], &where);
        assert_int_equal(mx_read_file(where, SIZE_MAX / 2, &file, NULL), MX_OK);
        identity_of_a_checkpoint(where, 1, before);
        for (int threads = 2; threads <= 4; threads++) {
            identity_of_a_checkpoint(where, threads, after);
            assert_string_equal(after, before);
        }
        size_t at = METAL_REGEX;
        if (i == 0) {
            while (memcmp(file.data + at - METAL_REGEX, "general.name", 12)) at++;
            at += 12 + 4 + 8 - METAL_REGEX;
            assert_memory_equal(file.data + at, "base", 4);
        }
        file.data[at] ^= 1;
        made_file(folder, i ? "other.bin" : "other.gguf", file.data, file.size);
        identity_of_a_checkpoint(made_path(folder, i ? "other.bin" : "other.gguf"), 2, after);
        assert_string_not_equal(after, before);
        mx_bytes_free(&file);
    }
}

/* ---- forward pass -------------------------------------------------------------------------------------------------
 */

enum { MAX_ROWS = 512, MAX_WANTED = 16 };

typedef struct run {
    const int32_t *ids, *rows;
    const float *golden;
    int count, wanted, vocab;
    float *logits; /* [wanted, vocab], from malloc */
} run;

static const mx_tensor *golden_part(const mx_checkpoint *ck, const char *name, const char *part) {
    char full[80];
    snprintf(full, sizeof full, "%s.%s", name, part);
    const mx_tensor *t = mx_checkpoint_find(ck, full);
    if (!t) fail_msg("no %s in the goldens", full);
    return t;
}

/* One step over the whole prompt, fp32 on the best tier, F32 cache. */
static void step(mx_weights *w, const run *r) {
    const mx_config *c = &w->config;
    const int tiles = (r->count + MX_TILE - 1) / MX_TILE;
    mx_error error;
    mx_precisions precision;
    mx_pool *pool;
    mx_backend *b;
    mx_row row[MAX_ROWS];
    assert_int_equal(mx_precisions_parse("fp32", &precision, &error), MX_OK);
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    const mx_backend_options options = {.kv_format = MX_F32,
                                        .pages = (int64_t)tiles * c->layers,
                                        .max_rows = MAX_ROWS,
                                        .max_wanted = MAX_WANTED,
                                        .precision = &precision};
    if (mx_cpu_backend_create(w, pool, &options, &b, &error)) fail_msg("%s", error.text);
    int32_t *table = malloc((size_t)options.pages * sizeof *table);
    assert_non_null(table);
    for (int32_t i = 0; i < options.pages; i++) {
        table[i] = i;
        b->ops->page_clear(b, i);
    }
    for (int i = 0, next = 0; i < r->count; i++) {
        const bool wanted = next < r->wanted && r->rows[next] == i;
        row[i] = (mx_row){.token = r->ids[i], .position = i, .wanted = wanted};
        next += wanted;
    }
    const mx_sequence_view view = {table, tiles};
    const mx_batch batch = {.row = row, .rows = r->count, .sequence = &view, .sequences = 1};
    if (b->ops->step(b, &batch, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < r->wanted; i++)
        memcpy(r->logits + (size_t)i * (size_t)r->vocab, b->ops->logits(b, i), (size_t)r->vocab * sizeof *r->logits);
    free(table);
    b->ops->destroy(b);
    mx_pool_destroy(pool);
}

static double log_sum(const float *x, int n) {
    double max = (double)x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

static double mean_kl(const float *truth, const float *ours, int rows, int vocab) {
    double total = 0;
    for (int r = 0; r < rows; r++, truth += vocab, ours += vocab) {
        const double zp = log_sum(truth, vocab), zq = log_sum(ours, vocab);
        for (int i = 0; i < vocab; i++) {
            const double p = (double)truth[i] - zp, q = (double)ours[i] - zq;
            total += exp(p) * (p - q);
        }
    }
    return total / rows;
}

/* The mean KL of the model at `where` from a case of the goldens; its logits to `keep` where that is not NULL: from
 * malloc. */
static double golden_kl(const char *where, bool quantize, const char *golden, const char *name, float **keep,
                        size_t *bytes) {
    mx_error error;
    mx_weights *w;
    mx_checkpoint *ck;
    if (mx_weights_load(where, &(mx_load_options){.way = MX_LOAD_LAZY, .quantize_experts = quantize}, NULL, &w, &error))
        fail_msg("%s", error.text);
    if (mx_checkpoint_open(golden, &ck, &error)) fail_msg("%s", error.text);
    const mx_tensor *ids = golden_part(ck, name, "ids"), *rows = golden_part(ck, name, "rows");
    run r = {.ids = (const int32_t *)(const void *)ids->data,
             .rows = (const int32_t *)(const void *)rows->data,
             .golden = (const float *)(const void *)golden_part(ck, name, "logits")->data,
             .count = (int)ids->shape[0],
             .wanted = (int)rows->shape[0],
             .vocab = w->config.vocab};
    const size_t size = (size_t)r.wanted * (size_t)r.vocab * sizeof *r.logits;
    r.logits = malloc(size);
    assert_non_null(r.logits);
    step(w, &r);
    const double kl = mean_kl(r.golden, r.logits, r.wanted, r.vocab);
    mx_checkpoint_close(ck);
    mx_weights_close(w);
    if (keep) {
        *keep = r.logits;
        *bytes = size;
    } else {
        free(r.logits);
    }
    return kl;
}

static void hear(void *user, mx_log_level level, const char *line) {
    (void)level;
    *(int *)user += strstr(line, "are rounded from BF16 to MXFP4") != NULL;
}

static const double MOST_KL = 1e-7; /* of fp32, as in forward.c */

static void check_kl(const char *where, bool quantize, const char *golden, const char *name) {
    const double kl = golden_kl(where, quantize, golden, name, NULL, NULL);
    if (!(kl <= MOST_KL)) fail_msg("%s %s: mean KL %.3g, at most %.3g allowed", where, name, kl, MOST_KL);
}

static const char *case_of(const source *s) {
    return !strcmp(s->name, "top1") ? "t9" : "t17";
}

static void forward_is_the_golden_s(void **state) {
    (void)state;
    for (int i = 0; i < LAYOUTS; i++) {
        const layout *l = &layouts[i];
        const source *s = source_of(l);
        float *logits, *truth;
        size_t size;
        if (!l->lossy) check_kl(path[i], false, s->golden, case_of(s));
        if (!l->same_bits) continue;
        golden_kl(path[i], false, s->golden, case_of(s), &logits, &size);
        golden_kl(s->folder, false, s->golden, case_of(s), &truth, &size);
        assert_memory_equal(logits, truth, size);
        free(logits);
        free(truth);
    }
}

/* The quantised file computes what one with its numbers in F32 does. */
static void q8_0_is_its_numbers(void **state) {
    (void)state;
    static const char *const lossy[] = {"q8_0.gguf", "q8_0-experts.gguf"};
    const source *s = &sources[BASE];
    for (int k = 0; k < 2; k++) {
        const char *where;
        const gguf_form form = layout_named(lossy[k], &where)->gguf;
        gguf *g = calloc(1, sizeof *g);
        assert_non_null(g);
        gguf_from(g, s, &form);
        for (int i = 0; i < g->pile.count; i++) {
            piece *p = &g->pile.piece[i];
            if (p->type != MADE_Q8_0) continue;
            const uint64_t n = p->bytes / 34 * 32;
            float *x = made_decode(MADE_Q8_0, p->data, n);
            free(p->data);
            p->data = made_encode(MADE_F32, x, n);
            p->bytes = made_bytes(p->type = MADE_F32, n);
            free(x);
        }
        gguf_write(g, made_path(folder, "widened.gguf"));
        gguf_free(g);
        free(g);
        float *a, *b;
        size_t size;
        const double kl = golden_kl(where, false, s->golden, "t17", &a, &size);
        golden_kl(made_path(folder, "widened.gguf"), false, s->golden, "t17", &b, &size);
        const double between = mean_kl(b, a, (int)(size / sizeof *a) / s->config.vocab, s->config.vocab);
        if (!(between <= 1e-9)) fail_msg("%s: mean KL %.3g from its own numbers", lossy[k], between);
        if (!(kl > 1e-9 && kl < 0.1)) fail_msg("%s: mean KL %.3g from the model that it was made of", lossy[k], kl);
        free(a);
        free(b);
    }
}

/* Experts that came from MXFP4 and went to BF16 come back without loss. */
static void rounding_back_loses_nothing(void **state) {
    (void)state;
    static const float values[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    static const char *const names[] = {"base-BF16", "mqa-BF16", "top1-BF16"}, *const parts[] = {"gate_up_proj",
                                                                                                 "down_proj"};
    for (int i = 0; i < SOURCES; i++) {
        const char *where;
        mx_error error;
        mx_checkpoint *ck;
        layout_named(names[i], &where);
        int said = 0;
        mx_log_set_sink(hear, &said);
        if (mx_checkpoint_open_as(where, MX_EXPERTS_MXFP4, &ck, &error)) fail_msg("%s", error.text);
        assert_int_equal(mx_checkpoint_count(ck), mx_checkpoint_count(sources[i].ck));
        for (int layer = 0; layer < sources[i].config.layers; layer++)
            for (int k = 0; k < 2; k++) {
                char name[100];
                uint64_t n;
                float *want = source_experts(&sources[i], layer, parts[k], &n);
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_blocks", layer, parts[k]);
                const mx_tensor *blocks = mx_checkpoint_find(ck, name);
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_scales", layer, parts[k]);
                const mx_tensor *scales = mx_checkpoint_find(ck, name);
                assert_true(blocks && scales && blocks->bytes == n / 2 && scales->bytes == n / 32);
                uint8_t *b = bytes_of(blocks, false), *s = bytes_of(scales, false);
                check_middle(blocks, b);
                check_middle(scales, s);
                for (uint64_t x = 0; x < n; x++) {
                    const float have = ldexpf(values[b[x / 2] >> (x % 2 ? 4 : 0) & 15], s[x / 32] - 127);
                    if (memcmp(&have, &want[x], sizeof have)) fail_msg("%s: number %llu", name, (unsigned long long)x);
                }
                free(want);
                free(b);
                free(s);
            }
        mx_checkpoint_close(ck);
        check_kl(where, true, sources[i].golden, case_of(&sources[i]));
        mx_log_set_sink(NULL, NULL);
        assert_int_equal(said, 1); /* when weights are loaded, not when somebody looks */
    }
}

/* A model of an ordinary size, which speaks. */
static void stories_in_every_layout(void **state) {
    (void)state;
    static const gguf_form form = {MADE_BF16, MADE_MXFP4, false, false};
    source s;
    mx_bytes file = {0};
    gguf *g = calloc(1, sizeof *g);
    assert_non_null(g);
    source_open(&s, "stories");
    gguf_from(g, &s, &form);
    gguf_split(g, made_path(folder, "stories"), 3, -1);
    metal_from(&file, &s, NULL);
    made_file(folder, "stories.bin", file.data, file.size);
    original_write(made_path(folder, "stories-original"), &s);
    check_kl(made_path(folder, "stories-00001-of-00003.gguf"), false, s.golden, "chat6");
    check_kl(made_path(folder, "stories.bin"), false, s.golden, "chat6");
    check_kl(made_path(folder, "stories-original"), false, s.golden, "chat6");
    mx_bytes_free(&file);
    gguf_free(g);
    free(g);
    source_close(&s);
}

/* ---- what others wrote --------------------------------------------------------------------------------------------
 */

static void files_of_shared(void **state) {
    (void)state;
    static const struct {
        const char *path, *golden;
        const char *cases[4];
    } files[] = {
        {"random/base-original", "random/base", {"t17", "t129", "t300"}},
        {"random/base-shards", "random/base", {"t17", "t129", "t300"}},
        {"random/base-bf16-experts", "random/base", {"t17", "t129", "t300"}},
        {"random/base-bf16.gguf", "random/base", {"t17", "t129", "t300"}},
        {"random/base-q8_0.gguf", "random/base-q8_0", {"t17", "t300"}},
        {"stories.gguf", "stories", {"chat1", "chat6"}},
    };
    static const layout same[] = {
        {"base", "base-original", ORIGINAL_OF},
        {"base", "base-bf16-experts", EXPERTS16_OF},
        {"base", "base-bf16.gguf", GGUF_OF(MADE_BF16, MADE_MXFP4, )},
    };
    const char *shared = getenv("MXRUN_SHARED");
    char root[700], file[900], golden[900];
    struct stat info;
    snprintf(root, sizeof root, "%s/checkpoints", shared ? shared : "../shared");
    if (stat(root, &info)) {
        print_message("skipped: %s is not there\n", root);
        skip();
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        for (int k = 0; k < 4 && files[i].cases[k]; k++) {
            snprintf(file, sizeof file, "%s/%s", root, files[i].path);
            snprintf(golden, sizeof golden, "%s/%s.golden.safetensors", root, files[i].golden);
            check_kl(file, false, golden, files[i].cases[k]);
        }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        mx_checkpoint *ck;
        mx_error error;
        snprintf(file, sizeof file, "%s/random/%s", root, same[i].name);
        if (mx_checkpoint_open(file, &ck, &error)) fail_msg("%s", error.text);
        check_tensors(&same[i], ck, false);
        mx_checkpoint_close(ck);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_the_same),
        cmocka_unit_test(configurations_are_the_same),
        cmocka_unit_test(every_way_of_loading),
        cmocka_unit_test(progress_rises),
        cmocka_unit_test(loading_can_be_stopped),
        cmocka_unit_test(memory_that_does_not_suffice),
        cmocka_unit_test(identity_is_of_the_content),
        cmocka_unit_test(identity_covers_the_header),
        cmocka_unit_test(forward_is_the_golden_s),
        cmocka_unit_test(q8_0_is_its_numbers),
        cmocka_unit_test(rounding_back_loses_nothing),
        cmocka_unit_test(stories_in_every_layout),
        cmocka_unit_test(files_of_shared),
    };
    return cmocka_run_group_tests_name("layouts", tests, set_up, tear_down);
}
