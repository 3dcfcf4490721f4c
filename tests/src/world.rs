//! Two tenants with one of everything, made by the product's own functions.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test may panic"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::api_key::Role;
use shared::calendar::Days;
use shared::db::{
    Db, TenantTx,
    audit::{Action, Actor, Event, Outcome},
    auth::{self, NewKey, OidcIdentity, UserSpec},
    backfills::{self, NewBackfill},
    calendars,
    deliveries::{self, DeliveryClaim, LockedDelivery},
    idempotency, prompts, provider_keys,
    runs::{self, Claim, LockedRun},
    sync::{self, Claimed, Settled},
    system::{self, Identified},
};
use shared::exclusion::CalendarName;
use shared::ids::{
    ApiKeyId, BackfillId, CalendarId, DeliveryId, PromptId, RunId, TenantId, UserId,
};
use shared::provider_key::KeyedProvider;
use shared::run::{DeliveryStatus, RunStatus, RunTrigger};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::stage::{Stage, Tenant, prompt, spec, tenant};
use crate::worker::{LONG_MS, Looked, enqueue, fire, resume, settle, settle_as, settled, succeed};

/// A webhook of both tenants that answered 410.
pub const HOOK: &str = "https://hooks.example/gone";
/// An `Idempotency-Key` of both tenants.
pub const KEY: &str = "the same key";
/// An address that both tenants have suppressed.
pub const SUPPRESSED: &str = "bounced@example.com";
/// Longer than any test takes to apply a prompt.
pub const APPLY_LEASE: Duration = Duration::from_secs(600);
/// The name of a calendar of both tenants.
pub const CALENDAR: &str = "holidays";
/// The hash of any request, and of any API key.
pub const HASH: [u8; 32] = [1; 32];

/// One tenant, and one of each of its objects.
pub struct Side {
    /// The tenant and its owner.
    pub tenant: Tenant,
    /// Address of its second user.
    pub email: String,
    /// That user's API key.
    pub key: ApiKeyId,
    /// A user of the same name to the issuer of tokens as the other tenant's.
    pub member: UserId,
    /// Has a slot that is due, and the last success.
    pub due: PromptId,
    /// A run of it that waits.
    pub queued: RunId,
    /// A run of it that failed because of its delivery.
    pub failed: RunId,
    /// That delivery.
    pub exhausted: DeliveryId,
    /// A run under way.
    pub running: Claim,
    /// A delivery that is being sent.
    pub sending: DeliveryClaim,
    /// A delivery whose next attempt has come.
    pub waiting: DeliveryId,
    /// The run of it.
    pub generated: RunId,
    /// The right to apply the prompt that is due.
    pub applying: sync::Claim,
    /// A prompt that the scheduler follows.
    pub followed: PromptId,
    /// A calendar that [`Side::excluding`] names.
    pub calendar: CalendarId,
    /// A prompt that is not due on that calendar's days.
    pub excluding: PromptId,
    /// A backfill of that prompt, with one run that waits.
    pub backfill: BackfillId,
    /// Its own key of OpenAI.
    pub provider_key: Uuid,
}

/// Both tenants and their database.
pub struct World {
    /// Their database.
    pub stage: Stage,
    /// Who calls.
    pub a: Side,
    /// Whose ids are named.
    pub b: Side,
}

impl World {
    /// In a fresh database.
    pub async fn new() -> Self {
        Self::on(Stage::new(6).await.unwrap()).await
    }

    /// In this database.
    pub async fn on(stage: Stage) -> Self {
        let a = side(&stage, "a").await;
        let b = side(&stage, "b").await;
        Self { stage, a, b }
    }

    /// As the product connects.
    pub fn db(&self) -> &Db {
        &self.stage.db
    }

    /// A transaction of tenant A.
    pub async fn a(&self) -> TenantTx {
        self.stage.tx(self.a.tenant.id).await.unwrap()
    }

    /// What B locked, after B has let it go.
    pub async fn of_b<T>(&self, look: impl AsyncFnOnce(&TenantTx) -> T) -> T {
        let tx = self.stage.tx(self.b.tenant.id).await.unwrap();
        let found = look(&tx).await;
        tx.rollback().await.unwrap();
        found
    }

