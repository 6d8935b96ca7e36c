/* GGUF files: what a small one says, every way in which one can be damaged, and the samples in ../shared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/gguf.h"

/* A file in memory: some tests write thousands. */
static char path[40];
static int descriptor;

static int make_path(void **state) {
    (void)state;
    descriptor = memfd_create("gguf", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return descriptor < 0 ? -1 : 0;
}

static int remove_path(void **state) {
    (void)state;
    return close(descriptor);
}

static void add(mx_bytes *b, const void *data, size_t size) {
    assert_true(mx_bytes_add(b, data, size));
}
static void add_u8(mx_bytes *b, uint8_t v) {
    add(b, &v, 1);
}
static void add_u32(mx_bytes *b, uint32_t v) {
    add(b, &v, 4);
}
static void add_u64(mx_bytes *b, uint64_t v) {
    add(b, &v, 8);
}
static void add_string(mx_bytes *b, const char *s) {
    add_u64(b, strlen(s));
    add(b, s, strlen(s));
}
static void add_key(mx_bytes *b, const char *name, uint32_t kind) {
    add_string(b, name);
    add_u32(b, kind);
}
static void add_header(mx_bytes *b, uint64_t tensors, uint64_t keys) {
    add(b, "GGUF", 4);
    add_u32(b, 3);
    add_u64(b, tensors);
    add_u64(b, keys);
}
static void add_tensor(mx_bytes *b, const char *name, int dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    add_string(b, name);
    add_u32(b, (uint32_t)dims);
    for (int d = 0; d < dims; d++) add_u64(b, ne[d]);
    add_u32(b, type);
    add_u64(b, offset);
}
static void pad(mx_bytes *b, size_t alignment) {
    while (b->size % alignment) add_u8(b, 0);
}

static mx_status open_bytes(const mx_bytes *b, mx_gguf *g, mx_error *error) {
    assert_int_equal(ftruncate(descriptor, 0), 0);
    assert_int_equal(pwrite(descriptor, b->data, b->size, 0), b->size);
    return mx_gguf_open(path, g, error);
}

/* ---- accepted ---------------------------------------------------------------------------------------------------- */

static void add_numbers(mx_bytes *b) {
    add_key(b, "u8", MX_GGUF_U8);
    add_u8(b, 200);
    add_key(b, "i8", MX_GGUF_I8);
    add_u8(b, 200);
    add_key(b, "u16", MX_GGUF_U16);
    add(b, "\xFE\xFF", 2);
    add_key(b, "i16", MX_GGUF_I16);
    add(b, "\xFE\xFF", 2);
    add_key(b, "u32", MX_GGUF_U32);
    add_u32(b, UINT32_MAX);
    add_key(b, "i32", MX_GGUF_I32);
    add_u32(b, UINT32_MAX);
    add_key(b, "f32", MX_GGUF_F32);
    add(b, &(float){-1.5f}, 4);
    add_key(b, "bool", MX_GGUF_BOOL);
    add_u8(b, 1);
    add_key(b, "u64", MX_GGUF_U64);
    add_u64(b, UINT64_MAX);
    add_key(b, "i64", MX_GGUF_I64);
    add_u64(b, UINT64_MAX);
    add_key(b, "f64", MX_GGUF_F64);
    add(b, &(double){4096}, 8);
}

/* 15 keys, 3 tensors; alignment 64. */
static void small_file(mx_bytes *b) {
    mx_bytes_clear(b);
    add_header(b, 3, 15);
    add_numbers(b);
    add_key(b, "text", MX_GGUF_STRING);
    add_string(b, "hello");
    add_key(b, "words", MX_GGUF_ARRAY);
    add_u32(b, MX_GGUF_STRING);
    add_u64(b, 3);
    add_string(b, "one");
    add_string(b, "");
    add_string(b, "three");
    add_key(b, "types", MX_GGUF_ARRAY);
    add_u32(b, MX_GGUF_I32);
    add_u64(b, 2);
    add_u32(b, 1);
    add_u32(b, 3);
    add_key(b, "general.alignment", MX_GGUF_U32);
    add_u32(b, 64);
    add_tensor(b, "norm", 1, (const uint64_t[]){3}, MX_GGUF_TENSOR_F32, 64);
    add_tensor(b, "experts", 3, (const uint64_t[]){64, 2, 2}, MX_GGUF_TENSOR_MXFP4, 128);
    add_tensor(b, "strange", 2, (const uint64_t[]){5, 7}, 12, 0);
    pad(b, 64);
    size_t start = b->size;
    for (int i = 0; i < 128 + 4 * 34; i++) add_u8(b, (uint8_t)i);
    assert_int_equal(b->size - start, 264);
}

static int64_t whole(const mx_gguf *g, const char *key) {
    int64_t out;
    if (!mx_gguf_int64(mx_gguf_find(g, key), INT64_MIN, INT64_MAX, &out)) fail_msg("%s is no whole number", key);
    return out;
}

static double number(const mx_gguf *g, const char *key) {
    double out;
    if (!mx_gguf_double(mx_gguf_find(g, key), &out)) fail_msg("%s is no number", key);
    return out;
}

static void check_small_values(const mx_gguf *g) {
    int64_t i;
    double f;
    assert_int_equal(whole(g, "u8"), 200);
    assert_int_equal(whole(g, "i8"), -56);
    assert_int_equal(whole(g, "u16"), 65534);
    assert_int_equal(whole(g, "i16"), -2);
    assert_int_equal(whole(g, "u32"), UINT32_MAX);
    assert_int_equal(whole(g, "i32"), -1);
    assert_int_equal(whole(g, "i64"), -1);
    assert_int_equal(whole(g, "f64"), 4096);
    assert_true(number(g, "f32") == -1.5 && number(g, "u64") == 0x1p64 && number(g, "i16") == -2);
    assert_false(mx_gguf_int64(mx_gguf_find(g, "u64"), INT64_MIN, INT64_MAX, &i));
    assert_false(mx_gguf_int64(mx_gguf_find(g, "f32"), INT64_MIN, INT64_MAX, &i));
    assert_false(mx_gguf_int64(mx_gguf_find(g, "bool"), 0, 1, &i));
    assert_false(mx_gguf_int64(mx_gguf_find(g, "u8"), 0, 199, &i));
    assert_false(mx_gguf_int64(mx_gguf_find(g, "u8"), 201, 300, &i));
    assert_false(mx_gguf_int64(NULL, 0, 1, &i) || mx_gguf_double(NULL, &f) || mx_gguf_is_string(NULL, ""));
    assert_false(mx_gguf_double(mx_gguf_find(g, "text"), &f) || mx_gguf_int64(mx_gguf_find(g, "text"), 0, 9, &i));
    assert_int_equal(mx_gguf_find(g, "bool")->as.u, 1);
    assert_true(mx_gguf_is_string(mx_gguf_find(g, "text"), "hello"));
    assert_false(mx_gguf_is_string(mx_gguf_find(g, "text"), "hell") || mx_gguf_is_string(mx_gguf_find(g, "u8"), ""));
    assert_null(mx_gguf_find(g, "tex"));
}

static void check_small_arrays(const mx_gguf *g) {
    static const char *const words[] = {"one", "", "three"};
    const mx_gguf_value *v = mx_gguf_find(g, "words");
    uint64_t at = 0;
    mx_gguf_string s;
    assert_int_equal(v->as.array.count, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(mx_gguf_next_string(v, &at, &s));
        assert_int_equal(s.size, strlen(words[i]));
        assert_memory_equal(s.text, words[i], s.size);
    }
    assert_false(mx_gguf_next_string(v, &at, &s));
    at = 0;
    v = mx_gguf_find(g, "types");
    assert_false(mx_gguf_next_string(v, &at, &s) || mx_gguf_next_string(NULL, &at, &s));
    assert_int_equal(v->as.array.kind, MX_GGUF_I32);
    assert_int_equal(v->as.array.count, 2);
    assert_int_equal(mx_load_u32(v->as.array.data + 4), 3);
}

static void test_small(void **state) {
    (void)state;
    mx_bytes b = {0};
    mx_gguf g;
    mx_error error = {0};
    small_file(&b);
    for (int version = 2; version <= 3; version++) {
        b.data[4] = (char)version;
        if (open_bytes(&b, &g, &error) != MX_OK) fail_msg("%s", error.text);
        assert_int_equal(g.version, version);
        assert_int_equal(g.values, 15);
        assert_int_equal(g.tensors, 3);
        check_small_values(&g);
        check_small_arrays(&g);
        const mx_gguf_tensor *t = mx_gguf_find_tensor(&g, "experts");
        assert_true(t->dims == 3 && t->ne[0] == 64 && t->ne[1] == 2 && t->ne[2] == 2 && t->ne[3] == 1);
        assert_int_equal(t->bytes, 4 * 34);
        assert_int_equal(t->data[0], 128);
        assert_int_equal(mx_gguf_find_tensor(&g, "norm")->data[0], 64);
        assert_int_equal(mx_gguf_find_tensor(&g, "norm")->bytes, 12);
        assert_null(mx_gguf_find_tensor(&g, "strange")->data);
        assert_int_equal(mx_gguf_find_tensor(&g, "strange")->bytes, 0);
        assert_null(mx_gguf_find_tensor(&g, "nor"));
        mx_gguf_close(&g);
    }
    mx_gguf_close(&g);
    mx_bytes_free(&b);
}

static void test_type_names(void **state) {
    (void)state;
    assert_string_equal(mx_gguf_type_name(MX_GGUF_TENSOR_Q8_0), "Q8_0");
    assert_string_equal(mx_gguf_type_name(MX_GGUF_TENSOR_MXFP4), "MXFP4");
    assert_string_equal(mx_gguf_type_name(12), "Q4_K");
    assert_null(mx_gguf_type_name(4));
    assert_null(mx_gguf_type_name(123));
    assert_null(mx_gguf_type_name(UINT32_MAX));
}

/* A file of keys alone need not be padded; many strings are normal. */
static void test_vocabulary_only(void **state) {
    (void)state;
    enum { COUNT = 200000 };
    mx_bytes b = {0};
    mx_gguf g;
    mx_error error = {0};
    add_header(&b, 0, 1);
    add_key(&b, "tokens", MX_GGUF_ARRAY);
    add_u32(&b, MX_GGUF_STRING);
    add_u64(&b, COUNT);
    for (int i = 0; i < COUNT; i++) add_string(&b, i % 3 ? "word" : "a longer one");
    if (open_bytes(&b, &g, &error) != MX_OK) fail_msg("%s", error.text);
    uint64_t at = 0;
    mx_gguf_string s;
    int count = 0;
    while (mx_gguf_next_string(&g.value[0], &at, &s)) count++;
    assert_int_equal(count, COUNT);
    mx_gguf_close(&g);
    mx_bytes_free(&b);
}

/* Looking up each of many tensors takes no longer than reading them. */
static void test_many_tensors(void **state) {
    (void)state;
    enum { COUNT = 100000 };
    mx_bytes b = {0};
    mx_gguf g;
    mx_error error = {0};
    char name[40];
    add_header(&b, COUNT, 0);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "blk.%06d.weight", (int)(i * 7919LL % COUNT));
        add_tensor(&b, name, 1, (const uint64_t[]){1}, 12, 0);
    }
    pad(&b, 32);
    if (open_bytes(&b, &g, &error) != MX_OK) fail_msg("%s", error.text);
    clock_t start = clock();
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "blk.%06d.weight", (int)(i * 7919LL % COUNT));
        assert_ptr_equal(mx_gguf_find_tensor(&g, name), &g.tensor[i]);
    }
    assert_true(clock() - start < 5 * CLOCKS_PER_SEC); /* by one after another it takes far longer */
    assert_null(mx_gguf_find_tensor(&g, "blk.000000.weigh"));
    mx_gguf_close(&g);
    mx_bytes_free(&b);
}

