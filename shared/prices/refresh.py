#!/usr/bin/env python3
"""Makes Carillon's price snapshot from the price file inside a litellm wheel (MIT).

    pip download --no-deps litellm==1.106.2
    python3 refresh.py litellm-1.106.2-*.whl      # writes <date>.json beside this script

Then point `include_str!` in ../src/price.rs at the new file and delete the old one.

Prices are USD per million tokens, as decimal text so that no rounding creeps in. The date is
the wheel's. Kept are text models that answer chat completions (openai), Messages (anthropic) or
Converse (bedrock). Left out are models that retire within a month, and every name whose price
the lookup in price.rs finds under a shorter one; `fallbacks` here and there must agree.
"""

import datetime
import decimal
import json
import pathlib
import re
import sys
import zipfile

PRICE_FILE = "litellm/model_prices_and_context_window_backup.json"
# Kinds of model that a scheduled text prompt cannot use, or that are let to few.
UNFIT = re.compile(r"audio|search|computer-use|cyber|daybreak|rosalind|mythos|deep-research|pegasus|palmyra-vision|voxtral|safeguard")
# Bedrock model families that Converse serves, among the entries that do not say so.
CONVERSE = re.compile(r"(meta\.llama3|mistral\.|cohere\.command-r|ai21\.jamba)")
GEOGRAPHY = re.compile(r"^(global|us-gov|us|eu|apac|au|jp|ca|sa|in)\.(.+)$")
COLUMNS = {
    "input": "input_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "output": "output_cost_per_token",
}


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        entries = json.loads(wheel.read(PRICE_FILE), parse_float=decimal.Decimal)
        date = datetime.date(*wheel.getinfo(PRICE_FILE).date_time[:3])
    version = pathlib.Path(sys.argv[1]).name.split("-")[1]
    retired_by = (date + datetime.timedelta(days=30)).isoformat()
    models = {}
    for name, entry in entries.items():
        provider = provider_of(name, entry)
        retires = entry.get("deprecation_date") or "9999"
        if provider and retires > retired_by:
            models.setdefault(provider, {})[name] = price(entry)
    shipped = {provider: shortest(provider, prices) for provider, prices in models.items()}
    write(date, f"litellm {version}", shipped)


def provider_of(name, entry):
    """Which of our providers serves this model, or None."""
    kind = entry.get("litellm_provider")
    if entry.get("mode") != "chat" or not entry.get("output_cost_per_token"):
        return None
    if not entry.get("input_cost_per_token") or UNFIT.search(name):
        return None
    if kind == "openai":
        served = entry.get("supported_endpoints", ["/v1/chat/completions"])
        return "openai" if "/v1/chat/completions" in served else None
    if kind == "anthropic":
        return "anthropic"
    if "/" in name or "@" in name or "." not in name:
        return None
    match = GEOGRAPHY.match(name)
    if kind == "bedrock_converse" or (kind == "bedrock" and CONVERSE.match(match[2] if match else name)):
        return "bedrock"
    return None


def price(entry):
    """The four prices, those above the one threshold of input tokens that an entry may have, and
    whether the model refuses temperature and top_p."""
    made = columns(entry, "")
    thresholds = {m[1] for key in entry if (m := re.match(r"input_cost_per_token_above_(\d+)k_tokens$", key))}
    if len(thresholds) > 1:
        sys.exit(f"more than one threshold: {entry}")
    for threshold in thresholds:
        above = columns(entry, f"_above_{threshold}k_tokens")
        made["above"] = {"input_tokens": int(threshold) * 1000, **above}
    if entry.get("supports_sampling_params") is False:
        made["sampling"] = False
    return made


def columns(entry, suffix):
    found = {}
    for ours, theirs in COLUMNS.items():
        value = entry.get(theirs + suffix)
        if value is not None:
            found[ours] = f"{(decimal.Decimal(value) * 1_000_000).normalize():f}"
    if "cached_input" not in found:
        found.pop("cache_write", None)  # a write without a read is a slip in the source
    return found


def shortest(provider, prices):
    """Drops each name whose price is found by falling back to another."""
    kept = dict(prices)
    for name in sorted(prices, key=len, reverse=True):
        target = next((other for other in fallbacks(provider, name) if other in kept and other != name), None)
        if target and kept[target] == kept[name]:
            del kept[name]
    return kept


def fallbacks(provider, name):
    """The names that the lookup tries after the name itself, in its order."""
    if provider == "openai":
        yield re.sub(r"-\d{4}-\d{2}-\d{2}$", "", name)
    elif provider == "anthropic":
        yield re.sub(r"-(\d{8}|latest)$", "", name)
    elif match := GEOGRAPHY.match(name):
        if match[1] != "global" and match[1] != "us":
            yield f"us.{match[2]}"
        yield match[2]


def write(date, source, shipped):
    lines = [f'{{"snapshot_date": "{date}", "source": "{source}",']
    for provider, prices in sorted(shipped.items()):
        lines.append(f' "{provider}": {{')
        rows = [f"  {json.dumps(name)}: {json.dumps(made)}" for name, made in sorted(prices.items())]
        lines.append(",\n".join(rows))
        lines.append(" }," if provider != max(shipped) else " }}")
    target = pathlib.Path(__file__).parent / f"{date}.json"
    target.write_text("\n".join(lines) + "\n")
    print(target, {provider: len(prices) for provider, prices in shipped.items()})


main()
