#ifndef MX_BASE_LOG_H
#define MX_BASE_LOG_H

#include <stdbool.h>

/* The only way anything below main() speaks to the user: one line on stderr, "mxrun: warning: ...", without control
 * characters, which become spaces.
 * Thread-safe. Tests and library users install a sink of their own. */
typedef enum mx_log_level { MX_LOG_DEBUG, MX_LOG_INFO, MX_LOG_WARNING, MX_LOG_ERROR } mx_log_level;

void mx_log(mx_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Lines below `level` are dropped (default MX_LOG_INFO; the variable MXRUN_LOG=debug|info|warning|error sets it;
 * another word there gives one warning). */
void mx_log_set_level(mx_log_level level);

bool mx_log_wanted(mx_log_level level); /* is such a line kept? For what is dear to find out */

/* `sink` gets every line that is not dropped, without newline; NULL restores stderr. */
void mx_log_set_sink(void (*sink)(void *user, mx_log_level level, const char *line), void *user);

#endif
