#ifndef MX_PLAN_MODEL_H
#define MX_PLAN_MODEL_H

#include "model/model.h"

/* What a model weighs, from its configuration and its layout alone: nothing of it must be on this machine. */

/* Layouts whose bytes can be computed without files. */
typedef enum mx_plan_layout {
    MX_PLAN_MXFP4_BF16, /* experts MXFP4, all else BF16: what OpenAI published */
    MX_PLAN_MXFP4_Q8_0, /* GGUF: dense matrices Q8_0 (34 bytes per 32 weights), vectors and the router F32 */
    MX_PLAN_MXFP4_F32,  /* experts MXFP4, all else F32 */
    MX_PLAN_BF16,       /* everything BF16 (or F16), experts too */
    MX_PLAN_LAYOUTS
} mx_plan_layout;

/* In which formats the numbers are; `dense`: the matrices of attention. MXFP4 of either layout is MX_MXFP4. */
typedef struct mx_plan_formats {
    mx_format experts, dense, router;
} mx_plan_formats;
mx_plan_formats mx_plan_formats_of(mx_plan_layout layout);

const char *mx_plan_format_name(mx_format format); /* "BF16"; "MXFP4" of both; "FP4" of NVFP4 and its like */
enum { MX_PLAN_FORMATS = 32 };
void mx_plan_formats_name(char out[MX_PLAN_FORMATS], const mx_plan_formats *f); /* "MXFP4 experts, BF16"; "F16" */
void mx_plan_formats_key(char out[MX_PLAN_FORMATS], const mx_plan_formats *f);  /* "mxfp4_bf16"; "f16": for JSON */

/* Bytes of all tensors of a class. */
typedef struct mx_plan_bytes {
    double experts; /* matrices, all layers */
    double expert_biases;
    double attention; /* matrices, biases, sinks */
    double router, norms;
    double embedding, lm_head; /* lm_head 0: tied to the embedding */
} mx_plan_bytes;

mx_plan_bytes mx_plan_bytes_of(const mx_config *c, mx_plan_layout layout);
double mx_plan_bytes_total(const mx_plan_bytes *b);
/* Different experts that `rows` rows choose in a layer, on average, where all are alike likely: E (1 - (1 - k/E)^rows).
 */
double mx_plan_experts(const mx_config *c, double rows);
/* Bytes of weights that a step of `rows` rows reads, `wanted` of them with logits: every matrix that takes part once,
 * of the experts those that some row chose. */
double mx_plan_step_bytes(const mx_config *c, const mx_plan_bytes *b, double rows, double wanted);

enum { MX_PLAN_NAME = 4096 };
typedef struct mx_plan_model {
    char name[MX_PLAN_NAME]; /* "gpt-oss-20b", or what -m was given */
    mx_plan_formats formats;
    mx_config config;
    mx_plan_bytes bytes;
    double weights; /* bytes of all tensors */
    bool here;      /* it is on this machine: they were counted, not computed */
} mx_plan_model;

/* Models that are known without any file: the two gpt-oss shapes (gpt-oss-safeguard has the same), as published and as
 * GGUF with Q8_0. */
enum { MX_PLAN_KNOWN = 4 };
mx_status mx_plan_known(int index, mx_plan_model *out, mx_error *error);

/* A model in any layout that mxrun reads; its tensors are counted, none is read. `form`: what becomes of experts of 16
 * bits when it is loaded. */
mx_status mx_plan_model_read(const char *path, mx_expert_form form, mx_plan_model *out, mx_error *error);
/* Path of the largest of its files; "": there is none. */
void mx_plan_largest_file(const char *path, char *out, size_t size);

#endif
