/* What the model said comes back as its own tokens. */
#include "api_support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/cpu.h"
#include "turn/prompt_hash.h"

#define ID      "0123456789abcdef0123456789abcdef"
#define CALL_ID "call_0123456789abcdef0123456789ab_0_0"
#define WEATHER "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\"}}]"

static time_t now = 1795737600; /* 2026-11-27 00:00 UTC */
time_t __wrap_time(time_t *out);
time_t __wrap_time(time_t *out) {
    if (out) *out = now;
    return now;
}

static mx_replay *new_replay(uint64_t bytes) {
    mx_replay *r;
    assert_int_equal(mx_replay_create(bytes, &r, NULL), MX_OK);
    return r;
}

/* The ids that the body makes. */
static mx_ids ids_of(mx_replay *r, const char *body) {
    const mx_api_reader reader = {.settings = &settings, .replay = r};
    mx_api_request request;
    mx_error error;
    if (mx_api_read_body(&reader, true, 1, json(body), &request, &error)) fail_msg("%s", error.text);
    if (request.problem.http_status) fail_msg("%s", request.problem.text);
    mx_ids ids = request.prompts[0];
    request.prompts[0] = (mx_ids){0};
    mx_api_request_free(&request);
    return ids;
}

/* The model answers `prompt` with tokens that no tokenizer would choose for this text: each byte its own. */
static mx_turn *answer_in_bytes(const char *header, const char *text, const char *end) {
    mx_turn *turn;
    mx_ids ids = {0};
    const mx_turn_options options = {.tokenizer = stories, .stop_tokens = &stop_tokens};
    assert_int_equal(mx_turn_create(&options, &turn, NULL), MX_OK);
    assert_int_equal(mx_encode_special(stories, header, strlen(header), &ids, NULL), MX_OK);
    for (const char *c = text; *c; c++) assert_int_equal(mx_encode(stories, c, 1, &ids, NULL), MX_OK);
    assert_int_equal(mx_encode_special(stories, end, strlen(end), &ids, NULL), MX_OK);
    for (int64_t i = 0; i < ids.count; i++) assert_int_equal(mx_turn_push(turn, ids.data[i], NULL), MX_OK);
    assert_int_equal(mx_turn_end(turn, MX_FINISH_STOP, NULL), MX_OK);
    mx_ids_free(&ids);
    return turn;
}

static void expect_begins_with(const mx_ids *ids, const mx_ids *prompt, const mx_ids *answer) {
    assert_true(ids->count >= prompt->count + answer->count);
    assert_memory_equal(ids->data, prompt->data, (size_t)prompt->count * sizeof *ids->data);
    assert_memory_equal(ids->data + prompt->count, answer->data, (size_t)answer->count * sizeof *ids->data);
}

/* A tool loop whose client drops the thinking: by the call's id the prompt goes on where the answer ended. */
static void test_by_call(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 20);
    mx_ids first = ids_of(r, "{" WEATHER ",\"messages\":[{\"role\":\"user\",\"content\":\"Paris?\"}]}");
    mx_turn *turn = answer_in_bytes(
        "<|channel|>analysis<|message|>I need the weather in Paris.<|end|><|start|>assistant to=functions.get_weather"
        "<|channel|>commentary json<|message|>",
        "{\"location\": \"Paris\"}", "<|call|>");
    mx_replay_keep(r, ID, 0, &first, turn);
    static const char *const same[] = {
        "\"{\\\"location\\\": \\\"Paris\\\"}\"",                        /* as it was */
        "\"{\\\"location\\\":\\\"Paris\\\"}\"",                         /* spaced anew */
        "{\"location\":\"Paris\"}",                                     /* an object */
        "\"\\\"{\\\\\\\"location\\\\\\\":\\\\\\\"Paris\\\\\\\"}\\\"\"", /* encoded twice */
    };
    char body[2000];
    for (int i = 0; i < 4; i++) {
        snprintf(body, sizeof body,
                 "{" WEATHER ",\"messages\":[{\"role\":\"user\",\"content\":\"Paris?\"},{\"role\":\"assistant\","
                 "\"content\":null,\"tool_calls\":[{\"id\":\"" CALL_ID
                 "\",\"type\":\"function\",\"function\":{\"name\":"
                 "\"get_weather\",\"arguments\":%s}}]},{\"role\":\"tool\",\"tool_call_id\":\"" CALL_ID
                 "\",\"content\":\"7 degrees\"}]}",
                 same[i]);
        mx_ids second = ids_of(r, body);
        expect_begins_with(&second, &first, &mx_turn_get_result(turn)->ids);
        mx_ids_free(&second);
    }
    /* Another call under the same id is the client's own. */
    snprintf(
        body, sizeof body,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Paris?\"},{\"role\":\"assistant\",\"tool_calls\":[{\"id\":"
        "\"" CALL_ID "\",\"function\":{\"name\":\"get_weather\",\"arguments\":\"{\\\"location\\\":\\\"Oslo\\\"}\"}}"
        "]},{\"role\":\"tool\",\"tool_call_id\":\"" CALL_ID "\",\"content\":\"cold\"}]}");
    expect_prompt(
        r, body, HEAD USER("Paris?") CALL("get_weather", "{\"location\":\"Oslo\"}") RESULT("get_weather", "cold") NEXT);
    mx_turn_free(turn);
    mx_ids_free(&first);
    mx_replay_free(r);
}

