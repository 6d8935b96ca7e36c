/* Encoding and decoding: the golden sets, special tokens, texts that strain the splitting and merging, threads.
 * With the argument gguf or metal: what depends on the file, with the same vocabularies as files of that kind. */
#include "convert.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tokenizer/bpe.h"
#include "tokenizer/split.h"
#include "tokenizer/vocabulary.h"

#define STORIES   "tools/stories/checkpoint"
#define PUBLISHED "data/tokenizer/tokenizer.json"

/* ---- kinds of files ---------------------------------------------------------------------------------------------- */

static enum { AS_JSON, AS_GGUF, AS_METAL } kind;

enum { STORIES_IDS = 4096, PUBLISHED_IDS = 201088, PUBLISHED_METAL_IDS = 200014 };

/* A vocabulary as a file of the kind under test; `json` is a tokenizer.json. Valid until the next call for the same
 * vocabulary. */
static const char *in_kind(const char *json, bool published) {
    static char path[2][4096], made[2][4096];
    char *out = path[published];
    if (out[0] && strcmp(made[published], json) == 0) return out;
    const char *file = kind == AS_GGUF    ? gguf_file(json, published ? PUBLISHED_IDS : STORIES_IDS)
                       : kind == AS_METAL ? metal_file(json, published ? PUBLISHED_METAL_IDS : STORIES_IDS)
                                          : json;
    snprintf(made[published], sizeof made[published], "%s", json);
    if (kind == AS_JSON) {
        snprintf(out, sizeof path[0], "%s", file);
    } else {
        snprintf(out, sizeof path[0], "%s.%d", file, published);
        assert_int_equal(rename(file, out), 0);
    }
    return out;
}

static const char *stories(void) {
    static char path[4096];
    snprintf(path, sizeof path, "%s", source_path(STORIES "/tokenizer.json"));
    return in_kind(path, false);
}

/* NULL: it is not there. */
static const char *published(void) {
    static char path[4096];
    const char *json = shared_path(PUBLISHED);
    if (!json) return NULL;
    snprintf(path, sizeof path, "%s", json);
    return in_kind(path, true);
}

/* ---- golden sets ------------------------------------------------------------------------------------------------- */

typedef struct golden {
    const mx_tokenizer *t;
    bool special;
    mx_ids ids;
    mx_bytes bytes;
} golden;

static void golden_ids(golden *g, const mx_json *line) {
    const mx_json *list = mx_json_get(line, "ids");
    assert_non_null(list);
    g->ids.count = 0;
    for (const mx_json *v = list->child; v; v = v->next) {
        int64_t id;
        assert_true(mx_json_int64(v, &id));
        assert_true(mx_ids_add(&g->ids, (int32_t)id));
    }
}

static void check_text_line(void *user, const mx_json *line) {
    golden *g = user;
    const mx_json *text = mx_json_get(line, "text");
    bool special = g->special;
    mx_json_bool(mx_json_get(line, "special"), &special);
    golden_ids(g, line);
    check_ids(g->t, text->text, text->size, special, g->ids.data, g->ids.count);
    decode(g->t, &g->ids, &g->bytes);
    assert_int_equal(g->bytes.size, text->size);
    if (text->size) assert_memory_equal(g->bytes.data, text->text, text->size);
}

static void check_decode_line(void *user, const mx_json *line) {
    golden *g = user;
    golden_ids(g, line);
    decode(g->t, &g->ids, &g->bytes);
    mx_bytes base64 = {0};
    assert_true(mx_bytes_add_base64(&base64, g->bytes.data, g->bytes.size));
    assert_string_equal(base64.data ? base64.data : "", mx_json_get(line, "bytes_b64")->text);
    mx_bytes_free(&base64);
}

