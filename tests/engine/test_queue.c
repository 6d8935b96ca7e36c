/* Who runs and who waits, on a model of hashes (fake_model.h): order, shared beginnings, priorities, memory that is
 * short, prefixes that are read from the disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "check_engine.h"
#include "engine/page_pool.h"
#include "engine/prefix_store.h"
#include "engine/task.h"
#include "model/sampler.h"
#include "tests/sanitized.h"

enum { MANY = 40, LONGEST = 3000 };

static mx_config config;
static fake_backend *backend;
static int32_t prompt[MANY][LONGEST];
static answer a[MANY];
static mx_request r[MANY];

static mx_engine *start(const char *pattern, int64_t context, int64_t pages, int batch) {
    config = fake_config(pattern, 128, FAKE_MOST);
    return fake_engine(&config, context, pages, batch, &backend);
}

/* One with room for one request of `context` tokens and `more` of them. */
static mx_engine *start_small(int64_t context, double more, int batch) {
    config = fake_config("sf", 128, FAKE_MOST);
    return start("sf", context, (int64_t)((1 + more) * (double)mx_kv_pages_needed(&config, context, batch)), batch);
}

static mx_handle ask(mx_engine *e, int i, int64_t tokens, int64_t most, int priority) {
    r[i] = request_for(prompt[i], tokens, most, &a[i]);
    r[i].priority = priority;
    return submit(e, &r[i]);
}

static mx_handle ask_anything(mx_engine *e, int i, int64_t tokens, int64_t most, int priority) {
    fill(prompt[i], tokens, (uint64_t)i + 1);
    return ask(e, i, tokens, most, priority);
}

static void steps(mx_engine *e, int count) {
    for (int i = 0; i < count; i++) {
        step(e);
        while (collect(e, 8) > 0) {
        }
    }
}

static void check_all(int count) {
    for (int i = 0; i < count; i++) check_answer(&a[i], &config, &r[i], (int)r[i].max_tokens, MX_FINISH_LENGTH);
    assert_int_equal(backend->empty_reads, 0);
}

/* ---- order --------------------------------------------------------------------------------------------------------
 */
static int64_t comparisons;
bool __real_mx_task_is_senior(const mx_task *x, const mx_task *y);
bool __wrap_mx_task_is_senior(const mx_task *x, const mx_task *y);
bool __wrap_mx_task_is_senior(const mx_task *x, const mx_task *y) {
    comparisons++;
    return __real_mx_task_is_senior(x, y);
}

enum { RISING, FALLING, EQUAL, MIXED, ORDERS };

static int priority_of(int order, int i) {
    return order == RISING ? i : order == FALLING ? -i : order == EQUAL ? 0 : (int)(mx_sample_uniform(1, i) * 50);
}

/* Thousands that wait: each is taken when it is its turn, and none of them makes another's call slow. */
static void the_line_is_kept(void **state) {
    (void)state;
    enum { WAITING = 5000 };
    static mx_handle handle[WAITING];
    static int priority[WAITING];
    static bool cancelled[WAITING];
    const mx_engine_parts parts = {.config = &config, .batch_tokens = 64, .max_running = 1};
    for (int order = 0; order < ORDERS; order++) {
        config = fake_config("sf", 128, FAKE_MOST);
        mx_engine *e = fake_engine_with(&parts, 600, 0, &backend);
        comparisons = 0;
        for (int i = 0; i < WAITING; i++) {
            mx_request one = {.prompt = prompt[0], .prompt_count = 1, .max_tokens = 1, .sampling = MX_SAMPLING_DEFAULT};
            one.priority = priority[i] = priority_of(order, i);
            one.user = &priority[i];
            handle[i] = submit(e, &one);
        }
        assert_in_range(comparisons, 0, 2 * WAITING);
        for (int i = 0; i < WAITING; i++)
            if ((cancelled[i] = i % 7 == 3)) mx_cancel(e, handle[i]);
        int last = INT32_MAX, finished = 0;
        mx_handle before = 0;
        while (!mx_engine_idle(e)) {
            step(e);
            mx_event event[8];
            for (int n; (n = mx_poll(e, event, 8)) > 0;) {
                for (int i = 0; i < n; i++) {
                    if (event[i].type != MX_EVENT_FINISHED) continue;
                    const int *of = event[i].user;
                    finished++;
                    assert_int_equal(event[i].finish == MX_FINISH_CANCELLED, cancelled[of - priority]);
                    if (event[i].finish == MX_FINISH_CANCELLED) continue;
                    assert_true(*of < last || (*of == last && event[i].request > before));
                    last = *of;
                    before = event[i].request;
                }
            }
        }
        assert_int_equal(finished, WAITING);
        assert_in_range(comparisons, 0, 40 * WAITING); /* three times the logarithm, which is 12.3 */
        mx_engine_destroy(e);
    }
}

