"""What other cron libraries make of expressions.

    python cron_oracles.py <cases.json >answers.json

A case is {"expression", "timezone", "after", "count"}; its answer has per library the next slots in
UTC, or null where the library refuses the expression.
"""

import json
import sys
import zoneinfo
from datetime import UTC, datetime

from croniter import CroniterError, croniter
from cronsim import CronSim, CronSimError

# The pinned zones, not those of the machine.
zoneinfo.reset_tzpath(to=[])


def with_croniter(case, after):
    try:
        slots = croniter(case["expression"], after)
        return [slots.get_next(datetime) for _ in range(case["count"])]
    except CroniterError:
        return None


def with_cronsim(case, after):
    try:
        slots = CronSim(case["expression"], after)
        return [next(slots) for _ in range(case["count"])]
    except (CronSimError, StopIteration):
        return None


def answer(case):
    zone = zoneinfo.ZoneInfo(case["timezone"])
    after = datetime.fromisoformat(case["after"]).astimezone(zone)
    return {"croniter": in_utc(with_croniter(case, after)), "cronsim": in_utc(with_cronsim(case, after))}


def in_utc(slots):
    return slots and [slot.astimezone(UTC).isoformat() for slot in slots]


json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)
