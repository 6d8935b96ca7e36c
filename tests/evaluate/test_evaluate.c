/* mx_evaluate on real weights: the goldens' probabilities, the same bits in whatever batches, distributions that come
 * back; and on a model of hashes (tests/engine/fake_model.h), what happens when it fails. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "engine/fake_engine.h"
#include "evaluate/run.h"

static mx_error error;
static char folder[] = "/tmp/mxrun-evaluate-XXXXXX", path[2][100];

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/base%d", folder, i);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static bool is_empty(void) {
    return rmdir(folder) == 0 && mkdir(folder, 0700) == 0;
}

static const char *source_path(const char *name) {
    static char out[4096];
    const char *root = getenv("MXRUN_SOURCE");
    snprintf(out, sizeof out, "%s/%s", root ? root : ".", name);
    return out;
}

static mx_model *open_model(const char *name) {
    mx_model *model;
    if (mx_model_open(source_path(name), NULL, &model, &error)) fail_msg("%s", error.text);
    return model;
}

static mx_engine *make_engine(mx_model *model, mx_engine_options o) {
    mx_engine *engine;
    if (!o.context) o.context = 1024;
    if (!o.threads) o.threads = 1;
    if (!o.precision) o.precision = "fp32";
    o.kv_type = MX_KV_F32;
    if (mx_engine_create(model, &o, &engine, &error)) fail_msg("%s", error.text);
    return engine;
}

static mx_windows windows_on(const int32_t *ids, int64_t count, const mx_evaluate_options *o) {
    mx_windows w;
    if (mx_windows_begin(o, 1025, &w, &error)) fail_msg("%s", error.text);
    assert_true(mx_ids_add_all(&w.ids, ids, count));
    if (mx_windows_add(&w, 0, 1, &error)) fail_msg("%s", error.text);
    mx_windows_end(&w, o->most_tokens);
    w.bytes = w.scored;
    return w;
}

static const char *const TEXT =
    "Once upon a time there was a fox who lived under an old bridge. Every evening she went to the mill, where the "
    "miller's daughter left a bowl of milk on the step. \"Good evening, fox,\" said the girl. \"Good evening,\" said "
    "the fox, \"what does the river say today?\" The girl listened. \"It says that the snow is coming,\" she answered, "
    "\"and that whoever has a lamp should light it.\" So they lit the lamp, and waited, and in the night the snow came "
    "down over the bridge and the mill and the road, and nobody was lost.";

static mx_ids text_ids(int64_t most) {
    mx_tokenizer *t;
    mx_ids ids = {0};
    if (mx_tokenizer_open(source_path("tools/stories/checkpoint"), &t, &error)) fail_msg("%s", error.text);
    assert_int_equal(mx_encode(t, TEXT, strlen(TEXT), &ids, &error), MX_OK);
    mx_tokenizer_close(t);
    if (ids.count > most) ids.count = most;
    return ids;
}

/* ---- the goldens ------------------------------------------------------------------------------------------------- */
static const mx_tensor *part(const mx_checkpoint *ck, const char *name, const char *of) {
    char full[80];
    snprintf(full, sizeof full, "%s.%s", name, of);
    const mx_tensor *t = mx_checkpoint_find(ck, full);
    if (!t) fail_msg("no tensor %s", full);
    return t;
}

static double golden_nats(const float *logits, int64_t vocab, int32_t token) {
    long double sum = 0, most = logits[0];
    for (int64_t i = 1; i < vocab; i++) most = logits[i] > most ? logits[i] : most;
    for (int64_t i = 0; i < vocab; i++) sum += expl(logits[i] - most);
    return (double)(most + logl(sum) - logits[token]);
}

