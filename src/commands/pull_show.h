#ifndef MX_PULL_SHOW_H
#define MX_PULL_SHOW_H

#include "hub/hub.h"

/* A pull as the user sees it: on a terminal a bar for each file that is coming in and one for all, elsewhere a line
 * every few seconds; or one JSON object a line on stdout. */
enum { MX_PULL_SAMPLES = 16 };
typedef struct mx_pull_show {
    bool json;
    int lines; /* of bars that are on the screen */
    double drawn;
    struct {
        double seconds;
        int64_t done;
    } sample[MX_PULL_SAMPLES]; /* the last seconds, for the rate */
    int samples;
} mx_pull_show;

void mx_pull_show_event(void *show, const mx_pull_event *event); /* of mx_pull_options */
void mx_pull_show_end(mx_pull_show *show);                       /* takes bars away */

/* "13.8 GB", "10.5 MB", "900 B" */
const char *mx_size_text(char out[static 16], int64_t bytes);

#endif
