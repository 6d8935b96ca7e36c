/* What plan sees of a machine: made-up files of the kernel, a made-up NVML, disks and caches of models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plan/machine.h"
#include "plan/model.h"

static char root[] = "/tmp/mxrun-plan-XXXXXX";
static const char *fake_gpus;

static int set_up(void **state) {
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

/* Makes the folders, too. */
static void put(const char *name, const char *text) {
    char path[400], command[500];
    snprintf(path, sizeof path, "%s%s", root, name);
    snprintf(command, sizeof command, "mkdir -p $(dirname '%s')", path);
    assert_int_equal(system(command), 0);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void cache(int index, const char *level, const char *type, const char *size) {
    char name[200];
    snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/level", index);
    put(name, level);
    snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/type", index);
    put(name, type);
    snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    put(name, size);
}

static void a_machine_without_files_is_unknown(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    mx_plan_look_at_processor(root, &m);
    assert_true(*m.cpu && !*m.features && !*m.huge_pages);
    assert_true(m.l1d == 0 && m.l2 == 0 && m.l3 == 0 && m.watts == 0 && m.memory_total == 0);
    assert_true(m.allowed >= 1 && m.nodes >= 1); /* these are asked of the system itself */
}

static void files_of_the_kernel_are_read(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    put("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) 6972P\n"
                         "flags\t\t: fpu avx2 fma f16c avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8\n\n"
                         "processor\t: 1\nmodel name\t: another\n");
    put("/proc/meminfo", "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   60000000 kB\n");
    put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    cache(0, "1\n", "Data\n", "48K\n");
    cache(1, "1\n", "Instruction\n", "64K\n");
    cache(2, "2\n", "Unified\n", "2048K\n");
    cache(3, "3\n", "Unified\n", "480M\n");
    put("/sys/class/powercap/intel-rapl:0/name", "package-0\n");
    put("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "500000000\n");
    put("/sys/class/powercap/intel-rapl:1/name", "package-1\n");
    put("/sys/class/powercap/intel-rapl:1/constraint_0_power_limit_uw", "500000000\n");
    put("/sys/class/powercap/intel-rapl:2/name", "psys\n");
    put("/sys/class/powercap/intel-rapl:2/constraint_0_power_limit_uw", "9000000000\n");
    mx_plan_look_at_processor(root, &m);
    assert_string_equal(m.cpu, "Intel(R) Xeon(R) 6972P");
    assert_string_equal(m.features, "AVX2 FMA F16C AVX-512 AVX-512-VNNI AVX-512-BF16 AMX-BF16 AMX-INT8");
    assert_string_equal(m.huge_pages, "madvise");
    assert_true(m.l1d == 48 * 1024 && m.l2 == 2048 * 1024 && m.l3 == 480.0 * 1024 * 1024);
    assert_true(m.watts == 1000);
    assert_true(m.memory_total == 65536000.0 * 1024 && m.memory_free == 60000000.0 * 1024);
    /* A container with 8 GB. */
    put("/proc/self/cgroup", "0::/box\n");
    put("/sys/fs/cgroup/box/memory.max", "8000000000\n");
    put("/sys/fs/cgroup/box/memory.current", "3000000000\n");
    put("/sys/fs/cgroup/box/memory.stat", "inactive_file 1000000000\nactive_file 0\n");
    mx_plan_look_at_processor(root, &m);
    assert_true(m.memory_total == 8e9 && m.memory_free == 6e9);
}

/* ---- GPUs -------------------------------------------------------------------------------------------------------- */

static void gpus_tell_what_they_are(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    setenv("FAKE_GPUS", "2", 1);
    unsetenv("FAKE_GPUS_CLOSED");
    mx_plan_look_at_gpus(fake_gpus, &m);
    assert_int_equal(m.gpus, 2);
    assert_string_equal(getenv("FAKE_GPUS_CLOSED"), "1");
    assert_string_equal(m.driver, "570.86.10");
    assert_string_equal(m.gpu[0].name, "NVIDIA H100 80GB HBM3");
    assert_true(m.gpu[0].memory == 85520809984 && m.gpu[0].memory_free == 84000000000);
    assert_true(m.gpu[0].major == 9 && m.gpu[0].minor == 0 && m.gpu[0].watts == 700);
    assert_true(fabs(m.gpu[0].bandwidth / 3.35e12 - 1) < 0.001);
    const mx_plan_gpu *odd = &m.gpu[1];
    assert_true(odd->memory == 0 && odd->memory_free == 0 && odd->major == 0 && odd->watts == 0 && odd->bandwidth == 0);
}

static void without_gpus_the_reason_is_said(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    mx_plan_look_at_gpus("/nowhere/libnvidia-ml.so.1", &m);
    assert_true(m.gpus == 0 && strstr(m.gpu_note, "is not here"));
    mx_plan_look_at_gpus("libc.so.6", &m);
    assert_true(m.gpus == 0 && strstr(m.gpu_note, "lacks functions"));
    unsetenv("FAKE_GPUS");
    mx_plan_look_at_gpus(fake_gpus, &m);
    assert_true(m.gpus == 0 && strstr(m.gpu_note, "is not running"));
    setenv("FAKE_GPUS", "0", 1);
    mx_plan_look_at_gpus(fake_gpus, &m);
    assert_true(m.gpus == 0 && strstr(m.gpu_note, "shows none"));
}

/* ---- disk -------------------------------------------------------------------------------------------------------- */

static void a_large_file_is_read_and_nothing_else_is_guessed(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    char path[300];
    mx_plan_look_at_disk(NULL, root, &m);
    assert_true(m.disk == 0 && strstr(m.disk_note, "no file of 64 MB") && m.disk_free > 0);
    assert_string_equal(m.folder, root);
    put("/models--openai--gpt-oss-20b/blobs/abc", "");
    snprintf(path, sizeof path, "%s/models--openai--gpt-oss-20b/blobs/abc", root);
    assert_int_equal(truncate(path, 100000000), 0); /* a hole, which takes no disk */
    mx_plan_look_at_disk(NULL, root, &m);           /* where the file system has direct reads */
    assert_true(m.disk > 0 ? strstr(m.disk_note, "of abc") != NULL : strstr(m.disk_note, "not measured") != NULL);
    mx_plan_look_at_disk(NULL, "/nowhere/at/all", &m);
    assert_true(m.disk == 0 && m.disk_free > 0); /* of / */
    mx_plan_look_at_disk(NULL, NULL, &m);
    assert_true(m.disk == 0 && m.disk_free == 0 && !*m.folder);
}

/* A file that cannot be opened is not laid at the file system's door. */
static void what_refuses_a_file_is_said(void **state) {
    (void)state;
    mx_plan_machine m = {0};
    char path[300];
    struct rlimit before, none;
    put("/large.gguf", "");
    snprintf(path, sizeof path, "%s/large.gguf", root);
    assert_int_equal(truncate(path, 100000000), 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){0, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    mx_plan_look_at_disk(path, NULL, &m);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_string_equal(m.disk_note, "not measured: large.gguf: Too many open files");
    assert_int_equal(unlink(path), 0);
}

/* ---- models in files --------------------------------------------------------------------------------------------- */

static const char *checkpoint(void) {
    static char path[4200];
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    return path;
}

static bool named(const mx_plan_model *m, const char *name, const char *key) {
    char got_name[MX_PLAN_FORMATS], got_key[MX_PLAN_FORMATS];
    mx_plan_formats_name(got_name, &m->formats);
    mx_plan_formats_key(got_key, &m->formats);
    return !strcmp(got_name, name) && !strcmp(got_key, key);
}

/* The stories, their header changed: query matrices F16, which takes as many bytes. */
static void formats_are_called_what_they_are(void **state) {
    (void)state;
    static mx_plan_model m;
    mx_error error;
    char command[9000], path[300];
    snprintf(command, sizeof command,
             "mkdir %s/f16 && cp %s/config.json %s/model.safetensors %s/f16/ && LC_ALL=C sed -i "
             "'s/\\(q_proj.weight\":{\"dtype\":\\)\"BF16\"/\\1\"F16\" /g' %s/f16/model.safetensors",
             root, checkpoint(), checkpoint(), root, root);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof path, "%s/f16", root);
    assert_int_equal(mx_plan_model_read(path, MX_EXPERTS_KEPT, &m, &error), MX_OK);
    assert_true(named(&m, "MXFP4 experts, F16", "mxfp4_f16"));
    m.formats = (mx_plan_formats){MX_F16, MX_F16, MX_F32};
    assert_true(named(&m, "F16", "f16"));
    m.formats = mx_plan_formats_of(MX_PLAN_MXFP4_Q8_0);
    assert_true(named(&m, "MXFP4 experts, Q8_0", "mxfp4_q8_0"));
    snprintf(command, sizeof command, "rm -r %s/f16", root);
    assert_int_equal(system(command), 0);
}

static void a_folder_is_weighed_and_its_layout_found(void **state) {
    (void)state;
    static mx_plan_model m;
    mx_error error;
    char path[4300];
    assert_int_equal(mx_plan_model_read(checkpoint(), MX_EXPERTS_KEPT, &m, &error), MX_OK);
    assert_true(m.here && named(&m, "MXFP4 experts, BF16", "mxfp4_bf16") && m.formats.router == MX_BF16);
    assert_true(m.weights > 10.2e6 && m.weights < 10.3e6);
    const mx_plan_bytes computed = mx_plan_bytes_of(&m.config, MX_PLAN_MXFP4_BF16);
    assert_true(m.bytes.experts == computed.experts && m.bytes.expert_biases == computed.expert_biases);
    assert_true(m.bytes.attention == computed.attention && m.bytes.router == computed.router);
    assert_true(m.bytes.norms == computed.norms && m.bytes.embedding == computed.embedding);
    assert_true(m.bytes.lm_head == computed.lm_head && m.weights == mx_plan_bytes_total(&computed));
    mx_plan_largest_file(checkpoint(), path, sizeof path);
    assert_non_null(strstr(path, "/model.safetensors"));
    mx_plan_largest_file("/nowhere", path, sizeof path);
    assert_string_equal(path, "");
    /* Nothing there, as other commands say it; a part of a GGUF; a configuration without weights. */
    assert_true(mx_plan_model_read(root, MX_EXPERTS_KEPT, &m, &error) != MX_OK);
    assert_non_null(strstr(error.text, "no .safetensors file in this folder"));
    put("/x-00002-of-00002.gguf", "GGUF");
    snprintf(path, sizeof path, "%s/x-00002-of-00002.gguf", root);
    mx_checkpoint *ck;
    mx_error same;
    assert_true(mx_plan_model_read(path, MX_EXPERTS_KEPT, &m, &error) != MX_OK);
    assert_true(mx_checkpoint_open(path, &ck, &same) != MX_OK);
    assert_string_equal(error.text, same.text);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "cp %s/config.json %s/", checkpoint(), root);
    assert_int_equal(system(path), 0);
    assert_true(mx_plan_model_read(root, MX_EXPERTS_KEPT, &m, &error) != MX_OK);
}

static void a_gguf_is_weighed_as_it_will_lie_in_memory(void **state) {
    (void)state;
    static mx_plan_model m, hf;
    mx_error error;
    char path[4300];
    snprintf(path, sizeof path, "%s/checkpoints/stories.gguf", getenv("MXRUN_SHARED"));
    if (access(path, R_OK)) {
        print_message("skipped: %s is not here\n", path);
        skip();
    }
    assert_int_equal(mx_plan_model_read(checkpoint(), MX_EXPERTS_KEPT, &hf, &error), MX_OK);
    assert_int_equal(mx_plan_model_read(path, MX_EXPERTS_KEPT, &m, &error), MX_OK);
    assert_true(m.bytes.experts == hf.bytes.experts); /* MXFP4 in both */
    assert_true(m.weights == mx_plan_bytes_total(&m.bytes));
    assert_true(m.formats.experts == MX_MXFP4 && m.formats.dense != MX_MXFP4);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    fake_gpus = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_without_files_is_unknown),
        cmocka_unit_test(files_of_the_kernel_are_read),
        cmocka_unit_test(gpus_tell_what_they_are),
        cmocka_unit_test(without_gpus_the_reason_is_said),
        cmocka_unit_test(a_large_file_is_read_and_nothing_else_is_guessed),
        cmocka_unit_test(what_refuses_a_file_is_said),
        cmocka_unit_test(formats_are_called_what_they_are),
        cmocka_unit_test(a_folder_is_weighed_and_its_layout_found),
        cmocka_unit_test(a_gguf_is_weighed_as_it_will_lie_in_memory),
    };
    return cmocka_run_group_tests_name("plan, machine", tests, set_up, tear_down);
}
