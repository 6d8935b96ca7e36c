#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/json.h"
#include "grammar/schema.h"

/* Schemas are written with ' for ", texts as they are. */
static mx_json_document *parse(const char *schema) {
    char *text = strdup(schema);
    for (char *p = text; *p; p++)
        if (*p == '\'') *p = '"';
    mx_json_document *d;
    mx_error error;
    if (mx_json_parse("test", text, strlen(text), &d, &error)) fail_msg("%s: %s", schema, error.text);
    free(text);
    return d;
}

static mx_grammar *compile(const char *schema, const mx_schema_options *options) {
    mx_json_document *d = parse(schema);
    mx_grammar *g = NULL;
    mx_error error;
    if (mx_schema_compile(mx_json_root(d), "schema", options, &g, &error)) fail_msg("%s: %s", schema, error.text);
    mx_json_free(d);
    return g;
}

/* `texts` behind the schema, up to a NULL: those that begin with ! must not be of it (without the !). */
static void check_with(const mx_schema_options *options, const char *schema, const char *const *texts) {
    mx_grammar *g = compile(schema, options);
    for (; *texts; texts++) {
        const bool no = **texts == '!';
        char *text = strdup(*texts + no);
        for (char *p = text; *p; p++)
            if (*p == '\'') *p = '"';
        if (mx_grammar_match(g, text, strlen(text)) == no) fail_msg("%s: %s", schema, *texts);
        free(text);
    }
    mx_grammar_free(g);
}
#define CHECK(schema, ...) check_with(NULL, schema, (const char *const[]){__VA_ARGS__, NULL})

static void refused(const char *schema, mx_status status, const char *message) {
    mx_json_document *d = parse(schema);
    mx_grammar *g = NULL;
    mx_error error;
    const mx_status found = mx_schema_compile(mx_json_root(d), "schema", NULL, &g, &error);
    mx_json_free(d);
    assert_null(g);
    if (found != status) fail_msg("%s: %s", schema, mx_status_name(found));
    if (!strstr(error.text, message)) fail_msg("%s: \"%s\" is not in \"%s\"", schema, message, error.text);
}

static void types_constants_and_enums(void **state) {
    (void)state;
    CHECK("{}", "1", "null", "'x'", "[1,[]]", "{'a':{'b':false}}", "![1,]", "!{'a'}", "!", "!nul", "!1 ");
    CHECK("true", "1");
    CHECK("{'type':'null'}", "null", "!0", "!'null'");
    CHECK("{'type':'boolean'}", "true", "false", "!null");
    CHECK("{'type':['string','null']}", "null", "'s'", "!1");
    CHECK("{'type':'integer'}", "0", "-1", "123456789012345678", "!01", "!-0", "!1.0", "!1e3",
          "!1234567890123456789012");
    CHECK("{'type':'number'}", "0", "-1.50", "1.5e-7", "2E299", "!2E400", "!.5", "!1.", "!+1", "!00", "!NaN");
    CHECK("{'type':'string'}", "''", "'a\\n\\u00e9\\/'", "'\\ud83d\\ude00'", "!'\\ud83d'", "!'\n'", "!'", "!'\\x'");
    CHECK("{'type':'array'}", "[]", "[1,2]", "!{}");
    CHECK("{'type':'object'}", "{}", "{'x':[]}", "!null");
    CHECK("{'enum':['a',1,2.50,null,true,{'k':[1]},[]]}", "'a'", "1", "2.5", "2.50", "null", "true", "{'k':[1]}", "[]",
          "!1.0", "!false", "!{}", "!'b'");
    CHECK("{'const':{'b':1,'a':2}}", "{'b':1,'a':2}", "!{'a':2,'b':1}", "!{'b':1}");
    CHECK("{'const':1e3}", "1000", "1e3", "!1001");
    CHECK("{'enum':['a',1],'type':'string'}", "'a'", "!1");
    CHECK("{'enum':[5],'const':5.0}", "5", "!5.00");
}

