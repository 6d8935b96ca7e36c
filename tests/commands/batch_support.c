#include "batch_support.h"

/* ---- files ------------------------------------------------------------------------------------------------------- */
const char *path_of(const char *name) {
    static char paths[8][200];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, 200, "%s/%s", test_folder, name);
    return path;
}

mx_bytes read_file(const char *name) {
    mx_bytes file = {0};
    mx_error error;
    if (mx_read_file(path_of(name), (size_t)1 << 30, &file, &error)) fail_msg("%s", error.text);
    assert_true(mx_bytes_add(&file, "", 0));
    return file;
}

void write_file(const char *name, const void *data, size_t size) {
    FILE *f = fopen(path_of(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

/* ---- records ----------------------------------------------------------------------------------------------------- */
records parse_records(const mx_bytes *text) {
    records r = {calloc(text->size + 1, sizeof *r.item), 0};
    mx_error error;
    assert_true(text->size == 0 || text->data[text->size - 1] == '\n');
    for (const char *p = text->data, *newline; (newline = strchr(p, '\n')); p = newline + 1)
        if (mx_json_parse("record", p, (size_t)(newline - p), &r.item[r.count++], &error)) fail_msg("%s", error.text);
    return r;
}

void free_records(records *r) {
    for (int i = 0; i < r->count; i++) mx_json_free(r->item[i]);
    free(r->item);
}

/* The record whose custom_id or id it is; a number: whose id is that. */
const mx_json *record_of(const records *r, const char *id) {
    for (int i = 0; i < r->count; i++) {
        const mx_json *root = mx_json_root(r->item[i]), *custom = mx_json_get(root, "custom_id");
        const mx_json *found = custom ? custom : mx_json_get(root, "id");
        if (found && found->text && !strcmp(found->text, id)) return root;
    }
    fail_msg("no record of %s", id);
    return NULL;
}

/* "response.body.choices.0.text" */
const mx_json *value_at(const mx_json *v, const char *path) {
    char word[40];
    for (const char *p = path; *p && v; p += strcspn(p, ".") + (p[strcspn(p, ".")] == '.')) {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(p, "."), p);
        if (v->type == MX_JSON_ARRAY) {
            const mx_json *child = v->child;
            for (int i = atoi(word); i > 0 && child; i--) child = child->next;
            v = child;
        } else {
            v = mx_json_get(v, word);
        }
    }
    if (!v) fail_msg("no %s", path);
    return v;
}

const char *string_at(const mx_json *v, const char *path) {
    v = value_at(v, path);
    assert_int_equal(v->type, MX_JSON_STRING);
    return v->text;
}

int64_t number_at(const mx_json *v, const char *path) {
    int64_t value = -1;
    assert_true(mx_json_int64(value_at(v, path), &value));
    return value;
}

double double_at(const mx_json *v, const char *path) {
    double value;
    assert_true(mx_json_double(value_at(v, path), &value));
    return value;
}

/* The number in "req_12_..." or "batch_req_12_...". */
long line_of(const char *record) {
    const char *key = strstr(record, "req_");
    assert_non_null(key);
    return atol(key + 4);
}

static int by_line(const void *a, const void *b) {
    const long x = line_of(*(char *const *)a), y = line_of(*(char *const *)b);
    return (x > y) - (x < y);
}

static void blank(char *text, const char *member) {
    for (char *p = text; (p = strstr(p, member)); p++)
        for (char *d = p + strlen(member); *d >= '0' && *d <= '9'; d++) *d = '#';
}

/* Records in the order of their lines, without what tells of the run. Two numbers of different length differ there. */
mx_bytes sorted_records(const mx_bytes *text) {
    mx_bytes copy = {0}, out = {0};
    char **line = calloc(text->size + 1, sizeof *line);
    size_t count = 0;
    assert_true(mx_bytes_add(&copy, text->data, text->size) && mx_bytes_add(&out, "", 0));
    for (char *p = strtok(copy.data, "\n"); p; p = strtok(NULL, "\n")) line[count++] = p;
    qsort(line, count, sizeof *line, by_line);
    for (size_t i = 0; i < count; i++) {
        char *cached = strstr(line[i], "\"cached_tokens\":");
        blank(line[i], "\"created\":");
        if (cached) { /* its length varies */
            char *digits = cached + strlen("\"cached_tokens\":");
            memmove(digits, digits + strspn(digits, "0123456789"), strlen(digits + strspn(digits, "0123456789")) + 1);
        }
        assert_true(mx_bytes_add_string(&out, line[i]) && mx_bytes_add_string(&out, "\n"));
    }
    free(line);
    mx_bytes_free(&copy);
    return out;
}

void expect_same_records(const mx_bytes *a, const mx_bytes *b) {
    mx_bytes x = sorted_records(a), y = sorted_records(b);
    if (x.size != y.size || memcmp(x.data, y.data, x.size) != 0) {
        size_t i = 0;
        while (x.data[i] && x.data[i] == y.data[i]) i++;
        size_t from = i < 200 ? 0 : i - 200;
        fail_msg("records differ at byte %zu of %zu and %zu:\n%.300s\n%.300s", i, x.size, y.size, x.data + from,
                 y.data + from);
    }
    mx_bytes_free(&x);
    mx_bytes_free(&y);
}

/* Prompts of every kind, `count` lines of them. */
void write_prompts(const char *name, int count) {
    mx_bytes text = {0};
    for (int i = 0; i < count; i++) {
        if (i % 3 == 0)
            assert_true(mx_bytes_addf(&text,
                                      "{\"id\":\"s%d\",\"prompt\":\"Tell me a story, number %d.\",\"max_tokens\":%d}\n",
                                      i, i, 5 + i % 40));
        else if (i % 3 == 1)
            assert_true(
                mx_bytes_addf(&text,
                              "{\"custom_id\":\"c%d\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
                              "\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"Repeat after me: one two "
                              "%d\"}],\"max_tokens\":30}}\n",
                              i, i));
        else
            assert_true(
                mx_bytes_addf(&text,
                              "{\"custom_id\":\"t%d\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{"
                              "\"prompt\":\"Once upon a time number %d\",\"n\":2,\"logprobs\":0}}\n",
                              i, i));
    }
    write_file(name, text.data, text.size);
    mx_bytes_free(&text);
}

void run_whole(const char *in, const char *out) {
    outcome o = run(BATCH, "-i", path_of(in), "-o", path_of(out));
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "");
    outcome_free(&o);
}
