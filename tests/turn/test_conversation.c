#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "turn/conversation.h"

static mx_tokenizer *tokenizer;
static char folder[] = "/tmp/mxrun-conversation-XXXXXX";

static int set_up(void **unused) {
    (void)unused;
    char path[4096];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    return mx_tokenizer_open(path, &tokenizer, NULL) || !mkdtemp(folder);
}

static int tear_down(void **unused) {
    (void)unused;
    mx_tokenizer_close(tokenizer);
    return rmdir(folder);
}

#define HEAD                                                                                                           \
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"                           \
    "Knowledge cutoff: 2024-06\nCurrent date: 2026-11-23\n\nReasoning: medium\n\n"                                     \
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
#define USER(text)  "<|start|>user<|message|>" text "<|end|>"
#define THINK(text) "<|start|>assistant<|channel|>analysis<|message|>" text "<|end|>"
#define FINAL(text) "<|start|>assistant<|channel|>final<|message|>" text "<|end|>"
#define NEXT        "<|start|>assistant"

static mx_conversation *new_conversation(void) {
    mx_conversation *c;
    mx_error error;
    assert_int_equal(mx_conversation_create(tokenizer, &c, &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, "2026-11-23", &error), MX_OK);
    return c;
}

static void add_user(mx_conversation *c, const char *text) {
    assert_int_equal(mx_conversation_add_user(c, text, strlen(text), NULL), MX_OK);
}

static void add_ids(mx_conversation *c, const int32_t *ids, int64_t count, mx_finish why, const char *stop) {
    mx_turn *turn;
    const mx_turn_options options = {.tokenizer = tokenizer, .stop = &stop, .stop_count = stop != NULL};
    assert_int_equal(mx_turn_create(&options, &turn, NULL), MX_OK);
    for (int64_t i = 0; i < count; i++) assert_int_equal(mx_turn_push(turn, ids[i], NULL), MX_OK);
    assert_int_equal(mx_turn_end(turn, why, NULL), MX_OK);
    assert_int_equal(mx_conversation_add_answer(c, turn, NULL), MX_OK);
    mx_turn_free(turn);
}

/* An answer as the model writes it behind <|start|>assistant. */
static void add_answer(mx_conversation *c, const char *text, mx_finish why) {
    mx_ids ids = {0};
    assert_int_equal(mx_encode_special(tokenizer, text, strlen(text), &ids, NULL), MX_OK);
    add_ids(c, ids.data, ids.count, why, NULL);
    mx_ids_free(&ids);
}

static void check_prompt(mx_conversation *c, const char *expected) {
    mx_ids ids = {0};
    mx_error error;
    mx_bytes text = {0};
    if (mx_conversation_prompt(c, &ids, &error)) fail_msg("%s", error.text);
    for (int64_t i = 0; i < ids.count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(tokenizer, ids.data[i], &size);
        assert_true(mx_bytes_add(&text, bytes, size));
    }
    assert_string_equal(text.data, expected);
    mx_bytes_free(&text);
    mx_ids_free(&ids);
}

