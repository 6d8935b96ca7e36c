/* Nondeterministic automata made of deterministic parts, and the subset construction. */
#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for an automaton");
}

/* ---- building ---------------------------------------------------------------------------------------------------- */

void mx_nfa_init(mx_nfa *nfa) {
    *nfa = (mx_nfa){.tail = -1};
}

void mx_nfa_free(mx_nfa *nfa) {
    for (int i = 0; i < nfa->machine_count; i++) free(nfa->leaf[i]);
    for (int i = 0; i < nfa->look_count; i++)
        for (int k = 0; k < MX_BEFORES; k++) mx_regular_free(nfa->looks[i].of[k]);
    mx_sets_free(&nfa->machine_numbers);
    free(nfa->nodes), free(nfa->machines), free(nfa->leaf), free(nfa->looks);
    mx_nfa_init(nfa);
}

static mx_status reserve_nodes(mx_nfa *nfa, int more, mx_error *error) {
    const int needed = nfa->node_count + more;
    if (needed > MX_NFA_NODES)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the expression has more than %d parts once its repetitions are written out", MX_NFA_NODES);
    if (needed <= nfa->node_capacity) return MX_OK;
    int capacity = nfa->node_capacity ? nfa->node_capacity : 64;
    while (capacity < needed) capacity *= 2;
    mx_node *nodes = realloc(nfa->nodes, (size_t)capacity * sizeof *nodes);
    if (!nodes) return no_memory(error);
    nfa->nodes = nodes;
    nfa->node_capacity = capacity;
    return MX_OK;
}

mx_status mx_nfa_add(mx_nfa *nfa, mx_node_kind kind, int x, int y, int z, int *node, mx_error *error) {
    const mx_status status = reserve_nodes(nfa, 1, error);
    if (status) return status;
    nfa->words = nfa->words || kind == MX_NODE_WORD || kind == MX_NODE_NOT_WORD;
    nfa->nodes[ *node = nfa->node_count++] = (mx_node){kind, x, y, z};
    return MX_OK;
}

static bool *find_leaves(const mx_regular *r) {
    bool *leaf = malloc((size_t)r->states * sizeof *leaf);
    for (int s = 0; leaf && s < r->states; s++) {
        leaf[s] = true;
        for (int c = 0; c < r->classes; c++)
            leaf[s] = leaf[s] && r->next[(size_t)s * (size_t)r->classes + (size_t)c] < 0;
    }
    return leaf;
}

static mx_status machine_index(mx_nfa *nfa, const mx_regular *machine, int *index, mx_error *error) {
    const int64_t address = (int64_t)(intptr_t)machine;
    const mx_status status = mx_sets_intern(&nfa->machine_numbers, &address, 1, index, error);
    if (status || *index < nfa->machine_count) return status;
    if (nfa->machine_count == nfa->machine_capacity) {
        const int capacity = nfa->machine_capacity ? 2 * nfa->machine_capacity : 16;
        const mx_regular **machines = realloc(nfa->machines, (size_t)capacity * sizeof *machines);
        if (machines) nfa->machines = machines;
        bool **leaf = realloc(nfa->leaf, (size_t)capacity * sizeof *leaf);
        if (leaf) nfa->leaf = leaf;
        if (!machines || !leaf) return no_memory(error);
        nfa->machine_capacity = capacity;
    }
    bool *leaf = find_leaves(machine);
    if (!leaf) return no_memory(error);
    nfa->leaf[nfa->machine_count] = leaf;
    nfa->machines[nfa->machine_count++] = machine;
    return MX_OK;
}

mx_status mx_nfa_add_machine(mx_nfa *nfa, const mx_regular *machine, int exit, int *entry, mx_error *error) {
    int index = 0;
    mx_status status = machine_index(nfa, machine, &index, error);
    if (!status) status = reserve_nodes(nfa, machine->states, error);
    if (status) return status;
    *entry = nfa->node_count;
    for (int s = 0; s < machine->states; s++)
        nfa->nodes[nfa->node_count++] = (mx_node){MX_NODE_MACHINE, index, *entry, exit};
    return MX_OK;
}

