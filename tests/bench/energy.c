/* Energy counters, as Linux shows them, in a folder of made-up files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "bench/energy.h"

static char root[] = "/tmp/mxrun-energy-XXXXXX";

static void put(const char *zone, const char *file, const char *text) {
    char path[300];
    snprintf(path, sizeof path, "%s/sys/class/powercap/%s", root, zone);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/sys/class/powercap/%s/%s", root, zone, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void zone(const char *name, const char *kind, const char *energy) {
    put(name, "name", kind);
    put(name, "energy_uj", energy);
    put(name, "max_energy_range_uj", "1000000000\n");
}

static void packages_and_memory_count_once(void **state) {
    (void)state;
    mx_energy e;
    char path[300];
    assert_non_null(mkdtemp(root));
    assert_false(mx_energy_open(&e, root)); /* nothing there */
    static const char *const folders[] = {"sys", "sys/class", "sys/class/powercap"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    zone("intel-rapl:0", "package-0\n", "5000000\n");
    zone("intel-rapl:0:0", "core\n", "1\n");
    zone("intel-rapl:0:1", "dram\n", "999000000\n");
    zone("intel-rapl:1", "psys\n", "1\n");
    zone("intel-rapl-mmio:0", "package-0\n", "5000000\n");
    assert_true(mx_energy_open(&e, root));
    assert_int_equal(e.counters, 2);
    put("intel-rapl:0", "energy_uj", "8000000\n");  /* 3 J */
    put("intel-rapl:0:1", "energy_uj", "500000\n"); /* started over: 1.5 J */
    put("intel-rapl:0:0", "energy_uj", "90000000\n");
    put("intel-rapl:1", "energy_uj", "90000000\n");
    put("intel-rapl-mmio:0", "energy_uj", "90000000\n");
    assert_true(mx_energy_joules(&e) > 4.499 && mx_energy_joules(&e) < 4.501);
    snprintf(path, sizeof path, "rm -r %s", root);
    assert_int_equal(system(path), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(packages_and_memory_count_once)};
    return cmocka_run_group_tests_name("energy", tests, NULL, NULL);
}
