#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"

#define FFFD "\xEF\xBF\xBD"

static uint64_t random_state = 88172645463325252u;
static unsigned random_below(unsigned n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % n;
}

static void assert_bytes(mx_bytes *b, const void *expected, size_t size) {
    assert_int_equal(b->size, size);
    if (size) assert_memory_equal(b->data, expected, size);
    if (b->data) assert_int_equal(b->data[b->size], 0);
    mx_bytes_clear(b);
    assert_int_equal(b->size, 0);
}

static void strings_grow_and_stay_terminated(void **state) {
    (void)state;
    mx_bytes b = {0};
    mx_bytes_clear(&b);
    assert_true(mx_bytes_add(&b, NULL, 0));
    assert_string_equal(b.data, "");
    assert_true(mx_bytes_add(&b, "a\0b", 3));
    assert_true(mx_bytes_add_string(&b, "cd"));
    assert_true(mx_bytes_addf(&b, "%d-%s", 42, "x"));
    assert_bytes(&b, "a\0bcd42-x", 9);
    for (int i = 0; i < 100000; i++) assert_true(mx_bytes_addf(&b, "%c", 'a' + i % 26));
    assert_int_equal(b.size, 100000);
    for (int i = 0; i < 100000; i++) assert_int_equal(b.data[i], 'a' + i % 26);
    mx_bytes_free(&b);
    assert_null(b.data);
    mx_bytes_free(&b);
}

static void sizes_beyond_memory_change_nothing(void **state) {
    (void)state;
    mx_bytes b = {0};
    assert_true(mx_bytes_add_string(&b, "kept"));
    assert_false(mx_bytes_add(&b, "x", SIZE_MAX));
    assert_false(mx_bytes_add(&b, "x", SIZE_MAX - 4));
    assert_false(mx_bytes_add_base64(&b, "x", SIZE_MAX - 1));
    assert_bytes(&b, "kept", 4);
    mx_bytes_free(&b);
}

/* ---- UTF-8, against Unicode's table 3-7 written out ----------------------------------------------------------------
 */
static const struct {
    unsigned char low[4], high[4];
    int length;
} well_formed[] = {
    {{0x00}, {0x7F}, 1},
    {{0xC2, 0x80}, {0xDF, 0xBF}, 2},
    {{0xE0, 0xA0, 0x80}, {0xE0, 0xBF, 0xBF}, 3},
    {{0xE1, 0x80, 0x80}, {0xEC, 0xBF, 0xBF}, 3},
    {{0xED, 0x80, 0x80}, {0xED, 0x9F, 0xBF}, 3},
    {{0xEE, 0x80, 0x80}, {0xEF, 0xBF, 0xBF}, 3},
    {{0xF0, 0x90, 0x80, 0x80}, {0xF0, 0xBF, 0xBF, 0xBF}, 4},
    {{0xF1, 0x80, 0x80, 0x80}, {0xF3, 0xBF, 0xBF, 0xBF}, 4},
    {{0xF4, 0x80, 0x80, 0x80}, {0xF4, 0x8F, 0xBF, 0xBF}, 4},
};

/* Length of the longest start of p that starts some row of the table; *whole tells that the row is complete. */
static int best_row(const unsigned char *p, size_t size, int *whole) {
    int best = 0;
    *whole = 0;
    for (size_t r = 0; r < sizeof well_formed / sizeof *well_formed; r++) {
        int n = 0;
        while (n < well_formed[r].length && (size_t)n < size && p[n] >= well_formed[r].low[n] &&
               p[n] <= well_formed[r].high[n])
            n++;
        if (n > best) {
            best = n;
            *whole = n == well_formed[r].length;
        }
    }
    return best;
}

static void slow_lossy(mx_bytes *out, const unsigned char *p, size_t size) {
    while (size) {
        int whole, n = best_row(p, size, &whole);
        assert_true(whole ? mx_bytes_add(out, p, (size_t)n) : mx_bytes_add(out, FFFD, 3));
        if (!n) n = 1;
        p += n;
        size -= (size_t)n;
    }
}