/* Those whose time is over end in its order, wherever they are. */
static void thousands_of_deadlines(void **state) {
    (void)state;
    enum { TIMED = 3000 };
    mx_engine *e = start("sf", 600, 0, 64);
    int ended = 0;
    for (int i = 0; i < TIMED; i++) {
        mx_request one = {.prompt = prompt[0], .prompt_count = 1, .sampling = MX_SAMPLING_DEFAULT};
        one.deadline = 0.001 + 0.05 * mx_sample_uniform(2, i);
        submit(e, &one);
    }
    while (!mx_engine_idle(e)) {
        step(e);
        mx_event event[8];
        for (int n; (n = mx_poll(e, event, 8)) > 0;) {
            for (int i = 0; i < n; i++) {
                if (event[i].type != MX_EVENT_FINISHED) continue;
                ended++;
                assert_true(event[i].finish == MX_FINISH_DEADLINE || event[i].finish == MX_FINISH_CONTEXT);
            }
        }
    }
    assert_int_equal(ended, TIMED);
    mx_engine_destroy(e);
}

/* ---- shared beginnings --------------------------------------------------------------------------------------------
 */
/* Many that wait for the beginning which one of them computes do not hide those behind them. */
static void waiting_for_a_prefix_holds_nobody_up(void **state) {
    (void)state;
    enum { ALIKE = 600 };
    static answer alike[ALIKE];
    mx_engine *e = start("sf", LONGEST, 0, 64);
    fill(prompt[0], 2000, 1);
    for (int i = 0; i < ALIKE; i++) {
        const mx_request same = request_for(prompt[0], 2000, 2, &alike[i]);
        submit(e, &same);
    }
    ask_anything(e, 1, 30, 2, 0);
    while (!a[1].ends) {
        steps(e, 1);
        assert_int_equal(alike[0].tokens, 0);
    }
    run_until_idle(e);
    for (int i = 0; i < ALIKE; i++) {
        assert_int_equal(alike[i].tokens, 2);
        assert_true(i == 0 || alike[i].last.usage.cached_tokens == 1999);
    }
    mx_engine_destroy(e);
}

/* Those who wait for one's beginning are not forgotten, whatever becomes of it or of them. */
static void who_waits_for_a_prefix_goes_on(void **state) {
    (void)state;
    for (int at = 0; at < 40; at++) {
        mx_engine *e = start_small(1200, 0.2, 64);
        mx_handle handle[12];
        fill(prompt[0], 1100, 1);
        for (int i = 0; i < 12; i++) {
            memcpy(prompt[i], prompt[0], sizeof *prompt);
            const int own = 100 * (i % 6) + 64; /* from there on different from the first */
            if (i % 6) fill(prompt[i] + own, 1100 - own, (uint64_t)i);
            r[i] = request_for(prompt[i], i % 5 == 4 ? own : 1000, 5, &a[i]);
            r[i].priority = i == 7;
            handle[i] = submit(e, &r[i]);
        }
        steps(e, at);
        mx_cancel(e, handle[0]);
        mx_cancel(e, handle[at % 12]);
        run_until_idle(e);
        for (int i = 0; i < 12; i++) {
            const bool cut = a[i].last.finish == MX_FINISH_CANCELLED;
            assert_true(!cut || i == 0 || i == at % 12);
            check_answer(&a[i], &config, &r[i], cut ? a[i].tokens : 5, cut ? MX_FINISH_CANCELLED : MX_FINISH_LENGTH);
        }
        mx_engine_destroy(e);
    }
}

