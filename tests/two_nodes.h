#ifndef TESTS_TWO_NODES_H
#define TESTS_TWO_NODES_H

/* A machine of two memory nodes, made up for tests: two of the cores that this process may use, whatever their numbers,
 * and a topology in which each is on a node of its own. Child processes see the same. */
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"

typedef struct two_nodes {
    int cpu[2]; /* of node 0, of node 1 */
    cpu_set_t before;
} two_nodes;

/* false: there is only one core. */
static inline bool two_nodes_begin(two_nodes *n) {
    int cpu[CPU_SETSIZE];
    const int cores = mx_cpu_list(cpu, CPU_SETSIZE);
    char topology[100];
    if (cores < 2 || sched_getaffinity(0, sizeof n->before, &n->before)) return false;
    cpu_set_t two;
    CPU_ZERO(&two);
    for (int i = 0; i < 2; i++) CPU_SET(n->cpu[i] = cpu[i * (cores - 1)], &two);
    snprintf(topology, sizeof topology, "numa:2 core:%d pu:1", n->cpu[1]); /* which is the first CPU of node 1 */
    return !sched_setaffinity(0, sizeof two, &two) && !setenv("HWLOC_SYNTHETIC", topology, 1);
}

static inline void two_nodes_end(const two_nodes *n) {
    unsetenv("HWLOC_SYNTHETIC");
    sched_setaffinity(0, sizeof n->before, &n->before);
}

#endif
