/* Weights made on the device are those that the CPU makes. */
#include "device_memory.h"

#include <stdlib.h>

#include "base/threads.h"
#include "model/synthetic_private.h"

enum { BLOCK = MX_SYNTHETIC_BLOCK };

static void check(device *d, mx_pool *pool, const mx_synthetic_tensor *t, uint64_t seed, uint64_t block,
                  uint64_t size) {
    const uint64_t room = (size + 63) / 64 * 64;
    uint8_t *expected = aligned_alloc(64, room), *found = malloc(room);
    assert_non_null(expected);
    assert_non_null(found);
    mx_synthetic_fill(pool, t, seed, block * BLOCK, size, expected);
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        uint8_t *out = on_device(d, NULL, room);
        mx_cuda_synthetic(out, t->noise, mx_synthetic_base(t), mx_synthetic_key(t, seed), block, size, d->stream);
        from_device(d, found, out, room);
        if (memcmp(found, expected, size))
            fail_msg("noise %d of size %g, %llu bytes from block %llu differ", t->noise, (double)t->size,
                     (unsigned long long)size, (unsigned long long)block);
    }
    free(expected);
    free(found);
}

static void test_bytes(void **state) {
    (void)state;
    static const uint64_t sizes[] = {1, 2, 63, 64, 130, BLOCK, BLOCK + 2, 2 * BLOCK, 5 * BLOCK - 64, 9 * BLOCK + 100};
    static const uint64_t blocks[] = {0, 3, 1000000};
    mx_pool *pool;
    CHECK(mx_pool_create(1, &pool, &error_));
    mx_pool_enter(pool);
    for (int noise = MX_NOISE_BF16; noise <= MX_NOISE_SCALES; noise++) {
        mx_synthetic_tensor t = {.name = "model.layers.1.mlp.experts.down_proj_blocks", .noise = (mx_noise)noise};
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) {
            device d = device_open();
            t.size = i % 3 == 0 ? 1.0f : i % 3 == 1 ? 0.0187f : 30.0f;
            check(&d, pool, &t, 1234567u + (uint64_t)i, blocks[i % 3], sizes[i]);
            device_close(&d);
        }
    }
    mx_pool_leave(pool);
    mx_pool_destroy(pool);
}

/* A tensor of which 256 MiB are made at a time has the same bytes as one that is made at once. */
static void test_pieces(void **state) {
    (void)state;
    enum { BLOCKS = 7, BYTES = BLOCKS * BLOCK };
    device d = device_open();
    uint8_t *whole = on_device(&d, NULL, BYTES), *pieces = on_device(&d, NULL, BYTES);
    uint8_t *a = malloc(BYTES), *b = malloc(BYTES);
    assert_true(a && b);
    mx_cuda_synthetic(whole, MX_NOISE_CODES, 0, 99, 10, BYTES, d.stream);
    for (int first = 0, n = 1; first < BLOCKS; first += n, n++) {
        if (n > BLOCKS - first) n = BLOCKS - first;
        mx_cuda_synthetic(pieces + (size_t)first * BLOCK, MX_NOISE_CODES, 0, 99, 10 + (uint64_t)first,
                          (uint64_t)n * BLOCK, d.stream);
    }
    from_device(&d, a, whole, BYTES);
    from_device(&d, b, pieces, BYTES);
    assert_memory_equal(a, b, BYTES);
    mx_cuda_synthetic(whole, MX_NOISE_CODES, 0, 98, 10, 0, d.stream); /* nothing */
    from_device(&d, b, whole, BYTES);
    assert_memory_equal(a, b, BYTES);
    free(a);
    free(b);
    device_close(&d);
}

int main(void) {
    if (no_device()) return SKIPPED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
