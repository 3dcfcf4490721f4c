//! One prompt's life: what is done to it by chance, and the judge beside it.

use chrono::{DateTime, TimeDelta, Utc};
use tests::chance::Chance;

use crate::database::Prompt;
use crate::judge::{Judge, State};
use crate::memory::Memory;
use crate::script::{Claimed, Config, Deed, Key, Outcome, Took};

/// How long a claimant holds a run. Those that do not vanish need less.
pub(crate) const LEASE: TimeDelta = TimeDelta::seconds(1_200);

/// Where a prompt lives.
pub(crate) enum World {
    Memory(Memory),
    Database(Prompt),
}

pub(crate) struct Life {
    pub(crate) judge: Judge,
    pub(crate) world: World,
    chance: Chance,
    /// Claimed runs, when something becomes of each, and what.
    under_way: Vec<(Claimed, DateTime<Utc>, Outcome)>,
    /// Nobody looks until then.
    down_until: DateTime<Utc>,
}

impl Life {
    pub(crate) fn new(world: World, judge: Judge, chance: Chance) -> Self {
        Self {
            judge,
            world,
            chance,
            under_way: Vec::new(),
            down_until: DateTime::UNIX_EPOCH,
        }
    }

    /// What ends, and what people do.
    pub(crate) async fn goes_on(&mut self, at: DateTime<Utc>) {
        let ended: Vec<_> = self
            .under_way
            .extract_if(.., |(_, end, _)| *end <= at)
            .collect();
        for (claim, _, outcome) in ended {
            self.judge.ends(at, claim.key, claim.attempt, outcome);
            match &mut self.world {
                World::Memory(memory) => memory.ends(at, claim, outcome),
                World::Database(prompt) => prompt.ends(claim, outcome).await,
            }
        }
        if let Some(deed) = self.deed(at) {
            let delay = match &deed {
                Deed::Reschedule(config) | Deed::Edit(config) => self.world.delay(config),
                Deed::Pause
                | Deed::Resume
                | Deed::Cancel
                | Deed::Delete
                | Deed::Run(_)
                | Deed::CancelRun(_)
                | Deed::RetryRun(_) => TimeDelta::zero(),
            };
            let asked = match &mut self.world {
                World::Memory(memory) => memory.does(at, &deed),
                World::Database(prompt) => prompt.does(&deed).await,
            };
            self.judge.does(at, &deed, asked, delay);
        }
    }

    /// What wakes it, and what takes its runs. `found` says whether the sweep has found it.
    pub(crate) async fn is_looked_at(&mut self, at: DateTime<Utc>, found: bool) {
        assert_eq!(
            found,
            self.judge.is_found(at),
            "found at {at}{}",
            self.judge.told()
        );
        if self.chance.one_in(25) {
            let most = self.chance.pick(&[20, 200, 2_000]);
            let minutes = i64::try_from(self.chance.below(most)).unwrap();
            self.down_until = at + TimeDelta::minutes(minutes);
        }
        if at < self.down_until {
            return;
        }
        // A scheduler of its own may be early, and any wake-up may come twice.
        let workers = match (found, self.chance.below(4)) {
            (true, 0..=2) | (false, 0) => 1 + u32::try_from(self.chance.below(2)).unwrap(),
            _ => 0,
        };
        if workers > 0 {
            let mut claimed = Vec::new();
            match &mut self.world {
                World::Memory(memory) => {
                    for _ in 0..workers {
                        claimed.extend(memory.fires(at, LEASE));
                    }
                }
                World::Database(prompt) => claimed = prompt.fires(workers).await,
            }
            let keys: Vec<Key> = claimed.iter().map(|claim| claim.key).collect();
            self.judge.looks(at, workers, &keys, LEASE);
            for claim in claimed {
                self.begins(at, claim);
            }
        }
        for key in self.judge.open() {
            if self.chance.one_in(3) {
                continue;
            }
            let workers = 1 + self.chance.below(2);
            let took: Vec<Took> = match &mut self.world {
                World::Memory(memory) => {
                    (0..workers).map(|_| memory.takes(at, key, LEASE)).collect()
                }
                World::Database(prompt) => prompt.takes(key, workers).await,
            };
            self.judge.takes(at, key, &took, LEASE);
            for one in took {
                if let Took::Claimed(claim) = one {
                    self.begins(at, claim);
                }
            }
        }
    }

