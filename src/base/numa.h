#ifndef MX_BASE_NUMA_H
#define MX_BASE_NUMA_H

#include <stdbool.h>
#include <stddef.h>

#include "base/numa_choice.h"

/* Memory that is nearer to some cores than to others. hwloc is asked only where the kernel knows more than one node, or
 * where HWLOC_SYNTHETIC or HWLOC_XMLFILE make a topology up. */

/* A core (one logical CPU of it) that this process may use, and its node, counted from 0 over the nodes in use. */
typedef struct mx_place {
    int cpu, node;
} mx_place;

/* All of them, node by node; returns how many (at most `most`). */
int mx_numa_places(mx_place *place, int most);

int mx_numa_nodes(void); /* of those cores; at least 1 */

/* Pages that the calling thread, and threads that it starts from then on, touch first come from all nodes in turn, or
 * (false) from their own again. Nothing where there is one node. Asks for the whole topology, which takes milliseconds.
 * false: the system refuses, or the topology is made up. */
bool mx_numa_interleave_thread(bool on);
/* The same for pages of base[0 .. size), whoever touches them. */
bool mx_numa_interleave_area(const void *base, size_t size);

#endif