/* ---- refused ----------------------------------------------------------------------------------------------------- */

static void expect_refused(const char *what, const mx_bytes *b, mx_status status, const char *says) {
    mx_gguf g;
    mx_error error = {0};
    mx_status found = open_bytes(b, &g, &error);
    mx_gguf_close(&g);
    if (found != status || !strstr(error.text, says) || (b->size && !strstr(error.text, path)))
        fail_msg("%s: status %s, \"%s\"; expected %s, \"%s\"", what, mx_status_name(found), error.text,
                 mx_status_name(status), says);
    assert_null(strchr(error.text, '\n'));
}

/* One change of the small file: at the `skip`-th byte behind the first place where `after` stands (from the start of
 * the file: NULL), `size` bytes become `to`. */
static const struct {
    const char *after;
    int skip;
    const char *to;
    int size;
    mx_status status;
    const char *says;
} damages[] = {
    {NULL, 0, "GGML", 4, MX_INVALID_FILE, "not a GGUF file"},
    {NULL, 4, "\1\0\0\0", 4, MX_UNSUPPORTED, "version 1, expected 2 or 3"},
    {NULL, 4, "\4\0\0\0", 4, MX_UNSUPPORTED, "version 4, expected 2 or 3"},
    {NULL, 4, "\0\0\0\3", 4, MX_UNSUPPORTED, "big-endian"},
    {NULL, 8, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "18446744073709551615 tensors"},
    {NULL, 16, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "18446744073709551615 keys"},
    {NULL, 8, "\0\1", 2, MX_INVALID_FILE, "256 tensors; its "},
    {NULL, 16, "\0\1", 2, MX_INVALID_FILE, "256 keys; its "},
    {NULL, 16, "\0\0\0\0\1", 5, MX_INVALID_FILE, "keys"},
    {NULL, 16, "\x10", 1, MX_INVALID_FILE, "tensor 0: its name has 0 bytes"}, /* a tensor read as a key */
    {NULL, 8, "\4", 1, MX_INVALID_FILE, "tensor 3: its name"},
    {NULL, 24, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "key 0: its name of 18446744073709551615 bytes"},
    {NULL, 24, "\0", 1, MX_INVALID_FILE, "key 0: its name has 0 bytes"},
    {NULL, 32, "u\n", 2, MX_INVALID_FILE, "key 0: its name is not one line"},
    {NULL, 32, "\x7F", 1, MX_INVALID_FILE, "key 0: its name is not one line"},
    {NULL, 32, "\xC3\x28", 2, MX_INVALID_FILE, "key 0: its name is not one line"},
    {NULL, 32, "i", 1, MX_INVALID_FILE, "key i8 is there twice"},
    {"u8", 0, "\15", 1, MX_INVALID_FILE, "key u8: its value has the type 13"},
    {"bool", 4, "\2", 1, MX_INVALID_FILE, "key bool: a bool of value 2"},
    {"text", 4, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 8, MX_INVALID_FILE, "key text: its string goes beyond"},
    {"words", 4, "\11", 1, MX_UNSUPPORTED, "key words: an array of arrays"},
    {"words", 4, "\15", 1, MX_INVALID_FILE, "key words: an array of type 13"},
    {"words", 8, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "key words: an array of 18446744073709551615"},
    {"words", 16, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "key words: string 0 of 3"},
    {"words", 30, "\xFF\xFF", 2, MX_INVALID_FILE, "key words: string 1 of 3"},
    {"types", 4, "\7", 1, MX_INVALID_FILE, "key "}, /* two bools, what follows is shifted */
    {"types", 8, "\0\0\0\0\0\0\0\x40", 8, MX_INVALID_FILE, "key types: an array of 4611686018427387904"},
    {"general.alignment", 4, "\0", 1, MX_INVALID_FILE, "key general.alignment: expected a power of two"},
    {"general.alignment", 4, "\4", 1, MX_INVALID_FILE, "key general.alignment: expected a power of two"},
    {"general.alignment", 4, "\x60", 1, MX_INVALID_FILE, "key general.alignment: expected a power of two"},
    {"general.alignment", 4, "\0\0\x20", 3, MX_INVALID_FILE, "key general.alignment: expected a power of two"},
    {"general.alignment", 0, "\6", 1, MX_INVALID_FILE, "key general.alignment: expected a power of two"},
    {"general.alignment", 4, "\x80", 1, MX_INVALID_FILE, "no multiple of the alignment 128"},
    {"norm", 0, "\0", 1, MX_INVALID_FILE, "tensor norm: 0 dimensions"},
    {"norm", 0, "\5", 1, MX_INVALID_FILE, "tensor norm: 5 dimensions"},
    {"norm", 4, "\0", 1, MX_INVALID_FILE, "tensor norm: dimension 0 is 0"},
    {"norm", 11, "\x80", 1, MX_INVALID_FILE, "tensor norm: dimension 0 is 9223372036854775811"},
    {"norm", 11, "\x7F", 1, MX_INVALID_FILE, "tensor norm: 9151314442816847875 elements of F32 have more than 2^64"},
    {"norm", 10, "\1", 1, MX_INVALID_FILE, "tensor norm: 1125899906842636 bytes at offset 64 go beyond"},
    {"norm", 16, "\x41", 1, MX_INVALID_FILE, "tensor norm: its offset 65 is no multiple of the alignment 64"},
    {"norm", 16, "\xC0\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, MX_INVALID_FILE, "go beyond the end"},
    {"norm", 16, "\x80", 1, MX_INVALID_FILE, "lie over each other"},
    {"norm", 12, "\x27", 1, MX_INVALID_FILE,
     "tensor norm: rows of 3 elements, expected a multiple of MXFP4's block of 32"},
    {"experts", 4, "\x41", 1, MX_INVALID_FILE, "tensor experts: rows of 65 elements"},
    {"experts", 12, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 8, MX_INVALID_FILE, "has more than 2^63 elements"},
    {"experts", 20, "\3", 1, MX_INVALID_FILE, "tensor experts: 204 bytes at offset 128 go beyond"},
    {"strange", 24, "\0\2", 2, MX_INVALID_FILE, "tensor strange: 0 bytes at offset 512 go beyond"},
    {"experts", -7, "strange", 7, MX_INVALID_FILE, "tensor strange is there twice"},
};

static void test_damages(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        mx_bytes b = {0};
        small_file(&b);
        char *at = b.data, name[40];
        if (damages[i].after) {
            at = memmem(b.data, b.size, damages[i].after, strlen(damages[i].after));
            assert_non_null(at);
            at += strlen(damages[i].after);
        }
        memcpy(at + damages[i].skip, damages[i].to, (size_t)damages[i].size);
        snprintf(name, sizeof name, "damage %zu", i);
        expect_refused(name, &b, damages[i].status, damages[i].says);
        mx_bytes_free(&b);
    }
}