    /// Nothing more happens: the rows are judged. Gives what became of its slots.
    pub(crate) async fn ends(&mut self) -> Vec<String> {
        let (rows, shown) = match &mut self.world {
            World::Memory(memory) => memory.rows(),
            World::Database(prompt) => prompt.rows().await,
        };
        self.judge.judges(&rows, &shown);
        rows.into_iter()
            .map(|row| match (row.reason, row.count) {
                (None, _) => row.status,
                (Some(reason), 1) => format!("{} {reason}", row.status),
                (Some(reason), _) => format!("{} {reason}, several", row.status),
            })
            .collect()
    }

    fn begins(&mut self, at: DateTime<Utc>, claim: Claimed) {
        let chance = &mut self.chance;
        let outcome = match chance.below(8) {
            0 => Outcome::Vanishes,
            1 | 2 => Outcome::Fails,
            3 if claim.attempt < claim.attempts_max => {
                let delay = i64::try_from(chance.below(300)).unwrap();
                Outcome::Retries(TimeDelta::seconds(delay))
            }
            _ => Outcome::Succeeds,
        };
        let most = chance.pick(&[30, 200, 1_150]);
        let lasts = TimeDelta::seconds(i64::try_from(chance.below(most)).unwrap());
        self.under_way.push((claim, at + lasts, outcome));
    }

    /// Something that the API accepts.
    fn deed(&mut self, at: DateTime<Utc>) -> Option<Deed> {
        if !self.chance.one_in(6) {
            return None;
        }
        let (judge, chance) = (&self.judge, &mut self.chance);
        let open = judge.open();
        let failed = judge.failed();
        let is_over = matches!(judge.state, State::Cancelled | State::Deleted);
        let may_change = matches!(judge.state, State::Active | State::Paused);
        Some(match chance.below(16) {
            0..=2 if judge.state == State::Active => Deed::Pause,
            0..=7 if judge.state == State::Paused && !judge.is_spent(at) => Deed::Resume,
            8 | 9 if may_change => {
                let mut config = judge.config.clone();
                config.reschedule(chance, at);
                Deed::Reschedule(config)
            }
            10 if may_change => Deed::Edit(edited(judge, chance, at)),
            11 | 12 if may_change => Deed::Run(chance.one_in(3)),
            13 if !open.is_empty() && judge.state != State::Deleted => {
                Deed::CancelRun(chance.pick(&open))
            }
            14 if !failed.is_empty() && !is_over => Deed::RetryRun(chance.pick(&failed)),
            15 if chance.one_in(4) && may_change => Deed::Cancel,
            15 if chance.one_in(4) && judge.state != State::Deleted => Deed::Delete,
            _ => return None,
        })
    }
}

fn edited(judge: &Judge, chance: &mut Chance, at: DateTime<Utc>) -> Config {
    let before = &judge.config;
    let mut config = Config::random(chance, at);
    config.minutes = before.minutes;
    config.hours = before.hours;
    config.end = before.end;
    config.jitter_minutes = before.jitter_minutes;
    // A limit under what the prompt has had is refused.
    config.max_runs = config.max_runs.filter(|max| *max > judge.run_count());
    config
}

impl World {
    pub(crate) fn delay(&self, config: &Config) -> TimeDelta {
        match self {
            Self::Memory(memory) => memory.delay(config),
            Self::Database(prompt) => prompt.delay(config),
        }
    }
}
