//! Two tenants in one database, and nothing of one is seen, changed or counted by the other.
//!
//! Every public function of `shared::db` is called by tenant A with the ids of tenant B. The list of
//! functions is read from the source: one without a case here fails the test.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shared::api_key::Role;
use shared::db::{
    Db, DbError, Login, audit,
    auth::{self, Removed, Revoke},
    backfills::{self, Cancelled},
    calendars,
    deliveries::{self, DeliveryClaim, Redeliver},
    events::{self, Outcome},
    health,
    history::{self, RunFilter, RunPage},
    idempotency::{self, Begin},
    looks,
    migrate::{self, RolePasswords},
    preview,
    prompts::{self, NewPrompt, NewSpec, NewStatus, Order, PromptStatus, Sort},
    provider_keys, retention,
    runs::{self, AfterFailure, Changed, Claim, Enqueue, FailureWriting, Writing},
    suppression::{self, Feedback, Noted, Reason},
    sync::{self, Claimed, Settled},
    system::{self, EntryOwner, Identified},
    tenants::{self, Changes, NewTenant, TenantStatus},
    versions, wake_ups,
};
use shared::destination::EmailAddress;
use shared::exclusion::{CalendarName, Holidays};
use shared::ids::{ApiKeyId, CalendarId, PromptId, RunId, TenantId, UserId};
use shared::message::WakeUp;
use shared::provider_key::KeyedProvider;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use shared::secret::Secret;
use shared::slots::Dropped;
use tests::stage::{self, config, role_url, spec};
use tests::tap::Tap;
use tests::worker::{LONG_MS, answer, failure, intent, plan, settled};
use tests::world::{
    APPLY_LEASE, CALENDAR, HASH, HOOK, SUPPRESSED, World, a_backfill, a_provider_key,
    calendar_name, christmas, event, identity, kept_answer, make_expirable, member, new_key,
    public_functions, tenant_tables,
};
use tests::{connect, database_url};
use tokio_postgres::{Client, error::SqlState};
use uuid::Uuid;

/// What a tenant's statements may add to and never change.
const APPEND_ONLY: [&str; 2] = ["audit_events", "bus_events"];

/// The table that the app role has no rights in at all.
const SYSTEMS_OWN: &str = "request_rates";
/// A calendar that B alone has.
const ONLY_B: &str = "only-b";
/// An address that B alone has mailed to.
const ONLY_BS_ADDRESS: &str = "ada@b.example";

/// Every row of a tenant, as the superuser sees it.
async fn rows_of(admin: &Client, tenant: TenantId) -> BTreeMap<String, Vec<String>> {
    let mut dump = BTreeMap::new();
    for (table, column) in tenant_tables(admin).await {
        let sql = format!(
            "SELECT to_jsonb(t)::text FROM {table} t WHERE {column} = $1 ORDER BY to_jsonb(t)::text"
        );
        let rows = admin.query(&sql, &[&tenant.uuid()]).await.unwrap();
        dump.insert(table, rows.iter().map(|row| row.get(0)).collect());
    }
    dump
}

#[tokio::test]
async fn no_function_reaches_another_tenant() {
    let world = World::new().await;
    make_expirable(&world).await;
    let of_b = world.stage.tx(world.b.tenant.id).await.unwrap();
    let name = CalendarName::parse(ONLY_B).unwrap();
    calendars::insert(&of_b, CalendarId::new(), &name, &christmas())
        .await
        .unwrap();
    of_b.commit().await.unwrap();
    let mailed = "UPDATE deliveries SET kind = 'email', target = $2 WHERE id = $1";
    let admin = &world.stage.admin;
    let changed = admin
        .execute(mailed, &[&world.b.exhausted.uuid(), &ONLY_BS_ADDRESS])
        .await;
    assert_eq!(changed.unwrap(), 1);
    let before = rows_of(&world.stage.admin, world.b.tenant.id).await;
    for (table, rows) in &before {
        assert!(!rows.is_empty(), "B has no row in {table}");
    }
    let functions = public_functions();
    assert!(functions.len() > 60, "{functions:?}");
    for function in &functions {
        case(function, &world).await;
        let after = rows_of(&world.stage.admin, world.b.tenant.id).await;
        assert_eq!(before, after, "{function} changed a row of B");
    }

    // B's rows were there to be changed: the same calls by B itself do it.
    let b = world.stage.tx(world.b.tenant.id).await.unwrap();
    let expired = retention::expire(b, 10, false).await.unwrap();
    assert_eq!(
        (
            expired.runs,
            expired.idempotency_keys,
            expired.prompts,
            expired.backfills
        ),
        (1, 1, 1, 1)
    );
    let b = world.stage.tx(world.b.tenant.id).await.unwrap();
    assert_eq!(
        runs::cancel_queued(&b, world.b.due, "test").await.unwrap(),
        1
    );
    let redelivered = deliveries::redeliver(&b, world.b.sending.delivery_id)
        .await
        .unwrap();
    assert_eq!(redelivered, Redeliver::UnderWay(DeliveryStatus::Sending));
    assert_eq!(
        auth::revoke_key(&b, world.b.key).await.unwrap(),
        Revoke::Revoked
    );
    assert!(prompts::tombstone(&b, world.b.due).await.unwrap());
    b.commit().await.unwrap();
    let b = world.stage.tx(world.b.tenant.id).await.unwrap();
    let address = EmailAddress::parse(ONLY_BS_ADDRESS).unwrap();
    let noted = suppression::note(b, &report_of_b(&world, &[address])).await;
    assert_eq!(noted.unwrap(), Noted::Noted { added: 1 });
    let b = world.stage.tx(world.b.tenant.id).await.unwrap();
    assert!(sync::mark_drifted(b, world.b.followed).await.unwrap());
}

/// Calls one function as A with what belongs to B, and checks what it says.
async fn case(function: &str, world: &World) {
    let (module, name) = function.split_once("::").unwrap();
    match module {
        "audit" => audit_case(name, world).await,
        "auth" => match name {
            "user_with_email" | "insert_key" | "keys" | "revoke_key" => {
                auth_case(name, world).await;
            }
            _ => user_case(name, world).await,
        },
        "backfills" => backfill_case(name, world).await,
        "calendars" => calendar_case(name, world).await,
        "deliveries" => delivery_case(name, world).await,
        "events" => event_case(name, world).await,
        "history" => history_case(name, world).await,
        "idempotency" => idempotency_case(name, world).await,
        "preview" => preview_case(name, world).await,
        "provider_keys" => provider_key_case(name, world).await,
        "prompts" => match name {
            "insert" | "replace" | "set_status" | "tombstone" | "drop_slots" => {
                prompt_write_case(name, world).await;
            }
            _ => prompt_read_case(name, world).await,
        },
        "runs" => match name {
            "enqueue" | "cancel" | "cancel_queued" | "retry" => {
                run_request_case(name, world).await;
            }
            "lock_due" | "write_plan" | "glance" | "write_glanced" | "lock" | "claim" | "defer"
            | "skip" | "take_over" => {
                run_claim_case(name, world).await;
            }
            _ => run_record_case(name, world).await,
        },
        "suppression" => suppression_case(name, world).await,
        "sync" => sync_case(name, world).await,
        "system" => match name {
            "identify_key" | "identify_user" => identity_case(name, world).await,
            "due_prompts" | "due_runs" | "due_deliveries" | "tenants" => {
                system_case(name, world).await;
            }
            _ => drift_case(name, world).await,
        },
        "tenants" => tenant_case(name, world).await,
        "versions" => version_case(name, world).await,
        _ => other_case(function, world).await,
    }
}