static void objects_write_members_in_order(void **state) {
    (void)state;
    CHECK("{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'string'},'c':{'type':'null'}},"
          "'required':['b'],'additionalProperties':false}",
          "{'b':'x'}", "{'a':1,'b':'x'}", "{'a':1,'b':'x','c':null}", "{'b':'x','c':null}", "!{}", "!{'a':1}",
          "!{'b':'x','a':1}", "!{'a':1,'a':1,'b':'x'}", "!{'b':'x','d':1}", "!{'a':1,'b':'x',}");
    CHECK("{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'integer'}},'additionalProperties':false}",
          "{}", "{'a':1}", "{'b':1}", "{'a':1,'b':2}", "!{,'b':1}", "!{'b':1,'a':2}");
    CHECK("{'type':'object','properties':{'a':{'type':'integer'}}}", "{'a':1,'z':[],'y':{}}", "{'z':1}", "!{'a':'x'}",
          "!{'z':1,'a':'x'}", "!{'z':1,'a':1}");
    CHECK("{'type':'object','additionalProperties':{'type':'integer'},'required':['x']}", "{'x':1}", "{'x':1,'y':2}",
          "!{'y':2}", "!{'x':'s'}");
    CHECK("{'type':'object','patternProperties':{'^a':{'type':'integer'},'b$':{'minimum':3}},"
          "'additionalProperties':false}",
          "{'a':1,'ab':3,'b':4}", "{'b':'text'}", "!{'ab':1}", "!{'ab':'s'}", "!{'c':1}");
    CHECK("{'type':'object','propertyNames':{'maxLength':2}}", "{'ab':1}", "!{'abc':1}");
    CHECK("{'type':'object','properties':{'a':true,'b':true,'c':true},'additionalProperties':false,'minProperties':2,"
          "'maxProperties':2}",
          "{'a':1,'b':1}", "{'a':1,'c':1}", "!{'c':1,'d':1}", "!{'a':1}", "!{'a':1,'b':1,'c':1}", "!{}",
          "!{'a':1,'x':1,'y':1}");
    CHECK("{'type':'object','properties':{'a':true},'minProperties':1}", "{'a':1}", "{'x':1}", "!{}");
    /* Others are not remembered, so that a name may come twice: where two must be there, they are named. */
    CHECK("{'type':'object','additionalProperties':{'type':'integer'},'propertyNames':{'enum':['b','a']},"
          "'minProperties':2,'maxProperties':3}",
          "{'a':0,'b':3}", "!{'b':0,'b':3}", "!{'a':1}", "!{'b':0,'b':3,'b':3}");
    CHECK("{'type':'object','properties':{'a':true},'required':['a'],'minProperties':2}", "{'a':1,'x':2}", "!{'a':1}",
          "!{'a':1,'a':2}");
    refused("{'minProperties':2}", MX_UNSUPPORTED, "#: \"minProperties\" 2 is more than the 0 members that are");
    refused("{'type':'object','patternProperties':{'^x':{'type':'integer'}},'additionalProperties':false,'required':['"
            "y','x'],"
            "'minProperties':4}",
            MX_INVALID_ARGUMENT, "no value is valid");
    CHECK("{'type':'object','not':{'additionalProperties':{'type':'string'}}}", "{'a':1}", "{'a':'x','b':1}",
          "{'a':'x','a':1}", "!{'a':1,'a':'x'}", "!{'a':'x'}", "!{}");
    CHECK("{'type':'object','properties':{'a\\\"\\\\':true,'\\u0001':true},'additionalProperties':false}",
          "{'a\\\"\\\\':1,'\\u0001':2}", "!{'b':1}");
    CHECK("{'properties':{'gone':false},'type':'object'}", "{}", "{'x':1}", "!{'gone':1}");
}

