//! Transactions of several tenants that are sent together: each keeps or loses its own work alone.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::time::Duration;

use chrono::{DurationRound, TimeDelta, Utc};
use futures_util::future::join_all;
use serde_json::json;
use shared::db::{
    DbError, TenantTx,
    runs::{self, Claim, Glance, Writing},
};
use shared::ids::{PromptId, RunId};
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use tests::stage::{Stage, Tenant, prompt, tenant};
use tests::tap::Tap;
use tests::worker::{LONG_MS, answer, enqueue, fire, fire_locked, intent, plan, settle, succeed};
use tests::{connect, database_url};

/// More than one flight takes.
const MANY: usize = 40;

/// Answers are held back for so long, so that flights fill.
const HELD_BACK: Duration = Duration::from_millis(10);

/// Of tenants' statements.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                             WHERE usename = 'carillon_app' AND datname = current_database()";

struct Field {
    tap: Tap,
    stage: Stage,
    sides: Vec<(Tenant, PromptId)>,
}

impl Field {
    /// That many tenants, each with a prompt that is due.
    async fn new(tenants: usize) -> Self {
        let tap = Tap::open(HELD_BACK).await.unwrap();
        let stage = Stage::behind(&tap, 4).await.unwrap();
        let mut sides = Vec::new();
        for n in 0..tenants {
            let tenant = tenant(&stage.db, &format!("t{n}")).await.unwrap();
            sides.push((tenant, due(&stage, tenant).await));
        }
        Self { tap, stage, sides }
    }

    /// All fire at once.
    async fn claims(&self) -> Vec<Claim> {
        let db = &self.stage.db;
        let fired = self
            .sides
            .iter()
            .map(|(tenant, prompt)| fire(db, tenant.id, *prompt, LONG_MS));
        let claims = join_all(fired).await.into_iter();
        claims.map(|claim| claim.unwrap().unwrap()).collect()
    }

    /// Commits wait for the disk, as they do everywhere but in tests, and a function that a test puts
    /// in place of the server's is called.
    async fn waits_for_the_disk(&self) {
        let admin = &self.stage.admin;
        let name = &self.stage.name;
        let sql = format!(
            "ALTER DATABASE \"{name}\" SET synchronous_commit = on;
             ALTER DATABASE \"{name}\" SET search_path = public, pg_catalog"
        );
        admin.batch_execute(&sql).await.unwrap();
        admin.execute(END_SESSIONS, &[]).await.unwrap();
        // Until this side has seen their end.
        tokio::time::sleep(10 * HELD_BACK).await;
    }

    async fn status(&self, claim: &Claim) -> String {
        let sql = "SELECT status FROM scheduled_prompt_runs WHERE id = $1 AND tenant_id = $2";
        let ids = [claim.run_id.uuid(), claim.tenant_id.uuid()];
        let row = self.stage.admin.query_one(sql, &[&ids[0], &ids[1]]).await;
        row.unwrap().get(0)
    }
}

async fn due(stage: &Stage, tenant: Tenant) -> PromptId {
    let slot = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
    prompt(&stage.db, tenant, &json!({}), Some(slot))
        .await
        .unwrap()
}

async fn record(field: &Field, claim: &Claim) -> Result<(), DbError> {
    let answer = answer("an answer");
    let db = &field.stage.db;
    let recorded = runs::record_output(db, claim, &answer, RunStatus::Succeeded, &[], LONG_MS);
    recorded.await.map(drop)
}

