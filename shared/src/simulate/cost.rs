//! What the runs of a range would cost.
//!
//! A forecast says what it is from. A price that is not known stays unknown, never zero.

use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use super::{RUN_S_MAX, Request};
use crate::{
    model::{ModelName, Usage},
    price::Catalog,
};

/// Tokens of a call when nobody says.
const INPUT_TOKENS: u64 = 1_000;
const OUTPUT_TOKENS: u64 = 500;

/// What is known of a prompt's past runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// Runs that it has had.
    pub run_count: u64,
    /// The model that it names.
    pub model: String,
    /// The last successful runs, of which the averages are.
    pub runs: u64,
    /// Tokens read.
    pub input_tokens: Option<u64>,
    /// Tokens written.
    pub output_tokens: Option<u64>,
    /// US dollars, of the runs whose cost is known.
    pub cost_usd: Option<Decimal>,
    /// How long a call took.
    pub latency_ms: Option<u64>,
}

/// What the runs of the range would cost, tries again and failed ones apart.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CostForecast)]
pub struct Forecast {
    /// What it is from.
    pub basis: ForecastBasis,
    /// The same in words.
    pub detail: String,
    /// Runs of the range.
    #[schema(minimum = 0)]
    pub runs: u32,
    /// The model.
    pub model: String,
    /// Tokens that a run reads.
    #[schema(required, minimum = 0)]
    pub input_tokens: Option<u64>,
    /// Tokens that a run writes.
    #[schema(required, minimum = 0)]
    pub output_tokens: Option<u64>,
    /// US dollars a run; null when the price is not known.
    #[serde(with = "rust_decimal::serde::float_option")]
    #[schema(required, value_type = Option<f64>, minimum = 0)]
    pub cost_per_run_usd: Option<Decimal>,
    /// US dollars for all; null when the price is not known.
    #[serde(with = "rust_decimal::serde::float_option")]
    #[schema(required, value_type = Option<f64>, minimum = 0)]
    pub cost_usd: Option<Decimal>,
    /// The price list; null where past costs count.
    #[schema(required)]
    pub price_version: Option<String>,
}

/// What a forecast is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForecastBasis {
    /// The average cost of the prompt's past runs.
    PastCost,
    /// The model's list price for the tokens of the prompt's past runs.
    PastTokens,
    /// The model's list price for assumed tokens.
    AssumedTokens,
}

impl Past {
    /// How long a run took, in whole seconds.
    pub(super) fn run_s(&self) -> Option<u32> {
        let seconds = self.latency_ms?.div_ceil(1_000);
        Some(
            u32::try_from(seconds)
                .unwrap_or(RUN_S_MAX)
                .clamp(1, RUN_S_MAX),
        )
    }

    fn model(&self) -> Option<ModelName> {
        ModelName::parse(&self.model).ok()
    }

    /// Of this many runs.
    fn runs_in_words(&self) -> String {
        match self.runs {
            1 => "the prompt's last successful run".to_owned(),
            runs => format!("the prompt's last {runs} successful runs"),
        }
    }
}

/// A forecast for so many runs; `None` where neither a model nor a prompt was named.
pub(super) fn forecast(request: &Request, catalog: &Catalog, runs: u32) -> Option<Forecast> {
    let past = request.past.as_ref();
    let assumes = request.input_tokens.is_some() || request.output_tokens.is_some();
    let past_cost = past
        .filter(|_| !request.names_model && !assumes)
        .and_then(|past| Some((past, past.cost_usd?)));
    if let Some((past, cost)) = past_cost {
        return Some(Forecast {
            basis: ForecastBasis::PastCost,
            detail: format!("the average cost of {}", past.runs_in_words()),
            runs,
            model: past.model.clone(),
            input_tokens: past.input_tokens,
            output_tokens: past.output_tokens,
            cost_per_run_usd: Some(cost),
            cost_usd: Some(cost * Decimal::from(runs)),
            price_version: None,
        });
    }
    let model = match past {
        _ if request.names_model => request.spec.model().clone(),
        past => past?.model()?,
    };
    Some(by_price(request, catalog, &model, runs))
}

fn by_price(request: &Request, catalog: &Catalog, model: &ModelName, runs: u32) -> Forecast {
    let measured = request
        .past
        .as_ref()
        .and_then(|past| Some((past, past.input_tokens?, past.output_tokens?)));
    let assumes = request.input_tokens.is_some() || request.output_tokens.is_some();
    let (basis, input_tokens, output_tokens) = match measured {
        Some((_, input, output)) if !assumes => (ForecastBasis::PastTokens, input, output),
        _ => (
            ForecastBasis::AssumedTokens,
            request.input_tokens.unwrap_or(INPUT_TOKENS),
            request.output_tokens.unwrap_or(OUTPUT_TOKENS),
        ),
    };
    let usage = Usage {
        input_tokens,
        output_tokens,
        ..Usage::default()
    };
    let cost = catalog.cost_usd(model, &usage);
    let tokens = match (basis, measured) {
        (ForecastBasis::PastTokens, Some((past, ..))) => {
            format!("the average tokens of {}", past.runs_in_words())
        }
        _ => format!("{input_tokens} tokens read and {output_tokens} written, which are assumed"),
    };
    let version = catalog.version();
    let detail = match cost {
        Some(_) => format!("the list price of {model} as of {version}, for {tokens}"),
        None => format!("the price of {model} is not known, so the cost is not"),
    };
    Forecast {
        basis,
        detail,
        runs,
        model: model.to_string(),
        input_tokens: Some(input_tokens),
        output_tokens: Some(output_tokens),
        cost_per_run_usd: cost,
        cost_usd: cost.map(|cost| cost * Decimal::from(runs)),
        price_version: Some(version.to_owned()),
    }
}
