//! Days from an iCalendar text (RFC 5545): all-day events, single or repeated yearly.
//!
//! The library reads content lines, one at a time: its reader of whole components calls itself for
//! each one inside another, as deep as the text says. Strict: what is not understood is refused with
//! the event's name.

use std::{collections::BTreeMap, ops::RangeInclusive};

use chrono::NaiveDate;
use icalendar::parser::{Property, unfold};

use super::{DAY_NAME_CHARS_MAX, DAYS_MAX, Days, FAULTS_TOLD_MAX, may_be_kept, yearly::Yearly};
use crate::{fault::Fault, fields::clip};

/// The most events.
const EVENTS_MAX: usize = 2_000;
/// The most days of one event.
const EVENT_DAYS_MAX: u64 = 366;
/// Years that the rules of all events may look at together.
const YEARS_LOOKED_AT_MAX: usize = 30_000;
/// Dates that all events may give together, before equal ones are merged.
const DATES_MAX: usize = 20_000;
/// Repeated events give their days from this many years ago on.
const YEARS_BEFORE: i32 = 1;
/// And up to this many years ahead.
const YEARS_AFTER: i32 = 10;

/// What stands in the calendar, beside its events, and holds no day.
const WITHOUT_DAYS: [&str; 1] = ["VTIMEZONE"];

/// Reads the days of all events.
pub(super) fn days(text: &str, this_year: i32) -> Result<Days, Vec<Fault>> {
    let events = events(text).map_err(|fault| vec![fault])?;
    let mut reader = Reader {
        years: this_year - YEARS_BEFORE..=this_year + YEARS_AFTER,
        years_left: YEARS_LOOKED_AT_MAX,
        dates_left: DATES_MAX,
        days: BTreeMap::new(),
    };
    let mut faults = Vec::new();
    for (index, event) in events.iter().enumerate() {
        match reader.add(event) {
            Ok(()) => {}
            Err(Refusal::Event(code, detail, hint)) => {
                let detail = format!("{} {detail}", event.name(index + 1));
                faults.push(Fault::new("", code, detail, hint));
            }
            Err(Refusal::Text(fault)) => {
                faults.push(fault);
                break;
            }
        }
        if faults.len() == FAULTS_TOLD_MAX {
            break;
        }
    }
    if faults.is_empty() {
        Ok(Days(reader.days))
    } else {
        Err(faults)
    }
}

/// An event's own lines.
#[derive(Default)]
struct Event {
    properties: Vec<(String, String)>,
}

/// Why the text is refused.
enum Refusal {
    /// For this event: code, detail and hint.
    Event(&'static str, String, &'static str),
    /// As a whole.
    Text(Fault),
}

/// Collects the days of the events.
struct Reader {
    years: RangeInclusive<i32>,
    years_left: usize,
    dates_left: usize,
    days: BTreeMap<NaiveDate, Option<String>>,
}

impl Reader {
    fn add(&mut self, event: &Event) -> Result<(), Refusal> {
        let one_day = "send all-day events alone: DTSTART;VALUE=DATE:20261225";
        for name in ["RECURRENCE-ID", "EXRULE"] {
            if event.has(name) {
                return Err(Refusal::Event(
                    "unsupported_recurrence",
                    format!("has {name}"),
                    "send the days that differ as events of their own",
                ));
            }
        }
        if event
            .get("STATUS")?
            .is_some_and(|status| status.eq_ignore_ascii_case("CANCELLED"))
        {
            return Ok(());
        }
        let start = event
            .get("DTSTART")?
            .ok_or_else(|| Refusal::Event("bad_date", "has no DTSTART".to_owned(), one_day))?;
        let first = all_day("DTSTART", start)?;
        let length = event.length(first)?;
        let excepted = event.dates("EXDATE")?;
        let mut starts = match event.get("RRULE")? {
            Some(rule) => self.repeated(rule, first)?,
            None => vec![first],
        };
        starts.extend(event.dates("RDATE")?);
        for start in starts {
            if !excepted.contains(&start) {
                self.insert(start, length, event.summary())?;
            }
        }
        Ok(())
    }

