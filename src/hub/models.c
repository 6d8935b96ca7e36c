#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hub/private.h"

/* ---- strings ----------------------------------------------------------------------------------------------------- */
bool mx_strings_add(mx_strings *s, const char *text) {
    if (s->count == s->capacity) {
        const int capacity = s->capacity ? 2 * s->capacity : 8;
        char **more = realloc(s->text, (size_t)capacity * sizeof *more);
        if (!more) return false;
        s->text = more;
        s->capacity = capacity;
    }
    char *copy = strdup(text);
    if (copy) s->text[s->count++] = copy;
    return copy != NULL;
}

bool mx_strings_have(const mx_strings *s, const char *text) {
    for (int i = 0; i < s->count; i++)
        if (!strcmp(s->text[i], text)) return true;
    return false;
}

void mx_strings_free(mx_strings *s) {
    for (int i = 0; i < s->count; i++) free(s->text[i]);
    free(s->text);
    *s = (mx_strings){0};
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */
const char *mx_hub_layout_name(mx_hub_layout layout) {
    static const char *const names[] = {"any", "hf", "gguf", "original"};
    return names[layout];
}

static void free_model(mx_known_model *m) {
    free(m->name);
    free(m->repository);
    free(m->revision);
    free(m->licence);
    mx_strings_free(&m->aliases);
    for (int i = 0; i < m->file_count; i++) free(m->files[i].path);
    free(m->files);
}

void mx_models_free(mx_models *models) {
    for (int i = 0; i < models->count; i++) free_model(&models->model[i]);
    free(models->model);
    mx_strings_free(&models->sources);
    *models = (mx_models){0};
}

/* The later list goes first; in each, names before aliases. */
const mx_known_model *mx_models_find(const mx_models *models, const char *name) {
    for (int g = models->generations - 1; g >= 0; g--) {
        for (int i = 0; i < models->count; i++)
            if (models->model[i].generation == g && !strcmp(models->model[i].name, name)) return &models->model[i];
        for (int i = 0; i < models->count; i++)
            if (models->model[i].generation == g && mx_strings_have(&models->model[i].aliases, name))
                return &models->model[i];
    }
    return NULL;
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */
enum { MOST_WORDS = 64 };
typedef struct reader {
    mx_models *models;
    const char *source;
    int line, words;
    char *word[MOST_WORDS + 1]; /* word[0] is the field */
    int current;                /* model that is being read; -1: none yet */
    mx_error *error;
} reader;

static mx_status no_memory(reader *r) {
    return mx_fail(r->error, MX_NO_MEMORY, "%s: out of memory", r->source);
}

static bool is_made_of(const char *text, const char *others) {
    for (const char *p = text; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr(others, *p)) return false;
    return *text && *text != '-' && *text != '.';
}

/* A name that is taken in the same list already, or for ever. */
static mx_status check_free(reader *r, const char *name) {
    for (int i = 0; i < r->models->count; i++) {
        const mx_known_model *m = &r->models->model[i];
        const bool ours = m->generation < r->models->generations - 1 && !strcmp(m->repository, "-");
        if (ours && (!strcmp(m->name, name) || mx_strings_have(&m->aliases, name)))
            return mx_fail(r->error, MX_INVALID_FILE,
                           "%s:%d: %s: \"%s\" is the model that comes with mxrun; give this one another name",
                           r->source, r->line, r->word[0], name);
        if (m->generation != r->models->generations - 1) continue;
        if (!strcmp(m->name, name) || mx_strings_have(&m->aliases, name))
            return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: \"%s\" already names the model of line %d", r->source,
                           r->line, r->word[0], name, m->line);
    }
    return MX_OK;
}

static mx_status take_model(reader *r) {
    mx_models *const all = r->models;
    const char *name = r->word[1];
    if (!is_made_of(name, "._-") || strlen(name) >= MX_REPOSITORY)
        return mx_fail(r->error, MX_INVALID_FILE,
                       "%s:%d: model: \"%s\" is no name: letters, digits and . _ -, with a letter or digit first",
                       r->source, r->line, name);
    mx_status status = check_free(r, name);
    if (status) return status;
    for (int i = 0; i < all->count; i++) {
        if (strcmp(all->model[i].name, name) != 0) continue;
        free_model(&all->model[i]);
        memmove(&all->model[i], &all->model[i + 1], (size_t)(all->count - i - 1) * sizeof *all->model);
        all->count--;
        break;
    }
    if (all->count == all->capacity) {
        const int capacity = all->capacity ? 2 * all->capacity : 16;
        mx_known_model *more = realloc(all->model, (size_t)capacity * sizeof *more);
        if (!more) return no_memory(r);
        all->model = more;
        all->capacity = capacity;
    }
    mx_known_model *m = &all->model[all->count];
    *m = (mx_known_model){
        .name = strdup(name), .source = r->source, .line = r->line, .generation = all->generations - 1};
    if (!m->name) return no_memory(r);
    r->current = all->count++;
    return MX_OK;
}

static mx_status take_aliases(reader *r) {
    for (int i = 1; i < r->words; i++) {
        if (!is_made_of(r->word[i], "._-:") || strlen(r->word[i]) >= MX_REPOSITORY)
            return mx_fail(r->error, MX_INVALID_FILE,
                           "%s:%d: alias: \"%s\" is no name: letters, digits and . _ - :, with a letter or digit first",
                           r->source, r->line, r->word[i]);
        mx_status status = check_free(r, r->word[i]);
        if (status) return status;
        if (!mx_strings_add(&r->models->model[r->current].aliases, r->word[i])) return no_memory(r);
    }
    return MX_OK;
}

static mx_status take_text(reader *r, char **into) {
    if (*into)
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: model \"%s\" has one already", r->source, r->line,
                       r->word[0], r->models->model[r->current].name);
    *into = strdup(r->word[1]);
    return *into ? MX_OK : no_memory(r);
}