static void test_other_refusals(void **state) {
    (void)state;
    mx_bytes b = {0};
    add_header(&b, 0, 1);
    add_u64(&b, 70000);
    for (int i = 0; i < 70000; i++) add_u8(&b, 'k');
    add_u32(&b, MX_GGUF_U8);
    add_u8(&b, 0);
    expect_refused("long key", &b, MX_INVALID_FILE, "has 70000 bytes, expected 1 to 65535");
    mx_bytes_clear(&b);
    add_header(&b, 0, 1);
    add_key(&b, "flags", MX_GGUF_ARRAY);
    add_u32(&b, MX_GGUF_BOOL);
    add_u64(&b, 2);
    add(&b, "\1\7", 2);
    expect_refused("bools", &b, MX_INVALID_FILE, "key flags: element 1 is a bool of value 7");
    mx_bytes_clear(&b);
    add_header(&b, 2, 0); /* names longer than any message */
    char name[300];
    memset(name, 'n', sizeof name);
    name[256] = 0;
    add_tensor(&b, name, 1, (const uint64_t[]){1}, 0, 0);
    add_tensor(&b, name, 1, (const uint64_t[]){1}, 0, 0);
    expect_refused("long name", &b, MX_INVALID_FILE, "tensor 0: its name has 256 bytes, expected 1 to 255");
    mx_bytes_clear(&b);
    add_header(&b, 1, 0);
    add_tensor(&b, "a", 1, (const uint64_t[]){1}, 0, 0);
    expect_refused("padding", &b, MX_INVALID_FILE, "the padding before the tensors");
    mx_bytes_clear(&b);
    for (int i = 0; i < 23; i++) add_u8(&b, 0);
    expect_refused("short", &b, MX_INVALID_FILE, "too short");
    mx_bytes_free(&b);
    mx_gguf g;
    mx_error error;
    assert_int_equal(mx_gguf_open("/nowhere/at/all.gguf", &g, &error), MX_IO);
    mx_gguf_close(&g);
    assert_int_equal(mx_gguf_open("/", &g, &error), MX_INVALID_FILE);
    mx_gguf_close(&g);
}

