/* The scheduler on a clock of its own: steps take what a cost function says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/scheduler.h"
#include "model/sampler.h"

enum { MOST = 256, STEPS = 40000 };

/* ---- what steps cost ----------------------------------------------------------------------------------------------
 */
typedef double cost(int rows);

static double linear(int rows) {
    return 0.05 + 0.004 * rows;
}
/* 32 experts, 4 a row, each read once; then the multiplications. Like gpt-oss-20b on two cores. */
static double experts(int rows) {
    return 0.03 + 0.5 * (1 - pow(28.0 / 32, rows)) + 0.015 * rows;
}
static double slow_experts(int rows) {
    return 10 * experts(rows);
}
static double jumps(int rows) {
    return 0.02 + 0.06 * ((rows + 31) / 32);
}
static double a_wall(int rows) {
    return rows < 100 ? 0.01 + 0.001 * rows : 2;
}
static double quick(int rows) {
    return 2e-4 + 1e-5 * rows;
}

/* ---- requests -----------------------------------------------------------------------------------------------------
 */
typedef struct sim {
    mx_scheduler s;
    mx_candidate c[MOST];
    int64_t answer[MOST]; /* tokens it still decodes */
    int64_t got[MOST];    /* rows, in all */
    int count;
    int64_t arrived;
    double clock, seconds, prompt_seconds; /* with decoders and prompts */
    double longest[STEPS];                 /* of steps with decoders: what they took of what they may take */
    int steps;
} sim;

static void add(sim *m, int64_t prompt, int64_t answer, int priority) {
    assert_true(m->count < MOST);
    m->answer[m->count] = answer;
    m->got[m->count] = 0;
    m->c[m->count++] = (mx_candidate){.unknown = prompt, .order = m->arrived++, .priority = priority};
}

static void leave(sim *m, int i) {
    m->count--;
    memmove(m->c + i, m->c + i + 1, sizeof *m->c * (size_t)(m->count - i));
    memmove(m->answer + i, m->answer + i + 1, sizeof *m->answer * (size_t)(m->count - i));
    memmove(m->got + i, m->got + i + 1, sizeof *m->got * (size_t)(m->count - i));
}