#[tokio::test]
async fn forty_tenants_claim_and_record_in_a_few_flights() {
    let field = Field::new(MANY).await;
    // The first prepares what the others use.
    let (first, _) = field.sides[0];
    let warm = due(&field.stage, first).await;
    let claim = fire(&field.stage.db, first.id, warm, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    record(&field, &claim).await.unwrap();
    let before = field.tap.turns();
    let claims = field.claims().await;
    let recorded = join_all(claims.iter().map(|claim| record(&field, claim))).await;
    let turns = field.tap.turns() - before;
    println!("{MANY} runs claimed and recorded in {turns} round trips");
    assert!(recorded.iter().all(Result::is_ok), "{recorded:?}");
    for (claim, (tenant, prompt)) in claims.iter().zip(&field.sides) {
        assert_eq!((claim.tenant_id, claim.prompt_id), (tenant.id, *prompt));
        assert_eq!(field.status(claim).await, "succeeded");
    }
    assert!(turns <= MANY / 2, "{turns} round trips for {MANY} runs");
}

#[tokio::test]
async fn those_who_are_ready_at_the_same_moment_leave_together() {
    let field = Field::new(10).await;
    let db = &field.stage.db;
    // It prepares what the others use.
    glance(&field).await;
    let before = field.tap.turns();
    let looks = field.sides.iter();
    let seen = join_all(looks.map(|(tenant, prompt)| runs::glance(db, tenant.id, *prompt))).await;
    assert_eq!(field.tap.turns() - before, 1, "more than one round trip");
    for (seen, (_, prompt)) in seen.into_iter().zip(&field.sides) {
        assert_eq!(seen.unwrap().unwrap().due.prompt_id, *prompt);
    }
}

#[tokio::test]
async fn one_that_fails_takes_back_its_own_work_and_no_others() {
    let field = Field::new(10).await;
    let mut claims = field.claims().await;
    // One lost its lease, one is another tenant's, one names no run at all.
    claims[3].fence -= 1;
    claims[5].tenant_id = field.sides[6].0.id;
    claims[7].run_id = RunId::new();
    let recorded = join_all(claims.iter().map(|claim| record(&field, claim))).await;
    for (n, (recorded, claim)) in recorded.iter().zip(&claims).enumerate() {
        if [3, 5, 7].contains(&n) {
            assert!(
                matches!(recorded, Err(DbError::StaleLease)),
                "{n}: {recorded:?}"
            );
        } else {
            assert!(recorded.is_ok(), "{n}: {recorded:?}");
            assert_eq!(field.status(claim).await, "succeeded");
        }
    }
    let untouched =
        "SELECT count(*) FROM scheduled_prompt_runs WHERE status = 'running' AND output IS NULL";
    assert_eq!(field.stage.count(untouched).await.unwrap(), 3);
    let counted = "SELECT count(*) FROM scheduled_prompts WHERE success_count = 1";
    assert_eq!(field.stage.count(counted).await.unwrap(), 7);
    let logged = "SELECT count(*) FROM run_logs WHERE message = 'model answered'";
    assert_eq!(field.stage.count(logged).await.unwrap(), 7);
    // The connections go on, and whose turn it is now finds its own.
    let (tenant, prompt) = field.sides[3];
    claims[3].fence += 1;
    record(&field, &claims[3]).await.unwrap();
    assert_eq!(
        enqueue(&field.stage.db, tenant.id, prompt, RunTrigger::Manual)
            .await
            .unwrap()
            .iter()
            .len(),
        1
    );
}

/// A prompt that somebody else has locked must not hold up the other tenants of its flight.
#[tokio::test]
async fn one_that_waits_for_a_lock_lets_the_others_go() {
    let field = Field::new(10).await;
    let claims = field.claims().await;
    let blocker = connect(&database_url(&field.stage.name)).await.unwrap();
    let sql = format!(
        "BEGIN; SELECT FROM scheduled_prompts WHERE id = '{}' FOR UPDATE",
        claims[4].prompt_id
    );
    blocker.batch_execute(&sql).await.unwrap();
    let others = async {
        let rest = claims.iter().enumerate().filter(|(n, _)| *n != 4);
        let recorded = join_all(rest.map(|(_, claim)| record(&field, claim))).await;
        assert!(recorded.iter().all(Result::is_ok), "{recorded:?}");
        // Nobody lets go of the lock before all others are through.
        assert_eq!(field.status(&claims[4]).await, "running");
        blocker.batch_execute("COMMIT").await.unwrap();
    };
    let (waited, ()) = tokio::join!(record(&field, &claims[4]), others);
    waited.unwrap();
    assert_eq!(field.status(&claims[4]).await, "succeeded");
}

#[tokio::test]
async fn one_that_is_dropped_on_the_way_harms_nobody() {
    let field = Field::new(10).await;
    let claims = field.claims().await;
    let connections = field.tap.connections();
    let all = join_all(claims.iter().enumerate().map(async |(n, claim)| {
        // Before it leaves, while it is under way, and never.
        let limit = match n % 3 {
            0 => Duration::ZERO,
            1 => HELD_BACK / 2,
            _ => Duration::from_secs(60),
        };
        tokio::time::timeout(limit, record(&field, claim))
            .await
            .ok()
    }));
    for (n, recorded) in all.await.into_iter().enumerate() {
        if n % 3 == 2 {
            recorded.unwrap().unwrap();
        }
    }
    // Whatever was dropped was kept whole or not at all, and the next one of each tenant goes well.
    let torn = "SELECT count(*) FROM scheduled_prompt_runs r JOIN scheduled_prompts p ON p.id = r.prompt_id
                 WHERE (r.status = 'succeeded') <> (p.success_count = 1)
                    OR (r.status = 'succeeded') <> EXISTS (SELECT FROM run_logs l WHERE l.run_id = r.id
                                                              AND l.message = 'model answered')";
    assert_eq!(field.stage.count(torn).await.unwrap(), 0);
    for claim in &claims {
        match record(&field, claim).await {
            Ok(()) | Err(DbError::StaleLease) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(field.status(claim).await, "succeeded");
    }
    assert_eq!(field.stage.count(torn).await.unwrap(), 0);
    assert_eq!(
        field.tap.connections(),
        connections,
        "a clean connection was thrown away"
    );
}

/// What the next borrower finds on the connection of a flight: no tenant, and no transaction.
#[tokio::test]
async fn a_flight_leaves_nothing_on_its_connection() {
    let field = Field::new(3).await;
    field.waits_for_the_disk().await;
    let mut claims = field.claims().await;
    claims[1].fence -= 1;
    join_all(claims.iter().map(|claim| record(&field, claim))).await;
    let sql =
        "SELECT current_setting('app.current_tenant_id', true), current_setting('lock_timeout'),
                      current_setting('synchronous_commit'), count(*) FROM scheduled_prompts";
    for connection in 0..field.tap.connections() {
        let Ok(rows) = field.tap.ask(connection, sql).await else {
            continue;
        };
        // The connections of the other role may not even read the table.
        let Some([tenant, lock_timeout, commit, seen]) = rows.first().map(Vec::as_slice) else {
            continue;
        };
        let found = (
            tenant.as_deref().unwrap_or_default(),
            lock_timeout.as_deref(),
            commit.as_deref(),
            seen.as_deref(),
        );
        assert_eq!(found, ("", Some("5s"), Some("on"), Some("0")));
    }
}

/// Notes how far the write-ahead log was written before each commit that changes a run. What the last
/// commit of a flight calls takes a while.
const LOGGED_SO_FAR: &str = "
    CREATE FUNCTION public.pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn LANGUAGE sql AS
        'SELECT pg_sleep(0.05); SELECT pg_catalog.pg_logical_emit_message($1, $2, $3)';
    CREATE TABLE public.logged (lsn pg_lsn, waits text);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.logged
        VALUES (pg_current_wal_insert_lsn(), current_setting('synchronous_commit'));
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER a_note AFTER INSERT OR UPDATE ON scheduled_prompt_runs
       DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note();";

/// Commits that do not wait for the disk are waited for all the same. Were they not, the server's log
/// writer would come to them within a fifth of a second: of twenty flights some would be seen before.
#[tokio::test]
async fn what_is_answered_the_disk_has() {
    let field = Field::new(4).await;
    let slow = field.stage.admin.batch_execute(LOGGED_SO_FAR);
    slow.await.unwrap();
    field.waits_for_the_disk().await;
    let db = &field.stage.db;
    for _ in 0..10 {
        let mut due_now = Vec::new();
        for (tenant, _) in &field.sides {
            due_now.push((tenant.id, due(&field.stage, *tenant).await));
        }
        let fired = due_now.iter();
        let claims =
            join_all(fired.map(|(tenant, prompt)| fire(db, *tenant, *prompt, LONG_MS))).await;
        let behind = "SELECT count(*) FROM logged WHERE lsn >= pg_current_wal_flush_lsn()";
        assert_eq!(field.stage.count(behind).await.unwrap(), 0);
        let claims: Vec<_> = claims
            .into_iter()
            .map(|claim| claim.unwrap().unwrap())
            .collect();
        let recorded = join_all(claims.iter().map(|claim| record(&field, claim))).await;
        assert_eq!(field.stage.count(behind).await.unwrap(), 0);
        assert!(recorded.iter().all(Result::is_ok), "{recorded:?}");
    }
    // Who flies alone waits by itself.
    let together = "SELECT count(*) FROM logged WHERE waits = 'off'";
    let before = field.stage.count(together).await.unwrap();
    assert!(before > 40, "{before} commits did not wait for the disk");
    let claim = fire(db, field.sides[0].0.id, field.sides[0].1, LONG_MS).await;
    record(&field, &claim.unwrap().unwrap()).await.unwrap();
    assert_eq!(field.stage.count(together).await.unwrap(), before);
}

/// Where the last commit of a flight fails, nobody is told that it went well before it has gone alone.
#[tokio::test]
async fn one_that_the_disk_may_not_have_goes_alone() {
    let field = Field::new(4).await;
    let refuses = "
        CREATE FUNCTION public.pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn
            LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no disk'; END $$";
    let claims = field.claims().await;
    field.stage.admin.batch_execute(refuses).await.unwrap();
    field.waits_for_the_disk().await;
    let recorded = join_all(claims.iter().map(|claim| record(&field, claim))).await;
    for (claim, recorded) in claims.iter().zip(recorded) {
        // Its own first try was kept after all.
        assert!(matches!(recorded, Err(DbError::StaleLease)), "{recorded:?}");
        assert_eq!(field.status(claim).await, "succeeded");
    }
    let once = "SELECT count(*) FROM scheduled_prompts WHERE success_count = 1 AND run_count = 1";
    assert_eq!(field.stage.count(once).await.unwrap(), 4);
    let doubled = "SELECT count(*) FROM tenant_usage WHERE runs <> 1";
    assert_eq!(field.stage.count(doubled).await.unwrap(), 0);
}

async fn glance(field: &Field) -> Glance {
    let (tenant, prompt) = field.sides[0];
    let seen = runs::glance(&field.stage.db, tenant.id, prompt).await;
    seen.unwrap().unwrap()
}

async fn write(field: &Field, glance: &Glance) -> Result<Option<Claim>, DbError> {
    let (plan, intent) = (plan(&glance.due), intent(LONG_MS));
    let writing = Writing {
        plan: &plan,
        attempts_max: 1,
        run_id: RunId::new(),
        intent: Some(&intent),
        dropped: None,
    };
    let tenant = field.sides[0].0.id;
    runs::write_glanced(&field.stage.db, tenant, glance, &writing).await
}

#[tokio::test]
async fn what_was_seen_is_written_only_while_it_is_so() {
    let changes = [
        "UPDATE scheduled_prompts SET status = 'paused', status_reason = 'user'",
        "UPDATE scheduled_prompts SET next_run_at = next_run_at - interval '1 minute'",
        "UPDATE scheduled_prompts SET generation = generation + 1",
        "UPDATE scheduled_prompts SET max_runs = 1",
        "UPDATE scheduled_prompts SET deleted_at = now()",
        "UPDATE scheduled_prompts SET success_count = success_count + 1",
        "UPDATE scheduled_prompts SET run_count = run_count + 1",
    ];
    for change in changes {
        let field = Field::new(1).await;
        let seen = glance(&field).await;
        field.stage.admin.batch_execute(change).await.unwrap();
        let written = write(&field, &seen).await;
        assert!(
            matches!(written, Err(DbError::StaleLook)),
            "{change}: {written:?}"
        );
        let runs = "SELECT count(*) FROM scheduled_prompt_runs";
        assert_eq!(field.stage.count(runs).await.unwrap(), 0, "{change}");
    }
    // A run that came between is in the way.
    let field = Field::new(1).await;
    let seen = glance(&field).await;
    let (tenant, prompt) = field.sides[0];
    let db = &field.stage.db;
    enqueue(db, tenant.id, prompt, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(
        write(&field, &seen).await,
        Err(DbError::StaleLook)
    ));
    // So is another look that was quicker.
    let (first, second) = (glance(&field).await, glance(&field).await);
    assert!(write(&field, &first).await.unwrap().is_some());
    assert!(matches!(
        write(&field, &second).await,
        Err(DbError::StaleLook)
    ));
    // And what did not change is written.
    let field = Field::new(1).await;
    let seen = glance(&field).await;
    let claim = write(&field, &seen).await.unwrap().unwrap();
    assert_eq!(field.status(&claim).await, "running");
}

/// Many looks at the same prompts at once, with and without a lock: one run a slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_that_race_make_one_run_a_slot() {
    let field = Field::new(6).await;
    let db = &field.stage.db;
    let raced = (0..8).flat_map(|n| {
        field.sides.iter().map(move |(tenant, prompt)| async move {
            if n % 2 == 0 {
                fire(db, tenant.id, *prompt, LONG_MS).await
            } else {
                fire_locked(db, tenant.id, *prompt, LONG_MS).await
            }
        })
    });
    let claims: Vec<_> = join_all(raced)
        .await
        .into_iter()
        .filter_map(Result::unwrap)
        .collect();
    assert_eq!(claims.len(), field.sides.len());
    let doubled = "SELECT count(*) FROM (SELECT FROM scheduled_prompt_runs
                    GROUP BY prompt_id, scheduled_for HAVING count(*) > 1) d";
    assert_eq!(field.stage.count(doubled).await.unwrap(), 0);
    let counted = "SELECT count(*) FROM scheduled_prompts WHERE run_count = 1";
    assert_eq!(field.stage.count(counted).await.unwrap(), 6);
}

