#include "support.h"

#include <glob.h>
#include <sys/stat.h>

#define STORY       "Tell me a story about a fox and a lamp."
#define CUT_IN_CALL "30"
#define GREEDY      "-m", "stories", "--greedy", "--date", "2026-11-23", "--kv-type", "f32"
/* An answer that never ends: return, call and endoftext get 100 less than their logit. */
#define ENDLESS "--logit-bias", "4089=-100", "--logit-bias", "4095=-100", "--logit-bias", "4088=-100"
#define ECHO_TOOLS                                                                                                     \
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"Gets the current weather in a "  \
    "city.\",\"parameters\":{\"type\":\"object\",\"properties\":{\"location\":{\"type\":\"string\",\"description\":"   \
    "\"The city.\"}},\"required\":[\"location\"]}}}]"

static const char *string_at(const mx_json *object, const char *key) {
    const mx_json *value = mx_json_get(object, key);
    assert_non_null(value);
    assert_int_equal(value->type, MX_JSON_STRING);
    return value->text;
}

static int64_t number_at(const mx_json *object, const char *key) {
    int64_t value = -1;
    assert_true(mx_json_int64(mx_json_get(object, key), &value));
    return value;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
/* The eight greedy goldens, from the words of the user to the words of the answer. */
static void test_golden_answers(void **unused) {
    (void)unused;
    char path[4096];
    mx_bytes file = {0};
    mx_json_document *goldens;
    snprintf(path, sizeof path, "%s/tests/data/stories.greedy.json", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(path, 1 << 24, &file, NULL), MX_OK);
    assert_int_equal(mx_json_parse(path, file.data, file.size, &goldens, NULL), MX_OK);
    int tried = 0;
    for (const mx_json *g = mx_json_root(goldens)->child; g; g = g->next) {
        const char *prompt = string_at(g, "prompt_text");
        const char *user = strstr(prompt, "user<|message|>"), *final = strstr(string_at(g, "text"), "final<|message|>");
        char effort[8], question[500], expected[4000];
        if (!user || !final || strstr(prompt, "developer")) continue;
        sscanf(strstr(prompt, "Reasoning: "), "Reasoning: %7[a-z]", effort);
        snprintf(question, sizeof question, "%.*s", (int)(strstr(user, "<|end|>") - user - 15), user + 15);
        snprintf(expected, sizeof expected, "%.*s\n", (int)(strstr(final, "<|return|>") - final - 16), final + 16);
        outcome o = run(GREEDY, "--reasoning", effort, "-p", question);
        expect_code(&o, 0);
        assert_string_equal(o.out.data, expected);
        outcome_free(&o);
        tried++;
    }
    assert_true(tried >= 5);
    mx_json_free(goldens);
    mx_bytes_free(&file);
}

static void test_streams_and_statistics(void **unused) {
    (void)unused;
    outcome o = run(GREEDY, "-p", STORY, "--show-thinking", "on");
    expect_code(&o, 0);
    expect_text(&o.out, "Once upon a time there was a patient fox");
    expect_no_text(&o.out, "The user wants");
    expect_text(&o.err, "The user wants a story about a fox and a lamp.\n");
    expect_text(&o.err, "77 prompt + 155 new tokens | first token ");
    expect_text(&o.err, " tokens/s | ");
    expect_text(&o.err, " | memory ");
    expect_text(&o.err, " | seed ");
    expect_no_text(&o.err, "\033"); /* no colours where nobody sees them */
    outcome_free(&o);
    o = run("run", GREEDY, "-p", STORY, "-q");
    expect_code(&o, 0);
    assert_string_equal(o.err.data, ""); /* thinking is for terminals */
    outcome_free(&o);
}

/* The KV memory that nobody gave is said, in one line before the answer's; stdout knows nothing of it. */
static void test_memory(void **unused) {
    (void)unused;
    long long context = 0;
    double memory = 0;
    char unit[3] = "";
    outcome o = run(GREEDY, "-n", "2", "-p", STORY);
    expect_code(&o, 0);
    assert_int_equal(sscanf(o.err.data, "mxrun: context %lld tokens, KV memory %lf %2s", &context, &memory, unit), 3);
    assert_true(context >= 4096 && memory > 0);
    assert_true(!strcmp(unit, "MB") || !strcmp(unit, "GB"));
    outcome_free(&o);
    static const char *const quiet[][2] = {{"--kv-memory", "3M"}, {"--json"}, {"-q"}};
    for (int i = 0; i < 3; i++) {
        o = run(GREEDY, "-n", "2", "-p", STORY, quiet[i][0], quiet[i][1]);
        expect_code(&o, 0);
        expect_no_text(&o.err, "KV memory");
        expect_no_text(&o.out, "KV memory");
        outcome_free(&o);
    }
}

static void test_json(void **unused) {
    (void)unused;
    outcome o = run(GREEDY, "--json", "--seed", "18446744073709551615", "-q", "-p", STORY);
    expect_code(&o, 0);
    mx_json_document *document = parse_output(&o);
    const mx_json *root = mx_json_root(document);
    assert_int_equal(strncmp(string_at(root, "text"), "Once upon a time", 16), 0);
    assert_string_equal(string_at(root, "thinking"), "The user wants a story about a fox and a lamp.");
    assert_string_equal(string_at(root, "finish_reason"), "stop");
    assert_int_equal(mx_json_get(root, "tool_calls")->count, 0);
    assert_string_equal(mx_json_get(root, "seed")->text, "18446744073709551615");
    const mx_json *usage = mx_json_get(root, "usage");
    assert_int_equal(number_at(usage, "prompt_tokens"), 77);
    assert_int_equal(number_at(usage, "completion_tokens"), 155);
    assert_int_equal(number_at(usage, "total_tokens"), 232);
    double seconds;
    assert_true(mx_json_double(mx_json_get(mx_json_get(root, "timings"), "first_token_seconds"), &seconds));
    assert_true(seconds > 0);
    mx_json_free(document);
    outcome_free(&o);
}

static void test_prompt_sources(void **unused) {
    (void)unused;
    char path[200];
    write_test_file("prompt.txt", "Repeat after me: golden whistle\n", path);
    outcome a = run(GREEDY, "-q", "-p", "Repeat after me: golden whistle");
    outcome b = run_input("Repeat after me: golden whistle\n", GREEDY, "-q", "-p", "-");
    outcome c = run_input("Repeat after me: golden whistle", GREEDY, "-q");
    outcome d = run(GREEDY, "-q", "-f", path);
    assert_string_equal(a.out.data, "golden whistle\n");
    assert_string_equal(b.out.data, a.out.data);
    assert_string_equal(c.out.data, a.out.data);
    assert_string_equal(d.out.data, a.out.data);
    outcome_free(&a);
    outcome_free(&b);
    outcome_free(&c);
    outcome_free(&d);
}

static void test_seed(void **unused) {
    (void)unused;
    outcome a = run("-m", "stories", "--seed", "7", "-n", "40", "-p", STORY, "--threads", "1");
    outcome b = run("-m", "stories", "--seed", "7", "-n", "40", "-p", STORY, "--threads", "3");
    assert_string_equal(a.out.data, b.out.data);
    outcome_free(&b);
    b = run("-m", "stories", "--seed", "8", "-n", "40", "-p", STORY);
    assert_string_not_equal(a.out.data, b.out.data);
    outcome_free(&a);
    outcome_free(&b);
    /* The seed that nobody gave is printed, and gives the same again. */
    a = run("-m", "stories", "-n", "40", "-p", STORY);
    char *seed = strstr(a.err.data, "| seed ");
    assert_non_null(seed);
    seed[strcspn(seed, "\n")] = 0;
    b = run("-m", "stories", "-n", "40", "-p", STORY, "--seed", seed + 7);
    assert_string_equal(a.out.data, b.out.data);
    outcome c = run("-m", "stories", "-n", "40", "-p", STORY);
    assert_string_not_equal(a.out.data, c.out.data);
    outcome_free(&a);
    outcome_free(&b);
    outcome_free(&c);
}

/* The last one counts; the earlier ones are freed, or the sanitizer would tell. */
static void test_repeated_options(void **unused) {
    (void)unused;
    outcome o = run("run", "-m", "/nowhere", "-p", STORY, "--greedy", "--max-tokens", "3", "-n", "200", "-n", "2",
                    "--model", "stories", "-p", "", "--prompt", STORY, "--json", "--json");
    expect_code(&o, 0);
    mx_json_document *document = parse_output(&o);
    assert_int_equal(number_at(mx_json_get(mx_json_root(document), "usage"), "completion_tokens"), 2);
    mx_json_free(document);
    outcome_free(&o);
    o = run("run", "-m", "/nowhere", "-n", "1", "-n", "2", "-n", "three");
    expect_code(&o, 2);
    expect_text(&o.err, "-n three");
    outcome_free(&o);
    o = run("run", "-n", "1", "-n", "2", "--nonsense");
    expect_code(&o, 2);
    outcome_free(&o);
    o = run("run", "-n", "1", "-n", "2", "--help");
    expect_code(&o, 0);
    expect_text(&o.out, "--max-tokens");
    outcome_free(&o);
}

/* A second process finds what the first computed, another precision does not, and a damaged file harms nobody. */
static void test_prefix_cache(void **unused) {
    (void)unused;
    char text[2000] = "", folder[200], file[500] = "";
    for (int i = 0; i < 25; i++) strcat(text, "Tom saw a red bird in the big tree and told Lily. ");
    snprintf(folder, sizeof folder, "%s/prefixes/of stories", test_folder);
    outcome cold = run("-m", "stories", "--greedy", "-n", "30", "-p", text);
    outcome first = run("-m", "stories", "--greedy", "-n", "30", "-p", text, "--prefix-cache", folder);
    outcome second = run("-m", "stories", "--greedy", "-n", "30", "-p", text, "--prefix-cache", folder);
    expect_code(&second, 0);
    assert_string_equal(first.out.data, cold.out.data);
    assert_string_equal(second.out.data, cold.out.data);
    expect_no_text(&first.err, "cached");
    expect_text(&second.err, " cached)");
    outcome_free(&second);
    second = run("-m", "stories", "--greedy", "-n", "30", "-p", text, "--prefix-cache", folder, "--precision", "bf16");
    expect_no_text(&second.err, "cached");
    outcome_free(&second);

    glob_t found;
    char pattern[300];
    snprintf(pattern, sizeof pattern, "%s/*.full", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) assert_int_equal(truncate(found.gl_pathv[i], 1000), 0);
    snprintf(file, sizeof file, "%s", found.gl_pathv[0]);
    globfree(&found);
    second = run("-m", "stories", "--greedy", "-n", "30", "-p", text, "--prefix-cache", folder);
    expect_code(&second, 0);
    assert_string_equal(second.out.data, cold.out.data);
    expect_text(&second.err, "its length is wrong");
    outcome_free(&second);

    second = run("-m", "stories", "-p", text, "--prefix-cache", file); /* not a folder */
    expect_code(&second, 1);
    expect_text(&second.err, file);
    outcome_free(&second);
    second = run("-m", "stories", "-p", text, "--prefix-cache", folder, "--prefix-cache-size", "10K");
    expect_code(&second, 2);
    expect_text(&second.err, "one tile of 64 tokens");
    outcome_free(&second);
    outcome_free(&first);
    outcome_free(&cold);
}

static void test_limits(void **unused) {
    (void)unused;
    outcome o = run(GREEDY, "--json", "-n", "20", "-p", STORY);
    mx_json_document *document = parse_output(&o);
    assert_string_equal(string_at(mx_json_root(document), "finish_reason"), "length");
    assert_int_equal(number_at(mx_json_get(mx_json_root(document), "usage"), "completion_tokens"), 20);
    mx_json_free(document);
    outcome_free(&o);
    o = run(GREEDY, "--json", "-p", STORY, "--stop", "never said", "--stop", "patient fox");
    document = parse_output(&o);
    assert_string_equal(string_at(mx_json_root(document), "finish_reason"), "stop");
    assert_string_equal(string_at(mx_json_root(document), "text"), "Once upon a time there was a ");
    mx_json_free(document);
    outcome_free(&o);
    o = run(GREEDY, "--json", "-p", STORY, "--ctx", "100");
    expect_code(&o, 0);
    expect_text(&o.err, "context of 100 tokens is full");
    document = parse_output(&o);
    assert_string_equal(string_at(mx_json_root(document), "finish_reason"), "context");
    mx_json_free(document);
    outcome_free(&o);
    o = run(GREEDY, "-p", STORY, "--ctx", "77");
    expect_code(&o, 1);
    expect_text(&o.err, "the prompt has 77 tokens, the context holds 77");
    outcome_free(&o);
}

static void test_tools(void **unused) {
    (void)unused;
    char path[200];
    write_test_file("tools.json", ECHO_TOOLS, path);
    outcome o = run(GREEDY, "-q", "--tools", path, "-p", "What is the weather in Paris?");
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "{\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"get_weather\","
                                    "\"arguments\":\"{\\\"location\\\":\\\"Paris\\\"}\"}}\n");
    outcome_free(&o);
    o = run(GREEDY, "--json", "--tools", path, "-p", "What is the weather in Paris?");
    mx_json_document *document = parse_output(&o);
    assert_string_equal(string_at(mx_json_root(document), "finish_reason"), "tool_calls");
    const mx_json *call = mx_json_get(mx_json_root(document), "tool_calls")->child;
    assert_string_equal(string_at(mx_json_get(call, "function"), "name"), "get_weather");
    mx_json_free(document);
    outcome_free(&o);
}

