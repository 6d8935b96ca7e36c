#ifndef TESTS_PLAN_MADE_UP_H
#define TESTS_PLAN_MADE_UP_H

#include "plan/estimate.h"

/* Machines that are not here. */
mx_plan_machine made_up_laptop(void);      /* AVX2, 4 cores, 16 GB of which 9 are free, 40 GB/s, 2 GB/s of disk */
mx_plan_machine made_up_zen5(double gb_s); /* that of the README's table: 2 cores, 24 GB */
mx_plan_machine made_up_server(double gb); /* 16 cores of Zen 5, 200 GB/s, so much memory */
void made_up_gpu(mx_plan_machine *m, const char *name, int major, int minor, double gb, double tb_s);

mx_plan_model made_up_known(int index); /* mx_plan_known, which must succeed */

#endif
