#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "hub/private.h"

/* ---- what may stand in names ------------------------------------------------------------------------------------- */
static bool has_only(const char *text, size_t size, const char *others) {
    for (size_t i = 0; i < size; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr(others, text[i])) return false;
    return size > 0;
}

bool mx_is_repository(const char *text) {
    const char *slash = strchr(text, '/');
    if (!slash || strchr(slash + 1, '/') || strlen(text) >= MX_REPOSITORY || strstr(text, "..") || strstr(text, "--"))
        return false;
    return has_only(text, (size_t)(slash - text), "._-") && has_only(slash + 1, strlen(slash + 1), "._-") &&
           text[0] != '.' && text[0] != '-' && slash[1] != '.' && slash[1] != '-';
}

/* A path whose parts are names. */
static bool is_relative_path(const char *text) {
    for (const char *part = text; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL) {
        const size_t size = strcspn(part, "/");
        if (size == 0 || (size == 1 && part[0] == '.') || (size == 2 && part[0] == '.' && part[1] == '.')) return false;
    }
    for (const char *p = text; *p; p++)
        if ((unsigned char)*p < 32 || *p == 127 || *p == '\\') return false;
    return true;
}

bool mx_is_revision(const char *text) {
    return strlen(text) < MX_REVISION && is_relative_path(text) && !strpbrk(text, " :@?#%") && text[0] != '-';
}

bool mx_is_file_name(const char *text) {
    return strlen(text) < MX_FILE_NAME && is_relative_path(text);
}

bool mx_is_hexadecimal(const char *text, size_t digits) {
    return strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

bool mx_is_commit(const char *text) {
    return mx_is_hexadecimal(text, 40) || mx_is_hexadecimal(text, 64);
}

bool mx_parse_size(const char *text, int64_t *out) {
    if (!*text || strspn(text, "0123456789") != strlen(text)) return false;
    errno = 0;
    const long long value = strtoll(text, NULL, 10);
    if (errno) return false;
    *out = value;
    return true;
}

void mx_set_text(char *out, size_t size, const char *text) {
    const size_t length = strnlen(text, size - 1);
    memmove(out, text, length);
    out[length] = 0;
}

/* ---- names that are near ----------------------------------------------------------------------------------------- */
enum { MOST_LETTERS = 64, NEAR = 3 };

static int least(int a, int b) {
    return a < b ? a : b;
}

/* Levenshtein's distance without regard to case; what is longer than MOST_LETTERS is far from everything. */
static int distance(const char *a, const char *b) {
    const size_t n = strlen(a), m = strlen(b);
    if (n > MOST_LETTERS || m > MOST_LETTERS) return 1000;
    int row[MOST_LETTERS + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int corner = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            const int differs = tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]);
            const int best = least(corner + differs, least(row[j], row[j - 1]) + 1);
            corner = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

/* "gpt-oss-20b, gpt-oss-120b": those that are at most a third away, or that begin with it; "" none. */
static void near_names(const mx_models *models, const char *text, char out[static 300]) {
    out[0] = 0;
    for (int most = 0, told = 0; most < 100 && told < NEAR; most++) {
        for (int i = 0; i < models->count && told < NEAR; i++) {
            const mx_known_model *m = &models->model[i];
            int d = strncasecmp(m->name, text, strlen(text)) ? distance(text, m->name) : 1;
            for (int a = 0; a < m->aliases.count; a++) d = least(d, distance(text, m->aliases.text[a]));
            if (d != most || 3 * d > (int)strlen(text) + 2) continue;
            const size_t used = strlen(out);
            snprintf(out + used, 300 - used, "%s%s", told ? ", " : "", m->name);
            told++;
        }
    }
}

static mx_status unknown_name(const mx_models *models, const char *text, mx_error *error) {
    char near[300];
    near_names(models, text, near);
    if (*near)
        return mx_fail(error, MX_NOT_FOUND,
                       "%.200s: there is no such folder or file, and models.txt has no such name; did you mean %s? "
                       "(\"mxrun list --all\" shows all)",
                       text, near);
    return mx_fail(error, MX_NOT_FOUND,
                   "%.200s: there is no such folder or file, and models.txt has no such name; give a path, one of "
                   "\"mxrun list --all\", or ORG/NAME on the Hugging Face hub",
                   text);
}

/* ---- what -m names ----------------------------------------------------------------------------------------------- */
static void use_known(mx_target *out, const mx_known_model *m) {
    mx_set_text(out->name, sizeof out->name, m->name);
    mx_set_text(out->repository, sizeof out->repository, m->repository);
    mx_set_text(out->revision, sizeof out->revision, m->revision);
    out->layout = m->layout;
    out->known = m;
}

static const mx_known_model *known_repository(const mx_models *models, const char *repository) {
    for (int g = models->generations - 1; g >= 0; g--)
        for (int i = 0; i < models->count; i++)
            if (models->model[i].generation == g && !strcmp(models->model[i].repository, repository))
                return &models->model[i];
    return NULL;
}

/* Takes "BASE[@REVISION][:FILE]" apart. */
static mx_status take_apart(const char *text, char base[static MX_REPOSITORY], mx_target *out, mx_error *error) {
    const char *at = strchr(text, '@');
    const char *slash = strchr(text, '/');
    const char *colon = strchr(at ? at : slash ? slash : text, ':');
    const char *end = at ? at : colon ? colon : text + strlen(text);
    if (colon) {
        if (!mx_is_file_name(colon + 1))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s: \"%.200s\" behind the colon is no file of a repository",
                           text, colon + 1);
        mx_set_text(out->file, sizeof out->file, colon + 1);
        out->layout = MX_HUB_GGUF;
    }
    snprintf(out->revision, sizeof out->revision, "main");
    if (at) {
        const size_t size = colon ? (size_t)(colon - at - 1) : strlen(at + 1);
        if (size >= sizeof out->revision)
            return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s: the revision behind @ is too long", text);
        memcpy(out->revision, at + 1, size);
        out->revision[size] = 0;
        if (!mx_is_revision(out->revision))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s: \"%.200s\" behind @ is no branch, tag or commit", text,
                           out->revision);
    }
    const size_t size = (size_t)(end - text);
    if (size >= MX_REPOSITORY)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s...: the name of a repository has fewer than %d bytes", text,
                       MX_REPOSITORY);
    memcpy(base, text, size);
    base[size] = 0;
    return MX_OK;
}

