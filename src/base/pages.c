#include "base/pages.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SAMPLE = 2 << 20 };

mx_pages mx_pages_of(const void *base, size_t size) {
    const unsigned long from = (unsigned long)(uintptr_t)base, to = from + size;
    mx_pages sum = {0};
    char line[5000], name[40];
    unsigned long begin, end, kib;
    bool inside = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = begin < to && end > from;
        else if (inside && sscanf(line, "%39s %lu kB", name, &kib) == 2) {
            if (!strcmp(name, "Rss:")) sum.resident += 1024ull * kib;
            if (!strcmp(name, "AnonHugePages:") || !strcmp(name, "FilePmdMapped:") || !strcmp(name, "ShmemPmdMapped:"))
                sum.huge += 1024ull * kib;
        }
    }
    if (f) fclose(f);
    return sum;
}

bool mx_pages_huge(void) {
    char line[100] = "[never]";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
    if (f) {
        if (!fgets(line, sizeof line, f)) line[0] = 0;
        fclose(f);
    }
    return !strstr(line, "[never]");
}

uint64_t mx_pages_cached(const void *base, size_t size) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t there = 0;
    for (size_t at = 0; at < size; at += SAMPLE) {
        unsigned char in = 0;
        if (!mincore((char *)(uintptr_t)base + at, page, &in) && (in & 1))
            there += size - at < SAMPLE ? size - at : SAMPLE;
    }
    return there;
}