static void check_invalid_line(void *user, const mx_json *line) {
    golden *g = user;
    const mx_json *hex = mx_json_get(line, "bytes_hex");
    mx_bytes_clear(&g->bytes);
    for (size_t i = 0; i + 1 < hex->size; i += 2) {
        char digits[3] = {hex->text[i], hex->text[i + 1], 0}, byte = (char)strtol(digits, NULL, 16);
        assert_true(mx_bytes_add(&g->bytes, &byte, 1));
    }
    golden_ids(g, line);
    check_ids(g->t, g->bytes.data, g->bytes.size, false, g->ids.data, g->ids.count);
}

static void run_golden(const char *tokenizer, const char *path, bool special, int lines,
                       void (*check)(void *user, const mx_json *line)) {
    mx_tokenizer *t = open_or_fail(tokenizer);
    golden g = {.t = t, .special = special};
    assert_int_equal(for_each_line(path, check, &g), lines);
    mx_ids_free(&g.ids);
    mx_bytes_free(&g.bytes);
    mx_tokenizer_close(t);
}

static void test_stories_golden(void **state) {
    (void)state;
    const char *path = stories();
    run_golden(path, source_path("tests/data/stories.tokenizer_golden.jsonl"), false, 504, check_text_line);
}

static void run_published(const char *file, bool special, int lines, void (*check)(void *user, const mx_json *line)) {
    const char *path = published(), *golden_file = path ? shared_path(file) : NULL;
    if (!golden_file) skip();
    run_golden(path, golden_file, special, lines, check);
}

static void test_published_golden(void **state) {
    (void)state;
    run_published("data/tokenizer/tokenizer_golden.jsonl", false, 2000, check_text_line);
}
static void test_published_special(void **state) {
    (void)state;
    run_published("data/tokenizer/tokenizer_special_golden.jsonl", true, 200, check_text_line);
}
static void test_published_decode(void **state) {
    (void)state;
    run_published("data/tokenizer/tokenizer_decode_golden.jsonl", false, 500, check_decode_line);
}
static void test_published_invalid(void **state) {
    (void)state;
    run_published("data/tokenizer/tokenizer_invalid_utf8.jsonl", false, 46, check_invalid_line);
}

/* Every id means the same as in the tokenizer.json that the file was made of. */
static void check_same_tokens(const char *json, const char *path) {
    mx_tokenizer *a = open_or_fail(json), *b = open_or_fail(path);
    assert_int_equal(mx_tokenizer_size(a), mx_tokenizer_size(b));
    for (int32_t id = 0; id < mx_tokenizer_size(a); id++) {
        size_t size, other;
        const char *text = mx_token_bytes(a, id, &size), *found = mx_token_bytes(b, id, &other);
        if (size != other || mx_is_special(a, id) != mx_is_special(b, id) || (size && memcmp(text, found, size) != 0))
            fail_msg("id %d: %.*s, expected %.*s", (int)id, (int)other, found, (int)size, text);
    }
    mx_harmony_ids ids = mx_tokenizer_harmony_ids(a), other_ids = mx_tokenizer_harmony_ids(b);
    assert_memory_equal(&ids, &other_ids, sizeof ids);
    mx_tokenizer_close(a);
    mx_tokenizer_close(b);
}

static void test_same_tokens(void **state) {
    (void)state;
    char json[4096];
    snprintf(json, sizeof json, "%s", source_path(STORIES "/tokenizer.json"));
    check_same_tokens(json, stories());
    const char *path = published();
    if (!path) skip();
    snprintf(json, sizeof json, "%s", shared_path(PUBLISHED));
    check_same_tokens(json, path);
}

static void test_stories_gguf(void **state) {
    (void)state;
    const char *path = shared_path("checkpoints/stories.gguf");
    if (!path) skip();
    char gguf[4096];
    snprintf(gguf, sizeof gguf, "%s", path);
    check_same_tokens(source_path(STORIES "/tokenizer.json"), gguf);
    run_golden(gguf, source_path("tests/data/stories.tokenizer_golden.jsonl"), false, 504, check_text_line);
}

/* ---- special tokens ---------------------------------------------------------------------------------------------- */

