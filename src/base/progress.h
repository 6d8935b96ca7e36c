#ifndef MX_BASE_PROGRESS_H
#define MX_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* One line on stderr for work that lasts: what it is, a bar, how much is done, the rate and the time that is left.
 * Nothing is written where stderr is no terminal, nor before the work has lasted half a second. One thread at a time.
 *
 *     writing  [##########              ]  4.1 of 13.8 GB  612 MB/s  16 s left */
typedef struct mx_progress {
    const char *label; /* borrowed */
    double total;
    bool bytes; /* done and total are bytes; otherwise they are shown as per cent, without a rate */
    bool terminal, shown;
    double started, drawn; /* mx_seconds() */
} mx_progress;

void mx_progress_start(mx_progress *p, const char *label, double total, bool bytes);
/* Cheap enough to be called often: the line is drawn at most ten times a second. */
void mx_progress_update(mx_progress *p, double done);
/* Another label from the next drawing on. */
void mx_progress_label(mx_progress *p, const char *label);
/* "12,345", "-1,000"; returns `out`. */
const char *mx_with_commas(int64_t value, char out[static 32]);
/* Columns of UTF-8 text on a terminal: its characters, each of them one wide. */
int mx_text_width(const char *text);
/* "12 s left", "4 min left". */
void mx_progress_time_left(double seconds, char out[static 32]);
/* Takes the line away, so that another may be printed; update brings it back. */
void mx_progress_clear(mx_progress *p);

/* The line without its control codes, shorter than `width` (0: as long as it gets). `seconds`: since the start. */
void mx_progress_line(const mx_progress *p, double done, double seconds, int width, char out[static 300]);

#endif