fn no_case(module: &str, name: &str) -> ! {
    panic!("{module}::{name} has no isolation case: call it here as A with the ids of B")
}

async fn audit_case(name: &str, world: &World) {
    let tx = world.a().await;
    let filter = audit::Filter {
        action: None,
        since: None,
        until: None,
        after: None,
        rows_max: 100,
    };
    let of_b = Some(world.b.key.uuid());
    match name {
        "list" => {
            let events = audit::list(&tx, &filter).await.unwrap();
            assert!(!events.is_empty());
            assert!(events.iter().all(|event| event.target_id != of_b));
        }
        "list_of_target" => {
            let events = audit::list_of_target(&tx, world.b.key.uuid(), &filter).await;
            assert!(events.unwrap().is_empty());
        }
        _ => no_case("audit", name),
    }
    tx.commit().await.unwrap();
}

async fn auth_case(name: &str, world: &World) {
    let tx = world.a().await;
    match name {
        "user_with_email" => {
            let user = auth::user_with_email(&tx, &world.b.email, Role::Owner).await;
            assert_ne!(user.unwrap(), world.b.tenant.user);
        }
        "insert_key" => {
            let key = new_key(ApiKeyId::new(), world.b.tenant.user);
            auth::insert_key(&tx, &key).await.unwrap_err();
            return;
        }
        "keys" => {
            let keys = auth::keys(&tx, None, 100).await.unwrap();
            assert_eq!(keys.len(), 1);
            assert_eq!(keys[0].id, world.a.key);
        }
        "revoke_key" => {
            let revoked = auth::revoke_key(&tx, world.b.key).await.unwrap();
            assert_eq!(revoked, Revoke::NoSuchKey);
        }
        _ => no_case("auth", name),
    }
    tx.commit().await.unwrap();
}

async fn user_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    let mut spec = member("c");
    spec.identity = None;
    match name {
        "insert_user" => {
            // B's address and a subject of B's are free in A.
            spec.email.clone_from(&member("b").email);
            let made = auth::insert_user(&tx, &spec).await.unwrap().unwrap();
            assert_ne!(made.id, b.member);
        }
        "users" => {
            let users = auth::users(&tx, None, 100).await.unwrap();
            assert!(users.iter().any(|user| user.id == world.a.member));
            assert!(
                users
                    .iter()
                    .all(|user| ![b.member, b.tenant.user].contains(&user.id))
            );
        }
        "user" => assert_eq!(auth::user(&tx, b.member).await.unwrap(), None),
        "user_to_change" => {
            assert_eq!(auth::user_to_change(&tx, b.member).await.unwrap(), None);
            // B need not wait for A.
            let of_b = world.stage.tx(b.tenant.id).await.unwrap();
            auth::user_to_change(&of_b, b.member).await.unwrap();
            of_b.rollback().await.unwrap();
        }
        "change_user" => {
            let changed = auth::change_user(&tx, b.member, &spec).await;
            assert_eq!(changed.unwrap(), None);
        }
        "remove_user" => {
            let removed = auth::remove_user(&tx, b.member).await.unwrap();
            assert_eq!(removed, Removed::NoSuchUser);
        }
        _ => no_case("auth", name),
    }
    tx.commit().await.unwrap();
}

/// What a caller is, the system functions say of every tenant: of the one that the key is of, or that
/// is named. What they count by that is taken back here.
async fn identity_case(name: &str, world: &World) {
    let (db, b) = (world.db(), &world.b);
    let keep = "CREATE TEMP TABLE rates AS TABLE request_rates;
                CREATE TEMP TABLE used AS SELECT id, last_used_at FROM api_keys";
    world.stage.admin.batch_execute(keep).await.unwrap();
    match name {
        "identify_key" => {
            let found = system::identify_key(db, b.key, &HASH).await.unwrap();
            assert_eq!(tenant_of(&found), Some(b.tenant.id));
            let guessed = system::identify_key(db, b.key, &[2; 32]).await.unwrap();
            assert_eq!(guessed, Identified::Nobody);
        }
        "identify_user" => {
            let who = identity();
            let (issuer, subject) = (&*who.issuer, &*who.subject);
            for tenant in [world.a.tenant.id, b.tenant.id] {
                let found = system::identify_user(db, issuer, subject, Some(tenant)).await;
                assert_eq!(tenant_of(&found.unwrap()), Some(tenant));
            }
            let found = system::identify_user(db, issuer, subject, None).await;
            let mut both = vec![world.a.tenant.id, b.tenant.id];
            both.sort();
            assert_eq!(found.unwrap(), Identified::OfSeveral(both));
            for (issuer, subject) in [("https://other.example", subject), (issuer, "another")] {
                let found = system::identify_user(db, issuer, subject, Some(b.tenant.id)).await;
                assert_eq!(found.unwrap(), Identified::Nobody);
            }
        }
        _ => no_case("system", name),
    }
    let take_back = "DELETE FROM request_rates; INSERT INTO request_rates TABLE rates;
                     UPDATE api_keys k SET last_used_at = used.last_used_at FROM used WHERE used.id = k.id;
                     DROP TABLE rates, used";
    world.stage.admin.batch_execute(take_back).await.unwrap();
}

fn tenant_of(found: &Identified) -> Option<TenantId> {
    match found {
        Identified::Is(member) => Some(member.tenant_id),
        Identified::Nobody
        | Identified::TooManyAttempts { .. }
        | Identified::OfSeveral(_)
        | Identified::Refused(..) => None,
    }
}

async fn backfill_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    match name {
        "lock_prompt" => {
            let found = backfills::lock_prompt(&tx, b.excluding).await;
            assert!(found.unwrap().is_none());
        }
        "insert" => {
            row_count(backfills::insert(&tx, &a_backfill(b.due)).await);
            tx.commit().await.unwrap();
        }
        "get" => assert_eq!(backfills::get(tx, b.backfill).await.unwrap(), None),
        "list" => {
            let found = backfills::list(tx, b.excluding, None, 100).await;
            assert_eq!(found.unwrap(), None);
        }
        "cancel" => {
            let answer = backfills::cancel(&tx, b.backfill).await.unwrap();
            assert_eq!(answer, Cancelled::NoSuchBackfill);
            tx.commit().await.unwrap();
        }
        _ => no_case("backfills", name),
    }
}