static mx_tokenizer *open_small(void (*change)(mx_bytes *)) {
    mx_bytes json = {0};
    small_tokenizer(&json);
    if (change) change(&json);
    mx_tokenizer *t = open_or_fail(scratch_file("tokenizer.json", json.data, json.size));
    mx_bytes_free(&json);
    return t;
}

#define CHECK(t, text, special, ...)                                                                                   \
    do {                                                                                                               \
        const int32_t expected[] = {__VA_ARGS__};                                                                      \
        check_ids(t, text, strlen(text), special, expected, sizeof expected / sizeof *expected);                       \
    } while (0)

static void test_special(void **state) {
    (void)state;
    mx_tokenizer *t = open_small(NULL);
    CHECK(t, "<|start|>ab<|end|>", true, 300, 256, 301);
    CHECK(t, "<|end|>><|end|><|end|", true, 302, 301, '<', '|', 'e', 'n', 'd', '|'); /* the longest one */
    CHECK(t, "<|<|start|>", true, '<', '|', 300);
    CHECK(t, "<|end|>", false, '<', '|', 'e', 'n', 'd', '|', '>');
    CHECK(t, "<tool>", true, 303);
    assert_int_equal(mx_special_id(t, "<|start|>"), 300);
    assert_int_equal(mx_special_id(t, "<|start|"), -1);
    assert_int_equal(mx_special_id(t, ""), -1);
    assert_int_equal(mx_special_id(t, "ab"), -1);
    assert_true(mx_is_special(t, 300));
    assert_false(mx_is_special(t, 303));
    assert_false(mx_is_special(t, 'a'));
    assert_false(mx_is_special(t, -1));
    assert_false(mx_is_special(t, INT32_MAX));
    assert_int_equal(mx_tokenizer_size(t), 304);
    size_t size = 7;
    assert_null(mx_token_bytes(t, 280, &size)); /* no token has it */
    assert_int_equal(size, 0);
    assert_null(mx_token_bytes(t, -1, &size));
    assert_null(mx_token_bytes(t, 304, &size));
    assert_memory_equal(mx_token_bytes(t, 300, &size), "<|start|>", 9);
    assert_int_equal(size, 9);
    mx_harmony_ids h = mx_tokenizer_harmony_ids(t);
    assert_int_equal(h.start, 300);
    assert_int_equal(h.end, 301);
    assert_int_equal(h.call, -1);
    mx_tokenizer_close(t);
}

static void as_published(mx_bytes *json) {
    replace(json, "\"id\":300", "\"id\":200006");
    replace(json, "\"id\":303,\"content\":\"<tool>\"", "\"id\":200020,\"content\":\"<tool>\"");
}

/* Where <|start|> is 200006, ids up to 201088 that the file leaves out are reserved tokens. */
static void test_reserved(void **state) {
    (void)state;
    mx_tokenizer *t = open_small(as_published);
    assert_int_equal(mx_tokenizer_size(t), 201089);
    size_t size;
    assert_null(mx_token_bytes(t, 200018, &size));
    assert_memory_equal(mx_token_bytes(t, 200019, &size), "<|reserved_200019|>", 19);
    assert_memory_equal(mx_token_bytes(t, 200020, &size), "<tool>", 6);
    assert_memory_equal(mx_token_bytes(t, 201088, &size), "<|reserved_201088|>", 19);
    assert_true(mx_is_special(t, 201088));
    CHECK(t, "<|reserved_201087|><|reserved_200020|>", true, 201087, '<', '|', 'r', 'e', 's', 'e', 'r', 'v', 'e', 'd',
          '_', '2', '0', '0', '0', '2', '0', '|', '>');
    mx_tokenizer_close(t);
}

static void with_ignore_merges(mx_bytes *json) {
    replace(json, "\"ignore_merges\":false", "\"ignore_merges\":true");
}

