#include "server/responses_store.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUCKETS = 4096 };

struct mx_response_store {
    pthread_mutex_t lock;
    uint64_t limit, bytes; /* of all responses that are in memory, found or only held */
    mx_stored_response *buckets[BUCKETS];
    mx_stored_response *newest, *oldest;
};

mx_status mx_response_store_create(uint64_t bytes, mx_response_store **out, mx_error *error) {
    mx_response_store *s = *out = calloc(1, sizeof *s);
    if (!s) return mx_fail(error, MX_NO_MEMORY, "no memory for the responses that are kept");
    s->limit = bytes;
    pthread_mutex_init(&s->lock, NULL);
    return MX_OK;
}

/* FNV-1a */
static mx_stored_response **bucket(mx_response_store *s, const char *id) {
    uint32_t hash = 2166136261u;
    for (; *id; id++) hash = (hash ^ (unsigned char)*id) * 16777619u;
    return &s->buckets[hash % BUCKETS];
}

static uint64_t bytes_of(const mx_stored_response *r) {
    return sizeof *r + r->input.capacity + r->body.capacity;
}

static void destroy(mx_stored_response *r) {
    mx_bytes_free(&r->input);
    mx_bytes_free(&r->body);
    free(r);
}

/* Whatever nobody needs any more goes, and what only that needed. */
static void drop(mx_response_store *s, mx_stored_response *r) {
    while (r && --r->references == 0) {
        mx_stored_response *previous = r->previous;
        s->bytes -= bytes_of(r);
        destroy(r);
        r = previous;
    }
}

static void unlink_order(mx_response_store *s, mx_stored_response *r) {
    *(r->newer ? &r->newer->older : &s->newest) = r->older;
    *(r->older ? &r->older->newer : &s->oldest) = r->newer;
    r->newer = r->older = NULL;
}

static void make_newest(mx_response_store *s, mx_stored_response *r) {
    r->older = s->newest;
    *(s->newest ? &s->newest->newer : &s->oldest) = r;
    s->newest = r;
}

/* It is found no more. */
static void forget(mx_response_store *s, mx_stored_response *r) {
    mx_stored_response **at = bucket(s, r->id);
    while (*at != r) at = &(*at)->chain;
    *at = r->chain;
    unlink_order(s, r);
    drop(s, r);
}

static mx_stored_response *lookup(mx_response_store *s, const char *id) {
    mx_stored_response *r = *bucket(s, id);
    while (r && strcmp(r->id, id) != 0) r = r->chain;
    return r;
}

mx_stored_response *mx_response_store_find(mx_response_store *s, const char *id) {
    if (!s) return NULL;
    pthread_mutex_lock(&s->lock);
    mx_stored_response *r = lookup(s, id);
    if (r) {
        r->references++;
        unlink_order(s, r);
        make_newest(s, r);
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

void mx_stored_response_release(mx_response_store *s, mx_stored_response *r) {
    if (!s || !r) return;
    pthread_mutex_lock(&s->lock);
    drop(s, r);
    pthread_mutex_unlock(&s->lock);
}

void mx_response_store_put(mx_response_store *s, const char *id, mx_stored_response *previous, mx_bytes *input,
                           mx_bytes *body) {
    enum { SHARE = 8 };
    const bool fits = s && input->capacity + body->capacity <= s->limit / SHARE;
    mx_stored_response *r = fits ? calloc(1, sizeof *r) : NULL;
    if (!r) {
        mx_bytes_free(input);
        mx_bytes_free(body);
        return;
    }
    snprintf(r->id, sizeof r->id, "%s", id);
    r->input = *input;
    r->body = *body;
    *input = *body = (mx_bytes){0};
    r->references = 1;
    r->previous = previous;
    pthread_mutex_lock(&s->lock);
    mx_stored_response *same = lookup(s, r->id);
    if (same) forget(s, same);
    if (previous) previous->references++;
    mx_stored_response **at = bucket(s, r->id);
    r->chain = *at;
    *at = r;
    make_newest(s, r);
    s->bytes += bytes_of(r);
    while (s->bytes > s->limit && s->oldest) forget(s, s->oldest);
    pthread_mutex_unlock(&s->lock);
}

bool mx_response_store_delete(mx_response_store *s, const char *id) {
    if (!s) return false;
    pthread_mutex_lock(&s->lock);
    mx_stored_response *r = lookup(s, id);
    const bool found = r != NULL;
    if (r) forget(s, r);
    pthread_mutex_unlock(&s->lock);
    return found;
}

void mx_response_store_free(mx_response_store *s) {
    if (!s) return;
    while (s->oldest) forget(s, s->oldest);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
