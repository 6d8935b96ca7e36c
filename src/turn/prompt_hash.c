/* The hash of a prompt that grows: what a final answer has settled (thinking before it is left out from then on) is
 * hashed once, what stands behind it once as it comes and once more when it is settled. */
#include "turn/prompt_hash.h"

#include <stdlib.h>
#include <xxhash.h>

#include "turn/conversation_private.h"

struct mx_prompt_hash {
    XXH3_state_t *settled, *grown, *whole; /* of messages [0, final], of [0, known), scratch */
    int final;                             /* messages that are settled */
    int known;                             /* messages that are in `grown` */
    int64_t settled_ids, grown_ids;
};

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the hash of a prompt");
}

static void add(XXH3_state_t *state, const mx_ids *ids) {
    if (ids->count) XXH3_64bits_update(state, ids->data, (size_t)ids->count * sizeof *ids->data);
}

mx_status mx_prompt_hash_create(mx_conversation *c, mx_prompt_hash **out, mx_error *error) {
    *out = NULL;
    mx_status status = mx_conversation_update_head(c, error);
    if (status) return status;
    mx_prompt_hash *h = calloc(1, sizeof *h);
    if (!h) return no_memory(error);
    h->settled = XXH3_createState();
    h->grown = XXH3_createState();
    h->whole = XXH3_createState();
    if (!h->settled || !h->grown || !h->whole) {
        mx_prompt_hash_free(h);
        return no_memory(error);
    }
    XXH3_64bits_reset(h->settled);
    add(h->settled, &c->head);
    h->settled_ids = h->grown_ids = c->head.count;
    XXH3_copyState(h->grown, h->settled);
    *out = h;
    return MX_OK;
}

void mx_prompt_hash_free(mx_prompt_hash *h) {
    if (!h) return;
    XXH3_freeState(h->settled);
    XXH3_freeState(h->grown);
    XXH3_freeState(h->whole);
    free(h);
}

/* Everything before message `end`, a final answer, is settled. */
static void settle(mx_prompt_hash *h, const mx_conversation *c, int end) {
    for (; h->final < end; h->final++) {
        const mx_message *m = &c->messages[h->final];
        if (!c->keep_thinking && mx_message_is_thinking(m)) continue;
        add(h->settled, &m->ids);
        h->settled_ids += m->ids.count;
    }
    XXH3_copyState(h->grown, h->settled);
    h->grown_ids = h->settled_ids;
    h->known = end;
}

uint64_t mx_prompt_hash_of(mx_prompt_hash *h, const mx_conversation *c, int64_t *ids) {
    int final = c->count - 1;
    while (final >= h->known && !mx_message_is_final(&c->messages[final])) final--;
    if (final >= h->known) settle(h, c, final);
    for (; h->known < c->count; h->known++) {
        add(h->grown, &c->messages[h->known].ids);
        h->grown_ids += c->messages[h->known].ids.count;
    }
    *ids = h->grown_ids + c->opening.count;
    XXH3_copyState(h->whole, h->grown);
    add(h->whole, &c->opening);
    return XXH3_64bits_digest(h->whole);
}
