//! Calendars: their days, and what they do to the prompts that name them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::world::{Reply, Tenant, World, id, instant, prompt_body, text};

const PATH: &str = "/v1/calendars/holidays";

/// Due every day at nine, but not on the days of these calendars.
fn but_not_on(calendars: &[&str]) -> Value {
    json!({
        "schedule": { "type": "daily", "at": "09:00", "timezone": "UTC" },
        "exclusions": { "calendars": calendars },
    })
}

fn days(dates: &[DateTime<Utc>]) -> Value {
    let day = |date: &DateTime<Utc>| json!({ "date": date.date_naive(), "name": "A holiday" });
    json!({ "days": dates.iter().map(day).collect::<Vec<_>>() })
}

async fn put(world: &World, tenant: &Tenant, path: &str, body: Value) -> Reply {
    let reply = world.send(&tenant.key, "PUT", path, Some(body)).await;
    assert!(reply.status.is_success(), "{}", reply.text);
    reply
}

async fn next_run_at(world: &World, tenant: &Tenant, prompt: &Value) -> Option<DateTime<Utc>> {
    let path = format!("/v1/prompts/{}", id(prompt));
    let prompt = world.get(&tenant.key, &path).await.body;
    (!prompt["next_run_at"].is_null()).then(|| instant(&prompt["next_run_at"]))
}

/// The next instant at which it is nine.
fn nine() -> DateTime<Utc> {
    let today = Utc::now()
        .date_naive()
        .and_hms_opt(9, 0, 0)
        .unwrap()
        .and_utc();
    if today > Utc::now() {
        today
    } else {
        today + TimeDelta::days(1)
    }
}

#[tokio::test]
async fn a_calendar_is_made_changed_listed_and_deleted() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let body = json!({ "days": [
        { "date": "2026-12-26" }, { "date": "2026-12-25", "name": "Christmas Day" },
    ] });
    let made = put(&world, &tenant, PATH, body.clone()).await;
    assert_eq!((made.status.as_u16(), made.header("etag")), (201, "\"1\""));
    assert_eq!(made.header("location"), PATH);
    assert_eq!(
        made.body["days"],
        json!([{ "date": "2026-12-25", "name": "Christmas Day" },
               { "date": "2026-12-26", "name": null }])
    );
    let read = world.get(&tenant.key, PATH).await;
    assert_eq!((&read.body, read.header("etag")), (&made.body, "\"1\""));

    let same = put(&world, &tenant, PATH, body).await;
    assert_eq!((same.status.as_u16(), &same.body), (200, &made.body));
    let changed = put(&world, &tenant, PATH, json!({ "days": [] })).await;
    assert_eq!(
        (changed.status.as_u16(), changed.header("etag")),
        (200, "\"2\"")
    );

    for name in ["a", "z", "b-2"] {
        let body = json!({ "days": [{ "date": "2027-01-01" }, { "date": "2026-01-01" }] });
        put(&world, &tenant, &format!("/v1/calendars/{name}"), body).await;
    }
    let page = world.get(&tenant.key, "/v1/calendars?limit=3").await;
    assert_eq!(page.items("name"), ["a", "b-2", "holidays"]);
    let first = &page.body["items"][0];
    assert_eq!(
        (
            &first["days_count"],
            &first["first_date"],
            &first["last_date"]
        ),
        (&json!(2), &json!("2026-01-01"), &json!("2027-01-01"))
    );
    assert_eq!(page.body["items"][2]["first_date"], Value::Null);
    let rest = format!("/v1/calendars?cursor={}", text(&page.body["next_cursor"]));
    assert_eq!(world.get(&tenant.key, &rest).await.items("name"), ["z"]);

    let gone = world.send(&tenant.key, "DELETE", PATH, None).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    world.get(&tenant.key, PATH).await.refused(404, "not_found");
    let again = world.send(&tenant.key, "DELETE", PATH, None).await;
    again.refused(404, "not_found");
    let events = world.get(&tenant.key, "/v1/audit-events").await;
    let actions = events.items("action");
    assert_eq!(actions[0], "calendar.deleted");
    let saved = actions.iter().filter(|action| *action == "calendar.saved");
    assert_eq!(saved.count(), 5, "the one that changed nothing is not told");
}

