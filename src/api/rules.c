/* What requests say about the form of their answers, as rules. Grammars are made once: those of schemas that come again
 * are kept. */
#include "api/rules.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "api/chat.h"
#include "api/fields.h"
#include "base/cpu.h"
#include "grammar/schema.h"

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the rules of an answer");
}

/* ---- the cache --------------------------------------------------------------------------------------------------- */
/* The most recently used first. A grammar grows while it is used, by the masks that it keeps: what all have is counted
 * anew whenever one is added. */
enum { CACHE_GRAMMARS = 256 };
static const uint64_t CACHE_BYTES = (uint64_t)256 << 20;

typedef struct entry entry;
struct entry {
    XXH128_hash_t key;
    mx_grammar *grammar;
    bool prepared; /* somebody has, or does just now */
    entry *next;
};

static struct {
    pthread_mutex_t lock;
    entry *first;
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* With the lock held: the link to the entry, or to the end of the list. */
static entry **find(XXH128_hash_t key) {
    entry **link = &cache.first;
    while (*link && !XXH128_isEqual((*link)->key, key)) link = &(*link)->next;
    return link;
}

static void move_to_front(entry **link) {
    entry *e = *link;
    *link = e->next;
    e->next = cache.first;
    cache.first = e;
}

static mx_grammar *look_up(XXH128_hash_t key) {
    mx_grammar *found = NULL;
    pthread_mutex_lock(&cache.lock);
    entry **link = find(key);
    if (*link) {
        found = mx_grammar_keep((*link)->grammar);
        move_to_front(link);
    }
    pthread_mutex_unlock(&cache.lock);
    return found;
}

/* The newest stays, however large it is. Without memory nothing is kept. */
static void keep(XXH128_hash_t key, mx_grammar *grammar) {
    entry *e = malloc(sizeof *e), *dropped = NULL;
    if (!e) return;
    pthread_mutex_lock(&cache.lock);
    if (*find(key)) { /* another thread was faster */
        dropped = e;
        *e = (entry){0};
    } else {
        *e = (entry){.key = key, .grammar = mx_grammar_keep(grammar), .next = cache.first};
        cache.first = e;
        uint64_t bytes = 0;
        int count = 0;
        for (entry **link = &cache.first; *link; link = &(*link)->next) {
            bytes += mx_grammar_bytes((*link)->grammar);
            if (++count <= CACHE_GRAMMARS && (count == 1 || bytes <= CACHE_BYTES)) continue;
            dropped = *link;
            *link = NULL;
            break;
        }
    }
    pthread_mutex_unlock(&cache.lock);
    for (entry *next; dropped; dropped = next) {
        next = dropped->next;
        mx_grammar_free(dropped->grammar);
        free(dropped);
    }
}

/* Refusals are remembered too, the last few: what is too complicated takes about a second to find out. */
enum { CACHE_REFUSALS = 64 };
typedef struct refusal {
    XXH128_hash_t key;
    mx_status status; /* MX_OK: none */
    mx_error error;   /* without the name of the schema */
} refusal;
static refusal refusals[CACHE_REFUSALS]; /* with the lock of the cache */
static unsigned refusal_count;

static mx_status refused(XXH128_hash_t key, const char *name, mx_error *error) {
    mx_status status = MX_OK;
    pthread_mutex_lock(&cache.lock);
    for (int i = 0; i < CACHE_REFUSALS && !status; i++)
        if (refusals[i].status && XXH128_isEqual(refusals[i].key, key))
            status = name ? mx_fail(error, refusals[i].status, "%s: %s", name, refusals[i].error.text)
                          : mx_fail(error, refusals[i].status, "%s", refusals[i].error.text);
    pthread_mutex_unlock(&cache.lock);
    return status;
}

/* `name`: what the message begins with, or NULL. `whole`: it is not for want of work that others have taken. */
static mx_status keep_refusal(XXH128_hash_t key, mx_status status, const char *name, bool whole,
                              const mx_error *error) {
    const size_t begin = name ? strlen(name) + 2 : 0;
    if (!whole || status == MX_NO_MEMORY || strlen(error->text) < begin) return status;
    pthread_mutex_lock(&cache.lock);
    refusal *r = &refusals[refusal_count++ % CACHE_REFUSALS];
    *r = (refusal){.key = key, .status = status};
    memcpy(r->error.text, error->text + begin, strlen(error->text + begin) + 1);
    pthread_mutex_unlock(&cache.lock);
    return status;
}

/* Is the caller to prepare it? One that is not in the cache is new, and soon gone. */
static bool wants_preparing(const mx_grammar *grammar) {
    bool wants = false;
    pthread_mutex_lock(&cache.lock);
    for (entry *e = cache.first; e; e = e->next) {
        if (e->grammar != grammar) continue;
        wants = !e->prepared;
        e->prepared = true;
    }
    pthread_mutex_unlock(&cache.lock);
    return wants;
}

static void prepare(mx_grammar *grammar, mx_vocabulary *vocabulary, double end) {
    const double seconds = end - mx_seconds();
    if (grammar && seconds > 0 && wants_preparing(grammar)) mx_grammar_prepare(grammar, vocabulary, seconds);
}

void mx_api_rules_prepare(const mx_rules *rules, mx_vocabulary *vocabulary, double seconds) {
    const double end = mx_seconds() + seconds;
    prepare(rules->text, vocabulary, end);
    for (int i = 0; i < rules->tool_count; i++) prepare(rules->tools[i].arguments, vocabulary, end);
}

/* ---- grammars ---------------------------------------------------------------------------------------------------- */
/* What is wrong with the request is told there; the rest is about us. */
static mx_status tell(mx_status status, const mx_error *found, const char *param, mx_api_problem *problem,
                      mx_error *error) {
    if (status == MX_NO_MEMORY) return mx_fail(error, status, "%s", found->text);
    if (status)
        mx_api_wrong(problem, param, status == MX_UNSUPPORTED ? "unsupported_value" : "invalid_value", "%s",
                     found->text);
    return MX_OK;
}

/* What all schemas of a request may take, those that are not remembered: about two seconds. */
static const int64_t REQUEST_WORK = (int64_t)2 * MX_SCHEMA_WORK;

static int64_t work_left(void) { /* below 0: no limit */
    const int64_t left = mx_regular_allow(-1);
    mx_regular_allow(left);
    return left;
}

static bool may_take_all(void) {
    const int64_t left = work_left();
    return left < 0 || left >= MX_SCHEMA_WORK;
}

/* What this schema alone could have had is used up by those before it. */
static mx_status together(const char *name, mx_error *error) {
    return mx_fail(error, MX_UNSUPPORTED,
                   "%s: the schemas of this request are together more than %lld steps of work: leave \"strict\" out of "
                   "some, or send it again, for those before are kept",
                   name, (long long)REQUEST_WORK);
}

/* schema NULL: any object. */
static mx_status compile(const mx_json *schema, const char *name, bool strict, mx_grammar **out, mx_error *error) {
    const mx_schema_options options = {.spaces = MX_SPACES_FEW, .openai_strict = strict};
    mx_bytes key = {0};
    if (!mx_bytes_addf(&key, "%s %d ", schema ? "schema" : "object", strict) ||
        (schema && !mx_json_write(&key, schema))) {
        mx_bytes_free(&key);
        return no_memory(error);
    }
    const XXH128_hash_t hash = XXH3_128bits(key.data, key.size);
    mx_bytes_free(&key);
    if ((*out = look_up(hash))) return MX_OK;
    mx_status status = refused(hash, name, error);
    if (status) return status;
    const bool whole = may_take_all();
    status =
        schema ? mx_schema_compile(schema, name, &options, out, error) : mx_schema_any_object(&options, out, error);
    if (status == MX_UNSUPPORTED && !whole && work_left() == 0) return together(name, error);
    if (status) return keep_refusal(hash, status, name, whole, error);
    keep(hash, *out);
    return MX_OK;
}

/* All of a text matches the expression. */
static mx_status compile_regex(const char *pattern, size_t size, mx_grammar **out, mx_error *error) {
    mx_bytes key = {0};
    if (!mx_bytes_add_string(&key, "regex ") || !mx_bytes_add(&key, pattern, size)) {
        mx_bytes_free(&key);
        return no_memory(error);
    }
    const XXH128_hash_t hash = XXH3_128bits(key.data, key.size);
    mx_bytes_free(&key);
    if ((*out = look_up(hash))) return MX_OK;
    mx_regular *language = NULL;
    mx_status status = refused(hash, NULL, error);
    if (status) return status;
    const bool whole = may_take_all();
    status = mx_regular_parse(pattern, size, true, &language, error);
    mx_grammar_builder *b = status ? NULL : mx_grammar_builder_create();
    if (!status && !b) status = no_memory(error);
    if (!status) status = mx_grammar_compile(b, mx_expr_regular(b, language), out, error);
    mx_grammar_builder_free(b);
    mx_regular_free(language);
    if (status) return keep_refusal(hash, status, NULL, whole, error);
    keep(hash, *out);
    return MX_OK;
}

static void set_text(mx_rules *rules, mx_grammar *grammar) {
    mx_grammar_free(rules->text);
    rules->text = grammar;
}

mx_status mx_api_rules_schema(mx_rules *rules, const mx_json *schema, bool strict, const char *param,
                              mx_api_problem *problem, mx_error *error) {
    mx_grammar *grammar = NULL;
    mx_error found = {0};
    const mx_status status = compile(schema, param, strict, &grammar, &found);
    if (!status) set_text(rules, grammar);
    return tell(status, &found, param, problem, error);
}

mx_status mx_api_rules_json(mx_rules *rules, mx_error *error) {
    mx_grammar *grammar = NULL;
    const mx_status status = compile(NULL, NULL, false, &grammar, error);
    if (!status) set_text(rules, grammar);
    return status;
}

mx_status mx_api_rules_regex(mx_rules *rules, const char *pattern, size_t size, const char *param,
                             mx_api_problem *problem, mx_error *error) {
    mx_grammar *grammar = NULL;
    mx_error found = {0};
    const mx_status status = compile_regex(pattern, size, &grammar, &found);
    if (!status) {
        set_text(rules, grammar);
        return MX_OK;
    }
    mx_error named = {0};
    mx_fail(&named, status, "%s: %s", param, found.text);
    return tell(status, &named, param, problem, error);
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */
/* The tool of this name, or NULL. */
static mx_rules_tool *find_tool(const mx_rules *rules, const char *name) {
    for (int i = 0; i < rules->tool_count; i++)
        if (!strcmp(rules->tools[i].name, name)) return &rules->tools[i];
    return NULL;
}

/* The same, added where it is not there. NULL: no memory. */
static mx_rules_tool *place_of(mx_rules *rules, const char *name) {
    mx_rules_tool *place = find_tool(rules, name);
    if (place) return place;
    mx_rules_tool *grown = realloc(rules->tools, ((size_t)rules->tool_count + 1) * sizeof *grown);
    if (!grown) return NULL;
    rules->tools = grown;
    place = &grown[rules->tool_count];
    *place = (mx_rules_tool){.name = strdup(name)};
    rules->tool_count += place->name != NULL;
    return place->name ? place : NULL;
}

static bool wrong_name(mx_api_problem *problem, const char *param, const char *name) {
    return mx_api_wrong(problem, param, "invalid_value", "%s: a function's name has 1 to 64 characters, \"%.80s\" not",
                        param, name);
}

/* The schema of arguments, which are an object even where the client's own says nothing of that. MX_INVALID_ARGUMENT:
 * it is about something else. */
static mx_status write_arguments(const mx_json *parameters, const char *param, mx_bytes *out, mx_error *error) {
    static const char nothing[] = "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}";
    const mx_json *type = mx_json_get(parameters, "type");
    bool written = mx_bytes_add_string(out, parameters ? "{\"type\":\"object\"" : nothing);
    if (parameters && (parameters->type != MX_JSON_OBJECT || (type && !mx_json_is_string(type, "object"))))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: arguments are an object, so that their schema has to be {\"type\": \"object\", ...}",
                       param);
    for (const mx_json *v = parameters ? parameters->child : NULL; v && written; v = v->next) {
        if (v->key_size == 4 && !memcmp(v->key, "type", 4)) continue;
        if (v->key_size == 8 && !memcmp(v->key, "nullable", 8)) continue; /* arguments are never null */
        written = mx_bytes_add_string(out, ",") && mx_bytes_add_json(out, v->key, v->key_size) &&
                  mx_bytes_add_string(out, ":") && mx_json_write(out, v);
    }
    if (parameters) written = written && mx_bytes_add_string(out, "}");
    return written ? MX_OK : no_memory(error);
}

static mx_status compile_arguments(const mx_json *parameters, const char *param, bool strict, mx_grammar **out,
                                   mx_error *error) {
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_status status = write_arguments(parameters, param, &text, error);
    if (!status) status = mx_json_parse(param, text.data, text.size, &document, error);
    if (!status) status = compile(mx_json_root(document), param, strict, out, error);
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

/* Of a tool's arguments. */
typedef enum hold {
    FREE,   /* any text */
    GUIDED, /* of the schema where it can be compiled */
    HELD,   /* of the schema */
} hold;

static mx_status add_tool(mx_rules *rules, const char *tool, const mx_json *parameters, hold how, const char *param,
                          mx_api_problem *problem, mx_error *error) {
    char name[65];
    if (!mx_api_tool_name(tool, strlen(tool), name)) {
        wrong_name(problem, param, tool);
        return MX_OK;
    }
    mx_rules_tool *place = place_of(rules, name);
    if (!place) return no_memory(error);
    if (how == FREE || (how == GUIDED && !parameters)) return MX_OK;
    mx_grammar *grammar = NULL;
    mx_error found = {0};
    const mx_status status = compile_arguments(parameters, param, how == HELD, &grammar, &found);
    if (!status) {
        mx_grammar_free(place->arguments);
        place->arguments = grammar;
    }
    return how == GUIDED && status != MX_NO_MEMORY ? MX_OK : tell(status, &found, param, problem, error);
}

mx_status mx_api_rules_tool(mx_rules *rules, const char *tool, const mx_json *parameters, bool strict,
                            const char *param, mx_api_problem *problem, mx_error *error) {
    return add_tool(rules, tool, parameters, strict ? HELD : FREE, param, problem, error);
}

/* Calls that have to be made are made of JSON. */
static mx_status at_least_objects(mx_rules *rules, mx_error *error) {
    for (int i = 0; i < rules->tool_count; i++) {
        if (rules->tools[i].arguments) continue;
        const mx_status status = compile(NULL, NULL, false, &rules->tools[i].arguments, error);
        if (status) return status;
    }
    return MX_OK;
}

mx_status mx_api_rules_choose(mx_rules *rules, mx_tool_choice choice, const char *named, const char *param,
                              mx_api_problem *problem, mx_error *error) {
    rules->choice = choice;
    if (choice != MX_TOOLS_REQUIRED && choice != MX_TOOLS_NAMED) return MX_OK;
    if (!rules->tool_count) {
        mx_api_wrong(problem, param, "invalid_value", "%s: a call is asked for, but there are no tools", param);
        return MX_OK;
    }
    if (choice == MX_TOOLS_NAMED) {
        char name[65];
        free(rules->named);
        rules->named = NULL;
        const bool good = mx_api_tool_name(named, strlen(named), name);
        if (good && !(rules->named = strdup(name))) return no_memory(error);
        if (!good || !find_tool(rules, name)) {
            mx_api_wrong(problem, param, "invalid_value", "%s: no tool is called \"%.80s\"", param, named);
            return MX_OK;
        }
    }
    return at_least_objects(rules, error);
}

/* ---- OpenAI's form ----------------------------------------------------------------------------------------------- */
typedef struct reading {
    mx_rules *rules;
    mx_api_problem *problem;
    mx_error *error;
} reading;

static bool is_text(const mx_json *v) {
    return v && v->type == MX_JSON_STRING && v->size && strlen(v->text) == v->size;
}

/* false where it is absent; a problem where it is no truth value. */
static bool read_bool(const reading *r, const mx_json *object, const char *name, const char *param) {
    const mx_json *v = mx_field(object, name);
    bool value = false;
    if (v && !mx_json_bool(v, &value))
        mx_api_wrong(r->problem, param, "invalid_type", "%s: expected true or false", param);
    return value;
}

/* `must`: some tool has to be called, its arguments shall be made of JSON. */
static mx_status read_tool(const reading *r, const mx_json *tool, int index, bool must) {
    char param[80];
    const mx_json *type = mx_json_get(tool, "type"), *function = mx_field(tool, "function");
    if (type && !mx_json_is_string(type, "function")) return MX_OK; /* mx_api_chat_set_tools warns of it, once */
    if (!function) function = tool;                                 /* as /v1/responses has it, flat */
    const mx_json *name = mx_field(function, "name"), *parameters = mx_field(function, "parameters");
    snprintf(param, sizeof param, "tools[%d].function.name", index);
    if (!is_text(name)) {
        mx_api_wrong(r->problem, param, "invalid_type", "%s: expected a name", param);
        return MX_OK;
    }
    snprintf(param, sizeof param, "tools[%d].function.strict", index);
    const bool strict = read_bool(r, function, "strict", param);
    if (r->problem->http_status) return MX_OK;
    snprintf(param, sizeof param, "tools[%d].function.parameters", index);
    return add_tool(r->rules, name->text, parameters,
                    strict ? HELD
                    : must ? GUIDED
                           : FREE,
                    param, r->problem, r->error);
}

static mx_status read_tools(const reading *r, const mx_json *tools, bool must) {
    mx_status status = MX_OK;
    int index = 0;
    if (tools && tools->type != MX_JSON_ARRAY) {
        mx_api_wrong(r->problem, "tools", "invalid_type", "tools: expected an array");
        return MX_OK;
    }
    if (tools && tools->count > MX_API_MOST_TOOLS) {
        mx_api_wrong(r->problem, "tools", "invalid_value", "tools: %u tools, at most %d are allowed", tools->count,
                     MX_API_MOST_TOOLS);
        return MX_OK;
    }
    for (const mx_json *tool = tools ? tools->child : NULL; tool && !status && !r->problem->http_status;
         tool = tool->next)
        status = read_tool(r, tool, index++, must);
    return status;
}

/* The name within {"type": "function", "function": {"name"}} or, flat, {"type": "function", "name"}; NULL: none. */
static const mx_json *name_within(const mx_json *choice) {
    const mx_json *function = mx_field(choice, "function");
    const mx_json *name = mx_field(function ? function : choice, "name");
    return mx_json_is_string(mx_json_get(choice, "type"), "function") && is_text(name) ? name : NULL;
}

/* Marks the tools that are allowed. false: the problem is told. */
static bool check_allowed(const reading *r, const mx_json *list, const mx_json *mode,
                          bool keep[static MX_API_MOST_TOOLS]) {
    if (!list || list->type != MX_JSON_ARRAY || list->count > MX_API_MOST_TOOLS)
        return mx_api_wrong(r->problem, "tool_choice", "invalid_type",
                            "tool_choice.allowed_tools.tools: expected an array of at most %d tools",
                            MX_API_MOST_TOOLS);
    if (!mx_json_is_string(mode, "auto") && !mx_json_is_string(mode, "required"))
        return mx_api_wrong(r->problem, "tool_choice", "invalid_value",
                            "tool_choice.allowed_tools.mode: expected \"auto\" or \"required\"");
    for (const mx_json *v = list->child; v; v = v->next) {
        char name[65];
        const mx_json *given = name_within(v), *type = mx_json_get(v, "type");
        if (!given && type && !mx_json_is_string(type, "function")) continue; /* no function: left out as in "tools" */
        const mx_rules_tool *tool =
            given && mx_api_tool_name(given->text, given->size, name) ? find_tool(r->rules, name) : NULL;
        if (!tool)
            return mx_api_wrong(r->problem, "tool_choice", "invalid_value",
                                "tool_choice.allowed_tools: no tool is called \"%.80s\"", given ? given->text : "");
        keep[tool - r->rules->tools] = true;
    }
    return true;
}

/* {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required", "tools": [...]}}: the others go. */
static mx_status choose_allowed(const reading *r, const mx_json *choice) {
    const mx_json *allowed = mx_field(choice, "allowed_tools");
    if (!allowed) allowed = choice;
    const mx_json *list = mx_field(allowed, "tools"), *mode = mx_field(allowed, "mode");
    bool keep[MX_API_MOST_TOOLS] = {false};
    if (!check_allowed(r, list, mode, keep)) return MX_OK;
    int kept = 0;
    for (int i = 0; i < r->rules->tool_count; i++) {
        mx_rules_tool tool = r->rules->tools[i];
        const bool found = keep[i];
        r->rules->tools[i] = r->rules->tools[kept];
        r->rules->tools[kept] = tool;
        kept += found;
    }
    for (int i = kept; i < r->rules->tool_count; i++) {
        free(r->rules->tools[i].name);
        mx_grammar_free(r->rules->tools[i].arguments);
    }
    r->rules->tool_count = kept;
    const mx_tool_choice what = mx_json_is_string(mode, "required") ? MX_TOOLS_REQUIRED
                                : kept                              ? MX_TOOLS_AUTO
                                                                    : MX_TOOLS_NONE;
    return mx_api_rules_choose(r->rules, what, NULL, "tool_choice", r->problem, r->error);
}

static mx_status read_choice(const reading *r, const mx_json *choice) {
    const mx_json *name = choice ? name_within(choice) : NULL;
    mx_tool_choice what = r->rules->tool_count ? MX_TOOLS_AUTO : MX_TOOLS_NONE;
    if (choice && mx_json_is_string(mx_json_get(choice, "type"), "allowed_tools")) return choose_allowed(r, choice);
    if (name)
        what = MX_TOOLS_NAMED;
    else if (mx_json_is_string(choice, "required"))
        what = MX_TOOLS_REQUIRED;
    else if (mx_json_is_string(choice, "none"))
        what = MX_TOOLS_NONE;
    else if (choice && !mx_json_is_string(choice, "auto")) {
        mx_api_wrong(r->problem, "tool_choice", "invalid_value",
                     "tool_choice: expected \"auto\", \"none\", \"required\", {\"type\": \"function\", \"function\": "
                     "{\"name\": \"...\"}} or {\"type\": \"allowed_tools\", \"allowed_tools\": {\"mode\": \"auto\" | "
                     "\"required\", \"tools\": [...]}}");
        return MX_OK;
    }
    return mx_api_rules_choose(r->rules, what, name ? name->text : NULL, "tool_choice", r->problem, r->error);
}

static mx_status read_schema(const reading *r, const mx_json *format) {
    static const char param[] = "response_format.json_schema";
    const mx_json *own = mx_field(format, "json_schema");
    const mx_json *schema = mx_field(own, "schema");
    if (!own || own->type != MX_JSON_OBJECT || !schema) {
        mx_api_wrong(r->problem, param, own ? "invalid_type" : "missing_required_parameter",
                     "%s: expected {\"name\": \"...\", \"schema\": {...}}", param);
        return MX_OK;
    }
    const bool strict = read_bool(r, own, "strict", "response_format.json_schema.strict");
    if (r->problem->http_status) return MX_OK;
    return mx_api_rules_schema(r->rules, schema, strict, "response_format.json_schema.schema", r->problem, r->error);
}

static mx_status read_grammar(const reading *r, const mx_json *format, bool regex) {
    const mx_json *grammar = regex ? format : mx_field(format, "grammar");
    const char *param = regex ? "response_format.pattern" : "response_format.grammar";
    const mx_json *pattern = mx_field(grammar, regex ? "pattern" : "definition"), *syntax = mx_field(grammar, "syntax");
    if (!regex && syntax && !mx_json_is_string(syntax, "regex")) {
        mx_api_wrong(r->problem, param, "unsupported_value", "%s: only the syntax \"regex\" is there", param);
        return MX_OK;
    }
    if (!pattern || pattern->type != MX_JSON_STRING) {
        mx_api_wrong(r->problem, param, "invalid_type", "%s: expected %s", param,
                     regex ? "a regular expression" : "{\"syntax\": \"regex\", \"definition\": \"...\"}");
        return MX_OK;
    }
    return mx_api_rules_regex(r->rules, pattern->text, pattern->size, param, r->problem, r->error);
}

static mx_status read_format(const reading *r, const mx_json *format) {
    const mx_json *type = mx_field(format, "type");
    if (!format || mx_json_is_string(type, "text")) return MX_OK;
    if (mx_json_is_string(type, "json_object")) return mx_api_rules_json(r->rules, r->error);
    if (mx_json_is_string(type, "json_schema")) return read_schema(r, format);
    if (mx_json_is_string(type, "grammar")) return read_grammar(r, format, false);
    if (mx_json_is_string(type, "regex")) return read_grammar(r, format, true);
    mx_api_wrong(
        r->problem, "response_format", "invalid_value",
        "response_format: expected {\"type\": \"text\" | \"json_object\" | \"json_schema\" | \"grammar\" | \"regex\", "
        "...}");
    return MX_OK;
}

/* Is a call asked for? */
static bool must_call(const mx_json *choice) {
    const mx_json *allowed = mx_field(choice, "allowed_tools");
    return mx_json_is_string(choice, "required") || name_within(choice) ||
           mx_json_is_string(mx_field(allowed ? allowed : choice, "mode"), "required");
}

static mx_status read_all(const reading *r, const mx_json *fields, const mx_json *tools, bool chat) {
    const mx_json *choice = mx_field(fields, "tool_choice");
    const int64_t before = mx_regular_allow(REQUEST_WORK);
    mx_status status = read_format(r, mx_field(fields, "response_format"));
    r->rules->raw = !chat;
    r->rules->choice = MX_TOOLS_NONE;
    const bool go_on = !status && !r->problem->http_status && chat;
    if (go_on) read_bool(r, fields, "parallel_tool_calls", "parallel_tool_calls"); /* one call at most anyway */
    if (go_on && !r->problem->http_status) status = read_tools(r, tools, must_call(choice));
    mx_regular_allow(before);
    if (!go_on) return status;
    return status || r->problem->http_status ? status : read_choice(r, choice);
}

mx_status mx_api_read_rules(const mx_json *fields, const mx_json *tools, bool chat, mx_rules **out,
                            mx_api_problem *problem, mx_error *error) {
    *out = NULL;
    mx_rules *rules = mx_rules_create();
    if (!rules) return no_memory(error);
    const reading r = {rules, problem, error};
    if (mx_field(fields, "tools")) tools = mx_field(fields, "tools");
    const mx_status status = read_all(&r, fields, tools, chat);
    /* Only where a client says so: to forbid calls to every chat without tools would cost a mask for each token. */
    const bool none = mx_field(fields, "tool_choice") && !mx_json_is_string(mx_field(fields, "tool_choice"), "auto");
    if (!status && !problem->http_status && (rules->text || (chat && (rules->choice != MX_TOOLS_NONE || none))))
        *out = rules;
    else
        mx_rules_free(rules);
    return status;
}