    fn repeated(&mut self, rule: &str, first: NaiveDate) -> Result<Vec<NaiveDate>, Refusal> {
        let rule = Yearly::parse(rule).map_err(|why| {
            Refusal::Event(
                "unsupported_recurrence",
                format!("repeats by a rule that {why}"),
                "repeat it with FREQ=YEARLY and BYMONTH, BYMONTHDAY or BYDAY, or send its days as \
                 events of their own",
            )
        })?;
        let looked_at = rule.years(first, &self.years).len();
        self.years_left = self.years_left.checked_sub(looked_at).ok_or_else(|| {
            too_many(format!(
                "the events repeat over more than {YEARS_LOOKED_AT_MAX} years in all"
            ))
        })?;
        Ok(rule.dates(first, &self.years))
    }

    fn insert(&mut self, start: NaiveDate, length: u64, name: Option<&str>) -> Result<(), Refusal> {
        for date in start.iter_days().zip(0..length).map(|(date, _)| date) {
            if !may_be_kept(date) {
                return Err(Refusal::Event(
                    "bad_date",
                    format!("falls on {date}"),
                    "send dates from 1970-01-01 to 2999-12-31",
                ));
            }
            self.dates_left = self.dates_left.checked_sub(1).ok_or_else(|| {
                too_many(format!(
                    "the events have more than {DATES_MAX} days, equal ones counted"
                ))
            })?;
            let known = self.days.entry(date).or_default();
            *known = joined(known.as_deref(), name);
            if self.days.len() > DAYS_MAX {
                return Err(too_many(format!(
                    "the events give more than {DAYS_MAX} days"
                )));
            }
        }
        Ok(())
    }
}

impl Event {
    fn has(&self, name: &'static str) -> bool {
        self.all(name).next().is_some()
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.properties
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a property that may stand once.
    fn get(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        let mut values = self.all(name);
        let value = values.next();
        if values.next().is_some() {
            return Err(Refusal::Event(
                "bad_event",
                format!("has {name} more than once"),
                "send it once",
            ));
        }
        Ok(value)
    }

    /// The dates of a property that holds lists of them.
    fn dates(&self, name: &'static str) -> Result<Vec<NaiveDate>, Refusal> {
        self.all(name)
            .flat_map(|list| list.split(','))
            .map(|one| all_day(name, one))
            .collect()
    }

    /// How many days it has: DTEND is the first day that does not belong to it.
    fn length(&self, first: NaiveDate) -> Result<u64, Refusal> {
        let refused = |detail: String| {
            let hint = "end it on the day after its last one, or leave DTEND out for one day";
            Err(Refusal::Event("bad_event", detail, hint))
        };
        let days = match (self.get("DTEND")?, self.get("DURATION")?) {
            (None, None) => Some(1),
            (Some(_), Some(_)) => return refused("has both DTEND and DURATION".to_owned()),
            // Some programs end a single day on the day itself.
            (Some(end), None) => match (all_day("DTEND", end)? - first).num_days() {
                0 => Some(1),
                days => u64::try_from(days).ok(),
            },
            (None, Some(duration)) => whole_days(duration),
        };
        match days {
            Some(days) if (1..=EVENT_DAYS_MAX).contains(&days) => Ok(days),
            _ => refused(format!("does not last 1 to {EVENT_DAYS_MAX} whole days")),
        }
    }

    fn summary(&self) -> Option<&str> {
        self.all("SUMMARY").next()
    }

    /// How a fault calls it, by its place from 1.
    fn name(&self, place: usize) -> String {
        let one_line = |text: &str| text.replace(char::is_control, " ");
        match self.summary().or_else(|| self.all("UID").next()) {
            Some(name) => format!("event {place} ({})", clip(&one_line(name))),
            None => format!("event {place}"),
        }
    }
}

/// The events of all calendars in the text.
fn events(text: &str) -> Result<Vec<Event>, Fault> {
    // Lines may end in CRLF or LF; mixed, the library would read over the ends of lines.
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let text = unfold(&text);
    let mut open: Vec<String> = Vec::new();
    let mut events: Vec<Event> = Vec::new();
    let mut calendars = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let depth = open.len();
        if let Some(name) = marker(line, "BEGIN:") {
            match (depth, name.as_str()) {
                (0, "VCALENDAR") => calendars += 1,
                (0, _) => return Err(malformed(line, "stands outside a VCALENDAR")),
                (1, "VEVENT") if events.len() == EVENTS_MAX => {
                    return Err(fault(
                        "too_many",
                        format!("the text has more than {EVENTS_MAX} events"),
                        "send fewer",
                    ));
                }
                (1, "VEVENT") => events.push(Event::default()),
                (1, name) if !WITHOUT_DAYS.contains(&name) => {
                    return Err(malformed(
                        line,
                        "begins what is neither an event nor a time zone",
                    ));
                }
                _ => {}
            }
            open.push(name);
        } else if let Some(name) = marker(line, "END:") {
            if open.pop() != Some(name) {
                return Err(malformed(line, "does not end what was begun last"));
            }
        } else if depth == 0 {
            return Err(malformed(line, "stands outside a VCALENDAR"));
        } else {
            let property = property(line)?;
            let of_event = depth == 2 && open.last().is_some_and(|name| name == "VEVENT");
            if let Some(event) = events.last_mut().filter(|_| of_event) {
                event.properties.push(property);
            }
        }
    }
    match open.pop() {
        Some(name) => Err(fault(
            "malformed_ics",
            format!("the text ends before END:{name}"),
            "send the whole file",
        )),
        None if calendars == 0 => Err(fault(
            "malformed_ics",
            "the text has no calendar",
            "send a text that begins with BEGIN:VCALENDAR",
        )),
        None => Ok(events),
    }
}

