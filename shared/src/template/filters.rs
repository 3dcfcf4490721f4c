//! The filters and tests that templates may use.
//!
//! None gives more than [`OUTPUT_BYTES_MAX`](super::OUTPUT_BYTES_MAX) bytes, but for the few that
//! change letters one by one, and none calls another by name.

use std::{borrow::Cow, fmt::Write};

use minijinja::{
    Environment, Error, ErrorKind, Value, filters, tests,
    value::{Kwargs, StringInput},
};

use super::{Bounded, is_late, late};

/// Every filter.
pub(super) const NAMES: [&str; 16] = [
    "capitalize",
    "default",
    "first",
    "items",
    "join",
    "last",
    "length",
    "lower",
    "map",
    "replace",
    "round",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
];
/// Every test.
pub(super) const TESTS: [&str; 8] = [
    "defined", "even", "mapping", "none", "number", "odd", "sequence", "string",
];
/// The detail of an error about a result that is too long.
pub(super) const TOO_LONG: &str = "the result of a filter is too long";

/// Makes an environment know them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("capitalize", |text: StringInput<'_>| {
        in_time(|| filters::capitalize(text))
    });
    environment.add_filter("default", default);
    environment.add_filter("first", filters::first);
    environment.add_filter("items", |value: &Value| in_time(|| filters::items(value))?);
    environment.add_filter("join", join);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", |text: StringInput<'_>| {
        in_time(|| filters::lower(text))
    });
    environment.add_filter("map", |list: &Value, arguments: Kwargs| {
        in_time(|| map(list, arguments))?
    });
    environment.add_filter("replace", replace);
    environment.add_filter("round", filters::round);
    environment.add_filter("title", |text: Cow<'_, str>| {
        in_time(|| filters::title(text))
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter(
        "trim",
        |text: StringInput<'_>, chars: Option<Cow<'_, str>>| in_time(|| filters::trim(text, chars)),
    );
    environment.add_filter("truncate", |text: Cow<'_, str>, chars: usize| {
        in_time(|| truncate(text, chars))
    });
    environment.add_filter("upper", |text: StringInput<'_>| {
        in_time(|| filters::upper(text))
    });
    environment.add_test("defined", tests::is_defined);
    environment.add_test("even", tests::is_even);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("none", tests::is_none);
    environment.add_test("number", tests::is_number);
    environment.add_test("odd", tests::is_odd);
    environment.add_test("sequence", tests::is_sequence);
    environment.add_test("string", tests::is_string);
}

/// What a filter that reads a whole value gives, while there is time for it.
fn in_time<T>(filter: impl FnOnce() -> T) -> Result<T, Error> {
    if is_late() { Err(late()) } else { Ok(filter()) }
}

/// What to say instead of nothing. An empty text is nothing: on the first run, `previous.output` is
/// one.
fn default(value: &Value, instead: &Value) -> Value {
    let nothing = value.is_undefined() || value.is_none() || value.as_str() == Some("");
    if nothing {
        instead.clone()
    } else {
        value.clone()
    }
}

fn join(list: &Value, between: Option<Cow<'_, str>>) -> Result<Value, Error> {
    let between = between.unwrap_or_default();
    let mut joined = Bounded::default();
    for (index, item) in list.try_iter()?.checked().enumerate() {
        if index > 0 {
            joined.append(&between)?;
        }
        joined.append_value(&item?)?;
    }
    Ok(Value::from(joined.text))
}

/// `map(attribute="name")` alone: mapping by a filter's name could multiply long texts.
fn map(list: &Value, arguments: Kwargs) -> Result<Vec<Value>, Error> {
    let attribute: &str = arguments.get("attribute")?;
    arguments.assert_all_used()?;
    list.try_iter()?
        .checked()
        .map(|item| item?.get_attr(attribute))
        .collect()
}

fn replace(text: Cow<'_, str>, from: Cow<'_, str>, to: Cow<'_, str>) -> Result<Value, Error> {
    let mut replaced = Bounded::default();
    let mut end = 0;
    for (start, found) in text.match_indices(from.as_ref()) {
        replaced.append(text.get(end..start).unwrap_or_default())?;
        replaced.append(&to)?;
        end = start + found.len();
    }
    replaced.append(text.get(end..).unwrap_or_default())?;
    Ok(Value::from(replaced.text))
}

fn tojson(value: &Value) -> Result<Value, Error> {
    let mut json = Bounded::default();
    match serde_json::to_writer(&mut json, value) {
        Ok(()) => Ok(Value::from(json.text)),
        Err(_) if json.overflowed => Err(too_long()),
        Err(error) => Err(Error::new(ErrorKind::BadSerialization, error.to_string())),
    }
}

/// At most so many characters, the mark of the cut among them.
fn truncate(text: Cow<'_, str>, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.into_owned(),
        Some(_) => text
            .chars()
            .take(chars.saturating_sub(1))
            .chain(['…'])
            .take(chars)
            .collect(),
    }
}

impl Bounded {
    fn append(&mut self, more: &str) -> Result<(), Error> {
        self.push(more).map_err(|_| too_long())
    }

    fn append_value(&mut self, value: &Value) -> Result<(), Error> {
        write!(self, "{value}").map_err(|_| too_long())
    }
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        self.push(more).map_err(|_| std::fmt::Error)
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, TOO_LONG)
}