static void arrays_have_items_and_lengths(void **state) {
    (void)state;
    CHECK("{'type':'array','items':{'type':'integer'},'minItems':1,'maxItems':3}", "[1]", "[1,2,3]", "![]",
          "![1,2,3,4]", "!['a']");
    CHECK("{'type':'array','prefixItems':[{'type':'integer'},{'type':'string'}],'items':false}", "[]", "[1]", "[1,'a']",
          "![1,'a',2]", "!['a']");
    CHECK("{'type':'array','prefixItems':[{'type':'integer'}],'items':{'type':'null'},'minItems':2}", "[1,null]",
          "[1,null,null]", "![1]", "![1,2]");
    CHECK("{'type':'array','maxItems':0}", "[]", "![1]");
    CHECK("{'type':'array','items':{'type':'integer'},'contains':{'minimum':5}}", "[5]", "[1,7,2]", "![]", "![1,2]");
    CHECK("{'type':'array','items':{'enum':[1,2]},'contains':{'const':2},'minContains':1,'maxContains':2}", "[2]",
          "[1,2,1,2]", "![1]", "![2,2,2]");
    CHECK("{'type':'array','items':{'enum':['a','b','c']},'uniqueItems':true,'minItems':1}", "['a']", "['c','a','b']",
          "!['a','a']", "![]");
    CHECK("{'type':'array','items':{'enum':[1.0,2.5,3.0,4.0,5.0,null]},'uniqueItems':true}", "[1.0,2.5]",
          "[5,null,3.0]", "[1]", "![1,1.0]", "![2.5,2.50]", "![null,null]", "![1,2.5,1]");
    CHECK("{'type':'array','items':{'enum':[100,1e2,1.5e1]},'uniqueItems':true}", "[1e2,15]", "![1e2,100]",
          "![15,1.5e1]");
}

static void strings_have_lengths_patterns_and_formats(void **state) {
    (void)state;
    CHECK("{'type':'string','minLength':2,'maxLength':3}", "'ab'", "'\\u00e9\\n'", "'äöü'", "!'a'", "!'abcd'");
    CHECK("{'type':'string','maxLength':1000000000}", "'ab'");
    CHECK("{'type':'string','pattern':'^a+$','maxLength':3}", "'aaa'", "!'aaaa'", "!'b'", "!''");
    CHECK("{'type':'string','pattern':'ü','minLength':2,'maxLength':3}", "'aü'", "'ünn'", "!'ü'", "!'ünnn'", "!'nnn'");
    CHECK("{'type':'string','format':'uri','minLength':1,'maxLength':2083}", "'http://[2001:db8::7]/a?b'", "!''");
    CHECK("{'not':{'type':'string','pattern':'^a','maxLength':2}}", "'aaa'", "'b'", "1", "!'a'", "!'aa'");
    CHECK("{'type':'string','pattern':'[0-9]'}", "'a1b'", "!'ab'");
    CHECK("{'type':'string','format':'date'}", "'2024-02-29'", "!'2023-02-29'", "!'2023-13-01'", "!'2023-04-31'",
          "'2000-02-29'", "!'1900-02-29'");
    CHECK("{'type':'string','format':'date-time'}", "'2024-02-29T23:59:59.5+01:00'", "!'2024-02-29'",
          "!'2024-02-29T25:00:00Z'", "!'2024-02-30T00:00:00Z'");
    CHECK("{'type':'string','format':'time'}", "'12:00:00Z'", "!'24:00:00Z'", "!'12:00:00'");
    CHECK("{'type':'string','format':'uuid'}", "'2eb8aa08-aa98-11ea-b4aa-73b441d16380'", "!'2eb8aa08'");
    CHECK("{'type':'string','format':'ipv4'}", "'192.168.0.1'", "!'256.0.0.1'", "!'01.0.0.1'");
    CHECK("{'type':'string','format':'ipv6'}", "'::1'", "'fe80::1:2'", "!':::'", "!'1:2'");
    CHECK("{'type':'string','format':'email'}", "'a.b@example.org'", "!'a@'", "!'a'");
    CHECK("{'type':'string','format':'uri'}", "'https://a.b/c?d#e'", "!'a/b'", "!'http://a b'");
    CHECK("{'type':'string','format':'duration'}", "'P1DT2H'", "!'P'", "!'P1H'");
}

