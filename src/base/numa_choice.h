#ifndef MX_BASE_NUMA_CHOICE_H
#define MX_BASE_NUMA_CHOICE_H

/* What to do where some memory is nearer to some cores than to others. A header of its own, for the public interface
 * (engine/mxrun.h) has it in common with base/numa.h. */
typedef enum mx_numa {
    MX_NUMA_AUTO,       /* spread where the cores that may be used are on several nodes */
    MX_NUMA_OFF,        /* nothing is placed, work goes to any thread */
    MX_NUMA_INTERLEAVE, /* pages of the weights in turn over the nodes, work goes to any thread */
    MX_NUMA_SPREAD,     /* each node's threads get the same part of every matrix, and bring it into memory */
} mx_numa;

#endif
