/* The conformance sets of openai-harmony 0.0.8 with the published tokenizer, from ../shared. */
#include "harmony_support.h"

static mx_tokenizer *published;

static const char *shared(char *path, size_t size, const char *name) {
    const char *folder = getenv("MXRUN_SHARED");
    snprintf(path, size, "%s/data/%s", folder ? folder : "../shared", name);
    return path;
}

/* The open file, or a visible skip. */
static FILE *open_shared(const char *name) {
    char path[4096], tokenizer[4096];
    FILE *f = fopen(shared(path, sizeof path, name), "r");
    if (!f) {
        print_message("%s is not here: skipped\n", path);
        skip();
    }
    if (!published) {
        mx_error error = {0};
        must(mx_tokenizer_open(shared(tokenizer, sizeof tokenizer, "tokenizer/tokenizer.json"), &published, &error),
             &error);
    }
    return f;
}

static int close_published(void **state) {
    (void)state;
    mx_tokenizer_close(published);
    return 0;
}

/* ---- render ------------------------------------------------------------------------------------------------------ */
static mx_render_options options_of(const mx_json *line) {
    const mx_json *o = mx_json_get(line, "options"), *mode = mx_json_get(o, "mode"),
                  *role = mx_json_get(o, "next_role");
    mx_render_options options = {0};
    assert_true(mx_json_bool(mx_json_get(o, "auto_drop_analysis"), &options.auto_drop_analysis));
    options.training = mx_json_is_string(mode, "training");
    if (mx_json_is_string(mode, "completion")) options.next_role = role->text;
    return options;
}

static bool same_ids(const mx_json *golden, const mx_ids *ids) {
    int64_t i = 0, id;
    for (const mx_json *v = golden->child; v; v = v->next, i++)
        if (i >= ids->count || !mx_json_int64(v, &id) || id != ids->data[i]) return false;
    return i == ids->count;
}

static bool render_line_passes(const mx_json *line) {
    const mx_json *golden = mx_json_get(line, "ids");
    mx_render_options options = options_of(line);
    mx_ids ids = {0};
    mx_error error = {0};
    mx_status s = mx_harmony_render(published, mx_json_get(line, "conversation"), &options, &ids, &error);
    bool pass = golden ? s == MX_OK && same_ids(golden, &ids) : s == MX_INVALID_ARGUMENT && error.text[0];
    mx_ids_free(&ids);
    return pass;
}

/* ---- parse ------------------------------------------------------------------------------------------------------- */
static bool same_text(const mx_json *golden, const char *text, size_t size) {
    if (!golden || golden->type == MX_JSON_NULL) return text == NULL;
    return text && golden->type == MX_JSON_STRING && golden->size == size && memcmp(golden->text, text, size) == 0;
}

static bool same_string(const mx_json *golden, const char *text) {
    return same_text(golden, text, text ? strlen(text) : 0);
}

static bool same_delta(const mx_json *golden, const mx_harmony_delta *d) {
    const mx_json *role = golden->child, *channel = role->next, *recipient = channel->next, *text = recipient->next;
    return same_string(role, d->role) && same_string(channel, d->channel) && same_string(recipient, d->recipient) &&
           same_text(text, d->text, d->text_size);
}

static bool same_messages(const mx_json *golden, const mx_harmony_parser *p) {
    int i = 0;
    for (const mx_json *g = golden->child; g; g = g->next, i++) {
        const mx_harmony_message *m = mx_harmony_message_at(p, i);
        const mx_json *part = m ? mx_json_get(g, "content")->child : NULL;
        if (!part || part->next ||
            !same_text(mx_json_get(part, "text"), m->content.data ? m->content.data : "", m->content.size) ||
            !same_string(mx_json_get(g, "role"), m->role) || !same_string(mx_json_get(g, "name"), m->name) ||
            !same_string(mx_json_get(g, "channel"), m->channel) ||
            !same_string(mx_json_get(g, "recipient"), m->recipient) ||
            !same_string(mx_json_get(g, "content_type"), m->content_type))
            return false;
    }
    return i == mx_harmony_message_count(p);
}

