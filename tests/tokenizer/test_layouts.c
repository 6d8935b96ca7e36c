/* Tokenizers in GGUF files and model.bin: what is refused, and how a folder's tokenizer is found. */
#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static mx_json_document *small; /* small_tokenizer, and with the ids 300..303 in 304 */
enum { SMALL_IDS = 304 };

static int make_small(void **state) {
    (void)state;
    mx_bytes json = {0};
    small_tokenizer(&json);
    mx_status status = mx_json_parse("small", json.data, json.size, &small, NULL);
    mx_bytes_free(&json);
    return status;
}

static int free_small(void **state) {
    (void)state;
    mx_json_free(small);
    return 0;
}

static void check_small(const char *path) {
    mx_tokenizer *t = open_or_fail(path);
    check_ids(t, "ab abc\xC3\xBC", 8, false, (const int32_t[]){256, ' ', 257, 0xC3, 0xBC}, 5);
    check_ids(t, "<|end|>><tool>", 14, true, (const int32_t[]){302, 303}, 2);
    assert_true(mx_is_special(t, 300));
    assert_false(mx_is_special(t, 303));
    size_t size;
    assert_null(mx_token_bytes(t, 280, &size)); /* [PAD280], which is none */
    assert_int_equal(mx_special_id(t, "[PAD280]"), -1);
    assert_int_equal(mx_tokenizer_size(t), SMALL_IDS);
    mx_tokenizer_close(t);
}

static void expect_refused(const char *name, const mx_bytes *file, mx_status status, const char *says) {
    mx_tokenizer *t;
    mx_error error = {0};
    const char *path = scratch_file(name, file->data, file->size);
    mx_status found = mx_tokenizer_open(path, &t, &error);
    if (found != status || !strstr(error.text, says) || !strstr(error.text, name) || strchr(error.text, '\n'))
        fail_msg("%s: %s; expected %s: %s", mx_status_name(found), error.text, mx_status_name(status), says);
    assert_null(t);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

#define U32(v)  "\4\0\0\0" v
#define WORD(n) "\10\0\0\0" n "\0\0\0\0\0\0\0"
#define STRINGS "\11\0\0\0\10\0\0\0"
#define INTS    "\11\0\0\0\5\0\0\0"

static void test_gguf(void **state) {
    (void)state;
    static const gguf_change split[] = {{"tokenizer.ggml.pre", WORD("\5") "o200k", 17}};
    for (int changes = 0; changes < 2; changes++) {
        mx_bytes file = {0};
        tokenizer_gguf_changed(mx_json_root(small), SMALL_IDS, split, changes, &file);
        check_small(scratch_file("small.gguf", file.data, file.size));
        check_small(scratch_file("without an end", file.data, file.size)); /* told by its first bytes */
        mx_bytes_free(&file);
    }
}

static const struct {
    gguf_change change;
    mx_status status;
    const char *says;
} gguf_cases[] = {
    {{"tokenizer.ggml.model", NULL, 0}, MX_INVALID_FILE, "lacks the key tokenizer.ggml.model"},
    {{"tokenizer.ggml.model", WORD("\5") "llama", 17}, MX_UNSUPPORTED, "llama, expected gpt2"},
    {{"tokenizer.ggml.model", U32("\1\0\0\0"), 8}, MX_UNSUPPORTED, "no string, expected gpt2"},
    {{"tokenizer.ggml.pre", NULL, 0}, MX_UNSUPPORTED, "tokenizer.ggml.pre: no string, expected gpt-4o"},
    {{"tokenizer.ggml.pre", WORD("\5") "qwen2", 17}, MX_UNSUPPORTED, "qwen2, expected gpt-4o"},
    {{"tokenizer.ggml.pre", WORD("\5") "a\nb\nc", 17}, MX_UNSUPPORTED, "pre: a, expected gpt-4o"},
    {{"tokenizer.ggml.tokens", NULL, 0}, MX_INVALID_FILE, "lacks the key tokenizer.ggml.tokens"},
    {{"tokenizer.ggml.tokens", U32("\1\0\0\0"), 8}, MX_INVALID_FILE, "tokens: expected an array of strings"},
    {{"tokenizer.ggml.tokens", INTS "\0\0\0\0\0\0\0\0", 16}, MX_INVALID_FILE, "tokens: expected an array of strings"},
    {{"tokenizer.ggml.tokens", STRINGS "\0\0\0\0\0\0\0\0", 16}, MX_INVALID_FILE, "0 tokenizer.ggml.tokens and 304"},
    {{"tokenizer.ggml.token_type", NULL, 0}, MX_INVALID_FILE, "lacks the key tokenizer.ggml.token_type"},
    {{"tokenizer.ggml.token_type", STRINGS "\0\0\0\0\0\0\0\0", 16}, MX_INVALID_FILE, "expected an array of int32"},
    {{"tokenizer.ggml.merges", NULL, 0}, MX_INVALID_FILE, "lacks the key tokenizer.ggml.merges"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0ab", 26},
     MX_INVALID_FILE,
     "merges[0]: expected"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24}, MX_INVALID_FILE, "merges[0]: expected"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0a ", 26},
     MX_INVALID_FILE,
     "merges[0]: expected"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0 a", 26},
     MX_INVALID_FILE,
     "merges[0]: expected"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0a b c", 29}, MX_INVALID_FILE, "merges[0]: exp"},
    {{"tokenizer.ggml.merges", STRINGS "\1\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0q z", 27},
     MX_INVALID_FILE,
     "tokenizer.ggml.merges[0]: the result is not in tokenizer.ggml.tokens"},
};

static void test_gguf_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof gguf_cases / sizeof *gguf_cases; i++) {
        mx_bytes file = {0};
        tokenizer_gguf_changed(mx_json_root(small), SMALL_IDS, &gguf_cases[i].change, 1, &file);
        expect_refused("small.gguf", &file, gguf_cases[i].status, gguf_cases[i].says);
        mx_bytes_free(&file);
    }
}