/// A has a key of the same provider.
async fn provider_key_case(name: &str, world: &World) {
    let (tx, a, b) = (world.a().await, &world.a, &world.b);
    let provider = KeyedProvider::OpenAi;
    match name {
        "list" => {
            let found = provider_keys::list(tx, None, 100).await.unwrap();
            let ids: Vec<_> = found.iter().map(|one| one.id).collect();
            assert_eq!(ids, [a.provider_key]);
        }
        "lock" => {
            assert_eq!(provider_keys::lock(&tx, provider).await.unwrap(), Some(1));
            // B need not wait for A.
            let of_b = world.stage.tx(b.tenant.id).await.unwrap();
            provider_keys::lock(&of_b, provider).await.unwrap();
            of_b.rollback().await.unwrap();
        }
        "put" => {
            let made = provider_keys::put(&tx, &a_provider_key()).await.unwrap();
            assert_eq!((made.id, made.version), (a.provider_key, 2));
            tx.commit().await.unwrap();
        }
        "delete" => {
            let gone = provider_keys::delete(&tx, provider).await.unwrap();
            assert_eq!(gone, Some(a.provider_key));
            tx.rollback().await.unwrap();
        }
        "sealed" => {
            let admin = &world.stage.admin;
            let sql = "UPDATE provider_keys SET key_sealed = 'of A' WHERE tenant_id = $1";
            admin.execute(sql, &[&a.tenant.id.uuid()]).await.unwrap();
            let sealed = provider_keys::sealed(tx, provider).await.unwrap();
            assert_eq!(sealed, Some(b"of A".to_vec()));
        }
        _ => no_case("provider_keys", name),
    }
}

/// A has a calendar of the same name, and its days are its own.
async fn calendar_case(name: &str, world: &World) {
    let (tx, a, b) = (world.a().await, &world.a, &world.b);
    match name {
        "holidays" => {
            let sql = "UPDATE calendars SET days = '[]' WHERE tenant_id = $1";
            let admin = &world.stage.admin;
            admin.execute(sql, &[&a.tenant.id.uuid()]).await.unwrap();
            let holidays = calendars::holidays(&tx, &[CALENDAR]).await.unwrap();
            let mut none = Holidays::default();
            none.insert(calendar_name(), []);
            assert_eq!(holidays, none);
        }
        "list" => {
            let found = calendars::list(tx, None, 100).await.unwrap();
            let ids: Vec<_> = found.iter().map(|one| one.id).collect();
            assert_eq!(ids, [a.calendar]);
        }
        "get" => {
            let found = calendars::get(tx, &calendar_name()).await.unwrap().unwrap();
            assert_eq!(found.id, a.calendar);
        }
        "get_to_change" => {
            let found = calendars::get_to_change(&tx, &calendar_name())
                .await
                .unwrap();
            assert_eq!(
                (found.calendars, found.calendar.unwrap().id),
                (1, a.calendar)
            );
            // B need not wait for A.
            let of_b = world.stage.tx(b.tenant.id).await.unwrap();
            calendars::get_to_change(&of_b, &calendar_name())
                .await
                .unwrap();
            of_b.rollback().await.unwrap();
        }
        "insert" => {
            let name = CalendarName::parse("more").unwrap();
            let made = calendars::insert(&tx, b.calendar, &name, &christmas()).await;
            // An id of B's is as good as any other: the key begins with the tenant.
            assert_eq!(made.unwrap().version, 1);
        }
        "replace" => {
            row_count(calendars::replace(&tx, b.calendar, 1, &christmas()).await);
        }
        "holidays_beside" => {
            let found = calendars::holidays_beside(&tx, b.calendar).await.unwrap();
            assert_eq!(found, Holidays::default());
        }
        "lock_prompts" => {
            let found = calendars::lock_prompts(&tx, b.calendar, None, 100).await;
            assert!(found.unwrap().1.is_empty());
        }
        "move_slots" => {
            let moved = [(b.due, None), (b.excluding, Some(Utc::now()))];
            assert_eq!(calendars::move_slots(&tx, &moved).await.unwrap(), 0);
            tx.commit().await.unwrap();
        }
        "users" => {
            let users = calendars::users(&tx, b.calendar, 10).await.unwrap();
            assert_eq!((users.count, users.ids), (0, Vec::new()));
        }
        "delete" => {
            assert!(!calendars::delete(&tx, b.calendar).await.unwrap());
            tx.commit().await.unwrap();
        }
        _ => no_case("calendars", name),
    }
}

/// A report on the email of B.
fn report_of_b<'a>(world: &World, addresses: &'a [EmailAddress]) -> Feedback<'a> {
    Feedback {
        delivery_id: world.b.exhausted,
        run_id: world.b.failed,
        prompt_id: world.b.due,
        addresses,
        suppress: Some(Reason::Complaint),
        kind: "complaint",
        message_id: "message",
        report_id: "report",
    }
}

/// A has suppressed the same address, and that is its own affair.
async fn suppression_case(name: &str, world: &World) {
    let tx = world.a().await;
    let address = EmailAddress::parse(SUPPRESSED).unwrap();
    match name {
        "note" => {
            let address = EmailAddress::parse(ONLY_BS_ADDRESS).unwrap();
            let noted = suppression::note(tx, &report_of_b(world, &[address])).await;
            assert_eq!(noted.unwrap(), Noted::NotOurs);
        }
        // The functions come by name: `delete` has emptied A's list.
        "list" => assert_eq!(suppression::list(tx, None, 100).await.unwrap(), []),
        "delete" => {
            let found = suppression::delete(&tx, &address).await.unwrap();
            assert!(found.is_some());
            assert_eq!(suppression::delete(&tx, &address).await.unwrap(), None);
            tx.commit().await.unwrap();
        }
        _ => no_case("suppression", name),
    }
}

async fn version_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    match name {
        "list" => {
            let found = versions::list(tx, b.due, None, 100).await;
            assert_eq!(found.unwrap(), None);
        }
        "get" => assert_eq!(versions::get(tx, b.due, 1).await.unwrap(), None),
        "find" => assert_eq!(versions::find(&tx, b.due, 1).await.unwrap(), None),
        _ => no_case("versions", name),
    }
}

async fn delivery_case(name: &str, world: &World) {
    let b = &world.b;
    let all_well = settled(DeliveryStatus::Delivered);
    match name {
        "lock_due" => {
            let tx = world.a().await;
            let found = deliveries::lock_due(&tx, b.waiting).await.unwrap();
            assert!(found.is_none());
        }
        "claim" => {
            let locked = world.delivery_of_b().await;
            let tx = world.a().await;
            stale(deliveries::claim(tx, &locked, true, LONG_MS).await);
        }
        "renew" => stale(deliveries::renew(world.a().await, &b.sending, LONG_MS).await),
        "settle" => {
            let tx = world.a().await;
            stale(deliveries::settle(&tx, &b.sending, &all_well).await);
        }
        "finish" => {
            let end = world
                .of_b(async |tx| deliveries::settle(tx, &b.sending, &all_well).await)
                .await
                .unwrap();
            let tx = world.a().await;
            deliveries::finish(tx, &b.sending, &all_well, &end, &[], LONG_MS, None)
                .await
                .unwrap_err();
        }
        "settle_delivered" => {
            let claim = DeliveryClaim {
                tenant_id: world.a.tenant.id,
                ..b.sending
            };
            stale(deliveries::settle_delivered(world.db(), &claim, &all_well).await);
        }
        "redeliver" => {
            let tx = world.a().await;
            let answer = deliveries::redeliver(&tx, b.exhausted).await.unwrap();
            assert_eq!(answer, Redeliver::NoSuchDelivery);
            tx.commit().await.unwrap();
        }
        _ => no_case("deliveries", name),
    }
}

