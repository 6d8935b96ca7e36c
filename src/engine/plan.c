/* The rows of a step, and pages for them. */
#include "base/cpu.h"
#include "engine/engine_state.h"

/* Guesses what follows, where `decoders` requests decode. They stand behind the known tokens until they are checked. */
static void guess_ahead(mx_engine *e, int decoders) {
    const bool always = e->parts.speculation == MX_SPECULATE_ON;
    int rows = decoders;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        task->drafted = 0;
        if (!mx_task_decodes(task) || task->request.prompt_only || (!always && rows >= MX_DRAFT_ROWS)) continue;
        const int64_t left = task->request.prompt_count + task->limit - task->known - 1; /* the last is never a guess */
        const int most = e->parts.draft_tokens < left ? e->parts.draft_tokens : (int)left;
        task->drafted =
            mx_lookup_draft(task->lookup, task->tokens, task->known, task->tokens + task->known, most, &task->matched);
        if (!always && task->drafted > 0)
            task->drafted = mx_draft_length(&e->draft_cost, &task->luck, task->matched, rows, task->drafted);
        rows += task->drafted;
    }
}

void mx_plan_rows(mx_engine *e, double start) {
    int decoders = 0, count = 0;
    for (int i = 0; i < e->running_count; i++) decoders += mx_task_decodes(e->running[i]);
    if (decoders && e->parts.speculation != MX_SPECULATE_OFF) guess_ahead(e, decoders);
    for (int i = 0; i < e->running_count; i++) {
        const mx_task *task = e->running[i];
        const int64_t unknown = mx_task_unknown(task);
        if (task->reading || !unknown) continue;
        e->candidate[count++] = (mx_candidate){.unknown = unknown,
                                               .order = (int64_t)task->handle,
                                               .turn = task->turn,
                                               .priority = task->request.priority,
                                               .drafted = task->drafted,
                                               .scored = mx_task_is_scored(task),
                                               .unscored = mx_task_wanted_from(task) - task->sequence.count};
    }
    if (count > 0) mx_scheduler_plan(&e->scheduler, e->candidate, count, mx_seconds() - start);
    const mx_candidate *c = e->candidate;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        task->rows = 0;
        if (task->reading || !mx_task_unknown(task)) continue;
        task->rows = c->rows;
        task->turn = c->turn;
        c++;
    }
}

/* Pages for so many rows of a task; where there are none left the most junior one is set back. */
static void reserve_rows(mx_engine *e, mx_task *task, int rows) {
    while (!mx_sequence_reserve(&task->sequence, rows)) {
        mx_task *junior = e->running[e->running_count - 1];
        if (e->running_count == 1) {
            mx_error error;
            mx_fail(&error, MX_NO_MEMORY, "%lld KV pages are too few for %lld tokens", (long long)e->parts.plan.pages,
                    (long long)(task->sequence.count + rows));
            mx_task_fail(e, task, &error, true);
        } else {
            mx_queue_set_back(e, junior);
        }
        if (junior == task) break;
    }
}

bool mx_plan_fits(mx_engine *e) {
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (task->rows && !mx_sequence_reserve(&task->sequence, task->ahead + task->rows)) return false;
    }
    return true;
}

/* For the most senior tasks first, and for what was guessed only what all others leave. */
void mx_plan_pages(mx_engine *e) {
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (task->rows) reserve_rows(e, task, mx_task_decodes(task) ? 1 : task->rows);
    }
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (task->rows > 1 && mx_task_decodes(task) && !mx_sequence_reserve(&task->sequence, task->rows))
            task->rows = 1;
    }
}
