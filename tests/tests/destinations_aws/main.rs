//! Email through SES, outputs in S3, and what comes back of emails: against two emulators, and against
//! a server that does what a test tells it.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod email;
mod reports;
mod server;
mod storage;
mod world;
