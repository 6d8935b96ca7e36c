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
#include "hub/private.h"

static char folder[] = "/tmp/mxrun-hub-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static const char *write_file(const char *name, const char *text) {
    static char path[MX_HUB_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return path;
}

#define SHA  "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"
#define HEAD "model one\n repository org/one\n layout hf\n"

/* ---- models.txt -------------------------------------------------------------------------------------------------- */
static void the_list_of_the_program_is_read(void **state) {
    (void)state;
    char path[MX_HUB_PATH];
    mx_models models = {0};
    mx_error error = {0};
    snprintf(path, sizeof path, "%s/models.txt", getenv("MXRUN_SOURCE"));
    if (mx_models_add(&models, path, false, &error)) fail_msg("%s", error.text);
    const mx_known_model *m = mx_models_find(&models, "gpt-oss:20b");
    assert_non_null(m);
    assert_string_equal(m->name, "gpt-oss-20b");
    assert_string_equal(m->repository, "openai/gpt-oss-20b");
    assert_string_equal(m->licence, "apache-2.0");
    int64_t known = 0;
    for (int i = 0; i < m->file_count; i++) known += m->files[i].size > 0 ? m->files[i].size : 0;
    assert_int_equal(known, 4792272488 + 4798702184 + 4170342232 + 27868174);
    static const char *const names[] = {"gpt-oss-120b",     "gpt-oss-safeguard-20b", "gpt-oss-safeguard-120b",
                                        "gpt-oss-20b-gguf", "gpt-oss-120b-gguf",     "stories"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_non_null(mx_models_find(&models, names[i]));
    mx_models_free(&models);
}

static void wrong_lines_are_named(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"alias x\n", ":1: alias: stands before the first \"model NAME\""},
        {"# c\n\nmodel\n", ":3: model: 0 values, expected \"model NAME\""},
        {"model a b\n", ":1: model: 2 values"},
        {"model a/b\n", ":1: model: \"a/b\" is no name"},
        {"model .a\n", ":1: model: \".a\" is no name"},
        {HEAD "colour red\n", ":4: there is no field \"colour\""},
        {HEAD "model one\n repository a/b\n layout hf\n", ":4: model: \"one\" already names the model of line 1"},
        {HEAD "model two\n alias one\n", ":5: alias: \"one\" already names the model of line 1"},
        {HEAD " alias b c/d\n", ":4: alias: \"c/d\" is no name"},
        {"model a\n layout hf\n", ":1: model \"a\" has no line \"repository\""},
        {"model a\n repository b/c\nmodel d\n", ":1: model \"a\" has no line \"layout\""},
        {"model a\n repository b\n", ":2: repository: \"b\" is neither ORG/NAME nor -"},
        {"model a\n repository b/../c\n", ":2: repository"},
        {"model a\n repository b/c/d\n", ":2: repository"},
        {HEAD " repository x/y\n", ":4: repository: model \"one\" has one already"},
        {HEAD " layout gguf\n", ":4: layout: model \"one\" has one already"},
        {"model a\n layout pickle\n", ":2: layout: \"pickle\" is not hf, gguf or original"},
        {HEAD " revision ../x\n", ":4: revision: \"../x\" is no branch"},
        {HEAD " file x - \n", ":4: file: 2 values, expected \"file PATH SIZE SHA256\""},
        {HEAD " file x 12x -\n", ":4: file: size \"12x\" of x is no number"},
        {HEAD " file x 99999999999999999999 -\n", ":4: file: size"},
        {HEAD " file x -5 -\n", ":4: file: size \"-5\""},
        {HEAD " file x - 0614\n", ":4: file: SHA-256 \"0614\" of x is not 64"},
        {HEAD " file ../x - -\n", ":4: file: \"../x\" is no path inside"},
        {HEAD " file /x - -\n", ":4: file: \"/x\" is no path"},
        {HEAD " file a//x - -\n", ":4: file: \"a//x\" is no path"},
        {HEAD " file a\\x - -\n", ":4: file: \"a\\x\" is no path"},
        {HEAD " file x - -\n optional x - -\n", ":5: optional: x is in line 4 already"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_models models = {0};
        mx_error error = {0};
        const char *path = write_file("wrong.txt", cases[i].text);
        if (mx_models_add(&models, path, false, &error) != MX_INVALID_FILE) fail_msg("case %zu: %s", i, error.text);
        if (strncmp(error.text, path, strlen(path)) != 0 || !strstr(error.text, cases[i].says))
            fail_msg("case %zu: \"%s\" is not in: %s", i, cases[i].says, error.text);
        mx_models_free(&models);
    }
    mx_models models = {0};
    char words[4000] = "alias";
    for (int i = 0; i < 100; i++) strcat(words, " a");
    assert_int_equal(mx_models_add(&models, write_file("wrong.txt", words), false, NULL), MX_INVALID_FILE);
    assert_int_equal(mx_models_add(&models, "/no/such/list", false, NULL), MX_IO);
    assert_int_equal(mx_models_add(&models, "/no/such/list", true, NULL), MX_OK);
    mx_models_free(&models);
}

