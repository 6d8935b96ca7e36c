/* What the GPU's backend does beside computing: drawing tokens, now and ahead of the host; page tables that change;
 * pages; memory that is counted; batches and options that are wrong. */
#include <math.h>

#include "model/sampler.h"
#include "tests/cuda/stepper.h"

static const mx_sample_spec plain = {.temperature = 0, .top_p = 1, .repetition_penalty = 1};

static mx_cuda_backend *gpu(const stepper *s) {
    return mx_cuda_self(s->backend);
}

/* ---- running ahead ----------------------------------------------------------------------------------------------- */

/* Streams, each with a prompt of its own, that draw by different rules. */
enum { STREAMS = 3, TOKENS = 8, PROMPT = 20 };

static int32_t prompt_token(const model *m, int stream, int position) {
    return (int32_t)((stream * 37 + position * 11 + 5) % m->weights->config.vocab);
}

struct stream {
    int32_t token[PROMPT + TOKENS];
    float logprob[PROMPT + TOKENS];
    mx_token_count count[PROMPT + TOKENS];
    uint32_t mask[128];
};

/* The rules for the token at `position`; they know those before it. */
static mx_sample_spec spec_of(struct stream *s, int stream, int position) {
    mx_sample_spec spec = {.temperature = stream ? 0.8f : 0,
                           .top_p = 0.95f,
                           .top_k = stream == 2 ? 40 : 0,
                           .repetition_penalty = 1.1f,
                           .frequency_penalty = stream == 1 ? 0.3f : 0,
                           .seed = 7 + (uint64_t)stream,
                           .position = position};
    int64_t counts = 0;
    for (int i = 0; i < position; i++) {
        int64_t c = 0;
        while (c < counts && s->count[c].token != s->token[i]) c++;
        if (c == counts) s->count[counts++] = (mx_token_count){s->token[i], 0};
        s->count[c].count++;
    }
    spec.seen = spec.generated = s->count;
    spec.seen_count = spec.generated_count = counts;
    if (stream == 2) { /* as a constraint: every third token is forbidden, another one in each position */
        for (int i = 0; i < 4096; i++) {
            const uint32_t bit = 1u << i % 32;
            s->mask[i / 32] = i % 3 == position % 3 ? s->mask[i / 32] & ~bit : s->mask[i / 32] | bit;
        }
        spec.mask = s->mask;
    }
    return spec;
}

static void prompts(stepper *s, struct stream *stream) {
    mx_row row[STREAMS * PROMPT];
    for (int q = 0; q < STREAMS; q++)
        for (int i = 0; i < PROMPT; i++) {
            stream[q].token[i] = prompt_token(s->m, q, i);
            row[q * PROMPT + i] = (mx_row){stream[q].token[i], i, q, i + 1 == PROMPT};
        }
    stepper_step(s, row, STREAMS * PROMPT);
}

/* A row a stream at `position`; drawn: of the draws that are queued. */
static void decode(stepper *s, const struct stream *stream, int position, bool drawn) {
    mx_row row[STREAMS];
    for (int q = 0; q < STREAMS; q++)
        row[q] = (mx_row){drawn ? MX_TOKEN_DRAWN(q) : stream[q].token[position], position, q, true};
    stepper_step(s, row, STREAMS);
}

static void keep(struct stream *stream, int position, const mx_draw *draw) {
    for (int q = 0; q < STREAMS; q++) {
        assert_int_equal(draw[q].status, MX_OK);
        stream[q].token[position] = draw[q].sampled.token;
        stream[q].logprob[position] = draw[q].sampled.logprob;
    }
}

static void draws_of(struct stream *stream, int position, mx_draw *draw) {
    for (int q = 0; q < STREAMS; q++) draw[q] = (mx_draw){.wanted = q, .spec = spec_of(&stream[q], q, position)};
}

