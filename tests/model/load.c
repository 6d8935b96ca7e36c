/* Every way of bringing the weights into memory gives the same bytes, or says why it cannot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/pages.h"
#include "checkpoint_maker.h"
#include "model/load.h"
#include "tests/two_nodes.h"

enum { EXPERTS = 3000 };

static char said[2000];

static void keep(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    size_t used = strlen(said);
    snprintf(said + used, sizeof said - used, "%s\n", line);
}

/* A folder of `files` files, the largest several blocks of 2 MiB and a piece long, no two blocks alike. */
static void make(maker *m, int files) {
    char count[16];
    maker_open(m);
    m->files = files;
    snprintf(count, sizeof count, "%d", EXPERTS);
    maker_set(m, "num_local_experts", count);
    for (int i = 0; i < m->tensors; i++) {
        maker_tensor *t = &m->tensor[i];
        int64_t shape[8];
        t->file = i % files;
        if (!strstr(t->name, ".mlp.")) continue;
        for (int d = 0; d < t->dims; d++) shape[d] = d ? t->shape[d] : EXPERTS;
        maker_retype(t, t->dtype, t->dims, shape);
        if (!strstr(t->name, "_blocks")) continue;
        for (uint64_t k = 0; k < t->bytes; k++) t->data[k] = (uint8_t)((k * 2654435761u) >> 13);
    }
    maker_write(m);
}

static void check_bytes(const maker *m, const mx_weights *w) {
    for (int i = 0; i < m->tensors; i++) {
        const maker_tensor *t = &m->tensor[i];
        const mx_tensor *found = mx_checkpoint_find(w->checkpoint, t->name);
        assert_non_null(found);
        assert_int_equal(found->bytes, t->bytes);
        assert_memory_equal(found->data, t->data, t->bytes);
    }
}

static void every_way_gives_the_same_bytes(void **state) {
    (void)state;
    static const struct {
        mx_load_way way;
        unsigned without;
        const char *said;
        mx_numa numa;
    } cases[] = {
        {MX_LOAD_LAZY, 0, "", MX_NUMA_OFF},
        {MX_LOAD_MAP, 0, "", MX_NUMA_OFF},
        {MX_LOAD_MAP, MX_WITHOUT_POPULATE, "", MX_NUMA_OFF},
        {MX_LOAD_MAP, MX_WITHOUT_MEMORY, "do not fit into", MX_NUMA_OFF},
        {MX_LOAD_READ, 0, "", MX_NUMA_OFF},
        {MX_LOAD_READ, MX_WITHOUT_DIRECT, "no direct reads", MX_NUMA_OFF},
        {MX_LOAD_MAP, 0, "2 memory nodes: each has its part", MX_NUMA_SPREAD},
        {MX_LOAD_READ, 0, "2 memory nodes: each has its part", MX_NUMA_SPREAD},
        {MX_LOAD_READ, 0, "cannot be taken from all in turn", MX_NUMA_INTERLEAVE},
    };
    for (int files = 1; files <= 3; files += 2) {
        maker m;
        mx_error error;
        mx_weights *w;
        mx_pool *pool;
        make(&m, files);
        assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            for (int threads = 1; threads <= 6; threads += 5) {
                const mx_load_options options = {
                    .threads = threads, .way = cases[i].way, .numa = cases[i].numa, .without = cases[i].without};
                two_nodes nodes;
                const bool numa = cases[i].numa != MX_NUMA_OFF;
                if (numa && !two_nodes_begin(&nodes)) continue; /* a single core */
                said[0] = 0;
                mx_log_set_sink(keep, NULL);
                mx_status status = mx_weights_load(m.folder, &options, pool, &w, &error);
                mx_log_set_sink(NULL, NULL);
                if (numa) two_nodes_end(&nodes);
                if (status) fail_msg("%s", error.text);
                if (cases[i].said[0] ? !strstr(said, cases[i].said) : said[0] != 0) fail_msg("said \"%s\"", said);
                check_bytes(&m, w);
                mx_checkpoint_forget(w->checkpoint);
                check_bytes(&m, w);
                mx_weights_close(w);
            }
        mx_pool_destroy(pool);
        maker_close(&m);
    }
}

/* What a copy is good for: nothing of it is in the page cache's hands. */
static void a_copy_is_the_process_s_own(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    make(&m, 1);
    if (mx_weights_load(m.folder, &(mx_load_options){.way = MX_LOAD_READ}, NULL, &w, &error))
        fail_msg("%s", error.text);
    FILE *f = fopen(maker_path(&m, "model.safetensors"), "r+b"); /* another program writes zeros over the file */
    assert_non_null(f);
    for (int i = 0; i < 1 << 20; i++) fputc(0, f);
    assert_int_equal(fclose(f), 0);
    check_bytes(&m, w);
    mx_weights_close(w);
    maker_close(&m);
}