/* Behind a final answer thinking goes, and the answer's own tokens stay. By text, by id, in several messages. */
static void test_by_text(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 20);
    mx_ids first = ids_of(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}");
    mx_turn *turn =
        answer_in_bytes("<|channel|>analysis<|message|>A greeting.<|end|><|start|>assistant<|channel|>final<|message|>",
                        "Good morning", "<|return|>");
    mx_ids same = {0}; /* what must be in the prompt */
    assert_true(mx_ids_add_all(&same, first.data, first.count));
    assert_int_equal(mx_encode_special(stories, "<|channel|>final<|message|>", 27, &same, NULL), MX_OK);
    for (const char *c = "Good morning"; *c; c++) assert_int_equal(mx_encode(stories, c, 1, &same, NULL), MX_OK);
    mx_ids plain =
        ids_of(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":"
                  "\"Good morning\"},{\"role\":\"user\",\"content\":\"And?\"}]}");
    assert_memory_not_equal(plain.data, same.data, (size_t)same.count * sizeof *same.data);
    mx_replay_keep(r, ID, 0, &first, turn);
    static const char *const said[] = {
        "{\"role\":\"assistant\",\"content\":\"Good morning\"}",
        "{\"role\":\"assistant\",\"content\":\"Good morning\\n\",\"reasoning_content\":\"A greeting.\"}",
        "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"Good \"},{\"type\":\"text\",\"text\":"
        "\"morning\"}]}",
        "{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"A greeting.\"},{\"role\":\"assistant\","
        "\"content\":\"Good morning\"}",
    };
    char body[1000];
    for (int i = 0; i < 4; i++) {
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},%s,{\"role\":\"user\",\"content\":\"And?\"}]}",
                 said[i]);
        mx_ids second = ids_of(r, body);
        assert_true(second.count > same.count);
        assert_memory_equal(second.data, same.data, (size_t)same.count * sizeof *same.data);
        mx_bytes text = text_of(stories, &second);
        assert_string_equal(text.data, HEAD USER("Hi") FINAL("Good morning") USER("And?") NEXT);
        mx_bytes_free(&text);
        mx_ids_free(&second);
    }
    mx_ids_free(&plain);
    mx_ids_free(&same);
    mx_ids_free(&first);
    mx_turn_free(turn);
    mx_replay_free(r);
}

/* One answer of several messages comes back as one, or as several. */
static void test_several_messages(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 20);
    mx_ids first = ids_of(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}");
    mx_turn *turn = turn_of("<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>analysis"
                            "<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Good.<|return|>",
                            MX_FINISH_STOP);
    mx_replay_keep(r, ID, 0, &first, turn);
#define SEVERAL(said) "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}," said "]}"
    static const char *const expected =
        HEAD USER("Hi") "<|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>" FINAL("Good.") NEXT;
    expect_prompt(r, SEVERAL("{\"role\":\"assistant\",\"content\":\"Let me see.\\n\\nGood.\"}"), expected);
    expect_prompt(r,
                  SEVERAL("{\"role\":\"assistant\",\"content\":\"Let me see.\"},{\"role\":\"assistant\",\"content\":"
                          "\"Good.\"}"),
                  expected);
    expect_prompt(r,
                  SEVERAL("{\"role\":\"assistant\",\"content\":\"Let me see.\"},{\"role\":\"assistant\",\"content\":"
                          "\"Bad.\"}"),
                  HEAD USER("Hi") FINAL("Let me see.") FINAL("Bad.") NEXT);
    mx_turn_free(turn);
    mx_ids_free(&first);
    mx_replay_free(r);
}