/* A prompt begins as one that runs does, but what the sliding layers had there is gone: nothing is to be waited for. */
static void nobody_waits_for_what_is_over(void **state) {
    (void)state;
    mx_engine *e = start_small(3100, 0.1, 64);
    fill(prompt[0], 3000, 1);
    fill(prompt[1], 80, 2);
    memcpy(prompt[1], prompt[0], sizeof **prompt * 64);
    ask(e, 0, 3000, 3, 0);
    steps(e, 35);
    ask(e, 1, 80, 3, 0);
    steps(e, 4);
    assert_true(a[1].tokens > 0);
    assert_int_equal(a[0].tokens, 0);
    run_until_idle(e);
    check_all(2);
    mx_engine_destroy(e);
}

static int ascending(const void *x, const void *y) {
    const double p = *(const double *)x, q = *(const double *)y;
    return (p > q) - (p < q);
}

/* Ten thousand wait for one: a step costs hardly more for it. 1 % of a decode step of gpt-oss-20b is 1.2 ms. */
static void a_long_line_is_cheap(void **state) {
    (void)state;
    enum { WAITING = 10000, STEPS = 100 };
    double seconds[STEPS];
    mx_engine *e = start("sf", 2000, 0, 16);
    fill(prompt[0], 1000, 1);
    for (int i = 0; i < WAITING; i++) {
        mx_request one = {.prompt = prompt[0], .prompt_count = 1000, .max_tokens = 1, .sampling = MX_SAMPLING_DEFAULT};
        submit(e, &one);
    }
    double before = 0;
    for (int i = 0; i < STEPS; i++) {
        step(e);
        if (i == 50) {
            assert_int_equal(mx_engine_get_stats(e).running, 1);
            assert_int_equal(mx_engine_get_stats(e).waiting, WAITING - 1);
        }
        const double now = mx_engine_get_stats(e).schedule_seconds;
        seconds[i] = now - before;
        before = now;
    }
    qsort(seconds, STEPS, sizeof *seconds, ascending);
    printf("10,000 wait: %.3f ms a step beside the model, at most %.3f\n", 1000 * seconds[STEPS / 2],
           1000 * seconds[STEPS - 1]);
    assert_true(seconds[STEPS / 2] < (SANITIZED ? 0.1 : 0.0012));
    mx_engine_destroy(e);
}

/* ---- priorities ---------------------------------------------------------------------------------------------------
 */
/* As many run as may, and have long answers: one of a higher priority takes the place of the most junior one. */
static void a_higher_priority_takes_a_place(void **state) {
    (void)state;
    mx_engine *e = start("sf", 600, 400, 64);
    for (int i = 0; i < 16; i++) ask_anything(e, i, 30, 300, i == 0 ? -1 : 0);
    steps(e, 20);
    ask_anything(e, 16, 30, 20, -1); /* an equal waits */
    steps(e, 20);
    assert_int_equal(a[16].tokens, 0);
    assert_int_equal(mx_engine_get_stats(e).set_back, 0);
    ask_anything(e, 17, 30, 20, 5);
    ask_anything(e, 18, 30, 20, 3);
    steps(e, 5);
    assert_true(a[17].tokens > 0 && a[18].tokens > 0);
    assert_int_equal(mx_engine_get_stats(e).set_back, 2);
    run_until_idle(e);
    check_all(19);
    assert_int_equal(mx_engine_get_stats(e).set_back, 2); /* once for each that came */
    assert_int_equal(a[0].last.usage.set_back, 1);
    assert_int_equal(a[15].last.usage.set_back, 1); /* of equals, the one that came last */
    mx_engine_destroy(e);
}

