#include "engine/scheduler.h"

#include <math.h>
#include <stddef.h>

enum {
    FIRST_CHUNK = 2,      /* beside decoders, before anything was measured; it may double with every step */
    MEASURE_EVERY = 64,   /* steps after which one only decodes, to be measured */
    TRY_AGAIN = 512,      /* steps after which a little more than what was too slow is tried again */
    MOST_CHUNK = 1 << 20, /* more than any budget */
};

static const double LEAST_SECONDS = 0.25;
static const double DECODE_STEPS = 3;  /* that a mixed step may take */
static const double AIM = 0.75;        /* of what it may take */
static const double PROMPT_ROWS = 0.3; /* of all rows, where decoders could fill the steps */

void mx_scheduler_init(mx_scheduler *s, int batch_tokens, int max_wanted, double least_seconds) {
    *s = (mx_scheduler){.batch_tokens = batch_tokens,
                        .max_wanted = max_wanted,
                        .least_seconds = least_seconds > 0 ? least_seconds : LEAST_SECONDS,
                        .chunk = FIRST_CHUNK,
                        .too_many = MOST_CHUNK};
}

/* ---- time ---------------------------------------------------------------------------------------------------------
 */
static double aim(const mx_scheduler *s) {
    const double most = DECODE_STEPS * s->decode_seconds;
    return AIM * (most > s->least_seconds ? most : s->least_seconds);
}

/* Seconds of a step with decoders that are the prompts'. */
static double room(const mx_scheduler *s) {
    return aim(s) - s->decode_seconds;
}

/* Another number of decoders by more than a quarter: what was measured does not hold. */
static bool differs(int a, int b) {
    const int less = a < b ? a : b, more = a < b ? b : a;
    return more > less + less / 4;
}

static void decode_measured(mx_scheduler *s, int rows, double seconds) {
    const double before = s->decode_seconds > 0 ? room(s) : 0;
    const bool other = s->decode_seconds <= 0 || differs(rows, s->decode_rows);
    const int rows_before = s->decode_rows;
    s->decode_seconds = other ? seconds : (s->decode_seconds + seconds) / 2;
    s->decode_rows = rows;
    s->since_decode = 0;
    if (!other || before <= 0) return;
    /* Fewer decoders read fewer experts' weights: a prompt's rows then bring more of their own. */
    double chunk = (double)s->chunk * room(s) / before / (rows < rows_before ? 2 : 1);
    if (chunk < (double)s->chunk) s->chunk = chunk < 1 ? 1 : (int64_t)chunk;
    s->too_many = MOST_CHUNK;
}

/* The first rows bring the most weights that no other row reads, so the time of a step grows ever slower with its rows:
 * a straight line through a shorter step lies above it, and growing along that line keeps within the aim. */
static void mixed_measured(mx_scheduler *s, int rows, double seconds) {
    const double own = seconds - s->decode_seconds;
    const double fits = own > 0 ? rows * room(s) / own : (double)MOST_CHUNK;
    if (seconds > aim(s)) {
        if (rows < s->too_many) s->too_many = rows;
        s->since_too_many = 0;
        if (fits < (double)s->chunk) s->chunk = fits < 1 ? 1 : (int64_t)fits;
        return;
    }
    if (s->too_many < MOST_CHUNK && ++s->since_too_many >= TRY_AGAIN) {
        s->too_many += 1 + s->too_many / 16;
        s->since_too_many = 0;
    }
    if (rows < s->allowed) return; /* there were no more: what more would take is not known */
    int64_t chunk = 2 * s->chunk;
    if (fits < (double)chunk) chunk = (int64_t)fits;
    if (chunk > (s->chunk + s->too_many) / 2) chunk = (s->chunk + s->too_many) / 2; /* times may jump on the way */
    if (chunk > s->batch_tokens) chunk = s->batch_tokens;
    if (chunk > s->chunk) s->chunk = chunk;
}

void mx_scheduler_measured(mx_scheduler *s, int decode_rows, int drafted_rows, int prompt_rows, double seconds) {
    if (!decode_rows) return;
    s->since_decode++;
    if (prompt_rows)
        mixed_measured(s, prompt_rows + drafted_rows, seconds);
    else if (!drafted_rows)
        decode_measured(s, decode_rows, seconds);
}

/* ---- rows ---------------------------------------------------------------------------------------------------------
 */
static bool decodes(const mx_candidate *c) {
    return c->unknown == 1;
}

static bool before(const mx_candidate *a, const mx_candidate *b) {
    if (a->priority != b->priority) return a->priority > b->priority;
    if (a->turn != b->turn) return a->turn < b->turn;
    return a->order < b->order;
}

/* A row to each decoder. Where there are not so many rows they take turns: an order that steps with rows for all do not
 * change. Returns how many they were. */
static int give_decoders(mx_scheduler *s, mx_candidate *candidate, int count, int decoders, int rows) {
    if (decoders <= rows) {
        for (int i = 0; i < count; i++)
            if (decodes(&candidate[i])) candidate[i].rows = 1;
        return decoders;
    }
    for (int given = 0; given < rows; given++) {
        mx_candidate *best = NULL;
        for (mx_candidate *c = candidate; c < candidate + count; c++)
            if (decodes(c) && !c->rows && (!best || before(c, best))) best = c;
        best->rows = 1;
        best->turn = ++s->turn;
    }
    return rows;
}

