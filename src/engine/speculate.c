#include "engine/speculate.h"

#include <stdlib.h>
#include <string.h>

/* ---- lookup ------------------------------------------------------------------------------------------------------ */
enum {
    HEADS = 1 << 15,
    SHORTEST = 2,   /* tokens of a match: those that are hashed */
    LONGEST = 64,   /* no match is followed further */
    CANDIDATES = 32 /* places that are looked at, the last ones first */
};

bool mx_lookup_init(mx_lookup *l, int64_t most) {
    int64_t heads = 64;
    while (heads < most && heads < HEADS) heads *= 2;
    *l = (mx_lookup){.heads = heads, .most = most};
    l->last = calloc((size_t)heads, sizeof *l->last);
    l->before = calloc((size_t)most + 1, sizeof *l->before);
    if (l->last && l->before) return true;
    mx_lookup_free(l);
    return false;
}

void mx_lookup_reset(mx_lookup *l) {
    memset(l->last, 0, sizeof *l->last * (size_t)l->heads);
    l->added = 0;
}

void mx_lookup_free(mx_lookup *l) {
    free(l->last);
    free(l->before);
    *l = (mx_lookup){0};
}

/* Links `position`, which stands behind two tokens. Every chain descends, also where an end that the sequence has lost
 * left places in it; what their tokens are now is for the search to see. */
static void add(mx_lookup *l, const int32_t *tokens, int64_t position) {
    const uint64_t pair = (uint64_t)(uint32_t)tokens[position - 2] << 32 | (uint32_t)tokens[position - 1];
    int32_t *last = &l->last[pair * 0x9e3779b97f4a7c15u >> 32 & (uint64_t)(l->heads - 1)];
    int32_t before = *last;
    while (before >= position) before = l->before[before];
    l->before[position] = before;
    *last = (int32_t)position;
}

/* How many tokens before the two places are the same. */
static int common(const int32_t *tokens, int64_t earlier, int64_t later) {
    int n = 0;
    while (n < LONGEST && n < earlier && tokens[earlier - 1 - n] == tokens[later - 1 - n]) n++;
    return n;
}

int mx_lookup_draft(mx_lookup *l, const int32_t *tokens, int64_t count, int32_t *draft, int most, int *matched) {
    int longest = SHORTEST - 1;
    int64_t found = 0;
    *matched = 0;
    if (count < SHORTEST || count > l->most || most < 1) return 0;
    if (l->added >= count) l->added = count - 1;
    for (; l->added < count; l->added++)
        if (l->added + 1 >= SHORTEST) add(l, tokens, l->added + 1);

    int64_t at = l->before[count];
    for (int i = 0; i < CANDIDATES && at > 0 && longest < LONGEST; i++, at = l->before[at]) {
        int n = common(tokens, at, count);
        if (n <= longest) continue;
        longest = n;
        found = at;
    }
    if (!found) return 0;
    *matched = longest;
    for (int i = 0; i < most; i++) draft[i] = found + i < count ? tokens[found + i] : draft[found + i - count];
    return most;
}

/* ---- cost -------------------------------------------------------------------------------------------------------- */
/* Before anything was measured: a decode step of gpt-oss-20b takes twice the time with 5 rows. */
static const double FIRST_SLOPE = 0.25;

static double shape_of(const mx_draft_cost *cost, int rows) {
    return cost->level > 0 ? cost->shape[rows] : 1 + FIRST_SLOPE * (rows - 1);
}

/* The level follows the machine, which is quick to change; the shape follows what the level does not explain, and takes
 * its neighbourhood along. */
void mx_draft_measured(mx_draft_cost *cost, int rows, double seconds) {
    const double fast = 1.0 / 4, slow = 1.0 / 16;
    if (rows < 1 || rows > MX_DRAFT_ROWS || !(seconds > 0)) return;
    if (cost->level <= 0) {
        for (int i = 1; i <= MX_DRAFT_ROWS; i++) cost->shape[i] = shape_of(cost, i);
        cost->level = seconds / cost->shape[rows];
        return;
    }
    double ratio = seconds / (cost->level * cost->shape[rows]);
    if (ratio < 0.5) ratio = 0.5; /* one slow step says little */
    if (ratio > 2) ratio = 2;
    for (int i = 1; i <= MX_DRAFT_ROWS; i++) {
        const int distance = i < rows ? rows - i : i - rows;
        cost->shape[i] *= 1 + (ratio - 1) * slow / (1 + distance * distance);
    }
    cost->level *= 1 + (ratio - 1) * fast;
}

/* ---- luck -------------------------------------------------------------------------------------------------------- */
/* Shortest match of each class, and how often its next token was right in English prose, C sources and files that were
 * written again with changes (GPT-OSS tokens): what to believe before a request has shown its own. */
static const struct {
    int matched;
    double right;
} classes[MX_DRAFT_CLASSES] = {{2, 0.35}, {3, 0.45}, {4, 0.55}, {6, 0.7}, {9, 0.8}, {17, 0.9}, {33, 0.97}, {64, 0.99}};

static int class_of(int matched) {
    int class = MX_DRAFT_CLASSES - 1;
    while (class > 0 && matched < classes[class].matched) class --;
    return class;
}

static double chance(const mx_draft_luck *luck, int matched) {
    const double belief = 8; /* trials that it counts as */
    const int class = class_of(matched);
    return (luck->right[class] + belief * classes[class].right) / (luck->tried[class] + belief);
}

static void forget(mx_draft_luck *luck, int class, double part) {
    luck->right[class] -= luck->right[class] * part;
    luck->tried[class] -= luck->tried[class] * part;
}

/* A token that was right makes the match one longer for the next. */
void mx_draft_checked(mx_draft_luck *luck, int matched, int drafted, int accepted) {
    for (int i = 0; i < drafted && i <= accepted; i++) {
        const int class = class_of(matched + i);
        forget(luck, class, 1.0 / 32);
        luck->tried[class] += 1;
        luck->right[class] += i < accepted;
    }
}

int mx_draft_length(const mx_draft_cost *cost, mx_draft_luck *luck, int matched, int rows, int most) {
    const double margin = 1.03; /* what was measured is noisy, and a row that was wrong is power for nothing */
    int length = 0;
    if (matched < SHORTEST) return 0;
    if (rows < 1) rows = 1;
    if (rows > MX_DRAFT_ROWS) return 0;
    double best = rows / shape_of(cost, rows) * margin, tokens = rows, likely = 1;
    for (int n = 1; n <= most && rows + n <= MX_DRAFT_ROWS; n++) {
        likely *= chance(luck, matched + n - 1);
        tokens += likely;
        const double speed = tokens / shape_of(cost, rows + n);
        if (speed <= best) continue;
        best = speed;
        length = n;
    }
    if (length == 0) forget(luck, class_of(matched), 1.0 / 512);
    return length;
}
