#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/files.h"
#include "hub/incoming.h"

/* Between two lines of a state file; between two times that the data are brought to the disk; a state file that has
 * grown beyond so many bytes is written anew. */
static const double TELL_SECONDS = 0.2, SYNC_SECONDS = 5;
enum { STATE_BYTES = 4 << 20, FLUSH_BYTES = 4 << 20 };

struct mx_keeper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* for either side */
    mx_incoming **file;     /* [count], owned array */
    int count;
    bool quit;
};

static bool quits(mx_keeper *k) {
    pthread_mutex_lock(&k->lock);
    const bool quit = k->quit;
    pthread_mutex_unlock(&k->lock);
    return quit;
}

/* Has the kernel write what is not safe yet, bit by bit: fsync cannot be interrupted, and after this it has little left
 * to do. false: a stop came in between. What goes wrong shows in fsync. */
static bool flush(mx_keeper *k, const mx_incoming *f) {
    const mx_pieces *p = &f->pieces;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t end = mx_piece_have(p, i);
        for (int64_t at = f->resume.safe[i]; at < end; at += FLUSH_BYTES) {
            const int64_t size = end - at < FLUSH_BYTES ? end - at : FLUSH_BYTES;
            if (quits(k)) return false;
            sync_file_range(f->fd, i * p->each + at, size,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        }
    }
    return true;
}

static mx_status publish(mx_incoming *f, mx_error *error) {
    const mx_download *d = f->d;
    if (fsync(f->fd))
        return mx_fail(error, errno == ENOSPC ? MX_NO_SPACE : MX_IO, "%s: cannot be brought to the disk: %s",
                       d->incomplete, strerror(errno));
    if (rename(d->incomplete, d->complete))
        return mx_fail(error, MX_IO, "%s: cannot be renamed to %s: %s", d->incomplete, d->complete, strerror(errno));
    if (!mx_sync_folder(d->complete))
        return mx_fail(error, MX_IO, "%s: its folder cannot be brought to the disk: %s", d->complete, strerror(errno));
    mx_resume_close(&f->resume, true);
    return MX_OK;
}

static mx_status tell(mx_incoming *f, bool sync, mx_error *error) {
    const int64_t count = f->pieces.count;
    int64_t *have = malloc((size_t)(count + 1) * sizeof *have);
    if (!have) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its state", f->d->name);
    bool unsafe = false;
    for (int64_t i = 0; i < count; i++) {
        have[i] = mx_piece_have(&f->pieces, i);
        unsafe = unsafe || have[i] > f->resume.safe[i];
    }
    mx_status status = MX_OK;
    if (sync && unsafe && fdatasync(f->fd))
        status = mx_fail(error, errno == ENOSPC ? MX_NO_SPACE : MX_IO, "%s: cannot be brought to the disk: %s",
                         f->d->incomplete, strerror(errno));
    if (!status) status = mx_resume_tell(&f->resume, have, count, sync && unsafe, error);
    free(have);
    if (!status && f->resume.bytes > STATE_BYTES)
        status = mx_resume_write(&f->resume, f->state_path, &f->pieces, f->etag, f->source, error);
    return status;
}

/* One file, without the lock held. `last`: no more than must be. */
static void work(mx_keeper *k, mx_incoming *f, bool last) {
    bool publishes = f->publish && !last, sync = !last && mx_seconds() - f->synced >= SYNC_SECONDS;
    mx_error error = {0};
    f->busy = true;
    pthread_mutex_unlock(&k->lock);
    if ((publishes || sync) && !flush(k, f)) publishes = sync = false;
    const mx_status status = publishes ? publish(f, &error) : tell(f, sync, &error);
    pthread_mutex_lock(&k->lock);
    f->busy = false;
    if (sync) f->synced = mx_seconds();
    if (status) {
        f->keeper_status = status;
        f->keeper_error = error;
    } else if (publishes)
        f->published = true;
    if (status || publishes) f->wake(f->wake_user);
    pthread_cond_broadcast(&k->changed);
}

static bool wants(const mx_incoming *f) {
    return f->kept && !f->published && !f->keeper_status;
}

/* Files that are to be published go first. */
static void round_of_work(mx_keeper *k) {
    for (int i = 0; i < k->count; i++)
        if (wants(k->file[i]) && k->file[i]->publish) work(k, k->file[i], false);
    for (int i = 0; i < k->count && !k->quit; i++)
        if (wants(k->file[i])) work(k, k->file[i], false);
}

static void *run(void *user) {
    mx_keeper *k = user;
    pthread_mutex_lock(&k->lock);
    while (!k->quit) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (long)(TELL_SECONDS * 1e9);
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        bool hurry = false;
        for (int i = 0; i < k->count; i++) hurry = hurry || (wants(k->file[i]) && k->file[i]->publish);
        if (!hurry) pthread_cond_timedwait(&k->changed, &k->lock, &until);
        if (!k->quit) round_of_work(k);
    }
    for (int i = 0; i < k->count; i++)
        if (wants(k->file[i])) work(k, k->file[i], true);
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

mx_status mx_keeper_start(int files, mx_keeper **out, mx_error *error) {
    mx_keeper *k = calloc(1, sizeof *k);
    *out = NULL;
    if (k) k->file = calloc((size_t)files + 1, sizeof(mx_incoming *));
    if (!k || !k->file) {
        free(k);
        return mx_fail(error, MX_NO_MEMORY, "no memory for a download");
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (mx_hub_thread(&k->thread, run, k)) {
        pthread_mutex_destroy(&k->lock);
        pthread_cond_destroy(&k->changed);
        free(k->file);
        free(k);
        return mx_fail(error, MX_NO_MEMORY, "no thread for a download");
    }
    *out = k;
    return MX_OK;
}

void mx_keeper_add(mx_keeper *k, mx_incoming *f) {
    pthread_mutex_lock(&k->lock);
    f->kept = true;
    f->busy = f->publish = f->published = false;
    f->keeper_status = MX_OK;
    f->synced = mx_seconds();
    k->file[k->count++] = f;
    pthread_mutex_unlock(&k->lock);
}

void mx_keeper_remove(mx_keeper *k, mx_incoming *f) {
    if (!k) return;
    pthread_mutex_lock(&k->lock);
    f->kept = false;
    while (f->busy) pthread_cond_wait(&k->changed, &k->lock);
    int left = 0;
    for (int i = 0; i < k->count; i++)
        if (k->file[i] != f) k->file[left++] = k->file[i];
    k->count = left;
    pthread_mutex_unlock(&k->lock);
}

void mx_keeper_publish(mx_keeper *k, mx_incoming *f) {
    pthread_mutex_lock(&k->lock);
    f->publish = true;
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->lock);
}

mx_status mx_keeper_look(mx_keeper *k, mx_incoming *f, bool *published, mx_error *error) {
    pthread_mutex_lock(&k->lock);
    const mx_status status = f->keeper_status;
    *published = f->published;
    if (status && error) *error = f->keeper_error;
    pthread_mutex_unlock(&k->lock);
    return status;
}

void mx_keeper_stop(mx_keeper *k) {
    if (!k) return;
    pthread_mutex_lock(&k->lock);
    k->quit = true;
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->changed);
    free(k->file);
    free(k);
}
