/* A model's name by its content: another one for every byte, the same for any number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/model.h"

enum { TENSORS = 5, LARGE = (9 << 20) + 12345, ALL = LARGE + 2 * 70000 + 33 };
static const uint64_t bytes[TENSORS] = {70000, LARGE, 0, 33, 70000};

static uint8_t *content;
static mx_checkpoint *checkpoint;

static int set_up(void **state) {
    (void)state;
    static const char *const names[TENSORS] = {"a", "b", "c", "d", "e"};
    mx_arena memory;
    mx_tensor *tensor = calloc(TENSORS, sizeof *tensor);
    if (!tensor || mx_arena_create(ALL, &memory, NULL)) return -1;
    content = mx_arena_take(&memory, ALL);
    uint8_t *at = content;
    for (int i = 0; i < TENSORS; i++) {
        tensor[i] = (mx_tensor){.name = names[i], .file = "memory", .dtype = MX_DTYPE_U8, .dtype_name = "U8"};
        tensor[i].dims = 1;
        tensor[i].shape[0] = (int64_t)bytes[i];
        tensor[i].data = at;
        tensor[i].bytes = bytes[i];
        at += bytes[i];
    }
    for (int i = 0; i < ALL; i++) content[i] = (uint8_t)(i * 2654435761u >> 24);
    return mx_checkpoint_in_memory("memory", tensor, TENSORS, memory, &checkpoint, NULL);
}

static int tear_down(void **state) {
    (void)state;
    mx_checkpoint_close(checkpoint);
    return 0;
}

static uint64_t shown, total;
static void show(void *user, uint64_t done, uint64_t all) {
    (void)user;
    shown = done;
    total = all;
}

static void identify(int threads, char out[MX_IDENTITY]) {
    mx_pool *pool;
    assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
    const mx_identity_options options = {.pool = pool, .progress = show};
    shown = 0;
    assert_int_equal(mx_checkpoint_identity(checkpoint, &options, out, NULL), MX_OK);
    mx_pool_destroy(pool);
}

static void test_threads(void **state) {
    (void)state;
    char one[MX_IDENTITY], many[MX_IDENTITY];
    identify(1, one);
    assert_int_equal(shown, ALL);
    assert_int_equal(total, ALL);
    assert_int_equal(strlen(one), MX_IDENTITY - 1);
    for (int threads = 2; threads <= 4; threads++) {
        identify(threads, many);
        assert_string_equal(one, many);
    }
}

static void test_every_byte_counts(void **state) {
    (void)state;
    char before[MX_IDENTITY], after[MX_IDENTITY];
    identify(2, before);
    for (int i = 0; i < 40; i++) {
        const int at = i == 0 ? 0 : i == 1 ? ALL - 1 : (int)((uint64_t)i * 7919 * 104729 % ALL);
        content[at] ^= 1;
        identify(2, after);
        content[at] ^= 1;
        if (!strcmp(before, after)) fail_msg("byte %d does not count", at);
    }
    identify(2, after);
    assert_string_equal(before, after);
}

/* The same pieces elsewhere are another model. */
static void test_order_counts(void **state) {
    (void)state;
    enum { PIECE = 4 << 20 };
    char before[MX_IDENTITY], after[MX_IDENTITY];
    uint8_t *b = content + bytes[0], *keep = malloc(PIECE);
    assert_non_null(keep);
    memset(b, 1, PIECE);
    identify(2, before);
    memcpy(keep, b, PIECE);
    memcpy(b, b + PIECE, PIECE);
    memcpy(b + PIECE, keep, PIECE);
    identify(2, after);
    assert_string_not_equal(before, after);
    free(keep);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_every_byte_counts),
        cmocka_unit_test(test_order_counts),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
