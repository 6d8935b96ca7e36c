#include "api/replay.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "api/write.h"

/* ID_DIGITS: of an exchange's id as many as a call's id has. DATES: conversations whose day is kept. */
enum { BUCKETS = 4096, ID_DIGITS = 28, DATES = 4096 };

/* An answer. */
typedef struct entry entry;
struct entry {
    char id[ID_DIGITS + 1]; /* empty: none */
    int answer;
    uint64_t prompt;
    mx_bytes text, calls; /* as a client gets them */
    mx_conversation *messages;
    size_t bytes;
    entry *next_id, *next_said; /* in their buckets */
    entry *newer, *older;
};

typedef struct date {
    uint64_t key, used; /* used 0: free */
    char day[11];
} date;

struct mx_replay {
    pthread_mutex_t lock;
    uint64_t limit, bytes;
    entry *by_id[BUCKETS], *by_said[BUCKETS];
    entry *newest, *oldest;
    uint64_t clock;
    date dates[DATES];
};

mx_status mx_replay_create(uint64_t bytes, mx_replay **out, mx_error *error) {
    *out = calloc(1, sizeof **out);
    if (!*out) return mx_fail(error, MX_NO_MEMORY, "no memory for answers that come back");
    (*out)->limit = bytes;
    pthread_mutex_init(&(*out)->lock, NULL);
    return MX_OK;
}

static void free_entry(entry *e) {
    if (!e) return;
    mx_bytes_free(&e->text);
    mx_bytes_free(&e->calls);
    mx_conversation_free(e->messages);
    free(e);
}

