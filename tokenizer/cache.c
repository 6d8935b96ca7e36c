/* The cache of parsed tokenizers: one file each, named by the content it was made from. A file that is missing, cut,
 * damaged or of another version counts as none, and is written anew. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "tokenizer/vocabulary.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static const char magic[8] = "MXTOKEN";
enum { CACHE_VERSION = 2 };

/* $XDG_CACHE_HOME/mxrun or ~/.cache/mxrun; both must be absolute. */
static bool cache_folder(char *out, size_t size) {
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (base && base[0] == '/')
        n = snprintf(out, size, "%s/mxrun", base);
    else if (home && home[0] == '/')
        n = snprintf(out, size, "%s/.cache/mxrun", home);
    return n > 0 && (size_t)n < size;
}

static bool cache_path(const mx_content *content, char *out, size_t size) {
    char folder[3500];
    if (!cache_folder(folder, sizeof folder)) return false;
    int n = snprintf(out, size, "%s/tokenizer-%016llx%016llx.bin", folder, (unsigned long long)content->hash[1],
                     (unsigned long long)content->hash[0]);
    return n > 0 && (size_t)n < size;
}

static uint64_t checksum(const void *block, size_t size) {
    size_t skip = offsetof(mx_vocabulary_header, size);
    return XXH3_64bits((const char *)block + skip, size - skip);
}

static bool is_whole(mx_vocabulary *v, const mx_content *content) {
    const mx_vocabulary_header *h = v->block;
    return v->size >= sizeof *h && memcmp(h->magic, magic, sizeof magic) == 0 && h->version == CACHE_VERSION &&
           h->header_size == sizeof *h && h->size == v->size && h->source_size == content->size &&
           h->source_hash[0] == content->hash[0] && h->source_hash[1] == content->hash[1] &&
           h->checksum == checksum(v->block, v->size) && mx_vocabulary_sections(v, h) == v->size;
}

mx_content mx_content_of(const void *data, size_t size) {
    XXH128_hash_t hash = XXH3_128bits(data, size);
    return (mx_content){size, {hash.low64, hash.high64}};
}

bool mx_vocabulary_cache_load(const mx_content *content, mx_vocabulary *out) {
    *out = (mx_vocabulary){0};
    char path[4096];
    struct stat info;
    if (!cache_path(content, path, sizeof path)) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    void *block = MAP_FAILED;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
        block = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    close(fd);
    if (block == MAP_FAILED) return false;
    *out = (mx_vocabulary){.block = block, .size = (size_t)info.st_size};
    if (is_whole(out, content)) return true;
    mx_log(MX_LOG_DEBUG, "%s is damaged or of another version; it is written anew", path);
    mx_vocabulary_release(out);
    return false;
}

void mx_vocabulary_cache_store(const mx_content *content, mx_vocabulary *v) {
    mx_vocabulary_header *h = v->block;
    memcpy(h->magic, magic, sizeof magic);
    h->version = CACHE_VERSION;
    h->source_size = content->size;
    h->source_hash[0] = content->hash[0];
    h->source_hash[1] = content->hash[1];
    h->checksum = checksum(v->block, v->size);

    char path[4096];
    if (!cache_path(content, path, sizeof path)) return;
    mx_make_folders(path, 0755);
    if (!mx_replace_file(path, v->block, v->size, false))
        mx_log(MX_LOG_DEBUG, "no tokenizer cache at %s: %s", path, strerror(errno));
}