static void generate_plainly(stepper *s, struct stream *stream) {
    mx_draw draw[STREAMS];
    mx_error error;
    prompts(s, stream);
    for (int at = PROMPT; at < PROMPT + TOKENS; at++) {
        draws_of(stream, at, draw);
        if (at % 2)
            s->backend->ops->sample_all(s->backend, draw, STREAMS);
        else
            for (int q = 0; q < STREAMS; q++) {
                draw[q].status = s->backend->ops->sample(s->backend, q, &draw[q].spec, &draw[q].sampled, &error);
                if (draw[q].status) fail_msg("%s", error.text);
            }
        keep(stream, at, draw);
        if (at + 1 < PROMPT + TOKENS) decode(s, stream, at, false);
    }
}

/* The step for the token behind `at` is queued before anybody knows the token at `at`. */
static void generate_ahead(stepper *s, struct stream *stream) {
    mx_draw draw[STREAMS];
    mx_error error;
    prompts(s, stream);
    draws_of(stream, PROMPT, draw);
    assert_int_equal(s->backend->ops->draw(s->backend, draw, STREAMS, &error), MX_OK);
    for (int at = PROMPT; at < PROMPT + TOKENS; at++) {
        mx_sampled other; /* has nothing to do with the draws that are queued */
        mx_sample_spec hot = plain;
        hot.temperature = 9;
        hot.position = at;
        if (at % 3 == 0) assert_int_equal(s->backend->ops->sample(s->backend, 0, &hot, &other, &error), MX_OK);
        if (at + 1 < PROMPT + TOKENS) decode(s, stream, at, true);
        memset(draw, 0xff, sizeof draw); /* what was drawn by is the backend's */
        for (int q = 0; q < STREAMS; q++) memset(stream[q].count, 0xff, sizeof stream[q].count);
        if (s->backend->ops->drawn(s->backend, draw, STREAMS, &error)) fail_msg("%s", error.text);
        keep(stream, at, draw);
        if (at + 1 == PROMPT + TOKENS) break;
        draws_of(stream, at + 1, draw);
        assert_int_equal(s->backend->ops->draw(s->backend, draw, STREAMS, &error), MX_OK);
    }
}

static void test_ahead(void **state) {
    static const char *const checkpoints[] = {"base", "mqa"};
    (void)state;
    for (size_t c = 0; c < 2; c++) {
        model m;
        stepper s;
        static struct stream stream[4][STREAMS];
        model_open(&m, checkpoints[c]);
        for (int way = 0; way < 4; way++) {
            memset(stream[way], 0, sizeof stream[way]);
            stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){.no_graphs = way % 2});
            (way / 2 ? generate_ahead : generate_plainly)(&s, stream[way]);
            stepper_close(&s);
            for (int q = 0; q < STREAMS; q++) {
                assert_memory_equal(stream[0][q].token, stream[way][q].token, sizeof stream[0][q].token);
                assert_memory_equal(stream[0][q].logprob, stream[way][q].logprob, sizeof stream[0][q].logprob);
            }
        }
        model_close(&m);
    }
}