void mx_replay_free(mx_replay *r) {
    if (!r) return;
    for (entry *e = r->newest, *older; e; e = older) {
        older = e->older;
        free_entry(e);
    }
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- what is compared -------------------------------------------------------------------------------------------- */
uint64_t mx_replay_hash(const mx_ids *prompt) {
    return prompt->count ? XXH3_64bits(prompt->data, (size_t)prompt->count * sizeof *prompt->data) : 0;
}

bool mx_replay_add_call(mx_bytes *calls, const char *name, const char *arguments, size_t size) {
    mx_bytes object = {0};
    mx_json_document *document = NULL;
    bool added = mx_bytes_add(calls, name, strlen(name) + 1) && mx_api_add_arguments(&object, arguments, size);
    if (added && !mx_json_parse("arguments", object.data, object.size, &document, NULL))
        added = mx_json_write(calls, mx_json_root(document));
    else
        added = added && mx_bytes_add(calls, object.data, object.size);
    mx_json_free(document);
    mx_bytes_free(&object);
    return added && mx_bytes_add(calls, "", 1);
}

static const char *trim(const char *text, size_t *size) {
    static const char space[] = " \t\r\n";
    while (*size && memchr(space, text[*size - 1], 4)) (*size)--;
    while (*size && memchr(space, *text, 4)) {
        text++;
        (*size)--;
    }
    return text;
}

static bool same(const mx_bytes *a, const void *data, size_t size) {
    return a->size == size && (!size || memcmp(a->data, data, size) == 0);
}

static uint64_t hash_said(uint64_t prompt, const char *text, size_t size, const mx_bytes *calls) {
    const uint64_t hash = size ? XXH3_64bits_withSeed(text, size, prompt) : prompt;
    return calls->size ? XXH3_64bits_withSeed(calls->data, calls->size, hash) : hash;
}

/* Ids of all protocols have the digits of the exchange's somewhere, those of calls then _ANSWER_INDEX. *answer -1: not
 * said. */
static bool read_id(const char *text, char out[static ID_DIGITS + 1], int *answer) {
    static const char hex[] = "0123456789abcdef";
    *answer = -1;
    while (*text) {
        const size_t run = strspn(text, hex);
        if (run >= ID_DIGITS) {
            snprintf(out, ID_DIGITS + 1, "%s", text);
            if (text[run] == '_') sscanf(text + run, "_%4d_", answer);
            return true;
        }
        text += run + (text[run] != 0);
    }
    return false;
}

static size_t bucket_of_id(const char *id) {
    return XXH3_64bits(id, ID_DIGITS) % BUCKETS;
}

/* ---- the list and its buckets ------------------------------------------------------------------------------------ */
static void link_newest(mx_replay *r, entry *e) {
    e->newer = NULL;
    e->older = r->newest;
    if (r->newest)
        r->newest->newer = e;
    else
        r->oldest = e;
    r->newest = e;
}

static void unlink_entry(mx_replay *r, entry *e) {
    *(e->newer ? &e->newer->older : &r->newest) = e->older;
    *(e->older ? &e->older->newer : &r->oldest) = e->newer;
}

static void remove_entry(mx_replay *r, entry *e) {
    unlink_entry(r, e);
    if (*e->id) {
        entry **at = &r->by_id[bucket_of_id(e->id)];
        while (*at != e) at = &(*at)->next_id;
        *at = e->next_id;
    }
    entry **at = &r->by_said[hash_said(e->prompt, e->text.data, e->text.size, &e->calls) % BUCKETS];
    while (*at != e) at = &(*at)->next_said;
    *at = e->next_said;
    r->bytes -= e->bytes;
    free_entry(e);
}

static void add_entry(mx_replay *r, entry *e) {
    pthread_mutex_lock(&r->lock);
    link_newest(r, e);
    if (*e->id) {
        entry **at = &r->by_id[bucket_of_id(e->id)];
        e->next_id = *at;
        *at = e;
    }
    entry **at = &r->by_said[hash_said(e->prompt, e->text.data, e->text.size, &e->calls) % BUCKETS];
    e->next_said = *at;
    *at = e;
    r->bytes += e->bytes;
    while (r->bytes > r->limit) remove_entry(r, r->oldest);
    pthread_mutex_unlock(&r->lock);
}

/* ---- keeping ----------------------------------------------------------------------------------------------------- */
static bool fill_entry(entry *e, const mx_turn *turn) {
    const mx_turn_result *result = mx_turn_get_result(turn);
    size_t size = result->text.size;
    const char *text = trim(result->text.data, &size);
    if (!mx_bytes_add(&e->text, text, size)) return false;
    for (int i = 0; i < result->tool_call_count; i++) {
        const mx_tool_call *call = &result->tool_calls[i];
        if (call->incomplete) continue; /* nobody is told to make it */
        if (!mx_replay_add_call(&e->calls, call->name, call->arguments.data, call->arguments.size)) return false;
    }
    return !mx_conversation_create(mx_turn_tokenizer(turn), &e->messages, NULL) &&
           !mx_conversation_add_answer(e->messages, turn, NULL);
}

void mx_replay_keep(mx_replay *r, const char *id, int answer, const mx_ids *prompt, const mx_turn *turn) {
    if (!mx_turn_parser(turn)) return;
    entry *e = calloc(1, sizeof *e);
    if (!e) return;
    int ignored;
    if (!read_id(id, e->id, &ignored)) *e->id = 0;
    e->answer = answer;
    e->prompt = mx_replay_hash(prompt);
    if (!fill_entry(e, turn) || !mx_conversation_count(e->messages) || (!e->text.size && !e->calls.size)) {
        free_entry(e);
        return;
    }
    e->bytes = sizeof *e + e->text.capacity + e->calls.capacity + mx_conversation_bytes(e->messages);
    add_entry(r, e);
}

/* ---- finding ----------------------------------------------------------------------------------------------------- */
static bool says(const entry *e, const char *text, size_t size, const mx_bytes *calls, bool known) {
    return same(&e->calls, calls->data, calls->size) &&
           (same(&e->text, text, size) || (known && size == 0 && calls->size));
}

static entry *find(mx_replay *r, const mx_replay_key *key) {
    size_t size = key->text_size;
    const char *text = trim(key->text, &size);
    if (!size && !key->calls->size) return NULL;
    for (int i = 0; i < key->id_count; i++) {
        char id[ID_DIGITS + 1];
        int answer;
        if (!read_id(key->ids[i], id, &answer)) continue;
        for (entry *e = r->by_id[bucket_of_id(id)]; e; e = e->next_id)
            if (!strcmp(e->id, id) && (answer < 0 || answer == e->answer) && says(e, text, size, key->calls, true))
                return e;
    }
    entry *e = r->by_said[hash_said(key->prompt, text, size, key->calls) % BUCKETS];
    while (e && !(e->prompt == key->prompt && says(e, text, size, key->calls, false))) e = e->next_said;
    return e;
}

mx_status mx_replay_find(mx_replay *r, const mx_replay_key *key, mx_conversation *into, bool *found, mx_error *error) {
    pthread_mutex_lock(&r->lock);
    entry *e = find(r, key);
    mx_status status = MX_OK;
    *found = e != NULL;
    if (e) {
        unlink_entry(r, e);
        link_newest(r, e);
        status = mx_conversation_add_copies(into, e->messages, error);
    }
    pthread_mutex_unlock(&r->lock);
    return status;
}

/* ---- dates ------------------------------------------------------------------------------------------------------- */
static void today(char out[static 11]) {
    const time_t now = time(NULL);
    struct tm local;
    if (!localtime_r(&now, &local) || strftime(out, 11, "%Y-%m-%d", &local) == 0) *out = 0;
}

void mx_replay_date(mx_replay *r, uint64_t key, bool begins, char out[static 11]) {
    pthread_mutex_lock(&r->lock);
    date *d = &r->dates[0];
    for (int i = 0; i < DATES; i++) {
        if (r->dates[i].used && r->dates[i].key == key) {
            d = &r->dates[i];
            break;
        }
        if (r->dates[i].used < d->used) d = &r->dates[i];
    }
    if (begins || !d->used || d->key != key) {
        d->key = key;
        today(d->day);
    }
    d->used = ++r->clock;
    memcpy(out, d->day, sizeof d->day);
    pthread_mutex_unlock(&r->lock);
}