/// The component that a line begins or ends.
fn marker(line: &str, word: &str) -> Option<String> {
    let (found, name) = line.split_at_checked(word.len())?;
    found
        .eq_ignore_ascii_case(word)
        .then(|| name.trim().to_ascii_uppercase())
}

/// A line's name and its value.
fn property(line: &str) -> Result<(String, String), Fault> {
    let read = Property::try_from(line).ok();
    let read = read.filter(|read| {
        // The library takes a name alone for a property, and drops what follows it.
        !read.name.as_str().is_empty() && (!read.val.as_str().is_empty() || line.ends_with(':'))
    });
    let Some(read) = read else {
        return Err(malformed(line, "is no NAME:VALUE"));
    };
    Ok((
        read.name.as_str().to_ascii_uppercase(),
        read.val.as_str().to_owned(),
    ))
}

fn all_day(name: &str, value: &str) -> Result<NaiveDate, Refusal> {
    basic_date(value.trim()).ok_or_else(|| {
        if value.contains('T') {
            Refusal::Event(
                "not_all_day",
                format!("has a time of day in {name}"),
                "send all-day events alone: DTSTART;VALUE=DATE:20261225",
            )
        } else {
            Refusal::Event(
                "bad_date",
                format!("has a {name} that is no date"),
                "write dates as 20261225",
            )
        }
    })
}

/// A date as `20261225`.
pub(super) fn basic_date(text: &str) -> Option<NaiveDate> {
    let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
    Some(text)
        .filter(|_| digits)
        .and_then(|text| NaiveDate::parse_from_str(text, "%Y%m%d").ok())
        // The calendar of the standard begins there.
        .filter(|date| *date >= NaiveDate::from_ymd_opt(1583, 1, 1).unwrap_or_default())
}

/// `P3D` and `P1W`: an all-day event has no other durations.
fn whole_days(duration: &str) -> Option<u64> {
    let count = duration.trim().trim_start_matches('+').strip_prefix('P')?;
    match (count.strip_suffix('D'), count.strip_suffix('W')) {
        (Some(days), _) => days.parse().ok(),
        (None, Some(weeks)) => weeks.parse::<u64>().ok()?.checked_mul(7),
        (None, None) => None,
    }
}