/* What the float64 reference says of the tokens behind its rows. Adds them to the sums, ours and the reference's. */
static int against_golden(mx_engine *engine, const mx_checkpoint *ck, const char *name, double sum[2]) {
    const mx_tensor *ids = part(ck, name, "ids"), *rows = part(ck, name, "rows"), *logits = part(ck, name, "logits");
    const int64_t n = ids->shape[0], vocab = logits->shape[1];
    int32_t *id = malloc(sizeof *id * (size_t)n), row;
    float *golden = malloc(sizeof *golden * (size_t)vocab);
    assert_true(id && golden);
    memcpy(id, ids->data, sizeof *id * (size_t)n);
    const mx_evaluate_options o = {.window = n, .stride = n - 1};
    mx_windows w = windows_on(id, n, &o);
    mx_measured m;
    mx_evaluation v;
    if (mx_evaluate_windows(engine, &w, 0, &o, &m, &v, &error)) fail_msg("%s", error.text);
    assert_int_equal(v.tokens, n - 1);
    int count = 0;
    for (int64_t r = 0; r < rows->shape[0]; r++) {
        memcpy(&row, rows->data + r * 4, 4);
        memcpy(golden, logits->data + (size_t)(r * vocab) * 4, (size_t)vocab * 4);
        if (row + 1 >= n) continue;
        const double nats = golden_nats(golden, vocab, id[row + 1]);
        if (fabs(nats - m.nats[row]) > 5e-5) fail_msg("%s, row %d: %.9f, ours %.9f", name, row, nats, m.nats[row]);
        sum[0] += m.nats[row];
        sum[1] += nats;
        count++;
    }
    if (n == 2) assert_true(fabs(v.perplexity / exp(sum[1]) - 1) < 1e-6); /* of all there is */
    mx_measured_free(&m);
    mx_windows_free(&w);
    free(id);
    free(golden);
    return count;
}

static void the_goldens(void **state) {
    (void)state;
    static const struct {
        const char *model, *golden, *cases[4];
        double most; /* what fp32 leaves: logits of base differ by 4e-5 (mxrun verify) */
    } all[] = {
        {"tests/data/base", "tests/data/base.golden.safetensors", {"t2", "t17", "t129", "t300"}, 5e-6},
        {"tools/stories/checkpoint", "tests/data/stories.golden.safetensors", {"chat0", "chat1", "book600"}, 1e-6}};
    for (int i = 0; i < 2; i++) {
        mx_model *model = open_model(all[i].model);
        mx_engine *engine = make_engine(model, (mx_engine_options){0});
        mx_checkpoint *ck;
        if (mx_checkpoint_open(source_path(all[i].golden), &ck, &error)) fail_msg("%s", error.text);
        double sum[2] = {0};
        int count = 0;
        for (int c = 0; c < 4 && all[i].cases[c]; c++) count += against_golden(engine, ck, all[i].cases[c], sum);
        const double apart = exp(sum[0] / count) / exp(sum[1] / count) - 1;
        if (count < 15 || !(fabs(apart) < all[i].most))
            fail_msg("%s: the perplexity of %d tokens is %.2e off", all[i].model, count, apart);
        mx_checkpoint_close(ck);
        mx_engine_destroy(engine);
        mx_model_close(model);
    }
}

/* ---- windows in batches ------------------------------------------------------------------------------------------ */
typedef struct alone {
    float *logits; /* [rows][vocab] */
    int64_t rows;
} alone;

static void keep(void *user, int64_t position, const float *logits, int32_t vocab) {
    alone *a = user;
    memcpy(a->logits + position * vocab, logits, sizeof *logits * (size_t)vocab);
}

/* Logits of all rows of some tokens, by a request of its own. */
static void compute_alone(mx_engine *e, const int32_t *ids, int64_t count, float *out) {
    alone a = {out, count};
    const mx_request r = {.prompt = ids,
                          .prompt_count = count,
                          .prompt_logits = keep,
                          .prompt_only = true,
                          .sampling = MX_SAMPLING_DEFAULT,
                          .user = &a};
    mx_handle handle;
    mx_event event;
    if (mx_submit(e, &r, &handle, &error)) fail_msg("%s", error.text);
    do assert_int_equal(mx_step(e, &error), MX_OK);
    while (!mx_poll(e, &event, 1));
    assert_int_equal(event.type, MX_EVENT_FINISHED);
}

