"""What Carillon's document cannot say, or what schemathesis does not ask by itself."""

import itertools

import schemathesis

# Rules of a request that no JSON Schema can hold, each by the code of its fault. Any other refusal
# of a request that fits the document is a mistake of one of the two.
BEYOND_SCHEMAS = {
    "invalid_cursor",  # made by the server, of one list and order
    "in_the_past",
    "end_before_start",
    "unknown_timezone",
    "unknown_variable",  # in a template
    "unknown_model",
    "conflict",  # exactly one of three fields
}

KEY_CHARS_MAX = 200

_numbers = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    """A key of a repeatable request stands for one request: two different ones take two keys."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and 1 <= len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable() and " " not in key:
        number = f"-{next(_numbers)}"
        case.headers["Idempotency-Key"] = key[: KEY_CHARS_MAX - len(number)] + number


@schemathesis.check
def refusal_is_beyond_schemas(ctx, response, case):
    """A request that fits the document is refused only for what a schema cannot say."""
    if response.status_code != 422 or case.meta is None or case.meta.generation.mode.is_negative:
        return
    codes = {fault["code"] for fault in response.json().get("errors", [])}
    surprising = codes - BEYOND_SCHEMAS
    assert codes and not surprising, f"refused for {sorted(surprising) or response.text}"


@schemathesis.check
class EverythingAnswers:
    """Every operation answers 2xx at least once: what never succeeds is not tested."""

    def __init__(self):
        self.tested = set()
        self.reached = set()

    def after_response(self, ctx, response, case):
        self.tested.add(case.operation.label)
        if 200 <= response.status_code < 300:
            self.reached.add(case.operation.label)

    def after_run(self, ctx):
        missed = self.tested - self.reached
        assert not missed, f"never answered 2xx: {', '.join(sorted(missed))}"