/* Rows whose logits are kept, beside one of each candidate, when a scored one has so many. */
static int64_t keeps(const mx_candidate *c, int64_t rows) {
    return rows > c->unscored + 1 ? rows - c->unscored - 1 : 0;
}

/* Rows that a prompt lacks and may have. `kept`: rows whose logits can be kept beside one of each candidate. */
static int64_t lacks(const mx_candidate *c, int64_t kept) {
    const int64_t left = c->unknown - c->rows, most = c->unscored + 1 + keeps(c, c->rows) + kept - c->rows;
    return c->scored && left > most ? most : left;
}

/* Of the prompts of the highest priority that still lack rows, the one that came first, or of those the nearest to its
 * end. NULL: none lacks any. */
static mx_candidate *next_prompt(mx_candidate *candidate, int count, bool nearest, int64_t kept) {
    mx_candidate *best = NULL;
    for (mx_candidate *c = candidate; c < candidate + count; c++) {
        const int64_t left = c->unknown - c->rows;
        if (decodes(c) || lacks(c, kept) == 0) continue;
        if (best && c->priority < best->priority) continue;
        const int64_t best_left = best ? best->unknown - best->rows : 0;
        const bool first = !best || c->priority > best->priority;
        if (first || (nearest && left < best_left) || ((!nearest || left == best_left) && c->order < best->order))
            best = c;
    }
    return best;
}

static int64_t give(mx_candidate *c, int64_t most, int64_t *kept) {
    const int64_t left = lacks(c, *kept), rows = left < most ? left : most;
    if (c->scored) *kept -= keeps(c, c->rows + rows) - keeps(c, c->rows);
    c->rows += (int)rows;
    return rows;
}

static int64_t give_prompts(mx_candidate *candidate, int count, int64_t rows, int64_t *kept) {
    int64_t given = 0;
    int priority = 0;
    for (bool first = true; given < rows;) {
        mx_candidate *oldest = next_prompt(candidate, count, false, *kept);
        if (!oldest) break;
        if (first || oldest->priority != priority) given += give(oldest, (rows - given + 1) / 2, kept);
        first = false;
        priority = oldest->priority;
        mx_candidate *nearest = next_prompt(candidate, count, true, *kept);
        if (nearest && nearest->priority == priority && given < rows) given += give(nearest, rows - given, kept);
    }
    return given;
}

static int64_t give_drafts(mx_candidate *candidate, int count, int64_t rows, int64_t kept) {
    int64_t given = 0;
    if (rows > kept) rows = kept;
    for (mx_candidate *c = candidate; c < candidate + count && given < rows; c++) {
        if (!decodes(c) || !c->rows) continue;
        const int64_t more = c->drafted < rows - given ? c->drafted : rows - given;
        c->rows += (int)more;
        given += more;
    }
    return given;
}

/* Rows that decoders leave to prompts: over several steps, these get their part of all. */
static int reserved(mx_scheduler *s, int decoders) {
    if (s->batch_tokens - decoders >= PROMPT_ROWS * s->batch_tokens) return 0;
    s->credit += PROMPT_ROWS * s->batch_tokens;
    const int rows = (int)s->credit;
    s->credit -= rows;
    return rows;
}

/* Rows beside decoders that there is time for; prompts are never held up. */
static int64_t in_time(const mx_scheduler *s, double spent) {
    const double left = room(s) > 0 ? 1 - spent / room(s) : 1;
    const int64_t rows = left > 0 ? (int64_t)ceil(left * (double)s->chunk) : 1;
    return rows < 1 ? 1 : rows < s->chunk ? rows : s->chunk;
}

int mx_scheduler_plan(mx_scheduler *s, mx_candidate *candidate, int count, double spent) {
    int decoders = 0;
    for (int i = 0; i < count; i++) {
        candidate[i].rows = 0;
        decoders += decodes(&candidate[i]);
    }
    const bool prompts = decoders < count;
    const int most = decoders < s->batch_tokens ? decoders : s->batch_tokens;
    int64_t kept = s->max_wanted < s->batch_tokens ? s->max_wanted - count : s->batch_tokens;
    if (!prompts || (decoders && (s->since_decode >= MEASURE_EVERY || differs(most, s->decode_rows)))) {
        int64_t rows = give_decoders(s, candidate, count, decoders, most);
        return (int)(rows + (prompts ? 0 : give_drafts(candidate, count, s->batch_tokens - rows, kept)));
    }
    const int64_t rows = give_decoders(s, candidate, count, decoders, s->batch_tokens - reserved(s, decoders));
    int64_t left = s->batch_tokens - rows;
    s->allowed = in_time(s, spent);
    if (rows > 0 && left > s->allowed) left = s->allowed;
    const int64_t given = give_prompts(candidate, count, left, &kept);
    return (int)(rows + given + give_drafts(candidate, count, left - given, kept));
}
