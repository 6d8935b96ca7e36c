#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands/models.h"
#include "commands/pull_show.h"

static int option_json, option_all;

/* One line of the list. */
typedef struct row {
    const mx_target *target;
    const mx_copy *copy; /* NULL: not on this machine */
    const char *path;    /* of what comes with mxrun; else NULL */
    int64_t incomplete;
} row;

static const char *origin(const row *r) {
    if (mx_comes_along(r->target)) return "program";
    return !r->copy ? NULL : r->copy->ours ? "mxrun" : "other tool";
}

static void print_row(const row *r, int width) {
    char size[16] = "-";
    const bool along = mx_comes_along(r->target);
    const char *state = along || (r->copy && r->copy->complete) ? "complete" : r->copy ? "incomplete" : "not here";
    const int64_t bytes = r->copy ? r->copy->bytes + r->incomplete : 0;
    if (bytes) mx_size_text(size, bytes);
    printf("%-*s  %-8s  %9s  %-10s  %-10s  %s\n", width, r->target->name,
           mx_hub_layout_name(r->copy && r->copy->layout ? r->copy->layout : r->target->layout), size, state,
           origin(r) ? origin(r) : "-", along ? "comes with mxrun" : r->target->repository);
}

static void add_text(mx_bytes *out, const char *name, const char *text) {
    mx_bytes_addf(out, ",\"%s\":", name);
    if (text)
        mx_bytes_add_json(out, text, strlen(text));
    else
        mx_bytes_add_string(out, "null");
}

static void add_strings(mx_bytes *out, const char *name, const mx_strings *s) {
    mx_bytes_addf(out, ",\"%s\":[", name);
    for (int i = 0; s && i < s->count; i++) {
        mx_bytes_add_string(out, i ? "," : "");
        mx_bytes_add_json(out, s->text[i], strlen(s->text[i]));
    }
    mx_bytes_add_string(out, "]");
}

static void add_row(mx_bytes *out, const row *r) {
    const mx_known_model *known = r->target->known;
    const bool along = mx_comes_along(r->target);
    mx_bytes_add_string(out, "{\"name\":");
    mx_bytes_add_json(out, r->target->name, strlen(r->target->name));
    add_strings(out, "aliases", known ? &known->aliases : NULL);
    add_text(out, "repository", along ? NULL : r->target->repository);
    add_text(out, "revision", along ? NULL : r->target->revision);
    add_text(out, "commit", r->copy && r->copy->commit[0] ? r->copy->commit : NULL);
    add_text(out, "layout", mx_hub_layout_name(r->copy && r->copy->layout ? r->copy->layout : r->target->layout));
    add_text(out, "licence", known ? known->licence : NULL);
    mx_bytes_addf(out, ",\"bytes\":%lld,\"incomplete_bytes\":%lld,\"complete\":%s",
                  (long long)(r->copy ? r->copy->bytes : 0), (long long)r->incomplete,
                  along || (r->copy && r->copy->complete) ? "true" : "false");
    add_text(out, "from", origin(r));
    add_text(out, "path", along ? r->path : r->copy && r->copy->found ? r->copy->path : NULL);
    add_strings(out, "missing", r->copy ? &r->copy->missing : NULL);
    mx_bytes_add_string(out, "}");
}

static bool is_listed(const mx_cached_list *list, const char *name) {
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->item[i].target.name, name)) return true;
    return false;
}

typedef struct table {
    row *row;
    mx_target *known;
    int rows, knowns;
    char stories[MX_HUB_PATH];
} table;

static mx_status fill(table *t, const mx_models *models, const mx_cached_list *list, mx_error *error) {
    t->row = calloc((size_t)list->count + (size_t)models->count + 1, sizeof *t->row);
    t->known = calloc((size_t)models->count + 1, sizeof *t->known);
    if (!t->row || !t->known) return mx_fail(error, MX_NO_MEMORY, "out of memory");
    for (int i = 0; i < list->count; i++)
        t->row[t->rows++] = (row){&list->item[i].target, &list->item[i].copy, NULL, list->item[i].incomplete};
    for (int i = 0; i < models->count; i++) {
        mx_target *target = &t->known[t->knowns];
        mx_status status = mx_target_parse(models, models->model[i].name, target, error);
        if (status) return status;
        if (is_listed(list, target->name) || (!option_all && !mx_comes_along(target))) continue;
        t->knowns++;
        t->row[t->rows++] = (row){target, NULL, t->stories, 0};
    }
    return MX_OK;
}

static mx_status print_list(const mx_hub *hub, const table *t, mx_error *error) {
    if (option_json) {
        mx_bytes out = {0};
        mx_bytes_add_string(&out, "{\"cache\":");
        mx_bytes_add_json(&out, hub->folder, strlen(hub->folder));
        mx_bytes_add_string(&out, ",\"models\":[");
        for (int i = 0; i < t->rows; i++) {
            mx_bytes_add_string(&out, i ? "," : "");
            add_row(&out, &t->row[i]);
        }
        const bool kept = mx_bytes_add_string(&out, "]}");
        if (kept) printf("%s\n", out.data);
        mx_bytes_free(&out);
        if (!kept) return mx_fail(error, MX_NO_MEMORY, "out of memory");
    } else {
        int width = 4;
        for (int i = 0; i < t->rows; i++) {
            const int size = (int)strlen(t->row[i].target->name);
            width = size > width ? size : width;
        }
        printf("%-*s  %-8s  %9s  %-10s  %-10s  %s\n", width, "NAME", "LAYOUT", "SIZE", "STATE", "FROM", "REPOSITORY");
        for (int i = 0; i < t->rows; i++) print_row(&t->row[i], width);
    }
    if (fflush(stdout) != 0 || ferror(stdout))
        return mx_fail(error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    return MX_OK;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"all", 'a', POPT_ARG_NONE, &option_all, 0, "Those of models.txt that are not on this machine, too", NULL},
        {"json", '\0', POPT_ARG_NONE, &option_json, 0, "One JSON object instead of the table", NULL},
        POPT_TABLEEND,
    };
    table t = {0};
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    if (positional && positional[0]) return mx_command_usage(self, "unexpected argument \"%s\"", positional[0]);
    mx_error error = {0};
    mx_models models = {0};
    mx_hub hub = {0};
    mx_cached_list list = {0};
    mx_status status = mx_open_models(&models, &error);
    if (!status) status = mx_open_hub(&hub, &error);
    if (!status) status = mx_cache_list(&hub, &models, &list, &error);
    if (!status && mx_find_stories(t.stories, sizeof t.stories, NULL)) t.stories[0] = 0;
    if (!status) status = fill(&t, &models, &list, &error);
    if (!status) status = print_list(&hub, &t, &error);
    free(t.row);
    free(t.known);
    mx_cached_list_free(&list);
    mx_hub_close(&hub);
    mx_models_free(&models);
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

const mx_command mx_command_list = {
    .name = "list",
    .arguments = "[--all] [--json]",
    .summary = "Show the models that are on this machine",
    .description = "Names for -m with layout, size on disk, whether all files are there, and who put them\n"
                   "into the Hugging Face cache: mxrun, or another tool of the hub. Of the repositories that\n"
                   "models.txt does not know, those are shown that mxrun pulled or whose files say gpt-oss.",
    .run = run,
};
