"""Tries one thing after another and says PASS or FAIL of each, a line that the suite counts."""

import traceback


def passes(name, attempt, *arguments):
    """Whether the attempt raises nothing; whichever it is has been said by then."""
    try:
        attempt(*arguments)
    except Exception:
        print("FAIL", name)
        print("    " + traceback.format_exc(limit=4).replace("\n", "\n    "))
        return False
    print("PASS", name)
    return True


def run(prefix, tests, *arguments):
    """Calls every test, whatever became of those before it; the script's exit status."""
    passed = [passes(prefix + test.__name__.replace("_", "-"), test, *arguments) for test in tests]
    return 0 if all(passed) else 1
