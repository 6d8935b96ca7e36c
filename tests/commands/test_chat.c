#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define GREEDY "chat", "-m", "stories", "--greedy", "--date", "2026-11-23"
/* No token that ends an answer, nor the role of the user, as whom the model would go on. */
#define ENDLESS                                                                                                        \
    "--logit-bias", "4089=-100", "--logit-bias", "4095=-100", "--logit-bias", "4088=-100", "--logit-bias", "337=-100"

/* ---- stdin is a pipe --------------------------------------------------------------------------------------------- */
static void test_lines(void **unused) {
    (void)unused;
    outcome o = run_input("Repeat after me: golden whistle\n\n   \nRepeat after me: brave fox", GREEDY);
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "golden whistle\nbrave fox\n");
    expect_text(&o.err, "context ");
    expect_text(&o.err, " tokens, KV memory ");
    expect_text(&o.err, "B, seed ");
    expect_no_text(&o.err, "A short answer"); /* thinking is for terminals */
    expect_no_text(&o.err, "\033");
    outcome_free(&o);
}

/* KV memory is said, that which was taken and that which was given. */
static void test_memory(void **unused) {
    (void)unused;
    outcome o = run_input("/quit\n", GREEDY);
    char *memory = strstr(o.err.data, "KV memory ");
    assert_non_null(memory);
    assert_true(strtod(memory + strlen("KV memory "), NULL) > 0);
    outcome_free(&o);
    o = run_input("/quit\n", GREEDY, "--kv-memory", "3M");
    expect_text(&o.err, " tokens, KV memory 3.1 MB, seed ");
    outcome_free(&o);
    o = run_input("/quit\n", GREEDY, "-q");
    assert_string_equal(o.err.data, "");
    outcome_free(&o);
}

/* The second prompt begins with the first one, so that it is not computed again. */
static void test_prefix_is_reused(void **unused) {
    (void)unused;
    outcome o = run_input("Repeat after me: golden whistle\nRepeat after me: brave fox\n/stats\n", GREEDY);
    expect_code(&o, 0);
    expect_text(&o.err, "conversation: 6 messages, ");
    const char *last = strstr(o.err.data, "last answer: ");
    assert_non_null(last);
    int prompt = 0, cached = 0;
    assert_int_equal(sscanf(last, "last answer: %d prompt (%d cached)", &prompt, &cached), 2);
    assert_in_range(cached, 60, prompt);
    outcome_free(&o);
}

static void test_commands(void **unused) {
    (void)unused;
    outcome o =
        run_input("/help\n/reasoning\n/reasoning high\n/reasoning\n/system\n/system You are a fox.\n/developer\n"
                  "/developer Be brief.\n/developer\n/developer \"\"\n/developer\n/compact\n/reset\n/quit\nRepeat "
                  "after me: not reached\n",
                  GREEDY);
    expect_code(&o, 0);
    assert_string_equal(o.out.data, "");
    static const char *const parts[] = {"/help ",
                                        "/reset ",
                                        "/system ",
                                        "/reasoning ",
                                        "/save ",
                                        "/load ",
                                        "/stats ",
                                        "/quit ",
                                        "/compact ",
                                        "reasoning: medium\n",
                                        "[reasoning is set",
                                        "reasoning: high\n",
                                        "system: You are ChatGPT, a large",
                                        "[system is set",
                                        "developer: \n",
                                        ("developer: Be brief.\n[developer is set; it holds from the next message "
                                         "on]\ndeveloper: \n"),
                                        "[nothing to forget: ",
                                        "[a new conversation]"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) expect_text(&o.err, parts[i]);
    outcome_free(&o);
}

