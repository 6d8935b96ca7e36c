/* Where a conversion goes: what is refused, and that nothing half-written ever has its name. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"
#include "support.h"

static const char stories[] = "tools/stories/checkpoint";

static void test_places(void **state) {
    (void)state;
    const char *in = checkout(stories);
    write_file(temporary("there"), "x", 1);
    mkdir(temporary("full"), 0777);
    write_file(temporary("full/config.json"), "x", 1);
    refuse(in, temporary("there"), MX_LAYOUT_GGUF, MX_INVALID_ARGUMENT, "is there already; --force replaces it");
    refuse(in, temporary("full"), MX_LAYOUT_GGUF, MX_INVALID_ARGUMENT, "is a folder, expected the name of a file");
    refuse(temporary("there"), temporary("none"), MX_LAYOUT_HF, MX_INVALID_ARGUMENT, "expected a model");
    refuse(temporary("nothing"), temporary("none"), MX_LAYOUT_HF, MX_IO, "nothing");
    refuse(in, temporary("none"), MX_LAYOUT_HF, MX_INVALID_ARGUMENT, "is in the layout Hugging Face already");
    refuse(in, "", MX_LAYOUT_GGUF, MX_INVALID_ARGUMENT, "empty");
    convert(in, temporary("model.gguf"), MX_LAYOUT_GGUF);
    refuse(temporary("model.gguf"), temporary("full"), MX_LAYOUT_HF, MX_INVALID_ARGUMENT, "--force");
    refuse(temporary("model.gguf"), temporary("model.bin"), MX_LAYOUT_METAL, MX_INVALID_ARGUMENT, "give a folder's");
}

static void refuse_force(const char *in, const char *out, mx_layout to, const char *part) {
    mx_converted done;
    const mx_convert_options options = {.to = to, .pool = pool, .force = true};
    assert_int_equal(mx_convert(in, out, &options, &done, &error), MX_INVALID_ARGUMENT);
    if (!strstr(error.text, part)) fail_msg("%s; expected \"%s\"", error.text, part);
}

static void test_force(void **state) {
    (void)state;
    convert_anyway(checkout(stories), temporary("there"), MX_LAYOUT_GGUF); /* replaces the file */
    convert_anyway(temporary("there"), temporary("full"), MX_LAYOUT_HF);   /* and the folder */
    expect_same_folder(checkout(stories), temporary("full"));
    assert_false(exists(temporary("full.incomplete")));
    mkdir(temporary("full/inside"), 0777);
    refuse_force(temporary("there"), temporary("full"), MX_LAYOUT_HF, "holds the folder inside");
    rmdir(temporary("full/inside"));
    rename(temporary("there"), temporary("full/there.gguf"));
    refuse_force(temporary("full/there.gguf"), temporary("full"), MX_LAYOUT_HF, "holds what is to be converted");
    refuse_force(temporary("full"), temporary("full"), MX_LAYOUT_ORIGINAL, "holds what is to be converted");
}

/* What is no model's stays, and so does what is read. */
static void test_what_is_not_replaced(void **state) {
    (void)state;
    const char *in = temporary("precious"), *gguf = temporary("precious.gguf");
    copy_folder(checkout(stories), in);
    convert(in, gguf, MX_LAYOUT_GGUF);
    refuse_force(in, temporary("precious/model.safetensors"), MX_LAYOUT_GGUF, "is a part of what is to be converted");
    refuse_force(in, temporary("precious/new.gguf"), MX_LAYOUT_GGUF, "is inside the folder");
    refuse_force(in, temporary("precious/new/new"), MX_LAYOUT_ORIGINAL, "is inside the folder");
    assert_int_equal(symlink("precious", temporary("alias")), 0);
    refuse_force(in, temporary("alias/new.gguf"), MX_LAYOUT_GGUF, "is inside the folder");
    refuse_force(temporary("alias"), temporary("precious/new.gguf"), MX_LAYOUT_GGUF, "is inside the folder");
    refuse_force(gguf, temporary("alias"), MX_LAYOUT_HF, "is a symbolic link");
    /* As in the hub's cache: the file is elsewhere. */
    assert_int_equal(rename(temporary("precious/model.safetensors"), temporary("blob")), 0);
    assert_int_equal(symlink("../blob", temporary("precious/model.safetensors")), 0);
    refuse_force(in, temporary("blob"), MX_LAYOUT_GGUF, "is a part of what is to be converted");
    convert_anyway(in, temporary("precious.metal"), MX_LAYOUT_METAL);
    refuse_force(temporary("precious.metal"), temporary("precious.metal/mxrun-source"), MX_LAYOUT_GGUF, "is a part of");
    assert_int_equal(mkfifo(temporary("pipe"), 0666), 0);
    refuse_force(in, temporary("pipe"), MX_LAYOUT_GGUF, "is a named pipe");
    refuse_force(in, "/dev/null", MX_LAYOUT_GGUF, "is a device");
    mkdir(temporary("docs"), 0777);
    write_file(temporary("docs/a.txt"), "x", 1);
    refuse_force(gguf, temporary("docs"), MX_LAYOUT_HF, "holds the file a.txt, which is no part of a model");
    assert_true(exists(temporary("docs/a.txt")));
    rename(temporary("docs"), temporary("new.incomplete"));
    refuse_force(gguf, temporary("new"), MX_LAYOUT_HF, "new.incomplete: holds the file a.txt");
    assert_true(exists(temporary("new.incomplete/a.txt")));
    assert_int_equal(mkfifo(temporary("a.incomplete"), 0666), 0);
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_GGUF, .pool = pool};
    assert_int_equal(mx_convert(in, temporary("a"), &options, &done, &error), MX_IO);
    assert_true(exists(temporary("a.incomplete")));
}

