//! The one way to read a JSON object of a request: every field by name, every fault at once.
//!
//! A reader asks for each field it knows and says what the field must be; [`Fields::finish`] then
//! refuses what nobody asked for. `null` counts as absent. Nothing here knows what a field means,
//! and nothing here may stop at the first fault.
//!
//! The codes are the same for every field of every body: `missing`, `wrong_type`, `unknown_field`,
//! `unknown_value`, `out_of_range`, `empty`, `too_short`, `too_long`, `control_character`, `too_few`,
//! `too_many`, `bad_time`. A parser that a getter is given adds its own.

use std::{borrow::Cow, fmt, ops::RangeInclusive};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::fault::Fault;

/// More unknown fields than this are not told: the answer must stay small.
const UNKNOWN_TOLD_MAX: usize = 20;
/// What is repeated of a name that the caller made up.
const NAME_CHARS_MAX: usize = 64;

/// A JSON object that is being read.
#[derive(Debug)]
pub struct Fields<'a> {
    given: Option<&'a Map<String, Value>>,
    known: Vec<&'static str>,
    /// Fields that are refused with a reason of their own, and never offered.
    refused: Vec<&'static str>,
    faults: Vec<Fault>,
}

/// One field of it, or one item of a list, that is about to be read.
#[derive(Debug)]
pub struct Field<'f, 'a> {
    faults: &'f mut Vec<Fault>,
    place: Cow<'static, str>,
    value: Option<&'a Value>,
}

impl<'a> Fields<'a> {
    /// Starts to read; anything but an object is a fault, and then no field is called missing.
    #[must_use]
    pub fn new(value: &'a Value) -> Self {
        let given = value.as_object();
        let faults = match given {
            Some(_) => Vec::new(),
            None => vec![wrong_type("", value, "an object")],
        };
        Self {
            given,
            known: Vec::new(),
            refused: Vec::new(),
            faults,
        }
    }

    /// A field that must be there.
    pub fn required(&mut self, name: &'static str) -> Field<'_, 'a> {
        self.required_such_as(name, "")
    }

    /// A field that must be there, with an example for the caller who left it out.
    pub fn required_such_as(&mut self, name: &'static str, example: &str) -> Field<'_, 'a> {
        if self.given.is_some() && self.look_up(name).is_none() {
            let hint = match example {
                "" => format!("send `{name}`"),
                example => format!("send `{name}`, for example {example}"),
            };
            self.faults
                .push(Fault::new(name, "missing", "the field is missing", hint));
        }
        self.optional(name)
    }

    /// A field that may be absent or null.
    pub fn optional(&mut self, name: &'static str) -> Field<'_, 'a> {
        self.known.push(name);
        let value = self.look_up(name);
        Field {
            faults: &mut self.faults,
            place: Cow::Borrowed(name),
            value,
        }
    }

    /// Refuses a field that there is not, but that callers have reason to expect, with more than that
    /// there is no such field. `true` if it is there.
    pub fn refuse_field(
        &mut self,
        name: &'static str,
        code: &'static str,
        detail: &str,
        hint: &str,
    ) -> bool {
        self.refused.push(name);
        let given = self.look_up(name).is_some();
        if given {
            self.faults.push(Fault::new(name, code, detail, hint));
        }
        given
    }

    /// Adds a fault that concerns several fields, or that only the reader can see.
    pub fn refuse(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// How many faults there are so far: what reads several fields as one can see whether they were
    /// in order.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.faults.len()
    }

    /// Ends the reading without a word on unknown fields: which fields there may be is not known.
    #[must_use]
    pub fn give_up(self) -> Vec<Fault> {
        self.faults
    }

    /// Ends the reading. The value is there whenever no getter reported a fault.
    ///
    /// # Errors
    ///
    /// Every fault found, those of unknown fields last.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Fault>> {
        self.refuse_unknown();
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }

    fn look_up(&self, name: &str) -> Option<&'a Value> {
        self.given?.get(name).filter(|value| !value.is_null())
    }

    fn refuse_unknown(&mut self) {
        let Some(given) = self.given else { return };
        let unknown = given.keys().filter(|name| {
            let name = name.as_str();
            !self.known.contains(&name) && !self.refused.contains(&name)
        });
        for name in unknown.take(UNKNOWN_TOLD_MAX) {
            let hint = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use only {}", self.known.join(", ")),
            };
            let detail = "there is no such field";
            self.faults
                .push(Fault::new(clip(name), "unknown_field", detail, hint));
        }
    }
}