static bool parse_line_passes(const mx_json *line) {
    const mx_json *role = mx_json_get(line, "role"), *golden_error = mx_json_get(line, "error");
    const mx_json *delta = mx_json_get(line, "stream")->child;
    int64_t at = 0, error_at = -1;
    bool strict, same = true;
    mx_harmony_parser *p;
    mx_harmony_delta d;
    mx_error error = {0};
    assert_true(mx_json_bool(mx_json_get(line, "strict"), &strict));
    must(mx_harmony_parser_create(published, strict ? MX_HARMONY_STRICT : MX_HARMONY_NOT_STRICT,
                                  role->type == MX_JSON_STRING ? role->text : NULL, &p, &error),
         &error);
    mx_status s = MX_OK;
    for (const mx_json *v = mx_json_get(line, "ids")->child; v; v = v->next, at++) {
        int64_t id;
        if (!mx_json_int64(v, &id) || id > INT32_MAX) id = INT32_MAX;
        s = mx_harmony_push(p, (int32_t)id, &d, &error);
        if (s != MX_OK) break;
        same = same && delta && same_delta(delta, &d);
        if (delta) delta = delta->next;
    }
    if (s == MX_OK) s = mx_harmony_end(p, &d, &error);
    same = same && !delta && (s == MX_OK) == !golden_error;
    if (golden_error) same = same && mx_json_int64(mx_json_get(line, "error_at"), &error_at) && error_at == at;
    same = same && same_messages(mx_json_get(line, golden_error ? "partial" : "messages"), p);
    mx_harmony_parser_free(p);
    return same;
}

/* ---- all lines --------------------------------------------------------------------------------------------------- */
static void check_lines(const char *name, int expected, bool (*passes)(const mx_json *)) {
    FILE *f = open_shared(name);
    char *text = NULL;
    size_t capacity = 0;
    ssize_t size;
    int lines = 0, failed = 0;
    while ((size = getline(&text, &capacity, f)) >= 0) {
        mx_error error = {0};
        mx_json_document *d;
        must(mx_json_parse(name, text, (size_t)size, &d, &error), &error);
        lines++;
        if (!passes(mx_json_root(d))) {
            print_message("%s: line %d (%s) differs\n", name, lines, mx_json_get(mx_json_root(d), "cat")->text);
            failed++;
        }
        mx_json_free(d);
    }
    free(text);
    fclose(f);
    assert_int_equal(failed, 0);
    assert_int_equal(lines, expected);
}

static void test_render(void **state) {
    (void)state;
    check_lines("harmony/render_golden.jsonl", 668, render_line_passes);
}

static void test_parse(void **state) {
    (void)state;
    check_lines("harmony/parse_golden.jsonl", 567, parse_line_passes);
}

/* ---- the library's own tests ------------------------------------------------------------------------------------- */
/* Their texts and token ids stand in ../shared. What they are made from belongs to that library and is no part of this
 * repository: the test runs where somebody has put it beside them as harmony/library_inputs.jsonl, a line a case:
 *   {"name": "simple_convo", "conversation": {...}, "options": {...}}            rendering gives test_NAME.txt
 *   {"name": "...", "kind": "ids" | "text", "role": "assistant", "messages": [...]}   parsing test_NAME.txt gives them
 * "@browser" and "@python" stand for the built-in tools. */

static bool next_line(FILE *f, char **text, size_t *capacity) {
    return getline(text, capacity, f) >= 0;
}

/* Appends the object behind `"NAME":{` in `line`, braces of strings aside. false: it is not there. */
static bool add_object(mx_bytes *out, const char *line, const char *name) {
    char key[40];
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *begin = strstr(line, key);
    if (!begin) return false;
    begin = strchr(begin, '{');
    bool string = false;
    int depth = 0;
    for (const char *p = begin; *p; p++) {
        if (string && *p == '\\')
            p++;
        else if (*p == '"')
            string = !string;
        else if (!string && (*p == '{' || *p == '}') && (depth += *p == '{' ? 1 : -1) == 0)
            return mx_bytes_add(out, begin, (size_t)(p + 1 - begin));
    }
    return false;
}