/* Where the file system cannot exchange two names, which a filter of system calls plays. */
/* What grows is emptied first: it may not be what is read, by whatever name. */
static void test_input_is_what_grows(void **state) {
    (void)state;
    copy_folder(checkout("tests/data/base"), temporary("grown.incomplete"));
    refuse_force(temporary("grown.incomplete"), temporary("grown"), MX_LAYOUT_ORIGINAL, "would be written first");
    assert_int_equal(symlink("grown.incomplete", temporary("other.incomplete")), 0);
    refuse_force(temporary("grown.incomplete"), temporary("other"), MX_LAYOUT_ORIGINAL, "would be written first");
    expect_same_folder(temporary("grown.incomplete"), checkout("tests/data/base"));
    assert_int_equal(link(temporary("grown.incomplete/model.safetensors"), temporary("file.gguf.incomplete")), 0);
    refuse_force(temporary("grown.incomplete"), temporary("file.gguf"), MX_LAYOUT_GGUF, "would be written first");
    mkdir(temporary("holder"), 0777);
    convert(checkout("tests/data/base"), temporary("holder/x.gguf"), MX_LAYOUT_GGUF);
    refuse_force(temporary("holder/x.gguf"), temporary("nosuch/../holder"), MX_LAYOUT_HF, "holds what");
    assert_true(exists(temporary("holder/x.gguf")));
    expect_same_folder(temporary("grown.incomplete"), checkout("tests/data/base"));
    refuse(checkout("tests/data/base"), temporary("here/."), MX_LAYOUT_ORIGINAL, MX_INVALID_ARGUMENT,
           "expected the name");
}

static void without_exchange(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[4])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RENAME_EXCHANGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(77);
}

static int replaced_without_exchange(const char *in, const char *out, char said[static 600]) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        mx_pool *own;
        mx_converted done;
        mx_error why = {0};
        without_exchange();
        if (mx_pool_create(1, &own, &why)) _exit(99);
        const mx_convert_options options = {.to = MX_LAYOUT_HF, .pool = own, .force = true};
        const mx_status found = mx_convert(in, out, &options, &done, &why);
        if (write(ends[1], why.text, strlen(why.text)) < 0) _exit(98);
        _exit((int)found);
    }
    close(ends[1]);
    const ssize_t n = read(ends[0], said, 599);
    said[n > 0 ? n : 0] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_replaced_in_two_steps(void **state) {
    (void)state;
    char said[600];
    const char *gguf = temporary("two.gguf"), *out = temporary("two");
    convert_anyway(checkout(stories), gguf, MX_LAYOUT_GGUF);
    mkdir(out, 0777);
    write_file(temporary("two/config.json"), "old", 3);
    mkdir(temporary("two.replaced"), 0777);
    const int status = replaced_without_exchange(gguf, out, said);
    if (status == 77) skip(); /* no filters here */
    assert_int_equal(status, MX_IO);
    if (!strstr(said, "two.replaced: is in the way of replacing")) fail_msg("%s", said);
    mx_bytes old = content(temporary("two/config.json"));
    assert_string_equal(old.data, "old");
    mx_bytes_free(&old);
    rmdir(temporary("two.replaced"));
    assert_int_equal(replaced_without_exchange(gguf, out, said), MX_OK);
    expect_same_folder(checkout(stories), out);
    assert_false(exists(temporary("two.replaced")));
    assert_false(exists(temporary("two.incomplete")));
}