    /// The due prompt of B as B locks it.
    pub async fn due_of_b(&self) -> runs::DuePrompt {
        self.of_b(async |tx| runs::lock_due(tx, self.b.due).await)
            .await
            .unwrap()
            .unwrap()
    }

    /// The same as B sees it without a lock.
    pub async fn glance_of_b(&self) -> runs::Glance {
        runs::glance(self.db(), self.b.tenant.id, self.b.due)
            .await
            .unwrap()
            .unwrap()
    }

    /// The waiting run of B as B locks it.
    pub async fn run_of_b(&self) -> LockedRun {
        self.of_b(async |tx| runs::lock(tx, self.b.queued).await)
            .await
            .unwrap()
            .unwrap()
    }

    /// The waiting delivery of B as B locks it.
    pub async fn delivery_of_b(&self) -> LockedDelivery {
        self.of_b(async |tx| deliveries::lock_due(tx, self.b.waiting).await)
            .await
            .unwrap()
            .unwrap()
    }
}

async fn side(stage: &Stage, name: &str) -> Side {
    let db = &stage.db;
    let tenant = tenant(db, name).await.unwrap();
    let email = format!("editor@{name}.example");
    let key = ApiKeyId::new();
    let tx = stage.tx(tenant.id).await.unwrap();
    let user_id = auth::user_with_email(&tx, &email, Role::Editor)
        .await
        .unwrap();
    auth::insert_key(&tx, &new_key(key, user_id)).await.unwrap();
    let member = auth::insert_user(&tx, &member(name)).await.unwrap();
    let event = event(Some(key.uuid()));
    idempotency::commit(tx, Some(&event), Some(&kept_answer()))
        .await
        .unwrap();

    let known = system::identify_key(db, key, &HASH).await.unwrap();
    assert!(matches!(known, Identified::Is(_)), "{known:?}");
    let due = due_prompt(db, tenant, &json!({"external_id": "the same id"})).await;
    let claim = fire(db, tenant.id, due, LONG_MS).await.unwrap().unwrap();
    succeed(db, &claim, 0).await.unwrap();
    let (failed, exhausted) = failed_run(stage, tenant, due).await;
    let queued = enqueue(db, tenant.id, due, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    set_due(stage, due).await;

    let other = due_prompt(db, tenant, &json!({})).await;
    let running = fire(db, tenant.id, other, LONG_MS).await.unwrap().unwrap();
    let third = due_prompt(db, tenant, &json!({})).await;
    let claim = fire(db, tenant.id, third, LONG_MS).await.unwrap().unwrap();
    let sent = succeed(db, &claim, 2).await.unwrap();
    settle(db, &sent[1], DeliveryStatus::Retrying)
        .await
        .unwrap();
    let applying = applying(db, tenant, due).await;
    let applied = self::applying(db, tenant, other).await;
    let tx = stage.tx(tenant.id).await.unwrap();
    assert_eq!(sync::settle(tx, &applied).await.unwrap(), Settled::Synced);
    suppress(stage, tenant.id).await;
    let (calendar, excluding) = excluding_prompt(stage, tenant).await;
    let backfill = backfill(stage, tenant, excluding).await;
    let tx = stage.tx(tenant.id).await.unwrap();
    let provider_key = provider_keys::put(&tx, &a_provider_key()).await.unwrap();
    tx.commit().await.unwrap();
    Side {
        applying,
        followed: other,
        tenant,
        email,
        key,
        member: member.unwrap().id,
        due,
        queued,
        failed,
        exhausted,
        running,
        sending: sent[0],
        waiting: sent[1].delivery_id,
        generated: claim.run_id,
        calendar,
        excluding,
        backfill,
        provider_key: provider_key.id,
    }
}

/// As a report on an email of this tenant would, though it has sent none.
async fn suppress(stage: &Stage, tenant: TenantId) {
    let sql = "INSERT INTO suppressed_addresses
                      (tenant_id, address, id, reason, delivery_id, message_id)
               VALUES ($1, $2, $3, 'bounce', $3, 'message')";
    let id = DeliveryId::new().uuid();
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&tenant.uuid(), &SUPPRESSED, &id];
    stage.admin.execute(sql, &params).await.unwrap();
}