/* Draws beside each other: at most two, each fetched in its turn, and single ones in between. */
static void test_queue(void **state) {
    (void)state;
    model m;
    stepper s;
    mx_error error;
    model_open(&m, "base");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){0});
    const mx_backend_ops *ops = s.backend->ops;
    static struct stream stream[STREAMS];
    mx_draw draw[MAX_WANTED + 1] = {0};
    assert_int_equal(ops->drawn(s.backend, draw, 1, &error), MX_INVALID_STATE);
    prompts(&s, stream);
    for (int q = 0; q < STREAMS; q++) draw[q] = (mx_draw){.wanted = q, .spec = plain};
    assert_int_equal(ops->draw(s.backend, draw, MAX_WANTED + 1, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(ops->draw(s.backend, draw, 2, &error), MX_OK);
    assert_int_equal(ops->draw(s.backend, draw, 3, &error), MX_OK);
    assert_int_equal(ops->draw(s.backend, draw, 3, &error), MX_INVALID_STATE);

    mx_sampled alone[STREAMS];
    for (int q = 0; q < STREAMS; q++) assert_int_equal(ops->sample(s.backend, q, &plain, &alone[q], &error), MX_OK);
    assert_int_equal(ops->drawn(s.backend, draw, 3, &error), MX_INVALID_ARGUMENT);
    for (int count = 2; count <= 3; count++) {
        memset(draw, 0xff, sizeof draw);
        assert_int_equal(ops->drawn(s.backend, draw, count, &error), MX_OK);
        for (int q = 0; q < count; q++) assert_memory_equal(&draw[q].sampled, &alone[q], sizeof alone[q]);
    }
    assert_int_equal(ops->drawn(s.backend, draw, 0, &error), MX_INVALID_STATE);
    assert_int_equal(ops->draw(s.backend, draw, 0, &error), MX_OK);
    assert_int_equal(ops->drawn(s.backend, draw, 0, &error), MX_OK);
    mx_row beyond = {MX_TOKEN_DRAWN(0), PROMPT, 0, true}; /* the last draw had none */
    const mx_batch batch = {.row = &beyond, .rows = 1, .sequence = s.view, .sequences = STREAMS};
    assert_int_equal(ops->step(s.backend, &batch, &error), MX_INVALID_ARGUMENT);
    stepper_close(&s);
    model_close(&m);
}

/* ---- drawing ----------------------------------------------------------------------------------------------------- */

/* One that is wrong does not harm the others, and keeps its number. */
static void test_wrong_draws(void **state) {
    (void)state;
    model m;
    stepper s;
    mx_error error, scalar_error;
    static struct stream stream[STREAMS];
    static uint32_t nothing[128];
    model_open(&m, "base");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){0});
    const mx_backend_ops *ops = s.backend->ops;
    prompts(&s, stream);
    mx_sample_spec masked = plain, cold = plain;
    masked.mask = nothing;
    cold.temperature = -1;
    mx_draw draw[5] = {{.wanted = 0, .spec = plain},
                       {.wanted = 1, .spec = cold},
                       {.wanted = 3, .spec = plain},
                       {.wanted = 1, .spec = masked},
                       {.wanted = 2, .spec = plain}};
    static const mx_status expected[5] = {MX_OK, MX_INVALID_ARGUMENT, MX_INVALID_STATE, MX_INVALID_STATE, MX_OK};
    assert_int_equal(ops->draw(s.backend, draw, 5, &error), MX_OK);
    assert_int_equal(ops->drawn(s.backend, draw, 5, &error), MX_INVALID_ARGUMENT);
    assert_string_equal(error.text, "temperature -1: expected 0 (greedy) or more");
    for (int i = 0; i < 5; i++) assert_int_equal(draw[i].status, expected[i]);

    mx_sampled sampled;
    assert_int_equal(ops->sample(s.backend, 0, &plain, &sampled, &error), MX_OK);
    assert_memory_equal(&sampled, &draw[0].sampled, sizeof sampled);
    assert_int_equal(ops->sample(s.backend, 3, &plain, &sampled, &error), MX_INVALID_STATE);
    assert_string_equal(error.text, "sample: row 3 asked for, the last step kept the logits of 3");
    mx_sample_none_left(m.weights->config.vocab, &scalar_error);
    assert_int_equal(ops->sample(s.backend, 1, &masked, &sampled, &error), MX_INVALID_STATE);
    assert_string_equal(error.text, scalar_error.text);

    /* A logit that is not a number, where the device has it. */
    gpu(&s)->s.logits[m.weights->config.vocab + 5] = INFINITY;
    assert_int_equal(ops->sample(s.backend, 1, &plain, &sampled, &error), MX_INVALID_STATE);
    mx_sample_not_finite(5, INFINITY, &scalar_error);
    assert_string_equal(error.text, scalar_error.text);
    assert_int_equal(ops->top(s.backend, 1, 0, NULL, -1, NULL, &error), MX_INVALID_STATE);
    assert_string_equal(error.text, scalar_error.text);
    stepper_close(&s);
    model_close(&m);
}

