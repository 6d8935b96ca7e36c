#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "hub/private.h"

/* ---- git --------------------------------------------------------------------------------------------------------- */
static mx_status hash_rest(EVP_MD_CTX *context, FILE *file, const char *path, int64_t size,
                           const volatile sig_atomic_t *stop, mx_error *error) {
    enum { CHUNK = 1 << 16 };
    unsigned char *buffer = malloc(CHUNK);
    if (!buffer) return mx_fail(error, MX_NO_MEMORY, "out of memory");
    mx_status status = MX_OK;
    int64_t done = 0;
    for (size_t n; !status && (n = fread(buffer, 1, CHUNK, file)) > 0; done += (int64_t)n) {
        if (stop && *stop)
            status = mx_fail(error, MX_CANCELLED, "interrupted");
        else if (!EVP_DigestUpdate(context, buffer, n))
            status = mx_fail(error, MX_NO_MEMORY, "%s: SHA-1 failed", path);
    }
    free(buffer);
    if (!status && ferror(file)) status = mx_fail(error, MX_IO, "%s: cannot read: %s", path, strerror(errno));
    if (!status && done != size) status = mx_fail(error, MX_IO, "%s: changed while it was read", path);
    return status;
}

mx_status mx_git_sha1_file(const char *path, char out[static 41], const volatile sig_atomic_t *stop, mx_error *error) {
    FILE *file = fopen(path, "rbe");
    struct stat info;
    if (!file || fstat(fileno(file), &info) != 0) {
        const int problem = errno;
        if (file) fclose(file);
        return mx_fail(error, MX_IO, "%s: cannot read: %s", path, strerror(problem));
    }
    char head[64];
    unsigned char digest[EVP_MAX_MD_SIZE];
    const int size = snprintf(head, sizeof head, "blob %lld", (long long)info.st_size) + 1; /* with its zero */
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    const bool begun =
        context && EVP_DigestInit_ex(context, EVP_sha1(), NULL) && EVP_DigestUpdate(context, head, (size_t)size);
    mx_status status = begun ? hash_rest(context, file, path, info.st_size, stop, error)
                             : mx_fail(error, MX_UNSUPPORTED, "OpenSSL has no SHA-1 here");
    if (!status && !EVP_DigestFinal_ex(context, digest, NULL)) status = mx_fail(error, MX_NO_MEMORY, "SHA-1 failed");
    for (int i = 0; !status && i < 20; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(context);
    fclose(file);
    return status;
}

/* ---- the files of a copy ----------------------------------------------------------------------------------------- */
typedef struct checker {
    const mx_check_options *options;
    int64_t done, total;
} checker;

static void on_bytes(void *user, int64_t done, int64_t total) {
    checker *c = user;
    (void)total;
    if (c->options->progress) c->options->progress(c->options->user, c->done + done, c->total);
}

typedef struct expectation {
    int64_t size;                 /* -1: not known */
    char hash[2][MX_SHA256_TEXT]; /* SHA-256 by models.txt or mxrun.lock, by the blob's name; "" */
    char git[41];                 /* of the blob's name; "" */
} expectation;

static expectation expect(const mx_target *target, const mx_pins *pins, const mx_copy *copy, const char *path,
                          const char *full) {
    expectation e = {.size = -1};
    const mx_pinned_file *pinned = copy->commit[0] ? mx_pins_file(pins, copy->commit, path) : NULL;
    if (pinned) {
        e.size = pinned->size;
        mx_set_text(e.hash[0], sizeof e.hash[0], pinned->sha256);
    }
    for (int i = 0; target->known && i < target->known->file_count; i++) {
        const mx_listed_file *l = &target->known->files[i];
        if (strcmp(l->path, path) != 0) continue;
        if (l->size >= 0) e.size = l->size;
        if (l->sha256[0]) mx_set_text(e.hash[0], sizeof e.hash[0], l->sha256);
    }
    char blob[MX_HUB_PATH];
    const ssize_t size = readlink(full, blob, sizeof blob - 1);
    if (size <= 0) return e;
    blob[size] = 0;
    const char *slash = strrchr(blob, '/'), *name = slash ? slash + 1 : blob;
    if (mx_is_hexadecimal(name, 64)) mx_set_text(e.hash[1], sizeof e.hash[1], name);
    if (mx_is_hexadecimal(name, 40)) mx_set_text(e.git, sizeof e.git, name);
    return e;
}

static mx_status check_file(checker *c, const expectation *e, const char *full, mx_check_event *event,
                            char problem[static 400], mx_error *error) {
    char found[MX_SHA256_TEXT];
    struct stat info;
    if (stat(full, &info) != 0) {
        snprintf(problem, 400, "%s", errno == ENOENT ? "the link leads to nothing" : strerror(errno));
        return MX_OK;
    }
    event->size = info.st_size;
    if (e->size >= 0 && info.st_size != e->size) {
        snprintf(problem, 400, "%lld bytes, not %lld", (long long)info.st_size, (long long)e->size);
        return MX_OK;
    }
    mx_status status = MX_OK;
    if (e->hash[0][0] || e->hash[1][0]) {
        status = mx_sha256_file(full, found, on_bytes, c, c->options->stop, error);
        for (int i = 0; i < 2 && !status && !*problem; i++)
            if (e->hash[i][0] && strcmp(found, e->hash[i]) != 0)
                snprintf(problem, 400, "SHA-256 is %s, not %s", found, e->hash[i]);
    } else if (e->git[0]) {
        status = mx_git_sha1_file(full, found, c->options->stop, error);
        if (!status && strcmp(found, e->git) != 0) snprintf(problem, 400, "git's SHA-1 is %s, not %s", found, e->git);
    } else {
        event->unknown = true;
    }
    if (!status) c->done += info.st_size;
    return status;
}

mx_status mx_check_files(const mx_hub *hub, const mx_target *target, const mx_copy *copy,
                         const mx_check_options *options, int *wrong, mx_error *error) {
    checker c = {.options = options, .total = copy->bytes};
    mx_pins pins = {0};
    char folder[MX_HUB_PATH];
    *wrong = 0;
    mx_status status = hub ? mx_repository_folder(hub, target->repository, folder, error) : MX_OK;
    if (!status && hub) status = mx_pins_read(folder, &pins, error);
    const int all = copy->files.count + copy->missing.count;
    for (int i = 0; i < all && !status; i++) {
        const bool there = i < copy->files.count;
        const char *path = there ? copy->files.text[i] : copy->missing.text[i - copy->files.count];
        char full[MX_HUB_PATH], problem[400] = "";
        mx_check_event event = {.file = path};
        struct stat info;
        status = mx_hub_path(full, error, "%s/%s", copy->snapshot, path);
        if (status) break;
        const expectation e = expect(target, &pins, copy, path, full);
        if (lstat(full, &info) != 0)
            snprintf(problem, sizeof problem, "is not there");
        else
            status = check_file(&c, &e, full, &event, problem, error);
        if (status) break;
        event.problem = *problem ? problem : NULL;
        *wrong += event.problem != NULL;
        if (options->file) options->file(options->user, &event);
    }
    mx_pins_free(&pins);
    return status;
}
