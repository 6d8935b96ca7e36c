#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const golden_other golden_others[GOLDEN_OTHERS] = {
    {"base", "t1", 2.6e-3},         {"base", "t17", 7.2e-2},         {"base", "t127", 0.21},
    {"base", "t129", 0.11},         {"base", "t300", 0.20},          {"mqa", "t15", 1.1e-3},
    {"mqa", "t17", 2.0e-2},         {"mqa", "t300", 7.0e-2},         {"mqa", "t1000", 7.6e-2},
    {"top1", "t1", 2.4e-4},         {"top1", "t9", 1.1e-3},          {"top1", "t300", 8.1e-2},
    {"wide2", "t1", 8.0e-4},        {"wide2", "t5", 1.3e-3},         {"wide2", "t33", 4.2e-3},
    {"wide2", "t140", 0.12},        {"stories", "chat0", 9.5e-7},    {"stories", "chat1", 9.5e-7},
    {"stories", "chat2", 9.5e-7},   {"stories", "chat3", 9.5e-7},    {"stories", "chat4", 9.5e-7},
    {"stories", "chat5", 9.5e-7},   {"stories", "chat6", 9.5e-7},    {"stories", "chat7", 9.5e-7},
    {"stories", "book600", 9.5e-5}, {"stories", "book4500", 8.7e-3},
};

int golden_others_of(const char *checkpoint, const char *name) {
    for (int i = 0; i < GOLDEN_OTHERS; i++)
        if (!strcmp(golden_others[i].checkpoint, checkpoint) && !strcmp(golden_others[i].name, name)) return i;
    return -1;
}

static const mx_tensor *part(const mx_checkpoint *ck, const char *name, const char *what) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    return mx_checkpoint_find(ck, full);
}

bool golden_next(const mx_checkpoint *ck, int *index, golden_case *g) {
    for (; *index < mx_checkpoint_count(ck); ++*index) {
        const mx_tensor *ids = mx_checkpoint_at(ck, *index);
        size_t n = strlen(ids->name);
        if (n < 5 || n > 60 || strcmp(ids->name + n - 4, ".ids")) continue;
        snprintf(g->name, sizeof g->name, "%.*s", (int)n - 4, ids->name);
        const mx_tensor *rows = part(ck, g->name, "rows"), *logits = part(ck, g->name, "logits"),
                        *experts = part(ck, g->name, "experts");
        g->ids = (const int32_t *)(const void *)ids->data;
        g->count = (int)ids->shape[0];
        g->rows = (const int32_t *)(const void *)rows->data;
        g->row_count = (int)rows->shape[0];
        g->logits = (const float *)(const void *)logits->data;
        g->experts = experts ? (const int32_t *)(const void *)experts->data : NULL;
        ++*index;
        return true;
    }
    return false;
}

static double log_sum(const float *x, int n) {
    double max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

double golden_mean_kl(const float *truth, const float *ours, int rows, int vocab) {
    double total = 0;
    for (int r = 0; r < rows; r++) {
        const float *p = truth + (size_t)r * (size_t)vocab, *q = ours + (size_t)r * (size_t)vocab;
        double zp = log_sum(p, vocab), zq = log_sum(q, vocab);
        for (int i = 0; i < vocab; i++) total += exp(p[i] - zp) * ((p[i] - zp) - (q[i] - zq));
    }
    return total / rows;
}
