#include "bench/energy.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

static bool read_number(const char *folder, const char *name, double *out) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const bool ok = fscanf(f, "%lf", out) == 1;
    fclose(f);
    return ok;
}

/* A zone that others do not contain: a package ("intel-rapl:0"), or its memory, which packages leave out. "psys" is the
 * whole machine, packages included; "core" and "uncore" are parts of a package. */
static bool counts(const char *folder) {
    char path[200], name[40] = "";
    snprintf(path, sizeof path, "%s/name", folder);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const bool ok = fscanf(f, "%39s", name) == 1;
    fclose(f);
    return ok && (!strncmp(name, "package", 7) || !strcmp(name, "dram"));
}

bool mx_energy_open(mx_energy *e, const char *root) {
    char folder[120];
    *e = (mx_energy){0};
    snprintf(folder, sizeof folder, "%s/sys/class/powercap", root);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && e->counters < MX_ENERGY_MOST && (entry = readdir(dir));) {
        const int i = e->counters;
        /* The same counters may show twice, through the processor and through its memory bus. */
        if (strncmp(entry->d_name, "intel-rapl:", 11)) continue;
        if (snprintf(e->path[i], sizeof e->path[i], "%s/%.36s", folder, entry->d_name) >= (int)sizeof e->path[i] ||
            !counts(e->path[i]) || !read_number(e->path[i], "energy_uj", &e->last[i]))
            continue;
        if (!read_number(e->path[i], "max_energy_range_uj", &e->range[i])) e->range[i] = 0;
        e->counters++;
    }
    if (dir) closedir(dir);
    return e->counters > 0;
}

/* Microjoules between two readings. A counter that starts over does so behind `range`; where that is not known, or is
 * no range of this counter, what it shows by now is all that is sure. */
static double passed(double last, double now, double range) {
    if (now >= last) return now - last;
    return range > last ? now + range - last : now;
}

double mx_energy_joules(mx_energy *e) {
    for (int i = 0; i < e->counters; i++) {
        double now;
        if (!read_number(e->path[i], "energy_uj", &now)) continue;
        e->joules += passed(e->last[i], now, e->range[i]) / 1e6;
        e->last[i] = now;
    }
    return e->joules;
}
