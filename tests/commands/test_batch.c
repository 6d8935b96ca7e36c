#include "batch_support.h"

/* ---- forms ------------------------------------------------------------------------------------------------------- */
#define WEATHER                                                                                                        \
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"Gets the current weather in a "  \
    "city.\",\"parameters\":{\"type\":\"object\",\"properties\":{\"location\":{\"type\":\"string\",\"description\":"   \
    "\"The city.\"}},\"required\":[\"location\"]}}}]"

static void test_openai_chat(void **unused) {
    (void)unused;
    const char *input =
        "{\"custom_id\":\"echo\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"model\":\"any\","
        "\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":[{\"type\":"
        "\"text\",\"text\":\"Repeat after me: \"},{\"type\":\"text\",\"text\":\"golden whistle\"}]}],"
        "\"temperature\":0}}\n"
        "{\"custom_id\":\"call\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{"
        "\"role\":\"user\",\"content\":\"What is the weather in Paris?\"}],\"temperature\":0,\"tools\":" WEATHER "}}\n"
        "{\"custom_id\":\"result\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{"
        "\"role\":\"user\",\"content\":\"What is the weather in Paris?\"},{\"role\":\"assistant\",\"content\":null,"
        "\"reasoning_content\":\"I need the weather in Paris. I will call get_weather.\",\"tool_calls\":[{\"id\":"
        "\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"arguments\":\"{\\\"location\\\":"
        "\\\"Paris\\\"}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"call_1\",\"content\":\"{\\\"temperature\\\":7,"
        "\\\"sky\\\":\\\"cloudy\\\"}\"}],\"temperature\":0,\"tools\":" WEATHER "}}\n"
        "{\"custom_id\":\"plain\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{"
        "\"role\":\"user\",\"content\":\"Repeat after me: brave fox\"}],\"temperature\":0,\"max_completion_tokens\":"
        "3}}\n";
    outcome o = run_input(input, BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_int_equal(r.count, 4);
    const mx_json *echo = record_of(&r, "echo");
    assert_int_equal(number_at(echo, "response.status_code"), 200);
    assert_int_equal(value_at(echo, "error")->type, MX_JSON_NULL);
    assert_true(!strncmp(string_at(echo, "id"), "batch_req_1_", 12));
    const mx_json *body = value_at(echo, "response.body");
    assert_string_equal(string_at(body, "object"), "chat.completion");
    assert_string_equal(string_at(body, "model"), "stories");
    assert_string_equal(string_at(body, "choices.0.message.content"), "golden whistle");
    assert_string_equal(string_at(body, "choices.0.message.reasoning_content"), "A short answer.");
    assert_string_equal(string_at(body, "choices.0.finish_reason"), "stop");
    assert_int_equal(value_at(body, "choices.0.logprobs")->type, MX_JSON_NULL);
    assert_int_equal(number_at(body, "usage.total_tokens"),
                     number_at(body, "usage.prompt_tokens") + number_at(body, "usage.completion_tokens"));
    assert_int_equal(number_at(body, "usage.completion_tokens_details.reasoning_tokens"), 4);
    assert_true(number_at(body, "usage.prompt_tokens_details.cached_tokens") >= 0);

    body = value_at(record_of(&r, "call"), "response.body");
    assert_int_equal(value_at(body, "choices.0.message.content")->type, MX_JSON_NULL);
    assert_string_equal(string_at(body, "choices.0.finish_reason"), "tool_calls");
    assert_string_equal(string_at(body, "choices.0.message.tool_calls.0.function.name"), "get_weather");
    assert_string_equal(string_at(body, "choices.0.message.tool_calls.0.function.arguments"),
                        "{\"location\":\"Paris\"}");
    body = value_at(record_of(&r, "result"), "response.body");
    assert_string_equal(string_at(body, "choices.0.message.content"),
                        "It is cloudy in Paris, and the temperature is 7 degrees.");
    /* The tools of the line before are forgotten. */
    body = value_at(record_of(&r, "plain"), "response.body");
    assert_string_equal(string_at(body, "choices.0.finish_reason"), "length");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 3);
    assert_int_equal(number_at(body, "usage.prompt_tokens"), 61);
    free_records(&r);
    outcome_free(&o);
}

static void test_openai_completions(void **unused) {
    (void)unused;
    outcome o = run_input(
        "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once upon a "
        "time\","
        "\"temperature\":0}}\n"
        "{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":[\"Once upon\","
        "\"There was\"],\"n\":2,\"max_tokens\":4,\"echo\":true,\"seed\":5}}\n"
        "{\"custom_id\":\"c\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":[[1774,11,1861],"
        "[1774]],\"max_tokens\":2}}\n"
        "{\"custom_id\":\"d\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Hello\","
        "\"max_tokens\":0,\"echo\":true}}\n",
        BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    const mx_json *body = value_at(record_of(&r, "a"), "response.body");
    assert_string_equal(string_at(body, "object"), "text_completion");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 16);
    assert_true(!strncmp(string_at(body, "choices.0.text"), " there was a ", 13));
    body = value_at(record_of(&r, "b"), "response.body");
    assert_int_equal(value_at(body, "choices")->count, 4);
    for (int i = 0; i < 4; i++) {
        char path[40];
        snprintf(path, sizeof path, "choices.%d.text", i);
        assert_true(!strncmp(string_at(body, path), i < 2 ? "Once upon" : "There was", 9));
        snprintf(path, sizeof path, "choices.%d.index", i);
        assert_int_equal(number_at(body, path), i);
    }
    assert_int_equal(number_at(body, "usage.completion_tokens"), 16);
    assert_int_equal(value_at(value_at(record_of(&r, "c"), "response.body"), "choices")->count, 2);
    body = value_at(record_of(&r, "d"), "response.body");
    assert_string_equal(string_at(body, "choices.0.text"), "Hello");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 0);
    free_records(&r);
    outcome_free(&o);
}

/* The short form says what run says. */
static void test_short(void **unused) {
    (void)unused;
    outcome o =
        run_input("{\"id\":\"a\",\"prompt\":\"Repeat after me: golden whistle\",\"temperature\":0}\n"
                  "{\"id\":7,\"prompt\":\"Tell me a story about a fox and a lamp.\",\"stop\":\" lamp\"}\n"
                  "{\"prompt\":\"Once upon a time\",\"raw\":true,\"max_tokens\":4,\"seed\":123}\n"
                  "{\"id\":\"n\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"n\":3,\"max_tokens\":9}\n",
                  BATCH, "-i", "-", "-o", "-", "--reasoning", "low", "--seed", "4");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    const mx_json *a = record_of(&r, "a"), *story = record_of(&r, "7"), *raw = record_of(&r, "3");
    assert_string_equal(string_at(a, "text"), "golden whistle");
    assert_string_equal(string_at(a, "finish_reason"), "stop");
    assert_int_equal(value_at(a, "tool_calls")->count, 0);
    assert_null(strstr(string_at(story, "text"), "lamp"));
    assert_int_equal(number_at(raw, "seed"), 123);
    assert_int_equal(value_at(record_of(&r, "n"), "choices")->count, 3);
    assert_true(number_at(value_at(record_of(&r, "n"), "choices.0"), "seed") !=
                number_at(value_at(record_of(&r, "n"), "choices.1"), "seed"));

    /* The seed in the record gives the answer again. */
    char seed[30];
    snprintf(seed, sizeof seed, "%lld", (long long)number_at(story, "seed"));
    outcome again = run("-m", "stories", "-q", "--date", "", "--seed", seed, "--reasoning", "low", "--stop", " lamp",
                        "-p", "Tell me a story about a fox and a lamp.");
    again.out.data[--again.out.size] = 0; /* the newline */
    assert_string_equal(again.out.data, string_at(story, "text"));
    outcome_free(&again);
    free_records(&r);
    outcome_free(&o);
}

/* ---- sampling semantics ------------------------------------------------------------------------------------------ */
/* best_of: the answers with the highest mean logprob per token, the best first. */
static void test_best_of(void **unused) {
    (void)unused;
    outcome o =
        run_input("{\"id\":\"all\",\"prompt\":\"Once upon a time\",\"raw\":true,\"max_tokens\":8,\"seed\":3,\"n\":6,"
                  "\"logprobs\":0}\n"
                  "{\"id\":\"best\",\"prompt\":\"Once upon a time\",\"raw\":true,\"max_tokens\":8,\"seed\":3,\"n\":2,"
                  "\"best_of\":6,\"logprobs\":0}\n",
                  BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    const mx_json *all = value_at(record_of(&r, "all"), "choices"), *best = value_at(record_of(&r, "best"), "choices");
    double mean[6], first = -1e9, second = -1e9;
    const mx_json *choice[6], *firsts = NULL, *seconds = NULL;
    int i = 0;
    for (const mx_json *c = all->child; c; c = c->next, i++) {
        double sum = 0;
        const mx_json *list = value_at(c, "logprobs.token_logprobs");
        for (const mx_json *v = list->child; v; v = v->next) sum += strtod(v->text, NULL);
        choice[i] = c;
        mean[i] = sum / list->count;
    }
    assert_int_equal(i, 6);
    for (i = 0; i < 6; i++) {
        if (mean[i] > first) {
            second = first;
            seconds = firsts;
            first = mean[i];
            firsts = choice[i];
        } else if (mean[i] > second) {
            second = mean[i];
            seconds = choice[i];
        }
    }
    assert_int_equal(best->count, 2);
    assert_string_equal(string_at(best, "0.text"), string_at(firsts, "text"));
    assert_string_equal(string_at(best, "1.text"), string_at(seconds, "text"));
    assert_int_equal(number_at(record_of(&r, "best"), "usage.completion_tokens"), 48);
    assert_int_equal(number_at(record_of(&r, "best"), "usage.prompt_tokens"), 4);
    free_records(&r);
    outcome_free(&o);
}

static void test_logprobs(void **unused) {
    (void)unused;
    outcome o = run_input("{\"custom_id\":\"chat\",\"url\":\"/v1/chat/"
                          "completions\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"Repeat after me: golden whistle\"}],\"temperature\":0,\"logprobs\":true}}\n"
                          "{\"custom_id\":\"text\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once upon a "
                          "time\",\"temperature\":0,"
                          "\"max_tokens\":5,\"logprobs\":0}}\n"
                          "{\"custom_id\":\"cut\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once upon a "
                          "time\",\"temperature\":0,"
                          "\"max_tokens\":20,\"logprobs\":0,\"stop\":\" a \"}}\n",
                          BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    /* The tokens of a chat's content are the content. */
    const mx_json *choice = value_at(record_of(&r, "chat"), "response.body.choices.0");
    mx_bytes joined = {0};
    for (const mx_json *t = value_at(choice, "logprobs.content")->child; t; t = t->next) {
        assert_true(mx_bytes_add_string(&joined, string_at(t, "token")));
        assert_true(double_at(t, "logprob") <= 0 && double_at(t, "logprob") > -1);
        assert_int_equal(value_at(t, "bytes")->count, strlen(string_at(t, "token")));
    }
    assert_string_equal(joined.data, string_at(choice, "message.content"));
    mx_bytes_clear(&joined);
    choice = value_at(record_of(&r, "text"), "response.body.choices.0");
    int64_t offset = 0;
    const mx_json *offsets = value_at(choice, "logprobs.text_offset")->child;
    assert_int_equal(value_at(choice, "logprobs.tokens")->count, 5);
    assert_int_equal(value_at(choice, "logprobs.token_logprobs")->count, 5);
    assert_int_equal(value_at(choice, "logprobs.top_logprobs")->count, 5);
    for (const mx_json *t = value_at(choice, "logprobs.tokens")->child; t; t = t->next, offsets = offsets->next) {
        assert_int_equal(atoi(offsets->text), offset);
        offset += (int64_t)strlen(t->text);
        assert_true(mx_bytes_add_string(&joined, t->text));
    }
    assert_string_equal(joined.data, string_at(choice, "text"));
    /* "there was a ..." is cut before " a ": the tokens that begin behind are gone. */
    choice = value_at(record_of(&r, "cut"), "response.body.choices.0");
    assert_string_equal(string_at(choice, "text"), " there was");
    assert_string_equal(string_at(choice, "finish_reason"), "stop");
    assert_int_equal(value_at(choice, "logprobs.tokens")->count, 2);
    mx_bytes_free(&joined);
    free_records(&r);
    outcome_free(&o);
}

/* A prompt's logprobs are those that its tokens had when they were generated, bit for bit; the first has none. */
static void test_echo(void **unused) {
    (void)unused;
    outcome o = run_input("{\"custom_id\":\"a\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once upon a time\","
                          "\"temperature\":0,\"max_tokens\":9,\"logprobs\":3}}\n",
                          BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    const mx_json *made = value_at(record_of(&r, "a"), "response.body.choices.0");
    char line[1000];
    snprintf(
        line, sizeof line,
        "{\"custom_id\":\"b\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once upon a time%s\",\"echo\":true,"
        "\"max_tokens\":0,\"logprobs\":3,\"n\":2}}\n",
        string_at(made, "text"));
    outcome p = run_input(line, BATCH, "-i", "-", "-o", "-");
    expect_code(&p, 0);
    records q = parse_records(&p.out);
    for (int k = 0; k < 2; k++) {
        char choice[50];
        snprintf(choice, sizeof choice, "response.body.choices.%d", k);
        const mx_json *read = value_at(record_of(&q, "b"), choice);
        const mx_json *logprobs = value_at(read, "logprobs.token_logprobs"),
                      *top = value_at(read, "logprobs.top_logprobs");
        assert_int_equal(logprobs->count, value_at(read, "logprobs.tokens")->count);
        assert_int_equal(logprobs->child->type, MX_JSON_NULL);
        assert_int_equal(top->child->type, MX_JSON_NULL);
        const mx_json *x = value_at(made, "logprobs.token_logprobs")->child, *y = logprobs->child;
        const mx_json *t = value_at(made, "logprobs.top_logprobs")->child, *u = top->child;
        for (uint32_t i = 9; i < logprobs->count; i++, y = y->next, u = u->next) continue;
        for (; x; x = x->next, y = y->next, t = t->next, u = u->next) {
            mx_bytes a = {0}, b = {0};
            assert_string_equal(x->text, y->text);
            assert_int_equal(t->count, 3);
            assert_true(mx_json_write(&a, t) && mx_json_write(&b, u));
            assert_string_equal(a.data, b.data);
            mx_bytes_free(&a);
            mx_bytes_free(&b);
        }
        assert_null(y);
    }
    assert_int_equal(number_at(record_of(&q, "b"), "response.body.usage.completion_tokens"), 0);
    free_records(&r);
    free_records(&q);
    outcome_free(&o);
    outcome_free(&p);
}

static void test_limits(void **unused) {
    (void)unused;
    outcome o =
        run_input("{\"id\":\"short\",\"prompt\":\"Repeat after me: fox\",\"temperature\":0}\n"
                  "{\"id\":\"least\",\"prompt\":\"Tell me a story about a fox.\",\"temperature\":0,\"min_tokens\":40,"
                  "\"max_tokens\":60,\"stop\":\"fox\"}\n"
                  "{\"id\":\"late\",\"prompt\":\"Tell me a story.\",\"deadline\":0.5,\"logit_bias\":{\"4089\":-100,"
                  "\"4095\":-100,\"4088\":-100,\"4092\":-100}}\n"
                  "{\"custom_id\":\"later\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{"
                  "\"prompt\":\"There was\",\"max_tokens\":100000,\"deadline\":0.5,\"logit_bias\":{\"4089\":-100,"
                  "\"4095\":-100,\"4088\":-100,\"4092\":-100}}}\n"
                  "{\"id\":\"first\",\"prompt\":\"Tell me a story.\",\"priority\":5,\"max_tokens\":3}\n",
                  BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_true(number_at(record_of(&r, "short"), "usage.completion_tokens") < 40);
    assert_true(number_at(record_of(&r, "least"), "usage.completion_tokens") >= 40);
    assert_non_null(strstr(string_at(record_of(&r, "least"), "text"), "fox"));
    assert_string_equal(string_at(record_of(&r, "late"), "finish_reason"), "deadline");
    /* OpenAI has no such reason. */
    assert_string_equal(string_at(record_of(&r, "later"), "response.body.choices.0.finish_reason"), "length");
    assert_true(number_at(record_of(&r, "late"), "usage.completion_tokens") >= 0); /* none where all is slow */
    assert_int_equal(number_at(record_of(&r, "first"), "usage.completion_tokens"), 3);
    free_records(&r);
    outcome_free(&o);
}

#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],"
#define ENDLESS                                                                                                        \
    "\"logit_bias\":{\"4089\":-100,\"4095\":-100,\"4088\":-100,\"4092\":-100}" /* no token that ends an answer, nor a  \
                                                                                  header */

static void add_ids(mx_bytes *input, int count) {
    assert_true(mx_bytes_addf(
        input, "{\"custom_id\":\"%d ids\",\"url\":\"/v1/completions\",\"body\":{" ENDLESS ",\"prompt\":[5", count));
    for (int i = 1; i < count; i++) assert_true(mx_bytes_add_string(input, ",5"));
    assert_true(mx_bytes_add_string(input, "]}}\n"));
}

/* An answer goes on up to the last token of the context and says so; a prompt that leaves no room for a token is
 * refused with both numbers. */
static void test_context_end(void **unused) {
    (void)unused;
    mx_bytes input = {0};
    assert_true(mx_bytes_add_string(
        &input, "{\"custom_id\":\"chat\",\"url\":\"/v1/chat/completions\",\"body\":{" USER ENDLESS "}}\n"
                "{\"custom_id\":\"text\",\"url\":\"/v1/"
                "completions\",\"body\":{\"prompt\":\"Once\",\"max_tokens\":100000," ENDLESS "}}\n"
                "{\"id\":\"short\",\"prompt\":\"Hello\"," ENDLESS "}\n"
                "{\"custom_id\":\"long\",\"url\":\"/v1/chat/"
                "completions\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\""));
    for (int i = 0; i < 100; i++) assert_true(mx_bytes_add_string(&input, "one two "));
    assert_true(mx_bytes_add_string(&input, "\"}]}}\n"));
    static const int fits[] = {126, 127}, too_long[] = {128, 129, 300};
    for (int i = 0; i < 2; i++) add_ids(&input, fits[i]);
    for (int i = 0; i < 3; i++) add_ids(&input, too_long[i]);
    outcome o = run_with(&(surroundings){.input = input.data, .input_size = input.size},
                         (const char *const[]){BATCH, "-i", "-", "-o", "-", "-c", "128", NULL});
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_int_equal(r.count, 9);
    static const char *const ends[] = {"chat", "text", "126 ids", "127 ids"};
    for (int i = 0; i < 4; i++) {
        const mx_json *body = value_at(record_of(&r, ends[i]), "response.body");
        assert_string_equal(string_at(body, "choices.0.finish_reason"), "length");
        assert_int_equal(number_at(body, "usage.total_tokens"), 128);
        if (i >= 2) assert_int_equal(number_at(body, "usage.completion_tokens"), 128 - fits[i - 2]);
    }
    assert_string_equal(string_at(record_of(&r, "short"), "finish_reason"), "length");
    assert_int_equal(number_at(record_of(&r, "short"), "usage.total_tokens"), 128);
    for (int i = 0; i < 4; i++) {
        char id[20] = "long";
        long long prompt = 0, context = 0;
        if (i < 3) snprintf(id, sizeof id, "%d ids", too_long[i]);
        const mx_json *record = record_of(&r, id);
        assert_int_equal(number_at(record, "response.status_code"), 400);
        const mx_json *error = value_at(record, "response.body.error");
        assert_string_equal(string_at(error, "code"), "context_length_exceeded");
        assert_string_equal(string_at(error, "param"), i < 3 ? "prompt" : "messages");
        assert_int_equal(sscanf(string_at(error, "message"), "the prompt has %lld tokens and the context holds %lld,",
                                &prompt, &context),
                         2);
        assert_int_equal(context, 128);
        if (i < 3) assert_int_equal(prompt, too_long[i]);
        if (i == 3) assert_true(prompt > 200);
    }
    mx_bytes_free(&input);
    free_records(&r);
    outcome_free(&o);
}

/* ---- wrong lines ------------------------------------------------------------------------------------------------- */
static void test_wrong_lines(void **unused) {
    (void)unused;
#define CHAT(body) "{\"custom_id\":\"x\",\"url\":\"/v1/chat/completions\",\"body\":{" body "}}"
#define TEXT(body) "{\"custom_id\":\"x\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Hello\"," body "}}"
    static const struct {
        const char *line, *param, *code;
    } cases[] = {
        {CHAT(USER "\"temperature\":\"hot\""), "temperature", "invalid_type"},
        {CHAT(USER "\"temperature\":-1"), "temperature", "invalid_value"},
        {CHAT(USER "\"top_p\":1.5"), "top_p", "invalid_value"},
        {CHAT(USER "\"deadline\":-1"), "deadline", "invalid_value"},
        {CHAT(USER "\"priority\":\"high\""), "priority", "invalid_type"},
        {CHAT(USER "\"n\":0"), "n", "invalid_value"},
        {CHAT(USER "\"n\":1.5"), "n", "invalid_type"},
        {CHAT(USER "\"max_tokens\":0"), "max_tokens", "invalid_value"},
        {CHAT(USER "\"max_tokens\":2,\"min_tokens\":3"), "min_tokens", "invalid_value"},
        {CHAT(USER "\"logit_bias\":{\"a\":1}"), "logit_bias", "invalid_value"},
        {CHAT(USER "\"logit_bias\":{\"1\":1000}"), "logit_bias", "invalid_value"},
        {CHAT(USER "\"logit_bias\":{\"4096\":1}"), "logit_bias", "invalid_value"},
        {CHAT(USER "\"seed\":\"x\""), "seed", "invalid_type"},
        {CHAT(USER "\"stop\":[\"a\",\"\"]"), "stop", "invalid_value"},
        {CHAT(USER "\"top_logprobs\":3"), "top_logprobs", "invalid_value"},
        {CHAT(USER "\"logprobs\":true,\"top_logprobs\":21"), "top_logprobs", "invalid_value"},
        {CHAT(USER "\"reasoning_effort\":\"huge\""), "reasoning_effort", "invalid_value"},
        {CHAT(USER "\"tools\":[{}]"), "tools", "invalid_value"},
        {CHAT(USER "\"tool_choice\":\"required\""), "tool_choice", "invalid_value"},
        {CHAT(USER "\"response_format\":{\"type\":\"yaml\"}"), "response_format", "invalid_value"},
        {CHAT(USER "\"stream\":true"), "stream", "unsupported_value"},
        {CHAT("\"messages\":[]"), "messages", "invalid_value"},
        {CHAT("\"messages\":{}"), "messages", "invalid_type"},
        {CHAT("\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]"), "messages[0].role", "invalid_value"},
        {CHAT("\"messages\":[{\"role\":\"user\",\"content\":3}]"), "messages[0].content", "invalid_type"},
        {CHAT("\"messages\":[{\"role\":\"user\"}]"), "messages[0].content", "missing_required_parameter"},
        {CHAT("\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]"), "messages[0].content[0]",
         "unsupported_value"},
        {CHAT("\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"tool_calls\":[{\"id\":\"1\"}]},{\"role\":\"tool\","
              "\"tool_call_id\":\"1\",\"content\":\"x\"}]"),
         "messages[1].tool_call_id", "invalid_value"},
        {CHAT("\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\"}]}]"),
         "messages[0].tool_calls[0].function", "invalid_value"},
        {CHAT("\"x\":1"), "messages", "missing_required_parameter"},
        {TEXT("\"best_of\":1,\"n\":2"), "best_of", "invalid_value"},
        {TEXT("\"logprobs\":true"), "logprobs", "invalid_type"},
        {TEXT("\"logprobs\":21"), "logprobs", "invalid_value"},
        {TEXT("\"suffix\":\"x\""), "suffix", "unsupported_value"},
        {TEXT("\"prompt\":\"\""), "prompt", "invalid_value"},
        {TEXT("\"prompt\":[]"), "prompt", "invalid_value"},
        {TEXT("\"prompt\":[\"a\",{}]"), "prompt", "invalid_type"},
        {TEXT("\"prompt\":[1,4096]"), "prompt", "invalid_value"},
        {TEXT("\"prompt\":[1,-1]"), "prompt", "invalid_value"},
        {TEXT("\"prompt\":[1,\"x\"]"), "prompt", "invalid_value"},
        {"{\"custom_id\":\"x\",\"url\":\"/v1/embeddings\",\"body\":{}}", "url", "unsupported_value"},
        {"{\"custom_id\":\"x\",\"method\":\"GET\",\"body\":{}}", "method", "invalid_value"},
        {"{\"custom_id\":\"x\"}", "body", "missing_required_parameter"},
        {"{\"custom_id\":3,\"body\":{}}", "custom_id", "invalid_type"},
        {"{\"id\":\"x\"}", "prompt", "missing_required_parameter"},
        {"{\"id\":[]}", "id", "invalid_type"},
        {"{\"id\":\"x\",\"prompt\":\"a\",\"messages\":[]}", "prompt", "invalid_value"},
        {"{\"id\":\"x\",\"prompt\":[1]}", "prompt", "invalid_type"},
        {"{", NULL, "invalid_json"},
        {"{\"prompt\":\"a\"} x", NULL, "invalid_json"},
        {"{\"prompt\":\"\xff\"}", NULL, "invalid_json"},
        {"[1]", NULL, "invalid_type"},
    };
    enum { COUNT = sizeof cases / sizeof *cases };
    mx_bytes input = {0};
    for (int i = 0; i < COUNT; i++) assert_true(mx_bytes_addf(&input, "%s\n", cases[i].line));
    assert_true(mx_bytes_add_string(&input, "{\"id\":\"right\",\"prompt\":\"Hello\",\"max_tokens\":3}\n"));
    const surroundings s = {.input = input.data, .input_size = input.size};
    outcome o = run_with(&s, (const char *const[]){BATCH, "-i", "-", "-o", "-", "--ordered", NULL});
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_int_equal(r.count, COUNT + 1);
    for (int i = 0; i < COUNT; i++) {
        const mx_json *root = mx_json_root(r.item[i]), *error = mx_json_get(root, "error");
        const mx_json *response = mx_json_get(root, "response");
        if (response && response->type == MX_JSON_OBJECT) {
            assert_int_equal(number_at(response, "status_code"), 400);
            error = value_at(response, "body.error");
        }
        assert_non_null(error);
        if (strcmp(string_at(error, "code"), cases[i].code) != 0)
            fail_msg("%s: %s, not %s", cases[i].line, string_at(error, "code"), cases[i].code);
        assert_string_equal(string_at(error, "type"), "invalid_request_error");
        if (cases[i].param)
            assert_string_equal(string_at(error, "param"), cases[i].param);
        else
            assert_int_equal(value_at(error, "param")->type, MX_JSON_NULL);
    }
    assert_string_equal(string_at(record_of(&r, "right"), "finish_reason"), "length");
    mx_bytes_free(&input);
    free_records(&r);
    outcome_free(&o);
}

/* NUL bytes, CRLF, a byte order mark, blank lines, the same id twice, a last line without newline, a prompt that fits
 * no context. */
static void test_strange_lines(void **unused) {
    (void)unused;
    mx_bytes input = {0};
    const char nul[] = "{\"id\":\"nul\",\"prompt\":\"a\0b\"}\n";
    assert_true(
        mx_bytes_add_string(&input, "\xEF\xBB\xBF{\"id\":\"bom\",\"prompt\":\"Hello\",\"max_tokens\":2}\r\n\r\n  \n") &&
        mx_bytes_add(&input, nul, sizeof nul - 1) &&
        mx_bytes_add_string(&input, "{\"id\":\"same\",\"prompt\":\"Hello\",\"max_tokens\":2}\n") &&
        mx_bytes_add_string(&input, "{\"id\":\"same\",\"prompt\":\"a\\u0000b\",\"max_tokens\":2}\r\n") &&
        mx_bytes_add_string(&input, "{\"id\":\"long\",\"prompt\":\""));
    for (int i = 0; i < 50000; i++) assert_true(mx_bytes_add_string(&input, "one two "));
    assert_true(mx_bytes_add_string(&input, "\"}\n{\"id\":\"last\",\"prompt\":\"Hello\",\"max_tokens\":2}"));
    write_file("strange.jsonl", input.data, input.size);
    outcome o = run(BATCH, "-i", path_of("strange.jsonl"), "-o", "-", "--ordered", "--ctx", "4096");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_int_equal(r.count, 6);
    static const long lines[] = {1, 4, 5, 6, 7, 8};
    for (int i = 0; i < 6; i++) {
        const mx_json *root = mx_json_root(r.item[i]), *id = mx_json_get(root, "request_id");
        assert_int_equal(line_of(id ? id->text : string_at(root, "id")), lines[i]);
    }
    assert_string_equal(string_at(mx_json_root(r.item[1]), "error.code"), "invalid_json");
    assert_string_equal(string_at(record_of(&r, "bom"), "finish_reason"), "length");
    assert_string_equal(string_at(record_of(&r, "last"), "finish_reason"), "length");
    assert_string_equal(string_at(record_of(&r, "long"), "error.code"), "context_length_exceeded");
    assert_non_null(strstr(string_at(record_of(&r, "long"), "error.message"), "4096"));
    assert_string_equal(string_at(record_of(&r, "long"), "error.param"), "prompt");
    mx_bytes_free(&input);
    free_records(&r);
    outcome_free(&o);
}

/* 100 MB in one line. */
static void test_huge_line(void **unused) {
    (void)unused;
    enum { SIZE = 100 << 20 };
    char *text = malloc(SIZE + 100);
    assert_non_null(text);
    int begin = sprintf(text, "{\"id\":\"huge\",\"prompt\":\"");
    for (int i = begin; i < SIZE; i++) text[i] = (char)("one two \\n"[i % 8]);
    int end = SIZE + sprintf(text + SIZE, "\"}\n{\"id\":\"small\",\"prompt\":\"Hello\",\"max_tokens\":2}\n");
    write_file("huge.jsonl", text, (size_t)end);
    free(text);
    outcome o = run(BATCH, "-i", path_of("huge.jsonl"), "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    assert_int_equal(r.count, 2);
    assert_string_equal(string_at(record_of(&r, "huge"), "error.code"), "context_length_exceeded");
    assert_string_equal(string_at(record_of(&r, "small"), "finish_reason"), "length");
    free_records(&r);
    outcome_free(&o);
}

/* Answers that can be nothing but what was asked for, out of a chat, a completion and a call. */
static void test_rules(void **unused) {
    (void)unused;
    outcome o = run_input(
        "{\"custom_id\":\"a\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"Once\",\"seed\":1,\"temperature\":2,"
        "\"max_tokens\":60,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{"
        "\"enum\":[\"lamp\",\"fox\"]}}}}}\n"
        "{\"id\":\"b\",\"prompt\":\"Hello\",\"temperature\":0,\"max_tokens\":200,\"response_format\":{\"type\":"
        "\"regex\","
        "\"pattern\":\"[0-9]{3}\"}}\n"
        "{\"id\":\"c\",\"prompt\":\"Tell me a story.\",\"temperature\":0,\"max_tokens\":200,\"tools\":" WEATHER ","
        "\"tool_choice\":\"required\"}\n"
        "{\"id\":\"d\",\"prompt\":\"What is the weather in "
        "Paris?\",\"temperature\":0,\"max_tokens\":200,\"tools\":" WEATHER ",\"tool_choice\":\"none\"}\n",
        BATCH, "-i", "-", "-o", "-");
    expect_code(&o, 0);
    records r = parse_records(&o.out);
    const char *text = string_at(record_of(&r, "a"), "response.body.choices.0.text");
    assert_true(!strcmp(text, "\"lamp\"") || !strcmp(text, "\"fox\""));
    assert_string_equal(string_at(record_of(&r, "a"), "response.body.choices.0.finish_reason"), "stop");
    text = string_at(record_of(&r, "b"), "text");
    assert_true(strlen(text) == 3 && strspn(text, "0123456789") == 3);
    assert_string_equal(string_at(record_of(&r, "c"), "finish_reason"), "tool_calls");
    assert_int_equal(value_at(record_of(&r, "c"), "tool_calls")->count, 1);
    assert_int_equal(value_at(record_of(&r, "d"), "tool_calls")->count, 0);
    free_records(&r);
    outcome_free(&o);
}

/* Random weights, with a tokenizer from elsewhere: what goes with them, and that an output belongs to them. */
static void test_synthetic(void **unused) {
    (void)unused;
    char folder[4096], config[4200];
    snprintf(folder, sizeof folder, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    snprintf(config, sizeof config, "%s/config.json", folder);
    write_file("few.jsonl", "{\"prompt\":\"Hello\",\"max_tokens\":4,\"seed\":3}\n", 42);
    const struct {
        const char *code, *options[6];
    } wrong[] = {
        {"give -m or --synthetic, not both", {"--synthetic", config, "-m", "stories"}},
        {"--tokenizer takes one from a file", {"--synthetic", config}},
        {"--layers is for --synthetic models", {"-m", "stories", "--layers", "1"}},
        {"--load is for models in files", {"--synthetic", config, "--tokenizer", folder, "--load", "read"}},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *const *w = wrong[i].options;
        outcome o = run("batch", "-q", "-i", path_of("few.jsonl"), "-o", path_of("few.out"), w[0], w[1],
                        w[2] ? w[2] : NULL, w[3], w[4], w[5]);
        expect_code(&o, 2);
        expect_text(&o.err, wrong[i].code);
        outcome_free(&o);
    }
#define FEW(...)                                                                                                       \
    run("batch", "-q", "--synthetic", config, "--tokenizer", folder, "-i", path_of("few.jsonl"), "-c", "256",          \
        __VA_ARGS__)
    outcome o = FEW("-o", path_of("few.out"), "--layers", "1"), again = FEW("-o", "-", "--layers", "1");
    expect_code(&o, 0);
    expect_code(&again, 0);
    mx_bytes written = read_file("few.out");
    expect_same_records(&written, &again.out);
    mx_bytes_free(&written);
    outcome_free(&o);
    outcome_free(&again);
    o = FEW("-o", path_of("few.out"), "--layers", "2");
    expect_code(&o, 1);
    expect_text(&o.err, "another model");
    outcome_free(&o);
    o = run("batch", "-q", "--synthetic", "gpt-oss-7b", "--tokenizer", folder, "-i", path_of("few.jsonl"), "-o", "-");
    expect_code(&o, 2);
    expect_text(&o.err, "no such synthetic model");
    outcome_free(&o);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_chat), cmocka_unit_test(test_openai_completions),
        cmocka_unit_test(test_short),       cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_logprobs),    cmocka_unit_test(test_echo),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_context_end),
        cmocka_unit_test(test_wrong_lines), cmocka_unit_test(test_strange_lines),
        cmocka_unit_test(test_rules),       cmocka_unit_test(test_synthetic),
    };
    const struct CMUnitTest full[] = {cmocka_unit_test(test_huge_line)};
    if (argc > 1 && !strcmp(argv[1], "full"))
        return cmocka_run_group_tests_name("mxrun batch, long", full, program_set_up, program_tear_down);
    return cmocka_run_group_tests_name("mxrun batch", tests, program_set_up, program_tear_down);
}
