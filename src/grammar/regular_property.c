/* Unicode's properties, as PCRE2 knows them: it is asked which of all characters have one, once for each. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "grammar/regular_private.h"

/* ECMA-262's names of general categories (table "Value aliases and canonical values for General_Category"), and
 * PCRE2's, which has the short ones alone. */
static const struct category {
    const char *names, *known;
} categories[] = {
    {" Cased_Letter LC ", "L&"},
    {" Close_Punctuation Pe ", "Pe"},
    {" Connector_Punctuation Pc ", "Pc"},
    {" Control Cc cntrl ", "Cc"},
    {" Currency_Symbol Sc ", "Sc"},
    {" Dash_Punctuation Pd ", "Pd"},
    {" Decimal_Number Nd digit ", "Nd"},
    {" Enclosing_Mark Me ", "Me"},
    {" Final_Punctuation Pf ", "Pf"},
    {" Format Cf ", "Cf"},
    {" Initial_Punctuation Pi ", "Pi"},
    {" Letter L ", "L"},
    {" Letter_Number Nl ", "Nl"},
    {" Line_Separator Zl ", "Zl"},
    {" Lowercase_Letter Ll ", "Ll"},
    {" Mark M Combining_Mark ", "M"},
    {" Math_Symbol Sm ", "Sm"},
    {" Modifier_Letter Lm ", "Lm"},
    {" Modifier_Symbol Sk ", "Sk"},
    {" Nonspacing_Mark Mn ", "Mn"},
    {" Number N ", "N"},
    {" Open_Punctuation Ps ", "Ps"},
    {" Other C ", "C"},
    {" Other_Letter Lo ", "Lo"},
    {" Other_Number No ", "No"},
    {" Other_Punctuation Po ", "Po"},
    {" Other_Symbol So ", "So"},
    {" Paragraph_Separator Zp ", "Zp"},
    {" Private_Use Co ", "Co"},
    {" Punctuation P punct ", "P"},
    {" Separator Z ", "Z"},
    {" Space_Separator Zs ", "Zs"},
    {" Spacing_Mark Mc ", "Mc"},
    {" Surrogate Cs ", "Cs"},
    {" Symbol S ", "S"},
    {" Titlecase_Letter Lt ", "Lt"},
    {" Unassigned Cn ", "Cn"},
    {" Uppercase_Letter Lu ", "Lu"},
};

/* Its properties that are there or not (table "Binary Unicode property aliases"). */
static const char binary[] =
    " ASCII ASCII_Hex_Digit AHex Alphabetic Alpha Any Assigned Bidi_Control Bidi_C Bidi_Mirrored Bidi_M Case_Ignorable "
    "CI Cased Changes_When_Casefolded CWCF Changes_When_Casemapped CWCM Changes_When_Lowercased CWL "
    "Changes_When_NFKC_Casefolded CWKCF Changes_When_Titlecased CWT Changes_When_Uppercased CWU Dash "
    "Default_Ignorable_Code_Point DI Deprecated Dep Diacritic Dia Emoji Emoji_Component EComp Emoji_Modifier EMod "
    "Emoji_Modifier_Base EBase Emoji_Presentation EPres Extended_Pictographic ExtPict Extender Ext Grapheme_Base "
    "Gr_Base Grapheme_Extend Gr_Ext Hex_Digit Hex IDS_Binary_Operator IDSB IDS_Trinary_Operator IDST ID_Continue IDC "
    "ID_Start IDS Ideographic Ideo Join_Control Join_C Logical_Order_Exception LOE Lowercase Lower Math "
    "Noncharacter_Code_Point NChar Pattern_Syntax Pat_Syn Pattern_White_Space Pat_WS Quotation_Mark QMark Radical "
    "Regional_Indicator RI Sentence_Terminal STerm Soft_Dotted SD Terminal_Punctuation Term Unified_Ideograph UIdeo "
    "Uppercase Upper Variation_Selector VS White_Space space XID_Continue XIDC XID_Start XIDS ";

/* Is it one of the words of `list`, which stand between spaces? */
static bool in_list(const char *list, const char *name, size_t size) {
    for (const char *at = list; (at = strchr(at, ' ')) && at[1]; at++)
        if (strncmp(at + 1, name, size) == 0 && at[1 + size] == ' ') return true;
    return false;
}

static const char *category_of(const char *name, size_t size) {
    for (size_t i = 0; i < sizeof categories / sizeof *categories; i++)
        if (in_list(categories[i].names, name, size)) return categories[i].known;
    return NULL;
}