/* More draws of a row than there is scratch for at a time: each by its own rules. */
static void test_many_draws(void **state) {
    enum { MANY = MX_CUDA_DRAWS + 30 };
    (void)state;
    model m;
    stepper s;
    mx_error error;
    static struct stream stream[STREAMS];
    static mx_draw draw[MANY];
    model_open(&m, "mqa");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){.wanted = MANY, .rows = MANY});
    prompts(&s, stream);
    for (int i = 0; i < MANY; i++) {
        draw[i] = (mx_draw){.wanted = i % STREAMS, .spec = plain};
        draw[i].spec.temperature = 2;
        draw[i].spec.position = i;
    }
    assert_int_equal(s.backend->ops->draw(s.backend, draw, MANY, &error), MX_OK);
    assert_int_equal(s.backend->ops->drawn(s.backend, draw, MANY, &error), MX_OK);
    for (int i = 0; i < MANY; i += 3) {
        mx_sampled alone;
        assert_int_equal(s.backend->ops->sample(s.backend, draw[i].wanted, &draw[i].spec, &alone, &error), MX_OK);
        assert_memory_equal(&alone, &draw[i].sampled, sizeof alone);
    }
    stepper_close(&s);
    model_close(&m);
}

/* More lists than the device has room for: they stay in pinned memory. Each draw's says which token it must be. */
static void test_lists(void **state) {
    enum { BIASES = 100 };
    (void)state;
    model m;
    stepper s;
    mx_error error;
    static struct stream stream[STREAMS];
    mx_draw draw[STREAMS];
    mx_logit_bias bias[STREAMS][BIASES];
    model_open(&m, "base");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){0});
    prompts(&s, stream);
    for (int round = 0; round < 2; round++) {
        for (int q = 0; q < STREAMS; q++) {
            for (int i = 0; i < BIASES; i++)
                bias[q][i] = (mx_logit_bias){2 * i + q, i == BIASES - 1 - round ? 1e4f : 0};
            draw[q] = (mx_draw){.wanted = q, .spec = plain};
            draw[q].spec.bias = bias[q];
            draw[q].spec.bias_count = BIASES;
        }
        if (round) { /* room for the first alone */
            memset(gpu(&s)->s.lists, 0, (size_t)gpu(&s)->lists_bytes);
            gpu(&s)->lists_bytes = sizeof bias[0] + 32;
        }
        assert_int_equal(s.backend->ops->draw(s.backend, draw, STREAMS, &error), MX_OK);
        assert_int_equal(s.backend->ops->drawn(s.backend, draw, STREAMS, &error), MX_OK);
        for (int q = 0; q < STREAMS; q++) assert_int_equal(draw[q].sampled.token, 2 * (BIASES - 1 - round) + q);
    }
    stepper_close(&s);
    model_close(&m);
}

/* The likeliest tokens, few and many, are those of the row's own logits. */
static void check_top(stepper *s, int wanted, int k) {
    const int vocab = s->m->weights->config.vocab;
    mx_alternative *top = calloc((size_t)k + 1, sizeof *top);
    float *logits = malloc((size_t)vocab * sizeof *logits), logprob, again;
    mx_error error;
    assert_true(top && logits);
    memcpy(logits, stepper_logits(s, wanted), (size_t)vocab * sizeof *logits);
    mx_sampled sampled;
    mx_sample_spec spec = plain;
    spec.temperature = 2;
    spec.position = k;
    assert_int_equal(s->backend->ops->sample(s->backend, wanted, &spec, &sampled, &error), MX_OK);
    if (s->backend->ops->top(s->backend, wanted, k, top, sampled.token, &logprob, &error)) fail_msg("%s", error.text);
    assert_memory_equal(&logprob, &sampled.logprob, sizeof logprob);
    for (int i = 0; i < k; i++) {
        int better = 0;
        for (int t = 0; t < vocab; t++)
            better += logits[t] > logits[top[i].token] || (logits[t] == logits[top[i].token] && t < top[i].token);
        assert_int_equal(better, i);
        assert_int_equal(s->backend->ops->top(s->backend, wanted, 0, NULL, top[i].token, &again, &error), MX_OK);
        if (i < MX_CUDA_MOST_TOP || top[i].token == sampled.token)
            assert_memory_equal(&again, &top[i].logprob, sizeof again);
        else
            assert_float_equal(again, top[i].logprob, 1e-4);
    }
    free(top);
    free(logits);
}