static void a_higher_priority_takes_memory(void **state) {
    (void)state;
    mx_engine *e = start_small(2000, 1, 64);
    for (int i = 0; i < 4; i++) ask_anything(e, i, 400, 70, 0);
    steps(e, 40);
    for (int i = 0; i < 4; i++) assert_true(a[i].tokens > 0);
    ask_anything(e, 4, 1500, 30, 1);
    steps(e, 30);
    assert_true(a[4].tokens > 0);
    assert_true(a[0].tokens > a[3].tokens); /* no more than necessary */
    run_until_idle(e);
    check_all(5);
    assert_int_equal(a[0].last.usage.set_back, 0);
    assert_int_equal(a[3].last.usage.set_back, 1);
    assert_int_equal(a[4].last.usage.set_back, 0);
    mx_engine_destroy(e);
}

/* It does not fit beside one of its own priority: those below it go on. */
static void nobody_is_set_back_in_vain(void **state) {
    (void)state;
    mx_engine *e = start_small(2000, 0, 64);
    ask_anything(e, 0, 1300, 100, 1);
    ask_anything(e, 1, 100, 90, 0);
    steps(e, 30);
    ask_anything(e, 2, 1500, 5, 1);
    steps(e, 30);
    assert_true(a[0].tokens > 0 && !a[0].ends && a[1].tokens > 0 && !a[1].ends);
    assert_int_equal(mx_engine_get_stats(e).set_back, 0);
    assert_int_equal(a[2].tokens, 0);
    run_until_idle(e);
    check_all(3);
    mx_engine_destroy(e);
}

/* The same where what the other of its priority holds was computed by one that has ended. */
static void nor_for_what_another_computed(void **state) {
    (void)state;
    mx_engine *e = start_small(2000, 0, 64);
    ask_anything(e, 0, 1300, 1, 1);
    run_until_idle(e);
    r[3] = request_for(prompt[0], 1300, 100, &a[3]);
    r[3].priority = 1;
    submit(e, &r[3]);
    ask_anything(e, 1, 100, 90, 0);
    steps(e, 10);
    assert_true(a[3].tokens > 0 && a[1].tokens > 0);
    ask_anything(e, 2, 1500, 5, 1);
    steps(e, 30);
    assert_true(!a[3].ends && !a[1].ends);
    assert_int_equal(mx_engine_get_stats(e).set_back, 0);
    assert_int_equal(a[2].tokens, 0);
    run_until_idle(e);
    check_all(4);
    assert_int_equal(a[3].last.usage.cached_tokens, 1299);
    mx_engine_destroy(e);
}

/* What several hold together is there once: where that leaves room, those of a lower priority make way. */
static void what_is_shared_counts_once(void **state) {
    (void)state;
    mx_engine *e = start_small(2000, 0.4, 64);
    ask_anything(e, 0, 1000, 100, 1);
    steps(e, 20);
    for (int i = 3; i < 6; i++) {
        r[i] = request_for(prompt[0], 1000, 60, &a[i]);
        r[i].priority = 1;
        submit(e, &r[i]);
    }
    ask_anything(e, 1, 300, 90, 0);
    steps(e, 20);
    for (int i = 3; i < 6; i++) assert_true(a[i].tokens > 0);
    assert_true(a[1].tokens > 0);
    ask_anything(e, 2, 500, 5, 1);
    steps(e, 25);
    assert_true(a[2].tokens > 0);
    assert_int_equal(mx_engine_get_stats(e).set_back, 1);
    run_until_idle(e);
    check_all(6);
    assert_int_equal(a[1].last.usage.set_back, 1);
    mx_engine_destroy(e);
}

/* Of one that was set back and whose pages others took, the prompt is computed again but told once: what was told stays
 * as it was, and meanwhile events of others are seen. */
