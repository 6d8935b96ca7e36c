#include "commands/editor.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <wchar.h>

#include "base/files.h"

struct mx_editor {
    EditLine *line; /* NULL: stdin is no terminal */
    History *history;
    FILE *out; /* where the line is shown */
    const char *prompt;
    char *history_file; /* NULL: nowhere to keep it */
    bool interrupted;
    char *buffer; /* of getline */
    size_t capacity;
};

/* ---- keys -------------------------------------------------------------------------------------------------------- */
static mx_editor *editor_of(EditLine *line) {
    void *e = NULL;
    el_get(line, EL_CLIENTDATA, &e);
    return e;
}

static char *show_prompt(EditLine *line) {
    return (char *)editor_of(line)->prompt;
}

static unsigned char on_interrupt(EditLine *line, int key) {
    (void)key;
    mx_editor *e = editor_of(line);
    e->interrupted = true;
    fputs("^C\n", e->out);
    return CC_EOF;
}

static unsigned char on_new_line(EditLine *line, int key) {
    (void)key;
    return el_winsertstr(line, L"\n") == 0 ? CC_REFRESH : CC_ERROR;
}

/* The terminal says where pasted text begins and ends; in between no key has its meaning. */
static unsigned char on_paste(EditLine *line, int key) {
    (void)key;
    static const wchar_t end[] = L"\033[201~";
    enum { END = 6 };
    size_t size = 0, capacity = 0;
    wchar_t *text = NULL;
    wchar_t c;
    while (el_wgetc(line, &c) == 1) {
        if (size + 2 > capacity) {
            capacity = capacity ? capacity * 2 : 256;
            wchar_t *more = realloc(text, capacity * sizeof *text);
            if (!more) break;
            text = more;
        }
        text[size++] = c; /* the terminal driver has made newlines of returns */
        if (size >= END && wmemcmp(text + size - END, end, END) == 0) {
            size -= END;
            break;
        }
    }
    while (size && text[size - 1] == L'\n') size--;
    bool inserted = false;
    if (size) {
        text[size] = 0;
        inserted = el_winsertstr(line, text) == 0;
    }
    free(text);
    return inserted || size == 0 ? CC_REFRESH : CC_ERROR;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */
static char *find_history_file(void) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int length = -1;
    if (state && *state == '/') {
        length = asprintf(&path, "%s/mxrun/history", state);
    } else if (home && *home == '/') {
        length = asprintf(&path, "%s/.local/state/mxrun/history", home);
    }
    if (length < 0) return NULL;
    mx_make_folders(path, 0700);
    return path;
}

static bool open_terminal(mx_editor *e) {
    /* Only how characters are spelled: numbers keep their point. */
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    e->out = isatty(STDOUT_FILENO) ? stdout : stderr;
    e->line = el_init("mxrun", stdin, e->out, stderr);
    e->history = history_init();
    if (!e->line || !e->history) return false;
    HistEvent event;
    history(e->history, &event, H_SETSIZE, 1000);
    history(e->history, &event, H_SETUNIQUE, 1);
    e->history_file = find_history_file();
    if (e->history_file) history(e->history, &event, H_LOAD, e->history_file);
    el_set(e->line, EL_CLIENTDATA, e);
    el_set(e->line, EL_PROMPT, show_prompt);
    el_set(e->line, EL_EDITOR, "emacs");
    el_set(e->line, EL_SIGNAL, 0);
    el_set(e->line, EL_HIST, history, e->history);
    el_source(e->line, NULL); /* ~/.editrc */
    /* Ctrl-C reaches the editor as a key; while an answer is computed it is a signal. */
    el_set(e->line, EL_SETTY, "-d", "-isig", NULL);
    el_set(e->line, EL_ADDFN, "mx-interrupt", "Leave this line", on_interrupt);
    el_set(e->line, EL_ADDFN, "mx-new-line", "Begin a new line", on_new_line);
    el_set(e->line, EL_ADDFN, "mx-paste", "Take pasted text", on_paste);
    el_set(e->line, EL_BIND, "^C", "mx-interrupt", NULL);
    el_set(e->line, EL_BIND, "\\e\\r", "mx-new-line", NULL);
    el_set(e->line, EL_BIND, "\\e\\n", "mx-new-line", NULL);
    el_set(e->line, EL_BIND, "\\e[200~", "mx-paste", NULL);
    return true;
}

mx_editor *mx_editor_open(void) {
    mx_editor *e = calloc(1, sizeof *e);
    if (e && isatty(STDIN_FILENO) && !open_terminal(e)) {
        mx_editor_close(e);
        return NULL;
    }
    return e;
}

void mx_editor_close(mx_editor *e) {
    if (!e) return;
    if (e->line) el_end(e->line);
    if (e->history) history_end(e->history);
    free(e->history_file);
    free(e->buffer);
    free(e);
}

bool mx_editor_is_terminal(const mx_editor *e) {
    return e->line != NULL;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */
static mx_line read_plain(mx_editor *e, mx_bytes *out) {
    errno = 0;
    ssize_t size = getline(&e->buffer, &e->capacity, stdin);
    if (size < 0) return ferror(stdin) || errno == ENOMEM ? MX_LINE_FAILED : MX_LINE_END;
    if (size && e->buffer[size - 1] == '\n') size--;
    return mx_bytes_add(out, e->buffer, (size_t)size) ? MX_LINE_TEXT : MX_LINE_FAILED;
}

mx_line mx_editor_read(mx_editor *e, const char *prompt, bool remember, mx_bytes *out) {
    mx_bytes_clear(out);
    if (!e->line) return read_plain(e, out);
    e->prompt = prompt;
    e->interrupted = false;
    int count = 0;
    fputs("\033[?2004h", e->out); /* bracketed paste on */
    fflush(e->out);
    const char *line = el_gets(e->line, &count);
    fputs("\033[?2004l", e->out);
    fflush(e->out);
    if (e->interrupted) return MX_LINE_INTERRUPTED;
    if (!line || count <= 0) {
        fputs("\n", e->out);
        return count < 0 ? MX_LINE_FAILED : MX_LINE_END;
    }
    if (remember && *line != '\n') {
        HistEvent event;
        history(e->history, &event, H_ENTER, line);
        if (e->history_file) history(e->history, &event, H_SAVE, e->history_file);
    }
    size_t size = strlen(line);
    if (size && line[size - 1] == '\n') size--;
    return mx_bytes_add(out, line, size) ? MX_LINE_TEXT : MX_LINE_FAILED;
}