mx_status mx_nfa_add_tail(mx_nfa *nfa, int *entry, mx_error *error) {
    const mx_regular *any;
    int accept = 0;
    mx_status status = mx_regular_any(&any, error);
    if (!status) status = mx_nfa_add(nfa, MX_NODE_ACCEPT, 0, 0, 0, &accept, error);
    if (!status) status = mx_nfa_add_machine(nfa, any, accept, entry, error);
    if (!status) nfa->tail = *entry;
    return status;
}

mx_status mx_nfa_add_look(mx_nfa *nfa, const mx_look *look, int *index, mx_error *error) {
    if (nfa->look_count == nfa->look_capacity) {
        const int capacity = nfa->look_capacity ? 2 * nfa->look_capacity : 4;
        mx_look *looks = realloc(nfa->looks, (size_t)capacity * sizeof *looks);
        if (!looks) return no_memory(error);
        nfa->looks = looks;
        nfa->look_capacity = capacity;
    }
    nfa->words = nfa->words || look->of[MX_BEFORE_WORD] != look->of[MX_BEFORE_OTHER];
    *index = nfa->look_count++;
    nfa->looks[*index] = *look;
    return MX_OK;
}

/* ---- the subset construction ------------------------------------------------------------------------------------- */
/* A place is a node together with what the rest of the text is bound to be beside (lookaheads that were passed and
 * whose languages are not decided yet): an id of a list of (look, state of its automaton). A state of the deterministic
 * automaton is a list of places, behind a first number: what stands before, where that matters. */
enum { NEXT_UNKNOWN = MX_BEFORES, NEXT_END };

typedef struct subset {
    const mx_nfa *nfa;
    mx_raw raw;
    mx_sets sets;
    mx_sets duties;       /* id 0: none */
    bool *universal;      /* [look][before][state]: all texts are of it */
    size_t *universal_at; /* [look_count * MX_BEFORES] */
    bool class_word[256]; /* [classes] */
    int first_byte[256];  /* [classes] */
    uint32_t *seen;       /* [nodes] round in which a node was met without duties */
    uint32_t round;
    int64_t *met; /* [met_size] places with duties that were met in this round; -1: free */
    size_t met_size, met_count;
    int64_t *stack, *list, *copy, *duty;
    size_t stack_count, stack_capacity, list_count, list_capacity, copy_capacity, duty_capacity;
    int64_t steps, told; /* told: of these, those that mx_regular_spend knows */
} subset;

static bool grow(int64_t **data, size_t *capacity, size_t needed) {
    if (needed <= *capacity) return true;
    size_t larger = *capacity ? *capacity : 256;
    while (larger < needed) larger *= 2;
    int64_t *p = realloc(*data, larger * sizeof *p);
    if (!p) return false;
    *data = p;
    *capacity = larger;
    return true;
}

static inline int64_t place(int node, int duty) {
    return (int64_t)duty << 32 | (uint32_t)node;
}
static inline int place_node(int64_t p) {
    return (int)(uint32_t)p;
}
static inline int place_duty(int64_t p) {
    return (int)(p >> 32);
}

static mx_status push(subset *w, int64_t p, mx_error *error) {
    if (!grow(&w->stack, &w->stack_capacity, w->stack_count + 1)) return no_memory(error);
    w->stack[w->stack_count++] = p;
    return MX_OK;
}

static mx_status list_add(subset *w, int64_t p, mx_error *error) {
    if (!grow(&w->list, &w->list_capacity, w->list_count + 1)) return no_memory(error);
    w->list[w->list_count++] = p;
    return MX_OK;
}

static mx_status new_round(subset *w, mx_error *error) {
    w->list_count = w->stack_count = 0;
    w->round++;
    if (w->met_count || !w->met) {
        if (!w->met) w->met_size = 256;
        int64_t *met = w->met ? w->met : malloc(w->met_size * sizeof *met);
        if (!met) return no_memory(error);
        w->met = met;
        memset(met, 0xFF, w->met_size * sizeof *met);
        w->met_count = 0;
    }
    return MX_OK;
}

static bool met_insert(int64_t *met, size_t size, int64_t p) {
    size_t slot = ((uint64_t)p * 0x9E3779B97F4A7C15u >> 20) & (size - 1);
    for (; met[slot] >= 0; slot = (slot + 1) & (size - 1))
        if (met[slot] == p) return false;
    met[slot] = p;
    return true;
}