#[tokio::test]
async fn if_match_guards_a_calendar() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let send = async |etag: &str, date: &str| {
        let body = Some(json!({ "days": [{ "date": date }] }));
        let headers = [("if-match", etag)];
        world
            .send_with(&tenant.key, "PUT", PATH, body, &headers)
            .await
    };
    send("*", "2026-01-01")
        .await
        .refused(412, "version_changed");
    send("\"1\"", "2026-01-01")
        .await
        .refused(412, "version_changed");
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    assert_eq!(send("\"1\"", "2026-01-01").await.status, 200);
    send("\"1\"", "2026-01-02")
        .await
        .refused(412, "version_changed");
    assert_eq!(send("*", "2026-01-02").await.status, 200);
    let kept = world.get(&tenant.key, PATH).await;
    assert_eq!(kept.body["days"][0]["date"], "2026-01-02");
}

#[tokio::test]
async fn an_ics_text_gives_its_days() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let ics = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nUID:1\r\n\
               DTSTART;VALUE=DATE:20261225\r\nDTEND;VALUE=DATE:20261227\r\nSUMMARY:Christmas\r\n\
               END:VEVENT\r\nBEGIN:VEVENT\r\nUID:2\r\nDTSTART;VALUE=DATE:20200501\r\n\
               RRULE:FREQ=YEARLY\r\nSUMMARY:May Day\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";
    let made = put(&world, &tenant, PATH, json!({ "ics": ics })).await;
    let days = made.body["days"].as_array().unwrap();
    // Twelve years of May Days, from last year on.
    assert_eq!(days.len(), 2 + 12);
    assert!(days.contains(&json!({ "date": "2026-12-26", "name": "Christmas" })));

    let timed = ics.replace("DTSTART;VALUE=DATE:20200501", "DTSTART:20200501T090000");
    let refused = world
        .send(&tenant.key, "PUT", PATH, Some(json!({ "ics": timed })))
        .await;
    refused.refused(422, "validation_failed");
    assert_eq!(
        refused.faults(),
        [("ics".to_owned(), "not_all_day".to_owned())]
    );
    assert!(refused.text.contains("event 2 (May Day) has a time of day"));
    assert_eq!(world.get(&tenant.key, PATH).await.body, made.body);
}

#[tokio::test]
async fn what_is_no_calendar_is_refused() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let send = async |path: &str, body: Value| {
        let reply = world.send(&tenant.key, "PUT", path, Some(body)).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
        reply.faults()
    };
    let fault = |field: &str, code: &str| vec![(field.to_owned(), code.to_owned())];
    let day = json!({ "days": [{ "date": "2026-12-25" }, { "date": "2026-12-25" }] });
    assert_eq!(send(PATH, day.clone()).await, fault("days[1]", "duplicate"));
    let wrong_name = send("/v1/calendars/UK_holidays", json!({ "days": [] })).await;
    assert_eq!(wrong_name, fault("name", "bad_calendar_name"));
    world
        .get(&tenant.key, "/v1/calendars/UK_holidays")
        .await
        .refused(404, "not_found");
    assert_eq!(send(PATH, json!({})).await, fault("", "days_or_ics"));
    let both = send(PATH, json!({ "days": [], "ics": "x" })).await;
    assert_eq!(both.last(), fault("", "days_or_ics").last());
    let large = json!({ "ics": "x".repeat(256_000) });
    let large = world.send(&tenant.key, "PUT", PATH, Some(large)).await;
    large.refused(413, "body_too_large");
    let viewer = world.key_of_role(&tenant.key, "viewer").await;
    for method in ["PUT", "DELETE"] {
        let body = (method == "PUT").then(|| json!({ "days": [] }));
        world
            .send(&viewer, method, PATH, body)
            .await
            .refused(403, "role_too_low");
    }
    assert_eq!(world.get(&viewer, "/v1/calendars").await.status, 200);
    world
        .sql(
            "INSERT INTO calendars (tenant_id, id, name, days)
             SELECT $1, gen_random_uuid(), 'c-' || n, '[]' FROM generate_series(1, 100) AS n",
            &[&tenant.id],
        )
        .await;
    let over = world
        .send(&tenant.key, "PUT", PATH, Some(json!({ "days": [] })))
        .await;
    over.refused(409, "too_many_calendars");
}

