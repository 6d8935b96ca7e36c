/* What may be drawn for a request, and what becomes of a token that was. */
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

/* ---- before -------------------------------------------------------------------------------------------------------
 */
static uint32_t *mask_of(const mx_engine *e, const mx_draw *draw) {
    return e->masks.bits + (draw - e->draw) * e->masks.words;
}

/* Without those that were rejected, nor ids that have no token, and with a random number of its own. */
static void leave_out(const mx_engine *e, const mx_task *task, mx_draw *draw) {
    uint32_t *mask = mask_of(e, draw);
    for (int i = 0; e->tokens && i < e->masks.words; i++) mask[i] &= e->tokens[i];
    for (int i = 0; i < task->rejected_count; i++) mask[task->rejected[i] >> 5] &= ~(1u << (task->rejected[i] & 31));
    draw->spec.mask = mask;
    draw->spec.seed = task->request.sampling.seed + (uint64_t)task->rejected_count * 0x9e3779b97f4a7c15u;
}

void mx_draw_prepare(mx_engine *e, const mx_task *task, mx_draw *draw, int wanted) {
    const mx_request *r = &task->request;
    *draw = (mx_draw){.wanted = wanted, .spec = mx_task_sample_spec(task, task->known), .status = MX_INVALID_STATE};
    if (!r->constraint.accept && !task->rejected_count && mx_task_may_stop(task)) return;
    draw->spec.mask = mx_masks_take(&e->masks, task, (int)(draw - e->draw));
    if (task->rejected_count) leave_out(e, task, draw);
}

/* ---- behind -------------------------------------------------------------------------------------------------------
 */
mx_verdict mx_draw_verdict(const mx_engine *e, const mx_task *task, int32_t token) {
    const mx_constraint *c = &task->request.constraint;
    if (e->tokens && !(e->tokens[token >> 5] >> (token & 31) & 1)) return MX_REJECTED;
    return c->accept ? c->accept(c->user, token) : MX_CONTINUE;
}

mx_status mx_draw_rejected(mx_engine *e, mx_task *task, mx_draw *draw, mx_error *error) {
    task->rejected[task->rejected_count++] = draw->sampled.token;
    if (task->rejected_count == MX_REJECTIONS)
        return mx_fail(error, MX_INVALID_STATE, "the constraint rejected %d tokens in a row at position %lld",
                       MX_REJECTIONS, (long long)task->known);
    if (!draw->spec.mask)
        draw->spec.mask = mx_masks_take(&e->masks, task, (int)(draw - e->draw)); /* there is none yet */
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