async fn history_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    let page = RunPage {
        order: Order::Desc,
        after: None,
        rows_max: 100,
    };
    match name {
        "runs" => {
            let of_b = [b.queued, b.failed, b.running.run_id, b.generated];
            let found = history::runs(tx, &RunFilter::default(), &page)
                .await
                .unwrap();
            assert!(!found.is_empty());
            assert!(found.iter().all(|run| !of_b.contains(&run.id)));
            let filter = RunFilter {
                prompt_id: Some(b.due),
                ..RunFilter::default()
            };
            let found = history::runs(world.a().await, &filter, &page).await;
            assert!(found.unwrap().is_empty());
        }
        "runs_of_prompt" => {
            let found = history::runs_of_prompt(tx, b.due, &RunFilter::default(), &page).await;
            assert!(found.unwrap().is_none());
        }
        "run" => assert!(history::run(tx, b.failed).await.unwrap().is_none()),
        "logs" => {
            let found = history::logs(tx, b.failed, None, 100).await;
            assert!(found.unwrap().is_none());
        }
        "deliveries" => {
            let found = history::deliveries(tx, b.failed).await;
            assert!(found.unwrap().is_none());
        }
        "delivery" => {
            let found = history::delivery(&tx, b.exhausted).await;
            assert!(found.unwrap().is_none());
        }
        "waiting_deliveries" => {
            let found = history::waiting_deliveries(&tx, b.generated).await;
            assert!(found.unwrap().is_empty());
        }
        "run_summary" => {
            let found = history::run_summary(&tx, b.failed).await;
            assert!(found.unwrap().is_none());
        }
        _ => no_case("history", name),
    }
}

async fn idempotency_case(name: &str, world: &World) {
    match name {
        "begin" => {
            // B works on a request under this key, and has answered the other one.
            let busy = "a key in flight";
            let b = world.stage.tx(world.b.tenant.id).await.unwrap();
            let begun = idempotency::begin(&b, busy, &HASH).await.unwrap();
            assert!(matches!(begun, Begin::Fresh), "{begun:?}");
            let tx = world.a().await;
            let begun = idempotency::begin(&tx, busy, &HASH).await.unwrap();
            assert!(matches!(begun, Begin::Fresh), "{begun:?}");
            let a_has_none = "a key of B alone";
            idempotency::commit(
                b,
                None,
                Some(&idempotency::Answer {
                    key: a_has_none.to_owned(),
                    ..kept_answer()
                }),
            )
            .await
            .unwrap();
            let begun = idempotency::begin(&tx, a_has_none, &HASH).await.unwrap();
            assert!(matches!(begun, Begin::Fresh), "{begun:?}");
            let sql = "DELETE FROM idempotency_keys WHERE key = $1";
            world
                .stage
                .admin
                .execute(sql, &[&a_has_none])
                .await
                .unwrap();
        }
        "commit" => {
            let event = event(Some(world.b.due.uuid()));
            idempotency::commit(world.a().await, Some(&event), Some(&kept_answer()))
                .await
                .unwrap();
        }
        _ => no_case("idempotency", name),
    }
}

async fn preview_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    match name {
        "basis" => {
            let basis = preview::basis(&tx, Some(b.due), &[ONLY_B]).await.unwrap();
            assert_eq!(basis.limits.holidays, Holidays::default());
            assert_eq!(basis.past, None);
            tx.rollback().await.unwrap();
            let own = preview::basis(&world.a().await, Some(world.a.due), &[]).await;
            assert!(own.unwrap().past.is_some_and(|past| past.run_count > 0));
        }
        "conflicts" => {
            let slot = DateTime::from_timestamp(4_000_000_020, 0).unwrap();
            for _ in 0..12 {
                stage::prompt(world.db(), world.a.tenant, &json!({}), Some(slot))
                    .await
                    .unwrap();
            }
            let own = preview::conflicts(tx, &[slot], None).await.unwrap();
            assert_eq!(own, [(slot, 12)]);
            let of_b = world.stage.tx(b.tenant.id).await.unwrap();
            let found = preview::conflicts(of_b, &[slot], None).await.unwrap();
            assert_eq!(found, []);
        }
        _ => no_case("preview", name),
    }
}

async fn prompt_read_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    let actives = "SELECT count(*) FROM scheduled_prompts p JOIN tenants t ON t.id = p.tenant_id
                    WHERE t.name = 'a' AND p.status = 'active' AND deleted_at IS NULL";
    let actives = world.stage.count(actives).await.unwrap();
    match name {
        "limits" => {
            let limits = prompts::limits(tx, &[ONLY_B]).await.unwrap();
            assert_eq!(limits.active_prompts, actives);
            assert_eq!(limits.holidays, Holidays::default());
        }
        "limits_to_create" => {
            let limits = prompts::limits_to_create(&tx, b.tenant.user, &[ONLY_B]).await;
            let limits = limits.unwrap();
            assert_eq!(limits.active_prompts, actives);
            assert_eq!(limits.owner_email, None);
            assert_eq!(limits.holidays, Holidays::default());
        }
        "get_to_change" => {
            let found = prompts::get_to_change(&tx, b.due, &[]).await;
            assert!(found.unwrap().is_none());
            let (limits, _) = prompts::get_to_change(&tx, world.a.due, &[ONLY_B])
                .await
                .unwrap()
                .unwrap();
            assert_eq!(limits.holidays, Holidays::default());
        }
        "get_to_resume" => {
            assert!(prompts::get_to_resume(&tx, b.due).await.unwrap().is_none());
        }
        "get" => assert_eq!(prompts::get(tx, b.due).await.unwrap(), None),
        "list" => {
            let owner = prompts::Filter {
                user_id: Some(b.tenant.user),
                ..prompts::Filter::default()
            };
            let found = prompts::list(tx, &owner, &Sort::Name(None), Order::Asc, 100).await;
            assert_eq!(found.unwrap(), []);
            for filter in [
                prompts::Filter::default(),
                prompts::Filter {
                    external_id: Some("the same id".to_owned()),
                    ..prompts::Filter::default()
                },
            ] {
                let sort = Sort::Created(None);
                let found = prompts::list(world.a().await, &filter, &sort, Order::Desc, 100).await;
                let found = found.unwrap();
                assert!(!found.is_empty());
                assert!(
                    found
                        .iter()
                        .all(|prompt| prompt.user_id == world.a.tenant.user)
                );
            }
        }
        _ => no_case("prompts", name),
    }
}