/* Is the place new in this round? */
static mx_status meet(subset *w, int64_t p, bool *fresh, mx_error *error) {
    if (!place_duty(p)) {
        uint32_t *seen = &w->seen[place_node(p)];
        *fresh = *seen != w->round;
        *seen = w->round;
        return MX_OK;
    }
    if (2 * w->met_count >= w->met_size) {
        const size_t size = 2 * w->met_size;
        int64_t *met = malloc(size * sizeof *met);
        if (!met) return no_memory(error);
        memset(met, 0xFF, size * sizeof *met);
        for (size_t i = 0; i < w->met_size; i++)
            if (w->met[i] >= 0) met_insert(met, size, w->met[i]);
        free(w->met);
        w->met = met;
        w->met_size = size;
    }
    *fresh = met_insert(w->met, w->met_size, p);
    w->met_count += *fresh;
    return MX_OK;
}

/* ---- duties ------------------------------------------------------------------------------------------------------ */
/* A duty is (look * MX_BEFORES + before) << 32 | state. */
static const mx_regular *duty_machine(const subset *w, int64_t duty, bool *negative) {
    const int which = (int)(duty >> 32);
    const mx_look *look = &w->nfa->looks[which / MX_BEFORES];
    *negative = look->negative;
    return look->of[which % MX_BEFORES];
}

/* Adds a duty to the list in w->duty, in order. 1: done; 0: it cannot be fulfilled; -1: no memory. */
static int duty_add(subset *w, size_t *count, int64_t duty) {
    bool negative;
    const mx_regular *machine = duty_machine(w, duty, &negative);
    const int32_t state = (int32_t)duty;
    const bool never = state < 0 || (!state && mx_regular_is_empty(machine));
    const bool always = !never && w->universal[w->universal_at[duty >> 32] + (size_t)state];
    if (never || always) return always != negative;
    size_t at = *count;
    while (at > 0 && w->duty[at - 1] > duty) at--;
    if (at > 0 && w->duty[at - 1] == duty) return 1;
    if (!grow(&w->duty, &w->duty_capacity, *count + 1)) return -1;
    memmove(w->duty + at + 1, w->duty + at, (*count - at) * sizeof *w->duty);
    w->duty[at] = duty;
    (*count)++;
    return 1;
}

static mx_status duty_intern(subset *w, size_t count, int *id, mx_error *error) {
    w->steps += (int64_t)count;
    return mx_sets_intern(&w->duties, w->duty, count, id, error);
}

/* One more duty; *id = -1: it cannot be fulfilled. */
static mx_status duty_with(subset *w, int *id, int look, mx_before before, mx_error *error) {
    size_t count;
    const int64_t *old = mx_sets_get(&w->duties, *id, &count);
    if (!grow(&w->duty, &w->duty_capacity, count + 1)) return no_memory(error);
    if (count) memcpy(w->duty, old, count * sizeof *old);
    const int added = duty_add(w, &count, (int64_t)(look * MX_BEFORES + (int)before) << 32);
    if (added < 0) return no_memory(error);
    if (!added) return *id = -1, MX_OK;
    return duty_intern(w, count, id, error);
}

/* The duties behind one more byte; *id = -1: they cannot be fulfilled. */
static mx_status duty_step(subset *w, int *id, int byte, mx_error *error) {
    size_t old_count, count = 0;
    mx_sets_get(&w->duties, *id, &old_count);
    for (size_t i = 0; i < old_count; i++) {
        const int64_t duty = w->duties.items[w->duties.begin[*id] + i];
        bool negative;
        const mx_regular *m = duty_machine(w, duty, &negative);
        const int32_t to = m->next[(size_t)(int32_t)duty * (size_t)m->classes + m->class_of[byte]];
        const int added = duty_add(w, &count, (duty >> 32) << 32 | (uint32_t)to);
        if (added < 0) return no_memory(error);
        if (!added) return *id = -1, MX_OK;
    }
    return duty_intern(w, count, id, error);
}

static bool duties_done(const subset *w, int id) {
    size_t count;
    const int64_t *duties = mx_sets_get(&w->duties, id, &count);
    for (size_t i = 0; i < count; i++) {
        bool negative;
        const mx_regular *m = duty_machine(w, duties[i], &negative);
        if (m->accepting[(int32_t)duties[i]] == negative) return false;
    }
    return true;
}

