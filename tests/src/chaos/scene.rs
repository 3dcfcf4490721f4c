//! One cell's world: a database of its own, two tenants, their prompts with slots that are due, and
//! what the servers outside say to each.
//!
//! The superuser never fakes a fact here. It lets time pass: a wait is over at once, and a lease when
//! its holder is dead or stopped, so that no cell depends on how fast the machine is.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use shared::{
    db::{
        Db, DbConfig,
        migrate::{self, RolePasswords},
        tenants::{self, NewTenant},
    },
    ids::{PromptId, TenantId},
    seal::{Purpose, Sealer},
    secret::Secret,
    webhook_secret::WebhookSecret,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use uuid::Uuid;

use super::process::{Order, Role, SEALING_KEY};
use crate::{
    connect, database, database_url, peers,
    stage::{self, Tenant, migrations_hash},
};

/// Slots of each prompt.
pub const SLOTS: usize = 2;

/// Longer than an output that is kept in its row.
const LONG_OUTPUT: usize = 300_000;

const POLL: Duration = Duration::from_millis(100);

/// Notes every change of a run's and a delivery's standing, who made it, and for whom; and every event.
const NOTES: &str = "
    CREATE TABLE chaos_changes (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        writer text NOT NULL, login text NOT NULL, acting_for uuid, kind text NOT NULL,
        tenant_id uuid NOT NULL, id uuid NOT NULL,
        old_status text, new_status text NOT NULL,
        old_fence bigint, new_fence bigint NOT NULL, lease_was_over boolean);
    CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        -- OLD is null where a row is inserted.
        INSERT INTO public.chaos_changes (writer, login, acting_for, kind, tenant_id, id, old_status,
                                          new_status, old_fence, new_fence, lease_was_over)
        SELECT current_setting('application_name'), session_user,
               nullif(current_setting('app.current_tenant_id', true), '')::uuid, TG_ARGV[0],
               NEW.tenant_id, NEW.id,
               OLD.status, NEW.status, OLD.fence, NEW.fence,
               OLD.lease_expires_at <= clock_timestamp();
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE OF status, fence, lease_expires_at
        ON scheduled_prompt_runs FOR EACH ROW EXECUTE FUNCTION chaos_note('run');
    CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE OF status, fence, lease_expires_at
        ON deliveries FOR EACH ROW EXECUTE FUNCTION chaos_note('delivery');
    CREATE TABLE chaos_events (id uuid PRIMARY KEY, type text NOT NULL, run_id uuid, tenant_id uuid NOT NULL);
    CREATE FUNCTION chaos_keep() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        INSERT INTO public.chaos_events VALUES (NEW.id, NEW.type, NEW.run_id, NEW.tenant_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_keep AFTER INSERT ON bus_events FOR EACH ROW EXECUTE FUNCTION chaos_keep();";

/// Whatever the product asks `now()` and `clock_timestamp()`, it finds these first.
const CLOCK: &str = "
    CREATE SCHEMA sim;
    CREATE TABLE sim.shift AS SELECT interval '0' AS by;
    CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT pg_catalog.now() + by FROM sim.shift';
    CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT pg_catalog.clock_timestamp() + by FROM sim.shift';
    GRANT USAGE ON SCHEMA sim TO PUBLIC;
    GRANT SELECT ON sim.shift TO PUBLIC;
    DO $$
    DECLARE ours record;
    BEGIN
        FOR ours IN SELECT oid::regprocedure AS called FROM pg_proc
                     WHERE proconfig::text LIKE '%search_path=pg_catalog%' AND prokind = 'f' AND pronamespace = 'public'::regnamespace
        LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = sim, pg_catalog, public, pg_temp', ours.called);
        END LOOP;
        FOR ours IN SELECT adrelid::regclass AS named, attname FROM pg_attrdef
                      JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
                     WHERE pg_get_expr(adbin, adrelid) IN ('now()', 'clock_timestamp()')
        LOOP
            EXECUTE format('ALTER TABLE %s ALTER %I SET DEFAULT sim.now()', ours.named, ours.attname);
        END LOOP;
    END $$";

/// What a prompt is there for, and how it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A webhook, an object and an email of each run.
    Plain,
    /// The model fails once, and then answers.
    Flaky,
    /// The model refuses; somebody is told.
    Broken,
    /// The model is broken for good, and is asked as often as the prompt allows.
    Hopeless,
    /// An output that is too long for its row.
    Long,
    /// A receiver that is busy twice.
    Busy,
    /// A receiver that is always busy.
    Deaf,
    /// An email that is rather held than sent twice.
    Careful,
    /// A model and a receiver that are slower than a lease.
    Slow,
}

