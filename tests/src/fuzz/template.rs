//! The text of a prompt.
//!
//! The input is the text, and where lines of `---` divide it, the context's JSON and the previous
//! output.

use serde_json::{Map, Value, json};
use shared::template::{OUTPUT_BYTES_MAX, Template, TemplateError, Values};

use super::{Verdict, faults, now};

const DIVIDER: &str = "\n---\n";
const ERROR_BYTES_MAX: usize = 2_000;

pub(super) fn check(data: &[u8]) -> Verdict {
    let Ok(input) = str::from_utf8(data) else {
        return Verdict::Refused;
    };
    let mut parts = input.splitn(3, DIVIDER);
    let text = parts.next().unwrap_or_default();
    let given = parts
        .next()
        .and_then(|json| serde_json::from_str(json).ok());
    let context = given.unwrap_or_else(context);
    let previous = parts.next();
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(found) => {
            faults::check(&found);
            return Verdict::Refused;
        }
    };
    let unknown = template.unknown_in(&context);
    if !unknown.is_empty() {
        faults::check(&unknown);
    }
    let rendered = render(&template, &context, previous);
    if let Ok(output) = &rendered {
        // What lacks a name gives no text: it was refused when it was saved.
        assert!(output.len() <= OUTPUT_BYTES_MAX && !output.contains('\0'));
        if !text.contains(['{', '\0']) {
            assert_eq!(output, text);
        }
        if !template.uses_previous_output() {
            assert_eq!(render(&template, &context, Some("other")), rendered);
        }
    }
    if let Err(error) = &rendered {
        assert_eq!(error.code(), "template_error");
        let told = error.to_string();
        // It is stored with the run, and Postgres stores no NUL.
        assert!(
            told.len() <= ERROR_BYTES_MAX && !told.contains('\0'),
            "{told}"
        );
    }
    // The clock may end one of two renderings that take long.
    let again = render(&template, &context, previous);
    let late = Err(TemplateError::TooMuchWork);
    assert!(again == rendered || again == late || rendered == late);
    Verdict::Accepted
}

fn render(
    template: &Template,
    context: &Map<String, Value>,
    previous_output: Option<&str>,
) -> Result<String, TemplateError> {
    template.render(&Values {
        scheduled_for: now(),
        timezone: chrono_tz::Europe::London,
        context,
        previous_output,
        run_id: "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5b".parse().unwrap(),
    })
}

fn context() -> Map<String, Value> {
    let context = json!({
        "city": "Lisbon", "text": "a line", "list": ["one", "two", 3, null],
        "deep": {"er": {"x": 1.5}}, "people": [{"name": "Ada"}, {"name": "Grace"}],
    });
    context.as_object().unwrap().clone()
}
