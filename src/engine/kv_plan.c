/* How many pages a sequence takes, and how long one may become in the memory there is. */
#include "engine/kv.h"

static int64_t tiles_of(int64_t positions) {
    return (positions + MX_TILE - 1) / MX_TILE;
}

/* Tiles that a run of positions touches at most, wherever it begins. */
static int64_t tiles_touched(int64_t positions) {
    return (positions + MX_TILE - 2) / MX_TILE + 1;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t mx_kv_pages_needed(const mx_config *config, int64_t tokens, int batch) {
    int64_t sliding = 0;
    for (int l = 0; l < config->layers; l++) sliding += config->sliding[l];
    const int64_t tiles = tiles_of(tokens);
    /* the step's rows, and what the first of them sees before itself */
    return (config->layers - sliding) * tiles +
           sliding * smaller(tiles, tiles_touched((int64_t)config->window - 1 + batch));
}

mx_status mx_kv_plan_make(const mx_config *config, int64_t page_bytes, uint64_t memory, int64_t context, int batch,
                          mx_kv_plan *out, mx_error *error) {
    const int64_t most = config->max_positions;
    if (context < 0 || context > most)
        return mx_fail(error, MX_INVALID_ARGUMENT, "a context of %lld tokens: the model's maximum is %lld",
                       (long long)context, (long long)most);
    uint64_t fitting = memory / (uint64_t)page_bytes;
    const int64_t pages = fitting > INT32_MAX - 1 ? INT32_MAX - 1 : (int64_t)fitting;

    const int64_t wanted = context ? context : smaller(most, MX_TILE);
    const int64_t needed = mx_kv_pages_needed(config, wanted, batch);
    if (needed > pages)
        return mx_fail(error, MX_NO_MEMORY,
                       "the KV cache of %lld tokens takes %.1f MiB, %.1f MiB may be used: choose a smaller context or, "
                       "with an F32 cache, a 16-bit one",
                       (long long)wanted, (double)needed * (double)page_bytes / 0x1p20, (double)memory / 0x1p20);
    if (!context) {
        int64_t fits = wanted, beyond = most + 1;
        while (beyond - fits > 1) {
            int64_t middle = fits + (beyond - fits) / 2;
            if (mx_kv_pages_needed(config, middle, batch) <= pages)
                fits = middle;
            else
                beyond = middle;
        }
        context = fits;
    }
    *out = (mx_kv_plan){.context = context, .pages = pages};
    return MX_OK;
}
