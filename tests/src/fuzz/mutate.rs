//! Inputs for the checks, made of a target's seeds and words by chance: on stable Rust, and without the
//! coverage that guides cargo-fuzz.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::chance::Chance;

/// The longest input.
const BYTES_MAX: usize = 64 * 1024;
/// How many changes an input has: mostly few, or hardly any would be accepted.
const CHANGES: [u64; 4] = [1, 1, 2, 6];

/// What inputs are made of.
#[derive(Debug, Clone)]
pub struct Corpus {
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

/// The folder of cargo-fuzz, with the seeds and the dictionaries.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

impl Corpus {
    /// The seeds and the dictionary of a target.
    ///
    /// # Errors
    /// When they cannot be read, or there are none.
    pub fn of(target: &str) -> Result<Self> {
        let seeds = folder().join("seeds").join(target);
        let mut files = fs::read_dir(&seeds)
            .with_context(|| seeds.display().to_string())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        // The order of a folder is nobody's promise, and a seed must give the same inputs everywhere.
        files.sort();
        let seeds = files.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
        ensure!(!seeds.is_empty(), "{target} has no seeds");
        let dictionary = folder().join("dictionaries").join(format!("{target}.dict"));
        let text =
            fs::read_to_string(&dictionary).with_context(|| dictionary.display().to_string())?;
        let words = words(&text).with_context(|| dictionary.display().to_string())?;
        Ok(Self { seeds, words })
    }

    /// Adds a seed.
    pub fn add(&mut self, seed: Vec<u8>) {
        self.seeds.push(seed);
    }

    /// The seeds as they are.
    #[must_use]
    pub fn seeds(&self) -> &[Vec<u8>] {
        &self.seeds
    }

    /// An input.
    pub fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let mut input = chance.pick(&self.seeds);
        for _ in 0..chance.pick(&CHANGES) {
            // Where there is JSON, half of the changes leave it JSON, or nothing deep would be reached.
            if !(chance.one_in(2) && self.change_json(&mut input, chance)) {
                self.change_bytes(&mut input, chance);
            }
            input.truncate(BYTES_MAX);
        }
        input
    }

    fn change_bytes(&self, input: &mut Vec<u8>, chance: &mut Chance) {
        let at = chance.place(input.len() + 1);
        let end = at + chance.place(input.len() - at + 1).min(32);
        match chance.below(8) {
            0 if at < input.len() => input[at] ^= 1 << chance.below(8),
            1 if at < input.len() => input[at] = chance.pick(&[0, 9, 10, 32, 34, 123, 128, 255]),
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].to_vec();
                let times = chance.pick(&[1, 1, 2, 16, 256]);
                input.splice(at..at, copy.repeat(times));
            }
            4 => drop(input.splice(at..end, self.word(chance))),
            5 => {
                let other = chance.pick(&self.seeds);
                let from = chance.place(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => change_number(input, at, chance),
            _ => drop(input.splice(at..at, self.word(chance))),
        }
    }

    fn word(&self, chance: &mut Chance) -> Vec<u8> {
        if self.words.is_empty() || chance.one_in(8) {
            return chance.pick(&NUMBERS).as_bytes().to_vec();
        }
        chance.pick(&self.words)
    }

    /// Changes one value of the JSON that follows the first line, or that is all there is. `false` where
    /// there is none.
    fn change_json(&self, input: &mut Vec<u8>, chance: &mut Chance) -> bool {
        let begins = input.iter().position(|byte| *byte == b'{').unwrap_or(0);
        let Ok(mut value) = serde_json::from_slice::<Value>(&input[begins..]) else {
            return false;
        };
        let places = count(&value);
        let mut place = chance.place(places);
        let new = self.value(chance);
        let kind = chance.below(4);
        change_place(&mut value, &mut place, &mut |value| match kind {
            0 => lengthen(value),
            1 => shorten(value),
            _ => *value = new.clone(),
        });
        input.truncate(begins);
        input.extend_from_slice(value.to_string().as_bytes());
        true
    }

