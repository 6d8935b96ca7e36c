#ifndef MX_API_FIELDS_H
#define MX_API_FIELDS_H

#include "api/request.h"

/* Members of a request's body. Each reader leaves *out alone where the member is absent or null, and returns false with
 * the problem told where it is wrong. */
typedef struct mx_fields {
    const mx_json *object; /* NULL: nothing is there */
    const char *prefix;    /* of their names in messages: "reasoning." */
    mx_api_problem *problem;
} mx_fields;

/* The whole name of a member, "reasoning.effort". */
typedef struct mx_field_name {
    char text[80];
} mx_field_name;
mx_field_name mx_name_field(const mx_fields *f, const char *name);

const mx_json *mx_field(const mx_json *object, const char *name); /* NULL: absent or null */
/* A string that is not empty and that C can hold; NULL: it is none. */
const char *mx_field_word(const mx_json *object, const char *name);
bool mx_read_number(const mx_fields *f, const char *name, double low, double high, double *out);
bool mx_read_float(const mx_fields *f, const char *name, double low, double high, float *out);
bool mx_read_whole(const mx_fields *f, const char *name, int64_t low, int64_t high, int64_t *out);
bool mx_read_int(const mx_fields *f, const char *name, int low, int high, int *out);
bool mx_read_bool(const mx_fields *f, const char *name, bool *out);
/* A member of this type; *out NULL: it is absent. */
bool mx_read_typed(const mx_fields *f, const char *name, mx_json_type type, const mx_json **out);
/* The same for text that C can hold: a string without U+0000. */
bool mx_read_word(const mx_fields *f, const char *name, const char **out);

#endif