async fn prompt_write_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    let spec = spec(&json!({"prompt_name": "taken over"}));
    match name {
        "insert" => {
            let mut new = NewPrompt {
                id: b.due,
                user_id: world.a.tenant.user,
                spec: &spec,
                next_run_at: None,
                webhook_urls: &[HOOK],
                calendars: &[ONLY_B],
            };
            // An id of B's is as good as any other: the key begins with the tenant.
            prompts::insert(&tx, &new).await.unwrap();
            new.user_id = b.tenant.user;
            new.id = PromptId::new();
            prompts::insert(&tx, &new).await.unwrap_err();
        }
        "replace" => {
            let change = NewSpec {
                id: b.due,
                version: 1,
                spec: &spec,
                next_run_at: Some(None),
                reschedules: true,
                webhook_urls: &[HOOK],
                calendars: Some(&[CALENDAR]),
            };
            row_count(prompts::replace(&tx, &change).await);
            tx.commit().await.unwrap();
        }
        "set_status" => {
            let change = NewStatus {
                id: b.due,
                version: 1,
                status: PromptStatus::Cancelled,
                reason: None,
                note: None,
                next_run_at: None,
            };
            row_count(prompts::set_status(&tx, &change).await);
            tx.commit().await.unwrap();
        }
        "tombstone" => {
            assert!(!prompts::tombstone(&tx, b.due).await.unwrap());
            tx.commit().await.unwrap();
        }
        "drop_slots" => {
            let slots = Dropped {
                first: Utc::now(),
                last: Utc::now(),
                count: 1,
            };
            let dropped = prompts::drop_slots(&tx, b.due, slots, "paused").await;
            assert_eq!(dropped.unwrap(), 0);
            tx.commit().await.unwrap();
        }
        _ => no_case("prompts", name),
    }
}

async fn run_claim_case(name: &str, world: &World) {
    let b = &world.b;
    match name {
        "lock_due" => {
            let tx = world.a().await;
            assert!(runs::lock_due(&tx, b.due).await.unwrap().is_none());
        }
        "write_plan" => {
            let due = world.due_of_b().await;
            let (plan, intent) = (plan(&due), intent(LONG_MS));
            assert!(!plan.rows.is_empty());
            let writing = Writing {
                plan: &plan,
                attempts_max: 1,
                run_id: RunId::new(),
                intent: Some(&intent),
                dropped: None,
            };
            runs::write_plan(world.a().await, &due, &writing)
                .await
                .unwrap_err();
        }
        "glance" => {
            let found = runs::glance(world.db(), world.a.tenant.id, b.due).await;
            assert!(found.unwrap().is_none());
        }
        "write_glanced" => {
            let glance = world.glance_of_b().await;
            let (plan, intent) = (plan(&glance.due), intent(LONG_MS));
            assert!(!plan.rows.is_empty());
            let writing = Writing {
                plan: &plan,
                attempts_max: 1,
                run_id: RunId::new(),
                intent: Some(&intent),
                dropped: None,
            };
            let a = world.a.tenant.id;
            let written = runs::write_glanced(world.db(), a, &glance, &writing).await;
            assert!(matches!(written, Err(DbError::StaleLook)), "{written:?}");
        }
        "lock" => {
            let tx = world.a().await;
            assert!(runs::lock(&tx, b.queued).await.unwrap().is_none());
        }
        "claim" => {
            let locked = world.run_of_b().await;
            let claim = runs::claim(world.a().await, &locked, &intent(LONG_MS), None).await;
            assert_eq!(claim.unwrap(), None);
        }
        "defer" => {
            let locked = world.run_of_b().await;
            runs::defer(world.a().await, &locked, LONG_MS)
                .await
                .unwrap();
        }
        "skip" => {
            let locked = world.run_of_b().await;
            runs::skip(world.a().await, &locked, "max_runs")
                .await
                .unwrap();
        }
        "take_over" => {
            let locked = world.run_of_b().await;
            let tx = world.a().await;
            stale(runs::take_over(&tx, &locked).await);
            tx.commit().await.unwrap();
        }
        _ => no_case("runs", name),
    }
}

async fn run_request_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    match name {
        "enqueue" => {
            let answer = runs::enqueue(&tx, b.due, RunTrigger::Manual).await.unwrap();
            assert_eq!(answer, Enqueue::NoSuchPrompt);
        }
        "cancel" => {
            let answer = runs::cancel(&tx, b.running.run_id).await.unwrap();
            assert_eq!(answer, Changed::NoSuchRun);
        }
        "cancel_queued" => {
            let changed = runs::cancel_queued(&tx, b.due, "deleted").await.unwrap();
            assert_eq!(changed, 0);
        }
        "retry" => {
            let answer = runs::retry(&tx, b.failed).await.unwrap();
            assert_eq!(answer, Changed::NoSuchRun);
        }
        _ => no_case("runs", name),
    }
    tx.commit().await.unwrap();
}

async fn run_record_case(name: &str, world: &World) {
    let (tx, claim) = (world.a().await, &world.b.running);
    let answer = answer("an answer of A's");
    let failed = failure("broken", AfterFailure::End(RunStatus::Failed));
    match name {
        "renew" => stale(runs::renew(tx, claim, LONG_MS).await),
        "record_output" => {
            let claim = Claim {
                tenant_id: world.a.tenant.id,
                ..*claim
            };
            let status = RunStatus::Succeeded;
            stale(runs::record_output(world.db(), &claim, &answer, status, &[], 1).await);
        }
        "record_failure" => stale(runs::record_failure(&tx, claim, &failed).await),
        "finish_failure" => {
            let recorded = world
                .of_b(async |b| runs::record_failure(b, claim, &failed).await)
                .await
                .unwrap();
            let writing = FailureWriting {
                attempt_status: "error",
                notices: &[],
                lease_ms: 1,
                dropped: None,
            };
            runs::finish_failure(tx, claim, &recorded, &failed, &writing)
                .await
                .unwrap_err();
        }
        "settle_late" => runs::settle_late(tx, claim, Some(&answer)).await.unwrap(),
        _ => no_case("runs", name),
    }
}

/// These look across tenants: what they give is a tenant's own id with each id of its objects.
async fn system_case(name: &str, world: &World) {
    let (db, b) = (world.db(), &world.b);
    let tenant_id = b.tenant.id;
    match name {
        "due_prompts" => {
            let prompt_id = b.due;
            let wake_up = WakeUp::Prompt {
                tenant_id,
                prompt_id,
            };
            assert!(
                system::due_prompts(db, 100)
                    .await
                    .unwrap()
                    .contains(&wake_up)
            );
        }
        "due_runs" => {
            let run_id = b.queued;
            let wake_up = WakeUp::Run { tenant_id, run_id };
            assert!(system::due_runs(db, 100).await.unwrap().contains(&wake_up));
        }
        "due_deliveries" => {
            let delivery_id = b.waiting;
            let wake_up = WakeUp::Delivery {
                tenant_id,
                delivery_id,
            };
            assert!(
                system::due_deliveries(db, 100)
                    .await
                    .unwrap()
                    .contains(&wake_up)
            );
        }
        "tenants" => {
            let found = system::tenants(db, Some(world.a.tenant.id), 100)
                .await
                .unwrap();
            assert_eq!(
                found.iter().map(|one| one.id).collect::<Vec<_>>(),
                [tenant_id]
            );
        }
        _ => no_case("system", name),
    }
}

