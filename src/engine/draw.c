/* What may be drawn for a request, and what becomes of a token that was. */
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

/* ---- before -------------------------------------------------------------------------------------------------------
 */
/* The mask as the constraint has it. false: it forbids nothing. */
static bool ask_constraint(const mx_task *task, uint32_t *mask, int32_t vocab) {
    const mx_constraint *c = &task->request.constraint;
    for (int pass = 0; pass < 2; pass++) {
        memset(mask, 0xff, (size_t)vocab / 32 * sizeof *mask);
        if (vocab % 32) mask[vocab / 32] = (1u << vocab % 32) - 1;
        if (!c->accept || !c->mask) return false;
        if (pass == 0 && c->mask(c->user, mask, vocab)) return true;
    }
    return false;
}

/* What may be drawn. false: everything may. */
static bool fill_mask(const mx_task *task, bool may_stop, uint32_t *mask, int32_t vocab) {
    const bool narrowed = ask_constraint(task, mask, vocab);
    if (may_stop) return narrowed;
    for (int i = 0; i < task->request.stop_count; i++) {
        const int32_t token = task->stop[i];
        if (token >= 0 && token < vocab) mask[token >> 5] &= ~(1u << (token & 31));
    }
    for (int32_t i = 0; i < (vocab + 31) / 32; i++)
        if (mask[i]) return true;
    return ask_constraint(task, mask, vocab); /* it allows nothing but the end */
}

static uint32_t *mask_of(const mx_engine *e, const mx_draw *draw) {
    return e->mask + (draw - e->draw) * e->mask_words;
}

/* Without those that the constraint rejected, and with a random number of its own. */
static void leave_out(const mx_engine *e, const mx_task *task, mx_draw *draw) {
    uint32_t *mask = mask_of(e, draw);
    for (int i = 0; i < task->rejected_count; i++) mask[task->rejected[i] >> 5] &= ~(1u << (task->rejected[i] & 31));
    draw->spec.mask = mask;
    draw->spec.seed = task->request.sampling.seed + (uint64_t)task->rejected_count * 0x9e3779b97f4a7c15u;
}

void mx_draw_prepare(const mx_engine *e, const mx_task *task, mx_draw *draw, int wanted) {
    const mx_request *r = &task->request;
    *draw = (mx_draw){.wanted = wanted, .spec = mx_task_sample_spec(task, task->known), .status = MX_INVALID_STATE};
    const bool may_stop = task->known - r->prompt_count >= r->min_tokens || !r->stop_count;
    if (!r->constraint.accept && may_stop) return;
    if (fill_mask(task, may_stop, mask_of(e, draw), e->parts.config->vocab)) draw->spec.mask = mask_of(e, draw);
    if (task->rejected_count) leave_out(e, task, draw);
}

/* ---- behind -------------------------------------------------------------------------------------------------------
 */
mx_status mx_draw_rejected(const mx_engine *e, mx_task *task, mx_draw *draw, mx_error *error) {
    task->rejected[task->rejected_count++] = draw->sampled.token;
    if (task->rejected_count == MX_REJECTIONS)
        return mx_fail(error, MX_INVALID_STATE, "the constraint rejected %d tokens in a row at position %lld",
                       MX_REJECTIONS, (long long)task->known);
    leave_out(e, task, draw);
    draw->status = MX_INVALID_STATE;
    return MX_OK;
}

static bool is_finished(const mx_task *task, mx_verdict verdict, int32_t token, mx_finish *finish) {
    const int64_t generated = task->known - task->request.prompt_count, max = task->request.max_tokens;
    if (mx_task_stops_at(task, token))
        *finish = MX_FINISH_STOP;
    else if (verdict == MX_FINISHED)
        *finish = MX_FINISH_CONSTRAINT;
    else if (generated == max)
        *finish = MX_FINISH_LENGTH;
    else if (generated == task->limit)
        *finish = MX_FINISH_CONTEXT;
    else
        return false;
    return true;
}

static void count_token(mx_engine *e, mx_task *task) {
    const double now = mx_seconds();
    struct mx_usage *usage = &task->usage;
    if (usage->generated_tokens++ == 0) {
        task->first_time = now;
        usage->prompt_seconds = now - task->start_time;
    }
    usage->generate_seconds = now - task->first_time;
    e->count.generated_tokens++;
    mx_task_count(task, task->tokens[task->known - 1]);
    task->computing = false;
}

bool mx_draw_known(mx_engine *e, mx_task *task, const mx_sampled *sampled, mx_verdict verdict) {
    task->tokens[task->known] = sampled->token; /* known < prompt + limit: is_finished sees to it */
    task->logprob[task->known] = sampled->logprob;
    task->known++;
    task->rejected_count = 0;
    count_token(e, task);
    return is_finished(task, verdict, sampled->token, &task->finish);
}

mx_status mx_draw_step_status(const mx_engine *e, int draws, mx_status status) {
    for (int i = 0; i < draws; i++)
        if (!e->draw[i].status) return MX_OK;
    return status;
}
