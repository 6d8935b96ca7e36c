#include "made_up.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static mx_plan_machine machine(const char *tier, int cores, double free_gb, double total_gb, double gb_s) {
    mx_plan_machine m = {.processors = cores,
                         .allowed = cores,
                         .cores = cores,
                         .nodes = 1,
                         .memory_total = total_gb * 1e9,
                         .memory_free = free_gb * 1e9,
                         .huge_pages = "madvise",
                         .bandwidth = {gb_s * 1e9, gb_s * 1e9, gb_s * 1e9},
                         .gpu_note = "none"};
    mx_error error;
    snprintf(m.cpu, sizeof m.cpu, "made up");
    snprintf(m.tier, sizeof m.tier, "%s", tier);
    assert_int_equal(mx_precisions_parse(tier[3] == '5' ? "mixed" : "fp32", &m.precision, &error), MX_OK);
    return m;
}

mx_plan_machine made_up_laptop(void) {
    mx_plan_machine m = machine("avx2", 4, 9, 16, 40);
    m.peaks.of[MX_PEAK_FMA256] = 400e9;
    m.disk = 2e9;
    return m;
}

mx_plan_machine made_up_zen5(double gb_s) {
    mx_plan_machine m = machine("avx512bf16", 2, 24, 25, gb_s);
    m.peaks.of[MX_PEAK_FMA512] = 537e9;
    m.peaks.of[MX_PEAK_DPBF16] = 1008e9;
    return m;
}

mx_plan_machine made_up_server(double gb) {
    mx_plan_machine m = machine("avx512bf16", 16, gb * 0.95, gb, 200);
    m.peaks.of[MX_PEAK_FMA512] = 8 * 537e9;
    m.peaks.of[MX_PEAK_DPBF16] = 8 * 1008e9;
    m.disk = 5e9;
    return m;
}

void made_up_gpu(mx_plan_machine *m, const char *name, int major, int minor, double gb, double tb_s) {
    mx_plan_gpu *g = &m->gpu[m->gpus++];
    *g = (mx_plan_gpu){
        .memory = gb * 1e9, .memory_free = 0.98 * gb * 1e9, .major = major, .minor = minor, .bandwidth = tb_s * 1e12};
    snprintf(g->name, sizeof g->name, "%s", name);
}

mx_plan_model made_up_known(int index) {
    static mx_plan_model m;
    mx_error error;
    assert_int_equal(mx_plan_known(index, &m, &error), MX_OK);
    return m;
}
