#ifndef MX_TESTS_EMULATION_ORDER_H
#define MX_TESTS_EMULATION_ORDER_H

#include <stdint.h>

/* For tests in C: in which order the emulation runs lanes, warps and blocks, from the next launch on. Without a call it
 * is what MX_EMULATION_ORDER says, or up. */
#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_emulation_order {
    MX_EMULATION_UP,     /* lane 0 first, warp 0 first; asynchronous copies when they are waited for */
    MX_EMULATION_DOWN,   /* the last first; asynchronous copies at once */
    MX_EMULATION_RANDOM, /* a new order in each block; another each run of a launch, the same in each process */
    MX_EMULATION_ORDERS
} mx_emulation_order;

void mx_emulation_set_order(mx_emulation_order order);

#ifdef __cplusplus
}
#endif
#endif
