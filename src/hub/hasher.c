#include "hub/hasher.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

enum { CHUNK = 256 << 10 }; /* stays in the second-level cache between reading and hashing */

/* ---- SHA-256 by OpenSSL, which uses the processor's instructions for it -------------------------------------------
 */
static EVP_MD_CTX *begin_hash(void) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1) return context;
    EVP_MD_CTX_free(context);
    return NULL;
}

static bool end_hash(EVP_MD_CTX *context, char out[MX_SHA256_TEXT]) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (EVP_DigestFinal_ex(context, digest, &size) != 1 || size * 2 + 1 != MX_SHA256_TEXT) return false;
    for (unsigned i = 0; i < size; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return true;
}

/* Adds bytes at .. end of the file, which has them. `buffer` [CHUNK]. */
static mx_status add_chunk(EVP_MD_CTX *context, int fd, const char *name, int64_t *at, int64_t end, void *buffer,
                           mx_error *error) {
    const int64_t want = end - *at < CHUNK ? end - *at : CHUNK;
    ssize_t n;
    do n = pread(fd, buffer, (size_t)want, *at);
    while (n < 0 && errno == EINTR);
    if (n < 0) return mx_fail(error, MX_IO, "%s: cannot be read back: %s", name, strerror(errno));
    if (n == 0) return mx_fail(error, MX_IO, "%s: ends at byte %lld: something else cut it", name, (long long)*at);
    if (EVP_DigestUpdate(context, buffer, (size_t)n) != 1)
        return mx_fail(error, MX_UNSUPPORTED, "%s: OpenSSL cannot compute SHA-256", name);
    *at += n;
    return MX_OK;
}

mx_status mx_sha256_file(const char *path, char out[MX_SHA256_TEXT],
                         void (*progress)(void *user, int64_t done, int64_t total), void *user,
                         const volatile sig_atomic_t *stop, mx_error *error) {
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info)) {
        const int problem = errno;
        if (fd >= 0) close(fd);
        return mx_fail(error, problem == ENOENT ? MX_NOT_FOUND : MX_IO, "%s: %s", path, strerror(problem));
    }
    EVP_MD_CTX *context = begin_hash();
    void *buffer = malloc(CHUNK);
    mx_status status = MX_OK;
    if (!S_ISREG(info.st_mode))
        status = mx_fail(error, MX_INVALID_FILE, "%s: is no regular file", path);
    else if (!context || !buffer)
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory to hash it", path);
    int64_t at = 0, told = 0;
    while (!status && at < info.st_size) {
        if (stop && *stop)
            status = mx_fail(error, MX_CANCELLED, "%s: stopped", path);
        else
            status = add_chunk(context, fd, path, &at, info.st_size, buffer, error);
        if (!status && progress && (at - told >= (16 << 20) || at == info.st_size))
            progress(user, told = at, info.st_size);
    }
    if (!status && !end_hash(context, out)) status = mx_fail(error, MX_UNSUPPORTED, "OpenSSL cannot compute SHA-256");
    EVP_MD_CTX_free(context);
    free(buffer);
    close(fd);
    return status;
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */
struct mx_hasher {
    const mx_pieces *pieces;
    int fd;
    const char *name;
    void (*done)(void *user);
    void *user;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    bool quit, ended, woken; /* under the lock, as all below */
    int64_t at;
    char hash[MX_SHA256_TEXT];
    mx_status status;
    mx_error error;
};

/* Waits until something is there behind h->at. false: to be ended. */
static bool wait_for_more(mx_hasher *h, int64_t at, int64_t *end) {
    pthread_mutex_lock(&h->lock);
    h->at = at;
    for (;;) {
        h->woken = false;
        *end = mx_pieces_prefix(h->pieces, at);
        if (h->quit || *end > at) break;
        while (!h->woken && !h->quit) pthread_cond_wait(&h->more, &h->lock);
    }
    const bool go_on = !h->quit;
    pthread_mutex_unlock(&h->lock);
    return go_on;
}

static void *run(void *user) {
    mx_hasher *h = user;
    EVP_MD_CTX *context = begin_hash();
    void *buffer = malloc(CHUNK);
    mx_error error = {0};
    mx_status status = MX_OK;
    char hash[MX_SHA256_TEXT] = "";
    if (!context || !buffer) status = mx_fail(&error, MX_NO_MEMORY, "%s: no memory to hash it", h->name);
    int64_t at = 0, end = 0;
    bool quit = false;
    while (!status && !quit && at < h->pieces->size) {
        quit = !wait_for_more(h, at, &end);
        if (!quit) status = add_chunk(context, h->fd, h->name, &at, end, buffer, &error);
    }
    if (!status && !quit && !end_hash(context, hash))
        status = mx_fail(&error, MX_UNSUPPORTED, "%s: OpenSSL cannot compute SHA-256", h->name);
    EVP_MD_CTX_free(context);
    free(buffer);
    if (quit) return NULL;
    pthread_mutex_lock(&h->lock);
    h->at = at;
    h->ended = true;
    h->status = status;
    h->error = error;
    memcpy(h->hash, hash, sizeof hash);
    pthread_mutex_unlock(&h->lock);
    h->done(h->user);
    return NULL;
}

int mx_hub_thread(pthread_t *thread, void *(*function)(void *user), void *user) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int problem = pthread_create(thread, NULL, function, user);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return problem;
}

mx_status mx_hasher_start(const mx_pieces *pieces, int fd, const char *name, void (*done)(void *user), void *user,
                          mx_hasher **out, mx_error *error) {
    mx_hasher *h = calloc(1, sizeof *h);
    *out = NULL;
    if (!h) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to hash it", name);
    *h = (mx_hasher){.pieces = pieces, .fd = fd, .name = name, .done = done, .user = user};
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->more, NULL);
    const int problem = mx_hub_thread(&h->thread, run, h);
    if (problem) {
        pthread_mutex_destroy(&h->lock);
        pthread_cond_destroy(&h->more);
        free(h);
        return mx_fail(error, MX_NO_MEMORY, "%s: no thread to hash it: %s", name, strerror(problem));
    }
    *out = h;
    return MX_OK;
}

void mx_hasher_wake(mx_hasher *h) {
    pthread_mutex_lock(&h->lock);
    h->woken = true;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
}

bool mx_hasher_ended(mx_hasher *h, char out[MX_SHA256_TEXT], mx_status *status, mx_error *error) {
    pthread_mutex_lock(&h->lock);
    const bool ended = h->ended;
    if (ended) {
        *status = h->status;
        memcpy(out, h->hash, sizeof h->hash);
        if (h->status && error) *error = h->error;
    }
    pthread_mutex_unlock(&h->lock);
    return ended;
}

int64_t mx_hasher_bytes(mx_hasher *h) {
    pthread_mutex_lock(&h->lock);
    const int64_t at = h->at;
    pthread_mutex_unlock(&h->lock);
    return at;
}

void mx_hasher_stop(mx_hasher *h) {
    if (!h) return;
    pthread_mutex_lock(&h->lock);
    h->quit = true;
    pthread_cond_signal(&h->more);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    pthread_mutex_destroy(&h->lock);
    pthread_cond_destroy(&h->more);
    free(h);
}
