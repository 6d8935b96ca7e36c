#include "harmony_support.h"

static mx_tokenizer *opened;

static void close_stories(void) {
    mx_tokenizer_close(opened);
}

const mx_tokenizer *stories(void) {
    char path[4096];
    mx_error error = {0};
    if (opened) return opened;
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    must(mx_tokenizer_open(path, &opened, &error), &error);
    atexit(close_stories);
    return opened;
}

void must(mx_status s, const mx_error *error) {
    if (s != MX_OK) fail_msg("%s: %s", mx_status_name(s), error->text);
}

mx_json_document *json(const char *text) {
    mx_error error = {0};
    mx_json_document *d;
    must(mx_json_parse("test", text, strlen(text), &d, &error), &error);
    return d;
}

mx_ids encode_special(const mx_tokenizer *t, const char *text) {
    mx_ids ids = {0};
    mx_error error = {0};
    must(mx_encode_special(t, text, strlen(text), &ids, &error), &error);
    return ids;
}

mx_bytes decode(const mx_tokenizer *t, const mx_ids *ids) {
    mx_bytes text = {0};
    for (int64_t i = 0; i < ids->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, ids->data[i], &size);
        assert_non_null(bytes);
        assert_true(mx_bytes_add(&text, bytes, size));
    }
    return text;
}

mx_bytes describe(const mx_harmony_parser *p) {
    mx_bytes b = {0};
    for (int i = 0; i < mx_harmony_message_count(p); i++) {
        const mx_harmony_message *m = mx_harmony_message_at(p, i);
        assert_true(mx_bytes_addf(&b, "%s%s%s|%s|%s|%s|", m->role, m->name ? ":" : "", m->name ? m->name : "",
                                  m->channel ? m->channel : "", m->recipient ? m->recipient : "",
                                  m->content_type ? m->content_type : ""));
        assert_true(mx_bytes_add(&b, m->content.data, m->content.size) && mx_bytes_add(&b, "\n", 1));
    }
    if (!b.data) assert_true(mx_bytes_add_string(&b, ""));
    return b;
}