static void numbers_have_exact_ranges(void **state) {
    (void)state;
    CHECK("{'type':'integer','minimum':-12,'maximum':105}", "-12", "-1", "0", "9", "99", "105", "!-13", "!106", "!200",
          "!1000", "!-100");
    CHECK("{'type':'integer','exclusiveMinimum':0,'exclusiveMaximum':10}", "1", "9", "!0", "!10", "!-1");
    CHECK("{'type':'integer','minimum':9223372036854775808,'maximum':18446744073709551615}", "9223372036854775808",
          "18446744073709551615", "!9223372036854775807", "!18446744073709551616");
    CHECK("{'type':'integer','minimum':1.5,'maximum':2.5}", "2", "!1", "!3");
    CHECK("{'type':'number','minimum':-0.25,'maximum':1.5}", "-0.25", "-0.2", "0", "1.5", "1.50", "1.49999", "!-0.26",
          "!-0.2500001", "!1.51", "!2", "!1e0");
    CHECK("{'type':'number','exclusiveMinimum':0}", "0.0001", "1", "!0", "!0.0", "!-1");
    CHECK("{'type':'integer','multipleOf':7,'minimum':0}", "0", "49", "!50");
    CHECK("{'type':'number','multipleOf':0.01,'minimum':0}", "19.99", "20", "1.500", "!19.999");
    CHECK("{'type':'number','multipleOf':2.5}", "-5", "7.5", "!7");
}

static void schemas_apply_together(void **state) {
    (void)state;
    CHECK("{'anyOf':[{'type':'integer'},{'type':'string','maxLength':1}]}", "1", "'a'", "!'ab'", "!null");
    CHECK("{'anyOf':[{'type':'integer'},{'type':'string'}],'minimum':3,'maxLength':1}", "3", "'a'", "!2", "!'ab'");
    CHECK("{'allOf':[{'type':'object','properties':{'a':{'type':'integer'}},'required':['a']},"
          "{'properties':{'a':{'minimum':3},'b':{'type':'null'}},'required':['b']}]}",
          "{'a':3,'b':null}", "!{'a':2,'b':null}", "!{'a':3}");
    CHECK("{'oneOf':[{'type':'integer','minimum':0,'maximum':10},{'type':'integer','minimum':5,'maximum':15}]}", "4",
          "11", "!5", "!10", "!16");
    CHECK("{'oneOf':[{'type':'object','properties':{'t':{'const':'a'},'x':{'type':'integer'}},'required':['t']},"
          "{'type':'object','properties':{'t':{'const':'b'},'y':{'type':'string'}},'required':['t']}]}",
          "{'t':'a','x':1}", "{'t':'b','y':''}", "{'t':'b','x':1}", "!{'t':'a','x':''}", "!{'t':'c'}");
    CHECK("{'type':'object','properties':{'a':true,'b':true},'oneOf':[{'required':['a']},{'required':['b']}]}",
          "{'a':1}", "{'b':1}", "!{'a':1,'b':1}", "!{}");
    CHECK("{'type':'string','not':{'enum':['x','y']}}", "'z'", "''", "'xy'", "!'x'", "!1");
    CHECK("{'not':{'type':'object','properties':{'a':{'type':'string'}},'required':['a']}}", "1", "{'a':1}", "{}",
          "!{'a':'s'}");
    CHECK("{'type':'object','properties':{'k':{'enum':['n','s']},'v':true},'required':['k','v'],"
          "'if':{'properties':{'k':{'const':'n'}}},'then':{'properties':{'v':{'type':'integer'}}},"
          "'else':{'properties':{'v':{'type':'string'}}}}",
          "{'k':'n','v':1}", "{'k':'s','v':''}", "!{'k':'n','v':''}", "!{'k':'s','v':1}");
    CHECK("{'type':'object','properties':{'a':true,'b':true},'dependentRequired':{'a':['b']}}", "{}", "{'b':1}",
          "{'a':1,'b':1}", "!{'a':1}");
    CHECK("{'type':'object','not':{'enum':[{},{}]}}", "{'a':1}", "{'a':1,'b':2}", "!{}");
    refused(
        "{'allOf':[{'not':{'additionalProperties':{'type':'integer'}}},{'not':{'additionalProperties':{'minimum':0}}}],"
        "'type':'object'}",
        MX_UNSUPPORTED, "a name may come twice");
    CHECK(
        "{'allOf':[{'not':{'additionalProperties':{'type':'integer'}}},{'not':{'additionalProperties':{'minimum':0}}}],"
        "'type':'object','propertyNames':{'enum':['a','b']}}",
        "{'a':'s','b':-1}", "{'a':-1,'b':'s'}", "{'b':-0.5}", "!{'a':'s'}", "!{'a':-1}", "!{'a':-1,'a':'s'}");
    CHECK("{'allOf':[{'properties':{'a':true}}],'properties':{'b':true},'type':'object','unevaluatedProperties':false}",
          "{'b':1,'a':1}", "!{'c':1}");
}

