//! What model calls cost: a dated snapshot of list prices, and prices that the team adds.
//!
//! Pure, and never a source of truth about a bill: it knows list prices in USD per million tokens,
//! not discounts, taxes or provisioned capacity. A cost that it cannot know is `None`, never zero.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
    iter,
    str::FromStr,
    sync::LazyLock,
};

use rust_decimal::{Decimal, RoundingStrategy};
use serde::Deserialize;

use crate::{
    fault::Fault,
    model::{ModelName, ModelSettings, Provider, Usage},
};

/// Made by `prices/refresh.py`.
const SNAPSHOT: &str = include_str!("../prices/2026-10-21.json");

// Cannot fail: the file is part of the binary, and a test parses it.
static SHIPPED: LazyLock<Snapshot> = LazyLock::new(|| {
    serde_json::from_str(SNAPSHOT).expect("the shipped price snapshot is well-formed")
});

/// How many decimals a cost has; the database stores as many.
const COST_DECIMALS: u32 = 6;
/// The highest price that the team may give, in USD per million tokens.
const EXTRA_PRICE_USD_MAX: u32 = 1_000;
/// How many models a hint suggests.
const SUGGESTIONS_MAX: usize = 3;

/// The models that may be used, and their prices.
#[derive(Debug, Clone)]
pub struct Catalog {
    extra: BTreeMap<ModelName, Option<Price>>,
    version: String,
}

impl Catalog {
    /// The shipped snapshot alone. The first use parses it; later ones share it.
    #[must_use]
    pub fn shipped() -> Self {
        Self {
            extra: BTreeMap::new(),
            version: SHIPPED.snapshot_date.to_owned(),
        }
    }

    /// The shipped snapshot and models of the team's own, which win over the shipped ones.
    ///
    /// The text lists models separated by commas, each a name, or a name with its prices for a
    /// million tokens of input and of output: `openai/my-model=0.5:1.5,openai/other`. A call of a
    /// model without a price has an unknown cost.
    ///
    /// # Errors
    /// One fault for each entry that is wrong; their fields are empty.
    pub fn with_extra(text: &str) -> Result<Self, Vec<Fault>> {
        let mut extra = BTreeMap::new();
        let mut faults = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match extra_model(item) {
                Err(fault) => faults.push(fault),
                Ok((name, price)) => match extra.entry(name) {
                    Entry::Vacant(place) => drop(place.insert(price)),
                    Entry::Occupied(place) => faults.push(Fault::new(
                        "",
                        "duplicate_model",
                        format!("`{}` is listed twice", place.key()),
                        "list each model once",
                    )),
                },
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut catalog = Self::shipped();
        if !extra.is_empty() {
            catalog.version.push_str("+extra");
            catalog.extra = extra;
        }
        Ok(catalog)
    }

    /// Which prices these are: the snapshot's date, with `+extra` when the team added models.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where the shipped prices were taken from.
    #[must_use]
    pub fn source(&self) -> &'static str {
        SHIPPED.source
    }

    /// Whether a prompt may use this model. The offline provider knows every name.
    #[must_use]
    pub fn knows(&self, model: &ModelName) -> bool {
        model.provider() == Provider::Echo
            || self.extra.contains_key(model)
            || SHIPPED.price(model).is_some()
    }

    /// Like [`Catalog::knows`], for a request.
    ///
    /// # Errors
    /// `unknown_model`, with the nearest known names in its hint; the field is empty.
    pub fn check(&self, model: &ModelName) -> Result<(), Fault> {
        if self.knows(model) {
            return Ok(());
        }
        let near = self.near(model);
        let hint = if near.is_empty() {
            "choose another model, or ask whoever runs this service to add it".to_owned()
        } else {
            format!("did you mean `{}`?", near.join("` or `"))
        };
        Err(Fault::new(
            "",
            "unknown_model",
            format!("`{model}` is not among the models of {}", self.version),
            hint,
        ))
    }

