//! How PostgreSQL runs every statement of `shared::db` at one million prompts and two million runs.
//!
//! What is asserted is what does not depend on the machine: which scans a plan has, what bounds
//! them, and how many pages are touched. The statements are those that the product sent through a
//! tap; the test fails for one in the source that was never sent.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use serde_json::{Value, json};
use shared::db::{
    audit, auth,
    backfills::{self, Cancelled},
    calendars, deliveries, events, health,
    history::{self, RunFilter, RunPage},
    idempotency, looks,
    migrate::{self, RolePasswords},
    preview,
    prompts::{self, NewSpec, NewStatus, Order, PromptStatus, Sort},
    provider_keys, retention,
    runs::{self, AfterFailure, Changed, Spent},
    suppression::{self, Feedback, Noted},
    sync, system, tenants, versions, wake_ups,
};
use shared::destination::EmailAddress;
use shared::ids::{PromptId, RunId, TenantId};
use shared::message::WakeUp;
use shared::provider_key::KeyedProvider;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use shared::secret::Secret;
use shared::slots::{Dropped, Extension, Plan};
use tests::stage::{Stage, migrations_hash, spec};
use tests::tap::Tap;
use tests::worker::{LONG_MS, enqueue, fail, failure, intent, plan, settled, take_delivery};
use tests::world::{
    CALENDAR, HASH, SUPPRESSED, World, a_provider_key, calendar_name, christmas, db_sources,
    due_prompt, identity, make_expirable, member,
};
use tests::{connect, database_url, shared_database};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Pages under row-level security for each page without, at the most.
const SHARE_MAX: f64 = 1.25;

/// Pages of the sweeper's statements in the large database for each page in the small one.
const GROWTH_MAX: f64 = 2.0;

/// Prompts of the large database; it has twice as many runs.
const MANY: i64 = 1_000_000;

/// Prompts of the small one.
const FEW: i64 = 1_000;

/// Tenants of each.
const TENANTS: i64 = 1_000;

/// What is due of each kind, spread over tenants and pages.
const DUE: i64 = 100;

/// Statements that no tenant and no sweeper runs: they belong to the start of a process.
const AT_START: [&str; 6] = [
    "db::refuse_role",
    "migrate::is_ahead",
    "migrate::set_password",
    "migrate::versions",
    "takeover::end_delivery_leases",
    "takeover::end_run_leases",
];

/// A statement as the product sends it.
#[derive(Debug, Clone)]
struct Statement {
    title: String,
    sql: String,
}

/// Every statement that is named in the source, from what passed a tap while all functions were
/// called.
async fn statements() -> Vec<Statement> {
    let tap = Tap::open(Duration::ZERO).await.unwrap();
    let world = World::on(Stage::behind(&tap, 6).await.unwrap()).await;
    call_the_rest(&world).await;
    let sent: BTreeMap<String, String> = tap
        .prepared()
        .into_iter()
        .filter_map(|one| Some((one.title()?.to_owned(), one.sql)))
        .collect();
    let named = named_in_the_source();
    let missing: Vec<_> = named
        .iter()
        .filter(|title| !sent.contains_key(*title))
        .collect();
    assert!(
        missing.is_empty(),
        "call these in call_the_rest: {missing:#?}"
    );
    let unnamed: Vec<_> = sent
        .keys()
        .filter(|title| !named.contains(*title) && !AT_START.contains(&title.as_str()))
        .collect();
    assert!(unnamed.is_empty(), "not found in the source: {unnamed:#?}");
    sent.into_iter()
        .filter(|(title, _)| named.contains(title))
        .map(|(title, sql)| Statement { title, sql })
        .collect()
}

/// The names in the first lines of statements; lists are put together from parts, and give theirs
/// themselves.
fn named_in_the_source() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in db_sources() {
        for line in text.lines() {
            let Some((before, after)) = line.split_once("\"-- ") else {
                continue;
            };
            let title: String = after
                .chars()
                .take_while(|letter| letter.is_ascii_lowercase() || "_:".contains(*letter))
                .collect();
            let whole = !title.ends_with(['_', ':']) && title.contains("::");
            if whole && !before.trim_start().starts_with("//") {
                names.insert(title);
            }
        }
    }
    let lists = prompts::list_statements()
        .into_iter()
        .chain(history::list_statements());
    names.extend(lists.map(|sql| sql.lines().next().unwrap()[3..].to_owned()));
    for title in AT_START {
        assert!(names.remove(title), "{title} is not there any more");
    }
    names
}

/// Each function that making two tenants with everything did not call.
async fn call_the_rest(world: &World) {
    make_expirable(world).await;
    read_everything(world).await;
    change_prompts(world).await;
    change_calendars(world).await;
    change_provider_keys(world).await;
    change_runs(world).await;
    begin_with_all_that_may_come_along(world).await;
    follow(world).await;
    let (stage, a) = (&world.stage, &world.a);
    let all_well = settled(DeliveryStatus::Delivered);
    let sent = deliveries::settle_delivered(&stage.db, &a.sending, &all_well);
    assert!(!sent.await.unwrap(), "another delivery of the run is open");
    let tx = stage.tx(a.tenant.id).await.unwrap();
    deliveries::redeliver(&tx, a.exhausted).await.unwrap();
    tenants::update(&tx, &tenants::Changes::default())
        .await
        .unwrap();
    tenants::set_status(&tx, tenants::TenantStatus::Suspended)
        .await
        .unwrap();
    tenants::set_status(&tx, tenants::TenantStatus::Active)
        .await
        .unwrap();
    tenants::rotate_webhook_secret(&tx, b"new").await.unwrap();
    let address = EmailAddress::parse(SUPPRESSED).unwrap();
    suppression::delete(&tx, &address).await.unwrap();
    auth::revoke_key(&tx, a.key).await.unwrap();
    auth::user_to_change(&tx, a.member).await.unwrap();
    auth::change_user(&tx, a.member, &member("c"))
        .await
        .unwrap();
    auth::remove_user(&tx, a.member).await.unwrap();
    tx.commit().await.unwrap();
    report(world).await;
    let tenant_id = a.tenant.id;
    for wake_up in [
        WakeUp::Prompt {
            tenant_id,
            prompt_id: a.due,
        },
        WakeUp::Run {
            tenant_id,
            run_id: a.failed,
        },
        WakeUp::Delivery {
            tenant_id,
            delivery_id: a.exhausted,
        },
    ] {
        let tx = stage.tx(tenant_id).await.unwrap();
        looks::put_off(tx, wake_up).await.unwrap();
    }
    let tx = stage.tx(world.b.tenant.id).await.unwrap();
    retention::expire(tx, 10, true).await.unwrap();
    health::latency(&stage.db).await.unwrap();
    events::claim(&stage.db, 1, 1, 0).await.unwrap();
    events::settle(&stage.db, &[]).await.unwrap();
    events::forget_parked(&stage.db, 1).await.unwrap();
}