/* The bytes of a token's text or type, changed in the file. */
static void test_gguf_tokens_refused(void **state) {
    (void)state;
    static const struct {
        int id; /* whose type changes; -1: none */
        int32_t type;
        const char *from, *to;
        mx_status status;
        const char *says;
    } cases[] = {
        {0, 6, "", "", MX_UNSUPPORTED, "tokenizer.ggml.token_type[0] is 6, expected 1 to 5"},
        {7, 0, "", "", MX_UNSUPPORTED, "tokenizer.ggml.token_type[7] is 0, expected 1 to 5"},
        {'Z', 5, "", "", MX_INVALID_FILE, "byte 0x5A has no token"},
        {300, 1, "", "", MX_OK, ""},
        {280, 1, "", "", MX_OK, ""},
        {280, 1, "[PAD280]", "[PAD 80]", MX_UNSUPPORTED,
         "token 280 (\"[PAD 80]\") is not written in the byte alphabet"},
        {280, 3, "[PAD280]", "<|end|>>", MX_INVALID_FILE, "<|end|>> is both 280 and 302"},
        {280, 1, "\10\0\0\0\0\0\0\0[PAD280]", "\3\0\0\0\0\0\0\0abc\5\0\0\0\0", MX_INVALID_FILE, ""},
        {-1, 0, "\3\0\0\0\0\0\0\0xyz", "\3\0\0\0\0\0\0\0abc", MX_INVALID_FILE, "token 259 is spelled like another one"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_bytes file = {0};
        tokenizer_gguf(mx_json_root(small), SMALL_IDS, &file);
        char *types = memmem(file.data, file.size, "token_type", 10);
        assert_non_null(types);
        if (cases[i].id >= 0) memcpy(types + 10 + 16 + 4 * cases[i].id, &cases[i].type, 4);
        size_t size = *cases[i].from == '[' ? 8 : *cases[i].from == 3 ? 11 : *cases[i].from ? 16 : 0;
        char *at = memmem(file.data, file.size, cases[i].from, size);
        assert_non_null(at);
        memcpy(at, cases[i].to, size);
        if (cases[i].status == MX_OK)
            mx_tokenizer_close(open_or_fail(scratch_file("small.gguf", file.data, file.size)));
        else
            expect_refused("small.gguf", &file, cases[i].status, cases[i].says);
        mx_bytes_free(&file);
    }
}

/* ---- model.bin --------------------------------------------------------------------------------------------------- */

enum { AT_UUID = 116, AT_SPECIALS = 132, AT_TEXTS = 136, AT_PATTERN = 140, AT_SIZE = 144, AT_FIRST = 148 };

/* 258 text tokens, of them ab 256 and abc 257; nine special ones. */
static void small_metal(mx_bytes *out) {
    static const char pattern[] = "\\p{L}+|\\P{L}+";
    mx_bytes json = {0};
    small_tokenizer(&json);
    replace(&json, ",\"Ġa\":258,\"xyz\":259}", "}");
    replace(&json, ",\"Ġ a\"]", "]");
    replace(&json, "\"id\":300,\"content\":\"<|start|>\"", "\"id\":260,\"content\":\"<|start|>\"");
    replace(&json, "\"id\":301,\"content\":\"<|end|>\"", "\"id\":261,\"content\":\"<|end|>\"");
    replace(&json, "\"id\":302,\"content\":\"<|end|>>\"", "\"id\":258,\"content\":\"<|one|>\"");
    replace(&json, "\"id\":303,\"content\":\"<tool>\",\"special\":false",
            "\"id\":259,\"content\":\"<|two|>\",\"special\":true},{\"id\":262,\"content\":\"<|x|>\",\"special\":true");
    mx_tokenizer *t = open_or_fail(scratch_file("tokenizer.json", json.data, json.size));
    mx_bytes_clear(out);
    tokenizer_metal(t, 263, pattern, out);
    mx_tokenizer_close(t);
    mx_bytes_free(&json);
}

static void test_metal(void **state) {
    (void)state;
    mx_bytes file = {0};
    small_metal(&file);
    mx_tokenizer *t = open_or_fail(scratch_file("model.bin", file.data, file.size));
    check_ids(t, "ab abcb", 7, false, (const int32_t[]){256, ' ', 257, 'b'}, 4);
    check_ids(t, "<|start|>a<|end|>", 17, true, (const int32_t[]){260, 'a', 261}, 3);
    assert_int_equal(mx_special_id(t, "<|startoftext|>"), 258);
    assert_int_equal(mx_special_id(t, "<|endoftext|>"), 259);
    assert_int_equal(mx_special_id(t, "<|reserved_262|>"), 262);
    assert_int_equal(mx_tokenizer_size(t), 263);
    mx_tokenizer_close(t);
    mx_bytes_free(&file);
}

static void test_metal_refused(void **state) {
    (void)state;
    static const struct {
        size_t at;
        const char *to;
        size_t size;
        mx_status status;
        const char *says;
    } cases[] = {
        {AT_UUID, "x", 1, MX_UNSUPPORTED, "UUID at byte 116 is not tiktoken's"},
        {AT_SPECIALS, "\xFF\xFF\xFF\xFF", 4, MX_INVALID_FILE, "4294967295 special tokens"},
        {AT_SPECIALS, "\0\0\1", 3, MX_INVALID_FILE, "download it again"},
        {AT_TEXTS, "\xFF\xFF\xFF\xFF", 4, MX_INVALID_FILE, "4294967295 text tokens"},
        {AT_TEXTS, "\3", 1, MX_INVALID_FILE, "text token 258 has 0 bytes"},
        {AT_TEXTS, "\1", 1, MX_INVALID_FILE, "257 text tokens have 772 bytes, expected 777"},
        {AT_PATTERN, "\xFF\xFF\xFF\xFF", 4, MX_INVALID_FILE, "a pattern of 4294967295 bytes"},
        {AT_PATTERN, "\0", 1, MX_INVALID_FILE, "the split pattern is not 0 bytes and a zero"},
        {AT_SIZE, "\xFF\xFF\xFF\xFF", 4, MX_INVALID_FILE, "texts of 4294967295"},
        {AT_SIZE, "\xFF", 1, MX_INVALID_FILE, "download it again"},
        {AT_FIRST, "x", 1, MX_UNSUPPORTED, "special token 258 has the UUID 78000000-..."},
        {AT_FIRST + 5 * 16, "\0", 1, MX_INVALID_FILE, "split pattern"},
        {AT_FIRST + 5 * 16, "(", 1, MX_INVALID_FILE, "PCRE2"},
        {AT_FIRST + 5 * 16 + 14, "\0", 1, MX_INVALID_FILE, "text token 0 has 0 bytes"},
        {AT_FIRST + 5 * 16 + 14, "\1\x10", 2, MX_INVALID_FILE, "text token 0 has 4097 bytes"},
        {AT_FIRST + 5 * 16 + 14 + 2, "\1", 1, MX_INVALID_FILE, "text tokens: token 1 is spelled like another one"},
    };
    mx_bytes file = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_metal(&file);
        memcpy(file.data + cases[i].at, cases[i].to, cases[i].size);
        expect_refused("model.bin", &file, cases[i].status, cases[i].says);
    }
    small_metal(&file);
    const size_t whole = file.size;
    for (file.size = 0; file.size < whole; file.size += 41) {
        mx_tokenizer *t;
        assert_int_equal(mx_tokenizer_open(scratch_file("model.bin", file.data, file.size), &t, NULL), MX_INVALID_FILE);
    }
    mx_bytes_free(&file);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

static char folder[500];

static void put(const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
}

static void take_away(const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(unlink(path), 0);
}

static void expect_found(const char *in, const char *file) {
    char path[1000], found[1000], expected[1500];
    mx_error error = {0};
    snprintf(path, sizeof path, "%s%s%s", folder, *in ? "/" : "", in);
    if (mx_tokenizer_find(path, found, sizeof found, &error) != MX_OK) fail_msg("%s", error.text);
    snprintf(expected, sizeof expected, "%s/%s", path, file);
    assert_string_equal(found, expected);
}

static void expect_not_found(mx_status status, const char *says) {
    char found[1000];
    mx_error error = {0};
    assert_int_equal(mx_tokenizer_find(folder, found, sizeof found, &error), status);
    if (!strstr(error.text, says) || !strstr(error.text, folder)) fail_msg("%s; expected %s", error.text, says);
}

/* From what is looked at last to what is looked at first. */
static void test_folders(void **state) {
    (void)state;
    char path[1000];
    snprintf(folder, sizeof folder, "%s/models/it", scratch_folder());
    for (const char *const *sub = (const char *const[]){"/..", "", "/original", "/metal", NULL}; *sub; sub++) {
        snprintf(path, sizeof path, "%.480s%s", folder, *sub);
        if (strcmp(*sub, "/..") == 0) snprintf(path, sizeof path, "%s/models", scratch_folder());
        assert_int_equal(mkdir(path, 0755), 0);
    }
    expect_not_found(MX_IO, "no tokenizer in this folder");
    put("original/tokenizer.json");
    expect_found("", "original/tokenizer.json");
    put("../tokenizer.json");
    expect_found("", "../tokenizer.json");
    put("metal/model.bin");
    expect_found("", "metal/model.bin");
    put("model.bin");
    expect_found("", "model.bin");
    put("model-00001-of-00002.gguf");
    put("model-00002-of-00002.gguf");
    expect_found("", "model-00001-of-00002.gguf");
    put("other.gguf");
    expect_not_found(MX_INVALID_ARGUMENT, "holds 2 models as .gguf files");
    take_away("model-00001-of-00002.gguf");
    expect_found("", "other.gguf");
    put("tokenizer.json");
    expect_found("", "tokenizer.json");
    take_away("original/tokenizer.json");
    expect_found("original", "../tokenizer.json");
    expect_found("metal", "model.bin");
    char found[1000];
    assert_int_equal(mx_tokenizer_find("/nowhere/model.gguf", found, sizeof found, NULL), MX_OK);
    assert_string_equal(found, "/nowhere/model.gguf");
    assert_int_equal(mx_tokenizer_find(folder, found, 20, NULL), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_tokenizer_find("/nowhere/model.gguf", found, 10, NULL), MX_INVALID_ARGUMENT);
}

/* A further file of a model in several has no vocabulary, and says what to do. */
static void test_further_part(void **state) {
    (void)state;
    mx_bytes file = {0};
    static const gguf_change none[] = {{"tokenizer.ggml.model", NULL, 0},
                                       {"tokenizer.ggml.pre", NULL, 0},
                                       {"tokenizer.ggml.tokens", NULL, 0},
                                       {"tokenizer.ggml.token_type", NULL, 0},
                                       {"tokenizer.ggml.merges", NULL, 0}};
    tokenizer_gguf_changed(mx_json_root(small), SMALL_IDS, none, 5, &file);
    expect_refused("m-00002-of-00002.gguf", &file, MX_IO, "the first file if it is one of several");
    mx_bytes_free(&file);
}

/* A GGUF's tokenizer is in the cache by its own keys: another model with the same ones finds it. */
static void test_cache(void **state) {
    (void)state;
    char cache[1000], file_name[2000];
    mx_bytes file = {0}, pad = {0};
    snprintf(cache, sizeof cache, "%s/cache", scratch_folder());
    setenv("XDG_CACHE_HOME", cache, 1);
    tokenizer_gguf(mx_json_root(small), 60000, &file); /* a megabyte of unused tokens and their types */
    for (int round = 0; round < 3; round++) {
        if (round == 1) replace(&file, "general.architecture", "general.architekture");
        if (round == 2) replace(&file, "[PAD59999]", "[QAD59999]");
        mx_tokenizer *t = open_or_fail(scratch_file("large.gguf", file.data, file.size));
        check_ids(t, "ab abc", 6, false, (const int32_t[]){256, ' ', 257}, 3);
        mx_tokenizer_close(t);
        snprintf(file_name, sizeof file_name, "ls '%s/mxrun' | wc -l > '%s/count'", cache, scratch_folder());
        assert_int_equal(system(file_name), 0);
        snprintf(file_name, sizeof file_name, "%s/count", scratch_folder());
        mx_bytes_free(&pad);
        assert_int_equal(mx_read_file(file_name, 100, &pad, NULL), MX_OK);
        assert_int_equal(atoi(pad.data), round == 2 ? 2 : 1);
    }
    mx_bytes_free(&file);
    mx_bytes_free(&pad);
}

int main(void) {
    setenv("XDG_CACHE_HOME", scratch_folder(), 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_refused),
        cmocka_unit_test(test_gguf_tokens_refused),
        cmocka_unit_test(test_metal),
        cmocka_unit_test(test_metal_refused),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_further_part),
        cmocka_unit_test(test_cache),
    };
    return cmocka_run_group_tests(tests, make_small, free_small);
}
