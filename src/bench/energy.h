#ifndef MX_BENCH_ENERGY_H
#define MX_BENCH_ENERGY_H

#include <stdbool.h>

/* Energy that processor packages and their memory have taken, from the counters that Linux shows under
 * /sys/class/powercap (RAPL). Mostly only root may read them. */
enum { MX_ENERGY_MOST = 64 };
typedef struct mx_energy {
    int counters;
    char path[MX_ENERGY_MOST][160];
    double range[MX_ENERGY_MOST]; /* microjoules after which the counter starts over; 0: not known */
    double last[MX_ENERGY_MOST];  /* what it showed last */
    double joules;                /* since mx_energy_open */
} mx_energy;

/* `root`: "", or a folder with made-up files in tests. false: there is no counter, or none may be read. */
bool mx_energy_open(mx_energy *e, const char *root);

/* Joules since the opening. Must be asked more often than the counters start over (a minute or more). */
double mx_energy_joules(mx_energy *e);

#endif
