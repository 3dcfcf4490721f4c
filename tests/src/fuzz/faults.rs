//! What every refusal of a request keeps to.

use shared::fault::Fault;

/// More faults than this would be an answer without a bound.
const FAULTS_MAX: usize = 500;
/// So would a longer text, in bytes.
const TEXT_BYTES_MAX: usize = 2_000;

/// Checks the faults of a request that was refused.
pub(super) fn check(faults: &[Fault]) {
    assert!(!faults.is_empty(), "refused without a reason");
    assert!(faults.len() <= FAULTS_MAX, "{} faults", faults.len());
    for fault in faults {
        // A code may name the letter that is refused: `nonstandard_L`.
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        assert!(
            !fault.code.is_empty() && fault.code.chars().all(plain),
            "the code of {fault:?}"
        );
        for text in [&fault.field, &fault.detail, &fault.hint] {
            assert!(text.len() <= TEXT_BYTES_MAX, "too long a text: {fault:?}");
            assert!(!text.contains('\0'), "a NUL: {fault:?}");
        }
        assert!(
            !fault.detail.is_empty() && !fault.hint.is_empty(),
            "a text is missing: {fault:?}"
        );
    }
}