/// A prompt of a scene.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Which.
    pub id: PromptId,
    /// Whose.
    pub tenant: TenantId,
    /// What it is there for.
    pub part: Part,
    /// Its slots.
    pub slots: Vec<DateTime<Utc>>,
}

/// A tenant of a scene.
#[derive(Debug, Clone)]
pub struct Side {
    /// The tenant and its owner.
    pub tenant: Tenant,
    /// Words that stand in its prompts and outputs, and nowhere else.
    pub canary: String,
    /// Its path at the webhook receiver.
    pub hooks: String,
}

/// One cell's world.
pub struct Scene {
    /// In the text of every prompt.
    pub mark: String,
    /// Its database.
    pub name: String,
    /// As the product connects, and past every fault.
    pub db: Db,
    /// A superuser, past every wall.
    pub admin: Client,
    /// The superuser's URL of the server, on the scene's database.
    pub admin_url: String,
    /// Where outbox, storage and logs lie.
    pub home: TempDir,
    /// Two tenants.
    pub sides: Vec<Side>,
    /// What must have run at the end.
    pub prompts: Vec<Prompt>,
}

/// What a scene is made of.
#[derive(Debug, Clone)]
pub struct Plot {
    /// The first tenant's prompts.
    pub first: Vec<Part>,
    /// The second one's.
    pub second: Vec<Part>,
    /// How late models answer.
    pub model_ms: u32,
    /// The receiver, or what stands before it.
    pub webhook_url: String,
}

impl Plot {
    /// Everything that a pass through the executor meets.
    #[must_use]
    pub fn full() -> Self {
        Self {
            first: vec![
                Part::Plain,
                Part::Flaky,
                Part::Broken,
                Part::Long,
                Part::Busy,
                Part::Careful,
            ],
            second: vec![Part::Plain],
            model_ms: 0,
            webhook_url: peers::webhook_url(),
        }
    }

    /// One prompt of the first tenant.
    #[must_use]
    pub fn single(part: Part) -> Self {
        Self {
            first: vec![part],
            second: Vec::new(),
            ..Self::full()
        }
    }
}

impl Scene {
    /// Makes it on the testbed's PostgreSQL.
    ///
    /// # Errors
    /// When a server does not answer.
    pub async fn new(plot: &Plot) -> Result<Self> {
        let template = format!("chaos_{}", migrations_hash()?);
        let name = database(&template, |url| async move { fill(&url).await }).await?;
        Self::on(plot, name.clone(), database_url(&name)).await
    }

    /// The same on a server of its own, whose database `name` is empty.
    ///
    /// # Errors
    /// When a server does not answer.
    pub async fn alone(plot: &Plot, name: String, admin_url: String) -> Result<Self> {
        fill(&admin_url).await?;
        Self::on(plot, name, admin_url).await
    }

