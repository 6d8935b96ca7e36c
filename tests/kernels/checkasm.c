/* The kernels' test bench: every tier of this machine against references in double, bit for bit where the contract says
 * so, and (--bench) its speed. Each group of cases is a file: test_mx.c, test_matmul.c, test_int8.c, test_attention.c,
 * test_elementwise.c; the group's list of tests is at the end of its file. A new group is a file, a line in `groups`
 * and one in meson.build. */
#include "bench.h"
#include "support.h"

#include <fnmatch.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const test_group *const groups[] = {&mx_group, &matmul_group, &int8_group, &attention_group, &elementwise_group};

enum { GROUPS = sizeof groups / sizeof *groups };

static void usage(FILE *to) {
    fprintf(to,
            "usage: checkasm [OPTION]... [GROUP[:TEST]]...\n"
            "       checkasm --bench [OPTION]... [WORD]...\n"
            "Tests the kernels of every tier that this machine has; TEST may hold * and ?.\n\n"
            "  -t, --tier T    only this tier (and scalar code where a test needs it)\n"
            "  -s, --seed N    other random inputs; 0 is what the build's tests run\n"
            "      --longer    many more cases of each kind\n"
            "  -b, --bench     measures instead, what has all WORDs in its line, as in: --bench avx512 mxfp4 rows:1\n"
            "  -l, --list      the groups, their tests and the tiers here\n"
            "  -h, --help\n");
}

static void list(void) {
    const mx_kernels *tiers[MAX_TIERS];
    int count = tiers_here(tiers);
    printf("tiers:");
    for (int i = 0; i < count; i++) printf(" %s", tiers[i]->name);
    printf("\n");
    for (int g = 0; g < GROUPS; g++) {
        for (size_t i = 0; i < groups[g]->count; i++) printf("%s:%s\n", groups[g]->name, groups[g]->tests[i].name);
    }
}

static bool has_test(const test_group *group, const char *pattern) {
    for (size_t i = 0; i < group->count; i++) {
        if (!fnmatch(pattern, group->tests[i].name, 0)) return true;
    }
    return false;
}

/* `name` is GROUP or GROUP:TEST; NULL: every group. How many tests failed, or -1 when it names none. */
static int run(const char *name) {
    const char *test = name ? strchr(name, ':') : NULL;
    const size_t length = test ? (size_t)(test - name) : name ? strlen(name) : 0;
    int failed = 0;
    bool found = false;
    if (test) test++;
    cmocka_set_test_filter(test);
    for (int g = 0; g < GROUPS; g++) {
        const test_group *group = groups[g];
        if (name && (strlen(group->name) != length || strncmp(name, group->name, length) != 0)) continue;
        if (test && !has_test(group, test)) continue;
        failed += _cmocka_run_group_tests(group->name, group->tests, group->count, group->setup, NULL);
        found = true;
    }
    return found ? failed : -1;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"tier", required_argument, NULL, 't'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"longer", no_argument, NULL, 'L'},
                                            {"bench", no_argument, NULL, 'b'},
                                            {"list", no_argument, NULL, 'l'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int option, failed = 0;
    bool lists = false, benches = false;
    while ((option = getopt_long(argc, argv, "t:s:blh", options, NULL)) >= 0) {
        switch (option) {
        case 't':
            settings.tier = optarg;
            break;
        case 's':
            settings.seed = strtoull(optarg, NULL, 0);
            break;
        case 'L':
            settings.longer = true;
            break;
        case 'b':
            benches = true;
            break;
        case 'l':
            lists = true;
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    const mx_kernels *tiers[MAX_TIERS];
    if (tiers_here(tiers) == 0) {
        fprintf(stderr, "checkasm: no tier \"%s\" here; --list shows them\n", settings.tier);
        return 2;
    }
    if (lists) {
        list();
        return 0;
    }
    if (benches) return !bench_run(argv + optind, argc - optind);
    if (optind == argc) failed = run(NULL);
    for (int i = optind; i < argc; i++) {
        int of_this = run(argv[i]);
        if (of_this < 0) {
            fprintf(stderr, "checkasm: no group or test \"%s\"; --list shows them\n", argv[i]);
            return 2;
        }
        failed += of_this;
    }
    return failed != 0;
}