/* Of OpenAPI and of others: null too, and what says nothing. Annotations may hold anything. */
static void keywords_of_others(void **state) {
    (void)state;
    CHECK("{'type':'string','nullable':true,'propertyOrdering':['a']}", "'a'", "null", "!1");
    CHECK("{'enum':['a'],'nullable':true}", "'a'", "null", "!'b'");
    CHECK("{'type':'string','nullable':false}", "'a'", "!null");
    CHECK("{'not':{'type':'string','nullable':true}}", "1", "!'a'", "!null");
    CHECK("{'oneOf':[{'properties':{'t':{'const':'a','nullable':true}},'required':['t'],'type':'object'},"
          "{'properties':{'t':{'const':'b','nullable':true}},'required':['t'],'type':'object'}]}",
          "{'t':'a'}", "{'t':'b'}", "!{'t':null}");
    CHECK("{'type':'string','default':1e-99999999999999999999,'examples':[1e99999999999999999999,1e399]}", "'a'");
    CHECK("{'type':'number','default':0.1234567890123456789012345}", "0.12", "!0.12345678901234567890");
    CHECK("{'type':'integer','format':'int32'}", "2147483647", "-2147483648", "!2147483648", "!-2147483649");
    refused("{'const':1e-99999999999999999999}", MX_UNSUPPORTED, "numbers of more than 400 digits");
    refused("{'nullable':1}", MX_INVALID_ARGUMENT, "\"nullable\"");
}

static void references_may_recur(void **state) {
    (void)state;
    CHECK("{'$defs':{'n':{'type':'object','properties':{'v':{'type':'integer'},'next':{'anyOf':[{'$ref':'#/$defs/n'},"
          "{'type':'null'}]}},'required':['v','next'],'additionalProperties':false}},'$ref':'#/$defs/n'}",
          "{'v':1,'next':null}", "{'v':1,'next':{'v':2,'next':{'v':3,'next':null}}}", "!{'v':1}",
          "!{'v':1,'next':{'v':2}}");
    CHECK("{'type':'array','items':{'$ref':'#'}}", "[]", "[[],[[]]]", "![1]");
    CHECK("{'$defs':{'p':{'$anchor':'point','type':'integer'}},'type':'array','items':{'$ref':'#point'}}", "[1]",
          "!['a']");
    CHECK("{'$id':'http://x/y.json','$defs':{'p':{'$id':'z.json','type':'integer'}},'items':{'$ref':'z.json'},"
          "'type':'array'}",
          "[1]", "!['a']");
    CHECK("{'$defs':{'a~b/c d':{'type':'null'}},'$ref':'#/$defs/a~0b~1c%20d'}", "null", "!1");
    /* Optional members whose values cannot be are left out. */
    CHECK("{'type':'object','properties':{'a':{'$ref':'#/$defs/endless'},'b':{'type':'null'}},'$defs':{'endless':"
          "{'type':'object','properties':{'x':{'$ref':'#/$defs/endless'}},'required':['x']}}}",
          "{}", "{'b':null}", "!{'a':1}");
}

