#include "commands/pull_show.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/progress.h"

enum { LABEL = 32, BAR = 24, BAR_LEAST = 6, MOST_BARS = 8, DEFAULT_WIDTH = 80, DEFAULT_HEIGHT = 24 };
static const double TERMINAL_PERIOD = 0.2, LINE_PERIOD = 5, JSON_PERIOD = 1, RATE_PERIOD = 0.5; /* seconds */

const char *mx_size_text(char out[static 16], int64_t bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    int i = 0;
    for (; value >= 999.5 && i < 4; i++) value /= 1000;
    snprintf(out, 16, "%.*f %s", i && value < 99.95 ? 1 : 0, value, units[i]);
    return out;
}

static bool on_terminal(void) {
    const char *kind = getenv("TERM");
    return isatty(STDERR_FILENO) && kind && strcmp(kind, "dumb") != 0;
}

/* ---- how far, how fast ------------------------------------------------------------------------------------------- */
typedef struct state {
    int64_t done, total; /* of the files that are fetched */
    double rate;         /* bytes a second; 0: not known yet */
    int finished;
} state;

static state state_of(mx_pull_show *show, const mx_pull_event *e) {
    state s = {0};
    for (int i = 0; i < e->count; i++) {
        s.done += e->files[i].done;
        s.total += e->files[i].size > 0 ? e->files[i].size : e->files[i].done;
        s.finished += e->files[i].finished;
    }
    const int last = show->samples - 1;
    if (last >= 0 && s.done < show->sample[last].done) show->samples = 0; /* something was thrown away */
    if (show->samples == 0 || e->seconds - show->sample[show->samples - 1].seconds >= RATE_PERIOD) {
        if (show->samples == MX_PULL_SAMPLES) {
            memmove(show->sample, show->sample + 1, sizeof show->sample - sizeof *show->sample);
            show->samples--;
        }
        show->sample[show->samples].seconds = e->seconds;
        show->sample[show->samples++].done = s.done;
    }
    const double lasted = e->seconds - show->sample[0].seconds;
    if (lasted > 0.2) s.rate = (double)(s.done - show->sample[0].done) / lasted;
    return s;
}

static void time_left(const state *s, char out[static 40]) {
    const double seconds = s->rate > 0 ? (double)(s->total - s->done) / s->rate : -1;
    out[0] = 0;
    if (seconds < 0 || s->done >= s->total) return;
    char left[32];
    mx_progress_time_left(seconds, left);
    snprintf(out, 40, ", %s", left);
}

/* "1.2 GB of 13.8 GB, 45.1 MB/s, 4 min left" */
static void summary(const state *s, char out[static 120]) {
    char done[16], total[16], rate[16], left[40];
    time_left(s, left);
    mx_size_text(done, s->done);
    mx_size_text(total, s->total);
    if (s->rate > 0)
        snprintf(out, 120, "%s of %s, %s/s%s", done, total, mx_size_text(rate, (int64_t)s->rate), left);
    else
        snprintf(out, 120, "%s of %s", done, total);
}

/* ---- a terminal -------------------------------------------------------------------------------------------------- */
static void take_away(mx_pull_show *show) {
    if (show->lines) fprintf(stderr, "\r\033[%dA\033[J", show->lines);
    show->lines = 0;
}

/* The last column stays free: some terminals wrap there. The bar gives way to the words. */
static void draw_bar(mx_pull_show *show, const char *label, int least, int64_t done, int64_t total, const char *text,
                     int width) {
    char bar[BAR + 1], line[300];
    const double share = total > 0 ? (double)done / (double)total : 0;
    int length = width - 1 - least - (int)strlen(" [] ") - (int)strlen(text);
    length = length < BAR_LEAST ? BAR_LEAST : length > BAR ? BAR : length;
    const int filled = (int)((share > 1 ? 1 : share) * length);
    for (int i = 0; i < length; i++) bar[i] = i < filled ? '#' : ' ';
    bar[length] = 0;
    snprintf(line, sizeof line, "%-*.*s [%s] %s", least, least, label, bar, text);
    if (width > 0 && (size_t)width <= sizeof line) line[width - 1] = 0;
    fprintf(stderr, "%s\n", line);
    show->lines++;
}

static void draw(mx_pull_show *show, const mx_pull_event *e, const state *s) {
    struct winsize size;
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    const int width = known ? size.ws_col : DEFAULT_WIDTH, height = known ? size.ws_row : DEFAULT_HEIGHT;
    const int most = height - 3 < MOST_BARS ? height - 3 : MOST_BARS;
    char text[120], a[16], b[16];
    take_away(show);
    for (int i = 0; i < e->count && show->lines < most; i++) {
        const mx_download *f = &e->files[i];
        if (f->finished || f->done == 0) continue;
        snprintf(text, sizeof text, "%s of %s", mx_size_text(a, f->done), mx_size_text(b, f->size));
        draw_bar(show, f->name, LABEL, f->done, f->size, text, width);
    }
    char label[64];
    snprintf(label, sizeof label, "%d of %d files", s->finished, e->count);
    summary(s, text);
    draw_bar(show, label, (int)strlen(label), s->done, s->total, text, width);
    fflush(stderr);
}

static void add_text(mx_bytes *out, const char *name, const char *text) {
    if (!text) return;
    mx_bytes_addf(out, ",\"%s\":", name);
    mx_bytes_add_json(out, text, strlen(text));
}

