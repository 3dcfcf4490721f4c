//! The text of a prompt, of its system text and of an email's subject: a template over a closed set
//! of variables.
//!
//! The language is a part of Jinja: output, `if`, `for`, comments and `raw`, and the filters of
//! [`filters::NAMES`]. What could grow a value without bound (`set`, macros, `~`, `*`, `range`) is
//! not in it, so the work of one step is bounded by what the template was given, and the number of
//! steps by fuel. Whatever the text, parsing and rendering must end soon, stay within the limits and
//! never panic: the text comes from a tenant.

mod check;
mod filters;

use std::{
    cell::Cell,
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Object, Serde},
};
use serde_json::{Map, Value};

use crate::{fault::Fault, ids::RunId};

/// The longest template, in bytes.
pub const TEXT_BYTES_MAX: usize = 100_000;
/// The longest rendered text, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 200_000;
/// The longest previous output that a template can look at, in bytes.
pub const PREVIOUS_BYTES_MAX: usize = 256 * 1024;
/// Steps of one rendering, about one for each name, operator and filter that is passed.
const FUEL: u64 = 50_000;
/// What a rendering may take by the clock, should its steps be dear ones.
const RENDER_TIME_MAX: Duration = Duration::from_secs(2);
/// The name under which minijinja knows the one template of an environment.
const NAME: &str = "template";

thread_local! {
    /// When the rendering under way must end: a filter is given its values and nothing else.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether a text has no tag at all. It is a template that renders as itself, which needs no engine.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    !["{{", "{%", "{#"].iter().any(|tag| text.contains(tag))
}

/// A template that was checked.
pub struct Template {
    environment: Environment<'static>,
    context_uses: check::ContextUses,
    uses_previous_output: bool,
}

/// What a template may name, for one run.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// The slot's instant: `slot.date`, `slot.time` and `slot.weekday` are taken from it, never from
    /// the clock.
    pub scheduled_for: DateTime<Utc>,
    /// The prompt's zone: `slot.timezone`, and the zone of the other three.
    pub timezone: Tz,
    /// The prompt's own values: `context.*`.
    pub context: &'a Map<String, Value>,
    /// The output of the last run that succeeded: `previous.output`, empty when there was none.
    pub previous_output: Option<&'a str>,
    /// `run.id`.
    pub run_id: RunId,
}

/// Why a template gave no text. The same values give the same error, so a retry is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The text would be too long.
    #[error(
        "the rendered text is longer than {OUTPUT_BYTES_MAX} bytes; shorten it, for example with the filter truncate"
    )]
    TooLong,
    /// The previous output is too long to be looked at.
    #[error(
        "the previous output is longer than {PREVIOUS_BYTES_MAX} bytes; ask the model for less, or leave previous.output out"
    )]
    PreviousTooLong,
    /// The rendering takes too many steps, or too long.
    #[error("the template takes too much work to render; let it loop over less")]
    TooMuchWork,
    /// A value that is looked up while rendering is not there.
    #[error(
        "line {line}: a value is missing; add it to the context, or give it the filter default"
    )]
    Missing {
        /// Where, from 1.
        line: usize,
    },
    /// An operation does not suit its values.
    #[error("line {line}: {detail}; change the template or the context")]
    Failed {
        /// Where, from 1.
        line: usize,
        /// What minijinja says.
        detail: String,
    },
}