/* MODEL may be one that is not here yet. */
static void test_models_by_name(void **state) {
    (void)state;
    char command[4000], said[2000] = "";
    mkdir(temporary("empty-hub"), 0777);
    snprintf(command, sizeof command,
             "HF_HUB_CACHE='%s' '%s' convert gpt-oss-20b '%s' --to gguf --offline --yes < /dev/null 2>&1",
             temporary("empty-hub"), getenv("MXRUN_BINARY"), temporary("none"));
    FILE *f = popen(command, "r");
    assert_non_null(f);
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    assert_int_equal(WEXITSTATUS(pclose(f)), 1);
    if (!strstr(said, "gpt-oss-20b is not on this machine") || !strstr(said, "but not offline")) fail_msg("%s", said);
}

static void test_losses(void **state) {
    (void)state;
    const char *none = temporary("none");
    refuse(checkout("tests/data/top1"), none, MX_LAYOUT_GGUF, MX_INVALID_ARGUMENT, "swiglu_limit 3");
    refuse(checkout("tests/data/base"), none, MX_LAYOUT_ORIGINAL, MX_INVALID_ARGUMENT, "eos_token_id");
    refuse(checkout("tests/data/mqa"), none, MX_LAYOUT_METAL, MX_UNSUPPORTED, "heads of another size than 64");
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_METAL, .pool = pool, .allow_loss = true};
    assert_int_equal(mx_convert(checkout("tests/data/base"), none, &options, &done, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "no tokenizer.json"));
}

/* Numbers that metal's halving or raising would change. */
static void test_what_metal_cannot_hold(void **state) {
    (void)state;
    static const struct {
        const char *tensor, *said;
        uint8_t byte[2];
        int size;
    } cases[] = {
        {"model.layers.1.self_attn.k_proj.weight", "k_proj.weight: holds numbers so small", {0x81, 0x00}, 2},
        {"model.layers.0.mlp.experts.down_proj_scales", "down_proj_scales: holds scales above 240", {241}, 1},
    };
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_METAL, .pool = pool, .allow_loss = true};
    copy_folder(checkout(stories), temporary("small"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_checkpoint *ck;
        uint64_t at;
        if (mx_checkpoint_open(checkout(stories), &ck, &error)) fail_msg("%s", error.text);
        const mx_tensor *t = mx_checkpoint_find(ck, cases[i].tensor);
        mx_bytes bytes = content(temporary("small/model.safetensors"));
        uint64_t first = UINT64_MAX; /* where the file is mapped: its first tensor lies behind the header */
        for (int k = 0; k < mx_checkpoint_count(ck); k++)
            if ((uint64_t)mx_checkpoint_at(ck, k)->data < first) first = (uint64_t)mx_checkpoint_at(ck, k)->data;
        at = (uint64_t)t->data - first + 8 + mx_load_u64(bytes.data) + 64;
        mx_checkpoint_close(ck);
        memcpy(bytes.data + at, cases[i].byte, (size_t)cases[i].size);
        write_file(temporary("small/model.safetensors"), bytes.data, bytes.size);
        mx_bytes_free(&bytes);
        assert_int_equal(mx_convert(temporary("small"), temporary("none"), &options, &done, &error), MX_UNSUPPORTED);
        if (!strstr(error.text, cases[i].said)) fail_msg("%s; expected \"%s\"", error.text, cases[i].said);
        assert_false(exists(temporary("none")));
        assert_false(exists(temporary("none.incomplete")));
        copy_file(checkout("tools/stories/checkpoint/model.safetensors"), temporary("small/model.safetensors"));
    }
}

/* ---- ranks --------------------------------------------------------------------------------------------------------
 */

static int by_key(const void *a, const void *b) {
    return strcmp((*(const mx_json *const *)a)->key, (*(const mx_json *const *)b)->key);
}

static bool is_key(const mx_json *const *sorted, size_t count, const char *text) {
    const mx_json key = {.key = (char *)(uintptr_t)text}, *at = &key;
    return bsearch(&at, sorted, count, sizeof at, by_key) != NULL;
}

