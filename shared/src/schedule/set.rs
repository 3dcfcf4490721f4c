//! A set of small numbers: what one cron field allows.

/// Numbers 0 to 63, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Set(u64);

impl Set {
    /// Every number from `first` to `last`, both included.
    pub(super) fn span(first: u32, last: u32) -> Self {
        (first..=last).collect()
    }

    pub(super) fn contains(self, value: u32) -> bool {
        value < u64::BITS && self.0 & (1 << value) != 0
    }

    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The smallest member.
    pub(super) fn first(self) -> Option<u32> {
        (!self.is_empty()).then(|| self.0.trailing_zeros())
    }

    /// The largest member.
    pub(super) fn last(self) -> Option<u32> {
        self.0.checked_ilog2()
    }

    /// The smallest member that is `value` or more.
    pub(super) fn first_from(self, value: u32) -> Option<u32> {
        let above = u64::MAX.checked_shl(value).unwrap_or(0);
        Self(self.0 & above).first()
    }

    /// The members that are in both.
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = u32> {
        (0..u64::BITS).filter(move |value| self.contains(*value))
    }

    /// The distance between neighbours, when it is the same everywhere and there are three or more.
    ///
    /// Two members make a pair, not a progression: they read and print as a list.
    pub(super) fn stride(self) -> Option<u32> {
        if self.len() < 3 {
            return None;
        }
        let values: Vec<u32> = self.iter().collect();
        let stride = values[1] - values[0];
        values
            .windows(2)
            .all(|pair| pair[1] - pair[0] == stride)
            .then_some(stride)
    }
}

impl FromIterator<u32> for Set {
    /// Collects numbers below 64; the callers check their bounds first.
    fn from_iter<I: IntoIterator<Item = u32>>(values: I) -> Self {
        Self(
            values
                .into_iter()
                .filter(|value| *value < u64::BITS)
                .fold(0, |bits, value| bits | 1 << value),
        )
    }
}
