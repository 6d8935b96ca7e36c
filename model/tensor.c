#include <stdio.h>
#include <string.h>

#include "model/checkpoint_private.h"

uint64_t mx_tensor_slice_bytes(const mx_tensor *t) {
    if (!t->dims) return t->bytes;
    return t->shape[0] ? t->bytes / (uint64_t)t->shape[0] : 0;
}

void mx_tensor_slices(const mx_tensor *t, int64_t first, int64_t count, uint8_t *out) {
    const uint64_t bytes = mx_tensor_slice_bytes(t);
    if (t->recipe) {
        t->recipe->make(t->recipe, first, count, out);
        return;
    }
    const uint8_t *from = t->data + (uint64_t)first * t->slice_stride;
    if (t->slice_stride == bytes) {
        if (count && bytes) memcpy(out, from, (uint64_t)count * bytes);
        return;
    }
    for (int64_t i = 0; i < count; i++) memcpy(out + (uint64_t)i * bytes, from + (uint64_t)i * t->slice_stride, bytes);
}

void mx_tensor_form(mx_tensor *t, mx_dtype dtype, int dims, const int64_t *shape) {
    static const struct {
        const char *name;
        uint64_t block, bytes; /* elements, and bytes that they take */
    } types[] = {
        [MX_DTYPE_U8] = {"U8", 1, 1},           [MX_DTYPE_BF16] = {"BF16", 1, 2},
        [MX_DTYPE_F16] = {"F16", 1, 2},         [MX_DTYPE_F32] = {"F32", 1, 4},
        [MX_DTYPE_I32] = {"I32", 1, 4},         [MX_DTYPE_I64] = {"I64", 1, 8},
        [MX_DTYPE_F8_E8M0] = {"U8", 1, 1},      [MX_DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
        [MX_DTYPE_F8_E5M2] = {"F8_E5M2", 1, 1}, [MX_DTYPE_I8] = {"I8", 1, 1},
        [MX_DTYPE_Q8_0] = {"Q8_0", 32, 34},     [MX_DTYPE_MXFP4] = {"MXFP4", 32, 17},
    };
    uint64_t elements = 1;
    t->dtype = dtype;
    t->dtype_name = types[dtype].name;
    t->dims = dims;
    for (int i = 0; i < dims; i++) elements *= (uint64_t)(t->shape[i] = shape[i]);
    t->bytes = elements / types[dtype].block * types[dtype].bytes;
    t->slice_stride = mx_tensor_slice_bytes(t);
}

bool mx_tensor_made(mx_checkpoint *ck, mx_tensor *t, const mx_recipe *recipe) {
    mx_recipe *own = mx_checkpoint_alloc(ck, sizeof *own);
    if (!own) return false;
    *own = *recipe;
    t->recipe = own;
    return true;
}

/* "..._blocks" takes "..._scales" along. */
static void join(const mx_checkpoint *ck, const mx_tensor *blocks) {
    char name[MX_TENSOR_NAME];
    const int stem = (int)strlen(blocks->name) - (int)strlen("_blocks");
    snprintf(name, sizeof name, "%.*s_scales", stem > 0 ? stem : 0, blocks->name);
    ((mx_recipe *)(uintptr_t)blocks->recipe)->scales = mx_checkpoint_find(ck, name);
}

mx_status mx_checkpoint_make_room(mx_checkpoint *ck, const char *name, mx_error *error) {
    uint64_t total = 0;
    for (int i = 0; i < ck->count; i++)
        if (ck->tensor[i].recipe) total += (ck->tensor[i].bytes + 63) / 64 * 64;
    if (!total || ck->memory.base) return MX_OK;
    mx_status status = mx_arena_create(total, &ck->memory, error);
    if (status) return mx_fail_within(error, status, "%s", name);
    for (int i = 0; i < ck->count; i++) {
        mx_tensor *t = &ck->tensor[i];
        if (!t->recipe) continue;
        uint8_t *data = mx_arena_take(&ck->memory, t->bytes);
        t->data = data;
        t->slice_stride = mx_tensor_slice_bytes(t);
        if (t->dims != 1) continue;
        mx_tensor_slices(t, 0, t->shape[0], data);
        t->recipe = NULL;
    }
    for (int i = 0; i < ck->count; i++)
        if (ck->tensor[i].recipe && ck->tensor[i].recipe->make_both) join(ck, &ck->tensor[i]);
    return MX_OK;
}

/* ---- NUMA nodes -------------------------------------------------------------------------------------------------- */

enum { PAGE = 4096, PAGES_AT_ONCE = 512 };

static void touch_pages(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    for (int64_t i = begin; i < end; i++) ((volatile uint8_t *)arg)[i * PAGE] = 0;
}

void mx_tensor_place(mx_pool *pool, const mx_tensor *t) {
    const uint64_t matrices = t->dims >= 3 && t->shape[0] ? (uint64_t)t->shape[0] : 1, bytes = t->bytes / matrices;
    for (uint64_t i = 0; i < matrices; i++)
        mx_parallel_for(pool, (int64_t)((bytes + PAGE - 1) / PAGE), PAGES_AT_ONCE, touch_pages,
                        (uint8_t *)(uintptr_t)t->data + i * bytes);
}