    async fn on(plot: &Plot, name: String, admin_url: String) -> Result<Self> {
        let login = |role| Secret::new(as_role(&admin_url, role));
        let config = DbConfig::of_urls(login("carillon_app"), login("carillon_system"), 2, 1);
        let home = tempfile::Builder::new()
            .prefix("carillon-chaos-")
            .tempdir()?;
        fs::set_permissions(home.path(), Permissions::from_mode(0o755))?;
        let admin = connect(&admin_url).await?;
        // A stopped process may hold what is to be looked at.
        admin.batch_execute("SET lock_timeout = '500ms'").await?;
        let mut scene = Self {
            mark: Uuid::new_v4().simple().to_string(),
            db: Db::connect(&config).await?,
            admin,
            admin_url,
            name,
            home,
            sides: Vec::new(),
            prompts: Vec::new(),
        };
        for (name, parts) in [("first", &plot.first), ("second", &plot.second)] {
            let side = scene.side(name).await?;
            for part in parts {
                let prompt = scene.prompt(&side, *part, plot).await?;
                scene.prompts.push(prompt);
            }
            scene.sides.push(side);
        }
        Ok(scene)
    }

    async fn side(&self, name: &str) -> Result<Side> {
        let id = TenantId::new();
        let secret = WebhookSecret::generate().text();
        let sealer = Sealer::from_base64(SEALING_KEY)?;
        let sealing = sealer.ready(id, Purpose::WebhookSecret).await?;
        let sealed = sealing.seal(secret.expose().as_bytes())?;
        let tx = self.db.tenant(id).await?;
        let user = tenants::create(
            &tx,
            &NewTenant {
                name,
                owner_email: &format!("owner@{name}.example"),
                webhook_secret_sealed: &sealed,
            },
        )
        .await?;
        tx.commit().await?;
        let hooks = format!("/hooks/{}-{name}", self.mark);
        peers::webhook_secrets(&hooks, &[secret.expose()]).await?;
        Ok(Side {
            tenant: Tenant { id, user },
            canary: format!("canary-{name}-{}", Uuid::new_v4().simple()),
            hooks,
        })
    }

    async fn prompt(&self, side: &Side, part: Part, plot: &Plot) -> Result<Prompt> {
        let word = format!("{}-{part:?}-{}", self.mark, side.canary);
        teach(part, &word, &side.canary, plot.model_ms).await?;
        let end = Utc::now().duration_trunc(TimeDelta::minutes(1))? - TimeDelta::minutes(1);
        let count = i64::try_from(SLOTS)?;
        let first = end - TimeDelta::minutes(count - 1);
        let slots = (0..count).map(|n| first + TimeDelta::minutes(n)).collect();
        let mut changes = json!({
            "prompt_name": format!("{part:?} of {}", side.canary),
            "prompt_text": format!("{word} for run {{{{ run.id }}}}"),
            "model": "openai/gpt-5-mini",
            "schedule": {"type": "cron", "expression": "* * * * *", "timezone": "UTC",
                "end_at": end.to_rfc3339_opts(SecondsFormat::Secs, true)},
            "max_retries": 6,
            "timeout_ms": 20_000,
            "overlap_runs_max": 10,
        });
        let hook = |end: &str| json!({"kind": "webhook", "url": format!("{}{}{end}", plot.webhook_url, side.hooks)});
        let mail = |on_unknown: &str| json!({"kind": "email", "to": ["crew@reader.example"], "on_unknown": on_unknown});
        let storage = json!({"kind": "storage"});
        changes["destinations"] = match part {
            Part::Plain => json!([hook("/plain"), storage, mail("resend")]),
            Part::Flaky => json!([hook("/flaky")]),
            Part::Broken | Part::Hopeless => json!([hook("/never")]),
            Part::Long => json!([hook("/long"), storage]),
            Part::Busy => json!([hook("/fail-then-ok/2")]),
            Part::Deaf => json!([hook("/deaf/status/503")]),
            Part::Careful => json!([mail("hold")]),
            Part::Slow => json!([hook("/slow/7")]),
        };
        if part == Part::Broken {
            changes["notification_email"] = json!("alarm@reader.example");
        }
        if part == Part::Hopeless {
            changes["max_retries"] = json!(2);
        }
        let id = stage::prompt(&self.db, side.tenant, &changes, Some(first)).await?;
        Ok(Prompt {
            id,
            tenant: side.tenant.id,
            part,
            slots,
        })
    }