/* Every way to make a token of two others, in the order of ids; with `swap` the first two merges change places. */
static void add_all_merges(mx_bytes *out, const mx_json *vocabulary, bool swap) {
    const mx_json *token[5000], *sorted[5000];
    mx_bytes first = {0};
    size_t count = 0;
    int made = 0;
    for (const mx_json *t = vocabulary->child; t; t = t->next) {
        int64_t id;
        assert_true(mx_json_int64(t, &id) && id == (int64_t)count && count < 5000); /* in their order */
        if (strncmp(t->key, "<|", 2) || strlen(t->key) < 5) token[count++] = t;
    }
    memcpy(sorted, token, count * sizeof *token);
    qsort(sorted, count, sizeof *sorted, by_key);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 1; k < token[i]->key_size; k++) {
            char left[600];
            snprintf(left, sizeof left, "%.*s", (int)k, token[i]->key);
            if (!is_key(sorted, count, left) || !is_key(sorted, count, token[i]->key + k)) continue;
            mx_bytes *to = swap && !made ? &first : out;
            if (made > (swap ? 1 : 0)) mx_bytes_add_string(out, ",");
            mx_bytes_add_string(to, "[");
            mx_bytes_add_json(to, left, k);
            mx_bytes_add_string(to, ",");
            mx_bytes_add_json(to, token[i]->key + k, token[i]->key_size - k);
            mx_bytes_add_string(to, "]");
            if (++made == 2 && swap) mx_bytes_addf(out, ",%s", first.data);
        }
    }
    mx_bytes_free(&first);
}

/* stories in FOLDER/, with the end of an answer as metal's readers have it and ids that are ranks. */
static void write_ranked(const char *folder, bool whole, bool swap) {
    char path[4200];
    mx_bytes out = {0}, text = content(checkout("tools/stories/checkpoint/tokenizer.json"));
    mx_json_document *document;
    if (mx_json_parse("tokenizer.json", text.data, text.size, &document, &error)) fail_msg("%s", error.text);
    mx_bytes_add_string(&out, "{");
    for (const mx_json *v = mx_json_root(document)->child; v; v = v->next) {
        mx_bytes_addf(&out, "%s\"%s\": ", v == mx_json_root(document)->child ? "" : ",\n", v->key);
        if (strcmp(v->key, "model")) {
            mx_json_write(&out, v);
            continue;
        }
        mx_bytes_addf(&out, "{\"type\": \"BPE\", \"ignore_merges\": %s, \"vocab\": ", whole ? "true" : "false");
        mx_json_write(&out, mx_json_get(v, "vocab"));
        mx_bytes_add_string(&out, ", \"merges\": [");
        add_all_merges(&out, mx_json_get(v, "vocab"), swap);
        mx_bytes_add_string(&out, "]}");
    }
    mx_bytes_add_string(&out, "}");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    write_file(path, out.data, out.size);
    mx_json_free(document);
    mx_bytes_free(&text);
    mx_bytes_free(&out);
}

/* A model.bin has ids for ranks and no merges. */
static void test_vocabularies_without_ranks(void **state) {
    (void)state;
    const char *in = temporary("ranked");
    copy_folder(checkout(stories), in);
    unlink(temporary("ranked/generation_config.json"));
    mx_bytes config = content(temporary("ranked/config.json"));
    char *eos = strstr(config.data, "\"eos_token_id\"");
    assert_non_null(eos);
    eos[1] = 'x';
    write_file(temporary("ranked/config.json"), config.data, config.size);
    mx_bytes_free(&config);
    refuse(in, temporary("none"), MX_LAYOUT_METAL, MX_INVALID_ARGUMENT, "and ignore_merges is not true; --allow-loss");
    write_ranked(in, false, false);
    refuse(in, temporary("none"), MX_LAYOUT_METAL, MX_INVALID_ARGUMENT, "and ignore_merges is not true");
    write_ranked(in, true, true);
    refuse(in, temporary("none"), MX_LAYOUT_METAL, MX_INVALID_ARGUMENT, "and its merges are not every way to make");
    convert_anyway(in, temporary("ranked.metal"), MX_LAYOUT_METAL);
    expect_logged("readers of model.bin take the ids as ranks");
    write_ranked(in, true, false);
    convert(in, temporary("ranked.exact"), MX_LAYOUT_METAL);
    expect_nothing_logged();
}