#[tokio::test]
async fn a_prompt_is_not_due_on_the_days_of_its_calendars() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = nine();
    let day = TimeDelta::days(1);
    put(&world, &tenant, PATH, days(&[first])).await;
    put(&world, &tenant, "/v1/calendars/more", days(&[first + day])).await;

    let one = world.prompt(&tenant.key, but_not_on(&["holidays"])).await;
    assert_eq!(instant(&one["next_run_at"]), first + day);
    let both = but_not_on(&["holidays", "more"]);
    let path = format!("/v1/prompts/{}", id(&one));
    let patch = json!({ "exclusions": both["exclusions"] });
    let patched = world.send(&tenant.key, "PATCH", &path, Some(patch)).await;
    assert_eq!(instant(&patched.body["next_run_at"]), first + day * 2);
    // Text does not touch time, and the calendars stay named.
    let renamed = json!({ "prompt_name": "Another" });
    let renamed = world.send(&tenant.key, "PATCH", &path, Some(renamed)).await;
    assert_eq!(renamed.body["next_run_at"], patched.body["next_run_at"]);
    let body = prompt_body(but_not_on(&["more"]));
    let replaced = world.send(&tenant.key, "PUT", &path, Some(body)).await;
    assert_eq!(instant(&replaced.body["next_run_at"]), first);

    put(
        &world,
        &tenant,
        "/v1/calendars/more",
        days(&[first, first + day]),
    )
    .await;
    assert_eq!(
        next_run_at(&world, &tenant, &one).await,
        Some(first + day * 2)
    );
    let pause = format!("{path}/pause");
    world.post(&tenant.key, &pause, json!({})).await;
    put(&world, &tenant, "/v1/calendars/more", days(&[first])).await;
    assert_eq!(
        next_run_at(&world, &tenant, &one).await,
        None,
        "a paused prompt waits"
    );
    let resumed = world
        .send(&tenant.key, "POST", &format!("{path}/resume"), None)
        .await;
    assert_eq!(instant(&resumed.body["next_run_at"]), first + day);
}

#[tokio::test]
async fn a_changed_calendar_moves_the_slots_of_the_prompts_that_name_it() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let other = world.tenant("bob").await;
    let first = nine();
    let day = TimeDelta::days(1);
    for tenant in [&tenant, &other] {
        put(&world, tenant, PATH, json!({ "days": [] })).await;
        put(&world, tenant, "/v1/calendars/more", days(&[first + day])).await;
    }
    let named = world.prompt(&tenant.key, but_not_on(&["holidays"])).await;
    let beside = but_not_on(&["more", "holidays"]);
    let beside = world.prompt(&tenant.key, beside).await;
    let without = world.prompt(&tenant.key, but_not_on(&["more"])).await;
    let of_other = world.prompt(&other.key, but_not_on(&["holidays"])).await;

    put(&world, &tenant, PATH, days(&[first])).await;
    assert_eq!(
        next_run_at(&world, &tenant, &named).await,
        Some(first + day)
    );
    assert_eq!(
        next_run_at(&world, &tenant, &beside).await,
        Some(first + day * 2)
    );
    assert_eq!(next_run_at(&world, &tenant, &without).await, Some(first));
    assert_eq!(next_run_at(&world, &other, &of_other).await, Some(first));
    let path = format!("/v1/prompts/{}", id(&named));
    let etag = world
        .get(&tenant.key, &path)
        .await
        .header("etag")
        .to_owned();
    assert_eq!(etag, "\"1\"", "its owner did not change the prompt");
    let events = world
        .get(&tenant.key, "/v1/audit-events?action=calendar.saved")
        .await;
    assert_eq!(
        events.body["items"][0]["detail"],
        json!({ "name": "holidays", "days": 1, "prompts_moved": 2 })
    );

    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    assert_eq!(next_run_at(&world, &tenant, &named).await, Some(first));
    assert_eq!(next_run_at(&world, &tenant, &beside).await, Some(first));
}

#[tokio::test]
async fn a_prompt_whose_last_slot_a_calendar_takes_gets_it_back() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = nine();
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    let mut change = but_not_on(&["holidays"]);
    change["schedule"]["end_at"] = json!(first);
    let last = world.prompt(&tenant.key, change).await;
    put(&world, &tenant, PATH, days(&[first])).await;
    assert_eq!(next_run_at(&world, &tenant, &last).await, None);
    let path = format!("/v1/prompts/{}", id(&last));
    assert_eq!(world.get(&tenant.key, &path).await.body["status"], "active");
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    assert_eq!(next_run_at(&world, &tenant, &last).await, Some(first));
}

#[tokio::test]
async fn a_slot_that_is_due_is_left_to_whoever_looks_at_it() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    let prompt = world.prompt(&tenant.key, but_not_on(&["holidays"])).await;
    let due = Utc::now() - TimeDelta::minutes(1);
    let due = DateTime::from_timestamp(due.timestamp(), 0).unwrap();
    let make_due = "UPDATE scheduled_prompts SET next_run_at = $1";
    world.sql(make_due, &[&due]).await;
    put(&world, &tenant, PATH, days(&[due])).await;
    assert_eq!(next_run_at(&world, &tenant, &prompt).await, Some(due));
    let rows = "SELECT count(*) AS n FROM scheduled_prompt_runs";
    assert_eq!(world.one(rows, &[]).await["n"], 0);
}