    /// What this model is known to refuse among settings that are well-formed: for a request, so
    /// that a prompt is not saved which fails at every run. An empty list is no promise.
    #[must_use]
    pub fn settings_faults(&self, model: &ModelName, settings: &ModelSettings) -> Vec<Fault> {
        let sampling = match self.extra.get(model) {
            Some(_) => true,
            None => SHIPPED.price(model).is_none_or(|price| price.sampling),
        };
        if sampling {
            return settings.faults_for(model.provider());
        }
        [
            ("temperature", settings.temperature()),
            ("top_p", settings.top_p()),
        ]
        .into_iter()
        .filter(|(_, value)| value.is_some())
        .map(|(field, _)| {
            Fault::new(
                field,
                "unsupported_setting",
                format!("`{model}` takes no {field}"),
                format!("leave {field} out, or choose another model"),
            )
        })
        .collect()
    }

    /// What a call cost in USD, with six decimals, a half rounded up. None when the model or its
    /// price is not known. The offline provider costs nothing.
    #[must_use]
    pub fn cost_usd(&self, model: &ModelName, usage: &Usage) -> Option<Decimal> {
        if model.provider() == Provider::Echo {
            return Some(Decimal::ZERO);
        }
        match self.extra.get(model) {
            Some(price) => price.as_ref()?.cost_usd(usage),
            None => SHIPPED.price(model)?.cost_usd(usage),
        }
    }

    /// The known names nearest to this one, best first: the same name at another provider, one
    /// that contains it, or one a few letters away.
    fn near(&self, model: &ModelName) -> Vec<String> {
        let wanted = model.name().to_ascii_lowercase();
        let snapshot: &Snapshot = &SHIPPED;
        let shipped = snapshot.names();
        let extra = self.extra.keys().map(|name| (name.provider(), name.name()));
        let mut found: Vec<_> = shipped
            .chain(extra)
            .filter_map(|(provider, name)| {
                let distance = name_distance(&wanted, &name.to_ascii_lowercase())?;
                let same_provider = provider == model.provider();
                Some((
                    distance,
                    Reverse(same_provider),
                    name.len(),
                    format!("{provider}/{name}"),
                ))
            })
            .collect();
        found.sort_unstable();
        found
            .into_iter()
            .map(|(.., name)| name)
            .take(SUGGESTIONS_MAX)
            .collect()
    }
}

fn extra_model(item: &str) -> Result<(ModelName, Option<Price>), Fault> {
    let Some((name, prices)) = item.split_once('=') else {
        return Ok((ModelName::parse(item)?, None));
    };
    let price = prices
        .split_once(':')
        .and_then(|(input, output)| Some((extra_price(input)?, extra_price(output)?)))
        .map(|(input, output)| Price {
            rates: Rates {
                input,
                cached_input: None,
                cache_write: None,
                output,
            },
            above: None,
            sampling: true,
        })
        .ok_or_else(|| {
            Fault::new(
                "",
                "malformed_price",
                format!("`{item}` has no readable price"),
                format!(
                    "write `provider/name=input:output` in USD per million tokens, \
                     each from 0 to {EXTRA_PRICE_USD_MAX}"
                ),
            )
        })?;
    Ok((ModelName::parse(name.trim())?, Some(price)))
}

fn extra_price(text: &str) -> Option<Decimal> {
    let price = Decimal::from_str(text.trim()).ok()?;
    let allowed = Decimal::ZERO..=Decimal::from(EXTRA_PRICE_USD_MAX);
    allowed.contains(&price).then_some(price)
}

/// The shipped file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    snapshot_date: &'static str,
    source: &'static str,
    openai: BTreeMap<&'static str, Price>,
    anthropic: BTreeMap<&'static str, Price>,
    bedrock: BTreeMap<&'static str, Price>,
}

impl Snapshot {
    fn price(&self, model: &ModelName) -> Option<&Price> {
        let name = model.name();
        match model.provider() {
            Provider::OpenAi => openai_names(name).find_map(|name| self.openai.get(name)),
            Provider::Anthropic => anthropic_names(name).find_map(|name| self.anthropic.get(name)),
            Provider::Bedrock => {
                bedrock_names(name).find_map(|name| self.bedrock.get(name.as_str()))
            }
            Provider::Echo => None,
        }
    }