static void loading_brings_everything_in(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    make(&m, 1);
    for (int way = 0; way < 2; way++) {
        const mx_load_options options = {.way = way ? MX_LOAD_READ : MX_LOAD_MAP};
        if (mx_weights_load(m.folder, &options, NULL, &w, &error)) fail_msg("%s", error.text);
        const mx_mapped *file = mx_checkpoint_file(w->checkpoint, 0);
        const mx_pages pages = mx_pages_of(file->data, file->size);
        assert_true(pages.resident >= file->size);
        assert_true(pages.resident < file->size + (4 << 20));
        assert_true(pages.huge <= pages.resident);
        if (!way) assert_true(mx_checkpoint_cached(w->checkpoint) == file->size);
        mx_weights_close(w);
    }
    maker_close(&m);
}

/* Cut off between the check of the header and the loading of the rest. */
static void a_file_that_shrinks_is_named(void **state) {
    (void)state;
    for (int way = 0; way < 3; way++) {
        maker m;
        mx_error error;
        mx_checkpoint *ck;
        make(&m, 1);
        const char *path = maker_path(&m, "model.safetensors");
        if (mx_checkpoint_open(path, &ck, &error)) fail_msg("%s", error.text);
        assert_int_equal(truncate(path, 3 << 20), 0);
        const mx_load_options options = {.way = way ? MX_LOAD_READ : MX_LOAD_MAP,
                                         .without = way == 2 ? MX_WITHOUT_DIRECT : 0};
        assert_int_equal(mx_load_checkpoint(ck, &options, &error), MX_IO);
        if (!strstr(error.text, path) || !strstr(error.text, way ? "has changed" : "cut off"))
            fail_msg("%s", error.text);
        mx_checkpoint_close(ck);
        maker_close(&m);
    }
}

static void a_copy_that_does_not_fit_is_refused(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    make(&m, 1);
    assert_int_equal(mx_weights_load(m.folder, &(mx_load_options){.way = MX_LOAD_READ, .without = MX_WITHOUT_MEMORY},
                                     NULL, &w, &error),
                     MX_NO_MEMORY);
    assert_null(w);
    assert_non_null(strstr(error.text, "--load map"));
    maker_close(&m);
}

struct seen {
    uint64_t done, total;
    int calls;
    bool wrong;
};

static void see(void *user, uint64_t done, uint64_t total) {
    struct seen *s = user;
    s->wrong |= done <= s->done || done > total || (s->total && total != s->total);
    *s = (struct seen){done, total, s->calls + 1, s->wrong};
}

static void progress_rises_to_the_end(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    make(&m, 3);
    for (int way = 0; way < 2; way++) {
        struct seen seen = {0};
        const mx_load_options options = {
            .way = way ? MX_LOAD_READ : MX_LOAD_MAP, .threads = 1, .progress = see, .user = &seen};
        if (mx_weights_load(m.folder, &options, NULL, &w, &error)) fail_msg("%s", error.text);
        assert_false(seen.wrong);
        assert_true(seen.calls >= 1 && seen.total > (4 << 20));
        mx_weights_close(w);
    }
    maker_close(&m);
}

static volatile sig_atomic_t interrupted;

static void interrupt(void *user, uint64_t done, uint64_t total) {
    *(int *)user += 1;
    interrupted = done < total;
}

static void loading_can_be_stopped(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    make(&m, 3);
    for (int way = 0; way < 2; way++)
        for (int early = 0; early < 2; early++) {
            int calls = 0;
            interrupted = early;
            const mx_load_options options = {.way = way ? MX_LOAD_READ : MX_LOAD_MAP,
                                             .threads = 1,
                                             .progress = interrupt,
                                             .user = &calls,
                                             .stop = &interrupted};
            mx_status status = mx_weights_load(m.folder, &options, NULL, &w, &error);
            if (early) assert_int_equal(calls, 0);
            if (early || interrupted) assert_int_equal(status, MX_CANCELLED);
            if (!status) mx_weights_close(w);
        }
    maker_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_gives_the_same_bytes),
        cmocka_unit_test(a_copy_is_the_process_s_own),
        cmocka_unit_test(loading_brings_everything_in),
        cmocka_unit_test(a_file_that_shrinks_is_named),
        cmocka_unit_test(a_copy_that_does_not_fit_is_refused),
        cmocka_unit_test(progress_rises_to_the_end),
        cmocka_unit_test(loading_can_be_stopped),
    };
    return cmocka_run_group_tests_name("load", tests, NULL, NULL);
}