/* One step. Returns its rows. `noise`: it takes up to so much more or less. */
static int step(sim *m, cost *f, double noise) {
    int decode = 0, prompt = 0, drafted = 0, decoders = 0;
    const int total = mx_scheduler_plan(&m->s, m->c, m->count, 0);
    assert_in_range(total, 1, m->s.batch_tokens);
    for (int i = 0; i < m->count; i++) {
        mx_candidate *c = &m->c[i];
        assert_true(c->rows >= 0 && c->rows <= c->unknown + (c->unknown == 1 ? c->drafted : 0));
        decoders += c->unknown == 1;
        if (c->unknown == 1 && c->rows) {
            decode++;
            drafted += c->rows - 1;
        } else
            prompt += c->rows;
    }
    assert_int_equal(decode + drafted + prompt, total);
    const double wobble = 1 + noise * (2 * mx_sample_uniform(3, m->steps) - 1);
    const double seconds = f(total) * wobble, pure = decode ? f(decode) : 0;
    m->clock += seconds;
    mx_scheduler_measured(&m->s, decode, drafted, prompt, seconds);
    if (decode) {
        const double may = fmax(3 * pure, m->s.least_seconds);
        assert_true(m->steps < STEPS);
        m->longest[m->steps++] = seconds / may;
        if (decoders < m->count) {
            m->seconds += seconds;
            m->prompt_seconds += prompt ? seconds - pure * wobble : 0;
        }
    }
    for (int i = m->count - 1; i >= 0; i--) {
        mx_candidate *c = &m->c[i];
        m->got[i] += c->rows;
        if (c->unknown == 1 && c->rows) {
            if (--m->answer[i] == 0) leave(m, i);
        } else if (c->rows) {
            c->unknown -= c->rows;
            if (c->unknown == 0) c->unknown = 1; /* its first token */
        }
    }
    return total;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double p99(sim *m) {
    qsort(m->longest, (size_t)m->steps, sizeof *m->longest, ascending);
    return m->longest[(int)(0.99 * m->steps)];
}

static sim m;

static void begin(int batch_tokens) {
    memset(&m, 0, sizeof m);
    mx_scheduler_init(&m.s, batch_tokens, batch_tokens, 0);
}

/* ---- time ---------------------------------------------------------------------------------------------------------
 */
static void steps_keep_their_time(void **state) {
    (void)state;
    static cost *const costs[] = {linear, experts, slow_experts, jumps, a_wall, quick};
    static const int decoders[] = {1, 4, 30};
    for (int f = 0; f < 6; f++) {
        for (int d = 0; d < 3; d++) {
            for (int noise = 0; noise < 2; noise++) {
                begin(512);
                for (int i = 0; i < decoders[d]; i++) add(&m, 1, 1 << 30, 0);
                add(&m, (int64_t)1 << 40, 1, 0);
                while (m.steps < 4000) step(&m, costs[f], noise * 0.1);
                const double late = p99(&m), share = m.prompt_seconds / m.seconds;
                if (late > 1 || share < 0.3)
                    fail_msg("cost %d, %d decoders, noise %d: p99 %.2f of what it may be, prompts get %.2f", f,
                             decoders[d], noise, late, share);
            }
        }
    }
}

/* Prompts come, decode and go, so that the number of decoders is never the same for long. */
static void also_when_requests_come_and_go(void **state) {
    (void)state;
    static cost *const costs[] = {linear, experts, slow_experts, jumps, quick};
    for (int f = 0; f < 5; f++) {
        begin(512);
        for (int n = 0; m.steps < 20000; n++) {
            if (n % 150 == 0 && m.count < 40)
                add(&m, 50 + (int64_t)(1500 * mx_sample_uniform(1, n)), 20 + (int64_t)(300 * mx_sample_uniform(2, n)),
                    0);
            if (m.count) step(&m, costs[f], 0);
        }
        const double late = p99(&m), share = m.prompt_seconds / m.seconds;
        if (late > 1 || share < 0.3) fail_msg("cost %d: p99 %.2f, prompts get %.2f", f, late, share);
    }
}

static void no_limit_without_decoders(void **state) {
    (void)state;
    begin(512);
    add(&m, 2000, 10, 0);
    for (int i = 0; i < 3; i++) assert_int_equal(step(&m, slow_experts, 0), 512);
    assert_int_equal(step(&m, slow_experts, 0), 464);
}

static void a_longer_limit(void **state) {
    (void)state;
    memset(&m, 0, sizeof m);
    mx_scheduler_init(&m.s, 512, 512, 1e9);
    add(&m, 1, 1 << 30, 0);
    add(&m, 1 << 30, 1, 0);
    for (int i = 0; i < 20; i++) step(&m, experts, 0);
    assert_int_equal(step(&m, experts, 0), 512);
}

/* ---- fairness -----------------------------------------------------------------------------------------------------
 */
static int64_t rows_until_decoding(int64_t order, cost *f) {
    int64_t rows = 0;
    for (;;) {
        int i = 0;
        while (i < m.count && m.c[i].order != order) i++;
        if (i == m.count || m.c[i].unknown == 1) return rows;
        rows += step(&m, f, 0);
    }
}

static void short_behind_long_and_long_behind_short(void **state) {
    (void)state;
    begin(512);
    add(&m, 100000, 5, 0);
    step(&m, quick, 0);
    add(&m, 100, 5, 0);
    assert_true(rows_until_decoding(1, quick) <= 512);

    begin(100); /* a stream of short ones cannot hold up a long one */
    add(&m, 10000, 5, 0);
    int64_t rows = 0;
    while (m.c[0].order == 0 && m.c[0].unknown > 1) {
        while (m.count < 20) add(&m, 50, 1, 0);
        rows += step(&m, quick, 0);
        assert_true(m.steps < 2000 && rows < 40000);
    }
    begin(64); /* equal ones do not all end last */
    for (int i = 0; i < 4; i++) add(&m, 6400, 1000, 0);
    m.s.least_seconds = 1e9;
    assert_true(rows_until_decoding(0, quick) < 2 * 6400 + 1000);
}

static void priorities(void **state) {
    (void)state;
    begin(64);
    add(&m, 1000, 5, 0);
    add(&m, 1000, 5, 7);
    add(&m, 1000, 5, -3);
    add(&m, 30, 5, 7);
    mx_scheduler_plan(&m.s, m.c, m.count, 0);
    assert_int_equal(m.c[0].rows + m.c[2].rows, 0);
    assert_int_equal(m.c[1].rows, 34); /* the oldest half, the short one the rest, and what that leaves */
    assert_int_equal(m.c[3].rows, 30);
    m.c[1].unknown = 10;
    mx_scheduler_plan(&m.s, m.c, m.count, 0);
    assert_int_equal(m.c[1].rows, 10);
    assert_int_equal(m.c[3].rows, 30);
    assert_int_equal(m.c[0].rows, 24);
    assert_int_equal(m.c[2].rows, 0);
}

static void fewer_rows_than_decoders(void **state) {
    (void)state;
    static const int budgets[] = {1, 2, 7, 10};
    for (int b = 0; b < 4; b++) {
        begin(budgets[b]);
        for (int i = 0; i < 10; i++) add(&m, 1, 1 << 30, 0);
        add(&m, 1 << 30, 1, 0);
        for (int i = 0; i < 2000; i++) step(&m, quick, 0);
        int64_t least = INT64_MAX, most = 0, all = m.got[10];
        for (int i = 0; i < 10; i++) {
            if (m.got[i] < least) least = m.got[i];
            if (m.got[i] > most) most = m.got[i];
            all += m.got[i];
        }
        if (most - least > 1 || (double)m.got[10] < 0.28 * (double)all)
            fail_msg("%d rows a step: decoders got %d to %d, the prompt %d of %d", budgets[b], (int)least, (int)most,
                     (int)m.got[10], (int)all);
    }
}

/* One that comes when the others have decoded for long has its part at once, and no more. */
static void who_comes_late_has_its_part(void **state) {
    (void)state;
    begin(16);
    for (int i = 0; i < 63; i++) add(&m, 1, 1 << 30, 0);
    for (int i = 0; i < 3000; i++) step(&m, quick, 0);
    add(&m, 10, 1 << 30, 0);
    while (m.c[63].unknown > 1) step(&m, quick, 0);
    int64_t before[64];
    for (int i = 0; i < 64; i++) before[i] = m.got[i];
    for (int n = 1; n <= 400; n++) {
        step(&m, quick, 0);
        for (int i = 0; i < 64; i++)
            if (m.got[i] - before[i] < n / 4 - 1 || m.got[i] - before[i] > n / 4 + 2)
                fail_msg("after %d steps decoder %d has got %d rows", n, i, (int)(m.got[i] - before[i]));
    }
}

static void drafts_come_last(void **state) {
    (void)state;
    begin(16);
    for (int i = 0; i < 5; i++) add(&m, 1, 1 << 30, 0);
    for (int i = 0; i < 5; i++) m.c[i].drafted = 4;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 16);
    int one = 0;
    for (int i = 0; i < 5; i++) {
        assert_in_range(m.c[i].rows, 1, 5);
        one += m.c[i].rows == 1;
    }
    assert_int_equal(one, 2);
    add(&m, 1000, 1, 0);
    step(&m, quick, 0); /* measures decoding alone */
    for (int i = 0; i < 6; i++) assert_int_equal(m.got[i], i < 5);
    for (int i = 0; i < 50; i++) step(&m, quick, 0);
    mx_scheduler_plan(&m.s, m.c, m.count, 0);
    for (int i = 0; i < 5; i++) assert_int_equal(m.c[i].rows, 1);
    assert_int_equal(m.c[5].rows, 11);
}