/// These look across tenants too: each event is given with the tenant of what it tells.
async fn event_case(name: &str, world: &World) {
    let (db, admin) = (world.db(), &world.stage.admin);
    let keep = "CREATE TEMP TABLE kept AS SELECT * FROM bus_events";
    let put_back =
        "DELETE FROM bus_events; INSERT INTO bus_events SELECT * FROM kept; DROP TABLE kept";
    match name {
        "claim" | "settle" => {
            admin.batch_execute(keep).await.unwrap();
            let claimed = events::claim(db, 1000, 1000, LONG_MS).await.unwrap();
            admin.batch_execute(put_back).await.unwrap();
            assert!(
                claimed
                    .iter()
                    .any(|event| event.tenant_id == world.b.tenant.id)
            );
            for event in &claimed {
                let sql = "SELECT tenant_id FROM scheduled_prompts WHERE id = $1";
                let row = admin
                    .query_one(sql, &[&event.prompt_id.uuid()])
                    .await
                    .unwrap();
                assert_eq!(row.get::<_, Uuid>(0), event.tenant_id.uuid(), "{event:?}");
            }
            // Nobody holds them any more.
            let settled: Vec<_> = claimed
                .into_iter()
                .map(|event| (event, Outcome::Taken))
                .collect();
            assert_eq!(events::settle(db, &settled).await.unwrap(), 0);
        }
        "forget_parked" => assert_eq!(events::forget_parked(db, 100).await.unwrap(), 0),
        _ => no_case("events", name),
    }
}

async fn drift_case(name: &str, world: &World) {
    let (db, b) = (world.db(), &world.b);
    let (tenant_id, of_b) = (b.tenant.id, (b.tenant.id, b.followed));
    match name {
        "unsynced_tenants" => {
            let found = system::unsynced_tenants(db, world.a.tenant.id, 10).await;
            assert_eq!(found.unwrap(), [tenant_id]);
        }
        "unsynced_prompts" => {
            // Changes of A are all that is asked for.
            let a = world.a.tenant.id;
            let found = system::unsynced_prompts(db, &[a], 100).await.unwrap();
            assert!(found.iter().all(|(tenant, _)| *tenant == a), "{found:?}");
        }
        "prompts_with_entries" => {
            let found = system::prompts_with_entries(db, PromptId::BEFORE_ALL, 100).await;
            assert!(found.unwrap().contains(&of_b));
        }
        "entries_of" => {
            let found = system::entries_of(db, &[b.followed]).await.unwrap();
            let expected = EntryOwner {
                tenant_id,
                prompt_id: b.followed,
                is_manual: false,
                is_active: true,
            };
            assert_eq!(found, [expected]);
        }
        "drift_cursor" | "move_drift_cursor" => {
            let mut cursor = system::drift_cursor(db).await.unwrap();
            cursor.list_token = Some("next".to_owned());
            system::move_drift_cursor(db, &cursor).await.unwrap();
            assert_eq!(system::drift_cursor(db).await.unwrap(), cursor);
        }
        _ => no_case("system", name),
    }
}

async fn sync_case(name: &str, world: &World) {
    let (tx, b) = (world.a().await, &world.b);
    match name {
        "claim" => {
            let claimed = sync::claim(tx, b.due, APPLY_LEASE).await.unwrap();
            assert!(matches!(claimed, Claimed::NoSuchPrompt), "{claimed:?}");
        }
        "settle" => {
            // As for one that was overtaken: there is no row of that fence.
            let settled = sync::settle(tx, &b.applying).await.unwrap();
            assert_eq!(settled, Settled::Again);
        }
        "fail" => {
            let failure = sync::Failure {
                error: "taken over".to_owned(),
                retry_in: Duration::ZERO,
                is_refused: true,
                outcome_unknown: false,
            };
            sync::fail(tx, &b.applying, &failure).await.unwrap();
        }
        "synced" => assert!(sync::synced(tx, b.followed).await.unwrap().is_none()),
        "mark_drifted" => assert!(!sync::mark_drifted(tx, b.followed).await.unwrap()),
        "mark_stale" => {
            assert!(!sync::mark_stale(&tx, b.followed, 99).await.unwrap());
            tx.commit().await.unwrap();
        }
        _ => no_case("sync", name),
    }
}

async fn tenant_case(name: &str, world: &World) {
    let tx = world.a().await;
    match name {
        "create" => {
            let new = NewTenant {
                name: "b",
                owner_email: &world.b.email,
                webhook_secret_sealed: b"other",
            };
            let refused = tenants::create(&tx, &new).await.unwrap_err();
            assert_eq!(refused.unique_violation(), Some("tenants_pkey"));
            return;
        }
        "update" => {
            let changes = Changes {
                default_timezone: Some("Europe/London".to_owned()),
                ..Changes::default()
            };
            assert!(tenants::update(&tx, &changes).await.unwrap());
        }
        "set_status" => {
            for status in [TenantStatus::Suspended, TenantStatus::Active] {
                assert!(tenants::set_status(&tx, status).await.unwrap());
            }
        }
        "get" => assert_eq!(tenants::get(&tx).await.unwrap().unwrap().name, "a"),
        "first_owner" => {
            let owner = tenants::first_owner(&tx).await.unwrap();
            assert_eq!(owner, Some(world.a.tenant.user));
        }
        "webhook_secrets" => {
            // A's were rotated just now, B's never.
            tenants::rotate_webhook_secret(&tx, b"newer").await.unwrap();
            let secrets = tenants::webhook_secrets(&tx).await.unwrap();
            assert!(secrets.rotated_at.is_some());
        }
        "rotate_webhook_secret" => {
            tenants::rotate_webhook_secret(&tx, b"new").await.unwrap();
        }
        _ => no_case("tenants", name),
    }
    tx.commit().await.unwrap();
}

async fn other_case(function: &str, world: &World) {
    match function {
        "looks::put_off" => {
            let (tenant_id, b) = (world.a.tenant.id, &world.b);
            for wake_up in [
                WakeUp::Prompt {
                    tenant_id,
                    prompt_id: b.due,
                },
                WakeUp::Run {
                    tenant_id,
                    run_id: b.queued,
                },
                WakeUp::Delivery {
                    tenant_id,
                    delivery_id: b.waiting,
                },
            ] {
                looks::put_off(world.a().await, wake_up).await.unwrap();
            }
        }
        "health::latency" => drop(health::latency(world.db()).await.unwrap()),
        "migrate::run" => {
            let url = Secret::new(database_url(&world.stage.name));
            let applied = migrate::run(&url, &RolePasswords::default()).await.unwrap();
            assert!(applied.is_empty(), "{applied:?}");
        }
        // The same with other words for who logs in: the tests of a deployed stack call it.
        "migrate::run_stored" => {}
        "mod::connect" => drop(Db::connect(&config(&world.stage.name, 1)).await.unwrap()),
        "mod::connect_app" => drop(
            Db::connect_app(&config(&world.stage.name, 1))
                .await
                .unwrap(),
        ),
        "mod::tenant" => {
            let tx = world.db().tenant(world.a.tenant.id).await.unwrap();
            assert_eq!(tx.tenant(), world.a.tenant.id);
        }
        "retention::expire" => {
            let expired = retention::expire(world.a().await, 100, false)
                .await
                .unwrap();
            assert_eq!(expired, retention::Expired::default());
        }
        // The operator's, for a process that is gone: it works on all tenants, and gives nothing.
        "takeover::end_leases" => {}
        "tenant_tx::commit" => world.a().await.commit().await.unwrap(),
        "tenant_tx::rollback" => world.a().await.rollback().await.unwrap(),
        "wake_ups::is_known" => {
            let (tenant_id, b) = (world.a.tenant.id, &world.b);
            for wake_up in [
                WakeUp::Prompt {
                    tenant_id,
                    prompt_id: b.due,
                },
                WakeUp::Run {
                    tenant_id,
                    run_id: b.queued,
                },
                WakeUp::Delivery {
                    tenant_id,
                    delivery_id: b.waiting,
                },
            ] {
                let known = wake_ups::is_known(world.a().await, wake_up).await.unwrap();
                assert!(!known, "{wake_up:?}");
            }
        }
        _ => {
            let (module, name) = function.split_once("::").unwrap();
            no_case(module, name)
        }
    }
}

