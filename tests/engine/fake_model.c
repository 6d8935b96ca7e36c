#include "fake_model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/sampler.h"

static uint64_t hash(uint64_t a, uint64_t b) {
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
    z = (z ^ (z >> 29)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 32);
}

mx_config fake_config(const char *pattern, int window, int max_positions) {
    mx_config c = {.layers = (int)strlen(pattern), .vocab = FAKE_VOCAB, .window = window};
    c.max_positions = max_positions;
    for (int l = 0; l < c.layers; l++) c.sliding[l] = pattern[l] == 's';
    return c;
}

static void logits_of(uint64_t state, float *out) {
    for (int i = 0; i < FAKE_VOCAB; i++) out[i] = (float)(hash(state, (uint64_t)i) >> 40) / (1 << 22);
}

/* ---- with pages ---------------------------------------------------------------------------------------------------
 */
static fake_backend *self(mx_backend *b) {
    return (fake_backend *)b;
}

static void destroy(mx_backend *b) {
    free(self(b)->slot);
    free(b);
}

static int64_t page_bytes(const mx_backend *b) {
    (void)b;
    return MX_TILE * sizeof(uint64_t);
}

static void page_clear(mx_backend *b, int32_t page) {
    assert(page >= 0 && page < self(b)->pages);
    memset(self(b)->slot + page * MX_TILE, 0, MX_TILE * sizeof(uint64_t));
}

static void page_copy(mx_backend *b, int32_t to, int32_t from) {
    assert(to >= 0 && to < self(b)->pages && from >= 0 && from < self(b)->pages && to != from);
    memcpy(self(b)->slot + to * MX_TILE, self(b)->slot + from * MX_TILE, MX_TILE * sizeof(uint64_t));
}

/* Counts down to 1, at which it stays. */
static bool fails_from_now(int *in) {
    if (*in > 1) return --*in == 1;
    return *in == 1;
}

static mx_status page_read(mx_backend *b, int32_t page, void *out, mx_error *error) {
    assert(page >= 0 && page < self(b)->pages);
    memset(out, 0x5a, MX_TILE * sizeof(uint64_t));
    if (self(b)->fail_read_in && fails_from_now(&self(b)->fail_read_in) && ++self(b)->failed_reads)
        return mx_fail(error, MX_IO, "the fake device cannot be read");
    memcpy(out, self(b)->slot + page * MX_TILE, MX_TILE * sizeof(uint64_t));
    return MX_OK;
}

static mx_status page_write(mx_backend *b, int32_t page, const void *in, mx_error *error) {
    assert(page >= 0 && page < self(b)->pages);
    memset(self(b)->slot + page * MX_TILE, 0x5a, MX_TILE * sizeof(uint64_t));
    if (self(b)->fail_write_in && fails_from_now(&self(b)->fail_write_in))
        return mx_fail(error, MX_IO, "the fake device cannot be written");
    memcpy(self(b)->slot + page * MX_TILE, in, MX_TILE * sizeof(uint64_t));
    return MX_OK;
}

static uint64_t *slot_at(fake_backend *b, const mx_sequence_view *view, int layer, int64_t position) {
    assert(position / MX_TILE < view->stride);
    int32_t page = view->table[layer * view->stride + position / MX_TILE];
    assert(page >= 0 && page < b->pages);
    return &b->slot[page * MX_TILE + position % MX_TILE];
}

static uint64_t run_row(fake_backend *b, const mx_sequence_view *view, const mx_row *row) {
    uint64_t state = hash((uint64_t)row->token, (uint64_t)row->position);
    for (int l = 0; l < b->config->layers; l++) {
        *slot_at(b, view, l, row->position) = state | 1;
        int64_t first = b->config->sliding[l] ? row->position - b->config->window + 1 : 0;
        for (int64_t j = first > 0 ? first : 0; j <= row->position; j++) {
            uint64_t value = *slot_at(b, view, l, j);
            b->empty_reads += value == 0;
            state = hash(state, value);
        }
    }
    return state;
}

/* The page of layer 0 that a row writes. */
static int32_t page_of(const mx_batch *batch, const mx_row *row) {
    return batch->sequence[row->sequence].table[row->position / MX_TILE];
}