/* The states whose languages are all texts: the one between characters, if there is one, and those inside of them. */
static void find_universal(const mx_regular *r, const mx_regular *any, bool *universal, int64_t *steps) {
    for (int s = 0; s < r->states && *steps <= MX_NFA_STEPS; s++) {
        int32_t like[16]; /* [state of any] */
        bool same = r->accepting[s];
        memset(like, 0xFF, sizeof like);
        like[0] = s;
        for (int round = 0; same && round < any->states; round++)
            for (int u = 0; same && u < any->states; u++)
                for (int b = 0; like[u] >= 0 && same && b < 256; b++, ++*steps) {
                    const int32_t to = any->next[(size_t)u * (size_t)any->classes + any->class_of[b]];
                    const int32_t here = r->next[(size_t)like[u] * (size_t)r->classes + r->class_of[b]];
                    if (to < 0) continue;
                    same = here >= 0 && (like[to] < 0 || like[to] == here) && r->accepting[here] == any->accepting[to];
                    like[to] = here;
                }
        for (int u = 0; same && u < any->states; u++) universal[like[u]] = true;
        if (same) return;
    }
}

/* ---- lists of places --------------------------------------------------------------------------------------------- */

/* Goes from what is on the stack over all nodes that read nothing. */
static mx_status close_over(subset *w, mx_before before, int next, mx_error *error) {
    const mx_nfa *nfa = w->nfa;
    mx_status status = MX_OK;
    while (!status && w->stack_count) {
        const int64_t p = w->stack[--w->stack_count];
        const mx_node *n = &nfa->nodes[place_node(p)];
        int duty = place_duty(p);
        bool fresh = false, go = false;
        status = meet(w, p, &fresh, error);
        if (status || !fresh) continue;
        w->steps++;
        switch (n->kind) {
        case MX_NODE_SPLIT:
            if (n->y >= 0) status = push(w, place(n->y, duty), error);
            go = true;
            break;
        case MX_NODE_MACHINE: {
            const int state = place_node(p) - n->y;
            if (nfa->machines[n->x]->accepting[state]) status = push(w, place(n->z, duty), error);
            if (!status && !nfa->leaf[n->x][state]) status = list_add(w, p, error);
            break;
        }
        case MX_NODE_BEGIN:
            go = before == MX_BEFORE_START;
            break;
        case MX_NODE_END:
        case MX_NODE_WORD:
        case MX_NODE_NOT_WORD:
            if (next == NEXT_UNKNOWN)
                status = list_add(w, p, error);
            else if (n->kind == MX_NODE_END)
                go = next == NEXT_END;
            else
                go = ((before == MX_BEFORE_WORD) != (next == MX_BEFORE_WORD)) == (n->kind == MX_NODE_WORD);
            break;
        case MX_NODE_LOOK:
            status = duty_with(w, &duty, n->y, before, error);
            go = duty >= 0;
            break;
        case MX_NODE_ACCEPT:
            status = list_add(w, p, error);
            break;
        }
        if (!status && go) status = push(w, place(n->x, duty), error);
    }
    return status;
}

static bool pending(const subset *w, int64_t p) {
    const mx_node_kind kind = w->nfa->nodes[place_node(p)].kind;
    return kind == MX_NODE_END || kind == MX_NODE_WORD || kind == MX_NODE_NOT_WORD;
}