static void test_ignore_merges(void **state) {
    (void)state;
    mx_tokenizer *t = open_small(NULL);
    CHECK(t, "xyz abc ab", false, 'x', 'y', 'z', ' ', 257, ' ', 256);
    mx_tokenizer_close(t);
    t = open_small(with_ignore_merges);
    CHECK(t, "xyz xyz", false, 259, ' ', 'x', 'y', 'z');
    mx_tokenizer_close(t);
}

/* The pieces of `text`, with a bar between. */
static void check_split(const char *pattern, const char *text, const char *expected) {
    mx_splitter *s;
    mx_split_state walk;
    mx_error error = {0};
    mx_bytes found = {0};
    if (mx_splitter_create(pattern, strlen(pattern), &s, &error) != MX_OK) fail_msg("%s", error.text);
    assert_int_equal(mx_split_open(&walk, s, &error), MX_OK);
    mx_split_begin(&walk, text, strlen(text));
    const char *piece;
    size_t size;
    while (mx_split_next(&walk, &piece, &size, &error) == MX_OK && size)
        assert_true(mx_bytes_add(&found, "|", found.size > 0) && mx_bytes_add(&found, piece, size));
    assert_string_equal(found.data, expected);
    mx_split_close(&walk);
    mx_splitter_free(s);
    mx_bytes_free(&found);
}

static void test_split(void **state) {
    (void)state;
    /* what the pattern skips is a piece of its own */
    check_split("\\p{L}+|\\p{N}{3}", "ab12cd345e67", "ab|12|cd|345|e|67");
    check_split("x*", "axxb", "a|xx|b");
    check_split("[^]x]+|[]]", "ab]xc", "ab|]|x|c");
    /* \s and \S are the White_Space property, inside classes and outside: U+180E is none */
    check_split("[^\\s]+|\\s", "a\xE1\xA0\x8E_\xE3\x80\x80_", "a\xE1\xA0\x8E_|\xE3\x80\x80|_");
    check_split("\\S+|\\s", "a\xE1\xA0\x8E_\xC2\x85_", "a\xE1\xA0\x8E_|\xC2\x85|_");
    check_split("[\\S]+|[\\s]", "a\xE1\xA0\x8E_\xC2\xA0_", "a\xE1\xA0\x8E_|\xC2\xA0|_");
    /* Unicode 15 and 16: U+1C89 Lu, U+1C8A Ll, U+31350 Lo, U+10D4E Lm, U+10D40 Nd, U+0897 Mn */
    check_split("\\p{Lu}+|.", "AA\xE1\xB2\x89\xE1\xB2\x8A", "AA\xE1\xB2\x89|\xE1\xB2\x8A");
    check_split("[\\p{Ll}\\p{Lo}]+|.", "z\xF0\xB1\x8D\x90\xE1\xB2\x8A\xE1\xB2\x89",
                "z\xF0\xB1\x8D\x90\xE1\xB2\x8A|\xE1\xB2\x89");
    check_split("\\p{L}+|\\P{L}+", "1\xF0\x90\xB5\x80\xF0\x90\xB5\x8Ez", "1\xF0\x90\xB5\x80|\xF0\x90\xB5\x8Ez");
    check_split("\\p{N}+|[^\\p{N}]+", "1\xF0\x90\xB5\x80\xF0\x90\xB5\x8Ez", "1\xF0\x90\xB5\x80|\xF0\x90\xB5\x8Ez");
    check_split("\\p{L}\\p{M}*|\\p{Lm}", "z\xE0\xA2\x97z", "z\xE0\xA2\x97|z");
    /* the long s is an s in any case */
    check_split("(?i:'s)|.", "x'\xC5\xBF'S", "x|'\xC5\xBF|'S");
}