/* Rows of one sequence stand together, one position after the other; no page that is written belongs to two. */
static void check_rows(fake_backend *b, const mx_batch *batch) {
    bool seen[FAKE_WANTED] = {0};
    assert(batch->sequences <= FAKE_WANTED);
    for (int i = 0; i < batch->rows; i++) {
        const mx_row *row = &batch->row[i];
        assert(row->sequence >= 0 && row->sequence < batch->sequences);
        assert(row->token >= 0 && row->token < FAKE_VOCAB);
        if (i > 0 && row[-1].sequence == row->sequence) {
            assert(row->position == row[-1].position + 1);
            continue;
        }
        assert(!seen[row->sequence]);
        seen[row->sequence] = true;
        for (int j = 0; j < i; j++) assert(page_of(batch, row) != page_of(batch, &batch->row[j]));
    }
    if (batch->sequences > b->most_sequences) b->most_sequences = batch->sequences;
}

static mx_status step(mx_backend *base, const mx_batch *batch, mx_error *error) {
    fake_backend *b = self(base);
    if (b->sleep_us) usleep((useconds_t)b->sleep_us);
    b->last_rows = batch->rows;
    if (b->during) b->during(b->user);
    check_rows(b, batch);
    b->wanted = 0;
    const int most = b->max_wanted ? b->max_wanted : FAKE_WANTED;
    int asked = 0;
    for (int i = 0; i < batch->rows; i++) asked += batch->row[i].wanted;
    if (asked > most) return mx_fail(error, MX_INVALID_ARGUMENT, "logits of %d rows wanted, %d possible", asked, most);
    bool fails = b->fail_in > 0 && --b->fail_in == 0;
    const bool bad = b->nan_in > 0 && --b->nan_in == 0;
    for (int i = 0; i < batch->rows; i++) {
        uint64_t state = run_row(b, &batch->sequence[batch->row[i].sequence], &batch->row[i]);
        fails |= batch->row[i].token == b->fail_token;
        if (!batch->row[i].wanted) continue;
        float *out = b->logits[b->wanted++];
        logits_of(state, out);
        if (bad || batch->row[i].token == b->nan_token) out[7] = 0.0f / 0.0f;
    }
    if (b->wanted > b->most_wanted) b->most_wanted = b->wanted;
    b->wanted_rows += b->wanted;
    b->rows += batch->rows;
    if (batch->rows > b->largest) b->largest = batch->rows;
    return fails ? mx_fail(error, MX_IO, "the fake device is on fire") : MX_OK;
}

static mx_status sample_row(const float *logits, const mx_sample_spec *spec, mx_sampled *out, mx_error *error) {
    _Alignas(64) float scratch[FAKE_VOCAB];
    const mx_kernels *k;
    mx_status status = mx_kernels_get("scalar", &k, error);
    return status ? status : mx_sample_logits(k, scratch, logits, FAKE_VOCAB, spec, out, error);
}

static mx_status sample(mx_backend *base, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error) {
    assert(wanted >= 0 && wanted < self(base)->wanted);
    return sample_row(self(base)->logits[wanted], spec, out, error);
}

static void sample_all(mx_backend *base, mx_draw *draw, int count) {
    for (int i = count - 1; i >= 0; i--)
        draw[i].status = sample(base, draw[i].wanted, &draw[i].spec, &draw[i].sampled, NULL);
}

/* What sampling says of a token when no other may be chosen. */
static mx_status logprob_of(const float *logits, int32_t token, float *out, mx_error *error) {
    uint32_t mask[(FAKE_VOCAB + 31) / 32] = {0};
    mask[token / 32] = 1u << token % 32;
    const mx_sample_spec spec = {.top_p = 1, .repetition_penalty = 1, .mask = mask};
    mx_sampled sampled;
    mx_status status = sample_row(logits, &spec, &sampled, error);
    *out = sampled.logprob;
    return status;
}

