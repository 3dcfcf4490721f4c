"""What Carillon's document cannot say, and what schemathesis does not ask by itself."""

import fnmatch
import itertools
import re

import schemathesis

# Rules of a request that no JSON Schema can hold, as patterns of "field: code". Any other refusal of a
# request that fits the document is a mistake of one of the two.
BEYOND_SCHEMAS = [
    "cursor: invalid_cursor",  # made by the server, of one list and order
    "*: empty",  # white space alone
    # Instants.
    "*: in_the_past",
    "*: sub_minute",
    "*: bad_time",  # a day that its month lacks
    "end_at: end_before_start",
    # Schedules: a grammar, a database of zones, and exactly one of three fields.
    "expression: *",
    "*timezone: unknown_timezone",
    "every_minutes: missing",
    "every_minutes: conflict",
    "schedule: never_fires_in_window",
    "schedule: below_minimum_interval",
    # Exclusions and jitter: dates that exist, ranges that run forward, and a slot that is left.
    "*: bad_date",
    "to: end_before_start",
    "to: range_too_long",
    "weekdays: every_day_excluded",
    "*: every_slot_excluded",
    "calendars: unknown_calendar",
    "jitter_minutes: no_slots",
    "jitter_minutes: jitter_too_long",
    # Templates: a grammar, and the variables there are.
    "prompt_text: template_*",
    "system_text: template_*",
    "subject: template_*",
    "prompt_text: unknown_variable",
    "system_text: unknown_variable",
    "subject: unknown_variable",
    # Models: a price list, and what each of them takes.
    "model: unknown_model",
    "*: unsupported_setting",
    # Users: whether the installation has an issuer of tokens.
    "issuer: missing",
    "issuer: other_issuer",
    # Stricter than the format that stands in the document.
    "*email: invalid_email",
    "to: invalid_email",
    "url: *",
    # Lengths in bytes, and text deep in an object.
    "*_text: too_long",
    "stop_sequences: too_long",
    "context: too_long",
    "metadata: too_long",
    "context: control_character",
    "metadata: control_character",
    # Previews: the length of a range, and an object of the tenant.
    "until: end_before_start",
    "until: range_too_long",
    "prompt_id: unknown_prompt",
    # Equal in more than their text.
    "destinations: duplicate",
    "to: duplicate",
    "tags: duplicate",
    "days: duplicate",
    # Calendars: a grammar.
    "ics: *",
    # Backfills: the clock, and the slots of a prompt.
    "to: in_the_future",
    "to: too_many_slots",
    "from: no_slots",
]

KEY_CHARS_MAX = 200

_numbers = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.headers:
        give_own_key(case)
        mend_version(case)
    silence(case)


def give_own_key(case):
    """A key of a repeatable request stands for one request: two different ones take two keys."""
    key = case.headers.get("Idempotency-Key")
    fits = isinstance(key, str) and 1 <= len(key) <= KEY_CHARS_MAX and all("!" <= char <= "~" for char in key)
    if fits:
        number = f"-{next(_numbers)}"
        case.headers["Idempotency-Key"] = key[: KEY_CHARS_MAX - len(number)] + number


def mend_version(case):
    """The phase `coverage` finds no value with quotes, and puts a wrong one into every case."""
    if case.meta is None or case.meta.phase.name != "coverage" or "If-Match" not in case.headers:
        return
    if case.meta.phase.data.parameter != "If-Match":
        case.headers["If-Match"] = "*"


def silence(case):
    """A prompt that is made up gets a model that is not there: its made-up webhooks get nothing."""
    if isinstance(case.body, dict) and str(case.body.get("model")).startswith("echo/"):
        case.body = {**case.body, "model": "openai/gpt-5-mini"}


@schemathesis.check
class RefusalsAreBeyondSchemas:
    """A request that fits the document is refused only for what a schema cannot say."""

    def __init__(self):
        self.surprises = {}

    def after_response(self, ctx, response, case):
        if response.status_code != 422 or case.meta is None or case.meta.generation.mode.is_negative:
            return
        problem = response.json()
        for fault in problem.get("errors") or [{"field": "", "code": problem["code"]}]:
            name = f"{field_of(fault)}: {fault['code']}"
            # A part of a schedule is judged together with the stored rest.
            if case.method == "PATCH" and fault["field"].startswith("schedule"):
                continue
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in BEYOND_SCHEMAS):
                self.surprises.setdefault(name, f"{case.operation.label} {fault} {case.body!r:.2000}")

    def after_run(self, ctx):
        told = "\n".join(f"{name} in {request}" for name, request in sorted(self.surprises.items()))
        assert not told, f"refused, though the document allows it:\n{told}"


def field_of(fault):
    """`destinations[0].to[1]` is a `to`."""
    return re.sub(r"\[\d+\]", "", fault["field"]).rpartition(".")[2]


# An address is suppressed by a mail service's report alone, and none comes here.
NEEDS_A_REPORT = {"DELETE /v1/suppressed-addresses/{address}"}


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
        missed = self.tested - self.reached - NEEDS_A_REPORT
        assert not missed, f"never answered 2xx: {', '.join(sorted(missed))}"