mx_status mx_target_parse(const mx_models *models, const char *text, mx_target *out, mx_error *error) {
    *out = (mx_target){0};
    const mx_known_model *known = mx_models_find(models, text);
    if (known) {
        use_known(out, known);
        return MX_OK;
    }
    if (strlen(text) >= sizeof out->name)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s...: the name of a model is shorter than %zu bytes", text,
                       sizeof out->name);
    char base[MX_REPOSITORY];
    mx_status status = take_apart(text, base, out, error);
    if (status) return status;
    known = strchr(base, '/') ? known_repository(models, base) : mx_models_find(models, base);
    const bool same = known && !out->file[0] && (!strchr(text, '@') || !strcmp(out->revision, known->revision));
    if (same) {
        use_known(out, known);
        return MX_OK;
    }
    if (known && strchr(base, '/') == NULL) {
        if (!strcmp(known->repository, "-"))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s: \"%s\" comes with mxrun, it has no revisions or files",
                           text, known->name);
        mx_set_text(base, sizeof base, known->repository);
        if (!out->file[0]) out->layout = known->layout;
    }
    if (!strchr(base, '/')) return unknown_name(models, text, error);
    if (!mx_is_repository(base))
        return mx_fail(error, MX_NOT_FOUND,
                       "%.200s: there is no such folder or file, and it is no ORG/NAME[@REVISION][:FILE.gguf] of a "
                       "repository",
                       text);
    mx_set_text(out->name, sizeof out->name, text);
    mx_set_text(out->repository, sizeof out->repository, base);
    return MX_OK;
}

/* "x-00002-of-00003.gguf": its part and parts; false where it is in one piece. */
static bool split_of(const char *path, int *part, int *parts, size_t *stem) {
    enum { TAIL = sizeof "-00001-of-00003.gguf" - 1 };
    const size_t size = strlen(path);
    if (size <= TAIL) return false;
    int used = 0;
    *stem = size - TAIL;
    return sscanf(path + *stem, "-%5d-of-%5d.gguf%n", part, parts, &used) == 2 && used == TAIL && *part >= 1 &&
           *parts >= *part && *parts <= MX_MOST_FILES;
}

static mx_status add(mx_strings *to, const char *path, mx_error *error) {
    if (to && to->count >= MX_MOST_FILES)
        return mx_fail(error, MX_INVALID_FILE, "more than %d files of one model", MX_MOST_FILES);
    if (!to || mx_strings_have(to, path) || mx_strings_add(to, path)) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "out of memory");
}

/* The model that a GGUF file belongs to: all its parts. */
static mx_status add_gguf(const char *path, mx_strings *needed, mx_error *error) {
    int part, parts;
    size_t stem;
    if (!split_of(path, &part, &parts, &stem)) return add(needed, path, error);
    for (int i = 1; i <= parts; i++) {
        char name[MX_FILE_NAME + 32];
        snprintf(name, sizeof name, "%.*s-%05d-of-%05d.gguf", (int)stem, path, i, parts);
        mx_status status = add(needed, name, error);
        if (status) return status;
    }
    return MX_OK;
}

