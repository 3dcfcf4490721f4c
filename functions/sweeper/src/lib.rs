//! Finds what no wake-up has found.
