#include "convert/record.h"
#include "base/bytes.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "model/show.h"

enum { FILE_LIMIT = 64 << 20, MOST_FILES = 1000, HEADER_LIMIT = 16 << 20 };

/* ---- entries ------------------------------------------------------------------------------------------------------
 */

/* Another entry; NULL: no memory. */
static mx_record_entry *append(mx_record_entry **list, int *count, const char *name, size_t size) {
    mx_record_entry *more = realloc(*list, (size_t)(*count + 1) * sizeof *more);
    if (!more) return NULL;
    *list = more;
    char *own = strndup(name, size);
    if (!own) return NULL;
    more[*count] = (mx_record_entry){.name = own};
    return &more[(*count)++];
}

static void free_entries(mx_record_entry *list, int count) {
    for (int i = 0; i < count; i++) {
        free(list[i].name);
        mx_bytes_free(&list[i].content);
    }
    free(list);
}

void mx_record_free(mx_record *r) {
    free_entries(r->file, r->files);
    free_entries(r->shard, r->shards);
    *r = (mx_record){0};
}

const mx_bytes *mx_record_file(const mx_record *r, const char *name) {
    for (int i = 0; i < r->files; i++)
        if (!strcmp(r->file[i].name, name)) return &r->file[i].content;
    return NULL;
}

void mx_record_drop(mx_record *r, const char *name) {
    for (int i = 0; i < r->files; i++) {
        if (strcmp(r->file[i].name, name)) continue;
        free(r->file[i].name);
        mx_bytes_free(&r->file[i].content);
        memmove(r->file + i, r->file + i + 1, (size_t)(--r->files - i) * sizeof *r->file);
        return;
    }
}

void mx_record_make_stale(mx_record *r) {
    free_entries(r->shard, r->shards);
    r->shard = NULL;
    r->shards = 0;
    mx_record_drop(r, "model.safetensors.index.json");
    mx_record_drop(r, "config.json");
}

/* ---- of a folder --------------------------------------------------------------------------------------------------
 */