static void every_code_point_is_encoded(void **state) {
    (void)state;
    mx_bytes b = {0};
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        assert_true(mx_bytes_add_utf8(&b, c));
        int n = (int)b.size;
        const unsigned char *p = (const unsigned char *)b.data;
        assert_int_equal(n, c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4);
        uint32_t back = n == 1 ? p[0] : p[0] & (0xFFu >> (n + 1));
        for (int i = 1; i < n; i++) back = back << 6 | (p[i] & 0x3F);
        assert_int_equal(back, c);
        assert_int_equal(mx_utf8_length(p, b.size), n);
        for (int cut = 1; cut < n; cut++) assert_int_equal(mx_utf8_length(p, (size_t)cut), -cut);
        mx_bytes_clear(&b);
    }
    static const uint32_t no_characters[] = {0xD800, 0xDFFF, 0x110000, 0xFFFFFFFF};
    for (size_t i = 0; i < 4; i++) {
        assert_true(mx_bytes_add_utf8(&b, no_characters[i]));
        assert_bytes(&b, FFFD, 3);
    }
    assert_int_equal(mx_utf8_length("", 0), 0);
    mx_bytes_free(&b);
}

static void known_invalid_parts(void **state) {
    (void)state;
    static const struct {
        const char *in, *out;
    } c[] = {
        {"a\x80z", "a" FFFD "z"},
        {"\xC0\x80", FFFD FFFD}, /* overlong NUL */
        {"\xE2\x82", FFFD},      /* cut off at the end */
        {"\xE2\x82!", FFFD "!"},
        {"\xF0\x9F\x98", FFFD},
        {"\xF0\x9F\x98\xF0\x9F\x98\x80", FFFD "\xF0\x9F\x98\x80"},
        {"\xED\xA0\x80", FFFD FFFD FFFD},          /* a surrogate */
        {"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD}, /* beyond U+10FFFF */
        {"\xE0\x80\xAF", FFFD FFFD FFFD},          /* overlong */
        {"\xFF\xFE", FFFD FFFD},
        {"caf\xC3\xA9", "caf\xC3\xA9"},
    };
    mx_bytes b = {0};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        assert_true(mx_bytes_add_lossy(&b, c[i].in, strlen(c[i].in)));
        assert_bytes(&b, c[i].out, strlen(c[i].out));
    }
    mx_bytes_free(&b);
}

static void random_bytes_agree_with_the_table(void **state) {
    (void)state;
    static const unsigned char leads[] = {0x00, 'a',  0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                                          0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
    mx_bytes ours = {0}, slow = {0};
    for (int round = 0; round < 200000; round++) {
        unsigned char in[24];
        size_t size = random_below(sizeof in + 1);
        for (size_t i = 0; i < size; i++)
            in[i] = random_below(round % 2 ? 16 : 1) ? 'x'
                    : random_below(2)                ? leads[random_below(sizeof leads)]
                                                     : (unsigned char)random_below(256);
        slow_lossy(&slow, in, size);
        assert_true(mx_bytes_add_lossy(&ours, in, size));
        assert_bytes(&ours, slow.data ? slow.data : "", slow.size);
        int whole = 0, n = size ? best_row(in, size, &whole) : 0;
        assert_int_equal(mx_utf8_length(in, size), whole ? n : n && (size_t)n == size ? -n : 0);
        size_t prefix = 0;
        for (int whole_too = 1, step;
             prefix < size && (step = best_row(in + prefix, size - prefix, &whole_too)) && whole_too;)
            prefix += (size_t)step;
        assert_int_equal(mx_utf8_prefix(in, size), prefix);
        assert_int_equal(mx_is_utf8(in, size), prefix == size);
        mx_bytes_clear(&slow);
    }
    mx_bytes_free(&ours);
    mx_bytes_free(&slow);
}

/* ---- JSON strings and base64 ---------------------------------------------------------------------------------------
 */
static void json_strings_are_escaped(void **state) {
    (void)state;
    static const struct {
        const char *in;
        size_t size;
        const char *out;
    } c[] = {
        {"", 0, "\"\""},
        {"plain", 5, "\"plain\""},
        {"\"\\/", 3, "\"\\\"\\\\/\""},
        {"\n\r\t\b\f", 5, "\"\\n\\r\\t\\b\\f\""},
        {"a\0b\x1F\x7F", 5, "\"a\\u0000b\\u001f\\u007f\""},
        {"\xE2\x82\xAC\xE2\x82", 5, "\"\xE2\x82\xAC" FFFD "\""},
        {"\x80x", 2, "\"" FFFD "x\""},
    };
    mx_bytes b = {0};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        assert_true(mx_bytes_add_json(&b, c[i].in, c[i].size));
        assert_bytes(&b, c[i].out, strlen(c[i].out));
    }
    mx_bytes_free(&b);
}

