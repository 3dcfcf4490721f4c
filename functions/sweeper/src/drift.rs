//! Makes the scheduler's entries follow the rows where nobody else has: changes that were not
//! applied, and entries that are missing, differ, or belong to no prompt.
//!
//! Each pass does a bounded part, stops at its deadline, and notes where the next one goes on. It
//! decides nothing about a prompt: what is to stand in the scheduler follows from the row.

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use shared::{
    aws::{CallError, Cause},
    db::{
        Db, DbError, sync,
        system::{self, DriftCursor, EntryOwner, Owned},
    },
    ids::{PromptId, TenantId},
    scheduler::{EntryName, EventBridge, Listed, Scheduler, SyncStatus, TIME_MAX, wanted},
};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

/// Tenants whose changes one pass looks for.
const TENANTS_MAX: i32 = 100;

/// Changes that one pass applies.
const CHANGES_MAX: i32 = 1_000;

/// Pages of the scheduler's list that one pass reads, each of up to 100 entries.
const PAGES_MAX: usize = 5;

/// Prompts whose entries one pass reads again, field by field.
const COMPARED_MAX: i32 = 100;

/// Calls at once.
const AT_ONCE: usize = 8;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Prompts whose entries were made to follow their rows.
    pub applied: usize,
    /// Prompts for which that failed; each row says why, and when it is tried again.
    pub failed: usize,
    /// Entries that were listed.
    pub listed: usize,
    /// Prompts whose entries were read again.
    pub compared: usize,
    /// Prompts whose entries were missing or differed.
    pub drifted: usize,
    /// Entries of no prompt that were deleted.
    pub orphans: usize,
}

/// Makes one pass, until `deadline` at the latest. It does nothing where there are no entries.
///
/// # Errors
/// When the database does not answer; what was repaired stays so.
pub async fn repair(
    db: &Db,
    scheduler: &Scheduler,
    deadline: Instant,
) -> Result<Repaired, DbError> {
    let Scheduler::EventBridge(aws) = scheduler else {
        return Ok(Repaired::default());
    };
    let mut pass = Pass {
        db,
        scheduler,
        aws,
        deadline,
        stopped: false,
        repaired: Repaired::default(),
    };
    let mut cursor = system::drift_cursor(db).await?;
    let before = cursor.clone();
    let done = pass.run(&mut cursor).await;
    if cursor != before {
        system::move_drift_cursor(db, &cursor).await?;
    }
    done?;
    let repaired = pass.repaired;
    if repaired.applied + repaired.failed + repaired.drifted + repaired.orphans > 0 {
        info!(
            applied = repaired.applied,
            failed = repaired.failed,
            drifted = repaired.drifted,
            orphans = repaired.orphans,
            "entries repaired"
        );
    }
    Ok(repaired)
}

struct Pass<'a> {
    db: &'a Db,
    scheduler: &'a Scheduler,
    aws: &'a EventBridge,
    deadline: Instant,
    /// The scheduler refuses everybody, or time is up: more calls would be of no use.
    stopped: bool,
    repaired: Repaired,
}

