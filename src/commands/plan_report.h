#ifndef MX_PLAN_REPORT_H
#define MX_PLAN_REPORT_H

#include "base/bytes.h"
#include "plan/advice.h"

/* What mxrun plan prints: text for people, one JSON object for programs. */
typedef struct mx_plan_report {
    const mx_plan_machine *machine;
    const mx_plan_request *request;
    const char *kv; /* name of request->kv */
    const mx_plan_fit *fit;
    int count;
    bool asked;     /* the first one is what the user named */
    double seconds; /* that looking and measuring took */
} mx_plan_report;

/* false: no memory. */
bool mx_plan_text(mx_bytes *out, const mx_plan_report *r);
bool mx_plan_json(mx_bytes *out, const mx_plan_report *r);

#endif
