#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const level_name[] = {"debug", "info", "warning", "error"};

static struct {
    pthread_mutex_t lock;
    int level; /* -1: not yet read from MXRUN_LOG */
    void (*sink)(void *user, mx_log_level level, const char *line);
    void *user;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = -1};

static void emit(mx_log_level level, const char *line) {
    if ((int)level < state.level) return;
    if (state.sink)
        state.sink(state.user, level, line);
    else if (level == MX_LOG_INFO)
        fprintf(stderr, "mxrun: %s\n", line);
    else
        fprintf(stderr, "mxrun: %s: %s\n", level_name[level], line);
}

static void read_environment(void) {
    const char *wanted = getenv("MXRUN_LOG");
    state.level = MX_LOG_INFO;
    if (!wanted || !*wanted) return;
    for (int i = MX_LOG_DEBUG; i <= MX_LOG_ERROR; i++) {
        if (strcmp(wanted, level_name[i])) continue;
        state.level = i;
        return;
    }
    char line[200];
    snprintf(line, sizeof line, "MXRUN_LOG=%.60s: debug, info, warning or error was expected; info is used", wanted);
    emit(MX_LOG_WARNING, line);
}

void mx_log(mx_log_level level, const char *format, ...) {
    char line[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    /* What strangers sent may be in it: nothing that a terminal would obey, nor a line of their own. */
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = ' ';
    pthread_mutex_lock(&state.lock);
    if (state.level < 0) read_environment();
    emit(level, line);
    pthread_mutex_unlock(&state.lock);
}

bool mx_log_wanted(mx_log_level level) {
    pthread_mutex_lock(&state.lock);
    if (state.level < 0) read_environment();
    bool wanted = (int)level >= state.level;
    pthread_mutex_unlock(&state.lock);
    return wanted;
}

void mx_log_set_level(mx_log_level level) {
    pthread_mutex_lock(&state.lock);
    state.level = level;
    pthread_mutex_unlock(&state.lock);
}

void mx_log_set_sink(void (*sink)(void *user, mx_log_level level, const char *line), void *user) {
    pthread_mutex_lock(&state.lock);
    state.sink = sink;
    state.user = user;
    pthread_mutex_unlock(&state.lock);
}
