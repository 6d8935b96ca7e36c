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

static int level_from_environment(void) {
    const char *wanted = getenv("MXRUN_LOG");
    for (int i = MX_LOG_DEBUG; wanted && i <= MX_LOG_ERROR; i++)
        if (!strcmp(wanted, level_name[i])) return i;
    return MX_LOG_INFO;
}

void mx_log(mx_log_level level, const char *format, ...) {
    char line[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    pthread_mutex_lock(&state.lock);
    if (state.level < 0) state.level = level_from_environment();
    if ((int)level >= state.level) {
        if (state.sink)
            state.sink(state.user, level, line);
        else if (level == MX_LOG_INFO)
            fprintf(stderr, "mxrun: %s\n", line);
        else
            fprintf(stderr, "mxrun: %s: %s\n", level_name[level], line);
    }
    pthread_mutex_unlock(&state.lock);
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
