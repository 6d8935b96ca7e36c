#ifndef MX_BASE_MACHINE_H
#define MX_BASE_MACHINE_H

#include <sched.h>

/* What the kernel's files under /proc and /sys say, for cpu.c. Paths begin with `root`: "" on a machine, a folder with
 * made-up files in tests. A file that is not there limits nothing. */

/* One allowed logical CPU of each physical core, ascending; returns how many (at most `most`). A CPU whose core is not
 * known is a core of its own. */
int mx_machine_cores(const char *root, const cpu_set_t *allowed, int *cpu, int most);

/* `cores`, or the least CPU quota of this process's cgroups (v1 and v2) where that is less. */
double mx_machine_quota(const char *root, double cores);

/* Bytes: MemAvailable, or the least that this process's cgroups (v1 and v2) leave where that is less. */
unsigned long long mx_machine_memory(const char *root);

/* Bytes: MemTotal, or the least limit of this process's cgroups where that is less. 0: not known. */
unsigned long long mx_machine_memory_total(const char *root);

#endif