static void test_top(void **state) {
    (void)state;
    model m;
    stepper s;
    mx_error error;
    static struct stream stream[STREAMS];
    mx_alternative top;
    float logprob;
    model_open(&m, "mqa");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){0});
    assert_int_equal(s.backend->ops->top(s.backend, 0, 0, NULL, -1, NULL, &error), MX_INVALID_STATE);
    prompts(&s, stream);
    check_top(&s, 0, 0);
    check_top(&s, 1, 5);
    check_top(&s, 2, MX_CUDA_MOST_TOP);
    check_top(&s, 1, 200);
    assert_int_equal(s.backend->ops->top(s.backend, 0, -1, &top, 0, &logprob, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(s.backend->ops->top(s.backend, 0, 1, &top, 300, &logprob, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(s.backend->ops->top(s.backend, 3, 1, &top, 0, &logprob, &error), MX_INVALID_STATE);
    stepper_close(&s);
    model_close(&m);
}

/* ---- page tables ------------------------------------------------------------------------------------------------- */

/* A sequence over some tiles, and the logits behind the token that follows it. */
enum { LONG = 150, SHORTER = 66 };

static void prompt(stepper *s, int sequence, int count) {
    int32_t token[LONG];
    for (int i = 0; i < count; i++) token[i] = prompt_token(s->m, sequence, i);
    stepper_tokens(s, sequence, token, count, 0);
}

static const float *next(stepper *s, int sequence, int position) {
    const int32_t token = 3;
    const mx_row row = {token, position, sequence, true};
    stepper_step(s, &row, 1);
    return stepper_logits(s, 0);
}

/* A page of an older tile becomes another one with the same content, as the engine does with tiles that are shared; the
 * old page's content is lost. */
static void move_page(stepper *s, int sequence, int layer, int tile, int32_t spare) {
    int32_t *entry = &s->table[(sequence * s->m->weights->config.layers + layer) * s->tiles + tile];
    s->backend->ops->page_copy(s->backend, spare, *entry);
    s->backend->ops->page_clear(s->backend, *entry);
    *entry = spare;
}

static void test_moved_pages(void **state) {
    (void)state;
    model m;
    stepper s;
    model_open(&m, "base");
    const mx_config *c = &m.weights->config;
    const size_t bytes = (size_t)c->vocab * sizeof(float);
    stepper_open(&s, &m, 2, LONG + 1, (wishes){0});
    float *first = malloc(bytes);
    assert_non_null(first);
    prompt(&s, 0, LONG);
    memcpy(first, next(&s, 0, LONG), bytes);
    int layer = 0;
    while (c->sliding[layer]) layer++;
    for (int tile = 0; tile < 3; tile++) { /* sequence 1 has pages and no tokens */
        const int32_t spare = s.table[(c->layers + layer) * s.tiles + tile];
        move_page(&s, 0, layer, tile, spare);
        assert_memory_equal(first, next(&s, 0, LONG), bytes);
    }
    free(first);
    stepper_close(&s);
    model_close(&m);
}

/* More sequences than there are places, changes that do not fit one block, and a table's memory that is used anew. */
static void test_places(void **state) {
    enum { MANY = 4 };
    (void)state;
    model m;
    stepper s;
    model_open(&m, "top1");
    const size_t bytes = (size_t)m.weights->config.vocab * sizeof(float);
    float *expected = malloc(MANY * bytes);
    assert_non_null(expected);
    for (int round = 0; round < 3; round++) {
        stepper_open(&s, &m, MANY, SHORTER + 1, (wishes){.wanted = round ? 2 : MANY, .no_graphs = round == 2});
        if (round) gpu(&s)->most_changes = 4;
        for (int q = 0; q < MANY; q++) prompt(&s, q, SHORTER);
        for (int q = 0; q < MANY; q++) {
            const float *logits = next(&s, q, SHORTER);
            float *of = expected + (size_t)q * bytes / sizeof *expected;
            if (round)
                assert_memory_equal(of, logits, bytes);
            else
                memcpy(of, logits, bytes);
        }
        /* Sequence 0's table becomes that of sequence 1: same memory, other pages. */
        memcpy(s.table, s.table + m.weights->config.layers * s.tiles,
               (size_t)(m.weights->config.layers * s.tiles) * sizeof *s.table);
        assert_memory_equal(expected + bytes / sizeof *expected, next(&s, 0, SHORTER), bytes);
        stepper_close(&s);
    }
    free(expected);
    model_close(&m);
}

static void test_pages(void **state) {
    (void)state;
    model m;
    stepper s;
    model_open(&m, "mqa");
    stepper_open(&s, &m, 1, 100, (wishes){.kv = MX_BF16});
    const mx_backend_ops *ops = s.backend->ops;
    const size_t bytes = (size_t)ops->page_bytes(s.backend);
    assert_int_equal(bytes, mx_page_bytes(&m.weights->config, MX_BF16));
    uint8_t *in = malloc(bytes), *out = malloc(bytes);
    assert_true(in && out);
    for (size_t i = 0; i < bytes; i++) in[i] = (uint8_t)(i * 7 + i / 256);
    ops->page_write(s.backend, 2, in);
    ops->page_copy(s.backend, 1, 2);
    ops->page_clear(s.backend, 2);
    ops->page_read(s.backend, 1, out);
    assert_memory_equal(in, out, bytes);
    ops->page_read(s.backend, 2, out);
    for (size_t i = 0; i < bytes; i++) assert_int_equal(out[i], 0);
    free(in);
    free(out);
    stepper_close(&s);
    model_close(&m);
}

/* ---- what is wrong ----------------------------------------------------------------------------------------------- */

static void refuse(stepper *s, mx_row row, const char *text) {
    const mx_batch batch = {.row = &row, .rows = 1, .sequence = s->view, .sequences = s->sequences};
    mx_error error;
    assert_int_equal(s->backend->ops->step(s->backend, &batch, &error), MX_INVALID_ARGUMENT);
    assert_string_equal(error.text, text);
}

static void test_wrong_batches(void **state) {
    (void)state;
    model m;
    stepper s;
    mx_error error;
    model_open(&m, "base");
    stepper_open(&s, &m, 3, 100, (wishes){.wanted = 2});
    refuse(&s, (mx_row){512, 0, 0, true}, "batch: token 512 is not in the vocabulary of 512");
    refuse(&s, (mx_row){-1, 0, 0, true}, "batch: token -1 is not in the vocabulary of 512");
    refuse(&s, (mx_row){1, 0, 3, true}, "batch: sequence 3 of 3");
    refuse(&s, (mx_row){1, 131072, 0, true}, "batch: position 131072, the model has 131072");
    refuse(&s, (mx_row){1, 128, 0, true}, "batch: position 128 lies beyond a page table of 2 pages");
    s.table[0] = 24;
    refuse(&s, (mx_row){1, 0, 0, true}, "batch: layer 0, positions from 0: page 24 is none of the 24");
    s.table[0] = -1;
    refuse(&s, (mx_row){1, 0, 0, true}, "batch: layer 0, positions from 0: page -1 is none of the 24");
    stepper_tables(&s, 0, 0);
    const mx_row three[3] = {{1, 0, 0, true}, {1, 0, 1, true}, {1, 0, 2, false}};
    const mx_batch batch = {.row = three, .rows = 3, .sequence = s.view, .sequences = 3};
    assert_int_equal(s.backend->ops->step(s.backend, &batch, &error), MX_INVALID_ARGUMENT);
    assert_string_equal(error.text, "batch: more than 2 sequences, as many as rows may be wanted");
    assert_null(s.backend->ops->logits(s.backend, 0));
    stepper_step(&s, three, 2); /* nothing of it is left */
    assert_non_null(s.backend->ops->logits(s.backend, 1));
    assert_null(s.backend->ops->logits(s.backend, 2));
    stepper_close(&s);
    model_close(&m);
}

static void expect_refusal(const model *m, mx_backend_options o, mx_status status, const char *text) {
    mx_backend *b;
    mx_error error;
    uint64_t bytes;
    assert_int_equal(mx_cuda_backend_create(m->device, &o, &b, &error), status);
    assert_null(b);
    assert_non_null(strstr(error.text, text));
    if (o.pages < 1) return;
    assert_int_equal(mx_cuda_backend_bytes(&m->device->config, &o, &bytes, &error), status);
    assert_non_null(strstr(error.text, text));
}

static void test_wrong_options(void **state) {
    (void)state;
    model m;
    mx_precisions int8;
    model_open(&m, "base");
    assert_int_equal(mx_precisions_parse("int8", &int8, NULL), MX_OK);
    const mx_backend_options good = {.kv_format = MX_F16, .pages = 8, .max_rows = 4, .max_wanted = 2};
    mx_backend_options o = good;
    o.precision = &int8;
    expect_refusal(&m, o, MX_UNSUPPORTED, "int8: choose --precision bf16");
    o = good;
    o.openblas = true;
    expect_refusal(&m, o, MX_UNSUPPORTED, "OpenBLAS multiplies on the CPU");
    o = good;
    o.tier = "avx2";
    expect_refusal(&m, o, MX_INVALID_ARGUMENT, "\"avx2\" was asked for");
    o = good;
    o.kv_format = MX_Q8_0;
    expect_refusal(&m, o, MX_INVALID_ARGUMENT, "F16, BF16 or F32");
    o = good;
    o.max_rows = 0;
    expect_refusal(&m, o, MX_INVALID_ARGUMENT, "0 rows, 2 wanted");
    o = good;
    o.pages = 0;
    expect_refusal(&m, o, MX_INVALID_ARGUMENT, "0 pages");
    setenv("MXRUN_CUDA_GRAPHS", "no", 1);
    mx_backend *b;
    mx_error error;
    assert_int_equal(mx_cuda_backend_create(m.device, &good, &b, &error), MX_INVALID_ARGUMENT);
    assert_string_equal(error.text, "MXRUN_CUDA_GRAPHS=no: expected 0 (off) or 1 (on)");
    unsetenv("MXRUN_CUDA_GRAPHS");
    setenv("MXRUN_CUDA_ROWS", "most", 1);
    assert_int_equal(mx_cuda_backend_create(m.device, &good, &b, &error), MX_INVALID_ARGUMENT);
    assert_string_equal(error.text,
                        "MXRUN_CUDA_ROWS=most: expected few or many (rows that products are made for), or nothing");
    unsetenv("MXRUN_CUDA_ROWS");
    assert_int_equal(mx_cuda_backend_create(m.device, &good, &b, &error), MX_OK);
    mx_precisions precision = mx_cuda_backend_precision(b); /* the default */
    char name[MX_PRECISION_NAME];
    mx_precisions_name(name, &precision);
    assert_string_equal(name, "mixed");
    b->ops->destroy(b);
    model_close(&m);
}

/* What is said before is what is allocated, and what is allocated is freed, also where memory ends in the middle. */
static void test_memory(void **state) {
    (void)state;
    model m;
    mx_gpu_info before, after;
    mx_error error;
    mx_backend *b;
    uint64_t bytes;
    model_open(&m, "mqa");
    mx_backend_options o = {.kv_format = MX_F16, .pages = 40, .max_rows = 70, .max_wanted = 9};
    assert_int_equal(mx_gpu_get_info(0, &before, &error), MX_OK);
    for (int i = 0; i < 2; i++, o.max_rows = 3, o.max_wanted = 65) {
        assert_int_equal(mx_cuda_backend_bytes(&m.device->config, &o, &bytes, &error), MX_OK);
        if (mx_cuda_backend_create(m.device, &o, &b, &error)) fail_msg("%s", error.text);
        assert_int_equal(mx_gpu_get_info(0, &after, &error), MX_OK);
        assert_int_equal(before.memory_free - after.memory_free, bytes + 40 * (uint64_t)b->ops->page_bytes(b));
        b->ops->destroy(b);
        assert_int_equal(mx_gpu_get_info(0, &after, &error), MX_OK);
        assert_int_equal(before.memory_free, after.memory_free);
    }
    o.pages = (int64_t)(before.memory_free / (uint64_t)mx_page_bytes(&m.weights->config, MX_F16));
    assert_int_equal(mx_cuda_backend_create(m.device, &o, &b, &error), MX_NO_MEMORY);
    assert_int_equal(mx_gpu_get_info(0, &after, &error), MX_OK);
    assert_int_equal(before.memory_free, after.memory_free);
    model_close(&m);
}

/* A launch that is refused, or anything else that goes wrong on the device: all calls say so from then on. */
static void test_lost(void **state) {
    (void)state;
    model m;
    stepper s;
    mx_error error = {0}, lost;
    static struct stream stream[STREAMS];
    mx_draw draw[1] = {{.wanted = 0, .spec = plain}};
    float logprob;
    model_open(&m, "base");
    stepper_open(&s, &m, STREAMS, PROMPT + TOKENS, (wishes){0});
    const mx_backend_ops *ops = s.backend->ops;
    prompts(&s, stream);
    assert_int_equal(ops->draw(s.backend, draw, 1, &error), MX_OK);
    mx_fail(&lost, MX_IO, "the GPU fell off the bus: 100%%");
    mx_cuda_note(gpu(&s), MX_IO, &lost);
    const mx_row row = {1, PROMPT, 0, true};
    const mx_batch batch = {.row = &row, .rows = 1, .sequence = s.view, .sequences = STREAMS};
    assert_int_equal(ops->step(s.backend, &batch, &error), MX_IO);
    assert_string_equal(error.text, "the GPU fell off the bus: 100%");
    assert_int_equal(ops->drawn(s.backend, draw, 1, &error), MX_IO);
    assert_int_equal(draw[0].status, MX_IO);
    assert_int_equal(ops->draw(s.backend, draw, 1, &error), MX_IO);
    assert_int_equal(ops->sample(s.backend, 0, &plain, &draw[0].sampled, &error), MX_IO);
    draw[0].status = MX_OK;
    ops->sample_all(s.backend, draw, 1);
    assert_int_equal(draw[0].status, MX_IO);
    assert_int_equal(ops->top(s.backend, 0, 0, NULL, 1, &logprob, &error), MX_IO);
    assert_null(ops->logits(s.backend, 0));
    stepper_close(&s);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ahead),         cmocka_unit_test(test_queue),         cmocka_unit_test(test_wrong_draws),
        cmocka_unit_test(test_many_draws),    cmocka_unit_test(test_lists),         cmocka_unit_test(test_top),
        cmocka_unit_test(test_moved_pages),   cmocka_unit_test(test_places),        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_wrong_batches), cmocka_unit_test(test_wrong_options), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
