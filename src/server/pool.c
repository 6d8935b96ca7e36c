/* Threads that call handle() for requests with large bodies, whose parsing and tokenising would hold up all other
 * clients of a thread of libmicrohttpd. The connection is suspended meanwhile. */
#include <malloc.h>
#include <stdlib.h>

#include "server/private.h"

enum {
    THREADS = 2,    /* so many trees of large bodies at once */
    TRIM = 1 << 20, /* behind larger bodies memory goes back to the system */
};

struct mx_pool {
    pthread_t threads[THREADS];
    int started;
    pthread_mutex_t lock; /* for all below; before exchange->lock */
    pthread_cond_t changed;
    mx_exchange *first, *last; /* that wait, linked by next_handled */
    int waiting;
    bool stopping;
};

/* handle() is over, or never will be called. */
static void let_go(mx_exchange *x) {
    pthread_mutex_lock(&x->lock);
    x->handled = false;
    if (x->gone || x->state != MX_STATE_OPEN) mx_exchange_wake(x);
    pthread_mutex_unlock(&x->lock);
    mx_exchange_drop(x);
}

static mx_exchange *take_first(struct mx_pool *p) {
    mx_exchange *x = p->first;
    if (!x) return NULL;
    p->first = x->next_handled;
    p->waiting--;
    return x;
}

static void *work(void *server) {
    struct mx_pool *p = ((mx_server *)server)->pool;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        while (!p->first && !p->stopping) pthread_cond_wait(&p->changed, &p->lock);
        mx_exchange *x = p->stopping ? NULL : take_first(p);
        pthread_mutex_unlock(&p->lock);
        if (!x) return NULL;
        const size_t size = x->body.size;
        mx_exchange_handle(x);
        let_go(x);
        if (size > TRIM) malloc_trim(0);
    }
}

mx_status mx_pool_start(mx_server *s, mx_error *error) {
    struct mx_pool *p = s->pool = calloc(1, sizeof *p);
    if (!p) return mx_fail(error, MX_NO_MEMORY, "no memory for a server");
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    for (; p->started < THREADS; p->started++) {
        const int failed = pthread_create(&p->threads[p->started], NULL, work, s);
        if (failed) return mx_fail(error, MX_NO_MEMORY, "no thread: %s", strerror(failed));
    }
    return MX_OK;
}

bool mx_pool_add(mx_exchange *x) {
    struct mx_pool *p = x->server->pool;
    pthread_mutex_lock(&p->lock);
    const bool room = !p->stopping && p->waiting < x->server->options.queue;
    if (room) {
        mx_exchange_keep(x);
        pthread_mutex_lock(&x->lock);
        x->handled = x->suspended = true;
        MHD_suspend_connection(x->connection);
        pthread_mutex_unlock(&x->lock);
        x->next_handled = NULL;
        if (p->first)
            p->last->next_handled = x;
        else
            p->first = x;
        p->last = x;
        p->waiting++;
        pthread_cond_signal(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return room;
}

void mx_pool_stop(mx_server *s) {
    struct mx_pool *p = s->pool;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    while (p->started) pthread_join(p->threads[--p->started], NULL);
    for (mx_exchange *x; (x = take_first(p));) {
        pthread_mutex_lock(&x->lock);
        mx_exchange_cut(x);
        pthread_mutex_unlock(&x->lock);
        let_go(x);
    }
}

void mx_pool_free(mx_server *s) {
    struct mx_pool *p = s->pool;
    if (!p) return;
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    free(p);
    s->pool = NULL;
}