/* A call that -n cut is none on stdout, and marked in JSON. */
static void test_cut_call(void **unused) {
    (void)unused;
    char path[200];
    write_test_file("tools.json", ECHO_TOOLS, path);
    outcome o = run(GREEDY, "-q", "-n", CUT_IN_CALL, "--tools", path, "-p", "What is the weather in Paris?");
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "");
    expect_text(&o.err, "[a call of get_weather was cut: {");
    expect_text(&o.err, "cut after " CUT_IN_CALL " tokens (-n)\n");
    outcome_free(&o);
    o = run(GREEDY, "--json", "-n", CUT_IN_CALL, "--tools", path, "-p", "What is the weather in Paris?");
    mx_json_document *document = parse_output(&o);
    assert_string_equal(string_at(mx_json_root(document), "finish_reason"), "length");
    bool incomplete = false;
    mx_json_bool(mx_json_get(mx_json_get(mx_json_root(document), "tool_calls")->child, "incomplete"), &incomplete);
    assert_true(incomplete);
    mx_json_free(document);
    outcome_free(&o);
    o = run(GREEDY, "-q", "-n", "30", "-p", STORY);
    expect_code(&o, 0);
    expect_text(&o.err, "cut after 30 tokens (-n)\n");
    outcome_free(&o);
}