    fn names(&self) -> impl Iterator<Item = (Provider, &str)> {
        [
            (Provider::OpenAi, &self.openai),
            (Provider::Anthropic, &self.anthropic),
            (Provider::Bedrock, &self.bedrock),
        ]
        .into_iter()
        .flat_map(|(provider, prices)| prices.keys().map(move |name| (provider, *name)))
    }
}

/// One model's prices, and those of a call whose input exceeds a threshold, if it has one.
#[derive(Debug, Clone, Deserialize)]
struct Price {
    #[serde(flatten)]
    rates: Rates,
    above: Option<Above>,
    /// Whether the model takes a temperature and top_p, as far as is known.
    #[serde(default = "yes")]
    sampling: bool,
}

fn yes() -> bool {
    true
}

/// The prices of a whole call, from its first token, once its input is longer.
#[derive(Debug, Clone, Deserialize)]
struct Above {
    input_tokens: u64,
    #[serde(flatten)]
    rates: Rates,
}

/// USD per million tokens. Where a provider has no price for the cache, the input's applies.
#[derive(Debug, Clone, Deserialize)]
struct Rates {
    input: Decimal,
    cached_input: Option<Decimal>,
    cache_write: Option<Decimal>,
    output: Decimal,
}

impl Price {
    fn cost_usd(&self, usage: &Usage) -> Option<Decimal> {
        let rates = match &self.above {
            Some(above) if usage.input_total() > above.input_tokens => &above.rates,
            Some(_) | None => &self.rates,
        };
        let parts = [
            (usage.input_tokens, rates.input),
            (
                usage.cached_input_tokens,
                rates.cached_input.unwrap_or(rates.input),
            ),
            (
                usage.cache_write_tokens,
                rates.cache_write.unwrap_or(rates.input),
            ),
            (usage.output_tokens, rates.output),
        ];
        parts
            .into_iter()
            .try_fold(Decimal::ZERO, |sum, (tokens, rate)| {
                sum.checked_add(Decimal::from(tokens).checked_mul(rate)?)
            })?
            .checked_div(Decimal::from(1_000_000))
            .map(|cost| {
                cost.round_dp_with_strategy(COST_DECIMALS, RoundingStrategy::MidpointAwayFromZero)
            })
    }
}

/// The names to look up, in this order: as given, a fine-tuned model's base, without the date.
fn openai_names(name: &str) -> impl Iterator<Item = &str> {
    let base = name.starts_with("ft:").then(|| {
        let end = name
            .match_indices(':')
            .nth(1)
            .map_or(name.len(), |(at, _)| at);
        &name[..end]
    });
    let undated = name
        .len()
        .checked_sub("-2025-01-31".len())
        .and_then(|at| name.split_at_checked(at))
        .filter(|(_, date)| has_form(date, "-0000-00-00"))
        .map(|(start, _)| start);
    iter::once(name).chain(base).chain(undated)
}

/// The names to look up, in this order: as given, without the date or `-latest`.
fn anthropic_names(name: &str) -> impl Iterator<Item = &str> {
    let undated = name
        .rsplit_once('-')
        .filter(|(_, end)| *end == "latest" || has_form(end, "00000000"))
        .map(|(start, _)| start);
    iter::once(name).chain(undated)
}

/// The names to look up, in this order: as given (an ARN's last part), without the context size,
/// at the regional price, at the base price.
///
/// Inference profiles put a geography before the id. All geographies but `global` cost alike as a
/// rule, and the snapshot lists one only where it differs from `us`.
fn bedrock_names(name: &str) -> impl Iterator<Item = String> {
    let id = name.rsplit('/').next().unwrap_or(name);
    let plain = id
        .rsplit_once(':')
        .filter(|(_, size)| {
            size.strip_suffix('k')
                .is_some_and(|n| n.parse::<u16>().is_ok())
        })
        .map_or(id, |(start, _)| start);
    let (regional, base) = match plain.split_once('.') {
        Some((geography, base)) if GEOGRAPHIES.contains(&geography) => (
            (geography != "global").then(|| format!("us.{base}")),
            Some(base.to_owned()),
        ),
        Some(_) | None => (None, None),
    };
    iter::once(plain.to_owned()).chain(regional).chain(base)
}