impl Template {
    /// Parses a template and checks all but the names under `context`.
    ///
    /// # Errors
    ///
    /// Every fault that can be told, with an empty field: `too_long`, `template_syntax`,
    /// `template_too_complex`, `template_unsupported`, `unknown_variable`.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let checked = check::check(text)?;
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_syntax(syntax().map_err(|error| vec![check::syntax_fault(&error)])?);
        filters::add_to(&mut environment);
        environment
            .add_template_owned(NAME, text.to_owned())
            .map_err(|error| vec![check::syntax_fault(&error)])?;
        Ok(Self {
            environment,
            context_uses: checked.context_uses,
            uses_previous_output: checked.uses_previous_output,
        })
    }

    /// Whether the values must hold the last success's output, which costs a look-up.
    #[must_use]
    pub fn uses_previous_output(&self) -> bool {
        self.uses_previous_output
    }

    /// The names under `context` that this context lacks, as faults `unknown_variable` with an empty
    /// field.
    #[must_use]
    pub fn unknown_in(&self, context: &Map<String, Value>) -> Vec<Fault> {
        check::unknown_in(&self.context_uses, context)
    }

    /// Renders the text.
    ///
    /// # Errors
    ///
    /// [`TemplateError`], when the values do not suit the template or a limit is reached.
    pub fn render(&self, values: &Values<'_>) -> Result<String, TemplateError> {
        self.render_within(values, RENDER_TIME_MAX)
    }

    /// Renders the text if that takes no longer than `time`.
    ///
    /// # Errors
    ///
    /// As [`Template::render`]; [`TemplateError::TooMuchWork`] may be due to `time` alone.
    pub fn render_within(
        &self,
        values: &Values<'_>,
        time: Duration,
    ) -> Result<String, TemplateError> {
        let previous = values.previous_output.unwrap_or_default();
        if self.uses_previous_output && previous.len() > PREVIOUS_BYTES_MAX {
            return Err(TemplateError::PreviousTooLong);
        }
        let deadline = Instant::now() + time.min(RENDER_TIME_MAX);
        DEADLINE.set(Some(deadline));
        let mut output = Bounded::default();
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            let root = minijinja::Value::from_object(Root::new(values, previous));
            template.render_captured_to(root, &mut output).map(drop)
        });
        DEADLINE.set(None);
        match rendered {
            // A literal may spell a NUL, which Postgres cannot store.
            Ok(()) => Ok(output.text.replace('\0', "\u{fffd}")),
            Err(_) if output.overflowed => Err(TemplateError::TooLong),
            Err(_) if Instant::now() > deadline => Err(TemplateError::TooMuchWork),
            Err(error) => Err(explain(&error)),
        }
    }
}

/// The text is its tenant's: no part of it may reach a log.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").finish_non_exhaustive()
    }
}

impl TemplateError {
    /// The stable code of every variant, as runs record it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "template_error"
    }
}

/// Whether the rendering under way has used up its time. Who looks up a name, writes, or passes
/// through a filter that reads a whole value asks first: no other step is dearer than to compare two
/// values of the context.
fn is_late() -> bool {
    DEADLINE
        .get()
        .is_some_and(|deadline| Instant::now() > deadline)
}

fn late() -> Error {
    Error::new(ErrorKind::InvalidOperation, "out of time")
}

/// The names at the root.
#[derive(Debug)]
struct Root {
    slot: minijinja::Value,
    context: minijinja::Value,
    previous: minijinja::Value,
    run: minijinja::Value,
}

impl Root {
    fn new(values: &Values<'_>, previous: &str) -> Self {
        let local = values.scheduled_for.with_timezone(&values.timezone);
        Self {
            slot: minijinja::Value::from_pairs([
                ("date", local.format("%Y-%m-%d").to_string()),
                ("time", local.format("%H:%M").to_string()),
                ("weekday", local.format("%A").to_string()),
                ("timezone", values.timezone.name().to_owned()),
            ]),
            context: minijinja::Value::from(Serde(values.context)),
            previous: minijinja::Value::from_pairs([("output", previous)]),
            run: minijinja::Value::from_pairs([("id", values.run_id.to_string())]),
        }
    }
}

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        if is_late() {
            return Some(minijinja::Value::from(late()));
        }
        match key.as_str()? {
            "slot" => Some(self.slot.clone()),
            "context" => Some(self.context.clone()),
            "previous" => Some(self.previous.clone()),
            "run" => Some(self.run.clone()),
            _ => None,
        }
    }
}

/// Text that refuses to grow too long, and to be written too late.
#[derive(Debug, Default)]
struct Bounded {
    text: String,
    overflowed: bool,
}

