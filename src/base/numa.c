#include "base/numa.h"

#include <hwloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

static bool several_nodes(void) {
    char line[100] = "";
    if (getenv("HWLOC_SYNTHETIC") || getenv("HWLOC_XMLFILE")) return true;
    FILE *f = fopen("/sys/devices/system/node/online", "re"); /* "0" or "0-1" or "0,2" */
    if (!f) return false;
    bool several = fgets(line, sizeof line, f) && strpbrk(line, "-,");
    fclose(f);
    return several;
}

static bool open_topology(hwloc_topology_t *out) {
    if (!several_nodes() || hwloc_topology_init(out)) return false;
    hwloc_topology_set_all_types_filter(*out, HWLOC_TYPE_FILTER_KEEP_STRUCTURE);
    if (!hwloc_topology_load(*out)) return true;
    hwloc_topology_destroy(*out);
    return false;
}

/* The operating system's number of a CPU's node; 0 where nothing is known. */
static int node_of(hwloc_topology_t topology, int cpu) {
    hwloc_obj_t pu = hwloc_get_pu_obj_by_os_index(topology, (unsigned)cpu);
    int node = pu && pu->nodeset ? hwloc_bitmap_first(pu->nodeset) : 0;
    return node < 0 ? 0 : node;
}

static int by_node(const void *a, const void *b) {
    const mx_place *x = a, *y = b;
    return x->node != y->node ? (x->node > y->node) - (x->node < y->node) : (x->cpu > y->cpu) - (x->cpu < y->cpu);
}

int mx_numa_places(mx_place *place, int most) {
    int cpu[CPU_SETSIZE], count = mx_cpu_list(cpu, most < CPU_SETSIZE ? most : CPU_SETSIZE);
    hwloc_topology_t topology;
    for (int i = 0; i < count; i++) place[i] = (mx_place){cpu[i], 0};
    if (!open_topology(&topology)) return count;
    for (int i = 0; i < count; i++) place[i].node = node_of(topology, cpu[i]);
    hwloc_topology_destroy(topology);
    qsort(place, (size_t)count, sizeof *place, by_node);
    for (int i = 0, before = -1, node = -1; i < count; i++) { /* numbers without holes */
        if (place[i].node != before) node++;
        before = place[i].node;
        place[i].node = node;
    }
    return count;
}

int mx_numa_nodes(void) {
    mx_place place[CPU_SETSIZE];
    const int count = mx_numa_places(place, CPU_SETSIZE);
    return count ? place[count - 1].node + 1 : 1;
}

/* hwloc answers for a topology that is not this system's as if all had been done. */
bool mx_numa_interleave_thread(bool on) {
    hwloc_topology_t topology;
    if (!several_nodes()) return true;
    if (!open_topology(&topology)) return false;
    const bool done = hwloc_topology_is_thissystem(topology) &&
                      !hwloc_set_membind(topology, hwloc_topology_get_allowed_nodeset(topology),
                                         on ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_DEFAULT,
                                         HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET);
    hwloc_topology_destroy(topology);
    return done;
}

bool mx_numa_interleave_area(const void *base, size_t size) {
    hwloc_topology_t topology;
    if (!several_nodes()) return true;
    if (!open_topology(&topology)) return false;
    const bool done = hwloc_topology_is_thissystem(topology) &&
                      !hwloc_set_area_membind(topology, base, size, hwloc_topology_get_allowed_nodeset(topology),
                                              HWLOC_MEMBIND_INTERLEAVE, HWLOC_MEMBIND_BYNODESET);
    hwloc_topology_destroy(topology);
    return done;
}