static void what_was_told_is_not_told_again(void **state) {
    (void)state;
    for (int cancel = 0; cancel < 2; cancel++) {
        mx_engine *e = start_small(2000, 0, 64);
        fill(prompt[0], 900, 1);
        r[0] = request_for(prompt[0], 900, 3, &a[0]);
        r[0].prompt_logprobs = true;
        r[0].top_logprobs = 2;
        const mx_handle first = submit(e, &r[0]);
        steps(e, 10);
        const int told = a[0].prompt_tokens;
        assert_in_range(told, 300, 800);
        ask_anything(e, 1, 1900, 2, 1);
        steps(e, 5);
        while (!a[1].ends) steps(e, 1);
        ask_anything(e, 2, 3, 30, 1);
        const int64_t wanted = backend->wanted_rows;
        for (int i = 0; i < 4; i++) {
            const int tokens = a[2].tokens;
            steps(e, 1);
            assert_true(i == 0 || a[2].tokens > tokens); /* the descriptor said so */
            assert_int_equal(a[0].prompt_tokens, told);
        }
        assert_int_equal(mx_engine_get_stats(e).set_back, 1);
        assert_int_equal(backend->wanted_rows - wanted, a[2].tokens);
        if (cancel) mx_cancel(e, first);
        run_until_idle(e);
        assert_int_equal(a[0].prompt_tokens, cancel ? told : 900);
        check_answer(&a[0], &config, &r[0], cancel ? 0 : 3, cancel ? MX_FINISH_CANCELLED : MX_FINISH_LENGTH);
        ask_anything(e, 3, 30, 5, 0);
        run_until_idle(e);
        check_answer(&a[3], &config, &r[3], 5, MX_FINISH_LENGTH);
        mx_engine_destroy(e);
    }
}

/* A stream of priorities: everyone gets what it gets alone. */
static void priorities_come_and_go(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        mx_engine *e = start_small(700, (double)(seed % 3), 64);
        for (int i = 0; i < MANY; i++) {
            fill(prompt[i], 500, seed * 100 + (uint64_t)i);
            if (i % 3 == 2) memcpy(prompt[i], prompt[i - 1], sizeof **prompt * 300);
            ask(e, i, 50 + 10 * i, 40 + i, (int)(mx_sample_uniform(seed, i) * 4));
            steps(e, i % 4);
        }
        run_until_idle(e);
        check_all(MANY);
        mx_engine_destroy(e);
    }
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */
static int copies;
int32_t __real_mx_page_take_copy(mx_page_pool *pool, int32_t from);
int32_t __wrap_mx_page_take_copy(mx_page_pool *pool, int32_t from);
int32_t __wrap_mx_page_take_copy(mx_page_pool *pool, int32_t from) {
    copies++;
    return __real_mx_page_take_copy(pool, from);
}

/* One whose beginning is in the cache does not fit beside another: it touches nothing while it waits. */
static void who_finds_no_room_does_nothing(void **state) {
    (void)state;
    mx_engine *e = start_small(2000, 0, 64);
    ask_anything(e, 0, 200, 2, 0);
    run_until_idle(e);
    ask_anything(e, 1, 1500, 100, 0);
    steps(e, 30);
    assert_true(a[1].tokens > 0);
    fill(prompt[2], 800, 3);
    memcpy(prompt[2], prompt[0], sizeof **prompt * 199); /* ends in the middle of a tile */
    copies = 0;
    ask(e, 2, 800, 2, 0);
    const uint64_t cached = mx_engine_get_stats(e).kv_bytes_cached;
    assert_true(cached > 0);
    steps(e, 20);
    assert_int_equal(mx_engine_get_stats(e).waiting, 1);
    assert_int_equal(copies, 0);
    run_until_idle(e);
    check_all(3);
    assert_int_equal(a[2].last.usage.cached_tokens, 199);
    assert_int_equal(copies, 2); /* a page of each layer */
    mx_engine_destroy(e);
}