async fn read_everything(world: &World) {
    let (stage, a) = (&world.stage, &world.a);
    let tx = stage.tx(a.tenant.id).await.unwrap();
    let filter = audit::Filter {
        action: None,
        since: None,
        until: None,
        after: None,
        rows_max: 10,
    };
    audit::list(&tx, &filter).await.unwrap();
    audit::list_of_target(&tx, a.key.uuid(), &filter)
        .await
        .unwrap();
    auth::keys(&tx, None, 10).await.unwrap();
    auth::users(&tx, None, 10).await.unwrap();
    history::delivery(&tx, a.exhausted).await.unwrap();
    history::run_summary(&tx, a.failed).await.unwrap();
    history::waiting_deliveries(&tx, a.failed).await.unwrap();
    idempotency::begin(&tx, "another key", &HASH).await.unwrap();
    tenants::get(&tx).await.unwrap();
    tenants::first_owner(&tx).await.unwrap();
    tenants::webhook_secrets(&tx).await.unwrap();
    tx.commit().await.unwrap();
    let tx = async || stage.tx(a.tenant.id).await.unwrap();
    history::run(tx().await, a.failed).await.unwrap();
    history::logs(tx().await, a.failed, None, 10).await.unwrap();
    history::deliveries(tx().await, a.failed).await.unwrap();
    for order in [Order::Asc, Order::Desc] {
        let (all, page) = (
            RunFilter::default(),
            RunPage {
                order,
                after: None,
                rows_max: 10,
            },
        );
        history::runs(tx().await, &all, &page).await.unwrap();
        history::runs_of_prompt(tx().await, a.due, &all, &page)
            .await
            .unwrap();
        let mut filter = prompts::Filter::default();
        for sort in [Sort::Created(None), Sort::NextRun(None), Sort::Name(None)] {
            prompts::list(tx().await, &filter, &sort, order, 10)
                .await
                .unwrap();
        }
        filter.user_id = Some(a.tenant.user);
        prompts::list(tx().await, &filter, &Sort::Created(None), order, 10)
            .await
            .unwrap();
        filter.external_id = Some("an id".to_owned());
        prompts::list(tx().await, &filter, &Sort::Created(None), order, 10)
            .await
            .unwrap();
    }
    prompts::get(tx().await, a.due).await.unwrap();
    prompts::limits(tx().await, &[CALENDAR]).await.unwrap();
    backfills::get(tx().await, a.backfill).await.unwrap();
    backfills::list(tx().await, a.excluding, None, 10)
        .await
        .unwrap();
    calendars::list(tx().await, None, 10).await.unwrap();
    calendars::get(tx().await, &calendar_name()).await.unwrap();
    suppression::list(tx().await, None, 10).await.unwrap();
    versions::list(tx().await, a.due, None, 10).await.unwrap();
    versions::get(tx().await, a.due, 1).await.unwrap();
    let look = tx().await;
    preview::basis(&look, Some(a.due), &[CALENDAR])
        .await
        .unwrap();
    preview::conflicts(look, &[Utc::now()], None).await.unwrap();
    let who = identity();
    system::identify_user(&stage.db, &who.issuer, &who.subject, None)
        .await
        .unwrap();
    system::tenants(&stage.db, None, 10).await.unwrap();
    system::due_prompts(&stage.db, 10).await.unwrap();
    system::due_runs(&stage.db, 10).await.unwrap();
    system::due_deliveries(&stage.db, 10).await.unwrap();
}

/// A mail service's report of an email that was never sent.
async fn report(world: &World) {
    let a = &world.a;
    let feedback = Feedback {
        delivery_id: a.exhausted,
        run_id: a.failed,
        prompt_id: a.due,
        addresses: &[EmailAddress::parse(SUPPRESSED).unwrap()],
        suppress: None,
        kind: "bounce",
        message_id: "message",
        report_id: "report",
    };
    let tx = world.stage.tx(a.tenant.id).await.unwrap();
    let noted = suppression::note(tx, &feedback).await.unwrap();
    assert_eq!(noted, Noted::NotOurs);
}

/// What makes the scheduler's entries follow the rows.
async fn follow(world: &World) {
    let (stage, a) = (&world.stage, &world.a);
    let tx = async || stage.tx(a.tenant.id).await.unwrap();
    let failure = sync::Failure {
        error: "no".to_owned(),
        retry_in: Duration::ZERO,
        is_refused: false,
        outcome_unknown: false,
    };
    sync::fail(tx().await, &a.applying, &failure).await.unwrap();
    sync::synced(tx().await, a.followed).await.unwrap();
    let stale = tx().await;
    assert!(sync::mark_stale(&stale, a.followed, 99).await.unwrap());
    stale.commit().await.unwrap();
    sync::mark_drifted(tx().await, a.followed).await.unwrap();
    let tenants = system::unsynced_tenants(&stage.db, TenantId::BEFORE_ALL, 10).await;
    system::unsynced_prompts(&stage.db, &tenants.unwrap(), 10)
        .await
        .unwrap();
    system::prompts_with_entries(&stage.db, PromptId::BEFORE_ALL, 10)
        .await
        .unwrap();
    system::entries_of(&stage.db, &[a.followed]).await.unwrap();
    let cursor = system::drift_cursor(&stage.db).await.unwrap();
    system::move_drift_cursor(&stage.db, &cursor).await.unwrap();
}

