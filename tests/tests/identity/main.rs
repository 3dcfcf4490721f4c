//! Who may come in, by a token or by a key, and how often: through the real router, on a real Postgres.
//!
//! No independent OpenID provider can be had where the tests run, so the issuer is a small server of our
//! own. Its keys are real, and what it signs, aws-lc-rs signs and not the library under test.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod hostile;
mod issuer;
mod limits;
mod members;
mod rotation;
mod users;
mod world;