bool mx_record_carries(const char *name) {
    static const char *const names[] = {
        ".gitattributes",
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
        "README.md",
        "USAGE_POLICY",
        "USAGE_POLICY.md",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

static bool holds_weights(const char *name) {
    static const char *const ends[] = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".incomplete"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (mx_ends_with(name, ends[i])) return true;
    return !strcmp(name, MX_RECORD_FILE);
}

mx_status mx_record_add(mx_record *r, const char *folder, const char *name, mx_error *error) {
    char path[MX_PATH + 300];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) return MX_OK;
    if (info.st_size > FILE_LIMIT) {
        mx_log(MX_LOG_WARNING, "%s: has %lld MB, the limit is %d: it is not carried along", path,
               (long long)info.st_size >> 20, FILE_LIMIT >> 20);
        return MX_OK;
    }
    mx_record_entry *e = append(&r->file, &r->files, name, strlen(name));
    if (!e) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for it", path);
    return mx_read_regular_file(path, FILE_LIMIT, &e->content, error);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of what the folder holds, from malloc, each too; sorted. NULL: errno. */
static char **list_folder(const char *folder, int *count) {
    DIR *dir = opendir(folder);
    char **list = dir ? calloc(MOST_FILES, sizeof *list) : NULL;
    *count = 0;
    for (struct dirent *e; list && *count < MOST_FILES && (e = readdir(dir));)
        if (*e->d_name != '.' && !holds_weights(e->d_name) && (list[*count] = strdup(e->d_name))) ++*count;
    if (list && *count == MOST_FILES)
        mx_log(MX_LOG_WARNING, "%s: holds %d files or more beside the weights: not all are carried along", folder,
               MOST_FILES);
    if (dir) closedir(dir);
    if (list) qsort(list, (size_t)*count, sizeof *list, by_name);
    return list;
}

static mx_status add_files(mx_record *r, const char *folder, mx_error *error) {
    int count;
    char **name = list_folder(folder, &count);
    mx_status status = name ? MX_OK : mx_fail(error, MX_IO, "%s: %s", folder, strerror(errno));
    for (int i = 0; i < count && !status; i++) status = mx_record_add(r, folder, name[i], error);
    for (int i = 0; i < count; i++) free(name[i]);
    free(name);
    return status;
}

static mx_status add_header(mx_record *r, const char *path, mx_error *error) {
    FILE *f = fopen(path, "rbe");
    uint64_t size = 0;
    const char *name = strrchr(path, '/');
    mx_record_entry *e = append(&r->shard, &r->shards, name ? name + 1 : path, strlen(name ? name + 1 : path));
    char *data = NULL;
    mx_status status = MX_OK;
    if (!e)
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for its header", path);
    else if (!f || fread(&size, 8, 1, f) != 1 || size > HEADER_LIMIT || !(data = malloc(size + 1)) ||
             fread(data, 1, size, f) != size)
        status = mx_fail(error, MX_IO, "%s: its header cannot be read a second time", path);
    else if (!mx_bytes_add(&e->content, data, size))
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for its header", path);
    free(data);
    if (f) fclose(f);
    return status;
}

mx_status mx_record_of_folder(mx_record *r, const char *folder, const mx_checkpoint *ck, mx_error *error) {
    mx_status status = add_files(r, folder, error);
    for (int i = 0; i < mx_checkpoint_count(ck) && !status; i++) {
        const char *file = mx_checkpoint_at(ck, i)->file, *name = strrchr(file, '/');
        bool had = false;
        for (int j = 0; j < r->shards; j++) had |= !strcmp(r->shard[j].name, name ? name + 1 : file);
        if (!had) status = add_header(r, file, error);
    }
    return status;
}

/* ---- of keys ------------------------------------------------------------------------------------------------------
 */

static bool is_file_name(const mx_gguf_string *s) {
    return s->size && s->size < 256 && *s->text != '.' && !memchr(s->text, '/', s->size) &&
           !memchr(s->text, '\\', s->size) && mx_is_one_line(s->text, s->size);
}

static mx_status read_list(const mx_gguf *g, const char *names, const char *contents, mx_record_entry **list,
                           int *count, mx_error *error) {
    const mx_gguf_value *n = mx_gguf_find(g, names), *c = mx_gguf_find(g, contents);
    uint64_t n_at = 0, c_at = 0;
    mx_gguf_string name, content;
    if (!n && !c) return MX_OK;
    while (mx_gguf_next_string(n, &n_at, &name)) {
        bool ok = is_file_name(&name) && *count < MOST_FILES && mx_gguf_next_string(c, &c_at, &content);
        for (int i = 0; i < *count && ok; i++)
            ok = strlen((*list)[i].name) != name.size || memcmp((*list)[i].name, name.text, name.size);
        if (!ok)
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: %s: expected names of files, each once, and as many strings in %s", g->file.path, names,
                           contents);
        mx_record_entry *e = append(list, count, name.text, name.size);
        if (!e || (content.size && !mx_bytes_add(&e->content, content.text, content.size)))
            return mx_fail(error, MX_NO_MEMORY, "%s: no memory for the files it carries", g->file.path);
    }
    return MX_OK;
}

mx_status mx_record_of_gguf(mx_record *r, const mx_gguf *g, mx_error *error) {
    mx_status status = read_list(g, "mxrun.source.files", "mxrun.source.contents", &r->file, &r->files, error);
    return status ? status : read_list(g, "mxrun.source.shards", "mxrun.source.headers", &r->shard, &r->shards, error);
}

static void put_list(mx_gguf_text *g, const char *names, const char *contents, const mx_record_entry *list, int count) {
    if (!count) return;
    mx_gguf_put_array(g, names, MX_GGUF_STRING, (uint64_t)count);
    for (int i = 0; i < count; i++) mx_gguf_add_string(g, list[i].name, strlen(list[i].name));
    mx_gguf_put_array(g, contents, MX_GGUF_STRING, (uint64_t)count);
    for (int i = 0; i < count; i++) mx_gguf_add_string(g, list[i].content.data, list[i].content.size);
}

void mx_record_put(const mx_record *r, mx_gguf_text *g) {
    put_list(g, "mxrun.source.files", "mxrun.source.contents", r->file, r->files);
    put_list(g, "mxrun.source.shards", "mxrun.source.headers", r->shard, r->shards);
}