/* Merges in a row with the same result have one rank, so that the leftmost goes first. */
static void test_ranks(void **state) {
    (void)state;
    mx_bytes json = {0};
    mx_vocabulary v;
    mx_error error = {0};
    small_tokenizer(&json);
    replace(&json, "\"xyz\":259", "\"bc\":259");
    replace(&json, "[\"ab\",\"c\"]", "[\"b\",\"c\"],[\"ab\",\"c\"],[\"a\",\"bc\"]");
    if (mx_vocabulary_parse("small", json.data, json.size, &v, &error) != MX_OK) fail_msg("%s", error.text);
    assert_int_equal(mx_vocabulary_merge(&v, 'a', 'b')->rank, 0);
    assert_int_equal(mx_vocabulary_merge(&v, 'b', 'c')->rank, 1);
    assert_int_equal(mx_vocabulary_merge(&v, 256, 'c')->rank, 2);
    assert_int_equal(mx_vocabulary_merge(&v, 'a', 259)->rank, 2);
    assert_int_equal(mx_vocabulary_merge(&v, 'a', 259)->result, 257);
    assert_int_equal(mx_vocabulary_merge(&v, ' ', 'a')->rank, 4);
    assert_null(mx_vocabulary_merge(&v, 'c', 'a'));
    mx_vocabulary_release(&v);
    mx_bytes_free(&json);
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

/* tiktoken's definition: the neighbours whose bytes together are the token of the lowest id. */
static void merge_by_rank(const mx_vocabulary *v, mx_ids *out) {
    for (;;) {
        uint32_t best = MX_NO_ID;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < out->count; i++) {
            char text[1024];
            size_t size = 0;
            for (int64_t k = i; k <= i + 1; k++) {
                uint32_t begin = v->offset[out->data[k]], end = v->offset[out->data[k] + 1];
                memcpy(text + size, v->text + begin, end - begin);
                size += end - begin;
            }
            uint32_t id = mx_vocabulary_find(v, mx_token_hash(text, size), text, size);
            if (id >= best) continue;
            best = id;
            at = i;
        }
        if (best == MX_NO_ID) return;
        out->data[at] = (int32_t)best;
        memmove(out->data + at + 1, out->data + at + 2, (size_t)(out->count - at - 2) * sizeof *out->data);
        out->count--;
    }
}

/* The definition, word for word. */
static void merge_by_definition(const mx_vocabulary *v, const unsigned char *piece, size_t size, mx_ids *out) {
    out->count = 0;
    for (size_t i = 0; i < size; i++) assert_true(mx_ids_add(out, (int32_t)v->header->byte_id[piece[i]]));
    if (kind == AS_METAL) {
        merge_by_rank(v, out);
        return;
    }
    for (;;) {
        const mx_merge_slot *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < out->count; i++) {
            const mx_merge_slot *m = mx_vocabulary_merge(v, (uint32_t)out->data[i], (uint32_t)out->data[i + 1]);
            if (!m || (best && best->rank <= m->rank)) continue;
            best = m;
            at = i;
        }
        if (!best) return;
        out->data[at] = (int32_t)best->result;
        memmove(out->data + at + 1, out->data + at + 2, (size_t)(out->count - at - 2) * sizeof *out->data);
        out->count--;
    }
}

static void check_merging(const char *path, int pieces) {
    mx_error error = {0};
    mx_vocabulary v;
    if (mx_vocabulary_open(path, &v, &error) != MX_OK) fail_msg("%s", error.text);
    static const char *const alphabets[] = {"a", " ", "ab", "eth ", "aeiounst rlhd.", "= -*/\n", NULL};
    mx_bpe_scratch scratch = {0};
    mx_ids expected = {0}, found = {0};
    uint64_t seed = 0x2545F4914F6CDD1D;
    for (int n = 0; n < pieces; n++) {
        unsigned char piece[300];
        size_t size = 1 + random_below(&seed, n % 4 ? 80 : sizeof piece); /* 64 is where the ways part */
        const char *alphabet = alphabets[n % 7];
        for (size_t i = 0; i < size; i++) {
            uint32_t any = random_bits(&seed);
            piece[i] = (unsigned char)(alphabet ? (uint32_t)alphabet[any % strlen(alphabet)] : any);
        }
        merge_by_definition(&v, piece, size, &expected);
        found.count = 0;
        assert_int_equal(mx_bpe(&v, (const char *)piece, size, &scratch, &found, &error), MX_OK);
        assert_int_equal(found.count, expected.count);
        assert_memory_equal(found.data, expected.data, (size_t)found.count * sizeof *found.data);
    }
    mx_bpe_scratch_free(&scratch);
    mx_ids_free(&expected);
    mx_ids_free(&found);
    mx_vocabulary_release(&v);
}