async fn applying(db: &Db, tenant: Tenant, prompt: PromptId) -> sync::Claim {
    let tx = db.tenant(tenant.id).await.unwrap();
    match sync::claim(tx, prompt, APPLY_LEASE).await.unwrap() {
        Claimed::Ours(claim) => *claim,
        other @ (Claimed::Not(_) | Claimed::NoSuchPrompt) => panic!("{other:?}"),
    }
}

/// A calendar, and a prompt that names it and has no slot to come.
async fn excluding_prompt(stage: &Stage, tenant: Tenant) -> (CalendarId, PromptId) {
    let (calendar, id) = (CalendarId::new(), PromptId::new());
    let tx = stage.tx(tenant.id).await.unwrap();
    calendars::insert(&tx, calendar, &calendar_name(), &christmas())
        .await
        .unwrap();
    let spec = spec(&json!({ "exclusions": { "calendars": [CALENDAR] } }));
    let new = prompts::NewPrompt {
        id,
        user_id: tenant.user,
        spec: &spec,
        next_run_at: None,
        webhook_urls: &[],
        calendars: &[CALENDAR],
    };
    prompts::insert(&tx, &new).await.unwrap();
    tx.commit().await.unwrap();
    (calendar, id)
}

async fn backfill(stage: &Stage, tenant: Tenant, prompt_id: PromptId) -> BackfillId {
    let tx = stage.tx(tenant.id).await.unwrap();
    let new = a_backfill(prompt_id);
    let (made, first) = backfills::insert(&tx, &new).await.unwrap();
    assert!(made.slots.queued == 1 && first.is_some());
    tx.commit().await.unwrap();
    made.id
}

/// A backfill of one slot, to be stored.
pub fn a_backfill(prompt_id: PromptId) -> NewBackfill<'static> {
    const SLOT: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    NewBackfill {
        id: BackfillId::new(),
        prompt_id,
        from: SLOT,
        to: SLOT + TimeDelta::minutes(1),
        pace_s: 1,
        slots: &[SLOT],
        slots_to_come: 0,
        runs_max: 10,
    }
}

/// [`CALENDAR`].
pub fn calendar_name() -> CalendarName {
    CalendarName::parse(CALENDAR).unwrap()
}

/// The days of a calendar.
pub fn christmas() -> Days {
    let body = json!({ "days": [{ "date": "2026-12-25", "name": "Christmas Day" }] });
    Days::parse(&body, Utc::now()).unwrap()
}

async fn failed_run(stage: &Stage, tenant: Tenant, prompt: PromptId) -> (RunId, DeliveryId) {
    let db = &stage.db;
    let run = enqueue(db, tenant.id, prompt, RunTrigger::Manual)
        .await
        .unwrap()
        .unwrap();
    let claim = claimed(db, tenant.id, run).await;
    let sent = succeed(db, &claim, 1).await.unwrap();
    let mut gone = settled(DeliveryStatus::Exhausted);
    gone.gone_url = Some(HOOK.to_owned());
    let end = settle_as(db, &sent[0], &gone).await.unwrap();
    assert_eq!(end.status, Some(RunStatus::Failed));
    (run, sent[0].delivery_id)
}

async fn claimed(db: &Db, tenant: TenantId, run: RunId) -> Claim {
    match resume(db, tenant, run, LONG_MS).await.unwrap() {
        Looked::Claimed(claim) => claim,
        other @ (Looked::GaveUp | Looked::NoPlace | Looked::Other(_) | Looked::NoRun) => {
            panic!("{other:?}")
        }
    }
}

/// A prompt with one slot that is due: this minute's.
pub async fn due_prompt(db: &Db, tenant: Tenant, changes: &Value) -> PromptId {
    let slot = DateTime::from_timestamp(Utc::now().timestamp() / 60 * 60, 0).unwrap();
    prompt(db, tenant, changes, Some(slot)).await.unwrap()
}

async fn set_due(stage: &Stage, prompt: PromptId) {
    let sql =
        "UPDATE scheduled_prompts SET next_run_at = now() - interval '1 second' WHERE id = $1";
    let changed = stage.admin.execute(sql, &[&prompt.uuid()]).await.unwrap();
    assert_eq!(changed, 1);
}