    /// A value of a seed, a word, or a number at some edge.
    fn value(&self, chance: &mut Chance) -> Value {
        match chance.below(4) {
            0 => {
                let seed = chance.pick(&self.seeds);
                let begins = seed.iter().position(|byte| *byte == b'{').unwrap_or(0);
                let mut found = Value::Null;
                if let Ok(mut value) = serde_json::from_slice::<Value>(&seed[begins..]) {
                    let mut place = chance.place(count(&value));
                    change_place(&mut value, &mut place, &mut |value| found = value.take());
                }
                found
            }
            1 => serde_json::from_str(chance.pick(&NUMBERS)).unwrap_or(Value::Null),
            2 => chance.pick(&[
                Value::Null,
                Value::Bool(true),
                Value::from(""),
                Value::from("a".repeat(300)),
                Value::from("\u{0}"),
                Value::from("\u{202e}é\r\n"),
                Value::Array(Vec::new()),
                Value::Object(Map::new()),
            ]),
            _ => {
                let word = self.word(chance);
                serde_json::from_slice(&word)
                    .unwrap_or_else(|_| String::from_utf8_lossy(&word).into_owned().into())
            }
        }
    }
}

/// At the edges of what is counted.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "7",
    "59",
    "60",
    "255",
    "256",
    "2147483648",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551616",
    "1e308",
    "1e-400",
    "0.1",
    "-0.0",
];

fn change_number(input: &mut Vec<u8>, at: usize, chance: &mut Chance) {
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(begin) = input[at..].iter().position(digit).map(|found| at + found) else {
        return;
    };
    let length = input[begin..].iter().take_while(|byte| digit(byte)).count();
    let number = chance.pick(&NUMBERS);
    input.splice(begin..begin + length, number.bytes());
}

/// How many values there are in it, with itself.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Changes the value at a place, counted from the outside to the inside.
fn change_place(value: &mut Value, place: &mut usize, change: &mut dyn FnMut(&mut Value)) {
    match place.checked_sub(1) {
        None => {
            *place = usize::MAX;
            change(value);
            return;
        }
        Some(left) => *place = left,
    }
    let inner: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return,
    };
    for value in inner {
        change_place(value, place, change);
        if *place == usize::MAX {
            return;
        }
    }
}

fn lengthen(value: &mut Value) {
    match value {
        Value::Array(items) => items.extend_from_within(..items.len().min(64)),
        Value::Object(fields) => drop(fields.insert("another".to_owned(), Value::Null)),
        Value::String(text) => *text = text.repeat(3),
        Value::Number(_) | Value::Bool(_) | Value::Null => {
            *value = Value::Array(vec![value.take()]);
        }
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::Array(items) => drop(items.pop()),
        Value::Object(fields) => {
            if let Some(name) = fields.keys().next().cloned() {
                fields.remove(&name);
            }
        }
        Value::String(text) => drop(text.pop()),
        Value::Number(_) | Value::Bool(_) | Value::Null => *value = Value::Null,
    }
}

/// The words of a dictionary in libFuzzer's form: one in quotes a line, with `\\`, `\"` and `\xAB`.
fn words(text: &str) -> Result<Vec<Vec<u8>>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| word(line).with_context(|| format!("not a word of a dictionary: {line}")))
        .collect()
}

fn word(line: &str) -> Option<Vec<u8>> {
    let inner = line.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::new();
    let mut rest = inner.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'\\' => match rest.next()? {
                b'x' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
                }
                escaped @ (b'\\' | b'"') => escaped,
                _ => return None,
            },
            byte => byte,
        };
        bytes.push(byte);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_is_read_as_libfuzzer_reads_it() {
        let text = "# a comment\n\n\"plain\"\n  \"a\\x0ab\\\\\\\"\"\n";
        assert_eq!(
            words(text).unwrap(),
            [b"plain".to_vec(), b"a\nb\\\"".to_vec()]
        );
        for broken in ["plain", "\"open", "\"\\q\"", "\"\\x1\""] {
            assert!(words(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_inputs_again() {
        let corpus = Corpus {
            seeds: vec![
                b"create\n{\"a\": [1, {\"b\": \"c\"}]}".to_vec(),
                b"*/5".to_vec(),
            ],
            words: vec![b"word".to_vec()],
        };
        let inputs = |seed| {
            let inputs = (0..200).map(|case| corpus.input(&mut Chance::of_case(seed, case)));
            inputs.collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}