/* Replaces "@browser" and "@python" by these built-in tools, as render_golden.jsonl writes them out. */
static void add_with_tools(mx_bytes *out, const char *line) {
    for (const char *at; (at = strstr(line, "\"@")); line = strchr(at + 1, '"') + 1) {
        char name[20], *golden = NULL;
        size_t capacity = 0;
        bool found = false;
        assert_int_equal(sscanf(at, "\"@%19[a-z]\"", name), 1);
        assert_true(mx_bytes_add(out, line, (size_t)(at - line)));
        FILE *f = open_shared("harmony/render_golden.jsonl");
        while (!found && next_line(f, &golden, &capacity))
            found = strstr(golden, "\"builtin_tools\"") && add_object(out, golden, name);
        free(golden);
        fclose(f);
        assert_true(found);
    }
    assert_true(mx_bytes_add_string(out, line));
}

/* What the library's test of that name expects, without the newline that ends the file. */
static void read_expected(const char *name, mx_bytes *out) {
    char file[100], path[4096];
    mx_error error = {0};
    snprintf(file, sizeof file, "harmony/test_%s.txt", name);
    must(mx_read_file(shared(path, sizeof path, file), 1 << 20, out, &error), &error);
    while (out->size && out->data[out->size - 1] == '\n') out->data[--out->size] = 0;
}

static bool renders(const mx_json *line, const mx_bytes *expected) {
    mx_render_options options = options_of(line);
    mx_ids ids = {0};
    mx_bytes text = {0};
    mx_error error = {0};
    must(mx_harmony_render(published, mx_json_get(line, "conversation"), &options, &ids, &error), &error);
    for (int64_t i = 0; i < ids.count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(published, ids.data[i], &size);
        assert_true(mx_bytes_add(&text, bytes, size));
    }
    bool same = text.size == expected->size && memcmp(text.data, expected->data, text.size) == 0;
    mx_ids_free(&ids);
    mx_bytes_free(&text);
    return same;
}

/* The file holds token ids, or text with special tokens in it. */
static bool parses(const mx_json *line, const mx_bytes *file) {
    const mx_json *role = mx_json_get(line, "role");
    mx_ids ids = {0};
    mx_harmony_parser *p;
    mx_harmony_delta delta;
    mx_error error = {0};
    if (mx_json_is_string(mx_json_get(line, "kind"), "ids")) {
        char *end = file->data;
        for (long id = strtol(end, &end, 10); id; id = strtol(end, &end, 10))
            assert_true(mx_ids_add(&ids, (int32_t)id));
    } else {
        must(mx_encode_special(published, file->data, file->size, &ids, &error), &error);
    }
    must(mx_harmony_parser_create(published, MX_HARMONY_STRICT, role->type == MX_JSON_STRING ? role->text : NULL, &p,
                                  &error),
         &error);
    for (int64_t i = 0; i < ids.count; i++) must(mx_harmony_push(p, ids.data[i], &delta, &error), &error);
    must(mx_harmony_end(p, &delta, &error), &error);
    bool same = same_messages(mx_json_get(line, "messages"), p);
    mx_harmony_parser_free(p);
    mx_ids_free(&ids);
    return same;
}

static void test_library_tests(void **state) {
    (void)state;
    char path[4096], *text = NULL;
    size_t capacity = 0;
    int lines = 0, failed = 0;
    FILE *inputs = open_shared("harmony/library_inputs.jsonl"); /* or the visible skip */
    shared(path, sizeof path, "harmony/library_inputs.jsonl");
    while (next_line(inputs, &text, &capacity)) {
        mx_bytes line = {0}, expected = {0};
        mx_json_document *d;
        mx_error error = {0};
        add_with_tools(&line, text);
        must(mx_json_parse(path, line.data, line.size, &d, &error), &error);
        const mx_json *root = mx_json_root(d);
        const char *name = mx_json_get(root, "name")->text;
        read_expected(name, &expected);
        lines++;
        if (!(mx_json_get(root, "conversation") ? renders : parses)(root, &expected)) {
            print_message("test_%s differs\n", name);
            failed++;
        }
        mx_json_free(d);
        mx_bytes_free(&line);
        mx_bytes_free(&expected);
    }
    free(text);
    fclose(inputs);
    assert_int_equal(failed, 0);
    assert_int_equal(lines, 23);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_render),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_library_tests),
    };
    return cmocka_run_group_tests_name("harmony conformance sets", tests, NULL, close_published);
}
