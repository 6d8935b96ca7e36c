#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

char test_folder[] = "/tmp/mxrun-test-XXXXXX";

int program_set_up(void **state) {
    (void)state;
    char path[4096], target[4096];
    if (!mkdtemp(test_folder)) return -1;
    snprintf(path, sizeof path, "%s/stories", test_folder);
    snprintf(target, sizeof target, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (symlink(target, path) != 0) return -1;
    setenv("MXRUN_DATA", test_folder, 1);
    setenv("HOME", test_folder, 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    static const char *const others[] = {"XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME",       "HF_HOME",
                                         "HF_HUB_CACHE",   "HF_ENDPOINT",     "HUGGINGFACE_HUB_CACHE"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) unsetenv(others[i]);
    unsetenv("NO_COLOR");
    unsetenv("MXRUN_LOG");
    signal(SIGPIPE, SIG_IGN);
    return 0;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

int program_tear_down(void **state) {
    (void)state;
    return nftw(test_folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void outcome_free(outcome *o) {
    mx_bytes_free(&o->out);
    mx_bytes_free(&o->err);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static pid_t start(const surroundings *s, const char *const *arguments, int in[2], int out[2], int err[2]) {
    const char *argv[64] = {s->program ? s->program : getenv("MXRUN_BINARY")};
    for (int i = 0; arguments[i]; i++) {
        assert_in_range(i, 0, 61);
        argv[i + 1] = arguments[i];
    }
    pid_t child = fork();
    if (child == 0) {
        int file = s->stdout_path ? open(s->stdout_path, O_WRONLY) : out[1];
        signal(SIGPIPE, SIG_DFL);
        if (dup2(in[0], 0) < 0 || dup2(file, 1) < 0 || dup2(err[1], 2) < 0) _exit(126);
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    return child;
}

/* Appends what can be read; closes at the end. */
static void take(int *fd, mx_bytes *into) {
    char buffer[65536];
    ssize_t n = read(*fd, buffer, sizeof buffer);
    if (n > 0) {
        assert_true(mx_bytes_add(into, buffer, (size_t)n));
    } else if (n == 0 || errno != EINTR) {
        close(*fd);
        *fd = -1;
    }
}

static void feed(int *fd, const char **input, size_t *left) {
    ssize_t n = *left ? write(*fd, *input, *left) : 0;
    if (n > 0) {
        *input += n;
        *left -= (size_t)n;
    }
    if (*left == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
        close(*fd);
        *fd = -1;
    }
}

outcome run_with(const surroundings *s, const char *const *arguments) {
    outcome o = {0};
    int in[2], out[2], err[2];
    assert_true(mx_bytes_add(&o.out, "", 0) && mx_bytes_add(&o.err, "", 0));
    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    fcntl(in[1], F_SETFL, O_NONBLOCK);
    pid_t child = start(s, arguments, in, out, err);
    assert_true(child > 0);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    const char *input = s->input;
    size_t left = s->input_size ? s->input_size : input ? strlen(input) : 0;
    bool interrupted = false;
    double limit = now() + 120;
    while (out[0] >= 0 || err[0] >= 0) {
        struct pollfd fds[3] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}, {in[1], POLLOUT, 0}};
        poll(fds, 3, 1000);
        if (fds[0].revents) take(&out[0], &o.out);
        if (fds[1].revents) take(&err[0], &o.err);
        if (fds[2].revents) feed(&in[1], &input, &left);
        if (s->close_stdout_at && out[0] >= 0 && o.out.size >= s->close_stdout_at) {
            close(out[0]);
            out[0] = -1;
        }
        if (s->interrupt_after && !interrupted && o.out.size >= (size_t)s->interrupt_after) {
            kill(child, SIGINT);
            interrupted = true;
        }
        if (now() > limit) kill(child, SIGKILL);
    }
    if (in[1] >= 0) close(in[1]);
    int status;
    struct rusage usage;
    while (wait4(child, &status, 0, &usage) < 0) assert_int_equal(errno, EINTR);
    o.resident = (double)usage.ru_maxrss * 1024;
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return o;
}

void expect_code(const outcome *o, int code) {
    if (o->code == code) return;
    print_error("stdout: %s\n", o->out.data); /* cmocka cuts each message after 1,024 bytes */
    print_error("stderr: %s\n", o->err.data);
    fail_msg("exit code %d, not %d", o->code, code);
}

void expect_text(const mx_bytes *text, const char *part) {
    if (!strstr(text->data, part)) fail_msg("\"%s\" is not in: %s", part, text->data);
}

void expect_no_text(const mx_bytes *text, const char *part) {
    if (strstr(text->data, part)) fail_msg("\"%s\" is in: %s", part, text->data);
}

mx_json_document *parse_output(const outcome *o) {
    mx_json_document *document;
    mx_error error;
    if (mx_json_parse("stdout", o->out.data, o->out.size, &document, &error)) {
        fail_msg("%s\nstdout: %s\nstderr: %s", error.text, o->out.data, o->err.data);
    }
    return document;
}

void write_test_file(const char *name, const char *content, char path[static 200]) {
    snprintf(path, 200, "%s/%s", test_folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(content, f);
    assert_int_equal(fclose(f), 0);
}
