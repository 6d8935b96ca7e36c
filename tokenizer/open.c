/* Where a model's tokenizer lies, and what kind of file that is. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/gguf.h"
#include "base/mapped.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

/* What is smaller is parsed faster than a second file is opened and checked. */
#define CACHE_FROM (1 << 20)

/* ---- which file -------------------------------------------------------------------------------------------------- */

/* The number of GGUF models in a folder; `name` is one of them. */
static int find_gguf(const char *folder, char name[256]) {
    DIR *dir = opendir(folder);
    int count = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.' || !mx_ends_with(e->d_name, ".gguf") || mx_gguf_is_further_part(e->d_name)) continue;
        snprintf(name, 256, "%s", e->d_name);
        count++;
    }
    if (dir) closedir(dir);
    return count;
}

/* MX_OK with *there false: no such file. */
static mx_status look(const char *folder, const char *name, char *out, size_t size, bool *there, mx_error *error) {
    int n = snprintf(out, size, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= size) return mx_fail(error, MX_INVALID_ARGUMENT, "the tokenizer's path is too long");
    *there = access(out, F_OK) == 0;
    return MX_OK;
}

mx_status mx_tokenizer_find(const char *path, char *out, size_t size, mx_error *error) {
    static const char *const after_gguf[] = {"model.bin", "metal/model.bin", "../tokenizer.json",
                                             "original/tokenizer.json"};
    struct stat info;
    char gguf[256];
    bool there = false;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        int n = snprintf(out, size, "%s", path);
        return n >= 0 && (size_t)n < size ? MX_OK
                                          : mx_fail(error, MX_INVALID_ARGUMENT, "the tokenizer's path is too long");
    }
    mx_status status = look(path, "tokenizer.json", out, size, &there, error);
    if (status != MX_OK || there) return status;
    int models = find_gguf(path, gguf);
    if (models > 1)
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s: holds %d models as .gguf files, %s among them, and no tokenizer.json: name the file instead "
            "of the folder",
            path, models, gguf);
    if (models == 1) return look(path, gguf, out, size, &there, error);
    for (size_t i = 0; i < sizeof after_gguf / sizeof *after_gguf; i++) {
        status = look(path, after_gguf[i], out, size, &there, error);
        if (status != MX_OK || there) return status;
    }
    return mx_fail(error, MX_IO,
                   "%s: no tokenizer in this folder (tokenizer.json, .gguf, model.bin): download the model's "
                   "tokenizer.json into it",
                   path);
}

/* ---- reading it -------------------------------------------------------------------------------------------------- */

static mx_status open_json(const mx_mapped *file, mx_vocabulary *out, mx_error *error) {
    const char *json = (const char *)file->data;
    if (!file->size) return mx_fail(error, MX_INVALID_FILE, "%s: empty; a tokenizer.json is needed", file->path);
    if (file->size < CACHE_FROM) return mx_vocabulary_parse(file->path, json, file->size, out, error);
    mx_content content = mx_content_of(json, file->size);
    if (mx_vocabulary_cache_load(&content, out)) return MX_OK;
    mx_status status = mx_vocabulary_parse(file->path, json, file->size, out, error);
    if (status == MX_OK) mx_vocabulary_cache_store(&content, out);
    return status;
}

static mx_status open_metal(const mx_mapped *file, mx_vocabulary *out, mx_error *error) {
    const uint8_t *part;
    size_t size = mx_metal_tokenizer(file->data, file->size, &part);
    if (size < CACHE_FROM) return mx_vocabulary_from_metal(file->path, file->data, file->size, out, error);
    mx_content content = mx_content_of(part, size);
    if (mx_vocabulary_cache_load(&content, out)) return MX_OK;
    mx_status status = mx_vocabulary_from_metal(file->path, file->data, file->size, out, error);
    if (status == MX_OK) mx_vocabulary_cache_store(&content, out);
    return status;
}

static mx_status open_gguf(const char *path, mx_vocabulary *out, mx_error *error) {
    mx_gguf g;
    mx_status status = mx_gguf_open(path, &g, error);
    mx_content content = {0};
    if (status == MX_OK) content = mx_gguf_content(&g);
    bool cached = status == MX_OK && content.size >= CACHE_FROM;
    if (status == MX_OK && !(cached && mx_vocabulary_cache_load(&content, out))) {
        status = mx_vocabulary_from_gguf(&g, out, error);
        if (status == MX_OK && cached) mx_vocabulary_cache_store(&content, out);
    }
    mx_gguf_close(&g);
    return status;
}

mx_status mx_vocabulary_open(const char *path, mx_vocabulary *out, mx_error *error) {
    static const char metal[] = "GPT-OSS v1.0";
    *out = (mx_vocabulary){0};
    mx_mapped file;
    mx_status status = mx_mapped_open(path, 0, &file, error);
    if (status == MX_OK && file.size >= 4 && memcmp(file.data, "GGUF", 4) == 0)
        status = open_gguf(path, out, error);
    else if (status == MX_OK && file.size >= sizeof metal && memcmp(file.data, metal, sizeof metal) == 0)
        status = open_metal(&file, out, error);
    else if (status == MX_OK)
        status = open_json(&file, out, error);
    mx_mapped_close(&file);
    return status;
}