static mx_status take_repository(reader *r) {
    const char *text = r->word[1];
    if (strcmp(text, "-") != 0 && !mx_is_repository(text))
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: repository: \"%s\" is neither ORG/NAME nor -", r->source,
                       r->line, text);
    if (!strcmp(text, "-") && r->models->generations > 1)
        return mx_fail(r->error, MX_INVALID_FILE,
                       "%s:%d: repository: - is for what comes with mxrun; give ORG/NAME, or -m the path of a model",
                       r->source, r->line);
    return take_text(r, &r->models->model[r->current].repository);
}

static mx_status take_revision(reader *r) {
    if (!mx_is_revision(r->word[1]))
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: revision: \"%s\" is no branch, tag or commit", r->source,
                       r->line, r->word[1]);
    return take_text(r, &r->models->model[r->current].revision);
}

static mx_status take_licence(reader *r) {
    return take_text(r, &r->models->model[r->current].licence);
}

static mx_status take_layout(reader *r) {
    mx_hub_layout *layout = &r->models->model[r->current].layout;
    if (*layout)
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: layout: model \"%s\" has one already", r->source, r->line,
                       r->models->model[r->current].name);
    for (mx_hub_layout l = MX_HUB_HF; l <= MX_HUB_ORIGINAL; l++)
        if (!strcmp(r->word[1], mx_hub_layout_name(l))) *layout = l;
    return *layout ? MX_OK
                   : mx_fail(r->error, MX_INVALID_FILE, "%s:%d: layout: \"%s\" is not hf, gguf or original", r->source,
                             r->line, r->word[1]);
}

static mx_status take_file(reader *r) {
    mx_known_model *m = &r->models->model[r->current];
    const char *field = r->word[0], *path = r->word[1], *size = r->word[2], *sha256 = r->word[3];
    mx_listed_file file = {.size = -1, .optional = *field == 'o', .line = r->line};
    if (!mx_is_file_name(path))
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: \"%s\" is no path inside a repository", r->source,
                       r->line, field, path);
    for (int i = 0; i < m->file_count; i++)
        if (!strcmp(m->files[i].path, path))
            return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: %s is in line %d already", r->source, r->line, field,
                           path, m->files[i].line);
    if (strcmp(size, "-") != 0 && !mx_parse_size(size, &file.size))
        return mx_fail(r->error, MX_INVALID_FILE,
                       "%s:%d: %s: size \"%s\" of %s is no number of bytes; write - where it is not known", r->source,
                       r->line, field, size, path);
    if (strcmp(sha256, "-") != 0) {
        if (!mx_is_hexadecimal(sha256, 64))
            return mx_fail(r->error, MX_INVALID_FILE,
                           "%s:%d: %s: SHA-256 \"%s\" of %s is not 64 hexadecimal digits in lower case; write - where "
                           "it is not known",
                           r->source, r->line, field, sha256, path);
        memcpy(file.sha256, sha256, sizeof file.sha256);
    }
    mx_listed_file *more = realloc(m->files, ((size_t)m->file_count + 1) * sizeof *more);
    if (!more) return no_memory(r);
    m->files = more;
    file.path = strdup(path);
    if (!file.path) return no_memory(r);
    m->files[m->file_count++] = file;
    return MX_OK;
}

