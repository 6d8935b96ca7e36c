#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "hub/hub.h"

/* Pulls NAME as on a file system that has neither symbolic nor hard links; prints the path for -m. */

int __wrap_symlink(const char *target, const char *path);
int __wrap_symlink(const char *target, const char *path) {
    (void)target;
    (void)path;
    errno = EPERM;
    return -1;
}

int __wrap_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to) {
    return __wrap_symlink(from, to);
}

int main(int argc, char **argv) {
    mx_error error = {0};
    mx_hub hub = {0};
    mx_models models = {0};
    mx_target target;
    mx_copy copy = {0};
    const mx_pull_options options = {0};
    if (argc != 2) return 2;
    mx_status status = mx_hub_open(&hub, &error);
    if (!status) status = mx_target_parse(&models, argv[1], &target, &error);
    if (!status) status = mx_pull(&hub, &target, &options, &copy, &error);
    if (status)
        fprintf(stderr, "%s\n", error.text);
    else
        printf("%s\n", copy.path);
    mx_copy_free(&copy);
    mx_models_free(&models);
    mx_hub_close(&hub);
    return status ? 1 : 0;
}