/* Cut at every byte: refused, never read beyond the end. */
static void test_cut_off(void **state) {
    (void)state;
    mx_bytes b = {0};
    small_file(&b);
    size_t whole_size = b.size;
    for (b.size = 0; b.size < whole_size; b.size++) {
        mx_gguf g;
        mx_error error = {0};
        if (open_bytes(&b, &g, &error) != MX_INVALID_FILE) fail_msg("cut at byte %zu: \"%s\"", b.size, error.text);
        mx_gguf_close(&g);
    }
    mx_bytes_free(&b);
}

/* Every byte of the header in turn holds something else: refused or read, never a crash. */
static void test_any_byte(void **state) {
    (void)state;
    static const uint8_t values[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
    mx_bytes b = {0};
    small_file(&b);
    int refused = 0;
    for (size_t i = 0; i < b.size; i++) {
        char before = b.data[i];
        for (size_t k = 0; k < sizeof values; k++) {
            mx_gguf g;
            mx_error error = {0};
            b.data[i] = (char)values[k];
            if (open_bytes(&b, &g, &error) != MX_OK) refused++;
            mx_gguf_close(&g);
        }
        b.data[i] = before;
    }
    assert_true(refused > 500);
    mx_bytes_free(&b);
}

/* ---- ../shared --------------------------------------------------------------------------------------------------- */

static void test_samples(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int keys, tensors, type;
    } samples[] = {
        {"stories.gguf", 28, 79, MX_GGUF_TENSOR_MXFP4},
        {"random/base-bf16.gguf", 0, 0, MX_GGUF_TENSOR_BF16},
        {"random/base-q8_0.gguf", 0, 0, MX_GGUF_TENSOR_Q8_0},
    };
    const char *shared = getenv("MXRUN_SHARED");
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/checkpoints/%s", shared ? shared : "", samples[i].name);
        if (access(file, R_OK) != 0) {
            print_message("skipped: %s is not there\n", file);
            continue;
        }
        mx_gguf g;
        mx_error error = {0};
        if (mx_gguf_open(file, &g, &error) != MX_OK) fail_msg("%s", error.text);
        assert_true(mx_gguf_is_string(mx_gguf_find(&g, "general.architecture"), "gpt-oss"));
        if (samples[i].keys) assert_int_equal(g.values, samples[i].keys);
        if (samples[i].tensors) assert_int_equal(g.tensors, samples[i].tensors);
        int of_type = 0;
        for (int t = 0; t < g.tensors; t++) {
            assert_non_null(g.tensor[t].data);
            of_type += g.tensor[t].type == (uint32_t)samples[i].type;
        }
        assert_true(of_type > 0);
        mx_gguf_close(&g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),        cmocka_unit_test(test_type_names), cmocka_unit_test(test_vocabulary_only),
        cmocka_unit_test(test_many_tensors), cmocka_unit_test(test_damages),    cmocka_unit_test(test_other_refusals),
        cmocka_unit_test(test_cut_off),      cmocka_unit_test(test_any_byte),   cmocka_unit_test(test_samples),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
