//! Started without its settings, the program says in one line all that is missing, and ends.

use std::process::Command;

#[test]
fn everything_that_is_missing_is_told_in_one_line() {
    let told = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .env_clear()
        .output()
        .unwrap();
    let line = String::from_utf8(told.stderr).unwrap();
    assert!(!told.status.success(), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    for name in [
        "CARILLON_ADMIN_DATABASE_SECRET_ARN",
        "CARILLON_DATABASE_SECRET_ARN",
        "CARILLON_SYSTEM_DATABASE_SECRET_ARN",
    ] {
        assert!(
            line.contains(&format!("{name} is not set")),
            "{name}: {line}"
        );
    }
}
