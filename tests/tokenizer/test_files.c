/* tokenizer.json files: the forms that are accepted, the malformed ones that are refused, and the cache. */
#include "support.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static mx_status open_text(const mx_bytes *json, mx_tokenizer **t, mx_error *error) {
    return mx_tokenizer_open(scratch_file("tokenizer.json", json->data, json->size), t, error);
}

static void expect_ab(const mx_tokenizer *t) {
    check_ids(t, "ab abc", 6, false, (const int32_t[]){256, ' ', 257}, 3);
    check_ids(t, "ab\nabc", 6, false, (const int32_t[]){256, '\n', 257}, 3);
}

/* ---- accepted ---------------------------------------------------------------------------------------------------- */

static void test_accepted(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
    } changes[] = {
        {"", ""},
        {"[[\"a\",\"b\"],[\"ab\",\"c\"],\"Ġ a\"]", "[\"a b\",\"ab c\",[\"Ġ\",\"a\"]]"},
        {"\"version\"", "\"more\":[{\"vocab\":{\"x\":1},\"merges\":[]}],\"model2\":{\"vocab\":[]},\"version\""},
        {"\"dropout\":null", "\"dropout\":null,\"unheard_of\":{\"a\":[1,[2]]}"},
        {"\"id\":300,\"content\":\"<|start|>\"", "\"id\":259,\"content\":\"xyz\""}, /* in the vocabulary as well */
        {"\"xyz\":259", "\"z\xE2\x82\xAC\":299"},                                   /* replaced below */
        {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"\""},
        {"\"normalizer\":null,", ""},
        {"\"added_tokens\":[", "\"added_tokens\":null,\"other\":["},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        mx_bytes json = {0};
        small_tokenizer(&json);
        replace(&json, changes[i].from, changes[i].to);
        if (strstr(changes[i].to, ":299")) /* a token outside the byte alphabet may be an added one */
            replace(&json, "{\"id\":300", "{\"id\":299,\"content\":\"z\xE2\x82\xAC\"},{\"id\":300");
        mx_tokenizer *t;
        mx_error error = {0};
        if (open_text(&json, &t, &error) != MX_OK) fail_msg("case %zu: %s", i, error.text);
        expect_ab(t);
        mx_tokenizer_close(t);
        mx_bytes_free(&json);
    }
}

static void test_folder(void **state) {
    (void)state;
    mx_bytes json = {0};
    small_tokenizer(&json);
    scratch_file("tokenizer.json", json.data, json.size);
    mx_tokenizer *t = open_or_fail(scratch_folder());
    expect_ab(t);
    mx_tokenizer_close(t);
    mx_bytes_free(&json);
}

/* ---- refused ----------------------------------------------------------------------------------------------------- */

typedef struct malformed {
    const char *from, *to;
    mx_status status;
    const char *says; /* part of the message */
} malformed;