static mx_status top(mx_backend *base, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                     mx_error *error) {
    assert(wanted >= 0 && wanted < self(base)->wanted);
    const float *logits = self(base)->logits[wanted];
    bool taken[FAKE_VOCAB] = {0};
    mx_status status = MX_OK;
    if (token >= 0) status = logprob_of(logits, token, logprob, error);
    for (int i = 0; i < k && !status; i++) {
        int best = -1;
        for (int t = 0; t < FAKE_VOCAB; t++)
            if (!taken[t] && (best < 0 || logits[t] > logits[best])) best = t;
        taken[best] = true;
        out[i].token = best;
        status = logprob_of(logits, best, &out[i].logprob, error);
    }
    return status;
}

static const float *logits(mx_backend *base, int wanted) {
    return wanted >= 0 && wanted < self(base)->wanted ? self(base)->logits[wanted] : NULL;
}

fake_backend *fake_backend_create(const mx_config *config, int64_t pages) {
    static const mx_backend_ops ops = {.name = "fake",
                                       .destroy = destroy,
                                       .page_bytes = page_bytes,
                                       .page_clear = page_clear,
                                       .page_copy = page_copy,
                                       .page_read = page_read,
                                       .page_write = page_write,
                                       .step = step,
                                       .sample = sample,
                                       .sample_all = sample_all,
                                       .top = top,
                                       .logits = logits};
    fake_backend *b = calloc(1, sizeof *b);
    assert(b);
    b->base.ops = &ops;
    b->config = config;
    b->pages = pages;
    b->fail_token = b->nan_token = -1;
    b->slot = malloc((size_t)pages * MX_TILE * sizeof *b->slot);
    assert(b->slot);
    memset(b->slot, 0xee, (size_t)pages * MX_TILE * sizeof *b->slot); /* pages must be cleared before use */
    return b;
}

/* ---- without ------------------------------------------------------------------------------------------------------
 */
void fake_logits(const mx_config *config, const int32_t *tokens, int64_t count, float (*out)[FAKE_VOCAB]) {
    uint64_t *past = calloc((size_t)config->layers * FAKE_MOST, sizeof *past);
    assert(past && count <= FAKE_MOST);
    for (int64_t p = 0; p < count; p++) {
        uint64_t state = hash((uint64_t)tokens[p], (uint64_t)p);
        for (int l = 0; l < config->layers; l++) {
            past[l * FAKE_MOST + p] = state | 1;
            int64_t first = config->sliding[l] ? p - config->window + 1 : 0;
            for (int64_t j = first > 0 ? first : 0; j <= p; j++) state = hash(state, past[l * FAKE_MOST + j]);
        }
        logits_of(state, out[p]);
    }
    free(past);
}

void fake_answer(const mx_config *config, const int32_t *prompt, int64_t prompt_count, const mx_sampling *sampling,
                 int32_t *out, int64_t count) {
    uint64_t *past = calloc((size_t)config->layers * FAKE_MOST, sizeof *past);
    assert(past && prompt_count + count <= FAKE_MOST);
    for (int64_t p = 0; p + 1 < prompt_count + count; p++) {
        int32_t token = p < prompt_count ? prompt[p] : out[p - prompt_count];
        uint64_t state = hash((uint64_t)token, (uint64_t)p);
        for (int l = 0; l < config->layers; l++) {
            past[l * FAKE_MOST + p] = state | 1;
            int64_t first = config->sliding[l] ? p - config->window + 1 : 0;
            for (int64_t j = first > 0 ? first : 0; j <= p; j++) state = hash(state, past[l * FAKE_MOST + j]);
        }
        if (p + 1 < prompt_count) continue;
        float logits[FAKE_VOCAB];
        logits_of(state, logits);
        mx_sample_spec spec = {.temperature = sampling->temperature,
                               .top_p = 1,
                               .repetition_penalty = 1,
                               .seed = sampling->seed,
                               .position = p + 1,
                               .bias = sampling->bias,
                               .bias_count = sampling->bias_count};
        mx_sampled sampled;
        mx_error error;
        mx_status status = sample_row(logits, &spec, &sampled, &error);
        assert(status == MX_OK);
        (void)status;
        out[p + 1 - prompt_count] = sampled.token;
    }
    free(past);
}