static void a_later_list_adds_and_replaces(void **state) {
    (void)state;
    mx_models models = {0};
    const char *first = HEAD " alias uno\n file a 5 " SHA "\nmodel two\n repository org/two\n layout gguf\n";
    const char *second = "model two\n alias uno\n repository me/two\n revision v2\n layout original\r\n"
                         "model three\n repository me/three\n layout hf\n licence mit\n";
    assert_int_equal(mx_models_add(&models, write_file("first.txt", first), false, NULL), MX_OK);
    assert_string_equal(mx_models_find(&models, "uno")->name, "one");
    assert_int_equal(mx_models_add(&models, write_file("second.txt", second), false, NULL), MX_OK);
    assert_int_equal(models.count, 3);
    assert_string_equal(mx_models_find(&models, "two")->repository, "me/two");
    assert_int_equal(mx_models_find(&models, "two")->layout, MX_HUB_ORIGINAL);
    assert_string_equal(mx_models_find(&models, "uno")->name, "two");
    const mx_known_model *one = mx_models_find(&models, "one");
    assert_int_equal(one->files[0].size, 5);
    assert_string_equal(one->files[0].sha256, SHA);
    assert_string_equal(one->revision, "main");
    assert_string_equal(mx_models_find(&models, "three")->licence, "mit");
    assert_null(mx_models_find(&models, "four"));
    mx_models_free(&models);
}

static void what_comes_along_is_of_the_first_list(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"model s\n repository a/b\n layout hf\n", ":1: model: \"s\" is the model that comes with mxrun"},
        {HEAD " alias s\n", ":4: alias: \"s\" is the model that comes"},
        {HEAD " alias s:1\n", ":4: alias: \"s:1\" is the model that comes"},
        {"model foo\n repository -\n layout hf\n", ":2: repository: - is for what comes with mxrun"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_models models = {0};
        mx_error error = {0};
        const char *first = write_file("first.txt", "model s\n alias s:1\n repository -\n layout hf\n");
        assert_int_equal(mx_models_add(&models, first, false, NULL), MX_OK);
        if (mx_models_add(&models, write_file("second.txt", cases[i].text), false, &error) != MX_INVALID_FILE ||
            !strstr(error.text, cases[i].says))
            fail_msg("case %zu: \"%s\" is not in: %s", i, cases[i].says, error.text);
        mx_models_free(&models);
    }
}