/// Two holidays on one date share it.
fn joined(known: Option<&str>, name: Option<&str>) -> Option<String> {
    let name = name
        .map(|name| name.replace(char::is_control, " ").trim().to_owned())
        .filter(|name| !name.is_empty());
    let name = match (known, name) {
        (Some(known), Some(name)) if known.split(" / ").any(|one| one == name) => known.to_owned(),
        (Some(known), Some(name)) => format!("{known} / {name}"),
        (Some(known), None) => known.to_owned(),
        (None, name) => name?,
    };
    Some(name.chars().take(DAY_NAME_CHARS_MAX).collect())
}

fn too_many(detail: String) -> Refusal {
    Refusal::Text(fault(
        "too_many",
        detail,
        "send fewer, or split them over two calendars",
    ))
}

fn malformed(line: &str, why: &str) -> Fault {
    let line = line.replace(char::is_control, " ");
    fault(
        "malformed_ics",
        format!("the line `{}` {why}", clip(&line)),
        "send the file as the calendar program wrote it",
    )
}

fn fault(code: &'static str, detail: impl Into<String>, hint: &str) -> Fault {
    Fault::new("", code, detail, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(body: &str) -> String {
        format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{body}END:VCALENDAR\r\n")
    }

    fn event(lines: &str) -> String {
        let lines = lines.replace('|', "\r\n");
        calendar(&format!("BEGIN:VEVENT\r\n{lines}\r\nEND:VEVENT\r\n"))
    }

    /// The days as `2026-12-25 name`, read in 2026.
    fn read(text: &str) -> Vec<String> {
        let days = days(text, 2026).unwrap();
        let shown = days.iter().map(|day| match day.name {
            Some(name) => format!("{} {name}", day.date),
            None => day.date.to_string(),
        });
        shown.collect()
    }

    fn refused(text: &str) -> (&'static str, String) {
        let faults = days(text, 2026).unwrap_err();
        (faults[0].code, faults[0].detail.clone())
    }

    #[test]
    fn an_event_is_a_day_or_several() {
        let one = "DTSTART;VALUE=DATE:20261225|SUMMARY:Christmas Day";
        assert_eq!(read(&event(one)), ["2026-12-25 Christmas Day"]);
        let ended = "DTSTART;VALUE=DATE:20261225|DTEND;VALUE=DATE:20261227";
        assert_eq!(read(&event(ended)), ["2026-12-25", "2026-12-26"]);
        let on_the_day = "DTSTART;VALUE=DATE:20261225|DTEND;VALUE=DATE:20261225";
        assert_eq!(read(&event(on_the_day)), ["2026-12-25"]);
        let lasting = "DTSTART;VALUE=DATE:20261231|DURATION:P2D";
        assert_eq!(read(&event(lasting)), ["2026-12-31", "2027-01-01"]);
        let week = "DTSTART;VALUE=DATE:20261231|DURATION:P1W";
        assert_eq!(read(&event(week)).len(), 7);
        let more = "DTSTART;VALUE=DATE:20260101|RDATE;VALUE=DATE:20260301,20260302";
        assert_eq!(
            read(&event(more)),
            ["2026-01-01", "2026-03-01", "2026-03-02"]
        );
        let off = "DTSTART;VALUE=DATE:20260101|STATUS:CANCELLED";
        assert!(read(&event(off)).is_empty());
        assert!(read(&calendar("")).is_empty());
    }

    #[test]
    fn a_rule_gives_last_year_and_ten_years_ahead() {
        let yearly = "DTSTART;VALUE=DATE:20100704|RRULE:FREQ=YEARLY|EXDATE;VALUE=DATE:20260704";
        let days = read(&event(yearly));
        assert_eq!(days.len(), 11);
        assert_eq!((&*days[0], &*days[10]), ("2025-07-04", "2036-07-04"));
        assert!(!days.contains(&"2026-07-04".to_owned()));
        let long =
            "DTSTART;VALUE=DATE:20241231|DTEND;VALUE=DATE:20250102|RRULE:FREQ=YEARLY;COUNT=3";
        let expected = ["2025-12-31", "2026-01-01", "2026-12-31", "2027-01-01"];
        assert_eq!(read(&event(long)), expected);
    }

    #[test]
    fn what_calendar_programs_write_around_the_days_is_passed_over() {
        let text = "\u{feff}BEGIN:VCALENDAR\nPRODID;X=\"a:b;c\":x\n\nBEGIN:VTIMEZONE\nTZID:X\n\
            BEGIN:STANDARD\nDTSTART:19701101T020000\nRRULE:FREQ=YEARLY;BYMONTH=11;BYDAY=1SU\n\
            END:STANDARD\nEND:VTIMEZONE\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20260406\nSUMMARY;LANGUAGE=en:East\n er Mon\n\tday\\, UK\n\
            BEGIN:VALARM\nTRIGGER:-PT15M\nSUMMARY:no\nEND:VALARM\nTRANSP:TRANSPARENT\nX-EMPTY:\nend:vevent\nEND:VCALENDAR";
        assert_eq!(read(text), ["2026-04-06 Easter Monday, UK"]);
        let crlf = text.replace('\n', "\r\n");
        assert_eq!(read(&crlf), ["2026-04-06 Easter Monday, UK"]);
        let mixed = text.replacen('\n', "\r\n", 3);
        assert_eq!(read(&mixed), read(text));
        let two = format!("{text}\n{}", event("DTSTART:20260501|SUMMARY:May Day"));
        assert_eq!(read(&two).len(), 2);
    }

    #[test]
    fn holidays_of_one_date_share_it() {
        let body = ["Boxing Day", "St Stephen\\nDay", "Boxing Day"]
            .map(|name| format!("BEGIN:VEVENT\nDTSTART:20261226\nSUMMARY:{name}\nEND:VEVENT\n"));
        let text = calendar(&body.concat());
        assert_eq!(read(&text), ["2026-12-26 Boxing Day / St Stephen Day"]);
        let endless = format!("DTSTART:20261226|SUMMARY:{}", "ä".repeat(300));
        assert_eq!(
            read(&event(&endless))[0].chars().count(),
            11 + DAY_NAME_CHARS_MAX
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_by_the_events_name() {
        let table = [
            (
                "DTSTART:20261225T090000Z",
                "not_all_day",
                "has a time of day in DTSTART",
            ),
            (
                "DTSTART;VALUE=DATE:20261225|DTEND:20261226T000000",
                "not_all_day",
                "in DTEND",
            ),
            (
                "DTSTART;VALUE=DATE:20261325",
                "bad_date",
                "DTSTART that is no date",
            ),
            (
                "DTSTART;VALUE=DATE:19690101",
                "bad_date",
                "falls on 1969-01-01",
            ),
            (
                "DTSTART;VALUE=DATE:29991231|DURATION:P2D",
                "bad_date",
                "falls on 3000-01-01",
            ),
            ("X-A:b", "bad_date", "has no DTSTART"),
            (
                "DTSTART:20261225|DTSTART:20261226",
                "bad_event",
                "DTSTART more than once",
            ),
            (
                "DTSTART:20261225|DTEND:20261224",
                "bad_event",
                "does not last",
            ),
            (
                "DTSTART:20261225|DTEND:20280101",
                "bad_event",
                "does not last",
            ),
            (
                "DTSTART:20261225|DURATION:PT24H",
                "bad_event",
                "does not last",
            ),
            (
                "DTSTART:20261225|DURATION:P1D|DTEND:20261226",
                "bad_event",
                "both",
            ),
            (
                "DTSTART:20261225|RECURRENCE-ID:20261224",
                "unsupported_recurrence",
                "RECURRENCE-ID",
            ),
            (
                "DTSTART:20261225|EXRULE:FREQ=YEARLY",
                "unsupported_recurrence",
                "EXRULE",
            ),
            (
                "DTSTART:20261225|RRULE:FREQ=WEEKLY",
                "unsupported_recurrence",
                "otherwise than",
            ),
            (
                "DTSTART:20261225|RRULE:FREQ=YEARLY;BYSETPOS=1",
                "unsupported_recurrence",
                "BYSETPOS",
            ),
            (
                "DTSTART:20261225|RDATE;VALUE=PERIOD:20261225T090000Z/PT1H",
                "not_all_day",
                "RDATE",
            ),
        ];
        for (lines, code, words) in table {
            let text = event(&format!("SUMMARY:A day, named|{lines}"));
            let (found, detail) = refused(&text);
            assert_eq!(found, code, "{lines}: {detail}");
            assert!(detail.starts_with("event 1 (A day, named) "), "{detail}");
            assert!(detail.contains(words), "{lines}: {detail}");
        }
    }

    #[test]
    fn every_event_that_is_not_understood_is_named() {
        let body: String = (1..=30)
            .map(|day| {
                format!("BEGIN:VEVENT\nUID:u{day}\nDTSTART:202611{day:02}T000000\nEND:VEVENT\n")
            })
            .collect();
        let faults = days(&calendar(&body), 2026).unwrap_err();
        assert_eq!(faults.len(), FAULTS_TOLD_MAX);
        assert!(faults[4].detail.starts_with("event 5 (u5) has a time"));
    }

    #[test]
    fn a_text_that_is_no_calendar_is_refused() {
        let table = [
            ("", "has no calendar"),
            ("hello", "stands outside"),
            ("BEGIN:VCARD\nEND:VCARD", "stands outside"),
            (
                "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20261225",
                "before END:VEVENT",
            ),
            (
                "BEGIN:VCALENDAR\nEND:VEVENT\nEND:VCALENDAR",
                "was begun last",
            ),
            (
                "BEGIN:VCALENDAR\nBEGIN:VTODO\nEND:VTODO\nEND:VCALENDAR",
                "neither an event",
            ),
            (
                "BEGIN:VCALENDAR\nDTSTART 20261225\nEND:VCALENDAR",
                "is no NAME:VALUE",
            ),
            ("BEGIN:VCALENDAR\n:x\nEND:VCALENDAR", "is no NAME:VALUE"),
        ];
        for (text, words) in table {
            let (code, detail) = refused(text);
            assert_eq!(code, "malformed_ics");
            assert!(detail.contains(words), "{text}: {detail}");
        }
    }

    #[test]
    fn whatever_is_sent_the_work_is_bounded() {
        let times = |count, text: &str| calendar(&text.repeat(count));
        let day = "BEGIN:VEVENT\nDTSTART:20261225\nEND:VEVENT\n";
        assert_eq!(read(&times(EVENTS_MAX, day)), ["2026-12-25"]);
        assert_eq!(refused(&times(EVENTS_MAX + 1, day)).0, "too_many");
        let all = "BEGIN:VEVENT\nDTSTART:20260101\nRRULE:FREQ=YEARLY;BYMONTHDAY=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17\nEND:VEVENT\n";
        assert!(refused(&times(1, all)).1.contains("more than 2000 days"));
        let year = "BEGIN:VEVENT\nDTSTART:20260101\nDURATION:P366D\nEND:VEVENT\n";
        assert!(refused(&times(60, year)).1.contains("equal ones counted"));
        let old = "BEGIN:VEVENT\nDTSTART:15830101\nRRULE:FREQ=YEARLY;COUNT=9\nEND:VEVENT\n";
        assert!(
            refused(&times(100, old))
                .1
                .contains("repeat over more than")
        );
        // As deep as a request can make it.
        let deep = calendar(&"BEGIN:A\n".repeat(25_000));
        assert_eq!(refused(&deep).0, "malformed_ics");
        let deep = format!(
            "BEGIN:VCALENDAR\nBEGIN:VEVENT\n{}",
            "BEGIN:A\n".repeat(25_000)
        );
        assert_eq!(refused(&deep).0, "malformed_ics");
    }
}