static const malformed cases[] = {
    {"{\"version\"", "[\"version\"", MX_INVALID_FILE, "not a JSON object"},
    {"{\"version\"", "3 {\"version\"", MX_INVALID_FILE, "not a JSON object"},
    {"\"version\":", "\"version\"", MX_INVALID_FILE, "not valid JSON"},
    {"\"model\":{", "\"model\":null,\"nodel\":{", MX_INVALID_FILE, "model is not an object"},
    {"\"model\":{", "\"model\":[],\"nodel\":{", MX_INVALID_FILE, "model is not an object"},
    {"\"model\":{", "\"nodel\":{", MX_INVALID_FILE, "lacks its type, vocab or merges"},
    {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", MX_UNSUPPORTED, "model.type is not BPE"},
    {"\"type\":\"BPE\"", "\"type\":[\"BPE\"]", MX_INVALID_FILE, "plain value"},
    {"\"type\":\"BPE\",", "", MX_INVALID_FILE, "lacks its type"},
    {"\"dropout\":null", "\"dropout\":0.1", MX_UNSUPPORTED, "model.dropout"},
    {"\"byte_fallback\":false", "\"byte_fallback\":true", MX_UNSUPPORTED, "model.byte_fallback"},
    {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", MX_UNSUPPORTED, "model.end_of_word_suffix"},
    {"\"vocab\":", "\"vocabulary\":", MX_INVALID_FILE, "lacks its type, vocab or merges"},
    {"\"vocab\":{", "\"vocab\":[],\"x\":{", MX_INVALID_FILE, "model.vocab must be one object"},
    {"\"vocab\":{", "\"vocab\":7,\"x\":{", MX_INVALID_FILE, "must be an object"},
    {"\"vocab\":{", "\"vocab\":{},\"vocab\":{", MX_INVALID_FILE, "must be one object"},
    {"\"ab\":256", "\"ab\":\"256\"", MX_INVALID_FILE, "an id is not a number"},
    {"\"ab\":256", "\"ab\":{}", MX_INVALID_FILE, "model.vocab must be"},
    {"\"ab\":256", "\"ab\":-1", MX_INVALID_FILE, "whole number"},
    {"\"ab\":256", "\"ab\":256.0", MX_INVALID_FILE, "whole number"},
    {"\"ab\":256", "\"ab\":99999999999999999999999", MX_INVALID_FILE, "whole number"},
    {"\"ab\":256", "\"ab\":16777216", MX_INVALID_FILE, "whole number"},
    {"\"ab\":256", "\"ab\":257", MX_INVALID_FILE, "two tokens have the id 257"},
    {"\"ab\":256", "\"ab\":256,\"ab\":270", MX_INVALID_FILE, "spelled like another"},
    {"\"ab\":256", "\"\":256", MX_INVALID_FILE, "empty string"},
    {"\"xyz\":259", "\"z\xE2\x82\xAC\":259", MX_UNSUPPORTED, "byte alphabet"},
    {"\"xyz\":259", "\"x y\":259", MX_UNSUPPORTED, "byte alphabet"},
    {"\"Z\":90,", "", MX_INVALID_FILE, "byte 0x5A has no token"},
    {"[[\"a\",\"b\"]", "[[\"a\"]", MX_INVALID_FILE, "two sides"},
    {"[[\"a\",\"b\"]", "[[]", MX_INVALID_FILE, "two sides"},
    {"[[\"a\",\"b\"]", "[[\"a\",\"b\",\"c\"]", MX_INVALID_FILE, "more than two sides"},
    {"[[\"a\",\"b\"]", "[[\"a\",\"\"]", MX_INVALID_FILE, "empty"},
    {"[[\"a\",\"b\"]", "[[\"a\",[\"b\"]]", MX_INVALID_FILE, "model.merges must be"},
    {"[[\"a\",\"b\"]", "[[\"a\",7]", MX_INVALID_FILE, "not a string"},
    {"[[\"a\",\"b\"]", "[7", MX_INVALID_FILE, "not a string"},
    {"[[\"a\",\"b\"]", "[\"ab\"", MX_INVALID_FILE, "left right"},
    {"[[\"a\",\"b\"]", "[\"a b c\"", MX_INVALID_FILE, "byte alphabet"},
    {"[[\"a\",\"b\"]", "[[\"aq\",\"b\"]", MX_INVALID_FILE, "merges[0]: the left side is not in model.vocab"},
    {"[\"ab\",\"c\"]", "[\"ab\",\"cq\"]", MX_INVALID_FILE, "merges[1]: the right side is not in model.vocab"},
    {"[\"ab\",\"c\"]", "[\"ab\",\"d\"]", MX_INVALID_FILE, "merges[1]: the result is not in model.vocab"},
    {"[\"ab\",\"c\"]", "[\"ab\",\"c\"],[\"a\",\"b\"]", MX_INVALID_FILE, "merges[2] repeats"},
    {"\"merges\":", "\"merges\":{},\"x\":", MX_INVALID_FILE, "model.merges must be"},
    {"\"merges\":", "\"merges\":\"a b\",\"x\":", MX_INVALID_FILE, "model.merges a list"},
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", MX_UNSUPPORTED, "normalizer is set"},
    {"\"normalizer\":null", "\"normalizer\":\"NFC\"", MX_INVALID_FILE, "plain value"},
    {"\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"x\":{", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"type\":\"Sequence\"", "\"type\":\"Whitespace\"", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"type\":\"Split\"", "\"type\":\"Digits\"", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"Isolated\"", "\"Removed\"", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"invert\":false", "\"invert\":true", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"Regex\"", "\"String\"", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"add_prefix_space\":false", "\"add_prefix_space\":true", MX_UNSUPPORTED, "pre_tokenizer"},
    {"\"use_regex\":false", "\"use_regex\":true", MX_UNSUPPORTED, "pre_tokenizer"},
    {"{\"type\":\"Split\"", "{\"type\":\"Digits\"},{\"type\":\"Split\"", MX_UNSUPPORTED, "pre_tokenizer"},
    {" ?\\\\p{L}+|", "(?\\\\p{L}+|", MX_INVALID_FILE, "PCRE2"},
    {" ?\\\\p{L}+|", "(?<\\\\p{L}+|", MX_INVALID_FILE, "PCRE2"},
    {" ?\\\\p{L}+|", "\\\\p{Nonsense}|", MX_INVALID_FILE, "PCRE2"},
    {" ?\\\\p{L}+|", "\xFF|", MX_INVALID_FILE, ""},
    {"\"added_tokens\":[", "\"added_tokens\":\"x\",\"y\":[", MX_INVALID_FILE, "plain value"},
    {"\"added_tokens\":[", "\"added_tokens\":{\"content\":{}},\"y\":[", MX_INVALID_FILE, "added_tokens"},
    {"\"added_tokens\":[", "\"added_tokens\":[7,", MX_INVALID_FILE, "added_tokens"},
    {"\"id\":300,", "", MX_INVALID_FILE, "added_tokens"},
    {"\"id\":300,", "\"id\":-300,", MX_INVALID_FILE, "added_tokens"},
    {"\"id\":300,", "\"id\":1e99,", MX_INVALID_FILE, "added_tokens"},
    {"\"id\":300,", "\"id\":301,", MX_INVALID_FILE, "id 301 belongs to another token"},
    {"\"id\":300,", "\"id\":97,", MX_INVALID_FILE, "id 97 belongs to another token"},
    {"\"<|start|>\"", "\"\"", MX_INVALID_FILE, "added_tokens"},
    {"\"<|start|>\"", "\"<|end|>\"", MX_INVALID_FILE, "both 300 and 301"},
    {"\"lstrip\":false", "\"lstrip\":true", MX_UNSUPPORTED, "lstrip"},
    {"\"single_word\":false", "\"single_word\":true", MX_UNSUPPORTED, "single_word"},
};

static void test_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_bytes json = {0};
        small_tokenizer(&json);
        replace(&json, cases[i].from, cases[i].to);
        mx_tokenizer *t = NULL;
        mx_error error = {0};
        mx_status status = open_text(&json, &t, &error);
        if (status != cases[i].status || !strstr(error.text, cases[i].says) || !strstr(error.text, "tokenizer.json"))
            fail_msg("%s -> %s: %s: %s", cases[i].from, cases[i].to, mx_status_name(status), error.text);
        assert_null(t);
        assert_null(strchr(error.text, '\n'));
        mx_bytes_free(&json);
    }
}