/* The prompts that stories was trained on and that its greedy goldens begin with: the same ids. */
static void test_golden_prompts(void **unused) {
    (void)unused;
    char path[4096];
    mx_bytes file = {0};
    mx_json_document *document;
    mx_error error;
    snprintf(path, sizeof path, "%s/tests/data/stories.greedy.json", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(path, 1 << 24, &file, &error), MX_OK);
    assert_int_equal(mx_json_parse(path, file.data, file.size, &document, &error), MX_OK);
    int tried = 0;
    for (const mx_json *g = mx_json_root(document)->child; g; g = g->next) {
        const char *text = mx_json_get(g, "prompt_text")->text;
        const char *reasoning = strstr(text, "Reasoning: "), *user = strstr(text, "user<|message|>");
        if (!reasoning || !user || strstr(text, "developer")) continue;
        char effort[8] = {0};
        sscanf(reasoning, "Reasoning: %7[a-z]", effort);
        user += strlen("user<|message|>");
        mx_conversation *c = new_conversation();
        assert_int_equal(mx_conversation_set(c, MX_SETTING_REASONING, effort, &error), MX_OK);
        assert_int_equal(mx_conversation_add_user(c, user, (size_t)(strstr(user, "<|end|>") - user), &error), MX_OK);
        mx_ids ids = {0};
        assert_int_equal(mx_conversation_prompt(c, &ids, &error), MX_OK);
        const mx_json *expected = mx_json_get(g, "prompt_ids");
        assert_int_equal(ids.count, expected->count);
        const mx_json *id = expected->child;
        for (int64_t i = 0; i < ids.count; i++, id = id->next) {
            int64_t value;
            assert_true(mx_json_int64(id, &value));
            assert_int_equal(ids.data[i], value);
        }
        mx_ids_free(&ids);
        mx_conversation_free(c);
        tried++;
    }
    assert_true(tried >= 5);
    mx_json_free(document);
    mx_bytes_free(&file);
}

static void test_settings(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    mx_error error;
    add_user(c, "Hi");
    assert_int_equal(mx_conversation_set(c, MX_SETTING_SYSTEM, "", &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, "", &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_REASONING, "high", &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DEVELOPER, "Be \"brief\".", &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_REASONING, "most", &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, "2026-13-01", &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, "2026-1-01", &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DATE, "tomorrow", &error), MX_INVALID_ARGUMENT);
    check_prompt(c, "<|start|>system<|message|>Knowledge cutoff: 2024-06\n\nReasoning: high\n\n"
                    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
                    "<|start|>developer<|message|># Instructions\n\nBe \"brief\".<|end|>" USER("Hi") NEXT);
    mx_conversation_free(c);
}

static mx_status set_tools(mx_conversation *c, const char *json, mx_error *error) {
    mx_json_document *document;
    assert_int_equal(mx_json_parse("tools.json", json, strlen(json), &document, error), MX_OK);
    mx_status status = mx_conversation_set_tools(c, "tools.json", mx_json_root(document), error);
    mx_json_free(document);
    return status;
}

#define WEATHER                                                                                                        \
    "{\"name\":\"get_weather\",\"description\":\"Gets the current weather in a city.\",\"parameters\":"                \
    "{\"type\":\"object\",\"properties\":{\"location\":{\"type\":\"string\",\"description\":\"The city.\"}},"          \
    "\"required\":[\"location\"]}}"