/// A user to be stored, who is the same person in every tenant.
pub fn member(tenant: &str) -> UserSpec {
    UserSpec {
        email: format!("member@{tenant}.example"),
        role: Role::Viewer,
        identity: Some(identity()),
    }
}

/// That person.
pub fn identity() -> OidcIdentity {
    OidcIdentity {
        issuer: "https://issuer.example".to_owned(),
        subject: "the same subject".to_owned(),
    }
}

/// A key to be stored.
pub fn new_key(id: ApiKeyId, user_id: UserId) -> NewKey<'static> {
    NewKey {
        id,
        user_id,
        name: "a key",
        prefix: "ck_test_",
        hash: HASH,
        role: Role::Editor,
        expires_at: None,
    }
}

/// A tenant's own key of a provider, as it is stored.
pub fn a_provider_key() -> provider_keys::NewKey<'static> {
    provider_keys::NewKey {
        provider: KeyedProvider::OpenAi,
        sealed: b"sealed",
        fingerprint: "0123456789ab",
    }
}

/// A line for the audit trail.
pub fn event(target_id: Option<Uuid>) -> Event {
    Event {
        actor: Actor::Platform,
        action: Action::ApiKeyCreated,
        target_id,
        outcome: Outcome::Ok,
        request_id: "request".to_owned(),
        detail: json!({}),
    }
}

/// An answer to keep.
pub fn kept_answer() -> idempotency::Answer {
    idempotency::Answer {
        key: KEY.to_owned(),
        request_hash: HASH,
        status: 201,
        sealed: b"sealed".to_vec(),
    }
}

/// Each table with its tenant column.
pub async fn tenant_tables(admin: &Client) -> Vec<(String, &'static str)> {
    let sql = "SELECT relname::text FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
                  AND relname NOT IN ('refinery_schema_history', 'drift_cursor') ORDER BY 1";
    let rows = admin.query(sql, &[]).await.unwrap();
    rows.iter()
        .map(|row| row.get::<_, String>(0))
        .map(|table| {
            let column = if table == "tenants" {
                "id"
            } else {
                "tenant_id"
            };
            (table, column)
        })
        .collect()
}

/// `module::function` of every public function that talks to the database.
pub fn public_functions() -> Vec<String> {
    let mut names = Vec::new();
    for (module, text) in db_sources() {
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix("pub async fn ") else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            names.push(format!("{module}::{name}"));
        }
    }
    names.sort();
    names
}

/// The text of each file of `shared::db`, and the module that its functions are called by: a
/// sub-folder is one module.
pub fn db_sources() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/src/db");
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_file() {
            sources.push((module, fs::read_to_string(&path).unwrap()));
            continue;
        }
        for entry in fs::read_dir(&path).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            sources.push((module.clone(), text));
        }
    }
    sources
}

/// Gives B one of each thing that retention deletes.
pub async fn make_expirable(world: &World) {
    let forgotten = due_prompt(world.db(), world.b.tenant, &json!({})).await;
    let tx = world.stage.tx(world.b.tenant.id).await.unwrap();
    assert!(prompts::tombstone(&tx, forgotten).await.unwrap());
    tx.commit().await.unwrap();
    let tenant = world.b.tenant.id;
    let sql = format!(
        "UPDATE scheduled_prompt_runs SET completed_at = now() - interval '400 days'
          WHERE tenant_id = '{tenant}' AND status = 'succeeded';
         UPDATE scheduled_prompt_runs SET backfill_id = NULL WHERE tenant_id = '{tenant}';
         UPDATE backfills SET created_at = now() - interval '400 days' WHERE tenant_id = '{tenant}';
         UPDATE idempotency_keys SET created_at = now() - interval '2 days' WHERE tenant_id = '{tenant}';
         UPDATE scheduled_prompts SET deleted_at = now() - interval '2 hours'
          WHERE tenant_id = '{tenant}' AND deleted_at IS NOT NULL"
    );
    world.stage.admin.batch_execute(&sql).await.unwrap();
}