/* ---- logits that are kept ----------------------------------------------------------------------------------------
 */
static int wanted_rows(void) {
    int n = 0;
    for (int i = 0; i < m.count; i++) n += m.c[i].scored || m.c[i].unknown == 1 ? m.c[i].rows : m.c[i].rows > 0;
    return n;
}

/* A prompt of which all logits are wanted has as many rows as are kept; others have what it cannot have. */
static void rows_that_cannot_be_kept_go_to_others(void **state) {
    (void)state;
    begin(512);
    m.s.max_wanted = 80;
    add(&m, 3000, 5, 0);
    m.c[0].scored = true;
    add(&m, 3000, 5, 0);
    add(&m, 200, 5, -1);
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 512);
    assert_int_equal(m.c[0].rows, 78); /* one row of each of the others may be wanted, too */
    assert_int_equal(m.c[1].rows, 434);
    assert_int_equal(wanted_rows(), 79);
    m.c[1].scored = true;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 279);
    assert_int_equal(m.c[0].rows + m.c[1].rows, 79);
    assert_int_equal(m.c[2].rows, 200);
    assert_in_range(wanted_rows(), 79, 80);
    m.c[2].unknown = 1;
    m.c[2].drafted = 4;
    for (int i = 0; i < 200; i++) {
        mx_scheduler_plan(&m.s, m.c, m.count, 0);
        assert_in_range(wanted_rows(), 1, 80);
        mx_scheduler_measured(&m.s, 1, m.c[2].rows - 1, m.c[0].rows + m.c[1].rows, 1e-3);
    }
    assert_int_equal(m.c[0].rows + m.c[1].rows, 79);
    assert_int_equal(m.c[2].rows, 1);
}

