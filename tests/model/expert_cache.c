/* Rounded experts that are kept: taken again where they are right, made anew where they are not, never in the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "checkpoint_maker.h"
#include "model/model.h"
#include "model/quantize/quantize.h"

enum { EXPERTS = 2, IN = 64, OUT = 64 };

static uint16_t numbers[EXPERTS][OUT][IN]; /* BF16, layer 0's gate_up_proj */

/* A folder with 16-bit experts; files that hold rounded ones go to m->folder, or to cache/ in it. */
static void write_folder(maker *m) {
    uint32_t state = 7;
    maker_open(m);
    for (int layer = 0; layer < 2; layer++)
        for (int part = 0; part < 2; part++) {
            char name[100];
            const char *which = part ? "down_proj" : "gate_up_proj";
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_scales", layer, which);
            maker_find(m, name)->absent = true;
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_blocks", layer, which);
            maker_tensor *t = maker_find(m, name);
            maker_retype(t, "BF16", 3, (int64_t[]){EXPERTS, part ? 32 : IN, OUT});
            snprintf(t->name, sizeof t->name, "model.layers.%d.mlp.experts.%s", layer, which);
            for (int e = 0; e < EXPERTS && !layer && !part; e++)
                for (int o = 0; o < OUT; o++)
                    for (int i = 0; i < IN; i++) {
                        state = state * 1664525 + 1013904223;
                        numbers[e][o][i] = (uint16_t)((state >> 16 & 0x8000) | (0x3C00 + (state >> 8 & 0x1FF)));
                        memcpy(t->data + 2 * ((e * IN + i) * OUT + o), &numbers[e][o][i], 2);
                    }
        }
    maker_write(m);
    char cache[600];
    snprintf(cache, sizeof cache, "%s/cache", m->folder);
    setenv("XDG_CACHE_HOME", cache, 1);
}

static char said[8000];

static void listen(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    const size_t used = strlen(said);
    snprintf(said + used, sizeof said - used, "%s\n", line);
}

/* What progress was told: parts, and of the last one what there is and what was done. */
static struct {
    int parts;
    uint64_t done, total;
} told;

static void tell(void *user, uint64_t done, uint64_t total) {
    (void)user;
    told.parts += total != told.total || done < told.done;
    told.done = done;
    told.total = total;
}

static mx_weights *load(const maker *m, mx_rounding rounding, bool keep, mx_load_way way) {
    const mx_load_options options = {
        .way = way, .threads = 1, .quantize_experts = rounding, .keep_rounded = keep, .progress = tell};
    memset(&told, 0, sizeof told);
    mx_error error;
    mx_weights *w;
    *said = 0;
    mx_log_set_sink(listen, NULL);
    if (mx_weights_load(m->folder, &options, NULL, &w, &error)) fail_msg("%s", error.text);
    mx_log_set_sink(NULL, NULL);
    return w;
}

static bool is_said(const char *text) {
    return strstr(said, text) != NULL;
}

static const mx_tensor *blocks_of(const mx_weights *w, const char *end) {
    char name[100];
    snprintf(name, sizeof name, "model.layers.0.mlp.experts.gate_up_proj_%s", end);
    const mx_tensor *t = mx_checkpoint_find(w->checkpoint, name);
    assert_non_null(t);
    assert_null(t->recipe);
    return t;
}

static void read_numbers(void *user, int64_t first, int64_t count, float *out) {
    const uint16_t *x = *(const uint16_t(*)[OUT * IN]) user;
    for (int64_t i = 0; i < count * IN; i++) out[i] = mx_bf16_to_f32(x[first * IN + i]);
}

/* The bits of mx_quantize_matrix. */
static void check(const mx_weights *w, const char *recipe) {
    for (int e = 0; e < EXPERTS; e++) {
        uint8_t data[OUT * IN / 2], scales[OUT * IN / 32];
        mx_quantize_job job = {.name = "expert",
                               .rows = OUT,
                               .cols = IN,
                               .read = read_numbers,
                               .user = numbers[e],
                               .data = data,
                               .scales = scales};
        mx_quantize_report report;
        assert_int_equal(mx_form_parse("mxfp4", &job.form, NULL), MX_OK);
        assert_int_equal(mx_quantize_recipe_parse(recipe, &job.recipe, NULL), MX_OK);
        assert_int_equal(mx_quantize_matrix(&job, NULL, &report, NULL), MX_OK);
        assert_memory_equal(blocks_of(w, "blocks")->data + (size_t)e * sizeof data, data, sizeof data);
        assert_memory_equal(blocks_of(w, "scales")->data + (size_t)e * sizeof scales, scales, sizeof scales);
    }
}

