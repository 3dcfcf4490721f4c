//! Lists, a page at a time.
//!
//! A cursor names the last item of a page by its sort key and id, so that items made or deleted in
//! between neither repeat nor hide others. Callers pass it back as it is.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Datelike, Utc};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use uuid::Uuid;

/// Longer texts are no cursors.
pub(crate) const CURSOR_CHARS_MAX: usize = 2048;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass it as `cursor` to get the next page; null on the last one.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page of rows that were fetched with [`Limit::fetch`]. `place` gives a row's sort
    /// key and id, `view` what a caller sees of it.
    pub fn new<R, K: SortKey>(
        mut rows: Vec<R>,
        limit: Limit,
        scope: &str,
        place: impl Fn(&R) -> (K, Uuid),
        view: impl FnMut(R) -> T,
    ) -> Self {
        let more = rows.len() > limit.items();
        rows.truncate(limit.items());
        let next_cursor = rows
            .last()
            .filter(|_| more)
            .map(place)
            .map(|(key, id)| Cursor { key, id }.encode(scope));
        Self {
            items: rows.into_iter().map(view).collect(),
            next_cursor,
        }
    }
}

/// How many items a page may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(u8);

impl Limit {
    /// What a caller gets who asks for nothing.
    pub const DEFAULT: Self = Self(50);
    const MAX: u8 = 100;

    /// From 1 to 100.
    #[must_use]
    pub fn new(items: u8) -> Option<Self> {
        (1..=Self::MAX).contains(&items).then_some(Self(items))
    }

    /// How many rows to fetch: one more than the page has, to see whether there is another page.
    #[must_use]
    pub fn fetch(self) -> i64 {
        i64::from(self.0) + 1
    }

    pub(crate) fn items(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor<K> {
    /// The last item's sort key.
    pub key: K,
    /// The last item's id.
    pub id: Uuid,
}

impl<K: SortKey> Cursor<K> {
    pub(crate) fn encode(&self, scope: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::json!([scope, self.key, self.id]).to_string())
    }

    pub(crate) fn decode(scope: &str, text: &str) -> Option<Self> {
        if text.len() > CURSOR_CHARS_MAX {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (found, key, id): (String, K, Uuid) = serde_json::from_slice(&bytes).ok()?;
        (found == scope && key.can_be_stored()).then_some(Self { key, id })
    }
}

/// What a list may be sorted by. A caller may write a cursor of its own, so its key is checked
/// before it reaches the database.
pub trait SortKey: Serialize + DeserializeOwned {
    /// Whether Postgres has such a value.
    fn can_be_stored(&self) -> bool;
}

impl SortKey for () {
    fn can_be_stored(&self) -> bool {
        true
    }
}

impl SortKey for i64 {
    fn can_be_stored(&self) -> bool {
        true
    }
}

impl SortKey for String {
    fn can_be_stored(&self) -> bool {
        !self.contains('\0')
    }
}

impl SortKey for DateTime<Utc> {
    fn can_be_stored(&self) -> bool {
        (1..=9999).contains(&self.year())
    }
}

impl<K: SortKey> SortKey for Option<K> {
    fn can_be_stored(&self) -> bool {
        self.as_ref().is_none_or(K::can_be_stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &[u128], limit: u8) -> Page<u128> {
        let limit = Limit::new(limit).unwrap();
        Page::new(
            rows.to_vec(),
            limit,
            "rows",
            |row| (row.to_string(), Uuid::from_u128(*row)),
            |row| row,
        )
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        assert_eq!(page(&[], 2).next_cursor, None);
        assert_eq!(page(&[1, 2], 2).next_cursor, None);
        let first = page(&[1, 2, 3], 2);
        assert_eq!(first.items, [1, 2]);
        let cursor = Cursor::<String>::decode("rows", &first.next_cursor.unwrap()).unwrap();
        assert_eq!((cursor.key.as_str(), cursor.id), ("2", Uuid::from_u128(2)));
    }

    #[test]
    fn a_cursor_is_of_one_list_and_of_a_storable_key() {
        let id = Uuid::from_u128(7);
        let key = "a".to_owned();
        let text = Cursor { key, id }.encode("names");
        assert!(Cursor::<String>::decode("names", &text).is_some());
        assert!(Cursor::<String>::decode("dates", &text).is_none());
        assert!(Cursor::<DateTime<Utc>>::decode("names", &text).is_none());
        assert!(Cursor::<String>::decode("names", "!").is_none());
        assert!(Cursor::<String>::decode("names", &"A".repeat(4096)).is_none());
        let key = "a\0".to_owned();
        let text = Cursor { key, id }.encode("names");
        assert!(Cursor::<String>::decode("names", &text).is_none());
        let key = Some(DateTime::<Utc>::MAX_UTC);
        let text = Cursor { key, id }.encode("dates");
        assert!(Cursor::<Option<DateTime<Utc>>>::decode("dates", &text).is_none());
    }

    #[test]
    fn limits_are_exact() {
        assert_eq!(Limit::new(0), None);
        assert_eq!(Limit::new(101), None);
        assert_eq!(Limit::new(100).unwrap().fetch(), 101);
    }
}