/* Of a prompt of which only the end is scored, the beginning takes no room of what is kept. */
static void rows_before_the_scored_ones_are_not_kept(void **state) {
    (void)state;
    begin(512);
    m.s.max_wanted = 80;
    add(&m, 3000, 5, 0);
    m.c[0].scored = true;
    m.c[0].unscored = 200;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 280);
    m.c[0].unscored = 2000;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 512);
    add(&m, 3000, 5, 0);
    m.c[1].scored = true;
    m.c[1].unscored = 0;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 512);
    m.c[0].unscored = 30;
    m.c[1].unscored = 50;
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 160);
    m.c[0].unknown = 31; /* its last row alone is kept */
    assert_int_equal(mx_scheduler_plan(&m.s, m.c, m.count, 0), 31 + 129);
}

/* ---- what is not rows --------------------------------------------------------------------------------------------
 */
/* Chunks grow as they do where nothing is spent before. */
static void time_that_is_spent_holds_no_growth_up(void **state) {
    (void)state;
    begin(512);
    add(&m, 1, 1 << 30, 0);
    add(&m, (int64_t)1 << 40, 1, 0);
    int rows = 0;
    for (int i = 0; i < 60; i++) {
        rows = mx_scheduler_plan(&m.s, m.c, m.count, 0.01);
        mx_scheduler_measured(&m.s, 1, 0, rows - 1, quick(rows));
    }
    assert_in_range(rows, 450, 512);
}

/* Time that a step takes before its rows is the prompts', too. */
static void all_of_a_step_keeps_its_time(void **state) {
    (void)state;
    begin(512);
    add(&m, 1, 1 << 30, 0);
    add(&m, (int64_t)1 << 40, 1, 0);
    for (int i = 0; i < 300; i++) step(&m, linear, 0);
    const double spent[] = {0, 0.02, 0.05, 0.1, 10};
    for (int i = 0; i < 5; i++) {
        const int rows = mx_scheduler_plan(&m.s, m.c, m.count, spent[i]);
        if (i < 4) assert_true(spent[i] + linear(rows) < 0.193 && spent[i] + linear(rows) > 0.17);
        if (i == 4) assert_int_equal(rows, 2); /* but they are not held up */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_keep_their_time),
        cmocka_unit_test(also_when_requests_come_and_go),
        cmocka_unit_test(no_limit_without_decoders),
        cmocka_unit_test(a_longer_limit),
        cmocka_unit_test(short_behind_long_and_long_behind_short),
        cmocka_unit_test(priorities),
        cmocka_unit_test(fewer_rows_than_decoders),
        cmocka_unit_test(who_comes_late_has_its_part),
        cmocka_unit_test(drafts_come_last),
        cmocka_unit_test(rows_that_cannot_be_kept_go_to_others),
        cmocka_unit_test(rows_before_the_scored_ones_are_not_kept),
        cmocka_unit_test(all_of_a_step_keeps_its_time),
        cmocka_unit_test(time_that_is_spent_holds_no_growth_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