static void test_merging(void **state) {
    (void)state;
    check_merging(stories(), 2000);
}
static void test_merging_published(void **state) {
    (void)state;
    const char *path = published();
    if (!path) skip();
    check_merging(path, 2000);
}

/* ---- strain ------------------------------------------------------------------------------------------------------ */

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Encodes a megabyte and back. Quadratic work would take minutes. `ids`: the known number of tokens, or -1. */
static void check_megabyte(const mx_tokenizer *t, const char *name, const mx_bytes *text, int64_t ids) {
    mx_ids out = {0};
    mx_error error = {0};
    mx_bytes back = {0}, expected = {0};
    double start = cpu_seconds();
    if (mx_encode(t, text->data, text->size, &out, &error) != MX_OK) fail_msg("%s: %s", name, error.text);
    double seconds = cpu_seconds() - start;
    printf("%-12s %lld tokens, %.3f s\n", name, (long long)out.count, seconds);
    if (ids >= 0) assert_int_equal(out.count, ids);
    assert_true(seconds < 20);
    decode(t, &out, &back);
    assert_true(mx_bytes_add_lossy(&expected, text->data, text->size));
    assert_int_equal(back.size, expected.size);
    assert_memory_equal(back.data, expected.data, back.size);
    mx_bytes_free(&back);
    mx_bytes_free(&expected);
    mx_ids_free(&out);
}

static void check_strain(const char *path, bool published) {
    static const struct {
        const char *name, *unit, *tail;
        int64_t ids; /* of the published vocabulary, as tiktoken answers or, where its stack ends, by pieces */
    } cases[] = {
        {"a", "a", "", 131072},
        {"A", "A", "", 131072},
        {"spaces", " ", "", 8192},
        {"spaces, x", " ", "x", 8194},
        {"emoji", "\xF0\x9F\x98\x80", "", 262144},
        {"newlines", "\n", "", 65536},
        {"newline space", "\n ", "", 262145},
        {"space newline", " \n", "", 262144},
        {"space return", " \r", "x", 1048577},
        {"marks", "\xCC\x81", "A", 524289},
        {"letters", "A\xE4\xB8\xAD", "", 524288},
        {"dots", ".", "", 16384},
        {"digits", "7", "", 349526},
        {"U+3000", "\xE3\x80\x80", "", 21846},
        {"U+180E", "\xE1\xA0\x8E", "", 1048575},
        {"new letters", "\xF0\xB1\x8D\x90", "", 1048576},
        {"<", "<", "", 131072},
    };
    mx_tokenizer *t = open_or_fail(path);
    mx_bytes text = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t unit = strlen(cases[i].unit);
        mx_bytes_clear(&text);
        while (text.size + unit <= 1 << 20) assert_true(mx_bytes_add(&text, cases[i].unit, unit));
        assert_true(mx_bytes_add_string(&text, cases[i].tail));
        check_megabyte(t, cases[i].name, &text, published ? cases[i].ids : -1);
    }
    uint64_t seed = 99;
    mx_bytes_clear(&text);
    for (int i = 0; i < 1 << 18; i++) {
        uint32_t four = random_bits(&seed);
        assert_true(mx_bytes_add(&text, &four, 4));
    }
    check_megabyte(t, "random bytes", &text, -1);
    mx_bytes_free(&text);
    mx_tokenizer_close(t);
}