static void the_same_in_any_batch(void **state) {
    (void)state;
    static const mx_engine_options engines[] = {{0},
                                                {.batch_tokens = 33, .threads = 2, .scored_rows = 5},
                                                {.max_running = 1, .scored_rows = 256, .threads = 2},
                                                {.batch_tokens = 7, .max_running = 3}};
    static const mx_evaluate_options options[] = {{.window = 48, .stride = 16},
                                                  {.window = 33, .stride = 32, .most_tokens = 77},
                                                  {.protocol = MX_PROTOCOL_LLAMA_CPP, .window = 30}};
    mx_model *model = open_model("tools/stories/checkpoint");
    mx_ids ids = text_ids(140);
    mx_measured first[3] = {0};
    for (int i = 0; i < 4; i++) {
        mx_engine *e = make_engine(model, engines[i]);
        const int32_t vocab = mx_engine_get_info(e).vocab;
        for (int k = 0; k < 3; k++) {
            mx_windows w = windows_on(ids.data, ids.count, &options[k]);
            mx_measured m;
            mx_evaluation v;
            if (mx_evaluate_windows(e, &w, 0, &options[k], &m, &v, &error)) fail_msg("%s", error.text);
            assert_int_equal(m.tokens, w.scored);
            if (i) {
                assert_memory_equal(m.nats, first[k].nats, sizeof *m.nats * (size_t)m.tokens);
                mx_measured_free(&m);
                mx_windows_free(&w);
                continue;
            }
            first[k] = m;
            float *logits = malloc(sizeof *logits * (size_t)(vocab * w.window));
            assert_non_null(logits);
            double sum = 0;
            for (int64_t n = 0; n < w.count; n++) {
                const mx_window *x = &w.window_at[n];
                compute_alone(e, w.ids.data + x->begin, x->end - 1 - x->begin, logits);
                for (int64_t t = x->first; t < x->end; t++) {
                    const double nats = golden_nats(logits + (t - 1 - x->begin) * vocab, vocab, w.ids.data[t]);
                    assert_true(fabs(nats - m.nats[x->scored + t - x->first]) < 1e-12);
                    sum += nats;
                }
            }
            assert_true(fabs(v.perplexity / exp(sum / (double)m.tokens) - 1) < 1e-12);
            free(logits);
            mx_windows_free(&w);
        }
        mx_engine_destroy(e);
    }
    for (int k = 0; k < 3; k++) mx_measured_free(&first[k]);
    mx_ids_free(&ids);
    mx_model_close(model);
}

/* ---- distributions ----------------------------------------------------------------------------------------------- */
static mx_evaluation evaluate(mx_engine *e, const mx_ids *ids, const mx_evaluate_options *o, mx_status expected) {
    mx_windows w = windows_on(ids->data, ids->count, o);
    mx_measured m;
    mx_evaluation v;
    const mx_status status = mx_evaluate_windows(e, &w, 5, o, &m, &v, &error);
    if (status != expected) fail_msg("status %d: %s", status, status ? error.text : "");
    mx_measured_free(&m);
    mx_windows_free(&w);
    return v;
}

static void against_itself(void **state) {
    (void)state;
    mx_model *model = open_model("tools/stories/checkpoint");
    mx_ids ids = text_ids(100);
    mx_evaluate_options save = {.window = 40, .stride = 10, .model = "stories", .identity = "xyz"}, compare = save;
    mx_bytes file[2] = {{0}};
    mx_evaluation v = {0};
    for (int i = 0; i < 2; i++) {
        mx_engine *e = make_engine(model, i ? (mx_engine_options){.batch_tokens = 17, .threads = 2, .scored_rows = 3}
                                            : (mx_engine_options){0});
        save.save_base = path[i];
        evaluate(e, &ids, &save, MX_OK);
        compare.base = path[0];
        v = evaluate(e, &ids, &compare, MX_OK);
        assert_true(v.has_base && v.same_model);
        assert_string_equal(v.base_model, "stories");
        assert_true(v.base_whole && v.base_top == mx_engine_get_info(e).vocab);
        assert_true(v.kl_mean == 0 && v.kl_max == 0 && v.kl_stderr == 0 && v.top1 == 1);
        assert_true(v.delta_perplexity == 0 && v.delta_stderr == 0 && v.base_perplexity == v.perplexity);
        assert_int_equal(mx_read_file(path[i], 1 << 24, &file[i], &error), MX_OK);
        mx_engine_destroy(e);
    }
    assert_int_equal(file[0].size, file[1].size); /* bit for bit, in whatever batches */
    assert_memory_equal(file[0].data, file[1].data, file[0].size);
    for (int i = 0; i < 2; i++) mx_bytes_free(&file[i]);
    mx_ids_free(&ids);
    mx_model_close(model);
}