static void test_raw(void **unused) {
    (void)unused;
    outcome o = run("-m", "stories", "--greedy", "--raw", "-q", "-n", "12", "-p", "Once upon a time");
    expect_code(&o, 0);
    expect_text(&o.out, " there was a ");
    outcome_free(&o);
    /* Special tokens of the prompt are tokens; those of the answer are shown, but not the one that ends it. */
    o = run("-m", "stories", "--greedy", "--raw", "-q", "-p",
            "<|start|>user<|message|>Repeat after me: golden whistle<|end|><|start|>assistant<|channel|>analysis");
    expect_code(&o, 0);
    expect_text(&o.out, "<|end|><|start|>assistant<|channel|>final<|message|>golden whistle");
    expect_no_text(&o.out, "<|return|>");
    outcome_free(&o);
}

static void test_logit_bias(void **unused) {
    (void)unused;
    outcome o = run("-m", "stories", "--greedy", "--raw", "-q", "-n", "3", "-p", "Once upon", "--logit-bias", "0=100");
    assert_string_equal(o.out.data, "!!!\n"); /* token 0 */
    outcome_free(&o);
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------- */
static void test_wrong_values(void **unused) {
    (void)unused;
    static const char *const cases[][4] = {
        {"--temperature", "-1", "--temperature -1", NULL},
        {"--temperature", "nan", "--temperature nan", NULL},
        {"--temperature", "1.0x", "--temperature 1.0x", NULL},
        {"--temperature", "", "--temperature ", NULL},
        {"--top-k", "-1", "--top-k -1", NULL},
        {"--top-k", "2.5", "--top-k 2.5", NULL},
        {"--top-p", "0", "--top-p 0", NULL},
        {"--top-p", "1.01", "--top-p 1.01", NULL},
        {"--min-p", "1e9", "--min-p 1e9", NULL},
        {"--repetition-penalty", "0", "--repetition-penalty 0", NULL},
        {"--presence-penalty", "inf", "--presence-penalty inf", NULL},
        {"--frequency-penalty", "11", "--frequency-penalty 11", NULL},
        {"--logit-bias", "5", "--logit-bias 5", NULL},
        {"--logit-bias", "5=", "--logit-bias 5=", NULL},
        {"--logit-bias", "-5=1", "--logit-bias -5=1", NULL},
        {"--logit-bias", "5=101", "--logit-bias 5=101", NULL},
        {"--logit-bias", "4096=1", "the model's tokens are 0 to 4095", NULL},
        {"--stop", "", "--stop: the text is empty", NULL},
        {"--stop", "\xff", "--stop: the text is not UTF-8", NULL},
        {"--seed", "-1", "--seed -1", NULL},
        {"--seed", "18446744073709551616", "--seed 18446744073709551616", NULL},
        {"-n", "0", "-n 0", NULL},
        {"-n", "many", "-n many", NULL},
        {"--ctx", "0", "--ctx 0", NULL},
        {"--prefix-cache-size", "1G", "needs --prefix-cache FOLDER", NULL},
        {"--threads", "0", "--threads 0", NULL},
        {"--threads", "99999", "--threads 99999", NULL},
        {"--kv-type", "q8", "--kv-type q8", NULL},
        {"--numa", "distribute", "--numa distribute: expected auto, off, interleave or spread", NULL},
        {"--load", "mmap", "--load mmap: expected map, read or lazy", NULL},
        {"--precision", "fp8", "--precision: precision \"fp8\"", NULL},
        {"--dense", "mkl", "--dense mkl: expected own or openblas", NULL},
        {"--reasoning", "maximal", "--reasoning: ", NULL},
        {"--date", "23.11.2026", "--date: ", NULL},
        {"--date", "2026-02-29", "--date: \"2026-02-29\" is no date", NULL},
        {"--date", "2026-04-31", "--date: ", NULL},
        {"--date", "1900-02-29", "--date: ", NULL},
        {"--show-thinking", "perhaps", "--show-thinking perhaps", NULL},
        {"--greedy", "--temperature=0.5", "contradict", NULL},
        {"-f", "/etc/hostname", "-p and -f", NULL},
        {"--raw", "--system=x", "--system needs the chat format", NULL},
        {"--raw", "--tools=x", "--tools needs the chat format", NULL},
        {"--nonsense", "x", "--nonsense: unknown option", NULL},
        {"stray", "word", "unexpected argument \"stray\"", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome o = run("-m", "stories", "-p", "Hi", cases[i][0], cases[i][1]);
        expect_code(&o, 2);
        expect_text(&o.err, cases[i][2]);
        assert_string_equal(o.out.data, "");
        assert_ptr_equal(strchr(o.err.data, '\n'), o.err.data + o.err.size - 1); /* one line */
        outcome_free(&o);
    }
}

static void test_wrong_files(void **unused) {
    (void)unused;
    char path[200];
    outcome o = run("-m", "stories", "-f", "/no/such/file");
    expect_code(&o, 1);
    expect_text(&o.err, "/no/such/file");
    outcome_free(&o);
    o = run("-m", "stories", "-f", test_folder);
    expect_code(&o, 1);
    outcome_free(&o);
    o = run("-m", "stories", "-p", "Hi", "--tools", "/no/such/file");
    expect_code(&o, 1);
    expect_text(&o.err, "--tools: /no/such/file");
    outcome_free(&o);
    write_test_file("broken.json", "[{\"type\":", path);
    o = run("-m", "stories", "-p", "Hi", "--tools", path);
    expect_code(&o, 1);
    expect_text(&o.err, path);
    outcome_free(&o);
    write_test_file("nameless.json", "[{\"type\":\"function\",\"function\":{}}]", path);
    o = run("-m", "stories", "-p", "Hi", "--tools", path);
    expect_code(&o, 2);
    expect_text(&o.err, "\"name\" must be");
    outcome_free(&o);
}

static void test_wrong_prompts(void **unused) {
    (void)unused;
    outcome o = run("-m", "stories", "-p", "");
    expect_code(&o, 2);
    expect_text(&o.err, "the prompt is empty");
    outcome_free(&o);
    o = run("-m", "stories");
    expect_code(&o, 2);
    expect_text(&o.err, "the prompt on stdin is empty");
    outcome_free(&o);
    o = run("-m", "stories", "-n", "5", "-p", "Hi \xff there \xc3");
    expect_code(&o, 0);
    expect_text(&o.err, "the prompt is not UTF-8 throughout (byte 3)");
    const char *first = strstr(o.err.data, "not UTF-8");
    assert_null(strstr(first + 1, "not UTF-8")); /* once */
    outcome_free(&o);
    const surroundings nul = {.input = "Say \0 it", .input_size = 8};
    o = run_with(&nul, (const char *const[]){"-m", "stories", "-n", "5", "-p", "-", NULL});
    expect_code(&o, 0);
    outcome_free(&o);
}

static void test_models(void **unused) {
    (void)unused;
    char path[200];
    outcome o = run("-p", "Hi");
    expect_code(&o, 2);
    expect_text(&o.err, "no model given");
    outcome_free(&o);
    o = run("-m", "gpt-oss-20b", "-p", "Hi");
    expect_code(&o, 1);
    expect_text(&o.err, "gpt-oss-20b is not on this machine"); /* and nothing is downloaded unasked */
    outcome_free(&o);
    o = run("-m", "/no/such/folder", "-p", "Hi");
    expect_code(&o, 1);
    expect_text(&o.err, "/no/such/folder");
    outcome_free(&o);
    o = run("-m", test_folder, "-p", "Hi"); /* a folder without a model */
    expect_code(&o, 1);
    expect_text(&o.err, test_folder);
    outcome_free(&o);
    write_test_file("file.gguf", "GGUF", path);
    o = run("-m", path, "-p", "Hi");
    expect_code(&o, 1);
    expect_text(&o.err, path);
    outcome_free(&o);
}

/* Descriptors that the caller closed are not taken by the model's files. */
static void test_closed_descriptors(void **unused) {
    (void)unused;
    static const struct {
        const char *command, *says;
        int code;
    } cases[] = {
        {"exec \"$0\" -m stories --greedy -n 5 -q --raw -p Once >&-", "cannot write to stdout: Bad file descriptor", 1},
        {"exec \"$0\" -m stories --greedy -n 5 -q --raw -p Once <&- >&-", "cannot write to stdout: Bad file", 1},
        {"exec \"$0\" info -m stories >&-", "cannot write to stdout: Bad file descriptor", 1},
        {"exec \"$0\" -m stories -q -p - <&-", "stdin: cannot be read: Bad file descriptor", 1},
        {"exec \"$0\" -m stories --greedy -n 5 --raw -p Once 2>&-", "", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const surroundings shell = {.program = "/bin/sh"};
        outcome o = run_with(&shell, (const char *const[]){"-c", cases[i].command, getenv("MXRUN_BINARY"), NULL});
        expect_code(&o, cases[i].code);
        expect_text(&o.err, cases[i].says);
        outcome_free(&o);
    }
}

/* A named pipe where a model's file should be is refused; a prompt may come from one. */
static void test_pipes(void **unused) {
    (void)unused;
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors",
                                        "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const surroundings shell = {.program = "/bin/sh"};
        char command[1000];
        snprintf(
            command, sizeof command,
            "mkdir '%s/pipes' && cd '%s/pipes' && ln -s \"$1\"/tools/stories/checkpoint/* . && rm -f %s && mkfifo %s "
            "&& \"$0\" -m . -p Hi; code=$?; rm -r '%s/pipes'; exit $code",
            test_folder, test_folder, names[i], names[i], test_folder);
        outcome o = run_with(
            &shell, (const char *const[]){"-c", command, getenv("MXRUN_BINARY"), getenv("MXRUN_SOURCE"), NULL});
        expect_code(&o, 1);
        expect_text(&o.err, names[i]);
        expect_text(&o.err, "regular file");
        outcome_free(&o);
    }
    const surroundings shell = {.program = "/bin/bash"};
    outcome o = run_with(&shell, (const char *const[]){"-c",
                                                       "\"$0\" -m stories --greedy -q -f <(echo 'Repeat after me: "
                                                       "golden whistle')",
                                                       getenv("MXRUN_BINARY"), NULL});
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "golden whistle\n");
    outcome_free(&o);
}

/* Installed and then moved: the model is found beside the program. */
static void test_moved_installation(void **unused) {
    (void)unused;
    char program[200], path[200], target[4096];
    snprintf(path, sizeof path, "%s/prefix", test_folder);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/prefix/bin", test_folder);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/prefix/share", test_folder);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/prefix/share/mxrun", test_folder);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(program, sizeof program, "%s/prefix/bin/mxrun", test_folder);
    mx_bytes binary = {0};
    assert_int_equal(mx_read_file(getenv("MXRUN_BINARY"), (size_t)1 << 30, &binary, NULL), MX_OK);
    FILE *f = fopen(program, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(binary.data, 1, binary.size, f), binary.size);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(program, 0700), 0);
    mx_bytes_free(&binary);
    unsetenv("MXRUN_DATA");
    const surroundings moved = {.program = program};
    snprintf(path, sizeof path, "%s/prefix/share/mxrun/stories", test_folder);
    snprintf(target, sizeof target, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    assert_int_equal(symlink(target, path), 0);
    outcome o = run_with(&moved, (const char *const[]){"-m", "stories", "-n", "3", "-p", "Hi", NULL});
    expect_code(&o, 0);
    outcome_free(&o);
    setenv("MXRUN_DATA", test_folder, 1);
}

