#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/files.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/mxrun-files-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void assert_content(const char *path, const void *data, size_t size) {
    mx_bytes found = {0};
    assert_int_equal(mx_read_file(path, (size_t)1 << 30, &found, NULL), MX_OK);
    assert_int_equal(found.size, size);
    if (size) assert_memory_equal(found.data, data, size);
    mx_bytes_free(&found);
}

/* How many names there are in the folder. */
static int names(void) {
    char command[200];
    int count = -1;
    snprintf(command, sizeof command, "ls -A %s | wc -l", folder);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    assert_int_equal(fscanf(p, "%d", &count), 1);
    pclose(p);
    return count;
}

static void files_are_replaced_as_a_whole(void **state) {
    (void)state;
    enum { LARGE = 3 << 20 };
    char path[200], *large = malloc(LARGE);
    assert_non_null(large);
    memset(large, 7, LARGE);
    snprintf(path, sizeof path, "%s/file", folder);
    for (int durable = 0; durable < 2; durable++) {
        assert_true(mx_replace_file(path, large, LARGE, durable));
        assert_content(path, large, LARGE);
        assert_true(mx_replace_file(path, "two\0words", 9, durable));
        assert_content(path, "two\0words", 9);
        assert_true(mx_replace_file(path, NULL, 0, durable));
        assert_content(path, NULL, 0);
    }
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(names(), 1);
    free(large);
}

static void failures_change_nothing(void **state) {
    (void)state;
    char path[200];
    snprintf(path, sizeof path, "%s/none/file", folder);
    errno = 0;
    assert_false(mx_replace_file(path, "text", 4, true));
    assert_int_equal(errno, ENOENT);
    snprintf(path, sizeof path, "%s/full", folder);
    assert_int_equal(mkdir(path, 0700), 0); /* a folder is not replaced */
    assert_false(mx_replace_file(path, "text", 4, true));
    assert_int_equal(errno, EISDIR);
    assert_int_equal(names(), 1);
}

static void folders_above_are_made(void **state) {
    (void)state;
    char path[200], before[200];
    struct stat info;
    snprintf(path, sizeof path, "%s/a/b/c/file", folder);
    strcpy(before, path);
    for (int i = 0; i < 2; i++) { /* the second time they are there */
        mx_make_folders(path, 0700);
        assert_string_equal(path, before);
    }
    assert_true(mx_replace_file(path, "text", 4, false));
    assert_content(path, "text", 4);
    snprintf(path, sizeof path, "%s/a/b", folder);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    mx_make_folders((char[]){""}, 0700);
    mx_make_folders((char[]){"file"}, 0700);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(files_are_replaced_as_a_whole, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(failures_change_nothing, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(folders_above_are_made, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