#[tokio::test]
async fn a_calendar_that_is_not_there_is_refused_wherever_it_is_named() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let bob = world.tenant("bob").await;
    put(&world, &bob, "/v1/calendars/of-bob", days(&[nine()])).await;
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    let unknown = |index: usize| {
        let field = format!("exclusions.calendars[{index}]");
        vec![(field, "unknown_calendar".to_owned())]
    };
    let body = prompt_body(but_not_on(&["holidays", "of-bob"]));
    let refused = world.post(&tenant.key, "/v1/prompts", body.clone()).await;
    assert_eq!(refused.faults(), unknown(1), "{}", refused.text);

    let made = world.prompt(&tenant.key, but_not_on(&["holidays"])).await;
    let path = format!("/v1/prompts/{}", id(&made));
    let refused = world.send(&tenant.key, "PUT", &path, Some(body)).await;
    assert_eq!(refused.faults(), unknown(1));
    let patch = json!({ "exclusions": { "calendars": ["of-bob"] } });
    let refused = world.send(&tenant.key, "PATCH", &path, Some(patch)).await;
    assert_eq!(refused.faults(), unknown(0));

    // The first version names a calendar that goes when no prompt names it any more.
    let patch = json!({ "exclusions": { "calendars": [] } });
    let patched = world.send(&tenant.key, "PATCH", &path, Some(patch)).await;
    assert_eq!(patched.status, 200, "{}", patched.text);
    let gone = world.send(&tenant.key, "DELETE", PATH, None).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    let restore = format!("{path}/versions/1/restore");
    let refused = world.send(&tenant.key, "POST", &restore, None).await;
    assert_eq!(refused.faults(), unknown(0), "{}", refused.text);
}

#[tokio::test]
async fn a_calendar_that_prompts_name_stays() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    let mut named = Vec::new();
    for _ in 0..12 {
        named.push(world.prompt(&tenant.key, but_not_on(&["holidays"])).await);
    }
    let refused = world.send(&tenant.key, "DELETE", PATH, None).await;
    refused.refused(409, "calendar_in_use");
    let detail = text(&refused.body["detail"]);
    let told = named
        .iter()
        .filter(|one| detail.contains(&id(one).to_string()));
    assert_eq!(told.count(), 10, "{detail}");
    assert!(detail.contains(" and 2 more;"), "{detail}");

    // Paused ones may come back; those that ended may not.
    for (index, prompt) in named.iter().enumerate() {
        let path = format!("/v1/prompts/{}", id(prompt));
        let reply = match index {
            0 => {
                world
                    .post(&tenant.key, &format!("{path}/pause"), json!({}))
                    .await
            }
            1 => {
                world
                    .post(&tenant.key, &format!("{path}/cancel"), json!({}))
                    .await
            }
            _ => world.send(&tenant.key, "DELETE", &path, None).await,
        };
        assert!(reply.status.is_success(), "{}", reply.text);
    }
    let refused = world.send(&tenant.key, "DELETE", PATH, None).await;
    assert!(text(&refused.body["detail"]).contains(&format!(": {};", id(&named[0]))));
    let path = format!("/v1/prompts/{}", id(&named[0]));
    world.send(&tenant.key, "DELETE", &path, None).await;
    let gone = world.send(&tenant.key, "DELETE", PATH, None).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
}

/// Whoever comes first, no prompt is left with a slot that its calendar takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_a_calendar_and_of_its_prompts_at_once_leave_no_slot_behind() {
    let world = World::new().await;
    let tenant = world.tenant("ada").await;
    let first = nine();
    let day = TimeDelta::days(1);
    put(&world, &tenant, PATH, json!({ "days": [] })).await;
    let edited = world.prompt(&tenant.key, json!({})).await;
    let path = format!("/v1/prompts/{}", id(&edited));
    for round in 0..6 {
        let holidays = if round % 2 == 0 {
            days(&[first])
        } else {
            days(&[first + day])
        };
        let changes = but_not_on(&["holidays"]);
        let (_, made, changed) = tokio::join!(
            put(&world, &tenant, PATH, holidays),
            world.prompt(&tenant.key, changes.clone()),
            world.send(&tenant.key, "PATCH", &path, Some(changes)),
        );
        assert_eq!(changed.status, 200, "{}", changed.text);
        let expected = if round % 2 == 0 { first + day } else { first };
        assert_eq!(
            next_run_at(&world, &tenant, &made).await,
            Some(expected),
            "round {round}"
        );
        assert_eq!(
            next_run_at(&world, &tenant, &edited).await,
            Some(expected),
            "round {round}"
        );
        let none = json!({ "exclusions": { "calendars": [] } });
        world.send(&tenant.key, "PATCH", &path, Some(none)).await;
    }
}