static void print_progress(const state *s, const mx_pull_event *e) {
    mx_bytes out = {0};
    mx_bytes_addf(&out,
                  "{\"event\":\"progress\",\"done\":%lld,\"total\":%lld,\"bytes_per_second\":%.0f,\"files\":%d,"
                  "\"files_done\":%d,\"seconds\":%.1f",
                  (long long)s->done, (long long)s->total, s->rate, e->count, s->finished, e->seconds);
    add_text(&out, "text", e->text);
    printf("%s}\n", out.data ? out.data : "");
    fflush(stdout);
    mx_bytes_free(&out);
}

static void progress(mx_pull_show *show, const mx_pull_event *e) {
    const bool terminal = on_terminal();
    const double period = show->json ? JSON_PERIOD : terminal ? TERMINAL_PERIOD : LINE_PERIOD;
    const state s = state_of(show, e);
    if (e->text && !show->json) {
        take_away(show);
        fprintf(stderr, "mxrun: %s\n", e->text);
    }
    if (!e->text && e->seconds - show->drawn < period) return;
    show->drawn = e->seconds;
    char text[120];
    if (show->json) {
        print_progress(&s, e);
    } else if (terminal) {
        draw(show, e, &s);
    } else {
        summary(&s, text);
        fprintf(stderr, "mxrun: %s: %s\n", e->target->name, text);
    }
}

/* ---- events ------------------------------------------------------------------------------------------------------ */
static void print_plan(const mx_pull_event *e) {
    char size[16], missing[16], space[16];
    const mx_known_model *known = e->target->known;
    fprintf(stderr, "%s: %s@%s, commit %.12s, licence %s\n", e->target->name, e->target->repository,
            e->target->revision, e->commit, known ? known->licence : "not known here");
    fprintf(stderr, "  download  %s in %d files", mx_size_text(missing, e->missing), e->count);
    if (e->missing < e->total) fprintf(stderr, " (of %s)", mx_size_text(size, e->total));
    fprintf(stderr, "; %s free\n  to        %s\n", mx_size_text(space, e->free_space), e->folder);
}

static void print_json(const mx_pull_event *e) {
    static const char *const names[] = {
        [MX_PULL_WAITING] = "waiting",   [MX_PULL_ASKING] = "asking", [MX_PULL_PLANNED] = "planned",
        [MX_PULL_PROGRESS] = "progress", [MX_PULL_RETRY] = "retry",   [MX_PULL_FILE] = "file",
        [MX_PULL_PRESENT] = "present",   [MX_PULL_DONE] = "done"};
    mx_bytes out = {0};
    mx_bytes_addf(&out, "{\"event\":\"%s\"", names[e->type]);
    add_text(&out, "name", e->target->name);
    if (e->type == MX_PULL_PLANNED) {
        add_text(&out, "repository", e->target->repository);
        add_text(&out, "revision", e->target->revision);
        add_text(&out, "commit", e->commit);
        add_text(&out, "folder", e->folder);
        mx_bytes_addf(&out, ",\"files\":%d,\"total\":%lld,\"missing\":%lld,\"free\":%lld", e->count,
                      (long long)e->total, (long long)e->missing, (long long)e->free_space);
    }
    if (e->file) {
        add_text(&out, "file", e->file->name);
        if (e->type == MX_PULL_FILE) {
            mx_bytes_addf(&out, ",\"size\":%lld", (long long)e->file->size);
            add_text(&out, "sha256", e->file->sha256);
        }
    }
    add_text(&out, "text", e->text);
    if (e->type == MX_PULL_PRESENT || e->type == MX_PULL_DONE) {
        add_text(&out, "commit", e->commit);
        add_text(&out, "path", e->path);
        mx_bytes_addf(&out, ",\"bytes\":%lld", (long long)e->total);
    }
    printf("%s}\n", out.data ? out.data : "");
    fflush(stdout);
    mx_bytes_free(&out);
}

static void print_text(const mx_pull_event *e) {
    char size[16];
    switch (e->type) {
    case MX_PULL_WAITING:
        fprintf(stderr, "mxrun: another process is pulling %s; waiting for it\n", e->target->repository);
        break;
    case MX_PULL_ASKING:
        fprintf(stderr, "mxrun: asking %s for %s\n", e->endpoint, e->target->repository);
        break;
    case MX_PULL_RETRY:
        if (e->text) fprintf(stderr, "mxrun: %s\n", e->text);
        break;
    case MX_PULL_FILE:
        if (e->file && !on_terminal())
            fprintf(stderr, "mxrun: %s: %s, checked\n", e->file->name, mx_size_text(size, e->file->size));
        break;
    case MX_PULL_PRESENT:
        fprintf(stderr, "mxrun: %s is there: %s, commit %.12s\n", e->target->name, mx_size_text(size, e->total),
                e->commit);
        break;
    case MX_PULL_DONE:
        fprintf(stderr, "mxrun: %s is complete: %s, commit %.12s\n", e->target->name, mx_size_text(size, e->total),
                e->commit);
        break;
    default:
        break;
    }
}

void mx_pull_show_event(void *user, const mx_pull_event *e) {
    mx_pull_show *show = user;
    if (e->type == MX_PULL_PROGRESS) {
        progress(show, e);
        return;
    }
    take_away(show);
    if (show->json)
        print_json(e);
    else if (e->type == MX_PULL_PLANNED && e->count)
        print_plan(e);
    else
        print_text(e);
    if (e->type == MX_PULL_PLANNED) {
        show->drawn = 0;
        show->samples = 0;
    }
}

void mx_pull_show_end(mx_pull_show *show) {
    take_away(show);
}