static int64_t resident_bytes(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%*d %ld", &pages) != 1) fail_msg("/proc/self/statm cannot be read");
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

/* A request that waits takes memory for its prompt, not for all that it may become. */
static void who_waits_takes_little_memory(void **state) {
    (void)state;
    if (SANITIZED) skip(); /* their allocators touch what is not used */
    enum { WAITING = 1000, CONTEXT = 131072 };
    config = fake_config("sf", 128, CONTEXT);
    const mx_engine_parts parts = {
        .config = &config, .batch_tokens = 64, .speculation = MX_SPECULATE_AUTO, .draft_tokens = 4};
    mx_engine *e = fake_engine_with(&parts, CONTEXT, mx_kv_pages_needed(&config, CONTEXT, 64), &backend);
    const mx_request one = {.prompt = prompt[0], .prompt_count = 100, .sampling = MX_SAMPLING_DEFAULT};
    const int64_t before = resident_bytes();
    for (int round = 0; round < 2; round++) { /* the second time in memory that the others left */
        for (int i = 0; i < WAITING; i++) {
            const mx_handle handle = submit(e, &one);
            if (round == 0) mx_cancel(e, handle);
        }
        if (round == 0) step(e);
        mx_event event[8];
        while (mx_poll(e, event, 8)) {
        }
    }
    const int64_t each = (resident_bytes() - before) / WAITING;
    printf("%d bytes for each that waits\n", (int)each);
    assert_in_range(each, 0, 32 << 10);
    mx_engine_destroy(e);
}

/* ---- what earlier runs computed -----------------------------------------------------------------------------------
 */
static int reads;
static useconds_t read_us;
const void *__real_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token);
const void *__wrap_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token);
const void *__wrap_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token) {
    reads++;
    usleep(read_us);
    return __real_mx_prefix_store_read(store, part, key, token);
}

/* pages 0: enough. */
static mx_engine *start_on(const char *folder, int64_t pages) {
    config = fake_config("sf", 128, FAKE_MOST);
    mx_engine_parts parts = {.config = &config, .batch_tokens = 64};
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = 1 << 26,
                                             .config = &config,
                                             .page_bytes = MX_TILE * sizeof(uint64_t),
                                             .identity = "fake"};
    assert_int_equal(mx_prefix_store_open(&options, &parts.store, NULL), MX_OK);
    return fake_engine_with(&parts, pages ? 2000 : LONGEST, pages, &backend);
}

