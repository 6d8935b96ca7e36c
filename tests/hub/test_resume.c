/* What a state file claims after a kill, after a power failure, and when it is damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hub/resume.h"

/* Which start of the machine this is. */
static const char *boot = "first\n";
mx_status __real_mx_read_file(const char *path, size_t limit, mx_bytes *out, mx_error *error);
mx_status __wrap_mx_read_file(const char *path, size_t limit, mx_bytes *out, mx_error *error);
mx_status __wrap_mx_read_file(const char *path, size_t limit, mx_bytes *out, mx_error *error) {
    if (strcmp(path, "/proc/sys/kernel/random/boot_id") != 0) return __real_mx_read_file(path, limit, out, error);
    return boot && mx_bytes_add_string(out, boot) ? MX_OK : MX_IO;
}

static char path[64];

static int make_folder(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-resume-XXXXXX";
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof path, "%s/state", folder);
    boot = "first\n";
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    *strrchr(path, '/') = 0;
    return rmdir(path);
}

/* A file of 35 bytes in pieces of 10, of which 7 of piece 0 are safe, all 10 of it and 5 of the last were written. */
static void write_example(void) {
    mx_pieces p;
    mx_resume r = {.fd = -1};
    const int64_t safe[] = {7, 0, 0, 0}, has[] = {10, 0, 0, 5};
    assert_true(mx_pieces_make(&p, 35, 10));
    assert_int_equal(p.count, 4);
    assert_int_equal(mx_resume_write(&r, path, &p, "abc", "", NULL), MX_OK);
    assert_int_equal(mx_resume_tell(&r, safe, 4, true, NULL), MX_OK);
    assert_int_equal(mx_resume_tell(&r, has, 4, false, NULL), MX_OK);
    mx_resume_close(&r, false);
    mx_pieces_free(&p);
}

static void expect(int64_t first, int64_t last) {
    mx_pieces p;
    int64_t *safe;
    char etag[MX_ETAG_TEXT], source[MX_ETAG_TEXT];
    assert_true(mx_resume_read(path, &p, &safe, etag, source));
    assert_string_equal(etag, "abc");
    assert_string_equal(source, "");
    assert_int_equal(p.size, 35);
    assert_int_equal(mx_piece_have(&p, 0), first);
    assert_int_equal(mx_piece_have(&p, 3), last);
    assert_int_equal(mx_pieces_sum(&p), first + last);
    assert_int_equal(mx_pieces_prefix(&p, 0), first);
    assert_int_equal(safe[0], 7);
    assert_int_equal(safe[3], 0);
    mx_pieces_free(&p);
    free(safe);
}

static void a_kill_loses_nothing(void **state) {
    (void)state;
    write_example();
    expect(10, 5);
}

static void a_power_failure_loses_what_was_not_safe(void **state) {
    (void)state;
    write_example();
    boot = "second\n";
    expect(7, 0);
    boot = NULL;
    expect(7, 0);
}

/* A state file that is written anew says the same as the old one. */
static void written_anew(void **state) {
    (void)state;
    write_example();
    mx_pieces p;
    mx_resume r = {.fd = -1};
    char etag[MX_ETAG_TEXT], source[MX_ETAG_TEXT];
    for (int i = 0; i < 2; i++) {
        assert_true(mx_resume_read(path, &p, &r.safe, etag, source));
        assert_int_equal(mx_resume_write(&r, path, &p, etag, source, NULL), MX_OK);
        mx_resume_close(&r, false);
        mx_pieces_free(&p);
        expect(i ? 7 : 10, i ? 0 : 5);
        boot = "second\n";
    }
}

/* Cut anywhere, it claims no more than before; any other byte changed, no more either. */
static void damage(void **state) {
    (void)state;
    write_example();
    mx_bytes text = {0};
    assert_int_equal(mx_read_file(path, 10000, &text, NULL), MX_OK);
    for (size_t i = 0; i < 2 * text.size; i++) {
        const bool cut = i < text.size;
        const size_t at = i % text.size;
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        if (!cut) text.data[at] ^= 4;
        fwrite(text.data, 1, cut ? at : text.size, file);
        if (!cut) text.data[at] ^= 4;
        fclose(file);
        mx_pieces p;
        int64_t *safe;
        char etag[MX_ETAG_TEXT], source[MX_ETAG_TEXT];
        if (!mx_resume_read(path, &p, &safe, etag, source)) continue;
        assert_int_equal(p.size, 35);
        assert_string_equal(etag, "abc");
        assert_true(mx_piece_have(&p, 0) <= 10 && mx_piece_have(&p, 3) <= 5 && mx_pieces_sum(&p) <= 15);
        mx_pieces_free(&p);
        free(safe);
    }
    mx_bytes_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_kill_loses_nothing, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_power_failure_loses_what_was_not_safe, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(written_anew, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(damage, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