impl Pass<'_> {
    async fn run(&mut self, cursor: &mut DriftCursor) -> Result<(), DbError> {
        self.apply_changes(cursor).await?;
        self.look_through_the_list(cursor).await?;
        self.compare_some(cursor).await
    }

    /// Changes that nobody has applied: a part of the tenants, each in turn.
    async fn apply_changes(&mut self, cursor: &mut DriftCursor) -> Result<(), DbError> {
        let mut tenants =
            system::unsynced_tenants(self.db, cursor.tenant_after, TENANTS_MAX).await?;
        if tenants.is_empty() && cursor.tenant_after != TenantId::BEFORE_ALL {
            tenants = system::unsynced_tenants(self.db, TenantId::BEFORE_ALL, TENANTS_MAX).await?;
        }
        let is_full = i32::try_from(tenants.len()) == Ok(TENANTS_MAX);
        if !tenants.is_empty() {
            let changes = system::unsynced_prompts(self.db, &tenants, CHANGES_MAX).await?;
            self.apply(changes).await?;
        }
        cursor.tenant_after = match tenants.last() {
            Some(last) if is_full => *last,
            Some(_) | None => TenantId::BEFORE_ALL,
        };
        Ok(())
    }

    async fn apply(&mut self, prompts: Vec<Owned>) -> Result<(), DbError> {
        let (db, scheduler, deadline) = (self.db, self.scheduler, self.deadline);
        // What has begun is let end: its row is to say how that went.
        let goes_on = AtomicBool::new(!self.stopped);
        let goes_on = &goes_on;
        let mut applying = stream::iter(prompts)
            .take_while(|_| {
                let in_time = Instant::now() < deadline;
                ready(in_time && goes_on.load(Ordering::Relaxed))
            })
            .map(|(tenant, prompt)| async move {
                let time = time_left(deadline);
                scheduler.apply(db, tenant, prompt, time).await
            })
            .buffer_unordered(AT_ONCE);
        while let Some(applied) = applying.next().await {
            let applied = applied?;
            match applied.sync.status {
                SyncStatus::Synced => self.repaired.applied += 1,
                SyncStatus::Pending | SyncStatus::Failed => self.repaired.failed += 1,
            }
            if applied.cause.is_some_and(Cause::concerns_all) {
                goes_on.store(false, Ordering::Relaxed);
            }
        }
        drop(applying);
        self.stopped = !goes_on.load(Ordering::Relaxed) || Instant::now() >= deadline;
        Ok(())
    }

    /// Entries that belong to no prompt, and those that fire though they should not, or the other
    /// way round: what a list can show.
    async fn look_through_the_list(&mut self, cursor: &mut DriftCursor) -> Result<(), DbError> {
        for _ in 0..PAGES_MAX {
            if self.stopped {
                break;
            }
            let listing = timeout_at(self.deadline, self.aws.list(cursor.list_token.clone()));
            let page = match listing.await {
                Ok(Ok(page)) => page,
                // A token grows old.
                Ok(Err(error)) if error.cause == Cause::Invalid && cursor.list_token.is_some() => {
                    cursor.list_token = None;
                    break;
                }
                Ok(Err(error)) => {
                    self.stop(&error);
                    break;
                }
                Err(_) => {
                    self.stopped = true;
                    break;
                }
            };
            self.judge(&page.entries).await?;
            // A page that was not judged to its end is listed again.
            if self.stopped {
                break;
            }
            cursor.list_token = page.next;
            if cursor.list_token.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn judge(&mut self, entries: &[Listed]) -> Result<(), DbError> {
        self.repaired.listed += entries.len();
        let ours: Vec<(PromptId, usize, bool)> = entries
            .iter()
            .filter_map(|entry| {
                let (prompt, arm) = EntryName::parse(&entry.name)?;
                Some((prompt, arm, entry.is_enabled))
            })
            .collect();
        let prompts: HashSet<PromptId> = ours.iter().map(|(prompt, ..)| *prompt).collect();
        let prompts: Vec<PromptId> = prompts.into_iter().collect();
        // After the list: a prompt that has an entry there had its row before.
        let owners: HashMap<PromptId, EntryOwner> = system::entries_of(self.db, &prompts)
            .await?
            .into_iter()
            .map(|owner| (owner.prompt_id, owner))
            .collect();
        let (mut differing, mut second) = (HashSet::new(), HashSet::new());
        for (prompt, arm, is_enabled) in ours {
            match owners.get(&prompt).filter(|owner| !owner.is_manual) {
                None => self.delete_orphan(&EntryName::of(prompt, arm)).await,
                Some(owner) if owner.is_active != is_enabled => {
                    differing.insert((owner.tenant_id, prompt));
                }
                // Whether a second entry is wanted follows from the schedule, which is not here.
                Some(owner) if arm > 1 => {
                    second.insert((owner.tenant_id, prompt));
                }
                Some(_) => {}
            }
            if self.stopped {
                return Ok(());
            }
        }
        for (tenant, prompt) in second {
            let tx = self.db.tenant(tenant).await?;
            let row = sync::synced(tx, prompt).await?;
            let entries = row.and_then(|row| wanted(&row, self.aws.settings()).ok());
            if entries.is_some_and(|entries| entries.len() < 2) {
                differing.insert((tenant, prompt));
            }
        }
        self.make_anew(differing.into_iter().collect()).await
    }

    async fn delete_orphan(&mut self, name: &EntryName) {
        let deleting = async {
            if !self.aws.is_ours(name).await? {
                return Ok(false);
            }
            self.aws.delete(name).await.map(|()| true)
        };
        match timeout_at(self.deadline, deleting).await {
            Ok(Ok(true)) => {
                warn!(entry = name.as_str(), "an entry of no prompt was deleted");
                self.repaired.orphans += 1;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => self.stop(&error),
            Err(_) => self.stopped = true,
        }
    }

    /// The entries of some prompts, read again field by field: a list shows neither when an entry
    /// fires nor that one is missing. In time it comes to every prompt.
    async fn compare_some(&mut self, cursor: &mut DriftCursor) -> Result<(), DbError> {
        if self.stopped {
            return Ok(());
        }
        let prompts =
            system::prompts_with_entries(self.db, cursor.prompt_after, COMPARED_MAX).await?;
        let is_full = i32::try_from(prompts.len()) == Ok(COMPARED_MAX);
        let (db, aws) = (self.db, self.aws);
        // In order, so that the next pass goes on behind the last one.
        let mut comparing = stream::iter(prompts)
            .map(|owned| async move { (owned, difference(db, aws, owned).await) })
            .buffered(AT_ONCE);
        let mut differing = Vec::new();
        loop {
            let Ok(compared) = timeout_at(self.deadline, comparing.next()).await else {
                self.stopped = true;
                break;
            };
            let Some(((tenant, prompt), found)) = compared else {
                break;
            };
            match found? {
                Ok(None) => {}
                Ok(Some(field)) => {
                    warn!(
                        tenant.id = %tenant,
                        prompt.id = %prompt,
                        field,
                        "an entry does not follow its prompt"
                    );
                    differing.push((tenant, prompt));
                }
                Err(error) => {
                    self.stop(&error);
                    break;
                }
            }
            self.repaired.compared += 1;
            cursor.prompt_after = prompt;
        }
        drop(comparing);
        if !is_full && !self.stopped {
            cursor.prompt_after = PromptId::BEFORE_ALL;
        }
        self.make_anew(differing).await
    }

    async fn make_anew(&mut self, prompts: Vec<Owned>) -> Result<(), DbError> {
        let mut drifted = Vec::new();
        for (tenant, prompt) in prompts {
            if sync::mark_drifted(self.db.tenant(tenant).await?, prompt).await? {
                drifted.push((tenant, prompt));
            }
        }
        self.repaired.drifted += drifted.len();
        self.apply(drifted).await
    }

    fn stop(&mut self, error: &CallError) {
        warn!(%error, error.detail, "the search for drift stops here until the next sweep");
        self.stopped = true;
    }
}

/// The first field in which the entries of a prompt differ from its row.
async fn difference(
    db: &Db,
    aws: &EventBridge,
    (tenant, prompt): Owned,
) -> Result<Result<Option<&'static str>, CallError>, DbError> {
    let tx = db.tenant(tenant).await?;
    let Some(row) = sync::synced(tx, prompt).await? else {
        return Ok(Ok(None));
    };
    // What is not fit to be sent was never sent.
    let Ok(entries) = wanted(&row, aws.settings()) else {
        return Ok(Ok(None));
    };
    for entry in &entries {
        match aws.difference(entry).await {
            Ok(None) => {}
            found => return Ok(found),
        }
    }
    Ok(Ok(None))
}

fn time_left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .min(TIME_MAX)
}