    /// A process on this scene, past every proxy and without a fault.
    #[must_use]
    pub fn order(&self, name: &str, role: Role) -> Order {
        let database = ["carillon_app", "carillon_system"].map(|login| {
            format!(
                "{}?application_name={name}",
                as_role(&self.admin_url, login)
            )
        });
        let tenants: Vec<_> = self
            .sides
            .iter()
            .map(|side| side.tenant.id.to_string())
            .collect();
        Order {
            name: name.to_owned(),
            role,
            database,
            home: self.home.path().to_owned(),
            lease: Duration::from_secs(60),
            model_url: format!("{}/v1", peers::aimock_url()),
            more: vec![("CHAOS_TENANTS", tenants.join(","))],
        }
    }

    /// The same, with the database behind a proxy at that address.
    #[must_use]
    pub fn order_behind(&self, name: &str, role: Role, address: &str) -> Order {
        let database = ["carillon_app", "carillon_system"].map(|login| {
            let place = format!("{login}@{address}/{}", self.name);
            format!("postgresql://{place}?sslmode=disable&application_name={name}")
        });
        Order {
            database,
            ..self.order(name, role)
        }
    }

    /// Lets every wait be over: of runs, deliveries, looks.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hurry(&self) -> Result<()> {
        for sql in [
            "UPDATE scheduled_prompts SET look_again_at = NULL WHERE look_again_at IS NOT NULL",
            "UPDATE scheduled_prompt_runs SET look_again_at = NULL, available_at = least(available_at, clock_timestamp())
              WHERE look_again_at IS NOT NULL OR status = 'queued' AND available_at > clock_timestamp()",
            "UPDATE deliveries SET look_again_at = NULL, next_attempt_at = least(next_attempt_at, clock_timestamp())
              WHERE look_again_at IS NOT NULL
                 OR status IN ('pending', 'retrying') AND next_attempt_at > clock_timestamp()",
        ] {
            // Who holds a row just now is about to change it; the next round finds it.
            if let Err(error) = self.admin.batch_execute(sql).await
                && error.code() != Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
            {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The time that a dead or stopped process had is over: its sessions are ended where they hold
    /// a transaction, and so are all leases.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn outlive(&self, name: &str) -> Result<()> {
        let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                    WHERE application_name = $1 AND state LIKE 'idle in transaction%'
                      AND datname = current_database()";
        // A statement that was under way may still be about to end so.
        for _ in 0..3 {
            self.admin.execute(sql, &[&name]).await?;
            sleep(POLL).await;
        }
        self.end_leases().await
    }

    /// All leases are over.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn end_leases(&self) -> Result<()> {
        for table in ["scheduled_prompt_runs", "deliveries"] {
            let sql = format!(
                "UPDATE {table} SET lease_expires_at = clock_timestamp() - interval '1 second'
                  WHERE lease_expires_at IS NOT NULL"
            );
            self.admin.batch_execute(&sql).await?;
        }
        self.end_events_leases().await
    }

