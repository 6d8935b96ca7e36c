/* Files of distributions: what is written comes back, and nothing else is taken for one. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "evaluate/base_file.h"

enum { TOKENS = 40, TOP = 5, VOCAB = 100, RECORD = 24 + 8 * TOP };

static char folder[] = "/tmp/mxrun-base-XXXXXX", path[100], other[100];
static mx_error error;
static uint8_t records[TOKENS * RECORD], back[TOKENS * RECORD];
static const mx_base_header header = {.model = "a \"model\"",
                                      .identity = "abc",
                                      .protocol = "strided, window 20, stride 10",
                                      .tokenizer = 0x0123456789abcdef,
                                      .text = 0xfedcba9876543210,
                                      .tokens = TOKENS,
                                      .vocab = VOCAB,
                                      .top = TOP};

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/base", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    for (int t = 0; t < TOKENS; t++) {
        uint8_t *record = records + t * RECORD;
        const mx_distribution d = {.log_sum = t + 0.1, .rest = 0.5 / (t + 1), .best = t};
        mx_base_record_put(record, &d, (float)-t);
        for (int i = 0; i < TOP; i++) mx_base_record_kept(record)[i] = (mx_kept_logit){7 * i + t % 7, (float)i / 3};
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static int files_in_folder(void) {
    char command[200];
    int count = -1;
    snprintf(command, sizeof command, "ls -A %s | wc -l", folder);
    FILE *f = popen(command, "r");
    if (fscanf(f, "%d", &count) != 1) count = -1;
    pclose(f);
    return count;
}

static void write_all(void) {
    mx_base_writer *w = NULL;
    if (mx_base_writer_open(path, &header, &w, &error)) fail_msg("%s", error.text);
    for (int t = 0; t < TOKENS; t += 8) assert_int_equal(mx_base_writer_add(w, records + t * RECORD, 8, &error), MX_OK);
    if (mx_base_writer_finish(w, true, &error)) fail_msg("%s", error.text);
    mx_base_writer_close(w);
}

static mx_status read_all(const char *from) {
    mx_base_reader *r = NULL;
    mx_status status = mx_base_reader_open(from, &r, &error);
    for (int t = 0; t < TOKENS && !status; t += 10) status = mx_base_reader_next(r, back + t * RECORD, 10, &error);
    if (!status) status = mx_base_reader_finish(r, &error);
    mx_base_reader_close(r);
    return status;
}

static void what_is_written_is_read(void **state) {
    (void)state;
    write_all();
    assert_int_equal(files_in_folder(), 1);
    mx_base_reader *r;
    if (mx_base_reader_open(path, &r, &error)) fail_msg("%s", error.text);
    const mx_base_header *h = mx_base_reader_header(r);
    assert_string_equal(h->model, header.model);
    assert_string_equal(h->identity, header.identity);
    assert_string_equal(h->protocol, header.protocol);
    assert_true(h->tokenizer == header.tokenizer && h->text == header.text && h->tokens == TOKENS);
    assert_true(h->vocab == VOCAB && h->top == TOP);
    mx_base_reader_close(r);
    if (read_all(path)) fail_msg("%s", error.text);
    assert_memory_equal(back, records, sizeof records);
    mx_base_record record;
    assert_true(mx_base_record_get(back + 3 * RECORD, VOCAB, TOP, &record));
    assert_true(record.distribution.log_sum == 3.1 && record.distribution.rest == 0.125);
    assert_true(record.distribution.best == 3 && record.logit == -3);
    assert_true(record.kept[4].token == 31 && record.kept[4].logit == 4 / 3.0f);
    write_all(); /* replaces it */
    assert_int_equal(read_all(path), MX_OK);
}

/* As docs/base_distributions.md says, byte for byte. */
static void the_format(void **state) {
    (void)state;
    mx_bytes b = {0};
    write_all();
    assert_int_equal(mx_read_file(path, 1 << 20, &b, &error), MX_OK);
    assert_memory_equal(b.data, "mxrbase\n", 8);
    const uint64_t size = mx_load_u64(b.data + 8);
    assert_int_equal(size % 8, 0);
    static const char json[] =
        "{\"version\":1,\"model\":\"a \\\"model\\\"\",\"identity\":\"abc\",\"protocol\":\"strided, window 20, stride "
        "10\",\"vocab\":100,\"tokenizer\":\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":40,\"top\":5}";
    assert_memory_equal(b.data + 16, json, sizeof json - 1);
    assert_int_equal(b.size, 16 + size + sizeof records + 8);
    assert_memory_equal(b.data + 16 + size, records, sizeof records);
    mx_bytes_free(&b);
}

