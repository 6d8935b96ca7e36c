/* Random damage to a real checkpoint's header and configuration: it opens or fails cleanly, 2,000 times. What a damaged
 * header may still open to is read, so that a wrong pointer shows under ASan. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "checkpoint_maker.h"
#include "model/model.h"

enum { ROUNDS = 2000 };

static uint64_t random_state = 1;
static uint32_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* 1 to 4 bytes, a bit flipped or replaced by what JSON is made of. */
static void damage(char *text, size_t size) {
    static const char json[] = "0123456789[]{}:,\"eE.-+tfn\\ ";
    for (uint32_t n = 1 + next_random() % 4; n > 0; n--) {
        size_t i = next_random() % size;
        if (next_random() % 2)
            text[i] = (char)(text[i] ^ (1 << next_random() % 8));
        else
            text[i] = json[next_random() % (sizeof json - 1)];
    }
}

static void write_at_start(const char *path, const char *data, size_t size) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static unsigned touch(const mx_weights *w) {
    unsigned sum = 0;
    for (int i = 0; i < mx_checkpoint_count(w->checkpoint); i++) {
        const mx_tensor *t = mx_checkpoint_at(w->checkpoint, i);
        if (t->bytes) sum += t->data[0] + t->data[t->bytes - 1];
    }
    for (int i = 0; i < w->config.layers; i++) {
        const mx_experts *e = &w->layer[i].down;
        sum += e->matrix.data[(w->config.experts - 1) * e->data_stride + (e->matrix.rows - 1) * e->matrix.row_stride];
        sum += e->matrix.scales[(w->config.experts - 1) * e->scale_stride];
    }
    return sum;
}

/* `path`: the file whose first `size` bytes are damaged; `right` holds them. Returns how many rounds still opened. */
static int run(const maker *m, const char *path, const mx_bytes *right, unsigned *sum) {
    int opened = 0;
    char *text = malloc(right->size);
    assert_non_null(text);
    for (int round = 0; round < ROUNDS; round++) {
        memcpy(text, right->data, right->size);
        damage(text, right->size);
        write_at_start(path, text, right->size);
        mx_weights *w = NULL;
        mx_error error = {.text = ""};
        mx_status status = mx_weights_open(m->folder, NULL, &w, &error);
        if (!status) {
            *sum += touch(w);
            opened++;
        } else if (!*error.text || strpbrk(error.text, "\n\r\033")) {
            fail_msg("round %d: no clean line: \"%s\"", round, error.text);
        }
        assert_true((status == MX_OK) == (w != NULL));
        mx_weights_close(w);
    }
    write_at_start(path, right->data, right->size);
    free(text);
    return opened;
}

static void ignore_line(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    (void)line;
}

static void test_damage(void **state) {
    (void)state;
    maker m;
    mx_bytes config = {0}, weights = {0};
    char path[1000];
    maker_open(&m);
    snprintf(path, sizeof path, "%s/tests/data/base/config.json", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(path, 1 << 20, &config, NULL), MX_OK);
    snprintf(path, sizeof path, "%s/tests/data/base/model.safetensors", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(path, 1 << 24, &weights, NULL), MX_OK);
    maker_file(&m, "config.json", config.data, config.size);
    maker_file(&m, "model.safetensors", weights.data, weights.size);
    weights.size = 8 + mx_load_u64(weights.data); /* the header alone */

    mx_log_set_sink(ignore_line, NULL);
    unsigned sum = 0;
    char target[300];
    snprintf(target, sizeof target, "%s/config.json", m.folder);
    int opened = run(&m, target, &config, &sum);
    snprintf(target, sizeof target, "%s/model.safetensors", m.folder);
    int opened_too = run(&m, target, &weights, &sum);
    mx_log_set_sink(NULL, NULL);
    print_message("of %d damaged configurations %d opened, of %d damaged headers %d (%u)\n", ROUNDS, opened, ROUNDS,
                  opened_too, sum);
    assert_true(opened < ROUNDS / 2 && opened_too < ROUNDS / 2);

    mx_weights *w = NULL;
    assert_int_equal(mx_weights_open(m.folder, NULL, &w, NULL), MX_OK); /* right again */
    mx_weights_close(w);
    mx_bytes_free(&config);
    mx_bytes_free(&weights);
    maker_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests_name("damage", tests, NULL, NULL);
}