static void test_output_that_fails(void **unused) {
    (void)unused;
    const surroundings full = {.stdout_path = "/dev/full"};
    outcome o = run_with(&full, (const char *const[]){GREEDY, ENDLESS, "-p", STORY, NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to stdout: No space left on device");
    outcome_free(&o);
    o = run_with(&full, (const char *const[]){GREEDY, "--json", "-n", "3", "-p", STORY, NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to stdout: No space left on device");
    outcome_free(&o);
    const surroundings closed = {.close_stdout_at = 20};
    o = run_with(&closed, (const char *const[]){GREEDY, ENDLESS, "-p", STORY, NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to stdout: Broken pipe");
    outcome_free(&o);
    const char *const words[][2] = {{"--help"}, {"--version"}, {"run", "--help"}, {"chat", "--help"}};
    for (size_t i = 0; i < 4; i++) {
        o = run_with(&full, (const char *const[]){words[i][0], words[i][1], NULL});
        expect_code(&o, 1);
        outcome_free(&o);
    }
}

static void test_interrupt(void **unused) {
    (void)unused;
    const surroundings interrupt = {.interrupt_after = 30};
    outcome o = run_with(&interrupt, (const char *const[]){GREEDY, ENDLESS, "-p", STORY, NULL});
    expect_code(&o, 130);
    expect_text(&o.out, "Once upon a time");
    assert_int_equal(o.out.data[o.out.size - 1], '\n');
    expect_text(&o.err, "77 prompt + ");
    outcome_free(&o);
}

/* ---- help -------------------------------------------------------------------------------------------------------- */
static void test_help(void **unused) {
    (void)unused;
    static const char *const commands[] = {"run", "chat", "tokenize", "detokenize", "harmony", "verify", "info"};
    outcome o = run("--version");
    expect_code(&o, 0);
    assert_int_equal(strncmp(o.out.data, "mxrun 0.", 8), 0);
    outcome_free(&o);
    outcome list = run("--help");
    expect_code(&list, 0);
    expect_text(&list.out, "130");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char usage[50];
        snprintf(usage, sizeof usage, "  %s ", commands[i]);
        expect_text(&list.out, usage);
        snprintf(usage, sizeof usage, "Usage: mxrun %s ", commands[i]);
        o = run(commands[i], "--help");
        expect_code(&o, 0);
        assert_string_equal(o.err.data, "");
        expect_text(&o.out, usage);
        expect_text(&o.out, "-h, --help");
        expect_text(&o.out, "Exit codes:");
        outcome_free(&o);
    }
    outcome_free(&list);
    o = run("sing");
    expect_code(&o, 2);
    expect_text(&o.err, "no command \"sing\"");
    outcome_free(&o);
    o = run_with(&(surroundings){0}, (const char *const[]){NULL});
    expect_code(&o, 2);
    outcome_free(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_answers),
        cmocka_unit_test(test_streams_and_statistics),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_prompt_sources),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_repeated_options),
        cmocka_unit_test(test_prefix_cache),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_tools),
        cmocka_unit_test(test_cut_call),
        cmocka_unit_test(test_closed_descriptors),
        cmocka_unit_test(test_pipes),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_logit_bias),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_wrong_prompts),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_moved_installation),
        cmocka_unit_test(test_output_that_fails),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, program_set_up, program_tear_down);
}
