#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "hub/private.h"

/* mxrun.lock lies in the folder of a repository, where other tools look at nothing but blobs, refs and snapshots:
 *
 *     revision REVISION COMMIT
 *     file COMMIT SIZE ETAG SHA256 PATH        SHA256 "-": not known before the file is there; PATH: all that follows
 */

static const char head[] =
    "# Pinned by mxrun: what the hub said when this was pulled. Later pulls must find the same;\n"
    "# \"mxrun pull NAME --update\" takes what the hub has by then.\n";

void mx_pins_free(mx_pins *pins) {
    for (int i = 0; i < pins->revisions; i++) free(pins->revision[i].revision);
    for (int i = 0; i < pins->files; i++) free(pins->file[i].path);
    free(pins->revision);
    free(pins->file);
    *pins = (mx_pins){0};
}

const char *mx_pins_commit(const mx_pins *pins, const char *revision) {
    for (int i = 0; i < pins->revisions; i++)
        if (!strcmp(pins->revision[i].revision, revision)) return pins->revision[i].commit;
    return NULL;
}

mx_pinned_file *mx_pins_file(const mx_pins *pins, const char *commit, const char *path) {
    for (int i = 0; i < pins->files; i++)
        if (!strcmp(pins->file[i].commit, commit) && !strcmp(pins->file[i].path, path)) return &pins->file[i];
    return NULL;
}

bool mx_pins_set_revision(mx_pins *pins, const char *revision, const char *commit) {
    for (int i = 0; i < pins->revisions; i++) {
        if (strcmp(pins->revision[i].revision, revision) != 0) continue;
        mx_set_text(pins->revision[i].commit, sizeof pins->revision[i].commit, commit);
        return true;
    }
    mx_pinned_revision *more = realloc(pins->revision, ((size_t)pins->revisions + 1) * sizeof *more);
    if (!more) return false;
    pins->revision = more;
    mx_pinned_revision *r = &more[pins->revisions];
    mx_set_text(r->commit, sizeof r->commit, commit);
    r->revision = strdup(revision);
    if (r->revision) pins->revisions++;
    return r->revision != NULL;
}

bool mx_pins_set_file(mx_pins *pins, const char *commit, const char *path, int64_t size, const char *etag,
                      const char *sha256) {
    mx_pinned_file *f = mx_pins_file(pins, commit, path);
    if (!f) {
        mx_pinned_file *more = realloc(pins->file, ((size_t)pins->files + 1) * sizeof *more);
        if (!more) return false;
        pins->file = more;
        f = &more[pins->files];
        f->path = strdup(path);
        if (!f->path) return false;
        pins->files++;
    }
    f->size = size;
    mx_set_text(f->commit, sizeof f->commit, commit);
    mx_set_text(f->etag, sizeof f->etag, etag);
    mx_set_text(f->sha256, sizeof f->sha256, sha256);
    return true;
}

void mx_pins_drop_file(mx_pins *pins, const char *commit, const char *path) {
    for (int i = pins->files - 1; i >= 0; i--) {
        if (strcmp(pins->file[i].commit, commit) != 0 || (path && strcmp(pins->file[i].path, path) != 0)) continue;
        free(pins->file[i].path);
        pins->file[i] = pins->file[--pins->files];
    }
}

void mx_pins_drop_revision(mx_pins *pins, const char *revision) {
    for (int i = pins->revisions - 1; i >= 0; i--) {
        if (strcmp(pins->revision[i].revision, revision) != 0) continue;
        free(pins->revision[i].revision);
        pins->revision[i] = pins->revision[--pins->revisions];
    }
}

void mx_pins_drop_commit(mx_pins *pins, const char *commit) {
    mx_pins_drop_file(pins, commit, NULL);
    for (int i = pins->revisions - 1; i >= 0; i--) {
        if (strcmp(pins->revision[i].commit, commit) != 0) continue;
        free(pins->revision[i].revision);
        pins->revision[i] = pins->revision[--pins->revisions];
    }
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */
static mx_status take_line(mx_pins *pins, char *line, const char *path, int number, mx_error *error) {
    char *word[6] = {NULL}, *rest = line;
    if (!*line || *line == '#') return MX_OK;
    const bool file = !strncmp(line, "file ", 5);
    const int words = file ? 6 : 3;
    for (int i = 0; i < words - 1 && rest; i++) word[i] = strsep(&rest, " ");
    word[words - 1] = rest;
    int64_t size = -1;
    bool good = word[words - 1] && *word[words - 1], kept = true;
    if (good && file)
        good = mx_is_commit(word[1]) && mx_parse_size(word[2], &size) && strlen(word[3]) < MX_ETAG_TEXT &&
               (!strcmp(word[4], "-") || mx_is_hexadecimal(word[4], 64)) && mx_is_file_name(word[5]);
    else if (good)
        good = !strcmp(word[0], "revision") && mx_is_revision(word[1]) && mx_is_commit(word[2]);
    if (!good)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s:%d: not a line that mxrun wrote (\"revision REVISION COMMIT\" or \"file COMMIT SIZE ETAG "
                       "SHA256 PATH\"); delete the file, and \"mxrun pull\" makes it anew",
                       path, number);
    kept = file ? mx_pins_set_file(pins, word[1], word[5], size, word[3], *word[4] == '-' ? "" : word[4])
                : mx_pins_set_revision(pins, word[1], word[2]);
    return kept ? MX_OK : mx_fail(error, MX_NO_MEMORY, "%s: out of memory", path);
}

mx_status mx_pins_read(const char *folder, mx_pins *out, mx_error *error) {
    char path[MX_HUB_PATH];
    *out = (mx_pins){0};
    mx_status status = mx_hub_path(path, error, "%s/mxrun.lock", folder);
    if (status || (access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR))) return status;
    mx_bytes text = {0};
    status = mx_read_regular_file(path, (size_t)2 << 20, &text, error);
    int number = 0;
    for (char *rest = text.data, *line; !status && rest && (line = strsep(&rest, "\n"));)
        status = take_line(out, line, path, ++number, error);
    mx_bytes_free(&text);
    return status;
}

mx_status mx_pins_write(const char *folder, const mx_pins *pins, mx_error *error) {
    char path[MX_HUB_PATH];
    mx_status status = mx_hub_path(path, error, "%s/mxrun.lock", folder);
    if (status) return status;
    mx_bytes text = {0};
    bool kept = mx_bytes_add_string(&text, head);
    for (int i = 0; i < pins->revisions && kept; i++)
        kept = mx_bytes_addf(&text, "revision %s %s\n", pins->revision[i].revision, pins->revision[i].commit);
    for (int i = 0; i < pins->files && kept; i++) {
        const mx_pinned_file *f = &pins->file[i];
        kept = mx_bytes_addf(&text, "file %s %lld %s %s %s\n", f->commit, (long long)f->size, f->etag,
                             f->sha256[0] ? f->sha256 : "-", f->path);
    }
    if (!kept)
        status = mx_fail(error, MX_NO_MEMORY, "%s: out of memory", path);
    else if (!mx_replace_file(path, text.data, text.size, true) || chmod(path, 0644) != 0)
        status = mx_fail(error, MX_IO, "%s: cannot write: %s", path, strerror(errno));
    mx_bytes_free(&text);
    return status;
}