static void test_wrong_commands(void **unused) {
    (void)unused;
    static const char *const cases[][2] = {{"/sing\n", "there is no command /sing"},
                                           {"/reasoning much\n", "reasoning is low, medium or high"},
                                           {"/load /no/such/file\n", "/no/such/file"},
                                           {"/load -\n", "/load needs a file name (a file called - is ./-)"},
                                           {"/save -\n", "/save needs a file name"},
                                           {"/load /etc/hostname\n", "/etc/hostname"},
                                           {"/save /no/such/folder/file\n", "/no/such/folder/file"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char input[200];
        snprintf(input, sizeof input, "%sRepeat after me: golden whistle\n", cases[i][0]);
        outcome o = run_input(input, GREEDY);
        expect_code(&o, 1); /* in a pipe nobody else would notice */
        expect_text(&o.err, cases[i][1]);
        assert_string_equal(o.out.data, "golden whistle\n");
        outcome_free(&o);
    }
}

static void test_slash_as_text(void **unused) {
    (void)unused;
    outcome o = run_input("//help\n/stats\n", GREEDY, "-n", "4");
    expect_code(&o, 0);
    expect_text(&o.err, "[cut after 4 tokens");
    expect_no_text(&o.err, "this list");
    outcome_free(&o);
}

static void test_save_and_load(void **unused) {
    (void)unused;
    char path[200], input[1000];
    snprintf(path, sizeof path, "%s/saved.json", test_folder);
    snprintf(input, sizeof input, "Repeat after me: golden whistle\n/save %s\n", path);
    outcome o = run_input(input, GREEDY);
    expect_code(&o, 0);
    expect_text(&o.err, "[3 messages saved in ");
    outcome_free(&o);
    snprintf(input, sizeof input, "/load %s\n/stats\n", path);
    o = run_input(input, GREEDY);
    expect_code(&o, 0);
    expect_text(&o.err, "[3 messages loaded from ");
    expect_text(&o.err, "conversation: 3 messages, ");
    outcome_free(&o);
}

static void test_tool(void **unused) {
    (void)unused;
    char path[200];
    write_test_file("weather.json",
                    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"Gets the current "
                    "weather in a city.\",\"parameters\":{\"type\":\"object\",\"properties\":{\"location\":{\"type\":"
                    "\"string\",\"description\":\"The city.\"}},\"required\":[\"location\"]}}}]",
                    path);
    outcome o = run_input("What is the weather in Paris?\n{\"temperature\":7,\"sky\":\"cloudy\"}\n/stats\n", GREEDY,
                          "--tools", path);
    expect_code(&o, 0);
    expect_text(&o.out, "\"arguments\":\"{\\\"location\\\":\\\"Paris\\\"}\"}}\nIt is cloudy in Paris, and the "
                        "temperature is 7 degrees.\n");
    expect_text(&o.err, "conversation: 5 messages");
    outcome_free(&o);
    /* No result: the question is taken back. */
    o = run_input("What is the weather in Paris?\n", GREEDY, "--tools", path);
    expect_code(&o, 1);
    expect_text(&o.err, "[no result of get_weather: your message is taken back]");
    outcome_free(&o);
}

/* A full context is said, and /compact makes room; nothing is dropped before. */
static void test_full_context(void **unused) {
    (void)unused;
    outcome o = run_input("Repeat after me: golden whistle\nRepeat after me: golden whistle\n"
                          "Repeat after me: one two three four five six seven eight nine ten eleven twelve thirteen\n"
                          "/compact\nRepeat after me: golden whistle\n",
                          GREEDY, "--reasoning", "low", "--ctx", "112");
    expect_code(&o, 1);
    expect_text(&o.err, " tokens, the context holds 112");
    expect_text(&o.err, "your message was not sent; /compact");
    expect_text(&o.err, "[the oldest 1 turn is forgotten: ");
    assert_string_equal(o.out.data, "golden whistle\ngolden whistle\ngolden whistle\n");
    outcome_free(&o);
    o = run_input("Tell me a story about a fox and a lamp.\n/compact\n", GREEDY, "--ctx", "100");
    expect_text(&o.err, "[the context of 100 tokens is full: /compact");
    expect_text(&o.err, "in a single turn]");
    outcome_free(&o);
}

static void test_pipe_interrupt(void **unused) {
    (void)unused;
    const surroundings s = {.input = "Tell me a story about a fox.\nTell me another.\n", .interrupt_after = 20};
    outcome o = run_with(&s, (const char *const[]){GREEDY, ENDLESS, NULL});
    expect_code(&o, 130);
    expect_text(&o.err, "[stopped]");
    outcome_free(&o);
    const surroundings full = {.input = "Tell me a story about a fox.\n", .stdout_path = "/dev/full"};
    o = run_with(&full, (const char *const[]){GREEDY, NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to stdout: No space left on device");
    outcome_free(&o);
}

/* ---- stdin is a terminal ----------------------------------------------------------------------------------------- */
typedef struct terminal {
    int fd;
    pid_t child;
    mx_bytes seen;
    size_t read_to; /* expect() looks behind this */
} terminal;

static terminal open_terminal(const char *const *arguments) {
    terminal t = {0};
    struct winsize size = {.ws_row = 40, .ws_col = 200};
    const char *argv[64] = {getenv("MXRUN_BINARY")};
    for (int i = 0; arguments[i]; i++) argv[i + 1] = arguments[i];
    setenv("TERM", "xterm", 1);
    /* libedit never frees the names of added editor functions; mxrun itself has no use for wcsdup. */
    char suppressions[200], options[300];
    write_test_file("leaks", "leak:wcsdup\n", suppressions);
    snprintf(options, sizeof options, "suppressions=%s:print_suppressions=0", suppressions);
    setenv("LSAN_OPTIONS", options, 1);
    t.child = forkpty(&t.fd, NULL, NULL, &size);
    if (t.child < 0) {
        print_message("skipped: this system has no terminals to give (is /dev/pts mounted?)\n");
        skip();
    }
    if (t.child == 0) {
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    return t;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static bool read_some(terminal *t, int milliseconds) {
    char buffer[4096];
    struct pollfd fd = {t->fd, POLLIN, 0};
    if (poll(&fd, 1, milliseconds) <= 0) return true;
    ssize_t n = read(t->fd, buffer, sizeof buffer);
    if (n <= 0) return false; /* EIO: the other side is closed */
    return mx_bytes_add(&t->seen, buffer, (size_t)n);
}

static void expect(terminal *t, const char *text) {
    for (double limit = now() + 20; now() < limit;) {
        char *found = t->seen.size > t->read_to ? strstr(t->seen.data + t->read_to, text) : NULL;
        if (found) {
            t->read_to = (size_t)(found - t->seen.data) + strlen(text);
            return;
        }
        if (!read_some(t, 100)) break;
    }
    kill(t->child, SIGKILL);
    /* cmocka cuts long messages */
    fail_msg("\"%s\" did not appear behind byte %zu; the last of %zu: %s", text, t->read_to, t->seen.size,
             t->seen.data + (t->seen.size > 500 ? t->seen.size - 500 : 0));
}

/* As a user does, some time after the prompt has appeared. */
static void type(terminal *t, const char *text) {
    usleep(100000);
    assert_int_equal(write(t->fd, text, strlen(text)), strlen(text));
}

static void expect_end(terminal *t, int code) {
    int status = -1;
    double limit = now() + 60;
    while (now() < limit && read_some(t, 100)) continue;
    if (waitpid(t->child, &status, WNOHANG) == 0) {
        usleep(500000);
        if (waitpid(t->child, &status, WNOHANG) == 0) {
            kill(t->child, SIGKILL);
            fail_msg("it goes on: %s", t->seen.data);
        }
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code) fail_msg("status %x: %s", status, t->seen.data);
    close(t->fd);
    mx_bytes_free(&t->seen);
}

#define PROMPT "> " /* libedit writes it after switching bracketed paste on */

static void test_terminal(void **unused) {
    (void)unused;
    terminal t = open_terminal((const char *const[]){"-m", "stories", "--greedy", "--date", "2026-11-23", NULL});
    expect(&t, "/help lists the commands");
    expect(&t, PROMPT);
    type(&t, "Repeat after me: golden whistle\r");
    expect(&t, "\033[2m"); /* thinking, dimmed */
    expect(&t, "A short answer.");
    expect(&t, "\033[0m");
    expect(&t, "golden whistle\r\n");
    expect(&t, PROMPT);
    /* The arrow key brings the line back. */
    type(&t, "\033[A");
    expect(&t, "golden whistle");
    type(&t, "\r");
    expect(&t, "golden whistle\r\n");
    expect(&t, PROMPT);
    /* Pasted lines are one message. */
    type(&t, "\033[200~Repeat after\rme: brave fox\r\033[201~");
    expect(&t, "brave fox");
    type(&t, "\r");
    expect(&t, "\033[0m");
    expect(&t, PROMPT);
    type(&t, "/stats\r");
    expect(&t, "conversation: 9 messages");
    expect(&t, PROMPT);
    char saved[200], line[300];
    mx_bytes file = {0};
    snprintf(saved, sizeof saved, "%s/pasted.json", test_folder);
    snprintf(line, sizeof line, "/save %s\r", saved);
    type(&t, line);
    expect(&t, "9 messages saved");
    expect(&t, PROMPT);
    assert_int_equal(mx_read_file(saved, 1 << 20, &file, NULL), MX_OK);
    expect_text(&file, "\"text\": \"Repeat after\\nme: brave fox\"}");
    mx_bytes_free(&file);
    type(&t, "Ä€😀\177\177x\r"); /* whole characters are edited */
    expect(&t, "\033[0m");
    expect(&t, PROMPT);
    type(&t, "/quit\r");
    expect_end(&t, 0);
    /* What was typed is there the next time. */
    char path[300];
    mx_bytes history = {0};
    snprintf(path, sizeof path, "%s/.local/state/mxrun/history", test_folder);
    assert_int_equal(mx_read_file(path, 1 << 20, &history, NULL), MX_OK);
    expect_text(&history, "golden");
    mx_bytes_free(&history);
    t = open_terminal((const char *const[]){"-m", "stories", "-q", NULL});
    expect(&t, PROMPT);
    type(&t, "\033[A\033[A");
    expect(&t, "\303\204");
    type(&t, "\003"); /* Ctrl-C */
    expect(&t, PROMPT);
    type(&t, "\004"); /* Ctrl-D */
    expect_end(&t, 0);
}

static void test_terminal_interrupts(void **unused) {
    (void)unused;
    terminal t = open_terminal((const char *const[]){GREEDY, ENDLESS, NULL});
    expect(&t, PROMPT);
    type(&t, "half a line\003");
    expect(&t, "^C");
    expect(&t, "(Ctrl-D or /quit ends the chat)");
    expect(&t, PROMPT);
    type(&t, "\003");
    expect(&t, "(Ctrl-D or /quit ends the chat)");
    expect(&t, PROMPT);
    /* Signals between an answer and the next prompt do not end it either. */
    for (int i = 0; i < 3; i++) {
        kill(t.child, SIGINT);
        usleep(50000);
    }
    type(&t, "Tell me a story about a fox.\r");
    expect(&t, "Once upon a");
    type(&t, "\003\003\003"); /* an impatient user loses nothing */
    expect(&t, "[stopped]");
    expect(&t, PROMPT);
    type(&t, "/stats\r");
    expect(&t, "conversation: ");
    expect(&t, " messages, "); /* what was seen of the answer stays: its thinking, and text as far as it went */
    char *count = strstr(t.seen.data, "conversation: ");
    assert_true(strtol(count + strlen("conversation: "), NULL, 10) >= 3);
    expect(&t, PROMPT);
    type(&t, "\004");
    expect_end(&t, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_prefix_is_reused),
        cmocka_unit_test(test_commands),
        cmocka_unit_test(test_wrong_commands),
        cmocka_unit_test(test_slash_as_text),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_tool),
        cmocka_unit_test(test_full_context),
        cmocka_unit_test(test_pipe_interrupt),
        cmocka_unit_test(test_terminal),
        cmocka_unit_test(test_terminal_interrupts),
    };
    return cmocka_run_group_tests(tests, program_set_up, program_tear_down);
}