static void spaces_may_stand_between(void **state) {
    (void)state;
    const mx_schema_options few = {.spaces = MX_SPACES_FEW};
    const char *const texts[] = {"{'a':[1,2]}",    "{'a': [1, 2]}",  "{\n  'a': [\n    1,\n    2\n  ]\n}",
                                 "{ 'a': [ 1 ] }", "!{'a':  [1]}",   "! {'a':[1]}",
                                 "!{'a':[1]} ",    "!{'a' :[1]}",    "!{'a':[1,  2]}",
                                 "!{  'a':[1]}",   "!{'a':[1]\n\n}", "!{\n\n'a':[1]}",
                                 "!{'a':[1 ,2]}",  "{'a': []}",      NULL};
    check_with(&few,
               "{'type':'object','properties':{'a':{'type':'array','items':{'type':'integer'}}},'required':['a']}",
               texts);
    const char *const none[] = {"{'a':[1,2]}", "!{'a': [1,2]}", NULL};
    check_with(NULL, "{'type':'object','properties':{'a':{'type':'array'}},'required':['a']}", none);
}

static void openai_strict_closes_objects(void **state) {
    (void)state;
    const mx_schema_options strict = {.openai_strict = true};
    const char *const texts[] = {"{'a':1,'b':{'c':1}}", "!{'a':1}", "!{'a':1,'b':{}}", "!{'a':1,'b':{'c':1},'d':1}",
                                 NULL};
    check_with(&strict,
               "{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'object','properties':{'c':{}}}}}",
               texts);
    const char *const optional[] = {"{'a':1}", "{'a':1,'b':2}", "!{'a':1,'c':2}", NULL};
    check_with(&strict, "{'type':'object','properties':{'a':{},'b':{}},'required':['a']}", optional);
    const char *const opened[] = {"{'a':1,'c':2}", NULL};
    check_with(&strict, "{'type':'object','properties':{'a':{}},'additionalProperties':true}", opened);
    mx_grammar *g = NULL;
    mx_error error;
    assert_int_equal(mx_schema_any_object(&strict, &g, &error), MX_OK);
    assert_true(mx_grammar_match(g, "{\"a\":{\"b\":[1]}}", 15));
    assert_false(mx_grammar_match(g, "[1]", 3));
    mx_grammar_free(g);
}