/* All of the vocabulary kept: the exact divergence, computed here from the logits of both. */
static void of_another_exactly(void **state) {
    (void)state;
    enum { N = 60 };
    mx_model *model = open_model("tools/stories/checkpoint");
    mx_ids ids = text_ids(N);
    static const char *const precisions[] = {"fp32", "bf16"};
    mx_evaluate_options o = {.window = N, .stride = N - 1, .base_top = 1 << 20, .save_base = path[0]};
    float *logits[2];
    mx_evaluation v = {0};
    int32_t vocab = 0;
    for (int i = 0; i < 2; i++) {
        mx_engine *e = make_engine(model, (mx_engine_options){.precision = precisions[i]});
        vocab = mx_engine_get_info(e).vocab;
        logits[i] = malloc(sizeof(float) * (size_t)(vocab * N));
        assert_non_null(logits[i]);
        compute_alone(e, ids.data, N - 1, logits[i]);
        if (i) o = (mx_evaluate_options){.window = N, .stride = N - 1, .base = path[0]};
        v = evaluate(e, &ids, &o, MX_OK);
        if (!i) { /* and the same with few of them, which is less */
            o.save_base = path[1];
            o.base_top = 4;
            evaluate(e, &ids, &o, MX_OK);
        }
        if (i) {
            o.base = path[1];
            const mx_evaluation less = evaluate(e, &ids, &o, MX_OK);
            assert_true(!less.base_whole && less.base_top == 4 && less.kl_mean < v.kl_mean &&
                        less.kl_mean > 0.5 * v.kl_mean);
            assert_true(less.perplexity == v.perplexity && less.delta_perplexity == v.delta_perplexity);
        }
        mx_engine_destroy(e);
    }
    long double sum = 0, most = 0;
    int same = 0;
    for (int r = 0; r < N - 1; r++) {
        const float *p = logits[0] + r * vocab, *q = logits[1] + r * vocab;
        long double kl = 0;
        int best_p = 0, best_q = 0;
        for (int32_t t = 0; t < vocab; t++) {
            best_p = p[t] > p[best_p] ? t : best_p;
            best_q = q[t] > q[best_q] ? t : best_q;
        }
        const double log_p = golden_nats(p, vocab, 0) + p[0], log_q = golden_nats(q, vocab, 0) + q[0];
        for (int32_t t = 0; t < vocab; t++) kl += expl(p[t] - (long double)log_p) * ((p[t] - log_p) - (q[t] - log_q));
        sum += kl;
        most = kl > most ? kl : most;
        same += best_p == best_q;
    }
    assert_true(v.base_whole && v.base_top == vocab);
    assert_int_equal(mx_base_top_default(8192), 8192);
    assert_int_equal(mx_base_top_default(201088), 1024);
    assert_true(sum > 0 && fabsl(v.kl_mean - sum / (N - 1)) < 1e-12L);
    assert_true(fabsl(v.kl_max - most) < 1e-12L);
    assert_true(v.top1 == (double)same / (N - 1));
    for (int i = 0; i < 2; i++) free(logits[i]);
    mx_ids_free(&ids);
    mx_model_close(model);
}

/* ---- on the model of hashes -------------------------------------------------------------------------------------- */
static mx_config config;
static fake_backend *backend;

static mx_engine *start(void) {
    config = fake_config("sf", 128, FAKE_MOST);
    return fake_engine(&config, 600, 0, 64, &backend);
}

static mx_ids many_ids(void) {
    mx_ids ids = {0};
    for (int i = 0; i < 3000; i++) assert_true(mx_ids_add(&ids, (i * 31 + i / 7) % FAKE_VOCAB));
    return ids;
}

