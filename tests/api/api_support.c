#include "api_support.h"

#include "model/model.h"

mx_tokenizer *stories;
mx_conversation *template;
mx_ids stop_tokens;
mx_api_settings settings;

static mx_vocabulary *vocabulary; /* nobody needs it here */
static mx_json_document *documents[256];
static int document_count;

int api_set_up(void **unused) {
    (void)unused;
    char path[4096];
    mx_error error;
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (mx_tokenizer_open(path, &stories, &error) || mx_conversation_create(stories, &template, &error) ||
        mx_conversation_set(template, MX_SETTING_DATE, "2026-11-23", &error))
        return 1;
    const mx_config config = {0};
    if (!mx_turn_stop_tokens(stories, &config, &stop_tokens)) return 1;
    settings = (mx_api_settings){.tokenizer = stories,
                                 .conversation = template,
                                 .model = "stories",
                                 .sampling = MX_SAMPLING_DEFAULT,
                                 .stop_tokens = &stop_tokens,
                                 .vocab = mx_tokenizer_size(stories),
                                 .later = &vocabulary};
    return 0;
}

int api_tear_down(void **unused) {
    (void)unused;
    while (document_count) mx_json_free(documents[--document_count]);
    mx_ids_free(&stop_tokens);
    mx_conversation_free(template);
    mx_tokenizer_close(stories);
    return 0;
}

const mx_json *json(const char *text) {
    mx_error error;
    assert_true(document_count < 256);
    if (mx_json_parse("the test", text, strlen(text), &documents[document_count], &error)) fail_msg("%s", error.text);
    return mx_json_root(documents[document_count++]);
}

mx_bytes text_of(const mx_tokenizer *tokenizer, const mx_ids *ids) {
    mx_bytes text = {0};
    assert_true(mx_bytes_add(&text, "", 0));
    for (int64_t i = 0; i < ids->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(tokenizer, ids->data[i], &size);
        assert_true(mx_bytes_add(&text, bytes, size));
    }
    return text;
}

mx_turn *turn_of(const char *text, mx_finish why) {
    mx_turn *turn;
    mx_ids ids = {0};
    const mx_turn_options options = {.tokenizer = stories, .stop_tokens = &stop_tokens};
    assert_int_equal(mx_turn_create(&options, &turn, NULL), MX_OK);
    assert_int_equal(mx_encode_special(stories, text, strlen(text), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count; i++) assert_int_equal(mx_turn_push(turn, ids.data[i], NULL), MX_OK);
    assert_int_equal(mx_turn_end(turn, why, NULL), MX_OK);
    mx_ids_free(&ids);
    return turn;
}

mx_bytes prompt_of(mx_replay *replay, const char *body) {
    const mx_api_reader reader = {.settings = &settings, .replay = replay, .streams = true};
    mx_api_request request;
    mx_error error;
    if (mx_api_read_body(&reader, true, 1, json(body), &request, &error)) fail_msg("%s", error.text);
    if (request.problem.http_status) fail_msg("%s", request.problem.text);
    mx_bytes text = text_of(stories, &request.prompts[0]);
    mx_api_request_free(&request);
    return text;
}

void expect_prompt(mx_replay *replay, const char *body, const char *expected) {
    mx_bytes text = prompt_of(replay, body);
    assert_string_equal(text.data, expected);
    mx_bytes_free(&text);
}