async fn change_prompts(world: &World) {
    let (stage, tenant) = (&world.stage, world.a.tenant);
    let id = due_prompt(&stage.db, tenant, &json!({})).await;
    let tx = stage.tx(tenant.id).await.unwrap();
    prompts::limits_to_create(&tx, tenant.user, &[CALENDAR])
        .await
        .unwrap();
    prompts::get_to_change(&tx, id, &[CALENDAR]).await.unwrap();
    prompts::get_to_resume(&tx, id).await.unwrap();
    let slots = Dropped {
        first: Utc::now(),
        last: Utc::now(),
        count: 1,
    };
    prompts::drop_slots(&tx, id, slots, "paused").await.unwrap();
    let change = NewSpec {
        id,
        version: 1,
        spec: &spec(&json!({})),
        next_run_at: None,
        reschedules: false,
        webhook_urls: &[],
        calendars: Some(&[CALENDAR]),
    };
    prompts::replace(&tx, &change).await.unwrap();
    let change = NewStatus {
        id,
        version: 2,
        status: PromptStatus::Paused,
        reason: None,
        note: None,
        next_run_at: None,
    };
    prompts::set_status(&tx, &change).await.unwrap();
    prompts::tombstone(&tx, id).await.unwrap();
    tx.commit().await.unwrap();
}

async fn change_provider_keys(world: &World) {
    let (stage, a, provider) = (&world.stage, &world.a, KeyedProvider::OpenAi);
    let tx = stage.tx(a.tenant.id).await.unwrap();
    provider_keys::sealed(tx, provider).await.unwrap();
    let tx = stage.tx(a.tenant.id).await.unwrap();
    provider_keys::list(tx, None, 10).await.unwrap();
    let tx = stage.tx(a.tenant.id).await.unwrap();
    provider_keys::lock(&tx, provider).await.unwrap();
    provider_keys::put(&tx, &a_provider_key()).await.unwrap();
    provider_keys::delete(&tx, provider).await.unwrap();
    tx.commit().await.unwrap();
}

async fn change_calendars(world: &World) {
    let (stage, a) = (&world.stage, &world.a);
    let tx = stage.tx(a.tenant.id).await.unwrap();
    calendars::holidays(&tx, &[CALENDAR]).await.unwrap();
    calendars::get_to_change(&tx, &calendar_name())
        .await
        .unwrap();
    calendars::replace(&tx, a.calendar, 1, &christmas())
        .await
        .unwrap();
    calendars::holidays_beside(&tx, a.calendar).await.unwrap();
    let prompts = calendars::lock_prompts(&tx, a.calendar, None, 10).await;
    let (_, prompts) = prompts.unwrap();
    let moved: Vec<_> = prompts.iter().map(|one| (one.id, None)).collect();
    assert_eq!(moved.len(), 1);
    calendars::move_slots(&tx, &moved).await.unwrap();
    calendars::users(&tx, a.calendar, 10).await.unwrap();
    versions::find(&tx, a.due, 1).await.unwrap();
    backfills::lock_prompt(&tx, a.excluding).await.unwrap();
    let cancelled = backfills::cancel(&tx, a.backfill).await.unwrap();
    assert!(matches!(cancelled, Cancelled::Done(_)), "{cancelled:?}");
    assert!(prompts::tombstone(&tx, a.excluding).await.unwrap());
    assert!(calendars::delete(&tx, a.calendar).await.unwrap());
    tx.commit().await.unwrap();
}

async fn change_runs(world: &World) {
    let (stage, a) = (&world.stage, &world.a);
    let tenant = a.tenant.id;
    let tx = async || stage.tx(tenant).await.unwrap();
    for wake_up in [
        WakeUp::Prompt {
            tenant_id: tenant,
            prompt_id: a.due,
        },
        WakeUp::Run {
            tenant_id: tenant,
            run_id: a.queued,
        },
        WakeUp::Delivery {
            tenant_id: tenant,
            delivery_id: a.waiting,
        },
    ] {
        assert!(wake_ups::is_known(tx().await, wake_up).await.unwrap());
    }
    let look = tx().await;
    let locked = runs::lock(&look, a.queued).await.unwrap().unwrap();
    runs::take_over(&look, &locked).await.unwrap();
    look.rollback().await.unwrap();
    for defers in [true, false] {
        let look = tx().await;
        let locked = runs::lock(&look, a.queued).await.unwrap().unwrap();
        if defers {
            runs::defer(look, &locked, 0).await.unwrap();
        } else {
            runs::skip(look, &locked, "max_runs").await.unwrap();
        }
    }
    runs::renew(tx().await, &a.running, LONG_MS).await.unwrap();
    runs::settle_late(tx().await, &a.running, None)
        .await
        .unwrap();
    let mut failed = failure("broken", AfterFailure::End(RunStatus::Failed));
    failed.spent = Some(Spent {
        tokens: None,
        cost_usd: None,
    });
    fail(&stage.db, &a.running, &failed, "error").await.unwrap();
    deliveries::renew(tx().await, &a.sending, LONG_MS)
        .await
        .unwrap();
    take_delivery(&stage.db, tenant, a.waiting, LONG_MS)
        .await
        .unwrap()
        .unwrap();
    let change = tx().await;
    // The model again, and the deliveries again.
    for run in [a.running.run_id, a.failed] {
        assert_eq!(runs::retry(&change, run).await.unwrap(), Changed::Done);
    }
    runs::cancel(&change, a.generated).await.unwrap();
    runs::cancel_queued(&change, a.due, "deleted")
        .await
        .unwrap();
    change.commit().await.unwrap();
}