static mx_status choose_gguf(const mx_target *target, const mx_strings *there, mx_strings *needed, mx_error *error) {
    const char *found = NULL;
    mx_bytes all = {0};
    int models = 0;
    for (int i = 0; i < there->count; i++) {
        const char *path = there->text[i], *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
        int part, parts;
        size_t stem;
        if (!mx_ends_with(path, ".gguf") || !strncmp(base, "mmproj", 6)) continue;
        if (target->file[0] && (!strcmp(path, target->file) || !strcmp(base, target->file))) {
            mx_bytes_free(&all);
            return add_gguf(path, needed, error);
        }
        if (split_of(path, &part, &parts, &stem) && part != 1) continue;
        if (all.size < 600) mx_bytes_addf(&all, "%s%s", models ? ", " : "", path);
        found = path;
        models++;
    }
    mx_status status = MX_OK;
    if (target->file[0])
        status = mx_fail(error, MX_NOT_FOUND, "%.200s: %s has no %.200s; GGUF files there: %.500s", target->name,
                         target->repository, target->file, models ? all.data : "none");
    else if (models > 1)
        status =
            mx_fail(error, MX_INVALID_ARGUMENT, "%.200s: several models are there, name one as %s:FILE.gguf: %.600s",
                    target->name, target->repository, all.data ? all.data : "");
    else if (models == 1)
        status = add_gguf(found, needed, error);
    mx_bytes_free(&all);
    return status;
}

static mx_status choose_hf(const mx_strings *there, mx_strings *needed, mx_strings *wanted, mx_error *error) {
    static const char *const small[] = {"config.json", "tokenizer.json"};
    static const char *const optional[] = {"generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
                                           "chat_template.jinja", "chat_template.json"};
    const bool sharded = mx_strings_have(there, "model.safetensors.index.json");
    mx_status status = MX_OK;
    for (size_t i = 0; i < sizeof small / sizeof *small && !status; i++) status = add(needed, small[i], error);
    if (!status) status = add(needed, sharded ? "model.safetensors.index.json" : "model.safetensors", error);
    for (int i = 0; i < there->count && sharded && !status; i++) {
        const char *path = there->text[i];
        if (!strchr(path, '/') && !strncmp(path, "model-", 6) && mx_ends_with(path, ".safetensors"))
            status = add(needed, path, error);
    }
    for (size_t i = 0; i < sizeof optional / sizeof *optional && !status; i++)
        if (mx_strings_have(there, optional[i])) status = add(wanted, optional[i], error);
    return status;
}

static mx_status choose_original(const mx_strings *there, mx_strings *needed, mx_strings *wanted, mx_error *error) {
    mx_status status = add(needed, "original/config.json", error);
    for (int i = 0; i < there->count && !status; i++) {
        const char *path = there->text[i];
        if (!strncmp(path, "original/", 9) && !strchr(path + 9, '/') && strcmp(path, "original/config.json") != 0)
            status =
                add(mx_ends_with(path, ".safetensors") || mx_ends_with(path, ".json") ? needed : wanted, path, error);
        if (!strcmp(path, "tokenizer.json")) status = add(needed, path, error);
        if (!strcmp(path, "tokenizer_config.json")) status = add(wanted, path, error);
    }
    return status;
}

static bool any(const mx_strings *there, const char *begin, const char *end) {
    for (int i = 0; i < there->count; i++)
        if (!strncmp(there->text[i], begin, strlen(begin)) && mx_ends_with(there->text[i], end)) return true;
    return false;
}

mx_status mx_choose_files(const mx_target *target, const mx_strings *there, mx_hub_layout *layout, mx_strings *needed,
                          mx_strings *wanted, mx_error *error) {
    mx_hub_layout l = target->file[0] ? MX_HUB_GGUF : target->layout;
    if (l == MX_HUB_ANY) {
        if (mx_strings_have(there, "model.safetensors") || mx_strings_have(there, "model.safetensors.index.json"))
            l = MX_HUB_HF;
        else if (any(there, "", ".gguf"))
            l = MX_HUB_GGUF;
        else if (any(there, "original/", ".safetensors"))
            l = MX_HUB_ORIGINAL;
        else
            return mx_fail(error, MX_NOT_FOUND,
                           "%.200s: %s at %.60s has none of the layouts that mxrun reads: model.safetensors (or its "
                           "shards with an index), .gguf, original/*.safetensors",
                           target->name, target->repository, target->revision);
    }
    *layout = l;
    if (l == MX_HUB_HF) return choose_hf(there, needed, wanted, error);
    return l == MX_HUB_GGUF ? choose_gguf(target, there, needed, error) : choose_original(there, needed, wanted, error);
}