/* A call without an id: the thinking before it comes back in the same conversation, and in no other. */
static void test_nobody_elses_thinking(void **unused) {
    (void)unused;
#define LOOP(question, id)                                                                                             \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"" question "\"},{\"role\":\"assistant\",\"tool_calls\":[{" id     \
    "\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}]},{\"role\":\"tool\",\"name\":\"f\",\"content\":\"2\"}]}"
    mx_replay *r = new_replay(1 << 20);
    mx_ids first = ids_of(r, "{\"messages\":[{\"role\":\"user\",\"content\":\"Mine\"}]}");
    mx_turn *turn = turn_of("<|channel|>analysis<|message|>Secret.<|end|><|start|>assistant to=functions.f<|channel|>"
                            "commentary <|constrain|>json<|message|>{\"a\":1}<|call|>",
                            MX_FINISH_STOP);
    mx_replay_keep(r, ID, 0, &first, turn);
    expect_prompt(r, LOOP("Mine", ""), HEAD USER("Mine") THINK("Secret.") CALL("f", "{\"a\":1}") RESULT("f", "2") NEXT);
    expect_prompt(r, LOOP("Yours", ""), HEAD USER("Yours") CALL("f", "{\"a\":1}") RESULT("f", "2") NEXT);
    expect_prompt(r, LOOP("Yours", "\"id\":\"call_0123456789abcdef0123456789ac_0_0\","),
                  HEAD USER("Yours") CALL("f", "{\"a\":1}") RESULT("f", "2") NEXT);
    /* Another answer of n, so another id. */
    expect_prompt(r, LOOP("Yours", "\"id\":\"call_0123456789abcdef0123456789ab_1_0\","),
                  HEAD USER("Yours") CALL("f", "{\"a\":1}") RESULT("f", "2") NEXT);
    expect_prompt(r, LOOP("Yours", "\"id\":\"toolu_" ID "_0_0\","),
                  HEAD USER("Yours") THINK("Secret.") CALL("f", "{\"a\":1}") RESULT("f", "2") NEXT);
    mx_turn_free(turn);
    mx_ids_free(&first);
    mx_replay_free(r);
}

/* Memory is bounded; what was used lately stays. */
static void test_bound(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(60000);
    mx_ids prompts[200];
    mx_conversation *c;
    assert_int_equal(mx_conversation_create(stories, &c, NULL), MX_OK);
    int kept = 0;
    for (int i = 0; i < 200; i++) {
        char text[80], id[33];
        snprintf(text, sizeof text, "<|channel|>final<|message|>Answer %d<|return|>", i);
        snprintf(id, sizeof id, "%032x", i * 16 * 16 * 16 * 16);
        prompts[i] = (mx_ids){0};
        assert_true(mx_ids_add(&prompts[i], i));
        mx_turn *turn = turn_of(text, MX_FINISH_STOP);
        mx_replay_keep(r, id, 0, &prompts[i], turn);
        mx_turn_free(turn);
        /* The first is asked for again and again. */
        const mx_bytes none = {0};
        const mx_replay_key key = {
            .prompt = mx_replay_hash(&prompts[0]), .text = "Answer 0", .text_size = 8, .calls = &none};
        bool found;
        assert_int_equal(mx_replay_find(r, &key, c, &found, NULL), MX_OK);
        assert_true(found);
    }
    for (int i = 0; i < 200; i++) {
        char text[80];
        snprintf(text, sizeof text, "Answer %d", i);
        const mx_bytes none = {0};
        const mx_replay_key key = {
            .prompt = mx_replay_hash(&prompts[i]), .text = text, .text_size = strlen(text), .calls = &none};
        bool found;
        assert_int_equal(mx_replay_find(r, &key, c, &found, NULL), MX_OK);
        kept += found;
        if (i == 0 || i == 199) assert_true(found);
        if (i == 1) assert_false(found);
        mx_ids_free(&prompts[i]);
    }
    assert_in_range(kept, 10, 150);
    mx_conversation_free(c);
    mx_replay_free(r);
}