static void test_strain(void **state) {
    (void)state;
    check_strain(source_path(STORIES), false);
}
static void test_strain_published(void **state) {
    (void)state;
    const char *path = shared_path(PUBLISHED);
    if (!path) skip();
    check_strain(path, true);
}

/* Ids are appended, and a text that was repaired is the same as one that was spelled so. */
static void test_appending(void **state) {
    (void)state;
    mx_tokenizer *t = open_small(NULL);
    mx_ids ids = {0};
    assert_int_equal(mx_encode(t, "ab", 2, &ids, NULL), MX_OK);
    assert_int_equal(mx_encode(t, NULL, 0, &ids, NULL), MX_OK);
    assert_int_equal(mx_encode(t, "\0abc\xFF", 5, &ids, NULL), MX_OK);
    const int32_t expected[] = {256, 0, 257, 0xEF, 0xBF, 0xBD};
    assert_int_equal(ids.count, 6);
    assert_memory_equal(ids.data, expected, sizeof expected);
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

typedef struct shared_work {
    const mx_tokenizer *t;
    mx_bytes text;
    mx_ids expected;
} shared_work;

static void *encode_repeatedly(void *arg) {
    const shared_work *w = arg;
    for (int i = 0; i < 20; i++) {
        mx_ids ids = {0};
        bool same = mx_encode(w->t, w->text.data, w->text.size, &ids, NULL) == MX_OK &&
                    ids.count == w->expected.count &&
                    memcmp(ids.data, w->expected.data, (size_t)ids.count * sizeof *ids.data) == 0;
        mx_ids_free(&ids);
        if (!same) return arg;
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    mx_tokenizer *t = open_or_fail(source_path(STORIES));
    shared_work w = {.t = t};
    uint64_t seed = 5;
    for (int i = 0; i < 5000; i++) {
        static const char *const words[] = {"the ", "frog ", "said",     ", ",      "lantern ",
                                            "\n",   "  ",    "\xC3\xBC", "aaaaaaaa"};
        assert_true(mx_bytes_add_string(&w.text, words[random_below(&seed, 9)]));
    }
    assert_int_equal(mx_encode(t, w.text.data, w.text.size, &w.expected, NULL), MX_OK);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_repeatedly, &w), 0);
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    mx_bytes_free(&w.text);
    mx_ids_free(&w.expected);
    mx_tokenizer_close(t);
}

int main(int argc, char **argv) {
    /* the cache has a test of its own; here it must not reach the user's */
    setenv("XDG_CACHE_HOME", scratch_folder(), 1);
    const struct CMUnitTest of_files[] = {
        cmocka_unit_test(test_stories_golden),    cmocka_unit_test(test_published_golden),
        cmocka_unit_test(test_published_special), cmocka_unit_test(test_published_decode),
        cmocka_unit_test(test_published_invalid), cmocka_unit_test(test_merging),
        cmocka_unit_test(test_merging_published),
    };
    const struct CMUnitTest once[] = {
        cmocka_unit_test(test_special),       cmocka_unit_test(test_reserved),
        cmocka_unit_test(test_ignore_merges), cmocka_unit_test(test_split),
        cmocka_unit_test(test_ranks),         cmocka_unit_test(test_appending),
        cmocka_unit_test(test_strain),        cmocka_unit_test(test_strain_published),
        cmocka_unit_test(test_threads),
    };
    const struct CMUnitTest converted[] = {cmocka_unit_test(test_same_tokens)};
    const struct CMUnitTest samples[] = {cmocka_unit_test(test_stories_gguf)};
    if (argc > 1) kind = strcmp(argv[1], "gguf") == 0 ? AS_GGUF : AS_METAL;
    int failed = cmocka_run_group_tests(of_files, NULL, NULL);
    if (kind == AS_JSON) failed += cmocka_run_group_tests(once, NULL, NULL);
    if (kind != AS_JSON) failed += cmocka_run_group_tests(converted, NULL, NULL);
    if (kind == AS_GGUF) failed += cmocka_run_group_tests(samples, NULL, NULL);
    return failed;
}
