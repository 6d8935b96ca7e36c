#include "base/machine.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_ROOM = 4096 };

/* One line of a small file; false when it cannot be read. */
static bool read_line(const char *folder, const char *name, char *out, int size) {
    char path[PATH_ROOM + 100];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    bool ok = fgets(out, size, f) != NULL;
    fclose(f);
    return ok;
}

static bool read_number(const char *folder, const char *name, double *out) {
    char line[100];
    return read_line(folder, name, line, sizeof line) && sscanf(line, "%lf", out) == 1;
}

/* The sum of the numbers of two names in a file of lines "name number"; a name that is not there counts 0. */
static double sum_of(const char *folder, const char *file, const char *first, const char *second) {
    char path[PATH_ROOM + 100], line[200], name[100];
    double value, sum = 0;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%99s %lf", name, &value) == 2 && (!strcmp(name, first) || !strcmp(name, second)))
            sum += value;
    if (f) fclose(f);
    return sum;
}

/* ---- control groups ---------------------------------------------------------------------------------------------- */
/* Is `name` one of the words of a list with commas? */
static bool in_list(const char *list, const char *name) {
    const size_t n = strlen(name);
    while (strncmp(list, name, n) || (list[n] != ',' && list[n])) {
        list = strchr(list, ',');
        if (!list) return false;
        list++;
    }
    return true;
}

typedef void visit_fn(const char *folder, bool v1, double *least);

/* Visits the folders of `own`, a cgroup below `mount`, and of those above it. In a container without a namespace of its
 * own `own` is a path of the host, and only the mount itself is there. */
static void visit_up(const char *mount, char *own, bool v1, visit_fn *visit, double *least) {
    char folder[PATH_ROOM];
    for (char *slash = own; slash;) {
        snprintf(folder, sizeof folder, "%s%s", mount, strcmp(own, "/") ? own : "");
        visit(folder, v1, least);
        slash = strrchr(own, '/');
        if (slash) *slash = 0;
    }
}

/* Lines of /proc/self/cgroup: "0::/path" of version 2, "4:memory:/path" and "3:cpu,cpuacct:/path" of version 1. */
static void for_each_cgroup(const char *root, const char *controller, visit_fn *visit, double *least) {
    char path[PATH_ROOM], line[2000], mount[1000];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *own = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!own) continue;
        *controllers++ = 0;
        *own++ = 0;
        bool v1 = *controllers != 0;
        if (v1 ? !in_list(controllers, controller) : strcmp(line, "0") != 0) continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, v1 ? "/" : "", v1 ? controller : "");
        visit_up(mount, own, v1, visit, least);
    }
    if (f) fclose(f);
}

static void visit_cpu(const char *folder, bool v1, double *least) {
    double quota, period;
    char line[100];
    if (v1) {
        if (!read_number(folder, "cpu.cfs_quota_us", &quota) || !read_number(folder, "cpu.cfs_period_us", &period))
            return;
    } else if (!read_line(folder, "cpu.max", line, sizeof line) || sscanf(line, "%lf %lf", &quota, &period) != 2) {
        return; /* "max 100000": none */
    }
    /* version 1 says -1 where there is none */
    if (quota > 0 && period > 0 && quota / period < *least) *least = quota / period;
}

/* What is used holds page cache, which the kernel drops when the group needs memory: it counts as free. */
static void visit_memory(const char *folder, bool v1, double *least) {
    double most, used; /* "max" is no number: none */
    if (!read_number(folder, v1 ? "memory.limit_in_bytes" : "memory.max", &most)) return;
    if (!read_number(folder, v1 ? "memory.usage_in_bytes" : "memory.current", &used)) return;
    used -= v1 ? sum_of(folder, "memory.stat", "total_inactive_file", "total_active_file")
               : sum_of(folder, "memory.stat", "inactive_file", "active_file");
    double left = most - (used > 0 ? used : 0);
    if (left < *least) *least = left > 0 ? left : 0;
}

/* What is used does not matter. */
static void visit_limit(const char *folder, bool v1, double *least) {
    double most; /* version 1 says a number near 2^63 where there is none */
    if (read_number(folder, v1 ? "memory.limit_in_bytes" : "memory.max", &most) && most < *least) *least = most;
}

double mx_machine_quota(const char *root, double cores) {
    for_each_cgroup(root, "cpu", visit_cpu, &cores);
    return cores;
}

unsigned long long mx_machine_memory(const char *root) {
    char folder[PATH_ROOM];
    snprintf(folder, sizeof folder, "%s/proc", root);
    double least = 1024 * sum_of(folder, "meminfo", "MemAvailable:", "");
    for_each_cgroup(root, "memory", visit_memory, &least);
    return (unsigned long long)least;
}

unsigned long long mx_machine_memory_total(const char *root) {
    char folder[PATH_ROOM];
    snprintf(folder, sizeof folder, "%s/proc", root);
    double least = 1024 * sum_of(folder, "meminfo", "MemTotal:", "");
    for_each_cgroup(root, "memory", visit_limit, &least);
    return (unsigned long long)least;
}

/* ---- cores ------------------------------------------------------------------------------------------------------- */
static int topology(const char *root, int cpu, const char *what) {
    char folder[PATH_ROOM];
    double value;
    snprintf(folder, sizeof folder, "%s/sys/devices/system/cpu/cpu%d/topology", root, cpu);
    return read_number(folder, what, &value) ? (int)value : -1;
}

int mx_machine_cores(const char *root, const cpu_set_t *allowed, int *list, int most) {
    struct {
        int package, core;
    } seen[CPU_SETSIZE];
    int cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && cores < most; cpu++) {
        if (!CPU_ISSET(cpu, allowed)) continue;
        int package = topology(root, cpu, "physical_package_id"), core = topology(root, cpu, "core_id"), i = 0;
        if (core < 0) { /* nothing known */
            package = INT_MIN;
            core = cpu;
        }
        while (i < cores && (seen[i].package != package || seen[i].core != core)) i++;
        if (i < cores) continue;
        seen[cores].package = package;
        seen[cores].core = core;
        list[cores++] = cpu;
    }
    return cores;
}