static void test_missing(void **state) {
    (void)state;
    mx_tokenizer *t;
    mx_error error = {0};
    assert_int_equal(mx_tokenizer_open("/nowhere/at/all", &t, &error), MX_IO);
    assert_non_null(strstr(error.text, "/nowhere/at/all"));
    assert_int_equal(mx_tokenizer_open(scratch_file("tokenizer.json", "", 0), &t, &error), MX_INVALID_FILE);
    assert_int_equal(mx_tokenizer_open("/nowhere", &t, NULL), MX_IO);
}

/* Cut anywhere, the file is refused; with any byte changed it is refused or read, and either is clean. */
static void test_damaged(void **state) {
    (void)state;
    mx_bytes json = {0};
    small_tokenizer(&json);
    for (size_t size = 0; size < json.size; size += 41) {
        mx_tokenizer *t;
        mx_bytes cut = {.data = json.data, .size = size};
        assert_int_equal(open_text(&cut, &t, NULL), MX_INVALID_FILE);
    }
    uint64_t seed = 11;
    int opened = 0;
    for (int i = 0; i < 1500; i++) {
        static const char favourites[] = "\"{}[]:,0\\ n";
        size_t at = random_below(&seed, (uint32_t)json.size);
        char before = json.data[at];
        json.data[at] = i % 2 ? favourites[random_below(&seed, sizeof favourites)] : (char)random_bits(&seed);
        mx_tokenizer *t;
        mx_error error = {0};
        if (open_text(&json, &t, &error) == MX_OK) {
            mx_ids ids = {0};
            assert_int_equal(mx_encode_special(t, "ab <|start|>\xC3\xBC", 14, &ids, &error), MX_OK);
            mx_ids_free(&ids);
            mx_tokenizer_close(t);
            opened++;
        } else {
            assert_non_null(strstr(error.text, "tokenizer.json"));
        }
        json.data[at] = before;
    }
    printf("%d of 1500 changed files still open\n", opened);
    mx_bytes_free(&json);
}

