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

enum { FILE_LIMIT = 64 << 20, MOST_SHARDS = 1000, HEADER_LIMIT = 16 << 20 };

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
    mx_record_drop(r, "hf_quant_config.json");
}

/* ---- of a folder --------------------------------------------------------------------------------------------------
 */

/* What published repositories have beside their weights and folders. Nothing else is taken along: a model is passed on,
 * and a folder may hold what is not to be. */
static const char *const carried[] = {
    ".gitattributes",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "README.md",
    "USAGE_POLICY",
    "USAGE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
};
enum { CARRIED = sizeof carried / sizeof *carried };

bool mx_record_carries(const char *name) {
    for (int i = 0; i < CARRIED; i++)
        if (!strcmp(name, carried[i])) return true;
    return false;
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

/* The first names of a list that is left out. */
typedef struct left_out {
    char name[8][260];
    int count;
} left_out;

static void leave_out(left_out *l, const char *name, bool folder) {
    enum { SHOWN = sizeof l->name / sizeof *l->name };
    char shown[260];
    snprintf(shown, sizeof shown, "%.255s%s", mx_is_one_line(name, strlen(name)) ? name : "?", folder ? "/" : "");
    int i = l->count < SHOWN ? l->count : SHOWN;
    l->count++;
    while (i && strcmp(shown, l->name[i - 1]) < 0) i--;
    if (i == SHOWN) return;
    const int behind = (l->count < SHOWN ? l->count : SHOWN) - 1 - i;
    memmove(l->name[i + 1], l->name[i], (size_t)behind * sizeof *l->name);
    memcpy(l->name[i], shown, sizeof shown);
}

/* One line of the log, where there is something. */
static void tell_left_out(const left_out *l, const char *where) {
    char text[3000] = "";
    const int shown = l->count < 8 ? l->count : 8;
    size_t used = 0;
    for (int i = 0; i < shown; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i ? ", " : "", l->name[i]);
    if (l->count > shown) snprintf(text + used, sizeof text - used, " and %d more", l->count - shown);
    if (l->count) mx_log(MX_LOG_WARNING, "%s: not carried along: %s", where, text);
}

static bool is_shard(const mx_record *r, const char *name) {
    for (int i = 0; i < r->shards; i++)
        if (!strcmp(r->shard[i].name, name)) return true;
    return false;
}

/* Rounded experts that mxrun keeps beside a model (model/expert_cache.c): nothing of the model's. */
static bool is_kept(const char *name) {
    static const char begins[] = ".mxrun-experts-";
    return !strncmp(name, begins, sizeof begins - 1);
}

static mx_status find_left_out(const mx_record *r, const char *folder, mx_error *error) {
    left_out l = {0};
    struct stat info;
    DIR *dir = opendir(folder);
    if (!dir) return mx_fail(error, MX_IO, "%s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || is_shard(r, e->d_name)) continue;
        const bool is_folder = fstatat(dirfd(dir), e->d_name, &info, 0) == 0 && S_ISDIR(info.st_mode);
        if (!is_folder && is_kept(e->d_name)) continue;
        if (is_folder || !mx_record_carries(e->d_name)) leave_out(&l, e->d_name, is_folder);
    }
    closedir(dir);
    tell_left_out(&l, folder);
    return MX_OK;
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
    mx_status status = MX_OK;
    for (int i = 0; i < CARRIED && !status; i++) status = mx_record_add(r, folder, carried[i], error);
    for (int i = 0; i < mx_checkpoint_count(ck) && !status; i++) {
        const char *file = mx_checkpoint_at(ck, i)->file, *slash = strrchr(file, '/');
        if (!is_shard(r, slash ? slash + 1 : file)) status = add_header(r, file, error);
    }
    return status ? status : find_left_out(r, folder, error);
}

/* ---- of keys ------------------------------------------------------------------------------------------------------
 */

static bool is_file_name(const mx_gguf_string *s) {
    return s->size && s->size < 256 && (*s->text != '.' || (s->size == 14 && !memcmp(s->text, ".gitattributes", 14))) &&
           !memchr(s->text, '/', s->size) && !memchr(s->text, '\\', s->size) && mx_is_one_line(s->text, s->size);
}

/* `shards`: names of .safetensors; else those that are carried along, and *left the others. */
static mx_status read_list(const mx_gguf *g, const char *names, const char *contents, bool shards,
                           mx_record_entry **list, int *count, left_out *left, mx_error *error) {
    const mx_gguf_value *n = mx_gguf_find(g, names), *c = mx_gguf_find(g, contents);
    uint64_t n_at = 0, c_at = 0;
    mx_gguf_string name, content;
    char text[256];
    if (!n && !c) return MX_OK;
    while (mx_gguf_next_string(n, &n_at, &name)) {
        bool ok = is_file_name(&name) && *count < MOST_SHARDS && mx_gguf_next_string(c, &c_at, &content);
        for (int i = 0; i < *count && ok; i++)
            ok = strlen((*list)[i].name) != name.size || memcmp((*list)[i].name, name.text, name.size);
        if (ok) snprintf(text, sizeof text, "%.*s", (int)name.size, name.text);
        if (!ok || (shards && !mx_ends_with(text, ".safetensors")))
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: %s: expected names of %sfiles, each once, and as many strings in %s", g->file.path,
                           names, shards ? ".safetensors " : "", contents);
        if (!shards && !mx_record_carries(text)) {
            leave_out(left, text, false);
            continue;
        }
        mx_record_entry *e = append(list, count, name.text, name.size);
        if (!e || (content.size && !mx_bytes_add(&e->content, content.text, content.size)))
            return mx_fail(error, MX_NO_MEMORY, "%s: no memory for the files it carries", g->file.path);
    }
    return MX_OK;
}

mx_status mx_record_of_gguf(mx_record *r, const mx_gguf *g, mx_error *error) {
    left_out left = {0};
    mx_status status =
        read_list(g, "mxrun.source.files", "mxrun.source.contents", false, &r->file, &r->files, &left, error);
    if (!status)
        status = read_list(g, "mxrun.source.shards", "mxrun.source.headers", true, &r->shard, &r->shards, NULL, error);
    if (!status) tell_left_out(&left, g->file.path);
    return status;
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
