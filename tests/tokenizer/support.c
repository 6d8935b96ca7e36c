#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *join(const char *variable, const char *relative) {
    static char path[4096];
    const char *root = getenv(variable);
    if (!root) fail_msg("%s is not set; run the tests with meson test", variable);
    snprintf(path, sizeof path, "%s/%s", root, relative);
    return path;
}

const char *source_path(const char *relative) {
    return join("MXRUN_SOURCE", relative);
}

const char *shared_path(const char *relative) {
    const char *path = join("MXRUN_SHARED", relative);
    if (access(path, R_OK) == 0) return path;
    printf("skipped: %s is not there\n", path);
    return NULL;
}

mx_tokenizer *open_or_fail(const char *path) {
    mx_tokenizer *t;
    mx_error error = {0};
    if (mx_tokenizer_open(path, &t, &error) != MX_OK) fail_msg("%s", error.text);
    return t;
}

int for_each_line(const char *path, void (*use)(void *user, const mx_json *line), void *user) {
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("cannot open %s", path);
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    int count = 0;
    while ((size = getline(&line, &capacity, file)) >= 0) {
        mx_json_document *document;
        mx_error error = {0};
        if (mx_json_parse(path, line, (size_t)size, &document, &error) != MX_OK) fail_msg("%s", error.text);
        use(user, mx_json_root(document));
        mx_json_free(document);
        count++;
    }
    free(line);
    fclose(file);
    return count;
}

static char folder[200];

static void remove_folder(void) {
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) printf("%s stays behind\n", folder);
}

const char *scratch_folder(void) {
    if (!folder[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%.150s/mxrun-tokenizer-XXXXXX", base && *base ? base : "/tmp");
        if (!mkdtemp(folder)) fail_msg("cannot make %s", folder);
        atexit(remove_folder);
    }
    return folder;
}

const char *scratch_file(const char *name, const void *data, size_t size) {
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", scratch_folder(), name);
    FILE *file = fopen(path, "w");
    if (!file) fail_msg("cannot write %s", path);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    return path;
}

/* The character that stands for a byte in tokenizer.json. */
static void add_letter(mx_bytes *out, int byte) {
    int c = byte, moved = 256;
    for (int b = 0; b <= byte; b++) {
        bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && !visible) c = moved;
        moved += !visible;
    }
    assert_true(mx_bytes_add_utf8(out, (uint32_t)c));
}

void small_tokenizer(mx_bytes *out) {
    static const char head[] =
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
        "{\"id\":300,\"content\":\"<|start|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false,\"special\":true},"
        "{\"id\":301,\"content\":\"<|end|>\",\"special\":true},{\"id\":302,\"content\":\"<|end|>>\",\"special\":true},"
        "{\"id\":303,\"content\":\"<tool>\",\"special\":false}],"
        "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\" ?\\\\p{L}+|\\\\p{N}{1,3}|[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s\"},"
        "\"behavior\":\"Isolated\",\"invert\":false},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]},"
        "\"post_processor\":null,\"decoder\":null,\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
        "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,"
        "\"ignore_merges\":false,\"vocab\":{";
    static const char tail[] = "\"ab\":256,\"abc\":257,\"Ġa\":258,\"xyz\":259},"
                               "\"merges\":[[\"a\",\"b\"],[\"ab\",\"c\"],\"Ġ a\"]}}";
    mx_bytes_clear(out);
    assert_true(mx_bytes_add_string(out, head));
    for (int byte = 0; byte < 256; byte++) {
        mx_bytes letter = {0};
        add_letter(&letter, byte);
        assert_true(mx_bytes_add_json(out, letter.data, letter.size));
        assert_true(mx_bytes_addf(out, ":%d,", byte));
        mx_bytes_free(&letter);
    }
    assert_true(mx_bytes_add_string(out, tail));
}

void replace(mx_bytes *text, const char *from, const char *to) {
    const char *found = memmem(text->data, text->size, from, strlen(from));
    if (!found) fail_msg("%s is not in the text", from);
    size_t at = (size_t)(found - text->data);
    mx_bytes out = {0};
    assert_true(mx_bytes_add(&out, text->data, at) && mx_bytes_add_string(&out, to) &&
                mx_bytes_add(&out, found + strlen(from), text->size - at - strlen(from)));
    mx_bytes_free(text);
    *text = out;
}

uint32_t random_bits(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 16);
}

uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)((uint64_t)random_bits(state) * n >> 32);
}

static void print_ids(const char *what, const int32_t *ids, int64_t count) {
    printf("%s", what);
    for (int64_t i = 0; i < count && i < 100; i++) printf(" %d", (int)ids[i]);
    printf("%s\n", count > 100 ? " ..." : "");
}

void check_ids(const mx_tokenizer *t, const void *text, size_t size, bool special, const int32_t *expected,
               int64_t count) {
    mx_ids ids = {0};
    mx_error error = {0};
    if ((special ? mx_encode_special : mx_encode)(t, text, size, &ids, &error) != MX_OK) fail_msg("%s", error.text);
    if (ids.count != count || (count && memcmp(ids.data, expected, (size_t)count * sizeof *expected) != 0)) {
        printf("text: %.*s\n", (int)(size < 500 ? size : 500), (const char *)text);
        print_ids("expected", expected, count);
        print_ids("found   ", ids.data, ids.count);
        fail_msg("ids differ");
    }
    mx_ids_free(&ids);
}

void decode(const mx_tokenizer *t, const mx_ids *ids, mx_bytes *out) {
    mx_bytes_clear(out);
    for (int64_t i = 0; i < ids->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, ids->data[i], &size);
        assert_non_null(bytes);
        assert_true(mx_bytes_add(out, bytes, size));
    }
}