/* ---- what -m names ----------------------------------------------------------------------------------------------- */
static void names_become_targets(void **state) {
    (void)state;
    mx_models models = {0};
    mx_error error = {0};
    const char *list = HEAD " alias uno\n revision v1\n file a - -\nmodel two-gguf\n repository org/two-GGUF\n"
                            " layout gguf\n";
    assert_int_equal(mx_models_add(&models, write_file("list.txt", list), false, NULL), MX_OK);
    static const struct {
        const char *text, *repository, *revision, *file;
        bool known;
    } cases[] = {
        {"one", "org/one", "v1", "", true},
        {"uno", "org/one", "v1", "", true},
        {"org/one", "org/one", "v1", "", true},
        {"org/one@v1", "org/one", "v1", "", true},
        {"one@v1", "org/one", "v1", "", true},
        {"one@main", "org/one", "main", "", false}, /* what models.txt says of files holds for v1 alone */
        {"org/one@refs/pr/3", "org/one", "refs/pr/3", "", false},
        {"org/two-GGUF:x.gguf", "org/two-GGUF", "main", "x.gguf", false},
        {"a/b@c:d/e.gguf", "a/b", "c", "d/e.gguf", false},
        {"a/b", "a/b", "main", "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_target t;
        if (mx_target_parse(&models, cases[i].text, &t, &error)) fail_msg("%s: %s", cases[i].text, error.text);
        assert_string_equal(t.repository, cases[i].repository);
        assert_string_equal(t.revision, cases[i].revision);
        assert_string_equal(t.file, cases[i].file);
        assert_int_equal(t.known != NULL, cases[i].known);
    }
    static const char *const wrong[] = {"",     "a/b/c", "a/b@",    "a/b@../c", "a/b:",       "a/b:../x", "a/b:/x",
                                        "a/..", "../b",  "a/b@c d", "a--b/c",   "-a/b",       "a/b@c@d",  "/",
                                        "a/",   "/b",    "a b/c",   "a/b%20",   "three@main", "a/b:x\ny"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_target t;
        if (mx_target_parse(&models, wrong[i], &t, &error) == MX_OK) fail_msg("\"%s\" became a target", wrong[i]);
    }
    char long_name[3000];
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    mx_target t;
    assert_int_equal(mx_target_parse(&models, long_name, &t, &error), MX_INVALID_ARGUMENT);
    memcpy(long_name, "org/", 4); /* never a shorter name of another repository */
    strcpy(long_name + MX_REPOSITORY - 1, "");
    assert_int_equal(mx_target_parse(&models, long_name, &t, &error), MX_OK);
    strcpy(long_name + MX_REPOSITORY - 1, "a");
    assert_int_equal(mx_target_parse(&models, long_name, &t, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "fewer than 200 bytes"));
    strcpy(long_name + MX_REPOSITORY - 1, "a@main:x.gguf");
    assert_int_equal(mx_target_parse(&models, long_name, &t, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_target_parse(&models, "onne", &t, &error), MX_NOT_FOUND);
    assert_non_null(strstr(error.text, "did you mean one?"));
    assert_int_equal(mx_target_parse(&models, "TWO-GUF", &t, &error), MX_NOT_FOUND);
    assert_non_null(strstr(error.text, "did you mean two-gguf?"));
    assert_int_equal(mx_target_parse(&models, "something-else", &t, &error), MX_NOT_FOUND);
    assert_null(strstr(error.text, "did you mean"));
    mx_models_free(&models);
}

/* `files` and `expected`: separated by blanks; expected NULL: an error that says `says`. */
static void choose(const char *name, const char *files, mx_hub_layout layout, const char *expected, const char *says) {
    mx_models none = {0};
    mx_target target;
    mx_strings there = {0}, needed = {0}, wanted = {0};
    mx_hub_layout found;
    mx_error error = {0};
    mx_bytes text = {0};
    char *copy = strdup(files);
    assert_int_equal(mx_target_parse(&none, name, &target, NULL), MX_OK);
    for (char *rest = copy, *word; (word = strsep(&rest, " "));) assert_true(mx_strings_add(&there, word));
    mx_status status = mx_choose_files(&target, &there, &found, &needed, &wanted, &error);
    for (int i = 0; i < needed.count; i++) mx_bytes_addf(&text, "%s%s", i ? " " : "", needed.text[i]);
    for (int i = 0; i < wanted.count; i++) mx_bytes_addf(&text, " %s?", wanted.text[i]);
    if (expected) {
        if (status) fail_msg("%s", error.text);
        assert_int_equal(found, layout);
        assert_string_equal(text.data, expected);
    } else if (!status || !strstr(error.text, says)) {
        fail_msg("\"%s\" is not in: %s", says, error.text);
    }
    free(copy);
    mx_bytes_free(&text);
    mx_strings_free(&there);
    mx_strings_free(&needed);
    mx_strings_free(&wanted);
}

static void only_what_is_needed_is_chosen(void **state) {
    (void)state;
    choose("a/b",
           "README.md config.json generation_config.json metal/model.bin model-00000-of-00001.safetensors "
           "model-00001-of-00001.safetensors model.safetensors.index.json original/config.json "
           "original/model.safetensors tokenizer.json x.gguf",
           MX_HUB_HF,
           "config.json tokenizer.json model.safetensors.index.json model-00000-of-00001.safetensors "
           "model-00001-of-00001.safetensors generation_config.json?",
           NULL);
    choose("a/b", "config.json model.safetensors", MX_HUB_HF, "config.json tokenizer.json model.safetensors", NULL);
    choose("a/b", "README.md config.json m.gguf", MX_HUB_GGUF, "m.gguf", NULL);
    choose("a/b", "mmproj-x.gguf m.gguf", MX_HUB_GGUF, "m.gguf", NULL);
    choose("a/b", "m-00001-of-00003.gguf m-00002-of-00003.gguf", MX_HUB_GGUF,
           "m-00001-of-00003.gguf m-00002-of-00003.gguf m-00003-of-00003.gguf", NULL);
    choose("a/b", "m-Q4.gguf m-Q8.gguf", 0, NULL, "name one as a/b:FILE.gguf: m-Q4.gguf, m-Q8.gguf");
    choose("a/b:m-Q8.gguf", "m-Q4.gguf m-Q8.gguf", MX_HUB_GGUF, "m-Q8.gguf", NULL);
    choose("a/b:n-00002-of-00002.gguf", "m.gguf Q8/n-00001-of-00002.gguf Q8/n-00002-of-00002.gguf", MX_HUB_GGUF,
           "Q8/n-00001-of-00002.gguf Q8/n-00002-of-00002.gguf", NULL);
    choose("a/b:x.gguf", "m-Q4.gguf m-Q8.gguf", 0, NULL, "a/b has no x.gguf; GGUF files there: m-Q4.gguf, m-Q8.gguf");
    choose("a/b", "original/config.json original/dtypes.json original/model.safetensors tokenizer.json",
           MX_HUB_ORIGINAL, "original/config.json original/dtypes.json original/model.safetensors tokenizer.json",
           NULL);
    choose("a/b", "m-00001-of-99999.gguf", MX_HUB_GGUF, "m-00001-of-99999.gguf", NULL); /* no model has so many parts */
    choose("a/b", "README.md pytorch_model.bin", 0, NULL, "none of the layouts");
}

/* ---- the environment --------------------------------------------------------------------------------------------- */
static void clear_environment(void) {
    static const char *const names[] = {"HF_HUB_CACHE",  "HUGGINGFACE_HUB_CACHE",
                                        "HF_HOME",       "XDG_CACHE_HOME",
                                        "HF_ENDPOINT",   "HF_HUB_OFFLINE",
                                        "HF_TOKEN",      "HUGGING_FACE_HUB_TOKEN",
                                        "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN",
                                        "HOME",          "TRANSFORMERS_OFFLINE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void expect_hub(const char *cache, const char *endpoint, const char *token, bool offline) {
    mx_hub hub;
    mx_error error = {0};
    if (mx_hub_open(&hub, &error)) fail_msg("%s", error.text);
    assert_string_equal(hub.folder, cache);
    assert_string_equal(hub.endpoint, endpoint);
    assert_string_equal(hub.token ? hub.token : "", token);
    assert_int_equal(hub.offline, offline);
    mx_hub_close(&hub);
}

static void the_environment_is_that_of_huggingface_hub(void **state) {
    (void)state;
    const char *hub = "https://huggingface.co";
    char path[MX_HUB_PATH];
    mx_hub none;
    clear_environment();
    assert_int_equal(mx_hub_open(&none, NULL), MX_INVALID_ARGUMENT);
    setenv("HOME", "/h", 1);
    expect_hub("/h/.cache/huggingface/hub", hub, "", false);
    setenv("XDG_CACHE_HOME", "/x", 1);
    expect_hub("/x/huggingface/hub", hub, "", false);
    snprintf(path, sizeof path, "%s/hub", folder);
    setenv("HF_HOME", folder, 1);
    write_file("token", " hf_file \n");
    expect_hub(path, hub, "hf_file", false);
    setenv("HF_TOKEN_PATH", write_file("other", "hf_other"), 1);
    expect_hub(path, hub, "hf_other", false);
    setenv("HUGGING_FACE_HUB_TOKEN", "hf_old", 1);
    expect_hub(path, hub, "hf_old", false);
    setenv("HF_TOKEN", "hf_new\n", 1);
    setenv("HF_HUB_CACHE", "~/c", 1);
    setenv("HF_ENDPOINT", "http://mirror:8080//", 1);
    setenv("HF_HUB_OFFLINE", "Yes", 1);
    expect_hub("/h/c", "http://mirror:8080", "hf_new", true);
    setenv("HF_HUB_OFFLINE", "0", 1);
    expect_hub("/h/c", "http://mirror:8080", "hf_new", false);
    setenv("TRANSFORMERS_OFFLINE", "1", 1);
    expect_hub("/h/c", "http://mirror:8080", "hf_new", false);
    unsetenv("HF_HUB_OFFLINE");
    expect_hub("/h/c", "http://mirror:8080", "hf_new", true);
    setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1", 1);
    expect_hub("/h/c", "http://mirror:8080", "", true);
    unsetenv("HF_HUB_DISABLE_IMPLICIT_TOKEN");
    setenv("HF_TOKEN", "hf\r\nX-Evil: 1", 1);
    assert_int_equal(mx_hub_open(&none, NULL), MX_INVALID_ARGUMENT);
    mx_hub_close(&none);
    unsetenv("HF_TOKEN");
    setenv("HF_ENDPOINT", "ftp://x", 1);
    assert_int_equal(mx_hub_open(&none, NULL), MX_INVALID_ARGUMENT);
    mx_hub_close(&none);
    clear_environment();
}

/* ---- mxrun.lock and the cache ------------------------------------------------------------------------------------ */
#define COMMIT "6cee5e81ee83917806bbde320786a8fb61efebee"

static void pins_come_back_as_they_were(void **state) {
    (void)state;
    mx_pins pins = {0}, again;
    mx_error error = {0};
    assert_true(mx_pins_set_revision(&pins, "main", COMMIT));
    assert_true(mx_pins_set_file(&pins, COMMIT, "a name/with blanks", 7, "etag", ""));
    assert_true(mx_pins_set_file(&pins, COMMIT, "b", 8, SHA, SHA));
    assert_int_equal(mx_pins_write(folder, &pins, NULL), MX_OK);
    assert_int_equal(mx_pins_read(folder, &again, NULL), MX_OK);
    assert_string_equal(mx_pins_commit(&again, "main"), COMMIT);
    assert_null(mx_pins_commit(&again, "v2"));
    const mx_pinned_file *a = mx_pins_file(&again, COMMIT, "a name/with blanks");
    assert_non_null(a);
    assert_int_equal(a->size, 7);
    assert_string_equal(a->etag, "etag");
    assert_string_equal(a->sha256, "");
    assert_string_equal(mx_pins_file(&again, COMMIT, "b")->sha256, SHA);
    mx_pins_drop_commit(&again, COMMIT);
    assert_int_equal(again.files + again.revisions, 0);
    mx_pins_free(&pins);
    mx_pins_free(&again);
    static const char *const wrong[] = {
        "revision main\n",          "revision main xyz\n",          "file " COMMIT " 7 etag - ../x\n", "nonsense\n",
        "file " COMMIT " 7 etag\n", "file " COMMIT " x etag - a\n", "file " COMMIT " 7 etag zz a\n",   "file \n"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_file("mxrun.lock", wrong[i]);
        if (mx_pins_read(folder, &again, &error) != MX_INVALID_FILE) fail_msg("%s was taken", wrong[i]);
        assert_non_null(strstr(error.text, "mxrun.lock:1: "));
        mx_pins_free(&again);
    }
}

static void files_are_published_with_links_and_without(void **state) {
    (void)state;
    char path[MX_HUB_PATH + 16], target[MX_HUB_PATH], snapshot[MX_HUB_PATH];
    mx_error error = {0};
    snprintf(path, sizeof path, "%s/blobs", folder);
    assert_int_equal(mkdir(path, 0777), 0);
    snprintf(snapshot, sizeof snapshot, "%s/snapshots/" COMMIT, folder);
    write_file("blobs/one", "1");
    write_file("blobs/two", "2");
    snprintf(path, sizeof path, "%s/.mxrun-probe", folder);
    for (int i = 0; i < 3; i++) { /* whatever was left there */
        if (i) assert_int_equal(i == 1 ? symlink("blobs", path) : mkdir(path, 0777), 0);
        assert_true(mx_has_links(folder));
    }
    assert_int_equal(rmdir(path), 0);
    for (int i = 0; i < 2; i++) /* the second time it replaces the link */
        if (mx_publish_file(folder, snapshot, "a/b.json", "one", MX_PUBLISH_LINK, &error)) fail_msg("%s", error.text);
    if (mx_publish_file(folder, snapshot, "twin.json", "two", MX_PUBLISH_COPY, &error)) fail_msg("%s", error.text);
    if (mx_publish_file(folder, snapshot, "c.json", "two", MX_PUBLISH_MOVE, &error)) fail_msg("%s", error.text);
    snprintf(path, sizeof path, "%s/twin.json", snapshot);
    assert_int_equal(access(path, R_OK), 0);
    snprintf(path, sizeof path, "%s/a/b.json", snapshot);
    const ssize_t size = readlink(path, target, sizeof target - 1);
    assert_true(size > 0);
    target[size] = 0;
    assert_string_equal(target, "../../../blobs/one");
    assert_int_equal(access(path, R_OK), 0);
    struct stat info;
    snprintf(path, sizeof path, "%s/c.json", snapshot);
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISREG(info.st_mode));
    assert_int_not_equal(mx_publish_file(folder, snapshot, "d", "none", MX_PUBLISH_MOVE, &error), MX_OK);
    char commit[MX_COMMIT_TEXT];
    if (mx_refs_write(folder, "refs/pr/1", COMMIT, &error)) fail_msg("%s", error.text);
    mx_refs_read(folder, "refs/pr/1", commit);
    assert_string_equal(commit, COMMIT);
    mx_refs_read(folder, "main", commit);
    assert_string_equal(commit, "");
}

static void folders_that_are_links_are_not_followed(void **state) {
    (void)state;
    char path[MX_HUB_PATH + 32], snapshot[MX_HUB_PATH];
    mx_error error = {0};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, i ? "linked" : "outside");
        assert_int_equal(mkdir(path, 0777), 0);
    }
    write_file("outside/precious", "1");
    write_file("linked/file", "1");
    snprintf(snapshot, sizeof snapshot, "%s/linked", folder);
    snprintf(path, sizeof path, "%s/a", snapshot);
    assert_int_equal(symlink("../outside", path), 0);
    for (int copy = 0; copy < 2; copy++) {
        assert_int_equal(
            mx_publish_file(folder, snapshot, "a/b", "one", copy ? MX_PUBLISH_COPY : MX_PUBLISH_LINK, &error), MX_IO);
        assert_non_null(strstr(error.text, "linked/a: this is a link"));
    }
    snprintf(path, sizeof path, "%s/outside/b", folder);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(mx_clear_folder(snapshot, &error), MX_OK); /* a link in it */
    assert_int_not_equal(access(snapshot, F_OK), 0);
    assert_int_equal(symlink("outside", snapshot), 0);
    assert_int_equal(mx_clear_folder(snapshot, &error), MX_OK); /* a link in its stead */
    struct stat info;
    assert_int_not_equal(lstat(snapshot, &info), 0);
    snprintf(path, sizeof path, "%s/outside/precious", folder);
    assert_int_equal(access(path, F_OK), 0);
}

