//! Words that must not get out, and the forms in which they might.
//!
//! A test puts a canary of its own wherever a tenant can write, lets everything happen that can, and
//! looks for it in what the programs wrote.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use uuid::Uuid;

/// A word that nothing else holds.
#[must_use]
pub fn canary(of: &str) -> String {
    format!("canary-{of}-{}", Uuid::new_v4().simple())
}

/// The forms of a word in which it is looked for: as it is, in hexadecimal, in base64 wherever it
/// begins, as the bytes that `Debug` prints, and percent-encoded.
#[must_use]
pub fn forms(word: &str) -> Vec<String> {
    let bytes = word.as_bytes();
    let mut hex = String::new();
    let mut percent = String::new();
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        let _ = write!(percent, "%{byte:02X}");
    }
    let numbers: Vec<_> = bytes.iter().map(ToString::to_string).collect();
    let mut forms = vec![word.to_owned(), hex, percent, numbers.join(", ")];
    for before in 0..3_usize {
        let whole = [&vec![0; before][..], bytes].concat();
        let text = BASE64_STANDARD.encode(&whole);
        // The signs that hold bits of a neighbour differ.
        let inside = (before * 8).div_ceil(6)..whole.len() * 8 / 6;
        forms.extend(text.get(inside).map(str::to_owned));
    }
    forms
}

/// What of these words stands in a text, in whatever form: the word, and the line that holds it.
#[must_use]
pub fn found<'w>(words: &'w [String], text: &str) -> Vec<(&'w str, String)> {
    let mut found = Vec::new();
    for word in words {
        let forms = forms(word);
        let line = text
            .lines()
            .find(|line| forms.iter().any(|form| line.contains(form.as_str())));
        found.extend(line.map(|line| (word.as_str(), line.chars().take(2_000).collect())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_word_is_found() {
        let words = [canary("a"), canary("b")];
        let word = &words[0];
        for before in ["", "x", "xy", "xyz"] {
            let text = format!("{before}{word} and more");
            let encoded = BASE64_STANDARD.encode(&text);
            for told in [text.clone(), encoded, format!("{:?}", text.as_bytes())] {
                let found = found(&words, &format!("a line\n{told}\nanother"));
                assert_eq!(found, [(word.as_str(), told.clone())], "{told}");
            }
        }
        assert_eq!(found(&words, "nothing of the kind"), []);
    }
}
