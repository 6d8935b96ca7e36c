#include <stdlib.h>
#include <string.h>

#include "grammar/vocabulary_private.h"

/* Masks by their keys, least recently used ones dropped where they take too much memory. What somebody holds lives on
 * until it is released. */
bool mx_mask_cache_create(mx_mask_cache *c, uint64_t most_bytes) {
    *c = (mx_mask_cache){.most_bytes = most_bytes, .table_size = 4096};
    c->table = calloc(c->table_size, sizeof(mx_mask *));
    if (!c->table) return false;
    pthread_mutex_init(&c->lock, NULL);
    return true;
}

void mx_mask_free(mx_mask *m) {
    if (!m) return;
    free(m->bits);
    free(m->id);
    free(m->leaving);
    free(m->leaving_from);
    free(m->rounds);
    free(m->round_from);
    free(m);
}

void mx_mask_cache_free(mx_mask_cache *c) {
    for (mx_mask *m = c->newest; m;) {
        mx_mask *older = m->older;
        mx_mask_free(m);
        m = older;
    }
    free(c->table);
    pthread_mutex_destroy(&c->lock);
}

static mx_mask **bucket(const mx_mask_cache *c, mx_state_key key) {
    mx_mask **at = &c->table[key.low & (c->table_size - 1)];
    while (*at && ((*at)->key.low != key.low || (*at)->key.high != key.high)) at = &(*at)->next;
    return at;
}

static void take_out(mx_mask_cache *c, mx_mask *m) {
    *(m->newer ? &m->newer->older : &c->newest) = m->older;
    *(m->older ? &m->older->newer : &c->oldest) = m->newer;
}

static void put_first(mx_mask_cache *c, mx_mask *m) {
    m->newer = NULL;
    m->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = m;
    c->newest = m;
}

static void drop_oldest(mx_mask_cache *c) {
    mx_mask *m = c->oldest;
    take_out(c, m);
    *bucket(c, m->key) = m->next;
    c->bytes -= m->bytes;
    c->masks--;
    if (--m->users == 0) mx_mask_free(m);
}

mx_mask *mx_mask_find(mx_mask_cache *c, mx_state_key key) {
    pthread_mutex_lock(&c->lock);
    mx_mask *m = *bucket(c, key);
    if (m) {
        m->users++;
        if (c->newest != m) {
            take_out(c, m);
            put_first(c, m);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return m;
}

static void enlarge_table(mx_mask_cache *c) {
    const size_t size = c->table_size * 2;
    mx_mask **table = calloc(size, sizeof(mx_mask *));
    if (!table) return;
    free(c->table);
    c->table = table;
    c->table_size = size;
    for (mx_mask *m = c->newest; m; m = m->older) {
        mx_mask **at = &table[m->key.low & (size - 1)];
        m->next = *at;
        *at = m;
    }
}

mx_mask *mx_mask_insert(mx_mask_cache *c, mx_mask *m) {
    pthread_mutex_lock(&c->lock);
    mx_mask *there = *bucket(c, m->key);
    if (there) {
        there->users++;
        pthread_mutex_unlock(&c->lock);
        mx_mask_free(m);
        return there;
    }
    if (c->masks >= c->table_size) enlarge_table(c);
    mx_mask **at = &c->table[m->key.low & (c->table_size - 1)];
    m->next = *at;
    *at = m;
    m->users = 2;
    put_first(c, m);
    c->bytes += m->bytes;
    c->masks++;
    while (c->bytes > c->most_bytes && c->oldest != m) drop_oldest(c);
    pthread_mutex_unlock(&c->lock);
    return m;
}

void mx_mask_release(mx_mask_cache *c, mx_mask *m) {
    pthread_mutex_lock(&c->lock);
    const bool last = --m->users == 0;
    pthread_mutex_unlock(&c->lock);
    if (last) mx_mask_free(m);
}