static void path_of(const maker *m, const char *rule, char out[700]) {
    snprintf(out, 700, "%s/.mxrun-experts-mxfp4-%s", m->folder, rule);
}

static int files_in(const char *folder, const char *beginning) {
    DIR *d = opendir(folder);
    int count = 0;
    for (const struct dirent *e; d && (e = readdir(d));) count += !strncmp(e->d_name, beginning, strlen(beginning));
    if (d) closedir(d);
    return count;
}

static void end(maker *m, const char *rule) {
    char path[700];
    path_of(m, rule, path);
    unlink(path);
    maker_close(m);
    unsetenv("XDG_CACHE_HOME");
}

static void they_are_taken_again(void **unused) {
    (void)unused;
    static const char *const rules[] = {"ocp", "overflow", "search"};
    for (int rule = 0; rule < 3; rule++) {
        maker m;
        write_folder(&m);
        const mx_rounding rounding = (mx_rounding)(MX_ROUND_OCP + rule);
        mx_weights *w = load(&m, rounding, false, MX_LOAD_MAP);
        check(w, rules[rule]);
        mx_weights_close(w);
        assert_int_equal(files_in(m.folder, ".mxrun"), 0);
        w = load(&m, rounding, true, MX_LOAD_MAP);
        assert_true(is_said("4 expert tensors are rounded from BF16 to MXFP4 (") && is_said(rules[rule]) &&
                    is_said("kept in"));
        check(w, rules[rule]);
        mx_weights_close(w);
        assert_int_equal(files_in(m.folder, ".mxrun"), 1); /* nothing else is left of writing it */
        for (mx_load_way way = MX_LOAD_MAP; way <= MX_LOAD_LAZY; way++) {
            w = load(&m, rounding, true, way);
            assert_true(is_said("taken from"));
            assert_true(mx_checkpoint_made(w->checkpoint) == 0);
            check(w, rules[rule]);
            mx_weights_close(w);
        }
        w = load(&m, rounding, false, MX_LOAD_MAP);
        assert_false(is_said("taken from"));
        mx_weights_close(w);
        end(&m, rules[rule]);
    }
}

static void change_byte(const char *path, long at) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    const int byte = fgetc(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    fputc(byte ^ 1, f);
    fclose(f);
}

/* Damaged, cut off, no such file at all, another model's: made anew, and the next start takes it. */
static void what_is_wrong_is_made_anew(void **unused) {
    (void)unused;
    for (int damage = 0; damage < 6; damage++) {
        maker m;
        char path[700], model[700];
        struct stat info;
        write_folder(&m);
        path_of(&m, "ocp", path);
        mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
        assert_int_equal(stat(path, &info), 0);
        if (damage == 0) change_byte(path, -1);
        if (damage == 1) change_byte(path, 9);
        if (damage == 2) assert_int_equal(truncate(path, info.st_size - 1), 0);
        if (damage == 3) assert_int_equal(truncate(path, 0), 0);
        if (damage == 4) { /* the model is written again, a second later */
            snprintf(model, sizeof model, "%s/model.safetensors", m.folder);
            assert_int_equal(stat(model, &info), 0);
            info.st_mtim.tv_sec++;
            assert_int_equal(utimensat(AT_FDCWD, model, (struct timespec[]){info.st_mtim, info.st_mtim}, 0), 0);
        }
        if (damage == 5) { /* of another rule */
            char other[700];
            path_of(&m, "search", other);
            assert_int_equal(rename(path, other), 0);
            strcpy(path, other);
        }
        const mx_rounding rounding = damage == 5 ? MX_ROUND_SEARCH : MX_ROUND_OCP;
        mx_weights *w = load(&m, rounding, true, MX_LOAD_MAP);
        assert_true(is_said("kept in"));
        assert_true(is_said("rounded anew") == (damage < 4));
        check(w, damage == 5 ? "search" : "ocp");
        mx_weights_close(w);
        w = load(&m, rounding, true, MX_LOAD_MAP);
        assert_true(is_said("taken from"));
        check(w, damage == 5 ? "search" : "ocp");
        mx_weights_close(w);
        end(&m, damage == 5 ? "search" : "ocp");
    }
}

