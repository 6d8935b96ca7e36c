/* Streaming decode: however the bytes are cut, the text is that of the whole, and no cut shows. */
#include "support.h"

#include <stdio.h>

static void stream(const char *data, size_t size, uint64_t *seed, uint32_t longest, mx_bytes *out) {
    mx_utf8_stream s = {0};
    mx_bytes shown = {0};
    mx_bytes_clear(out);
    for (size_t at = 0; at < size;) {
        size_t n = 1 + random_below(seed, longest);
        if (n > size - at) n = size - at;
        mx_bytes_clear(&shown);
        assert_true(mx_utf8_stream_add(&s, data + at, n, &shown));
        for (size_t i = 0; i < shown.size;) { /* what is shown is whole characters */
            int length = mx_utf8_length(shown.data + i, shown.size - i);
            assert_true(length > 0);
            i += (size_t)length;
        }
        assert_true(mx_bytes_add(out, shown.data, shown.size));
        at += n;
    }
    assert_true(mx_utf8_stream_end(&s, out));
    assert_int_equal(s.count, 0);
    mx_bytes_free(&shown);
}

static void check(const char *data, size_t size, uint64_t *seed) {
    mx_bytes whole = {0}, pieces = {0};
    assert_true(mx_bytes_add_lossy(&whole, data, size));
    for (uint32_t longest = 1; longest <= 6; longest++) {
        stream(data, size, seed, longest, &pieces);
        assert_int_equal(pieces.size, whole.size);
        if (whole.size) assert_memory_equal(pieces.data, whole.data, whole.size);
    }
    mx_bytes_free(&whole);
    mx_bytes_free(&pieces);
}

static void test_known(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "plain",
        "gr\xC3\xBC\xC3\x9F",
        "\xF0\x9F\x98\x80\xE2\x82\xAC",
        "\x80",
        "\xC3",
        "\xE2\x82",
        "\xF0\x9F\x98",
        "\xE2\x82\x41",             /* cut by a letter */
        "\xF0\x9F\xF0\x9F\x98\x80", /* cut by a new character */
        "\xE0\x80\x80",             /* overlong */
        "\xED\xA0\x80",             /* a surrogate */
        "\xF4\x90\x80\x80",         /* beyond U+10FFFF */
        "\xC0\xAF\xFE\xFF",
        "\xF1\x80\x80\xE1\x80\xC2",
    };
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check(texts[i], strlen(texts[i]), &seed);
}

static void test_random(void **state) {
    (void)state;
    static const unsigned char favourites[] = {'a',  0x80, 0x9F, 0xA0, 0xBF, 0xC1, 0xC3, 0xE0,
                                               0xE2, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5};
    uint64_t seed = 7;
    for (int n = 0; n < 20000; n++) {
        char data[24];
        size_t size = random_below(&seed, sizeof data + 1);
        for (size_t i = 0; i < size; i++) data[i] = (char)favourites[random_below(&seed, sizeof favourites)];
        check(data, size, &seed);
    }
}

/* A character appears with its last byte, not later. */
static void test_promptness(void **state) {
    (void)state;
    static const char text[] = "\xF0\x9F\x98\x80x\xC3\xBC";
    static const size_t shown[] = {0, 0, 0, 4, 5, 5, 7};
    mx_utf8_stream s = {0};
    mx_bytes out = {0};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        assert_true(mx_utf8_stream_add(&s, text + i, 1, &out));
        assert_int_equal(out.size, shown[i]);
    }
    mx_bytes_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_promptness),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