static void test_deep(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        static const char *const from[] = {"\"version\":", "\"added_tokens\":", "\"dropout\":null,"};
        static const char *const to[] = {"\"version\":%s,\"x\":", "\"added_tokens\":%s,\"x\":", "\"more\":%s,"};
        mx_bytes json = {0}, deep = {0}, put = {0};
        small_tokenizer(&json);
        for (int i = 0; i < 100000; i++) assert_true(mx_bytes_add(&deep, "[", 1));
        for (int i = 0; i < 100000; i++) assert_true(mx_bytes_add(&deep, "]", 1));
        assert_true(mx_bytes_addf(&put, to[kind], deep.data));
        replace(&json, from[kind], put.data);
        mx_tokenizer *t = NULL;
        mx_status status = open_text(&json, &t, NULL);
        assert_int_equal(status, kind == 1 ? MX_INVALID_FILE : MX_OK);
        mx_tokenizer_close(t);
        mx_bytes_free(&json);
        mx_bytes_free(&deep);
        mx_bytes_free(&put);
    }
}

/* A pattern that explodes is an error after a while, not for ever. */
static void test_exploding_pattern(void **state) {
    (void)state;
    mx_bytes json = {0}, text = {0};
    small_tokenizer(&json);
    replace(&json, " ?\\\\p{L}+|", "(?:a+)+b|");
    mx_tokenizer *t;
    mx_error error = {0};
    assert_int_equal(open_text(&json, &t, &error), MX_OK);
    for (int i = 0; i < 60; i++) assert_true(mx_bytes_add(&text, "a", 1));
    mx_ids ids = {0};
    assert_int_equal(mx_encode(t, text.data, text.size, &ids, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "split pattern"));
    assert_int_equal(ids.count, 0);
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
    mx_bytes_free(&json);
    mx_bytes_free(&text);
}

/* ---- cache ------------------------------------------------------------------------------------------------------- */

/* The one file in the cache folder; returns false when there is none. */
static bool cache_file(const char *cache, char path[4096]) {
    snprintf(path, 4096, "%s/mxrun", cache);
    DIR *folder = opendir(path);
    if (!folder) return false;
    int count = 0;
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, 4096, "%s/mxrun/%s", cache, e->d_name);
        count++;
    }
    closedir(folder);
    assert_in_range(count, 0, 1); /* nothing temporary stays */
    return count == 1;
}

static ino_t file_number(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_ino;
}

static void write_file(const char *path, const char *data, size_t size) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void open_and_check(const char *json) {
    mx_tokenizer *t = open_or_fail(json);
    expect_ab(t);
    assert_int_equal(mx_special_id(t, "<|end|>"), 301);
    mx_tokenizer_close(t);
}

/* Large enough to be cached. */
static void large_tokenizer(mx_bytes *json) {
    small_tokenizer(json);
    mx_bytes spaces = {0};
    for (int i = 0; i < 1 << 20; i++) assert_true(mx_bytes_add(&spaces, " ", 1));
    assert_true(mx_bytes_add_string(&spaces, "\"version\""));
    replace(json, "\"version\"", spaces.data);
    mx_bytes_free(&spaces);
}