static void write_other(const char *data, size_t size) {
    FILE *f = fopen(other, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void not_all_of_it(void **state) {
    (void)state;
    mx_bytes b = {0};
    write_all();
    assert_int_equal(mx_read_file(path, 1 << 20, &b, &error), MX_OK);
    for (size_t size = 0; size < b.size; size += size < 300 ? 1 : 97) {
        write_other(b.data, size);
        if (read_all(other) != MX_INVALID_FILE) fail_msg("%zu bytes were taken", size);
        assert_non_null(strstr(error.text, other));
        if (size > 400) assert_non_null(strstr(error.text, "truncated"));
    }
    assert_true(mx_bytes_add(&b, "x", 1));
    write_other(b.data, b.size);
    assert_int_equal(read_all(other), MX_INVALID_FILE);
    assert_non_null(strstr(error.text, "too long"));
    mx_bytes_free(&b);
}

/* Any byte of it that is another one is found; what the header says may be another header, but then of another size. */
static void damage(void **state) {
    (void)state;
    mx_bytes b = {0};
    write_all();
    assert_int_equal(mx_read_file(path, 1 << 20, &b, &error), MX_OK);
    const size_t records_at = b.size - 8 - sizeof records;
    for (size_t at = 0; at < b.size; at += at < records_at ? 1 : 31) {
        b.data[at] ^= 0x11;
        write_other(b.data, b.size);
        const mx_status status = read_all(other);
        if (at < 16 || at >= records_at) assert_int_equal(status, MX_INVALID_FILE);
        b.data[at] ^= 0x11;
    }
    mx_bytes_free(&b);
}

static void headers_that_are_none(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "[]",
        "{\"version\":2}",
        "{\"version\":1}",
        "{\"version\":1,\"model\":\"\",\"identity\":\"\",\"protocol\":\"\",\"vocab\":100,\"tokenizer\":"
        "\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":9223372036854775807,\"top\":5}",
        "{\"version\":1,\"model\":\"\",\"identity\":\"\",\"protocol\":\"\",\"vocab\":100,\"tokenizer\":"
        "\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":0,\"top\":5}",
        "{\"version\":1,\"model\":\"\",\"identity\":\"\",\"protocol\":\"\",\"vocab\":100,\"tokenizer\":"
        "\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":40,\"top\":101}",
        "{\"version\":1,\"model\":\"\",\"identity\":\"\",\"protocol\":\"\",\"vocab\":-1,\"tokenizer\":"
        "\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":40,\"top\":5}",
        "{\"version\":1,\"model\":\"\",\"identity\":\"\",\"protocol\":\"\",\"vocab\":100,\"tokenizer\":"
        "\"0123456789abcdex\",\"text\":\"fedcba9876543210\",\"tokens\":40,\"top\":5}",
        "{\"version\":1,\"model\":3,\"identity\":\"\",\"protocol\":\"\",\"vocab\":100,\"tokenizer\":"
        "\"0123456789abcdef\",\"text\":\"fedcba9876543210\",\"tokens\":40,\"top\":5}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_bytes b = {0};
        const uint64_t size = strlen(wrong[i]);
        assert_true(mx_bytes_add(&b, "mxrbase\n", 8) && mx_bytes_add(&b, &size, 8) &&
                    mx_bytes_add(&b, wrong[i], size) && mx_bytes_add(&b, records, sizeof records) &&
                    mx_bytes_add(&b, records, 8));
        write_other(b.data, b.size);
        if (read_all(other) != MX_INVALID_FILE) fail_msg("%s", wrong[i]);
        if (i == 1) assert_non_null(strstr(error.text, "version 2"));
        mx_bytes_free(&b);
    }
}

static void other_kinds_of_files(void **state) {
    (void)state;
    mx_base_writer *w = NULL;
    write_other("{\"a\": 1}, and more of it", 24);
    assert_int_equal(read_all(other), MX_INVALID_FILE);
    assert_non_null(strstr(error.text, "holds no distributions"));
    assert_int_equal(read_all(folder), MX_INVALID_FILE);
    assert_int_equal(read_all("/dev/zero"), MX_INVALID_FILE);
    unlink(other);
    assert_int_equal(read_all(other), MX_IO);
    assert_int_equal(mkfifo(other, 0600), 0);
    assert_int_equal(read_all(other), MX_INVALID_FILE); /* and nobody is waited for */
    assert_int_equal(mx_base_writer_open(other, &header, &w, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_base_writer_open(folder, &header, &w, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_base_writer_open("/dev/full", &header, &w, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_base_writer_open("/nowhere/at/all", &header, &w, &error), MX_IO);
    assert_int_equal(unlink(other), 0);
}

static void what_is_not_finished_leaves_nothing(void **state) {
    (void)state;
    unlink(path);
    unlink(other);
    for (int added = 0; added <= TOKENS; added += TOKENS / 2) {
        mx_base_writer *w = NULL;
        assert_int_equal(mx_base_writer_open(path, &header, &w, &error), MX_OK);
        assert_int_equal(files_in_folder(), 1);
        assert_int_equal(access(path, F_OK), -1);
        assert_int_equal(mx_base_writer_add(w, records, added, &error), MX_OK);
        if (added < TOKENS) assert_int_equal(mx_base_writer_finish(w, true, &error), MX_INVALID_STATE);
        mx_base_writer_close(w);
        assert_int_equal(files_in_folder(), 0);
    }
    mx_base_writer *w = NULL;
    assert_int_equal(mx_base_writer_open(path, &header, &w, &error), MX_OK);
    assert_int_equal(mx_base_writer_add(w, records, TOKENS, &error), MX_OK);
    assert_int_equal(mx_base_writer_add(w, records, 1, &error), MX_INVALID_STATE);
    mx_base_writer_close(w);
}

/* A limit on the size of files is as a full disk. The old file stays. */
static void a_full_disk(void **state) {
    (void)state;
    struct rlimit old;
    write_all();
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    for (rlim_t most = 0; most < 2800; most += 100) {
        mx_base_writer *w = NULL;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){most, old.rlim_max}), 0);
        mx_status status = mx_base_writer_open(path, &header, &w, &error);
        for (int t = 0; t < TOKENS && !status; t++) status = mx_base_writer_add(w, records + t * RECORD, 1, &error);
        if (!status) status = mx_base_writer_finish(w, true, &error);
        mx_base_writer_close(w);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(status, MX_NO_SPACE);
        assert_non_null(strstr(error.text, path));
        assert_int_equal(files_in_folder(), 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(read_all(path), MX_OK);
}

static void records_that_are_none(void **state) {
    (void)state;
    static _Alignas(8) uint8_t one[RECORD];
    static const struct {
        int at, size;
        double f64;
        float f32;
        int32_t i32;
    } wrong[] = {{.at = 0, .size = 8, .f64 = NAN},
                 {.at = 0, .size = 8, .f64 = INFINITY},
                 {.at = 8, .size = 8, .f64 = -1},
                 {.at = 8, .size = 8, .f64 = 1.5},
                 {.at = 8, .size = 8, .f64 = NAN},
                 {.at = 16, .size = 4, .f32 = NAN},
                 {.at = 20, .i32 = -1},
                 {.at = 20, .i32 = VOCAB},
                 {.at = 24, .i32 = -1},
                 {.at = 24 + 32, .i32 = VOCAB},
                 {.at = 24 + 8, .i32 = 0},
                 {.at = 24 + 32, .i32 = 0},
                 {.at = 28, .size = 4, .f32 = NAN}};
    mx_base_record out;
    memcpy(one, records, RECORD);
    assert_true(mx_base_record_get(one, VOCAB, TOP, &out));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(one, records, RECORD);
        if (wrong[i].size == 8)
            memcpy(one + wrong[i].at, &wrong[i].f64, 8);
        else
            memcpy(one + wrong[i].at, wrong[i].size ? (const void *)&wrong[i].f32 : (const void *)&wrong[i].i32, 4);
        if (mx_base_record_get(one, VOCAB, TOP, &out)) fail_msg("case %zu was taken", i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(the_format),
        cmocka_unit_test(not_all_of_it),
        cmocka_unit_test(damage),
        cmocka_unit_test(headers_that_are_none),
        cmocka_unit_test(other_kinds_of_files),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(what_is_not_finished_leaves_nothing),
        cmocka_unit_test(records_that_are_none),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