static void what_is_not_supported_is_named(void **state) {
    (void)state;
    refused("{'type':'object','properties':{'age':{'nonsense':1}}}", MX_UNSUPPORTED,
            "schema: #/properties/age: \"nonsense\" is not supported");
    refused("{'items':{'$dynamicRef':'#x'}}", MX_UNSUPPORTED, "#/items: \"$dynamicRef\"");
    refused("{'properties':{'a/b':{'format':'color'}}}", MX_UNSUPPORTED, "#/properties/a~1b: \"format\": \"color\"");
    refused("{'type':'array','uniqueItems':true}", MX_UNSUPPORTED, "\"uniqueItems\"");
    refused("{'items':[{}]}", MX_UNSUPPORTED, "\"prefixItems\"");
    refused("{'$ref':'http://example.org/a.json'}", MX_UNSUPPORTED, "http://example.org/a.json");
    refused("{'$ref':'#/$defs/a'}", MX_INVALID_ARGUMENT, "#/$defs/a");
    refused("{'pattern':'(a)\\\\1'}", MX_UNSUPPORTED, "\"pattern\"");
    refused("{'pattern':'('}", MX_INVALID_ARGUMENT, "\"pattern\"");
    refused("{'properties':{'c':{'format':'country','pattern':'^[A-Z]{2}$'}}}", MX_UNSUPPORTED, "leave it out");
    refused("{'type':'array','items':{'type':'string','pattern':'^[a-z ]*[.]?$','minLength':9000}}", MX_UNSUPPORTED,
            "#/items: \"minLength\" 9000 beside");
    refused("{'type':'array','items':{'enum':[1,2]},'prefixItems':[{}],'uniqueItems':true}", MX_UNSUPPORTED,
            "\"uniqueItems\" beside \"prefixItems\"");
    refused("{'$schema':'http://example.org/own'}", MX_UNSUPPORTED, "\"$schema\"");
    refused("{'multipleOf':123456789}", MX_UNSUPPORTED, "\"multipleOf\"");
    refused("{'type':'strin'}", MX_INVALID_ARGUMENT, "\"type\"");
    refused("{'properties':{'a':5}}", MX_INVALID_ARGUMENT, "#/properties/a: a schema must be");
    refused("{'minItems':-1}", MX_INVALID_ARGUMENT, "\"minItems\"");
    refused("{'minimum':'1'}", MX_INVALID_ARGUMENT, "\"minimum\"");
    refused("{'enum':1}", MX_INVALID_ARGUMENT, "\"enum\"");
    refused("{'required':{}}", MX_INVALID_ARGUMENT, "\"required\"");
    refused("{'anyOf':[]}", MX_INVALID_ARGUMENT, "\"anyOf\"");
    refused("[]", MX_INVALID_ARGUMENT, "a schema must be");
    refused("false", MX_INVALID_ARGUMENT, "no value is valid");
    refused("{'type':'integer','minimum':3,'maximum':2}", MX_INVALID_ARGUMENT, "no value is valid");
    refused("{'type':'object','properties':{'a':{'$ref':'#'}},'required':['a']}", MX_INVALID_ARGUMENT,
            "no value is valid");
    refused("{'$ref':'#'}", MX_INVALID_ARGUMENT, "refers to itself");
    refused("{'anyOf':[{'$ref':'#'},{'type':'null'}]}", MX_INVALID_ARGUMENT, "refers to itself");
}

