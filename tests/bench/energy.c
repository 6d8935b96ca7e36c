/* Energy counters, as Linux shows them, in a folder of made-up files, and as NVML does, by a made-up library (nvml.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "bench/energy.h"
#include "bench/nvml.h"

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
}

/* 7 J, then from 9,000,000 to 2,000,000 uJ. */
static double joules_over_a_start(const char *range) {
    mx_energy e;
    put("intel-rapl:0:1", "name", "uncore\n");
    put("intel-rapl:0", "energy_uj", "2000000\n");
    put("intel-rapl:0", "max_energy_range_uj", range);
    assert_true(mx_energy_open(&e, root));
    assert_int_equal(e.counters, 1);
    put("intel-rapl:0", "energy_uj", "9000000\n");
    assert_true(fabs(mx_energy_joules(&e) - 7) < 1e-6);
    put("intel-rapl:0", "energy_uj", "2000000\n");
    return mx_energy_joules(&e) - 7;
}

static void counters_that_start_over_never_count_back(void **state) {
    (void)state;
    assert_true(fabs(joules_over_a_start("10000000\n") - 3) < 1e-6);
    assert_true(fabs(joules_over_a_start("unknown\n") - 2) < 1e-6); /* what is sure */
    assert_true(fabs(joules_over_a_start("8000000\n") - 2) < 1e-6); /* no range of a counter that showed more */
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

/* The made-up library takes what its devices show from the environment: "millijoules,..." with "-" for one that has no
 * counter; without it there is no driver. */
static const char *nvml_library;

static void devices_count_from_the_opening_on(void **state) {
    (void)state;
    mx_nvml n;
    setenv("FAKE_NVML", "5000,-,1000000000000", 1);
    assert_true(mx_nvml_open(&n, nvml_library));
    assert_int_equal(n.devices, 2);
    assert_true(mx_nvml_joules(&n, 0) == 0 && mx_nvml_joules(&n, 1) == 0);
    setenv("FAKE_NVML", "7500,-,1000000250000", 1);
    assert_true(mx_nvml_joules(&n, 0) == 2.5 && mx_nvml_joules(&n, 1) == 250);
    assert_true(mx_nvml_joules(&n, -1) == 0 && mx_nvml_joules(&n, 2) == 0);
    setenv("FAKE_NVML", "10,-,-", 1); /* the driver was loaded again; the device is gone */
    assert_true(mx_nvml_joules(&n, 0) == 0 && mx_nvml_joules(&n, 1) == 0);
    assert_null(getenv("FAKE_NVML_CLOSED"));
    mx_nvml_close(&n);
    assert_string_equal(getenv("FAKE_NVML_CLOSED"), "1"); /* as often as opened */
    mx_nvml_close(&n);
    assert_string_equal(getenv("FAKE_NVML_CLOSED"), "1");
}

static void without_devices_there_is_nothing_to_close(void **state) {
    (void)state;
    mx_nvml n;
    unsetenv("FAKE_NVML_CLOSED");
    setenv("FAKE_NVML", "-,-", 1);
    assert_false(mx_nvml_open(&n, nvml_library));
    assert_int_equal(n.devices, 0);
    assert_null(n.library);
    assert_string_equal(getenv("FAKE_NVML_CLOSED"), "1");
    unsetenv("FAKE_NVML_CLOSED");
    unsetenv("FAKE_NVML");
    assert_false(mx_nvml_open(&n, nvml_library));
    assert_null(getenv("FAKE_NVML_CLOSED")); /* it was never begun */
    assert_false(mx_nvml_open(&n, "/nowhere/libnvidia-ml.so.1"));
    assert_false(mx_nvml_open(&n, "libc.so.6")); /* no such functions */
    mx_nvml_close(&n);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    nvml_library = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packages_and_memory_count_once),
        cmocka_unit_test(counters_that_start_over_never_count_back),
        cmocka_unit_test(devices_count_from_the_opening_on),
        cmocka_unit_test(without_devices_there_is_nothing_to_close),
    };
    return cmocka_run_group_tests_name("energy", tests, NULL, NULL);
}
