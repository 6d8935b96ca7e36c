#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define BATCH "batch", "-m", "stories", "-q"

/* ---- files ------------------------------------------------------------------------------------------------------- */
static const char *path_of(const char *name) {
    static char paths[8][200];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, 200, "%s/%s", test_folder, name);
    return path;
}

static mx_bytes read_file(const char *name) {
    mx_bytes file = {0};
    mx_error error;
    if (mx_read_file(path_of(name), (size_t)1 << 30, &file, &error)) fail_msg("%s", error.text);
    assert_true(mx_bytes_add(&file, "", 0));
    return file;
}

static void write_file(const char *name, const void *data, size_t size) {
    FILE *f = fopen(path_of(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

/* ---- records ----------------------------------------------------------------------------------------------------- */
typedef struct records {
    mx_json_document **item; /* [count] */
    int count;
} records;

static records parse_records(const mx_bytes *text) {
    records r = {calloc(text->size + 1, sizeof *r.item), 0};
    mx_error error;
    assert_true(text->size == 0 || text->data[text->size - 1] == '\n');
    for (const char *p = text->data, *newline; (newline = strchr(p, '\n')); p = newline + 1)
        if (mx_json_parse("record", p, (size_t)(newline - p), &r.item[r.count++], &error)) fail_msg("%s", error.text);
    return r;
}

static void free_records(records *r) {
    for (int i = 0; i < r->count; i++) mx_json_free(r->item[i]);
    free(r->item);
}

/* The record whose custom_id or id it is; a number: whose id is that. */
static const mx_json *record_of(const records *r, const char *id) {
    for (int i = 0; i < r->count; i++) {
        const mx_json *root = mx_json_root(r->item[i]), *custom = mx_json_get(root, "custom_id");
        const mx_json *found = custom ? custom : mx_json_get(root, "id");
        if (found && found->text && !strcmp(found->text, id)) return root;
    }
    fail_msg("no record of %s", id);
    return NULL;
}

/* "response.body.choices.0.text" */
static const mx_json *at(const mx_json *v, const char *path) {
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

static const char *string_at(const mx_json *v, const char *path) {
    v = at(v, path);
    assert_int_equal(v->type, MX_JSON_STRING);
    return v->text;
}

static int64_t number_at(const mx_json *v, const char *path) {
    int64_t value = -1;
    assert_true(mx_json_int64(at(v, path), &value));
    return value;
}

static double double_at(const mx_json *v, const char *path) {
    double value;
    assert_true(mx_json_double(at(v, path), &value));
    return value;
}

/* The number in "req_12_..." or "batch_req_12_...". */
static long line_of(const char *record) {
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
static mx_bytes sorted(const mx_bytes *text) {
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

static void expect_same_records(const mx_bytes *a, const mx_bytes *b) {
    mx_bytes x = sorted(a), y = sorted(b);
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
static void write_prompts(const char *name, int count) {
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

static void run_whole(const char *in, const char *out) {
    outcome o = run(BATCH, "-i", path_of(in), "-o", path_of(out));
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "");
    outcome_free(&o);
}

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
    assert_int_equal(at(echo, "error")->type, MX_JSON_NULL);
    assert_true(!strncmp(string_at(echo, "id"), "batch_req_1_", 12));
    const mx_json *body = at(echo, "response.body");
    assert_string_equal(string_at(body, "object"), "chat.completion");
    assert_string_equal(string_at(body, "model"), "stories");
    assert_string_equal(string_at(body, "choices.0.message.content"), "golden whistle");
    assert_string_equal(string_at(body, "choices.0.message.reasoning_content"), "A short answer.");
    assert_string_equal(string_at(body, "choices.0.finish_reason"), "stop");
    assert_int_equal(at(body, "choices.0.logprobs")->type, MX_JSON_NULL);
    assert_int_equal(number_at(body, "usage.total_tokens"),
                     number_at(body, "usage.prompt_tokens") + number_at(body, "usage.completion_tokens"));
    assert_int_equal(number_at(body, "usage.completion_tokens_details.reasoning_tokens"), 4);
    assert_true(number_at(body, "usage.prompt_tokens_details.cached_tokens") >= 0);

    body = at(record_of(&r, "call"), "response.body");
    assert_int_equal(at(body, "choices.0.message.content")->type, MX_JSON_NULL);
    assert_string_equal(string_at(body, "choices.0.finish_reason"), "tool_calls");
    assert_string_equal(string_at(body, "choices.0.message.tool_calls.0.function.name"), "get_weather");
    assert_string_equal(string_at(body, "choices.0.message.tool_calls.0.function.arguments"),
                        "{\"location\":\"Paris\"}");
    body = at(record_of(&r, "result"), "response.body");
    assert_string_equal(string_at(body, "choices.0.message.content"),
                        "It is cloudy in Paris, and the temperature is 7 degrees.");
    /* The tools of the line before are forgotten. */
    body = at(record_of(&r, "plain"), "response.body");
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
    const mx_json *body = at(record_of(&r, "a"), "response.body");
    assert_string_equal(string_at(body, "object"), "text_completion");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 16);
    assert_true(!strncmp(string_at(body, "choices.0.text"), " there was a ", 13));
    body = at(record_of(&r, "b"), "response.body");
    assert_int_equal(at(body, "choices")->count, 4);
    for (int i = 0; i < 4; i++) {
        char path[40];
        snprintf(path, sizeof path, "choices.%d.text", i);
        assert_true(!strncmp(string_at(body, path), i < 2 ? "Once upon" : "There was", 9));
        snprintf(path, sizeof path, "choices.%d.index", i);
        assert_int_equal(number_at(body, path), i);
    }
    assert_int_equal(number_at(body, "usage.completion_tokens"), 16);
    assert_int_equal(at(at(record_of(&r, "c"), "response.body"), "choices")->count, 2);
    body = at(record_of(&r, "d"), "response.body");
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
    assert_int_equal(at(a, "tool_calls")->count, 0);
    assert_null(strstr(string_at(story, "text"), "lamp"));
    assert_int_equal(number_at(raw, "seed"), 123);
    assert_int_equal(at(record_of(&r, "n"), "choices")->count, 3);
    assert_true(number_at(at(record_of(&r, "n"), "choices.0"), "seed") !=
                number_at(at(record_of(&r, "n"), "choices.1"), "seed"));

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
    const mx_json *all = at(record_of(&r, "all"), "choices"), *best = at(record_of(&r, "best"), "choices");
    double mean[6], first = -1e9, second = -1e9;
    const mx_json *choice[6], *firsts = NULL, *seconds = NULL;
    int i = 0;
    for (const mx_json *c = all->child; c; c = c->next, i++) {
        double sum = 0;
        const mx_json *list = at(c, "logprobs.token_logprobs");
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
    const mx_json *choice = at(record_of(&r, "chat"), "response.body.choices.0");
    mx_bytes joined = {0};
    for (const mx_json *t = at(choice, "logprobs.content")->child; t; t = t->next) {
        assert_true(mx_bytes_add_string(&joined, string_at(t, "token")));
        assert_true(double_at(t, "logprob") <= 0 && double_at(t, "logprob") > -1);
        assert_int_equal(at(t, "bytes")->count, strlen(string_at(t, "token")));
    }
    assert_string_equal(joined.data, string_at(choice, "message.content"));
    mx_bytes_clear(&joined);
    choice = at(record_of(&r, "text"), "response.body.choices.0");
    int64_t offset = 0;
    const mx_json *offsets = at(choice, "logprobs.text_offset")->child;
    assert_int_equal(at(choice, "logprobs.tokens")->count, 5);
    assert_int_equal(at(choice, "logprobs.token_logprobs")->count, 5);
    assert_int_equal(at(choice, "logprobs.top_logprobs")->count, 5);
    for (const mx_json *t = at(choice, "logprobs.tokens")->child; t; t = t->next, offsets = offsets->next) {
        assert_int_equal(atoi(offsets->text), offset);
        offset += (int64_t)strlen(t->text);
        assert_true(mx_bytes_add_string(&joined, t->text));
    }
    assert_string_equal(joined.data, string_at(choice, "text"));
    /* "there was a ..." is cut before " a ": the tokens that begin behind are gone. */
    choice = at(record_of(&r, "cut"), "response.body.choices.0");
    assert_string_equal(string_at(choice, "text"), " there was");
    assert_string_equal(string_at(choice, "finish_reason"), "stop");
    assert_int_equal(at(choice, "logprobs.tokens")->count, 2);
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
    const mx_json *made = at(record_of(&r, "a"), "response.body.choices.0");
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
        const mx_json *read = at(record_of(&q, "b"), choice);
        const mx_json *logprobs = at(read, "logprobs.token_logprobs"), *top = at(read, "logprobs.top_logprobs");
        assert_int_equal(logprobs->count, at(read, "logprobs.tokens")->count);
        assert_int_equal(logprobs->child->type, MX_JSON_NULL);
        assert_int_equal(top->child->type, MX_JSON_NULL);
        const mx_json *x = at(made, "logprobs.token_logprobs")->child, *y = logprobs->child;
        const mx_json *t = at(made, "logprobs.top_logprobs")->child, *u = top->child;
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
                  "{\"id\":\"least\",\"prompt\":\"Repeat after me: fox\",\"temperature\":0,\"min_tokens\":40,"
                  "\"max_tokens\":60,\"stop\":\"fox\"}\n"
                  "{\"id\":\"late\",\"prompt\":\"Tell me a story.\",\"deadline\":0.5,\"logit_bias\":{\"4089\":-100,"
                  "\"4095\":-100,\"4088\":-100}}\n"
                  "{\"custom_id\":\"later\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{"
                  "\"prompt\":\"There was\",\"max_tokens\":100000,\"deadline\":0.5,\"logit_bias\":{\"4089\":-100,"
                  "\"4095\":-100,\"4088\":-100}}}\n"
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

#define USER    "\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],"
#define ENDLESS "\"logit_bias\":{\"4089\":-100,\"4095\":-100,\"4088\":-100}" /* no token that ends an answer */

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
        const mx_json *body = at(record_of(&r, ends[i]), "response.body");
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
        const mx_json *error = at(record, "response.body.error");
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
        {CHAT(USER "\"tool_choice\":\"required\""), "tool_choice", "unsupported_value"},
        {CHAT(USER "\"response_format\":{\"type\":\"json_object\"}"), "response_format", "unsupported_value"},
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
            error = at(response, "body.error");
        }
        assert_non_null(error);
        if (strcmp(string_at(error, "code"), cases[i].code) != 0)
            fail_msg("%s: %s, not %s", cases[i].line, string_at(error, "code"), cases[i].code);
        assert_string_equal(string_at(error, "type"), "invalid_request_error");
        if (cases[i].param)
            assert_string_equal(string_at(error, "param"), cases[i].param);
        else
            assert_int_equal(at(error, "param")->type, MX_JSON_NULL);
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

/* ---- going on ---------------------------------------------------------------------------------------------------- */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Starts mxrun with stdin from `in` (-1: none) and stderr and stdout to nothing. */
static pid_t start(const char *const *arguments, int in, rlim_t file_limit) {
    const char *argv[40] = {getenv("MXRUN_BINARY")};
    for (int i = 0; arguments[i]; i++) argv[i + 1] = arguments[i];
    pid_t child = fork();
    if (child) return child;
    int nothing = open("/dev/null", O_RDWR);
    dup2(in >= 0 ? in : nothing, 0);
    dup2(nothing, 1);
    dup2(nothing, 2);
    if (file_limit) setrlimit(RLIMIT_FSIZE, &(struct rlimit){file_limit, file_limit});
    execv(argv[0], (char *const *)argv);
    _exit(127);
}

static int wait_for(pid_t child) {
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int lines_of(const mx_bytes *text) {
    int lines = 0;
    for (const char *p = text->data; (p = strchr(p, '\n')); p++) lines++;
    return lines;
}

/* Kills at random moments, one after the other, until there were as many as wanted or nothing is left to do. Each run
 * gets about `part` of what an undisturbed one takes. Returns how many there were. */
static int kill_often(const char *in, const char *out, int wanted, double whole, double part) {
    static unsigned random;
    if (!random) random = (unsigned)getpid();
    const char *const arguments[] = {BATCH, "-i", path_of(in), "-o", path_of(out), "--max-in-flight", "4", NULL};
    int kills = 0;
    unlink(path_of(out));
    while (kills < wanted) {
        pid_t child = start(arguments, -1, 0);
        usleep((useconds_t)(1e6 * whole * part * (0.2 + 1.6 * rand_r(&random) / RAND_MAX)));
        kill(child, SIGKILL);
        const int code = wait_for(child);
        if (code == 0) break;
        assert_int_equal(code, 128 + SIGKILL);
        kills++;
    }
    return kills;
}

/* After all of them the output is that of an undisturbed run, line for line. */
static void check_kills(int prompts, int kills, double part) {
    write_prompts("kill.jsonl", prompts);
    const double begin = now();
    outcome o = run(BATCH, "-i", path_of("kill.jsonl"), "-o", path_of("undisturbed.jsonl"), "--max-in-flight", "4");
    expect_code(&o, 0);
    outcome_free(&o);
    const double whole = now() - begin;
    mx_bytes before = {0};
    int killed_times = 0;
    for (int i = 0; i < 6 && (killed_times < kills || before.size == 0); i++) {
        mx_bytes_free(&before);
        killed_times = kill_often("kill.jsonl", "killed.jsonl", kills, whole, part);
        part *= killed_times < kills ? 0.6 : 1.5; /* the machine got faster or slower */
        before = access(path_of("killed.jsonl"), F_OK) ? (mx_bytes){0} : read_file("killed.jsonl");
    }
    run_whole("kill.jsonl", "killed.jsonl");
    mx_bytes undisturbed = read_file("undisturbed.jsonl"), killed = read_file("killed.jsonl");
    print_message("%d kills, %zu of %zu bytes were there after them\n", killed_times, before.size, killed.size);
    assert_int_equal(killed_times, kills);
    assert_in_range(before.size, 1, killed.size - 1);
    const char *torn = strrchr(before.data, '\n'); /* what is behind it is cut off, what is before it stays */
    if (torn) assert_memory_equal(killed.data, before.data, torn + 1 - before.data);
    assert_int_equal(lines_of(&killed), prompts);
    expect_same_records(&undisturbed, &killed);
    mx_bytes_free(&before);
    mx_bytes_free(&undisturbed);
    mx_bytes_free(&killed);
}

static void test_kills(void **unused) {
    (void)unused;
    check_kills(120, 8, 0.05);
}

static void test_kills_of_a_thousand(void **unused) {
    (void)unused;
    check_kills(1000, 20, 0.04);
}

/* Wherever the output is cut, what is missing is computed again. */
static void test_torn_output(void **unused) {
    (void)unused;
    write_prompts("torn.jsonl", 20);
    run_whole("torn.jsonl", "torn.whole");
    mx_bytes whole = read_file("torn.whole");
    unsigned random = 1;
    for (int i = 0; i < 10; i++) {
        write_file("torn.out", whole.data, (size_t)rand_r(&random) % whole.size);
        run_whole("torn.jsonl", "torn.out");
        mx_bytes again = read_file("torn.out");
        expect_same_records(&whole, &again);
        mx_bytes_free(&again);
    }
    /* Nothing is left to do, and nothing is changed. */
    run_whole("torn.jsonl", "torn.whole");
    mx_bytes again = read_file("torn.whole");
    assert_string_equal(again.data, whole.data);
    mx_bytes_free(&again);
    mx_bytes_free(&whole);
}

static void refused(const char *in, const char *out, const char *option, const char *value, const char *text) {
    struct stat before = {0}, after = {0};
    stat(path_of(out), &before);
    outcome o = run(BATCH, "-i", path_of(in), "-o", path_of(out), option, value);
    assert_in_range(o.code, 1, 2);
    expect_text(&o.err, text);
    outcome_free(&o);
    stat(path_of(out), &after);
    assert_int_equal(before.st_size, after.st_size);
}

static void test_other_output(void **unused) {
    (void)unused;
    write_prompts("mine.jsonl", 6);
    run_whole("mine.jsonl", "mine.out");
    write_prompts("longer.jsonl", 7); /* lines may be added */
    run_whole("longer.jsonl", "mine.out");
    refused("mine.jsonl", "mine.out", "--threads", "1", "it belongs to another input");
    refused("longer.jsonl", "mine.out", "--temperature", "0.5", "with other options");
    refused("longer.jsonl", "mine.out", "--reasoning", "low", "with other options");
    write_file("letter", "Dear fox,\nhow are you?", 22);
    refused("mine.jsonl", "letter", "--threads", "1", "no record of mxrun batch");
    write_file("letter", "Dear fox", 8);
    refused("mine.jsonl", "letter", "--threads", "1", "no output of mxrun batch");
    mx_bytes letter = read_file("letter");
    assert_string_equal(letter.data, "Dear fox");
    mx_bytes_free(&letter);
    outcome o = run(BATCH, "-i", path_of("mine.jsonl"), "-o", path_of("mine.jsonl"));
    expect_code(&o, 2);
    expect_text(&o.err, "the same file");
    outcome_free(&o);
    char *same = strdup(path_of("mine.jsonl"));
    o = run_with(&(surroundings){.stdout_path = same}, (const char *const[]){BATCH, "-i", same, "-o", "-", NULL});
    expect_code(&o, 2);
    expect_text(&o.err, "stdout: input and output are the same file");
    outcome_free(&o);
    free(same);
}

/* A model of the same names and sizes is another one. */
static void test_other_model(void **unused) {
    (void)unused;
    char stories[600], mine[300], command[2000], path[400];
    snprintf(stories, sizeof stories, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    snprintf(mine, sizeof mine, "%s", path_of("my.model"));
    snprintf(command, sizeof command, "cp -rL '%s' '%s' && chmod -R u+w '%s'", stories, mine, mine);
    assert_int_equal(system(command), 0);
    write_prompts("model.jsonl", 3);
    outcome o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
    expect_code(&o, 0);
    outcome_free(&o);
    write_prompts("model.jsonl", 4);
    o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
    expect_code(&o, 0);
    outcome_free(&o);
    write_prompts("model.jsonl", 5);
    static const char *const files[] = {"model.safetensors", "tokenizer.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        /* The end of the weights is a tensor's, the tokenizer's last byte but one is white space. */
        snprintf(path, sizeof path, "%s/%s", mine, files[i]);
        FILE *f = fopen(path, "r+");
        assert_non_null(f);
        fseek(f, i ? -2 : -3, SEEK_END);
        const int was = fgetc(f);
        fseek(f, i ? -2 : -3, SEEK_END);
        if (i) assert_int_equal(was, '\n');
        fputc(i ? ' ' : was ^ 1, f);
        fclose(f);
        o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
        expect_code(&o, 1);
        expect_text(&o.err, "with another model");
        outcome_free(&o);
        f = fopen(path, "r+");
        fseek(f, i ? -2 : -3, SEEK_END);
        fputc(was, f);
        fclose(f);
    }
}

/* Context, kernels and precision are part of what answers depend on, also where nobody named them. */
static void test_other_setup(void **unused) {
    (void)unused;
    const char *in = "setup.jsonl", *out = "setup.out";
    write_prompts(in, 4);
    outcome o = run("batch", "-m", "stories", "-i", path_of(in), "-o", path_of(out), "--kv-memory", "1M", "--precision",
                    "fp32");
    expect_code(&o, 0);
    expect_text(&o.err, "mxrun: context ");
    expect_text(&o.err, " tokens, KV memory 1.0 MB");
    outcome_free(&o);
    write_prompts(in, 5);
    refused(in, out, "--precision", "bf16", "was begun with --precision fp32, this run has bf16");
    /* With more memory it has the context that it was begun with. */
    o = run(BATCH, "-i", path_of(in), "-o", path_of(out), "--precision", "fp32");
    expect_code(&o, 0);
    outcome_free(&o);
    mx_bytes file = read_file(out);
    records r = parse_records(&file);
    assert_int_equal(r.count, 5);
    free_records(&r);
    mx_bytes_free(&file);
    write_prompts(in, 6);
    o = run(BATCH, "-i", path_of(in), "-o", path_of(out), "--precision", "fp32", "-c", "2000");
    expect_code(&o, 2);
    expect_text(&o.err, "was begun with a context of ");
    expect_text(&o.err, "this run has 2000");
    outcome_free(&o);

    const char *in2 = "large.jsonl", *out2 = "large.out";
    write_prompts(in2, 4);
    run_whole(in2, out2);
    write_prompts(in2, 5);
    refused(in2, out2, "--kv-memory", "1M", "was begun with a context of ");
    setenv("MXRUN_CPU", "scalar", 1);
    o = run(BATCH, "-i", path_of(in2), "-o", path_of(out2));
    unsetenv("MXRUN_CPU");
    if (o.code)
        expect_text(&o.err, "this run has those for scalar, which round differently");
    else
        print_message("the kernels of this machine are scalar\n");
    outcome_free(&o);
}

/* An output is one process's; a pipe is read as it comes. */
static void test_lock(void **unused) {
    (void)unused;
    int in[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    write_prompts("lock.jsonl", 3);
    const char *const arguments[] = {BATCH, "-i", "-", "-o", path_of("lock.out"), NULL};
    pid_t child = start(arguments, in[0], 0);
    close(in[0]);
    const char line[] = "{\"id\":\"a\",\"prompt\":\"Hello\",\"max_tokens\":2}\n";
    assert_int_equal(write(in[1], line, sizeof line - 1), sizeof line - 1);
    struct stat info = {0};
    for (int i = 0; i < 2000 && info.st_size == 0; i++) {
        usleep(10000);
        if (stat(path_of("lock.out"), &info)) info.st_size = 0;
    }
    assert_true(info.st_size > 0); /* though the pipe is still open */
    refused("lock.jsonl", "lock.out", "--threads", "1", "another mxrun");
    close(in[1]);
    assert_int_equal(wait_for(child), 0);
}

static void test_full_disk(void **unused) {
    (void)unused;
    write_prompts("full.jsonl", 30);
    run_whole("full.jsonl", "full.whole");
    outcome o = run(BATCH, "-i", path_of("full.jsonl"), "-o", "/dev/full");
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to /dev/full: No space left on device");
    expect_no_text(&o.err, "goes on");
    outcome_free(&o);
    /* A file that may not grow beyond 5,000 bytes is like a disk that is full there, in the middle of a line. */
    const char *const arguments[] = {BATCH, "-i", path_of("full.jsonl"), "-o", path_of("full.out"), NULL};
    assert_int_equal(wait_for(start(arguments, -1, 5000)), 1);
    mx_bytes part = read_file("full.out"), whole = read_file("full.whole");
    assert_in_range(part.size, 1, 5000);
    assert_int_equal(part.data[part.size - 1], '\n');
    run_whole("full.jsonl", "full.out");
    mx_bytes again = read_file("full.out");
    expect_same_records(&whole, &again);
    assert_memory_equal(again.data, part.data, part.size);
    mx_bytes_free(&part);
    mx_bytes_free(&whole);
    mx_bytes_free(&again);
}

static void test_interrupt(void **unused) {
    (void)unused;
    write_prompts("interrupt.jsonl", 60);
    run_whole("interrupt.jsonl", "interrupt.whole");
    const surroundings s = {.interrupt_after = 100};
    outcome o = run_with(&s, (const char *const[]){"batch", "-m", "stories", "-i", path_of("interrupt.jsonl"), "-o",
                                                   "-", "--max-in-flight", "4", NULL});
    expect_code(&o, 130);
    expect_text(&o.err, "finishing the ");
    expect_no_text(&o.err, "goes on");
    records r = parse_records(&o.out);
    assert_in_range(r.count, 3, 50); /* those at work were finished, no others begun */
    free_records(&r);
    /* What stdout got goes on as a file. */
    write_file("interrupt.out", o.out.data, o.out.size);
    outcome_free(&o);
    run_whole("interrupt.jsonl", "interrupt.out");
    mx_bytes whole = read_file("interrupt.whole"), again = read_file("interrupt.out");
    expect_same_records(&whole, &again);
    mx_bytes_free(&whole);
    mx_bytes_free(&again);
}

/* The second Ctrl-C does not wait for answers that never end. */
static void test_second_interrupt(void **unused) {
    (void)unused;
    mx_bytes input = {0};
    assert_true(mx_bytes_add_string(&input, "{\"id\":\"soon\",\"prompt\":\"Hello\",\"max_tokens\":2}\n"));
    for (int i = 0; i < 8; i++)
        assert_true(mx_bytes_add_string(&input, "{\"prompt\":\"Hello\",\"logit_bias\":{\"4088\":-100,\"4089\":-100,"
                                                "\"4095\":-100}}\n"));
    write_file("endless.jsonl", input.data, input.size);
    const char *const arguments[] = {BATCH, "-i", path_of("endless.jsonl"), "-o", path_of("endless.out"), NULL};
    const double begin = now();
    pid_t child = start(arguments, -1, 0);
    struct stat info = {0};
    while (info.st_size == 0 && now() < begin + 30) {
        usleep(10000);
        if (stat(path_of("endless.out"), &info)) info.st_size = 0;
    }
    kill(child, SIGINT);
    usleep(300000);
    assert_int_equal(waitpid(child, NULL, WNOHANG), 0);
    kill(child, SIGINT);
    assert_int_equal(wait_for(child), 128 + SIGINT);
    mx_bytes file = read_file("endless.out");
    records r = parse_records(&file);
    assert_int_equal(r.count, 1);
    free_records(&r);
    mx_bytes_free(&file);
    mx_bytes_free(&input);
}

/* ---- order, shards, dry run -------------------------------------------------------------------------------------- */
static void test_ordered(void **unused) {
    (void)unused;
    write_prompts("order.jsonl", 40);
    run_whole("order.jsonl", "order.whole");
    mx_bytes whole = read_file("order.whole");
    for (int i = 0; i < 3; i++) { /* from the beginning, from the middle, from a torn line */
        outcome o = run(BATCH, "-i", path_of("order.jsonl"), "-o", path_of("order.out"), "--ordered", "--max-in-flight",
                        i ? "64" : "3");
        expect_code(&o, 0);
        outcome_free(&o);
        mx_bytes again = read_file("order.out");
        expect_same_records(&whole, &again);
        long line = 0;
        for (const char *p = again.data; *p; p = strchr(p, '\n') + 1) {
            assert_int_equal(line_of(p), line + 1);
            line++;
        }
        write_file("order.out", again.data, again.size * (size_t)(2 - i) / 3);
        mx_bytes_free(&again);
    }
    /* All but line 1. */
    outcome o = run(BATCH, "-i", path_of("order.jsonl"), "-o", "-", "--ordered");
    const char *second = strchr(o.out.data, '\n') + 1;
    write_file("order.out", second, strlen(second));
    outcome_free(&o);
    o = run(BATCH, "-i", path_of("order.jsonl"), "-o", path_of("order.out"), "--ordered");
    expect_code(&o, 1);
    expect_text(&o.err, "line 1 is missing before others: go on without --ordered");
    outcome_free(&o);
    run_whole("order.jsonl", "order.out");
    mx_bytes again = read_file("order.out");
    expect_same_records(&whole, &again);
    mx_bytes_free(&again);
    mx_bytes_free(&whole);
}

static void test_shards(void **unused) {
    (void)unused;
    write_prompts("shard.jsonl", 20);
    run_whole("shard.jsonl", "shard.whole");
    mx_bytes whole = read_file("shard.whole"), all = {0};
    static const char *const shards[] = {"1/3", "2/3", "3/3"};
    for (int i = 0; i < 3; i++) {
        outcome o = run(BATCH, "-i", path_of("shard.jsonl"), "-o", "-", "--shard", shards[i]);
        expect_code(&o, 0);
        assert_true(mx_bytes_add(&all, o.out.data, o.out.size));
        outcome_free(&o);
    }
    expect_same_records(&whole, &all);
    mx_bytes_free(&whole);
    mx_bytes_free(&all);
    static const char *const wrong[] = {"0/3", "4/3", "1", "1/0", "a/b", "1/3x", "-1/3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run(BATCH, "-i", path_of("shard.jsonl"), "-o", "-", "--shard", wrong[i]);
        expect_code(&o, 2);
        expect_text(&o.err, "--shard");
        outcome_free(&o);
    }
}

static void test_dry_run(void **unused) {
    (void)unused;
    write_prompts("dry.jsonl", 9);
    outcome o = run(BATCH, "-i", path_of("dry.jsonl"), "-o", path_of("dry.out"), "--dry-run");
    expect_code(&o, 0);
    expect_text(&o.out, "requests: 9, of them 0 answered already and 0 wrong\n");
    expect_text(&o.out, "answers:  12, 12 limited by max_tokens to ");
    expect_text(&o.out, "measured: prompts ");
    expect_text(&o.out, "answers take at most about ");
    assert_int_not_equal(access(path_of("dry.out"), F_OK), 0);
    outcome_free(&o);
    /* The numbers are those of the run. */
    o = run(BATCH, "-i", path_of("dry.jsonl"), "-o", "-");
    records r = parse_records(&o.out);
    long long tokens = 0;
    for (int i = 0; i < r.count; i++) {
        const mx_json *root = mx_json_root(r.item[i]), *response = mx_json_get(root, "response");
        tokens += number_at(response ? mx_json_get(response, "body") : root, "usage.prompt_tokens");
    }
    free_records(&r);
    outcome_free(&o);
    char expected[60];
    snprintf(expected, sizeof expected, "prompts:  %lld tokens", tokens);
    o = run(BATCH, "-i", path_of("dry.jsonl"), "--dry-run");
    expect_text(&o.out, expected);
    outcome_free(&o);
}

/* The same for any number of threads, whatever else is in flight, however little memory there is. */
static void test_same_alone(void **unused) {
    (void)unused;
    write_prompts("alone.jsonl", 30);
    outcome first = run(BATCH, "-i", path_of("alone.jsonl"), "-o", "-", "-c", "1000");
    expect_code(&first, 0);
    static const char *const ways[][6] = {{"--max-in-flight", "1"},
                                          {"--max-in-flight", "7", "--threads", "3", "--speculate", "on"},
                                          {"--kv-memory", "3M", "--batch-tokens", "17"}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        outcome o = run(BATCH, "-i", path_of("alone.jsonl"), "-o", "-", "-c", "1000", ways[i][0], ways[i][1],
                        ways[i][2], ways[i][3], ways[i][4], ways[i][5]);
        expect_code(&o, 0);
        expect_same_records(&first.out, &o.out);
        outcome_free(&o);
    }
    outcome_free(&first);
}

/* The last line on stderr: guessed tokens where there were any. */
static void test_summary(void **unused) {
    (void)unused;
    const char *line =
        "{\"prompt\":\"one two three one two three one two three one two\",\"raw\":true,\"max_tokens\":40,"
        "\"temperature\":0}\n";
    static const char *const ways[] = {"on", "off"};
    for (int i = 0; i < 2; i++) {
        outcome o = run_input(line, "batch", "-m", "stories", "-i", "-", "-o", "-", "--speculate", ways[i]);
        expect_code(&o, 0);
        expect_text(&o.err, "mxrun: 1 request in ");
        expect_text(&o.err, " + 40 new | ");
        if (i == 0)
            expect_text(&o.err, " guessed tokens right");
        else
            expect_no_text(&o.err, "guessed");
        outcome_free(&o);
    }
}

static void test_wrong_options(void **unused) {
    (void)unused;
    static const struct {
        const char *arguments[12], *text;
        int code;
    } wrong[] = {
        {{"batch", "-m", "stories", "-o", "-"}, "no input given", 2},
        {{"batch", "-m", "stories", "-i", "-"}, "no output given", 2},
        {{"batch", "-i", "-", "-o", "-"}, "no model given", 2},
        {{"batch", "-m", "stories", "-i", "/nowhere/in", "-o", "-"}, "/nowhere/in", 1},
        {{"batch", "-m", "stories", "-i", "/", "-o", "-"}, "folder", 1},
        {{"batch", "-m", "stories", "-i", "-", "-o", "/nowhere/out"}, "/nowhere/out", 1},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "--max-in-flight", "0"}, "--max-in-flight 0", 2},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "extra"}, "unexpected argument", 2},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "--raw", "--reasoning", "low"}, "--reasoning", 2},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run_with(&(surroundings){0}, wrong[i].arguments);
        expect_code(&o, wrong[i].code);
        expect_text(&o.err, wrong[i].text);
        outcome_free(&o);
    }
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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_chat),
        cmocka_unit_test(test_openai_completions),
        cmocka_unit_test(test_short),
        cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_wrong_lines),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_context_end),
        cmocka_unit_test(test_strange_lines),
        cmocka_unit_test(test_kills),
        cmocka_unit_test(test_torn_output),
        cmocka_unit_test(test_other_output),
        cmocka_unit_test(test_other_model),
        cmocka_unit_test(test_other_setup),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_second_interrupt),
        cmocka_unit_test(test_ordered),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_same_alone),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_wrong_options),
    };
    const struct CMUnitTest full[] = {cmocka_unit_test(test_huge_line), cmocka_unit_test(test_kills_of_a_thousand)};
    if (argc > 1 && !strcmp(argv[1], "full"))
        return cmocka_run_group_tests_name("mxrun batch, long", full, program_set_up, program_tear_down);
    return cmocka_run_group_tests_name("mxrun batch", tests, program_set_up, program_tear_down);
}