static void test_cache(void **state) {
    (void)state;
    char cache[1000], file[4096], json_path[400];
    mx_bytes json = {0}, saved = {0};
    mx_error error = {0};
    snprintf(cache, sizeof cache, "%s/cache/deeper", scratch_folder());
    setenv("XDG_CACHE_HOME", cache, 1);
    small_tokenizer(&json);
    open_and_check(scratch_file("small.json", json.data, json.size));
    assert_false(cache_file(cache, file)); /* not worth it */
    large_tokenizer(&json);
    snprintf(json_path, sizeof json_path, "%s", scratch_file("large.json", json.data, json.size));
    open_and_check(json_path);
    assert_true(cache_file(cache, file));
    ino_t number = file_number(file);
    open_and_check(json_path);
    assert_int_equal(file_number(file), number); /* used, not written again */
    assert_int_equal(mx_read_file(file, (size_t)1 << 30, &saved, &error), MX_OK);

    /* a cut or damaged file does not count: it is written anew, as it was */
    for (size_t step = 0; step < 60; step++) {
        size_t at = saved.size * step / 60;
        mx_bytes now = {0};
        if (step % 2) {
            write_file(file, saved.data, at);
        } else {
            saved.data[at] ^= 0x10;
            write_file(file, saved.data, saved.size);
            saved.data[at] ^= 0x10;
        }
        open_and_check(json_path);
        assert_true(cache_file(cache, file));
        assert_int_equal(mx_read_file(file, (size_t)1 << 30, &now, &error), MX_OK);
        assert_int_equal(now.size, saved.size);
        assert_memory_equal(now.data, saved.data, now.size);
        mx_bytes_free(&now);
    }
    assert_true(mx_bytes_add(&saved, "more", 4));
    write_file(file, saved.data, saved.size);
    open_and_check(json_path);

    /* another content is another file */
    assert_int_equal(unlink(file), 0);
    replace(&json, "\"ab\":256,\"abc\":257", "\"ab\":257,\"abc\":256");
    snprintf(json_path, sizeof json_path, "%s", scratch_file("large.json", json.data, json.size));
    mx_tokenizer *t = open_or_fail(json_path);
    check_ids(t, "ab", 2, false, (const int32_t[]){257}, 1);
    mx_tokenizer_close(t);
    t = open_or_fail(json_path);
    check_ids(t, "ab", 2, false, (const int32_t[]){257}, 1);
    mx_tokenizer_close(t);
    mx_bytes_free(&json);
    mx_bytes_free(&saved);
}

/* A cache that cannot be written is no error. */
static void test_cache_unwritable(void **state) {
    (void)state;
    char path[1000], json_path[400];
    mx_bytes json = {0};
    large_tokenizer(&json);
    snprintf(json_path, sizeof json_path, "%s", scratch_file("large.json", json.data, json.size));
    snprintf(path, sizeof path, "%s/under", scratch_file("a_file", "x", 1)); /* below a file there is no folder */
    setenv("XDG_CACHE_HOME", path, 1);
    open_and_check(json_path);
    setenv("XDG_CACHE_HOME", "relative", 1); /* counts as unset */
    unsetenv("HOME");
    open_and_check(json_path);
    setenv("HOME", scratch_folder(), 1);
    open_and_check(json_path);
    snprintf(path, sizeof path, "%s/.cache", scratch_folder());
    char file[4096];
    assert_true(cache_file(path, file));
    mx_bytes_free(&json);
}

int main(void) {
    setenv("XDG_CACHE_HOME", scratch_folder(), 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),          cmocka_unit_test(test_folder),
        cmocka_unit_test(test_refused),           cmocka_unit_test(test_missing),
        cmocka_unit_test(test_damaged),           cmocka_unit_test(test_deep),
        cmocka_unit_test(test_exploding_pattern), cmocka_unit_test(test_cache),
        cmocka_unit_test(test_cache_unwritable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