/* Schemas that are made to be too much: each ends soon, one way or another. */
static double seconds_for(mx_bytes *schema) {
    mx_json_document *d;
    mx_error error;
    if (mx_json_parse("test", schema->data, schema->size, &d, &error)) fail_msg("%s", error.text);
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    mx_grammar *g = NULL;
    const mx_status status = mx_schema_compile(mx_json_root(d), "schema", NULL, &g, &error);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    if (status && status != MX_UNSUPPORTED) fail_msg("%.100s: %s", schema->data, error.text);
    mx_grammar_free(g);
    mx_json_free(d);
    mx_bytes_free(schema);
    return (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
}

static void nested(mx_bytes *out, const char *before, const char *inner, const char *after, int depth) {
    for (int i = 0; i < depth; i++) mx_bytes_add_string(out, before);
    mx_bytes_add_string(out, inner);
    for (int i = 0; i < depth; i++) mx_bytes_add_string(out, after);
}

static void hostile_schemas_end_soon(void **state) {
    (void)state;
    const double most = 5; /* seconds, under sanitizers too */
    mx_bytes s = {0};
    nested(&s, "{\"not\":", "true", "}", 500);
    assert_true(seconds_for(&s) < most);
    nested(&s, "{\"properties\":{\"a\":", "{}", "}}", 200);
    assert_true(seconds_for(&s) < most);
    nested(&s, "{\"allOf\":[{},", "{}", "]}", 200);
    assert_true(seconds_for(&s) < most);
    mx_bytes_add_string(&s, "{\"enum\":[0");
    for (int i = 1; i < 10000; i++) mx_bytes_addf(&s, i % 2 ? ",\"value %d\"" : ",%d", i * 7919);
    mx_bytes_add_string(&s, "]}");
    assert_true(seconds_for(&s) < most);
    mx_bytes_add_string(&s, "{\"properties\":{\"a\":{}");
    for (int i = 1; i < 1000; i++) mx_bytes_addf(&s, ",\"p%d\":{\"type\":\"integer\"}", i);
    mx_bytes_add_string(&s, "}}");
    assert_true(seconds_for(&s) < most);
    mx_bytes_add_string(&s, "{\"allOf\":[true"); /* 2^30 alternatives */
    for (int i = 0; i < 30; i++)
        mx_bytes_addf(&s, ",{\"anyOf\":[{\"required\":[\"a%d\"]},{\"required\":[\"b%d\"]}]}", i, i);
    mx_bytes_add_string(&s, "]}");
    assert_true(seconds_for(&s) < most);
    mx_bytes_add_string(&s, "{\"$ref\":\"#/$defs/a0\",\"$defs\":{\"a2000\":{}");
    for (int i = 0; i < 2000; i++) mx_bytes_addf(&s, ",\"a%d\":{\"$ref\":\"#/$defs/a%d\"}", i, i + 1);
    mx_bytes_add_string(&s, "}}");
    assert_true(seconds_for(&s) < most);
    mx_bytes_add_string(&s, "{\"minItems\":1e12,\"maxItems\":1e300,\"maxLength\":1e15,\"maximum\":1e300,"
                            "\"minimum\":-1e-300}");
    assert_true(seconds_for(&s) < most);
}

/* Each pattern is within the limits of one; together they are not. */
static void a_schema_has_one_limit_of_work(void **state) {
    (void)state;
    mx_bytes s = {0};
    mx_bytes_add_string(&s, "{'properties':{'p':{}");
    for (int i = 0; i < 100; i++)
        mx_bytes_addf(&s, ",'p%d':{'pattern':'(a|b)*a(a|b){12}[a%c%c]'}", i, 'b' + i % 25, 'b' + i / 25);
    mx_bytes_add_string(&s, "}}");
    refused(s.data, MX_UNSUPPORTED, "\"pattern\": too complicated: automata of more than 150000000 steps");
    mx_bytes_free(&s);
    CHECK("{'type':'string','pattern':'^a'}", "'ab'"); /* others have limits of their own */
}

/* The schemas that sampling is tested with. */
static void common_schemas_compile_quickly(void **state) {
    (void)state;
    mx_bytes path = {0}, file = {0};
    mx_error error;
    mx_bytes_addf(&path, "%s/tests/grammar/schemas.jsonl", getenv("MXRUN_SOURCE"));
    if (mx_read_file(path.data, 10 << 20, &file, &error)) fail_msg("%s", error.text);
    double total = 0, longest = 0;
    int count = 0;
    for (char *line = file.data, *end; (end = strchr(line, '\n')); line = end + 1, count++) {
        mx_json_document *d;
        if (mx_json_parse("line", line, (size_t)(end - line), &d, &error)) fail_msg("%s", error.text);
        const mx_json *name = mx_json_get(mx_json_root(d), "name");
        const mx_schema_options few = {.spaces = MX_SPACES_FEW};
        mx_grammar *g = NULL;
        struct timespec a, b;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        if (mx_schema_compile(mx_json_get(mx_json_root(d), "schema"), name->text, &few, &g, &error))
            fail_msg("%s", error.text);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        const double seconds = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
        total += seconds;
        if (seconds > longest) longest = seconds;
        mx_grammar_free(g);
        mx_json_free(d);
    }
    print_message("%d schemas in %.3f s, the longest %.1f ms\n", count, total, longest * 1e3);
    assert_int_equal(count, 200);
    assert_true(total / count < 0.05);
    mx_bytes_free(&path);
    mx_bytes_free(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_constants_and_enums),
        cmocka_unit_test(objects_write_members_in_order),
        cmocka_unit_test(arrays_have_items_and_lengths),
        cmocka_unit_test(strings_have_lengths_patterns_and_formats),
        cmocka_unit_test(numbers_have_exact_ranges),
        cmocka_unit_test(schemas_apply_together),
        cmocka_unit_test(keywords_of_others),
        cmocka_unit_test(references_may_recur),
        cmocka_unit_test(spaces_may_stand_between),
        cmocka_unit_test(openai_strict_closes_objects),
        cmocka_unit_test(what_is_not_supported_is_named),
        cmocka_unit_test(hostile_schemas_end_soon),
        cmocka_unit_test(common_schemas_compile_quickly),
        cmocka_unit_test(a_schema_has_one_limit_of_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