static const struct {
    const char *name, *form;
    int least, most; /* words behind it */
    mx_status (*take)(reader *r);
} fields[] = {
    {"model", "model NAME", 1, 1, take_model},
    {"alias", "alias NAME...", 1, MOST_WORDS, take_aliases},
    {"repository", "repository ORG/NAME", 1, 1, take_repository},
    {"revision", "revision REVISION", 1, 1, take_revision},
    {"licence", "licence NAME", 1, 1, take_licence},
    {"layout", "layout hf|gguf|original", 1, 1, take_layout},
    {"file", "file PATH SIZE SHA256", 3, 3, take_file},
    {"optional", "optional PATH SIZE SHA256", 3, 3, take_file},
};

/* ---- the file ---------------------------------------------------------------------------------------------------- */
/* At the end of a model. */
static mx_status finish(reader *r) {
    if (r->current < 0) return MX_OK;
    mx_known_model *m = &r->models->model[r->current];
    const char *missing = !m->repository ? "repository" : !m->layout ? "layout" : NULL;
    if (missing)
        return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: model \"%s\" has no line \"%s\"", r->source, m->line, m->name,
                       missing);
    if (!m->revision && !(m->revision = strdup("main"))) return no_memory(r);
    if (!m->licence && !(m->licence = strdup("-"))) return no_memory(r);
    return MX_OK;
}

static mx_status take_line(reader *r, char *line) {
    r->words = 0;
    for (char *rest = line, *word; (word = strsep(&rest, " \t\r"));) {
        if (!*word) continue;
        if (r->words > MOST_WORDS)
            return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: more than %d words", r->source, r->line, MOST_WORDS);
        r->word[r->words++] = word;
    }
    if (r->words == 0 || r->word[0][0] == '#') return MX_OK;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(fields[i].name, r->word[0]) != 0) continue;
        if (r->words - 1 < fields[i].least || r->words - 1 > fields[i].most)
            return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: %d values, expected \"%s\"", r->source, r->line,
                           r->word[0], r->words - 1, fields[i].form);
        if (fields[i].take == take_model) {
            mx_status status = finish(r);
            if (status) return status;
        } else if (r->current < 0) {
            return mx_fail(r->error, MX_INVALID_FILE, "%s:%d: %s: stands before the first \"model NAME\"", r->source,
                           r->line, r->word[0]);
        }
        return fields[i].take(r);
    }
    return mx_fail(r->error, MX_INVALID_FILE,
                   "%s:%d: there is no field \"%.40s\"; model, alias, repository, revision, licence, layout, file and "
                   "optional are",
                   r->source, r->line, r->word[0]);
}

mx_status mx_models_add(mx_models *models, const char *path, bool optional, mx_error *error) {
    if (optional && access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR)) return MX_OK;
    mx_bytes text = {0};
    mx_status status = mx_read_regular_file(path, (size_t)256 << 10, &text, error);
    if (!status && text.data && memchr(text.data, 0, text.size))
        status = mx_fail(error, MX_INVALID_FILE, "%s: holds a zero byte: this is no text", path);
    if (!status && !mx_strings_add(&models->sources, path))
        status = mx_fail(error, MX_NO_MEMORY, "%s: out of memory", path);
    if (!status) {
        reader r = {
            .models = models, .source = models->sources.text[models->sources.count - 1], .current = -1, .error = error};
        models->generations++;
        for (char *rest = text.data, *line; !status && rest && (line = strsep(&rest, "\n"));) {
            r.line++;
            status = take_line(&r, line);
        }
        if (!status) status = finish(&r);
    }
    mx_bytes_free(&text);
    return status;
}