/// The last delivery ends its run, whoever is last and however close they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_that_settle_together_end_their_run_once() {
    let field = Field::new(8).await;
    let db = &field.stage.db;
    let mut all = Vec::new();
    for claim in field.claims().await {
        all.push((claim, succeed(db, &claim, 3).await.unwrap()));
    }
    let settling = all.iter().enumerate().flat_map(|(n, (_, sent))| {
        sent.iter().enumerate().map(move |(m, one)| {
            // Of every second run one delivery comes to nothing.
            let fails = n % 2 == 1 && m == 1;
            let status = if fails {
                DeliveryStatus::Exhausted
            } else {
                DeliveryStatus::Delivered
            };
            settle(db, one, status)
        })
    });
    let ended = join_all(settling)
        .await
        .into_iter()
        .filter_map(|stand| stand.unwrap().status);
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended.len(), 8, "{ended:?}");
    for (n, (claim, _)) in all.iter().enumerate() {
        let expected = if n % 2 == 1 { "failed" } else { "succeeded" };
        assert_eq!(field.status(claim).await, expected);
    }
    let counted = "SELECT count(*) FROM scheduled_prompts WHERE success_count + failure_count = 1
                      AND consecutive_failures = failure_count";
    assert_eq!(field.stage.count(counted).await.unwrap(), 8);
}