/// Statements that are sent with a claim only where there is something for them to do.
async fn begin_with_all_that_may_come_along(world: &World) {
    let (stage, a) = (&world.stage, &world.a);
    let tenant = a.tenant.id;
    let tx = async || stage.tx(tenant).await.unwrap();
    let prompt = due_prompt(&stage.db, a.tenant, &json!({})).await;
    let look = tx().await;
    let due = runs::lock_due(&look, prompt).await.unwrap().unwrap();
    let plan = Plan {
        extension: Some(Extension {
            run_id: RunId::new(),
            count: 1,
            until: due.now,
        }),
        replaced: Some(RunId::new()),
        ..plan(&due)
    };
    let writing = runs::Writing {
        plan: &plan,
        attempts_max: 1,
        run_id: RunId::new(),
        intent: Some(&intent(LONG_MS)),
        dropped: Some(Dropped::one(due.now)),
    };
    let claim = runs::write_plan(look, &due, &writing).await.unwrap();
    assert!(claim.is_some(), "{due:?}");
    let run = enqueue(&stage.db, tenant, prompt, RunTrigger::Manual).await;
    let look = tx().await;
    let locked = runs::lock(&look, run.unwrap().unwrap()).await.unwrap();
    let mut of_a_backfill = locked.unwrap();
    of_a_backfill.trigger = RunTrigger::Backfill;
    let claim = runs::claim(look, &of_a_backfill, &intent(LONG_MS), None).await;
    assert!(claim.unwrap().is_some());
}

/// A database with so many prompts and twice as many runs, made once for each cluster.
async fn filled(prompts: i64) -> String {
    let mut hasher = DefaultHasher::new();
    (FILL_TENANTS, FILL_PROMPTS, FILL_RUNS, FINISH).hash(&mut hasher);
    let name = format!(
        "plans_{prompts}_{}_{:08x}",
        migrations_hash().unwrap(),
        hasher.finish() >> 32
    );
    shared_database(&name, |url| fill(url, prompts))
        .await
        .unwrap();
    name
}

async fn fill(url: String, prompts: i64) -> Result<()> {
    migrate::run(&Secret::new(url.clone()), &RolePasswords::default()).await?;
    let first = connect(&url).await?;
    let second = connect(&url).await?;
    // Indexes are built when the rows are there, and foreign keys are true by construction.
    first
        .batch_execute(
            "UPDATE pg_index SET indisready = false WHERE indrelid IN (
                 SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace
                    AND relname <> 'refinery_schema_history')",
        )
        .await?;
    let filled = |sql: &str| {
        let due_step = (prompts / DUE - prompts / DUE / 300).max(10);
        let deliveries = (2 * prompts).min(300_000);
        let settings = "SET session_replication_role = replica; SET maintenance_work_mem = '256MB';
                        SET synchronous_commit = off;";
        format!("{settings} {sql}")
            .replace("$probe", &PROBE.to_string())
            .replace("$prompts", &prompts.to_string())
            .replace("$tenants", &TENANTS.to_string())
            .replace("$due_step", &due_step.to_string())
            .replace("$deliveries", &deliveries.to_string())
            .replace("$send_step", &(deliveries / DUE).to_string())
    };
    let (tenants, runs) = (
        filled(&format!("{FILL_TENANTS} {FILL_PROMPTS}")),
        filled(FILL_RUNS),
    );
    // One core each.
    tokio::try_join!(first.batch_execute(&tenants), second.batch_execute(&runs))?;
    let tenant = id('0', PROBE % TENANTS);
    first
        .batch_execute(&FINISH.replace("$tenant", &tenant))
        .await?;
    Ok(())
}