impl<'f, 'a> Field<'f, 'a> {
    /// A value that is no field of an object; its faults have an empty place.
    pub fn root(value: &'a Value, faults: &'f mut Vec<Fault>) -> Self {
        let place = Cow::Borrowed("");
        Self {
            faults,
            place,
            value: Some(value),
        }
    }

    /// Text on one line, its length counted in characters.
    pub fn line(mut self, chars: RangeInclusive<usize>) -> Option<&'a str> {
        let text = self.string("text")?;
        if text.chars().any(char::is_control) {
            return self.refuse(
                "control_character",
                "the text holds a line break or another control character",
                "send one line of plain text",
            );
        }
        self.measured(text, text.chars().count(), chars, "characters")
    }

    /// Text of any number of lines, its length counted in characters.
    pub fn text(mut self, chars: RangeInclusive<usize>) -> Option<&'a str> {
        let text = self.string("text")?;
        self.measured(text, text.chars().count(), chars, "characters")
    }

    /// Text of any number of lines, its length counted in bytes of UTF-8.
    pub fn text_bytes(mut self, bytes: RangeInclusive<usize>) -> Option<&'a str> {
        let text = self.string("text")?;
        self.measured(text, text.len(), bytes, "bytes")
    }

    /// A whole number. `3.0` is one, as JSON Schema has it.
    pub fn integer<T>(mut self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display + Copy,
    {
        let value = self.value?;
        let Value::Number(number) = value else {
            return self.refuse_type(value, "a whole number");
        };
        let Some(whole) = whole(number) else {
            return self.refuse_type(value, "a whole number");
        };
        match T::try_from(whole) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.refuse_range(whole, &range),
        }
    }

    /// A number with or without a fraction.
    pub fn number(mut self, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.value?;
        match value.as_f64() {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => self.refuse_range(number, &range),
            None => self.refuse_type(value, "a number"),
        }
    }

    /// True or false.
    pub fn boolean(mut self) -> Option<bool> {
        let value = self.value?;
        value
            .as_bool()
            .or_else(|| self.refuse_type(value, "true or false"))
    }

    /// One of a closed set of words.
    pub fn word<T: Copy>(mut self, all: &[T], word: impl Fn(T) -> &'static str) -> Option<T> {
        let text = self.string("text")?;
        all.iter()
            .copied()
            .find(|one| word(*one) == text)
            .or_else(|| {
                let words: Vec<_> = all.iter().map(|one| word(*one)).collect();
                let hint = match nearest(text, words.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`? use {}", words.join(", ")),
                    None => format!("use {}", words.join(", ")),
                };
                self.refuse("unknown_value", "there is no such choice", hint)
            })
    }

    /// An instant as RFC 3339 writes it, with `Z` or an offset.
    pub fn instant(mut self) -> Option<DateTime<Utc>> {
        let text = self.string("an instant")?;
        match DateTime::parse_from_rfc3339(text) {
            Ok(instant) => Some(instant.with_timezone(&Utc)),
            Err(_) => self.refuse(
                "bad_time",
                "not an instant of RFC 3339",
                "send for example 2026-03-22T09:00:00Z",
            ),
        }
    }

    /// An object whose fields are the caller's own, no larger than so many bytes of JSON.
    pub fn object(mut self, bytes_max: usize) -> Option<&'a Map<String, Value>> {
        let value = self.value?;
        let Value::Object(object) = value else {
            return self.refuse_type(value, "an object");
        };
        let bytes = value.to_string().len();
        if bytes > bytes_max {
            let detail = format!("the object has {bytes} bytes of JSON");
            return self.refuse(
                "too_long",
                detail,
                format!("send at most {bytes_max} bytes"),
            );
        }
        if holds_nul(value) {
            return self.refuse_nul();
        }
        Some(object)
    }

    /// A list, each item read by `read`; an item's place is `name[index]`.
    pub fn list<T>(
        mut self,
        count: RangeInclusive<usize>,
        read: impl Fn(Field<'_, 'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.value?;
        let Value::Array(items) = value else {
            return self.refuse_type(value, "a list");
        };
        if items.len() > *count.end() {
            let detail = format!("the list has {} items", items.len());
            return self.refuse("too_many", detail, format!("send at most {}", count.end()));
        }
        if items.len() < *count.start() {
            let detail = format!("the list has {} items", items.len());
            return self.refuse(
                "too_few",
                detail,
                format!("send at least {}", count.start()),
            );
        }
        let read_one = |(index, item)| {
            let place = Cow::Owned(format!("{}[{index}]", self.place));
            read(Field {
                faults: self.faults,
                place,
                value: Some(item),
            })
        };
        // Every item is read, although one fault is enough to lose the list.
        let read: Vec<_> = items.iter().enumerate().map(read_one).collect();
        read.into_iter().collect()
    }

    /// Text that has a parser of its own.
    pub fn parse_text<T>(mut self, parse: impl FnOnce(&'a str) -> Result<T, Fault>) -> Option<T> {
        let text = self.string("text")?;
        self.told(parse(text).map_err(|fault| vec![fault]))
    }

    /// A value that has a parser of its own.
    pub fn parse<T>(mut self, parse: impl FnOnce(&'a Value) -> Result<T, Vec<Fault>>) -> Option<T> {
        let value = self.value?;
        self.told(parse(value))
    }

    fn told<T>(&mut self, parsed: Result<T, Vec<Fault>>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(found) => {
                self.faults
                    .extend(found.into_iter().map(|fault| fault.under(&self.place)));
                None
            }
        }
    }

    fn string(&mut self, expected: &str) -> Option<&'a str> {
        let value = self.value?;
        match value.as_str() {
            // Postgres stores no NUL, neither in text nor in JSON.
            Some(text) if text.contains('\0') => self.refuse_nul(),
            Some(text) => Some(text),
            None => self.refuse_type(value, expected),
        }
    }

    fn measured(
        &mut self,
        text: &'a str,
        length: usize,
        range: RangeInclusive<usize>,
        unit: &str,
    ) -> Option<&'a str> {
        if *range.start() > 0 && text.trim().is_empty() {
            return self.refuse(
                "empty",
                "the text is empty",
                "send some text, or leave it out",
            );
        }
        if length > *range.end() {
            let detail = format!("the text has {length} {unit}");
            return self.refuse(
                "too_long",
                detail,
                format!("send at most {} {unit}", range.end()),
            );
        }
        if length < *range.start() {
            let detail = format!("the text has {length} {unit}");
            let hint = format!("send at least {} {unit}", range.start());
            return self.refuse("too_short", detail, hint);
        }
        Some(text)
    }

    fn refuse_type<T>(&mut self, value: &Value, expected: &str) -> Option<T> {
        self.faults.push(wrong_type(&self.place, value, expected));
        None
    }

    fn refuse_range<N: fmt::Display, T>(
        &mut self,
        number: impl fmt::Display,
        range: &RangeInclusive<N>,
    ) -> Option<T> {
        let hint = format!("send a number from {} to {}", range.start(), range.end());
        self.refuse("out_of_range", format!("the number is {number}"), hint)
    }

    fn refuse_nul<T>(&mut self) -> Option<T> {
        let hint = "leave out U+0000; it cannot be stored";
        self.refuse("control_character", "the text holds a NUL character", hint)
    }

    fn refuse<T>(
        &mut self,
        code: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Option<T> {
        self.faults
            .push(Fault::new(self.place.clone(), code, detail, hint));
        None
    }
}

/// The known name that a mistyped one most likely means, if one is near enough.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > NAME_CHARS_MAX {
        return None;
    }
    let near = |&(edits, known): &(usize, &str)| edits <= 1 + known.len() / 4;
    known
        .map(|known| (edits(name, known), known))
        .filter(near)
        .min()
        .map(|(_, known)| known)
}

/// What of a caller's own text is repeated to the caller: its beginning, without control characters.
pub fn clip(text: &str) -> String {
    let (begin, end) = match text.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => (text.get(..end).unwrap_or_default(), "…"),
        None => (text, ""),
    };
    format!("{}{end}", begin.replace(char::is_control, "\u{fffd}"))
}

fn wrong_type(place: &str, value: &Value, expected: &str) -> Fault {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if whole(number).is_some() => "a whole number",
        Value::Number(_) => "a number with a fraction",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let detail = format!("expected {expected}, found {found}");
    Fault::new(place, "wrong_type", detail, format!("send {expected}"))
}

/// The number, if it has no fraction and fits.
fn whole(number: &serde_json::Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
        format!("{float:.0}")
            .parse()
            .ok()
            .or(Some(if float > 0.0 { i64::MAX } else { i64::MIN }))
    })
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(object) => object
            .iter()
            .any(|(key, value)| key.contains('\0') || holds_nul(value)),
    }
}

/// Levenshtein's distance: insertions, deletions and replacements.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        for (column, to) in right.iter().enumerate() {
            let above = row.get(column + 1).copied().unwrap_or_default();
            let here = (diagonal + usize::from(from != *to))
                .min(above + 1)
                .min(before + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(column) {
                *cell = before;
            }
            before = here;
        }
        if let Some(cell) = row.last_mut() {
            *cell = before;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Colour {
        Red,
        Green,
    }

    impl Colour {
        fn word(self) -> &'static str {
            match self {
                Self::Red => "red",
                Self::Green => "green",
            }
        }
    }

    fn found<T>(read: Result<T, Vec<Fault>>) -> Vec<(String, &'static str)> {
        let faults = read.err().unwrap_or_default();
        faults
            .into_iter()
            .map(|fault| (fault.field, fault.code))
            .collect()
    }

    /// Why the field `x` of an object that holds only it is refused.
    fn code(
        value: Value,
        getter: impl FnOnce(Field<'_, '_>) -> Option<()>,
    ) -> Option<&'static str> {
        let object = json!({ "x": value });
        let mut fields = Fields::new(&object);
        let value = getter(fields.required("x"));
        fields.finish(value).err().map(|faults| faults[0].code)
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let object = json!({
            "name": "", "size": 11, "colour": "gren", "deep": {"x": 1}, "tags": ["ok", 7, "toolong"],
            "colur": "red", "zzzzzzzzz": 1, "when": "yesterday",
        });
        let mut fields = Fields::new(&object);
        assert_eq!(fields.required("name").line(1..=5), None);
        assert_eq!(fields.optional("size").integer(1..=10_u8), None);
        let colours = [Colour::Red, Colour::Green];
        assert_eq!(fields.optional("colour").word(&colours, Colour::word), None);
        let deep: Option<()> = fields
            .required("deep")
            .parse(|_| Err(vec![Fault::new("x.y", "deep_fault", "", "")]));
        assert_eq!(deep, None);
        assert_eq!(
            fields.optional("tags").list(0..=3, |tag| tag.line(1..=5)),
            None
        );
        assert_eq!(fields.optional("when").instant(), None);
        assert_eq!(fields.required("absent").boolean(), None);
        let faults = fields.finish(None::<()>).unwrap_err();
        let told: Vec<_> = faults
            .iter()
            .map(|fault| (fault.field.as_str(), fault.code))
            .collect();
        let expected = [
            ("name", "empty"),
            ("size", "out_of_range"),
            ("colour", "unknown_value"),
            ("deep.x.y", "deep_fault"),
            ("tags[1]", "wrong_type"),
            ("tags[2]", "too_long"),
            ("when", "bad_time"),
            ("absent", "missing"),
            ("colur", "unknown_field"),
            ("zzzzzzzzz", "unknown_field"),
        ];
        assert_eq!(told, expected);
        let hint = |field: &str| {
            let fault = faults.iter().find(|fault| fault.field == field).unwrap();
            fault.hint.clone()
        };
        assert_eq!(hint("colur"), "did you mean `colour`?");
        assert_eq!(
            hint("zzzzzzzzz"),
            "use only name, size, colour, deep, tags, when, absent"
        );
        assert_eq!(hint("colour"), "did you mean `green`? use red, green");
    }

    #[test]
    fn null_is_absent() {
        let object = json!({"a": null, "b": null});
        let mut fields = Fields::new(&object);
        assert_eq!(fields.optional("a").integer(0..=3_u32), None);
        fields.required("b").boolean();
        assert_eq!(
            found(fields.finish(Some(()))),
            [("b".to_owned(), "missing")]
        );
    }

    #[test]
    fn what_is_missing_comes_with_an_example() {
        let object = json!({"b": 1});
        let mut fields = Fields::new(&object);
        fields.required_such_as("a", "7").boolean();
        assert_eq!(fields.faults(), 1);
        let faults = fields.give_up();
        assert_eq!(faults[0].hint, "send `a`, for example 7");
        assert_eq!(faults.len(), 1, "unknown fields are not told");
    }

    #[test]
    fn what_is_no_object_is_one_fault() {
        for value in [
            json!(null),
            json!(1),
            json!(1.5),
            json!("x"),
            json!([]),
            json!(true),
        ] {
            let mut fields = Fields::new(&value);
            fields.required("a").boolean();
            assert_eq!(
                found(fields.finish(Some(()))),
                [(String::new(), "wrong_type")]
            );
        }
    }

    #[test]
    fn limits_are_exact() {
        let cases = [
            (code(json!("üü"), |x| x.line(1..=2).map(drop)), None),
            (
                code(json!("üüü"), |x| x.line(1..=2).map(drop)),
                Some("too_long"),
            ),
            (
                code(json!("ü"), |x| x.line(2..=2).map(drop)),
                Some("too_short"),
            ),
            (
                code(json!(" \n"), |x| x.text(1..=9).map(drop)),
                Some("empty"),
            ),
            (code(json!(""), |x| x.text(0..=9).map(drop)), None),
            (code(json!("a\nb"), |x| x.text(1..=9).map(drop)), None),
            (
                code(json!("a\nb"), |x| x.line(1..=9).map(drop)),
                Some("control_character"),
            ),
            (
                code(json!("a\0b"), |x| x.text(1..=9).map(drop)),
                Some("control_character"),
            ),
            (code(json!("ü"), |x| x.text_bytes(1..=2).map(drop)), None),
            (
                code(json!("ü"), |x| x.text_bytes(1..=1).map(drop)),
                Some("too_long"),
            ),
            (code(json!(3.0), |x| x.integer(1..=3_u8).map(drop)), None),
            (
                code(json!(3.5), |x| x.integer(1..=4_u8).map(drop)),
                Some("wrong_type"),
            ),
            (
                code(json!("3"), |x| x.integer(1..=4_u8).map(drop)),
                Some("wrong_type"),
            ),
            (
                code(json!(-1), |x| x.integer(0..=4_u8).map(drop)),
                Some("out_of_range"),
            ),
            (
                code(json!(300), |x| x.integer(0..=4_u8).map(drop)),
                Some("out_of_range"),
            ),
            (
                code(json!(1e300), |x| x.integer(0..=4_u8).map(drop)),
                Some("out_of_range"),
            ),
            (
                code(json!(u64::MAX), |x| x.integer(0..=4_u8).map(drop)),
                Some("out_of_range"),
            ),
            (code(json!(2.0), |x| x.number(0.0..=2.0).map(drop)), None),
            (
                code(json!(2.1), |x| x.number(0.0..=2.0).map(drop)),
                Some("out_of_range"),
            ),
            (
                code(json!("2"), |x| x.number(0.0..=2.0).map(drop)),
                Some("wrong_type"),
            ),
            (code(json!({"a": 1}), |x| x.object(7).map(|_| ())), None),
            (
                code(json!({"a": 1}), |x| x.object(6).map(|_| ())),
                Some("too_long"),
            ),
            (
                code(json!([1]), |x| x.object(9).map(|_| ())),
                Some("wrong_type"),
            ),
            (
                code(json!({"a": [{"\0": 1}]}), |x| x.object(99).map(|_| ())),
                Some("control_character"),
            ),
            (
                code(json!([1, 2]), |x| {
                    x.list(1..=2, |item| item.boolean()).map(drop)
                }),
                Some("wrong_type"),
            ),
            (
                code(json!([true]), |x| {
                    x.list(1..=1, |item| item.boolean()).map(drop)
                }),
                None,
            ),
            (
                code(json!([1, 2]), |x| {
                    x.list(1..=1, |item| item.boolean()).map(drop)
                }),
                Some("too_many"),
            ),
            (
                code(json!([]), |x| {
                    x.list(1..=1, |item| item.boolean()).map(drop)
                }),
                Some("too_few"),
            ),
            (
                code(json!([null]), |x| {
                    x.list(1..=1, |item| item.boolean()).map(drop)
                }),
                Some("wrong_type"),
            ),
            (
                code(json!(1), |x| x.boolean().map(drop)),
                Some("wrong_type"),
            ),
            (
                code(json!(1), |x| x.instant().map(drop)),
                Some("wrong_type"),
            ),
        ];
        for (index, (told, expected)) in cases.into_iter().enumerate() {
            assert_eq!(told, expected, "case {index}");
        }
    }

    #[test]
    fn an_instant_may_have_an_offset() {
        let object = json!({"x": "2026-03-22T09:00:00+02:00"});
        let instant = Fields::new(&object).required("x").instant().unwrap();
        assert_eq!(instant.to_rfc3339(), "2026-03-22T07:00:00+00:00");
    }

    #[test]
    fn names_of_the_caller_are_clipped_and_counted() {
        let object: Map<String, Value> = (0..100)
            .map(|n| (format!("{n}{}", "ü".repeat(500)), json!(1)))
            .collect();
        let object = Value::Object(object);
        let faults = Fields::new(&object).finish(Some(())).unwrap_err();
        assert_eq!(faults.len(), UNKNOWN_TOLD_MAX);
        assert!(
            faults
                .iter()
                .all(|fault| fault.field.chars().count() == NAME_CHARS_MAX + 1)
        );
        assert_eq!(clip("a\0b\nc"), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn distance_is_levenshteins() {
        let table = [
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ];
        for (left, right, expected) in table {
            assert_eq!(edits(left, right), expected, "{left} {right}");
        }
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_zero_only_for_equals(left in ".{0,12}", right in ".{0,12}") {
            prop_assert_eq!(edits(&left, &right), edits(&right, &left));
            prop_assert_eq!(edits(&left, &right) == 0, left == right);
        }
    }
}