/* A conversation keeps the day on which it began; one that begins today with the same words has today. */
static void test_dates(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 16);
    char day[11];
    mx_replay_date(r, 1, true, day);
    assert_string_equal(day, "2026-11-27");
    now += 86400;
    mx_replay_date(r, 1, false, day);
    assert_string_equal(day, "2026-11-27");
    mx_replay_date(r, 2, false, day);
    assert_string_equal(day, "2026-11-28");
    for (uint64_t i = 0; i < 6000; i++) {
        mx_replay_date(r, 100 + i, true, day);
        mx_replay_date(r, 1, false, day);
        assert_string_equal(day, "2026-11-27");
    }
    mx_replay_date(r, 1, true, day);
    assert_string_equal(day, "2026-11-28");
    const mx_api_reader reader = {.settings = &settings, .replay = r, .dated = true};
    static const char *const bodies[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Ho\"},{\"role\":"
        "\"user\",\"content\":\"Hm\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi!\"},{\"role\":\"assistant\",\"content\":\"Ho\"},{\"role\":"
        "\"user\",\"content\":\"Hm\"}]}"};
    static const char *const days[] = {"2026-11-28", "2026-11-28", "2026-11-29"};
    for (int i = 0; i < 3; i++) {
        mx_api_request request;
        assert_int_equal(mx_api_read_body(&reader, true, 1, json(bodies[i]), &request, NULL), MX_OK);
        mx_bytes text = text_of(stories, &request.prompts[0]);
        assert_non_null(strstr(text.data, days[i]));
        mx_bytes_free(&text);
        mx_api_request_free(&request);
        if (i == 0) now += 86400;
    }
    mx_replay_free(r);
}

/* Any number of threads make chats of one template and keep and find answers at once. */
static atomic_int lost;

static void *work(void *data) {
    mx_replay *r = data;
    static atomic_int threads;
    const int self = atomic_fetch_add(&threads, 1);
    for (int i = 0; i < 50; i++) {
        char question[40], answer[80], said[40], id[33];
        mx_ids prompts[2] = {{0}, {0}};
        mx_turn *turn;
        snprintf(question, sizeof question, "Question %d", i);
        snprintf(said, sizeof said, "Answer %d", i);
        snprintf(answer, sizeof answer, "<|channel|>final<|message|>%s<|return|>", said);
        snprintf(id, sizeof id, "%016x%016x", self, i);
        const mx_api_said what = {.text = said, .text_size = strlen(said), .has_text = true};
        const mx_turn_options options = {.tokenizer = stories, .stop_tokens = &stop_tokens};
        mx_ids ids = {0};
        bool right =
            !mx_encode_special(stories, answer, strlen(answer), &ids, NULL) && !mx_turn_create(&options, &turn, NULL);
        for (int64_t k = 0; k < ids.count && right; k++) right = !mx_turn_push(turn, ids.data[k], NULL);
        right = right && !mx_turn_end(turn, MX_FINISH_STOP, NULL);
        for (int round = 0; round < 2 && right; round++) {
            mx_api_chat *chat;
            right = !mx_api_chat_create(&settings, r, true, &chat, NULL) &&
                    !mx_api_chat_add_user(chat, question, strlen(question), NULL) &&
                    (!round || !mx_api_chat_add_said(chat, &what, NULL)) &&
                    !mx_api_chat_prompt(chat, &prompts[round], NULL);
            mx_api_chat_free(chat);
            if (!round) mx_replay_keep(r, id, 0, &prompts[0], turn);
        }
        if (!right || prompts[1].count <= prompts[0].count) atomic_fetch_add(&lost, 1);
        mx_turn_free(turn);
        mx_ids_free(&ids);
        mx_ids_free(&prompts[0]);
        mx_ids_free(&prompts[1]);
    }
    return NULL;
}

static void test_threads(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(30000); /* so that entries go all the time */
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, r), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_int_equal(lost, 0);
    mx_replay_free(r);
}