static int by_value(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mx_status sort_list(subset *w) {
    bool sorted = true;
    for (size_t i = 1; sorted && i < w->list_count; i++) sorted = w->list[i - 1] < w->list[i];
    if (!sorted) {
        qsort(w->list, w->list_count, sizeof *w->list, by_value);
        w->steps += 4 * (int64_t)w->list_count;
    }
    return MX_OK;
}

/* Where all is well whatever follows, nothing else matters: only that place stays. */
static mx_status prune(subset *w, mx_before before, mx_error *error) {
    const int tail = w->nfa->tail;
    if (tail < 0) return MX_OK;
    for (size_t i = 0; i < w->list_count; i++) {
        const int64_t p = w->list[i];
        const int node = place_node(p);
        if (place_duty(p) || w->nfa->nodes[node].kind != MX_NODE_MACHINE || w->nfa->nodes[node].y != tail) continue;
        mx_status status = new_round(w, error);
        if (!status) status = push(w, p, error);
        return status ? status : close_over(w, before, NEXT_UNKNOWN, error);
    }
    return MX_OK;
}

/* The state of the list that the stack leads to: its id, and a new row where it is new. Accepting comes later. */
static mx_status close_state(subset *w, mx_before before, int *id, mx_error *error) {
    mx_status status = close_over(w, before, NEXT_UNKNOWN, error);
    if (!status) status = prune(w, before, error);
    if (!status) status = sort_list(w);
    if (status) return status;
    bool waits = false;
    for (size_t i = 0; i < w->list_count; i++) waits = waits || pending(w, w->list[i]);
    if (!w->list_count) return *id = -1, MX_OK;
    if (!grow(&w->list, &w->list_capacity, w->list_count + 1)) return no_memory(error);
    w->list[w->list_count] = waits ? (int64_t)before : (int64_t)MX_BEFORES;
    status = mx_sets_intern(&w->sets, w->list, w->list_count + 1, id, error);
    if (!status && *id == w->raw.states) status = mx_raw_add(&w->raw, false, error);
    return status;
}

/* The places of state `id` in w->copy once it is known what is next: `*count` of them. */
static mx_status open_state(subset *w, int id, int next, size_t *count, mx_error *error) {
    size_t size;
    const int64_t *items = mx_sets_get(&w->sets, id, &size);
    const mx_before before = (mx_before)items[--size];
    mx_status status = new_round(w, error);
    bool any = false;
    for (size_t i = 0; !status && i < size; i++) {
        if (next != NEXT_UNKNOWN && pending(w, items[i])) {
            any = true;
            status = push(w, items[i], error);
        }
    }
    if (!status && any) status = close_over(w, before, next, error);
    if (!status && !grow(&w->copy, &w->copy_capacity, size + w->list_count + 1)) status = no_memory(error);
    if (status) return status;
    memcpy(w->copy, items, size * sizeof *items);
    *count = size;
    if (any) memcpy(w->copy + size, w->list, w->list_count * sizeof *w->list), *count += w->list_count;
    return MX_OK;
}

static mx_status step_class(subset *w, int id, int class, size_t count, mx_error *error) {
    const mx_nfa *nfa = w->nfa;
    const int byte = w->first_byte[class];
    int duty_from = 0, duty_to = 0;
    mx_status status = new_round(w, error);
    w->steps += (int64_t)count;
    for (size_t i = 0; !status && i < count; i++) {
        const int64_t p = w->copy[i];
        const mx_node *n = &nfa->nodes[place_node(p)];
        if (n->kind != MX_NODE_MACHINE) continue;
        const mx_regular *m = nfa->machines[n->x];
        const int32_t to = m->next[(size_t)(place_node(p) - n->y) * (size_t)m->classes + m->class_of[byte]];
        if (to < 0) continue;
        if (place_duty(p) != duty_from) {
            duty_from = duty_to = place_duty(p);
            if (duty_to) status = duty_step(w, &duty_to, byte, error);
        }
        if (!status && duty_to >= 0) status = push(w, place(n->y + to, duty_to), error);
    }
    if (!status) {
        status = mx_regular_spend(w->steps - w->told, error);
        w->told = w->steps;
    }
    int to = -1;
    const mx_before before = w->class_word[class] ? MX_BEFORE_WORD : MX_BEFORE_OTHER;
    if (!status) status = close_state(w, before, &to, error);
    if (!status) w->raw.next[(size_t)id * (size_t)w->raw.classes + (size_t) class] = to;
    if (!status && w->steps > MX_NFA_STEPS)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the expression is too hard: more than %d steps for the first %d states of its automaton; "
                       "repeat fewer times",
                       MX_NFA_STEPS, w->raw.states);
    return status;
}