/* Decodes base64 the slow way; returns the number of bytes. */
static size_t slow_base64(const char *text, size_t size, unsigned char *out) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t bits = 0, n = 0;
    unsigned value = 0;
    for (size_t i = 0; i < size && text[i] != '='; i++) {
        value = (value << 6 | (unsigned)(strchr(digit, text[i]) - digit)) & 0xFFFF;
        bits += 6;
        if (bits >= 8) out[n++] = (unsigned char)(value >> (bits -= 8));
    }
    return n;
}

static void base64_round_trips(void **state) {
    (void)state;
    mx_bytes b = {0};
    static const char *const rfc4648[][2] = {{"", ""},
                                             {"f", "Zg=="},
                                             {"fo", "Zm8="},
                                             {"foo", "Zm9v"},
                                             {"foob", "Zm9vYg=="},
                                             {"fooba", "Zm9vYmE="},
                                             {"foobar", "Zm9vYmFy"}};
    for (size_t i = 0; i < 7; i++) {
        assert_true(mx_bytes_add_base64(&b, rfc4648[i][0], strlen(rfc4648[i][0])));
        assert_bytes(&b, rfc4648[i][1], strlen(rfc4648[i][1]));
    }
    for (size_t size = 0; size < 300; size++) {
        unsigned char in[300], back[300];
        for (size_t i = 0; i < size; i++) in[i] = (unsigned char)random_below(256);
        assert_true(mx_bytes_add_base64(&b, in, size));
        assert_int_equal(b.size, (size + 2) / 3 * 4);
        assert_int_equal(slow_base64(b.data, b.size, back), size);
        assert_memory_equal(in, back, size);
        mx_bytes_clear(&b);
    }
    mx_bytes_free(&b);
}

/* ---- files ---------------------------------------------------------------------------------------------------------
 */
static void files_are_read_whole(void **state) {
    (void)state;
    char path[] = "/tmp/mxrun-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    enum { SIZE = 300001 };
    char *content = malloc(SIZE);
    assert_non_null(content);
    for (int i = 0; i < SIZE; i++) content[i] = (char)random_below(256);
    assert_int_equal(write(fd, content, SIZE), SIZE);
    close(fd);
    mx_bytes b;
    mx_error error;
    assert_int_equal(mx_read_file(path, SIZE, &b, &error), MX_OK);
    assert_bytes(&b, content, SIZE);
    mx_bytes_free(&b);
    assert_int_equal(mx_read_file(path, SIZE - 1, &b, &error), MX_INVALID_FILE);
    assert_non_null(strstr(error.text, path));
    assert_null(b.data);
    unlink(path);
    free(content);
    assert_int_equal(mx_read_file(path, 10, &b, &error), MX_IO);
    assert_non_null(strstr(error.text, "No such file"));
    assert_int_equal(mx_read_file("/", 10, &b, &error), MX_IO);
    assert_null(b.data);
}

static void unaligned_loads(void **state) {
    (void)state;
    static const unsigned char raw[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    assert_int_equal(mx_load_u16(raw + 1), 0x0201);
    assert_int_equal(mx_load_u32(raw + 1), 0x04030201);
    assert_true(mx_load_u64(raw + 1) == 0x0807060504030201u);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_grow_and_stay_terminated),
        cmocka_unit_test(sizes_beyond_memory_change_nothing),
        cmocka_unit_test(every_code_point_is_encoded),
        cmocka_unit_test(known_invalid_parts),
        cmocka_unit_test(random_bytes_agree_with_the_table),
        cmocka_unit_test(json_strings_are_escaped),
        cmocka_unit_test(base64_round_trips),
        cmocka_unit_test(files_are_read_whole),
        cmocka_unit_test(unaligned_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