/// A connection that was lost between two flights is not used for the next.
#[tokio::test]
async fn a_lost_connection_is_replaced_within_the_call() {
    let field = Field::new(5).await;
    let claims = field.claims().await;
    field.stage.admin.execute(END_SESSIONS, &[]).await.unwrap();
    let recorded = join_all(claims.iter().map(|claim| record(&field, claim))).await;
    assert!(recorded.iter().all(Result::is_ok), "{recorded:?}");
    let tx: TenantTx = field.stage.tx(field.sides[0].0.id).await.unwrap();
    tx.commit().await.unwrap();
}

/// Notes for each row that is written: in which transaction, under whose setting, and whose it is.
const WITNESS: &str = "
    CREATE TABLE public.seen (tx xid8, setting text, tenant uuid);
    CREATE FUNCTION public.witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.seen
        VALUES (pg_current_xact_id(), current_setting('app.current_tenant_id', true), NEW.tenant_id);
        RETURN NEW;
    END $$;
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused'; END $$;
    DO $$ DECLARE t text; BEGIN
        FOREACH t IN ARRAY ARRAY['scheduled_prompts', 'scheduled_prompt_runs', 'run_attempts', 'run_logs',
                                 'tenant_usage', 'bus_events'] LOOP
            EXECUTE format('CREATE TRIGGER a_witness AFTER INSERT OR UPDATE ON %I FOR EACH ROW
                            EXECUTE FUNCTION public.witness()', t);
        END LOOP;
    END $$;
    CREATE TRIGGER a_refusal BEFORE UPDATE ON scheduled_prompt_runs FOR EACH ROW
       WHEN (NEW.output = 'refuse this') EXECUTE FUNCTION public.refuse();";

async fn record_text(field: &Field, claim: &Claim, text: &str) -> Result<(), DbError> {
    let answer = answer(text);
    let db = &field.stage.db;
    let recorded = runs::record_output(db, claim, &answer, RunStatus::Succeeded, &[], LONG_MS);
    recorded.await.map(drop)
}

/// Each way to fail in the middle of a transaction, beside transactions of others that go well: no
/// transaction is ever another tenant's, in whole or in part.
#[tokio::test]
async fn no_statement_runs_under_another_tenants_setting() {
    let field = Field::new(MANY).await;
    field.stage.admin.batch_execute(WITNESS).await.unwrap();
    let mut claims = field.claims().await;
    for n in (0..MANY).step_by(8) {
        // Another tenant's run, and one that was taken over.
        claims[n].tenant_id = field.sides[n + 1].0.id;
        claims[n + 2].fence -= 1;
    }
    let all = claims.iter().enumerate().map(async |(n, claim)| {
        // The database refuses one, cannot store another, and nobody waits for a third.
        let (text, limit) = match n % 8 {
            4 => ("refuse this", Duration::from_secs(60)),
            5 => ("a NUL\0", Duration::from_secs(60)),
            6 => ("an answer", HELD_BACK / 2),
            _ => ("an answer", Duration::from_secs(60)),
        };
        let recorded = record_text(&field, claim, text);
        (n, tokio::time::timeout(limit, recorded).await.ok())
    });
    for (n, recorded) in join_all(all).await {
        match (n % 8, recorded) {
            (0 | 2, Some(Err(DbError::StaleLease)))
            | (4 | 5, Some(Err(DbError::Statement(_))))
            | (6, _)
            | (1 | 3 | 7, Some(Ok(()))) => {}
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
    let seen = "SELECT count(DISTINCT tenant) FROM seen";
    assert!(field.stage.count(seen).await.unwrap() > 30);
    let foreign = "SELECT count(*) FROM seen WHERE setting IS DISTINCT FROM tenant::text";
    assert_eq!(field.stage.count(foreign).await.unwrap(), 0);
    let shared =
        "SELECT count(*) FROM (SELECT FROM seen GROUP BY tx HAVING count(DISTINCT tenant) > 1) x";
    assert_eq!(field.stage.count(shared).await.unwrap(), 0);
    for (n, claim) in claims
        .iter()
        .enumerate()
        .filter(|(n, _)| [1, 3, 7].contains(&(n % 8)))
    {
        assert_eq!(field.status(claim).await, "succeeded", "{n}");
    }
    let refused = "SELECT count(*) FROM scheduled_prompt_runs WHERE output = 'refuse this' OR output LIKE 'a NUL%'";
    assert_eq!(field.stage.count(refused).await.unwrap(), 0);
}

/// A connection that breaks under a flight: each commit that nobody heard of is sent again, and its guard
/// keeps it from being done twice.
#[tokio::test]
async fn a_connection_that_breaks_under_a_flight_doubles_nothing() {
    let field = Field::new(10).await;
    let claims = field.claims().await;
    let breaking = async {
        tokio::time::sleep(HELD_BACK / 2).await;
        field.stage.admin.execute(END_SESSIONS, &[]).await.unwrap();
    };
    let recording = join_all(claims.iter().map(|claim| record(&field, claim)));
    let (recorded, ()) = tokio::join!(recording, breaking);
    for (claim, recorded) in claims.iter().zip(recorded) {
        // Whoever hears of a lost lease here lost it to their own first try.
        assert!(
            matches!(recorded, Ok(()) | Err(DbError::StaleLease)),
            "{recorded:?}"
        );
        assert_eq!(field.status(claim).await, "succeeded");
    }
    let doubled = "SELECT count(*) FROM tenant_usage WHERE runs <> 1";
    assert_eq!(field.stage.count(doubled).await.unwrap(), 0);
    let counted =
        "SELECT count(*) FROM scheduled_prompts WHERE success_count = 1 AND run_count = 1";
    assert_eq!(field.stage.count(counted).await.unwrap(), 10);
}
