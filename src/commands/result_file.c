#include "commands/result_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where a file is made before it gets its name, and what the name stands for. */
typedef struct place {
    bool in_place; /* a pipe or a device */
    bool there;    /* with `mode` */
    mode_t mode;
    char *target, *beside; /* links are followed, so that they stay */
} place;

static void place_free(place *p) {
    free(p->target);
    free(p->beside);
}

/* false: no memory. */
static bool place_of(const char *path, place *out) {
    struct stat info;
    *out = (place){.there = stat(path, &info) == 0};
    if (out->there) out->mode = info.st_mode & 07777;
    const bool device = (!strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9)) || !strncmp(path, "/proc/", 6);
    out->in_place = device || (out->there && !S_ISREG(info.st_mode));
    out->target = out->there && !out->in_place ? realpath(path, NULL) : strdup(path);
    if (out->target && asprintf(&out->beside, "%s.%ld.part", out->target, (long)getpid()) < 0) out->beside = NULL;
    return out->target && out->beside;
}

static mx_status cannot_write(const char *before, const char *path, int problem, mx_error *error) {
    const bool full = problem == ENOSPC || problem == EDQUOT || problem == EFBIG;
    return mx_fail(error, full ? MX_NO_SPACE : MX_IO, "%s%s: it cannot be written: %s", before, path,
                   strerror(problem));
}

static int open_beside(const place *p) {
    return open(p->beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
}

/* A file may be written that has no room beside it: a folder of somebody else's, a file that is mounted. */
static bool only_in_place(int problem) {
    return problem == EACCES || problem == EROFS || problem == EBUSY;
}

mx_status mx_result_file_check(const char *option, const char *path, mx_error *error) {
    char before[64];
    place p;
    int problem = 0;
    snprintf(before, sizeof before, "%s ", option);
    if (!place_of(path, &p)) {
        problem = errno ? errno : ENOMEM;
    } else if (p.in_place || p.there) {
        struct stat info;
        if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
            problem = EISDIR;
        else if (access(path, W_OK))
            problem = errno;
    }
    if (!problem && !p.in_place) {
        const int file = open_beside(&p);
        if (file < 0 && !(p.there && only_in_place(errno))) problem = errno;
        if (file >= 0) {
            close(file);
            unlink(p.beside);
        }
    }
    place_free(&p);
    return problem ? cannot_write(before, path, problem, error) : MX_OK;
}

/* 0, or errno. */
static int write_all(int file, const mx_bytes *text) {
    for (size_t at = 0; at < text->size;) {
        const ssize_t n = write(file, text->data + at, text->size - at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? errno : ENOSPC;
        at += (size_t)n;
    }
    return 0;
}

static int write_to(int file, const mx_bytes *text) {
    if (file < 0) return errno;
    const int problem = write_all(file, text);
    return close(file) && !problem ? errno : problem;
}

static int replace(const place *p, const mx_bytes *text) {
    const int file = open_beside(p);
    int problem = file >= 0 && p->there && fchmod(file, p->mode) ? errno : 0;
    const int written = write_to(file, text); /* errno is still open's where file < 0 */
    if (!problem) problem = written;
    if (!problem && rename(p->beside, p->target)) problem = errno;
    if (file >= 0 && problem) unlink(p->beside);
    if (p->there && only_in_place(problem)) problem = write_to(open(p->target, O_WRONLY | O_TRUNC | O_CLOEXEC), text);
    return problem;
}

mx_status mx_result_file_write(const char *path, const mx_bytes *text, mx_error *error) {
    place p;
    int problem;
    if (!place_of(path, &p))
        problem = errno ? errno : ENOMEM;
    else if (p.in_place)
        problem = write_to(open(path, O_WRONLY | O_APPEND | O_CLOEXEC), text);
    else
        problem = replace(&p, text);
    place_free(&p);
    return problem ? cannot_write("", path, problem, error) : MX_OK;
}