static uint64_t rounded_bytes(void) {
    return 2 * EXPERTS * (OUT * IN + OUT * 32) / 32 * 17; /* two layers of gate_up and down */
}

/* Hashing and writing say how far they are. */
static void how_far_it_is_is_told(void **unused) {
    (void)unused;
    maker m;
    write_folder(&m);
    mx_weights_close(load(&m, MX_ROUND_OCP, false, MX_LOAD_MAP));
    const int parts = told.parts;
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_int_equal(told.parts, parts + 1);
    assert_int_equal(told.total, 2 * rounded_bytes());
    assert_true(told.done == told.total);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_LAZY));
    assert_int_equal(told.parts, 0);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_int_equal(told.parts, 2); /* the kept file hashed, then the files brought in */
    end(&m, "ocp");
}

static mode_t mode_of(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_mode & 07777;
}

/* Who may read the model may read what came of it, less the umask. */
static void it_has_the_model_s_mode(void **unused) {
    (void)unused;
    static const mode_t modes[][3] = {{0644, 022, 0644}, {0666, 027, 0640}, {0600, 0, 0600}, {0444, 022, 0644}};
    for (int i = 0; i < 4; i++) {
        maker m;
        char path[700], model[700];
        write_folder(&m);
        path_of(&m, "ocp", path);
        snprintf(model, sizeof model, "%s/model.safetensors", m.folder);
        assert_int_equal(chmod(model, modes[i][0]), 0);
        const mode_t before = umask(modes[i][1]);
        mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
        umask(before);
        assert_int_equal(mode_of(path), modes[i][2]);
        end(&m, "ocp");
    }
}

/* What was left by who was killed is overwritten; what another process writes, or has written, is its own. */
static void one_writes_at_a_time(void **unused) {
    (void)unused;
    maker m;
    char path[700], part[710];
    struct stat info;
    write_folder(&m);
    path_of(&m, "ocp", path);
    snprintf(part, sizeof part, "%s.part", path);
    const int fd = open(part, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    mx_weights *w = load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP);
    assert_true(is_said("another process keeps them") && !is_said("cannot be kept"));
    check(w, "ocp");
    mx_weights_close(w);
    assert_int_equal(fstat(fd, &info), 0);
    assert_true(info.st_size == 1 << 20 && access(path, F_OK));
    close(fd);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_true(is_said("kept in"));
    assert_int_equal(files_in(m.folder, ".mxrun"), 1);
    w = load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP);
    assert_true(is_said("taken from"));
    check(w, "ocp");
    mx_weights_close(w);
    end(&m, "ocp");
}

/* A file beside the model that is wrong and cannot be replaced: a warning at the first start, and none once there is a
 * right one in the user's cache. */
static void a_warning_comes_where_no_place_is_right(void **unused) {
    (void)unused;
    maker m;
    char path[700], part[710], below[730], cache[720];
    write_folder(&m);
    path_of(&m, "ocp", path);
    snprintf(part, sizeof part, "%s.part", path);
    snprintf(below, sizeof below, "%s/full", part);
    snprintf(cache, sizeof cache, "%s/cache/mxrun", m.folder);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    change_byte(path, -1);
    assert_int_equal(mkdir(part, 0700), 0);
    assert_int_equal(mkdir(below, 0700), 0);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_true(is_said("not what was written: experts are rounded anew") && is_said("/cache/mxrun/experts-"));
    assert_false(is_said("in place of"));
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_true(is_said("taken from") && is_said("/cache/mxrun/experts-"));
    assert_false(is_said("rounded anew"));
    rmdir(below);
    rmdir(part);
    change_byte(path, -1); /* right again */
    change_byte(path, 9);
    DIR *d = opendir(cache);
    for (const struct dirent *e; d && (e = readdir(d));)
        if (*e->d_name != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    mx_weights_close(load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP));
    assert_true(is_said("rounded anew") && is_said("in place of what was there"));
    rmdir(cache);
    *strrchr(cache, '/') = 0;
    rmdir(cache);
    end(&m, "ocp");
}