/* The hash of a growing prompt is that of its ids, whatever is said. */
static void test_hash(void **unused) {
    (void)unused;
    mx_conversation *c;
    mx_prompt_hash *hash;
    uint32_t random = 1;
    assert_int_equal(mx_conversation_copy_settings(template, &c, NULL), MX_OK);
    assert_int_equal(mx_prompt_hash_create(c, &hash, NULL), MX_OK);
    for (int i = 0; i < 200; i++) {
        static const char *const channels[] = {"analysis", "commentary", "final"};
        for (int k = 0; k <= i % 3; k++) {
            random = random * 1664525u + 1013904223u;
            const uint32_t kind = random >> 16 & 7;
            const mx_status status = kind < 3    ? mx_conversation_add_assistant(c, channels[kind], "Hm.", 3, NULL)
                                     : kind == 3 ? mx_conversation_add_call(c, "f", "{}", 2, NULL)
                                     : kind == 4 ? mx_conversation_add_tool_result(c, "f", "1", 1, NULL)
                                                 : mx_conversation_add_user(c, "Hi", 2, NULL);
            assert_int_equal(status, MX_OK);
        }
        mx_ids ids = {0};
        assert_int_equal(mx_conversation_prompt(c, &ids, NULL), MX_OK);
        int64_t count;
        assert_true(mx_prompt_hash_of(hash, c, &count) == mx_replay_hash(&ids));
        assert_int_equal(count, ids.count);
        mx_ids_free(&ids);
    }
    mx_prompt_hash_free(hash);
    mx_conversation_free(c);
}

/* Of this thread's processor time: others on the machine do not count. */
static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double seconds_of(mx_replay *r, int pairs) {
    mx_api_chat *chat;
    mx_ids ids = {0};
    const mx_api_said said = {.text = "b", .text_size = 1, .has_text = true};
    assert_int_equal(mx_api_chat_create(&settings, r, false, &chat, NULL), MX_OK);
    for (int i = 0; i < pairs; i++) {
        assert_int_equal(mx_api_chat_add_user(chat, "a", 1, NULL), MX_OK);
        assert_int_equal(mx_api_chat_add_said(chat, &said, NULL), MX_OK);
    }
    const double start = thread_seconds();
    assert_int_equal(mx_api_chat_prompt(chat, &ids, NULL), MX_OK);
    const double seconds = thread_seconds() - start;
    mx_ids_free(&ids);
    mx_api_chat_free(chat);
    return seconds;
}

/* To look for what was said does not take longer and longer: 60 times as long as to render it, it was. */
static void test_long(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 20);
    const double without = seconds_of(NULL, 3000), with = seconds_of(r, 3000);
    if (with > 8 * without) fail_msg("%g s instead of %g s", with, without);
    mx_replay_free(r);
}

/* Who names a long answer again and again gets no prompt of a thousand contexts. */
static void test_named_often(void **unused) {
    (void)unused;
    mx_replay *r = new_replay(1 << 22);
    char words[4001] = "", said[200];
    for (int i = 0; i < 1000; i++) memcpy(words + 4 * i, "one ", 5);
    mx_turn *turn =
        answer_in_bytes("<|channel|>analysis<|message|>", words,
                        "<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>");
    const mx_ids nothing = {0};
    mx_bytes body = {0};
    mx_replay_keep(r, ID, 0, &nothing, turn);
    snprintf(said, sizeof said,
             "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"%s\",\"function\":{\"name\":\"f\","
             "\"arguments\":\"{}\"}}]},",
             CALL_ID);
    assert_true(mx_bytes_add_string(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"));
    for (int i = 0; i < 100; i++) assert_true(mx_bytes_add_string(&body, said));
    assert_true(mx_bytes_add_string(&body, "{\"role\":\"user\",\"content\":\"Hi\"}]}"));
    const mx_api_reader reader = {.settings = &settings, .replay = r};
    mx_api_request request;
    settings.setup.context = 5000;
    assert_int_equal(mx_api_read_body(&reader, true, 1, json(body.data), &request, NULL), MX_OK);
    assert_string_equal(request.problem.code, "context_length_exceeded");
    assert_in_range(request.prompts[0].count, 10000, 20000); /* of 400,000 */
    settings.setup.context = 0;
    mx_api_request_free(&request);
    mx_bytes_free(&body);
    mx_turn_free(turn);
    mx_replay_free(r);
}

int main(void) {
    setenv("TZ", "UTC", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_call),
        cmocka_unit_test(test_by_text),
        cmocka_unit_test(test_several_messages),
        cmocka_unit_test(test_nobody_elses_thinking),
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_dates),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_named_often),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("replay", tests, api_set_up, api_tear_down);
}