/* PCRE2's pattern for \p{name}; false: ECMA-262 has no such. */
static bool translate(const char *name, size_t size, char *out, size_t room) {
    for (size_t i = 0; i < size; i++) {
        const char c = name[i];
        const bool fits =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '=';
        if (!fits) return false;
    }
    const char *equals = memchr(name, '=', size);
    const char *value = equals ? equals + 1 : name;
    const size_t key = equals ? (size_t)(equals - name) : 0, left = size - (size_t)(value - name);
    if (!left || memchr(value, '=', left)) return false;
    const char *category = category_of(value, left);
    if (!equals || in_list(" General_Category gc ", name, key)) {
        if (!category && equals) return false;
        if (!category && !in_list(binary, name, size)) return false;
        if (category)
            snprintf(out, room, "\\p{%s}+", category);
        else if (in_list(" Assigned ", name, size))
            snprintf(out, room, "\\P{Cn}+");
        else
            snprintf(out, room, "\\p{%.*s}+", (int)size, name);
        return true;
    }
    const bool script = in_list(" Script sc ", name, key);
    if (!script && !in_list(" Script_Extensions scx ", name, key)) return false;
    snprintf(out, room, "\\p{%s:%.*s}+", script ? "sc" : "scx", (int)left, value);
    return true;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* All characters but surrogates, one behind the other; in malloc's memory. */
static char *all_characters(size_t *size) {
    mx_bytes text = {0};
    for (uint32_t c = 0; c <= MX_LAST_CHARACTER; c++)
        if ((c < 0xD800 || c > 0xDFFF) && !mx_bytes_add_utf8(&text, c)) {
            mx_bytes_free(&text);
            return NULL;
        }
    *size = text.size;
    return text.data;
}

/* The character whose bytes begin at `at` of that text. */
static uint32_t character_at(size_t at) {
    if (at < 0x80) return (uint32_t)at;
    at -= 0x80;
    if (at < 2 * 0x780) return 0x80 + (uint32_t)(at / 2);
    at -= 2 * 0x780;
    if (at < 3 * 0xD000) return 0x800 + (uint32_t)(at / 3);
    at -= 3 * 0xD000;
    if (at < 3 * 0x2000) return 0xE000 + (uint32_t)(at / 3);
    return 0x10000 + (uint32_t)((at - 3 * 0x2000) / 4);
}

/* The runs of characters that match. */
static mx_status find_runs(pcre2_code *code, const char *text, size_t size, mx_ranges *out, mx_error *error) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    const bool jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    mx_status status = data ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for a Unicode property");
    for (size_t at = 0; !status && at < size;) {
        const int rc = jit ? pcre2_jit_match(code, (PCRE2_SPTR)text, size, at, 0, data, NULL)
                           : pcre2_match(code, (PCRE2_SPTR)text, size, at, PCRE2_NO_UTF_CHECK, data, NULL);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);
        if (rc < 0)
            status = mx_fail(error, MX_UNSUPPORTED, "PCRE2 cannot list a Unicode property (its error %d)", rc);
        else if (!mx_ranges_add(out, character_at(span[0]), character_at(span[1] - 1)))
            status = mx_fail(error, MX_NO_MEMORY, "no memory for a Unicode property");
        else
            at = span[1];
    }
    pcre2_match_data_free(data);
    return status;
}

static mx_status ask(const char *pattern, const char *name, size_t size, mx_ranges *out, mx_error *error) {
    int problem;
    PCRE2_SIZE where;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &problem, &where, NULL);
    if (!code) {
        char version[32] = "";
        pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
        return mx_fail(error, MX_INVALID_ARGUMENT, "there is no Unicode property \\p{%.*s} (in Unicode %s)", (int)size,
                       name, version);
    }
    size_t text_size = 0;
    char *text = all_characters(&text_size);
    const mx_status status = text ? find_runs(code, text, text_size, out, error)
                                  : mx_fail(error, MX_NO_MEMORY, "no memory for a Unicode property");
    free(text);
    pcre2_code_free(code);
    return status;
}

/* ---- remembered -------------------------------------------------------------------------------------------------- */
/* As many as there are names in Unicode, at most: kept for ever. */
typedef struct known {
    struct known *next;
    char pattern[96];
    mx_ranges ranges;
} known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static known *all_known;

static mx_status find(const char *pattern, const char *name, size_t size, const mx_ranges **out, mx_error *error) {
    for (known *k = all_known; k; k = k->next)
        if (strcmp(k->pattern, pattern) == 0) return *out = &k->ranges, MX_OK;
    known *k = calloc(1, sizeof *k);
    if (!k) return mx_fail(error, MX_NO_MEMORY, "no memory for a Unicode property");
    const mx_status status = ask(pattern, name, size, &k->ranges, error);
    if (status) {
        mx_ranges_free(&k->ranges);
        free(k);
        return status;
    }
    snprintf(k->pattern, sizeof k->pattern, "%s", pattern);
    k->next = all_known;
    all_known = k;
    return *out = &k->ranges, MX_OK;
}

mx_status mx_property_add(const char *name, size_t size, mx_ranges *out, mx_error *error) {
    char pattern[96];
    if (size > 64 || !translate(name, size, pattern, sizeof pattern))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "there is no Unicode property \\p{%.*s}: categories (\\p{L}, \\p{Letter}), Script=Greek, "
                       "Script_Extensions=Greek and properties like Alphabetic are known",
                       (int)(size > 64 ? 64 : size), name);
    const mx_ranges *ranges = NULL;
    pthread_mutex_lock(&lock);
    mx_status status = find(pattern, name, size, &ranges, error);
    pthread_mutex_unlock(&lock);
    if (!status && !mx_ranges_add_all(out, ranges))
        status = mx_fail(error, MX_NO_MEMORY, "no memory for a Unicode property");
    return status;
}