    /// From the next session on, the database's clock can be set.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn give_clock(&self) -> Result<()> {
        self.admin.batch_execute(CLOCK).await?;
        let path = format!(
            r#"ALTER DATABASE "{}" SET search_path = sim, pg_catalog, public"#,
            self.name
        );
        Ok(self.admin.batch_execute(&path).await?)
    }

    /// The database's clock is so many minutes off.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_clock(&self, minutes: i32) -> Result<()> {
        let sql = "UPDATE sim.shift SET by = $1 * interval '1 minute'";
        self.admin.execute(sql, &[&f64::from(minutes)]).await?;
        Ok(())
    }

    async fn end_events_leases(&self) -> Result<()> {
        let sql =
            "UPDATE bus_events SET due_at = clock_timestamp() WHERE due_at > clock_timestamp()";
        Ok(self.admin.batch_execute(sql).await?)
    }

    /// Waits until nothing is due, held or under way any more.
    ///
    /// # Errors
    /// When that does not come within `limit`.
    pub async fn quiet(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.hurry().await?;
            let open = self.open().await?;
            if open.is_empty() {
                return Ok(());
            }
            // A claim whose end could not be noted lasts a minute.
            if open.iter().all(|one| one.starts_with("event")) {
                self.end_events_leases().await?;
            }
            if Instant::now() > deadline {
                bail!("not over: {}", open.join(", "));
            }
            sleep(POLL).await;
        }
    }

    async fn open(&self) -> Result<Vec<String>> {
        let sql = "SELECT 'prompt ' || prompt_name || ' ' || status FROM (SELECT spec->>'prompt_name' AS prompt_name, p.status
                     FROM scheduled_prompts p JOIN prompt_versions v ON v.prompt_id = p.id AND v.version = p.spec_version
                    WHERE p.next_run_at <= now() AND p.status = 'active') q
                   UNION ALL SELECT 'run ' || status || coalesce(' ' || error_code, '') FROM scheduled_prompt_runs
                    WHERE status IN ('queued', 'running', 'generated')
                   UNION ALL SELECT kind || ' ' || status || coalesce(' ' || error_code, '') FROM deliveries
                    WHERE status IN ('pending', 'sending', 'retrying')
                   UNION ALL SELECT 'event ' || type FROM bus_events WHERE due_at IS NOT NULL";
        let rows = self.admin.query(sql, &[]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Rows of a statement as JSON.
    ///
    /// # Errors
    /// When the statement is wrong.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Value>> {
        let sql = format!("SELECT to_jsonb(q) FROM ({sql}) q");
        let rows = self
            .admin
            .query(&sql, &[])
            .await
            .with_context(|| sql.clone())?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Where emails lie.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.home.path().join("outbox")
    }

    /// Gives the database back.
    ///
    /// # Errors
    /// When it is in use.
    pub async fn drop_database(self) -> Result<()> {
        let Self {
            name, db, admin, ..
        } = self;
        drop((db, admin));
        let admin = connect(&crate::postgres_url()).await?;
        let sql = format!(r#"DROP DATABASE IF EXISTS "{name}" WITH (FORCE)"#);
        Ok(admin.batch_execute(&sql).await?)
    }
}

async fn fill(url: &str) -> Result<()> {
    migrate::run(&Secret::new(url.to_owned()), &RolePasswords::default()).await?;
    let admin = connect(url).await?;
    admin.batch_execute(NOTES).await?;
    Ok(())
}

/// The superuser's URL with another role.
fn as_role(url: &str, role: &str) -> String {
    match (url.split_once("://"), url.split_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{role}@{place}"),
        _ => url.to_owned(),
    }
}

/// Tells the model's server what to answer to whoever says `word`.
async fn teach(part: Part, word: &str, canary: &str, model_ms: u32) -> Result<()> {
    let answer = match part {
        Part::Long => format!("{canary} {}", "at length ".repeat(LONG_OUTPUT / 10)),
        Part::Plain
        | Part::Flaky
        | Part::Broken
        | Part::Hopeless
        | Part::Busy
        | Part::Deaf
        | Part::Careful
        | Part::Slow => format!("{canary} says so"),
    };
    let latency = if part == Part::Slow { 7_000 } else { model_ms };
    match part {
        Part::Flaky => peers::aimock_fails(word, 500, Some((&answer, 1))).await,
        Part::Broken => peers::aimock_fails(word, 401, None).await,
        Part::Hopeless => peers::aimock_fails(word, 500, None).await,
        Part::Plain | Part::Long | Part::Busy | Part::Deaf | Part::Careful | Part::Slow => {
            peers::aimock_answers(word, &answer, latency).await
        }
    }
}