/* Where nothing can be written beside the model: the user's cache. Where there is no room: a warning. */
static void where_it_cannot_be_kept_it_is_said(void **unused) {
    (void)unused;
    maker m;
    char path[700], below[720], cache[720];
    write_folder(&m);
    path_of(&m, "ocp", path);
    snprintf(below, sizeof below, "%s/full", path);
    snprintf(cache, sizeof cache, "%s/cache/mxrun", m.folder);
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    none = before;
    none.rlim_cur = 1000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    mx_weights *w = load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_true(is_said("cannot be kept for the next start") && !is_said("kept in"));
    check(w, "ocp");
    mx_weights_close(w);
    assert_int_equal(files_in(m.folder, ".mxrun"), 0);
    assert_int_equal(files_in(cache, "experts"), 0);
    /* A folder by that name, which no file replaces. */
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(mkdir(below, 0700), 0);
    w = load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP);
    assert_true(is_said("kept in") && is_said("/cache/mxrun/experts-"));
    mx_weights_close(w);
    w = load(&m, MX_ROUND_OCP, true, MX_LOAD_MAP);
    assert_true(is_said("taken from") && is_said("/cache/mxrun/experts-"));
    check(w, "ocp");
    mx_weights_close(w);
    assert_int_equal(files_in(m.folder, ".mxrun"), 1);
    assert_int_equal(files_in(cache, "experts"), 1);
    DIR *d = opendir(cache);
    for (const struct dirent *e; d && (e = readdir(d));)
        if (*e->d_name != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(cache);
    *strrchr(cache, '/') = 0;
    rmdir(cache);
    rmdir(below);
    rmdir(path);
    end(&m, "ocp");
}

static void rules_are_read_by_name(void **unused) {
    (void)unused;
    static const struct {
        const char *text;
        mx_rounding is;
    } all[] = {{"mxfp4", MX_ROUND_OCP},
               {"mxfp4:ocp", MX_ROUND_OCP},
               {"mxfp4:nearest", MX_ROUND_OCP},
               {"mxfp4:overflow", MX_ROUND_OVERFLOW},
               {"mxfp4:search", MX_ROUND_SEARCH}};
    static const char *const bad[] = {"",           "mxfp4:", "mxfp4:weighted", "mxfp4:keep", "mxfp4:hadamard",
                                      "mxfp4:gptq", "nvfp4",  "mxfp4:16",       "search",     "mxfp4:search+gptq"};
    static const mx_scale_rule rules[] = {0, MX_RULE_OCP, MX_RULE_OVERFLOW, MX_RULE_SEARCH};
    mx_rounding rounding;
    mx_error error;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(mx_rounding_parse(all[i].text, &rounding, NULL), MX_OK);
        assert_int_equal(rounding, all[i].is);
        mx_quantize_recipe r; /* the same name, the same rule */
        assert_int_equal(mx_quantize_recipe_parse(mx_rounding_name(rounding), &r, NULL), MX_OK);
        assert_int_equal(r.rule, rules[rounding]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(mx_rounding_parse(bad[i], &rounding, &error), MX_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "mxfp4:search"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(they_are_taken_again),
        cmocka_unit_test(what_is_wrong_is_made_anew),
        cmocka_unit_test(how_far_it_is_is_told),
        cmocka_unit_test(it_has_the_model_s_mode),
        cmocka_unit_test(one_writes_at_a_time),
        cmocka_unit_test(a_warning_comes_where_no_place_is_right),
        cmocka_unit_test(where_it_cannot_be_kept_it_is_said),
        cmocka_unit_test(rules_are_read_by_name),
    };
    return cmocka_run_group_tests_name("rounded experts that are kept", tests, NULL, NULL);
}