static void git_names_are_gits(void **state) {
    (void)state;
    char name[41];
    assert_int_equal(mx_git_sha1_file(write_file("hello", "hello\n"), name, NULL, NULL), MX_OK);
    assert_string_equal(name, "ce013625030ba8dba906f756967f9e9ca394464a"); /* git hash-object */
    const sig_atomic_t stop = 1;
    assert_int_equal(mx_git_sha1_file(write_file("hello", "hello\n"), name, &stop, NULL), MX_CANCELLED);
    assert_int_equal(mx_git_sha1_file("/no/such/file", name, NULL, NULL), MX_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_list_of_the_program_is_read),
        cmocka_unit_test(wrong_lines_are_named),
        cmocka_unit_test(a_later_list_adds_and_replaces),
        cmocka_unit_test(what_comes_along_is_of_the_first_list),
        cmocka_unit_test(names_become_targets),
        cmocka_unit_test(only_what_is_needed_is_chosen),
        cmocka_unit_test(the_environment_is_that_of_huggingface_hub),
        cmocka_unit_test(pins_come_back_as_they_were),
        cmocka_unit_test(files_are_published_with_links_and_without),
        cmocka_unit_test(folders_that_are_links_are_not_followed),
        cmocka_unit_test(git_names_are_gits),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