/* Reading from a slow disk takes no step longer than about 50 ms, whoever else is there. */
static void reading_is_done_in_pieces(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-queue-XXXXXX", command[100];
    assert_non_null(mkdtemp(folder));
    mx_engine *e = start_on(folder, 0);
    for (int i = 0; i < 4; i++) ask_anything(e, i, 700, 1, 0);
    run_until_idle(e);
    mx_engine_destroy(e);

    e = start_on(folder, 0);
    read_us = 20000;
    const mx_handle first = ask_anything(e, 0, 700, 1, 0);
    for (int i = 1; i < 4; i++) ask_anything(e, i, 700, 1, 0);
    for (int n = 0; !mx_engine_idle(e); n++) {
        reads = 0;
        steps(e, 1);
        assert_in_range(reads, 0, 3); /* after 40 ms a third is begun */
        assert_true(n > 0 || reads > 0);
        if (n == 1) mx_cancel(e, first);
        if (n == 2) assert_int_equal(a[0].last.finish, MX_FINISH_CANCELLED);
    }
    for (int i = 1; i < 4; i++) {
        check_answer(&a[i], &config, &r[i], 1, MX_FINISH_LENGTH);
        assert_int_equal(a[i].last.usage.cached_tokens, 640);
    }
    mx_engine_destroy(e);
    read_us = 0;
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

static void remove_folder(const char *folder) {
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

/* Where there is no room beside those that run, nothing is read, for what would it be good. */
static void who_finds_no_room_reads_nothing(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-queue-XXXXXX";
    assert_non_null(mkdtemp(folder));
    mx_engine *e = start_on(folder, 0);
    ask_anything(e, 0, 1000, 1, 0);
    run_until_idle(e);
    mx_engine_destroy(e);

    config = fake_config("sf", 128, FAKE_MOST);
    e = start_on(folder, mx_kv_pages_needed(&config, 2000, 64));
    ask_anything(e, 2, 300, 1, 0);
    run_until_idle(e);
    ask_anything(e, 1, 1400, 60, 0);
    steps(e, 10);
    const uint64_t cached = mx_engine_get_stats(e).kv_bytes_cached;
    assert_true(cached > 0);
    ask_anything(e, 0, 1000, 1, 0);
    reads = 0;
    steps(e, 10);
    assert_int_equal(mx_engine_get_stats(e).waiting, 1);
    assert_int_equal(reads, 0);
    run_until_idle(e);
    check_all(3);
    assert_true(reads > 0);
    assert_int_equal(a[0].last.usage.cached_tokens, 960);
    mx_engine_destroy(e);
    remove_folder(folder);
}

/* One that was set back, and whose pages others took, has them from the disk again. */
static void who_was_set_back_reads_again(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-queue-XXXXXX";
    assert_non_null(mkdtemp(folder));
    mx_engine *e = start_on(folder, 0);
    ask_anything(e, 0, 1300, 1, 0);
    run_until_idle(e);
    mx_engine_destroy(e);

    config = fake_config("sf", 128, FAKE_MOST);
    e = start_on(folder, mx_kv_pages_needed(&config, 2000, 64));
    ask_anything(e, 0, 1300, 50, 0);
    steps(e, 5);
    assert_true(a[0].tokens > 0);
    ask_anything(e, 1, 1900, 5, 1);
    steps(e, 5);
    assert_int_equal(mx_engine_get_stats(e).set_back, 1);
    run_until_idle(e);
    check_all(2);
    assert_in_range(backend->rows, 1900, 1900 + 5 + 2 * (20 + 50));
    mx_engine_destroy(e);
    remove_folder(folder);
}

/* While one reads, those behind it run. */
static void reading_holds_nobody_up(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-queue-XXXXXX";
    assert_non_null(mkdtemp(folder));
    mx_engine *e = start_on(folder, 0);
    ask_anything(e, 0, 2000, 1, 0);
    run_until_idle(e);
    mx_engine_destroy(e);

    e = start_on(folder, 0);
    read_us = 20000;
    ask_anything(e, 0, 2000, 1, 0);
    r[3] = request_for(prompt[0], 2000, 2, &a[3]); /* wants the same: it waits for the one that reads */
    submit(e, &r[3]);
    ask_anything(e, 1, 30, 3, 0);
    ask_anything(e, 2, 60, 5, 0);
    for (int n = 0; n < 10; n++) {
        reads = 0;
        steps(e, 1);
        assert_in_range(reads, 1, 3);
        assert_int_equal(a[0].tokens, 0);
    }
    assert_true(a[1].ends && a[2].tokens > 0);
    run_until_idle(e);
    check_all(4);
    assert_int_equal(a[0].last.usage.cached_tokens, 1984);
    assert_int_equal(a[3].last.usage.cached_tokens, 1999);
    assert_in_range(backend->rows, 0, 16 + 30 + 60 + 20);
    mx_engine_destroy(e);
    read_us = 0;
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_line_is_kept),
        cmocka_unit_test(thousands_of_deadlines),
        cmocka_unit_test(waiting_for_a_prefix_holds_nobody_up),
        cmocka_unit_test(who_waits_for_a_prefix_goes_on),
        cmocka_unit_test(nobody_waits_for_what_is_over),
        cmocka_unit_test(a_long_line_is_cheap),
        cmocka_unit_test(a_higher_priority_takes_a_place),
        cmocka_unit_test(a_higher_priority_takes_memory),
        cmocka_unit_test(nobody_is_set_back_in_vain),
        cmocka_unit_test(nor_for_what_another_computed),
        cmocka_unit_test(what_is_shared_counts_once),
        cmocka_unit_test(what_was_told_is_not_told_again),
        cmocka_unit_test(priorities_come_and_go),
        cmocka_unit_test(who_finds_no_room_does_nothing),
        cmocka_unit_test(who_waits_takes_little_memory),
        cmocka_unit_test(reading_is_done_in_pieces),
        cmocka_unit_test(who_finds_no_room_reads_nothing),
        cmocka_unit_test(who_was_set_back_reads_again),
        cmocka_unit_test(reading_holds_nobody_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
