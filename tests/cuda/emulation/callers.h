#ifndef MX_TESTS_EMULATION_CALLERS_H
#define MX_TESTS_EMULATION_CALLERS_H

/* After device.cuh: the functions it makes of primitives, called with the caller's place (emulation.h). */
#include "emulation.h"

#define MX_EMULATED_CALL(name, ...) (mx_emulated_enter(MX_EMULATED_HERE(#name)), mx_emulated_leave(name(__VA_ARGS__)))
#define mx_warp_sum(...)            MX_EMULATED_CALL(mx_warp_sum, __VA_ARGS__)
#define mx_warp_max(...)            MX_EMULATED_CALL(mx_warp_max, __VA_ARGS__)
#define mx_warp_largest(...)        MX_EMULATED_CALL(mx_warp_largest, __VA_ARGS__)

#endif