impl Bounded {
    fn push(&mut self, more: &str) -> Result<(), io::Error> {
        if is_late() {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        if self.text.len() + more.len() > OUTPUT_BYTES_MAX {
            self.overflowed = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.text.push_str(more);
        Ok(())
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = std::str::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.push(more)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Jinja drops the last line break of a template; a prompt's text is its author's.
fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().keep_trailing_newline(true).build()
}

fn explain(error: &Error) -> TemplateError {
    let line = error.line().unwrap_or_default();
    let detail = error.detail().unwrap_or("an operation failed");
    if error.kind() == ErrorKind::OutOfFuel {
        TemplateError::TooMuchWork
    } else if error.kind() == ErrorKind::UndefinedError {
        TemplateError::Missing { line }
    } else if detail == filters::TOO_LONG {
        TemplateError::TooLong
    } else {
        TemplateError::Failed {
            line,
            // It may quote a value, and Postgres stores no NUL.
            detail: detail
                .replace(char::is_control, "\u{fffd}")
                .chars()
                .take(200)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const RUN: &str = "0198f2a0-0000-7000-8000-000000000001";

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn context() -> Map<String, Value> {
        object(&json!({
            "city": "Paris",
            "empty": "",
            "count": 3,
            "nothing": null,
            "deep": {"er": {"x": 1}},
            "people": [{"name": "Ann", "age": 30}, {"name": "Bob", "age": 40}],
            "days": {"Sunday": "rest", "Monday": "work"},
            "list": ["a", "b", "c"],
        }))
    }

    fn render_with(
        text: &str,
        context: &Map<String, Value>,
        previous_output: Option<&str>,
    ) -> Result<String, TemplateError> {
        let template = Template::parse(text).unwrap();
        assert_eq!(template.unknown_in(context), []);
        template.render(&Values {
            scheduled_for: "2026-03-22T23:30:00Z".parse().unwrap(),
            timezone: chrono_tz::Asia::Tokyo,
            context,
            previous_output,
            run_id: RUN.parse().unwrap(),
        })
    }

    fn render(text: &str) -> String {
        render_with(text, &context(), Some("Rain.")).unwrap()
    }

    /// The codes at save time, with the context.
    fn codes(text: &str) -> Vec<&'static str> {
        let faults = match Template::parse(text) {
            Ok(template) => template.unknown_in(&context()),
            Err(faults) => faults,
        };
        faults.into_iter().map(|fault| fault.code).collect()
    }

    #[test]
    fn the_slot_is_told_in_the_prompts_zone() {
        let text = "{{ slot.date }} {{ slot.time }} {{ slot.weekday }} {{ slot.timezone }}";
        assert_eq!(render(text), "2026-03-23 08:30 Monday Asia/Tokyo");
        assert_eq!(render("{{ run.id }}"), RUN);
    }

    #[test]
    fn what_templates_can_do() {
        let table = [
            ("plain text\n", "plain text\n"),
            ("{{ context.city }}, {{ context['city'] }}", "Paris, Paris"),
            ("{{ context.deep.er.x }}", "1"),
            ("{# gone #}{% raw %}{{ as is }}{% endraw %}", "{{ as is }}"),
            ("<b>{{ '<&>' }}</b>", "<b><&></b>"),
            (
                "{% if context.count > 2 and not context.empty %}many{% else %}few{% endif %}",
                "many",
            ),
            (
                "{% for p in context.people if p.age > 35 %}{{ p.name }}{% endfor %}",
                "Bob",
            ),
            (
                "{% for p in context.people %}{{ loop.index }}/{{ loop.length }} {{ p.name }}{% if not loop.last %}; {% endif %}{% endfor %}",
                "1/2 Ann; 2/2 Bob",
            ),
            (
                "{% for day, what in context.days|items %}{{ day }}:{{ what }} {% endfor %}",
                "Monday:work Sunday:rest ",
            ),
            (
                "{% for x in context.empty %}{% else %}none{% endfor %}",
                "none",
            ),
            (
                "{{ context.people|map(attribute='name')|join(', ') }}",
                "Ann, Bob",
            ),
            ("{{ context.days[slot.weekday] }}", "work"),
            (
                "{{ context.people[0].name }} {{ context.list[-1] }}",
                "Ann c",
            ),
            (
                "{{ context.list|first }}{{ context.list|last }}{{ context.list|length }}",
                "ac3",
            ),
            (
                "{{ context.empty|default('x') }}{{ context.nothing|default('y') }}{{ context.count|default(9) }}",
                "xy3",
            ),
            (
                "{{ context.city|upper }} {{ context.city|lower|capitalize }} {{ ' a '|trim }}",
                "PARIS Paris a",
            ),
            (
                "{{ 'one two'|title }} {{ context.city|replace('a', 'oo') }}",
                "One Two Pooris",
            ),
            (
                "{{ context.city|truncate(3) }} {{ context.city|truncate(5) }} {{ context.city|truncate(0) }}",
                "Pa… Paris ",
            ),
            (
                "{{ context.deep|tojson }} {{ context.city|tojson }}",
                "{\"er\":{\"x\":1}} \"Paris\"",
            ),
            (
                "{{ 10 / 4 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ context.count - 1 }} {{ context.count + 1 }}",
                "2.5 3 3 2 4",
            ),
            ("{{ 3.14159|round(2) }}", "3.14"),
            (
                "{{ 'weekend' if slot.weekday in ['Saturday', 'Sunday'] else 'weekday' }}",
                "weekday",
            ),
            (
                "{{ 'yes' if context.city is string and context.count is odd }}",
                "yes",
            ),
            (
                "{% if 'ai' in previous.output %}{{ previous.output }}{% endif %}",
                "Rain.",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(render(text), expected, "{text}");
        }
    }

    #[test]
    fn a_first_run_has_an_empty_previous_output() {
        let text = "{{ previous.output|default('none yet') }}{% if previous.output %}!{% endif %}";
        assert_eq!(render_with(text, &context(), None).unwrap(), "none yet");
    }

    #[test]
    fn only_a_template_that_looks_back_needs_the_previous_output() {
        let table = [
            ("{{ previous.output }}", true),
            (
                "{% if context.count == 3 %}{{ previous['output']|upper }}{% endif %}",
                true,
            ),
            (
                "{% for x in context.list if x in previous.output %}{% endfor %}",
                true,
            ),
            (
                "{% for previous in context.people %}{{ previous.name }}{% endfor %}",
                false,
            ),
            (
                "previous.output {% raw %}{{ previous.output }}{% endraw %}",
                false,
            ),
        ];
        for (text, expected) in table {
            assert_eq!(
                Template::parse(text).unwrap().uses_previous_output(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn refusals_at_save_time() {
        let table = [
            ("{{ foo }}", "unknown_variable"),
            ("{{ slot.day }}", "unknown_variable"),
            ("{{ slot['day'] }}", "unknown_variable"),
            ("{{ slot[context.city] }}", "unknown_variable"),
            ("{{ slot }}", "unknown_variable"),
            ("{{ slot.date.year }}", "unknown_variable"),
            ("{{ previous }}", "unknown_variable"),
            ("{{ run.name }}", "unknown_variable"),
            ("{{ context.town }}", "unknown_variable"),
            ("{{ context['town'] }}", "unknown_variable"),
            ("{{ context.deep.er.y }}", "unknown_variable"),
            ("{{ context.city.name }}", "unknown_variable"),
            ("{{ context.town|default('x') }}", "unknown_variable"),
            ("{{ context.city|replace(foo, 'x') }}", "unknown_variable"),
            ("{% if false %}{{ foo }}{% endif %}", "unknown_variable"),
            ("{% if x is defined %}{% endif %}", "unknown_variable"),
            (
                "{% for x in context.list %}{% endfor %}{{ x }}",
                "unknown_variable",
            ),
            ("{% for x in x %}{% endfor %}", "unknown_variable"),
            ("{{ loop.index }}", "unknown_variable"),
            (
                "{% for x in context.list %}{{ loop.x }}{% endfor %}",
                "unknown_variable",
            ),
            ("{{ context.list[foo] }}", "unknown_variable"),
            ("{{ slot.date", "template_syntax"),
            ("{% if true %}", "template_syntax"),
            ("{% endif %}", "template_syntax"),
            ("{% nonsense %}", "template_syntax"),
            ("{% include 'x' %}", "template_syntax"),
            ("{% extends 'x' %}", "template_syntax"),
            ("{% import 'x' as y %}", "template_syntax"),
            ("{% macro m() %}{% endmacro %}", "template_syntax"),
            ("{% block b %}{% endblock %}", "template_syntax"),
            ("{# open", "template_syntax"),
            ("{{ 'open }}", "template_syntax"),
            ("{{ ü }}", "template_syntax"),
            ("{% set x = 1 %}", "template_unsupported"),
            ("{% set x %}a{% endset %}", "template_unsupported"),
            ("{% with x = 1 %}{% endwith %}", "template_unsupported"),
            ("{% filter upper %}a{% endfilter %}", "template_unsupported"),
            (
                "{% autoescape true %}{% endautoescape %}",
                "template_unsupported",
            ),
            (
                "{% for x in context.list recursive %}{% endfor %}",
                "template_unsupported",
            ),
            ("{{ range(10) }}", "template_unsupported"),
            ("{{ context.city.upper() }}", "template_unsupported"),
            ("{{ context.city ~ 'x' }}", "template_unsupported"),
            ("{{ context.city + context.city }}", "template_unsupported"),
            ("{{ 'a' * 1000000 }}", "template_unsupported"),
            ("{{ 9 ** 9 }}", "template_unsupported"),
            ("{{ context.city[:2] }}", "template_unsupported"),
            ("{{ context.city|nofilter }}", "template_unsupported"),
            (
                "{{ context.city|map('upper') }}{{ context.city|sort }}",
                "template_unsupported",
            ),
            ("{{ context.city is nothing }}", "template_unsupported"),
            (
                "{{ context.city|replace(*context.list) }}",
                "template_unsupported",
            ),
            (
                "{% for x in [previous.output] %}{% endfor %}",
                "template_unsupported",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(codes(text), [expected], "{text}");
        }
        assert_eq!(codes(&"x".repeat(TEXT_BYTES_MAX + 1)), ["too_long"]);
        assert_eq!(codes(&"x".repeat(TEXT_BYTES_MAX)), [""; 0]);
    }

    #[test]
    fn faults_say_where_and_what_exists() {
        let faults =
            Template::parse("ok\n{{ slot.day }}\n{{ foo }} {{ foo }}{{ 1 * 2 }}").unwrap_err();
        assert_eq!(faults.len(), 3);
        assert_eq!(faults[0].detail, "line 2: there is no variable slot.day");
        assert!(
            faults[0]
                .hint
                .contains("slot.date, slot.time, slot.weekday"),
            "{faults:?}"
        );
        let faults = Template::parse("\n\n{{ context.town }}")
            .unwrap()
            .unknown_in(&context());
        assert_eq!(
            faults[0].detail,
            "line 3: there is no variable context.town"
        );
        assert!(
            faults[0]
                .hint
                .contains("previous.output, run.id, context.city"),
            "{faults:?}"
        );
        let faults = Template::parse("\n{{ slot.date").unwrap_err();
        assert!(faults[0].detail.starts_with("line 2: "), "{faults:?}");
        let many: String = (0..100).map(|n| format!("{{{{ x{n} }}}}")).collect();
        assert_eq!(Template::parse(&many).unwrap_err().len(), 20);
    }

    #[test]
    fn what_only_the_run_can_tell_is_a_template_error() {
        let long = "x".repeat(150_000);
        let huge = "x".repeat(PREVIOUS_BYTES_MAX + 1);
        let table = [
            (
                "{{ context.list[7] }}",
                None,
                TemplateError::Missing { line: 1 },
            ),
            (
                "\n{% for p in context.people %}{{ p.email }}{% endfor %}",
                None,
                TemplateError::Missing { line: 2 },
            ),
            (
                "{{ previous.output }}{{ previous.output }}",
                Some(long.as_str()),
                TemplateError::TooLong,
            ),
            (
                "{{ previous.output|replace('x', context.city)|length }}",
                Some(&long),
                TemplateError::TooLong,
            ),
            (
                "{{ previous.output|join('--')|length }}",
                Some(&long),
                TemplateError::TooLong,
            ),
            (
                "{{ previous.output|length }}",
                Some(&huge),
                TemplateError::PreviousTooLong,
            ),
            (
                "{% for a in previous.output %}{% endfor %}",
                Some(&long),
                TemplateError::TooMuchWork,
            ),
        ];
        for (text, previous, expected) in table {
            let error = render_with(text, &context(), previous).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert_eq!(error.code(), "template_error");
        }
        let error = render_with("{{ context.city - 1 }}", &context(), None).unwrap_err();
        assert!(error.to_string().starts_with("line 1: "), "{error}");
        assert!(render_with("no look back", &context(), Some(&huge)).is_ok());
    }

    #[test]
    fn filters_end_with_the_time_too() {
        // The root is looked up once, and nothing is written.
        let text = "{% for c in context.cases %}{% for n in c.numbers %}{% if c.text|FILTER == 'c' %}{% endif %}{% endfor %}{% endfor %}";
        let context = object(&json!({
            "cases": [{"numbers": vec![1; 5_000], "text": "a".repeat(20_000)}],
        }));
        let values = Values {
            scheduled_for: "2026-03-22T23:30:00Z".parse().unwrap(),
            timezone: chrono_tz::Asia::Tokyo,
            context: &context,
            previous_output: None,
            run_id: RUN.parse().unwrap(),
        };
        for filter in [
            "capitalize",
            "lower",
            "replace('a', 'b')",
            "title",
            "tojson",
            "trim('a')",
            "truncate(19_000)",
            "upper",
        ] {
            let template = Template::parse(&text.replace("FILTER", filter)).unwrap();
            let rendered = template.render_within(&values, Duration::from_millis(2));
            assert_eq!(rendered, Err(TemplateError::TooMuchWork), "{filter}");
        }
    }

    /// Runs on a small stack, so that a deep recursion fails here and not in production.
    fn survive(text: String) {
        let context = object(&json!({
            "text": "y".repeat(30_000),
            "list": vec!["z"; 1_000],
        }));
        let live = move || {
            let start = Instant::now();
            let values = Values {
                scheduled_for: "2026-03-22T23:30:00Z".parse().unwrap(),
                timezone: chrono_tz::UTC,
                context: &context,
                previous_output: Some(&"x".repeat(PREVIOUS_BYTES_MAX)),
                run_id: RUN.parse().unwrap(),
            };
            if let Ok(template) = Template::parse(&text) {
                let _ = template.unknown_in(&context);
                if let Ok(rendered) = template.render(&values) {
                    assert!(rendered.len() <= OUTPUT_BYTES_MAX);
                }
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{:?}",
                start.elapsed()
            );
        };
        thread::Builder::new()
            .stack_size(1024 * 1024)
            .spawn(live)
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn bombs_do_not_go_off() {
        let nest = |open: &str, close: &str, count: usize| {
            format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count))
        };
        let loops = |count: usize, body: &str| {
            let open = "{% for a in context.list %}".repeat(count);
            format!("{open}{body}{}", "{% endfor %}".repeat(count))
        };
        let mut bombs = vec![
            "{{ 'a' * 1000000 }}".to_owned(),
            "{{ 'a' * 99999999999999999999 }}".to_owned(),
            "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}"
                .to_owned(),
            format!(
                "{{% set a = 'aaaaaaaa' %}}{}",
                "{% set a = a ~ a %}".repeat(4_000)
            ),
            format!(
                "{{% set a = [1] %}}{}{{{{ a }}}}",
                "{% set a = [a, a] %}".repeat(4_000)
            ),
            loops(8, "{{ a }}"),
            loops(30, ""),
            loops(3, "{{ context.text|replace('y', context.text)|length }}"),
            loops(3, "{% if 'q' in previous.output %}{% endif %}"),
            loops(
                3,
                "{% if previous.output|upper|lower|upper|trim == 'q' %}{% endif %}",
            ),
            loops(
                3,
                "{% if previous.output|join(previous.output) %}{% endif %}",
            ),
            format!(
                "{{% for x in [{}] %}}{}{{% endfor %}}",
                "'xxxxxxxx',".repeat(50),
                loops(2, "{{ x }}")
            ),
            format!(
                "{{{{ context.text{} }}}}",
                "|replace('y', 'yyyyyyyyyyyy')".repeat(1_000)
            ),
            format!("{{{{ context{} }}}}", ".a".repeat(40_000)),
            format!("{{{{ context{} }}}}", "[0]".repeat(30_000)),
            format!("{{{{ {}1 }}}}", "1 - ".repeat(20_000)),
            format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(8_000)),
            format!("{{{{ 1{} }}}}", " if 1".repeat(15_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(20_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(90_000)),
            format!("{{{{ 1{} }}}}", " < 1".repeat(20_000)),
            format!("{{{{ 1{} }}}}", "|upper".repeat(15_000)),
            format!("{{{{ 1{} }}}}", " is none".repeat(10_000)),
            format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(8_000)),
            format!(
                "{}{}",
                "{% if 1 %}".repeat(5_000),
                "{% endif %}".repeat(4_000)
            ),
            "{% set x %}".repeat(9_000),
            "{% if 1 %}".repeat(9_000),
            "{% for a in b %}".repeat(6_000),
            format!("{{% for {}a in b %}}", "(".repeat(50_000)),
            "{{".repeat(50_000),
            "{%".repeat(50_000),
            "{#".repeat(50_000),
            "{{ '".repeat(20_000),
            "\n".repeat(100_000),
            "{{ slot.date }}\n".repeat(6_000),
            "{{ previous.output }}".repeat(4_000),
            format!("{{{{ {} }}}}", "9".repeat(90_000)),
            format!("{{{{ '{}' }}}}", "\\u0000".repeat(15_000)),
            "{{ -170141183460469231731687303715884105728 // -1 }}".to_owned(),
            "{{ 1 // 0 }}{{ 1 % 0 }}{{ 1 / 0 }}{{ 1.5|round(2147483647) }}{{ 'a'|truncate(-1) }}"
                .to_owned(),
        ];
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("{1:", "}"),
            ("(1,", ")"),
            ("context[", "]"),
            ("1|default(", ")"),
        ] {
            bombs.extend([1, 15, 16, 17, 150, 10_000].map(|count| nest(open, close, count)));
        }
        // The worst that the counters let pass: all of them at their limits together.
        bombs.push(format!(
            "{}{{{{ {}{}1{} }}}}{}",
            "{% if 1 %}".repeat(32),
            "(".repeat(16),
            "not ".repeat(160),
            ")".repeat(16),
            "{% endif %}".repeat(32),
        ));
        bombs.push(format!(
            "{{% if 1 %}}{}{{{{ {}1 }}}}{{% endif %}}",
            "{% elif 1 %}".repeat(31),
            "-".repeat(190)
        ));
        for bomb in bombs {
            survive(bomb.chars().take(TEXT_BYTES_MAX).collect());
        }
    }

    /// Pieces that make sense together now and then.
    fn piece() -> impl Strategy<Value = String> {
        let known = vec![
            "{{ ",
            " }}",
            "{% ",
            " %}",
            "{%- ",
            "-%}",
            "{# ",
            " #}",
            "if ",
            "elif ",
            "else",
            "endif",
            "for x in ",
            "for k, v in ",
            "endfor",
            "raw",
            "endraw",
            "set a = ",
            "x",
            "k",
            "v",
            "loop.index",
            "context",
            "context.text",
            "context.list",
            "previous.output",
            "slot.date",
            "run.id",
            ".a",
            "[0]",
            "['a']",
            "[1:2]",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "'s'",
            "\"t\"",
            "1",
            "2.5",
            "-",
            "+",
            "*",
            "**",
            "/",
            "//",
            "%",
            "~",
            "|upper",
            "|items",
            "|join(",
            "|replace('y', context.text)",
            "|tojson",
            "|map(attribute='a')",
            "|truncate(3)",
            "|length",
            " is none",
            " in ",
            " and ",
            " not ",
            " == ",
            ",",
            ":",
            "=",
            " recursive",
            "{% for x in context.list %}",
            "{% endfor %}",
            "{% if x %}",
            "{% endif %}",
            "{{ x }}",
            "{{ context.text }}",
            "text",
            "\n",
            "ü🎉",
        ];
        prop_oneof![
            9 => proptest::sample::select(known).prop_map(str::to_owned),
            1 => ".{0,8}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn nothing_breaks_it(pieces in prop::collection::vec(piece(), 0..60)) {
            survive(pieces.concat());
        }

        #[test]
        fn a_text_without_a_tag_is_what_the_engine_makes_of_it(
            text in "([a-z \\r\\n\\\\'\"#%{}|-]|-}}|[\\p{L}]){0,40}"
        ) {
            prop_assume!(is_plain(&text));
            let rendered = render(&text);
            prop_assert_eq!(rendered, text);
        }

        #[test]
        fn noise_does_not_break_it(text in any::<String>()) {
            survive(text.clone());
            survive(format!("{{{{ {text} }}}}"));
            survive(format!("{{% {text} %}}"));
        }

        #[test]
        fn text_without_tags_stays_as_it_is(text in "[^{\\x00]{0,200}") {
            prop_assert_eq!(render(&text), text);
        }
    }
}