/// What stands before a model's id in Bedrock's inference profiles; `refresh.py` has the same.
const GEOGRAPHIES: [&str; 10] = [
    "global", "us", "us-gov", "eu", "apac", "au", "jp", "ca", "sa", "in",
];

/// Whether the text has the form: a zero stands for any digit.
fn has_form(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, want)| {
            if want == b'0' {
                byte.is_ascii_digit()
            } else {
                byte == want
            }
        })
}

/// How far a known name is from the wanted one; None when nobody would take one for the other.
fn name_distance(wanted: &str, known: &str) -> Option<usize> {
    if known.contains(wanted) || wanted.contains(known) {
        return Some(usize::from(wanted != known));
    }
    let distance = edit_distance(wanted, known);
    (distance <= wanted.len().div_ceil(4)).then_some(distance + 1)
}

/// How many single letters must be put in, taken out or changed.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    fn usage(input: u64, cached: u64, write: u64, output: u64) -> Usage {
        Usage {
            input_tokens: input,
            cached_input_tokens: cached,
            cache_write_tokens: write,
            output_tokens: output,
        }
    }

    fn cost(text: &str, usage: Usage) -> String {
        Catalog::shipped()
            .cost_usd(&model(text), &usage)
            .map_or("unknown".to_owned(), |cost| cost.to_string())
    }

    #[test]
    fn a_million_tokens_cost_the_list_price() {
        let million = usage(1_000_000, 0, 0, 0);
        assert_eq!(cost("openai/gpt-4o", million), "2.5");
        assert_eq!(cost("openai/gpt-5-mini", usage(0, 0, 0, 1_000_000)), "2");
        let cached = usage(0, 1_000_000, 0, 0);
        assert_eq!(cost("anthropic/claude-opus-5-5", cached), "0.2");
        let written = usage(0, 0, 1_000_000, 0);
        assert_eq!(cost("anthropic/claude-opus-5-5", written), "5");
        assert_eq!(cost("bedrock/amazon.nova-micro-v1:0", million), "0.035");
        assert_eq!(cost("echo/anything", usage(5, 5, 5, 5)), "0");
        assert_eq!(cost("openai/nobody-knows-me", million), "unknown");
    }

    #[test]
    fn each_kind_of_token_is_charged_once() {
        // 100 × 3 + 1,000 × 0.3 + 10 × 3.75 + 20 × 15 = 937.5 USD per million.
        assert_eq!(
            cost("anthropic/claude-sonnet-4-6", usage(100, 1_000, 10, 20)),
            "0.000938"
        );
    }

    #[test]
    fn half_a_micro_dollar_is_rounded_up() {
        // gpt-5.4-mini: 4.5 USD per million of output, so one token costs 4.5 micro-dollars.
        assert_eq!(cost("openai/gpt-5.4-mini", usage(0, 0, 0, 1)), "0.000005");
        assert_eq!(cost("openai/gpt-5.4-mini", usage(0, 0, 0, 3)), "0.000014");
        // gpt-4o-mini: cached input costs 0.075.
        assert_eq!(cost("openai/gpt-4o-mini", usage(0, 6, 0, 0)), "0.000000");
        assert_eq!(cost("openai/gpt-4o-mini", usage(0, 7, 0, 0)), "0.000001");
    }

    #[test]
    fn a_long_input_makes_the_whole_call_dearer() {
        let at = usage(100_000, 172_000, 0, 1_000_000);
        let above = usage(100_000, 172_001, 0, 1_000_000);
        // gpt-6-sol: 2, 0.2, 10 up to 272,000 tokens of input, then 4, 0.4, 15.
        assert_eq!(cost("openai/gpt-6-sol", at), "10.2344");
        assert_eq!(cost("openai/gpt-6-sol", above), "15.468800");
    }

    #[test]
    fn input_is_charged_in_full_where_the_cache_has_no_price() {
        let cached = usage(0, 1_000_000, 1_000_000, 0);
        assert_eq!(cost("bedrock/mistral.mistral-large-2407-v1:0", cached), "4");
    }

    #[test]
    fn dated_tuned_and_regional_names_find_their_price() {
        let million = usage(1_000_000, 0, 0, 0);
        for (name, expected) in [
            ("openai/gpt-4o-2024-08-06", "2.5"),
            ("openai/gpt-5-mini-2025-08-07", "0.25"),
            ("openai/ft:gpt-4o-2024-08-06:acme::abc", "3.75"),
            ("anthropic/claude-haiku-4-5-20251001", "1"),
            ("anthropic/claude-haiku-4-5-latest", "1"),
            ("bedrock/anthropic.claude-haiku-4-5-20251001-v1:0", "1"),
            (
                "bedrock/global.anthropic.claude-haiku-4-5-20251001-v1:0",
                "1",
            ),
            ("bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0", "1.1"),
            ("bedrock/eu.anthropic.claude-haiku-4-5-20251001-v1:0", "1.1"),
            ("bedrock/anthropic.claude-haiku-4-5-20251001-v1:0:200k", "1"),
            ("bedrock/eu.amazon.nova-lite-v1:0", "0.078"),
            ("bedrock/us.amazon.nova-lite-v1:0", "0.06"),
            (
                "bedrock/arn:aws:bedrock:eu-west-1:1:inference-profile/eu.deepseek.v3.2",
                "0.74",
            ),
            ("openai/gpt-4o-2024", "unknown"),
            ("openai/gpt-4o-preview", "unknown"),
            ("anthropic/claude-haiku", "unknown"),
            ("bedrock/mars.amazon.nova-lite-v1:0", "unknown"),
            ("anthropic/gpt-4o", "unknown"),
        ] {
            assert_eq!(cost(name, million), expected, "{name}");
            assert_eq!(
                Catalog::shipped().knows(&model(name)),
                expected != "unknown",
                "{name}"
            );
        }
        assert!(Catalog::shipped().knows(&model("echo/anything")));
    }

    #[test]
    fn an_unknown_model_comes_with_what_was_meant() {
        for (asked, meant) in [
            ("openai/gpt4o", "openai/gpt-4o"),
            ("openai/GPT-4O", "openai/gpt-4o"),
            ("openai/claude-sonnet-5", "anthropic/claude-sonnet-5"),
            ("anthropic/claude-sonet-4-6", "anthropic/claude-sonnet-4-6"),
            ("bedrock/claude-opus-5", "bedrock/anthropic.claude-opus-5"),
            ("bedrock/amazon.nova-pro", "bedrock/amazon.nova-pro-v1:0"),
        ] {
            let fault = Catalog::shipped().check(&model(asked)).unwrap_err();
            assert_eq!(fault.code, "unknown_model");
            assert!(
                fault.hint.contains(&format!("`{meant}`")),
                "{asked}: {}",
                fault.hint
            );
            assert!(fault.detail.contains(asked) && fault.detail.contains("2026-10-21"));
        }
        let fault = Catalog::shipped()
            .check(&model("openai/zzzzzzzz"))
            .unwrap_err();
        assert!(!fault.hint.contains("did you mean"), "{}", fault.hint);
        assert!(Catalog::shipped().check(&model("openai/gpt-4o")).is_ok());
    }

    #[test]
    fn settings_that_a_model_refuses_are_said_when_saving() {
        let both = serde_json::json!({"temperature": 0.5, "top_p": 0.5, "max_output_tokens": 5});
        let both = ModelSettings::parse(&both).unwrap();
        let said = |catalog: &Catalog, name| {
            let faults = catalog.settings_faults(&model(name), &both);
            faults
                .into_iter()
                .map(|fault| (fault.field, fault.code))
                .collect::<Vec<_>>()
        };
        let refused = [
            ("temperature".to_owned(), "unsupported_setting"),
            ("top_p".to_owned(), "unsupported_setting"),
        ];
        let shipped = Catalog::shipped();
        assert_eq!(said(&shipped, "anthropic/claude-opus-5-5"), refused);
        assert_eq!(
            said(&shipped, "bedrock/eu.anthropic.claude-sonnet-5"),
            refused
        );
        assert!(said(&shipped, "anthropic/claude-sonnet-4-6").is_empty());
        assert!(said(&shipped, "openai/nobody-knows-me").is_empty());
        let own = Catalog::with_extra("anthropic/claude-opus-5-5").unwrap();
        assert!(said(&own, "anthropic/claude-opus-5-5").is_empty());
        let hot = ModelSettings::parse(&serde_json::json!({"temperature": 1.5})).unwrap();
        let faults = shipped.settings_faults(&model("anthropic/claude-sonnet-4-6"), &hot);
        assert_eq!(faults[0].code, "out_of_range");
    }

    #[test]
    fn the_team_adds_models_of_its_own() {
        let catalog =
            Catalog::with_extra("openai/my-model=0.5:1.5, openai/other ,openai/gpt-4o=1:2,")
                .unwrap();
        let million = usage(1_000_000, 0, 0, 1_000_000);
        let cost = |name| catalog.cost_usd(&model(name), &million);
        assert_eq!(cost("openai/my-model"), Some(Decimal::from(2)));
        assert_eq!(cost("openai/gpt-4o"), Some(Decimal::from(3)));
        assert!(catalog.knows(&model("openai/other")));
        assert_eq!(cost("openai/other"), None);
        assert!(!catalog.knows(&model("openai/another")));
        assert_eq!(catalog.version(), "2026-10-21+extra");
        let fault = catalog.check(&model("openai/my-modle")).unwrap_err();
        assert!(fault.hint.contains("`openai/my-model`"), "{}", fault.hint);
        assert_eq!(Catalog::with_extra(" , ").unwrap().version(), "2026-10-21");
        assert_eq!(Catalog::shipped().source(), "litellm 1.106.2");
    }

    #[test]
    fn every_bad_extra_is_said_at_once() {
        let faults = Catalog::with_extra(
            "my-model,openai/a=1,openai/b=-1:2,openai/c=1:2001,openai/d=x:1,openai/e,openai/e",
        )
        .unwrap_err();
        let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
        assert_eq!(
            codes,
            [
                "malformed_model",
                "malformed_price",
                "malformed_price",
                "malformed_price",
                "malformed_price",
                "duplicate_model",
            ]
        );
    }

    #[test]
    fn every_shipped_price_is_plausible() {
        let snapshot: Snapshot = serde_json::from_str(SNAPSHOT).unwrap();
        assert!(snapshot.names().count() > 80);
        let maps = [&snapshot.openai, &snapshot.anthropic, &snapshot.bedrock];
        for (name, price) in maps.into_iter().flatten() {
            for rates in iter::once(&price.rates).chain(price.above.as_ref().map(|a| &a.rates)) {
                assert!(
                    rates.input > Decimal::ZERO && rates.output >= rates.input,
                    "{name}"
                );
                assert!(rates.output <= Decimal::from(EXTRA_PRICE_USD_MAX), "{name}");
                assert!(
                    rates.cached_input.is_none_or(|cached| cached < rates.input),
                    "{name}"
                );
                assert!(
                    rates.cache_write.is_none_or(|write| write >= rates.input),
                    "{name}"
                );
            }
        }
        for (provider, name) in snapshot.names() {
            assert!(
                ModelName::parse(&format!("{provider}/{name}")).is_ok(),
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_cost_never_overflows_the_column(
            counts in prop::array::uniform4(0..=Usage::TOKENS_MAX), input in 0u32..=1_000, output in 0u32..=1_000
        ) {
            let catalog = Catalog::with_extra(&format!("openai/x={input}:{output}")).unwrap();
            let [a, b, c, d] = counts;
            let cost = catalog.cost_usd(&model("openai/x"), &usage(a, b, c, d)).unwrap();
            // NUMERIC(12,6) holds six digits before the point.
            prop_assert!(cost < Decimal::from(1_000_000) && cost.scale() <= COST_DECIMALS);
        }

        #[test]
        fn any_extra_text_and_name_is_answered(text in any::<String>(), name in "[a-z0-9.:/-]{1,90}") {
            let _ = Catalog::with_extra(&text);
            if let Ok(name) = ModelName::parse(&format!("openai/{name}")) {
                let _ = Catalog::shipped().check(&name);
            }
            if let Ok(name) = ModelName::parse(&format!("bedrock/{name}")) {
                let _ = Catalog::shipped().check(&name);
            }
        }
    }
}