static void test_tools(void **unused) {
    (void)unused;
    const char *expected =
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-11-23\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Gets the current weather in a city.\ntype get_weather = (_: {\n// The city.\nlocation: string,\n}) => any;"
        "\n\n} // namespace functions<|end|>" USER("Weather?") NEXT;
    mx_error error;
    mx_conversation *c = new_conversation();
    add_user(c, "Weather?");
    assert_int_equal(set_tools(c, "[{\"type\":\"function\",\"function\":" WEATHER "}]", &error), MX_OK);
    check_prompt(c, expected);
    assert_true(mx_conversation_has_tools(c));
    assert_int_equal(set_tools(c, "[" WEATHER "]", &error), MX_OK); /* flat */
    check_prompt(c, expected);
    /* Wrong ones change nothing. */
    const char *const wrong[] = {
        "{}",
        "[1]",
        "[{\"type\":\"web_search\"}]",
        "[{\"type\":\"function\"}]",
        "[{\"name\":\"two words\"}]",
        "[{\"name\":\"\"}]",
        "[{\"name\":\"f\",\"description\":1}]",
        "[{\"name\":\"f\",\"parameters\":\"x\"}]",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_not_equal(set_tools(c, wrong[i], &error), MX_OK);
        assert_non_null(strstr(error.text, "tools.json: "));
    }
    check_prompt(c, expected);
    assert_int_equal(set_tools(c, "[]", &error), MX_OK);
    assert_false(mx_conversation_has_tools(c));
    check_prompt(c, HEAD USER("Weather?") NEXT);
    mx_conversation_free(c);
}

static void test_analysis_is_dropped_after_the_final(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    add_user(c, "A");
    add_answer(c, "<|channel|>analysis<|message|>t1<|end|><|start|>assistant<|channel|>final<|message|>f1<|return|>",
               MX_FINISH_STOP);
    add_user(c, "B");
    check_prompt(c, HEAD USER("A") FINAL("f1") USER("B") NEXT);
    mx_conversation_keep_thinking(c, true);
    check_prompt(c, HEAD USER("A") THINK("t1") FINAL("f1") USER("B") NEXT);
    mx_conversation_keep_thinking(c, false);
    /* A loop of tools keeps what was thought in it. */
    add_answer(c,
               "<|channel|>analysis<|message|>t2<|end|><|start|>assistant<|channel|>commentary to=functions.f "
               "<|constrain|>json<|message|>{}<|call|>",
               MX_FINISH_STOP);
    assert_int_equal(mx_conversation_add_tool_result(c, "f", "42", 2, NULL), MX_OK);
#define CALL                                                                                                           \
    "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"                    \
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>"
    check_prompt(c, HEAD USER("A") FINAL("f1") USER("B") THINK("t2") CALL NEXT);
    add_answer(c, "<|channel|>analysis<|message|>t3<|end|><|start|>assistant<|channel|>final<|message|>f2<|return|>",
               MX_FINISH_STOP);
    add_user(c, "C");
    check_prompt(c, HEAD USER("A") FINAL("f1") USER("B") CALL FINAL("f2") USER("C") NEXT);
    mx_conversation_free(c);
}

/* The very tokens, even where encoding the text again would give others. */
/* Messages that somebody else kept, as OpenAI's API hands them back. */
static void test_messages_from_outside(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    add_user(c, "Weather?");
    assert_int_equal(mx_conversation_add_assistant(c, "analysis", "Hm.", 3, NULL), MX_OK);
    assert_int_equal(mx_conversation_add_call(c, "get_weather", "{}", 2, NULL), MX_OK);
    assert_int_equal(mx_conversation_add_tool_result(c, "get_weather", "7", 1, NULL), MX_OK);
#define CALLED                                                                                                         \
    "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"          \
    "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>7<|end|>"
    check_prompt(c, HEAD USER("Weather?") THINK("Hm.") CALLED NEXT);
    assert_int_equal(mx_conversation_add_assistant(c, "final", "Cold.", 5, NULL), MX_OK);
    assert_int_equal(mx_conversation_add_developer(c, "Be kind.", 8, NULL), MX_OK);
    check_prompt(c,
                 HEAD USER("Weather?") CALLED FINAL("Cold.") "<|start|>developer<|message|># Instructions\n\nBe kind."
                                                             "<|end|>" NEXT);
    char path[100];
    snprintf(path, sizeof path, "%s/outside.json", folder);
    mx_error error;
    if (mx_conversation_save(c, path, &error) || mx_conversation_load(c, path, &error)) fail_msg("%s", error.text);
    unlink(path);
    assert_int_equal(mx_conversation_count(c), 6);
    mx_conversation_free(c);
}

static void test_own_tokens_are_kept(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    mx_ids ids = {0}, prompt = {0};
    const char head[] = "<|channel|>final<|message|>";
    add_user(c, "A");
    assert_int_equal(mx_encode_special(tokenizer, head, sizeof head - 1, &ids, NULL), MX_OK);
    for (const char *letter = "storyteller"; *letter; letter++) { /* one token a letter */
        assert_int_equal(mx_encode(tokenizer, letter, 1, &ids, NULL), MX_OK);
    }
    assert_true(mx_ids_add(&ids, special.return_));
    assert_int_equal(mx_conversation_prompt(c, &prompt, NULL), MX_OK);
    int64_t before = prompt.count;
    add_ids(c, ids.data, ids.count, MX_FINISH_STOP, NULL);
    prompt.count = 0;
    assert_int_equal(mx_conversation_prompt(c, &prompt, NULL), MX_OK);
    assert_memory_equal(prompt.data + before, ids.data, (size_t)(ids.count - 1) * sizeof *ids.data);
    assert_int_equal(prompt.data[before + ids.count - 1], special.end);
    mx_ids_free(&ids);
    mx_ids_free(&prompt);
    mx_conversation_free(c);
}

static void test_broken_off_answers(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    add_user(c, "A");
    add_answer(c, "<|channel|>analysis<|message|>unfinished", MX_FINISH_CANCELLED);
    check_prompt(c, HEAD USER("A") NEXT);
    add_answer(c, "<|channel|>commentary to=functions.f<|message|>{\"a\"", MX_FINISH_LENGTH);
    check_prompt(c, HEAD USER("A") NEXT);
    add_answer(c, "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>half",
               MX_FINISH_LENGTH);
    check_prompt(c, HEAD USER("A") FINAL("half") NEXT);
    mx_ids ids = {0};
    const char stopped[] = "<|channel|>final<|message|>this STOP that";
    assert_int_equal(mx_encode_special(tokenizer, stopped, sizeof stopped - 1, &ids, NULL), MX_OK);
    add_ids(c, ids.data, ids.count, MX_FINISH_CANCELLED, " STOP");
    check_prompt(c, HEAD USER("A") FINAL("half") FINAL("this") NEXT);
    mx_ids_free(&ids);
    mx_conversation_free(c);
}

/* Later prompts are well formed whatever the model wrote. */
static void test_malformed_answers_are_mended(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    add_user(c, "A");
    add_answer(c, "<|channel|>final<|message|>one<|channel|>two<|return|>", MX_FINISH_STOP);
    add_user(c, "B");
    mx_ids ids = {0};
    mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    assert_int_equal(mx_conversation_prompt(c, &ids, NULL), MX_OK);
    int starts = 0, messages = 0, ends = 0, channels = 0;
    for (int64_t i = 0; i < ids.count; i++) {
        starts += ids.data[i] == special.start;
        messages += ids.data[i] == special.message;
        ends += ids.data[i] == special.end;
        channels += ids.data[i] == special.channel;
    }
    assert_int_equal(starts, messages + 1);
    assert_int_equal(ends, messages);
    assert_int_equal(channels, messages - 3); /* system and the user's two have none */
    mx_ids_free(&ids);
    mx_conversation_free(c);
}

static void test_compact(void **unused) {
    (void)unused;
    mx_conversation *c = new_conversation();
    for (int i = 0; i < 5; i++) {
        add_user(c, "Tell me a story about a fox.");
        add_answer(c, "<|channel|>final<|message|>Once upon a time.<|return|>", MX_FINISH_STOP);
    }
    mx_ids ids = {0};
    assert_int_equal(mx_conversation_prompt(c, &ids, NULL), MX_OK);
    assert_int_equal(mx_conversation_compact(c, ids.count, NULL), 0);
    assert_int_equal(mx_conversation_compact(c, ids.count - 1, NULL), 1);
    assert_int_equal(mx_conversation_turns(c), 4);
    assert_int_equal(mx_conversation_count(c), 8);
    assert_int_equal(mx_conversation_compact(c, 1, NULL), 3); /* one turn always stays */
    check_prompt(c, HEAD USER("Tell me a story about a fox.") FINAL("Once upon a time.") NEXT);
    mx_ids_free(&ids);
    mx_conversation_free(c);
}

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void test_save_and_load(void **unused) {
    (void)unused;
    char path[100];
    mx_error error;
    snprintf(path, sizeof path, "%s/chat.json", folder);
    mx_conversation *c = new_conversation(), *d = new_conversation();
    assert_int_equal(set_tools(c, "[" WEATHER "]", &error), MX_OK);
    assert_int_equal(mx_conversation_set(c, MX_SETTING_DEVELOPER, "Be kind.\n", &error), MX_OK);
    assert_int_equal(mx_conversation_add_user(c, "nul \0 \"quote\" \xff", 16, &error), MX_OK);
    add_answer(c,
               "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>commentary to=functions.f "
               "<|constrain|>json<|message|>{}<|call|>",
               MX_FINISH_STOP);
    assert_int_equal(mx_conversation_add_tool_result(c, "f", "42", 2, NULL), MX_OK);
    add_answer(c, "<|channel|>final<|message|>Done.<|return|>", MX_FINISH_STOP);
    assert_int_equal(mx_conversation_save(c, path, &error), MX_OK);
    assert_int_equal(mx_conversation_load(d, path, &error), MX_OK);
    assert_string_equal(mx_conversation_get(d, MX_SETTING_DEVELOPER), "Be kind.\n");
    mx_ids a = {0}, b = {0};
    mx_conversation_keep_thinking(c, true);
    mx_conversation_keep_thinking(d, true);
    assert_int_equal(mx_conversation_prompt(c, &a, NULL), MX_OK);
    assert_int_equal(mx_conversation_prompt(d, &b, NULL), MX_OK);
    mx_bytes ta = {0}, tb = {0}; /* as text: the renderer's order of a header differs from the model's */
    for (int64_t i = 0; i < a.count + b.count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(tokenizer, i < a.count ? a.data[i] : b.data[i - a.count], &size);
        mx_bytes_add(i < a.count ? &ta : &tb, bytes, size);
    }
    assert_int_equal(ta.size, tb.size);
    /* A wrong file leaves what was there. */
    const char *const wrong[] = {
        "",
        "{",
        "[]",
        "{\"format\":\"other\"}",
        "{\"format\":\"mxrun-chat\",\"version\":2,\"messages\":[]}",
        "{\"format\":\"mxrun-chat\",\"version\":1}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"messages\":[1]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"messages\":[{\"role\":\"king\",\"text\":\"\"}]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"messages\":[{\"role\":\"user\"}]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"messages\":[{\"role\":\"tool\",\"text\":\"\"}]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"messages\":[{\"role\":\"user\",\"channel\":1,\"text\":\"\"}]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"settings\":{\"date\":\"x\"},\"messages\":[]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"settings\":{\"system\":1},\"messages\":[]}",
        "{\"format\":\"mxrun-chat\",\"version\":1,\"settings\":{\"tools\":1},\"messages\":[]}",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_file(path, wrong[i]);
        if (mx_conversation_load(d, path, &error) == MX_OK) fail_msg("loaded: %s", wrong[i]);
        assert_non_null(strstr(error.text, path));
        assert_int_equal(mx_conversation_count(d), mx_conversation_count(c));
    }
    assert_int_equal(unlink(path), 0);
    assert_int_not_equal(mx_conversation_load(d, path, &error), MX_OK);
    assert_int_equal(mx_conversation_save(d, "/no/such/folder/file", &error), MX_IO);
    assert_int_equal(mx_conversation_save(d, folder, &error), MX_IO); /* a folder is in the way: no litter beside it */
    assert_int_equal(mx_conversation_count(d), mx_conversation_count(c));
    mx_ids_free(&a);
    mx_ids_free(&b);
    mx_bytes_free(&ta);
    mx_bytes_free(&tb);
    mx_conversation_free(c);
    mx_conversation_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_prompts),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_tools),
        cmocka_unit_test(test_analysis_is_dropped_after_the_final),
        cmocka_unit_test(test_messages_from_outside),
        cmocka_unit_test(test_own_tokens_are_kept),
        cmocka_unit_test(test_broken_off_answers),
        cmocka_unit_test(test_malformed_answers_are_mended),
        cmocka_unit_test(test_compact),
        cmocka_unit_test(test_save_and_load),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
