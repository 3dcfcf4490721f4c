//! The one way to read a query string: every parameter by name, every fault at once, and what
//! nobody asked for is refused.

use std::str::FromStr;

use axum::{extract::FromRequestParts, http::request::Parts};
use chrono::{DateTime, Utc};
use shared::{
    fault::Fault,
    fields::{clip, nearest},
};

use crate::{
    error::ApiError,
    page::{Cursor, Limit, SortKey},
};

/// More parameters than this are not read.
const PARAMETERS_MAX: usize = 100;

/// A query string that is being read. A getter gives `None` for a parameter that is absent, and for
/// one that is wrong; [`Query::finish`] then tells what was wrong.
#[derive(Debug)]
pub struct Query {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Self::new(parts.uri.query().unwrap_or_default());
        if query.given.len() > PARAMETERS_MAX {
            let detail = format!("more than {PARAMETERS_MAX} query parameters were sent");
            let hint = "send fewer";
            return Err(vec![Fault::new("", "too_many", detail, hint)].into());
        }
        Ok(query)
    }
}

impl Query {
    fn new(text: &str) -> Self {
        Self {
            given: url::form_urlencoded::parse(text.as_bytes())
                .take(PARAMETERS_MAX + 1)
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
            known: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Text of 1 to `chars_max` characters.
    pub fn text(&mut self, name: &'static str, chars_max: usize) -> Option<String> {
        let text = self.one(name)?;
        self.plain(name, text, chars_max)
    }

    /// Texts of a parameter that may be repeated.
    pub fn texts(
        &mut self,
        name: &'static str,
        count_max: usize,
        chars_max: usize,
    ) -> Option<Vec<String>> {
        let texts = self.all(name);
        if texts.len() > count_max {
            let detail = format!("the parameter was sent {} times", texts.len());
            self.refuse(
                name,
                "too_many",
                detail,
                format!("send at most {count_max}"),
            );
            return None;
        }
        let read: Vec<_> = texts
            .into_iter()
            .map(|text| self.plain(name, text, chars_max))
            .collect();
        read.into_iter()
            .collect::<Option<Vec<_>>>()
            .filter(|texts| !texts.is_empty())
    }

    /// One of a closed set of words.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        word: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let text = self.one(name)?;
        self.choose(name, &text, all, &word)
    }

    /// Words of a closed set; the parameter may be repeated.
    pub fn words<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        word: impl Fn(T) -> &'static str,
    ) -> Option<Vec<T>> {
        let texts = self.all(name);
        let chosen: Vec<_> = texts
            .iter()
            .map(|text| self.choose(name, text, all, &word))
            .collect();
        chosen
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .filter(|words| !words.is_empty())
    }

    /// An instant as RFC 3339 writes it.
    pub fn instant(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        let text = self.one(name)?;
        // A plus sign that was not encoded arrives as a space.
        match DateTime::parse_from_rfc3339(&text.replace(' ', "+")) {
            Ok(instant) => Some(instant.with_timezone(&Utc)),
            Err(_) => {
                self.refuse(
                    name,
                    "invalid_instant",
                    "not an instant of RFC 3339",
                    "send for example 2026-03-22T09:00:00Z",
                );
                None
            }
        }
    }

    /// An id.
    pub fn id<T: FromStr>(&mut self, name: &'static str) -> Option<T> {
        let text = self.one(name)?;
        match text.parse() {
            Ok(id) => Some(id),
            Err(_) => {
                let hint = "send the id as the API gave it";
                self.refuse(name, "invalid_id", "not a UUID", hint);
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        self.word(
            name,
            &[true, false],
            |value| {
                if value { "true" } else { "false" }
            },
        )
    }

    /// `limit`: 1 to 100, 50 unless given.
    pub fn limit(&mut self) -> Limit {
        let Some(text) = self.one("limit") else {
            return Limit::DEFAULT;
        };
        text.parse().ok().and_then(Limit::new).unwrap_or_else(|| {
            let detail = "not a whole number from 1 to 100";
            self.refuse(
                "limit",
                "out_of_range",
                detail,
                "send a number from 1 to 100",
            );
            Limit::DEFAULT
        })
    }

    /// `cursor`: where the page before ended, in the list called `scope`.
    pub fn cursor<K: SortKey>(&mut self, scope: &str) -> Option<Cursor<K>> {
        let text = self.one("cursor")?;
        let cursor = Cursor::decode(scope, &text);
        if cursor.is_none() {
            self.refuse(
                "cursor",
                "invalid_cursor",
                "the cursor is not one of this list",
                "send next_cursor as the page before gave it, with the same sort order",
            );
        }
        cursor
    }

    /// Adds a fault that only the handler can see.
    pub fn refuse(
        &mut self,
        name: &str,
        code: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.faults.push(Fault::new(name, code, detail, hint));
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 422 with every fault, those of unknown parameters last.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let mut unknown: Vec<&str> = self
            .given
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !self.known.contains(name))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        for name in unknown {
            let hint = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if self.known.is_empty() => "send none".to_owned(),
                None => format!("use only {}", self.known.join(", ")),
            };
            self.faults.push(Fault::new(
                clip(name),
                "unknown_parameter",
                "there is no such query parameter",
                hint,
            ));
        }
        match self.faults {
            faults if faults.is_empty() => Ok(()),
            faults => Err(faults.into()),
        }
    }

    fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        self.given
            .iter()
            .filter(|(given, _)| given == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    fn one(&mut self, name: &'static str) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            let detail = format!("the parameter was sent {} times", values.len());
            self.refuse(name, "repeated", detail, "send it once");
            return None;
        }
        values.pop()
    }

    fn plain(&mut self, name: &str, text: String, chars_max: usize) -> Option<String> {
        let chars = text.chars().count();
        if text.chars().any(char::is_control) {
            let detail = "the text holds a control character";
            self.refuse(name, "control_character", detail, "send plain text");
        } else if chars == 0 {
            let detail = "the text is empty";
            self.refuse(name, "empty", detail, "send some text, or leave it out");
        } else if chars > chars_max {
            let detail = format!("the text has {chars} characters");
            let hint = format!("send at most {chars_max}");
            self.refuse(name, "too_long", detail, hint);
        } else {
            return Some(text);
        }
        None
    }

    fn choose<T: Copy>(
        &mut self,
        name: &str,
        text: &str,
        all: &[T],
        word: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let found = all.iter().copied().find(|one| word(*one) == text);
        if found.is_none() {
            let words: Vec<_> = all.iter().map(|one| word(*one)).collect();
            let hint = format!("use {}", words.join(", "));
            self.refuse(name, "unknown_value", "there is no such choice", hint);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_parameters_are_no_fault() {
        let mut query = Query::new("");
        assert_eq!(query.text("name", 3), None);
        assert_eq!(query.texts("tag", 3, 3), None);
        assert_eq!(query.words("status", &[true], |_| "on"), None);
        assert_eq!(query.limit().fetch(), 51);
        assert!(query.finish().is_ok());
    }

    #[test]
    fn good_parameters_are_read() {
        let mut query = Query::new(
            "name=a%20b&tag=x&tag=y&limit=7&since=2026-03-22T09:00:00+02:00&flag=true&word=on",
        );
        assert_eq!(query.text("name", 3).as_deref(), Some("a b"));
        assert_eq!(
            query.texts("tag", 2, 1),
            Some(vec!["x".to_owned(), "y".to_owned()])
        );
        assert_eq!(query.limit().fetch(), 8);
        assert_eq!(
            query.instant("since").map(|at| at.to_rfc3339()).as_deref(),
            Some("2026-03-22T07:00:00+00:00")
        );
        assert_eq!(query.boolean("flag"), Some(true));
        assert_eq!(query.words("word", &[1], |_| "on"), Some(vec![1]));
        assert!(query.finish().is_ok());
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let mut query = Query::new(
            "name=&tag=x&tag=toolong&limit=0&since=now&id=7&limitt=1&x%00=1&cursor=zzz&a=1&a=2&w=q",
        );
        query.text("name", 3);
        query.texts("tag", 2, 1);
        query.limit();
        query.instant("since");
        query.id::<uuid::Uuid>("id");
        query.cursor::<String>("things");
        query.text("a", 3);
        query.word("w", &[1], |_| "on");
        let error = query.finish().unwrap_err();
        let expected = [
            ("name", "empty"),
            ("tag", "too_long"),
            ("limit", "out_of_range"),
            ("since", "invalid_instant"),
            ("id", "invalid_id"),
            ("cursor", "invalid_cursor"),
            ("a", "repeated"),
            ("w", "unknown_value"),
            ("limitt", "unknown_parameter"),
            ("x\u{fffd}", "unknown_parameter"),
        ];
        assert_eq!(error.told(), expected);
    }
}