/// Ids are numbers: `id('1', n)` is the prompt n, '2' runs, 'a' users, 'b' keys, and tenants '0'.
const FILL_TENANTS: &str = "
    CREATE FUNCTION pg_temp.id(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
        RETURN (kind || lpad(to_hex(n), 31, '0'))::uuid;
    INSERT INTO tenants (id, name, webhook_secret_sealed)
    SELECT pg_temp.id('0', n), 'tenant ' || n, '' FROM generate_series(0, $tenants - 1) n;
    INSERT INTO users (tenant_id, id, email, role)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('a', n), 'u' || n || '@a.example', 'owner'
      FROM generate_series(0, 20 * $tenants - 1) n;
    INSERT INTO api_keys (tenant_id, id, user_id, name, prefix, key_hash, role)
    SELECT tenant_id, pg_temp.id('b', ('x' || right(id::text, 12))::bit(48)::bigint), id, 'key', 'ck_',
           sha256(id::text::bytea), 'owner'
      FROM users;
    INSERT INTO audit_events (tenant_id, id, actor_kind, action, target_kind, target_id, result, at)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('c', n), 'platform', 'prompt.created', 'prompt',
           pg_temp.id('1', n % $prompts), 'ok', now() - n * interval '1 second'
      FROM generate_series(0, 200 * $tenants - 1) n;
    INSERT INTO idempotency_keys (tenant_id, key, request_hash, response_status, response_sealed, created_at)
    SELECT pg_temp.id('0', n % $tenants), 'key ' || n, '', 201, '', now() - n * interval '1 second'
      FROM generate_series(0, 100 * $tenants - 1) n;
    INSERT INTO tenant_usage (tenant_id, period)
    SELECT pg_temp.id('0', n % $tenants), '2026-01-01'::date + (n / $tenants)::int * 31
      FROM generate_series(0, 12 * $tenants - 1) n;
    INSERT INTO gone_webhooks (tenant_id, url)
    SELECT pg_temp.id('0', n % $tenants), 'https://hooks.example/' || n
      FROM generate_series(0, 20 * $tenants - 1) n;
    REINDEX TABLE tenants; REINDEX TABLE users; REINDEX TABLE api_keys; REINDEX TABLE audit_events;
    REINDEX TABLE idempotency_keys; REINDEX TABLE tenant_usage; REINDEX TABLE gone_webhooks;";

/// Prompts of one tenant lie on different pages, as they do when all tenants make prompts all day.
const FILL_PROMPTS: &str = "
    INSERT INTO scheduled_prompts
           (tenant_id, id, user_id, external_id, prompt_name, prompt_text, model, schedule, status, overlap,
            catchup_window_s, misfire, max_retries, retry_delay_ms, timeout_ms, pause_after_failures,
            destinations, tags, synced_generation, sync_due_at, next_run_at, created_at, deleted_at)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('1', n), pg_temp.id('a', n % (20 * $tenants)),
           CASE WHEN n % 2 = 0 THEN 'e' || n END, 'prompt ' || n % 977, 'text', 'echo/echo',
           '{\"type\": \"daily\", \"timezone\": \"UTC\"}',
           CASE WHEN n % 7 = 0 AND n % $due_step <> 5 THEN 'paused' ELSE 'active' END,
           'skip', 900, 'skip', 3, 60000, 300000, 10, '[]', ARRAY['t' || n % 4],
           CASE WHEN n % $due_step = 5 THEN 0 ELSE 1 END, now() - interval '1 hour',
           CASE WHEN n % $due_step = 5 THEN now() - n * interval '1 millisecond'
                WHEN n % 7 > 0 THEN now() + interval '90 days' + n * interval '1 minute' END,
           now() - n * interval '1 second',
           CASE WHEN n % 100 = 99 AND n % $due_step <> 5 THEN now() - interval '1 day' END
      FROM generate_series(0, $prompts - 1) n;
    INSERT INTO prompt_versions (tenant_id, prompt_id, version, spec)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('1', n), 1, '{\"prompt_text\": \"text\"}'
      FROM generate_series(0, $prompts - 1) n;
    REINDEX TABLE scheduled_prompts; REINDEX TABLE prompt_versions;
    ANALYZE tenants, users, api_keys, audit_events, idempotency_keys, tenant_usage, gone_webhooks,
            scheduled_prompts, prompt_versions;";

/// Two runs of each prompt: most have ended, 100 wait and are due, 100 were left by their claimants.
const FILL_RUNS: &str = "
    CREATE FUNCTION pg_temp.id(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
        RETURN (kind || lpad(to_hex(n), 31, '0'))::uuid;
    INSERT INTO scheduled_prompt_runs
           (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempt, attempts_max, prompt_version,
            output, output_sha256, started_at, created_at, available_at, lease_expires_at, completed_at)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('2', n), pg_temp.id('1', n % $prompts), at,
           CASE WHEN n % 10 = 0 THEN 'manual' ELSE 'schedule' END, status, 1, 4, 1, 'an output', '\\x00', at,
           at, CASE WHEN status = 'queued' AND NOT is_due THEN now() + interval '90 days' ELSE at END,
           CASE WHEN status = 'running' THEN now() + CASE WHEN is_due THEN interval '-1 hour'
                                                          ELSE interval '90 days' END END,
           CASE WHEN status NOT IN ('queued', 'running', 'generated') THEN at END
      FROM (SELECT n, now() - n * interval '100 milliseconds' AS at, n % $prompts % $due_step = 5 AS is_due,
                   CASE WHEN n % $prompts % $due_step = 5 AND n < $prompts THEN 'queued'
                        WHEN n % $prompts % $due_step = 5 THEN 'running'
                        WHEN n % 200 < 3 THEN (ARRAY['queued', 'running', 'generated'])[n % 200 + 1]
                        WHEN n % 20 = 10 THEN 'failed'
                        WHEN n % 20 = 11 THEN 'skipped'
                        ELSE 'succeeded' END AS status
              FROM generate_series(0, 2 * $prompts - 1) n) made;
    INSERT INTO run_attempts (tenant_id, id, run_id, attempt, fence, status, provider, model)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('3', n), pg_temp.id('2', n), 1, 1, 'ok', 'echo', 'echo'
      FROM generate_series(0, $deliveries - 1) n;
    INSERT INTO run_logs (tenant_id, id, run_id, level, message)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('4', n), pg_temp.id('2', n), 'info', 'model answered'
      FROM generate_series(0, $deliveries - 1) n;
    INSERT INTO deliveries
           (tenant_id, id, run_id, purpose, position, kind, target, destination, status, attempts_max,
            next_attempt_at, lease_expires_at)
    SELECT pg_temp.id('0', n % $tenants), pg_temp.id('5', n), pg_temp.id('2', n), 'output', 0, 'storage',
           'key', '{}',
           CASE n % $send_step WHEN $probe % $send_step THEN 'pending' WHEN ($probe + 1) % $send_step THEN 'sending' ELSE 'delivered' END, 16,
           now() - interval '1 hour',
           CASE n % $send_step WHEN ($probe + 1) % $send_step THEN now() - interval '1 hour' END
      FROM generate_series(0, $deliveries - 1) n;
    REINDEX TABLE scheduled_prompt_runs; REINDEX TABLE run_attempts; REINDEX TABLE run_logs;
    REINDEX TABLE deliveries;
    ANALYZE scheduled_prompt_runs, run_attempts, run_logs, deliveries;";

/// Beside the tables, views of one tenant's rows: what a statement costs without policies.
const FINISH: &str = "
    CREATE SCHEMA plain;
    DO $$
    DECLARE ours record;
    BEGIN
        FOR ours IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
                       AND relkind = 'r' AND relname NOT IN ('refinery_schema_history', 'drift_cursor')
        LOOP
            EXECUTE format(
                'CREATE VIEW plain.%1$I AS SELECT * FROM public.%1$I WHERE %2$I = %3$L',
                ours.relname, CASE ours.relname WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END,
                $tenant);
            EXECUTE format('ALTER TABLE public.%I SET (autovacuum_enabled = false)', ours.relname);
        END LOOP;
    END $$";

/// The prompt that is looked at, which is due; its runs, a delivery, its owner and a key of that
/// owner have numbers that follow from it, and so has its tenant.
const PROBE: i64 = 5 + 3 * 9_967;

/// The smallest and the largest id.
const NIL: &str = "'00000000-0000-0000-0000-000000000000'";
const MAX: &str = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";

/// As the function of that name in the statements that fill the database.
fn id(kind: char, n: i64) -> String {
    format!("'{kind}{n:031x}'")
}

/// Values for a statement that reads; `None` for one that has no case yet.
fn values(title: &str) -> Option<String> {
    let (module, name) = title.split_once("::")?;
    let (tenant, prompt, run) = (id('0', PROBE % TENANTS), id('1', PROBE), id('2', PROBE));
    let user = id('a', PROBE % (20 * TENANTS));
    Some(match (module, name) {
        ("audit", "list") => format!("'-infinity', 'infinity', 'infinity', {MAX}, NULL, 50"),
        ("audit", "list_of_target") => {
            format!("'-infinity', 'infinity', 'infinity', {MAX}, NULL, 50, {prompt}")
        }
        ("auth", "key_is_revoked") => id('b', PROBE % (20 * TENANTS)),
        ("auth", "keys" | "users") => format!("{MAX}, 50"),
        ("auth", "user" | "user_is_removed") => user,
        ("auth", "lock_keys") | ("idempotency", "lock") => "'a lock'".to_owned(),
        ("idempotency", "answer") => format!("'key {}'", PROBE % TENANTS),
        ("deliveries", "lock_due") | ("history", "delivery") | ("wake_ups", "knows_delivery") => {
            id('5', PROBE)
        }
        ("backfills", "get" | "lock_prompt_of") | ("calendars", "holidays_beside") => {
            NIL.to_owned()
        }
        ("backfills", "list") => format!("{prompt}, 'infinity', {MAX}, 50"),
        ("calendars", "get") => "'uk'".to_owned(),
        ("calendars", "holidays") => format!("'{{uk}}', {prompt}"),
        ("calendars", "list") => "'', 50".to_owned(),
        ("calendars", "lock_prompts" | "prompts") => format!("{NIL}, {NIL}, 50"),
        ("calendars", "users") => format!("{NIL}, 10"),
        ("suppression", "list") => "'', 50".to_owned(),
        ("provider_keys", "list") => "'', 50".to_owned(),
        ("provider_keys", "lock" | "sealed") => "'openai'".to_owned(),
        ("versions", "list") => format!("{prompt}, 100, 50"),
        ("versions", "get") => format!("{prompt}, 1"),
        ("history", "logs") => format!("{run}, '-infinity', {NIL}, 50"),
        ("history" | "prompts", name) if name.starts_with("list_") || name.starts_with("runs_") => {
            list_values(name)
        }
        ("preview", "conflicts") => "'{2026-01-01T00:00:00Z}', NULL, 100, 10".to_owned(),
        ("prompts", "limits") => user,
        ("prompts", "lock_active") | ("tenants", "get" | "webhook_secrets") => tenant,
        ("history" | "versions", "prompt_exists")
        | ("backfills", "lock_prompt" | "prompt_exists" | "target")
        | ("preview", "past")
        | ("prompts", "get" | "get_to_change" | "lock")
        | ("runs", "glance" | "lock_due" | "lock_prompt" | "look")
        | ("sync", "standing" | "synced")
        | ("wake_ups", "knows_prompt") => prompt,
        ("sync", "is_stale") => format!("{prompt}, 7"),
        ("deliveries", "lock_prompt" | "outcome_of_run")
        | (
            "history",
            "attempts" | "deliveries" | "run" | "run_exists" | "run_summary" | "waiting_deliveries",
        )
        | (
            "runs",
            "due_at_last" | "due_at_pause" | "lock" | "lock_prompt_of_run" | "lock_status",
        )
        | ("wake_ups", "knows_run") => run,
        ("health", "latency")
        | ("calendars", "clock" | "lock" | "lock_shared" | "standing")
        | ("runs", "capacity" | "gone_webhooks" | "secrets")
        | ("tenants", "first_owner" | "lock_open") => String::new(),
        ("runs", "lock_claims") => "true".to_owned(),
        _ => return None,
    })
}

/// The first page of a list without filters.
fn list_values(name: &str) -> String {
    let ascending = name.ends_with("_asc");
    let (end, at) = if ascending {
        (NIL, "'-infinity'")
    } else {
        (MAX, "'infinity'")
    };
    if let Some(rest) = name.strip_prefix("runs_") {
        let prompt = id('1', PROBE);
        let page = format!("'-infinity', 'infinity', {at}, {end}, NULL, NULL, 50");
        return if rest.starts_with("of_prompt") {
            format!("{page}, {prompt}")
        } else {
            page
        };
    }
    let key = match (name.starts_with("list_name"), ascending) {
        (true, true) => "''",
        (true, false) => "'zzz'",
        (false, _) => at,
    };
    let (mut user, mut external) = ("NULL".to_owned(), "NULL".to_owned());
    if name.starts_with("list_of_user") {
        user = id('a', PROBE % (20 * TENANTS));
    } else if name == "list_external_id" {
        external = format!("'e{PROBE}'");
    }
    format!(
        "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {user}, {external}, {key}, {end}, 50"
    )
}

/// Who explains a statement.
#[derive(Clone, Copy)]
enum As {
    /// The app role with the tenant set.
    Tenant,
    /// A superuser on views of the tenant's rows.
    Plain,
    /// The owner of the system functions.
    Definer,
}

/// A session in the filled database.
struct Planner {
    client: Client,
}

impl Planner {
    async fn new(database: &str, who: As) -> Self {
        let client = connect(&database_url(database)).await.unwrap();
        let prepare = match who {
            As::Tenant => "SET ROLE carillon_app",
            As::Plain => "SET search_path = plain, public",
            As::Definer => "SET ROLE carillon_definer",
        };
        let tenant = id('0', PROBE % TENANTS);
        let prepare = format!("{prepare}; SET app.current_tenant_id = {tenant}");
        client.batch_execute(&prepare).await.unwrap();
        Self { client }
    }

    /// The plan of a statement; with `run` it is run, and undone.
    async fn plan(&self, statement: &str, values: &str, mode: &str, run: bool) -> Value {
        let options = if run {
            "ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON"
        } else {
            "FORMAT JSON"
        };
        let begin =
            format!("BEGIN; SET LOCAL plan_cache_mode = {mode}; PREPARE probe AS {statement}");
        self.client
            .batch_execute(&begin)
            .await
            .unwrap_or_else(|error| {
                panic!("{statement}: {error:?}");
            });
        let values = if values.is_empty() {
            String::new()
        } else {
            format!("({values})")
        };
        let explain = format!("EXPLAIN ({options}) EXECUTE probe {values}");
        let messages = self
            .client
            .simple_query(&explain)
            .await
            .unwrap_or_else(|error| {
                panic!("{explain} of {statement}: {error:?}");
            });
        self.client
            .batch_execute("ROLLBACK; DEALLOCATE probe")
            .await
            .unwrap();
        let json = messages.iter().find_map(|message| {
            if let SimpleQueryMessage::Row(row) = message {
                row.get(0)
            } else {
                None
            }
        });
        let mut explained: Value = serde_json::from_str(json.unwrap()).unwrap();
        explained[0]["Plan"].take()
    }

    /// Its generic plan, which stands for all values.
    async fn generic(&self, statement: &str) -> Value {
        let sql = format!("PREPARE probe AS {statement}");
        self.client
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let sql =
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'probe'";
        let count: i32 = self.client.query_one(sql, &[]).await.unwrap().get(0);
        self.client.batch_execute("DEALLOCATE probe").await.unwrap();
        let nulls = vec!["NULL"; usize::try_from(count).unwrap()].join(", ");
        self.plan(statement, &nulls, "force_generic_plan", false)
            .await
    }

    /// Pages that a statement touches once everything is warm.
    async fn pages(&self, statement: &str, values: &str, mode: &str) -> i64 {
        let mut plan = Value::Null;
        for _ in 0..2 {
            plan = self.plan(statement, values, mode, true).await;
        }
        ["Shared Hit Blocks", "Shared Read Blocks"]
            .iter()
            .map(|name| plan[name].as_i64().unwrap())
            .sum()
    }
}

fn nodes(plan: &Value) -> Vec<&Value> {
    let mut all = vec![plan];
    for child in plan["Plans"].as_array().into_iter().flatten() {
        all.extend(nodes(child));
    }
    all
}

/// What a plan may not have: a look at a whole table or at a whole index, or a hashed sub-plan.
fn faults(plan: &Value, bounds: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    if plan.to_string().contains("hashed SubPlan") {
        found.push("a hashed sub-plan".to_owned());
    }
    for node in nodes(plan) {
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        match text("Node Type").as_str() {
            "Seq Scan" => found.push(format!("a sequential scan of {}", text("Relation Name"))),
            "Index Scan" | "Index Only Scan" | "Bitmap Index Scan"
                if !bounds(&text("Index Cond")) =>
            {
                found.push(format!(
                    "{} bounded by ({})",
                    text("Index Name"),
                    text("Index Cond")
                ));
            }
            _ => {}
        }
    }
    found
}

/// The tenant leads every index but that of the tenants themselves.
fn by_tenant(bounds: &str) -> bool {
    bounds.contains("tenant_id = ") || bounds.contains("(id = ")
}

fn is_read(statement: &Statement) -> bool {
    let body = statement.sql.lines().skip(1).collect::<String>();
    body.trim_start().starts_with("SELECT")
}

fn is_of_tenants(statement: &Statement) -> bool {
    !statement.title.starts_with("system::")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_is_bounded_by_its_tenant() {
    let (database, statements) = tokio::join!(filled(MANY), statements());
    let planner = Planner::new(&database, As::Tenant).await;
    let plain = Planner::new(&database, As::Plain).await;
    let mut found = Vec::new();
    for statement in statements.iter().filter(|one| is_of_tenants(one)) {
        let plan = planner.generic(&statement.sql).await;
        found.extend(
            faults(&plan, by_tenant)
                .into_iter()
                .map(|fault| format!("{}: {fault}", statement.title)),
        );
        let without = plain.generic(&statement.sql).await;
        let cost = |plan: &Value| plan["Total Cost"].as_f64().unwrap();
        // The setting itself is read once a statement, which costs a row of VALUES more than it has.
        if cost(&plan) > SHARE_MAX * cost(&without) + 0.1 {
            found.push(format!(
                "{}: cost {} under policies, {} without",
                statement.title,
                cost(&plan),
                cost(&without)
            ));
        }
    }
    for statement in statements.iter().filter(|one| is_list(one)) {
        let values = values(&statement.title).unwrap();
        let plan = planner
            .plan(&statement.sql, &values, "force_custom_plan", true)
            .await;
        found.extend(
            faults(&plan, by_tenant)
                .into_iter()
                .map(|fault| format!("{} for its values: {fault}", statement.title)),
        );
        if statement.title == "prompts::list_created_desc" {
            println!("GET /v1/prompts\n{}", outline(&plan, 0));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

fn is_list(statement: &Statement) -> bool {
    ["prompts::list_", "history::runs_"]
        .iter()
        .any(|start| statement.title.starts_with(start))
}

fn outline(plan: &Value, depth: usize) -> String {
    let mut text = "  ".repeat(depth);
    for name in [
        "Node Type",
        "Index Name",
        "Index Cond",
        "Actual Rows",
        "Actual Loops",
        "Shared Hit Blocks",
    ] {
        if let Some(value) = plan.get(name) {
            text.push_str(&format!("{name}: {value}  "));
        }
    }
    text.push('\n');
    for child in plan["Plans"].as_array().into_iter().flatten() {
        text.push_str(&outline(child, depth + 1));
    }
    text
}

#[tokio::test]
async fn the_checks_find_what_they_look_for() {
    let superuser = Planner {
        client: connect(&database_url(&filled(MANY).await)).await.unwrap(),
    };
    for (statement, named) in [
        (
            "SELECT id FROM scheduled_prompts WHERE description = 'x'",
            "a sequential scan of scheduled_prompts",
        ),
        (
            "SELECT id FROM scheduled_prompts WHERE due_at <= now() ORDER BY due_at LIMIT 1",
            "scheduled_prompts_system_due bounded by ((due_at <= now()))",
        ),
        (
            "SELECT id FROM tenants WHERE id NOT IN (SELECT tenant_id FROM users)",
            "a hashed sub-plan",
        ),
    ] {
        let found = faults(&superuser.generic(statement).await, by_tenant);
        assert!(
            found.iter().any(|fault| fault == named),
            "{statement}: {found:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_touch_hardly_more_pages_under_policies() {
    let (database, statements) = tokio::join!(filled(MANY), statements());
    let policies = Planner::new(&database, As::Tenant).await;
    let plain = Planner::new(&database, As::Plain).await;
    let mut found = Vec::new();
    for statement in statements
        .iter()
        .filter(|one| is_of_tenants(one) && is_read(one))
    {
        let title = &statement.title;
        let values = values(title).unwrap_or_else(|| panic!("{title} has no values here"));
        for mode in ["force_generic_plan", "force_custom_plan"] {
            let with = policies.pages(&statement.sql, &values, mode).await;
            let without = plain.pages(&statement.sql, &values, mode).await;
            let share = f64::from(i32::try_from(with).unwrap())
                / f64::from(i32::try_from(without.max(1)).unwrap());
            println!("{title} {mode}: {with} pages, {without} without policies");
            if share > SHARE_MAX && with > 1 {
                found.push(format!(
                    "{title} {mode}: {with} pages, {without} without policies"
                ));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The statements inside the system functions: each parameter with its type, and values for them.
/// `$nil` stands for the smallest id, `$prompt` for a prompt and `$tenants` for all tenants.
type SystemFunction = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);
const SYSTEM: [SystemFunction; 8] = [
    ("system_due_prompts", &[("rows_max", "int")], "200"),
    ("system_due_runs", &[("rows_max", "int")], "200"),
    ("system_due_deliveries", &[("rows_max", "int")], "200"),
    (
        "system_tenants",
        &[("after_id", "uuid"), ("rows_max", "int")],
        "NULL, 200",
    ),
    (
        "system_unsynced_tenants",
        &[("tenant_after", "uuid"), ("rows_max", "int")],
        "$nil, 200",
    ),
    (
        "system_unsynced_prompts",
        &[("tenants", "uuid[]"), ("rows_max", "int")],
        "$tenants, 200",
    ),
    (
        "system_prompts_with_entries",
        &[("prompt_after", "uuid"), ("rows_max", "int")],
        "$nil, 200",
    ),
    (
        "system_entries_of",
        &[("wanted", "uuid[]")],
        "ARRAY[$prompt]::uuid[]",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweeper_touches_what_is_due_and_nothing_else() {
    let (many, few) = (filled(MANY).await, filled(FEW).await);
    let (large, small) = (
        Planner::new(&many, As::Definer).await,
        Planner::new(&few, As::Definer).await,
    );
    let mut found = Vec::new();
    let tenants: Vec<_> = (0..TENANTS).map(|n| id('0', n)).collect();
    for (function, parameters, values) in SYSTEM {
        let sql = "SELECT prosrc FROM pg_proc WHERE proname = $1";
        let mut body: String = large
            .client
            .query_one(sql, &[&function])
            .await
            .unwrap()
            .get(0);
        for (number, (name, kind)) in parameters.iter().enumerate() {
            body = body.replace(name, &format!("${}::{kind}", number + 1));
        }
        let plan = large.generic(&body).await;
        let bounded = |bounds: &str| !bounds.is_empty() || function == "system_tenants";
        for fault in faults(&plan, bounded) {
            found.push(format!("{function}: {fault}"));
        }
        let values = values
            .replace("$nil", NIL)
            .replace("$prompt", &id('1', 5))
            .replace(
                "$tenants",
                &format!("ARRAY[{}]::uuid[]", tenants.join(", ")),
            );
        let pages = (
            large.pages(&body, &values, "force_generic_plan").await,
            small.pages(&body, &values, "force_generic_plan").await,
        );
        let shown = large.plan(&body, &values, "force_generic_plan", true).await;
        println!(
            "{function}: {} pages of a million, {} of a thousand\n{}",
            pages.0,
            pages.1,
            outline(&shown, 1)
        );
        let growth =
            f64::from(i32::try_from(pages.0).unwrap()) / f64::from(i32::try_from(pages.1).unwrap());
        if growth > GROWTH_MAX {
            found.push(format!("{function}: {pages:?} pages"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