static mx_status expand(subset *w, int id, mx_error *error) {
    size_t count;
    mx_status status = open_state(w, id, NEXT_END, &count, error);
    for (size_t i = 0; !status && i < count; i++)
        if (w->nfa->nodes[place_node(w->copy[i])].kind == MX_NODE_ACCEPT && duties_done(w, place_duty(w->copy[i])))
            w->raw.accepting[id] = true;
    for (int word = 0; !status && word < 2; word++) {
        int next = word ? MX_BEFORE_WORD : MX_BEFORE_OTHER;
        if (!w->nfa->words) {
            if (word) break;
            next = MX_BEFORE_OTHER;
        }
        status = open_state(w, id, next, &count, error);
        for (int c = 0; !status && c < w->raw.classes; c++)
            if (!w->nfa->words || w->class_word[c] == (bool)word) status = step_class(w, id, c, count, error);
    }
    return status;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static bool is_word(int byte) {
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || byte == '_';
}

static bool find_classes(subset *w) {
    const mx_nfa *nfa = w->nfa;
    uint16_t *scratch = calloc(65536, sizeof *scratch);
    if (!scratch) return false;
    w->raw.classes = 1;
    if (nfa->words) {
        uint8_t words[256];
        for (int b = 0; b < 256; b++) words[b] = is_word(b);
        mx_refine(w->raw.class_of, &w->raw.classes, words, scratch);
    }
    for (int i = 0; i < nfa->machine_count; i++)
        mx_refine(w->raw.class_of, &w->raw.classes, nfa->machines[i]->class_of, scratch);
    for (int i = 0; i < nfa->look_count; i++)
        for (int k = 0; k < MX_BEFORES; k++)
            if (nfa->looks[i].of[k])
                mx_refine(w->raw.class_of, &w->raw.classes, nfa->looks[i].of[k]->class_of, scratch);
    for (int b = 255; b >= 0; b--) {
        w->first_byte[w->raw.class_of[b]] = b;
        w->class_word[w->raw.class_of[b]] = nfa->words && is_word(b);
    }
    free(scratch);
    return true;
}

static mx_status find_all_universal(subset *w, mx_error *error) {
    const mx_nfa *nfa = w->nfa;
    const mx_regular *any;
    size_t total = 1;
    mx_status status = nfa->look_count ? mx_regular_any(&any, error) : MX_OK;
    if (status || !nfa->look_count) return status;
    w->universal_at = calloc((size_t)nfa->look_count * MX_BEFORES, sizeof *w->universal_at);
    for (int i = 0; w->universal_at && i < nfa->look_count * MX_BEFORES; i++) {
        const mx_regular *r = nfa->looks[i / MX_BEFORES].of[i % MX_BEFORES];
        w->universal_at[i] = total;
        total += r ? (size_t)r->states : 0;
    }
    w->universal = calloc(total, sizeof *w->universal);
    if (!w->universal || !w->universal_at) return no_memory(error);
    for (int i = 0; i < nfa->look_count * MX_BEFORES; i++) {
        const mx_regular *r = nfa->looks[i / MX_BEFORES].of[i % MX_BEFORES];
        if (r) find_universal(r, any, w->universal + w->universal_at[i], &w->steps);
    }
    return MX_OK;
}

static mx_status start(subset *w, int entry, mx_before before, mx_error *error) {
    w->seen = calloc((size_t)w->nfa->node_count, sizeof *w->seen);
    if (!w->seen || !find_classes(w)) return no_memory(error);
    mx_status status = find_all_universal(w, error);
    int id = 0;
    if (!status) status = mx_sets_intern(&w->duties, NULL, 0, &id, error);
    if (!status) status = new_round(w, error);
    if (!status) status = push(w, place(entry, 0), error);
    if (!status) status = close_state(w, before, &id, error);
    /* Nothing at all: a start all the same, from which nothing goes on. */
    if (!status && id < 0) {
        const int64_t nothing = MX_BEFORES;
        status = mx_sets_intern(&w->sets, &nothing, 1, &id, error);
        if (!status) status = mx_raw_add(&w->raw, false, error);
    }
    return status;
}

mx_status mx_nfa_minimal(mx_nfa *nfa, int entry, mx_before before, mx_regular **out, mx_error *error) {
    subset w = {.nfa = nfa, .steps = nfa->steps, .told = nfa->steps};
    mx_status status = start(&w, entry, before, error);
    for (int id = 0; !status && id < w.raw.states; id++) status = expand(&w, id, error);
    if (!status) status = mx_raw_minimal(&w.raw, out, error);
    nfa->steps = w.steps;
    mx_raw_free(&w.raw);
    mx_sets_free(&w.sets), mx_sets_free(&w.duties);
    free(w.universal), free(w.universal_at), free(w.seen), free(w.met);
    free(w.stack), free(w.list), free(w.copy), free(w.duty);
    return status;
}