static void bases_of_something_else(void **state) {
    (void)state;
    mx_engine *e = start();
    mx_ids ids = many_ids();
    evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .save_base = path[0]}, MX_OK);
    evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[0]}, MX_OK);
    evaluate(e, &ids, &(mx_evaluate_options){.window = 90, .base = path[0]}, MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "another protocol: \"strided, window 100, stride 50\""));
    evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[0], .most_tokens = 99}, MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "another text: 2999 tokens"));
    ids.data[1234] ^= 1;
    evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[0]}, MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "another text"));
    ids.data[1234] ^= 1;
    const mx_evaluate_options o = {.window = 100, .base = path[0]};
    mx_windows w = windows_on(ids.data, ids.count, &o);
    mx_measured m;
    mx_evaluation v;
    assert_int_equal(mx_evaluate_windows(e, &w, 6, &o, &m, &v, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "another vocabulary"));
    mx_measured_free(&m);
    mx_windows_free(&w);
    /* A run that reads it and writes the next is as good as two. */
    v = evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[0], .save_base = path[0]}, MX_OK);
    assert_true(v.kl_max == 0);
    v = evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[0]}, MX_OK);
    assert_true(v.kl_max == 0);
    mx_ids_free(&ids);
    mx_engine_destroy(e);
}

/* Its hash is found when all was read: no result is told. A record that is none is seen before. */
static void a_damaged_base(void **state) {
    (void)state;
    mx_engine *e = start();
    mx_ids ids = many_ids();
    mx_bytes b = {0};
    evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .save_base = path[0]}, MX_OK);
    assert_int_equal(mx_read_file(path[0], 1 << 24, &b, &error), MX_OK);
    const size_t record = 24 + 8 * FAKE_VOCAB, last = b.size - 8 - record;
    const size_t places[] = {last + 28, last + 7, b.size - 1}; /* a logit, an exponent, the hash */
    for (int i = 0; i < 3; i++) {
        b.data[places[i]] ^= i == 1 ? 0x7f : 1;
        FILE *f = fopen(path[1], "wb");
        assert_int_equal(fwrite(b.data, 1, b.size, f), b.size);
        fclose(f);
        b.data[places[i]] ^= i == 1 ? 0x7f : 1;
        evaluate(e, &ids, &(mx_evaluate_options){.window = 100, .base = path[1]}, MX_INVALID_FILE);
        assert_non_null(strstr(error.text, "damaged"));
    }
    mx_bytes_free(&b);
    mx_ids_free(&ids);
    mx_engine_destroy(e);
}

static void failures(void **state) {
    (void)state;
    mx_engine *e = start();
    mx_ids ids = many_ids();
    const mx_evaluate_options o = {.window = 100, .save_base = path[0]};
    unlink(path[0]);
    unlink(path[1]);
    backend->nan_token = ids.data[1000];
    evaluate(e, &ids, &o, MX_INVALID_FILE);
    assert_non_null(strstr(error.text, "of the text"));
    backend->nan_token = -1;
    assert_true(mx_engine_idle(e) && is_empty());
    backend->fail_token = ids.data[2000];
    evaluate(e, &ids, &o, MX_IO);
    assert_non_null(strstr(error.text, "on fire"));
    backend->fail_token = -1;
    assert_true(mx_engine_idle(e) && is_empty());
    evaluate(e, &ids, &o, MX_OK);
    mx_ids_free(&ids);
    mx_engine_destroy(e);
}

static volatile sig_atomic_t stop;
static int64_t told, told_total;
static void tell(void *user, int64_t done, int64_t total) {
    (void)user;
    assert_true(done >= told && total == 2999);
    told = done;
    told_total = total;
    if (done > 500) stop = 1;
}

static void interrupted(void **state) {
    (void)state;
    mx_engine *e = start();
    mx_ids ids = many_ids();
    mx_evaluate_options o = {.window = 100, .save_base = path[0], .progress = tell, .stop = &stop};
    unlink(path[0]);
    evaluate(e, &ids, &o, MX_CANCELLED);
    assert_true(mx_engine_idle(e) && is_empty());
    assert_in_range(told, 501, 2000);
    o.stop = NULL;
    told = 0;
    evaluate(e, &ids, &o, MX_OK);
    assert_int_equal(told, 2999);
    unlink(path[0]);
    mx_ids_free(&ids);
    mx_engine_destroy(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_goldens),
        cmocka_unit_test(the_same_in_any_batch),
        cmocka_unit_test(against_itself),
        cmocka_unit_test(of_another_exactly),
        cmocka_unit_test(bases_of_something_else),
        cmocka_unit_test(a_damaged_base),
        cmocka_unit_test(failures),
        cmocka_unit_test(interrupted),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