/* ---- interrupted --------------------------------------------------------------------------------------------------
 */

static void die(void *user, uint64_t done, uint64_t total) {
    (void)user;
    (void)total;
    if (done) raise(SIGKILL);
}

/* A child that converts, with `progress` after every piece. Its wait status. */
static int in_child(const char *in, const char *out, mx_layout to, void (*progress)(void *, uint64_t, uint64_t),
                    rlim_t limit) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        mx_pool *own;
        mx_converted done;
        mx_error why = {0};
        struct rlimit size = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        if (limit) setrlimit(RLIMIT_FSIZE, &size);
        if (mx_pool_create(1, &own, &why)) _exit(99);
        const mx_convert_options options = {.to = to, .pool = own, .progress = progress, .allow_loss = true};
        const mx_status status = mx_convert(in, out, &options, &done, &why);
        _exit(status == MX_IO && !strstr(why.text, "File too large") ? 98 : (int)status);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_kill(void **state) {
    (void)state;
    static const struct {
        const char *out;
        mx_layout to;
    } cases[] = {
        {"killed.gguf", MX_LAYOUT_GGUF}, {"killed.original", MX_LAYOUT_ORIGINAL}, {"killed.metal", MX_LAYOUT_METAL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char grows[100];
        snprintf(grows, sizeof grows, "%s.incomplete", cases[i].out);
        const int status = in_child(checkout(stories), temporary(cases[i].out), cases[i].to, die, 0);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_false(exists(temporary(cases[i].out)));
        assert_true(exists(temporary(grows)));
        mx_converted done;
        const mx_convert_options options = {.to = cases[i].to, .pool = pool, .allow_loss = true};
        if (mx_convert(checkout(stories), temporary(cases[i].out), &options, &done, &error)) fail_msg("%s", error.text);
        assert_false(exists(temporary(grows)));
        convert_anyway(temporary(cases[i].out), temporary("killed.back"), MX_LAYOUT_HF);
        expect_same_folder(checkout(stories), temporary("killed.back"));
    }
}

static void test_full_disk(void **state) {
    (void)state;
    static const mx_layout layouts[] = {MX_LAYOUT_GGUF, MX_LAYOUT_ORIGINAL, MX_LAYOUT_METAL};
    for (int i = 0; i < 3; i++) {
        const int status = in_child(checkout(stories), temporary("limited"), layouts[i], NULL, 1 << 20);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), MX_IO);
        assert_false(exists(temporary("limited")));
        assert_false(exists(temporary("limited.incomplete")));
    }
}

static volatile sig_atomic_t stop;
static void stop_now(void *user, uint64_t done, uint64_t total) {
    (void)user;
    (void)done;
    (void)total;
    stop = 1;
}

static void test_stop(void **state) {
    (void)state;
    mx_pool *own;
    mx_converted done;
    assert_int_equal(mx_pool_create(1, &own, &error), MX_OK);
    const mx_convert_options options = {.to = MX_LAYOUT_GGUF, .pool = own, .progress = stop_now, .stop = &stop};
    assert_int_equal(mx_convert(checkout(stories), temporary("stopped"), &options, &done, &error), MX_CANCELLED);
    assert_false(exists(temporary("stopped")));
    assert_false(exists(temporary("stopped.incomplete")));
    mx_pool_destroy(own);
}

static void test_lock(void **state) {
    (void)state;
    const int fd = open(temporary("locked.incomplete"), O_RDWR | O_CREAT, 0666);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_GGUF, .pool = pool};
    assert_int_equal(mx_convert(checkout(stories), temporary("locked"), &options, &done, &error), MX_IO);
    assert_non_null(strstr(error.text, "another process is writing it"));
    assert_true(exists(temporary("locked.incomplete"))); /* the other one's */
    close(fd);
    convert(checkout(stories), temporary("locked"), MX_LAYOUT_GGUF);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_force),
        cmocka_unit_test(test_models_by_name),
        cmocka_unit_test(test_vocabularies_without_ranks),
        cmocka_unit_test(test_what_is_not_replaced),
        cmocka_unit_test(test_input_is_what_grows),
        cmocka_unit_test(test_replaced_in_two_steps),
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_what_metal_cannot_hold),
        cmocka_unit_test(test_kill),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_lock),
    };
    return cmocka_run_group_tests(tests, convert_set_up, convert_tear_down);
}