fn stale<T>(result: Result<T, DbError>) {
    match result {
        Err(DbError::StaleLease) => {}
        Err(other) => panic!("{other:?} instead of a stale lease"),
        Ok(_) => panic!("a claim of B's served A"),
    }
}

fn row_count<T>(result: Result<T, DbError>) {
    match result {
        Err(DbError::RowCount { changed: 0, .. }) => {}
        Err(other) => panic!("{other:?} instead of no row"),
        Ok(_) => panic!("a row of B's was changed by A"),
    }
}

#[tokio::test]
async fn without_a_tenant_there_are_no_rows_and_none_can_be_made() {
    let world = World::new().await;
    let app = connect(&role_url(&world.stage.name, "carillon_app"))
        .await
        .unwrap();
    // Never set, and set once before: the two read differently.
    for prepare in [
        "SELECT 1",
        "BEGIN; SET LOCAL app.current_tenant_id = 'x'; COMMIT",
    ] {
        app.batch_execute(prepare).await.unwrap();
        for (table, column) in tenant_tables(&world.stage.admin).await {
            let sql = format!("SELECT count(*) FROM {table}");
            if table == SYSTEMS_OWN {
                refused(app.execute(&sql, &[]).await, &table);
                continue;
            }
            assert_eq!(
                app.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0),
                0,
                "{table}"
            );
            if !APPEND_ONLY.contains(&table.as_str()) {
                let sql = format!("UPDATE {table} SET {column} = {column}");
                assert_eq!(app.execute(&sql, &[]).await.unwrap(), 0, "{table}");
                let sql = format!("DELETE FROM {table}");
                assert_eq!(app.execute(&sql, &[]).await.unwrap(), 0, "{table}");
            }
            let row = row_of(&world, &table, column, world.b.tenant.id).await;
            refused(insert(&world, &app, &table, &row).await, &table);
        }
    }
}

#[tokio::test]
async fn a_row_for_another_tenant_is_refused() {
    let world = World::new().await;
    let app = connect(&role_url(&world.stage.name, "carillon_app"))
        .await
        .unwrap();
    let (a, b) = (world.a.tenant.id, world.b.tenant.id);
    let set = format!("SET app.current_tenant_id = '{a}'");
    app.batch_execute(&set).await.unwrap();
    for (table, column) in tenant_tables(&world.stage.admin).await {
        let row = row_of(&world, &table, column, b).await;
        refused(insert(&world, &app, &table, &row).await, &table);
        let sql = format!("UPDATE {table} SET {column} = '{b}'");
        refused(app.execute(&sql, &[]).await, &table);
        let sql = format!("UPDATE {table} SET {column} = '{a}' WHERE {column} = '{b}'");
        match app.execute(&sql, &[]).await {
            Ok(changed) => assert_eq!(changed, 0, "{table}"),
            Err(error) => {
                let closed = APPEND_ONLY.contains(&table.as_str()) || table == SYSTEMS_OWN;
                assert!(closed, "{error:?}");
            }
        }
    }
}

/// Some row of a tenant.
async fn row_of(world: &World, table: &str, column: &str, tenant: TenantId) -> Value {
    let sql = format!("SELECT to_jsonb(t) FROM {table} t WHERE {column} = $1 LIMIT 1");
    let row = world.stage.admin.query_one(&sql, &[&tenant.uuid()]).await;
    row.unwrap().get(0)
}

async fn insert(
    world: &World,
    app: &Client,
    table: &str,
    row: &Value,
) -> Result<u64, tokio_postgres::Error> {
    let sql = "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
                WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT attisdropped
                  AND attgenerated = ''";
    let columns: String = world.stage.admin.query_one(sql, &[&table]).await?.get(0);
    let sql = format!(
        "INSERT INTO {table} ({columns})
         SELECT {columns} FROM jsonb_populate_record(NULL::{table}, $1)"
    );
    app.execute(&sql, &[row]).await
}

