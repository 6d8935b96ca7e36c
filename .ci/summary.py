"""Adds up meson's test logs: summary.py PASSED FAILED SKIPPED TESTLOG.json...

PASSED, FAILED and SKIPPED are what was counted before. Programs of cmocka and of Python's unittest count with each of their
cases, any other test as one.
Prints "N passed, N failed, N skipped" as the last line; exit status 1 when anything failed or a log is missing.
"""
import json
import re
import sys

CASES = {"passed": re.compile(r"\[  PASSED  \] (\d+) test"),
         "failed": re.compile(r"\[  FAILED  \] (?:[^:\n]*: )?(\d+) test"),
         "skipped": re.compile(r"\[  SKIPPED \] (?:[^:\n]*: )?(\d+) test")}
UNITTEST = re.compile(r"^Ran (\d+) tests? in .*\n\n(?:OK|FAILED)(?: \((.*)\))?$", re.MULTILINE)
RESULT = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}


def count_test(test):
    """The cases of one line of a test log, as {"passed": n, "failed": n, "skipped": n}."""
    output = test.get("stdout", "") + test.get("stderr", "")
    cases = {kind: sum(map(int, pattern.findall(output))) for kind, pattern in CASES.items()}
    for ran, rest in UNITTEST.findall(output):
        other = {word: int(n) for word, n in re.findall(r"(\w+)=(\d+)", rest)}
        bad = other.get("failures", 0) + other.get("errors", 0)
        cases["failed"] += bad
        cases["skipped"] += other.get("skipped", 0)
        cases["passed"] += int(ran) - bad - other.get("skipped", 0)
    outcome = RESULT.get(test["result"], "failed")
    if not any(cases.values()):
        cases[outcome] = 1
    elif outcome == "failed" and not cases["failed"]:
        cases["failed"] = 1  # it crashed after its cases, or a sanitizer spoke at exit
    return cases


def main():
    total = {"passed": int(sys.argv[1]), "failed": int(sys.argv[2]), "skipped": int(sys.argv[3])}
    for path in sys.argv[4:]:
        try:
            with open(path, encoding="utf-8", errors="replace") as log:
                tests = [json.loads(line) for line in log if line.strip()]
        except OSError as error:
            print(f"FAILED: {error}")
            tests = []
            total["failed"] += 1
        for test in tests:
            cases = count_test(test)
            if cases["failed"]:
                print(f"FAILED: {path}: {test['name']} ({test['result']})")
            for kind, n in cases.items():
                total[kind] += n
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    sys.exit(1 if total["failed"] else 0)


main()