fn refused(result: Result<u64, tokio_postgres::Error>, table: &str) {
    let error = result.expect_err(table);
    assert_eq!(
        error.code(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        "{table}: {error:?}"
    );
}

/// A pool of one connection, so that each borrower meets what the one before it left.
async fn pool_of_one(tap: &Tap, world: &World) -> Db {
    let mut config = config(&world.stage.name, 1);
    config.app = Login::Url(Secret::new(tap.url(&world.stage.name, "carillon_app")));
    Db::connect(&config).await.unwrap()
}

/// What a connection says of itself, asked on that very connection.
async fn state(tap: &Tap, connection: usize) -> Option<String> {
    let sql = "SELECT coalesce(current_setting('app.current_tenant_id', true), '') || '/' ||
                      (now() <> statement_timestamp())";
    tap.ask(connection, sql).await.ok()?.pop()?.pop()?
}

async fn next_borrower_is_clean(tap: &Tap, db: &Db, world: &World, after: &str) {
    let tx = tokio::time::timeout(Duration::from_secs(20), db.tenant(world.b.tenant.id)).await;
    let tx = tx.unwrap().unwrap();
    let connection = tap.connections() - 1;
    let tenant = tenants::get(&tx).await.unwrap().unwrap();
    assert_eq!(tenant.name, "b", "{after}");
    let own = format!("{}/true", world.b.tenant.id);
    assert_eq!(state(tap, connection).await, Some(own), "{after}");
    tx.commit().await.unwrap();
    assert_eq!(
        state(tap, connection).await.as_deref(),
        Some("/false"),
        "{after}"
    );
}

#[tokio::test]
async fn the_next_borrower_of_a_connection_finds_nothing() {
    let world = World::new().await;
    let tap = Tap::open(Duration::ZERO).await.unwrap();
    let db = pool_of_one(&tap, &world).await;
    let a = world.a.tenant.id;
    next_borrower_is_clean(&tap, &db, &world, "the start").await;

    let tx = db.tenant(a).await.unwrap();
    let key = new_key(ApiKeyId::new(), UserId::new());
    auth::insert_key(&tx, &key).await.unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, DbError::Aborted), "{error:?}");
    next_borrower_is_clean(&tap, &db, &world, "a failed statement").await;

    let tx = db.tenant(a).await.unwrap();
    assert!(tenants::get(&tx).await.unwrap().is_some());
    let panicked = tokio::spawn(async move {
        let _held = tx;
        panic!("while it holds a transaction");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    next_borrower_is_clean(&tap, &db, &world, "a panic").await;

    let tx = db.tenant(a).await.unwrap();
    assert!(tenants::get(&tx).await.unwrap().is_some());
    tx.rollback().await.unwrap();
    next_borrower_is_clean(&tap, &db, &world, "a rollback").await;

    // Somebody locks the prompt, so that the statement below is under way when its future goes.
    let sql = format!(
        "BEGIN; SELECT FROM scheduled_prompts WHERE id = '{}' FOR UPDATE",
        world.a.due
    );
    world.stage.admin.batch_execute(&sql).await.unwrap();
    let tx = db.tenant(a).await.unwrap();
    let limit = Duration::from_millis(300);
    tokio::time::timeout(limit, runs::lock_due(&tx, world.a.due))
        .await
        .unwrap_err();
    drop(tx);
    next_borrower_is_clean(&tap, &db, &world, "a dropped future").await;
    world.stage.admin.batch_execute("ROLLBACK").await.unwrap();
    no_transaction_stays(&world).await;

    // The product never does this; a borrower that did would leave no trace either.
    let connection = tap.connections() - 1;
    let sql = format!("SET app.current_tenant_id = '{a}'; BEGIN; SELECT 1");
    tap.ask(connection, &sql).await.unwrap();
    assert_eq!(state(&tap, connection).await, Some(format!("{a}/true")));
    next_borrower_is_clean(&tap, &db, &world, "a setting of the session").await;
    assert_eq!(tap.connections() - 1, connection);
}

async fn no_transaction_stays(world: &World) {
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE usename = 'carillon_app' AND datname = current_database()
                  AND xact_start IS NOT NULL";
    for _ in 0..100 {
        if world.stage.count(sql).await.unwrap() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a dropped transaction is still open");
}

#[tokio::test]
async fn roles_that_could_pass_the_wall_are_refused_at_start() {
    let name = stage::migrated_database().await.unwrap();
    let admin = connect(&database_url(&name)).await.unwrap();
    let role = format!("test_{}", Uuid::now_v7().simple());
    let create = format!("CREATE ROLE {role} LOGIN");
    admin.batch_execute(&create).await.unwrap();
    let mut found = Vec::new();
    for (give, take, named) in [
        (
            "ALTER ROLE $1 SUPERUSER",
            "ALTER ROLE $1 NOSUPERUSER",
            "bypasses",
        ),
        (
            "ALTER ROLE $1 BYPASSRLS",
            "ALTER ROLE $1 NOBYPASSRLS",
            "bypasses",
        ),
        (
            "ALTER ROLE $1 CREATEROLE",
            "ALTER ROLE $1 NOCREATEROLE",
            "make itself",
        ),
        (
            "GRANT carillon_owner TO $1",
            "REVOKE carillon_owner FROM $1",
            "owns",
        ),
        (
            "GRANT carillon_definer TO $1",
            "REVOKE carillon_definer FROM $1",
            "is a member of carillon_definer",
        ),
        (
            "GRANT postgres TO $1",
            "REVOKE postgres FROM $1",
            "bypasses",
        ),
    ] {
        admin
            .batch_execute(&give.replace("$1", &role))
            .await
            .unwrap();
        let mut as_app = config(&name, 1);
        as_app.app = Login::Url(Secret::new(role_url(&name, &role)));
        let mut as_system = config(&name, 1);
        as_system.system = Login::Url(Secret::new(role_url(&name, &role)));
        for config in [&as_app, &as_system] {
            found.push((give, named, Db::connect(config).await.err()));
        }
        found.push((give, named, Db::connect_app(&as_app).await.err()));
        // What may not be used is not used later either, however often it is asked for.
        let late = Db::connect_app(&as_system).await.unwrap();
        for _ in 0..2 {
            found.push((give, named, health::latency(&late).await.err()));
        }
        admin
            .batch_execute(&take.replace("$1", &role))
            .await
            .unwrap();
    }
    let drop = format!("DROP ROLE {role}");
    admin.batch_execute(&drop).await.unwrap();
    for (give, named, error) in found {
        match error {
            Some(DbError::Role(words)) => assert!(words.contains(named), "{give}: {words}"),
            other => panic!("{give}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_role_that_cannot_make_its_commits_durable_is_refused_at_start() {
    let name = stage::migrated_database().await.unwrap();
    let admin = connect(&database_url(&name)).await.unwrap();
    drop(Db::connect(&config(&name, 1)).await.unwrap());
    let revoke = "DO $$ DECLARE f regprocedure; BEGIN
            FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
            END LOOP;
        END $$";
    admin.batch_execute(revoke).await.unwrap();
    match Db::connect(&config(&name, 1)).await.err() {
        Some(DbError::Role(words)) => assert!(words.contains("grant it EXECUTE"), "{words}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_migrations_at_once_both_succeed() {
    let admin = connect(&tests::postgres_url()).await.unwrap();
    let name = format!("test_{}", Uuid::now_v7().simple());
    let create = format!("CREATE DATABASE {name}");
    admin.batch_execute(&create).await.unwrap();
    let url = Secret::new(database_url(&name));
    let passwords = RolePasswords::default();
    let (first, second) = tokio::join!(
        migrate::run(&url, &passwords),
        migrate::run(&url, &passwords)
    );
    let mut applied = [first.unwrap(), second.unwrap()];
    applied.sort_by_key(Vec::len);
    assert!(applied[0].is_empty(), "{applied:?}");
    assert!(applied[1].len() >= 5, "{applied:?}");
    Db::connect(&config(&name, 1)).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_ahead_is_left_as_it_is() {
    let name = stage::migrated_database().await.unwrap();
    let admin = connect(&database_url(&name)).await.unwrap();
    admin.batch_execute(NEWER).await.unwrap();
    let before = history_of(&admin).await;
    let url = Secret::new(database_url(&name));
    let applied = migrate::run(&url, &RolePasswords::default()).await.unwrap();
    assert!(applied.is_empty(), "{applied:?}");
    assert_eq!(history_of(&admin).await, before);
    // The program's own start accepts it too.
    Db::connect(&config(&name, 1)).await.unwrap();
}

/// What a newer program leaves behind.
const NEWER: &str = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
     VALUES (99, 'unknown', '2026-01-01T00:00:00Z', '1')";

async fn history_of(admin: &Client) -> Vec<(i32, String)> {
    let sql = "SELECT version, checksum FROM refinery_schema_history ORDER BY version";
    let rows = admin.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_history_that_differs_is_refused() {
    const CHANGED: &str = "UPDATE refinery_schema_history SET checksum = '1' WHERE version = 2";
    const LACKING: &str = "DELETE FROM refinery_schema_history WHERE version = 3";
    const BETWEEN: &str = "UPDATE refinery_schema_history SET version = 0 WHERE version = 99";
    for (changes, names) in [
        (vec![CHANGED], "V2__tenants"),
        // Being ahead excuses neither.
        (vec![CHANGED, NEWER], "V2__tenants"),
        (vec![LACKING], "V3__prompts"),
        (vec![LACKING, NEWER], "V99__unknown"),
        (vec![NEWER, BETWEEN], "V0__unknown"),
    ] {
        let name = stage::migrated_database().await.unwrap();
        let admin = connect(&database_url(&name)).await.unwrap();
        for change in changes {
            admin.batch_execute(change).await.unwrap();
        }
        let before = history_of(&admin).await;
        let url = Secret::new(database_url(&name));
        let error = migrate::run(&url, &RolePasswords::default())
            .await
            .unwrap_err();
        assert!(matches!(error, DbError::Migration(_)), "{error:?}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(names), "{cause}");
        assert_eq!(history_of(&admin).await, before);
    }
}
